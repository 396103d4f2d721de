//! A file system that shows a directory, and below some of its paths does not answer, or fails.
//!
//! It stands for a disk that hangs or has bad sectors. Nothing that it shows is kept by the kernel, so every request
//! for it arrives here.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request, Session,
};

const ROOT: u64 = 1;

/// What befalls a path and all below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No answer to anything, until the fault is taken away.
    Hangs,
    /// It is there, but reading or listing it fails with `EIO`.
    Unreadable,
}

#[derive(Debug, Default)]
struct State {
    /// By paths below the directory.
    faults: HashMap<PathBuf, Fault>,
    /// How many requests hang.
    hanging: usize,
}

#[derive(Debug, Default)]
struct Faults {
    state: Mutex<State>,
    changed: Condvar,
}

/// The mount, gone with the value. What hangs goes on then.
#[derive(Debug)]
pub struct Faulty {
    point: PathBuf,
    faults: Arc<Faults>,
    session: Option<BackgroundSession>,
}

impl Faulty {
    /// Shows `source` at `point`, which is made if it is missing. Of so many threads one is needed for each request that
    /// hangs.
    pub fn new(source: &Path, point: &Path, threads: usize) -> Self {
        fs::create_dir_all(point).expect("make the mount point");
        let faults = Arc::<Faults>::default();
        let shown = Shown { source: source.to_owned(), faults: Arc::clone(&faults), paths: Mutex::default() };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::RO, MountOption::FSName("docker-fs-test".to_owned())];
        config.n_threads = Some(threads);
        let session = Session::new(shown, point, &config).and_then(Session::spawn).expect("mount a faulty disk");
        Self { point: point.to_owned(), faults, session: Some(session) }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// Lets this befall a path below the directory.
    pub fn set(&self, path: &Path, fault: Fault) {
        self.faults.state.lock().unwrap().faults.insert(path.to_owned(), fault);
    }

    /// Makes all well.
    pub fn clear(&self) {
        self.faults.state.lock().unwrap().faults.clear();
        self.faults.changed.notify_all();
    }

    /// How many requests hang.
    pub fn hanging(&self) -> usize {
        self.faults.state.lock().unwrap().hanging
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.clear();
        // Who served it may still have it open: it ends with the last user, and here it is out of the way.
        let _unmounted = rustix::mount::unmount(&self.point, rustix::mount::UnmountFlags::DETACH);
        drop(self.session.take());
    }
}

impl Faults {
    /// Goes on when the path does not hang.
    fn reach(&self, path: &Path) {
        let hangs = |state: &State| path.ancestors().any(|above| state.faults.get(above) == Some(&Fault::Hangs));
        let mut state = self.state.lock().unwrap();
        if hangs(&state) {
            state.hanging += 1;
            while hangs(&state) {
                state = self.changed.wait(state).unwrap();
            }
            state.hanging -= 1;
        }
    }

    /// As [`Faults::reach`], for what is in it.
    fn read(&self, path: &Path) -> io::Result<()> {
        self.reach(path);
        let state = self.state.lock().unwrap();
        match path.ancestors().any(|above| state.faults.get(above) == Some(&Fault::Unreadable)) {
            true => Err(io::Error::from_raw_os_error(5)),
            false => Ok(()),
        }
    }
}

struct Shown {
    source: PathBuf,
    faults: Arc<Faults>,
    /// The paths below the source by the inodes' numbers, which are those of the source.
    paths: Mutex<HashMap<u64, PathBuf>>,
}

impl Shown {
    fn path(&self, number: INodeNo) -> io::Result<PathBuf> {
        if number.0 == ROOT {
            return Ok(PathBuf::new());
        }
        let known = self.paths.lock().unwrap().get(&number.0).cloned();
        known.ok_or_else(|| io::Error::from_raw_os_error(116))
    }

    fn stat(&self, path: &Path) -> io::Result<FileAttr> {
        self.faults.reach(path);
        let meta = fs::symlink_metadata(self.source.join(path))?;
        let number = if path.as_os_str().is_empty() { ROOT } else { meta.ino() };
        if number != ROOT {
            self.paths.lock().unwrap().insert(number, path.to_owned());
        }
        Ok(attributes(number, &meta))
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        self.faults.read(path)?;
        File::open(self.source.join(path))
    }

    fn names(&self, path: &Path) -> io::Result<Vec<(u64, FileType, std::ffi::OsString)>> {
        self.faults.read(path)?;
        let entries = fs::read_dir(self.source.join(path))?;
        let entry = |entry: io::Result<fs::DirEntry>| {
            let entry = entry?;
            let meta = fs::symlink_metadata(entry.path())?;
            Ok((meta.ino(), kind(&meta), entry.file_name()))
        };
        entries.map(entry).collect()
    }
}

fn kind(meta: &Metadata) -> FileType {
    let kind = meta.file_type();
    match () {
        () if kind.is_dir() => FileType::Directory,
        () if kind.is_symlink() => FileType::Symlink,
        () if kind.is_fifo() => FileType::NamedPipe,
        () if kind.is_socket() => FileType::Socket,
        () if kind.is_char_device() => FileType::CharDevice,
        () if kind.is_block_device() => FileType::BlockDevice,
        () => FileType::RegularFile,
    }
}

fn time(seconds: i64, nanoseconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanoseconds).unwrap_or(0))
}

fn attributes(number: u64, meta: &Metadata) -> FileAttr {
    FileAttr {
        ino: INodeNo(number),
        size: meta.size(),
        blocks: meta.blocks(),
        atime: time(meta.atime(), meta.atime_nsec()),
        mtime: time(meta.mtime(), meta.mtime_nsec()),
        ctime: time(meta.ctime(), meta.ctime_nsec()),
        crtime: UNIX_EPOCH,
        kind: kind(meta),
        perm: u16::try_from(meta.mode() & 0o7777).unwrap_or(0),
        nlink: u32::try_from(meta.nlink()).unwrap_or(u32::MAX),
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: u32::try_from(meta.rdev()).unwrap_or(0),
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Shown {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What hangs must not use up what others need.
        let _as_many_as_may_be = config.set_max_background(1_024);
        let parallel = fuser::InitFlags::FUSE_PARALLEL_DIROPS;
        config.add_capabilities(parallel).map_err(|_| io::Error::other("the kernel is too old"))
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.path(parent).and_then(|dir| self.stat(&dir.join(name))) {
            Ok(attr) => reply.entry(&Duration::ZERO, &attr, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.path(number).and_then(|path| self.stat(&path)) {
            Ok(attr) => reply.attr(&Duration::ZERO, &attr),
            Err(error) => reply.error(error.into()),
        }
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        let target = self.path(number).and_then(|path| {
            self.faults.read(&path)?;
            fs::read_link(self.source.join(path))
        });
        match target {
            Ok(target) => reply.data(target.as_os_str().as_bytes()),
            Err(error) => reply.error(error.into()),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.path(number).and_then(|path| self.open(&path)) {
            Ok(_) => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error.into()),
        }
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buffer = vec![0; size as usize];
        let file = self.path(number).and_then(|path| self.open(&path));
        match file.and_then(|file| file.read_at(&mut buffer, offset)) {
            Ok(count) => reply.data(&buffer[..count]),
            Err(error) => reply.error(error.into()),
        }
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.path(number).and_then(|path| self.names(&path)) {
            Ok(names) => {
                for (at, (inode, kind, name)) in (1..).zip(names) {
                    if at > offset && reply.add(INodeNo(inode), at, kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }

    fn getxattr(&self, _: &Request, number: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        if let Ok(path) = self.path(number) {
            self.faults.reach(&path);
        }
        reply.error(Errno::from_i32(61));
    }

    fn listxattr(&self, _: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        if let Ok(path) = self.path(number) {
            self.faults.reach(&path);
        }
        if size == 0 { reply.size(0) } else { reply.data(&[]) }
    }
}
