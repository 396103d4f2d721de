//! From a directory to what a path below it stands for, and nowhere else: no `..` (a [`TreePath`] has none), no symbolic
//! link, no magic link of /proc, and no other mount where the caller says so.
//!
//! `openat2(2)` does that in one call. Where it is missing (before Linux 5.6), or a filter of system calls takes it away
//! (`ENOSYS` by systemd's `RestrictSUIDSGID=`, elsewhere `EPERM`), the path is walked component by component. Each is
//! opened with `O_PATH`, which opens nothing but a way to go on, and `O_NOFOLLOW`; the next step starts from that
//! descriptor, so what is renamed meanwhile leads nowhere. Answers and errors are the same. Which way it is, is found
//! out once a process.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat};
use rustix::io::Errno;

use crate::name::TreePath;

/// A path of more bytes than this is walked in pieces, below Linux' `PATH_MAX` of 4,096.
pub(super) const PIECE_MAX: usize = 3_500;
/// How a directory is opened on the way to something else.
pub(super) const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// How a way to something of any kind is opened.
pub(super) const HANDLE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// How often a resolution is tried again when a rename elsewhere made it uncertain (`EAGAIN` with `RESOLVE_BENEATH`).
pub(super) const RETRIES: usize = 64;

/// What lies around the directory that a path starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ground {
    /// A private clone of a mount, in which no symbolic link is followed and nothing is mounted: a plain call leads
    /// nowhere else.
    Clone,
    /// The host's tree, of which this mount is not to be left.
    Mount,
    /// The host's tree, with all that is mounted below.
    Tree,
}

/// What tells one mount from another: its number (Linux 5.8). Before that it is the device of its file system, by which
/// a bind mount is not told from the file system that it lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MountId {
    Number(u64),
    Device(u32, u32),
}

impl MountId {
    /// The mount of what was asked for with [`StatxFlags::MNT_ID`].
    pub(super) fn of(stat: &Statx) -> Self {
        if StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID) {
            Self::Number(stat.stx_mnt_id)
        } else {
            Self::Device(stat.stx_dev_major, stat.stx_dev_minor)
        }
    }
}

/// Opens a path below a directory, in pieces where it is long. The flags say `O_NOFOLLOW`, and not to write.
///
/// # Errors
/// The system's: `ELOOP` for a symbolic link on the way, `EXDEV` for another mount.
pub(super) fn open(dir: BorrowedFd<'_>, path: &TreePath, flags: OFlags, ground: Ground) -> rustix::io::Result<OwnedFd> {
    if path.is_root() {
        return open_once(dir, b".", flags, ground);
    }
    let mut rest = path.as_bytes();
    let mut held: Option<OwnedFd> = None;
    loop {
        let from = held.as_ref().map_or(dir, |fd| fd.as_fd());
        let slash = rest.get(..PIECE_MAX).and_then(|piece| piece.iter().rposition(|b| *b == b'/'));
        match slash.and_then(|at| rest.split_at_checked(at)) {
            Some((piece, behind)) => {
                let next = open_once(from, piece, FOLDER, ground)?;
                rest = behind.strip_prefix(b"/").unwrap_or(behind);
                held = Some(next);
            }
            None => return open_once(from, rest, flags, ground),
        }
    }
}

/// As [`open`], with a path that the system takes at once.
pub(super) fn open_once(
    dir: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    ground: Ground,
) -> rustix::io::Result<OwnedFd> {
    let open = if has_openat2() { in_one_call } else { step_by_step };
    let mut tries = 0;
    loop {
        match open(dir, path, flags, ground) {
            Err(Errno::AGAIN | Errno::INTR) if tries < RETRIES => tries += 1,
            answer => return answer,
        }
    }
}

fn has_openat2() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let answer = rustix::fs::openat2(CWD, c".", flags, Mode::empty(), ResolveFlags::empty());
        !matches!(answer, Err(Errno::NOSYS | Errno::PERM))
    })
}

fn in_one_call(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags, ground: Ground) -> rustix::io::Result<OwnedFd> {
    let mut how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    if ground != Ground::Tree {
        how |= ResolveFlags::NO_XDEV;
    }
    rustix::fs::openat2(dir, path, flags, Mode::empty(), how)
}

fn step_by_step(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags, ground: Ground) -> rustix::io::Result<OwnedFd> {
    let home = match ground {
        Ground::Clone => return openat(dir, path, flags, Mode::empty()),
        Ground::Mount => Some(MountId::of(&identity(dir)?)),
        Ground::Tree => None,
    };
    let mut components = path.split(|b| *b == b'/');
    let last = components.next_back().unwrap_or_default();
    let mut held: Option<OwnedFd> = None;
    for name in components {
        let from = held.as_ref().map_or(dir, |fd| fd.as_fd());
        let next = folder(from, name)?;
        stay(&identity(next.as_fd())?, home)?;
        held = Some(next);
    }
    end(held.as_ref().map_or(dir, |fd| fd.as_fd()), last, flags, home)
}

/// The directory of this name.
fn folder(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    match openat(dir, name, FOLDER, Mode::empty()) {
        // The system calls a symbolic link no directory, as it was not to be followed.
        Err(Errno::NOTDIR) => match rustix::fs::readlinkat(dir, name, Vec::new()) {
            Ok(_) => Err(Errno::LOOP),
            Err(_no_link) => Err(Errno::NOTDIR),
        },
        answer => answer,
    }
}

/// The last step: the mount is looked at before anything is opened, and what was opened must be what was looked at.
fn end(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags, home: Option<MountId>) -> rustix::io::Result<OwnedFd> {
    let handle = openat(dir, name, HANDLE | (flags & OFlags::DIRECTORY), Mode::empty())?;
    if home.is_none() && flags.contains(OFlags::PATH) {
        return Ok(handle);
    }
    let seen = identity(handle.as_fd())?;
    stay(&seen, home)?;
    if flags.contains(OFlags::PATH) {
        return Ok(handle);
    }
    let opened = openat(dir, name, flags, Mode::empty())?;
    if is_same(&seen, &identity(opened.as_fd())?) { Ok(opened) } else { Err(Errno::AGAIN) }
}

fn stay(at: &Statx, home: Option<MountId>) -> rustix::io::Result<()> {
    if home.is_none_or(|home| home == MountId::of(at)) { Ok(()) } else { Err(Errno::XDEV) }
}

fn identity(fd: BorrowedFd<'_>) -> rustix::io::Result<Statx> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::TYPE | StatxFlags::INO | StatxFlags::MNT_ID)
}

/// Whether both are attributes of one file. While a descriptor of it is held, its number goes to no other.
pub(super) fn is_same(one: &Statx, other: &Statx) -> bool {
    let identity = |stat: &Statx| (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
    identity(one) == identity(other)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    type Open = fn(BorrowedFd<'_>, &[u8], OFlags, Ground) -> rustix::io::Result<OwnedFd>;

    /// The file that was opened, or why none was.
    fn outcome(open: Open, root: &Path, path: &str, flags: OFlags, ground: Ground) -> Result<(u32, u32, u64), Errno> {
        let dir = openat(CWD, root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let opened = open(dir.as_fd(), path.as_bytes(), flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, ground)?;
        let found = identity(opened.as_fd())?;
        Ok((found.stx_dev_major, found.stx_dev_minor, found.stx_ino))
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/file"), "content").unwrap();
        for (target, link) in [("a", "to-a"), ("a/b/file", "to-file"), ("..", "up"), ("to-a", "chain"), ("/", "away")] {
            symlink(target, dir.path().join(link)).unwrap();
        }
        symlink("/proc/self/root", dir.path().join("a/magic")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        rustix::fs::mknodat(CWD, dir.path().join("fifo"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        dir
    }

    #[test]
    fn both_ways_lead_to_the_same() {
        assert!(has_openat2(), "without openat2 there is nothing to compare with");
        let dir = tree();
        let own = [
            ".",
            "a",
            "a/b",
            "a/b/file",
            "a/none",
            "none",
            "none/b",
            "to-a",
            "to-a/b",
            "to-a/b/file",
            "to-file",
            "up",
            "up/a",
            "chain",
            "chain/b",
            "away",
            "away/etc",
            "a/magic",
            "a/magic/etc",
            "loop",
            "loop/a",
            "fifo",
            "fifo/a",
            "a/b/file/x",
        ];
        // Mounts, and magic links, which symbolic links are not needed for.
        let me = std::process::id();
        let [root, fd, in_root] = ["root", "fd/0", "root/etc"].map(|name| format!("proc/{me}/{name}"));
        let host = [".", "etc", "proc", "proc/self", "proc/self/fd", "proc/version", &root, &fd, &in_root, "dev/null"];
        let kinds = [
            OFlags::PATH,
            OFlags::PATH | OFlags::DIRECTORY,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK,
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
        ];
        let (mut opened, mut refused) = (0, std::collections::HashSet::new());
        for (root, path) in
            own.iter().map(|path| (dir.path(), path)).chain(host.iter().map(|path| (Path::new("/"), path)))
        {
            for (flags, ground) in kinds.into_iter().flat_map(|flags| [(flags, Ground::Mount), (flags, Ground::Tree)]) {
                let expected = outcome(in_one_call, root, path, flags, ground);
                let found = outcome(step_by_step, root, path, flags, ground);
                assert_eq!(found, expected, "{} {path} {flags:?} {ground:?}", root.display());
                match expected {
                    Ok(_) => opened += 1,
                    Err(errno) => _ = refused.insert(errno),
                }
            }
        }
        assert!(opened > 30, "{opened}");
        for errno in [Errno::LOOP, Errno::XDEV, Errno::NOTDIR, Errno::NOENT] {
            assert!(refused.contains(&errno), "{errno:?}");
        }
    }

    #[test]
    fn long_paths_are_walked_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let name = "n".repeat(250);
        let mut held = openat(CWD, dir.path(), FOLDER, Mode::empty()).unwrap();
        for _ in 0..20 {
            rustix::fs::mkdirat(&held, &name, Mode::RWXU).unwrap();
            held = openat(&held, &name, FOLDER, Mode::empty()).unwrap();
        }
        let long = TreePath::new([name.as_str(); 20].join("/").as_bytes()).unwrap();
        let root = openat(CWD, dir.path(), FOLDER, Mode::empty()).unwrap();
        let found = open(root.as_fd(), &long, FOLDER, Ground::Mount).unwrap();
        assert!(is_same(&identity(found.as_fd()).unwrap(), &identity(held.as_fd()).unwrap()));
    }
}
