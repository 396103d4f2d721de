//! The names of layers' tars (tar-split) in stores of whole trees, as fixtures: what they make of a layer, and lists that are
//! damaged or made to harm. What engines write is compared in `whole_trees`.

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
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use docker_fs::layer::difference::Life;
use docker_fs::layer::{Layer, LayerTree};
use docker_fs::meta::Kind;
use docker_fs::name::TreePath;
use docker_fs::store::{self, Options, Store};
use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use support::graph::GraphBuilder;
use support::store::{LayerRef, StoreBuilder};
use support::tar_split::{gzip, lines};
use support::whole::WholeStore;
use tempfile::TempDir;

/// A base layer, and one upon it.
struct Fixture {
    _dir: TempDir,
    made: WholeStore,
    base: LayerRef,
    top: LayerRef,
}

/// What the comparison of the two trees tells of the upper one.
const COMPARED: [&str; 3] = ["changed", "dir", "dir/new"];

impl Fixture {
    fn new() -> Self {
        let dir = support::scratch("tar-names");
        let mut builder = StoreBuilder::new(dir.path().join("docker"));
        let base = builder.layer(None);
        let top = builder.layer(Some(&base));
        let image = builder.image(&[base.clone(), top.clone()]);
        builder.tag("app:1", &image);
        let made = WholeStore::of(builder, "vfs");
        for (layer, changed) in [(&base, "one"), (&top, "another")] {
            for (file, content) in
                [("changed", changed), ("dir/same", "same"), ("dir/deep/same", "same"), ("alone", "alone")]
            {
                write(&made.tree_of(layer).join(file), content.as_bytes());
            }
        }
        write(&made.tree_of(&top).join("dir/new"), b"new");
        symlink("dir", made.tree_of(&base).join("link")).unwrap();
        symlink("dir", made.tree_of(&top).join("link")).unwrap();
        for layer in [&base, &top] {
            let link = made.tree_of(layer).join("link");
            let time = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, &link, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        Self { _dir: dir, made, base, top }
    }

    fn put(&self, content: impl AsRef<[u8]>) {
        fs::write(self.made.list_of(&self.top), content).unwrap();
    }

    fn open(&self) -> Box<dyn Store> {
        open(&self.made.root)
    }

    fn layer(&self, store: &dyn Store) -> Layer {
        layer_of(store, &self.top.cache_id, Some(&self.base.cache_id))
    }
}

/// What is wrong with a store: the file, and why. No more than one is, and one image suffers.
fn damage(store: &dyn Store) -> Option<(String, String)> {
    let mut damage = store.catalogue(None).unwrap().damage;
    assert!(damage.len() < 2 && damage.iter().all(|damage| damage.images.len() == 1), "{damage:?}");
    damage.pop().map(|damage| (damage.what, damage.why))
}

fn open(root: &Path) -> Box<dyn Store> {
    store::open(root, &Options::default()).unwrap().pop().unwrap()
}

/// A layer as a view opens it.
fn layer_of(store: &dyn Store, id: &str, below: Option<&str>) -> Layer {
    let (id, below) = (id.parse().unwrap(), below.map(|below| below.parse().unwrap()));
    let catalogue = store.catalogue(None).unwrap();
    let record = catalogue.layers.values().find(|record| record.cache_id.as_ref() == Some(&id)).unwrap();
    let whole = store.layer(&id).unwrap().into_tree();
    store.changes(&id, below.as_ref(), Life::Lasting).unwrap().listed(whole, store.tar_names(record).unwrap())
}

/// Copies of one file have one time.
fn write(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::open(path).unwrap().set_modified(time).unwrap();
}

/// All paths of a tree. What is listed is found, and has the same attributes.
fn paths(tree: &dyn LayerTree) -> BTreeSet<String> {
    let (mut found, mut dirs) = (BTreeSet::new(), vec![TreePath::root()]);
    while let Some(dir) = dirs.pop() {
        for (name, meta) in tree.list(&dir, &|_| true).unwrap() {
            let path = dir.join(&name);
            assert_eq!(tree.stat(&path).unwrap(), Some(meta), "{path:?}");
            assert_eq!(tree.list(&dir, &|other| *other == name).unwrap(), [(name, meta)]);
            assert!(found.insert(path.as_bytes().escape_ascii().to_string()), "{path:?} is listed twice");
            if meta.is_dir() {
                dirs.push(path);
            }
        }
    }
    found
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn at(text: &str) -> TreePath {
    TreePath::new(text.as_bytes()).unwrap()
}

#[test]
fn a_layer_has_the_names_of_its_tar() {
    let fixture = Fixture::new();
    let raw = std::ffi::OsStr::from_bytes(b"raw\xff");
    fs::write(fixture.made.tree_of(&fixture.top).join(raw), "raw").unwrap();
    let table: &[(&[&[u8]], &[&str])] = &[
        (&[], &[]),
        (&[b"./", b"/", b"."], &[]),
        (&[b"changed"], &["changed"]),
        // What is as it was below, and a directory without its entries.
        (&[b"alone", b"dir/"], &["alone", "dir"]),
        // Directories on the way.
        (&[b"dir/deep/same"], &["dir", "dir/deep", "dir/deep/same"]),
        (&[b"./alone", b"/changed", b"dir//new", b"x/../link"], &["alone", "changed", "dir", "dir/new", "link"]),
        (&[b"/../alone"], &["alone"]),
        (&[b"raw\xff"], &["raw\\xff"]),
        // What the tree does not have, as it was deleted again.
        (&[b"gone", b"alone/below", b"no/where"], &[]),
        (&[b".wh.x", b"dir/.wh.old", b"dir/.wh..wh..opq"], &[".wh.x", "dir", "dir/.wh..wh..opq", "dir/.wh.old"]),
        // A deletion beside what came in its place.
        (&[b".wh.alone", b"alone"], &[".wh.alone", "alone"]),
        // aufs' own, marks where there is no directory, and what is below a mark.
        (&[b".wh..wh.plnk", b".wh..wh.orph/", b"no/.wh.x", b"changed/.wh.x", b".wh.d/", b".wh.d/f"], &[".wh.d"]),
        // What the engine wrote through a link is not where the tar had it.
        (&[b"link/new"], &[]),
        (&[b"link", b"link/new"], &["link"]),
    ];
    for (names, expected) in table {
        for content in [gzip(lines(names)), lines(names).into_bytes()] {
            fixture.put(content);
            let store = fixture.open();
            assert_eq!(paths(fixture.layer(store.as_ref()).tree()), set(expected), "{names:?}");
            assert_eq!(damage(store.as_ref()), None);
        }
    }
}

#[test]
fn marks_are_empty_files_of_the_directory_that_they_are_in() {
    let fixture = Fixture::new();
    fixture.put(gzip(lines(&["dir/.wh.old", "dir/.wh..wh..opq", "changed"])));
    // A file that only seems to be one.
    write(&fixture.made.tree_of(&fixture.top).join("dir/.wh.old"), b"stored");
    let store = fixture.open();
    let layer = fixture.layer(store.as_ref());
    let dir = layer.tree().stat(&at("dir")).unwrap().unwrap();
    for (mark, permissions) in [("dir/.wh.old", 0o600), ("dir/.wh..wh..opq", dir.permissions & 0o777)] {
        let meta = layer.tree().stat(&at(mark)).unwrap().unwrap();
        assert_eq!((meta.kind, meta.permissions, meta.size_bytes), (Kind::Regular, permissions, 0), "{mark}");
        assert_eq!((meta.modified, meta.uid, meta.gid), (dir.modified, dir.uid, dir.gid));
        assert_eq!(layer.tree().open(&at(mark)).unwrap().read_at(&mut [0; 9], 0).unwrap(), 0);
        assert_eq!(layer.tree().xattr_names(&at(mark)).unwrap(), Vec::<Vec<u8>>::new());
        assert_eq!(layer.tree().xattr(&at(mark), b"user.x").unwrap(), None);
    }
    let mut content = [0; 9];
    let length = layer.tree().open(&at("changed")).unwrap().read_at(&mut content, 0).unwrap();
    assert_eq!(&content[..length], b"another");
}

/// Compressed without being held in memory.
fn packed(write: impl FnOnce(&mut GzEncoder<Vec<u8>>)) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    write(&mut packer);
    packer.finish().unwrap()
}

fn zeros(mebibytes: usize) -> Vec<u8> {
    packed(|to| (0..mebibytes).for_each(|_| to.write_all(&[0; 1 << 20]).unwrap()))
}

fn one_line_of_100_megabytes() -> Vec<u8> {
    packed(|to| {
        to.write_all(br#"{"type":2,"payload":""#).unwrap();
        (0..100).for_each(|_| to.write_all(&[b'A'; 1_000_000]).unwrap());
        to.write_all(b"\",\"position\":0}\n").unwrap();
    })
}

fn ten_million_names() -> Vec<u8> {
    packed(|to| {
        let mut text = String::new();
        for number in 0..10_000_000 {
            writeln!(text, r#"{{"type":1,"name":"{number}","position":{number}}}"#).unwrap();
            if text.len() > 1 << 20 {
                to.write_all(text.as_bytes()).unwrap();
                text.clear();
            }
        }
        to.write_all(text.as_bytes()).unwrap();
    })
}

/// The most memory that this process has had, in KiB.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn lists_that_cannot_be_used_are_told_of_and_the_trees_compared() {
    let fixture = Fixture::new();
    let good = gzip(lines(&["alone"]));
    let line = |line: &str| gzip(format!("{line}\n"));
    let name = |name: &str| gzip(lines(&[name]));
    let table = [
        (Vec::new(), "holds nothing"),
        (gzip(""), "holds nothing"),
        (b"garbage".to_vec(), "line 1: not of its form"),
        (good[..good.len() / 2].to_vec(), "cannot be unpacked"),
        (good[..good.len() - 4].to_vec(), "cannot be unpacked"),
        ([&good[..], b"more"].concat(), "cannot be unpacked"),
        (line(r#"{"type":1,"name":"alone""#), "line 1: not of its form"),
        (line(r#"{"type":1,"name":7,"position":0}"#), "line 1: not of its form"),
        (line(r#"{"type":1,"name":"alone"}"#), "missing field `position`"),
        (line(r#"{"type":1,"name":"alone","position":1}"#), "line 1: says that it is number 1"),
        (line(r#"{"type":3,"name":"alone","position":0}"#), "line 1: is of the unknown type 3"),
        (line(r#"{"type":1,"name_raw":"=","position":0}"#), "line 1: a name is not of its form"),
        (name("../alone"), "line 2: the name \"../alone\" leads out of the layer"),
        (name("dir/../../alone"), "leads out of the layer"),
        (name("a\0b"), "line 2: the name \"a\\0b\" is no name of a file"),
        (name(&"n".repeat(256)), "is no name of a file"),
        (name(&"n/".repeat(2_049)), "is longer than a path can be"),
        (zeros(100), "has a line of over"),
        (one_line_of_100_megabytes(), "has a line of over"),
        (ten_million_names(), "is one more than are kept"),
    ];
    for (content, expected) in table {
        fixture.put(&content);
        let store = fixture.open();
        let generation = store.generation().unwrap();
        let layer = fixture.layer(store.as_ref());
        assert_eq!(damage(store.as_ref()), None, "nothing was read yet");
        let before = peak_kib();
        assert_eq!(paths(layer.tree()), set(&COMPARED), "{expected}");
        let took_mib = peak_kib().saturating_sub(before) >> 10;
        assert!(took_mib < 128, "{expected}: {took_mib} MiB");
        assert_ne!(store.generation().unwrap(), generation, "{expected}");
        let (what, why) = damage(store.as_ref()).expect(expected);
        assert_eq!(what, fixture.made.list_of(&fixture.top).display().to_string());
        assert!(why.contains(expected) && why.ends_with("comparing it with the one below"), "{why}");
    }
}

#[test]
fn only_a_regular_file_is_opened_and_none_that_is_too_large() {
    let fixture = Fixture::new();
    let file = fixture.made.list_of(&fixture.top);
    let elsewhere = fixture.made.root.join("elsewhere");
    fs::write(&elsewhere, gzip(lines(&["alone"]))).unwrap();
    let makers: [(&str, &dyn Fn()); 5] = [
        ("missing", &|| {}),
        ("not a regular file", &|| mknodat(CWD, &file, FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap()),
        ("", &|| symlink(&elsewhere, &file).unwrap()),
        ("not a regular file", &|| fs::create_dir(&file).unwrap()),
        ("larger than", &|| fs::File::create(&file).unwrap().set_len((256 << 20) + 1).unwrap()),
    ];
    for (expected, make) in makers {
        let _ = fs::remove_file(&file);
        let _ = fs::remove_dir(&file);
        make();
        let store = fixture.open();
        assert_eq!(paths(fixture.layer(store.as_ref()).tree()), set(&COMPARED), "{expected}");
        let (what, why) = damage(store.as_ref()).expect(expected);
        assert!(what == file.display().to_string() && why.starts_with(expected), "{expected}: {why}");
    }
}

#[test]
fn a_list_that_was_mended_counts() {
    let fixture = Fixture::new();
    fixture.put("garbage");
    let store = fixture.open();
    let layer = fixture.layer(store.as_ref());
    assert_eq!(paths(layer.tree()), set(&COMPARED));
    let (damaged, generation) = (damage(store.as_ref()), store.generation().unwrap());
    assert_eq!(paths(layer.tree()), set(&COMPARED));
    assert_eq!((damage(store.as_ref()), store.generation().unwrap()), (damaged, generation.clone()), "told once");
    let list = fixture.made.list_of(&fixture.top);
    fs::remove_file(&list).unwrap();
    fixture.put(gzip(lines(&["alone"])));
    assert_eq!(paths(layer.tree()), set(&["alone"]));
    assert_ne!(store.generation().unwrap(), generation);
    assert_eq!(damage(store.as_ref()), None);
    // Engines do not change it, so it is not read again.
    fs::remove_file(&list).unwrap();
    assert_eq!(paths(layer.tree()), set(&["alone"]));
}

#[test]
fn layers_that_are_no_whole_trees_have_their_own_marks() {
    let dir = support::scratch("tar-names");
    let mut builder = StoreBuilder::new(dir.path().join("docker"));
    let layers = builder.chain(1);
    let image = builder.image(&layers);
    builder.tag("app:1", &image);
    let store = open(&builder.finish());
    let catalogue = store.catalogue(None).unwrap();
    assert!(catalogue.layers.values().all(|record| store.tar_names(record).is_none()));
}

#[test]
fn a_graph_may_have_lists() {
    let dir = support::scratch("tar-names");
    let mut graph = GraphBuilder::of(dir.path().join("docker"), "vfs");
    let base = graph.image(None);
    fs::write(graph.diff(&base).join("old"), "old").unwrap();
    fs::write(graph.diff(&base).join("same"), "same").unwrap();
    let top = graph.image(Some(&base));
    fs::write(graph.diff(&top).join("new"), "new").unwrap();
    graph.tag("app", "1", &top);
    let store = open(graph.root());
    let layer = layer_of(store.as_ref(), &top, Some(&base));
    // The first engines wrote none.
    assert_eq!(paths(layer.tree()), set(&["new"]));
    assert_eq!(damage(store.as_ref()), None);
    fs::write(graph.entry(&top).join("tar-data.json.gz"), gzip(lines(&["same", ".wh.other"]))).unwrap();
    assert_eq!(paths(layer.tree()), set(&[".wh.other", "same"]));
    fs::write(graph.entry(&base).join("tar-data.json.gz"), "garbage").unwrap();
    assert_eq!(paths(layer_of(store.as_ref(), &base, None).tree()), set(&["old", "same"]));
    let told = store.catalogue(None).unwrap().damage;
    assert!(told.len() == 1 && told[0].what.ends_with("tar-data.json.gz"), "{told:?}");
}
