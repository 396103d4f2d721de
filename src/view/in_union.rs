//! Places in a union.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use rustix::io::Errno;

use super::footing::Footing;
use super::node::{XattrSource, wrong_kind};
use super::{Entry, Form, Identity, Node};
use crate::error::{Error, Result};
use crate::layer::{Layer, ReadAt};
use crate::meta::Meta;
use crate::name::{Name, TreePath};
use crate::union::{Found, Listing, Member, Union};

/// A place in a union.
#[derive(Debug, Clone)]
pub struct UnionNode {
    ground: Arc<Ground>,
    member: Member,
    /// Only where what this stands for may change.
    changing: Option<Arc<Changing>>,
}

/// What all nodes of a union share.
#[derive(Debug)]
struct Ground {
    union: Union,
    footing: Footing,
}

/// A place in a container's union.
#[derive(Debug)]
struct Changing {
    /// The path in the union.
    path: TreePath,
    /// What the node stood for when it was looked up last, and when that was; guarded so as to be replaced.
    latest: Mutex<(Member, Instant)>,
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
    pub(super) fn root(union: Union, footing: Footing) -> Result<Entry> {
        let root = union.root().and_then(|root| root.ok_or_else(|| Error::damaged("a union", "it has no layers")));
        let found = footing.settle(root)?;
        Ok(Self::entry(&Arc::new(Ground { union, footing }), found, TreePath::root))
    }

    fn entry(ground: &Arc<Ground>, found: Found, path: impl FnOnce() -> TreePath) -> Entry {
        let Found { member, meta } = found;
        let changes = match &member {
            Member::Dir(_) => ground.union.changes(),
            Member::File(file) => ground.union.layer_of(file).map_or(true, |layer| layer.changes()),
        };
        let changing = || Arc::new(Changing { path: path(), latest: Mutex::new((member.clone(), Instant::now())) });
        let changing = changes.then(changing);
        Entry { node: Node::InUnion(Self { ground: Arc::clone(ground), member, changing }), meta }
    }

    fn child(&self, name: &Name, found: Found) -> Entry {
        // A directory that cannot change holds nothing that can.
        let path = || self.changing.as_ref().map_or_else(TreePath::root, |changing| changing.path.join(name));
        Self::entry(&self.ground, found, path)
    }

    /// What the node stands for as the layers are. In a container's union a directory of an image's layer is joined by
    /// one of the container's at any time.
    fn current(&self) -> Result<Cow<'_, Member>> {
        let Some(changing) = &self.changing else { return Ok(Cow::Borrowed(&self.member)) };
        let (known, seen) = changing.latest.lock().clone();
        if seen.elapsed() < TRUSTED {
            return Ok(Cow::Owned(known));
        }
        let Found { member, .. } = self.looked_up_again(&changing.path)?;
        *changing.latest.lock() = (member.clone(), Instant::now());
        Ok(Cow::Owned(member))
    }

    fn looked_up_again(&self, path: &TreePath) -> Result<Found> {
        let stale = || Error::Stale { what: format!("{path:?}") };
        let union = &self.ground.union;
        let mut found = match union.root() {
            // A container that is removed loses its own layer.
            Err(Error::Damaged { .. }) => return Err(stale()),
            root => root?.ok_or_else(stale)?,
        };
        for name in path.components().filter_map(Name::new) {
            let Member::Dir(dir) = &found.member else { return Err(stale()) };
            found = union.lookup(dir, &name)?.ok_or_else(stale)?;
        }
        if self.member.is_of(&found.meta) { Ok(found) } else { Err(stale()) }
    }

    /// Whether all its layers are there.
    ///
    /// # Errors
    /// [`Error::Stale`] where one is gone.
    pub(super) fn check(&self) -> Result<()> {
        self.ground.footing.check()
    }

    /// Whether what this node stands for may change.
    pub(super) fn changes(&self) -> bool {
        self.changing.is_some()
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` where this is none.
    pub(super) fn read_link(&self) -> Result<Vec<u8>> {
        let (layer, path) = self.source()?;
        self.ground.footing.settle_content(layer.tree().read_link(&path))
    }

    /// The stored file whose extended attributes this node has.
    ///
    /// # Errors
    /// Where no layer has it.
    pub(super) fn xattr_source(&self) -> Result<Option<XattrSource<'_>>> {
        if self.member.is_bare() && !self.changes() {
            return Ok(None);
        }
        let (layer, path) = self.source()?;
        Ok(Some(XattrSource { layer, path, form: Form::Oci, footing: &self.ground.footing }))
    }

    fn source(&self) -> Result<(&Arc<Layer>, TreePath)> {
        self.ground.union.source(&self.member)
    }

    /// What tells this node from others.
    pub(super) fn identity(&self) -> Identity {
        let union = &self.ground.union;
        if let Member::File(file) = &self.member
            && let Ok(layer) = union.layer_of(file)
        {
            let data = union.data_elsewhere(file);
            return Identity::File { layer: layer.id(), inode: file.inode(), data, form: Form::Oci };
        }
        Identity::Path(union.id().as_bytes().to_vec())
    }

    /// Opens a regular file.
    ///
    /// # Errors
    /// Where it could not be opened.
    pub(super) fn open(&self) -> Result<Box<dyn ReadAt>> {
        match self.current()?.as_ref() {
            Member::File(file) => self.ground.footing.settle_content(self.ground.union.open(file)),
            Member::Dir(_) => Err(wrong_kind("open a directory", Errno::ISDIR)),
        }
    }

    /// What a name in this directory stands for.
    ///
    /// # Errors
    /// As [`Union::lookup`].
    pub(super) fn lookup(&self, name: &Name) -> Result<Option<Entry>> {
        match self.current()?.as_ref() {
            Member::Dir(dir) => {
                let found = self.ground.footing.settle(self.ground.union.lookup(dir, name))?;
                Ok(found.map(|found| self.child(name, found)))
            }
            Member::File(_) => Err(wrong_kind("look up a name in a file", Errno::NOTDIR)),
        }
    }

    /// The names in this directory; names that the union's rule refuses are logged.
    ///
    /// # Errors
    /// Where a layer could not be read.
    pub(super) fn list(&self) -> Result<Vec<(Name, Entry)>> {
        let current = self.current()?;
        let Member::Dir(dir) = current.as_ref() else {
            return Err(wrong_kind("list a file", Errno::NOTDIR));
        };
        let Listing { members, refused } = self.ground.footing.settle(self.ground.union.list(dir))?;
        for error in refused {
            warn_once(format!("not shown: {error}"));
        }
        let entry = |(name, found)| {
            let entry = self.child(&name, found);
            (name, entry)
        };
        Ok(members.into_iter().map(entry).collect())
    }

    /// The attributes as they are.
    ///
    /// # Errors
    /// [`Error::Stale`] where the file is gone, or another has its name.
    pub(super) fn fresh_meta(&self) -> Result<Meta> {
        if let Some(changing) = &self.changing {
            return Ok(self.looked_up_again(&changing.path)?.meta);
        }
        let meta = self.ground.footing.settle(self.ground.union.stat(&self.member))?;
        let stale =
            || Error::Stale { what: self.source().map_or_else(|_| String::new(), |(_, path)| format!("{path:?}")) };
        meta.filter(|meta| self.member.is_of(meta)).ok_or_else(stale)
    }
}
