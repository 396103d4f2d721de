//! An empty directory as the root of everything: a tmpfs that holds the FUSE device.
//!
//! ```text
//! /               read-only, 0755
//!   dev/fuse      the host's device; more of it is opened for the threads that serve
//!   proc/self/fd  on Linux before 6.13 alone: the only way there to extended attributes by descriptor
//! ```

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount,
};

use super::{DEVICE, Outcome, why};
use crate::root::needs_proc;

const DESCRIPTORS: &str = "/proc/self/fd";
/// What no part of the new root allows.
const CLOSED: MountFlags = MountFlags::RDONLY.union(MountFlags::NOSUID).union(MountFlags::NOEXEC);

/// Makes the new root on a directory and moves into it. The process must have a mount namespace of its own.
pub(super) fn change(site: &Path, store_is_private: bool) -> Outcome {
    let needs_descriptors = !store_is_private || needs_proc();
    enter(site, needs_descriptors).map_err(why)?;
    Ok(needs_descriptors.then(|| format!("with {DESCRIPTORS}, by which extended attributes are read here")))
}

fn enter(site: &Path, needs_descriptors: bool) -> io::Result<()> {
    // What is unmounted on the host goes from here too, and nothing that is mounted here is seen there.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("docker-fs", site, "tmpfs", flags, c"mode=0755,size=64k,nr_inodes=16")?;
    let entered = furnish(site, needs_descriptors).and_then(|()| swap(site));
    if entered.is_err() {
        // The first error is the one to report; nobody else sees this mount.
        let _ = unmount(site, UnmountFlags::DETACH);
    }
    entered
}

fn furnish(site: &Path, needs_descriptors: bool) -> io::Result<()> {
    let below = |path: &str| site.join(path.trim_start_matches('/'));
    let make_dir = |path: &Path| DirBuilder::new().recursive(true).mode(0o755).create(path);
    let device = below(DEVICE);
    make_dir(&below("dev"))?;
    File::create(&device)?;
    mount_bind(DEVICE, &device)?;
    mount_remount(&device, MountFlags::BIND | CLOSED, c"")?;
    if needs_descriptors {
        let descriptors = below(DESCRIPTORS);
        make_dir(&descriptors)?;
        mount_bind(DESCRIPTORS, &descriptors)?;
        mount_remount(&descriptors, MountFlags::BIND | CLOSED | MountFlags::NODEV, c"")?;
    }
    Ok(mount_remount(site, MountFlags::BIND | CLOSED | MountFlags::NODEV, c"")?)
}

/// Makes a mount the root, and detaches the one before, which for a moment lies upon it (pivot_root(2), `pivot_root(".",
/// ".")`).
fn swap(site: &Path) -> io::Result<()> {
    rustix::process::chdir(site)?;
    if let Err(errno) = rustix::process::pivot_root(".", ".") {
        rustix::process::chdir("/")?;
        return Err(errno.into());
    }
    unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}
