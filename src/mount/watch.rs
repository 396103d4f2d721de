//! Has the kernel forget names that stand for something else, or for nothing, since the store changed.
//!
//! Who looks up a name in a folder of the store's is answered from the store as it is, so nobody is shown an old name.
//! But what the kernel holds at old names would stay until it is short of memory: directories, files and their pages, and
//! the daemon's nodes with them. So changes are heard of ([`Watch`]), or looked for every second where they cannot be, and
//! then each name that the kernel holds in such a folder is looked up again. What is in use stays, and is read on.
//!
//! The kernel is told by a thread of its own, which holds no lock while it tells: the kernel waits for whoever is reading
//! the directory, and they for an answer. That thread does nothing else, so that whoever waits for a disk keeps nobody
//! from hearing of changes; what it has to tell meanwhile are names that the kernel holds, each once.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};
use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::inodes::Inodes;
use super::listings::{Listed, Listings};
use super::steps::{self, Steps};
use crate::error::Error;
use crate::name::Name;
use crate::store::Watch;
use crate::view::{Node, State, View};

/// How long changes are collected: longer than the store takes containers to be as they were.
const COLLECTED: Duration = Duration::from_millis(60);
/// The longest time for which they are, however long it takes to look names up.
const COLLECTED_MAX: Duration = Duration::from_millis(500);
/// Names are looked up again once more after so long, since an answer may have been on its way to the kernel.
const AGAIN: Duration = Duration::from_millis(150);
/// How often a store is looked at that cannot be watched as a whole.
const INTERVAL: Duration = Duration::from_secs(1);

/// Where the kernel holds what may come to be something else: names in folders of the store's, and of momentary files.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Held for single look-ups and changes, never while the kernel is told.
    noted: Mutex<Noted>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Noted {
    /// By the numbers of what stands there; each stands at one name only.
    by_number: BTreeMap<u64, Place>,
    /// What the kernel is to forget.
    to_tell: BTreeSet<u64>,
    is_over: bool,
}

/// A name in the directory of this number.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    dir: u64,
    name: Name,
}

impl Places {
    /// Notes that the kernel is told of a node in a directory, where that may change.
    pub(super) fn note(&self, number: u64, node: &Node, (dir, holder): (u64, &Node), name: &Name) {
        let is_folder = matches!(holder, Node::Section(_)) && holder.changes();
        if is_folder || node.is_momentary() {
            self.noted.lock().by_number.insert(number, Place { dir, name: name.clone() });
        }
    }

    /// Notes that the kernel no longer holds a node.
    pub(super) fn give_up(&self, number: u64) {
        let mut noted = self.noted.lock();
        noted.by_number.remove(&number);
        noted.to_tell.remove(&number);
    }

    fn all(&self) -> Vec<(u64, Place)> {
        self.noted.lock().by_number.iter().map(|(number, place)| (*number, place.clone())).collect()
    }

    fn is_empty(&self) -> bool {
        self.noted.lock().by_number.is_empty()
    }

    /// Has the kernel forget the name of what has this number.
    fn forget(&self, number: u64) {
        self.noted.lock().to_tell.insert(number);
        self.more.notify_one();
    }

    /// Has nothing forgotten any more.
    fn end(&self) {
        self.noted.lock().is_over = true;
        self.more.notify_one();
    }

    /// The next name that the kernel is to forget, which is waited for; `None` at the end. Every now and then something
    /// else is done `meanwhile`.
    fn next(&self, meanwhile: impl Fn()) -> Option<Place> {
        let mut noted = self.noted.lock();
        while !noted.is_over {
            while let Some(number) = noted.to_tell.pop_first() {
                if let Some(place) = noted.by_number.get(&number) {
                    return Some(place.clone());
                }
            }
            if self.more.wait_for(&mut noted, steps::LONG).timed_out() {
                drop(noted);
                meanwhile();
                noted = self.noted.lock();
            }
        }
        None
    }
}

/// Wakes the thread.
#[derive(Debug)]
struct Bell {
    event: OwnedFd,
    /// Whether everything is to be read again.
    is_asked: AtomicBool,
    is_over: AtomicBool,
}

impl Bell {
    fn ring(&self) {
        // It fails only where it was rung more often than can be counted, and then it rings.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    fn silence(&self) {
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
    }
}

/// Has the store read again while it is served.
#[derive(Debug, Clone)]
pub struct Controls(Arc<Bell>);

impl Controls {
    /// Has everything in the store read again, also what has the times that it had, and all names in folders that change
    /// forgotten by the kernel. This asks for it and returns.
    pub fn rescan(&self) {
        self.0.is_asked.store(true, Ordering::Release);
        self.0.ring();
    }
}

/// Lets the thread run until it is dropped.
#[derive(Debug)]
pub(super) struct Watcher(Arc<Bell>);

impl Watcher {
    /// One whose thread has not started.
    ///
    /// # Errors
    /// The system's, where there can be no more descriptors.
    pub(super) fn new() -> std::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self(Arc::new(Bell { event, is_asked: AtomicBool::new(false), is_over: AtomicBool::new(false) })))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Release);
        self.0.ring();
    }
}

/// Which names the kernel is to forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    /// Those that stand for something else, or nothing, by now.
    Changed,
    All,
}

/// What the thread works with.
#[derive(Debug)]
pub(super) struct Watching {
    view: View,
    inodes: Arc<Inodes>,
    listings: Arc<Listings>,
    places: Arc<Places>,
    steps: Arc<Steps>,
    bell: Arc<Bell>,
}

impl Watching {
    /// For names that are kept in mind in `places`; [`Watching::start`] starts it.
    pub(super) fn new(
        view: View,
        inodes: Arc<Inodes>,
        listings: Arc<Listings>,
        places: Arc<Places>,
        steps: Arc<Steps>,
        watcher: &Watcher,
    ) -> Self {
        Self { view, inodes, listings, places, steps, bell: Arc::clone(&watcher.0) }
    }

    /// What has the store read again.
    pub(super) fn controls(&self) -> Controls {
        Controls(Arc::clone(&self.bell))
    }

    /// Starts the threads that hear of changes and tell the kernel; they end with the [`Watcher`].
    ///
    /// # Errors
    /// The system's, where there can be no threads.
    pub(super) fn start(self, notifier: Notifier) -> std::io::Result<()> {
        let (places, steps) = (Arc::clone(&self.places), Arc::clone(&self.steps));
        let watch = move || {
            self.run();
            self.places.end();
        };
        thread::Builder::new().name("watch".to_owned()).spawn(watch)?;
        thread::Builder::new().name("forget".to_owned()).spawn(move || tell(&places, &steps, &notifier)).map(drop)
    }

    fn run(&self) {
        let mut watch = Watch::new();
        let mut known = None;
        let mut again = false;
        loop {
            let begun = Instant::now();
            let looked = self.steps.looking.run(|| catch_unwind(AssertUnwindSafe(|| self.look(known, again))));
            if looked.is_err() {
                log::error!("looking for changes panicked; this is a defect of docker-fs");
            }
            let state = looked.ok().or(known);
            again = state != known;
            known = state;
            if again {
                self.view.watch(&mut watch);
            }
            // Most of the time is others', however many names there are.
            let pause = begun.elapsed().saturating_mul(3).clamp(COLLECTED, COLLECTED_MAX);
            let in_doubt = self.view.is_in_doubt();
            let interval = (!watch.is_complete() || in_doubt).then_some(INTERVAL);
            let longest = if again { Some(AGAIN) } else { interval };
            while !self.heard(&watch, longest) && !again && !in_doubt && self.places.is_empty() {}
            thread::sleep(pause);
            if self.bell.is_over.load(Ordering::Acquire) {
                return;
            }
            self.bell.silence();
            watch.take();
        }
    }

    /// Reads the store if it changed, and has the kernel forget what follows from that, also if it is to be done once
    /// more; answers the state that the store is in.
    fn look(&self, known: Option<State>, again: bool) -> State {
        if self.bell.is_asked.swap(false, Ordering::AcqRel) {
            let read = self.view.read_again();
            match read {
                Some(_) => log::info!("the whole store was read again"),
                None => log::warn!("the store cannot be read again; it is shown as it was"),
            }
            self.listings.clear();
            self.forget(Which::All);
            return read.unwrap_or_else(|| self.view.refresh());
        }
        let state = self.view.refresh();
        if again || known.is_some_and(|known| known != state) {
            self.forget(Which::Changed);
        }
        state
    }

    /// Waits until something is heard, or for so long; tells whether it was.
    fn heard(&self, watch: &Watch, longest: Option<Duration>) -> bool {
        let begun = Instant::now();
        loop {
            let left = longest.map_or(Duration::MAX, |longest| longest.saturating_sub(begun.elapsed()));
            let piece = left.min(steps::LONG);
            if self.heard_within(watch, piece) {
                return true;
            }
            if piece == left {
                return false;
            }
            self.steps.check();
        }
    }

    fn heard_within(&self, watch: &Watch, longest: Duration) -> bool {
        let longest = Timespec::try_from(longest).ok();
        let bell = PollFd::new(&self.bell.event, PollFlags::IN);
        let ready = match watch.descriptor() {
            Some(inotify) => poll(&mut [bell, PollFd::from_borrowed_fd(inotify, PollFlags::IN)], longest.as_ref()),
            None => poll(&mut [bell], longest.as_ref()),
        };
        match ready {
            Ok(count) => count > 0,
            Err(Errno::INTR) => false,
            Err(errno) => {
                log::debug!("cannot wait for changes: {errno}");
                thread::sleep(INTERVAL);
                true
            }
        }
    }

    fn forget(&self, which: Which) {
        for (number, place) in self.places.all() {
            if which == Which::All || !self.stands(number, &place) {
                self.places.forget(number);
            }
        }
    }

    /// Whether a name stands for what has this number. So does one that cannot be looked up for the moment.
    fn stands(&self, number: u64, place: &Place) -> bool {
        let Some(dir) = self.inodes.get(place.dir) else { return true };
        match dir.node().lookup(&place.name) {
            Ok(Some(entry)) => {
                let now = Listed::new(dir.key(), place.dir, place.name.clone(), entry);
                self.inodes.number_of(now.held.key()) == number
            }
            Ok(None) => false,
            Err(error) => matches!(error, Error::Io { .. }),
        }
    }
}

/// Tells the kernel what to forget, until the end.
fn tell(places: &Places, steps: &Steps, notifier: &Notifier) {
    while let Some(place) = places.next(|| steps.check()) {
        let told = steps.names.run(|| notifier.inval_entry(INodeNo(place.dir), place.name.as_os_str()));
        if let Err(error) = told {
            log::debug!("cannot have {:?} forgotten: {error}", place.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::fake::{self, Dir};
    use crate::view::Entry;

    fn noted(holder: &Node, entry: &Entry) -> bool {
        let places = Places::default();
        places.note(7, &entry.node, (1, holder), &fake::name("x"));
        let is_noted = places.all() == [(7, Place { dir: 1, name: fake::name("x") })];
        assert_eq!(is_noted, !places.is_empty());
        places.give_up(7);
        assert!(places.is_empty());
        is_noted
    }

    #[test]
    fn only_names_that_may_stand_for_something_else_are_kept_in_mind() {
        let (folder, image) = (Dir::of::<&str>([]).changing().entry(), fake::empty());
        for entry in [fake::empty(), fake::file(1)] {
            assert!(noted(&folder.node, &entry));
            assert!(!noted(&image.node, &entry));
        }
    }
}
