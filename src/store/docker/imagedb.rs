//! `imagedb`: the images' configs, and which image was built upon which.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{JSON_MAX, REPOSITORIES, blame, ids, in_parallel, layerdb, path, sound_ids, unread};
use crate::digest::{ChainId, ImageId};
use crate::error::{Error, Result};
use crate::meta::Timestamp;
use crate::name::{Name, TreePath};
use crate::reference::Reference;
use crate::root::{Folder, Root};
use crate::store::config::Config;
use crate::store::{Catalogue, Damage, Image, ImageLayer, LayerRecord, Layering, List, Stamp, Standing};

pub(super) const CONTENT: &str = "imagedb/content/sha256";
pub(super) const METADATA: &str = "imagedb/metadata/sha256";

/// Reads all images into a catalogue that has the layers already.
pub(super) fn read(
    image: &Root,
    references: Option<BTreeMap<Reference, ImageId>>,
    known: Option<&Catalogue>,
    layering: Layering,
    catalogue: &mut Catalogue,
) -> Result<()> {
    let stored = sound_ids(image, &path(CONTENT), ImageId::from_hex, List::Images, catalogue)?;
    let stored: BTreeSet<ImageId> = stored.into_iter().collect();
    // The engine makes this folder when it starts for the first time.
    if stored.is_empty() && image.stat(&path(CONTENT)).is_ok_and(|found| found.is_none()) {
        unread(catalogue, List::Images, Damage::of(image.shown(&path(CONTENT)), "missing"));
    }
    if references.is_none() && !stored.is_empty() {
        catalogue.damage.push(Damage::of(image.shown(&path(REPOSITORIES)), "missing, so no image has a name"));
    }
    let references = references.unwrap_or_default();
    let contents = image.folder(&path(CONTENT)).ok().flatten();
    let referenced: BTreeSet<ImageId> = references.values().copied().collect();
    let all: Vec<ImageId> = stored.union(&referenced).copied().collect();
    let parents = parents(image, &all, &mut catalogue.damage)?;
    let standing = |id: &ImageId| match (referenced.contains(id), parents.contains(id)) {
        (true, _) => Standing::Referenced,
        (false, true) => Standing::Intermediate,
        (false, false) => Standing::Dangling,
    };
    let sentence = |damage: &Damage| format!("{}: {}", damage.what, damage.why);
    let broken: BTreeMap<String, Damage> =
        catalogue.damage.iter().map(|damage| (sentence(damage), damage.clone())).collect();
    let layers = &catalogue.layers;
    let known = |id: &ImageId| known.and_then(|known| known.images.get(id));
    let loaded = in_parallel(&all, |id| {
        let sound =
            known(id).filter(|known| known.standing == standing(id) && is_unchanged(image, contents.as_ref(), known));
        let (found, error) = match sound {
            Some(known) => (Arc::clone(known), None),
            None => {
                let (found, outcome) = load(image, contents.as_ref(), id, standing(id));
                (Arc::new(found), outcome.err())
            }
        };
        let missing = missing_layers(image, &broken, layers, layering, &found);
        (found, error, missing)
    });
    let mut images = Vec::with_capacity(loaded.len());
    let mut damage = Vec::new();
    for (found, error, missing) in loaded {
        let id = found.id;
        let error = error.map(|error| Damage::from_error(image, &content_of(&id), error)).transpose()?;
        let wrong: Vec<Damage> = error.into_iter().chain(missing).collect();
        let found = if wrong.is_empty() {
            found
        } else {
            let sentences = wrong.iter().map(sentence).collect();
            Arc::new(Image { damage: sentences, ..Image::clone(&found) })
        };
        damage.extend(wrong.into_iter().map(|wrong| (wrong, id)));
        images.push((id, found));
    }
    catalogue.images = images.into_iter().collect();
    // It makes that of layers with the first layer.
    if catalogue.layers.is_empty()
        && catalogue.images.values().any(|image| !image.layers.is_empty())
        && image.stat(&path(layerdb::LAYERS)).is_ok_and(|found| found.is_none())
    {
        unread(catalogue, List::Layers, Damage::of(image.shown(&path(layerdb::LAYERS)), "missing"));
    }
    blame(&mut catalogue.damage, damage);
    catalogue.references = references;
    Ok(())
}

/// Whether the config of an image that was sound is still the file that was read. Content cannot change under an ID;
/// this is for files that were tampered with or removed.
fn is_unchanged(image: &Root, contents: Option<&Folder<'_>>, known: &Image) -> bool {
    let meta = match contents {
        Some(contents) => contents.stat(&name_of(&known.id)),
        None => image.stat(&content_of(&known.id)),
    };
    known.damage.is_empty() && meta.ok().flatten().is_some_and(|meta| Stamp::from(&meta) == known.stamp)
}

fn name_of(id: &ImageId) -> Name {
    Name::escaped(id.hex().as_bytes())
}

/// The file of an image's config.
pub(super) fn content_of(id: &ImageId) -> TreePath {
    path(&format!("{CONTENT}/{}", id.hex()))
}

/// The file that tells which image an image was built upon.
pub(super) fn parent_of(id: &ImageId) -> TreePath {
    path(&format!("{METADATA}/{}/parent", id.hex()))
}

/// Which images other images were built upon; only the classic builder and `commit` write it. What is unreadable labels
/// nothing, and becomes damage.
///
/// # Errors
/// Transient ones.
fn parents(image: &Root, all: &[ImageId], damage: &mut Vec<Damage>) -> Result<BTreeSet<ImageId>> {
    // Most images have no entry: one listing spares looking for each of them.
    let described = ids(image, &path(METADATA), ImageId::from_hex).or_else(|error| {
        damage.push(Damage::from_error(image, &path(METADATA), error)?);
        Ok(Vec::new())
    })?;
    let described: BTreeSet<ImageId> = described.into_iter().collect();
    let described: Vec<&ImageId> = all.iter().filter(|id| described.contains(id)).collect();
    if described.is_empty() {
        return Ok(BTreeSet::new());
    }
    let Some(entries) = image.folder(&path(METADATA))? else { return Ok(BTreeSet::new()) };
    let parent = |id: &&ImageId| match entries.folder(&name_of(id)) {
        Ok(Some(entry)) => layerdb::field::<ImageId>(&entry, "parent"),
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    };
    let mut parents = BTreeSet::new();
    for (id, found) in described.iter().zip(in_parallel(&described, parent)) {
        match found {
            Ok(parent) => parents.extend(parent),
            Err(error) => {
                let found = Damage::from_error(image, &parent_of(id), error)?;
                damage.push(Damage { images: BTreeSet::from([**id]), ..found });
            }
        }
    }
    Ok(parents)
}

/// An image's config, byte for byte.
pub(super) fn config(image: &Root, id: &ImageId) -> Result<Vec<u8>> {
    let (config, _) =
        image.read(&content_of(id), JSON_MAX)?.ok_or_else(|| Error::Stale { what: format!("image {id}") })?;
    verified(image, id, config)
}

/// An image's config, if it is the one.
fn verified(image: &Root, id: &ImageId, config: Vec<u8>) -> Result<Vec<u8>> {
    let found = ImageId::of_config(&config);
    if found != *id {
        let why = format!("its SHA-256 is {}, not its name", found.hex());
        return Err(Error::damaged(image.shown(&content_of(id)), why));
    }
    Ok(config)
}

fn load(image: &Root, contents: Option<&Folder<'_>>, id: &ImageId, standing: Standing) -> (Image, Result<()>) {
    let mut loaded = Image {
        id: *id,
        standing,
        layers: Vec::new(),
        history: Vec::new(),
        config_bytes: 0,
        manifest: None,
        index: None,
        stored: Timestamp::default(),
        has_config: false,
        is_config_kept: false,
        damage: Vec::new(),
        remarks: Vec::new(),
        stamp: Stamp::default(),
    };
    let outcome = fill(image, contents, &mut loaded);
    (loaded, outcome)
}

fn fill(image: &Root, contents: Option<&Folder<'_>>, loaded: &mut Image) -> Result<()> {
    let file = content_of(&loaded.id);
    let read = contents.and_then(|contents| contents.read(&name_of(&loaded.id), JSON_MAX).ok().flatten());
    // What cannot be read at once takes a second look, which tells what is there.
    let meta = match &read {
        Some((_, meta)) => Some(*meta),
        None => image.stat(&file)?,
    };
    let Some(meta) = meta else {
        return Err(Error::damaged(image.shown(&file), "a reference names this image, but it is not there"));
    };
    loaded.stored = meta.modified;
    loaded.stamp = Stamp::from(&meta);
    loaded.config_bytes = meta.size_bytes;
    let config = match read {
        Some((content, _)) => verified(image, &loaded.id, content)?,
        None => config(image, &loaded.id)?,
    };
    loaded.has_config = true;
    let config = Config::parse(&config).map_err(|why| Error::damaged(image.shown(&file), why))?;
    loaded.history = config.history;
    loaded.layers = config.layers.map_err(|why| Error::damaged(image.shown(&file), why))?;
    loaded.is_config_kept = true;
    Ok(())
}

/// What is wrong with the image's layers; `broken` is the damage known so far, by what records say of it. Of whole trees
/// the image is the top one, and suffers from no other's damage.
fn missing_layers(
    root: &Root,
    broken: &BTreeMap<String, Damage>,
    layers: &BTreeMap<ChainId, Arc<LayerRecord>>,
    layering: Layering,
    image: &Image,
) -> Vec<Damage> {
    let counts = |layer: &ImageLayer| layering == Layering::Deltas || Some(layer.chain) == image.top();
    let wrong = |layer: &ImageLayer| match layers.get(&layer.chain) {
        None => Some(Damage::of(root.shown(&layerdb::entry_of(&layer.chain)), "missing")),
        Some(record) => broken.get(record.damage.as_ref().filter(|_| counts(layer))?).cloned(),
    };
    image.layers.iter().filter_map(wrong).collect()
}
