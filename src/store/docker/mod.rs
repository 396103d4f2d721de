//! The classic image store of Docker 1.10 and newer.
//!
//! ```text
//! <data root>/
//!   image/<driver>/
//!     repositories.json                                  references
//!     imagedb/content/sha256/<image ID>                  configs
//!     imagedb/metadata/sha256/<image ID>/parent          which image an image was built upon
//!     layerdb/sha256/<chain ID>/{diff,parent,cache-id,size,tar-split.json.gz}
//!     layerdb/mounts/<container ID>/{mount-id,init-id,parent}
//!   <driver>/…                                           the layers' directories
//!   containers/<container ID>/config.v2.json
//! ```
//!
//! The engine replaces whole files and directories by renaming (`layerdb/tmp` to `layerdb/sha256`, `.tmp-*` to their
//! names), so a name that matches its pattern is complete; anything else is not looked at.

pub(super) mod containers;
mod imagedb;
mod layerdb;
mod place;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::driver::{DRIVERS, Driver};
use super::looks::Looks;
use super::reading::{JSON_MAX, belongs_to_root, blame, ids, in_parallel, path, sound_ids, stamp_of, unread};
use super::repositories::{self, Form};
use super::tar_names::{self, Lists};
use super::{Catalogue, Damage, Generation, LayerRecord, Layering, List, Options, Stamp, Store};
use crate::digest::{CacheId, ChainId, ContainerId, ImageId};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::layer::difference::Life;
use crate::layer::listed::NameList;
use crate::layer::owners::OwnerMap;
use crate::meta::{FileId, Timestamp};
use crate::name::TreePath;
use crate::root::{Root, Space};
use containers::Containers;
use place::Place;

/// The largest of layerdb's small files that is read, in bytes.
const FIELD_MAX: usize = 4096;
const REPOSITORIES: &str = "repositories.json";

/// A folder that is held, and what was at its name: not the folder itself where a mount lies upon it.
#[derive(Debug)]
struct HeldFolder {
    path: TreePath,
    found: Option<FileId>,
}

impl HeldFolder {
    fn new(data_root: &Root, path: TreePath) -> Result<Self> {
        let found = data_root.stat(&path)?.map(|meta| meta.id());
        Ok(Self { path, found })
    }

    /// What is at its name now; nothing where that cannot be told.
    ///
    /// # Errors
    /// Transient ones.
    fn now(&self, data_root: &Root) -> Result<Option<FileId>> {
        match data_root.stat(&self.path) {
            Err(error) if error.is_transient() => Err(error),
            found => Ok(found.ok().flatten().map(|meta| meta.id())),
        }
    }
}

/// A data root with one graph driver.
#[derive(Debug)]
struct Docker {
    /// `image/<driver>`.
    image: Arc<Root>,
    containers: Arc<Containers>,
    driver: Arc<dyn Driver>,
    /// What of the data root is not shown, and why.
    skipped: Vec<Damage>,
    looks: Looks,
    /// Guards what was found wrong when it was asked for, by the layer; held only to copy or change it.
    noticed: Mutex<BTreeMap<ChainId, Damage>>,
    /// How often that changed.
    notices: AtomicU64,
    /// How containers see the owners, where users are remapped.
    owners: Option<Arc<OwnerMap>>,
    /// The names that layers' tars had.
    lists: Arc<Lists>,
    /// The folders that are held, where they were found in the data root.
    held: Vec<HeldFolder>,
}

/// Opens the stores of a data root: one for each graph driver that has images there, and those of daemons that remap
/// users (`userns-remap`), whose data roots lie in this one. None where the directory is no data root.
///
/// # Errors
/// [`Error::Unsupported`] where no driver of it is one that this program reads. Where others can be read, that is damage.
pub fn open(data_root: &Root, options: &Options) -> Result<Vec<Box<dyn Store>>> {
    let mut found = in_data_root(data_root, options)?;
    for name in data_root.names(&TreePath::root())?.into_iter().filter(|name| is_remapped_root(name.as_bytes())) {
        let inner = TreePath::from(name);
        match data_root.sub(&inner).and_then(|inner| in_data_root(&inner, options)) {
            Ok(more) => found.add(more),
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => found.failed.push((data_root.shown(&inner), error)),
        }
    }
    found.into_stores()
}

/// What was found in a data root.
#[derive(Default)]
struct Opened {
    stores: Vec<Docker>,
    /// The drivers' folders that cannot be shown, and why.
    failed: Vec<(String, Error)>,
}

impl Opened {
    fn add(&mut self, other: Self) {
        self.stores.extend(other.stores);
        self.failed.extend(other.failed);
    }

    /// The stores; what is not shown beside them becomes damage of the first.
    fn into_stores(mut self) -> Result<Vec<Box<dyn Store>>> {
        match self.stores.first_mut() {
            Some(first) => {
                for (what, error) in self.failed {
                    first.skipped.push(Damage::of(what, error.to_string()));
                }
            }
            None => {
                if let Some((_, error)) = self.failed.into_iter().next() {
                    return Err(error);
                }
            }
        }
        Ok(self.stores.into_iter().map(|store| Box::new(store) as Box<dyn Store>).collect())
    }
}

/// Whether a name is `<uid>.<gid>`, as the data root of a daemon that remaps users has it.
fn is_remapped_root(name: &[u8]) -> bool {
    let is_number = |digits: &[u8]| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let mut parts = name.split(|byte| *byte == b'.');
    parts.next().is_some_and(is_number) && parts.next().is_some_and(is_number) && parts.next().is_none()
}

/// How containers see the owners in the data root of a daemon that remaps users: it bears the numbers of their root. Which
/// other numbers they have is in no file of the store; Docker's documentation wants one range of them, which begins there.
fn owners(data_root: &Root) -> Option<Arc<OwnerMap>> {
    let place = data_root.host_path(&TreePath::root());
    let (user, group) =
        place.file_name()?.to_str().filter(|name| is_remapped_root(name.as_bytes()))?.split_once('.')?;
    Some(Arc::new(OwnerMap::from(user.parse().ok()?, group.parse().ok()?)))
}

fn in_data_root(data_root: &Root, options: &Options) -> Result<Opened> {
    let mut opened = Opened::default();
    let image = path("image");
    if data_root.stat(&image)?.is_none_or(|meta| !meta.is_dir()) {
        return Ok(opened);
    }
    let image = data_root.sub(&image)?;
    let mut names = BTreeSet::new();
    for name in image.names(&TreePath::root())? {
        let driver = TreePath::from(name.clone());
        let has = |file: &str| image.stat(&driver.join_path(&path(file)));
        if has("imagedb")?.is_some() || has(REPOSITORIES)?.is_some() {
            names.insert(String::from_utf8_lossy(name.as_bytes()).into_owned());
        }
    }
    for name in names {
        let shown = image.shown(&path(&name));
        match in_folder(data_root, &image, &name, options) {
            Ok(store) => opened.stores.push(store),
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => opened.failed.push((shown, error)),
        }
    }
    Ok(opened)
}

/// Opens the store of one graph driver.
fn in_folder(data_root: &Root, image: &Root, name: &str, options: &Options) -> Result<Docker> {
    let unsupported = || Error::Unsupported {
        what: data_root.shown(&TreePath::root()),
        why: format!(
            "its graph driver {name} is not supported; supported: {}",
            DRIVERS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
        ),
    };
    let (_, opener) = DRIVERS.iter().find(|(known, _)| *known == name).ok_or_else(unsupported)?;
    let held = [path(&format!("image/{name}")), path(name)];
    let held = held.into_iter().map(|path| HeldFolder::new(data_root, path)).collect::<Result<Vec<_>>>()?;
    let driver: Arc<dyn Driver> = opener(data_root, options)?.into();
    let image = Arc::new(image.sub(&path(name))?);
    let containers = Arc::new(Containers::new(data_root.sub(&TreePath::root())?)?);
    let place = Place { image: Arc::clone(&image), containers: Arc::clone(&containers), driver: Arc::clone(&driver) };
    let looks = Looks::new(place);
    Ok(Docker {
        image,
        containers,
        driver,
        skipped: Vec::new(),
        looks,
        noticed: Mutex::default(),
        notices: AtomicU64::new(0),
        owners: owners(data_root),
        lists: Arc::default(),
        held,
    })
}

impl Store for Docker {
    fn kind(&self) -> &'static str {
        "docker"
    }

    fn driver(&self) -> &str {
        self.driver.name()
    }

    fn used(&self) -> Result<Timestamp> {
        let mut latest = Timestamp::default();
        for file in [REPOSITORIES, imagedb::CONTENT, layerdb::LAYERS, containers::MOUNTS] {
            match self.image.stat(&path(file)) {
                Err(error) if error.is_transient() => return Err(error),
                // What cannot be looked at is found when the store is read.
                found => latest = latest.max(found.ok().flatten().map(|meta| meta.modified).unwrap_or_default()),
            }
        }
        Ok(latest)
    }

    fn generation(&self) -> Result<Generation> {
        self.looks.take();
        let mut stamps =
            vec![Stamp::of_changes(self.looks.changes()), Stamp::of_changes(self.notices.load(Ordering::Acquire))];
        stamps.push(self.lists.stamp());
        for folder in &self.held {
            stamps.extend(folder.now(self.containers.data_root())?.map(|found| Stamp::of_changes(found.inode)));
        }
        for file in [REPOSITORIES, imagedb::CONTENT, imagedb::METADATA, layerdb::LAYERS, containers::MOUNTS] {
            stamps.extend(stamp_of(&self.image, &path(file))?);
        }
        stamps.extend(self.containers.stamps()?);
        Ok(Generation::of(stamps))
    }

    fn watched(&self, each: &mut dyn FnMut(&Root, &TreePath)) -> Result<()> {
        each(&self.image, &TreePath::root());
        for dir in [imagedb::CONTENT, imagedb::METADATA, layerdb::LAYERS, containers::MOUNTS] {
            each(&self.image, &path(dir));
        }
        self.containers.watched(each)
    }

    fn is_labelled(&self) -> bool {
        self.driver.is_labelled()
    }

    fn layers_generation(&self) -> Result<Generation> {
        let listed = self.image.stat(&path(layerdb::LAYERS))?;
        let looks = Stamp::of_changes(self.looks.changes());
        Ok(Generation::of(listed.as_ref().map(Stamp::from).into_iter().chain([self.driver.stamp()?, looks]).collect()))
    }

    fn stands(&self, record: &LayerRecord) -> Result<bool> {
        let entry = layerdb::entry_of(&record.chain);
        let Some(listed) = self.image.stat(&entry)? else { return Ok(false) };
        let Some(id) = &record.cache_id else { return Ok(false) };
        // Where the entry is another, as after a repair, it may well be of the same layer.
        let is_same = Stamp::from(&listed) == record.stamp || layerdb::is_of(&self.image, &record.chain, id)?;
        match self.driver.check(id) {
            Err(Error::Damaged { .. }) => Ok(false),
            answer => answer.map(|found| is_same && record.is_in(&found)),
        }
    }

    fn catalogue(&self, known: Option<&Catalogue>) -> Result<Catalogue> {
        let looks = self.looks.over();
        let begun = self.looks.begin_reading();
        // Where the references cannot be read, the time is that of what was known before.
        let changed = known.map_or_else(|| self.image.meta().map(|meta| meta.modified), |known| Ok(known.changed))?;
        let mut catalogue = Catalogue { damage: self.skipped.clone(), looks, changed, ..Catalogue::default() };
        let references = repositories::read(&self.image, &path(REPOSITORIES), Form::Whole, &mut catalogue)?;
        let reader = layerdb::Reader { image: &self.image, driver: self.driver.as_ref(), looks: &self.looks };
        reader.read(known, &mut catalogue)?;
        imagedb::read(&self.image, references, known, self.driver.layering(), &mut catalogue)?;
        for chain in known.map(|known| self.looks.changed_since(known.looks)).unwrap_or_default() {
            // Who has read the size already does not ask again.
            let _size = catalogue.layers.get(&chain).map(|record| self.size_bytes(record)).transpose()?;
        }
        self.tell_noticed(&mut catalogue)?;
        self.lists.tell(&mut catalogue);
        containers::read(&self.image, &self.containers, self.driver.as_ref(), &mut catalogue)?;
        for damage in self.replaced()? {
            for list in [List::References, List::Images, List::Layers, List::Containers] {
                catalogue.unread.insert(list, damage.to_string());
            }
            catalogue.damage.push(damage);
        }
        self.looks.watch(&catalogue, begun);
        Ok(catalogue)
    }

    fn config(&self, id: &ImageId) -> Result<Vec<u8>> {
        imagedb::config(&self.image, id)
    }

    fn container_config(&self, id: &ContainerId) -> Result<Vec<u8>> {
        let what = || format!("container {id}");
        let all = self.containers.folder()?.ok_or_else(|| Error::Stale { what: what() })?;
        let (config, _) =
            all.read(&containers::config_of(id), JSON_MAX)?.ok_or_else(|| Error::Stale { what: what() })?;
        Ok(config)
    }

    fn layer(&self, id: &CacheId) -> Result<Layer> {
        self.driver.layer(id)
    }

    fn tells_owners(&self) -> Result<()> {
        match &self.owners {
            Some(_) => Ok(()),
            None => belongs_to_root(self.driver.root()),
        }
    }

    fn owners(&self, _id: &CacheId) -> Result<Option<Arc<OwnerMap>>> {
        Ok(self.owners.clone())
    }

    fn layering(&self, _id: &CacheId) -> Layering {
        self.driver.layering()
    }

    fn changes(&self, id: &CacheId, below: Option<&CacheId>, life: Life) -> Result<Layer> {
        self.driver.changes(id, below, life)
    }

    fn tar_names(&self, layer: &LayerRecord) -> Option<Arc<dyn NameList>> {
        if self.driver.layering() == Layering::Deltas {
            return None;
        }
        let file = layerdb::tar_split_of(&layer.chain);
        let (lists, root) = (Arc::clone(&self.lists), Arc::clone(&self.image));
        Some(Arc::new(tar_names::List { lists, chain: layer.chain, root, file, is_due: true }))
    }

    fn container_layers(&self, changes: &CacheId, init: Option<&CacheId>) -> Result<Vec<Layer>> {
        self.driver.container_layers(changes, init)
    }

    fn size_bytes(&self, layer: &LayerRecord) -> Result<Option<u64>> {
        if let Some(size) = layer.size_bytes.get() {
            return Ok(Some(*size));
        }
        match layerdb::size_bytes(&self.image, &layer.chain)? {
            Ok(size) => Ok(Some(*layer.size_bytes.get_or_init(|| size))),
            Err(damage) => {
                // What is wrong with the layer itself is known.
                if layer.damage.is_none() {
                    self.notice(layer.chain, Some(damage));
                }
                Ok(None)
            }
        }
    }

    fn space(&self) -> Result<Space> {
        self.driver.space()
    }

    fn footholds(&self) -> Vec<BorrowedFd<'_>> {
        let layers = self.driver.roots().into_iter().map(Root::reading_fd);
        [self.image.reading_fd(), self.containers.foothold()].into_iter().chain(layers).collect()
    }

    fn is_private(&self) -> bool {
        let are_layers = self.driver.roots().into_iter().all(Root::is_private);
        self.image.is_private() && are_layers && self.containers.is_private()
    }

    fn let_go(&self) {
        self.image.let_go();
        self.containers.let_go();
        for root in self.driver.roots() {
            root.let_go();
        }
    }
}

impl Docker {
    /// The folders that are no longer those which are held, as after the restoration of a backup.
    ///
    /// # Errors
    /// Transient ones.
    fn replaced(&self) -> Result<Vec<Damage>> {
        let mut replaced = Vec::new();
        let data_root = self.containers.data_root();
        for folder in &self.held {
            if folder.now(data_root)? != folder.found {
                let why = "it was replaced or moved since it was mounted; unmount, and mount again";
                replaced.push(Damage::of(data_root.shown(&folder.path), why));
            }
        }
        Ok(replaced)
    }

    /// Notes what is wrong with a layer, or that nothing is.
    fn notice(&self, chain: ChainId, damage: Option<Damage>) {
        let mut noticed = self.noticed.lock();
        let before = noticed.get(&chain).cloned();
        if before != damage {
            match damage {
                Some(damage) => drop(noticed.insert(chain, damage)),
                None => drop(noticed.remove(&chain)),
            }
            self.notices.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Adds what was noticed, as far as it is still so.
    fn tell_noticed(&self, catalogue: &mut Catalogue) -> Result<()> {
        let noticed: Vec<ChainId> = self.noticed.lock().keys().copied().collect();
        for chain in noticed {
            let is_sound = catalogue.layers.get(&chain).is_some_and(|record| record.damage.is_none());
            match layerdb::size_bytes(&self.image, &chain)? {
                Err(mut damage) if is_sound => {
                    let users = catalogue.images.values().filter(|image| image.layers.iter().any(|l| l.chain == chain));
                    damage.images = users.map(|image| image.id).collect();
                    catalogue.damage.push(damage);
                }
                Err(_) | Ok(_) => self.notice(chain, None),
            }
        }
        Ok(())
    }
}
