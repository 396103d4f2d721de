//! What a whole tree changes upon another: the layer view of graph drivers whose layers are full trees.
//!
//! The rule is Docker's own for such drivers (`ChangesDirs` in moby's pkg/archive), made exact:
//!
//! ```text
//! only in the tree             added, with all below
//! only in the one below        deleted: a device 0/0 that is stored nowhere
//! in both, of other types      replaced, with all below
//! in both, of one type         changed where permissions, owner, device, extended attributes, or of what is no
//!                              directory size, time of change, or target differ
//! a directory                  listed also where something below it is
//! ```
//!
//! Docker compares times by the second where one of them has no fraction, of attributes `security.capability` alone,
//! and no targets. `SELinux` labels are the engine's, and not compared. Files with one number are one file, in which
//! nothing differs. What is not told: content that changed and kept size and time, times of directories, that a name
//! became a hard link of an unchanged file, and that a directory was opaque, which deletions of its entries say. Where the
//! names are known that the layer's tar had, they are told instead ([`super::listed`]).
//!
//! Nothing is compared before it is asked for. To know whether a directory is listed, what lies below it is compared up to
//! the first difference; the answers are kept, within bounds.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::names::Holding;
use super::{LayerId, LayerTree, ReadAt};
use crate::error::{Error, Result};
use crate::meta::{FileId, Kind, Meta};
use crate::name::{Name, TreePath};
use crate::root::Space;

/// How many directories' answers are kept, of all layers together.
const VERDICTS_MAX: NonZeroUsize = NonZeroUsize::new(32_768).unwrap();
/// Directories with longer paths, in bytes, are listed without being compared; none of a tar has one.
const PATH_MAX: usize = 4_096;
/// How long answers count of trees that change.
const TRUSTED: Duration = Duration::from_millis(500);
/// An attribute that engines set on all files, another one for each container.
const LABEL: &[u8] = b"security.selinux";

/// Whether trees change while they are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Never, as images' layers.
    Lasting,
    /// At any time, as containers' own.
    Changing,
}

/// Which directories hold differences, as far as that was found out; shared by the differences of a store.
#[derive(Debug)]
pub struct Verdicts {
    /// Held for single look-ups and changes only.
    kept: Mutex<LruCache<Place, (bool, Instant)>>,
}

/// Stands for a directory of a difference: a hash, as paths may be long.
type Place = [u8; 32];

impl Default for Verdicts {
    fn default() -> Self {
        Self { kept: Mutex::new(LruCache::new(VERDICTS_MAX)) }
    }
}

impl Verdicts {
    fn place(layer: LayerId, dir: &TreePath) -> Place {
        let mut hash = Sha256::new();
        hash.update(layer.as_bytes());
        hash.update(dir.as_bytes());
        hash.finalize().into()
    }

    fn of(&self, layer: LayerId, life: Life, dir: &TreePath) -> Option<bool> {
        let known = self.kept.lock().get(&Self::place(layer, dir)).copied();
        known.filter(|(_, since)| life == Life::Lasting || since.elapsed() < TRUSTED).map(|(differs, _)| differs)
    }

    fn keep(&self, layer: LayerId, dir: &TreePath, differs: bool) {
        self.kept.lock().put(Self::place(layer, dir), (differs, Instant::now()));
    }
}

/// The difference of a tree from the one below it.
#[derive(Debug)]
pub struct Difference {
    /// Stands for the two trees among all whose verdicts are kept together.
    id: LayerId,
    life: Life,
    tree: Box<dyn LayerTree>,
    below: Box<dyn LayerTree>,
    verdicts: Arc<Verdicts>,
}

/// A directory that is being compared, and those below it that are still to be.
struct Frame {
    dir: TreePath,
    rest: Vec<Name>,
}

impl Difference {
    /// What `tree` changes upon `below`; `id` stands for these two.
    #[must_use]
    pub fn new(
        id: LayerId,
        life: Life,
        tree: Box<dyn LayerTree>,
        below: Box<dyn LayerTree>,
        verdicts: Arc<Verdicts>,
    ) -> Self {
        Self { id, life, tree, below, verdicts }
    }

    /// Whether an entry of both trees is shown.
    fn is_shown(&self, path: &TreePath, meta: &Meta, before: &Meta) -> Result<bool> {
        let compared = self.differs(path, meta, before).and_then(|differs| match differs {
            false if meta.is_dir() => self.holds_differences(path),
            differs => Ok(differs),
        });
        match compared {
            // It went while it was looked at, or another took its place.
            Err(error) if self.life == Life::Changing && is_of_change(&error) => Ok(true),
            compared => compared,
        }
    }

    /// Whether an entry of both trees is another in each, whatever lies below it.
    fn differs(&self, path: &TreePath, meta: &Meta, before: &Meta) -> Result<bool> {
        if (meta.kind, meta.permissions, meta.uid, meta.gid)
            != (before.kind, before.permissions, before.uid, before.gid)
        {
            return Ok(true);
        }
        if !meta.is_dir() {
            if (meta.volume, meta.inode) == (before.volume, before.inode) && meta.volume != 0 {
                return Ok(false);
            }
            if (meta.rdev, meta.size_bytes, meta.modified) != (before.rdev, before.size_bytes, before.modified) {
                return Ok(true);
            }
            if meta.kind == Kind::Symlink && self.tree.read_link(path)? != self.below.read_link(path)? {
                return Ok(true);
            }
        }
        if meta.bare && before.bare {
            return Ok(false);
        }
        Ok(attributes(self.tree.as_ref(), path)? != attributes(self.below.as_ref(), path)?)
    }

    /// Whether anything below a directory of both trees is shown.
    fn holds_differences(&self, dir: &TreePath) -> Result<bool> {
        if let Some(differs) = self.verdict(dir) {
            return Ok(differs);
        }
        let mut frames = Vec::new();
        let mut differs = self.enter(dir.clone(), &mut frames)?;
        while !differs && let Some(frame) = frames.last_mut() {
            let Some(name) = frame.rest.pop() else {
                self.verdicts.keep(self.id, &frame.dir, false);
                frames.pop();
                continue;
            };
            let next = frame.dir.join(&name);
            differs = match self.verdict(&next) {
                Some(differs) => differs,
                None => next.as_bytes().len() > PATH_MAX || self.enter(next, &mut frames)?,
            };
        }
        for frame in &frames {
            self.verdicts.keep(self.id, &frame.dir, true);
        }
        Ok(differs)
    }

    fn verdict(&self, dir: &TreePath) -> Option<bool> {
        self.verdicts.of(self.id, self.life, dir)
    }

    /// Compares the entries of a directory of both trees; answers whether one is another in each. Those that may hold
    /// differences are left in a new frame.
    fn enter(&self, dir: TreePath, frames: &mut Vec<Frame>) -> Result<bool> {
        let _names = Holding::begin();
        let mut before: BTreeMap<Name, Meta> = self.below.list(&dir, &|_| true)?.into_iter().collect();
        let mut rest = Vec::new();
        let mut differs = false;
        for (name, meta) in self.tree.list(&dir, &|_| true)? {
            differs = match before.remove(&name) {
                Some(before) => self.differs(&dir.join(&name), &meta, &before)?,
                None => true,
            };
            if differs {
                break;
            }
            if meta.is_dir() {
                rest.push(name);
            }
        }
        differs |= !before.is_empty();
        frames.push(Frame { dir, rest });
        Ok(differs)
    }

    /// The mark of an entry that is gone.
    fn deletion(path: &TreePath, dir: &Meta) -> Meta {
        unstored(path, dir, Kind::CharDevice, 0)
    }

    /// The attributes of a directory that both trees have.
    fn common_dir(&self, dir: &TreePath) -> Result<Option<Meta>> {
        let is_dir = |meta: &Meta| meta.is_dir();
        let Some(meta) = self.tree.stat(dir)?.filter(is_dir) else { return Ok(None) };
        Ok(self.below.stat(dir)?.filter(is_dir).map(|_| meta))
    }
}

/// The attributes of a mark that no tree holds, which takes times and owner of the directory that it is in.
pub(super) fn unstored(path: &TreePath, dir: &Meta, kind: Kind, permissions: u16) -> Meta {
    /// No file system gives numbers so high to what it stores.
    const MADE_UP: u64 = 1 << 63;
    let mut number = [0; 8];
    for (to, from) in number.iter_mut().zip(Sha256::digest(path.as_bytes())) {
        *to = from;
    }
    Meta {
        uid: dir.uid,
        gid: dir.gid,
        accessed: dir.modified,
        changed: dir.changed,
        inode: u64::from_le_bytes(number) | MADE_UP,
        ..Meta::made_up(kind, permissions, dir.modified, 0)
    }
}

/// Whether an error may come from a file that went, or that another one took the place of.
fn is_of_change(error: &Error) -> bool {
    matches!(error.errno(), Errno::NOENT | Errno::NOTDIR | Errno::INVAL | Errno::LOOP)
}

/// An entry's extended attributes by name.
fn attributes(tree: &dyn LayerTree, path: &TreePath) -> Result<BTreeMap<Vec<u8>, Option<Vec<u8>>>> {
    let names = tree.xattr_names(path)?.into_iter().filter(|name| name != LABEL);
    names.map(|name| tree.xattr(path, &name).map(|value| (name, value))).collect()
}

impl LayerTree for Difference {
    fn stat(&self, path: &TreePath) -> Result<Option<Meta>> {
        let found = self.tree.stat(path)?;
        let Some((dir, _)) = path.split_last() else { return Ok(found) };
        let before = self.below.stat(path)?;
        match (found, before) {
            (None, None) => Ok(None),
            (Some(meta), None) => Ok(Some(meta)),
            (Some(meta), Some(before)) => Ok(self.is_shown(path, &meta, &before)?.then_some(meta)),
            // Of what went with its directory there is no mark.
            (None, Some(_)) => Ok(self.common_dir(&dir)?.map(|dir| Self::deletion(path, &dir))),
        }
    }

    fn list(&self, dir: &TreePath, wanted: &dyn Fn(&Name) -> bool) -> Result<Vec<(Name, Meta)>> {
        let _names = Holding::begin();
        let listed = self.tree.list(dir, wanted)?;
        let Some(meta) = self.common_dir(dir)? else { return Ok(listed) };
        let mut before: BTreeMap<Name, Meta> = self.below.list(dir, wanted)?.into_iter().collect();
        let mut shown = Vec::new();
        for (name, meta) in listed {
            let is_shown = match before.remove(&name) {
                Some(before) => self.is_shown(&dir.join(&name), &meta, &before)?,
                None => true,
            };
            if is_shown {
                shown.push((name, meta));
            }
        }
        shown.extend(before.into_keys().map(|name| {
            let mark = Self::deletion(&dir.join(&name), &meta);
            (name, mark)
        }));
        Ok(shown)
    }

    fn open(&self, file: &TreePath) -> Result<Box<dyn ReadAt>> {
        self.tree.open(file)
    }

    fn read_link(&self, link: &TreePath) -> Result<Vec<u8>> {
        self.tree.read_link(link)
    }

    fn xattr(&self, path: &TreePath, name: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.tree.stat(path)? {
            Some(_) => self.tree.xattr(path, name),
            // A mark of what is gone.
            None => Ok(None),
        }
    }

    fn xattr_names(&self, path: &TreePath) -> Result<Vec<Vec<u8>>> {
        match self.tree.stat(path)? {
            Some(_) => self.tree.xattr_names(path),
            None => Ok(Vec::new()),
        }
    }

    fn space(&self) -> Result<Space> {
        self.tree.space()
    }

    fn expect(&mut self, root: FileId) {
        self.tree.expect(root);
    }
}
