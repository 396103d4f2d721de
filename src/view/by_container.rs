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

use std::collections::BTreeMap;
use std::sync::Arc;

use super::image::LayersDir;
use super::{Link, Node, Section, Shared, Snapshot, Text, UnionNode, facts, meant_id};
use crate::digest::{CacheId, ContainerId};
use crate::error::{Error, Result};
use crate::meta::Timestamp;
use crate::name::Name;
use crate::store::{Catalogue, Container};
use crate::union::Union;

/// The folder of containers.
pub(super) fn by_container(shared: &Arc<Shared>) -> Node {
    Node::Section(Arc::new(ByContainer(Arc::clone(shared))))
}

/// The name at which each container is listed: its own, or its ID where it has none or another has the same.
pub(super) fn names(catalogue: &Catalogue) -> BTreeMap<Name, ContainerId> {
    let mut names = BTreeMap::new();
    for container in catalogue.containers.values() {
        let own = container.name.as_ref().map(|name| Name::escaped(name.as_bytes()));
        let name = own.filter(|name| !names.contains_key(name));
        names.insert(name.unwrap_or_else(|| Name::escaped(container.id.hex().as_bytes())), container.id);
    }
    names
}

#[derive(Debug)]
struct ByContainer(Arc<Shared>);

impl ByContainer {
    fn node(&self, snapshot: &Arc<Snapshot>, id: &ContainerId) -> Option<Node> {
        let container = Arc::clone(snapshot.catalogue.containers.get(id)?);
        let dir = ContainerDir { shared: Arc::clone(&self.0), snapshot: Arc::clone(snapshot), container };
        Some(Node::Section(Arc::new(dir)))
    }
}

impl Section for ByContainer {
    fn identity(&self) -> Vec<u8> {
        Vec::new()
    }

    fn time(&self) -> Timestamp {
        self.0.snapshot.read().catalogue.changed
    }

    fn changes(&self) -> bool {
        true
    }

    fn lookup(&self, name: &Name) -> Result<Option<Node>> {
        let snapshot = self.0.current();
        if let Some(id) = snapshot.containers.get(name) {
            return Ok(self.node(&snapshot, id));
        }
        let meant = meant_id(name, snapshot.catalogue.containers.keys().map(ContainerId::hex));
        let meant = meant.and_then(|hex| ContainerId::from_hex(&hex));
        let listed = meant.and_then(|id| snapshot.containers.iter().find(|(_, listed)| **listed == id));
        Ok(listed.map(|(name, _)| Node::Link(Link::new(name.as_bytes().to_vec(), snapshot.catalogue.changed))))
    }

    fn list(&self) -> Result<Vec<(Name, Node)>> {
        let snapshot = self.0.current();
        let node = |(name, id): (&Name, &ContainerId)| Some((name.clone(), self.node(&snapshot, id)?));
        Ok(snapshot.containers.iter().filter_map(node).collect())
    }
}

#[derive(Debug)]
struct ContainerDir {
    shared: Arc<Shared>,
    snapshot: Arc<Snapshot>,
    container: Arc<Container>,
}

const ENTRIES: [&str; 6] = ["changes", "config.json", "damage", "init", "layers", "merged"];

impl ContainerDir {
    fn entry(&self, name: &str) -> Result<Option<Node>> {
        let container = &self.container;
        let node = match name {
            "config.json" => container
                .config_bytes
                .map(|size| Node::Text(Text::container_config(&self.shared, container.id, size, container.stored))),
            "damage" => (!container.damage.is_empty())
                .then(|| Node::Text(Text::ready(facts::damage(&container.damage), container.stored))),
            "layers" => Some(self.layers()),
            "changes" => container.changes.as_ref().map(|id| self.own(id)).transpose()?,
            "init" => container.init.as_ref().map(|id| self.own(id)).transpose()?,
            "merged" => Some(self.merged()?),
            _ => None,
        };
        Ok(node)
    }

    fn own(&self, id: &CacheId) -> Result<Node> {
        self.shared.layer_root(self.shared.store.layer(id)?.changing())
    }

    fn layers(&self) -> Node {
        let records = self.container.parent.as_ref().map(|top| self.snapshot.catalogue.stack(top));
        let chains = match records {
            Some(Ok(records)) => records.iter().rev().map(|record| record.chain).collect(),
            // The damage file says what is wrong.
            Some(Err(_)) | None => Vec::new(),
        };
        let image = self.container.image.and_then(|id| self.snapshot.catalogue.images.get(&id));
        LayersDir::node(&self.shared, &self.snapshot, chains, image, self.container.stored)
    }

    fn merged(&self) -> Result<Node> {
        let container = &self.container;
        if let Some(why) = container.damage.first() {
            return Err(Error::damaged(format!("container {}", container.id), why.clone()));
        }
        let mut layers = Vec::new();
        for id in container.changes.iter().chain(&container.init) {
            layers.push(Arc::new(self.shared.store.layer(id)?.changing()));
        }
        if let Some(top) = &container.parent {
            layers.extend(self.shared.stack(&self.snapshot.catalogue, top)?);
        }
        UnionNode::root(Union::of_container(layers))
    }
}

impl Section for ContainerDir {
    fn identity(&self) -> Vec<u8> {
        let container = &self.container;
        let own = container.changes.as_ref().map_or("", |id| id.as_str());
        format!("{}\t{own}\t{}", container.id, container.damage.join("\n")).into_bytes()
    }

    fn time(&self) -> Timestamp {
        self.container.stored
    }

    fn changes(&self) -> bool {
        true
    }

    fn lookup(&self, name: &Name) -> Result<Option<Node>> {
        std::str::from_utf8(name.as_bytes()).map_or(Ok(None), |name| self.entry(name))
    }

    fn list(&self) -> Result<Vec<(Name, Node)>> {
        // What is damaged is not listed; the damage file says what is wrong.
        let entry = |name: &&str| Some((Name::escaped(name.as_bytes()), self.entry(name).ok()??));
        Ok(ENTRIES.iter().filter_map(entry).collect())
    }
}
