//! What the integration tests share: stores made on the spot, mounts that go away by themselves, and trees taken as data.
//!
//! * `storage` writes a store of containers/storage.
//! * `store` writes a classic Docker data root, byte for byte as the daemon does.
//! * `tar_split` writes the names that a layer's tar had.
//! * `stack` makes stacks of overlay2 directories, at random or by hand, and shrinks one that fails.
//! * `mount` mounts docker-fs, kernel overlayfs and tmpfs, and unmounts them on drop.
//! * `faulty` is a disk that hangs or fails where it is told to.
//! * `tree` reads a directory tree into a map and tells two maps apart.
//! * `whole` writes one of a driver whose layers are whole trees.
//! * `view` reads all of a view through the library.
//! * `filter` takes system calls away.
//! * `fuse_overlayfs` mounts with the program of that name.
//! * `graph` writes a data root of Docker 1.9.
//! * `marks` makes stores and stacks of aufs and fuse-overlayfs of those of overlay2.
//! * `random` makes numbers and bytes that follow from a seed.

#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

pub mod faulty;
pub mod filter;
pub mod fuse_overlayfs;
pub mod graph;
pub mod marks;
pub mod mount;
pub mod random;
pub mod stack;
pub mod storage;
pub mod store;
pub mod tar_split;
pub mod tree;
pub mod view;
pub mod whole;

use std::mem::MaybeUninit;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tempfile::TempDir;

/// How long the system may take for what it does on its own: to end a process, to let go of what is no longer used.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks until the answer is yes; tells whether it was.
pub fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// A directory on the build's own disk, gone with the value.
pub fn scratch(prefix: &str) -> TempDir {
    tempfile::Builder::new().prefix(prefix).tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a scratch directory")
}

/// How long this thread had a CPU for some work. Other threads, and who else uses the machine, count for nothing.
pub fn worked(work: impl FnOnce()) -> Duration {
    // The first of its figures, in nanoseconds (the kernel's sched-stats.rst).
    let now = || {
        let figures = std::fs::read_to_string("/proc/thread-self/schedstat").expect("read schedstat");
        Duration::from_nanos(figures.split(' ').next().and_then(|time| time.parse().ok()).expect("a time"))
    };
    let before = now();
    work();
    now().checked_sub(before).expect("time that goes on")
}

/// Whether a file is opened by anyone while some work is done.
pub fn is_opened(file: &Path, work: impl FnOnce()) -> bool {
    let ear = inotify::init(CreateFlags::NONBLOCK).expect("an inotify instance");
    inotify::add_watch(&ear, file, WatchFlags::OPEN).expect("watch a file");
    work();
    let mut buffer = [MaybeUninit::uninit(); 4_096];
    inotify::Reader::new(&ear, &mut buffer).next().is_ok()
}
