//! Which files each object of the store stands upon, for [`Looks`](crate::store::looks::Looks).

use std::sync::Arc;

use super::containers::{self, Containers};
use super::{imagedb, layerdb, path};
use crate::digest::ImageId;
use crate::error::Result;
use crate::root::Root;
use crate::store::driver::Driver;
use crate::store::looks::{self, Print, stamp, state_of};
use crate::store::{Container, LayerRecord, Stamp};

/// Where the files are.
#[derive(Debug)]
pub(super) struct Place {
    /// `image/<driver>`.
    pub(super) image: Arc<Root>,
    pub(super) containers: Arc<Containers>,
    pub(super) driver: Arc<dyn Driver>,
}

impl looks::Place for Place {
    fn image(&self, id: &ImageId) -> Result<Print> {
        let files = [imagedb::content_of(id), imagedb::parent_of(id)];
        let stamps = files.iter().map(|file| stamp(&self.image, file));
        Ok(Print::of(&stamps.collect::<Result<Vec<_>>>()?))
    }

    fn layer(&self, record: &LayerRecord) -> Result<Print> {
        let entry = layerdb::entry_of(&record.chain);
        let files = layerdb::FIELDS.iter().map(|field| entry.join_path(&path(field)));
        let mut stamps = vec![stamp(&self.image, &entry)?];
        for file in files {
            stamps.push(stamp(&self.image, &file)?);
        }
        match &record.cache_id {
            Some(id) => Print::of_layer(&stamps, self.driver.find(id), record),
            None => Ok(Print::of(&stamps)),
        }
    }

    fn container(&self, container: &Container) -> Result<Print> {
        let entry = containers::mount_of(&container.id);
        let mut stamps = Vec::new();
        for field in containers::FIELDS {
            stamps.push(stamp(&self.image, &entry.join_path(&path(field)))?);
        }
        if let Ok(Some(all)) = self.containers.folder() {
            stamps.push(stamp(&all, &containers::config_of(&container.id))?);
        }
        for id in container.changes.iter().chain(&container.init) {
            // What a container writes is no change of the store.
            let found = self.driver.find(id).map(|found| found.map(|meta| Stamp::of_changes(meta.inode)));
            stamps.push(state_of(found)?);
        }
        Ok(Print::of(&stamps))
    }
}
