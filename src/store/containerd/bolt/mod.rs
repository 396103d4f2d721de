//! Databases of bbolt, read while another process writes them: no lock is taken, and nothing is written.
//!
//! ```text
//! page 0, 1     meta: two in turn, each with a checksum; the higher transaction counts
//! page 2 …      branches and leaves of B+ trees, which a commit never writes over: it takes free pages
//!   leaf        keys with values, or with buckets: another tree's root, or a whole small leaf in the value itself
//! ```
//!
//! bbolt's own readers take a shared lock, for which they wait as long as containerd lives, and for which containerd
//! would wait. They need it to keep a writer from taking pages that they read. [`Database::read`] instead compares the
//! meta pages before and after: pages that transaction N uses are written over by N + 2 at the earliest, which starts
//! after the meta page of N + 1 was written. So what was read while N stayed the newest is N's state, whole.
//!
//! Pages are read when they are asked for. A copy of the file would cost its size in memory, most of which may be free
//! pages or containers that nobody asks for, and would have to be refused from some size on. Here a state holds 64 MiB
//! of pages at most, and 33 bytes or so for each page that was asked for, whatever the size.
//!
//! The rules are those of bbolt 1.3 (`page.go`, `db.go`, `node.go`); the free list is never needed. Nothing here knows
//! what containerd puts into its databases.

mod bucket;
mod meta;
mod page;
mod snapshot;

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

pub use bucket::{Bucket, Entries, Entry, Nested};
use meta::Meta;
use rustix::io::Errno;
use snapshot::Snapshot;

use crate::error::{Error, Result};

/// How often a state is tried to be read until the writer leaves it alone for long enough. Every few milliseconds is
/// what containerd's commits take at the least, since each waits for the disk twice.
const ATTEMPTS_MAX: u32 = 20;
/// The longest wait between two attempts.
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// The file of a database.
pub trait ReadAt: Debug + Send + Sync {
    /// Reads at an offset in bytes; nothing means the end of the file.
    ///
    /// # Errors
    /// The system's.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }
}

/// A database that others may be writing.
#[derive(Debug)]
pub struct Database {
    file: Box<dyn ReadAt>,
    shown: String,
}

impl Database {
    /// The database in an open file, which messages call `shown`. Nothing is read yet.
    #[must_use]
    pub fn new(file: Box<dyn ReadAt>, shown: impl Into<String>) -> Self {
        Self { file, shown: shown.into() }
    }

    /// The number of the newest transaction: while it stays, so does all that the database holds.
    ///
    /// # Errors
    /// [`Error::Damaged`] where neither meta page is valid; [`Error::Unsupported`] where another version wrote them.
    pub fn transaction(&self) -> Result<u64> {
        Ok(self.newest()?.transaction)
    }

    /// Looks at the newest state through its root bucket; the answer is one of that state alone.
    ///
    /// `look` is called again where a transaction was committed meanwhile, whatever it answered, so it should collect
    /// anew each time and be quick. What it sees may be of two states, as this is found only when it has answered: it
    /// should answer an error where something is missing that must be there, and do nothing else about it.
    ///
    /// # Errors
    /// What `look` answers. [`Error::Io`] of `EAGAIN`, which is transient, where commits come too quickly to read
    /// anything between them.
    pub fn read<T>(&self, mut look: impl FnMut(&Bucket<'_>) -> Result<T>) -> Result<T> {
        for attempt in 0..ATTEMPTS_MAX {
            std::thread::sleep(pause(attempt));
            let meta = self.newest()?;
            let snapshot = Snapshot::new(&*self.file, &self.shown, &meta);
            let answer = Bucket::root(&snapshot).and_then(|root| look(&root));
            if self.newest().is_ok_and(|now| now == meta) {
                return answer;
            }
        }
        let doing = || format!("read {}, which was written {ATTEMPTS_MAX} times meanwhile", self.shown);
        Err(Error::io(doing)(io::Error::from(Errno::AGAIN)))
    }

    fn newest(&self) -> Result<Meta> {
        meta::newest(&*self.file, &self.shown)
    }
}

/// How long to wait before an attempt: the first two follow at once, as most commits are alone.
fn pause(attempt: u32) -> Duration {
    match attempt {
        0 | 1 => Duration::ZERO,
        later => Duration::from_millis(1_u64 << later.min(10)).min(PAUSE_MAX),
    }
}
