//! How the mount answers system calls that only read, and those that must fail: each against kernel overlayfs's answer on
//! the same layers.
//!
//! A check is a function that is given the root of one of the two mounts and answers lines, each a question and what the
//! system said. The lines must be equal, except for [`DIFFERENCES`], where each has its reason. Most of those are not
//! ours to decide: the kernel's FUSE does not ask the server, or has no such operation.
//!
//! `DOCKER_FS_TEST_OPENS` says how files are opened, as everywhere. What other users may do is in `permissions.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::string_slice)]

mod support;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec as PollTime};
use rustix::fs::inotify;
use rustix::fs::{
    Access, Advice, AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Mode, OFlags, RawDir, RenameFlags,
    ResolveFlags, SeekFrom, StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags,
};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::pipe::SpliceFlags;
use support::mount::{KernelOverlay, Mounted, require_privileges};
use support::random::noise;
use support::stack::{Stack, char_device, dir, fifo, file, link, socket, sparse, stack, symlink, whiteout};
use tempfile::TempDir;

/// What was asked, and what the system said.
type Lines = Vec<(String, String)>;
type Check = (&'static str, fn(&Path) -> Lines);

const CHECKS: &[Check] = &[
    ("getdents", getdents),
    ("seekdir", seekdir),
    ("rewinddir", rewinddir),
    ("lseek of a directory", lseek_of_a_directory),
    ("open", open_flags),
    ("openat2", openat2),
    ("paths", paths),
    ("pread", pread),
    ("readv", readv),
    ("preadv2", preadv2),
    ("O_DIRECT", direct),
    ("mmap", mmap),
    ("splice", splice),
    ("sendfile", sendfile),
    ("copy_file_range", copy_file_range),
    ("lseek", lseek),
    ("statx", statx),
    ("statfs", statfs),
    ("access", access),
    ("modify by path", modify_by_path),
    ("modify by descriptor", modify_by_descriptor),
    ("xattrs", xattrs),
    ("readlink", readlink),
    ("handles", handles),
    ("inotify", watches),
    ("fanotify", fanotify),
    ("flock", flock),
    ("fcntl", fcntl),
    ("ioctl", ioctl),
    ("poll", poll),
    ("fadvise", fadvise),
];

/// Where ours is another answer than the kernel's, and why it may be.
struct Difference {
    check: &'static str,
    /// What its questions start with.
    questions: &'static [&'static str],
    /// The ways of opening files for which it holds.
    opens: &'static [&'static str],
    /// What is answered instead; `None` where that is not the same for all its questions, but given.
    ours: Option<&'static str>,
    /// Why it may be.
    because: &'static str,
}

const ANY: &[&str] = &["once", "passthrough", "each"];
const REQUESTS: &[&str] = &["once", "each"];

const DIFFERENCES: &[Difference] = &[
    Difference {
        check: "lseek of a directory",
        questions: &["SEEK_END 0", "SEEK_HOLE 0"],
        opens: ANY,
        ours: Some("4096"),
        because: "the kernel's FUSE takes a directory's size for its end, which nobody can use",
    },
    Difference {
        check: "O_DIRECT",
        questions: &[
            "large: memory not",
            "large: length not",
            "large: offset not",
            "small: memory not",
            "small: length not",
        ],
        opens: REQUESTS,
        ours: None,
        because: "the file is read by a request, which wants nothing aligned; the bytes are compared elsewhere",
    },
    Difference {
        check: "O_DIRECT",
        questions: &["small: memory not", "small: length not"],
        opens: &["passthrough"],
        ours: None,
        because: "small files are read by requests",
    },
    Difference {
        check: "lseek",
        questions: &[
            "small SEEK_SET too",
            "large SEEK_SET too",
            "empty SEEK_SET too",
            "sparse SEEK_SET too",
            "hole SEEK_SET too",
        ],
        opens: ANY,
        ours: Some("9223372036854775807"),
        because: "the kernel's FUSE does not know how large files may be on the disk below",
    },
    Difference {
        check: "statx",
        questions: &["the birth time"],
        opens: ANY,
        ours: None,
        because: "birth times are not served: the FUSE library does not know the request",
    },
    Difference {
        check: "xattrs",
        questions: &["security.selinux"],
        opens: ANY,
        ours: Some("Operation not supported (os error 95)"),
        because: "where the store has no labels, a kernel without SELinux is what saves ls a request for each file",
    },
    Difference {
        check: "handles",
        questions: &["small", "dir", "link"],
        opens: ANY,
        ours: None,
        because: "the kernel's FUSE makes handles of inodes that it holds; overlayfs does with nfs_export alone",
    },
    Difference {
        check: "ioctl",
        questions: &["flags of", "FS_IOC_FSGETXATTR of"],
        opens: ANY,
        ours: Some("Inappropriate ioctl for device (os error 25)"),
        because: "flags such as immutable say what may be changed; nothing may be here",
    },
    Difference {
        check: "ioctl",
        questions: &["FIGETBSZ of", "FIBMAP of small", "FIBMAP of large"],
        opens: ANY,
        ours: Some("done"),
        because: "the kernel answers by itself, for a file system that is said to have blocks",
    },
    Difference {
        check: "ioctl",
        questions: &["FS_IOC_FIEMAP of small", "FS_IOC_FIEMAP of large"],
        opens: ANY,
        ours: Some("Operation not supported (os error 95)"),
        because: "FUSE has no such request; SEEK_DATA tells where the holes are",
    },
    Difference {
        check: "poll",
        questions: &["epoll of small"],
        opens: ANY,
        ours: Some("done"),
        because: "the kernel's FUSE lets a server have files that are waited for; ours are ready at once",
    },
];

// Layers.

const LARGE: usize = (3 << 20) + 17;
const PAGE: usize = 4096;
/// The longest name.
const LONG_NAME: [u8; 255] = [b'L'; 255];

fn layers() -> Stack {
    let mut lower = vec![
        dir(b"").mode(0o755),
        file("small", "hello world\n")
            .xattr("user.note", "value")
            .xattr("user.empty", "")
            .xattr("user.big", [b'v'; 1000]),
        file("large", noise(LARGE, 0)),
        file("empty", ""),
        file("executable", "#!/bin/sh\n").mode(0o755),
        file("closed", "secret").mode(0o600).owner(1000, 1000),
        sparse("sparse", 1 << 20, 512 << 10, noise(PAGE, 0)),
        sparse("hole", 300_000, 0, ""),
        symlink("link", "small"),
        symlink("long-link", [b'x'; 1000]),
        symlink("dangling", "nowhere"),
        symlink("loop", "loop"),
        symlink("absolute", "/small"),
        symlink("to-dir", "dir"),
        fifo("fifo"),
        socket("socket"),
        char_device("null", 1, 3).mode(0o666),
        link("hard", "small"),
        dir("empty-dir"),
        file("deep/a/b/c/file", "deep"),
        file([b"one/".as_slice(), &LONG_NAME].concat(), "1"),
        file([b"dir/".as_slice(), &LONG_NAME].concat(), "1"),
    ];
    let mut upper = vec![dir(b"").mode(0o755), file("upper", "upper"), whiteout("dir/name-007")];
    for n in 0..300 {
        lower.push(file(format!("dir/name-{n:03}"), format!("{n}")));
    }
    for n in 0..40 {
        upper.push(file(format!("dir/upper-{n:02}"), format!("{n}")));
        upper.push(dir(format!("dir/sub-{n:02}")));
    }
    stack(vec![upper, lower])
}

struct Bench {
    kernel: KernelOverlay,
    mount: Mounted,
    _dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = support::scratch("conduct");
        let stack = layers();
        let (store, directories) = stack.store(dir.path().join("docker"));
        let kernel = KernelOverlay::restricted(&directories).expect("mount kernel overlayfs");
        // The permissions of the files count, as they do on other file systems.
        let mount = Mounted::with(&store, &dir.path().join("mnt"), &["-o", "allow_other"], 0);
        Self { kernel, mount, _dir: dir }
    }
}

#[test]
fn every_call_is_answered_as_by_the_kernel() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new();
    let way = std::env::var("DOCKER_FS_TEST_OPENS").unwrap_or_else(|_| "once".to_owned());
    let listed: Vec<&Difference> = DIFFERENCES.iter().filter(|d| d.opens.contains(&way.as_str())).collect();
    let mut met: BTreeSet<(&str, &str)> = BTreeSet::new();
    let mut asked = 0;
    let mut trouble = Vec::new();
    for (check, ask) in CHECKS {
        let (expected, found) = (ask(&bench.kernel.path()), ask(&bench.mount.path().join("merged/t:1")));
        assert!(!expected.is_empty(), "{check} asks nothing");
        let questions = |lines: &Lines| lines.iter().map(|(question, _)| question.clone()).collect::<Vec<_>>();
        assert_eq!(questions(&expected), questions(&found), "{check}");
        let of_check: Vec<&&Difference> = listed.iter().filter(|difference| difference.check == *check).collect();
        for ((question, kernels), (_, ours)) in
            expected.iter().zip(&found).inspect(|_| asked += 1).filter(|(a, b)| a != b)
        {
            let known = of_check.iter().find_map(|difference| {
                let start = difference.questions.iter().find(|start| question.starts_with(**start))?;
                difference.ours.is_none_or(|wanted| wanted == ours).then_some(*start)
            });
            match known {
                Some(start) => drop(met.insert((check, start))),
                None => trouble.push(format!("{check}: {question}:\n    kernel: {kernels}\n    ours:   {ours}")),
            }
        }
    }
    for difference in &listed {
        for start in difference.questions.iter().filter(|start| !met.contains(&(difference.check, **start))) {
            trouble.push(format!("{}: {start}: no difference; listed since {}", difference.check, difference.because));
        }
    }
    assert!(asked > 400, "only {asked} questions");
    assert!(
        trouble.is_empty(),
        "{} of {asked} answers differ with opens={way}:\n{}",
        trouble.len(),
        trouble.join("\n")
    );
}

// Words.

fn told<T: Debug>(answer: Result<T, Errno>) -> String {
    match answer {
        Ok(answer) => format!("{answer:?}"),
        Err(error) => name_of(error),
    }
}

/// That it can be done, or why not.
fn done<T>(answer: Result<T, Errno>) -> String {
    answer.map_or_else(name_of, |_| "done".to_owned())
}

fn name_of(error: Errno) -> String {
    std::io::Error::from(error).to_string()
}

fn lines<Q: Into<String>, A: Into<String>>(all: impl IntoIterator<Item = (Q, A)>) -> Lines {
    all.into_iter().map(|(question, answer)| (question.into(), answer.into())).collect()
}

/// Many bytes as their number and a sum.
fn sum(bytes: &[u8]) -> String {
    format!("{} bytes {}", bytes.len(), &support::store::sha256_hex(bytes)[..12])
}

fn open(path: &Path) -> File {
    File::from(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap())
}

fn open_with(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))
}

// Directories.

struct Listed {
    name: Vec<u8>,
    kind: FileType,
    ino: u64,
    behind: u64,
}

/// What is left of an open directory, as far as the buffer lets it be read.
fn list(dir: impl AsFd, buffer: usize) -> (Vec<Listed>, Option<Errno>) {
    let mut space = vec![MaybeUninit::uninit(); buffer];
    let mut raw = RawDir::new(dir, &mut space);
    let mut all = Vec::new();
    while let Some(entry) = raw.next() {
        match entry {
            Ok(entry) => all.push(Listed {
                name: entry.file_name().to_bytes().to_vec(),
                kind: entry.file_type(),
                ino: entry.ino(),
                behind: entry.next_entry_cookie(),
            }),
            Err(error) => return (all, Some(error)),
        }
    }
    (all, None)
}

fn names(listed: &[Listed]) -> Vec<&[u8]> {
    listed.iter().map(|entry| entry.name.as_slice()).collect()
}

/// Names and types in the order of the names, which file systems choose freely otherwise.
fn sorted(listed: &[Listed]) -> String {
    let mut all: Vec<String> = listed.iter().map(|e| format!("{:?} {}", e.kind, e.name.escape_ascii())).collect();
    all.sort();
    sum(all.join("\n").as_bytes()) + &format!(" of {} names", all.len())
}

fn getdents(root: &Path) -> Lines {
    let mut all = Lines::new();
    for name in ["", "dir", "empty-dir", "deep/a"] {
        for buffer in [288, 512, 1024, 4096, 65_536] {
            let (listed, error) = list(open(&root.join(name)), buffer);
            all.push((format!("/{name} in {buffer} bytes"), format!("{} {error:?}", sorted(&listed))));
            let numbers = listed.iter().filter(|entry| entry.name != b".." && entry.name != b".");
            let wrong = numbers.filter(|entry| {
                let stat = rustix::fs::lstat(root.join(name).join(OsStr::from_bytes(&entry.name))).unwrap();
                (stat.st_ino, FileType::from_raw_mode(stat.st_mode)) != (entry.ino, entry.kind)
            });
            all.push((format!("/{name} in {buffer} bytes, what lstat tells otherwise"), wrong.count().to_string()));
        }
    }
    // "." and ".." take 24 bytes each, the longest name 280; which comes first is free.
    for buffer in [8, 16, 24, 48, 240, 272, 280] {
        let (listed, error) = list(open(&root.join("one")), buffer);
        let is_whole = listed.len() == 3;
        all.push((format!("/one in {buffer} bytes"), format!("whole: {is_whole}, {error:?}")));
    }
    let file = open(&root.join("small"));
    all.push(("of a file".into(), format!("{:?}", list(&file, 4096).1)));
    let unlisted = open_with(&root.join("dir"), OFlags::PATH).unwrap();
    all.push(("of O_PATH".into(), format!("{:?}", list(&unlisted, 4096).1)));
    let read = rustix::io::read(open(&root.join("dir")), &mut [0; 64]);
    all.push(("read of a directory".into(), told(read)));
    all
}

fn seekdir(root: &Path) -> Lines {
    let dir = open(&root.join("dir"));
    let (whole, _) = list(&dir, 65_536);
    let mut wrong = Vec::new();
    for (index, entry) in whole.iter().enumerate().rev() {
        rustix::fs::seek(&dir, SeekFrom::Start(entry.behind)).unwrap();
        if rustix::fs::tell(&dir) != Ok(entry.behind) || names(&list(&dir, 512).0) != names(&whole[index + 1..]) {
            wrong.push(index);
        }
    }
    rustix::fs::seek(&dir, SeekFrom::Start(0)).unwrap();
    let again = list(&dir, 65_536).0;
    // Another descriptor knows the same places.
    let other = open(&root.join("dir"));
    rustix::fs::seek(&other, SeekFrom::Start(whole[100].behind)).unwrap();
    lines([
        ("places that lead elsewhere", format!("{wrong:?}")),
        ("from the start again", (names(&again) == names(&whole)).to_string()),
        ("places of another descriptor", (names(&list(&other, 4096).0) == names(&whole[101..])).to_string()),
        ("places grow", whole.is_sorted_by(|a, b| a.behind < b.behind).to_string()),
        ("the end stays the end", list(&dir, 4096).0.len().to_string()),
    ])
}

/// Readers with descriptors of their own rewind beside each other; others share one.
fn rewinddir(root: &Path) -> Lines {
    let path = root.join("dir");
    let whole = sorted(&list(open(&path), 65_536).0);
    let same: Vec<bool> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|reader| {
                let (path, whole) = (&path, &whole);
                scope.spawn(move || {
                    let dir = open(path);
                    (0..25).all(|_| {
                        rustix::fs::seek(&dir, SeekFrom::Start(0)).unwrap();
                        // Left in the middle, then begun again.
                        let mut part = [MaybeUninit::uninit(); 400];
                        RawDir::new(&dir, &mut part).next();
                        rustix::fs::seek(&dir, SeekFrom::Start(0)).unwrap();
                        sorted(&list(&dir, 300 + 1000 * reader).0) == *whole
                    })
                })
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    let shared = open(&path);
    let mut all: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let shared = &shared;
        let readers: Vec<_> = (0..4).map(|_| scope.spawn(move || list(shared, 300).0)).collect();
        readers.into_iter().flat_map(|reader| reader.join().unwrap()).map(|entry| entry.name).collect()
    });
    let read = all.len();
    all.sort();
    all.dedup();
    lines([
        ("beside each other", format!("{same:?}")),
        ("of one descriptor", format!("{read} names, {} of them different", all.len())),
    ])
}

fn lseek_of_a_directory(root: &Path) -> Lines {
    let dir = open(&root.join("empty-dir"));
    let seek = |to| told(rustix::fs::seek(&dir, to));
    lines([
        ("SEEK_SET 0", seek(SeekFrom::Start(0))),
        ("SEEK_SET 3", seek(SeekFrom::Start(3))),
        ("SEEK_CUR 0", seek(SeekFrom::Current(0))),
        ("SEEK_CUR -10", seek(SeekFrom::Current(-10))),
        ("SEEK_END 0", seek(SeekFrom::End(0))),
        ("SEEK_DATA 0", seek(SeekFrom::Data(0))),
        ("SEEK_HOLE 0", seek(SeekFrom::Hole(0))),
    ])
}

// Opening.

const PLACES: [&str; 22] = [
    "small",
    "large",
    "empty",
    "closed",
    "dir",
    "empty-dir",
    "absent",
    "empty-dir/absent",
    "link",
    "dangling",
    "loop",
    "to-dir",
    "fifo",
    "socket",
    "null",
    "small/x",
    "absent/x",
    "dir/.",
    "dir/..",
    "dir/",
    "small/",
    "link/",
];

fn open_flags(root: &Path) -> Lines {
    let flags = [
        ("O_RDONLY", OFlags::empty()),
        ("O_WRONLY", OFlags::WRONLY),
        ("O_RDWR", OFlags::RDWR),
        ("O_CREAT", OFlags::CREATE),
        ("O_CREAT|O_RDWR", OFlags::CREATE | OFlags::RDWR),
        ("O_CREAT|O_EXCL", OFlags::CREATE | OFlags::EXCL),
        ("O_TRUNC", OFlags::TRUNC),
        ("O_TRUNC|O_WRONLY", OFlags::TRUNC | OFlags::WRONLY),
        ("O_APPEND", OFlags::APPEND),
        ("O_APPEND|O_WRONLY", OFlags::APPEND | OFlags::WRONLY),
        ("O_TMPFILE|O_RDWR", OFlags::TMPFILE | OFlags::RDWR),
        ("O_DIRECTORY", OFlags::DIRECTORY),
        ("O_NOFOLLOW", OFlags::NOFOLLOW),
        ("O_PATH", OFlags::PATH),
        ("O_PATH|O_NOFOLLOW", OFlags::PATH | OFlags::NOFOLLOW),
        ("O_NOATIME", OFlags::NOATIME),
        ("O_SYNC", OFlags::SYNC),
        ("O_DIRECT", OFlags::DIRECT),
    ];
    let mut all = Lines::new();
    for (name, flags) in flags {
        for place in PLACES {
            // A FIFO would wait for its other end.
            let opened = open_with(&root.join(place), flags | OFlags::NONBLOCK);
            all.push((format!("{place} {name}"), done(opened)));
        }
    }
    all
}

fn openat2(root: &Path) -> Lines {
    let dir = open(root);
    let mut all = Lines::new();
    for (name, resolve) in [
        ("beneath", ResolveFlags::BENEATH),
        ("in root", ResolveFlags::IN_ROOT),
        ("no symlinks", ResolveFlags::NO_SYMLINKS),
        ("no other mount", ResolveFlags::NO_XDEV),
    ] {
        for place in ["small", "link", "absolute", "dir/../small", "../small", "to-dir/name-000", "dangling", "loop"] {
            // Beside the one root there is nothing, beside the other there is.
            if place.starts_with("..") && !name.ends_with("beneath") && !name.ends_with("root") {
                continue;
            }
            let opened = rustix::fs::openat2(&dir, place, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), resolve);
            all.push((format!("{place} {name}"), done(opened)));
        }
    }
    all
}

fn paths(root: &Path) -> Lines {
    let mut all = Lines::new();
    let long = |length: usize| String::from_utf8(vec![b'n'; length]).unwrap();
    for (question, path) in [
        ("the longest name", root.join("dir").join(OsStr::from_bytes(&LONG_NAME))),
        ("an absent name of 255 bytes", root.join(long(255))),
        ("a name of 256 bytes", root.join(long(256))),
        ("a name of 1,024 bytes", root.join(long(1024))),
        ("a name of 1,025 bytes", root.join(long(1025))),
        ("a name of 4,000 bytes", root.join(long(4000))),
        ("a path of 5,000 bytes", root.join("deep/../".repeat(625)).join("small")),
        ("through a file", root.join("small/..")),
        ("through an absent name", root.join("absent/../small")),
        ("through a link to a directory", root.join("to-dir/../small")),
        ("through a loop", root.join("loop/x")),
        ("a name that is no text", root.join(OsStr::from_bytes(b"\xff\xfe\n"))),
        ("a deletion mark", root.join("dir/.wh.name-007")),
        ("a deleted name", root.join("dir/name-007")),
    ] {
        all.push((question.to_owned(), done(rustix::fs::stat(&path))));
    }
    all.push(("no path".to_owned(), done(rustix::fs::statat(open(root), "", AtFlags::empty()))));
    all.push(("the descriptor itself".to_owned(), done(rustix::fs::statat(open(root), "", AtFlags::EMPTY_PATH))));
    all
}

// Reading.

fn pread(root: &Path) -> Lines {
    let mut all = Lines::new();
    for name in ["small", "large", "empty", "sparse", "hole", "hard", "upper"] {
        let file = open(&root.join(name));
        let size = file.metadata().unwrap().len();
        for offset in [
            0,
            1,
            4095,
            4096,
            131_071,
            524_287,
            1 << 20,
            size.saturating_sub(1),
            size,
            size + 1,
            1 << 40,
            i64::MAX as u64,
        ] {
            for length in [0, 1, 17, 4096, 131_073, 1 << 21] {
                let mut space = vec![0; length];
                let answer = rustix::io::pread(&file, &mut space, offset).map(|filled| sum(&space[..filled]));
                all.push((format!("{name}: {length} bytes at {offset}"), told(answer)));
            }
        }
    }
    let file = open(&root.join("small"));
    all.push(("at a negative offset".into(), told(rustix::io::pread(&file, &mut [0; 4], u64::MAX))));
    let unopened = open_with(&root.join("small"), OFlags::PATH).unwrap();
    all.push(("of O_PATH".into(), told(rustix::io::pread(unopened, &mut [0; 4], 0))));
    all
}

fn readv(root: &Path) -> Lines {
    let mut all = Lines::new();
    for name in ["small", "large", "empty"] {
        let file = open(&root.join(name));
        let (mut a, mut b, mut c) = (vec![0; 5], vec![0; 0], vec![0; 5000]);
        let mut pieces = [&mut a, &mut b, &mut c].map(|piece| IoSliceMut::new(piece));
        let first = rustix::io::readv(&file, &mut pieces);
        let place = rustix::fs::tell(&file);
        let second = rustix::io::readv(&file, &mut pieces[2..]);
        all.push((format!("readv of {name}"), format!("{first:?} at {place:?}, then {second:?}")));
        all.push((format!("what readv read of {name}"), sum(&[a, c].concat())));
        let mut d = vec![0; 100];
        let answer = rustix::io::preadv(&file, &mut [IoSliceMut::new(&mut d)], 7);
        all.push((format!("preadv of {name}"), format!("{answer:?} {}", sum(&d))));
        all.push((format!("readv of nothing of {name}"), told(rustix::io::readv(&file, &mut []))));
    }
    all
}

fn preadv2(root: &Path) -> Lines {
    let mut all = Lines::new();
    for name in ["small", "large"] {
        let file = open(&root.join(name));
        // In the cache, so that who does not wait need not.
        let _ = rustix::io::pread(&file, &mut [0; 64], 0);
        for (flag, flags) in [
            ("no flag", ReadWriteFlags::empty()),
            ("RWF_HIPRI", ReadWriteFlags::HIPRI),
            ("RWF_NOWAIT", ReadWriteFlags::NOWAIT),
            ("RWF_DSYNC", ReadWriteFlags::DSYNC),
            ("RWF_APPEND", ReadWriteFlags::APPEND),
            ("an unknown flag", ReadWriteFlags::from_bits_retain(1 << 30)),
        ] {
            let mut space = [0; 64];
            let answer = rustix::io::preadv2(&file, &mut [IoSliceMut::new(&mut space)], 3, flags);
            all.push((format!("{name} with {flag}"), format!("{} {}", told(answer), sum(&space))));
        }
        let mut space = [0; 5];
        rustix::fs::seek(&file, SeekFrom::Start(2)).unwrap();
        // -1 is "from where the descriptor is".
        let answer = rustix::io::preadv2(&file, &mut [IoSliceMut::new(&mut space)], u64::MAX, ReadWriteFlags::empty());
        all.push((
            format!("{name} from its place"),
            format!("{answer:?} {} {:?}", sum(&space), rustix::fs::tell(&file)),
        ));
    }
    all
}

fn direct(root: &Path) -> Lines {
    let mut all = Lines::new();
    for name in ["large", "small", "sparse"] {
        let file = match open_with(&root.join(name), OFlags::DIRECT) {
            Ok(file) => file,
            Err(error) => {
                all.push((format!("open {name}"), name_of(error)));
                continue;
            }
        };
        let mut space = vec![0; (1 << 20) + 2 * PAGE];
        let start = space.as_ptr().align_offset(PAGE);
        for (what, skip, length, offset) in [
            ("aligned", 0, 1 << 20, 0),
            ("aligned, in the middle", 0, 64 << 10, 1 << 20),
            ("aligned, over the end", 0, 1 << 20, 3 << 20),
            ("aligned, behind the end", 0, PAGE, 8 << 20),
            ("memory not aligned", 1, PAGE, 0),
            ("length not aligned", 0, 1000, 0),
            ("offset not aligned", 0, PAGE, 100),
        ] {
            let into = &mut space[start + skip..start + skip + length];
            let answer = rustix::io::pread(&file, &mut *into, offset).map(|filled| sum(&into[..filled]));
            all.push((format!("{name}: {what}"), told(answer)));
        }
    }
    all
}

/// What a mapping shows of a file, and what a byte that is written into it does.
fn map(file: &File, length: usize, prot: ProtFlags, flags: MapFlags, offset: u64) -> Result<String, Errno> {
    let writes = prot.contains(ProtFlags::WRITE);
    calls::mapped(file, length, prot, flags, offset, |bytes| {
        let before = sum(bytes);
        if !writes {
            return before;
        }
        bytes[1] = bytes[1].wrapping_add(1);
        format!("{before}, written: {}, in the file: {}", sum(bytes), {
            let mut one = [0];
            rustix::io::pread(file, &mut one, offset + 1).unwrap();
            one[0] == bytes[1]
        })
    })
}

fn mmap(root: &Path) -> Lines {
    let (read, write) = (ProtFlags::READ, ProtFlags::READ | ProtFlags::WRITE);
    let mut all = Lines::new();
    for (name, length) in
        [("small", 12), ("small", PAGE), ("large", LARGE), ("large", 4 << 20), ("sparse", 1 << 20), ("hole", 300_000)]
    {
        let file = open(&root.join(name));
        // Behind the last page of a file there is nothing to look at.
        let size = usize::try_from(file.metadata().unwrap().len()).unwrap();
        let length = length.min(size.next_multiple_of(PAGE));
        for (what, prot, flags) in [
            ("shared", read, MapFlags::SHARED),
            ("private", read, MapFlags::PRIVATE),
            ("private, to write", write, MapFlags::PRIVATE),
            ("shared, to write", write, MapFlags::SHARED),
            ("shared, to run", read | ProtFlags::EXEC, MapFlags::SHARED),
            ("populated", read, MapFlags::PRIVATE | MapFlags::POPULATE),
        ] {
            all.push((format!("{length} bytes of {name}, {what}"), told(map(&file, length, prot, flags, 0))));
        }
        // Who looks behind the last page of a file is killed.
        if size > PAGE {
            all.push((
                format!("{name} from its second page"),
                told(map(&file, 10, read, MapFlags::SHARED, PAGE as u64)),
            ));
        }
        all.push((format!("{name} from a place that is no page's"), done(map(&file, 10, read, MapFlags::SHARED, 100))));
    }
    let unopened = File::from(open_with(&root.join("small"), OFlags::PATH).unwrap());
    all.push(("of O_PATH".into(), done(map(&unopened, 10, read, MapFlags::SHARED, 0))));
    let dir = open(&root.join("dir"));
    all.push(("of a directory".into(), done(map(&dir, 10, read, MapFlags::SHARED, 0))));
    all
}

/// All that a pipe has, until it ends.
fn drain(pipe: OwnedFd) -> Vec<u8> {
    let mut all = Vec::new();
    std::io::Read::read_to_end(&mut File::from(pipe), &mut all).unwrap();
    all
}

fn splice(root: &Path) -> Lines {
    let mut all = Lines::new();
    for name in ["small", "large", "empty", "sparse"] {
        for (what, start) in [("from the start", 0), ("from the middle", 5)] {
            let file = open(&root.join(name));
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            let taker = std::thread::spawn(move || drain(reader));
            let mut offset = start;
            let ended = loop {
                match rustix::pipe::splice(&file, Some(&mut offset), &writer, None, 1 << 20, SpliceFlags::empty()) {
                    Ok(0) => break "the end".to_owned(),
                    Ok(_) => {}
                    Err(error) => break name_of(error),
                }
            };
            drop(writer);
            all.push((format!("{name} {what}"), format!("{} and {ended} at {offset}", sum(&taker.join().unwrap()))));
        }
    }
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    rustix::io::write(&writer, b"bytes").unwrap();
    let file = open(&root.join("small"));
    all.push(("into a file".into(), told(rustix::pipe::splice(&reader, None, &file, None, 5, SpliceFlags::empty()))));
    all
}

fn sendfile(root: &Path) -> Lines {
    let mut all = Lines::new();
    for name in ["small", "large", "empty", "sparse"] {
        let file = open(&root.join(name));
        let out = tempfile::tempfile().unwrap();
        let mut offset = 3;
        let ended = loop {
            match rustix::fs::sendfile(&out, &file, Some(&mut offset), 1 << 20) {
                Ok(0) => break "the end".to_owned(),
                Ok(_) => {}
                Err(error) => break name_of(error),
            }
        };
        let mut copy = vec![0; LARGE];
        let length = rustix::io::pread(&out, &mut copy, 0).unwrap();
        all.push((format!("{name} to a file"), format!("{} and {ended} at {offset}", sum(&copy[..length]))));
        all.push((format!("{name}'s own place"), told(rustix::fs::tell(&file))));
    }
    let file = open(&root.join("small"));
    all.push(("into a file".into(), told(rustix::fs::sendfile(&file, &file, None, 5))));
    all
}

fn copy_file_range(root: &Path) -> Lines {
    let mut all = Lines::new();
    for name in ["small", "large", "empty"] {
        let file = open(&root.join(name));
        let out = tempfile::tempfile().unwrap();
        let copied = rustix::fs::copy_file_range(&file, Some(&mut 0), &out, Some(&mut 0), LARGE);
        all.push((format!("{name} to another file system"), told(copied)));
        all.push((format!("{name} to itself"), told(rustix::fs::copy_file_range(&file, None, &file, None, 5))));
        let target = tempfile::NamedTempFile::new().unwrap();
        // As programs do, which have another way where there is none of the kernel's.
        std::fs::copy(root.join(name), target.path()).unwrap();
        all.push((format!("{name} copied"), sum(&std::fs::read(target.path()).unwrap())));
    }
    all
}

fn lseek(root: &Path) -> Lines {
    let mut all = Lines::new();
    for name in ["small", "large", "empty", "sparse", "hole"] {
        let file = open(&root.join(name));
        let size = file.metadata().unwrap().len();
        for offset in [0, 1, 4096, 300_000, 520_000, 524_288, 528_384, size.saturating_sub(1), size, size + 1, 1 << 50]
        {
            all.push((format!("{name} SEEK_DATA {offset}"), told(rustix::fs::seek(&file, SeekFrom::Data(offset)))));
            all.push((format!("{name} SEEK_HOLE {offset}"), told(rustix::fs::seek(&file, SeekFrom::Hole(offset)))));
        }
        for (what, to) in [
            ("SEEK_SET behind the end", SeekFrom::Start(size + 100)),
            ("SEEK_CUR", SeekFrom::Current(-50)),
            ("SEEK_CUR before the start", SeekFrom::Current(-(1 << 40))),
            ("SEEK_END", SeekFrom::End(-1)),
            ("SEEK_END behind the end", SeekFrom::End(10)),
            ("SEEK_SET too far", SeekFrom::Start(i64::MAX as u64)),
            ("SEEK_SET nowhere", SeekFrom::Start(u64::MAX)),
        ] {
            all.push((format!("{name} {what}"), told(rustix::fs::seek(&file, to))));
        }
        rustix::fs::seek(&file, SeekFrom::Start(size + 10)).unwrap();
        all.push((format!("{name} read behind the end"), told(rustix::io::read(&file, &mut [0; 10]))));
    }
    all
}

// Attributes.

fn statx(root: &Path) -> Lines {
    let mut all = Lines::new();
    let masks = [
        ("nothing", StatxFlags::empty()),
        ("the type", StatxFlags::TYPE),
        ("the size", StatxFlags::SIZE),
        ("the basics", StatxFlags::BASIC_STATS),
        ("the number of the mount", StatxFlags::MNT_ID),
        ("what O_DIRECT wants", StatxFlags::DIOALIGN),
        ("a reserved bit", StatxFlags::from_bits_retain(0x8000_0000)),
    ];
    let syncs = [
        ("as it is", AtFlags::empty()),
        ("asked anew", AtFlags::STATX_FORCE_SYNC),
        ("from memory", AtFlags::STATX_DONT_SYNC),
    ];
    for place in ["small", "large", "empty", "hole", "link", "dangling", "fifo", "null", "hard", "closed", "absent"] {
        for ((mask_name, mask), (sync_name, sync)) in
            masks.iter().flat_map(|mask| syncs.iter().map(move |sync| (mask, sync)))
        {
            let flags = *sync | AtFlags::SYMLINK_NOFOLLOW;
            let answer = rustix::fs::statx(CWD, root.join(place), flags, *mask).map(|found| {
                // More than was asked for may be told, or not.
                let basics = StatxFlags::BASIC_STATS.bits() & mask.bits();
                let is_asked = |flag: StatxFlags| basics & flag.bits() > 0;
                let time = |time: rustix::fs::StatxTimestamp| (time.tv_sec, time.tv_nsec);
                (
                    format!("mask {:x} of {:x}", found.stx_mask & basics, basics),
                    is_asked(StatxFlags::TYPE).then_some(found.stx_mode),
                    is_asked(StatxFlags::SIZE).then_some(found.stx_size),
                    is_asked(StatxFlags::NLINK).then_some((found.stx_nlink, found.stx_uid, found.stx_gid)),
                    is_asked(StatxFlags::BLOCKS).then_some(found.stx_blocks),
                    is_asked(StatxFlags::MTIME).then_some((time(found.stx_mtime), time(found.stx_ctime))),
                    (found.stx_rdev_major, found.stx_rdev_minor),
                )
            });
            all.push((format!("{mask_name} of {place}, {sync_name}"), told(answer)));
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let born = rustix::fs::statx(CWD, root.join(place), flags, StatxFlags::BTIME);
        let is_told = born.map(|found| found.stx_mask & StatxFlags::BTIME.bits() > 0);
        all.push((format!("the birth time of {place}"), told(is_told)));
    }
    all
}

fn statfs(root: &Path) -> Lines {
    let mut all = Lines::new();
    for place in ["", "small", "dir"] {
        let found = rustix::fs::statvfs(root.join(place)).unwrap();
        all.push((format!("flags of /{place}"), format!("{:?}", found.f_flag)));
        all.push((
            format!("sizes of /{place}"),
            format!("{} {} {} {}", found.f_bsize, found.f_frsize, found.f_blocks, found.f_namemax),
        ));
    }
    all
}

fn access(root: &Path) -> Lines {
    let mut all = Lines::new();
    for place in PLACES.into_iter().chain(["executable"]) {
        for (what, mode) in [
            ("F_OK", Access::EXISTS),
            ("R_OK", Access::READ_OK),
            ("W_OK", Access::WRITE_OK),
            ("X_OK", Access::EXEC_OK),
            ("R_OK|X_OK", Access::READ_OK | Access::EXEC_OK),
        ] {
            for (how, flags) in [
                ("", AtFlags::empty()),
                (" AT_EACCESS", AtFlags::EACCESS),
                (" AT_SYMLINK_NOFOLLOW", AtFlags::SYMLINK_NOFOLLOW),
            ] {
                let answer = rustix::fs::accessat(CWD, root.join(place), mode, flags);
                all.push((format!("{place} {what}{how}"), done(answer)));
            }
        }
    }
    all
}

// Changing.

fn times(nanoseconds: i64) -> Timestamps {
    let time = Timespec { tv_sec: 1, tv_nsec: nanoseconds };
    Timestamps { last_access: time, last_modification: time }
}

fn modify_by_path(root: &Path) -> Lines {
    let mode = Mode::from_raw_mode(0o644);
    let flags = AtFlags::empty();
    let user = Some(rustix::fs::Uid::from_raw(1));
    let elsewhere = tempfile::tempdir().unwrap();
    let mut all = Lines::new();
    for place in [
        "small",
        "dir",
        "empty-dir",
        "absent",
        "empty-dir/absent",
        "link",
        "dangling",
        "fifo",
        "null",
        "small/x",
        "dir/.",
    ] {
        let path = root.join(place);
        let mut ask = |what: &str, answer: Result<(), Errno>| all.push((format!("{what} {place}"), done(answer)));
        ask("mkdir", rustix::fs::mkdir(&path, mode));
        ask("mknod a file", rustix::fs::mknodat(CWD, &path, FileType::RegularFile, mode, 0));
        ask("mknod a fifo", rustix::fs::mknodat(CWD, &path, FileType::Fifo, mode, 0));
        ask("mknod a device", rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, mode, 0));
        ask("symlink", rustix::fs::symlink("x", &path));
        ask("link to", rustix::fs::link(root.join("upper"), &path));
        ask("link from", rustix::fs::link(&path, root.join("new")));
        ask("link from elsewhere", rustix::fs::link(elsewhere.path(), &path));
        ask("unlink", rustix::fs::unlink(&path));
        ask("rmdir", rustix::fs::rmdir(&path));
        ask("rename from", rustix::fs::rename(&path, root.join("new")));
        ask("rename to", rustix::fs::rename(root.join("upper"), &path));
        ask("rename to itself", rustix::fs::rename(&path, &path));
        ask("rename to elsewhere", rustix::fs::rename(&path, elsewhere.path().join("new")));
        for (what, how) in [
            ("rename, nothing replaced", RenameFlags::NOREPLACE),
            ("exchange", RenameFlags::EXCHANGE),
            ("rename and whiteout", RenameFlags::WHITEOUT),
        ] {
            ask(what, rustix::fs::renameat_with(CWD, root.join("upper"), CWD, &path, how));
        }
        ask("truncate", calls::truncate(&path));
        ask("chmod", rustix::fs::chmodat(CWD, &path, mode, flags));
        ask("chown", rustix::fs::chownat(CWD, &path, user, None, flags));
        ask("chown to nobody else", rustix::fs::chownat(CWD, &path, None, None, flags));
        ask("lchown", rustix::fs::chownat(CWD, &path, user, None, AtFlags::SYMLINK_NOFOLLOW));
        ask("utimensat", rustix::fs::utimensat(CWD, &path, &times(5), flags));
        ask("utimensat now", rustix::fs::utimensat(CWD, &path, &times(UTIME_NOW), flags));
        ask("utimensat of nothing", rustix::fs::utimensat(CWD, &path, &times(UTIME_OMIT), flags));
        ask("utimensat of no time", rustix::fs::utimensat(CWD, &path, &times(2_000_000_000), flags));
        for name in [
            "user.note",
            "trusted.x",
            "security.capability",
            "system.posix_acl_access",
            "trusted.overlay.opaque",
            "bogus.x",
            "",
        ] {
            ask(&format!("setxattr {name}"), rustix::fs::setxattr(&path, name, b"1", XattrFlags::empty()));
            ask(&format!("lsetxattr {name}"), rustix::fs::lsetxattr(&path, name, b"1", XattrFlags::empty()));
            ask(&format!("removexattr {name}"), rustix::fs::removexattr(&path, name));
        }
    }
    all
}

fn modify_by_descriptor(root: &Path) -> Lines {
    let mut all = Lines::new();
    for place in ["small", "large", "dir"] {
        let file = open(&root.join(place));
        let mut ask = |what: &str, answer: Result<(), Errno>| all.push((format!("{what} {place}"), done(answer)));
        ask("write", rustix::io::write(&file, b"1").map(drop));
        ask("pwrite", rustix::io::pwrite(&file, b"1", 0).map(drop));
        ask("ftruncate", rustix::fs::ftruncate(&file, 1));
        ask("fallocate", rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 10));
        ask(
            "fallocate a hole",
            rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 10),
        );
        ask("fchmod", rustix::fs::fchmod(&file, Mode::from_raw_mode(0o600)));
        ask("fchown", rustix::fs::fchown(&file, Some(rustix::fs::Uid::from_raw(1)), None));
        ask("futimens", rustix::fs::futimens(&file, &times(5)));
        ask("fsetxattr", rustix::fs::fsetxattr(&file, "user.note", b"1", XattrFlags::empty()));
        ask("fremovexattr", rustix::fs::fremovexattr(&file, "user.note"));
        ask("fsync", rustix::fs::fsync(&file));
        ask("fdatasync", rustix::fs::fdatasync(&file));
        ask("syncfs", rustix::fs::syncfs(&file));
        ask("clone into", rustix::fs::ioctl_ficlone(&file, &file));
        ask("set flags", rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::NOATIME));
        ask("link an open file", rustix::fs::linkat(&file, "", CWD, root.join("new"), AtFlags::EMPTY_PATH));
    }
    all
}

// Extended attributes and links.

fn xattrs(root: &Path) -> Lines {
    let mut all = Lines::new();
    let long = format!("user.{}", "n".repeat(251));
    let longest = format!("user.{}", "n".repeat(250));
    for place in ["small", "large", "dir", "link", "dangling", "fifo", "absent"] {
        let path = root.join(place);
        for size in [0, 1, 21, 25, 30, 31, 32, 1000, 70_000] {
            let mut space = vec![0_u8; size];
            all.push((
                format!("list of {place} in {size} bytes"),
                listed(rustix::fs::listxattr(&path, &mut space), &space),
            ));
            let mut space = vec![0_u8; size];
            all.push((
                format!("llist of {place} in {size} bytes"),
                listed(rustix::fs::llistxattr(&path, &mut space), &space),
            ));
        }
        for name in [
            "user.note",
            "user.empty",
            "user.big",
            "user.absent",
            "user.",
            "trusted.absent",
            "security.capability",
            "security.selinux",
            "system.posix_acl_access",
            "bogus.name",
            "bogus",
            "",
            &longest,
            &long,
        ] {
            for size in [0, 1, 4, 5, 6, 999, 1000, 1001, 70_000] {
                let mut space = vec![0_u8; size];
                let length = rustix::fs::getxattr(&path, name, &mut space);
                let value = length.map(|length| sum(space.get(..length).unwrap_or_default()) + &format!(" {length}"));
                all.push((format!("{name:.20} {} of {place} in {size} bytes", name.len()), told(value)));
            }
            let mut space = [0_u8; 100];
            all.push((
                format!("{name:.20} {} of {place} itself", name.len()),
                told(rustix::fs::lgetxattr(&path, name, &mut space)),
            ));
        }
    }
    let file = open(&root.join("small"));
    let mut space = [0_u8; 100];
    all.push(("by descriptor".into(), told(rustix::fs::fgetxattr(&file, "user.note", &mut space))));
    let unopened = open_with(&root.join("small"), OFlags::PATH).unwrap();
    all.push(("by O_PATH".into(), told(rustix::fs::fgetxattr(unopened, "user.note", &mut space))));
    all
}

/// The names of a list in their order, which file systems choose freely.
fn listed(length: Result<usize, Errno>, space: &[u8]) -> String {
    told(length.map(|length| {
        let names = space.get(..length).unwrap_or_default().split(|byte| *byte == 0);
        let mut names: Vec<String> = names.map(|name| name.escape_ascii().to_string()).collect();
        names.sort();
        format!("{length}: {names:?}")
    }))
}

fn readlink(root: &Path) -> Lines {
    let mut all = Lines::new();
    for place in ["link", "long-link", "dangling", "loop", "absolute", "small", "dir", "fifo", "absent"] {
        for size in [0, 1, 4, 5, 6, 999, 1000, 1001, 5000] {
            let mut space = vec![0_u8; size];
            let answer = rustix::fs::readlinkat_raw(CWD, root.join(place), space.as_mut_slice());
            all.push((format!("{place} in {size} bytes"), told(answer.map(|length| sum(&space[..length])))));
        }
    }
    let link = open_with(&root.join("link"), OFlags::PATH | OFlags::NOFOLLOW).unwrap();
    all.push(("by descriptor".into(), told(rustix::fs::readlinkat(link, "", Vec::new()))));
    all
}

// Handles, watches, locks.

fn handles(root: &Path) -> Lines {
    let mut all = Lines::new();
    for place in ["small", "dir", "link", "absent"] {
        let path = root.join(place);
        all.push((format!("{place}, no room"), done(calls::handle(&path, 0, 0))));
        all.push((format!("{place}, room"), done(calls::handle(&path, 128, 0))));
        all.push((format!("{place}, for its identity"), done(calls::handle(&path, 128, calls::AT_HANDLE_FID))));
        let again = calls::handle(&path, 128, 0);
        let mount = open(root);
        let opened = again.and_then(|handle| calls::open_handle(&mount, handle));
        all.push((
            format!("{place}, opened by it"),
            opened.map_or_else(name_of, |file| {
                let name = rustix::fs::fstat(&file).unwrap().st_ino == rustix::fs::stat(&path).unwrap().st_ino;
                format!("the same: {name}")
            }),
        ));
    }
    all
}

fn watches(root: &Path) -> Lines {
    use inotify::WatchFlags;
    let mut all = Lines::new();
    for place in ["small", "large", "dir", "link", "absent", "fifo"] {
        let watcher = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
        let path = root.join(place);
        let added = inotify::add_watch(&watcher, &path, WatchFlags::ALL_EVENTS);
        all.push((format!("watch {place}"), done(added)));
        if added.is_err() || place == "fifo" {
            continue;
        }
        if place == "dir" {
            list(open(&path), 65_536);
            let _ = std::fs::read(path.join("name-001"));
        } else {
            let _ = std::fs::read(&path);
        }
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&watcher, &mut space);
        let mut events = BTreeSet::new();
        while let Ok(event) = reader.next() {
            events.insert(format!("{:?} {:?}", event.events(), event.file_name()));
        }
        all.push((format!("what is told of {place}"), format!("{events:?}")));
    }
    all
}

fn fanotify(root: &Path) -> Lines {
    let mut all = Lines::new();
    for (how, class) in
        [("by descriptor", libc::FAN_CLASS_NOTIF), ("by identity", libc::FAN_CLASS_NOTIF | libc::FAN_REPORT_FID)]
    {
        for place in ["small", "dir", "absent"] {
            all.push((
                format!("watch {place} {how}"),
                calls::watch(&root.join(place), class).map_or_else(name_of, |watcher| {
                    let _ = std::fs::read(root.join("small"));
                    let mut space = [0; 4096];
                    let told = rustix::io::read(&watcher, &mut space).map(|length| length > 0);
                    format!("done, told of what is read: {told:?}")
                }),
            ));
        }
    }
    all
}

fn flock(root: &Path) -> Lines {
    let mut all = Lines::new();
    for place in ["small", "large", "dir"] {
        let (one, other) = (open(&root.join(place)), open(&root.join(place)));
        let mut ask = |what: &str, answer: Result<(), Errno>| all.push((format!("{what} of {place}"), done(answer)));
        ask("shared", rustix::fs::flock(&one, FlockOperation::NonBlockingLockShared));
        ask("shared too", rustix::fs::flock(&other, FlockOperation::NonBlockingLockShared));
        ask("exclusive while shared", rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive));
        ask("unlock", rustix::fs::flock(&one, FlockOperation::Unlock));
        ask("exclusive", rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive));
        ask("shared while exclusive", rustix::fs::flock(&one, FlockOperation::NonBlockingLockShared));
    }
    all
}

fn fcntl(root: &Path) -> Lines {
    let mut all = Lines::new();
    for place in ["small", "large", "dir"] {
        let file = open(&root.join(place));
        for (what, command, kind) in [
            ("a read lock", libc::F_SETLK, libc::F_RDLCK),
            ("a write lock", libc::F_SETLK, libc::F_WRLCK),
            ("a read lock of the description", libc::F_OFD_SETLK, libc::F_RDLCK),
            ("a write lock of the description", libc::F_OFD_SETLK, libc::F_WRLCK),
            ("no lock", libc::F_SETLK, libc::F_UNLCK),
            ("who locks", libc::F_GETLK, libc::F_WRLCK),
        ] {
            all.push((format!("{what} of {place}"), done(calls::lock(&file, command, kind))));
        }
        all.push((format!("a lease to read of {place}"), done(calls::lease(&file, libc::F_RDLCK))));
        all.push((format!("a lease to write of {place}"), done(calls::lease(&file, libc::F_WRLCK))));
        let flags = rustix::fs::fcntl_getfl(&file).map(|flags| flags.difference(OFlags::LARGEFILE));
        all.push((format!("flags of {place}"), told(flags)));
        all.push((format!("seals of {place}"), told(rustix::fs::fcntl_get_seals(&file))));
    }
    all
}

fn ioctl(root: &Path) -> Lines {
    /// From `linux/fs.h`.
    const FIGETBSZ: u64 = 2;
    const FIBMAP: u64 = 1;
    const FS_IOC_GETVERSION: u64 = 0x8008_7601;
    const FS_IOC_FSGETXATTR: u64 = 0x801c_581f;
    const FS_IOC_FIEMAP: u64 = 0xc020_660b;
    const BLKGETSIZE64: u64 = 0x8008_1272;
    let mut all = Lines::new();
    for place in ["small", "large", "dir"] {
        let file = open(&root.join(place));
        all.push((format!("flags of {place}"), done(rustix::fs::ioctl_getflags(&file))));
        all.push((format!("FIONREAD of {place}"), told(rustix::io::ioctl_fionread(&file))));
        for (what, request) in [
            ("FIGETBSZ", FIGETBSZ),
            ("FIBMAP", FIBMAP),
            ("FS_IOC_GETVERSION", FS_IOC_GETVERSION),
            ("FS_IOC_FSGETXATTR", FS_IOC_FSGETXATTR),
            ("FS_IOC_FIEMAP", FS_IOC_FIEMAP),
            ("BLKGETSIZE64", BLKGETSIZE64),
            ("TCGETS", libc::TCGETS),
            ("an unknown one", 0xdead),
        ] {
            all.push((format!("{what} of {place}"), done(calls::ioctl(&file, request))));
        }
    }
    all
}

fn poll(root: &Path) -> Lines {
    let mut all = Lines::new();
    for place in ["small", "dir"] {
        let file = open(&root.join(place));
        let mut asked = [PollFd::new(&file, PollFlags::IN | PollFlags::OUT)];
        let ready = rustix::event::poll(&mut asked, Some(&PollTime { tv_sec: 0, tv_nsec: 0 }));
        all.push((format!("poll of {place}"), format!("{} {:?}", told(ready), asked[0].revents())));
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
        let data = rustix::event::epoll::EventData::new_u64(1);
        let added = rustix::event::epoll::add(&epoll, &file, data, rustix::event::epoll::EventFlags::IN);
        all.push((format!("epoll of {place}"), done(added)));
    }
    all
}

fn fadvise(root: &Path) -> Lines {
    let mut all = Lines::new();
    for place in ["small", "large", "dir"] {
        let file = open(&root.join(place));
        for (what, advice) in [
            ("normal", Advice::Normal),
            ("sequential", Advice::Sequential),
            ("random", Advice::Random),
            ("will need", Advice::WillNeed),
            ("do not need", Advice::DontNeed),
            ("once", Advice::NoReuse),
        ] {
            all.push((format!("{what} of {place}"), done(rustix::fs::fadvise(&file, 0, None, advice))));
        }
        all.push((format!("readahead of {place}"), done(calls::readahead(&file))));
    }
    all
}

/// What rustix does not have, or has as unsafe.
mod calls {
    #![allow(unsafe_code)]

    use std::ffi::CString;
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use rustix::io::Errno;
    use rustix::mm::{MapFlags, ProtFlags};

    /// `linux/fcntl.h`.
    pub(super) const AT_HANDLE_FID: i32 = 0x200;
    /// The most that a handle may have, in bytes.
    const HANDLE_MAX: usize = 128;

    /// `struct file_handle`, with room.
    #[repr(C)]
    #[derive(Debug, Clone, Copy)]
    pub(super) struct Handle {
        bytes: u32,
        kind: i32,
        handle: [u8; HANDLE_MAX],
    }

    fn last<T: Into<i64>>(answer: T) -> Result<i64, Errno> {
        let answer = answer.into();
        if answer >= 0 {
            return Ok(answer);
        }
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }

    fn c_string(path: &Path) -> CString {
        CString::new(path.as_os_str().as_bytes()).expect("a path without NUL")
    }

    /// Maps a file, and lets its bytes be looked at and, if the mapping allows it, changed.
    pub(super) fn mapped(
        file: &File,
        length: usize,
        prot: ProtFlags,
        flags: MapFlags,
        offset: u64,
        look: impl FnOnce(&mut [u8]) -> String,
    ) -> Result<String, Errno> {
        // SAFETY: the kernel chooses the place, so that no other memory is touched; nobody changes these files; the bytes
        // are unmapped after the last look. They are written to only where the mapping is private and allows it.
        unsafe {
            let place = rustix::mm::mmap(std::ptr::null_mut(), length, prot, flags, file, offset)?;
            let seen = look(std::slice::from_raw_parts_mut(place.cast::<u8>(), length));
            rustix::mm::munmap(place, length)?;
            Ok(seen)
        }
    }

    pub(super) fn truncate(path: &Path) -> Result<(), Errno> {
        let path = c_string(path);
        // SAFETY: the path ends with a NUL and lives through the call.
        last(unsafe { libc::truncate(path.as_ptr(), 1) }).map(drop)
    }

    pub(super) fn handle(path: &Path, room: u32, flags: i32) -> Result<Handle, Errno> {
        let path = c_string(path);
        let mut handle = Handle { bytes: room, kind: 0, handle: [0; HANDLE_MAX] };
        let mut mount = 0_i32;
        // SAFETY: the path ends with a NUL, and the handle has as much room as it says, or more.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                libc::AT_FDCWD,
                path.as_ptr(),
                &raw mut handle,
                &raw mut mount,
                flags,
            )
        };
        last(answer).map(|_| handle)
    }

    pub(super) fn open_handle(mount: &File, mut handle: Handle) -> Result<OwnedFd, Errno> {
        // SAFETY: the handle is one that the kernel filled, and the new descriptor is nobody else's.
        unsafe {
            let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK;
            let opened = libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw mut handle, flags);
            last(opened).map(|number| OwnedFd::from_raw_fd(i32::try_from(number).expect("a descriptor")))
        }
    }

    /// A watch of what is opened and read.
    pub(super) fn watch(path: &Path, class: u32) -> Result<OwnedFd, Errno> {
        let path = c_string(path);
        // SAFETY: the path ends with a NUL, and the new descriptor is nobody else's.
        unsafe {
            let flags = class | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
            let number = last(libc::fanotify_init(flags, u32::try_from(libc::O_RDONLY).unwrap_or_default()))?;
            let watcher = OwnedFd::from_raw_fd(i32::try_from(number).expect("a descriptor"));
            let mask = libc::FAN_OPEN | libc::FAN_ACCESS;
            last(libc::fanotify_mark(watcher.as_raw_fd(), libc::FAN_MARK_ADD, mask, libc::AT_FDCWD, path.as_ptr()))?;
            Ok(watcher)
        }
    }

    pub(super) fn lock(file: &File, command: i32, kind: i32) -> Result<(), Errno> {
        // SAFETY: all zeros is a lock of the whole file, and the structure lives through the call.
        unsafe {
            let mut lock: libc::flock = std::mem::zeroed();
            lock.l_type = kind.try_into().expect("a kind of lock");
            last(libc::fcntl(file.as_raw_fd(), command, &raw mut lock)).map(drop)
        }
    }

    /// Takes a lease and gives it back.
    pub(super) fn lease(file: &File, kind: i32) -> Result<(), Errno> {
        // SAFETY: the call takes numbers only.
        unsafe {
            last(libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind))?;
            last(libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK)).map(drop)
        }
    }

    /// A request with a page of zeros as its argument.
    pub(super) fn ioctl(file: &File, request: u64) -> Result<(), Errno> {
        let mut argument = [0_u64; 512];
        // SAFETY: the argument has more room than any of the requests fills: each says its size in its number.
        last(unsafe { libc::ioctl(file.as_raw_fd(), request, argument.as_mut_ptr()) }).map(drop)
    }

    pub(super) fn readahead(file: &File) -> Result<(), Errno> {
        // SAFETY: the call takes numbers only.
        last(unsafe { libc::readahead(file.as_raw_fd(), 0, 4096) } as i64).map(drop)
    }
}
