//! The merge rule, once, serving lookup and listing alike.
//!
//! A union is a stack of layers, top first. What it shows is what kernel overlayfs shows for the same directories
//! (`ovl_lookup()` in `fs/overlayfs/namei.c`, Linux 6.18), with `redirect_dir=follow` and `metacopy=on` where the
//! layers' attributes are `trusted.`, and with neither where they are `user.` (mount option `userxattr`). Layers of aufs
//! and fuse-overlayfs are united by the same rule, which asks [`Whiteouts`](crate::layer::Whiteouts) where theirs differs.
//!
//! A directory of the union is the list of the layers' directories that contribute to it ([`UnionDir`]). The rule
//! walks the contributors of the *parent*, top first, so every whiteout, opaque mark and file above an ancestor is
//! inherited without being looked at again. A listing takes the contributors' names, but for those that a layer above
//! settles, and asks the same rule for each, so what is listed can be found.
//!
//! Three differences from the kernel, all so that a listing never shows what a lookup denies: whiteouts in
//! directories of a single layer are not listed; a name whose redirect the kernel refuses is not listed; a metacopy
//! file without data can be found, and only opening it fails.

use std::collections::HashSet;
use std::sync::Arc;

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::layer::names::{NAMES_MAX, too_many};
use crate::layer::whiteout::{Redirect, Stored};
use crate::layer::{Layer, LayerId, ReadAt};
use crate::meta::{Kind, Meta};
use crate::name::{NAME_MAX, Name, TreePath};

/// A stack of layers, seen as one tree.
#[derive(Debug, Clone)]
pub struct Union {
    layers: Arc<[Arc<Layer>]>,
    id: LayerId,
}

/// A directory of one layer of a union.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    /// Which layer; 0 is the top.
    layer: usize,
    /// The path in that layer's tree, which redirects make differ from the union's.
    path: TreePath,
}

/// An entry of one layer's directory. Entries share their directory, so there is no path for each.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Spot {
    dir: Arc<Part>,
    name: Name,
}

/// A directory of a union.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnionDir {
    /// The directories that contribute, top first, at least one.
    parts: Arc<[Arc<Part>]>,
    bare: bool,
}

/// A file of a union that is no directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnionFile {
    spot: Spot,
    /// Where a metacopy's content is; others have their own.
    data: Option<Box<FileData>>,
    inode: u64,
    kind: Kind,
    bare: bool,
}

/// Where the content of a file is that holds attributes only.
#[derive(Debug, Clone, PartialEq, Eq)]
enum FileData {
    /// In a file below, whose number in its layer this is.
    Below(Spot, u64),
    /// Nowhere: no file below has the data.
    Missing,
}

/// What a name in a union stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Member {
    /// A directory.
    Dir(UnionDir),
    /// Anything else.
    File(UnionFile),
}

/// What a lookup or a listing finds: what may be held, and what is told of it at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What the name stands for.
    pub member: Member,
    /// The attributes that users see; a directory's are those of its topmost contributor.
    pub meta: Meta,
}

/// A directory of a union, listed.
#[derive(Debug)]
pub struct Listing {
    /// The names, sorted as bytes, with what they stand for.
    pub members: Vec<(Name, Found)>,
    /// Why names that the rule refuses were left out.
    pub refused: Vec<Error>,
}

impl Spot {
    fn path(&self) -> TreePath {
        self.dir.path.join(&self.name)
    }

    fn into_dir(self) -> Arc<Part> {
        Arc::new(Part { layer: self.dir.layer, path: self.path() })
    }
}

impl Member {
    /// Whether these are the attributes of this member, as far as they tell: a directory stays the same when its
    /// topmost contributor is another.
    #[must_use]
    pub fn is_of(&self, meta: &Meta) -> bool {
        match self {
            Self::Dir(_) => meta.is_dir(),
            Self::File(file) => (file.kind, file.inode) == (meta.kind, meta.inode),
        }
    }

    /// Whether the member was known to have no extended attributes when it was found.
    #[must_use]
    pub fn is_bare(&self) -> bool {
        match self {
            Self::Dir(dir) => dir.bare,
            Self::File(file) => file.bare,
        }
    }
}

impl UnionFile {
    /// The file's number in its layer.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }
}

impl UnionDir {
    /// How many layers contribute.
    #[must_use]
    pub fn contributors(&self) -> usize {
        self.parts.len()
    }
}

/// The path that layers are searched for: a name in the directory at hand, which redirects replace on the way down.
struct Search<'a> {
    name: &'a Name,
    /// The components that a redirect put in the name's place.
    redirected: Option<Vec<Vec<u8>>>,
    /// Whether they lead from the layers' roots.
    absolute: bool,
}

impl<'a> Search<'a> {
    fn for_name(name: &'a Name) -> Self {
        Self { name, redirected: None, absolute: false }
    }

    fn components(&self) -> usize {
        self.redirected.as_ref().map_or(1, Vec::len)
    }

    fn component(&self, index: usize) -> Option<&[u8]> {
        match &self.redirected {
            None => (index == 0).then_some(self.name.as_bytes()),
            Some(components) => components.get(index).map(Vec::as_slice),
        }
    }

    /// Replaces the component at `index`, and for an absolute redirect all before it.
    fn redirect(&mut self, index: usize, redirect: Redirect) {
        let components = self.redirected.get_or_insert_with(|| vec![self.name.as_bytes().to_vec()]);
        match redirect {
            Redirect::Sibling(name) => {
                if let Some(component) = components.get_mut(index) {
                    *component = name;
                }
            }
            Redirect::Absolute(path) => {
                self.absolute = true;
                let behind = components.split_off(components.len().min(index.saturating_add(1)));
                *components = path;
                components.extend(behind);
            }
        }
    }
}

/// What a listing knows of a name.
struct Seen {
    /// Which of the directory's contributors has it.
    contributor: usize,
    meta: Meta,
    /// Whether that is a file beside it by which the contributor says that the name is deleted.
    is_mark: bool,
}

/// What the layers above have settled.
#[derive(Default)]
struct Progress {
    stop: bool,
    is_dir: bool,
    metacopy: bool,
}

impl Union {
    /// The union of these layers, top first.
    #[must_use]
    pub fn new(layers: impl Into<Arc<[Arc<Layer>]>>) -> Self {
        let layers = layers.into();
        let id = LayerId::of_all(layers.iter().map(|layer| layer.id()));
        Self { layers, id }
    }

    /// Stands for the stack: the same layers in the same order have the same ID in every mount.
    #[must_use]
    pub fn id(&self) -> LayerId {
        self.id
    }

    /// The layers, top first.
    #[must_use]
    pub fn layers(&self) -> &[Arc<Layer>] {
        &self.layers
    }

    /// The root directory: all layers' roots, down to one that hides those below. `None` for a union of no layers.
    ///
    /// # Errors
    /// Where the topmost root could not be read; [`Error::Damaged`] where it is gone.
    pub fn root(&self) -> Result<Option<Found>> {
        let Some(top) = self.layers.first() else { return Ok(None) };
        let (root, meta) = (TreePath::root(), top.root()?);
        let mut parts = Vec::with_capacity(self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            parts.push(Arc::new(Part { layer: index, path: root.clone() }));
            if layer.is_opaque_root()? {
                break;
            }
        }
        Ok(Some(directory(parts.into(), meta)))
    }

    /// What a name in a directory stands for; `None` where the union has no such name.
    ///
    /// # Errors
    /// [`Error::Refused`] where the kernel answers with an error; others where a layer could not be read.
    pub fn lookup(&self, dir: &UnionDir, name: &Name) -> Result<Option<Found>> {
        self.merge(dir, name, None)
    }

    /// The directory's names with what they stand for.
    ///
    /// # Errors
    /// Where a layer could not be read.
    pub fn list(&self, dir: &UnionDir) -> Result<Listing> {
        // The names by their places in `seen`, so that little is moved in sorting.
        let (mut names, mut seen) = (Vec::new(), Vec::new());
        let (mut settled, mut directories) = (HashSet::new(), HashSet::new());
        for (contributor, part) in dir.parts.iter().enumerate() {
            let layer = self.layer(part)?;
            let is_last = contributor.saturating_add(1) == dir.parts.len();
            let whiteouts = layer.whiteouts();
            let listed = layer.tree().list(&part.path, &|name| !settled.contains(name))?;
            if seen.len().saturating_add(listed.len()) > NAMES_MAX {
                return Err(too_many(&format!("{:?}", part.path)));
            }
            names.reserve(listed.len());
            seen.reserve(listed.len());
            if whiteouts.has_named_marks() {
                // Before what they delete, which may be beside them.
                for (mark, meta) in &listed {
                    let Some(name) = whiteouts.marked_by(mark) else { continue };
                    if !is_last {
                        settled.insert(name.clone());
                    }
                    names.push((name, seen.len()));
                    seen.push(Seen { contributor, meta: *meta, is_mark: true });
                }
            }
            for (name, meta) in listed {
                if whiteouts.is_reserved(&name) {
                    continue;
                }
                if !is_last && whiteouts.ends_search(&meta) && !directories.contains(&name) {
                    settled.insert(name.clone());
                }
                if !is_last && whiteouts.passes_over_files() && meta.is_dir() {
                    directories.insert(name.clone());
                }
                names.push((name, seen.len()));
                seen.push(Seen { contributor, meta, is_mark: false });
            }
        }
        names.sort_unstable();
        let mut listing = Listing { members: Vec::with_capacity(names.len()), refused: Vec::new() };
        let mut places = Vec::new();
        for same in names.chunk_by(|(one, _), (next, _)| one == next) {
            let Some((name, _)) = same.first() else { continue };
            places.clear();
            places.extend(same.iter().filter_map(|(_, at)| seen.get(*at)));
            match self.merge(dir, name, Some(&places)) {
                Ok(Some(found)) => listing.members.push((name.clone(), found)),
                Ok(None) => {}
                Err(error @ Error::Refused { .. }) => listing.refused.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok(listing)
    }

    /// Opens a regular file.
    ///
    /// # Errors
    /// [`Error::Damaged`] where a metacopy file's data is nowhere.
    pub fn open(&self, file: &UnionFile) -> Result<Box<dyn ReadAt>> {
        let spot = match file.data.as_deref() {
            None => &file.spot,
            Some(FileData::Below(spot, _)) => spot,
            Some(FileData::Missing) => {
                let what = format!("{:?}", file.spot.path());
                return Err(Error::damaged(what, "a metacopy whose data is in no layer below"));
            }
        };
        self.layer(&spot.dir)?.tree().open(&spot.path())
    }

    /// The layer that gives a member its attributes, and the path there.
    ///
    /// # Errors
    /// [`Error::Damaged`] for a member of another union.
    pub fn source(&self, member: &Member) -> Result<(&Arc<Layer>, TreePath)> {
        match member {
            Member::Dir(dir) => {
                let top = dir.parts.first();
                let top = top.ok_or_else(|| Error::damaged("a union's directory", "no layer contributes to it"))?;
                Ok((self.layer(top)?, top.path.clone()))
            }
            Member::File(file) => Ok((self.layer(&file.spot.dir)?, file.spot.path())),
        }
    }

    /// The layer that gives a file its attributes.
    ///
    /// # Errors
    /// [`Error::Damaged`] for a file of another union.
    pub fn layer_of(&self, file: &UnionFile) -> Result<&Arc<Layer>> {
        self.layer(&file.spot.dir)
    }

    /// A member's attributes, as the lookup told them that found it; `None` where its file is gone.
    ///
    /// # Errors
    /// Where a layer could not be read.
    pub fn stat(&self, member: &Member) -> Result<Option<Meta>> {
        let (layer, path) = self.source(member)?;
        let Some(meta) = layer.tree().stat(&path)? else { return Ok(None) };
        match member {
            Member::Dir(dir) => Ok(Some(merged_meta(&dir.parts, meta))),
            Member::File(UnionFile { data: Some(data), .. }) if let FileData::Below(spot, _) = data.as_ref() => {
                let data = self.layer(&spot.dir)?.tree().stat(&spot.path())?;
                Ok(data.map(|data| Meta { blocks: data.blocks, ..meta }))
            }
            Member::File(_) => Ok(Some(meta)),
        }
    }

    /// Whether any layer may change while it is read.
    #[must_use]
    pub fn changes(&self) -> bool {
        self.layers.iter().any(|layer| layer.changes())
    }

    /// Tells a metacopy from the file that gives its attributes: the layer and number of its data, zero where it has
    /// none. `None` for files that hold their own data.
    #[must_use]
    pub fn data_elsewhere(&self, file: &UnionFile) -> Option<([u8; 16], u64)> {
        match file.data.as_deref()? {
            FileData::Below(spot, inode) => {
                let id = self.layers.get(spot.dir.layer).map_or([0; 16], |layer| *layer.id().as_bytes());
                Some((id, *inode))
            }
            FileData::Missing => Some(([0; 16], 0)),
        }
    }

    fn layer(&self, part: &Part) -> Result<&Arc<Layer>> {
        self.layers.get(part.layer).ok_or_else(|| Error::damaged("a union", "it has no such layer"))
    }

    /// The rule. `seen` is what a listing already knows, by contributor, of all contributors that have the name down to
    /// one that settles it; without it layers are asked.
    fn merge(&self, dir: &UnionDir, name: &Name, seen: Option<&[&Seen]>) -> Result<Option<Found>> {
        let mut search = Search::for_name(name);
        let mut progress = Progress::default();
        let mut top: Option<(Spot, Meta)> = None;
        let mut below: Vec<(Spot, Meta)> = Vec::new();
        let mut from_root = None;
        let mut index = 0_usize;
        while !progress.stop {
            // Redirects lead away from what a listing knows.
            let known = match seen.filter(|_| search.redirected.is_none()) {
                Some(seen) => {
                    let Some(next) = seen.iter().find(|seen| seen.contributor >= index) else { break };
                    index = next.contributor;
                    Some(*next)
                }
                None => None,
            };
            // Absolute redirects continue at the roots of the layers below, whichever contributed so far.
            let root;
            let base = match from_root {
                None => dir.parts.get(index),
                Some(start) => {
                    let layer = index.saturating_add(start);
                    root = Arc::new(Part { layer, path: TreePath::root() });
                    (layer < self.layers.len()).then_some(&root)
                }
            };
            let Some(base) = base else { break };
            let last_contributor = from_root.is_none() && index.saturating_add(1) == dir.parts.len();
            index = index.saturating_add(1);
            let Some(entry) = self.find(base, &mut search, &mut progress, known, last_contributor)? else { continue };
            let follows = self.layer(base)?.whiteouts().follows_redirects();
            if progress.metacopy && !follows {
                return Err(refused(name, "a metacopy, which this kind of store does not follow", Errno::PERM));
            }
            if top.is_none() {
                top = Some(entry);
            } else if !progress.metacopy {
                below.push(entry);
            }
            if search.redirected.is_some() && !follows {
                return Err(refused(name, "redirected, which this kind of store does not follow", Errno::PERM));
            }
            if search.absolute && from_root.is_none() {
                from_root = Some(base.layer.saturating_add(1));
                index = 0;
            }
        }
        Ok(top.map(|top| member(top, below, &progress)))
    }

    /// Searches one layer: `ovl_lookup_layer()` and `ovl_lookup_single()`.
    fn find(
        &self,
        base: &Arc<Part>,
        search: &mut Search<'_>,
        progress: &mut Progress,
        known: Option<&Seen>,
        last_contributor: bool,
    ) -> Result<Option<(Spot, Meta)>> {
        let layer = self.layer(base)?;
        let (tree, whiteouts) = (layer.tree(), layer.whiteouts());
        // Below the last layer there is nothing to search, so its marks are not looked at.
        let is_last = if whiteouts.follows_redirects() {
            base.layer.saturating_add(1) == self.layers.len()
        } else {
            last_contributor
        };
        let mut dir = Arc::clone(base);
        let mut rest = search.components();
        loop {
            let index = search.components().saturating_sub(rest);
            let Some(component) = search.component(index) else { return Ok(None) };
            let is_end = rest == 1;
            let Some(name) = Name::new(component) else {
                return Err(refused_bytes(component, "a redirect leads through it", Errno::ACCESS));
            };
            if name.as_bytes().len() > NAME_MAX {
                return Ok(None);
            }
            if whiteouts.has_named_marks() {
                if whiteouts.is_reserved(&name) {
                    return Ok(None);
                }
                if is_marked(layer, &dir.path, &name, known)? {
                    progress.stop = true;
                    return Ok(None);
                }
            }
            let meta = match known {
                Some(seen) => Some(seen.meta),
                None => tree.stat(&dir.path.join(&name))?,
            };
            let Some(meta) = meta else { return Ok(None) };
            let entry = Stored { tree, dir: &dir.path, name: &name, meta: &meta };
            let is_dir = meta.is_dir();
            let wants_file = is_end && progress.metacopy;
            let wants_dir = progress.is_dir || !is_end;
            let is_other_kind = (wants_file && meta.kind != Kind::Regular) || (wants_dir && !is_dir);
            if whiteouts.is_whiteout(&entry)? || is_other_kind {
                progress.stop = !(is_other_kind && whiteouts.passes_over_files());
                return Ok(None);
            }
            let mut look_for_redirect = !is_last;
            if is_dir {
                progress.is_dir |= is_end;
                if !is_last && whiteouts.is_opaque(&entry)? {
                    progress.stop = true;
                    look_for_redirect = false;
                }
            } else {
                progress.metacopy = whiteouts.is_metacopy(&entry)?;
                progress.stop = !progress.metacopy;
                look_for_redirect &= progress.metacopy;
            }
            if look_for_redirect && let Some(redirect) = whiteouts.redirect(&entry)? {
                if matches!(redirect, Redirect::Absolute(_)) {
                    // An opaque directory on the way does not stop a redirect that leads elsewhere.
                    progress.stop = false;
                }
                search.redirect(index, redirect);
            }
            if is_end {
                return Ok(Some((Spot { dir, name }, meta)));
            }
            dir = Spot { dir, name }.into_dir();
            rest = rest.saturating_sub(1);
        }
    }
}

/// Whether a file beside the name says that it is deleted, in this layer and below.
fn is_marked(layer: &Layer, dir: &TreePath, name: &Name, known: Option<&Seen>) -> Result<bool> {
    let whiteouts = layer.whiteouts();
    whiteouts.check_name(name)?;
    let mark = match known {
        Some(seen) => seen.is_mark.then_some(seen.meta),
        None => match whiteouts.mark_of(name) {
            Some(mark) => layer.tree().stat(&dir.join(&mark))?,
            None => None,
        },
    };
    match mark {
        Some(mark) => whiteouts.check_mark(dir, name, &mark).map(|()| true),
        None => Ok(false),
    }
}

/// What is told of a directory to which these layers contribute.
fn merged_meta(parts: &[Arc<Part>], top: Meta) -> Meta {
    if parts.len() > 1 { Meta { links: 1, ..top } } else { top }
}

fn directory(parts: Arc<[Arc<Part>]>, top: Meta) -> Found {
    let meta = merged_meta(&parts, top);
    Found { member: Member::Dir(UnionDir { parts, bare: meta.bare }), meta }
}

/// What was found: the topmost entry, and below it the other contributors of a directory or the data of a metacopy.
fn member((spot, meta): (Spot, Meta), mut below: Vec<(Spot, Meta)>, progress: &Progress) -> Found {
    if meta.is_dir() {
        let below = below.into_iter().map(|(spot, _)| spot);
        return directory(std::iter::once(spot).chain(below).map(Spot::into_dir).collect(), meta);
    }
    let mut blocks = meta.blocks;
    let data = match below.pop() {
        _ if progress.metacopy => Some(FileData::Missing),
        Some((spot, data)) => {
            blocks = data.blocks;
            Some(FileData::Below(spot, data.inode))
        }
        None => None,
    };
    let file = UnionFile { spot, data: data.map(Box::new), inode: meta.inode, kind: meta.kind, bare: meta.bare };
    Found { member: Member::File(file), meta: Meta { blocks, ..meta } }
}

fn refused(name: &Name, why: &'static str, errno: Errno) -> Error {
    Error::Refused { what: format!("{name:?}"), why: why.into(), errno }
}

fn refused_bytes(name: &[u8], why: &'static str, errno: Errno) -> Error {
    Error::Refused { what: format!("{:?}", String::from_utf8_lossy(name)), why: why.into(), errno }
}
