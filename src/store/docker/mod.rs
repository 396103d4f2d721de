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
mod repositories;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::driver::{DRIVERS, Driver};
use super::{Catalogue, Damage, Generation, LayerRecord, Options, Stamp, Store};
use crate::digest::{CacheId, ContainerId, ImageId};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::name::TreePath;
use crate::root::{Root, Space};
use containers::Containers;

/// The largest JSON document that is read, in bytes.
const JSON_MAX: usize = 16 << 20;
/// The largest of layerdb's small files that is read, in bytes.
const FIELD_MAX: usize = 4096;

/// A data root with one graph driver.
#[derive(Debug)]
struct Docker {
    /// `image/<driver>`.
    image: Root,
    /// `layerdb/sha256`, where there was one at the start.
    layers: Option<Root>,
    containers: Containers,
    driver: Box<dyn Driver>,
    /// What of the data root is not shown, and why.
    skipped: Vec<Damage>,
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
    });
    let skipped = skipped.collect();
    let image = image.sub(&path(name))?;
    let layers = match image.sub(&path(layerdb::LAYERS)) {
        Err(error) if error.is_transient() => return Err(error),
        layers => layers.ok(),
    };
    Ok(Some(Box::new(Docker {
        layers,
        driver: opener(&data_root, options)?,
        containers: Containers::new(data_root),
        skipped,
        image,
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
        Self { what, why: why.into(), images: BTreeSet::new() }
    }

    /// What an error says of an object of the store.
    ///
    /// # Errors
    /// The error itself where it is transient, which says nothing of the object.
    fn from_error(root: &Root, object: &TreePath, error: Error) -> Result<Self> {
        if error.is_transient() {
            return Err(error);
        }
        Ok(match error {
            Error::Damaged { what, why } => Self::of(what, why),
            other @ (Error::Io { .. }
            | Error::Refused { .. }
            | Error::Stale { .. }
            | Error::Unsupported { .. }
            | Error::NotFound { .. }) => Self::of(root.shown(object), other.to_string()),
        })
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
        let mut stamps = Vec::new();
        for file in [repositories::FILE, imagedb::CONTENT, imagedb::METADATA, layerdb::LAYERS, containers::MOUNTS] {
            stamps.extend(self.image.stat(&path(file))?.as_ref().map(Stamp::from));
        }
        stamps.extend(self.containers.stamps()?);
        Ok(Generation::of(stamps))
    }

    fn watched(&self, each: &mut dyn FnMut(&Root, &TreePath)) {
        each(&self.image, &TreePath::root());
        for dir in [imagedb::CONTENT, imagedb::METADATA, layerdb::LAYERS, containers::MOUNTS] {
            each(&self.image, &path(dir));
        }
        self.containers.watched(each);
    }

    fn is_labelled(&self) -> bool {
        self.driver.is_labelled()
    }

    fn layers_generation(&self) -> Result<Generation> {
        let listed = self.layers.as_ref().map(Root::meta).transpose()?;
        Ok(Generation::of(listed.as_ref().map(Stamp::from).into_iter().chain([self.driver.stamp()?]).collect()))
    }

    fn stands(&self, record: &LayerRecord) -> Result<bool> {
        let listed = self.image.stat(&path(&format!("{}/{}", layerdb::LAYERS, record.chain.hex())))?;
        let is_listed = listed.is_some_and(|meta| Stamp::from(&meta) == record.stamp);
        match &record.cache_id {
            Some(id) if is_listed => match self.driver.check(id) {
                Err(Error::Damaged { .. }) => Ok(false),
                answer => answer.map(|()| true),
            },
            _ => Ok(false),
        }
    }

    fn catalogue(&self, known: Option<&Catalogue>) -> Result<Catalogue> {
        let mut catalogue = Catalogue { damage: self.skipped.clone(), ..Catalogue::default() };
        let references = repositories::read(&self.image, &mut catalogue.damage)?;
        if let Some(meta) = self.image.stat(&path(repositories::FILE))? {
            catalogue.changed = meta.modified;
        }
        layerdb::read(&self.image, self.driver.as_ref(), known, &mut catalogue)?;
        imagedb::read(&self.image, references, known, &mut catalogue)?;
        if let Some(all) = self.containers.folder()? {
            containers::read(&self.image, all, self.driver.as_ref(), &mut catalogue)?;
        }
        Ok(catalogue)
    }

    fn config(&self, id: &ImageId) -> Result<Vec<u8>> {
        imagedb::config(&self.image, id)
    }

    fn container_config(&self, id: &ContainerId) -> Result<Vec<u8>> {
        let what = || format!("container {id}");
        let all = self.containers.folder()?.ok_or_else(|| Error::Stale { what: what() })?;
        all.read(&containers::config_of(id), JSON_MAX)?.ok_or_else(|| Error::Stale { what: what() })
    }

    fn layer(&self, id: &CacheId) -> Result<Layer> {
        self.driver.layer(id)
    }

    fn size_bytes(&self, layer: &LayerRecord) -> Option<u64> {
        let known = layer.size_bytes.get().copied();
        known.or_else(|| {
            let size = layerdb::size_bytes(&self.image, &layer.chain)?;
            Some(*layer.size_bytes.get_or_init(|| size))
        })
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

    fn let_go(&mut self) {
        self.image.let_go();
        self.containers.let_go();
        if let Some(root) = self.driver.root_mut() {
            root.let_go();
        }
        if let Some(layers) = &mut self.layers {
            layers.let_go();
        }
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
