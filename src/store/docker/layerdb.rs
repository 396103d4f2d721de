//! `layerdb/sha256`: the layers, and which directory holds each.

use std::sync::Arc;

use super::{FIELD_MAX, ids, path};
use crate::digest::{CacheId, ChainId, DiffId};
use crate::error::{Error, Result};
use crate::name::TreePath;
use crate::root::Root;
use crate::store::driver::Driver;
use crate::store::{Catalogue, Damage, LayerRecord, Stamp};

pub(super) const LAYERS: &str = "layerdb/sha256";

/// Reads all layers. One that is damaged is listed with what is wrong, and is in the catalogue's damage.
pub(super) fn read(
    image: &Root,
    driver: &dyn Driver,
    known: Option<&Catalogue>,
    catalogue: &mut Catalogue,
) -> Result<()> {
    for chain in ids(image, &path(LAYERS), ChainId::from_hex)? {
        let entry = path(&format!("{LAYERS}/{}", chain.hex()));
        // Removed since its name was read: as if it had never been there.
        let Some(meta) = image.stat(&entry)? else { continue };
        let stamp = Stamp::from(&meta);
        // The engine never changes an entry, it only makes and removes whole ones.
        let sound = known.and_then(|known| known.layers.get(&chain)).filter(|record| record.damage.is_none());
        if let Some(record) = sound.filter(|record| record.stamp == stamp) {
            catalogue.layers.insert(chain, Arc::clone(record));
            continue;
        }
        let mut record = LayerRecord {
            chain,
            diff: None,
            parent: None,
            cache_id: None,
            directory: None,
            size_bytes: None,
            damage: None,
            stamp,
        };
        if let Err(error) = fill(image, driver, &entry, &mut record) {
            let damage = Damage::from_error(image, &entry, error);
            record.damage = Some(format!("{}: {}", damage.what, damage.why));
            catalogue.damage.push(damage);
        }
        catalogue.layers.insert(chain, Arc::new(record));
    }
    Ok(())
}

fn fill(image: &Root, driver: &dyn Driver, entry: &TreePath, record: &mut LayerRecord) -> Result<()> {
    let wrong = |name: &str, why: &str| Error::damaged(image.shown(&entry.join_path(&path(name))), why);
    // Every field is read before the first wrong one is reported, so that a damaged layer tells what it can.
    let diff: Result<Option<DiffId>> = field(image, entry, "diff");
    let parent: Result<Option<ChainId>> = field(image, entry, "parent");
    let cache_id: Result<Option<CacheId>> = field(image, entry, "cache-id");
    record.diff = diff.as_ref().ok().copied().flatten();
    record.parent = parent.as_ref().ok().copied().flatten();
    record.cache_id = cache_id.as_ref().ok().cloned().flatten();
    record.directory = record.cache_id.as_ref().map(|id| driver.directory(id));
    // The size is for people; a wrong one harms nothing.
    record.size_bytes = field(image, entry, "size").ok().flatten();

    let diff = diff?.ok_or_else(|| wrong("diff", "missing"))?;
    let computed = ChainId::of(parent?.as_ref(), &diff);
    if computed != record.chain {
        return Err(wrong("parent", &format!("with the diff ID beside it, it belongs to the chain ID {computed}")));
    }
    driver.check(&cache_id?.ok_or_else(|| wrong("cache-id", "missing"))?)
}

/// One of an entry's small files, which hold one value each; `None` where the file is missing.
pub(super) fn field<T: std::str::FromStr>(image: &Root, entry: &TreePath, name: &str) -> Result<Option<T>> {
    let file = entry.join_path(&path(name));
    let Some(content) = image.read(&file, FIELD_MAX)? else { return Ok(None) };
    let value = std::str::from_utf8(&content).ok().and_then(|text| text.trim().parse().ok());
    match value {
        Some(value) => Ok(Some(value)),
        None => {
            let text = String::from_utf8_lossy(content.get(..80).unwrap_or(&content)).into_owned();
            Err(Error::damaged(image.shown(&file), format!("holds {text:?}, which is not of its form")))
        }
    }
}
