//! The reader of bbolt's databases: against bbolt itself, against writers, and against files that lie.
//!
//! `tests/fuzz/corpus/bolt` has databases that bbolt wrote in random transactions, and one of containerd's; beside this
//! file `bolt/` has what bbolt read in them, and the program that did both. `DOCKER_FS_BOLT_FILES` names a directory of
//! more of them: `x.db` and `x.dump`.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::cast_possible_truncation
)]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use docker_fs::error::{Error, Result};
use docker_fs::store::containerd::bolt::{Database, ReadAt};
use format::{BUCKET, Memory, Pages, branch, bucket, dump, header, leaf};
use parking_lot::Mutex;
use rustix::io::Errno;

#[path = "support/bolt.rs"]
mod format;

const DAY: &[u8] = b"day";

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// Databases, and the files that say what bbolt read in them.
fn samples() -> Vec<(PathBuf, PathBuf)> {
    let more = std::env::var_os("DOCKER_FS_BOLT_FILES").map(|dir| (PathBuf::from(&dir), PathBuf::from(dir)));
    let own = (tests().join("fuzz/corpus/bolt"), tests().join("bolt"));
    let mut samples = Vec::new();
    for (databases, dumps) in [own].into_iter().chain(more) {
        for entry in fs::read_dir(databases).unwrap() {
            let database = entry.unwrap().path();
            if database.extension().is_some_and(|extension| extension == "db") {
                let dump = dumps.join(database.file_stem().unwrap()).with_extension("dump");
                samples.push((database, dump));
            }
        }
    }
    samples.sort();
    samples
}

fn of_bytes(bytes: Vec<u8>) -> Database {
    Database::new(Box::new(Memory(bytes)), "db")
}

fn said(database: &Database) -> String {
    dump(database).map_or_else(|error| error.to_string(), |text| panic!("it is read:\n{text}"))
}

#[test]
fn databases_hold_what_bbolt_reads_in_them() {
    let samples = samples();
    assert!(samples.len() >= 3, "{samples:?}");
    for (database, expected) in samples {
        let file = Database::new(Box::new(File::open(&database).unwrap()), "db");
        let text = dump(&file).unwrap_or_else(|error| panic!("{}: {error}", database.display()));
        assert!(text == fs::read_to_string(&expected).unwrap(), "{} differs", database.display());
        eprintln!("{}: {} keys", database.display(), text.lines().count());
    }
}

/// A root with a value, an inline bucket, a bucket of two levels and an empty bucket.
fn sound(page_bytes: usize) -> Pages {
    let inline = [bucket(0, 7), leaf(0, &[(0, b"in", b"line".to_vec())])].concat();
    let root = leaf(
        2,
        &[
            (BUCKET, b"a", inline),
            (BUCKET, b"b", bucket(3, 9)),
            (0, b"c", b"value".to_vec()),
            (BUCKET, b"d", bucket(6, 0)),
        ],
    );
    let pages = [
        root,
        branch(3, &[(b"k1", 4), (b"k3", 5)]),
        leaf(4, &[(0, b"k1", vec![]), (0, b"k2", b"two".to_vec())]),
        leaf(5, &[(0, b"k3", b"three".to_vec())]),
        leaf(6, &[]),
    ];
    Pages::new(page_bytes, &pages)
}

const SOUND: &str =
    "61 {7\n 696e = 6c696e65\n62 {9\n 6b31 = \n 6b32 = 74776f\n 6b33 = 7468726565\n63 = 76616c7565\n64 {0\n";

#[test]
fn pages_of_all_sizes_are_read() {
    for shift in 10..=17 {
        let pages = sound(1 << shift);
        assert_eq!(dump(&of_bytes(pages.bytes())).unwrap(), SOUND, "2^{shift}");
        // Nothing then tells where the second meta page is.
        let mut without_first = pages.bytes();
        without_first[16..80].fill(0);
        let mut older = pages.clone();
        older.transaction = 7;
        let mut without_first_newer = older.bytes();
        without_first_newer[20] ^= 1;
        assert_eq!(dump(&of_bytes(without_first)).unwrap(), SOUND, "2^{shift} without the first meta page");
        assert_eq!(of_bytes(without_first_newer).transaction().unwrap(), 7);
    }
}

#[test]
fn the_valid_meta_page_of_the_higher_transaction_counts() {
    for (newer, older) in [(0_usize, 5_u64), (1, 6)] {
        let mut pages = sound(4_096);
        pages.transaction = older + 1;
        let mut file = pages.bytes();
        assert_eq!(of_bytes(file.clone()).transaction().unwrap(), older + 1);
        // Torn, as one that was being written when the machine stopped.
        file[newer * 4_096 + 70] ^= 1;
        assert_eq!(of_bytes(file.clone()).transaction().unwrap(), older);
        assert_eq!(dump(&of_bytes(file)).unwrap(), SOUND);
    }
}

#[test]
fn keys_and_buckets_are_found_by_their_names() {
    let database = of_bytes(sound(1_024).bytes());
    let found = database.read(|root| {
        assert_eq!(root.get(b"c")?.as_deref(), Some(&b"value"[..]));
        for absent in [&b""[..], b"a", b"b", b"bb", b"e"] {
            assert_eq!(root.get(absent)?, None, "{absent:?}");
        }
        for absent in [&b"c"[..], b"", b"e"] {
            assert!(root.bucket(absent)?.is_none(), "{absent:?}");
        }
        let below = root.descend(&[b"b"])?.unwrap();
        assert!(root.descend(&[b"b", b"k1"])?.is_none());
        for (key, value) in [(&b"k1"[..], Some(&b""[..])), (b"k2", Some(b"two")), (b"k3", Some(b"three"))] {
            assert_eq!(below.get(key)?.as_deref(), value);
        }
        for absent in [&b"k"[..], b"k0", b"k11", b"k25", b"k4"] {
            assert_eq!(below.get(absent)?, None, "{absent:?}");
        }
        Ok(below.sequence())
    });
    assert_eq!(found.unwrap(), 9);
}

/// A change to a sound database, and what it then is.
type Lie = (&'static str, fn(&mut Pages));

/// Writes a number of four bytes at a place of a page.
fn word(pages: &mut Pages, page: u64, at: usize, number: u32) {
    pages.pages.get_mut(&page).unwrap()[at..at + 4].copy_from_slice(&number.to_le_bytes());
}

const LIES: &[Lie] = &[
    ("db, page 0: leads to page 0, where pages 2 to 6 are in use", |pages| pages.root = 0),
    ("db, page 0: leads to page 7, where pages 2 to 6 are in use", |pages| pages.root = 7),
    ("db, page 3: leads to page 6, where pages 2 to 5 are in use", |pages| {
        pages.end = 6;
        word(pages, 3, 24, 6);
    }),
    ("db, page 3: is in two places of the tree, below pages 2 and 3", |pages| word(pages, 3, 24, 3)),
    ("db, page 2: is in two places of the tree, below pages 0 and 3", |pages| word(pages, 3, 40, 2)),
    ("db, page 4: is in two places of the tree, below pages 3 and 3", |pages| word(pages, 3, 40, 4)),
    ("db, page 2: is in two places of the tree, below pages 0 and 2", |pages| {
        let value = bucket(2, 0);
        pages.pages.insert(2, leaf(2, &[(BUCKET, b"loop", value)]));
    }),
    ("db, page 4: calls itself page 5", |pages| word(pages, 4, 0, 5)),
    ("db, page 4: has the flags 0x10, which are neither a branch's nor a leaf's", |pages| {
        pages.pages.insert(4, header(4, 0x10, 0, 0));
    }),
    ("db, page 4: has the flags 0x3, which are neither a branch's nor a leaf's", |pages| {
        pages.pages.insert(4, header(4, 3, 0, 0));
    }),
    ("db, page 3: is a branch without elements", |pages| drop(pages.pages.insert(3, branch(3, &[])))),
    ("db, page 4: has 64 elements, and room for fewer", |pages| drop(pages.pages.insert(4, header(4, 2, 64, 0)))),
    ("db, page 4: has 65535 elements, and room for fewer", |pages| {
        pages.pages.insert(4, header(4, 2, 65_535, 0));
    }),
    ("db, page 4: has element 1 outside of itself", |pages| word(pages, 4, 36, u32::MAX)),
    ("db, page 4: has element 1 outside of itself", |pages| word(pages, 4, 40, 972)),
    ("db, page 4: has element 1 outside of itself", |pages| word(pages, 4, 44, 973)),
    ("db, page 4: has element 0 in the bytes of others", |pages| word(pages, 4, 20, 31)),
    ("db, page 4: has element 1 in the bytes of others", |pages| word(pages, 4, 36, 17)),
    ("db, page 4: has element 1 out of order", |pages| {
        pages.pages.insert(4, leaf(4, &[(0, b"k2", vec![]), (0, b"k1", vec![])]));
    }),
    ("db, page 4: has element 1 out of order", |pages| {
        pages.pages.insert(4, leaf(4, &[(0, b"k1", vec![]), (0, b"k1", vec![])]));
    }),
    ("db, page 4: has element 0 with the unknown flags 0x2", |pages| word(pages, 4, 16, 2)),
    ("db, page 4: has a bucket of 0 bytes in element 0", |pages| word(pages, 4, 16, 1)),
    ("db, page 4: has keys that do not fit in where page 3 has it, in element 0", |pages| {
        pages.pages.insert(4, leaf(4, &[(0, b"k0", vec![])]));
    }),
    ("db, page 4: has keys that do not fit in where page 3 has it, in element 0", |pages| {
        pages.pages.insert(4, leaf(4, &[(0, b"k1", vec![]), (0, b"k3", vec![])]));
    }),
    ("db, page 4: goes on for 3 pages, behind the end of all", |pages| word(pages, 4, 12, 3)),
    ("db, page 4: takes 33555456 bytes, more than 33554432", |pages| {
        pages.end = 1 << 40;
        word(pages, 4, 12, 32_768);
    }),
    ("db, page 2: the bucket in element 0 is shorter than its header", |pages| {
        pages.pages.insert(2, leaf(2, &[(BUCKET, b"a", [bucket(0, 0), vec![0; 10]].concat())]));
    }),
    ("db, page 2: the bucket in element 0 has 2 elements, and room for fewer", |pages| {
        pages.pages.insert(2, leaf(2, &[(BUCKET, b"a", [bucket(0, 0), header(0, 2, 2, 0)].concat())]));
    }),
    ("db, page 4: is behind the end of the file", |pages| {
        pages.pages.insert(3, branch(3, &[(b"k1", 4), (b"k3", 5)]));
        pages.pages.retain(|number, _| *number < 4);
        // The file then ends with page 3.
    }),
];

#[test]
fn a_lie_is_told_with_its_page() {
    for (expected, lie) in LIES {
        let mut pages = sound(1_024);
        pages.end = 7;
        lie(&mut pages);
        let mut file = pages.bytes();
        if expected.contains("end of the file") {
            file.truncate(4 * 1_024 + 100);
        }
        assert_eq!(said(&of_bytes(file)), *expected);
    }
}

#[test]
fn trees_and_buckets_without_end_are_given_up() {
    let names: Vec<u64> = (2..100).collect();
    let chain: Vec<Vec<u8>> = names.iter().map(|number| branch(*number, &[(DAY, number + 1)])).collect();
    let database = of_bytes(Pages::new(1_024, &chain).bytes());
    assert_eq!(said(&database), "db, page 33: is the 32th level of a tree, and no leaf");
    let error = database.read(|root| root.get(DAY)).unwrap_err();
    assert_eq!(error.to_string(), "db, page 34: is the 32th level of a tree, and no leaf");
    let nest = |number: &u64| leaf(*number, &[(BUCKET, DAY, bucket(number + 1, 0))]);
    let buckets: Vec<Vec<u8>> = names.iter().map(nest).collect();
    assert_eq!(
        said(&of_bytes(Pages::new(1_024, &buckets).bytes())),
        "db, page 34: has more than 32 buckets in one another"
    );
    // Each within the other, all in one page.
    let inline = (0..40).fold(bucket(0, 0), |inner, _| {
        let page = if inner.len() == 16 { leaf(0, &[]) } else { leaf(0, &[(BUCKET, DAY, inner)]) };
        [bucket(0, 0), page].concat()
    });
    let file = Pages::new(4_096, &[leaf(2, &[(BUCKET, DAY, inline)])]).bytes();
    assert!(said(&of_bytes(file)).ends_with("has more than 32 buckets in one another"));
}

#[test]
fn what_is_no_database_is_said() {
    let sound = sound(1_024).bytes();
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut file = sound.clone();
        change(&mut file);
        said(&of_bytes(file))
    };
    let neither = "db: neither meta page is valid: the first one";
    assert_eq!(changed(&Vec::clear), format!("{neither} is cut off"));
    assert_eq!(changed(&|file| file.truncate(79)), format!("{neither} is cut off"));
    assert_eq!(changed(&|file| file.fill(0)), format!("{neither} has no magic number"));
    let both = |file: &mut Vec<u8>, change: &dyn Fn(&mut [u8]), is_signed: bool| {
        for start in [16, 1_040] {
            change(&mut file[start..start + 64]);
        }
        if is_signed {
            format::sign(file, 1_024);
        }
    };
    assert_eq!(changed(&|file| both(file, &|meta| meta[48] ^= 8, false)), format!("{neither} has a wrong checksum"));
    for size in [0_u32, 512, 1_000, 32 << 20] {
        assert_eq!(
            changed(&|file| both(file, &|meta| meta[8..12].copy_from_slice(&size.to_le_bytes()), true)),
            format!("{neither} has a size of pages that is no power of two from 1 KiB to 16 MiB")
        );
    }
    assert_eq!(
        changed(&|file| both(file, &|meta| meta[4] = 3, true)),
        "db: the database is of another version of the format than 2"
    );
    assert_eq!(
        changed(&|file| both(file, &|meta| meta[..4].reverse(), true)),
        "db: the database is of a big-endian machine"
    );
}

#[test]
fn a_page_goes_on_in_those_behind_it() {
    for overflow in 1..4_u32 {
        let value = vec![b'v'; 1_024 * overflow as usize];
        let mut long = leaf(3, &[(0, b"long", value.clone())]);
        long[12..16].copy_from_slice(&overflow.to_le_bytes());
        let behind = 4 + u64::from(overflow);
        let mut pages = Pages::new(1_024, &[branch(2, &[(b"long", 3), (b"next", behind)]), long]);
        pages.pages.insert(behind, leaf(behind, &[(0, b"next", b"1".to_vec())]));
        let found = of_bytes(pages.bytes()).read(|root| Ok((root.get(b"long")?, root.get(b"next")?)));
        assert_eq!(found.unwrap(), (Some(value), Some(b"1".to_vec())));
    }
}

#[test]
fn nothing_follows_what_is_too_large() {
    let mut large = leaf(3, &[(0, b"k1", vec![])]);
    large[12..16].copy_from_slice(&32_768_u32.to_le_bytes());
    let mut pages = Pages::new(1_024, &[branch(2, &[(b"k1", 3), (b"k2", 4)]), large, leaf(4, &[(0, b"k2", vec![])])]);
    pages.end = 1 << 40;
    let looked = of_bytes(pages.bytes()).read(|root| {
        let mut entries = root.entries();
        let error = entries.next_entry().map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
        assert!(entries.next_entry()?.is_none());
        Ok(())
    });
    looked.unwrap();
}

#[test]
fn damage_hides_no_neighbour() {
    let mut pages = sound(1_024);
    pages.pages.insert(4, vec![0; 100]);
    let (keys, errors) = of_bytes(pages.bytes())
        .read(|root| {
            let (mut keys, mut errors) = (Vec::new(), Vec::new());
            let bucket = root.bucket(b"b")?.unwrap();
            let mut entries = bucket.entries();
            loop {
                match entries.next_entry() {
                    Ok(Some((key, _))) => keys.push(key.to_vec()),
                    Ok(None) => return Ok((keys, errors)),
                    Err(error) => errors.push(error.to_string()),
                }
            }
        })
        .unwrap();
    assert_eq!(keys, [b"k3"]);
    assert_eq!(errors, ["db, page 4: calls itself page 0"]);
}

/// A file that another process changes while it is read, and that counts what is asked of it.
#[derive(Debug)]
struct Moving {
    /// What the file is, from one change to the next; the last one stays.
    states: Vec<Memory>,
    /// The reads between two changes.
    each: usize,
    reads: AtomicUsize,
}

impl ReadAt for Moving {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.reads.fetch_add(1, Ordering::Relaxed) / self.each;
        self.states[state.min(self.states.len() - 1)].read_at(buffer, offset)
    }
}

/// The states of a database that is written again and again: the root's value is the transaction's number.
fn states(count: u64) -> Vec<Memory> {
    (6..6 + count)
        .map(|transaction| {
            let mut pages = Pages::new(1_024, &[leaf(2, &[(0, b"n", transaction.to_le_bytes().to_vec())])]);
            pages.transaction = transaction;
            Memory(pages.bytes())
        })
        .collect()
}

fn moving(count: u64, each: usize) -> Database {
    Database::new(Box::new(Moving { states: states(count), each, reads: AtomicUsize::new(0) }), "db")
}

#[test]
fn an_answer_is_of_one_state() {
    // Two reads of meta pages, one of the root, and two of meta pages again.
    for each in 1..12 {
        let calls = Mutex::new(0);
        let number = moving(5, each).read(|root| {
            *calls.lock() += 1;
            Ok(root.get(b"n")?.map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())))
        });
        let calls = calls.into_inner();
        let number = number.unwrap().unwrap();
        let expected = if each >= 5 { 1 } else { 2 };
        assert!(calls >= expected, "{calls} calls with a change after {each} reads");
        assert_eq!(number, if each >= 5 { 6 } else { 10 }, "with a change after {each} reads");
    }
}

#[test]
fn damage_of_a_state_that_is_gone_is_none() {
    let mut states = states(2);
    states[0].0[2 * 1_024..2 * 1_024 + 16].fill(0xff);
    let database = Database::new(Box::new(Moving { states, each: 3, reads: AtomicUsize::new(0) }), "db");
    assert_eq!(dump(&database).unwrap(), "6e = 0700000000000000\n");
}

#[test]
fn a_database_that_never_rests_is_said_to_be_written() {
    let error = moving(1_000, 2).read(|root| root.get(b"n")).unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    assert_eq!(error.errno(), Errno::AGAIN);
    assert_eq!(
        error.to_string(),
        "cannot read db, which was written 20 times meanwhile: Resource temporarily unavailable"
    );
}

/// A file that knows how much was asked of it.
#[derive(Debug)]
struct Counted {
    file: File,
    /// The most bytes that were asked for at once, and those in all.
    asked: std::sync::Arc<Mutex<(usize, usize)>>,
}

impl ReadAt for Counted {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut asked = self.asked.lock();
        *asked = (asked.0.max(buffer.len()), asked.1 + buffer.len());
        drop(asked);
        FileExt::read_at(&self.file, buffer, offset)
    }
}

/// A sparse file of 1 GiB with one bucket in another, each of whose pages says that it goes on for 31 MiB.
fn large() -> (Database, std::sync::Arc<Mutex<(usize, usize)>>) {
    const STEP: u64 = 31 << 8;
    let mut pages = Pages::new(4_096, &[]);
    for number in (2..).step_by(STEP as usize).take(32) {
        let mut page = leaf(number, &[(BUCKET, DAY, bucket(number + STEP, 0))]);
        page[12..16].copy_from_slice(&(STEP as u32 - 1).to_le_bytes());
        pages.pages.insert(number, page);
    }
    pages.end = 1 << 18;
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.set_len(1 << 30).unwrap();
    let only_meta = Pages { pages: [].into(), ..pages.clone() }.bytes();
    FileExt::write_all_at(&file, &only_meta[..2 * 4_096], 0).unwrap();
    for (number, page) in &pages.pages {
        FileExt::write_all_at(&file, page, number * 4_096).unwrap();
    }
    let asked = std::sync::Arc::default();
    (Database::new(Box::new(Counted { file, asked: std::sync::Arc::clone(&asked) }), "db"), asked)
}

#[test]
fn a_large_file_takes_little_memory() {
    let (database, asked) = large();
    // Each bucket is held while the next one is read.
    assert_eq!(said(&database), "db: more than 64 MiB of it would have to be in memory at a time");
    let (once, in_all) = *asked.lock();
    assert!(once <= 32 << 20 && in_all <= 64 << 20, "{once} bytes at once, {in_all} in all");
    let status = fs::read_to_string("/proc/self/status").unwrap();
    eprintln!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap());
}

#[test]
fn what_is_read_of_one_state_has_an_end() {
    let (database, asked) = large();
    let looked = |times: u32| {
        database.read(|root| {
            for _ in 0..times {
                root.bucket(DAY)?.expect("a bucket");
            }
            Ok(())
        })
    };
    looked(10).unwrap();
    let error: Result<()> = looked(1_000);
    assert!(matches!(error, Err(Error::Unsupported { .. })), "{error:?}");
    assert!(asked.lock().1 <= 5 << 30);
}
