//! Names and paths inside a tree: bytes, never `..`.
//!
//! A [`Name`] is one component as POSIX has it (any bytes but `/` and NUL, not empty, not `.` or `..`); a [`TreePath`]
//! is a sequence of them below some root. Neither can be made from anything else, so code that holds one never needs
//! to ask again whether it leads outside. Nothing here touches a file system.

use std::cmp::Ordering;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use sha2::{Digest, Sha256};

/// The longest file name that the file systems below layers hold, in bytes (POSIX `NAME_MAX` on Linux).
pub const NAME_MAX: usize = 255;

/// One component of a path.
#[derive(Clone)]
pub struct Name(Bytes);

/// A name's bytes. Nine names in ten fit where the pointer to others would be, and then take no memory elsewhere.
#[derive(Clone)]
enum Bytes {
    Here { length: u8, bytes: [u8; HERE_MAX] },
    Elsewhere(Box<[u8]>),
}

/// As many as leave a [`Name`] at 24 bytes.
const HERE_MAX: usize = 22;

impl From<&[u8]> for Bytes {
    fn from(name: &[u8]) -> Self {
        let mut bytes = [0; HERE_MAX];
        match (u8::try_from(name.len()), bytes.get_mut(..name.len())) {
            (Ok(length), Some(place)) => {
                place.copy_from_slice(name);
                Self::Here { length, bytes }
            }
            _ => Self::Elsewhere(name.into()),
        }
    }
}

impl Name {
    /// The name with these bytes, unless they cannot be one component.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let unfit = bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.iter().any(|b| matches!(b, b'/' | 0));
        (!unfit).then(|| Self(bytes.into()))
    }

    /// A name for `text`, which may be no name at all or too long for one: what cannot stand is replaced.
    ///
    /// Text that is a name of at most [`NAME_MAX`] bytes stays as it is. Anything else becomes its first bytes, with
    /// `/` and NUL as `_`, then `~` and 16 hexadecimal digits of the SHA-256 of the whole, so that two different texts
    /// stay two names as long as the texts themselves hold no such suffix (image references and container names
    /// cannot hold `~`).
    #[must_use]
    pub fn escaped(text: &[u8]) -> Self {
        const KEPT: usize = 200;
        if let Some(name) = Self::new(text).filter(|name| name.as_bytes().len() <= NAME_MAX) {
            return name;
        }
        let mut bytes: Vec<u8> =
            text.iter().take(KEPT).map(|b| if matches!(b, b'/' | 0) { b'_' } else { *b }).collect();
        bytes.push(b'~');
        for byte in Sha256::digest(text).iter().take(8) {
            bytes.extend_from_slice(format!("{byte:02x}").as_bytes());
        }
        Self(bytes.as_slice().into())
    }

    /// The name's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Here { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Bytes::Elsewhere(bytes) => bytes,
        }
    }

    /// The name as the standard library's string of bytes.
    #[must_use]
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(self.as_bytes())
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Name {}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// By bytes.
impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}", self.as_os_str())
    }
}

/// A path below the root of a tree; the empty path is the root itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TreePath(Box<[u8]>);

impl TreePath {
    /// The root of a tree.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// The path of these components, separated by single slashes; `None` where one of them is no [`Name`].
    #[must_use]
    pub fn new(text: &[u8]) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::root());
        }
        text.split(|b| *b == b'/').all(|part| Name::new(part).is_some()).then(|| Self(text.into()))
    }

    /// Whether this is the root of its tree.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The path of `name` in this directory.
    #[must_use]
    pub fn join(&self, name: &Name) -> Self {
        self.concat(name.as_bytes())
    }

    /// The path that `below` has in this directory.
    #[must_use]
    pub fn join_path(&self, below: &Self) -> Self {
        if below.is_root() { self.clone() } else { self.concat(&below.0) }
    }

    fn concat(&self, below: &[u8]) -> Self {
        if self.is_root() {
            return Self(below.into());
        }
        let mut bytes = Vec::with_capacity(self.0.len().saturating_add(below.len()).saturating_add(1));
        bytes.extend_from_slice(&self.0);
        bytes.push(b'/');
        bytes.extend_from_slice(below);
        Self(bytes.into())
    }

    /// The directory that holds this path, and its name there; `None` for the root.
    #[must_use]
    pub fn split_last(&self) -> Option<(Self, Name)> {
        if self.is_root() {
            return None;
        }
        match self.0.iter().rposition(|b| *b == b'/') {
            Some(at) => {
                let (parent, rest) = self.0.split_at_checked(at)?;
                Some((Self(parent.into()), Name(rest.get(1..)?.into())))
            }
            None => Some((Self::root(), Name(self.0.as_ref().into()))),
        }
    }

    /// The components, from the root down.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|part| !part.is_empty())
    }

    /// The path's bytes, components separated by `/`, none in front.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path as the standard library's string of bytes.
    #[must_use]
    pub fn to_os_string(&self) -> OsString {
        OsString::from_vec(self.0.to_vec())
    }
}

impl From<Name> for TreePath {
    fn from(name: Name) -> Self {
        Self(name.as_bytes().into())
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}", OsStr::from_bytes(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_name() {
        for good in [&b"a"[..], b"...", b".wh.x", b"\xff\n", b"~", &[b'x'; 300]] {
            assert_eq!(Name::new(good).map(|n| n.as_bytes().to_vec()).as_deref(), Some(good));
        }
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0"] {
            assert_eq!(Name::new(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn names_of_all_lengths_are_small_and_sort_as_bytes() {
        assert_eq!(size_of::<Name>(), 24);
        let texts = (1..300).map(|length| vec![b'x'; length]);
        let names: Vec<Name> = texts.clone().map(|text| Name::new(&text).unwrap()).collect();
        assert!(names.iter().zip(texts).all(|(name, text)| name.as_bytes() == text));
        assert!(names.is_sorted_by(|one, next| one < next));
        assert!(Name::new(b"y").unwrap() > Name::new(&[b'x'; 200]).unwrap());
    }

    #[test]
    fn paths_join_and_split() {
        let path = TreePath::root().join(&Name::new(b"a").unwrap()).join(&Name::new(b"b").unwrap());
        assert_eq!(path.as_bytes(), b"a/b");
        assert_eq!(path.split_last(), Some((TreePath::new(b"a").unwrap(), Name::new(b"b").unwrap())));
        assert_eq!(TreePath::root().split_last(), None);
        assert_eq!(path.components().collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(TreePath::root().components().count(), 0);
        assert_eq!(TreePath::root().join_path(&path), path);
        assert_eq!(path.join_path(&TreePath::root()), path);
        for bad in [&b"/a"[..], b"a//b", b"a/", b"a/../b", b"./a"] {
            assert_eq!(TreePath::new(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn escaped_names_stand_and_stay_unique() {
        let mut texts: Vec<Vec<u8>> = vec![b"plain".to_vec(), b"".to_vec(), b".".to_vec(), b"..".to_vec()];
        texts.extend([b"a/b".to_vec(), b"a_b".to_vec(), b"a\0b".to_vec(), vec![b'x'; 255], vec![b'x'; 256]]);
        texts.extend([[vec![b'x'; 300], b"1".to_vec()].concat(), [vec![b'x'; 300], b"2".to_vec()].concat()]);
        let names: std::collections::BTreeSet<_> = texts.iter().map(|text| Name::escaped(text)).collect();
        assert_eq!(names.len(), texts.len());
        assert!(names.iter().all(|name| Name::new(name.as_bytes()).is_some() && name.as_bytes().len() <= NAME_MAX));
        assert_eq!(Name::escaped(b"plain").as_bytes(), b"plain");
    }
}
