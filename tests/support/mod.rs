//! What the integration tests share: stores made on the spot, mounts that go away by themselves, and trees taken as data.
//!
//! * `store` writes a classic Docker data root, byte for byte as the daemon does.
//! * `stack` makes stacks of overlay2 directories, at random or by hand, and shrinks one that fails.
//! * `mount` mounts docker-fs, kernel overlayfs and tmpfs, and unmounts them on drop.
//! * `tree` reads a directory tree into a map and tells two maps apart.

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

pub mod mount;
pub mod stack;
pub mod store;
pub mod tree;

use tempfile::TempDir;

/// A directory on the build's own disk, gone with the value.
pub fn scratch(prefix: &str) -> TempDir {
    tempfile::Builder::new().prefix(prefix).tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a scratch directory")
}
