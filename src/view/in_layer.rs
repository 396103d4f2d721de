//! Places in one layer's own tree.
//!
//! A layer of overlayfs may say of a file that it has its attributes alone (a metacopy), and of a directory that it is one
//! from below under another name (a redirect). In OCI's form there is neither, so such a file is there as the union of the
//! layer with those below has it, and such a directory as one that replaces what is below, with all that the union has in
//! it. Where no union can tell, what is stored is listed, and the file cannot be opened.

use std::sync::{Arc, OnceLock};

use rustix::io::Errno;

use super::footing::Footing;
use super::in_union::UnionNode;
use super::node::{XattrSource, wrong_kind};
use super::{Entry, Identity, Node, Stacked};
use crate::error::{Error, Result};
use crate::layer::whiteout::{OCI_OPAQUE, Stored, oci_mark, oci_marked};
use crate::layer::{Layer, ReadAt};
use crate::meta::{Kind, Meta};
use crate::name::{Name, TreePath};

/// The form in which a layer's own tree shows deletions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// As an OCI layer has them: files `.wh.<name>`, and `.wh..wh..opq` in opaque directories; those that are stored so
    /// are shown as they are. Private attributes and a union file system's own files are hidden.
    #[default]
    Oci,
    /// As the store has them, private attributes too.
    Stored,
}

/// A place in one layer's own tree.
#[derive(Debug, Clone)]
pub struct LayerNode {
    ground: Arc<Ground>,
    place: Place,
    /// Whether the file is known to have no extended attributes, and to get none.
    bare: bool,
}

/// What all nodes of a layer share.
#[derive(Debug)]
struct Ground {
    layer: Layer,
    form: Form,
    footing: Footing,
    stacked: Stacked,
    /// The root of the union of this layer with those below, since it was asked for.
    united: OnceLock<UnionNode>,
}

impl Ground {
    /// A directory of the layer as it is in the union; `None` where it is none there.
    fn united(&self, dir: &TreePath) -> Result<Option<UnionNode>> {
        let mut node = match self.united.get() {
            Some(root) => root.clone(),
            None => {
                let Entry { node: Node::InUnion(root), .. } = self.stacked.root()? else { return Ok(None) };
                self.united.get_or_init(|| root).clone()
            }
        };
        for name in dir.components().filter_map(Name::new) {
            match node.lookup(&name)? {
                Some(Entry { node: Node::InUnion(below), meta }) if meta.is_dir() => node = below,
                Some(_) | None => return Ok(None),
            }
        }
        Ok(Some(node))
    }
}

/// What stands in a layer's own tree. Entries share their directory's path.
#[derive(Debug, Clone)]
enum Place {
    /// A stored directory.
    Dir(Arc<TreePath>),
    /// A stored directory that comes from below under another name, as it is in the union; `None` where a layer is damaged.
    Moved { dir: Arc<TreePath>, united: Option<Box<UnionNode>> },
    /// Another stored file.
    File { dir: Arc<TreePath>, name: Name, inode: u64, kind: Kind },
    /// The mark, in OCI's form, of the deletion of this name, which is stored in another form.
    Deletion { dir: Arc<TreePath>, name: Name },
    /// The mark, in OCI's form, of this opaque directory.
    Opaque { dir: Arc<TreePath> },
}

impl Place {
    /// The path of the stored file.
    fn path(&self) -> TreePath {
        match self {
            Self::Dir(path) | Self::Moved { dir: path, .. } | Self::Opaque { dir: path } => TreePath::clone(path),
            Self::File { dir, name, .. } | Self::Deletion { dir, name } => dir.join(name),
        }
    }
}

impl LayerNode {
    /// The root of a layer.
    ///
    /// # Errors
    /// [`Error::Stale`] where the layer is gone, [`Error::Damaged`] where its directory is.
    pub(super) fn root(layer: Layer, form: Form, footing: Footing, stacked: Stacked) -> Result<Entry> {
        // Only what is not there takes a second look: all layers of a store are listed by this.
        let meta = footing.settle_content(layer.root())?;
        let place = Place::Dir(Arc::new(TreePath::root()));
        let ground = Ground { layer, form, footing, stacked, united: OnceLock::new() };
        let node = Self { ground: Arc::new(ground), place, bare: false };
        Ok(Entry { node: Node::InLayer(node), meta })
    }

    fn entry(&self, place: Place, meta: Meta) -> Entry {
        let bare = meta.bare && !self.changes();
        Entry { node: Node::InLayer(Self { ground: Arc::clone(&self.ground), place, bare }), meta }
    }

    /// A stored file. `united` is its directory in the union, once that was asked for.
    fn stored(&self, dir: &Arc<TreePath>, name: &Name, meta: Meta, united: &mut Option<UnionNode>) -> Result<Entry> {
        let entry = Stored { tree: self.ground.layer.tree(), dir, name, meta: &meta };
        if self.ground.form == Form::Oci && self.needs_union(&entry)? {
            match self.in_union(dir, name, united) {
                Ok(Some(Entry { node: Node::InUnion(node), meta })) if meta.is_dir() => {
                    let place = Place::Moved { dir: Arc::new(dir.join(name)), united: Some(Box::new(node)) };
                    return Ok(self.entry(place, meta));
                }
                Ok(Some(entry)) => return Ok(entry),
                Err(Error::Damaged { .. }) if meta.is_dir() => {
                    let place = Place::Moved { dir: Arc::new(dir.join(name)), united: None };
                    return Ok(self.entry(place, meta));
                }
                // What no union has is listed as it is stored.
                Ok(None) | Err(Error::Refused { .. } | Error::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let place = match meta.kind {
            Kind::Directory => Place::Dir(Arc::new(dir.join(name))),
            kind => Place::File { dir: Arc::clone(dir), name: name.clone(), inode: meta.inode, kind },
        };
        Ok(self.entry(place, meta))
    }

    /// Whether the layer alone does not tell what a file or directory holds.
    fn needs_union(&self, entry: &Stored<'_>) -> Result<bool> {
        let whiteouts = self.ground.layer.whiteouts();
        let needs = match entry.meta.kind {
            Kind::Regular => whiteouts.is_metacopy(entry),
            Kind::Directory => match whiteouts.redirect(entry) {
                Ok(Some(_)) => {
                    whiteouts.is_opaque(entry).map(|is_opaque| !is_opaque && self.ground.stacked.has_below())
                }
                Ok(None) => Ok(false),
                Err(error) => Err(error),
            },
            Kind::Symlink | Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => Ok(false),
        };
        match needs {
            // What is malformed is no union's either.
            Err(Error::Refused { .. }) => Ok(false),
            needs => needs,
        }
    }

    /// What a name stands for in the union. The layer is on top of it, so paths are the same in both.
    fn in_union(&self, dir: &TreePath, name: &Name, united: &mut Option<UnionNode>) -> Result<Option<Entry>> {
        if united.is_none() {
            *united = self.ground.united(dir)?;
        }
        united.as_ref().map_or(Ok(None), |dir| dir.lookup(name))
    }

    fn deletion(&self, dir: &Arc<TreePath>, deleted: &Name, stored: &Meta) -> Entry {
        self.entry(Place::Deletion { dir: Arc::clone(dir), name: deleted.clone() }, deletion_meta(stored))
    }

    fn opaque_mark(&self, dir: &Arc<TreePath>, meta: &Meta) -> Entry {
        self.entry(Place::Opaque { dir: Arc::clone(dir) }, opaque_meta(meta))
    }

    /// Whether the layer may change.
    pub(super) fn changes(&self) -> bool {
        self.ground.layer.changes()
    }

    /// What tells this node from others.
    pub(super) fn identity(&self) -> Identity {
        let layer = self.ground.layer.id();
        match self.place {
            Place::File { inode, .. } => Identity::File { layer, inode, data: None, form: self.ground.form },
            Place::Dir(_) | Place::Deletion { .. } | Place::Opaque { .. } => Identity::Path(layer.as_bytes().to_vec()),
            Place::Moved { united: Some(ref united), .. } => united.identity(),
            Place::Moved { united: None, .. } => Identity::Path([layer.as_bytes().as_slice(), b"damaged"].concat()),
        }
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` where this is none.
    pub(super) fn read_link(&self) -> Result<Vec<u8>> {
        match self.place {
            Place::Dir(_) | Place::Moved { .. } | Place::File { .. } => {
                self.ground.footing.settle_content(self.ground.layer.tree().read_link(&self.place.path()))
            }
            Place::Deletion { .. } | Place::Opaque { .. } => Err(wrong_kind("read a link", Errno::INVAL)),
        }
    }

    /// Opens a regular file; a mark is an empty one.
    ///
    /// # Errors
    /// Where it could not be opened; [`Error::Damaged`] for a metacopy whose data are not found below.
    pub(super) fn open(&self) -> Result<Box<dyn ReadAt>> {
        match &self.place {
            Place::Dir(_) | Place::Moved { .. } | Place::File { .. } => {
                self.ground.footing.settle_content(self.has_content())?;
                self.ground.footing.settle_content(self.ground.layer.tree().open(&self.place.path()))
            }
            Place::Deletion { .. } | Place::Opaque { .. } => Ok(Box::new(Vec::new())),
        }
    }

    /// Makes sure that the layer has the file's content, which it gives as zeros otherwise.
    fn has_content(&self) -> Result<()> {
        let Ground { layer, form, .. } = self.ground.as_ref();
        let Place::File { dir, name, kind: Kind::Regular, .. } = &self.place else { return Ok(()) };
        if *form == Form::Stored || self.bare {
            return Ok(());
        }
        let Some(meta) = layer.tree().stat(&dir.join(name))? else { return Ok(()) };
        if layer.whiteouts().is_metacopy(&Stored { tree: layer.tree(), dir, name, meta: &meta })? {
            return Err(Error::damaged(format!("{:?}", dir.join(name)), "a metacopy whose data cannot be found below"));
        }
        Ok(())
    }

    /// The stored file whose extended attributes this node has.
    pub(super) fn xattr_source(&self) -> Option<XattrSource<'_>> {
        let Ground { layer, form, footing, .. } = self.ground.as_ref();
        match self.place {
            Place::Dir(_) | Place::Moved { .. } | Place::File { .. } if !self.bare => {
                Some(XattrSource { layer, path: self.place.path(), form: *form, footing })
            }
            Place::Dir(_)
            | Place::Moved { .. }
            | Place::File { .. }
            | Place::Deletion { .. }
            | Place::Opaque { .. } => None,
        }
    }

    fn dir(&self, doing: &str) -> Result<&Arc<TreePath>> {
        match &self.place {
            Place::Dir(path) | Place::Moved { dir: path, .. } => Ok(path),
            Place::File { .. } | Place::Deletion { .. } | Place::Opaque { .. } => Err(wrong_kind(doing, Errno::NOTDIR)),
        }
    }

    /// The directory's attributes where it is opaque and that is to be shown as a mark.
    fn opaque(&self, dir: &TreePath) -> Result<Option<Meta>> {
        let layer = &self.ground.layer;
        if let Place::Moved { .. } = self.place {
            return layer.tree().stat(dir);
        }
        let is_shown = self.ground.form == Form::Oci && !self.bare;
        if is_shown && layer.has_opaque_attribute(dir)? { layer.tree().stat(dir) } else { Ok(None) }
    }

    /// What a name in this directory stands for.
    ///
    /// # Errors
    /// Where the layer could not be read.
    pub(super) fn lookup(&self, name: &Name) -> Result<Option<Entry>> {
        self.ground.footing.settle(self.find(name))
    }

    fn find(&self, name: &Name) -> Result<Option<Entry>> {
        let Ground { layer, form, .. } = self.ground.as_ref();
        let dir = self.dir("look up a name in a file")?;
        if *form == Form::Oci {
            if name.as_bytes() == OCI_OPAQUE
                && let Some(meta) = self.opaque(dir)?
            {
                return Ok(Some(self.opaque_mark(dir, &meta)));
            }
            if let Place::Moved { united, .. } = &self.place {
                return united.as_ref().ok_or_else(|| not_united(dir))?.lookup(name);
            }
            if let Some(deleted) = oci_marked(name)
                && let Some(meta) = layer.tree().stat(&dir.join(&deleted))?
                && layer.is_whiteout(dir, &deleted, &meta)?
            {
                return Ok(Some(self.deletion(dir, &deleted, &meta)));
            }
        }
        let Some(meta) = layer.tree().stat(&dir.join(name))? else { return Ok(None) };
        if *form == Form::Oci && (layer.whiteouts().is_own(dir, name, &meta) || layer.is_whiteout(dir, name, &meta)?) {
            return Ok(None);
        }
        self.stored(dir, name, meta, &mut None).map(Some)
    }

    /// The names in this directory. A mark hides a stored file of the mark's own name, which no OCI layer can hold.
    ///
    /// # Errors
    /// Where the layer could not be read.
    pub(super) fn list(&self) -> Result<Vec<(Name, Entry)>> {
        self.ground.footing.settle(self.entries())
    }

    fn entries(&self) -> Result<Vec<(Name, Entry)>> {
        let Ground { layer, form, .. } = self.ground.as_ref();
        let dir = self.dir("list a file")?;
        if let Place::Moved { united, .. } = &self.place {
            return self.moved_entries(dir, united.as_ref().ok_or_else(|| not_united(dir))?);
        }
        let stored = layer.tree().list(dir, &|_| true)?;
        let (mut marks, mut files) = (Vec::new(), Vec::with_capacity(stored.len()));
        let mut united = None;
        if let Some(name) = Name::new(OCI_OPAQUE)
            && let Some(meta) = self.opaque(dir)?
        {
            marks.push((name, self.opaque_mark(dir, &meta)));
        }
        for (name, meta) in stored {
            if *form == Form::Oci && layer.whiteouts().is_own(dir, &name, &meta) {
                continue;
            }
            if *form == Form::Oci && layer.is_whiteout(dir, &name, &meta)? {
                marks.extend(oci_mark(&name).map(|mark| (mark, self.deletion(dir, &name, &meta))));
            } else {
                let entry = self.stored(dir, &name, meta, &mut united)?;
                files.push((name, entry));
            }
        }
        // The sorting is stable: of one name the first stays, which is a mark's.
        marks.append(&mut files);
        marks.sort_by(|(one, _), (other, _)| one.cmp(other));
        marks.dedup_by(|(one, _), (other, _)| one == other);
        Ok(marks)
    }

    /// What the union has in a directory, and the mark that this replaces what is below.
    fn moved_entries(&self, dir: &Arc<TreePath>, united: &UnionNode) -> Result<Vec<(Name, Entry)>> {
        let mut entries = united.list()?;
        if let Some(mark) = Name::new(OCI_OPAQUE)
            && let Some(meta) = self.opaque(dir)?
        {
            entries.retain(|(name, _)| *name != mark);
            entries.push((mark, self.opaque_mark(dir, &meta)));
        }
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(entries)
    }

    /// Whether a directory is shown with a mark that it replaces what is below.
    fn is_replacing(&self, dir: &TreePath, meta: &Meta) -> Result<bool> {
        let layer = &self.ground.layer;
        if layer.has_opaque_attribute(dir)? {
            return Ok(true);
        }
        let Some((parent, name)) = dir.split_last() else { return Ok(false) };
        self.needs_union(&Stored { tree: layer.tree(), dir: &parent, name: &name, meta })
    }

    /// The attributes as they are.
    ///
    /// # Errors
    /// [`Error::Stale`] where the file is gone, or another has its name.
    pub(super) fn fresh_meta(&self) -> Result<Meta> {
        let Ground { layer, footing, .. } = self.ground.as_ref();
        if let Place::Moved { united: Some(united), .. } = &self.place {
            return united.fresh_meta();
        }
        let path = self.place.path();
        let fresh = footing.settle(layer.tree().stat(&path))?;
        let stale = || Error::Stale { what: format!("{path:?}") };
        let meta = fresh.ok_or_else(stale)?;
        match &self.place {
            Place::Dir(_) | Place::Moved { .. } if meta.is_dir() => Ok(meta),
            Place::File { inode, kind, .. } if (meta.kind, meta.inode) == (*kind, *inode) => Ok(meta),
            Place::Deletion { dir, name } if footing.settle(layer.is_whiteout(dir, name, &meta))? => {
                Ok(deletion_meta(&meta))
            }
            Place::Opaque { dir } if footing.settle(self.is_replacing(dir, &meta))? => Ok(opaque_meta(&meta)),
            Place::Dir(_)
            | Place::Moved { .. }
            | Place::File { .. }
            | Place::Deletion { .. }
            | Place::Opaque { .. } => Err(stale()),
        }
    }
}

fn not_united(dir: &TreePath) -> Error {
    Error::damaged(format!("{dir:?}"), "it was renamed from below, where a layer is damaged")
}

/// The mark of a deletion: Docker writes overlay2's with mode 0600 and the owner and times of the stored one
/// (`overlayWhiteoutConverter` in moby's pkg/archive).
fn deletion_meta(stored: &Meta) -> Meta {
    Meta { permissions: 0o600, ..mark_of(stored) }
}

/// The mark of an opaque directory: Docker gives it the permissions, owner and times of the directory.
fn opaque_meta(dir: &Meta) -> Meta {
    Meta { permissions: dir.permissions & 0o777, ..mark_of(dir) }
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
