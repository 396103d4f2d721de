//! Passthrough: the kernel reads an open file from its backing file, without asking and without a second copy in
//! memory (`FUSE_PASSTHROUGH`, Linux 6.9; needs `CAP_SYS_ADMIN`).
//!
//! It is used for large files of layers that never change. Small ones are read in one request anyway, and their pages
//! stay with the inode when it is opened again.
//!
//! The kernel allows one backing file per inode at a time, and no mixture of passthrough and other openings. So the
//! choice depends on nothing that may differ between two openings of a file, and openings share their backing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

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
    open: Mutex<Open>,
}

/// Guarded while a backing is registered, which is a call that waits for nothing, so that two openings of one file
/// share it.
#[derive(Debug, Default)]
struct Open {
    by_inode: HashMap<u64, Weak<BackingId>>,
    /// The inode of each opening, and its backing; none where it is read by requests though another could be otherwise.
    by_handle: HashMap<u64, (u64, Option<Arc<BackingId>>)>,
    /// How many openings of an inode are read by requests.
    by_requests: HashMap<u64, usize>,
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

impl Open {
    fn share(&self, inode: u64) -> Option<Arc<BackingId>> {
        self.by_inode.get(&inode).and_then(Weak::upgrade)
    }

    /// Whether there is room, and no other opening of the inode is read by requests.
    fn may_register(&self, inode: u64, max: usize) -> bool {
        self.by_inode.len() < max && !self.by_requests.contains_key(&inode)
    }

    fn note(&mut self, inode: u64, handle: u64, backing: Option<Arc<BackingId>>) {
        match &backing {
            Some(backing) => drop(self.by_inode.insert(inode, Arc::downgrade(backing))),
            None => {
                let count = self.by_requests.entry(inode).or_default();
                *count = count.saturating_add(1);
            }
        }
        self.by_handle.insert(handle, (inode, backing));
    }

    fn release(&mut self, handle: u64) {
        let Some((inode, backing)) = self.by_handle.remove(&handle) else { return };
        match backing {
            Some(backing) => {
                drop(backing);
                if self.by_inode.get(&inode).is_some_and(|shared| shared.strong_count() == 0) {
                    self.by_inode.remove(&inode);
                }
            }
            None => {
                let left = self.by_requests.get(&inode).map_or(0, |count| count.saturating_sub(1));
                if left == 0 {
                    self.by_requests.remove(&inode);
                } else {
                    self.by_requests.insert(inode, left);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A backing can be had of the kernel only, so these are the openings that have none.
    #[test]
    fn openings_of_one_inode_are_read_in_one_way() {
        let mut open = Open::default();
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
