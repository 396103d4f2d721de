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
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::{Errno, FdFlags, IoSliceMut};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};

use super::{Options, SUBTYPE, TYPE};
use crate::error::{Error, Result};

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

/// Tells a mount from another at the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: (u32, u32),
    /// The kernel's number of the mount: one that no other ever has (Linux 6.8), one that another may have after it, as
    /// its device (Linux 5.8), or 0.
    mount_id: u64,
}

/// Mounts, and opens the device by which the kernel asks. Who looks at the mount waits until someone answers.
///
/// # Errors
/// [`Error::Io`] where the system refuses.
pub fn attach(options: &Options) -> Result<(OwnedFd, Attached)> {
    let point = &options.mount_point;
    let doing = || format!("mount on {}", point.display());
    let device = match by_system_call(options)? {
        Some(device) => device,
        None => by_helper(options).map_err(Error::io(doing))?,
    };
    let identity = identity(point).map_err(Error::io(|| format!("find the mount on {}", point.display())))?;
    Ok((device, Attached { mount_point: point.clone(), identity }))
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
        _ => Err(io::Error::other(String::from_utf8_lossy(&end.stderr).trim().to_owned())),
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

    /// Whether the mount is still at its place.
    #[must_use]
    pub fn is_there(&self) -> bool {
        identity(&self.mount_point).is_ok_and(|identity| identity == self.identity)
    }

    /// Takes the mount away; that it is gone already is no error.
    ///
    /// # Errors
    /// `EBUSY` while it is in use and not [`How::Lazy`].
    pub fn detach(&self, how: How) -> io::Result<()> {
        if self.is_there() { unmount(&self.mount_point, how) } else { Ok(()) }
    }

    /// Has the kernel ask for files in large pieces, which it can be told once the mount was answered for. Only root may say
    /// so, and others do with what there is.
    pub fn read_in_large_pieces(&self) {
        let (major, minor) = self.identity.device;
        let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        if let Err(error) = std::fs::write(setting, READ_AHEAD_KIB.to_string()) {
            log::debug!("the kernel reads ahead in files as usual: {error}");
        }
    }
}

/// The mount at a path, found without a request to who serves it.
fn identity(path: &Path) -> io::Result<Identity> {
    /// `STATX_MNT_ID_UNIQUE` of the kernel's ABI; where it is unknown the other number is told.
    const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(CWD, path, flags, StatxFlags::MNT_ID | UNIQUE)?;
    Ok(Identity { device: (found.stx_dev_major, found.stx_dev_minor), mount_id: found.stx_mnt_id })
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
    let said = String::from_utf8_lossy(&answer.stderr);
    if answer.status.success() {
        Ok(())
    } else if said.contains("busy") {
        Err(Errno::BUSY.into())
    } else {
        Err(io::Error::other(said.trim().to_owned()))
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
    use super::plain;

    #[test]
    fn a_source_name_cannot_add_options() {
        assert_eq!(plain("/var/lib/a,allow_other\\\n"), "/var/lib/a_allow_other__");
    }
}
