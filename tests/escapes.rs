//! Whatever was planted in a store, nothing from outside of it is shown.
//!
//! Outside lies a twin of the store: whole, with the same names, so that following anything there would succeed, and
//! with a mark in all that it shows and the store does not. Each kind of thing that leads there is put in each place of
//! the store. Then all of it is read, through the library and through a mount, by `openat2` and without it, in a private
//! clone and without one. The mark must be in nothing that was read, listed or said. The kernel is asked too: inotify
//! tells whether anything outside, or a FIFO, a device or a socket, was ever opened.
//!
//! Two things are no escapes. A symbolic link in an image is data, and its target is shown. A hard link to a file outside
//! makes that file the store's own, by POSIX; there is nothing to tell it by, and who may make one may copy the file.
//!
//! Everything here needs root. `DOCKER_FS_STRESS_SECONDS` says how long the renamer renames.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

#[path = "support/bolt.rs"]
mod bolt;
#[path = "support/containerd_store.rs"]
mod containerd;
mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use docker_fs::store;
use docker_fs::view::{self, View};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, XattrFlags, inotify};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use serde_json::{Value, json};
use support::filter::{OPEN_TREE, OPENAT2, without};
use support::graph::GraphBuilder;
use support::marks::{Driver, convert_store};
use support::mount::{Mounted, require_privileges};
use support::storage::StorageBuilder;
use support::store::{ContainerRef, ImageId, LayerRef, StoreBuilder, sha256_hex};
use support::view::{plainly, read, text};
use support::whole::WholeStore;

/// The ways in which a store is read: which system calls are missing, and what says so. Which way it is, is found out once
/// a process, so each is tried in processes of its own.
const WAYS: [(&str, &[i64], Errno); 4] = [
    ("by openat2 in a clone", &[], Errno::NOSYS),
    ("step by step in a clone", &[OPENAT2], Errno::NOSYS),
    ("by openat2 in the host's tree", &[OPEN_TREE], Errno::NOSYS),
    ("step by step in the host's tree", &[OPENAT2, OPEN_TREE], Errno::PERM),
];
/// The file into which a child process writes what it saw.
const TRANSCRIPT: &str = "DOCKER_FS_TEST_TRANSCRIPT";

/// A store of an image with two layers and a container.
struct Sample {
    layers: Vec<LayerRef>,
    image: ImageId,
    container: ContainerRef,
}

fn sample(root: &Path) -> Sample {
    let mut store = StoreBuilder::new(root);
    let layers = store.chain(2);
    let [base, top] = [0, 1].map(|layer: usize| layers[layer].diff_dir());
    for dir in ["etc/deep", "usr/lib"] {
        fs::create_dir_all(base.join(dir)).unwrap();
    }
    fs::write(base.join("etc/hello"), "hello").unwrap();
    fs::write(base.join("usr/lib/data"), "data").unwrap();
    symlink("/etc/passwd", base.join("etc/link")).unwrap();
    fs::create_dir_all(top.join("moved")).unwrap();
    rustix::fs::setxattr(top.join("moved"), "trusted.overlay.redirect", b"/usr", XattrFlags::empty()).unwrap();
    fs::write(top.join("moved/new"), "new").unwrap();
    fs::write(top.join("file"), "file").unwrap();
    let image = store.image(&layers);
    store.tag("app:1", &image);
    store.image_parent(&image, &ImageId(sha256_hex("a parent")));
    let container = store.container("web", &image, layers.last());
    fs::write(container.upper_dir().join("log"), "log").unwrap();
    store.finish();
    Sample { layers, image, container }
}

/// A text that is nowhere else.
fn mark() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    format!("mark{:x}{:x}", now.as_nanos(), std::process::id())
}

/// A directory with a `store`, and `outside` with its marked twin.
struct Bench {
    ground: Ground,
    sample: Sample,
}

/// A directory with a store, and another beside it, of which nothing may be seen.
struct Ground {
    dir: tempfile::TempDir,
    /// What must never be seen.
    marks: Vec<String>,
    watch: Watch,
    /// Folders of the store that may be mounts of their own.
    folders: &'static [&'static str],
}

impl std::ops::Deref for Bench {
    type Target = Ground;

    fn deref(&self) -> &Ground {
        &self.ground
    }
}

impl Bench {
    fn new() -> Self {
        let dir = support::scratch("escapes");
        let sample = self::sample(&dir.path().join("store"));
        let mark = mark();
        let marks = make_twin(&dir.path().join("outside"), &mark);
        symlink("../outside", dir.path().join("store/hop")).unwrap();
        let watch = Watch::new();
        watch.below(&dir.path().join("outside"));
        let folders = &["containers", "image", "image/overlay2", "overlay2"];
        Self { ground: Ground { dir, marks, watch, folders }, sample }
    }
}

impl Ground {
    /// A store of a kind and its twin, in which everything that is shown bears a mark.
    fn of(kind: &Kind) -> Self {
        let dir = support::scratch("escapes");
        (kind.make)(&dir.path().join("store"), "plain");
        let mark = mark();
        (kind.make)(&dir.path().join("outside"), &mark);
        symlink("../outside", dir.path().join("store/hop")).unwrap();
        let watch = Watch::new();
        watch.below(&dir.path().join("outside"));
        Self { dir, marks: vec![mark], watch, folders: kind.folders }
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    /// Looks for marks, and for what was opened outside.
    fn check(&self, what: &str, seen: &[u8]) {
        for mark in &self.marks {
            let found = seen.windows(mark.len()).position(|window| window == mark.as_bytes());
            if let Some(at) = found {
                let around = &seen[at.saturating_sub(200)..seen.len().min(at + 200)];
                panic!("{what}: something from outside is shown: {}", around.escape_ascii());
            }
        }
        let opened = self.watch.events();
        assert!(opened.is_empty(), "{what}: opened or read: {opened:?}");
    }

    /// The same for each test's own directory.
    fn shown(&self, text: &str) -> String {
        text.replace(self.dir.path().to_str().unwrap(), "{d}")
    }
}

impl Bench {
    /// The places of a store, as paths below it.
    fn places(&self) -> Vec<String> {
        let Sample { layers, image, container } = &self.sample;
        let ([base, top], image, container) = ([&layers[0], &layers[1]], &image.0, container);
        let (chain, cache, below) = (&top.chain_id, &top.cache_id, &base.cache_id);
        let (id, mount) = (&container.id, &container.mount_id);
        let mut places: Vec<String> = [
            "containers",
            "image",
            "image/overlay2",
            "image/overlay2/imagedb",
            "image/overlay2/imagedb/content",
            "image/overlay2/imagedb/content/sha256",
            "image/overlay2/imagedb/metadata",
            "image/overlay2/imagedb/metadata/sha256",
            "image/overlay2/layerdb",
            "image/overlay2/layerdb/mounts",
            "image/overlay2/layerdb/sha256",
            "image/overlay2/repositories.json",
            "overlay2",
            "overlay2/l",
        ]
        .map(str::to_owned)
        .into();
        let db = "image/overlay2";
        places.extend([
            format!("containers/{id}"),
            format!("containers/{id}/config.v2.json"),
            format!("{db}/imagedb/content/sha256/{image}"),
            format!("{db}/imagedb/metadata/sha256/{image}"),
            format!("{db}/imagedb/metadata/sha256/{image}/parent"),
            format!("{db}/layerdb/mounts/{id}"),
            format!("{db}/layerdb/sha256/{chain}"),
            format!("overlay2/l/{}", base.link),
            format!("overlay2/{cache}"),
            format!("overlay2/{cache}/diff"),
            format!("overlay2/{cache}/diff/moved"),
            format!("overlay2/{cache}/diff/file"),
            format!("overlay2/{below}/diff/etc"),
            format!("overlay2/{below}/diff/etc/hello"),
            format!("overlay2/{mount}"),
            format!("overlay2/{mount}/diff"),
            format!("overlay2/{mount}-init/diff"),
        ]);
        places.extend(self.texts());
        places
    }

    /// The places that hold a line of text which leads on.
    fn texts(&self) -> Vec<String> {
        let Sample { layers, container, .. } = &self.sample;
        let (top, db) = (&layers[1], "image/overlay2/layerdb");
        let of_layer =
            ["diff", "parent", "cache-id", "size"].map(|file| format!("{db}/sha256/{}/{file}", top.chain_id));
        let of_mount = ["mount-id", "init-id", "parent"].map(|file| format!("{db}/mounts/{}/{file}", container.id));
        let of_driver = ["link", "lower"].map(|file| format!("overlay2/{}/{file}", top.cache_id));
        [&of_layer[..], &of_mount, &of_driver].concat()
    }
}

/// Makes a store of the same names, and puts a mark in all that it would show. Answers what such marks look like.
fn make_twin(root: &Path, mark: &str) -> Vec<String> {
    let Sample { layers, image, container } = sample(root);
    let (id, size) = (sha256_hex(mark), "9182736455463728190".to_owned());
    let db = root.join("image/overlay2");
    let put = |path: PathBuf, content: &str| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    for layer in &layers {
        put(layer.layerdb.join("diff"), mark);
        put(layer.layerdb.join("parent"), mark);
        put(layer.layerdb.join("cache-id"), mark);
        put(layer.layerdb.join("size"), &size);
        put(layer.dir.join("link"), mark);
        put(layer.dir.join("lower"), mark);
        mark_tree(&layer.diff_dir(), mark);
    }
    for diff in [container.upper_dir(), container.init_dir()] {
        mark_tree(&diff, mark);
    }
    let mounts = db.join("layerdb/mounts");
    put(mounts.join(&container.id).join("mount-id"), mark);
    put(mounts.join(&container.id).join("init-id"), mark);
    put(mounts.join(&container.id).join("parent"), mark);
    put(mounts.join(&id).join("mount-id"), mark);
    put(db.join("layerdb/sha256").join(&id).join("diff"), &format!("sha256:{id}"));
    put(db.join("layerdb/sha256").join(&id).join("cache-id"), mark);
    let config = json!({"config": {"Labels": {"made": mark}}, "rootfs": {"type": "layers"}}).to_string();
    let added = sha256_hex(&config);
    put(db.join("imagedb/content/sha256").join(&added), &config);
    put(db.join("imagedb/content/sha256").join(&image.0), &config);
    put(db.join("imagedb/metadata/sha256").join(&image.0).join("parent"), &format!("sha256:{added}"));
    let references = json!({"Repositories": {mark: {format!("{mark}:1"): format!("sha256:{}", image.0)}}});
    put(db.join("repositories.json"), &references.to_string());
    let named = json!({"Name": format!("/{mark}"), "Driver": "overlay2"}).to_string();
    put(container.config_path(), &named);
    put(root.join("containers").join(&id).join("config.v2.json"), &named);
    symlink(mark, root.join("overlay2/l").join(mark)).unwrap();
    vec![mark.to_owned(), id, size, added]
}

/// Marks the content of every file of a layer, and adds a name and an attribute to every directory.
fn mark_tree(dir: &Path, mark: &str) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            mark_tree(&path, mark);
        } else if kind.is_file() {
            fs::write(&path, mark).unwrap();
        }
    }
    fs::write(dir.join(mark), mark).unwrap();
    rustix::fs::setxattr(dir, "user.mark", mark.as_bytes(), XattrFlags::empty()).unwrap();
}

/// Tells what was opened or read. Descriptors that only stand for something (`O_PATH`) open nothing.
struct Watch(OwnedFd);

impl Watch {
    fn new() -> Self {
        Self(inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap())
    }

    fn add(&self, path: &Path) {
        let flags = inotify::WatchFlags::OPEN | inotify::WatchFlags::ACCESS | inotify::WatchFlags::DONT_FOLLOW;
        inotify::add_watch(&self.0, path, flags).unwrap();
    }

    /// Watches all directories from here on, and what is in them.
    fn below(&self, dir: &Path) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                self.below(&path);
            }
        }
        self.add(dir);
        // Listing it was ours.
        self.events();
    }

    fn events(&self) -> Vec<String> {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.0, &mut space);
        let mut events = Vec::new();
        loop {
            match reader.next() {
                // That a watched file is gone is no opening.
                Ok(event) if event.events().contains(inotify::ReadFlags::IGNORED) => {}
                Ok(event) => events.push(format!("{:?} {:?}", event.events(), event.file_name())),
                Err(Errno::AGAIN) => return events,
                Err(errno) => panic!("inotify: {errno}"),
            }
        }
    }
}

/// What is planted in the place of what belongs there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plant {
    AbsoluteLink,
    RelativeLink,
    /// Through another link, in the data root.
    Chain,
    /// Through the link of a process to its root.
    MagicLink,
    /// To a directory, whatever belongs there.
    LinkToDirectory,
    Mount,
    HardLink,
    Fifo,
    Device,
    Socket,
    OtherKind,
}

const PLANTS: [Plant; 11] = [
    Plant::AbsoluteLink,
    Plant::RelativeLink,
    Plant::Chain,
    Plant::MagicLink,
    Plant::LinkToDirectory,
    Plant::Mount,
    Plant::HardLink,
    Plant::Fifo,
    Plant::Device,
    Plant::Socket,
    Plant::OtherKind,
];

/// Those that are planted in each place of each other store.
const OF_OTHERS: [Plant; 7] = [
    Plant::AbsoluteLink,
    Plant::RelativeLink,
    Plant::MagicLink,
    Plant::LinkToDirectory,
    Plant::Mount,
    Plant::Fifo,
    Plant::OtherKind,
];

/// What was planted; goes with the value, and what belongs there is back.
struct Planted {
    place: PathBuf,
    aside: PathBuf,
    is_mount: bool,
}

impl Plant {
    /// Puts it in a place of the store; `None` where it cannot be, or may be.
    fn put(self, bench: &Ground, below: &str) -> Option<Planted> {
        let (place, twin) = (bench.store().join(below), bench.outside().join(below));
        let is_dir = fs::symlink_metadata(&place).unwrap().is_dir();
        let is_folder = bench.folders.contains(&below);
        match self {
            Self::Mount if is_folder || fs::symlink_metadata(&place).unwrap().is_symlink() => return None,
            Self::HardLink if is_dir || fs::symlink_metadata(&place).unwrap().is_symlink() => return None,
            _ => {}
        }
        let planted = Planted { aside: bench.dir.path().join("aside"), is_mount: self == Self::Mount, place };
        let place = &planted.place;
        if planted.is_mount {
            rustix::mount::mount_bind(&twin, place).unwrap();
            return Some(planted);
        }
        fs::rename(place, &planted.aside).unwrap();
        // From the directory that holds the place up to the one that holds the store.
        let up = "../".repeat(below.split('/').count());
        let node = |kind, device| rustix::fs::mknodat(CWD, place, kind, Mode::from_raw_mode(0o644), device).unwrap();
        match self {
            Self::AbsoluteLink => symlink(&twin, place).unwrap(),
            Self::RelativeLink => symlink(format!("{up}outside/{below}"), place).unwrap(),
            Self::Chain => symlink(format!("{up}store/hop/{below}"), place).unwrap(),
            Self::MagicLink => symlink(format!("/proc/self/root{}", twin.display()), place).unwrap(),
            Self::LinkToDirectory => symlink(bench.outside(), place).unwrap(),
            Self::HardLink => fs::hard_link(&twin, place).unwrap(),
            Self::Fifo => node(FileType::Fifo, 0),
            Self::Socket => node(FileType::Socket, 0),
            // It never ends.
            Self::Device => node(FileType::CharacterDevice, rustix::fs::makedev(1, 5)),
            Self::OtherKind if is_dir => fs::write(place, "a file").unwrap(),
            Self::OtherKind => fs::create_dir(place).unwrap(),
            Self::Mount => {}
        }
        if matches!(self, Self::Fifo | Self::Socket | Self::Device) {
            bench.watch.add(place);
        }
        Some(planted)
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        if self.is_mount {
            rustix::mount::unmount(&self.place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).unwrap();
            return;
        }
        match fs::symlink_metadata(&self.place) {
            Ok(meta) if meta.is_dir() => fs::remove_dir(&self.place).unwrap(),
            _ => fs::remove_file(&self.place).unwrap(),
        }
        fs::rename(&self.aside, &self.place).unwrap();
    }
}

/// Texts that lead outside for who pastes them into a path.
fn leading_texts(bench: &Bench) -> Vec<(&'static str, Vec<u8>)> {
    let cache = &bench.sample.layers[1].cache_id;
    let absolute = bench.outside().join("overlay2").join(cache);
    vec![
        ("up", format!("../../outside/overlay2/{cache}").into_bytes()),
        ("up by links", format!("l/../../../outside/overlay2/{cache}").into_bytes()),
        ("absolute", absolute.as_os_str().as_bytes().to_vec()),
        ("magic", format!("/proc/self/root{}", absolute.display()).into_bytes()),
        ("with NUL", format!("{cache}\0/../../../outside").into_bytes()),
        ("with newline", format!("{cache}\n../../outside/overlay2/{cache}").into_bytes()),
        ("dots", b"..".to_vec()),
        ("long", "../".repeat(350_000).into_bytes()),
        ("empty", Vec::new()),
        ("reference up", json!({"Repositories": {"../..": {"../../outside:1": "sha256:../.."}}}).to_string().into()),
        ("name up", json!({"Name": "/../../outside", "Driver": "overlay2", "Image": "../.."}).to_string().into()),
    ]
}

/// Goes through all cases: puts something in a place, has it looked at, takes it away.
fn each_case(bench: &Bench, look: &mut dyn FnMut(&str, Plant)) {
    for place in bench.places() {
        for plant in PLANTS {
            if let Some(_planted) = plant.put(bench, &place) {
                look(&bench.shown(&format!("{plant:?} at {place}")), plant);
            }
        }
    }
    let Sample { container, .. } = &bench.sample;
    let mut texts = bench.texts();
    texts.push("image/overlay2/repositories.json".to_owned());
    texts.push(format!("containers/{}/config.v2.json", container.id));
    for place in texts {
        let file = bench.store().join(&place);
        let before = fs::read(&file).unwrap();
        for (name, text) in leading_texts(bench) {
            fs::write(&file, text).unwrap();
            look(&format!("text {name} in {place}"), Plant::OtherKind);
        }
        fs::write(&file, before).unwrap();
    }
    let moved = bench.sample.layers[1].diff_dir().join("moved");
    for (name, text) in leading_texts(bench) {
        let redirect = rustix::fs::setxattr(&moved, "trusted.overlay.redirect", &text, XattrFlags::empty());
        // The system has a limit of its own.
        if redirect.is_ok() {
            look(&format!("text {name} in a redirect"), Plant::OtherKind);
        }
    }
    rustix::fs::setxattr(&moved, "trusted.overlay.redirect", b"/usr", XattrFlags::empty()).unwrap();
    look("nothing planted", Plant::OtherKind);
}

/// Where marks may be seen, since the file is the store's own.
fn is_own(plant: Plant) -> bool {
    plant == Plant::HardLink
}

/// All that the library says of a store.
fn by_library(root: &Path) -> String {
    let opened = store::open(root, &store::Options::default());
    let options = view::Options { source: root.to_owned(), ..view::Options::default() };
    match opened.and_then(|store| View::new(store, &options)) {
        Ok(view) => format!("damage {:?}\n{}", view.damage(), text(&read(&view, &plainly))),
        Err(error) => format!("{error}: {error:?}\n"),
    }
}

#[test]
fn the_library_shows_nothing_from_outside() {
    if !require_privileges("planting devices and mounts") {
        return;
    }
    if let Some(file) = std::env::var_os(TRANSCRIPT) {
        let bench = Bench::new();
        let mut transcript = String::new();
        each_case(&bench, &mut |what, plant| {
            let seen = by_library(&bench.store());
            if !is_own(plant) {
                bench.check(what, seen.as_bytes());
                transcript.push_str(&format!("== {what}\n{}", bench.shown(&seen)));
            }
        });
        fs::write(file, transcript).unwrap();
        return;
    }
    let transcripts = each_way("the_library_shows_nothing_from_outside", &WAYS);
    for pair in [[0, 1], [2, 3]] {
        assert_same_text(WAYS[pair[0]].0, &transcripts[pair[0]], WAYS[pair[1]].0, &transcripts[pair[1]]);
    }
    let cases = transcripts[0].matches("\n== ").count();
    eprintln!("{} cases, {} bytes of answers", cases + 1, transcripts[0].len());
    assert!(cases > 300 && transcripts[0].ends_with('\n'), "{cases} cases are not all");
}

/// A kind of store other than the one of overlay2.
struct Kind {
    name: &'static str,
    /// Makes one whose files and names have this text in them.
    make: fn(&Path, &str),
    folders: &'static [&'static str],
}

const KINDS: [Kind; 8] = [
    Kind {
        name: "containers/storage overlay",
        make: |root, text| make_storage(root, "overlay", text),
        folders: &["overlay", "overlay-images", "overlay-layers", "overlay-containers"],
    },
    Kind {
        name: "containers/storage vfs",
        make: |root, text| make_storage(root, "vfs", text),
        folders: &["vfs", "vfs/dir", "vfs-images", "vfs-layers", "vfs-containers"],
    },
    Kind {
        name: "containerd overlayfs",
        make: |root, text| make_containerd(root, "overlayfs", text),
        folders: CONTAINERD,
    },
    Kind { name: "containerd native", make: |root, text| make_containerd(root, "native", text), folders: CONTAINERD },
    Kind { name: "graph", make: make_graph, folders: &["graph", "aufs", "aufs/diff", "aufs/layers", "containers"] },
    Kind {
        name: "aufs",
        make: |root, text| {
            make_classic(root, text).finish();
            convert_store(root, Driver::Aufs);
        },
        folders: &["image", "image/aufs", "aufs", "aufs/diff", "aufs/layers", "containers"],
    },
    Kind {
        name: "vfs",
        make: |root, text| drop(WholeStore::of(make_classic(root, text), "vfs")),
        folders: &["image", "image/vfs", "vfs", "vfs/dir", "containers"],
    },
    Kind {
        name: "btrfs",
        make: |root, text| drop(WholeStore::of(make_classic(root, text), "btrfs")),
        folders: &["image", "image/btrfs", "btrfs", "btrfs/subvolumes", "containers"],
    },
];
const CONTAINERD: &[&str] = &[
    "io.containerd.metadata.v1.bolt",
    "io.containerd.content.v1.content",
    "io.containerd.snapshotter.v1.overlayfs",
    "io.containerd.snapshotter.v1.native",
];

fn fill(dir: &Path, text: &str) {
    fs::create_dir_all(dir.join("etc")).unwrap();
    fs::write(dir.join("etc/text"), text).unwrap();
    fs::write(dir.join(text), text).unwrap();
    symlink("/etc/passwd", dir.join("link")).unwrap();
    // What a tree changes upon another is told by times too.
    let then = rustix::fs::Timespec { tv_sec: 1_700_000_000, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: then, last_modification: then };
    for file in ["etc/text", text, "link"] {
        rustix::fs::utimensat(CWD, dir.join(file), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

fn make_classic(root: &Path, text: &str) -> StoreBuilder {
    let mut store = StoreBuilder::new(root);
    let layers = store.chain(2);
    layers.iter().for_each(|layer| fill(&layer.diff_dir(), text));
    let image = store.image(&layers);
    store.tag(&format!("{text}:1"), &image);
    let container = store.container(text, &image, layers.last());
    fill(&container.upper_dir(), text);
    store
}

fn make_storage(root: &Path, driver: &'static str, text: &str) {
    let mut store = StorageBuilder::new(root, driver);
    let base = store.layer("base", None);
    let top = store.layer("top", Some(&base));
    let image = store.image(&["localhost/app:1"], &[&base, &top]);
    store.images[0]["names"] = json!([format!("localhost/{text}:1")]);
    let (mut container, listed, own) = store.container("web", &image, &top);
    container["names"] = json!([text]);
    store.containers.push(container);
    store.layers.push(listed);
    [&base, &top, &own].iter().for_each(|layer| fill(&layer.dir, text));
    if driver == "overlay" {
        // Of the form that the engine gives them, and read by nobody here.
        fs::write(root.join("overlay/.has-mount-program"), "true").unwrap();
        fs::write(own.dir.with_file_name("link"), "A".repeat(26)).unwrap();
        fs::write(own.dir.with_file_name("lower"), format!("l/{}", "B".repeat(26))).unwrap();
        symlink("../x/diff", root.join("overlay/l").join("A".repeat(26))).unwrap();
    }
    store.write();
}

fn make_containerd(root: &Path, snapshotter: &str, text: &str) {
    let mut store = containerd::Store::new(root);
    let image = store.packed(&["base", "top"]);
    let mut below: Option<&str> = None;
    for chain in &image.chains {
        fill(&store.snapshot("default", snapshotter, chain, below, 3), text);
        below = Some(chain);
    }
    fill(&store.snapshot("default", snapshotter, "web", below, 2), text);
    store.name("default", &format!("docker.io/library/{text}:1"), &image.manifest, 1);
    let place = ["v1", "default", "containers", "web"];
    for (field, value) in [("snapshotter", snapshotter), ("snapshotKey", "web"), ("spec", text)] {
        containerd::put(&mut store.meta, &[&place[..], &[field]].concat(), value);
    }
    store.write();
}

fn make_graph(root: &Path, text: &str) {
    let mut graph = GraphBuilder::new(root);
    let base = graph.image(None);
    let top = graph.image(Some(&base));
    fs::write(graph.entry(&top).join("parent"), &base).unwrap();
    graph.tag(text, "1", &top);
    let container = graph.container(text, &top);
    [base, top, container].iter().for_each(|id| fill(&graph.diff(id), text));
}

/// Everything in a store but for what was put beside it, directories before what they hold.
fn all_below(root: &Path, below: &Path, places: &mut Vec<String>) {
    let mut names: Vec<_> = fs::read_dir(root.join(below)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    for name in names.into_iter().filter(|name| name != "hop") {
        let path = below.join(name);
        places.push(path.to_str().unwrap().to_owned());
        if fs::symlink_metadata(root.join(&path)).unwrap().is_dir() {
            all_below(root, &path, places);
        }
    }
}

/// Each kind of thing in each place of each kind of store, also where nobody looks.
#[test]
fn the_library_shows_nothing_from_outside_of_other_stores() {
    if !require_privileges("planting devices and mounts") {
        return;
    }
    if let Some(file) = std::env::var_os(TRANSCRIPT) {
        let mut transcript = String::new();
        for kind in &KINDS {
            let ground = Ground::of(kind);
            let mut places = Vec::new();
            all_below(&ground.store(), Path::new(""), &mut places);
            // What bears a mark has another name there.
            places.retain(|place| fs::symlink_metadata(ground.outside().join(place)).is_ok());
            let sound = by_library(&ground.store());
            assert!(sound.contains("plain") && sound.starts_with("damage []"), "{}: {sound}", kind.name);
            let outside = by_library(&ground.outside());
            assert!(outside.matches(&ground.marks[0]).count() > 8, "{}: the twin is none: {outside}", kind.name);
            // That was not the library's doing.
            ground.watch.events();
            for (place, plant) in places.iter().flat_map(|place| OF_OTHERS.map(|plant| (place, plant))) {
                let Some(_planted) = plant.put(&ground, place) else { continue };
                let seen = by_library(&ground.store());
                if !is_own(plant) {
                    let what = ground.shown(&format!("{}: {plant:?} at {place}", kind.name));
                    ground.check(&what, seen.as_bytes());
                    transcript.push_str(&format!("== {what}\n{}", ground.shown(&seen)));
                }
            }
        }
        fs::write(file, transcript).unwrap();
        return;
    }
    let ways = [WAYS[0], WAYS[1]];
    let transcripts = each_way("the_library_shows_nothing_from_outside_of_other_stores", &ways);
    assert_same_text(ways[0].0, &transcripts[0], ways[1].0, &transcripts[1]);
    let cases = transcripts[0].matches("== ").count();
    eprintln!("{cases} cases, {} bytes of answers", transcripts[0].len());
    assert!(cases > 1_000, "{cases} cases are not all");
}

/// Runs a test of this file once for each way, and hands out what each wrote.
fn each_way(test: &str, ways: &[(&str, &[i64], Errno)]) -> Vec<String> {
    let dir = support::scratch("escapes");
    let run = |number: usize, (name, calls, errno): (&str, &[i64], Errno)| {
        let file = dir.path().join(number.to_string());
        let program = std::env::current_exe().unwrap();
        let mut command = Command::new(program);
        command.args(["--exact", test, "--nocapture"]).env(TRANSCRIPT, &file).stdin(Stdio::null());
        let output = without(calls, errno.raw_os_error(), || command.output().unwrap());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{name}: {said}");
        fs::read_to_string(file).unwrap_or_else(|error| panic!("{name}: {error}: {said}"))
    };
    std::thread::scope(|scope| {
        let run = &run;
        let ways = ways.iter().enumerate().map(|(number, way)| scope.spawn(move || run(number, *way)));
        let ways: Vec<_> = ways.collect();
        ways.into_iter().map(|way| way.join().unwrap()).collect()
    })
}

fn assert_same_text(one: &str, expected: &str, other: &str, found: &str) {
    let mut case = "";
    for (a, b) in expected.lines().zip(found.lines()) {
        if a.starts_with("== ") {
            case = a;
        }
        assert_eq!(a, b, "{one} and {other} differ in {case:?}");
    }
    assert_eq!(expected.len(), found.len(), "{one} and {other} differ");
}

/// How a command ended, and what it said.
fn command(args: &[&Path]) -> (i32, String) {
    let mut output = tempfile::tempfile().unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_docker-fs"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output.try_clone().unwrap())
        .status()
        .unwrap();
    let mut said = String::new();
    output.rewind().unwrap();
    output.read_to_string(&mut said).unwrap();
    (status.code().unwrap_or(-1), said)
}

/// Detaches what is mounted, also where a test fails.
struct Detach(PathBuf);

impl Drop for Detach {
    fn drop(&mut self) {
        while rustix::mount::unmount(&self.0, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
    }
}

#[test]
fn mount_and_commands_show_nothing_from_outside() {
    if !require_privileges("mounting") {
        return;
    }
    if let Some(file) = std::env::var_os(TRANSCRIPT) {
        let bench = Bench::new();
        let point = bench.dir.path().join("mnt");
        fs::create_dir(&point).unwrap();
        let _mount = Detach(point.clone());
        let mut transcript = String::new();
        each_case(&bench, &mut |what, plant| {
            let (code, said) = command(&[&bench.store(), &point]);
            let mut seen = said.into_bytes();
            assert!([0, 1, 3, 4].contains(&code), "{what}: {code}: {}", seen.escape_ascii());
            if matches!(code, 0 | 4) {
                read_mount(&point, &mut seen);
                let (ended, said) = command(&[Path::new("unmount"), &point]);
                assert_eq!((ended, said.as_str()), (0, ""), "{what}");
            }
            if !is_own(plant) {
                bench.check(what, &seen);
            }
            transcript.push_str(&format!("{what}: {code} {}\n", seen.len()));
        });
        fs::write(file, transcript).unwrap();
        return;
    }
    // Beyond the library it makes no difference which of the four it is.
    let ways = [WAYS[0], WAYS[3]];
    let transcripts = each_way("mount_and_commands_show_nothing_from_outside", &ways);
    for (transcript, (way, ..)) in transcripts.iter().zip(ways) {
        let mounted = transcript.lines().filter(|line| line.contains(": 0 ") || line.contains(": 4 ")).count();
        eprintln!("{way}: {} cases, {mounted} of them mounted", transcript.lines().count());
        assert!(mounted > 200, "{way}: {transcript}");
    }
}

/// All that a reader gets to see of a mount: names, content, targets, attributes, and errors.
fn read_mount(point: &Path, seen: &mut Vec<u8>) {
    match open_without_links(CWD, point.as_os_str().as_bytes(), OFlags::DIRECTORY) {
        Ok(dir) => read_below(&dir, seen),
        Err(errno) => seen.extend(errno.to_string().into_bytes()),
    }
}

fn read_below(dir: &OwnedFd, seen: &mut Vec<u8>) {
    let entries = match Dir::read_from(dir) {
        Ok(entries) => entries,
        Err(errno) => return seen.extend(errno.to_string().into_bytes()),
    };
    for entry in entries {
        let entry = match entry {
            Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => continue,
            Ok(entry) => entry,
            Err(errno) => return seen.extend(errno.to_string().into_bytes()),
        };
        let name = entry.file_name().to_bytes();
        seen.extend_from_slice(name);
        seen.push(b'\n');
        // What is open stays what it is, whatever takes its name.
        let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(OsStr::from_bytes(name));
        attributes_of(&path, seen);
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let below = |more| open_without_links(dir.as_fd(), name, more);
        if meta.is_symlink() {
            seen.extend(
                fs::read_link(&path).map(|target| target.into_os_string().into_encoded_bytes()).unwrap_or_default(),
            );
        } else if meta.is_dir() {
            match below(OFlags::DIRECTORY) {
                Ok(dir) => read_below(&dir, seen),
                Err(errno) => seen.extend(errno.to_string().into_bytes()),
            }
        } else if meta.is_file() {
            match below(OFlags::empty()) {
                Ok(file) => drop(File::from(file).take(1 << 20).read_to_end(seen)),
                Err(errno) => seen.extend(errno.to_string().into_bytes()),
            }
        }
    }
}

/// Opens what a mount shows. A link that takes a place since it was looked at is an image's data, which this reader must
/// not follow either.
fn open_without_links(dir: BorrowedFd<'_>, path: &[u8], more: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | more;
    rustix::fs::openat2(dir, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
}

fn attributes_of(path: &Path, seen: &mut Vec<u8>) {
    let mut space = vec![0_u8; 65_536];
    let Ok(length) = rustix::fs::llistxattr(path, &mut space) else { return };
    let names = space[..length].to_vec();
    seen.extend_from_slice(&names);
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if let Ok(length) = rustix::fs::lgetxattr(path, name, &mut space) {
            seen.extend_from_slice(&space[..length]);
        }
    }
}

/// Exchanges places of a store with what leads outside, one at a time, and back.
struct Renamer {
    /// The directory that holds the place, its name there, and what takes its place.
    swaps: Vec<(OwnedFd, PathBuf, PathBuf)>,
    state: u64,
}

impl Renamer {
    fn new(bench: &Bench) -> Self {
        let evil = bench.dir.path().join("evil");
        fs::create_dir(&evil).unwrap();
        let mut swaps = Vec::new();
        for place in bench.places() {
            for plant in ["link", "fifo", "device", "twin"] {
                let (full, other) = (bench.store().join(&place), evil.join(swaps.len().to_string()));
                let twin = bench.outside().join(&place);
                let node =
                    |kind, device| rustix::fs::mknodat(CWD, &other, kind, Mode::from_raw_mode(0o644), device).unwrap();
                match plant {
                    "link" => symlink(&twin, &other).unwrap(),
                    "fifo" => node(FileType::Fifo, 0),
                    "device" => node(FileType::CharacterDevice, rustix::fs::makedev(1, 5)),
                    _ if fs::symlink_metadata(&twin).unwrap().is_dir() => symlink(bench.outside(), &other).unwrap(),
                    _ => fs::create_dir(&other).unwrap(),
                }
                if plant == "device" {
                    bench.watch.add(&other);
                }
                let parent = rustix::fs::open(
                    full.parent().unwrap(),
                    rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
                    Mode::empty(),
                );
                swaps.push((parent.unwrap(), PathBuf::from(full.file_name().unwrap()), other));
            }
        }
        Self { swaps, state: 0x9e37_79b9_7f4a_7c15 }
    }

    fn draw(&mut self, below: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        usize::try_from(self.state % below as u64).unwrap()
    }

    /// Exchanges one place and puts it back.
    fn swap(&mut self) {
        let (number, patience) = (self.draw(self.swaps.len()), self.draw(2_000));
        let (parent, name, other) = &self.swaps[number];
        for _ in 0..2 {
            rustix::fs::renameat_with(parent, name, CWD, other, RenameFlags::EXCHANGE).unwrap();
            for _ in 0..patience {
                std::hint::spin_loop();
            }
        }
    }
}

#[test]
fn a_renamer_makes_nobody_read_from_outside() {
    if !require_privileges("mounting") {
        return;
    }
    let seconds = std::env::var("DOCKER_FS_STRESS_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let bench = Bench::new();
    let points = ["clone", "tree"].map(|name| bench.dir.path().join(name));
    let (_, calls, errno) = WAYS[3];
    let mounts = [
        Mounted::new(&bench.store(), &points[0]),
        without(calls, errno.raw_os_error(), || Mounted::new(&bench.store(), &points[1])),
    ];
    let before = by_library(&bench.store());
    let old_view =
        View::new(store::open(&bench.store(), &store::Options::default()).unwrap(), &view::Options::default()).unwrap();
    let mut renamer = Renamer::new(&bench);
    let (is_over, reads, swaps) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    // What is looked for is kept, the rest is too much.
    let is_marked =
        |seen: &[u8]| bench.marks.iter().any(|mark| seen.windows(mark.len()).any(|window| window == mark.as_bytes()));
    let keep = |look: &dyn Fn(&mut Vec<u8>)| {
        let mut all = Vec::new();
        loop {
            let mut seen = Vec::new();
            look(&mut seen);
            reads.fetch_add(1, Ordering::Relaxed);
            if is_marked(&seen) {
                all.extend(seen);
            }
            if is_over.load(Ordering::Relaxed) {
                return all;
            }
        }
    };
    let through = |point: &Path, seen: &mut Vec<u8>| {
        read_mount(point, seen);
        // The kernel forgets names, so that they are asked for again.
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    };
    let seen = std::thread::scope(|scope| {
        let readers = [
            scope.spawn(|| keep(&|seen| seen.extend(by_library(&bench.store()).into_bytes()))),
            scope.spawn(|| keep(&|seen| seen.extend(text(&read(&old_view, &plainly)).into_bytes()))),
            scope.spawn(|| keep(&|seen| through(&points[0], seen))),
            scope.spawn(|| keep(&|seen| through(&points[1], seen))),
        ];
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            renamer.swap();
            swaps.fetch_add(1, Ordering::Relaxed);
        }
        is_over.store(true, Ordering::Relaxed);
        readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect::<Vec<u8>>()
    });
    eprintln!("{swaps:?} exchanges and back, {reads:?} readings of all");
    assert!(swaps.into_inner() > 0, "nobody raced");
    bench.check("racing", &seen);
    for mount in &mounts {
        let answers = || fs::read(mount.path().join("status")).map(|status| serde_json::from_slice::<Value>(&status));
        let is_whole = support::eventually(|| matches!(answers(), Ok(Ok(status)) if status["images"]["total"] == 1));
        assert!(is_whole, "{}: {:?}", mount.path().display(), answers());
    }
    drop(mounts);
    assert_same_text("before", &before, "afterwards", &by_library(&bench.store()));
}
