//! How layers say what they delete, replace and move: every rule about whiteouts, opaque marks, redirects, metacopies
//! and private attributes, and nowhere else.
//!
//! The rules are kernel overlayfs' (`Documentation/filesystems/overlayfs.rst`; `fs/overlayfs/namei.c`, `util.c`,
//! `xattrs.c`), seen from a reader:
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

use rustix::io::Errno;

use super::LayerTree;
use crate::error::{Error, Result};
use crate::meta::{DeviceNumber, Kind, Meta};
use crate::name::{Name, TreePath};

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
    /// The prefix of the private attributes, where there are any.
    #[must_use]
    pub fn prefix(self) -> Option<Prefix> {
        match self {
            Self::Overlay(prefix) => Some(prefix),
            Self::Whole => None,
        }
    }

    /// Whether redirects are followed; with `userxattr` the kernel refuses them.
    #[must_use]
    pub fn follows_redirects(self) -> bool {
        self.prefix() == Some(Prefix::Trusted)
    }

    /// One of the private attributes. `user.` ones need read permission on the file; a file that this process may not
    /// read is taken to have none, as the kernel does with `userxattr`.
    fn own(self, tree: &dyn LayerTree, path: &TreePath, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(prefix) = self.prefix() else { return Ok(None) };
        match tree.xattr(path, &prefix.with(name)) {
            Err(error) if prefix == Prefix::User && error.errno() == Errno::ACCESS => Ok(None),
            answer => answer,
        }
    }

    /// One of the private attributes of an entry; one that is known to have no attributes is not asked.
    fn of(self, entry: &Stored<'_>, name: &str) -> Result<Option<Vec<u8>>> {
        if entry.meta.bare { Ok(None) } else { self.own(entry.tree, &entry.path(), name) }
    }

    /// Whether below this entry no layer has anything to say of its name, whatever attributes the entry has: files
    /// hide and whiteouts delete all below, unless they may be metacopies.
    #[must_use]
    pub fn ends_search(self, meta: &Meta) -> bool {
        match meta.kind {
            Kind::Directory => false,
            Kind::Regular => meta.bare || self == Self::Whole,
            Kind::CharDevice | Kind::Symlink | Kind::Fifo | Kind::Socket | Kind::BlockDevice => true,
        }
    }

    /// Whether the entry stands for a deletion.
    ///
    /// # Errors
    /// Where the attributes that tell could not be read.
    pub fn is_whiteout(self, entry: &Stored<'_>) -> Result<bool> {
        match entry.meta.kind {
            Kind::CharDevice => {
                let is_stored_as_one = self != Self::Whole || entry.meta.volume == 0;
                Ok(is_stored_as_one && entry.meta.rdev == DeviceNumber { major: 0, minor: 0 })
            }
            Kind::Regular if entry.meta.size_bytes == 0 => Ok(self.of(entry, "whiteout")?.is_some()),
            Kind::Regular | Kind::Directory | Kind::Symlink | Kind::Fifo | Kind::Socket | Kind::BlockDevice => {
                Ok(false)
            }
        }
    }

    /// Whether the entry is a directory that hides what lower layers have under its name. That a layer's root cannot is
    /// for the union to know: the root is never looked up.
    ///
    /// # Errors
    /// Where the attribute that tells could not be read.
    pub fn is_opaque(self, entry: &Stored<'_>) -> Result<bool> {
        Ok(entry.meta.is_dir() && self.of(entry, "opaque")?.as_deref() == Some(OPAQUE))
    }

    /// Whether the directory, of which no more is known, bears the mark of an opaque one.
    ///
    /// # Errors
    /// Where the attribute that tells could not be read.
    pub fn has_opaque_mark(self, tree: &dyn LayerTree, dir: &TreePath) -> Result<bool> {
        Ok(self.own(tree, dir, "opaque")?.as_deref() == Some(OPAQUE))
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
        let Some(prefix) = self.prefix().map(Prefix::as_bytes) else { return Some(stored.to_vec()) };
        match stored.strip_prefix(prefix) {
            None => Some(stored.to_vec()),
            Some(own) => own.strip_prefix(b"overlay.").map(|escaped| [prefix, escaped].concat()),
        }
    }

    /// The name under which an attribute is stored that users see as `shown`.
    #[must_use]
    pub fn stored_xattr(self, shown: &[u8]) -> Vec<u8> {
        let Some(prefix) = self.prefix().map(Prefix::as_bytes) else { return shown.to_vec() };
        match shown.strip_prefix(prefix) {
            None => shown.to_vec(),
            Some(rest) => [prefix, b"overlay.", rest].concat(),
        }
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
                assert_eq!(trusted.stored_xattr(shown), stored);
            }
        }
        let user = Whiteouts::Overlay(Prefix::User);
        assert_eq!(user.shown_xattr(b"user.overlay.opaque"), None);
        assert_eq!(user.shown_xattr(b"trusted.overlay.opaque").as_deref(), Some(&b"trusted.overlay.opaque"[..]));
    }
}
