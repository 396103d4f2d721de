//! The merge rule, once, serving lookup and listing alike.
//!
//! A union is a stack of layers, top first. What it shows is what kernel overlayfs shows for the same directories
//! (`ovl_lookup()` in `fs/overlayfs/namei.c`, Linux 6.18), with `redirect_dir=follow` and `metacopy=on` where the
//! layers' attributes are `trusted.`, and with neither where they are `user.` (mount option `userxattr`).
//!
//! A directory of the union is the list of the layers' directories that contribute to it ([`UnionDir`]). The rule
//! walks the contributors of the *parent*, top first, so every whiteout, opaque mark and file above an ancestor is
//! inherited without being looked at again. A listing takes the contributors' names and asks the same rule for each,
//! so what is listed can be found.
//!
//! Three differences from the kernel, all so that a listing never shows what a lookup denies: whiteouts in
//! directories of a single layer are not listed; a name whose redirect the kernel refuses is not listed; a metacopy
//! file without data can be found, and only opening it fails.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::layer::whiteout::Redirect;
use crate::layer::{Layer, LayerId, ReadAt};
use crate::meta::{Kind, Meta};
use crate::name::{NAME_MAX, Name, TreePath};

/// A stack of layers, seen as one tree.
#[derive(Debug, Clone)]
pub struct Union {
    layers: Arc<[Arc<Layer>]>,
    id: LayerId,
}

/// A path in one layer of a union.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Which layer; 0 is the top.
    layer: usize,
    /// The path in that layer's tree, which redirects make differ from the union's.
    path: TreePath,
}

/// A directory of a union.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnionDir {
    /// The directories that contribute, top first, at least one.
    parts: Arc<[Part]>,
}

/// A file of a union that is no directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnionFile {
    part: Part,
    data: FileData,
}

/// Where a file's content is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum FileData {
    /// In the file itself.
    Own,
    /// In a file below, whose number in its layer this is, since this one holds attributes only.
    Below(Part, u64),
    /// Nowhere: this one holds attributes only, and no file below has the data.
    Missing,
}

/// What a name in a union stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Member {
    /// A directory, with the attributes of its topmost contributor.
    Dir(UnionDir, Meta),
    /// Anything else.
    File(UnionFile, Meta),
}

/// A directory of a union, listed.
#[derive(Debug)]
pub struct Listing {
    /// The names, sorted as bytes, with what they stand for.
    pub members: Vec<(Name, Member)>,
    /// Why names that the rule refuses were left out.
    pub refused: Vec<Error>,
}

impl Member {
    /// The attributes that users see.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        match self {
            Self::Dir(_, meta) | Self::File(_, meta) => meta,
        }
    }
}

impl UnionDir {
    /// How many layers contribute.
    #[must_use]
    pub fn contributors(&self) -> usize {
        self.parts.len()
    }
}

/// The path that layers are searched for, which redirects replace on the way down.
struct Search<'a> {
    /// One name in the directory at hand, or the components of a path from the layers' roots.
    components: Vec<Cow<'a, [u8]>>,
    absolute: bool,
    redirected: bool,
}

impl<'a> Search<'a> {
    fn for_name(name: &'a Name) -> Self {
        Self { components: vec![Cow::Borrowed(name.as_bytes())], absolute: false, redirected: false }
    }

    /// Replaces the component at `index`, and for an absolute redirect all before it.
    fn redirect(&mut self, index: usize, redirect: Redirect) {
        self.redirected = true;
        match redirect {
            Redirect::Sibling(name) => {
                if let Some(component) = self.components.get_mut(index) {
                    *component = Cow::Owned(name);
                }
            }
            Redirect::Absolute(path) => {
                self.absolute = true;
                let behind = self.components.split_off(self.components.len().min(index.saturating_add(1)));
                self.components = path.into_iter().map(Cow::Owned).collect();
                self.components.extend(behind);
            }
        }
    }
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

    /// The root directory: all layers' roots, whatever marks they bear. `None` for a union of no layers.
    ///
    /// # Errors
    /// Where the topmost root could not be read; [`Error::Damaged`] where it is gone.
    pub fn root(&self) -> Result<Option<Member>> {
        let Some(top) = self.layers.first() else { return Ok(None) };
        let root = TreePath::root();
        let meta = top.tree().stat(&root)?.ok_or_else(|| Error::damaged("a layer", "its directory is gone"))?;
        let parts = (0..self.layers.len()).map(|layer| Part { layer, path: root.clone() }).collect();
        Ok(Some(directory(parts, meta)))
    }

    /// What a name in a directory stands for; `None` where the union has no such name.
    ///
    /// # Errors
    /// [`Error::Refused`] where the kernel answers with an error; others where a layer could not be read.
    pub fn lookup(&self, dir: &UnionDir, name: &Name) -> Result<Option<Member>> {
        self.merge(dir, name, None)
    }

    /// The directory's names with what they stand for.
    ///
    /// # Errors
    /// Where a layer could not be read.
    pub fn list(&self, dir: &UnionDir) -> Result<Listing> {
        let mut seen: BTreeMap<Name, Vec<(usize, Meta)>> = BTreeMap::new();
        for (index, part) in dir.parts.iter().enumerate() {
            for (name, meta) in self.layer(part)?.tree().list(&part.path)? {
                seen.entry(name).or_default().push((index, meta));
            }
        }
        let mut listing = Listing { members: Vec::with_capacity(seen.len()), refused: Vec::new() };
        for (name, places) in seen {
            match self.merge(dir, &name, Some(&places)) {
                Ok(Some(member)) => listing.members.push((name, member)),
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
        let part = match &file.data {
            FileData::Own => &file.part,
            FileData::Below(part, _) => part,
            FileData::Missing => {
                let what = format!("{:?}", file.part.path);
                return Err(Error::damaged(what, "a metacopy whose data is in no layer below"));
            }
        };
        self.layer(part)?.tree().open(&part.path)
    }

    /// The layer and path that give a member its attributes.
    ///
    /// # Errors
    /// [`Error::Damaged`] for a member of another union.
    pub fn source<'a>(&'a self, member: &'a Member) -> Result<(&'a Arc<Layer>, &'a TreePath)> {
        let part = match member {
            Member::Dir(dir, _) => dir.parts.first(),
            Member::File(file, _) => Some(&file.part),
        };
        let part = part.ok_or_else(|| Error::damaged("a union's directory", "no layer contributes to it"))?;
        Ok((self.layer(part)?, &part.path))
    }

    /// Whether any layer may change while it is read.
    #[must_use]
    pub fn changes(&self) -> bool {
        self.layers.iter().any(|layer| layer.changes())
    }

    /// Tells a metacopy from the file that gives its attributes: the layer and number of its data, zero where it has
    /// none. `None` for files that hold their own data.
    #[must_use]
    pub fn data_elsewhere(&self, member: &Member) -> Option<([u8; 16], u64)> {
        match member {
            Member::File(UnionFile { data: FileData::Below(part, inode), .. }, _) => {
                let id = self.layers.get(part.layer).map_or([0; 16], |layer| *layer.id().as_bytes());
                Some((id, *inode))
            }
            Member::File(UnionFile { data: FileData::Missing, .. }, _) => Some(([0; 16], 0)),
            Member::File(UnionFile { data: FileData::Own, .. }, _) | Member::Dir(..) => None,
        }
    }

    fn layer(&self, part: &Part) -> Result<&Arc<Layer>> {
        self.layers.get(part.layer).ok_or_else(|| Error::damaged("a union", "it has no such layer"))
    }

    /// The rule. `seen` are the attributes that a listing already knows, by contributor; without it layers are asked.
    fn merge(&self, dir: &UnionDir, name: &Name, seen: Option<&[(usize, Meta)]>) -> Result<Option<Member>> {
        let mut search = Search::for_name(name);
        let mut progress = Progress::default();
        let mut found: Vec<(Part, Meta)> = Vec::new();
        let mut from_root = None;
        let mut index = 0;
        while !progress.stop {
            // Absolute redirects continue at the roots of the layers below, whichever contributed so far.
            let base = match from_root {
                None => dir.parts.get(index).cloned(),
                Some(start) => {
                    let layer = index.saturating_add(start);
                    (layer < self.layers.len()).then(|| Part { layer, path: TreePath::root() })
                }
            };
            let Some(base) = base else { break };
            let known = seen
                .filter(|_| from_root.is_none() && !search.redirected)
                .map(|seen| seen.iter().find(|(at, _)| *at == index).map(|(_, meta)| *meta));
            let last_contributor = from_root.is_none() && index.saturating_add(1) == dir.parts.len();
            index = index.saturating_add(1);
            let Some(entry) = self.find(&base, &mut search, &mut progress, known, last_contributor)? else { continue };
            let follows = self.layer(&base)?.whiteouts().follows_redirects();
            if progress.metacopy && !follows {
                return Err(refused(name, "a metacopy, which this kind of store does not follow", Errno::PERM));
            }
            if !progress.metacopy || found.is_empty() {
                found.push(entry);
            }
            if search.redirected && !follows {
                return Err(refused(name, "redirected, which this kind of store does not follow", Errno::PERM));
            }
            if search.absolute && from_root.is_none() {
                from_root = Some(base.layer.saturating_add(1));
                index = 0;
            }
        }
        Ok(member(found, &progress))
    }

    /// Searches one layer: `ovl_lookup_layer()` and `ovl_lookup_single()`.
    fn find(
        &self,
        base: &Part,
        search: &mut Search<'_>,
        progress: &mut Progress,
        known: Option<Option<Meta>>,
        last_contributor: bool,
    ) -> Result<Option<(Part, Meta)>> {
        let layer = self.layer(base)?;
        let (tree, whiteouts) = (layer.tree(), layer.whiteouts());
        // Below the last layer there is nothing to search, so its marks are not looked at.
        let is_last = if whiteouts.follows_redirects() {
            base.layer.saturating_add(1) == self.layers.len()
        } else {
            last_contributor
        };
        let mut path = base.path.clone();
        let mut rest = search.components.len();
        loop {
            let index = search.components.len().saturating_sub(rest);
            let Some(component) = search.components.get(index) else { return Ok(None) };
            let is_end = rest == 1;
            let Some(name) = Name::new(component) else {
                return Err(refused_bytes(component, "a redirect leads through it", Errno::ACCESS));
            };
            if name.as_bytes().len() > NAME_MAX {
                return Ok(None);
            }
            path = path.join(&name);
            let meta = match known {
                Some(meta) => meta,
                None => tree.stat(&path)?,
            };
            let Some(meta) = meta else { return Ok(None) };
            let is_dir = meta.is_dir();
            let wants_file = is_end && progress.metacopy;
            let wants_dir = progress.is_dir || !is_end;
            if layer.is_whiteout(&path, &meta)? || (wants_file && meta.kind != Kind::Regular) || (!is_dir && wants_dir)
            {
                progress.stop = true;
                return Ok(None);
            }
            let mut look_for_redirect = !is_last;
            if is_dir {
                progress.is_dir |= is_end;
                if !is_last && layer.is_opaque(&path, &meta)? {
                    progress.stop = true;
                    look_for_redirect = false;
                }
            } else {
                progress.metacopy = whiteouts.is_metacopy(tree, &path, &meta)?;
                progress.stop = !progress.metacopy;
                look_for_redirect &= progress.metacopy;
            }
            if look_for_redirect && let Some(redirect) = whiteouts.redirect(tree, &path, &meta)? {
                if matches!(redirect, Redirect::Absolute(_)) {
                    // An opaque directory on the way does not stop a redirect that leads elsewhere.
                    progress.stop = false;
                }
                search.redirect(index, redirect);
            }
            if is_end {
                return Ok(Some((Part { layer: base.layer, path }, meta)));
            }
            rest = rest.saturating_sub(1);
        }
    }
}

fn directory(parts: Arc<[Part]>, mut meta: Meta) -> Member {
    if parts.len() > 1 {
        meta.links = 1;
    }
    Member::Dir(UnionDir { parts }, meta)
}

fn member(mut found: Vec<(Part, Meta)>, progress: &Progress) -> Option<Member> {
    let (_, meta) = found.first()?;
    let mut meta = *meta;
    if meta.is_dir() {
        return Some(directory(found.into_iter().map(|(part, _)| part).collect(), meta));
    }
    let below = (found.len() > 1).then(|| found.pop()).flatten();
    let (part, _) = found.into_iter().next()?;
    let data = match below {
        _ if progress.metacopy => FileData::Missing,
        Some((part, data)) => {
            meta.blocks = data.blocks;
            FileData::Below(part, data.inode)
        }
        None => FileData::Own,
    };
    Some(Member::File(UnionFile { part, data }, meta))
}

fn refused(name: &Name, why: &'static str, errno: Errno) -> Error {
    Error::Refused { what: format!("{name:?}"), why: why.into(), errno }
}

fn refused_bytes(name: &[u8], why: &'static str, errno: Errno) -> Error {
    Error::Refused { what: format!("{:?}", String::from_utf8_lossy(name)), why: why.into(), errno }
}
