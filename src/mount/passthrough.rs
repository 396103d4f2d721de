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
    open: Mutex<Open>,
}

/// Guarded while a backing is registered, which is a call that waits for nothing, so that two openings of one file
/// share it.
#[derive(Debug, Default)]
struct Open {
    by_inode: HashMap<u64, Weak<BackingId>>,
    by_handle: HashMap<u64, (u64, Arc<BackingId>)>,
}

impl Passthrough {
    pub(super) fn new(enabled: bool) -> Self {
        Self { enabled: AtomicBool::new(enabled), open: Mutex::new(Open::default()) }
    }

    /// Gives it up for good.
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
        let descriptor =
            file.backing_fd().filter(|_| self.enabled.load(Ordering::Relaxed) && size_bytes >= SMALLEST)?;
        let mut open = self.open.lock();
        let shared = open.by_inode.get(&inode).and_then(Weak::upgrade);
        let backing = match shared {
            Some(backing) => backing,
            None => match reply.open_backing(descriptor) {
                Ok(backing) => Arc::new(backing),
                Err(error) => {
                    drop(open);
                    if Errno::from_io_error(&error) == Some(Errno::PERM) {
                        self.disable(&error);
                    }
                    // A layer on a stacked file system, for example: others may do.
                    log::debug!("inode {inode} is read by requests: {error}");
                    return None;
                }
            },
        };
        open.by_inode.insert(inode, Arc::downgrade(&backing));
        open.by_handle.insert(handle, (inode, Arc::clone(&backing)));
        Some(backing)
    }

    /// How many files the kernel reads by itself.
    pub(super) fn count(&self) -> usize {
        self.open.lock().by_inode.len()
    }

    /// Gives back what an opening held.
    pub(super) fn release(&self, handle: u64) {
        let mut open = self.open.lock();
        if let Some((inode, backing)) = open.by_handle.remove(&handle) {
            drop(backing);
            if open.by_inode.get(&inode).is_some_and(|shared| shared.strong_count() == 0) {
                open.by_inode.remove(&inode);
            }
        }
    }
}
