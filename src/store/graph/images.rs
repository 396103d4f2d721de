//! `graph`: images, each with one layer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::layer_of;
use crate::digest::ImageId;
use crate::error::{Error, Result};
use crate::meta::{FileId, Meta, Timestamp};
use crate::name::{Name, TreePath};
use crate::reference::Reference;
use crate::root::{Folder, Root};
use crate::store::driver::Driver;
use crate::store::reading::{blame, in_parallel, path, sound_ids};
use crate::store::{Catalogue, Damage, Image, ImageLayer, LayerRecord, Layering, List, Stamp, Standing, Step};

pub(super) const JSON: &str = "json";
pub(super) const PARENT: &str = "parent";
/// The largest document that is read, in bytes. An image's own is of a few thousand.
pub(super) const JSON_MAX: usize = 4 << 20;
/// The largest of the small files that is read, in bytes.
pub(super) const FIELD_MAX: usize = 4096;
/// The most images that lie upon one another; aufs has no more branches (moby v1.9.1, `daemon/create.go`).
const DEPTH_MAX: usize = 127;
/// The longest command of a build step that is kept, in bytes.
const COMMAND_MAX: usize = 1_000;
/// The most text of build steps that is kept of all images, in bytes: each has those of all below it.
const STEPS_TEXT_MAX: usize = 32 << 20;

#[derive(Deserialize)]
struct Json {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parent: Option<String>,
    #[serde(default)]
    parent_id: Option<String>,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    container_config: Option<ContainerConfig>,
}

#[derive(Deserialize)]
struct ContainerConfig {
    #[serde(default, rename = "Cmd")]
    command: Option<Command>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Command {
    Words(Vec<String>),
    Text(String),
    Other(IgnoredAny),
}

/// Reads images.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) graph: &'a Root,
    pub(super) driver: &'a dyn Driver,
    /// Whether there are images of other drivers, whose layers this one does not have.
    pub(super) is_shared: bool,
}

/// An image as its own directory tells it.
struct Found {
    id: ImageId,
    parent: Option<ImageId>,
    step: Step,
    config_bytes: u64,
    stored: Timestamp,
    json: Stamp,
    entry: Stamp,
    has_config: bool,
    /// Which directory holds the layer's files, where it is one.
    root: Option<FileId>,
    /// What is wrong with what its directory says of it.
    damage: Option<Damage>,
    /// What is wrong with the layer's files.
    lost: Option<Damage>,
}

/// A file of an image.
pub(super) fn file_of(id: &ImageId, file: &str) -> TreePath {
    path(&format!("{}/{file}", id.hex()))
}

impl Reader<'_> {
    /// Reads all images and layers. One that is damaged is listed with what is wrong.
    pub(super) fn read(&self, references: BTreeMap<Reference, ImageId>, catalogue: &mut Catalogue) -> Result<()> {
        let top = TreePath::root();
        let ids = sound_ids(self.graph, &top, ImageId::from_hex, List::Images, catalogue)?;
        let mut found = BTreeMap::new();
        if let Some(entries) = self.graph.folder(&top)? {
            for image in in_parallel(&ids, |id| self.image(&entries, id)) {
                found.extend(image?.map(|image| (image.id, image)));
            }
        }
        let referenced: BTreeSet<ImageId> = references.values().copied().collect();
        if self.is_shared {
            self.leave_out_others(&referenced, &mut found)?;
        }
        let parents: BTreeSet<ImageId> = found.values().filter_map(|image| image.parent).collect();
        let standing = |id: &ImageId| match (referenced.contains(id), parents.contains(id)) {
            (true, _) => Standing::Referenced,
            (false, true) => Standing::Intermediate,
            (false, false) => Standing::Dangling,
        };
        let (mut wrong, mut text_left) = (Vec::new(), STEPS_TEXT_MAX);
        for id in found.keys().chain(referenced.iter().filter(|id| !found.contains_key(*id))) {
            let (image, damage) = self.stacked(id, standing(id), &found, &mut text_left);
            if let Some(own) = found.get(id) {
                // What keeps a layer from being found below keeps it from being united.
                let wrong = own
                    .damage
                    .as_ref()
                    .or(own.lost.as_ref())
                    .or_else(|| damage.iter().find(|found| is_of_stack(found)));
                catalogue.layers.insert(id.as_chain(), Arc::new(self.record(own, wrong)?));
            }
            wrong.extend(damage.into_iter().map(|damage| (damage, *id)));
            catalogue.images.insert(*id, Arc::new(image));
        }
        blame(&mut catalogue.damage, wrong);
        catalogue.references = references;
        Ok(())
    }

    fn image(&self, entries: &Folder<'_>, id: &ImageId) -> Result<Option<Found>> {
        let name = name(&id.hex());
        let mut image = Found {
            id: *id,
            parent: None,
            step: Step { created: String::new(), created_by: String::new(), is_empty: false },
            config_bytes: 0,
            stored: Timestamp::default(),
            json: Stamp::default(),
            entry: Stamp::default(),
            has_config: false,
            root: None,
            damage: None,
            lost: None,
        };
        let mut lost = None;
        let outcome = match entries.folder(&name) {
            // It was removed since its name was read.
            Ok(None) => return Ok(None),
            Ok(Some(entry)) => {
                image.entry = Stamp::from(&entry.meta()?);
                match self.driver.check(&layer_of(id)?) {
                    Ok(found) => image.root = Some(found.id()),
                    Err(error) => lost = Some(error),
                }
                fill(&entry, &mut image)
            }
            Err(error) => Err(error),
        };
        let damage = |error| Damage::from_error(self.graph, &path(&id.hex()), error);
        image.damage = outcome.err().map(damage).transpose()?;
        image.lost = lost.map(damage).transpose()?;
        Ok(Some(image))
    }

    /// Takes out the images that other drivers have and this one has not, unless a reference leads to them.
    fn leave_out_others(&self, referenced: &BTreeSet<ImageId>, found: &mut BTreeMap<ImageId, Found>) -> Result<()> {
        let mut kept = BTreeSet::new();
        for id in found.keys() {
            if !referenced.contains(id) && self.driver.find(&layer_of(id)?)?.is_none() {
                continue;
            }
            let mut next = Some(*id);
            while let Some(id) = next.filter(|id| kept.insert(*id)) {
                next = found.get(&id).and_then(|image| image.parent);
            }
        }
        found.retain(|id, _| kept.contains(id));
        Ok(())
    }

    /// An image with all below it, and what is wrong with any of them.
    fn stacked(
        &self,
        id: &ImageId,
        standing: Standing,
        all: &BTreeMap<ImageId, Found>,
        text_left: &mut usize,
    ) -> (Image, Vec<Damage>) {
        let own = all.get(id);
        let (mut stack, mut damage) = (Vec::new(), Vec::new());
        let mut next = Some(*id);
        while let Some(id) = next {
            let Some(image) = all.get(&id) else {
                let why = if stack.is_empty() { "a reference names this image" } else { "an image lies upon this one" };
                damage.push(Damage::of(self.graph.shown(&path(&id.hex())), format!("{why}, but it is not there")));
                break;
            };
            if stack.len() == DEPTH_MAX {
                damage.push(Damage::of(self.graph.shown(&file_of(&stack_top(&stack, id), JSON)), ENDLESS));
                break;
            }
            damage.extend(image.damage.clone());
            // A whole tree needs no other.
            let counts = stack.is_empty() || self.driver.layering() == Layering::Deltas;
            damage.extend(image.lost.clone().filter(|_| counts));
            stack.push(id);
            next = image.parent;
        }
        stack.reverse();
        let image = Image {
            id: *id,
            standing,
            history: history(&stack, all, text_left),
            layers: stack.iter().map(|id| ImageLayer { diff: None, chain: id.as_chain() }).collect(),
            config_bytes: own.map_or(0, |own| own.config_bytes),
            manifest: None,
            index: None,
            stored: own.map_or_else(Timestamp::default, |own| own.stored),
            has_config: own.is_some_and(|own| own.has_config),
            is_config_kept: false,
            damage: damage.iter().map(ToString::to_string).collect(),
            remarks: Vec::new(),
            stamp: own.map_or_else(Stamp::default, |own| own.json),
        };
        (image, damage)
    }

    fn record(&self, own: &Found, damage: Option<&Damage>) -> Result<LayerRecord> {
        let cache_id = layer_of(&own.id)?;
        Ok(LayerRecord {
            chain: own.id.as_chain(),
            diff: None,
            parent: own.parent.as_ref().map(ImageId::as_chain),
            directory: Some(self.driver.directory(&cache_id)),
            cache_id: Some(cache_id),
            root: own.root,
            size_bytes: OnceLock::new(),
            damage: damage.map(ToString::to_string),
            stamp: own.entry,
        })
    }
}

/// What is said of an image whose ancestors do not end.
const ENDLESS: &str = "its ancestors lead back to one of them, or are more than 127";

fn is_of_stack(damage: &Damage) -> bool {
    damage.why == ENDLESS
}

/// The image that a walk began with.
fn stack_top(stack: &[ImageId], last: ImageId) -> ImageId {
    stack.first().copied().unwrap_or(last)
}

fn name(text: &str) -> Name {
    Name::escaped(text.as_bytes())
}

/// The build steps of an image and those below it, the base first; none where there is too much text in all.
fn history(stack: &[ImageId], all: &BTreeMap<ImageId, Found>, text_left: &mut usize) -> Vec<Step> {
    let steps = || stack.iter().filter_map(|id| all.get(id)).map(|image| &image.step);
    let text = steps().map(|step| step.created.len().saturating_add(step.created_by.len())).sum::<usize>();
    match text_left.checked_sub(text) {
        Some(left) => {
            *text_left = left;
            steps().cloned().collect()
        }
        None => Vec::new(),
    }
}

fn fill(entry: &Folder<'_>, image: &mut Found) -> Result<()> {
    let wrong = |file: &str, why: String| Error::damaged(entry.shown(&name(file)), why);
    let (content, meta) = read(entry, JSON, JSON_MAX)?.ok_or_else(|| wrong(JSON, "missing".to_owned()))?;
    (image.config_bytes, image.stored, image.json) = (meta.size_bytes, meta.modified, Stamp::from(&meta));
    image.has_config = true;
    let json: Json =
        serde_json::from_slice(&content).map_err(|error| wrong(JSON, format!("no image config: {error}")))?;
    if let Some(id) = json.id.as_ref().filter(|id| **id != image.id.hex()) {
        return Err(wrong(JSON, format!("says that it is image {:?}", start_of(id))));
    }
    image.step = Step {
        created: start_of(&json.created.unwrap_or_default()),
        created_by: json.container_config.and_then(|config| config.command).map_or_else(String::new, Command::text),
        is_empty: false,
    };
    // In this order, as the engine.
    let of = |file: &str, text: &str| {
        ImageId::from_hex(text).ok_or_else(|| wrong(file, format!("{:?} is no image ID", start_of(text))))
    };
    image.parent = match read(entry, PARENT, FIELD_MAX)? {
        Some((text, _)) => Some(of(PARENT, String::from_utf8_lossy(&text).trim())?),
        None => match (json.parent.filter(|text| !text.is_empty()), json.parent_id.filter(|text| !text.is_empty())) {
            (Some(parent), _) => Some(of(JSON, &parent)?),
            (None, Some(parent)) => Some(of(JSON, parent.strip_prefix("sha256:").unwrap_or(&parent))?),
            (None, None) => None,
        },
    };
    Ok(())
}

fn read(entry: &Folder<'_>, file: &str, limit_bytes: usize) -> Result<Option<(Vec<u8>, Meta)>> {
    entry.read(&name(file), limit_bytes)
}

impl Command {
    /// As one line of text, as far as it is kept.
    fn text(self) -> String {
        let mut text = match self {
            Self::Words(words) => words.join(" "),
            Self::Text(text) => text,
            Self::Other(IgnoredAny) => String::new(),
        };
        text.truncate(text.floor_char_boundary(COMMAND_MAX));
        text
    }
}

/// As much of a text as a message needs.
fn start_of(text: &str) -> String {
    text.chars().take(80).collect()
}
