//! What the inode table takes for each node that the kernel holds, all of the heap included.
//!
//! The allocator counts what glibc's takes for the same requests, so the figure is the same at each run and on each
//! machine. Nothing is mounted, and no privileges are needed.

#![allow(missing_docs, unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/store.rs"]
#[allow(dead_code, unreachable_pub, missing_debug_implementations, clippy::string_slice)]
mod store;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use docker_fs::mount::{Held, Inodes, Key, ROOT};
use docker_fs::name::Name;
use docker_fs::view::{Options, View};
use store::StoreBuilder;

/// The most that the daemon may take for a node, in bytes.
const LIMIT: usize = 300;
/// Directories in the image's root, in each of those, and in each of those again.
const FAN_OUT: [usize; 3] = [10, 12, 12];
/// The lengths of the names of the files in each of the last directories: 14 on average, and their paths' 56.
const LENGTHS: [usize; 9] = [6, 8, 10, 12, 13, 15, 16, 18, 28];

/// Bytes that are in use.
static IN_USE: AtomicUsize = AtomicUsize::new(0);

struct Counting;

/// What glibc's allocator takes: a word more, in steps of two words, at least four.
fn taken(layout: Layout) -> usize {
    (layout.size() + 8).next_multiple_of(16).max(32)
}

// SAFETY: everything is the system allocator's, which is given what was given here.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(taken(layout), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(taken(layout), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Fills a layer's directory. The layer below has every other directory, and no files.
fn fill(root: &Path, has_files: bool) {
    let directory = |n: usize| format!("directory-{n:04}");
    for (a, b, c) in
        (0..FAN_OUT[0]).flat_map(|a| (0..FAN_OUT[1]).flat_map(move |b| (0..FAN_OUT[2]).map(move |c| (a, b, c))))
    {
        if !has_files && a % 2 == 0 {
            continue;
        }
        let path = root.join(directory(a)).join(directory(b)).join(format!("sub-dir-{c:02}"));
        fs::create_dir_all(&path).unwrap();
        for (n, length) in LENGTHS.iter().enumerate().filter(|_| has_files) {
            fs::write(path.join(format!("{n}{}", "x".repeat(length - 1))), "").unwrap();
        }
    }
}

/// Makes the table hold all that is below a directory, as a walk does.
fn walk(inodes: &Inodes, number: u64) {
    let dir = inodes.get(number).unwrap();
    for (name, entry) in dir.node().list().unwrap() {
        let held = Held::new(Key::child(dir.key(), &name, &entry.node), entry.node, number, 0);
        let child = inodes.remember(&Arc::new(held));
        if entry.meta.is_dir() {
            walk(inodes, child);
        }
    }
}

/// Bytes for each node of a union.
fn bytes_each(view: &View, path: &[&str]) -> usize {
    let inodes = Inodes::new(view.root());
    let mut number = ROOT;
    for name in path {
        let dir = inodes.get(number).unwrap();
        let name = Name::new(name.as_bytes()).unwrap();
        let entry = dir.node().lookup(&name).unwrap().unwrap();
        number =
            inodes.remember(&Arc::new(Held::new(Key::child(dir.key(), &name, &entry.node), entry.node, number, 0)));
    }
    let (before, known) = (IN_USE.load(Ordering::Relaxed), inodes.count());
    walk(&inodes, number);
    let nodes = inodes.count() - known;
    let leaves: usize = FAN_OUT.iter().product();
    assert_eq!(nodes, leaves * (LENGTHS.len() + 1) + FAN_OUT[0] * FAN_OUT[1] + FAN_OUT[0]);
    // A table is emptiest when it has just grown, for which it is filled to seven eighths.
    assert!((14_336..15_000).contains(&nodes), "{nodes} nodes are not the worst for the table");
    (IN_USE.load(Ordering::Relaxed) - before) / nodes
}

/// One test, so that no other allocates meanwhile.
#[test]
fn a_held_node_takes_few_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let mut builder = StoreBuilder::new(scratch.path().join("docker"));
    let layers = builder.chain(2);
    fill(&layers[0].diff_dir(), false);
    fill(&layers[1].diff_dir(), true);
    let image = builder.image(&layers);
    builder.tag("app:1", &image);
    builder.container("running", &image, layers.last());
    let source = builder.finish();
    let opened = docker_fs::store::open(&source, &docker_fs::store::Options::default()).unwrap();
    let view = View::new(opened, &Options { source, ..Options::default() }).unwrap();
    for path in [&["merged", "app:1"][..], &["by-container", "running", "merged"], &["by-tag", "app:1", "layers", "1"]]
    {
        let bytes = bytes_each(&view, path);
        println!("{path:?}: {bytes} bytes for each node");
        assert!(bytes <= LIMIT, "{path:?}: {bytes} bytes for each node");
    }
}
