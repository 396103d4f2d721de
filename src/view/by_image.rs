//! `by-tag`, `by-digest` and `by-id`: image directories by each kind of name.

use std::sync::Arc;

use super::image::ImageDir;
use super::names::{Found, NameTree, Path, target};
use super::{Entry, Link, Shared, Snapshot, StoreFolder, meant_id};
use crate::digest::ImageId;
use crate::error::Result;
use crate::name::Name;
use crate::store::List;

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

impl StoreFolder for Names {
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn entry(&self, snapshot: &Snapshot, name: &Name) -> Result<Option<Entry>> {
        let path = self.below(name);
        Ok(match (self.tree)(snapshot).find(&path) {
            None => {
                snapshot.catalogue.has_all(List::References)?;
                None
            }
            Some(Found::Image(id)) => self.image(snapshot, &id),
            Some(Found::Directory) => Some(self.directory(path)),
            Some(Found::Alias(place)) => {
                Some(Entry::link(Link::new(target(&self.path, &place), snapshot.catalogue.changed)))
            }
        })
    }

    fn entries(&self, snapshot: &Snapshot) -> Result<Vec<(Name, Entry)>> {
        snapshot.catalogue.has_all(List::References)?;
        let node = |(name, id): (Name, Option<ImageId>)| {
            let node = match id {
                Some(id) => self.image(snapshot, &id)?,
                None => self.directory(self.below(&name)),
            };
            Some((name, node))
        };
        Ok((self.tree)(snapshot).list(&self.path).into_iter().filter_map(node).collect())
    }
}

#[derive(Debug)]
struct ById(Arc<Shared>);

impl StoreFolder for ById {
    fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    fn entry(&self, snapshot: &Snapshot, name: &Name) -> Result<Option<Entry>> {
        let exact = std::str::from_utf8(name.as_bytes()).ok().and_then(ImageId::from_hex);
        if let Some(node) = exact.and_then(|id| ImageDir::node(&self.0, snapshot, &id, 2)) {
            return Ok(Some(node));
        }
        snapshot.catalogue.has_all(List::Images)?;
        let meant = meant_id(name, snapshot.catalogue.images.keys().map(ImageId::hex));
        let meant = meant.filter(|_| exact.is_none());
        Ok(meant.map(|id| Entry::link(Link::new(id.into_bytes(), snapshot.catalogue.changed))))
    }

    fn entries(&self, snapshot: &Snapshot) -> Result<Vec<(Name, Entry)>> {
        snapshot.catalogue.has_all(List::Images)?;
        let image = |id: &ImageId| ImageDir::node(&self.0, snapshot, id, 2);
        let node = |id: &ImageId| Some((Name::escaped(id.hex().as_bytes()), image(id)?));
        Ok(snapshot.catalogue.images.keys().filter_map(node).collect())
    }
}
