//! The two meta pages: which state of a database is the newest, and how large its pages are.
//!
//! ```text
//!  0  page header, 16 bytes      not looked at, as bbolt does not
//! 16  magic u32   version u32   page size u32   flags u32
//! 32  root page u64   root sequence u64   free list's page u64   pages in use u64   transaction u64
//! 72  checksum u64: FNV-1a of the 56 bytes from the magic number on
//! ```

use std::io;

use super::ReadAt;
use super::page::{double, word};
use crate::error::{Error, Result};

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// Where the meta data starts in its page, in bytes, and where it ends with its checksum.
const START: usize = 16;
const END: usize = 80;
const CHECKED: usize = 56;
/// The sizes of pages that are looked for, in bytes: that of the machine that made the file, 4 to 64 KiB in practice.
const PAGE_MIN: u64 = 1 << 10;
const PAGE_MAX: u64 = 16 << 20;

/// What a valid meta page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    /// The size of a page in bytes: a power of two.
    pub(super) page_bytes: u64,
    /// The root page of the root bucket.
    pub(super) root: u64,
    /// The root bucket's sequence.
    pub(super) sequence: u64,
    /// All pages in use have smaller numbers than this.
    pub(super) pages: u64,
    /// The number of the transaction that wrote it.
    pub(super) transaction: u64,
    checksum: u64,
}

/// Why a meta page does not count.
enum Invalid {
    Damaged(&'static str),
    Unsupported(&'static str),
}

/// The valid meta page of the higher transaction.
///
/// # Errors
/// [`Error::Damaged`] where neither is valid.
pub(super) fn newest(file: &dyn ReadAt, shown: &str) -> Result<Meta> {
    let read = |offset| read_meta(file, offset).map_err(Error::io(|| format!("read {shown}")));
    let first = read(0)?;
    let second = match &first {
        Ok(meta) => read(meta.page_bytes)?.ok(),
        // Where the second one is, only the first one could have told.
        Err(_) => {
            let sizes =
                std::iter::successors(Some(PAGE_MIN), |size| Some(size * 2)).take_while(|size| *size <= PAGE_MAX);
            sizes
                .map(|size| Ok(read(size)?.ok().filter(|meta| meta.page_bytes == size)))
                .find_map(Result::transpose)
                .transpose()?
        }
    };
    match (first, second) {
        (Ok(first), Some(second)) if second.transaction > first.transaction => Ok(second),
        (Ok(first), _) => Ok(first),
        (Err(_), Some(second)) => Ok(second),
        (Err(Invalid::Damaged(why)), None) => {
            Err(Error::damaged(shown, format!("neither meta page is valid: the first one {why}")))
        }
        (Err(Invalid::Unsupported(why)), None) => {
            Err(Error::Unsupported { what: shown.to_owned(), why: why.to_owned() })
        }
    }
}

fn read_meta(file: &dyn ReadAt, offset: u64) -> io::Result<std::result::Result<Meta, Invalid>> {
    let mut bytes = [0; END];
    let count = super::snapshot::fill(file, &mut bytes, offset)?;
    Ok(if count < END { Err(Invalid::Damaged("is cut off")) } else { parse(&bytes) })
}

fn parse(page: &[u8; END]) -> std::result::Result<Meta, Invalid> {
    const SHORT: Invalid = Invalid::Damaged("is cut off");
    let bytes = page.get(START..).ok_or(SHORT)?;
    let magic = word(bytes, 0).ok_or(SHORT)?;
    if magic == MAGIC.swap_bytes() {
        return Err(Invalid::Unsupported("the database is of a big-endian machine"));
    }
    if magic != MAGIC {
        return Err(Invalid::Damaged("has no magic number"));
    }
    let checksum = double(bytes, CHECKED).ok_or(SHORT)?;
    if checksum != fnv1a(bytes.get(..CHECKED).ok_or(SHORT)?) {
        return Err(Invalid::Damaged("has a wrong checksum"));
    }
    if word(bytes, 4).ok_or(SHORT)? != VERSION {
        return Err(Invalid::Unsupported("the database is of another version of the format than 2"));
    }
    let page_bytes = u64::from(word(bytes, 8).ok_or(SHORT)?);
    if !page_bytes.is_power_of_two() || !(PAGE_MIN..=PAGE_MAX).contains(&page_bytes) {
        return Err(Invalid::Damaged("has a size of pages that is no power of two from 1 KiB to 16 MiB"));
    }
    Ok(Meta {
        page_bytes,
        root: double(bytes, 16).ok_or(SHORT)?,
        sequence: double(bytes, 24).ok_or(SHORT)?,
        pages: double(bytes, 40).ok_or(SHORT)?,
        transaction: double(bytes, 48).ok_or(SHORT)?,
        checksum,
    })
}

/// The 64-bit FNV-1a hash.
fn fnv1a(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix)
}
