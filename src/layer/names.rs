//! How many names are gathered: a directory can have more than there is memory for.
//!
//! A listing takes some 450 bytes for each name while it is made. So a directory of more than
//! [`NAMES_MAX`] names is not listed (its files can be looked up all the same), and listings that are made at the same
//! time have no more than [`GATHERED_MAX`] names together.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;

use crate::error::Error;

/// The most names of a directory that are listed, in all layers of a union together.
pub const NAMES_MAX: usize = 1 << 20;
/// The most names of all directories that are being listed at the same time.
pub const GATHERED_MAX: usize = 2 * NAMES_MAX;
/// Names are added to the common number in shares, which a listing of fewer never does.
const SHARE: usize = 8_192;

/// The names of all listings that are being made, as far as they were added.
static GATHERED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// What this thread added.
    static OWN: Cell<usize> = const { Cell::new(0) };
    /// Whether a [`Holding`] of this thread is under way, which takes it back.
    static IS_HELD: Cell<bool> = const { Cell::new(false) };
}

/// Has the names count that this thread gathers, of all layers, until it is dropped: what is put together of them takes
/// memory for as long.
#[derive(Debug)]
pub struct Holding {
    was_held: bool,
}

impl Holding {
    /// Begins one; one within another counts with it.
    #[must_use]
    pub fn begin() -> Self {
        Self { was_held: IS_HELD.replace(true) }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        IS_HELD.set(self.was_held);
        if !self.was_held {
            give_back();
        }
    }
}

fn give_back() {
    GATHERED.fetch_sub(OWN.replace(0), Ordering::Relaxed);
}

/// Counts the names of one directory of a layer while they are read.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    names: Cell<usize>,
    is_over: Cell<bool>,
}

impl Gathering {
    /// Whether there is room for one name more.
    pub(super) fn has_room(&self) -> bool {
        if self.is_over.get() {
            return false;
        }
        let names = self.names.get().saturating_add(1);
        self.names.set(names);
        let mut is_over = names > NAMES_MAX;
        if names.is_multiple_of(SHARE) {
            OWN.set(OWN.get().saturating_add(SHARE));
            is_over |= GATHERED.fetch_add(SHARE, Ordering::Relaxed).saturating_add(SHARE) > GATHERED_MAX;
        }
        self.is_over.set(is_over);
        !is_over
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.get()
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        if !IS_HELD.get() {
            give_back();
        }
    }
}

/// What is answered instead of a listing of too many names.
#[must_use]
pub fn too_many(dir: &str) -> Error {
    let doing = || format!("list {dir}, which has more names than are listed ({NAMES_MAX}) or there is room for now");
    Error::io(doing)(Errno::NOMEM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_counted_until_the_listing_is_over() {
        let count = |names| {
            let gathering = Gathering::default();
            (0..names).take_while(|_| gathering.has_room()).count()
        };
        let all = Holding::begin();
        assert_eq!(count(NAMES_MAX), NAMES_MAX);
        assert_eq!(OWN.get(), NAMES_MAX);
        // Another layer of the same directory.
        assert!(count(2 * NAMES_MAX) <= NAMES_MAX);
        drop(all);
        assert_eq!(OWN.get(), 0);
        // Of one that is not held, nothing stays.
        assert_eq!(count(10 * SHARE), 10 * SHARE);
        assert_eq!(OWN.get(), 0);
    }
}
