//! Inode numbers: the same file has the same number in every mount, and two files never share one.
//!
//! A number is cut from a hash of what tells the file from others ([`Key`]), so it needs no table on disk. Two keys
//! whose numbers collide — not seen in practice with 63 bits — get different ones: the second takes the next number of
//! its own sequence for as long as the first is held.
//!
//! The table holds what the kernel holds: an entry lives from the first lookup to the last forget.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::name::Name;
use crate::view::{Form, Identity, Node};

/// The number of the root (`FUSE_ROOT_ID`).
pub const ROOT: u64 = 1;
/// The table is made smaller when it is filled less than one part in this many.
const SPARSE: usize = 4;
/// Tables of fewer entries are left as they are.
const SMALL: usize = 1024;

/// What tells a node from all others, for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 16]);

impl Key {
    /// The root's key.
    #[must_use]
    pub fn root() -> Self {
        Self::of(|hash| hash.update(b"root"))
    }

    /// The key of a node that stands at this name of a directory.
    #[must_use]
    pub fn child(parent: Self, name: &Name, node: &Node) -> Self {
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

    /// The key of one of the files that had the number of this one in turn, told apart by their generations; this one's
    /// for zero. The kernel refuses to read on in an inode whose number is another file's by now (`EIO`), so each has a
    /// number of its own.
    #[must_use]
    pub fn of_generation(self, generation: u64) -> Self {
        if generation == 0 {
            return self;
        }
        Self::of(|hash| {
            hash.update(b"generation");
            hash.update(self.0);
            hash.update(generation.to_le_bytes());
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

/// A node that the kernel holds, or is about to.
#[derive(Debug)]
pub struct Held {
    key: Key,
    node: Node,
    /// The directory in which it was found first.
    parent: u64,
    /// Tells the node from another that had the number before.
    generation: u64,
    /// How many lookups the kernel has yet to forget; changed under the table's lock only.
    lookups: AtomicU64,
}

impl Held {
    /// A node that was found in the directory of this number; `generation` tells it from another that had its number.
    #[must_use]
    pub fn new(key: Key, node: Node, parent: u64, generation: u64) -> Self {
        Self { key, node, parent, generation, lookups: AtomicU64::new(0) }
    }

    /// What tells the node from all others.
    #[must_use]
    pub fn key(&self) -> Key {
        self.key
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The number of the directory in which it was found first.
    #[must_use]
    pub fn parent(&self) -> u64 {
        self.parent
    }

    /// What tells the node from another that had its number before; zero where that cannot be.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::Relaxed)
    }

    fn set_lookups(&self, lookups: u64) {
        self.lookups.store(lookups, Ordering::Relaxed);
    }

    fn count(&self) {
        self.set_lookups(self.lookups().saturating_add(1));
    }
}

/// The hash of a number: itself, as it is cut from a SHA-256. Who makes a store with numbers that agree in the bits that
/// the table looks at pays a hundred thousand hashes for each, and makes walks of that store slower, nothing else.
#[derive(Debug, Default)]
struct Itself(u64);

impl Hasher for Itself {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Numbers come by `write_u64`; this is for completeness.
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

#[derive(Debug, Default)]
struct Table {
    inodes: HashMap<u64, Arc<Held>, BuildHasherDefault<Itself>>,
    /// Keys that do not have their first number.
    moved: HashMap<Key, u64>,
}

/// All nodes that the kernel holds.
#[derive(Debug)]
pub struct Inodes {
    /// Guards the table; held for single look-ups and changes only.
    table: Mutex<Table>,
}

impl Inodes {
    /// The table of a mount with this root.
    #[must_use]
    pub fn new(root: Node) -> Self {
        let mut table = Table::default();
        table.inodes.insert(ROOT, Arc::new(Held::new(Key::root(), root, ROOT, 0)));
        Self { table: Mutex::new(table) }
    }

    /// The node that the kernel means by a number.
    #[must_use]
    pub fn get(&self, number: u64) -> Option<Arc<Held>> {
        self.table.lock().inodes.get(&number).cloned()
    }

    /// Counts one lookup of a node and answers its number.
    pub fn remember(&self, held: &Arc<Held>) -> u64 {
        let mut table = self.table.lock();
        let number = table.number_of(held.key);
        match table.inodes.entry(number) {
            Entry::Occupied(entry) if !held.node.changes() => entry.get().count(),
            // What the node is made of may have changed since the last lookup.
            Entry::Occupied(mut entry) => {
                held.set_lookups(entry.get().lookups());
                entry.insert(Arc::clone(held));
                held.count();
            }
            Entry::Vacant(entry) => {
                held.set_lookups(1);
                entry.insert(Arc::clone(held));
            }
        }
        number
    }

    /// The number that a node has, or will have, without counting a lookup.
    #[must_use]
    pub fn number_of(&self, key: Key) -> u64 {
        self.table.lock().number_of(key)
    }

    /// Takes back `count` lookups; answers the key of a node that the kernel no longer holds.
    pub fn forget(&self, number: u64, count: u64) -> Option<Key> {
        if number == ROOT {
            return None;
        }
        let mut table = self.table.lock();
        let Entry::Occupied(entry) = table.inodes.entry(number) else { return None };
        let left = entry.get().lookups().saturating_sub(count);
        entry.get().set_lookups(left);
        if left > 0 {
            return None;
        }
        let held = entry.remove();
        if !table.moved.is_empty() {
            table.moved.remove(&held.key);
        }
        let (filled, room) = (table.inodes.len(), table.inodes.capacity());
        if room > SMALL && filled < room / SPARSE {
            table.inodes.shrink_to(filled.saturating_mul(2));
            drop(table);
            crate::sys::release_memory();
        }
        Some(held.key)
    }

    /// How many nodes the kernel holds, the root among them.
    #[must_use]
    pub fn count(&self) -> usize {
        self.table.lock().inodes.len()
    }

    /// How many bytes of heap the table and its nodes take, without what nodes share: the paths of directories, and the
    /// layers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        /// A key, a value, and a byte by which the table finds them.
        const PLACE: usize = size_of::<(u64, Arc<Held>)>() + 1;
        /// A node, and its two counts of references.
        const NODE: usize = size_of::<Held>() + 2 * size_of::<usize>();
        let table = self.table.lock();
        table.inodes.capacity().saturating_mul(PLACE).saturating_add(table.inodes.len().saturating_mul(NODE))
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
                Some(other) if other.key != key || number == ROOT => attempt = attempt.wrapping_add(1),
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

    fn node(text: &str) -> Node {
        Node::Text(Box::new(Text::ready(text.as_bytes().to_vec(), Timestamp::default())))
    }

    fn held(key: Key, text: &str) -> Arc<Held> {
        Arc::new(Held::new(key, node(text), ROOT, 0))
    }

    fn table() -> Inodes {
        Inodes::new(node("root"))
    }

    fn key(low: u64, high: u64) -> Key {
        Key((u128::from(low) | u128::from(high) << 64).to_le_bytes())
    }

    #[test]
    fn numbers_that_collide_are_told_apart_while_both_are_held() {
        let inodes = table();
        let (first, second) = (key(1000, 1), key(1000, 2));
        let a = inodes.remember(&held(first, "a"));
        let b = inodes.remember(&held(second, "b"));
        assert_eq!(a, 1000);
        assert_ne!(a, b);
        assert_eq!(inodes.remember(&held(second, "b")), b);
        assert_eq!(inodes.get(a).map(|held| held.key), Some(first));
        assert_eq!(inodes.get(b).map(|held| held.key), Some(second));
        // The one that moved keeps its number when the other is gone.
        inodes.forget(a, 1);
        assert_eq!(inodes.remember(&held(second, "b")), b);
        assert_eq!(inodes.remember(&held(first, "a")), a);
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
    fn files_that_had_one_number_in_turn_have_numbers_of_their_own() {
        let file = key(1000, 1);
        assert_eq!(file.of_generation(0), file);
        let inodes = table();
        let numbers: std::collections::BTreeSet<u64> =
            (0..10).map(|generation| inodes.number_of(file.of_generation(generation))).collect();
        assert_eq!(numbers.len(), 10);
    }

    #[test]
    fn what_is_forgotten_leaves_the_table() {
        let inodes = table();
        let numbers: Vec<u64> = (0..10_000).map(|low| inodes.remember(&held(key(low + 2, 0), "x"))).collect();
        assert_eq!(inodes.count(), 10_001);
        for number in numbers {
            inodes.forget(number, 1);
        }
        inodes.forget(ROOT, 5);
        assert_eq!(inodes.count(), 1);
        assert!(inodes.table.lock().inodes.capacity() < 10_000);
    }
}
