//! The directory that is mounted on: whether it can be, and what is in the way.
//!
//! A mount of ours whose process was killed blocks its directory ("Transport endpoint is not connected") until someone
//! detaches it; that is done here, but only where the kernel's list of mounts says that it is one of ours. Whether the
//! mount point and the source overlap is for `overlap` to say.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::unmount::{canonical, is_dead, mounts};
use super::{Failure, words};
use crate::mount::{DEVICE, FUSERMOUNT, How, Mount, unmount};

/// Dead mounts upon each other that are detached before giving up.
const DEAD_MAX: usize = 16;

/// Returns the directory's path without symbolic links, with a dead mount on it detached.
///
/// # Errors
/// Where nothing can be mounted there, with what to do about it.
pub(super) fn prepare(path: &Path) -> Result<PathBuf, Failure> {
    let point = canonical(path).map_err(|error| unusable(path, &error))?;
    for _ in 0..DEAD_MAX {
        let is_ours = mounts()?.at(&point).is_some_and(Mount::is_ours);
        match std::fs::metadata(&point) {
            Err(error) if is_dead(&error) && is_ours => detach_dead(&point)?,
            _ if is_ours => {
                let shown = point.display();
                return Err(Failure::failed(format!(
                    "{shown} is a mount of docker-fs already; 'docker-fs unmount {shown}' ends it"
                )));
            }
            Err(error) => return Err(unusable(path, &error)),
            Ok(meta) if !meta.is_dir() => {
                return Err(Failure::failed(format!("the mount point {} is not a directory", path.display())));
            }
            Ok(_) => return Ok(point),
        }
    }
    Err(Failure::failed(format!("more than {DEAD_MAX} dead mounts lie upon each other at {}", point.display())))
}

fn detach_dead(point: &Path) -> Result<(), Failure> {
    let shown = point.display();
    unmount(point, How::Lazy)
        .map_err(|error| Failure::failed(format!("cannot detach the dead mount at {shown}: {}", words(&error))))?;
    log::warn!("detached from {shown} the mount of a docker-fs that was killed");
    Ok(())
}

fn unusable(path: &Path, error: &io::Error) -> Failure {
    let shown = path.display();
    Failure::failed(match error.kind() {
        ErrorKind::NotFound => format!("the mount point {shown} does not exist; 'mkdir -p {shown}' makes it"),
        ErrorKind::NotADirectory => format!("the mount point {shown} is not a directory"),
        _ if is_dead(error) => {
            format!("the mount point {shown} is a dead mount of another program; 'umount -l {shown}' detaches it")
        }
        _ => format!("cannot use the mount point {shown}: {}", words(error)),
    })
}

/// Looks whether this process can ask the kernel for a FUSE mount at all.
///
/// # Errors
/// What is missing and what to do about it.
pub(super) fn check_fuse() -> Result<(), Failure> {
    if let Err(error) = OpenOptions::new().read(true).write(true).open(DEVICE) {
        return Err(Failure::failed(match error.kind() {
            ErrorKind::NotFound => format!(
                "{DEVICE} does not exist; 'modprobe fuse' loads the kernel's module, and a container needs the device \
                 given to it"
            ),
            _ => format!(
                "cannot open {DEVICE}: {}; run docker-fs as root, or let this user or container open it",
                words(&error)
            ),
        }));
    }
    let may_mount = rustix::process::geteuid().is_root();
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !may_mount && !std::env::split_paths(&path).any(|dir| dir.join(FUSERMOUNT).is_file()) {
        return Err(Failure::failed(format!(
            "{FUSERMOUNT} is missing, with which other users than root mount; install the package fuse3"
        )));
    }
    Ok(())
}
