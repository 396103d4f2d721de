//! Open files: those that the kernel opened, by the handles that it was given, and those that it reads without opening
//! them, by inode.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::Mutex;

use crate::layer::ReadAt;

/// The handle of files that the kernel reads without opening them.
pub(super) const NO_HANDLE: u64 = 0;
/// How many files are held open for readers that did not open them.
const UNOPENED_MAX: NonZeroUsize = NonZeroUsize::new(128).unwrap();

/// An open file.
#[derive(Debug)]
pub(super) struct OpenFile {
    /// The inode.
    pub(super) number: u64,
    /// Tells it from another file that had the number before.
    pub(super) generation: u64,
    pub(super) reader: Box<dyn ReadAt>,
}

/// What is open.
#[derive(Debug)]
pub(super) struct OpenFiles {
    next: AtomicU64,
    /// Guards the table; held for single look-ups and changes only.
    by_handle: Mutex<HashMap<u64, Arc<OpenFile>>>,
    /// As above; what was read longest ago is closed first.
    by_inode: Mutex<LruCache<u64, Arc<OpenFile>>>,
}

impl Default for OpenFiles {
    fn default() -> Self {
        let by_inode = Mutex::new(LruCache::new(UNOPENED_MAX));
        Self { next: AtomicU64::new(NO_HANDLE + 1), by_handle: Mutex::default(), by_inode }
    }
}

impl OpenFiles {
    /// Keeps a file open until its handle is released.
    pub(super) fn insert(&self, file: OpenFile) -> (u64, Arc<OpenFile>) {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        let file = Arc::new(file);
        self.by_handle.lock().insert(handle, Arc::clone(&file));
        (handle, file)
    }

    /// The file of a handle.
    pub(super) fn get(&self, handle: u64) -> Option<Arc<OpenFile>> {
        self.by_handle.lock().get(&handle).cloned()
    }

    /// Releases a handle; the file is closed when the last request that uses it ends.
    pub(super) fn release(&self, handle: u64) {
        let closed = self.by_handle.lock().remove(&handle);
        drop(closed);
    }

    /// Keeps a file open for readers that have no handle, in the place of an older one of the inode.
    pub(super) fn keep(&self, file: Arc<OpenFile>) {
        let closed = self.by_inode.lock().push(file.number, file);
        drop(closed);
    }

    /// The file that is kept open for an inode.
    pub(super) fn kept(&self, number: u64) -> Option<Arc<OpenFile>> {
        self.by_inode.lock().get(&number).cloned()
    }

    /// Closes the file that is kept open for an inode.
    pub(super) fn close(&self, number: u64) {
        let closed = self.by_inode.lock().pop(&number);
        drop(closed);
    }

    /// Any open file of an inode. This looks at all there are, and is for rare cases.
    pub(super) fn of_inode(&self, number: u64) -> Option<Arc<OpenFile>> {
        let opened = self.by_handle.lock().values().find(|file| file.number == number).cloned();
        opened.or_else(|| self.kept(number))
    }
}
