//! What the system has little of, and what a hostile store has much of: descriptors, memory, threads, and a disk that
//! does not answer. The answer is right, or an error that says what is short; others go on, and all is as before when
//! there is enough again.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod support;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, RawDir, XattrFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::{Value, json};
use support::eventually;
use support::faulty::{Fault, Faulty};
use support::mount::{Mounted, Tmpfs, require_privileges};
use support::store::{LayerRef, StoreBuilder, sha256_hex};
use support::tree::{self, Tree};

/// Threads that the daemon has beside those that answer: reading ahead, forgetting, signals, a look at the store.
const OTHER_THREADS: usize = 24;
/// Those that answer.
const THREADS: usize = 32;

fn pid_of(mount: &Mounted) -> Pid {
    Pid::from_raw(i32::try_from(mount.server().unwrap()).unwrap()).unwrap()
}

fn entries(path: &str) -> usize {
    fs::read_dir(path).unwrap().count()
}

fn descriptors(pid: Pid) -> usize {
    entries(&format!("/proc/{}/fd", pid.as_raw_nonzero()))
}

fn threads(pid: Pid) -> usize {
    entries(&format!("/proc/{}/task", pid.as_raw_nonzero()))
}

fn write(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn whiteout(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

fn names(dir: &Path) -> std::io::Result<BTreeSet<String>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().into_string().unwrap())).collect()
}

// ---- descriptors

/// A store of `app:1`, three layers with deletions and files of several pieces, and `other:1`.
fn small_store(dir: &Path) -> PathBuf {
    let mut store = StoreBuilder::new(dir.join("docker"));
    let layers = store.chain(3);
    for (n, layer) in layers.iter().enumerate() {
        for file in 0..4 {
            let content = format!("{n} {file}").repeat(20_000);
            write(&layer.diff_dir().join(format!("dir-{n}/sub/file-{file}")), content.as_bytes());
        }
        write(&layer.diff_dir().join("etc/version"), n.to_string().as_bytes());
        layer.set_size(n as u64 + 1);
    }
    write(&layers[0].diff_dir().join("etc/secret"), b"secret");
    whiteout(&layers[2].diff_dir().join("etc/secret"));
    let app = store.image(&layers);
    store.tag("app:1", &app);
    let below = store.image(&layers[..1]);
    store.image_parent(&app, &below);
    let other = store.layer(None);
    write(&other.diff_dir().join("file"), b"other");
    let other = store.image(&[other]);
    store.tag("other:1", &other);
    let container = store.container("web", &app, layers.last());
    write(&container.upper_dir().join("log"), b"log");
    store.finish()
}

/// All that a mount shows but its status.
fn everything(mount: &Path) -> Tree {
    let mut tree = Tree::new();
    for top in ["by-tag", "by-id", "by-chain", "merged", "by-container"] {
        let options = tree::Options { no_ctime: true, ..tree::Options::default() };
        for (path, mut entry) in tree::snapshot(&mount.join(top), &options) {
            if entry.kind == FileType::Directory && entry.mode == 0o555 {
                // A folder of the view's own has another time in each state of the store.
                entry.mtime = (0, 0);
            }
            tree.insert([top.as_bytes(), b"/", path.as_slice()].concat(), entry);
        }
    }
    tree
}

/// What a hurried reader sees: each file that could be read, and how often something else than a shortage was said.
fn read_what_goes(dir: &Path, expected: &Tree, root: &Path) -> (usize, usize, Vec<String>) {
    let (mut right, mut short, mut wrong) = (0, 0, Vec::new());
    let is_short = |error: &std::io::Error| matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE));
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_short(&error) => return (0, 1, wrong),
        Err(error) => return (0, 0, vec![format!("{}: {error}", dir.display())]),
    };
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if is_short(&error) => {
                short += 1;
                break;
            }
            Err(error) => {
                wrong.push(format!("{}: {error}", dir.display()));
                break;
            }
        };
        let path = entry.path();
        let key = path.strip_prefix(root).unwrap().as_os_str().as_encoded_bytes().to_vec();
        let Some(known) = expected.get(&key) else {
            wrong.push(format!("{} is new", path.display()));
            continue;
        };
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => {
                let below = read_what_goes(&path, expected, root);
                right += below.0;
                short += below.1;
                wrong.extend(below.2);
            }
            Ok(meta) if meta.is_file() => match fs::read(&path) {
                Ok(content) => {
                    right += 1;
                    let sum = sha256_hex(&content);
                    if !matches!(&known.content, Some(tree::Content::Sum { sha256, .. }) if *sha256 == sum) {
                        wrong.push(format!("{} is another: {} bytes", path.display(), content.len()));
                    }
                }
                Err(error) if is_short(&error) => short += 1,
                Err(error) => wrong.push(format!("{}: {error}", path.display())),
            },
            Ok(_) => right += 1,
            Err(error) if is_short(&error) => short += 1,
            Err(error) => wrong.push(format!("{}: {error}", path.display())),
        }
    }
    (right, short, wrong)
}

/// With room for none, one, two … descriptors more than the daemon has at rest: every answer is right or a shortage,
/// and nothing that was said in the shortage is remembered.
#[test]
fn a_shortage_of_descriptors_is_an_error_and_never_a_wrong_answer() {
    if !require_privileges("a mount") {
        return;
    }
    for opens in ["opens=once", "opens=each", "opens=passthrough"] {
        let dir = support::scratch("exhaustion");
        let root = small_store(dir.path());
        let golden = Mounted::new(&root, &dir.path().join("golden"));
        let expected = everything(golden.path());
        let mut shortages = 0;
        for room in [0, 1, 2, 3, 5, 8] {
            // A new mount each, so that nothing is in the kernel's caches.
            let mount = Mounted::with(&root, &dir.path().join("mnt"), &["-o", opens], 0);
            let pid = pid_of(&mount);
            let enough = prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(1_024), maximum: Some(1_024) });
            enough.unwrap();
            // Once it answers it has all the descriptors of its own.
            fs::symlink_metadata(mount.path().join("status")).unwrap();
            let open = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).unwrap();
            let open = open.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse::<u64>().unwrap());
            let open: BTreeSet<u64> = open.collect();
            // The numbers below the limit that are free are as many as there is room for.
            let limit = (0..).filter(|number| !open.contains(number)).nth(room).unwrap();
            prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(1_024) }).unwrap();
            for top in ["merged", "by-tag", "by-container", "by-id", "by-chain"] {
                let (_, short, wrong) = read_what_goes(&mount.path().join(top), &expected, mount.path());
                assert_eq!(wrong, Vec::<String>::new(), "{opens}, room for {room}");
                shortages += short;
                let deleted = mount.path().join("merged/app:1/etc/secret");
                assert!(deleted.symlink_metadata().is_err(), "{opens}, room for {room}: a deleted file came back");
            }
            let status: Value = serde_json::from_slice(&fs::read(mount.path().join("status")).unwrap()).unwrap();
            assert_eq!(status["damage"], json!([]), "a shortage is no damage");
            prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(1_024), maximum: Some(1_024) }).unwrap();
            tree::assert_same(&format!("{opens} after room for {room}"), &expected, &everything(mount.path()));
        }
        assert!(shortages > 0, "{opens}: nothing was ever short");
    }
}

/// The store is read again in a shortage: it is shown as it was, and as it is when there is enough.
#[test]
fn a_store_that_changes_in_a_shortage_is_shown_as_it_was() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("exhaustion");
    let root = small_store(dir.path());
    let mount = Mounted::new(&root, &dir.path().join("mnt"));
    let pid = pid_of(&mount);
    let before = names(&mount.path().join("by-tag")).unwrap();
    let limit = |current| prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(current), maximum: Some(1_024) });
    limit(descriptors(pid) as u64).unwrap();
    let references = root.join("image/overlay2/repositories.json");
    let text = fs::read_to_string(&references).unwrap().replace("other:1", "other:2");
    fs::write(references.with_extension("new"), &text).unwrap();
    fs::rename(references.with_extension("new"), &references).unwrap();
    for _ in 0..20 {
        match names(&mount.path().join("by-tag")) {
            Ok(found) => assert!(found == before || found.contains("other:2"), "{found:?}"),
            Err(error) => assert_eq!(Errno::from_io_error(&error), Some(Errno::MFILE), "{error}"),
        }
    }
    limit(1_024).unwrap();
    let is_new = || names(&mount.path().join("by-tag")).unwrap().contains("other:2");
    assert!(eventually(is_new), "the new name is not shown");
    let status: Value = serde_json::from_slice(&fs::read(mount.path().join("status")).unwrap()).unwrap();
    assert_eq!(status["damage"], json!([]));
}

/// Many open files are many descriptors only up to a part of what there is.
#[test]
fn readers_of_many_files_leave_descriptors_to_others() {
    if !require_privileges("a mount") {
        return;
    }
    const FILES: usize = 1_500;
    let own = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: own.maximum, ..own }).unwrap();
    let dir = support::scratch("exhaustion");
    let mut store = StoreBuilder::new(dir.path().join("docker"));
    let layer = store.layer(None);
    // Large enough for passthrough, and sparse.
    for n in 0..FILES {
        let path = layer.diff_dir().join(format!("files/{n}"));
        write(&path, n.to_string().as_bytes());
        File::options().write(true).open(&path).unwrap().set_len(256 << 10).unwrap();
    }
    let other = store.layer(None);
    write(&other.diff_dir().join("file"), b"other");
    for (name, layer) in [("many:1", layer), ("other:1", other)] {
        let image = store.image(&[layer]);
        store.tag(name, &image);
    }
    let root = store.finish();
    for (opens, limit) in
        ["opens=each", "opens=passthrough", "opens=once"].into_iter().flat_map(|way| [(way, 1_024_u32), (way, 64)])
    {
        let mount = Mounted::with_descriptors(&root, &dir.path().join("mnt"), &["-o", opens], limit);
        let pid = pid_of(&mount);
        let image = mount.path().join("merged/many:1/files");
        let mut open = Vec::new();
        for n in 0..FILES {
            let file = File::open(image.join(n.to_string())).unwrap_or_else(|error| panic!("{opens} {n}: {error}"));
            let mut start = [0; 8];
            file.read_at(&mut start, 0).unwrap_or_else(|error| panic!("{opens} {limit} {n}: {error}"));
            open.push(file);
        }
        let held = descriptors(pid);
        assert!(held < limit as usize, "{opens}: {held} descriptors of {limit}");
        for n in (0..FILES).step_by(7) {
            let mut start = [0; 8];
            let count = open[n].read_at(&mut start, 0).unwrap_or_else(|error| panic!("{opens} {limit} {n}: {error}"));
            assert_eq!(String::from_utf8_lossy(&start[..count]).trim_end_matches('\0'), n.to_string(), "{opens}");
        }
        assert_eq!(fs::read(mount.path().join("merged/other:1/file")).unwrap(), b"other", "{opens}");
        assert_eq!(names(&image).unwrap().len(), FILES, "{opens}");
        eprintln!("{opens}: {FILES} files open, {held} descriptors of {limit}, {} threads", threads(pid));
        drop(open);
    }
}

#[test]
fn all_is_served_with_few_descriptors() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("exhaustion");
    let root = small_store(dir.path());
    let golden = Mounted::new(&root, &dir.path().join("golden"));
    let expected = everything(golden.path());
    for limit in [1_024, 64] {
        let mount = Mounted::with_descriptors(&root, &dir.path().join("mnt"), &[], limit);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        tree::assert_same(&format!("with {limit}"), &expected, &everything(mount.path()));
                    }
                });
            }
        });
        let pid = pid_of(&mount);
        assert!(descriptors(pid) < limit as usize);
        assert!(threads(pid) <= THREADS + OTHER_THREADS, "{} threads", threads(pid));
    }
}

// ---- memory

/// With too little memory for the threads that answer, the command says so; where it says that it is mounted, it is.
#[test]
fn a_mount_that_nobody_can_answer_for_is_no_success() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("exhaustion");
    let root = small_store(dir.path());
    let (mut served, mut refused) = (0, BTreeSet::new());
    // The threads reserve some 600 MiB, of which they use little.
    for limit_mib in [20, 30, 40, 50, 60, 80, 100, 150, 200, 300, 500, 1_000, 2_000] {
        let point = dir.path().join(format!("mnt-{limit_mib}"));
        fs::create_dir(&point).unwrap();
        let script = format!("ulimit -v {}; exec \"$0\" \"$@\"", limit_mib << 10);
        let said = dir.path().join("said");
        let (program, log) = (env!("CARGO_BIN_EXE_docker-fs"), File::create(&said).unwrap());
        let mut shell = Command::new("sh");
        let status = shell.arg("-c").arg(script).arg(program).arg(&root).arg(&point).stderr(log).status().unwrap();
        let said = fs::read_to_string(&said).unwrap();
        if status.success() {
            let status = fs::read(point.join("status"));
            rustix::mount::unmount(&point, UnmountFlags::DETACH).unwrap();
            assert!(status.is_ok_and(|status| status.len() > 100), "{limit_mib} MiB");
            served += 1;
        } else {
            assert_eq!(status.code(), Some(1), "{limit_mib} MiB: {said}");
            assert!(said.contains("docker-fs: "), "{limit_mib} MiB: {said:?}");
            assert_eq!(fs::read_dir(&point).unwrap().count(), 0, "{limit_mib} MiB: something stays mounted");
            refused.extend(said.lines().map(str::to_owned));
        }
    }
    eprintln!("{served} mounts are served; others: {refused:#?}");
    // Whether a thread or a thread's buffer is what there is no memory for, is chance.
    let no_threads = "docker-fs: cannot answer the kernel's requests: Resource temporarily unavailable";
    let is_told = |line: &String| line.starts_with(no_threads) || line.starts_with("memory allocation of");
    assert!(served > 0 && refused.iter().any(is_told), "{served} {refused:?}");
}

fn peak_kib(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// From here on another peak is measured.
fn forget_peak(pid: Pid) {
    fs::write(format!("/proc/{}/clear_refs", pid.as_raw_nonzero()), "5").unwrap();
}

/// Runs something that takes much, while another image is read all the time; answers the daemon's peak in KiB, and how
/// long the other's readers waited at most.
fn measured<T>(mount: &Mounted, what: &str, limit_mib: u64, work: impl FnOnce() -> T + Send) -> T
where
    T: Send,
{
    /// Makes names that nobody has asked for.
    static ROUND: AtomicUsize = AtomicUsize::new(0);
    let pid = pid_of(mount);
    forget_peak(pid);
    let (longest, reads) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let other = mount.path().join("merged/other:1");
    let done = std::sync::atomic::AtomicBool::new(false);
    let begun = Instant::now();
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let begun = Instant::now();
                // Names that nobody asked for yet, so that the kernel has to ask.
                let round = ROUND.fetch_add(1, Ordering::Relaxed);
                let absent = fs::symlink_metadata(other.join(format!("absent-{round}"))).unwrap_err();
                assert_eq!(absent.kind(), std::io::ErrorKind::NotFound);
                assert_eq!(fs::read(other.join("file")).unwrap(), b"other");
                let took = usize::try_from(begun.elapsed().as_millis()).unwrap();
                longest.fetch_max(took, Ordering::Relaxed);
                reads.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    });
    let peak = peak_kib(pid) / 1024;
    eprintln!(
        "{what}: {:.1} s, peak {peak} MiB (limit {limit_mib}), {} reads of another image, the longest {} ms, {} threads",
        begun.elapsed().as_secs_f32(),
        reads.load(Ordering::Relaxed),
        longest.load(Ordering::Relaxed),
        threads(pid),
    );
    assert!(peak < limit_mib, "{what}: the daemon took {peak} MiB");
    assert!(reads.load(Ordering::Relaxed) > 0, "{what}: nothing else was answered");
    result
}

/// A store with `other:1`, to which a test adds.
fn with_other(dir: &Path) -> StoreBuilder {
    let mut store = StoreBuilder::new(dir.join("docker"));
    let other = store.layer(None);
    write(&other.diff_dir().join("file"), b"other");
    let other = store.image(&[other]);
    store.tag("other:1", &other);
    store
}

/// So many names in a directory, quickly: second names of a few files.
fn fill(dir: &Path, numbers: std::ops::Range<usize>) {
    fs::create_dir_all(dir).unwrap();
    let handle = File::open(dir).unwrap();
    let mut original = String::new();
    for n in numbers {
        let name = format!("{n:07}");
        if n % 60_000 == 0 || original.is_empty() {
            original = name;
            drop(File::create(dir.join(&original)).unwrap());
        } else {
            rustix::fs::linkat(&handle, &original, &handle, &name, rustix::fs::AtFlags::empty()).unwrap();
        }
    }
}

#[test]
fn a_million_whiteouts_and_names_are_bounded() {
    if !require_privileges("a mount") {
        return;
    }
    const MANY: usize = 1_000_000;
    let dir = support::scratch("exhaustion");
    let tmpfs = Tmpfs::new(&dir.path().join("data"));
    let mut store = with_other(&dir.path().join("data"));
    // Whiteouts are second names of one device.
    let base = store.layer(None);
    write(&base.diff_dir().join("deleted/0000007"), b"secret");
    write(&base.diff_dir().join("deleted/kept"), b"kept");
    let top = store.layer(Some(&base));
    fs::create_dir_all(top.diff_dir().join("deleted")).unwrap();
    let folder = File::open(top.diff_dir().join("deleted")).unwrap();
    for n in 0..MANY {
        let name = format!("{n:07}");
        if n == 0 {
            whiteout(&top.diff_dir().join("deleted").join(&name));
        } else {
            rustix::fs::linkat(&folder, "0000000", &folder, &name, rustix::fs::AtFlags::empty()).unwrap();
        }
    }
    let whiteouts = store.image(&[base, top]);
    store.tag("whiteouts:1", &whiteouts);
    let many = store.layer(None);
    let stored = many.diff_dir().join("names");
    fill(&stored, 0..MANY);
    let many = store.image(&[many]);
    store.tag("many:1", &many);
    let root = store.finish();
    let mount = Mounted::new(&root, &dir.path().join("mnt"));
    let merged = mount.path().join("merged");

    let shown = measured(&mount, "a million whiteouts", 700, || names(&merged.join("whiteouts:1/deleted")).unwrap());
    assert_eq!(shown, ["kept".to_owned()].into());
    assert!(fs::symlink_metadata(merged.join("whiteouts:1/deleted/0000007")).is_err());
    let count = measured(&mount, "a million names", 900, || fs::read_dir(merged.join("many:1/names")).unwrap().count());
    assert_eq!(count, MANY);
    let (whole, short) = (AtomicUsize::new(0), AtomicUsize::new(0));
    measured(&mount, "four readers of a million names each", 1_900, || {
        std::thread::scope(|scope| {
            for place in ["merged/many:1/names", "by-tag/many:1/layers/0/names"] {
                let (place, whole, short) = (mount.path().join(place), &whole, &short);
                for _ in 0..2 {
                    let place = place.clone();
                    scope.spawn(move || {
                        match fs::read_dir(place).and_then(|names| names.collect::<Result<Vec<_>, _>>()) {
                            Ok(names) => {
                                assert_eq!(names.len(), MANY);
                                whole.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(error) => {
                                assert_eq!(Errno::from_io_error(&error), Some(Errno::NOMEM));
                                short.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    });
                }
            }
        });
    });
    eprintln!("{whole:?} had all names, {short:?} were told to come later");
    drop(mount);
    fill(&stored, MANY..(1 << 20) + 1);
    let mount = Mounted::new(&root, &dir.path().join("mnt"));
    let refused = measured(&mount, "more names than are listed", 700, || {
        fs::read_dir(merged.join("many:1/names")).unwrap().next().unwrap().unwrap_err()
    });
    assert_eq!(Errno::from_io_error(&refused), Some(Errno::NOMEM));
    assert!(fs::symlink_metadata(merged.join("many:1/names/0000007")).is_ok(), "its files cannot be looked up");
    drop((mount, tmpfs));
}

/// The config of an image with no layers but these, and this history.
fn config(history: &str, diffs: &str) -> String {
    format!(
        "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"history\":[{history}],\
         \"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[{diffs}]}}}}"
    )
}

/// A list of so many of these.
fn list(item: &str, count: usize) -> String {
    let mut text = String::with_capacity((item.len() + 1) * count);
    for n in 0..count {
        write!(text, "{}{item}", if n == 0 { "" } else { "," }).unwrap();
    }
    text
}

/// Puts an image's config in place, as large and as odd as it is.
fn put_config(root: &Path, text: &str) -> String {
    let id = sha256_hex(text);
    let place = root.join("image/overlay2/imagedb/content/sha256").join(&id);
    let new = place.with_file_name(".tmp-new");
    fs::write(&new, text).unwrap();
    fs::rename(new, place).unwrap();
    id
}

fn damage_of(mount: &Mounted) -> String {
    String::from_utf8(fs::read(mount.path().join("status")).unwrap()).unwrap()
}

#[test]
fn huge_documents_are_refused_by_their_size_and_odd_ones_take_little() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("exhaustion");
    let mut store = with_other(dir.path());
    let layer = store.layer(None);
    let image = store.image(std::slice::from_ref(&layer));
    store.tag("app:1", &image);
    let container = store.container("web", &image, Some(&layer));
    let root = store.finish();
    let mount = Mounted::new(&root, &dir.path().join("mnt"));

    let content = root.join("image/overlay2/imagedb/content/sha256");
    let references = root.join("image/overlay2/repositories.json");
    let kept = fs::read(&references).unwrap();
    let resized = |path: &Path| {
        File::options().write(true).create(true).truncate(false).open(path).unwrap().set_len(1 << 30).unwrap()
    };
    let is_told =
        |what: &str| assert!(eventually(|| damage_of(&mount).contains(what)), "{what}: {}", damage_of(&mount));
    measured(&mount, "documents of 1 GiB", 100, || {
        let huge = content.join("a".repeat(64));
        resized(&huge);
        is_told(&format!("{}\",\n      \"reason\": \"larger than 16777216 bytes", huge.display()));
        fs::remove_file(huge).unwrap();
        resized(&container.config_path());
        is_told(&format!("{}\",\n      \"reason\": \"larger than 16777216 bytes", container.config_path().display()));
    });
    // The other image keeps its name for those who look meanwhile.
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep = format!("{{\"history\":{nested},\"rootfs\":{{\"diff_ids\":[]}}}}");
    let steps = config(&list("{\"created_by\":\"x\"}", 700_000), "");
    let empty_steps = config(&list("{}", 2_000_000), "");
    let diffs = config("", &list("\"\"", 1_500_000));
    let long = config(&format!("{{\"created_by\":\"{}\"}}", "\u{7f}".repeat(12 << 20)), "");
    for (what, text, limit) in [
        ("JSON nested 100,000 deep", &deep, 100),
        ("700,000 build steps", &steps, 150),
        ("2,000,000 empty build steps", &empty_steps, 150),
        ("1,500,000 layers", &diffs, 150),
        ("a build step of 12 MiB", &long, 200),
    ] {
        let id = measured(&mount, what, limit, || {
            let id = put_config(&root, text);
            assert!(eventually(|| mount.path().join("by-id").join(&id).exists()), "{what}: it is not listed");
            let _history = fs::read(mount.path().join("by-id").join(&id).join("history"));
            id
        });
        if what.contains("steps") {
            let history = fs::read_to_string(mount.path().join("by-id").join(&id).join("history")).unwrap();
            assert!(history.lines().count() <= 10_002, "{what}: {}", history.lines().count());
            assert!(history.contains("more steps, which config.json has"), "{what}");
        }
        fs::remove_file(content.join(&id)).unwrap();
    }
    for (what, entries) in [
        ("repositories.json of 400,000 wrong names", list("\"!\":7", 400_000)),
        ("repositories.json nested 100,000 deep", format!("\"a:1\":{nested}")),
    ] {
        measured(&mount, what, 200, || {
            let new = references.with_extension("new");
            let with_other = String::from_utf8(kept.clone()).unwrap();
            let with_other =
                with_other.replacen("{\"Repositories\":{", &format!("{{\"Repositories\":{{\"a\":{{{entries}}},"), 1);
            fs::write(&new, with_other).unwrap();
            fs::rename(&new, &references).unwrap();
            is_told("repositories.json");
            assert!(damage_of(&mount).len() < 1 << 20, "{what}: the status is as large as what is wrong");
        });
        fs::write(&references, &kept).unwrap();
    }
}

#[test]
fn the_deepest_stack_and_the_longest_redirects_take_little() {
    if !require_privileges("a mount") {
        return;
    }
    const DEEPEST: usize = 125;
    let dir = support::scratch("exhaustion");
    let tmpfs = Tmpfs::new(&dir.path().join("data"));
    let mut store = with_other(&dir.path().join("data"));
    let layers = store.chain(DEEPEST);
    // A path of as many components as are followed, and one of more.
    let path = |parts: usize| format!("/{}", vec!["d"; parts].join("/"));
    for layer in &layers {
        fs::create_dir_all(layer.diff_dir().join(&path(256)[1..])).unwrap();
        fs::create_dir_all(layer.diff_dir().join("common")).unwrap();
    }
    write(&layers[0].diff_dir().join(&path(256)[1..]).join("found"), b"found");
    let top = layers[DEEPEST - 1].diff_dir();
    let redirect = |name: &str, value: &[u8]| {
        let place = top.join(name);
        fs::create_dir_all(&place).unwrap();
        rustix::fs::setxattr(&place, "trusted.overlay.redirect", value, XattrFlags::empty()).unwrap();
    };
    redirect("followed", path(256).as_bytes());
    redirect("too-deep", path(257).as_bytes());
    redirect("too-long", format!("/{}", "x".repeat(4_096)).as_bytes());
    redirect("huge", &vec![b'x'; 65_536]);
    // A chain of redirects through all layers.
    for (n, layer) in layers.iter().enumerate().rev().skip(1) {
        let (name, below) = (format!("r{n}"), format!("r{}", n.saturating_sub(1)));
        let place = layer.diff_dir().join(name);
        fs::create_dir_all(&place).unwrap();
        rustix::fs::setxattr(&place, "trusted.overlay.redirect", below.as_bytes(), XattrFlags::empty()).unwrap();
    }
    redirect("chain", format!("r{}", DEEPEST - 2).as_bytes());
    // Attributes as long as they can be.
    let file = top.join("attributes");
    fs::write(&file, "x").unwrap();
    rustix::fs::setxattr(&file, "trusted.long", &vec![b'v'; 65_536], XattrFlags::empty()).unwrap();
    for n in 0..250 {
        let name = format!("trusted.{n:03}{}", "n".repeat(244));
        rustix::fs::setxattr(&file, name.as_str(), b"1", XattrFlags::empty()).unwrap();
    }
    let deep = store.image(&layers);
    store.tag("deep:1", &deep);
    let root = store.finish();
    let mount = Mounted::new(&root, &dir.path().join("mnt"));
    let image = mount.path().join("merged/deep:1");
    measured(&mount, "125 layers, redirects, attributes of 64 KiB", 150, || {
        assert_eq!(fs::read(image.join("followed/found")).unwrap(), b"found");
        for refused in ["too-deep", "too-long", "huge"] {
            let error = fs::symlink_metadata(image.join(refused)).unwrap_err();
            assert_eq!(Errno::from_io_error(&error), Some(Errno::INVAL), "{refused}");
        }
        assert!(fs::symlink_metadata(image.join("chain")).unwrap().is_dir());
        let listed = names(&image).unwrap();
        assert!(listed.contains("followed") && !listed.contains("huge"), "{listed:?}");
        let mut value = vec![0; 65_536];
        let file = image.join("attributes");
        assert_eq!(rustix::fs::getxattr(&file, "trusted.long", &mut value[..]).unwrap(), 65_536);
        let count = rustix::fs::listxattr(&file, &mut value[..]).unwrap();
        assert_eq!(value[..count].split(|byte| *byte == 0).filter(|name| !name.is_empty()).count(), 251);
        let walk = tree::walk(&image.join("common"), &tree::Options::default());
        assert_eq!((walk.tree.len(), walk.troubles), (1, Vec::new()));
    });
    drop((mount, tmpfs));
}

// ---- a disk that does not answer

struct Hanging {
    mount: Mounted,
    faulty: Faulty,
    slow: PathBuf,
    dir: tempfile::TempDir,
}

const FILES: usize = 100;

/// A mounted store on a disk that can be told not to answer below one layer, that of `slow:1`.
fn hanging() -> Hanging {
    let dir = support::scratch("exhaustion");
    let mut store = with_other(dir.path());
    let fill = |layer: &LayerRef, text: &str| {
        for n in 0..FILES {
            write(&layer.diff_dir().join(format!("files/{n}")), format!("{text} {n}").as_bytes());
        }
    };
    let slow = store.layer(None);
    fill(&slow, "slow");
    let image = store.image(std::slice::from_ref(&slow));
    store.tag("slow:1", &image);
    let quick = store.layer(None);
    fill(&quick, "quick");
    let image = store.image(&[quick]);
    store.tag("quick:1", &image);
    let root = store.finish();
    let faulty = Faulty::new(&root, &dir.path().join("disk"), 64);
    let mount = Mounted::new(faulty.path(), &dir.path().join("mnt"));
    Hanging { mount, faulty, slow: slow.dir.strip_prefix(&root).unwrap().to_owned(), dir }
}

/// Reads a file of each kind that only the disk can tell.
fn quick_is_served(mount: &Path, round: usize) {
    let file = format!("merged/quick:1/files/{}", round % FILES);
    assert_eq!(fs::read_to_string(mount.join(file)).unwrap(), format!("quick {}", round % FILES));
    let absent = fs::symlink_metadata(mount.join(format!("merged/quick:1/absent-{round}"))).unwrap_err();
    assert_eq!(absent.kind(), std::io::ErrorKind::NotFound);
    assert!(fs::read(mount.join("status")).unwrap().len() > 100);
    assert!(names(&mount.join("by-tag")).unwrap().contains("slow:1"));
    assert!(fs::read(mount.join("by-tag/quick:1/config.json")).unwrap().len() > 100);
}

/// Has readers read files of the image whose disk does not answer, while others are answered. What they are told in
/// the end.
fn read_from_a_hanging_disk(scene: &Hanging, readers: usize, hang_at_least: usize) -> Vec<std::io::Result<String>> {
    let mount = scene.mount.path();
    scene.faulty.set(&scene.slow, Fault::Hangs);
    std::thread::scope(|scope| {
        let reader = |n: usize| move || fs::read_to_string(mount.join(format!("merged/slow:1/files/{n}")));
        let readers: Vec<_> = (0..readers).map(|n| scope.spawn(reader(n))).collect();
        // Whatever happens here, they must go on.
        let checked = catch_unwind(AssertUnwindSafe(|| {
            assert!(eventually(|| scene.faulty.hanging() >= hang_at_least), "{} hang", scene.faulty.hanging());
            let pid = pid_of(&scene.mount);
            for round in 0..FILES {
                quick_is_served(mount, round);
            }
            eprintln!("{} readers, {} requests hang, {} threads", readers.len(), scene.faulty.hanging(), threads(pid));
            assert!(threads(pid) <= THREADS + OTHER_THREADS, "{} threads", threads(pid));
        }));
        scene.faulty.clear();
        let told = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        checked.unwrap();
        told
    })
}

/// If nothing is answered any more, nothing here would end either: then the disk answers again.
fn watched(scene: &Hanging, work: impl FnOnce()) {
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if is_done.recv_timeout(Duration::from_secs(60)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                eprintln!("no answer within a minute; the disk answers again");
                scene.faulty.clear();
            }
        });
        let begun = Instant::now();
        work();
        drop(done);
        assert!(begun.elapsed() < Duration::from_secs(60), "others waited for the disk that does not answer");
    });
}

#[test]
fn a_disk_that_does_not_answer_keeps_only_its_own_readers_waiting() {
    if !require_privileges("a mount") {
        return;
    }
    let scene = hanging();
    quick_is_served(scene.mount.path(), 0);
    // The way there is known, so that the readers hang in reading.
    assert_eq!(names(&scene.mount.path().join("merged/slow:1/files")).unwrap().len(), FILES);
    watched(&scene, || {
        let told = read_from_a_hanging_disk(&scene, 20, 20);
        for (n, content) in told.into_iter().enumerate() {
            assert_eq!(content.unwrap(), format!("slow {n}"));
        }
    });
    // More readers than threads: those for whom there is no room are told so, and others are answered.
    let second = Mounted::new(scene.faulty.path(), &scene.dir.path().join("second"));
    let scene = Hanging { mount: second, ..scene };
    assert_eq!(names(&scene.mount.path().join("merged/slow:1/files")).unwrap().len(), FILES);
    watched(&scene, || {
        let told = read_from_a_hanging_disk(&scene, 80, 20);
        let (mut right, mut late) = (0, 0);
        for (n, content) in told.into_iter().enumerate() {
            match content {
                Ok(content) => {
                    assert_eq!(content, format!("slow {n}"));
                    right += 1;
                }
                Err(error) => {
                    assert!(matches!(Errno::from_io_error(&error), Some(Errno::TIMEDOUT)), "{error}");
                    late += 1;
                }
            }
        }
        eprintln!("{right} readers had their file in the end, {late} were told that the disk does not answer");
        assert!(right >= 20 && late > 0);
    });
    for n in 0..FILES {
        let file = scene.mount.path().join(format!("merged/slow:1/files/{n}"));
        assert_eq!(fs::read_to_string(file).unwrap(), format!("slow {n}"));
    }
    assert_eq!(scene.faulty.hanging(), 0);
}

#[test]
fn walks_on_other_disks_go_on() {
    if !require_privileges("a mount") {
        return;
    }
    let scene = hanging();
    let mount = scene.mount.path();
    scene.faulty.set(&scene.slow.join("diff/files"), Fault::Hangs);
    watched(&scene, || {
        std::thread::scope(|scope| {
            let walkers: Vec<_> = (0..6)
                .map(|_| scope.spawn(|| fs::read_dir(mount.join("merged/slow:1/files")).map(Iterator::count)))
                .collect();
            let checked = catch_unwind(AssertUnwindSafe(|| {
                assert!(eventually(|| scene.faulty.hanging() >= 1), "nothing hangs");
                for _ in 0..3 {
                    let walk = tree::walk(&mount.join("merged/quick:1"), &tree::Options::default());
                    assert_eq!((walk.tree.len(), walk.troubles), (FILES + 2, Vec::new()));
                }
            }));
            scene.faulty.clear();
            for walker in walkers {
                assert_eq!(walker.join().unwrap().unwrap(), FILES);
            }
            checked.unwrap();
        });
    });
}

fn figure(mount: &Path, pointer: &str) -> u64 {
    let status: Value = serde_json::from_slice(&fs::read(mount.join("status")).unwrap()).unwrap();
    status["figures"].pointer(pointer).and_then(Value::as_u64).unwrap()
}

/// Memory that is a file's until it is written to, when the file is read.
#[allow(unsafe_code)]
fn memory_of(file: &File, bytes: usize) -> &'static mut [MaybeUninit<u8>] {
    // SAFETY: nobody else has this mapping, and it stays for as long as the process.
    unsafe {
        let at = mmap(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE, file, 0);
        std::slice::from_raw_parts_mut(at.unwrap().cast(), bytes)
    }
}

/// A mount whose log is kept, and that log.
fn logged(source: &Path, dir: &Path) -> (Mounted, PathBuf) {
    let log = dir.join("log");
    (Mounted::with(source, &dir.join("mnt"), &["-v", "--log-file", log.to_str().unwrap()], 0), log)
}

/// The kernel forgets a name when nobody reads the folder. Who reads it into memory that a disk must give first keeps it
/// waiting, and whoever tells it. The store is read again all the same, and what waits is told.
#[test]
fn who_reads_a_folder_for_ever_keeps_nobody_from_hearing_of_changes() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("exhaustion");
    let paper = dir.path().join("paper");
    fs::create_dir(&paper).unwrap();
    fs::write(paper.join("blank"), vec![0; 64 << 10]).unwrap();
    let faulty = Faulty::new(&paper, &dir.path().join("faulty"), 4);
    let (mount, log) = logged(&small_store(dir.path()), dir.path());
    let log = || fs::read_to_string(&log).unwrap();
    let figure = |pointer| figure(mount.path(), pointer);
    let merged = mount.path().join("merged");
    assert!(fs::symlink_metadata(merged.join("other:1")).is_ok());
    let blank = memory_of(&File::open(faulty.path().join("blank")).unwrap(), 64 << 10);
    faulty.set(Path::new("blank"), Fault::Hangs);
    std::thread::scope(|scope| {
        let folder = File::open(&merged).unwrap();
        let reader = scope.spawn(move || RawDir::new(folder, blank).next().is_some_and(|entry| entry.is_ok()));
        let checked = catch_unwind(AssertUnwindSafe(|| {
            assert!(eventually(|| faulty.hanging() > 0), "nothing hangs");
            let keeper = Pid::from_raw(mount.daemon().unwrap().cast_signed()).unwrap();
            for round in 1..=2 {
                kill_process(keeper, Signal::HUP).unwrap();
                let read = || log().matches("the whole store was read again").count();
                assert!(eventually(|| read() == round), "HUP is not obeyed: {}", log());
                assert!(eventually(|| figure("/waits/names_seconds") > 0), "the kernel does not wait");
            }
            assert_eq!(figure("/waits/looking_seconds"), 0);
            let warning = "docker-fs: warning: having the kernel forget names that changed has taken ";
            assert!(eventually(|| log().contains(warning)), "{}", log());
        }));
        faulty.clear();
        assert!(reader.join().unwrap());
        checked.unwrap();
    });
    assert!(eventually(|| figure("/waits/names_seconds") == 0));
    assert!(log().contains("docker-fs: info: having the kernel forget names that changed goes on, after "));
    assert_eq!(log().matches("docker-fs: warning: ").count(), 1, "{}", log());
}

/// Who looks for changes waits for the store's disk as everyone does.
#[test]
fn that_changes_cannot_be_looked_for_is_told() {
    if !require_privileges("a mount") {
        return;
    }
    let Hanging { mount, faulty, slow, dir } = hanging();
    drop(mount);
    let (mount, log) = logged(faulty.path(), dir.path());
    faulty.set(&slow.join("diff"), Fault::Hangs);
    let checked = catch_unwind(AssertUnwindSafe(|| {
        let keeper = Pid::from_raw(mount.daemon().unwrap().cast_signed()).unwrap();
        kill_process(keeper, Signal::HUP).unwrap();
        let warning = "docker-fs: warning: looking for changes in the store has taken ";
        assert!(eventually(|| fs::read_to_string(&log).unwrap().contains(warning)));
    }));
    faulty.clear();
    checked.unwrap();
    assert!(eventually(|| figure(mount.path(), "/waits/looking_seconds") == 0));
    let log = fs::read_to_string(&log).unwrap();
    assert!(log.contains("docker-fs: info: looking for changes in the store goes on, after "), "{log}");
}
