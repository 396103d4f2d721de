//! Hears of a store's changes (`inotify(7)`).
//!
//! What has changed is not looked at: whoever hears of a change compares generations. So an event too many costs a look,
//! and nothing is lost with events that the system dropped because there were too many, since those before them are heard.
//!
//! Not every store can be watched as a whole: the system has limits, and some disks are written to by others. Then
//! [`Watch::is_complete`] says so, and generations must be compared from time to time.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use log::Level;
use rustix::fs::inotify::{self, CreateFlags};
use rustix::io::Errno;

use super::Store;
use crate::error::{Error, Result};
use crate::meta::Timestamp;
use crate::name::TreePath;
use crate::root::{Changes, OwnDirectory, Root};

/// How many directories are watched; each takes about a kilobyte of the kernel's memory, and the system allows a user
/// 8,192 or more in all.
const DIRECTORIES_MAX: usize = 1_024;
/// How often events are fetched before others have their turn: more than a full queue takes.
const FETCHES_MAX: usize = 1_024;

/// The directories of a store that are watched by a thread.
#[derive(Debug)]
pub struct Watch {
    /// Where changes are heard of, and what it takes to watch more.
    ear: Option<Ear>,
    watched: BTreeSet<Directory>,
    is_complete: bool,
    /// Whether it was said that not everything is watched.
    was_said: bool,
}

#[derive(Debug)]
struct Ear {
    inotify: OwnedFd,
    own: OwnDirectory,
}

/// A directory, told from another that stood at the same path by its number and time of birth.
type Directory = (PathBuf, u64, Timestamp);

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}

impl Ear {
    fn new() -> std::io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        Ok(Self { inotify, own: OwnDirectory::of_this_thread()? })
    }
}

impl Watch {
    /// A watch of no directories. This thread gets a current directory of its own, which is of no use to it from then on.
    #[must_use]
    pub fn new() -> Self {
        let mut watch = Self { ear: None, watched: BTreeSet::new(), is_complete: false, was_said: false };
        match Ear::new() {
            Ok(ear) => watch.ear = Some(ear),
            Err(error) => watch.say(&Error::io(|| "watch directories".to_owned())(error)),
        }
        watch
    }

    /// Watches all directories that the stores want to be watched; those that are watched already stay so.
    pub fn renew<'a>(&mut self, stores: impl Iterator<Item = &'a dyn Store>) {
        let Some(ear) = &self.ear else { return };
        let (mut watched, mut trouble, mut is_complete) = (BTreeSet::new(), None, true);
        for store in stores {
            let before = watched.len();
            let mut watch =
                |changes, root: &Root, dir: &TreePath| match add(ear, &self.watched, &watched, root, dir, changes) {
                    Ok(Some(directory)) => drop(watched.insert(directory)),
                    Ok(None) => is_complete = false,
                    Err(error) => drop(trouble.get_or_insert(error)),
                };
            let told = store.written(&mut |root, dir| watch(Changes::Writes, root, dir));
            let told = told.and_then(|()| store.watched(&mut |root, dir| watch(Changes::Entries, root, dir)));
            trouble = trouble.or(told.err());
            is_complete = is_complete && watched.len() > before;
        }
        self.is_complete = is_complete && trouble.is_none();
        self.watched = watched;
        if let Some(error) = trouble {
            self.say(&error);
        }
    }

    /// Whether every change is heard of.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// What can be read from when something was heard.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.ear.as_ref().map(|ear| ear.inotify.as_fd())
    }

    /// Takes what was heard, so that the next change is heard of.
    pub fn take(&mut self) {
        let mut events = [0; 4096];
        for _ in 0..FETCHES_MAX {
            let Some(ear) = &self.ear else { return };
            match rustix::io::read(&ear.inotify, &mut events) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(errno) => {
                    // It would be heard of again and again.
                    (self.ear, self.is_complete) = (None, false);
                    self.say(&Error::io(|| "hear of changes".to_owned())(errno));
                }
            }
        }
    }

    /// Says once that not everything is watched.
    fn say(&mut self, why: &Error) {
        let level = match why {
            // Nobody can do anything about it.
            Error::Unsupported { .. } => Level::Info,
            Error::Io { .. }
            | Error::Damaged { .. }
            | Error::Refused { .. }
            | Error::Stale { .. }
            | Error::NotFound { .. } => Level::Warn,
        };
        let level = if self.was_said { Level::Debug } else { level };
        log::log!(level, "{why}; what changes is looked for every second");
        self.was_said = true;
    }
}

/// Watches a directory that is not watched already; `None` where there is none.
fn add(
    ear: &Ear,
    known: &BTreeSet<Directory>,
    watched: &BTreeSet<Directory>,
    root: &Root,
    dir: &TreePath,
    changes: Changes,
) -> Result<Option<Directory>> {
    let Some(meta) = root.stat(dir)? else { return Ok(None) };
    let directory = (root.host_path(dir), meta.inode, meta.created);
    if known.contains(&directory) {
        return Ok(Some(directory));
    }
    if watched.len() >= DIRECTORIES_MAX {
        let why = format!("not watched, as {DIRECTORIES_MAX} directories are");
        return Err(Error::Unsupported { what: root.shown(dir), why });
    }
    match root.watch(dir, changes, &ear.inotify, &ear.own) {
        Ok(()) => Ok(Some(directory)),
        // It was removed meanwhile.
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
