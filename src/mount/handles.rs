//! Open files and directories, by the numbers that the kernel is given for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// What is open, by handle.
#[derive(Debug)]
pub(super) struct Handles<T> {
    next: AtomicU64,
    /// Guards the table; held for single look-ups and changes only.
    open: Mutex<HashMap<u64, Arc<T>>>,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { next: AtomicU64::new(1), open: Mutex::new(HashMap::new()) }
    }
}

impl<T> Handles<T> {
    /// Keeps something open and answers its handle.
    pub(super) fn insert(&self, opened: T) -> (u64, Arc<T>) {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        let opened = Arc::new(opened);
        self.open.lock().insert(handle, Arc::clone(&opened));
        (handle, opened)
    }

    /// What a handle stands for.
    pub(super) fn get(&self, handle: u64) -> Option<Arc<T>> {
        self.open.lock().get(&handle).cloned()
    }

    /// Anything open that fits. This looks at all there is, and is for rare cases.
    pub(super) fn find(&self, fits: impl Fn(&T) -> bool) -> Option<Arc<T>> {
        self.open.lock().values().find(|opened| fits(opened)).cloned()
    }

    /// Closes a handle; what it stands for goes when the last request that uses it ends.
    pub(super) fn remove(&self, handle: u64) {
        let closed = self.open.lock().remove(&handle);
        drop(closed);
    }
}
