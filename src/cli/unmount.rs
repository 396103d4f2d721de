//! `docker-fs unmount`: ends a mount, also one whose process is gone.
//!
//! Which directory is one of ours is told by the kernel's list of mounts, never by asking the mount: a dead one answers
//! nothing.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::Failure;
use super::args::Unmount;
use super::{signals, words};
use crate::mount::{Mount, Mounts, unmount};

/// Ends the mount at a directory, and returns when it is gone.
///
/// # Errors
/// Where it is none of ours, is in use, or the system refused.
pub(super) fn run(request: &Unmount) -> Result<(), Failure> {
    signals::receive()?;
    let dir = canonical(&request.dir)
        .map_err(|error| Failure::failed(format!("cannot find {}: {}", request.dir.display(), words(&error))))?;
    let shown = dir.display();
    let mounts_before = mounts()?;
    let Some(mount) = mounts_before.at(&dir).filter(|mount| mount.is_ours()) else {
        return Err(Failure::failed(format!("{shown} is not a mount of docker-fs")));
    };
    refuse_anothers(mount)?;
    let ours = mount.number();
    unmount(&dir, request.how).map_err(|error| {
        Failure::failed(if is_busy(&error) {
            format!(
                "{shown} is in use ('fuser -vm {shown}' says by whom); \
                 'docker-fs unmount --lazy {shown}' detaches it all the same"
            )
        } else {
            format!("cannot unmount {shown}: {}", words(&error))
        })
    })?;
    match mounts()?.at(&dir).map(Mount::number) {
        Some(number) if number == ours => {
            Err(Failure::failed(format!("{shown} was unmounted without an error, but is still mounted")))
        }
        _ => Ok(()),
    }
}

/// Refuses what the system would, in words that say who may.
fn refuse_anothers(mount: &Mount) -> Result<(), Failure> {
    let user = rustix::process::getuid();
    match mount.owner() {
        Some(owner) if !rustix::process::geteuid().is_root() && owner != user.as_raw() => {
            let who = if owner == 0 { "root".to_owned() } else { format!("user {owner}") };
            Err(Failure::failed(format!(
                "{} was mounted by {who}; only root or that user may unmount it",
                mount.point().display()
            )))
        }
        _ => Ok(()),
    }
}

/// The mounts as they are.
pub(super) fn mounts() -> Result<Mounts, Failure> {
    Mounts::read().map_err(|error| Failure::failed(format!("cannot read /proc/self/mountinfo: {}", words(&error))))
}

/// A path without symbolic links, also where its end is a dead mount, which may not be asked.
pub(super) fn canonical(path: &Path) -> io::Result<PathBuf> {
    std::fs::canonicalize(path).or_else(|error| match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if is_dead(&error) => Ok(std::fs::canonicalize(parent)?.join(name)),
        _ => Err(error),
    })
}

/// Whether the error is that of a mount whose process is gone; a request that was under way when it went is aborted.
pub(super) fn is_dead(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOTCONN | Errno::CONNABORTED))
}

/// Whether the error is that of a mount in use.
pub(super) fn is_busy(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::BUSY)
}
