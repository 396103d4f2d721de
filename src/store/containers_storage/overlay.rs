//! The `overlay` driver of containers/storage.
//!
//! ```text
//! overlay/
//!   <layer ID>/diff/               the layer's own files
//!   <layer ID>/{link,lower,empty,work,merged}   not used: layers.json says how layers stack
//!   <layer ID>/diff1, diff2, …     more directories of one layer, whose owners were shifted
//!   <layer ID>/composefs-data/composefs.blob    names and attributes of a layer that is kept as composefs
//!   <layer ID>/additionallayer     the layer is kept elsewhere, and `diff` is a link there
//!   l/<26 characters> -> ../<layer ID>/diff     short names for mount options; not used here
//!   .has-mount-program             "true" where layers are united by fuse-overlayfs, "false" where by the kernel
//! ```
//!
//! Layers lie as those of Docker's `overlay2` do, whose driver is asked for them. fuse-overlayfs writes deletions in forms
//! of its own, and follows attributes that override owners and modes, of which the kernel knows nothing.

use std::path::PathBuf;

use crate::digest::CacheId;
use crate::error::{Error, Result};
use crate::layer::overridden::OverriddenTree;
use crate::layer::{Layer, Whiteouts};
use crate::meta::Meta;
use crate::root::{Root, Space};
use crate::store::driver::{Driver, overlay2};
use crate::store::reading::path;
use crate::store::{Options, Stamp};

pub(super) const NAME: &str = "overlay";
const HAS_PROGRAM: &str = ".has-mount-program";
/// More than the file's two words.
const WORD_MAX: usize = 64;
/// What lies beside a layer's directory of one that is kept in a way that is not read, and what that way is.
const ELSEWHERE: [(&str, &str); 3] = [
    ("composefs-data/composefs.blob", "the layer is kept as composefs, which is not supported"),
    ("additionallayer", "the layer is kept in an additional layer store, which is not supported"),
    ("diff1", "the layer is kept in several directories, as with shifted owners, which is not supported"),
];

#[derive(Debug)]
struct Overlay {
    layers: Box<dyn Driver>,
    program: Program,
}

/// What unites the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Kernel,
    FuseOverlayfs,
    /// The store does not say.
    Unknown,
}

/// Opens the driver's folder in a graph root.
///
/// # Errors
/// As [`overlay2::open`].
pub(super) fn open(graph_root: &Root, options: &Options) -> Result<Box<dyn Driver>> {
    let layers = overlay2::open_as(NAME, graph_root, options)?;
    let program = program(layers.root())?;
    Ok(Box::new(Overlay { layers, program }))
}

/// What the engine noted that it mounts with.
///
/// # Errors
/// Transient ones; a file that cannot be read says nothing.
fn program(root: &Root) -> Result<Program> {
    match root.read(&path(HAS_PROGRAM), WORD_MAX) {
        Ok(Some((word, _))) => Ok(match word.trim_ascii() {
            b"true" => Program::FuseOverlayfs,
            b"false" => Program::Kernel,
            _ => Program::Unknown,
        }),
        Ok(None) => Ok(Program::Unknown),
        Err(error) if error.is_transient() => Err(error),
        Err(error) => {
            log::warn!("{error}; its layers are taken to be united by the kernel");
            Ok(Program::Unknown)
        }
    }
}

impl Driver for Overlay {
    fn name(&self) -> &'static str {
        NAME
    }

    fn layer(&self, id: &CacheId) -> Result<Layer> {
        let layer = self.layers.layer(id)?;
        let (id, whiteouts) = (layer.id(), layer.whiteouts());
        let whiteouts = match self.program {
            Program::Kernel => return Ok(layer),
            Program::FuseOverlayfs => Whiteouts::FuseOverlay,
            Program::Unknown => whiteouts,
        };
        Ok(Layer::new(id, Box::new(OverriddenTree::new(layer.into_tree())), whiteouts))
    }

    fn directory(&self, id: &CacheId) -> PathBuf {
        self.layers.directory(id)
    }

    fn find(&self, id: &CacheId) -> Result<Option<Meta>> {
        self.layers.find(id)
    }

    fn check(&self, id: &CacheId) -> Result<Meta> {
        // Behind the layer's gate, which what comes after is not.
        let checked = self.layers.check(id);
        if matches!(&checked, Err(error) if error.is_transient()) {
            return checked;
        }
        let root = self.root();
        for (file, why) in ELSEWHERE {
            let file = path(&format!("{id}/{file}"));
            match root.stat(&file) {
                Ok(Some(_)) => return Err(Error::damaged(root.shown(&file), why)),
                Err(error) if error.is_transient() => return Err(error),
                Ok(None) | Err(_) => {}
            }
        }
        checked
    }

    fn is_labelled(&self) -> bool {
        self.layers.is_labelled()
    }

    fn stamp(&self) -> Result<Stamp> {
        self.layers.stamp()
    }

    fn space(&self) -> Result<Space> {
        self.layers.space()
    }

    fn root(&self) -> &Root {
        self.layers.root()
    }
}
