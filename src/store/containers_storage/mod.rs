//! The store of podman, buildah and CRI-O (containers/storage), with the drivers `overlay` and `vfs`.
//!
//! ```text
//! <graph root>/
//!   <driver>-images/images.json                     names and top layers of images
//!   <driver>-images/<image ID>/…                    configs and manifests
//!   <driver>-layers/layers.json                     which layer lies upon which
//!   <driver>-layers/volatile-layers.json            those of containers that are not to outlive a restart
//!   <driver>-containers/containers.json             containers
//!   <driver>-containers/volatile-containers.json    those that are not to outlive a restart
//!   overlay/<layer ID>/diff, vfs/dir/<layer ID>     the layers' directories
//! ```
//!
//! The engine replaces each list as a whole, by renaming. A layer that is being filled or removed is marked as incomplete
//! in its list. Locks are not taken, and what else there is (`libpod`, `secrets`, the run root) is not looked at; what is
//! kept in additional image stores is not found.

mod containers;
mod documents;
mod images;
mod layers;
mod lists;
mod overlay;

use std::collections::{BTreeMap, HashSet};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use parking_lot::Mutex;

use super::driver::{Driver, whole};
use super::looks::{self, Looks, Print, state_of};
use super::reading::{JSON_MAX, belongs_to_root, in_parallel, path, stamp_of};
use super::{Catalogue, Container, Damage, Generation, LayerRecord, Layering, List, Options, Stamp, Store};
use crate::digest::{CacheId, ContainerId, ImageId, StorageLayerId};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::layer::difference::Life;
use crate::layer::owners::OwnerMap;
use crate::meta::Meta;
use crate::name::TreePath;
use crate::root::{Root, Space};
use lists::{Listed, ListedContainer, ListedImage, by_id};

type DriverOpener = fn(&Root, &Options) -> Result<Box<dyn Driver>>;

/// The drivers that are read, in the order in which they are looked for.
const DRIVERS: [(&str, DriverOpener); 2] = [(overlay::NAME, overlay::open), ("vfs", whole::vfs)];

/// A graph root with one driver.
#[derive(Debug)]
struct Storage {
    places: Arc<Places>,
    /// What of the graph root is not shown, and why.
    skipped: Vec<Damage>,
    looks: Looks,
    /// Guards the lists as they were last read; held only to copy or set them.
    images: Mutex<Option<Known<ListedImage>>>,
    layers: Mutex<Option<Known<lists::ListedLayer>>>,
    containers: Mutex<Option<Known<ListedContainer>>>,
}

/// Where the store is.
#[derive(Debug)]
struct Places {
    images: Folder,
    layers: Folder,
    containers: Folder,
    driver: Box<dyn Driver>,
}

/// A folder of lists.
#[derive(Debug)]
struct Folder {
    root: Root,
    /// Where in `root`: nowhere below, unless it was not there when the store was opened.
    path: TreePath,
    /// The lists, of which the first is the engine's oldest.
    lists: &'static [&'static str],
}

/// Lists that were read, and the state that they had.
#[derive(Debug)]
struct Known<T: Listed> {
    stamps: Vec<Option<Stamp>>,
    read: Arc<ReadLists<T>>,
}

/// What the lists of a folder say.
#[derive(Debug)]
struct ReadLists<T: Listed> {
    list: lists::List<T>,
    ids: HashSet<T::Id>,
    /// What is wrong with the files, and which could not be read at all.
    damage: Vec<Damage>,
    unread: Option<Damage>,
    /// The state of the first list.
    meta: Option<Meta>,
}

/// Opens a graph root; `None` where the directory is none.
///
/// # Errors
/// [`Error::Unsupported`] where no driver of it is one that this program reads.
pub(super) fn open(graph_root: Root, options: &Options) -> Result<Option<Box<dyn Store>>> {
    let mut present = Vec::new();
    for name in graph_root.names(&TreePath::root())? {
        let Some(driver) = std::str::from_utf8(name.as_bytes()).ok().and_then(|name| name.strip_suffix("-images"))
        else {
            continue;
        };
        let is_dir =
            |what: &str| Ok(graph_root.stat(&path(&format!("{driver}-{what}")))?.is_some_and(|found| found.is_dir()));
        if is_dir("images")? && is_dir("layers")? {
            present.push(driver.to_owned());
        }
    }
    present.sort_unstable();
    let Some((name, opener)) = DRIVERS.iter().find(|(name, _)| present.iter().any(|present| present == name)) else {
        if present.is_empty() {
            return Ok(None);
        }
        return Err(Error::Unsupported {
            what: graph_root.shown(&TreePath::root()),
            why: format!(
                "its graph driver {} is not supported in a store of containers/storage; supported: {}",
                present.join(", "),
                DRIVERS.map(|(name, _)| name).join(", ")
            ),
        });
    };
    let skipped = present.iter().filter(|other| other != name).map(|other| {
        let what = graph_root.shown(&path(&format!("{other}-images")));
        Damage::of(what, format!("images of the graph driver {other:?} are not shown"))
    });
    let skipped = skipped.collect();
    let places = Arc::new(Places {
        images: Folder::open(&graph_root, &format!("{name}-images"), &["images.json"])?,
        layers: Folder::open(&graph_root, &format!("{name}-layers"), &["layers.json", "volatile-layers.json"])?,
        driver: opener(&graph_root, options)?,
        containers: Folder::or_below(
            graph_root,
            &format!("{name}-containers"),
            &["containers.json", "volatile-containers.json"],
        )?,
    });
    let looks = Looks::new(Place(Arc::clone(&places)));
    let (images, layers, containers) = (Mutex::default(), Mutex::default(), Mutex::default());
    Ok(Some(Box::new(Storage { places, skipped, looks, images, layers, containers })))
}

impl Folder {
    fn open(graph_root: &Root, name: &str, lists: &'static [&'static str]) -> Result<Self> {
        Ok(Self { root: graph_root.sub(&path(name))?, path: TreePath::root(), lists })
    }

    /// As [`Folder::open`], of a folder that may come later.
    fn or_below(graph_root: Root, name: &str, lists: &'static [&'static str]) -> Result<Self> {
        match graph_root.stat(&path(name))? {
            Some(found) if found.is_dir() => Self::open(&graph_root, name, lists),
            Some(_) | None => Ok(Self { root: graph_root, path: path(name), lists }),
        }
    }

    fn file(&self, name: &str) -> TreePath {
        self.path.join_path(&path(name))
    }

    /// As messages name the first list.
    fn shown(&self) -> String {
        self.root.shown(&self.file(self.lists.first().unwrap_or(&"")))
    }

    /// The states of the lists.
    ///
    /// # Errors
    /// Transient ones.
    fn stamps(&self) -> Result<Vec<Option<Stamp>>> {
        self.lists.iter().map(|list| stamp_of(&self.root, &self.file(list))).collect()
    }

    fn watched(&self, each: &mut dyn FnMut(&Root, &TreePath)) -> Result<()> {
        let is_there = self.root.stat(&self.path)?.is_some_and(|found| found.is_dir());
        // A folder that is to come is one of its parent's entries.
        let dir = if is_there { self.path.clone() } else { TreePath::root() };
        each(&self.root, &dir);
        Ok(())
    }

    /// Reads the lists, unless they are as they were. An oldest list that is missing where objects are is damage.
    ///
    /// # Errors
    /// Transient ones.
    fn read<T: Listed>(&self, known: &Mutex<Option<Known<T>>>) -> Result<Arc<ReadLists<T>>> {
        let stamps = self.stamps()?;
        if let Some(known) = known.lock().as_ref().filter(|known| known.stamps == stamps) {
            return Ok(Arc::clone(&known.read));
        }
        let mut read = ReadLists {
            list: lists::List::default(),
            ids: HashSet::new(),
            damage: Vec::new(),
            unread: None,
            meta: None,
        };
        for (place, name) in self.lists.iter().enumerate() {
            let file = self.file(name);
            let outcome = match self.root.read(&file, JSON_MAX) {
                Ok(Some((content, meta))) => {
                    read.meta = read.meta.or(Some(meta));
                    let before = read.list.wrong.len();
                    let outcome = read.list.add(&content).map_err(|why| Error::damaged(self.root.shown(&file), why));
                    let wrong = read.list.wrong.iter().skip(before);
                    read.damage.extend(wrong.map(|why| Damage::of(self.root.shown(&file), why.clone())));
                    outcome
                }
                Ok(None) if place == 0 && self.has_objects()? => Err(Error::damaged(self.root.shown(&file), "missing")),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                let damage = Damage::from_error(&self.root, &file, error)?;
                read.unread = read.unread.or(Some(damage.clone()));
                read.damage.push(damage);
            }
        }
        read.ids = read.list.entries.iter().map(Listed::id).collect();
        let read = Arc::new(read);
        let is_settled = !Generation::of(stamps.iter().flatten().copied().collect()).is_fresh();
        *known.lock() = is_settled.then(|| Known { stamps, read: Arc::clone(&read) });
        Ok(read)
    }

    /// Whether there is anything but locks and lists, which only objects have.
    ///
    /// # Errors
    /// Transient ones.
    fn has_objects(&self) -> Result<bool> {
        match self.root.names(&self.path) {
            Ok(names) => Ok(names.iter().any(|name| name.as_bytes().get(..64).is_some_and(is_hex))),
            Err(error) if error.is_transient() => Err(error),
            Err(_) => Ok(false),
        }
    }
}

fn is_hex(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_hexdigit)
}

/// The files that [`Looks`] look at.
#[derive(Debug)]
struct Place(Arc<Places>);

impl looks::Place for Place {
    fn image(&self, id: &ImageId) -> Result<Print> {
        images::print(&self.0.images.root, id)
    }

    fn layer(&self, record: &LayerRecord) -> Result<Print> {
        let Some(id) = &record.cache_id else { return Ok(Print::of(&[])) };
        Print::of_layer(&[], self.0.driver.find(id), record)
    }

    fn container(&self, container: &Container) -> Result<Print> {
        // Their lists are compared with each generation.
        let mut stamps = Vec::new();
        if let Some(id) = &container.changes {
            // What a container writes is no change of the store.
            let found = self.0.driver.find(id).map(|found| found.map(|meta| Stamp::of_changes(meta.inode)));
            stamps.push(state_of(found)?);
        }
        Ok(Print::of(&stamps))
    }
}

impl Storage {
    fn listed_layers(&self) -> Result<Arc<ReadLists<lists::ListedLayer>>> {
        self.places.layers.read(&self.layers)
    }

    /// What is wrong with each layer: with what its list says, or with its directory.
    ///
    /// # Errors
    /// Transient ones.
    fn broken(&self, listed: &layers::Listed, known: Option<&Catalogue>) -> Result<BTreeMap<StorageLayerId, Damage>> {
        let records = known.into_iter().flat_map(|known| known.layers.values().map(|record| (known.looks, record)));
        let sound: HashSet<&CacheId> = records
            .filter(|(looks, record)| record.damage.is_none() && self.looks.is_unchanged(&record.chain, *looks))
            .filter_map(|(_, record)| record.cache_id.as_ref())
            .collect();
        let driver = self.places.driver.as_ref();
        let all: Vec<&lists::ListedLayer> = listed.values().collect();
        let checked = in_parallel(&all, |layer| {
            let id = layer.id.cache_id();
            if let Some(why) = layers::wrong_parent(layer) {
                return Ok(Some(Damage::of(format!("layer {}", layer.id), why)));
            }
            if sound.contains(&id) {
                return Ok(None);
            }
            match driver.check(&id) {
                Ok(_) => Ok(None),
                Err(error) => Damage::from_error(driver.root(), &path(id.as_str()), error).map(Some),
            }
        });
        let mut broken = BTreeMap::new();
        for (layer, damage) in all.iter().zip(checked) {
            broken.extend(damage?.map(|damage| (layer.id, damage)));
        }
        Ok(broken)
    }

    /// Notes what is wrong with a list.
    fn note<T: Listed>(read: &ReadLists<T>, lists: &[List], catalogue: &mut Catalogue) {
        catalogue.damage.extend(read.damage.iter().filter(|damage| Some(*damage) != read.unread.as_ref()).cloned());
        if let Some(damage) = &read.unread {
            catalogue.damage.push(damage.clone());
            catalogue.unread.extend(lists.iter().map(|list| (*list, damage.to_string())));
        }
    }
}

impl Store for Storage {
    fn kind(&self) -> &'static str {
        "containers-storage"
    }

    fn driver(&self) -> &str {
        self.places.driver.name()
    }

    fn generation(&self) -> Result<Generation> {
        self.looks.take();
        let mut stamps = vec![Stamp::of_changes(self.looks.changes())];
        for folder in [&self.places.images, &self.places.layers, &self.places.containers] {
            // One that is missing has a state too, so that none is taken for another.
            stamps.extend(folder.stamps()?.into_iter().map(Option::unwrap_or_default));
        }
        Ok(Generation::of(stamps))
    }

    fn watched(&self, each: &mut dyn FnMut(&Root, &TreePath)) -> Result<()> {
        self.places.images.watched(each)?;
        self.places.layers.watched(each)?;
        self.places.containers.watched(each)
    }

    fn catalogue(&self, known: Option<&Catalogue>) -> Result<Catalogue> {
        let looks = self.looks.over();
        let begun = self.looks.begin_reading();
        let places = &self.places;
        // Images before layers: what is listed later may stand upon what is listed earlier, and is then there.
        let listed_containers = places.containers.read(&self.containers)?;
        let listed_images = places.images.read(&self.images)?;
        let listed_layers = self.listed_layers()?;
        let changed = match (&listed_images.meta, known) {
            (Some(meta), _) => meta.modified,
            // Where the images cannot be read, the time is that of what was known before.
            (None, Some(known)) => known.changed,
            (None, None) => places.images.root.meta()?.modified,
        };
        let mut catalogue = Catalogue { damage: self.skipped.clone(), looks, changed, ..Catalogue::default() };
        Self::note(&listed_images, &[List::Images, List::References], &mut catalogue);
        Self::note(&listed_layers, &[List::Layers], &mut catalogue);
        Self::note(&listed_containers, &[List::Containers], &mut catalogue);

        let layers = by_id(listed_layers.list.entries.clone());
        let broken = self.broken(&layers, known)?;
        catalogue.damage.extend(broken.values().cloned());
        let mut severed = layers::severed(&layers);
        match &listed_layers.unread {
            // That is the reason, and told.
            Some(unread) => severed.values_mut().for_each(|damage| *damage = unread.clone()),
            None => catalogue.damage.extend(severed.values().cloned()),
        }
        let loaded = images::load(&places.images.root, &listed_images.list.entries, &layers, known)?;
        let keys = layers::Keys::new(&layers, &broken, images::claims(&loaded));
        let tops = listed_images.list.entries.iter().filter_map(|image| image.layer);
        let own = listed_containers.list.entries.iter().filter_map(|container| container.layer);
        let own = layers::own(&layers, own, tops);
        catalogue.layers = keys.records(&layers, &own, places.driver.as_ref(), &broken);
        let lists = (places.images.shown(), places.layers.shown());
        let layering = places.driver.layering();
        let root = &places.images.root;
        let unread = listed_layers.unread.as_ref();
        let (broken, severed) = (&broken, &severed);
        let images = images::Reader { root, lists, layers: &layers, unread, broken, severed, keys: &keys, layering };
        images.read(loaded, &mut catalogue);
        let lists = (places.containers.shown(), places.layers.shown());
        let is_union = layering == Layering::Deltas;
        let containers = containers::Reader { lists, layers: &layers, unread, broken, severed, keys: &keys, is_union };
        containers.read(&listed_containers.list.entries, listed_containers.meta.as_ref(), &mut catalogue);
        self.looks.watch(&catalogue, begun);
        Ok(catalogue)
    }

    fn config(&self, id: &ImageId) -> Result<Vec<u8>> {
        images::config(&self.places.images.root, id)
    }

    fn manifest(&self, id: &ImageId) -> Result<Vec<u8>> {
        let listed = self.places.images.read(&self.images)?;
        let stale = || Error::Stale { what: format!("image {id}") };
        let image = listed.list.entries.iter().find(|image| image.id == *id).ok_or_else(stale)?;
        images::manifest(&self.places.images.root, image)
    }

    fn container_config(&self, id: &ContainerId) -> Result<Vec<u8>> {
        let listed = self.places.containers.read(&self.containers)?;
        let stale = || Error::Stale { what: format!("container {id}") };
        let entry = listed.list.entries.iter().find(|container| container.id == *id).ok_or_else(stale)?;
        Ok(entry.record.clone().into_bytes())
    }

    fn layer(&self, id: &CacheId) -> Result<Layer> {
        self.places.driver.layer(id)
    }

    fn tells_owners(&self) -> Result<()> {
        belongs_to_root(self.places.driver.root())
    }

    fn owners(&self, id: &CacheId) -> Result<Option<Arc<OwnerMap>>> {
        let Some(id) = StorageLayerId::from_hex(id.as_str()) else { return Ok(None) };
        let listed = self.listed_layers()?;
        Ok(listed.list.entries.iter().find(|layer| layer.id == id).and_then(|layer| layer.owners.clone()))
    }

    fn layering(&self, _id: &CacheId) -> Layering {
        self.places.driver.layering()
    }

    fn changes(&self, id: &CacheId, below: Option<&CacheId>, life: Life) -> Result<Layer> {
        self.places.driver.changes(id, below, life)
    }

    fn container_layers(&self, changes: &CacheId, init: Option<&CacheId>) -> Result<Vec<Layer>> {
        self.places.driver.container_layers(changes, init)
    }

    fn size_bytes(&self, layer: &LayerRecord) -> Result<Option<u64>> {
        Ok(layer.size_bytes.get().copied())
    }

    fn is_labelled(&self) -> bool {
        self.places.driver.is_labelled()
    }

    fn layers_generation(&self) -> Result<Generation> {
        let listed = self.places.layers.stamps()?.into_iter().map(Option::unwrap_or_default);
        Ok(Generation::of(listed.chain([self.places.driver.stamp()?]).collect()))
    }

    fn stands(&self, record: &LayerRecord) -> Result<bool> {
        let Some(id) = &record.cache_id else { return Ok(false) };
        let listed = self.listed_layers()?;
        if !StorageLayerId::from_hex(id.as_str()).is_some_and(|id| listed.ids.contains(&id)) {
            return Ok(false);
        }
        match self.places.driver.check(id) {
            Err(Error::Damaged { .. }) => Ok(false),
            answer => answer.map(|found| record.is_in(&found)),
        }
    }

    fn space(&self) -> Result<Space> {
        self.places.driver.space()
    }

    fn footholds(&self) -> Vec<BorrowedFd<'_>> {
        let places = &self.places;
        let lists = [&places.images, &places.layers, &places.containers].map(|folder| folder.root.reading_fd());
        lists.into_iter().chain(places.driver.roots().into_iter().map(Root::reading_fd)).collect()
    }

    fn is_private(&self) -> bool {
        let places = &self.places;
        [&places.images, &places.layers, &places.containers].iter().all(|folder| folder.root.is_private())
            && places.driver.roots().into_iter().all(Root::is_private)
    }

    fn let_go(&self) {
        let places = &self.places;
        for folder in [&places.images, &places.layers, &places.containers] {
            folder.root.let_go();
        }
        for root in places.driver.roots() {
            root.let_go();
        }
    }
}
