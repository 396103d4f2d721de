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
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::driver::{DRIVERS, Driver};
use super::{Catalogue, Damage, Generation, LayerRecord, List, Options, Stamp, Store};
use crate::digest::{CacheId, ChainId, ContainerId, ImageId};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::meta::Timestamp;
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
    found.into_stores(data_root)
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
    fn into_stores(mut self, data_root: &Root) -> Result<Vec<Box<dyn Store>>> {
        match self.stores.first_mut() {
            Some(first) => {
                for (what, error) in self.failed {
                    first.skipped.push(Damage::of(what, error.to_string()));
                }
            }
            None => match self.failed.into_iter().next() {
                Some((_, error)) => return Err(error),
                None if data_root.stat(&path("containerd/daemon"))?.is_some() => {
                    return Err(Error::Unsupported {
                        what: data_root.shown(&TreePath::root()),
                        why:
                            "a Docker data root without image/<driver>: its images are in the containerd image store, \
                              as new installations of Docker 29 have it, which is not supported yet"
                                .to_owned(),
                    });
                }
                None => {}
            },
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
        if has("imagedb")?.is_some() || has("repositories.json")?.is_some() {
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
    let driver: Arc<dyn Driver> = opener(data_root, options)?.into();
    let image = Arc::new(image.sub(&path(name))?);
    let containers = Arc::new(Containers::new(data_root.sub(&TreePath::root())?)?);
    let place = Place { image: Arc::clone(&image), containers: Arc::clone(&containers), driver: Arc::clone(&driver) };
    let looks = Looks::new(place);
    Ok(Docker { image, containers, driver, skipped: Vec::new(), looks, noticed: Mutex::default() })
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

    fn used(&self) -> Result<Timestamp> {
        let mut latest = Timestamp::default();
        for file in [repositories::FILE, imagedb::CONTENT, layerdb::LAYERS, containers::MOUNTS] {
            // What cannot be looked at is found when the store is read.
            let found = self.image.stat(&path(file)).ok().flatten();
            latest = latest.max(found.map(|meta| meta.modified).unwrap_or_default());
        }
        Ok(latest)
    }

    fn generation(&self) -> Result<Generation> {
        self.looks.take();
        let mut stamps = vec![Stamp::of_changes(self.looks.changes()), Stamp::of_changes(self.noticed_count())];
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
        Ok(Generation::of(listed.as_ref().map(Stamp::from).into_iter().chain([self.driver.stamp()?]).collect()))
    }

    fn stands(&self, record: &LayerRecord) -> Result<bool> {
        let entry = layerdb::entry_of(&record.chain);
        let Some(listed) = self.image.stat(&entry)? else { return Ok(false) };
        let Some(id) = &record.cache_id else { return Ok(false) };
        // Where the entry is another, as after a repair, it may well be of the same layer.
        let is_same = Stamp::from(&listed) == record.stamp || layerdb::is_of(&self.image, &record.chain, id)?;
        match self.driver.check(id) {
            Err(Error::Damaged { .. }) => Ok(false),
            answer => answer.map(|()| is_same),
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
                    self.noticed.lock().insert(layer.chain, damage);
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
    fn noticed_count(&self) -> u64 {
        u64::try_from(self.noticed.lock().len()).unwrap_or(u64::MAX)
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
                Err(_) | Ok(_) => drop(self.noticed.lock().remove(&chain)),
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
