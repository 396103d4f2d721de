//! What docker-fs shows of a real containerd's store, against what containerd itself mounts.
//!
//! One daemon and one mount serve all sections, as in `real_docker.rs`.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

#[path = "support/containerd.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod containerd;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use containerd::{Containerd, Layout, architecture, run, unmount_below};
use rustix::fs::FileType;
use rustix::io::Errno;
use serde_json::{Value, json};
use support::eventually;
use support::mount::{Mounted, require_privileges};
use support::tree::{Options, Tree, assert_same, snapshot};
use tempfile::TempDir;

const APP: &str = "docker.io/library/app:1";
const OTHER: &str = "registry.example:5000/team/app:2";
/// Another processor than this machine's.
const FOREIGN: &str = "riscv64";
const BLOBS: &str = "io.containerd.content.v1.content/blobs/sha256";
/// How long a change of the store may take to be seen, and what waits for it to wake.
const PATIENCE: Duration = Duration::from_secs(4);

/// Every kind of entry, and then every way in which a layer changes what is below it. Whiteouts are written as layers'
/// tars have them.
const STEPS: [&str; 4] = [
    r#"mkdir -p t/del/sub t/becomes-file t/opaque/inner t/owner usr/share && cd t
echo gone >del/file; echo x >del/sub/x; echo f >becomes-dir; echo in >becomes-file/in; echo old >opaque/old
echo o >opaque/inner/o; echo own >owner/own; echo hard >hard1; ln hard1 hard2; ln -s becomes-dir link
ln -s /etc/passwd absolute; ln -s nowhere dangling; mkfifo fifo fifo2; mknod null c 1 3; mknod block b 7 9
truncate -s 3M sparse; echo tail >>sparse; echo s >setuid; chmod 4755 setuid; chmod 1777 owner
touch "$(printf 'new\nline')" "$(printf 'high\377byte')" ' spaces ' 'back\slash' ./-dash ... 'unïcode'
touch "$(printf '%255s' '' | tr ' ' n)"; touch -d '1999-07-20 20:17:40.5 UTC' early; chown -h 7:70000 dangling
echo a >attribute; setfattr -n user.first -v 1 attribute; cp /bin/true capped; setcap cap_net_raw+ep capped; mkdir -m 0700 ../secret"#,
    r#"mkdir -p t/opaque t/becomes-dir t/owner && cd t
: >.wh.del; : >opaque/.wh..wh..opq; echo new >opaque/new; echo n >becomes-dir/n; echo file >becomes-file; : >.wh.fifo
chown 1234:5678 owner; chmod 0750 owner; : >.wh.hard1; echo more >capped; : >../.wh.secret"#,
    r#"mkdir -p t/del t/opaque && cd t; echo back >del/again; : >opaque/.wh.new; echo newest >opaque/newest
ln -s becomes-file renamed; : >.wh.becomes-dir; mkdir ../secret"#,
    "mkdir t; cd t; echo only >only; : >.wh.early",
];

type Section = fn(&Bench);

#[test]
fn shows_what_containerd_mounts() {
    let programs = [containerd::PROGRAMS, &["setcap", "setfattr"]].concat();
    if !require_privileges("containerd") || !containerd::has_programs(&programs) {
        return;
    }
    let start = Instant::now();
    let bench = Bench::new();
    eprintln!("setup: {:.1} s", start.elapsed().as_secs_f32());
    let sections: &[(&str, Section)] = &[
        ("images against containerd's own mounts", merged_images),
        ("both snapshotters have one tree", both_snapshotters),
        ("changes of layers", changes_of_layers),
        ("documents byte for byte", documents),
        ("platforms and attestations", platforms),
        ("images that are not unpacked", not_unpacked),
        ("names in several namespaces", namespaces),
        ("names that are no references", odd_names),
        ("containers", containers),
        ("Docker's containers", containers_of_docker),
        ("names that come and go", live_names),
        ("layers that go", removed_layers),
    ];
    let mut failed = Vec::new();
    for (name, section) in sections {
        let start = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(|| section(&bench)));
        let seconds = start.elapsed().as_secs_f32();
        eprintln!("{name}: {} ({seconds:.1} s)", if ended.is_ok() { "ok" } else { "FAILED" });
        if ended.is_err() {
            failed.push(*name);
        }
    }
    drop(bench);
    assert!(failed.is_empty(), "failed sections: {failed:?}; what they found is above");
}

/// The mount goes away before the daemon whose root it shows.
struct Bench {
    mount: Mounted,
    scratch: TempDir,
    containerd: Containerd,
}

impl Bench {
    fn new() -> Self {
        let containerd = Containerd::start();
        let scratch = support::scratch("images-");
        let layout = Layout::new();
        let tars = tars(scratch.path());
        let (app, other) = (layout.image(architecture(), &tars[..3]), layout.image(architecture(), &tars));
        containerd.import_layout("default", APP, &layout, app.clone(), &["--snapshotter", "overlayfs"]);
        containerd.import_layout("third", APP, &layout, app, &["--snapshotter", "native"]);
        // Of its layers but the top one is native's alone.
        containerd.import_layout("second", OTHER, &layout, other, &["--snapshotter", "native"]);
        let mount = Mounted::new(&containerd.root(), &scratch.path().join("m"));
        Self { mount, scratch, containerd }
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.mount.path().join(path)
    }

    fn ctr(&self, namespace: &str, args: &[&str]) -> String {
        self.containerd.ctr(&[&["-n", namespace], args].concat())
    }

    fn place(&self, name: &str) -> PathBuf {
        self.scratch.path().join("places").join(name)
    }

    fn damage(&self) -> Vec<String> {
        self.told("damage")
    }

    fn remarks(&self) -> Vec<String> {
        self.told("remarks")
    }

    fn told(&self, kind: &str) -> Vec<String> {
        let status: Value = serde_json::from_slice(&fs::read(self.at("status")).unwrap()).unwrap();
        let told = status[kind].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        told.map(|one| format!("{}: {}", text(&one["object"]), text(&one["reason"]))).collect()
    }

    fn names(&self, dir: &str) -> BTreeSet<String> {
        let names = fs::read_dir(self.at(dir)).unwrap().map(|entry| entry.unwrap().file_name());
        names.map(|name| name.to_string_lossy().into_owned()).collect()
    }

    /// A name of this namespace stands for a new image of one file.
    fn import(&self, namespace: &str, name: &str, text: &str) {
        self.containerd.import(namespace, "overlayfs", name, &[text]);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // What a section left that failed.
        unmount_below(&self.scratch.path().join("places"));
    }
}

/// The layers of [`STEPS`].
fn tars(scratch: &Path) -> Vec<Vec<u8>> {
    let tar = |(number, step): (usize, &&str)| {
        let dir = scratch.join(format!("step-{number}"));
        fs::create_dir(&dir).unwrap();
        run(Command::new("sh").arg("-ec").arg(step).current_dir(&dir));
        let args = ["--format=pax", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-cf", "-", "."];
        run(Command::new("tar").arg("-C").arg(&dir).args(args))
    };
    STEPS.iter().enumerate().map(tar).collect()
}

fn taken(dir: &Path) -> Tree {
    snapshot(dir, &Options::default())
}

/// The tree as it is in each store: changes of inodes and the sizes of directories are the store's own.
fn content(dir: &Path) -> Tree {
    snapshot(dir, &Options { no_ctime: true, ..Options::default() })
}

fn merged_images(bench: &Bench) {
    for (namespace, snapshotter, name, shown) in
        [("default", "overlayfs", APP, "app:1"), ("second", "native", OTHER, OTHER)]
    {
        let mount = bench.containerd.mount(namespace, snapshotter, &bench.place("mounted"));
        // To look at a whole tree, containerd makes a copy.
        let tree = if snapshotter == "native" { content } else { taken };
        let expected = tree(&mount.at);
        assert!(expected.len() > 30, "{expected:?}");
        assert_same(name, &expected, &tree(&bench.at("merged").join(shown)));
    }
    assert_eq!(names_of(&bench.at("by-tag").join(OTHER).join("layers/3")), ["t"]);
    assert_eq!(names_of(&bench.at("by-tag").join(OTHER).join("layers/3/t")), [".wh.early", "only"]);
    assert!(!bench.at("merged/app:1/t/del/sub").exists() && !bench.at("merged/app:1/t/opaque/old").exists());
}

/// Of the two namespaces' snapshots one is shown; the other is compared on the disk.
fn both_snapshotters(bench: &Bench) {
    let native = bench.containerd.mount("third", "native", &bench.place("native"));
    let mut expected = content(&native.at);
    let mut found = content(&bench.at("merged/app:1"));
    for entry in expected.values_mut().chain(found.values_mut()) {
        // A copy has the links that are left, and its directories the times of what was removed from them.
        (entry.nlink, entry.group) = (0, None);
        if entry.kind == FileType::Directory {
            entry.mtime = (0, 0);
        }
    }
    assert_same("native", &expected, &found);
}

fn changes_of_layers(bench: &Bench) {
    let layers = bench.at("by-tag/app:1/layers");
    assert_eq!(names_of(&layers), ["0", "0.json", "1", "1.json", "2", "2.json"]);
    let second = content(&layers.join("1"));
    let names: Vec<String> = second.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
    let expected = [
        "",
        ".wh.secret",
        "t",
        "t/.wh.del",
        "t/.wh.fifo",
        "t/.wh.hard1",
        "t/becomes-dir",
        "t/becomes-dir/n",
        "t/becomes-file",
        "t/capped",
        "t/opaque",
        "t/opaque/.wh..wh..opq",
        "t/opaque/new",
        "t/owner",
    ];
    assert_eq!(names, expected);
    let facts: Value = serde_json::from_slice(&fs::read(layers.join("2.json")).unwrap()).unwrap();
    let directory = PathBuf::from(facts["directory"].as_str().unwrap());
    assert!(directory.starts_with(bench.containerd.root()) && directory.join("t/renamed").is_symlink(), "{facts}");
    let chain = facts["chain_id"].as_str().unwrap();
    let usage = bench.ctr("default", &["snapshots", "--snapshotter", "overlayfs", "usage", "-b", chain]);
    let usage = usage.lines().last().unwrap().split_whitespace().nth(1).unwrap();
    assert_eq!(facts["size_bytes"].to_string(), usage, "{facts}");
}

fn names_of(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn digest_of(listing: &str, name: &str) -> String {
    let line = listing.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
    line.split_whitespace().find(|word| word.starts_with("sha256:")).unwrap().to_owned()
}

fn documents(bench: &Bench) {
    let target = digest_of(&bench.ctr("default", &["images", "ls"]), APP);
    let manifest = bench.ctr("default", &["content", "get", &target]);
    let image = bench.at("by-tag/app:1");
    assert_eq!(fs::read_to_string(image.join("manifest.json")).unwrap(), manifest);
    let config = serde_json::from_str::<Value>(&manifest).unwrap()["config"]["digest"].as_str().unwrap().to_owned();
    let text = bench.ctr("default", &["content", "get", &config]);
    assert_eq!(fs::read_to_string(image.join("config.json")).unwrap(), text);
    // The image's ID is its config's digest; the target's digest names it too.
    let by_id = bench.at("by-id").join(config.strip_prefix("sha256:").unwrap());
    assert_eq!(fs::read_to_string(by_id.join("config.json")).unwrap(), text);
    let by_digest = bench.at(format!("by-digest/app@{target}/config.json"));
    assert_eq!(fs::read_to_string(by_digest).unwrap(), text);
    assert!(!image.join("index.json").exists(), "no index leads to it");
}

fn platforms(bench: &Bench) {
    let layout = Layout::new();
    let tar = |text: &str| {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), text).unwrap();
        run(Command::new("tar").arg("-C").arg(dir.path()).args(["-cf", "-", "file"]))
    };
    let (foreign, own) = (layout.image(FOREIGN, &[tar("foreign")]), layout.image(architecture(), &[tar("own")]));
    let mut attestation = layout.image("unknown", &[tar("attestation")]);
    attestation["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    attestation["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let absent = layout.image("s390x", &[tar("absent")]);
    let inner = layout.index(&[attestation, own.clone()]);
    let index = layout.index(&[foreign.clone(), absent.clone(), inner]);
    bench.containerd.import_layout("default", "docker.io/library/many:1", &layout, index, &["--all-platforms"]);
    let absent = absent["digest"].as_str().unwrap();
    bench.ctr("default", &["content", "rm", absent]);
    let blob = bench.containerd.root().join(BLOBS).join(absent.strip_prefix("sha256:").unwrap());
    assert!(eventually(|| !blob.exists()), "containerd removes what nobody uses");
    let image = bench.at("by-tag/many:1");
    assert!(eventually(|| image.join("index.json").exists() && bench.remarks().len() == 1), "{:?}", bench.remarks());
    let target = digest_of(&bench.ctr("default", &["images", "ls"]), "docker.io/library/many:1");
    let text = bench.ctr("default", &["content", "get", &target]);
    assert_eq!(fs::read_to_string(image.join("index.json")).unwrap(), text);
    let of = |manifest: &Value| format!("by-digest/many@{}", manifest["digest"].as_str().unwrap());
    let architecture_in = |dir: PathBuf| {
        let config: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
        config["architecture"].as_str().unwrap().to_owned()
    };
    assert_eq!(architecture_in(image), architecture(), "this machine's comes first");
    assert_eq!(architecture_in(bench.at(of(&own))), architecture());
    assert_eq!(architecture_in(bench.at(of(&foreign))), FOREIGN);
    let digests = bench.names("by-digest");
    assert_eq!(digests.iter().filter(|name| name.starts_with("many@")).count(), 3, "{digests:?}");
    let remarks = bench.remarks();
    assert!(
        remarks.len() == 1 && remarks[0].contains("of another platform than") && remarks[0].contains("not unpacked")
    );
    assert_eq!(bench.damage(), Vec::<String>::new());
    bench.ctr("default", &["images", "rm", "--sync", "docker.io/library/many:1"]);
}

fn not_unpacked(bench: &Bench) {
    let layout = Layout::new();
    let top = layout.image(architecture(), &[b"\0".repeat(1_024)]);
    bench.containerd.import_layout("default", "docker.io/library/packed:1", &layout, top, &["--no-unpack"]);
    let image = bench.at("by-tag/packed:1");
    let is_told = || fs::read_to_string(image.join("damage")).is_ok_and(|text| text.contains("not unpacked"));
    assert!(eventually(is_told));
    assert!(bench.remarks().iter().any(|one| one.contains("packed:1") && one.contains("not unpacked")));
    // Until it is certain, the answer is that it may be another in a moment.
    let is_refused = || {
        let error = fs::metadata(bench.at("merged/packed:1")).unwrap_err();
        Errno::from_io_error(&error) == Some(Errno::IO)
    };
    assert!(eventually(is_refused));
    assert!(image.join("config.json").exists() && image.join("manifest.json").exists());
    assert!(!bench.names("merged").contains("packed:1"));
    bench.ctr("default", &["images", "rm", "--sync", "docker.io/library/packed:1"]);
    assert!(eventually(|| bench.remarks().is_empty() && bench.damage().is_empty()), "{:?}", bench.remarks());
}

fn read(path: PathBuf) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn namespaces(bench: &Bench) {
    bench.import("default", "docker.io/library/both:1", "first");
    bench.import("second", "docker.io/library/both:1", "second");
    bench.import("second", "docker.io/library/only:1", "only");
    assert!(eventually(|| read(bench.at("merged/only:1/file-0")).as_deref() == Some("only")));
    assert_eq!(read(bench.at("merged/both:1/file-0")).as_deref(), Some("second"), "it was updated last");
    let told = bench.remarks().into_iter().find(|one| one.contains("both:1")).unwrap();
    // The other is found by the ID that is told.
    let mut ids = told.split("sha256:").skip(1).map(|rest| rest.get(..64).unwrap());
    let (shown, other) = (ids.next().unwrap(), ids.next().unwrap());
    assert_eq!(read(bench.at(format!("merged/{other}/file-0"))).as_deref(), Some("first"), "{told}");
    assert_eq!(read(bench.at(format!("merged/{shown}/file-0"))).as_deref(), Some("second"), "{told}");
    bench.ctr("second", &["images", "rm", "--sync", "docker.io/library/both:1"]);
    assert!(eventually(|| read(bench.at("merged/both:1/file-0")).as_deref() == Some("first")));
    assert!(eventually(|| bench.remarks().is_empty() && bench.damage().is_empty()), "{:?}", bench.remarks());
}

fn odd_names(bench: &Bench) {
    bench.import("default", "docker.io/library/odd:1", "odd");
    bench.ctr("default", &["images", "tag", "docker.io/library/odd:1", "An Odd Name"]);
    bench.ctr("default", &["images", "rm", "docker.io/library/odd:1"]);
    let told = || bench.remarks().into_iter().find(|one| one.contains("An Odd Name"));
    assert!(eventually(|| told().is_some_and(|told| told.contains("by its ID alone"))));
    let target = digest_of(&bench.ctr("default", &["images", "ls"]), "An Odd Name");
    let manifest: Value = serde_json::from_str(&bench.ctr("default", &["content", "get", &target])).unwrap();
    let id = manifest["config"]["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
    assert_eq!(read(bench.at("merged").join(&id).join("file-0")).as_deref(), Some("odd"));
    // CRI's and Docker's own names of images without one are not odd.
    bench.ctr("default", &["images", "tag", "An Odd Name", &format!("sha256:{id}")]);
    bench.ctr("default", &["images", "tag", "An Odd Name", &format!("moby-dangling@{target}")]);
    bench.ctr("default", &["images", "rm", "An Odd Name"]);
    assert!(eventually(|| bench.remarks().is_empty() && bench.damage().is_empty()), "{:?}", bench.remarks());
    assert_eq!(read(bench.at("merged").join(&id).join("file-0")).as_deref(), Some("odd"));
    assert!(!bench.names("by-tag").contains("sha256"));
    bench.ctr("default", &["images", "rm", "--sync", &format!("sha256:{id}"), &format!("moby-dangling@{target}")]);
}

/// What is done in a container.
const CHANGES: &str = r#"cd "$0"; rm t/del/again; rm -r t/opaque; mkdir t/opaque; echo mine >t/opaque/mine; echo more >>t/sparse
mkdir -p new/dir; ln t/attribute t/attribute2; chown 5:6 t/setuid; : >.wh.fake; setfattr -n user.mark -v yes t/owner"#;

fn containers(bench: &Bench) {
    for (namespace, snapshotter, name, id) in [
        ("default", "overlayfs", APP, "running.1"),
        ("second", "native", OTHER, "native-1"),
        ("second", "native", OTHER, "twin"),
        ("default", "overlayfs", APP, "twin"),
    ] {
        bench.ctr(namespace, &["containers", "create", "--snapshotter", snapshotter, "--label", "a=b", name, id, "sh"]);
        let place = bench.place(&format!("{namespace}-{id}"));
        bench.containerd.mount_snapshot(namespace, snapshotter, id, &place);
    }
    bench.ctr("default", &["containers", "label", "running.1", "nerdctl/name=pretty_name"]);
    let expected = ["native-1", "pretty_name", "second.twin", "twin"].map(str::to_owned);
    assert!(
        eventually(|| bench.names("by-container") == BTreeSet::from(expected.clone())),
        "{:?}",
        bench.names("by-container")
    );
    for (place, shown) in
        [("default-running.1", "pretty_name"), ("second-native-1", "native-1"), ("second-twin", "second.twin")]
    {
        let place = bench.place(place);
        let merged = bench.at("by-container").join(shown).join("merged");
        assert_same(shown, &taken(&place), &taken(&merged));
        run(Command::new("sh").arg("-ec").arg(CHANGES).arg(&place));
        let is_seen = || merged.join(".wh.fake").exists() && !merged.join("t/opaque/newest").exists();
        assert!(eventually(is_seen), "{shown}");
        std::thread::sleep(Duration::from_millis(100));
        assert_same(shown, &taken(&place), &taken(&merged));
    }
    let changes = content(&bench.at("by-container/pretty_name/changes"));
    assert!(
        changes.contains_key(b"t/opaque/.wh..wh..opq".as_slice())
            && changes.contains_key(b"t/del/.wh.again".as_slice())
    );
    let changes = content(&bench.at("by-container/native-1/changes"));
    assert!(
        changes.contains_key(b"t/opaque/mine".as_slice()) && changes.contains_key(b"t/del/.wh.again".as_slice()),
        "{:?}",
        changes.keys()
    );
    assert!(
        !changes.contains_key(b"t/sparse2".as_slice()) && !changes.contains_key(b"t/block".as_slice()),
        "{:?}",
        changes.keys()
    );
    let config: Value =
        serde_json::from_slice(&fs::read(bench.at("by-container/pretty_name/config.json")).unwrap()).unwrap();
    assert_eq!(config["process"]["args"], json!(["sh"]), "the spec that the runtime is given");
    assert!(bench.damage().is_empty(), "{:?}", bench.damage());
    for place in ["default-running.1", "second-native-1", "second-twin", "default-twin"] {
        run(Command::new("umount").arg(bench.place(place)));
    }
    for (namespace, id) in [("default", "running.1"), ("second", "native-1"), ("second", "twin"), ("default", "twin")] {
        bench.ctr(namespace, &["containers", "rm", id]);
    }
    assert!(eventually(|| bench.names("by-container").is_empty()), "{:?}", bench.names("by-container"));
}

fn containers_of_docker(bench: &Bench) {
    let id = "0123456789abcdef".repeat(4);
    bench.import("moby", "docker.io/library/moby:1", "image");
    let ctr = |args: &[&str]| bench.ctr("moby", &[&["snapshots", "--snapshotter", "overlayfs"], args].concat());
    let chain = ctr(&["ls"]).lines().nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let (key, init) = (format!("{id}-init-key"), format!("{id}-init"));
    let snapshots = ["-n", "moby", "snapshots", "--snapshotter", "overlayfs"];
    bench.containerd.make_snapshot(&snapshots, "prepare", &key, &chain);
    let place = bench.place("init");
    bench.containerd.mount_snapshot("moby", "overlayfs", &key, &place);
    fs::write(place.join("hosts"), "init").unwrap();
    run(Command::new("umount").arg(&place));
    ctr(&["commit", &init, &key]);
    ctr(&["label", &init, "containerd.io/gc.root=1"]);
    bench.containerd.make_snapshot(&snapshots, "prepare", &id, &init);
    bench.containerd.mount_snapshot("moby", "overlayfs", &id, &place);
    fs::remove_file(place.join("file-0")).unwrap();
    fs::write(place.join("mine"), "changes").unwrap();
    let container = bench.at("by-container").join(&id);
    assert!(eventually(|| read(container.join("init/hosts")).as_deref() == Some("init")), "{:?}", bench.damage());
    assert!(eventually(|| read(container.join("changes/mine")).as_deref() == Some("changes")));
    assert_eq!(names_of(&container.join("merged")), ["hosts", "mine"]);
    assert_eq!(names_of(&container.join("layers")), ["0", "0.json"]);
    run(Command::new("umount").arg(&place));
    ctr(&["rm", &id]);
    ctr(&["rm", &init]);
    assert!(eventually(|| !container.exists()));
}

/// A name that the kernel has looked up is another, or none, within the time in which changes are seen.
fn live_names(bench: &Bench) {
    bench.import("default", "docker.io/library/live:1", "one");
    let file = bench.at("merged/live:1/file-0");
    assert!(eventually(|| read(file.clone()).as_deref() == Some("one")));
    bench.import("default", "docker.io/library/live:1", "two");
    assert!(eventually(|| read(file.clone()).as_deref() == Some("two")));
    bench.ctr("default", &["images", "tag", "docker.io/library/live:1", "docker.io/library/live:2"]);
    let start = Instant::now();
    assert!(eventually(|| bench.names("by-tag").contains("live:2")));
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    // What someone holds is forgotten though nobody asks: the databases are heard of, which are written in place.
    std::thread::sleep(Duration::from_millis(800));
    let held = fs::File::open(bench.at("by-tag/live:2")).unwrap();
    assert!(!is_forgotten(&held));
    bench.ctr("default", &["images", "rm", "docker.io/library/live:2"]);
    assert!(eventually(|| is_forgotten(&held)));
    bench.ctr("default", &["images", "tag", "docker.io/library/live:1", "docker.io/library/live:2"]);
    let inode = fs::metadata(bench.at("merged/live:2/file-0")).unwrap().ino();
    assert_eq!(fs::metadata(&file).unwrap().ino(), inode, "one file, whatever its name");
    bench.ctr("default", &["images", "rm", "docker.io/library/live:1"]);
    assert!(eventually(|| !bench.names("by-tag").contains("live:1") && !file.exists()));
    bench.ctr("default", &["images", "rm", "--sync", "docker.io/library/live:2"]);
}

/// Whether the kernel has let go of the name by which a file was opened, which this neither looks up nor asks for.
fn is_forgotten(file: &fs::File) -> bool {
    let name = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    name.to_str().unwrap().ends_with(" (deleted)")
}

fn removed_layers(bench: &Bench) {
    bench.import("default", "docker.io/library/going:1", "going");
    let union = bench.at("merged/going:1");
    assert!(eventually(|| union.join("file-0").exists()));
    let held = fs::File::open(&union).unwrap();
    let look = || rustix::fs::statat(&held, c"nothing-yet", rustix::fs::AtFlags::empty()).unwrap_err();
    assert_eq!(look(), Errno::NOENT);
    let facts: Value = serde_json::from_slice(&fs::read(bench.at("by-tag/going:1/layers/0.json")).unwrap()).unwrap();
    let directory = PathBuf::from(facts["directory"].as_str().unwrap());
    bench.ctr("default", &["images", "rm", "--sync", "docker.io/library/going:1"]);
    assert!(eventually(|| !directory.exists()), "containerd removes what nobody uses");
    let gone = |name: &str| rustix::fs::statat(&held, name, rustix::fs::AtFlags::empty()).unwrap_err();
    assert_eq!(gone("another-name"), Errno::STALE, "a layer that is gone says nothing of its files");
    assert!(eventually(|| fs::metadata(&union).is_err_and(|error| error.kind() == ErrorKind::NotFound)));
    assert!(eventually(|| bench.damage().is_empty()), "{:?}", bench.damage());
    assert!(bench.containerd.root().join(BLOBS).exists());
}
