//! The tree that users see, as data: no inode numbers, no handles, no kernel.
//!
//! A [`View`] arranges one store. Its folders are [`Section`]s, a file here for each kind; a top-level folder is a
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
mod merged;
mod names;
mod node;
mod status;
mod text;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use lru::LruCache;
use parking_lot::{Mutex, RwLock};

use crate::digest::{CacheId, ChainId, DiffId, ImageId};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::meta::Timestamp;
use crate::name::{Name, TreePath};
use crate::root::Space;
use crate::store::{Catalogue, Damage, Generation, LayerRecord, Store};
use crate::union::Union;

use footing::Footing;
pub use in_layer::{Form, LayerNode};
pub use in_union::UnionNode;
use names::NameTree;
pub use node::{Entry, Identity, Link, Node};
pub use status::{Force, Measure, Service};
pub use text::Text;

/// How many unions are remembered between look-ups.
const UNIONS_MAX: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// How the tree is to be shown.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The form of deletions in layers' trees.
    pub whiteouts: Form,
    /// Where the store is; for people.
    pub source: PathBuf,
    /// How the process that reads the store is confined; none where that is nobody's business.
    pub confinement: Vec<Measure>,
}

/// The tree of one store.
#[derive(Debug, Clone)]
pub struct View {
    shared: Arc<Shared>,
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
}

type Folder = fn(&Arc<Shared>) -> Entry;

/// The top-level folders and files.
const FOLDERS: &[(&str, Folder)] = &[
    ("by-tag", by_image::by_tag),
    ("by-digest", by_image::by_digest),
    ("by-id", by_image::by_id),
    ("by-chain", by_layer::by_chain),
    ("by-diff", by_layer::by_diff),
    ("by-container", by_container::by_container),
    ("merged", merged::merged),
    ("status", status::status),
];

/// What all folders of a view share.
#[derive(Debug)]
struct Shared {
    store: Arc<dyn Store>,
    options: Options,
    /// Guards the newest snapshot; held only to copy or replace it.
    snapshot: RwLock<Arc<Snapshot>>,
    /// How often the store was read again.
    rescans: AtomicU64,
    told: status::Told,
}

/// One state of the store, with what the folders look up in it.
#[derive(Debug)]
struct Snapshot {
    generation: Generation,
    /// The time that folders show whose names come and go: another one in each state, since the kernel keeps a listing
    /// until its directory has another time.
    time: Timestamp,
    /// Whether no change can have gone unseen since the generation was taken.
    is_settled: bool,
    catalogue: Catalogue,
    tags: NameTree,
    digests: NameTree,
    merged: NameTree,
    containers: BTreeMap<Name, crate::digest::ContainerId>,
    diffs: BTreeMap<DiffId, ChainId>,
    users: BTreeMap<ChainId, Vec<ImageId>>,
    /// Unions of image layers that were looked up, by the top one; held for single look-ups and changes only.
    unions: Mutex<LruCache<ChainId, Entry>>,
}

impl View {
    /// The tree of a store.
    ///
    /// # Errors
    /// Where nothing of the store could be read.
    pub fn new(store: Box<dyn Store>, options: Options) -> Result<Self> {
        let store: Arc<dyn Store> = store.into();
        let snapshot = RwLock::new(Arc::new(Snapshot::read(store.as_ref(), None)?));
        let (rescans, told) = (AtomicU64::new(0), status::Told::default());
        Ok(Self { shared: Arc::new(Shared { store, options, snapshot, rescans, told }) })
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> Node {
        Entry::folder(RootDir(Arc::clone(&self.shared))).node
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

    /// Reads the store again, whether or not it seems to have changed.
    ///
    /// # Errors
    /// Where it cannot be read; it is then shown as it was.
    pub fn rescan(&self) -> Result<()> {
        let known = Arc::clone(&self.shared.snapshot.read());
        let fresh = Snapshot::read(self.shared.store.as_ref(), Some(&known))?;
        *self.shared.snapshot.write() = Arc::new(fresh);
        Ok(())
    }

    /// What was wrong with the store when it was last read.
    #[must_use]
    pub fn damage(&self) -> Vec<Damage> {
        self.shared.snapshot.read().catalogue.damage.clone()
    }

    /// How often the store was read again because it changed.
    #[must_use]
    pub fn rescans(&self) -> u64 {
        self.shared.rescans.load(Ordering::Relaxed)
    }

    /// Has `status` show the figures of who serves this view; the first one stays.
    pub fn served_by(&self, service: Weak<dyn Service>) {
        self.shared.told.served_by(service);
    }

    /// Whether files of the store have `SELinux` labels.
    #[must_use]
    pub fn is_labelled(&self) -> bool {
        self.shared.store.is_labelled()
    }

    /// What the file system below the store says of its space.
    ///
    /// # Errors
    /// Where it could not be asked.
    pub fn space(&self) -> Result<Space> {
        self.shared.store.space()
    }
}

impl Shared {
    /// The state of the store as it is, read again if it changed. A store that cannot be read for the moment is shown
    /// as it was.
    fn current(&self) -> Arc<Snapshot> {
        let known = Arc::clone(&self.snapshot.read());
        match self.store.generation() {
            Ok(generation) if generation == known.generation && known.is_settled => known,
            Ok(_) => match Snapshot::read(self.store.as_ref(), Some(&known)) {
                Ok(fresh) => {
                    log::debug!("the store changed and was read again");
                    let damage = &fresh.catalogue.damage;
                    for new in damage.iter().filter(|damage| !known.catalogue.damage.contains(damage)) {
                        log::warn!("{}: {}", new.what, new.why);
                    }
                    let fresh = Arc::new(fresh);
                    self.rescans.fetch_add(1, Ordering::Relaxed);
                    *self.snapshot.write() = Arc::clone(&fresh);
                    fresh
                }
                Err(error) => {
                    log::warn!("the store changed but cannot be read, so it is shown as it was: {error}");
                    known
                }
            },
            Err(error) => {
                log::warn!("the store is shown as it was: {error}");
                known
            }
        }
    }

    /// Opens the directory of a layer that is not damaged.
    fn layer(&self, record: &LayerRecord) -> Result<Layer> {
        match (&record.damage, &record.cache_id) {
            (None, Some(id)) => self.store.layer(id),
            (Some(why), _) => Err(Error::damaged(format!("layer {}", record.chain), why.clone())),
            (None, None) => Err(Error::damaged(format!("layer {}", record.chain), "it has no directory")),
        }
    }

    /// The root of the union of these layers, top first, under a container's own where there are any.
    fn union_root(&self, own: Vec<Arc<Layer>>, records: Vec<Arc<LayerRecord>>) -> Result<Entry> {
        let below = records.iter().map(|record| self.layer(record).map(Arc::new)).collect::<Result<Vec<_>>>()?;
        let union = Union::new(own.into_iter().chain(below).collect::<Vec<_>>());
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
        let found = self.union_root(Vec::new(), snapshot.catalogue.stack(top)?)?;
        snapshot.unions.lock().put(*top, found.clone());
        Ok(found)
    }

    /// The root of one image layer's own tree.
    fn layer_root(&self, record: &Arc<LayerRecord>) -> Result<Entry> {
        let footing = Footing::new(&self.store, vec![Arc::clone(record)]);
        LayerNode::root(self.layer(record)?, self.options.whiteouts, footing)
    }

    /// The root of a container's own layer.
    fn own_root(&self, id: &CacheId) -> Result<Entry> {
        let layer = self.store.layer(id)?.changing();
        LayerNode::root(layer, self.options.whiteouts, Footing::new(&self.store, Vec::new()))
    }
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

impl Snapshot {
    fn read(store: &dyn Store, known: Option<&Self>) -> Result<Self> {
        // Taken first: what changes while the catalogue is read shows as another generation the next time.
        let generation = store.generation()?;
        let is_settled = !generation.is_fresh();
        let catalogue = store.catalogue(known.map(|known| &known.catalogue))?;
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
        let time = match known {
            Some(known) if known.generation == generation => known.time,
            Some(known) => catalogue.changed.max(known.time.next()),
            None => catalogue.changed,
        };
        Ok(Self {
            time,
            tags: NameTree::tags(&catalogue),
            digests: NameTree::digests(&catalogue),
            merged: NameTree::merged(&catalogue),
            containers: by_container::names(&catalogue),
            diffs,
            users,
            unions: Mutex::new(LruCache::new(UNIONS_MAX)),
            generation,
            is_settled,
            catalogue,
        })
    }
}

#[derive(Debug)]
struct RootDir(Arc<Shared>);

impl Section for RootDir {
    fn identity(&self) -> Vec<u8> {
        Vec::new()
    }

    fn time(&self) -> Timestamp {
        self.0.current().time
    }

    fn changes(&self) -> bool {
        false
    }

    fn lookup(&self, name: &Name) -> Result<Option<Entry>> {
        let folder = FOLDERS.iter().find(|(known, _)| known.as_bytes() == name.as_bytes());
        Ok(folder.map(|(_, make)| make(&self.0)))
    }

    fn list(&self) -> Result<Vec<(Name, Entry)>> {
        Ok(FOLDERS.iter().map(|(name, make)| (Name::escaped(name.as_bytes()), make(&self.0))).collect())
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
