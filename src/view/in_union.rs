//! Places in a union.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use rustix::io::Errno;

use super::footing::Footing;
use super::node::{XattrSource, wrong_kind};
use super::{Form, Identity, Node};
use crate::error::{Error, Result};
use crate::layer::{Layer, ReadAt};
use crate::meta::Meta;
use crate::name::{Name, TreePath};
use crate::union::{Listing, Member, Union};

/// A place in a union.
#[derive(Debug, Clone)]
pub struct UnionNode {
    union: Arc<Union>,
    member: Member,
    /// The path in a union that changes, empty in others.
    path: TreePath,
    /// What the node stood for when it was looked up last; only in a union that changes.
    latest: Option<Arc<Mutex<Latest>>>,
    footing: Arc<Footing>,
}

/// What a node of a container's union stands for, and when that was seen; guarded so as to be replaced.
#[derive(Debug, Clone)]
struct Latest {
    member: Member,
    seen: Instant,
}

/// How long what was seen of a container's union counts. Each path that a user types is looked up anew from the union's
/// root; this is for those who hold a directory open, and lets a walk not look up a directory again for each request.
const TRUSTED: Duration = Duration::from_millis(50);

/// What was warned of, so that walking a tree again does not say it again; no more than [`WARNINGS_MAX`].
static WARNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
const WARNINGS_MAX: usize = 1_000;

fn warn_once(warning: String) {
    let mut warned = WARNED.lock();
    if warned.len() < WARNINGS_MAX && warned.insert(warning.clone()) {
        drop(warned);
        log::warn!("{warning}");
    }
}

impl UnionNode {
    /// The root of a union that has layers.
    ///
    /// # Errors
    /// [`Error::Damaged`] where its top layer's directory is gone, or there are no layers.
    pub(super) fn root(union: Union, footing: Arc<Footing>) -> Result<Node> {
        let root = union.root().and_then(|root| root.ok_or_else(|| Error::damaged("a union", "it has no layers")));
        let member = footing.settle(root)?;
        Ok(Node::InUnion(Self::new(&Arc::new(union), member, TreePath::root(), &footing)))
    }

    fn new(union: &Arc<Union>, member: Member, path: TreePath, footing: &Arc<Footing>) -> Self {
        let latest = || Arc::new(Mutex::new(Latest { member: member.clone(), seen: Instant::now() }));
        let latest = union.changes().then(latest);
        Self { union: Arc::clone(union), member, path, latest, footing: Arc::clone(footing) }
    }

    fn child(&self, name: &Name, member: Member) -> Self {
        let path = if self.union.changes() { self.path.join(name) } else { TreePath::root() };
        Self::new(&self.union, member, path, &self.footing)
    }

    /// What the node stands for as the layers are. In a container's union a directory of an image's layer is joined by
    /// one of the container's at any time.
    fn current(&self) -> Result<Cow<'_, Member>> {
        let Some(latest) = self.latest.as_ref().filter(|_| self.changes()) else {
            return Ok(Cow::Borrowed(&self.member));
        };
        let known = latest.lock().clone();
        if known.seen.elapsed() < TRUSTED {
            return Ok(Cow::Owned(known.member));
        }
        let member = self.looked_up_again()?;
        *latest.lock() = Latest { member: member.clone(), seen: Instant::now() };
        Ok(Cow::Owned(member))
    }

    fn looked_up_again(&self) -> Result<Member> {
        let stale = || Error::Stale { what: format!("{:?}", self.path) };
        let mut member = self.union.root()?.ok_or_else(stale)?;
        for name in self.path.components().filter_map(Name::new) {
            let Member::Dir(dir, _) = member else { return Err(stale()) };
            member = self.union.lookup(&dir, &name)?.ok_or_else(stale)?;
        }
        let (known, found) = (self.member.meta(), member.meta());
        let same = known.kind == found.kind && (known.is_dir() || known.inode == found.inode);
        if same { Ok(member) } else { Err(stale()) }
    }

    /// Whether what this node stands for may change.
    pub(super) fn changes(&self) -> bool {
        match self.member {
            Member::Dir(..) => self.union.changes(),
            Member::File(..) => self.source().map_or(true, |(layer, _)| layer.changes()),
        }
    }

    /// The attributes as they were when the node was looked up.
    pub(super) fn meta(&self) -> &Meta {
        self.member.meta()
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` where this is none.
    pub(super) fn read_link(&self) -> Result<Vec<u8>> {
        let (layer, path) = self.source()?;
        self.footing.settle(layer.tree().read_link(path))
    }

    /// The stored file whose extended attributes this node has.
    ///
    /// # Errors
    /// Where no layer has it.
    pub(super) fn xattr_source(&self) -> Result<Option<XattrSource<'_>>> {
        if self.meta().bare && !self.changes() {
            return Ok(None);
        }
        let (layer, path) = self.source()?;
        Ok(Some(XattrSource { layer, path, form: Form::Oci, footing: &self.footing }))
    }

    fn source(&self) -> Result<(&Arc<Layer>, &TreePath)> {
        self.union.source(&self.member)
    }

    /// What tells this node from others.
    pub(super) fn identity(&self) -> Identity {
        match (&self.member, self.source()) {
            (Member::File(_, meta), Ok((layer, _))) => {
                let data = self.union.data_elsewhere(&self.member);
                Identity::File { layer: layer.id(), inode: meta.inode, data, form: Form::Oci }
            }
            (Member::Dir(..) | Member::File(..), _) => Identity::Path(self.union.id().as_bytes().to_vec()),
        }
    }

    /// Opens a regular file.
    ///
    /// # Errors
    /// Where it could not be opened.
    pub(super) fn open(&self) -> Result<Box<dyn ReadAt>> {
        match self.current()?.as_ref() {
            Member::File(file, _) => self.footing.settle(self.union.open(file)),
            Member::Dir(..) => Err(wrong_kind("open a directory", Errno::ISDIR)),
        }
    }

    /// What a name in this directory stands for.
    ///
    /// # Errors
    /// As [`Union::lookup`].
    pub(super) fn lookup(&self, name: &Name) -> Result<Option<Self>> {
        match self.current()?.as_ref() {
            Member::Dir(dir, _) => {
                let found = self.footing.settle(self.union.lookup(dir, name))?;
                Ok(found.map(|member| self.child(name, member)))
            }
            Member::File(..) => Err(wrong_kind("look up a name in a file", Errno::NOTDIR)),
        }
    }

    /// The names in this directory; names that the union's rule refuses are logged.
    ///
    /// # Errors
    /// Where a layer could not be read.
    pub(super) fn list(&self) -> Result<Vec<(Name, Self)>> {
        let current = self.current()?;
        let Member::Dir(dir, _) = current.as_ref() else {
            return Err(wrong_kind("list a file", Errno::NOTDIR));
        };
        let Listing { members, refused } = self.footing.settle(self.union.list(dir))?;
        for error in refused {
            warn_once(format!("not shown: {error}"));
        }
        let node = |(name, member)| {
            let node = self.child(&name, member);
            (name, node)
        };
        Ok(members.into_iter().map(node).collect())
    }

    /// The attributes as they are.
    ///
    /// # Errors
    /// [`Error::Stale`] where the file is gone, or another has its name.
    pub(super) fn fresh_meta(&self) -> Result<Meta> {
        Ok(if self.changes() { *self.looked_up_again()?.meta() } else { *self.meta() })
    }
}
