//! A tree made on the spot, for the tests of this module: no store, no disk, no kernel.

use std::sync::Arc;

use super::inodes::{Held, Key, ROOT};
use super::listings::Listing;
use crate::error::Result;
use crate::meta::{Kind, Meta, Timestamp};
use crate::name::Name;
use crate::view::{Entry, Node, Section, Text};

/// What is done when a directory is listed.
type OnList = dyn Fn() + Send + Sync;

/// A directory with these names in it.
pub(super) struct Dir {
    entries: Vec<(Name, Entry)>,
    changes: bool,
    on_list: Option<Box<OnList>>,
}

impl std::fmt::Debug for Dir {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_list().entries(self.entries.iter().map(|(name, _)| name)).finish()
    }
}

impl Section for Dir {
    fn identity(&self) -> Vec<u8> {
        Vec::new()
    }

    fn time(&self) -> Timestamp {
        Timestamp::default()
    }

    fn changes(&self) -> bool {
        self.changes
    }

    fn lookup(&self, name: &Name) -> Result<Option<Entry>> {
        Ok(self.entries.iter().find(|(known, _)| known == name).map(|(_, entry)| entry.clone()))
    }

    fn list(&self) -> Result<Vec<(Name, Entry)>> {
        if let Some(on_list) = &self.on_list {
            on_list();
        }
        Ok(self.entries.clone())
    }
}

impl Dir {
    /// A directory that never changes.
    pub(super) fn of<N: AsRef<str>>(entries: impl IntoIterator<Item = (N, Entry)>) -> Self {
        let entries = entries.into_iter().map(|(name, entry)| (self::name(name.as_ref()), entry)).collect();
        Self { entries, changes: false, on_list: None }
    }

    /// The same directory as one in which names come and go.
    pub(super) fn changing(self) -> Self {
        Self { changes: true, ..self }
    }

    /// The same directory; this is done whenever it is listed.
    pub(super) fn on_list(self, action: impl Fn() + Send + Sync + 'static) -> Self {
        Self { on_list: Some(Box::new(action)), ..self }
    }

    /// The directory as a listing of another has it.
    pub(super) fn entry(self) -> Entry {
        let meta = Meta::made_up(Kind::Directory, 0o555, Timestamp::default(), 0);
        Entry { node: Node::Section(Arc::new(self)), meta }
    }
}

pub(super) fn name(name: &str) -> Name {
    Name::new(name.as_bytes()).unwrap()
}

/// An empty directory that never changes.
pub(super) fn empty() -> Entry {
    Dir::of::<&str>([]).entry()
}

/// A file that says that it has so many bytes.
pub(super) fn file(size_bytes: u64) -> Entry {
    let node = Node::Text(Box::new(Text::ready(b"content".to_vec(), Timestamp::default())));
    Entry { node, meta: Meta::made_up(Kind::Regular, 0o444, Timestamp::default(), size_bytes) }
}

/// The top of a tree, as the kernel holds it; the root holds it, and was never asked for.
pub(super) fn top(entry: Entry) -> Arc<Held> {
    Arc::new(Held::new(Key::child(Key::root(), &name("top"), &entry.node), entry.node, ROOT, 0))
}

pub(super) fn listing_of(dir: &Held) -> Listing {
    Listing::of(dir, ROOT).unwrap()
}
