//! Puts the mount in place and takes it away.
//!
//! With the privilege to mount this is `mount(2)` itself, so that no part of a name ever stands in an option string
//! and `/proc/mounts` shows the type [`TYPE`]; without it [`FUSERMOUNT`] does the same. Either way there is a descriptor of
//! the device then, by which the kernel asks; who serves may be another process than who mounts.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::{Errno, FdFlags, IoSliceMut};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};

use super::mountinfo::{Mount, Mounts, Number};
use super::{Options, SUBTYPE, TYPE};
use crate::error::{Error, Result, printable, system_words};

/// The setuid helper of package fuse3, by which other users than root mount and unmount.
pub const FUSERMOUNT: &str = "fusermount3";

/// The device by which the kernel asks.
pub const DEVICE: &str = "/dev/fuse";
/// How far the kernel reads ahead within a file, in KiB: as much as it asks for in one request.
const READ_AHEAD_KIB: u32 = 1_024;

/// How a mount is to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Not while it is in use.
    Plain,
    /// It leaves the tree of directories at once, and ends when its last user does.
    Lazy,
}

/// A mount that this process made.
#[derive(Debug, Clone)]
pub struct Attached {
    mount_point: PathBuf,
    identity: Identity,
}

/// Tells a mount from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    /// By which the kernel's list has it.
    number: Number,
    /// A number that no other mount ever has (Linux 6.8), or one that tells no more than the list's.
    unique: u64,
}

/// How a mount stands.
#[derive(Debug)]
enum Standing {
    /// It is in no directory of this process' mount namespace.
    Gone,
    /// It is what is seen at its place.
    OnTop(PathBuf),
    /// Something else is mounted over it.
    Covered,
}

/// Mounts, and opens the device by which the kernel asks. Who looks at the mount waits until someone answers.
///
/// # Errors
/// [`Error::Io`] where the system refuses.
pub fn attach(options: &Options) -> Result<(OwnedFd, Attached)> {
    let doing = || format!("mount on {}", options.mount_point.display());
    // As lists of mounts have it. Once it is a mount, looking at it waits for who serves it.
    let point = options.mount_point.canonicalize().map_err(Error::io(doing))?;
    let device = match by_system_call(options)? {
        Some(device) => device,
        None => by_helper(options).map_err(Error::io(doing))?,
    };
    match identity(&point) {
        Ok(identity) => Ok((device, Attached { mount_point: point, identity })),
        Err(error) => {
            if Mounts::read().map_or(true, |mounts| mounts.at(&point).is_some_and(Mount::is_ours)) {
                // The first error is the one to report.
                let _ = unmount(&point, How::Lazy);
            }
            Err(Error::io(|| format!("find the mount on {}", point.display()))(error))
        }
    }
}

fn mounts() -> io::Result<Mounts> {
    Mounts::read().map_err(about("read /proc/self/mountinfo"))
}

/// What was being done belongs to an error that tells nothing of it.
fn about(doing: &str) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("cannot {doing}: {}", system_words(&error)))
}

/// The mount of this program that was just made at a path without symbolic links.
fn identity(point: &Path) -> io::Result<Identity> {
    let mounts = mounts()?;
    let ours = mounts.at(point).filter(|mount| mount.is_ours());
    let ours = ours.ok_or_else(|| io::Error::other("another mount took its place"))?;
    Ok(Identity { number: ours.number(), unique: unique_number(point)? })
}

/// Mounts; `None` where this process may not by itself.
fn by_system_call(options: &Options) -> Result<Option<OwnedFd>> {
    let device = File::options().read(true).write(true).open(DEVICE);
    let device: OwnedFd = device.map_err(Error::io(|| format!("open {DEVICE}")))?.into();
    let mut flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    if options.noexec {
        flags |= MountFlags::NOEXEC;
    }
    let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut data = format!("fd={},rootmode=40000,user_id={user},group_id={group}", device.as_raw_fd());
    if options.allow_other {
        data.push_str(",allow_other,default_permissions");
    }
    let point = &options.mount_point;
    let data = std::ffi::CString::new(data).map_err(Error::io(|| "mount".to_owned()))?;
    match rustix::mount::mount(options.fs_name.as_str(), point, TYPE, flags, data.as_c_str()) {
        Ok(()) => Ok(Some(device)),
        Err(Errno::PERM) => Ok(None),
        Err(errno) => Err(Error::io(|| format!("mount on {}", point.display()))(errno)),
    }
}

/// Has the helper mount, which sends the descriptor of the device that it opened.
fn by_helper(options: &Options) -> io::Result<OwnedFd> {
    // The helper inherits its end, which it is told the number of.
    let (ours, its) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None)?;
    rustix::io::fcntl_setfd(&ours, FdFlags::CLOEXEC)?;
    let mut helper = Command::new(FUSERMOUNT);
    helper.arg("-o").arg(helper_options(options)).arg("--").arg(&options.mount_point);
    helper.env("_FUSE_COMMFD", its.as_raw_fd().to_string()).env("LC_ALL", "C");
    let started = helper.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let child = started.map_err(missing_helper)?;
    drop(its);
    let device = receive(&ours);
    let end = child.wait_with_output()?;
    match device? {
        Some(device) if end.status.success() => Ok(device),
        _ => Err(io::Error::other(complaint(&end))),
    }
}

/// What the helper has to say; it may fail without a word.
fn complaint(end: &Output) -> String {
    match String::from_utf8_lossy(&end.stderr).trim() {
        "" => format!("{FUSERMOUNT} ended without a word ({})", end.status),
        said => printable(said.to_owned()),
    }
}

fn helper_options(options: &Options) -> String {
    let name = plain(&options.fs_name);
    let mut list = format!("ro,nosuid,nodev,noatime,fsname={name},subtype={SUBTYPE}");
    if options.noexec {
        list.push_str(",noexec");
    }
    if options.allow_other {
        list.push_str(",allow_other,default_permissions");
    }
    list
}

/// A name that cannot end an option and begin another where options are one string: commas, backslashes and control
/// characters become `_`.
fn plain(name: &str) -> String {
    name.chars().map(|c| if matches!(c, ',' | '\\') || c.is_control() { '_' } else { c }).collect()
}

/// The descriptor that comes by a socket; `None` where the other end is closed without one.
fn receive(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    rustix::io::retry_on_intr(|| recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags))?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

impl Attached {
    /// Where it was mounted.
    #[must_use]
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Whether the mount is still there, also where it was moved, or something else is mounted over it.
    ///
    /// # Errors
    /// Where that could not be told.
    pub fn is_there(&self) -> io::Result<bool> {
        Ok(!matches!(self.standing()?, Standing::Gone))
    }

    /// Takes the mount away, wherever it was moved; that it is gone already is no error.
    ///
    /// # Errors
    /// `EBUSY` while it is in use and not [`How::Lazy`]; others where something else is mounted over it, which is not ours to
    /// take away, or where it could not be told whether it is there.
    pub fn detach(&self, how: How) -> io::Result<()> {
        match self.standing()? {
            Standing::Gone => Ok(()),
            Standing::Covered => Err(io::Error::other("another mount lies on top of it and has to be unmounted first")),
            Standing::OnTop(point) => {
                unmount(&point, how)?;
                match self.is_there()? {
                    false => Ok(()),
                    true => Err(io::Error::other("it is still there after it was unmounted")),
                }
            }
        }
    }

    fn standing(&self) -> io::Result<Standing> {
        /// How often the list and what is seen may contradict each other, as where something is mounted between two looks.
        const LOOKS: usize = 3;
        for _ in 0..LOOKS {
            let mounts = mounts()?;
            let Some(ours) = mounts.find(self.identity.number).filter(|mount| mount.is_ours()) else {
                return Ok(Standing::Gone);
            };
            if mounts.at(ours.point()).map(Mount::number) != Some(self.identity.number) {
                return Ok(Standing::Covered);
            }
            if unique_number(ours.point())? == self.identity.unique {
                return Ok(Standing::OnTop(ours.point().to_owned()));
            }
        }
        // Another mount of this program has the number in the list by now.
        Ok(Standing::Gone)
    }

    /// Has the kernel ask for files in large pieces, which it can be told once the mount was answered for. Only root may say
    /// so, and others do with what there is.
    pub fn read_in_large_pieces(&self) {
        let setting = format!("/sys/class/bdi/{}/read_ahead_kb", self.identity.number.device);
        if let Err(error) = std::fs::write(setting, READ_AHEAD_KIB.to_string()) {
            log::debug!("the kernel reads ahead in files as usual: {error}");
        }
    }
}

/// The number of the mount at a path that no other ever has, asked without a request to who serves it; on older kernels
/// that of the list, or 0.
fn unique_number(path: &Path) -> io::Result<u64> {
    /// `STATX_MNT_ID_UNIQUE` of the kernel's ABI; where it is unknown the other number is told.
    const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(CWD, path, flags, StatxFlags::MNT_ID | UNIQUE);
    Ok(found.map_err(|errno| about(&format!("look at {}", path.display()))(errno.into()))?.stx_mnt_id)
}

/// Ends whatever is mounted at a path.
///
/// # Errors
/// The system's or the helper's: `EBUSY` while it is in use and not [`How::Lazy`].
pub fn unmount(point: &Path, how: How) -> io::Result<()> {
    let flags = match how {
        How::Plain => UnmountFlags::NOFOLLOW,
        How::Lazy => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
    };
    match rustix::mount::unmount(point, flags) {
        Err(Errno::PERM) => unmount_by_helper(point, how),
        outcome => outcome.map_err(io::Error::from),
    }
}

fn unmount_by_helper(point: &Path, how: How) -> io::Result<()> {
    let flags = match how {
        How::Plain => "-u",
        How::Lazy => "-uz",
    };
    let mut helper = Command::new(FUSERMOUNT);
    helper.arg(flags).arg("--").arg(point).env("LC_ALL", "C").stdin(Stdio::null());
    let answer = helper.output().map_err(missing_helper)?;
    if answer.status.success() {
        Ok(())
    } else if String::from_utf8_lossy(&answer.stderr).contains("busy") {
        Err(Errno::BUSY.into())
    } else {
        Err(io::Error::other(complaint(&answer)))
    }
}

fn missing_helper(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => {
            io::Error::other(format!("only root may, or {FUSERMOUNT} of package fuse3, which is missing"))
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn a_helper_that_fails_without_a_word_is_named() {
        let ended = |stderr: &str| {
            complaint(&Output { status: ExitStatus::from_raw(256), stdout: Vec::new(), stderr: stderr.into() })
        };
        assert_eq!(ended("\n"), "fusermount3 ended without a word (exit status: 1)");
        assert_eq!(ended("fusermount3: no\n"), "fusermount3: no");
    }

    #[test]
    fn a_source_name_cannot_add_options() {
        assert_eq!(plain("/var/lib/a,allow_other\\\n"), "/var/lib/a_allow_other__");
    }
}
