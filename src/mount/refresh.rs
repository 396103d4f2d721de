//! Has the kernel forget what it has read of directories and files that may change.
//!
//! Where directories and files are not opened one by one, the kernel keeps what it read of them until it sees another
//! time of change. That may come too late: two changes within a tick of a clock leave one time, and programs set times
//! as they like. So what may change is forgotten a moment after it was read.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use fuser::{INodeNo, Notifier};

/// How long what was read may be kept.
const MOMENT: Duration = Duration::from_millis(50);

/// Notes what was read.
#[derive(Debug)]
pub(super) struct Refresher(Sender<u64>);

impl Refresher {
    /// One that has not started.
    pub(super) fn new() -> (Self, Refreshing) {
        let (sender, receiver) = channel();
        (Self(sender), Refreshing(receiver))
    }

    /// Notes that the kernel read an inode that may change.
    pub(super) fn was_read(&self, number: u64) {
        // Nobody listens at the end, when there is nothing left to forget.
        let _ = self.0.send(number);
    }
}

/// The other end.
#[derive(Debug)]
pub(super) struct Refreshing(Receiver<u64>);

impl Refreshing {
    /// Starts the thread that tells the kernel; it ends with the [`Refresher`].
    ///
    /// # Errors
    /// The system's, where there can be no thread.
    pub(super) fn start(self, notifier: Notifier) -> std::io::Result<()> {
        thread::Builder::new().name("refresh".to_owned()).spawn(move || self.run(&notifier)).map(drop)
    }

    fn run(&self, notifier: &Notifier) {
        while let Ok(first) = self.0.recv() {
            thread::sleep(MOMENT);
            let all: BTreeSet<u64> = std::iter::once(first).chain(self.0.try_iter()).collect();
            for number in all {
                if let Err(error) = notifier.inval_inode(INodeNo(number), 0, 0) {
                    log::debug!("cannot have inode {number} read again: {error}");
                }
            }
        }
    }
}
