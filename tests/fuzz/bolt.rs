//! Databases of bbolt with damaged pages: nothing but `Damaged` and `Unsupported` is answered, and what is listed is
//! found.

use docker_fs::error::Error;
use docker_fs::store::containerd::bolt::{Bucket, Database, Entry};

use crate::mutate::Dice;
use format::{Memory, sign};

#[path = "../support/bolt.rs"]
pub(crate) mod format;

/// Numbers at which sizes and counts go wrong.
const NUMBERS: [u64; 18] = [
    0,
    1,
    2,
    3,
    4,
    15,
    16,
    17,
    255,
    1_023,
    4_096,
    0x7fff,
    0xffff,
    0x10_0000,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];
/// Longer than any message that names a page should be.
const MESSAGE_MAX: usize = 300;

/// The kept database of this number, or a mutation of one of them.
pub(crate) fn try_one(seed: u64, kept: &[Vec<u8>]) -> Walk {
    let file = match usize::try_from(seed).ok().and_then(|index| kept.get(index)) {
        Some(file) => file.clone(),
        None => mutate(kept, &mut Dice::new(seed)),
    };
    let limit = file.len();
    let database = Database::new(Box::new(Memory(file)), "mutant");
    let walked = database.read(|root| {
        let mut walk = Walk::default();
        walk.bucket(root, 0);
        Ok(walk)
    });
    match walked {
        Ok(walk) => {
            // An element takes sixteen bytes and is visited once.
            assert!(walk.entries + walk.errors <= limit / 16, "{walk:?} in {limit} bytes");
            walk
        }
        Err(error) => {
            check(&error);
            Walk { entries: 0, errors: 1 }
        }
    }
}

fn check(error: &Error) {
    assert!(matches!(error, Error::Damaged { .. } | Error::Unsupported { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with("mutant") && text.len() < MESSAGE_MAX, "{text}");
}

/// What was found in a database.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    entries: usize,
    errors: usize,
}

/// How many databases were of no use, showed damage beside what they hold, and showed none.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    lost: usize,
    damaged: usize,
    whole: usize,
}

impl Tally {
    pub(crate) fn count(&mut self, walk: &Walk) {
        match walk {
            Walk { entries: 0, .. } => self.lost += 1,
            Walk { errors: 0, .. } => self.whole += 1,
            Walk { .. } => self.damaged += 1,
        }
    }

    /// Most that are damaged should be looked into, or little is tried.
    pub(crate) fn check(&self) {
        eprintln!("bolt: {self:?}");
        let count = self.lost + self.damaged + self.whole;
        assert!(count < 100 || self.damaged > self.lost, "{self:?}");
    }
}

impl Walk {
    fn bucket(&mut self, bucket: &Bucket<'_>, depth: usize) {
        assert!(depth <= 32, "buckets without an end");
        let mut before: Option<Vec<u8>> = None;
        let mut entries = bucket.entries();
        loop {
            let (key, entry) = match entries.next_entry() {
                Ok(None) => return,
                Ok(Some(found)) => found,
                Err(error) => {
                    self.errors += 1;
                    check(&error);
                    continue;
                }
            };
            self.entries += 1;
            assert!(before.as_deref().is_none_or(|before| before < key), "{before:?} is before {key:?}");
            before = Some(key.to_vec());
            let value = bucket.get(key).unwrap_or_else(|error| panic!("{key:?} is listed, but: {error}"));
            match entry {
                Entry::Value(listed) => assert_eq!(value.as_deref(), Some(listed), "{key:?} has two values"),
                Entry::Bucket(nested) => {
                    assert_eq!(value, None, "{key:?} has a value and a bucket");
                    match (nested.open(), bucket.bucket(key)) {
                        (Ok(nested), Ok(Some(_))) => self.bucket(&nested, depth + 1),
                        (Err(error), Err(_)) => {
                            self.errors += 1;
                            check(&error);
                        }
                        (one, other) => panic!("{key:?} is {one:?} and {other:?}"),
                    }
                }
            }
        }
    }
}

fn mutate(kept: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut file = kept[dice.below(kept.len())].clone();
    let page_bytes = u32::from_le_bytes(file[24..28].try_into().unwrap()) as usize;
    for _ in 0..1 + dice.below(6) {
        change(&mut file, page_bytes, dice);
    }
    // Most of what is damaged in a meta page is found by its checksum, and nothing else is then tried.
    if !dice.one_in(20) {
        sign(&mut file, page_bytes);
    }
    file
}

/// Writes a number of this size; what does not fit into the file is left out.
fn put(file: &mut [u8], at: usize, number: u64, size: usize) {
    for (to, from) in file.iter_mut().skip(at).zip(&number.to_le_bytes()[..size]) {
        *to = *from;
    }
}

fn change(file: &mut Vec<u8>, page_bytes: usize, dice: &mut Dice) {
    let pages = file.len() / page_bytes;
    let page = dice.below(pages) * page_bytes;
    let number = if dice.one_in(2) { dice.below(pages + 2) as u64 } else { dice.of(&NUMBERS) };
    // Where the page has elements, one of them.
    let count = file.get(page + 10..page + 12).map_or(0, |count| u16::from_le_bytes(count.try_into().unwrap()));
    let element = page + 16 + 16 * dice.below(usize::from(count).clamp(1, page_bytes / 16));
    match dice.below(16) {
        0 => put(file, page, number, 8),
        1 => put(file, page + 8, dice.of(&[0, 1, 2, 3, 4, 16, number]), 2),
        2 => put(file, page + 10, number, 2),
        3 => put(file, page + 12, number, 4),
        4..8 => put(file, element + 4 * dice.below(4), number, 4),
        // A branch's child.
        8 => put(file, element + 8, number, 8),
        9 => {
            // The head of a bucket, if a value is there.
            let word = |at: usize| file.get(at..at + 4).map_or(0, |word| u32::from_le_bytes(word.try_into().unwrap()));
            let value = element + word(element + 4) as usize + word(element + 8) as usize;
            put(file, value, dice.of(&[0, number]), 8);
        }
        // A meta page: size of pages, root, pages in use, transaction.
        10 => {
            let field = dice.of(&[8, 12, 16, 40, 48]);
            put(file, dice.of(&[16, page_bytes + 16]) + field, number, if field < 16 { 4 } else { 8 });
        }
        // One page in another's place, perhaps with the right number.
        11 => {
            let from = dice.below(pages) * page_bytes;
            let copy = file.get(from..from + page_bytes).map(<[u8]>::to_vec).unwrap_or_default();
            for (to, from) in file.iter_mut().skip(page).zip(copy) {
                *to = from;
            }
            if dice.one_in(2) {
                put(file, page, (page / page_bytes) as u64, 8);
            }
        }
        12 if dice.one_in(4) => file.truncate(dice.below(file.len())),
        12 | 13 => {
            let start = dice.below(file.len());
            let length = dice.below(64);
            for byte in file.iter_mut().skip(start).take(length) {
                *byte = dice.below(256) as u8;
            }
        }
        _ => {
            let at = page + dice.below(page_bytes);
            if let Some(byte) = file.get_mut(at) {
                *byte ^= 1 << dice.below(8);
            }
        }
    }
    if file.len() < 64 {
        file.resize(64, 0);
    }
}
