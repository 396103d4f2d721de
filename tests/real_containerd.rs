//! The databases of a real containerd, read while it runs, against what `ctr` says of them.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

#[path = "support/containerd.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod containerd;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use containerd::Containerd;
use docker_fs::error::Result;
use docker_fs::name::TreePath;
use docker_fs::root::Root;
use docker_fs::store::containerd::bolt::{Bucket, Database, Entry};
use support::mount::require_privileges;

const META: &str = "io.containerd.metadata.v1.bolt/meta.db";
const NATIVE: &str = "io.containerd.snapshotter.v1.native/metadata.db";
const BLOBS: &str = "io.containerd.content.v1.content/blobs/sha256";
const APP: &str = "docker.io/library/app:1";
/// The reads while others write.
const READS: usize = 200;
/// The states of which the reads must be at the least, so that they were not all of one.
const STATES: usize = 150;
const WRITERS: usize = 3;
/// The names that each writer puts and removes, in order.
const NAMES: usize = 5;
/// How long the reads may take, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(300);

fn database(containerd: &Containerd, path: &str) -> Database {
    let root = Root::open(&containerd.root()).unwrap();
    Database::new(Box::new(root.open_file(&TreePath::new(path.as_bytes()).unwrap()).unwrap()), path)
}

/// Nothing is asserted while a database is read: it may be of two states, which is found at the end.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A value that is text; empty where there is none.
fn value(bucket: &Bucket<'_>, key: &str) -> Result<String> {
    Ok(bucket.get(key.as_bytes())?.map(|bytes| text(&bytes)).unwrap_or_default())
}

/// The buckets in a bucket at the end of a path, by their names.
fn each(bucket: &Bucket<'_>, path: &[&str], mut look: impl FnMut(String, &Bucket<'_>) -> Result<()>) -> Result<()> {
    let path: Vec<&[u8]> = path.iter().map(|name| name.as_bytes()).collect();
    let Some(bucket) = bucket.descend(&path)? else { return Ok(()) };
    let mut entries = bucket.entries();
    while let Some((key, entry)) = entries.next_entry()? {
        if let Entry::Bucket(nested) = entry {
            look(text(key), &nested.open()?)?;
        }
    }
    Ok(())
}

/// The labels of an object as `ctr` prints them, in order.
fn labels(bucket: &Bucket<'_>) -> Result<String> {
    let mut labels = Vec::new();
    if let Some(bucket) = bucket.bucket(b"labels")? {
        let mut entries = bucket.entries();
        while let Some((key, entry)) = entries.next_entry()? {
            match entry {
                Entry::Value(value) => labels.push(format!("{}={}", text(key), text(value))),
                Entry::Bucket(_) => labels.push(format!("{} is a bucket", text(key))),
            }
        }
    }
    Ok(labels.join(","))
}

/// A number as Go's `PutVarint` writes it.
fn varint(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 7 | u64::from(byte & 0x7f)) >> 1
}

/// The lines of a table of `ctr`'s without its head, of each line the columns with these numbers, and the labels, which
/// are the last one, in order.
fn table(said: &str, columns: &[usize]) -> BTreeSet<String> {
    said.lines()
        .skip(1)
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let labels = words.last().filter(|word| word.contains('=')).copied().unwrap_or_default();
            let mut labels: Vec<&str> = labels.split(',').collect();
            labels.sort_unstable();
            let columns = columns.iter().map(|column| words[*column].to_owned());
            columns.chain([labels.join(",")]).collect::<Vec<_>>().join(" ")
        })
        .collect()
}

#[test]
fn databases_hold_what_ctr_lists() {
    if !require_privileges("containerd") || !containerd::has_programs(containerd::PROGRAMS) {
        return;
    }
    let containerd = Containerd::start();
    furnish(&containerd);
    let meta = database(&containerd, META);
    let namespaces = meta.read(|root| {
        let mut found = BTreeSet::new();
        each(root, &["v1"], |name, bucket| {
            found.insert(format!("{name} {}", labels(bucket)?));
            Ok(())
        })?;
        Ok(found)
    });
    assert_eq!(namespaces.unwrap(), table(&containerd.ctr(&["namespaces", "ls"]), &[0]));
    for namespace in ["first", "second"] {
        let (objects, kinds, said) = at_rest(&containerd, &meta, namespace);
        assert_eq!(objects.images, table(&said.images, &[0, 1, 2]), "images of {namespace}");
        assert_eq!(objects.leases, table(&said.leases, &[0]), "leases of {namespace}");
        assert_eq!(objects.blobs, table(&said.blobs, &[0]), "blobs of {namespace}");
        for (digest, size) in &objects.sizes {
            let file = containerd.root().join(BLOBS).join(digest.strip_prefix("sha256:").unwrap());
            assert_eq!(*size, fs::metadata(file).unwrap().len(), "{digest}");
        }
        let snapshots = objects.snapshots.iter().map(|(key, (name, parent))| (key, parent, kinds[name]));
        let snapshots: BTreeSet<String> =
            snapshots.map(|(key, parent, kind)| format!("{key} {parent} {kind}").replace("  ", " ")).collect();
        let listed = said.snapshots.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        assert_eq!(snapshots, listed.collect(), "snapshots of {namespace}");
        assert!(!objects.images.is_empty() && !objects.sizes.is_empty() && snapshots.len() >= 2, "{objects:?}");
    }
}

/// What `ctr` lists of a namespace.
struct Said {
    images: String,
    leases: String,
    blobs: String,
    snapshots: String,
}

/// What is read of a namespace, and what `ctr` says of the same state: containerd collects garbage when it likes, so both
/// databases are read before and after it is asked, until they hold the same.
fn at_rest(
    containerd: &Containerd,
    meta: &Database,
    namespace: &str,
) -> (Objects, BTreeMap<String, &'static str>, Said) {
    let asked = |args: &[&str]| containerd.ctr(&[&["-n", namespace], args].concat());
    let read = || (meta.read(|root| read_namespace(root, namespace)).unwrap(), kinds(containerd));
    let mut found = None;
    let is_at_rest = support::eventually(|| {
        let before = read();
        let said = Said {
            images: asked(&["images", "ls"]),
            leases: asked(&["leases", "ls"]),
            blobs: asked(&["content", "ls"]),
            snapshots: asked(&["snapshots", "--snapshotter", "native", "ls"]),
        };
        let (objects, kinds) = read();
        let is_same = before == (objects.clone(), kinds.clone());
        found = Some((objects, kinds, said));
        is_same
    });
    assert!(is_at_rest, "containerd never rests");
    found.unwrap()
}

/// Two namespaces with images, leases, labels and snapshots of all kinds.
fn furnish(containerd: &Containerd) {
    for namespace in ["first", "second"] {
        let ctr = |args: &[&str]| drop(containerd.ctr(&[&["-n", namespace], args].concat()));
        containerd.ctr(&["namespaces", "create", namespace, "who=me", "empty=no"]);
        containerd.import(namespace, "native", APP, &["one", "two", namespace]);
        containerd.import(namespace, "native", "registry.example:5000/a/b:2", &["one"]);
        for number in 0..40 {
            ctr(&["images", "tag", APP, &format!("docker.io/library/many:{number}")]);
        }
        ctr(&["images", "rm", "docker.io/library/many:7"]);
        // Longer than a page of the database.
        ctr(&["images", "label", APP, &format!("long={}", "x".repeat(4_000)), &format!("more={}", "y".repeat(4_000))]);
        ctr(&["leases", "create", "--id", "lease-1", "a=b", "c=d"]);
        ctr(&["leases", "create", "--id", "lease-2"]);
        let snapshots = containerd.ctr(&["-n", namespace, "snapshots", "--snapshotter", "native", "ls"]);
        let top = snapshots.lines().nth(1).unwrap().split_whitespace().next().unwrap();
        ctr(&["snapshots", "--snapshotter", "native", "prepare", "work", top]);
        ctr(&["snapshots", "--snapshotter", "native", "view", "look", top]);
    }
}

/// What a namespace holds, each object as the line that `ctr` prints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Objects {
    images: BTreeSet<String>,
    leases: BTreeSet<String>,
    blobs: BTreeSet<String>,
    sizes: BTreeMap<String, u64>,
    /// The native snapshotter's name of each key, and the key of the parent.
    snapshots: BTreeMap<String, (String, String)>,
}

fn read_namespace(root: &Bucket<'_>, namespace: &str) -> Result<Objects> {
    let mut objects = Objects::default();
    let Some(v1) = root.descend(&[b"v1", namespace.as_bytes()])? else { return Ok(objects) };
    each(&v1, &["images"], |name, image| {
        let Some(target) = image.bucket(b"target")? else {
            objects.images.insert(format!("{name} has no target"));
            return Ok(());
        };
        let (media_type, digest) = (value(&target, "mediatype")?, value(&target, "digest")?);
        objects.images.insert(format!("{name} {media_type} {digest} {}", labels(image)?));
        Ok(())
    })?;
    each(&v1, &["leases"], |name, lease| {
        objects.leases.insert(format!("{name} {}", labels(lease)?));
        Ok(())
    })?;
    each(&v1, &["content", "blob"], |digest, blob| {
        objects.blobs.insert(format!("{digest} {}", labels(blob)?));
        objects.sizes.insert(digest, varint(&blob.get(b"size")?.unwrap_or_default()));
        Ok(())
    })?;
    each(&v1, &["snapshots", "native"], |key, snapshot| {
        objects.snapshots.insert(key, (value(snapshot, "name")?, value(snapshot, "parent")?));
        Ok(())
    })?;
    Ok(objects)
}

/// The kinds of the native snapshotter's snapshots by its own names.
fn kinds(containerd: &Containerd) -> BTreeMap<String, &'static str> {
    let kinds = database(containerd, NATIVE).read(|root| {
        let mut kinds = BTreeMap::new();
        each(root, &["v1", "snapshots"], |name, snapshot| {
            let kind = match snapshot.get(b"kind")?.as_deref() {
                Some([1]) => "View",
                Some([2]) => "Active",
                Some([3]) => "Committed",
                _ => "none",
            };
            kinds.insert(name, kind);
            Ok(())
        })?;
        Ok(kinds)
    });
    kinds.unwrap()
}

/// Puts names and removes them in the same order, with a lease before and after, until it is told to stop.
fn write_without_pause(containerd: &Containerd, writer: usize, is_over: &AtomicBool) {
    let ctr = |args: &[&str]| drop(containerd.ctr(&[&["-n", "busy"], args].concat()));
    let name = |number: usize| format!("w{writer}:{number}");
    while !is_over.load(Ordering::Relaxed) {
        ctr(&["leases", "create", "--id", &format!("lease-{writer}")]);
        for number in 0..NAMES {
            ctr(&["images", "tag", APP, &name(number)]);
        }
        ctr(&["leases", "rm", &format!("lease-{writer}")]);
        for number in 0..NAMES {
            ctr(&["images", "rm", &name(number)]);
        }
    }
}

/// What one state must hold to be one: each image's manifest is stored, each snapshot's parent is there, and of each
/// writer's names those are there that were put and not removed, which goes in order.
fn check(objects: &Objects) {
    assert!(objects.images.iter().any(|image| image.starts_with(APP)), "{objects:?}");
    let digests: BTreeSet<&str> = objects.sizes.keys().map(String::as_str).collect();
    let mut written = vec![Vec::new(); WRITERS];
    for image in &objects.images {
        let words: Vec<&str> = image.split(' ').collect();
        assert!(digests.contains(words[2]), "{image}: no such blob");
        if let Some((writer, number)) = words[0].strip_prefix('w').and_then(|rest| rest.split_once(':')) {
            written[writer.parse::<usize>().unwrap()].push(number.parse::<usize>().unwrap());
        }
    }
    for (key, (_, parent)) in &objects.snapshots {
        assert!(parent.is_empty() || objects.snapshots.contains_key(parent), "{key} is over nothing");
    }
    for numbers in written {
        let (Some(first), Some(last)) = (numbers.first().copied(), numbers.last().copied()) else { continue };
        assert_eq!(numbers, (first..=last).collect::<Vec<_>>());
        assert!(first == 0 || last == NAMES - 1, "{numbers:?}");
    }
}

/// The processes that have a lock of a file.
fn holders(file: &Path) -> BTreeSet<u32> {
    let inode = fs::metadata(file).unwrap().ino().to_string();
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let words = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let of_file = words.filter(|words| words.get(5).and_then(|place| place.rsplit(':').next()) == Some(&inode));
    of_file.map(|words| words[4].parse().unwrap()).collect()
}

#[test]
fn two_hundred_reads_while_ctr_writes_are_whole() {
    if !require_privileges("containerd") || !containerd::has_programs(containerd::PROGRAMS) {
        return;
    }
    let containerd = Containerd::start();
    containerd.import("busy", "native", APP, &["one", "two"]);
    let file = containerd.root().join(META);
    let meta = database(&containerd, META);
    let is_over = AtomicBool::new(false);
    let mut states = BTreeSet::new();
    let (mut reads, mut looks, mut longest) = (0, 0, Duration::ZERO);
    let start = Instant::now();
    std::thread::scope(|scope| {
        // Also when an assertion fails, or the writers would never end.
        let _ends = End(&is_over);
        for writer in 0..WRITERS {
            let (containerd, is_over) = (&containerd, &is_over);
            scope.spawn(move || write_without_pause(containerd, writer, is_over));
        }
        while reads < READS || states.len() < STATES {
            assert!(start.elapsed() < PATIENCE, "{reads} reads, {} states", states.len());
            let begun = Instant::now();
            let read = meta.read(|root| {
                looks += 1;
                let objects = read_namespace(root, "busy")?;
                assert_eq!(holders(&file), BTreeSet::from([containerd.pid()]));
                Ok(objects)
            });
            longest = longest.max(begun.elapsed());
            let objects = read.unwrap();
            check(&objects);
            reads += 1;
            states.insert((objects.images, objects.leases));
        }
    });
    assert_eq!(holders(&file), BTreeSet::from([containerd.pid()]));
    let seconds = start.elapsed().as_secs_f32();
    eprintln!(
        "{reads} reads of {} states in {seconds:.1} s, {} made again, the longest {longest:?}",
        states.len(),
        looks - reads
    );
    containerd.ctr(&["-n", "busy", "leases", "create", "--id", "after"]);
}

/// Says that it is over, when it goes.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
