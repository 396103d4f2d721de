//! Drivers whose layers are directories below one folder, opened by their IDs.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::Driver;
use crate::digest::CacheId;
use crate::error::{Error, Result};
use crate::layer::dir::DirTree;
use crate::layer::gate::Gate;
use crate::layer::whiteout::Whiteouts;
use crate::layer::{Layer, LayerId};
use crate::meta::{Kind, Meta};
use crate::name::TreePath;
use crate::root::{Root, Space};
use crate::store::Stamp;

/// The attribute of a label of `SELinux`.
pub(in crate::store) const LABEL: &[u8] = b"security.selinux";

/// Where something of a layer is, below the driver's folder.
type Place = fn(&CacheId) -> TreePath;

/// A driver of this kind.
#[derive(Debug)]
pub(super) struct Directories {
    name: &'static str,
    root: Arc<Root>,
    whiteouts: Whiteouts,
    /// The directory of a layer's files.
    place: Place,
    /// A file without which the driver takes a layer for none; for drivers that have one.
    witness: Option<Place>,
    /// The directory that holds the layers'.
    above: TreePath,
    gates: Gates,
}

impl Directories {
    /// The driver of this name, whose layers are in the folder `root`, each at its place.
    pub(super) fn new(name: &'static str, root: Root, whiteouts: Whiteouts, place: Place) -> Self {
        let (root, above, gates) = (Arc::new(root), TreePath::root(), Gates::default());
        Self { name, root, whiteouts, place, witness: None, above, gates }
    }

    /// The same driver with all layers' directories in this one below its folder, where a layer is one only if there is
    /// a file at that place too.
    pub(super) fn witnessed(self, above: TreePath, witness: Place) -> Self {
        Self { above, witness: Some(witness), ..self }
    }

    fn check_witness(&self, id: &CacheId) -> Result<()> {
        let Some(witness) = self.witness.map(|place| place(id)) else { return Ok(()) };
        match self.root.stat(&witness)? {
            Some(meta) if meta.kind == Kind::Regular => Ok(()),
            Some(_) => Err(Error::damaged(self.root.shown(&witness), "not a regular file")),
            None => Err(Error::damaged(self.root.shown(&witness), "missing, so the layer is none")),
        }
    }
}

/// The gates of the layers that are in use: a layer that several images have is behind one.
#[derive(Debug, Default)]
pub(in crate::store) struct Gates {
    /// Held for single look-ups and changes only.
    by_id: Mutex<HashMap<CacheId, Weak<Gate>>>,
}

impl Gates {
    /// The gate of a layer.
    pub(in crate::store) fn of(&self, id: &CacheId) -> Arc<Gate> {
        let mut by_id = self.by_id.lock();
        if let Some(gate) = by_id.get(id).and_then(Weak::upgrade) {
            return gate;
        }
        // Only when the table would have to grow, so that it costs each addition the same.
        if by_id.len() == by_id.capacity() {
            by_id.retain(|_, gate| gate.strong_count() > 0);
        }
        let gate = Arc::new(Gate::default());
        by_id.insert(id.clone(), Arc::downgrade(&gate));
        gate
    }

    /// The gate of a layer that is in use.
    pub(in crate::store) fn known(&self, id: &CacheId) -> Option<Arc<Gate>> {
        self.by_id.lock().get(id).and_then(Weak::upgrade)
    }
}

impl Driver for Directories {
    fn name(&self) -> &'static str {
        self.name
    }

    fn layer(&self, id: &CacheId) -> Result<Layer> {
        let tree = DirTree::behind(self.gates.of(id), Arc::clone(&self.root), (self.place)(id));
        Ok(Layer::new(LayerId::of(&format!("{}/{id}", self.name)), Box::new(tree), self.whiteouts))
    }

    fn directory(&self, id: &CacheId) -> PathBuf {
        self.root.host_path(&(self.place)(id))
    }

    fn find(&self, id: &CacheId) -> Result<Option<Meta>> {
        match self.witness.map(|place| self.root.stat(&place(id))).transpose()? {
            Some(None) => Ok(None),
            Some(Some(_)) | None => self.root.stat(&(self.place)(id)),
        }
    }

    fn check(&self, id: &CacheId) -> Result<Meta> {
        let directory = (self.place)(id);
        let gate = self.gates.known(id);
        let doing = || format!("reach {}", self.root.shown(&directory));
        let _inside = gate.as_ref().map(|gate| gate.enter()).transpose().map_err(Error::io(doing))?;
        match self.root.stat(&directory)? {
            Some(meta) if meta.is_dir() => self.check_witness(id).map(|()| meta),
            Some(_) => Err(Error::damaged(self.root.shown(&directory), "the layer is not a directory")),
            None => Err(Error::damaged(self.root.shown(&directory), "the layer's directory is gone")),
        }
    }

    fn is_labelled(&self) -> bool {
        self.root.xattr(&TreePath::root(), LABEL).is_ok_and(|label| label.is_some())
    }

    fn stamp(&self) -> Result<Stamp> {
        let above = if self.above.is_root() { Some(self.root.meta()?) } else { self.root.stat(&self.above)? };
        // What is missing is found where its layers are looked for.
        Ok(above.as_ref().map(Stamp::from).unwrap_or_default())
    }

    fn space(&self) -> Result<Space> {
        self.root.space()
    }

    fn root(&self) -> &Root {
        &self.root
    }
}
