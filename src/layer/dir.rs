//! A layer that is a directory of the host.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use rustix::fs::{Advice, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};
use sha2::{Digest, Sha256};

use super::gate::{Gate, Inside};
use super::names::{Gathering, too_many};
use super::{LayerTree, ReadAt, Seek};
use crate::error::{Error, Result};
use crate::meta::{FileId, Meta};
use crate::name::{Name, TreePath};
use crate::root::{self, Root, Space};

/// The tree below a directory of a [`Root`]. It holds no descriptor of its own, so there can be any number.
#[derive(Debug)]
pub struct DirTree {
    root: Arc<Root>,
    base: TreePath,
    /// Which directory is at `base`, where that is known.
    expected: Option<FileId>,
    gate: Arc<Gate>,
    /// The volume of `base`, once it was asked for; only of a tree that may span several.
    home: Option<OnceLock<u64>>,
}

impl DirTree {
    /// The tree below `base`, which is looked at only when it is asked for something.
    #[must_use]
    pub fn new(root: Arc<Root>, base: TreePath) -> Self {
        Self::behind(Arc::default(), root, base)
    }

    /// As [`DirTree::new`], with the gate that all trees of the same directory share.
    #[must_use]
    pub fn behind(gate: Arc<Gate>, root: Arc<Root>, base: TreePath) -> Self {
        Self { root, base, expected: None, gate, home: None }
    }

    /// The same tree as one that may span volumes, each of which numbers its own files: subvolumes that a container
    /// made. A number is then told from those of other volumes.
    #[must_use]
    pub fn spanning(self) -> Self {
        Self { home: Some(OnceLock::new()), ..self }
    }

    /// The volume whose numbers stay as they are; `None` where all are of one.
    fn home(&self) -> Result<Option<u64>> {
        let Some(known) = &self.home else { return Ok(None) };
        if let Some(home) = known.get() {
            return Ok(Some(*home));
        }
        let stale = || Error::Stale { what: self.root.shown(&self.base) };
        let base = self.root.stat(&self.base)?.ok_or_else(stale)?;
        Ok(Some(*known.get_or_init(|| base.volume)))
    }

    fn enter(&self) -> Result<Inside<'_>> {
        self.gate.enter().map_err(Error::io(|| format!("reach {}", self.root.shown(&self.base))))
    }

    /// Passes an answer on if the directory that it is from is there after it was made, and no other: without that,
    /// neither the absence of a file means anything, nor its presence.
    fn checked<T>(&self, answer: Result<T>) -> Result<T> {
        let answer = answer?;
        let is_there = |base: &Meta| base.is_dir() && self.expected.is_none_or(|expected| base.id() == expected);
        match self.root.stat(&self.base)?.filter(is_there) {
            Some(_) => Ok(answer),
            None => Err(Error::Stale { what: self.root.shown(&self.base) }),
        }
    }
}

impl LayerTree for DirTree {
    fn stat(&self, path: &TreePath) -> Result<Option<Meta>> {
        let _inside = self.enter()?;
        let found = self.root.stat_with_xattrs(&self.base.join_path(path));
        let found = match &self.expected {
            // What stands in its place is for who asks for it to judge.
            None if path.is_root() => found?,
            Some(expected) if path.is_root() => found?.filter(|root| root.id() == *expected),
            None | Some(_) => self.checked(found)?,
        };
        let Some(meta) = found else { return Ok(None) };
        Ok(Some(numbered(meta, self.home()?)))
    }

    fn list(&self, dir: &TreePath, wanted: &dyn Fn(&Name) -> bool) -> Result<Vec<(Name, Meta)>> {
        let _inside = self.enter()?;
        let gathering = Gathering::default();
        let listed = self.root.list(&self.base.join_path(dir), &|name| wanted(name) && gathering.has_room());
        if gathering.is_over() {
            return Err(too_many(&self.root.shown(&self.base.join_path(dir))));
        }
        let mut listed = self.checked(listed)?;
        if let home @ Some(_) = self.home()? {
            for (_, meta) in &mut listed {
                *meta = numbered(*meta, home);
            }
        }
        Ok(listed)
    }

    fn open(&self, file: &TreePath) -> Result<Box<dyn ReadAt>> {
        let _inside = self.enter()?;
        let file = self.checked(self.root.open_file(&self.base.join_path(file)))?;
        Ok(Box::new(OpenFile { file, gate: Arc::clone(&self.gate), home: self.home()? }))
    }

    fn read_link(&self, link: &TreePath) -> Result<Vec<u8>> {
        let _inside = self.enter()?;
        self.checked(self.root.read_link(&self.base.join_path(link)))
    }

    fn xattr(&self, path: &TreePath, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let _inside = self.enter()?;
        self.checked(self.root.xattr(&self.base.join_path(path), name))
    }

    fn xattr_names(&self, path: &TreePath) -> Result<Vec<Vec<u8>>> {
        let _inside = self.enter()?;
        self.checked(self.root.xattr_names(&self.base.join_path(path)))
    }

    fn space(&self) -> Result<Space> {
        self.root.space()
    }

    fn expect(&mut self, root: FileId) {
        self.expected = Some(root);
    }
}

/// The attributes with a number that is no other file's of the tree: of a file in another volume than the tree's own
/// it is a hash, since volumes use the same numbers.
fn numbered(meta: Meta, home: Option<u64>) -> Meta {
    if home.is_none_or(|home| home == meta.volume) {
        return meta;
    }
    let mut hash = Sha256::new();
    hash.update(meta.volume.to_le_bytes());
    hash.update(meta.inode.to_le_bytes());
    let mut inode = [0; 8];
    for (to, from) in inode.iter_mut().zip(hash.finalize()) {
        *to = from;
    }
    Meta { inode: u64::from_le_bytes(inode), ..meta }
}

/// An open file of a layer.
#[derive(Debug)]
struct OpenFile {
    file: File,
    gate: Arc<Gate>,
    /// As [`DirTree::home`].
    home: Option<u64>,
}

impl ReadAt for OpenFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let _inside = self.gate.enter()?;
        FileExt::read_at(&self.file, buffer, offset)
    }

    fn seek(&self, to: Seek, offset: u64) -> io::Result<u64> {
        let _inside = self.gate.enter()?;
        let to = match to {
            Seek::Data => SeekFrom::Data(offset),
            Seek::Hole => SeekFrom::Hole(offset),
        };
        // This moves the descriptor's own offset, which nothing else uses.
        Ok(rustix::fs::seek(&self.file, to)?)
    }

    fn meta(&self) -> io::Result<Option<Meta>> {
        let _inside = self.gate.enter()?;
        Ok(Some(numbered(root::meta_of(&self.file)?, self.home)))
    }

    fn will_need(&self) -> io::Result<bool> {
        let _inside = self.gate.enter()?;
        let mut first = [0];
        match rustix::io::preadv2(&self.file, &mut [io::IoSliceMut::new(&mut first)], 0, ReadWriteFlags::NOWAIT) {
            Ok(_) => Ok(false),
            Err(Errno::AGAIN) => {
                // Whatever is behind the end does no harm.
                rustix::fs::fadvise(&self.file, 0, None, Advice::WillNeed)?;
                Ok(true)
            }
            // Some file systems cannot tell.
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn backing_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}
