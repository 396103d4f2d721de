//! What a layer stores is what the mount shows: attributes, content, names, and how each name of the view is
//! reached.
//!
//! Each test writes a data root, mounts it and looks, mostly through every place where the view shows a layer: by tag, by chain ID, by diff
//! ID and united. What is expected is read from the layer's own directory, or written down where the view differs on purpose.
//!
//! Everything here needs root: device nodes, owners, `trusted.*` and the mount itself.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod support;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RawDir, SeekFrom, Stat, Timespec, Timestamps, XattrFlags,
};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use support::mount::{Mounted, Tmpfs, require_privileges};
use support::random::noise;
use support::store::{ImageId, LayerRef, StoreBuilder, sha256_hex};
use support::tree::{Options, Tree, assert_same, group_links, snapshot, walk};
use tempfile::TempDir;

/// The user without rights.
const NOBODY: u32 = 65_534;

/// A mounted data root with one image `t:1` of one layer.
struct Bench {
    mount: Mounted,
    layer: LayerRef,
    image: ImageId,
    /// What the store lies on, if not the build's disk.
    _tmpfs: Option<Tmpfs>,
    dir: TempDir,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Backing {
    Disk,
    Tmpfs,
}

impl Bench {
    fn new(fill: impl FnOnce(&Path)) -> Self {
        Self::with(Backing::Disk, &[], fill)
    }

    fn with(backing: Backing, arguments: &[&str], fill: impl FnOnce(&Path)) -> Self {
        let dir = open_scratch();
        let tmpfs = (backing == Backing::Tmpfs).then(|| Tmpfs::new(&dir.path().join("data")));
        let mut store = StoreBuilder::new(dir.path().join("data/docker"));
        let layer = store.layer(None);
        let image = store.image(std::slice::from_ref(&layer));
        store.tag("t:1", &image);
        fill(&layer.diff_dir());
        let mount = Mounted::with(&store.finish(), &dir.path().join("mnt"), arguments, 0);
        Self { mount, layer, image, _tmpfs: tmpfs, dir }
    }

    fn stored(&self) -> PathBuf {
        self.layer.diff_dir()
    }

    /// Every place where the layer is shown; one layer's union looks as the layer does.
    fn places(&self) -> Vec<PathBuf> {
        let (mount, layer) = (self.mount.path(), &self.layer);
        [
            "by-tag/t:1/layers/0".to_owned(),
            format!("by-id/{}/layers/0", self.image.0),
            format!("by-chain/{}", layer.chain_id),
            format!("by-diff/{}", layer.diff_id),
            "merged/t:1".to_owned(),
            format!("merged/{}", layer.chain_id),
        ]
        .iter()
        .map(|place| mount.join(place))
        .collect()
    }

    /// The layer as stored is what each place shows.
    fn assert_shown(&self, options: &Options) {
        let mut expected = snapshot(&self.stored(), options);
        group_links(&mut expected);
        for place in self.places() {
            let mut found = snapshot(&place, options);
            group_links(&mut found);
            assert_same(&place.display().to_string(), &expected, &found);
        }
    }
}

/// A scratch directory that other users may enter.
fn open_scratch() -> TempDir {
    let dir = support::scratch("fidelity");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn lstat(path: &Path) -> Stat {
    rustix::fs::lstat(path).unwrap_or_else(|error| panic!("lstat {path:?}: {error}"))
}

fn errno<T>(result: io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| Errno::from_io_error(&error))
}

fn as_nobody(program: &str, arguments: &[&OsStr]) -> Output {
    Command::new(program).args(arguments).uid(NOBODY).gid(NOBODY).stdin(Stdio::null()).output().unwrap()
}

fn nobody_reads(file: &Path) -> Result<Vec<u8>, String> {
    let output = as_nobody("cat", &[file.as_os_str()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(output.stdout) } else { Err(said) }
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
        .unwrap_or_else(|error| panic!("setxattr {name} of {path:?}: {error}"));
}

fn xattr(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 65_536];
    let len = rustix::fs::lgetxattr(path, name, &mut value)?;
    value.truncate(len);
    Ok(value)
}

fn xattr_names(path: &Path) -> BTreeSet<String> {
    let mut names = vec![0_u8; 65_536];
    let len = rustix::fs::llistxattr(path, &mut names).unwrap();
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn make_node(path: &Path, kind: FileType, major: u32, minor: u32) {
    let device = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), device).unwrap();
}

// Attributes.

type Make = fn(&Path);

#[test]
fn times_are_kept_to_the_nanosecond() {
    if !require_privileges("a mount") {
        return;
    }
    let times = [
        (0, 0),
        (1, 1),
        (-1, 999_999_999),
        (-2_147_483_648, 0),
        (-1_000_000_000, 123_456_789),
        (1_700_000_000, 987_654_321),
        (4_294_967_296 + 5, 7),
        (15_000_000_000, 999_999_999),
    ];
    let mut names = Vec::new();
    let bench = Bench::new(|diff| {
        for (n, time) in times.iter().enumerate() {
            let kinds: [(&str, Make); 4] = [
                ("file", |path| fs::write(path, "x").unwrap()),
                ("dir", |path| fs::create_dir(path).unwrap()),
                ("link", |path| symlink("nowhere", path).unwrap()),
                ("fifo", |path| make_node(path, FileType::Fifo, 0, 0)),
            ];
            for (kind, make) in kinds {
                let name = format!("{kind}-{n}");
                make(&diff.join(&name));
                let modified = Timespec { tv_sec: time.0, tv_nsec: time.1 };
                // The access time is another, so that the two cannot be taken for each other.
                let accessed = Timespec { tv_sec: time.0 + 100, tv_nsec: time.1 };
                let both = Timestamps { last_access: accessed, last_modification: modified };
                rustix::fs::utimensat(CWD, diff.join(&name), &both, AtFlags::SYMLINK_NOFOLLOW).unwrap();
                names.push((name, time.0));
            }
        }
    });
    let shown = |path: &Path| {
        let stat = lstat(path);
        [
            ("mtime", stat.st_mtime, stat.st_mtime_nsec),
            ("atime", stat.st_atime, stat.st_atime_nsec),
            ("ctime", stat.st_ctime, stat.st_ctime_nsec),
        ]
    };
    for (name, seconds) in &names {
        let expected = shown(&bench.stored().join(name));
        assert_eq!(expected[0].1, *seconds, "the backing file system does not keep the time");
        for place in bench.places() {
            assert_eq!(shown(&place.join(name)), expected, "{}/{name}", place.display());
        }
    }
}

#[test]
fn modes_and_owners_are_kept() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new(|diff| {
        for mode in [0, 0o1, 0o444, 0o640, 0o755, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777] {
            let (file, dir) = (diff.join(format!("file-{mode:o}")), diff.join(format!("dir-{mode:o}")));
            fs::write(&file, "x").unwrap();
            fs::create_dir(&dir).unwrap();
            set_mode(&file, mode);
            set_mode(&dir, mode);
        }
        for (n, owner) in [0, 1, 999, 65_534, 65_535, 65_536, (1 << 31) - 1, 1 << 31, u32::MAX - 1].iter().enumerate() {
            let (file, link, dir) =
                (diff.join(format!("of-{owner}")), diff.join(format!("link-of-{owner}")), diff.join(format!("d{n}")));
            fs::write(&file, "x").unwrap();
            symlink("x", &link).unwrap();
            fs::create_dir(&dir).unwrap();
            for path in [&file, &link, &dir] {
                lchown(path, Some(*owner), Some(u32::MAX - 1 - owner)).unwrap();
            }
        }
        // Owners are set before, as chown takes setuid away.
        set_mode(&diff.join("of-4294967294"), 0o6755);
        lchown(diff, Some(12), Some(34)).unwrap();
        set_mode(diff, 0o2775);
    });
    bench.assert_shown(&Options::default());
    let found = lstat(&bench.mount.path().join("merged/t:1/of-4294967294"));
    assert_eq!((found.st_mode & 0o7777, found.st_uid), (0o6755, u32::MAX - 1));
}

#[test]
fn device_numbers_are_kept() {
    if !require_privileges("a mount") {
        return;
    }
    let numbers = [(0, 1), (1, 3), (8, 256), (255, 255), (256, 255), (259, 65_536), (4095, 0), (4095, 1_048_575)];
    let bench = Bench::new(|diff| {
        for (major, minor) in numbers {
            make_node(&diff.join(format!("c-{major}-{minor}")), FileType::CharacterDevice, major, minor);
            make_node(&diff.join(format!("b-{major}-{minor}")), FileType::BlockDevice, major, minor);
        }
        // Only a character device is a deletion.
        make_node(&diff.join("b-0-0"), FileType::BlockDevice, 0, 0);
    });
    bench.assert_shown(&Options::default());
    for (major, minor) in numbers {
        let found = lstat(&bench.mount.path().join(format!("merged/t:1/c-{major}-{minor}")));
        assert_eq!(found.st_rdev, rustix::fs::makedev(major, minor));
    }
}

/// Where a file has data and where it has holes, as lseek(2) tells.
fn extents(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let mut map = Vec::new();
    let mut at = 0;
    loop {
        match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(data) => {
                let hole = rustix::fs::seek(&file, SeekFrom::Hole(data)).unwrap();
                map.push((data, hole));
                at = hole;
            }
            Err(Errno::NXIO) => return map,
            Err(error) => panic!("{path:?}: {error}"),
        }
    }
}

fn write_sparse(path: &Path, size: u64, pieces: &[(u64, &[u8])]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (at, bytes) in pieces {
        // Allocated at once: what the kernel allocates later is not yet counted.
        rustix::fs::fallocate(&file, FallocateFlags::empty(), *at, bytes.len() as u64).unwrap();
        file.write_all_at(bytes, *at).unwrap();
    }
}

#[test]
fn holes_of_sparse_files_are_shown() {
    if !require_privileges("a mount") {
        return;
    }
    const MIB: u64 = 1 << 20;
    let bench = Bench::new(|diff| {
        let page = noise(4096, 0);
        let long = noise(300_000, 0);
        write_sparse(&diff.join("empty"), 0, &[]);
        write_sparse(&diff.join("hole"), 3 * MIB + 1, &[]);
        write_sparse(&diff.join("start"), 3 * MIB, &[(0, &page)]);
        write_sparse(&diff.join("end"), 3 * MIB, &[(3 * MIB - 100, &page[..100])]);
        write_sparse(&diff.join("pieces"), 20 * MIB, &[(MIB, &page), (5 * MIB + 7, &long), (17 * MIB, &page)]);
        write_sparse(&diff.join("dense"), 0, &[(0, &long)]);
    });
    bench.assert_shown(&Options { blocks: true, ..Options::default() });
    let expected = extents(&bench.stored().join("pieces"));
    assert_eq!(expected.len(), 3, "the backing file system keeps no holes: {expected:?}");
    for name in ["empty", "hole", "start", "end", "pieces", "dense"] {
        let expected = extents(&bench.stored().join(name));
        for place in bench.places() {
            let path = place.join(name);
            assert_eq!(extents(&path), expected, "{}", path.display());
            let file = File::open(&path).unwrap();
            let size = file.metadata().unwrap().len();
            assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(size)), Err(Errno::NXIO));
            assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(size + 1)), Err(Errno::NXIO));
            assert_eq!(rustix::fs::seek(&file, SeekFrom::End(0)), Ok(size));
        }
    }
}

#[test]
fn files_beyond_4_gib_are_read() {
    if !require_privileges("a mount") {
        return;
    }
    const GIB: u64 = 1 << 30;
    let pieces: [(u64, &[u8]); 4] = [
        (2 * GIB - 5, b"over two GiB"),
        (4 * GIB - 5, b"over four GiB"),
        (4 * GIB + 123_457, b"behind four GiB"),
        (5 * GIB + 11, b"at the end"),
    ];
    let size = 5 * GIB + 11 + 10;
    let bench = Bench::new(|diff| write_sparse(&diff.join("big"), size, &pieces));
    for place in bench.places() {
        let file = File::open(place.join("big")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), size);
        for (at, expected) in &pieces {
            let mut found = vec![0; expected.len()];
            file.read_exact_at(&mut found, *at).unwrap();
            assert_eq!(found.escape_ascii().to_string(), expected.escape_ascii().to_string(), "at {at}");
        }
        let mut space = [1_u8; 64];
        assert_eq!(file.read_at(&mut space, size - 3).unwrap(), 3, "the end is cut");
        assert_eq!(file.read_at(&mut space, size).unwrap(), 0);
        assert_eq!(file.read_at(&mut space, size + GIB).unwrap(), 0);
        file.read_exact_at(&mut space, 3 * GIB).unwrap();
        assert_eq!(space, [0; 64], "a hole is zeros");
    }
    assert_eq!(
        extents(&bench.places()[4].join("big")),
        extents(&bench.stored().join("big")),
        "holes beyond 4 GiB are shown"
    );
}

#[test]
fn hard_links_are_one_inode_wherever_they_appear() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new(|diff| {
        fs::create_dir(diff.join("d")).unwrap();
        fs::write(diff.join("one"), "shared").unwrap();
        fs::hard_link(diff.join("one"), diff.join("two")).unwrap();
        fs::hard_link(diff.join("one"), diff.join("d/three")).unwrap();
        fs::write(diff.join("alone"), "shared").unwrap();
        symlink("one", diff.join("link")).unwrap();
        fs::hard_link(diff.join("link"), diff.join("link-two")).unwrap();
    });
    bench.assert_shown(&Options::default());
    let mut numbers: BTreeMap<&str, BTreeSet<(u64, u64)>> = BTreeMap::new();
    for place in bench.places() {
        for (group, name) in
            [("one", "one"), ("one", "two"), ("one", "d/three"), ("alone", "alone"), ("l", "link"), ("l", "link-two")]
        {
            let stat = lstat(&place.join(name));
            numbers.entry(group).or_default().insert((stat.st_dev, stat.st_ino));
        }
    }
    let counts: Vec<usize> = numbers.values().map(BTreeSet::len).collect();
    assert_eq!(counts, [1, 1, 1], "one inode each: {numbers:?}");
    let all: BTreeSet<_> = numbers.values().flatten().collect();
    assert_eq!(all.len(), 3, "files of the same content stay two: {numbers:?}");
}

/// Lets a stopped process go on.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: u32) -> Self {
        let pid = Pid::from_raw(pid.cast_signed()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

#[test]
fn the_page_cache_holds_a_file_once() {
    if !require_privileges("a mount") {
        return;
    }
    let content = noise(1 << 20, 0);
    let bench = Bench::new(|diff| {
        fs::write(diff.join("one"), &content).unwrap();
        fs::hard_link(diff.join("one"), diff.join("two")).unwrap();
    });
    let places = bench.places();
    assert!(fs::read(places[0].join("one")).unwrap() == content);
    // Opened after the reading, as an opening may drop what is cached.
    let files: Vec<File> = places
        .iter()
        .flat_map(|place| ["one", "two"].map(|name| place.join(name)))
        .map(|path| File::open(path).unwrap())
        .collect();
    let stopped = Stopped::new(bench.mount.server().unwrap());
    let (send, receive) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for (n, file) in files.iter().enumerate() {
            let mut found = vec![0; 1 << 20];
            file.read_exact_at(&mut found, 0).unwrap();
            send.send((n, found)).unwrap();
        }
    });
    let mut served = Vec::new();
    for n in 0..places.len() * 2 {
        match receive.recv_timeout(Duration::from_secs(10)) {
            Ok((at, found)) => {
                assert!(at == n && found == content, "content of file {n}");
                served.push(n);
            }
            Err(_) => break,
        }
    }
    drop(stopped);
    reader.join().unwrap();
    assert_eq!(served.len(), places.len() * 2, "reading what is cached asked the server");
}

#[test]
fn symbolic_links_are_kept() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new(|diff| {
        for len in [1, 59, 60, 61, 255, 1000, 4094, 4095] {
            symlink("x".repeat(len), diff.join(format!("long-{len}"))).unwrap();
        }
        let targets: [&[u8]; 7] =
            [b"/etc/passwd", b"../../../..", b"a//b/./", b"\xff\xfe", b"new\nline", b"with space", b"loop-6"];
        for (n, target) in targets.iter().enumerate() {
            symlink(OsStr::from_bytes(target), diff.join(format!("loop-{n}"))).unwrap();
        }
    });
    bench.assert_shown(&Options::default());
    for place in bench.places() {
        assert_eq!(fs::read_link(place.join("long-4095")).unwrap().as_os_str().len(), 4095);
        assert_eq!(errno(fs::metadata(place.join("loop-6"))), Some(Errno::LOOP));
    }
}

// Extended attributes.

/// The attribute of an ACL: a version, then tag, permissions and ID of each entry, in little endian (`posix_acl_xattr.h`).
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

const ACL_OWNER: u16 = 1;
const ACL_USER: u16 = 2;
const ACL_GROUP_OWNER: u16 = 4;
const ACL_GROUP: u16 = 8;
const ACL_MASK: u16 = 16;
const ACL_OTHER: u16 = 32;
const NO_ID: u32 = u32::MAX;

/// An ACL that lets nobody but its owner in, other than this user, as far as the mask goes.
fn acl_for(user: u32, permissions: u16, mask: u16) -> Vec<u8> {
    acl(&[
        (ACL_OWNER, 6, NO_ID),
        (ACL_USER, permissions, user),
        (ACL_GROUP_OWNER, 0, NO_ID),
        (ACL_MASK, mask, NO_ID),
        (ACL_OTHER, 0, NO_ID),
    ])
}

/// `cap_net_raw+ep`, in the second form of `struct vfs_cap_data`.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn fill_with_xattrs(diff: &Path) {
    for name in ["file", "acl", "escaped", "foreign"] {
        fs::write(diff.join(name), "x").unwrap();
    }
    fs::create_dir(diff.join("dir")).unwrap();
    symlink("x", diff.join("link")).unwrap();
    set_xattr(&diff.join("file"), "user.text", b"value");
    set_xattr(&diff.join("file"), "user.empty", b"");
    set_xattr(&diff.join("file"), "user.bytes", b"\0\xff\n");
    set_xattr(&diff.join("file"), &format!("user.{}", "n".repeat(250)), b"the longest name");
    set_xattr(&diff.join("file"), "user.long", &noise(2000, 0));
    set_xattr(&diff.join("file"), "trusted.secret", b"for root");
    set_xattr(&diff.join("file"), "security.capability", &CAPABILITY);
    set_xattr(&diff.join("dir"), "user.dir", b"d");
    set_xattr(&diff.join("link"), "trusted.link", b"l");
    set_xattr(diff, "user.root", b"r");
    let entries = [
        (ACL_OWNER, 6, NO_ID),
        (ACL_USER, 4, 1000),
        (ACL_GROUP_OWNER, 4, NO_ID),
        (ACL_GROUP, 5, 2000),
        (ACL_MASK, 5, NO_ID),
        (ACL_OTHER, 0, NO_ID),
    ];
    set_xattr(&diff.join("acl"), "system.posix_acl_access", &acl(&entries));
    set_xattr(&diff.join("dir"), "system.posix_acl_default", &acl(&entries));
    set_xattr(&diff.join("foreign"), "user.overlay.opaque", b"y");
}

#[test]
fn extended_attributes_are_kept() {
    if !require_privileges("a mount") {
        return;
    }
    for arguments in [&[][..], &["-o", "allow_other"]] {
        let bench = Bench::with(Backing::Disk, arguments, fill_with_xattrs);
        bench.assert_shown(&Options::default());
        for place in bench.places() {
            assert_eq!(xattr(&place.join("file"), "trusted.secret"), Ok(b"for root".to_vec()));
            assert_eq!(xattr(&place.join("file"), "security.capability"), Ok(CAPABILITY.to_vec()));
            assert_eq!(xattr(&place.join("foreign"), "user.overlay.opaque"), Ok(b"y".to_vec()));
            assert_eq!(xattr(&place.join("file"), "user.none"), Err(Errno::NODATA));
            assert_eq!(xattr(&place.join("foreign"), "trusted.overlay.opaque"), Err(Errno::NODATA));
        }
    }
}

#[test]
fn getfacl_prints_the_same() {
    if !require_privileges("a mount") {
        return;
    }
    let acls = |dir: &Path| {
        Command::new("getfacl").args(["-n", "-R", "."]).current_dir(dir).output().map(|output| {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8(output.stdout).unwrap();
            let mut files: Vec<String> = text.split("\n\n").map(|file| file.trim().to_owned()).collect();
            files.sort();
            files
        })
    };
    for arguments in [&[][..], &["-o", "allow_other"]] {
        let bench = Bench::with(Backing::Disk, arguments, fill_with_xattrs);
        let Ok(expected) = acls(&bench.stored()) else {
            assert!(std::env::var_os("DOCKER_FS_TEST_PRIVILEGED").is_none(), "there is no getfacl");
            eprintln!("skipped: there is no getfacl");
            return;
        };
        assert!(expected.iter().any(|file| file.contains("default:user:1000:r--")), "{expected:?}");
        for place in bench.places() {
            assert_eq!(acls(&place).unwrap(), expected, "{}", place.display());
        }
    }
}

#[test]
fn private_attributes_are_hidden_and_escaped_ones_are_shown() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new(|diff| {
        fs::create_dir(diff.join("dir")).unwrap();
        fs::write(diff.join("file"), "x").unwrap();
        for name in ["opaque", "impure", "origin", "overlay.opaque", "overlay.mine", "overlay.overlay.deep"] {
            set_xattr(&diff.join("dir"), &format!("trusted.overlay.{name}"), b"y");
        }
        set_xattr(&diff.join("file"), "trusted.overlay.origin", b"o");
        set_xattr(&diff.join("file"), "trusted.overlay.overlay.metacopy", b"m");
        set_xattr(&diff.join("file"), "trusted.overlayed", b"no prefix");
    });
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    for place in bench.places() {
        let (dir, file) = (place.join("dir"), place.join("file"));
        let expected = set(&["trusted.overlay.opaque", "trusted.overlay.mine", "trusted.overlay.overlay.deep"]);
        assert_eq!(xattr_names(&dir), expected, "{}", dir.display());
        assert_eq!(xattr_names(&file), set(&["trusted.overlay.metacopy", "trusted.overlayed"]));
        assert_eq!(xattr(&file, "trusted.overlay.metacopy"), Ok(b"m".to_vec()));
        for private in ["trusted.overlay.origin", "trusted.overlay.overlay.metacopy"] {
            assert_eq!(xattr(&file, private), Err(Errno::NODATA), "{private}");
        }
    }
}

/// A file of a layer is one inode wherever it appears, but its private attributes are for the layer's own tree only.
#[test]
fn whiteouts_as_stored_show_private_attributes_in_layers_alone() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::with(Backing::Disk, &["-o", "whiteouts=stored"], |diff| {
        fs::create_dir(diff.join("dir")).unwrap();
        set_xattr(&diff.join("dir"), "trusted.overlay.origin", b"o");
        for name in ["layer-first", "union-first"] {
            fs::write(diff.join(name), "x").unwrap();
            set_xattr(&diff.join(name), "trusted.overlay.origin", b"o");
            set_xattr(&diff.join(name), "trusted.overlay.overlay.mine", b"m");
        }
    });
    let (layer, union) = (bench.places()[0].clone(), bench.places()[4].clone());
    // Which of the two is looked at first must not matter.
    let _held = [File::open(layer.join("layer-first")).unwrap(), File::open(union.join("union-first")).unwrap()];
    for name in ["dir", "layer-first", "union-first"] {
        assert_eq!(xattr_names(&layer.join(name)), xattr_names(&bench.stored().join(name)), "{name} in the layer");
        let shown = xattr_names(&union.join(name));
        let expected: &[&str] = if name == "dir" { &[] } else { &["trusted.overlay.mine"] };
        assert!(shown.iter().eq(expected), "{name} in the union: {shown:?}");
    }
}

#[test]
fn small_buffers_for_attributes_are_refused() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new(fill_with_xattrs);
    for place in bench.places() {
        let file = place.join("file");
        let expected = xattr(&file, "user.long").unwrap().len();
        let listed: usize = xattr_names(&file).iter().map(|name| name.len() + 1).sum();
        let get = |len: usize| rustix::fs::lgetxattr(&file, "user.long", vec![0; len].as_mut_slice());
        let list = |len: usize| rustix::fs::llistxattr(&file, vec![0_u8; len].as_mut_slice());
        assert_eq!(rustix::fs::lgetxattr_query(&file, "user.long"), Ok(expected));
        assert_eq!(rustix::fs::llistxattr_query(&file), Ok(listed));
        assert_eq!((get(1), list(1)), (Err(Errno::RANGE), Err(Errno::RANGE)));
        assert_eq!((get(expected - 1), list(listed - 1)), (Err(Errno::RANGE), Err(Errno::RANGE)));
        assert_eq!((get(expected), list(listed)), (Ok(expected), Ok(listed)));
    }
}

#[test]
fn large_attributes_are_kept() {
    if !require_privileges("a mount") {
        return;
    }
    let value = noise(60 * 1024, 0);
    let mut refused = None;
    let bench = Bench::with(Backing::Tmpfs, &[], |diff| {
        fs::write(diff.join("large"), "x").unwrap();
        fs::write(diff.join("many"), "x").unwrap();
        let set = rustix::fs::lsetxattr(diff.join("large"), "user.large", &value, XattrFlags::empty()).and_then(|()| {
            (0..1000).try_for_each(|n| {
                let name = format!("user.{n:050}");
                rustix::fs::lsetxattr(diff.join("many"), name, b"", XattrFlags::empty())
            })
        });
        refused = set.err();
    });
    if let Some(error) = refused {
        eprintln!("skipped: tmpfs of this kernel has no large attributes: {error}");
        return;
    }
    bench.assert_shown(&Options::default());
    for place in bench.places() {
        assert!(xattr(&place.join("large"), "user.large").unwrap() == value);
        assert_eq!(xattr_names(&place.join("many")).len(), 1000);
    }
}

#[test]
fn trusted_attributes_are_for_root() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::with(Backing::Disk, &["-o", "allow_other"], fill_with_xattrs);
    for place in bench.places() {
        let file = place.join("file");
        let names = ["-d", "-m", "-", "--absolute-names"].map(OsStr::new);
        let output = as_nobody("getfattr", &[&names[..], &[file.as_os_str()]].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("user.text") && text.contains("security.capability"), "{text}");
        assert!(!text.contains("trusted"), "{text}");
        let one = as_nobody("getfattr", &[OsStr::new("-n"), OsStr::new("trusted.secret"), file.as_os_str()]);
        assert!(!one.status.success(), "{one:?}");
    }
}

// Names and directories.

#[test]
fn names_are_bytes() {
    if !require_privileges("a mount") {
        return;
    }
    let long = vec![b'n'; 255];
    let names: Vec<&[u8]> = vec![
        b"\xff\xfe\x80",
        b"new\nline",
        b"\x01\x1b[31m",
        b"tab\there",
        b" ",
        b"end ",
        b"-rf",
        b"*",
        b"back\\slash",
        b"...",
        b"..a",
        b".wh",
        "ü".as_bytes(),
        "u\u{308}".as_bytes(),
        b"A",
        b"a",
        &long,
    ];
    let bench = Bench::new(|diff| {
        for name in &names {
            let dir = diff.join("dirs").join(OsStr::from_bytes(name));
            fs::create_dir_all(&dir).unwrap();
            for inner in &names {
                fs::write(dir.join(OsStr::from_bytes(inner)), inner).unwrap();
            }
            symlink(OsStr::from_bytes(name), diff.join("dirs").join(OsStr::from_bytes(name)).join("link")).unwrap();
        }
    });
    bench.assert_shown(&Options::default());
    for place in bench.places() {
        let missing = place.join(OsStr::from_bytes(&[b'm'; 255]));
        assert_eq!(errno(fs::metadata(missing)), Some(Errno::NOENT));
        for len in [256, 1000] {
            let too_long = errno(fs::metadata(place.join("n".repeat(len))));
            assert!(matches!(too_long, Some(Errno::NOENT | Errno::NAMETOOLONG)), "{len}: {too_long:?}");
        }
    }
}

#[test]
fn the_mark_of_a_name_of_255_bytes_is_found() {
    if !require_privileges("a mount") {
        return;
    }
    let long = "n".repeat(255);
    let dir = open_scratch();
    let mut store = StoreBuilder::new(dir.path().join("docker"));
    let layers = store.chain(2);
    fs::write(layers[0].diff_dir().join(&long), "deleted").unwrap();
    make_node(&layers[1].diff_dir().join(&long), FileType::CharacterDevice, 0, 0);
    let image = store.image(&layers);
    store.tag("t:1", &image);
    let mount = Mounted::new(&store.finish(), &dir.path().join("mnt"));
    let mark = format!(".wh.{long}");
    for place in ["by-tag/t:1/layers/1".to_owned(), format!("by-chain/{}", layers[1].chain_id)] {
        let tree = snapshot(&mount.path().join(&place), &Options::default());
        let names: Vec<String> = tree.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
        assert_eq!(names, [String::new(), mark.clone()], "{place}");
        let found = fs::metadata(mount.path().join(&place).join(&mark)).unwrap();
        assert!(found.is_file() && found.len() == 0);
        assert_eq!(fs::read(mount.path().join(&place).join(&mark)).unwrap(), b"");
    }
    let merged = snapshot(&mount.path().join("merged/t:1"), &Options::default());
    assert_eq!(merged.len(), 1, "only the root is left");
}

struct Listed {
    name: Vec<u8>,
    ino: u64,
    kind: FileType,
    /// Where the listing goes on behind this entry.
    cookie: u64,
}

/// Reads the rest of an open directory with a buffer of this size, at most `limit` entries.
fn read_dir(dir: &OwnedFd, buffer: usize, limit: usize) -> Vec<Listed> {
    let mut space = vec![MaybeUninit::uninit(); buffer];
    let mut raw = RawDir::new(dir, &mut space);
    let mut listed = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry.unwrap();
        listed.push(Listed {
            name: entry.file_name().to_bytes().to_vec(),
            ino: entry.ino(),
            kind: entry.file_type(),
            cookie: entry.next_entry_cookie(),
        });
        if listed.len() >= limit {
            break;
        }
    }
    listed
}

fn open_dir(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn names_of(listed: &[Listed]) -> Vec<&[u8]> {
    listed.iter().map(|entry| entry.name.as_slice()).collect()
}

#[test]
fn a_directory_of_100_000_entries_is_listed_completely() {
    const COUNT: usize = 100_000;
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::with(Backing::Tmpfs, &[], |diff| {
        fs::create_dir(diff.join("many")).unwrap();
        let first = diff.join("many/000000");
        fs::write(&first, "").unwrap();
        for n in 1..COUNT {
            // Tmpfs does not count links; one inode is made faster than many.
            if n % 2 == 0 {
                fs::hard_link(&first, diff.join(format!("many/{n:06}"))).unwrap();
            } else {
                fs::create_dir(diff.join(format!("many/{n:06}"))).unwrap();
            }
        }
    });
    let dots = [&b"."[..], b".."].map(<[u8]>::to_vec);
    let expected: BTreeSet<Vec<u8>> = (0..COUNT).map(|n| format!("{n:06}").into_bytes()).chain(dots).collect();
    for place in [&bench.places()[0], &bench.places()[4]] {
        let many = place.join("many");
        let dir = open_dir(&many);
        let whole = read_dir(&dir, 128 * 1024, usize::MAX);
        assert_eq!(whole.len(), COUNT + 2, "{}", many.display());
        assert!(whole.iter().map(|entry| entry.name.clone()).collect::<BTreeSet<_>>() == expected);

        rustix::fs::seek(&dir, SeekFrom::Start(0)).unwrap();
        let small = read_dir(&dir, 64, usize::MAX);
        assert!(names_of(&small) == names_of(&whole), "a small buffer lists the same");

        for at in [0, 1, 2, 3, 777, COUNT / 2, COUNT] {
            rustix::fs::seek(&dir, SeekFrom::Start(whole[at].cookie)).unwrap();
            let rest = read_dir(&dir, 4096, 50);
            let end = (at + 51).min(whole.len());
            assert!(names_of(&rest) == names_of(&whole[at + 1..end]), "seeking behind entry {at}");
        }
        rustix::fs::seek(&dir, SeekFrom::Start(whole[COUNT + 1].cookie)).unwrap();
        assert!(read_dir(&dir, 4096, 1).is_empty(), "nothing is behind the last entry");

        let output = Command::new("sh").args(["-c", "ls -f | wc -l"]).current_dir(&many).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), (COUNT + 2).to_string());
    }
}

#[test]
fn paths_longer_than_path_max_are_read() {
    if !require_privileges("a mount") {
        return;
    }
    const DEPTH: usize = 60;
    let name = "d".repeat(200);
    let bench = Bench::new(|diff| {
        let mut dir = open_dir(diff);
        for depth in 0..DEPTH {
            rustix::fs::mkdirat(&dir, &name, Mode::from_raw_mode(0o755)).unwrap();
            dir = rustix::fs::openat(&dir, &name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
            let flags = OFlags::WRONLY | OFlags::CREATE;
            let file = rustix::fs::openat(&dir, "file", flags, Mode::from_raw_mode(0o644)).unwrap();
            File::from(file).write_all(format!("at {depth}").as_bytes()).unwrap();
            rustix::fs::symlinkat("file", &dir, "link").unwrap();
        }
    });
    bench.assert_shown(&Options::default());
    let tree = snapshot(&bench.places()[4], &Options::default());
    assert_eq!(tree.len(), 1 + 3 * DEPTH);
    assert!(tree.keys().any(|path| path.len() > 2 * 4096));
}

#[test]
fn listings_tell_the_numbers_of_the_directory_and_its_parent() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new(|diff| fs::create_dir_all(diff.join("a/b/c")).unwrap());
    let mount = bench.mount.path();
    let mut dirs: Vec<PathBuf> = bench.places().iter().flat_map(|place| [place.join("a"), place.join("a/b")]).collect();
    dirs.extend(
        ["", "by-tag", "by-tag/t:1", "by-tag/t:1/layers", "by-tag/t:1/layers/0", "merged", "merged/t:1"]
            .map(|dir| mount.join(dir)),
    );
    for path in dirs {
        let listed = read_dir(&open_dir(&path), 4096, usize::MAX);
        assert_eq!(names_of(&listed)[..2], [&b"."[..], b".."], "{}", path.display());
        assert_eq!(listed[0].ino, lstat(&path).st_ino, ". of {}", path.display());
        if path != mount.join("") {
            assert_eq!(listed[1].ino, lstat(path.parent().unwrap()).st_ino, ".. of {}", path.display());
        }
        for entry in &listed {
            let stat = lstat(&path.join(OsStr::from_bytes(&entry.name)));
            assert_eq!(
                entry.kind,
                FileType::from_raw_mode(stat.st_mode),
                "{}/{}",
                path.display(),
                entry.name.escape_ascii()
            );
        }
    }
}

// The whole mount.

/// A store with something of everything.
fn rich_store(root: PathBuf) -> StoreBuilder {
    let mut store = StoreBuilder::new(root);
    let layers = store.chain(3);
    for (n, layer) in layers.iter().enumerate() {
        let diff = layer.diff_dir();
        fs::create_dir_all(diff.join("etc/deep/er")).unwrap();
        fs::write(diff.join(format!("etc/from-{n}")), format!("layer {n}")).unwrap();
        fs::write(diff.join("etc/common"), format!("layer {n}")).unwrap();
        fs::hard_link(diff.join("etc/common"), diff.join(format!("etc/deep/link-{n}"))).unwrap();
        symlink("../etc", diff.join("etc/loop")).unwrap();
        symlink("/", diff.join(format!("root-{n}"))).unwrap();
    }
    make_node(&layers[1].diff_dir().join("etc/from-0"), FileType::CharacterDevice, 0, 0);
    fs::remove_file(layers[2].diff_dir().join("etc/loop")).unwrap();
    make_node(&layers[2].diff_dir().join("etc/loop"), FileType::CharacterDevice, 0, 0);
    set_xattr(&layers[2].diff_dir().join("etc/deep"), "trusted.overlay.opaque", b"y");
    let (lower, upper) = (store.image(&layers[..1]), store.image(&layers));
    let twin = store.image(&layers);
    store.tag("app:1", &upper);
    store.tag("app:latest", &upper);
    store.tag("reg.example:5000/team/app:2", &twin);
    store.digest("app", &sha256_hex("manifest"), &upper);
    store.tag("base:1", &lower);
    store.image(&layers[..2]);
    let container = store.container("web", &upper, layers.last());
    container.write_init_files();
    fs::create_dir_all(container.upper_dir().join("etc")).unwrap();
    fs::write(container.upper_dir().join("etc/mine"), "changed").unwrap();
    store
}

#[test]
fn listings_and_lookups_agree_and_numbers_are_unique() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = open_scratch();
    let root = rich_store(dir.path().join("docker")).finish();
    let mount = Mounted::new(&root, &dir.path().join("mnt"));
    let walked = walk(mount.path(), &Options { probe: vec![b"no-such-name".to_vec()], ..Options::default() });
    assert!(walked.troubles.is_empty(), "{:#?}", walked.troubles);
    assert!(walked.tree.len() > 200, "{} objects", walked.tree.len());
    let mut by_number: BTreeMap<u64, Vec<&Vec<u8>>> = BTreeMap::new();
    for (path, entry) in &walked.tree {
        by_number.entry(entry.ino.1).or_default().push(path);
    }
    for paths in by_number.values().filter(|paths| paths.len() > 1) {
        let shown: Vec<String> = paths.iter().map(|path| path.escape_ascii().to_string()).collect();
        let first = &walked.tree[paths[0]];
        assert_ne!(first.kind, FileType::Directory, "two directories with one number: {shown:?}");
        for path in paths {
            let entry = &walked.tree[*path];
            let same = (entry.kind, entry.mtime, entry.nlink, &entry.content, &entry.target)
                == (first.kind, first.mtime, first.nlink, &first.content, &first.target);
            assert!(same, "two files with one number: {shown:?}");
        }
    }
}

#[test]
fn inode_numbers_are_the_same_at_the_next_mount() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = open_scratch();
    let root = rich_store(dir.path().join("docker")).finish();
    let numbers = |arguments: &[&str]| {
        let mount = Mounted::with(&root, &dir.path().join("mnt"), arguments, 0);
        let tree: Tree = snapshot(mount.path(), &Options { no_content: true, ..Options::default() });
        // This one is another file each second.
        let lasting = tree.into_iter().filter(|(path, _)| path != b"status");
        lasting.map(|(path, entry)| (path, entry.ino.1)).collect::<BTreeMap<_, _>>()
    };
    let first = numbers(&[]);
    assert_eq!(numbers(&[]), first);
    assert_eq!(numbers(&["-o", "threads=1,allow_other"]), first);
}

#[test]
fn find_sees_no_loop() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = open_scratch();
    let root = rich_store(dir.path().join("docker")).finish();
    let mount = Mounted::new(&root, &dir.path().join("mnt"));
    let output = Command::new("find").arg(mount.path()).args(["-type", "d", "-links", "+0"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn statfs_is_the_stores() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new(|diff| fs::write(diff.join("file"), "x").unwrap());
    let tell = |path: &Path| {
        let all = rustix::fs::statfs(path).unwrap();
        (all.f_blocks, all.f_bfree, all.f_bavail, all.f_files, all.f_ffree, all.f_bsize, all.f_frsize, all.f_namelen)
    };
    // Others use the disk at the same time: what was the same before and after is what must be told.
    for _ in 0..1000 {
        let before = tell(&bench.stored());
        let found: Vec<_> =
            ["", "merged/t:1", "merged/t:1/file"].map(|path| tell(&bench.mount.path().join(path))).to_vec();
        if tell(&bench.stored()) == before {
            assert_eq!(found, vec![before; found.len()]);
            return;
        }
    }
    panic!("the disk does not rest");
}

// Content.

#[test]
fn special_files_are_shown_and_never_opened() {
    if !require_privileges("a mount") {
        return;
    }
    let mut listener = None;
    let bench = Bench::new(|diff| {
        fs::create_dir(diff.join("d")).unwrap();
        make_node(&diff.join("d/fifo"), FileType::Fifo, 0, 0);
        make_node(&diff.join("d/null"), FileType::CharacterDevice, 1, 3);
        make_node(&diff.join("d/disk"), FileType::BlockDevice, 7, 0);
        // A socket's address has at most 107 bytes, which the path may exceed.
        let dir = open_dir(&diff.join("d"));
        let short = PathBuf::from(format!("/proc/self/fd/{}/socket", dir.as_raw_fd()));
        listener = Some(UnixListener::bind(short).unwrap());
        fs::write(diff.join("d/file"), "needle\n").unwrap();
    });
    bench.assert_shown(&Options { no_content: true, ..Options::default() });
    let listener = listener.unwrap();
    listener.set_nonblocking(true).unwrap();
    for place in bench.places() {
        for script in ["grep -r needle .", "tar -cf - . | wc -c", "find . -type f -exec cat {} +", "ls -lR", "du -s ."]
        {
            let output = Command::new("timeout").args(["20", "sh", "-c", script]).current_dir(&place).output().unwrap();
            assert!(output.status.success(), "{script}: {output:?}");
        }
        let open = |name: &str| {
            let nonblocking = i32::try_from((OFlags::NONBLOCK).bits()).unwrap();
            File::options().read(true).custom_flags(nonblocking).open(place.join("d").join(name))
        };
        assert!(open("fifo").is_ok(), "a FIFO is opened in the kernel");
        assert_eq!(errno(open("null")), Some(Errno::ACCESS));
        assert_eq!(errno(open("disk")), Some(Errno::ACCESS));
        assert_eq!(errno(open("socket")), Some(Errno::NXIO));
        let dir = open_dir(&place.join("d"));
        let short = PathBuf::from(format!("/proc/self/fd/{}/socket", dir.as_raw_fd()));
        assert_eq!(errno(UnixStream::connect(short)), Some(Errno::CONNREFUSED));

        // Who writes to the stored FIFO finds no reader.
        let flags = OFlags::WRONLY | OFlags::NONBLOCK;
        let writer = rustix::fs::open(bench.stored().join("d/fifo"), flags, Mode::empty());
        assert_eq!(writer.err(), Some(Errno::NXIO), "the stored FIFO is open");
        assert_eq!(errno(listener.accept()), Some(Errno::AGAIN), "someone connected to the stored socket");
    }
}

#[test]
fn every_way_to_write_is_refused() {
    if !require_privileges("a mount") {
        return;
    }
    for arguments in [&[][..], &["-o", "allow_other"]] {
        let bench = Bench::with(Backing::Disk, arguments, |diff| {
            fs::create_dir(diff.join("dir")).unwrap();
            fs::write(diff.join("file"), "x").unwrap();
            symlink("file", diff.join("link")).unwrap();
            set_xattr(&diff.join("file"), "user.a", b"1");
        });
        let before = snapshot(&bench.stored(), &Options::default());
        let mut dirs = bench.places();
        dirs.extend(["", "by-tag", "merged", "by-tag/t:1", "by-container"].map(|dir| bench.mount.path().join(dir)));
        for dir in &dirs {
            assert_all_refused(&dir_writes(dir), dir);
        }
        for dir in bench.places() {
            assert_all_refused(&file_writes(&dir), &dir);
        }
        assert_same("the layer", &before, &snapshot(&bench.stored(), &Options::default()));
    }
}

type Attempts = Vec<(&'static str, Option<Errno>)>;

fn assert_all_refused(attempts: &Attempts, dir: &Path) {
    for (what, found) in attempts {
        assert_eq!(*found, Some(Errno::ROFS), "{what} in {}", dir.display());
    }
}

fn dir_writes(dir: &Path) -> Attempts {
    let new = dir.join("new");
    let mode = Mode::from_raw_mode(0o644);
    let now = Timestamps {
        last_access: Timespec { tv_sec: 1, tv_nsec: 0 },
        last_modification: Timespec { tv_sec: 1, tv_nsec: 0 },
    };
    vec![
        ("create", errno(File::create(&new))),
        ("mkdir", errno(fs::create_dir(&new))),
        ("mknod", rustix::fs::mknodat(CWD, &new, FileType::Fifo, mode, 0).err()),
        ("symlink", errno(symlink("x", &new))),
        ("chmod", errno(fs::set_permissions(dir, fs::Permissions::from_mode(0o777)))),
        ("chown", errno(lchown(dir, Some(1), Some(1)))),
        ("utimes", rustix::fs::utimensat(CWD, dir, &now, AtFlags::empty()).err()),
        ("setxattr", rustix::fs::setxattr(dir, "user.x", b"1", XattrFlags::empty()).err()),
        ("tmpfile", rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR, mode).err().map(no_tmpfile)),
    ]
}

/// FUSE has files without a name only from Linux 6.2 on, and says so first.
fn no_tmpfile(error: Errno) -> Errno {
    if error == Errno::OPNOTSUPP { Errno::ROFS } else { error }
}

fn file_writes(dir: &Path) -> Attempts {
    let (file, new) = (dir.join("file"), dir.join("new"));
    vec![
        ("open for writing", errno(File::options().write(true).open(&file))),
        ("open for both", errno(File::options().read(true).write(true).open(&file))),
        ("open for appending", errno(File::options().append(true).open(&file))),
        ("open to truncate", errno(File::create(&file))),
        ("truncate", errno(truncate(&file))),
        ("unlink", errno(fs::remove_file(&file))),
        ("unlink of a link", errno(fs::remove_file(dir.join("link")))),
        ("rmdir", errno(fs::remove_dir(dir.join("dir")))),
        ("rename", errno(fs::rename(&file, &new))),
        ("link", errno(fs::hard_link(&file, &new))),
        ("chmod", errno(fs::set_permissions(&file, fs::Permissions::from_mode(0o777)))),
        ("chown", errno(lchown(dir.join("link"), Some(1), Some(1)))),
        ("removexattr", rustix::fs::removexattr(&file, "user.a").err()),
        ("access", rustix::fs::access(&file, rustix::fs::Access::WRITE_OK).err()),
    ]
}

/// truncate(2) by the program of that name, as there is no call by path in the libraries at hand.
fn truncate(file: &Path) -> io::Result<()> {
    let output = Command::new("truncate").args(["-s", "0"]).arg(file).env("LC_ALL", "C").output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    let error = if said.contains("Read-only file system") { Errno::ROFS } else { Errno::INVAL };
    Err(error.into())
}

#[test]
fn every_way_to_read_gives_the_same_bytes() {
    if !require_privileges("a mount") {
        return;
    }
    // With passthrough the kernel reads the backing file, which wants O_DIRECT's buffers and offsets aligned, as kernel
    // overlayfs does; without it any will do.
    for (opens, alignment) in [("opens=once", 1), ("opens=each", 1), ("opens=passthrough", 4096)] {
        assert_every_way_to_read(opens, alignment);
    }
}

fn assert_every_way_to_read(opens: &str, alignment: usize) {
    let content = noise(3 * 1024 * 1024 + 17, 0);
    let fill = |diff: &Path| fs::write(diff.join("file"), &content).unwrap();
    let bench = Bench::with(Backing::Disk, &["-o", opens], fill);
    for place in bench.places() {
        let path = place.join("file");
        let file = File::open(&path).unwrap();
        let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap();
        let unbuffered = File::options().read(true).custom_flags(direct).open(&path).unwrap();
        for (file, alignment) in [(&unbuffered, alignment), (&file, 1)] {
            if alignment > 1 {
                let mut buffer = vec![0; (1 << 20) + alignment];
                let start = buffer.as_ptr().align_offset(alignment);
                let aligned = &mut buffer[start..start + (1 << 20)];
                for offset in [0, 1 << 20, 3 << 20] {
                    let count = file.read_at(aligned, offset as u64).unwrap();
                    let expected = &content[offset..content.len().min(offset + (1 << 20))];
                    assert!(&aligned[..count] == expected, "without a cache at {offset} of {}", path.display());
                }
                continue;
            }
            for (offset, len) in
                [(0, 1), (1, 4095), (4095, 2), (4097, 131_072), (131_071, 131_074), (1 << 20, 1 << 20), (3_145_728, 17)]
            {
                let mut found = vec![0; len];
                file.read_exact_at(&mut found, offset as u64).unwrap();
                assert!(found == content[offset..offset + len], "{len} bytes at {offset} of {}", path.display());
            }
            let mut found = vec![0; 100];
            let count = file.read_at(&mut found, content.len() as u64 - 9).unwrap();
            assert!(found[..count] == content[content.len() - 9..], "the end of {}", path.display());
        }
        if alignment == 1 {
            let mut whole = Vec::new();
            (&unbuffered).read_to_end(&mut whole).unwrap();
            assert!(whole == content, "read without a cache");
        }

        let copy = bench.dir.path().join("copy");
        let out = File::create(&copy).unwrap();
        let mut offset = 0;
        while rustix::fs::sendfile(&out, &file, Some(&mut offset), 1 << 20).unwrap() > 0 {}
        assert!(fs::read(&copy).unwrap() == content, "sendfile");
        fs::copy(&path, &copy).unwrap();
        assert!(fs::read(&copy).unwrap() == content, "copy_file_range");
    }
}

/// The kernel maps a program that it runs into memory.
#[test]
fn a_program_runs_from_the_mount() {
    if !require_privileges("a mount") {
        return;
    }
    let program = Path::new(env!("CARGO_BIN_EXE_docker-fs"));
    let bench = Bench::new(|diff| {
        fs::copy(program, diff.join("program")).unwrap();
    });
    let help = |program: &Path| Command::new(program).arg("--help").output().unwrap();
    let expected = help(program);
    assert!(expected.status.success());
    for place in bench.places() {
        let found = help(&place.join("program"));
        assert!(found.status.success() && found.stdout == expected.stdout, "{}", place.display());
    }
}

// Permissions.

#[test]
fn allow_other_keeps_the_permissions_of_the_files() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::with(Backing::Disk, &["-o", "allow_other"], |diff| {
        let file = |name: &str, mode: u32| {
            fs::write(diff.join(name), name).unwrap();
            set_mode(&diff.join(name), mode);
        };
        file("everyone", 0o644);
        file("root-only", 0o600);
        file("not-even-root", 0o000);
        file("group", 0o640);
        lchown(diff.join("group"), Some(0), Some(NOBODY)).unwrap();
        file("own", 0o400);
        lchown(diff.join("own"), Some(NOBODY), Some(0)).unwrap();
        file("own-but-not-readable", 0o044);
        lchown(diff.join("own-but-not-readable"), Some(NOBODY), Some(0)).unwrap();
        for (name, user, permissions, mask) in [
            ("acl-allows", NOBODY, 4, 4),
            ("acl-masked", NOBODY, 4, 0),
            ("acl-for-another", 1234, 4, 4),
            ("acl-denies", NOBODY, 0, 4),
        ] {
            file(name, 0o600);
            set_xattr(&diff.join(name), "system.posix_acl_access", &acl_for(user, permissions, mask));
        }
        fs::create_dir(diff.join("closed")).unwrap();
        file("closed/inside", 0o644);
        set_mode(&diff.join("closed"), 0o700);
        fs::create_dir(diff.join("unlisted")).unwrap();
        file("unlisted/inside", 0o644);
        set_mode(&diff.join("unlisted"), 0o711);
    });
    for place in bench.places() {
        for name in ["everyone", "group", "own", "acl-allows", "unlisted/inside"] {
            assert_eq!(nobody_reads(&place.join(name)), Ok(name.as_bytes().to_vec()), "{}", place.display());
        }
        for name in [
            "root-only",
            "not-even-root",
            "own-but-not-readable",
            "acl-masked",
            "acl-for-another",
            "acl-denies",
            "closed/inside",
        ] {
            let denied = nobody_reads(&place.join(name)).expect_err(name);
            assert!(denied.contains("Permission denied"), "{name}: {denied}");
            assert_eq!(fs::read(place.join(name)).unwrap(), name.as_bytes(), "root reads all");
        }
        for name in ["closed", "unlisted"] {
            let listed = as_nobody("ls", &[place.join(name).as_os_str()]);
            assert!(!listed.status.success(), "{name} is listed: {listed:?}");
        }
    }
}

#[test]
fn without_allow_other_no_other_user_enters() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new(|diff| fs::write(diff.join("file"), "x").unwrap());
    // The way to the mount is open.
    let way = as_nobody("ls", &[bench.dir.path().as_os_str()]);
    assert!(
        String::from_utf8_lossy(&way.stdout).contains("mnt"),
        "another user cannot go to the scratch directory: {way:?}"
    );
    for path in [bench.mount.path().to_owned(), bench.mount.path().join("status"), bench.places()[4].join("file")] {
        let output = as_nobody("cat", &[path.as_os_str()]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("Permission denied"), "{}: {said}", path.display());
    }
    assert!(!as_nobody("ls", &[bench.mount.path().as_os_str()]).status.success());
}

// Names of the view.

/// Two images whose IDs have the same first four digits.
fn alike(store: &mut StoreBuilder) -> (ImageId, ImageId) {
    let mut seen: BTreeMap<String, serde_json::Value> = BTreeMap::new();
    for n in 0.. {
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Labels": {"n": n.to_string()}},
            "rootfs": {"type": "layers"}});
        let start = sha256_hex(config.to_string())[..4].to_owned();
        if let Some(other) = seen.insert(start, config.clone()) {
            return (store.image_of_config(&other), store.image_of_config(&config));
        }
    }
    panic!("hashes of four digits repeat");
}

struct Named {
    mount: Mounted,
    layer: LayerRef,
    ubuntu: ImageId,
    untagged: ImageId,
    alike: (ImageId, ImageId),
    container: String,
    manifest: String,
    /// Gone after the mount.
    _dir: TempDir,
}

impl Named {
    fn new() -> Self {
        let dir = open_scratch();
        let mut store = StoreBuilder::new(dir.path().join("docker"));
        let layers = store.chain(2);
        fs::write(layers[0].diff_dir().join("base"), "base").unwrap();
        fs::write(layers[1].diff_dir().join("top"), "top").unwrap();
        let manifest = sha256_hex("manifest of ubuntu");
        let mut tagged = |names: &[&str]| {
            let image = store.image(&layers);
            for name in names {
                store.tag(name, &image);
            }
            image
        };
        let ubuntu = tagged(&["ubuntu:latest", "ubuntu:22.04"]);
        tagged(&["grafana/grafana:9.0"]);
        tagged(&["reg.example:5000/team/app:2"]);
        tagged(&["host:5000"]);
        tagged(&["host:5000/app:1"]);
        let untagged = tagged(&[]);
        store.digest("ubuntu", &manifest, &ubuntu);
        store.digest("other", &manifest, &untagged);
        let alike = alike(&mut store);
        let container = store.container("web", &ubuntu, layers.last()).id;
        let mount = Mounted::new(&store.finish(), &dir.path().join("mnt"));
        Self { mount, layer: layers[1].clone(), ubuntu, untagged, alike, container, manifest, _dir: dir }
    }

    /// Where a path leads, links followed; `None` where there is nothing.
    fn leads(&self, path: &str) -> Option<String> {
        let found = fs::canonicalize(self.mount.path().join(path)).ok()?;
        let mount = fs::canonicalize(self.mount.path()).unwrap();
        Some(found.strip_prefix(mount).unwrap().to_str().unwrap().to_owned())
    }

    fn list(&self, dir: &str) -> Vec<String> {
        let entries = fs::read_dir(self.mount.path().join(dir)).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn tags_are_found_by_every_spelling() {
    if !require_privileges("a mount") {
        return;
    }
    let named = Named::new();
    for folder in ["by-tag", "merged"] {
        for (typed, listed) in [
            ("ubuntu:latest", "ubuntu:latest"),
            ("ubuntu", "ubuntu:latest"),
            ("library/ubuntu", "ubuntu:latest"),
            ("library/ubuntu:22.04", "ubuntu:22.04"),
            ("docker.io/library/ubuntu", "ubuntu:latest"),
            ("docker.io/library/ubuntu:22.04", "ubuntu:22.04"),
            ("docker.io/ubuntu", "ubuntu:latest"),
            ("docker.io/grafana/grafana:9.0", "grafana/grafana:9.0"),
            ("reg.example:5000/team/app:2", "reg.example:5000/team/app:2"),
            // The image gives way to the registry's directory.
            ("host:5000", "host:5000"),
            ("host:5000/app:1", "host:5000/app:1"),
            ("docker.io/library/host:5000", "docker.io/library/host:5000"),
            ("library/host:5000", "docker.io/library/host:5000"),
        ] {
            let expected = Some(format!("{folder}/{listed}"));
            assert_eq!(named.leads(&format!("{folder}/{typed}")), expected, "{folder}/{typed}");
        }
        for nothing in
            ["debian", "ubuntu:23", "docker.io/library/debian", "grafana/grafana", "reg.example:5000/team/app"]
        {
            assert_eq!(named.leads(&format!("{folder}/{nothing}")), None, "{folder}/{nothing}");
        }
        assert_eq!(named.list(&format!("{folder}/host:5000")), ["app:1"]);
        // Of the aliases, none is listed; the directory of what was moved aside is.
        let listed = named.list(folder);
        let tags: Vec<&str> = listed.iter().map(String::as_str).filter(|name| name.len() < 64).collect();
        assert_eq!(tags, ["docker.io", "grafana", "host:5000", "reg.example:5000", "ubuntu:22.04", "ubuntu:latest"]);
    }
    assert!(named.mount.path().join("by-tag/docker.io/library/host:5000/config.json").exists());
}

#[test]
fn ids_are_found_whole_and_short() {
    if !require_privileges("a mount") {
        return;
    }
    let named = Named::new();
    let (ubuntu, untagged, layer) = (&named.ubuntu.0, &named.untagged.0, &named.layer);
    let (one, other) = (&named.alike.0.0, &named.alike.1.0);
    let path = |folder: &str, name: &str| format!("{folder}/{name}");
    for (folder, id) in [
        ("by-id", ubuntu),
        ("by-id", untagged),
        ("by-chain", &layer.chain_id),
        ("by-diff", &layer.diff_id),
        ("merged", untagged),
    ] {
        let listed = Some(path(folder, id));
        for typed in [id.clone(), format!("sha256:{id}"), id[..12].to_owned(), format!("sha256:{}", &id[..12])] {
            assert_eq!(named.leads(&path(folder, &typed)), listed, "{folder}/{typed}");
        }
        for nothing in
            [&id[..3], &format!("sha256:{}", &id[..3]), &id.to_uppercase(), &format!("{id}0"), "0000000000000"]
        {
            assert_eq!(named.leads(&path(folder, nothing)), None, "{folder}/{nothing}");
        }
    }
    for folder in ["by-id", "merged"] {
        let ambiguous = &one[..4];
        assert_eq!(named.leads(&path(folder, ambiguous)), None, "{ambiguous} is two images");
        let apart = one.bytes().zip(other.bytes()).position(|(a, b)| a != b).unwrap() + 1;
        assert_eq!(named.leads(&path(folder, &one[..apart])), Some(path(folder, one)));
        assert_eq!(named.leads(&path(folder, &other[..apart])), Some(path(folder, other)));
    }
    let container = &named.container;
    for typed in [container.clone(), container[..12].to_owned(), "web".to_owned()] {
        assert_eq!(named.leads(&path("by-container", &typed)), Some("by-container/web".to_owned()), "{typed}");
    }
    assert_eq!(named.list("by-container"), ["web"]);
}

#[test]
fn merged_is_found_by_id_digest_and_chain() {
    if !require_privileges("a mount") {
        return;
    }
    let named = Named::new();
    let (ubuntu, untagged, chain) = (&named.ubuntu.0, &named.untagged.0, &named.layer.chain_id);
    let digest = format!("ubuntu@sha256:{}", named.manifest);
    // A copy of the link alone would hold nothing, so the ID by which images lead here is a directory itself.
    assert_eq!(named.leads(&format!("merged/{ubuntu}")), Some(format!("merged/{ubuntu}")));
    for typed in [format!("sha256:{ubuntu}"), ubuntu[..12].to_owned(), digest.clone()] {
        let found = named.leads(&format!("merged/{typed}")).unwrap_or_default();
        assert!(["merged/ubuntu:22.04", "merged/ubuntu:latest"].contains(&found.as_str()), "{typed} leads to {found}");
    }
    let by_digest = format!("other@sha256:{}", named.manifest);
    assert_eq!(named.leads(&format!("merged/{by_digest}")), Some(format!("merged/{untagged}")));
    let expected = [digest, by_digest].map(|name| named.mount.path().join("by-digest").join(name));
    for dir in expected {
        let merged = fs::canonicalize(dir.join("merged")).unwrap();
        assert_eq!(fs::read(merged.join("base")).unwrap(), b"base");
    }
    let listed = named.list("merged");
    assert!(listed.contains(untagged), "an image without a tag is listed by its ID: {listed:?}");
    assert!(!listed.contains(ubuntu) && !listed.contains(chain), "{listed:?}");
    for typed in [chain.clone(), format!("sha256:{chain}")] {
        let dir = named.mount.path().join("merged").join(&typed);
        assert_eq!(fs::read(dir.join("top")).unwrap(), b"top", "{typed}");
        assert_eq!(fs::read(dir.join("base")).unwrap(), b"base", "{typed}");
    }
    // Every image's link leads to its union, from whatever depth.
    for image in ["by-tag/ubuntu:22.04", "by-tag/reg.example:5000/team/app:2", "by-tag/docker.io/library/host:5000"] {
        let content = fs::read(named.mount.path().join(image).join("merged/top"));
        assert_eq!(content.unwrap(), b"top", "{image}");
    }
}

// The view's own files.

#[test]
fn deletions_are_shown_in_the_form_asked_for() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = open_scratch();
    let mut store = StoreBuilder::new(dir.path().join("docker"));
    let layers = store.chain(2);
    let (lower, upper) = (layers[0].diff_dir(), layers[1].diff_dir());
    for path in ["gone", "d/lower"] {
        fs::create_dir_all(lower.join(path).parent().unwrap()).unwrap();
        fs::write(lower.join(path), path).unwrap();
    }
    make_node(&upper.join("gone"), FileType::CharacterDevice, 0, 0);
    fs::create_dir(upper.join("d")).unwrap();
    set_xattr(&upper.join("d"), "trusted.overlay.opaque", b"y");
    fs::write(upper.join("d/upper"), "upper").unwrap();
    let image = store.image(&layers);
    store.tag("t:1", &image);
    let root = store.finish();
    let paths = |mount: &Mounted, place: &str| -> Vec<String> {
        let tree = snapshot(&mount.path().join(place), &Options::default());
        tree.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
    };
    let layer = "by-tag/t:1/layers/1";
    {
        let mount = Mounted::new(&root, &dir.path().join("mnt"));
        assert_eq!(paths(&mount, layer), ["", ".wh.gone", "d", "d/.wh..wh..opq", "d/upper"]);
        assert_eq!(paths(&mount, "merged/t:1"), ["", "d", "d/upper"]);
        assert_eq!(xattr_names(&mount.path().join(layer).join("d")), BTreeSet::new());
        let mark = fs::metadata(mount.path().join(layer).join(".wh.gone")).unwrap();
        assert_eq!((mark.is_file(), mark.len(), mark.nlink()), (true, 0, 1));
        assert_eq!(errno(fs::metadata(mount.path().join(layer).join("gone"))), Some(Errno::NOENT));
    }
    let mount = Mounted::with(&root, &dir.path().join("mnt"), &["-o", "whiteouts=stored"], 0);
    let found = snapshot(&mount.path().join(layer), &Options::default());
    assert_same(layer, &snapshot(&upper, &Options::default()), &found);
    assert_eq!(errno(fs::metadata(mount.path().join(layer).join(".wh.gone"))), Some(Errno::NOENT));
    assert_eq!(paths(&mount, "merged/t:1"), ["", "d", "d/upper"]);
    assert_eq!(xattr_names(&mount.path().join("merged/t:1/d")), BTreeSet::new());
}

#[test]
fn config_and_history_are_the_stores() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = open_scratch();
    let mut store = StoreBuilder::new(dir.path().join("docker"));
    let layers = store.chain(2);
    layers[0].set_size(7);
    layers[1].set_size(123_456_789);
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", layer.diff_id)).collect();
    // Members that no one knows, and an order of their own: the bytes count.
    let image = store.image_of_config(&json!({
        "zzz": [1, {"b": null, "a": "\u{e9}\u{0}"}],
        "history": [
            {"created": "2020-01-02T03:04:05Z", "created_by": "ADD base"},
            {"created": "2020-01-02T03:04:06Z", "created_by": "ENV a=\u{1b}[31m\nb", "empty_layer": true},
            {"created_by": "RUN make"},
        ],
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "architecture": "amd64",
        "os": "linux",
    }));
    store.tag("t:1", &image);
    let stored = store.image_dir().join("imagedb/content/sha256").join(&image.0);
    let mount = Mounted::new(&store.finish(), &dir.path().join("mnt"));
    for place in ["by-tag/t:1".to_owned(), format!("by-id/{}", image.0)] {
        let place = mount.path().join(place);
        let config = fs::read(place.join("config.json")).unwrap();
        assert_eq!(config, fs::read(&stored).unwrap());
        assert_eq!(sha256_hex(&config), image.0);
        assert_eq!(fs::metadata(place.join("config.json")).unwrap().len(), config.len() as u64);
        let history = fs::read_to_string(place.join("history")).unwrap();
        let expected = "\
LAYER          SIZE  CREATED                         COMMAND
0                 7  2020-01-02T03:04:05Z            ADD base
-                 -  2020-01-02T03:04:06Z            ENV a=\\u{1b}[31m\\nb
1         123456789  -                               RUN make
";
        assert_eq!(history, expected);
        assert_eq!(fs::metadata(place.join("history")).unwrap().len(), history.len() as u64);
    }
}

#[test]
fn an_image_without_layers_is_an_empty_tree() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = open_scratch();
    let mut store = StoreBuilder::new(dir.path().join("docker"));
    let image = store.image(&[]);
    store.tag("empty:1", &image);
    let container = store.container("idle", &image, None);
    fs::write(container.upper_dir().join("new"), "x").unwrap();
    let mount = Mounted::new(&store.finish(), &dir.path().join("mnt"));
    let names = |path: &str| -> Vec<String> {
        let tree = snapshot(&mount.path().join(path), &Options::default());
        tree.into_keys().map(|path| String::from_utf8(path).unwrap()).filter(|path| !path.is_empty()).collect()
    };
    assert_eq!(names("by-tag/empty:1"), ["config.json", "history", "layers", "merged"]);
    assert_eq!(names("merged/empty:1"), [""; 0]);
    assert_eq!(names("by-container/idle/merged"), ["new"]);
    assert_eq!(names("by-container/idle/layers"), [""; 0]);
    let merged = fs::canonicalize(mount.path().join("by-tag/empty:1/merged")).unwrap();
    assert!(fs::metadata(&merged).unwrap().is_dir() && fs::read_dir(&merged).unwrap().next().is_none());
}

/// Gives all below a directory to another owner, as `chown -R` does.
fn give_away(dir: &Path) {
    lchown(dir, Some(1000), Some(1000)).unwrap();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() { give_away(&path) } else { lchown(&path, Some(1000), Some(1000)).unwrap() }
    }
}

#[test]
fn a_store_that_was_given_to_another_owner_keeps_its_deletions() {
    if !require_privileges("trusted attributes") {
        return;
    }
    // Whose engine made it is found out by marks that may be anywhere; with none, either answer is right.
    for (mark, decoy) in [
        (Some("trusted.overlay.opaque"), None),
        (Some("trusted.overlay.opaque"), Some("user.overlay.opaque")),
        (Some("user.overlay.opaque"), None),
        (None, None),
    ] {
        for is_whole in [false, true] {
            let dir = support::scratch("fidelity");
            let mut store = StoreBuilder::new(dir.path().join("docker"));
            let layers = store.chain(2);
            for layer in &layers {
                for place in ["opt/app/deep", "srv/other"] {
                    fs::create_dir_all(layer.diff_dir().join(place)).unwrap();
                }
            }
            let (lower, upper) = (layers[0].diff_dir(), layers[1].diff_dir());
            fs::write(lower.join("opt/app/deep/deleted"), "deleted").unwrap();
            fs::write(lower.join("srv/other/kept"), "kept").unwrap();
            if let Some(mark) = mark {
                set_xattr(&upper.join("opt/app/deep"), mark, b"y");
            }
            if let Some(decoy) = decoy {
                set_xattr(&upper.join("srv/other"), decoy, b"y");
            }
            let image = store.image(&layers);
            store.tag("app:1", &image);
            let root = store.finish();
            let is_roots = mark.is_some_and(|mark| mark.starts_with("trusted"));
            match is_whole {
                true => give_away(&root),
                // As the engine of a user that root's engine is remapped to leaves it.
                false if is_roots => lchown(root.join("overlay2"), Some(1000), Some(1000)).unwrap(),
                false => continue,
            }
            let mount = Mounted::new(&root, &dir.path().join("mnt"));
            let top = mount.path().join("merged/app:1");
            let case = format!("{mark:?}, {decoy:?}, all given away: {is_whole}");
            assert_eq!(top.join("opt/app/deep/deleted").exists(), mark.is_none(), "{case}");
            assert!(top.join("srv/other/kept").exists(), "{case}");
        }
    }
}
