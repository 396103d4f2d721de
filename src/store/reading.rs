//! What reading a store takes, whichever it is: bounds, lists of IDs, states of files, damage made of errors, and work on
//! many files at once.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Catalogue, Damage, List, Stamp};
use crate::digest::ImageId;
use crate::error::{Error, Result};
use crate::name::TreePath;
use crate::root::Root;

/// The largest JSON document that is read, in bytes.
pub(super) const JSON_MAX: usize = 16 << 20;
/// The longest sentence that says what is wrong, in bytes: parts of the store are in it.
const WHY_MAX: usize = 1_000;

/// A path of this store's own making, or of IDs that were checked.
pub(super) fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes()).unwrap_or_default()
}

/// The names in a directory that are IDs; no names where there is no directory.
pub(super) fn ids<T>(root: &Root, dir: &TreePath, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>> {
    if root.stat(dir)?.is_none() {
        return Ok(Vec::new());
    }
    let names = root.names(dir)?;
    Ok(names.iter().filter_map(|name| parse(std::str::from_utf8(name.as_bytes()).ok()?)).collect())
}

/// As [`ids`]; that a directory cannot be listed becomes damage.
///
/// # Errors
/// Transient ones.
pub(super) fn sound_ids<T>(
    root: &Root,
    dir: &TreePath,
    parse: impl Fn(&str) -> Option<T>,
    list: List,
    catalogue: &mut Catalogue,
) -> Result<Vec<T>> {
    ids(root, dir, parse).or_else(|error| {
        unread(catalogue, list, Damage::from_error(root, dir, error)?);
        Ok(Vec::new())
    })
}

/// Notes that a list could not be read.
pub(super) fn unread(catalogue: &mut Catalogue, list: List, damage: Damage) {
    catalogue.unread.insert(list, damage.to_string());
    catalogue.damage.push(damage);
}

/// The state of a file or directory, as far as it can be told: what is wrong with it is found when it is read.
///
/// # Errors
/// Transient ones.
pub(super) fn stamp_of(root: &Root, path: &TreePath) -> Result<Option<Stamp>> {
    match root.stat(path) {
        Ok(meta) => Ok(meta.as_ref().map(Stamp::from)),
        Err(error) if error.is_transient() => Err(error),
        Err(_) => Ok(Some(Stamp::default())),
    }
}

/// Does the same with each item on as many threads as there are CPUs, and keeps the order. Reading a store is mostly
/// waiting for system calls on thousands of small files.
///
/// The threads take small shares as they go, since one that others keep from its CPU would be waited for.
pub(super) fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    const SHARE: usize = 64;
    let shares: Vec<&[T]> = items.chunks(SHARE).collect();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(share) = shares.get(number) else { return done };
            done.push((number, share.iter().map(&work).collect::<Vec<R>>()));
        }
    };
    let mut done: Vec<(usize, Vec<R>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cpus.min(shares.len())).map(|_| scope.spawn(take)).collect();
        let done = threads.into_iter().flat_map(|thread| match thread.join() {
            Ok(results) => results,
            // A panic belongs to whoever asked for the work.
            Err(panic) => std::panic::resume_unwind(panic),
        });
        done.collect()
    });
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().flat_map(|(_, results)| results).collect()
}

impl Damage {
    /// Damage of an object, with the reason cut where it is too long.
    pub(super) fn of(what: String, why: impl Into<String>) -> Self {
        let mut why = why.into();
        if why.len() > WHY_MAX {
            why.truncate(why.floor_char_boundary(WHY_MAX));
            why.push('…');
        }
        Self { what, why, images: BTreeSet::new(), is_unreadable: false }
    }

    /// What an error says of an object of the store.
    ///
    /// # Errors
    /// The error itself where it is transient, which says nothing of the object.
    pub(super) fn from_error(root: &Root, object: &TreePath, error: Error) -> Result<Self> {
        if error.is_transient() {
            return Err(error);
        }
        let is_unreadable = matches!(&error, Error::Io { source, .. } if source.kind() != std::io::ErrorKind::NotFound);
        let damage = match error {
            Error::Damaged { what, why } => Self::of(what, why),
            other @ (Error::Io { .. }
            | Error::Refused { .. }
            | Error::Stale { .. }
            | Error::Unsupported { .. }
            | Error::NotFound { .. }) => Self::of(root.shown(object), other.to_string()),
        };
        Ok(Self { is_unreadable, ..damage })
    }
}

/// Adds damage to a catalogue's, each but once.
#[derive(Debug)]
pub(super) struct Told(HashSet<(String, String)>);

impl Told {
    /// What a catalogue tells already.
    pub(super) fn of(catalogue: &Catalogue) -> Self {
        Self(catalogue.damage.iter().map(Self::key).collect())
    }

    /// Tells this too, unless it is told.
    pub(super) fn tell(&mut self, damage: Damage, catalogue: &mut Catalogue) {
        if self.0.insert(Self::key(&damage)) {
            catalogue.damage.push(damage);
        }
    }

    fn key(damage: &Damage) -> (String, String) {
        (damage.what.clone(), damage.why.clone())
    }
}

/// Adds to what is told of each object the images that suffer from it.
pub(super) fn blame(told: &mut Vec<Damage>, damage: Vec<(Damage, ImageId)>) {
    let key = |damage: &Damage| (damage.what.clone(), damage.why.clone());
    let known = told.iter().enumerate();
    let mut places: BTreeMap<_, _> = known.map(|(place, damage)| (key(damage), place)).collect();
    for (found, id) in damage {
        let next = told.len();
        let place = *places.entry(key(&found)).or_insert(next);
        if place == next {
            told.push(found);
        }
        if let Some(damage) = told.get_mut(place) {
            damage.images.insert(id);
        }
    }
}

/// Makes sure that a folder of layers belongs to root, and so do not to a user whose containers have other numbers.
///
/// # Errors
/// [`Error::Unsupported`] where it does not.
pub(super) fn belongs_to_root(layers: &Root) -> Result<()> {
    let folder = layers.meta()?;
    if (folder.uid, folder.gid) == (0, 0) {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: layers.shown(&TreePath::root()),
        why: format!(
            "it belongs to {}:{}, whose containers have numbers that nothing in the store tells (they are in \
             /etc/subuid and /etc/subgid of its machine), so -o uidmap=container cannot show them",
            folder.uid, folder.gid
        ),
    })
}
