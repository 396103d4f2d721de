//! INT and TERM end the mount and leave nothing behind.
//!
//! ```text
//! first signal    unmount; the mount ends if nobody uses it
//! in use          detach: the directory is free at once, users go on reading what they have open
//! then            end when the last user does, after 10 seconds, or at a second signal
//! ```
//!
//! HUP is a closed terminal, which ends a mount in the foreground (unless it was ignored: nohup) and is nothing to one
//! in the background. USR1 logs the counters. A process that dies of a signal would leave a dead mount, so none of the
//! four may kill.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::args::Place;
use super::unmount::{How, is_busy, unmount};
use super::{notify, words};
use crate::mount::{Counters, Unmounter};

/// How long the users of a detached mount are waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// The signals, held from before the mount is made until someone watches.
#[derive(Debug)]
pub(super) struct Held {
    signals: Signals,
    hang_up_ends: bool,
}

/// Keeps the signals from killing this process; they wait for [`Held::watch`].
///
/// # Errors
/// The system's.
pub(super) fn hold(place: Place) -> io::Result<Held> {
    let hang_up_ends = match place {
        Place::Background => false,
        Place::Foreground => !hang_up_is_ignored(),
    };
    Ok(Held { signals: Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1])?, hang_up_ends })
}

/// Whether this process was started with HUP ignored, as nohup(1) does.
fn hang_up_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // Signal n is bit n-1.
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

impl Held {
    /// Starts the thread that ends the mount at a signal.
    ///
    /// # Errors
    /// Where no thread can be made.
    pub(super) fn watch(mut self, mut unmounter: Unmounter, point: PathBuf, counters: Counters) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("signals".to_owned());
        thread.spawn(move || {
            let is_end = |signal| match signal {
                SIGUSR1 => {
                    counters.log();
                    false
                }
                SIGHUP => self.hang_up_ends,
                _ => true,
            };
            while !self.signals.wait().any(is_end) {}
            notify::stopping();
            let detach = match unmounter.unmount() {
                // Gone from here, but a copy in another mount namespace may still have users.
                Ok(()) => false,
                Err(error) if is_busy(&error) => {
                    let wait = PATIENCE.as_secs();
                    log::info!("{} is in use: detaching it and waiting up to {wait} s for its users", point.display());
                    true
                }
                Err(error) => {
                    log::warn!("cannot unmount {}: {}; detaching it", point.display(), words(&error));
                    true
                }
            };
            if detach && let Err(error) = unmount(&point, How::Lazy) {
                log::error!("cannot detach {}: {}", point.display(), words(&error));
            }
            let end = Instant::now().checked_add(PATIENCE);
            // The process ends from under this thread when the last user does.
            while end.is_some_and(|end| Instant::now() < end)
                && !self.signals.pending().any(|again| !matches!(again, SIGHUP | SIGUSR1))
            {
                std::thread::sleep(POLL);
            }
            log::info!("ended, though {} was in use", point.display());
            std::process::exit(0);
        })?;
        Ok(())
    }
}
