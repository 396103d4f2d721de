//! `containers`: the containers, whose layers have their IDs.

use std::sync::Arc;

use serde::Deserialize;

use super::images::JSON_MAX;
use crate::digest::{CacheId, ContainerId, ImageId};
use crate::error::{Error, Result};
use crate::meta::Timestamp;
use crate::name::TreePath;
use crate::root::Root;
use crate::store::docker::containers::{Containers, is_name};
use crate::store::driver::Driver;
use crate::store::reading::{Told, path, sound_ids, unread};
use crate::store::{Catalogue, Container, Damage, List};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    driver: Option<String>,
    #[serde(default)]
    image: Option<String>,
}

/// The file of a container's config in the folder of containers.
pub(super) fn config_of(id: &ContainerId) -> TreePath {
    path(&format!("{}/config.json", id.hex()))
}

/// Reads all containers of the driver, into a catalogue that has the images.
pub(super) fn read(containers: &Containers, driver: &dyn Driver, catalogue: &mut Catalogue) -> Result<()> {
    let all = match containers.folder() {
        Ok(Some(all)) => all,
        Ok(None) => return Ok(()),
        Err(error) => {
            let damage = Damage::from_error(containers.data_root(), &path("containers"), error)?;
            unread(catalogue, List::Containers, damage);
            return Ok(());
        }
    };
    let mut told = Told::of(catalogue);
    for id in sound_ids(&all, &TreePath::root(), ContainerId::from_hex, List::Containers, catalogue)? {
        let mut container = Container {
            id,
            name: None,
            image: None,
            changes: None,
            init: None,
            parent: None,
            config_bytes: None,
            stored: Timestamp::default(),
            damage: Vec::new(),
        };
        let file = config_of(&id);
        let damage = match fill(&all, &file, driver, &mut container) {
            // Another driver's, one that is being made, or one of a newer engine.
            Ok(false) => continue,
            Ok(true) => layers(driver, &mut container),
            Err(error) => Err(error),
        };
        if let Err(error) = damage {
            let damage = Damage::from_error(&all, &file, error)?;
            container.damage.push(damage.to_string());
            told.tell(damage, catalogue);
        } else if let Some(top) = container.parent
            && let Err(error) = catalogue.stack(&top)
        {
            container.damage.push(error.to_string());
            // What is wrong with images is told already.
            if !catalogue.layers.contains_key(&top) {
                told.tell(Damage::from_error(&all, &file, error)?, catalogue);
            }
        }
        catalogue.containers.insert(id, Arc::new(container));
    }
    Ok(())
}

/// Reads a container's config; false where it is none of this store.
fn fill(all: &Root, file: &TreePath, driver: &dyn Driver, container: &mut Container) -> Result<bool> {
    let Some((content, meta)) = all.read(file, JSON_MAX)? else { return Ok(false) };
    container.config_bytes = Some(meta.size_bytes);
    container.stored = meta.modified;
    let config: Config = serde_json::from_slice(&content)
        .map_err(|error| Error::damaged(all.shown(file), format!("no container config: {error}")))?;
    if config.driver.is_some_and(|name| name != driver.name()) {
        return Ok(false);
    }
    let name = config.name.unwrap_or_default();
    let name = name.strip_prefix('/').unwrap_or(&name);
    container.name = is_name(name).then(|| name.to_owned());
    let image = config.image.filter(|image| !image.is_empty());
    container.image = image.as_deref().and_then(ImageId::from_hex);
    if image.is_some() && container.image.is_none() {
        return Err(Error::damaged(all.shown(file), "its image is no image ID"));
    }
    Ok(true)
}

/// Finds the layers of a container whose config was read.
fn layers(driver: &dyn Driver, container: &mut Container) -> Result<()> {
    let no_id = |_| Error::damaged(format!("container {}", container.id), "no ID of a layer");
    let changes: CacheId = container.id.hex().parse().map_err(no_id)?;
    let init: CacheId = format!("{}-init", container.id.hex()).parse().map_err(no_id)?;
    container.changes = Some(changes.clone());
    container.init = Some(init.clone());
    container.parent = container.image.as_ref().map(ImageId::as_chain);
    driver.check(&changes)?;
    driver.check(&init).map(|_| ())
}
