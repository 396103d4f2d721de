//! A small store with every file of it damaged in each way, one at a time, while it is mounted: `status` names the
//! file, the reason and the images concerned, everything else is served as before, and so is all when the file is back.
//!
//! Which images depend on a file is said here once more, by where it lies ([`Store::effect`]).

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, Mode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::eventually;
use support::faulty::{Fault, Faulty};
use support::mount::{Mounted, require_privileges};
use support::store::{ContainerRef, ImageId, LayerRef, StoreBuilder};
use support::tree::{self, Tree};
use tempfile::TempDir;

/// Longer than one case takes on the slowest machine.
const CASE_MAX: Duration = Duration::from_secs(120);
/// As many stores are damaged at the same time, as each is mostly waited for.
const WORKERS: usize = 4;
/// So many files of the base are deleted by the layers upon it, and must never be seen there. One is asked for in each
/// case of a layer's directory, since the kernel remembers what is absent.
const DELETED: u64 = 20;

/// What befalls a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    /// Half of it is left.
    Half,
    Empty,
    Random,
    Directory,
    /// A regular file in the place of a directory.
    File,
    Fifo,
    /// A symbolic link to `/etc/shadow`.
    Link,
    Removed,
    /// It is there, and reading it fails.
    Unreadable,
}

const OF_FILES: [Damage; 7] =
    [Damage::Half, Damage::Empty, Damage::Random, Damage::Directory, Damage::Fifo, Damage::Link, Damage::Removed];
const OF_DIRECTORIES: [Damage; 4] = [Damage::File, Damage::Fifo, Damage::Link, Damage::Removed];

/// What depends on a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Effect {
    /// The images that `status` names.
    images: BTreeSet<String>,
    /// Those of them that are not served.
    lost: BTreeSet<String>,
    /// Whether the container is not served.
    container: bool,
    /// Whether images lose their names.
    names: bool,
    /// Whether sizes are not told.
    sizes: bool,
}

struct Image {
    id: ImageId,
    layers: Vec<LayerRef>,
    is_referenced: bool,
}

/// A store of images that share layers, one without a name and one that shares nothing, and a container.
struct Store {
    dir: TempDir,
    /// Where it can be damaged.
    data: PathBuf,
    images: Vec<Image>,
    container: ContainerRef,
    container_layers: Vec<LayerRef>,
}

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn deleted(number: u64) -> String {
    format!("etc/secret-{number}")
}

fn whiteout(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

impl Store {
    fn new() -> Self {
        let dir = support::scratch("damage");
        let mut store = StoreBuilder::new(dir.path().join("docker"));
        let base = store.layer(None);
        write(&base.diff_dir().join("etc/version"), "base");
        for number in 0..DELETED {
            write(&base.diff_dir().join(deleted(number)), "secret");
        }
        write(&base.diff_dir().join("bin/tool"), &"tool ".repeat(1_000));
        fs::hard_link(base.diff_dir().join("bin/tool"), base.diff_dir().join("bin/same")).unwrap();
        symlink("tool", base.diff_dir().join("bin/link")).unwrap();
        let app = store.layer(Some(&base));
        write(&app.diff_dir().join("etc/version"), "app");
        write(&app.diff_dir().join("opt/app/run"), "run");
        for number in 0..DELETED {
            whiteout(&app.diff_dir().join(deleted(number)));
        }
        let extra = store.layer(Some(&app));
        write(&extra.diff_dir().join("opt/app/plugin"), "plugin");
        let plain = store.layer(Some(&base));
        write(&plain.diff_dir().join("etc/plain"), "plain");
        for number in 0..DELETED {
            whiteout(&plain.diff_dir().join(deleted(number)));
        }
        let lone = store.layer(None);
        write(&lone.diff_dir().join("alone"), "alone");
        for layer in [&base, &app, &extra, &plain, &lone] {
            layer.set_size(7);
        }
        let mut images = Vec::new();
        let mut add = |store: &mut StoreBuilder, layers: &[&LayerRef], name: Option<&str>| {
            let layers: Vec<LayerRef> = layers.iter().copied().cloned().collect();
            let id = store.image(&layers);
            if let Some(name) = name {
                store.tag(name, &id);
            }
            images.push(Image { id: id.clone(), layers, is_referenced: name.is_some() });
            id
        };
        let first = add(&mut store, &[&base, &app], Some("app:1"));
        let second = add(&mut store, &[&base, &app, &extra], Some("app:2"));
        add(&mut store, &[&base, &plain], None);
        add(&mut store, &[&lone], Some("reg.example:5000/team/lone:1"));
        add(&mut store, &[], Some("none:1"));
        store.image_parent(&second, &first);
        store.digest("app", &"d".repeat(64), &first);
        let container = store.container("web", &first, Some(&app));
        container.write_init_files();
        write(&container.upper_dir().join("var/log/web"), "started");
        let data = store.finish();
        Self { dir, data, images, container, container_layers: vec![base, app] }
    }

    fn all(&self) -> BTreeSet<String> {
        self.images.iter().map(|image| image.id.0.clone()).collect()
    }

    fn users(&self, is_used: impl Fn(&LayerRef) -> bool) -> BTreeSet<String> {
        let users = self.images.iter().filter(|image| image.layers.iter().any(&is_used));
        users.map(|image| image.id.0.clone()).collect()
    }

    /// Every file and directory of the store, but for what lies inside layers and the folders that are held open.
    fn paths(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for top in ["image/overlay2", "containers", "overlay2"] {
            self.add_below(Path::new(top), &mut found);
        }
        found.push(PathBuf::from("containers"));
        found
    }

    fn add_below(&self, dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(self.data.join(dir)).unwrap() {
            let entry = entry.unwrap();
            let path = dir.join(entry.file_name());
            found.push(path.clone());
            if entry.file_type().unwrap().is_dir() && entry.file_name() != "diff" {
                self.add_below(&path, found);
            }
        }
    }

    /// What depends on a file or directory; `None` where nothing does.
    fn effect(&self, path: &Path, damage: Damage) -> Option<Effect> {
        let of_images = |images: BTreeSet<String>| Some(Effect { lost: images.clone(), images, ..Effect::default() });
        let of_container = || Some(Effect { container: true, ..Effect::default() });
        let of_layers = |is_one: &dyn Fn(&LayerRef) -> bool| {
            let lost = self.users(is_one);
            let container = self.container_layers.iter().any(is_one);
            Some(Effect { images: lost.clone(), lost, container, ..Effect::default() })
        };
        let parts: Vec<&str> = path.iter().map(|part| part.to_str().unwrap()).collect();
        let own = [self.container.mount_id.clone(), format!("{}-init", self.container.mount_id)];
        match parts.as_slice() {
            ["image", "overlay2", "repositories.json"] => Some(Effect { names: true, ..Effect::default() }),
            ["image", "overlay2", "imagedb"]
            | ["image", "overlay2", "imagedb", "content"]
            | ["image", "overlay2", "imagedb", "content", "sha256"] => {
                let named = self.images.iter().filter(|image| image.is_referenced).map(|image| image.id.0.clone());
                Some(Effect { images: named.collect(), lost: self.all(), ..Effect::default() })
            }
            ["image", "overlay2", "imagedb", "content", "sha256", id] => {
                let image = self.images.iter().find(|image| image.id.0 == *id).unwrap();
                // What nothing names is no longer there.
                let is_unknown = damage == Damage::Removed && !image.is_referenced;
                if is_unknown { None } else { of_images(BTreeSet::from([(*id).to_owned()])) }
            }
            ["image", "overlay2", "imagedb", "metadata", .., "lastUpdated"] => None,
            ["image", "overlay2", "imagedb", "metadata", ..] if damage == Damage::Removed => None,
            ["image", "overlay2", "imagedb", "metadata"] => match damage {
                Damage::Link => Some(Effect::default()),
                _ => None,
            },
            ["image", "overlay2", "imagedb", "metadata", "sha256"] => Some(Effect::default()),
            ["image", "overlay2", "imagedb", "metadata", "sha256", id, ..] => {
                Some(Effect { images: BTreeSet::from([(*id).to_owned()]), ..Effect::default() })
            }
            ["image", "overlay2", "layerdb"] | ["image", "overlay2", "layerdb", "sha256"] => of_layers(&|_| true),
            ["image", "overlay2", "layerdb", "sha256", _, "tar-split.json.gz"] => None,
            ["image", "overlay2", "layerdb", "sha256", chain, "size"] => {
                let images = self.users(|layer| layer.chain_id == *chain);
                Some(Effect { images, sizes: true, ..Effect::default() })
            }
            ["image", "overlay2", "layerdb", "sha256", chain, ..] => of_layers(&|layer| layer.chain_id == *chain),
            ["image", "overlay2", "layerdb", "mounts", ..] => of_container(),
            ["containers"] | ["containers", _] | ["containers", _, "config.v2.json"] => of_container(),
            ["overlay2", id] | ["overlay2", id, "diff"] if own.iter().any(|own| own == id) => of_container(),
            ["overlay2", "l"] => None,
            ["overlay2", id] | ["overlay2", id, "diff"] => of_layers(&|layer| layer.cache_id == *id),
            _ => None,
        }
    }
}

/// What was there before it was damaged.
enum Before {
    /// Moved out of the way, and something else may be in its place.
    Moved(PathBuf),
    /// Changed in its place.
    Content(Vec<u8>, FileTimes),
    /// Nothing was changed.
    Faulty,
}

/// A mounted store, and all that it showed when it was whole.
struct Bench {
    // In this order they end.
    mount: Mounted,
    faulty: Option<Faulty>,
    pid: u32,
    whole: Shown,
    moved: AtomicU64,
    /// How many of the deleted files were asked for.
    asked: AtomicU64,
    store: Store,
}

/// All that a mount shows.
#[derive(Debug, Default)]
struct Shown {
    /// By what it is: an image's directory, a union, a layer, a container's tree.
    trees: BTreeMap<String, Tree>,
    tags: BTreeSet<String>,
}

fn options() -> tree::Options {
    // Moving a directory and back changes this time of it.
    tree::Options { no_ctime: true, ..tree::Options::default() }
}

impl Bench {
    fn new(is_faulty: bool) -> Self {
        let store = Store::new();
        let faulty = is_faulty.then(|| Faulty::new(&store.data, &store.dir.path().join("disk"), 4));
        let source = faulty.as_ref().map_or(store.data.as_path(), Faulty::path);
        let mount = Mounted::new(source, &store.dir.path().join("mnt"));
        let pid = mount.server().unwrap();
        let mut bench = Self {
            mount,
            faulty,
            pid,
            whole: Shown::default(),
            moved: AtomicU64::default(),
            asked: AtomicU64::default(),
            store,
        };
        bench.whole = bench.shown(&Effect::default()).unwrap();
        assert_eq!(bench.whole.trees.len(), 2 * 5 + 5 + 3);
        bench
    }

    /// What should be there all the same after this.
    fn shown(&self, but: &Effect) -> Result<Shown, String> {
        let mut shown = Shown::default();
        let path = self.mount.path();
        let mut take = |what: String| {
            let walk = tree::walk(&path.join(&what), &options());
            if walk.troubles.is_empty() {
                shown.trees.insert(what, walk.tree);
                Ok(())
            } else {
                Err(format!("{what}: {}", walk.troubles.join("; ")))
            }
        };
        let mut sizes = BTreeSet::new();
        for image in self.store.images.iter().filter(|image| !but.lost.contains(&image.id.0)) {
            take(format!("merged/{}", image.id.0))?;
            if but.sizes && but.images.contains(&image.id.0) {
                sizes.insert(image.id.0.clone());
            } else {
                take(format!("by-id/{}", image.id.0))?;
            }
        }
        for id in sizes {
            // Its layers are shown, though the texts beside them do not tell all.
            let layers = self.store.images.iter().find(|image| image.id.0 == id).map_or(0, |image| image.layers.len());
            for index in 0..layers {
                tree::snapshot(&path.join(format!("by-id/{id}/layers/{index}")), &options());
            }
        }
        let chains: BTreeSet<&String> =
            self.store.images.iter().flat_map(|image| &image.layers).map(|layer| &layer.chain_id).collect();
        for chain in chains {
            let is_lost = !but.lost.is_empty()
                && self.store.users(|layer| &layer.chain_id == chain).iter().all(|user| but.lost.contains(user));
            if !is_lost {
                take(format!("by-chain/{chain}"))?;
            }
        }
        if !but.container {
            for tree in ["merged", "changes", "init"] {
                take(format!("by-container/web/{tree}"))?;
            }
        }
        if !but.names {
            shown.tags = self.names("by-tag")?;
            shown.tags.extend(self.names("by-digest")?);
        }
        Ok(shown)
    }

    /// The names in a folder of the mount.
    fn names(&self, folder: &str) -> Result<BTreeSet<String>, String> {
        let entries = fs::read_dir(self.mount.path().join(folder)).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let entries = entries.map_err(|error| format!("{folder}: {error}"))?;
        Ok(entries.into_iter().map(|entry| entry.file_name().into_string().unwrap()).collect())
    }

    /// The folders that cannot list all there is, and say so, once it is certain that the store's own list is damaged.
    fn folders_cut_short(path: &Path) -> &'static [&'static str] {
        match path.to_str().unwrap() {
            "image/overlay2/repositories.json" => &["by-tag", "by-digest"],
            "image/overlay2/imagedb/content/sha256" => &["by-id", "merged"],
            "image/overlay2/layerdb/sha256" => &["by-chain", "by-diff"],
            "containers" | "image/overlay2/layerdb/mounts" => &["by-container"],
            _ => &[],
        }
    }

    /// The differences between what should be there all the same and what was when all was whole.
    fn differences(&self, but: &Effect) -> Vec<String> {
        let shown = match self.shown(but) {
            Ok(shown) => shown,
            Err(trouble) => return vec![trouble],
        };
        let mut lines = Vec::new();
        for (what, tree) in &shown.trees {
            lines.extend(tree::diff(&self.whole.trees[what], tree).iter().map(|line| format!("{what}{line}")));
        }
        if !but.names && shown.tags != self.whole.tags {
            lines.push(format!("the names are {:?}", shown.tags));
        }
        lines
    }

    /// Looks at everything at once, before anybody noticed the damage: whatever is answered must be right. What is
    /// wrong here, the kernel would keep.
    fn look_at_once(&self, is_layer: bool) -> Vec<String> {
        let deleted = is_layer.then(|| deleted(self.asked.fetch_add(1, Ordering::Relaxed)));
        let mut wrong = Vec::new();
        // First, before the damage can have been noticed.
        for (what, whole) in self.whole.trees.iter().filter(|(what, _)| what.contains("merged")) {
            for deleted in deleted.iter().filter(|name| !whole.contains_key(name.as_bytes())) {
                let place = self.mount.path().join(what).join(deleted);
                if place.symlink_metadata().is_ok() {
                    wrong.push(format!("{} came back", place.display()));
                }
            }
        }
        let attributes = tree::Options { no_content: true, ..options() };
        for (what, whole) in &self.whole.trees {
            let root = self.mount.path().join(what);
            for (path, expected) in whole {
                let place = if path.is_empty() { root.clone() } else { root.join(OsStr::from_bytes(path)) };
                let Ok(Ok(found)) = tree::lookup(&root, path, &attributes) else { continue };
                // Texts tell of the damage.
                let is_text = what.starts_with("by-id") && !String::from_utf8_lossy(path).contains("layers/")
                    || path.ends_with(b".json");
                if !is_text
                    && (found.kind, found.size, &found.target) != (expected.kind, expected.size, &expected.target)
                {
                    wrong.push(format!("{} was {expected:?} and is {found:?}", place.display()));
                }
            }
        }
        wrong
    }

    fn status(&self) -> Value {
        let text = fs::read(self.mount.path().join("status")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    /// Damages a file or directory.
    fn damage(&self, path: &Path, damage: Damage) -> Before {
        let place = self.store.data.join(path);
        let in_place = |change: &dyn Fn(&File, &[u8])| {
            let content = fs::read(&place).unwrap();
            let meta = fs::metadata(&place).unwrap();
            change(&File::options().write(true).open(&place).unwrap(), &content);
            let times = FileTimes::new().set_modified(meta.modified().unwrap());
            Before::Content(content, times)
        };
        match damage {
            Damage::Half => in_place(&|file, content| file.set_len(content.len() as u64 / 2).unwrap()),
            Damage::Empty => in_place(&|file, _| file.set_len(0).unwrap()),
            Damage::Random => in_place(&|file, content| {
                use std::os::unix::fs::FileExt;
                // No text of any form, and as long as before.
                let bytes: Vec<u8> =
                    (0..content.len().max(16)).map(|n| 0x80 | u8::try_from(n * 37 % 127).unwrap()).collect();
                file.write_all_at(&bytes, 0).unwrap();
            }),
            Damage::Unreadable => {
                self.faulty.as_ref().unwrap().set(path, Fault::Unreadable);
                self.touch(&place);
                Before::Faulty
            }
            Damage::Directory | Damage::File | Damage::Fifo | Damage::Link | Damage::Removed => {
                let number = self.moved.fetch_add(1, Ordering::Relaxed);
                let away = self.store.dir.path().join(format!("moved-{number}"));
                fs::rename(&place, &away).unwrap();
                match damage {
                    Damage::Directory => fs::create_dir(&place).unwrap(),
                    Damage::File => fs::write(&place, "a file").unwrap(),
                    Damage::Fifo => {
                        rustix::fs::mknodat(CWD, &place, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
                    }
                    Damage::Link => symlink("/etc/shadow", &place).unwrap(),
                    _ => {}
                }
                Before::Moved(away)
            }
        }
    }

    /// What a disk's error does not do: the time of a change tells that something happened.
    fn touch(&self, place: &Path) {
        let meta = fs::symlink_metadata(place).unwrap();
        let time = rustix::fs::Timespec {
            tv_sec: std::os::unix::fs::MetadataExt::mtime(&meta),
            tv_nsec: std::os::unix::fs::MetadataExt::mtime_nsec(&meta),
        };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, place, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }

    fn restore(&self, path: &Path, before: Before) {
        let place = self.store.data.join(path);
        match before {
            Before::Moved(away) => {
                match fs::symlink_metadata(&place) {
                    Ok(meta) if meta.is_dir() => fs::remove_dir_all(&place).unwrap(),
                    Ok(_) => fs::remove_file(&place).unwrap(),
                    Err(_) => {}
                }
                fs::rename(away, place).unwrap();
            }
            Before::Content(content, times) => {
                fs::write(&place, content).unwrap();
                File::options().write(true).open(&place).unwrap().set_times(times).unwrap();
            }
            Before::Faulty => {
                self.faulty.as_ref().unwrap().clear();
                self.touch(&place);
            }
        }
    }

    /// The path as the mount's messages name it.
    fn shown_path(&self, path: &Path) -> String {
        let source = self.faulty.as_ref().map_or(self.store.data.as_path(), Faulty::path);
        source.join(path).to_str().unwrap().to_owned()
    }

    /// What `status` says of damage: object and reason in one line, and the images.
    fn told(&self) -> Vec<(String, BTreeSet<String>)> {
        let status = self.status();
        let entry = |entry: &Value| {
            let line = format!("{}: {}", entry["object"].as_str().unwrap(), entry["reason"].as_str().unwrap());
            let images = entry["images"].as_array().unwrap().iter();
            (line, images.map(|id| id.as_str().unwrap().trim_start_matches("sha256:").to_owned()).collect())
        };
        status["damage"].as_array().unwrap().iter().map(entry).collect()
    }

    fn is_whole(&self) -> bool {
        self.told().is_empty() && self.differences(&Effect::default()).is_empty()
    }

    /// Asks for what a size is told in.
    fn ask_for_sizes(&self, images: &BTreeSet<String>) {
        for id in images {
            let _told = fs::read(self.mount.path().join("by-id").join(id).join("history"));
        }
    }

    /// One case from damage to restoration; what went wrong.
    fn case(&self, path: &Path, damage: Damage, effect: &Effect) -> Vec<String> {
        let name = self.shown_path(path);
        let before = self.damage(path, damage);
        let mut wrong = self.look_at_once(path.starts_with("overlay2"));
        let is_named = eventually(|| {
            if effect.sizes {
                self.ask_for_sizes(&effect.images);
            }
            let told = self.told();
            let named: BTreeSet<String> = told.iter().flat_map(|(_, images)| images.clone()).collect();
            !told.is_empty() && told.iter().all(|(line, _)| line.contains(&name)) && named == effect.images
        });
        if !is_named {
            wrong.push(format!("status does not name it and {:?}, but {:#?}", effect.images, self.told()));
        }
        let served_wrongly = self.differences(effect);
        wrong.extend(served_wrongly);
        for folder in Self::folders_cut_short(path).iter().filter(|_| damage != Damage::Removed) {
            if let Ok(names) = self.names(folder) {
                wrong.push(format!("{folder} lists {names:?}, and no error"));
            }
        }
        for id in &effect.lost {
            if fs::read_dir(self.mount.path().join("merged").join(id)).is_ok() {
                wrong.push(format!("the union of {id} is shown"));
            }
        }
        if effect.container && fs::read_dir(self.mount.path().join("by-container/web/merged")).is_ok() {
            wrong.push("the container's union is shown".to_owned());
        }
        self.restore(path, before);
        if !eventually(|| self.is_whole()) {
            wrong.push(format!("not as before: {:#?} {:#?}", self.told(), self.differences(&Effect::default())));
        }
        if self.mount.server() != Some(self.pid) {
            wrong.push("the daemon is another one".to_owned());
        }
        wrong
    }
}

/// Ends the daemon if a case takes too long, so that whoever waits for it goes on, and fails.
fn watched<T>(pid: u32, what: &str, case: impl FnOnce() -> T) -> T {
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if is_done.recv_timeout(CASE_MAX) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{what}: no answer within {CASE_MAX:?}; the daemon is ended");
                kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
            }
        });
        let result = case();
        drop(done);
        result
    })
}

fn damages(path: &Path) -> &'static [Damage] {
    let meta = fs::symlink_metadata(path).unwrap();
    match () {
        () if meta.is_dir() => &OF_DIRECTORIES,
        () if meta.is_file() => &OF_FILES,
        // A link to a layer's directory.
        () => &[Damage::Directory, Damage::File, Damage::Fifo, Damage::Link, Damage::Removed],
    }
}

/// Runs cases, a share of all on a store of its own.
fn run_all(is_faulty: bool, cases: impl Fn(&Store) -> Vec<(PathBuf, Damage)> + Sync) {
    let begun = Instant::now();
    let (mut count, mut failures) = (0, Vec::new());
    std::thread::scope(|scope| {
        let cases = &cases;
        let share = move |worker: usize| {
            let bench = Bench::new(is_faulty);
            let mut done = 0;
            let mut failures = Vec::new();
            for (path, damage) in cases(&bench.store).into_iter().skip(worker).step_by(WORKERS) {
                let Some(effect) = bench.store.effect(&path, damage) else { continue };
                let what = format!("{} {damage:?}", path.display());
                let wrong = watched(bench.pid, &what, || bench.case(&path, damage, &effect));
                done += 1;
                if !wrong.is_empty() {
                    failures.push(format!("{what}:\n    {}", wrong.join("\n    ")));
                    if failures.len() > 5 {
                        break;
                    }
                }
            }
            (done, failures)
        };
        let workers: Vec<_> = (0..WORKERS).map(|worker| scope.spawn(move || share(worker))).collect();
        for worker in workers {
            let (done, wrong) = worker.join().unwrap();
            count += done;
            failures.extend(wrong);
        }
    });
    eprintln!("{count} cases in {:.0} s", begun.elapsed().as_secs_f32());
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
    assert!(count > 30, "only {count} cases were found");
}

#[test]
fn every_file_damaged_in_each_way_is_named_and_spoils_nothing_else() {
    if !require_privileges("a mount") {
        return;
    }
    run_all(false, |store| {
        let each = |path: PathBuf| {
            let ways = damages(&store.data.join(&path));
            ways.iter().map(move |damage| (path.clone(), *damage)).collect::<Vec<_>>()
        };
        store.paths().into_iter().flat_map(each).collect()
    });
}

/// As root may read everything, a disk says so.
#[test]
fn every_file_that_cannot_be_read_is_named_and_spoils_nothing_else() {
    if !require_privileges("a mount") {
        return;
    }
    run_all(true, |store| {
        let is_read = |path: &PathBuf| {
            let meta = fs::symlink_metadata(store.data.join(path)).unwrap();
            // Of a directory inside the driver's folder only the names are read, when it is listed.
            // The images that are known go on without their list.
            meta.is_file() || path.ends_with("layerdb/sha256") || path.ends_with("metadata/sha256")
        };
        let in_use = |path: &PathBuf| !path.starts_with("overlay2") && is_read(path);
        store.paths().into_iter().filter(in_use).map(|path| (path, Damage::Unreadable)).collect()
    });
}

#[test]
fn files_that_are_not_read_may_be_anything() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new(false);
    let lone = bench.store.images.iter().find(|image| image.layers.len() == 1).unwrap();
    let sentinel = Path::new("image/overlay2/imagedb/content/sha256").join(&lone.id.0);
    let mut seen = 0;
    for damage in OF_FILES.into_iter().chain([Damage::File]) {
        let is_unused = |path: &PathBuf| {
            let ways = damages(&bench.store.data.join(path));
            ways.contains(&damage) && bench.store.effect(path, damage).is_none() && !path.ends_with(&lone.id.0)
        };
        let unused: Vec<PathBuf> = bench.store.paths().into_iter().filter(is_unused).collect();
        // What is in a directory that is damaged itself needs no damage.
        let tops =
            unused.iter().filter(|path| !path.ancestors().skip(1).any(|above| unused.iter().any(|p| p == above)));
        let is_content = |path: &&PathBuf| path.starts_with("image/overlay2/imagedb/content");
        let damaged: Vec<_> =
            tops.filter(|path| !is_content(path)).map(|path| (path, bench.damage(path, damage))).collect();
        seen += damaged.len();
        // When this is seen, the others would have been too.
        let before = bench.damage(&sentinel, Damage::Random);
        let effect = bench.store.effect(&sentinel, Damage::Random).unwrap();
        let name = bench.shown_path(&sentinel);
        let is_alone = |told: &[(String, BTreeSet<String>)]| told.len() == 1 && told[0].0.contains(&name);
        assert!(eventually(|| !bench.told().is_empty()), "{damage:?}: the image's config is not named");
        assert!(is_alone(&bench.told()), "{damage:?}: {:#?}", bench.told());
        assert_eq!(bench.differences(&effect), Vec::<String>::new(), "{damage:?}");
        bench.restore(&sentinel, before);
        for (path, before) in damaged {
            bench.restore(path, before);
        }
        assert!(eventually(|| bench.is_whole()), "{damage:?}: {:#?}", bench.differences(&Effect::default()));
    }
    assert!(seen > 60, "only {seen} files are not read");
}

#[test]
fn damage_at_the_start_is_told_with_the_exit_code() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new(false);
    let (store, other) = (&bench.store, bench.store.dir.path().join("other"));
    let image = &store.images[0];
    let layer = Path::new("image/overlay2/layerdb/sha256").join(&image.layers[1].chain_id);
    let config = Path::new("containers").join(&store.container.id).join("config.v2.json");
    let diff = Path::new("overlay2").join(&image.layers[1].cache_id).join("diff");
    let mut cases = vec![(PathBuf::from("image/overlay2/imagedb/content/sha256"), Damage::Fifo)];
    cases.extend([Damage::Removed, Damage::Link].map(|damage| (PathBuf::from("containers"), damage)));
    cases.extend(OF_DIRECTORIES.map(|damage| (diff.clone(), damage)));
    for damage in OF_FILES {
        cases.push((Path::new("image/overlay2/imagedb/content/sha256").join(&image.id.0), damage));
        cases.push((layer.join("cache-id"), damage));
        cases.push((PathBuf::from("image/overlay2/repositories.json"), damage));
        cases.push((config.clone(), damage));
    }
    for (path, damage) in cases {
        let before = bench.damage(&path, damage);
        let second = Mounted::with(&store.data, &other, &[], 4);
        let name = bench.shown_path(&path);
        assert!(second.stderr.contains(&name), "{} {damage:?}: {}", path.display(), second.stderr);
        let served = fs::read_to_string(other.join("by-tag/none:1/history"));
        assert!(served.is_ok() || path.ends_with("repositories.json") || path.ends_with("sha256"), "{served:?}");
        drop(second);
        bench.restore(&path, before);
    }
}

/// A file inside a layer is content: it is shown as it is. But whatever it turns into, nobody waits for it.
#[test]
fn a_layers_file_that_becomes_a_pipe_hangs_nobody() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new(false);
    let lone = bench.store.images.iter().find(|image| image.layers.len() == 1).unwrap();
    let path = Path::new("overlay2").join(&lone.layers[0].cache_id).join("diff/alone");
    let shown = bench.mount.path().join("merged").join(&lone.id.0).join("alone");
    fs::symlink_metadata(&shown).unwrap();
    for damage in [Damage::Fifo, Damage::Link, Damage::Directory, Damage::Removed] {
        let before = bench.damage(&path, damage);
        let read = watched(bench.pid, "reading a pipe", || fs::read(&shown));
        // What the kernel has read already is the file's.
        assert!(read.as_ref().map_or(true, |content| content == b"alone"), "{damage:?}: {read:?}");
        bench.restore(&path, before);
        assert_eq!(fs::read(&shown).unwrap(), b"alone", "{damage:?}");
        assert_eq!(bench.mount.server(), Some(bench.pid));
    }
}

/// Three layers that each have `same` with other content, an image of them, and a container.
struct Stacked {
    dir: TempDir,
    data: PathBuf,
    layers: Vec<LayerRef>,
    image: ImageId,
}

impl Stacked {
    fn new() -> Self {
        let dir = support::scratch("damage");
        let mut store = StoreBuilder::new(dir.path().join("docker"));
        let layers = store.chain(3);
        for (number, layer) in layers.iter().enumerate() {
            write(&layer.diff_dir().join("same"), &format!("from{number}"));
            write(&layer.diff_dir().join(format!("etc/only-{number}")), &number.to_string());
        }
        let image = store.image(&layers);
        store.tag("app:1", &image);
        store.container("web", &image, layers.last());
        let data = store.finish();
        Self { dir, data, layers, image }
    }

    fn mount(&self, name: &str) -> Mounted {
        Mounted::new(&self.data, &self.dir.path().join(name))
    }

    /// Whether a union shows what it should, all of it.
    fn is_right(&self, mount: &Mounted) -> bool {
        let union = mount.path().join("merged/app:1");
        let same = fs::read_to_string(union.join("same"));
        same.is_ok_and(|same| same == "from2")
            && (0..3).all(|n| fs::read_to_string(union.join(format!("etc/only-{n}"))).is_ok())
    }
}

fn names_in(dir: &Path) -> Result<BTreeSet<String>, i32> {
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.map_err(|error| error.raw_os_error().unwrap())?;
    Ok(entries.into_iter().map(|entry| entry.file_name().into_string().unwrap()).collect())
}

#[test]
fn a_layer_whose_directory_is_another_for_a_moment_leaves_nothing_wrong() {
    if !require_privileges("a mount") {
        return;
    }
    let store = Stacked::new();
    let mount = store.mount("mnt");
    let (top, aside) = (&store.layers[2], store.dir.path().join("aside"));
    for (round, place) in [top.diff_dir(), top.dir.clone()].iter().cycle().take(12).enumerate() {
        fs::rename(place, &aside).unwrap();
        fs::create_dir_all(top.diff_dir()).unwrap();
        // For now that directory is the layer, once this is noticed.
        for _ in 0..round * 20 {
            let _read = store.is_right(&mount);
            std::thread::sleep(Duration::from_millis(2));
        }
        fs::remove_dir_all(place).unwrap();
        fs::rename(&aside, place).unwrap();
        assert!(eventually(|| store.is_right(&mount)), "round {round}: it is not as before");
        let by_chain = mount.path().join("by-chain").join(&top.chain_id);
        assert!(eventually(|| fs::read_to_string(by_chain.join("same")).is_ok_and(|same| same == "from2")));
    }
}

#[test]
fn layers_that_change_places_are_mixed_in_no_union() {
    if !require_privileges("a mount") {
        return;
    }
    let store = Stacked::new();
    let mount = store.mount("mnt");
    assert!(store.is_right(&mount));
    let held = File::open(mount.path().join("merged/app:1")).unwrap();
    let [one, other] = [1, 2].map(|number: usize| store.layers[number].dir.clone());
    rustix::fs::renameat_with(CWD, &one, CWD, &other, rustix::fs::RenameFlags::EXCHANGE).unwrap();
    let expected = tree::snapshot(&store.mount("other").path().join("merged/app:1"), &options());
    let shown = || tree::walk(&mount.path().join("merged/app:1"), &options());
    assert!(eventually(|| {
        let walk = shown();
        walk.troubles.is_empty() && tree::diff(&expected, &walk.tree).is_empty()
    }));
    // Who was there before is told.
    let old = rustix::fs::openat(&held, "same", rustix::fs::OFlags::RDONLY, Mode::empty()).map(File::from);
    let old = old.map(|mut file| std::io::read_to_string(&mut file).map_err(|error| error.raw_os_error()));
    assert!(old.as_ref().map_or(true, |read| read.as_ref().map_or(true, |same| same == "from2")), "{old:?}");
}

#[test]
fn a_file_that_has_the_number_of_another_in_a_restored_layer_is_read_right() {
    if !require_privileges("a mount") {
        return;
    }
    let store = Stacked::new();
    let diff = store.layers[2].diff_dir();
    let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let write_at = |path: &Path, content: &str| {
        fs::write(path, content).unwrap();
        File::options().write(true).open(path).unwrap().set_times(FileTimes::new().set_modified(time)).unwrap();
    };
    write_at(&diff.join("a"), "AAAA");
    write_at(&diff.join("b"), "BBBB");
    let mount = store.mount("mnt");
    let union = mount.path().join("merged/app:1");
    let held = ["a", "b"].map(|name| File::open(union.join(name)).unwrap());
    assert_eq!(["a", "b"].map(|name| fs::read_to_string(union.join(name)).unwrap()), ["AAAA", "BBBB"]);
    let old = store.dir.path().join("old");
    fs::rename(&diff, &old).unwrap();
    fs::create_dir(&diff).unwrap();
    // Each has the other's number now.
    fs::rename(old.join("b"), diff.join("a")).unwrap();
    fs::rename(old.join("a"), diff.join("b")).unwrap();
    write_at(&diff.join("a"), "AAAA");
    write_at(&diff.join("b"), "BBBB");
    let read = |name: &str| fs::read_to_string(union.join(name));
    assert!(eventually(|| {
        let (a, b) = (read("a"), read("b"));
        assert!(a.as_ref().map_or(true, |a| a == "AAAA") && b.as_ref().map_or(true, |b| b == "BBBB"), "{a:?} {b:?}");
        a.is_ok() && b.is_ok()
    }));
    drop(held);
}

#[test]
fn what_was_damaged_only_when_it_was_mounted_is_whole_soon() {
    if !require_privileges("a mount") {
        return;
    }
    let store = Stacked::new();
    let aside = store.dir.path().join("aside");
    for (number, is_gone_at_first) in [(0, true), (1, true), (2, true), (1, false)] {
        let place = store.layers[number].dir.clone();
        if is_gone_at_first {
            fs::rename(&place, &aside).unwrap();
            let mount = Mounted::with(&store.data, &store.dir.path().join("mnt"), &[], 4);
            fs::rename(&aside, &place).unwrap();
            assert!(eventually(|| store.is_right(&mount)), "layer {number} stays damaged");
        } else {
            let mount = store.mount("mnt");
            fs::rename(&place, &aside).unwrap();
            let damage = || fs::read_to_string(mount.path().join("status")).unwrap().contains("directory is gone");
            assert!(eventually(damage), "layer {number} is not missed");
            fs::rename(&aside, &place).unwrap();
            assert!(eventually(|| store.is_right(&mount)), "layer {number} stays damaged");
        }
    }
}

#[test]
fn more_and_more_damage_hides_no_other_change() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("damage");
    let mut store = StoreBuilder::new(dir.path().join("docker"));
    let images: Vec<_> = (0..40)
        .map(|number| {
            let layer = store.layer(None);
            let image = store.image(std::slice::from_ref(&layer));
            store.tag(&format!("app:{number}"), &image);
            (layer, image)
        })
        .collect();
    let data = store.finish();
    let mount = Mounted::new(&data, &dir.path().join("mnt"));
    let references = data.join("image/overlay2/repositories.json");
    let text = fs::read_to_string(&references).unwrap().replace("app:0\"", "app:new\"");
    fs::write(dir.path().join("new"), text).unwrap();
    fs::rename(dir.path().join("new"), &references).unwrap();
    let mut damaged = images.iter().skip(1);
    let mut next = Instant::now();
    let is_seen = eventually(|| {
        if Instant::now() >= next
            && let Some((layer, _)) = damaged.next()
        {
            fs::rename(&layer.layerdb, dir.path().join(&layer.chain_id)).unwrap();
            symlink("/etc", &layer.layerdb).unwrap();
            next = Instant::now() + Duration::from_millis(500);
        }
        names_in(&mount.path().join("by-tag")).is_ok_and(|names| names.contains("app:new"))
    });
    assert!(is_seen && damaged.len() > 0, "the new tag is not seen");
}

#[test]
fn a_folder_of_the_store_that_is_replaced_or_lost_is_no_empty_one() {
    if !require_privileges("a mount") {
        return;
    }
    for (lost, is_copied, folders) in [
        (&["image/overlay2"][..], true, &["by-tag", "by-id", "by-chain", "merged", "by-container"][..]),
        (&["overlay2"], true, &["by-tag", "merged"]),
        (&["image/overlay2/imagedb/content", "image/overlay2/repositories.json"], false, &["by-id", "merged"]),
        (&["image/overlay2/layerdb/sha256"], false, &["by-chain", "by-diff"]),
    ] {
        let store = Stacked::new();
        let mount = store.mount("mnt");
        let whole = folders.iter().map(|folder| names_in(&mount.path().join(folder)).unwrap()).collect::<Vec<_>>();
        for (number, place) in lost.iter().enumerate() {
            let (place, aside) = (store.data.join(place), store.dir.path().join(format!("aside-{number}")));
            fs::rename(&place, &aside).unwrap();
            if is_copied {
                let copied = std::process::Command::new("cp").arg("-a").args([&aside, &place]).status();
                assert!(copied.unwrap().success());
                // The old one is gone, and what is held of it is empty.
                fs::remove_dir_all(&aside).unwrap();
            }
        }
        for (folder, whole) in folders.iter().zip(&whole) {
            let is_told = eventually(|| match names_in(&mount.path().join(folder)) {
                Err(errno) => errno == libc::EIO,
                Ok(names) => {
                    assert!(names.is_superset(whole), "{lost:?}: {folder} lists {names:?}");
                    false
                }
            });
            assert!(is_told, "{lost:?}: {folder} says nothing");
        }
        let status = fs::read_to_string(mount.path().join("status")).unwrap();
        assert!(status.contains(store.data.join(lost[0]).to_str().unwrap()), "{lost:?}: {status}");
    }
}

#[test]
fn a_container_shows_its_sound_layers() {
    if !require_privileges("a mount") {
        return;
    }
    let store = Stacked::new();
    fs::remove_dir_all(store.layers[1].diff_dir()).unwrap();
    let mount = Mounted::with(&store.data, &store.dir.path().join("mnt"), &[], 4);
    let layers = mount.path().join("by-container/web/layers");
    let expected: BTreeSet<String> = ["0", "0.json", "1.json", "2", "2.json"].map(str::to_owned).into();
    assert_eq!(names_in(&layers), Ok(expected));
    assert_eq!(fs::read_to_string(layers.join("2/same")).unwrap(), "from2");
    assert_eq!(names_in(&layers.join("1")), Err(libc::EIO));
    // Without the image nobody knows what they are.
    fs::remove_file(store.data.join("image/overlay2/imagedb/content/sha256").join(&store.image.0)).unwrap();
    let mount = Mounted::with(&store.data, &store.dir.path().join("mnt-2"), &[], 4);
    assert_eq!(names_in(&mount.path().join("by-container/web/layers")), Err(libc::EIO));
}
