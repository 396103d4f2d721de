//! `by-chain` and `by-diff`: single layers by their IDs, and the facts of each beside it.

use std::sync::Arc;

use super::{Entry, Link, Shared, Snapshot, StoreFolder, Text, facts, meant_id, undamaged};
use crate::digest::{ChainId, DiffId};
use crate::error::Result;
use crate::name::Name;
use crate::store::List;

/// The folder of chain IDs.
pub(super) fn by_chain(shared: &Arc<Shared>) -> Entry {
    node(shared, Key::Chain)
}

/// The folder of diff IDs. Of several chains with one diff ID, whose content is the same, one is shown.
pub(super) fn by_diff(shared: &Arc<Shared>) -> Entry {
    node(shared, Key::Diff)
}

fn node(shared: &Arc<Shared>, key: Key) -> Entry {
    Entry::folder(ByLayer { shared: Arc::clone(shared), key })
}

#[derive(Debug, Clone, Copy)]
enum Key {
    Chain,
    Diff,
}

#[derive(Debug)]
struct ByLayer {
    shared: Arc<Shared>,
    key: Key,
}

impl ByLayer {
    fn all(&self, snapshot: &Snapshot) -> Vec<(String, ChainId)> {
        match self.key {
            Key::Chain => snapshot.catalogue.layers.keys().map(|chain| (chain.hex(), *chain)).collect(),
            Key::Diff => snapshot.diffs.iter().map(|(diff, chain)| (diff.hex(), *chain)).collect(),
        }
    }

    fn find(&self, snapshot: &Snapshot, hex: &str) -> Option<ChainId> {
        match self.key {
            Key::Chain => ChainId::from_hex(hex).filter(|chain| snapshot.catalogue.layers.contains_key(chain)),
            Key::Diff => DiffId::from_hex(hex).and_then(|diff| snapshot.diffs.get(&diff)).copied(),
        }
    }

    fn facts(&self, snapshot: &Snapshot, chain: &ChainId) -> Result<Entry> {
        let record = snapshot.catalogue.layers.get(chain).map(Arc::as_ref);
        let images = snapshot.users.get(chain).map(Vec::as_slice).unwrap_or_default();
        let content = facts::layer(self.shared.store.as_ref(), chain, record, images)?;
        Ok(Entry::text(Text::ready(content, snapshot.catalogue.changed)))
    }

    fn tree(&self, snapshot: &Snapshot, chain: &ChainId) -> Result<Option<Entry>> {
        let Some(record) = snapshot.catalogue.layers.get(chain) else { return Ok(None) };
        let below = record.parent.and_then(|parent| snapshot.catalogue.layers.get(&parent));
        self.shared.layer_root(record, below).map(Some)
    }
}

impl StoreFolder for ByLayer {
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn entry(&self, snapshot: &Snapshot, name: &Name) -> Result<Option<Entry>> {
        let Ok(text) = std::str::from_utf8(name.as_bytes()) else { return Ok(None) };
        if let Some(chain) = text.strip_suffix(".json").and_then(|hex| self.find(snapshot, hex)) {
            return self.facts(snapshot, &chain).map(Some);
        }
        if let Some(chain) = self.find(snapshot, text) {
            return self.tree(snapshot, &chain);
        }
        snapshot.catalogue.has_all(List::Layers)?;
        let meant = meant_id(name, self.all(snapshot).into_iter().map(|(hex, _)| hex));
        Ok(meant.map(|hex| Entry::link(Link::new(hex.into_bytes(), snapshot.catalogue.changed))))
    }

    fn entries(&self, snapshot: &Snapshot) -> Result<Vec<(Name, Entry)>> {
        snapshot.catalogue.has_all(List::Layers)?;
        let mut entries = Vec::new();
        for (hex, chain) in self.all(snapshot) {
            // A damaged layer has facts, which say what is wrong, and no tree.
            if let Some(tree) = undamaged(self.tree(snapshot, &chain))?.flatten() {
                entries.push((Name::escaped(hex.as_bytes()), tree));
            }
            entries.push((Name::escaped(format!("{hex}.json").as_bytes()), self.facts(snapshot, &chain)?));
        }
        Ok(entries)
    }
}
