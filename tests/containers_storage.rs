//! Stores of containers/storage that no engine here makes, and such as none should: what is shown of them, and what is
//! told of what is wrong.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use docker_fs::layer::whiteout::Prefix;
use docker_fs::name::TreePath;
use docker_fs::store;
use docker_fs::view::{Node, Options, View};
use serde_json::{Value, json};
use support::storage::{StorageBuilder, StorageLayer, id_of};
use support::store::sha256_hex;
use support::{eventually, scratch, worked};
use tempfile::TempDir;

const STAT: &str = "user.containers.override_stat";

fn open(root: &Path) -> docker_fs::error::Result<View> {
    // So that no privileges are needed.
    let options = store::Options { prefix: Some(Prefix::User), kind: None };
    View::new(store::open(root, &options)?, &Options::default())
}

fn view(store: &StorageBuilder) -> View {
    store.write();
    open(store.root()).unwrap()
}

fn node(view: &View, path: &str) -> Option<Node> {
    view.resolve(&TreePath::new(path.as_bytes()).unwrap()).ok().flatten()
}

/// The content of a file, through symbolic links of the view.
fn read(view: &View, path: &str) -> Option<String> {
    let file = node(view, path)?.open().ok()?;
    let mut content = vec![0; 65_536];
    let count = file.read_at(&mut content, 0).unwrap();
    content.truncate(count);
    Some(String::from_utf8(content).unwrap())
}

fn json_of(view: &View, path: &str) -> Value {
    serde_json::from_str(&read(view, path).unwrap_or_else(|| panic!("{path}"))).unwrap()
}

fn names(view: &View, path: &str) -> Vec<String> {
    let listed =
        node(view, path).unwrap_or_else(|| panic!("{path}")).list().unwrap_or_else(|why| panic!("{path}: {why}"));
    let mut names: Vec<String> =
        listed.iter().map(|(name, _)| name.as_os_str().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

fn damage(view: &View) -> Vec<String> {
    view.damage().iter().map(ToString::to_string).collect()
}

fn scratch_store(driver: &'static str) -> (TempDir, StorageBuilder) {
    let dir = scratch("storage-");
    let store = StorageBuilder::new(&dir.path().join("root"), driver);
    (dir, store)
}

/// Two layers, an image of each, and a container of the second.
fn usual(store: &mut StorageBuilder) -> [StorageLayer; 2] {
    let base = store.layer("base", None);
    let top = store.layer("top", Some(&base));
    store.image(&["localhost/base:1"], &[&base]);
    let app = store.image(&["localhost/app:1", "docker.io/library/app:latest"], &[&base, &top]);
    let (container, layer, _) = store.container("web", &app, &top);
    store.containers.push(container);
    store.layers.push(layer);
    [base, top]
}

/// That what `usual` made is all served.
fn assert_served(view: &View) {
    for (path, content) in [
        ("merged/localhost/base:1/base", "base\n"),
        ("merged/localhost/app:1/base", "base\n"),
        ("merged/app:latest/top", "top\n"),
        ("by-tag/localhost/app:1/layers/1/top", "top\n"),
    ] {
        assert_eq!(read(view, path).as_deref(), Some(content), "{path}: {:?}", damage(view));
    }
}

fn chain(diffs: &[&str]) -> String {
    diffs.iter().fold(String::new(), |below, diff| match below.as_str() {
        "" => (*diff).to_owned(),
        below => sha256_hex(format!("sha256:{below} sha256:{diff}")),
    })
}

#[test]
fn what_a_sound_store_shows() {
    let (_dir, mut store) = scratch_store("overlay");
    let [base, top] = usual(&mut store);
    let app = store.images[1]["id"].as_str().unwrap().to_owned();
    let (container, layer, own) = store.container("brief", &app, &top);
    store.volatile_containers.push(container);
    store.volatile_layers.push(layer);
    fs::write(own.dir.join("base"), "mine\n").unwrap();
    let view = view(&store);
    assert_served(&view);
    assert_eq!(damage(&view), [""; 0]);
    let digest = store.digest_of(&app);
    assert_eq!(names(&view, "by-digest"), [format!("app@{digest}"), "localhost".to_owned()]);
    assert_eq!(names(&view, "by-tag/localhost/app:1"), ["config.json", "history", "layers", "manifest.json", "merged"]);
    assert_eq!(format!("sha256:{}", sha256_hex(read(&view, "by-tag/localhost/app:1/manifest.json").unwrap())), digest);
    assert_eq!(sha256_hex(read(&view, "by-tag/localhost/app:1/config.json").unwrap()), app);
    // Containers' own layers may change, and are none of images.
    let chains = [chain(&[&base.diff]), chain(&[&base.diff, &top.diff])];
    let mut expected: Vec<String> = chains.iter().flat_map(|id| [id.clone(), format!("{id}.json")]).collect();
    expected.sort_unstable();
    assert_eq!(names(&view, "by-chain"), expected);
    assert_eq!(names(&view, "by-container"), ["brief", "web"]);
    assert_eq!(names(&view, "by-container/brief/merged"), ["base", "of-brief", "top"]);
    assert_eq!(read(&view, "by-container/brief/merged/base").as_deref(), Some("mine\n"));
    assert_eq!(names(&view, "by-container/brief/changes"), ["base", "of-brief"]);
    assert_eq!(names(&view, "by-container/web/layers"), ["0", "0.json", "1", "1.json"]);
    assert_eq!(json_of(&view, "by-container/web/config.json")["names"], json!(["web"]));
    assert_eq!(json_of(&view, "status")["kind"], json!("containers-storage"));
}

#[test]
fn layers_that_are_being_filled_are_none() {
    let (_dir, mut store) = scratch_store("overlay");
    let [base, _] = usual(&mut store);
    let half = store.layer("half", Some(&base));
    store.entry(&half).insert("flags".to_owned(), json!({"incomplete": true}));
    let view1 = view(&store);
    assert_served(&view1);
    assert_eq!(damage(&view1), [""; 0]);
    assert_eq!(names(&view1, "by-chain").len(), 4);
    // An image upon one is not to be shown without it.
    store.image(&["localhost/half:1"], &[&base, &half]);
    let view2 = view(&store);
    assert_served(&view2);
    let expected = format!("layer {} is not listed as a whole one", half.id);
    assert!(damage(&view2).iter().any(|why| why.contains(&expected)), "{:?}", damage(&view2));
    assert!(node(&view2, "merged/localhost/half:1").is_none());
    assert!(read(&view2, "by-tag/localhost/half:1/damage").unwrap().contains(&expected));
}

#[test]
fn layers_that_were_pulled_in_parts_are_called_what_configs_call_them() {
    let (_dir, mut store) = scratch_store("overlay");
    let base = store.layer("base", None);
    let part = store.layer("part", Some(&base));
    let upper = store.layer("upper", Some(&part));
    // The digest of the compressed blob, in the place of the diff ID.
    let entry = store.entry(&part);
    entry.remove("diff-size");
    entry.insert("diff-digest".to_owned(), json!(format!("sha256:{}", id_of("blob"))));
    let toc = store.layer("toc", Some(&upper));
    let entry = store.entry(&toc);
    entry.remove("diff-digest");
    entry.insert("toc-digest".to_owned(), json!(format!("sha256:{}", id_of("toc"))));
    store.image(&["localhost/parts:1"], &[&base, &part, &upper, &toc]);
    // No image tells of this one.
    let alone = store.layer("alone", Some(&part));
    store.entry(&alone).remove("diff-size");
    let view = view(&store);
    assert_eq!(damage(&view), [""; 0]);
    assert_eq!(names(&view, "merged/localhost/parts:1"), ["base", "part", "toc", "upper"]);
    let all = chain(&[&base.diff, &part.diff, &upper.diff, &toc.diff]);
    assert_eq!(names(&view, &format!("by-chain/{all}")), ["toc"]);
    assert_eq!(json_of(&view, &format!("by-chain/{all}.json"))["diff_id"], json!(format!("sha256:{}", toc.diff)));
    assert_eq!(names(&view, &format!("by-chain/{}", alone.id)), ["alone"]);
    assert_eq!(names(&view, &format!("merged/{}", alone.id)), ["alone", "base", "part"]);
}

#[test]
fn a_config_that_says_otherwise_changes_no_image() {
    let (_dir, mut store) = scratch_store("overlay");
    let [base, _] = usual(&mut store);
    let evil = store.layer("evil", None);
    store.image_of(&["localhost/evil:1"], std::slice::from_ref(&base.diff), Some(&evil));
    let view = view(&store);
    assert_served(&view);
    assert_eq!(names(&view, "merged/localhost/base:1"), ["base"]);
    assert_eq!(names(&view, "merged/localhost/evil:1"), ["evil"]);
    assert_eq!(damage(&view).len(), 1);
    assert!(damage(&view)[0].contains(&format!("has the diff ID sha256:{}", evil.diff)), "{:?}", damage(&view));
}

#[test]
fn lists_of_images_lead_to_the_one_for_this_machine() {
    let (_dir, mut store) = scratch_store("overlay");
    let [base, top] = usual(&mut store);
    let other = store.image(&[], &[&base]);
    let own = store.image(&[], &[&base, &top]);
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let digests = [store.digest_of(&other), store.digest_of(&own)];
    let list = store.list(&["localhost/list:1"], &[(&digests[0], "vax"), (&digests[1], architecture)]);
    let foreign =
        store.list(&["localhost/foreign:1"], &[(&format!("sha256:{}", id_of("x")), "pdp11"), (&digests[0], "vax")]);
    let gone = store.list(&["localhost/gone:1"], &[(&format!("sha256:{}", id_of("x")), architecture)]);
    let view = view(&store);
    assert_served(&view);
    assert_eq!(damage(&view), [""; 0]);
    assert_eq!(names(&view, "merged/localhost/list:1"), ["base", "top"]);
    assert_eq!(sha256_hex(read(&view, "by-tag/localhost/list:1/config.json").unwrap()), own);
    assert_eq!(names(&view, "merged/localhost/foreign:1"), ["base"]);
    assert!(node(&view, "merged/localhost/gone:1").is_none());
    for id in [&list, &foreign] {
        assert_eq!(names(&view, &format!("by-id/{id}")), ["manifest.json"]);
        assert!(node(&view, &format!("merged/{id}")).is_none());
    }
    assert_eq!(names(&view, &format!("by-id/{gone}")), ["damage", "manifest.json"]);
    assert!(json_of(&view, &format!("by-id/{list}/manifest.json"))["manifests"].is_array());
}

/// As with `additionalimagestores`: what an image was built upon is in another store.
#[test]
fn a_layer_upon_another_stores_is_shown_by_itself() {
    for driver in ["overlay", "vfs"] {
        let (_dir, mut store) = scratch_store(driver);
        usual(&mut store);
        let other = StorageLayer { id: id_of("its own"), diff: id_of("elsewhere"), dir: store.root().to_owned() };
        let [one, two] = [("one", &other), ("two", &other)].map(|(name, parent)| store.layer(name, Some(parent)));
        store.entry(&two).insert("parent".to_owned(), json!(one.id));
        let image = store.image(&["localhost/upon:1"], &[&other, &one, &two]);
        let (container, layer, _) = store.container("upon", &image, &two);
        store.containers.push(container);
        store.layers.push(layer);
        let view = view(&store);
        let told = format!(
            "layer {}: layer {} is not listed as a whole one; layers of additional image stores are not found",
            one.id, other.id
        );
        assert_eq!(damage(&view), [told.as_str()], "{driver}");
        assert!(names(&view, "by-container/upon/changes").contains(&"of-upon".to_owned()), "{driver}");
        assert_eq!(read(&view, "by-container/upon/damage").unwrap().trim_end(), told, "{driver}");
        assert!(node(&view, "by-container/upon/merged").is_none(), "{driver}");
        let layers = names(&view, "by-tag/localhost/upon:1/layers");
        if driver == "vfs" {
            // The top one is the whole tree.
            assert_eq!(layers, ["0.json", "1.json", "2", "2.json"]);
            assert_eq!(names(&view, "merged/localhost/upon:1"), ["two"]);
            continue;
        }
        assert_served(&view);
        assert_eq!(layers, ["0.json", "1", "1.json", "2", "2.json"]);
        assert_eq!(names(&view, "by-tag/localhost/upon:1/layers/1"), ["one"]);
        let facts = json_of(&view, "by-tag/localhost/upon:1/layers/0.json");
        assert_eq!(facts["diff_id"], Value::Null);
        assert_eq!(facts["damage"], json!("the store does not list this layer"));
        let chain = chain(&[&other.diff, &one.diff]);
        assert_eq!(names(&view, &format!("by-chain/{chain}")), ["one"]);
        assert_eq!(read(&view, "by-tag/localhost/upon:1/damage").unwrap().trim_end(), told);
        for union in [format!("merged/{chain}"), "merged/localhost/upon:1".to_owned(), format!("merged/{image}")] {
            assert!(view.resolve(&TreePath::new(union.as_bytes()).unwrap()).is_err(), "{union}");
        }
    }
}

/// As `podman manifest create` and `add` leave them.
#[test]
fn lists_that_are_made_here_are_sound() {
    let (_dir, mut store) = scratch_store("overlay");
    let [base, _] = usual(&mut store);
    let own = store.image(&[], &[&base]);
    let digest = store.digest_of(&own);
    let filled = store.list(&["localhost/filled:1"], &[(&digest, "amd64")]);
    let empty = store.list(&["localhost/empty:1"], &[]);
    let text = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": null});
    store.document(&empty, "manifest", text.to_string().as_bytes());
    // The digest stays that of the list as it was made.
    let made = format!("sha256:{}", sha256_hex(text.to_string()));
    let now = store.digest_of(&filled);
    for entry in store.images.iter_mut().rev().take(2) {
        entry["digest"] = json!(made);
    }
    let view = view(&store);
    assert_served(&view);
    assert_eq!(damage(&view), [""; 0]);
    let remarks: Vec<String> = view.remarks().iter().map(ToString::to_string).collect();
    assert_eq!(remarks, ["the image \"localhost/empty:1\": a list without images"]);
    assert_eq!(json_of(&view, "status")["images"]["damaged"], json!([]));
    assert_eq!(read(&view, &format!("by-id/{empty}/damage")).unwrap().trim_end(), remarks[0]);
    assert_eq!(json_of(&view, &format!("by-id/{filled}/manifest.json"))["manifests"][0]["digest"], json!(digest));
    assert_eq!(names(&view, "merged/localhost/filled:1"), ["base"]);
    let listed = names(&view, "by-digest/localhost");
    let of = |name: &str, digest: &str| listed.contains(&format!("{name}@{digest}"));
    assert!(of("filled", &now) && !of("filled", &made) && of("empty", &made), "{listed:?}");
}

#[test]
fn an_id_that_was_made_up_leads_to_the_config() {
    let (_dir, mut store) = scratch_store("overlay");
    let [base, _] = usual(&mut store);
    let config =
        serde_json::to_vec(&json!({"rootfs": {"diff_ids": [format!("sha256:{}", base.diff)]}, "x": 1})).unwrap();
    let hash = sha256_hex(&config);
    let manifest =
        serde_json::to_vec(&json!({"schemaVersion": 2, "config": {"digest": format!("sha256:{hash}")}})).unwrap();
    let id = id_of("made up");
    store.image_entry(&id, &hash, &["localhost/made-up:1"], &config, &manifest, Some(&base));
    let view = view(&store);
    assert_served(&view);
    assert_eq!(damage(&view), [""; 0]);
    assert_eq!(read(&view, &format!("by-id/{id}/config.json")).unwrap().into_bytes(), config);
    assert_eq!(names(&view, "merged/localhost/made-up:1"), ["base"]);
}

fn set(path: &Path, name: &str, value: &str) {
    use rustix::fs::{XattrFlags, setxattr};
    setxattr(path, name, value.as_bytes(), XattrFlags::empty()).unwrap();
}

/// Kind, owner, group and permissions.
fn facts(view: &View, path: &str) -> (docker_fs::meta::Kind, u32, u32, u16) {
    let path = TreePath::new(path.as_bytes()).unwrap();
    let (dir, name) = path.split_last().unwrap();
    let entry = view.resolve(&dir).unwrap().unwrap().lookup(&name).unwrap().unwrap();
    (entry.meta.kind, entry.meta.uid, entry.meta.gid, entry.meta.permissions)
}

#[test]
fn overridden_owners_count_where_the_layer_says_so() {
    use docker_fs::meta::Kind;
    let (_dir, mut store) = scratch_store("overlay");
    let masked = store.layer("masked", None);
    let forged = store.layer("forged", Some(&masked));
    for (layer, file) in [(&masked, "device"), (&masked, "dir/tool"), (&forged, "own")] {
        fs::create_dir_all(layer.dir.join("dir")).unwrap();
        fs::write(layer.dir.join(file), "").unwrap();
    }
    set(&masked.dir, STAT, "0:0:0555");
    set(&masked.dir.join("device"), STAT, "0:6:0660:block-8-1");
    set(&masked.dir.join("dir/tool"), STAT, "0:42:04755:file");
    set(&masked.dir.join("dir"), STAT, "7:8:01777");
    set(&forged.dir.join("own"), STAT, "7:8:04755");
    set(&forged.dir, "user.other", "1");
    store.image(&["localhost/m:1"], &[&masked, &forged]);
    let stored = facts(&view(&store), "merged/localhost/m:1/own");
    assert_ne!((stored.1, stored.3), (7, 0o4755));
    let masked_view = view(&store);
    assert_eq!(facts(&masked_view, "merged/localhost/m:1/device"), (Kind::BlockDevice, 0, 6, 0o660));
    assert_eq!(facts(&masked_view, "merged/localhost/m:1/dir/tool"), (Kind::Regular, 0, 42, 0o4755));
    assert_eq!(facts(&masked_view, "by-tag/localhost/m:1/layers/0/dir"), (Kind::Directory, 7, 8, 0o1777));
    let names = node(&masked_view, "merged/localhost/m:1/dir/tool").unwrap().xattr_names().unwrap();
    assert!(!names.contains(&STAT.as_bytes().to_vec()), "{names:?}");
    // The kernel, which unites the layers of this store, knows nothing of it.
    fs::write(store.root().join("overlay/.has-mount-program"), "false").unwrap();
    let kernel_view = view(&store);
    assert_eq!(facts(&kernel_view, "merged/localhost/m:1/device").0, Kind::Regular);
    assert_ne!(facts(&kernel_view, "merged/localhost/m:1/dir/tool").3, 0o4755);
}

#[test]
fn fuse_overlayfs_has_marks_of_its_own() {
    let (_dir, mut store) = scratch_store("overlay");
    let [base, top] = usual(&mut store);
    for (layer, file) in [(&base, "gone"), (&base, "opaque/old"), (&top, ".wh.gone"), (&top, "opaque/.wh..wh..opq")] {
        fs::create_dir_all(layer.dir.join("opaque")).unwrap();
        fs::write(layer.dir.join(file), "").unwrap();
    }
    set(&top.dir, STAT, "0:0:0555");
    set(&top.dir.join("top"), STAT, "0:42:0640");
    let merged = |flag: &str| {
        fs::write(store.root().join("overlay/.has-mount-program"), flag).unwrap();
        let view = view(&store);
        assert_eq!(damage(&view), [""; 0]);
        let opaque = names(&view, "merged/localhost/app:1/opaque");
        (names(&view, "merged/localhost/app:1"), opaque, facts(&view, "merged/localhost/app:1/top").3)
    };
    let (own, opaque, mode) = merged("true");
    assert_eq!((own, opaque, mode), (["base", "opaque", "top"].map(str::to_owned).to_vec(), Vec::new(), 0o640));
    let (own, opaque, mode) = merged("false");
    assert_eq!(own, [".wh.gone", "base", "gone", "opaque", "top"]);
    assert_eq!((opaque, mode), ([".wh..wh..opq", "old"].map(str::to_owned).to_vec(), 0o644));
}

#[test]
fn layers_that_are_kept_otherwise_are_named_and_the_rest_served() {
    for (what, named) in [
        ("composefs-data/composefs.blob", "composefs"),
        ("additionallayer", "additional layer store"),
        ("diff1/x", "several directories"),
    ] {
        let (_dir, mut store) = scratch_store("overlay");
        let [base, _] = usual(&mut store);
        let other = store.layer("other", Some(&base));
        let place = other.dir.parent().unwrap().join(what);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(place, "").unwrap();
        if what == "additionallayer" {
            fs::remove_dir_all(&other.dir).unwrap();
            symlink("/etc", &other.dir).unwrap();
        }
        store.image(&["localhost/other:1"], &[&base, &other]);
        let view = view(&store);
        assert_served(&view);
        assert_eq!(damage(&view).len(), 1, "{what}: {:?}", damage(&view));
        assert!(damage(&view)[0].contains(named), "{:?}", damage(&view));
        assert!(node(&view, "merged/localhost/other:1").is_none(), "{what}");
        assert!(read(&view, "by-tag/localhost/other:1/damage").unwrap().contains(named));
    }
}

#[test]
fn of_whole_trees_the_top_one_is_the_image() {
    let (_dir, mut store) = scratch_store("vfs");
    let base = store.layer("base", None);
    fs::write(base.dir.join("gone"), "").unwrap();
    let top = store.layer("top", Some(&base));
    let app = store.image(&["localhost/app:1"], &[&base, &top]);
    let (container, layer, own) = store.container("web", &app, &top);
    store.containers.push(container);
    store.layers.push(layer);
    fs::write(own.dir.join("more"), "").unwrap();
    let view1 = view(&store);
    assert_eq!(damage(&view1), [""; 0]);
    assert_eq!(names(&view1, "merged/localhost/app:1"), ["top"]);
    assert_eq!(names(&view1, "by-container/web/merged"), ["more", "of-web"]);
    assert_eq!(names(&view1, "by-tag/localhost/app:1/layers/1"), [".wh.base", ".wh.gone", "top"]);
    // What is below does not matter to it.
    fs::remove_dir_all(&base.dir).unwrap();
    let view2 = open(store.root()).unwrap();
    assert_eq!(names(&view2, "merged/localhost/app:1"), ["top"]);
    assert_eq!(damage(&view2).len(), 1, "{:?}", damage(&view2));
}

#[test]
fn an_image_that_is_being_made_is_not_there_yet() {
    let (_dir, mut store) = scratch_store("overlay");
    let [base, _] = usual(&mut store);
    let id = id_of("new");
    store
        .images
        .push(json!({"id": id, "names": ["localhost/new:1"], "layer": base.id, "created": "2026-01-02T03:04:05Z"}));
    let view1 = view(&store);
    assert_served(&view1);
    assert_eq!(damage(&view1), [""; 0]);
    assert_eq!(names(&view1, "by-id").len(), 2);
    assert!(node(&view1, "by-tag/localhost/new:1").is_none());
    // One whose documents were listed had them.
    let listed = store.images.last_mut().unwrap();
    listed["big-data-names"] = json!([format!("sha256:{id}")]);
    let view2 = view(&store);
    assert_served(&view2);
    let told = ": missing, though it is the config of the image \"localhost/new:1\"";
    assert!(damage(&view2).iter().any(|why| why.ends_with(told)), "{:?}", damage(&view2));
}

/// What is done to a store, and what is then told; what `usual` made is served all the same.
type Case = (&'static str, fn(&mut StorageBuilder, &[StorageLayer; 2]), &'static str);

fn odd_image(store: &mut StorageBuilder, entry: Value) {
    store.images.push(entry);
}

const ODD: [Case; 16] = [
    ("an ID with slashes", |s, _| odd_image(s, json!({"id": "../../../etc", "names": ["localhost/x:1"]})), "is no ID"),
    ("an ID of another length", |s, _| odd_image(s, json!({"id": "abc"})), "\"abc\" is no ID"),
    ("an entry that is a number", |s, _| odd_image(s, json!(7)), "entry 2 is not of its form"),
    ("an entry without ID", |s, _| odd_image(s, json!({"names": []})), "missing field `id`"),
    (
        "names that are numbers",
        |s, _| odd_image(s, json!({"id": id_of("x"), "names": [1]})),
        "entry 2 is not of its form",
    ),
    (
        "a name that is none",
        |s, _| s.images[0]["names"] = json!(["localhost/base:1", "../../x"]),
        "\"../../x\" is no reference",
    ),
    ("a name of two", |s, [base, _]| drop(s.image(&["localhost/app:1"], &[base])), "names two images localhost/app:1"),
    (
        "an image twice",
        |s, _| {
            let mut again = s.images[1].clone();
            again["names"] = json!(["localhost/again:1"]);
            s.images.push(again);
        },
        "is listed twice; the first entry counts",
    ),
    (
        "a layer twice",
        |s, [_, top]| s.layers.push(json!({"id": top.id, "parent": top.id})),
        "is listed twice; the first entry counts",
    ),
    ("a layer with slashes", |s, _| s.layers.push(json!({"id": "a/b"})), "\"a/b\" is no ID"),
    ("a parent with slashes", |s, _| s.layers.push(json!({"id": id_of("x"), "parent": "/etc"})), "\"/etc\" is no ID"),
    (
        "parents in a circle",
        |s, [base, _]| {
            let [one, two] = [s.layer("one", None), s.layer("two", None)];
            s.entry(&one).insert("parent".to_owned(), json!(two.id));
            s.entry(&two).insert("parent".to_owned(), json!(one.id));
            s.image(&["localhost/circle:1"], &[base, &one, &two]);
        },
        "lead back to layer",
    ),
    (
        "a parent of another store",
        |s, [base, _]| {
            let lost = s.layer("lost", None);
            s.entry(&lost).insert("parent".to_owned(), json!(id_of("elsewhere")));
            s.image(&["localhost/lost:1"], &[base, &lost]);
        },
        "layers of additional image stores are not found",
    ),
    (
        "a layer that is gone",
        |s, [base, _]| {
            let gone = s.layer("gone", Some(base));
            fs::remove_dir_all(&gone.dir).unwrap();
            s.image(&["localhost/gone:1"], &[base, &gone]);
        },
        "the layer's directory is gone",
    ),
    (
        "a layer that is a link",
        |s, [base, _]| {
            let linked = s.layer("linked", Some(base));
            fs::remove_dir_all(&linked.dir).unwrap();
            symlink("/etc", &linked.dir).unwrap();
            s.image(&["localhost/linked:1"], &[base, &linked]);
        },
        "the layer is not a directory",
    ),
    (
        "a config of other layers",
        |s, [base, top]| drop(s.image_of(&["localhost/few:1"], std::slice::from_ref(&base.diff), Some(top))),
        "it names 1 layers, but the store has 2 for it",
    ),
];

#[test]
fn what_is_odd_spoils_nothing_else() {
    for (what, make, told) in ODD {
        let (_dir, mut store) = scratch_store("overlay");
        let layers = usual(&mut store);
        make(&mut store, &layers);
        let view = view(&store);
        assert_served(&view);
        let damage = damage(&view);
        assert!(damage.iter().any(|why| why.contains(told)), "{what}: {damage:?}");
        assert!(damage.len() <= 3, "{what}: {damage:?}");
        for shown in names(&view, "merged/localhost") {
            assert!(["base:1", "app:1"].contains(&shown.as_str()), "{what}: {shown}");
        }
    }
}

#[test]
fn lists_that_cannot_be_read_are_told() {
    for (file, folder) in [
        ("images/images.json", "by-id"),
        ("layers/layers.json", "by-chain"),
        ("containers/containers.json", "by-container"),
    ] {
        let (_dir, mut store) = scratch_store("overlay");
        usual(&mut store);
        store.write();
        let place = store.root().join(format!("overlay-{file}"));
        let whole = fs::read(&place).unwrap();
        for (what, content) in [
            ("truncated", &whole[..whole.len() / 2]),
            ("empty", b""),
            ("an object", b"{}"),
            ("more behind it", b"[] []"),
            ("deep", "[".repeat(100_000).as_bytes()),
        ] {
            fs::write(&place, content).unwrap();
            let view = open(store.root()).unwrap();
            assert!(node(&view, folder).unwrap().list().is_err(), "{file} {what}");
            let damage = damage(&view);
            assert_eq!(damage.len(), 1, "{file} {what}: {damage:?}");
            assert!(
                damage.iter().any(|why| why.contains(file.split('/').next_back().unwrap())),
                "{file} {what}: {damage:?}"
            );
        }
        fs::remove_file(&place).unwrap();
        let gone = open(store.root()).unwrap();
        if folder != "by-container" {
            assert!(damage(&gone).iter().any(|why| why.ends_with("json: missing")), "{file}: {:?}", damage(&gone));
        }
        symlink("/etc/passwd", &place).unwrap();
        assert!(node(&open(store.root()).unwrap(), folder).unwrap().list().is_err(), "{file}: a link");
        fs::remove_file(&place).unwrap();
        fs::write(&place, &whole).unwrap();
        assert_served(&open(store.root()).unwrap());
    }
}

#[test]
fn documents_that_are_not_their_images() {
    let (_dir, mut store) = scratch_store("overlay");
    let [base, _] = usual(&mut store);
    let wrong = store.image(&["localhost/wrong:1"], &[&base]);
    let large = store.image(&["localhost/large:1", "localhost/x:1"], &[&base]);
    let odd = store.image(&["localhost/odd:1", "localhost/y:1"], &[&base]);
    store.document(&wrong, &format!("sha256:{wrong}"), b"{}");
    store.document(&large, &format!("sha256:{large}"), &vec![b' '; 5 << 20]);
    let digest = store.digest_of(&odd);
    store.document(&odd, &format!("manifest-{digest}"), b"{\"schemaVersion\":2}");
    // Keys that no file can have.
    let keys = json!(["a/b", "../../../../etc/passwd", "k".repeat(5_000), "", "..", format!("sha256:{odd}")]);
    store.images.last_mut().unwrap()["big-data-names"] = keys;
    let view = view(&store);
    assert_served(&view);
    let damage = damage(&view);
    assert_eq!(damage.len(), 2, "{damage:?}");
    assert!(
        damage.iter().any(|why| why.contains("its SHA-256 is")) && damage.iter().any(|why| why.contains("larger than"))
    );
    assert_eq!(names(&view, "merged/localhost/odd:1"), ["base"]);
    let manifest = node(&view, "by-tag/localhost/odd:1/manifest.json").unwrap();
    assert!(manifest.open().is_err());
}

#[test]
fn ten_thousand_of_each() {
    let (_dir, mut store) = scratch_store("overlay");
    let layers = usual(&mut store);
    for number in 0..10_000 {
        store.images.push(json!({"id": id_of(&format!("i{number}")), "names": [format!("../{number}")], "big-data-names": ["manifest"]}));
        store.layers.push(json!({"id": id_of(&format!("l{number}")), "parent": layers[1].id}));
        store.containers.push(json!({"id": id_of(&format!("c{number}")), "names": ["/"], "layer": number}));
    }
    // One upon the other.
    let mut parent = layers[1].id.clone();
    for number in 0..600 {
        let id = id_of(&format!("d{number}"));
        store.layers.push(json!({"id": id, "parent": parent}));
        parent = id;
    }
    let top = StorageLayer { id: parent, diff: layers[0].diff.clone(), dir: layers[0].dir.clone() };
    store.image(&["localhost/deep:1"], &[&layers[0], &top]);
    let view = view(&store);
    assert_served(&view);
    let damage = damage(&view);
    assert!(damage.iter().any(|why| why.contains("upon more than 500 layers")), "{}", damage.len());
    assert!(damage.iter().any(|why| why.ends_with("9900 more of its entries are wrong")), "{}", damage.len());
    assert_eq!(names(&view, "by-container"), ["web"]);
}

#[test]
fn names_beyond_a_thousand_are_told() {
    let (_dir, mut store) = scratch_store("overlay");
    usual(&mut store);
    let many: Vec<String> = (0..1_007).map(|number| format!("localhost/many:{number}")).collect();
    store.images[0]["names"] = json!([["localhost/base:1".to_owned()].to_vec(), many].concat());
    let view = view(&store);
    assert_served(&view);
    let id = store.images[0]["id"].as_str().unwrap();
    let why = format!("image sha256:{id} has 8 names more than the first 1000, which alone are shown");
    let told = view.damage();
    assert_eq!(told.iter().map(|damage| damage.why.clone()).collect::<Vec<_>>(), [why]);
    assert_eq!(told[0].images.iter().map(docker_fs::digest::ImageId::hex).collect::<Vec<_>>(), [id]);
    assert_eq!(names(&view, "merged/localhost").len(), 1_001);
}

/// One file that is the config of many images, by hard links: it counts for each of them.
#[test]
fn documents_are_held_within_bounds_of_all_images() {
    const IMAGES: usize = 200;
    let (_dir, mut store) = scratch_store("overlay");
    let [base, _] = usual(&mut store);
    let step = json!({"created_by": "x".repeat(1_000)});
    let diffs = json!({"type": "layers", "diff_ids": [format!("sha256:{}", base.diff)]});
    let config = serde_json::to_vec(&json!({"rootfs": diffs, "history": vec![step; 1_000]})).unwrap();
    let digest = sha256_hex(&config);
    let manifest = serde_json::to_vec(&json!({"schemaVersion": 2, "config": {"digest": format!("sha256:{digest}")}}));
    let manifest = manifest.unwrap();
    for number in 0..IMAGES {
        let id = id_of(&format!("made up {number}"));
        store.image_entry(&id, &digest, &[&format!("localhost/many:{number}")], &config, &manifest, Some(&base));
    }
    let view = view(&store);
    assert_served(&view);
    assert_eq!(damage(&view), [""; 0]);
    let is_told =
        |number: &usize| read(&view, &format!("by-tag/localhost/many:{number}/history")).unwrap().contains('x');
    let told = (0..IMAGES).filter(is_told).count();
    assert!((60..=68).contains(&told), "{told} histories of a megabyte are held");
    assert_eq!(names(&view, "merged/localhost/many:199"), ["base"]);
}

/// Four times as many damaged containers take some four times as long, and not sixteen times.
#[test]
fn much_damage_takes_no_longer_for_each() {
    let time = |count: usize| {
        let (_dir, mut store) = scratch_store("overlay");
        usual(&mut store);
        for number in 0..count {
            let (id, layer) = (id_of(&format!("c{number}")), id_of(&format!("gone {number}")));
            store.containers.push(json!({"id": id, "layer": layer}));
        }
        store.write();
        let stores = store::open(store.root(), &store::Options { prefix: Some(Prefix::User), kind: None }).unwrap();
        worked(|| drop(View::new(stores, &Options::default()).unwrap()))
    };
    let (few, many) = (time(1_500), time(6_000));
    assert!(many < few * 9 + Duration::from_millis(300), "{few:?}, and {many:?} for four times as much");
}

#[test]
fn a_sound_config_is_not_read_again_whatever_is_wrong_otherwise() {
    let (_dir, mut store) = scratch_store("overlay");
    let [base, _] = usual(&mut store);
    let bad = store.layer("bad", Some(&base));
    let image = store.image(&["localhost/bad:1"], &[&base, &bad]);
    fs::remove_dir_all(&bad.dir).unwrap();
    let view = view(&store);
    assert!(!damage(&view).is_empty());
    store.image(&["localhost/new:1"], &[&base]);
    store.write();
    let file = store.root().join("overlay-images").join(&image);
    let file = file.join(format!("={}", support::storage::base64(format!("sha256:{image}").as_bytes())));
    let look = || assert!(names(&view, "by-tag/localhost").contains(&"new:1".to_owned()));
    assert!(!support::is_opened(&file, look));
    assert_eq!(names(&view, "by-tag/localhost/bad:1/layers"), ["0", "0.json", "1.json"]);
}

#[test]
fn changes_are_seen() {
    let (_dir, mut store) = scratch_store("overlay");
    let [_, top] = usual(&mut store);
    let view = view(&store);
    assert_served(&view);
    let kept = store.images.clone();
    store.images[0]["names"] = json!(["localhost/renamed:1"]);
    store.write();
    assert!(eventually(|| read(&view, "merged/localhost/renamed:1/base").is_some()));
    assert!(node(&view, "by-tag/localhost/base:1").is_none());
    store.images = kept;
    store.write();
    assert!(eventually(|| node(&view, "by-tag/localhost/base:1").is_some()));
    // A file that is written over in its place changes no list.
    let id = store.images[0]["id"].as_str().unwrap().to_owned();
    let config = store.document(&id, &format!("sha256:{id}"), b"");
    let is_told = || {
        let _state = view.refresh();
        damage(&view).iter().any(|why| why.contains(&*config.to_string_lossy()))
    };
    assert!(eventually(is_told));
    // A layer that is being removed is stale to who has it open, and not empty.
    let held = node(&view, "merged/localhost/app:1").unwrap();
    store.entry(&top).insert("flags".to_owned(), json!({"incomplete": true}));
    store.write();
    fs::remove_file(top.dir.join("top")).unwrap();
    let answer = held.lookup(&docker_fs::name::Name::new(b"top").unwrap());
    assert!(matches!(&answer, Err(docker_fs::error::Error::Stale { .. })), "{:?}", answer.map(|found| found.is_some()));
}

#[test]
fn which_drivers_are_read() {
    let (_dir, mut store) = scratch_store("overlay");
    usual(&mut store);
    StorageBuilder::new(store.root(), "vfs").write();
    let both = view(&store);
    assert_served(&both);
    assert!(damage(&both)[0].contains("images of the graph driver \"vfs\" are not shown"), "{:?}", damage(&both));

    let (_dir, store) = scratch_store("btrfs");
    store.write();
    let why = open(store.root()).unwrap_err().to_string();
    assert!(why.contains("graph driver btrfs is not supported"), "{why}");

    // Before the first image.
    let (_dir, mut store) = scratch_store("overlay");
    let empty = open(store.root()).unwrap();
    assert_eq!((names(&empty, "by-id").len(), damage(&empty)), (0, Vec::new()));
    usual(&mut store);
    store.write();
    assert!(eventually(|| read(&empty, "merged/localhost/base:1/base").is_some()));
}
