//! Databases of bbolt: what one holds as text, and such as bbolt would never write.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;

use docker_fs::error::Result;
use docker_fs::store::containerd::bolt::{Bucket, Database, Entry, ReadAt};
use sha2::{Digest, Sha256};

pub(crate) const BRANCH: u16 = 1;
pub(crate) const LEAF: u16 = 2;
/// A leaf element's flags: its value is a bucket.
pub(crate) const BUCKET: u32 = 1;

/// A file in memory.
#[derive(Clone, Debug)]
pub(crate) struct Memory(pub(crate) Vec<u8>);

impl ReadAt for Memory {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// All that a database holds, a line for each key: `key = value`, for values of more than 32 bytes their size and hash,
/// and `key {sequence` for buckets, whose lines follow one blank further right.
pub(crate) fn dump(database: &Database) -> Result<String> {
    database.read(|root| {
        let mut text = String::new();
        dump_bucket(root, 0, &mut text)?;
        Ok(text)
    })
}

fn dump_bucket(bucket: &Bucket<'_>, depth: usize, text: &mut String) -> Result<()> {
    let mut entries = bucket.entries();
    while let Some((key, entry)) = entries.next_entry()? {
        let _ = write!(text, "{:depth$}{} ", "", hex(key));
        match entry {
            Entry::Value(value) if value.len() > 32 => {
                let hash = Sha256::digest(value);
                let _ = writeln!(text, "= {}:{}", value.len(), hex(&hash[..8]));
            }
            Entry::Value(value) => {
                let _ = writeln!(text, "= {}", hex(value));
            }
            Entry::Bucket(nested) => {
                let nested = nested.open()?;
                let _ = writeln!(text, "{{{}", nested.sequence());
                dump_bucket(&nested, depth + 1, text)?;
            }
        }
    }
    Ok(())
}

/// An element of a leaf.
pub(crate) type Item<'a> = (u32, &'a [u8], Vec<u8>);

/// The head of a bucket whose first page is `root`; zero, and the page follows.
pub(crate) fn bucket(root: u64, sequence: u64) -> Vec<u8> {
    [root.to_le_bytes(), sequence.to_le_bytes()].concat()
}

/// A leaf's bytes without what fills its page.
pub(crate) fn leaf(number: u64, items: &[Item<'_>]) -> Vec<u8> {
    let mut page = header(number, LEAF, items.len(), 0);
    let mut data = Vec::new();
    for (index, (flags, key, value)) in items.iter().enumerate() {
        let position = 16 * (items.len() - index) + data.len();
        for word in [*flags, position as u32, key.len() as u32, value.len() as u32] {
            page.extend(word.to_le_bytes());
        }
        data.extend_from_slice(key);
        data.extend_from_slice(value);
    }
    page.extend(data);
    page
}

pub(crate) fn branch(number: u64, children: &[(&[u8], u64)]) -> Vec<u8> {
    let mut page = header(number, BRANCH, children.len(), 0);
    let mut data = Vec::new();
    for (index, (key, child)) in children.iter().enumerate() {
        let position = 16 * (children.len() - index) + data.len();
        page.extend((position as u32).to_le_bytes());
        page.extend((key.len() as u32).to_le_bytes());
        page.extend(child.to_le_bytes());
        data.extend_from_slice(key);
    }
    page.extend(data);
    page
}

pub(crate) fn header(number: u64, flags: u16, count: usize, overflow: u32) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend(flags.to_le_bytes());
    bytes.extend((count as u16).to_le_bytes());
    bytes.extend(overflow.to_le_bytes());
    bytes
}

/// A database by its pages.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    pub(crate) page_bytes: usize,
    pub(crate) root: u64,
    pub(crate) sequence: u64,
    /// One more than the number of the last page; told of the pages where zero.
    pub(crate) end: u64,
    pub(crate) transaction: u64,
    pub(crate) pages: BTreeMap<u64, Vec<u8>>,
}

impl Pages {
    /// With these pages from the third on, which is the root.
    pub(crate) fn new(page_bytes: usize, pages: &[Vec<u8>]) -> Self {
        let pages = (2..).zip(pages.iter().cloned()).collect();
        Self { page_bytes, root: 2, sequence: 0, end: 0, transaction: 6, pages }
    }

    /// The number behind the last page in use.
    fn end(&self) -> u64 {
        let last = self.pages.iter().next_back();
        let of_pages = last.map_or(2, |(number, page)| number + page.len().div_ceil(self.page_bytes) as u64);
        if self.end == 0 { of_pages } else { self.end }
    }

    fn meta(&self, transaction: u64) -> Vec<u8> {
        let mut meta = Vec::new();
        for word in [0xED0C_DAED, 2, self.page_bytes as u32, 0] {
            meta.extend(u32::to_le_bytes(word));
        }
        for double in [self.root, self.sequence, u64::MAX, self.end(), transaction] {
            meta.extend(u64::to_le_bytes(double));
        }
        let sum = checksum(&meta);
        meta.extend(sum.to_le_bytes());
        let number = transaction % 2;
        [header(number, 4, 0, 0), meta].concat()
    }

    /// The file. The other meta page is of the transaction before, and leads to the same root.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut file = vec![0; self.end().min(4_096) as usize * self.page_bytes];
        let mut put = |number: u64, page: &[u8]| {
            let start = number as usize * self.page_bytes;
            file.resize(file.len().max(start + page.len()), 0);
            file[start..start + page.len()].copy_from_slice(page);
        };
        for transaction in [self.transaction - 1, self.transaction] {
            put(transaction % 2, &self.meta(transaction));
        }
        for (number, page) in &self.pages {
            put(*number, page);
        }
        file
    }
}

/// FNV-1a of the part of a meta page that has a checksum.
pub(crate) fn checksum(meta: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in &meta[..56] {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    }
    hash
}

/// Makes the meta pages of a damaged file valid again, as far as they are there.
pub(crate) fn sign(file: &mut [u8], page_bytes: usize) {
    for start in [16, page_bytes + 16] {
        if let Some(meta) = file.get_mut(start..start + 64) {
            let sum = checksum(meta);
            meta[56..].copy_from_slice(&sum.to_le_bytes());
        }
    }
}
