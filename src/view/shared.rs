//! What all folders of a store share: its newest state, how that is come by, and what is believed of damage.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::snapshot::{PAUSE, Reader, Reading, Snapshot};
use super::{Options, Owners};
use crate::error::{Error, Result};
use crate::meta::Timestamp;
use crate::store::{Catalogue, Damage, Store};

/// As many remarks on a store are told one by one.
pub(super) const REMARKS_MAX: usize = 100;
/// How long damage must have been seen before it is certain: engines take so long to make or remove a container, at most.
const CERTAIN_AFTER: Duration = Duration::from_secs(2);
/// How often the store is read while there is damage that is not certain.
const DOUBT_INTERVAL: Duration = Duration::from_millis(500);
/// How many states of the store an answer is made of, each time because something is gone, before it is [`Error::Stale`].
const STATES_MAX: usize = 4;
/// How long a listing waits for what is gone or damaged to come back, or to be damaged for certain, when it is left out.
const LISTING_PATIENCE: Duration = Duration::from_millis(3_500);

/// What all folders of a store share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) store: Arc<dyn Store>,
    pub(super) options: Options,
    /// The stores that were used later, whose names this one does not show.
    pub(super) above: Vec<Arc<Shared>>,
    /// Which of the view's arrangements of its stores that is of.
    arrangement: u64,
    /// Guards the latest time of any folder, also of other stores of the view; held only to copy or set it.
    latest: Arc<Mutex<Timestamp>>,
    /// Guards the newest snapshot; held only to copy or replace it.
    snapshot: RwLock<Arc<Snapshot>>,
    /// How often the store was read again, in all arrangements.
    pub(super) rescans: Arc<AtomicU64>,
    /// Guards the damage that was seen last. The thread that reads the store holds it for as long, so that others wait for
    /// what it reads instead of reading the same. It waits for the store's disk alone: never for the kernel, nor for
    /// another lock that is held for long.
    pub(super) seen: Arc<Mutex<Seen>>,
}

/// What readings of the store have seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The damage that was seen in all readings since some time.
    pub(super) damage: Sightings,
    /// When a reading began that showed nothing new, since some of it could not be read.
    held_back: Option<Instant>,
    /// When the first of such readings began, if there was none that showed something.
    held_since: Option<Instant>,
}

/// What is wrong, and how, and since when that was seen.
pub(super) type Sightings = BTreeMap<(String, String), Since>;

/// Since when damage was seen.
#[derive(Debug, Clone, Copy)]
pub(super) enum Since {
    /// It may be but the middle of a change.
    Lately(Instant),
    /// It is certain, and was told.
    Long,
}

impl Since {
    pub(super) fn is_lately(&self) -> bool {
        matches!(self, Self::Lately(_))
    }
}

pub(super) fn key(damage: &Damage) -> (String, String) {
    (damage.what.clone(), damage.why.clone())
}

impl Shared {
    pub(super) fn new(
        store: Arc<dyn Store>,
        options: Options,
        above: Vec<Arc<Self>>,
        latest: Arc<Mutex<Timestamp>>,
    ) -> Result<Self> {
        if options.owners == Owners::Container {
            store.tells_owners()?;
        }
        let nothing = Sightings::new();
        let arrangement = 0;
        let reader = Reader { store: store.as_ref(), above: &above, arrangement, latest: &latest };
        let snapshot = reader.read_calmly(None, Reading::Whole, &nothing)?;
        let damage = snapshot.catalogue.told().map(|damage| (key(damage), Since::Long)).collect();
        log_remarks(snapshot.catalogue.remarks.iter());
        let seen = Arc::new(Mutex::new(Seen { damage, held_back: None, held_since: None }));
        let snapshot = RwLock::new(Arc::new(snapshot));
        Ok(Self { store, options, above, arrangement, latest, snapshot, rescans: Arc::default(), seen })
    }

    /// The same store below others. It is as it was read last, which shows that it is to be read again.
    pub(super) fn below(&self, above: Vec<Arc<Self>>) -> Self {
        Self {
            store: Arc::clone(&self.store),
            options: self.options.clone(),
            above,
            arrangement: self.arrangement.saturating_add(1),
            latest: Arc::clone(&self.latest),
            snapshot: RwLock::new(self.known()),
            rescans: Arc::clone(&self.rescans),
            seen: Arc::clone(&self.seen),
        }
    }

    fn reader(&self) -> Reader<'_> {
        let (above, arrangement) = (self.above.as_slice(), self.arrangement);
        Reader { store: self.store.as_ref(), above, arrangement, latest: &self.latest }
    }

    /// The state of the store as it is, read again if it changed. A store that cannot be read for the moment is shown
    /// as it was.
    pub(super) fn current(&self) -> Arc<Snapshot> {
        let asked = Instant::now();
        let known = self.known();
        if self.is_current(&known) { known } else { self.read_since(asked, Reading::Changes) }
    }

    pub(super) fn known(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.read())
    }

    /// Whether nothing tells that the store is another than in this state.
    fn is_current(&self, known: &Snapshot) -> bool {
        match self.store.generation() {
            Ok(generation) => {
                let is_doubtful = known.is_in_doubt && known.begun.elapsed() > DOUBT_INTERVAL;
                let is_shadowed_as_before = known.arrangement == self.arrangement
                    && self.above.iter().map(|above| above.current().state).eq(known.above.iter().copied());
                generation == known.generation && known.is_settled && !is_doubtful && is_shadowed_as_before
            }
            Err(error) => {
                log::warn!("the store is shown as it was: {error}");
                true
            }
        }
    }

    /// The state of the store as it was read since then, by this thread or another; the one that is known where the store
    /// cannot be read.
    pub(super) fn read_since(&self, asked: Instant, reading: Reading) -> Arc<Snapshot> {
        let mut seen = self.seen.lock();
        let known = self.known();
        let is_enough = known.reading >= reading;
        if known.begun >= asked && is_enough {
            return known;
        }
        let is_held_back = |begun: Instant| begun >= asked || begun.elapsed() < DOUBT_INTERVAL;
        if reading == Reading::Changes && seen.held_back.is_some_and(is_held_back) {
            return known;
        }
        seen.held_back = None;
        match self.reader().read_calmly(Some(&known), reading, &seen.damage) {
            Ok(mut fresh) => {
                log::debug!("the store was read again");
                self.rescans.fetch_add(1, Ordering::Relaxed);
                let sightings = look_again(&fresh.catalogue, &seen.damage);
                let is_lately = |damage: &&Damage| sightings.get(&key(damage)).is_some_and(Since::is_lately);
                let (doubtful, certain): (Vec<_>, Vec<_>) = fresh.catalogue.told().partition(is_lately);
                // Not for long, as there may be something new that cannot be read again and again.
                let is_patient = seen.held_since.is_none_or(|since| since.elapsed() < CERTAIN_AFTER);
                let is_held_back = reading == Reading::Changes && is_patient;
                let held_back = doubtful.iter().find(|damage| damage.is_unreadable).filter(|_| is_held_back);
                let held_back = held_back.map(ToString::to_string);
                fresh.is_in_doubt = !doubtful.is_empty();
                fresh.certain = certain.into_iter().map(ToString::to_string).collect();
                seen.damage = sightings;
                if let Some(damage) = held_back {
                    log::debug!("the store is shown as it was, since this may pass: {damage}");
                    seen.held_back = Some(fresh.begun);
                    seen.held_since.get_or_insert(fresh.begun);
                    return known;
                }
                seen.held_since = None;
                let fresh = Arc::new(fresh);
                *self.snapshot.write() = Arc::clone(&fresh);
                fresh
            }
            Err(error) => {
                log::warn!("the store changed but cannot be read, so it is shown as it was: {error}");
                known
            }
        }
    }

    /// What is made of the state of the store as it is. What is gone by then is looked for in the state that it has now;
    /// and where nothing tells that it has another, all of it is read, as when a layer was removed by hand.
    ///
    /// # Errors
    /// Those of `make`; [`Error::Stale`] for damage that is not certain.
    pub(super) fn answer<T>(&self, make: impl Fn(&Snapshot) -> Result<T>) -> Result<T> {
        let mut snapshot = self.current();
        let mut states = 1_usize;
        loop {
            let (what, is_doubtful) = match make(&snapshot) {
                Err(Error::Damaged { what, why }) if snapshot.is_doubtful(&why) => (what, true),
                Err(Error::Stale { what }) => (what, false),
                answer => return answer,
            };
            let asked = Instant::now();
            let newer = self.current();
            let is_same = newer.state == snapshot.state;
            if states >= STATES_MAX || (is_same && is_doubtful) {
                return Err(Error::Stale { what });
            }
            states = states.saturating_add(1);
            snapshot = if is_same { self.read_since(asked, Reading::Whole) } else { newer };
        }
    }

    /// As [`Shared::answer`], of many objects: one of them that is in doubt does not keep the others from being seen, but has
    /// them waited for. An engine may leave the name of an image that it removes, until it is told to load that again.
    ///
    /// # Errors
    /// As [`Shared::answer`].
    pub(super) fn answer_patiently<T>(&self, make: impl Fn(&Snapshot) -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        loop {
            match self.answer(&make) {
                Err(Error::Stale { .. }) if begun.elapsed() < LISTING_PATIENCE => std::thread::sleep(PAUSE),
                answer => return answer,
            }
        }
    }

    /// An answer that says of what may be whole in a moment that it is gone, and not that it is damaged.
    pub(super) fn unless_doubtful<T>(&self, answer: Result<T>) -> Result<T> {
        match answer {
            Err(Error::Damaged { what, why }) if self.known().is_doubtful(&why) => Err(Error::Stale { what }),
            answer => answer,
        }
    }
}

/// Since when this damage and these remarks were seen; tells what has become certain, and warns of damage.
fn look_again(catalogue: &Catalogue, before: &Sightings) -> Sightings {
    let now = |one: &Damage| match before.get(&key(one)) {
        None => Since::Lately(Instant::now()),
        Some(Since::Lately(begun)) if begun.elapsed() >= CERTAIN_AFTER => Since::Long,
        Some(since) => *since,
    };
    let seen: Sightings = catalogue.told().map(|one| (key(one), now(one))).collect();
    let has_settled = |one: &&Damage| {
        let of = |sightings: &Sightings| sightings.get(&key(one)).copied();
        of(before).is_some_and(|since| since.is_lately()) && of(&seen).is_some_and(|since| !since.is_lately())
    };
    for damage in catalogue.damage.iter().filter(has_settled) {
        log::warn!("{damage}");
    }
    log_remarks(catalogue.remarks.iter().filter(has_settled));
    seen
}

/// Tells what is remarkable, but not too much at once.
fn log_remarks<'a>(remarks: impl Iterator<Item = &'a Damage>) {
    let mut untold = 0_usize;
    for (number, remark) in remarks.enumerate() {
        if number < REMARKS_MAX {
            log::info!("{remark}");
        } else {
            untold = untold.saturating_add(1);
        }
    }
    if untold > 0 {
        log::info!("{untold} more remarks on the store");
    }
}
