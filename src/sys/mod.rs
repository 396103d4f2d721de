//! System calls that rustix does not have: the only place with `unsafe`.
//!
//! One system call a function, each with a safe signature. What rustix offers is called where it is needed.

#![allow(unsafe_code)]

#[cfg(feature = "mount")]
pub(crate) mod jail;

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

/// Which side of a [`fork`] this is.
#[cfg(feature = "mount")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fork {
    /// The new process.
    Child,
    /// The process that called, with the new one's ID.
    Parent(rustix::process::Pid),
}

/// Makes a copy of this process, which must have one thread only.
///
/// # Errors
/// The system's, and `EINVAL` where other threads run: their locks would stay held in the child for ever.
#[cfg(feature = "mount")]
pub(crate) fn fork() -> io::Result<Fork> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: with a single thread no lock is held by anyone else, so the child may do all that the parent may.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(rustix::process::Pid::from_raw(pid).map_or(Fork::Child, Fork::Parent)),
    }
}

/// Has this thread receive signals again that whoever started the process had blocked, and SIGCHLD again tell of children
/// that ended, whom nobody could wait for were it ignored (`wait(2)`).
///
/// # Errors
/// The system's.
#[cfg(feature = "mount")]
pub(crate) fn receive_signals(signals: &[libc::c_int]) -> io::Result<()> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by the first call before it is used, and a number that is no signal changes nothing. The
    // default action runs no code of this process.
    let refused = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        libc::sigprocmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut()) != 0
            || libc::signal(libc::SIGCHLD, libc::SIG_DFL) == libc::SIG_ERR
    };
    if refused { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The list of the names of a file's extended attributes, each with a NUL, written into the buffer; answers its length in
/// bytes, and does no more where the buffer has no room at all (`listxattrat(2)`, Linux 6.13). A symbolic link at the end is
/// not followed.
///
/// # Errors
/// The system's: `ENOSYS` on older kernels, `ERANGE` where the buffer is too small.
pub(crate) fn xattr_list_at(dir: impl AsFd, path: &CStr, list: &mut [u8]) -> io::Result<usize> {
    /// The same on all architectures that have it.
    const LISTXATTRAT: libc::c_long = 465;
    // SAFETY: the descriptor is borrowed and open, the path is NUL-terminated, and the buffer is exclusively borrowed and
    // as long as it is said to be.
    let answer = unsafe {
        libc::syscall(
            LISTXATTRAT,
            dir.as_fd().as_raw_fd(),
            path.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            list.as_mut_ptr(),
            list.len(),
        )
    };
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}

/// The value of a file's extended attribute, written into the buffer; answers its length in bytes (`getxattrat(2)`,
/// Linux 6.13). A symbolic link at the end is not followed.
///
/// # Errors
/// The system's: `ENOSYS` on older kernels, `ERANGE` where the buffer is too small.
pub(crate) fn xattr_at(dir: impl AsFd, path: &CStr, name: &CStr, value: &mut [u8]) -> io::Result<usize> {
    /// The same on all architectures that have it.
    const GETXATTRAT: libc::c_long = 464;
    /// `struct xattr_args` of the kernel's ABI.
    #[repr(C, align(8))]
    struct Arguments {
        value: u64,
        size: u32,
        flags: u32,
    }
    let size = u32::try_from(value.len()).unwrap_or(u32::MAX);
    // An address fits 64 bits on every system.
    let mut arguments = Arguments { value: value.as_mut_ptr() as u64, size, flags: 0 };
    // SAFETY: the descriptor is borrowed and open, path and name are NUL-terminated, the structure lives through the
    // call with its true size given, and what it points to is exclusively borrowed and as long as it says.
    let answer = unsafe {
        libc::syscall(
            GETXATTRAT,
            dir.as_fd().as_raw_fd(),
            path.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            name.as_ptr(),
            &raw mut arguments,
            size_of::<Arguments>(),
        )
    };
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}

/// Gives the calling thread a current directory, a root directory and a umask of its own (`unshare(2)`, `CLONE_FS`), which
/// takes no privileges.
///
/// # Errors
/// The system's: those of a filter of system calls.
pub(crate) fn unshare_directory() -> io::Result<()> {
    // SAFETY: the call takes a number, and no other thread sees what it changes.
    let answer = unsafe { libc::unshare(libc::CLONE_FS) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets a detached mount read-only, without access times, devices, setuid, programs and symbolic links
/// (`mount_setattr(2)`, Linux 5.12; `MOUNT_ATTR_NOSYMFOLLOW` 5.14).
///
/// # Errors
/// The system's: `ENOSYS` on older kernels, `EPERM` without `CAP_SYS_ADMIN`.
pub(crate) fn restrict_mount(mount: impl AsFd) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOEXEC
            | libc::MOUNT_ATTR_NOATIME
            | libc::MOUNT_ATTR_NOSYMFOLLOW,
        attr_clr: libc::MOUNT_ATTR__ATIME,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the descriptor is borrowed and open, the path is a NUL-terminated constant, and the structure lives
    // through the call with its true size given.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has all threads allocate from one heap, which glibc would make one of for each. What is freed by another thread than
/// that which allocated it, as inodes are, leaves holes in as many heaps.
#[cfg(feature = "mount")]
pub(crate) fn use_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the function sets a number, under glibc's own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives memory that was freed back to the system, which glibc does of itself only at the heap's end.
#[cfg(feature = "mount")]
pub(crate) fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the function takes glibc's own locks and touches freed memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
