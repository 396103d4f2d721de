//! `merged`: every image once for each of its tags, or by its ID where it has none, with all layers united.
//!
//! The full ID of an image that is listed by a tag is a directory too, since other links of the view lead there; it is
//! not listed. Short IDs and digests lead to the listed name as symbolic links. A chain ID stands for the union of that
//! layer and all below, and is not listed.

use std::sync::Arc;

use super::names::{Found, Path, target};
use super::{Entry, Link, Section, Shared, Snapshot, StoreFolder, meant_id, undamaged};
use crate::digest::{ChainId, ImageId};
use crate::error::{Error, Result};
use crate::meta::Timestamp;
use crate::name::Name;
use crate::store::{Catalogue, List, Standing};

/// The folder of unions.
pub(super) fn merged(shared: &Arc<Shared>) -> Entry {
    Entry::folder(Merged { shared: Arc::clone(shared), path: Path::new() })
}

#[derive(Debug)]
struct Merged {
    shared: Arc<Shared>,
    path: Path,
}

impl Merged {
    fn below(&self, name: &Name) -> Path {
        self.path.iter().chain([name]).cloned().collect()
    }

    fn directory(&self, path: Path) -> Entry {
        Entry::folder(Self { shared: Arc::clone(&self.shared), path })
    }

    fn image(&self, snapshot: &Snapshot, id: &ImageId) -> Result<Option<Entry>> {
        let Some(image) = snapshot.catalogue.images.get(id) else { return Ok(None) };
        if let Some(why) = image.hindrances().next() {
            return Err(Error::damaged(format!("image {id}"), why.clone()));
        }
        if !image.has_config {
            // A list of images, which says nothing of layers.
            return Ok(None);
        }
        match image.top() {
            Some(top) => self.shared.image_union(snapshot, &top).map(Some),
            None => Ok(Some(Entry::folder(Empty(image.stored)))),
        }
    }

    /// The listed name of what is meant by a name at the top that is not listed: an ID, or a repository and digest.
    fn alias(&self, snapshot: &Snapshot, typed: &Name, path: &Path) -> Option<Path> {
        let id = match snapshot.digests.find(path) {
            Some(Found::Image(id)) => id,
            Some(Found::Alias(_) | Found::Directory) | None if self.path.is_empty() => {
                let meant = meant_id(typed, snapshot.catalogue.images.keys().map(ImageId::hex))?;
                ImageId::from_hex(&meant)?
            }
            Some(Found::Alias(_) | Found::Directory) | None => return None,
        };
        snapshot.merged.place_of(&id).cloned()
    }

    /// What a full ID at the top stands for.
    fn by_id(&self, snapshot: &Snapshot, typed: &Name) -> Result<Option<Entry>> {
        let id = std::str::from_utf8(typed.as_bytes()).ok().and_then(ImageId::from_hex);
        match id.filter(|_| self.path.is_empty()) {
            Some(id) => self.image(snapshot, &id),
            None => Ok(None),
        }
    }

    fn chain(&self, snapshot: &Snapshot, typed: &Name) -> Result<Option<Entry>> {
        let text = std::str::from_utf8(typed.as_bytes()).unwrap_or_default();
        let chain = ChainId::from_hex(text.strip_prefix("sha256:").unwrap_or(text));
        match chain.filter(|chain| self.path.is_empty() && snapshot.catalogue.layers.contains_key(chain)) {
            Some(chain) => self.shared.image_union(snapshot, &chain).map(Some),
            None => Ok(None),
        }
    }
}

fn is_referenced(catalogue: &Catalogue, id: &ImageId) -> bool {
    catalogue.images.get(id).is_some_and(|image| image.standing == Standing::Referenced)
}

impl StoreFolder for Merged {
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn entry(&self, snapshot: &Snapshot, name: &Name) -> Result<Option<Entry>> {
        let path = self.below(name);
        let link = |place: &Path| Entry::link(Link::new(target(&self.path, place), snapshot.catalogue.changed));
        // Before all others: links of the view lead to IDs, and a repository may have a name that looks like one.
        if let Some(node) = self.by_id(snapshot, name)? {
            return Ok(Some(node));
        }
        match snapshot.merged.find(&path) {
            Some(Found::Image(id)) => self.image(snapshot, &id),
            Some(Found::Directory) => Ok(Some(self.directory(path))),
            Some(Found::Alias(place)) => Ok(Some(link(&place))),
            None => match self.alias(snapshot, name, &path) {
                Some(place) => Ok(Some(link(&place))),
                // The way to a digest of a repository that no tag leads through.
                None if snapshot.digests.is_directory(&path) => Ok(Some(self.directory(path))),
                None => {
                    let found = self.chain(snapshot, name)?;
                    if found.is_none() {
                        snapshot.catalogue.has_all(List::References)?;
                        snapshot.catalogue.has_all(List::Images)?;
                    }
                    Ok(found)
                }
            },
        }
    }

    fn entries(&self, snapshot: &Snapshot) -> Result<Vec<(Name, Entry)>> {
        let catalogue = &snapshot.catalogue;
        catalogue.has_all(List::Images)?;
        // Where it is certain that no references can be read, images are still found by their IDs.
        if catalogue.unread.get(&List::References).is_some_and(|why| snapshot.is_doubtful(why)) {
            catalogue.has_all(List::References)?;
        }
        let mut entries = Vec::new();
        for (name, id) in snapshot.merged.list(&self.path) {
            let node = match id {
                // The union of a damaged image would be wrong; status and the image's directory say why it is absent.
                Some(id) => match self.image(snapshot, &id) {
                    // An engine that removes an image takes its names first: this one is wanted.
                    Err(Error::Damaged { what, why })
                        if snapshot.is_doubtful(&why) && is_referenced(catalogue, &id) =>
                    {
                        return Err(Error::Damaged { what, why });
                    }
                    node => undamaged(node)?.flatten(),
                },
                None => Some(self.directory(self.below(&name))),
            };
            entries.extend(node.map(|node| (name, node)));
        }
        Ok(entries)
    }
}

/// The union of an image without layers.
#[derive(Debug)]
struct Empty(Timestamp);

impl Section for Empty {
    fn identity(&self) -> Vec<u8> {
        b"empty".to_vec()
    }

    fn time(&self) -> Timestamp {
        self.0
    }

    fn changes(&self) -> bool {
        false
    }

    fn lookup(&self, _: &Name) -> Result<Option<Entry>> {
        Ok(None)
    }

    fn list(&self) -> Result<Vec<(Name, Entry)>> {
        Ok(Vec::new())
    }
}
