//! A directory capability: every touch of the host's files goes through a [`Root`].
//!
//! A path is resolved below the root without leaving it: no `..`, no symbolic link, no magic link, no other mount in
//! between (see `resolve`). Nothing here can write.
//!
//! Where the process may (`CAP_SYS_ADMIN`), a root is a private clone of the mount that it lies on: read-only, without
//! devices, without symbolic links that are followed, and without access times, because `O_NOATIME` does nothing for
//! `readlink(2)`. There calls that take a path lead nowhere else than a resolution would, and one does instead of three.
//! Elsewhere `O_NOATIME` is asked for, and done without where the system refuses it.
//!
//! A file is opened for reading only after its type was seen to be regular. Who renames at that moment gains nothing:
//!
//! ```text
//!                        in a private clone          elsewhere
//! looked at              by its path                 by a descriptor that stands for it (O_PATH)
//! opened                 by its path                 through that descriptor's link in /proc, which is the same file;
//!                                                    without /proc by its path, and compared
//! a device meanwhile     refused by nodev            only without /proc: opened, compared, closed
//! a FIFO meanwhile       opened without waiting,     only without /proc: as a device
//!                        cannot be read by position
//! a socket, a link       refused by the system       refused by the system
//! a directory            cannot be read              told by the comparison
//! another file           it is the store's too       told by the comparison, and looked at again
//! ```

mod resolve;

use std::ffi::CString;
use std::fs::File;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::inotify::WatchFlags;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, Statx, StatxFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use rustix::path::Arg;

use crate::error::{Error, Result, printable};
use crate::meta::{DeviceNumber, Kind, Meta, Timestamp};
use crate::name::{Name, TreePath};
use crate::sys;
use resolve::{FOLDER, Ground, HANDLE, MountId, PIECE_MAX, RETRIES, is_same};

/// The largest value of an extended attribute, and the longest list of names (Linux `XATTR_SIZE_MAX`), in bytes.
pub const XATTR_MAX: usize = 65_536;
/// `STATX_SUBVOL` (`linux/stat.h`), which rustix does not name.
const SUBVOLUME: StatxFlags = StatxFlags::from_bits_retain(0x8000);
/// How a regular file is opened; whatever else may have taken its place is not waited for.
const FILE: OFlags =
    OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What is told of a watched directory: entries that come, go or were written, and its own end.
const CHANGES: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);
/// What of a watched directory is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changes {
    /// Entries that come, go or were written.
    Entries,
    /// As well each time that something is written to a file in it, which may stay open for ever.
    Writes,
}

/// The types of file systems to which others may write without this kernel's hearing of it (`linux/magic.h` and the file
/// systems' own sources).
const WRITTEN_ELSEWHERE: [u32; 14] = [
    0x0000_6969, // NFS
    0x0000_517b, // SMB
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB 2
    0x0102_1997, // 9P
    0x6573_5546, // FUSE, and so virtiofs
    0x00c3_6400, // Ceph
    0x5346_414f, // AFS
    0x6b41_4653, // AFS of other implementations
    0x7375_7245, // Coda
    0x7461_636f, // OCFS2
    0x0116_1970, // GFS2
    0x0bd0_0bd0, // Lustre
    0x786f_4256, // VirtualBox's shared folders
];

/// A directory of the host, and the only way to what lies below it.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    /// The directory for reading: in a private clone, or in the host's tree.
    reading: OwnedFd,
    /// The mount of `reading`.
    mount: MountId,
    /// Whether `reading` lies in a private clone.
    is_private: bool,
    /// Of a private clone the directory where it was found, as mounts below it are there; until it is given up. Guarded,
    /// as it is given up while others know the root; held for as long as something is found by it.
    found: Mutex<Option<OwnedFd>>,
}

/// What the file system below a root says of its space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Preferred block size in bytes.
    pub block_size: u32,
    /// The unit of the three block counts, in bytes.
    pub fragment_size: u32,
    /// All blocks.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks for users without privileges.
    pub blocks_available: u64,
    /// All inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// The longest file name in bytes.
    pub name_max: u32,
}

/// That the current directory of this thread is its own, so that moving it moves no other thread's.
#[derive(Debug)]
pub struct OwnDirectory {
    /// It is this thread's, and cannot be given to another.
    _of_this_thread: PhantomData<*const ()>,
}

impl OwnDirectory {
    /// Gives this thread a current directory of its own.
    ///
    /// # Errors
    /// The system's.
    pub fn of_this_thread() -> std::io::Result<Self> {
        sys::unshare_directory()?;
        Ok(Self { _of_this_thread: PhantomData })
    }
}

impl Root {
    /// Opens the directory at a path of the host, following the links that its user put there.
    ///
    /// # Errors
    /// [`Error::Io`] where it is absent, no directory, or not to be entered.
    pub fn open(path: &Path) -> Result<Self> {
        let doing = || format!("open {}", path.display());
        let found = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(Error::io(doing))?;
        Self::of(path.to_owned(), found)
    }

    /// Opens a directory below as a root of its own. Other than all else here, this crosses mounts, since a data
    /// root's folders may be mounts of their own; no longer after [`Root::let_go`].
    ///
    /// # Errors
    /// [`Error::Io`], also where a part of `path` is a symbolic link.
    pub fn sub(&self, path: &TreePath) -> Result<Self> {
        let found = self.found.lock();
        let (from, ground) = match (found.as_ref(), self.is_private) {
            (Some(found), _) => (found, Ground::Tree),
            (None, true) => (&self.reading, Ground::Clone),
            (None, false) => (&self.reading, Ground::Tree),
        };
        match resolve::open(from.as_fd(), path, FOLDER, ground) {
            // What lies in a private clone is private.
            Ok(reading) if ground == Ground::Clone => Ok(Self {
                path: self.host_path(path),
                reading,
                mount: self.mount,
                is_private: true,
                found: Mutex::default(),
            }),
            Ok(found) => Self::of(self.host_path(path), found),
            Err(Errno::NOTDIR) if self.stat(path)?.is_some_and(|meta| meta.kind == Kind::Symlink) => {
                Err(Error::Unsupported {
                    what: self.shown(path),
                    why:
                        "a symbolic link, which is not followed, since it may lead anywhere; bind-mount the directory \
                          there instead"
                            .to_owned(),
                })
            }
            Err(errno) => Err(Error::io(|| format!("open {}", self.shown(path)))(errno)),
        }
    }

    /// Opens a directory below as a root of its own where another file system is mounted upon it; `None` where none is,
    /// and after [`Root::let_go`], as mounts are then out of sight.
    ///
    /// # Errors
    /// [`Error::Io`], also where a part of `path` is a symbolic link.
    pub fn mounted(&self, path: &TreePath) -> Result<Option<Self>> {
        let found = self.found.lock();
        let doing = || format!("open {}", self.shown(path));
        let from = match found.as_ref() {
            Some(found) => found.as_fd(),
            None if self.is_private => return Ok(None),
            None => self.reading.as_fd(),
        };
        let there = resolve::open(from, path, FOLDER, Ground::Tree).map_err(Error::io(doing))?;
        let mount_of = |fd: BorrowedFd<'_>| Ok::<_, Errno>(MountId::of(&raw_stat(fd, c"")?));
        if mount_of(from).map_err(Error::io(doing))? == mount_of(there.as_fd()).map_err(Error::io(doing))? {
            return Ok(None);
        }
        Self::of(self.host_path(path), there).map(Some)
    }

    fn of(path: PathBuf, found: OwnedFd) -> Result<Self> {
        let (reading, found) = match private_clone(&found) {
            Ok(clone) => (clone, Some(found)),
            Err(_unprivileged_or_old_kernel) => (found, None),
        };
        let stat = raw_stat(reading.as_fd(), c"").map_err(Error::io(|| format!("find {}", path.display())))?;
        Ok(Self { path, mount: MountId::of(&stat), is_private: found.is_some(), reading, found: Mutex::new(found) })
    }

    /// Lets go of the mount on which a private clone was found, from which all of the host can be reached. From then on
    /// [`Root::sub`] finds what lies on the directory's own file system, in the clone, also where the process has left
    /// the host's tree. A root that is no private clone stays as it is.
    pub fn let_go(&self) {
        *self.found.lock() = None;
    }

    /// The descriptor below which everything here is read.
    #[must_use]
    pub fn reading_fd(&self) -> BorrowedFd<'_> {
        self.reading.as_fd()
    }

    /// Whether it is read through a private clone of its mount.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.is_private
    }

    /// Where a path below lies on the host; for messages and for people, not for opening.
    #[must_use]
    pub fn host_path(&self, path: &TreePath) -> PathBuf {
        if path.is_root() { self.path.clone() } else { self.path.join(path.to_os_string()) }
    }

    /// A path below as messages name it; control characters are escaped.
    #[must_use]
    pub fn shown(&self, path: &TreePath) -> String {
        printable(self.host_path(path).to_string_lossy().into_owned())
    }

    /// The directory's own attributes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn meta(&self) -> Result<Meta> {
        stat_of(self.reading.as_fd(), c"")
            .map_err(Error::io(|| format!("read the attributes of {}", self.path.display())))
    }

    /// A path's attributes, of a symbolic link those of the link; `None` where there is nothing.
    ///
    /// # Errors
    /// [`Error::Io`] for everything else, also for a symbolic link on the way.
    pub fn stat(&self, path: &TreePath) -> Result<Option<Meta>> {
        let found = match self.plain(path) {
            Some(plain) => stat_of(self.reading.as_fd(), plain),
            None => self.handle(path).and_then(|handle| stat_of(handle.as_fd(), c"")),
        };
        match found {
            Ok(meta) => Ok(Some(meta)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Ok(None),
            Err(errno) => Err(Error::io(|| format!("find {}", self.shown(path)))(errno)),
        }
    }

    /// As [`Root::stat`]; tells as well whether a file or directory is known to have no extended attributes.
    ///
    /// # Errors
    /// As [`Root::stat`].
    pub fn stat_with_xattrs(&self, path: &TreePath) -> Result<Option<Meta>> {
        let mut found = self.stat(path)?;
        if let (Some(meta), Some(plain)) = (&mut found, self.plain(path)) {
            meta.bare = is_bare(self.reading.as_fd(), plain, meta.kind);
        }
        Ok(found)
    }

    /// The path as calls without restrictions may have it.
    fn plain<'a>(&self, path: &'a TreePath) -> Option<&'a [u8]> {
        let bytes = path.as_bytes();
        (self.is_private && (1..PIECE_MAX).contains(&bytes.len())).then_some(bytes)
    }

    /// The names in a directory with their attributes, in no order; of names that are not `wanted` nothing is asked.
    /// What vanishes meanwhile is left out. The attributes are asked for in the order of the inodes' numbers, in which
    /// they lie on most disks.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn list(&self, dir: &TreePath, wanted: &dyn Fn(&Name) -> bool) -> Result<Vec<(Name, Meta)>> {
        let handle = self.open_dir(dir)?;
        let mut entries = Vec::new();
        each_entry(&handle, |inode, name| {
            if wanted(&name) {
                entries.push((inode, name));
            }
        })
        .map_err(Error::io(|| format!("list {}", self.shown(dir))))?;
        entries.sort_unstable_by_key(|(inode, _)| *inode);
        let mut found = Vec::with_capacity(entries.len());
        for (_, name) in entries {
            match self.stat_in(handle.as_fd(), &name) {
                Ok(mut meta) => {
                    meta.bare = is_bare(handle.as_fd(), name.as_bytes(), meta.kind);
                    found.push((name, meta));
                }
                Err(Errno::NOENT) => {}
                Err(errno) => {
                    let entry = dir.join(&name);
                    return Err(Error::io(|| format!("read the attributes of {}", self.shown(&entry)))(errno));
                }
            }
        }
        Ok(found)
    }

    /// The names in a directory, in no order.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn names(&self, dir: &TreePath) -> Result<Vec<Name>> {
        names_of(&self.open_dir(dir)?).map_err(Error::io(|| format!("list {}", self.shown(dir))))
    }

    /// Opens a directory below, to read several of its small files.
    ///
    /// # Errors
    /// [`Error::Io`]; `None` where there is nothing.
    pub fn folder(&self, path: &TreePath) -> Result<Option<Folder<'_>>> {
        match resolve::open(self.reading.as_fd(), path, FOLDER, self.ground()) {
            Ok(handle) => Ok(Some(Folder { root: self, path: path.clone(), handle })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::io(|| format!("open {}", self.shown(path)))(errno)),
        }
    }

    /// Opens a regular file for reading.
    ///
    /// # Errors
    /// [`Error::Damaged`] where it is no regular file; [`Error::Io`].
    pub fn open_file(&self, path: &TreePath) -> Result<File> {
        self.open_checked(self.reading.as_fd(), path, &|| self.shown(path)).map(|(file, _)| file)
    }

    /// Opens a regular file at a path below a directory of this root, and what was seen to be regular, nothing else;
    /// `shown` names it for messages.
    fn open_checked(&self, dir: BorrowedFd<'_>, path: &TreePath, shown: &dyn Fn() -> String) -> Result<(File, Meta)> {
        let doing = || format!("open {}", shown());
        // Engines replace files by renaming: between looking and opening there may be another.
        for _ in 0..RETRIES {
            let (before, handle) = self.look(dir, path).map_err(Error::io(doing))?;
            if kind_of(before.stx_mode) != Kind::Regular {
                return Err(Error::damaged(shown(), "not a regular file"));
            }
            // The handle is held until it is compared: so long its number goes to no other file.
            let file = match handle.as_ref().map(reopen) {
                // Without /proc, or in a private clone.
                None | Some(Err(Errno::NOENT | Errno::NOTDIR)) => open_quietly(dir, path, FILE, self.ground()),
                Some(answer) => answer,
            };
            let file = file.map_err(Error::io(doing))?;
            let after = raw_stat(file.as_fd(), c"").map_err(Error::io(doing))?;
            if is_same(&before, &after) && kind_of(after.stx_mode) == Kind::Regular {
                return Ok((File::from(file), meta_from(&before)));
            }
        }
        Err(Error::Stale { what: shown() })
    }

    /// The attributes of a path, and where it takes a resolution, what that led to.
    fn look(&self, dir: BorrowedFd<'_>, path: &TreePath) -> rustix::io::Result<(Statx, Option<OwnedFd>)> {
        match self.plain(path) {
            Some(plain) => Ok((raw_stat(dir, plain)?, None)),
            None => {
                let handle = resolve::open(dir, path, HANDLE, self.ground())?;
                Ok((raw_stat(handle.as_fd(), c"")?, Some(handle)))
            }
        }
    }

    /// The content of a small regular file and the attributes that it had just before, `None` where there is nothing.
    ///
    /// # Errors
    /// [`Error::Damaged`] where it is no regular file or of more than `limit_bytes`; [`Error::Io`].
    pub fn read(&self, path: &TreePath, limit_bytes: usize) -> Result<Option<(Vec<u8>, Meta)>> {
        let shown = || self.shown(path);
        let opened = unless_absent(self.open_checked(self.reading.as_fd(), path, &shown))?;
        opened.map(|(file, meta)| Ok((read_whole(&file, &meta, limit_bytes, shown)?, meta))).transpose()
    }

    /// The target of a symbolic link, byte for byte.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read_link(&self, path: &TreePath) -> Result<Vec<u8>> {
        let doing = || format!("read the link {}", self.shown(path));
        let target = match self.plain(path) {
            Some(plain) => rustix::fs::readlinkat(&self.reading, plain, Vec::new()),
            None => self.handle(path).and_then(|link| rustix::fs::readlinkat(&link, c"", Vec::new())),
        };
        Ok(target.map_err(Error::io(doing))?.into_bytes())
    }

    /// The value of one extended attribute, `None` where the file has none of that name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn xattr(&self, path: &TreePath, attribute: &[u8]) -> Result<Option<Vec<u8>>> {
        let doing = || format!("read the attribute {:?} of {}", String::from_utf8_lossy(attribute), self.shown(path));
        let read = self.by_entry(path, |dir, entry| {
            match growing(256, |value| xattr_at(dir, entry, attribute, value)) {
                // An older kernel.
                Err(Errno::NOSYS) => growing(256, |value| rustix::fs::lgetxattr(path_in(dir, entry), attribute, value)),
                read => read,
            }
        });
        match read {
            Ok(value) => Ok(Some(value)),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => Err(Error::io(doing)(errno)),
        }
    }

    /// The names of a file's extended attributes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn xattr_names(&self, path: &TreePath) -> Result<Vec<Vec<u8>>> {
        let doing = || format!("list the attributes of {}", self.shown(path));
        let list = self.by_entry(path, |dir, entry| {
            match growing(1_024, |list| xattr_list_at(dir, entry, list)) {
                // An older kernel.
                Err(Errno::NOSYS) => growing(1_024, |list| rustix::fs::llistxattr(path_in(dir, entry), list)),
                list => list,
            }
        });
        match list {
            Ok(list) => Ok(list.split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect()),
            Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
            Err(errno) => Err(Error::io(doing)(errno)),
        }
    }

    /// Calls with an open directory and a path below it that leads nowhere else: a plain one, or a name.
    fn by_entry<T>(
        &self,
        path: &TreePath,
        call: impl FnOnce(BorrowedFd<'_>, &[u8]) -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        if let Some(plain) = self.plain(path) {
            return call(self.reading.as_fd(), plain);
        }
        let Some((dir, name)) = path.split_last() else { return call(self.reading.as_fd(), b".") };
        let dir = self.handle(&dir)?;
        self.stat_in(dir.as_fd(), &name)?;
        call(dir.as_fd(), name.as_bytes())
    }

    /// Has an inotify instance tell of changes to the entries of a directory below; of what lies further below it is told
    /// nothing. The system wants a path, so the thread's own current directory is moved there and to the root.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where others may make changes of which this kernel does not hear; [`Error::Io`], `ENOSPC`
    /// where the system allows no more watches.
    pub fn watch(&self, dir: &TreePath, changes: Changes, inotify: impl AsFd, _own: &OwnDirectory) -> Result<()> {
        let doing = || format!("watch {}", self.shown(dir));
        let handle = self.handle(dir).map_err(Error::io(doing))?;
        let disk = rustix::fs::fstatfs(&handle).map_err(Error::io(doing))?;
        // The types are numbers of 32 bits, whatever the width and sign of the field.
        if WRITTEN_ELSEWHERE.contains(&(disk.f_type as u32)) {
            let why = "on a disk to which others may write without this machine's hearing of it";
            return Err(Error::Unsupported { what: self.shown(dir), why: why.to_owned() });
        }
        rustix::process::fchdir(&handle).map_err(Error::io(doing))?;
        let told = match changes {
            Changes::Entries => CHANGES,
            Changes::Writes => CHANGES | WatchFlags::MODIFY,
        };
        let added = rustix::fs::inotify::add_watch(inotify, c".", told);
        // A directory that is removed is not to be held.
        let left = rustix::process::fchdir(&self.reading);
        added.and(left).map_err(Error::io(doing))
    }

    /// What the file system says of its space.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn space(&self) -> Result<Space> {
        let all = rustix::fs::fstatvfs(&self.reading)
            .map_err(Error::io(|| format!("read the free space of {}", self.path.display())))?;
        let narrow = |wide: u64| u32::try_from(wide).unwrap_or(u32::MAX);
        Ok(Space {
            block_size: narrow(all.f_bsize),
            fragment_size: narrow(all.f_frsize),
            blocks: all.f_blocks,
            blocks_free: all.f_bfree,
            blocks_available: all.f_bavail,
            files: all.f_files,
            files_free: all.f_ffree,
            name_max: narrow(all.f_namemax),
        })
    }

    fn ground(&self) -> Ground {
        if self.is_private { Ground::Clone } else { Ground::Mount }
    }

    /// A descriptor that stands for the path and opens nothing.
    fn handle(&self, path: &TreePath) -> rustix::io::Result<OwnedFd> {
        resolve::open(self.reading.as_fd(), path, HANDLE, self.ground())
    }

    /// The attributes of an entry of an open directory of this root; `EXDEV` where it is another mount.
    fn stat_in(&self, dir: BorrowedFd<'_>, name: &Name) -> rustix::io::Result<Meta> {
        let stat = raw_stat(dir, name.as_bytes())?;
        if self.is_private || MountId::of(&stat) == self.mount { Ok(meta_from(&stat)) } else { Err(Errno::XDEV) }
    }

    fn open_dir(&self, dir: &TreePath) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        open_quietly(self.reading.as_fd(), dir, flags, self.ground())
            .map_err(Error::io(|| format!("open {}", self.shown(dir))))
    }
}

/// A directory of a root, held open.
#[derive(Debug)]
pub struct Folder<'a> {
    root: &'a Root,
    path: TreePath,
    handle: OwnedFd,
}

impl<'a> Folder<'a> {
    /// The directory's own attributes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn meta(&self) -> Result<Meta> {
        stat_of(self.handle.as_fd(), c"")
            .map_err(Error::io(|| format!("read the attributes of {}", self.root.shown(&self.path))))
    }

    /// A file's path as messages name it.
    #[must_use]
    pub fn shown(&self, name: &Name) -> String {
        self.root.shown(&self.path.join(name))
    }

    /// The attributes of an entry, of a symbolic link those of the link; `None` where there is nothing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn stat(&self, name: &Name) -> Result<Option<Meta>> {
        match self.root.stat_in(self.handle.as_fd(), name) {
            Ok(meta) => Ok(Some(meta)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::io(|| format!("read the attributes of {}", self.shown(name)))(errno)),
        }
    }

    /// As [`Root::folder`].
    ///
    /// # Errors
    /// As [`Root::folder`].
    pub fn folder(&self, name: &Name) -> Result<Option<Folder<'a>>> {
        match resolve::open_once(self.handle.as_fd(), name.as_bytes(), FOLDER, self.root.ground()) {
            Ok(handle) => Ok(Some(Folder { root: self.root, path: self.path.join(name), handle })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::io(|| format!("open {}", self.shown(name)))(errno)),
        }
    }

    /// As [`Root::read`].
    ///
    /// In a private clone a file that was replaced since they were read is not told from the one before: either is
    /// whole.
    ///
    /// # Errors
    /// As [`Root::read`].
    pub fn read(&self, name: &Name, limit_bytes: usize) -> Result<Option<(Vec<u8>, Meta)>> {
        let shown = || self.shown(name);
        let opened = if self.root.is_private {
            self.open_plainly(name)
        } else {
            self.root.open_checked(self.handle.as_fd(), &TreePath::from(name.clone()), &shown)
        };
        let Some((file, meta)) = unless_absent(opened)? else { return Ok(None) };
        read_whole(&file, &meta, limit_bytes, shown).map(|content| Some((content, meta)))
    }

    /// Opens a regular file of a private clone, in which whatever takes its place cannot be read by position.
    fn open_plainly(&self, name: &Name) -> Result<(File, Meta)> {
        let doing = || format!("open {}", self.shown(name));
        let meta = stat_of(self.handle.as_fd(), name.as_bytes()).map_err(Error::io(doing))?;
        if meta.kind != Kind::Regular {
            return Err(Error::damaged(self.shown(name), "not a regular file"));
        }
        let file = open_quietly(self.handle.as_fd(), &TreePath::from(name.clone()), FILE, Ground::Clone);
        Ok((File::from(file.map_err(Error::io(doing))?), meta))
    }
}

/// `None` where an error says that there is nothing.
fn unless_absent<T>(opened: Result<T>) -> Result<Option<T>> {
    match opened {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// The content of a regular file with these attributes, of which one call then reads it: a regular file answers short at
/// its end only. `shown` names it for messages.
///
/// # Errors
/// [`Error::Damaged`] where it is of more than `limit_bytes`; [`Error::Io`].
fn read_whole(file: &File, meta: &Meta, limit_bytes: usize, shown: impl Fn() -> String) -> Result<Vec<u8>> {
    let too_large = || Error::damaged(shown(), format!("larger than {limit_bytes} bytes"));
    let expected_bytes = usize::try_from(meta.size_bytes).unwrap_or(usize::MAX);
    // What is too large is not read to find that out.
    if expected_bytes > limit_bytes {
        return Err(too_large());
    }
    // One byte more, or the end would have to be asked for.
    let most = limit_bytes.saturating_add(1);
    let mut content = vec![0; expected_bytes.saturating_add(1).min(most)];
    let mut filled = 0_usize;
    while let Some(rest) = content.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let asked = rest.len();
        let count = match file.read_at(rest, u64::try_from(filled).unwrap_or(u64::MAX)) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io(|| format!("read {}", shown()))(error)),
        };
        filled = filled.saturating_add(count);
        if count < asked {
            break;
        }
        if filled > limit_bytes {
            return Err(too_large());
        }
        content.resize(filled.saturating_mul(4).min(most), 0);
    }
    content.truncate(filled);
    Ok(content)
}

/// Opens a path below a directory without touching the access time.
fn open_quietly(dir: BorrowedFd<'_>, path: &TreePath, flags: OFlags, ground: Ground) -> rustix::io::Result<OwnedFd> {
    match ground {
        // The mount itself notes no access times there; and to ask for it as well is refused on others' files.
        Ground::Clone => resolve::open(dir, path, flags, ground),
        Ground::Mount | Ground::Tree => quietly(flags, |flags| resolve::open(dir, path, flags, ground)),
    }
}

/// Opens for reading what a descriptor stands for, and nothing else.
///
/// # Errors
/// The system's; `ENOENT` or `ENOTDIR` where there is no /proc.
fn reopen(handle: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let path = path_in(handle.as_fd(), b"");
    // That last link is followed, which is the descriptor's own.
    quietly(FILE.difference(OFlags::NOFOLLOW), |flags| rustix::fs::openat(CWD, &path, flags, Mode::empty()))
}

/// Opens without touching the access time where that is allowed (own files, or `CAP_FOWNER`).
fn quietly(flags: OFlags, open: impl Fn(OFlags) -> rustix::io::Result<OwnedFd>) -> rustix::io::Result<OwnedFd> {
    match open(flags | OFlags::NOATIME) {
        Err(Errno::PERM) => open(flags),
        answer => answer,
    }
}

/// Whether extended attributes can be read by way of /proc only (before Linux 6.13): a process that reads a store must
/// not leave it then.
#[must_use]
pub fn needs_proc() -> bool {
    sys::xattr_list_at(CWD, c".", &mut []).is_err_and(|error| Errno::from_io_error(&error) == Some(Errno::NOSYS))
}

/// Whether this process may read extended attributes in the `trusted.` namespace.
///
/// Without `CAP_SYS_ADMIN` in the initial user namespace the system says of each that it does not exist, so it is
/// tried on a file in memory, where it must exist.
#[must_use]
pub fn reads_trusted_xattrs() -> bool {
    const PROBE: &[u8] = b"trusted.docker-fs.probe";
    let Ok(file) = rustix::fs::memfd_create(c"docker-fs", rustix::fs::MemfdFlags::CLOEXEC) else { return false };
    match rustix::fs::fsetxattr(&file, PROBE, b"1", rustix::fs::XattrFlags::empty()) {
        Ok(()) => rustix::fs::fgetxattr_query(&file, PROBE).is_ok(),
        // A kernel without attributes on tmpfs: privileges in the first user namespace are what it would ask for.
        Err(Errno::OPNOTSUPP) => rustix::process::geteuid().is_root() && in_first_user_namespace(),
        Err(_) => false,
    }
}

fn in_first_user_namespace() -> bool {
    /// `PROC_USER_INIT_INO` of the kernel's ABI.
    const FIRST: u64 = 0xEFFF_FFFD;
    rustix::fs::stat(c"/proc/self/ns/user").is_ok_and(|namespace| namespace.st_ino == FIRST)
}

/// A detached copy of the mount that a directory lies on, rooted there, without the mounts below.
fn private_clone(dir: &OwnedFd) -> std::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let clone = rustix::mount::open_tree(dir, c"", flags)?;
    sys::restrict_mount(&clone)?;
    Ok(clone)
}

fn names_of(dir: &OwnedFd) -> rustix::io::Result<Vec<Name>> {
    let mut names = Vec::new();
    each_entry(dir, |_, name| names.push(name))?;
    Ok(names)
}

/// Calls for each entry of an open directory with its inode's number and its name.
fn each_entry(dir: &OwnedFd, mut call: impl FnMut(u64, Name)) -> rustix::io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 32_768];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        // `.` and `..` are no names.
        if let Some(name) = Name::new(entry.file_name().to_bytes()) {
            call(entry.ino(), name);
        }
    }
    Ok(())
}

/// The path by which calls that know no descriptors reach an entry of an open directory, or what is open itself.
fn path_in(dir: BorrowedFd<'_>, plain: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}", dir.as_raw_fd()).into_bytes();
    if !plain.is_empty() {
        path.push(b'/');
        path.extend_from_slice(plain);
    }
    path
}

/// Whether what is at a plain path below an open directory is known to have no extended attributes. Only files and
/// directories are asked, whose attributes mean something to the union.
fn is_bare(dir: BorrowedFd<'_>, plain: &[u8], kind: Kind) -> bool {
    if !matches!(kind, Kind::Regular | Kind::Directory) {
        return false;
    }
    let size = match xattr_list_at(dir, plain, &mut []) {
        Err(Errno::NOSYS) => rustix::fs::llistxattr_query(path_in(dir, plain)),
        size => size,
    };
    matches!(size, Ok(0) | Err(Errno::OPNOTSUPP))
}

/// An extended attribute of what is at a plain path below an open directory.
fn xattr_at(dir: BorrowedFd<'_>, plain: &[u8], attribute: &[u8], value: &mut [u8]) -> rustix::io::Result<usize> {
    sys::xattr_at(dir, &text(plain)?, &text(attribute)?, value).map_err(errno_of)
}

/// The list of extended attributes of what is at a plain path below an open directory; its size where there is no room.
fn xattr_list_at(dir: BorrowedFd<'_>, plain: &[u8], list: &mut [u8]) -> rustix::io::Result<usize> {
    sys::xattr_list_at(dir, &text(plain)?, list).map_err(errno_of)
}

fn text(bytes: &[u8]) -> rustix::io::Result<CString> {
    CString::new(bytes).map_err(|_nul| Errno::INVAL)
}

fn errno_of(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// What a call fills a buffer with that says `ERANGE` where the buffer is too small: first this many bytes, then the most
/// that extended attributes have.
fn growing(
    first_bytes: usize,
    mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; first_bytes];
    loop {
        match call(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < XATTR_MAX => buffer.resize(XATTR_MAX, 0),
            Err(errno) => return Err(errno),
        }
    }
}

/// The attributes of an open file.
///
/// # Errors
/// The system's.
pub fn meta_of(file: impl AsFd) -> std::io::Result<Meta> {
    Ok(stat_of(file.as_fd(), c"")?)
}

fn raw_stat<P: rustix::path::Arg>(dir: BorrowedFd<'_>, path: P) -> rustix::io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(dir, path, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID | SUBVOLUME)
}

fn stat_of<P: rustix::path::Arg>(dir: BorrowedFd<'_>, path: P) -> rustix::io::Result<Meta> {
    Ok(meta_from(&raw_stat(dir, path)?))
}

fn meta_from(all: &Statx) -> Meta {
    let time = |t: rustix::fs::StatxTimestamp| Timestamp { seconds: t.tv_sec, nanoseconds: t.tv_nsec };
    Meta {
        kind: kind_of(all.stx_mode),
        permissions: all.stx_mode & 0o7777,
        uid: all.stx_uid,
        gid: all.stx_gid,
        links: all.stx_nlink,
        rdev: DeviceNumber { major: all.stx_rdev_major, minor: all.stx_rdev_minor },
        size_bytes: all.stx_size,
        blocks: all.stx_blocks,
        block_size: all.stx_blksize,
        accessed: time(all.stx_atime),
        modified: time(all.stx_mtime),
        changed: time(all.stx_ctime),
        created: time(all.stx_btime),
        inode: all.stx_ino,
        volume: volume_of(all),
        bare: false,
    }
}

/// The subvolume that a file lies in, where its file system has such (Linux 6.10), otherwise the file system's device.
fn volume_of(all: &Statx) -> u64 {
    if StatxFlags::from_bits_retain(all.stx_mask).contains(SUBVOLUME) {
        return all.stx_subvol;
    }
    u64::from(all.stx_dev_major) << 32 | u64::from(all.stx_dev_minor)
}

fn kind_of(mode: u16) -> Kind {
    match rustix::fs::FileType::from_raw_mode(mode.into()) {
        rustix::fs::FileType::Directory => Kind::Directory,
        rustix::fs::FileType::Symlink => Kind::Symlink,
        rustix::fs::FileType::Fifo => Kind::Fifo,
        rustix::fs::FileType::Socket => Kind::Socket,
        rustix::fs::FileType::CharacterDevice => Kind::CharDevice,
        rustix::fs::FileType::BlockDevice => Kind::BlockDevice,
        rustix::fs::FileType::RegularFile | rustix::fs::FileType::Unknown => Kind::Regular,
    }
}
