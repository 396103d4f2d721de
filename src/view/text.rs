//! Small files: what the view says, and the configs that the store keeps.

use std::sync::Arc;

use super::Shared;
use crate::digest::ImageId;
use crate::error::Result;
use crate::meta::{Kind, Meta, Timestamp};
use crate::store::{Kept, Stamp};

const FOR_ALL: u16 = 0o444;
const FOR_OWNER: u16 = 0o400;

/// A small file.
#[derive(Debug, Clone)]
pub struct Text {
    body: Body,
    permissions: u16,
    time: Timestamp,
    size_bytes: u64,
    is_momentary: bool,
}

/// What a small file holds.
#[derive(Debug, Clone)]
enum Body {
    /// These bytes.
    Ready(Arc<[u8]>),
    /// An image's config.
    ImageConfig(Arc<Shared>, ImageId),
    /// An image's manifest.
    ImageManifest(Arc<Shared>, ImageId, Stamp),
    /// An image's index.
    ImageIndex(Arc<Shared>, ImageId, Stamp),
}

impl Text {
    /// A file of these bytes.
    #[must_use]
    pub fn ready(content: Vec<u8>, time: Timestamp) -> Self {
        let size_bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
        Self { body: Body::Ready(content.into()), permissions: FOR_ALL, time, size_bytes, is_momentary: false }
    }

    /// The same file for its owner alone. What comes from configs may hold secrets, and the store keeps configs from
    /// other users too.
    #[must_use]
    pub fn for_owner(self) -> Self {
        Self { permissions: FOR_OWNER, ..self }
    }

    /// The same file where its name stands for another as soon as the content is another: each state is a file of its
    /// own, so that no reader gets parts of two.
    pub(super) fn momentary(self) -> Self {
        Self { is_momentary: true, ..self }
    }

    pub(super) fn image_config(shared: &Arc<Shared>, id: ImageId, size_bytes: u64, time: Timestamp) -> Self {
        let body = Body::ImageConfig(Arc::clone(shared), id);
        Self { body, permissions: FOR_OWNER, time, size_bytes, is_momentary: false }
    }

    pub(super) fn image_manifest(shared: &Arc<Shared>, id: ImageId, kept: Kept, time: Timestamp) -> Self {
        let body = Body::ImageManifest(Arc::clone(shared), id, kept.stamp);
        Self { body, permissions: FOR_OWNER, time, size_bytes: kept.size_bytes, is_momentary: false }
    }

    pub(super) fn image_index(shared: &Arc<Shared>, id: ImageId, kept: Kept, time: Timestamp) -> Self {
        let body = Body::ImageIndex(Arc::clone(shared), id, kept.stamp);
        Self { body, permissions: FOR_OWNER, time, size_bytes: kept.size_bytes, is_momentary: false }
    }

    /// Whether the name must be looked up again at each use.
    pub(super) fn is_momentary(&self) -> bool {
        self.is_momentary
    }

    /// What tells this file from another at its path.
    pub(super) fn identity(&self) -> Vec<u8> {
        match &self.body {
            Body::Ready(bytes) => bytes.to_vec(),
            Body::ImageConfig(_, id) => id.to_string().into_bytes(),
            // An image can have several, of which the store tells one at a time.
            Body::ImageManifest(_, id, stamp) | Body::ImageIndex(_, id, stamp) => {
                format!("{id} {stamp:?}").into_bytes()
            }
        }
    }

    /// The content.
    ///
    /// # Errors
    /// [`crate::error::Error::Stale`] where the store has it no longer.
    pub(super) fn content(&self) -> Result<Vec<u8>> {
        match &self.body {
            Body::Ready(bytes) => Ok(bytes.to_vec()),
            Body::ImageConfig(shared, id) => shared.store.config(id),
            Body::ImageManifest(shared, id, _) => shared.store.manifest(id),
            Body::ImageIndex(shared, id, _) => shared.store.index(id),
        }
    }

    /// The attributes.
    pub(super) fn meta(&self) -> Meta {
        Meta::made_up(Kind::Regular, self.permissions, self.time, self.size_bytes)
    }
}
