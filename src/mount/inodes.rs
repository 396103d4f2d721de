//! Inode numbers: the same file has the same number in every mount, and two files never share one.
//!
//! A number is cut from a hash of what tells the file from others ([`Key`]), so it needs no table on disk. Two keys
//! whose numbers collide — not seen in practice with 63 bits — get different ones: the second takes the next number of
//! its own sequence for as long as the first is held.
//!
//! The table holds what the kernel holds: an entry lives from the first lookup to the last forget.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::name::Name;
use crate::view::{Form, Identity, Node};

/// The number of the root (`FUSE_ROOT_ID`).
pub(super) const ROOT: u64 = 1;
/// The table is made smaller when it is filled less than one part in this many.
const SPARSE: usize = 4;
/// Tables of fewer entries are left as they are.
const SMALL: usize = 1024;

/// What tells a node from all others, for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 16]);

impl Key {
    /// The root's key.
    pub(super) fn root() -> Self {
        Self::of(|hash| hash.update(b"root"))
    }

    /// The key of a node that stands at this name of a directory.
    pub(super) fn child(parent: Self, name: &Name, node: &Node) -> Self {
        Self::of(|hash| match node.identity() {
            Identity::File { layer, inode, data, form } => {
                hash.update(match form {
                    Form::Oci => b"file",
                    Form::Stored => b"kept",
                });
                hash.update(layer.as_bytes());
                hash.update(inode.to_le_bytes());
                if let Some((layer, inode)) = data {
                    hash.update(layer);
                    hash.update(inode.to_le_bytes());
                }
            }
            Identity::Path(identity) => {
                hash.update(b"path");
                hash.update(parent.0);
                hash.update(name.as_bytes());
                hash.update([0]);
                hash.update(identity);
            }
        })
    }

    fn of(fill: impl FnOnce(&mut Sha256)) -> Self {
        let mut hash = Sha256::new();
        fill(&mut hash);
        let mut key = [0; 16];
        for (to, from) in key.iter_mut().zip(hash.finalize()) {
            *to = from;
        }
        Self(key)
    }

    /// The number that the key has where it is free; `attempt` counts from zero.
    fn number(self, attempt: u32) -> u64 {
        let whole = u128::from_le_bytes(self.0).rotate_right(attempt.wrapping_mul(7));
        let low = u64::try_from(whole & u128::from(u64::MAX >> 1)).unwrap_or_default();
        // 0 means "no inode", 1 is the root.
        low.wrapping_add(u64::from(attempt)).max(ROOT + 1)
    }
}

/// A node that the kernel holds.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) key: Key,
    pub(super) node: Arc<Node>,
    /// The directory in which it was found first.
    pub(super) parent: u64,
}

#[derive(Debug)]
struct Inode {
    held: Held,
    /// How many lookups the kernel has yet to forget.
    lookups: u64,
}

#[derive(Debug, Default)]
struct Table {
    inodes: HashMap<u64, Inode>,
    /// Keys that do not have their first number.
    moved: HashMap<Key, u64>,
}

/// All nodes that the kernel holds.
#[derive(Debug)]
pub(super) struct Inodes {
    /// Guards the table; held for single look-ups and changes only.
    table: Mutex<Table>,
}

impl Inodes {
    pub(super) fn new(root: Node) -> Self {
        let held = Held { key: Key::root(), node: Arc::new(root), parent: ROOT };
        let inodes = HashMap::from([(ROOT, Inode { held, lookups: 1 })]);
        Self { table: Mutex::new(Table { inodes, moved: HashMap::new() }) }
    }

    /// The node that the kernel means by a number.
    pub(super) fn get(&self, number: u64) -> Option<Held> {
        self.table.lock().inodes.get(&number).map(|inode| inode.held.clone())
    }

    /// Counts one lookup of a node and answers its number.
    pub(super) fn remember(&self, key: Key, node: &Arc<Node>, parent: u64) -> u64 {
        let mut table = self.table.lock();
        let number = table.number_of(key);
        match table.inodes.entry(number) {
            Entry::Occupied(mut entry) => {
                let inode = entry.get_mut();
                inode.lookups = inode.lookups.saturating_add(1);
                if node.changes() {
                    // What the node is made of may have changed since the last lookup.
                    inode.held.node = Arc::clone(node);
                }
            }
            Entry::Vacant(entry) => {
                entry.insert(Inode { held: Held { key, node: Arc::clone(node), parent }, lookups: 1 });
            }
        }
        number
    }

    /// The number that a node has, or will have, without counting a lookup.
    pub(super) fn number_of(&self, key: Key) -> u64 {
        self.table.lock().number_of(key)
    }

    /// Takes back `count` lookups; answers the key of a node that the kernel no longer holds.
    pub(super) fn forget(&self, number: u64, count: u64) -> Option<Key> {
        if number == ROOT {
            return None;
        }
        let mut table = self.table.lock();
        let Entry::Occupied(mut entry) = table.inodes.entry(number) else { return None };
        let left = entry.get().lookups.saturating_sub(count);
        entry.get_mut().lookups = left;
        if left > 0 {
            return None;
        }
        let inode = entry.remove();
        if !table.moved.is_empty() {
            table.moved.remove(&inode.held.key);
        }
        let (filled, room) = (table.inodes.len(), table.inodes.capacity());
        if room > SMALL && filled < room / SPARSE {
            table.inodes.shrink_to(filled.saturating_mul(2));
            drop(table);
            crate::sys::release_memory();
        }
        Some(inode.held.key)
    }

    /// How many nodes the kernel holds.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.table.lock().inodes.len()
    }
}

impl Table {
    fn number_of(&mut self, key: Key) -> u64 {
        if !self.moved.is_empty()
            && let Some(number) = self.moved.get(&key)
        {
            return *number;
        }
        let mut attempt = 0;
        loop {
            let number = key.number(attempt);
            match self.inodes.get(&number) {
                Some(other) if other.held.key != key || number == ROOT => attempt = attempt.wrapping_add(1),
                Some(_) => return number,
                None => {
                    if attempt > 0 {
                        self.moved.insert(key, number);
                    }
                    return number;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Timestamp;
    use crate::view::Text;

    fn node(text: &str) -> Arc<Node> {
        Arc::new(Node::Text(Text::ready(text.as_bytes().to_vec(), Timestamp::default())))
    }

    fn table() -> Inodes {
        Inodes::new(Node::clone(&node("root")))
    }

    fn key(low: u64, high: u64) -> Key {
        Key((u128::from(low) | u128::from(high) << 64).to_le_bytes())
    }

    #[test]
    fn numbers_that_collide_are_told_apart_while_both_are_held() {
        let inodes = table();
        let (first, second) = (key(1000, 1), key(1000, 2));
        let a = inodes.remember(first, &node("a"), ROOT);
        let b = inodes.remember(second, &node("b"), ROOT);
        assert_eq!(a, 1000);
        assert_ne!(a, b);
        assert_eq!(inodes.remember(second, &node("b"), ROOT), b);
        assert_eq!(inodes.get(a).map(|held| held.key), Some(first));
        assert_eq!(inodes.get(b).map(|held| held.key), Some(second));
        // The one that moved keeps its number when the other is gone.
        inodes.forget(a, 1);
        assert_eq!(inodes.remember(second, &node("b"), ROOT), b);
        assert_eq!(inodes.remember(first, &node("a"), ROOT), a);
        inodes.forget(b, 3);
        assert!(inodes.get(b).is_none());
        assert_eq!(inodes.table.lock().moved.len(), 0);
    }

    #[test]
    fn the_numbers_of_root_and_of_nothing_are_never_given() {
        let inodes = table();
        for low in [0, 1, 1 << 63] {
            for high in [0, 1, u64::MAX] {
                assert!(inodes.number_of(key(low, high)) > ROOT);
            }
        }
    }

    #[test]
    fn what_is_forgotten_leaves_the_table() {
        let inodes = table();
        let numbers: Vec<u64> = (0..10_000).map(|low| inodes.remember(key(low + 2, 0), &node("x"), ROOT)).collect();
        assert_eq!(inodes.len(), 10_001);
        for number in numbers {
            inodes.forget(number, 1);
        }
        inodes.forget(ROOT, 5);
        assert_eq!(inodes.len(), 1);
        assert!(inodes.table.lock().inodes.capacity() < 10_000);
    }
}
