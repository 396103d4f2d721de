//! The `overlay2` driver.
//!
//! ```text
//! overlay2/
//!   l/<26 characters> -> ../<id>/diff     short names for the kernel's mount options; not used here
//!   <id>/diff/                            the layer's own files, in overlayfs' form
//!   <id>/{link,lower,committed,work}      not used: layerdb says how layers stack
//!   <id>/merged/                          a running container's mount; never entered
//! ```
//!
//! The private attributes are `trusted.overlay.*`, or `user.overlay.*` in the store of a rootless engine, whose files
//! do not belong to root.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Driver, Options};
use crate::digest::CacheId;
use crate::error::{Error, Result};
use crate::layer::dir::DirTree;
use crate::layer::whiteout::{Prefix, Whiteouts};
use crate::layer::{Layer, LayerId};
use crate::name::TreePath;
use crate::root::{Root, Space, reads_trusted_xattrs};

const NAME: &str = "overlay2";

#[derive(Debug)]
struct Overlay2 {
    root: Arc<Root>,
    whiteouts: Whiteouts,
}

/// Opens the driver's folder in a data root.
///
/// # Errors
/// [`Error::Unsupported`] where the marks of deletions are out of this process's sight; [`Error::Io`].
pub fn open(data_root: &Root, options: &Options) -> Result<Box<dyn Driver>> {
    let root = data_root.sub(&path(&[NAME]))?;
    let prefix = match options.prefix {
        Some(prefix) => prefix,
        None => match root.stat(&TreePath::root())? {
            Some(folder) if folder.uid != 0 => Prefix::User,
            _ => Prefix::Trusted,
        },
    };
    if prefix == Prefix::Trusted && !reads_trusted_xattrs() {
        return Err(Error::Unsupported {
            what: root.shown(&TreePath::root()),
            why: "its layers mark deletions in trusted.overlay.* attributes, which this process may not read \
                  (CAP_SYS_ADMIN), so deleted files would come back; run docker-fs as root, or for the store of a \
                  rootless engine add -o xattrs=user"
                .to_owned(),
        });
    }
    Ok(Box::new(Overlay2 { root: Arc::new(root), whiteouts: Whiteouts::Overlay(prefix) }))
}

fn path(parts: &[&str]) -> TreePath {
    TreePath::new(parts.join("/").as_bytes()).unwrap_or_default()
}

fn diff_of(id: &CacheId) -> TreePath {
    path(&[id.as_str(), "diff"])
}

impl Driver for Overlay2 {
    fn name(&self) -> &'static str {
        NAME
    }

    fn layer(&self, id: &CacheId) -> Result<Layer> {
        let tree = DirTree::new(Arc::clone(&self.root), diff_of(id));
        Ok(Layer::new(LayerId::of(&format!("{NAME}/{id}")), Box::new(tree), self.whiteouts))
    }

    fn directory(&self, id: &CacheId) -> PathBuf {
        self.root.host_path(&diff_of(id))
    }

    fn check(&self, id: &CacheId) -> Result<()> {
        let diff = diff_of(id);
        match self.root.stat(&diff)? {
            Some(meta) if meta.is_dir() => Ok(()),
            Some(_) => Err(Error::damaged(self.root.shown(&diff), "the layer is not a directory")),
            None => Err(Error::damaged(self.root.shown(&diff), "the layer's directory is gone")),
        }
    }

    fn space(&self) -> Result<Space> {
        self.root.space()
    }
}
