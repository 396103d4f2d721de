//! `by-container`: what each container has changed, and what it sees.
//!
//! ```text
//! by-container/<name>/
//!   config.json       as the engine wrote it last
//!   layers/<n>/       the image's layers, 0 at the base
//!   init/             what the engine put upon them: /etc/hosts and the like
//!   changes/          what the container wrote
//!   merged/           what the container sees, without its volumes
//!   damage            what is wrong with the container; only where something is
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use super::image::{Layers, LayersDir};
use super::{
    Entry, Link, Own, Reading, Section, Shared, Snapshot, StoreFolder, Text, directory_of, facts, meant_id, undamaged,
};
use crate::digest::{CacheId, ContainerId};
use crate::error::{Error, Result};
use crate::meta::Timestamp;
use crate::name::Name;
use crate::store::{Catalogue, Container, Image, Layering, List};

/// The folder of containers.
pub(super) fn by_container(shared: &Arc<Shared>) -> Entry {
    Entry::folder(ByContainer(Arc::clone(shared)))
}

/// The name at which each container is listed: its own, or its ID where it has none or another has the same, of this store
/// or among those that are taken. Answers also those whose names are taken.
pub(super) fn names(
    catalogue: &Catalogue,
    taken: &BTreeSet<&Name>,
) -> (BTreeMap<Name, ContainerId>, Vec<(Name, ContainerId)>) {
    let (mut names, mut hidden) = (BTreeMap::new(), Vec::new());
    for container in catalogue.containers.values() {
        let is_id =
            |name: &&String| ContainerId::from_hex(name).is_some_and(|id| catalogue.containers.contains_key(&id));
        let own = container.name.as_ref().filter(|name| !is_id(name)).map(|name| Name::escaped(name.as_bytes()));
        hidden.extend(own.iter().filter(|name| taken.contains(name)).map(|name| (name.clone(), container.id)));
        let name = own.filter(|name| !names.contains_key(name) && !taken.contains(name));
        names.insert(name.unwrap_or_else(|| Name::escaped(container.id.hex().as_bytes())), container.id);
    }
    (names, hidden)
}

/// Whether what is wrong with a container may be but the middle of a change.
fn is_doubtful(snapshot: &Snapshot, container: &Container) -> bool {
    container.damage.iter().any(|damage| snapshot.is_doubtful(damage))
}

#[derive(Debug)]
struct ByContainer(Arc<Shared>);

impl ByContainer {
    fn node(&self, snapshot: &Snapshot, id: &ContainerId) -> Option<Entry> {
        let catalogue = &snapshot.catalogue;
        let container = Arc::clone(catalogue.containers.get(id)?);
        let image = container.image.and_then(|id| catalogue.images.get(&id)).cloned();
        let layering = self.0.layering(container.changes.as_ref());
        // What was made of the image since, or of another one of its name, says nothing of these layers.
        let image = image.filter(|image| image.has_config && image.top() == container.parent);
        let chains: Option<Vec<_>> = match (&image, container.parent) {
            // The image names its layers, also those that the store has lost.
            (Some(image), _) => Some(image.layers.iter().map(|layer| layer.chain).collect()),
            (None, Some(top)) if layering == Layering::Deltas && catalogue.stack(&top).is_err() => None,
            (None, Some(top)) => Some(catalogue.chains(top).into_iter().rev().collect()),
            (None, None) => Some(Vec::new()),
        };
        let has_layers = chains.is_some();
        let layers = Layers::of(snapshot, chains.unwrap_or_default().into_iter());
        let is_doubtful = is_doubtful(snapshot, &container);
        Some(Entry::folder(ContainerDir {
            shared: Arc::clone(&self.0),
            container,
            layers,
            has_layers,
            image,
            is_doubtful,
        }))
    }
}

impl StoreFolder for ByContainer {
    fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    fn entry(&self, snapshot: &Snapshot, name: &Name) -> Result<Option<Entry>> {
        if let Some(id) = snapshot.containers.get(name) {
            return Ok(self.node(snapshot, id));
        }
        snapshot.catalogue.has_all(List::Containers)?;
        let meant = meant_id(name, snapshot.catalogue.containers.keys().map(ContainerId::hex));
        let meant = meant.and_then(|hex| ContainerId::from_hex(&hex));
        let listed = meant.and_then(|id| snapshot.containers.iter().find(|(_, listed)| **listed == id));
        Ok(listed.map(|(name, _)| Entry::link(Link::new(name.as_bytes().to_vec(), snapshot.catalogue.changed))))
    }

    fn entries(&self, snapshot: &Snapshot) -> Result<Vec<(Name, Entry)>> {
        snapshot.catalogue.has_all(List::Containers)?;
        let node = |(name, id): (&Name, &ContainerId)| Some((name.clone(), self.node(snapshot, id)?));
        Ok(snapshot.containers.iter().filter_map(node).collect())
    }
}

#[derive(Debug)]
struct ContainerDir {
    shared: Arc<Shared>,
    container: Arc<Container>,
    layers: Layers,
    /// Whether these are known.
    has_layers: bool,
    /// The image, where it names these layers.
    image: Option<Arc<Image>>,
    /// Whether its damage may be but the middle of a change.
    is_doubtful: bool,
}

const ENTRIES: [&str; 6] = ["changes", "config.json", "damage", "init", "layers", "merged"];

impl ContainerDir {
    fn entry(&self, name: &str) -> Result<Option<Entry>> {
        let container = &self.container;
        let node = match name {
            "config.json" => self.config()?,
            "damage" => (!container.damage.is_empty())
                .then(|| Entry::text(Text::ready(facts::damage(&container.damage), container.stored))),
            "layers" if self.has_layers => Some(self.layers()),
            "layers" => return Err(self.damaged("its layers are not known")),
            "changes" => container.changes.as_ref().map(|id| self.own(id, container.init.as_ref())).transpose()?,
            "init" => container.init.as_ref().map(|id| self.own(id, None)).transpose()?,
            "merged" => Some(self.merged()?),
            _ => None,
        };
        Ok(node)
    }

    /// An answer that says of a container that is being made or removed that it is gone, and not that it is damaged: the
    /// engine removes its layers first. Who has come by a path is sent there again by the kernel.
    fn unless_removed<T>(&self, answer: Result<T>) -> Result<T> {
        let known = &self.container;
        let Err(Error::Damaged { .. }) = &answer else { return answer };
        let now = match (known.damage.is_empty(), self.is_doubtful) {
            // Nobody has heard of it yet.
            (true, _) => self.shared.read_since(Instant::now(), Reading::Changes),
            (false, true) => self.shared.current(),
            (false, false) => return answer,
        };
        let is_same = |now: &Container| (&now.changes, &now.damage) == (&known.changes, &known.damage);
        match now.catalogue.containers.get(&known.id) {
            Some(listed) if is_same(listed) && !is_doubtful(&now, listed) => answer,
            Some(_) | None => Err(Error::Stale { what: format!("container {}", known.id) }),
        }
    }

    /// The config as it is, which the engine replaces.
    fn config(&self) -> Result<Option<Entry>> {
        if self.container.config_bytes.is_none() {
            return Ok(None);
        }
        match self.shared.store.container_config(&self.container.id) {
            Ok(config) => Ok(Some(Entry::text(Text::ready(config, self.container.stored).for_owner().momentary()))),
            Err(Error::Stale { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn damaged(&self, otherwise: &str) -> Error {
        let why = self.container.damage.first().map_or(otherwise, String::as_str);
        Error::damaged(format!("container {}", self.container.id), why)
    }

    /// What an own layer changes upon the one below, which is the image's top one where it is no other.
    fn own(&self, id: &CacheId, below: Option<&CacheId>) -> Result<Entry> {
        let top = match self.container.parent {
            Some(top) if below.is_none() && self.shared.layering(Some(id)) != Layering::Deltas => {
                let record = self.layers.records().next_back().flatten();
                let missing = || Error::damaged(format!("layer {top}"), "the store does not list it");
                Some(directory_of(record.ok_or_else(missing)?)?)
            }
            Some(_) | None => None,
        };
        let own = Own { changes: id.clone(), init: below.cloned(), owners: self.container.owners.clone() };
        match self.shared.own_root(own, below.or(top), self.container.parent) {
            // As with a link in the directory's place, which `damage` tells.
            Err(error) if !self.container.damage.is_empty() && !error.is_transient() => Err(self.damaged("")),
            own => own,
        }
    }

    fn layers(&self) -> Entry {
        LayersDir::node(&self.shared, self.layers.clone(), self.image.as_ref(), self.container.stored)
    }

    fn merged(&self) -> Result<Entry> {
        let container = &self.container;
        if !container.damage.is_empty() || !self.has_layers {
            return Err(self.damaged("its layers are not known"));
        }
        let own = container.changes.clone();
        let own = own.map(|changes| Own { changes, init: container.init.clone(), owners: container.owners.clone() });
        let gone = || Error::damaged(format!("container {}", container.id), "a layer of its image is gone");
        let layering = self.shared.layering(container.changes.as_ref());
        let records = layering.of_container(self.layers.records().rev().collect());
        let records = records.into_iter().map(|record| record.cloned().ok_or_else(gone));
        self.shared.union_root(own.as_ref(), records.collect::<Result<_>>()?)
    }
}

impl Section for ContainerDir {
    fn identity(&self) -> Vec<u8> {
        let container = &self.container;
        let own = container.changes.as_ref().map_or("", CacheId::as_str);
        let image = self.image.as_ref().map(|image| image.id.hex()).unwrap_or_default();
        self.layers.identity(&format!("{}\t{own}\t{image}\t{}", container.id, container.damage.join("\n")))
    }

    fn time(&self) -> Timestamp {
        self.container.stored
    }

    fn changes(&self) -> bool {
        true
    }

    fn lookup(&self, name: &Name) -> Result<Option<Entry>> {
        std::str::from_utf8(name.as_bytes()).map_or(Ok(None), |name| self.unless_removed(self.entry(name)))
    }

    fn list(&self) -> Result<Vec<(Name, Entry)>> {
        // What is damaged is not listed; the damage file says what is wrong.
        let mut entries = Vec::with_capacity(ENTRIES.len());
        for name in ENTRIES {
            let node = undamaged(self.unless_removed(self.entry(name)))?.flatten();
            entries.extend(node.map(|node| (Name::escaped(name.as_bytes()), node)));
        }
        Ok(entries)
    }
}
