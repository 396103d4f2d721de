//! The images: configs and manifests, the names that lead to them, and what they are made of.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::documents::{DOCUMENT_MAX, Instance, MANIFEST, Manifest, file_names, manifest_key};
use super::layers::{self, Fault, Keys};
use super::lists::ListedImage;
use crate::digest::{ImageId, ManifestDigest, StorageLayerId};
use crate::error::{Error, Result};
use crate::meta::{Kind, Meta, Timestamp};
use crate::name::TreePath;
use crate::reference::Reference;
use crate::root::Root;
use crate::store::config::Config;
use crate::store::looks::{Print, stamp};
use crate::store::reading::{blame, in_parallel, path};
use crate::store::{Catalogue, Damage, Image, ImageLayer, Kept, Layering, Stamp, Standing, Step};

/// As many wrong names are told one by one.
const WRONG_MAX: usize = 100;

/// An image whose documents were read.
#[derive(Debug)]
pub(super) struct Loaded<'a> {
    listed: &'a ListedImage,
    manifest: Option<Kept>,
    is: Is,
}

/// What a listed image is.
#[derive(Debug)]
enum Is {
    Image(Found),
    List(FoundList),
    Damaged(Damage),
}

/// A list of images, for each platform one.
#[derive(Debug)]
struct FoundList {
    instances: Vec<Instance>,
    meta: Meta,
    /// That of the document: the engine leaves in its own list what it was when the list was made.
    digest: ManifestDigest,
}

/// A config that was read.
#[derive(Debug)]
struct Found {
    history: Vec<Step>,
    /// What it is made of, or why that cannot be told.
    layers: std::result::Result<Made, Wrong>,
    file: TreePath,
    bytes: u64,
    stored: Timestamp,
    stamp: Stamp,
}

/// What an image is made of, bottom first: as the list of layers says it, and as the config names it.
#[derive(Debug)]
struct Made {
    stack: Vec<StorageLayerId>,
    named: Vec<ImageLayer>,
    /// The lowest layer of the stack, where what it lies upon is not listed. The config names that too.
    severed: Option<StorageLayerId>,
}

impl Made {
    /// What the config names below and in the stack.
    fn named(&self) -> (&[ImageLayer], &[ImageLayer]) {
        self.named.split_at_checked(self.named.len().saturating_sub(self.stack.len())).unwrap_or_default()
    }
}

/// Where it stands that it cannot be told what an image is made of, and why.
#[derive(Debug)]
enum Wrong {
    InConfig(String),
    InLayers(String),
}

/// How much of all images together is still held. One file can be the document of as many images as the list has, by
/// hard links, so that the sizes of the files bound nothing.
#[derive(Debug)]
struct Bounds {
    layers: AtomicUsize,
    steps_text_bytes: AtomicUsize,
    instances: AtomicUsize,
}

impl Bounds {
    /// Ten times what the largest hosts have.
    fn new() -> Self {
        Self {
            layers: AtomicUsize::new(1_000_000),
            steps_text_bytes: AtomicUsize::new(64 << 20),
            instances: AtomicUsize::new(500_000),
        }
    }

    /// Takes so much; tells whether there was enough.
    fn take(left: &AtomicUsize, count: usize) -> bool {
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(count)).is_ok()
    }
}

/// The file of one of an image's documents, where there is one.
///
/// # Errors
/// Where it could not be looked at.
fn find(root: &Root, id: &ImageId, key: &str) -> Result<Option<(TreePath, Meta)>> {
    for name in file_names(key) {
        let file = path(&id.hex()).join(&name);
        if let Some(meta) = root.stat(&file)? {
            return Ok(Some((file, meta)));
        }
    }
    Ok(None)
}

fn read(root: &Root, file: &TreePath) -> Result<Vec<u8>> {
    let gone = || Error::Stale { what: root.shown(file) };
    Ok(root.read(file, DOCUMENT_MAX)?.ok_or_else(gone)?.0)
}

/// The file of an image's config, and the ID that its content has: the image's own, unless that was made up.
fn find_config(root: &Root, id: &ImageId) -> Result<Option<(TreePath, Meta, ImageId)>> {
    if let Some((file, meta)) = find(root, id, &id.to_string())? {
        return Ok(Some((file, meta, *id)));
    }
    let Some((file, _)) = find(root, id, MANIFEST)? else { return Ok(None) };
    let Some(digest) = Manifest::parse(&read(root, &file)?).ok().and_then(|manifest| manifest.config()) else {
        return Ok(None);
    };
    Ok(find(root, id, &digest.to_string())?.map(|(file, meta)| (file, meta, digest)))
}

/// An image's config, byte for byte.
///
/// # Errors
/// As [`crate::store::Store::config`].
pub(super) fn config(root: &Root, id: &ImageId) -> Result<Vec<u8>> {
    let stale = || Error::Stale { what: format!("image {id}") };
    let (file, _, digest) = find_config(root, id)?.ok_or_else(stale)?;
    verified(root, &file, &digest)
}

fn verified(root: &Root, file: &TreePath, digest: &ImageId) -> Result<Vec<u8>> {
    let config = read(root, file)?;
    let found = ImageId::of_config(&config);
    if found != *digest {
        let why = format!("its SHA-256 is {}, not {}", found.hex(), digest.hex());
        return Err(Error::damaged(root.shown(file), why));
    }
    Ok(config)
}

/// The file of a manifest.
#[derive(Debug)]
struct ManifestFile {
    file: TreePath,
    meta: Meta,
    /// The digest by which it was found, which is then that of the content.
    digest: Option<ManifestDigest>,
}

/// The file of the manifest that an image's digest names, or else of the one that was written last, of which that digest
/// need not be: the engine adds to lists and leaves the digest that they had.
fn find_manifest(root: &Root, image: &ListedImage) -> Result<Option<ManifestFile>> {
    if let Some(digest) = image.digest
        && let Some((file, meta)) = find(root, &image.id, &manifest_key(&digest))?
    {
        return Ok(Some(ManifestFile { file, meta, digest: Some(digest) }));
    }
    let last = find(root, &image.id, MANIFEST)?;
    Ok(last.map(|(file, meta)| ManifestFile { file, meta, digest: None }))
}

/// An image's manifest, byte for byte.
///
/// # Errors
/// As [`crate::store::Store::manifest`].
pub(super) fn manifest(root: &Root, image: &ListedImage) -> Result<Vec<u8>> {
    let stale = || Error::Stale { what: format!("the manifest of image {}", image.id) };
    let ManifestFile { file, digest, .. } = find_manifest(root, image)?.ok_or_else(stale)?;
    let content = read(root, &file)?;
    let is_hashed = Manifest::parse(&content).is_ok_and(|manifest| manifest.is_hashed() && !manifest.is_list());
    match digest {
        Some(digest) if is_hashed && ManifestDigest::of_manifest(&content) != digest => {
            let why = format!("its SHA-256 is not {}", digest.hex());
            Err(Error::damaged(root.shown(&file), why))
        }
        Some(_) | None => Ok(content),
    }
}

/// The states of an image's files.
///
/// # Errors
/// Transient ones.
pub(super) fn print(root: &Root, id: &ImageId) -> Result<Print> {
    let files = file_names(&id.to_string()).into_iter().chain(file_names(MANIFEST));
    let stamps = files.map(|name| stamp(root, &path(&id.hex()).join(&name)));
    Ok(Print::of(&stamps.collect::<Result<Vec<_>>>()?))
}

/// Reads the documents of all images. One that is being made has none yet, and is left out.
///
/// # Errors
/// Transient ones.
pub(super) fn load<'a>(
    root: &Root,
    listed: &'a [ListedImage],
    layers: &layers::Listed,
    known: Option<&Catalogue>,
) -> Result<Vec<Loaded<'a>>> {
    let bounds = Bounds::new();
    let load = |image: &'a ListedImage| {
        let known = known.and_then(|known| known.images.get(&image.id));
        let is = match what_is(root, image, layers, &bounds, known.map(Arc::as_ref)) {
            Ok(Some(is)) => is,
            Ok(None) => return Ok(None),
            Err(error) => Is::Damaged(Damage::from_error(root, &path(&image.id.hex()), error)?),
        };
        // That a manifest cannot be looked at is no harm to the image.
        let manifest = match find_manifest(root, image) {
            Err(error) if error.is_transient() => return Err(error),
            found => found.ok().flatten().filter(|found| found.meta.kind == Kind::Regular),
        };
        Ok(Some(Loaded { listed: image, manifest: manifest.map(|found| Kept::from(&found.meta)), is }))
    };
    let places: Vec<&'a ListedImage> = listed.iter().collect();
    in_parallel(&places, |image| load(image)).into_iter().filter_map(Result::transpose).collect()
}

/// What a listed image is; `None` for one that is being made.
fn what_is(
    root: &Root,
    image: &ListedImage,
    layers: &layers::Listed,
    bounds: &Bounds,
    known: Option<&Image>,
) -> Result<Option<Is>> {
    if let Some((file, meta, digest)) = find_config(root, &image.id)? {
        let (mut history, named) = read_config(root, &file, &meta, &digest, known)?;
        let text_bytes = history.iter().map(|step| step.created.len().saturating_add(step.created_by.len())).sum();
        if !Bounds::take(&bounds.steps_text_bytes, text_bytes) {
            history = Vec::new();
        }
        let layers = named.map_err(Wrong::InConfig).and_then(|named| made(image, named, layers, bounds));
        let (bytes, stored, stamp) = (meta.size_bytes, meta.modified, Stamp::from(&meta));
        return Ok(Some(Is::Image(Found { history, layers, file, bytes, stored, stamp })));
    }
    let manifest = find_manifest(root, image)?;
    if let Some(ManifestFile { file, meta, .. }) = &manifest {
        let wrong = |why| Error::damaged(root.shown(file), why);
        let content = read(root, file)?;
        let manifest = Manifest::parse(&content).map_err(wrong)?;
        if manifest.is_list() {
            let instances: Vec<Instance> = manifest.instances().into_iter().cloned().collect();
            if !Bounds::take(&bounds.instances, instances.len()) {
                return Err(wrong("with those before it, it names more images than are looked at".to_owned()));
            }
            let digest = ManifestDigest::of_manifest(&content);
            return Ok(Some(Is::List(FoundList { instances, meta: *meta, digest })));
        }
    }
    let key = image.id.to_string();
    // The engine lists an image before it writes its documents, and each of those only when it is written.
    if manifest.is_none() && !image.documents.contains(&key) {
        return Ok(None);
    }
    let file =
        path(&image.id.hex()).join_path(&file_names(&key).into_iter().next().map(TreePath::from).unwrap_or_default());
    Err(Error::damaged(root.shown(&file), format!("missing, though it is the config of {}", called(image))))
}

/// An image as messages have it: by its first name, where it has one.
fn called(image: &ListedImage) -> String {
    match image.names.first() {
        Some(name) => format!("the image {:?}", name.chars().take(200).collect::<String>()),
        None => format!("the image {}", image.id),
    }
}

/// What an image is made of, where list and config agree in how many layers there are.
fn made(
    image: &ListedImage,
    named: Vec<ImageLayer>,
    layers: &layers::Listed,
    bounds: &Bounds,
) -> std::result::Result<Made, Wrong> {
    let (stack, severed) = match image.layer.map_or(Ok(Vec::new()), |top| layers::stack(layers, top)) {
        Ok(stack) => (stack, None),
        Err(Fault::Severed(lowest, stack)) => (stack, Some(lowest)),
        Err(Fault::Other(why)) => return Err(Wrong::InLayers(why)),
    };
    let fits = if severed.is_some() { named.len() > stack.len() } else { named.len() == stack.len() };
    if !fits {
        let more = if severed.is_some() { "more than " } else { "" };
        let why = format!("it names {} layers, but the store has {more}{} for it", named.len(), stack.len());
        return Err(Wrong::InConfig(why));
    }
    if !Bounds::take(&bounds.layers, named.len()) {
        let why = "with the images before it, it has more layers than are looked at".to_owned();
        return Err(Wrong::InConfig(why));
    }
    Ok(Made { stack, named, severed })
}

/// The build steps in a config, and the layers that it names.
type Told = (Vec<Step>, std::result::Result<Vec<ImageLayer>, String>);

fn read_config(root: &Root, file: &TreePath, meta: &Meta, digest: &ImageId, known: Option<&Image>) -> Result<Told> {
    // Content cannot change under an ID.
    let is_same = |known: &&Image| known.stamp == Stamp::from(meta) && known.is_config_kept;
    if let Some(known) = known.filter(is_same) {
        let mut layers: Vec<ImageLayer> = Vec::with_capacity(known.layers.len());
        for diff in known.layers.iter().filter_map(|layer| layer.diff) {
            layers.push(ImageLayer::upon(layers.last(), diff));
        }
        return Ok((known.history.clone(), Ok(layers)));
    }
    let config = verified(root, file, digest)?;
    let config = Config::parse(&config).map_err(|why| Error::damaged(root.shown(file), why))?;
    Ok((config.history, config.layers))
}

/// What the configs say of the layers that images are made of, where both are of one number.
pub(super) fn claims<'a>(loaded: &'a [Loaded<'_>]) -> impl Iterator<Item = (&'a [StorageLayerId], &'a [ImageLayer])> {
    loaded.iter().filter_map(|image| match &image.is {
        Is::Image(Found { layers: Ok(made), .. }) => Some((made.stack.as_slice(), made.named().1)),
        Is::Image(_) | Is::List(_) | Is::Damaged(_) => None,
    })
}

/// Puts images and references together into a catalogue that has the layers.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) root: &'a Root,
    /// The list of images, and that of layers, for messages.
    pub(super) lists: (String, String),
    pub(super) layers: &'a layers::Listed,
    /// That the list of layers has not all there is, and why.
    pub(super) unread: Option<&'a Damage>,
    pub(super) broken: &'a BTreeMap<StorageLayerId, Damage>,
    /// The layers of which it is not known what they lie upon.
    pub(super) severed: &'a BTreeMap<StorageLayerId, Damage>,
    pub(super) keys: &'a Keys,
    pub(super) layering: Layering,
}

impl Reader<'_> {
    pub(super) fn read(&self, loaded: Vec<Loaded<'_>>, catalogue: &mut Catalogue) {
        let stored: HashSet<ImageId> = loaded.iter().map(|image| image.listed.id).collect();
        let instances = instances(&loaded);
        let references = self.references(&loaded, &instances, catalogue);
        let standings = Standings::of(&loaded, self.layers, &references);
        let (mut damage, mut remarks) = (Vec::new(), Vec::new());
        for loaded in loaded {
            let id = loaded.listed.id;
            let standing = standings.of_image(&loaded);
            let remark = remark(&loaded, &instances);
            let (mut image, wrong) = self.image(loaded, standing);
            image.remarks.extend(remark.iter().map(ToString::to_string));
            damage.extend(wrong.into_iter().map(|wrong| (wrong, id)));
            remarks.extend(remark.map(|remark| (remark, id)));
            catalogue.images.insert(id, Arc::new(image));
        }
        blame(&mut catalogue.damage, damage);
        blame(&mut catalogue.remarks, remarks);
        catalogue.references = references.into_iter().filter(|(_, id)| stored.contains(id)).collect();
    }

    /// An image, and what is wrong with the store that it suffers from.
    fn image(&self, loaded: Loaded<'_>, standing: Standing) -> (Image, Vec<Damage>) {
        let mut image = Image {
            id: loaded.listed.id,
            standing,
            layers: Vec::new(),
            history: Vec::new(),
            config_bytes: 0,
            manifest: loaded.manifest,
            index: None,
            stored: Timestamp::default(),
            has_config: false,
            is_config_kept: false,
            damage: Vec::new(),
            remarks: Vec::new(),
            stamp: Stamp::default(),
        };
        let mut wrong = Vec::new();
        match loaded.is {
            Is::Image(found) => wrong = self.fill(&mut image, found),
            Is::List(list) => {
                image.stored = list.meta.modified;
                image.stamp = Stamp::from(&list.meta);
                return (image, Vec::new());
            }
            Is::Damaged(damage) => wrong.push(damage),
        }
        image.damage.extend(wrong.iter().map(ToString::to_string));
        // An image is as its layers are, whatever its config says of them, and whatever it is called.
        wrong.extend(self.contradiction(&image));
        wrong.extend(self.too_many_names(loaded.listed));
        (image, wrong)
    }

    fn fill(&self, image: &mut Image, found: Found) -> Vec<Damage> {
        image.has_config = true;
        image.history = found.history;
        (image.config_bytes, image.stored, image.stamp) = (found.bytes, found.stored, found.stamp);
        let made = match found.layers {
            Ok(made) => made,
            Err(Wrong::InConfig(why)) => return vec![Damage::of(self.root.shown(&found.file), why)],
            Err(Wrong::InLayers(why)) => {
                return vec![self.unread.cloned().unwrap_or_else(|| Damage::of(self.lists.1.clone(), why))];
            }
        };
        let mut wrong = Vec::new();
        let (below, named) = made.named();
        let severed = made.severed.and_then(|lowest| self.severed.get(&lowest)).cloned();
        // A config names layers and chooses none: those that are not of the list are not looked for elsewhere.
        if below.iter().any(|layer| self.keys.owner(&layer.chain).is_some()) {
            return severed.into_iter().collect();
        }
        image.layers.extend(below.iter().cloned());
        wrong.extend(severed.filter(|_| self.layering == Layering::Deltas));
        for (place, (id, named)) in made.stack.iter().zip(named).enumerate() {
            let Some(chain) = self.keys.of(id) else {
                let why = "its ID is another layer's chain ID";
                wrong.push(Damage::of(format!("layer {id}"), why));
                continue;
            };
            image.layers.push(ImageLayer { diff: named.diff, chain });
            let counts = self.layering == Layering::Deltas || place.saturating_add(1) == made.stack.len();
            wrong.extend(self.broken.get(id).filter(|_| counts).cloned());
        }
        image.is_config_kept = image.layers.len() == made.named.len();
        wrong
    }

    /// That the config names other content than the list of layers does.
    fn contradiction(&self, image: &Image) -> Option<Damage> {
        let listed = |layer: &ImageLayer| {
            let top = self.keys.owner(&layer.chain)?;
            let named = layer.diff?;
            let diff = self.layers.get(&top)?.diff.filter(|diff| *diff != named)?;
            Some((top, diff, named))
        };
        let (layer, found, named) = image.layers.iter().find_map(listed)?;
        let why = format!("layer {layer} has the diff ID {found}; the config of image {} says {named}", image.id);
        Some(Damage::of(self.lists.1.clone(), why))
    }

    /// That not all names of an image are looked at.
    fn too_many_names(&self, listed: &ListedImage) -> Option<Damage> {
        let left_out = Some(listed.names_left_out).filter(|count| *count > 0)?;
        let (id, kept) = (listed.id, listed.names.len());
        let why = format!("image {id} has {left_out} names more than the first {kept}, which alone are shown");
        Some(Damage::of(self.lists.0.clone(), why))
    }

    fn references(
        &self,
        loaded: &[Loaded<'_>],
        instances: &Instances,
        catalogue: &mut Catalogue,
    ) -> BTreeMap<Reference, ImageId> {
        let mut references: BTreeMap<Reference, ImageId> = BTreeMap::new();
        let mut wrong = Vec::new();
        for image in loaded {
            let target = match &image.is {
                Is::List(list) => instances.of(&list.instances).unwrap_or(image.listed.id),
                Is::Image(_) | Is::Damaged(_) => image.listed.id,
            };
            let digest = match &image.is {
                Is::List(list) => Some(list.digest),
                Is::Image(_) | Is::Damaged(_) => image.listed.digest,
            };
            for name in &image.listed.names {
                let Ok(reference) = Reference::parse(name) else {
                    wrong.push(format!("{:?} is no reference", name.chars().take(80).collect::<String>()));
                    continue;
                };
                // As the engine finds an image by its digest: in the repositories that its names are of.
                let digest = digest.map(|digest| format!("{}@{digest}", reference.repository()));
                if let Some(by_digest) = digest.and_then(|digest| Reference::parse(&digest).ok()) {
                    references.entry(by_digest).or_insert(target);
                }
                match references.get(&reference) {
                    Some(other) if *other != target => wrong.push(format!("names two images {reference}")),
                    Some(_) => {}
                    None => drop(references.insert(reference, target)),
                }
            }
        }
        let untold = wrong.len().saturating_sub(WRONG_MAX);
        wrong.truncate(WRONG_MAX);
        if untold > 0 {
            wrong.push(format!("{untold} more of its names are wrong"));
        }
        catalogue.damage.extend(wrong.into_iter().map(|why| Damage::of(self.lists.0.clone(), why)));
        references
    }
}

/// That a list leads to no image: it is sound, and nothing is to be shown.
fn remark(loaded: &Loaded<'_>, instances: &Instances) -> Option<Damage> {
    let Is::List(list) = &loaded.is else { return None };
    let why = match list.instances.as_slice() {
        [] => "a list without images",
        all if instances.of(all).is_none() => "a list of images for several platforms, none of which is stored here",
        _ => return None,
    };
    Some(Damage::of(called(loaded.listed), why))
}

/// The images that are stored, by the digests of their manifests.
#[derive(Debug)]
struct Instances(HashMap<ManifestDigest, ImageId>);

fn instances(loaded: &[Loaded<'_>]) -> Instances {
    let mut instances = HashMap::new();
    for image in loaded.iter().filter(|image| matches!(image.is, Is::Image(_))) {
        let prefix = format!("{MANIFEST}-");
        let by_key = image.listed.documents.iter().filter_map(|key| key.strip_prefix(&prefix)?.parse().ok());
        for digest in image.listed.digest.into_iter().chain(by_key) {
            instances.entry(digest).or_insert(image.listed.id);
        }
    }
    Instances(instances)
}

impl Instances {
    /// The first image of a list that is stored.
    fn of(&self, list: &[Instance]) -> Option<ImageId> {
        list.iter().find_map(|instance| self.0.get(&instance.digest)).copied()
    }
}

/// What tells how an image stands among the others.
#[derive(Debug)]
struct Standings {
    referenced: BTreeSet<ImageId>,
    /// Layers that lie below the top one of an image.
    below: HashSet<StorageLayerId>,
    /// The most build steps of the images with a top layer.
    steps: HashMap<StorageLayerId, usize>,
}

impl Standings {
    fn of(loaded: &[Loaded<'_>], layers: &layers::Listed, references: &BTreeMap<Reference, ImageId>) -> Self {
        let mut referenced: BTreeSet<ImageId> = references.values().copied().collect();
        let named = loaded.iter().filter(|image| !image.listed.names.is_empty());
        referenced.extend(named.map(|image| image.listed.id));
        let (mut below, mut steps) = (HashSet::new(), HashMap::new());
        for image in loaded {
            let Some(top) = image.listed.layer else { continue };
            let mut next = layers.get(&top).and_then(|layer| layer.parent);
            while let Some(id) = next.filter(|id| below.insert(*id)) {
                next = layers.get(&id).and_then(|layer| layer.parent);
            }
            let most = steps.entry(top).or_default();
            *most = image.steps().max(*most);
        }
        Self { referenced, below, steps }
    }

    fn of_image(&self, image: &Loaded<'_>) -> Standing {
        let is_below = |top| self.below.contains(top) || self.steps.get(top).is_some_and(|most| image.steps() < *most);
        match &image.listed.layer {
            _ if self.referenced.contains(&image.listed.id) => Standing::Referenced,
            Some(top) if is_below(top) => Standing::Intermediate,
            Some(_) | None => Standing::Dangling,
        }
    }
}

impl Loaded<'_> {
    fn steps(&self) -> usize {
        match &self.is {
            Is::Image(found) => found.history.len(),
            Is::List(_) | Is::Damaged(_) => 0,
        }
    }
}
