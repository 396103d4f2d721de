//! Each kind of store with each file of it damaged, and with each text in it replaced by what should not be there: one
//! message that names the object and the reason, everything else as before, and nothing from outside.
//!
//! A store here has an image `good:1`, an image `bad:1` that shares nothing with it, and a container of the latter. All
//! damage befalls what belongs to the latter two, or a list that all share. It is read through the library, so that no
//! privileges are needed. `tests/damage.rs` does more of this to the classic store while it is mounted, and the tests of
//! each store have what is particular to it.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

#[path = "support/bolt.rs"]
mod bolt;
#[path = "support/containerd_store.rs"]
mod fixture;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use docker_fs::layer::whiteout::Prefix;
use docker_fs::name::TreePath;
use docker_fs::store::{self, Damage};
use docker_fs::view::{self, View};
use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;
use serde_json::{Value, json};
use support::graph::GraphBuilder;
use support::marks::{Driver, convert_store};
use support::storage::{StorageBuilder, base64};
use support::store::{LayerRef, StoreBuilder};
use support::view::{Answers, plainly};
use support::whole::WholeStore;

/// What no answer may have in it.
const SECRET: &str = "a secret from outside";
/// Longer than a case takes on the slowest machine; a pipe that is opened takes longer.
const CASE_MAX: Duration = Duration::from_secs(120);
/// Longer than any message should be, in bytes: a reason of 1,000 and an object.
const MESSAGE_MAX: usize = 2_000;

/// A file or directory of a store, and what depends on it.
struct Part {
    path: PathBuf,
    spoils: Spoils,
    /// The ID under which the image is then listed, where that is another.
    listed: Option<String>,
    /// Whether it may be missing, or the store is another without it.
    is_optional: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spoils {
    /// The image `bad:1`.
    Bad,
    /// The container.
    Container,
    /// These folders of the view, which then cannot tell all they have.
    Folders(&'static [&'static str], Left),
}

/// What is left of the other image where a list cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    All,
    /// It has no names.
    ByIds,
    Nothing,
}

fn part(path: impl Into<PathBuf>, spoils: Spoils) -> Part {
    Part { path: path.into(), spoils, listed: None, is_optional: false }
}

fn optional(part: Part) -> Part {
    Part { is_optional: true, ..part }
}

/// A store, and its parts.
struct Sample {
    root: PathBuf,
    /// The IDs of the images.
    good: String,
    bad: String,
    parts: Vec<Part>,
    /// Whether layers can be read without anything being mounted.
    has_layers: bool,
}

type Make = fn(&Path) -> Sample;

fn fill(dir: &Path, text: &str) {
    fs::create_dir_all(dir.join("etc")).unwrap();
    fs::write(dir.join("etc/text"), text).unwrap();
    fs::write(dir.join(text.replace(' ', "-")), text).unwrap();
}

/// A classic store of overlay2, and what it takes to make one of another driver of it.
struct Classic {
    builder: StoreBuilder,
    layers: Vec<LayerRef>,
    good: String,
    bad: String,
    container: support::store::ContainerRef,
}

fn classic(root: &Path) -> Classic {
    let mut builder = StoreBuilder::new(root);
    let (good, bad) = (builder.chain(2), builder.chain(2));
    for (layers, name) in [(&good, "good"), (&bad, "bad")] {
        fill(&layers[0].diff_dir(), &format!("{name} base"));
        fill(&layers[1].diff_dir(), &format!("{name} top"));
    }
    let (good_id, bad_id) = (builder.image(&good), builder.image(&bad));
    builder.tag("good:1", &good_id);
    builder.tag("bad:1", &bad_id);
    let container = builder.container("web", &bad_id, bad.last());
    Classic { builder, layers: bad, good: good_id.0, bad: bad_id.0, container }
}

impl Classic {
    /// The parts that are the same for all drivers.
    fn sample(self, root: PathBuf, driver: &str, has_layers: bool, layer: &Path) -> Sample {
        use Spoils::{Bad, Container, Folders};
        let db = Path::new("image").join(driver);
        let top = db.join("layerdb/sha256").join(&self.layers[1].chain_id);
        let mut parts = vec![
            optional(part(db.join("repositories.json"), Folders(&["by-tag", "by-digest"], Left::ByIds))),
            part(db.join("imagedb/content/sha256").join(&self.bad), Bad),
            part(top.join("diff"), Bad),
            part(top.join("cache-id"), Bad),
            part(top.join("parent"), Bad),
            part(db.join("layerdb/mounts").join(&self.container.id).join("mount-id"), Container),
            part(Path::new("containers").join(&self.container.id).join("config.v2.json"), Container),
        ];
        if has_layers {
            parts.push(part(layer, Bad));
        }
        Sample { root, good: self.good, bad: self.bad, parts, has_layers }
    }
}

fn overlay2(root: &Path) -> Sample {
    let mut made = classic(root);
    let layer = Path::new("overlay2").join(&made.layers[1].cache_id).join("diff");
    let root = std::mem::replace(&mut made.builder, StoreBuilder::new(root.with_extension("unused"))).finish();
    made.sample(root, "overlay2", true, &layer)
}

fn converted(root: &Path, driver: Driver, layer: impl FnOnce(&str) -> PathBuf) -> Sample {
    let sample = overlay2(root);
    convert_store(&sample.root, driver);
    let cache_id = sample.parts.last().unwrap().path.components().nth(1).unwrap().as_os_str().to_owned();
    let layer = part(layer(cache_id.to_str().unwrap()), Spoils::Bad);
    let in_image = Path::new("image").join(driver.name());
    let moved = |part: Part| match part.path.strip_prefix("image/overlay2") {
        Ok(below) => Part { path: in_image.join(below), ..part },
        Err(_) => part,
    };
    let mut parts: Vec<Part> = sample.parts.into_iter().map(moved).collect();
    *parts.last_mut().unwrap() = layer;
    Sample { parts, ..sample }
}

fn aufs(root: &Path) -> Sample {
    let mut sample = converted(root, Driver::Aufs, |id| Path::new("aufs/diff").join(id));
    let witness = Path::new("aufs/layers").join(sample.parts.last().unwrap().path.file_name().unwrap());
    // Only that it is there counts.
    sample.parts.push(part(witness, Spoils::Bad));
    sample
}

fn fuse_overlayfs(root: &Path) -> Sample {
    converted(root, Driver::FuseOverlayfs, |id| Path::new("fuse-overlayfs").join(id).join("diff"))
}

fn whole(root: &Path, driver: &'static str) -> Sample {
    let mut made = classic(root);
    let builder = std::mem::replace(&mut made.builder, StoreBuilder::new(root.with_extension("unused")));
    let store = WholeStore::of(builder, driver);
    let tree = store.tree_of(&made.layers[1]);
    let layer = tree.strip_prefix(&store.root).map(Path::to_owned);
    let is_here = layer.is_ok();
    made.sample(store.root, driver, is_here, &layer.unwrap_or_default())
}

fn graph(root: &Path) -> Sample {
    let mut graph = GraphBuilder::new(root);
    let images = |graph: &mut GraphBuilder, name: &str| {
        let base = graph.image(None);
        let top = graph.image(Some(&base));
        fill(&graph.diff(&base), &format!("{name} base"));
        fill(&graph.diff(&top), &format!("{name} top"));
        fs::write(graph.entry(&top).join("parent"), &base).unwrap();
        graph.tag(name, "1", &top);
        top
    };
    let (good, bad) = (images(&mut graph, "good"), images(&mut graph, "bad"));
    let web = graph.container("web", &bad);
    let entry = Path::new("graph").join(&bad);
    let parts = vec![
        optional(part("repositories-aufs", Spoils::Folders(&["by-tag"], Left::ByIds))),
        part(entry.join("json"), Spoils::Bad),
        optional(part(entry.join("parent"), Spoils::Bad)),
        part(Path::new("aufs/diff").join(&bad), Spoils::Bad),
        optional(part(Path::new("containers").join(&web).join("config.json"), Spoils::Container)),
    ];
    Sample { root: root.to_owned(), good, bad, parts, has_layers: true }
}

fn storage_of(root: &Path, driver: &'static str) -> (StorageBuilder, String, String) {
    let mut store = StorageBuilder::new(root, driver);
    let mut image = |name: &str| {
        let base = store.layer(&format!("{name}-base"), None);
        let top = store.layer(&format!("{name}-top"), Some(&base));
        fill(&base.dir, &format!("{name} base"));
        fill(&top.dir, &format!("{name} top"));
        (store.image(&[&format!("localhost/{name}:1")], &[&base, &top]), top)
    };
    let ((good, _), (bad, top)) = (image("good"), image("bad"));
    let (container, layer, _) = store.container("web", &bad, &top);
    store.containers.push(container);
    store.layers.push(layer);
    store.write();
    (store, good, bad)
}

fn storage(root: &Path, driver: &'static str) -> Sample {
    let (store, good, bad) = storage_of(root, driver);
    let layer = store.images[1]["layer"].as_str().unwrap().to_owned();
    let relative = |path: PathBuf| path.strip_prefix(root).unwrap().to_owned();
    let config = format!("{driver}-images/{bad}/={}", base64(format!("sha256:{bad}").as_bytes()));
    let list = |name: &str| format!("{driver}-{name}/{name}.json");
    let parts = vec![
        part(list("images"), Spoils::Folders(&["by-id", "by-tag"], Left::Nothing)),
        part(list("layers"), Spoils::Folders(&["by-chain"], Left::Nothing)),
        optional(part(list("containers"), Spoils::Folders(&["by-container"], Left::All))),
        part(config, Spoils::Bad),
        part(relative(store.layer_dir(&layer)), Spoils::Bad),
    ];
    Sample { root: root.to_owned(), good, bad, parts, has_layers: true }
}

fn containerd_of(root: &Path, snapshotter: &str) -> (fixture::Store, Vec<fixture::Image>, PathBuf) {
    let mut store = fixture::Store::new(root);
    let mut images = Vec::new();
    let mut last = PathBuf::new();
    for name in ["good", "bad"] {
        let image = store.packed(&[&format!("{name} base"), &format!("{name} top")]);
        let mut below: Option<&str> = None;
        for (chain, layer) in image.chains.iter().zip(["base", "top"]) {
            last = store.snapshot("default", snapshotter, chain, below, 3);
            fill(&last, &format!("{name} {layer}"));
            below = Some(chain);
        }
        store.name("default", &format!("docker.io/library/{name}:1"), &image.manifest, 1_700_000_000);
        images.push(image);
    }
    let own = store.snapshot("default", snapshotter, "web", Some(&images[1].chains[1]), 2);
    fs::write(own.join("log"), "log").unwrap();
    let place = ["v1", "default", "containers", "web"];
    for (field, value) in [("snapshotter", snapshotter), ("snapshotKey", "web"), ("image", "docker.io/library/bad:1")] {
        fixture::put(&mut store.meta, &[&place[..], &[field]].concat(), value);
    }
    fixture::put(&mut store.meta, &[&place[..], &["spec"]].concat(), b"\x0a\x01t\x12\x02{}".to_vec());
    store.write();
    (store, images, last)
}

fn containerd(root: &Path, snapshotter: &str) -> Sample {
    let (store, images, layer) = containerd_of(root, snapshotter);
    let relative = |path: &Path| path.strip_prefix(root).unwrap().to_owned();
    let layer = relative(&layer);
    let manifest = images[1].manifest["digest"].as_str().unwrap();
    let all = Spoils::Folders(&["by-tag", "by-id", "by-chain", "by-container", "merged"], Left::Nothing);
    let mut parts = vec![
        // Without it, it is no store of containerd's.
        optional(part(relative(&store.meta_path()), all)),
        part(
            relative(&fixture::folder(root, snapshotter)).join("metadata.db"),
            Spoils::Folders(&["by-chain"], Left::Nothing),
        ),
        part(relative(&store.blob_path(&images[1].config)), Spoils::Bad),
        Part {
            listed: manifest.strip_prefix("sha256:").map(str::to_owned),
            ..part(relative(&store.blob_path(manifest)), Spoils::Bad)
        },
    ];
    parts.push(part(layer, Spoils::Bad));
    let [good, bad] = [0, 1].map(|n: usize| images[n].id().to_owned());
    Sample { root: root.to_owned(), good, bad, parts, has_layers: true }
}

const STORES: [(&str, Make); 13] = [
    ("overlay2", overlay2),
    ("aufs", aufs),
    ("overlay", |root| whole(root, "overlay")),
    ("vfs", |root| whole(root, "vfs")),
    ("btrfs", |root| whole(root, "btrfs")),
    ("fuse-overlayfs", fuse_overlayfs),
    ("zfs", |root| whole(root, "zfs")),
    ("devicemapper", |root| whole(root, "devicemapper")),
    ("graph", graph),
    ("containers/storage overlay", |root| storage(root, "overlay")),
    ("containers/storage vfs", |root| storage(root, "vfs")),
    ("containerd overlayfs", |root| containerd(root, "overlayfs")),
    ("containerd native", |root| containerd(root, "native")),
];

/// What befalls a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    Half,
    Empty,
    Random,
    /// JSON of another type.
    Typed,
    Deep,
    Directory,
    File,
    Fifo,
    Link,
    Removed,
}

const OF_FILES: [Harm; 9] = [
    Harm::Half,
    Harm::Empty,
    Harm::Random,
    Harm::Typed,
    Harm::Deep,
    Harm::Directory,
    Harm::Fifo,
    Harm::Link,
    Harm::Removed,
];
const OF_DIRECTORIES: [Harm; 4] = [Harm::File, Harm::Fifo, Harm::Link, Harm::Removed];

/// Harm that is undone when the value goes.
struct Harmed {
    place: PathBuf,
    aside: PathBuf,
}

impl Harm {
    /// Befalls a file or directory; what leads out leads to `outside`.
    fn befall(self, place: &Path, outside: &Path) -> Harmed {
        let content = fs::read(place).unwrap_or_default();
        let aside = outside.with_extension("aside");
        fs::rename(place, &aside).unwrap();
        match self {
            Self::Half => fs::write(place, &content[..content.len() / 2]).unwrap(),
            Self::Empty | Self::File => fs::write(place, "").unwrap(),
            Self::Random => fs::write(place, support::random::noise(content.len(), 7)).unwrap(),
            Self::Typed => fs::write(place, "7").unwrap(),
            Self::Deep => fs::write(place, "[".repeat(200_000)).unwrap(),
            Self::Directory => fs::create_dir(place).unwrap(),
            Self::Fifo => rustix::fs::mknodat(CWD, place, FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap(),
            Self::Link => symlink(outside, place).unwrap(),
            Self::Removed => {}
        }
        Harmed { place: place.to_owned(), aside }
    }
}

impl Drop for Harmed {
    fn drop(&mut self) {
        match fs::symlink_metadata(&self.place) {
            Ok(meta) if meta.is_dir() => fs::remove_dir(&self.place).unwrap(),
            Ok(_) => fs::remove_file(&self.place).unwrap(),
            Err(_) => {}
        }
        fs::rename(&self.aside, &self.place).unwrap();
    }
}

fn open(root: &Path) -> View {
    let options = store::Options { prefix: Some(Prefix::User), ..store::Options::default() };
    View::new(store::open(root, &options).unwrap(), &view::Options::default()).unwrap()
}

fn errno(view: &View, path: &str) -> Option<Errno> {
    let found = view.resolve(&TreePath::new(path.as_bytes()).unwrap());
    found.and_then(|node| node.map_or(Ok(Vec::new()), |node| node.list())).err().map(|error| error.errno())
}

/// The answers at these paths and below.
fn at(answers: &Answers, places: &[String]) -> Answers {
    let is_at = |path: &[u8]| {
        places.iter().any(|place| {
            let below = path.strip_prefix(place.as_bytes());
            below.is_some_and(|rest| rest.is_empty() || place.is_empty() || rest.starts_with(b"/"))
        })
    };
    answers.iter().filter(|((path, _), _)| is_at(path)).map(|(key, answer)| (key.clone(), answer.clone())).collect()
}

/// All that is asked of a view, within a time.
fn look(root: &Path, what: &str) -> (Vec<Damage>, Answers, View) {
    let (send, seen) = mpsc::channel();
    let root = root.to_owned();
    let looking = std::thread::spawn(move || {
        let view = open(&root);
        let answers = support::view::read(&view, &plainly);
        // By another who may have given up.
        let _ = send.send(());
        ([view.damage(), view.remarks()].concat(), answers, view)
    });
    if seen.recv_timeout(CASE_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("{what}: no answer within {CASE_MAX:?}");
    }
    looking.join().unwrap_or_else(|_| panic!("{what}: a panic"))
}

/// What is told now and was not told before; each is fit for a terminal and a log.
fn new_damage(what: &str, before: &[Damage], now: Vec<Damage>) -> Vec<Damage> {
    for damage in &now {
        let text = damage.to_string();
        assert!(text.len() < MESSAGE_MAX, "{what}: a message of {} bytes", text.len());
        assert!(!text.contains(|c: char| c.is_control()), "{what}: {text:?}");
    }
    let is_new = |damage: &Damage| before.iter().all(|known| (&known.what, &known.why) != (&damage.what, &damage.why));
    now.into_iter().filter(is_new).collect()
}

fn assert_nothing_from_outside(what: &str, answers: &Answers) {
    for secret in [SECRET, "root:x:", "root:*:"] {
        assert!(!support::view::text(answers).contains(secret), "{what}: {secret:?} is shown");
    }
}

/// That the answers at these places and below are the same.
fn assert_same(what: &str, places: &[String], found: &Answers, expected: &Answers) {
    let (found, expected) = [found, expected].map(|answers| support::view::text(&at(answers, places))).into();
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found, expected, "{what}");
    }
    assert_eq!(found.len(), expected.len(), "{what}: {} lines and {}", found.lines().count(), expected.lines().count());
}

/// Where an image of this name and ID is found.
fn places_of(name: &str, id: &str) -> Vec<String> {
    let tagged = ["by-tag", "merged"]
        .into_iter()
        .flat_map(|folder| [format!("{folder}/{name}:1"), format!("{folder}/localhost/{name}:1")]);
    tagged.chain([format!("by-id/{id}")]).collect()
}

/// A store with what was seen of it when it was whole.
struct Bench {
    name: &'static str,
    dir: tempfile::TempDir,
    sample: Sample,
    damage: Vec<Damage>,
    sound: Answers,
}

impl Bench {
    fn new(name: &'static str, make: Make) -> Self {
        let dir = support::scratch("hostile");
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("text"), SECRET).unwrap();
        let sample = make(&dir.path().join("store"));
        let (damage, sound, _) = look(&sample.root, name);
        // What is to be mounted first is told of each layer.
        assert_eq!(damage.is_empty(), sample.has_layers, "{name}: {damage:?}");
        Self { name, dir, sample, damage, sound }
    }

    fn harm(&self, part: &Part, harm: Harm) {
        let what = format!("{}: {harm:?} at {}", self.name, part.path.display());
        let place = self.sample.root.join(&part.path);
        let outside = self.dir.path().join(if place.is_dir() { "outside" } else { "outside/text" });
        let _harmed = harm.befall(&place, &outside);
        let (now, answers, view) = look(&self.sample.root, &what);
        assert_nothing_from_outside(&what, &answers);
        let new = new_damage(&what, &self.damage, now);
        assert_eq!(new.len(), 1, "{what}: {new:?}");
        let told = new[0].to_string();
        let name = part.path.file_name().unwrap().to_str().unwrap();
        assert!(told.contains(part.path.to_str().unwrap()) || told.contains(name), "{what}: {told:?} names no {name}");
        let concerned: BTreeSet<String> = new[0].images.iter().map(|id| id.hex()).collect();
        self.check(&what, part, &concerned, &answers, &view);
    }

    /// That what suffers from a part is not served, and all else is.
    fn check(&self, what: &str, part: &Part, concerned: &BTreeSet<String>, answers: &Answers, view: &View) {
        let Sample { good, bad, has_layers, .. } = &self.sample;
        let (good_places, bad_places) = (places_of("good", good), places_of("bad", bad));
        let merged = |id: &str| errno(view, &format!("merged/{id}"));
        match part.spoils {
            Spoils::Bad => {
                let listed = part.listed.as_ref().unwrap_or(bad);
                assert_eq!(*concerned, BTreeSet::from([listed.clone()]), "{what}");
                assert_eq!(merged(listed), Some(Errno::IO), "{what}");
                assert_same(what, &good_places, answers, &self.sound);
            }
            Spoils::Container => {
                assert!(concerned.is_empty(), "{what}: {concerned:?}");
                assert_same(what, &[good_places, bad_places].concat(), answers, &self.sound);
                assert_eq!(errno(view, "by-container"), None, "{what}");
            }
            Spoils::Folders(folders, left) => {
                for folder in folders {
                    assert_eq!(errno(view, folder), Some(Errno::IO), "{what}: {folder} is listed");
                }
                match left {
                    Left::All => assert_same(what, &[good_places, bad_places].concat(), answers, &self.sound),
                    Left::ByIds => {
                        assert_same(what, &[format!("by-id/{good}")], answers, &self.sound);
                        assert_eq!(merged(good).is_none(), *has_layers, "{what}");
                    }
                    Left::Nothing => assert!(merged(good).is_some(), "{what}"),
                }
            }
        }
    }
}

fn harm_each_part(name: &'static str, make: Make) {
    let bench = Bench::new(name, make);
    let mut cases = 0;
    for part in &bench.sample.parts {
        let is_dir = bench.sample.root.join(&part.path).is_dir();
        for harm in if is_dir { &OF_DIRECTORIES[..] } else { &OF_FILES[..] } {
            // Of a list of ancestors it only counts that it is there.
            let is_all_the_same = part.path.starts_with("aufs/layers")
                && [Harm::Half, Harm::Empty, Harm::Random, Harm::Typed, Harm::Deep].contains(harm);
            if !(is_all_the_same || *harm == Harm::Removed && part.is_optional) {
                bench.harm(part, *harm);
                cases += 1;
            }
        }
    }
    assert!(cases > 20, "{name}: {cases} cases are not all");
    let (damage, again, _) = look(&bench.sample.root, name);
    assert_eq!(damage, bench.damage, "{name}");
    assert_same(name, &[String::new()], &again, &bench.sound);
}

#[test]
fn each_file_of_each_store_harmed_is_told_once_and_spoils_nothing_else() {
    std::thread::scope(|scope| {
        for half in STORES.chunks(STORES.len().div_ceil(4)) {
            scope.spawn(move || half.iter().for_each(|(name, make)| harm_each_part(name, *make)));
        }
    });
}

/// Texts that should be an ID, a digest or a name, and what should be a text.
fn odd_values() -> Vec<Value> {
    let zeros = "0".repeat(64);
    let texts = [
        "",
        ".",
        "..",
        "/",
        "../../outside",
        "/etc/passwd",
        "a/b",
        "x\0y",
        "x\ny",
        "\u{1b}[31m",
        "\u{202e}",
        "-1",
        "18446744073709551616",
        &zeros,
        &zeros[1..],
        &"G".repeat(64),
        &"A".repeat(64),
        &"a".repeat(65_536),
        &"../".repeat(20_000),
        &format!("sha256:{zeros}"),
        &format!("sha256:../../{zeros}"),
        "sha256:",
        "sha512:00",
        &format!("{zeros}\n"),
        &format!("{zeros}/../x"),
        &format!(" {zeros}"),
    ];
    let mut values: Vec<Value> = texts.iter().map(|text| json!(text)).collect();
    let mut deep = json!([]);
    for _ in 0..100 {
        deep = json!([deep]);
    }
    values.extend([json!(null), json!(true), json!(7), json!(-1), json!(1e300), json!(u64::MAX), json!([]), json!({})]);
    values.extend([json!([7]), json!([null]), json!([""]), json!(["../../outside", "/etc/passwd"]), deep]);
    values
}

/// A store that is written again with one thing in it changed.
struct Rewritten {
    name: &'static str,
    dir: tempfile::TempDir,
    sound: Answers,
    good: String,
    /// The ID of the other image.
    bad: String,
}

impl Rewritten {
    fn new(name: &'static str, make: Make) -> Self {
        let Bench { dir, sample, sound, .. } = Bench::new(name, make);
        Self { name, dir, sound, good: sample.good, bad: sample.bad }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// That the good image is served, and that it is told if the bad one is not as it was.
    fn check(&self, what: &str) {
        let what = format!("{}: {what}", self.name);
        let (damage, answers, _) = look(&self.root(), &what);
        assert_nothing_from_outside(&what, &answers);
        assert_same(&what, &places_of("good", &self.good), &answers, &self.sound);
        let damage = new_damage(&what, &[], damage);
        assert!(damage.len() <= 3, "{what}: {damage:?}");
        // Without its own name, or with another, it is another image or none that anyone knows of.
        let is_renamed = ["names of images", "id of images"].iter().any(|field| what.contains(field));
        let files = |answers: &Answers| -> Answers {
            let files = at(answers, &["merged/bad:1".to_owned(), "merged/localhost/bad:1".to_owned()]);
            files.into_iter().filter(|((_, asked), _)| ["names", "content"].contains(asked)).collect()
        };
        let is_as_before = files(&answers) == files(&self.sound);
        assert!(is_renamed || is_as_before || !damage.is_empty(), "{what}: nothing is told of what is missing");
    }
}

#[test]
fn whatever_podmans_lists_say_of_one_image_the_other_is_served() {
    let store = Rewritten::new("containers/storage overlay", |root| storage(root, "overlay"));
    let (made, ..) = storage_of(&store.root(), "overlay");
    let fields: [(&str, &[&str]); 3] = [
        ("images", &["id", "digest", "layer", "names", "big-data-names", "names-history", "metadata"]),
        ("layers", &["id", "parent", "diff-digest", "diff-size", "uidmap", "flags", "toc-digest", "created"]),
        ("containers", &["id", "image", "layer", "names"]),
    ];
    for (list, fields) in fields {
        let entries = match list {
            "images" => &made.images,
            "layers" => &made.layers,
            _ => &made.containers,
        };
        // The bad image, and its top layer.
        let index = if list == "layers" { 3 } else { entries.len() - 1 };
        for field in fields {
            for value in odd_values() {
                let mut entries = entries.clone();
                entries[index][*field] = value.clone();
                let is_flagged = *field == "flags" && value == json!({});
                made.write_list(&format!("{list}/{list}.json"), &serde_json::to_vec(&entries).unwrap());
                let shown: String = value.to_string().chars().take(80).collect();
                if !is_flagged {
                    store.check(&format!("{field} of {list} is {shown}"));
                }
            }
        }
        made.write_list(&format!("{list}/{list}.json"), &serde_json::to_vec(entries).unwrap());
    }
    store.check("all is as it was");
}

#[test]
fn whatever_containerds_databases_say_of_one_image_the_other_is_served() {
    let name = "containerd overlayfs";
    let store = Rewritten::new(name, |root| containerd(root, "overlayfs"));
    let (mut made, images, _) = containerd_of(&store.root(), "overlayfs");
    let (meta, own) = (made.meta.clone(), made.snapshots["overlayfs"].clone());
    let bad = &images[1];
    let image = ["v1", "default", "images", "docker.io/library/bad:1", "target"];
    let snapshot = ["v1", "default", "snapshots", "overlayfs", &bad.chains[1]];
    let container = ["v1", "default", "containers", "web"];
    let key = format!("default/4/{}", bad.chains[1]);
    let backend = ["v1", "snapshots", &key];
    let fields: [(bool, &[&str], &[&str]); 4] = [
        (true, &image, &["digest", "mediatype"]),
        (true, &snapshot, &["name", "parent"]),
        (true, &container, &["image", "snapshotter", "snapshotKey", "spec", "updatedat"]),
        (false, &backend, &["id", "kind", "parent", "size"]),
    ];
    let numbers = [vec![0xff; 10], vec![0xff; 9], vec![0x80], vec![0], vec![0xff, 0xff, 0xff, 0xff, 0x0f]];
    let texts = odd_values().into_iter().filter_map(|value| value.as_str().map(|text| text.as_bytes().to_vec()));
    let values: Vec<Vec<u8>> = texts.chain(numbers).collect();
    for (is_in_meta, place, names) in fields {
        for field in names {
            for value in &values {
                (made.meta, made.snapshots) = (meta.clone(), [("overlayfs".to_owned(), own.clone())].into());
                let tree = if is_in_meta { &mut made.meta } else { made.snapshots.get_mut("overlayfs").unwrap() };
                fixture::put(tree, &[place, &[field]].concat(), value.clone());
                made.write();
                let shown = value.iter().take(80).copied().collect::<Vec<u8>>();
                store.check(&format!("{field} of {place:?} is {:?}", shown.escape_ascii().to_string()));
            }
        }
    }
}

#[test]
fn whatever_a_graph_says_of_one_image_the_other_is_served() {
    let store = Rewritten::new("graph", graph);
    let entry = store.root().join("graph").join(&store.bad);
    let json: Value = serde_json::from_slice(&fs::read(entry.join("json")).unwrap()).unwrap();
    for field in ["id", "parent", "parent_id", "created", "container_config", "config", "Size"] {
        for value in odd_values() {
            let mut odd = json.clone();
            odd[field] = value.clone();
            fs::write(entry.join("json"), odd.to_string()).unwrap();
            let shown: String = value.to_string().chars().take(80).collect();
            store.check(&format!("{field} is {shown}"));
        }
    }
    fs::write(entry.join("json"), json.to_string()).unwrap();
    for file in ["parent", "layersize", "checksum"] {
        let sound = fs::read(entry.join(file)).ok();
        for text in odd_values().iter().filter_map(Value::as_str) {
            fs::write(entry.join(file), text).unwrap();
            store.check(&format!("{file} is {:?}", text.chars().take(80).collect::<String>()));
        }
        match sound {
            Some(sound) => fs::write(entry.join(file), sound).unwrap(),
            None => fs::remove_file(entry.join(file)).unwrap(),
        }
    }
}

#[test]
fn whatever_the_files_of_a_classic_store_say_of_one_image_the_other_is_served() {
    for (name, make) in &STORES[..6] {
        let bench = Bench::new(name, *make);
        let files: Vec<PathBuf> = bench
            .sample
            .parts
            .iter()
            .map(|part| bench.sample.root.join(&part.path))
            .filter(|path| ["diff", "cache-id", "parent", "mount-id"].iter().any(|name| path.ends_with(name)))
            .filter(|path| path.is_file())
            .collect();
        assert_eq!(files.len(), 4, "{name}");
        let store = Rewritten::new(name, *make);
        for file in files {
            let file = store.root().join(file.strip_prefix(&bench.sample.root).unwrap());
            let sound = fs::read(&file).unwrap();
            for text in odd_values().iter().filter_map(Value::as_str) {
                fs::write(&file, text).unwrap();
                store.check(&format!("{} is {:?}", file.display(), text.chars().take(80).collect::<String>()));
            }
            fs::write(&file, sound).unwrap();
        }
    }
}
