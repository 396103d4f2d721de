//! INT and TERM end the mount and leave nothing behind; HUP has the store read again; USR1 logs counters.
//!
//! ```text
//! first INT or TERM   unmount; the mount ends if nobody uses it
//! in use              detach: the directory is free at once, users go on reading what they have open
//! then                end when the last user does, after 10 seconds, or at a second signal
//! HUP, USR1           passed on to the server
//! ```
//!
//! In the foreground of a terminal HUP is that the terminal was closed, which ends the mount, unless it was ignored from
//! the start (nohup). A keeper that dies of a signal would leave a dead mount, so none of these may kill it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::args::Place;
use super::keeper::{Server, not_detached};
use super::unmount::is_busy;
use super::{Failure, notify, words};
use crate::mount::{Attached, How};

/// What this process heeds; that the server ended is told by a signal too.
const HEEDED: [i32; 5] = [SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGCHLD];
/// How long the users of a detached mount are waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked for what no signal tells.
pub(super) const POLL: Duration = Duration::from_millis(20);

/// The signals, held from before the mount is made until someone watches.
#[derive(Debug)]
pub(super) struct Held {
    signals: Signals,
    hang_up_ends: bool,
    /// Those that came before anyone watched, and are for the server.
    postponed: BTreeSet<i32>,
}

/// How a mount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Unmounted,
    /// Its users had their time.
    InUse,
}

/// Undoes what whoever started this process did to the signals that it relies on: those that it blocked would end no mount,
/// and of children that end nothing could be learnt.
///
/// # Errors
/// The system's.
pub(super) fn receive() -> Result<(), Failure> {
    crate::sys::receive_signals(&HEEDED)
        .map_err(|error| Failure::failed(format!("cannot receive signals: {}", words(&error))))
}

/// Keeps the signals from killing this process; they wait for [`Held::watch`].
///
/// # Errors
/// The system's.
pub(super) fn hold(place: Place) -> io::Result<Held> {
    let hang_up_ends = match place {
        Place::Background => false,
        Place::Foreground => has_terminal() && !hang_up_is_ignored(),
    };
    Ok(Held { signals: Signals::new(HEEDED)?, hang_up_ends, postponed: BTreeSet::new() })
}

/// Whether this process has a terminal that could be closed.
fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

/// Whether this process was started with HUP ignored, as nohup(1) does.
fn hang_up_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // Signal n is bit n-1.
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

/// Takes the mount out of the tree of directories, also where it is in use.
fn detach(attached: &Attached) -> io::Result<()> {
    let point = attached.mount_point().display();
    match attached.detach(How::Plain) {
        Ok(()) => return Ok(()),
        Err(error) if is_busy(&error) => {
            let wait = PATIENCE.as_secs();
            log::info!("{point} is in use: detaching it and waiting up to {wait} s for its users");
        }
        Err(error) => log::info!("cannot unmount {point}: {}; detaching it", words(&error)),
    }
    attached.detach(How::Lazy)
}

impl Held {
    /// Whether a signal came that ends the mount; others that came are passed on by [`Held::watch`].
    pub(super) fn is_over(&mut self) -> bool {
        let mut is_over = false;
        for signal in self.signals.pending() {
            match signal {
                SIGHUP if !self.hang_up_ends => drop(self.postponed.insert(signal)),
                SIGUSR1 => drop(self.postponed.insert(signal)),
                // Whether the server has ended is looked at before it is waited for.
                SIGCHLD => {}
                _ => is_over = true,
            }
        }
        is_over
    }

    /// Waits for the end of the mount, or ends it at a signal.
    ///
    /// # Errors
    /// Where the server failed, or the mount stays behind.
    pub(super) fn watch(mut self, server: &mut Server, attached: &Attached) -> Result<End, Failure> {
        for signal in std::mem::take(&mut self.postponed) {
            server.signal(if signal == SIGHUP { Signal::HUP } else { Signal::USR1 });
        }
        // That it ends after this look is a signal that is not waited for.
        while !server.has_ended() {
            let mut is_over = false;
            for signal in self.signals.wait() {
                match signal {
                    SIGHUP if !self.hang_up_ends => server.signal(Signal::HUP),
                    SIGUSR1 => server.signal(Signal::USR1),
                    SIGCHLD => {}
                    _ => is_over = true,
                }
            }
            if is_over {
                return self.end(server, attached);
            }
        }
        server.outcome(attached).map(|()| End::Unmounted)
    }

    /// Unmounts, and waits for the server to end.
    fn end(mut self, server: &mut Server, attached: &Attached) -> Result<End, Failure> {
        notify::stopping();
        // The server goes with this process, so a mount that stays would be a dead one.
        detach(attached).map_err(|error| Failure::failed(not_detached(attached, &error)))?;
        // Gone from here, but a copy in another mount namespace may still have users.
        let end = Instant::now().checked_add(PATIENCE);
        while end.is_some_and(|end| Instant::now() < end) {
            if server.has_ended() {
                return server.outcome(attached).map(|()| End::Unmounted);
            }
            if self.signals.pending().any(|again| matches!(again, SIGINT | SIGTERM)) {
                break;
            }
            std::thread::sleep(POLL);
        }
        Ok(End::InUse)
    }
}
