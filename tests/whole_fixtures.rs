//! Stores whose layers are whole trees, as fixtures: what no engine makes here (zfs, devicemapper), and what none should
//! make (links, names of layers that lead out, missing trees).

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
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde_json::Value;
use support::mount::{Mounted, Tmpfs, require_privileges};
use support::store::{ContainerRef, LayerRef, StoreBuilder};
use support::whole::WholeStore;
use tempfile::TempDir;

/// An image of two layers with a container, and one of another layer.
struct Fixture {
    dir: TempDir,
    store: WholeStore,
    base: LayerRef,
    top: LayerRef,
    other: LayerRef,
    container: ContainerRef,
}

impl Fixture {
    fn new(driver: &'static str) -> Self {
        Self::made_in(support::scratch("whole"), driver)
    }

    fn made_in(dir: TempDir, driver: &'static str) -> Self {
        let mut store = StoreBuilder::new(dir.path().join("docker"));
        let base = store.layer(None);
        let top = store.layer(Some(&base));
        let app = store.image(&[base.clone(), top.clone()]);
        store.tag("app:1", &app);
        let other = store.layer(None);
        let image = store.image(std::slice::from_ref(&other));
        store.tag("other:1", &image);
        let container = store.container("web", &app, Some(&top));
        let store = WholeStore::of(store, driver);
        let fixture = Self { dir, store, base, top, other, container };
        for (tree, files) in [
            (fixture.store.tree_of(&fixture.base), &["etc/old", "etc/kept"][..]),
            (fixture.store.tree_of(&fixture.top), &["etc/kept", "etc/new"]),
            (fixture.store.tree_of(&fixture.other), &["other"]),
        ] {
            files.iter().for_each(|file| write(&tree.join(file), file));
        }
        fixture.store.list(&fixture.base, &["etc/", "etc/old", "etc/kept"]);
        fixture.store.list(&fixture.top, &["etc/", "etc/.wh.old", "etc/new"]);
        fixture.store.list(&fixture.other, &["other"]);
        let own = fixture.store.tree_of_container(&fixture.container);
        write(&own.join("etc/mine"), "mine");
        if driver != "overlay" {
            let init = fixture.store.tree(&format!("{}-init", fixture.container.mount_id));
            for tree in [&own, &init] {
                write(&tree.join("etc/kept"), "etc/kept");
                write(&tree.join("etc/new"), "etc/new");
            }
        }
        fixture
    }

    fn mount(&self) -> Mounted {
        self.mount_with(0)
    }

    fn mount_damaged(&self) -> Mounted {
        self.mount_with(4)
    }

    fn mount_with(&self, exit: i32) -> Mounted {
        let place = self.dir.path().join("mnt");
        let _ = fs::create_dir(&place);
        Mounted::with(&self.store.root, &place, &[], exit)
    }
}

/// All files have one time, as copies of one file have.
fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::open(path).unwrap().set_modified(time).unwrap();
}

fn status(mount: &Mounted) -> Value {
    serde_json::from_slice(&fs::read(mount.path().join("status")).unwrap()).unwrap()
}

/// What `status` says of an object whose name ends so.
fn damage_of(mount: &Mounted, object: &str) -> String {
    let status = status(mount);
    let found =
        status["damage"].as_array().unwrap().iter().find(|one| one["object"].as_str().unwrap().ends_with(object));
    found.unwrap_or_else(|| panic!("{object} is in {status:#}"))["reason"].as_str().unwrap().to_owned()
}

fn names(dir: PathBuf) -> BTreeSet<String> {
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

fn errno(result: std::io::Result<impl Sized>) -> Option<Errno> {
    result.err().and_then(|error| Errno::from_io_error(&error))
}

#[test]
fn what_has_to_be_mounted_is_shown_where_it_is() {
    if !require_privileges("mounts") {
        return;
    }
    for driver in ["zfs", "devicemapper"] {
        let fixture = Fixture::new(driver);
        let store = &fixture.store;
        let top = store.activate(&fixture.top.cache_id);
        let own = store.activate(&fixture.container.mount_id);
        let mount = fixture.mount_damaged();
        let at = |path: &str| mount.path().join(path);

        assert_eq!(names(at("by-tag")), set(["app:1", "other:1"]));
        assert_eq!(names(at("merged")), set(["app:1"]), "{driver}");
        assert_eq!(names(at("merged/app:1/etc")), set(["kept", "new"]));
        assert_eq!(fs::read(at("merged/app:1/etc/new")).unwrap(), b"etc/new");
        assert_eq!(names(at("by-container/web/merged/etc")), set(["kept", "mine", "new"]));
        // What a layer changes is told by the one below, which is not mounted; nor is the init layer.
        assert_eq!(names(at("by-tag/app:1/layers")), set(["0.json", "1.json"]));
        assert_eq!(errno(fs::metadata(at("by-tag/app:1/layers/1"))), Some(Errno::IO));
        assert_eq!(names(at("by-container/web")), set(["config.json", "layers", "merged"]));
        assert!(!at("by-tag/app:1/damage").exists());

        let why = fs::read_to_string(at("by-tag/other:1/damage")).unwrap();
        assert_eq!(errno(fs::metadata(at("merged/other:1"))), Some(Errno::IO));
        let facts: Value = serde_json::from_slice(&fs::read(at("by-tag/app:1/layers/0.json")).unwrap()).unwrap();
        let told = damage_of(&mount, &fixture.base.cache_id);
        for text in [&why, facts["damage"].as_str().unwrap(), &told] {
            assert!(text.contains("not active") && text.contains("start docker-fs again"), "{text}");
        }
        let id = &fixture.base.cache_id;
        let how = match driver {
            "zfs" => format!("zfs list -o name | grep {id}"),
            _ => format!("'0 20971520 thin POOL {}'", id.bytes().fold(1_u32, |sum, byte| sum + u32::from(byte))),
        };
        assert!(told.contains(&how), "{told}");
        drop(mount);

        // All of it, as another mount sees.
        let init = format!("{}-init", fixture.container.mount_id);
        let rest = [&fixture.base.cache_id, &fixture.other.cache_id, &init].map(|id| store.activate(id));
        let mount = fixture.mount();
        let at = |path: &str| mount.path().join(path);
        assert_eq!(status(&mount)["damage"], serde_json::json!([]), "{driver}");
        assert_eq!(names(at("merged")), set(["app:1", "other:1"]));
        assert_eq!(names(at("by-tag/app:1/layers/0/etc")), set(["kept", "old"]));
        assert_eq!(names(at("by-tag/app:1/layers/1/etc")), set([".wh.old", "new"]));
        assert_eq!(names(at("by-container/web/changes/etc")), set(["mine"]));
        assert_eq!(names(at("by-container/web/init")), set([]));
        drop(mount);
        drop((rest, top, own));
    }
}

#[test]
fn deletions_are_shown_in_the_stored_form_too() {
    if !require_privileges("a mount") {
        return;
    }
    for driver in ["vfs", "overlay"] {
        let fixture = Fixture::new(driver);
        let place = fixture.dir.path().join("mnt");
        fs::create_dir(&place).unwrap();
        let mount = Mounted::with(&fixture.store.root, &place, &["-o", "whiteouts=stored"], 0);
        // As the layer's tar had it.
        assert_eq!(names(mount.path().join("by-tag/app:1/layers/1/etc")), set(["new", ".wh.old"]));
        drop(mount);
        fs::remove_file(fixture.store.list_of(&fixture.top)).unwrap();
        let mount = Mounted::with(&fixture.store.root, &place, &["-o", "whiteouts=stored"], 0);
        let etc = mount.path().join("by-tag/app:1/layers/1/etc");
        assert_eq!(names(etc.clone()), set(["new", "old"]));
        let mark = fs::symlink_metadata(etc.join("old")).unwrap();
        assert!(mark.file_type().is_char_device() && mark.rdev() == 0, "{driver}: {mark:?}");
        assert!(!mount.path().join("merged/app:1/etc/old").exists());
    }
}

#[test]
fn the_layer_below_a_container_is_the_one_of_its_image() {
    if !require_privileges("a mount") {
        return;
    }
    for (content, expected) in [
        (Some("../../../../etc"), "not of its form"),
        (Some(""), "not of its form"),
        (Some("/etc"), "not of its form"),
        (Some("l"), "but the container lies upon"),
        (None, "missing"),
    ] {
        let fixture = Fixture::new("overlay");
        let file = fixture.store.place(&fixture.container.mount_id).join("lower-id");
        match content {
            Some(content) => fs::write(&file, content).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        let mount = fixture.mount_damaged();
        let why = damage_of(&mount, "lower-id");
        assert!(why.contains(expected), "{content:?}: {why}");
        assert_eq!(errno(fs::metadata(mount.path().join("by-container/web/merged"))), Some(Errno::IO));
        assert_eq!(names(mount.path().join("merged")), set(["app:1", "other:1"]));
        assert_eq!(names(mount.path().join("by-container/web/changes/etc")), set(["mine"]));
    }
    // The sound one.
    let fixture = Fixture::new("overlay");
    let mount = fixture.mount();
    assert_eq!(status(&mount)["damage"], serde_json::json!([]));
    assert_eq!(names(mount.path().join("by-container/web/merged/etc")), set(["kept", "mine", "new"]));
    let lower = mount.path().join("by-container/web/merged/etc/new");
    let image = mount.path().join("merged/app:1/etc/new");
    assert_eq!(fs::metadata(lower).unwrap().ino(), fs::metadata(image).unwrap().ino());
}

#[test]
fn a_tree_that_is_missing_or_leads_elsewhere_costs_what_needs_it() {
    if !require_privileges("a mount") {
        return;
    }
    for driver in ["vfs", "btrfs", "overlay"] {
        for is_link in [false, true] {
            let spoil = |tree: &Path| {
                fs::remove_dir_all(tree).unwrap();
                if is_link {
                    symlink("/etc", tree).unwrap();
                }
            };
            let why = if is_link { "not a directory" } else { "gone" };
            // The top is the image.
            let fixture = Fixture::new(driver);
            spoil(&fixture.store.tree_of(&fixture.top));
            let mount = fixture.mount_damaged();
            assert_eq!(names(mount.path().join("merged")), set(["other:1"]), "{driver}");
            assert!(fs::read_to_string(mount.path().join("by-tag/app:1/damage")).unwrap().contains(why));
            assert_eq!(names(mount.path().join("by-tag/app:1/layers")), set(["0", "0.json", "1.json"]));
            let is_whole = driver != "overlay";
            assert_eq!(mount.path().join("by-container/web/merged").exists(), is_whole, "{driver}");
            drop(mount);

            // What lies below is only needed to tell what the top changes.
            let fixture = Fixture::new(driver);
            spoil(&fixture.store.tree_of(&fixture.base));
            let mount = fixture.mount_damaged();
            assert_eq!(names(mount.path().join("merged")), set(["app:1", "other:1"]));
            assert_eq!(names(mount.path().join("merged/app:1/etc")), set(["kept", "new"]));
            assert_eq!(names(mount.path().join("by-tag/app:1/layers")), set(["0.json", "1.json"]));
            assert!(damage_of(&mount, tail(&fixture.store.tree_of(&fixture.base))).contains(why), "{driver}");
            drop(mount);

            // A container's own.
            let fixture = Fixture::new(driver);
            spoil(&fixture.store.tree_of_container(&fixture.container));
            let mount = fixture.mount_damaged();
            assert_eq!(errno(fs::metadata(mount.path().join("by-container/web/merged"))), Some(Errno::IO));
            assert!(fs::read_to_string(mount.path().join("by-container/web/damage")).unwrap().contains(why));
            assert_eq!(names(mount.path().join("merged")), set(["app:1", "other:1"]));
        }
    }
}

fn tail(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

#[test]
fn ten_thousand_names() {
    if !require_privileges("a mount") {
        return;
    }
    let place = support::scratch("whole");
    let _memory = Tmpfs::new(&place.path().join("memory"));
    let fixture = Fixture::made_in(tempfile::tempdir_in(place.path().join("memory")).unwrap(), "vfs");
    for tree in [fixture.store.tree_of(&fixture.base), fixture.store.tree_of(&fixture.top)] {
        for number in 0..10_000 {
            write(&tree.join(format!("many/{number}")), "x");
        }
    }
    let top = fixture.store.tree_of(&fixture.top).join("many");
    fs::write(top.join("17"), "longer").unwrap();
    fs::remove_file(top.join("18")).unwrap();
    let all = (0..10_000).filter(|number| *number != 18).map(|number| format!("many/{number}"));
    let all: Vec<String> = all.chain(["many/.wh.18".to_owned(), "many/10000".to_owned()]).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    fixture.store.list(&fixture.top, &all);
    // Names that are no layers', and some that could be.
    for number in 0..10_000 {
        fs::create_dir(fixture.store.place(&format!("{number}"))).unwrap();
        fs::create_dir(fixture.store.place(&format!("{number}.removing"))).unwrap();
    }
    let mount = fixture.mount();
    let listed = names(mount.path().join("by-tag/app:1/layers/1/many"));
    assert!(listed.len() == 10_000 && listed.contains(".wh.18") && !listed.contains("18"));
    assert_eq!(status(&mount)["damage"], serde_json::json!([]));
    drop(mount);
    // Without it the two trees are compared.
    fs::remove_file(fixture.store.list_of(&fixture.top)).unwrap();
    let mount = fixture.mount();
    assert_eq!(names(mount.path().join("by-tag/app:1/layers/1/many")), set([".wh.18", "17"]));
    assert_eq!(names(mount.path().join("merged/app:1/many")).len(), 9_999);
    assert!(support::eventually(|| status(&mount)["damage"].as_array().unwrap().len() == 1));
    assert!(damage_of(&mount, "tar-split.json.gz").starts_with("missing"));
}
