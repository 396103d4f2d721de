//! What a mount counts of its own work, and what it holds: for the log, for `status`, and for who watches it.
//!
//! To count is one relaxed addition, which waits for nothing; so the figures of a moment need not agree with each other
//! to the last request. What is held is asked of those who hold it, when someone wants to know.
//!
//! What never comes here is not counted: what the kernel answers from its own caches, what it reads by itself through
//! passthrough, and whether it ever uses the pages of files that it was given ahead.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use rustix::io::Errno;
use serde::{Serialize, Serializer};

use super::files::OpenFiles;
use super::inodes::Inodes;
use super::listings::Listings;
use super::passthrough::Passthrough;
use super::steps::{Step, Steps};
use crate::view::{Service, View};

/// The target of the log messages with the figures, which are shown whatever else is: someone asked for them.
pub const LOG_TARGET: &str = "docker_fs::counters";

/// Error numbers from 1 to less than this are counted one by one (`EHWPOISON` is the largest on most architectures);
/// others together, as 0.
const ERRORS: usize = 134;

/// The names of the errors that requests end with; others are told by their number.
const ERROR_NAMES: &[(Errno, &str)] = &[
    (Errno::PERM, "EPERM"),
    (Errno::NOENT, "ENOENT"),
    (Errno::INTR, "EINTR"),
    (Errno::IO, "EIO"),
    (Errno::NXIO, "ENXIO"),
    (Errno::BADF, "EBADF"),
    (Errno::AGAIN, "EAGAIN"),
    (Errno::NOMEM, "ENOMEM"),
    (Errno::ACCESS, "EACCES"),
    (Errno::XDEV, "EXDEV"),
    (Errno::NODEV, "ENODEV"),
    (Errno::NOTDIR, "ENOTDIR"),
    (Errno::ISDIR, "EISDIR"),
    (Errno::INVAL, "EINVAL"),
    (Errno::NFILE, "ENFILE"),
    (Errno::MFILE, "EMFILE"),
    (Errno::NOTTY, "ENOTTY"),
    (Errno::FBIG, "EFBIG"),
    (Errno::NOSPC, "ENOSPC"),
    (Errno::ROFS, "EROFS"),
    (Errno::RANGE, "ERANGE"),
    (Errno::NAMETOOLONG, "ENAMETOOLONG"),
    (Errno::NOSYS, "ENOSYS"),
    (Errno::LOOP, "ELOOP"),
    (Errno::NODATA, "ENODATA"),
    (Errno::TIME, "ETIME"),
    (Errno::OVERFLOW, "EOVERFLOW"),
    (Errno::OPNOTSUPP, "EOPNOTSUPP"),
    (Errno::TIMEDOUT, "ETIMEDOUT"),
    (Errno::STALE, "ESTALE"),
];

/// A request of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Access,
    Flush,
    Forget,
    Fsync,
    Fsyncdir,
    Getattr,
    Getxattr,
    Ioctl,
    Listxattr,
    Lookup,
    Lseek,
    Open,
    Opendir,
    Read,
    Readdir,
    Readdirplus,
    Readlink,
    Release,
    Statfs,
}

impl Operation {
    /// All, in the order of their names, which is that of their numbers.
    const ALL: [Self; 19] = [
        Self::Access,
        Self::Flush,
        Self::Forget,
        Self::Fsync,
        Self::Fsyncdir,
        Self::Getattr,
        Self::Getxattr,
        Self::Ioctl,
        Self::Listxattr,
        Self::Lookup,
        Self::Lseek,
        Self::Open,
        Self::Opendir,
        Self::Read,
        Self::Readdir,
        Self::Readdirplus,
        Self::Readlink,
        Self::Release,
        Self::Statfs,
    ];

    /// The name, as in FUSE's own, in lower case.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Flush => "flush",
            Self::Forget => "forget",
            Self::Fsync => "fsync",
            Self::Fsyncdir => "fsyncdir",
            Self::Getattr => "getattr",
            Self::Getxattr => "getxattr",
            Self::Ioctl => "ioctl",
            Self::Listxattr => "listxattr",
            Self::Lookup => "lookup",
            Self::Lseek => "lseek",
            Self::Open => "open",
            Self::Opendir => "opendir",
            Self::Read => "read",
            Self::Readdir => "readdir",
            Self::Readdirplus => "readdirplus",
            Self::Readlink => "readlink",
            Self::Release => "release",
            Self::Statfs => "statfs",
        }
    }
}

impl Display for Operation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, more: usize) {
        self.0.fetch_add(u64::try_from(more).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn one(&self) {
        self.add(1);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is counted, by those who do it.
#[derive(Debug)]
pub(super) struct Tally {
    requests: [Count; Operation::ALL.len()],
    errors: [Count; ERRORS],
    /// Bytes of files that were answered.
    pub(super) read_bytes: Count,
    /// Listings that were made.
    pub(super) listings_made: Count,
    /// Questions for a listing that was kept.
    pub(super) listings_found: Count,
    /// Listings that were given up to make room.
    pub(super) listings_evicted: Count,
    /// Directories that were listed ahead.
    pub(super) directories_ahead: Count,
    /// Those of them that were asked for later.
    pub(super) directories_used: Count,
    /// Files that were put into the kernel's page cache.
    pub(super) files_ahead: Count,
    /// Their bytes.
    pub(super) bytes_ahead: Count,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            requests: std::array::from_fn(|_| Count::default()),
            errors: std::array::from_fn(|_| Count::default()),
            read_bytes: Count::default(),
            listings_made: Count::default(),
            listings_found: Count::default(),
            listings_evicted: Count::default(),
            directories_ahead: Count::default(),
            directories_used: Count::default(),
            files_ahead: Count::default(),
            bytes_ahead: Count::default(),
        }
    }
}

impl Tally {
    /// Counts a request.
    pub(super) fn request(&self, operation: Operation) {
        if let Some(count) = self.requests.get(operation as usize) {
            count.one();
        }
    }

    /// Counts a request that ended with this error.
    pub(super) fn error(&self, errno: Errno) {
        let number = usize::try_from(errno.raw_os_error()).unwrap_or_default();
        if let Some(count) = self.errors.get(number).or_else(|| self.errors.first()) {
            count.one();
        }
    }

    fn requests(&self) -> BTreeMap<&'static str, u64> {
        Operation::ALL.map(Operation::name).into_iter().zip(self.requests.iter().map(Count::get)).collect()
    }

    fn errors(&self) -> BTreeMap<String, u64> {
        let counted = (0..).zip(self.errors.iter().map(Count::get)).filter(|(_, count)| *count > 0);
        counted.map(|(number, count)| (error_name(number), count)).collect()
    }
}

fn error_name(number: i32) -> String {
    match ERROR_NAMES.iter().find(|(errno, _)| errno.raw_os_error() == number) {
        Some((_, name)) => (*name).to_owned(),
        None if number == 0 => "other".to_owned(),
        None => number.to_string(),
    }
}

/// What a mount has done and what it holds, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Requests by FUSE's names for them, in lower case.
    #[serde(serialize_with = "those_above_zero")]
    pub requests: BTreeMap<&'static str, u64>,
    /// Requests that failed, by the name of the error; that there is no such name or attribute is an answer, not an error.
    pub errors: BTreeMap<String, u64>,
    /// Bytes of files that were answered.
    pub read_bytes: u64,
    /// Listings of directories.
    pub listings: ListingFigures,
    /// What was read ahead.
    pub read_ahead: AheadFigures,
    /// What the kernel holds.
    pub inodes: InodeFigures,
    /// What is open.
    pub open: OpenFigures,
    /// What has been waiting.
    pub waits: WaitFigures,
    /// How often the store was read again since the start: because it changed, because damage may have passed, or because
    /// that was asked for; also where it said the same as before.
    pub store_rescans: u64,
}

/// Listings of directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ListingFigures {
    /// How many were made.
    pub made: u64,
    /// How often one was asked for that was kept.
    pub found: u64,
    /// How many were given up to make room.
    pub evicted: u64,
    /// How many are kept.
    pub kept: usize,
    /// How many entries they have together.
    pub kept_entries: usize,
}

/// What was read ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AheadFigures {
    /// Directories that were listed.
    pub directories: u64,
    /// Those of them that were asked for later.
    pub directories_used: u64,
    /// Files that the kernel was given.
    pub files: u64,
    /// Their bytes.
    pub file_bytes: u64,
}

/// What the kernel holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct InodeFigures {
    /// How many inodes, the root among them.
    pub held: usize,
    /// The bytes that they take here, without the paths of directories, which files share.
    pub bytes: usize,
}

/// What is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OpenFigures {
    /// Files that the kernel opened.
    pub handles: usize,
    /// Files that are held open for readers without a handle.
    pub unopened: usize,
    /// Files that the kernel reads by itself: it holds a descriptor of each.
    pub passthrough: usize,
}

/// For how many whole seconds the threads that follow the store have been waiting, for a disk or for the kernel, which waits
/// for whoever reads what it is to forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WaitFigures {
    /// To see whether the store changed.
    pub looking_seconds: u64,
    /// To have the kernel forget names that changed.
    pub names_seconds: u64,
    /// To have the kernel forget what it read of what may change.
    pub pages_seconds: u64,
}

fn those_above_zero<S: Serializer>(counts: &BTreeMap<&'static str, u64>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(counts.iter().filter(|(_, count)| **count > 0))
}

/// A line for each group, for people.
impl Display for Figures {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let requests =
            self.requests.iter().filter(|(_, count)| **count > 0).map(|(name, count)| format!("{name} {count}"));
        let errors = self.errors.iter().map(|(name, count)| format!("{name} {count}"));
        let Self { listings, read_ahead, inodes, open, waits, .. } = self;
        writeln!(out, "requests: {}", list(requests))?;
        writeln!(out, "errors: {}", list(errors))?;
        writeln!(out, "read: {} bytes", self.read_bytes)?;
        writeln!(
            out,
            "listings: {} made, {} found, {} evicted; {} kept with {} entries",
            listings.made, listings.found, listings.evicted, listings.kept, listings.kept_entries
        )?;
        writeln!(
            out,
            "read ahead: {} directories, {} of them used; {} files of {} bytes",
            read_ahead.directories, read_ahead.directories_used, read_ahead.files, read_ahead.file_bytes
        )?;
        writeln!(out, "inodes: {} held, {} bytes", inodes.held, inodes.bytes)?;
        writeln!(
            out,
            "open files: {} by handle, {} without, {} by passthrough",
            open.handles, open.unopened, open.passthrough
        )?;
        writeln!(
            out,
            "waiting: {} s to look for changes, {} s to have names forgotten, {} s pages",
            waits.looking_seconds, waits.names_seconds, waits.pages_seconds
        )?;
        write!(out, "store: read again {} times", self.store_rescans)
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

/// The figures of a mount, for as long as anyone wants to know them.
#[derive(Debug, Clone)]
pub struct Counters(Arc<Sources>);

/// Where the figures come from.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) tally: Arc<Tally>,
    pub(super) inodes: Arc<Inodes>,
    pub(super) listings: Arc<Listings>,
    pub(super) files: Arc<OpenFiles>,
    pub(super) steps: Arc<Steps>,
    pub(super) passthrough: Arc<Passthrough>,
    pub(super) view: View,
}

impl Counters {
    /// The figures of these sources, which the view shows from now on.
    pub(super) fn new(sources: Sources) -> Self {
        let sources = Arc::new(sources);
        // Weak, since the sources hold the view.
        let service: Weak<Sources> = Arc::downgrade(&sources);
        sources.view.served_by(service);
        Self(sources)
    }

    /// The figures as they are.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.0.figures()
    }

    /// Writes the figures to the log, as one message of several lines.
    pub fn log(&self) {
        let lines = self.figures().to_string().replace('\n', "\n  ");
        log::info!(target: LOG_TARGET, "counters:\n  {lines}");
    }
}

impl Sources {
    fn figures(&self) -> Figures {
        let tally = &self.tally;
        let (kept, kept_entries) = self.listings.count();
        let (handles, unopened) = self.files.count();
        let waited = |step: &Step| step.waited(Instant::now()).as_secs();
        Figures {
            requests: tally.requests(),
            errors: tally.errors(),
            read_bytes: tally.read_bytes.get(),
            listings: ListingFigures {
                made: tally.listings_made.get(),
                found: tally.listings_found.get(),
                evicted: tally.listings_evicted.get(),
                kept,
                kept_entries,
            },
            read_ahead: AheadFigures {
                directories: tally.directories_ahead.get(),
                directories_used: tally.directories_used.get(),
                files: tally.files_ahead.get(),
                file_bytes: tally.bytes_ahead.get(),
            },
            inodes: InodeFigures { held: self.inodes.count(), bytes: self.inodes.bytes() },
            open: OpenFigures { handles, unopened, passthrough: self.passthrough.count() },
            waits: WaitFigures {
                looking_seconds: waited(&self.steps.looking),
                names_seconds: waited(&self.steps.names),
                pages_seconds: waited(&self.steps.pages),
            },
            store_rescans: self.view.rescans(),
        }
    }
}

impl Service for Sources {
    fn figures(&self) -> serde_json::Value {
        // Numbers and names only, which cannot fail to be written.
        serde_json::to_value(Self::figures(self)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_has_a_count_of_its_own() {
        let tally = Tally::default();
        for (number, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, number, "{operation}");
            for _ in 0..=number {
                tally.request(operation);
            }
        }
        let counts = tally.requests();
        assert_eq!(counts.len(), Operation::ALL.len());
        for (number, operation) in (1..).zip(Operation::ALL) {
            assert_eq!(counts[operation.name()], number, "{operation}");
        }
        assert!(Operation::ALL.map(Operation::name).is_sorted());
    }

    #[test]
    fn errors_are_told_by_name_or_number() {
        let tally = Tally::default();
        for errno in [Errno::NOENT, Errno::STALE, Errno::NOENT, Errno::HWPOISON, Errno::from_raw_os_error(600)] {
            tally.error(errno);
        }
        let told: Vec<(String, u64)> = tally.errors().into_iter().collect();
        let told: Vec<(&str, u64)> = told.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!(told, [("133", 1), ("ENOENT", 2), ("ESTALE", 1), ("other", 1)]);
    }

    #[test]
    fn figures_are_a_line_for_each_group() {
        let tally = Tally::default();
        tally.request(Operation::Read);
        let figures = Figures {
            requests: tally.requests(),
            errors: tally.errors(),
            read_bytes: 7,
            listings: ListingFigures { made: 1, found: 2, evicted: 3, kept: 4, kept_entries: 5 },
            read_ahead: AheadFigures { directories: 1, directories_used: 2, files: 3, file_bytes: 4 },
            inodes: InodeFigures { held: 1, bytes: 2 },
            open: OpenFigures { handles: 1, unopened: 2, passthrough: 3 },
            waits: WaitFigures { looking_seconds: 1, names_seconds: 2, pages_seconds: 3 },
            store_rescans: 9,
        };
        let expected = "\
requests: read 1
errors: none
read: 7 bytes
listings: 1 made, 2 found, 3 evicted; 4 kept with 5 entries
read ahead: 1 directories, 2 of them used; 3 files of 4 bytes
inodes: 1 held, 2 bytes
open files: 1 by handle, 2 without, 3 by passthrough
waiting: 1 s to look for changes, 2 s to have names forgotten, 3 s pages
store: read again 9 times";
        assert_eq!(figures.to_string(), expected);
    }
}
