//! The tree that users see, as data: no inode numbers, no handles, no kernel.
//!
//! A [`View`] arranges the stores of one place, of which there is one as a rule. Its folders are [`Section`]s, a file here for each kind; a top-level folder is a
//! file and a line in `FOLDERS`. Everything else in the tree is a [`Node`]: a small file, a symbolic link, or a
//! place in a layer or a union.
//!
//! What the store holds is read again whenever its generation changes, and looked at through one `Snapshot` at a
//! time, so a folder never shows half of two states.

mod by_container;
mod by_image;
mod by_layer;
mod facts;
mod footing;
mod image;
mod in_layer;
mod in_union;
mod joined;
mod members;
mod merged;
mod names;
mod node;
mod roots;
mod shared;
mod snapshot;
mod status;
mod text;

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Instant;

use crate::error::{Error, Result};
use crate::meta::Timestamp;
use crate::name::{Name, TreePath};
use crate::root::Space;
use crate::store::{Damage, Store, Watch};

pub use in_layer::{Form, LayerNode};
pub use in_union::UnionNode;
use joined::Joined;
use members::Members;
pub use node::{Entry, Identity, Link, Node};
use roots::{Own, Stacked, directory_of};
use shared::{REMARKS_MAX, Shared, Since};
use snapshot::{Reading, Snapshot};
pub use status::{Force, Measure, Service};
pub use text::Text;

/// How the tree is to be shown.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The form of deletions in layers' trees.
    pub whiteouts: Form,
    /// Whose numbers of owners are shown.
    pub owners: Owners,
    /// Where the store is; for people.
    pub source: PathBuf,
    /// How the process that reads the store is confined; none where that is nobody's business.
    pub confinement: Vec<Measure>,
}

/// Whose numbers owners have in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Owners {
    /// Those of the disk.
    #[default]
    Stored,
    /// Those that containers see, in their user namespace.
    Container,
}

/// The tree of the stores of one place.
#[derive(Debug, Clone)]
pub struct View {
    members: Arc<Members>,
    told: Arc<status::Told>,
}

/// A folder of the view's own making.
pub trait Section: Debug + Send + Sync {
    /// Tells this folder from another that stands, or stood, at the same path: an image's ID, for example.
    fn identity(&self) -> Vec<u8>;

    /// The time that the folder shows.
    fn time(&self) -> Timestamp;

    /// Whether names may come and go while the folder is the same.
    fn changes(&self) -> bool;

    /// What a name stands for, also names that are not listed.
    ///
    /// # Errors
    /// [`Error::Damaged`] for what should be there but cannot be shown.
    fn lookup(&self, name: &Name) -> Result<Option<Entry>>;

    /// The names that a listing shows, in no order; each of them can be looked up.
    ///
    /// # Errors
    /// Where the store could not be read.
    fn list(&self) -> Result<Vec<(Name, Entry)>>;

    /// Whether it is a directory of names of images, layers or containers, in which those of several stores stand.
    fn is_of_names(&self) -> bool {
        false
    }
}

/// A folder whose names come and go with the store's.
trait StoreFolder: Debug + Send + Sync {
    fn shared(&self) -> &Arc<Shared>;

    /// As [`Section::lookup`], in one state of the store.
    fn entry(&self, snapshot: &Snapshot, name: &Name) -> Result<Option<Entry>>;

    /// As [`Section::list`], in one state of the store.
    fn entries(&self, snapshot: &Snapshot) -> Result<Vec<(Name, Entry)>>;
}

impl<T: StoreFolder> Section for T {
    fn identity(&self) -> Vec<u8> {
        Vec::new()
    }

    fn time(&self) -> Timestamp {
        self.shared().current().time
    }

    fn changes(&self) -> bool {
        true
    }

    fn is_of_names(&self) -> bool {
        true
    }

    fn lookup(&self, name: &Name) -> Result<Option<Entry>> {
        self.shared().answer(|snapshot| self.entry(snapshot, name))
    }

    fn list(&self) -> Result<Vec<(Name, Entry)>> {
        self.shared().answer_patiently(|snapshot| self.entries(snapshot))
    }
}

type Folder = fn(&Arc<Shared>) -> Entry;

/// The top-level folders. Beside them is the file `status`.
const FOLDERS: &[(&str, Folder)] = &[
    ("by-tag", by_image::by_tag),
    ("by-digest", by_image::by_digest),
    ("by-id", by_image::by_id),
    ("by-chain", by_layer::by_chain),
    ("by-diff", by_layer::by_diff),
    ("by-container", by_container::by_container),
    ("merged", merged::merged),
];
const STATUS: &str = "status";

/// Stands for what was read of the store at one time: two equal ones are one reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State(u64);

impl View {
    /// The tree of some stores. Of names that several have, that of the one used last is shown; what the others have by
    /// that name is found by its ID.
    ///
    /// # Errors
    /// Where nothing of a store could be read.
    pub fn new(stores: impl IntoIterator<Item = Box<dyn Store>>, options: &Options) -> Result<Self> {
        let members = Members::new(stores, options)?;
        Ok(Self { members: Arc::new(members), told: Arc::default() })
    }

    /// Reads the stores again that changed, as each look-up in a folder does whose names come and go.
    #[must_use]
    pub fn refresh(&self) -> State {
        State::of_all(self.members.current().iter().map(|member| member.current().state))
    }

    /// Reads the whole of the stores again, also what has the times that it had; `None` where one cannot be read for the
    /// moment, and is shown as it was.
    #[must_use]
    pub fn read_again(&self) -> Option<State> {
        let asked = Instant::now();
        let members = self.members.current();
        let read: Vec<_> = members.iter().map(|member| member.read_since(asked, Reading::Anew)).collect();
        let is_read = read.iter().all(|read| read.begun >= asked);
        is_read.then(|| State::of_all(read.iter().map(|read| read.state)))
    }

    /// Whether a store is to be read again soon, though nobody asks: there is damage that is not certain.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        self.members.known().iter().any(|member| member.seen.lock().damage.values().any(Since::is_lately))
    }

    /// Has changes of the stores heard of, also in directories that they have got since.
    pub fn watch(&self, watch: &mut Watch) {
        let members = self.members.known();
        watch.renew(members.iter().map(|member| member.store.as_ref()));
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> Node {
        Entry::folder(RootDir(self.clone())).node
    }

    /// What a path stands for; links on the way are not followed.
    ///
    /// # Errors
    /// Where a part of it could not be looked up.
    pub fn resolve(&self, path: &TreePath) -> Result<Option<Node>> {
        let mut node = self.root();
        for name in path.components().filter_map(Name::new) {
            match node.lookup(&name)? {
                Some(next) => node = next.node,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    /// What was wrong with the stores when they were last read.
    #[must_use]
    pub fn damage(&self) -> Vec<Damage> {
        self.members.known().iter().flat_map(|member| member.known().catalogue.damage.clone()).collect()
    }

    /// What was remarkable about the stores when they were last read, though nothing is wrong.
    #[must_use]
    pub fn remarks(&self) -> Vec<Damage> {
        self.members.known().iter().flat_map(|member| member.known().catalogue.remarks.clone()).collect()
    }

    /// How often a store was read again because it changed.
    #[must_use]
    pub fn rescans(&self) -> u64 {
        self.members.known().iter().map(|member| member.rescans.load(Ordering::Relaxed)).sum()
    }

    /// Has `status` show the figures of who serves this view; the first one stays.
    pub fn served_by(&self, service: Weak<dyn Service>) {
        self.told.served_by(service);
    }

    /// Whether files of a store have `SELinux` labels.
    #[must_use]
    pub fn is_labelled(&self) -> bool {
        self.members.known().iter().any(|member| member.store.is_labelled())
    }

    /// What the file system below the store that was used last says of its space.
    ///
    /// # Errors
    /// Where it could not be asked.
    pub fn space(&self) -> Result<Space> {
        let members = self.members.known();
        let last = members.first().ok_or_else(|| Error::Stale { what: "the store".to_owned() })?;
        last.store.space()
    }
}

impl State {
    /// Another number after each change of any.
    fn of_all(states: impl Iterator<Item = Self>) -> Self {
        Self(states.map(|state| state.0).fold(0, u64::saturating_add))
    }
}

/// What a listing shows of something that may be damaged: nothing, then, since the files beside it say what is wrong.
///
/// # Errors
/// All others: what cannot be read for the moment must not be missing from a listing that the kernel keeps.
fn undamaged<T>(node: Result<T>) -> Result<Option<T>> {
    match node {
        Ok(node) => Ok(Some(node)),
        Err(Error::Damaged { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[derive(Debug)]
struct RootDir(View);

impl RootDir {
    fn folder(&self, folder: Folder) -> Entry {
        match self.0.members.known().as_ref() {
            [only] => folder(only),
            _ => Joined::of(&self.0.members, folder),
        }
    }

    fn status(&self) -> Entry {
        status::status(&self.0.members.current(), &self.0.told)
    }
}

impl Section for RootDir {
    fn identity(&self) -> Vec<u8> {
        Vec::new()
    }

    fn time(&self) -> Timestamp {
        self.0.members.current().iter().map(|member| member.current().time).max().unwrap_or_default()
    }

    fn changes(&self) -> bool {
        false
    }

    fn lookup(&self, name: &Name) -> Result<Option<Entry>> {
        if name.as_bytes() == STATUS.as_bytes() {
            return Ok(Some(self.status()));
        }
        let folder = FOLDERS.iter().find(|(known, _)| known.as_bytes() == name.as_bytes());
        Ok(folder.map(|(_, make)| self.folder(*make)))
    }

    fn list(&self) -> Result<Vec<(Name, Entry)>> {
        let folders = FOLDERS.iter().map(|(name, make)| (*name, self.folder(*make)));
        let all = folders.chain([(STATUS, self.status())]);
        Ok(all.map(|(name, entry)| (Name::escaped(name.as_bytes()), entry)).collect())
    }
}

/// The full ID that a user means by a name that is not listed: with `sha256:` in front, or the first digits of one, at
/// least 4, where no other begins so.
fn meant_id(typed: &Name, ids: impl Iterator<Item = String>) -> Option<String> {
    const SHORTEST: usize = 4;
    let typed = std::str::from_utf8(typed.as_bytes()).ok()?;
    let digits = typed.strip_prefix("sha256:").unwrap_or(typed);
    let are_digits = digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if digits.len() < SHORTEST || !are_digits {
        return None;
    }
    let mut fitting = ids.filter(|id| id.starts_with(digits));
    let id = fitting.next()?;
    fitting.next().is_none().then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_ids_of_four_digits_that_fit_one() {
        let ids = ["abcd1", "abcd2", "abce1"].map(|id| format!("{id}{}", "0".repeat(59)));
        let meant = |typed: &str| meant_id(&Name::escaped(typed.as_bytes()), ids.iter().cloned());
        assert_eq!(meant("abce").as_deref(), Some(ids[2].as_str()));
        assert_eq!(meant("sha256:abcd2").as_deref(), Some(ids[1].as_str()));
        assert_eq!(meant(&format!("sha256:{}", ids[0])).as_deref(), Some(ids[0].as_str()));
        for none in ["abcd", "abc", "ABCE", "abcf", "", "sha256:", "xabce"] {
            assert_eq!(meant(none), None, "{none}");
        }
    }
}
