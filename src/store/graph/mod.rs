//! The image store of Docker 1.9 and older, in which every layer is an image.
//!
//! ```text
//! <data root>/
//!   repositories-<driver>                              references
//!   graph/<ID>/{json,parent,layersize,tar-data.json.gz}                 an image: its config, which image it lies upon, its size
//!   <driver>/…                                         the layers' directories, each with the image's ID
//!   containers/<container ID>/config.json              its layers are <container ID> and <container ID>-init
//! ```
//!
//! No such engine runs on a machine of today, so this follows the sources of its last version (moby v1.9.1, `graph/`,
//! `daemon/`). IDs are random or of the engine's own making, and no digests of anything here. An ID stands for the image
//! and for its layer with all below, so it is image ID and chain ID; layers have no diff IDs.
//!
//! Docker 1.10 made `image/<driver>` of all this and left it in place. Whoever looks for stores looks for that one first, so
//! this is what is shown where that is not there yet, or where this kind is asked for.

mod containers;
mod images;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::docker::containers::Containers;
use super::driver::{DRIVERS, Driver};
use super::reading::{belongs_to_root, ids, path, stamp_of};
use super::repositories::{self, Form};
use super::tar_names::{self, Lists};
use super::{Catalogue, Damage, Generation, LayerRecord, Layering, Options, Stamp, Store};
use crate::digest::{CacheId, ContainerId, ImageId};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::layer::difference::Life;
use crate::layer::listed::NameList;
use crate::meta::Timestamp;
use crate::name::TreePath;
use crate::root::{Root, Space};

/// The name of this kind of store.
pub const KIND: &str = "docker-graph";
/// The drivers that engines of this store had.
const READ: [&str; 6] = ["aufs", "btrfs", "zfs", "devicemapper", "overlay", "vfs"];
/// The file with the names that a layer's tar had.
const TAR_DATA: &str = "tar-data.json.gz";
const GRAPH: &str = "graph";
const REPOSITORIES: &str = "repositories-";

/// A data root with one graph driver.
#[derive(Debug)]
struct Graph {
    /// `graph`.
    graph: Arc<Root>,
    containers: Containers,
    driver: Box<dyn Driver>,
    /// The name of the file of references.
    repositories: TreePath,
    /// Whether `graph` has images of other drivers too.
    is_shared: bool,
    /// What of the data root is not shown, and why.
    skipped: Vec<Damage>,
    /// The names that layers' tars had.
    lists: Arc<Lists>,
    /// Guards what the images' files were like when they were looked at last; held only to copy or set it.
    looked: Mutex<Option<Look>>,
}

/// The states of the images' files as one number, and until when that counts.
#[derive(Debug, Clone, Copy)]
struct Look {
    print: u64,
    due: Instant,
}

/// Opens the stores of a data root: one for each graph driver that has references there. None where the directory is none
/// of this kind.
///
/// # Errors
/// [`Error::Unsupported`] where no driver of it is one that this program reads. Where others can be read, that is damage.
pub fn open(data_root: &Root, options: &Options) -> Result<Vec<Box<dyn Store>>> {
    if data_root.stat(&path(GRAPH))?.is_none_or(|meta| !meta.is_dir()) {
        return Ok(Vec::new());
    }
    let names = data_root.names(&TreePath::root())?;
    let names = names.iter().filter_map(|name| std::str::from_utf8(name.as_bytes()).ok());
    let mut present: Vec<&str> = names.filter_map(|name| name.strip_prefix(REPOSITORIES)).collect();
    present.sort_unstable();
    let (mut stores, mut failed) = (Vec::new(), Vec::new());
    for name in &present {
        match Graph::open(data_root, name, present.len() > 1, options) {
            Ok(store) => stores.push(store),
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => failed.push((data_root.shown(&path(&format!("{REPOSITORIES}{name}"))), error)),
        }
    }
    match (stores.first_mut(), failed.is_empty()) {
        (Some(first), _) => {
            first.skipped = failed.into_iter().map(|(what, error)| Damage::of(what, error.to_string())).collect();
        }
        (None, true) => {}
        (None, false) => return Err(failed.swap_remove(0).1),
    }
    Ok(stores.into_iter().map(|store| Box::new(store) as Box<dyn Store>).collect())
}

/// The directory of an image's layer.
fn layer_of(id: &ImageId) -> Result<CacheId> {
    id.hex().parse().map_err(|_| Error::damaged(format!("image {id}"), "no ID of a layer"))
}

impl Graph {
    /// Opens the store of one graph driver.
    fn open(data_root: &Root, name: &str, is_shared: bool, options: &Options) -> Result<Self> {
        let opener = DRIVERS.iter().find(|(known, _)| READ.contains(known) && *known == name);
        let unsupported = || Error::Unsupported {
            what: data_root.shown(&TreePath::root()),
            why: format!(
                "a store of Docker 1.9 or older with the graph driver {name}, which is not supported there; supported: {}",
                READ.join(", ")
            ),
        };
        let (_, opener) = opener.ok_or_else(unsupported)?;
        Ok(Self {
            graph: Arc::new(data_root.sub(&path(GRAPH))?),
            driver: opener(data_root, options)?,
            repositories: path(&format!("{REPOSITORIES}{name}")),
            is_shared,
            skipped: Vec::new(),
            lists: Arc::default(),
            looked: Mutex::new(None),
            containers: Containers::new(data_root.sub(&TreePath::root())?)?,
        })
    }

    /// As many times the time that a look takes is between two, and never less than [`Self::REST`].
    const SHARE: u32 = 100;
    const REST: Duration = Duration::from_secs(1);

    /// What the images' files are like, for what befalls them in their places. Engines make and remove whole directories.
    fn look(&self) -> Result<u64> {
        let begun = Instant::now();
        if let Some(known) = self.looked.lock().filter(|known| begun < known.due) {
            return Ok(known.print);
        }
        let mut ids = ids(&self.graph, &TreePath::root(), ImageId::from_hex)?;
        ids.sort_unstable();
        let mut hash = DefaultHasher::new();
        for id in &ids {
            for file in [images::JSON, images::PARENT] {
                stamp_of(&self.graph, &images::file_of(id, file))?.hash(&mut hash);
            }
            match self.driver.find(&layer_of(id)?) {
                Ok(found) => found.as_ref().map(Stamp::from).hash(&mut hash),
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => error.errno().raw_os_error().hash(&mut hash),
            }
        }
        let look = Look {
            print: hash.finish(),
            due: begun.checked_add(begun.elapsed().saturating_mul(Self::SHARE).max(Self::REST)).unwrap_or(begun),
        };
        *self.looked.lock() = Some(look);
        Ok(look.print)
    }
}

impl Store for Graph {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn driver(&self) -> &str {
        self.driver.name()
    }

    fn used(&self) -> Result<Timestamp> {
        // The drivers share all else.
        match self.containers.data_root().stat(&self.repositories) {
            Err(error) if error.is_transient() => Err(error),
            found => Ok(found.ok().flatten().map(|meta| meta.modified).unwrap_or_default()),
        }
    }

    fn generation(&self) -> Result<Generation> {
        // What is wrong with the folder is found when it is read.
        let look = match self.look() {
            Err(error) if error.is_transient() => return Err(error),
            look => look.unwrap_or_default(),
        };
        let mut stamps = vec![Stamp::of_changes(look), self.lists.stamp()];
        stamps.extend(stamp_of(&self.graph, &TreePath::root())?);
        stamps.extend(stamp_of(self.containers.data_root(), &self.repositories)?);
        stamps.extend(self.containers.stamps()?);
        Ok(Generation::of(stamps))
    }

    fn watched(&self, each: &mut dyn FnMut(&Root, &TreePath)) -> Result<()> {
        each(&self.graph, &TreePath::root());
        // References are written in their place.
        each(self.containers.data_root(), &TreePath::root());
        self.containers.watched(each)
    }

    fn is_labelled(&self) -> bool {
        self.driver.is_labelled()
    }

    fn layers_generation(&self) -> Result<Generation> {
        Ok(Generation::of(vec![Stamp::from(&self.graph.meta()?), self.driver.stamp()?]))
    }

    fn stands(&self, record: &LayerRecord) -> Result<bool> {
        let Some(id) = &record.cache_id else { return Ok(false) };
        let is_listed = self.graph.stat(&path(id.as_str()))?.is_some();
        match self.driver.check(id) {
            Err(Error::Damaged { .. }) => Ok(false),
            answer => answer.map(|found| is_listed && record.root.is_none_or(|root| found.id() == root)),
        }
    }

    fn catalogue(&self, known: Option<&Catalogue>) -> Result<Catalogue> {
        let changed = known.map_or_else(|| self.graph.meta().map(|meta| meta.modified), |known| Ok(known.changed))?;
        let mut catalogue = Catalogue { damage: self.skipped.clone(), changed, ..Catalogue::default() };
        let (data_root, file) = (self.containers.data_root(), &self.repositories);
        let references =
            repositories::read(data_root, file, Form::InRepository, &mut catalogue)?.unwrap_or_else(|| {
                catalogue.damage.push(Damage::of(data_root.shown(file), "missing, so no image has a name"));
                BTreeMap::new()
            });
        let reader = images::Reader { graph: &self.graph, driver: self.driver.as_ref(), is_shared: self.is_shared };
        reader.read(references, &mut catalogue)?;
        self.lists.tell(&mut catalogue);
        containers::read(&self.containers, self.driver.as_ref(), &mut catalogue)?;
        Ok(catalogue)
    }

    fn config(&self, id: &ImageId) -> Result<Vec<u8>> {
        let found = self.graph.read(&images::file_of(id, images::JSON), images::JSON_MAX)?;
        Ok(found.ok_or_else(|| Error::Stale { what: format!("image {id}") })?.0)
    }

    fn container_config(&self, id: &ContainerId) -> Result<Vec<u8>> {
        let stale = || Error::Stale { what: format!("container {id}") };
        let all = self.containers.folder()?.ok_or_else(stale)?;
        Ok(all.read(&containers::config_of(id), images::JSON_MAX)?.ok_or_else(stale)?.0)
    }

    fn layer(&self, id: &CacheId) -> Result<Layer> {
        self.driver.layer(id)
    }

    fn tells_owners(&self) -> Result<()> {
        belongs_to_root(self.driver.root())
    }

    fn layering(&self, _id: &CacheId) -> Layering {
        self.driver.layering()
    }

    fn changes(&self, id: &CacheId, below: Option<&CacheId>, life: Life) -> Result<Layer> {
        self.driver.changes(id, below, life)
    }

    /// Only the last versions wrote them, so that to have none is no damage.
    fn tar_names(&self, layer: &LayerRecord) -> Option<Arc<dyn NameList>> {
        if self.driver.layering() == Layering::Deltas {
            return None;
        }
        let file = path(&format!("{}/{TAR_DATA}", layer.cache_id.as_ref()?));
        let (lists, root) = (Arc::clone(&self.lists), Arc::clone(&self.graph));
        Some(Arc::new(tar_names::List { lists, chain: layer.chain, root, file, is_due: false }))
    }

    fn container_layers(&self, changes: &CacheId, init: Option<&CacheId>) -> Result<Vec<Layer>> {
        self.driver.container_layers(changes, init)
    }

    /// Engines wrote no size, or -1, where they knew none, so that to have none is no damage.
    fn size_bytes(&self, layer: &LayerRecord) -> Result<Option<u64>> {
        if let Some(size) = layer.size_bytes.get() {
            return Ok(Some(*size));
        }
        let Some(id) = &layer.cache_id else { return Ok(None) };
        let content = match self.graph.read(&path(&format!("{}/layersize", id.as_str())), images::FIELD_MAX) {
            Err(error) if error.is_transient() => return Err(error),
            content => content.ok().flatten(),
        };
        let size = content.and_then(|(text, _)| std::str::from_utf8(&text).ok()?.trim().parse().ok());
        Ok(size.map(|size| *layer.size_bytes.get_or_init(|| size)))
    }

    fn space(&self) -> Result<Space> {
        self.driver.space()
    }

    fn footholds(&self) -> Vec<BorrowedFd<'_>> {
        let data_root = self.containers.data_root().reading_fd();
        let layers = self.driver.roots().into_iter().map(Root::reading_fd);
        [data_root, self.graph.reading_fd(), self.containers.foothold()].into_iter().chain(layers).collect()
    }

    fn is_private(&self) -> bool {
        let are_layers = self.driver.roots().into_iter().all(Root::is_private);
        self.graph.is_private() && are_layers && self.containers.is_private()
    }

    fn let_go(&self) {
        self.graph.let_go();
        self.containers.let_go();
        for root in self.driver.roots() {
            root.let_go();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_driver_that_is_read_is_one() {
        assert!(READ.iter().all(|name| DRIVERS.iter().any(|(known, _)| known == name)));
    }
}
