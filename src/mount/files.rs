//! Open files: those that the kernel opened, by the handles that it was given, and those that it reads without opening
//! them, by inode.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

use crate::layer::ReadAt;

/// The handle of files that the kernel reads without opening them.
pub(super) const NO_HANDLE: u64 = 0;
/// How many files are held open for readers that did not open them.
const UNOPENED_MAX: NonZeroUsize = NonZeroUsize::new(128).unwrap();

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
    /// Guards the table; held for single look-ups and changes only.
    by_handle: Mutex<HashMap<u64, Arc<OpenFile>>>,
    /// As above; what was read longest ago is closed first.
    by_inode: Mutex<LruCache<u64, (Arc<OpenFile>, Instant)>>,
}

impl Default for OpenFiles {
    fn default() -> Self {
        let by_inode = Mutex::new(LruCache::new(UNOPENED_MAX));
        Self { next: AtomicU64::new(NO_HANDLE + 1), by_handle: Mutex::default(), by_inode }
    }
}

impl OpenFiles {
    /// Keeps a file open until its handle is released.
    pub(super) fn insert(&self, file: OpenFile) -> (u64, Arc<OpenFile>) {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        let file = Arc::new(file);
        self.by_handle.lock().insert(handle, Arc::clone(&file));
        (handle, file)
    }

    /// The file of a handle.
    pub(super) fn get(&self, handle: u64) -> Option<Arc<OpenFile>> {
        self.by_handle.lock().get(&handle).cloned()
    }

    /// Releases a handle; the file is closed when the last request that uses it ends.
    pub(super) fn release(&self, handle: u64) {
        let closed = self.by_handle.lock().remove(&handle);
        drop(closed);
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

    /// How many files are open by a handle, and how many without one.
    pub(super) fn count(&self) -> (usize, usize) {
        let by_handle = self.by_handle.lock().len();
        (by_handle, self.by_inode.lock().len())
    }

    /// Any open file of an inode. This looks at all there are, and is for rare cases.
    pub(super) fn of_inode(&self, number: u64) -> Option<Arc<OpenFile>> {
        let opened = self.by_handle.lock().values().find(|file| file.number == number).cloned();
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
        let (first, file_1) = files.insert(file(10));
        let (second, _) = files.insert(file(10));
        assert!(first != NO_HANDLE && second != NO_HANDLE && first != second);
        assert!(files.get(first).is_some_and(|file| Arc::ptr_eq(&file, &file_1)));
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
    fn a_request_that_is_under_way_keeps_its_file() {
        let files = OpenFiles::default();
        let (handle, under_way) = files.insert(file(10));
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
        let (handle, _) = files.insert(file(1));
        keep(&files, 2);
        let found = |number| files.of_inode(number).map(|file| file.number);
        assert_eq!([found(1), found(2), found(3)], [Some(1), Some(2), None]);
        files.release(handle);
        files.close(2);
        assert_eq!([found(1), found(2)], [None, None]);
    }
}
