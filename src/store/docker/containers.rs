//! `layerdb/mounts` and `containers`: the containers' own layers.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Deserialize;

use super::{JSON_MAX, ids, layerdb, path};
use crate::digest::{CacheId, ChainId, ContainerId, ImageId};
use crate::error::{Error, Result};
use crate::meta::Timestamp;
use crate::name::TreePath;
use crate::root::Root;
use crate::store::driver::Driver;
use crate::store::{Catalogue, Container, Damage, Stamp};

pub(super) const MOUNTS: &str = "layerdb/mounts";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    driver: Option<String>,
    #[serde(default)]
    image: Option<String>,
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

/// The folder of containers, which the engine makes with the first one.
#[derive(Debug)]
pub(super) struct Containers {
    data_root: Root,
    /// Once it was found.
    folder: OnceLock<Root>,
    /// Guards the stamps of all containers and when they were taken; held only to copy or set them.
    stamps: Mutex<Option<(Instant, Vec<Stamp>)>>,
}

impl Containers {
    /// How long the stamps of containers are taken to be the same. Each is a system call, and listing a folder of
    /// thousands asks for all of them again for each entry.
    const TRUSTED: Duration = Duration::from_millis(50);

    pub(super) fn new(data_root: Root) -> Self {
        Self { data_root, folder: OnceLock::new(), stamps: Mutex::new(None) }
    }

    /// The folder; `None` where there is none yet.
    pub(super) fn folder(&self) -> Result<Option<&Root>> {
        if let Some(folder) = self.folder.get() {
            return Ok(Some(folder));
        }
        let name = path("containers");
        if self.data_root.stat(&name)?.is_none_or(|meta| !meta.is_dir()) {
            return Ok(None);
        }
        let folder = self.data_root.sub(&name)?;
        Ok(Some(self.folder.get_or_init(|| folder)))
    }

    /// The directory below which all of it is read: the data root while there is no folder, since the folder will be there.
    pub(super) fn foothold(&self) -> BorrowedFd<'_> {
        self.folder.get().unwrap_or(&self.data_root).reading_fd()
    }

    /// Whether all of it is read through private clones.
    pub(super) fn is_private(&self) -> bool {
        self.data_root.is_private() && self.folder.get().is_none_or(Root::is_private)
    }

    /// Finds the folder if it is there, and lets go of where it was found.
    pub(super) fn let_go(&mut self) {
        if let Err(error) = self.folder() {
            log::debug!("while looking for containers: {error}");
        }
        self.data_root.let_go();
        if let Some(folder) = self.folder.get_mut() {
            folder.let_go();
        }
    }

    /// Calls for the folder and each container's directory, or, as long as there is no folder, for the data root.
    pub(super) fn watched(&self, each: &mut dyn FnMut(&Root, &TreePath)) {
        let top = TreePath::root();
        let Ok(Some(all)) = self.folder() else { return each(&self.data_root, &top) };
        each(all, &top);
        for id in ids(all, &top, ContainerId::from_hex).unwrap_or_default() {
            each(all, &path(&id.hex()));
        }
    }

    /// What tells of every change of a container: a rename within its directory replaces its config.
    pub(super) fn stamps(&self) -> Result<Vec<Stamp>> {
        if let Some((_, stamps)) = self.stamps.lock().as_ref().filter(|(at, _)| at.elapsed() < Self::TRUSTED) {
            return Ok(stamps.clone());
        }
        let mut stamps = Vec::new();
        if let Some(all) = self.folder()? {
            stamps.push(Stamp::from(&all.meta()?));
            let mut ids = ids(all, &TreePath::root(), ContainerId::from_hex)?;
            ids.sort_unstable();
            for id in ids {
                stamps.extend(all.stat(&path(&id.hex()))?.as_ref().map(Stamp::from));
            }
        }
        *self.stamps.lock() = Some((Instant::now(), stamps.clone()));
        Ok(stamps)
    }
}

pub(super) fn config_of(id: &ContainerId) -> TreePath {
    path(&format!("{}/config.v2.json", id.hex()))
}

/// Reads all containers of the driver; `all` is the folder that all drivers share.
pub(super) fn read(image: &Root, all: &Root, driver: &dyn Driver, catalogue: &mut Catalogue) -> Result<()> {
    let mounted: BTreeSet<_> = ids(image, &path(MOUNTS), ContainerId::from_hex)?.into_iter().collect();
    let configured: BTreeSet<_> = ids(all, &TreePath::root(), ContainerId::from_hex)?.into_iter().collect();
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
        match config(all, &file) {
            // A container of another driver: its layers are not in this store.
            Ok(Some(config)) if config.driver.as_deref().is_some_and(|name| name != driver.name()) => continue,
            Ok(Some(config)) => {
                is_dead = config.state.as_ref().is_some_and(|state| state.dead);
                fill(all, &file, config, &mut container)?;
            }
            Ok(None) if mounted.contains(id) => wrong.push(Damage::of(all.shown(&file), "missing")),
            // Docker makes the folder before it writes the config.
            Ok(None) => continue,
            Err(error) => wrong.push(Damage::from_error(all, &file, error)?),
        }
        if let Err(error) = layers(image, driver, &mut container) {
            wrong.push(Damage::from_error(image, &path(&format!("{MOUNTS}/{}", id.hex())), error)?);
        }
        if let Some(parent) = &container.parent
            && let Err(error) = catalogue.stack(parent)
        {
            wrong.push(Damage::from_error(image, &path(MOUNTS), error)?);
        }
        if is_dead && !wrong.is_empty() {
            // It is being removed, which is no damage.
            continue;
        }
        container.damage = wrong.iter().map(|damage| format!("{}: {}", damage.what, damage.why)).collect();
        for damage in wrong {
            // The image's own damage is listed once.
            if !catalogue.damage.iter().any(|known| known.what == damage.what && known.why == damage.why) {
                catalogue.damage.push(damage);
            }
        }
        catalogue.containers.insert(*id, Arc::new(container));
    }
    Ok(())
}

fn config(all: &Root, file: &TreePath) -> Result<Option<Config>> {
    let Some(content) = all.read(file, JSON_MAX)? else { return Ok(None) };
    serde_json::from_slice(&content)
        .map(Some)
        .map_err(|error| Error::damaged(all.shown(file), format!("no container config: {error}")))
}

fn fill(all: &Root, file: &TreePath, config: Config, container: &mut Container) -> Result<()> {
    if let Some(meta) = all.stat(file)? {
        container.config_bytes = Some(meta.size_bytes);
        container.stored = meta.modified;
    }
    let name = config.name.unwrap_or_default();
    let name = name.strip_prefix('/').unwrap_or(&name);
    container.name = is_name(name).then(|| name.to_owned());
    container.image = config.image.and_then(|image| image.parse::<ImageId>().ok());
    Ok(())
}

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, Docker's own pattern.
fn is_name(text: &str) -> bool {
    text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

fn layers(image: &Root, driver: &dyn Driver, container: &mut Container) -> Result<()> {
    let entry = path(&format!("{MOUNTS}/{}", container.id.hex()));
    let missing = |why| Error::damaged(image.shown(&entry), why);
    let entry = image.folder(&entry)?.ok_or_else(|| missing("missing"))?;
    let changes: CacheId = layerdb::field(&entry, "mount-id")?.ok_or_else(|| missing("it has no mount-id"))?;
    container.init = layerdb::field(&entry, "init-id")?;
    container.parent = layerdb::field::<ChainId>(&entry, "parent")?;
    container.changes = Some(changes.clone());
    driver.check(&changes)?;
    container.init.as_ref().map_or(Ok(()), |init| driver.check(init))
}
