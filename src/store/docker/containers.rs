//! `layerdb/mounts` and `containers`: the containers' own layers.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Deserialize;

use super::{JSON_MAX, ids, layerdb, path, sound_ids, unread};
use crate::digest::{CacheId, ChainId, ContainerId, ImageId};
use crate::error::{Error, Result};
use crate::meta::{Kind, Meta, Timestamp};
use crate::name::TreePath;
use crate::root::Root;
use crate::store::driver::Driver;
use crate::store::{Catalogue, Container, Damage, LAYERS_MAX, Layering, List, Stamp};

pub(super) const MOUNTS: &str = "layerdb/mounts";
/// The files of an entry there.
pub(super) const FIELDS: [&str; 3] = ["mount-id", "init-id", "parent"];
const FOLDER: &str = "containers";
/// The longest name that is shown, in bytes; the engine accepts any.
const NAME_MAX: usize = 4_096;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::store) struct Config {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    pub(in crate::store) driver: Option<String>,
    #[serde(default)]
    pub(in crate::store) image: Option<String>,
    #[serde(default)]
    state: Option<State>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    /// Set before the engine removes the container's layers, and only then.
    #[serde(default)]
    dead: bool,
}

impl Config {
    /// The container's name without the slash in front, where it is one that Docker accepts.
    pub(in crate::store) fn name(&self) -> Option<String> {
        let name = self.name.as_deref().unwrap_or_default();
        let name = name.strip_prefix('/').unwrap_or(name);
        (is_name(name) && name.len() <= NAME_MAX).then(|| name.to_owned())
    }

    /// Whether the engine is removing the container.
    pub(in crate::store) fn is_dead(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.dead)
    }
}

/// A folder, known by the number of the inode at its name, which is not its own where a mount lies upon it.
#[derive(Debug, Clone)]
struct Folder {
    inode: u64,
    root: Arc<Root>,
}

/// The folder of containers, which the engine makes with the first one.
#[derive(Debug)]
pub(in crate::store) struct Containers {
    data_root: Root,
    /// The one that was there when the store was opened.
    first: Option<Folder>,
    /// Guards one that came later; held only to copy or set it.
    later: Mutex<Option<Folder>>,
    /// Guards the stamps of all containers and when they were taken; held only to copy or set them.
    stamps: Mutex<Option<(Instant, Vec<Stamp>)>>,
}

impl Containers {
    /// How long the stamps of containers are taken to be the same. Each is a system call, and listing a folder of
    /// thousands asks for all of them again for each entry.
    const TRUSTED: Duration = Duration::from_millis(50);

    /// Looks for the folder.
    ///
    /// # Errors
    /// Transient ones. Others are found when the containers are read.
    pub(in crate::store) fn new(data_root: Root) -> Result<Self> {
        let mut containers = Self { data_root, first: None, later: Mutex::new(None), stamps: Mutex::new(None) };
        match containers.find() {
            Err(error) if error.is_transient() => return Err(error),
            found => containers.first = found.ok().flatten(),
        }
        Ok(containers)
    }

    /// The folder; `None` where there is none yet.
    ///
    /// # Errors
    /// Also where something else has its name.
    pub(in crate::store) fn folder(&self) -> Result<Option<Arc<Root>>> {
        Ok(self.find()?.map(|folder| folder.root))
    }

    fn find(&self) -> Result<Option<Folder>> {
        let name = path(FOLDER);
        let Some(found) = self.data_root.stat(&name)? else { return Ok(None) };
        let later = self.later.lock().clone();
        if let Some(known) = self.first.iter().chain(&later).find(|known| known.inode == found.inode) {
            return Ok(Some(known.clone()));
        }
        if !found.is_dir() && found.kind != Kind::Symlink {
            return Err(Error::damaged(self.data_root.shown(&name), "not a directory"));
        }
        let folder = Folder { inode: found.inode, root: Arc::new(self.data_root.sub(&name)?) };
        *self.later.lock() = Some(folder.clone());
        Ok(Some(folder))
    }

    /// The data root.
    pub(in crate::store) fn data_root(&self) -> &Root {
        &self.data_root
    }

    /// The directory below which all of it is read: the data root while there is no folder, since the folder will be there.
    pub(in crate::store) fn foothold(&self) -> BorrowedFd<'_> {
        self.first.as_ref().map_or(&self.data_root, |folder| &folder.root).reading_fd()
    }

    /// Whether all of it is read through private clones.
    pub(in crate::store) fn is_private(&self) -> bool {
        self.data_root.is_private() && self.first.as_ref().is_none_or(|folder| folder.root.is_private())
    }

    /// Lets go of where the folder was found.
    pub(in crate::store) fn let_go(&self) {
        self.data_root.let_go();
        if let Some(folder) = &self.first {
            folder.root.let_go();
        }
    }

    /// Calls for the folder and each container's directory, or, as long as there is no folder, for the data root.
    ///
    /// # Errors
    /// Where it cannot be told which directories there are.
    pub(in crate::store) fn watched(&self, each: &mut dyn FnMut(&Root, &TreePath)) -> Result<()> {
        let top = TreePath::root();
        let Ok(Some(all)) = self.folder() else {
            each(&self.data_root, &top);
            return Ok(());
        };
        each(&all, &top);
        for id in ids(&all, &top, ContainerId::from_hex)? {
            each(&all, &path(&id.hex()));
        }
        Ok(())
    }

    /// What tells of every change of a container: a rename within its directory replaces its config.
    pub(in crate::store) fn stamps(&self) -> Result<Vec<Stamp>> {
        if let Some((_, stamps)) = self.stamps.lock().as_ref().filter(|(at, _)| at.elapsed() < Self::TRUSTED) {
            return Ok(stamps.clone());
        }
        let stamps = match self.stamps_of_all() {
            // What is wrong is found when the containers are read; here it has to differ from what was.
            Err(error) if !error.is_transient() => vec![Stamp::default()],
            stamps => stamps?,
        };
        *self.stamps.lock() = Some((Instant::now(), stamps.clone()));
        Ok(stamps)
    }

    fn stamps_of_all(&self) -> Result<Vec<Stamp>> {
        let Some(all) = self.folder()? else { return Ok(Vec::new()) };
        let mut stamps = vec![Stamp::from(&all.meta()?)];
        let mut ids = ids(&all, &TreePath::root(), ContainerId::from_hex)?;
        ids.sort_unstable();
        for id in ids {
            stamps.extend(all.stat(&path(&id.hex()))?.as_ref().map(Stamp::from));
        }
        Ok(stamps)
    }
}

/// The directory of a container's entry in layerdb.
pub(super) fn mount_of(id: &ContainerId) -> TreePath {
    path(&format!("{MOUNTS}/{}", id.hex()))
}

/// The file of a container's config in the folder of containers.
pub(in crate::store) fn config_of(id: &ContainerId) -> TreePath {
    path(&format!("{}/config.v2.json", id.hex()))
}

/// Reads all containers of the driver; the folder is one that all drivers share.
pub(super) fn read(
    image: &Root,
    containers: &Containers,
    driver: &dyn Driver,
    catalogue: &mut Catalogue,
) -> Result<()> {
    let mounted = sound_ids(image, &path(MOUNTS), ContainerId::from_hex, List::Containers, catalogue)?;
    let mounted: BTreeSet<_> = mounted.into_iter().collect();
    let all = match containers.folder() {
        Ok(all) => all,
        Err(error) => {
            unread(catalogue, List::Containers, Damage::from_error(&containers.data_root, &path(FOLDER), error)?);
            None
        }
    };
    let configured = match &all {
        Some(all) => sound_ids(all, &TreePath::root(), ContainerId::from_hex, List::Containers, catalogue)?,
        None => Vec::new(),
    };
    let configured: BTreeSet<_> = configured.into_iter().collect();
    for id in mounted.union(&configured) {
        let mut container = Container {
            id: *id,
            name: None,
            image: None,
            changes: None,
            init: None,
            parent: None,
            config_bytes: None,
            stored: Timestamp::default(),
            damage: Vec::new(),
        };
        let file = config_of(id);
        let mut wrong = Vec::new();
        let mut is_dead = false;
        match all.as_ref().map_or(Ok(None), |all| config(all, &file)) {
            // A container of another driver: its layers are not in this store.
            Ok(Some((config, _))) if config.driver.as_deref().is_some_and(|name| name != driver.name()) => continue,
            Ok(Some((config, meta))) => {
                is_dead = config.is_dead();
                fill(config, meta, &mut container);
            }
            Ok(None) if mounted.contains(id) => {
                let shown = containers.data_root.shown(&path(FOLDER).join_path(&file));
                wrong.push(Damage::of(shown, "missing"));
            }
            // Docker makes the folder before it writes the config.
            Ok(None) => continue,
            Err(error) => {
                let root = all.as_deref().unwrap_or(&containers.data_root);
                wrong.push(Damage::from_error(root, &file, error)?);
            }
        }
        if let Err(error) = layers(image, driver, catalogue, &mut container) {
            wrong.push(Damage::from_error(image, &mount_of(id), error)?);
        }
        if is_dead && !wrong.is_empty() {
            // It is being removed, which is no damage.
            continue;
        }
        container.damage = wrong.iter().map(ToString::to_string).collect();
        catalogue.damage.extend(wrong);
        if let Some(top) = container.parent.filter(|_| driver.layering() != Layering::Trees)
            && let Err(error) = catalogue.ground(&top, driver.layering())
        {
            container.damage.push(error.to_string());
            // What is wrong with a layer, or with an image that names it, is told already.
            let missing = unlisted(catalogue, top).map(|chain| image.shown(&layerdb::entry_of(&chain)));
            if let Some(what) = missing.filter(|what| catalogue.damage.iter().all(|known| known.what != *what)) {
                catalogue.damage.push(Damage::of(what, "missing"));
            }
        }
        catalogue.containers.insert(*id, Arc::new(container));
    }
    Ok(())
}

/// The first of a layer and those below it that is not listed.
fn unlisted(catalogue: &Catalogue, top: ChainId) -> Option<ChainId> {
    let mut chain = top;
    for _ in 0..LAYERS_MAX {
        match catalogue.layers.get(&chain) {
            Some(record) => chain = record.parent?,
            None => return Some(chain),
        }
    }
    None
}

/// A container's config, with the attributes of its file; `None` where there is none.
///
/// # Errors
/// [`Error::Damaged`] where it is no config; [`Error::Io`].
pub(in crate::store) fn config(all: &Root, file: &TreePath) -> Result<Option<(Config, Meta)>> {
    let Some((content, meta)) = all.read(file, JSON_MAX)? else { return Ok(None) };
    let config = serde_json::from_slice(&content)
        .map_err(|error| Error::damaged(all.shown(file), format!("no container config: {error}")))?;
    Ok(Some((config, meta)))
}

fn fill(config: Config, meta: Meta, container: &mut Container) {
    container.config_bytes = Some(meta.size_bytes);
    container.stored = meta.modified;
    container.name = config.name();
    container.image = config.image.and_then(|image| image.parse::<ImageId>().ok());
}

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, Docker's own pattern.
pub(in crate::store) fn is_name(text: &str) -> bool {
    text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// Finds the layers of a container whose config was read, in a catalogue that has the images.
fn layers(image: &Root, driver: &dyn Driver, catalogue: &Catalogue, container: &mut Container) -> Result<()> {
    let place = mount_of(&container.id);
    let file = |field: &str| image.shown(&place.join_path(&path(field)));
    let missing = |field: &str| Error::damaged(file(field), "missing");
    let entry = image.folder(&place)?.ok_or_else(|| missing(""))?;
    let changes: CacheId = layerdb::field(&entry, "mount-id")?.ok_or_else(|| missing("mount-id"))?;
    container.changes = Some(changes.clone());
    container.init = layerdb::field(&entry, "init-id")?;
    container.parent = layerdb::field::<ChainId>(&entry, "parent")?;
    let _changes = layerdb::check(driver, &changes, || file("mount-id"))?;
    let top = container.parent.map(|top| catalogue.layers.get(&top).filter(|record| record.damage.is_none()));
    // Of a layer with which something is wrong that is told, and nobody knows its directory.
    if top.is_none_or(|top| top.is_some()) {
        let top = top.flatten().and_then(|record| record.cache_id.as_ref());
        driver.check_container(&changes, container.init.as_ref(), top)?;
    }
    match &container.init {
        // A whole tree has it all; of zfs and devicemapper this one is not even mounted.
        Some(_) if driver.layering() == Layering::Trees => {}
        Some(init) => drop(layerdb::check(driver, init, || file("init-id"))?),
        // The engine names it so. Without it files of the image would show that the container does not see.
        None => match format!("{}-init", changes.as_str()).parse() {
            Ok(init) if driver.find(&init)?.is_some() => return Err(missing("init-id")),
            Ok(_) | Err(_) => {}
        },
    }
    let known = container.image.and_then(|id| catalogue.images.get(&id)).filter(|image| image.has_config);
    match known {
        Some(known) if known.damage.is_empty() && known.top() != container.parent => {
            let why = match container.parent {
                Some(_) => "not the top layer of its image",
                None => "missing",
            };
            Err(Error::damaged(file("parent"), why))
        }
        _ => Ok(()),
    }
}
