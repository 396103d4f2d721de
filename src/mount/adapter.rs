//! From `fuser` to [`Server`] and back: decodes, calls, encodes.
//!
//! Requests are logged here and nowhere else: every one at the level trace, failed ones at debug. A panic in a request
//! answers `EIO` and is logged as an error.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use rustix::io::Errno;

use super::Opens;
use super::counters::{Counters, Operation, Tally};
use super::files::{Bounds, NO_HANDLE};
use super::passthrough::Passthrough;
use super::server::{Attributes, Caching, Looked, Reading, Server};
use crate::error::{Error, Result};
use crate::layer::Seek;
use crate::meta::{DeviceNumber, Kind, Meta, Timestamp};

/// `lseek(2)`'s numbers for what FUSE hands on.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;
/// How many requests of its own accord the kernel may have under way, read-ahead for example.
const BACKGROUND_MAX: u16 = 64;

thread_local! {
    /// What a thread reads files into, so that a read allocates nothing.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The file system that `fuser` calls.
#[derive(Debug)]
pub(super) struct Adapter {
    server: Server,
    opens: Opens,
    passthrough: Arc<Passthrough>,
    tally: Arc<Tally>,
    counters: Counters,
    /// Whether the kernel can do without opening directories.
    lists_unopened: bool,
    /// Whether the kernel checks permissions, and so must know ACLs.
    checks_permissions: bool,
}

impl Adapter {
    pub(super) fn new(server: Server, opens: Opens, allow_other: bool) -> Self {
        // Root passes every check, and the kernel keeps ACLs only where it checks.
        let checks_permissions = allow_other || rustix::process::geteuid().is_root();
        let passthrough = Arc::new(Passthrough::new(opens == Opens::Passthrough, Bounds::of_process().opened));
        let (tally, counters) = (server.tally(), server.counters(Arc::clone(&passthrough)));
        Self { server, opens, passthrough, tally, counters, lists_unopened: false, checks_permissions }
    }

    /// What is counted here.
    pub(super) fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// Runs a request's handler. Whatever happens in it, the caller has an answer to send.
    fn answer<T>(&self, request: Operation, number: INodeNo, handler: impl FnOnce(&Server) -> Result<T>) -> Answer<T> {
        log::trace!("{request} {number}");
        self.tally.request(request);
        self.guard(request, number, handler).map_err(|errno| {
            self.tally.error(errno);
            fuser::Errno::from_i32(errno.raw_os_error())
        })
    }

    /// The error by which the kernel knows that it need not ask, which is no failure.
    fn unneeded(&self, request: Operation) -> fuser::Errno {
        self.tally.request(request);
        fuser::Errno::ENOSYS
    }

    /// Does what follows from an answer that was given.
    fn note(&self, request: Operation, number: INodeNo, handler: impl FnOnce(&Server) -> Result<()>) {
        // Nobody waits for it; it is logged all the same.
        self.guard(request, number, handler).unwrap_or_default();
    }

    fn guard<T>(
        &self,
        request: Operation,
        number: INodeNo,
        handler: impl FnOnce(&Server) -> Result<T>,
    ) -> std::result::Result<T, Errno> {
        match catch_unwind(AssertUnwindSafe(|| handler(&self.server))) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                log::debug!("{request} {number}: {error}");
                Err(error.errno())
            }
            Err(_panic) => {
                log::error!("{request} of inode {number} panicked; this is a defect of docker-fs");
                Err(Errno::IO)
            }
        }
    }
}

type Answer<T> = std::result::Result<T, fuser::Errno>;

fn kind(kind: Kind) -> FileType {
    match kind {
        Kind::Regular => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

fn time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let start = if time.seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    let part = Duration::from_nanos(time.nanoseconds.into());
    start.and_then(|start| start.checked_add(part)).unwrap_or(UNIX_EPOCH)
}

/// The kernel's `new_encode_dev()`.
fn device(number: DeviceNumber) -> u32 {
    (number.minor & 0xff) | ((number.major & 0xfff) << 8) | ((number.minor & 0xf_ff00) << 12)
}

fn attr(number: u64, meta: &Meta) -> FileAttr {
    FileAttr {
        ino: INodeNo(number),
        size: meta.size_bytes,
        blocks: meta.blocks,
        atime: time(meta.accessed),
        mtime: time(meta.modified),
        ctime: time(meta.changed),
        crtime: UNIX_EPOCH,
        kind: kind(meta.kind),
        perm: meta.permissions,
        nlink: meta.links,
        uid: meta.uid,
        gid: meta.gid,
        rdev: device(meta.rdev),
        blksize: meta.block_size,
        flags: 0,
    }
}

/// What a negative answer carries: inode 0.
fn nothing() -> FileAttr {
    attr(0, &Meta::made_up(Kind::Regular, 0, Timestamp::default(), 0))
}

fn reply_xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    if size == 0 {
        reply.size(length);
    } else if length <= size {
        reply.data(value);
    } else {
        reply.error(fuser::Errno::ERANGE);
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = vec![
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_AUTO_INVAL_DATA,
        ];
        if self.checks_permissions {
            // Without it the kernel takes an ACL's mask for the group's permissions, and asks for each file's ACL
            // again and again.
            wanted.push(InitFlags::FUSE_POSIX_ACL);
        }
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                log::info!("the kernel does not offer {flag:?}");
            }
        }
        self.lists_unopened = config.add_capabilities(InitFlags::FUSE_NO_OPENDIR_SUPPORT).is_ok();
        match self.opens {
            Opens::Once if config.add_capabilities(InitFlags::FUSE_NO_OPEN_SUPPORT).is_err() => {
                self.opens = Opens::Each;
                log::info!("files are opened one by one: the kernel knows no other way");
            }
            Opens::Passthrough => {
                let offered = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
                if !(offered && config.set_max_stack_depth(1).is_ok()) {
                    self.passthrough.disable(&"not offered by the kernel");
                }
            }
            Opens::Once | Opens::Each => {}
        }
        if config.set_max_background(BACKGROUND_MAX).is_err() {
            log::info!("the kernel keeps its own limit of background requests");
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.answer(Operation::Lookup, parent, |server| server.lookup(parent.0, name.as_bytes())) {
            Ok(Looked::Found { attributes, generation, valid }) => reply.entry_with_ttls(
                &attributes.valid,
                &valid,
                &attr(attributes.number, &attributes.meta),
                Generation(generation),
            ),
            Ok(Looked::Absent { valid }) if valid.is_zero() => reply.error(fuser::Errno::ENOENT),
            Ok(Looked::Absent { valid }) => reply.entry(&valid, &nothing(), Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _: &Request, number: INodeNo, count: u64) {
        // A panic has no one to be answered to; it is logged all the same.
        self.answer(Operation::Forget, number, |server| server.forget(number.0, count)).unwrap_or_default();
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.answer(Operation::Getattr, number, |server| server.attributes(number.0)) {
            Ok(Attributes { number, meta, valid }) => reply.attr(&valid, &attr(number, &meta)),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        match self.answer(Operation::Readlink, number, |server| server.read_link(number.0)) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    /// "Not implemented" is the kernel's word for "not needed": it asks no more, and reads by inode.
    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.opens == Opens::Once {
            return reply.error(self.unneeded(Operation::Open));
        }
        let opened = match self.answer(Operation::Open, number, |server| server.open(number.0)) {
            Ok(opened) => opened,
            Err(errno) => return reply.error(errno),
        };
        let handle = FileHandle(opened.handle);
        let caching = match opened.caching {
            Caching::Kept => {
                let reader = opened.file.reader.as_ref();
                let backing = self.passthrough.backing(&reply, number.0, opened.handle, opened.size_bytes, reader);
                if let Some(backing) = backing {
                    self.server.let_go(opened.handle);
                    return reply.opened_passthrough(handle, FopenFlags::FOPEN_NOFLUSH, &backing);
                }
                FopenFlags::FOPEN_KEEP_CACHE
            }
            Caching::WhileOpen => FopenFlags::empty(),
        };
        reply.opened(handle, caching | FopenFlags::FOPEN_NOFLUSH);
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            let size = usize::try_from(size).unwrap_or_default();
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let into = buffer.get_mut(..size).unwrap_or_default();
            match self.answer(Operation::Read, number, |server| server.read(number.0, handle.0, into, offset)) {
                Ok(filled) => {
                    self.tally.read_bytes.add(filled);
                    reply.data(buffer.get(..filled).unwrap_or_default());
                }
                Err(errno) => return reply.error(errno),
            }
            self.note(Operation::Read, number, |server| server.was_read(number.0, offset));
        });
    }

    /// Nothing is ever written, so nothing is flushed; the kernel asks once.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(self.unneeded(Operation::Flush));
    }

    fn release(
        &self,
        _: &Request,
        number: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.passthrough.release(handle.0);
        match self.answer(Operation::Release, number, |server| server.release(handle.0)) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    /// As [`flush`](Self::flush).
    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(self.unneeded(Operation::Fsync));
    }

    /// As [`open`](Self::open).
    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.lists_unopened {
            return reply.error(self.unneeded(Operation::Opendir));
        }
        match self.answer(Operation::Opendir, number, |server| server.keeps_listing(number.0)) {
            Ok(true) => {
                reply.opened(FileHandle(NO_HANDLE), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
            }
            Ok(false) => reply.opened(FileHandle(NO_HANDLE), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    /// Offset 0 is the start, 1 is behind `.`, 2 behind `..`; entries have their own.
    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let filled = self.answer(Operation::Readdir, number, |server| {
            let dir = server.reading(number.0, offset)?;
            for (at, inode, name) in dots(&dir, offset) {
                if reply.add(INodeNo(inode), at, FileType::Directory, name) {
                    return Ok(dir);
                }
            }
            for entry in dir.listing.behind(offset) {
                let inode = INodeNo(server.number(entry));
                if reply.add(inode, entry.offset, kind(entry.meta.kind), entry.name.as_os_str()) {
                    break;
                }
            }
            Ok(dir)
        });
        match filled {
            Ok(dir) => {
                reply.ok();
                // No inode was given, so none is given its content.
                let note = |server: &Server| server.was_given(&dir, (offset, offset));
                self.note(Operation::Readdir, number, note);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let filled = self.answer(Operation::Readdirplus, number, |server| {
            let dir = server.reading(number.0, offset)?;
            let mut given = offset;
            // The kernel looks at number and type of these two only, and counts no lookup.
            let meta = Meta::made_up(Kind::Directory, 0o555, Timestamp::default(), 0);
            for (at, inode, name) in dots(&dir, offset) {
                if reply.add(INodeNo(inode), at, name, &Duration::ZERO, &attr(inode, &meta), Generation(0)) {
                    return Ok((dir, given));
                }
            }
            for entry in dir.listing.behind(offset) {
                let (Attributes { number, meta, valid }, generation) = server.entry(&dir, entry);
                let (at, name) = (entry.offset, entry.name.as_os_str());
                if reply.add(INodeNo(number), at, name, &valid, &attr(number, &meta), Generation(generation)) {
                    server.forget(number, 1)?;
                    break;
                }
                given = at;
            }
            Ok((dir, given))
        });
        match filled {
            Ok((dir, given)) => {
                reply.ok();
                let note = |server: &Server| server.was_given(&dir, (offset, given));
                self.note(Operation::Readdirplus, number, note);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(self.unneeded(Operation::Fsyncdir));
    }

    fn statfs(&self, _: &Request, number: INodeNo, reply: ReplyStatfs) {
        match self.answer(Operation::Statfs, number, Server::space) {
            Ok(space) => reply.statfs(
                space.blocks,
                space.blocks_free,
                space.blocks_available,
                space.files,
                space.files_free,
                space.block_size,
                space.name_max,
                space.fragment_size,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn getxattr(&self, _: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.answer(Operation::Getxattr, number, |server| server.xattr(number.0, name.as_bytes())) {
            Ok(Some(value)) => reply_xattr(reply, size, &value),
            Ok(None) => reply.error(fuser::Errno::from_i32(Errno::NODATA.raw_os_error())),
            Err(errno) => reply.error(errno),
        }
    }

    fn listxattr(&self, request: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        let is_root = request.uid() == 0;
        match self.answer(Operation::Listxattr, number, |server| server.xattr_names(number.0, is_root)) {
            Ok(names) => reply_xattr(reply, size, &names),
            Err(errno) => reply.error(errno),
        }
    }

    /// Asked only where the kernel does not check permissions itself: the one user who may enter may read everything
    /// that this process can.
    fn access(&self, _: &Request, number: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        match self.answer(Operation::Access, number, |server| server.attributes(number.0)) {
            Ok(_) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    /// No ioctl means anything here; file systems say so with `ENOTTY`.
    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        self.tally.request(Operation::Ioctl);
        self.tally.error(Errno::NOTTY);
        reply.error(fuser::Errno::ENOTTY);
    }

    fn lseek(&self, _: &Request, number: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let sought = self.answer(Operation::Lseek, number, |server| {
            let offset = u64::try_from(offset).map_err(|_| Error::io(|| "seek".to_owned())(Errno::NXIO))?;
            let to = match whence {
                SEEK_DATA => Seek::Data,
                SEEK_HOLE => Seek::Hole,
                _ => return Err(Error::io(|| "seek".to_owned())(Errno::INVAL)),
            };
            server.seek(number.0, handle.0, to, offset)
        });
        match sought.map(|offset| i64::try_from(offset).unwrap_or(i64::MAX)) {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(errno),
        }
    }
}

/// `.` and `..` with their inodes, each with the offset behind it, as far as a reader at `offset` has not had them.
fn dots(dir: &Reading, offset: u64) -> impl Iterator<Item = (u64, u64, &'static str)> + use<> {
    [(1, dir.number, "."), (2, dir.parent(), "..")].into_iter().filter(move |(behind, ..)| *behind > offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_as_the_kernel_encodes_them() {
        for (major, minor, encoded) in
            [(0, 0, 0), (1, 3, 0x103), (8, 0x12345, 0x1230_0845), (0xfff, 0xf_ffff, u32::MAX)]
        {
            assert_eq!(device(DeviceNumber { major, minor }), encoded, "{major}:{minor}");
        }
    }

    #[test]
    fn times_before_1970_and_far_from_now() {
        let before = time(Timestamp { seconds: -2, nanoseconds: 999_999_999 });
        assert_eq!(UNIX_EPOCH.duration_since(before).unwrap(), Duration::new(1, 1));
        let after = time(Timestamp { seconds: 1 << 34, nanoseconds: 1 });
        assert_eq!(after.duration_since(UNIX_EPOCH).unwrap(), Duration::new(1 << 34, 1));
    }
}
