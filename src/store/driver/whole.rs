//! The drivers whose layers are whole trees, of images and containers alike.
//!
//! ```text
//! vfs/dir/<id>/                    a copy of the tree below, and then changed
//! btrfs/subvolumes/<id>/           a snapshot of it: a volume with its own inode numbers
//! zfs/graph/<id>/                  where a clone of it is mounted while the engine uses it, otherwise empty
//! devicemapper/mnt/<id>/rootfs/    as with zfs; the thin device's file system has `id` and `lost+found` beside it
//! devicemapper/metadata/<id>       {"device_id":7,"size":10737418240,…}, for who wants to mount it
//! ```
//!
//! A container's tree is the directory of its mount ID, and no union. What a layer changes is told by comparison
//! ([`Difference`]). Of zfs and devicemapper that is shown which is mounted when the store is opened: to mount something is
//! to change the host. For as long as the store is open, what is mounted there stays in use.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

use super::directories::{Gates, LABEL};
use super::{Driver, Options};
use crate::digest::CacheId;
use crate::error::{Error, Result};
use crate::layer::difference::{Difference, Life, Verdicts};
use crate::layer::dir::DirTree;
use crate::layer::{Layer, LayerId, LayerTree, Whiteouts};
use crate::meta::Meta;
use crate::name::TreePath;
use crate::root::{Root, Space};
use crate::store::{Layering, Stamp};

/// The most mounted trees that are opened; each takes a descriptor.
const MOUNTS_MAX: usize = 256;
/// The largest of devicemapper's small files that is read, in bytes.
const DEVICE_MAX: usize = 4_096;
/// The bytes of a sector, in which device-mapper's tables count.
const SECTOR: u64 = 512;

/// How a driver lays out its folder.
#[derive(Debug, Clone, Copy)]
struct Layout {
    name: &'static str,
    /// Where the layers' directories are.
    folder: &'static str,
    /// Where the tree is in such a directory; nothing where it is the directory.
    inner: &'static str,
    /// What makes a tree appear that is not there by itself; `None` where all are.
    activation: Option<Activation>,
}

/// What a user has to mount.
#[derive(Debug, Clone, Copy)]
enum Activation {
    Dataset,
    ThinDevice,
}

const BTRFS: Layout = Layout { name: "btrfs", folder: "subvolumes", inner: "", activation: None };
const VFS: Layout = Layout { name: "vfs", folder: "dir", inner: "", activation: None };
const ZFS: Layout = Layout { name: "zfs", folder: "graph", inner: "", activation: Some(Activation::Dataset) };
const DEVICEMAPPER: Layout =
    Layout { name: "devicemapper", folder: "mnt", inner: "rootfs", activation: Some(Activation::ThinDevice) };

#[derive(Debug)]
struct Whole {
    layout: Layout,
    root: Arc<Root>,
    /// What was mounted in the folder when it was opened; only where trees have to be.
    mounts: BTreeMap<CacheId, Arc<Root>>,
    gates: Gates,
    verdicts: Arc<Verdicts>,
}

/// What devicemapper notes of a layer's device.
#[derive(Debug, Deserialize)]
struct Device {
    device_id: u64,
    size: u64,
}

/// Opens the driver's folder in a data root.
///
/// # Errors
/// [`Error::Io`].
pub fn btrfs(data_root: &Root, _options: &Options) -> Result<Box<dyn Driver>> {
    open(data_root, BTRFS)
}

/// As [`btrfs`].
///
/// # Errors
/// [`Error::Io`].
pub fn vfs(data_root: &Root, _options: &Options) -> Result<Box<dyn Driver>> {
    open(data_root, VFS)
}

/// As [`btrfs`], with what is mounted in it.
///
/// # Errors
/// [`Error::Io`].
pub fn zfs(data_root: &Root, _options: &Options) -> Result<Box<dyn Driver>> {
    open(data_root, ZFS)
}

/// As [`zfs`].
///
/// # Errors
/// [`Error::Io`].
pub fn devicemapper(data_root: &Root, _options: &Options) -> Result<Box<dyn Driver>> {
    open(data_root, DEVICEMAPPER)
}

fn open(data_root: &Root, layout: Layout) -> Result<Box<dyn Driver>> {
    let root = Arc::new(data_root.sub(&path(layout.name))?);
    let mounts = match layout.activation {
        Some(_) => mounts(&root, &path(layout.folder))?,
        None => BTreeMap::new(),
    };
    let (gates, verdicts) = (Gates::default(), Arc::default());
    Ok(Box::new(Whole { layout, root, mounts, gates, verdicts }))
}

/// The trees that are mounted in a folder; no more than [`MOUNTS_MAX`] of them, those of the first IDs.
fn mounts(root: &Root, folder: &TreePath) -> Result<BTreeMap<CacheId, Arc<Root>>> {
    let mut mounts = BTreeMap::new();
    if root.stat(folder)?.is_none_or(|meta| !meta.is_dir()) {
        return Ok(mounts);
    }
    let mut names = root.names(folder)?;
    names.sort_unstable();
    for name in names {
        let id = std::str::from_utf8(name.as_bytes()).ok().and_then(|text| text.parse::<CacheId>().ok());
        let Some(id) = id else { continue };
        let mounted = match root.mounted(&folder.join(&name)) {
            Err(error) if error.is_transient() => return Err(error),
            // It has gone, or is no directory.
            Err(_) => None,
            Ok(mounted) => mounted,
        };
        mounts.extend(mounted.map(|mounted| (id, Arc::new(mounted))));
        if mounts.len() == MOUNTS_MAX {
            log::warn!("of the trees mounted in {} the first {MOUNTS_MAX} are shown", root.shown(folder));
            break;
        }
    }
    Ok(mounts)
}

/// A path of this driver's own making.
fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes()).unwrap_or_default()
}

impl Device {
    /// The device of a layer, where it is noted.
    fn read(root: &Root, id: &CacheId) -> Option<Self> {
        let (text, _) = root.read(&path(&format!("metadata/{id}")), DEVICE_MAX).ok().flatten()?;
        serde_json::from_slice(&text).ok()
    }
}

impl Whole {
    /// The directory of a layer, below the driver's folder.
    fn place(&self, id: &CacheId) -> TreePath {
        path(&format!("{}/{id}", self.layout.folder))
    }

    /// Where a layer's tree is; `None` where it had to be mounted and is not.
    fn tree_of(&self, id: &CacheId) -> Option<(&Arc<Root>, TreePath)> {
        match self.layout.activation {
            None => Some((&self.root, self.place(id))),
            Some(_) => Some((self.mounts.get(id)?, path(self.layout.inner))),
        }
    }

    /// Says that a layer has to be mounted, and how.
    fn inactive(&self, id: &CacheId, activation: Activation) -> Error {
        let place = self.root.shown(&self.place(id));
        let how = match (activation, Device::read(&self.root, id)) {
            (Activation::Dataset, _) => {
                format!("import its pool, find it (zfs list -o name | grep {id}), mount -t zfs -o ro DATASET {place}")
            }
            (Activation::ThinDevice, Some(Device { device_id, size })) => {
                let sectors = size / SECTOR;
                format!(
                    "activate the thin pool, dmsetup create --readonly NAME --table '0 {sectors} thin POOL \
                     {device_id}', mount -o ro (xfs: ro,norecovery,nouuid) /dev/mapper/NAME {place}"
                )
            }
            (Activation::ThinDevice, None) => format!(
                "activate the thin pool and this layer's device (its number is not in {}), and mount it there",
                self.root.shown(&path(&format!("metadata/{id}")))
            ),
        };
        Error::damaged(place, format!("not active, so it cannot be read: {how}, and start docker-fs again"))
    }

    fn tree(&self, id: &CacheId) -> Result<Box<dyn LayerTree>> {
        match (self.tree_of(id), self.layout.activation) {
            (None, Some(activation)) => Err(self.inactive(id, activation)),
            (None, None) => Err(Error::damaged(self.root.shown(&self.place(id)), "the layer's directory is gone")),
            (Some((root, base)), _) => {
                Ok(Box::new(DirTree::behind(self.gates.of(id), Arc::clone(root), base).spanning()))
            }
        }
    }

    fn id_of(&self, id: &CacheId) -> LayerId {
        LayerId::of(&format!("{}/{id}", self.layout.name))
    }
}

impl Driver for Whole {
    fn name(&self) -> &'static str {
        self.layout.name
    }

    fn layering(&self) -> Layering {
        Layering::Trees
    }

    fn layer(&self, id: &CacheId) -> Result<Layer> {
        Ok(Layer::new(self.id_of(id), self.tree(id)?, Whiteouts::Whole))
    }

    fn changes(&self, id: &CacheId, below: Option<&CacheId>, life: Life) -> Result<Layer> {
        let Some(below) = below else { return self.layer(id) };
        let pair = LayerId::of_all([self.id_of(id), self.id_of(below)].into_iter());
        let difference = Difference::new(pair, life, self.tree(id)?, self.tree(below)?, Arc::clone(&self.verdicts));
        Ok(Layer::new(self.id_of(id), Box::new(difference), Whiteouts::Whole))
    }

    fn container_layers(&self, changes: &CacheId, _init: Option<&CacheId>) -> Result<Vec<Layer>> {
        Ok(vec![self.layer(changes)?.changing()])
    }

    fn directory(&self, id: &CacheId) -> PathBuf {
        self.root.host_path(&self.place(id).join_path(&path(self.layout.inner)))
    }

    fn find(&self, id: &CacheId) -> Result<Option<Meta>> {
        self.tree_of(id).map_or(Ok(None), |(root, base)| root.stat(&base))
    }

    fn check(&self, id: &CacheId) -> Result<Meta> {
        let Some((root, base)) = self.tree_of(id) else {
            return self.tree(id).and(Err(Error::Stale { what: id.to_string() }));
        };
        let gate = self.gates.known(id);
        let doing = || format!("reach {}", root.shown(&base));
        let _inside = gate.as_ref().map(|gate| gate.enter()).transpose().map_err(Error::io(doing))?;
        match root.stat(&base)? {
            Some(meta) if meta.is_dir() => Ok(meta),
            Some(_) => Err(Error::damaged(root.shown(&base), "the layer is not a directory")),
            None => Err(Error::damaged(root.shown(&base), "the layer's directory is gone")),
        }
    }

    fn is_labelled(&self) -> bool {
        self.root.xattr(&TreePath::root(), LABEL).is_ok_and(|label| label.is_some())
    }

    fn stamp(&self) -> Result<Stamp> {
        // The engine makes it with the first layer.
        Ok(self.root.stat(&path(self.layout.folder))?.as_ref().map(Stamp::from).unwrap_or_default())
    }

    fn space(&self) -> Result<Space> {
        self.root.space()
    }

    fn root(&self) -> &Root {
        &self.root
    }

    fn roots(&self) -> Vec<&Root> {
        std::iter::once(self.root()).chain(self.mounts.values().map(Arc::as_ref)).collect()
    }
}
