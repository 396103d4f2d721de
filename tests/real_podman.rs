//! What docker-fs shows of stores that a real podman made, of root and of another user, with each driver: against where
//! podman mounts the same images and containers, and against what it exports.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "support/machine.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod machine;
#[path = "support/podman.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod podman;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use machine::run;
use podman::{Owner, Podman};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use support::eventually;
use support::mount::{Mounted, require_privileges};
use support::store::sha256_hex;
use support::tree::{Options, Tree, assert_same, snapshot};

/// The layers of an image, bottom first, as scripts that make a directory of each. What is not allowed to a user is in
/// lines of its own, before which stands `root:`.
const LAYERS: [&str; 3] = [
    r#"mkdir -p a dir/in opq/sub deep/x/y owned sticky becomes-file keep
echo keep >a/keep; echo gone >a/gone; echo old >dir/in/old; echo old >opq/old; echo x >opq/sub/x; echo y >deep/x/y/f
echo file >becomes-dir; echo in >becomes-file/in; echo hard >hard1; ln hard1 hard2; ln -s a/keep link; ln -s nowhere dangling
ln -s /etc/passwd absolute; mkfifo fifo; : >empty; truncate -s 3M sparse; echo tail >>sparse
echo own >owned/own; chown -R 1234:5678 owned; chmod 2750 owned; chmod 1777 sticky; cp /bin/true suid; chmod 4755 suid
cp /bin/true capped; setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 capped
setfattr -n user.note -v '"quoted" text' a/keep; setfattr -n user.dir -v d dir
: >"$(printf 'new\nline')"; : >"$(printf 'high\377byte')"; : >' spaces '; : >"$(printf '%255s' '' | tr ' ' n)"
touch -d '1969-07-20 20:17:40.5 UTC' early; touch -d '2200-01-01 UTC' late; touch -h -d '2001-02-03 04:05:06.789 UTC' link
root: mknod null c 1 3; mknod block b 7 9"#,
    r#"mkdir -p a opq becomes-dir deep/x; : >a/.wh.gone; : >.wh.dir; : >opq/.wh..wh..opq; echo new >opq/new
echo d >becomes-dir/d; echo now >becomes-file; : >deep/x/.wh.y; ln -s elsewhere fifo; echo more >a/more"#,
    r#"mkdir -p dir a keep; echo again >dir/again; : >a/.wh.more; : >.wh.hard1; chmod 700 keep; chown 7:8 keep"#,
];

/// What is done to a container where podman mounts it.
const CHANGES: &str = r#"set -e; cd "$1"; rm hard2; rm -r opq; mkdir opq; echo mine >opq/mine; echo more >>sparse
mkdir -p new/dir; echo l >new/l1; ln new/l1 new/l2; mv a moved || { cp -a a moved; rm -r a; }; chmod 600 early; : >.wh.late
touch -d '2001-02-03 04:05:06.789 UTC' new/dir; rm -r owned; mkdir owned; mkfifo new/pipe; setfattr -n user.n -v 1 new"#;

/// Writes an archive as `docker save` does, of layers made by scripts.
fn archive(podman: &Podman, is_root: bool, name: &str, scripts: &[&str]) -> PathBuf {
    let dir = podman.at("scratch").join("archive");
    fs::create_dir(&dir).unwrap();
    let (mut layers, mut diffs) = (Vec::new(), Vec::new());
    for (number, script) in scripts.iter().enumerate() {
        let place = dir.join(format!("layer{number}"));
        fs::create_dir(&place).unwrap();
        let lines = script.lines().filter(|line| is_root || !line.starts_with("root:"));
        let script: String = lines.map(|line| format!("{}\n", line.strip_prefix("root:").unwrap_or(line))).collect();
        run(Command::new("sh").arg("-ec").arg(script).current_dir(&place));
        let tar = format!("layer{number}.tar");
        let mut command = Command::new("tar");
        command.args(["--numeric-owner", "--format=pax", "--xattrs", "--xattrs-include=*", "-C"]).arg(&place);
        run(command.arg("-cf").arg(dir.join(&tar)).arg("."));
        diffs.push(format!("sha256:{}", sha256_hex(fs::read(dir.join(&tar)).unwrap())));
        layers.push(tar);
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diffs},
        "history": diffs.iter().map(|diff| json!({"created": "2020-01-02T03:04:05Z", "created_by": diff})).collect::<Vec<_>>(),
    });
    let config = serde_json::to_vec(&config).unwrap();
    let config_file = format!("{}.json", sha256_hex(&config));
    fs::write(dir.join(&config_file), config).unwrap();
    let manifest = json!([{"Config": config_file, "RepoTags": [name], "Layers": layers}]);
    fs::write(dir.join("manifest.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    let tar = podman.at("scratch").join("archive.tar");
    let mut command = Command::new("tar");
    run(command.arg("-C").arg(&dir).arg("-cf").arg(&tar).arg("manifest.json").arg(config_file).args(layers));
    fs::remove_dir_all(dir).unwrap();
    tar
}

fn options() -> Options {
    Options { blocks: true, ..Options::of_kernel_overlay() }
}

/// The states of all files below a directory: numbers, sizes, owners and all times.
fn states(dir: &Path) -> BTreeMap<PathBuf, Vec<i64>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    let device = dir.metadata().unwrap().dev();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let times =
                [meta.atime(), meta.atime_nsec(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
            let own = [meta.ino(), meta.size(), u64::from(meta.mode()), u64::from(meta.uid())].map(u64::cast_signed);
            // To look into what podman mounts changes what lies below.
            if meta.dev() != device {
                continue;
            }
            if meta.is_dir() {
                dirs.push(path.clone());
            }
            found.insert(path, [&own[..], &times].concat());
        }
    }
    found
}

/// The calls that a process makes which open or lock files, written to a file until the value goes.
struct Traced(Child);

impl Traced {
    fn new(pid: u32, log: &Path) -> Self {
        let calls = "trace=?open,openat,openat2,flock,fcntl,ftruncate,?unlink,unlinkat,?rename,renameat,renameat2";
        let mut command = Command::new("strace");
        command.args(["-f", "-yy", "-e", calls, "-o"]).arg(log).args(["-p", &pid.to_string()]);
        let traced = Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let tracer = format!("TracerPid:\t{}", traced.0.id());
        let is_traced = |task: &Path| fs::read_to_string(task.join("status")).is_ok_and(|text| text.contains(&tracer));
        let tasks = || fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path());
        assert!(eventually(|| tasks().all(|task| is_traced(&task))), "strace does not follow {pid}");
        traced
    }

    /// Lets the process go.
    fn end(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::INT).unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::INT);
        let _ = self.0.wait();
    }
}

/// Whether a call locks, changes or opens for more than reading.
fn is_forbidden(call: &str) -> bool {
    let locks =
        call.contains("flock(") || (call.contains("fcntl(") && (call.contains("LK") || call.contains("F_SETLEASE")));
    let changes = ["ftruncate(", "unlink", "rename"].iter().any(|name| call.contains(name));
    let opens = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"].iter().any(|flag| call.contains(flag));
    locks || changes || (opens && !call.contains("\"/dev/fuse\""))
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// What tars tell of a tree: no attributes beside the mode, and times in seconds.
fn exported(mut tree: Tree) -> Tree {
    tree.remove(&b""[..]);
    for entry in tree.values_mut() {
        entry.xattrs.clear();
        (entry.ctime, entry.blocks, entry.nlink, entry.mtime.1) = (None, None, 0, 0);
    }
    tree
}

fn check(owner: Owner, driver: &'static str) {
    if !require_privileges("podman's stores") || !podman::has_programs() {
        return;
    }
    let podman = Podman::new(owner, driver);
    let place = tempfile::tempdir().unwrap();
    let mount = Mounted::new(&podman.root(), &place.path().join("mnt"));
    let at = |path: &str| mount.path().join(path);
    let tar = archive(&podman, owner == Owner::Root, "localhost/made:1", &LAYERS);
    podman.podman(&["load", "-q", "-i", tar.to_str().unwrap()]);
    build(&podman);
    podman.podman(&["create", "--network", "none", "--name", "changed", "localhost/made:1", "/none"]);
    let namespace = podman.namespace();
    change(&podman, "changed");
    podman.podman(&["commit", "-q", "changed", "localhost/committed:1"]);

    let images = BTreeSet::from(["made:1", "built:1", "committed:1"].map(str::to_owned));
    assert!(eventually(|| names(&at("by-tag/localhost")) == images), "{:?}", names(&at("by-tag/localhost")));
    for image in &images {
        let expected = podman.mounted(&namespace, &["image", "mount", &format!("localhost/{image}")]);
        let expected = snapshot(&expected, &options());
        assert!(expected.len() > 30, "{image}: {}", expected.len());
        assert_same(image, &expected, &snapshot(&at("merged/localhost").join(image), &options()));
        documents(&podman, image, &at("by-tag/localhost").join(image));
    }
    let expected = snapshot(&podman.mounted(&namespace, &["mount", "changed"]), &options());
    let found = snapshot(&at("by-container/changed/merged"), &options());
    assert_same("changed", &expected, &found);
    export(&podman, "changed", &found);
    let record = fs::read(at("by-container/changed/config.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    assert_eq!(record["names"], json!(["changed"]));
    assert_eq!(record["image"], json!(podman.image_id("localhost/made:1")));
    layers(&podman, &at("by-tag/localhost/made:1/layers"));

    // So old that any reading would be noted.
    let mut touch = Command::new("find");
    run(touch
        .arg(podman.root())
        .args(["-xdev", "-not", "-type", "d", "-exec", "touch", "-h", "-a", "-d", "@1", "{}", "+"]));
    let before = states(&podman.root());
    let walked = snapshot(mount.path(), &Options::default());
    assert!(walked.len() > 500, "{}", walked.len());
    let after = states(&podman.root());
    let changed: Vec<_> = before.iter().filter(|(path, state)| after.get(*path) != Some(state)).collect();
    assert!(changed.is_empty() && before.len() == after.len(), "{changed:?}");
    live(&podman, &mount);
}

fn build(podman: &Podman) {
    let context = podman.at("scratch").join("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("Dockerfile"), "FROM localhost/made:1\nLABEL a=b\nCOPY one /etc/one\nCOPY two /a/keep\n")
        .unwrap();
    fs::write(context.join("one"), "1").unwrap();
    fs::write(context.join("two"), "2").unwrap();
    podman.podman(&["build", "-q", "--layers", "-t", "localhost/built:1", context.to_str().unwrap()]);
}

/// Changes a container as its own user 0 does.
fn change(podman: &Podman, name: &str) {
    let script = podman.at("scratch").join("change");
    fs::write(&script, CHANGES).unwrap();
    let script = script.to_str().unwrap();
    let place = podman.inside(&["mount", name]);
    podman.shell(&[script, &place]);
}

/// Config and manifest are the image's, by their digests.
fn documents(podman: &Podman, image: &str, dir: &Path) {
    let name = format!("localhost/{image}");
    let config = fs::read(dir.join("config.json")).unwrap();
    assert_eq!(sha256_hex(config), podman.image_id(&name), "{image}");
    let manifest = fs::read(dir.join("manifest.json")).unwrap();
    let digest = podman.podman(&["image", "inspect", "--format", "{{.Digest}}", &name]);
    assert_eq!(format!("sha256:{}", sha256_hex(manifest)), digest, "{image}");
}

/// What is packed of the mount's layers is the tar that was loaded, as far as both say the same.
fn layers(podman: &Podman, dir: &Path) {
    assert_eq!(names(dir).len(), 2 * LAYERS.len());
    for (number, deleted) in [(1, &["a/.wh.gone", ".wh.dir", "deep/x/.wh.y"][..]), (2, &["a/.wh.more", ".wh.hard1"])] {
        for mark in deleted {
            let meta = dir.join(number.to_string()).join(mark).symlink_metadata();
            assert!(meta.is_ok_and(|meta| meta.is_file() && meta.len() == 0), "{number}: {mark}");
        }
    }
    let diffs = podman.podman(&["image", "inspect", "--format", "{{json .RootFS.Layers}}", "localhost/made:1"]);
    let diffs: Vec<String> = serde_json::from_str(&diffs).unwrap();
    for (number, diff) in diffs.iter().enumerate() {
        let facts = fs::read(dir.join(format!("{number}.json"))).unwrap();
        let facts: serde_json::Value = serde_json::from_slice(&facts).unwrap();
        assert_eq!(facts["diff_id"], json!(diff));
        if number == 0 {
            assert_eq!(facts["chain_id"], json!(diff));
        }
    }
}

/// Compares with what `podman export` unpacks to.
fn export(podman: &Podman, container: &str, found: &Tree) {
    let (tar, dir) = (podman.at("scratch").join("export.tar"), podman.at("export"));
    podman.podman(&["export", "-o", tar.to_str().unwrap(), container]);
    fs::create_dir(&dir).unwrap();
    run(Command::new("tar").args(["--numeric-owner", "-xpf"]).arg(&tar).arg("-C").arg(&dir));
    let mut expected = exported(snapshot(&dir, &Options::default()));
    for entry in expected.values_mut() {
        (entry.uid, entry.gid) = (podman.host_id(entry.uid), podman.host_id(entry.gid));
    }
    assert_same("export", &expected, &exported(found.clone()));
}

/// Changes of the store are seen; and while podman makes them, who reads locks nothing, opens nothing for writing, no lock
/// file at all, and podman never fails.
fn live(podman: &Podman, mount: &Mounted) {
    let at = |path: &str| mount.path().join(path);
    let log = podman.at("calls");
    let traced = Traced::new(mount.server().unwrap(), &log);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut rounds = 0_u32;
            while !is_over.load(Ordering::Relaxed) {
                for folder in ["by-tag/localhost", "by-id", "by-container", "by-chain", "merged/localhost"] {
                    let _ = fs::read_dir(at(folder))
                        .map(|entries| entries.flatten().for_each(|entry| drop(entry.metadata())));
                }
                assert_eq!(fs::read_to_string(at("merged/localhost/made:1/a/keep")).unwrap(), "keep\n");
                rounds += 1;
            }
            rounds
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..3 {
                let tag = format!("localhost/live:{round}");
                podman.podman(&["tag", "localhost/made:1", &tag]);
                assert!(eventually(|| at("merged").join(&tag).join("a/keep").exists()), "{tag}");
                podman.podman(&["untag", "localhost/made:1", &tag]);
                assert!(eventually(|| at("by-tag").join(&tag).symlink_metadata().is_err()), "{tag}");
                podman.podman(&["create", "--network", "none", "--name", "brief", "localhost/built:1", "/none"]);
                assert!(eventually(|| at("by-container/brief/merged/etc/one").exists()));
                podman.podman(&["rm", "brief"]);
                assert!(eventually(|| !at("by-container/brief").exists()));
            }
            let id = podman.image_id("localhost/built:1");
            podman.podman(&["rmi", "localhost/built:1"]);
            assert!(eventually(|| !names(&at("by-id")).contains(&id) && !at("merged").join(&id).exists()));
        }));
        is_over.store(true, Ordering::Relaxed);
        let rounds = reader.join().unwrap();
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(rounds > 0);
    });
    traced.end();
    let calls = fs::read(&log).unwrap();
    let calls = String::from_utf8_lossy(&calls);
    assert!(calls.contains("images.json"), "the trace is not whole: {calls}");
    let forbidden = calls.lines().filter(|call| is_forbidden(call) || call.contains(".lock"));
    let forbidden: Vec<&str> = forbidden.take(20).collect();
    assert!(forbidden.is_empty(), "{}", forbidden.join("\n"));
    let status = fs::read_to_string(at("status")).unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["damage"], json!([]));
}

#[test]
fn overlay_of_root() {
    check(Owner::Root, "overlay");
}

#[test]
fn vfs_of_root() {
    check(Owner::Root, "vfs");
}

#[test]
fn overlay_of_a_user() {
    check(Owner::User(1_700_000_001), "overlay");
}

#[test]
fn vfs_of_a_user() {
    check(Owner::User(1_700_000_002), "vfs");
}
