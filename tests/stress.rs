//! What a mount does under load and at its end: many readers at once, dropped caches, fifty mounts in a row, a killed server, users who
//! stay. Also what must not happen meanwhile: a change of the store by our reading, or a stale view of a container that changes.
//!
//! Everything here needs root. `DOCKER_FS_STRESS_SECONDS` says how long the readers read.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod support;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::eventually;
use support::mount::{Mounted, require_privileges};
use support::random::noise;
use support::store::StoreBuilder;
use support::tree::{Options, Tree, assert_same, diff, snapshot, walk};

const WALKERS: usize = 8;
/// Makes the kernel forget what it has cached: 2 directory entries and inodes, 3 pages too.
fn drop_caches(what: u8) {
    fs::write("/proc/sys/vm/drop_caches", what.to_string()).unwrap();
}

/// How often something of this program is mounted at a path.
fn mounts_at(path: &Path) -> usize {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.split(' ').nth(4) == path.to_str()).count()
}

/// Some images that share layers, a container, and something of each kind of file.
fn store(root: PathBuf) -> StoreBuilder {
    let mut store = StoreBuilder::new(root);
    let layers = store.chain(6);
    for (n, layer) in layers.iter().enumerate() {
        let diff = layer.diff_dir();
        for dir in 0..6_usize {
            let dir_path = diff.join(format!("usr/dir-{dir}/deep/er"));
            fs::create_dir_all(&dir_path).unwrap();
            for file in 0..4_usize {
                let seed = n * 100 + dir * 10 + file;
                let name = dir_path.join(format!("file-{}", (n + file) % 7));
                fs::write(name, noise(seed * 37 % 3_000, seed as u64)).unwrap();
            }
            symlink(format!("../target-{n}"), dir_path.join(format!("link-{n}"))).unwrap();
        }
        fs::write(diff.join(format!("only-{n}")), noise(60_000, n as u64)).unwrap();
        fs::hard_link(diff.join(format!("only-{n}")), diff.join(format!("hard-{n}"))).unwrap();
        if n > 1 {
            whiteout(&diff.join(format!("only-{}", n - 2)));
            let opaque = diff.join(format!("usr/dir-{n}"));
            fs::create_dir_all(&opaque).unwrap();
            rustix::fs::setxattr(&opaque, "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
        }
    }
    for count in [2, 4, 6] {
        let image = store.image(&layers[..count]);
        store.tag(&format!("app:{count}"), &image);
        store.tag(&format!("reg.example:5000/team/app:{count}"), &image);
        let container = store.container(&format!("web-{count}"), &image, layers[..count].last());
        container.write_init_files();
    }
    store
}

fn whiteout(path: &Path) {
    let device = rustix::fs::makedev(0, 0);
    rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), device).unwrap();
}

/// The images as a reader sees them, with all content.
fn images(mount: &Path) -> Tree {
    let mut all = Tree::new();
    for folder in ["by-tag", "merged"] {
        let tree = snapshot(&mount.join(folder), &Options::default());
        all.extend(tree.into_iter().map(|(path, entry)| ([folder.as_bytes(), b"/", &path].concat(), entry)));
    }
    all
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Resources {
    descriptors: usize,
    threads: usize,
    memory_kib: u64,
}

fn resources(pid: u32) -> Resources {
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let memory_kib = memory.trim().trim_end_matches(" kB").parse().unwrap();
    Resources { descriptors: count("fd"), threads: count("task"), memory_kib }
}

#[test]
fn parallel_readers_see_the_same_and_leave_nothing() {
    if !require_privileges("a mount") {
        return;
    }
    let seconds = std::env::var("DOCKER_FS_STRESS_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let dir = support::scratch("stress");
    let root = store(dir.path().join("docker")).finish();
    let mount = Mounted::new(&root, &dir.path().join("mnt"));
    let pid = mount.server().unwrap();

    let first = images(mount.path());
    drop_caches(3);
    let before = resources(pid);
    let peak = AtomicUsize::new(0);
    let walks = AtomicUsize::new(0);
    let end = Instant::now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        for _ in 0..WALKERS {
            scope.spawn(|| {
                while Instant::now() < end {
                    let found = images(mount.path());
                    assert!(found == first, "a reader sees something else:\n  {}", diff(&first, &found).join("\n  "));
                    peak.fetch_max(resources(pid).descriptors, Ordering::Relaxed);
                    let walk = walks.fetch_add(1, Ordering::Relaxed);
                    drop_caches(if walk.is_multiple_of(8) { 3 } else { 2 });
                }
            });
        }
    });
    let level = eventually(|| {
        drop_caches(2);
        let after = resources(pid);
        after.descriptors <= before.descriptors && after.threads <= before.threads
    });
    let after = resources(pid);
    eprintln!(
        "{walks:?} walks of {} objects by {WALKERS} readers; before {before:?}, after {after:?}, at most {peak:?} descriptors",
        first.len()
    );
    assert!(level, "what the readers opened stays: before {before:?}, after {after:?}");
    assert!(after.memory_kib < before.memory_kib * 3 + 32 * 1024, "memory: before {before:?}, after {after:?}");
    assert_same("the mount afterwards", &first, &images(mount.path()));
}

/// Runs the command; its output goes nowhere, as a mount in the background would keep a pipe open.
fn docker_fs(arguments: &[&OsStr]) -> ExitStatus {
    let mut command = Command::new(env!("CARGO_BIN_EXE_docker-fs"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap()
}

fn unmount(mount: &Path, options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_docker-fs"));
    command.arg("unmount").args(options).arg(mount).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn fifty_mounts_leave_nothing() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("stress");
    let root = store(dir.path().join("docker")).finish();
    let point = dir.path().join("mnt");
    let mut first = None;
    for round in 0..50 {
        let mount = Mounted::new(&root, &point);
        let number = fs::metadata(point.join("merged/app:6/only-5")).unwrap().ino();
        assert_eq!(*first.get_or_insert(number), number, "round {round}");
        let pid = mount.daemon().unwrap();
        let ended = unmount(&point, &[]);
        assert!(ended.status.success(), "round {round}: {ended:?}");
        assert_eq!(mounts_at(&point), 0, "round {round}");
        assert!(eventually(|| mount.daemon().is_none()), "round {round}: process {pid} stays");
        assert!(fs::read_dir(&point).unwrap().next().is_none(), "round {round}: the mount point is empty again");
    }
}

#[test]
fn a_killed_server_can_be_mounted_over() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("stress");
    let root = store(dir.path().join("docker")).finish();
    let point = dir.path().join("mnt");
    let dead = Mounted::new(&root, &point);
    let first = images(&point);
    let running = AtomicBool::new(true);
    let walks = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WALKERS {
            scope.spawn(|| {
                while running.load(Ordering::Relaxed) {
                    // Whatever error there is, the walk ends.
                    walk(&point.join("merged"), &Options { no_content: true, ..Options::default() });
                    walks.fetch_add(1, Ordering::Relaxed);
                    drop_caches(2);
                }
            });
        }
        let busy = eventually(|| walks.load(Ordering::Relaxed) > 2);
        let pid = Pid::from_raw(dead.daemon().unwrap().cast_signed()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        assert!(eventually(|| dead.daemon().is_none()), "it is not killed");
        running.store(false, Ordering::Relaxed);
        assert!(busy, "the readers do not read");
    });
    let error = fs::metadata(point.join("merged")).unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::NOTCONN));
    assert_eq!(mounts_at(&point), 1, "the dead mount is there");

    let again = docker_fs(&[root.as_os_str(), point.as_os_str()]);
    assert!(again.success(), "mounting over a dead mount: {again}");
    assert_same("the second mount", &first, &images(&point));
    let ended = unmount(&point, &[]);
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(mounts_at(&point), 0, "the dead mount lies below");
    assert!(eventually(|| dead.daemon().is_none()));
}

#[test]
fn a_dead_mount_can_be_unmounted() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("stress");
    let root = store(dir.path().join("docker")).finish();
    let mount = Mounted::new(&root, &dir.path().join("mnt"));
    let pid = Pid::from_raw(mount.daemon().unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    assert!(eventually(|| mount.daemon().is_none()));
    let ended = unmount(mount.path(), &[]);
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(mounts_at(mount.path()), 0);
}

/// A process whose working directory is in the mount; it ends with its standard input.
fn process_in(dir: &Path) -> Child {
    Command::new("cat").current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_mount_in_use_is_unmounted_lazily_only() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("stress");
    let mut store = StoreBuilder::new(dir.path().join("docker"));
    let layer = store.layer(None);
    let content = noise(8 << 20, 1);
    fs::write(layer.diff_dir().join("big"), &content).unwrap();
    let image = store.image(&[layer]);
    store.tag("t:1", &image);
    let mount = Mounted::new(&store.finish(), &dir.path().join("mnt"));
    let point = mount.path();

    let mut file = File::open(point.join("merged/t:1/big")).unwrap();
    let mut start = vec![0; 1000];
    file.read_exact(&mut start).unwrap();
    let mut inside = process_in(&point.join("merged"));
    let refused = unmount(point, &[]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("in use") && said.contains("--lazy"), "{said}");
    assert_eq!(mounts_at(point), 1);
    assert!(fs::read_dir(point).unwrap().next().is_some(), "the mount still answers");

    let ended = unmount(point, &["--lazy"]);
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(mounts_at(point), 0);
    assert!(fs::read_dir(point).unwrap().next().is_none(), "the directory is free");
    drop_caches(3);
    let mut found = vec![0; 1 << 20];
    file.read_exact_at(&mut found, 7 << 20).unwrap();
    assert!(found == content[7 << 20..], "what is open can still be read");
    assert!(mount.daemon().is_some());

    drop(file);
    drop(inside.stdin.take());
    inside.wait().unwrap();
    assert!(eventually(|| mount.daemon().is_none()), "the server outlives its last user");
}

/// A mount in the foreground, so that its exit code can be told.
struct Foreground {
    child: Child,
    mount: PathBuf,
}

impl Foreground {
    fn new(root: &Path, mount: &Path) -> Self {
        fs::create_dir_all(mount).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_docker-fs"))
            .arg("-f")
            .arg(root)
            .arg(mount)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Self { child, mount: mount.to_owned() };
        assert!(eventually(|| mount.join("status").exists()), "it does not mount");
        started
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn exit_code(&mut self) -> Option<i32> {
        let mut status = None;
        assert!(
            eventually(|| {
                status = self.child.try_wait().unwrap();
                status.is_some()
            }),
            "it does not end"
        );
        status.and_then(|status| status.code())
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
        let _ = rustix::mount::unmount(&self.mount, flags);
    }
}

#[test]
fn a_signal_ends_a_mount_in_use() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("stress");
    let root = store(dir.path().join("docker")).finish();
    let point = dir.path().join("mnt");
    for signal in [Signal::TERM, Signal::INT] {
        // Nobody uses it.
        let mut idle = Foreground::new(&root, &point);
        idle.signal(signal);
        assert_eq!(idle.exit_code(), Some(0), "{signal:?}");
        assert_eq!(mounts_at(&point), 0);

        // Its user reads on, then leaves.
        let mut used = Foreground::new(&root, &point);
        let file = File::open(point.join("merged/app:6/only-5")).unwrap();
        used.signal(signal);
        assert!(eventually(|| mounts_at(&point) == 0), "{signal:?}: the directory is not freed");
        let mut found = vec![0; 60_000];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == noise(60_000, 5));
        assert_eq!(used.child.try_wait().unwrap(), None, "{signal:?}: it does not wait for its user");
        drop(file);
        assert_eq!(used.exit_code(), Some(0), "{signal:?}");

        // Its user stays; a second signal is enough.
        let mut held = Foreground::new(&root, &point);
        let mut inside = process_in(&point.join("merged"));
        held.signal(signal);
        assert!(eventually(|| mounts_at(&point) == 0), "{signal:?}: the directory is not freed");
        held.signal(signal);
        assert_eq!(held.exit_code(), Some(0), "{signal:?}");
        drop(inside.stdin.take());
        inside.wait().unwrap();
    }
}

#[test]
fn a_copy_of_the_mount_in_another_namespace_does_not_keep_it_from_ending() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("stress");
    let root = store(dir.path().join("docker")).finish();
    let point = dir.path().join("mnt");
    let mut held = Foreground::new(&root, &point);
    let mut elsewhere = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", "echo ready; read _"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    elsewhere.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    held.signal(Signal::TERM);
    let freed = eventually(|| mounts_at(&point) == 0);
    held.signal(Signal::TERM);
    let code = held.exit_code();
    drop(elsewhere.stdin.take());
    elsewhere.wait().unwrap();
    assert!(freed, "the directory is not freed");
    assert_eq!(code, Some(0));
}

#[test]
fn readers_do_not_keep_a_signalled_mount_from_ending() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("stress");
    let root = store(dir.path().join("docker")).finish();
    let point = dir.path().join("mnt");
    let mut served = Foreground::new(&root, &point);
    let (running, walks) = (AtomicBool::new(true), AtomicUsize::new(0));
    let code = std::thread::scope(|scope| {
        for _ in 0..WALKERS {
            scope.spawn(|| {
                while running.load(Ordering::Relaxed) {
                    walk(&point.join("merged"), &Options { no_content: true, ..Options::default() });
                    walks.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let busy = eventually(|| walks.load(Ordering::Relaxed) > 2);
        served.signal(Signal::TERM);
        running.store(false, Ordering::Relaxed);
        busy.then(|| served.exit_code())
    });
    assert_eq!(code, Some(Some(0)));
    assert_eq!(mounts_at(&point), 0);
}

// What reading does to the store.

/// Every path below a directory, itself included.
fn paths_below(dir: &Path) -> Vec<PathBuf> {
    let tree = walk(dir, &Options { no_content: true, ..Options::default() }).tree;
    tree.into_keys().map(|path| dir.join(OsStr::from_bytes(&path))).collect()
}

/// Size, type, and the three times in nanoseconds.
type Fingerprint = (i64, u32, [(i64, u64); 3]);

fn fingerprints(paths: &[PathBuf]) -> BTreeMap<PathBuf, Fingerprint> {
    let fingerprint = |path: &PathBuf| {
        let stat = rustix::fs::lstat(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let times = [
            (stat.st_atime, stat.st_atime_nsec),
            (stat.st_mtime, stat.st_mtime_nsec),
            (stat.st_ctime, stat.st_ctime_nsec),
        ];
        (path.clone(), (stat.st_size, stat.st_mode, times))
    };
    paths.iter().map(fingerprint).collect()
}

/// Sets an access time so long ago that the next access would be noted (mount option relatime).
fn age(path: &Path) {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 1_000_000_000, tv_nsec: 123_456_789 },
        last_modification: Timespec { tv_sec: 1_100_000_000, tv_nsec: 987_654_321 },
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

#[test]
fn reading_changes_nothing_in_the_store() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("stress");
    let root = store(dir.path().join("docker")).finish();
    let paths = paths_below(&root);
    let links = paths.iter().filter(|path| path.is_symlink()).count();
    paths.iter().for_each(|path| age(path));
    let before = fingerprints(&paths);
    for arguments in [&[][..], &["-o", "whiteouts=stored,allow_other"]] {
        let mount = Mounted::with(&root, &dir.path().join("mnt"), arguments, 0);
        let tree = snapshot(mount.path(), &Options { probe: vec![b"no-such-name".to_vec()], ..Options::default() });
        assert!(tree.len() > 1000, "{} objects", tree.len());
        assert!(tree.values().any(|entry| entry.target.as_deref() == Some(b"../target-5")));
        statfs_of_all(mount.path());
    }
    let after = fingerprints(&paths);
    let changed: Vec<String> = before
        .iter()
        .filter(|(path, fingerprint)| after[*path] != **fingerprint)
        .map(|(path, fingerprint)| format!("{path:?}: {fingerprint:?} became {:?}", after[path]))
        .collect();
    assert!(changed.is_empty(), "{} of {} changed:\n  {}", changed.len(), paths.len(), changed.join("\n  "));
    let (found, expected): (BTreeSet<_>, BTreeSet<_>) =
        (paths_below(&root).into_iter().collect(), paths.iter().cloned().collect());
    assert_eq!(found, expected, "names came or went");

    // Where the file system notes no accesses at all, nothing was proved.
    let noted = |path: &PathBuf| fingerprints(std::slice::from_ref(path))[path].2[0] != before[path].2[0];
    let link = paths.iter().find(|path| path.is_symlink()).unwrap();
    fs::read_link(link).unwrap();
    if noted(link) {
        eprintln!("{} objects, of them {links} links, with all times as before", paths.len());
    } else {
        eprintln!("weakened: this file system does not note accesses");
    }
}

fn statfs_of_all(mount: &Path) {
    for entry in fs::read_dir(mount).unwrap() {
        rustix::fs::statfs(entry.unwrap().path()).unwrap();
    }
}

// Containers that run.

fn open_dir(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn read_at(dir: &OwnedFd, name: &str) -> Result<String, Errno> {
    let file = rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    File::from(file).read_to_string(&mut text).map_err(|error| Errno::from_io_error(&error).unwrap())?;
    Ok(text)
}

fn list_at(dir: &OwnedFd) -> Vec<String> {
    let mut open = rustix::fs::Dir::read_from(dir).unwrap();
    let mut names = Vec::new();
    while let Some(entry) = open.read() {
        names.push(entry.unwrap().file_name().to_str().unwrap().to_owned());
    }
    names.retain(|name| name != "." && name != "..");
    names.sort();
    names
}

/// One container, seen by path and through descriptors that were opened before anything changed.
struct Seen {
    merged: PathBuf,
    changes: PathBuf,
    merged_root: OwnedFd,
    merged_dir: OwnedFd,
    changes_root: OwnedFd,
}

impl Seen {
    /// What the file `d/<name>` holds in the container, by path and by descriptor.
    fn assert_reads(&self, name: &str, expected: Result<&str, Errno>) {
        let expected = expected.map(str::to_owned);
        let by_path =
            fs::read_to_string(self.merged.join("d").join(name)).map_err(|error| Errno::from_io_error(&error).unwrap());
        assert_eq!(by_path, expected, "d/{name} by path");
        assert_eq!(read_at(&self.merged_dir, name), expected, "{name} from the open directory");
        assert_eq!(read_at(&self.merged_root, &format!("d/{name}")), expected, "d/{name} from the open root");
    }

    fn assert_lists(&self, expected: &[&str]) {
        assert_eq!(list_at(&open_dir(&self.merged.join("d"))), expected, "a listing by path");
        assert_eq!(list_at(&self.merged_dir), expected, "a listing of the open directory");
    }

    fn assert_changed(&self, expected: &[&str]) {
        let paths = |dir: &Path| -> Vec<String> {
            let tree = snapshot(dir, &Options::default());
            tree.into_keys().map(|path| String::from_utf8(path).unwrap()).filter(|path| !path.is_empty()).collect()
        };
        assert_eq!(paths(&self.changes), expected, "changes by path");
        let top: Vec<&str> = expected.iter().copied().filter(|path| !path.contains('/')).collect();
        assert_eq!(list_at(&self.changes_root), top, "the open root of the changes");
    }
}

#[test]
fn a_container_that_changes_is_shown_as_it_is() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("stress");
    let mut store = StoreBuilder::new(dir.path().join("docker"));
    let layer = store.layer(None);
    fs::create_dir_all(layer.diff_dir().join("d/below")).unwrap();
    fs::write(layer.diff_dir().join("d/base"), "base").unwrap();
    fs::write(layer.diff_dir().join("d/removed"), "removed").unwrap();
    fs::write(layer.diff_dir().join("d/below/deep"), "deep").unwrap();
    let image = store.image(std::slice::from_ref(&layer));
    store.tag("t:1", &image);
    let container = store.container("web", &image, Some(&layer));
    let upper = container.upper_dir();
    let mount = Mounted::new(&store.finish(), &dir.path().join("mnt"));
    let place = mount.path().join("by-container/web");
    let seen = Seen {
        merged_root: open_dir(&place.join("merged")),
        merged_dir: open_dir(&place.join("merged/d")),
        changes_root: open_dir(&place.join("changes")),
        merged: place.join("merged"),
        changes: place.join("changes"),
    };
    let below = open_dir(&place.join("merged/d/below"));
    // Looked at beforehand, so that the kernel has something to remember, absence too.
    seen.assert_reads("base", Ok("base"));
    seen.assert_reads("new", Err(Errno::NOENT));
    seen.assert_lists(&["base", "below", "removed"]);
    seen.assert_changed(&[]);

    // A directory is copied up with a new file in it.
    fs::create_dir(upper.join("d")).unwrap();
    fs::write(upper.join("d/new"), "new").unwrap();
    seen.assert_reads("new", Ok("new"));
    seen.assert_reads("base", Ok("base"));
    seen.assert_lists(&["base", "below", "new", "removed"]);
    seen.assert_changed(&["d", "d/new"]);

    // A file is replaced, as most editors and package managers do it; then written to in place.
    fs::write(upper.join("d/.new"), "replaced").unwrap();
    fs::rename(upper.join("d/.new"), upper.join("d/new")).unwrap();
    seen.assert_reads("new", Ok("replaced"));
    fs::write(upper.join("d/new"), "written in place, longer").unwrap();
    seen.assert_reads("new", Ok("written in place, longer"));
    File::options().write(true).open(upper.join("d/new")).unwrap().set_len(7).unwrap();
    seen.assert_reads("new", Ok("written"));
    assert_eq!(fs::metadata(seen.merged.join("d/new")).unwrap().len(), 7);
    fs::set_permissions(upper.join("d/new"), fs::Permissions::from_mode(0o4711)).unwrap();
    assert_eq!(fs::metadata(seen.merged.join("d/new")).unwrap().mode() & 0o7777, 0o4711);
    assert_eq!(fs::metadata(seen.changes.join("d/new")).unwrap().mode() & 0o7777, 0o4711);

    // A file of the image is copied up and replaced, another removed.
    fs::write(upper.join("d/base"), "changed").unwrap();
    seen.assert_reads("base", Ok("changed"));
    whiteout(&upper.join("d/removed"));
    seen.assert_reads("removed", Err(Errno::NOENT));
    seen.assert_lists(&["base", "below", "new"]);
    seen.assert_changed(&["d", "d/.wh.removed", "d/base", "d/new"]);

    // What is removed and made again is a new file.
    fs::remove_file(upper.join("d/removed")).unwrap();
    fs::write(upper.join("d/removed"), "here again").unwrap();
    seen.assert_reads("removed", Ok("here again"));
    fs::remove_file(upper.join("d/new")).unwrap();
    seen.assert_reads("new", Err(Errno::NOENT));
    // A file becomes a directory, and a link.
    fs::create_dir(upper.join("d/new")).unwrap();
    seen.assert_reads("new", Err(Errno::ISDIR));
    fs::remove_dir(upper.join("d/new")).unwrap();
    symlink("base", upper.join("d/new")).unwrap();
    seen.assert_reads("new", Ok("changed"));
    assert_eq!(fs::read_link(seen.merged.join("d/new")).unwrap(), Path::new("base"));
    fs::remove_file(upper.join("d/new")).unwrap();
    symlink("below/deep", upper.join("d/new")).unwrap();
    seen.assert_reads("new", Ok("deep"));

    // A deeper directory, which is open, is copied up and hides what is below it.
    assert_eq!(list_at(&below), ["deep"]);
    fs::create_dir(upper.join("d/below")).unwrap();
    fs::write(upper.join("d/below/upper"), "upper").unwrap();
    assert_soon(|| list_at(&below), &["deep", "upper"]);
    assert_eq!(read_at(&below, "upper"), Ok("upper".to_owned()));
    rustix::fs::setxattr(upper.join("d/below"), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    assert_soon(|| list_at(&below), &["upper"]);
    assert_eq!(read_at(&below, "deep"), Err(Errno::NOENT));
    assert!(seen.changes.join("d/below/.wh..wh..opq").exists());

    // All of it is undone.
    fs::remove_dir_all(upper.join("d")).unwrap();
    seen.assert_reads("base", Ok("base"));
    seen.assert_lists(&["base", "below", "removed"]);
    seen.assert_changed(&[]);
    assert_soon(|| list_at(&below), &["deep"]);
}

/// Asks again for a second: what a directory holds that was opened before a change is looked up again only so often.
fn assert_soon(ask: impl Fn() -> Vec<String>, expected: &[&str]) {
    let end = Instant::now() + Duration::from_secs(1);
    while ask() != expected && Instant::now() < end {
        std::thread::yield_now();
    }
    assert_eq!(ask(), expected);
}

#[test]
fn a_file_of_a_container_that_is_open_stays_itself() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("stress");
    let mut store = StoreBuilder::new(dir.path().join("docker"));
    let image = store.image(&[]);
    let container = store.container("web", &image, None);
    let upper = container.upper_dir();
    fs::write(upper.join("log"), "one\n").unwrap();
    let mount = Mounted::new(&store.finish(), &dir.path().join("mnt"));
    let path = mount.path().join("by-container/web/merged/log");
    let mut follower = File::open(&path).unwrap();
    let mut text = String::new();
    follower.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one\n");
    // As `tail -f` reads.
    File::options().append(true).open(upper.join("log")).unwrap().write_all(b"two\n").unwrap();
    follower.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one\ntwo\n", "what is appended is read by who has the file open");
    // A file that is replaced stays what it was for who has it open.
    fs::write(upper.join("log.new"), "new\n").unwrap();
    fs::rename(upper.join("log.new"), upper.join("log")).unwrap();
    let mut old = String::new();
    let mut held = [0; 100];
    let len = follower.read_at(&mut held, 0).unwrap();
    old.push_str(str::from_utf8(&held[..len]).unwrap());
    assert_eq!(old, "one\ntwo\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
}
