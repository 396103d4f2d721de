//! Reading ahead of who walks a tree: directories are listed before they are asked for, and small files are read.
//!
//! A program that walks a tree waits for each directory in turn, and so does a disk. So when a directory is listed
//! soon after the one that holds it, or after another one there, a walk is taken to be under way, and a few threads list
//! what it will come to next, in the order in which it will: a directory's entries in the order of its listing, and
//! what is in a subdirectory before what is behind it. If the walk reads files too, the small files of
//! each directory that it lists are read and put into the kernel's page cache (`FUSE_NOTIFY_STORE`), so that they are
//! not asked for one by one. A single `ls` starts nothing. How far a walk is read ahead of is bounded, and so is the
//! number of walks.
//!
//! Only what never changes is read ahead.

mod walks;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Instant;

use fuser::{INodeNo, Notifier};
use parking_lot::{Condvar, Mutex};

use super::counters::Tally;
use super::inodes::{Held, Inodes, Key};
use super::listings::{Listed, Listing, Listings};
use crate::error::{Error, Result};
use crate::layer::ReadAt;
use walks::{Files, IDLE, Job, SMALL, THREADS_EACH, Walks, is_small};

/// How many threads read ahead: as many as one walk may have, since a disk has its answers sooner when it is asked for
/// several at once, and as many more for others while those wait for a disk that does not answer.
const THREADS: usize = 2 * THREADS_EACH;

/// The way to tell the kernel something of its own accord, once there is one.
pub(super) type Kernel = Arc<OnceLock<Notifier>>;

/// Reads ahead until it is dropped.
#[derive(Debug)]
pub(super) struct Ahead(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inodes: Arc<Inodes>,
    listings: Arc<Listings>,
    kernel: Kernel,
    /// Held for single look-ups and changes only, never while anything is read.
    state: Mutex<State>,
    more: Condvar,
    tally: Arc<Tally>,
}

#[derive(Debug)]
struct State {
    walks: Walks,
    are_running: bool,
    is_over: bool,
}

impl Ahead {
    /// Reads ahead into these listings, and what it reads of files into the kernel's page cache.
    pub(super) fn new(inodes: Arc<Inodes>, listings: Arc<Listings>, kernel: Kernel, tally: Arc<Tally>) -> Self {
        let walks = Walks::new(Arc::clone(&tally));
        let state = Mutex::new(State { walks, are_running: false, is_over: false });
        Self(Arc::new(Shared { inodes, listings, kernel, state, more: Condvar::new(), tally }))
    }

    /// Notes that the listing of a directory was asked for, from its start.
    pub(super) fn was_asked(&self, parent: Key, dir: Key, listing: &Listing) {
        let above = self.0.listings.kept(parent);
        let mut state = self.0.state.lock();
        if state.walks.was_asked(Instant::now(), (parent, dir), listing, above) {
            if !state.are_running {
                state.are_running = true;
                self.start();
            }
            drop(state);
            self.0.more.notify_one();
        }
    }

    /// Notes that the kernel was given the entries of a listing from one offset to another.
    pub(super) fn was_given(&self, dir: Key, listing: &Arc<Listing>, offsets: (u64, u64)) {
        if self.0.state.lock().walks.was_given(dir, listing, offsets) {
            self.0.more.notify_one();
        }
    }

    /// Notes that a small file was asked for that was found in this directory.
    pub(super) fn was_read(&self, dir: Key) {
        self.0.state.lock().walks.was_read(Instant::now(), dir);
    }

    fn start(&self) {
        for _ in 0..THREADS {
            let shared = Arc::clone(&self.0);
            let thread = thread::Builder::new().name("ahead".to_owned()).spawn(move || shared.run());
            if let Err(error) = thread {
                log::info!("nothing is read ahead by one thread more: {error}");
            }
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.0.state.lock().is_over = true;
        self.0.more.notify_all();
    }
}

impl Shared {
    fn run(&self) {
        let mut buffer = Vec::new();
        let mut state = self.state.lock();
        while !state.is_over {
            let Some(job) = state.walks.next() else {
                if self.more.wait_for(&mut state, IDLE).timed_out() {
                    buffer = Vec::new();
                    if state.walks.tidy(Instant::now()) {
                        drop(state);
                        self.listings.clear();
                        crate::sys::release_memory();
                        state = self.state.lock();
                    }
                }
                continue;
            };
            drop(state);
            // As many threads as there is work: each wakes the next.
            self.more.notify_one();
            match job {
                Job::List(walk, dir, with_files) => {
                    let listing = unless_panic(|| self.list(&dir, with_files));
                    state = self.state.lock();
                    state.walks.listed(walk, dir.key(), listing.as_deref());
                    state.walks.done(walk);
                }
                Job::Read(walk, files) => {
                    let is_cold = unless_panic(|| Ok(self.read(&files, &mut buffer)));
                    state = self.state.lock();
                    state.walks.is_cold(walk, is_cold.unwrap_or_default());
                    state.walks.done(walk);
                }
            }
        }
    }

    fn list(&self, dir: &Held, with_files: bool) -> Result<Arc<Listing>> {
        let make = || Listing::of(dir, self.inodes.number_of(dir.key()));
        let listing = self.listings.get(dir.key(), make)?;
        if with_files {
            for entry in listing.entries().iter().filter(|entry| is_small(entry)) {
                let needed = entry.held.node().open().and_then(|file| will_need(file.as_ref()));
                let _was_cold = needed.unwrap_or_else(|error| not_ahead(&error));
            }
        }
        Ok(listing)
    }

    /// Gives files to the kernel; answers whether any had to be read from the disk.
    fn read(&self, files: &Files, buffer: &mut Vec<u8>) -> bool {
        let Some(kernel) = self.kernel.get() else { return false };
        buffer.resize(usize::try_from(SMALL).unwrap_or_default(), 0);
        let mut is_cold = false;
        for entry in files.entries() {
            is_cold |= self.store(kernel, entry, buffer).unwrap_or_else(|error| not_ahead(&error));
        }
        is_cold
    }

    fn store(&self, kernel: &Notifier, entry: &Listed, buffer: &mut [u8]) -> Result<bool> {
        let file = entry.held.node().open()?;
        let is_cold = will_need(file.as_ref())?;
        let size = usize::try_from(entry.meta.size_bytes).unwrap_or(usize::MAX);
        let Some(into) = buffer.get_mut(..size) else { return Ok(is_cold) };
        // What cannot be read whole is left to who asks for it.
        if file.read_at(into, 0).map_err(Error::io(doing))? == size {
            let number = INodeNo(self.inodes.number_of(entry.held.key()));
            kernel.store(number, 0, into).map_err(Error::io(doing))?;
            self.tally.files_ahead.one();
            self.tally.bytes_ahead.add(size);
        }
        Ok(is_cold)
    }
}

fn will_need(file: &dyn ReadAt) -> Result<bool> {
    file.will_need().map_err(Error::io(doing))
}

fn doing() -> String {
    "read ahead".to_owned()
}

/// Passes over what could not be read ahead.
fn not_ahead(error: &Error) -> bool {
    log::debug!("while reading ahead: {error}");
    false
}

/// An answer, if there is one: what goes wrong here goes wrong again, and is told, when it is asked for.
fn unless_panic<T>(work: impl FnOnce() -> Result<T>) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) => {
            not_ahead(&error);
            None
        }
        Err(_panic) => {
            log::error!("reading ahead panicked; this is a defect of docker-fs");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;
    use crate::mount::fake::{self, Dir};
    use crate::mount::inodes::ROOT;

    /// Longer than any test takes.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn coming_directories_are_listed_by_threads_that_survive_panics_and_end() {
        let (listing, listed) = channel();
        let dir = |name: &'static str| {
            let listing = listing.clone();
            let on_list = move || {
                // At the end nobody listens.
                let _ = listing.send((name, thread::current().id()));
                assert!(name != "panics", "a panic on purpose");
            };
            (name, Dir::of::<&str>([]).on_list(on_list).entry())
        };
        let root = Dir::of(["a", "b", "c", "panics", "z"].map(dir)).entry().node;
        let inodes = Arc::new(Inodes::new(root));
        let listings = Arc::new(Listings::default());
        let ahead = Ahead::new(Arc::clone(&inodes), Arc::clone(&listings), Kernel::default(), Arc::default());
        let ask = |dir: &Held| {
            let listing = listings.keep(dir.key(), fake::listing_of(dir));
            ahead.was_asked(Key::root(), dir.key(), &listing);
            listing
        };

        let top = ask(&inodes.get(ROOT).unwrap());
        ask(&top.entries()[0].held);
        assert_eq!(listed.recv_timeout(LONG), Ok(("a", thread::current().id())));
        let ahead_of: Vec<_> = (0..4).map(|_| listed.recv_timeout(LONG).unwrap()).collect();
        assert!(ahead_of.iter().all(|(_, thread)| *thread != thread::current().id()));
        let names: BTreeSet<&str> = ahead_of.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, BTreeSet::from(["b", "c", "panics", "z"]));

        let threads = Arc::downgrade(&ahead.0);
        drop(ahead);
        let patience = Instant::now();
        while threads.strong_count() > 0 {
            assert!(patience.elapsed() < LONG, "a thread goes on");
            thread::yield_now();
        }
        assert!(listings.kept(top.entries()[2].held.key()).is_some());
    }
}
