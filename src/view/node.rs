//! What can stand in the tree.

use std::fmt::Debug;
use std::sync::Arc;

use rustix::io::Errno;

use super::footing::Footing;
use super::in_layer::LayerNode;
use super::in_union::UnionNode;
use super::text::Text;
use super::{Form, Section};
use crate::error::{Error, Result};
use crate::layer::{Layer, LayerId, ReadAt};
use crate::meta::{Kind, Meta, Timestamp};
use crate::name::{Name, TreePath};

/// Anything in the tree: what it stands on, without its attributes. One is held for each file that the kernel knows,
/// so it is small.
#[derive(Debug, Clone)]
pub enum Node {
    /// A folder of the view's own making.
    Section(Arc<dyn Section>),
    /// A small file of the view's own making, or of the store's.
    Text(Box<Text>),
    /// A symbolic link of the view's own making.
    Link(Box<Link>),
    /// A place in one layer's own tree.
    InLayer(LayerNode),
    /// A place in a union.
    InUnion(UnionNode),
}

/// What a lookup or a listing finds: a node, and what is told of it at once and not held.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What was found.
    pub node: Node,
    /// Its attributes at that time.
    pub meta: Meta,
}

impl Entry {
    pub(super) fn folder(section: impl Section + 'static) -> Self {
        let meta = folder_meta(&section);
        Self { node: Node::Section(Arc::new(section)), meta }
    }

    pub(super) fn text(text: Text) -> Self {
        Self { meta: text.meta(), node: Node::Text(Box::new(text)) }
    }

    pub(super) fn link(link: Link) -> Self {
        Self { meta: link.meta(), node: Node::Link(Box::new(link)) }
    }

    /// Tells apart two files that had the same number in turn; zero where that cannot be. Directories are told apart by
    /// their paths, and stay the same when another layer joins them.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.node.generation(&self.meta)
    }
}

fn folder_meta(section: &dyn Section) -> Meta {
    Meta { links: 2, ..Meta::made_up(Kind::Directory, 0o555, section.time(), 0) }
}

/// What tells one node from another; the mount makes inode numbers of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A stored file that is no directory: the same wherever it appears, so hard links are one file.
    File {
        /// Its layer.
        layer: LayerId,
        /// Its number there.
        inode: u64,
        /// For a metacopy seen in a union, the layer and number of its data.
        data: Option<([u8; 16], u64)>,
        /// The form in which it is seen: the stored one has other attributes.
        form: Form,
    },
    /// Anything else: a node per path, and per content where that can change.
    Path(Vec<u8>),
}

/// A symbolic link of the view's own making.
#[derive(Debug, Clone)]
pub struct Link {
    target: Vec<u8>,
    time: Timestamp,
}

/// Whose extended attributes a node shows, and how.
#[derive(Debug)]
pub(super) struct XattrSource<'a> {
    pub(super) layer: &'a Layer,
    pub(super) path: TreePath,
    pub(super) form: Form,
    pub(super) footing: &'a Footing,
}

impl XattrSource<'_> {
    fn names(&self) -> Result<Vec<Vec<u8>>> {
        self.footing.settle_content(match self.form {
            Form::Oci => self.layer.shown_xattrs(&self.path),
            Form::Stored => self.layer.tree().xattr_names(&self.path),
        })
    }

    fn value(&self, name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.footing.settle_content(match self.form {
            Form::Oci => self.layer.shown_xattr(&self.path, name),
            Form::Stored => self.layer.tree().xattr(&self.path, name),
        })
    }
}

impl Node {
    /// As [`Entry::generation`], of attributes that were read later.
    #[must_use]
    pub fn generation(&self, meta: &Meta) -> u64 {
        match self {
            Self::InLayer(_) | Self::InUnion(_) if self.changes() && !meta.is_dir() => {
                let seconds = meta.created.seconds.unsigned_abs();
                seconds.wrapping_mul(1_000_000_000).wrapping_add(meta.created.nanoseconds.into())
            }
            Self::InLayer(_) | Self::InUnion(_) | Self::Section(_) | Self::Text(_) | Self::Link(_) => 0,
        }
    }

    /// The attributes as they are. What may change is looked up again; of other stored files they are read again.
    ///
    /// # Errors
    /// [`Error::Stale`] where the file is gone.
    pub fn fresh_meta(&self) -> Result<Meta> {
        match self {
            Self::Section(section) => Ok(folder_meta(section.as_ref())),
            Self::Link(link) => Ok(link.meta()),
            Self::Text(text) => Ok(text.meta()),
            Self::InLayer(node) => node.fresh_meta(),
            Self::InUnion(node) => node.fresh_meta(),
        }
    }

    /// Whether attributes, content or names may change while this stays the same node.
    #[must_use]
    pub fn changes(&self) -> bool {
        match self {
            Self::Section(section) => section.changes(),
            Self::Text(_) | Self::Link(_) => false,
            Self::InLayer(node) => node.changes(),
            Self::InUnion(node) => node.changes(),
        }
    }

    /// Whether a name that stands for this node may stand for another one at the next look-up, though its directory
    /// stays the same.
    #[must_use]
    pub fn is_momentary(&self) -> bool {
        matches!(self, Self::Text(text) if text.is_momentary())
    }

    /// Whether what this stands on is there.
    ///
    /// # Errors
    /// [`Error::Stale`] where a layer is gone.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Self::InUnion(node) => node.check(),
            Self::InLayer(_) | Self::Section(_) | Self::Text(_) | Self::Link(_) => Ok(()),
        }
    }

    /// What tells this node from others.
    #[must_use]
    pub fn identity(&self) -> Identity {
        match self {
            Self::Section(section) => Identity::Path(section.identity()),
            Self::Text(text) => Identity::Path(text.identity()),
            Self::Link(link) => Identity::Path(link.target.clone()),
            Self::InLayer(node) => node.identity(),
            Self::InUnion(node) => node.identity(),
        }
    }

    /// What a name in this directory stands for.
    ///
    /// # Errors
    /// `ENOTDIR` where this is no directory.
    pub fn lookup(&self, name: &Name) -> Result<Option<Entry>> {
        match self {
            Self::Section(section) => section.lookup(name),
            Self::InLayer(node) => node.lookup(name),
            Self::InUnion(node) => node.lookup(name),
            Self::Text(_) | Self::Link(_) => Err(wrong_kind("look up a name in a file", Errno::NOTDIR)),
        }
    }

    /// The names in this directory, in no order but the same at every call.
    ///
    /// # Errors
    /// `ENOTDIR` where this is no directory.
    pub fn list(&self) -> Result<Vec<(Name, Entry)>> {
        match self {
            Self::Section(section) => section.list(),
            Self::InLayer(node) => node.list(),
            Self::InUnion(node) => node.list(),
            Self::Text(_) | Self::Link(_) => Err(wrong_kind("list a file", Errno::NOTDIR)),
        }
    }

    /// The target of a symbolic link, byte for byte.
    ///
    /// # Errors
    /// `EINVAL` where this is none.
    pub fn read_link(&self) -> Result<Vec<u8>> {
        match self {
            Self::Link(link) => Ok(link.target.clone()),
            Self::InLayer(node) => node.read_link(),
            Self::InUnion(node) => node.read_link(),
            Self::Section(_) | Self::Text(_) => Err(wrong_kind("read a link", Errno::INVAL)),
        }
    }

    /// Opens a regular file.
    ///
    /// # Errors
    /// [`Error::Stale`] where its content is gone.
    pub fn open(&self) -> Result<Box<dyn ReadAt>> {
        match self {
            Self::Text(text) => Ok(Box::new(text.content()?)),
            Self::InLayer(node) => node.open(),
            Self::InUnion(node) => node.open(),
            Self::Section(_) => Err(wrong_kind("open a directory", Errno::ISDIR)),
            Self::Link(_) => Err(wrong_kind("open a link", Errno::LOOP)),
        }
    }

    /// The names of the extended attributes.
    ///
    /// # Errors
    /// Where they could not be read.
    pub fn xattr_names(&self) -> Result<Vec<Vec<u8>>> {
        self.xattr_source()?.map_or(Ok(Vec::new()), |source| source.names())
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// Where it could not be read.
    pub fn xattr(&self, name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.xattr_source()?.map_or(Ok(None), |source| source.value(name))
    }

    /// The stored file whose extended attributes this node has, where it can have any.
    fn xattr_source(&self) -> Result<Option<XattrSource<'_>>> {
        match self {
            Self::InLayer(node) => Ok(node.xattr_source()),
            Self::InUnion(node) => node.xattr_source(),
            Self::Section(_) | Self::Text(_) | Self::Link(_) => Ok(None),
        }
    }
}

/// The error of an operation on a file of the wrong type.
pub(super) fn wrong_kind(doing: &str, errno: Errno) -> Error {
    Error::io(|| doing.to_owned())(errno)
}

impl Link {
    /// A link to this target, relative to where the link stands.
    #[must_use]
    pub fn new(target: Vec<u8>, time: Timestamp) -> Self {
        Self { target, time }
    }

    fn meta(&self) -> Meta {
        let size = u64::try_from(self.target.len()).unwrap_or(u64::MAX);
        Meta { blocks: 0, ..Meta::made_up(Kind::Symlink, 0o777, self.time, size) }
    }
}
