//! What docker-fs shows of a store that a real daemon made with its `fuse-overlayfs` driver, against the containers' own
//! mounts and the program's.
//!
//! Images that the classic builder made have marks that are files, as in their tars; containers' layers, and BuildKit's,
//! are as the program wrote them, with devices and attributes.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

#[path = "support/dockerd.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod dockerd;
mod support;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use dockerd::{Builder, Dockerd};
use support::fuse_overlayfs::{FuseOverlayfs, comparable, may_run};
use support::mount::Mounted;
use support::tree::{Options, Tree, assert_same, snapshot};

const STEPS: &str = r#"FROM base:1
RUN mkdir -p /t/del/sub /t/becomes-file /t/opaque/inner /t/move/a/b /t/owner && cd /t \
 && echo gone >del/file && echo x >del/sub/x && echo f >becomes-dir && echo in >becomes-file/in \
 && echo old >opaque/old && echo o >opaque/inner/o && echo m >move/a/b/m && echo own >owner/own \
 && echo hard >hard1 && ln hard1 hard2 && ln -s becomes-dir link && ln -s /etc/passwd absolute \
 && mkfifo fifo && mknod null c 1 3 && cp /bin/true capped && setcap cap_net_raw+ep capped \
 && touch "$(printf 'new\nline')" "$(printf 'high\377byte')" ' spaces ' && touch -d '1969-07-20 20:17:40.5 UTC' early
RUN cd /t && rm -rf del && rm becomes-dir && mkdir becomes-dir && echo n >becomes-dir/n \
 && rm -r becomes-file && echo file >becomes-file && rm -rf opaque && mkdir opaque && echo new >opaque/new \
 && mv move/a moved && chown 1234:5678 owner && chmod 1777 owner && rm fifo && rm /etc/issue
RUN cd /t && mkdir del && echo back >del/again && rm opaque/new && rm -r becomes-dir && ln -s becomes-file becomes-dir \
 && rm -rf /usr/share/perl5 && rm -rf /usr/share/bash-completion && mkdir /usr/share/bash-completion
CMD ["sleep", "infinity"]
"#;

/// What is written has a time of the program's choice: the kernel's own, of which it tells at first, is not the one on disk.
const CHANGES: &str = r#"set -e; cd /t
rm hard2; rm -r moved; rm -r owner; mkdir owner; echo mine >owner/mine; mkfifo pipe; mknod zero c 1 5
touch "$(printf 'odd\nname\377')"; chmod 0 early; chown 5:6 capped; rm -rf /usr/share/zoneinfo
mkdir /usr/share/zoneinfo; echo z >/usr/share/zoneinfo/z; mv becomes-file becomes-other; rm -rf /usr/share/doc
touch -d '2020-01-02 03:04:05.678' /usr/share/zoneinfo/z owner/mine
"#;

/// The files below a directory of which this holds, by their paths there.
fn found_below(dir: &Path, holds: &dyn Fn(&Path, &fs::Metadata) -> bool) -> BTreeSet<PathBuf> {
    fn search(root: &Path, dir: &Path, holds: &dyn Fn(&Path, &fs::Metadata) -> bool, found: &mut BTreeSet<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            if holds(&path, &meta) {
                found.insert(path.strip_prefix(root).unwrap().to_owned());
            }
            if meta.is_dir() {
                search(root, &path, holds, found);
            }
        }
    }
    let mut found = BTreeSet::new();
    search(dir, dir, holds, &mut found);
    found
}

fn marks_below(dir: &Path) -> BTreeSet<PathBuf> {
    found_below(dir, &|path, _| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b".wh.")))
}

/// But for the one that the program leaves in opaque directories.
fn whiteouts_below(dir: &Path) -> BTreeSet<PathBuf> {
    let is_own = |path: &Path| path.file_name() == Some(OsStr::new(".wh..opq"));
    found_below(dir, &|path, meta| meta.file_type().is_char_device() && meta.rdev() == 0 && !is_own(path))
}

/// What an export tells of a tree: whole seconds, no attributes, and which names are one file only as far as the program
/// counted them. Its root is where it was unpacked.
fn as_tar(tree: &Tree) -> Tree {
    let mut told = tree.clone();
    told.remove(b"".as_slice());
    for (entry, number) in told.values_mut().zip(0..) {
        (entry.mtime.1, entry.ctime, entry.ino.1) = (0, None, number);
        entry.xattrs.clear();
    }
    told
}

fn assert_comparable(what: &str, theirs: Tree, ours: Tree) {
    let (theirs, ours) = comparable(theirs, ours);
    assert!(theirs.len() > 1_000, "{what} has {} entries only", theirs.len());
    assert_same(what, &theirs, &ours);
}

#[test]
fn shows_what_containers_of_the_fuse_overlayfs_driver_see() {
    let programs = [dockerd::PROGRAMS, &["setcap"]].concat();
    if !may_run() || !dockerd::has_programs(&programs) {
        return;
    }
    let daemon = Dockerd::with_driver("fuse-overlayfs");
    assert_eq!(daemon.docker(&["info", "--format", "{{.Driver}}"]), "fuse-overlayfs");
    daemon.import_base("base:1");
    daemon.build(Builder::Classic, "app:1", STEPS).unwrap_or_else(|what| panic!("{what}"));
    let mut images = vec!["base:1", "app:1", "committed:1"];
    match daemon.build(Builder::BuildKit, "built:1", STEPS) {
        Ok(()) => images.push("built:1"),
        Err(what) => eprintln!("skipped: BuildKit's layers; {what}"),
    }
    daemon.docker(&["run", "-d", "--network", "none", "--name", "changed", "app:1"]);
    daemon.docker(&["exec", "changed", "sh", "-c", CHANGES]);
    daemon.docker(&["commit", "changed", "committed:1"]);
    let script = "rm -r /t/del; echo s >/t/s";
    daemon.docker(&["run", "--network", "none", "--name", "stopped", "app:1", "sh", "-c", script]);

    let mount = Mounted::new(&daemon.root(), &daemon.scratch("mnt"));
    let at = |path: &str| mount.path().join(path);
    let ours = |path: &str| snapshot(&at(path), &Options::default());
    let theirs = |path: &Path| snapshot(path, &Options { loose_listing: true, ..Options::default() });
    for image in &images {
        let program = FuseOverlayfs::new(&daemon.image_layers(image), &daemon.scratch("theirs")).unwrap();
        assert_comparable(image, theirs(program.path()), ours(&format!("merged/{image}")));
    }
    // Of what a container has just written, the kernel tells a ctime of its own until it is asked for again.
    let no_ctime = Options { loose_listing: true, no_ctime: true, ..Options::default() };
    let running = snapshot(&daemon.merged_dir("changed"), &no_ctime);
    let merged = snapshot(&at("by-container/changed/merged"), &Options { loose_listing: false, ..no_ctime });
    assert_comparable("changed", running, merged);
    let program = FuseOverlayfs::new(&daemon.container_layers("stopped"), &daemon.scratch("theirs")).unwrap();
    assert_comparable("stopped", theirs(program.path()), ours("by-container/stopped/merged"));

    let (exported, tar) = (daemon.scratch("exported"), daemon.scratch("tar").join("tar"));
    daemon.docker(&["export", "-o", tar.to_str().unwrap(), "stopped"]);
    dockerd::run(Command::new("tar").arg("-xpf").arg(&tar).arg("--numeric-owner").arg("-C").arg(&exported));
    assert_comparable("the export", as_tar(&theirs(&exported)), as_tar(&ours("by-container/stopped/merged")));

    // The store's forms, and ours of them.
    let upper = daemon.container_layers("changed").remove(0);
    assert!(!whiteouts_below(&upper).is_empty(), "the program marks deletions by devices");
    let stored: BTreeSet<PathBuf> = daemon.image_layers("app:1").iter().flat_map(|layer| marks_below(layer)).collect();
    assert!(stored.contains(Path::new("t/.wh.fifo")), "the engine keeps the marks of tars: {stored:?}");
    let shown: BTreeSet<PathBuf> = (0..4).flat_map(|n| marks_below(&at(&format!("by-tag/app:1/layers/{n}")))).collect();
    assert_eq!(shown, stored);
    let changes = at("by-container/changed/changes");
    assert_eq!(whiteouts_below(&changes), BTreeSet::new());
    let mark_of = |path: PathBuf| {
        let mark = [b".wh.", path.file_name().unwrap().as_bytes()].concat();
        path.with_file_name(OsStr::from_bytes(&mark))
    };
    let deleted: BTreeSet<PathBuf> = whiteouts_below(&upper).into_iter().map(mark_of).collect();
    let shown = marks_below(&changes);
    let opaque = |path: &&PathBuf| path.file_name() == Some(OsStr::new(".wh..wh..opq"));
    assert_eq!(shown.iter().filter(|path| !opaque(path)).cloned().collect::<BTreeSet<_>>(), deleted);
    assert!(shown.contains(Path::new("usr/share/zoneinfo/.wh..wh..opq")), "{shown:?}");
    assert!(upper.join("usr/share/zoneinfo/.wh..opq").symlink_metadata().is_ok(), "the program's own device");
    assert!(!changes.join("usr/share/zoneinfo/.wh..opq").exists());
}
