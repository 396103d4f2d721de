//! Listings of directories, kept for as long as the kernel reads them, and for a while after.
//!
//! A listing has no handle: the kernel says which directory it reads and from which offset. Where a directory never
//! changes, an offset is a place in the sorted names, so that a listing that was given up is made again with the same
//! offsets. Where names come and go, an offset follows from the name that it stands behind, so that a reader who goes on
//! in a newer listing misses no name that was there all the time, and sees none twice.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use parking_lot::{Condvar, Mutex};

use super::inodes::{Held, Key};
use crate::error::Result;
use crate::meta::Meta;
use crate::name::Name;
use crate::view::Entry;

/// How many entries all listings together may have before the one that was used longest ago is given up.
const ENTRIES_MAX: usize = 32_768;
/// How long a listing is waited for that another thread is making, before it is made a second time: that thread may be
/// reading ahead, and wait itself.
const PATIENCE: Duration = Duration::from_millis(20);
/// How many listings are kept whatever their size, so that as many readers of large directories can go on.
const LISTINGS_MIN: usize = 8;
/// The offset behind `.` and `..`.
const DOTS: u64 = 2;
/// The largest offset made of a name. Programs of 32 bits cannot read larger ones.
const OFFSET_MAX: u64 = 0x7fff_ffff;

/// An entry of a directory.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) name: Name,
    pub(super) held: Arc<Held>,
    pub(super) meta: Meta,
    /// Where a reader goes on who has had this entry.
    pub(super) offset: u64,
}

impl Listed {
    /// What was found in the directory of this key and number.
    pub(super) fn new(dir: Key, number: u64, name: Name, entry: Entry) -> Self {
        let (key, generation) = (Key::child(dir, &name, &entry.node), entry.generation());
        Self { name, held: Arc::new(Held::new(key, entry.node, number, generation)), meta: entry.meta, offset: 0 }
    }
}

/// What a directory holds, in the order of the offsets.
#[derive(Debug)]
pub(super) struct Listing {
    entries: Box<[Listed]>,
}

impl Listing {
    /// Lists a directory, whose number this is.
    ///
    /// # Errors
    /// As [`Node::list`](crate::view::Node::list).
    pub(super) fn of(dir: &Held, number: u64) -> Result<Self> {
        let entries = dir.node().list()?.into_iter();
        let entries = entries.map(|(name, entry)| Listed::new(dir.key(), number, name, entry)).collect();
        Ok(Self::new(entries, dir.node().changes()))
    }

    /// The listing of these entries; `changes` where names come and go.
    fn new(mut entries: Vec<Listed>, changes: bool) -> Self {
        if changes {
            for entry in &mut entries {
                entry.offset = offset_of(&entry.name);
            }
        }
        entries.sort_unstable_by(|a, b| (a.offset, &a.name).cmp(&(b.offset, &b.name)));
        let mut last = DOTS;
        for entry in &mut entries {
            entry.offset = entry.offset.max(last.saturating_add(1));
            last = entry.offset;
        }
        Self { entries: entries.into() }
    }

    /// All entries.
    pub(super) fn entries(&self) -> &[Listed] {
        &self.entries
    }

    /// The entries that a reader at an offset has not had.
    pub(super) fn behind(&self, offset: u64) -> &[Listed] {
        let had = self.entries.partition_point(|entry| entry.offset <= offset);
        self.entries.get(had..).unwrap_or_default()
    }
}

fn offset_of(name: &Name) -> u64 {
    let mut hash = DefaultHasher::new();
    hash.write(name.as_bytes());
    hash.finish() & OFFSET_MAX
}

/// The listings that are kept.
#[derive(Debug)]
pub(super) struct Listings {
    /// Held for single look-ups and changes only, never while a directory is read.
    kept: Mutex<Kept>,
    made: Condvar,
}

#[derive(Debug)]
struct Kept {
    by_key: LruCache<Key, Arc<Listing>>,
    /// How many entries there are in all of them.
    entries: usize,
    /// What threads are reading at the moment.
    making: HashSet<Key>,
}

impl Default for Listings {
    fn default() -> Self {
        let kept = Kept { by_key: LruCache::unbounded(), entries: 0, making: HashSet::new() };
        Self { kept: Mutex::new(kept), made: Condvar::new() }
    }
}

impl Listings {
    /// The listing that is kept of a directory, or the one that `make` answers, which is then kept. What another thread
    /// is making is waited for.
    ///
    /// # Errors
    /// Those of `make`.
    pub(super) fn get(&self, key: Key, make: impl FnOnce() -> Result<Listing>) -> Result<Arc<Listing>> {
        let mut kept = self.kept.lock();
        loop {
            if let Some(listing) = kept.by_key.get(&key) {
                return Ok(Arc::clone(listing));
            }
            if kept.making.insert(key) || self.made.wait_for(&mut kept, PATIENCE).timed_out() {
                break;
            }
        }
        drop(kept);
        let _making = Making { listings: self, key };
        Ok(self.keep(key, make()?))
    }

    /// The listing that is kept of a directory.
    pub(super) fn kept(&self, key: Key) -> Option<Arc<Listing>> {
        self.kept.lock().by_key.peek(&key).cloned()
    }

    /// Keeps a listing in the place of an older one.
    pub(super) fn keep(&self, key: Key, listing: Listing) -> Arc<Listing> {
        let listing = Arc::new(listing);
        let mut given_up = Vec::new();
        let mut kept = self.kept.lock();
        kept.entries = kept.entries.saturating_add(listing.entries.len());
        if let Some((_, older)) = kept.by_key.push(key, Arc::clone(&listing)) {
            kept.entries = kept.entries.saturating_sub(older.entries.len());
            given_up.push(older);
        }
        while kept.entries > ENTRIES_MAX && kept.by_key.len() > LISTINGS_MIN {
            let Some((_, oldest)) = kept.by_key.pop_lru() else { break };
            kept.entries = kept.entries.saturating_sub(oldest.entries.len());
            given_up.push(oldest);
        }
        drop(kept);
        // Freed here, where nobody waits for it.
        drop(given_up);
        listing
    }

    /// Gives up all listings; whoever is in the middle of one goes on in the same made again.
    pub(super) fn clear(&self) {
        let mut kept = self.kept.lock();
        kept.entries = 0;
        let given_up = std::mem::replace(&mut kept.by_key, LruCache::unbounded());
        drop(kept);
        drop(given_up);
    }

    /// Gives up the listing of a directory that the kernel no longer knows.
    pub(super) fn give_up(&self, key: Key) {
        let mut kept = self.kept.lock();
        let given_up = kept.by_key.pop(&key);
        if let Some(listing) = &given_up {
            kept.entries = kept.entries.saturating_sub(listing.entries.len());
        }
        drop(kept);
    }
}

/// Says that a listing is being made, until that succeeded, failed or panicked.
struct Making<'a> {
    listings: &'a Listings,
    key: Key,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.listings.kept.lock().making.remove(&self.key);
        self.listings.made.notify_all();
    }
}
