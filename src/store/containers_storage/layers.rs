//! The layers that are listed, how they stack, and what each is called.
//!
//! A layer's ID is no chain ID: that is computed of the diff IDs of the layer and all below. Where one of those is not
//! known here, the config of an image that has the layer tells them; and where no image does, the layer's own ID stands
//! for a chain ID. Layers of equal chain IDs hold the same, so one of them stands for all, unless owners were shifted.
//! What an image is made of follows from `parent` alone, whatever its layers are called.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use super::lists::ListedLayer;
use crate::digest::{ChainId, DiffId, StorageLayerId};
use crate::meta::Meta;
use crate::store::driver::Driver;
use crate::store::{Damage, ImageLayer, LAYERS_MAX, LayerRecord, Stamp};

/// The layers that are listed, by their IDs.
pub(super) type Listed = BTreeMap<StorageLayerId, ListedLayer>;

/// What each layer is called.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// The key of each layer; several layers may share one.
    by_layer: HashMap<StorageLayerId, ChainId>,
    /// Which layer stands for each key.
    owners: HashMap<ChainId, StorageLayerId>,
    /// Diff IDs that configs tell.
    diffs: HashMap<StorageLayerId, DiffId>,
}

/// Why a layer and all below it are no stack.
#[derive(Debug)]
pub(super) enum Fault {
    /// What lies below the first of these, bottom first, is not listed.
    Severed(StorageLayerId, Vec<StorageLayerId>),
    /// Another reason.
    Other(String),
}

/// A layer and all below it, bottom first.
///
/// # Errors
/// Why they are no stack.
pub(super) fn stack(listed: &Listed, top: StorageLayerId) -> Result<Vec<StorageLayerId>, Fault> {
    let mut stack = Vec::new();
    let mut seen = HashSet::new();
    let mut next = Some(top);
    while let Some(id) = next {
        let Some(layer) = listed.get(&id) else {
            stack.reverse();
            let lowest = stack.first().copied();
            return Err(lowest.map_or_else(|| Fault::Other(missing(id)), |lowest| Fault::Severed(lowest, stack)));
        };
        if !seen.insert(id) {
            return Err(Fault::Other(format!("the parents of layer {top} lead back to layer {id}")));
        }
        if stack.len() == LAYERS_MAX {
            return Err(Fault::Other(format!("layer {top} lies upon more than {LAYERS_MAX} layers")));
        }
        stack.push(id);
        next = layer.parent;
    }
    stack.reverse();
    Ok(stack)
}

fn missing(id: StorageLayerId) -> String {
    format!("layer {id} is not listed as a whole one; layers of additional image stores are not found")
}

/// The chain IDs that the list itself tells.
fn told(listed: &Listed) -> HashMap<StorageLayerId, Option<ChainId>> {
    let mut told: HashMap<StorageLayerId, Option<ChainId>> = HashMap::with_capacity(listed.len());
    for top in listed.keys() {
        let mut path = Vec::new();
        let mut next = Some(*top);
        // What is known, and what is on this path already, is known not to need another look: of a loop nothing is told.
        while let Some(id) = next
            && let Entry::Vacant(entry) = told.entry(id)
            && let Some(layer) = listed.get(&id)
        {
            entry.insert(None);
            path.push(layer);
            next = layer.parent;
        }
        let mut below = next.map(|id| told.get(&id).copied().flatten());
        while let Some(layer) = path.pop() {
            let diff = layer.diff.as_ref().filter(|_| !layer.is_mapped);
            let chain = match (diff, below) {
                (Some(diff), None) => Some(ChainId::of(None, diff)),
                (Some(diff), Some(Some(below))) => Some(ChainId::of(Some(&below), diff)),
                (None, _) | (_, Some(None)) => None,
            };
            told.insert(layer.id, chain);
            below = Some(chain);
        }
    }
    told
}

impl Keys {
    /// What the layers are called, given what images' configs say of their stacks.
    pub(super) fn new<'a>(
        listed: &Listed,
        damage: &BTreeMap<StorageLayerId, Damage>,
        claims: impl Iterator<Item = (&'a [StorageLayerId], &'a [ImageLayer])>,
    ) -> Self {
        let mut keys = Self::default();
        let told = told(listed);
        let chains = || listed.keys().filter_map(|id| Some((*id, (*told.get(id)?)?)));
        // A sound layer stands for damaged ones that hold the same.
        let (sound, damaged): (Vec<_>, Vec<_>) = chains().partition(|(id, _)| !damage.contains_key(id));
        for (id, chain) in sound.into_iter().chain(damaged) {
            keys.owners.entry(chain).or_insert(id);
            keys.by_layer.insert(id, chain);
        }
        for (stack, layers) in claims {
            for (id, layer) in stack.iter().zip(layers) {
                let is_free = !keys.by_layer.contains_key(id) && !keys.owners.contains_key(&layer.chain);
                if is_free && listed.get(id).is_some_and(|listed| !listed.is_mapped) {
                    keys.owners.insert(layer.chain, *id);
                    keys.by_layer.insert(*id, layer.chain);
                    keys.diffs.extend(layer.diff.map(|diff| (*id, diff)));
                }
            }
        }
        for id in listed.keys() {
            if !keys.by_layer.contains_key(id)
                && let Entry::Vacant(free) = keys.owners.entry(id.as_chain())
            {
                free.insert(*id);
                keys.by_layer.insert(*id, id.as_chain());
            }
        }
        keys
    }

    /// What a layer is called; `None` where it is not listed, or its ID is what another one is called.
    pub(super) fn of(&self, id: &StorageLayerId) -> Option<ChainId> {
        self.by_layer.get(id).copied()
    }

    /// The layer that stands for what is called so.
    pub(super) fn owner(&self, chain: &ChainId) -> Option<StorageLayerId> {
        self.owners.get(chain).copied()
    }

    /// The records of all layers but these, which are no images'.
    pub(super) fn records(
        &self,
        listed: &Listed,
        own: &HashSet<StorageLayerId>,
        driver: &dyn Driver,
        damage: &BTreeMap<StorageLayerId, Damage>,
    ) -> BTreeMap<ChainId, Arc<LayerRecord>> {
        let record = |(chain, id): (&ChainId, &StorageLayerId)| {
            let layer = listed.get(id).filter(|_| !own.contains(id))?;
            let cache_id = id.cache_id();
            let size_bytes = OnceLock::new();
            if let Some(size) = layer.size_bytes {
                size_bytes.get_or_init(|| size);
            }
            let record = LayerRecord {
                chain: *chain,
                diff: layer.diff.or_else(|| self.diffs.get(id).copied()),
                // Of one that is not listed: whoever follows it must not take this layer for a base.
                parent: layer.parent.map(|parent| self.of(&parent).unwrap_or_else(|| parent.as_chain())),
                directory: Some(driver.directory(&cache_id)),
                root: driver.find(&cache_id).ok().flatten().filter(Meta::is_dir).map(|meta| meta.id()),
                cache_id: Some(cache_id),
                size_bytes,
                damage: damage.get(id).map(ToString::to_string).or_else(|| self.unnamed_parent(layer)),
                stamp: Stamp::default(),
            };
            Some((*chain, Arc::new(record)))
        };
        self.owners.iter().filter_map(record).collect()
    }
}

impl Keys {
    /// That a layer's parent is called nothing, and what leads there would lead to another layer.
    fn unnamed_parent(&self, layer: &ListedLayer) -> Option<String> {
        let leads_astray =
            |parent: &StorageLayerId| self.of(parent).is_none() && self.owner(&parent.as_chain()).is_some();
        let parent = layer.parent.filter(leads_astray)?;
        Some(format!("layer {}: the ID of its parent {parent} is another layer's chain ID", layer.id))
    }
}

/// The layers that containers write to: of those, the ones that no image and no other layer stands upon.
pub(super) fn own(
    listed: &Listed,
    containers: impl Iterator<Item = StorageLayerId>,
    images: impl Iterator<Item = StorageLayerId>,
) -> HashSet<StorageLayerId> {
    let mut own: HashSet<StorageLayerId> = containers.collect();
    for used in images.chain(listed.values().filter_map(|layer| layer.parent)) {
        own.remove(&used);
    }
    own
}

/// What is wrong with what the list says of a layer.
pub(super) fn wrong_parent(layer: &ListedLayer) -> Option<String> {
    (layer.parent == Some(layer.id)).then(|| "it is its own parent".to_owned())
}

/// The layers whose parents are not listed, and that they are not: no harm to what such a layer itself holds.
pub(super) fn severed(listed: &Listed) -> BTreeMap<StorageLayerId, Damage> {
    let is_severed = |layer: &&ListedLayer| layer.parent.is_some_and(|parent| !listed.contains_key(&parent));
    let severed = listed.values().filter(is_severed);
    severed
        .filter_map(|layer| Some((layer.id, Damage::of(format!("layer {}", layer.id), missing(layer.parent?)))))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn id(digit: &str) -> StorageLayerId {
        StorageLayerId::from_hex(&digit.repeat(64)).unwrap()
    }

    fn diff(digit: &str) -> DiffId {
        DiffId::from_hex(&digit.repeat(64)).unwrap()
    }

    /// Layers as `<ID> <parent or -> <diff or ->`.
    fn listed(layers: &[&str]) -> Listed {
        let layer = |text: &&str| {
            let mut words = text.split(' ');
            let mut word = || words.next().unwrap();
            let (own, parent, diff_digit) = (word(), word(), word());
            let layer = ListedLayer {
                id: id(own),
                parent: (parent != "-").then(|| id(parent)),
                diff: (diff_digit != "-").then(|| diff(diff_digit)),
                size_bytes: None,
                is_mapped: words.next().is_some(),
                owners: None,
            };
            (layer.id, layer)
        };
        layers.iter().map(layer).collect()
    }

    fn chain(diffs: &[&str]) -> ChainId {
        let next = |below: Option<ChainId>, digit: &&str| Some(ChainId::of(below.as_ref(), &diff(digit)));
        diffs.iter().fold(None, next).unwrap()
    }

    fn keys(listed: &Listed, claims: &[(&[&str], &[&str])]) -> Keys {
        let claims: Vec<(Vec<StorageLayerId>, Vec<ImageLayer>)> = claims
            .iter()
            .map(|(stack, diffs)| {
                let layer = |n: usize| ImageLayer { diff: Some(diff(diffs[n])), chain: chain(&diffs[..=n]) };
                (stack.iter().map(|digit| id(digit)).collect(), (0..diffs.len()).map(layer).collect())
            })
            .collect();
        Keys::new(listed, &BTreeMap::new(), claims.iter().map(|(stack, layers)| (&stack[..], &layers[..])))
    }

    #[test]
    fn chain_ids_follow_from_the_list_or_from_a_config() {
        let listed = listed(&["1 - a", "2 1 b", "3 2 -", "4 3 d", "5 1 -"]);
        let keys = keys(&listed, &[(&["1", "2", "3", "4"], &["a", "b", "c", "d"])]);
        let found = |digit| keys.of(&id(digit)).unwrap();
        assert_eq!(found("1"), chain(&["a"]));
        assert_eq!(found("2"), chain(&["a", "b"]));
        assert_eq!(found("3"), chain(&["a", "b", "c"]));
        assert_eq!(found("4"), chain(&["a", "b", "c", "d"]));
        // No image has it.
        assert_eq!(found("5"), id("5").as_chain());
        assert_eq!(keys.of(&id("6")), None);
    }

    #[test]
    fn a_config_cannot_take_what_the_list_gives() {
        // The config of an image upon layer 9 says that it is layer 1.
        let listed = listed(&["1 - a", "8 - -", "9 - -"]);
        let keys = keys(&listed, &[(&["9"], &["a"]), (&["8"], &["c"]), (&["9"], &["c"])]);
        assert_eq!(keys.of(&id("1")), Some(chain(&["a"])));
        assert_eq!(keys.of(&id("8")), Some(chain(&["c"])));
        assert_eq!(keys.of(&id("9")), Some(id("9").as_chain()));
    }

    #[test]
    fn equal_chains_are_one_layer_but_not_where_owners_are_shifted() {
        let listed = listed(&["1 - a", "2 - a", "3 - a mapped", "4 3 b"]);
        let keys = keys(&listed, &[(&["3"], &["a"])]);
        assert_eq!(keys.of(&id("1")), keys.of(&id("2")));
        assert_eq!(keys.of(&id("3")), Some(id("3").as_chain()));
        assert_eq!(keys.of(&id("4")), Some(id("4").as_chain()));
        assert_eq!(keys.owners[&chain(&["a"])], id("1"));
        let broken = BTreeMap::from([(id("1"), Damage::of("layer".to_owned(), "gone"))]);
        let keys = Keys::new(&listed, &broken, std::iter::empty());
        assert_eq!(keys.owners[&chain(&["a"])], id("2"));
    }

    fn fault(listed: &Listed, top: StorageLayerId) -> String {
        match stack(listed, top).unwrap_err() {
            Fault::Severed(lowest, _) => format!("severed below {lowest}"),
            Fault::Other(why) => why,
        }
    }

    #[test]
    fn loops_and_missing_parents_end() {
        let listed = listed(&["1 2 a", "2 3 b", "3 1 c", "4 4 d", "5 6 e", "7 1 f"]);
        let keys = keys(&listed, &[]);
        for digit in ["1", "2", "3", "4", "7"] {
            assert_eq!(keys.of(&id(digit)), Some(id(digit).as_chain()), "{digit}");
            assert!(fault(&listed, id(digit)).contains("lead back"), "{digit}");
        }
        // What the missing one holds is not known.
        assert_eq!(keys.of(&id("5")), Some(id("5").as_chain()));
        assert_eq!(fault(&listed, id("5")), format!("severed below {}", id("5")));
        assert!(severed(&listed)[&id("5")].why.contains("not listed"));
        assert!(fault(&listed, id("9")).contains("not listed"));
    }

    #[test]
    fn a_stack_has_an_end() {
        let digits = |n: usize| StorageLayerId::from_hex(&format!("{n:064x}")).unwrap();
        let layer = |n: usize| ListedLayer {
            id: digits(n),
            parent: n.checked_sub(1).map(digits),
            diff: None,
            size_bytes: None,
            is_mapped: false,
            owners: None,
        };
        let listed: Listed = (0..=LAYERS_MAX).map(|n| (digits(n), layer(n))).collect();
        assert_eq!(stack(&listed, digits(LAYERS_MAX - 1)).unwrap().len(), LAYERS_MAX);
        assert!(fault(&listed, digits(LAYERS_MAX)).contains("more than"));
    }
}
