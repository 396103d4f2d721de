//! Has the kernel forget what it has read of directories and files that may change, and closes files that nobody reads
//! any more.
//!
//! Where directories and files are not opened one by one, the kernel keeps what it read of them until it sees another
//! time of change. That may come too late: two changes within a tick of a clock leave one time, and programs set times
//! as they like. So what may change is forgotten a moment after it was read; twice, since who asked may not yet have
//! taken the answer when it is forgotten for the first time.

use std::collections::BTreeSet;
use std::mem::{replace, take};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use fuser::{INodeNo, Notifier};

use super::files::OpenFiles;

/// What was read is forgotten when it is one to two moments old, and again a moment later.
const MOMENT: Duration = Duration::from_millis(30);
/// Files that were not used for so long are closed.
const IDLE: Duration = Duration::from_secs(10);

/// Something that was read.
#[derive(Debug, Clone, Copy)]
enum Note {
    /// An inode that may change.
    Changing(u64),
    /// A file that is kept open.
    Kept,
}

/// Notes what was read.
#[derive(Debug)]
pub(super) struct Refresher(Sender<Note>);

impl Refresher {
    /// One that has not started, for these files.
    pub(super) fn new(files: Arc<OpenFiles>) -> (Self, Refreshing) {
        let (sender, notes) = channel();
        (Self(sender), Refreshing { notes, files })
    }

    /// Notes that the kernel read an inode that may change.
    pub(super) fn was_read(&self, number: u64) {
        self.note(Note::Changing(number));
    }

    /// Notes that a file is kept open.
    pub(super) fn is_kept(&self) {
        self.note(Note::Kept);
    }

    fn note(&self, note: Note) {
        // Nobody listens at the end, when there is nothing left to forget.
        let _ = self.0.send(note);
    }
}

/// The other end.
#[derive(Debug)]
pub(super) struct Refreshing {
    notes: Receiver<Note>,
    files: Arc<OpenFiles>,
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
                match self.notes.recv() {
                    Ok(Note::Changing(number)) => drop(young.insert(number)),
                    Ok(Note::Kept) => {}
                    Err(_over) => return,
                }
            }
            thread::sleep(MOMENT);
            for number in old.union(&again) {
                if let Err(error) = notifier.inval_inode(INodeNo(*number), 0, 0) {
                    log::debug!("cannot have inode {number} read again: {error}");
                }
            }
            again = replace(&mut old, take(&mut young));
            loop {
                match self.notes.try_recv() {
                    Ok(Note::Changing(number)) => drop(young.insert(number)),
                    Ok(Note::Kept) => {}
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            has_files = self.files.close_idle(IDLE);
        }
    }
}
