//! What each request means: from inode numbers, offsets and handles to the view and back.

use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::ahead::{Ahead, Kernel};
use super::counters::{Counters, Sources, Tally};
use super::files::{NO_HANDLE, OpenFile, OpenFiles};
use super::inodes::{Held, Inodes};
use super::listings::{Listed, Listing, Listings};
use super::passthrough::Passthrough;
use super::refresh::Refresher;
use super::steps::Steps;
use super::watch::{Places, Watcher, Watching};
use crate::error::{Error, Result};
use crate::layer::{ReadAt, Seek};
use crate::meta::Meta;
use crate::name::{NAME_MAX, Name};
use crate::root::Space;
use crate::view::{Identity, Node, View};

/// How long the kernel may keep what cannot change: longer than any mount lasts.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A view with the state that the kernel has of it.
#[derive(Debug)]
pub(super) struct Server {
    view: View,
    is_labelled: bool,
    /// User and group of the view's own files: those who mounted.
    owner: (u32, u32),
    inodes: Arc<Inodes>,
    listings: Arc<Listings>,
    ahead: Ahead,
    files: Arc<OpenFiles>,
    steps: Arc<Steps>,
    refresher: Refresher,
    tally: Arc<Tally>,
    places: Arc<Places>,
    watcher: Watcher,
}

/// A node as the kernel is told of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    pub(super) number: u64,
    pub(super) meta: Meta,
    pub(super) valid: Duration,
}

/// The answer to a lookup.
#[derive(Debug, Clone, Copy)]
pub(super) enum Looked {
    /// A node, with its generation; the name may be kept for that long.
    Found { attributes: Attributes, generation: u64, valid: Duration },
    /// No such name; the kernel may keep that for so long.
    Absent { valid: Duration },
}

/// How an opened file's pages may be kept by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caching {
    /// From one opening to the next.
    Kept,
    /// While it is open.
    WhileOpen,
}

/// The answer to an opening.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) handle: u64,
    pub(super) caching: Caching,
    pub(super) size_bytes: u64,
    pub(super) file: Arc<OpenFile>,
}

/// A directory being read.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) listing: Arc<Listing>,
    pub(super) number: u64,
    dir: Arc<Held>,
}

impl Reading {
    /// The number of the directory that holds this one.
    pub(super) fn parent(&self) -> u64 {
        self.dir.parent()
    }
}

fn validity(changes: bool) -> Duration {
    if changes { Duration::ZERO } else { FOR_EVER }
}

impl Server {
    pub(super) fn new(
        view: View,
        kernel: Kernel,
        files: Arc<OpenFiles>,
        steps: Arc<Steps>,
        refresher: Refresher,
        watcher: Watcher,
    ) -> Self {
        let inodes = Arc::new(Inodes::new(view.root()));
        let is_labelled = view.is_labelled();
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let tally = Arc::<Tally>::default();
        let listings = Arc::new(Listings::new(Arc::clone(&tally)));
        let ahead = Ahead::new(Arc::clone(&inodes), Arc::clone(&listings), kernel, Arc::clone(&tally));
        let places = Arc::default();
        Self { view, is_labelled, owner, inodes, listings, ahead, files, steps, refresher, tally, places, watcher }
    }

    /// What is counted here.
    pub(super) fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
    }

    /// What is counted and held here, for others.
    pub(super) fn counters(&self, passthrough: Arc<Passthrough>) -> Counters {
        Counters::new(Sources {
            tally: Arc::clone(&self.tally),
            inodes: Arc::clone(&self.inodes),
            listings: Arc::clone(&self.listings),
            files: Arc::clone(&self.files),
            steps: Arc::clone(&self.steps),
            passthrough,
            view: self.view.clone(),
        })
    }

    /// What has the kernel forget names that stand for something else since the store changed.
    pub(super) fn watching(&self) -> Watching {
        let (inodes, listings) = (Arc::clone(&self.inodes), Arc::clone(&self.listings));
        let (places, steps) = (Arc::clone(&self.places), Arc::clone(&self.steps));
        Watching::new(self.view.clone(), inodes, listings, places, steps, &self.watcher)
    }

    /// A node's attributes as users see them.
    fn owned(&self, node: &Node, meta: Meta) -> Meta {
        match node {
            Node::Section(_) | Node::Text(_) | Node::Link(_) => Meta { uid: self.owner.0, gid: self.owner.1, ..meta },
            Node::InLayer(_) | Node::InUnion(_) => meta,
        }
    }

    fn held(&self, number: u64) -> Result<Arc<Held>> {
        self.inodes.get(number).ok_or_else(|| Error::Stale { what: format!("inode {number}") })
    }

    pub(super) fn lookup(&self, parent: u64, name: &[u8]) -> Result<Looked> {
        let dir = self.held(parent)?;
        let changes = dir.node().changes();
        let Some(name) = Name::new(name) else { return Ok(Looked::Absent { valid: Duration::ZERO }) };
        let Some(entry) = dir.node().lookup(&name)? else {
            // Marks of long names are longer, but nothing else is.
            let is_possible = name.as_bytes().len() <= NAME_MAX;
            let too_long = || Error::io(|| "look up a name".to_owned())(Errno::NAMETOOLONG);
            return if is_possible { Ok(Looked::Absent { valid: validity(changes) }) } else { Err(too_long()) };
        };
        let Listed { held, meta, name, .. } = Listed::new(dir.key(), parent, name, entry);
        let valid = validity(changes || held.node().is_momentary());
        let number = self.inodes.remember(&held);
        self.places.note(number, held.node(), (parent, dir.node()), &name);
        let attributes =
            Attributes { number, meta: self.owned(held.node(), meta), valid: validity(held.node().changes()) };
        Ok(Looked::Found { attributes, generation: held.generation(), valid })
    }

    pub(super) fn forget(&self, number: u64, count: u64) -> Result<()> {
        if let Some(gone) = self.inodes.forget(number, count) {
            self.listings.give_up(gone);
            self.files.close(number);
            self.places.give_up(number);
            self.refresher.give_up(number);
        }
        Ok(())
    }

    pub(super) fn attributes(&self, number: u64) -> Result<Attributes> {
        let held = self.held(number)?;
        let node = held.node();
        let stale = || Error::Stale { what: format!("inode {number}") };
        let fresh = node.fresh_meta().and_then(|meta| if is_of(&held, &meta) { Ok(meta) } else { Err(stale()) });
        let meta = match fresh {
            // Replaced or removed, but a reader has it open: it is still that file.
            Err(gone @ Error::Stale { .. }) => {
                let open = self.files.of_inode(number).filter(|file| file.generation == held.generation());
                meta_of(open.ok_or(gone)?.reader.as_ref())?.ok_or_else(stale)?
            }
            answer => answer?,
        };
        Ok(Attributes { number, meta: self.owned(node, meta), valid: validity(node.changes()) })
    }

    pub(super) fn read_link(&self, number: u64) -> Result<Vec<u8>> {
        self.held(number)?.node().read_link()
    }

    pub(super) fn open(&self, number: u64) -> Result<Opened> {
        let held = self.held(number)?;
        let caching = if held.node().changes() { Caching::WhileOpen } else { Caching::Kept };
        let file = open(number, &held)?;
        let size_bytes = meta_of(file.reader.as_ref())?.map_or(0, |meta| meta.size_bytes);
        let (handle, file) = self.files.insert(file)?;
        Ok(Opened { handle, caching, size_bytes, file })
    }

    /// Fills the buffer as far as the file goes.
    pub(super) fn read(&self, number: u64, handle: u64, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let (file, is_held) = self.file(number, handle)?;
        let filled = loop {
            match file.reader.read_at(buffer, offset) {
                Ok(filled) => break filled,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(|| format!("read at {offset}"))(error)),
            }
        };
        if !is_held {
            self.keep(file, filled < buffer.len());
        }
        Ok(filled)
    }

    /// Keeps a file open that has no handle, for as long as it will be read again.
    fn keep(&self, file: Arc<OpenFile>, is_read: bool) {
        if is_read && !file.changes {
            self.files.close(file.number);
        } else {
            self.files.keep(file);
            self.refresher.is_kept();
        }
    }

    /// Notes that the kernel has what it asked for of a file.
    pub(super) fn was_read(&self, number: u64, offset: u64) -> Result<()> {
        let held = self.held(number)?;
        if held.node().changes() {
            self.refresher.was_read(number);
        } else if offset == 0
            && let Some(dir) = self.inodes.get(held.parent())
        {
            self.ahead.was_read(dir.key());
        }
        Ok(())
    }

    pub(super) fn seek(&self, number: u64, handle: u64, to: Seek, offset: u64) -> Result<u64> {
        self.file(number, handle)?.0.reader.seek(to, offset).map_err(Error::io(|| format!("seek from {offset}")))
    }

    /// The file to read from, and whether its handle holds it open.
    fn file(&self, number: u64, handle: u64) -> Result<(Arc<OpenFile>, bool)> {
        if handle != NO_HANDLE {
            let known = self.files.get(handle);
            let known = known.ok_or_else(|| Error::io(|| format!("use handle {handle}"))(Errno::BADF))?;
            if let Some(file) = known {
                return Ok((file, true));
            }
        }
        let held = self.held(number)?;
        match self.files.kept(number).filter(|file| file.generation == held.generation()) {
            Some(file) => Ok((file, false)),
            None => Ok((Arc::new(open(number, &held)?), false)),
        }
    }

    /// Closes a file that the kernel reads by itself.
    pub(super) fn let_go(&self, handle: u64) {
        self.files.let_go(handle);
    }

    pub(super) fn release(&self, handle: u64) -> Result<()> {
        self.files.release(handle);
        Ok(())
    }

    /// Whether the kernel may keep a directory's listing.
    pub(super) fn keeps_listing(&self, number: u64) -> Result<bool> {
        Ok(!self.held(number)?.node().changes())
    }

    /// The listing for a reader at this offset.
    pub(super) fn reading(&self, number: u64, offset: u64) -> Result<Reading> {
        let dir = self.held(number)?;
        let changes = dir.node().changes();
        let listing = if changes {
            // Whoever goes on does so in the newest there is.
            match (offset > 0).then(|| self.listings.found(dir.key())).flatten() {
                Some(found) => found,
                None => {
                    let older = self.listings.kept(dir.key());
                    self.listings.keep(dir.key(), Listing::again(&dir, number, older.as_deref())?)
                }
            }
        } else {
            self.listings.get(dir.key(), || Listing::of(&dir, number))?
        };
        if !changes
            && offset == 0
            && let Some(parent) = self.inodes.get(dir.parent())
        {
            self.ahead.was_asked(parent.key(), dir.key(), &listing);
        }
        Ok(Reading { listing, dir, number })
    }

    /// An entry's inode number, for a listing without attributes.
    pub(super) fn number(&self, entry: &Listed) -> u64 {
        self.inodes.number_of(entry.held.key())
    }

    /// An entry as a lookup would answer it; counts a lookup.
    pub(super) fn entry(&self, dir: &Reading, entry: &Listed) -> (Attributes, u64) {
        let number = self.inodes.remember(&entry.held);
        let node = entry.held.node();
        self.places.note(number, node, (dir.number, dir.dir.node()), &entry.name);
        // The kernel is told of name and attributes at once.
        let valid = validity(dir.dir.node().changes() || node.changes() || node.is_momentary());
        let meta = self.owned(node, entry.meta);
        (Attributes { number, meta, valid }, entry.held.generation())
    }

    /// Notes that the kernel has the entries from one offset to another, with their attributes.
    pub(super) fn was_given(&self, dir: &Reading, offsets: (u64, u64)) -> Result<()> {
        if dir.dir.node().changes() {
            self.refresher.was_read(dir.number);
        } else {
            self.ahead.was_given(dir.dir.key(), &dir.listing, offsets);
        }
        Ok(())
    }

    /// The value of an extended attribute. Where the store has no `SELinux` labels, a missing one is answered by "not
    /// supported", as kernels without them do: then `ls -l` asks once, and not for each file.
    pub(super) fn xattr(&self, number: u64, name: &[u8]) -> Result<Option<Vec<u8>>> {
        is_xattr_name(name).map_err(Error::io(|| "read an attribute".to_owned()))?;
        match self.held(number)?.node().xattr(name)? {
            None if name == b"security.selinux" && !self.is_labelled => {
                Err(Error::io(|| "read a label".to_owned())(Errno::OPNOTSUPP))
            }
            value => Ok(value),
        }
    }

    /// The names of extended attributes, each followed by a NUL. Those of the `trusted.` namespace only to root, as
    /// other file systems do.
    pub(super) fn xattr_names(&self, number: u64, is_root: bool) -> Result<Vec<u8>> {
        let names = self.held(number)?.node().xattr_names()?;
        let shown = names.into_iter().filter(|name| is_root || !name.starts_with(b"trusted."));
        Ok(shown.flat_map(|name| name.into_iter().chain([0])).collect())
    }

    pub(super) fn space(&self) -> Result<Space> {
        self.view.space()
    }
}

/// Whether there can be such an extended attribute, as `xattr_resolve_name()` tells it.
fn is_xattr_name(name: &[u8]) -> std::result::Result<(), Errno> {
    const NAMESPACES: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system."];
    match NAMESPACES.iter().find_map(|namespace| name.strip_prefix(*namespace)) {
        Some([]) => Err(Errno::INVAL),
        Some(_) => Ok(()),
        None => Err(Errno::OPNOTSUPP),
    }
}

/// Opens a node's content. Where it may change, not that of another file that has the name by now, or the number.
fn open(number: u64, held: &Held) -> Result<OpenFile> {
    let node = held.node();
    let changes = node.changes();
    if changes {
        node.fresh_meta()?;
    }
    let reader = node.open()?;
    if changes
        && let Some(meta) = meta_of(reader.as_ref())?
        && !is_of(held, &meta)
    {
        return Err(Error::Stale { what: format!("inode {number}") });
    }
    Ok(OpenFile { number, generation: held.generation(), changes, reader })
}

/// Whether attributes are those of the file that is held, and not of another that has its name, or its number, by now.
fn is_of(held: &Held, meta: &Meta) -> bool {
    match held.node().identity() {
        // The data of a metacopy are another file's.
        Identity::File { inode, data: None, .. } if held.node().changes() => {
            inode == meta.inode && held.generation() == held.node().generation(meta)
        }
        Identity::File { .. } | Identity::Path(_) => true,
    }
}

/// The attributes of an open file, where it has any of its own.
fn meta_of(file: &dyn ReadAt) -> Result<Option<Meta>> {
    file.meta().map_err(Error::io(|| "read attributes".to_owned()))
}
