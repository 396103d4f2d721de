//! From images' names to configs: what each name's target leads to, and which of it the name stands for.
//!
//! An image is what a config describes, and its ID is the config's digest, as for the classic Docker and for CRI; that
//! of an index or manifest would be several images' or none's. Of an index all platforms are offered that are here, and
//! the name stands for this machine's, or for the first that is unpacked.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::content::{Content, Document, ENTRIES_MAX, Listed, Named, Platform, blob_of};
use super::records::{ImageRecord, Records};
use crate::digest::{CacheId, ChainId, ImageId, ManifestDigest};
use crate::error::{Error, Result};
use crate::meta::Timestamp;
use crate::reference::{Reference, Version};
use crate::store::config::Config;
use crate::store::reading::blame;
use crate::store::{Catalogue, Damage, Image, ImageLayer, List, Stamp, Standing};

/// The most indexes in one another.
const DEPTH_MAX: usize = 8;
/// As many odd names are told one by one.
const TOLD_MAX: usize = 100;
/// The repository under which Docker keeps images without a name.
const DANGLING: &str = "moby-dangling@";

/// All images, of which nothing is known yet of layers.
#[derive(Debug, Default)]
pub(super) struct Drafts {
    drafts: BTreeMap<ImageId, Draft>,
    targets: BTreeMap<Target, Outcome>,
    platforms: Platforms,
}

/// Of which configs it was found out whether they are for this machine: an index can name one a thousand times.
type Platforms = BTreeMap<ImageId, bool>;

/// An image's config, what is wrong with it, and that it is none.
#[derive(Debug)]
struct Draft {
    image: Arc<Image>,
    wrong: Vec<Damage>,
    remark: Option<Damage>,
}

/// Tells of a layer's directory whether it holds the whole tree.
pub(super) type IsWhole<'a> = &'a dyn Fn(&CacheId) -> bool;

/// What a name stands for: a document, and what the name says that it is.
type Target = (ManifestDigest, Named);

/// What a target leads to.
#[derive(Debug, Default)]
struct Outcome {
    found: Vec<Candidate>,
    wrong: Vec<Damage>,
    /// Whether there is something that is no image.
    has_artifact: bool,
    is_index: bool,
}

#[derive(Debug)]
struct Candidate {
    id: ImageId,
    manifest: ManifestDigest,
    is_this_machines: bool,
}

/// The documents of an image: its manifest, and the index by which it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Documents {
    pub(super) manifest: ManifestDigest,
    pub(super) index: Option<ManifestDigest>,
}

/// Where images are to be found when they have been read.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// The documents of each.
    pub(super) documents: BTreeMap<ImageId, Documents>,
    /// What stands under the name of each namespace.
    pub(super) by_name: BTreeMap<(Arc<str>, String), ImageId>,
    /// What the target or manifest of each digest is.
    pub(super) by_digest: BTreeMap<ManifestDigest, ImageId>,
}

impl Drafts {
    /// Reads the documents and configs of all images.
    ///
    /// # Errors
    /// Transient ones.
    pub(super) fn read(content: &Content, records: &Records, known: Option<&Catalogue>) -> Result<Self> {
        let mut drafts = Self::default();
        let mut documents = BTreeSet::new();
        if known.is_none() {
            content.keep(|_| false);
        }
        for record in &records.images {
            let Some(target) = target_of(record) else { continue };
            if drafts.targets.contains_key(&target) {
                continue;
            }
            let platforms = &mut drafts.platforms;
            let outcome = Outcome::default();
            let mut walk = Walk { content, outcome, seen: BTreeSet::new(), left: ENTRIES_MAX, platforms };
            walk.visit(&target.0, target.1, None, 0)?;
            let Walk { mut outcome, seen, .. } = walk;
            documents.extend(seen);
            for candidate in &mut outcome.found {
                drafts.load(content, candidate, known)?;
            }
            drafts.leave_out_absent(&mut outcome);
            drafts.targets.insert(target, outcome);
        }
        content.keep(|digest| documents.contains(digest));
        Ok(drafts)
    }

    fn load(&mut self, content: &Content, candidate: &Candidate, known: Option<&Catalogue>) -> Result<()> {
        if let Entry::Vacant(vacant) = self.drafts.entry(candidate.id) {
            let known = known.and_then(|known| known.images.get(&candidate.id));
            vacant.insert(load(content, &candidate.id, known)?);
        }
        Ok(())
    }

    /// Of several platforms those are not here whose configs are not; one stays, to be told.
    fn leave_out_absent(&self, outcome: &mut Outcome) {
        let is_here = |id: &ImageId| self.drafts.get(id).is_some_and(|draft| draft.image.has_config);
        let is_damaged = |id: &ImageId| self.drafts.get(id).is_some_and(|draft| draft.image.config_bytes > 0);
        if outcome.found.iter().any(|candidate| is_here(&candidate.id)) {
            outcome.found.retain(|candidate| is_here(&candidate.id) || is_damaged(&candidate.id));
        } else {
            outcome.found.truncate(1);
        }
    }

    /// The layers that images' configs name.
    pub(super) fn layers(&self) -> impl Iterator<Item = &[ImageLayer]> {
        self.drafts.values().map(|draft| draft.image.layers.as_slice())
    }

    /// Puts the images and their names into a catalogue that has the layers.
    pub(super) fn finish(
        mut self,
        records: &Records,
        content: &Content,
        is_whole: IsWhole<'_>,
        catalogue: &mut Catalogue,
    ) -> Index {
        let mut index = Index::default();
        let mut names = Names::default();
        for (snapshotter, chains) in &records.others {
            names.others.extend(chains.iter().map(|chain| (*chain, snapshotter.clone())));
        }
        for record in &records.images {
            let Some(target) = target_of(record) else {
                let why = format!("its target {:?} is no SHA-256 digest", start_of(&record.digest));
                tell(&mut names.damaged, &mut catalogue.damage, Damage::of(shown(record), why));
                continue;
            };
            let Some(id) = self.choose(record, &target, content, catalogue) else { continue };
            let outcome = self.targets.get(&target);
            let found = outcome.map(|outcome| outcome.found.as_slice()).unwrap_or_default();
            names.add(record, &target.0, id, found, &mut catalogue.remarks);
            index.by_name.insert((Arc::clone(&record.namespace), record.name.clone()), id);
            index.by_digest.entry(target.0).or_insert(id);
            let is_index = outcome.is_some_and(|outcome| outcome.is_index);
            for candidate in found {
                index.by_digest.entry(candidate.manifest).or_insert(candidate.id);
                let documents = Documents { manifest: candidate.manifest, index: is_index.then_some(target.0) };
                // An index tells more than the manifest alone.
                index
                    .documents
                    .entry(candidate.id)
                    .and_modify(|known| *known = known.or(documents))
                    .or_insert(documents);
            }
        }
        for outcome in self.targets.values_mut() {
            catalogue.damage.append(&mut outcome.wrong);
        }
        names.finish(catalogue);
        self.images(&names, &index, content, is_whole, catalogue);
        index
    }

    /// The image that a name stands for. A target of which nothing can be shown is an image without a config, under the
    /// target's digest.
    fn choose(
        &mut self,
        record: &ImageRecord,
        target: &Target,
        content: &Content,
        catalogue: &Catalogue,
    ) -> Option<ImageId> {
        let outcome = self.targets.get(target)?;
        let has_this = outcome.found.iter().any(|candidate| candidate.is_this_machines);
        let is_unpacked = |id: &ImageId| {
            let draft = self.drafts.get(id);
            draft.and_then(|draft| draft.image.top()).is_some_and(|top| catalogue.layers.contains_key(&top))
        };
        let best = outcome.found.iter().min_by_key(|it| (!it.is_this_machines, !is_unpacked(&it.id)));
        if let Some(best) = best.filter(|_| has_this || outcome.wrong.is_empty()) {
            return Some(best.id);
        }
        let id = ImageId::from_hex(&target.0.hex())?;
        let (mut wrong, mut remark) = (outcome.wrong.clone(), None);
        if wrong.is_empty() && outcome.has_artifact {
            remark = Some(Damage::of(shown(record), "no image of a container"));
        } else if wrong.is_empty() {
            wrong.push(Damage::of(shown(record), "none of the manifests that its index names is here"));
        }
        let stored = content.root.stat(&blob_of(&id.hex())).ok().flatten().map_or(record.updated, |blob| blob.modified);
        self.drafts.entry(id).or_insert_with(|| Draft { image: Arc::new(empty(id, stored)), wrong, remark });
        Some(id)
    }

    /// Puts the images into the catalogue, each with what is wrong with it.
    fn images(self, names: &Names, index: &Index, content: &Content, is_whole: IsWhole<'_>, catalogue: &mut Catalogue) {
        let sentence = |damage: &Damage| format!("{}: {}", damage.what, damage.why);
        let broken: BTreeMap<String, Damage> =
            catalogue.damage.iter().map(|damage| (sentence(damage), damage.clone())).collect();
        let (mut damage, mut remarks) = (Vec::new(), Vec::new());
        for (id, Draft { image, wrong, remark }) in self.drafts {
            let remark = remark.or_else(|| not_unpacked(&image, names, catalogue));
            let unsound = unsound_layers(&image, &broken, catalogue, is_whole);
            let wrong: Vec<Damage> = wrong.into_iter().chain(unsound).collect();
            let standing = if names.named.contains_key(&id) { Standing::Referenced } else { Standing::Dangling };
            let sentences: Vec<String> = wrong.iter().map(sentence).collect();
            let remarked = remark.iter().map(sentence).collect();
            let documents = index.documents.get(&id);
            let manifest = documents.and_then(|known| content.kept(&known.manifest));
            let index = documents.and_then(|known| content.kept(known.index.as_ref()?));
            let told =
                Image { standing, damage: sentences, remarks: remarked, manifest, index, ..Image::clone(&image) };
            catalogue.images.insert(id, if told == *image { image } else { Arc::new(told) });
            damage.extend(wrong.into_iter().map(|wrong| (wrong, id)));
            remarks.extend(remark.map(|remark| (remark, id)));
        }
        blame(&mut catalogue.damage, damage);
        blame(&mut catalogue.remarks, remarks);
    }
}

impl Documents {
    fn or(self, other: Self) -> Self {
        if self.index.is_some() { self } else { other }
    }
}

fn target_of(record: &ImageRecord) -> Option<Target> {
    Some((record.digest.parse().ok()?, Named::of(&record.media_type)))
}

/// A name as messages have it.
fn shown(record: &ImageRecord) -> String {
    format!("the image {:?} of the namespace {:?}", start_of(&record.name), start_of(&record.namespace))
}

/// As much of a text as a message needs.
fn start_of(text: &str) -> String {
    text.chars().take(200).collect()
}

/// The way from a target to the manifests below it.
struct Walk<'a> {
    content: &'a Content,
    outcome: Outcome,
    /// What was looked at, as an index may name a document twice.
    seen: BTreeSet<ManifestDigest>,
    left: usize,
    platforms: &'a mut Platforms,
}

impl Walk<'_> {
    fn visit(
        &mut self,
        digest: &ManifestDigest,
        named: Named,
        is_this_machines: Option<bool>,
        depth: usize,
    ) -> Result<()> {
        if !self.seen.insert(*digest) {
            return Ok(());
        }
        let file = blob_of(&digest.hex());
        let document = match self.content.document(digest, named) {
            Ok(Some(document)) => document,
            // Of a target the document must be here; those of other platforms seldom are.
            Ok(None) if depth > 0 => return Ok(()),
            Ok(None) => return self.wrong(&file, Error::damaged(self.content.root.shown(&file), "missing")),
            Err(error) => return self.wrong(&file, error),
        };
        match &*document {
            Document::Index { entries, left_out } => {
                self.outcome.is_index |= depth == 0;
                self.entries(&file, entries, *left_out, depth)
            }
            Document::Manifest { config } => {
                let is_this_machines = is_this_machines.unwrap_or_else(|| depth == 0 || self.is_this_machines(config));
                self.outcome.found.push(Candidate { id: *config, manifest: *digest, is_this_machines });
                Ok(())
            }
            Document::Artifact => {
                self.outcome.has_artifact = true;
                Ok(())
            }
        }
    }

    fn entries(
        &mut self,
        file: &crate::name::TreePath,
        entries: &[Listed],
        left_out: usize,
        depth: usize,
    ) -> Result<()> {
        let wrong = |why: String| Error::damaged(self.content.root.shown(file), why);
        if depth >= DEPTH_MAX {
            return self.wrong(file, wrong(format!("an index in more than {DEPTH_MAX} others")));
        }
        if left_out > 0 || entries.len() > self.left {
            self.wrong(file, wrong(format!("with the indexes in it, it has more than {ENTRIES_MAX} entries")))?;
        }
        for entry in entries {
            let Some(left) = self.left.checked_sub(1) else { break };
            self.left = left;
            match entry.digest {
                Some(digest) => {
                    self.visit(&digest, entry.named, entry.is_this_machines, depth.saturating_add(1))?;
                }
                None => {
                    let error = Error::damaged(self.content.root.shown(file), "an entry has no SHA-256 digest");
                    self.wrong(file, error)?;
                }
            }
        }
        Ok(())
    }

    fn wrong(&mut self, file: &crate::name::TreePath, error: Error) -> Result<()> {
        let damage = Damage::from_error(&self.content.root, file, error)?;
        if !self.outcome.wrong.contains(&damage) && self.outcome.wrong.len() < TOLD_MAX {
            self.outcome.wrong.push(damage);
        }
        Ok(())
    }

    /// Whether a config says that it runs on this machine.
    fn is_this_machines(&mut self, config: &ImageId) -> bool {
        let read = || {
            let (config, _) = self.content.read(&config.hex()).ok().flatten()?;
            serde_json::from_slice::<Platform>(&config).ok()
        };
        *self.platforms.entry(*config).or_insert_with(|| read().is_some_and(|platform| platform.is_this()))
    }
}

/// An image of which nothing is known.
fn empty(id: ImageId, stored: Timestamp) -> Image {
    Image {
        id,
        standing: Standing::Dangling,
        layers: Vec::new(),
        history: Vec::new(),
        config_bytes: 0,
        manifest: None,
        index: None,
        stored,
        has_config: false,
        is_config_kept: false,
        damage: Vec::new(),
        remarks: Vec::new(),
        stamp: Stamp::default(),
    }
}

/// Reads an image's config, unless it is the one that is known.
///
/// # Errors
/// Transient ones.
fn load(content: &Content, id: &ImageId, known: Option<&Arc<Image>>) -> Result<Draft> {
    let file = blob_of(&id.hex());
    let meta = content.root.stat(&file).ok().flatten();
    let is_same = |known: &Arc<Image>| meta.as_ref().is_some_and(|meta| Stamp::from(meta) == known.stamp);
    if let Some(known) = known.filter(|known| known.is_config_kept && is_same(known)) {
        return Ok(Draft { image: Arc::clone(known), wrong: Vec::new(), remark: None });
    }
    let mut image = empty(*id, Timestamp::default());
    if let Some(meta) = meta {
        (image.stored, image.stamp, image.config_bytes) = (meta.modified, Stamp::from(&meta), meta.size_bytes);
    }
    let outcome = match content.read(&id.hex()) {
        Ok(Some((config, _))) => {
            image.has_config = true;
            fill(&config, &mut image).map_err(|why| Error::damaged(content.root.shown(&file), why))
        }
        Ok(None) => Err(Error::damaged(content.root.shown(&file), "missing")),
        Err(error) => Err(error),
    };
    let wrong = outcome.err().map(|error| Damage::from_error(&content.root, &file, error)).transpose()?;
    Ok(Draft { image: Arc::new(image), wrong: wrong.into_iter().collect(), remark: None })
}

fn fill(config: &[u8], image: &mut Image) -> std::result::Result<(), String> {
    let config = Config::parse(config)?;
    image.history = config.history;
    image.layers = config.layers?;
    image.is_config_kept = true;
    Ok(())
}

/// That no snapshot has an image's top layer, which is ordinary: images are kept for other machines, or without being
/// unpacked. Where not all layers could be read, it is not known.
fn not_unpacked(image: &Image, names: &Names, catalogue: &Catalogue) -> Option<Damage> {
    let is_known = |top: &ChainId| catalogue.layers.contains_key(top) || catalogue.unread.contains_key(&List::Layers);
    let top = image.top().filter(|top| !is_known(top))?;
    let what = names.named.get(&image.id).cloned().unwrap_or_else(|| format!("image {}", image.id));
    Some(Damage::of(what, format!("not unpacked: {}", names.elsewhere(&top))))
}

/// What is wrong with an image's layers. Of whole trees the top one is all.
fn unsound_layers(
    image: &Image,
    broken: &BTreeMap<String, Damage>,
    catalogue: &Catalogue,
    is_whole: IsWhole<'_>,
) -> Vec<Damage> {
    let Some(top) = image.top() else { return Vec::new() };
    if !catalogue.layers.contains_key(&top) {
        let unread = catalogue.unread.get(&List::Layers);
        return unread.and_then(|why| broken.get(why)).cloned().into_iter().collect();
    }
    let is_whole = catalogue.layers.get(&top).and_then(|top| top.cache_id.as_ref()).is_some_and(is_whole);
    let ground = if is_whole { vec![top] } else { catalogue.chains(top) };
    let damage = |chain: &ChainId| broken.get(catalogue.layers.get(chain)?.damage.as_ref()?).cloned();
    let wrong: Vec<Damage> = ground.iter().filter_map(damage).collect();
    if !wrong.is_empty() {
        // What is missing is told with the layer that lies upon it.
        return wrong;
    }
    let missing = image.layers.iter().filter(|layer| !is_whole && !catalogue.layers.contains_key(&layer.chain));
    missing.map(|layer| Damage::of(format!("layer {}", layer.chain), "missing, though one above it is there")).collect()
}

/// Tells one of some, but not too many.
fn tell(count: &mut usize, told: &mut Vec<Damage>, one: Damage) {
    *count = count.saturating_add(1);
    if *count <= TOLD_MAX {
        told.push(one);
    }
}

/// The names of images.
#[derive(Debug, Default)]
struct Names {
    /// Which record a reference is taken from.
    winners: BTreeMap<Reference, Winner>,
    /// What other records say of the same reference.
    clashes: BTreeMap<Reference, BTreeSet<(Arc<str>, ImageId)>>,
    digests: BTreeMap<Reference, ImageId>,
    /// An image's first name, as messages have it.
    named: BTreeMap<ImageId, String>,
    /// How many records are damaged, and of how many there is something to remark.
    damaged: usize,
    remarked: usize,
    /// The snapshotters that are not read, by the layers that they have.
    others: BTreeMap<ChainId, String>,
}

#[derive(Debug)]
struct Winner {
    id: ImageId,
    updated: Timestamp,
    namespace: Arc<str>,
}

impl Names {
    fn add(
        &mut self,
        record: &ImageRecord,
        target: &ManifestDigest,
        id: ImageId,
        found: &[Candidate],
        remarks: &mut Vec<Damage>,
    ) {
        self.named.entry(id).or_insert_with(|| shown(record));
        for candidate in found {
            let named = || format!("image {}, of another platform than {}", candidate.id, shown(record));
            self.named.entry(candidate.id).or_insert_with(named);
        }
        // CRI names an image by its ID too, and Docker one without a name.
        if record.name.starts_with("sha256:") || record.name.starts_with(DANGLING) {
            return;
        }
        let Ok(reference) = Reference::parse(&record.name) else {
            let why = "the name is no reference, so it is shown by its ID alone";
            tell(&mut self.remarked, remarks, Damage::of(shown(record), why));
            return;
        };
        let digests = found.iter().map(|candidate| (candidate.manifest, candidate.id));
        for (digest, id) in [(*target, id)].into_iter().chain(digests) {
            if let Ok(by_digest) = Reference::parse(&format!("{}@{digest}", reference.repository())) {
                self.digests.entry(by_digest).or_insert(id);
            }
        }
        match reference.version() {
            Version::Tag(_) => self.tag(reference, record, id),
            Version::Digest(_) => drop(self.digests.insert(reference, id)),
        }
    }

    fn tag(&mut self, reference: Reference, record: &ImageRecord, id: ImageId) {
        let one = Winner { id, updated: record.updated, namespace: Arc::clone(&record.namespace) };
        let Some(known) = self.winners.get_mut(&reference) else {
            self.winners.insert(reference, one);
            return;
        };
        let loser = if one.updated > known.updated { std::mem::replace(known, one) } else { one };
        if loser.id != known.id {
            self.clashes.entry(reference).or_default().insert((loser.namespace, loser.id));
        }
    }

    /// Puts the references into a catalogue, and tells of those that name several images.
    fn finish(&mut self, catalogue: &mut Catalogue) {
        for (reference, losers) in std::mem::take(&mut self.clashes) {
            let Some(winner) = self.winners.get(&reference) else { continue };
            let losers = losers.into_iter().filter(|(_, id)| *id != winner.id);
            let losers: Vec<String> = losers.map(|(namespace, id)| format!("{id} in {namespace:?}")).collect();
            if losers.is_empty() {
                continue;
            }
            let why = format!(
                "it names {} in the namespace {:?}, where it was updated last, which is shown, and {}, which by-id has",
                winner.id,
                winner.namespace,
                losers.join(", ")
            );
            tell(&mut self.remarked, &mut catalogue.remarks, Damage::of(format!("the name {reference}"), why));
        }
        let more = |told: usize, what: &str| {
            let more = told.checked_sub(TOLD_MAX).filter(|more| *more > 0)?;
            Some(Damage::of("the names of images".to_owned(), format!("of {more} more {what}")))
        };
        catalogue.damage.extend(more(self.damaged, "something is wrong"));
        catalogue.remarks.extend(more(self.remarked, "there is as much to remark"));
        let tags = std::mem::take(&mut self.winners).into_iter().map(|(reference, winner)| (reference, winner.id));
        catalogue.references = std::mem::take(&mut self.digests).into_iter().chain(tags).collect();
    }

    /// Where a layer may be that is not here.
    fn elsewhere(&self, top: &ChainId) -> String {
        match self.others.get(top) {
            Some(other) => format!("the snapshotter {other:?} has its layers, which is not supported"),
            None => "its layers are in no snapshot".to_owned(),
        }
    }
}
