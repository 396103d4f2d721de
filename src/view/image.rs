//! An image's directory, and the folder of its layers.
//!
//! ```text
//! config.json        as the store has it; absent where it is not the right one
//! manifest.json      as the store has it, where it keeps manifests
//! index.json         as the store has it, where the manifest is one of several
//! history            a row per build step
//! layers/<n>/        layer n, 0 at the base; absent where the layer is damaged
//! layers/<n>.json    what the store knows of it
//! merged             link to the union of all layers
//! damage             what is wrong with the image, or why else it has no tree; only where something is
//! ```

use std::sync::Arc;

use super::{Entry, Link, Section, Shared, Snapshot, Text, facts, undamaged};
use crate::digest::{CacheId, ChainId, ImageId};
use crate::error::{Error, Result};
use crate::meta::Timestamp;
use crate::name::Name;
use crate::store::{Image, LayerRecord, Layering};

/// An image's directory.
#[derive(Debug)]
pub(super) struct ImageDir {
    shared: Arc<Shared>,
    image: Arc<Image>,
    layers: Layers,
    /// How many directories lie between this directory's entries and the root of the view.
    depth: usize,
}

const ENTRIES: [&str; 7] = ["config.json", "damage", "history", "index.json", "layers", "manifest.json", "merged"];

impl ImageDir {
    /// The directory of an image, where the store has it. Its entries lie `depth` directories below the root.
    pub(super) fn node(shared: &Arc<Shared>, snapshot: &Snapshot, id: &ImageId, depth: usize) -> Option<Entry> {
        let image = Arc::clone(snapshot.catalogue.images.get(id)?);
        let layers = Layers::of(snapshot, image.layers.iter().map(|layer| layer.chain));
        Some(Entry::folder(Self { shared: Arc::clone(shared), image, layers, depth }))
    }

    fn entry(&self, name: &str) -> Result<Option<Entry>> {
        let image = &self.image;
        Ok(Some(match name {
            "config.json" if image.has_config => {
                Entry::text(Text::image_config(&self.shared, image.id, image.config_bytes, image.stored))
            }
            "manifest.json" => {
                let manifest = |kept| Text::image_manifest(&self.shared, image.id, kept, image.stored);
                return Ok(image.manifest.map(|kept| Entry::text(manifest(kept))));
            }
            "index.json" => {
                let index = |kept| Text::image_index(&self.shared, image.id, kept, image.stored);
                return Ok(image.index.map(|kept| Entry::text(index(kept))));
            }
            "history" if image.has_config => {
                let records = self.layers.records().map(|record| record.map(Arc::as_ref));
                told(facts::history(self.shared.store.as_ref(), image, records)?, image.stored)
            }
            "damage" if !image.is_whole() => Entry::text(Text::ready(facts::damage(image.hindrances()), image.stored)),
            "layers" if image.has_config => {
                LayersDir::node(&self.shared, self.layers.clone(), Some(image), image.stored)
            }
            "merged" if image.has_config && image.is_whole() => {
                let target = format!("{}merged/{}", "../".repeat(self.depth), image.id.hex());
                Entry::link(Link::new(target.into_bytes(), image.stored))
            }
            _ => return Ok(None),
        }))
    }

    /// Makes sure that what is wrong with the image is certain: what it lacks may be there in a moment.
    ///
    /// # Errors
    /// [`Error::Stale`] where it is not.
    fn settle(&self) -> Result<()> {
        let known = self.shared.known();
        if self.image.hindrances().any(|why| known.is_doubtful(why)) {
            return Err(Error::Stale { what: format!("image {}", self.image.id) });
        }
        Ok(())
    }
}

/// A text that stays as it is, unless something is missing in it.
fn told(told: facts::Told, time: Timestamp) -> Entry {
    let text = Text::ready(told.text, time).for_owner();
    Entry::text(if told.is_whole { text } else { text.momentary() })
}

impl Section for ImageDir {
    fn identity(&self) -> Vec<u8> {
        let hindrances: Vec<&str> = self.image.hindrances().map(String::as_str).collect();
        self.layers.identity(&format!("{}\t{}", self.image.id, hindrances.join("\n")))
    }

    fn time(&self) -> Timestamp {
        self.image.stored
    }

    fn changes(&self) -> bool {
        false
    }

    fn lookup(&self, name: &Name) -> Result<Option<Entry>> {
        let Ok(name) = std::str::from_utf8(name.as_bytes()) else { return Ok(None) };
        let found = self.entry(name)?;
        if found.is_none() && ENTRIES.contains(&name) {
            self.settle()?;
        }
        Ok(found)
    }

    fn list(&self) -> Result<Vec<(Name, Entry)>> {
        self.settle()?;
        let mut entries = Vec::with_capacity(ENTRIES.len());
        for name in ENTRIES {
            entries.extend(self.entry(name)?.map(|entry| (Name::escaped(name.as_bytes()), entry)));
        }
        Ok(entries)
    }
}

/// The layers of an image or a container, bottom first, as the store listed them at one time.
///
/// Nodes hold this and not the snapshot that it is from, so that old snapshots go.
#[derive(Debug, Clone)]
pub(super) struct Layers(Arc<[(ChainId, Option<Arc<LayerRecord>>)]>);

impl Layers {
    /// The records of these chains, bottom first.
    pub(super) fn of(snapshot: &Snapshot, chains: impl Iterator<Item = ChainId>) -> Self {
        Self(chains.map(|chain| (chain, snapshot.catalogue.layers.get(&chain).cloned())).collect())
    }

    /// The records, bottom first.
    pub(super) fn records(&self) -> impl DoubleEndedIterator<Item = Option<&Arc<LayerRecord>>> {
        self.0.iter().map(|(_, record)| record.as_ref())
    }

    /// What tells a directory of layers from another at the same path: also whether a layer moved to another
    /// directory of the store, as when an image is removed and loaded again, or was damaged.
    pub(super) fn identity(&self, owner: &str) -> Vec<u8> {
        let mut text = owner.to_owned();
        for record in self.records() {
            let cache_id = record.and_then(|record| record.cache_id.as_ref()).map_or("", CacheId::as_str);
            let damage = record.and_then(|record| record.damage.as_deref()).unwrap_or_default();
            text.extend(["\n", cache_id, "\t", damage]);
        }
        text.into_bytes()
    }
}

/// The folder of an image's or a container's layers.
#[derive(Debug)]
pub(super) struct LayersDir {
    shared: Arc<Shared>,
    layers: Layers,
    image: Option<Arc<Image>>,
    time: Timestamp,
}

impl LayersDir {
    /// The folder of these layers, which `image` names.
    pub(super) fn node(shared: &Arc<Shared>, layers: Layers, image: Option<&Arc<Image>>, time: Timestamp) -> Entry {
        Entry::folder(Self { shared: Arc::clone(shared), layers, image: image.map(Arc::clone), time })
    }

    fn facts(&self, index: usize, chain: &ChainId, record: Option<&LayerRecord>) -> Result<Entry> {
        let step = self.image.as_ref().and_then(|image| image.step_of(index));
        let facts = facts::numbered_layer(self.shared.store.as_ref(), chain, record, index, step)?;
        Ok(told(facts, self.time))
    }

    fn tree(&self, index: usize, chain: &ChainId, record: Option<&Arc<LayerRecord>>) -> Result<Entry> {
        let record = record.ok_or_else(|| Error::damaged(format!("layer {chain}"), "the store does not list it"))?;
        self.shared.layer_root(record, self.below(index))
    }

    fn below(&self, index: usize) -> Option<&Arc<LayerRecord>> {
        let (_, record) = self.layers.0.get(index.checked_sub(1)?)?;
        record.as_ref()
    }

    /// Whether a layer and what its changes are told by were sound when the store was read.
    fn is_sound(&self, index: usize, record: Option<&Arc<LayerRecord>>) -> bool {
        let is_sound = |record: &Arc<LayerRecord>| record.damage.is_none();
        let needs_below =
            self.shared.layering(record.and_then(|record| record.cache_id.as_ref())) != Layering::Deltas && index > 0;
        record.is_some_and(is_sound) && (!needs_below || self.below(index).is_some_and(is_sound))
    }
}

impl Section for LayersDir {
    fn identity(&self) -> Vec<u8> {
        self.layers.identity("")
    }

    fn time(&self) -> Timestamp {
        self.time
    }

    fn changes(&self) -> bool {
        false
    }

    fn lookup(&self, name: &Name) -> Result<Option<Entry>> {
        let Ok(text) = std::str::from_utf8(name.as_bytes()) else { return Ok(None) };
        let digits = text.strip_suffix(".json").unwrap_or(text);
        let index = digits.parse::<usize>().ok().filter(|index| index.to_string() == digits);
        let Some((index, (chain, record))) = index.and_then(|index| Some((index, self.layers.0.get(index)?))) else {
            return Ok(None);
        };
        if text == digits {
            self.shared.unless_doubtful(self.tree(index, chain, record.as_ref())).map(Some)
        } else {
            self.facts(index, chain, record.as_deref()).map(Some)
        }
    }

    fn list(&self) -> Result<Vec<(Name, Entry)>> {
        let mut entries = Vec::with_capacity(self.layers.0.len().saturating_mul(2));
        for (index, (chain, record)) in self.layers.0.iter().enumerate() {
            // A damaged layer has facts, which say what is wrong, and no tree.
            match undamaged(self.shared.unless_doubtful(self.tree(index, chain, record.as_ref())))? {
                Some(tree) => entries.push((Name::escaped(index.to_string().as_bytes()), tree)),
                // The kernel keeps this listing: it must not lack what was there when the store was read.
                None if self.is_sound(index, record.as_ref()) => {
                    return Err(Error::Stale { what: format!("layer {chain}") });
                }
                None => {}
            }
            let facts = self.facts(index, chain, record.as_deref())?;
            entries.push((Name::escaped(format!("{index}.json").as_bytes()), facts));
        }
        Ok(entries)
    }
}
