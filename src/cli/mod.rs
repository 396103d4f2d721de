//! The command `docker-fs`: from what was typed to an exit code.
//!
//! `args` reads the words, a file per command does the work, and everything that can go wrong comes back here as a
//! `Failure`: one message on stderr, one exit code. stdout is for data alone.
//!
//! ```text
//! 0 done   1 failed   2 usage   3 no store found   4 mounted, but part of the store is damaged
//! ```

mod args;
mod daemon;
mod help;
mod keeper;
mod link;
mod logging;
mod metrics;
mod mount;
mod mountpoint;
mod notify;
mod options;
mod overlap;
mod server;
mod signals;
mod source;
mod unmount;

use std::ffi::OsString;
use std::fmt::{self, Display};
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use crate::error::{Error, system_words as words};

/// How the command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Done,
    Failed,
    Usage,
    NoStore,
    Damaged,
}

impl Exit {
    fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NoStore => 3,
            Self::Damaged => 4,
        }
    }

    fn of(code: u8) -> Option<Self> {
        [Self::Done, Self::Failed, Self::Usage, Self::NoStore, Self::Damaged]
            .into_iter()
            .find(|exit| exit.code() == code)
    }
}

/// Why the command could not do what was asked, and how it ends for that.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failure {
    exit: Exit,
    /// What the user is told, without the program's name.
    message: String,
}

impl Failure {
    fn failed(message: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, message: message.into() }
    }

    fn usage(message: impl Display) -> Self {
        Self { exit: Exit::Usage, message: format!("{message}; try 'docker-fs --help'") }
    }

    fn no_store(message: impl Into<String>) -> Self {
        Self { exit: Exit::NoStore, message: message.into() }
    }
}

impl Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::failed(error.to_string())
    }
}

/// Runs the command with its arguments, the program's own name first.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let outcome = match args::parse(args) {
        Ok(args::Command::Print(text)) => print(&text),
        Ok(args::Command::Mount(request)) => mount::run(&request),
        Ok(args::Command::Unmount(request)) => unmount::run(&request).map(|()| Exit::Done),
        Err(failure) => Err(failure),
    };
    let exit = outcome.unwrap_or_else(|failure| {
        say(&failure.message);
        failure.exit
    });
    ExitCode::from(exit.code())
}

/// Tells the user something on stderr. Where stderr is closed there is nobody to be told.
fn say(message: &str) {
    let _nobody_listens = writeln!(std::io::stderr().lock(), "docker-fs: {message}");
}

/// Prints data. That a reader had enough (`docker-fs --help | head -1`) is success.
fn print(text: &str) -> Result<Exit, Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write to the standard output: {}", words(&error))))
        }
        _ => Ok(Exit::Done),
    }
}
