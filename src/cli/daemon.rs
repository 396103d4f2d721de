//! The background: a process of its own that mounts, says so, and stays until the mount ends.
//!
//! ```text
//! the command       fork ───────────────────────── read the report ── message, exit code
//! the background    new session, chdir / ── mount ── report ── keep
//! ```
//!
//! All the work is done in the background process, so that no thread and no descriptor has to cross over; the command
//! only waits. A pipe that ends without a report is a process that died.

use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Read, Write};

use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

use super::{Exit, Failure, notify, say, words};
use crate::sys::{Fork, fork};

/// Who is told that the tree can be read.
#[derive(Debug)]
pub(super) enum Audience {
    /// The user, who stays until the mount ends, and the service manager.
    User,
    /// The command that waits for this background process; none once it was told.
    Command(Option<PipeWriter>),
}

impl Audience {
    /// Has this process tell nobody: another one does.
    pub(super) fn leave_to_others(&mut self) {
        match self {
            Self::User => {}
            Self::Command(pipe) => *pipe = None,
        }
    }

    /// Says that the tree can be read, and what the user should know all the same.
    ///
    /// # Errors
    /// Where the command is gone: the user has given up.
    pub(super) fn ready(&mut self, status: &str, trouble: Option<String>) -> io::Result<()> {
        match self {
            Self::User => {
                notify::ready(status, None);
                if let Some(trouble) = trouble {
                    say(&trouble);
                }
                Ok(())
            }
            Self::Command(pipe) => {
                let exit = if trouble.is_some() { Exit::Damaged } else { Exit::Done };
                let report = Report { exit, status: status.to_owned(), message: trouble.unwrap_or_default() };
                silence(&null()?)?;
                report.send(pipe)
            }
        }
    }
}

/// What takes the place of the caller's standard streams.
///
/// # Errors
/// The system's.
pub(super) fn null() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/null")
}

/// Lets go of the caller's standard streams: who reads them to the end need not wait for the end of the mount. The
/// numbers stay taken, so that nothing else is ever opened as one of them.
///
/// # Errors
/// The system's.
pub(super) fn silence(null: &File) -> io::Result<()> {
    rustix::stdio::dup2_stdin(null)?;
    rustix::stdio::dup2_stdout(null)?;
    rustix::stdio::dup2_stderr(null)?;
    Ok(())
}

/// What the background process says of itself, once.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    exit: Exit,
    /// For the service manager.
    status: String,
    /// For the user.
    message: String,
}

impl Report {
    /// Writes the exit code as a byte, the status, a NUL, and the message.
    fn write(&self, mut out: impl Write) -> io::Result<()> {
        let mut bytes = vec![self.exit.code()];
        bytes.extend_from_slice(self.status.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(self.message.as_bytes());
        out.write_all(&bytes)
    }

    /// Writes the report if no other was written, and closes the pipe.
    fn send(&self, pipe: &mut Option<PipeWriter>) -> io::Result<()> {
        pipe.take().map_or(Ok(()), |pipe| self.write(pipe))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (code, text) = bytes.split_first()?;
        let mut parts = text.splitn(2, |byte| *byte == 0).map(String::from_utf8_lossy);
        Some(Self { exit: Exit::of(*code)?, status: parts.next()?.into_owned(), message: parts.next()?.into_owned() })
    }
}

/// Does the work in a background process, and returns in both: in the command when the work has told its audience that
/// it is ready, in the background when the work is done.
///
/// # Errors
/// In the command, why the work failed; in the background all that went wrong was said.
pub(super) fn start(work: impl FnOnce(&mut Audience) -> Result<(), Failure>) -> Result<Exit, Failure> {
    let impossible =
        |error: io::Error| Failure::failed(format!("cannot start a process in the background: {}", words(&error)));
    let (reader, writer) = io::pipe().map_err(impossible)?;
    match fork().map_err(impossible)? {
        Fork::Parent(child) => {
            drop(writer);
            wait(child, reader)
        }
        Fork::Child => {
            drop(reader);
            let mut pipe = Audience::Command(Some(writer));
            Ok(match leave().and_then(|()| work(&mut pipe)) {
                Ok(()) => Exit::Done,
                Err(failure) => fail(pipe, failure),
            })
        }
    }
}

/// Leaves the terminal's session and the directory, which could not be unmounted otherwise.
fn leave() -> Result<(), Failure> {
    let failed = |doing: &'static str| {
        move |errno: rustix::io::Errno| Failure::failed(format!("cannot {doing}: {}", words(&errno.into())))
    };
    rustix::process::setsid().map_err(failed("leave the terminal"))?;
    rustix::process::chdir("/").map_err(failed("leave the directory for /"))
}

/// Reports a failure, unless the command was told already that all is well: then it is in the log file alone.
fn fail(audience: Audience, failure: Failure) -> Exit {
    let exit = failure.exit;
    if let Audience::Command(mut pipe) = audience {
        let report = Report { exit, status: String::new(), message: failure.message };
        let _nobody_waits = report.send(&mut pipe);
    }
    exit
}

/// Waits for the report of the background process.
fn wait(child: Pid, mut reader: PipeReader) -> Result<Exit, Failure> {
    let mut bytes = Vec::new();
    reader
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::failed(format!("cannot hear from the background process: {}", words(&error))))?;
    let Some(report) = Report::parse(&bytes) else {
        let end = match waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) => how_it_ended(status),
            Ok(None) | Err(_) => String::new(),
        };
        return Err(Failure::failed(format!("the background process ended without a word{end}")));
    };
    if matches!(report.exit, Exit::Done | Exit::Damaged) {
        notify::ready(&report.status, Some(child));
    }
    match report.exit {
        Exit::Done => Ok(Exit::Done),
        exit => Err(Failure { exit, message: report.message }),
    }
}

/// The end of a process, in brackets.
pub(super) fn how_it_ended(status: WaitStatus) -> String {
    match (status.terminating_signal(), status.exit_status()) {
        (Some(signal), _) => format!(" (signal {signal})"),
        (None, Some(code)) => format!(" (exit code {code})"),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_arrives_as_it_was_sent() {
        for report in [
            Report { exit: Exit::Done, status: "serving /a".to_owned(), message: String::new() },
            Report { exit: Exit::NoStore, status: String::new(), message: "two\nlines".to_owned() },
        ] {
            let mut bytes = Vec::new();
            report.write(&mut bytes).unwrap();
            assert_eq!(Report::parse(&bytes), Some(report));
        }
    }

    #[test]
    fn half_a_report_is_none() {
        for bytes in [&b""[..], b"\0", b"\0serving", b"\x63a\0b"] {
            assert_eq!(Report::parse(bytes), None, "{bytes:?}");
        }
    }
}
