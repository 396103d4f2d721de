//! Snapshotters: from a snapshot's number to its directory.
//!
//! ```text
//! io.containerd.snapshotter.v1.<name>/
//!   metadata.db                     v1/snapshots/<key>/{id,kind,parent?,size}
//!   snapshots/<id>/fs/              of overlayfs: what the snapshot changes, in overlayfs' form
//!   snapshots/<id>/                 of native: the whole tree
//!   snapshots/{new-<n>,rm-<id>}     not looked at: being made, being removed
//! ```
//!
//! A snapshot is struck off the database before its directory is removed, and its number is never given again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::bolt::{Bucket, Database, Entry};
use super::encoding;
use super::live::Live;
use super::records::Bounds;
use crate::digest::CacheId;
use crate::error::{Error, Result};
use crate::layer::difference::{Difference, Life, Verdicts};
use crate::layer::dir::DirTree;
use crate::layer::{Layer, LayerId, LayerTree, Whiteouts};
use crate::meta::Meta;
use crate::name::{Name, TreePath};
use crate::root::Root;
use crate::store::driver::directories::{Gates, LABEL};
use crate::store::driver::overlay2;
use crate::store::reading::path;
use crate::store::{Layering, Options};

/// The snapshotters that are read, in the order in which their snapshots are preferred.
pub(super) const NAMES: [&str; 2] = [OVERLAYFS, NATIVE];
const OVERLAYFS: &str = "overlayfs";
const NATIVE: &str = "native";
const DATABASE: &str = "metadata.db";
const SNAPSHOTS: &str = "snapshots";
/// What of a snapshot of overlayfs is its own.
const DELTA: &str = "fs";

/// One snapshotter's folder.
#[derive(Debug)]
pub(super) struct Snapshotter {
    pub(super) name: &'static str,
    pub(super) root: Arc<Root>,
    pub(super) live: Live,
    form: Form,
    gates: Gates,
}

/// What snapshots' directories hold.
#[derive(Debug)]
enum Form {
    /// What a snapshot changes upon the one below.
    Deltas(Whiteouts),
    /// The whole tree; and which directories of them differ, as far as it was found out.
    Trees(Arc<Verdicts>),
}

/// What a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    View,
    Active,
    Committed,
}

/// A snapshot as its snapshotter knows it.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) id: u64,
    pub(super) kind: Kind,
    /// The key of the snapshot below, in the same database.
    pub(super) parent: Option<String>,
    pub(super) size_bytes: Option<u64>,
}

/// The snapshots of a database by their keys, and what of it could not be read.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    pub(super) by_key: BTreeMap<String, Snapshot>,
    pub(super) wrong: Option<Error>,
}

/// The folder of a snapshotter in containerd's root.
pub(super) fn folder_of(name: &str) -> TreePath {
    path(&format!("io.containerd.snapshotter.v1.{name}"))
}

impl Snapshotter {
    /// Opens the folder of a snapshotter; `None` where there is none.
    ///
    /// # Errors
    /// As [`overlay2::open`].
    pub(super) fn open(base: &Root, name: &'static str, options: &Options) -> Result<Option<Self>> {
        let folder = folder_of(name);
        if base.stat(&folder)?.is_none() {
            return Ok(None);
        }
        let root = Arc::new(base.sub(&folder)?);
        let form = match name {
            NATIVE => Form::Trees(Arc::default()),
            _ => Form::Deltas(overlay2::whiteouts(&root, options, &|| layers(&root))?),
        };
        let live = Live::new(&root, path(DATABASE));
        Ok(Some(Self { name, root, live, form, gates: Gates::default() }))
    }

    /// The name by which views know the directory of a snapshot.
    pub(super) fn cache_id(&self, id: u64) -> Option<CacheId> {
        format!("{}-{id}", self.name).parse().ok()
    }

    /// The number in such a name, where it is of this snapshotter.
    fn number_of(&self, id: &CacheId) -> Option<u64> {
        let digits = id.as_str().strip_prefix(self.name)?.strip_prefix('-')?;
        digits.parse().ok().filter(|number: &u64| number.to_string() == digits)
    }

    fn tree_of(&self, id: &CacheId) -> Option<TreePath> {
        let snapshot = path(&format!("{SNAPSHOTS}/{}", self.number_of(id)?));
        Some(match self.form {
            Form::Deltas(_) => snapshot.join_path(&path(DELTA)),
            Form::Trees(_) => snapshot,
        })
    }

    /// The directory on the host that holds a snapshot's files.
    pub(super) fn directory(&self, id: &CacheId) -> Option<PathBuf> {
        Some(self.root.host_path(&self.tree_of(id)?))
    }

    /// Opens a snapshot; `None` where it is another snapshotter's.
    pub(super) fn layer(&self, id: &CacheId) -> Option<Layer> {
        let whiteouts = match self.form {
            Form::Deltas(whiteouts) => whiteouts,
            Form::Trees(_) => Whiteouts::Whole,
        };
        Some(Layer::new(id_of(id), self.tree(id)?, whiteouts))
    }

    fn tree(&self, id: &CacheId) -> Option<Box<dyn LayerTree>> {
        Some(Box::new(DirTree::behind(self.gates.of(id), Arc::clone(&self.root), self.tree_of(id)?)))
    }

    /// Opens what a snapshot changes upon the one below; `None` where it is another snapshotter's.
    pub(super) fn changes(&self, id: &CacheId, below: Option<&CacheId>, life: Life) -> Option<Layer> {
        match (&self.form, below) {
            (Form::Trees(verdicts), Some(below)) => {
                let pair = LayerId::of_all([id_of(id), id_of(below)].into_iter());
                let (tree, below) = (self.tree(id)?, self.tree(below)?);
                let difference = Difference::new(pair, life, tree, below, Arc::clone(verdicts));
                Some(Layer::new(id_of(id), Box::new(difference), Whiteouts::Whole))
            }
            (Form::Trees(_), None) | (Form::Deltas(_), _) => self.layer(id),
        }
    }

    /// What the directories hold.
    pub(super) fn layering(&self) -> Layering {
        match self.form {
            Form::Deltas(_) => Layering::Deltas,
            Form::Trees(_) => Layering::Trees,
        }
    }

    /// Whether a directory is of this snapshotter.
    pub(super) fn has(&self, id: &CacheId) -> bool {
        self.number_of(id).is_some()
    }

    /// What stands where a snapshot's files should be.
    ///
    /// # Errors
    /// Where it could not be looked at.
    pub(super) fn find(&self, id: &CacheId) -> Result<Option<Meta>> {
        self.tree_of(id).map_or(Ok(None), |tree| self.root.stat(&tree))
    }

    /// Looks whether a snapshot's directory is there; answers its attributes.
    ///
    /// # Errors
    /// [`Error::Damaged`] where it is not, or is no directory.
    pub(super) fn check(&self, id: &CacheId) -> Result<Meta> {
        let Some(tree) = self.tree_of(id) else { return Err(Error::damaged(id.as_str(), "no snapshot")) };
        let gate = self.gates.known(id);
        let doing = || format!("reach {}", self.root.shown(&tree));
        let _inside = gate.as_ref().map(|gate| gate.enter()).transpose().map_err(Error::io(doing))?;
        match self.root.stat(&tree)? {
            Some(meta) if meta.is_dir() => Ok(meta),
            Some(_) => Err(Error::damaged(self.root.shown(&tree), "the snapshot is not a directory")),
            None => Err(Error::damaged(self.root.shown(&tree), "the snapshot's directory is gone")),
        }
    }

    /// Whether a snapshot is still the committed one of this key.
    ///
    /// # Errors
    /// Where the database could not be read.
    pub(super) fn lists(&self, key: &str, id: &CacheId) -> Result<bool> {
        let number = self.number_of(id);
        let found = self.live.database()?.read(|root| {
            let Some(found) = root.descend(&[b"v1", b"snapshots", key.as_bytes()])? else { return Ok(None) };
            Ok(found.get(b"id")?.zip(found.get(b"kind")?))
        })?;
        Ok(found.is_some_and(|(id, kind)| encoding::unsigned(&id) == number && kind_of(&kind) == Some(Kind::Committed)))
    }

    /// Reads all snapshots.
    ///
    /// # Errors
    /// Where nothing could be read, or there is more than is held in memory.
    pub(super) fn snapshots(&self) -> Result<Snapshots> {
        read(self.live.database()?.as_ref())
    }

    /// Whether the folder has an `SELinux` label, as all files then have.
    pub(super) fn is_labelled(&self) -> bool {
        self.root.xattr(&TreePath::root(), LABEL).is_ok_and(|label| label.is_some())
    }
}

fn id_of(id: &CacheId) -> LayerId {
    LayerId::of(&format!("containerd/{id}"))
}

/// The directories of all snapshots.
fn layers(root: &Root) -> Result<Vec<TreePath>> {
    let snapshots = path(SNAPSHOTS);
    if root.stat(&snapshots)?.is_none() {
        return Ok(Vec::new());
    }
    let is_number = |name: &Name| name.as_bytes().iter().all(u8::is_ascii_digit);
    let numbers = root.names(&snapshots)?.into_iter().filter(is_number);
    Ok(numbers.map(|name| snapshots.join(&name).join_path(&path(DELTA))).collect())
}

fn kind_of(value: &[u8]) -> Option<Kind> {
    match value {
        [1] => Some(Kind::View),
        [2] => Some(Kind::Active),
        [3] => Some(Kind::Committed),
        _ => None,
    }
}

fn read(database: &Database) -> Result<Snapshots> {
    database.read(|root| {
        let (mut found, mut bounds) = (Snapshots::default(), Bounds::default());
        let Some(snapshots) = root.descend(&[b"v1", b"snapshots"])? else { return Ok(found) };
        let mut entries = snapshots.entries();
        loop {
            let read = match entries.next_entry() {
                Ok(None) => return Ok(found),
                Ok(Some((_, Entry::Value(_)))) => continue,
                Ok(Some((key, Entry::Bucket(nested)))) => {
                    bounds.object()?;
                    let key = bounds.text(key)?;
                    nested.open().and_then(|bucket| snapshot(&bucket, &mut bounds)).map(|read| (key, read))
                }
                Err(error) => Err(error),
            };
            match read {
                Ok((key, Some(snapshot))) => drop(found.by_key.insert(key, snapshot)),
                // It has no number, and so no directory.
                Ok((_, None)) => {}
                Err(error @ Error::Damaged { .. }) => drop(found.wrong.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
    })
}

fn snapshot(bucket: &Bucket<'_>, bounds: &mut Bounds) -> Result<Option<Snapshot>> {
    let id = bucket.get(b"id")?.and_then(|id| encoding::unsigned(&id));
    let kind = bucket.get(b"kind")?.and_then(|kind| kind_of(&kind));
    let Some((id, kind)) = id.zip(kind) else { return Ok(None) };
    let parent = bucket.get(b"parent")?.filter(|parent| !parent.is_empty());
    let parent = parent.map(|parent| bounds.text(&parent)).transpose()?;
    let size_bytes = bucket.get(b"size")?.and_then(|size| encoding::size(&size));
    Ok(Some(Snapshot { id, kind, parent, size_bytes }))
}
