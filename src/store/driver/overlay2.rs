//! The `overlay2` driver.
//!
//! ```text
//! overlay2/
//!   l/<26 characters> -> ../<id>/diff     short names for the kernel's mount options; not used here
//!   <id>/diff/                            the layer's own files, in overlayfs' form
//!   <id>/{link,lower,committed,work}      not used: layerdb says how layers stack
//!   <id>/merged/                          a running container's mount; never entered
//! ```
//!
//! The private attributes are `trusted.overlay.*`, or `user.overlay.*` in the store of a rootless engine. Nothing in
//! the store says which. But nothing in the store of a rootless engine belongs to root, the kernel leaves marks of its own
//! on layers that were mounted for writing, and who has no privileges can make no `trusted.` attribute. A copy may have
//! been given to another owner, so the owner alone proves nothing.

use std::path::Path;

use super::directories::Directories;
use super::{Driver, Options};
use crate::digest::CacheId;
use crate::error::{Error, Result};
use crate::layer::whiteout::{Prefix, Whiteouts};
use crate::name::{Name, TreePath};
use crate::root::{Root, reads_trusted_xattrs};

const NAME: &str = "overlay2";

/// Opens the driver's folder in a data root.
///
/// # Errors
/// [`Error::Unsupported`] where the marks of deletions are out of this process's sight; [`Error::Damaged`] where there is
/// no such folder; [`Error::Io`].
pub fn open(data_root: &Root, options: &Options) -> Result<Box<dyn Driver>> {
    open_as(NAME, data_root, options)
}

/// As [`open`], of a folder of this name, in which layers have the same places.
///
/// # Errors
/// As [`open`].
pub fn open_as(name: &'static str, data_root: &Root, options: &Options) -> Result<Box<dyn Driver>> {
    if data_root.stat(&path(&[name]))?.is_none() {
        return Err(Error::damaged(
            data_root.shown(&TreePath::root()),
            format!("image/{name} is there, but {name}, which holds the layers, is missing"),
        ));
    }
    let root = data_root.sub(&path(&[name]))?;
    let layers = || root.names(&TreePath::root()).map(|names| names.into_iter().map(diff_in).collect());
    let whiteouts = whiteouts(&root, options, &layers)?;
    Ok(Box::new(Directories::new(name, root, whiteouts, diff_of)))
}

/// The form of deletions in a folder whose layers lie at these paths.
///
/// # Errors
/// As [`open`].
pub(in crate::store) fn whiteouts(root: &Root, options: &Options, layers: Layers<'_>) -> Result<Whiteouts> {
    let is_roots = root.meta()?.uid == 0;
    let prefix = match options.prefix {
        Some(prefix) => prefix,
        None => guess_prefix(root, layers)?,
    };
    let shown = root.shown(&TreePath::root());
    if prefix == Prefix::Trusted && !reads_trusted_xattrs() {
        let advice = if is_roots { "" } else { ", or for the store of a rootless engine add -o xattrs=user" };
        return Err(Error::Unsupported {
            what: shown,
            why: format!(
                "its layers mark deletions in trusted.overlay.* attributes, which this process may not read \
                 (CAP_SYS_ADMIN), so deleted files would come back; run docker-fs as root{advice}"
            ),
        });
    }
    if prefix == Prefix::User && is_roots {
        log::warn!(
            "{shown} belongs to root, whose engine marks deletions in trusted.* attributes; with xattrs=user \
                    deleted files may come back"
        );
    }
    Ok(Whiteouts::Overlay(prefix))
}

/// Tells where a folder's layers lie.
pub(in crate::store) type Layers<'a> = &'a dyn Fn() -> Result<Vec<TreePath>>;

/// Which attributes the store's engine mounts with.
fn guess_prefix(root: &Root, layers: Layers<'_>) -> Result<Prefix> {
    /// More layers than it takes to find a mark in a store that has any.
    const LOOKED_AT: usize = 1_000;
    let top = TreePath::root();
    if root.stat(&top)?.is_none_or(|folder| folder.uid == 0) {
        return Ok(Prefix::Trusted);
    }
    // A daemon run by root with user namespaces for containers (userns-remap) also has folders of another owner.
    let mut seen_user = false;
    for diff in layers()?.into_iter().take(LOOKED_AT) {
        if root.stat(&diff).ok().flatten().is_some_and(|diff| diff.uid == 0) {
            return Ok(Prefix::Trusted);
        }
        let attributes = match root.xattr_names(&diff) {
            Ok(attributes) => attributes,
            Err(error) if error.is_transient() => return Err(error),
            Err(_) => continue,
        };
        if attributes.iter().any(|name| name.starts_with(Prefix::Trusted.as_bytes())) {
            return Ok(Prefix::Trusted);
        }
        seen_user |= attributes.iter().any(|name| name.starts_with(Prefix::User.as_bytes()));
    }
    if seen_user {
        return Ok(Prefix::User);
    }
    if root.host_path(&top).parent().is_some_and(is_remapped_root) {
        return Ok(Prefix::Trusted);
    }
    let shown = root.shown(&top);
    if !reads_trusted_xattrs() {
        log::warn!(
            "{shown} is taken for the store of a rootless engine, as it does not belong to root; if it is a copy of a store \
             of root's, deleted files come back, and only root can read it rightly (-o xattrs=user to say that it is none)"
        );
        return Ok(Prefix::User);
    }
    let has_trusted = has_trusted_marks(root, layers()?)?;
    let prefix = if has_trusted { Prefix::Trusted } else { Prefix::User };
    log::info!(
        "{shown} does not belong to root; it is read with {}* attributes",
        String::from_utf8_lossy(prefix.as_bytes())
    );
    Ok(prefix)
}

/// Whether anything in these layers bears a mark that only an engine with privileges can have made.
fn has_trusted_marks(root: &Root, mut dirs: Vec<TreePath>) -> Result<bool> {
    /// More files than most stores have; each takes some microseconds.
    const LOOKED_AT: usize = 5_000_000;
    let mut seen = 0_usize;
    while let Some(dir) = dirs.pop() {
        let entries = match root.list(&dir, &|_| true) {
            Ok(entries) => entries,
            Err(error) if error.is_transient() => return Err(error),
            Err(_) => continue,
        };
        seen = seen.saturating_add(entries.len());
        for (name, meta) in entries {
            let path = dir.join(&name);
            let attributes = if meta.bare { Vec::new() } else { root.xattr_names(&path).unwrap_or_default() };
            if attributes.iter().any(|name| name.starts_with(Prefix::Trusted.as_bytes())) {
                return Ok(true);
            }
            if meta.is_dir() {
                dirs.push(path);
            }
        }
        if seen > LOOKED_AT {
            let shown = root.shown(&TreePath::root());
            log::warn!("{shown} is too large to be searched for marks of deletions; -o xattrs= says which it has");
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a data root has the name `<uid>.<gid>` that userns-remap gives it.
pub(super) fn is_remapped_root(data_root: &Path) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let full = data_root.canonicalize();
    let name = full.as_deref().unwrap_or(data_root).file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.split_once('.')).is_some_and(|(uid, gid)| is_number(uid) && is_number(gid))
}

pub(super) fn path(parts: &[&str]) -> TreePath {
    TreePath::new(parts.join("/").as_bytes()).unwrap_or_default()
}

fn diff_in(layer: Name) -> TreePath {
    TreePath::from(layer).join_path(&path(&["diff"]))
}

pub(super) fn diff_of(id: &CacheId) -> TreePath {
    path(&[id.as_str(), "diff"])
}
