//! `by-tag`, `by-digest` and `by-id`: image directories by each kind of name.

use std::sync::Arc;

use super::image::ImageDir;
use super::names::{Found, NameTree, Path, target};
use super::{Entry, Link, Section, Shared, Snapshot, meant_id};
use crate::digest::ImageId;
use crate::error::Result;
use crate::meta::Timestamp;
use crate::name::Name;

/// The folder of tags.
pub(super) fn by_tag(shared: &Arc<Shared>) -> Entry {
    names(shared, |snapshot| &snapshot.tags)
}

/// The folder of repositories with digests.
pub(super) fn by_digest(shared: &Arc<Shared>) -> Entry {
    names(shared, |snapshot| &snapshot.digests)
}

/// The folder of image IDs.
pub(super) fn by_id(shared: &Arc<Shared>) -> Entry {
    Entry::folder(ById(Arc::clone(shared)))
}

fn names(shared: &Arc<Shared>, tree: fn(&Snapshot) -> &NameTree) -> Entry {
    Entry::folder(Names { shared: Arc::clone(shared), tree, path: Path::new() })
}

/// A directory in a folder of names.
#[derive(Debug)]
struct Names {
    shared: Arc<Shared>,
    tree: fn(&Snapshot) -> &NameTree,
    path: Path,
}

impl Names {
    fn below(&self, name: &Name) -> Path {
        self.path.iter().chain([name]).cloned().collect()
    }

    fn directory(&self, path: Path) -> Entry {
        Entry::folder(Self { shared: Arc::clone(&self.shared), tree: self.tree, path })
    }

    fn image(&self, snapshot: &Snapshot, id: &ImageId) -> Option<Entry> {
        // The folder itself, the directories, and the image's own.
        ImageDir::node(&self.shared, snapshot, id, self.path.len().saturating_add(2))
    }
}

impl Section for Names {
    fn identity(&self) -> Vec<u8> {
        Vec::new()
    }

    fn time(&self) -> Timestamp {
        self.shared.current().time
    }

    fn changes(&self) -> bool {
        true
    }

    fn lookup(&self, name: &Name) -> Result<Option<Entry>> {
        let snapshot = self.shared.current();
        let path = self.below(name);
        Ok(match (self.tree)(&snapshot).find(&path) {
            None => None,
            Some(Found::Image(id)) => self.image(&snapshot, &id),
            Some(Found::Directory) => Some(self.directory(path)),
            Some(Found::Alias(place)) => {
                Some(Entry::link(Link::new(target(&self.path, &place), snapshot.catalogue.changed)))
            }
        })
    }

    fn list(&self) -> Result<Vec<(Name, Entry)>> {
        let snapshot = self.shared.current();
        let names = (self.tree)(&snapshot).list(&self.path);
        let node = |(name, id): (Name, Option<ImageId>)| {
            let node = match id {
                Some(id) => self.image(&snapshot, &id)?,
                None => self.directory(self.below(&name)),
            };
            Some((name, node))
        };
        Ok(names.into_iter().filter_map(node).collect())
    }
}

#[derive(Debug)]
struct ById(Arc<Shared>);

impl Section for ById {
    fn identity(&self) -> Vec<u8> {
        Vec::new()
    }

    fn time(&self) -> Timestamp {
        self.0.current().time
    }

    fn changes(&self) -> bool {
        true
    }

    fn lookup(&self, name: &Name) -> Result<Option<Entry>> {
        let snapshot = self.0.current();
        let exact = std::str::from_utf8(name.as_bytes()).ok().and_then(ImageId::from_hex);
        if let Some(id) = exact {
            return Ok(ImageDir::node(&self.0, &snapshot, &id, 2));
        }
        let meant = meant_id(name, snapshot.catalogue.images.keys().map(ImageId::hex));
        Ok(meant.map(|id| Entry::link(Link::new(id.into_bytes(), snapshot.catalogue.changed))))
    }

    fn list(&self) -> Result<Vec<(Name, Entry)>> {
        let snapshot = self.0.current();
        let node =
            |id: &ImageId| Some((Name::escaped(id.hex().as_bytes()), ImageDir::node(&self.0, &snapshot, id, 2)?));
        Ok(snapshot.catalogue.images.keys().filter_map(node).collect())
    }
}
