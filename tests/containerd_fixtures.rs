//! A root of containerd's that is damaged, hostile or odd in each place: one message, and all else is served. Each is
//! read through the library.

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

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use docker_fs::error::Error;
use docker_fs::layer::whiteout::Prefix;
use docker_fs::name::TreePath;
use docker_fs::store::{self, Options};
use docker_fs::view::{self, Node, View};
use fixture::{CONFIG, INDEX, Item, MANIFEST, Store, at, put};
use rustix::io::Errno;
use serde_json::{Value, json};
use support::store::sha256_hex;
use support::{eventually, is_opened, scratch, worked};

const GOOD: &str = "docker.io/library/good:1";

/// As a user without privileges reads it; nothing of the fixtures has attributes.
fn options() -> Options {
    Options { prefix: Some(Prefix::User), ..Options::default() }
}

fn open(root: &Path) -> View {
    View::new(store::open(root, &options()).unwrap(), &view::Options::default()).unwrap()
}

fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes()).unwrap()
}

fn find(view: &View, text: &str) -> Result<Option<Node>, Error> {
    view.resolve(&path(text))
}

/// The content of a small file of the view or of a layer; what keeps it from being read otherwise.
fn read(view: &View, text: &str) -> Result<String, String> {
    let node = find(view, text).map_err(|error| format!("{:?}: {error}", error.errno()))?.ok_or("there is none")?;
    let file = node.open().map_err(|error| error.to_string())?;
    let mut bytes = vec![0; 1 << 20];
    let count = file.read_at(&mut bytes, 0).map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&bytes[..count]).into_owned())
}

fn names(view: &View, text: &str) -> Vec<String> {
    let node = find(view, text).unwrap().unwrap();
    let mut names: Vec<String> =
        node.list().unwrap().iter().map(|(name, _)| String::from_utf8_lossy(name.as_bytes()).into_owned()).collect();
    names.sort();
    names
}

fn damage(view: &View) -> Vec<String> {
    view.damage().iter().map(ToString::to_string).collect()
}

fn status(view: &View) -> Value {
    let node = find(view, "status").unwrap().unwrap();
    let file = node.open().unwrap();
    let mut bytes = vec![0; 4 << 20];
    let count = file.read_at(&mut bytes, 0).unwrap();
    serde_json::from_slice(&bytes[..count]).unwrap()
}

/// What `status` remarks, with the object.
fn remarks(view: &View) -> Vec<String> {
    let text = |one: &Value| format!("{}: {}", one["object"].as_str().unwrap(), one["reason"].as_str().unwrap());
    status(view)["remarks"].as_array().unwrap().iter().map(text).collect()
}

/// A store with a sound image, to which a test adds what is not.
fn with_good(prefix: &str) -> (tempfile::TempDir, Store) {
    let dir = scratch(prefix);
    let mut store = Store::new(dir.path().join("root"));
    store.image("default", GOOD, &["good base", "good top"]);
    (dir, store)
}

fn assert_good_is_served(view: &View) {
    assert_eq!(read(view, "merged/good:1/file-1").as_deref(), Ok("good top"));
    assert_eq!(read(view, "by-tag/good:1/layers/0/file-0").as_deref(), Ok("good base"));
}

#[test]
fn a_store_by_hand_is_read_as_one() {
    let (_dir, mut store) = with_good("sound-");
    store.write();
    let view = open(&store.root);
    assert_good_is_served(&view);
    assert_eq!(damage(&view), Vec::<String>::new());
    assert_eq!(remarks(&view), Vec::<String>::new());
    let status = status(&view);
    assert_eq!((&status["kind"], &status["driver"]), (&json!("containerd"), &json!("overlayfs, native")));
    let facts: Value = serde_json::from_str(&read(&view, "by-tag/good:1/layers/1.json").unwrap()).unwrap();
    assert_eq!((&facts["cache_id"], &facts["size_bytes"]), (&json!("overlayfs-2"), &json!(2_000)));
    assert_eq!(facts["driver"], json!("overlayfs"), "the layer's own");
}

#[test]
fn a_base_layer_that_no_image_names_has_its_diff_id() {
    let (_dir, mut store) = with_good("base-");
    let chain = |digit: &str| format!("sha256:{}", digit.repeat(64));
    store.snapshot("default", "overlayfs", &chain("a"), None, 3);
    store.snapshot("default", "overlayfs", &chain("b"), Some(&chain("a")), 3);
    store.write();
    let view = open(&store.root);
    let facts = |digit: &str| -> Value {
        serde_json::from_str(&read(&view, &format!("by-chain/{}.json", digit.repeat(64))).unwrap()).unwrap()
    };
    assert_eq!(facts("a")["diff_id"], json!(chain("a")));
    // Of this one nothing tells.
    assert_eq!(facts("b")["diff_id"], Value::Null);
    assert!(names(&view, "by-diff").contains(&"a".repeat(64)));
}

/// Each kind of damage: what is done to a second image, what is told, and whether its name is still listed by tag.
#[test]
fn what_is_wrong_with_an_image_spoils_no_other() {
    type Break = fn(&mut Store, &fixture::Image);
    let rows: &[(&str, Break, &str)] = &[
        ("its config is missing", |store, bad| fs::remove_file(store.blob_path(&bad.config)).unwrap(), "missing"),
        (
            "its config is another",
            |store, bad| fs::write(store.blob_path(&bad.config), "{}").unwrap(),
            "its SHA-256 is",
        ),
        (
            "its manifest is missing",
            |store, bad| fs::remove_file(store.blob_path(bad.manifest["digest"].as_str().unwrap())).unwrap(),
            "missing",
        ),
        (
            "its manifest is cut off",
            |store, bad| {
                let file = store.blob_path(bad.manifest["digest"].as_str().unwrap());
                let text = fs::read(&file).unwrap();
                fs::write(file, &text[..text.len() / 2]).unwrap();
            },
            "its SHA-256 is",
        ),
        (
            "its manifest is a directory",
            |store, bad| {
                let file = store.blob_path(bad.manifest["digest"].as_str().unwrap());
                fs::remove_file(&file).unwrap();
                fs::create_dir(file).unwrap();
            },
            "not a regular file",
        ),
        (
            "its config is a link out",
            |store, bad| {
                let file = store.blob_path(&bad.config);
                fs::remove_file(&file).unwrap();
                symlink("/etc/passwd", file).unwrap();
            },
            "not a regular file",
        ),
        ("its layer is gone", |_, bad| fs::remove_dir_all(&bad.directories[1]).unwrap(), "is gone"),
        (
            "its layer is a link out",
            |_, bad| {
                fs::remove_dir_all(&bad.directories[1]).unwrap();
                symlink("/etc", &bad.directories[1]).unwrap();
            },
            "not a directory",
        ),
        (
            "its layer is a file",
            |_, bad| {
                fs::remove_dir_all(&bad.directories[0]).unwrap();
                fs::write(&bad.directories[0], "").unwrap();
            },
            "not a directory",
        ),
        (
            "a layer is struck off",
            |store, bad| drop(snapshots(store).remove(bad.chains[0].as_bytes())),
            "the snapshot below is missing",
        ),
        (
            "the snapshotter does not have it",
            |store, bad| {
                let name = format!("default/4/{}", bad.chains[1]);
                at(store.snapshots.get_mut("overlayfs").unwrap(), &["v1", "snapshots"])
                    .remove(name.as_bytes())
                    .unwrap();
            },
            "does not have it",
        ),
        (
            "the databases differ",
            |store, bad| {
                let name = format!("default/4/{}", bad.chains[1]);
                put(
                    store.snapshots.get_mut("overlayfs").unwrap(),
                    &["v1", "snapshots", &name, "parent"],
                    "default/1/x",
                );
            },
            "the databases differ",
        ),
        (
            "it lies upon another",
            |store, bad| {
                let top = ["v1", "default", "snapshots", "overlayfs", &bad.chains[1]];
                let good = store.packed(&["good base"]).chains.remove(0);
                put(&mut store.meta, &[&top[..], &["parent"]].concat(), good.clone());
                let name = format!("default/4/{}", bad.chains[1]);
                let below = format!("default/1/{good}");
                put(store.snapshots.get_mut("overlayfs").unwrap(), &["v1", "snapshots", &name, "parent"], below);
            },
            "another layer than its chain ID says",
        ),
        (
            "its number is none",
            |store, bad| {
                let name = format!("default/4/{}", bad.chains[1]);
                put(store.snapshots.get_mut("overlayfs").unwrap(), &["v1", "snapshots", &name, "id"], [0x80]);
            },
            "does not have it",
        ),
        (
            "it has no target",
            |store, _| drop(at(&mut store.meta, &["v1", "default", "images", BAD]).remove(b"target".as_slice())),
            "no SHA-256 digest",
        ),
        (
            "its target leads out",
            |store, _| put(&mut store.meta, &["v1", "default", "images", BAD, "target", "digest"], "sha256:../../x"),
            "no SHA-256 digest",
        ),
        (
            "its target is named as an index",
            |store, _| put(&mut store.meta, &["v1", "default", "images", BAD, "target", "mediatype"], INDEX),
            "it is named as",
        ),
    ];
    const BAD: &str = "docker.io/library/bad:1";
    for (what, spoil, told) in rows {
        let (_dir, mut store) = with_good("image-");
        let bad = store.image("default", BAD, &["bad base", "bad top"]);
        spoil(&mut store, &bad);
        store.write();
        let view = open(&store.root);
        assert_good_is_served(&view);
        let damage = damage(&view);
        assert_eq!(damage.len(), 1, "{what}: {damage:?}");
        assert!(damage[0].contains(told), "{what}: {damage:?}");
        assert!(!names(&view, "merged").iter().any(|name| name == "bad:1"), "{what}");
        let listed = names(&view, "by-tag");
        if *told == "no SHA-256 digest" {
            assert_eq!(listed, ["good:1"], "{what}: it leads nowhere");
        } else {
            assert_eq!(listed, ["bad:1", "good:1"], "{what}: a damaged image is listed");
            assert!(read(&view, "by-tag/bad:1/damage").is_ok_and(|text| text.contains(&damage[0])), "{what}");
            let refused = find(&view, "merged/bad:1").unwrap_err();
            assert_eq!(refused.errno(), Errno::IO, "{what}: {refused}");
        }
    }
}

fn snapshots(store: &mut Store) -> &mut fixture::Tree {
    at(&mut store.meta, &["v1", "default", "snapshots", "overlayfs"])
}

#[test]
fn a_document_that_says_two_things_is_none() {
    let (_dir, mut store) = with_good("confusion-");
    let image = store.packed(&["good base"]);
    let config = json!({ "mediaType": CONFIG, "digest": image.config, "size": 1 });
    let both = json!({ "schemaVersion": 2, "config": config, "layers": [], "manifests": [image.manifest] });
    for (name, media_type) in [("one", MANIFEST), ("other", INDEX)] {
        let target = store.document(media_type, &both);
        store.name("default", &format!("docker.io/library/{name}:1"), &target, 1);
    }
    let called = json!({ "schemaVersion": 2, "mediaType": INDEX, "config": config, "layers": [] });
    let called = store.document(MANIFEST, &called);
    store.name("default", "docker.io/library/called:1", &called, 1);
    let artifact =
        json!({ "schemaVersion": 2, "config": { "mediaType": "application/x", "digest": image.config }, "layers": [] });
    let artifact = store.document(MANIFEST, &artifact);
    store.name("default", "docker.io/library/artifact:1", &artifact, 1);
    store.write();
    let view = open(&store.root);
    assert_good_is_served(&view);
    assert_eq!(names(&view, "merged"), ["good:1"]);
    for (name, told) in [
        ("one", "as an index, and layers"),
        ("other", "as an index, and layers"),
        ("called", "it calls itself"),
        ("artifact", "no image of a container"),
    ] {
        let text = read(&view, &format!("by-tag/{name}:1/damage")).unwrap();
        assert!(text.contains(told), "{name}: {text}");
    }
}

#[test]
fn indexes_without_an_end_are_bounded() {
    let (_dir, mut store) = with_good("indexes-");
    let image = store.packed(&["good base"]);
    let mut nested = image.manifest.clone();
    for _ in 0..20 {
        nested = store.document(INDEX, &json!({ "schemaVersion": 2, "manifests": [nested] }));
    }
    store.name("default", "docker.io/library/deep:1", &nested, 1);
    // The same document a hundred thousand times.
    let wide =
        store.document(INDEX, &json!({ "schemaVersion": 2, "manifests": vec![image.manifest.clone(); 100_000] }));
    store.name("default", "docker.io/library/wide:1", &wide, 1);
    // Each level names the next one a thousand times.
    let mut bomb = image.manifest;
    for _ in 0..6 {
        bomb = store.document(INDEX, &json!({ "schemaVersion": 2, "manifests": vec![bomb; 999] }));
    }
    store.name("default", "docker.io/library/bomb:1", &bomb, 1);
    store.write();
    let start = Instant::now();
    let view = open(&store.root);
    assert_good_is_served(&view);
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    let damage = damage(&view);
    assert!(damage.iter().any(|one| one.contains("an index in more than 8 others")), "{damage:?}");
    assert!(damage.iter().any(|one| one.contains("more than 1000 entries")), "{damage:?}");
}

#[test]
fn layers_that_lead_in_circles_are_told() {
    let (_dir, mut store) = with_good("circle-");
    let chain = |digit: &str| format!("sha256:{}", digit.repeat(64));
    for (digit, below) in [("a", "b"), ("b", "c"), ("c", "a"), ("d", "a"), ("e", "e")] {
        store.snapshot("default", "overlayfs", &chain(digit), None, 3);
        put(&mut store.meta, &["v1", "default", "snapshots", "overlayfs", &chain(digit), "parent"], chain(below));
    }
    let name_of = |digit: &str, number: u64| format!("default/{number}/{}", chain(digit));
    let own = store.snapshots.get_mut("overlayfs").unwrap();
    for (name, below) in [
        (name_of("a", 3), name_of("b", 4)),
        (name_of("b", 4), name_of("c", 5)),
        (name_of("c", 5), name_of("a", 3)),
        (name_of("d", 6), name_of("a", 3)),
        (name_of("e", 7), name_of("e", 7)),
    ] {
        put(own, &["v1", "snapshots", &name, "parent"], below);
    }
    store.write();
    let view = open(&store.root);
    assert_good_is_served(&view);
    let damage = damage(&view);
    assert_eq!(damage.iter().filter(|one| one.contains("lead back to it")).count(), damage.len(), "{damage:?}");
    assert!(damage.len() >= 4, "{damage:?}");
    for digit in ["a", "b", "c", "d", "e"] {
        assert!(find(&view, &format!("merged/{}", digit.repeat(64))).is_err(), "{digit}");
    }
}

#[test]
fn names_of_all_kinds_are_listed_or_told() {
    let (_dir, mut store) = with_good("names-");
    let image = store.image("default", "docker.io/library/a:1", &["text"]);
    let long = format!("x/{}", "y".repeat(5_000));
    for odd in ["../../etc/passwd", "a b", "\u{1b}[31m", "", &long, "UPPER/case:1"] {
        store.name("default", odd, &image.manifest, 1);
    }
    let digest = image.manifest["digest"].as_str().unwrap().to_owned();
    for quiet in [image.config.clone(), format!("moby-dangling@{digest}"), format!("docker.io/library/b@{digest}")] {
        store.name("k8s.io", &quiet, &image.manifest, 1);
    }
    store.write();
    let view = open(&store.root);
    assert_good_is_served(&view);
    assert_eq!(damage(&view), Vec::<String>::new());
    let told = remarks(&view);
    assert_eq!(told.iter().filter(|one| one.contains("by its ID alone")).count(), told.len(), "{told:?}");
    // The empty name is none that bbolt could hold beside others, and a registry may have upper-case letters.
    assert!(told.len() >= 4 && told.iter().all(|one| !one.contains('\u{1b}') && one.len() < 1_500), "{told:?}");
    assert_eq!(names(&view, "by-digest").iter().filter(|name| name.contains(&digest)).count(), 2);
    assert_eq!(read(&view, &format!("merged/{}/file-0", image.id())).as_deref(), Ok("text"));
}

#[test]
fn ten_thousand_names_are_read_in_seconds() {
    let (_dir, mut store) = with_good("many-");
    let image = store.image("default", "docker.io/library/a:1", &["text"]);
    for number in 0..10_000 {
        store.name("default", &format!("docker.io/library/many:{number}"), &image.manifest, 1);
    }
    for number in 0..1_000 {
        store.snapshot("second", "overlayfs", &format!("any {number}"), None, 2);
    }
    store.write();
    let start = Instant::now();
    let view = open(&store.root);
    assert_eq!(names(&view, "by-tag").len(), 10_002);
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert_eq!(damage(&view), Vec::<String>::new());
}

#[test]
fn databases_that_cannot_be_read_are_told_and_nothing_is_shown_for_true() {
    type Break = fn(&Store);
    let meta: &[(&str, Break, &str)] = &[
        ("missing", |store| fs::remove_file(store.meta_path()).unwrap(), ""),
        ("empty", |store| fs::write(store.meta_path(), "").unwrap(), "neither meta page is valid"),
        ("of zeros", |store| fs::write(store.meta_path(), [0; 8_192]).unwrap(), "neither meta page is valid"),
        (
            "cut off",
            |store| {
                let bytes = fs::read(store.meta_path()).unwrap();
                fs::write(store.meta_path(), &bytes[..8_192]).unwrap();
            },
            "behind the end of the file",
        ),
        (
            "a loop",
            |store| {
                let bucket = bolt::bucket(2, 0);
                let pages = bolt::Pages::new(4_096, &[bolt::leaf(2, &[(bolt::BUCKET, b"v1", bucket)])]);
                fs::write(store.meta_path(), pages.bytes()).unwrap();
            },
            "in two places",
        ),
        (
            "a FIFO",
            |store| {
                fs::remove_file(store.meta_path()).unwrap();
                rustix::fs::mkfifoat(rustix::fs::CWD, store.meta_path(), rustix::fs::Mode::RUSR).unwrap();
            },
            "not a regular file",
        ),
        (
            "a directory",
            |store| {
                fs::remove_file(store.meta_path()).unwrap();
                fs::create_dir(store.meta_path()).unwrap();
            },
            "not a regular file",
        ),
    ];
    for (what, spoil, told) in meta {
        let (_dir, mut store) = with_good("meta-");
        store.write();
        spoil(&store);
        if told.is_empty() {
            let error = store::open(&store.root, &options()).unwrap_err();
            let told = "meta.db, which has the names of images, is missing";
            assert!(matches!(error, Error::Damaged { .. }) && error.to_string().contains(told), "{what}: {error}");
            continue;
        }
        let view = open(&store.root);
        let damage = damage(&view);
        assert!(damage.len() == 1 && damage[0].contains(told), "{what}: {damage:?}");
        for folder in ["by-tag", "by-id", "by-chain", "by-container", "merged"] {
            let node = find(&view, folder).unwrap().unwrap();
            let error = node.list().unwrap_err();
            assert_eq!(error.errno(), Errno::IO, "{what}: {folder}: {error}");
        }
    }
    // A snapshotter's alone: the images are listed, and say so.
    let (_dir, mut store) = with_good("metadata-");
    store.write();
    fs::write(fixture::folder(&store.root, "overlayfs").join("metadata.db"), "x").unwrap();
    let view = open(&store.root);
    let told = damage(&view);
    assert!(told.len() == 1 && told[0].contains("neither meta page is valid"), "{told:?}");
    assert!(read(&view, "by-tag/good:1/damage").unwrap().contains("neither meta page is valid"));
    assert_eq!(find(&view, "merged/good:1").unwrap_err().errno(), Errno::IO);
}

#[test]
fn a_huge_sparse_database_is_read_where_it_has_pages() {
    let (_dir, mut store) = with_good("huge-");
    store.write();
    fs::File::options().write(true).open(store.meta_path()).unwrap().set_len(1 << 40).unwrap();
    let view = open(&store.root);
    assert_good_is_served(&view);
}

#[test]
fn snapshotters_that_are_not_read_are_named() {
    let (_dir, mut store) = with_good("stargz-");
    let image = store.packed(&["remote"]);
    store.name("default", "docker.io/library/remote:1", &image.manifest, 1);
    put(&mut store.meta, &["v1", "default", "snapshots", "stargz", &image.chains[0], "name"], "default/9/x");
    store.write();
    let view = open(&store.root);
    assert_good_is_served(&view);
    let damage = damage(&view);
    assert!(damage.iter().any(|one| one.contains("snapshotter \"stargz\": not supported")), "{damage:?}");
    assert!(read(&view, "by-tag/remote:1/damage").unwrap().contains("the snapshotter \"stargz\" has its layers"));
}

/// Whether a remark that fits is made on an object, and nothing is told as damage.
fn assert_remarked(view: &View, what: &str, told: &str) {
    assert_eq!(damage(view), Vec::<String>::new(), "{what}");
    assert_eq!(status(view)["images"]["damaged"], json!([]), "{what}");
    let remarks = remarks(view);
    assert!(remarks.len() == 1 && remarks[0].contains(told), "{what}: {remarks:?}");
    assert_good_is_served(view);
}

#[test]
fn what_is_ordinary_is_remarked_and_is_no_damage() {
    type Make = fn(&mut Store);
    let rows: &[(&str, Make, &str, Option<&str>)] = &[
        (
            "an image that is not unpacked",
            |store| {
                let image = store.packed(&["packed"]);
                store.name("default", "docker.io/library/odd:1", &image.manifest, 1);
            },
            "not unpacked: its layers are in no snapshot",
            Some("by-tag/odd:1"),
        ),
        (
            "what is no image",
            |store| {
                let document =
                    json!({ "config": { "mediaType": "application/x", "digest": "sha256:00" }, "layers": [] });
                let artifact = store.document(MANIFEST, &document);
                store.name("default", "docker.io/library/odd:1", &artifact, 1);
            },
            "no image of a container",
            Some("by-tag/odd:1"),
        ),
        (
            "two namespaces with one name",
            |store| drop(store.image("second", GOOD, &["older"])),
            "which by-id has",
            None,
        ),
        (
            "a name that is no reference",
            |store| {
                let image = store.packed(&["good base", "good top"]);
                store.name("default", "a b", &image.manifest, 1);
            },
            "by its ID alone",
            None,
        ),
        (
            "a container in a directory",
            |store| put(&mut store.meta, &["v1", "default", "containers", "odd", "snapshotKey"], ""),
            "no snapshot, but a root of its own",
            Some("by-container/odd"),
        ),
    ];
    for (what, make, told, place) in rows {
        let (_dir, mut store) = with_good("ordinary-");
        make(&mut store);
        // Of two images with one name the sound one is the newer.
        let good = store.packed(&["good base", "good top"]).manifest;
        store.name("default", GOOD, &good, 1_800_000_000);
        store.write();
        let view = open(&store.root);
        assert_remarked(&view, what, told);
        let Some(place) = place else { continue };
        assert!(read(&view, &format!("{place}/damage")).is_ok_and(|text| text.contains(told)), "{what}");
        assert!(!names(&view, place).iter().any(|name| name == "merged"), "{what}");
        let tree = place.replace("by-tag/", "merged/");
        let tree = if tree == *place { format!("{place}/merged") } else { tree };
        let refused = find(&view, &tree).unwrap_err();
        assert!(refused.errno() == Errno::IO && refused.to_string().contains(told), "{what}: {refused}");
    }
}

/// Each change of the store has all of it read again but that.
#[test]
fn a_sound_config_is_not_read_again_whatever_is_wrong_otherwise() {
    let (_dir, mut store) = with_good("again-");
    let packed = store.packed(&["packed"]);
    store.name("default", "docker.io/library/packed:1", &packed.manifest, 1);
    let bad = store.image("default", "docker.io/library/bad:1", &["bad base", "bad top"]);
    fs::remove_dir_all(&bad.directories[1]).unwrap();
    let spoiled = store.image("default", "docker.io/library/spoiled:1", &["spoiled"]);
    fs::write(store.blob_path(&spoiled.config), "{}").unwrap();
    store.write();
    let view = open(&store.root);
    for (number, (image, is_read)) in [(&packed, false), (&bad, false), (&spoiled, true)].into_iter().enumerate() {
        let name = format!("new:{number}");
        store.name("default", &format!("docker.io/library/{name}"), &packed.manifest, 1);
        store.write();
        let look = || assert!(names(&view, "by-tag").contains(&name));
        assert_eq!(is_opened(&store.blob_path(&image.config), look), is_read, "{}", image.config);
    }
    assert!(read(&view, "by-tag/bad:1/damage").unwrap().contains("is gone"));
    assert!(read(&view, "by-tag/packed:1/damage").unwrap().contains("not unpacked"));
    // What is known of it is enough when it is mended.
    fs::create_dir_all(&bad.directories[1]).unwrap();
    fs::write(bad.directories[1].join("file-1"), "mended").unwrap();
    assert!(eventually(|| read(&view, "merged/bad:1/file-1").as_deref() == Ok("mended")));
    assert_eq!(read(&view, "by-tag/bad:1/damage").ok(), None);
}

#[test]
fn remarks_are_told_one_by_one_and_then_counted() {
    let (_dir, mut store) = with_good("remarks-");
    for number in 0..250 {
        let image = store.packed(&[format!("text {number}").as_str()]);
        store.name("default", &format!("docker.io/library/packed:{number}"), &image.manifest, 1);
    }
    store.write();
    let view = open(&store.root);
    assert_eq!((remarks(&view).len(), &status(&view)["more_remarks"]), (100, &json!(150)));
    assert_eq!(damage(&view), Vec::<String>::new());
    assert!(read(&view, "by-tag/packed:249/damage").unwrap().contains("not unpacked"));
    // What becomes of it is followed.
    store.image("default", "docker.io/library/packed:7", &["text 7"]);
    store.write();
    assert_eq!(read(&view, "merged/packed:7/file-0").as_deref(), Ok("text 7"));
    assert_eq!(status(&view)["more_remarks"], json!(149));
}

/// Containers of odd IDs, without snapshots, and upon what is no image's layer.
#[test]
fn containers_of_all_kinds() {
    let (_dir, mut store) = with_good("containers-");
    let top = store.packed(&["good base", "good top"]).chains.remove(1);
    let mut container = |namespace: &str, id: &str, snapshotter: &str, key: &str| {
        let place = ["v1", namespace, "containers", id];
        put(&mut store.meta, &[&place[..], &["snapshotter"]].concat(), snapshotter);
        put(&mut store.meta, &[&place[..], &["snapshotKey"]].concat(), key);
        put(&mut store.meta, &[&place[..], &["image"]].concat(), GOOD);
        put(&mut store.meta, &[&place[..], &["spec"]].concat(), b"\x0a\x01t\x12\x02{}".to_vec());
        put(&mut store.meta, &[&place[..], &["updatedat"]].concat(), fixture::time(7));
    };
    let hex = "ab".repeat(32);
    for (namespace, id, snapshotter, key) in [
        ("default", "sound", "overlayfs", "sound"),
        ("default", "../../out", "overlayfs", "sound"),
        ("default", "rootless", "", ""),
        ("default", "other", "btrfs", "x"),
        ("default", "gone", "overlayfs", "gone"),
        ("default", "odd", "overlayfs", "odd"),
        ("default", &hex, "overlayfs", "sound"),
        ("second", &hex, "overlayfs", "none"),
    ] {
        container(namespace, id, snapshotter, key);
    }
    let own = store.snapshot("default", "overlayfs", "sound", Some(&top), 2);
    fs::write(own.join("mine"), "mine").unwrap();
    for (key, below) in [("first", None), ("second", Some("first")), ("third", Some("second")), ("odd", Some("third"))]
    {
        store.snapshot("default", "overlayfs", key, below, if key == "odd" { 2 } else { 3 });
    }
    store.write();
    let view = open(&store.root);
    assert_good_is_served(&view);
    let listed = names(&view, "by-container");
    assert_eq!(listed.len(), 8, "{listed:?}");
    assert_eq!(read(&view, "by-container/sound/merged/mine").as_deref(), Ok("mine"));
    assert_eq!(read(&view, "by-container/sound/merged/file-0").as_deref(), Ok("good base"));
    assert_eq!(read(&view, "by-container/sound/config.json").as_deref(), Ok("{}"));
    for (name, told) in [
        ("rootless", "no snapshot, but a root of its own"),
        ("other", "of the snapshotter \"btrfs\""),
        ("gone", "missing"),
        ("odd", "no layer of an image"),
    ] {
        let text = read(&view, &format!("by-container/{name}/damage")).unwrap();
        assert!(text.contains(told), "{name}: {text}");
        assert_eq!(find(&view, &format!("by-container/{name}/merged")).unwrap_err().errno(), Errno::IO, "{name}");
    }
    assert!(listed.contains(&format!("second.{hex}")) && listed.contains(&hex), "{listed:?}");
}

/// The layers below a container stay when the name of its image goes to another one, whose build steps are not theirs.
#[test]
fn layers_of_a_container_whose_images_name_has_moved() {
    let (_dir, mut store) = with_good("moved-");
    let top = store.packed(&["good base", "good top"]).chains.remove(1);
    store.name("default", "docker.io/library/moved:1", &store.packed(&["good base", "good top"]).manifest, 1);
    for (id, image) in [("same", GOOD), ("moved", "docker.io/library/moved:1")] {
        let place = ["v1", "default", "containers", id];
        put(&mut store.meta, &[&place[..], &["snapshotter"]].concat(), "overlayfs");
        put(&mut store.meta, &[&place[..], &["snapshotKey"]].concat(), id);
        put(&mut store.meta, &[&place[..], &["image"]].concat(), image);
        put(&mut store.meta, &[&place[..], &["spec"]].concat(), b"\x0a\x01t\x12\x02{}".to_vec());
        put(&mut store.meta, &[&place[..], &["updatedat"]].concat(), fixture::time(7));
        store.snapshot("default", "overlayfs", id, Some(&top), 2);
    }
    store.write();
    let view = open(&store.root);
    let commands = |container: &str| -> Vec<Value> {
        let facts = |n| read(&view, &format!("by-container/{container}/layers/{n}.json")).unwrap();
        (0..2).map(|n| serde_json::from_str::<Value>(&facts(n)).unwrap()["created_by"].clone()).collect()
    };
    assert_eq!((commands("same"), commands("moved")), (own_commands(), own_commands()));
    let folder = || find(&view, "by-container/moved").unwrap().unwrap().identity();
    let before = folder();
    store.image("default", "docker.io/library/moved:1", &["other base", "other top", "third"]);
    store.write();
    assert!(eventually(|| commands("moved") == [Value::Null, Value::Null]), "{:?}", commands("moved"));
    assert_eq!(commands("same"), own_commands());
    assert_ne!(folder(), before, "what the kernel knows of the folder is another's");
    assert_eq!(names(&view, "by-container/moved/merged"), ["file-0", "file-1"]);
}

fn own_commands() -> Vec<Value> {
    vec![json!("make good base"), json!("make good top")]
}

/// Docker's data root: its containers' names and configs are beside the store.
#[test]
fn a_data_root_of_docker() {
    let dir = scratch("moby-");
    let data_root = dir.path().join("docker");
    let mut store = Store::new(data_root.join("containerd/daemon"));
    store.image("moby", GOOD, &["good base", "good top"]);
    let top = store.packed(&["good base", "good top"]).chains.remove(1);
    let target = store.packed(&["good base", "good top"]).manifest["digest"].as_str().unwrap().to_owned();
    let ids = ["1", "2", "3"].map(|digit| digit.repeat(64));
    for id in &ids[..2] {
        let init = store.snapshot("moby", "overlayfs", &format!("{id}-init"), Some(&top), 3);
        fs::write(init.join("hosts"), "init").unwrap();
        let own = store.snapshot("moby", "overlayfs", id, Some(&format!("{id}-init")), 2);
        fs::write(own.join("mine"), id).unwrap();
    }
    for (id, name, driver) in [(&ids[0], "/stopped", "overlayfs"), (&ids[2], "/classic", "overlay2")] {
        let place = data_root.join("containers").join(id);
        fs::create_dir_all(&place).unwrap();
        let config = json!({ "ID": id, "Name": name, "Driver": driver, "Image": target, "State": {} });
        fs::write(place.join("config.v2.json"), config.to_string()).unwrap();
    }
    store.write();
    let view = open(&data_root);
    assert_good_is_served(&view);
    assert_eq!(damage(&view), Vec::<String>::new());
    assert_eq!(names(&view, "by-container"), [ids[1].as_str(), "stopped"]);
    assert_eq!(read(&view, "by-container/stopped/merged/mine").as_ref(), Ok(&ids[0]));
    assert_eq!(read(&view, "by-container/stopped/init/hosts").as_deref(), Ok("init"));
    assert!(read(&view, "by-container/stopped/config.json").unwrap().contains("/stopped"));
    // A name that the engine changes is seen.
    let file = data_root.join("containers").join(&ids[0]).join("config.v2.json");
    let text = fs::read_to_string(&file).unwrap().replace("/stopped", "/renamed");
    fs::write(file.with_extension("new"), text).unwrap();
    fs::rename(file.with_extension("new"), file).unwrap();
    assert!(eventually(|| names(&view, "by-container") == [ids[1].as_str(), "renamed"]));
}

#[test]
fn a_classic_store_and_containerds_are_shown_as_one() {
    let dir = scratch("upgraded-");
    let mut classic = support::store::StoreBuilder::new(dir.path().join("docker"));
    let layers = classic.chain(1);
    let image = classic.image(&layers);
    classic.tag("old:1", &image);
    let data_root = classic.finish();
    let mut store = Store::new(data_root.join("containerd/daemon"));
    store.write();
    // An engine that starts its own containerd has this in any case.
    assert_eq!(damage(&open(&data_root)), Vec::<String>::new());
    store.image("moby", GOOD, &["good base", "good top"]);
    store.write();
    let view = open(&data_root);
    assert_eq!(names(&view, "by-tag"), ["good:1", "old:1"]);
    assert_good_is_served(&view);
    assert_eq!(damage(&view), Vec::<String>::new());
    assert_good_is_served(&open(&data_root.join("containerd/daemon")));
}

#[test]
fn a_store_that_changes_is_followed() {
    let (_dir, mut store) = with_good("live-");
    store.write();
    let view = open(&store.root);
    assert_good_is_served(&view);
    store.image("default", "docker.io/library/new:1", &["new"]);
    store.write();
    assert_eq!(names(&view, "by-tag"), ["good:1", "new:1"], "at once: the transaction tells");
    let Item::Bucket(mut v1) = store.meta.remove(b"v1".as_slice()).unwrap() else { panic!("v1 is a bucket") };
    at(&mut v1, &["default", "images"]).remove(GOOD.as_bytes()).unwrap();
    store.meta.insert(b"v1".to_vec(), Item::Bucket(v1));
    store.write();
    assert_eq!(names(&view, "by-tag"), ["new:1"]);
    // Another file under the name, as after a restore, with the same transaction.
    let copy = store.meta_path().with_extension("copy");
    fs::copy(store.meta_path(), &copy).unwrap();
    fs::rename(&copy, store.meta_path()).unwrap();
    assert_eq!(names(&view, "by-tag"), ["new:1"]);
    // What befalls a single file is told by no transaction.
    let id = store.packed(&["new"]).config;
    fs::write(store.blob_path(&id), "spoiled").unwrap();
    assert!(eventually(|| damage(&refreshed(&view)).iter().any(|one| one.contains("its SHA-256 is"))));
    assert!(!sha256_hex("spoiled").is_empty());
}

fn refreshed(view: &View) -> View {
    let _state = view.refresh();
    view.clone()
}

/// Four times as much takes some four times as long, and not sixteen times.
fn assert_linear(what: &str, mut make: impl FnMut(usize) -> Store) {
    let mut time = |count: usize| {
        let mut store = make(count);
        store.write();
        let stores = store::open(&store.root, &options()).unwrap();
        worked(|| drop(View::new(stores, &view::Options::default()).unwrap()))
    };
    let (few, many) = (time(1_500), time(6_000));
    assert!(many < few * 9 + Duration::from_millis(300), "{what}: {few:?}, and {many:?} for four times as much");
}

#[test]
fn much_damage_takes_no_longer_for_each() {
    let dir = scratch("linear-");
    let mut number = 0;
    let mut fresh = || {
        number += 1;
        Store::new(dir.path().join(number.to_string()))
    };
    assert_linear("containers without snapshots", |count| {
        let mut store = fresh();
        for number in 0..count {
            let id = format!("gone-{number}");
            put(&mut store.meta, &["v1", "default", "containers", &id, "snapshotter"], "overlayfs");
            put(&mut store.meta, &["v1", "default", "containers", &id, "snapshotKey"], id.as_bytes());
        }
        store
    });
    assert_linear("snapshots that lead into a circle", |count| {
        let mut store = fresh();
        let chain = |number: usize| format!("sha256:{number:064x}");
        let place = ["v1", "default", "snapshots", "overlayfs"];
        let mut name = |key: &str, below: &str| {
            put(&mut store.meta, &[&place[..], &[key, "name"]].concat(), key);
            put(&mut store.meta, &[&place[..], &[key, "parent"]].concat(), below);
            let own = store.snapshots.entry("overlayfs".to_owned()).or_default();
            put(own, &["v1", "snapshots", key, "id"], [1]);
            put(own, &["v1", "snapshots", key, "kind"], [3]);
            put(own, &["v1", "snapshots", key, "parent"], below);
        };
        let length = count / 15;
        for number in 0..2_000 {
            name(&chain(number), &chain(if number < length { (number + 1) % length } else { 0 }));
        }
        store
    });
}

#[test]
fn manifests_of_one_image_and_one_size_are_two_files() {
    let (_dir, mut store) = with_good("manifests-");
    let image = store.packed(&["good base", "good top"]);
    let manifest = |store: &Store, note: &str| {
        let config = json!({ "mediaType": CONFIG, "digest": image.config, "size": 1 });
        let document = json!({ "schemaVersion": 2, "config": config, "layers": [], "annotations": { "note": note } });
        store.document(MANIFEST, &document)
    };
    let (one, other) = (manifest(&store, "one"), manifest(&store, "two"));
    assert_eq!(one["size"], other["size"]);
    let place = format!("by-id/{}/manifest.json", image.id());
    let mut shown = Vec::new();
    store.name("default", GOOD, &one, 1);
    store.write();
    let view = open(&store.root);
    for (target, note) in [(one, "one"), (other, "two")] {
        store.name("default", GOOD, &target, 1);
        store.write();
        assert!(read(&view, &place).unwrap().contains(note));
        shown.push(find(&view, &place).unwrap().unwrap().identity());
    }
    assert_ne!(shown[0], shown[1]);
}

/// An index whose entries do not say what they are for, and lead to one large config.
#[test]
fn a_config_is_read_once_however_often_it_is_named() {
    let (_dir, mut store) = with_good("large-");
    let large = json!({ "os": "plan9", "architecture": "mips", "padding": "x".repeat(4 << 20) });
    let config = store.document(CONFIG, &large);
    let manifest = |number: usize| json!({ "schemaVersion": 2, "config": config, "layers": [], "number": number });
    let manifests: Vec<Value> = (0..900).map(|number| store.document(MANIFEST, &manifest(number))).collect();
    let index = store.document(INDEX, &json!({ "schemaVersion": 2, "manifests": manifests }));
    // Each media type is another target.
    for number in 0..100 {
        let mut target = index.clone();
        target["mediaType"] = json!(format!("application/x-{number}"));
        store.name("default", &format!("docker.io/library/large:{number}"), &target, 1);
    }
    store.write();
    let stores = store::open(&store.root, &options()).unwrap();
    let time = worked(|| {
        let view = View::new(stores, &view::Options::default()).unwrap();
        assert_good_is_served(&view);
    });
    // To read it nine hundred times takes minutes, and each of the names as long again.
    assert!(time < Duration::from_secs(10), "{time:?}");
}
