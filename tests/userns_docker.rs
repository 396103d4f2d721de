//! A real daemon that remaps users: `-o uidmap=container` against what it exports, whose tars have the containers' numbers.

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

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use dockerd::{Builder, Dockerd};
use support::mount::{Mounted, require_privileges};

const FIRST: u32 = 231_072;

/// The owners of all below a directory, but of what the daemon puts into each container.
fn owners(root: &Path) -> BTreeMap<PathBuf, (u32, u32)> {
    fn walk(root: &Path, dir: &Path, found: &mut BTreeMap<PathBuf, (u32, u32)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            found.insert(path.strip_prefix(root).unwrap().to_owned(), (meta.uid(), meta.gid()));
            if meta.is_dir() {
                walk(root, &path, found);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

#[test]
fn shows_the_numbers_that_containers_have() {
    if !require_privileges("a daemon")
        || !dockerd::has_programs(dockerd::PROGRAMS)
        || !Path::new("/etc/subuid").exists()
    {
        return;
    }
    for driver in ["overlay2", "vfs"] {
        let daemon = Dockerd::remapping_from(driver, FIRST);
        let base = daemon.scratch("base");
        for (file, user, group) in [("root", 0, 0), ("user", 1000, 100), ("last", 65_535, 65_535), ("gone", 7, 8)] {
            fs::write(base.join(file), file).unwrap();
            lchown(base.join(file), Some(user), Some(group)).unwrap();
        }
        fs::create_dir(base.join("dir")).unwrap();
        symlink("root", base.join("dir/link")).unwrap();
        lchown(base.join("dir/link"), Some(33), Some(34)).unwrap();
        lchown(base.join("dir"), Some(5), Some(6)).unwrap();
        let tar = daemon.scratch("tars").join("base.tar");
        dockerd::run(Command::new("tar").arg("-cf").arg(&tar).arg("--numeric-owner").arg("-C").arg(&base).arg("."));
        daemon.docker(&["import", tar.to_str().unwrap(), "base:1"]);
        let context = daemon.scratch("context");
        fs::write(context.join("added"), "added").unwrap();
        fs::write(context.join("Dockerfile"), "FROM base:1\nCOPY --chown=42:43 added /dir/added\n").unwrap();
        daemon.build_in(Builder::Classic, "app:1", &context).unwrap();
        daemon.docker(&["create", "--name", "web", "--network", "none", "app:1", "/none"]);
        let exported = daemon.scratch("exported");
        let tar = daemon.scratch("tars").join("web.tar");
        daemon.docker(&["export", "-o", tar.to_str().unwrap(), "web"]);
        dockerd::run(Command::new("tar").arg("-xpf").arg(&tar).arg("--numeric-owner").arg("-C").arg(&exported));
        let theirs = owners(&exported);
        assert_eq!(theirs[Path::new("dir/added")], (42, 43), "{driver}: {theirs:?}");

        // The data root, and the one in it.
        let inner = daemon.root().join(format!("{FIRST}.{FIRST}"));
        for (number, source) in [daemon.root(), inner].iter().enumerate() {
            let point = daemon.scratch(&format!("mnt{number}"));
            let mount = Mounted::with(source, &point, &["-o", "uidmap=container"], 0);
            let mut ours = owners(&mount.path().join("by-container/web/merged"));
            // The daemon gives this link to the machine's root, whom its containers do not have, and exports no such file.
            assert_eq!(ours.remove(Path::new("etc/mtab")), Some((65_534, 65_534)), "{driver}");
            assert_eq!(ours, theirs, "{driver}");
            let image = owners(&mount.path().join("merged/app:1"));
            for (path, owner) in &image {
                assert_eq!(theirs.get(path), Some(owner), "{driver}: {path:?}");
            }
            for (path, owner) in [("user", (1000, 100)), ("last", (65_535, 65_535)), ("dir/link", (33, 34))] {
                assert_eq!(image[Path::new(path)], owner, "{driver}: {path}");
            }
        }
        let stored = Mounted::new(&daemon.root(), &daemon.scratch("stored"));
        assert_eq!(owners(&stored.path().join("merged/app:1"))[Path::new("user")], (FIRST + 1000, FIRST + 100));
    }
}
