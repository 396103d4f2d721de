//! The `overlay` driver (Docker 1.4 to 23): whole trees of images, and containers upon one of them.
//!
//! ```text
//! overlay/
//!   <id>/root/                  an image layer's whole tree; what it did not change are hard links to the one below
//!   <id>/{upper,lower-id,work}  a container's own layer, in overlayfs' form, upon <lower-id>/root
//!   <id>/merged/                a running container's mount; never entered
//! ```
//!
//! One inode has names in many layers, so its number of links counts them all. A container is made with a copy of what
//! is in its init layer, which therefore is no part of its union. Upon an image without layers the init layer is a whole
//! tree.

use std::path::PathBuf;
use std::sync::Arc;

use super::directories::{Gates, LABEL};
use super::{Driver, Options};
use crate::digest::CacheId;
use crate::error::{Error, Result};
use crate::layer::difference::{Difference, Life, Verdicts};
use crate::layer::dir::DirTree;
use crate::layer::whiteout::Prefix;
use crate::layer::{Layer, LayerId, Whiteouts};
use crate::meta::Meta;
use crate::name::TreePath;
use crate::root::{Root, Space, reads_trusted_xattrs};
use crate::store::{Layering, Stamp};

const NAME: &str = "overlay";
/// The longest content of `lower-id` that is read, in bytes.
const LOWER_MAX: usize = 1_024;

#[derive(Debug)]
struct Overlay {
    root: Arc<Root>,
    /// Of containers' own layers, and of the trees below them: the kernel takes a device 0/0 there for a whiteout too.
    united: Whiteouts,
    gates: Gates,
    verdicts: Arc<Verdicts>,
}

/// What a directory of the driver holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Tree,
    Changes,
}

/// Opens the driver's folder in a data root.
///
/// # Errors
/// [`Error::Unsupported`] where the marks of deletions are out of this process's sight; [`Error::Io`].
pub fn open(data_root: &Root, options: &Options) -> Result<Box<dyn Driver>> {
    let root = data_root.sub(&path(NAME))?;
    let prefix = options.prefix.unwrap_or(Prefix::Trusted);
    if prefix == Prefix::Trusted && !reads_trusted_xattrs() {
        return Err(Error::Unsupported {
            what: root.shown(&TreePath::root()),
            why: "its containers mark what they replace in trusted.overlay.* attributes, which this process may not \
                  read (CAP_SYS_ADMIN), so deleted files would come back; run docker-fs as root"
                .to_owned(),
        });
    }
    let (gates, verdicts) = (Gates::default(), Arc::default());
    Ok(Box::new(Overlay { root: Arc::new(root), united: Whiteouts::Overlay(prefix), gates, verdicts }))
}

/// A path of this driver's own making.
fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes()).unwrap_or_default()
}

impl Held {
    fn of(self, id: &CacheId) -> TreePath {
        path(&match self {
            Self::Tree => format!("{id}/root"),
            Self::Changes => format!("{id}/upper"),
        })
    }
}

impl Overlay {
    /// What a layer's directory holds; a tree where it holds nothing.
    fn held(&self, id: &CacheId) -> Result<Held> {
        if self.root.stat(&Held::Tree.of(id))?.is_some() {
            return Ok(Held::Tree);
        }
        let has_changes = self.root.stat(&Held::Changes.of(id))?.is_some();
        Ok(if has_changes { Held::Changes } else { Held::Tree })
    }

    fn tree(&self, id: &CacheId, held: Held) -> Box<DirTree> {
        Box::new(DirTree::behind(self.gates.of(id), Arc::clone(&self.root), held.of(id)))
    }

    fn id_of(id: &CacheId) -> LayerId {
        LayerId::of(&format!("{NAME}/{id}"))
    }

    fn united(&self, id: &CacheId, held: Held) -> Layer {
        Layer::new(Self::id_of(id), self.tree(id, held), self.united)
    }

    /// The layer that a container's own one lies upon, as the driver noted it; `None` where it holds a whole tree.
    fn lower(&self, id: &CacheId) -> Result<Option<CacheId>> {
        if self.held(id)? == Held::Tree {
            return Ok(None);
        }
        let file = path(&format!("{id}/lower-id"));
        let missing = || Error::damaged(self.root.shown(&file), "missing");
        let (content, _) = self.root.read(&file, LOWER_MAX)?.ok_or_else(missing)?;
        let text = String::from_utf8_lossy(&content);
        let shown: String = text.chars().take(80).collect();
        let wrong = |_| Error::damaged(self.root.shown(&file), format!("holds {shown:?}, which is not of its form"));
        text.trim_end().parse().map(Some).map_err(wrong)
    }
}

impl Driver for Overlay {
    fn name(&self) -> &'static str {
        NAME
    }

    fn layering(&self) -> Layering {
        Layering::DeltasOnTrees
    }

    fn layer(&self, id: &CacheId) -> Result<Layer> {
        Ok(self.united(id, self.held(id)?))
    }

    fn changes(&self, id: &CacheId, below: Option<&CacheId>, life: Life) -> Result<Layer> {
        if self.held(id)? == Held::Changes {
            return Ok(self.united(id, Held::Changes));
        }
        let tree = self.tree(id, Held::Tree);
        let Some(below) = below else { return Ok(Layer::new(Self::id_of(id), tree, Whiteouts::Whole)) };
        let pair = LayerId::of_all([Self::id_of(id), Self::id_of(below)].into_iter());
        let below = self.tree(below, Held::Tree);
        let difference = Difference::new(pair, life, tree, below, Arc::clone(&self.verdicts));
        Ok(Layer::new(Self::id_of(id), Box::new(difference), Whiteouts::Whole))
    }

    fn container_layers(&self, changes: &CacheId, init: Option<&CacheId>) -> Result<Vec<Layer>> {
        let mut layers = vec![self.layer(changes)?.changing()];
        // The image's own tree is below in any case.
        if let Some(init) = init
            && self.lower(changes)?.as_ref() == Some(init)
        {
            layers.push(self.united(init, Held::Tree).changing());
        }
        Ok(layers)
    }

    fn check_container(&self, changes: &CacheId, init: Option<&CacheId>, top: Option<&CacheId>) -> Result<()> {
        let Some(lower) = self.lower(changes)? else { return Ok(()) };
        let expected = top.or(init);
        if Some(&lower) == expected {
            return Ok(());
        }
        let what = self.root.shown(&path(&format!("{changes}/lower-id")));
        let expected = expected.map_or("no layer", CacheId::as_str);
        Err(Error::damaged(what, format!("says {lower}, but the container lies upon {expected}")))
    }

    fn directory(&self, id: &CacheId) -> PathBuf {
        // Records are of images' layers.
        self.root.host_path(&Held::Tree.of(id))
    }

    fn find(&self, id: &CacheId) -> Result<Option<Meta>> {
        self.root.stat(&self.held(id)?.of(id))
    }

    fn check(&self, id: &CacheId) -> Result<Meta> {
        let gate = self.gates.known(id);
        let doing = || format!("reach {}", self.root.shown(&path(id.as_str())));
        let _inside = gate.as_ref().map(|gate| gate.enter()).transpose().map_err(Error::io(doing))?;
        let place = self.held(id)?.of(id);
        match self.root.stat(&place)? {
            Some(meta) if meta.is_dir() => Ok(meta),
            Some(_) => Err(Error::damaged(self.root.shown(&place), "the layer is not a directory")),
            None => Err(Error::damaged(self.root.shown(&place), "the layer's directory is gone")),
        }
    }

    fn is_labelled(&self) -> bool {
        self.root.xattr(&TreePath::root(), LABEL).is_ok_and(|label| label.is_some())
    }

    fn stamp(&self) -> Result<Stamp> {
        Ok(Stamp::from(&self.root.meta()?))
    }

    fn space(&self) -> Result<Space> {
        self.root.space()
    }

    fn root(&self) -> &Root {
        &self.root
    }
}
