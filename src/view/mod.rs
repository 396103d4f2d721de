//! The tree that users see, as data: no inode numbers, no handles, no kernel.
//!
//! A [`View`] arranges the stores of one place, of which there is one as a rule. Its folders are [`Section`]s, a file here for each kind; a top-level folder is a
//! file and a line in `FOLDERS`. Everything else in the tree is a [`Node`]: a small file, a symbolic link, or a
//! place in a layer or a union.
//!
//! What the store holds is read again whenever its generation changes, and looked at through one `Snapshot` at a
//! time, so a folder never shows half of two states.

mod by_container;
mod by_image;
mod by_layer;
mod facts;
mod footing;
mod image;
mod in_layer;
mod in_union;
mod joined;
mod members;
mod merged;
mod names;
mod node;
mod status;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::{Mutex, RwLock};

use crate::digest::{CacheId, ChainId, ContainerId, DiffId, ImageId};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::layer::difference::Life;
use crate::layer::owners::OwnerMap;
use crate::meta::Timestamp;
use crate::name::{Name, TreePath};
use crate::reference::Reference;
use crate::root::Space;
use crate::store::{Catalogue, Damage, Generation, LayerRecord, Layering, Standing, Store, Watch};
use crate::union::Union;

use footing::Footing;
pub use in_layer::{Form, LayerNode};
pub use in_union::UnionNode;
use joined::Joined;
use members::Members;
use names::NameTree;
pub use node::{Entry, Identity, Link, Node};
pub use status::{Force, Measure, Service};
pub use text::Text;

/// How many unions are remembered between look-ups.
const UNIONS_MAX: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// As many remarks on a store are told one by one.
const REMARKS_MAX: usize = 100;
/// How often the store is read before damage is believed that may be but the middle of a change.
const READINGS_MAX: usize = 3;
/// How long a change is given to go on, longer than a file system's clock takes to tell it from the next.
const PAUSE: Duration = Duration::from_millis(25);
/// How long damage must have been seen before it is certain: engines take so long to make or remove a container, at most.
const CERTAIN_AFTER: Duration = Duration::from_secs(2);
/// How often the store is read while there is damage that is not certain.
const DOUBT_INTERVAL: Duration = Duration::from_millis(500);
/// How many states of the store an answer is made of, each time because something is gone, before it is [`Error::Stale`].
const STATES_MAX: usize = 4;
/// How long a listing waits for what is gone or damaged to come back, or to be damaged for certain, when it is left out.
const LISTING_PATIENCE: Duration = Duration::from_millis(3_500);

/// How the tree is to be shown.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The form of deletions in layers' trees.
    pub whiteouts: Form,
    /// Whose numbers of owners are shown.
    pub owners: Owners,
    /// Where the store is; for people.
    pub source: PathBuf,
    /// How the process that reads the store is confined; none where that is nobody's business.
    pub confinement: Vec<Measure>,
}

/// Whose numbers owners have in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Owners {
    /// Those of the disk.
    #[default]
    Stored,
    /// Those that containers see, in their user namespace.
    Container,
}

/// The tree of the stores of one place.
#[derive(Debug, Clone)]
pub struct View {
    members: Arc<Members>,
    told: Arc<status::Told>,
}

/// A folder of the view's own making.
pub trait Section: Debug + Send + Sync {
    /// Tells this folder from another that stands, or stood, at the same path: an image's ID, for example.
    fn identity(&self) -> Vec<u8>;

    /// The time that the folder shows.
    fn time(&self) -> Timestamp;

    /// Whether names may come and go while the folder is the same.
    fn changes(&self) -> bool;

    /// What a name stands for, also names that are not listed.
    ///
    /// # Errors
    /// [`Error::Damaged`] for what should be there but cannot be shown.
    fn lookup(&self, name: &Name) -> Result<Option<Entry>>;

    /// The names that a listing shows, in no order; each of them can be looked up.
    ///
    /// # Errors
    /// Where the store could not be read.
    fn list(&self) -> Result<Vec<(Name, Entry)>>;

    /// Whether it is a directory of names of images, layers or containers, in which those of several stores stand.
    fn is_of_names(&self) -> bool {
        false
    }
}

/// A folder whose names come and go with the store's.
trait StoreFolder: Debug + Send + Sync {
    fn shared(&self) -> &Arc<Shared>;

    /// As [`Section::lookup`], in one state of the store.
    fn entry(&self, snapshot: &Snapshot, name: &Name) -> Result<Option<Entry>>;

    /// As [`Section::list`], in one state of the store.
    fn entries(&self, snapshot: &Snapshot) -> Result<Vec<(Name, Entry)>>;
}

impl<T: StoreFolder> Section for T {
    fn identity(&self) -> Vec<u8> {
        Vec::new()
    }

    fn time(&self) -> Timestamp {
        self.shared().current().time
    }

    fn changes(&self) -> bool {
        true
    }

    fn is_of_names(&self) -> bool {
        true
    }

    fn lookup(&self, name: &Name) -> Result<Option<Entry>> {
        self.shared().answer(|snapshot| self.entry(snapshot, name))
    }

    fn list(&self) -> Result<Vec<(Name, Entry)>> {
        self.shared().answer_patiently(|snapshot| self.entries(snapshot))
    }
}

type Folder = fn(&Arc<Shared>) -> Entry;

/// The top-level folders. Beside them is the file `status`.
const FOLDERS: &[(&str, Folder)] = &[
    ("by-tag", by_image::by_tag),
    ("by-digest", by_image::by_digest),
    ("by-id", by_image::by_id),
    ("by-chain", by_layer::by_chain),
    ("by-diff", by_layer::by_diff),
    ("by-container", by_container::by_container),
    ("merged", merged::merged),
];
const STATUS: &str = "status";

/// Stands for what was read of the store at one time: two equal ones are one reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State(u64);

/// What all folders of a store share.
#[derive(Debug)]
struct Shared {
    store: Arc<dyn Store>,
    options: Options,
    /// The stores that were used later, whose names this one does not show.
    above: Vec<Arc<Shared>>,
    /// Which of the view's arrangements of its stores that is of.
    arrangement: u64,
    /// Guards the latest time of any folder, also of other stores of the view; held only to copy or set it.
    latest: Arc<Mutex<Timestamp>>,
    /// Guards the newest snapshot; held only to copy or replace it.
    snapshot: RwLock<Arc<Snapshot>>,
    /// How often the store was read again, in all arrangements.
    rescans: Arc<AtomicU64>,
    /// Guards the damage that was seen last. The thread that reads the store holds it for as long, so that others wait for
    /// what it reads instead of reading the same. It waits for the store's disk alone: never for the kernel, nor for
    /// another lock that is held for long.
    seen: Arc<Mutex<Seen>>,
}

impl Since {
    fn is_lately(&self) -> bool {
        matches!(self, Self::Lately(_))
    }
}

/// What readings of the store have seen.
#[derive(Debug, Default)]
struct Seen {
    /// The damage that was seen in all readings since some time.
    damage: Sightings,
    /// When a reading began that showed nothing new, since some of it could not be read.
    held_back: Option<Instant>,
    /// When the first of such readings began, if there was none that showed something.
    held_since: Option<Instant>,
}

/// What is wrong, and how, and since when that was seen.
type Sightings = BTreeMap<(String, String), Since>;

/// Since when damage was seen.
#[derive(Debug, Clone, Copy)]
enum Since {
    /// It may be but the middle of a change.
    Lately(Instant),
    /// It is certain, and was told.
    Long,
}

fn key(damage: &Damage) -> (String, String) {
    (damage.what.clone(), damage.why.clone())
}

/// How much of the store is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reading {
    /// What is another than before, as far as times tell.
    Changes,
    /// Everything.
    Whole,
    /// Everything, which is another state even if it is the same.
    Anew,
}

/// One state of the store, with what the folders look up in it.
#[derive(Debug)]
struct Snapshot {
    state: State,
    /// When the reading began, and how much was read.
    begun: Instant,
    reading: Reading,
    /// Whether there is damage that is not certain.
    is_in_doubt: bool,
    /// Damage that is certain, as objects that suffer from it tell it: `what: why`.
    certain: BTreeSet<String>,
    generation: Generation,
    /// The states of the stores above, which have names that were taken away here.
    above: Vec<State>,
    /// As that of the store.
    arrangement: u64,
    /// When an engine used the store last.
    used: Timestamp,
    /// The references that are not shown, as a store above has them.
    hidden: Vec<(Reference, ImageId)>,
    /// The containers that are listed by their IDs, as a store above has their names.
    hidden_containers: Vec<(Name, ContainerId)>,
    /// The time that folders show whose names come and go: another one in each state, since the kernel keeps a listing
    /// until its directory has another time.
    time: Timestamp,
    /// Whether no change can have gone unseen since the generation was taken.
    is_settled: bool,
    catalogue: Catalogue,
    tags: NameTree,
    digests: NameTree,
    merged: NameTree,
    containers: BTreeMap<Name, ContainerId>,
    diffs: BTreeMap<DiffId, ChainId>,
    users: BTreeMap<ChainId, Vec<ImageId>>,
    /// Unions of image layers that were looked up, by the top one; held for single look-ups and changes only.
    unions: Mutex<LruCache<ChainId, Entry>>,
}

impl View {
    /// The tree of some stores. Of names that several have, that of the one used last is shown; what the others have by
    /// that name is found by its ID.
    ///
    /// # Errors
    /// Where nothing of a store could be read.
    pub fn new(stores: impl IntoIterator<Item = Box<dyn Store>>, options: &Options) -> Result<Self> {
        let members = Members::new(stores, options)?;
        Ok(Self { members: Arc::new(members), told: Arc::default() })
    }

    /// Reads the stores again that changed, as each look-up in a folder does whose names come and go.
    #[must_use]
    pub fn refresh(&self) -> State {
        State::of_all(self.members.current().iter().map(|member| member.current().state))
    }

    /// Reads the whole of the stores again, also what has the times that it had; `None` where one cannot be read for the
    /// moment, and is shown as it was.
    #[must_use]
    pub fn read_again(&self) -> Option<State> {
        let asked = Instant::now();
        let members = self.members.current();
        let read: Vec<_> = members.iter().map(|member| member.read_since(asked, Reading::Anew)).collect();
        let is_read = read.iter().all(|read| read.begun >= asked);
        is_read.then(|| State::of_all(read.iter().map(|read| read.state)))
    }

    /// Whether a store is to be read again soon, though nobody asks: there is damage that is not certain.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        self.members.known().iter().any(|member| member.seen.lock().damage.values().any(Since::is_lately))
    }

    /// Has changes of the stores heard of, also in directories that they have got since.
    pub fn watch(&self, watch: &mut Watch) {
        let members = self.members.known();
        watch.renew(members.iter().map(|member| member.store.as_ref()));
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> Node {
        Entry::folder(RootDir(self.clone())).node
    }

    /// What a path stands for; links on the way are not followed.
    ///
    /// # Errors
    /// Where a part of it could not be looked up.
    pub fn resolve(&self, path: &TreePath) -> Result<Option<Node>> {
        let mut node = self.root();
        for name in path.components().filter_map(Name::new) {
            match node.lookup(&name)? {
                Some(next) => node = next.node,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    /// What was wrong with the stores when they were last read.
    #[must_use]
    pub fn damage(&self) -> Vec<Damage> {
        self.members.known().iter().flat_map(|member| member.known().catalogue.damage.clone()).collect()
    }

    /// What was remarkable about the stores when they were last read, though nothing is wrong.
    #[must_use]
    pub fn remarks(&self) -> Vec<Damage> {
        self.members.known().iter().flat_map(|member| member.known().catalogue.remarks.clone()).collect()
    }

    /// How often a store was read again because it changed.
    #[must_use]
    pub fn rescans(&self) -> u64 {
        self.members.known().iter().map(|member| member.rescans.load(Ordering::Relaxed)).sum()
    }

    /// Has `status` show the figures of who serves this view; the first one stays.
    pub fn served_by(&self, service: Weak<dyn Service>) {
        self.told.served_by(service);
    }

    /// Whether files of a store have `SELinux` labels.
    #[must_use]
    pub fn is_labelled(&self) -> bool {
        self.members.known().iter().any(|member| member.store.is_labelled())
    }

    /// What the file system below the store that was used last says of its space.
    ///
    /// # Errors
    /// Where it could not be asked.
    pub fn space(&self) -> Result<Space> {
        let members = self.members.known();
        let last = members.first().ok_or_else(|| Error::Stale { what: "the store".to_owned() })?;
        last.store.space()
    }
}

impl State {
    /// Another number after each change of any.
    fn of_all(states: impl Iterator<Item = Self>) -> Self {
        Self(states.map(|state| state.0).fold(0, u64::saturating_add))
    }
}

impl Shared {
    fn new(
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
    fn below(&self, above: Vec<Arc<Self>>) -> Self {
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
    fn current(&self) -> Arc<Snapshot> {
        let asked = Instant::now();
        let known = self.known();
        if self.is_current(&known) { known } else { self.read_since(asked, Reading::Changes) }
    }

    fn known(&self) -> Arc<Snapshot> {
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
    fn read_since(&self, asked: Instant, reading: Reading) -> Arc<Snapshot> {
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
    fn answer<T>(&self, make: impl Fn(&Snapshot) -> Result<T>) -> Result<T> {
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

    /// What a layer's directory holds; of one that has none its damage is to be told.
    fn layering(&self, id: Option<&CacheId>) -> Layering {
        id.map_or(Layering::Deltas, |id| self.store.layering(id))
    }

    /// As [`Shared::answer`], of many objects: one of them that is in doubt does not keep the others from being seen, but has
    /// them waited for. An engine may leave the name of an image that it removes, until it is told to load that again.
    ///
    /// # Errors
    /// As [`Shared::answer`].
    fn answer_patiently<T>(&self, make: impl Fn(&Snapshot) -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        loop {
            match self.answer(&make) {
                Err(Error::Stale { .. }) if begun.elapsed() < LISTING_PATIENCE => std::thread::sleep(PAUSE),
                answer => return answer,
            }
        }
    }

    /// An answer that says of what may be whole in a moment that it is gone, and not that it is damaged.
    fn unless_doubtful<T>(&self, answer: Result<T>) -> Result<T> {
        match answer {
            Err(Error::Damaged { what, why }) if self.known().is_doubtful(&why) => Err(Error::Stale { what }),
            answer => answer,
        }
    }

    /// Opens the directory of a layer that is not damaged.
    fn layer(&self, record: &LayerRecord) -> Result<Layer> {
        let id = directory_of(record)?;
        let layer = self.owned(self.store.layer(id)?, id)?;
        Ok(placed(record, layer))
    }

    /// A layer's directory of this name with the owners that are to be shown.
    fn owned(&self, layer: Layer, id: &CacheId) -> Result<Layer> {
        let owners = match self.options.owners {
            Owners::Stored => None,
            Owners::Container => self.store.owners(id)?,
        };
        Ok(owners.into_iter().fold(layer, Layer::owned))
    }

    /// The root of the union of these layers, top first, under a container's own where there are any.
    fn union_root(&self, own: Option<&Own>, records: Vec<Arc<LayerRecord>>) -> Result<Entry> {
        let mut layers = Vec::new();
        if let Some(own) = own {
            let stored = self.store.container_layers(&own.changes, own.init.as_ref())?;
            let seen = stored.into_iter().map(|layer| self.own_layer(layer, &own.changes, own));
            layers = seen.collect::<Result<_>>()?;
        }
        let shift = own.and_then(|own| own.owners.as_ref()).filter(|_| self.options.owners == Owners::Stored);
        // fuse-overlayfs shifts the container's own layer too, whose numbers are those of the others then.
        let shift = shift.filter(|_| layers.first().is_some_and(|own| own.whiteouts().is_of_kernel()));
        for record in &records {
            let layer = self.layer(record)?;
            layers.push(shift.into_iter().fold(layer, |layer, owners| layer.shifted(owners)));
        }
        let union = Union::new(layers.into_iter().map(Arc::new).collect::<Vec<_>>());
        UnionNode::root(union, Footing::new(&self.store, records))
    }

    /// The root of the union of a layer and all below it. Whoever types a path comes through here with each.
    fn image_union(&self, snapshot: &Snapshot, top: &ChainId) -> Result<Entry> {
        let known = snapshot.unions.lock().get(top).cloned();
        if let Some(known) = known
            && known.node.check().is_ok()
        {
            return Ok(known);
        }
        let directory = snapshot.catalogue.layers.get(top).and_then(|record| record.cache_id.as_ref());
        let ground = snapshot.catalogue.ground(top, self.layering(directory))?;
        let found = self.union_root(None, ground)?;
        snapshot.unions.lock().put(*top, found.clone());
        Ok(found)
    }

    /// The root of what one image layer changes upon the one below it.
    fn layer_root(self: &Arc<Self>, record: &Arc<LayerRecord>, below: Option<&Arc<LayerRecord>>) -> Result<Entry> {
        let mut records = vec![Arc::clone(record)];
        let layer = match record.parent {
            Some(parent) if self.layering(record.cache_id.as_ref()) != Layering::Deltas => {
                let below = below.filter(|below| below.chain == parent);
                let missing = || Error::damaged(format!("layer {parent}"), "the store does not list it");
                let below = below.ok_or_else(missing)?;
                records.push(Arc::clone(below));
                self.store.changes(directory_of(record)?, Some(directory_of(below)?), Life::Lasting)?
            }
            Some(_) | None => self.store.changes(directory_of(record)?, None, Life::Lasting)?,
        };
        let layer = match self.store.tar_names(record) {
            Some(names) => layer.listed(self.store.layer(directory_of(record)?)?.into_tree(), names),
            None => layer,
        };
        let layer = self.owned(layer, directory_of(record)?)?;
        let stacked = Stacked {
            shared: Arc::clone(self),
            own: None,
            top: Some(record.chain),
            has_below: record.parent.is_some(),
        };
        LayerNode::root(placed(record, layer), self.options.whiteouts, Footing::new(&self.store, records), stacked)
    }

    /// A layer of a container's own with the owners that are to be shown.
    fn own_layer(&self, layer: Layer, id: &CacheId, own: &Own) -> Result<Layer> {
        let layer = self.owned(layer, id)?;
        let is_outside = self.options.owners == Owners::Container && layer.whiteouts().is_of_kernel();
        Ok(own.owners.iter().filter(|_| is_outside).fold(layer, |layer, owners| layer.owned(Arc::clone(owners))))
    }

    /// The root of what a container's topmost own layer changes upon the one below it, which is another own one or that of
    /// an image.
    fn own_root(self: &Arc<Self>, own: Own, below: Option<&CacheId>, top: Option<ChainId>) -> Result<Entry> {
        let id = &own.changes;
        let layer = self.own_layer(self.store.changes(id, below, Life::Changing)?.changing(), id, &own)?;
        let has_below = own.init.is_some() || top.is_some();
        let stacked = Stacked { shared: Arc::clone(self), own: Some(own), top, has_below };
        LayerNode::root(layer, self.options.whiteouts, Footing::new(&self.store, Vec::new()), stacked)
    }
}

/// What a container has of its own.
#[derive(Debug, Clone)]
struct Own {
    changes: CacheId,
    init: Option<CacheId>,
    /// As [`crate::store::Container::owners`].
    owners: Option<Arc<OwnerMap>>,
}

/// A layer upon all below it.
#[derive(Debug)]
struct Stacked {
    shared: Arc<Shared>,
    /// Of a container.
    own: Option<Own>,
    /// The top layer of an image.
    top: Option<ChainId>,
    has_below: bool,
}

impl Stacked {
    fn has_below(&self) -> bool {
        self.has_below
    }

    /// The root of their union, as the store is.
    fn root(&self) -> Result<Entry> {
        let snapshot = self.shared.known();
        match (&self.own, &self.top) {
            (None, Some(top)) => self.shared.image_union(&snapshot, top),
            (own, top) => {
                let layering = self.shared.layering(own.as_ref().map(|own| &own.changes));
                let records = top.map_or(Ok(Vec::new()), |top| snapshot.catalogue.ground(&top, layering))?;
                self.shared.union_root(own.as_ref(), layering.of_container(records))
            }
        }
    }
}

/// The name of the directory of a layer that is not damaged.
fn directory_of(record: &LayerRecord) -> Result<&CacheId> {
    match (&record.damage, &record.cache_id) {
        (None, Some(id)) => Ok(id),
        (Some(why), _) => Err(Error::damaged(format!("layer {}", record.chain), why.clone())),
        (None, None) => Err(Error::damaged(format!("layer {}", record.chain), "it has no directory")),
    }
}

/// A layer that is the one in the directory that was found when the store was read, and in no other.
fn placed(record: &LayerRecord, layer: Layer) -> Layer {
    record.root.into_iter().fold(layer, Layer::within)
}

/// What a listing shows of something that may be damaged: nothing, then, since the files beside it say what is wrong.
///
/// # Errors
/// All others: what cannot be read for the moment must not be missing from a listing that the kernel keeps.
fn undamaged<T>(node: Result<T>) -> Result<Option<T>> {
    match node {
        Ok(node) => Ok(Some(node)),
        Err(Error::Damaged { .. }) => Ok(None),
        Err(error) => Err(error),
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

impl Snapshot {
    /// Whether something that is damaged for this reason may be whole in a moment.
    fn is_doubtful(&self, why: &str) -> bool {
        self.is_in_doubt && !self.certain.contains(why)
    }
}

/// Reads a store.
#[derive(Debug, Clone, Copy)]
struct Reader<'a> {
    store: &'a dyn Store,
    above: &'a [Arc<Shared>],
    arrangement: u64,
    latest: &'a Mutex<Timestamp>,
}

impl Reader<'_> {
    /// Reads the store, and again after a pause where there is new damage but the store changed meanwhile: a layer may be
    /// looked for before it is listed, and its image after.
    fn read_calmly(self, known: Option<&Snapshot>, reading: Reading, seen: &Sightings) -> Result<Snapshot> {
        let mut readings = 1_usize;
        loop {
            let fresh = self.read(known, reading)?;
            let has_stood_still = fresh.is_settled && self.store.generation()? == fresh.generation;
            let is_new = |damage: &Damage| !seen.contains_key(&key(damage));
            if has_stood_still || readings >= READINGS_MAX || !fresh.catalogue.told().any(is_new) {
                return Ok(fresh);
            }
            readings = readings.saturating_add(1);
            std::thread::sleep(PAUSE);
        }
    }

    fn read(self, known: Option<&Snapshot>, reading: Reading) -> Result<Snapshot> {
        let begun = Instant::now();
        // Taken first: what changes while the catalogue is read shows as another generation the next time.
        let generation = self.store.generation()?;
        let used = self.store.used()?;
        let is_settled = !generation.is_fresh();
        let unchanged = known.filter(|_| reading == Reading::Changes);
        let mut catalogue = self.store.catalogue(unchanged.map(|known| &known.catalogue))?;
        let above: Vec<_> = self.above.iter().map(|above| above.current()).collect();
        let hidden = above.iter().flat_map(|above| hide(&mut catalogue, above)).collect();
        let taken = above.iter().flat_map(|above| above.containers.keys()).collect();
        let (containers, hidden_containers) = by_container::names(&catalogue, &taken);
        let mut diffs = BTreeMap::new();
        for (chain, record) in &catalogue.layers {
            if let Some(diff) = record.diff {
                // Of several chains with one diff ID the content is the same; a sound one is preferred.
                let sound = record.damage.is_none();
                diffs
                    .entry(diff)
                    .and_modify(|known| {
                        if sound {
                            *known = *chain
                        }
                    })
                    .or_insert(*chain);
            }
        }
        let mut users: BTreeMap<ChainId, Vec<ImageId>> = BTreeMap::new();
        for image in catalogue.images.values() {
            for layer in &image.layers {
                users.entry(layer.chain).or_default().push(image.id);
            }
        }
        // A container is listed by its ID where a store above has its name.
        let same = known.filter(|_| reading != Reading::Anew);
        let same = same.filter(|known| known.catalogue.says_as(&catalogue) && known.containers == containers);
        let (time, state) = match (same, known) {
            (Some(same), _) => (same.time, same.state),
            (None, known) => {
                (self.time(&catalogue, known), known.map_or(State(0), |known| State(known.state.0.saturating_add(1))))
            }
        };
        Ok(Snapshot {
            state,
            begun,
            reading,
            is_in_doubt: false,
            certain: catalogue.told().map(ToString::to_string).collect(),
            time,
            tags: NameTree::tags(&catalogue),
            digests: NameTree::digests(&catalogue),
            merged: NameTree::merged(&catalogue),
            containers,
            diffs,
            users,
            unions: Mutex::new(LruCache::new(UNIONS_MAX)),
            generation,
            above: above.iter().map(|above| above.state).collect(),
            arrangement: self.arrangement,
            used,
            hidden,
            hidden_containers,
            is_settled,
            catalogue,
        })
    }

    /// The time of a new state, later than that of any other of the view; of the first one as the store tells it.
    fn time(self, catalogue: &Catalogue, known: Option<&Snapshot>) -> Timestamp {
        let mut latest = self.latest.lock();
        let time = known.map_or(catalogue.changed, |_| catalogue.changed.max(latest.next()));
        *latest = time.max(*latest);
        time
    }
}

/// Takes from a catalogue the references that a store above has, and images that are sound there and have no other
/// reference here. Answers the references to other images than above.
fn hide(catalogue: &mut Catalogue, above: &Snapshot) -> Vec<(Reference, ImageId)> {
    let is_above = |reference: &Reference| above.catalogue.references.contains_key(reference);
    let all = std::mem::take(&mut catalogue.references);
    let (hidden, shown): (BTreeMap<_, _>, BTreeMap<_, _>) = all.into_iter().partition(|(name, _)| is_above(name));
    catalogue.references = shown;
    let named: BTreeSet<ImageId> = catalogue.references.values().copied().collect();
    let is_sound = |id: &ImageId| above.catalogue.images.get(id).is_some_and(|image| image.is_whole());
    catalogue.images.retain(|id, _| named.contains(id) || !is_sound(id));
    for (id, image) in &mut catalogue.images {
        if image.standing == Standing::Referenced && !named.contains(id) {
            Arc::make_mut(image).standing = Standing::Dangling;
        }
    }
    hidden.into_iter().filter(|(name, id)| above.catalogue.references.get(name) != Some(id)).collect()
}

#[derive(Debug)]
struct RootDir(View);

impl RootDir {
    fn folder(&self, folder: Folder) -> Entry {
        match self.0.members.known().as_ref() {
            [only] => folder(only),
            _ => Joined::of(&self.0.members, folder),
        }
    }

    fn status(&self) -> Entry {
        status::status(&self.0.members.current(), &self.0.told)
    }
}

impl Section for RootDir {
    fn identity(&self) -> Vec<u8> {
        Vec::new()
    }

    fn time(&self) -> Timestamp {
        self.0.members.current().iter().map(|member| member.current().time).max().unwrap_or_default()
    }

    fn changes(&self) -> bool {
        false
    }

    fn lookup(&self, name: &Name) -> Result<Option<Entry>> {
        if name.as_bytes() == STATUS.as_bytes() {
            return Ok(Some(self.status()));
        }
        let folder = FOLDERS.iter().find(|(known, _)| known.as_bytes() == name.as_bytes());
        Ok(folder.map(|(_, make)| self.folder(*make)))
    }

    fn list(&self) -> Result<Vec<(Name, Entry)>> {
        let folders = FOLDERS.iter().map(|(name, make)| (*name, self.folder(*make)));
        let all = folders.chain([(STATUS, self.status())]);
        Ok(all.map(|(name, entry)| (Name::escaped(name.as_bytes()), entry)).collect())
    }
}

/// The full ID that a user means by a name that is not listed: with `sha256:` in front, or the first digits of one, at
/// least 4, where no other begins so.
fn meant_id(typed: &Name, ids: impl Iterator<Item = String>) -> Option<String> {
    const SHORTEST: usize = 4;
    let typed = std::str::from_utf8(typed.as_bytes()).ok()?;
    let digits = typed.strip_prefix("sha256:").unwrap_or(typed);
    let are_digits = digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if digits.len() < SHORTEST || !are_digits {
        return None;
    }
    let mut fitting = ids.filter(|id| id.starts_with(digits));
    let id = fitting.next()?;
    fitting.next().is_none().then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_ids_of_four_digits_that_fit_one() {
        let ids = ["abcd1", "abcd2", "abce1"].map(|id| format!("{id}{}", "0".repeat(59)));
        let meant = |typed: &str| meant_id(&Name::escaped(typed.as_bytes()), ids.iter().cloned());
        assert_eq!(meant("abce").as_deref(), Some(ids[2].as_str()));
        assert_eq!(meant("sha256:abcd2").as_deref(), Some(ids[1].as_str()));
        assert_eq!(meant(&format!("sha256:{}", ids[0])).as_deref(), Some(ids[0].as_str()));
        for none in ["abcd", "abc", "ABCE", "abcf", "", "sha256:", "xabce"] {
            assert_eq!(meant(none), None, "{none}");
        }
    }
}
