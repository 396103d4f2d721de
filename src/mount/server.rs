//! What each request means: from inode numbers and handles to the view and back.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::handles::Handles;
use super::inodes::{Held, Inodes, Key};
use crate::error::{Error, Result};
use crate::layer::{ReadAt, Seek};
use crate::meta::Meta;
use crate::name::Name;
use crate::root::Space;
use crate::view::{Node, View};

/// How long the kernel may keep what cannot change: longer than any mount lasts.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A view with the state that the kernel has of it.
#[derive(Debug)]
pub(super) struct Server {
    view: View,
    is_labelled: bool,
    /// User and group of the view's own files: those who mounted.
    owner: (u32, u32),
    inodes: Inodes,
    files: Handles<OpenFile>,
    directories: Handles<OpenDir>,
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
    /// Not at all: even the size may change from one reading to the next.
    Never,
}

/// An entry of a listing.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) name: Name,
    node: Arc<Node>,
    key: Key,
}

/// An open file.
#[derive(Debug)]
pub(super) struct OpenFile {
    number: u64,
    pub(super) reader: Box<dyn ReadAt>,
}

/// The answer to an opening.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) handle: u64,
    pub(super) caching: Caching,
    pub(super) size_bytes: u64,
    pub(super) file: Arc<OpenFile>,
}

#[derive(Debug)]
struct OpenDir {
    held: Held,
    number: u64,
    /// Guards the listing that the reader is in the middle of; held only to copy or replace it.
    listing: Mutex<Option<Arc<[Listed]>>>,
}

/// A directory being read.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) entries: Arc<[Listed]>,
    pub(super) number: u64,
    pub(super) parent: u64,
    valid: Duration,
}

fn validity(changes: bool) -> Duration {
    if changes { Duration::ZERO } else { FOR_EVER }
}

impl Server {
    pub(super) fn new(view: View) -> Self {
        let inodes = Inodes::new(view.root());
        let is_labelled = view.is_labelled();
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Self { view, is_labelled, owner, inodes, files: Handles::default(), directories: Handles::default() }
    }

    /// A node's attributes as users see them.
    fn owned(&self, node: &Node, meta: Meta) -> Meta {
        match node {
            Node::Section(_) | Node::Text(_) | Node::Link(_) => Meta { uid: self.owner.0, gid: self.owner.1, ..meta },
            Node::InLayer(_) | Node::InUnion(_) => meta,
        }
    }

    fn held(&self, number: u64) -> Result<Held> {
        self.inodes.get(number).ok_or_else(|| Error::Stale { what: format!("inode {number}") })
    }

    pub(super) fn lookup(&self, parent: u64, name: &[u8]) -> Result<Looked> {
        let dir = self.held(parent)?;
        let valid = validity(dir.node.changes());
        let Some(name) = Name::new(name) else { return Ok(Looked::Absent { valid: Duration::ZERO }) };
        let Some(node) = dir.node.lookup(&name)? else { return Ok(Looked::Absent { valid }) };
        let node = Arc::new(node);
        let number = self.inodes.remember(Key::child(dir.key, &name, &node), &node, parent);
        let meta = self.owned(&node, node.meta());
        let attributes = Attributes { number, meta, valid: validity(node.changes()) };
        Ok(Looked::Found { attributes, generation: node.generation(), valid })
    }

    pub(super) fn forget(&self, number: u64, count: u64) -> Result<()> {
        self.inodes.forget(number, count);
        Ok(())
    }

    pub(super) fn attributes(&self, number: u64) -> Result<Attributes> {
        let node = self.held(number)?.node;
        let meta = match node.fresh_meta() {
            // Replaced or removed, but a reader has it open: it is still that file.
            Err(stale @ Error::Stale { .. }) => {
                let open = self.files.find(|file| file.number == number).ok_or(stale)?;
                let stale = || Error::Stale { what: format!("inode {number}") };
                open.reader.meta().map_err(Error::io(|| "read attributes".to_owned()))?.ok_or_else(stale)?
            }
            answer => answer?,
        };
        Ok(Attributes { number, meta: self.owned(&node, meta), valid: validity(node.changes()) })
    }

    pub(super) fn read_link(&self, number: u64) -> Result<Vec<u8>> {
        self.held(number)?.node.read_link()
    }

    pub(super) fn open(&self, number: u64) -> Result<Opened> {
        let node = self.held(number)?.node;
        let caching = match (node.changes(), node.as_ref()) {
            (false, _) => Caching::Kept,
            (true, Node::Text(_)) => Caching::Never,
            (true, _) => {
                // Not another file that has the name by now.
                node.fresh_meta()?;
                Caching::WhileOpen
            }
        };
        let size_bytes = node.meta().size_bytes;
        let (handle, file) = self.files.insert(OpenFile { number, reader: node.open()? });
        Ok(Opened { handle, caching, size_bytes, file })
    }

    /// Fills the buffer as far as the file goes.
    pub(super) fn read(&self, handle: u64, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let file = self.file(handle)?;
        let mut filled = 0_usize;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(u64::try_from(filled).unwrap_or(u64::MAX));
            match file.reader.read_at(rest, at) {
                Ok(0) => break,
                Ok(count) => filled = filled.saturating_add(count),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(|| format!("read at {at}"))(error)),
            }
        }
        Ok(filled)
    }

    pub(super) fn seek(&self, handle: u64, to: Seek, offset: u64) -> Result<u64> {
        self.file(handle)?.reader.seek(to, offset).map_err(Error::io(|| format!("seek from {offset}")))
    }

    fn file(&self, handle: u64) -> Result<Arc<OpenFile>> {
        self.files.get(handle).ok_or_else(|| Error::io(|| format!("use handle {handle}"))(Errno::BADF))
    }

    pub(super) fn release(&self, handle: u64) -> Result<()> {
        self.files.remove(handle);
        Ok(())
    }

    /// Opens a directory; tells whether the kernel may keep its listing.
    pub(super) fn open_dir(&self, number: u64) -> Result<(u64, bool)> {
        let held = self.held(number)?;
        let keep = !held.node.changes();
        let (handle, _) = self.directories.insert(OpenDir { held, number, listing: Mutex::new(None) });
        Ok((handle, keep))
    }

    /// The listing that a reader sees; `anew` where it starts from the beginning.
    pub(super) fn listing(&self, handle: u64, anew: bool) -> Result<Listing> {
        let dir =
            self.directories.get(handle).ok_or_else(|| Error::io(|| format!("use handle {handle}"))(Errno::BADF))?;
        let changes = dir.held.node.changes();
        let known = dir.listing.lock().clone().filter(|_| !(anew && changes));
        let entries = match known {
            Some(entries) => entries,
            None => {
                let entry = |(name, node): (Name, Node)| {
                    let key = Key::child(dir.held.key, &name, &node);
                    Listed { name, node: Arc::new(node), key }
                };
                let entries: Arc<[Listed]> = dir.held.node.list()?.into_iter().map(entry).collect();
                *dir.listing.lock() = Some(Arc::clone(&entries));
                entries
            }
        };
        Ok(Listing { entries, number: dir.number, parent: dir.held.parent, valid: validity(changes) })
    }

    /// An entry's inode number and type, for a listing without attributes.
    pub(super) fn number(&self, entry: &Listed) -> (u64, Meta) {
        (self.inodes.number_of(entry.key), entry.node.meta())
    }

    /// An entry as a lookup would answer it; counts a lookup.
    pub(super) fn entry(&self, listing: &Listing, entry: &Listed) -> (Attributes, u64) {
        let number = self.inodes.remember(entry.key, &entry.node, listing.number);
        let valid = listing.valid.min(validity(entry.node.changes()));
        let meta = self.owned(&entry.node, entry.node.meta());
        (Attributes { number, meta, valid }, entry.node.generation())
    }

    pub(super) fn release_dir(&self, handle: u64) -> Result<()> {
        self.directories.remove(handle);
        Ok(())
    }

    /// The value of an extended attribute. Where the store has no `SELinux` labels, a missing one is answered by "not
    /// supported", as kernels without them do: then `ls -l` asks once, and not for each file.
    pub(super) fn xattr(&self, number: u64, name: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.held(number)?.node.xattr(name)? {
            None if name == b"security.selinux" && !self.is_labelled => {
                Err(Error::io(|| "read a label".to_owned())(Errno::OPNOTSUPP))
            }
            value => Ok(value),
        }
    }

    /// The names of extended attributes, each followed by a NUL. Those of the `trusted.` namespace only to root, as
    /// other file systems do.
    pub(super) fn xattr_names(&self, number: u64, is_root: bool) -> Result<Vec<u8>> {
        let names = self.held(number)?.node.xattr_names()?;
        let shown = names.into_iter().filter(|name| is_root || !name.starts_with(b"trusted."));
        Ok(shown.flat_map(|name| name.into_iter().chain([0])).collect())
    }

    pub(super) fn space(&self) -> Result<Space> {
        self.view.space()
    }
}
