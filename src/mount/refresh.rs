//! Has the kernel forget what it has read of directories and files that may change, and closes files that nobody reads
//! any more.
//!
//! Where directories and files are not opened one by one, the kernel keeps what it read of them until it sees another
//! time of change. That may come too late: two changes within a tick of a clock leave one time, and programs set times
//! as they like. So what may change is forgotten a moment after it was read; twice, since who asked may not yet have
//! taken the answer when it is forgotten for the first time.
//!
//! The kernel may take for ever to forget a page, since its reader waits for a disk. What is noted meanwhile is a set of
//! inodes that the kernel holds, and does not grow with the number of readings.

use std::collections::BTreeSet;
use std::mem::{replace, take};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use parking_lot::{Condvar, Mutex};

use super::files::OpenFiles;
use super::steps::Steps;

/// What was read is forgotten when it is one to two moments old, and again a moment later.
const MOMENT: Duration = Duration::from_millis(30);
/// Files that were not used for so long are closed.
const IDLE: Duration = Duration::from_secs(10);

/// What was read.
#[derive(Debug, Default)]
struct Notes {
    /// Inodes that may change.
    changing: BTreeSet<u64>,
    /// Whether files are kept open.
    has_files: bool,
    is_over: bool,
}

impl Notes {
    fn is_empty(&self) -> bool {
        self.changing.is_empty() && !self.has_files && !self.is_over
    }
}

#[derive(Debug, Default)]
struct Shared {
    /// Held to note and to take notes; never while the kernel is told.
    notes: Mutex<Notes>,
    more: Condvar,
}

/// Notes what was read, until it is dropped.
#[derive(Debug)]
pub(super) struct Refresher(Arc<Shared>);

impl Refresher {
    /// One that has not started, for these files.
    pub(super) fn new(files: Arc<OpenFiles>, steps: Arc<Steps>) -> (Self, Refreshing) {
        let shared = Arc::<Shared>::default();
        (Self(Arc::clone(&shared)), Refreshing { shared, files, steps })
    }

    /// Notes that the kernel read an inode that may change.
    pub(super) fn was_read(&self, number: u64) {
        self.note(|notes| {
            notes.changing.insert(number);
        });
    }

    /// Notes that a file is kept open.
    pub(super) fn is_kept(&self) {
        self.note(|notes| notes.has_files = true);
    }

    /// Notes that the kernel no longer holds an inode, of which it then has nothing to forget.
    pub(super) fn give_up(&self, number: u64) {
        self.0.notes.lock().changing.remove(&number);
    }

    fn note(&self, note: impl FnOnce(&mut Notes)) {
        let mut notes = self.0.notes.lock();
        let was_empty = notes.is_empty();
        note(&mut notes);
        drop(notes);
        if was_empty {
            self.0.more.notify_one();
        }
    }
}

impl Drop for Refresher {
    fn drop(&mut self) {
        self.note(|notes| notes.is_over = true);
    }
}

/// The other end.
#[derive(Debug)]
pub(super) struct Refreshing {
    shared: Arc<Shared>,
    files: Arc<OpenFiles>,
    steps: Arc<Steps>,
}

impl Refreshing {
    /// Starts the thread that tells the kernel; it ends with the [`Refresher`].
    ///
    /// # Errors
    /// The system's, where there can be no thread.
    pub(super) fn start(self, notifier: Notifier) -> std::io::Result<()> {
        thread::Builder::new().name("refresh".to_owned()).spawn(move || self.run(&notifier)).map(drop)
    }

    fn run(&self, notifier: &Notifier) {
        let (mut young, mut old, mut again) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut has_files = false;
        loop {
            if !has_files && young.is_empty() && old.is_empty() && again.is_empty() {
                young = self.wait();
            }
            thread::sleep(MOMENT);
            for number in old.union(&again) {
                let told = self.steps.pages.run(|| notifier.inval_inode(INodeNo(*number), 0, 0));
                if let Err(error) = told {
                    log::debug!("cannot have inode {number} read again: {error}");
                }
            }
            again = replace(&mut old, take(&mut young));
            let notes = take(&mut *self.shared.notes.lock());
            if notes.is_over {
                return;
            }
            young = notes.changing;
            has_files = self.files.close_idle(IDLE);
        }
    }

    /// Waits until something was read, and answers the inodes that may change.
    fn wait(&self) -> BTreeSet<u64> {
        let mut notes = self.shared.notes.lock();
        self.shared.more.wait_while(&mut notes, |notes| notes.is_empty());
        notes.has_files = false;
        take(&mut notes.changing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(refreshing: &Refreshing) -> Vec<u64> {
        refreshing.shared.notes.lock().changing.iter().copied().collect()
    }

    /// As while the kernel takes long to forget something.
    #[test]
    fn what_is_noted_does_not_grow_with_the_number_of_readings() {
        let (refresher, refreshing) = Refresher::new(Arc::default(), Arc::default());
        for _ in 0..1_000 {
            for number in [7, 8] {
                refresher.was_read(number);
                refresher.is_kept();
            }
        }
        assert_eq!(noted(&refreshing), [7, 8]);
        refresher.give_up(7);
        refresher.give_up(7);
        assert_eq!(noted(&refreshing), [8]);
        assert_eq!(refreshing.wait(), BTreeSet::from([8]));
        assert!(refreshing.shared.notes.lock().is_empty());
        drop(refresher);
        assert!(refreshing.shared.notes.lock().is_over);
    }
}
