//! Who walks, where, and what comes next: the bookkeeping of reading ahead, without reading anything.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::meta::Kind;
use crate::mount::counters::Tally;
use crate::mount::inodes::{Held, Key};
use crate::mount::listings::{Listed, Listing};
use crate::mount::passthrough::SMALLEST;

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
/// How many threads work for one walk at most: the disk that it walks on may not answer.
pub(super) const THREADS_EACH: usize = 8;
/// A directory that is listed within this time of the one that holds it makes a walk.
const SOON: Duration = Duration::from_secs(1);
/// A walk that has not moved for so long is given up.
pub(super) const IDLE: Duration = Duration::from_secs(5);

/// Files of so many bytes, or more, are not read ahead: the kernel does that itself within a file, or reads it from the
/// disk without asking.
pub(super) const SMALL: u64 = SMALLEST;
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
    tally: Arc<Tally>,
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
    /// How many jobs are being done.
    running: usize,
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
    entry.meta.kind == Kind::Regular && (1..SMALL).contains(&entry.meta.size_bytes) && !entry.held.node().changes()
}

impl Walks {
    pub(super) fn new(tally: Arc<Tally>) -> Self {
        let (walks, asked) = (LruCache::new(WALKS_MAX), LruCache::new(ASKED_MAX));
        Self { walks, next: 0, coming: HashMap::new(), asked, tally }
    }

    /// Notes that the listing of a directory was asked for; `above` is the kept listing of the directory that holds it.
    /// Answers whether there may be something to do.
    pub(super) fn was_asked(
        &mut self,
        now: Instant,
        (parent, dir): (Key, Key),
        listing: &Listing,
        above: Option<Arc<Listing>>,
    ) -> bool {
        let place = match self.place_of(now, (parent, dir), above) {
            Some((walk, place, Stage::Listed(entries))) => {
                self.tally.directories_used.one();
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
            walk.moved = now;
        }
        let is_walk = place.is_some();
        self.asked.put(dir, Asked { when: now, is_entered: false, place });
        is_walk
    }

    /// Notes that a file was asked for that was found in this directory.
    pub(super) fn was_read(&mut self, now: Instant, dir: Key) {
        if let Some(walk) = self.walk_of(dir) {
            walk.moved = now;
            walk.credit = walk.credit.saturating_add(FILES_FOR_EACH).min(CREDIT_MAX);
        }
    }

    /// Notes that the kernel was given a part of a listing: the entries from one offset to another. Answers whether
    /// there is something to do.
    pub(super) fn was_given(&mut self, dir: Key, listing: &Arc<Listing>, offsets: (u64, u64)) -> bool {
        let Some(walk) = self.walk_of(dir).filter(|walk| walk.credit > 0) else { return false };
        let is_given = |entry: &Listed| offsets.0 < entry.offset && entry.offset <= offsets.1;
        let small = listing.entries().iter().enumerate().filter(|(_, entry)| is_given(entry) && is_small(entry));
        let mut indices: Vec<usize> = small.map(|(index, _)| index).take(walk.credit).collect();
        walk.credit = walk.credit.saturating_sub(indices.len());
        let is_some = !indices.is_empty();
        while !indices.is_empty() {
            let behind = indices.split_off(BATCH.min(indices.len()));
            walk.files.push_back(Files { listing: Arc::clone(listing), indices });
            // What is so far behind was asked for meanwhile.
            while walk.files.len() > CREDIT_MAX / BATCH {
                walk.files.pop_front();
            }
            indices = behind;
        }
        is_some
    }

    fn walk_of(&mut self, dir: Key) -> Option<&mut Walk> {
        let (walk, _) = self.asked.peek(&dir)?.place.as_ref()?;
        self.walks.get_mut(walk)
    }

    /// The place of a directory in a walk that is under way, or that starts here.
    fn place_of(
        &mut self,
        now: Instant,
        (parent, dir): (Key, Key),
        above: Option<Arc<Listing>>,
    ) -> Option<(WalkId, Place, Stage)> {
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
        if known.is_none() && !is_entered && now.saturating_duration_since(asked.when) > SOON {
            return None;
        }
        let listing = above?;
        let index = listing.entries().iter().position(|entry| entry.held.key() == dir)?;
        let (walk, place) = known.unwrap_or_else(|| (self.begin(now), Place::new()));
        self.add(walk, &place, &listing, index.saturating_add(1));
        let own = [place.as_slice(), &[index]].concat();
        if let Some(asked) = self.asked.get_mut(&parent) {
            asked.place = Some((walk, place));
        }
        Some((walk, own, Stage::Pending))
    }

    fn begin(&mut self, now: Instant) -> WalkId {
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
            running: 0,
            moved: now,
        };
        if let Some((given_up, _)) = self.walks.push(id, walk) {
            self.coming.retain(|_, (walk, ..)| *walk != given_up);
        }
        id
    }

    /// Adds the subdirectories of a directory, from an entry on, to what is to be listed. Who does not walk in the order
    /// of the listing has asked for some of them.
    fn add(&mut self, id: WalkId, above: &[usize], listing: &Listing, from: usize) {
        let Some(walk) = self.walks.get_mut(&id) else { return };
        for (index, entry) in listing.entries().iter().enumerate().skip(from) {
            let key = entry.held.key();
            if !entry.meta.is_dir() || entry.held.node().changes() {
                continue;
            }
            let asked = self.asked.peek(&key).and_then(|asked| asked.place.as_ref());
            if asked.is_none_or(|(walk, _)| *walk != id) && !self.coming.contains_key(&key) {
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

    /// What is to be done next, for the walk that moved last if there is anything and it has not too many threads;
    /// [`Walks::done`] when it is done.
    pub(super) fn next(&mut self) -> Option<Job> {
        for (id, walk) in self.walks.iter_mut().filter(|(_, walk)| walk.running < THREADS_EACH) {
            if let Some(files) = walk.files.pop_front() {
                walk.running = walk.running.saturating_add(1);
                return Some(Job::Read(*id, files));
            }
            if walk.directories < DIRECTORIES_MAX
                && walk.entries < ENTRIES_MAX
                && let Some((_, dir)) = walk.pending.pop_first()
            {
                walk.running = walk.running.saturating_add(1);
                walk.directories = walk.directories.saturating_add(1);
                if let Some((_, _, stage)) = self.coming.get_mut(&dir.key()) {
                    *stage = Stage::BeingListed;
                }
                return Some(Job::List(*id, dir, walk.is_cold && walk.credit > 0));
            }
        }
        None
    }

    /// Notes that a job of a walk is done, or could not be.
    pub(super) fn done(&mut self, id: WalkId) {
        if let Some(walk) = self.walks.peek_mut(&id) {
            walk.running = walk.running.saturating_sub(1);
        }
    }

    /// Notes that a directory was listed ahead, unless it was asked for meanwhile; `None` where it could not be.
    pub(super) fn listed(&mut self, id: WalkId, dir: Key, listing: Option<&Listing>) {
        let Some(walk) = self.walks.peek_mut(&id) else { return };
        match (self.coming.get_mut(&dir), listing) {
            (Some((_, place, stage)), Some(listing)) => {
                let entries = listing.entries().len().max(1);
                *stage = Stage::Listed(entries);
                self.tally.directories_ahead.one();
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
    pub(super) fn tidy(&mut self, now: Instant) -> bool {
        let is_idle = |walk: &Walk| now.saturating_duration_since(walk.moved) > IDLE;
        let idle: Vec<WalkId> = self.walks.iter().filter(|(_, walk)| is_idle(walk)).map(|(id, _)| *id).collect();
        for id in &idle {
            log::debug!("walk {id} stands still");
            self.walks.pop(id);
            self.coming.retain(|_, (walk, ..)| walk != id);
        }
        self.coming.shrink_to_fit();
        !idle.is_empty() && self.walks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;
    use crate::mount::fake::{self, Dir};
    use crate::view::Entry;

    /// A tree, who walks it, and what is read ahead of them.
    struct Scene {
        walks: Walks,
        /// Each directory's number, with that of the directory that holds it.
        by_path: BTreeMap<String, (Key, Arc<Held>)>,
        paths: HashMap<Key, String>,
        /// Stands still, however long the machine takes.
        now: Instant,
    }

    impl Scene {
        fn of(tree: Entry) -> Self {
            let walks = Walks::new(Arc::default());
            let mut scene = Self { walks, by_path: BTreeMap::new(), paths: HashMap::new(), now: Instant::now() };
            scene.know("", Key::root(), &fake::top(tree));
            scene
        }

        fn know(&mut self, path: &str, parent: Key, dir: &Arc<Held>) {
            self.by_path.insert(path.to_owned(), (parent, Arc::clone(dir)));
            self.paths.insert(dir.key(), path.to_owned());
            for entry in fake::listing_of(dir).entries().iter().filter(|entry| entry.meta.is_dir()) {
                let name = String::from_utf8_lossy(entry.name.as_bytes());
                let path = if path.is_empty() { name.into_owned() } else { format!("{path}/{name}") };
                self.know(&path, dir.key(), &entry.held);
            }
        }

        fn key(&self, path: &str) -> Key {
            self.by_path[path].1.key()
        }

        fn listing(&self, path: &str) -> Arc<Listing> {
            Arc::new(fake::listing_of(&self.by_path[path].1))
        }

        /// A directory is asked for; answers whether there may be something to do.
        fn ask(&mut self, path: &str) -> bool {
            let above = path.rsplit_once('/').map_or("", |(above, _)| above);
            let above = (!path.is_empty()).then(|| self.listing(above));
            self.walks.was_asked(self.now, (self.by_path[path].0, self.key(path)), &self.listing(path), above)
        }

        fn was_read(&mut self, dir: &str) {
            self.walks.was_read(self.now, self.key(dir));
        }

        /// The kernel was given all of a listing.
        fn was_given(&mut self, dir: &str) -> bool {
            self.was_given_part(dir, (0, u64::MAX))
        }

        fn was_given_part(&mut self, dir: &str, offsets: (u64, u64)) -> bool {
            self.walks.was_given(self.key(dir), &self.listing(dir), offsets)
        }

        /// Does what is to be done next: a directory's path where that was to list it, the files' names where it was to
        /// read them.
        fn work(&mut self) -> Option<String> {
            match self.walks.next()? {
                Job::List(walk, dir, _) => {
                    self.walks.listed(walk, dir.key(), Some(&fake::listing_of(&dir)));
                    self.walks.done(walk);
                    Some(self.paths[&dir.key()].clone())
                }
                Job::Read(walk, files) => {
                    self.walks.done(walk);
                    let names = files.entries().map(|entry| String::from_utf8_lossy(entry.name.as_bytes()));
                    Some(names.collect::<Vec<_>>().join(" "))
                }
            }
        }

        /// Does all there is to be done.
        fn work_off(&mut self) -> Vec<String> {
            std::iter::from_fn(|| self.work()).collect()
        }

        fn walk(&self) -> &Walk {
            assert_eq!(self.walks.walks.len(), 1);
            self.walks.walks.iter().next().unwrap().1
        }
    }

    /// `a/{x,y/{z}}`, `b`, `c/{d/{e}}`, with files between.
    fn tree() -> Entry {
        let a = Dir::of([("w", fake::file(1)), ("x", fake::empty()), ("y", Dir::of([("z", fake::empty())]).entry())]);
        let c = Dir::of([("d", Dir::of([("e", fake::empty())]).entry())]);
        Dir::of([
            ("a", a.entry()),
            ("a file", fake::file(1)),
            ("b", fake::empty()),
            ("c", c.entry()),
            ("file", fake::file(1)),
        ])
        .entry()
    }

    /// So many empty directories.
    fn flat(directories: usize) -> Dir {
        Dir::of((0..directories).map(|number| (format!("{number:06}"), fake::empty())))
    }

    #[test]
    fn a_lone_listing_starts_nothing() {
        for alone in ["", "a", "c/d"] {
            let mut scene = Scene::of(tree());
            assert!(!scene.ask(alone));
            assert!(scene.work_off().is_empty());
        }
        // Nor does a directory that is far below another, or one that is asked for twice.
        let mut scene = Scene::of(tree());
        assert!(!scene.ask("") && !scene.ask("a/y") && !scene.ask("c/d/e") && !scene.ask(""));
        assert!(scene.work_off().is_empty());
    }

    #[test]
    fn a_walk_begins_at_the_first_subdirectory_and_goes_on_in_preorder() {
        let mut scene = Scene::of(tree());
        assert!(!scene.ask(""));
        assert!(scene.ask("a"));
        assert_eq!(scene.work_off(), ["a/x", "a/y", "a/y/z", "b", "c", "c/d", "c/d/e"]);
        // What is behind where it begins, and nothing before that.
        let mut scene = Scene::of(tree());
        assert!(!scene.ask("") && scene.ask("b"));
        assert_eq!(scene.work_off(), ["c", "c/d", "c/d/e"]);
        let mut scene = Scene::of(tree());
        assert!(!scene.ask("a") && scene.ask("a/x"));
        assert_eq!(scene.work_off(), ["a/y", "a/y/z"]);
    }

    #[test]
    fn a_subdirectory_long_after_begins_none_but_another_one_does() {
        let mut scene = Scene::of(tree());
        scene.ask("");
        scene.now += SOON * 2;
        assert!(!scene.ask("a"));
        assert!(scene.work_off().is_empty());
        assert!(scene.ask("b"));
        assert_eq!(scene.work_off(), ["c", "c/d", "c/d/e"]);
    }

    #[test]
    fn without_the_listing_above_nothing_begins() {
        let mut scene = Scene::of(tree());
        scene.ask("");
        let (top, a) = (scene.key(""), scene.key("a"));
        assert!(!scene.walks.was_asked(scene.now, (top, a), &scene.listing("a"), None));
        // Nor with one that does not have it.
        assert!(!scene.walks.was_asked(scene.now, (top, a), &scene.listing("a"), Some(scene.listing("c"))));
        assert!(scene.walks.walks.is_empty());
    }

    #[test]
    fn what_may_change_is_not_listed_ahead() {
        let tree = Dir::of([("a", fake::empty()), ("b", flat(2).changing().entry()), ("c", fake::empty())]);
        let mut scene = Scene::of(tree.entry());
        scene.ask("");
        scene.ask("a");
        assert_eq!(scene.work_off(), ["c"]);
    }

    #[test]
    fn what_is_asked_for_before_its_turn_is_not_listed_again_and_its_children_are() {
        let mut scene = Scene::of(tree());
        scene.ask("");
        scene.ask("a");
        assert!(scene.ask("c"));
        assert!(scene.ask("a/x"));
        assert!(scene.ask("a/y"));
        assert_eq!(scene.work_off(), ["a/y/z", "b", "c/d", "c/d/e"]);
    }

    #[test]
    fn what_is_asked_for_while_it_is_listed_counts_no_more() {
        let mut scene = Scene::of(tree());
        scene.ask("");
        scene.ask("a");
        let Some(Job::List(walk, dir, _)) = scene.walks.next() else { panic!("nothing is listed") };
        assert_eq!(scene.paths[&dir.key()], "a/x");
        assert_eq!(scene.walk().directories, 1);
        assert!(scene.ask("a/x"));
        scene.walks.listed(walk, dir.key(), Some(&scene.listing("a/x")));
        assert_eq!((scene.walk().directories, scene.walk().entries), (0, 0));
        assert_eq!(scene.work_off(), ["a/y", "a/y/z", "b", "c", "c/d", "c/d/e"]);
    }

    #[test]
    fn a_walk_on_a_disk_that_does_not_answer_leaves_threads_to_others() {
        let mut scene = Scene::of(Dir::of([("a", flat(100).entry()), ("b", flat(100).entry())]).entry());
        scene.ask("");
        scene.ask("a");
        let stuck: Vec<_> = (0..THREADS_EACH).map_while(|_| scene.walks.next()).collect();
        assert_eq!(stuck.len(), THREADS_EACH);
        assert!(scene.walks.next().is_none());
        let Some(Job::List(walk, ..)) = stuck.first() else { panic!("nothing is listed") };
        scene.walks.done(*walk);
        assert!(scene.walks.next().is_some());
        assert!(scene.walks.next().is_none());
    }

    #[test]
    fn what_cannot_be_listed_makes_room() {
        let mut scene = Scene::of(tree());
        scene.ask("");
        scene.ask("a");
        let Some(Job::List(walk, dir, _)) = scene.walks.next() else { panic!("nothing is listed") };
        scene.walks.listed(walk, dir.key(), None);
        assert_eq!(scene.walk().directories, 0);
        assert!(!scene.walks.coming.contains_key(&dir.key()));
        assert_eq!(scene.work().as_deref(), Some("a/y"));
    }

    #[test]
    fn who_walks_backwards_is_not_given_what_they_had() {
        let mut scene = Scene::of(tree());
        scene.ask("");
        scene.ask("c");
        scene.ask("b");
        scene.ask("a");
        assert_eq!(scene.work_off(), ["a/x", "a/y", "a/y/z", "c/d", "c/d/e"]);
    }

    proptest! {
        /// In whatever order the directories of a tree are asked for, each below those that hold it, and whenever there
        /// is time to list ahead.
        #[test]
        fn no_directory_is_listed_twice_and_nothing_is_left_over(
            order in prop::collection::vec((any::<Index>(), 0_usize..4), 40),
        ) {
            let branch = || flat(3).entry();
            let deep = || Dir::of([("a", branch()), ("b", branch()), ("c", fake::file(1))]).entry();
            let tree = Dir::of([("a", deep()), ("b", branch()), ("c", deep()), ("d", fake::empty())]);
            let mut scene = Scene::of(tree.entry());
            let mut left: Vec<String> = scene.by_path.keys().cloned().collect();
            let mut had = vec![String::new()];
            scene.ask("");
            left.retain(|path| !path.is_empty());
            for (next, idle) in order {
                let open: Vec<String> = left
                    .iter()
                    .filter(|path| had.iter().any(|had| had == path.rsplit_once('/').map_or("", |(above, _)| above)))
                    .cloned()
                    .collect();
                if open.is_empty() {
                    break;
                }
                let path = next.get(&open).clone();
                left.retain(|other| *other != path);
                had.push(path.clone());
                prop_assert!(scene.ask(&path));
                for _ in 0..idle {
                    let Some(path) = scene.work() else { break };
                    prop_assert!(left.contains(&path), "{path} was asked for before");
                }
            }
            prop_assert!(left.is_empty());
            prop_assert_eq!(scene.work_off(), Vec::<String>::new());
            prop_assert!(scene.walks.coming.is_empty());
            prop_assert_eq!((scene.walk().directories, scene.walk().entries), (0, 0));
        }
    }

    #[test]
    fn so_many_directories_are_listed_ahead_and_one_more_for_each_that_is_asked_for() {
        let mut scene = Scene::of(flat(DIRECTORIES_MAX + 10).entry());
        scene.ask("");
        scene.ask("000000");
        assert_eq!(scene.work_off().len(), DIRECTORIES_MAX);
        scene.ask("000001");
        scene.ask("000002");
        assert_eq!(scene.work_off(), ["000513", "000514"]);
    }

    #[test]
    fn so_many_entries_are_listed_ahead_and_more_when_some_are_asked_for() {
        const EACH: usize = 1_024;
        let dir = || Dir::of((0..EACH).map(|number| (number.to_string(), fake::file(1)))).entry();
        let mut scene = Scene::of(Dir::of((0..10).map(|number| (number.to_string(), dir()))).entry());
        scene.ask("");
        scene.ask("0");
        assert_eq!(ENTRIES_MAX / EACH, 6);
        assert_eq!(scene.work_off(), ["1", "2", "3", "4", "5", "6"]);
        scene.ask("1");
        assert_eq!(scene.work_off(), ["7"]);
    }

    #[test]
    fn of_more_directories_than_can_be_pending_the_farthest_are_left_out() {
        let mut scene = Scene::of(flat(PENDING_MAX + 10).entry());
        scene.ask("");
        scene.ask("000000");
        assert_eq!(scene.walk().pending.len(), PENDING_MAX);
        assert_eq!(scene.walks.coming.len(), PENDING_MAX);
        let last = scene.walk().pending.last_key_value().unwrap();
        assert_eq!(last.0, &[PENDING_MAX]);
        // They come next when one of them is asked for.
        scene.ask("000001");
        scene.ask(&format!("{:06}", PENDING_MAX + 2));
        let last = scene.walk().pending.last_key_value().unwrap();
        assert_eq!(last.0, &[PENDING_MAX + 3]);
        assert_eq!((scene.walk().pending.len(), scene.walks.coming.len()), (PENDING_MAX, PENDING_MAX));
    }

    #[test]
    fn of_more_walks_than_may_be_the_one_that_moved_longest_ago_is_given_up() {
        let names = ["a", "b", "c", "d", "e"];
        let tree = Dir::of(names.map(|name| (name, flat(4).entry())));
        let mut scene = Scene::of(tree.entry());
        for name in ["a", "b", "c", "d"] {
            scene.ask(name);
            assert!(scene.ask(&format!("{name}/000000")));
        }
        // The first moves.
        assert!(scene.ask("a/000001"));
        scene.ask("e");
        assert!(scene.ask("e/000000"));
        assert_eq!(scene.walks.walks.len(), WALKS_MAX.get());
        let listed = scene.work_off();
        assert_eq!(listed[..5], ["e/000001", "e/000002", "e/000003", "a/000002", "a/000003"]);
        assert!(!listed.iter().any(|path| path.starts_with("b/")));
        // One that is given up begins anew.
        assert!(scene.ask("b/000001"));
        assert_eq!(scene.work_off(), ["b/000002", "b/000003"]);
    }

    #[test]
    fn walks_that_stand_still_are_given_up() {
        let mut scene = Scene::of(Dir::of(["a", "b"].map(|name| (name, flat(3).entry()))).entry());
        for name in ["a", "b"] {
            scene.now += IDLE;
            scene.ask(name);
            scene.ask(&format!("{name}/000000"));
        }
        assert!(!scene.walks.tidy(scene.now));
        assert_eq!(scene.walks.walks.len(), 2);
        scene.now += Duration::from_millis(1);
        assert!(!scene.walks.tidy(scene.now));
        assert_eq!(scene.work_off(), ["b/000001", "b/000002"]);
        assert_eq!(scene.walks.coming.len(), 2);
    }

    /// Directories of so many small files each.
    fn with_files(files: usize) -> Entry {
        let dir = || Dir::of((0..files).map(|number| (format!("{number:03}"), fake::file(SMALL - 1)))).entry();
        Dir::of(["a", "b", "c", "d", "e"].map(|name| (name, dir()))).entry()
    }

    /// A walk that is in the second directory, with the rest listed ahead.
    fn walking(files: usize) -> Scene {
        let mut scene = Scene::of(with_files(files));
        scene.ask("");
        scene.ask("a");
        scene.ask("b");
        scene.work_off();
        scene
    }

    #[test]
    fn no_file_is_read_before_one_was_read() {
        let mut scene = walking(5);
        assert!(!scene.was_given("a") && !scene.was_given("b"));
        assert!(scene.work_off().is_empty());
        scene.was_read("a");
        assert!(scene.was_given("b"));
        assert_eq!(scene.work_off(), ["000 001 002 003 004"]);
        // Where nobody walks, it counts for nothing.
        let mut scene = Scene::of(with_files(5));
        scene.ask("a");
        scene.was_read("a");
        assert!(!scene.was_given("a"));
    }

    #[test]
    fn of_a_listing_that_is_given_in_parts_the_files_of_each_part_are_read() {
        let mut scene = walking(5);
        scene.was_read("a");
        // Files have the offsets 3 to 7.
        assert!(!scene.was_given_part("b", (0, 2)));
        assert!(scene.was_given_part("b", (2, 5)));
        assert_eq!(scene.work_off(), ["000 001 002"]);
        assert!(scene.was_given_part("b", (5, 7)));
        assert_eq!(scene.work_off(), ["003 004"]);
        assert!(!scene.was_given_part("b", (7, 7)) && !scene.was_given_part("b", (u64::MAX, u64::MAX)));
        assert_eq!(scene.walk().credit, FILES_FOR_EACH - 5);
    }

    #[test]
    fn only_small_files_that_do_not_change_are_read() {
        let is_small = |entry| {
            let dir = fake::listing_of(&fake::top(Dir::of([("x", entry)]).entry()));
            super::is_small(&dir.entries()[0])
        };
        let sizes = [0, 1, SMALL - 1, SMALL, u64::MAX];
        assert_eq!(sizes.map(|size| is_small(fake::file(size))), [false, true, true, false, false]);
        assert!(!is_small(fake::empty()));
    }

    #[test]
    fn files_are_read_in_batches_until_the_credit_is_used_up_and_earned_again() {
        let mut scene = walking(100);
        scene.was_read("a");
        assert!(scene.was_given("b"));
        let Some(Job::Read(_, files)) = scene.walks.next() else { panic!("nothing is read") };
        assert_eq!(files.indices, (0..FILES_FOR_EACH).collect::<Vec<_>>());
        assert!(scene.walks.next().is_none());
        assert!(scene.ask("c") && !scene.was_given("c"));
        for _ in 0..3 {
            scene.was_read("c");
        }
        assert!(scene.ask("d") && scene.was_given("d"));
        let batches: Vec<usize> = scene.work_off().iter().map(|names| names.split(' ').count()).collect();
        assert_eq!(batches, [BATCH, BATCH, 3 * FILES_FOR_EACH - 2 * BATCH]);
        for _ in 0..CREDIT_MAX {
            scene.was_read("d");
        }
        assert_eq!(scene.walk().credit, CREDIT_MAX);
    }

    #[test]
    fn files_come_before_directories() {
        let mut scene = Scene::of(with_files(4));
        scene.ask("");
        scene.ask("a");
        scene.was_read("a");
        assert!(scene.was_given("a"));
        assert_eq!(scene.work_off(), ["000 001 002 003", "b", "c", "d", "e"]);
    }

    #[test]
    fn files_of_coming_directories_are_read_where_the_disk_is_and_somebody_reads() {
        let mut scene = Scene::of(with_files(4));
        scene.ask("");
        scene.ask("a");
        let with_files = |scene: &mut Scene| match scene.walks.next() {
            Some(Job::List(walk, _, with_files)) => (walk, with_files),
            other => panic!("{other:?}"),
        };
        let (walk, cold) = with_files(&mut scene);
        assert!(!cold);
        scene.walks.is_cold(walk, true);
        assert_eq!(with_files(&mut scene), (walk, false));
        scene.was_read("a");
        assert_eq!(with_files(&mut scene), (walk, true));
        scene.walks.is_cold(walk, false);
        assert_eq!(with_files(&mut scene), (walk, false));
    }
}
