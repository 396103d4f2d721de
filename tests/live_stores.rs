//! Stores of podman and containerd that change while they are mounted: new names are shown, old ones vanish, and who has
//! something open is told that it is gone, and never shown something else in its place.

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
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use fixture::{Item, Store, at, folder};
use rustix::io::Errno;
use support::eventually;
use support::mount::{Mounted, require_privileges};
use support::storage::StorageBuilder;

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

/// What became of a file, where it is not this content.
fn gone(path: &Path) -> Option<Errno> {
    match fs::read_to_string(path) {
        Ok(_) => None,
        Err(error) => Errno::from_io_error(&error),
    }
}

/// Looks without pause at files of which each has one content, and asserts that it never is another.
fn watched(files: &[(PathBuf, &str)], change: impl FnOnce()) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (path, content) in files {
            let is_over = &is_over;
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    match fs::read_to_string(path) {
                        Ok(found) => assert_eq!(found, **content, "{}", path.display()),
                        Err(error) => {
                            let known = [Errno::NOENT, Errno::STALE].map(|errno| Some(errno.raw_os_error()));
                            assert!(known.contains(&error.raw_os_error()), "{}: {error}", path.display());
                        }
                    }
                }
            });
        }
        // So that who looks ends, also where a change fails.
        struct End<'a>(&'a AtomicBool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _end = End(&is_over);
        change();
    });
}

#[test]
fn podmans_lists_are_followed() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("live-storage");
    let mut store = StorageBuilder::new(&dir.path().join("root"), "overlay");
    let (base, top) = (store.layer("base", None), store.layer("lone", None));
    store.image(&["localhost/base:1"], &[&base]);
    store.image(&["localhost/lone:1"], &[&top]);
    store.write();
    let mount = Mounted::new(store.root(), &dir.path().join("mnt"));
    let at = |path: &str| mount.path().join(path);
    let listed = || names(&at("merged/localhost"));
    assert_eq!(listed(), set(["base:1", "lone:1"]));
    let mut held = File::open(at("merged/localhost/lone:1/lone")).unwrap();
    let files = [(at("merged/localhost/base:1/base"), "base\n"), (at("merged/localhost/lone:1/lone"), "lone\n")];
    watched(&files, || {
        // A new name, and another image for it.
        store.images[0]["names"] = serde_json::json!(["localhost/base:1", "localhost/new:1"]);
        store.write();
        assert!(eventually(|| listed() == set(["base:1", "lone:1", "new:1"])));
        assert_eq!(fs::read_to_string(at("merged/localhost/new:1/base")).unwrap(), "base\n");
        // An image goes as the engine removes it: its record, its layer's, and then the files.
        let image = store.images.pop().unwrap();
        store.write();
        assert!(eventually(|| listed() == set(["base:1", "new:1"])));
        let layer = store.layers.pop().unwrap();
        store.write();
        fs::remove_dir_all(top.dir.parent().unwrap()).unwrap();
        assert_eq!(gone(&at("merged/localhost/lone:1/lone")), Some(Errno::NOENT));
        // Another layer in the same directory is another.
        fs::create_dir_all(&top.dir).unwrap();
        fs::write(top.dir.join("other"), "other").unwrap();
        store.images.push(image);
        store.layers.push(layer);
        store.write();
        assert!(eventually(
            || fs::read_to_string(at("merged/localhost/lone:1/other")).is_ok_and(|text| text == "other")
        ));
        assert_eq!(gone(&at("merged/localhost/lone:1/lone")), Some(Errno::NOENT));
    });
    let mut text = String::new();
    match held.read_to_string(&mut text) {
        Ok(_) => assert_eq!(text, "lone\n"),
        Err(error) => assert_eq!(Errno::from_io_error(&error), Some(Errno::STALE)),
    }
}

#[test]
fn containerds_databases_and_snapshots_are_followed() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("live-containerd");
    let mut store = Store::new(dir.path().join("root"));
    store.image("default", "docker.io/library/base:1", &["base"]);
    let lone = store.image("default", "docker.io/library/lone:1", &["lone"]);
    store.write();
    let mount = Mounted::new(&store.root, &dir.path().join("mnt"));
    let place = |path: &str| mount.path().join(path);
    let listed = || names(&place("merged"));
    assert_eq!(listed(), set(["base:1", "lone:1"]));
    let mut held = File::open(place("merged/lone:1/file-0")).unwrap();
    let files = [(place("merged/base:1/file-0"), "base"), (place("merged/lone:1/file-0"), "lone")];
    watched(&files, || {
        store.image("default", "docker.io/library/new:1", &["new"]);
        store.write();
        assert!(eventually(|| listed() == set(["base:1", "lone:1", "new:1"])));
        // A directory that is another of the same name, as after a restore, holds what it holds.
        let files = &lone.directories[0];
        fs::rename(files, files.with_extension("aside")).unwrap();
        fs::create_dir(files).unwrap();
        fs::write(files.join("other"), "other").unwrap();
        assert!(eventually(|| fs::read_to_string(place("merged/lone:1/other")).is_ok_and(|text| text == "other")));
        assert_eq!(gone(&place("merged/lone:1/file-0")), Some(Errno::NOENT));
        // The name goes, then the snapshot, then the directory.
        at(&mut store.meta, &["v1", "default", "images"]).remove(b"docker.io/library/lone:1".as_slice()).unwrap();
        store.write();
        assert!(eventually(|| listed() == set(["base:1", "new:1"])));
        at(&mut store.meta, &["v1", "default", "snapshots", "overlayfs"]).remove(lone.chains[0].as_bytes()).unwrap();
        store.write();
        fs::remove_dir_all(files.parent().unwrap()).unwrap();
        assert_eq!(gone(&place("merged/lone:1/other")), Some(Errno::NOENT));
    });
    // Another database in the place of the snapshotter's, which knows nothing.
    let database = folder(&store.root, "overlayfs").join("metadata.db");
    let (sound, aside) = (fs::read(&database).unwrap(), database.with_extension("aside"));
    let empty = fixture::Tree::from([(b"v1".to_vec(), Item::Bucket(fixture::Tree::new()))]);
    fs::write(&aside, fixture::database(&empty, 1_000)).unwrap();
    fs::rename(&aside, &database).unwrap();
    assert!(eventually(
        || fs::read_to_string(place("by-tag/base:1/damage")).is_ok_and(|why| why.contains("metadata.db"))
    ));
    fs::write(&aside, sound).unwrap();
    fs::rename(&aside, &database).unwrap();
    assert!(eventually(|| fs::read_to_string(place("merged/base:1/file-0")).is_ok_and(|text| text == "base")));
    assert!(!place("by-tag/base:1/damage").exists());
    let mut text = String::new();
    match held.read_to_string(&mut text) {
        Ok(_) => assert_eq!(text, "lone"),
        Err(error) => assert_eq!(Errno::from_io_error(&error), Some(Errno::STALE)),
    }
}
