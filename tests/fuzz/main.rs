//! Stores of random damage: nothing panics, hangs, takes much memory or contradicts itself.
//!
//! Each target takes valid input, mutates it, and walks all that the library shows of it ([`walk`]). What once went
//! wrong lies as a file in `corpus/<target>`, is tried first, and is mutated like the rest. Everything is below the
//! mount, where no panic is caught.
//!
//! * `DOCKER_FS_FUZZ_SECONDS` is how long each target runs, two seconds unless it is said; those of whole stores
//!   other than the classic one a third of that.
//! * `DOCKER_FS_FUZZ_SEED` runs the one input of that number, which a failure names.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod bolt;
mod containerd;
mod mutate;
mod roots;
mod unions;
mod walk;

#[path = "../support/store.rs"]
#[allow(dead_code, unreachable_pub, missing_debug_implementations)]
mod store;

#[path = "../support/graph.rs"]
#[allow(dead_code, unreachable_pub, missing_debug_implementations)]
mod graph;
#[path = "../support/storage.rs"]
#[allow(dead_code, unreachable_pub, missing_debug_implementations)]
mod storage;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use docker_fs::digest::{CacheId, ContainerId, ImageId};
use docker_fs::layer::Layer;
use docker_fs::layer::difference::Life;
use docker_fs::meta::Timestamp;
use docker_fs::root::Space;
use docker_fs::store::{Catalogue, Generation, LayerRecord, Layering, Options as StoreOptions, Stamp, Store};
use docker_fs::view::{Options, View};
use mutate::{Dice, mutate};
use store::{LayerRef, StoreBuilder, sha256_hex};
use tempfile::TempDir;

/// Longer than one input takes on the slowest machine.
const INPUT_MAX: Duration = Duration::from_secs(60);
/// The most memory that all targets together may take, in KiB.
const MEMORY_MAX_KIB: u64 = 700 << 10;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text:?}")))
}

/// The inputs that are kept for a target.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut files: Vec<PathBuf> = match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
        Err(_) => Vec::new(),
    };
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Says which input it was, if this is dropped by a panic.
struct Naming<'a> {
    target: &'a str,
    seed: u64,
}

impl Drop for Naming<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: again with DOCKER_FS_FUZZ_SEED={}", self.target, self.seed);
        }
    }
}

/// Tries inputs, each told by a number, until the time is over.
fn run(target: &str, input: impl FnMut(u64)) {
    run_for(target, setting("DOCKER_FS_FUZZ_SECONDS").unwrap_or(2), input);
}

/// As [`run`], for a third of the time: there are several of such targets, which have much in common.
fn run_third(target: &str, input: impl FnMut(u64)) {
    run_for(target, (setting("DOCKER_FS_FUZZ_SECONDS").unwrap_or(2) / 3).max(1), input);
}

fn run_for(target: &str, seconds: u64, mut input: impl FnMut(u64)) {
    let (begun, begins) = channel::<u64>();
    let name = target.to_owned();
    let watch = std::thread::spawn(move || {
        let mut current = None;
        loop {
            match begins.recv_timeout(INPUT_MAX) {
                Ok(seed) => current = Some(seed),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    eprintln!("{name}: no end within {INPUT_MAX:?}: DOCKER_FS_FUZZ_SEED={current:?}");
                    std::process::abort();
                }
            }
        }
    });
    let mut one = |seed: u64| {
        begun.send(seed).unwrap();
        let naming = Naming { target, seed };
        input(seed);
        drop(naming);
    };
    let mut count = 0_u64;
    let start = Instant::now();
    match setting("DOCKER_FS_FUZZ_SEED") {
        Some(seed) => one(seed),
        None => {
            let time = Duration::from_secs(seconds);
            while start.elapsed() < time {
                one(count);
                count += 1;
            }
        }
    }
    drop(begun);
    watch.join().unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    eprintln!("{target}: {count} inputs in {:.0} s, peak {} MiB", start.elapsed().as_secs_f32(), peak >> 10);
    assert!(peak < MEMORY_MAX_KIB, "{target}: {peak} KiB of memory");
}

/// The kept input of this number, or a mutation of one of them.
fn bytes(seed: u64, corpus: &[Vec<u8>]) -> Vec<u8> {
    match usize::try_from(seed).ok().and_then(|index| corpus.get(index)) {
        Some(kept) => kept.clone(),
        None => mutate(corpus, &mut Dice::new(seed)),
    }
}

/// The same open store for many views. To open one anew takes much longer than all else here.
///
/// It changes when it is told to: times of a moment ago count for nothing, and would have it read again and again.
#[derive(Debug, Clone)]
struct Reopened(Arc<dyn Store>, Arc<AtomicU64>);

impl Reopened {
    fn of(root: &Path) -> docker_fs::error::Result<Self> {
        let mut stores = docker_fs::store::open(root, &StoreOptions::default())?;
        assert_eq!(stores.len(), 1, "there is one store");
        Ok(Self(stores.remove(0).into(), Arc::default()))
    }

    /// Lets views see that something changed.
    fn change(&self) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }

    /// A view that knows nothing from before.
    fn view(&self) -> docker_fs::error::Result<View> {
        View::new([Box::new(self.clone()) as Box<dyn Store>], &Options::default())
    }
}

impl Store for Reopened {
    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    fn driver(&self) -> &str {
        self.0.driver()
    }

    fn used(&self) -> docker_fs::error::Result<Timestamp> {
        self.0.used()
    }

    fn generation(&self) -> docker_fs::error::Result<Generation> {
        let own = self.0.generation();
        let changes = Stamp::of_changes(self.1.load(Ordering::Relaxed));
        own.map(|_| Generation::of(vec![changes]))
    }

    fn catalogue(&self, known: Option<&Catalogue>) -> docker_fs::error::Result<Catalogue> {
        self.0.catalogue(known)
    }

    fn config(&self, id: &ImageId) -> docker_fs::error::Result<Vec<u8>> {
        self.0.config(id)
    }

    fn container_config(&self, id: &ContainerId) -> docker_fs::error::Result<Vec<u8>> {
        self.0.container_config(id)
    }

    fn manifest(&self, id: &ImageId) -> docker_fs::error::Result<Vec<u8>> {
        self.0.manifest(id)
    }

    fn index(&self, id: &ImageId) -> docker_fs::error::Result<Vec<u8>> {
        self.0.index(id)
    }

    fn layer(&self, id: &CacheId) -> docker_fs::error::Result<Layer> {
        self.0.layer(id)
    }

    fn layering(&self, id: &CacheId) -> Layering {
        self.0.layering(id)
    }

    fn changes(&self, id: &CacheId, below: Option<&CacheId>, life: Life) -> docker_fs::error::Result<Layer> {
        self.0.changes(id, below, life)
    }

    fn container_layers(&self, changes: &CacheId, init: Option<&CacheId>) -> docker_fs::error::Result<Vec<Layer>> {
        self.0.container_layers(changes, init)
    }

    fn size_bytes(&self, layer: &LayerRecord) -> docker_fs::error::Result<Option<u64>> {
        self.0.size_bytes(layer)
    }

    fn is_labelled(&self) -> bool {
        self.0.is_labelled()
    }

    fn layers_generation(&self) -> docker_fs::error::Result<Generation> {
        self.0.layers_generation()
    }

    fn stands(&self, record: &LayerRecord) -> docker_fs::error::Result<bool> {
        self.0.stands(record)
    }

    fn space(&self) -> docker_fs::error::Result<Space> {
        self.0.space()
    }
}

/// A small store, mounted nowhere, whose single files are written over.
struct Scene {
    _dir: TempDir,
    root: PathBuf,
    store: Reopened,
    layers: Vec<LayerRef>,
    config: PathBuf,
    mounts: PathBuf,
    image_config: String,
}

/// On a disk in memory, where there is one.
fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

impl Scene {
    fn new() -> Self {
        let dir = scratch();
        let mut store = StoreBuilder::new(dir.path().join("docker"));
        let layers = store.chain(2);
        fs::create_dir(layers[0].diff_dir().join("etc")).unwrap();
        fs::write(layers[0].diff_dir().join("etc/file"), "content").unwrap();
        fs::write(layers[1].diff_dir().join("top"), "top").unwrap();
        let image = store.image(&layers);
        store.tag("app:1", &image);
        let below = store.image(&layers[..1]);
        store.image_parent(&image, &below);
        let container = store.container("web", &image, layers.last());
        let root = store.finish();
        let image_config = fs::read_to_string(root.join("image/overlay2/imagedb/content/sha256").join(&image.0));
        Self {
            config: container.config_path(),
            mounts: root.join("image/overlay2/layerdb/mounts").join(&container.id),
            image_config: image_config.unwrap(),
            store: Reopened::of(&root).unwrap(),
            root,
            layers,
            _dir: dir,
        }
    }

    /// Writes a file over, looks at everything, and puts back what was there.
    fn with(&self, file: &Path, content: &[u8]) {
        let before = fs::read(file).ok();
        fs::write(file, content).unwrap();
        walk::all(&self.store.view().unwrap());
        match before {
            Some(before) => fs::write(file, before).unwrap(),
            None => fs::remove_file(file).unwrap(),
        }
    }
}

#[test]
fn repositories() {
    let scene = Scene::new();
    let file = scene.root.join("image/overlay2/repositories.json");
    let mut inputs = corpus("repositories");
    inputs.push(fs::read(&file).unwrap());
    run("repositories", |seed| scene.with(&file, &bytes(seed, &inputs)));
}

#[test]
fn layerdb() {
    let scene = Scene::new();
    let mut files: Vec<PathBuf> = Vec::new();
    for layer in &scene.layers {
        files.extend(["diff", "parent", "cache-id", "size"].map(|name| layer.layerdb.join(name)));
    }
    files.extend(["mount-id", "init-id", "parent"].map(|name| scene.mounts.join(name)));
    let mut inputs = corpus("layerdb");
    inputs.extend(files.iter().filter_map(|file| fs::read(file).ok()));
    run("layerdb", |seed| {
        let file = &files[Dice::new(seed).below(files.len())];
        scene.with(file, &bytes(seed / 11, &inputs));
    });
}

#[test]
fn image_configs() {
    let scene = Scene::new();
    let mut inputs = corpus("image_configs");
    inputs.push(scene.image_config.clone().into_bytes());
    let folder = scene.root.join("image/overlay2/imagedb/content/sha256");
    run("image_configs", |seed| {
        let config = bytes(seed, &inputs);
        // An image's name is the hash of its config, so that every config is the right one.
        scene.with(&folder.join(sha256_hex(&config)), &config);
    });
}

#[test]
fn container_configs() {
    let scene = Scene::new();
    let mut inputs = corpus("container_configs");
    inputs.push(fs::read(&scene.config).unwrap());
    run("container_configs", |seed| scene.with(&scene.config, &bytes(seed, &inputs)));
}

/// Redirects and the other private attributes.
#[test]
fn attributes() {
    let inputs = corpus("attributes");
    run("attributes", |seed| unions::try_one(seed, &inputs));
}

/// Databases of bbolt, which containerd has.
#[test]
fn databases() {
    let inputs = corpus("bolt");
    let mut tally = bolt::Tally::default();
    run("bolt", |seed| tally.count(&bolt::try_one(seed, &inputs)));
    tally.check();
}

#[test]
fn data_roots() {
    let mut template = roots::Template::new(roots::DOCKER);
    run("data_roots", |seed| template.try_one(seed));
}

/// As [`data_roots`], of Docker 1.9 with aufs.
#[test]
fn graph_roots() {
    let mut template = roots::Template::new(roots::GRAPH);
    run_third("graph_roots", |seed| template.try_one(seed));
}

/// As [`data_roots`], of podman.
#[test]
fn storage_roots() {
    let mut template = roots::Template::new(roots::STORAGE);
    run_third("storage_roots", |seed| template.try_one(seed));
}

/// As [`data_roots`], of containerd, whose databases are written anew with other content as well.
#[test]
fn containerd_roots() {
    let mut template = roots::Template::new(roots::CONTAINERD);
    run_third("containerd_roots", |seed| template.try_one(seed));
}
