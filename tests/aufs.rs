//! Stores of Docker's `aufs` driver, which no engine runs any more: made by `support::marks`, shown by the library, and
//! compared with what is written here. The merge rule is `mark_model`'s matter; here are the driver and the view.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use docker_fs::error::{Error, Result};
use docker_fs::meta::Kind;
use docker_fs::name::{Name, TreePath};
use docker_fs::store;
use docker_fs::view::{Form, Node, Options, View};
use rustix::io::Errno;
use support::eventually;
use support::marks::{Driver, convert_store, into_files, write_aufs_files};
use support::store::{LayerRef, StoreBuilder};
use tempfile::TempDir;

/// A store with `app:1` of three layers, `below:1` of the lower two, and the container `web` of `app:1`.
struct Fixture {
    _dir: TempDir,
    root: PathBuf,
    layers: Vec<LayerRef>,
    mount_id: String,
}

fn write(dir: &Path, files: &[&str]) {
    for file in files {
        let path = dir.join(file);
        if file.ends_with('/') {
            fs::create_dir_all(path).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, if file.contains(".wh.") { "" } else { file }).unwrap();
        }
    }
}

fn fixture() -> Fixture {
    let dir = support::scratch("aufs");
    let mut store = StoreBuilder::new(dir.path().join("docker"));
    let layers = store.chain(3);
    write(&layers[0].diff_dir(), &["etc/hosts", "etc/old", "opt/old", "opt/deep/x", "srv/a", "tmp/"]);
    write(&layers[1].diff_dir(), &["etc/.wh.old", "opt/.wh..wh..opq", "opt/new", "srv/.wh..wh.plnk/y"]);
    write(&layers[2].diff_dir(), &[".wh.tmp", "srv/b", "srv/.wh.nothing", ".wh..wh..opq"]);
    // As a layer has them that a container was committed to.
    write_aufs_files(&layers[1].diff_dir());
    let image = store.image(&layers);
    store.tag("app:1", &image);
    let below = store.image(&layers[..2]);
    store.tag("below:1", &below);
    let container = store.container("web", &image, layers.last());
    container.write_init_files();
    write(&container.upper_dir(), &["etc/.wh.hosts", "run/pid", "opt/.wh..wh..opq", "opt/mine"]);
    write_aufs_files(&container.upper_dir());
    let mount_id = container.mount_id.clone();
    let root = store.finish();
    convert_store(&root, Driver::Aufs);
    Fixture { _dir: dir, root, layers, mount_id }
}

impl Fixture {
    fn view(&self, whiteouts: Form) -> View {
        let opened = store::open(&self.root, &store::Options::default()).unwrap();
        View::new(opened, &Options { whiteouts, source: self.root.clone(), ..Options::default() }).unwrap()
    }

    fn aufs(&self, below: &str) -> PathBuf {
        self.root.join("aufs").join(below)
    }

    fn witness(&self, layer: usize) -> PathBuf {
        self.aufs("layers").join(&self.layers[layer].cache_id)
    }

    fn diff(&self, layer: usize) -> PathBuf {
        self.aufs("diff").join(&self.layers[layer].cache_id)
    }
}

fn found(view: &View, path: &str) -> Result<Option<Node>> {
    view.resolve(&TreePath::new(path.as_bytes()).unwrap())
}

/// All that is listed below a path, in order; directories end in a slash.
fn tree(view: &View, path: &str) -> String {
    let mut names = Vec::new();
    walk(&found(view, path).unwrap().unwrap(), "", &mut names);
    names.sort();
    names.join(" ")
}

fn walk(dir: &Node, path: &str, names: &mut Vec<String>) {
    for (name, entry) in dir.list().unwrap() {
        let name = format!("{path}{}", std::str::from_utf8(name.as_bytes()).unwrap());
        let found = dir.lookup(&Name::new(name.rsplit('/').next().unwrap().as_bytes()).unwrap()).unwrap();
        assert_eq!(found.map(|found| found.meta), Some(entry.meta), "{name}");
        if entry.meta.kind == Kind::Directory {
            names.push(format!("{name}/"));
            walk(&entry.node, &format!("{name}/"), names);
        } else {
            names.push(name);
        }
    }
}

fn names(view: &View, path: &str) -> Vec<String> {
    let entries = found(view, path).unwrap().unwrap().list().unwrap();
    let mut names: Vec<_> =
        entries.iter().map(|(name, _)| String::from_utf8(name.as_bytes().to_vec()).unwrap()).collect();
    names.sort();
    names
}

#[test]
fn images_and_containers_are_shown_as_aufs_unites_them() {
    let fixture = fixture();
    let view = fixture.view(Form::Oci);
    assert_eq!(view.damage(), []);
    let below = "etc/ etc/hosts opt/ opt/new srv/ srv/a tmp/";
    assert_eq!(tree(&view, "merged/below:1"), below);
    assert_eq!(tree(&view, "merged/app:1"), "etc/ etc/hosts opt/ opt/new srv/ srv/a srv/b");
    // What the engine puts beneath a container is there, but for what the container deleted.
    let container = ".dockerenv dev/ dev/console dev/pts/ dev/shm/ etc/ etc/hostname etc/mtab etc/resolv.conf opt/ \
                     opt/mine proc/ run/ run/pid srv/ srv/a srv/b sys/";
    assert_eq!(tree(&view, "by-container/web/merged"), container);
    for hidden in [".wh..wh.aufs", ".wh..wh.plnk", ".wh.tmp", "srv/.wh.nothing", "srv/.wh..wh.plnk", "tmp"] {
        assert!(found(&view, &format!("merged/app:1/{hidden}")).unwrap().is_none(), "{hidden}");
    }
}

#[test]
fn layers_are_shown_in_the_form_that_they_have() {
    let fixture = fixture();
    let view = fixture.view(Form::Oci);
    let layer = |n: usize| tree(&view, &format!("by-tag/app:1/layers/{n}"));
    assert_eq!(layer(0), "etc/ etc/hosts etc/old opt/ opt/deep/ opt/deep/x opt/old srv/ srv/a tmp/");
    // aufs' own files are at a branch's root only.
    let deep = "srv/ srv/.wh..wh.plnk/ srv/.wh..wh.plnk/y";
    assert_eq!(layer(1), format!("etc/ etc/.wh.old opt/ opt/.wh..wh..opq opt/new {deep}"));
    assert_eq!(layer(2), ".wh..wh..opq .wh.tmp srv/ srv/.wh.nothing srv/b");
    let changes = "etc/ etc/.wh.hosts opt/ opt/.wh..wh..opq opt/mine run/ run/pid";
    assert_eq!(tree(&view, "by-container/web/changes"), changes);
    for own in [".wh..wh.aufs", ".wh..wh.plnk", ".wh..wh.orph"] {
        assert!(found(&view, &format!("by-container/web/changes/{own}")).unwrap().is_none(), "{own}");
    }
    let stored = fixture.view(Form::Stored);
    let own = ".wh..wh.aufs .wh..wh.orph/ .wh..wh.plnk/ .wh..wh.plnk/1042.1043";
    assert_eq!(tree(&stored, "by-container/web/changes"), format!("{own} {changes}"));
    // A mark is the stored file.
    let mark = found(&view, "by-tag/app:1/layers/1/etc/.wh.old").unwrap().unwrap().fresh_meta().unwrap();
    let on_disk = fs::symlink_metadata(fixture.diff(1).join("etc/.wh.old")).unwrap();
    assert_eq!((mark.inode, u32::from(mark.permissions)), (on_disk.ino(), on_disk.mode() & 0o7777));
}

#[test]
fn facts_name_the_directories_of_aufs() {
    let fixture = fixture();
    let view = fixture.view(Form::Oci);
    let facts = found(&view, "by-tag/app:1/layers/2.json").unwrap().unwrap().open().unwrap();
    let mut text = vec![0; 4096];
    let count = facts.read_at(&mut text, 0).unwrap();
    let text = String::from_utf8_lossy(&text[..count]).into_owned();
    assert!(text.contains(&format!("{:?}", fixture.diff(2))), "{text}");
}

#[test]
fn a_layer_is_one_only_where_its_list_of_ancestors_is() {
    let fixture = fixture();
    let view = fixture.view(Form::Oci);
    let (witness, aside) = (fixture.witness(2), fixture.aufs("aside"));
    let is_told = || {
        let _ = view.refresh();
        view.damage().iter().any(|damage| damage.what.ends_with(&fixture.layers[2].cache_id))
    };
    // A file that goes before the store's files were looked at for the first time is missed.
    assert!(eventually(|| {
        fs::rename(&witness, &aside).unwrap();
        let told = (0..20).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            is_told()
        });
        if !told {
            fs::rename(&aside, &witness).unwrap();
            let _ = view.refresh();
            std::thread::sleep(Duration::from_millis(200));
        }
        told
    }));
    // Damage counts once it has stayed.
    assert!(eventually(|| matches!(found(&view, "merged/app:1"), Err(Error::Damaged { .. }))));
    assert_eq!(names(&view, "merged"), ["below:1"]);
    assert_eq!(tree(&view, "merged/below:1"), "etc/ etc/hosts opt/ opt/new srv/ srv/a tmp/");
    fs::rename(&aside, &witness).unwrap();
    assert!(eventually(|| {
        let _ = view.refresh();
        view.damage().is_empty()
    }));
    assert_eq!(names(&view, "merged"), ["app:1", "below:1"]);
}

#[test]
fn what_a_list_of_ancestors_holds_is_no_matter() {
    let fixture = fixture();
    let ids: Vec<&str> = fixture.layers.iter().map(|layer| layer.cache_id.as_str()).collect();
    // A cycle, a path that leads out, a megabyte of lines, and nothing.
    fs::write(fixture.witness(0), format!("{}\n", ids[2])).unwrap();
    fs::write(fixture.witness(1), "../../../etc\n\0\n").unwrap();
    fs::write(fixture.witness(2), "a\n".repeat(500_000)).unwrap();
    fs::write(fixture.aufs("layers").join(&fixture.mount_id), "").unwrap();
    let view = fixture.view(Form::Oci);
    assert_eq!(view.damage(), []);
    assert_eq!(tree(&view, "merged/app:1"), "etc/ etc/hosts opt/ opt/new srv/ srv/a srv/b");
}

#[test]
fn what_is_planted_in_a_layers_place_is_damage() {
    for (what, plant) in [
        ("a link for a layer", (|at, outside| symlink(outside, at).unwrap()) as fn(&Path, &Path)),
        ("a file for a layer", |at, _| fs::write(at, "").unwrap()),
    ] {
        let fixture = fixture();
        let outside = fixture.root.parent().unwrap().join("outside");
        write(&outside, &["secret"]);
        fs::remove_dir_all(fixture.diff(2)).unwrap();
        plant(&fixture.diff(2), &outside);
        let view = fixture.view(Form::Oci);
        assert!(view.damage().iter().any(|damage| damage.what.ends_with(&fixture.layers[2].cache_id)), "{what}");
        assert_eq!(names(&view, "merged"), ["below:1"], "{what}");
        assert!(matches!(found(&view, "merged/app:1"), Err(Error::Damaged { .. })), "{what}");
    }
    for (what, plant) in [
        ("a link for a list", (|at| symlink("/etc/passwd", at).unwrap()) as fn(&Path)),
        ("a directory for a list", |at| fs::create_dir(at).unwrap()),
        ("a FIFO for a list", |at| {
            let mode = rustix::fs::Mode::from_raw_mode(0o644);
            rustix::fs::mknodat(rustix::fs::CWD, at, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }),
    ] {
        let fixture = fixture();
        fs::remove_file(fixture.witness(2)).unwrap();
        plant(&fixture.witness(2));
        assert_eq!(names(&fixture.view(Form::Oci), "merged"), ["below:1"], "{what}");
    }
}

#[test]
fn layers_that_are_being_removed_are_none() {
    let fixture = fixture();
    let view = fixture.view(Form::Oci);
    // As the engine does it: off its list, then away, then file by file.
    let listed = &fixture.layers[2].layerdb;
    let image = fixture.root.join("image/aufs/layerdb/sha256").join(listed.file_name().unwrap());
    let held = found(&view, "merged/app:1/srv").unwrap().unwrap();
    fs::rename(&image, image.with_file_name("removing")).unwrap();
    let removing = format!("{}-removing", fixture.layers[2].cache_id);
    fs::rename(fixture.diff(2), fixture.aufs("diff").join(&removing)).unwrap();
    let stale = held.lookup(&Name::new(b"a").unwrap());
    assert!(matches!(stale, Err(Error::Stale { .. })), "{stale:?}");
    // Nor is one under that name, whoever asks for it.
    fs::rename(image.with_file_name("removing"), &image).unwrap();
    fs::write(image.join("cache-id"), &removing).unwrap();
    let view = fixture.view(Form::Oci);
    assert_eq!(names(&view, "merged"), ["below:1"]);
    assert!(view.damage().iter().any(|damage| damage.what.ends_with(&removing)), "{:?}", view.damage());
}

#[test]
fn a_whiteout_that_is_none_fails_its_name_and_no_other() {
    let fixture = fixture();
    fs::create_dir(fixture.diff(2).join("etc")).unwrap();
    fs::create_dir(fixture.diff(2).join("etc/.wh.hosts")).unwrap();
    write(&fixture.diff(1), &["etc/other", &format!("etc/{}", "l".repeat(243))]);
    let view = fixture.view(Form::Oci);
    assert_eq!(names(&view, "merged/app:1/etc"), ["other"]);
    let errno = |name: &str| found(&view, &format!("merged/app:1/etc/{name}")).unwrap_err().errno();
    assert_eq!(errno("hosts"), Errno::IO);
    assert_eq!(errno(&"l".repeat(243)), Errno::NAMETOOLONG);
    // The layer shows what it holds.
    assert_eq!(names(&view, "by-tag/app:1/layers/2/etc"), [".wh.hosts"]);
}

#[test]
fn broken_documents_spare_the_rest() {
    let fixture = fixture();
    let image = fixture.root.join("image/aufs");
    fs::write(image.join("repositories.json"), "{\"Repositories\":{\"app\":").unwrap();
    let view = fixture.view(Form::Oci);
    assert!(view.damage().iter().any(|damage| damage.what.ends_with("repositories.json")));
    let ids = names(&view, "by-id");
    let shown: Vec<String> = ids.iter().map(|id| tree(&view, &format!("merged/{id}"))).collect();
    assert!(shown.contains(&"etc/ etc/hosts opt/ opt/new srv/ srv/a srv/b".to_owned()), "{shown:?}");
}

/// A directory with as many marks as an unpacked image can bring.
#[test]
fn ten_thousand_marks_of_nothing() {
    let fixture = fixture();
    fs::create_dir_all(fixture.diff(2).join("marks")).unwrap();
    for n in 0..10_000 {
        fs::write(fixture.diff(2).join(format!("marks/.wh.{n:05}")), "").unwrap();
    }
    write(&fixture.diff(0), &["marks/00007", "marks/other"]);
    let view = fixture.view(Form::Oci);
    assert_eq!(names(&view, "merged/app:1/marks"), ["other"]);
    assert_eq!(names(&view, "by-tag/app:1/layers/2/marks").len(), 10_000);
}

/// Devices that stand for whiteouts in a store of overlay2 are devices here.
#[test]
fn devices_are_devices() {
    if !support::mount::require_privileges("making devices") {
        return;
    }
    let fixture = fixture();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let device = fixture.diff(2).join("etc-hosts");
    rustix::fs::mknodat(rustix::fs::CWD, &device, rustix::fs::FileType::CharacterDevice, mode, 0).unwrap();
    let view = fixture.view(Form::Oci);
    let shown = |path: &str| found(&view, path).unwrap().map(|node| node.fresh_meta().unwrap().kind);
    assert_eq!(shown("merged/app:1/etc-hosts"), Some(Kind::CharDevice));
    assert_eq!(shown("by-tag/app:1/layers/2/etc-hosts"), Some(Kind::CharDevice));
    into_files(&fixture.diff(2));
    assert_eq!(shown("by-tag/app:1/layers/2/.wh.etc-hosts"), Some(Kind::Regular));
}
