//! The store of containerd: of Docker 29 and newer, of Kubernetes, of nerdctl and `ctr`.
//!
//! ```text
//! <root>/                                              /var/lib/containerd, or containerd/daemon in Docker's data root
//!   io.containerd.metadata.v1.bolt/meta.db             names, containers and snapshots' keys of all namespaces
//!   io.containerd.content.v1.content/blobs/sha256/     indexes, manifests, configs
//!   io.containerd.snapshotter.v1.<name>/metadata.db    numbers and parents of snapshots
//!   io.containerd.snapshotter.v1.<name>/snapshots/     their directories
//! ```
//!
//! A name leads to an index or manifest, that to configs, a config to chain IDs, a chain ID to a snapshot in each
//! namespace where it was unpacked. All namespaces are shown as one. Where a layer is in no snapshot, its blob is not
//! looked into: the image is not unpacked then, and says so.

pub mod bolt;
mod containers;
mod content;
mod encoding;
mod images;
mod layers;
mod live;
mod records;
mod snapshotter;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use parking_lot::Mutex;

use super::docker::containers::Containers;
use super::looks::{self, Looks, Print, stamp, state_of};
use super::reading::{belongs_to_root, path, stamp_of, unread};
use super::{Catalogue, Container, Damage, Generation, LayerRecord, Layering, List, Options, Stamp, Store};
use crate::digest::{CacheId, ContainerId, ImageId};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::layer::difference::Life;
use crate::meta::Timestamp;
use crate::name::TreePath;
use crate::root::{Root, Space};
use containers::{Config, Configs};
use content::Content;
use images::{Documents, Drafts, Index};
use layers::{Keys, Layout};
use live::Live;
use records::Records;
use snapshotter::Snapshotter;

/// Where a Docker engine keeps the store of the containerd that it starts, in its data root.
pub(super) const MANAGED: &str = "containerd/daemon";
const META_FOLDER: &str = "io.containerd.metadata.v1.bolt";
const META: &str = "meta.db";

/// A root of containerd's.
#[derive(Debug)]
struct Containerd {
    place: Arc<Place>,
    /// The snapshotters that are read, for people.
    driver: String,
    looks: Looks,
}

/// Where everything is.
#[derive(Debug)]
struct Place {
    meta: Live,
    content: Content,
    snapshotters: Vec<Snapshotter>,
    /// Docker's containers, where the store lies in its data root.
    docker: Option<Containers>,
    /// Guards what the newest catalogue was made of; held only to copy or set it.
    known: Mutex<Arc<Known>>,
}

/// What is not in a catalogue, but belongs to it.
#[derive(Debug, Default)]
struct Known {
    images: Index,
    keys: Keys,
    configs: Configs,
}

/// Whether a directory is a Docker data root that has a store of containerd's in it.
///
/// # Errors
/// Where it could not be looked at.
pub(super) fn is_below(data_root: &Root) -> Result<bool> {
    let managed = path(MANAGED);
    if data_root.stat(&managed)?.is_none_or(|meta| !meta.is_dir()) {
        return Ok(false);
    }
    is_root(&data_root.sub(&managed)?)
}

/// Whether there are images in it.
///
/// # Errors
/// As [`is_below`].
pub(super) fn has_blobs(data_root: &Root) -> Result<bool> {
    if !is_below(data_root)? {
        return Ok(false);
    }
    let blobs = path(&format!("{MANAGED}/{}/{}", content::FOLDER, content::BLOBS));
    Ok(data_root.stat(&blobs)?.is_some_and(|meta| meta.is_dir()) && !data_root.names(&blobs)?.is_empty())
}

fn is_root(root: &Root) -> Result<bool> {
    Ok(root.stat(&path(&format!("{META_FOLDER}/{META}")))?.is_some())
}

/// Makes sure that a directory is no root of containerd's of which only the content is left.
///
/// # Errors
/// [`Error::Damaged`] where it is.
fn without_names(root: &Root) -> Result<()> {
    let blobs = path(&format!("{}/{}", content::FOLDER, content::BLOBS));
    if root.stat(&blobs)?.is_none() {
        return Ok(());
    }
    let why =
        format!("{} is there, but {META_FOLDER}/{META}, which has the names of images, is missing", content::FOLDER);
    Err(Error::damaged(root.shown(&TreePath::root()), why))
}

/// Opens a root of containerd's, or a Docker data root that has one; `None` where the directory is neither.
///
/// # Errors
/// [`Error::Unsupported`] where no snapshotter of it is one that this program reads; [`Error::Damaged`] where there is
/// content and no database.
pub fn open(root: Root, options: &Options) -> Result<Option<Box<dyn Store>>> {
    let (base, docker) = if is_root(&root)? {
        (root, None)
    } else if is_below(&root)? && (has_blobs(&root)? || root.stat(&path("image"))?.is_none()) {
        (root.sub(&path(MANAGED))?, Some(Containers::new(root)?))
    } else {
        return without_names(&root).map(|()| None);
    };
    let mut snapshotters = Vec::new();
    for name in snapshotter::NAMES {
        snapshotters.extend(Snapshotter::open(&base, name, options)?);
    }
    if snapshotters.is_empty() {
        let why = format!(
            "containerd's store without a snapshotter that is supported, which are {}",
            snapshotter::NAMES.join(" and ")
        );
        return Err(Error::Unsupported { what: base.shown(&TreePath::root()), why });
    }
    let driver = snapshotters.iter().map(|snapshotter| snapshotter.name).collect::<Vec<_>>().join(", ");
    let meta = Live::new(&Arc::new(base.sub(&path(META_FOLDER))?), path(META));
    let content = Content::new(base.sub(&path(content::FOLDER))?);
    let place = Arc::new(Place { meta, content, snapshotters, docker, known: Mutex::default() });
    let looks = Looks::new(Arc::clone(&place));
    Ok(Some(Box::new(Containerd { place, driver, looks })))
}

impl Place {
    fn known(&self) -> Arc<Known> {
        Arc::clone(&self.known.lock())
    }

    fn roots(&self) -> impl Iterator<Item = &Root> {
        let snapshotters = self.snapshotters.iter().map(|snapshotter| &*snapshotter.root);
        [self.meta.root(), &*self.content.root].into_iter().chain(snapshotters)
    }

    /// What the database of the namespaces holds. That it cannot be read becomes damage, and so does each part of it.
    ///
    /// # Errors
    /// Transient ones.
    fn records(&self, catalogue: &mut Catalogue) -> Result<Records> {
        let is_read = |name: &str| snapshotter::NAMES.contains(&name);
        let read = self.meta.database().and_then(|database| records::read(&database, is_read));
        let damage = |error| Damage::from_error(self.meta.root(), self.meta.path(), error);
        match read {
            Ok(mut records) => {
                for (list, error) in std::mem::take(&mut records.wrong) {
                    unread(catalogue, list, damage(error)?);
                }
                Ok(records)
            }
            Err(error) => {
                let damage = damage(error)?;
                for list in [List::References, List::Images, List::Layers, List::Containers] {
                    catalogue.unread.insert(list, damage.to_string());
                }
                catalogue.damage.push(damage);
                Ok(Records::default())
            }
        }
    }

    /// Names the snapshotters that are not read, of whose snapshots namespaces know.
    fn tell_others(&self, records: &Records, catalogue: &mut Catalogue) {
        for (other, chains) in &records.others {
            let other: String = other.chars().take(100).collect();
            let what = format!("{}, snapshotter {other:?}", self.meta.shown());
            let why = format!(
                "not supported, so its snapshots are not shown ({} of images' layers); supported: {}",
                chains.len(),
                snapshotter::NAMES.join(", ")
            );
            catalogue.damage.push(Damage::of(what, why));
        }
    }

    fn stamps_of_layers(&self) -> Result<Vec<Stamp>> {
        let stamps = self.snapshotters.iter().map(|snapshotter| snapshotter.live.stamps());
        Ok(stamps.collect::<Result<Vec<_>>>()?.concat())
    }

    /// The snapshotter that a directory is of.
    fn of(&self, id: &CacheId) -> Option<&Snapshotter> {
        self.snapshotters.iter().find(|snapshotter| snapshotter.has(id))
    }

    /// A blob that an image stands upon.
    fn blob(&self, hex: &str, what: impl FnOnce() -> String) -> Result<Vec<u8>> {
        let (blob, _) = self.content.read(hex)?.ok_or_else(|| Error::Stale { what: what() })?;
        Ok(blob)
    }

    fn documents(&self, id: &ImageId) -> Option<Documents> {
        self.known().images.documents.get(id).copied()
    }

    fn state_of_layer(&self, id: &CacheId, state: impl FnOnce(&crate::meta::Meta) -> Stamp) -> Result<looks::Found> {
        let found = self.of(id).map_or(Ok(None), |snapshotter| snapshotter.find(id));
        state_of(found.map(|meta| meta.as_ref().map(state)))
    }
}

impl looks::Place for Arc<Place> {
    fn image(&self, id: &ImageId) -> Result<Print> {
        let documents = self.documents(id);
        let documents = documents.iter().flat_map(|known| [Some(known.manifest), known.index]).flatten();
        let blobs = [id.hex()].into_iter().chain(documents.map(|digest| digest.hex()));
        let stamps = blobs.map(|hex| stamp(&self.content.root, &content::blob_of(&hex)));
        Ok(Print::of(&stamps.collect::<Result<Vec<_>>>()?))
    }

    fn layer(&self, record: &LayerRecord) -> Result<Print> {
        let Some(id) = &record.cache_id else { return Ok(Print::of(&[])) };
        let found = self.of(id).map_or(Ok(None), |snapshotter| snapshotter.find(id));
        Print::of_layer(&[], found, record)
    }

    fn container(&self, container: &Container) -> Result<Print> {
        let own = container.changes.iter().chain(&container.init);
        // What a container writes is no change of the store.
        let mut stamps =
            own.map(|id| self.state_of_layer(id, |meta| Stamp::of_changes(meta.inode))).collect::<Result<Vec<_>>>()?;
        if let Some(Ok(Some(all))) = self.docker.as_ref().map(Containers::folder) {
            stamps.push(stamp(&all, &super::docker::containers::config_of(&container.id))?);
        }
        Ok(Print::of(&stamps))
    }
}

impl Store for Containerd {
    fn kind(&self) -> &'static str {
        "containerd"
    }

    fn driver(&self) -> &str {
        &self.driver
    }

    fn driver_of(&self, id: &CacheId) -> &str {
        self.place.of(id).map_or(&self.driver, |snapshotter| snapshotter.name)
    }

    fn generation(&self) -> Result<Generation> {
        self.looks.take();
        let place = &self.place;
        let mut stamps = vec![Stamp::of_changes(self.looks.changes())];
        stamps.extend(place.meta.stamps()?);
        stamps.extend(place.stamps_of_layers()?);
        stamps.extend(stamp_of(&place.content.root, &path(content::BLOBS))?);
        if let Some(docker) = &place.docker {
            stamps.extend(docker.stamps()?);
        }
        Ok(Generation::of(stamps))
    }

    fn used(&self) -> Result<Timestamp> {
        // Each transaction writes to the file.
        self.place.meta.modified()
    }

    fn watched(&self, each: &mut dyn FnMut(&Root, &TreePath)) -> Result<()> {
        each(&self.place.content.root, &path(content::BLOBS));
        self.place.docker.as_ref().map_or(Ok(()), |docker| docker.watched(each))
    }

    fn written(&self, each: &mut dyn FnMut(&Root, &TreePath)) -> Result<()> {
        let top = TreePath::root();
        each(self.place.meta.root(), &top);
        for snapshotter in &self.place.snapshotters {
            each(&snapshotter.root, &top);
        }
        Ok(())
    }

    fn catalogue(&self, known: Option<&Catalogue>) -> Result<Catalogue> {
        let place = &self.place;
        let begun = self.looks.begin_reading();
        let mut catalogue = Catalogue { looks: self.looks.over(), ..Catalogue::default() };
        let records = place.records(&mut catalogue)?;
        let layout = Layout::read(&records, place.meta.shown(), &place.snapshotters, &mut catalogue)?;
        let drafts = Drafts::read(&place.content, &records, known)?;
        layout.layers(drafts.layers(), &mut catalogue)?;
        place.tell_others(&records, &mut catalogue);
        let is_whole = |id: &CacheId| self.layering(id) == Layering::Trees;
        let images = drafts.finish(&records, &place.content, &is_whole, &mut catalogue);
        let docker = place.docker.as_ref();
        let configs = containers::read(docker, &records, &layout, &images, &is_whole, &mut catalogue)?;
        catalogue.changed = changed(&records, &catalogue);
        *place.known.lock() = Arc::new(Known { images, keys: layout.keys(), configs });
        self.looks.watch(&catalogue, begun);
        Ok(catalogue)
    }

    fn config(&self, id: &ImageId) -> Result<Vec<u8>> {
        self.place.blob(&id.hex(), || format!("image {id}"))
    }

    fn container_config(&self, id: &ContainerId) -> Result<Vec<u8>> {
        let stale = || Error::Stale { what: format!("container {id}") };
        let config = match self.place.known().configs.get(id).ok_or_else(stale)? {
            Config::Spec { namespace, id } => records::spec(self.place.meta.database()?.as_ref(), namespace, id)?,
            Config::Docker => match self.place.docker.as_ref().map(Containers::folder).transpose()?.flatten() {
                Some(all) => containers::docker_config(&all, id)?,
                None => None,
            },
        };
        config.ok_or_else(stale)
    }

    fn manifest(&self, id: &ImageId) -> Result<Vec<u8>> {
        let what = || format!("the manifest of image {id}");
        let documents = self.place.documents(id).ok_or_else(|| Error::Stale { what: what() })?;
        self.place.blob(&documents.manifest.hex(), what)
    }

    fn index(&self, id: &ImageId) -> Result<Vec<u8>> {
        let what = || format!("the index of image {id}");
        let index = self.place.documents(id).and_then(|documents| documents.index);
        self.place.blob(&index.ok_or_else(|| Error::Stale { what: what() })?.hex(), what)
    }

    fn layer(&self, id: &CacheId) -> Result<Layer> {
        self.place.of(id).and_then(|snapshotter| snapshotter.layer(id)).ok_or_else(|| unknown(id))
    }

    fn tells_owners(&self) -> Result<()> {
        belongs_to_root(&self.place.content.root)
    }

    fn layering(&self, id: &CacheId) -> Layering {
        self.place.of(id).map_or(Layering::Deltas, Snapshotter::layering)
    }

    fn changes(&self, id: &CacheId, below: Option<&CacheId>, life: Life) -> Result<Layer> {
        // Of whole trees the one counts that this was made from; another namespace's may be the listed one.
        let known = self.place.known();
        let below = known.keys.get(id).map_or(below, |key| key.below.as_ref());
        self.place.of(id).and_then(|snapshotter| snapshotter.changes(id, below, life)).ok_or_else(|| unknown(id))
    }

    fn container_layers(&self, changes: &CacheId, init: Option<&CacheId>) -> Result<Vec<Layer>> {
        let init = init.filter(|_| self.layering(changes) == Layering::Deltas);
        [changes].into_iter().chain(init).map(|id| Ok(self.layer(id)?.changing())).collect()
    }

    fn size_bytes(&self, layer: &LayerRecord) -> Result<Option<u64>> {
        Ok(layer.size_bytes.get().copied())
    }

    fn is_labelled(&self) -> bool {
        self.place.snapshotters.iter().any(Snapshotter::is_labelled)
    }

    fn layers_generation(&self) -> Result<Generation> {
        Ok(Generation::of(self.place.stamps_of_layers()?))
    }

    fn stands(&self, record: &LayerRecord) -> Result<bool> {
        let known = self.place.known();
        let Some((id, key)) = record.cache_id.as_ref().and_then(|id| Some((id, known.keys.get(id)?))) else {
            return Ok(false);
        };
        let Some(snapshotter) = self.place.of(id) else { return Ok(false) };
        let is_there = snapshotter.find(id)?.is_some_and(|meta| record.is_in(&meta));
        Ok(is_there && snapshotter.lists(&key.name, id)?)
    }

    fn space(&self) -> Result<Space> {
        match self.place.snapshotters.first() {
            Some(snapshotter) => snapshotter.root.space(),
            None => self.place.content.root.space(),
        }
    }

    fn footholds(&self) -> Vec<BorrowedFd<'_>> {
        let containers = self.place.docker.as_ref().map(Containers::foothold);
        self.place.roots().map(Root::reading_fd).chain(containers).collect()
    }

    fn is_private(&self) -> bool {
        self.place.roots().all(Root::is_private) && self.place.docker.as_ref().is_none_or(Containers::is_private)
    }

    fn let_go(&self) {
        self.place.roots().for_each(Root::let_go);
        if let Some(docker) = &self.place.docker {
            docker.let_go();
        }
    }
}

fn unknown(id: &CacheId) -> Error {
    Error::damaged(format!("layer {id}"), "no snapshot of a snapshotter that is supported")
}

/// When something of what is shown was last changed, as the store tells it.
fn changed(records: &Records, catalogue: &Catalogue) -> Timestamp {
    let images = records.images.iter().map(|image| image.updated);
    let containers = catalogue.containers.values().map(|container| container.stored);
    images.chain(containers).max().unwrap_or_default()
}
