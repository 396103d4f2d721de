//! Stacks of overlay2 directories as data: made by hand or at random, applied to directories, and shrunk when one shows a bug.
//!
//! A [`Stack`] prints as the calls that make it, so that a stack found at random can be pasted into a test:
//!
//! ```text
//! stack(vec![
//!     vec![whiteout(b"a")],                  // the top layer
//!     vec![dir(b"a"), file(b"a/x", b"1")],   // the base
//! ])
//! ```
//!
//! What a layer may hold is what a store of a hostile image may hold: everything that mknod, setxattr and tar can put there.

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, makedev};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::random::Dice;
use super::store::StoreBuilder;

/// Which xattrs rule a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// `trusted.overlay.*`, as a daemon of root writes.
    Trusted,
    /// `user.overlay.*`, as a rootless daemon writes.
    User,
}

impl Marks {
    fn prefix(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.",
            Self::User => "user.overlay.",
        }
    }

    /// The prefix that means nothing in such a stack.
    fn foreign_prefix(self) -> &'static str {
        match self {
            Self::Trusted => Self::User.prefix(),
            Self::User => Self::Trusted.prefix(),
        }
    }
}

/// What lies at a path of a layer.
#[derive(Clone, PartialEq, Eq)]
pub enum Kind {
    Dir,
    File(Vec<u8>),
    /// A file of this size that holds only these bytes at this offset.
    Sparse {
        size: u64,
        at: u64,
        bytes: Vec<u8>,
    },
    Symlink(Vec<u8>),
    Fifo,
    Socket,
    Char(u32, u32),
    Block(u32, u32),
    /// A second name of a path of the same layer.
    Link(Vec<u8>),
}

/// One object of a layer with its attributes; those not given are as they come.
#[derive(Clone, PartialEq, Eq)]
pub struct Op {
    pub path: Vec<u8>,
    pub kind: Kind,
    pub mode: Option<u32>,
    pub owner: Option<(u32, u32)>,
    pub mtime: Option<(i64, i64)>,
    /// Overlay marks without their prefix.
    pub marks: Vec<(String, Vec<u8>)>,
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// The object at `path`; its missing parents are made with it.
pub fn op(path: impl AsRef<[u8]>, kind: Kind) -> Op {
    Op {
        path: path.as_ref().to_vec(),
        kind,
        mode: None,
        owner: None,
        mtime: None,
        marks: Vec::new(),
        xattrs: Vec::new(),
    }
}

/// A directory; the empty path is the layer's root.
pub fn dir(path: impl AsRef<[u8]>) -> Op {
    op(path, Kind::Dir)
}

pub fn file(path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Op {
    op(path, Kind::File(content.as_ref().to_vec()))
}

pub fn sparse(path: impl AsRef<[u8]>, size: u64, at: u64, bytes: impl AsRef<[u8]>) -> Op {
    let bytes = bytes.as_ref().to_vec();
    op(path, Kind::Sparse { size, at, bytes })
}

/// A file of this size without content, as the kernel leaves a metacopy file.
pub fn hole(path: impl AsRef<[u8]>, size: u64) -> Op {
    sparse(path, size, 0, b"")
}

pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Op {
    op(path, Kind::Symlink(target.as_ref().to_vec()))
}

pub fn fifo(path: impl AsRef<[u8]>) -> Op {
    op(path, Kind::Fifo)
}

pub fn socket(path: impl AsRef<[u8]>) -> Op {
    op(path, Kind::Socket)
}

pub fn char_device(path: impl AsRef<[u8]>, major: u32, minor: u32) -> Op {
    op(path, Kind::Char(major, minor))
}

pub fn block_device(path: impl AsRef<[u8]>, major: u32, minor: u32) -> Op {
    op(path, Kind::Block(major, minor))
}

/// A deletion in the kernel's form.
pub fn whiteout(path: impl AsRef<[u8]>) -> Op {
    char_device(path, 0, 0).mode(0)
}

/// A deletion in the form that can lie in an overlay.
pub fn xattr_whiteout(path: impl AsRef<[u8]>) -> Op {
    file(path, b"").mark("whiteout", b"")
}

pub fn link(path: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Op {
    op(path, Kind::Link(to.as_ref().to_vec()))
}

impl Op {
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = Some((uid, gid));
        self
    }

    pub fn mtime(mut self, seconds: i64, nanoseconds: i64) -> Self {
        self.mtime = Some((seconds, nanoseconds));
        self
    }

    /// Sets an overlay xattr: `mark("opaque", b"y")`.
    pub fn mark(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.marks.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    pub fn opaque(self) -> Self {
        self.mark("opaque", b"y")
    }

    pub fn redirect(self, to: impl AsRef<[u8]>) -> Self {
        self.mark("redirect", to)
    }

    pub fn metacopy(self) -> Self {
        self.mark("metacopy", b"")
    }

    pub fn xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.xattrs.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    fn is_metacopy(&self) -> bool {
        matches!(self.kind, Kind::File(_) | Kind::Sparse { .. })
            && self.marks.iter().any(|(name, _)| name == "metacopy")
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.escape_ascii();
        match &self.kind {
            Kind::Dir => write!(f, "dir(b\"{path}\")"),
            Kind::File(content) => write!(f, "file(b\"{path}\", {})", bytes_text(content)),
            Kind::Sparse { size, at, bytes } => write!(f, "sparse(b\"{path}\", {size}, {at}, {})", bytes_text(bytes)),
            Kind::Symlink(to) => write!(f, "symlink(b\"{path}\", b\"{}\")", to.escape_ascii()),
            Kind::Fifo => write!(f, "fifo(b\"{path}\")"),
            Kind::Socket => write!(f, "socket(b\"{path}\")"),
            Kind::Char(major, minor) => write!(f, "char_device(b\"{path}\", {major}, {minor})"),
            Kind::Block(major, minor) => write!(f, "block_device(b\"{path}\", {major}, {minor})"),
            Kind::Link(to) => write!(f, "link(b\"{path}\", b\"{}\")", to.escape_ascii()),
        }?;
        if let Some(mode) = self.mode {
            write!(f, ".mode(0o{mode:o})")?;
        }
        if let Some((uid, gid)) = self.owner {
            write!(f, ".owner({uid}, {gid})")?;
        }
        if let Some((seconds, nanoseconds)) = self.mtime {
            write!(f, ".mtime({seconds}, {nanoseconds})")?;
        }
        for (name, value) in &self.marks {
            write!(f, ".mark({name:?}, b\"{}\")", value.escape_ascii())?;
        }
        for (name, value) in &self.xattrs {
            write!(f, ".xattr({name:?}, b\"{}\")", value.escape_ascii())?;
        }
        Ok(())
    }
}

/// Bytes as Rust writes them; a long run of one byte as an array.
fn bytes_text(bytes: &[u8]) -> String {
    match bytes {
        [first, ..] if bytes.len() > 16 && bytes.iter().all(|byte| byte == first) => {
            format!("[b'{}'; {}]", first.escape_ascii(), bytes.len())
        }
        bytes => format!("b\"{}\"", bytes.escape_ascii()),
    }
}

/// Layers, top first.
#[derive(Clone, PartialEq, Eq)]
pub struct Stack {
    pub marks: Marks,
    pub layers: Vec<Vec<Op>>,
}

/// A stack as a daemon of root writes it.
pub fn stack(layers: Vec<Vec<Op>>) -> Stack {
    Stack { marks: Marks::Trusted, layers }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "stack(vec![ // {:?}", self.marks)?;
        for layer in &self.layers {
            writeln!(f, "    vec![")?;
            for op in layer {
                writeln!(f, "        {op:?},")?;
            }
            writeln!(f, "    ],")?;
        }
        write!(f, "])")
    }
}

impl Stack {
    /// Writes each layer into its directory, top first. Returns what could not be done, which is nothing for a generated stack; one that
    /// is being shrunk may hold links to names that are gone.
    pub fn apply(&self, directories: &[PathBuf]) -> Vec<String> {
        assert_eq!(self.layers.len(), directories.len(), "a directory for each layer");
        let mut undone = Vec::new();
        for (layer, directory) in self.layers.iter().zip(directories) {
            apply_layer(self.marks, layer, directory, &mut undone);
        }
        undone
    }

    /// Makes a store with the stack as the image `t:1`; answers its root and the layers' directories, top first.
    pub fn store(&self, root: PathBuf) -> (PathBuf, Vec<PathBuf>) {
        let mut store = StoreBuilder::new(root);
        let layers = store.chain(self.layers.len());
        let image = store.image(&layers);
        store.tag("t:1", &image);
        let directories: Vec<PathBuf> = layers.iter().rev().map(|layer| layer.diff_dir()).collect();
        let undone = self.apply(&directories);
        assert!(undone.is_empty(), "{undone:#?}");
        (store.finish(), directories)
    }

    /// Whether a layer has a file of attributes with this name, in whatever directory.
    pub fn has_metacopy_named(&self, name: &[u8]) -> bool {
        let last = |op: &Op| op.path.rsplit(|byte| *byte == b'/').next() == Some(name);
        self.layers.iter().flatten().any(|op| op.is_metacopy() && last(op))
    }

    /// Whether a file of it holds attributes only.
    pub fn has_metacopy(&self) -> bool {
        self.layers.iter().flatten().any(Op::is_metacopy)
    }

    /// Whether a directory of it continues elsewhere in the layers below.
    pub fn has_redirect(&self) -> bool {
        let mut marks = self.layers.iter().flatten().flat_map(|op| &op.marks);
        marks.any(|(name, _)| name == "redirect")
    }

    /// All the names that occur in it.
    pub fn names(&self) -> Vec<Vec<u8>> {
        let ops = self.layers.iter().flatten();
        let mut names: Vec<Vec<u8>> = ops
            .flat_map(|op| op.path.split(|byte| *byte == b'/'))
            .filter(|name| !name.is_empty())
            .map(<[u8]>::to_vec)
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// First all objects, then their attributes, then the times, deepest first: each step disturbs what a later one sets.
fn apply_layer(marks: Marks, ops: &[Op], directory: &Path, undone: &mut Vec<String>) {
    let at = |op: &Op| match op.path.as_slice() {
        b"" => directory.to_owned(),
        path => directory.join(OsStr::from_bytes(path)),
    };
    let mut made: Vec<&Op> = Vec::new();
    for op in ops {
        match make(op, &at(op), directory) {
            Ok(()) => made.push(op),
            Err(error) => undone.push(format!("{op:?}: {error}")),
        }
    }
    for op in &made {
        if let Err(error) = set_attributes(op, &at(op), marks) {
            undone.push(format!("attributes of {op:?}: {error}"));
        }
    }
    made.sort_by_key(|op| std::cmp::Reverse(op.path.len()));
    for op in &made {
        if let Some((tv_sec, tv_nsec)) = op.mtime {
            let time = Timespec { tv_sec, tv_nsec };
            let times = Timestamps { last_access: time, last_modification: time };
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            if let Err(error) = rustix::fs::utimensat(CWD, at(op), &times, flags) {
                undone.push(format!("times of {op:?}: {error}"));
            }
        }
    }
}

fn make(op: &Op, path: &Path, layer: &Path) -> Result<(), Errno> {
    if op.path.is_empty() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| errno(&error))?;
    }
    let node = |kind, device| rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), device);
    match &op.kind {
        Kind::Dir => match rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) if path.is_dir() => Ok(()),
            done => done,
        },
        Kind::File(content) => create(path)?.write_all_at(content, 0).map_err(|error| errno(&error)),
        Kind::Sparse { size, at, bytes } => {
            let file = create(path)?;
            file.set_len(*size).and_then(|()| file.write_all_at(bytes, *at)).map_err(|error| errno(&error))
        }
        Kind::Symlink(target) => rustix::fs::symlinkat(target.as_slice(), CWD, path),
        Kind::Fifo => node(FileType::Fifo, 0),
        Kind::Socket => node(FileType::Socket, 0),
        Kind::Char(major, minor) => node(FileType::CharacterDevice, makedev(*major, *minor)),
        Kind::Block(major, minor) => node(FileType::BlockDevice, makedev(*major, *minor)),
        Kind::Link(to) => {
            let to = layer.join(OsStr::from_bytes(to));
            rustix::fs::linkat(CWD, to, CWD, path, AtFlags::empty())
        }
    }
}

fn create(path: &Path) -> Result<File, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::from_raw_mode(0o644)).map(File::from)
}

/// In this order: a change of owner clears setuid and capabilities, an ACL changes the mode.
fn set_attributes(op: &Op, path: &Path, marks: Marks) -> Result<(), Errno> {
    if let Some((uid, gid)) = op.owner {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if let (Some(mode), false) = (op.mode, matches!(op.kind, Kind::Symlink(_))) {
        rustix::fs::chmod(path, Mode::from_raw_mode(mode))?;
    }
    for (name, value) in &op.xattrs {
        rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())?;
    }
    for (name, value) in &op.marks {
        let name = format!("{}{name}", marks.prefix());
        rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())?;
    }
    Ok(())
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// The smallest stack that still fails, as far as taking away one layer, one object or one attribute at a time leads there. Ends after
/// 600 tries at the latest.
pub fn shrink(stack: &Stack, mut still_fails: impl FnMut(&Stack) -> bool) -> Stack {
    let mut best = stack.clone();
    let mut left = 600;
    loop {
        let smaller = smaller_stacks(&best).into_iter().find(|candidate| {
            left -= 1;
            left >= 0 && still_fails(candidate)
        });
        match smaller {
            Some(stack) if left > 0 => best = stack,
            Some(_) | None => return best,
        }
    }
}

/// The stacks with one thing less, big things first.
fn smaller_stacks(stack: &Stack) -> Vec<Stack> {
    let mut smaller = Vec::new();
    for n in 0..stack.layers.len() {
        let mut without = stack.clone();
        without.layers.remove(n);
        if !without.layers.is_empty() {
            smaller.push(without);
        }
    }
    for parts in [4, 2] {
        for (n, layer) in stack.layers.iter().enumerate() {
            let chunk = layer.len().div_ceil(parts).max(1);
            for start in (0..layer.len()).step_by(chunk).filter(|_| layer.len() > parts) {
                let mut without = stack.clone();
                without.layers[n].drain(start..(start + chunk).min(layer.len()));
                smaller.push(without);
            }
        }
    }
    for (n, layer) in stack.layers.iter().enumerate() {
        for (i, op) in layer.iter().enumerate() {
            let mut without = stack.clone();
            without.layers[n].remove(i);
            smaller.push(without);
            for plainer in plainer_ops(op) {
                let mut with = stack.clone();
                with.layers[n][i] = plainer;
                smaller.push(with);
            }
        }
    }
    smaller
}

fn plainer_ops(op: &Op) -> Vec<Op> {
    let mut plainer =
        vec![Op { mode: None, ..op.clone() }, Op { owner: None, ..op.clone() }, Op { mtime: None, ..op.clone() }];
    for n in 0..op.xattrs.len() {
        let mut without = op.clone();
        without.xattrs.remove(n);
        plainer.push(without);
    }
    for n in 0..op.marks.len() {
        let mut without = op.clone();
        without.marks.remove(n);
        plainer.push(without);
    }
    plainer.retain(|candidate| candidate != op);
    plainer
}

/// The stack of a seed; the same at each run.
pub fn random(seed: u64, marks: Marks) -> Stack {
    let mut dice = Dice(seed);
    let vocabulary = vocabulary(&mut dice);
    let count = match dice.below(10) {
        0 => 1,
        1..=7 => 2 + dice.below(4),
        _ => 6 + dice.below(7),
    };
    let mut generator = Generator { dice, marks, vocabulary, with_metacopy: false, with_redirects: false };
    // Each kind of oddity in some stacks only: where everything is odd, most of a tree is hidden or unreadable.
    generator.with_metacopy = generator.dice.one_in(3);
    generator.with_redirects = generator.dice.one_in(2);
    let layers = (0..count).map(|_| generator.layer()).collect();
    Stack { marks, layers }
}

/// The few names of a stack: plain ones, and one or two odd ones.
fn vocabulary(dice: &mut Dice) -> Vec<Vec<u8>> {
    let long = [b'L'; 255];
    let odd: [&[u8]; 16] = [
        b"\xff\xfe",
        b"new\nline",
        b"ctl\x01\x1b[31m",
        b"-rf",
        b" ",
        b"sp ace ",
        b".wh.a",
        b".wh..wh..opq",
        b".wh.",
        &long,
        b"...",
        b"a:b",
        b"back\\slash",
        "é".as_bytes(),
        b"A",
        b"\"quoted'",
    ];
    let mut names: Vec<Vec<u8>> = [&b"a"[..], b"b", b"c", b"d"].map(<[u8]>::to_vec).into();
    for _ in 0..1 + dice.below(2) {
        let name = dice.of(&odd).to_vec();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

struct Generator {
    dice: Dice,
    marks: Marks,
    vocabulary: Vec<Vec<u8>>,
    with_metacopy: bool,
    with_redirects: bool,
}

impl Generator {
    fn layer(&mut self) -> Vec<Op> {
        let mut ops = vec![self.root()];
        let mut budget = 8 + self.dice.below(30);
        self.directory(b"", 0, &mut ops, &mut budget);
        ops
    }

    fn root(&mut self) -> Op {
        let mut root = dir(b"").mode(0o755);
        if self.dice.one_in(4) {
            root = self.opaque_mark(root);
        }
        if self.dice.one_in(8) {
            root = root.xattr("user.root", b"1");
        }
        if self.dice.one_in(4) {
            root.mode = Some(0o711);
            root.owner = Some((5, 6));
            root.mtime = Some(self.time());
        }
        root
    }

    fn directory(&mut self, path: &[u8], depth: usize, ops: &mut Vec<Op>, budget: &mut usize) {
        for name in self.vocabulary.clone() {
            if *budget == 0 {
                return;
            }
            if !self.dice.one_in(3) {
                *budget -= 1;
                let child = join(path, &name);
                self.object(&child, depth, ops, budget);
            }
        }
    }

    fn object(&mut self, path: &[u8], depth: usize, ops: &mut Vec<Op>, budget: &mut usize) {
        let made = match self.dice.below(100) {
            0..=44 if depth < 3 => {
                let directory = self.new_directory(path);
                ops.push(directory);
                self.directory(path, depth + 1, ops, budget);
                return;
            }
            0..=44 => dir(path),
            45..=57 => self.regular_file(path),
            58..=62 if self.with_metacopy => self.metacopy_file(path),
            58..=62 => self.regular_file(path),
            63..=68 => {
                let target = self.dice.of(&[&b"/nowhere"[..], b"/a/b", b"../b", b"a", b".", b"\xfe\n", b"/"]);
                symlink(path, target)
            }
            69..=80 => self.a_whiteout(path, ops),
            81..=85 => self.an_xattr_whiteout(path),
            86 => fifo(path),
            87 => socket(path),
            88 => char_device(path, 0, 1),
            89 => char_device(path, 1, 0),
            90 => char_device(path, 1, 3),
            91 => {
                let (major, minor) = self.dice.of(&[(8, 1), (0, 0), (259, 1_000_000)]);
                block_device(path, major, minor)
            }
            _ => match self.linkable(ops) {
                Some(to) => return ops.push(link(path, to)),
                None => self.regular_file(path),
            },
        };
        let made = self.attributes(made);
        ops.push(made);
    }

    /// A path of the layer to link to. Not a metacopy file: its data is found by its name, so that two names of one would be two contents
    /// of one inode, and the kernel shows the one that was looked up first.
    fn linkable(&mut self, ops: &[Op]) -> Option<Vec<u8>> {
        let paths: Vec<&Vec<u8>> = ops
            .iter()
            .filter(|op| !matches!(op.kind, Kind::Dir | Kind::Link(_)) && !op.is_metacopy())
            .map(|op| &op.path)
            .collect();
        (!paths.is_empty()).then(|| self.dice.of(&paths).clone())
    }

    fn new_directory(&mut self, path: &[u8]) -> Op {
        let mut made = dir(path);
        if self.dice.one_in(5) {
            made = self.opaque_mark(made);
        }
        if self.with_redirects && self.dice.one_in(3) {
            let to = self.redirect_target();
            made = made.redirect(to);
        }
        self.attributes(made)
    }

    fn opaque_mark(&mut self, op: Op) -> Op {
        let value = self.dice.of(&[&b"y"[..], b"y", b"y", b"y", b"x", b"x", b"n", b"yy", b""]);
        op.mark("opaque", value)
    }

    fn redirect_target(&mut self) -> Vec<u8> {
        match self.dice.below(10) {
            0..=3 => self.dice.of(&self.vocabulary.clone()),
            4..=7 => {
                let mut target = Vec::new();
                for _ in 0..1 + self.dice.below(3) {
                    target.push(b'/');
                    target.extend(self.dice.of(&self.vocabulary.clone()));
                }
                target
            }
            8 => {
                let long = [b'R'; 300];
                let missing: [&[u8]; 4] = [b"missing", b"/missing", b"/a/missing/b", &long];
                self.dice.of(&missing).to_vec()
            }
            _ => {
                let malformed: [&[u8]; 14] = [
                    b"a/b", b"//", b"/", b"//a", b"/a//b", b"/a/", b"a/", b"", b"..", b".", b"/../a", b"/a/../b",
                    b"a\0b", b"/a\0/b",
                ];
                self.dice.of(&malformed).to_vec()
            }
        }
    }

    fn regular_file(&mut self, path: &[u8]) -> Op {
        let size = size_of(path);
        let byte = b'A' + u8::try_from(self.dice.below(26)).unwrap_or_default();
        match self.dice.below(8) {
            0 => file(path, b""),
            1 => sparse(path, 200_000, 100_000, [byte; 4000]),
            2 if self.with_redirects => {
                let to = self.redirect_target();
                file(path, vec![byte; size]).redirect(to)
            }
            _ => file(path, vec![byte; size]),
        }
    }

    /// Mostly with the size of the data that it will find, which follows from the name.
    fn metacopy_file(&mut self, path: &[u8]) -> Op {
        let redirect = self.dice.one_in(3).then(|| self.redirect_target());
        let size = match self.dice.below(8) {
            0 => 7,
            1 => 0,
            _ => size_of(redirect.as_deref().unwrap_or(path)),
        };
        let value = match self.dice.below(8) {
            0 => vec![0, 4, 0, 0],
            1 => [&[0, 36, 0, 1][..], &[0xaa; 32]].concat(),
            2 if self.dice.one_in(4) => vec![1, 2],
            _ => Vec::new(),
        };
        let made = hole(path, size as u64).mark("metacopy", value);
        match redirect {
            Some(to) => made.redirect(to),
            None => made,
        }
    }

    fn a_whiteout(&mut self, path: &[u8], ops: &[Op]) -> Op {
        let earlier: Vec<&Vec<u8>> = ops.iter().filter(|op| op.kind == Kind::Char(0, 0)).map(|op| &op.path).collect();
        if !earlier.is_empty() && self.dice.one_in(3) {
            return link(path, self.dice.of(&earlier));
        }
        whiteout(path)
    }

    fn an_xattr_whiteout(&mut self, path: &[u8]) -> Op {
        match self.dice.below(4) {
            0 => file(path, b"not empty").mark("whiteout", b""),
            1 => file(path, b"").mark("whiteout", b"y"),
            _ => xattr_whiteout(path),
        }
    }

    fn time(&mut self) -> (i64, i64) {
        self.dice.of(&[
            (0, 0),
            (-1, 500_000_000),
            (-2_000_000_000, 1),
            (5_000_000_000, 999_999_999),
            (1_600_000_000, 123_456_789),
            (2_147_483_648, 0),
        ])
    }

    fn attributes(&mut self, mut made: Op) -> Op {
        if matches!(made.kind, Kind::Link(_)) {
            return made;
        }
        let symlink = matches!(made.kind, Kind::Symlink(_));
        let plain = matches!(made.kind, Kind::Dir | Kind::File(_) | Kind::Sparse { .. });
        if !symlink && self.dice.one_in(3) {
            made.mode = Some(self.dice.of(&[0o000, 0o4755, 0o2755, 0o1777, 0o600, 0o7777, 0o444]));
        }
        if self.dice.one_in(4) {
            made.owner = Some(self.dice.of(&[(1000, 1000), (0, 42), (4_294_967_294, 65_534), (231_072, 7)]));
        }
        if self.dice.one_in(3) {
            made.mtime = Some(self.time());
        }
        if self.dice.one_in(5) {
            made = self.ordinary_xattr(made, plain);
        }
        if self.dice.one_in(8) && (plain || self.marks == Marks::Trusted) {
            made = self.inert_mark(made);
        }
        if plain && self.dice.one_in(12) {
            let name = format!("{}opaque", self.marks.foreign_prefix());
            made = made.xattr(&name, b"y");
        }
        made
    }

    fn ordinary_xattr(&mut self, made: Op, plain: bool) -> Op {
        let directory = made.kind == Kind::Dir;
        match self.dice.below(6) {
            0 | 1 if plain => made.xattr("user.note", b"bytes \xff\x00\x01"),
            2 if plain && !directory => made.xattr("security.capability", capability()),
            3 if plain => made.xattr("system.posix_acl_access", acl()),
            4 if directory => made.xattr("system.posix_acl_default", acl()),
            5 => made.xattr("trusted.overlayfoo", b"1"),
            _ => made.xattr("trusted.foo", b""),
        }
    }

    /// A mark that changes nothing of what is seen.
    fn inert_mark(&mut self, made: Op) -> Op {
        let (name, value) = self.dice.of(&[
            ("origin", &b"\x00\xfb\x1d\x00\x01"[..]),
            ("impure", b"y"),
            ("nlink", b"U-1"),
            ("unknown", b"?"),
            ("overlay.opaque", b"y"),
            ("overlay.overlay.whiteout", b""),
            ("uuid", b"0123456789abcdef"),
        ]);
        made.mark(name, value)
    }
}

/// The size of the data at a path, told by the last letter, so that a file of attributes has the size of the data it finds.
fn size_of(path: &[u8]) -> usize {
    match path.last() {
        Some(b'a') => 11,
        Some(b'b') => 300,
        Some(b'c') => 10_000,
        _ => 5,
    }
}

/// CAP_NET_RAW, permitted and effective, in version 2 of the format.
fn capability() -> Vec<u8> {
    let words = [0x0200_0001_u32, 1 << 13, 0, 0, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// user::rw-, user:7:r--, group::r--, mask::rw-, other::---
fn acl() -> Vec<u8> {
    let mut acl = 2_u32.to_le_bytes().to_vec();
    let undefined = u32::MAX;
    for (tag, permission, id) in
        [(0x01_u16, 6_u16, undefined), (0x02, 4, 7), (0x04, 4, undefined), (0x10, 6, undefined), (0x20, 0, undefined)]
    {
        acl.extend(tag.to_le_bytes());
        acl.extend(permission.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        return name.to_vec();
    }
    [dir, b"/", name].concat()
}

/// How often each kind of object occurs in stacks of these seeds; for the test that judges the generator.
pub fn census(seeds: std::ops::Range<u64>, marks: Marks) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for op in seeds.flat_map(|seed| random(seed, marks).layers).flatten() {
        let kind = match &op.kind {
            Kind::Dir => "dir",
            Kind::File(_) | Kind::Sparse { .. } => "file",
            Kind::Symlink(_) => "symlink",
            Kind::Fifo => "fifo",
            Kind::Socket => "socket",
            Kind::Char(0, 0) => "whiteout",
            Kind::Char(..) => "char",
            Kind::Block(..) => "block",
            Kind::Link(_) => "link",
        };
        *counts.entry(kind.to_owned()).or_default() += 1;
        for (name, _) in &op.marks {
            *counts.entry(format!("{kind} {name}")).or_default() += 1;
        }
    }
    counts
}
