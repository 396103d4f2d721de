//! Serves a [`View`] through FUSE.
//!
//! Everything that knows inode numbers, handles, lifetimes and `fuser` is here. [`adapter`](self) decodes a request,
//! calls [`server`](self) and encodes the answer; what a request means is the server's business, and what the tree
//! holds the view's.

mod adapter;
mod ahead;
mod attach;
mod counters;
#[cfg(test)]
mod fake;
mod files;
mod inodes;
mod listings;
mod mountinfo;
mod passthrough;
mod refresh;
mod server;
mod steps;
mod watch;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use fuser::{Config, Session, SessionACL};

use crate::error::{Error, Result};
use crate::view::View;

pub use attach::{Attached, DEVICE, FUSERMOUNT, How, attach, unmount};
pub use counters::{
    AheadFigures, Counters, Figures, InodeFigures, LOG_TARGET, ListingFigures, OpenFigures, WaitFigures,
};
pub use inodes::{Held, Inodes, Key, ROOT};
pub(crate) use mountinfo::{Mount, Mounts};
use refresh::{Refresher, Refreshing};
pub use watch::Controls;
use watch::{Watcher, Watching};

/// What `/proc/mounts` calls the type of these mounts.
pub const TYPE: &str = "fuse.docker-fs";
const SUBTYPE: &str = "docker-fs";

/// How to mount.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory to mount on.
    pub mount_point: PathBuf,
    /// What `/proc/mounts` calls the source.
    pub fs_name: String,
    /// Whether all users may enter, with the permissions of the files; otherwise only this one may.
    pub allow_other: bool,
    /// Whether programs in the tree cannot be started.
    pub noexec: bool,
    /// How files are opened.
    pub opens: Opens,
    /// How many threads answer requests, at least one.
    pub threads: usize,
}

/// How files are opened: what the kernel does by itself, and what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opens {
    /// The kernel is told once that it need not ask (`ENOSYS` to `FUSE_OPEN`), and reads by inode. Many small files are
    /// read fastest so. What it has read stays in the page cache from one opening to the next.
    Once,
    /// The kernel asks for each opening, and reads large files of layers by itself (`FUSE_PASSTHROUGH`, Linux 6.9, needs
    /// `CAP_SYS_ADMIN`), without a second copy in the page cache. Where it cannot, as [`Opens::Each`].
    Passthrough,
    /// The kernel asks for each opening and each reading.
    Each,
}

/// A view that the kernel asks through a descriptor of the device, not yet served: requests wait.
#[derive(Debug)]
pub struct Connection {
    session: Session<adapter::Adapter>,
    kernel: ahead::Kernel,
    refreshing: Refreshing,
    watching: Watching,
    counters: Counters,
}

/// A connection whose threads run, but for those that answer: requests wait.
#[derive(Debug)]
pub struct Started(Session<adapter::Adapter>);

/// A view that this process mounted, not yet served: requests wait.
#[derive(Debug)]
pub struct Mounted {
    connection: Connection,
    attached: Attached,
}

/// Unmounts a view that another thread serves.
#[derive(Debug)]
pub struct Unmounter(Attached);

/// Mounts a view; returns when the kernel's first request was answered.
///
/// # Errors
/// [`Error::Io`] where the system refuses the mount.
pub fn mount(view: View, options: &Options) -> Result<Mounted> {
    let (device, attached) = attach(options)?;
    match connect(view, options, device) {
        Ok(connection) => {
            attached.read_in_large_pieces();
            Ok(Mounted { connection, attached })
        }
        Err(error) => {
            // The first error is the one to report.
            let _ = attached.detach(How::Lazy);
            Err(error)
        }
    }
}

/// Answers for a mount that was made with the same options, by this process or another, and whose device this is; returns
/// when the kernel's first request was answered.
///
/// # Errors
/// [`Error::Io`] where the kernel cannot be talked to.
pub fn connect(view: View, options: &Options, device: OwnedFd) -> Result<Connection> {
    let files = Arc::default();
    let steps = Arc::default();
    let (refresher, refreshing) = Refresher::new(Arc::clone(&files), Arc::clone(&steps));
    let kernel = ahead::Kernel::default();
    let watcher = Watcher::new().map_err(Error::io(|| "be woken by changes".to_owned()))?;
    let server = server::Server::new(view, Arc::clone(&kernel), files, steps, refresher, watcher);
    let watching = server.watching();
    let adapter = adapter::Adapter::new(server, options.opens, options.allow_other);
    let counters = adapter.counters();
    let config = config(options);
    let session = Session::from_fd(adapter, device, config.acl, config);
    let session =
        session.map_err(Error::io(|| format!("answer for the mount on {}", options.mount_point.display())))?;
    Ok(Connection { session, kernel, refreshing, watching, counters })
}

fn config(options: &Options) -> Config {
    let mut config = Config::default();
    if options.allow_other {
        config.acl = SessionACL::All;
    }
    config.n_threads = Some(options.threads.max(1));
    config.clone_fd = true;
    config
}

impl Connection {
    /// What the mount counts of its work.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// What another thread needs to have the store read again.
    #[must_use]
    pub fn controls(&self) -> Controls {
        self.watching.controls()
    }

    /// Starts the threads that tell the kernel what has changed.
    ///
    /// # Errors
    /// [`Error::Io`] where there can be no threads.
    pub fn start(self) -> Result<Started> {
        let Self { session, kernel, refreshing, watching, counters: _ } = self;
        kernel.get_or_init(|| session.notifier());
        let started = refreshing.start(session.notifier()).and_then(|()| watching.start(session.notifier()));
        started.map_err(cannot_answer()).map(|()| Started(session))
    }

    /// Answers requests until the view is unmounted.
    ///
    /// # Errors
    /// As [`Connection::start`] and [`Started::serve`].
    pub fn serve(self) -> Result<()> {
        self.start()?.serve()
    }
}

impl Started {
    /// What the threads that answer are called, followed by a number: `fuser` names them.
    pub(crate) const THREADS: &str = "fuser-";

    /// Answers requests until the view is unmounted.
    ///
    /// # Errors
    /// [`Error::Io`] where there can be no threads, or the kernel can no longer be talked to.
    pub fn serve(self) -> Result<()> {
        self.0.run().map_err(cannot_answer())
    }
}

fn cannot_answer() -> impl FnOnce(io::Error) -> Error {
    Error::io(|| "answer the kernel's requests".to_owned())
}

impl Mounted {
    /// As [`Connection::controls`].
    #[must_use]
    pub fn controls(&self) -> Controls {
        self.connection.controls()
    }

    /// What another thread needs to unmount.
    pub fn unmounter(&mut self) -> Unmounter {
        Unmounter(self.attached.clone())
    }

    /// As [`Connection::serve`].
    ///
    /// # Errors
    /// As [`Connection::serve`].
    pub fn serve(self) -> Result<()> {
        let served = self.connection.serve();
        if served.is_err() {
            // A mount that no one serves would only be in the way; the first error is the one to report.
            let _ = self.attached.detach(How::Lazy);
        }
        served
    }
}

impl Unmounter {
    /// Unmounts; that it is done already is no error.
    ///
    /// # Errors
    /// `EBUSY` while the mount is in use.
    pub fn unmount(&mut self) -> io::Result<()> {
        self.0.detach(How::Plain)
    }
}
