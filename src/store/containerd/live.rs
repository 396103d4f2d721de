//! A database at its path, which another file may take.

use std::sync::Arc;

use parking_lot::Mutex;

use super::bolt::Database;
use crate::error::{Error, Result};
use crate::meta::Timestamp;
use crate::name::TreePath;
use crate::root::Root;
use crate::store::Stamp;

/// A database that is opened again where another file has its name.
#[derive(Debug)]
pub(super) struct Live {
    root: Arc<Root>,
    path: TreePath,
    /// Guards the file that was opened last; held only to copy or set it.
    open: Mutex<Option<(Identity, Arc<Database>)>>,
}

/// Tells a file from another that had its name.
type Identity = (u64, Timestamp);

impl Live {
    pub(super) fn new(root: &Arc<Root>, path: TreePath) -> Self {
        Self { root: Arc::clone(root), path, open: Mutex::default() }
    }

    /// As messages name it.
    pub(super) fn shown(&self) -> String {
        self.root.shown(&self.path)
    }

    pub(super) fn root(&self) -> &Root {
        &self.root
    }

    pub(super) fn path(&self) -> &TreePath {
        &self.path
    }

    /// The database as it is now.
    ///
    /// # Errors
    /// [`Error::Damaged`] where it is missing or no regular file; [`Error::Io`].
    pub(super) fn database(&self) -> Result<Arc<Database>> {
        self.find().map(|(_, database)| database)
    }

    fn find(&self) -> Result<(Identity, Arc<Database>)> {
        let Some(meta) = self.root.stat(&self.path)? else { return Err(Error::damaged(self.shown(), "missing")) };
        let found = (meta.inode, meta.created);
        let known = self.open.lock().clone();
        if let Some(known) = known.filter(|(identity, _)| *identity == found) {
            return Ok(known);
        }
        let file = self.root.open_file(&self.path)?;
        let database = Arc::new(Database::new(Box::new(file), self.shown()));
        *self.open.lock() = Some((found, Arc::clone(&database)));
        Ok((found, database))
    }

    /// Tells every transaction from the one before: its number, and which file it is in. What is wrong is found when the
    /// database is read.
    ///
    /// # Errors
    /// Transient ones.
    pub(super) fn stamps(&self) -> Result<[Stamp; 2]> {
        let state = self.find().and_then(|(identity, database)| Ok((identity, database.transaction()?)));
        match state {
            Ok(((inode, created), transaction)) => {
                Ok([Stamp { inode, changed: Timestamp::default(), modified: created }, Stamp::of_changes(transaction)])
            }
            Err(error) if error.is_transient() => Err(error),
            Err(_) => Ok([Stamp::default(); 2]),
        }
    }
}
