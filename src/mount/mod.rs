//! Serves a [`View`] through FUSE.
//!
//! Everything that knows inode numbers, handles, lifetimes and `fuser` is here. [`adapter`](self) decodes a request,
//! calls [`server`](self) and encodes the answer; what a request means is the server's business, and what the tree
//! holds the view's.

mod adapter;
mod ahead;
mod attach;
#[cfg(test)]
mod fake;
mod files;
mod inodes;
mod listings;
mod passthrough;
mod refresh;
mod server;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;

use fuser::{Config, MountOption, Session, SessionACL};
use rustix::mount::UnmountFlags;

use crate::error::{Error, Result};
use crate::view::View;

pub use attach::Unmounter;
use attach::{Attached, Way};
pub use inodes::{Held, Inodes, Key, ROOT};
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

/// A mounted view, not yet served: requests wait.
#[derive(Debug)]
pub struct Mounted {
    session: Session<adapter::Adapter>,
    /// `None` where a helper program mounted.
    attached: Option<Attached>,
    kernel: ahead::Kernel,
    refreshing: Refreshing,
    watching: Watching,
}

/// Mounts a view; returns when the kernel's first request was answered.
///
/// # Errors
/// [`Error::Io`] where the system refuses the mount.
pub fn mount(view: View, options: &Options) -> Result<Mounted> {
    let files = Arc::default();
    let (refresher, refreshing) = Refresher::new(Arc::clone(&files));
    let kernel = ahead::Kernel::default();
    let watcher = Watcher::new().map_err(Error::io(|| "be woken by changes".to_owned()))?;
    let server = server::Server::new(view, Arc::clone(&kernel), files, refresher, watcher);
    let watching = server.watching();
    let adapter = adapter::Adapter::new(server, options.opens, options.allow_other);
    let doing = || format!("mount on {}", options.mount_point.display());
    let config = config(options);
    match attach::attach(options)? {
        Some((device, attached)) => match Session::from_fd(adapter, device, config.acl, config) {
            Ok(session) => {
                attach::read_in_large_pieces(&options.mount_point);
                Ok(Mounted { session, attached: Some(attached), kernel, refreshing, watching })
            }
            Err(error) => {
                // The first error is the one to report.
                let _ = attached.detach(UnmountFlags::DETACH);
                Err(Error::io(doing)(error))
            }
        },
        None => {
            let session = Session::new(adapter, &options.mount_point, &config).map_err(Error::io(doing))?;
            Ok(Mounted { session, attached: None, kernel, refreshing, watching })
        }
    }
}

/// What `fuser` is told; the mount options are for the helper program only.
fn config(options: &Options) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
        MountOption::FSName(plain(&options.fs_name)),
        MountOption::Subtype(SUBTYPE.to_owned()),
    ];
    if options.noexec {
        config.mount_options.push(MountOption::NoExec);
    }
    if options.allow_other {
        config.mount_options.push(MountOption::DefaultPermissions);
        config.acl = SessionACL::All;
    }
    config.n_threads = Some(options.threads.max(1));
    config.clone_fd = true;
    config
}

/// A name that cannot end an option and begin another where options are one string: commas, backslashes and control
/// characters become `_`.
fn plain(name: &str) -> String {
    name.chars().map(|c| if matches!(c, ',' | '\\') || c.is_control() { '_' } else { c }).collect()
}

impl Mounted {
    /// What another thread needs to unmount.
    pub fn unmounter(&mut self) -> Unmounter {
        Unmounter(match &self.attached {
            Some(attached) => Way::Own(attached.clone()),
            None => Way::Helper(self.session.unmount_callable()),
        })
    }

    /// What another thread needs to have the store read again.
    #[must_use]
    pub fn controls(&self) -> Controls {
        self.watching.controls()
    }

    /// Answers requests until the view is unmounted.
    ///
    /// # Errors
    /// [`Error::Io`] where the kernel can no longer be talked to.
    pub fn serve(self) -> Result<()> {
        let Self { session, attached, kernel, refreshing, watching } = self;
        kernel.get_or_init(|| session.notifier());
        let started = refreshing.start(session.notifier()).and_then(|()| watching.start(session.notifier()));
        let served = started.and_then(|()| session.run());
        let served = served.map_err(Error::io(|| "answer the kernel's requests".to_owned()));
        if let (Err(_), Some(attached)) = (&served, attached) {
            // A mount that no one serves would only be in the way; the first error is the one to report.
            let _ = attached.detach(UnmountFlags::DETACH);
        }
        served
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn a_source_name_cannot_add_options() {
        assert_eq!(plain("/var/lib/a,allow_other\\\n"), "/var/lib/a_allow_other__");
    }
}
