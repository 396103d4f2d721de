//! Stores: which images, layers and containers there are, as plain data, and how a layer opens.
//!
//! [`open`] finds out what a directory holds. A store that is damaged in parts still opens: what is wrong is in the
//! [`Catalogue`], beside what is right. Nothing here merges layers or knows of the tree that users see.

mod config;
pub mod containerd;
pub mod containers_storage;
pub mod docker;
pub mod driver;
pub mod graph;
mod looks;
mod reading;
mod repositories;
mod tar_names;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use crate::digest::{CacheId, ChainId, ContainerId, DiffId, ImageId};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::layer::difference::Life;
use crate::layer::listed::NameList;
use crate::layer::owners::OwnerMap;
use crate::layer::whiteout::Prefix;
use crate::meta::{FileId, Meta, Timestamp};
use crate::name::TreePath;
use crate::reference::Reference;
use crate::root::{Root, Space};

pub use watch::Watch;

/// The most layers that are united. Docker accepts 125; kernel overlayfs 500.
pub const LAYERS_MAX: usize = 500;

/// How a store is to be opened.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The kind of store to take the source for, one of [`kinds`]; found out where `None`.
    pub kind: Option<String>,
    /// The namespace of overlayfs' private attributes; found out where `None`.
    pub prefix: Option<Prefix>,
}

type Opener = fn(Root, &Options) -> Result<Vec<Box<dyn Store>>>;

/// Every kind of store, in the order in which they are tried.
const OPENERS: &[(&str, Opener)] = &[
    ("docker", |root, options| docker::open(&root, options)),
    (graph::KIND, |root, options| graph::open(&root, options)),
    ("containerd", |root, options| containerd::open(root, options).map(Vec::from_iter)),
    ("containers-storage", |root, options| containers_storage::open(root, options).map(Vec::from_iter)),
];

/// The names of all kinds of store.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    OPENERS.iter().map(|(kind, _)| *kind)
}

/// Opens the stores at a path of the host, at least one.
///
/// # Errors
/// [`Error::NotFound`] where the directory holds no store; [`Error::Unsupported`] where it holds one that this program
/// does not read, or cannot read right; [`Error::Io`] where it could not be looked at.
pub fn open(path: &Path, options: &Options) -> Result<Vec<Box<dyn Store>>> {
    let (mut stores, mut failed) = (Vec::new(), None);
    for (kind, opener) in OPENERS {
        // What a newer Docker took over from a `graph` is in its own store.
        let is_taken_over = *kind == graph::KIND && !stores.is_empty();
        if options.kind.as_ref().map_or(!is_taken_over, |wanted| wanted == kind) {
            match opener(Root::open(path)?, options) {
                Ok(found) => stores.extend(found),
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
    }
    match failed {
        Some(error) if stores.is_empty() => return Err(error),
        Some(error) => log::warn!("not shown: {error}"),
        None if stores.is_empty() => {
            return Err(Error::NotFound { what: format!("a container store in {}", path.display()) });
        }
        None => {}
    }
    Ok(stores)
}

/// One store.
pub trait Store: Debug + Send + Sync {
    /// The kind, as [`Options::kind`] names it.
    fn kind(&self) -> &'static str;

    /// The graph driver or its like, for people.
    fn driver(&self) -> &str;

    /// That of one layer's directory.
    fn driver_of(&self, _id: &CacheId) -> &str {
        self.driver()
    }

    /// When an engine used the store last, as far as its files tell; of several in one place it says which is in use.
    ///
    /// # Errors
    /// Where the store could not be looked at.
    fn used(&self) -> Result<Timestamp> {
        Ok(self.generation()?.latest())
    }

    /// Tells that something changed: two equal generations mean an equal catalogue.
    ///
    /// # Errors
    /// Where the store could not be looked at.
    fn generation(&self) -> Result<Generation>;

    /// Calls for each directory that is to be watched: every change of the catalogue is a change to an entry of one of
    /// them. By default there are none, and then generations are compared from time to time.
    ///
    /// # Errors
    /// Where it cannot be told which directories there are.
    fn watched(&self, _each: &mut dyn FnMut(&Root, &TreePath)) -> Result<()> {
        Ok(())
    }

    /// Calls for each directory of which also the writing to its files is to be heard of, as of databases that are
    /// written in place.
    ///
    /// # Errors
    /// As [`Store::watched`].
    fn written(&self, _each: &mut dyn FnMut(&Root, &TreePath)) -> Result<()> {
        Ok(())
    }

    /// All that the store holds, and what of it is damaged. No layer's content is read. What is unchanged since a
    /// catalogue known from before is taken from there.
    ///
    /// # Errors
    /// Where nothing could be read at all.
    fn catalogue(&self, known: Option<&Catalogue>) -> Result<Catalogue>;

    /// An image's config, byte for byte.
    ///
    /// # Errors
    /// [`Error::Damaged`] where its SHA-256 is not the ID; [`Error::Stale`] where it is gone.
    fn config(&self, id: &ImageId) -> Result<Vec<u8>>;

    /// An image's manifest, byte for byte. Not every store keeps them.
    ///
    /// # Errors
    /// [`Error::Damaged`] where its SHA-256 is not its digest; [`Error::Stale`] where it is gone.
    fn manifest(&self, id: &ImageId) -> Result<Vec<u8>> {
        Err(Error::Stale { what: format!("the manifest of image {id}") })
    }

    /// A container's config, as the engine wrote it.
    ///
    /// # Errors
    /// [`Error::Stale`] where it is gone.
    fn container_config(&self, id: &ContainerId) -> Result<Vec<u8>>;

    /// Opens the layer whose directory has this name.
    ///
    /// # Errors
    /// [`Error::Damaged`] where the directory is not there.
    fn layer(&self, id: &CacheId) -> Result<Layer>;

    /// An image's index, byte for byte: the document that names its manifest among those of other platforms. Not every
    /// store keeps them.
    ///
    /// # Errors
    /// As [`Store::manifest`].
    fn index(&self, id: &ImageId) -> Result<Vec<u8>> {
        Err(Error::Stale { what: format!("the index of image {id}") })
    }

    /// Makes sure that the store tells how containers see the owners in its layers.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where it does not; [`Error::Io`].
    fn tells_owners(&self) -> Result<()> {
        Ok(())
    }

    /// How containers see the owners in a layer; `None` where as they are stored.
    ///
    /// # Errors
    /// Where it could not be looked at.
    fn owners(&self, _id: &CacheId) -> Result<Option<Arc<OwnerMap>>> {
        Ok(None)
    }

    /// What the directory of a layer holds.
    fn layering(&self, _id: &CacheId) -> Layering {
        Layering::Deltas
    }

    /// Opens what a layer changes upon the one below it, `None` for a base layer: where directories hold changes, the
    /// layer itself.
    ///
    /// # Errors
    /// As [`Store::layer`].
    fn changes(&self, id: &CacheId, _below: Option<&CacheId>, _life: Life) -> Result<Layer> {
        self.layer(id)
    }

    /// Where the names are that the tar of a layer had which is a whole tree; `None` where the store keeps none. Nothing is
    /// read before they are asked for.
    fn tar_names(&self, _layer: &LayerRecord) -> Option<Arc<dyn NameList>> {
        None
    }

    /// A container's own layers, top first, of which its tree is made together with those of its image that
    /// [`Layering::of_container`] tells.
    ///
    /// # Errors
    /// As [`Store::layer`].
    fn container_layers(&self, changes: &CacheId, init: Option<&CacheId>) -> Result<Vec<Layer>> {
        [changes].into_iter().chain(init).map(|id| Ok(self.layer(id)?.changing())).collect()
    }

    /// A layer's size in bytes as the engine counted it; `None` where the store does not tell, which is then part of
    /// the next catalogue's damage. It is read when it is first asked for: no image depends on it, and a tenth of the
    /// time of reading a store would go into it.
    ///
    /// # Errors
    /// Where it cannot be read for the moment.
    fn size_bytes(&self, layer: &LayerRecord) -> Result<Option<u64>>;

    /// Whether the store lies on a file system with `SELinux` labels.
    fn is_labelled(&self) -> bool;

    /// A state of the folders that list the layers: while it is the same, no layer has gone. Cheap enough for every
    /// request.
    ///
    /// # Errors
    /// Where the store could not be looked at.
    fn layers_generation(&self) -> Result<Generation>;

    /// Whether a layer is still listed as it was, and its directory is there. Engines strike a layer off the list
    /// before they remove what is in it.
    ///
    /// # Errors
    /// Where the store could not be looked at.
    fn stands(&self, record: &LayerRecord) -> Result<bool>;

    /// What the file system that holds the layers says of its space.
    ///
    /// # Errors
    /// Where it could not be asked.
    fn space(&self) -> Result<Space>;

    /// The directories below which everything is read that is not open yet; none for a store that has no files.
    fn footholds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// Whether each of the footholds is a private clone, from which nothing else of the host can be reached.
    fn is_private(&self) -> bool {
        true
    }

    /// Lets go of all descriptors from which more of the host can be reached than the store, as far as the system allows.
    /// What is mounted below the store later is then out of sight.
    fn let_go(&self) {}
}

/// What the directories of layers hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layering {
    /// What each layer changes upon the one below.
    Deltas,
    /// Of images' layers the whole tree, with all layers below; of containers what they change upon that.
    DeltasOnTrees,
    /// The whole tree, of containers too.
    Trees,
}

impl Layering {
    /// Of an image's layers, top first, those that are united to its tree.
    pub fn of_image<T>(self, mut top_first: Vec<T>) -> Vec<T> {
        if self != Self::Deltas {
            top_first.truncate(1);
        }
        top_first
    }

    /// Of an image's layers, top first, those that lie below a container's own in its tree.
    pub fn of_container<T>(self, mut top_first: Vec<T>) -> Vec<T> {
        match self {
            Self::Deltas => top_first,
            Self::DeltasOnTrees => {
                top_first.truncate(1);
                top_first
            }
            Self::Trees => Vec::new(),
        }
    }
}

/// Tells one state of a file or directory from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Stamp {
    inode: u64,
    modified: Timestamp,
    changed: Timestamp,
}

impl Stamp {
    /// The stamp of something that is no file: as many changes of it were seen.
    #[must_use]
    pub fn of_changes(count: u64) -> Self {
        Self { inode: count, ..Self::default() }
    }

    /// When content or attributes were last changed.
    #[must_use]
    pub fn changed(&self) -> Timestamp {
        self.changed
    }
}

impl From<&Meta> for Stamp {
    fn from(meta: &Meta) -> Self {
        Self { inode: meta.inode, modified: meta.modified, changed: meta.changed }
    }
}

/// A state of a store, to be compared with another: the stamps of the files that tell of every change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation(Vec<Stamp>);

impl Generation {
    /// The generation that these stamps tell.
    #[must_use]
    pub fn of(stamps: Vec<Stamp>) -> Self {
        Self(stamps)
    }

    /// When the last of its files was changed.
    #[must_use]
    pub fn latest(&self) -> Timestamp {
        self.0.iter().map(Stamp::changed).max().unwrap_or_default()
    }

    /// Whether another change after this could have gone unseen: file systems note times by ticks of some
    /// milliseconds, and two changes within one leave the same stamp. A time that is yet to come is that of a clock which
    /// was wrong, and tells nothing.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.is_ok_and(|now| self.is_fresh_at(now))
    }

    fn is_fresh_at(&self, now: Duration) -> bool {
        const TICK: Duration = Duration::from_millis(20);
        let changed = |stamp: &Stamp| {
            let seconds = u64::try_from(stamp.changed.seconds).unwrap_or_default();
            Duration::new(seconds, stamp.changed.nanoseconds)
        };
        let is_fresh = |changed: Duration| changed < now.saturating_add(TICK) && now < changed.saturating_add(TICK);
        self.0.iter().map(changed).any(is_fresh)
    }
}

/// What a store has a list of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum List {
    /// References.
    References,
    /// Images.
    Images,
    /// Layers.
    Layers,
    /// Containers.
    Containers,
}

/// What a store holds.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// Every image, damaged ones too.
    pub images: BTreeMap<ImageId, Arc<Image>>,
    /// What each reference names.
    pub references: BTreeMap<Reference, ImageId>,
    /// Every layer that the store lists.
    pub layers: BTreeMap<ChainId, Arc<LayerRecord>>,
    /// Every container of this store's driver.
    pub containers: BTreeMap<ContainerId, Arc<Container>>,
    /// All that is wrong.
    pub damage: Vec<Damage>,
    /// What is not shown as one might expect, though nothing is wrong with the store.
    pub remarks: Vec<Damage>,
    /// The lists that could not be read, and why. There may be more than what is here.
    pub unread: BTreeMap<List, String>,
    /// When the store was last changed, as far as its own files tell.
    pub changed: Timestamp,
    /// How many looks at the store's single files were over when this was read; counted by the store.
    pub looks: u64,
}

/// Something wrong with a store, or remarkable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file or object.
    pub what: String,
    /// What is wrong with it.
    pub why: String,
    /// The images that suffer.
    pub images: BTreeSet<ImageId>,
    /// Whether the system could not read it, which may pass; otherwise it was read, or is missing.
    pub is_unreadable: bool,
}

impl fmt::Display for Damage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.what, self.why)
    }
}

/// How an image stands among the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A reference names it.
    Referenced,
    /// No reference names it, and it is no image's parent.
    Dangling,
    /// No reference names it, but another image was built upon it.
    Intermediate,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The ID.
    pub id: ImageId,
    /// How it stands among the others.
    pub standing: Standing,
    /// The layers, bottom first.
    pub layers: Vec<ImageLayer>,
    /// The build steps, first to last; there may be fewer that made layers than there are layers.
    pub history: Vec<Step>,
    /// The size of the config in bytes.
    pub config_bytes: u64,
    /// The manifest; `None` where the store has none.
    pub manifest: Option<Kept>,
    /// The index; `None` where the store has none, or the image was not found by one.
    pub index: Option<Kept>,
    /// When the image was stored here.
    pub stored: Timestamp,
    /// Whether the config could be read and is the right one.
    pub has_config: bool,
    /// Whether all that it says of layers and build steps is here, whatever else is wrong with the image: it need not be
    /// read again while its file is the same.
    pub is_config_kept: bool,
    /// What is wrong with the image, a sentence each.
    pub damage: Vec<String>,
    /// Why its tree cannot be shown though nothing is wrong with it, a sentence each.
    pub remarks: Vec<String>,
    /// The state of the store's file that holds the config.
    pub stamp: Stamp,
}

/// A document that a store keeps of an image beside its config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The state of its file, which tells it from another of the same image.
    pub stamp: Stamp,
}

impl From<&Meta> for Kept {
    fn from(meta: &Meta) -> Self {
        Self { size_bytes: meta.size_bytes, stamp: Stamp::from(meta) }
    }
}

/// A layer as an image names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayer {
    /// The diff ID in the config, where that has any.
    pub diff: Option<DiffId>,
    /// The chain ID computed of this diff ID and those below.
    pub chain: ChainId,
}

impl ImageLayer {
    /// The layer with this diff ID upon another.
    #[must_use]
    pub fn upon(below: Option<&Self>, diff: DiffId) -> Self {
        Self { diff: Some(diff), chain: ChainId::of(below.map(|below| &below.chain), &diff) }
    }
}

/// A build step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// When, as the config says it: RFC 3339, or nothing.
    pub created: String,
    /// The command.
    pub created_by: String,
    /// Whether it made no layer.
    pub is_empty: bool,
}

/// A layer as the store lists it.
#[derive(Debug)]
pub struct LayerRecord {
    /// The chain ID.
    pub chain: ChainId,
    /// The diff ID, where it could be read.
    pub diff: Option<DiffId>,
    /// The layer below; `None` for a base layer, and where it could not be read.
    pub parent: Option<ChainId>,
    /// The name of the directory that holds it, where it could be read.
    pub cache_id: Option<CacheId>,
    /// That directory on the host.
    pub directory: Option<PathBuf>,
    /// Which directory that was, where it was one.
    pub root: Option<FileId>,
    /// The size in bytes as the engine counted it, since it was asked for by [`Store::size_bytes`].
    pub size_bytes: OnceLock<u64>,
    /// What is wrong with the layer.
    pub damage: Option<String>,
    /// The state of the store's entry for the layer.
    pub stamp: Stamp,
}

impl LayerRecord {
    /// Whether this is the directory that holds the layer.
    #[must_use]
    pub fn is_in(&self, found: &Meta) -> bool {
        found.is_dir() && self.root.is_none_or(|root| found.id() == root)
    }
}

impl PartialEq for LayerRecord {
    /// A size that was not asked for yet is no difference.
    fn eq(&self, other: &Self) -> bool {
        let Self { chain, diff, parent, cache_id, directory, root, size_bytes, damage, stamp } = self;
        let is_same_size = size_bytes.get().zip(other.size_bytes.get()).is_none_or(|(one, other)| one == other);
        let is_same_place = (cache_id, directory, root) == (&other.cache_id, &other.directory, &other.root);
        (chain, diff, parent, damage) == (&other.chain, &other.diff, &other.parent, &other.damage)
            && (is_same_place, *stamp) == (true, other.stamp)
            && is_same_size
    }
}

/// A container.
#[derive(Debug, PartialEq, Eq)]
pub struct Container {
    /// The ID.
    pub id: ContainerId,
    /// The name without the slash in front; `None` where there is none, or none that could stand in a path.
    pub name: Option<String>,
    /// The image, where it is known.
    pub image: Option<ImageId>,
    /// The directory of the writable layer.
    pub changes: Option<CacheId>,
    /// The directory of the layer that the engine put beneath it.
    pub init: Option<CacheId>,
    /// The top layer of the image; `None` for an image without layers.
    pub parent: Option<ChainId>,
    /// How the container sees owners, where the engine shifts those in the image's layers as it mounts them: they have the
    /// container's numbers then, and its own layer those outside.
    pub owners: Option<Arc<OwnerMap>>,
    /// The size of the config in bytes.
    pub config_bytes: Option<u64>,
    /// When the config was written.
    pub stored: Timestamp,
    /// What is wrong with the container, or why its tree cannot be shown otherwise, a sentence each.
    pub damage: Vec<String>,
}

impl Container {
    /// A container of which nothing else is known yet.
    #[must_use]
    pub fn of(id: ContainerId) -> Self {
        Self {
            id,
            name: None,
            image: None,
            changes: None,
            init: None,
            parent: None,
            owners: None,
            config_bytes: None,
            stored: Timestamp::default(),
            damage: Vec::new(),
        }
    }
}

impl Catalogue {
    /// Makes sure that a list has all there is.
    ///
    /// # Errors
    /// [`Error::Damaged`] where it could not be read.
    pub fn has_all(&self, list: List) -> Result<()> {
        self.unread.get(&list).map_or(Ok(()), |why| Err(Error::damaged("a list of the store", why.clone())))
    }

    /// Whether another says the same of the store, by however many looks.
    #[must_use]
    pub fn says_as(&self, other: &Self) -> bool {
        let Self { images, references, layers, containers, damage, remarks, unread, changed, looks: _ } = self;
        (images, references, layers) == (&other.images, &other.references, &other.layers)
            && (containers, damage, unread) == (&other.containers, &other.damage, &other.unread)
            && (remarks, *changed) == (&other.remarks, other.changed)
    }

    /// All that is wrong, and then what else is remarkable.
    pub fn told(&self) -> impl Iterator<Item = &Damage> {
        self.damage.iter().chain(&self.remarks)
    }

    /// The records that an image's tree stands upon, top first: of whole trees the top one, whatever is below it.
    ///
    /// # Errors
    /// As [`Catalogue::stack`].
    pub fn ground(&self, top: &ChainId, layering: Layering) -> Result<Vec<Arc<LayerRecord>>> {
        match layering {
            Layering::Deltas => self.stack(top),
            Layering::DeltasOnTrees | Layering::Trees => Ok(vec![Arc::clone(self.sound(top)?)]),
        }
    }

    /// A layer and all below it as far as they are listed, top first, damaged ones too.
    #[must_use]
    pub fn chains(&self, top: ChainId) -> Vec<ChainId> {
        let below = |chain: &ChainId| self.layers.get(chain).and_then(|record| record.parent);
        // Parents of damaged records may lead anywhere.
        std::iter::successors(Some(top), below).take(LAYERS_MAX).collect()
    }

    fn sound(&self, chain: &ChainId) -> Result<&Arc<LayerRecord>> {
        let what = || format!("layer {chain}");
        let record = self.layers.get(chain).ok_or_else(|| Error::damaged(what(), "the store does not list it"))?;
        record.damage.as_ref().map_or(Ok(record), |why| Err(Error::damaged(what(), why.clone())))
    }

    /// The records of a layer and all below it, top first.
    ///
    /// # Errors
    /// [`Error::Damaged`] where one of them is damaged or not listed, as a shorter stack would show a wrong union, and
    /// where there are more than [`LAYERS_MAX`].
    pub fn stack(&self, top: &ChainId) -> Result<Vec<Arc<LayerRecord>>> {
        let mut stack = Vec::new();
        let mut next = Some(*top);
        while let Some(chain) = next {
            let record = self.sound(&chain)?;
            if stack.len() == LAYERS_MAX {
                let why = format!("it lies upon more than {LAYERS_MAX} layers");
                return Err(Error::damaged(format!("layer {top}"), why));
            }
            // A chain ID is a hash over its parent's, so no chain of valid records can come back to itself.
            stack.push(Arc::clone(record));
            next = record.parent;
        }
        Ok(stack)
    }
}

impl Image {
    /// Why the image's tree cannot be shown, a sentence each; none where it can.
    pub fn hindrances(&self) -> impl Iterator<Item = &String> {
        self.damage.iter().chain(&self.remarks)
    }

    /// Whether nothing keeps the image's tree from being shown, as far as the store's lists tell.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.hindrances().next().is_none()
    }

    /// The chain ID of the top layer; `None` for an image without layers.
    #[must_use]
    pub fn top(&self) -> Option<ChainId> {
        self.layers.last().map(|layer| layer.chain)
    }

    /// The build step that made layer `index`, counted from the base, where the history tells.
    #[must_use]
    pub fn step_of(&self, index: usize) -> Option<&Step> {
        self.history.iter().filter(|step| !step.is_empty).nth(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_a_moment_ago_is_fresh() {
        let now = Duration::new(1_000_000, 500_000_000);
        let changed_at = |seconds, nanoseconds| {
            let changed = Timestamp { seconds, nanoseconds };
            Generation::of(vec![Stamp { changed, ..Stamp::default() }, Stamp::default()])
        };
        for (seconds, nanoseconds, is_fresh) in [
            (1_000_000, 499_000_000, true),
            (1_000_000, 501_000_000, true),
            (1_000_000, 400_000_000, false),
            (999_999, 0, false),
            (2_000_000, 0, false),
            (i64::MAX, 0, false),
            (-5, 0, false),
        ] {
            assert_eq!(changed_at(seconds, nanoseconds).is_fresh_at(now), is_fresh, "{seconds}.{nanoseconds}");
        }
    }
}
