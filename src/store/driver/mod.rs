//! Graph drivers: from a cache ID to a layer.
//!
//! A driver is a file here and a line in [`DRIVERS`].

pub mod aufs;
pub(in crate::store) mod directories;
pub mod fuse_overlayfs;
pub mod overlay;
pub mod overlay2;
pub mod whole;

use std::fmt::Debug;
use std::path::PathBuf;

use super::{Layering, Options, Stamp};
use crate::digest::CacheId;
use crate::error::Result;
use crate::layer::Layer;
use crate::layer::difference::Life;
use crate::meta::Meta;
use crate::root::{Root, Space};

/// A graph driver's folder of one data root.
pub trait Driver: Debug + Send + Sync {
    /// The driver's name, which is that of its folder.
    fn name(&self) -> &'static str;

    /// Opens a layer; nothing of it is read.
    ///
    /// # Errors
    /// Where the ID cannot be one of this driver.
    fn layer(&self, id: &CacheId) -> Result<Layer>;

    /// What the layers' directories hold.
    fn layering(&self) -> Layering {
        Layering::Deltas
    }

    /// As [`super::Store::changes`].
    ///
    /// # Errors
    /// As [`Driver::layer`].
    fn changes(&self, id: &CacheId, _below: Option<&CacheId>, _life: Life) -> Result<Layer> {
        self.layer(id)
    }

    /// As [`super::Store::container_layers`].
    ///
    /// # Errors
    /// As [`Driver::layer`].
    fn container_layers(&self, changes: &CacheId, init: Option<&CacheId>) -> Result<Vec<Layer>> {
        [changes].into_iter().chain(init).map(|id| Ok(self.layer(id)?.changing())).collect()
    }

    /// Looks whether what the driver itself notes of a container's layers is what they are: its init layer, and the top
    /// layer of its image.
    ///
    /// # Errors
    /// [`crate::error::Error::Damaged`] where it is not.
    fn check_container(&self, _changes: &CacheId, _init: Option<&CacheId>, _top: Option<&CacheId>) -> Result<()> {
        Ok(())
    }

    /// The directory on the host that holds a layer's files.
    fn directory(&self, id: &CacheId) -> PathBuf;

    /// The attributes of what stands where the layer's directory should be; `None` where there is nothing.
    ///
    /// # Errors
    /// Where it could not be looked at.
    fn find(&self, id: &CacheId) -> Result<Option<Meta>>;

    /// Looks whether the layer's directory is there; answers its attributes.
    ///
    /// # Errors
    /// [`crate::error::Error::Damaged`] where it is not, or is no directory.
    fn check(&self, id: &CacheId) -> Result<Meta>;

    /// Whether the folder has an `SELinux` label, as all files then have.
    fn is_labelled(&self) -> bool;

    /// The state of the folder that holds the layers' directories.
    ///
    /// # Errors
    /// Where it could not be looked at.
    fn stamp(&self) -> Result<Stamp>;

    /// What the file system that holds the layers says of its space.
    ///
    /// # Errors
    /// Where it could not be asked.
    fn space(&self) -> Result<Space>;

    /// The folder.
    fn root(&self) -> &Root;

    /// The folder, and what is mounted below it and was opened with it.
    fn roots(&self) -> Vec<&Root> {
        vec![self.root()]
    }
}

type Opener = fn(&Root, &Options) -> Result<Box<dyn Driver>>;

/// Every driver, in the order in which Docker prefers them.
pub const DRIVERS: &[(&str, Opener)] = &[
    ("btrfs", whole::btrfs),
    ("zfs", whole::zfs),
    ("overlay2", overlay2::open),
    ("fuse-overlayfs", fuse_overlayfs::open),
    ("aufs", aufs::open),
    ("overlay", overlay::open),
    ("devicemapper", whole::devicemapper),
    ("vfs", whole::vfs),
];
