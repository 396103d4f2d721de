//! Places in one layer's own tree.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustix::io::Errno;

use super::footing::Footing;
use super::node::{XattrSource, wrong_kind};
use super::{Identity, Node};
use crate::error::{Error, Result};
use crate::layer::whiteout::{OCI_OPAQUE, oci_mark, oci_marked};
use crate::layer::{Layer, ReadAt};
use crate::meta::{Kind, Meta};
use crate::name::{Name, TreePath};

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

/// A place in one layer's own tree.
#[derive(Debug, Clone)]
pub struct LayerNode {
    layer: Arc<Layer>,
    path: TreePath,
    meta: Meta,
    role: Role,
    form: Form,
    footing: Arc<Footing>,
}

/// What a file in a layer's own tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// A stored file.
    Stored,
    /// The mark, in OCI's form, of a deletion or of an opaque directory, that is stored in another form.
    Mark,
}

impl LayerNode {
    /// The root of a layer.
    ///
    /// # Errors
    /// [`Error::Damaged`] where its directory is gone.
    pub(super) fn root(layer: Arc<Layer>, form: Form, footing: Arc<Footing>) -> Result<Node> {
        let path = TreePath::root();
        let meta = layer.tree().stat(&path)?.ok_or_else(|| Error::damaged("a layer", "its directory is gone"))?;
        Ok(Node::InLayer(Self { layer, path, meta, role: Role::Stored, form, footing }))
    }

    fn stored(&self, path: TreePath, mut meta: Meta) -> Self {
        meta.bare &= !self.layer.changes();
        Self { path, meta, role: Role::Stored, ..self.clone() }
    }

    /// The mark of a deletion. Docker writes overlay2's marks with mode 0600 and the owner and times of the stored one
    /// (`overlayWhiteoutConverter` in moby's pkg/archive).
    fn deletion(&self, path: TreePath, stored: &Meta) -> Self {
        let mark = Meta { permissions: 0o600, ..mark_of(stored) };
        Self { path, meta: mark, role: Role::Mark, ..self.clone() }
    }

    /// The mark of an opaque directory: Docker gives it the permissions, owner and times of the directory.
    fn opaque_mark(&self, dir: &Meta) -> Self {
        let path = Name::new(OCI_OPAQUE).map_or_else(|| self.path.clone(), |name| self.path.join(&name));
        let meta = Meta { permissions: dir.permissions & 0o777, ..mark_of(dir) };
        Self { path, meta, role: Role::Mark, ..self.clone() }
    }

    /// The attributes as they were when the node was looked up.
    pub(super) fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Whether the layer may change.
    pub(super) fn changes(&self) -> bool {
        self.layer.changes()
    }

    /// What tells this node from others.
    pub(super) fn identity(&self) -> Identity {
        if self.role == Role::Mark || self.meta.is_dir() {
            Identity::Path(self.layer.id().as_bytes().to_vec())
        } else {
            Identity::File { layer: self.layer.id(), inode: self.meta.inode, data: None, form: self.form }
        }
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` where this is none.
    pub(super) fn read_link(&self) -> Result<Vec<u8>> {
        match self.role {
            Role::Stored => self.footing.settle(self.layer.tree().read_link(&self.path)),
            Role::Mark => Err(wrong_kind("read a link", Errno::INVAL)),
        }
    }

    /// Opens a regular file; a mark is an empty one.
    ///
    /// # Errors
    /// Where it could not be opened.
    pub(super) fn open(&self) -> Result<Box<dyn ReadAt>> {
        match self.role {
            Role::Stored => self.footing.settle(self.layer.tree().open(&self.path)),
            Role::Mark => Ok(Box::new(Vec::new())),
        }
    }

    /// The stored file whose extended attributes this node has.
    pub(super) fn xattr_source(&self) -> Option<XattrSource<'_>> {
        let can_have = self.role == Role::Stored && !self.meta.bare;
        can_have.then_some(XattrSource {
            layer: &self.layer,
            path: &self.path,
            form: self.form,
            footing: &self.footing,
        })
    }

    /// What a name in this directory stands for.
    ///
    /// # Errors
    /// Where the layer could not be read.
    pub(super) fn lookup(&self, name: &Name) -> Result<Option<Self>> {
        self.footing.settle(self.find(name))
    }

    fn find(&self, name: &Name) -> Result<Option<Self>> {
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

    /// The names in this directory. A mark hides a stored file of the mark's own name, which no OCI layer can hold.
    ///
    /// # Errors
    /// Where the layer could not be read.
    pub(super) fn list(&self) -> Result<Vec<(Name, Self)>> {
        self.footing.settle(self.entries())
    }

    fn entries(&self) -> Result<Vec<(Name, Self)>> {
        let mut stored = self.layer.tree().list(&self.path)?;
        stored.sort_by(|(a, _), (b, _)| a.cmp(b));
        if self.form == Form::Stored {
            return Ok(stored
                .into_iter()
                .map(|(n, meta)| (n.clone(), self.stored(self.path.join(&n), meta)))
                .collect());
        }
        let mut shown = BTreeMap::new();
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

    /// The attributes as they are.
    ///
    /// # Errors
    /// [`Error::Stale`] where the file is gone, or another has its name.
    pub(super) fn fresh_meta(&self) -> Result<Meta> {
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
