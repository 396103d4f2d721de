//! Stores of Docker 1.9 and older, which no engine writes any more: made by `support::graph`, shown by the library and by
//! a mount, and compared with what is written here.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, SystemTime};

use docker_fs::error::{Error, Result};
use docker_fs::name::{Name, TreePath};
use docker_fs::store;
use docker_fs::view::{Node, Options, View};
use support::eventually;
use support::graph::GraphBuilder;
use support::mount::{Mounted, require_privileges};
use tempfile::TempDir;

/// A store with `app:1` of three layers, the container `web` of it, and `lone` beside.
struct Fixture {
    _dir: TempDir,
    graph: GraphBuilder,
    /// Base first.
    app: Vec<String>,
    lone: String,
    web: String,
}

fn write(dir: &Path, files: &[&str]) {
    for file in files {
        let path = dir.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, if file.contains(".wh.") { "" } else { file }).unwrap();
    }
}

fn fixture() -> Fixture {
    let dir = support::scratch("graph");
    let mut graph = GraphBuilder::new(dir.path().join("docker"));
    let base = graph.image(None);
    let middle = graph.image(Some(&base));
    let top = graph.image(Some(&middle));
    let lone = graph.image(None);
    write(&graph.diff(&base), &["etc/hosts", "etc/old", "opt/old"]);
    write(&graph.diff(&middle), &["etc/.wh.old", "opt/.wh..wh..opq", "opt/new"]);
    write(&graph.diff(&lone), &["lone"]);
    graph.tag("app", "1", &top);
    graph.tag("reg.example:5000/team/app", "2", &middle);
    let web = graph.container("web", &top);
    write(&graph.diff(&format!("{web}-init")), &["etc/hostname"]);
    write(&graph.diff(&web), &["etc/.wh.hosts", "run/pid"]);
    Fixture { _dir: dir, graph, app: vec![base, middle, top], lone, web }
}

fn open(root: &Path, kind: Option<&str>) -> Result<View> {
    let options = store::Options { kind: kind.map(str::to_owned), ..store::Options::default() };
    View::new(store::open(root, &options)?, &Options { source: root.to_owned(), ..Options::default() })
}

impl Fixture {
    fn view(&self) -> View {
        open(self.graph.root(), None).unwrap()
    }
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

/// All files below a path, in order.
fn files(view: &View, path: &str) -> String {
    fn walk(dir: &Node, path: &str, files: &mut Vec<String>) {
        for (name, entry) in dir.list().unwrap() {
            let path = format!("{path}{}", std::str::from_utf8(name.as_bytes()).unwrap());
            if entry.meta.is_dir() {
                walk(&entry.node, &format!("{path}/"), files);
            } else {
                files.push(path);
            }
        }
    }
    let mut all = Vec::new();
    walk(&found(view, path).unwrap().unwrap(), "", &mut all);
    all.sort();
    all.join(" ")
}

fn content(view: &View, path: &str) -> String {
    let file = found(view, path).unwrap().unwrap().open().unwrap();
    let mut bytes = vec![0; 1 << 16];
    let count = file.read_at(&mut bytes, 0).unwrap();
    String::from_utf8(bytes[..count].to_vec()).unwrap()
}

fn damage(view: &View) -> Vec<String> {
    view.damage().iter().map(ToString::to_string).collect()
}

/// That the damage names this file, and that all of `lone` is served.
fn assert_damaged(what: &str, view: &View, lone: &str, told: &str) {
    assert!(damage(view).iter().any(|damage| damage.contains(told)), "{what}: {:?} has no {told:?}", damage(view));
    assert_eq!(files(view, &format!("merged/{lone}")), "lone", "{what}");
}

#[test]
fn every_layer_is_an_image() {
    let fixture = fixture();
    let view = fixture.view();
    assert_eq!(damage(&view), Vec::<String>::new());
    assert_eq!(names(&view, "by-tag"), ["app:1", "reg.example:5000"]);
    let mut ids: Vec<String> = fixture.app.iter().chain([&fixture.lone]).cloned().collect();
    ids.sort();
    assert_eq!(names(&view, "by-id"), ids);
    assert_eq!(names(&view, "by-chain").len(), 8);
    let app = "etc/hosts opt/new";
    assert_eq!(files(&view, "merged/app:1"), app);
    assert_eq!(files(&view, "merged/reg.example:5000/team/app:2"), app);
    assert_eq!(files(&view, &format!("merged/{}", fixture.app[0])), "etc/hosts etc/old opt/old");
    assert_eq!(files(&view, "by-tag/app:1/layers/1"), "etc/.wh.old opt/.wh..wh..opq opt/new");
    let history = content(&view, "by-tag/app:1/history");
    let steps: Vec<&str> = history.lines().skip(1).map(|line| line.rsplit("STEP ").next().unwrap()).collect();
    assert_eq!(steps, ["1", "2", "3"], "{history}");
    let config = fs::read_to_string(fixture.graph.entry(&fixture.app[2]).join("json")).unwrap();
    assert_eq!(content(&view, "by-tag/app:1/config.json"), config);
    let facts = content(&view, "by-tag/app:1/layers/1.json");
    assert!(facts.contains("\"size_bytes\": 12") && facts.contains(&fixture.app[0]), "{facts}");
    assert!(facts.contains("\"diff_id\": null"), "{facts}");
}

#[test]
fn containers_have_layers_of_their_own() {
    let fixture = fixture();
    let view = fixture.view();
    assert_eq!(names(&view, "by-container"), ["web"]);
    assert_eq!(files(&view, "by-container/web/merged"), "etc/hostname opt/new run/pid");
    assert_eq!(files(&view, "by-container/web/changes"), "etc/.wh.hosts run/pid");
    assert_eq!(files(&view, "by-container/web/init"), "etc/hostname");
    assert!(content(&view, "by-container/web/config.json").contains(&fixture.web));
    // Those of other drivers, of newer engines, and what is being made, are none of this store's.
    let containers = fixture.graph.root().join("containers");
    let config = fs::read_to_string(containers.join(&fixture.web).join("config.json")).unwrap();
    for (id, file, text) in [
        ("a", "config.json", config.replace("aufs", "overlay")),
        ("b", "config.v2.json", config.clone()),
        ("c", "hostname", String::new()),
    ] {
        fs::create_dir(containers.join(id.repeat(64))).unwrap();
        fs::write(containers.join(id.repeat(64)).join(file), text).unwrap();
    }
    assert_eq!(names(&fixture.view(), "by-container"), ["web"]);
}

#[test]
fn parents_are_found_where_the_engine_finds_them() {
    let mut fixture = fixture();
    let of_v2 = fixture.graph.draw();
    let json = format!("{{\"id\":{of_v2:?},\"parent_id\":\"sha256:{}\"}}", fixture.app[1]);
    fixture.graph.image_of(&of_v2, &json);
    fixture.graph.layer(&of_v2, None);
    fixture.graph.tag("v2", "latest", &of_v2);
    // The file counts before the document.
    fs::write(fixture.graph.entry(&fixture.app[2]).join("parent"), format!("{}\n", fixture.lone)).unwrap();
    let view = fixture.view();
    assert_eq!(damage(&view), Vec::<String>::new());
    assert_eq!(files(&view, "merged/v2:latest"), "etc/hosts opt/new");
    assert_eq!(files(&view, "merged/app:1"), "lone");
}

#[test]
fn a_migrated_store_is_shown_once() {
    let fixture = fixture();
    let root = fixture.graph.root();
    // Where the migration has only begun, the old one is it.
    fs::create_dir_all(root.join("image/aufs")).unwrap();
    assert_eq!(files(&fixture.view(), "merged/app:1"), "etc/hosts opt/new");
    for dir in ["imagedb/content/sha256", "layerdb/sha256", "layerdb/mounts"] {
        fs::create_dir_all(root.join("image/aufs").join(dir)).unwrap();
    }
    fs::write(root.join("image/aufs/repositories.json"), r#"{"Repositories":{}}"#).unwrap();
    assert_eq!(names(&fixture.view(), "by-id"), Vec::<String>::new());
    let asked_for = open(root, Some("docker-graph")).unwrap();
    assert_eq!(files(&asked_for, "merged/app:1"), "etc/hosts opt/new");
}

/// A store with `app:1` of two layers and the container `web` of it, of a driver whose layers are whole trees.
fn whole(root: &Path, driver: &'static str, draws: u32) -> (GraphBuilder, Vec<String>, String) {
    let mut graph = GraphBuilder::of(root, driver);
    graph.pass_over(draws);
    let base = graph.image(None);
    write(&graph.diff(&base), &["etc/hosts", "etc/old", driver]);
    let top = graph.image(Some(&base));
    match driver {
        "aufs" => write(&graph.diff(&top), &["etc/.wh.old"]),
        _ => fs::remove_file(graph.diff(&top).join("etc/old")).unwrap(),
    }
    write(&graph.diff(&top), &["opt/new"]);
    graph.tag("app", "1", &top);
    graph.tag(driver, "1", &base);
    let web = graph.container("web", &top);
    write(&graph.diff(&web), &["run/pid"]);
    (graph, vec![base, top], web)
}

#[test]
fn whole_trees_are_what_they_are() {
    for driver in ["overlay", "vfs", "btrfs"] {
        let dir = support::scratch("graph");
        let (graph, app, web) = whole(&dir.path().join("docker"), driver, 0);
        let view = open(graph.root(), None).unwrap();
        assert_eq!(damage(&view), Vec::<String>::new(), "{driver}");
        let sorted = |mut files: Vec<&str>| {
            files.sort_unstable();
            files.join(" ")
        };
        assert_eq!(files(&view, "merged/app:1"), sorted(vec!["etc/hosts", "opt/new", driver]));
        assert_eq!(files(&view, &format!("merged/{}", app[0])), sorted(vec!["etc/hosts", "etc/old", driver]));
        assert_eq!(files(&view, "by-tag/app:1/layers/1"), "etc/.wh.old opt/new", "{driver}");
        assert_eq!(files(&view, "by-tag/app:1/layers/0"), sorted(vec!["etc/hosts", "etc/old", driver]));
        assert_eq!(files(&view, "by-container/web/merged"), sorted(vec!["etc/hosts", "opt/new", "run/pid", driver]));
        assert_eq!(files(&view, "by-container/web/changes"), "run/pid", "{driver}");
        assert!(content(&view, "status").contains(&format!("\"driver\": \"{driver}\"")), "{driver}");
        // What is lost of one layer is no loss for the tree above it; what is lost of its document is.
        fs::remove_dir_all(graph.diff(&app[0])).unwrap();
        let view = open(graph.root(), None).unwrap();
        assert!(damage(&view).iter().any(|damage| damage.contains("the layer's directory is gone")), "{driver}");
        assert_eq!(files(&view, "merged/app:1"), sorted(vec!["etc/hosts", "opt/new", driver]));
        assert_eq!(files(&view, "by-container/web/merged"), sorted(vec!["etc/hosts", "opt/new", "run/pid", driver]));
        for missing in [format!("merged/{}", app[0]), "by-tag/app:1/layers/1".to_owned()] {
            let found = found(&view, &missing);
            assert!(matches!(found, Ok(None) | Err(Error::Damaged { .. })), "{driver}: {missing}: {found:?}");
        }
        fs::write(graph.entry(&app[0]).join("json"), "{").unwrap();
        let view = open(graph.root(), None).unwrap();
        assert!(matches!(found(&view, "merged/app:1"), Err(Error::Damaged { .. })), "{driver}");
        fs::remove_dir_all(graph.diff(&web)).unwrap();
        let view = open(graph.root(), None).unwrap();
        assert!(matches!(found(&view, "by-container/web/merged"), Err(Error::Damaged { .. })), "{driver}");
    }
}

#[test]
fn what_is_not_mounted_is_listed() {
    let dir = support::scratch("graph");
    let (graph, app, _) = whole(&dir.path().join("docker"), "devicemapper", 0);
    let view = open(graph.root(), None).unwrap();
    assert_eq!(names(&view, "by-tag"), ["app:1", "devicemapper:1"]);
    let told = format!("mnt/{}: not active, so it cannot be read: activate the thin pool", app[1]);
    assert!(damage(&view).iter().any(|damage| damage.contains(&told)), "{:?}", damage(&view));
    assert!(matches!(found(&view, "merged/app:1"), Err(Error::Damaged { .. })));
}

/// The images of all drivers are in one folder, and each has its own names.
#[test]
fn several_drivers_share_a_graph() {
    let dir = support::scratch("graph");
    let root = dir.path().join("docker");
    let use_at = |driver: &str, seconds: u64| {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        fs::File::open(root.join(format!("repositories-{driver}"))).unwrap().set_modified(time).unwrap();
    };
    let mut parts = Vec::new();
    for (driver, draws) in [("overlay", 0), ("vfs", 100), ("aufs", 200)] {
        parts.push((driver, whole(&root, driver, draws)));
        use_at(driver, 1_400_000_000);
    }
    for (last, seconds) in [("vfs", 1_400_000_001), ("overlay", 1_400_000_002), ("aufs", 1_400_000_003)] {
        use_at(last, seconds);
        let view = open(&root, None).unwrap();
        assert_eq!(damage(&view), Vec::<String>::new());
        assert_eq!(names(&view, "by-tag"), ["app:1", "aufs:1", "overlay:1", "vfs:1"]);
        assert_eq!(content(&view, &format!("merged/app:1/{last}")), last);
        assert_eq!(names(&view, "by-id").len(), 6, "each image once");
        for (driver, (_, app, web)) in &parts {
            assert_eq!(content(&view, &format!("merged/{}/{driver}", app[1])), *driver);
            let container = if *driver == last { "web" } else { web };
            assert!(files(&view, &format!("by-container/{container}/merged")).contains("run/pid"), "{driver}");
        }
        assert!(content(&view, "status").contains("\"hidden\""), "{}", content(&view, "status"));
    }
}

#[test]
fn other_drivers_are_refused_or_left_out() {
    let mut fixture = fixture();
    let root = fixture.graph.root().to_owned();
    fs::write(root.join("repositories-windowsfilter"), "{}").unwrap();
    let foreign = fixture.graph.draw();
    fixture.graph.image_of(&foreign, &format!("{{\"id\":{foreign:?}}}"));
    let view = fixture.view();
    assert_eq!(names(&view, "by-id").len(), 4, "an image that only another driver has is not listed");
    let told = "with the graph driver windowsfilter, which is not supported there";
    assert_damaged("two drivers", &view, &fixture.lone, told);
    // No such engine had that one.
    fs::write(root.join("repositories-overlay2"), "{}").unwrap();
    fs::remove_file(root.join("repositories-aufs")).unwrap();
    let refused = open(&root, None).unwrap_err();
    let message = format!(
        "{}: a store of Docker 1.9 or older with the graph driver overlay2, which is not supported there; supported: aufs, \
         btrfs, zfs, devicemapper, overlay, vfs",
        root.display()
    );
    assert!(matches!(refused, Error::Unsupported { .. }) && refused.to_string() == message, "{refused}");
    // Neither is a graph without names, or names without a graph, such a store.
    for driver in ["windowsfilter", "overlay2"] {
        fs::remove_file(root.join(format!("repositories-{driver}"))).unwrap();
    }
    assert!(matches!(open(&root, None), Err(Error::NotFound { .. })));
}

#[test]
fn what_is_wrong_with_one_image_spares_the_others() {
    type Harm = fn(&Fixture);
    let cases: &[(&str, Harm, &str)] = &[
        (
            "another's config",
            |f| fs::copy(f.graph.entry(&f.lone).join("json"), f.graph.entry(&f.app[1]).join("json")).map(drop).unwrap(),
            "/json: says that it is image",
        ),
        (
            "half a config",
            |f| fs::write(f.graph.entry(&f.app[1]).join("json"), "{\"id\":\"").unwrap(),
            "/json: no image",
        ),
        ("no config", |f| fs::remove_file(f.graph.entry(&f.app[1]).join("json")).unwrap(), "/json: missing"),
        (
            "a huge config",
            |f| fs::write(f.graph.entry(&f.app[1]).join("json"), " ".repeat(5 << 20)).unwrap(),
            "/json: larger than",
        ),
        (
            "a parent that leads out",
            |f| fs::write(f.graph.entry(&f.app[1]).join("parent"), "../../../etc").unwrap(),
            "/parent: \"../../../etc\" is no image ID",
        ),
        (
            "a parent that is not there",
            |f| fs::write(f.graph.entry(&f.app[1]).join("parent"), "a".repeat(64)).unwrap(),
            "an image lies upon this one, but it is not there",
        ),
        (
            "a cycle",
            |f| fs::write(f.graph.entry(&f.app[0]).join("parent"), &f.app[2]).unwrap(),
            "its ancestors lead back to one of them",
        ),
        ("no layer", |f| fs::remove_dir_all(f.graph.diff(&f.app[1])).unwrap(), "the layer's directory is gone"),
        (
            "a link for a layer",
            |f| {
                fs::remove_dir_all(f.graph.diff(&f.app[1])).unwrap();
                symlink("/etc", f.graph.diff(&f.app[1])).unwrap();
            },
            "the layer is not a directory",
        ),
        (
            "a link for an entry",
            |f| {
                let away = f.graph.root().join("away");
                fs::rename(f.graph.entry(&f.app[1]), &away).unwrap();
                symlink(&away, f.graph.entry(&f.app[1])).unwrap();
            },
            "graph/",
        ),
    ];
    for (what, harm, told) in cases {
        let fixture = fixture();
        harm(&fixture);
        let view = fixture.view();
        assert_damaged(what, &view, &fixture.lone, told);
        let answer = found(&view, "merged/app:1").map(|node| node.is_some());
        assert!(matches!(answer, Err(Error::Damaged { .. })), "{what}: {answer:?}");
        assert!(!names(&view, "merged").contains(&"app:1".to_owned()), "{what}");
        assert!(names(&view, "by-tag").contains(&"app:1".to_owned()), "{what}");
        let container = found(&view, "by-container/web/merged").map(|node| node.is_some());
        assert!(matches!(container, Err(Error::Damaged { .. })), "{what}: {container:?}");
    }
}

#[test]
fn as_many_images_as_aufs_has_branches() {
    let mut fixture = fixture();
    let mut last = fixture.lone.clone();
    for _ in 1..127 {
        last = fixture.graph.image(Some(&last));
    }
    fixture.graph.tag("deep", "127", &last);
    let over = fixture.graph.image(Some(&last));
    fixture.graph.tag("deep", "128", &over);
    let view = fixture.view();
    assert_eq!(files(&view, "merged/deep:127"), "lone");
    assert!(matches!(found(&view, "merged/deep:128"), Err(Error::Damaged { .. })));
    assert_eq!(damage(&view).len(), 1, "{:?}", damage(&view));
}

#[test]
fn broken_names_and_containers_spare_the_rest() {
    let fixture = fixture();
    let names_file = fixture.graph.root().join("repositories-aufs");
    let whole = fs::read_to_string(&names_file).unwrap();
    fs::write(&names_file, &whole[..whole.len() / 2]).unwrap();
    assert_damaged("half of the names", &fixture.view(), &fixture.lone, "repositories-aufs: not the list");
    fs::write(&names_file, whole.replace("\"2\"", "\"../2\"")).unwrap();
    let view = fixture.view();
    assert_damaged("a wrong tag", &view, &fixture.lone, "\"../2\" in \"reg.example:5000/team/app\" is no reference");
    assert_eq!(names(&view, "by-tag"), ["app:1"]);
    fs::write(&names_file, &whole).unwrap();

    let config = fixture.graph.root().join("containers").join(&fixture.web).join("config.json");
    let sound = fs::read_to_string(&config).unwrap();
    for (text, told) in [
        (&sound[..40], "/config.json: no container config"),
        (&sound.replace(&fixture.app[2], "../../etc"), "/config.json: its image is no image ID"),
        (&sound.replace(&fixture.app[2], &"a".repeat(64)), "the store does not list it"),
    ] {
        fs::write(&config, text).unwrap();
        let view = fixture.view();
        assert_damaged("a container", &view, &fixture.lone, told);
        assert_eq!(files(&view, "merged/app:1"), "etc/hosts opt/new");
    }
    fs::write(&config, sound.replace("/web", "/../web")).unwrap();
    assert_eq!(names(&fixture.view(), "by-container"), std::slice::from_ref(&fixture.web));
}

#[test]
fn a_store_that_changes_is_followed() {
    let mut fixture = fixture();
    let view = fixture.view();
    assert_eq!(names(&view, "by-tag"), ["app:1", "reg.example:5000"]);
    let new = fixture.graph.image(Some(&fixture.app[2].clone()));
    write(&fixture.graph.diff(&new), &["opt/newer"]);
    fixture.graph.tag("app", "new", &new);
    assert!(eventually(|| found(&view, "merged/app:new").is_ok_and(|node| node.is_some())));
    assert_eq!(files(&view, "merged/app:new"), "etc/hosts opt/new opt/newer");
    // As the engine deletes: the entry aside, then the layer, and the name before both.
    let held = found(&view, "merged/app:new/opt").unwrap().unwrap();
    fixture.graph.tag("app", "new", &fixture.app[2].clone());
    fs::rename(fixture.graph.entry(&new), fixture.graph.root().join("graph/_tmp/2")).unwrap();
    let stale = held.lookup(&Name::new(b"newer").unwrap());
    assert!(matches!(stale, Err(Error::Stale { .. })), "{stale:?}");
    assert!(eventually(|| files(&view, "merged/app:new") == "etc/hosts opt/new"));
    assert!(!names(&view, "by-id").contains(&new));
    // What befalls a single file is noticed as well.
    fs::write(fixture.graph.entry(&fixture.app[0]).join("json"), "no JSON").unwrap();
    assert!(eventually(|| {
        let _ = view.refresh();
        damage(&view).iter().any(|damage| damage.contains("no image config"))
    }));
}

#[test]
fn ten_thousand_images() {
    let mut fixture = fixture();
    for _ in 0..10_000 {
        let id = fixture.graph.draw();
        fixture.graph.image_of(&id, &format!("{{\"id\":{id:?}}}"));
        fs::create_dir(fixture.graph.diff(&id)).unwrap();
        fs::write(fixture.graph.root().join("aufs/layers").join(&id), "").unwrap();
    }
    let view = fixture.view();
    assert_eq!(damage(&view), Vec::<String>::new());
    assert_eq!(names(&view, "by-id").len(), 10_004);
}

/// The server's jail lets it read all of that, and nothing of it is written.
#[test]
fn a_mount_shows_the_same() {
    if !require_privileges("a mount") {
        return;
    }
    let fixture = fixture();
    let mount = Mounted::new(fixture.graph.root(), &fixture._dir.path().join("mnt"));
    let read = |path: &str| fs::read_to_string(mount.path().join(path)).unwrap();
    assert_eq!(read("merged/app:1/opt/new"), "opt/new");
    assert_eq!(read("by-container/web/merged/run/pid"), "run/pid");
    assert!(!mount.path().join("merged/app:1/etc/old").exists());
    let status = read("status");
    assert!(status.contains("docker-graph") && status.contains("aufs"), "{status}");
}
