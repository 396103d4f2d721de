//! A stress of random reads against a golden mount: kernel overlayfs on the same layers.
//!
//! Four workers read at random, list directories and go on in them from random places, read links, ask for attributes
//! and for names that are not there, while the kernel is made to forget what it has cached. Whatever a worker is
//! answered, it asks the golden mount the same. It is what `contrib/stress.c` of erofs-utils does, for all of a tree.
//!
//! `DOCKER_FS_STRESS_SECONDS` says for how long, `DOCKER_FS_SEED` with which random numbers; the seed is printed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::string_slice)]

mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;
use support::mount::{KernelOverlay, Mounted, require_privileges};
use support::random::Dice;
use support::stack::{Op, Stack, dir, fifo, file, link, sparse, stack, symlink, whiteout};
use tempfile::TempDir;

const WORKERS: u64 = 4;
const LAYERS: usize = 5;
/// How many failures are told.
const TOLD: usize = 10;

// The tree.

/// Layers that delete, replace and add, top first. Deletions lie only in directories that the base has too, as the kernel
/// lists others.
fn layers(dice: &mut Dice) -> Stack {
    let mut directories = vec![String::new()];
    for _ in 0..60 {
        let above = dice.of(&directories);
        let name = format!("d{}", directories.len());
        directories.push(if above.is_empty() { name } else { format!("{above}/{name}") });
    }
    let mut all = Vec::new();
    for layer in 0..LAYERS {
        let is_base = layer == LAYERS - 1;
        let mut ops: BTreeMap<String, Op> = BTreeMap::new();
        for path in directories.iter().filter(|path| !path.is_empty()) {
            // Listed before what is in it, as its name is the shorter.
            if is_base || dice.one_in(2) {
                ops.insert(path.clone(), dir(path).mode(0o755));
            }
        }
        for _ in 0..120 {
            let above = dice.of(&directories);
            let name = format!("{}{}", ["f", "s", "l", "x"][dice.below(4)], dice.below(30));
            let path = if above.is_empty() { name } else { format!("{above}/{name}") };
            ops.insert(path.clone(), object(dice, &path, is_base));
        }
        all.push(finish(dice, ops));
    }
    stack(all)
}

fn object(dice: &mut Dice, path: &str, is_base: bool) -> Op {
    let size = [0, 1, 10, 100, 4095, 4096, 4097, 20_000, 131_071, 131_072, 300_000][dice.below(11)];
    let mtime = (i64::try_from(dice.below(2_000_000_000)).unwrap(), i64::try_from(dice.below(1_000_000_000)).unwrap());
    let made = match dice.below(20) {
        0..=11 => file(path, dice.bytes(size)),
        12 => file(path, dice.bytes(2 << 20)),
        13 => {
            let at = dice.below(1 << 20) as u64;
            sparse(path, at + 200_000, at, dice.bytes(5000))
        }
        14..=16 => symlink(
            path,
            dice.bytes(1 + size.min(900)).escape_ascii().to_string().get(..1 + size.min(900)).unwrap_or("x"),
        ),
        17 => fifo(path),
        _ if !is_base => return whiteout(path),
        _ => file(path, b"base"),
    };
    let owner = (u32::try_from(dice.below(70_000)).unwrap(), u32::try_from(dice.below(70_000)).unwrap());
    let made = made.mode(0o600 | u32::try_from(dice.below(0o200)).unwrap()).owner(owner.0, owner.1);
    made.mtime(mtime.0, mtime.1)
}

/// The objects of a layer with hard links beside them.
fn finish(dice: &mut Dice, ops: BTreeMap<String, Op>) -> Vec<Op> {
    let files: Vec<String> = ops
        .iter()
        .filter(|(_, op)| matches!(op.kind, support::stack::Kind::File(_)))
        .map(|(path, _)| path.clone())
        .collect();
    let mut all: Vec<Op> = ops.into_values().collect();
    for n in 0..10 {
        all.push(link(format!("hard-{n}-{}", dice.below(1000)), dice.of(&files)));
    }
    all
}

struct Bench {
    golden: KernelOverlay,
    mount: Mounted,
    _dir: TempDir,
}

impl Bench {
    fn new(dice: &mut Dice) -> Self {
        let dir = support::scratch("golden");
        let stack = layers(dice);
        let (store, directories) = stack.store(dir.path().join("docker"));
        let golden = KernelOverlay::restricted(&directories).expect("mount kernel overlayfs");
        let mount = Mounted::new(&store, &dir.path().join("mnt"));
        Self { golden, mount, _dir: dir }
    }
}

/// What the golden mount holds, by type.
#[derive(Debug, Default)]
struct Paths {
    all: Vec<PathBuf>,
    directories: Vec<PathBuf>,
    files: Vec<PathBuf>,
    links: Vec<PathBuf>,
}

fn paths(golden: &Path) -> Paths {
    let mut found = Paths { directories: vec![PathBuf::new()], ..Paths::default() };
    let mut next = 0;
    while next < found.directories.len() {
        let dir = found.directories[next].clone();
        next += 1;
        for name in fs::read_dir(golden.join(&dir)).unwrap() {
            let path = dir.join(name.unwrap().file_name());
            // A deleted name that the kernel lists all the same.
            let Ok(kind) = fs::symlink_metadata(golden.join(&path)) else { continue };
            match kind.file_type() {
                kind if kind.is_dir() => found.directories.push(path.clone()),
                kind if kind.is_file() => found.files.push(path.clone()),
                kind if kind.is_symlink() => found.links.push(path.clone()),
                _ => {}
            }
            found.all.push(path);
        }
    }
    found
}

// The workers.

/// One of the four: who asks both mounts.
struct Worker<'a> {
    golden: &'a Path,
    mount: &'a Path,
    paths: &'a Paths,
    dice: Dice,
    /// Both openings of files that stay open for a while.
    open: Vec<(PathBuf, File, File)>,
    done: BTreeMap<&'static str, u64>,
}

/// What differs, in words.
type Outcome = Result<(), String>;

fn same<T: PartialEq + Debug>(what: impl FnOnce() -> String, golden: &T, found: &T) -> Outcome {
    if golden == found { Ok(()) } else { Err(format!("{}: golden {golden:?}, found {found:?}", what())) }
}

impl Worker<'_> {
    fn step(&mut self) -> Outcome {
        let (name, work): (&'static str, fn(&mut Self) -> Outcome) = match self.dice.below(20) {
            0..=7 => ("reads", Self::read),
            8..=10 => ("listings", Self::list),
            11..=13 => ("links", Self::read_link),
            14..=16 => ("attributes", Self::stat),
            17..=18 => ("absent names", Self::absent),
            _ => ("dropped caches", Self::forget),
        };
        *self.done.entry(name).or_default() += 1;
        work(self)
    }

    fn opened(&mut self) -> (PathBuf, File, File) {
        if self.open.len() > 8 || (!self.open.is_empty() && self.dice.one_in(3)) {
            let index = self.dice.below(self.open.len());
            return self.open.swap_remove(index);
        }
        let path = self.dice.of(&self.paths.files);
        let [golden, found] = [self.golden, self.mount].map(|root| File::open(root.join(&path)).unwrap());
        (path, golden, found)
    }

    fn read(&mut self) -> Outcome {
        let (path, golden, found) = self.opened();
        let size = usize::try_from(golden.metadata().unwrap().len()).unwrap();
        for _ in 0..1 + self.dice.below(6) {
            let offset = self.dice.below(size + 5000);
            let length = [1, 100, 4096, 40_000, 200_000][self.dice.below(5)];
            let [mut a, mut b] = [vec![0; length], vec![0; length]];
            let golden = rustix::io::pread(&golden, &mut a, offset as u64);
            let found = rustix::io::pread(&found, &mut b, offset as u64);
            let what = || format!("{length} bytes at {offset} of {}", path.display());
            same(what, &golden, &found)?;
            let filled = found.unwrap_or_default();
            if a[..filled] != b[..filled] {
                return Err(format!("{}: other bytes", what()));
            }
        }
        if self.dice.one_in(2) {
            self.open.push((path, golden, found));
        }
        Ok(())
    }

    fn list(&mut self) -> Outcome {
        let path = self.dice.of(&self.paths.directories);
        let buffer = [300, 1000, 4096, 65_536][self.dice.below(4)];
        let listed = |root: &Path| {
            let dir = rustix::fs::open(root.join(&path), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
            let all = names(&dir, buffer)?;
            Ok::<_, Errno>((dir, all))
        };
        let (golden, found) = (listed(self.golden), listed(self.mount));
        let (Ok((_, golden)), Ok((dir, found))) = (&golden, &found) else {
            return same(|| format!("listing {}", path.display()), &golden.err(), &found.err());
        };
        let sorted = |all: &[(Vec<u8>, FileType, u64)]| {
            let mut all: Vec<_> = all.iter().map(|(name, kind, _)| (name.escape_ascii().to_string(), *kind)).collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        same(|| format!("listing {} in {buffer} bytes", path.display()), &sorted(golden), &sorted(found))?;
        // From a random place it goes on as it did.
        let place = self.dice.below(found.len());
        rustix::fs::seek(dir, SeekFrom::Start(found[place].2)).unwrap();
        let rest = names(dir, buffer).map_err(|error| format!("going on in {}: {error}", path.display()))?;
        same(|| format!("behind {place} of {}", path.display()), &found[place + 1..].to_vec(), &rest)
    }

    fn read_link(&mut self) -> Outcome {
        let path = self.dice.of(&self.paths.links);
        let room = 1 + self.dice.below(1200);
        let read = |root: &Path| {
            let mut space = vec![0_u8; room];
            let length = rustix::fs::readlinkat_raw(CWD, root.join(&path), space.as_mut_slice())?;
            space.truncate(length);
            Ok::<_, Errno>(space)
        };
        same(|| format!("{room} bytes of the link {}", path.display()), &read(self.golden), &read(self.mount))
    }

    fn stat(&mut self) -> Outcome {
        let path = self.dice.of(&self.paths.all);
        let told = |root: &Path| {
            rustix::fs::lstat(root.join(&path)).map(|stat| {
                let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                // Of directories, file systems choose these freely.
                let (size, links) = if is_dir { (0, 0) } else { (stat.st_size, stat.st_nlink) };
                (stat.st_mode, stat.st_uid, stat.st_gid, size, links, stat.st_mtime, stat.st_mtime_nsec)
            })
        };
        same(|| format!("attributes of {}", path.display()), &told(self.golden), &told(self.mount))
    }

    fn absent(&mut self) -> Outcome {
        let above = self.dice.of(&self.paths.all);
        let name = [".wh.f1", "absent", "f29", "x7", "..wh..opq", "d3"][self.dice.below(6)];
        let path = above.join(OsStr::from_bytes(name.as_bytes()));
        let told =
            |root: &Path| rustix::fs::statat(CWD, root.join(&path), AtFlags::SYMLINK_NOFOLLOW).map(|stat| stat.st_mode);
        same(|| format!("{}", path.display()), &told(self.golden), &told(self.mount))
    }

    /// Has the kernel forget pages, names, or both, now and then.
    fn forget(&mut self) -> Outcome {
        if self.dice.one_in(20) {
            fs::write("/proc/sys/vm/drop_caches", ["1", "2", "3"][self.dice.below(3)]).unwrap();
        }
        Ok(())
    }
}

/// The rest of an open directory: names, types, and where each leads on.
fn names(dir: impl std::os::fd::AsFd, buffer: usize) -> Result<Vec<(Vec<u8>, FileType, u64)>, Errno> {
    let mut space = vec![MaybeUninit::uninit(); buffer];
    let mut raw = RawDir::new(dir, &mut space);
    let mut all = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry?;
        all.push((entry.file_name().to_bytes().to_vec(), entry.file_type(), entry.next_entry_cookie()));
    }
    Ok(all)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

#[test]
fn random_readers_see_what_the_kernel_shows() {
    if !require_privileges("a mount") {
        return;
    }
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = number("DOCKER_FS_SEED").unwrap_or(since_1970.as_nanos() as u64);
    let seconds = number("DOCKER_FS_STRESS_SECONDS").unwrap_or(20);
    eprintln!("DOCKER_FS_SEED={seed}");
    let mut dice = Dice(seed);
    let bench = Bench::new(&mut dice);
    let (golden, mount) = (bench.golden.path(), bench.mount.path().join("merged/t:1"));
    let paths = paths(&golden);
    assert!(paths.files.len() > 100 && paths.links.len() > 20 && paths.directories.len() > 50, "{paths:?}");

    let failures: Mutex<Vec<String>> = Mutex::default();
    let done: Mutex<BTreeMap<&str, u64>> = Mutex::default();
    let is_over = AtomicBool::new(false);
    let end = Instant::now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        for number in 0..WORKERS {
            let (golden, mount, paths) = (&golden, &mount, &paths);
            let (failures, done, is_over) = (&failures, &done, &is_over);
            let dice = Dice(seed.wrapping_add(1 + number));
            scope.spawn(move || {
                let mut worker = Worker { golden, mount, paths, dice, open: Vec::new(), done: BTreeMap::new() };
                while Instant::now() < end && !is_over.load(Ordering::Relaxed) {
                    if let Err(what) = worker.step() {
                        let mut failures = failures.lock().unwrap();
                        failures.push(what);
                        is_over.fetch_or(failures.len() >= TOLD, Ordering::Relaxed);
                    }
                }
                let mut all = done.lock().unwrap();
                for (kind, count) in worker.done {
                    *all.entry(kind).or_default() += count;
                }
            });
        }
    });
    let (failures, done) = (failures.into_inner().unwrap(), done.into_inner().unwrap());
    eprintln!("{seconds} s, {WORKERS} workers, {} paths: {done:?}", paths.all.len());
    assert!(failures.is_empty(), "with DOCKER_FS_SEED={seed}:\n  {}", failures.join("\n  "));
    assert_eq!(done.len(), 6, "not everything was tried: {done:?}");
}
