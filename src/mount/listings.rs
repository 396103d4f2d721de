//! Listings of directories, kept for as long as the kernel reads them, and for a while after.
//!
//! A listing has no handle: the kernel says which directory it reads and from which offset. Where a directory never
//! changes, an offset is a place in the sorted names, so that a listing that was given up is made again with the same
//! offsets. Where names come and go, an offset follows from the name that it stands behind, and stays with it from one
//! listing to the next, so that a reader who goes on in a newer listing misses no name that was there all the time, and
//! sees none twice.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::{Condvar, Mutex};

use super::counters::Tally;
use super::inodes::{Held, Key};
use crate::error::Result;
use crate::layer::names::Holding;
use crate::meta::Meta;
use crate::name::Name;
use crate::view::Entry;

/// How many entries all listings together may have before the one that was used longest ago is given up.
const ENTRIES_MAX: usize = 32_768;
/// How long a listing is waited for that another thread is making, before it is made a second time: that thread may be
/// reading ahead, and wait itself.
const PATIENCE: Duration = Duration::from_millis(20);
/// How many listings are kept also where they are larger, so that as many readers of large directories can go on.
const LISTINGS_MIN: usize = 8;
/// How many entries these may have together; one alone may have as many as a directory can
/// ([`NAMES_MAX`](crate::layer::names::NAMES_MAX)).
const LARGE_MAX: usize = 1 << 20;
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
        let generation = entry.generation();
        let key = Key::child(dir, &name, &entry.node).of_generation(generation);
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
        Ok(Self::steady(Self::read(dir, number)?))
    }

    /// Lists a directory whose names come and go. Names have the offsets that they had in an older listing.
    ///
    /// # Errors
    /// As [`Node::list`](crate::view::Node::list).
    pub(super) fn again(dir: &Held, number: u64, older: Option<&Self>) -> Result<Self> {
        Ok(Self::changing(Self::read(dir, number)?, older))
    }

    fn read(dir: &Held, number: u64) -> Result<Vec<Listed>> {
        let _names = Holding::begin();
        let entries = dir.node().list()?.into_iter();
        Ok(entries.map(|(name, entry)| Listed::new(dir.key(), number, name, entry)).collect())
    }

    /// A listing in the order of the names, which stay.
    fn steady(mut entries: Vec<Listed>) -> Self {
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for (offset, entry) in (DOTS.saturating_add(1)..).zip(&mut entries) {
            entry.offset = offset;
        }
        Self { entries: entries.into() }
    }

    /// A listing whose offsets follow from the names, and stay with them.
    fn changing(mut entries: Vec<Listed>, older: Option<&Self>) -> Self {
        let older = older.map(Self::entries).unwrap_or_default();
        let known: HashMap<&Name, u64> = older.iter().map(|entry| (&entry.name, entry.offset)).collect();
        let mut taken: HashSet<u64> = known.values().copied().collect();
        for entry in &mut entries {
            entry.offset = known.get(&entry.name).copied().unwrap_or_else(|| {
                let mut offset = offset_of(&entry.name);
                // Of two names with one hash, the second takes the next offset that is free.
                while !taken.insert(offset) {
                    offset = if offset < OFFSET_MAX { offset.saturating_add(1) } else { DOTS.saturating_add(1) };
                }
                offset
            });
        }
        entries.sort_unstable_by_key(|entry| entry.offset);
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

/// Keyed anew in each process, so that nobody can choose names of one hash.
static HASHES: LazyLock<RandomState> = LazyLock::new(RandomState::new);

fn offset_of(name: &Name) -> u64 {
    (HASHES.hash_one(name.as_bytes()) & OFFSET_MAX).max(DOTS.saturating_add(1))
}

/// The listings that are kept.
#[derive(Debug, Default)]
pub(super) struct Listings {
    /// Held for single look-ups and changes only, never while a directory is read.
    kept: Mutex<Kept>,
    made: Condvar,
    tally: Arc<Tally>,
}

#[derive(Debug)]
struct Kept {
    by_key: LruCache<Key, Arc<Listing>>,
    /// How many entries there are in all of them.
    entries: usize,
    /// What threads are reading at the moment.
    making: HashSet<Key>,
}

impl Kept {
    fn is_too_large(&self) -> bool {
        let most = if self.by_key.len() > LISTINGS_MIN { ENTRIES_MAX } else { LARGE_MAX };
        self.entries > most && self.by_key.len() > 1
    }
}

impl Default for Kept {
    fn default() -> Self {
        Self { by_key: LruCache::unbounded(), entries: 0, making: HashSet::new() }
    }
}

impl Listings {
    /// None, whose number is counted there.
    pub(super) fn new(tally: Arc<Tally>) -> Self {
        Self { tally, ..Self::default() }
    }

    /// How many are kept, and how many entries they have together.
    pub(super) fn count(&self) -> (usize, usize) {
        let kept = self.kept.lock();
        (kept.by_key.len(), kept.entries)
    }

    /// The listing that is kept of a directory, or the one that `make` answers, which is then kept. What another thread
    /// is making is waited for.
    ///
    /// # Errors
    /// Those of `make`.
    pub(super) fn get(&self, key: Key, make: impl FnOnce() -> Result<Listing>) -> Result<Arc<Listing>> {
        let mut begun = None;
        let mut kept = self.kept.lock();
        loop {
            if let Some(listing) = kept.by_key.get(&key) {
                self.tally.listings_found.one();
                return Ok(Arc::clone(listing));
            }
            if kept.making.insert(key) {
                break;
            }
            // Other listings that are made meanwhile wake this thread too.
            let left = PATIENCE.saturating_sub(begun.get_or_insert_with(Instant::now).elapsed());
            if self.made.wait_for(&mut kept, left).timed_out() {
                break;
            }
        }
        drop(kept);
        let _making = Making { listings: self, key };
        Ok(self.keep(key, make()?))
    }

    /// The listing that is kept of a directory, for a reader who goes on in it.
    pub(super) fn found(&self, key: Key) -> Option<Arc<Listing>> {
        let found = self.kept.lock().by_key.get(&key).cloned();
        if found.is_some() {
            self.tally.listings_found.one();
        }
        found
    }

    /// The listing that is kept of a directory, which counts as no use of it.
    pub(super) fn kept(&self, key: Key) -> Option<Arc<Listing>> {
        self.kept.lock().by_key.peek(&key).cloned()
    }

    /// Keeps a listing in the place of an older one.
    pub(super) fn keep(&self, key: Key, listing: Listing) -> Arc<Listing> {
        let listing = Arc::new(listing);
        self.tally.listings_made.one();
        let mut given_up = Vec::new();
        let mut kept = self.kept.lock();
        kept.entries = kept.entries.saturating_add(listing.entries.len());
        if let Some((_, older)) = kept.by_key.push(key, Arc::clone(&listing)) {
            kept.entries = kept.entries.saturating_sub(older.entries.len());
            given_up.push(older);
        }
        while kept.is_too_large() {
            let Some((_, oldest)) = kept.by_key.pop_lru() else { break };
            kept.entries = kept.entries.saturating_sub(oldest.entries.len());
            self.tally.listings_evicted.one();
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::mpsc::channel;
    use std::thread;

    use proptest::collection::btree_set;
    use proptest::prelude::*;
    use rustix::io::Errno;

    use super::*;
    use crate::error::Error;
    use crate::mount::fake::{self, Dir};
    use crate::mount::inodes::ROOT;

    /// Longer than any test takes.
    const LONG: Duration = Duration::from_secs(60);

    fn key(name: &str) -> Key {
        Key::child(Key::root(), &fake::name(name), &fake::empty().node)
    }

    fn listing<N: AsRef<str>>(names: impl IntoIterator<Item = N>) -> Listing {
        let dir = Dir::of(names.into_iter().map(|name| (name, fake::file(1))));
        fake::listing_of(&fake::top(dir.entry()))
    }

    fn changing<N: AsRef<str>>(names: impl IntoIterator<Item = N>, older: Option<&Listing>) -> Listing {
        let dir = Dir::of(names.into_iter().map(|name| (name, fake::file(1)))).changing();
        Listing::again(&fake::top(dir.entry()), ROOT, older).unwrap()
    }

    fn sized(entries: usize) -> Listing {
        let entry = || Listed::new(Key::root(), 1, fake::name("x"), fake::file(1));
        Listing::steady(std::iter::repeat_with(entry).take(entries).collect())
    }

    fn names(entries: &[Listed]) -> Vec<String> {
        entries.iter().map(|entry| String::from_utf8_lossy(entry.name.as_bytes()).into_owned()).collect()
    }

    fn offsets(listing: &Listing) -> Vec<u64> {
        listing.entries().iter().map(|entry| entry.offset).collect()
    }

    /// Two names, neither of them a number, that have one hash.
    fn colliding() -> [String; 2] {
        let mut known = BTreeMap::new();
        let mut all = (0..).map(|number| format!("name-{number}"));
        all.find_map(|name| {
            let other = known.insert(offset_of(&fake::name(&name)), name.clone())?;
            Some([other, name])
        })
        .unwrap()
    }

    #[test]
    fn what_does_not_change_is_numbered_in_the_order_of_names() {
        let listing = listing(["b", "c", "B", "a", "a.b"]);
        assert_eq!(names(listing.entries()), ["B", "a", "a.b", "b", "c"]);
        assert_eq!(offsets(&listing), [3, 4, 5, 6, 7]);
        for start in 0..=DOTS {
            assert_eq!(names(listing.behind(start)), ["B", "a", "a.b", "b", "c"]);
        }
        assert_eq!(names(listing.behind(5)), ["b", "c"]);
        assert_eq!(names(listing.behind(6)), ["c"]);
        for end in [7, 8, u64::MAX] {
            assert!(listing.behind(end).is_empty());
        }
        assert!(sized(0).behind(0).is_empty());
    }

    #[test]
    fn names_of_one_hash_have_offsets_of_their_own() {
        let [first, second] = colliding();
        let both = changing([second.as_str(), "another", &first], None);
        assert!(offsets(&both).is_sorted_by(|a, b| a < b));
        for entry in both.entries() {
            let had = both.entries().partition_point(|other| other.offset <= entry.offset);
            assert_eq!(names(both.behind(entry.offset)), names(&both.entries()[had..]));
        }
    }

    #[test]
    fn a_name_keeps_its_offset_when_another_of_its_hash_goes_or_comes() {
        let [first, second] = colliding();
        let both = changing([&first, &second], None);
        let offset = |listing: &Listing, name: &str| {
            let name = fake::name(name);
            listing.entries().iter().find(|entry| entry.name == name).map(|entry| entry.offset)
        };
        for (stays, goes) in [(&first, &second), (&second, &first)] {
            let one = changing([stays], Some(&both));
            assert_eq!(offset(&one, stays), offset(&both, stays));
            let again = changing([goes, stays], Some(&one));
            assert_eq!(offset(&again, stays), offset(&both, stays));
            assert_ne!(offset(&again, goes), offset(&again, stays));
        }
    }

    /// What a reader gets who has had a listing up to an entry, and goes on in another.
    fn read_in_two(first: &Listing, had: usize, second: &Listing) -> Vec<String> {
        let (had, _) = first.entries().split_at(had);
        let offset = had.last().map_or(DOTS, |entry| entry.offset);
        [names(had), names(second.behind(offset))].concat()
    }

    proptest! {
        #[test]
        fn who_goes_on_in_a_newer_listing_misses_nothing_and_sees_nothing_twice(
            stay in btree_set("[a-z]{1,3}", 0..20),
            gone in btree_set("[A-M]{1,3}", 0..20),
            come in btree_set("[N-Z]{1,3}", 0..20),
        ) {
            let before = changing(stay.union(&gone), None);
            let after = changing(stay.union(&come), Some(&before));
            for listing in [&before, &after] {
                prop_assert!(offsets(listing).is_sorted_by(|a, b| a < b));
                prop_assert!(offsets(listing).iter().all(|offset| (DOTS + 1..=OFFSET_MAX).contains(offset)));
            }
            for had in 0..=before.entries().len() {
                let seen = read_in_two(&before, had, &after);
                let once: BTreeSet<&String> = seen.iter().collect();
                prop_assert_eq!(once.len(), seen.len(), "{:?}", seen);
                prop_assert!(stay.iter().all(|name| once.contains(name)), "{:?}", seen);
            }
        }

        #[test]
        fn a_listing_that_does_not_change_is_read_whole_in_any_parts(
            all in btree_set("[a-z]{1,3}", 0..20),
            parts in prop::collection::vec(1_usize..5, 20),
        ) {
            let mut seen = Vec::new();
            let mut offset = 0;
            for part in parts {
                // Given up and made again in between.
                let made = listing(&all);
                let read = made.behind(offset);
                let read = &read[..part.min(read.len())];
                offset = read.last().map_or(offset, |entry| entry.offset);
                seen.extend(names(read));
            }
            prop_assert_eq!(seen, Vec::from_iter(all));
        }
    }

    #[test]
    fn many_small_listings_are_kept_up_to_a_number_of_entries() {
        const EACH: usize = 1_024;
        let listings = Listings::default();
        for number in 0..40 {
            listings.keep(key(&number.to_string()), sized(EACH));
        }
        let kept = |number: i32| listings.kept(key(&number.to_string())).is_some();
        let first = 40 - i32::try_from(ENTRIES_MAX / EACH).unwrap();
        assert_eq!((0..40).filter(|number| kept(*number)).collect::<Vec<_>>(), (first..40).collect::<Vec<_>>());
        assert_eq!(listings.kept.lock().entries, ENTRIES_MAX);
        // What was used last stays longest.
        listings.get(key(&first.to_string()), || panic!("it is kept")).unwrap();
        listings.keep(key("one more"), sized(EACH));
        assert!(kept(first) && !kept(first + 1));
    }

    #[test]
    fn large_listings_are_kept_for_eight_readers() {
        let listings = Listings::default();
        for number in 0..10 {
            listings.keep(key(&number.to_string()), sized(ENTRIES_MAX + 1));
        }
        let kept = (0..10).filter(|number| listings.kept(key(&number.to_string())).is_some());
        assert_eq!(kept.collect::<Vec<_>>(), [2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(listings.kept.lock().entries, LISTINGS_MIN * (ENTRIES_MAX + 1));
    }

    #[test]
    fn a_listing_takes_the_place_of_an_older_one_and_is_given_up() {
        let listings = Listings::default();
        listings.keep(key("a"), sized(5));
        let older = listings.kept(key("a")).unwrap();
        listings.keep(key("a"), sized(3));
        // Who reads the older one still can.
        assert_eq!(older.entries().len(), 5);
        assert_eq!(listings.kept(key("a")).unwrap().entries().len(), 3);
        assert_eq!(listings.kept.lock().entries, 3);
        listings.give_up(key("b"));
        assert_eq!(listings.kept.lock().entries, 3);
        listings.give_up(key("a"));
        assert!(listings.kept(key("a")).is_none());
        assert_eq!(listings.kept.lock().entries, 0);
    }

    /// Has two threads ask at once; answers how many listings were made.
    fn made_for_two() -> usize {
        let (listings, made) = (Listings::default(), AtomicUsize::new(0));
        let ((asks, does_ask), (second, is_second)) = (channel(), channel());
        thread::scope(|scope| {
            let (listings, made) = (&listings, &made);
            let first = scope.spawn(move || {
                listings.get(key("a"), || {
                    let make = move || {
                        made.fetch_add(1, Ordering::Relaxed);
                        // The first may have gone on meanwhile.
                        let _ = second.send(());
                        Ok(sized(1))
                    };
                    scope.spawn(move || {
                        asks.send(()).unwrap();
                        listings.get(key("a"), make)
                    });
                    does_ask.recv_timeout(LONG).unwrap();
                    // Time for the second to make one, if it would.
                    let _ = is_second.recv_timeout(PATIENCE / 2);
                    made.fetch_add(1, Ordering::Relaxed);
                    Ok(sized(1))
                })
            });
            first.join().unwrap().unwrap();
        });
        made.into_inner()
    }

    #[test]
    fn two_that_ask_at_once_get_one_listing() {
        // Where the machine is busy, the second may lose its patience.
        assert!((0..10).any(|_| made_for_two() == 1));
    }

    #[test]
    fn a_listing_that_takes_long_is_made_a_second_time() {
        let listings = Listings::default();
        let (done, wait) = channel();
        thread::scope(|scope| {
            let listings = &listings;
            let (begun, has_begun) = channel();
            let slow = scope.spawn(move || {
                listings.get(key("a"), || {
                    begun.send(()).unwrap();
                    wait.recv_timeout(LONG).unwrap();
                    Ok(sized(1))
                })
            });
            has_begun.recv_timeout(LONG).unwrap();
            assert_eq!(listings.get(key("a"), || Ok(sized(2))).unwrap().entries().len(), 2);
            done.send(()).unwrap();
            assert_eq!(slow.join().unwrap().unwrap().entries().len(), 1);
        });
        assert!(listings.kept.lock().making.is_empty());
        assert_eq!(listings.kept.lock().entries, 1);
    }

    #[test]
    fn patience_ends_though_other_listings_are_made_all_the_time() {
        let listings = Listings::default();
        let is_over = AtomicBool::new(false);
        let (done, wait) = channel();
        let was_made = thread::scope(|scope| {
            let listings = &listings;
            let (begun, has_begun) = channel();
            scope.spawn(move || {
                listings.get(key("a"), || {
                    begun.send(()).unwrap();
                    wait.recv_timeout(LONG).unwrap();
                    Ok(sized(1))
                })
            });
            has_begun.recv_timeout(LONG).unwrap();
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    listings.get(key("b"), || Ok(sized(1))).unwrap();
                    listings.give_up(key("b"));
                }
            });
            let (made, was_made) = channel();
            scope.spawn(move || {
                listings.get(key("a"), || {
                    made.send(()).unwrap();
                    Ok(sized(2))
                })
            });
            let answer = was_made.recv_timeout(PATIENCE * 50);
            is_over.store(true, Ordering::Relaxed);
            done.send(()).unwrap();
            answer
        });
        assert_eq!(was_made, Ok(()));
    }

    #[test]
    fn nobody_waits_for_a_listing_that_fails_or_panics() {
        let listings = Listings::default();
        let fail = || Err(Error::io(|| "list".to_owned())(Errno::IO));
        assert!(listings.get(key("a"), fail).is_err());
        assert!(listings.kept.lock().making.is_empty());
        let panics = || listings.get(key("a"), || panic!("a panic on purpose"));
        assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
        assert!(listings.kept.lock().making.is_empty());
        assert!(listings.kept(key("a")).is_none());
        assert_eq!(listings.get(key("a"), || Ok(sized(1))).unwrap().entries().len(), 1);
        // Those who wait already go on.
        thread::scope(|scope| {
            let failing = scope.spawn(|| {
                listings.get(key("b"), || {
                    scope.spawn(|| listings.get(key("b"), || Ok(sized(2))).unwrap());
                    fail()
                })
            });
            assert!(failing.join().unwrap().is_err());
        });
        assert_eq!(listings.kept(key("b")).unwrap().entries().len(), 2);
    }
}
