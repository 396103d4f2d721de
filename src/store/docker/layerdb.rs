//! `layerdb/sha256`: the layers, and which directory holds each.

use std::sync::{Arc, OnceLock};

use super::{FIELD_MAX, in_parallel, path, sound_ids};
use crate::digest::{CacheId, ChainId, DiffId};
use crate::error::{Error, Result};
use crate::meta::Meta;
use crate::name::{Name, TreePath};
use crate::root::{Folder, Root};
use crate::store::driver::Driver;
use crate::store::looks::Looks;
use crate::store::{Catalogue, Damage, LayerRecord, List, Stamp};

pub(super) const LAYERS: &str = "layerdb/sha256";
/// The files of an entry that are read.
pub(super) const FIELDS: [&str; 4] = ["diff", "parent", "cache-id", SIZE];
const SIZE: &str = "size";

/// Reads layers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) image: &'a Root,
    pub(super) driver: &'a dyn Driver,
    pub(super) looks: &'a Looks,
}

/// A layer's record, and what is wrong with it.
type Found = (Arc<LayerRecord>, Option<Damage>);

impl Reader<'_> {
    /// Reads all layers. One that is damaged is listed with what is wrong, and is in the catalogue's damage.
    pub(super) fn read(&self, known: Option<&Catalogue>, catalogue: &mut Catalogue) -> Result<()> {
        let folder = path(LAYERS);
        let chains = sound_ids(self.image, &folder, ChainId::from_hex, List::Layers, catalogue)?;
        if chains.is_empty() {
            return Ok(());
        }
        // Entries are opened below a folder that is held, which is less of a way for thousands of them.
        let Some(entries) = self.image.folder(&folder)? else { return Ok(()) };
        let known = |chain: &ChainId| {
            let known = known.filter(|known| self.looks.is_unchanged(chain, known.looks))?;
            known.layers.get(chain)
        };
        let mut records = Vec::with_capacity(chains.len());
        for found in in_parallel(&chains, |chain| self.record(&entries, chain, known(chain))) {
            if let Some((record, damage)) = found? {
                catalogue.damage.extend(damage);
                records.push((record.chain, record));
            }
        }
        catalogue.layers = records.into_iter().collect();
        Ok(())
    }

    /// Reads a layer's entry; `None` where the layer was removed since its name was read.
    fn record(&self, entries: &Folder<'_>, chain: &ChainId, known: Option<&Arc<LayerRecord>>) -> Result<Option<Found>> {
        let name = name(&chain.hex());
        // The engine never changes an entry, it only makes and removes whole ones.
        if let Some(known) = known.filter(|known| known.damage.is_none())
            && entries.stat(&name)?.is_some_and(|meta| Stamp::from(&meta) == known.stamp)
        {
            return Ok(Some((Arc::clone(known), None)));
        }
        let mut record = LayerRecord {
            chain: *chain,
            diff: None,
            parent: None,
            cache_id: None,
            directory: None,
            root: None,
            size_bytes: OnceLock::new(),
            damage: None,
            stamp: Stamp::default(),
        };
        let outcome = match entries.folder(&name) {
            Ok(None) => return Ok(None),
            Ok(Some(entry)) => {
                record.stamp = Stamp::from(&entry.meta()?);
                fill(&entry, self.driver, &mut record)
            }
            Err(error) => Err(error),
        };
        let damage = outcome.err().map(|error| Damage::from_error(self.image, &entry_of(chain), error)).transpose()?;
        record.damage = damage.as_ref().map(ToString::to_string);
        Ok(Some((Arc::new(record), damage)))
    }
}

/// The directory of a layer's entry.
pub(super) fn entry_of(chain: &ChainId) -> TreePath {
    path(&format!("{LAYERS}/{}", chain.hex()))
}

/// The file with the names that the layer's tar had.
pub(super) fn tar_split_of(chain: &ChainId) -> TreePath {
    entry_of(chain).join(&name("tar-split.json.gz"))
}

/// Whether the entry of a layer names this directory.
///
/// # Errors
/// Transient ones.
pub(super) fn is_of(image: &Root, chain: &ChainId, id: &CacheId) -> Result<bool> {
    let named = image.folder(&entry_of(chain)).and_then(|entry| match entry {
        Some(entry) => field::<CacheId>(&entry, "cache-id"),
        None => Ok(None),
    });
    match named {
        Ok(named) => Ok(named.as_ref() == Some(id)),
        Err(error) if error.is_transient() => Err(error),
        Err(_) => Ok(false),
    }
}

/// The size that the engine counted for a layer, in bytes, or what is wrong with the file that says it. It is for
/// people; a wrong one harms nothing.
///
/// # Errors
/// Transient ones.
pub(super) fn size_bytes(image: &Root, chain: &ChainId) -> Result<std::result::Result<u64, Damage>> {
    let file = entry_of(chain).join(&name(SIZE));
    let size = image.folder(&entry_of(chain)).and_then(|entry| match entry {
        Some(entry) => field(&entry, SIZE),
        None => Ok(None),
    });
    match size {
        Ok(Some(size)) => Ok(Ok(size)),
        Ok(None) => Ok(Err(Damage::of(image.shown(&file), "missing"))),
        Err(error) => Damage::from_error(image, &file, error).map(Err),
    }
}

fn name(text: &str) -> Name {
    Name::escaped(text.as_bytes())
}

fn fill(entry: &Folder<'_>, driver: &dyn Driver, record: &mut LayerRecord) -> Result<()> {
    let found = read_fields(entry, driver, record).and_then(|id| check(driver, &id, || entry.shown(&name("cache-id"))));
    record.root = match &found {
        Ok(root) => Some(root.id()),
        // Also of a layer that is not shown it is watched whether the directory stays the same.
        Err(_) => {
            let named = record.cache_id.as_ref().and_then(|id| driver.find(id).ok().flatten());
            named.filter(Meta::is_dir).map(|root| root.id())
        }
    };
    found.map(drop)
}

/// Reads all fields of an entry, and answers the one that names the layer's directory.
fn read_fields(entry: &Folder<'_>, driver: &dyn Driver, record: &mut LayerRecord) -> Result<CacheId> {
    let wrong = |field: &str, why: &str| Error::damaged(entry.shown(&name(field)), why);
    // Every field is read before the first wrong one is reported, so that a damaged layer tells what it can.
    let diff: Result<Option<DiffId>> = field(entry, "diff");
    let parent: Result<Option<ChainId>> = field(entry, "parent");
    let cache_id: Result<Option<CacheId>> = field(entry, "cache-id");
    record.diff = diff.as_ref().ok().copied().flatten();
    record.parent = parent.as_ref().ok().copied().flatten();
    record.cache_id = cache_id.as_ref().ok().cloned().flatten();
    record.directory = record.cache_id.as_ref().map(|id| driver.directory(id));

    let diff = diff?.ok_or_else(|| wrong("diff", "missing"))?;
    let computed = ChainId::of(parent?.as_ref(), &diff);
    if computed != record.chain {
        return Err(wrong("parent", &format!("with the diff ID beside it, it belongs to the chain ID {computed}")));
    }
    cache_id?.ok_or_else(|| wrong("cache-id", "missing"))
}

/// Looks whether a layer's directory is there, and answers its attributes; what is wrong may be the file that names it.
///
/// # Errors
/// [`Error::Damaged`] where it is not there.
pub(super) fn check(driver: &dyn Driver, id: &CacheId, named_in: impl FnOnce() -> String) -> Result<Meta> {
    driver.check(id).map_err(|error| match error {
        Error::Damaged { what, why } => Error::damaged(what, format!("{why}; it is named in {}", named_in())),
        other => other,
    })
}

/// One of an entry's small files, which hold one value each; `None` where the file is missing.
pub(super) fn field<T: std::str::FromStr>(entry: &Folder<'_>, field: &str) -> Result<Option<T>> {
    let name = name(field);
    let Some((content, _)) = entry.read(&name, FIELD_MAX)? else { return Ok(None) };
    let value = std::str::from_utf8(&content).ok().and_then(|text| text.trim().parse().ok());
    match value {
        Some(value) => Ok(Some(value)),
        None => {
            let text = String::from_utf8_lossy(content.get(..80).unwrap_or(&content)).into_owned();
            Err(Error::damaged(entry.shown(&name), format!("holds {text:?}, which is not of its form")))
        }
    }
}
