//! Whole data roots with random damage of their bytes, names and types.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use crate::containerd::{self, Databases};
use crate::graph::GraphBuilder;
use crate::mutate::{Dice, change};
use crate::storage::StorageBuilder;
use crate::store::StoreBuilder;
use crate::{Reopened, scratch, walk};

/// A kind of store, and where its files are.
pub(crate) struct Sort {
    /// The folders that an open store holds.
    held: &'static [&'static str],
    /// What else there is, in the directory of the store.
    others: &'static [&'static str],
    make: fn(&Path) -> Option<Databases>,
}

pub(crate) const DOCKER: Sort =
    Sort { held: &["image/overlay2", "overlay2"], others: &["containers"], make: make_docker };
pub(crate) const GRAPH: Sort = Sort {
    held: &["graph", "aufs/diff", "aufs/layers", "aufs/mnt"],
    others: &["containers", "repositories-aufs"],
    make: make_graph,
};
pub(crate) const STORAGE: Sort = Sort {
    held: &["overlay-images", "overlay-layers", "overlay-containers", "overlay"],
    others: &[],
    make: make_storage,
};
pub(crate) const CONTAINERD: Sort = Sort {
    held: &[
        "io.containerd.metadata.v1.bolt",
        "io.containerd.content.v1.content",
        "io.containerd.snapshotter.v1.overlayfs",
        "io.containerd.snapshotter.v1.native",
    ],
    others: &[],
    make: |root| Some(containerd::make(root)),
};

/// A small store, copied for each input.
pub(crate) struct Template {
    sort: Sort,
    dir: tempfile::TempDir,
    /// Everything in it, directories before what they hold.
    paths: Vec<PathBuf>,
    /// The copy that is damaged.
    root: PathBuf,
    store: Reopened,
    databases: Option<Databases>,
}

fn make_docker(root: &Path) -> Option<Databases> {
    let mut store = StoreBuilder::new(root);
    let layers = store.chain(3);
    for (n, layer) in layers.iter().enumerate() {
        fs::create_dir_all(layer.diff_dir().join("etc/sub")).unwrap();
        fs::write(layer.diff_dir().join("etc/common"), n.to_string()).unwrap();
        fs::write(layer.diff_dir().join(format!("etc/sub/of-{n}")), n.to_string()).unwrap();
        symlink("common", layer.diff_dir().join("etc/link")).unwrap();
    }
    let app = store.image(&layers);
    store.tag("app:1", &app);
    store.tag("reg.example:5000/team/app:2", &app);
    store.digest("app", &"d".repeat(64), &app);
    let below = store.image(&layers[..2]);
    store.image_parent(&app, &below);
    let empty = store.image(&[]);
    store.tag("empty:1", &empty);
    let container = store.container("web", &app, layers.last());
    container.write_init_files();
    fs::write(container.upper_dir().join("log"), "log").unwrap();
    store.finish();
    None
}

fn make_graph(root: &Path) -> Option<Databases> {
    let mut graph = GraphBuilder::new(root);
    let base = graph.image(None);
    let middle = graph.image(Some(&base));
    let top = graph.image(Some(&middle));
    let lone = graph.image(None);
    for (id, files) in [
        (&base, &["etc/hosts", "opt/old"][..]),
        (&middle, &["etc/.wh.hosts", "opt/.wh..wh..opq", "opt/new"]),
        (&lone, &["lone"]),
    ] {
        for file in files {
            let path = graph.diff(id).join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
    }
    fs::write(graph.entry(&top).join("parent"), &middle).unwrap();
    graph.tag("app", "1", &top);
    graph.tag("reg.example:5000/team/app", "2", &middle);
    graph.container("web", &top);
    None
}

fn make_storage(root: &Path) -> Option<Databases> {
    let mut store = StorageBuilder::new(root, "overlay");
    let base = store.layer("base", None);
    let top = store.layer("top", Some(&base));
    let parts = store.layer("parts", Some(&base));
    store.entry(&parts).remove("diff-size");
    let app = store.image(&["localhost/app:1", "docker.io/library/app:latest"], &[&base, &top]);
    let in_parts = store.image(&["localhost/parts:1"], &[&base, &parts]);
    let untagged = store.image(&[], &[&base]);
    let digests = [(store.digest_of(&in_parts), "s390x"), (store.digest_of(&untagged), "amd64")];
    store.list(&["localhost/list:1"], &digests.each_ref().map(|(digest, arch)| (digest.as_str(), *arch)));
    let (container, layer, _) = store.container("web", &app, &top);
    store.containers.push(container);
    store.layers.push(layer);
    let (container, layer, _) = store.container("brief", &app, &top);
    store.volatile_containers.push(container);
    store.volatile_layers.push(layer);
    fs::write(root.join("overlay/.has-mount-program"), "true").unwrap();
    store.write();
    None
}

impl Template {
    pub(crate) fn new(sort: Sort) -> Self {
        let dir = scratch();
        let template = dir.path().join("template");
        let databases = (sort.make)(&template);
        let mut paths = Vec::new();
        list(&template, Path::new(""), &mut paths);
        let root = dir.path().join("root");
        copy(&template, &root);
        Self { sort, paths, store: Reopened::of(&root).unwrap(), root, dir, databases }
    }

    pub(crate) fn try_one(&mut self, seed: u64) {
        let mut dice = Dice::new(seed);
        let is_new = dice.one_in(50);
        if is_new {
            // The folders that an open store holds may be anything as well.
            make_writable(&self.root);
            fs::remove_dir_all(&self.root).unwrap();
            copy(&self.dir.path().join("template"), &self.root);
        }
        for _ in 0..1 + dice.below(5) {
            match self.databases.is_some() && dice.one_in(2) {
                true => self.damage_databases(&mut dice),
                false => self.damage(is_new, &mut dice),
            }
        }
        // What cannot be opened at all says so; here that is as good.
        let opened = if is_new { Reopened::of(&self.root) } else { Ok(self.store.clone()) };
        if let Ok((store, view)) = opened.and_then(|store| Ok((store.clone(), store.view()?))) {
            walk::all(&view);
            // And once more, as a store that changes under a view that knows it.
            self.damage(is_new, &mut dice);
            store.change();
            walk::after_a_change(&view);
        }
        if is_new {
            make_writable(&self.root);
            fs::remove_dir_all(&self.root).unwrap();
            copy(&self.dir.path().join("template"), &self.root);
            self.store = Reopened::of(&self.root).unwrap();
        } else {
            self.restore();
        }
    }

    /// Puts back what is in the folders that the open store holds.
    fn restore(&self) {
        let template = self.dir.path().join("template");
        for folder in self.sort.held {
            let (from, to) = (template.join(folder), self.root.join(folder));
            make_writable(&to);
            for entry in fs::read_dir(&to).unwrap() {
                remove(&entry.unwrap().path());
            }
            for entry in fs::read_dir(from).unwrap() {
                let entry = entry.unwrap();
                copy(&entry.path(), &to.join(entry.file_name()));
            }
        }
        for other in self.sort.others {
            remove(&self.root.join(other));
            copy(&template.join(other), &self.root.join(other));
        }
    }

    /// A change of what a store's databases say, where it has any.
    fn damage_databases(&self, dice: &mut Dice) {
        let Some(databases) = &self.databases else { return };
        if dice.one_in(2) {
            databases.damage(&self.root, dice);
            return;
        }
        let files: Vec<&PathBuf> = self.paths.iter().filter(|path| path.components().any(is_blobs)).collect();
        let texts = files.iter().filter_map(|path| fs::read(self.dir.path().join("template").join(path)).ok());
        let texts: Vec<Vec<u8>> = texts.collect();
        let mut text = dice.of(&texts);
        for _ in 0..dice.below(4) {
            change(&mut text, &texts, dice);
        }
        containerd::add_blob(&self.root, &mut databases.clone(), &text, dice);
    }

    /// One change; some change nothing, as what they are for is gone.
    fn damage(&self, is_new: bool, dice: &mut Dice) {
        let is_dir = |path: &Path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
        let mut choose = || {
            let path = dice.of(&self.paths);
            let is_held = self.sort.held.iter().any(|held| Path::new(held).starts_with(&path));
            // Nothing is done through a link that a change before has put there: it may lead out of the store.
            let is_inside = |path: &Path| path.ancestors().skip(1).take_while(|dir| *dir != self.root).all(is_dir);
            (is_new || !is_held).then(|| self.root.join(path)).filter(|path| is_inside(path))
        };
        let (Some(path), Some(other)) = (choose(), choose()) else { return };
        let Ok(meta) = fs::symlink_metadata(&path) else { return };
        // Whoever opens a pipe waits.
        let is_file = |path: &Path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
        match dice.below(12) {
            0..=3 if meta.is_file() => {
                let mut content = fs::read(&path).unwrap_or_default();
                let more = if is_file(&other) { fs::read(&other).unwrap_or_default() } else { Vec::new() };
                let corpus = [content.clone(), more];
                for _ in 0..1 + dice.below(3) {
                    change(&mut content, &corpus, dice);
                }
                fs::write(&path, content).unwrap_or_default();
            }
            4 => remove(&path),
            5 => {
                remove(&path);
                match dice.below(5) {
                    0 => fs::write(&path, "a file").unwrap_or_default(),
                    1 => fs::create_dir(&path).unwrap_or_default(),
                    2 => {
                        let target: &[u8] = dice.of(&[&b"/etc/shadow"[..], b"..", b".", b"/", b"nowhere"]);
                        symlink(OsStr::from_bytes(target), &path).unwrap_or_default();
                    }
                    3 => node(&path, FileType::Fifo),
                    _ => node(&path, FileType::Socket),
                }
            }
            6 => fs::rename(&path, &other).unwrap_or_default(),
            7 if meta.is_file() && is_file(&other) => drop(fs::copy(&path, &other)),
            8 => {
                // Another object of the same kind, with an odd name.
                let names: [&[u8]; 6] = [
                    b"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
                    b"FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF",
                    b".tmp-1",
                    b"\xff\n\x1b[31m",
                    b"x-removing",
                    b"size",
                ];
                let to = path.with_file_name(OsStr::from_bytes(dice.of(&names)));
                if meta.is_dir() {
                    copy(&path, &to);
                } else if meta.is_file() && (is_file(&to) || fs::symlink_metadata(&to).is_err()) {
                    drop(fs::copy(&path, &to));
                }
            }
            9 => {
                let names = ["opaque", "redirect", "metacopy", "whiteout", "origin"];
                let values: [&[u8]; 7] = [b"y", b"x", b"", b"/etc", b"sub", b"/etc/../..", &[b'/'; 5_000]];
                let (name, value) = (dice.of(&names), dice.of(&values));
                for prefix in ["trusted", "user"] {
                    let name = format!("{prefix}.overlay.{name}");
                    // Not all files can have them, nor may all users set them.
                    let _set = rustix::fs::lsetxattr(&path, name, value, XattrFlags::empty());
                }
            }
            10 if !meta.is_symlink() => {
                // What others than root may not read, they are told; nothing is found by that.
                let least = if rustix::process::geteuid().is_root() { 0 } else { 0o500 };
                drop(fs::set_permissions(&path, fs::Permissions::from_mode(dice.of(&[least, 0o700, 0o7777]))))
            }
            11 if meta.is_file() => {
                let file = fs::File::options().write(true).open(&path);
                let length = dice.of(&[0, 1, 4_096, 5_000, 1 << 24, (1 << 24) + 1]);
                file.and_then(|file| file.set_len(length)).unwrap_or_default();
            }
            _ => {}
        }
    }
}

fn is_blobs(part: Component<'_>) -> bool {
    part.as_os_str() == "sha256"
}

fn list(root: &Path, below: &Path, paths: &mut Vec<PathBuf>) {
    let mut names: Vec<_> = fs::read_dir(root.join(below)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let path = below.join(name);
        let is_dir = fs::symlink_metadata(root.join(&path)).unwrap().is_dir();
        paths.push(path.clone());
        if is_dir {
            list(root, &path, paths);
        }
    }
}

fn node(path: &Path, kind: FileType) {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), 0).unwrap_or_default();
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).unwrap_or_default(),
        Ok(_) => fs::remove_file(path).unwrap_or_default(),
        Err(_) => {}
    }
}

/// Copies what can be copied, which is all of the template.
fn copy(from: &Path, to: &Path) {
    let Ok(meta) = fs::symlink_metadata(from) else { return };
    let kind = meta.file_type();
    if kind.is_dir() {
        // Not into itself.
        if to.starts_with(from) || fs::create_dir(to).is_err() {
            return;
        }
        for entry in fs::read_dir(from).into_iter().flatten().flatten() {
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else if kind.is_symlink() {
        symlink(fs::read_link(from).unwrap_or_default(), to).unwrap_or_default();
    } else if kind.is_file() {
        drop(fs::copy(from, to));
    }
}

/// So that it can be removed by others than root too.
fn make_writable(dir: &Path) {
    drop(fs::set_permissions(dir, fs::Permissions::from_mode(0o700)));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            make_writable(&entry.path());
        }
    }
}
