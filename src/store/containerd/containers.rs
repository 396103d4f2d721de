//! Containers of all namespaces, and Docker's own, of which containerd knows only those that run.
//!
//! ```text
//! meta.db, containers/<id>                        what runs, or was made by ctr, nerdctl or CRI
//! meta.db, snapshots/<snapshotter>/<id>           of Docker's namespace: the changes of each container
//! <data root>/containers/<id>/config.v2.json      where the store lies in Docker's data root: its name and config
//! ```

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::images::{Index, IsWhole};
use super::layers::{Found, Judged, Layout, damage_of};
use super::records::{ContainerRecord, Place, Records};
use super::snapshotter::{Kind, NAMES};
use crate::digest::{ChainId, ContainerId, ImageId};
use crate::error::Result;
use crate::meta::Timestamp;
use crate::name::TreePath;
use crate::root::Root;
use crate::store::docker::containers::{self as docker, Containers};
use crate::store::reading::{Told, sound_ids, unread};
use crate::store::{Catalogue, Container, Damage, List};

/// Docker's namespace.
const MOBY: &str = "moby";
/// What Docker adds to a container's ID for the layer that it puts beneath it.
const INIT: &str = "-init";

/// Where a container's config is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Config {
    /// The spec of this container of containerd's.
    Spec { namespace: Arc<str>, id: String },
    /// Docker's file.
    Docker,
}

/// The containers' configs.
pub(super) type Configs = BTreeMap<ContainerId, Config>;

/// What is known of a container before its layers are looked for.
#[derive(Debug)]
struct Draft {
    namespace: Arc<str>,
    id: String,
    name: String,
    snapshotter: String,
    key: String,
    image: Option<ImageId>,
    config: Option<Config>,
    config_bytes: Option<u64>,
    stored: Timestamp,
    wrong: Option<Damage>,
    is_dead: bool,
}

/// Reads all containers into a catalogue that has the layers.
///
/// # Errors
/// Transient ones.
pub(super) fn read(
    folder: Option<&Containers>,
    records: &Records,
    layout: &Layout<'_>,
    images: &Index,
    is_whole: IsWhole<'_>,
    catalogue: &mut Catalogue,
) -> Result<Configs> {
    let mut drafts: BTreeMap<(Arc<str>, String), Draft> = BTreeMap::new();
    for record in &records.containers {
        let draft = of_record(record, images);
        drafts.insert((Arc::clone(&draft.namespace), draft.id.clone()), draft);
    }
    for draft in of_snapshots(records) {
        match drafts.entry((Arc::clone(&draft.namespace), draft.id.clone())) {
            Entry::Vacant(vacant) => drop(vacant.insert(draft)),
            // Docker does not say there which snapshot the container has.
            Entry::Occupied(mut known) if known.get().key.is_empty() => {
                let known = known.get_mut();
                (known.snapshotter, known.key) = (draft.snapshotter, draft.key);
            }
            Entry::Occupied(_) => {}
        }
    }
    if let Some(folder) = folder {
        of_folder(folder, images, &mut drafts, catalogue)?;
    }
    let ids = ids(drafts.values());
    let mut configs = Configs::new();
    let mut named: BTreeSet<String> = BTreeSet::new();
    let mut told = Told::of(catalogue);
    for (draft, id) in drafts.into_values().zip(ids) {
        let Some(container) = finish(&draft, id, layout, is_whole, &mut told, catalogue)? else { continue };
        // Namespaces may have containers of one name.
        let name = match named.insert(draft.name.clone()) {
            true => draft.name,
            false => format!("{}.{}", draft.namespace, draft.name),
        };
        configs.extend(draft.config.map(|config| (id, config)));
        catalogue.containers.insert(id, Arc::new(Container { name: Some(name), ..container }));
    }
    Ok(configs)
}

fn of_record(record: &ContainerRecord, images: &Index) -> Draft {
    let config = Config::Spec { namespace: Arc::clone(&record.namespace), id: record.id.clone() };
    let key = (Arc::clone(&record.namespace), record.image.clone());
    Draft {
        namespace: Arc::clone(&record.namespace),
        id: record.id.clone(),
        name: record.name.clone().filter(|name| is_identifier(name)).unwrap_or_else(|| record.id.clone()),
        snapshotter: record.snapshotter.clone(),
        key: record.snapshot_key.clone(),
        image: images.by_name.get(&key).copied(),
        config: record.spec_bytes.map(|_| config),
        config_bytes: record.spec_bytes,
        stored: record.updated,
        wrong: None,
        is_dead: false,
    }
}

/// Docker's containers that do not run, of which containerd has the snapshots alone.
fn of_snapshots(records: &Records) -> Vec<Draft> {
    let mut drafts = Vec::new();
    for (place, keys) in records.snapshots.iter().filter(|(place, _)| &*place.namespace == MOBY) {
        let is_container = |key: &&String| {
            let below = keys.get(*key).and_then(|snapshot| snapshot.parent.as_ref());
            ContainerId::from_hex(key).is_some() && below == Some(&format!("{key}{INIT}"))
        };
        drafts.extend(keys.keys().filter(is_container).map(|key| of_docker(key, &place.snapshotter)));
    }
    drafts
}

fn of_docker(id: &str, snapshotter: &str) -> Draft {
    Draft {
        namespace: MOBY.into(),
        id: id.to_owned(),
        name: id.to_owned(),
        snapshotter: snapshotter.to_owned(),
        key: id.to_owned(),
        image: None,
        config: None,
        config_bytes: None,
        stored: Timestamp::default(),
        wrong: None,
        is_dead: false,
    }
}

/// What Docker's own files say.
fn of_folder(
    folder: &Containers,
    images: &Index,
    drafts: &mut BTreeMap<(Arc<str>, String), Draft>,
    catalogue: &mut Catalogue,
) -> Result<()> {
    let all = match folder.folder() {
        Ok(Some(all)) => all,
        Ok(None) => return Ok(()),
        Err(error) => {
            let damage = Damage::from_error(folder.data_root(), &TreePath::root(), error)?;
            unread(catalogue, List::Containers, damage);
            return Ok(());
        }
    };
    for id in sound_ids(&all, &TreePath::root(), ContainerId::from_hex, List::Containers, catalogue)? {
        let key = (Arc::from(MOBY), id.hex());
        match docker::config(&all, &docker::config_of(&id)) {
            // Docker makes the folder before it writes the config.
            Ok(None) => {}
            // A container of another store.
            Ok(Some((config, _))) if !config.driver.as_deref().is_some_and(|driver| NAMES.contains(&driver)) => {}
            Ok(Some((config, meta))) => {
                let snapshotter = config.driver.clone().unwrap_or_default();
                let draft = drafts.entry(key).or_insert_with(|| of_docker(&id.hex(), &snapshotter));
                draft.name = config.name().unwrap_or_else(|| id.hex());
                if draft.key.is_empty() {
                    (draft.snapshotter, draft.key) = (snapshotter, id.hex());
                }
                draft.is_dead = config.is_dead();
                let image = config.image.as_deref().and_then(|image| image.parse().ok());
                draft.image = image.and_then(|digest| images.by_digest.get(&digest).copied()).or(draft.image);
                draft.config = Some(Config::Docker);
                (draft.config_bytes, draft.stored) = (Some(meta.size_bytes), meta.modified);
            }
            Err(error) => {
                let damage = Damage::from_error(&all, &docker::config_of(&id), error)?;
                let draft = drafts.entry(key).or_insert_with(|| of_docker(&id.hex(), ""));
                draft.wrong = Some(damage);
            }
        }
    }
    Ok(())
}

/// containerd's pattern for identifiers (`pkg/identifiers`), which CRI and nerdctl keep to as well.
fn is_identifier(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric();
    let ends_fit = text.bytes().next().is_some_and(is_word) && text.bytes().next_back().is_some_and(is_word);
    ends_fit && text.len() <= 255 && text.bytes().all(|byte| is_word(byte) || matches!(byte, b'_' | b'.' | b'-'))
}

/// The ID of each: its own where it is of Docker's form and no other namespace has it, or a hash of namespace and ID.
fn ids<'d>(drafts: impl Iterator<Item = &'d Draft>) -> Vec<ContainerId> {
    let mut taken = BTreeSet::new();
    let mut id_of = |draft: &Draft| {
        let own = ContainerId::from_hex(&draft.id).filter(|id| taken.insert(*id));
        let id = own.unwrap_or_else(|| ContainerId::of_name(&format!("{}/{}", draft.namespace, draft.id)));
        taken.insert(id);
        id
    };
    drafts.map(&mut id_of).collect()
}

/// A container with its layers; `None` for one that is being removed.
///
/// # Errors
/// Transient ones.
fn finish(
    draft: &Draft,
    id: ContainerId,
    layout: &Layout<'_>,
    is_whole: IsWhole<'_>,
    told: &mut Told,
    catalogue: &mut Catalogue,
) -> Result<Option<Container>> {
    let mut container =
        Container { image: draft.image, config_bytes: draft.config_bytes, stored: draft.stored, ..Container::of(id) };
    let mut wrong: Vec<Damage> = draft.wrong.iter().cloned().collect();
    let remark = own_root(draft);
    if !draft.snapshotter.is_empty()
        && let Err(damage) = layers(draft, layout, &mut container)?
    {
        wrong.push(damage);
    }
    if draft.is_dead && !(wrong.is_empty() && remark.is_none()) {
        return Ok(None);
    }
    container.damage = wrong.iter().chain(&remark).map(ToString::to_string).collect();
    catalogue.remarks.extend(remark);
    for damage in wrong {
        told.tell(damage, catalogue);
    }
    if let Some(top) = container.parent
        && !container.changes.as_ref().is_some_and(is_whole)
        && let Err(error) = catalogue.stack(&top)
    {
        // What is wrong with a layer is told already.
        container.damage.push(error.to_string());
    }
    Ok(Some(container))
}

/// A container as messages have it.
fn shown(draft: &Draft) -> String {
    format!("the container {:?} of the namespace {:?}", draft.id, draft.namespace)
}

/// That a container runs in a directory that is no snapshot, as of `ctr run --rootfs`.
fn own_root(draft: &Draft) -> Option<Damage> {
    let is_so = draft.wrong.is_none() && draft.snapshotter.is_empty();
    is_so.then(|| Damage::of(shown(draft), "it has no snapshot, but a root of its own"))
}

/// Finds a container's own layers, and the one of its image that they lie upon.
///
/// # Errors
/// Transient ones; what is wrong with the layers is an answer.
fn layers(draft: &Draft, layout: &Layout<'_>, container: &mut Container) -> Result<Judged<()>> {
    let place = Place { namespace: Arc::clone(&draft.namespace), snapshotter: draft.snapshotter.as_str().into() };
    if !NAMES.contains(&&*place.snapshotter) {
        let why = format!("its layers are of the snapshotter {:?}, which is not supported", place.snapshotter);
        return Ok(Err(Damage::of(shown(draft), why)));
    }
    let own = match own_layer(layout, &place, &draft.key, None)? {
        Ok(own) => own,
        Err(damage) => return Ok(Err(damage)),
    };
    let mut below = own.parent;
    container.changes = Some(own.id);
    if let Some(key) = below.filter(|key| key.parse::<ChainId>().is_err()) {
        let init = match own_layer(layout, &place, key, Some(Kind::Committed))? {
            Ok(init) => init,
            Err(damage) => return Ok(Err(damage)),
        };
        below = init.parent;
        container.init = Some(init.id);
    }
    match below.map(|key| key.parse().map_err(|_| layout.wrong(&place, key, "it is no layer of an image"))) {
        None => {}
        Some(Ok(top)) => container.parent = Some(top),
        Some(Err(damage)) => return Ok(Err(damage)),
    }
    Ok(Ok(()))
}

/// One of a container's own layers, of this kind where it is told.
///
/// # Errors
/// Transient ones; what is wrong with the layer is an answer.
fn own_layer<'a>(layout: &Layout<'a>, place: &Place, key: &str, kind: Option<Kind>) -> Result<Judged<Found<'a>>> {
    let found = match layout.find(place, key) {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(Err(layout.wrong(place, key, "missing"))),
        Err(damage) => return Ok(Err(damage)),
    };
    if kind.is_some_and(|kind| kind != found.kind) {
        return Ok(Err(layout.wrong(place, key, "not committed, though a container lies upon it")));
    }
    Ok(match damage_of(found.snapshotter, &found.id)? {
        Some(damage) => Err(damage),
        None => Ok(found),
    })
}

/// A container's config: Docker's file.
///
/// # Errors
/// As [`Root::read`].
pub(super) fn docker_config(all: &Root, id: &ContainerId) -> Result<Option<Vec<u8>>> {
    let read = all.read(&docker::config_of(id), crate::store::reading::JSON_MAX)?;
    Ok(read.map(|(config, _)| config))
}
