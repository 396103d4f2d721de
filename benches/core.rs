//! What one request costs within the process: the union's lookup and listing, in memory and on directories, and the way
//! of a path through the view, and the inode table. Nothing is mounted, and no privileges are needed.
//!
//! Figures of the whole, against kernel overlayfs, come from `scripts/bench`; what the inode table takes of memory is
//! asserted by `tests/memory.rs`.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../tests/support/store.rs"]
#[allow(dead_code, unreachable_pub, missing_debug_implementations, clippy::string_slice)]
mod store;

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use docker_fs::layer::dir::DirTree;
use docker_fs::layer::mem::MemTree;
use docker_fs::layer::whiteout::Prefix;
use docker_fs::layer::{Layer, LayerId, LayerTree, Whiteouts};
use docker_fs::meta::Kind;
use docker_fs::mount::{Held, Inodes, Key, ROOT};
use docker_fs::name::{Name, TreePath};
use docker_fs::root::Root;
use docker_fs::union::{Found, Member, Union, UnionDir};
use docker_fs::view::{Entry, Options, View};
use store::StoreBuilder;

/// As many as a usual image has.
const LAYERS: usize = 12;
/// As `/usr/share/doc` or a `node_modules` may have.
const NAMES: usize = 10_000;
/// In every layer.
const DIRECTORY: &str = "directory";

/// The names that a layer, counted from the top, brings to the directory: its share, and one that every layer has.
fn names_of(layer: usize, layers: usize) -> impl Iterator<Item = String> {
    (layer..NAMES).step_by(layers).map(|n| format!("name-{n:06}")).chain([format!("in-each-of-{layers}")])
}

fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes()).unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn union_of(trees: impl Iterator<Item = Box<dyn LayerTree>>) -> Union {
    let layer =
        |(n, tree)| Arc::new(Layer::new(LayerId::of(&format!("layer {n}")), tree, Whiteouts::Overlay(Prefix::Trusted)));
    Union::new(trees.enumerate().map(layer).collect::<Vec<_>>())
}

fn in_memory(layers: usize) -> Union {
    union_of((0..layers).map(|layer| {
        let mut tree = MemTree::default();
        tree.put(path(DIRECTORY), Kind::Directory, b"");
        for file in names_of(layer, layers) {
            tree.put(path(&format!("{DIRECTORY}/{file}")), Kind::Regular, b"");
        }
        Box::new(tree) as Box<dyn LayerTree>
    }))
}

fn on_disk(root: &Path, layers: usize) -> Union {
    for layer in 0..layers {
        let directory = root.join(format!("{layer}/{DIRECTORY}"));
        fs::create_dir_all(&directory).unwrap();
        for file in names_of(layer, layers) {
            fs::write(directory.join(file), "").unwrap();
        }
    }
    let root = Arc::new(Root::open(root).unwrap());
    union_of(
        (0..layers)
            .map(|layer| Box::new(DirTree::new(Arc::clone(&root), path(&layer.to_string()))) as Box<dyn LayerTree>),
    )
}

/// The union's directory in which things are looked for.
fn directory(union: &Union) -> UnionDir {
    let dir = |found: Option<Found>| match found.map(|found| found.member) {
        Some(Member::Dir(dir)) => dir,
        Some(Member::File(_)) | None => panic!("a union without its directory"),
    };
    dir(union.lookup(&dir(union.root().unwrap()), &name(DIRECTORY)).unwrap())
}

/// In a directory of 12 layers: names that the first layer asked has, only the last, and none.
fn lookup(criterion: &mut Criterion, group: &str, union: &Union) {
    let directory = directory(union);
    let mut group = criterion.benchmark_group(format!("lookup/{group}"));
    for (case, text, is_there) in
        [("top", "name-000000", true), ("bottom", "name-000011", true), ("absent", "missing", false)]
    {
        let name = name(text);
        assert_eq!(union.lookup(&directory, &name).unwrap().is_some(), is_there);
        group.bench_function(case, |bencher| {
            bencher.iter(|| union.lookup(black_box(&directory), black_box(&name)).unwrap());
        });
    }
    group.finish();
}

/// All 10,000 names with their attributes.
fn list(criterion: &mut Criterion, case: &str, union: &Union) {
    let directory = directory(union);
    assert_eq!(union.list(&directory).unwrap().members.len(), NAMES + 1);
    let mut group = criterion.benchmark_group("list");
    group.throughput(Throughput::Elements(u64::try_from(NAMES).unwrap())).sample_size(20);
    group.bench_function(case, |bencher| {
        bencher.iter_with_large_drop(|| union.list(black_box(&directory)).unwrap());
    });
    group.finish();
}

fn unions(criterion: &mut Criterion) {
    let scratch = tempfile::tempdir().unwrap();
    let disk = on_disk(scratch.path(), LAYERS);
    let memory = in_memory(LAYERS);
    lookup(criterion, "memory", &memory);
    lookup(criterion, "disk", &disk);
    list(criterion, "memory, 12 layers", &memory);
    list(criterion, "memory, 64 layers", &in_memory(64));
    list(criterion, "disk, 1 layer", &on_disk(&scratch.path().join("one"), 1));
    list(criterion, "disk, 12 layers", &disk);
}

/// From the mount's root to a file in an image, with nothing remembered but the store.
fn views(criterion: &mut Criterion) {
    let scratch = tempfile::tempdir().unwrap();
    let view = view_of_an_image(scratch.path());
    let mut group = criterion.benchmark_group("resolve");
    for file in ["by-tag/app:1/config.json", "merged/app:1/usr/share/doc/readme", "merged/app:1/usr/share/doc/missing"]
    {
        let path = path(file);
        group.bench_function(file, |bencher| bencher.iter(|| view.resolve(black_box(&path)).unwrap()));
    }
    group.finish();
}

/// The view of a store with one image of 12 layers. Its top layer has `usr/share/doc/readme` and 10,000 names in
/// `directory`.
fn view_of_an_image(scratch: &Path) -> View {
    let mut builder = StoreBuilder::new(scratch.join("docker"));
    let layers = builder.chain(LAYERS);
    for layer in &layers {
        fs::create_dir_all(layer.diff_dir().join("usr/share/doc")).unwrap();
    }
    let top = layers[LAYERS - 1].diff_dir();
    fs::write(top.join("usr/share/doc/readme"), "").unwrap();
    fs::create_dir(top.join(DIRECTORY)).unwrap();
    for n in 0..NAMES {
        fs::write(top.join(format!("{DIRECTORY}/name-{n:06}")), "").unwrap();
    }
    let image = builder.image(&layers);
    builder.tag("app:1", &image);
    let source = builder.finish();
    let opened = docker_fs::store::open(&source, &docker_fs::store::Options::default()).unwrap();
    View::new(opened, &Options { source, ..Options::default() }).unwrap()
}

/// The inode table with 10,000 nodes of a union: making their numbers and remembering them, and then what the kernel
/// asks of each.
fn inodes(criterion: &mut Criterion) {
    let scratch = tempfile::tempdir().unwrap();
    let view = view_of_an_image(scratch.path());
    let inodes = Inodes::new(view.root());
    let directory = view.resolve(&path("merged/app:1/directory")).unwrap().unwrap();
    let entries = directory.list().unwrap();
    let remember = || {
        let held = |(name, entry): &(Name, Entry)| {
            inodes.remember(&Arc::new(Held::new(
                Key::child(Key::root(), name, &entry.node),
                entry.node.clone(),
                ROOT,
                0,
            )))
        };
        entries.iter().map(held).collect::<Vec<_>>()
    };
    let forget = |numbers: Vec<u64>| numbers.into_iter().for_each(|number| _ = inodes.forget(number, 1));
    let mut group = criterion.benchmark_group("inodes");
    group.throughput(Throughput::Elements(u64::try_from(NAMES).unwrap())).sample_size(20);
    group.bench_function("remember and forget", |bencher| bencher.iter(|| forget(remember())));
    let numbers = remember();
    group.bench_function("get", |bencher| {
        bencher.iter(|| numbers.iter().filter(|number| inodes.get(black_box(**number)).is_some()).count());
    });
    group.finish();
}

criterion_group!(benches, unions, views, inodes);
criterion_main!(benches);
