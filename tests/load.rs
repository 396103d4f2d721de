//! Readers under load: 32 clients walk, read and compare checksums while a real engine loads, tags, builds, runs, removes and prunes
//! without pause. What stays is read without a single error; what is removed meanwhile is read whole, or is `ENOENT` or `ESTALE`; no byte
//! is ever another one's. And an engine that is killed in the middle of it leaves images that are whole or absent.
//!
//! `DOCKER_FS_LOAD_SECONDS` says how long the clients read, 60 unless it is set.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

#[path = "support/dockerd.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod dockerd;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dockerd::{Builder, Dockerd};
use rustix::io::Errno;
use serde_json::Value;
use support::eventually;
use support::mount::{KernelOverlay, Mounted, OverlayOptions, require_privileges};
use support::store::sha256_hex;

const CLIENTS: usize = 32;
/// How many clients of the engine there are.
const WORKERS: usize = 2;
/// How many images come and go.
const PASSING: usize = 6;
/// Images that stay, beside `base:1`.
const STAYING: std::ops::Range<usize> = 100..103;
/// How many files of the base image are compared, out of many.
const BASE_FILES: usize = 400;
/// By how much the server's memory may have grown when all is over and the kernel has forgotten it, in KiB.
const GROWTH_KIB: u64 = 32 * 1024;

// Images whose content tells what it should be

/// Numbers that follow from a seed.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next()).unwrap() % end
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        (!all.is_empty()).then(|| &all[self.below(all.len())])
    }
}

/// The files of an image that is known by a number, but for `id`, which holds it.
fn files() -> Vec<String> {
    (0..16).map(|file| format!("f/{file}")).chain((0..5).map(|file| format!("second/{file}"))).collect()
}

/// What a file of the image `number` holds. One is larger than the kernel reads at once.
fn content(number: usize, path: &str) -> Vec<u8> {
    let seed = path.bytes().fold(number as u64 + 1, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let mut random = Random::new(seed);
    let length = if path == "f/7" { 300_000 } else { 100 + random.below(30_000) };
    (0..length).map(|_| random.next().to_le_bytes()[0]).collect()
}

/// Makes the image `number`: of a tar, and upon that a layer that replaces a file, deletes one, and adds some.
fn make_image(daemon: &Dockerd, number: usize, tag: &str) {
    let scratch = daemon.scratch(&format!("image-{number}"));
    let first = scratch.join("first");
    fs::create_dir_all(first.join("f")).unwrap();
    fs::write(first.join("id"), number.to_string()).unwrap();
    for path in files().iter().filter(|path| path.starts_with("f/")) {
        fs::write(first.join(path), content(number, path)).unwrap();
    }
    fs::write(first.join("f/3"), "below").unwrap();
    dockerd::run(Command::new("tar").arg("-C").arg(&first).arg("-cf").arg(scratch.join("first.tar")).arg("."));
    daemon.docker(&["import", scratch.join("first.tar").to_str().unwrap(), "first:1"]);

    let context = scratch.join("context");
    fs::create_dir_all(context.join("second")).unwrap();
    for path in files().iter().filter(|path| path.starts_with("second/")) {
        fs::write(context.join(path), content(number, path)).unwrap();
    }
    fs::write(context.join("3"), content(number, "f/3")).unwrap();
    fs::write(context.join("Dockerfile"), "FROM first:1\nCOPY second /second\nCOPY 3 /f/3\n").unwrap();
    daemon.build_in(Builder::Classic, tag, &context).unwrap_or_else(|what| panic!("{what}"));
    daemon.docker(&["rmi", "first:1"]);
}

/// Compares a tree with what its `id` says that it is; answers that number and what differs.
fn check_image(dir: &Path, count: &AtomicU64) -> io::Result<(usize, Vec<String>)> {
    let counted = |result| {
        count.fetch_add(1, Ordering::Relaxed);
        result
    };
    // The name may come to stand for another image: all is read through one directory.
    let held = counted(File::open(dir))?;
    let top = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    let id = fs::read_to_string(top.join("id"))?;
    let Ok(number) = id.parse::<usize>() else { return Ok((0, vec![format!("{}: id {id:?}", dir.display())])) };
    let mut wrong = Vec::new();
    for path in files() {
        count.fetch_add(1, Ordering::Relaxed);
        if fs::read(top.join(&path))? != content(number, &path) {
            wrong.push(format!("{}/{path} of image {number}", dir.display()));
        }
    }
    let mut listed = BTreeSet::new();
    for part in ["f", "second"] {
        count.fetch_add(1, Ordering::Relaxed);
        for entry in fs::read_dir(top.join(part))? {
            listed.insert(format!("{part}/{}", entry?.file_name().to_str().unwrap()));
        }
    }
    if listed != files().into_iter().collect() {
        wrong.push(format!("{}: of image {number} is listed {listed:?}", dir.display()));
    }
    Ok((number, wrong))
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_str().unwrap().to_owned())).collect()
}

// The clients

/// What all clients share.
struct Bench {
    mount: Mounted,
    /// The images that stay, by their tags, with their IDs.
    staying: Vec<(String, String)>,
    /// Checksums of files of the base image, of which the kernel's own union is the witness.
    base: Vec<(String, String)>,
    is_over: AtomicBool,
    operations: AtomicU64,
    bytes_wrong: Mutex<Vec<String>>,
    /// Errors of what was removed: how often, by where and which.
    gone: Mutex<BTreeMap<String, u64>>,
    /// Errors that should not be.
    failures: Mutex<BTreeMap<String, u64>>,
    /// What the status called damaged, which nothing is.
    alarms: Mutex<BTreeMap<String, u64>>,
}

/// What may become of an object while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    Passes,
}

impl Bench {
    fn at(&self, path: &str) -> PathBuf {
        self.mount.path().join(path)
    }

    fn count(&self) {
        self.operations.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes an answer, or counts an error: of what passes, that it is gone is none.
    fn take<T>(&self, what: &str, fate: Fate, answer: io::Result<T>) -> Option<T> {
        self.count();
        let error = match answer {
            Ok(answer) => return Some(answer),
            Err(error) => error,
        };
        let errno = Errno::from_io_error(&error);
        let is_gone = matches!(errno, Some(Errno::NOENT | Errno::STALE)) && fate == Fate::Passes;
        let place = what.split('/').next().unwrap_or_default();
        let (errors, key) = if is_gone {
            (&self.gone, format!("{place}: {error}"))
        } else {
            (&self.failures, format!("{what}: {error}"))
        };
        *errors.lock().unwrap().entry(key).or_default() += 1;
        None
    }

    fn is_wrong(&self, what: String) {
        self.bytes_wrong.lock().unwrap().push(what);
    }

    fn check(&self, path: &str, fate: Fate) -> Option<usize> {
        let (number, wrong) = self.take(path, fate, check_image(&self.at(path), &self.operations))?;
        wrong.into_iter().for_each(|wrong| self.is_wrong(wrong));
        Some(number)
    }

    fn run(&self, client: usize) {
        let mut random = Random::new(client as u64 + 1);
        while !self.is_over.load(Ordering::Relaxed) {
            match random.below(12) {
                0..=2 => self.read_staying(&mut random),
                3 | 4 => self.read_base(&mut random),
                5 => self.list_all(),
                6..=8 => self.read_passing(&mut random),
                9 => self.read_configs(&mut random),
                10 => self.read_layers(&mut random),
                _ => self.read_containers(&mut random),
            }
        }
    }

    fn read_staying(&self, random: &mut Random) {
        let Some((tag, id)) = random.pick(&self.staying) else { return };
        let expected: usize = tag.trim_start_matches("staying-").trim_end_matches(":1").parse().unwrap();
        let place = match random.below(3) {
            0 => format!("merged/{tag}"),
            1 => format!("by-tag/{tag}/merged"),
            _ => format!("by-id/{id}/merged"),
        };
        if let Some(number) = self.check(&place, Fate::Stays)
            && number != expected
        {
            self.is_wrong(format!("{place} is image {number}"));
        }
    }

    fn read_base(&self, random: &mut Random) {
        for _ in 0..20 {
            let Some((path, sum)) = random.pick(&self.base) else { return };
            let path = format!("merged/base:1/{path}");
            if let Some(found) = self.take(&path, Fate::Stays, fs::read(self.at(&path)))
                && sha256_hex(found) != *sum
            {
                self.is_wrong(path);
            }
        }
    }

    /// Lists every folder, and looks at each entry. What stays is in each listing.
    fn list_all(&self) {
        for folder in ["by-tag", "merged", "by-id", "by-chain", "by-diff", "by-container"] {
            let Some(names) = self.take(folder, Fate::Stays, names(&self.at(folder))) else { continue };
            for name in &names {
                let is_staying = self.staying.iter().any(|(tag, id)| name == tag || name == id);
                let fate = if is_staying { Fate::Stays } else { Fate::Passes };
                let path = format!("{folder}/{name}");
                self.take(&path, fate, fs::symlink_metadata(self.at(&path)));
            }
            for (tag, id) in &self.staying {
                let expected = match folder {
                    "by-tag" | "merged" => tag,
                    "by-id" => id,
                    _ => continue,
                };
                if !names.contains(expected) {
                    self.is_wrong(format!("{folder} does not list {expected}"));
                }
            }
        }
        let Some(status) = self.take("status", Fate::Stays, fs::read(self.at("status"))) else { return };
        match serde_json::from_slice::<Value>(&status) {
            Err(error) => self.is_wrong(format!("status: {error}")),
            Ok(status) => {
                for damage in status["damage"].as_array().into_iter().flatten() {
                    let words = format!("{}: {}", damage["object"], damage["reason"]);
                    *self.alarms.lock().unwrap().entry(words).or_default() += 1;
                }
            }
        }
    }

    fn read_passing(&self, random: &mut Random) {
        let folder = if random.below(2) == 0 { "merged" } else { "by-tag" };
        let Some(names) = self.take(folder, Fate::Stays, names(&self.at(folder))) else { return };
        let passing: Vec<&String> = names.iter().filter(|name| name.starts_with("passing-")).collect();
        let Some(name) = random.pick(&passing) else { return };
        let path = if folder == "merged" { format!("merged/{name}") } else { format!("by-tag/{name}/merged") };
        self.check(&path, Fate::Passes);
    }

    fn read_configs(&self, random: &mut Random) {
        let Some(ids) = self.take("by-id", Fate::Stays, names(&self.at("by-id"))) else { return };
        let Some(id) = random.pick(&ids) else { return };
        let path = format!("by-id/{id}/config.json");
        if let Some(config) = self.take(&path, Fate::Passes, fs::read(self.at(&path)))
            && sha256_hex(config) != *id
        {
            self.is_wrong(path);
        }
    }

    /// Reads some of a layer's own tree.
    fn read_layers(&self, random: &mut Random) {
        let Some(names) = self.take("by-chain", Fate::Stays, names(&self.at("by-chain"))) else { return };
        let layers: Vec<&String> = names.iter().filter(|name| !name.ends_with(".json")).collect();
        let Some(layer) = random.pick(&layers) else { return };
        let mut left = vec![format!("by-chain/{layer}")];
        for _ in 0..60 {
            let Some(path) = left.pop() else { return };
            let Some(meta) = self.take(&path, Fate::Passes, fs::symlink_metadata(self.at(&path))) else { continue };
            if meta.is_dir() {
                if let Some(names) = self.take(&path, Fate::Passes, self::names(&self.at(&path))) {
                    left.extend(names.iter().map(|name| format!("{path}/{name}")));
                }
            } else if meta.is_file()
                && let Some(found) = self.take(&path, Fate::Passes, fs::read(self.at(&path)))
                && found.len() as u64 != meta.len()
            {
                self.is_wrong(format!("{path}: {} bytes of {}", found.len(), meta.len()));
            }
        }
    }

    fn read_containers(&self, random: &mut Random) {
        let Some(names) = self.take("by-container", Fate::Stays, names(&self.at("by-container"))) else { return };
        let Some(name) = random.pick(&names) else { return };
        let place = format!("by-container/{name}");
        // One that is known by its ID alone is being made.
        if name.len() == 64 {
            return;
        }
        let path = format!("{place}/config.json");
        if let Some(config) = self.take(&path, Fate::Passes, fs::read(self.at(&path)))
            && serde_json::from_slice::<Value>(&config).is_err()
        {
            self.is_wrong(path);
        }
        for tree in ["changes", "init", "merged"] {
            let path = format!("{place}/{tree}");
            self.take(&path, Fate::Passes, self::names(&self.at(&path)));
        }
        if name.starts_with("made-") {
            self.check(&format!("{place}/merged"), Fate::Passes);
        }
    }
}

// The engine

/// What a worker has done, by its kind, and what the engine refused, as when two clients meet.
type Done = Mutex<BTreeMap<String, u64>>;

/// Has the engine work until it is over. Images come by loading, are given other names, are built upon, have containers, and go.
fn work(worker: usize, daemon: &Dockerd, archives: &[PathBuf], is_over: &AtomicBool, done: &Done) {
    let mut random = Random::new(1_000 + worker as u64);
    let context = daemon.scratch(&format!("context-{worker}"));
    fs::write(context.join("third"), "third").unwrap();
    let ask = |kind: &str, args: &[&str]| {
        let outcome = daemon.try_docker(args);
        let key = if outcome.is_ok() { kind.to_owned() } else { format!("{kind} refused") };
        *done.lock().unwrap().entry(key).or_default() += 1;
        outcome.is_ok()
    };
    // Each worker has images of its own.
    let own: Vec<usize> = (0..PASSING).filter(|number| number % WORKERS == worker).collect();
    let mut round = 0;
    while !is_over.load(Ordering::Relaxed) {
        let number = *random.pick(&own).unwrap();
        let (tag, moving) = (format!("passing-{number}:1"), format!("passing-moving-{worker}:1"));
        ask("load", &["load", "-i", archives[number].to_str().unwrap()]);
        ask("tag", &["tag", &tag, &moving]);
        if round % 3 == 0 {
            fs::write(context.join("third"), round.to_string()).unwrap();
            fs::write(context.join("Dockerfile"), format!("FROM {tag}\nCOPY third /third\nLABEL round={round}\n"))
                .unwrap();
            let built = format!("passing-built-{worker}:1");
            let outcome = daemon.build_in(Builder::Classic, &built, &context);
            *done
                .lock()
                .unwrap()
                .entry(if outcome.is_ok() { "build" } else { "build refused" }.to_owned())
                .or_default() += 1;
            ask("rmi", &["rmi", &built]);
        }
        let container = format!("made-{worker}");
        if ask("create", &["create", "--network", "none", "--name", &container, &tag, "/none"]) {
            ask("rename", &["rename", &container, &format!("{container}-renamed")]);
            ask("rm", &["rm", "-f", &format!("{container}-renamed")]);
        }
        if round % 4 == 0 {
            ask("run", &["run", "--rm", "--network", "none", "base:1", "sh", "-c", "echo x >/x; rm /etc/issue"]);
        }
        ask("rmi", &["rmi", "-f", &tag]);
        if round % 2 == 0 {
            ask("rmi", &["rmi", "-f", &moving]);
        }
        ask("prune", &["image", "prune", "-f"]);
        round += 1;
    }
}

/// Saves the images that come and go, and removes them.
fn archives(daemon: &Dockerd) -> Vec<PathBuf> {
    let scratch = daemon.scratch("archives");
    let archive = |number| {
        let (tag, archive) = (format!("passing-{number}:1"), scratch.join(format!("{number}.tar")));
        make_image(daemon, number, &tag);
        daemon.docker(&["save", "-o", archive.to_str().unwrap(), &tag]);
        daemon.docker(&["rmi", &tag]);
        archive
    };
    (0..PASSING).map(archive).collect()
}

/// Regular files of the base image with their checksums, as the kernel unites the layers.
fn sums_of_base(daemon: &Dockerd) -> Vec<(String, String)> {
    let kernel = KernelOverlay::new(&daemon.image_layers("base:1"), &OverlayOptions::default()).unwrap();
    let mut all = Vec::new();
    let mut left = vec![PathBuf::new()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(kernel.path().join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let path = dir.join(entry.file_name());
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                left.push(path);
            } else if kind.is_file() {
                all.extend(path.to_str().map(str::to_owned));
            }
        }
    }
    all.sort();
    let every = all.len().div_ceil(BASE_FILES);
    let sum = |path: String| {
        let sum = sha256_hex(fs::read(kernel.path().join(&path)).unwrap());
        (path, sum)
    };
    all.into_iter().step_by(every).map(sum).collect()
}

// The server

#[derive(Debug, Clone, Copy)]
struct Resources {
    descriptors: usize,
    memory_kib: u64,
}

fn resources(pid: u32) -> Resources {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    Resources {
        descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
        memory_kib: memory.trim().trim_end_matches(" kB").parse().unwrap(),
    }
}

/// Makes the kernel forget: 2 names and inodes, 3 pages too.
fn drop_caches(what: u8) {
    fs::write("/proc/sys/vm/drop_caches", what.to_string()).unwrap();
}

#[test]
fn clients_read_on_while_the_engine_works_without_pause() {
    if !require_privileges("a Docker daemon") || !dockerd::has_programs(dockerd::PROGRAMS) {
        return;
    }
    let seconds = std::env::var("DOCKER_FS_LOAD_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let daemon = Dockerd::start();
    daemon.import_base("base:1");
    let staying = STAYING.map(|number| {
        let tag = format!("staying-{number}:1");
        make_image(&daemon, number, &tag);
        let id = daemon.image_id(&tag);
        (tag, id)
    });
    let staying: Vec<_> = staying.collect();
    let archives = archives(&daemon);
    let base = sums_of_base(&daemon);
    assert!(base.len() > BASE_FILES / 2, "{} files of the base image", base.len());
    let log = daemon.scratch("log").join("log");
    let options = format!("log_file={}", log.display());
    let bench = Bench {
        mount: Mounted::with(&daemon.root(), &daemon.scratch("mnt"), &["-o", &options], 0),
        staying,
        base,
        is_over: AtomicBool::new(false),
        operations: AtomicU64::new(0),
        bytes_wrong: Mutex::default(),
        gone: Mutex::default(),
        failures: Mutex::default(),
        alarms: Mutex::default(),
    };
    let pid = bench.mount.server().unwrap();
    // All that stays is read once, so that what is counted is growth.
    (0..200).for_each(|seed| bench.read_staying(&mut Random::new(seed)));
    bench.list_all();
    drop_caches(2);
    let start = resources(pid);

    let done = Done::default();
    let (peak_kib, peak_descriptors) = (AtomicU64::new(0), AtomicUsize::new(0));
    let begun = Instant::now();
    bench.operations.store(0, Ordering::Relaxed);
    std::thread::scope(|scope| {
        let (bench, daemon, archives, done) = (&bench, &daemon, &archives, &done);
        for client in 0..CLIENTS {
            scope.spawn(move || bench.run(client));
        }
        for worker in 0..WORKERS {
            scope.spawn(move || work(worker, daemon, archives, &bench.is_over, done));
        }
        for round in 1.. {
            std::thread::sleep(Duration::from_millis(200));
            let now = resources(pid);
            peak_kib.fetch_max(now.memory_kib, Ordering::Relaxed);
            peak_descriptors.fetch_max(now.descriptors, Ordering::Relaxed);
            // Or all would soon be read from memory.
            if round % 25 == 0 {
                drop_caches(if round % 100 == 0 { 3 } else { 2 });
            }
            if begun.elapsed() > Duration::from_secs(seconds) {
                break;
            }
        }
        bench.is_over.store(true, Ordering::Relaxed);
    });
    let elapsed = begun.elapsed();
    let is_level = eventually(|| {
        drop_caches(2);
        let now = resources(pid);
        now.descriptors <= start.descriptors && now.memory_kib <= start.memory_kib + GROWTH_KIB
    });
    let end = resources(pid);

    let operations = bench.operations.load(Ordering::Relaxed);
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    let per_second = operations as f64 / elapsed.as_secs_f64();
    let (failures, wrong) = (bench.failures.lock().unwrap(), bench.bytes_wrong.lock().unwrap());
    eprintln!("{operations} operations of {CLIENTS} clients in {elapsed:.1?}, {per_second:.0} a second");
    eprintln!("the engine: {:?}", done.lock().unwrap());
    eprintln!("gone while read: {:?}", bench.gone.lock().unwrap());
    eprintln!("other errors: {failures:?}");
    eprintln!("wrong: {wrong:?}");
    eprintln!("called damaged: {:?}", bench.alarms.lock().unwrap());
    eprintln!(
        "memory in KiB: {} at the start, {peak_kib:?} at most, {} at the end; descriptors: {}, {peak_descriptors:?}, {}",
        start.memory_kib, end.memory_kib, start.descriptors, end.descriptors
    );
    let said = fs::read_to_string(&log).unwrap_or_default();
    eprintln!("the log: {said}");
    assert!(wrong.is_empty(), "{} wrong", wrong.len());
    assert!(failures.is_empty(), "errors that should not be: {failures:?}");
    assert!(is_level, "not all is given back: {start:?}, then {end:?}");
    let done = done.lock().unwrap();
    let kinds = ["load", "tag", "build", "create", "rm", "run", "rmi", "prune"];
    assert!(
        kinds.iter().all(|kind| done.get(*kind).is_some_and(|count| *count > 0)),
        "the engine did not work: {done:?}"
    );
}

/// How an image is seen, if it is.
fn state_of(bench: &Bench, path: &str, expected: usize) -> &'static str {
    match check_image(&bench.at(path), &bench.operations) {
        Ok((number, wrong)) => {
            assert!(number == expected && wrong.is_empty(), "{path}: {number}, {wrong:?}");
            "whole"
        }
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::STALE) => "absent",
            Some(Errno::IO) => "damaged",
            _ => panic!("{path}: {error}"),
        },
    }
}

#[test]
fn an_engine_that_is_killed_leaves_images_whole_or_absent() {
    const ROUNDS: usize = 12;
    if !require_privileges("a Docker daemon") || !dockerd::has_programs(dockerd::PROGRAMS) {
        return;
    }
    let mut daemon = Dockerd::start();
    let archives = archives(&daemon);
    let load = |daemon: &Dockerd, number: usize| daemon.try_docker(&["load", "-i", archives[number].to_str().unwrap()]);
    // How long it takes, and which image it is.
    let (mut ids, mut longest) = (Vec::new(), Duration::ZERO);
    for number in 0..PASSING {
        let begun = Instant::now();
        load(&daemon, number).unwrap_or_else(|what| panic!("{what}"));
        longest = longest.max(begun.elapsed());
        ids.push(daemon.image_id(&format!("passing-{number}:1")));
    }
    let bench = Bench {
        mount: Mounted::new(&daemon.root(), &daemon.scratch("mnt")),
        staying: Vec::new(),
        base: Vec::new(),
        is_over: AtomicBool::new(false),
        operations: AtomicU64::new(0),
        bytes_wrong: Mutex::default(),
        gone: Mutex::default(),
        failures: Mutex::default(),
        alarms: Mutex::default(),
    };
    let mut random = Random::new(u64::from(std::process::id()));
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for round in 0..ROUNDS {
        let number = round / 2 % PASSING;
        let tag = format!("passing-{number}:1");
        let delay = longest.mul_f64(random.below(1_000) as f64 / 1_000.0);
        let is_running = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let (daemon, is_running, load) = (&daemon, &is_running, &load);
            scope.spawn(move || {
                // Whatever it is in the middle of when it is killed.
                while is_running.load(Ordering::Relaxed)
                    && daemon.try_docker(&["rmi", &tag]).is_ok()
                    && load(daemon, number).is_ok()
                {}
            });
            std::thread::sleep(delay);
            is_running.store(false, Ordering::Relaxed);
            daemon.kill_now();
        });
        daemon.kill();
        for (number, id) in ids.iter().enumerate() {
            let by_tag = state_of(&bench, &format!("merged/passing-{number}:1"), number);
            let by_id = state_of(&bench, &format!("by-id/{id}/merged"), number);
            // A mount that was made now sees the same.
            *states.entry(by_id).or_default() += 1;
            assert!(by_tag != "whole" || by_id == "whole", "round {round}: image {number}: {by_tag}, {by_id}");
            if by_id == "damaged" {
                assert!(bench.at(&format!("by-id/{id}/damage")).exists(), "image {number} is not called damaged");
            }
        }
        daemon.start_again();
        for number in 0..PASSING {
            load(&daemon, number).unwrap_or_else(|what| panic!("{what}"));
            assert_eq!(state_of(&bench, &format!("merged/passing-{number}:1"), number), "whole", "round {round}");
        }
    }
    eprintln!("images after {ROUNDS} kills within {longest:?}: {states:?}");
    drop(bench);
}
