//! What can stand in the tree.

use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::Arc;

use super::{Section, Shared, status};
use crate::digest::{ContainerId, ImageId};
use crate::error::{Error, Result};
use crate::layer::whiteout::{OCI_OPAQUE, oci_mark, oci_marked};
use crate::layer::{Layer, LayerId, ReadAt};
use crate::meta::{Kind, Meta, Timestamp};
use crate::name::{Name, TreePath};
use crate::union::{Member, Union};

/// The form in which a layer's own tree shows deletions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// As an OCI layer has them: files `.wh.<name>`, and `.wh..wh..opq` in opaque directories. Private attributes are
    /// hidden.
    #[default]
    Oci,
    /// As the store has them, private attributes too.
    Stored,
}

/// Anything in the tree.
#[derive(Debug, Clone)]
pub enum Node {
    /// A folder of the view's own making.
    Section(Arc<dyn Section>),
    /// A small file of the view's own making, or of the store's.
    Text(Text),
    /// A symbolic link of the view's own making.
    Link(Link),
    /// A place in one layer's own tree.
    InLayer(LayerNode),
    /// A place in a union.
    InUnion(UnionNode),
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
    },
    /// Anything else: a node per path, and per content where that can change.
    Path(Vec<u8>),
}

/// A small file.
#[derive(Debug, Clone)]
pub struct Text {
    body: Body,
    time: Timestamp,
    size_bytes: u64,
}

/// What a small file holds.
#[derive(Debug, Clone)]
pub enum Body {
    /// These bytes.
    Ready(Arc<[u8]>),
    /// An image's config.
    ImageConfig(Config<ImageId>),
    /// A container's config, which the engine replaces.
    ContainerConfig(Config<ContainerId>),
    /// What the view says of the store.
    Status(Config<()>),
}

/// Something that the store or the view tells when it is asked.
#[derive(Debug, Clone)]
pub struct Config<T> {
    shared: Arc<Shared>,
    id: T,
}

/// A symbolic link of the view's own making.
#[derive(Debug, Clone)]
pub struct Link {
    target: Vec<u8>,
    time: Timestamp,
}

/// A place in one layer's own tree.
#[derive(Debug, Clone)]
pub struct LayerNode {
    layer: Arc<Layer>,
    path: TreePath,
    meta: Meta,
    role: Role,
    form: Form,
}

/// What a file in a layer's own tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A stored file.
    Stored,
    /// The mark, in OCI's form, of a deletion or of an opaque directory, that is stored in another form.
    Mark,
}

/// A place in a union.
#[derive(Debug, Clone)]
pub struct UnionNode {
    union: Arc<Union>,
    member: Member,
    /// The path in a union that changes, empty in others.
    path: TreePath,
}

impl Node {
    /// The attributes as they were when the node was looked up.
    #[must_use]
    pub fn meta(&self) -> Meta {
        match self {
            Self::Section(section) => Meta { links: 2, ..Meta::made_up(Kind::Directory, 0o555, section.time(), 0) },
            Self::Text(text) => Meta::made_up(Kind::Regular, 0o444, text.time, text.size_bytes),
            Self::Link(link) => {
                let size = u64::try_from(link.target.len()).unwrap_or(u64::MAX);
                Meta { blocks: 0, ..Meta::made_up(Kind::Symlink, 0o777, link.time, size) }
            }
            Self::InLayer(node) => node.meta,
            Self::InUnion(node) => *node.member.meta(),
        }
    }

    /// The attributes as they are. Only what may change is looked up again.
    ///
    /// # Errors
    /// [`Error::Stale`] where the file is gone.
    pub fn fresh_meta(&self) -> Result<Meta> {
        match self {
            Self::Section(_) | Self::Link(_) => Ok(self.meta()),
            Self::Text(text) => text.fresh_meta(),
            Self::InLayer(node) => node.fresh_meta(),
            Self::InUnion(node) => node.fresh_meta(),
        }
    }

    /// Whether the attributes may change, and the content.
    #[must_use]
    pub fn changes(&self) -> bool {
        match self {
            Self::Section(section) => section.changes(),
            Self::Text(text) => text.changes(),
            Self::Link(_) => false,
            Self::InLayer(node) => node.layer.changes(),
            Self::InUnion(node) => node.changes(),
        }
    }

    /// Whether names in this directory may come and go.
    #[must_use]
    pub fn entries_change(&self) -> bool {
        self.changes()
    }

    /// What tells this node from others.
    #[must_use]
    pub fn identity(&self) -> Identity {
        match self {
            Self::Section(section) => Identity::Path(section.identity()),
            Self::Text(text) => match &text.body {
                Body::Ready(bytes) => Identity::Path(bytes.to_vec()),
                Body::ImageConfig(config) => Identity::Path(config.id.to_string().into_bytes()),
                Body::ContainerConfig(config) => Identity::Path(config.id.to_string().into_bytes()),
                Body::Status(_) => Identity::Path(Vec::new()),
            },
            Self::Link(link) => Identity::Path(link.target.clone()),
            Self::InLayer(node) if node.role == Role::Mark || node.meta.is_dir() => {
                Identity::Path(node.layer.id().as_bytes().to_vec())
            }
            Self::InLayer(node) => Identity::File { layer: node.layer.id(), inode: node.meta.inode, data: None },
            Self::InUnion(node) => node.identity(),
        }
    }

    /// Tells apart two files that had the same number in turn; zero where that cannot be.
    #[must_use]
    pub fn generation(&self) -> u64 {
        if !self.changes() {
            return 0;
        }
        match self {
            Self::InLayer(_) | Self::InUnion(_) => {
                let created = self.meta().created;
                let seconds = created.seconds.unsigned_abs();
                seconds.wrapping_mul(1_000_000_000).wrapping_add(created.nanoseconds.into())
            }
            Self::Section(_) | Self::Text(_) | Self::Link(_) => 0,
        }
    }

    /// What a name in this directory stands for.
    ///
    /// # Errors
    /// `ENOTDIR` where this is no directory.
    pub fn lookup(&self, name: &Name) -> Result<Option<Self>> {
        match self {
            Self::Section(section) => section.lookup(name),
            Self::InLayer(node) => Ok(node.lookup(name)?.map(Self::InLayer)),
            Self::InUnion(node) => Ok(node.lookup(name)?.map(Self::InUnion)),
            Self::Text(_) | Self::Link(_) => Err(wrong_kind("look up a name in a file", rustix::io::Errno::NOTDIR)),
        }
    }

    /// The names in this directory, in no order but the same at every call.
    ///
    /// # Errors
    /// `ENOTDIR` where this is no directory.
    pub fn list(&self) -> Result<Vec<(Name, Self)>> {
        match self {
            Self::Section(section) => section.list(),
            Self::InLayer(node) => {
                Ok(node.list()?.into_iter().map(|(name, node)| (name, Self::InLayer(node))).collect())
            }
            Self::InUnion(node) => {
                Ok(node.list()?.into_iter().map(|(name, node)| (name, Self::InUnion(node))).collect())
            }
            Self::Text(_) | Self::Link(_) => Err(wrong_kind("list a file", rustix::io::Errno::NOTDIR)),
        }
    }

    /// The target of a symbolic link, byte for byte.
    ///
    /// # Errors
    /// `EINVAL` where this is none.
    pub fn read_link(&self) -> Result<Vec<u8>> {
        match self {
            Self::Link(link) => Ok(link.target.clone()),
            Self::InLayer(node) if node.role == Role::Stored => node.layer.tree().read_link(&node.path),
            Self::InUnion(node) => {
                let (layer, path) = node.source()?;
                layer.tree().read_link(path)
            }
            Self::InLayer(_) | Self::Section(_) | Self::Text(_) => {
                Err(wrong_kind("read a link", rustix::io::Errno::INVAL))
            }
        }
    }

    /// Opens a regular file.
    ///
    /// # Errors
    /// [`Error::Stale`] where its content is gone.
    pub fn open(&self) -> Result<Box<dyn ReadAt>> {
        let opened: Box<dyn ReadAt> = match self {
            Self::Text(text) => Box::new(text.content()?),
            Self::InLayer(node) => match node.role {
                Role::Stored => node.layer.tree().open(&node.path)?,
                Role::Mark => Box::new(Vec::new()),
            },
            Self::InUnion(node) => node.open()?,
            Self::Section(_) => return Err(wrong_kind("open a directory", rustix::io::Errno::ISDIR)),
            Self::Link(_) => return Err(wrong_kind("open a link", rustix::io::Errno::LOOP)),
        };
        Ok(opened)
    }

    /// The names of the extended attributes.
    ///
    /// # Errors
    /// Where they could not be read.
    pub fn xattr_names(&self) -> Result<Vec<Vec<u8>>> {
        match self.xattr_source()? {
            None => Ok(Vec::new()),
            Some((layer, path, Form::Oci)) => layer.shown_xattrs(path),
            Some((layer, path, Form::Stored)) => layer.tree().xattr_names(path),
        }
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// Where it could not be read.
    pub fn xattr(&self, name: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.xattr_source()? {
            None => Ok(None),
            Some((layer, path, Form::Oci)) => layer.shown_xattr(path, name),
            Some((layer, path, Form::Stored)) => layer.tree().xattr(path, name),
        }
    }

    /// The stored file whose extended attributes this node has, where it can have any.
    fn xattr_source(&self) -> Result<Option<(&Layer, &TreePath, Form)>> {
        match self {
            Self::InLayer(node) if node.role == Role::Stored && (!node.meta.bare || node.layer.changes()) => {
                Ok(Some((&node.layer, &node.path, node.form)))
            }
            Self::InUnion(node) if !node.member.meta().bare || node.changes() => {
                let (layer, path) = node.source()?;
                Ok(Some((layer, path, Form::Oci)))
            }
            Self::InLayer(_) | Self::InUnion(_) | Self::Section(_) | Self::Text(_) | Self::Link(_) => Ok(None),
        }
    }
}

fn wrong_kind(doing: &str, errno: rustix::io::Errno) -> Error {
    Error::io(|| doing.to_owned())(errno)
}

impl Text {
    /// A file of these bytes.
    #[must_use]
    pub fn ready(content: Vec<u8>, time: Timestamp) -> Self {
        let size_bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
        Self { body: Body::Ready(content.into()), time, size_bytes }
    }

    pub(super) fn image_config(shared: &Arc<Shared>, id: ImageId, size_bytes: u64, time: Timestamp) -> Self {
        Self { body: Body::ImageConfig(Config { shared: Arc::clone(shared), id }), time, size_bytes }
    }

    pub(super) fn container_config(shared: &Arc<Shared>, id: ContainerId, size_bytes: u64, time: Timestamp) -> Self {
        Self { body: Body::ContainerConfig(Config { shared: Arc::clone(shared), id }), time, size_bytes }
    }

    pub(super) fn status(shared: &Arc<Shared>) -> Self {
        let time = shared.snapshot.read().catalogue.changed;
        let mut text = Self { body: Body::Status(Config { shared: Arc::clone(shared), id: () }), time, size_bytes: 0 };
        text.size_bytes = text.content().map_or(0, |content| u64::try_from(content.len()).unwrap_or(u64::MAX));
        text
    }

    fn changes(&self) -> bool {
        match self.body {
            Body::Ready(_) | Body::ImageConfig(_) => false,
            Body::ContainerConfig(_) | Body::Status(_) => true,
        }
    }

    fn content(&self) -> Result<Vec<u8>> {
        match &self.body {
            Body::Ready(bytes) => Ok(bytes.to_vec()),
            Body::ImageConfig(config) => config.shared.store.config(&config.id),
            Body::ContainerConfig(config) => config.shared.store.container_config(&config.id),
            Body::Status(config) => Ok(status::content(&config.shared)),
        }
    }

    fn fresh_meta(&self) -> Result<Meta> {
        let size_bytes =
            if self.changes() { u64::try_from(self.content()?.len()).unwrap_or(u64::MAX) } else { self.size_bytes };
        Ok(Meta::made_up(Kind::Regular, 0o444, self.time, size_bytes))
    }
}

impl Link {
    /// A link to this target, relative to where the link stands.
    #[must_use]
    pub fn new(target: Vec<u8>, time: Timestamp) -> Self {
        Self { target, time }
    }
}

impl LayerNode {
    /// The root of a layer.
    ///
    /// # Errors
    /// [`Error::Damaged`] where its directory is gone.
    pub fn root(layer: Arc<Layer>, form: Form) -> Result<Node> {
        let path = TreePath::root();
        let meta = layer.tree().stat(&path)?.ok_or_else(|| Error::damaged("a layer", "its directory is gone"))?;
        Ok(Node::InLayer(Self { layer, path, meta, role: Role::Stored, form }))
    }

    fn stored(&self, path: TreePath, mut meta: Meta) -> Self {
        meta.bare &= !self.layer.changes();
        Self { layer: Arc::clone(&self.layer), path, meta, role: Role::Stored, form: self.form }
    }

    /// The mark of a deletion. Docker writes overlay2's marks with mode 0600 and the owner and times of the stored one
    /// (`overlayWhiteoutConverter` in moby's pkg/archive).
    fn deletion(&self, path: TreePath, stored: &Meta) -> Self {
        let mark = Meta { permissions: 0o600, ..mark_of(stored) };
        Self { layer: Arc::clone(&self.layer), path, meta: mark, role: Role::Mark, form: self.form }
    }

    /// The mark of an opaque directory: Docker gives it the permissions, owner and times of the directory.
    fn opaque_mark(&self, dir: &Meta) -> Self {
        let path = Name::new(OCI_OPAQUE).map_or_else(|| self.path.clone(), |name| self.path.join(&name));
        let meta = Meta { permissions: dir.permissions & 0o777, ..mark_of(dir) };
        Self { layer: Arc::clone(&self.layer), path, meta, role: Role::Mark, form: self.form }
    }

    fn lookup(&self, name: &Name) -> Result<Option<Self>> {
        if self.form == Form::Oci {
            if name.as_bytes() == OCI_OPAQUE && self.layer.is_opaque(&self.path, &self.meta)? {
                return Ok(Some(self.opaque_mark(&self.meta)));
            }
            if let Some(deleted) = oci_marked(name) {
                let path = self.path.join(&deleted);
                if let Some(meta) = self.layer.tree().stat(&path)?
                    && self.layer.is_whiteout(&path, &meta)?
                {
                    return Ok(Some(self.deletion(self.path.join(name), &meta)));
                }
            }
        }
        let path = self.path.join(name);
        let Some(meta) = self.layer.tree().stat(&path)? else { return Ok(None) };
        if self.form == Form::Oci && self.layer.is_whiteout(&path, &meta)? {
            return Ok(None);
        }
        Ok(Some(self.stored(path, meta)))
    }

    /// A mark hides a stored file of the mark's own name, which no OCI layer can hold.
    fn list(&self) -> Result<Vec<(Name, Self)>> {
        let mut stored = self.layer.tree().list(&self.path)?;
        stored.sort_by(|(a, _), (b, _)| a.cmp(b));
        if self.form == Form::Stored {
            return Ok(stored
                .into_iter()
                .map(|(n, meta)| (n.clone(), self.stored(self.path.join(&n), meta)))
                .collect());
        }
        let mut shown = std::collections::BTreeMap::new();
        if let Some(name) = Name::new(OCI_OPAQUE)
            && self.layer.is_opaque(&self.path, &self.meta)?
        {
            shown.insert(name, self.opaque_mark(&self.meta));
        }
        let mut files = Vec::with_capacity(stored.len());
        for (name, meta) in stored {
            let path = self.path.join(&name);
            if self.layer.is_whiteout(&path, &meta)? {
                if let Some(mark) = oci_mark(&name) {
                    let node = self.deletion(self.path.join(&mark), &meta);
                    shown.insert(mark, node);
                }
            } else {
                files.push((name, self.stored(path, meta)));
            }
        }
        for (name, node) in files {
            shown.entry(name).or_insert(node);
        }
        Ok(shown.into_iter().collect())
    }

    fn fresh_meta(&self) -> Result<Meta> {
        if !self.layer.changes() || self.role == Role::Mark {
            return Ok(self.meta);
        }
        let fresh = self.layer.tree().stat(&self.path)?;
        let same = |fresh: &Meta| fresh.kind == self.meta.kind && (fresh.is_dir() || fresh.inode == self.meta.inode);
        fresh.filter(same).ok_or_else(|| Error::Stale { what: format!("{:?}", self.path) })
    }
}

/// An empty regular file with the owner and times of what it marks.
fn mark_of(stored: &Meta) -> Meta {
    Meta {
        uid: stored.uid,
        gid: stored.gid,
        accessed: stored.accessed,
        changed: stored.changed,
        ..Meta::made_up(Kind::Regular, 0, stored.modified, 0)
    }
}

impl UnionNode {
    /// The root of a union that has layers.
    ///
    /// # Errors
    /// [`Error::Damaged`] where its top layer's directory is gone, or there are no layers.
    pub fn root(union: Union) -> Result<Node> {
        let member = union.root()?.ok_or_else(|| Error::damaged("a union", "it has no layers"))?;
        Ok(Node::InUnion(Self { union: Arc::new(union), member, path: TreePath::root() }))
    }

    fn child(&self, name: &Name, member: Member) -> Self {
        let path = if self.union.changes() { self.path.join(name) } else { TreePath::root() };
        Self { union: Arc::clone(&self.union), member, path }
    }

    /// What the node stands for as the layers are. In a container's union a directory of an image's layer is joined by
    /// one of the container's at any time.
    fn current(&self) -> Result<Cow<'_, Member>> {
        if !self.changes() {
            return Ok(Cow::Borrowed(&self.member));
        }
        let stale = || Error::Stale { what: format!("{:?}", self.path) };
        let mut member = self.union.root()?.ok_or_else(stale)?;
        for name in self.path.components().filter_map(Name::new) {
            let Member::Dir(dir, _) = member else { return Err(stale()) };
            member = self.union.lookup(&dir, &name)?.ok_or_else(stale)?;
        }
        let (known, found) = (self.member.meta(), member.meta());
        let same = known.kind == found.kind && (known.is_dir() || known.inode == found.inode);
        if same { Ok(Cow::Owned(member)) } else { Err(stale()) }
    }

    fn changes(&self) -> bool {
        match self.member {
            Member::Dir(..) => self.union.changes(),
            Member::File(..) => self.source().map_or(true, |(layer, _)| layer.changes()),
        }
    }

    fn source(&self) -> Result<(&Arc<Layer>, &TreePath)> {
        self.union.source(&self.member)
    }

    fn identity(&self) -> Identity {
        match (&self.member, self.source()) {
            (Member::File(_, meta), Ok((layer, _))) => {
                let data = self.union.data_elsewhere(&self.member);
                Identity::File { layer: layer.id(), inode: meta.inode, data }
            }
            (Member::Dir(..) | Member::File(..), _) => Identity::Path(self.union.id().as_bytes().to_vec()),
        }
    }

    fn open(&self) -> Result<Box<dyn ReadAt>> {
        match self.current()?.as_ref() {
            Member::File(file, _) => self.union.open(file),
            Member::Dir(..) => Err(wrong_kind("open a directory", rustix::io::Errno::ISDIR)),
        }
    }

    fn lookup(&self, name: &Name) -> Result<Option<Self>> {
        match self.current()?.as_ref() {
            Member::Dir(dir, _) => Ok(self.union.lookup(dir, name)?.map(|member| self.child(name, member))),
            Member::File(..) => Err(wrong_kind("look up a name in a file", rustix::io::Errno::NOTDIR)),
        }
    }

    fn list(&self) -> Result<Vec<(Name, Self)>> {
        let current = self.current()?;
        let Member::Dir(dir, _) = current.as_ref() else {
            return Err(wrong_kind("list a file", rustix::io::Errno::NOTDIR));
        };
        let (members, refused) = self.union.list(dir)?;
        for error in refused {
            log::warn!(
                "not shown in {:?}: {error}",
                self.source().map_or_else(|_| TreePath::root(), |(_, p)| p.clone())
            );
        }
        let node = |(name, member)| {
            let node = self.child(&name, member);
            (name, node)
        };
        Ok(members.into_iter().map(node).collect())
    }

    fn fresh_meta(&self) -> Result<Meta> {
        Ok(*self.current()?.meta())
    }
}
