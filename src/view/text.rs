//! Small files: what the view says, and the configs that the store keeps.

use std::io;
use std::sync::Arc;

use super::{Shared, status};
use crate::digest::{ContainerId, ImageId};
use crate::error::Result;
use crate::layer::{ReadAt, Seek};
use crate::meta::{Kind, Meta, Timestamp};

const FOR_ALL: u16 = 0o444;
const FOR_OWNER: u16 = 0o400;

/// A small file.
#[derive(Debug, Clone)]
pub struct Text {
    body: Body,
    permissions: u16,
    time: Timestamp,
    size_bytes: u64,
}

/// What a small file holds.
#[derive(Debug, Clone)]
enum Body {
    /// These bytes.
    Ready(Arc<[u8]>),
    /// An image's config.
    ImageConfig(Config<ImageId>),
    /// A container's config, which the engine replaces.
    ContainerConfig(Config<ContainerId>),
    /// What the view says of the store.
    Status(Config<()>),
}

/// Something that the store or the view tells when it is asked.
#[derive(Debug, Clone)]
struct Config<T> {
    shared: Arc<Shared>,
    id: T,
}

impl Text {
    /// A file of these bytes.
    #[must_use]
    pub fn ready(content: Vec<u8>, time: Timestamp) -> Self {
        let size_bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
        Self { body: Body::Ready(content.into()), permissions: FOR_ALL, time, size_bytes }
    }

    /// The same file for its owner alone. What comes from configs may hold secrets, and the store keeps configs from
    /// other users too.
    #[must_use]
    pub fn for_owner(self) -> Self {
        Self { permissions: FOR_OWNER, ..self }
    }

    pub(super) fn image_config(shared: &Arc<Shared>, id: ImageId, size_bytes: u64, time: Timestamp) -> Self {
        let body = Body::ImageConfig(Config { shared: Arc::clone(shared), id });
        Self { body, permissions: FOR_OWNER, time, size_bytes }
    }

    pub(super) fn container_config(shared: &Arc<Shared>, id: ContainerId, size_bytes: u64, time: Timestamp) -> Self {
        let body = Body::ContainerConfig(Config { shared: Arc::clone(shared), id });
        Self { body, permissions: FOR_OWNER, time, size_bytes }
    }

    pub(super) fn status(shared: &Arc<Shared>) -> Self {
        let time = shared.snapshot.read().time;
        let body = Body::Status(Config { shared: Arc::clone(shared), id: () });
        let mut text = Self { body, permissions: FOR_ALL, time, size_bytes: 0 };
        text.size_bytes = text.content().map_or(0, |content| u64::try_from(content.len()).unwrap_or(u64::MAX));
        text
    }

    /// Whether the content may change.
    pub(super) fn changes(&self) -> bool {
        match self.body {
            Body::Ready(_) | Body::ImageConfig(_) => false,
            Body::ContainerConfig(_) | Body::Status(_) => true,
        }
    }

    /// What tells this file from another at its path.
    pub(super) fn identity(&self) -> Vec<u8> {
        match &self.body {
            Body::Ready(bytes) => bytes.to_vec(),
            Body::ImageConfig(config) => config.id.to_string().into_bytes(),
            Body::ContainerConfig(config) => config.id.to_string().into_bytes(),
            Body::Status(_) => Vec::new(),
        }
    }

    /// The content as it is.
    ///
    /// # Errors
    /// [`crate::error::Error::Stale`] where the store has it no longer.
    pub(super) fn content(&self) -> Result<Vec<u8>> {
        match &self.body {
            Body::Ready(bytes) => Ok(bytes.to_vec()),
            Body::ImageConfig(config) => config.shared.store.config(&config.id),
            Body::ContainerConfig(config) => config.shared.store.container_config(&config.id),
            Body::Status(config) => Ok(status::content(&config.shared)),
        }
    }

    /// When the content changed last, as far as the store is known.
    fn changed(&self) -> Timestamp {
        match &self.body {
            Body::Ready(_) | Body::ImageConfig(_) => self.time,
            Body::ContainerConfig(config) => {
                let snapshot = config.shared.current();
                snapshot.catalogue.containers.get(&config.id).map_or(self.time, |container| container.stored)
            }
            Body::Status(config) => config.shared.current().time,
        }
    }

    /// The content as it is, with the attributes that fit it.
    ///
    /// # Errors
    /// As [`Text::content`].
    pub(super) fn open(&self) -> Result<OpenText> {
        let time = self.changed();
        let content = self.content()?;
        let size_bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
        Ok(OpenText { content, meta: Meta::made_up(Kind::Regular, self.permissions, time, size_bytes) })
    }

    /// The attributes as they were when the file was looked up.
    pub(super) fn meta(&self) -> Meta {
        Meta::made_up(Kind::Regular, self.permissions, self.time, self.size_bytes)
    }

    /// The attributes as they are.
    ///
    /// # Errors
    /// As [`Text::content`].
    pub(super) fn fresh_meta(&self) -> Result<Meta> {
        if self.changes() { Ok(self.open()?.meta) } else { Ok(self.meta()) }
    }
}

/// A small file that someone reads.
#[derive(Debug)]
pub(super) struct OpenText {
    content: Vec<u8>,
    meta: Meta,
}

impl ReadAt for OpenText {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.content.read_at(buffer, offset)
    }

    fn seek(&self, to: Seek, offset: u64) -> io::Result<u64> {
        self.content.seek(to, offset)
    }

    fn meta(&self) -> io::Result<Option<Meta>> {
        Ok(Some(self.meta))
    }
}
