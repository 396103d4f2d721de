//! `meta.db`: what each namespace has, as containerd's own names tell it (containerd's `metadata/buckets.go`).
//!
//! ```text
//! v1/<namespace>/
//!   images/<name>/                    target/{digest,mediatype}  updatedat
//!   snapshots/<snapshotter>/<key>/    name  parent?
//!   containers/<id>/                  image  snapshotter  snapshotKey  spec  labels/  updatedat
//! ```
//!
//! All of it is copied out of one state of the database, within bounds, and judged later: while it is read nobody knows
//! whether it is of one state at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::bolt::{Bucket, Database, Entry};
use super::encoding;
use crate::digest::ChainId;
use crate::error::{Error, Result};
use crate::meta::Timestamp;
use crate::store::List;

/// The most objects that are read of one database, and the most text in them, in bytes: ten times what the largest hosts
/// have.
const OBJECTS_MAX: usize = 500_000;
const TEXT_MAX: usize = 128 << 20;
/// As many wrong entries are told one by one.
const WRONG_MAX: usize = 100;

/// What a database holds, as far as it could be read.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) images: Vec<ImageRecord>,
    /// By namespace and snapshotter, and by the key in that namespace.
    pub(super) snapshots: BTreeMap<Place, BTreeMap<String, SnapshotRecord>>,
    /// What snapshotters have that are not read: the chain IDs among their keys.
    pub(super) others: BTreeMap<String, BTreeSet<ChainId>>,
    pub(super) containers: Vec<ContainerRecord>,
    /// What could not be read.
    pub(super) wrong: Vec<(List, Error)>,
}

/// A namespace's part of a snapshotter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) namespace: Arc<str>,
    pub(super) snapshotter: Arc<str>,
}

/// A name and what it stands for.
#[derive(Debug)]
pub(super) struct ImageRecord {
    pub(super) namespace: Arc<str>,
    pub(super) name: String,
    pub(super) digest: String,
    pub(super) media_type: String,
    pub(super) updated: Timestamp,
}

/// A snapshot as its namespace knows it.
#[derive(Debug)]
pub(super) struct SnapshotRecord {
    /// The key in the snapshotter's own database.
    pub(super) name: String,
    /// The key of the snapshot below, in the same namespace.
    pub(super) parent: Option<String>,
}

/// A container.
#[derive(Debug)]
pub(super) struct ContainerRecord {
    pub(super) namespace: Arc<str>,
    pub(super) id: String,
    /// As its labels tell it.
    pub(super) name: Option<String>,
    /// The name of its image.
    pub(super) image: String,
    pub(super) snapshotter: String,
    pub(super) snapshot_key: String,
    pub(super) spec_bytes: Option<u64>,
    pub(super) updated: Timestamp,
}

/// Reads all namespaces; `is_read` tells of which snapshotters the snapshots are wanted.
///
/// # Errors
/// Where nothing can be read, or there is more than is held in memory.
pub(super) fn read(database: &Database, is_read: impl Fn(&str) -> bool) -> Result<Records> {
    database.read(|root| {
        let mut reader = Reader { records: Records::default(), bounds: Bounds::default(), is_read: &is_read };
        if let Some(v1) = root.bucket(b"v1")? {
            reader.each(&v1, List::References, |reader, name, namespace| reader.namespace(name.into(), namespace))?;
        }
        Ok(reader.records)
    })
}

/// A container's spec: the document that its runtime was given.
///
/// # Errors
/// As [`Database::read`]; `None` where there is none.
pub(super) fn spec(database: &Database, namespace: &str, id: &str) -> Result<Option<Vec<u8>>> {
    database.read(|root| {
        let path = [b"v1", namespace.as_bytes(), b"containers", id.as_bytes()];
        let Some(container) = root.descend(&path)? else { return Ok(None) };
        let spec = container.get(b"spec")?;
        Ok(spec.and_then(|spec| encoding::any(&spec).map(<[u8]>::to_vec)))
    })
}

/// How much may still be taken into memory.
#[derive(Debug)]
pub(super) struct Bounds {
    objects: usize,
    text_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { objects: OBJECTS_MAX, text_bytes: TEXT_MAX }
    }
}

impl Bounds {
    /// One object more.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where that is too many.
    pub(super) fn object(&mut self) -> Result<()> {
        let too_many = || Self::refused(format!("it has more than {OBJECTS_MAX} objects"));
        self.objects = self.objects.checked_sub(1).ok_or_else(too_many)?;
        Ok(())
    }

    /// Text of a database. What is no UTF-8 is told so that people can read it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where that is too much.
    pub(super) fn text(&mut self, bytes: &[u8]) -> Result<String> {
        let too_much = || Self::refused(format!("it has more than {} MiB of names", TEXT_MAX >> 20));
        self.text_bytes = self.text_bytes.checked_sub(bytes.len()).ok_or_else(too_much)?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn refused(why: String) -> Error {
        Error::Unsupported { what: "the database".to_owned(), why }
    }
}

struct Reader<'a> {
    records: Records,
    bounds: Bounds,
    is_read: &'a dyn Fn(&str) -> bool,
}

impl Reader<'_> {
    /// Looks at each bucket in a bucket. Of what is damaged it is noted that it belongs to that list.
    fn each(
        &mut self,
        bucket: &Bucket<'_>,
        list: List,
        mut look: impl FnMut(&mut Self, &str, &Bucket<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut entries = bucket.entries();
        loop {
            let looked = match entries.next_entry() {
                Ok(None) => return Ok(()),
                Ok(Some((_, Entry::Value(_)))) => Ok(()),
                Ok(Some((key, Entry::Bucket(nested)))) => {
                    self.bounds.object()?;
                    let key = self.bounds.text(key)?;
                    nested.open().and_then(|bucket| look(self, &key, &bucket))
                }
                Err(error) => Err(error),
            };
            match looked {
                Err(error @ Error::Damaged { .. }) => self.wrong(list, error),
                looked => looked?,
            }
        }
    }

    fn wrong(&mut self, list: List, error: Error) {
        if self.records.wrong.len() < WRONG_MAX {
            self.records.wrong.push((list, error));
        }
    }

    fn namespace(&mut self, name: Arc<str>, namespace: &Bucket<'_>) -> Result<()> {
        if let Some(images) = self.list(namespace, b"images", List::References)? {
            self.each(&images, List::References, |reader, image, bucket| reader.image(&name, image, bucket))?;
        }
        if let Some(all) = self.list(namespace, b"snapshots", List::Layers)? {
            self.each(&all, List::Layers, |reader, snapshotter, bucket| {
                let place = Place { namespace: Arc::clone(&name), snapshotter: snapshotter.into() };
                reader.snapshotter(place, bucket)
            })?;
        }
        if let Some(containers) = self.list(namespace, b"containers", List::Containers)? {
            self.each(&containers, List::Containers, |reader, id, bucket| reader.container(&name, id, bucket))?;
        }
        Ok(())
    }

    /// A bucket of a namespace. What is damaged hides no other.
    fn list<'b>(&mut self, namespace: &Bucket<'b>, name: &[u8], list: List) -> Result<Option<Bucket<'b>>> {
        match namespace.bucket(name) {
            Err(error @ Error::Damaged { .. }) => {
                self.wrong(list, error);
                Ok(None)
            }
            found => found,
        }
    }

    fn value(&mut self, bucket: &Bucket<'_>, key: &[u8]) -> Result<Option<String>> {
        bucket.get(key)?.map(|value| self.bounds.text(&value)).transpose()
    }

    fn image(&mut self, namespace: &Arc<str>, name: &str, image: &Bucket<'_>) -> Result<()> {
        let target = image.bucket(b"target")?;
        let mut field = |key: &[u8]| match &target {
            Some(target) => self.value(target, key),
            None => Ok(None),
        };
        let (digest, media_type) = (field(b"digest")?.unwrap_or_default(), field(b"mediatype")?.unwrap_or_default());
        let (namespace, name, updated) = (Arc::clone(namespace), name.to_owned(), updated(image)?);
        self.records.images.push(ImageRecord { namespace, name, digest, media_type, updated });
        Ok(())
    }

    fn snapshotter(&mut self, place: Place, snapshots: &Bucket<'_>) -> Result<()> {
        let is_read = (self.is_read)(&place.snapshotter);
        self.each(snapshots, List::Layers, |reader, key, snapshot| {
            if !is_read {
                let others = reader.records.others.entry(place.snapshotter.to_string()).or_default();
                others.extend(key.parse::<ChainId>());
                return Ok(());
            }
            let name = reader.value(snapshot, b"name")?.unwrap_or_default();
            let parent = reader.value(snapshot, b"parent")?.filter(|parent| !parent.is_empty());
            let known = reader.records.snapshots.entry(place.clone()).or_default();
            known.insert(key.to_owned(), SnapshotRecord { name, parent });
            Ok(())
        })
    }

    fn container(&mut self, namespace: &Arc<str>, id: &str, container: &Bucket<'_>) -> Result<()> {
        let name = match container.bucket(b"labels")? {
            Some(labels) => self.value(&labels, b"nerdctl/name")?,
            None => None,
        };
        let spec = container.get(b"spec")?;
        let spec = spec.as_deref().and_then(encoding::any);
        let record = ContainerRecord {
            namespace: Arc::clone(namespace),
            id: id.to_owned(),
            name,
            image: self.value(container, b"image")?.unwrap_or_default(),
            snapshotter: self.value(container, b"snapshotter")?.unwrap_or_default(),
            snapshot_key: self.value(container, b"snapshotKey")?.unwrap_or_default(),
            spec_bytes: spec.and_then(|spec| u64::try_from(spec.len()).ok()),
            updated: updated(container)?,
        };
        self.records.containers.push(record);
        Ok(())
    }
}

fn updated(object: &Bucket<'_>) -> Result<Timestamp> {
    let time = object.get(b"updatedat")?;
    Ok(time.and_then(|time| encoding::time(&time)).unwrap_or_default())
}
