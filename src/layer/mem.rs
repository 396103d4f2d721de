//! A layer in memory: for tests, which need no privileges and no disk with it.

use std::collections::BTreeMap;
use std::io;

use rustix::io::Errno;

use super::{LayerTree, ReadAt, Seek};
use crate::error::{Error, Result};
use crate::meta::{Kind, Meta, Timestamp};
use crate::name::{Name, TreePath};
use crate::root::Space;

/// One file of a [`MemTree`].
#[derive(Debug, Clone)]
pub struct MemEntry {
    /// Its attributes.
    pub meta: Meta,
    /// The content of a regular file, the target of a symbolic link.
    pub content: Vec<u8>,
    /// Its extended attributes by their stored names.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A tree in memory. A new one holds an empty root directory.
#[derive(Debug, Clone)]
pub struct MemTree {
    entries: BTreeMap<TreePath, MemEntry>,
}

impl Default for MemTree {
    fn default() -> Self {
        let mut tree = Self { entries: BTreeMap::new() };
        tree.put(TreePath::root(), Kind::Directory, b"");
        tree
    }
}

impl MemTree {
    /// Puts a file in place and gives it back for changes; the directories above are the caller's.
    pub fn put(&mut self, path: TreePath, kind: Kind, content: &[u8]) -> &mut MemEntry {
        let size = u64::try_from(content.len()).unwrap_or(u64::MAX);
        let mut meta =
            Meta::made_up(kind, if kind == Kind::Directory { 0o755 } else { 0o644 }, Timestamp::default(), size);
        meta.inode = u64::try_from(self.entries.len()).unwrap_or(u64::MAX).saturating_add(2);
        meta.bare = false;
        let entry = MemEntry { meta, content: content.to_vec(), xattrs: BTreeMap::new() };
        self.entries.entry(path).insert_entry(entry).into_mut()
    }

    fn entry(&self, path: &TreePath) -> Result<&MemEntry> {
        self.entries.get(path).ok_or_else(|| Error::io(|| format!("find {path:?}"))(Errno::NOENT))
    }
}

impl LayerTree for MemTree {
    fn stat(&self, path: &TreePath) -> Result<Option<Meta>> {
        Ok(self.entries.get(path).map(|entry| entry.meta))
    }

    fn list(&self, dir: &TreePath, wanted: &dyn Fn(&Name) -> bool) -> Result<Vec<(Name, Meta)>> {
        if !self.entry(dir)?.meta.is_dir() {
            return Err(Error::io(|| format!("list {dir:?}"))(Errno::NOTDIR));
        }
        let below = self.entries.range(dir..).take_while(|(path, _)| path.as_bytes().starts_with(dir.as_bytes()));
        let name_of = |path: &TreePath| path.split_last().filter(|(parent, _)| parent == dir).map(|(_, name)| name);
        let listed = below.filter_map(|(path, entry)| Some((name_of(path)?, entry.meta)));
        Ok(listed.filter(|(name, _)| wanted(name)).collect())
    }

    fn open(&self, file: &TreePath) -> Result<Box<dyn ReadAt>> {
        Ok(Box::new(self.entry(file)?.content.clone()))
    }

    fn read_link(&self, link: &TreePath) -> Result<Vec<u8>> {
        Ok(self.entry(link)?.content.clone())
    }

    fn xattr(&self, path: &TreePath, name: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.entry(path)?.xattrs.get(name).cloned())
    }

    fn xattr_names(&self, path: &TreePath) -> Result<Vec<Vec<u8>>> {
        Ok(self.entry(path)?.xattrs.keys().cloned().collect())
    }

    fn space(&self) -> Result<Space> {
        Ok(Space {
            block_size: 4096,
            fragment_size: 4096,
            blocks: 0,
            blocks_free: 0,
            blocks_available: 0,
            files: u64::try_from(self.entries.len()).unwrap_or(u64::MAX),
            files_free: 0,
            name_max: 255,
        })
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(rest) {
            *to = *from;
        }
        Ok(count)
    }

    fn seek(&self, to: Seek, offset: u64) -> io::Result<u64> {
        let size = u64::try_from(self.len()).unwrap_or(u64::MAX);
        match to {
            _ if offset >= size => Err(Errno::NXIO.into()),
            Seek::Data => Ok(offset),
            Seek::Hole => Ok(size),
        }
    }
}
