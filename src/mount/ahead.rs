//! Reading ahead of who walks a tree: directories are listed before they are asked for.
//!
//! A program that walks a tree waits for each directory in turn, and so does a disk. So when a directory is listed
//! soon after the one that holds it, or after another one there, a walk is taken to be under way, and a few threads of
//! low priority list what it will come to next, in the order in which it will: a directory's entries in the order of
//! its listing, and what is in a subdirectory before what is behind it. A single `ls` starts nothing. How far a walk is
//! read ahead of is bounded, and so is the number of walks.
//!
//! Only directories that never change are read ahead.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::{Condvar, Mutex};

use super::inodes::{Held, Inodes, Key};
use super::listings::{Listing, Listings};

/// How many threads read ahead. A disk has its answers sooner when it is asked for several at once.
const THREADS: usize = 8;
/// How much less of a busy CPU they get than who asks (a nice value, as `setpriority(2)` has it).
const NICENESS: i32 = 10;
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
const IDLE: Duration = Duration::from_secs(5);

/// A directory's place in the order of a walk: the entry's index on each level.
type Place = Vec<usize>;
type WalkId = u64;

/// Reads ahead until it is dropped.
#[derive(Debug)]
pub(super) struct Ahead(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inodes: Arc<Inodes>,
    listings: Arc<Listings>,
    /// Held for single look-ups and changes only, never while a directory is read.
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Debug)]
struct State {
    walks: LruCache<WalkId, Walk>,
    next_walk: WalkId,
    /// Directories of walks that were not asked for yet.
    coming: HashMap<Key, (WalkId, Place, Stage)>,
    /// Directories that were asked for, and their places in walks.
    asked: LruCache<Key, Asked>,
    are_running: bool,
    is_over: bool,
}

#[derive(Debug)]
struct Walk {
    pending: BTreeMap<Place, Arc<Held>>,
    /// What is listed ahead, or is being listed.
    directories: usize,
    entries: usize,
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

impl Ahead {
    /// Reads ahead into these listings.
    pub(super) fn new(inodes: Arc<Inodes>, listings: Arc<Listings>) -> Self {
        let state = State {
            walks: LruCache::new(WALKS_MAX),
            next_walk: 0,
            coming: HashMap::new(),
            asked: LruCache::new(ASKED_MAX),
            are_running: false,
            is_over: false,
        };
        Self(Arc::new(Shared { inodes, listings, state: Mutex::new(state), more: Condvar::new() }))
    }

    /// Notes that the listing of a directory was asked for, from its start.
    pub(super) fn was_asked(&self, parent: Key, dir: Key, listing: &Arc<Listing>) {
        let mut state = self.0.state.lock();
        let place = state.place_of(&self.0.listings, parent, dir);
        let is_walk = match place {
            Some((walk, place, Stage::Listed(entries))) => {
                state.moved(walk, entries);
                state.note(dir, Some((walk, place)));
                true
            }
            Some((walk, place, Stage::Pending | Stage::BeingListed)) => {
                state.moved(walk, 0);
                state.add(walk, &place, listing, 0);
                state.note(dir, Some((walk, place)));
                true
            }
            None => {
                state.note(dir, None);
                false
            }
        };
        if is_walk {
            if !state.are_running {
                state.are_running = true;
                self.start();
            }
            drop(state);
            self.0.more.notify_one();
        }
    }

    fn start(&self) {
        for _ in 0..THREADS {
            let shared = Arc::clone(&self.0);
            let thread = thread::Builder::new().name("ahead".to_owned()).spawn(move || shared.run());
            if let Err(error) = thread {
                log::info!("nothing is read ahead by one thread more: {error}");
            }
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.0.state.lock().is_over = true;
        self.0.more.notify_all();
    }
}

impl State {
    fn note(&mut self, dir: Key, place: Option<(WalkId, Place)>) {
        self.asked.put(dir, Asked { when: Instant::now(), is_entered: false, place });
    }

    /// The place of a directory in a walk that is under way, or that starts here.
    fn place_of(&mut self, listings: &Listings, parent: Key, dir: Key) -> Option<(WalkId, Place, Stage)> {
        if let Some((walk, place, stage)) = self.coming.remove(&dir) {
            if let (Stage::Pending, Some(walk)) = (stage, self.walks.get_mut(&walk)) {
                walk.pending.remove(&place);
            }
            return self.walks.contains(&walk).then_some((walk, place, stage));
        }
        let asked = self.asked.get_mut(&parent)?;
        let is_entered = std::mem::replace(&mut asked.is_entered, true);
        let known = asked.place.clone().filter(|(walk, _)| self.walks.contains(walk));
        if known.is_none() && !is_entered && asked.when.elapsed() > SOON {
            return None;
        }
        let listing = listings.kept(parent)?;
        let index = listing.entries().iter().position(|entry| entry.held.key() == dir)?;
        let (walk, above) = known.unwrap_or_else(|| (self.new_walk(), Place::new()));
        self.add(walk, &above, &listing, index.saturating_add(1));
        if let Some(asked) = self.asked.get_mut(&parent) {
            asked.place = Some((walk, above.clone()));
        }
        Some((walk, [above.as_slice(), &[index]].concat(), Stage::Pending))
    }

    fn new_walk(&mut self) -> WalkId {
        let id = self.next_walk;
        log::debug!("walk {id} begins");
        self.next_walk = id.wrapping_add(1);
        let walk = Walk { pending: BTreeMap::new(), directories: 0, entries: 0, moved: Instant::now() };
        if let Some((given_up, _)) = self.walks.push(id, walk) {
            self.coming.retain(|_, (walk, ..)| *walk != given_up);
        }
        id
    }

    fn moved(&mut self, walk: WalkId, entries: usize) {
        if let Some(walk) = self.walks.get_mut(&walk) {
            walk.moved = Instant::now();
            if entries > 0 {
                walk.directories = walk.directories.saturating_sub(1);
                walk.entries = walk.entries.saturating_sub(entries);
            }
        }
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

    /// The next directory to list: of the walk that moved last, if that is not too far ahead.
    fn next(&mut self) -> Option<(WalkId, Arc<Held>)> {
        for (id, walk) in &mut self.walks {
            if walk.directories < DIRECTORIES_MAX
                && walk.entries < ENTRIES_MAX
                && let Some((_, dir)) = walk.pending.pop_first()
            {
                walk.directories = walk.directories.saturating_add(1);
                if let Some((_, _, stage)) = self.coming.get_mut(&dir.key()) {
                    *stage = Stage::BeingListed;
                }
                return Some((*id, dir));
            }
        }
        None
    }

    /// Notes that a directory was listed ahead, unless it was asked for meanwhile.
    fn listed(&mut self, id: WalkId, key: Key, listing: Option<&Listing>) {
        let Some(walk) = self.walks.peek_mut(&id) else { return };
        match (self.coming.get_mut(&key), listing) {
            (Some((_, place, stage)), Some(listing)) => {
                let entries = listing.entries().len().max(1);
                *stage = Stage::Listed(entries);
                walk.entries = walk.entries.saturating_add(entries);
                let place = place.clone();
                self.add(id, &place, listing, 0);
            }
            (_, _) => {
                walk.directories = walk.directories.saturating_sub(1);
                self.coming.remove(&key);
            }
        }
    }

    /// Gives up walks that stand still.
    fn tidy(&mut self) {
        let idle: Vec<WalkId> =
            self.walks.iter().filter(|(_, walk)| walk.moved.elapsed() > IDLE).map(|(id, _)| *id).collect();
        for id in idle {
            log::debug!("walk {id} stands still");
            self.walks.pop(&id);
            self.coming.retain(|_, (walk, ..)| *walk != id);
        }
    }
}

impl Shared {
    fn run(&self) {
        if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
            log::debug!("a thread reads ahead at full priority: {error}");
        }
        let mut state = self.state.lock();
        while !state.is_over {
            let Some((walk, dir)) = state.next() else {
                if self.more.wait_for(&mut state, IDLE).timed_out() {
                    state.tidy();
                }
                continue;
            };
            drop(state);
            let listing = catch_unwind(AssertUnwindSafe(|| {
                self.listings.get(dir.key(), || Listing::of(&dir, self.inodes.number_of(dir.key())))
            }));
            let listing = match listing {
                Ok(Ok(listing)) => Some(listing),
                Ok(Err(error)) => {
                    log::debug!("read ahead: {error}");
                    None
                }
                Err(_panic) => {
                    log::error!("reading ahead panicked; this is a defect of docker-fs");
                    None
                }
            };
            state = self.state.lock();
            state.listed(walk, dir.key(), listing.as_deref());
            self.more.notify_one();
        }
    }
}
