//! A layer whose files' owners, modes and types are told by an extended attribute, since the file system that holds it
//! could not keep them: containers/storage with `force_mask`, and fuse-overlayfs on file systems without owners.
//!
//! ```text
//! 0:42:0750                   owner, group, permissions in octal
//! 0:42:100750                 the same by fuse-overlayfs, with the bits of the type
//! 0:6:0660:block-8-1          and the type: file, dir, symlink, pipe, socket, block-<major>-<minor>, char-<major>-<minor>
//! ```
//!
//! The attribute has one of three names. A layer has the one that its root directory has, and none where that has none
//! (`override_mode` in fuse-overlayfs' `main.c`): any image can bring files with such an attribute, but not a root. What
//! is not of this form is passed over. Devices, pipes and sockets are kept as empty regular files. A file without the
//! attribute belongs to the user 0, as who keeps the store is in its containers; symbolic links cannot have one.

use std::sync::OnceLock;

use super::retold::{Retell, Retold};
use super::{LayerTree, ReadAt};
use crate::error::Result;
use crate::meta::{DeviceNumber, FileId, Kind, Meta};
use crate::name::{Name, TreePath};
use crate::root::Space;

/// The names of the attribute, in the order in which a root is asked for them.
const NAMES: [&[u8]; 3] =
    [b"security.fuseoverlayfs.override_stat", b"user.containers.override_stat", b"user.fuseoverlayfs.override_stat"];
/// What is put before the names of attributes that the file system could not keep under their own (`security.*`).
const OVERRIDDEN: &[u8] = b"user.containers.override_";
/// The only attributes that are kept so.
const SECURITY: &[u8] = b"security.";
/// The largest device numbers (`include/linux/kdev_t.h`: 12 and 20 bits).
const MAJOR_MAX: u32 = 0xfff;
const MINOR_MAX: u32 = 0xf_ffff;

/// A tree whose root says whether attributes override what is stored.
#[derive(Debug)]
pub struct OverriddenTree {
    stored: Box<dyn LayerTree>,
    /// The name of the attribute, once the root was asked; `None` where nothing is overridden.
    attribute: OnceLock<Option<&'static [u8]>>,
}

/// What an attribute says of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Override {
    uid: u32,
    gid: u32,
    permissions: u16,
    /// The type, and of a device its number, where it is told.
    kind: Option<(Kind, DeviceNumber)>,
}

/// What is known of a file beside what is stored.
#[derive(Debug, Clone, Copy)]
enum Told {
    /// What its attribute says.
    Override(Override),
    /// That it belongs to who keeps the store, as it has no attribute.
    Owner,
    /// Nothing: its attribute is malformed.
    Nothing,
}

impl OverriddenTree {
    /// The tree that is stored here.
    #[must_use]
    pub fn new(stored: Box<dyn LayerTree>) -> Self {
        Self { stored, attribute: OnceLock::new() }
    }

    fn attribute(&self) -> Result<Option<&'static [u8]>> {
        if let Some(known) = self.attribute.get() {
            return Ok(*known);
        }
        let root = TreePath::root();
        if self.stored.stat(&root)?.is_none_or(|root| root.bare) {
            // What is gone now may be there later.
            return Ok(None);
        }
        let stored = self.stored.xattr_names(&root)?;
        let found = NAMES.into_iter().find(|name| stored.iter().any(|stored| stored == name));
        Ok(*self.attribute.get_or_init(|| found))
    }

    /// The attributes that users see of a file that is stored with these.
    fn overridden(&self, attribute: &[u8], path: &TreePath, stored: Meta) -> Result<Meta> {
        // Attributes of users are for files and directories alone.
        let can_have = match stored.kind {
            Kind::Regular | Kind::Directory => !stored.bare,
            Kind::Symlink | Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => {
                attribute.starts_with(SECURITY)
            }
        };
        let value = if can_have { self.stored.xattr(path, attribute)? } else { None };
        Ok(Told::of(value).apply(stored))
    }
}

impl Told {
    /// What a value of the attribute tells, or its absence.
    fn of(value: Option<Vec<u8>>) -> Self {
        match value {
            Some(value) => Override::parse(&value).map_or(Self::Nothing, Self::Override),
            None => Self::Owner,
        }
    }

    fn apply(self, stored: Meta) -> Meta {
        match self {
            Self::Override(told) => told.apply(stored),
            Self::Owner => Meta { uid: 0, gid: 0, ..stored },
            Self::Nothing => stored,
        }
    }
}

impl Override {
    fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let mut fields = text.split(':');
        let (uid, gid, mode) = (fields.next()?, fields.next()?, fields.next()?);
        let kind = fields.next();
        if fields.next().is_some() || !is_number(mode) {
            return None;
        }
        // fuse-overlayfs writes the bits of the type too, and passes over them.
        let permissions = u16::from_str_radix(mode, 8).ok()? & 0o7777;
        let kind = match kind {
            Some(kind) => Some(kind_of(kind)?),
            None => None,
        };
        Some(Self { uid: number(uid)?, gid: number(gid)?, permissions, kind })
    }

    /// What a file is that is stored so. A type is believed where the file is of it, or is a regular file in the place of
    /// one that could not be made; otherwise nothing of the attribute is.
    fn apply(self, stored: Meta) -> Meta {
        let (kind, rdev) = match self.kind {
            None => (stored.kind, stored.rdev),
            Some((kind, rdev)) if kind == stored.kind => (kind, rdev),
            Some((kind @ (Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice), rdev))
                if stored.kind == Kind::Regular =>
            {
                (kind, rdev)
            }
            Some(_) => return stored,
        };
        Meta { uid: self.uid, gid: self.gid, permissions: self.permissions, kind, rdev, ..stored }
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|_| is_number(text))
}

fn kind_of(text: &str) -> Option<(Kind, DeviceNumber)> {
    let plain = |kind| Some((kind, DeviceNumber::default()));
    let device = |kind, numbers: &str| {
        let (major, minor) = numbers.split_once('-')?;
        let major = number(major).filter(|major| *major <= MAJOR_MAX)?;
        let minor = number(minor).filter(|minor| *minor <= MINOR_MAX)?;
        Some((kind, DeviceNumber { major, minor }))
    };
    match text {
        "file" => plain(Kind::Regular),
        "dir" => plain(Kind::Directory),
        "symlink" => plain(Kind::Symlink),
        "pipe" => plain(Kind::Fifo),
        "socket" => plain(Kind::Socket),
        _ => match text.split_once('-')? {
            ("block", numbers) => device(Kind::BlockDevice, numbers),
            ("char", numbers) => device(Kind::CharDevice, numbers),
            _ => None,
        },
    }
}

impl LayerTree for OverriddenTree {
    fn stat(&self, path: &TreePath) -> Result<Option<Meta>> {
        let Some(stored) = self.stored.stat(path)? else { return Ok(None) };
        if path.is_root() && !stored.is_dir() {
            // Something else in the layer's place, which is for who asks for it to judge.
            return Ok(Some(stored));
        }
        match self.attribute()? {
            Some(attribute) => self.overridden(attribute, path, stored).map(Some),
            None => Ok(Some(stored)),
        }
    }

    fn list(&self, dir: &TreePath, wanted: &dyn Fn(&Name) -> bool) -> Result<Vec<(Name, Meta)>> {
        let mut listed = self.stored.list(dir, wanted)?;
        if let Some(attribute) = self.attribute()? {
            for (name, meta) in &mut listed {
                *meta = self.overridden(attribute, &dir.join(name), *meta)?;
            }
        }
        Ok(listed)
    }

    fn open(&self, file: &TreePath) -> Result<Box<dyn ReadAt>> {
        let open = self.stored.open(file)?;
        let Some(attribute) = self.attribute()? else { return Ok(open) };
        let told = Told::of(self.stored.xattr(file, attribute)?);
        Ok(Box::new(Retold::new(open, told)))
    }

    fn read_link(&self, link: &TreePath) -> Result<Vec<u8>> {
        self.stored.read_link(link)
    }

    fn xattr(&self, path: &TreePath, name: &[u8]) -> Result<Option<Vec<u8>>> {
        if self.attribute()?.is_none() {
            return self.stored.xattr(path, name);
        }
        if is_private(name) {
            return Ok(None);
        }
        if name.starts_with(SECURITY)
            && let Some(value) = self.stored.xattr(path, &[OVERRIDDEN, name].concat())?
        {
            return Ok(Some(value));
        }
        self.stored.xattr(path, name)
    }

    fn xattr_names(&self, path: &TreePath) -> Result<Vec<Vec<u8>>> {
        let stored = self.stored.xattr_names(path)?;
        if self.attribute()?.is_none() {
            return Ok(stored);
        }
        let shown = |name: &Vec<u8>| match name.strip_prefix(OVERRIDDEN) {
            Some(own) if own.starts_with(SECURITY) => Some(own.to_vec()),
            _ => (!is_private(name)).then(|| name.clone()),
        };
        let mut names: Vec<Vec<u8>> = stored.iter().filter_map(shown).collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    fn space(&self) -> Result<Space> {
        self.stored.space()
    }

    fn expect(&mut self, root: FileId) {
        self.stored.expect(root);
    }
}

/// Whether an attribute is part of the way in which owners, modes and others are kept.
fn is_private(name: &[u8]) -> bool {
    NAMES.contains(&name) || name.starts_with(OVERRIDDEN)
}

impl Retell for Told {
    fn retell(&self, stored: Meta) -> Meta {
        self.apply(stored)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::mem::MemTree;
    use super::*;

    const CONTAINERS: &[u8] = b"user.containers.override_stat";

    fn path(text: &str) -> TreePath {
        TreePath::new(text.as_bytes()).unwrap()
    }

    /// A tree of one file with this value, below a root that has the attribute or not.
    fn tree(root: Option<&[u8]>, kind: Kind, value: &[u8]) -> OverriddenTree {
        let mut tree = MemTree::default();
        let top = tree.put(TreePath::root(), Kind::Directory, b"");
        if let Some(name) = root {
            top.xattrs.insert(name.to_vec(), b"0:0:0555".to_vec());
        }
        let file = tree.put(path("f"), kind, b"");
        (file.meta.uid, file.meta.gid, file.meta.permissions) = (1000, 1000, 0o700);
        file.xattrs.insert(CONTAINERS.to_vec(), value.to_vec());
        file.xattrs.insert(b"user.containers.override_security.capability".to_vec(), b"cap".to_vec());
        file.xattrs.insert(b"user.x".to_vec(), b"x".to_vec());
        OverriddenTree::new(Box::new(tree))
    }

    fn seen(tree: &OverriddenTree) -> (Kind, u32, u32, u16, (u32, u32)) {
        let meta = tree.stat(&path("f")).unwrap().unwrap();
        assert_eq!(tree.list(&TreePath::root(), &|_| true).unwrap(), [(Name::escaped(b"f"), meta)]);
        (meta.kind, meta.uid, meta.gid, meta.permissions, (meta.rdev.major, meta.rdev.minor))
    }

    #[test]
    fn values_are_read_strictly() {
        let stored = (Kind::Regular, 1000, 1000, 0o700, (0, 0));
        for (value, expected) in [
            ("0:42:0750", (Kind::Regular, 0, 42, 0o750, (0, 0))),
            ("0:0:04755:file", (Kind::Regular, 0, 0, 0o4755, (0, 0))),
            ("0:6:0660:block-8-1", (Kind::BlockDevice, 0, 6, 0o660, (8, 1))),
            ("0:6:0660:char-4095-1048575", (Kind::CharDevice, 0, 6, 0o660, (4095, 1_048_575))),
            ("1:2:644:pipe", (Kind::Fifo, 1, 2, 0o644, (0, 0))),
            ("1:2:644:socket", (Kind::Socket, 1, 2, 0o644, (0, 0))),
            ("4294967295:0:0", (Kind::Regular, u32::MAX, 0, 0, (0, 0))),
            ("", stored),
            ("0:0", stored),
            ("0:0:0750:file:", stored),
            ("77:88:100640", (Kind::Regular, 77, 88, 0o640, (0, 0))),
            ("0:0:0200000", stored),
            ("0:0:0780", stored),
            ("0:0:+755", stored),
            ("+0:0:0755", stored),
            ("4294967296:0:0755", stored),
            ("0:0:0755:", stored),
            ("0:0:0755:dir", stored),
            ("0:0:0755:symlink", stored),
            ("0:0:0755:block-4096-1", stored),
            ("0:0:0755:char-1-1048576", stored),
            ("0:0:0755:char-1", stored),
            ("0:0:0755:char--1-1", stored),
            (" 0:0:0755", stored),
        ] {
            assert_eq!(seen(&tree(Some(CONTAINERS), Kind::Regular, value.as_bytes())), expected, "{value:?}");
        }
    }

    #[test]
    fn types_are_those_of_empty_files_only() {
        let typed = |kind, value: &str| seen(&tree(Some(CONTAINERS), kind, value.as_bytes()));
        assert_eq!(typed(Kind::Directory, "5:6:01777:dir"), (Kind::Directory, 5, 6, 0o1777, (0, 0)));
        assert_eq!(typed(Kind::Directory, "5:6:01777:file"), (Kind::Directory, 1000, 1000, 0o700, (0, 0)));
        assert_eq!(typed(Kind::Directory, "5:6:01777:char-0-0"), (Kind::Directory, 1000, 1000, 0o700, (0, 0)));
        // What cannot have the attribute belongs to who keeps the store.
        assert_eq!(typed(Kind::Symlink, "5:6:0644"), (Kind::Symlink, 0, 0, 0o700, (0, 0)));
    }

    #[test]
    fn nothing_is_overridden_unless_the_root_says_so() {
        let other = &b"user.fuseoverlayfs.override_stat"[..];
        let stored = (Kind::Regular, 1000, 1000, 0o700, (0, 0));
        assert_eq!(seen(&tree(None, Kind::Regular, b"0:0:04755")), stored);
        let names = tree(None, Kind::Regular, b"0:0:04755").xattr_names(&path("f")).unwrap();
        assert_eq!(names.len(), 3);
        // Another name at the root: then files are asked for that one, which this one has not.
        assert_eq!(seen(&tree(Some(other), Kind::Regular, b"0:0:04755")), (Kind::Regular, 0, 0, 0o700, (0, 0)));
    }

    #[test]
    fn private_attributes_are_hidden_and_kept_ones_have_their_own_names() {
        let tree = tree(Some(CONTAINERS), Kind::Regular, b"0:0:0755");
        assert_eq!(tree.xattr_names(&path("f")).unwrap(), [b"security.capability".to_vec(), b"user.x".to_vec()]);
        assert_eq!(tree.xattr(&path("f"), b"security.capability").unwrap(), Some(b"cap".to_vec()));
        assert_eq!(tree.xattr(&path("f"), b"user.x").unwrap(), Some(b"x".to_vec()));
        for hidden in [CONTAINERS, b"user.containers.override_security.capability"] {
            assert_eq!(tree.xattr(&path("f"), hidden).unwrap(), None);
        }
        assert!(tree.xattr_names(&TreePath::root()).unwrap().is_empty());
    }
}
