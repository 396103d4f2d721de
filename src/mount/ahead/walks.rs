//! Who walks, where, and what comes next: the bookkeeping of reading ahead, without reading anything.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::meta::Kind;
use crate::mount::inodes::{Held, Key};
use crate::mount::listings::{Listed, Listing};

/// How many walks are read ahead of at once; the one that moved longest ago makes room for another.
const WALKS_MAX: NonZeroUsize = NonZeroUsize::new(4).unwrap();
/// How many directories of a walk are listed before they are asked for, at most.
const DIRECTORIES_MAX: usize = 512;
/// How many entries they may have together before no more are listed.
const ENTRIES_MAX: usize = 6_144;
/// How many directories of a walk are known that are to be listed yet; of more, the farthest are left out.
const PENDING_MAX: usize = 16_384;
/// How many of the directories that were asked for are remembered.
const ASKED_MAX: NonZeroUsize = NonZeroUsize::new(1_024).unwrap();
/// A directory that is listed within this time of the one that holds it makes a walk.
const SOON: Duration = Duration::from_secs(1);
/// A walk that has not moved for so long is given up.
pub(super) const IDLE: Duration = Duration::from_secs(5);

/// Files of more bytes are not read ahead: the kernel does that itself, within a file.
pub(super) const SMALL: u64 = 128 << 10;
/// How many files are read ahead for each that was asked for. Then others must be asked for, which shows that the walk
/// still reads files.
const FILES_FOR_EACH: usize = 16;
/// The most files that are read ahead before another is asked for.
const CREDIT_MAX: usize = 512;
/// How many files a thread reads in a row.
const BATCH: usize = 16;

/// A directory's place in the order of a walk: the entry's index on each level.
type Place = Vec<usize>;
pub(super) type WalkId = u64;

/// All walks that are under way.
#[derive(Debug)]
pub(super) struct Walks {
    walks: LruCache<WalkId, Walk>,
    next: WalkId,
    /// Directories of walks that were not asked for yet.
    coming: HashMap<Key, (WalkId, Place, Stage)>,
    /// Directories that were asked for.
    asked: LruCache<Key, Asked>,
}

#[derive(Debug)]
struct Walk {
    pending: BTreeMap<Place, Arc<Held>>,
    /// What is listed ahead, or is being listed.
    directories: usize,
    entries: usize,
    /// Files that are to be read ahead.
    files: VecDeque<Files>,
    /// How many more files may be read ahead.
    credit: usize,
    /// Whether files had to be read from the disk.
    is_cold: bool,
    moved: Instant,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Pending,
    BeingListed,
    /// Listed, with so many entries.
    Listed(usize),
}

#[derive(Debug)]
struct Asked {
    when: Instant,
    /// Whether one of its subdirectories was asked for too.
    is_entered: bool,
    place: Option<(WalkId, Place)>,
}

/// Small files of one directory.
#[derive(Debug)]
pub(super) struct Files {
    listing: Arc<Listing>,
    indices: Vec<usize>,
}

impl Files {
    pub(super) fn entries(&self) -> impl Iterator<Item = &Listed> {
        self.indices.iter().filter_map(|index| self.listing.entries().get(*index))
    }
}

/// What is to be done next.
#[derive(Debug)]
pub(super) enum Job {
    /// List a directory; if so, start reading its files from the disk too.
    List(WalkId, Arc<Held>, bool),
    /// Read files, and give them to the kernel.
    Read(WalkId, Files),
}

/// Whether a file is read ahead.
pub(super) fn is_small(entry: &Listed) -> bool {
    entry.meta.kind == Kind::Regular && (1..=SMALL).contains(&entry.meta.size_bytes) && !entry.held.node().changes()
}

impl Walks {
    pub(super) fn new() -> Self {
        Self { walks: LruCache::new(WALKS_MAX), next: 0, coming: HashMap::new(), asked: LruCache::new(ASKED_MAX) }
    }

    /// Notes that the listing of a directory was asked for; `above` is the kept listing of the directory that holds it.
    /// Answers whether there may be something to do.
    pub(super) fn was_asked(&mut self, parent: Key, dir: Key, listing: &Listing, above: Option<Arc<Listing>>) -> bool {
        let place = match self.place_of(parent, dir, above) {
            Some((walk, place, Stage::Listed(entries))) => {
                if let Some(walk) = self.walks.get_mut(&walk) {
                    walk.directories = walk.directories.saturating_sub(1);
                    walk.entries = walk.entries.saturating_sub(entries);
                }
                Some((walk, place))
            }
            Some((walk, place, Stage::Pending | Stage::BeingListed)) => {
                self.add(walk, &place, listing, 0);
                Some((walk, place))
            }
            None => None,
        };
        if let Some(walk) = place.as_ref().and_then(|(walk, _)| self.walks.get_mut(walk)) {
            walk.moved = Instant::now();
        }
        let is_walk = place.is_some();
        self.asked.put(dir, Asked { when: Instant::now(), is_entered: false, place });
        is_walk
    }

    /// Notes that a file was asked for that was found in this directory.
    pub(super) fn was_read(&mut self, dir: Key) {
        if let Some(walk) = self.walk_of(dir) {
            walk.moved = Instant::now();
            walk.credit = walk.credit.saturating_add(FILES_FOR_EACH).min(CREDIT_MAX);
        }
    }

    /// Notes that the kernel was given a part of a listing: the entries from one offset to another. Answers whether
    /// there is something to do.
    pub(super) fn was_given(&mut self, dir: Key, listing: &Arc<Listing>, offsets: (u64, u64)) -> bool {
        let Some(walk) = self.walk_of(dir).filter(|walk| walk.credit > 0) else { return false };
        let is_given = |entry: &Listed| (offsets.0 + 1..=offsets.1).contains(&entry.offset);
        let small = listing.entries().iter().enumerate().filter(|(_, entry)| is_given(entry) && is_small(entry));
        let mut indices: Vec<usize> = small.map(|(index, _)| index).take(walk.credit).collect();
        walk.credit = walk.credit.saturating_sub(indices.len());
        let is_some = !indices.is_empty();
        while !indices.is_empty() {
            let behind = indices.split_off(BATCH.min(indices.len()));
            walk.files.push_back(Files { listing: Arc::clone(listing), indices });
            indices = behind;
        }
        is_some
    }

    fn walk_of(&mut self, dir: Key) -> Option<&mut Walk> {
        let (walk, _) = self.asked.peek(&dir)?.place.as_ref()?;
        self.walks.get_mut(walk)
    }

    /// The place of a directory in a walk that is under way, or that starts here.
    fn place_of(&mut self, parent: Key, dir: Key, above: Option<Arc<Listing>>) -> Option<(WalkId, Place, Stage)> {
        if let Some((walk, place, stage)) = self.coming.remove(&dir) {
            let known = self.walks.get_mut(&walk)?;
            if matches!(stage, Stage::Pending) {
                known.pending.remove(&place);
            }
            return Some((walk, place, stage));
        }
        let asked = self.asked.get_mut(&parent)?;
        let is_entered = std::mem::replace(&mut asked.is_entered, true);
        let known = asked.place.clone().filter(|(walk, _)| self.walks.contains(walk));
        if known.is_none() && !is_entered && asked.when.elapsed() > SOON {
            return None;
        }
        let listing = above?;
        let index = listing.entries().iter().position(|entry| entry.held.key() == dir)?;
        let (walk, place) = known.unwrap_or_else(|| (self.begin(), Place::new()));
        self.add(walk, &place, &listing, index.saturating_add(1));
        let own = [place.as_slice(), &[index]].concat();
        if let Some(asked) = self.asked.get_mut(&parent) {
            asked.place = Some((walk, place));
        }
        Some((walk, own, Stage::Pending))
    }

    fn begin(&mut self) -> WalkId {
        let id = self.next;
        self.next = id.wrapping_add(1);
        log::debug!("walk {id} begins");
        let walk = Walk {
            pending: BTreeMap::new(),
            directories: 0,
            entries: 0,
            files: VecDeque::new(),
            credit: 0,
            is_cold: false,
            moved: Instant::now(),
        };
        if let Some((given_up, _)) = self.walks.push(id, walk) {
            self.coming.retain(|_, (walk, ..)| *walk != given_up);
        }
        id
    }

    /// Adds the subdirectories of a directory, from an entry on, to what is to be listed.
    fn add(&mut self, id: WalkId, above: &[usize], listing: &Listing, from: usize) {
        let Some(walk) = self.walks.get_mut(&id) else { return };
        for (index, entry) in listing.entries().iter().enumerate().skip(from) {
            let key = entry.held.key();
            if entry.meta.is_dir() && !entry.held.node().changes() && !self.coming.contains_key(&key) {
                let place = [above, &[index]].concat();
                walk.pending.insert(place.clone(), Arc::clone(&entry.held));
                self.coming.insert(key, (id, place, Stage::Pending));
            }
        }
        while walk.pending.len() > PENDING_MAX
            && let Some((_, farthest)) = walk.pending.pop_last()
        {
            self.coming.remove(&farthest.key());
        }
    }

    /// What is to be done next, for the walk that moved last if there is anything.
    pub(super) fn next(&mut self) -> Option<Job> {
        for (id, walk) in &mut self.walks {
            if let Some(files) = walk.files.pop_front() {
                return Some(Job::Read(*id, files));
            }
            if walk.directories < DIRECTORIES_MAX
                && walk.entries < ENTRIES_MAX
                && let Some((_, dir)) = walk.pending.pop_first()
            {
                walk.directories = walk.directories.saturating_add(1);
                if let Some((_, _, stage)) = self.coming.get_mut(&dir.key()) {
                    *stage = Stage::BeingListed;
                }
                return Some(Job::List(*id, dir, walk.is_cold && walk.credit > 0));
            }
        }
        None
    }

    /// Notes that a directory was listed ahead, unless it was asked for meanwhile; `None` where it could not be.
    pub(super) fn listed(&mut self, id: WalkId, dir: Key, listing: Option<&Listing>) {
        let Some(walk) = self.walks.peek_mut(&id) else { return };
        match (self.coming.get_mut(&dir), listing) {
            (Some((_, place, stage)), Some(listing)) => {
                let entries = listing.entries().len().max(1);
                *stage = Stage::Listed(entries);
                walk.entries = walk.entries.saturating_add(entries);
                let place = place.clone();
                self.add(id, &place, listing, 0);
            }
            (_, _) => {
                walk.directories = walk.directories.saturating_sub(1);
                self.coming.remove(&dir);
            }
        }
    }

    /// Notes whether files of a walk had to be read from the disk.
    pub(super) fn is_cold(&mut self, id: WalkId, is_cold: bool) {
        if let Some(walk) = self.walks.peek_mut(&id) {
            walk.is_cold = is_cold;
        }
    }

    /// Gives up walks that stand still; answers whether none is left because of that.
    pub(super) fn tidy(&mut self) -> bool {
        let idle: Vec<WalkId> =
            self.walks.iter().filter(|(_, walk)| walk.moved.elapsed() > IDLE).map(|(id, _)| *id).collect();
        for id in &idle {
            log::debug!("walk {id} stands still");
            self.walks.pop(id);
            self.coming.retain(|_, (walk, ..)| walk != id);
        }
        self.coming.shrink_to_fit();
        !idle.is_empty() && self.walks.is_empty()
    }
}
