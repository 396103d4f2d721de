//! The process that the user and systemd see: it mounts, unmounts, receives signals, and sees to it that a server that dies
//! leaves nothing behind.
//!
//! It stays where the mount is to be seen, with the privileges that this takes, and so has nothing to do with what
//! strangers wrote: it opens a store's folders, where it lists names, and hands them over, but reads no file in them. It has
//! one thread.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};

use super::daemon::{Audience, how_it_ended};
use super::link::{Link, Word};
use super::signals::{self, End};
use super::{Failure, words};
use crate::mount::{self, Attached, How};

use super::mount::Plan;

/// The process that answers the kernel; it is ended with this value.
#[derive(Debug)]
pub(super) struct Server {
    pid: Pid,
    link: Link,
    end: Option<WaitStatus>,
}

impl Server {
    pub(super) fn new(pid: Pid, link: Link) -> Self {
        Self { pid, link, end: None }
    }

    /// Waits for the next word.
    ///
    /// # Errors
    /// What the server says is wrong, or how it ended without a word.
    fn hear(&mut self) -> Result<Word, Failure> {
        match self.link.hear() {
            Ok(Some(Word::Failed(why))) => Err(Failure::failed(why)),
            Ok(Some(word)) => Ok(word),
            Ok(None) => {
                self.wait(WaitOptions::empty());
                let how = self.end.map(how_it_ended).unwrap_or_default();
                Err(Failure::failed(format!("the server ended without a word{how}")))
            }
            Err(error) => Err(Failure::failed(format!("cannot hear from the server: {}", words(&error)))),
        }
    }

    /// Has the server answer for the mount whose device this is, and waits until it does.
    fn hand_over(&mut self, device: OwnedFd) -> Result<(), Failure> {
        self.link
            .give(&device)
            .map_err(|error| Failure::failed(format!("cannot reach the server: {}", words(&error))))?;
        // Who else holds it keeps the mount from ending with the server.
        drop(device);
        self.want(|word| matches!(word, Word::Serving).then_some(()))
    }

    fn want<T>(&mut self, wanted: impl FnOnce(Word) -> Option<T>) -> Result<T, Failure> {
        let word = self.hear()?;
        wanted(word).ok_or_else(|| Failure::failed("the server spoke out of turn"))
    }

    /// Passes a signal on.
    pub(super) fn signal(&self, signal: Signal) {
        if let Err(errno) = kill_process(self.pid, signal) {
            log::warn!("cannot pass a signal on to the server: {}", words(&errno.into()));
        }
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&mut self) -> bool {
        self.wait(WaitOptions::NOHANG);
        self.end.is_some()
    }

    /// What is to be said of its end; a mount that it left behind is detached.
    ///
    /// # Errors
    /// Where it did not end because the mount did.
    pub(super) fn outcome(&self, attached: &Attached) -> Result<(), Failure> {
        let left_behind = attached.is_there();
        if left_behind && let Err(error) = attached.detach(How::Lazy) {
            log::error!("cannot detach the mount: {}", words(&error));
        }
        match (self.link.last_word(), self.end) {
            (Some(Word::Failed(why)), _) => Err(Failure::failed(why)),
            (_, Some(end)) if end.exit_status() == Some(0) && !left_behind => Ok(()),
            (_, Some(end)) if end.exit_status() == Some(0) => {
                Err(Failure::failed("the kernel ended the connection to the server, and the mount with it"))
            }
            (_, end) => {
                let how = end.map(how_it_ended).unwrap_or_default();
                Err(Failure::failed(format!("the server ended{how}, and the mount with it")))
            }
        }
    }

    fn wait(&mut self, options: WaitOptions) {
        while self.end.is_none() {
            match waitpid(Some(self.pid), options) {
                Ok(Some((_, end))) => self.end = Some(end),
                Ok(None) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    log::error!("cannot wait for the server: {}", words(&errno.into()));
                    break;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.end.is_none() {
            // It may have ended of itself meanwhile.
            let _ = kill_process(self.pid, Signal::KILL);
            self.wait(WaitOptions::empty());
        }
    }
}

/// Mounts when the server is ready, tells the audience when the tree can be read, and stays until the mount ends.
///
/// # Errors
/// Why there is no mount, or why it ended.
pub(super) fn keep(mut server: Server, plan: &Plan, audience: &mut Audience) -> Result<(), Failure> {
    let trouble = server.want(|word| match word {
        Word::Ready(trouble) => Some(trouble),
        Word::Serving | Word::Failed(_) => None,
    })?;
    let cannot = |what: &str, error: &io::Error| Failure::failed(format!("{what}: {}", words(error)));
    let held = signals::hold(plan.place).map_err(|error| cannot("cannot receive signals", &error))?;
    let (device, attached) = mount::attach(&plan.mount)?;
    let abandoned = |failure: Failure| {
        // What went wrong first is what is told.
        let _ = attached.detach(How::Lazy);
        failure
    };
    server.hand_over(device).map_err(abandoned)?;
    attached.read_in_large_pieces();

    let status = format!("{} on {}", plan.source.display(), plan.mount.mount_point.display());
    log::info!("mounted {status}");
    let told = audience.ready(&format!("serving {status}"), trouble);
    told.map_err(|error| abandoned(cannot(&format!("gave up {status}"), &error)))?;
    match held.watch(&mut server, &attached)? {
        End::Unmounted => log::info!("unmounted {status}"),
        End::InUse => log::info!("ended, though {} was in use", plan.mount.mount_point.display()),
    }
    Ok(())
}
