//! Several stores in one place: those of several graph drivers, of daemons that remap users, of containerd beside Docker's
//! own, and of Docker 1.9 beside a newer one. What each of them is alone, others test.

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
mod containerd_store;
mod support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use docker_fs::error::{Error, Result};
use docker_fs::name::{Name, TreePath};
use docker_fs::store;
use docker_fs::view::{Node, Options, View};
use rustix::fs::{XattrFlags, setxattr};
use serde_json::{Value, json};
use support::graph::GraphBuilder;
use support::marks::{self, convert_store};
use support::mount::{Mounted, require_privileges};
use support::store::{ContainerRef, ImageId, StoreBuilder};
use support::view::{Answer, plainly, read, text};
use support::whole::WholeStore;
use support::{eventually, scratch};
use tempfile::TempDir;

/// The drivers of a data root of all of them.
const DRIVERS: [&str; 3] = ["overlay2", "vfs", "aufs"];
/// The digest of a manifest, which each store has of its own image.
const MANIFEST: &str = "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

/// What one driver's store has: `app:1` and a digest, which all have, `<driver>:1`, and the container `web`.
#[derive(Debug)]
struct Part {
    driver: &'static str,
    app: ImageId,
    own: ImageId,
    web: ContainerRef,
}

/// A data root with the stores of several drivers.
struct Fixture {
    dir: TempDir,
    root: PathBuf,
    parts: Vec<Part>,
}

/// The `image/<driver>` of a data root.
fn image_of(root: &Path, driver: &str) -> PathBuf {
    root.join("image").join(driver)
}

/// Has a driver's store used last at so many seconds after 1970.
fn use_at(root: &Path, driver: &str, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    for file in ["repositories.json", "imagedb/content/sha256", "layerdb/sha256", "layerdb/mounts"] {
        File::open(image_of(root, driver).join(file)).unwrap().set_modified(time).unwrap();
    }
}

/// Makes a driver's store of what was built, in its data root.
fn convert(store: StoreBuilder, driver: &'static str) -> PathBuf {
    match driver {
        "overlay2" => store.finish(),
        "aufs" => {
            let root = store.finish();
            convert_store(&root, marks::Driver::Aufs);
            root
        }
        whole => WholeStore::of(store, whole).root,
    }
}

/// Builds a driver's store alone. Its images have one layer, with a file of the image's name.
fn part(root: &Path, driver: &'static str, draws: u64) -> Part {
    let mut store = StoreBuilder::new(root);
    store.pass_over(draws);
    let image = |store: &mut StoreBuilder, name: &str| {
        let layers = store.chain(1);
        fs::write(layers[0].diff_dir().join(name), driver).unwrap();
        let image = store.image(&layers);
        store.tag(&format!("{name}:1"), &image);
        (image, layers[0].clone())
    };
    let (app, top) = image(&mut store, "app");
    let (own, _) = image(&mut store, driver);
    store.digest("app", MANIFEST, &app);
    let web = store.container("web", &app, Some(&top));
    fs::write(web.upper_dir().join("written"), driver).unwrap();
    convert(store, driver);
    Part { driver, app, own, web }
}

/// Moves all that is in a driver's data root to another.
fn move_into(root: &Path, from: &Path, driver: &str) {
    for folder in ["image", "containers"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::rename(image_of(from, driver), image_of(root, driver)).unwrap();
    fs::rename(from.join(driver), root.join(driver)).unwrap();
    for container in fs::read_dir(from.join("containers")).unwrap() {
        let container = container.unwrap();
        fs::rename(container.path(), root.join("containers").join(container.file_name())).unwrap();
    }
}

/// The stores of all drivers, used in their order, the first one last.
fn fixture() -> Fixture {
    let dir = scratch("several");
    let root = dir.path().join("docker");
    fs::create_dir(&root).unwrap();
    let mut parts = Vec::new();
    for (driver, number) in DRIVERS.into_iter().zip(1..) {
        let alone = dir.path().join(driver);
        parts.push(part(&alone, driver, number * 1_000));
        move_into(&root, &alone, driver);
        use_at(&root, driver, 1_700_000_000 - number);
    }
    Fixture { dir, root, parts }
}

fn open(root: &Path) -> Result<View> {
    let stores = store::open(root, &store::Options::default())?;
    View::new(stores, &Options { source: root.to_owned(), ..Options::default() })
}

fn found(view: &View, path: &str) -> Result<Option<Node>> {
    view.resolve(&TreePath::new(path.as_bytes()).unwrap())
}

fn names(view: &View, path: &str) -> Vec<String> {
    let entries = found(view, path).unwrap().unwrap().list().unwrap();
    let mut names: Vec<_> =
        entries.iter().map(|(name, _)| String::from_utf8(name.as_bytes().to_vec()).unwrap()).collect();
    names.sort();
    names
}

fn content(view: &View, path: &str) -> String {
    let file = found(view, path).unwrap().unwrap_or_else(|| panic!("{path} is missing")).open().unwrap();
    let mut bytes = vec![0; 1 << 16];
    let count = file.read_at(&mut bytes, 0).unwrap();
    String::from_utf8(bytes[..count].to_vec()).unwrap()
}

fn status(view: &View) -> Value {
    serde_json::from_str(&content(view, "status")).unwrap()
}

/// What `status` says is not shown, in order.
fn hidden(status: &Value) -> Vec<String> {
    let all = status["hidden"].as_array().cloned().unwrap_or_default();
    let mut hidden: Vec<String> = all.iter().map(ToString::to_string).collect();
    hidden.sort();
    hidden
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

/// Whatever is listed is looked up as the same, and can be read.
fn assert_agreement(what: &str, view: &View) {
    let answers = read(view, &plainly);
    for ((path, asked), answer) in &answers {
        assert!(matches!(answer, Answer::Is(_)), "{what}: {}", text(&answers));
        if *asked == "listed" && path.as_slice() != b"status" {
            let listed = &answers[&(path.clone(), "looked up")];
            assert_eq!(answer, listed, "{what}: {}", path.escape_ascii());
        }
    }
    assert!(answers.len() > 100, "{what}: {}", answers.len());
}

/// That all of the parts is shown, with the names that several have in the hands of the one at `last`.
fn assert_shown(fixture: &Fixture, view: &View, last: usize) {
    let parts = &fixture.parts;
    let driver = parts[last].driver;
    assert_eq!(view.damage(), []);
    assert_eq!(names(view, "by-tag"), ["app:1", "aufs:1", "overlay2:1", "vfs:1"]);
    assert_eq!(content(view, "by-tag/app:1/layers/0/app"), driver);
    assert_eq!(content(view, "merged/app:1/app"), driver);
    assert_eq!(names(view, "by-digest"), [format!("app@sha256:{MANIFEST}")]);
    assert_eq!(content(view, &format!("by-digest/app@sha256:{MANIFEST}/layers/0/app")), driver);
    assert_eq!(content(view, "by-container/web/merged/written"), driver);
    let others = || parts.iter().enumerate().filter(|(number, _)| *number != last).map(|(_, part)| part);
    let mut containers: Vec<String> = others().map(|part| part.web.id.clone()).collect();
    containers.push("web".to_owned());
    assert_eq!(names(view, "by-container"), sorted(containers));
    let ids = parts.iter().flat_map(|part| [part.app.0.clone(), part.own.0.clone()]).collect();
    assert_eq!(names(view, "by-id"), sorted(ids));
    for part in parts {
        let driver = part.driver;
        assert_eq!(content(view, &format!("merged/{driver}:1/{driver}")), driver);
        assert_eq!(content(view, &format!("merged/{}/app", part.app.0)), driver);
        assert_eq!(content(view, &format!("by-id/{}/layers/0/app", part.app.0)), driver);
        // A layer of which no other store knows.
        let facts = content(view, &format!("by-id/{}/layers/0.json", part.app.0));
        let facts: Value = serde_json::from_str(&facts).unwrap();
        let chain = facts["chain_id"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
        assert_eq!(content(view, &format!("by-chain/{chain}/app")), driver);
        let container = if driver == parts[last].driver { "web" } else { &part.web.id };
        assert_eq!(content(view, &format!("by-container/{container}/changes/written")), driver);
    }
    let status = status(view);
    let mut expected = Vec::new();
    for part in others() {
        let (image, driver) = (format!("sha256:{}", part.app.0), part.driver);
        for reference in ["app:1".to_owned(), format!("app@sha256:{MANIFEST}")] {
            expected.push(json!({"reference": reference, "image": image, "driver": driver}).to_string());
        }
        expected.push(json!({"name": "web", "container": part.web.id, "driver": driver}).to_string());
    }
    assert_eq!(hidden(&status), sorted(expected));
    assert_eq!(status["kind"], "docker");
    let drivers = status["driver"].as_str().unwrap();
    assert!(drivers.starts_with(driver) && DRIVERS.iter().all(|driver| drivers.contains(driver)), "{drivers}");
    assert_eq!(status["references"], 5, "{status}");
    assert_eq!(status["images"]["total"], 6, "{status}");
    assert_eq!(status["containers"], 3, "{status}");
}

#[test]
fn of_names_that_several_have_the_last_used_ones_stand() {
    let fixture = fixture();
    for (last, driver) in DRIVERS.into_iter().enumerate() {
        use_at(&fixture.root, driver, 1_700_000_100 + last as u64);
        let view = open(&fixture.root).unwrap();
        assert_shown(&fixture, &view, last);
        assert_agreement(driver, &view);
    }
}

#[test]
fn another_store_may_come_to_be_used() {
    let fixture = fixture();
    let view = open(&fixture.root).unwrap();
    assert_shown(&fixture, &view, 0);
    let root = view.root();
    let by_tag = root.lookup(&Name::new(b"by-tag").unwrap()).unwrap().unwrap().node;
    for (seconds, last) in [(1_700_000_100, 2), (1_700_000_200, 1), (1_700_000_300, 0), (1_700_000_400, 2)] {
        let before = view.refresh();
        use_at(&fixture.root, DRIVERS[last], seconds);
        // What is held since the first arrangement follows too.
        let app = by_tag.lookup(&Name::new(b"app:1").unwrap()).unwrap().unwrap().node;
        let layer = ["layers", "0"]
            .iter()
            .fold(app, |dir, name| dir.lookup(&Name::new(name.as_bytes()).unwrap()).unwrap().unwrap().node);
        let file = layer.lookup(&Name::new(b"app").unwrap()).unwrap().unwrap().node.open().unwrap();
        let mut text = vec![0; 20];
        let count = file.read_at(&mut text, 0).unwrap();
        assert_eq!(text[..count], *DRIVERS[last].as_bytes());
        assert_ne!(view.refresh(), before, "the kernel is to forget what it knows");
        assert_shown(&fixture, &view, last);
    }
    // A name that is free again.
    fs::write(image_of(&fixture.root, "aufs").join("repositories.json"), r#"{"Repositories":{}}"#).unwrap();
    use_at(&fixture.root, "aufs", 1_700_000_500);
    assert!(eventually(|| found(&view, "merged/aufs:1").unwrap().is_none()));
    assert_eq!(content(&view, "merged/app:1/app"), "overlay2");
    assert_eq!(hidden(&status(&view)).len(), 4, "{}", status(&view));
    assert_agreement("a name that is free again", &view);
}

#[test]
fn the_whole_order_counts() {
    let fixture = fixture();
    let name = |driver: &str, names: Value| {
        let text = json!({ "Repositories": names }).to_string();
        fs::write(image_of(&fixture.root, driver).join("repositories.json"), text).unwrap();
    };
    for (part, seconds) in fixture.parts.iter().zip([1_700_000_003, 1_700_000_002, 1_700_000_001]) {
        let image = format!("sha256:{}", part.own.0);
        name(part.driver, if part.driver == "aufs" { json!({}) } else { json!({"pair": {"pair:1": image}}) });
        use_at(&fixture.root, part.driver, seconds);
    }
    let view = open(&fixture.root).unwrap();
    assert_eq!(content(&view, "merged/pair:1/overlay2"), "overlay2");
    assert_eq!(content(&view, "by-container/web/merged/written"), "overlay2");
    // The one in the middle stays there, below another.
    use_at(&fixture.root, "overlay2", 1_700_000_000);
    use_at(&fixture.root, "aufs", 1_700_000_004);
    assert_eq!(content(&view, "by-container/web/merged/written"), "aufs");
    assert_eq!(content(&view, "merged/pair:1/vfs"), "vfs");
    assert_agreement("another order", &view);
}

#[test]
fn containers_names_alone_may_change_hands() {
    let fixture = fixture();
    for (driver, seconds) in DRIVERS.into_iter().zip([1_700_000_003, 1_700_000_002, 1_700_000_001]) {
        fs::write(image_of(&fixture.root, driver).join("repositories.json"), r#"{"Repositories":{}}"#).unwrap();
        use_at(&fixture.root, driver, seconds);
    }
    let view = open(&fixture.root).unwrap();
    let before = view.refresh();
    assert_eq!(view.refresh(), before);
    // As when a container was made and removed.
    let mounts = File::open(image_of(&fixture.root, "vfs").join("layerdb/mounts")).unwrap();
    mounts.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_004)).unwrap();
    assert_ne!(view.refresh(), before, "the kernel is to forget what it knows");
    assert_eq!(content(&view, "by-container/web/merged/written"), "vfs");
}

/// The same image in two stores, as after it was pulled for both.
#[test]
fn an_image_that_two_have_is_shown_once() {
    let dir = scratch("several");
    let (root, other) = (dir.path().join("docker"), dir.path().join("other"));
    let build = |root: &Path, driver: &'static str| {
        let mut store = StoreBuilder::new(root);
        let layers = store.chain(2);
        fs::write(layers[0].diff_dir().join("file"), driver).unwrap();
        fs::write(layers[1].diff_dir().join("file"), format!("{driver} again")).unwrap();
        let image = store.image(&layers);
        store.tag("app:1", &image);
        convert(store, driver);
        (image, layers)
    };
    let (image, layers) = build(&root, "overlay2");
    let (again, _) = build(&other, "vfs");
    assert_eq!(image, again, "the same config");
    move_into(&root, &other, "vfs");
    use_at(&root, "vfs", 1_600_000_000);
    for (driver, seconds) in [("overlay2", 1_700_000_000), ("vfs", 1_700_000_001), ("overlay2", 1_700_000_002)] {
        use_at(&root, driver, seconds);
        let view = open(&root).unwrap();
        assert_eq!(names(&view, "merged"), ["app:1"]);
        assert_eq!(names(&view, "by-id"), [image.0.as_str()]);
        let chains = layers.iter().flat_map(|layer| [layer.chain_id.clone(), format!("{}.json", layer.chain_id)]);
        assert_eq!(names(&view, "by-chain"), sorted(chains.collect()));
        assert_eq!(content(&view, "merged/app:1/file"), format!("{driver} again"));
        assert_eq!(hidden(&status(&view)), Vec::<String>::new(), "the name stands for the same image");
        assert_eq!(status(&view)["images"]["total"], 1);
        assert_agreement("two have it", &view);
    }
    // The name leads to the broken one, as that is what the engine in use would run; its ID to what is whole.
    fs::remove_dir_all(layers[1].diff_dir()).unwrap();
    let view = open(&root).unwrap();
    assert!(matches!(found(&view, "merged/app:1"), Err(Error::Damaged { .. })));
    for path in ["merged", "by-chain"] {
        let id = if path == "merged" { &image.0 } else { &layers[1].chain_id };
        assert_eq!(content(&view, &format!("{path}/{id}/file")), "vfs again", "{path}");
        assert!(names(&view, path).contains(id), "{path}");
    }
}

#[test]
fn a_driver_that_is_not_read_is_told() {
    let fixture = fixture();
    fs::create_dir_all(fixture.root.join("image/windowsfilter/imagedb")).unwrap();
    let view = open(&fixture.root).unwrap();
    assert_eq!(content(&view, "merged/app:1/app"), "overlay2");
    let [damage] = &view.damage()[..] else { panic!("{:?}", view.damage()) };
    assert!(damage.what.ends_with("image/windowsfilter"), "{damage}");
    assert!(damage.why.contains("its graph driver windowsfilter is not supported; supported: "), "{damage}");
    for driver in DRIVERS {
        fs::remove_dir_all(image_of(&fixture.root, driver)).unwrap();
    }
    let refused = open(&fixture.root).unwrap_err();
    assert!(matches!(&refused, Error::Unsupported { why, .. } if why.contains("windowsfilter")), "{refused}");
    // A driver whose layers were removed spares the others.
    let fixture = self::fixture();
    fs::remove_dir_all(fixture.root.join("overlay2")).unwrap();
    let view = open(&fixture.root).unwrap();
    assert_eq!(content(&view, "merged/app:1/app"), "vfs");
    let [damage] = &view.damage()[..] else { panic!("{:?}", view.damage()) };
    assert!(
        damage.why.contains("image/overlay2 is there, but overlay2, which holds the layers, is missing"),
        "{damage}"
    );
}

#[test]
fn roots_of_daemons_that_remap_users_are_found() {
    let dir = scratch("several");
    let root = dir.path().join("docker");
    fs::create_dir(&root).unwrap();
    // One, two, and two beside a plain one.
    for (driver, inner, seconds, shown) in [
        ("overlay2", "100000.100000", 1_700_000_000, vec!["overlay2:1"]),
        ("vfs", "231072.231072", 1_700_000_001, vec!["overlay2:1", "vfs:1"]),
        ("aufs", "", 1_700_000_002, vec!["aufs:1", "overlay2:1", "vfs:1"]),
    ] {
        let inner = root.join(inner);
        let alone = dir.path().join(driver);
        part(&alone, driver, seconds);
        fs::create_dir_all(&inner).unwrap();
        move_into(&inner, &alone, driver);
        use_at(&inner, driver, seconds);
        let view = open(&root).unwrap();
        assert_eq!(view.damage(), [], "{driver}");
        assert_eq!(names(&view, "by-tag"), [&["app:1"], &shown[..]].concat());
        assert_eq!(content(&view, "merged/app:1/app"), driver);
        assert_eq!(names(&view, "by-container").len(), shown.len());
        let status = status(&view);
        assert_eq!(hidden(&status).len(), 3 * (shown.len() - 1), "{status}");
        assert_agreement(driver, &view);
    }
    let direct = open(&root.join("231072.231072")).unwrap();
    assert_eq!(names(&direct, "merged"), ["app:1", "vfs:1"]);
    // Neither are other names such roots, nor links and files.
    for other in ["0x1.2", "1.2.3", "100000", ".1", "1."] {
        fs::create_dir(root.join(other)).unwrap();
        fs::rename(root.join("231072.231072/image"), root.join(other).join("image")).unwrap();
        assert_eq!(names(&open(&root).unwrap(), "by-tag"), ["app:1", "aufs:1", "overlay2:1"], "{other}");
        fs::rename(root.join(other).join("image"), root.join("231072.231072/image")).unwrap();
    }
    std::os::unix::fs::symlink("231072.231072", root.join("7.7")).unwrap();
    fs::write(root.join("8.8"), "").unwrap();
    let view = open(&root).unwrap();
    assert_eq!(names(&view, "by-tag"), ["app:1", "aufs:1", "overlay2:1", "vfs:1"]);
    assert!(view.damage().iter().any(|damage| damage.what.ends_with("7.7")), "{:?}", view.damage());
}

#[test]
fn containerds_store_stands_beside_dockers_own() {
    let fixture = fixture();
    let daemon = fixture.root.join("containerd/daemon");
    // As an engine leaves it that uses its own store: databases without images.
    let mut containerd = containerd_store::Store::new(&daemon);
    containerd.write();
    let blobs = daemon.join("io.containerd.content.v1.content/blobs/sha256");
    fs::remove_dir(&blobs).unwrap();
    let view = open(&fixture.root).unwrap();
    assert_shown(&fixture, &view, 0);
    fs::create_dir(&blobs).unwrap();
    // As an engine leaves it that was switched.
    let image = containerd.image("moby", "docker.io/library/app:1", &["of containerd"]);
    containerd.write();
    let set = |seconds: u64| {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        File::open(containerd.meta_path()).unwrap().set_modified(time).unwrap();
    };
    set(1_700_000_100);
    let view = open(&fixture.root).unwrap();
    assert_eq!(view.damage(), []);
    assert_eq!(content(&view, "merged/app:1/file-0"), "of containerd");
    assert_eq!(content(&view, &format!("merged/{}/app", fixture.parts[0].app.0)), "overlay2");
    assert_agreement("containerd last", &view);
    let told = status(&view);
    assert_eq!(told["kind"], "containerd, docker");
    assert!(hidden(&told).iter().any(|hidden| hidden.contains(&fixture.parts[0].app.0)), "{told}");
    // And back.
    set(1_600_000_000);
    let view = open(&fixture.root).unwrap();
    assert_eq!(content(&view, "merged/app:1/app"), "overlay2");
    assert_eq!(content(&view, &format!("merged/{}/file-0", image.id())), "of containerd");
    let told = status(&view);
    assert_eq!(told["kind"], "docker, containerd");
    assert!(hidden(&told).iter().any(|hidden| hidden.contains(image.id())), "{told}");
    assert_agreement("containerd first", &view);
}

#[test]
fn what_was_migrated_is_shown_once() {
    let fixture = fixture();
    let old = fixture.dir.path().join("old");
    let mut graph = GraphBuilder::new(&old);
    let image = graph.image(None);
    fs::write(graph.diff(&image).join("app"), "old").unwrap();
    graph.tag("app", "1", &image);
    graph.tag("old", "1", &image);
    for file in ["graph", "repositories-aufs"] {
        fs::rename(old.join(file), fixture.root.join(file)).unwrap();
    }
    fs::rename(old.join("aufs/diff").join(&image), fixture.root.join("aufs/diff").join(&image)).unwrap();
    fs::rename(old.join("aufs/layers").join(&image), fixture.root.join("aufs/layers").join(&image)).unwrap();
    assert_shown(&fixture, &open(&fixture.root).unwrap(), 0);
    let options = store::Options { kind: Some("docker-graph".to_owned()), ..store::Options::default() };
    let asked_for = View::new(store::open(&fixture.root, &options).unwrap(), &Options::default()).unwrap();
    assert_eq!(names(&asked_for, "merged"), ["app:1", "old:1"]);
    assert_eq!(content(&asked_for, "merged/app:1/app"), "old");
}

/// The root of a rootless engine, read by its user or by root.
#[test]
fn a_rootless_root_has_its_own_attributes() {
    let dir = scratch("several");
    let root = dir.path().join(".local/share/docker");
    let mut store = StoreBuilder::new(&root);
    let layers = store.chain(2);
    fs::create_dir(layers[0].diff_dir().join("dir")).unwrap();
    fs::write(layers[0].diff_dir().join("dir/deleted"), "").unwrap();
    fs::create_dir(layers[1].diff_dir().join("dir")).unwrap();
    setxattr(layers[1].diff_dir().join("dir"), "user.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    setxattr(layers[1].diff_dir(), "user.overlay.impure", b"y", XattrFlags::empty()).unwrap();
    let image = store.image(&layers);
    store.tag("app:1", &image);
    let overlay2 = store.overlay2();
    store.finish();
    if rustix::process::geteuid().is_root() {
        give(&overlay2, 1000);
    }
    let view = open(&root).unwrap();
    assert_eq!(view.damage(), []);
    assert_eq!(names(&view, "merged/app:1/dir"), Vec::<String>::new(), "the mark counts");
    assert_eq!(names(&view, "by-tag/app:1/layers/1/dir"), [".wh..wh..opq"]);
    let dir = found(&view, "merged/app:1/dir").unwrap().unwrap();
    assert_eq!(dir.xattr_names().unwrap(), Vec::<Vec<u8>>::new());
}

/// Gives a directory and all in it to a user.
fn give(path: &Path, user: u32) {
    std::os::unix::fs::lchown(path, Some(user), Some(user)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), user);
        }
    }
}

/// Whoever has looked sees what has become of it, in each store and between them.
#[test]
fn a_mount_follows_each_of_them() {
    if !require_privileges("a mount") {
        return;
    }
    let fixture = fixture();
    let mount = Mounted::new(&fixture.root, &fixture.dir.path().join("mnt"));
    let at = |path: &str| mount.path().join(path);
    let read = |path: &str| fs::read_to_string(at(path)).unwrap_or_default();
    assert_eq!(mount.stderr, "");
    assert_eq!(read("merged/app:1/app"), "overlay2");
    assert!(!at("by-tag/new:1").exists());
    // Another image of a store that is not in use, under a name that is free, and one that is not.
    let file = image_of(&fixture.root, "vfs").join("repositories.json");
    let aside = fixture.dir.path().join("aside");
    let mut names: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let own = format!("sha256:{}", fixture.parts[1].own.0);
    names["Repositories"]["new"] = json!({"new:1": own});
    names["Repositories"]["app"] = json!({"app:1": own});
    fs::write(&aside, names.to_string()).unwrap();
    File::open(&aside).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    fs::rename(&aside, &file).unwrap();
    assert!(eventually(|| read("merged/new:1/vfs") == "vfs"));
    assert_eq!(read("merged/app:1/app"), "overlay2");
    assert!(eventually(|| read("status").contains(&fixture.parts[1].own.0)), "{}", read("status"));
    assert!(fs::read_dir(at("by-tag")).unwrap().any(|entry| entry.unwrap().file_name() == "new:1"));
    // Then the engine comes to use it.
    use_at(&fixture.root, "vfs", 1_700_000_100);
    assert!(eventually(|| read("merged/app:1/vfs") == "vfs"), "{}", read("status"));
    assert!(!at("merged/app:1/app").exists());
    assert!(eventually(|| read("by-container/web/merged/written") == "vfs"));
    assert_eq!(read(&format!("by-container/{}/merged/written", fixture.parts[0].web.id)), "overlay2");
    assert!(
        read("status").contains(&format!("\"image\": \"sha256:{}\"", fixture.parts[0].app.0)),
        "{}",
        read("status")
    );
}
