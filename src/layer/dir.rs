//! A layer that is a directory of the host.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{Advice, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};

use super::{LayerTree, ReadAt, Seek};
use crate::error::Result;
use crate::meta::Meta;
use crate::name::{Name, TreePath};
use crate::root::{self, Root, Space};

/// The tree below a directory of a [`Root`]. It holds no descriptor of its own, so there can be any number.
#[derive(Debug)]
pub struct DirTree {
    root: Arc<Root>,
    base: TreePath,
}

impl DirTree {
    /// The tree below `base`, which is looked at only when it is asked for something.
    #[must_use]
    pub fn new(root: Arc<Root>, base: TreePath) -> Self {
        Self { root, base }
    }
}

impl LayerTree for DirTree {
    fn stat(&self, path: &TreePath) -> Result<Option<Meta>> {
        self.root.stat_with_xattrs(&self.base.join_path(path))
    }

    fn list(&self, dir: &TreePath, wanted: &dyn Fn(&Name) -> bool) -> Result<Vec<(Name, Meta)>> {
        self.root.list(&self.base.join_path(dir), wanted)
    }

    fn open(&self, file: &TreePath) -> Result<Box<dyn ReadAt>> {
        Ok(Box::new(self.root.open_file(&self.base.join_path(file))?))
    }

    fn read_link(&self, link: &TreePath) -> Result<Vec<u8>> {
        self.root.read_link(&self.base.join_path(link))
    }

    fn xattr(&self, path: &TreePath, name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.root.xattr(&self.base.join_path(path), name)
    }

    fn xattr_names(&self, path: &TreePath) -> Result<Vec<Vec<u8>>> {
        self.root.xattr_names(&self.base.join_path(path))
    }

    fn space(&self) -> Result<Space> {
        self.root.space()
    }
}

impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }

    fn seek(&self, to: Seek, offset: u64) -> io::Result<u64> {
        let to = match to {
            Seek::Data => SeekFrom::Data(offset),
            Seek::Hole => SeekFrom::Hole(offset),
        };
        // This moves the descriptor's own offset, which nothing else uses.
        Ok(rustix::fs::seek(self, to)?)
    }

    fn meta(&self) -> io::Result<Option<Meta>> {
        Ok(Some(root::meta_of(self)?))
    }

    fn will_need(&self) -> io::Result<bool> {
        let mut first = [0];
        match rustix::io::preadv2(self, &mut [io::IoSliceMut::new(&mut first)], 0, ReadWriteFlags::NOWAIT) {
            Ok(_) => Ok(false),
            Err(Errno::AGAIN) => {
                // Whatever is behind the end does no harm.
                rustix::fs::fadvise(self, 0, None, Advice::WillNeed)?;
                Ok(true)
            }
            // Some file systems cannot tell.
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn backing_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}
