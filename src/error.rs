//! The one error type of the library.
//!
//! The variants tell callers what can be done about an error, not where it arose. Every error names the operation and
//! the object; [`Error::errno`] is the only place that decides what a reader of the mount sees.

use std::borrow::Cow;
use std::fmt;
use std::io;

use rustix::io::Errno;

/// What a library function answers.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something could not be answered.
#[derive(Debug)]
pub enum Error {
    /// The operating system refused an operation on the host's files.
    Io {
        /// The operation and its object, as the words that follow "cannot": `read /var/lib/docker/…`.
        doing: String,
        /// The system's own error.
        source: io::Error,
    },
    /// The store contradicts itself or its format.
    Damaged {
        /// The object: a file of the store, an image, a layer.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The union's own rule answers a name with an error, as kernel overlayfs does.
    Refused {
        /// The name within the union.
        what: String,
        /// The part of the rule that refuses it.
        why: Cow<'static, str>,
        /// What kernel overlayfs answers.
        errno: Errno,
    },
    /// The object was removed while it was in use.
    Stale {
        /// The object.
        what: String,
    },
    /// The object is of a kind that this program does not read.
    Unsupported {
        /// The object.
        what: String,
        /// What of it is not supported, and what is.
        why: String,
    },
    /// There is no such object; `what` says where it was looked for.
    NotFound {
        /// The object.
        what: String,
    },
}

impl Error {
    /// An [`Error::Io`] for `doing`, to be used with `map_err`.
    pub fn io<E: Into<io::Error>>(doing: impl FnOnce() -> String) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { doing: doing(), source: source.into() }
    }

    /// An [`Error::Damaged`].
    pub fn damaged(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Damaged { what: what.into(), why: why.into() }
    }

    /// Whether the same question may well be answered in a moment: the system was short of something, a disk did not
    /// answer in time, or the object was replaced while it was looked at. Such an error tells nothing of the object.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Io { source, .. } => matches!(
                Errno::from_io_error(source),
                Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::INTR | Errno::AGAIN | Errno::TIMEDOUT)
            ),
            Self::Stale { .. } => true,
            Self::Damaged { .. } | Self::Refused { .. } | Self::Unsupported { .. } | Self::NotFound { .. } => false,
        }
    }

    /// The error number that a system call on the mount returns for this error.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Io { source, .. } => Errno::from_io_error(source).unwrap_or(Errno::IO),
            Self::Damaged { .. } => Errno::IO,
            Self::Refused { errno, .. } => *errno,
            Self::Stale { .. } => Errno::STALE,
            Self::Unsupported { .. } => Errno::OPNOTSUPP,
            Self::NotFound { .. } => Errno::NOENT,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { doing, source } => write!(out, "cannot {doing}: {}", system_words(source)),
            Self::Damaged { what, why } | Self::Unsupported { what, why } => write!(out, "{what}: {why}"),
            Self::Refused { what, why, .. } => write!(out, "{what}: {why}"),
            Self::Stale { what } => write!(out, "{what} was removed while in use"),
            Self::NotFound { what } => write!(out, "{what} not found"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Damaged { .. }
            | Self::Refused { .. }
            | Self::Stale { .. }
            | Self::Unsupported { .. }
            | Self::NotFound { .. } => None,
        }
    }
}

/// The system's words for an error, without Rust's "(os error N)".
pub(crate) fn system_words(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text.get(..end).unwrap_or(&text).to_owned(),
        None => text,
    }
}

/// A text that steers no terminal: if there is a control character in it, all that is not plain is escaped.
pub(crate) fn printable(text: String) -> String {
    if text.contains(char::is_control) { text.escape_debug().to_string() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_operation_and_object() {
        let denied = Error::io(|| "read /s/image".to_owned())(Errno::ACCESS);
        assert_eq!(denied.to_string(), "cannot read /s/image: Permission denied");
        assert_eq!(denied.errno(), Errno::ACCESS);
        let damaged = Error::damaged("layer 1", "its cache-id is empty");
        assert_eq!(damaged.to_string(), "layer 1: its cache-id is empty");
        assert_eq!(damaged.errno(), Errno::IO);
    }
}
