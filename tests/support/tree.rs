//! Reads a directory tree into a map, and tells two such maps apart.
//!
//! Names are bytes, and each directory is read through a descriptor of its own, so that neither odd names nor long paths are in the way.
//! While it walks it checks that a listing and the lookups agree: a listed name must be found, with the type and inode number that the
//! listing told, and a name that is not listed must not be found. For a mount by the kernel, which lists names that it then denies,
//! [`Options::tolerate`] names the errors by which such a name is left out.

use super::store::hex;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// What of a tree is taken.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Errors of a lookup by which a listed name is left out, and of a listing by which it is taken as empty. All others are troubles.
    pub tolerate: Vec<Errno>,
    /// Does not compare a listing's types and inode numbers with lstat's.
    pub loose_listing: bool,
    /// Names tried in each directory: one that is not listed must not be found.
    pub probe: Vec<Vec<u8>>,
    /// Leaves out the time of the last change of the inode.
    pub no_ctime: bool,
    /// Takes the access time.
    pub atime: bool,
    /// Takes the number of blocks of what is not a directory.
    pub blocks: bool,
    /// Reads no file.
    pub no_content: bool,
    /// Names in the root that are left out.
    pub skip: Vec<&'static str>,
}

impl Options {
    /// What kernel overlayfs needs: it lists phantom names, and malformed redirects fail at the lookup.
    pub fn of_kernel_overlay() -> Self {
        Self {
            tolerate: vec![
                Errno::NOENT,
                Errno::PERM,
                Errno::INVAL,
                Errno::IO,
                Errno::ACCESS,
                Errno::STALE,
                Errno::LOOP,
            ],
            loose_listing: true,
            ..Self::default()
        }
    }
}

/// The content of a regular file, as read(2) tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Sum {
        /// How many bytes could be read.
        len: u64,
        sha256: String,
        /// The sum of as many bytes as st_size tells, cut or filled up with zeros; differs for a forged metacopy file only.
        sha256_at_size: String,
    },
    /// open(2) or read(2) failed.
    Failed(Errno),
}

/// One object of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: FileType,
    /// Permissions with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    /// `None` for a directory.
    pub size: Option<u64>,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u64),
    pub ctime: Option<(i64, u64)>,
    pub atime: Option<(i64, u64)>,
    pub blocks: Option<u64>,
    pub nlink: u64,
    /// The number in the tree that it came from; not part of a comparison.
    pub ino: (u64, u64),
    /// The smallest path with the same inode, for what has more than one name.
    pub group: Option<Vec<u8>>,
    pub target: Option<Vec<u8>>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub content: Option<Content>,
}

/// Path from the root, without a leading slash, to object; the root itself is the empty path.
pub type Tree = BTreeMap<Vec<u8>, Entry>;

/// A tree, and where its listings and lookups did not agree.
#[derive(Debug, Default)]
pub struct Walk {
    pub tree: Tree,
    pub troubles: Vec<String>,
    /// Listed names that a lookup denied with a tolerated error.
    pub denied: Vec<(Vec<u8>, Errno)>,
    /// Probed names that are not listed and gave another error than ENOENT.
    pub refused: Vec<(Vec<u8>, Errno)>,
    /// Directories whose listing gave a tolerated error; what lies in them is not in the tree.
    pub unlisted: Vec<Vec<u8>>,
}

/// Reads the tree below `root`; panics where listings and lookups do not agree.
pub fn snapshot(root: &Path, options: &Options) -> Tree {
    let walk = walk(root, options);
    assert!(
        walk.troubles.is_empty(),
        "{}: listings and lookups disagree:\n  {}",
        root.display(),
        walk.troubles.join("\n  ")
    );
    walk.tree
}

/// Reads the tree below `root`.
pub fn walk(root: &Path, options: &Options) -> Walk {
    let mut walker = Walker { options, walk: Walk::default() };
    match rustix::fs::open(root, DIRECTORY.difference(OFlags::NOFOLLOW), Mode::empty()) {
        Err(error) => walker.trouble(b"", &format!("open {root:?}: {error}")),
        Ok(dir) => match rustix::fs::fstat(&dir) {
            Err(error) => walker.trouble(b"", &format!("stat: {error}")),
            Ok(stat) => {
                let entry = walker.entry(dir.as_fd(), c".", b"", &stat);
                walker.walk.tree.insert(Vec::new(), entry);
                walker.directory(&dir, b"");
            }
        },
    }
    group_links(&mut walker.walk.tree);
    walker.walk
}

/// Looks up one path below `root`, without listing anything on the way. The inner error is one of the tolerated ones.
pub fn lookup(root: &Path, path: &[u8], options: &Options) -> Result<Result<Entry, Errno>, String> {
    let dir = rustix::fs::open(root, DIRECTORY.difference(OFlags::NOFOLLOW), Mode::empty())
        .map_err(|error| format!("open {root:?}: {error}"))?;
    let name = CString::new(path).expect("a path without NUL");
    let stat = match rustix::fs::statat(&dir, &*name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(error) if options.tolerate.contains(&error) => return Ok(Err(error)),
        Err(error) => return Err(format!("{}: lstat: {error}", path.escape_ascii())),
    };
    let mut walker = Walker { options, walk: Walk::default() };
    let entry = walker.entry(dir.as_fd(), &name, path, &stat);
    walker.walk.troubles.pop().map_or(Ok(Ok(entry)), Err)
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

struct Walker<'a> {
    options: &'a Options,
    walk: Walk,
}

struct Listed {
    name: CString,
    kind: FileType,
    ino: u64,
}

impl Walker<'_> {
    fn trouble(&mut self, path: &[u8], what: &str) {
        self.walk.troubles.push(format!("{}: {what}", path.escape_ascii()));
    }

    fn directory(&mut self, dir: &OwnedFd, path: &[u8]) {
        let listed = match list(dir) {
            Ok(listed) => listed,
            Err(error) if self.options.tolerate.contains(&error) => return self.walk.unlisted.push(path.to_vec()),
            Err(error) => return self.trouble(path, &format!("readdir: {error}")),
        };
        let mut names = BTreeSet::new();
        for item in listed {
            let child = join(path, item.name.as_bytes());
            if !names.insert(item.name.as_bytes().to_vec()) {
                self.trouble(&child, "listed twice");
                continue;
            }
            if self.options.skip.iter().any(|name| name.as_bytes() == child) {
                continue;
            }
            self.child(dir, &item, &child);
        }
        for probe in &self.options.probe {
            if names.contains(probe) {
                continue;
            }
            match rustix::fs::statat(dir, probe.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {}
                Err(error) => self.walk.refused.push((join(path, probe), error)),
                Ok(stat) => {
                    let kind = FileType::from_raw_mode(stat.st_mode);
                    self.trouble(&join(path, probe), &format!("not listed, but found: {kind:?}"));
                }
            }
        }
    }

    fn child(&mut self, dir: &OwnedFd, item: &Listed, path: &[u8]) {
        let stat = match rustix::fs::statat(dir, &*item.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(error) if self.options.tolerate.contains(&error) => {
                return self.walk.denied.push((path.to_vec(), error));
            }
            Err(error) => return self.trouble(path, &format!("listed, but lstat: {error}")),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !self.options.loose_listing {
            if item.kind != kind {
                let told = item.kind;
                self.trouble(path, &format!("listed as {told:?}, lstat says {kind:?}"));
            }
            // That of docker-fs tells what it does, and so is another file each second.
            if item.ino != stat.st_ino && path != b"status" {
                let (told, found) = (item.ino, stat.st_ino);
                self.trouble(path, &format!("listed as inode {told}, lstat says {found}"));
            }
        }
        let entry = self.entry(dir.as_fd(), &item.name, path, &stat);
        self.walk.tree.insert(path.to_vec(), entry);
        if kind == FileType::Directory {
            match rustix::fs::openat(dir, &*item.name, DIRECTORY, Mode::empty()) {
                Ok(child) => self.directory(&child, path),
                Err(error) => self.trouble(path, &format!("open directory: {error}")),
            }
        }
    }

    fn entry(&mut self, dir: BorrowedFd<'_>, name: &CStr, path: &[u8], stat: &Stat) -> Entry {
        let options = self.options;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let directory = kind == FileType::Directory;
        let xattrs = xattrs(dir, name).unwrap_or_else(|error| {
            self.trouble(path, &format!("xattrs: {error}"));
            BTreeMap::new()
        });
        let target = (kind == FileType::Symlink).then(|| {
            rustix::fs::readlinkat(dir, name, Vec::new()).map_or_else(
                |error| {
                    self.trouble(path, &format!("readlink: {error}"));
                    Vec::new()
                },
                CString::into_bytes,
            )
        });
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        Entry {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: match kind {
                FileType::CharacterDevice | FileType::BlockDevice => stat.st_rdev,
                _ => 0,
            },
            size: (!directory).then_some(size),
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            ctime: (!options.no_ctime).then_some((stat.st_ctime, stat.st_ctime_nsec)),
            atime: options.atime.then_some((stat.st_atime, stat.st_atime_nsec)),
            blocks: (options.blocks && !directory).then_some(u64::try_from(stat.st_blocks).unwrap_or_default()),
            nlink: stat.st_nlink,
            ino: (stat.st_dev, stat.st_ino),
            group: None,
            target,
            xattrs,
            content: (kind == FileType::RegularFile && !options.no_content).then(|| content(dir, name, size)),
        }
    }
}

/// Tells the hard links of a tree: what else has the same inode.
pub fn group_links(tree: &mut Tree) {
    let mut first: BTreeMap<(u64, u64), Vec<u8>> = BTreeMap::new();
    for (path, entry) in tree {
        entry.group = (entry.nlink > 1 && entry.kind != FileType::Directory)
            .then(|| first.entry(entry.ino).or_insert_with(|| path.clone()).clone());
    }
}

fn list(dir: &OwnedFd) -> Result<Vec<Listed>, Errno> {
    let mut space = vec![MaybeUninit::uninit(); 128 * 1024];
    let mut raw = RawDir::new(dir, &mut space);
    let mut listed = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            listed.push(Listed { name: entry.file_name().to_owned(), kind: entry.file_type(), ino: entry.ino() });
        }
    }
    Ok(listed)
}

/// The xattrs of `name` itself, not of what a symbolic link leads to. There is no call by descriptor and name before kernel 6.13, so
/// the path goes by the descriptor's link in /proc.
fn xattrs(dir: BorrowedFd<'_>, name: &CStr) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Errno> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    let mut space = vec![0_u8; 64 * 1024];
    let len = rustix::fs::llistxattr(&path, &mut space)?;
    let names: Vec<Vec<u8>> =
        space[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
    let mut found = BTreeMap::new();
    for name in names {
        let len = rustix::fs::lgetxattr(&path, &name, &mut space)?;
        found.insert(name, space[..len].to_vec());
    }
    Ok(found)
}

fn content(dir: BorrowedFd<'_>, name: &CStr, size: u64) -> Content {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(error) => return Content::Failed(error),
    };
    let (mut whole, mut at_size) = (Sha256::new(), Sha256::new());
    let (mut len, mut left) = (0_u64, size);
    let mut space = vec![0_u8; 64 * 1024];
    loop {
        match file.read(&mut space) {
            Ok(0) => break,
            Ok(count) => {
                whole.update(&space[..count]);
                let counted = usize::try_from(left).unwrap_or(usize::MAX).min(count);
                at_size.update(&space[..counted]);
                left -= counted as u64;
                len += count as u64;
            }
            Err(error) => {
                return Content::Failed(Errno::from_io_error(&error).unwrap_or(Errno::IO));
            }
        }
    }
    let zeros = [0_u8; 4096];
    while left > 0 {
        let counted = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
        at_size.update(&zeros[..counted]);
        left -= counted as u64;
    }
    Content::Sum { len, sha256: hex(&whole.finalize()), sha256_at_size: hex(&at_size.finalize()) }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        return name.to_vec();
    }
    [dir, b"/", name].concat()
}

/// One readable line for each difference; empty when the trees are the same. A directory's link count is not looked at: file systems
/// choose it freely.
pub fn diff(expected: &Tree, found: &Tree) -> Vec<String> {
    diff_by_path(expected, found).into_values().flatten().collect()
}

/// The lines of [`diff`] of each path that differs.
pub fn diff_by_path(expected: &Tree, found: &Tree) -> BTreeMap<Vec<u8>, Vec<String>> {
    let paths: BTreeSet<&Vec<u8>> = expected.keys().chain(found.keys()).collect();
    let mut differing = BTreeMap::new();
    for path in paths {
        let shown = path.escape_ascii();
        let mut lines = Vec::new();
        match (expected.get(path), found.get(path)) {
            (Some(a), Some(b)) => entry_diff(&format!("/{shown}"), a, b, &mut lines),
            (Some(a), None) => lines.push(format!("/{shown}: missing; expected {:?}", a.kind)),
            (None, Some(b)) => lines.push(format!("/{shown}: not expected; found {:?}", b.kind)),
            (None, None) => {}
        }
        if !lines.is_empty() {
            differing.insert(path.clone(), lines);
        }
    }
    differing
}

fn entry_diff(path: &str, expected: &Entry, found: &Entry, lines: &mut Vec<String>) {
    let mut field = |name: &str, a: String, b: String| {
        if a != b {
            lines.push(format!("{path}: {name}: expected {a}, found {b}"));
        }
    };
    let (a, b) = (expected, found);
    field("type", format!("{:?}", a.kind), format!("{:?}", b.kind));
    field("mode", format!("{:04o}", a.mode), format!("{:04o}", b.mode));
    field("owner", format!("{}:{}", a.uid, a.gid), format!("{}:{}", b.uid, b.gid));
    field("rdev", format!("{:#x}", a.rdev), format!("{:#x}", b.rdev));
    field("size", format!("{:?}", a.size), format!("{:?}", b.size));
    field("mtime", format!("{:?}", a.mtime), format!("{:?}", b.mtime));
    field("ctime", format!("{:?}", a.ctime), format!("{:?}", b.ctime));
    field("atime", format!("{:?}", a.atime), format!("{:?}", b.atime));
    field("blocks", format!("{:?}", a.blocks), format!("{:?}", b.blocks));
    if a.kind != FileType::Directory {
        field("nlink", a.nlink.to_string(), b.nlink.to_string());
    }
    field("hard link of", optional(a.group.as_ref()), optional(b.group.as_ref()));
    field("target", optional(a.target.as_ref()), optional(b.target.as_ref()));
    field("xattrs", xattrs_text(a), xattrs_text(b));
    field("content", content_text(a), content_text(b));
}

fn optional(bytes: Option<&Vec<u8>>) -> String {
    bytes.map_or_else(|| "none".to_owned(), |bytes| format!("{:?}", bytes.escape_ascii().to_string()))
}

fn xattrs_text(entry: &Entry) -> String {
    let parts: Vec<String> =
        entry.xattrs.iter().map(|(name, value)| format!("{}={}", name.escape_ascii(), value.escape_ascii())).collect();
    format!("[{}]", parts.join(", "))
}

fn content_text(entry: &Entry) -> String {
    match &entry.content {
        None => "none".to_owned(),
        Some(Content::Failed(error)) => format!("{error:?}"),
        Some(Content::Sum { len, sha256, .. }) => format!("{len} bytes {}", &sha256[..12]),
    }
}

/// Panics with the differences, if there are any.
pub fn assert_same(what: &str, expected: &Tree, found: &Tree) {
    let lines = diff(expected, found);
    assert!(lines.is_empty(), "{what} differs:\n  {}", lines.join("\n  "));
}
