//! How layers say what they delete, replace and move: every rule about whiteouts, opaque marks, redirects, metacopies
//! and private attributes, and nowhere else.
//!
//! Each [`Whiteouts`] is the convention of one union file system, seen from a reader. The first is kernel overlayfs'
//! (`Documentation/filesystems/overlayfs.rst`; `fs/overlayfs/namei.c`, `util.c`, `xattrs.c`):
//!
//! ```text
//! c 0:0                        a whiteout: deletes the name below; mode, owner and links do not matter
//! empty file + P whiteout      a whiteout too (since Linux 6.7), whatever the value
//! directory + P opaque = "y"   hides what lower layers have under its name; on a layer's root it means nothing
//! directory + P opaque = "x"   not opaque: "may hold whiteouts of the second form"
//! directory + P redirect       where lower layers are searched instead; also on files with P metacopy
//! file + P metacopy            attributes only; the data is the next lower file's
//! P overlay.X                  a user's own attribute "P X", escaped
//! ```
//!
//! P is `trusted.overlay.`, or `user.overlay.` in stores written by rootless engines (mount option `userxattr`).
//!
//! aufs and fuse-overlayfs have marks that are files, whose names begin with `.wh.`; no such name is seen in their unions.
//! For aufs (aufs-standalone, `fs/aufs/dentry.c`, `whout.c`, `vdir.c`; Docker mounts image layers `ro+wh`):
//!
//! ```text
//! .wh.<name>                   a whiteout of <name>, also of one beside it; a regular file, or looking it up fails (EIO)
//! <directory>/.wh..wh..opq     opaque, as above; on a layer's root it means nothing
//! another type below           a file below a directory is passed over, and directories below that still merge
//! a name of over 242 bytes     is refused (ENAMETOOLONG), as its temporary marks would have no room
//! .wh..wh.* in a layer's root  aufs' own: the inode of all whiteouts, pseudo-links, deleted files that are open
//! ```
//!
//! For fuse-overlayfs (1.x, `load_dir()`, `do_lookup_file()`, `is_directory_opaque()` in its `main.c`; tried with 1.10):
//!
//! ```text
//! .wh.<name>                   a whiteout of <name>, also of one beside it, whatever its type
//! c 0:0                        a whiteout too
//! directory + Q opaque = "y…"  opaque, by the first byte; Q is the first that there is of trusted.overlay.,
//!                              user.overlay., user.fuseoverlayfs.
//! <directory>/.wh..wh..opq     opaque too where it has none of them, whatever the file's type
//!                              both on a layer's root too, and then no lower layer is seen
//! c 0:0 named .wh..opq         its own, left in the opaque directories that it makes
//! ```

use rustix::io::Errno;

use super::LayerTree;
use crate::error::{Error, Result};
use crate::meta::{DeviceNumber, Kind, Meta};
use crate::name::{NAME_MAX, Name, TreePath};

/// What is put before a name to say that lower layers' entry of that name is deleted (OCI image specification,
/// layer.md, "Whiteouts").
pub const OCI_WHITEOUT: &[u8] = b".wh.";
/// The name that makes the directory holding it opaque (OCI image specification, layer.md, "Opaque Whiteout").
pub const OCI_OPAQUE: &[u8] = b".wh..wh..opq";

/// The longest redirect that is followed, in bytes: as long as a path can be. The kernel writes at most 256 by default.
const REDIRECT_MAX: usize = 4096;
/// The most components of a redirect that are followed. Each is looked up in each layer.
const REDIRECT_DEPTH: usize = 256;

/// The value of the attribute that makes a directory opaque; others mean something else.
const OPAQUE: &[u8] = b"y";
/// The names of the attribute by which fuse-overlayfs makes a directory opaque, in the order in which it asks.
const FUSE_OPAQUE: [&[u8]; 3] = [b"trusted.overlay.opaque", b"user.overlay.opaque", b"user.fuseoverlayfs.opaque"];
/// What the attributes' names begin with that fuse-overlayfs keeps to itself (`can_access_xattr()` in its `main.c`). Those
/// that override owners and modes it hides only where it follows them, which it never does for Docker's driver.
const FUSE_PRIVATE: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs."];
/// What the names of aufs' own files in a layer's root begin with (`AUFS_WH_PFX2` in `include/uapi/linux/aufs_type.h`).
const AUFS_OWN: &[u8] = b".wh..wh.";
/// The device that fuse-overlayfs, as root, leaves in opaque directories beside their attribute and their file.
const FUSE_OWN: &[u8] = b".wh..opq";
/// The longest name that aufs looks up, in bytes (`AUFS_MAX_NAMELEN`).
const AUFS_NAME_MAX: usize = 242;

/// The smallest metacopy value that is not empty: its header (`fs/overlayfs/overlayfs.h`), in bytes.
const METACOPY_HEADER: usize = 4;

/// The convention of a layer's deletions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whiteouts {
    /// Kernel overlayfs', with the attributes of this prefix.
    Overlay(Prefix),
    /// None: the layer is a whole tree, in which devices and attributes are nothing but that. A difference of two such
    /// trees ([`super::difference`]) has made-up devices 0/0 for what is gone, which no file system holds.
    Whole,
    /// aufs'.
    Aufs,
    /// fuse-overlayfs', in any of its forms.
    FuseOverlay,
}

/// Which extended attributes are overlayfs' own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    /// `trusted.overlay.`: readable with `CAP_SYS_ADMIN` only.
    Trusted,
    /// `user.overlay.`: the mount option `userxattr`, which also forbids redirects and metacopies.
    User,
}

impl Prefix {
    /// The prefix with its last dot.
    #[must_use]
    pub fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted.overlay.",
            Self::User => b"user.overlay.",
        }
    }

    fn with(self, name: &str) -> Vec<u8> {
        [self.as_bytes(), name.as_bytes()].concat()
    }
}

/// Where lower layers are searched for what a directory or a metacopy has below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redirect {
    /// Under another name in the same directory. The text may be no name at all; the search says so.
    Sibling(Vec<u8>),
    /// Under a path from the union's root: its components, none of them empty.
    Absolute(Vec<Vec<u8>>),
}

/// An entry of a layer's directory, as the rules look at it. Its path is put together only where they ask for an
/// attribute.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    /// Where it is stored.
    pub tree: &'a dyn LayerTree,
    /// Its directory's path.
    pub dir: &'a TreePath,
    /// Its name there.
    pub name: &'a Name,
    /// Its attributes.
    pub meta: &'a Meta,
}

impl Stored<'_> {
    fn path(&self) -> TreePath {
        self.dir.join(self.name)
    }
}

impl Whiteouts {
    /// Whether redirects are followed; with `userxattr` the kernel refuses them.
    #[must_use]
    pub fn follows_redirects(self) -> bool {
        self == Self::Overlay(Prefix::Trusted)
    }

    /// Whether the layer is united by kernel overlayfs.
    #[must_use]
    pub fn is_of_kernel(self) -> bool {
        matches!(self, Self::Overlay(_))
    }

    /// One of kernel overlayfs' private attributes; others have none. `user.` ones need read permission on the file; a
    /// file that this process may not read is taken to have none, as the kernel does with `userxattr`.
    fn own(self, tree: &dyn LayerTree, path: &TreePath, name: &str) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Overlay(prefix) => readable(prefix, tree.xattr(path, &prefix.with(name))),
            Self::Aufs | Self::FuseOverlay | Self::Whole => Ok(None),
        }
    }

    /// One of the private attributes of an entry; one that is known to have no attributes is not asked.
    fn of(self, entry: &Stored<'_>, name: &str) -> Result<Option<Vec<u8>>> {
        if entry.meta.bare { Ok(None) } else { self.own(entry.tree, &entry.path(), name) }
    }

    /// Whether marks are files beside what they mark, with names that no user sees.
    #[must_use]
    pub fn has_named_marks(self) -> bool {
        match self {
            Self::Overlay(_) | Self::Whole => false,
            Self::Aufs | Self::FuseOverlay => true,
        }
    }

    /// Whether no user of the union sees this name, whatever it stands for.
    #[must_use]
    pub fn is_reserved(self, name: &Name) -> bool {
        self.has_named_marks() && name.as_bytes().starts_with(OCI_WHITEOUT)
    }

    /// The name of the file that would say that `name` is deleted, where deletions are told by names. A name that is too
    /// long for that cannot be deleted.
    #[must_use]
    pub fn mark_of(self, name: &Name) -> Option<Name> {
        let mark = if self.has_named_marks() { oci_mark(name) } else { None };
        mark.filter(|mark| mark.as_bytes().len() <= NAME_MAX)
    }

    /// The name that a file of this name says is deleted, where deletions are told by names.
    #[must_use]
    pub fn marked_by(self, mark: &Name) -> Option<Name> {
        // What is behind two prefixes is no user's: an opaque mark, or a file of aufs' own.
        let marked = if self.has_named_marks() { oci_marked(mark) } else { None };
        marked.filter(|marked| !self.is_reserved(marked))
    }

    /// Makes sure that a file with the name of a mark is one.
    ///
    /// # Errors
    /// [`Error::Refused`] with `EIO` where aufs says that: its marks are regular files.
    pub fn check_mark(self, dir: &TreePath, marked: &Name, mark: &Meta) -> Result<()> {
        match (self, mark.kind) {
            (Self::Overlay(_) | Self::FuseOverlay | Self::Whole, _) | (Self::Aufs, Kind::Regular) => Ok(()),
            (
                Self::Aufs,
                Kind::Directory | Kind::Symlink | Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice,
            ) => Err(Error::Refused {
                what: format!("{:?}", dir.join(marked)),
                why: "its whiteout is not a regular file".into(),
                errno: Errno::IO,
            }),
        }
    }

    /// Makes sure that a union can look up the name.
    ///
    /// # Errors
    /// [`Error::Refused`] with `ENAMETOOLONG`.
    pub fn check_name(self, name: &Name) -> Result<()> {
        if self != Self::Aufs || name.as_bytes().len() <= AUFS_NAME_MAX {
            return Ok(());
        }
        Err(Error::Refused {
            what: format!("{name:?}"),
            why: format!("aufs looks up no name of over {AUFS_NAME_MAX} bytes").into(),
            errno: Errno::NAMETOOLONG,
        })
    }

    /// Whether a file below a directory of the same name is passed over in the search for more directories; otherwise it
    /// ends the search.
    #[must_use]
    pub fn passes_over_files(self) -> bool {
        self == Self::Aufs
    }

    /// Whether the entry is the union file system's own and no part of what the layer says.
    #[must_use]
    pub fn is_own(self, dir: &TreePath, name: &Name, meta: &Meta) -> bool {
        match self {
            Self::Overlay(_) | Self::Whole => false,
            Self::Aufs => dir.is_root() && name.as_bytes().starts_with(AUFS_OWN) && name.as_bytes() != OCI_OPAQUE,
            Self::FuseOverlay => name.as_bytes() == FUSE_OWN && is_device_zero(meta),
        }
    }

    /// Whether below this entry no layer has anything to say of its name, whatever attributes the entry has: files
    /// hide and whiteouts delete all below, unless they may be metacopies. Where files are
    /// [passed over](Self::passes_over_files), that is so for the first entry of the name.
    #[must_use]
    pub fn ends_search(self, meta: &Meta) -> bool {
        match meta.kind {
            Kind::Directory => false,
            Kind::Regular => meta.bare || self.has_named_marks() || self == Self::Whole,
            Kind::CharDevice | Kind::Symlink | Kind::Fifo | Kind::Socket | Kind::BlockDevice => true,
        }
    }

    /// Whether the entry stands for a deletion of itself. A file with the name of a mark deletes another.
    ///
    /// # Errors
    /// Where the attributes that tell could not be read.
    pub fn is_whiteout(self, entry: &Stored<'_>) -> Result<bool> {
        match (self, entry.meta.kind) {
            (Self::Overlay(_), Kind::CharDevice) => Ok(is_device_zero(entry.meta)),
            (Self::FuseOverlay, Kind::CharDevice) => Ok(is_device_zero(entry.meta) && !self.is_reserved(entry.name)),
            (Self::Overlay(_), Kind::Regular) if entry.meta.size_bytes == 0 => {
                Ok(self.of(entry, "whiteout")?.is_some())
            }
            (Self::Whole, Kind::CharDevice) => Ok(is_device_zero(entry.meta) && entry.meta.volume == 0),
            (Self::Overlay(_) | Self::Aufs | Self::FuseOverlay | Self::Whole, _) => Ok(false),
        }
    }

    /// Whether the entry is a directory that hides what lower layers have under its name.
    ///
    /// # Errors
    /// Where what tells could not be read; [`Error::Refused`] with `EIO` for a mark that aufs refuses.
    pub fn is_opaque(self, entry: &Stored<'_>) -> Result<bool> {
        let Stored { tree, meta, .. } = entry;
        match self {
            _ if !meta.is_dir() => Ok(false),
            Self::Overlay(_) => Ok(self.of(entry, "opaque")?.as_deref() == Some(OPAQUE)),
            Self::Whole => Ok(false),
            Self::Aufs => has_opaque_file(self, *tree, &entry.path()),
            Self::FuseOverlay => is_fuse_opaque(*tree, &entry.path(), meta.bare),
        }
    }

    /// Whether a layer's root hides the roots of all layers below.
    ///
    /// # Errors
    /// Where what tells could not be read.
    pub fn is_opaque_root(self, tree: &dyn LayerTree) -> Result<bool> {
        match self {
            Self::Overlay(_) | Self::Aufs | Self::Whole => Ok(false),
            Self::FuseOverlay => is_fuse_opaque(tree, &TreePath::root(), false),
        }
    }

    /// Whether the directory, of which no more is known, bears an attribute that makes it opaque. A mark that is a file
    /// is for who lists the directory to see.
    ///
    /// # Errors
    /// Where the attribute that tells could not be read.
    pub fn has_opaque_attribute(self, tree: &dyn LayerTree, dir: &TreePath) -> Result<bool> {
        match self {
            Self::Overlay(_) => Ok(self.own(tree, dir, "opaque")?.as_deref() == Some(OPAQUE)),
            Self::Aufs | Self::Whole => Ok(false),
            Self::FuseOverlay => Ok(fuse_opaque_attribute(tree, dir)? == Some(true)),
        }
    }

    /// Where lower layers are searched instead, if anywhere else.
    ///
    /// # Errors
    /// [`Error::Refused`] with `EINVAL` for a value that the kernel calls invalid: empty, relative with a slash,
    /// absolute with an empty component.
    pub fn redirect(self, entry: &Stored<'_>) -> Result<Option<Redirect>> {
        match self.of(entry, "redirect")? {
            Some(value) => Redirect::parse(&value).map(Some).ok_or_else(|| Error::Refused {
                what: format!("{:?}", entry.path()),
                why: format!("its redirect {:?} is malformed", String::from_utf8_lossy(&value)).into(),
                errno: Errno::INVAL,
            }),
            None => Ok(None),
        }
    }

    /// Whether the file holds attributes only and its data lies in a lower layer.
    ///
    /// # Errors
    /// [`Error::Refused`] with `EIO` for a value that is too short.
    pub fn is_metacopy(self, entry: &Stored<'_>) -> Result<bool> {
        if entry.meta.kind != Kind::Regular {
            return Ok(false);
        }
        match self.of(entry, "metacopy")? {
            None => Ok(false),
            Some(value) if value.is_empty() || value.len() >= METACOPY_HEADER => Ok(true),
            Some(_) => Err(Error::Refused {
                what: format!("{:?}", entry.path()),
                why: "its metacopy attribute is too short".into(),
                errno: Errno::IO,
            }),
        }
    }

    /// The name under which users see a stored attribute; `None` for the private ones.
    #[must_use]
    pub fn shown_xattr(self, stored: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Overlay(prefix) => match stored.strip_prefix(prefix.as_bytes()) {
                None => Some(stored.to_vec()),
                Some(own) => own.strip_prefix(b"overlay.").map(|escaped| [prefix.as_bytes(), escaped].concat()),
            },
            Self::Aufs | Self::Whole => Some(stored.to_vec()),
            Self::FuseOverlay => {
                let is_private = FUSE_PRIVATE.iter().any(|prefix| stored.starts_with(prefix));
                (!is_private).then(|| stored.to_vec())
            }
        }
    }

    /// The name under which an attribute is stored that users see as `shown`; `None` where they see none of that name.
    #[must_use]
    pub fn stored_xattr(self, shown: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Overlay(prefix) => match shown.strip_prefix(prefix.as_bytes()) {
                None => Some(shown.to_vec()),
                Some(rest) => Some([prefix.as_bytes(), b"overlay.", rest].concat()),
            },
            // Nothing is escaped.
            Self::Aufs | Self::FuseOverlay | Self::Whole => self.shown_xattr(shown),
        }
    }
}

/// Whether the entry is the device that stands for nothing.
fn is_device_zero(meta: &Meta) -> bool {
    meta.kind == Kind::CharDevice && meta.rdev == DeviceNumber { major: 0, minor: 0 }
}

/// An attribute that was asked for. Of `user.` ones, those that this process may not read are taken for none.
fn readable(prefix: Prefix, answer: Result<Option<Vec<u8>>>) -> Result<Option<Vec<u8>>> {
    match answer {
        Err(error) if prefix == Prefix::User && error.errno() == Errno::ACCESS => Ok(None),
        answer => answer,
    }
}

/// Whether a directory is opaque by an attribute as fuse-overlayfs sees it, by the first byte of the first one that there
/// is; `None` where there is none.
fn fuse_opaque_attribute(tree: &dyn LayerTree, dir: &TreePath) -> Result<Option<bool>> {
    for name in FUSE_OPAQUE {
        let prefix = if name.starts_with(b"user.") { Prefix::User } else { Prefix::Trusted };
        if let Some(value) = readable(prefix, tree.xattr(dir, name))? {
            return Ok(Some(value.first() == OPAQUE.first()));
        }
    }
    Ok(None)
}

/// Whether a directory is opaque as fuse-overlayfs sees it. Its file counts only where there is no attribute.
fn is_fuse_opaque(tree: &dyn LayerTree, dir: &TreePath, bare: bool) -> Result<bool> {
    let attribute = if bare { None } else { fuse_opaque_attribute(tree, dir)? };
    match attribute {
        Some(is_opaque) => Ok(is_opaque),
        None => has_opaque_file(Whiteouts::FuseOverlay, tree, dir),
    }
}

/// Whether the directory holds the file that makes it opaque.
fn has_opaque_file(whiteouts: Whiteouts, tree: &dyn LayerTree, dir: &TreePath) -> Result<bool> {
    let Some(name) = Name::new(OCI_OPAQUE) else { return Ok(false) };
    match tree.stat(&dir.join(&name))? {
        Some(mark) => whiteouts.check_mark(dir, &name, &mark).map(|()| true),
        None => Ok(false),
    }
}

impl Redirect {
    /// Reads a stored value as `ovl_get_redirect_xattr()` does; `None` where that says `EINVAL`, and for values so long
    /// that following them would keep a thread busy for minutes.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        if value.is_empty() || value.len() > REDIRECT_MAX {
            return None;
        }
        // The kernel treats the value as a string: it ends at a NUL.
        let text = value.split(|b| *b == 0).next().unwrap_or_default();
        match text.strip_prefix(b"/") {
            Some(path) => {
                let parts: Vec<Vec<u8>> = path.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
                let is_path = parts.len() <= REDIRECT_DEPTH && parts.iter().all(|part| !part.is_empty());
                is_path.then_some(Self::Absolute(parts))
            }
            None if text.contains(&b'/') => None,
            None => Some(Self::Sibling(text.to_vec())),
        }
    }
}

/// The name of the deletion mark of `name` in OCI's form.
#[must_use]
pub fn oci_mark(name: &Name) -> Option<Name> {
    Name::new(&[OCI_WHITEOUT, name.as_bytes()].concat())
}

/// The name that a mark in OCI's form deletes; `None` where `mark` is none.
#[must_use]
pub fn oci_marked(mark: &Name) -> Option<Name> {
    mark.as_bytes().strip_prefix(OCI_WHITEOUT).and_then(Name::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Timestamp;

    #[test]
    fn redirects_as_the_kernel_reads_them() {
        let parts = |list: &[&[u8]]| Some(Redirect::Absolute(list.iter().map(|p| p.to_vec()).collect()));
        for (value, expected) in [
            (&b""[..], None),
            (b"a", Some(Redirect::Sibling(b"a".to_vec()))),
            (b"..", Some(Redirect::Sibling(b"..".to_vec()))),
            (b"a\0b", Some(Redirect::Sibling(b"a".to_vec()))),
            (b"\0", Some(Redirect::Sibling(Vec::new()))),
            (b"a/b", None),
            (b"/", None),
            (b"//a", None),
            (b"/a/", None),
            (b"/a//b", None),
            (b"/a", parts(&[b"a"])),
            (b"/a/../b", parts(&[b"a", b"..", b"b"])),
        ] {
            assert_eq!(Redirect::parse(value), expected, "{:?}", String::from_utf8_lossy(value));
        }
    }

    #[test]
    fn what_ends_the_search_below_it() {
        let trusted = Whiteouts::Overlay(Prefix::Trusted);
        let ends =
            |kind, bare| trusted.ends_search(&Meta { bare, ..Meta::made_up(kind, 0o644, Timestamp::default(), 0) });
        for kind in [Kind::CharDevice, Kind::BlockDevice, Kind::Symlink, Kind::Fifo, Kind::Socket] {
            assert!(ends(kind, false) && ends(kind, true), "{kind:?}");
        }
        // It may be a metacopy, and a directory's entries are merged.
        assert!(!ends(Kind::Regular, false) && ends(Kind::Regular, true));
        assert!(!ends(Kind::Directory, false) && !ends(Kind::Directory, true));
    }

    #[test]
    fn private_attributes_are_hidden_and_escaped_ones_shown() {
        let trusted = Whiteouts::Overlay(Prefix::Trusted);
        for (stored, shown) in [
            (&b"user.x"[..], Some(&b"user.x"[..])),
            (b"trusted.x", Some(b"trusted.x")),
            (b"user.overlay.opaque", Some(b"user.overlay.opaque")),
            (b"trusted.overlay.opaque", None),
            (b"trusted.overlay.whatever", None),
            (b"trusted.overlay.overlay.opaque", Some(b"trusted.overlay.opaque")),
            (b"trusted.overlay.overlay.overlay.x", Some(b"trusted.overlay.overlay.x")),
        ] {
            assert_eq!(trusted.shown_xattr(stored).as_deref(), shown);
            if let Some(shown) = shown {
                assert_eq!(trusted.stored_xattr(shown).as_deref(), Some(stored));
            }
        }
        let user = Whiteouts::Overlay(Prefix::User);
        assert_eq!(user.shown_xattr(b"user.overlay.opaque"), None);
        assert_eq!(user.shown_xattr(b"trusted.overlay.opaque").as_deref(), Some(&b"trusted.overlay.opaque"[..]));
    }
}
