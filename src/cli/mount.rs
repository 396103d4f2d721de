//! `docker-fs [SOURCE] MOUNTPOINT`: from a request to a mount that is served until it ends.
//!
//! ```text
//! the command, or its background process
//!   mount point, store, overlap, device     what can be refused is refused before the kernel is asked for anything
//!   fork ─ keeper   mounts, waits for signals and for the server, unmounts
//!        └ server   jails itself, reads the store, answers the kernel
//! ```

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getpid, getrlimit, setrlimit};

use super::args::{Mount, Place};
use super::daemon::{self, Audience};
use super::keeper::{self, Server};
use super::mountpoint::Named;
use super::options::Jail;
use super::source::Surroundings;
use super::unmount::{canonical, mounts};
use super::{Exit, Failure, link, logging, mountpoint, overlap, server, signals, source, words};
use crate::mount::{self, Opens};
use crate::store;
use crate::sys::jail::inherited;
use crate::sys::{self, Fork};
use crate::view::{Form, Owners};

/// Threads that serve where nothing else was asked for. Each waits for the disk that it asks, so there are more of them
/// than may ask for one layer ([`crate::layer::gate::ROOM`]); of few descriptors they take an eighth.
const THREADS: std::ops::RangeInclusive<usize> = 2..=32;

/// How files are opened where nothing else was asked for.
const OPENS: Opens = Opens::Once;

/// What keeper and server agree upon before they part.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) source: PathBuf,
    pub(super) mount: mount::Options,
    /// The mount point as it was typed.
    pub(super) shown_point: PathBuf,
    pub(super) form: Form,
    pub(super) owners: Owners,
    pub(super) jail: Jail,
    pub(super) place: Place,
    /// Where Prometheus may ask; nowhere if empty.
    pub(super) metrics: Vec<SocketAddr>,
}

/// Mounts, and serves in the place that was asked for.
///
/// # Errors
/// Why there is no mount, or only a damaged one.
pub(super) fn run(request: &Mount) -> Result<Exit, Failure> {
    let inherited = inherited();
    signals::receive()?;
    let log_file = request.options.log_file.as_deref();
    logging::start(request.level, log_file)?;
    let inherited = inherited.unwrap_or_else(|error| {
        log::warn!(
            "descriptors that docker-fs was started with stay open: cannot list /proc/self/fd: {}",
            words(&error)
        );
        Vec::new()
    });
    let work = |audience: &mut Audience| {
        serve(request, inherited, audience).inspect_err(|failure| {
            if log_file.is_some() {
                log::error!("{failure}");
            }
        })
    };
    match request.place {
        Place::Background => daemon::start(work),
        Place::Foreground => work(&mut Audience::User).map(|()| Exit::Done),
    }
}

/// Makes sure that a mount can be made, and parts into keeper and server. What was inherited beside the standard streams
/// (locks, pipes and directories of whoever started this) is closed as soon as no path can name it any more.
fn serve(request: &Mount, inherited: Vec<OwnedFd>, audience: &mut Audience) -> Result<(), Failure> {
    sys::use_one_heap();
    raise_descriptor_limit();
    let options = &request.options;
    let point = mountpoint::prepare(&request.mount_point)?;
    let named = if request.source.is_some() { Named::Last } else { Named::Alone };
    if named == Named::Alone {
        point.refuse_store(named)?;
    }
    let store_options = store::Options { kind: options.kind.clone(), prefix: options.prefix };
    let (source, stores) = source::open(request.source.as_deref(), Surroundings::of_process, &store_options)?;
    refuse_overlap(&source, &point.path)?;
    if named == Named::Last {
        point.refuse_store(named)?;
    }
    if !options.nonempty {
        point.refuse_content()?;
    }
    drop(inherited);
    mountpoint::check_fuse()?;

    let plan = plan(request, source, point.path);
    let impossible =
        |error: std::io::Error| Failure::failed(format!("cannot start a process that serves: {}", words(&error)));
    let (keepers, servers) = link::pair().map_err(impossible)?;
    let keeper = getpid();
    match sys::fork().map_err(impossible)? {
        Fork::Child => {
            drop(keepers);
            audience.leave_to_others();
            let exit = server::run(stores, &plan, &servers, Some(keeper));
            std::process::exit(exit.code().into())
        }
        Fork::Parent(pid) => {
            drop((stores, servers));
            keeper::keep(Server::new(pid, keepers), &plan, audience)
        }
    }
}

fn plan(request: &Mount, source: PathBuf, mount_point: PathBuf) -> Plan {
    let options = &request.options;
    let descriptors = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
    let most = descriptors.map_or(*THREADS.end(), |limit| limit / 8);
    Plan {
        mount: mount::Options {
            fs_name: options.fs_name.clone().unwrap_or_else(|| source.to_string_lossy().into_owned()),
            allow_other: options.allow_other,
            noexec: options.noexec,
            opens: options.opens.unwrap_or(OPENS),
            threads: options.threads.unwrap_or(most.clamp(*THREADS.start(), *THREADS.end())),
            mount_point,
        },
        source,
        shown_point: request.mount_point.clone(),
        form: options.form,
        owners: options.owners,
        jail: options.jail,
        place: request.place,
        metrics: request.metrics.clone(),
    }
}

fn refuse_overlap(source: &Path, mount_point: &Path) -> Result<(), Failure> {
    let real = canonical(source)
        .map_err(|error| Failure::failed(format!("cannot find {}: {}", source.display(), words(&error))))?;
    overlap::trouble(&mounts()?, &real, mount_point).map_or(Ok(()), |trouble| Err(Failure::failed(trouble)))
}

/// Raises the number of descriptors to what this process may have; many layers and readers need many.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            log::debug!("cannot raise the number of open files to {:?}: {}", limit.maximum, words(&error.into()));
        }
    }
}
