//! Open files: those that the kernel opened, by the handles that it was given, and those that it reads without opening
//! them, by inode.
//!
//! Each takes a descriptor, of which a process has few, and one reader could take them all. So only a part of them is
//! held by handles: of more, files that never change are closed again, and opened to be read; others are not opened.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::error::{Error, Result};
use crate::layer::ReadAt;

/// The handle of files that the kernel reads without opening them.
pub(super) const NO_HANDLE: u64 = 0;
/// How many files are held open for readers that did not open them, at most.
const UNOPENED_MAX: NonZeroUsize = NonZeroUsize::new(128).unwrap();
/// How many descriptors are left for all else, half of what there is but these: threads have some each.
const OTHERS: usize = 16;

/// How many files may be open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// By handles.
    pub(super) opened: usize,
    /// For readers that did not open them.
    unopened: NonZeroUsize,
}

impl Bounds {
    /// As many as go well with the number of descriptors that this process may have.
    pub(super) fn of_process() -> Self {
        let limit = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
        Self::of(limit.unwrap_or(usize::MAX))
    }

    fn of(descriptors: usize) -> Self {
        let unopened = NonZeroUsize::new(descriptors / 8).unwrap_or(NonZeroUsize::MIN).min(UNOPENED_MAX);
        Self { opened: (descriptors / 2).saturating_sub(OTHERS).max(1), unopened }
    }
}

/// An open file.
#[derive(Debug)]
pub(super) struct OpenFile {
    /// The inode.
    pub(super) number: u64,
    /// Tells it from another file that had the number before.
    pub(super) generation: u64,
    /// Whether the content may change.
    pub(super) changes: bool,
    pub(super) reader: Box<dyn ReadAt>,
}

/// What is open.
#[derive(Debug)]
pub(super) struct OpenFiles {
    next: AtomicU64,
    bounds: Bounds,
    /// Guards the table; held for single look-ups and changes only.
    by_handle: Mutex<Handles>,
    /// As above; what was read longest ago is closed first.
    by_inode: Mutex<LruCache<u64, (Arc<OpenFile>, Instant)>>,
}

#[derive(Debug, Default)]
struct Handles {
    /// None where the file is opened to be read.
    files: HashMap<u64, Option<Arc<OpenFile>>>,
    /// How many are held open.
    held: usize,
}

impl Default for OpenFiles {
    fn default() -> Self {
        Self::within(Bounds::of_process())
    }
}

impl OpenFiles {
    /// Keeps no more files open.
    fn within(bounds: Bounds) -> Self {
        let by_inode = Mutex::new(LruCache::new(bounds.unopened));
        Self { next: AtomicU64::new(NO_HANDLE + 1), bounds, by_handle: Mutex::default(), by_inode }
    }

    /// Makes a handle of a file, and keeps it open until that is released, if it may.
    ///
    /// # Errors
    /// `EMFILE` where too many are open, for a file that may be another by the time it is read.
    pub(super) fn insert(&self, file: OpenFile) -> Result<(u64, Arc<OpenFile>)> {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        let file = Arc::new(file);
        let mut by_handle = self.by_handle.lock();
        let has_room = by_handle.held < self.bounds.opened;
        if !has_room && file.changes {
            return Err(Error::io(|| format!("open more than {} files", by_handle.held))(Errno::MFILE));
        }
        by_handle.files.insert(handle, has_room.then(|| Arc::clone(&file)));
        by_handle.held = by_handle.held.saturating_add(usize::from(has_room));
        drop(by_handle);
        Ok((handle, file))
    }

    /// The file of a handle: none where it is to be opened. No answer where there is no such handle.
    pub(super) fn get(&self, handle: u64) -> Option<Option<Arc<OpenFile>>> {
        self.by_handle.lock().files.get(&handle).cloned()
    }

    /// Closes the file of a handle, which is opened again if it is read all the same.
    pub(super) fn let_go(&self, handle: u64) {
        let mut by_handle = self.by_handle.lock();
        let closed = by_handle.files.get_mut(&handle).and_then(Option::take);
        by_handle.held = by_handle.held.saturating_sub(usize::from(closed.is_some()));
        drop(by_handle);
        drop(closed);
    }

    /// Releases a handle; the file is closed when the last request that uses it ends.
    pub(super) fn release(&self, handle: u64) {
        self.let_go(handle);
        self.by_handle.lock().files.remove(&handle);
    }

    /// Keeps a file open for readers that have no handle, in the place of an older one of the inode.
    pub(super) fn keep(&self, file: Arc<OpenFile>) {
        let closed = self.by_inode.lock().push(file.number, (file, Instant::now()));
        drop(closed);
    }

    /// The file that is kept open for an inode.
    pub(super) fn kept(&self, number: u64) -> Option<Arc<OpenFile>> {
        let mut by_inode = self.by_inode.lock();
        let (file, used) = by_inode.get_mut(&number)?;
        *used = Instant::now();
        Some(Arc::clone(file))
    }

    /// Closes what was not used for so long, so that files that were deleted do not stay on their disk; answers whether
    /// others are kept open.
    pub(super) fn close_idle(&self, idle: Duration) -> bool {
        let mut by_inode = self.by_inode.lock();
        let mut closed = Vec::new();
        while by_inode.peek_lru().is_some_and(|(_, (_, used))| used.elapsed() > idle) {
            closed.extend(by_inode.pop_lru());
        }
        !by_inode.is_empty()
    }

    /// Closes the file that is kept open for an inode.
    pub(super) fn close(&self, number: u64) {
        let closed = self.by_inode.lock().pop(&number);
        drop(closed);
    }

    /// How many files are held open by a handle, and how many without one.
    pub(super) fn count(&self) -> (usize, usize) {
        let by_handle = self.by_handle.lock().held;
        (by_handle, self.by_inode.lock().len())
    }

    /// Any open file of an inode. This looks at all there are, and is for rare cases.
    pub(super) fn of_inode(&self, number: u64) -> Option<Arc<OpenFile>> {
        let by_handle = self.by_handle.lock();
        let opened = by_handle.files.values().flatten().find(|file| file.number == number).cloned();
        drop(by_handle);
        opened.or_else(|| self.kept(number))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use super::*;

    fn file(number: u64) -> OpenFile {
        OpenFile { number, generation: 0, changes: false, reader: Box::new(Vec::new()) }
    }

    /// Keeps a new file open for an inode, and answers how to see whether it is.
    fn keep(files: &OpenFiles, number: u64) -> Weak<OpenFile> {
        let file = Arc::new(file(number));
        files.keep(Arc::clone(&file));
        Arc::downgrade(&file)
    }

    fn is_open(file: &Weak<OpenFile>) -> bool {
        file.strong_count() > 0
    }

    #[test]
    fn a_handle_is_good_until_it_is_released() {
        let files = OpenFiles::default();
        let (first, file_1) = files.insert(file(10)).unwrap();
        let (second, _) = files.insert(file(10)).unwrap();
        assert!(first != NO_HANDLE && second != NO_HANDLE && first != second);
        assert!(files.get(first).flatten().is_some_and(|file| Arc::ptr_eq(&file, &file_1)));
        assert!(files.get(NO_HANDLE).is_none());
        let open = Arc::downgrade(&file_1);
        drop(file_1);
        assert!(is_open(&open));
        files.release(first);
        files.release(first);
        assert!(files.get(first).is_none() && !is_open(&open));
        assert!(files.get(second).is_some());
    }

    #[test]
    fn of_too_many_files_those_that_never_change_are_closed_and_others_not_opened() {
        let files = OpenFiles::within(Bounds { opened: 1, unopened: NonZeroUsize::MIN });
        let changing = || OpenFile { changes: true, ..file(3) };
        let (first, _) = files.insert(file(1)).unwrap();
        let (second, file_2) = files.insert(file(2)).unwrap();
        let opened = Arc::downgrade(&file_2);
        drop(file_2);
        assert!(files.get(first).flatten().is_some());
        assert!(files.get(second).is_some_and(|file| file.is_none()) && !is_open(&opened));
        assert!(files.insert(changing()).is_err_and(|error| error.errno() == Errno::MFILE));
        files.let_go(first);
        files.let_go(first);
        assert!(files.get(first).is_some_and(|file| file.is_none()));
        let (third, _) = files.insert(changing()).unwrap();
        assert!(files.insert(changing()).is_err());
        for handle in [first, second, third] {
            files.release(handle);
        }
        assert!(files.insert(changing()).is_ok());
    }

    #[test]
    fn few_descriptors_are_shared_with_all_else() {
        let bounds = |opened, unopened| Bounds { opened, unopened: NonZeroUsize::new(unopened).unwrap() };
        assert_eq!(Bounds::of(0), bounds(1, 1));
        assert_eq!(Bounds::of(64), bounds(16, 8));
        assert_eq!(Bounds::of(1_024), bounds(496, 128));
        assert_eq!(Bounds::of(usize::MAX).unopened, UNOPENED_MAX);
    }

    #[test]
    fn a_request_that_is_under_way_keeps_its_file() {
        let files = OpenFiles::default();
        let (handle, under_way) = files.insert(file(10)).unwrap();
        files.release(handle);
        let kept = keep(&files, 11);
        let reading = files.kept(11).unwrap();
        files.close(11);
        assert!(is_open(&kept));
        drop(reading);
        assert!(!is_open(&kept));
        assert_eq!(under_way.number, 10);
    }

    #[test]
    fn of_the_files_kept_for_inodes_those_read_last_stay() {
        let files = OpenFiles::default();
        let max = u64::try_from(UNOPENED_MAX.get()).unwrap();
        let all: Vec<_> = (0..max).map(|number| keep(&files, number)).collect();
        assert!(all.iter().all(is_open));
        assert!(files.kept(0).is_some());
        keep(&files, max);
        let closed: Vec<usize> = (0..all.len()).filter(|index| !is_open(&all[*index])).collect();
        assert_eq!(closed, [1]);
        assert!(files.kept(1).is_none());
    }

    #[test]
    fn a_file_takes_the_place_of_the_inodes_older_one_and_is_closed() {
        let files = OpenFiles::default();
        let (other, older, newer) = (keep(&files, 1), keep(&files, 2), keep(&files, 2));
        assert_eq!([&other, &older, &newer].map(is_open), [true, false, true]);
        files.close(2);
        files.close(2);
        assert_eq!([&other, &older, &newer].map(is_open), [true, false, false]);
    }

    #[test]
    fn any_open_file_of_an_inode_is_found() {
        let files = OpenFiles::default();
        let (handle, _) = files.insert(file(1)).unwrap();
        keep(&files, 2);
        let found = |number| files.of_inode(number).map(|file| file.number);
        assert_eq!([found(1), found(2), found(3)], [Some(1), Some(2), None]);
        files.release(handle);
        files.close(2);
        assert_eq!([found(1), found(2)], [None, None]);
    }
}
