//! The directory that is mounted on: whether it can be, and what is in the way.
//!
//! What is in a directory is out of sight as long as something is mounted on it. So it has to be empty, unless it is said
//! that it need not be, and it is never a store: that was meant as the source.
//!
//! A mount of ours whose process was killed blocks its directory ("Transport endpoint is not connected") until someone
//! detaches it; that is done here, but only where the kernel's list of mounts says that it is one of ours. Whether the
//! mount point and the source overlap is for `overlap` to say.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::unmount::{canonical, is_dead, mounts};
use super::{Failure, words};
use crate::error::Error;
use crate::mount::{DEVICE, FUSERMOUNT, How, Mount, unmount};
use crate::store::{self, Options};

/// Dead mounts upon each other that are detached before giving up.
const DEAD_MAX: usize = 16;

/// A directory that can be mounted on.
#[derive(Debug)]
pub(super) struct Point {
    /// Without symbolic links.
    pub(super) path: PathBuf,
    state: State,
}

/// What was found at a mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Directory,
    /// A directory that a dead mount of ours lay on, so that what is in it was out of sight already.
    Recovered,
    /// It waits for a mount, and whoever looks into it waits too.
    Automount,
}

/// How the mount point was named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    /// A source was named too.
    Last,
    /// It was the only argument.
    Alone,
}

/// Finds the directory, and detaches a dead mount from it.
///
/// # Errors
/// Where nothing can be mounted there, with what to do about it.
pub(super) fn prepare(path: &Path) -> Result<Point, Failure> {
    let point = canonical(path).map_err(|error| unusable(path, &error))?;
    let mut state = State::Directory;
    for _ in 0..DEAD_MAX {
        let mounts = mounts()?;
        let mount = mounts.at(&point);
        if mount.is_some_and(Mount::is_automount) {
            return Ok(Point { path: point, state: State::Automount });
        }
        if mount.is_some_and(Mount::is_ours) {
            if !has_died(&point) {
                let shown = point.display();
                return Err(Failure::failed(format!(
                    "{shown} is a mount of docker-fs already; 'docker-fs unmount {shown}' ends it"
                )));
            }
            detach_dead(&point)?;
            state = State::Recovered;
            continue;
        }
        match std::fs::metadata(&point) {
            Err(error) => return Err(unusable(path, &error)),
            Ok(meta) if !meta.is_dir() => {
                return Err(Failure::failed(format!("the mount point {} is not a directory", path.display())));
            }
            Ok(_) => return Ok(Point { path: point, state }),
        }
    }
    Err(Failure::failed(format!("more than {DEAD_MAX} dead mounts lie upon each other at {}", point.display())))
}

impl Point {
    /// Makes sure that the mount point is no store.
    ///
    /// # Errors
    /// That it is, and what was probably meant.
    pub(super) fn refuse_store(&self, named: Named) -> Result<(), Failure> {
        if self.state == State::Automount {
            return Ok(());
        }
        let what = match store::open(&self.path, &Options::default()) {
            Ok(stores) if stores.iter().all(|store| store.kind() != "docker") => "a container store",
            Ok(_) | Err(Error::Unsupported { .. } | Error::Damaged { .. }) => "a Docker data root",
            // None, or one that this user may not even look at.
            Err(_) => return Ok(()),
        };
        let advice = match named {
            Named::Alone => "as the only argument it is taken for the mount point",
            Named::Last => "the mount point comes last",
        };
        Err(Failure::failed(format!("{} is {what}; {advice}: docker-fs SOURCE MOUNTPOINT", self.path.display())))
    }

    /// Makes sure that the mount would hide nothing.
    ///
    /// # Errors
    /// That it would, or that it cannot be told.
    pub(super) fn refuse_content(&self) -> Result<(), Failure> {
        if self.state != State::Directory {
            return Ok(());
        }
        let shown = self.path.display();
        match std::fs::read_dir(&self.path).map(|mut names| names.next().is_none()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::failed(format!("{shown} is not empty; '-o nonempty' mounts over it"))),
            Err(error) => Err(Failure::failed(format!(
                "cannot tell whether {shown} is empty: {}; '-o nonempty' mounts over it",
                words(&error)
            ))),
        }
    }
}

/// Whether nobody answers for a mount any more. What kind of file it is the kernel may still know.
fn has_died(point: &Path) -> bool {
    rustix::fs::statfs(point).is_err_and(|errno| is_dead(&errno.into()))
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
