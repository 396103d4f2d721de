//! The folders of several stores as one: a data root may hold those of several graph drivers, each with its own images.
//!
//! Of names that several have, that of the store which was used last stands here; `Shared::above` takes such names from
//! the others before any folder or link is made of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Entry, Folder, Members, Node, Section};
use crate::digest::ChainId;
use crate::error::{Error, Result};
use crate::meta::Timestamp;
use crate::name::Name;

/// A folder of all stores, or a directory in it that several may have.
#[derive(Debug, Clone)]
pub(super) struct Joined {
    members: Arc<Members>,
    folder: Folder,
    path: Vec<Name>,
}

impl Joined {
    /// A top-level folder of these stores.
    pub(super) fn of(members: &Arc<Members>, folder: Folder) -> Entry {
        Entry::folder(Self { members: Arc::clone(members), folder, path: Vec::new() })
    }

    /// The directory in each store that has it, of the one used last first.
    fn parts(&self) -> Result<Vec<Entry>> {
        let members = self.members.current();
        let mut parts = Vec::with_capacity(members.len());
        for member in members.iter() {
            let mut part = Some((self.folder)(member));
            for name in &self.path {
                let Some(entry) = part else { break };
                part = entry.node.lookup(name)?.filter(is_joined);
            }
            parts.extend(part);
        }
        Ok(parts)
    }

    fn below(&self, name: &Name) -> Entry {
        let path = self.path.iter().chain([name]).cloned().collect();
        Entry::folder(Self { path, ..self.clone() })
    }
}

/// Whether a name is a whole ID, which stands for the same in each store. No repository has such a name.
fn is_id(name: &Name) -> bool {
    std::str::from_utf8(name.as_bytes()).is_ok_and(|text| ChainId::from_hex(text).is_some())
}

/// Whether names of other stores may be in this directory too.
fn is_joined(entry: &Entry) -> bool {
    matches!(&entry.node, Node::Section(section) if section.is_of_names())
}

impl Section for Joined {
    fn identity(&self) -> Vec<u8> {
        Vec::new()
    }

    fn time(&self) -> Timestamp {
        let members = self.members.current();
        // It grows with each state of any store, and with the number of seconds of none.
        let times = members.iter().map(|member| member.current().time);
        times.max().unwrap_or_default()
    }

    fn changes(&self) -> bool {
        true
    }

    fn is_of_names(&self) -> bool {
        true
    }

    fn lookup(&self, name: &Name) -> Result<Option<Entry>> {
        let mut damaged = None;
        for part in self.parts()? {
            match part.node.lookup(name) {
                Ok(Some(found)) => return Ok(Some(if is_joined(&found) { self.below(name) } else { found })),
                Ok(None) => {}
                // Another store may have it whole.
                Err(error @ Error::Damaged { .. }) if is_id(name) => drop(damaged.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        damaged.map_or(Ok(None), Err)
    }

    fn list(&self) -> Result<Vec<(Name, Entry)>> {
        let mut names = BTreeMap::new();
        for part in self.parts()? {
            for (name, entry) in part.node.list()? {
                names.entry(name).or_insert(entry);
            }
        }
        let joined = |(name, entry): (Name, Entry)| {
            let entry = if is_joined(&entry) { self.below(&name) } else { entry };
            (name, entry)
        };
        Ok(names.into_iter().map(joined).collect())
    }
}
