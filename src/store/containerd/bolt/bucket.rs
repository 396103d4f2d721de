//! Buckets: what is behind a key, and all keys in order.

use super::page::{Head, Held, Kind, Page};
use super::snapshot::Snapshot;
use crate::error::{Error, Result};

/// The most levels of pages in a bucket; three hold a million keys.
const LEVELS_MAX: usize = 32;
/// The most buckets in one another; containerd has seven.
const NESTED_MAX: usize = 32;

/// A bucket of one state of a database: keys in bytewise order, each with a value or another bucket.
#[derive(Debug)]
pub struct Bucket<'s> {
    snapshot: &'s Snapshot<'s>,
    root: Page,
    sequence: u64,
    /// How many buckets it is in.
    depth: usize,
}

/// What is behind a key.
#[derive(Debug)]
pub enum Entry<'e> {
    /// A value, which may be empty.
    Value(&'e [u8]),
    /// A bucket.
    Bucket(Nested<'e>),
}

/// A bucket in a bucket, of which nothing was read yet.
#[derive(Debug)]
pub struct Nested<'e> {
    snapshot: &'e Snapshot<'e>,
    leaf: &'e Page,
    index: usize,
    head: Head,
    depth: usize,
}

impl<'e> Nested<'e> {
    /// Reads the bucket's first page.
    ///
    /// # Errors
    /// [`Error::Damaged`] names the page.
    pub fn open(&self) -> Result<Bucket<'e>> {
        Bucket::behind(self.snapshot, self.leaf, self.index, self.head, self.depth)
    }
}

impl<'s> Bucket<'s> {
    pub(super) fn root(snapshot: &'s Snapshot<'s>) -> Result<Self> {
        let (root, sequence) = snapshot.root()?;
        Ok(Self { snapshot, root, sequence, depth: 0 })
    }

    /// The bucket in a leaf's element, which is in `depth` others.
    fn behind(snapshot: &'s Snapshot<'s>, leaf: &Page, index: usize, head: Head, depth: usize) -> Result<Self> {
        if depth > NESTED_MAX {
            return Err(snapshot.damaged(leaf, format!("has more than {NESTED_MAX} buckets in one another")));
        }
        let root = snapshot.bucket(leaf, index, head.root)?;
        Ok(Self { snapshot, root, sequence: head.sequence, depth })
    }

    /// The number that the writer counts up for the bucket (`NextSequence`).
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The value of a key; `None` where there is no such key, and where a bucket has it.
    ///
    /// # Errors
    /// [`Error::Damaged`] names the page.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some((leaf, index)) = self.find(key)? else { return Ok(None) };
        match leaf.held(index) {
            Some(Held::Value(value)) => Ok(Some(value.to_vec())),
            Some(Held::Bucket(_)) | None => Ok(None),
        }
    }

    /// The bucket of a name; `None` where there is no such key, and where a value has it.
    ///
    /// # Errors
    /// [`Error::Damaged`] names the page.
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Bucket<'s>>> {
        let Some((leaf, index)) = self.find(name)? else { return Ok(None) };
        match leaf.held(index) {
            Some(Held::Bucket(head)) => Self::behind(self.snapshot, &leaf, index, head, self.depth + 1).map(Some),
            Some(Held::Value(_)) | None => Ok(None),
        }
    }

    /// The bucket at the end of a path of names; `None` where one of them is missing.
    ///
    /// # Errors
    /// [`Error::Damaged`] names the page.
    pub fn descend(&self, names: &[&[u8]]) -> Result<Option<Bucket<'s>>> {
        let mut bucket = Self { root: self.root.clone(), ..*self };
        for name in names {
            match bucket.bucket(name)? {
                Some(below) => bucket = below,
                None => return Ok(None),
            }
        }
        Ok(Some(bucket))
    }

    /// All keys in order.
    #[must_use]
    pub fn entries(&self) -> Entries<'s> {
        Entries { snapshot: self.snapshot, depth: self.depth, path: vec![(self.root.clone(), 0)] }
    }

    fn find(&self, key: &[u8]) -> Result<Option<(Page, usize)>> {
        let mut page = self.root.clone();
        for _ in 0..LEVELS_MAX {
            let found = page.find(key);
            match (page.kind(), found) {
                (Kind::Leaf, Some(index)) => return Ok(Some((page, index))),
                (_, None) => return Ok(None),
                (Kind::Branch, Some(index)) => page = self.snapshot.child(&page, index)?,
            }
        }
        Err(too_many_levels(self.snapshot, &page))
    }
}

/// The keys of a bucket in order, one after the other.
///
/// It lends what it reads, so it is no [`Iterator`]: nobody can collect the values of a hostile database by mistake.
#[derive(Debug)]
pub struct Entries<'s> {
    snapshot: &'s Snapshot<'s>,
    depth: usize,
    /// The pages from the bucket's root on, each with the element that comes next.
    path: Vec<(Page, usize)>,
}

impl Entries<'_> {
    /// The next key; `None` behind the last one.
    ///
    /// # Errors
    /// [`Error::Damaged`] names a page. Its keys are left out, and those that follow it come next. After any other error
    /// nothing comes.
    pub fn next_entry(&mut self) -> Result<Option<(&[u8], Entry<'_>)>> {
        let moved = self.step();
        if moved.as_ref().is_err_and(|error| !matches!(error, Error::Damaged { .. })) {
            self.path.clear();
        }
        let (Some(index), Some((leaf, _))) = (moved?, self.path.last()) else { return Ok(None) };
        let (Some(key), Some(held)) = (leaf.key(index), leaf.held(index)) else {
            return Err(self.snapshot.damaged(leaf, format!("has no element {index}")));
        };
        let entry = match held {
            Held::Value(value) => Entry::Value(value),
            Held::Bucket(head) => {
                Entry::Bucket(Nested { snapshot: self.snapshot, leaf, index, head, depth: self.depth + 1 })
            }
        };
        Ok(Some((key, entry)))
    }

    /// Goes on to the next element of a leaf, which is then the last page of the path.
    fn step(&mut self) -> Result<Option<usize>> {
        loop {
            let levels = self.path.len();
            let Some((page, next)) = self.path.last_mut() else { return Ok(None) };
            let index = *next;
            if index >= page.count() {
                self.path.pop();
                continue;
            }
            *next += 1;
            match page.kind() {
                Kind::Leaf => return Ok(Some(index)),
                Kind::Branch if levels >= LEVELS_MAX => return Err(too_many_levels(self.snapshot, page)),
                Kind::Branch => {
                    let child = self.snapshot.child(page, index)?;
                    self.path.push((child, 0));
                }
            }
        }
    }
}

fn too_many_levels(snapshot: &Snapshot<'_>, page: &Page) -> Error {
    snapshot.damaged(page, format!("is the {LEVELS_MAX}th level of a tree, and no leaf"))
}
