//! Where log messages go, and which.
//!
//! On stderr a message is `docker-fs: level: text`, an error `docker-fs: text`; in a log file the time stands in
//! front. `DOCKER_FS_LOG` has env_logger's filter syntax and counts over `-v` and `-q`. env_logger takes a word that is no
//! level for a module, which then is the only one that is heard; so a word that can be neither is told of here, and the
//! whole variable left aside.

use std::fs::{self, File, FileType, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use env_logger::{Builder, Target};
use log::{Level, LevelFilter};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Failure, words};
use crate::mount::LOG_TARGET;

const VARIABLE: &str = "DOCKER_FS_LOG";
/// The crates that log.
const CRATES: [&str; 2] = ["docker_fs", "fuser"];

/// Starts logging to stderr or to a file, which is appended to.
///
/// # Errors
/// Where the file could not be opened.
pub(super) fn start(level: LevelFilter, file: Option<&Path>) -> Result<(), Failure> {
    let mut builder = Builder::new();
    let filters = std::env::var_os(VARIABLE).map(|filters| filters.to_string_lossy().into_owned());
    let nonsense = filters.as_deref().and_then(nonsense);
    match filters.as_deref().filter(|_| nonsense.is_none()) {
        Some(filters) => builder.parse_filters(filters),
        // The FUSE library logs each request itself; the mount does it better.
        None => {
            let others = level.min(LevelFilter::Warn);
            // It calls it an error that a reader was killed before the answer came.
            let fuser = if level >= LevelFilter::Debug { others } else { LevelFilter::Off };
            builder.filter_level(others).filter_module("fuser", fuser).filter_module("docker_fs", level);
            // Someone asked for these.
            builder.filter_module(LOG_TARGET, LevelFilter::Info)
        }
    };
    let stamped = file.is_some();
    if let Some(path) = file {
        builder.target(Target::Pipe(Box::new(open(path)?)));
    }
    builder.format(move |out, record| {
        if stamped {
            let time = out.timestamp_millis();
            write!(out, "{time} ")?;
        }
        match record.level() {
            Level::Error => writeln!(out, "docker-fs: {}", record.args()),
            level @ (Level::Warn | Level::Info | Level::Debug | Level::Trace) => {
                writeln!(out, "docker-fs: {}: {}", word(level), record.args())
            }
        }
    });
    // A second logger can only be one of a program that uses the library; it stays.
    let _already_set = builder.try_init();
    if let Some(word) = nonsense {
        log::warn!(
            "{VARIABLE} is not used: {word:?} is no level and no module; wanted is something like 'debug' or \
             'docker_fs::mount=trace'"
        );
    }
    Ok(())
}

/// The first part of a filter that means nothing: `[MODULE=]LEVEL` or `MODULE`, separated by commas, and after a slash a text
/// that messages must have.
fn nonsense(filters: &str) -> Option<&str> {
    let parts = filters.split('/').next().unwrap_or_default().split(',').map(str::trim);
    parts.filter(|part| !part.is_empty()).find(|part| {
        let is_level = |word: &str| word.trim().parse::<LevelFilter>().is_ok();
        let is_module = |word: &str| CRATES.iter().any(|known| word.trim().split("::").next() == Some(*known));
        match part.split_once('=') {
            Some((module, level)) => !is_module(module) || !(level.is_empty() || is_level(level)),
            None => !is_level(part) && !is_module(part),
        }
    })
}

/// Opens a log file, which may be a FIFO or a terminal, and waits for nobody: neither for one who reads it to come, nor,
/// later, for one who has stopped to; then messages are lost.
fn open(path: &Path) -> Result<File, Failure> {
    let cannot = |why: &str| Failure::failed(format!("cannot open the log file {}: {why}", path.display()));
    // One that is not there is made.
    let kind = fs::metadata(path).ok().map(|meta| meta.file_type());
    let is = |type_of: fn(&FileType) -> bool| kind.as_ref().is_some_and(type_of);
    if is(FileType::is_block_device) {
        return Err(cannot("it is a block device"));
    }
    if is(FileType::is_socket) {
        return Err(cannot("it is a socket"));
    }
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let opened = OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(flags).open(path);
    opened.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::NXIO) if is(FileType::is_fifo) => cannot("it is a FIFO that nobody reads"),
        _ => cannot(&words(&error)),
    })
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_told_from_filters() {
        for sense in [
            "",
            "debug",
            "OFF",
            "docker_fs::mount=trace",
            "warn, docker_fs=debug,fuser=off",
            "docker_fs",
            "info/counters",
        ] {
            assert_eq!(nonsense(sense), None, "{sense}");
        }
        for (filters, word) in [
            ("nonsense", "nonsense"),
            ("debug,docker-fs=info", "docker-fs=info"),
            ("docker_fs=loud", "docker_fs=loud"),
            ("debug trace", "debug trace"),
            ("docker_fsx", "docker_fsx"),
        ] {
            assert_eq!(nonsense(filters), Some(word), "{filters}");
        }
    }
}
