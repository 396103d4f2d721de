//! The `fuse-overlayfs` program: mounts of it that go away with their value, and what of them is no different from ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{UnmountFlags, unmount};

use super::mount::require_privileges;
use super::tree::{Tree, group_links};

/// A mount of the program, which ends with the value.
#[derive(Debug)]
pub struct FuseOverlayfs(PathBuf);

impl FuseOverlayfs {
    /// Unites directories, top first, read-only.
    pub fn new(layers: &[PathBuf], mountpoint: &Path) -> Result<Self, String> {
        fs::create_dir_all(mountpoint).unwrap();
        let lower: Vec<&str> = layers.iter().map(|layer| layer.to_str().unwrap()).collect();
        let mut command = Command::new("fuse-overlayfs");
        command.arg("-o").arg(format!("lowerdir={}", lower.join(":"))).arg(mountpoint);
        let ended = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        let mounted = Self(mountpoint.to_owned());
        match ended {
            Ok(status) if status.success() => Ok(mounted),
            Ok(status) => Err(format!("{PROGRAM_FAILED}{status}")),
            Err(error) => Err(format!("{PROGRAM_FAILED}{error}")),
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for FuseOverlayfs {
    fn drop(&mut self) {
        // Not a mount where the program failed.
        if unmount(&self.0, UnmountFlags::NOFOLLOW).is_err() {
            let _ = unmount(&self.0, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
}

/// How what the program fails at begins.
pub const PROGRAM_FAILED: &str = "fuse-overlayfs cannot show it: ";

/// Takes out what differs: the program counts the names of a file that it has come across, we tell what is stored. Which
/// names are one file is compared by the files' numbers.
pub fn comparable(theirs: Tree, ours: Tree) -> (Tree, Tree) {
    let by_numbers = |mut tree: Tree| {
        for entry in tree.values_mut() {
            entry.nlink = 2;
        }
        group_links(&mut tree);
        tree
    };
    (by_numbers(theirs), by_numbers(ours))
}

/// Whether there is the program, and the privileges to mount.
pub fn may_run() -> bool {
    if !require_privileges("fuse-overlayfs") {
        return false;
    }
    let is_there = Command::new("fuse-overlayfs").arg("--version").stdout(Stdio::null()).status().is_ok();
    assert!(
        is_there || std::env::var_os("DOCKER_FS_TEST_PRIVILEGED").is_none(),
        "there is no fuse-overlayfs, and DOCKER_FS_TEST_PRIVILEGED promises it"
    );
    is_there
}
