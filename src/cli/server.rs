//! The process that reads the store and answers the kernel: jailed before it reads the first byte that strangers wrote.
//!
//! It was forked from the keeper with the store's folders open. What it says is for the keeper to tell; its log goes where
//! the keeper's goes. It ends when the mount does, and never outlives the keeper.

use std::path::Path;
use std::thread;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::args::Place;
use super::link::{Link, Word};
use super::mount::Plan;
use super::options::Jail;
use super::{Exit, Failure, daemon, metrics, words};
use crate::jail::{self, Needs};
use crate::mount::{self, Controls, Counters};
use crate::store::{Damage, Store};
use crate::view::{self, Force, Measure, View};

/// What `ps` calls it.
const NAME: &std::ffi::CStr = c"docker-fs:serve";

/// Serves stores until the mount ends.
pub(super) fn run(stores: Vec<Box<dyn Store>>, plan: &Plan, link: &Link, keeper: Option<Pid>) -> Exit {
    match serve(stores, plan, link, keeper) {
        Ok(()) => Exit::Done,
        Err(failure) => {
            // A keeper that is gone need not be told.
            let _ = link.say(&Word::Failed(failure.message));
            failure.exit
        }
    }
}

fn serve(stores: Vec<Box<dyn Store>>, plan: &Plan, link: &Link, keeper: Option<Pid>) -> Result<(), Failure> {
    let cannot = |what: &str, error: &std::io::Error| Failure::failed(format!("{what}: {}", words(error)));
    end_with(keeper)?;
    // INT and TERM are for the keeper, though they may be sent to both.
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1])
        .map_err(|error| cannot("the server cannot receive signals", &error))?;
    let null = match plan.place {
        Place::Background => Some(daemon::null().map_err(|error| cannot("cannot open /dev/null", &error))?),
        Place::Foreground => None,
    };
    // In the jail no socket can be made.
    let metrics = match plan.metrics.as_slice() {
        [] => None,
        addresses => Some(metrics::bind(addresses)?),
    };
    let confinement = confine(&stores, plan);
    let (whiteouts, owners, source) = (plan.form, plan.owners, plan.source.clone());
    let options = view::Options { whiteouts, owners, source, confinement };
    let view = View::new(stores, &options)?;

    let unheard = |error: std::io::Error| cannot("the server cannot reach the keeper", &error);
    link.say(&Word::Ready(trouble(&view.damage(), &plan.shown_point))).map_err(unheard)?;
    let Some(device) = link.take().map_err(unheard)? else {
        // The keeper could not mount, and says so.
        return Ok(());
    };
    let connection = mount::connect(view, &plan.mount, device)?;
    let (controls, counters) = (connection.controls(), connection.counters());
    if let Some(null) = null {
        daemon::silence(&null).map_err(|error| cannot("cannot let go of the standard streams", &error))?;
    }
    let started = connection.start()?;
    if let Some(endpoint) = metrics {
        endpoint.serve(counters.clone()).map_err(|error| cannot("cannot serve metrics", &error))?;
    }
    obey(signals, controls, counters).map_err(|error| cannot("the server cannot receive signals", &error))?;
    link.say(&Word::Serving).map_err(unheard)?;
    // From here on the keeper looks how many threads answer.
    started.serve().map_err(Failure::from)
}

/// Has the kernel end this process with the keeper, whatever ends that.
fn end_with(keeper: Option<Pid>) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|errno| Failure::failed(format!("the server cannot follow the keeper: {}", words(&errno.into()))))?;
    if getppid() != keeper {
        return Err(Failure::failed("the keeper is gone"));
    }
    // What it is called is for people.
    let _ = rustix::thread::set_name(NAME);
    Ok(())
}

/// Jails this process, and says how it stands.
fn confine(stores: &[Box<dyn Store>], plan: &Plan) -> Vec<Measure> {
    // Without this, the clones would be no wall: the mounts that they were made of are open too.
    for store in stores {
        store.let_go();
    }
    let is_private = stores.iter().all(|store| store.is_private());
    let footholds: Vec<_> = stores.iter().flat_map(|store| store.footholds()).collect();
    let measures = match plan.jail {
        Jail::None => jail::left_out("-o jail=none", is_private),
        Jail::Full => jail::enter(&Needs { store: &footholds, is_private, site: &plan.mount.mount_point }),
    };
    tell(&measures, plan.jail);
    measures
}

fn tell(measures: &[Measure], jail: Jail) {
    let (taken, missing): (Vec<&Measure>, Vec<&Measure>) =
        measures.iter().partition(|measure| measure.state == Force::Full);
    let names = |measures: &[&Measure]| measures.iter().map(|measure| measure.step).collect::<Vec<_>>().join(", ");
    if jail == Jail::None {
        log::warn!("the server is not confined by {}: -o jail=none", names(&missing));
    }
    if !taken.is_empty() {
        log::info!("the server is confined by {}", names(&taken));
    }
    for measure in taken {
        if let Some(why) = &measure.why {
            log::info!("confinement by {}: {why}", measure.step);
        }
    }
    let is_root = rustix::process::geteuid().is_root();
    for measure in missing.into_iter().filter(|_| jail == Jail::Full) {
        // Other users cannot do anything about what only root may.
        let level = if is_root || !jail::is_for_root(measure) { log::Level::Warn } else { log::Level::Info };
        let why = measure.why.as_deref().unwrap_or_default();
        log::log!(level, "the server is not confined by {}: {why}", measure.step);
    }
}

/// Starts the thread that does what signals ask for.
fn obey(mut signals: Signals, controls: Controls, counters: Counters) -> std::io::Result<()> {
    let thread = thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || {
        for signal in signals.forever() {
            match signal {
                SIGHUP => controls.rescan(),
                SIGUSR1 => counters.log(),
                _ => {}
            }
        }
    })?;
    Ok(())
}

/// What of the store is damaged, in a line; `None` where nothing is.
fn trouble(damage: &[Damage], mount_point: &Path) -> Option<String> {
    let first = damage.first()?;
    let objects = match damage.len() {
        1 => "1 object of the store is damaged".to_owned(),
        count => format!("{count} objects of the store are damaged"),
    };
    let status = mount_point.join("status");
    let which = if damage.len() == 1 { "" } else { ", the first" };
    Some(format!("mounted, but {objects}{which}: {}: {}; see {}", first.what, first.why, status.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn damage_is_counted_and_the_first_is_named() {
        let damage = |what: &str| Damage {
            what: what.to_owned(),
            why: "missing".to_owned(),
            images: BTreeSet::new(),
            is_unreadable: false,
        };
        let line = |all: &[Damage]| trouble(all, Path::new("/m"));
        assert_eq!(line(&[]), None);
        assert_eq!(
            line(&[damage("/s/a")]).as_deref(),
            Some("mounted, but 1 object of the store is damaged: /s/a: missing; see /m/status")
        );
        assert_eq!(
            line(&[damage("/s/a"), damage("/s/b")]).as_deref(),
            Some("mounted, but 2 objects of the store are damaged, the first: /s/a: missing; see /m/status")
        );
    }
}
