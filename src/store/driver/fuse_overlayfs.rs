//! The `fuse-overlayfs` driver (Docker 20.10 and newer).
//!
//! ```text
//! fuse-overlayfs/
//!   l/<26 characters> -> ../<id>/diff     short names for mount options; not used here
//!   <id>/diff/                            the layer's own files: of images as their tars had them, with marks that are
//!                                         files; of containers as fuse-overlayfs wrote them, in any form
//!   <id>/{link,lower,work}                not used: layerdb says how layers stack
//!   <id>/merged/                          a running container's mount; never entered
//! ```

use super::directories::Directories;
use super::overlay2::{diff_of, is_remapped_root, path};
use super::{Driver, Options};
use crate::error::{Error, Result};
use crate::layer::whiteout::{Prefix, Whiteouts};
use crate::name::TreePath;
use crate::root::{Root, reads_trusted_xattrs};

const NAME: &str = "fuse-overlayfs";

/// Opens the driver's folder in a data root.
///
/// # Errors
/// [`Error::Unsupported`] where marks of deletions are out of this process's sight; [`Error::Io`].
pub fn open(data_root: &Root, options: &Options) -> Result<Box<dyn Driver>> {
    let root = data_root.sub(&path(&[NAME]))?;
    let shown = root.shown(&TreePath::root());
    if options.prefix != Some(Prefix::User) && !reads_trusted_xattrs() {
        // A rootless engine's fuse-overlayfs cannot write such attributes.
        if is_of_roots_engine(&root)? {
            return Err(Error::Unsupported {
                what: shown,
                why: "its containers may mark deletions in trusted.overlay.* attributes, which this process may not read \
                      (CAP_SYS_ADMIN), so deleted files would come back; run docker-fs as root"
                    .to_owned(),
            });
        }
        log::warn!(
            "{shown} is taken for the store of a rootless engine, as it does not belong to root; if it is a copy of a store \
             of root's, deleted files may come back, and only root can read it rightly (-o xattrs=user to say that it is \
             none)"
        );
    }
    Ok(Box::new(Directories::new(NAME, root, Whiteouts::FuseOverlay, diff_of)))
}

/// Whether the engine runs as root: with user namespaces for containers, its folders have other owners, but a name
/// that says so.
fn is_of_roots_engine(root: &Root) -> Result<bool> {
    let data_root = root.host_path(&TreePath::root());
    Ok(root.meta()?.uid == 0 || data_root.parent().is_some_and(is_remapped_root))
}
