//! An open file of which other attributes are told than the stored ones.

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;

use super::{ReadAt, Seek};
use crate::meta::Meta;

/// What tells other attributes than the stored ones.
pub(super) trait Retell: Debug + Send + Sync {
    /// The attributes in the place of the stored ones.
    fn retell(&self, stored: Meta) -> Meta;
}

/// The open file: its content as it is stored.
#[derive(Debug)]
pub(super) struct Retold<T> {
    open: Box<dyn ReadAt>,
    teller: T,
}

impl<T: Retell> Retold<T> {
    pub(super) fn new(open: Box<dyn ReadAt>, teller: T) -> Self {
        Self { open, teller }
    }
}

impl<T: Retell> ReadAt for Retold<T> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.open.read_at(buffer, offset)
    }

    fn seek(&self, to: Seek, offset: u64) -> io::Result<u64> {
        self.open.seek(to, offset)
    }

    fn meta(&self) -> io::Result<Option<Meta>> {
        Ok(self.open.meta()?.map(|stored| self.teller.retell(stored)))
    }

    fn will_need(&self) -> io::Result<bool> {
        self.open.will_need()
    }

    fn backing_fd(&self) -> Option<BorrowedFd<'_>> {
        self.open.backing_fd()
    }
}
