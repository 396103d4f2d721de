//! The roots of layers' own trees and of unions, which nodes are found from.

use std::sync::Arc;

use super::footing::Footing;
use super::shared::Shared;
use super::snapshot::Snapshot;
use super::{Entry, LayerNode, Owners, UnionNode};
use crate::digest::{CacheId, ChainId};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::layer::difference::Life;
use crate::layer::owners::OwnerMap;
use crate::store::{LayerRecord, Layering};
use crate::union::Union;

impl Shared {
    /// What a layer's directory holds; of one that has none its damage is to be told.
    pub(super) fn layering(&self, id: Option<&CacheId>) -> Layering {
        id.map_or(Layering::Deltas, |id| self.store.layering(id))
    }

    /// Opens the directory of a layer that is not damaged.
    pub(super) fn layer(&self, record: &LayerRecord) -> Result<Layer> {
        let id = directory_of(record)?;
        let layer = self.owned(self.store.layer(id)?, id)?;
        Ok(placed(record, layer))
    }

    /// A layer's directory of this name with the owners that are to be shown.
    fn owned(&self, layer: Layer, id: &CacheId) -> Result<Layer> {
        let owners = match self.options.owners {
            Owners::Stored => None,
            Owners::Container => self.store.owners(id)?,
        };
        Ok(owners.into_iter().fold(layer, Layer::owned))
    }

    /// The root of the union of these layers, top first, under a container's own where there are any.
    pub(super) fn union_root(&self, own: Option<&Own>, records: Vec<Arc<LayerRecord>>) -> Result<Entry> {
        let mut layers = Vec::new();
        if let Some(own) = own {
            let stored = self.store.container_layers(&own.changes, own.init.as_ref())?;
            let seen = stored.into_iter().map(|layer| self.own_layer(layer, &own.changes, own));
            layers = seen.collect::<Result<_>>()?;
        }
        let shift = own.and_then(|own| own.owners.as_ref()).filter(|_| self.options.owners == Owners::Stored);
        // fuse-overlayfs shifts the container's own layer too, whose numbers are those of the others then.
        let shift = shift.filter(|_| layers.first().is_some_and(|own| own.whiteouts().is_of_kernel()));
        for record in &records {
            let layer = self.layer(record)?;
            layers.push(shift.into_iter().fold(layer, |layer, owners| layer.shifted(owners)));
        }
        let union = Union::new(layers.into_iter().map(Arc::new).collect::<Vec<_>>());
        UnionNode::root(union, Footing::new(&self.store, records))
    }

    /// The root of the union of a layer and all below it. Whoever types a path comes through here with each.
    pub(super) fn image_union(&self, snapshot: &Snapshot, top: &ChainId) -> Result<Entry> {
        let known = snapshot.unions.lock().get(top).cloned();
        if let Some(known) = known
            && known.node.check().is_ok()
        {
            return Ok(known);
        }
        let directory = snapshot.catalogue.layers.get(top).and_then(|record| record.cache_id.as_ref());
        let ground = snapshot.catalogue.ground(top, self.layering(directory))?;
        let found = self.union_root(None, ground)?;
        snapshot.unions.lock().put(*top, found.clone());
        Ok(found)
    }

    /// The root of what one image layer changes upon the one below it.
    pub(super) fn layer_root(
        self: &Arc<Self>,
        record: &Arc<LayerRecord>,
        below: Option<&Arc<LayerRecord>>,
    ) -> Result<Entry> {
        let mut records = vec![Arc::clone(record)];
        let layer = match record.parent {
            Some(parent) if self.layering(record.cache_id.as_ref()) != Layering::Deltas => {
                let below = below.filter(|below| below.chain == parent);
                let missing = || Error::damaged(format!("layer {parent}"), "the store does not list it");
                let below = below.ok_or_else(missing)?;
                records.push(Arc::clone(below));
                self.store.changes(directory_of(record)?, Some(directory_of(below)?), Life::Lasting)?
            }
            Some(_) | None => self.store.changes(directory_of(record)?, None, Life::Lasting)?,
        };
        let layer = match self.store.tar_names(record) {
            Some(names) => layer.listed(self.store.layer(directory_of(record)?)?.into_tree(), names),
            None => layer,
        };
        let layer = self.owned(layer, directory_of(record)?)?;
        let stacked = Stacked {
            shared: Arc::clone(self),
            own: None,
            top: Some(record.chain),
            has_below: record.parent.is_some(),
        };
        LayerNode::root(placed(record, layer), self.options.whiteouts, Footing::new(&self.store, records), stacked)
    }

    /// A layer of a container's own with the owners that are to be shown.
    fn own_layer(&self, layer: Layer, id: &CacheId, own: &Own) -> Result<Layer> {
        let layer = self.owned(layer, id)?;
        let is_outside = self.options.owners == Owners::Container && layer.whiteouts().is_of_kernel();
        Ok(own.owners.iter().filter(|_| is_outside).fold(layer, |layer, owners| layer.owned(Arc::clone(owners))))
    }

    /// The root of what a container's topmost own layer changes upon the one below it, which is another own one or that of
    /// an image.
    pub(super) fn own_root(self: &Arc<Self>, own: Own, below: Option<&CacheId>, top: Option<ChainId>) -> Result<Entry> {
        let id = &own.changes;
        let layer = self.own_layer(self.store.changes(id, below, Life::Changing)?.changing(), id, &own)?;
        let has_below = own.init.is_some() || top.is_some();
        let stacked = Stacked { shared: Arc::clone(self), own: Some(own), top, has_below };
        LayerNode::root(layer, self.options.whiteouts, Footing::new(&self.store, Vec::new()), stacked)
    }
}

/// What a container has of its own.
#[derive(Debug, Clone)]
pub(super) struct Own {
    pub(super) changes: CacheId,
    pub(super) init: Option<CacheId>,
    /// As [`crate::store::Container::owners`].
    pub(super) owners: Option<Arc<OwnerMap>>,
}

/// A layer upon all below it.
#[derive(Debug)]
pub(super) struct Stacked {
    shared: Arc<Shared>,
    /// Of a container.
    own: Option<Own>,
    /// The top layer of an image.
    top: Option<ChainId>,
    has_below: bool,
}

impl Stacked {
    pub(super) fn has_below(&self) -> bool {
        self.has_below
    }

    /// The root of their union, as the store is.
    pub(super) fn root(&self) -> Result<Entry> {
        let snapshot = self.shared.known();
        match (&self.own, &self.top) {
            (None, Some(top)) => self.shared.image_union(&snapshot, top),
            (own, top) => {
                let layering = self.shared.layering(own.as_ref().map(|own| &own.changes));
                let records = top.map_or(Ok(Vec::new()), |top| snapshot.catalogue.ground(&top, layering))?;
                self.shared.union_root(own.as_ref(), layering.of_container(records))
            }
        }
    }
}

/// The name of the directory of a layer that is not damaged.
pub(super) fn directory_of(record: &LayerRecord) -> Result<&CacheId> {
    match (&record.damage, &record.cache_id) {
        (None, Some(id)) => Ok(id),
        (Some(why), _) => Err(Error::damaged(format!("layer {}", record.chain), why.clone())),
        (None, None) => Err(Error::damaged(format!("layer {}", record.chain), "it has no directory")),
    }
}

/// A layer that is the one in the directory that was found when the store was read, and in no other.
fn placed(record: &LayerRecord, layer: Layer) -> Layer {
    record.root.into_iter().fold(layer, Layer::within)
}
