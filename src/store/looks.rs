//! Looks at the store's single files, for what befalls them in their places.
//!
//! An engine makes and replaces whole files and directories by renaming, so the times of a few directories tell of all
//! that it does ([`Store::generation`](crate::store::Store::generation)). That a file is truncated, written over, made
//! unreadable, or its layer's directory is gone, they do not tell. So the attributes of every file that a catalogue
//! stands upon are looked at again: by a thread of their own, since nobody should wait for thousands of answers or for a
//! disk that gives none; only while someone asks for the store; and for no more than a hundredth of the time.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use super::{Catalogue, Container, LayerRecord, Stamp};
use crate::digest::{ChainId, ContainerId, ImageId};
use crate::error::Result;
use crate::meta::{Meta, Timestamp};
use crate::name::TreePath;
use crate::root::Root;

/// The shortest time between two looks.
const REST: Duration = Duration::from_millis(100);
/// Between two looks is this many times the time that the last one took, at least, but no longer than [`REST_MAX`].
const SHARE: u32 = 100;
const REST_MAX: Duration = Duration::from_secs(10);
/// File systems note times by ticks of some milliseconds, so that a change may bear a time before it.
const TICK: Duration = Duration::from_millis(50);

/// Where the files of a store are.
pub(super) trait Place: Debug + Send + Sync {
    /// The states of an image's files.
    ///
    /// # Errors
    /// Where they could not be looked at for the moment.
    fn image(&self, id: &ImageId) -> Result<Print>;

    /// The states of a layer's files in the store, and of its directory.
    ///
    /// # Errors
    /// As [`Place::image`].
    fn layer(&self, record: &LayerRecord) -> Result<Print>;

    /// The states of a container's files in the store, and of its directories, whatever the container writes there.
    ///
    /// # Errors
    /// As [`Place::image`].
    fn container(&self, container: &Container) -> Result<Print>;
}

/// All looks at one store.
#[derive(Debug)]
pub(super) struct Looks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    place: Box<dyn Place>,
    /// Held for single look-ups and changes only, never while anything is looked at.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    watched: Arc<Watched>,
    seen: HashMap<Object, Seen>,
    /// How many looks are over. Their numbers start at 1.
    over: u64,
    /// The number of the last look that found a change.
    changes: u64,
    is_under_way: bool,
    due: Instant,
}

/// What the newest catalogue stands upon.
#[derive(Debug, Default)]
struct Watched {
    images: Vec<ImageId>,
    layers: Vec<Arc<LayerRecord>>,
    containers: Vec<Arc<Container>>,
    /// When that catalogue began to be read, or a little before.
    since: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Object {
    Image(ImageId),
    Layer(ChainId),
    Container(ContainerId),
}

/// What a look saw of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    print: u64,
    /// The number of the look that found it changed; zero where none did.
    changed_at: u64,
}

/// The states of all files of an object, as one number, and when the last of them was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Print {
    print: u64,
    changed: Timestamp,
    /// Whether it is not as the newest catalogue says, whatever the times tell.
    differs: bool,
}

impl Looks {
    pub(super) fn new(place: impl Place + 'static) -> Self {
        let state = State {
            watched: Arc::default(),
            seen: HashMap::new(),
            over: 0,
            changes: 0,
            is_under_way: false,
            due: Instant::now().checked_add(REST).unwrap_or_else(Instant::now),
        };
        Self(Arc::new(Shared { place: Box::new(place), state: Mutex::new(state) }))
    }

    /// Has a look taken if one is due; nobody waits for it.
    pub(super) fn take(&self) {
        let mut state = self.0.state.lock();
        if state.is_under_way || Instant::now() < state.due || state.watched.is_empty() {
            return;
        }
        state.is_under_way = true;
        drop(state);
        let shared = Arc::clone(&self.0);
        if let Err(error) = thread::Builder::new().name("look".to_owned()).spawn(move || shared.look()) {
            log::debug!("the store's files are not looked at: {error}");
            self.0.state.lock().is_under_way = false;
        }
    }

    /// Another number after each change that a look found.
    pub(super) fn changes(&self) -> u64 {
        self.0.state.lock().changes
    }

    /// How many looks are over.
    pub(super) fn over(&self) -> u64 {
        self.0.state.lock().over
    }

    /// Whether a layer's files are those that a catalogue was read from, after so many looks.
    pub(super) fn is_unchanged(&self, layer: &ChainId, looks: u64) -> bool {
        self.0.state.lock().seen.get(&Object::Layer(*layer)).is_none_or(|seen| seen.changed_at <= looks)
    }

    /// The layers that were found changed after so many looks.
    pub(super) fn changed_since(&self, looks: u64) -> Vec<ChainId> {
        let state = self.0.state.lock();
        if state.changes <= looks {
            return Vec::new();
        }
        let changed = state.seen.iter().filter(|(_, seen)| seen.changed_at > looks);
        changed.filter_map(|(object, _)| if let Object::Layer(chain) = object { Some(*chain) } else { None }).collect()
    }

    /// The time before which all is old that is read from now on.
    pub(super) fn begin_reading(&self) -> Timestamp {
        let now = SystemTime::now().checked_sub(TICK).and_then(|now| now.duration_since(SystemTime::UNIX_EPOCH).ok());
        let now = now.unwrap_or_default();
        Timestamp { seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX), nanoseconds: now.subsec_nanos() }
    }

    /// Looks at what a catalogue stands upon from now on; it began to be read at that time.
    pub(super) fn watch(&self, catalogue: &Catalogue, since: Timestamp) {
        let watched = Watched {
            images: catalogue.images.keys().copied().collect(),
            layers: catalogue.layers.values().cloned().collect(),
            containers: catalogue.containers.values().cloned().collect(),
            since,
        };
        self.0.state.lock().watched = Arc::new(watched);
    }
}

impl Watched {
    fn is_empty(&self) -> bool {
        self.images.is_empty() && self.layers.is_empty() && self.containers.is_empty()
    }

    fn objects(&self) -> impl Iterator<Item = Object> {
        let images = self.images.iter().copied().map(Object::Image);
        let layers = self.layers.iter().map(|record| Object::Layer(record.chain));
        images.chain(layers).chain(self.containers.iter().map(|container| Object::Container(container.id)))
    }
}

impl Shared {
    fn look(&self) {
        let watched = Arc::clone(&self.state.lock().watched);
        let begun = Instant::now();
        let place = &self.place;
        // Layers come last: their disk may be one that does not answer.
        self.settle(&watched, watched.images.iter().map(|id| (Object::Image(*id), place.image(id))));
        let containers = watched.containers.iter();
        self.settle(&watched, containers.map(|found| (Object::Container(found.id), place.container(found))));
        let layers = watched.layers.iter();
        self.settle(&watched, layers.map(|record| (Object::Layer(record.chain), place.layer(record))));
        let took = begun.elapsed();
        let mut state = self.state.lock();
        state.tidy(&watched);
        state.due = Instant::now().checked_add(took.saturating_mul(SHARE).clamp(REST, REST_MAX)).unwrap_or(begun);
        state.is_under_way = false;
    }

    fn settle(&self, watched: &Watched, prints: impl Iterator<Item = (Object, Result<Print>)>) {
        // What cannot be looked at for the moment is as it was.
        let prints: Vec<_> = prints.filter_map(|(object, print)| Some((object, print.ok()?))).collect();
        self.state.lock().settle(&prints, watched.since);
    }
}

impl State {
    /// Notes what a look saw. What is seen for the first time has changed if it did since the catalogue was read.
    fn settle(&mut self, prints: &[(Object, Print)], since: Timestamp) {
        self.over = self.over.saturating_add(1);
        for (object, Print { print, changed, differs }) in prints {
            let known = self.seen.get(object);
            let is_changed = *differs || known.map_or(*changed >= since, |known| known.print != *print);
            let before = known.map_or(0, |known| known.changed_at);
            let changed_at = if is_changed { self.over } else { before };
            self.changes = self.changes.max(changed_at);
            self.seen.insert(*object, Seen { print: *print, changed_at });
        }
    }

    /// Forgets what is no longer watched, once it is as much as what is.
    fn tidy(&mut self, watched: &Watched) {
        let objects: HashSet<Object> = watched.objects().collect();
        if self.seen.len() > objects.len().saturating_mul(2) {
            self.seen.retain(|object, _| objects.contains(object));
        }
    }
}

/// What there is at a path: a state, nothing, or an error, whose number stands for it.
pub(super) type Found = std::result::Result<Option<Stamp>, i32>;

/// What there is at a path.
///
/// # Errors
/// Transient ones.
pub(super) fn stamp(root: &Root, path: &TreePath) -> Result<Found> {
    state_of(root.stat(path).map(|found| found.as_ref().map(Stamp::from)))
}

/// An answer that can be compared with another.
///
/// # Errors
/// Transient ones.
pub(super) fn state_of<T>(answer: Result<T>) -> Result<std::result::Result<T, i32>> {
    match answer {
        Ok(answer) => Ok(Ok(answer)),
        Err(error) if error.is_transient() => Err(error),
        Err(error) => Ok(Err(error.errno().raw_os_error())),
    }
}

impl Print {
    /// The state of a layer's files and of what is found where its directory should be.
    ///
    /// # Errors
    /// Transient ones.
    pub(super) fn of_layer(files: &[Found], found: Result<Option<Meta>>, record: &LayerRecord) -> Result<Self> {
        let root = found.as_ref().ok().copied().flatten().filter(Meta::is_dir).map(|meta| meta.id());
        let differs = found.is_ok() && root != record.root;
        let directory = state_of(found.map(|found| found.as_ref().map(Stamp::from)))?;
        let all: Vec<Found> = files.iter().cloned().chain([directory]).collect();
        Ok(Self { differs, ..Self::of(&all) })
    }

    /// The print of these files, in this order.
    pub(super) fn of(stamps: &[Found]) -> Self {
        let mut hash = DefaultHasher::new();
        stamps.hash(&mut hash);
        let changed = stamps.iter().flatten().flatten().map(Stamp::changed).max();
        Self { print: hash.finish(), changed: changed.unwrap_or_default(), differs: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp { seconds, nanoseconds: 0 }
    }

    fn layer(digit: &str) -> Object {
        Object::Layer(ChainId::from_hex(&digit.repeat(64)).unwrap())
    }

    fn state() -> State {
        State {
            watched: Arc::default(),
            seen: HashMap::new(),
            over: 0,
            changes: 0,
            is_under_way: false,
            due: Instant::now(),
        }
    }

    #[test]
    fn a_change_is_one_since_the_catalogue_was_read() {
        let mut state = state();
        let print = |print, seconds| Print { print, changed: at(seconds), differs: false };
        // Old, and changed before the first look.
        state.settle(&[(layer("a"), print(1, 50)), (layer("b"), print(2, 150))], at(100));
        let changed_at = |state: &State, digit| state.seen[&layer(digit)].changed_at;
        assert_eq!((changed_at(&state, "a"), changed_at(&state, "b"), state.changes), (0, 1, 1));
        // Nothing new.
        state.settle(&[(layer("a"), print(1, 50)), (layer("b"), print(2, 150))], at(200));
        assert_eq!((changed_at(&state, "a"), changed_at(&state, "b"), state.changes), (0, 1, 1));
        // Changed with an old time, as after a restore; a catalogue that was read after two looks does not know it.
        state.settle(&[(layer("a"), print(3, 50))], at(200));
        assert_eq!((changed_at(&state, "a"), changed_at(&state, "b"), state.changes), (3, 1, 3));
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut state = state();
        let prints: Vec<_> =
            ["a", "b", "c", "d"].map(|d| (layer(d), Print { print: 1, changed: at(1), differs: false })).into();
        state.settle(&prints, at(2));
        state.tidy(&Watched::default());
        assert!(state.seen.is_empty());
    }
}
