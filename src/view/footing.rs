//! What nodes of images' layers stand upon: that the store still has those layers.
//!
//! An engine may remove a layer while someone reads it. A layer that is half removed answers "no such file", and a
//! union would then show what lies below: files that were deleted come back. So each answer counts only if, after it
//! was made, all layers are still there; otherwise it is [`Error::Stale`].

use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::store::{Generation, LayerRecord, Store};

/// The layers of one node and of all that were found below it.
#[derive(Debug)]
pub(super) struct Footing {
    store: Arc<dyn Store>,
    records: Vec<Arc<LayerRecord>>,
    /// Guards the generation in which all layers were seen to be there; held only to compare or set it.
    seen: Mutex<Option<Generation>>,
}

impl Footing {
    /// The footing of these layers.
    pub(super) fn new(store: &Arc<dyn Store>, records: Vec<Arc<LayerRecord>>) -> Self {
        Self { store: Arc::clone(store), records, seen: Mutex::new(None) }
    }

    /// Passes an answer on if all layers are there after it was made.
    ///
    /// # Errors
    /// [`Error::Stale`] where a layer is gone, or a file of one, which cannot be unless someone removes the layer.
    pub(super) fn settle<T>(&self, answer: Result<T>) -> Result<T> {
        self.check()?;
        match answer {
            Err(Error::Io { source, doing }) if source.kind() == std::io::ErrorKind::NotFound => {
                log::debug!("cannot {doing}: {source}");
                Err(Error::Stale { what: doing })
            }
            answer => answer,
        }
    }

    /// Passes on what was read of a file that is known to be in a layer: it is that file's, whether or not the layer is
    /// being removed. Only a failure may come from that.
    ///
    /// # Errors
    /// As [`Footing::settle`].
    pub(super) fn settle_content<T>(&self, content: Result<T>) -> Result<T> {
        if content.is_ok() { content } else { self.settle(content) }
    }

    /// Whether all layers are there.
    ///
    /// # Errors
    /// [`Error::Stale`] where one is not.
    pub(super) fn check(&self) -> Result<()> {
        if self.records.is_empty() {
            return Ok(());
        }
        let store = self.store.as_ref();
        let generation = store.layers_generation()?;
        if self.seen.lock().as_ref() == Some(&generation) {
            return Ok(());
        }
        for record in &self.records {
            if !store.stands(record)? {
                return Err(Error::Stale { what: format!("layer {}", record.chain) });
            }
        }
        if !generation.is_fresh() {
            *self.seen.lock() = Some(generation);
        }
        Ok(())
    }
}
