//! The process that the user and systemd see: it mounts, unmounts, receives signals, and sees to it that a server that dies
//! leaves nothing behind.
//!
//! It stays where the mount is to be seen, with the privileges that this takes, and so has nothing to do with what
//! strangers wrote: it opens a store's folders, where it lists names, and hands them over, but reads no file in them. It has
//! one thread.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, waitpid};

use super::daemon::{Audience, how_it_ended};
use super::link::{Link, Word};
use super::signals::{self, End};
use super::{Failure, words};
use crate::mount::{self, Attached, How, Started};

use super::mount::Plan;

/// How often to look whether the server's threads run.
const LOOK: Duration = Duration::from_millis(2);
/// How long to look at most. Where they are not seen by then, it is the looking that fails: the server would have said so.
const LOOKING_MAX: Duration = Duration::from_secs(10);

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
            Ok(None) => Err(self.silence()),
            Err(error) if is_gone(&error) => Err(self.silence()),
            Err(error) => Err(Failure::failed(format!("cannot hear from the server: {}", words(&error)))),
        }
    }

    /// Why there is nothing to be heard: what the server said last, or how it ended. One that lives all the same, and
    /// only hung up, is ended.
    fn silence(&mut self) -> Failure {
        if let Some(Word::Failed(why)) = self.link.last_word() {
            return Failure::failed(why);
        }
        self.end_it();
        let how = self.end.map(how_it_ended).unwrap_or_default();
        Failure::failed(format!("the server ended without a word{how}"))
    }

    /// Has the server answer for the mount whose device this is, and waits until it is about to, or someone `gives_up`.
    fn hand_over(&mut self, device: OwnedFd, mut gives_up: impl FnMut() -> bool) -> Result<(), Failure> {
        self.link.give(&device).map_err(|error| match is_gone(&error) {
            true => self.silence(),
            false => Failure::failed(format!("cannot reach the server: {}", words(&error))),
        })?;
        // Who else holds it keeps the mount from ending with the server.
        drop(device);
        let cannot = |error: io::Error| Failure::failed(format!("cannot wait for the server: {}", words(&error)));
        while !self.link.has_word_within(signals::POLL).map_err(cannot)? {
            if gives_up() {
                return Err(Failure::failed("ended by a signal before the server answered"));
            }
        }
        self.want(|word| matches!(word, Word::Serving).then_some(()))
    }

    /// Waits until so many threads answer; tells whether they do, or the server ended first. It cannot say that they do: who
    /// started them waits for their end. Signals that come meanwhile find a mount, and are left to who can obey them.
    fn has_started(&mut self, threads: usize) -> Result<bool, Failure> {
        let cannot = |error: io::Error| Failure::failed(format!("cannot wait for the server: {}", words(&error)));
        let (begun, mut answering) = (Instant::now(), BTreeSet::new());
        while let Some(waiting) = waiting(self.pid) {
            answering.extend(waiting);
            if answering.len() >= threads || begun.elapsed() > LOOKING_MAX {
                break;
            }
            if self.link.has_word_within(LOOK).map_err(cannot)? {
                self.end_it();
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Ends a server that has nothing more to say. How one ends that is about to is settled before its descriptors are
    /// closed.
    fn end_it(&mut self) {
        let _ = kill_process(self.pid, Signal::KILL);
        self.wait(WaitOptions::empty());
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
    /// Where it did not end because the mount did, or the mount stays behind.
    pub(super) fn outcome(&self, attached: &Attached) -> Result<(), Failure> {
        let is_over = matches!(attached.is_there(), Ok(false));
        let last_word = self.link.last_word();
        let has_spoken = matches!(last_word, Some(Word::Failed(_)));
        let why = match (last_word, self.end) {
            (Some(Word::Failed(why)), _) => why,
            (_, Some(end)) if end.exit_status() == Some(0) && is_over => return Ok(()),
            (_, Some(end)) if end.exit_status() == Some(0) => {
                "the kernel ended the connection to the server".to_owned()
            }
            (_, end) => format!("the server ended{}", end.map(how_it_ended).unwrap_or_default()),
        };
        let point = attached.mount_point().display();
        Err(Failure::failed(match attached.detach(How::Lazy) {
            Ok(()) if has_spoken => format!("{why}; nothing is mounted on {point} any more"),
            Ok(()) => format!("{why}, and the mount on {point} with it"),
            Err(error) => format!("{why}; {}", not_detached(attached, &error)),
        }))
    }

    fn wait(&mut self, options: WaitOptions) {
        while self.end.is_none() {
            match waitpid(Some(self.pid), options) {
                Ok(Some((_, end))) => self.end = Some(end),
                Ok(None) => break,
                Err(Errno::INTR) => {}
                Err(errno) => {
                    log::error!("cannot wait for the server: {}", words(&errno.into()));
                    break;
                }
            }
        }
    }
}

/// The threads of a server that wait for requests: a thread that is not asleep yet may still fail, for want of memory.
/// `None` where `/proc` does not tell, because it is not there, or hides this process, or has the processes of another
/// namespace.
fn waiting(server: Pid) -> Option<Vec<OsString>> {
    let own = fs::read_link("/proc/self").ok()?;
    (own == Path::new(&getpid().to_string())).then_some(())?;
    let threads = fs::read_dir(format!("/proc/{server}/task")).ok()?.flatten();
    let is_waiting = |thread: &fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.contains(&format!(" ({}", Started::THREADS)) && stat.contains(") S ")
    };
    Some(threads.filter(is_waiting).map(|thread| thread.file_name()).collect())
}

/// That a mount could not be detached, and what to do about it.
pub(super) fn not_detached(attached: &Attached, error: &io::Error) -> String {
    let point = attached.mount_point().display();
    let why = words(error);
    format!(
        "the mount on {point} could not be detached: {why}; 'docker-fs unmount --lazy {point}' ends what is left of it"
    )
}

/// Whether the error is that there is nobody at the other end of the link. `ECONNRESET` is told where what was said last was
/// not heard there.
fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::PIPE | Errno::CONNRESET))
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
    let mut held = signals::hold(plan.place).map_err(|error| cannot("cannot receive signals", &error))?;
    let (device, attached) = mount::attach(&plan.mount)?;
    let abandoned = |mut failure: Failure| {
        if let Err(error) = attached.detach(How::Lazy) {
            failure.message = format!("{}; {}", failure.message, not_detached(&attached, &error));
        }
        failure
    };
    server.hand_over(device, || held.is_over()).map_err(abandoned)?;
    if !server.has_started(plan.mount.threads).map_err(abandoned)? {
        // If it was unmounted already, all is well.
        server.outcome(&attached)?;
    }
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::{WaitId, WaitIdOptions, waitid};

    use super::super::link::pair;
    use super::*;

    /// A server that a shell stands for, with its end of the link.
    #[allow(clippy::zombie_processes, reason = "the value waits for it by its number")]
    fn server(script: &str) -> (Server, Link) {
        let (keepers, servers) = pair().unwrap();
        let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        (Server::new(Pid::from_child(&child), keepers), servers)
    }

    fn device() -> OwnedFd {
        super::super::daemon::null().unwrap().into()
    }

    #[test]
    fn a_server_that_died_before_it_got_the_device_is_told_of() {
        for (script, how) in [("kill -9 $$", "signal 9"), ("exit 7", "exit code 7")] {
            let (mut server, link) = server(script);
            // Before it hung up, it ended.
            server.wait(WaitOptions::empty());
            drop(link);
            let failure = server.hand_over(device(), || false).unwrap_err();
            assert_eq!(failure, Failure::failed(format!("the server ended without a word ({how})")));
        }
    }

    #[test]
    fn what_a_server_said_before_it_died_is_told() {
        let (mut server, link) = server("exit 1");
        link.say(&Word::Failed("the disk is gone".to_owned())).unwrap();
        drop(link);
        assert_eq!(server.hand_over(device(), || false), Err(Failure::failed("the disk is gone")));
    }

    #[test]
    fn a_server_that_died_with_the_device_unread_is_told_of() {
        let (mut server, link) = server("exit 7");
        server.wait(WaitOptions::empty());
        server.link.give(device()).unwrap();
        drop(link);
        assert_eq!(server.hear(), Err(Failure::failed("the server ended without a word (exit code 7)")));

        let (server, link) = self::server("exit 1");
        server.link.give(device()).unwrap();
        link.say(&Word::Failed("the disk is gone".to_owned())).unwrap();
        drop(link);
        assert_eq!(server.link.last_word(), Some(Word::Failed("the disk is gone".to_owned())));
    }

    #[test]
    fn a_server_that_says_nothing_is_not_waited_for_by_who_gives_up() {
        let (mut server, link) = server("exec sleep 1000");
        let mut looks = 0;
        let gives_up = || {
            looks += 1;
            looks == 3
        };
        let failure = Failure::failed("ended by a signal before the server answered");
        assert_eq!(server.hand_over(device(), gives_up), Err(failure));
        drop(link);
    }

    #[test]
    fn a_server_that_cannot_start_its_threads_is_told_of_though_it_said_that_it_serves() {
        let (mut server, link) = server("exec sleep 1000");
        link.say(&Word::Serving).unwrap();
        link.say(&Word::Failed("no threads".to_owned())).unwrap();
        assert_eq!(server.hand_over(device(), || false), Ok(()));
        assert_eq!(server.has_started(1), Ok(false));
        assert_eq!(server.link.last_word(), Some(Word::Failed("no threads".to_owned())));

        // One that was ended by an unmount has served.
        let (mut server, link) = self::server("exit 0");
        waitid(WaitId::Pid(server.pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
        drop(link);
        assert_eq!(server.has_started(1), Ok(false));
        assert_eq!(server.end.and_then(WaitStatus::exit_status), Some(0));
    }

    #[test]
    fn a_server_that_hung_up_and_lives_is_not_waited_for() {
        let (mut server, link) = server("exec sleep 1000");
        drop(link);
        assert_eq!(server.hear(), Err(Failure::failed("the server ended without a word (signal 9)")));
    }
}
