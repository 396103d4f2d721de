//! Layers: a tree of files, and the convention by which it says what it deletes.
//!
//! A [`LayerTree`] reports what is stored and knows nothing of deletions; every rule about those is in
//! [`whiteout`]. A [`Layer`] puts the two together. Which layers there are and how they stack is the stores' business.

pub mod difference;
pub mod dir;
pub mod gate;
pub mod listed;
pub mod mem;
pub mod names;
pub mod overridden;
pub mod owners;
mod retold;
pub mod whiteout;

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::meta::{FileId, Meta};
use crate::name::{Name, TreePath};
use crate::root::Space;

use listed::{Listed, NameList};
use owners::{OwnedTree, OwnerMap};
use whiteout::Stored;
pub use whiteout::Whiteouts;

/// A read-only tree of files, asked by path. Paths never lead through symbolic links.
pub trait LayerTree: Debug + Send + Sync {
    /// A path's attributes; `None` where there is nothing.
    ///
    /// # Errors
    /// Where the question could not be answered.
    fn stat(&self, path: &TreePath) -> Result<Option<Meta>>;

    /// The names in a directory with their attributes, in no order. Only names that are `wanted` are looked at and
    /// answered.
    ///
    /// # Errors
    /// Also where `dir` is no directory.
    fn list(&self, dir: &TreePath, wanted: &dyn Fn(&Name) -> bool) -> Result<Vec<(Name, Meta)>>;

    /// Opens a regular file.
    ///
    /// # Errors
    /// Also where `file` is no regular file.
    fn open(&self, file: &TreePath) -> Result<Box<dyn ReadAt>>;

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// Also where `link` is no symbolic link.
    fn read_link(&self, link: &TreePath) -> Result<Vec<u8>>;

    /// One extended attribute by its stored name.
    ///
    /// # Errors
    /// Where the question could not be answered; absence is `None`.
    fn xattr(&self, path: &TreePath, name: &[u8]) -> Result<Option<Vec<u8>>>;

    /// The stored names of all extended attributes.
    ///
    /// # Errors
    /// Where the question could not be answered.
    fn xattr_names(&self, path: &TreePath) -> Result<Vec<Vec<u8>>>;

    /// What the file system that holds the tree says of its space.
    ///
    /// # Errors
    /// Where the question could not be answered.
    fn space(&self) -> Result<Space>;

    /// Says which directory this is the tree of. Where another takes its place, answers are [`Error::Stale`] from then on.
    fn expect(&mut self, _root: FileId) {}
}

/// An open regular file.
pub trait ReadAt: Debug + Send + Sync {
    /// Reads at an offset in bytes; fewer bytes than asked for mean the end of the file.
    ///
    /// # Errors
    /// The system's.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Where the next data or the next hole at or behind `offset` starts (`lseek(2)`, `SEEK_DATA` and `SEEK_HOLE`).
    ///
    /// # Errors
    /// `ENXIO` behind the end, as the system call.
    fn seek(&self, to: Seek, offset: u64) -> io::Result<u64>;

    /// The attributes of the open file, whatever has its name by now; `None` where it has none of its own.
    ///
    /// # Errors
    /// The system's.
    fn meta(&self) -> io::Result<Option<Meta>> {
        Ok(None)
    }

    /// Has the start of the file read from its disk, without waiting; answers whether it was not in memory.
    ///
    /// # Errors
    /// The system's.
    fn will_need(&self) -> io::Result<bool> {
        Ok(false)
    }

    /// The file on the host, where there is one.
    fn backing_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// What [`ReadAt::seek`] looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// Bytes that are stored.
    Data,
    /// A range that is not stored and reads as zeros; the end of the file counts as one.
    Hole,
}

/// Stands for a layer in inode numbers: the same layer has the same ID in every mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId([u8; 16]);

impl LayerId {
    /// The ID of a layer that its store knows by this name; names of different stores must differ.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self::of_digest(Sha256::digest(name).into())
    }

    /// The ID of a stack of layers.
    pub fn of_all(layers: impl Iterator<Item = Self>) -> Self {
        let mut hash = Sha256::new();
        for layer in layers {
            hash.update(layer.0);
        }
        Self::of_digest(hash.finalize().into())
    }

    fn of_digest(digest: [u8; 32]) -> Self {
        let mut id = [0; 16];
        for (to, from) in id.iter_mut().zip(digest) {
            *to = from;
        }
        Self(id)
    }

    /// The ID as bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// One layer's own changes.
#[derive(Debug)]
pub struct Layer {
    id: LayerId,
    tree: Box<dyn LayerTree>,
    whiteouts: Whiteouts,
    changes: bool,
}

impl Layer {
    /// A layer that never changes, as an image's.
    #[must_use]
    pub fn new(id: LayerId, tree: Box<dyn LayerTree>, whiteouts: Whiteouts) -> Self {
        Self { id, tree, whiteouts, changes: false }
    }

    /// The same layer as the one whose directory is this. A layer in another directory is another one, whose files have
    /// numbers of their own.
    #[must_use]
    pub fn within(mut self, root: FileId) -> Self {
        let FileId { inode, created } = root;
        let place = format!("{inode} {} {}", created.seconds, created.nanoseconds);
        self.id = LayerId::of_all([self.id, LayerId::of(&place)].into_iter());
        self.tree.expect(root);
        self
    }

    /// The same layer as one that may change while it is read, as a container's own.
    #[must_use]
    pub fn changing(self) -> Self {
        Self { changes: true, ..self }
    }

    /// The same layer with owners as they are seen in a user namespace.
    #[must_use]
    pub fn owned(self, owners: Arc<OwnerMap>) -> Self {
        Self { tree: Box::new(OwnedTree::new(self.tree, owners)), ..self }
    }

    /// The layer that has the numbers of a user namespace, as it is seen outside of that (an idmapped mount). Its files are
    /// others than those of the layer as it is, since their owners are.
    #[must_use]
    pub fn shifted(self, owners: &OwnerMap) -> Self {
        let id = LayerId::of_all([self.id, LayerId::of(&format!("{owners:?}"))].into_iter());
        Self { id, ..self.owned(Arc::new(owners.outward())) }
    }

    /// The same layer with the names of its tar, where they are known; `whole` is the tree that it lies in. A layer that is
    /// no whole tree stays as it is.
    #[must_use]
    pub fn listed(self, whole: Box<dyn LayerTree>, names: Arc<dyn NameList>) -> Self {
        match self.whiteouts {
            Whiteouts::Whole => Self { tree: Box::new(Listed::new(whole, self.tree, names)), ..self },
            Whiteouts::Overlay(_) | Whiteouts::Aufs | Whiteouts::FuseOverlay => self,
        }
    }

    /// What stands for this layer in inode numbers.
    #[must_use]
    pub fn id(&self) -> LayerId {
        self.id
    }

    /// Whether the layer may change while it is read.
    #[must_use]
    pub fn changes(&self) -> bool {
        self.changes
    }

    /// The tree alone, for a layer to be made of it anew.
    #[must_use]
    pub fn into_tree(self) -> Box<dyn LayerTree> {
        self.tree
    }

    /// The files as they are stored.
    #[must_use]
    pub fn tree(&self) -> &dyn LayerTree {
        self.tree.as_ref()
    }

    /// The attributes of the layer's own directory.
    ///
    /// # Errors
    /// [`Error::Damaged`] where it is gone, or something else has its place.
    pub fn root(&self) -> Result<Meta> {
        match self.tree.stat(&TreePath::root())? {
            Some(meta) if meta.is_dir() => Ok(meta),
            Some(_) => Err(Error::damaged("a layer", "something else is where its directory was")),
            None => Err(Error::damaged("a layer", "its directory is gone")),
        }
    }

    /// The convention of this layer's deletions.
    #[must_use]
    pub fn whiteouts(&self) -> Whiteouts {
        self.whiteouts
    }

    /// Whether the entry stands for a deletion.
    ///
    /// # Errors
    /// Where the attributes that tell could not be read.
    pub fn is_whiteout(&self, dir: &TreePath, name: &Name, meta: &Meta) -> Result<bool> {
        self.whiteouts.is_whiteout(&Stored { tree: self.tree(), dir, name, meta })
    }

    /// Whether the directory bears an attribute that says that it hides what lower layers have under its name.
    ///
    /// # Errors
    /// Where the attribute that tells could not be read.
    pub fn has_opaque_attribute(&self, dir: &TreePath) -> Result<bool> {
        self.whiteouts.has_opaque_attribute(self.tree(), dir)
    }

    /// Whether the layer's root hides the roots of all layers below.
    ///
    /// # Errors
    /// Where what tells could not be read.
    pub fn is_opaque_root(&self) -> Result<bool> {
        self.whiteouts.is_opaque_root(self.tree())
    }

    /// The extended attributes' names that users of the layer's union see.
    ///
    /// # Errors
    /// Where they could not be read.
    pub fn shown_xattrs(&self, path: &TreePath) -> Result<Vec<Vec<u8>>> {
        let stored = self.tree.xattr_names(path)?;
        Ok(stored.iter().filter_map(|name| self.whiteouts.shown_xattr(name)).collect())
    }

    /// The value of an extended attribute by the name that users of the layer's union see.
    ///
    /// # Errors
    /// Where it could not be read.
    pub fn shown_xattr(&self, path: &TreePath, name: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.whiteouts.stored_xattr(name) {
            Some(stored) => self.tree.xattr(path, &stored),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::mem::MemTree;
    use super::*;
    use crate::meta::Kind;

    #[test]
    fn only_a_directory_is_a_layers_root() {
        for (kind, is_root) in [(Kind::Directory, true), (Kind::Symlink, false), (Kind::Regular, false)] {
            let mut tree = MemTree::default();
            tree.put(TreePath::root(), kind, b"/etc");
            let layer = Layer::new(LayerId::of("layer"), Box::new(tree), Whiteouts::Overlay(whiteout::Prefix::Trusted));
            match layer.root() {
                Ok(meta) => assert!(is_root && meta.is_dir(), "{kind:?}"),
                Err(error) => assert!(!is_root && matches!(error, Error::Damaged { .. }), "{kind:?}: {error}"),
            }
        }
    }
}
