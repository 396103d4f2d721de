//! The `aufs` driver (Docker 1.10 to 23).
//!
//! ```text
//! aufs/
//!   diff/<id>/      the layer's own files, in aufs' form
//!   layers/<id>     its ancestors' IDs, a line each; a layer is one only if the file is there. layerdb says how layers
//!                   stack, so its content is not used
//!   mnt/<id>/       where a running container is mounted; never entered
//!   */<id>-removing what is being deleted; no layer has such an ID
//! ```
//!
//! A file with several names that a container writes to is copied up once, and only for the name that was used; for the
//! others aufs remembers in memory that they are the same file ("pseudo-links"). In `.wh..wh.plnk` of the writable layer
//! such a file bears the name `<inode>.<inode>`, of which the first is the number that aufs gave it in that mount
//! (`plink_name()` in `fs/aufs/plink.c`) and which is stored nowhere else. So there is nothing to follow; it takes
//! the mount. Docker has `auplink` make real links of them before it unmounts; where a machine went down without, the
//! other names are the files of the layers below, here and in aufs' own next mount.

use super::directories::Directories;
use super::overlay2::path;
use super::{Driver, Options};
use crate::digest::CacheId;
use crate::error::Result;
use crate::layer::whiteout::Whiteouts;
use crate::name::TreePath;
use crate::root::Root;

const NAME: &str = "aufs";
const DIFF: &str = "diff";

/// Opens the driver's folder in a data root.
///
/// # Errors
/// [`crate::error::Error::Io`].
pub fn open(data_root: &Root, _: &Options) -> Result<Box<dyn Driver>> {
    let root = data_root.sub(&path(&[NAME]))?;
    Ok(Box::new(Directories::new(NAME, root, Whiteouts::Aufs, diff_of).witnessed(path(&[DIFF]), witness_of)))
}

fn diff_of(id: &CacheId) -> TreePath {
    path(&[DIFF, id.as_str()])
}

fn witness_of(id: &CacheId) -> TreePath {
    path(&["layers", id.as_str()])
}
