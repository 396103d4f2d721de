//! Image references: `repository:tag` and `repository@sha256:…`.
//!
//! The grammar is the distribution project's (`reference.go`); the *familiar* form is Docker's: without `docker.io/`,
//! and without `library/` behind it. Text that does not match the grammar is no reference, so a reference's parts can
//! stand as path components.

use std::fmt;

use crate::digest::{ManifestDigest, NotAnId};

/// The registry that a name without one means.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The folder of the default registry that a name without one means.
pub const DEFAULT_FOLDER: &str = "library";
/// The tag that a reference without one means.
pub const DEFAULT_TAG: &str = "latest";
const LEGACY_REGISTRY: &str = "index.docker.io";
const REPOSITORY_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// Which image of a repository a reference names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// A tag.
    Tag(String),
    /// The digest of a manifest; not an image ID.
    Digest(ManifestDigest),
}

/// A reference in its familiar form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    repository: String,
    version: Version,
}

impl Reference {
    /// Parses what a user types or a store holds; a missing tag means `latest`.
    ///
    /// # Errors
    /// [`NotAnId`] where the text does not match the grammar. With tag and digest both, the tag is dropped, as Docker
    /// does.
    pub fn parse(text: &str) -> Result<Self, NotAnId> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse().map_err(|_| NotAnId)?)),
            None => (text, None),
        };
        let tag_at = name.rfind(':').filter(|colon| !name.get(*colon..).unwrap_or_default().contains('/'));
        let (repository, tag) = match tag_at.and_then(|colon| name.split_at_checked(colon)) {
            Some((repository, tag)) => (repository, Some(tag.strip_prefix(':').unwrap_or(tag))),
            None => (name, None),
        };
        let tag = tag.unwrap_or(DEFAULT_TAG);
        if !is_tag(tag) {
            return Err(NotAnId);
        }
        let version = digest.map_or_else(|| Version::Tag(tag.to_owned()), Version::Digest);
        Ok(Self { repository: familiar_repository(repository).ok_or(NotAnId)?, version })
    }

    /// The familiar name of the repository, with `/` between its components.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag or digest.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// The same reference with the registry and folder that the familiar form leaves out.
    #[must_use]
    pub fn full(&self) -> String {
        if splits_at_registry(&self.repository).is_some() {
            self.to_string()
        } else if self.repository.contains('/') {
            format!("{DEFAULT_REGISTRY}/{self}")
        } else {
            format!("{DEFAULT_REGISTRY}/{DEFAULT_FOLDER}/{self}")
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(out, "{}:{tag}", self.repository),
            Version::Digest(digest) => write!(out, "{}@{digest}", self.repository),
        }
    }
}

/// Registry and rest, where the first component is a registry: it holds `.` or `:`, or is `localhost`, or has an
/// upper-case letter.
fn splits_at_registry(repository: &str) -> Option<(&str, &str)> {
    repository.split_once('/').filter(|(first, _)| {
        first.contains(['.', ':']) || *first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase())
    })
}

fn familiar_repository(text: &str) -> Option<String> {
    let (registry, path) = match splits_at_registry(text) {
        Some((registry, path)) => (registry, path),
        None => (DEFAULT_REGISTRY, text),
    };
    if !is_registry(registry) || !path.split('/').all(is_path_component) {
        return None;
    }
    let familiar = if registry == DEFAULT_REGISTRY || registry == LEGACY_REGISTRY {
        match path.strip_prefix(DEFAULT_FOLDER).and_then(|rest| rest.strip_prefix('/')) {
            Some(rest) if !rest.contains('/') => rest.to_owned(),
            _ => path.to_owned(),
        }
    } else {
        text.to_owned()
    };
    (familiar.len() <= REPOSITORY_MAX).then_some(familiar)
}

/// `host[:port]`: a domain name, an IPv4 address, or an IPv6 address in brackets.
fn is_registry(text: &str) -> bool {
    let (host, port) = match text.rfind(':').filter(|_| !text.ends_with(']')) {
        Some(colon) => match text.split_at_checked(colon) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => return false,
        },
        None => (text, None),
    };
    let port_fits = port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    let host_fits = match host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
        Some(address) => !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':'),
        None => host.split('.').all(is_domain_component),
    };
    port_fits && host_fits
}

fn is_domain_component(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// `[a-z0-9]+` runs, separated by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends_fit = bytes.first().is_some_and(|b| is_word(*b)) && bytes.last().is_some_and(|b| is_word(*b));
    ends_fit
        && bytes.chunk_by(|a, b| is_word(*a) == is_word(*b)).all(|run| match run.first() {
            Some(b'.') => run == b".",
            Some(b'_') => run == b"_" || run == b"__",
            Some(b'-') => run.iter().all(|b| *b == b'-'),
            Some(b) => is_word(*b),
            None => false,
        })
}

fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= TAG_MAX
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|b| is_word(b) || matches!(b, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn familiar_and_full_names() {
        let hex = "c".repeat(64);
        for (typed, familiar, full) in [
            ("ubuntu", "ubuntu:latest", "docker.io/library/ubuntu:latest"),
            ("docker.io/library/ubuntu", "ubuntu:latest", "docker.io/library/ubuntu:latest"),
            ("library/ubuntu:22.04", "ubuntu:22.04", "docker.io/library/ubuntu:22.04"),
            ("index.docker.io/a/b:X", "a/b:X", "docker.io/a/b:X"),
            ("library/a/b", "library/a/b:latest", "docker.io/library/a/b:latest"),
            ("host:5000", "host:5000", "docker.io/library/host:5000"),
            ("host:5000/team/app:2", "host:5000/team/app:2", "host:5000/team/app:2"),
            ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"),
            ("a__b--c.d/e", "a__b--c.d/e:latest", "docker.io/a__b--c.d/e:latest"),
        ] {
            // A first component with a dot is a registry: `a__b--c.d` is no valid one.
            match Reference::parse(typed) {
                Ok(reference) => {
                    assert_eq!((reference.to_string().as_str(), reference.full().as_str()), (familiar, full))
                }
                Err(NotAnId) => assert_eq!(typed, "a__b--c.d/e"),
            }
        }
        let digest = Reference::parse(&format!("docker.io/library/app:1@sha256:{hex}")).unwrap();
        assert_eq!(digest.to_string(), format!("app@sha256:{hex}"));
    }

    #[test]
    fn what_is_no_reference() {
        let long = "a".repeat(256);
        let long_tag = format!("a:{}", "t".repeat(129));
        for bad in [
            "",
            ":",
            "a:",
            "/a",
            "a/",
            "a//b",
            "..",
            "../a",
            "a/..",
            "A",
            "a/B",
            "a:-x",
            "a:.x",
            "a b",
            "a\n",
            "a\0",
            "a@sha256:12",
            "a._b",
            "a___b",
            "-a",
            "a-",
            "a.",
            "host:/x",
            "host:5x/x",
            ".x/y",
            "\u{e9}",
            &long,
            &long_tag,
        ] {
            assert_eq!(Reference::parse(bad), Err(NotAnId), "{bad:?}");
        }
    }
}
