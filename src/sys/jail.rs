//! What the jail needs of the system beside rustix: namespaces, inherited descriptors, the numbers of system calls.

use std::io;
use std::mem::MaybeUninit;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::c_long;
use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};
use rustix::thread::UnshareFlags;

/// What a process may have of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Namespace {
    /// Which file systems are mounted where.
    Mount,
    /// Network interfaces, ports and abstract sockets.
    Network,
    /// System V's shared memory, and POSIX' message queues.
    Ipc,
    /// The host's name.
    Uts,
}

/// Gives the calling thread, which must be the only one to mean the process, a namespace of its own (`unshare(2)`).
///
/// # Errors
/// The system's: `EPERM` without `CAP_SYS_ADMIN`.
pub(crate) fn unshare(namespace: Namespace) -> io::Result<()> {
    let flag = match namespace {
        Namespace::Mount => UnshareFlags::NEWNS,
        Namespace::Network => UnshareFlags::NEWNET,
        Namespace::Ipc => UnshareFlags::NEWIPC,
        Namespace::Uts => UnshareFlags::NEWUTS,
    };
    // SAFETY: none of these flags parts the descriptors of threads.
    unsafe { rustix::thread::unshare_unsafe(flag) }.map_err(io::Error::from)
}

/// All descriptors but the standard streams, which whoever started this process left open; they are closed with the value.
/// Nothing else may have been opened yet.
///
/// # Errors
/// The system's, where `/proc` cannot be read.
pub(crate) fn inherited() -> io::Result<Vec<OwnedFd>> {
    const STREAMS: RangeInclusive<RawFd> = 0..=2;
    let list = openat(CWD, "/proc/self/fd", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut space = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&list, &mut space);
    let mut numbers = Vec::new();
    while let Some(entry) = entries.next() {
        let number = entry?.file_name().to_str().ok().and_then(|name| name.parse::<RawFd>().ok());
        numbers.extend(number.filter(|number| !STREAMS.contains(number) && *number != list.as_raw_fd()));
    }
    // SAFETY: the command calls this first of all, so each is open, and no other value owns it.
    Ok(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect())
}

/// A condition on an argument of a system call, counted from 0.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Only {
    /// Of its lower 32 bits, which are all that the kernel looks at.
    OneOf(u8, &'static [u32]),
    /// All these bits are set.
    With(u8, u64),
    /// None of these bits is set.
    Without(u8, u64),
}

/// A system call's number as filters have it.
#[allow(clippy::useless_conversion, reason = "on other machines the type is a narrower one")]
pub(crate) fn number(call: c_long) -> i64 {
    i64::from(call)
}

/// The system calls of a process that reads a store and serves it, whatever their arguments.
pub(crate) const SERVING: &[c_long] = &[
    // Files and directories of the store, which are opened for reading alone.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_lseek,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchdir,
    libc::SYS_fadvise64,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    // getxattrat(2) and listxattrat(2), the same numbers on all architectures.
    464,
    465,
    // The device, messages, the log.
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_splice,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    // Sockets that were opened before: the keeper's, and a listener. No new one can be made, and none be connected.
    libc::SYS_accept4,
    libc::SYS_accept,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // Memory that holds no program (see below for what maps it), threads, signals.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_set_tid_address,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_tgkill,
    libc::SYS_tkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Time, randomness, what the process is.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_capget,
    libc::SYS_prlimit64,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// The older names of the above, which architectures since have left out.
#[cfg(target_arch = "x86_64")]
pub(crate) const SERVING_ALSO: &[c_long] = &[
    libc::SYS_newfstatat,
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_poll,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
];

/// The older names of the above, which architectures since have left out.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) const SERVING_ALSO: &[c_long] = &[libc::SYS_newfstatat];

/// The system calls that are allowed with certain arguments: each that meets one of its conditions.
pub(crate) const SERVING_IF: &[(c_long, Only)] = &[
    // FUSE_DEV_IOC_CLONE, FUSE_DEV_IOC_BACKING_OPEN and FUSE_DEV_IOC_BACKING_CLOSE of linux/fuse.h; FIONREAD and FIONBIO.
    (libc::SYS_ioctl, Only::OneOf(1, &[0x8004_e500, 0x4010_e501, 0x4004_e502, 0x541b, 0x5421])),
    // Names for threads and for memory.
    (libc::SYS_prctl, Only::OneOf(0, &[libc::PR_SET_NAME.cast_unsigned(), libc::PR_SET_VMA.cast_unsigned()])),
    (libc::SYS_mmap, Only::Without(2, PROGRAMS)),
    (libc::SYS_mprotect, Only::Without(2, PROGRAMS)),
    // Threads and no processes. clone3(2) hides its flags from filters; without it, the C library takes this one.
    (libc::SYS_clone, Only::With(0, THREAD)),
    // A current directory of a thread's own.
    (libc::SYS_unshare, Only::OneOf(0, &[libc::CLONE_FS.cast_unsigned()])),
];

const PROGRAMS: u64 = libc::PROT_EXEC.cast_unsigned() as u64;
const THREAD: u64 = (libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND).cast_unsigned() as u64;

/// The system calls that nothing in this program makes, and only an intruder would: other programs, other processes.
pub(crate) const INTRUDING: &[c_long] = &[libc::SYS_execve, libc::SYS_execveat, libc::SYS_ptrace, libc::SYS_bpf];
