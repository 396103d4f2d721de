//! The classic image store of Docker 1.10 and newer.
//!
//! ```text
//! <data root>/
//!   image/<driver>/
//!     repositories.json                                  references
//!     imagedb/content/sha256/<image ID>                  configs
//!     imagedb/metadata/sha256/<image ID>/parent          which image an image was built upon
//!     layerdb/sha256/<chain ID>/{diff,parent,cache-id,size}
//!     layerdb/mounts/<container ID>/{mount-id,init-id,parent}
//!   <driver>/…                                           the layers' directories
//!   containers/<container ID>/config.v2.json
//! ```
//!
//! The engine replaces whole files and directories by renaming (`layerdb/tmp` to `layerdb/sha256`, `.tmp-*` to their
//! names), so a name that matches its pattern is complete; anything else is not looked at.

mod containers;
mod imagedb;
mod layerdb;
mod looks;
mod repositories;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::driver::{DRIVERS, Driver};
use super::{Catalogue, Damage, Generation, LayerRecord, List, Options, Stamp, Store};
use crate::digest::{CacheId, ChainId, ContainerId, ImageId};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::meta::FileId;
use crate::name::TreePath;
use crate::root::{Root, Space};
use containers::Containers;
use looks::{Looks, Place};

/// The largest JSON document that is read, in bytes.
const JSON_MAX: usize = 16 << 20;
/// The largest of layerdb's small files that is read, in bytes.
const FIELD_MAX: usize = 4096;
/// The longest sentence that says what is wrong, in bytes: parts of the store are in it.
const WHY_MAX: usize = 1_000;

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
    /// The folders that are held, where they were found in the data root.
    held: Vec<HeldFolder>,
}

/// Opens a data root; `None` where the directory is none.
///
/// # Errors
/// [`Error::Unsupported`] where no driver of it is one that this program reads.
pub fn open(data_root: Root, options: &Options) -> Result<Option<Box<dyn Store>>> {
    let image = path("image");
    if data_root.stat(&image)?.is_none_or(|meta| !meta.is_dir()) {
        if data_root.stat(&path("containerd/daemon"))?.is_some() {
            return Err(Error::Unsupported {
                what: data_root.shown(&TreePath::root()),
                why: "a Docker data root without image/<driver>: its images are in the containerd image store, as new \
                      installations of Docker 29 have it, which is not supported yet"
                    .to_owned(),
            });
        }
        return Ok(None);
    }
    let image = data_root.sub(&image)?;
    let mut present = BTreeSet::new();
    for name in image.names(&TreePath::root())? {
        let driver = TreePath::from(name.clone());
        let has = |file: &str| image.stat(&driver.join_path(&path(file)));
        if has("imagedb")?.is_some() || has("repositories.json")?.is_some() {
            present.insert(String::from_utf8_lossy(name.as_bytes()).into_owned());
        }
    }
    let Some((name, opener)) = DRIVERS.iter().find(|(name, _)| present.contains(*name)) else {
        return match present.first() {
            None => Ok(None),
            Some(_) => Err(Error::Unsupported {
                what: data_root.shown(&TreePath::root()),
                why: format!(
                    "its graph driver {} is not supported; supported: {}",
                    present.into_iter().collect::<Vec<_>>().join(", "),
                    DRIVERS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
                ),
            }),
        };
    };
    let skipped = present.iter().filter(|other| other != name).map(|other| Damage {
        what: image.shown(&path(other)),
        why: format!("images of the graph driver {other:?} are not shown"),
        images: BTreeSet::new(),
        is_unreadable: false,
    });
    let skipped = skipped.collect();
    let image = Arc::new(image.sub(&path(name))?);
    let held = [path(&format!("image/{name}")), path(name)];
    let held = held.into_iter().map(|path| HeldFolder::new(&data_root, path)).collect::<Result<Vec<_>>>()?;
    let driver: Arc<dyn Driver> = opener(&data_root, options)?.into();
    let containers = Arc::new(Containers::new(data_root)?);
    let place = Place { image: Arc::clone(&image), containers: Arc::clone(&containers), driver: Arc::clone(&driver) };
    let looks = Looks::new(place);
    Ok(Some(Box::new(Docker {
        image,
        containers,
        driver,
        skipped,
        looks,
        noticed: Mutex::default(),
        notices: AtomicU64::new(0),
        held,
    })))
}

/// A path of this store's own making, or of IDs that were checked.
fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes()).unwrap_or_default()
}

/// The names in a directory that are IDs; no names where there is no directory.
fn ids<T>(root: &Root, dir: &TreePath, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>> {
    if root.stat(dir)?.is_none() {
        return Ok(Vec::new());
    }
    let names = root.names(dir)?;
    Ok(names.iter().filter_map(|name| parse(std::str::from_utf8(name.as_bytes()).ok()?)).collect())
}

/// As [`ids`]; that a directory cannot be listed becomes damage.
///
/// # Errors
/// Transient ones.
fn sound_ids<T>(
    root: &Root,
    dir: &TreePath,
    parse: impl Fn(&str) -> Option<T>,
    list: List,
    catalogue: &mut Catalogue,
) -> Result<Vec<T>> {
    ids(root, dir, parse).or_else(|error| {
        unread(catalogue, list, Damage::from_error(root, dir, error)?);
        Ok(Vec::new())
    })
}

/// Notes that a list could not be read.
fn unread(catalogue: &mut Catalogue, list: List, damage: Damage) {
    catalogue.unread.insert(list, damage.to_string());
    catalogue.damage.push(damage);
}

/// The state of a file or directory, as far as it can be told: what is wrong with it is found when it is read.
///
/// # Errors
/// Transient ones.
fn stamp_of(root: &Root, path: &TreePath) -> Result<Option<Stamp>> {
    match root.stat(path) {
        Ok(meta) => Ok(meta.as_ref().map(Stamp::from)),
        Err(error) if error.is_transient() => Err(error),
        Err(_) => Ok(Some(Stamp::default())),
    }
}

/// Does the same with each item on as many threads as there are CPUs, and keeps the order. Reading a store is mostly
/// waiting for system calls on thousands of small files.
///
/// The threads take small shares as they go, since one that others keep from its CPU would be waited for.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    const SHARE: usize = 64;
    let shares: Vec<&[T]> = items.chunks(SHARE).collect();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(share) = shares.get(number) else { return done };
            done.push((number, share.iter().map(&work).collect::<Vec<R>>()));
        }
    };
    let mut done: Vec<(usize, Vec<R>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cpus.min(shares.len())).map(|_| scope.spawn(take)).collect();
        let done = threads.into_iter().flat_map(|thread| match thread.join() {
            Ok(results) => results,
            // A panic belongs to whoever asked for the work.
            Err(panic) => std::panic::resume_unwind(panic),
        });
        done.collect()
    });
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().flat_map(|(_, results)| results).collect()
}

impl Damage {
    fn of(what: String, why: impl Into<String>) -> Self {
        let mut why = why.into();
        if why.len() > WHY_MAX {
            why.truncate(why.floor_char_boundary(WHY_MAX));
            why.push('…');
        }
        Self { what, why, images: BTreeSet::new(), is_unreadable: false }
    }

    /// What an error says of an object of the store.
    ///
    /// # Errors
    /// The error itself where it is transient, which says nothing of the object.
    fn from_error(root: &Root, object: &TreePath, error: Error) -> Result<Self> {
        if error.is_transient() {
            return Err(error);
        }
        let is_unreadable = matches!(&error, Error::Io { source, .. } if source.kind() != std::io::ErrorKind::NotFound);
        let damage = match error {
            Error::Damaged { what, why } => Self::of(what, why),
            other @ (Error::Io { .. }
            | Error::Refused { .. }
            | Error::Stale { .. }
            | Error::Unsupported { .. }
            | Error::NotFound { .. }) => Self::of(root.shown(object), other.to_string()),
        };
        Ok(Self { is_unreadable, ..damage })
    }
}

impl Store for Docker {
    fn kind(&self) -> &'static str {
        "docker"
    }

    fn driver(&self) -> &str {
        self.driver.name()
    }

    fn generation(&self) -> Result<Generation> {
        self.looks.take();
        let mut stamps =
            vec![Stamp::of_changes(self.looks.changes()), Stamp::of_changes(self.notices.load(Ordering::Acquire))];
        for folder in &self.held {
            stamps.extend(folder.now(self.containers.data_root())?.map(|found| Stamp::of_changes(found.inode)));
        }
        for file in [repositories::FILE, imagedb::CONTENT, imagedb::METADATA, layerdb::LAYERS, containers::MOUNTS] {
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
            answer => answer.map(|found| is_same && record.root.is_none_or(|root| found.id() == root)),
        }
    }

    fn catalogue(&self, known: Option<&Catalogue>) -> Result<Catalogue> {
        let looks = self.looks.over();
        let begun = self.looks.begin_reading();
        // Where the references cannot be read, the time is that of what was known before.
        let changed = known.map_or_else(|| self.image.meta().map(|meta| meta.modified), |known| Ok(known.changed))?;
        let mut catalogue = Catalogue { damage: self.skipped.clone(), looks, changed, ..Catalogue::default() };
        let references = repositories::read(&self.image, &mut catalogue)?;
        let reader = layerdb::Reader { image: &self.image, driver: self.driver.as_ref(), looks: &self.looks };
        reader.read(known, &mut catalogue)?;
        imagedb::read(&self.image, references, known, &mut catalogue)?;
        for chain in known.map(|known| self.looks.changed_since(known.looks)).unwrap_or_default() {
            // Who has read the size already does not ask again.
            let _size = catalogue.layers.get(&chain).map(|record| self.size_bytes(record)).transpose()?;
        }
        self.tell_noticed(&mut catalogue)?;
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
        vec![self.image.reading_fd(), self.driver.root().reading_fd(), self.containers.foothold()]
    }

    fn is_private(&self) -> bool {
        self.image.is_private() && self.driver.root().is_private() && self.containers.is_private()
    }

    fn let_go(&self) {
        self.image.let_go();
        self.containers.let_go();
        self.driver.root().let_go();
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

/// Adds to each damaged object the images that suffer from it.
fn blame(catalogue: &mut Catalogue, damage: Vec<(Damage, ImageId)>) {
    let key = |damage: &Damage| (damage.what.clone(), damage.why.clone());
    let known = catalogue.damage.iter().enumerate();
    let mut places: BTreeMap<_, _> = known.map(|(place, damage)| (key(damage), place)).collect();
    for (found, id) in damage {
        let next = catalogue.damage.len();
        let place = *places.entry(key(&found)).or_insert(next);
        if place == next {
            catalogue.damage.push(found);
        }
        if let Some(damage) = catalogue.damage.get_mut(place) {
            damage.images.insert(id);
        }
    }
}
