//! The stores of a view, in the order in which they were used: of names that several have, that of the first stands.
//!
//! Engines may come to use another of them at any time, as after a change of the graph driver. Then the same stores are
//! arranged anew. What was found in the arrangement before goes on in that one, as it stands on what it was found in.

use std::cmp::Reverse;
use std::sync::Arc;

use parking_lot::RwLock;

use super::{Options, Shared};
use crate::error::Result;
use crate::meta::Timestamp;
use crate::store::Store;

/// The stores of a view.
#[derive(Debug)]
pub(super) struct Members {
    /// Guards the newest arrangement, the store that was used last first; held only to copy or replace it.
    newest: RwLock<Arc<[Arc<Shared>]>>,
}

impl Members {
    /// Reads all of the stores.
    ///
    /// # Errors
    /// Where nothing of one could be read.
    pub(super) fn new(stores: impl IntoIterator<Item = Box<dyn Store>>, options: &Options) -> Result<Self> {
        let mut dated: Vec<(Timestamp, Arc<dyn Store>)> = Vec::new();
        for store in stores {
            dated.push((store.used()?, Arc::from(store)));
        }
        dated.sort_by_key(|(used, _)| Reverse(*used));
        let latest = Arc::default();
        let mut members: Vec<Arc<Shared>> = Vec::with_capacity(dated.len());
        for (_, store) in dated {
            members.push(Arc::new(Shared::new(store, options.clone(), members.clone(), Arc::clone(&latest))?));
        }
        Ok(Self { newest: RwLock::new(members.into()) })
    }

    /// The stores as they were arranged last.
    pub(super) fn known(&self) -> Arc<[Arc<Shared>]> {
        Arc::clone(&self.newest.read())
    }

    /// The stores in their order, each read again if it changed.
    pub(super) fn current(&self) -> Arc<[Arc<Shared>]> {
        let known = self.known();
        if known.len() < 2 {
            return known;
        }
        let used: Vec<Timestamp> = known.iter().map(|member| member.current().used).collect();
        if used.is_sorted_by(|one, next| one >= next) {
            return known;
        }
        let mut newest = self.newest.write();
        // Another thread may have seen the same.
        if Arc::ptr_eq(&newest, &known) {
            log::info!("another store was used last than before");
            *newest = arranged(&known, &used);
        }
        Arc::clone(&newest)
    }
}

/// The stores in the order of these times; nothing of them is read.
fn arranged(known: &[Arc<Shared>], used: &[Timestamp]) -> Arc<[Arc<Shared>]> {
    let mut dated: Vec<_> = used.iter().zip(known).collect();
    dated.sort_by_key(|(used, _)| Reverse(**used));
    let mut members: Vec<Arc<Shared>> = Vec::with_capacity(dated.len());
    for (_, member) in dated {
        members.push(Arc::new(member.below(members.clone())));
    }
    members.into()
}
