//! One page of a tree, checked as a whole before anything of it is believed. No I/O.
//!
//! ```text
//!  0  number u64   flags u16   count u16   overflow u32
//! 16  count × branch element: position u32   key size u32   child's page u64
//!     count × leaf element:   flags u32   position u32   key size u32   value size u32
//!  …  keys and values in the elements' order; a position counts from the start of its own element
//! ```
//!
//! bbolt writes keys in ascending order and their bytes one after the other. Both are demanded here, so that what a
//! page holds is never more than the page: elements that share bytes could unfold to any amount, as buckets in them
//! hold elements again.

use std::cell::Cell;
use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;

/// The size of a page's header, of an element, and of the head of a bucket, in bytes.
pub(super) const HEADER: usize = 16;
const ELEMENT: usize = 16;
pub(super) const BUCKET: usize = 16;

const BRANCH_FLAG: u16 = 1;
const LEAF_FLAG: u16 = 2;
/// Of a leaf element: its value is a bucket.
const BUCKET_FLAG: u32 = 1;

/// The bytes of a page, counted among those that are held as long as they are.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    held: Rc<Cell<usize>>,
}

impl Buffer {
    pub(super) fn new(bytes: Vec<u8>, held: &Rc<Cell<usize>>) -> Self {
        held.set(held.get().saturating_add(bytes.len()));
        Self { bytes, held: Rc::clone(held) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.held.set(self.held.get().saturating_sub(self.bytes.len()));
    }
}

/// What a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Keys and pages that start with them.
    Branch,
    /// Keys and values.
    Leaf,
}

/// Where an element is: its page, and its first byte there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) page: u64,
    pub(super) byte: usize,
}

/// An element by its number; valid in a checked page.
struct Element {
    key: Range<usize>,
    value: Range<usize>,
    /// Of a branch the child's page, of a leaf the flags.
    mark: u64,
}

/// What stands behind a leaf's key.
pub(super) enum Held<'p> {
    Value(&'p [u8]),
    Bucket(Head),
}

/// What a bucket's value starts with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    /// The first page, or zero where it follows in the value.
    pub(super) root: u64,
    pub(super) sequence: u64,
}

/// A page, or the part of one that is a bucket of its own; the bytes are shared.
#[derive(Clone)]
pub(super) struct Page {
    number: u64,
    buffer: Rc<Buffer>,
    range: Range<usize>,
    kind: Kind,
    count: usize,
    /// All keys are less than this, by what the pages above say.
    end: Option<Rc<[u8]>>,
}

impl fmt::Debug for Page {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}: {} elements", self.count)
    }
}

/// As messages name it.
impl fmt::Display for Page {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "page {}", self.number)?;
        match self.range.start {
            0 => Ok(()),
            start => write!(out, ", the bucket at byte {start}"),
        }
    }
}

/// The number of pages behind the first one that belong to the page with this header.
pub(super) fn overflow(header: &[u8]) -> Option<u32> {
    word(header, 12)
}

impl Page {
    /// A whole page with its overflow.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn new(number: u64, buffer: Buffer, end: Option<Rc<[u8]>>) -> Result<Self, String> {
        let found = double(&buffer.bytes, 0).ok_or("is shorter than its header")?;
        if found != number {
            return Err(format!("calls itself page {found}"));
        }
        let range = 0..buffer.bytes.len();
        Self::checked(number, Rc::new(buffer), range, end)
    }

    /// The page inside the value of an element, which is a bucket of its own.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn inline(&self, index: usize) -> Result<Self, String> {
        let element = self.element(index).ok_or("has no such element")?;
        let range = self.range.start + element.value.start + BUCKET..self.range.start + element.value.end;
        Self::checked(self.number, Rc::clone(&self.buffer), range, None)
            .map_err(|why| format!("the bucket in element {index} {why}"))
    }

    fn checked(number: u64, buffer: Rc<Buffer>, range: Range<usize>, end: Option<Rc<[u8]>>) -> Result<Self, String> {
        let bytes = buffer.bytes.get(range.clone()).ok_or("is shorter than its header")?;
        let flags = half(bytes, 8).ok_or("is shorter than its header")?;
        let count = usize::from(half(bytes, 10).ok_or("is shorter than its header")?);
        let kind = match flags {
            BRANCH_FLAG => Kind::Branch,
            LEAF_FLAG => Kind::Leaf,
            other => return Err(format!("has the flags {other:#x}, which are neither a branch's nor a leaf's")),
        };
        if kind == Kind::Branch && count == 0 {
            return Err("is a branch without elements".to_owned());
        }
        let page = Self { number, buffer, range, kind, count, end };
        page.check_elements()?;
        Ok(page)
    }

    fn check_elements(&self) -> Result<(), String> {
        let mut free = HEADER + self.count * ELEMENT;
        if free > self.bytes().len() {
            return Err(format!("has {} elements, and room for fewer", self.count));
        }
        let mut before = None;
        for index in 0..self.count {
            let element = self.element(index).ok_or_else(|| format!("has element {index} outside of itself"))?;
            if element.key.start < free {
                return Err(format!("has element {index} in the bytes of others"));
            }
            free = element.value.end;
            let key = self.bytes().get(element.key);
            if before.is_some_and(|before| before >= key) {
                return Err(format!("has element {index} out of order"));
            }
            before = Some(key);
            let is_bucket = element.mark == u64::from(BUCKET_FLAG);
            if self.kind == Kind::Leaf && element.mark != 0 && !is_bucket {
                return Err(format!("has element {index} with the unknown flags {:#x}", element.mark));
            }
            if self.kind == Kind::Leaf && is_bucket && element.value.len() < BUCKET {
                return Err(format!("has a bucket of {} bytes in element {index}", element.value.len()));
            }
        }
        Ok(())
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// The number of elements.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    fn bytes(&self) -> &[u8] {
        self.buffer.bytes.get(self.range.clone()).unwrap_or_default()
    }

    fn element(&self, index: usize) -> Option<Element> {
        let bytes = self.bytes();
        let start = index.checked_mul(ELEMENT)?.checked_add(HEADER)?;
        let size = |at: usize| usize::try_from(word(bytes, start + at)?).ok();
        let (mark, position, key_bytes, value_bytes) = match self.kind {
            Kind::Branch => (double(bytes, start + 8)?, size(0)?, size(4)?, 0),
            Kind::Leaf => (u64::from(word(bytes, start)?), size(4)?, size(8)?, size(12)?),
        };
        let key = start.checked_add(position)?;
        let value = key.checked_add(key_bytes)?;
        let end = value.checked_add(value_bytes)?;
        (end <= bytes.len()).then_some(Element { key: key..value, value: value..end, mark })
    }

    pub(super) fn key(&self, index: usize) -> Option<&[u8]> {
        self.bytes().get(self.element(index)?.key)
    }

    /// Where an element is, which tells it from all others of the file.
    pub(super) fn place(&self, index: usize) -> Place {
        Place { page: self.number, byte: self.range.start + HEADER + index * ELEMENT }
    }

    /// The page to which an element of a branch leads.
    pub(super) fn child(&self, index: usize) -> Option<u64> {
        Some(self.element(index)?.mark)
    }

    /// The key from which on no key below this element of a branch may be.
    pub(super) fn end(&self, index: usize) -> Option<Rc<[u8]>> {
        self.key(index + 1).map(Rc::from).or_else(|| self.end.clone())
    }

    /// Whether all keys fit between those which the branch above has.
    pub(super) fn is_within(&self, start: &[u8]) -> bool {
        let first = self.key(0);
        let last = self.count.checked_sub(1).and_then(|index| self.key(index));
        let is_before_end = |last: &[u8]| self.end.as_deref().is_none_or(|end| last < end);
        first.is_none_or(|first| first >= start) && last.is_none_or(is_before_end)
    }

    /// What stands behind a key of a leaf.
    pub(super) fn held(&self, index: usize) -> Option<Held<'_>> {
        let element = self.element(index)?;
        let value = self.bytes().get(element.value)?;
        Some(match element.mark {
            0 => Held::Value(value),
            _ => Held::Bucket(Head { root: double(value, 0)?, sequence: double(value, 8)? }),
        })
    }

    /// The element of a leaf with this key, or of a branch the one below which it would be.
    pub(super) fn find(&self, key: &[u8]) -> Option<usize> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            match self.key(middle)?.cmp(key) {
                Ordering::Equal => return Some(middle),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        match self.kind {
            Kind::Leaf => None,
            Kind::Branch => Some(low.saturating_sub(1)),
        }
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn double(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
