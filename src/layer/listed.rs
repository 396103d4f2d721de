//! The layer view of graph drivers whose layers are full trees, where the names are known that the layer's tar had
//! (tar-split): the names are the tar's, all else is the tree's.
//!
//! ```text
//! a name of the tar          shown as the tree has it; not where the tree has none, as a later entry may have taken it
//! .wh.<name>, .wh..wh..opq   an empty file of that name, which no tree holds
//! .wh..wh.<other>            aufs' own, not shown
//! on the way to one          a directory of the tree, also where the tar had no entry for it
//! another name of the tree   not shown
//! ```
//!
//! Names are cleaned as Docker does before it applies a tar (`UnpackLayer` in moby's pkg/archive): `./a`, `/a` and `a/` are
//! `a`. What a tar put below a symbolic link of a lower layer lies elsewhere in the tree, and is not shown.
//!
//! The list is asked for with each question, so that whoever has it may let go of it. Where there is none, another tree
//! answers, which is computed ([`super::difference`]).

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use super::difference::unstored;
use super::whiteout::{OCI_OPAQUE, OCI_WHITEOUT};
use super::{LayerTree, ReadAt};
use crate::error::Result;
use crate::meta::{FileId, Kind, Meta};
use crate::name::{NAME_MAX, Name, TreePath};
use crate::root::Space;

/// The most memory that one list takes, in bytes: some 500,000 names.
pub const LIST_MAX_BYTES: usize = 32 << 20;
/// What a name takes in a list, in bytes, beside the text of a long one.
const NODE_BYTES: usize = 64;
/// The longest path of an entry, in bytes.
const PATH_MAX: usize = 4_096;
/// What the names of aufs' own files begin with.
const AUFS_OWN: &[u8] = b".wh..wh.";

/// Where the names of a layer's tar are.
pub trait NameList: Debug + Send + Sync {
    /// The names; `None` where there is no list of them that could be read.
    ///
    /// # Errors
    /// Transient ones.
    fn names(&self) -> Result<Option<Arc<TarNames>>>;
}

/// The names that a layer's tar had, as a tree.
#[derive(Debug, Default)]
pub struct TarNames {
    /// By the number of their directory, which is 0 for the root.
    nodes: BTreeMap<(u32, Name), Node>,
    bytes: usize,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    number: u32,
    /// Whether the tar had an entry of this name; otherwise it is only on the way to one.
    is_entry: bool,
}

impl TarNames {
    /// Adds the name of an entry as the tar had it.
    ///
    /// # Errors
    /// What is wrong with it, as the words that follow the name; or with the list.
    pub fn add(&mut self, entry: &[u8]) -> std::result::Result<(), &'static str> {
        let parts = cleaned(entry)?;
        let Some((last, way)) = parts.split_last() else { return Ok(()) };
        if last.as_bytes().starts_with(AUFS_OWN) && last.as_bytes() != OCI_OPAQUE {
            return Ok(());
        }
        let mut dir = 0;
        for name in way {
            dir = self.node(dir, name)?.number;
        }
        self.node(dir, last)?.is_entry = true;
        Ok(())
    }

    /// How much memory it takes, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn node(&mut self, dir: u32, name: &Name) -> std::result::Result<&mut Node, &'static str> {
        let next = self.nodes.len().saturating_add(1);
        let key = (dir, name.clone());
        if !self.nodes.contains_key(&key) {
            self.bytes = self.bytes.saturating_add(NODE_BYTES).saturating_add(name.as_bytes().len());
            if self.bytes > LIST_MAX_BYTES {
                return Err("is one more than are kept of one layer");
            }
        }
        let number = u32::try_from(next).map_err(|_| "is one more than can be counted")?;
        Ok(self.nodes.entry(key).or_insert(Node { number, is_entry: false }))
    }

    fn find(&self, path: &TreePath) -> Option<Node> {
        let mut found = Node { number: 0, is_entry: true };
        for part in path.components() {
            found = *self.nodes.get(&(found.number, Name::new(part)?))?;
        }
        Some(found)
    }

    fn child(&self, dir: Node, name: &Name) -> Option<Node> {
        self.nodes.get(&(dir.number, name.clone())).copied()
    }

    /// The marks in a directory.
    fn marks(&self, dir: Node) -> impl Iterator<Item = &Name> {
        let first = Name::new(OCI_WHITEOUT).into_iter();
        let below = first.flat_map(move |first| self.nodes.range((dir.number, first)..));
        let here = below
            .take_while(move |((parent, name), _)| *parent == dir.number && name.as_bytes().starts_with(OCI_WHITEOUT));
        here.filter(|(_, node)| node.is_entry).map(|((_, name), _)| name)
    }
}

/// The components of an entry's name; none of the root's.
fn cleaned(entry: &[u8]) -> std::result::Result<Vec<Name>, &'static str> {
    if entry.len() > PATH_MAX {
        return Err("is longer than a path can be");
    }
    let is_absolute = entry.first() == Some(&b'/');
    let mut parts = Vec::new();
    for part in entry.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if parts.pop().is_none() && !is_absolute => return Err("leads out of the layer"),
            b".." => {}
            part => {
                let name = Name::new(part).filter(|name| name.as_bytes().len() <= NAME_MAX);
                parts.push(name.ok_or("is no name of a file")?);
            }
        }
    }
    Ok(parts)
}

/// What of a tree the tar of its layer had.
#[derive(Debug)]
pub struct Listed {
    tree: Box<dyn LayerTree>,
    /// What answers where there is no list.
    computed: Box<dyn LayerTree>,
    list: Arc<dyn NameList>,
}

impl Listed {
    /// What of `tree` the list has; where it cannot be read, `computed`.
    #[must_use]
    pub fn new(tree: Box<dyn LayerTree>, computed: Box<dyn LayerTree>, list: Arc<dyn NameList>) -> Self {
        Self { tree, computed, list }
    }

    /// The attributes of a mark in a directory of the tree.
    fn mark(path: &TreePath, dir: &Meta) -> Meta {
        let is_opaque = path.as_bytes().ends_with(OCI_OPAQUE);
        let permissions = if is_opaque { dir.permissions & 0o777 } else { 0o600 };
        unstored(path, dir, Kind::Regular, permissions)
    }

    /// The tree that answers all that is no question of names; `None` for a mark, which has nothing of that.
    fn source(&self, path: &TreePath) -> Result<Option<&dyn LayerTree>> {
        let Some(names) = self.list.names()? else { return Ok(Some(self.computed.as_ref())) };
        let is_mark = path.split_last().is_some_and(|(_, name)| is_mark(&name, names.find(path)));
        Ok((!is_mark).then_some(self.tree.as_ref()))
    }
}

fn is_mark(name: &Name, node: Option<Node>) -> bool {
    name.as_bytes().starts_with(OCI_WHITEOUT) && node.is_some_and(|node| node.is_entry)
}

impl LayerTree for Listed {
    fn stat(&self, path: &TreePath) -> Result<Option<Meta>> {
        let Some((dir, name)) = path.split_last() else { return self.tree.stat(path) };
        let Some(names) = self.list.names()? else { return self.computed.stat(path) };
        let Some(node) = names.find(path) else { return Ok(None) };
        if is_mark(&name, Some(node)) {
            let dir = self.tree.stat(&dir)?.filter(Meta::is_dir);
            return Ok(dir.map(|dir| Self::mark(path, &dir)));
        }
        Ok(self.tree.stat(path)?.filter(|meta| node.is_entry || meta.is_dir()))
    }

    fn list(&self, dir: &TreePath, wanted: &dyn Fn(&Name) -> bool) -> Result<Vec<(Name, Meta)>> {
        let Some(names) = self.list.names()? else { return self.computed.list(dir, wanted) };
        let Some(node) = names.find(dir) else { return Ok(Vec::new()) };
        let stored = |name: &Name| names.child(node, name).filter(|child| !is_mark(name, Some(*child)));
        let mut listed = self.tree.list(dir, &|name| wanted(name) && stored(name).is_some())?;
        listed.retain(|(name, meta)| meta.is_dir() || stored(name).is_some_and(|child| child.is_entry));
        let mut marks = names.marks(node).filter(|name| wanted(name)).peekable();
        if marks.peek().is_some()
            && let Some(meta) = self.tree.stat(dir)?
        {
            listed.extend(marks.map(|name| (name.clone(), Self::mark(&dir.join(name), &meta))));
        }
        Ok(listed)
    }

    fn open(&self, file: &TreePath) -> Result<Box<dyn ReadAt>> {
        match self.source(file)? {
            Some(tree) => tree.open(file),
            None => Ok(Box::new(Vec::new())),
        }
    }

    fn read_link(&self, link: &TreePath) -> Result<Vec<u8>> {
        self.tree.read_link(link)
    }

    fn xattr(&self, path: &TreePath, name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.source(path)?.map_or(Ok(None), |tree| tree.xattr(path, name))
    }

    fn xattr_names(&self, path: &TreePath) -> Result<Vec<Vec<u8>>> {
        self.source(path)?.map_or(Ok(Vec::new()), |tree| tree.xattr_names(path))
    }

    fn space(&self) -> Result<Space> {
        self.tree.space()
    }

    fn expect(&mut self, root: FileId) {
        self.tree.expect(root);
        self.computed.expect(root);
    }
}
