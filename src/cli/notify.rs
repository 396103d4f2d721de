//! Tells systemd how the service stands (`Type=notify`, sd_notify(3)); without `NOTIFY_SOCKET` nothing happens.
//!
//! For a service in the background the command itself says that the mount is ready, as systemd listens to the main
//! process only (`NotifyAccess=main`) and the background process becomes that by `MAINPID`.

use rustix::process::Pid;
use sd_notify::NotifyState;

/// The tree can be read. `main` is the process that serves it, where that is not this one.
pub(super) fn ready(status: &str, main: Option<Pid>) {
    // A newline would start another assignment.
    let status = status.replace(char::is_control, "?");
    let mut states = vec![NotifyState::Ready, NotifyState::Status(&status)];
    let main = main.and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok());
    states.extend(main.map(NotifyState::MainPid));
    send(&states);
}

/// The mount is about to end.
pub(super) fn stopping() {
    send(&[NotifyState::Stopping]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("cannot tell the service manager (NOTIFY_SOCKET): {}", super::words(&error));
    }
}
