//! Passthrough: the kernel reads an open file from its backing file, without asking and without a second copy in
//! memory (`FUSE_PASSTHROUGH`, Linux 6.9; needs `CAP_SYS_ADMIN`).
//!
//! It is used for large files of layers that never change. Small ones are read in one request anyway, and their pages
//! stay with the inode when it is opened again.
//!
//! The kernel allows one backing file per inode at a time, and no mixture of passthrough and other openings. So the
//! choice depends on nothing that may differ between two openings of a file, and openings share their backing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{BackingId, ReplyOpen};
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::layer::ReadAt;

/// Files of fewer bytes are read by requests.
pub(super) const SMALLEST: u64 = 128 << 10;

/// What the kernel reads by itself.
#[derive(Debug)]
pub(super) struct Passthrough {
    enabled: AtomicBool,
    /// The most backing files at a time. Each is a file that the kernel holds open, as a descriptor does.
    max: usize,
    open: Mutex<Open<BackingId>>,
}

/// Guarded while a backing is registered, which is a call that waits for nothing, so that two openings of one file
/// share it.
#[derive(Debug)]
struct Open<B> {
    /// Backings, and how many openings share each. Whoever answers an opening may still hold its backing when the kernel
    /// has released it already, so references tell nothing.
    by_inode: HashMap<u64, (Arc<B>, usize)>,
    /// The inode of each opening, and how it is read.
    by_handle: HashMap<u64, (u64, Way)>,
    /// How many openings of an inode are read by requests.
    by_requests: HashMap<u64, usize>,
}

/// How an opening is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Passthrough,
    Requests,
}

impl Passthrough {
    /// With at most so many files at a time.
    pub(super) fn new(enabled: bool, max: usize) -> Self {
        Self { enabled: AtomicBool::new(enabled), max, open: Mutex::new(Open::new()) }
    }

    /// Gives it up for files that are opened from now on.
    pub(super) fn disable(&self, why: &dyn std::fmt::Display) {
        if self.enabled.swap(false, Ordering::Relaxed) {
            log::info!("large files are read by requests: {why}");
        }
    }

    /// The backing of a file that is being opened; `None` where it is to be read by requests.
    pub(super) fn backing(
        &self,
        reply: &ReplyOpen,
        inode: u64,
        handle: u64,
        size_bytes: u64,
        file: &dyn ReadAt,
    ) -> Option<Arc<BackingId>> {
        if size_bytes < SMALLEST {
            return None;
        }
        let descriptor = file.backing_fd()?;
        let mut open = self.open.lock();
        let backing = open.share(inode).or_else(|| {
            let may = self.enabled.load(Ordering::Relaxed) && open.may_register(inode, self.max);
            let registered = may.then(|| reply.open_backing(descriptor).map(Arc::new))?;
            registered.inspect_err(|error| self.failed(inode, error)).ok()
        });
        open.note(inode, handle, backing.clone());
        backing
    }

    fn failed(&self, inode: u64, error: &std::io::Error) {
        if Errno::from_io_error(error) == Some(Errno::PERM) {
            self.disable(error);
        }
        // A layer on a stacked file system, for example: others may do.
        log::debug!("inode {inode} is read by requests: {error}");
    }

    /// How many files the kernel reads by itself.
    pub(super) fn count(&self) -> usize {
        self.open.lock().by_inode.len()
    }

    /// Gives back what an opening held.
    pub(super) fn release(&self, handle: u64) {
        self.open.lock().release(handle);
    }
}

impl<B> Open<B> {
    fn new() -> Self {
        Self { by_inode: HashMap::new(), by_handle: HashMap::new(), by_requests: HashMap::new() }
    }

    fn share(&self, inode: u64) -> Option<Arc<B>> {
        self.by_inode.get(&inode).map(|(backing, _)| Arc::clone(backing))
    }

    /// Whether there is room, and no other opening of the inode is read by requests.
    fn may_register(&self, inode: u64, max: usize) -> bool {
        self.by_inode.len() < max && !self.by_requests.contains_key(&inode)
    }

    fn note(&mut self, inode: u64, handle: u64, backing: Option<Arc<B>>) {
        let (way, count) = match backing {
            Some(backing) => (Way::Passthrough, &mut self.by_inode.entry(inode).or_insert((backing, 0)).1),
            None => (Way::Requests, self.by_requests.entry(inode).or_default()),
        };
        *count = count.saturating_add(1);
        self.by_handle.insert(handle, (inode, way));
    }

    fn release(&mut self, handle: u64) {
        let Some((inode, way)) = self.by_handle.remove(&handle) else { return };
        let count = match way {
            Way::Passthrough => self.by_inode.get_mut(&inode).map(|(_, count)| count),
            Way::Requests => self.by_requests.get_mut(&inode),
        };
        let Some(count) = count else { return };
        *count = count.saturating_sub(1);
        match (*count, way) {
            (0, Way::Passthrough) => drop(self.by_inode.remove(&inode)),
            (0, Way::Requests) => drop(self.by_requests.remove(&inode)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backing_is_given_back_with_its_last_opening() {
        let mut open = Open::new();
        let answering = Arc::new("a backing, which whoever answers holds on to");
        open.note(7, 1, Some(Arc::clone(&answering)));
        let shared = open.share(7);
        open.note(7, 2, shared);
        open.release(1);
        open.release(1);
        assert!(open.share(7).is_some() && !open.may_register(8, 1));
        open.release(2);
        assert!(open.share(7).is_none() && open.may_register(8, 1));
        assert_eq!(Arc::strong_count(&answering), 1);
        assert!(open.by_handle.is_empty());
    }

    #[test]
    fn openings_of_one_inode_are_read_in_one_way() {
        let mut open = Open::<()>::new();
        assert!(open.may_register(7, 1) && !open.may_register(7, 0));
        open.note(7, 1, None);
        open.note(7, 2, None);
        assert!(!open.may_register(7, 1) && open.may_register(8, 1));
        open.release(1);
        open.release(1);
        assert!(!open.may_register(7, 1));
        open.release(2);
        assert!(open.may_register(7, 1));
        assert!(open.by_handle.is_empty() && open.by_requests.is_empty());
    }
}
