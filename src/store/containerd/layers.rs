//! From chain IDs to snapshots: of each layer one that is whole, wherever it is.
//!
//! A snapshot's key in its namespace is the chain ID of the layer that was unpacked there. Namespaces share none, so a
//! layer may be stored several times, and of equal content whichever is sound will do.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use super::records::{Place, Records, SnapshotRecord};
use super::snapshotter::{Kind, Snapshot, Snapshots, Snapshotter};
use crate::digest::{CacheId, ChainId, DiffId};
use crate::error::Error;
use crate::error::Result;
use crate::meta::Meta;
use crate::name::TreePath;
use crate::store::reading::{Told, in_parallel, unread};
use crate::store::{Catalogue, Damage, ImageLayer, LAYERS_MAX, LayerRecord, Layering, List, Stamp};

/// What is read of something that may be damaged.
pub(super) type Judged<T> = std::result::Result<T, Damage>;

/// All databases, as they were read one after the other.
#[derive(Debug)]
pub(super) struct Layout<'a> {
    records: &'a Records,
    meta_shown: String,
    snapshotters: Vec<(&'a Snapshotter, Judged<Snapshots>)>,
}

/// A snapshot that both databases know.
#[derive(Debug)]
pub(super) struct Found<'a> {
    pub(super) id: CacheId,
    pub(super) kind: Kind,
    /// The key of the one below, in the same namespace.
    pub(super) parent: Option<&'a str>,
    pub(super) snapshotter: &'a Snapshotter,
    name: &'a str,
    size_bytes: Option<u64>,
}

/// What is known of the snapshots that were there, by their directories' names.
pub(super) type Keys = HashMap<CacheId, Key>;

/// Where a snapshot is listed.
#[derive(Debug)]
pub(super) struct Key {
    /// In its snapshotter's database.
    pub(super) name: String,
    /// The directory of the one below.
    pub(super) below: Option<CacheId>,
}

impl<'a> Layout<'a> {
    /// Reads the databases of the snapshotters, after that of the namespaces: a snapshot is there before a namespace
    /// has it.
    ///
    /// # Errors
    /// Transient ones.
    pub(super) fn read(
        records: &'a Records,
        meta_shown: String,
        snapshotters: &'a [Snapshotter],
        catalogue: &mut Catalogue,
    ) -> Result<Self> {
        let mut read = Vec::new();
        for snapshotter in snapshotters {
            let mut told = |error| {
                let damage = Damage::from_error(&snapshotter.root, snapshotter.live.path(), error)?;
                unread(catalogue, List::Layers, damage.clone());
                Ok::<_, Error>(damage)
            };
            read.push((
                snapshotter,
                match snapshotter.snapshots() {
                    Ok(mut snapshots) => {
                        snapshots.wrong.take().map(&mut told).transpose()?;
                        Ok(snapshots)
                    }
                    // It makes its database with the first snapshot.
                    Err(_) if !records.snapshots.keys().any(|place| *place.snapshotter == *snapshotter.name) => {
                        Ok(Snapshots::default())
                    }
                    Err(error) => Err(told(error)?),
                },
            ));
        }
        Ok(Self { records, meta_shown, snapshotters: read })
    }

    /// The snapshot of a key; `None` where the namespace has none.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn find(&self, place: &Place, key: &str) -> Judged<Option<Found<'a>>> {
        let Some(record) = self.records.snapshots.get(place).and_then(|keys| keys.get(key)) else { return Ok(None) };
        self.found(place, key, record).map(Some)
    }

    fn found(&self, place: &Place, key: &str, record: &'a SnapshotRecord) -> Judged<Found<'a>> {
        let known = self.snapshotters.iter().find(|(known, _)| *known.name == *place.snapshotter);
        let Some((snapshotter, snapshots)) = known else {
            return Err(self.wrong(place, key, "its snapshotter has no directory"));
        };
        let snapshots = snapshots.as_ref().map_err(Clone::clone)?;
        let Some(snapshot) = snapshots.by_key.get(&record.name) else {
            let why = format!("{} does not have it, by the key {:?}", snapshotter.live.shown(), record.name);
            return Err(self.wrong(place, key, &why));
        };
        self.check_parent(place, key, record, snapshot)?;
        let Some(id) = snapshotter.cache_id(snapshot.id) else {
            return Err(self.wrong(place, key, "it has no number"));
        };
        Ok(Found {
            id,
            kind: snapshot.kind,
            parent: record.parent.as_deref(),
            snapshotter,
            name: &record.name,
            size_bytes: snapshot.size_bytes,
        })
    }

    /// Both databases have to say the same of what is below: it decides which deleted files are seen.
    fn check_parent(&self, place: &Place, key: &str, record: &SnapshotRecord, snapshot: &Snapshot) -> Judged<()> {
        let parents = self.records.snapshots.get(place);
        let parent = record.parent.as_ref().map(|parent| parents.and_then(|keys| keys.get(parent)));
        match parent {
            Some(None) => Err(self.wrong(place, key, "the snapshot below is missing")),
            None if snapshot.parent.is_none() => Ok(()),
            Some(Some(below)) if snapshot.parent.as_ref() == Some(&below.name) => Ok(()),
            None | Some(Some(_)) => Err(self.wrong(place, key, "the databases differ in which snapshot is below")),
        }
    }

    /// Damage of a snapshot.
    pub(super) fn wrong(&self, place: &Place, key: &str, why: &str) -> Damage {
        let key: String = key.chars().take(200).collect();
        let what = format!(
            "{}, snapshot {key:?} of {} in the namespace {:?}",
            self.meta_shown, place.snapshotter, place.namespace
        );
        Damage::of(what, why)
    }

    /// Puts all layers into the catalogue.
    ///
    /// # Errors
    /// Transient ones.
    pub(super) fn layers<'i>(
        &self,
        images: impl Iterator<Item = &'i [ImageLayer]>,
        catalogue: &mut Catalogue,
    ) -> Result<()> {
        let named = named_layers(images);
        let mut candidates: Vec<(ChainId, &Place, &str, &SnapshotRecord)> = Vec::new();
        for (place, keys) in &self.records.snapshots {
            candidates.extend(layers_of(place, keys));
        }
        candidates.sort_by_key(|(_, place, ..)| self.rank(place));
        let read = in_parallel(&candidates, |(chain, place, key, record)| {
            self.layer(*chain, place, key, record, named.get(chain))
        });
        let mut layers: BTreeMap<ChainId, (LayerRecord, Option<Damage>)> = BTreeMap::new();
        for ((chain, ..), read) in candidates.iter().zip(read) {
            let Some((record, damage)) = read? else { continue };
            if layers.get(chain).is_none_or(|(_, known)| known.is_some() && damage.is_none()) {
                layers.insert(*chain, (record, damage));
            }
        }
        let circular = circular(&layers).into_iter().map(|chain| (chain, "the layers below it lead back to it"));
        let mixed = self.mixed(&layers).into_iter();
        let mixed = mixed.map(|chain| (chain, "the layer below it is sound as a whole tree alone"));
        for (chain, why) in circular.chain(mixed).collect::<Vec<_>>() {
            let Some((record, damage)) = layers.get_mut(&chain) else { continue };
            let found = Damage::of(format!("layer {chain}"), why);
            (record.damage, *damage) = (Some(found.to_string()), Some(found));
        }
        // A database that cannot be read is told already.
        let mut told = Told::of(catalogue);
        for (chain, (record, damage)) in layers {
            if let Some(damage) = damage {
                told.tell(damage, catalogue);
            }
            catalogue.layers.insert(chain, Arc::new(record));
        }
        Ok(())
    }

    /// All snapshots that both databases know.
    pub(super) fn keys(&self) -> Keys {
        let mut keys = Keys::new();
        for (place, snapshots) in &self.records.snapshots {
            let found = snapshots.iter().filter_map(|(key, record)| self.found(place, key, record).ok());
            for Found { id, parent, name, .. } in found {
                let below = parent.and_then(|parent| self.find(place, parent).ok().flatten());
                keys.insert(id, Key { name: name.to_owned(), below: below.map(|below| below.id) });
            }
        }
        keys
    }

    /// The sound layers whose changes lie upon a whole tree, which hides what is below it, or would not be told apart.
    fn mixed(&self, layers: &BTreeMap<ChainId, (LayerRecord, Option<Damage>)>) -> Vec<ChainId> {
        let layering = |record: &LayerRecord| {
            let known =
                self.snapshotters.iter().find(|(known, _)| record.cache_id.as_ref().is_some_and(|id| known.has(id)));
            known.map(|(known, _)| known.layering())
        };
        let is_mixed = |(record, damage): &(LayerRecord, Option<Damage>)| {
            let below = record.parent.and_then(|parent| layers.get(&parent));
            let below = below.and_then(|(below, _)| layering(below));
            damage.is_none() && layering(record) == Some(Layering::Deltas) && below == Some(Layering::Trees)
        };
        layers.iter().filter(|(_, layer)| is_mixed(layer)).map(|(chain, _)| *chain).collect()
    }

    /// The layer of an image that a snapshot lies upon, whatever is between.
    fn named_below(&self, place: &Place, parent: Option<&str>) -> Option<ChainId> {
        let keys = self.records.snapshots.get(place)?;
        let below = |key: &&str| keys.get(*key).and_then(|record| record.parent.as_deref());
        let mut way = std::iter::successors(parent, below).take(LAYERS_MAX);
        way.find(|key| is_chain(key)).and_then(|key| key.parse().ok())
    }

    /// In which order places are preferred.
    fn rank(&self, place: &Place) -> usize {
        self.snapshotters.iter().position(|(known, _)| *known.name == *place.snapshotter).unwrap_or(usize::MAX)
    }

    /// A layer's record, and what is wrong with it; `None` where the key is of something else.
    ///
    /// # Errors
    /// Transient ones.
    fn layer(
        &self,
        chain: ChainId,
        place: &Place,
        key: &str,
        snapshot: &'a SnapshotRecord,
        named: Option<&(ImageLayer, Option<ChainId>)>,
    ) -> Result<Option<(LayerRecord, Option<Damage>)>> {
        let mut record = LayerRecord {
            chain,
            diff: named.and_then(|(layer, _)| layer.diff),
            parent: None,
            cache_id: None,
            directory: None,
            root: None,
            size_bytes: OnceLock::new(),
            damage: None,
            stamp: Stamp::default(),
        };
        let damage = match self.found(place, key, snapshot) {
            Ok(found) if found.kind != Kind::Committed => return Ok(None),
            Ok(found) => {
                record.parent = found.parent.map(|parent| chain_of(place, parent));
                if found.parent.is_none() && is_chain(key) {
                    // A base layer's chain ID is its diff ID, whether an image says so or not.
                    record.diff = record.diff.or_else(|| DiffId::from_hex(&chain.hex()));
                }
                record.directory = found.snapshotter.directory(&found.id);
                if let Some(size_bytes) = found.size_bytes {
                    record.size_bytes = OnceLock::from(size_bytes);
                }
                let is_right = named.is_none_or(|(_, parent)| *parent == self.named_below(place, found.parent));
                let wrong = match is_right {
                    false => Some(self.wrong(place, key, "it lies upon another layer than its chain ID says")),
                    true => damage_of(found.snapshotter, &found.id)?,
                };
                record.root =
                    found.snapshotter.find(&found.id).ok().flatten().filter(Meta::is_dir).map(|meta| meta.id());
                record.cache_id = Some(found.id);
                wrong
            }
            Err(damage) => Some(damage),
        };
        record.damage = damage.as_ref().map(ToString::to_string);
        Ok(Some((record, damage)))
    }
}

/// The layers of a place, each with its key: the snapshots of chain IDs, and what lies between them.
///
/// Docker's builder makes a layer of a container, which leaves the layer with which the container began below it; a
/// container of the image sees what is in that too.
fn layers_of<'r>(
    place: &'r Place,
    keys: &'r BTreeMap<String, SnapshotRecord>,
) -> Vec<(ChainId, &'r Place, &'r str, &'r SnapshotRecord)> {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut next: Vec<&str> = keys.keys().map(String::as_str).filter(|key| is_chain(key)).collect();
    let mut layers = Vec::new();
    while let Some(key) = next.pop() {
        let Some(record) = keys.get(key).filter(|_| seen.insert(key)) else { continue };
        layers.push((chain_of(place, key), place, key, record));
        next.extend(record.parent.as_deref());
    }
    layers
}

fn is_chain(key: &str) -> bool {
    key.parse::<ChainId>().is_ok()
}

/// The chain ID that a snapshot is known by: its key, or what stands for a key that is none.
fn chain_of(place: &Place, key: &str) -> ChainId {
    let name = || ChainId::of_name(&format!("{}/{}/{key}", place.namespace, place.snapshotter));
    key.parse().unwrap_or_else(|_| name())
}

/// What is wrong with a snapshot's directory.
///
/// # Errors
/// Transient ones.
pub(super) fn damage_of(snapshotter: &Snapshotter, id: &CacheId) -> Result<Option<Damage>> {
    let wrong = snapshotter.check(id).err();
    wrong.map(|error| Damage::from_error(&snapshotter.root, &TreePath::root(), error)).transpose()
}

/// What images say of each layer, and which is below it.
fn named_layers<'i>(
    images: impl Iterator<Item = &'i [ImageLayer]>,
) -> BTreeMap<ChainId, (ImageLayer, Option<ChainId>)> {
    let mut named = BTreeMap::new();
    for layers in images {
        let mut below = None;
        for layer in layers {
            named.entry(layer.chain).or_insert_with(|| (layer.clone(), below));
            below = Some(layer.chain);
        }
    }
    named
}

/// The layers below which the way does not end. Of a layer that no image names, nothing but its key says what is below.
fn circular(layers: &BTreeMap<ChainId, (LayerRecord, Option<Damage>)>) -> Vec<ChainId> {
    // Whether the way from each ends; of what is on the way that is being walked it is not known yet.
    let mut ends: HashMap<ChainId, Option<bool>> = HashMap::with_capacity(layers.len());
    for start in layers.keys() {
        let mut way = Vec::new();
        let mut next = Some(*start);
        let does_end = loop {
            let Some(chain) = next else { break true };
            match ends.get(&chain) {
                Some(Some(does_end)) => break *does_end,
                Some(None) => break false,
                None => {}
            }
            ends.insert(chain, None);
            way.push(chain);
            next = layers.get(&chain).and_then(|(record, _)| record.parent);
        };
        ends.extend(way.into_iter().map(|chain| (chain, Some(does_end))));
    }
    layers.keys().filter(|chain| ends.get(*chain) == Some(&Some(false))).copied().collect()
}
