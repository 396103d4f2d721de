//! The identifiers of images, layers and containers, each a type of its own.
//!
//! An ID is made only from text that matches its strict pattern, so an ID can stand as a file name without another
//! look. Image ID, diff ID and chain ID mean what the OCI image specification (config.md, "Layer `ChainID`") and
//! Docker's layerdb mean; all three are SHA-256 digests and are written `sha256:<64 lower-case hex digits>`.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// The digits of an ID, without the algorithm in front.
pub const HEX_LEN: usize = 64;

/// The text is not an identifier of the wanted kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAnId;

impl fmt::Display for NotAnId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("not an identifier")
    }
}

impl std::error::Error for NotAnId {}

fn digits(text: &str) -> Option<[u8; 32]> {
    if text.len() != HEX_LEN {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let mut value = 0;
        for digit in pair {
            let digit = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return None,
            };
            value = value << 4 | digit;
        }
        *byte = value;
    }
    Some(bytes)
}

fn hex(bytes: &[u8; 32]) -> String {
    let digit = |nibble: u8| char::from(if nibble < 10 { b'0' + nibble } else { b'a' - 10 + nibble });
    // The length is told at once, as thousands are made when a store is read.
    let mut text = String::with_capacity(HEX_LEN);
    for byte in bytes {
        text.push(digit(byte >> 4));
        text.push(digit(byte & 0xf));
    }
    text
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The ID with these 64 lower-case hexadecimal digits.
            #[must_use]
            pub fn from_hex(text: &str) -> Option<Self> {
                digits(text).map(Self)
            }

            /// The 64 digits alone.
            #[must_use]
            pub fn hex(&self) -> String {
                hex(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NotAnId;

            /// Parses the full form, with the algorithm in front where this kind of ID has one.
            fn from_str(text: &str) -> Result<Self, NotAnId> {
                text.strip_prefix($prefix).and_then(Self::from_hex).ok_or(NotAnId)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(out, "{}{}", $prefix, self.hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, out)
            }
        }
    };
}

id!(
    /// An image's ID: the SHA-256 of its config.
    ImageId,
    "sha256:"
);
id!(
    /// A layer's diff ID: the SHA-256 of its uncompressed tar.
    DiffId,
    "sha256:"
);
id!(
    /// A layer's chain ID: it stands for the layer and all below it.
    ChainId,
    "sha256:"
);
id!(
    /// The digest of an image's manifest, as in `repository@sha256:…`; not the image ID.
    ManifestDigest,
    "sha256:"
);
id!(
    /// A container's ID.
    ContainerId,
    ""
);

id!(
    /// A layer's ID in containers/storage, which tells nothing of the layer but its place.
    StorageLayerId,
    ""
);

impl ManifestDigest {
    /// The digest of this manifest.
    #[must_use]
    pub fn of_manifest(manifest: &[u8]) -> Self {
        Self(Sha256::digest(manifest).into())
    }
}

impl StorageLayerId {
    /// The name of the layer's directory.
    #[must_use]
    pub fn cache_id(&self) -> CacheId {
        CacheId(self.hex().into())
    }

    /// What stands for the layer where its chain ID is not known.
    #[must_use]
    pub fn as_chain(&self) -> ChainId {
        ChainId(self.0)
    }
}

impl ImageId {
    /// The ID of the image with this config.
    #[must_use]
    pub fn of_config(config: &[u8]) -> Self {
        Self(Sha256::digest(config).into())
    }
}

impl ContainerId {
    /// The ID that stands for a container whose own is not of this form: a hash of its name.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        Self(Sha256::digest(name).into())
    }
}

impl ImageId {
    /// The same ID as that of the image's layer and all below it, in stores in which every layer is an image.
    #[must_use]
    pub fn as_chain(&self) -> ChainId {
        ChainId(self.0)
    }
}

impl ChainId {
    /// The ID that stands for a layer which no image names: a hash of the name that it has in its store.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        Self(Sha256::digest(name).into())
    }

    /// The chain ID of a layer upon `parent`.
    ///
    /// `chain(d0) = d0`, `chain(dn) = SHA-256(chain(dn-1) + " " + dn)` over the full texts (OCI image specification).
    #[must_use]
    pub fn of(parent: Option<&Self>, diff: &DiffId) -> Self {
        match parent {
            None => Self(diff.0),
            Some(parent) => Self(Sha256::digest(format!("{parent} {diff}")).into()),
        }
    }
}

/// The name of a layer's directory below its graph driver's: a cache ID, a container's mount ID or init ID.
///
/// Docker checks only that a cache ID is not empty; here it must match `[A-Za-z0-9][A-Za-z0-9_-]{0,127}`, which holds
/// what Docker, `BuildKit` and migrations from Docker 1.9 write.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheId(Box<str>);

impl CacheId {
    /// The ID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CacheId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let fits = text.len() <= 128
            && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        if fits { Ok(Self(text.into())) } else { Err(NotAnId) }
    }
}

impl fmt::Display for CacheId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_follow_the_specification() {
        // Computed with sha256sum over "sha256:<a> sha256:<b>".
        let base: DiffId = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        let next: DiffId = format!("sha256:{}", "b".repeat(64)).parse().unwrap();
        let bottom = ChainId::of(None, &base);
        assert_eq!(bottom.hex(), "a".repeat(64));
        let top = ChainId::of(Some(&bottom), &next);
        assert_eq!(top.hex(), "ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c");
    }

    #[test]
    fn ids_match_their_patterns_strictly() {
        let hex = "0123456789abcdef".repeat(4);
        assert!(ImageId::from_hex(&hex).is_some_and(|id| id.hex() == hex));
        assert!(format!("sha256:{hex}").parse::<DiffId>().is_ok());
        assert!(hex.parse::<ContainerId>().is_ok());
        for bad in ["", "sha256:", &hex, &format!("sha512:{hex}"), &format!("sha256:{}", hex.to_uppercase())] {
            assert!(bad.parse::<DiffId>().is_err(), "{bad}");
        }
        for bad in ["", "../etc", "a/b", "-x", "a.b", "a\n", &"a".repeat(129)] {
            assert!(bad.parse::<CacheId>().is_err(), "{bad}");
        }
        for good in ["a", &hex, &format!("{hex}-init"), "n8x0qk3v1c7m2b5z9l4j6h8g0"] {
            assert!(good.parse::<CacheId>().is_ok(), "{good}");
        }
    }
}
