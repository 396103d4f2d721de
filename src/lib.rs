//! docker-fs shows every container image of a machine as one read-only tree.
//!
//! The library reads a container store from its directories alone: no daemon is asked, no kernel overlay is mounted
//! and nothing is written. [`store::open`] finds out what a directory holds; [`view::View`] arranges it as the tree
//! that users see; `mount` (a feature) serves that tree through FUSE.
//!
//! Uses between the modules point one way, from the tree that users see to the host's files:
//!
//! ```text
//! cli  →  mount, jail  →  view  →  union, store  →  layer  →  root  →  sys
//! all of them →  error, name, digest, reference, meta
//! ```

pub mod digest;
pub mod error;
pub mod layer;
pub mod meta;
pub mod name;
pub mod reference;
pub mod root;
pub mod store;
mod sys;
pub mod union;
pub mod view;

#[cfg(feature = "mount")]
pub mod cli;
#[cfg(feature = "mount")]
mod jail;
#[cfg(feature = "mount")]
pub mod mount;
