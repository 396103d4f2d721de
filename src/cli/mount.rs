//! `docker-fs [SOURCE] MOUNTPOINT`: from a request to a mount that is served until it ends.
//!
//! What can be refused is refused before the kernel is asked for anything: the mount point, the store, their overlap,
//! the device. Everything of it happens in the process that serves.

use std::path::Path;
use std::thread::available_parallelism;

use rustix::process::{Resource, getrlimit, setrlimit};

use super::args::{Mount, Place};
use super::daemon::{self, Audience};
use super::source::Surroundings;
use super::unmount::{canonical, mounts};
use super::{Exit, Failure, logging, metrics, mountpoint, overlap, signals, source, words};
use crate::mount::{self, Opens};
use crate::store::{self, Damage};
use crate::sys;
use crate::view::{self, View};

/// Threads that serve where nothing else was asked for: one per CPU, but within these.
const THREADS: std::ops::RangeInclusive<usize> = 2..=8;

/// How files are opened where nothing else was asked for.
const OPENS: Opens = Opens::Once;

/// Mounts, and serves in the place that was asked for.
///
/// # Errors
/// Why there is no mount, or only a damaged one.
pub(super) fn run(request: &Mount) -> Result<Exit, Failure> {
    let log_file = request.options.log_file.as_deref();
    logging::start(request.level, log_file)?;
    let work = |audience: &mut Audience| {
        serve(request, audience).inspect_err(|failure| {
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

/// Mounts, tells the audience, and serves until the mount ends.
fn serve(request: &Mount, audience: &mut Audience) -> Result<(), Failure> {
    let options = &request.options;
    sys::use_one_heap();
    raise_descriptor_limit();
    let mount_point = mountpoint::prepare(&request.mount_point)?;
    let store_options = store::Options { kind: options.kind.clone(), prefix: options.prefix };
    let (source, store) = source::open(request.source.as_deref(), Surroundings::of_process, &store_options)?;
    refuse_overlap(&source, &mount_point)?;
    mountpoint::check_fuse()?;

    let view = View::new(
        store,
        view::Options { whiteouts: options.form, source: source.clone(), ..view::Options::default() },
    )?;
    let damage = view.damage();
    let cpus = available_parallelism().map_or(1, usize::from);
    let mount_options = mount::Options {
        fs_name: options.fs_name.clone().unwrap_or_else(|| source.to_string_lossy().into_owned()),
        allow_other: options.allow_other,
        noexec: options.noexec,
        opens: options.opens.unwrap_or(OPENS),
        threads: options.threads.unwrap_or(cpus.clamp(*THREADS.start(), *THREADS.end())),
        mount_point: mount_point.clone(),
    };
    let metrics = match request.metrics.as_slice() {
        [] => None,
        addresses => Some(metrics::bind(addresses)?),
    };
    let held = signals::hold(request.place)
        .map_err(|error| Failure::failed(format!("cannot receive signals: {}", words(&error))))?;
    let mut mounted = mount::mount(view, &mount_options)?;
    let mut unmounter = mounted.unmounter();
    let counters = mounted.counters();

    let status = format!("{} on {}", source.display(), mount_point.display());
    log::info!("mounted {status}");
    let told = audience.ready(&format!("serving {status}"), trouble(&damage, &request.mount_point));
    let watched = match told {
        Ok(()) => held.watch(unmounter, mount_point, counters.clone()),
        Err(error) => unmounter.unmount().and(Err(error)),
    };
    watched.map_err(|error| Failure::failed(format!("gave up {status}: {}", words(&error))))?;
    if let Some(endpoint) = metrics
        && let Err(error) = endpoint.serve(counters)
    {
        log::warn!("no metrics are served: {}", words(&error));
    }
    mounted.serve()?;
    log::info!("unmounted {status}");
    Ok(())
}

fn refuse_overlap(source: &Path, mount_point: &Path) -> Result<(), Failure> {
    let real = canonical(source)
        .map_err(|error| Failure::failed(format!("cannot find {}: {}", source.display(), words(&error))))?;
    overlap::trouble(&mounts()?, &real, mount_point).map_or(Ok(()), |trouble| Err(Failure::failed(trouble)))
}

/// What of the store is damaged, in a line; `None` where nothing is.
fn trouble(damage: &[Damage], mount_point: &Path) -> Option<String> {
    let first = damage.first()?;
    let objects = match damage.len() {
        1 => "1 object of the store is damaged".to_owned(),
        count => format!("{count} objects of the store are damaged"),
    };
    let status = mount_point.join("status");
    Some(format!("mounted, but {objects}: {}: {}; see {}", first.what, first.why, status.display()))
}

/// Raises the number of descriptors to what this process may have; many layers and readers need many.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            log::debug!("cannot raise the number of open files: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn damage_is_counted_and_the_first_is_named() {
        let damage = |what: &str| Damage { what: what.to_owned(), why: "missing".to_owned(), images: BTreeSet::new() };
        let line = |all: &[Damage]| trouble(all, Path::new("/m"));
        assert_eq!(line(&[]), None);
        assert_eq!(
            line(&[damage("/s/a")]).as_deref(),
            Some("mounted, but 1 object of the store is damaged: /s/a: missing; see /m/status")
        );
        assert_eq!(
            line(&[damage("/s/a"), damage("/s/b")]).as_deref(),
            Some("mounted, but 2 objects of the store are damaged: /s/a: missing; see /m/status")
        );
    }
}
