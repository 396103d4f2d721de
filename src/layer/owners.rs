//! A layer whose owners are shown as its containers see them, where a user namespace gives them other numbers than the
//! disk has (user_namespaces(7)).
//!
//! ```text
//! owner and group                     the number in the namespace; 65534 where it has none there
//! users and groups of ACLs            the same; no entry for who has none there: the kernel shows one of 4294967295, which
//!                                     it takes from no FUSE server, and which concerns nobody
//! security.capability, revision 3     of the namespace's root: as revision 2; of another user in it: with that user's
//!                                     number; of one who has none there: EOVERFLOW (`cap_inode_getsecurity()`)
//! security.capability, revision 2     as stored: it counts for all namespaces
//! ```
//!
//! All else is as stored: also attributes (`trusted.*`) that the kernel denies to who is in a namespace.

use std::borrow::Cow;
use std::sync::Arc;

use rustix::io::Errno;

use super::retold::{Retell, Retold};
use super::{LayerTree, ReadAt};
use crate::error::{Error, Result};
use crate::meta::{FileId, Meta};
use crate::name::{Name, TreePath};
use crate::root::Space;

/// What the kernel shows for who has no number in a namespace (`/proc/sys/kernel/overflowuid`, as it is by default).
const OVERFLOW: u32 = 65_534;
/// The number that is nobody's.
const NOBODY: u32 = u32::MAX;
/// The attributes that are ACLs.
const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
/// `POSIX_ACL_XATTR_VERSION`, which is before the entries.
const ACL_VERSION: [u8; 4] = [2, 0, 0, 0];
/// The bytes of an entry: tag, permissions, number.
const ACL_ENTRY: usize = 8;
/// `ACL_USER` and `ACL_GROUP`.
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;
const CAPABILITY: &[u8] = b"security.capability";
/// `VFS_CAP_REVISION_MASK`, `VFS_CAP_REVISION_2`, `VFS_CAP_REVISION_3`.
const REVISION_MASK: u32 = 0xff00_0000;
const REVISION_2: u32 = 0x0200_0000;
const REVISION_3: u32 = 0x0300_0000;
/// Where the number of the namespace's root is in revision 3, which ends with it.
const ROOT_AT: usize = 20;

/// A range of numbers in a namespace, and what they are outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first one inside.
    pub inside: u32,
    /// The first one outside.
    pub outside: u32,
    /// How many there are.
    pub count: u32,
}

/// The numbers of users and groups in a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnerMap {
    /// Of users.
    pub users: Vec<Range>,
    /// Of groups.
    pub groups: Vec<Range>,
}

/// The number inside, where there is one.
fn inside(ranges: &[Range], outside: u32) -> Option<u32> {
    let within = |range: &Range| {
        let offset = outside.checked_sub(range.outside).filter(|offset| *offset < range.count)?;
        range.inside.checked_add(offset)
    };
    ranges.iter().find_map(within)
}

impl OwnerMap {
    /// The numbers from these on, without an end.
    #[must_use]
    pub fn from(user: u32, group: u32) -> Self {
        let all_from = |outside: u32| vec![Range { inside: 0, outside, count: NOBODY.saturating_sub(outside) }];
        Self { users: all_from(user), groups: all_from(group) }
    }

    /// The other way round: what numbers in the namespace are outside of it.
    #[must_use]
    pub fn outward(&self) -> Self {
        let turn = |ranges: &[Range]| {
            let turned = |range: &Range| Range { inside: range.outside, outside: range.inside, count: range.count };
            ranges.iter().map(turned).collect()
        };
        Self { users: turn(&self.users), groups: turn(&self.groups) }
    }

    fn meta(&self, stored: Meta) -> Meta {
        let uid = inside(&self.users, stored.uid).unwrap_or(OVERFLOW);
        let gid = inside(&self.groups, stored.gid).unwrap_or(OVERFLOW);
        Meta { uid, gid, ..stored }
    }

    /// An ACL; one that is malformed is as stored.
    fn acl(&self, value: Vec<u8>) -> Vec<u8> {
        let Some((version, entries)) = value.split_first_chunk::<4>() else { return value };
        let (entries, rest) = entries.as_chunks::<ACL_ENTRY>();
        if *version != ACL_VERSION || !rest.is_empty() {
            return value;
        }
        let seen = |entry: &[u8; ACL_ENTRY]| {
            let [tag_low, tag_high, low, high, number @ ..] = *entry;
            let ranges = match u16::from_le_bytes([tag_low, tag_high]) {
                ACL_USER => &self.users,
                ACL_GROUP => &self.groups,
                _ => return Some(*entry),
            };
            let [a, b, c, d] = inside(ranges, u32::from_le_bytes(number))?.to_le_bytes();
            Some([tag_low, tag_high, low, high, a, b, c, d])
        };
        ACL_VERSION.into_iter().chain(entries.iter().filter_map(seen).flatten()).collect()
    }

    /// The value of `security.capability`; `None` where the kernel tells nothing of it. One that is malformed is as stored.
    fn capability(&self, mut value: Vec<u8>) -> Option<Vec<u8>> {
        let magic = value.first_chunk::<4>().map(|magic| u32::from_le_bytes(*magic)).unwrap_or_default();
        let root = value.get(ROOT_AT..).and_then(|root| <[u8; 4]>::try_from(root).ok()).map(u32::from_le_bytes);
        let Some(root) = root.filter(|_| magic & REVISION_MASK == REVISION_3) else { return Some(value) };
        match (inside(&self.users, root), root) {
            (Some(0), _) | (None, 0) => {
                // As a file that has it in a namespace around this one.
                let as_revision_2 = (magic & !REVISION_MASK) | REVISION_2;
                value.truncate(ROOT_AT);
                value.splice(..4, as_revision_2.to_le_bytes());
                Some(value)
            }
            (Some(user), _) => {
                value.splice(ROOT_AT.., user.to_le_bytes());
                Some(value)
            }
            (None, _) => None,
        }
    }
}

/// A tree with owners as they are seen in a namespace.
#[derive(Debug)]
pub(super) struct OwnedTree {
    stored: Box<dyn LayerTree>,
    owners: Arc<OwnerMap>,
}

impl OwnedTree {
    pub(super) fn new(stored: Box<dyn LayerTree>, owners: Arc<OwnerMap>) -> Self {
        Self { stored, owners }
    }
}

impl LayerTree for OwnedTree {
    fn stat(&self, path: &TreePath) -> Result<Option<Meta>> {
        Ok(self.stored.stat(path)?.map(|stored| self.owners.meta(stored)))
    }

    fn list(&self, dir: &TreePath, wanted: &dyn Fn(&Name) -> bool) -> Result<Vec<(Name, Meta)>> {
        let mut listed = self.stored.list(dir, wanted)?;
        for (_, meta) in &mut listed {
            *meta = self.owners.meta(*meta);
        }
        Ok(listed)
    }

    fn open(&self, file: &TreePath) -> Result<Box<dyn ReadAt>> {
        Ok(Box::new(Retold::new(self.stored.open(file)?, Arc::clone(&self.owners))))
    }

    fn read_link(&self, link: &TreePath) -> Result<Vec<u8>> {
        self.stored.read_link(link)
    }

    fn xattr(&self, path: &TreePath, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some(stored) = self.stored.xattr(path, name)? else { return Ok(None) };
        if ACLS.contains(&name) {
            return Ok(Some(self.owners.acl(stored)));
        }
        if name == CAPABILITY {
            let text = || String::from_utf8_lossy(name);
            let doing = || format!("tell {} of {path:?}: of no user of the containers", Cow::into_owned(text()));
            return self.owners.capability(stored).map(Some).ok_or_else(|| Error::io(doing)(Errno::OVERFLOW));
        }
        Ok(Some(stored))
    }

    fn xattr_names(&self, path: &TreePath) -> Result<Vec<Vec<u8>>> {
        self.stored.xattr_names(path)
    }

    fn space(&self) -> Result<Space> {
        self.stored.space()
    }

    fn expect(&mut self, root: FileId) {
        self.stored.expect(root);
    }
}

impl Retell for Arc<OwnerMap> {
    fn retell(&self, stored: Meta) -> Meta {
        self.meta(stored)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::mem::MemTree;
    use super::*;
    use crate::meta::Kind;

    fn tree(uid: u32, gid: u32, xattrs: &[(&[u8], Vec<u8>)], owners: OwnerMap) -> OwnedTree {
        let mut tree = MemTree::default();
        tree.put(TreePath::root(), Kind::Directory, b"");
        let file = tree.put(TreePath::new(b"f").unwrap(), Kind::Regular, b"");
        (file.meta.uid, file.meta.gid) = (uid, gid);
        file.xattrs.extend(xattrs.iter().map(|(name, value)| (name.to_vec(), value.clone())));
        OwnedTree::new(Box::new(tree), Arc::new(owners))
    }

    #[test]
    fn numbers_are_those_of_the_namespace() {
        let two = OwnerMap {
            users: vec![
                Range { inside: 0, outside: 1000, count: 1 },
                Range { inside: 1, outside: 100_000, count: 65_536 },
            ],
            groups: vec![Range { inside: 5, outside: 0, count: 10 }],
        };
        for (map, stored, seen) in [
            (OwnerMap::from(100_000, 200_000), (100_000, 200_000), (0, 0)),
            (OwnerMap::from(100_000, 200_000), (101_000, 200_007), (1000, 7)),
            (OwnerMap::from(100_000, 200_000), (99_999, 199_999), (OVERFLOW, OVERFLOW)),
            (OwnerMap::from(100_000, 200_000), (0, 4_294_967_294), (OVERFLOW, 4_294_767_294)),
            (OwnerMap::from(NOBODY, 0), (NOBODY, 9), (OVERFLOW, 9)),
            (two.clone(), (1000, 0), (0, 5)),
            (two.clone(), (165_535, 9), (65_536, 14)),
            (two.clone(), (165_536, 10), (OVERFLOW, OVERFLOW)),
            (two, (1001, 4), (OVERFLOW, 9)),
            (OwnerMap::default(), (0, 0), (OVERFLOW, OVERFLOW)),
        ] {
            let tree = tree(stored.0, stored.1, &[], map);
            let meta = tree.stat(&TreePath::new(b"f").unwrap()).unwrap().unwrap();
            assert_eq!((meta.uid, meta.gid), seen, "{stored:?}");
            assert_eq!(tree.list(&TreePath::root(), &|_| true).unwrap()[0].1, meta);
        }
    }

    #[test]
    fn malformed_attributes_are_as_stored() {
        let map = OwnerMap::from(1, 1);
        for value in [&b""[..], &[2, 0, 0], &[1, 0, 0, 0, 2, 0, 7, 0, 9, 0, 0, 0], &[2, 0, 0, 0, 2, 0, 7, 0, 9, 0, 0]] {
            assert_eq!(map.acl(value.to_vec()), value);
        }
        let mut long = vec![0; 25];
        long[3] = 3;
        for value in [vec![], vec![0, 0, 0, 3], vec![3; 20], long, vec![9; 24]] {
            assert_eq!(map.capability(value.clone()), Some(value));
        }
    }
}
