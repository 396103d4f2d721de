//! One state of a store, with what the folders look up in it, and how it is read.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

use super::names::NameTree;
use super::shared::{Shared, Sightings, key};
use super::{Entry, State, by_container};
use crate::digest::{ChainId, ContainerId, DiffId, ImageId};
use crate::error::Result;
use crate::meta::Timestamp;
use crate::name::Name;
use crate::reference::Reference;
use crate::store::{Catalogue, Damage, Generation, Standing, Store};

/// How many unions are remembered between look-ups.
const UNIONS_MAX: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// How often the store is read before damage is believed that may be but the middle of a change.
const READINGS_MAX: usize = 3;
/// How long a change is given to go on, longer than a file system's clock takes to tell it from the next.
pub(super) const PAUSE: Duration = Duration::from_millis(25);

/// How much of the store is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reading {
    /// What is another than before, as far as times tell.
    Changes,
    /// Everything.
    Whole,
    /// Everything, which is another state even if it is the same.
    Anew,
}

/// One state of the store, with what the folders look up in it.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) state: State,
    /// When the reading began, and how much was read.
    pub(super) begun: Instant,
    pub(super) reading: Reading,
    /// Whether there is damage that is not certain.
    pub(super) is_in_doubt: bool,
    /// Damage that is certain, as objects that suffer from it tell it: `what: why`.
    pub(super) certain: BTreeSet<String>,
    pub(super) generation: Generation,
    /// The states of the stores above, which have names that were taken away here.
    pub(super) above: Vec<State>,
    /// As that of the store.
    pub(super) arrangement: u64,
    /// When an engine used the store last.
    pub(super) used: Timestamp,
    /// The references that are not shown, as a store above has them.
    pub(super) hidden: Vec<(Reference, ImageId)>,
    /// The containers that are listed by their IDs, as a store above has their names.
    pub(super) hidden_containers: Vec<(Name, ContainerId)>,
    /// The time that folders show whose names come and go: another one in each state, since the kernel keeps a listing
    /// until its directory has another time.
    pub(super) time: Timestamp,
    /// Whether no change can have gone unseen since the generation was taken.
    pub(super) is_settled: bool,
    pub(super) catalogue: Catalogue,
    pub(super) tags: NameTree,
    pub(super) digests: NameTree,
    pub(super) merged: NameTree,
    pub(super) containers: BTreeMap<Name, ContainerId>,
    pub(super) diffs: BTreeMap<DiffId, ChainId>,
    pub(super) users: BTreeMap<ChainId, Vec<ImageId>>,
    /// Unions of image layers that were looked up, by the top one; held for single look-ups and changes only.
    pub(super) unions: Mutex<LruCache<ChainId, Entry>>,
}

impl Snapshot {
    /// Whether something that is damaged for this reason may be whole in a moment.
    pub(super) fn is_doubtful(&self, why: &str) -> bool {
        self.is_in_doubt && !self.certain.contains(why)
    }
}

/// Reads a store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) above: &'a [Arc<Shared>],
    pub(super) arrangement: u64,
    pub(super) latest: &'a Mutex<Timestamp>,
}

impl Reader<'_> {
    /// Reads the store, and again after a pause where there is new damage but the store changed meanwhile: a layer may be
    /// looked for before it is listed, and its image after.
    pub(super) fn read_calmly(self, known: Option<&Snapshot>, reading: Reading, seen: &Sightings) -> Result<Snapshot> {
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

    pub(super) fn read(self, known: Option<&Snapshot>, reading: Reading) -> Result<Snapshot> {
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
    pub(super) fn time(self, catalogue: &Catalogue, known: Option<&Snapshot>) -> Timestamp {
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
