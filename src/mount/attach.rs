//! Puts the mount in place and takes it away.
//!
//! With the privilege to mount this is `mount(2)` itself, so that no part of a name ever stands in an option string
//! and `/proc/mounts` shows the type [`TYPE`]; without it `fusermount3` does the same, through `fuser`.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use fuser::SessionUnmounter;
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::{Options, TYPE};
use crate::error::{Error, Result};

const DEVICE: &str = "/dev/fuse";
/// How far the kernel reads ahead within a file, in KiB: as much as it asks for in one request.
const READ_AHEAD_KIB: u32 = 1_024;

/// A mount that this process made by itself.
#[derive(Debug, Clone)]
pub(super) struct Attached {
    mount_point: PathBuf,
    /// The kernel's number of the mount; another one at the same place has another.
    mount_id: u64,
}

/// Unmounts a view that another thread serves.
#[derive(Debug)]
pub struct Unmounter(pub(super) Way);

#[derive(Debug)]
pub(super) enum Way {
    Own(Attached),
    Helper(SessionUnmounter),
}

/// Mounts, and opens the device by which the kernel asks; `None` where this process may not mount by itself.
///
/// # Errors
/// [`Error::Io`] where the system refuses for another reason.
pub(super) fn attach(options: &Options) -> Result<Option<(OwnedFd, Attached)>> {
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
        Ok(()) => {}
        Err(Errno::PERM) => return Ok(None),
        Err(errno) => return Err(Error::io(|| format!("mount on {}", point.display()))(errno)),
    }
    let mount_id = mount_id(point).map_err(Error::io(|| format!("find the mount on {}", point.display())))?;
    Ok(Some((device, Attached { mount_point: point.clone(), mount_id })))
}

impl Attached {
    /// Takes the mount away; that it is gone already is no error.
    pub(super) fn detach(&self, how: UnmountFlags) -> io::Result<()> {
        if mount_id(&self.mount_point).is_ok_and(|id| id == self.mount_id) {
            rustix::mount::unmount(&self.mount_point, how | UnmountFlags::NOFOLLOW)?;
        }
        Ok(())
    }
}

/// Has the kernel ask for files in large pieces. Only root may say so, and others do with what there is.
pub(super) fn read_in_large_pieces(point: &Path) {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let set = rustix::fs::statx(CWD, point, flags, StatxFlags::empty()).map_err(io::Error::from).and_then(|found| {
        let device = format!("{}:{}", found.stx_dev_major, found.stx_dev_minor);
        std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), READ_AHEAD_KIB.to_string())
    });
    if let Err(error) = set {
        log::debug!("the kernel reads ahead in files as usual: {error}");
    }
}

/// The number of the mount at a path, without a request to who serves it.
fn mount_id(path: &Path) -> io::Result<u64> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    Ok(rustix::fs::statx(CWD, path, flags, StatxFlags::MNT_ID)?.stx_mnt_id)
}

impl Unmounter {
    /// Unmounts.
    ///
    /// # Errors
    /// `EBUSY` while the mount is in use.
    pub fn unmount(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Way::Own(attached) => attached.detach(UnmountFlags::empty()),
            Way::Helper(session) => session.unmount(),
        }
    }
}
