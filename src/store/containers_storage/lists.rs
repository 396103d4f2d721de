//! The lists of images, layers and containers: `images.json`, `layers.json`, `containers.json`, and the `volatile-`
//! ones beside them.
//!
//! Each is an array of objects. It is read entry by entry and never held as a whole, and an entry that is not of its
//! form spoils no other. Entries that belong to no object of this program's are not kept.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::digest::{ContainerId, DiffId, ImageId, ManifestDigest, StorageLayerId};
use crate::layer::owners::{OwnerMap, Range};

/// The most entries of a list.
const ENTRIES_MAX: usize = 100_000;
/// As many wrong entries of a list are told one by one.
const WRONG_MAX: usize = 100;
/// The most names of an object that are kept.
const NAMES_MAX: usize = 1_000;
/// The most ranges of numbers in a user namespace (user_namespaces(7)).
const RANGES_MAX: usize = 340;

/// An image as `images.json` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListedImage {
    pub(super) id: ImageId,
    /// The digest of the manifest that was written last, or of the list of manifests.
    pub(super) digest: Option<ManifestDigest>,
    pub(super) names: Vec<String>,
    /// How many names it has beyond those.
    pub(super) names_left_out: usize,
    /// The top layer; `None` for a list of manifests, and for an image without layers.
    pub(super) layer: Option<StorageLayerId>,
    /// The names of what is stored beside the list for this image.
    pub(super) documents: Vec<String>,
}

/// A layer as `layers.json` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListedLayer {
    pub(super) id: StorageLayerId,
    pub(super) parent: Option<StorageLayerId>,
    /// The diff ID, where it is sure: what was pulled in parts may have another digest in its place.
    pub(super) diff: Option<DiffId>,
    /// The size of the layer's tar in bytes.
    pub(super) size_bytes: Option<u64>,
    /// Whether the owners on the disk are others than in the tar, so that the diff ID does not tell all.
    pub(super) is_mapped: bool,
    /// How containers see them then.
    pub(super) owners: Option<Arc<OwnerMap>>,
}

/// A container as `containers.json` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListedContainer {
    pub(super) id: ContainerId,
    pub(super) name: Option<String>,
    pub(super) image: Option<ImageId>,
    pub(super) layer: Option<StorageLayerId>,
    /// How it sees owners, where it has a user namespace.
    pub(super) owners: Option<Arc<OwnerMap>>,
    /// The entry itself.
    pub(super) record: String,
}

/// A list, and what is wrong with it, a sentence each.
#[derive(Debug)]
pub(super) struct List<T> {
    pub(super) entries: Vec<T>,
    pub(super) wrong: Vec<String>,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), wrong: Vec::new() }
    }
}

/// What a list holds.
pub(super) trait Listed: Sized {
    /// The ID, which no two entries share.
    type Id: Copy + Eq + std::hash::Hash + fmt::Display + fmt::Debug;

    /// Reads an entry; `None` for one that is not to be looked at.
    ///
    /// # Errors
    /// Why it is none.
    fn parse(entry: &RawValue) -> Result<Option<Self>, String>;

    /// The entry's ID.
    fn id(&self) -> Self::Id;
}

impl<T: Listed> List<T> {
    /// Reads a document and adds its entries.
    ///
    /// # Errors
    /// Why it is no list; then nothing is added.
    pub(super) fn add(&mut self, document: &[u8]) -> Result<(), String> {
        // As the engine reads it: bytes that are no UTF-8 spoil the text that they stand in, and no other.
        let text = String::from_utf8_lossy(document);
        let mut from = serde_json::Deserializer::from_str(&text);
        let Entries(entries, _) = Entries::<T>::deserialize(&mut from)
            .and_then(|entries| from.end().map(|()| entries))
            .map_err(|error| format!("not a list: {error}"))?;
        let mut known: HashSet<T::Id> = self.entries.iter().map(Listed::id).collect();
        let mut wrong = Vec::new();
        for (place, entry) in entries.into_iter().enumerate() {
            match entry {
                Ok(entry) if known.insert(entry.id()) => self.entries.push(entry),
                Ok(entry) => wrong.push(format!("{} is listed twice; the first entry counts", entry.id())),
                Err(why) => wrong.push(format!("entry {place} is not of its form: {why}")),
            }
        }
        let untold = wrong.len().saturating_sub(WRONG_MAX);
        wrong.truncate(WRONG_MAX);
        if untold > 0 {
            wrong.push(format!("{untold} more of its entries are wrong"));
        }
        self.wrong.extend(wrong);
        Ok(())
    }
}

/// The entries of a document, as far as they are looked at.
struct Entries<T>(Vec<Result<T, String>>, PhantomData<T>);

impl<'de, T: Listed> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(EntriesVisitor(PhantomData))
    }
}

struct EntriesVisitor<T>(PhantomData<T>);

impl<'de, T: Listed> Visitor<'de> for EntriesVisitor<T> {
    type Value = Entries<T>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list")
    }

    fn visit_unit<E>(self) -> Result<Entries<T>, E> {
        Ok(Entries(Vec::new(), PhantomData))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entries<T>, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = list.next_element::<&RawValue>()? {
            entries.extend(T::parse(entry).transpose());
            if entries.len() > ENTRIES_MAX {
                return Err(serde::de::Error::custom(format!("more than {ENTRIES_MAX} entries")));
            }
        }
        Ok(Entries(entries, PhantomData))
    }
}

/// The first elements of a list, and how many there are.
#[derive(Debug)]
struct Firsts<T, const KEPT: usize> {
    kept: Vec<T>,
    count: usize,
}

impl<T, const KEPT: usize> Default for Firsts<T, KEPT> {
    fn default() -> Self {
        Self { kept: Vec::new(), count: 0 }
    }
}

impl<'de, T: Deserialize<'de>, const KEPT: usize> Deserialize<'de> for Firsts<T, KEPT> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(FirstsVisitor(PhantomData))
    }
}

struct FirstsVisitor<T, const KEPT: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const KEPT: usize> Visitor<'de> for FirstsVisitor<T, KEPT> {
    type Value = Firsts<T, KEPT>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Firsts<T, KEPT>, A::Error> {
        let mut firsts = Firsts::default();
        while firsts.kept.len() < KEPT
            && let Some(element) = list.next_element()?
        {
            firsts.kept.push(element);
        }
        firsts.count = firsts.kept.len();
        while list.next_element::<IgnoredAny>()?.is_some() {
            firsts.count = firsts.count.saturating_add(1);
        }
        Ok(firsts)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ImageEntry {
    id: String,
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    names: Option<Firsts<String, NAMES_MAX>>,
    #[serde(default)]
    layer: Option<String>,
    #[serde(default)]
    big_data_names: Option<Firsts<String, NAMES_MAX>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct LayerEntry {
    id: String,
    #[serde(default)]
    parent: Option<String>,
    #[serde(default)]
    diff_digest: Option<String>,
    #[serde(default)]
    diff_size: Option<u64>,
    #[serde(default)]
    toc_digest: Option<String>,
    #[serde(default)]
    uidmap: Option<Ranges>,
    #[serde(default)]
    gidmap: Option<Ranges>,
    #[serde(default)]
    flags: Option<Flags>,
}

type Ranges = Firsts<RangeEntry, RANGES_MAX>;

#[derive(Deserialize)]
struct RangeEntry {
    container_id: u32,
    host_id: u32,
    size: u32,
}

#[derive(Deserialize)]
struct Flags {
    #[serde(default)]
    incomplete: Option<bool>,
}

#[derive(Deserialize)]
struct ContainerEntry {
    id: String,
    #[serde(default)]
    names: Option<Firsts<String, 1>>,
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    layer: Option<String>,
    #[serde(default)]
    uidmap: Option<Ranges>,
    #[serde(default)]
    gidmap: Option<Ranges>,
}

/// The map of a user namespace; `None` for an empty one.
fn owners(users: Option<Ranges>, groups: Option<Ranges>) -> Option<Arc<OwnerMap>> {
    let ranges = |map: Option<Ranges>| -> Vec<Range> {
        let range = |entry: RangeEntry| {
            let RangeEntry { container_id: inside, host_id: outside, size: count } = entry;
            Range { inside, outside, count }
        };
        map.unwrap_or_default().kept.into_iter().map(range).collect()
    };
    let owners = OwnerMap { users: ranges(users), groups: ranges(groups) };
    (owners != OwnerMap::default()).then(|| Arc::new(owners))
}

fn entry<'de, T: Deserialize<'de>>(entry: &'de RawValue) -> Result<T, String> {
    serde_json::from_str(entry.get()).map_err(|error| error.to_string())
}

fn no_id(text: &str) -> String {
    format!("{:?} is no ID", text.chars().take(80).collect::<String>())
}

/// An ID that may be missing; an empty one counts as missing, as for the engine.
fn id<T>(text: Option<String>, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, String> {
    let text = text.filter(|text| !text.is_empty());
    text.map(|text| parse(&text).ok_or_else(|| no_id(&text))).transpose()
}

impl Listed for ListedImage {
    type Id = ImageId;

    fn parse(raw: &RawValue) -> Result<Option<Self>, String> {
        let image: ImageEntry = entry(raw)?;
        let names = image.names.unwrap_or_default();
        Ok(Some(Self {
            id: ImageId::from_hex(&image.id).ok_or_else(|| no_id(&image.id))?,
            // Other algorithms name no file and no reference here.
            digest: image.digest.and_then(|digest| digest.parse().ok()),
            names_left_out: names.count.saturating_sub(names.kept.len()),
            names: names.kept,
            layer: id(image.layer, StorageLayerId::from_hex)?,
            documents: image.big_data_names.unwrap_or_default().kept,
        }))
    }

    fn id(&self) -> ImageId {
        self.id
    }
}

impl Listed for ListedLayer {
    type Id = StorageLayerId;

    fn parse(raw: &RawValue) -> Result<Option<Self>, String> {
        let layer: LayerEntry = entry(raw)?;
        if layer.flags.and_then(|flags| flags.incomplete).unwrap_or_default() {
            return Ok(None);
        }
        // A layer that was pulled in parts has no size, and may have the digest of the compressed blob for its own.
        let is_sure = layer.diff_size.is_some() && layer.toc_digest.is_none_or(|digest| digest.is_empty());
        let owners = owners(layer.uidmap, layer.gidmap);
        Ok(Some(Self {
            id: StorageLayerId::from_hex(&layer.id).ok_or_else(|| no_id(&layer.id))?,
            parent: id(layer.parent, StorageLayerId::from_hex)?,
            diff: layer.diff_digest.filter(|_| is_sure).and_then(|digest| digest.parse().ok()),
            size_bytes: layer.diff_size,
            is_mapped: owners.is_some(),
            owners,
        }))
    }

    fn id(&self) -> StorageLayerId {
        self.id
    }
}

impl Listed for ListedContainer {
    type Id = ContainerId;

    fn parse(raw: &RawValue) -> Result<Option<Self>, String> {
        let container: ContainerEntry = entry(raw)?;
        Ok(Some(Self {
            id: ContainerId::from_hex(&container.id).ok_or_else(|| no_id(&container.id))?,
            name: container.names.unwrap_or_default().kept.into_iter().next(),
            image: container.image.and_then(|image| ImageId::from_hex(&image)),
            layer: id(container.layer, StorageLayerId::from_hex)?,
            owners: owners(container.uidmap, container.gidmap),
            record: raw.get().to_owned(),
        }))
    }

    fn id(&self) -> ContainerId {
        self.id
    }
}

/// Entries by their IDs.
pub(super) fn by_id<T: Listed<Id: Ord>>(list: Vec<T>) -> BTreeMap<T::Id, T> {
    list.into_iter().map(|entry| (entry.id(), entry)).collect()
}
