//! One state of a database: its pages, read when they are asked for, within bounds that no file can move.
//!
//! In a sound state one element alone leads to each page. That is demanded, so no way through the pages comes back to
//! where it was, nor does it come to the same page twice: going through all there is takes no longer than there are
//! pages. What is in memory at a time, and read in all, has a limit each; both are far from what containerd writes.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::rc::Rc;

use super::ReadAt;
use super::meta::Meta;
use super::page::{Buffer, HEADER, Page, Place, overflow};
use crate::error::{Error, Result};

/// The largest page with its overflow, in bytes; it holds at least two keys with their values. Values of containerd's
/// come by gRPC, in messages of at most 16 MiB.
const PAGE_MAX: u64 = 32 << 20;
/// The most bytes of pages that are in memory at a time.
const HELD_MAX: u64 = 64 << 20;
/// The most bytes that are read of one state in all: a second or two, or a million pages of 4 KiB.
const READ_MAX: u64 = 4 << 30;
/// Smaller pages are counted with this size, as they cost no less.
const READ_MIN: u64 = 4 << 10;

/// The state of one transaction.
#[derive(Debug)]
pub(super) struct Snapshot<'f> {
    file: &'f dyn ReadAt,
    shown: &'f str,
    meta: &'f Meta,
    held: Rc<Cell<usize>>,
    read_bytes: Cell<u64>,
    /// The element that leads to each page that was asked for; none to the root.
    ways: RefCell<HashMap<u64, Option<Place>>>,
}

impl<'f> Snapshot<'f> {
    pub(super) fn new(file: &'f dyn ReadAt, shown: &'f str, meta: &'f Meta) -> Self {
        let (held, read_bytes, ways) = (Rc::default(), Cell::default(), RefCell::default());
        Self { file, shown, meta, held, read_bytes, ways }
    }

    /// The root page of the root bucket, and its sequence.
    pub(super) fn root(&self) -> Result<(Page, u64)> {
        Ok((self.load(self.meta.root, None, None)?, self.meta.sequence))
    }

    /// The page below an element of a branch.
    pub(super) fn child(&self, branch: &Page, index: usize) -> Result<Page> {
        let Some((number, start)) = branch.child(index).zip(branch.key(index)) else {
            return Err(self.damaged(branch, format!("has no element {index}")));
        };
        let page = self.load(number, Some(branch.place(index)), branch.end(index))?;
        if !page.is_within(start) {
            let why = format!("has keys that do not fit in where {branch} has it, in element {index}");
            return Err(self.damaged(&page, why));
        }
        Ok(page)
    }

    /// The root page of a bucket that is behind a key of a leaf.
    pub(super) fn bucket(&self, leaf: &Page, index: usize, root: u64) -> Result<Page> {
        match root {
            0 => leaf.inline(index).map_err(|why| self.damaged(leaf, why)),
            root => self.load(root, Some(leaf.place(index)), None),
        }
    }

    /// That something is wrong with a page.
    pub(super) fn damaged(&self, page: &Page, why: impl Into<String>) -> Error {
        Error::damaged(format!("{}, {page}", self.shown), why)
    }

    fn load(&self, number: u64, way: Option<Place>, end: Option<Rc<[u8]>>) -> Result<Page> {
        self.check_way(number, way)?;
        let page_bytes = self.meta.page_bytes;
        let mut bytes = self.read(number, page_bytes)?;
        let more = u64::from(overflow(bytes.get(..HEADER).unwrap_or_default()).unwrap_or_default());
        if number.saturating_add(more) >= self.meta.pages {
            return Err(self.damaged_page(number, format!("goes on for {more} pages, behind the end of all")));
        }
        let all_bytes = page_bytes.saturating_mul(more + 1);
        if all_bytes > PAGE_MAX {
            let what = format!("{}, page {number}", self.shown);
            return Err(Error::Unsupported { what, why: format!("takes {all_bytes} bytes, more than {PAGE_MAX}") });
        }
        if more > 0 {
            bytes = self.read(number, all_bytes)?;
        }
        Page::new(number, Buffer::new(bytes, &self.held), end).map_err(|why| self.damaged_page(number, why))
    }

    /// That a page exists, and that no other element leads there.
    fn check_way(&self, number: u64, way: Option<Place>) -> Result<()> {
        if !(2..self.meta.pages).contains(&number) {
            let from = way.map_or(0, |way| way.page);
            let why =
                format!("leads to page {number}, where pages 2 to {} are in use", self.meta.pages.saturating_sub(1));
            return Err(self.damaged_page(from, why));
        }
        match self.ways.borrow_mut().entry(number) {
            Entry::Vacant(vacant) => {
                vacant.insert(way);
                Ok(())
            }
            Entry::Occupied(known) if *known.get() == way => Ok(()),
            Entry::Occupied(known) => {
                let [one, other] = [*known.get(), way].map(|way| way.map_or(0, |way| way.page));
                Err(self.damaged_page(number, format!("is in two places of the tree, below pages {one} and {other}")))
            }
        }
    }

    fn damaged_page(&self, number: u64, why: impl Into<String>) -> Error {
        Error::damaged(format!("{}, page {number}", self.shown), why)
    }

    /// Reads this many bytes from the start of a page on.
    fn read(&self, number: u64, size_bytes: u64) -> Result<Vec<u8>> {
        self.count(size_bytes)?;
        let outside = || self.damaged_page(number, "is behind the end of the file");
        let offset = number.checked_mul(self.meta.page_bytes).ok_or_else(outside)?;
        let mut bytes = vec![0; usize::try_from(size_bytes).map_err(|_| outside())?];
        let count = fill(self.file, &mut bytes, offset).map_err(Error::io(|| format!("read {}", self.shown)))?;
        if count < bytes.len() { Err(outside()) } else { Ok(bytes) }
    }

    /// Counts what is to be read, and refuses what is too much.
    fn count(&self, size_bytes: u64) -> Result<()> {
        let limits = |what: &str, most: u64| Error::Unsupported {
            what: self.shown.to_owned(),
            why: format!("more than {} MiB of it would have to be {what}", most >> 20),
        };
        let read = self.read_bytes.get().saturating_add(size_bytes.max(READ_MIN));
        self.read_bytes.set(read);
        if read > READ_MAX {
            return Err(limits("read", READ_MAX));
        }
        let held = u64::try_from(self.held.get()).unwrap_or(u64::MAX);
        if held.saturating_add(size_bytes) > HELD_MAX {
            return Err(limits("in memory at a time", HELD_MAX));
        }
        Ok(())
    }
}

/// Reads until the buffer is full or the file ends; answers the count of bytes.
pub(super) fn fill(file: &dyn ReadAt, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX))) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
