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
///
/// What counts is who has been given a handle and has not released it, and not who holds a backing: whoever answered an
/// opening may hold it for longer than the kernel does.
#[derive(Debug)]
struct Open<B> {
    by_inode: HashMap<u64, Way<B>>,
    /// The inode of each opening.
    by_handle: HashMap<u64, u64>,
    /// How many inodes have a backing.
    backed: usize,
}

/// How all openings of an inode are read, and how many there are.
#[derive(Debug)]
struct Way<B> {
    /// None where they are read by requests, though others could be otherwise.
    backing: Option<Arc<B>>,
    openings: usize,
}

impl<B> Default for Open<B> {
    fn default() -> Self {
        Self { by_inode: HashMap::new(), by_handle: HashMap::new(), backed: 0 }
    }
}

impl Passthrough {
    /// With at most so many files at a time.
    pub(super) fn new(enabled: bool, max: usize) -> Self {
        Self { enabled: AtomicBool::new(enabled), max, open: Mutex::new(Open::default()) }
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
        let may = self.enabled.load(Ordering::Relaxed) && open.backed < self.max;
        open.note(inode, handle, || {
            let registered = may.then(|| reply.open_backing(descriptor))?;
            registered.inspect_err(|error| self.failed(inode, error)).ok()
        })
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
        self.open.lock().backed
    }

    /// Gives back what an opening held.
    pub(super) fn release(&self, handle: u64) {
        self.open.lock().release(handle);
    }
}

impl<B> Open<B> {
    /// Notes an opening; its backing is that of the inode's others, or what `register` answers if there are none.
    fn note(&mut self, inode: u64, handle: u64, register: impl FnOnce() -> Option<B>) -> Option<Arc<B>> {
        self.by_handle.insert(handle, inode);
        let way = self.by_inode.entry(inode).or_insert_with(|| {
            let backing = register().map(Arc::new);
            self.backed = self.backed.saturating_add(usize::from(backing.is_some()));
            Way { backing, openings: 0 }
        });
        way.openings = way.openings.saturating_add(1);
        way.backing.clone()
    }

    fn release(&mut self, handle: u64) {
        let Some(inode) = self.by_handle.remove(&handle) else { return };
        let Some(way) = self.by_inode.get_mut(&inode) else { return };
        way.openings = way.openings.saturating_sub(1);
        if way.openings == 0 {
            self.backed = self.backed.saturating_sub(usize::from(way.backing.is_some()));
            self.by_inode.remove(&inode);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_of_one_inode_are_read_in_one_way() {
        let mut open = Open::default();
        assert_eq!(open.note(7, 1, || None), None);
        assert_eq!(open.note(7, 2, || Some("backing")), None);
        open.release(1);
        open.release(1);
        assert_eq!(open.note(7, 3, || Some("backing")), None);
        let [first, second] = [4, 5].map(|handle| open.note(8, handle, || Some("another")).unwrap());
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!((open.by_inode.len(), open.backed), (2, 1));
        for handle in [2, 3, 4] {
            open.release(handle);
        }
        assert_eq!((open.by_inode.len(), open.backed), (1, 1));
        open.release(5);
        assert_eq!(open.note(7, 6, || Some("backing")), Some(Arc::new("backing")));
        open.release(6);
        assert!(open.by_handle.is_empty() && open.by_inode.is_empty());
    }

    /// The kernel may release a file, in another thread, before whoever answered its opening lets go of the backing.
    #[test]
    fn a_backing_is_counted_until_the_last_release_whoever_holds_it() {
        let mut open = Open::default();
        let held_by_the_answer = open.note(7, 1, || Some("backing"));
        assert_eq!(open.backed, 1);
        open.release(1);
        assert_eq!((open.backed, open.by_inode.len()), (0, 0));
        // The kernel has let go of it, and gets another.
        let next = open.note(7, 2, || Some("next"));
        assert_eq!((held_by_the_answer, next), (Some(Arc::new("backing")), Some(Arc::new("next"))));
        open.release(2);
        assert_eq!((open.backed, open.by_inode.len()), (0, 0));
    }
}
