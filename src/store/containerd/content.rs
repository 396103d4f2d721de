//! The content store: documents by their digests, each read only if it is what its name says.
//!
//! ```text
//! io.containerd.content.v1.content/blobs/sha256/<hex>
//! ```
//!
//! Manifests and indexes are the OCI image specification's (manifest.md, image-index.md) and Docker's schema 2, which
//! have the same form. What a document is, its content says; what says two things is nothing (CVE-2021-41190).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};

use crate::digest::{ImageId, ManifestDigest};
use crate::error::{Error, Result};
use crate::meta::Meta;
use crate::name::TreePath;
use crate::root::Root;
use crate::store::reading::{JSON_MAX, path};
use crate::store::{Kept, Stamp};

pub(super) const FOLDER: &str = "io.containerd.content.v1.content";
pub(super) const BLOBS: &str = "blobs/sha256";
/// The most entries of an index that are looked at.
pub(super) const ENTRIES_MAX: usize = 1_000;

const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// What indexes say of signatures and the like beside an image's manifest.
const ATTESTATION: &str = "attestation-manifest";

/// The blobs of all namespaces.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) root: Arc<Root>,
    /// Guards the documents that were read; held only to look one up or to change the table.
    known: Mutex<BTreeMap<ManifestDigest, Known>>,
}

/// A document that was read, and the state of its file.
#[derive(Debug, Clone)]
struct Known {
    kept: Kept,
    document: Arc<Document>,
}

/// What a name or an index can lead to.
#[derive(Debug)]
pub(super) enum Document {
    /// Manifests and indexes of several platforms, in order; and how many more than are looked at.
    Index { entries: Vec<Listed>, left_out: usize },
    /// An image's config and layers.
    Manifest { config: ImageId },
    /// A manifest of something that is no image.
    Artifact,
}

/// A document as an index names it: no more of its text is held than is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listed {
    /// `None` where it has no SHA-256 digest.
    pub(super) digest: Option<ManifestDigest>,
    pub(super) named: Named,
    /// Whether it is for this machine, where the index says what it is for.
    pub(super) is_this_machines: Option<bool>,
}

/// What a document is named as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Named {
    Index,
    Manifest,
    /// Of no media type that is known here.
    Other,
}

/// A document as another names it.
#[derive(Debug, Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType", default)]
    media_type: Option<String>,
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<Annotations>,
}

/// What an image runs on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Annotations {
    #[serde(rename = "vnd.docker.reference.type", default)]
    reference_type: Option<String>,
}

#[derive(Deserialize)]
struct Written {
    #[serde(rename = "mediaType", default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<Entries>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<IgnoredAny>,
    #[serde(rename = "fsLayers", default)]
    fs_layers: Option<IgnoredAny>,
}

/// At most [`ENTRIES_MAX`] entries of an index that may be images, and how many more there are.
#[derive(Default)]
struct Entries {
    kept: Vec<Listed>,
    left_out: usize,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        from.deserialize_seq(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list of manifests")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Entries, A::Error> {
        let mut found = Entries::default();
        while found.kept.len() < ENTRIES_MAX
            && let Some(entry) = list.next_element::<Descriptor>()?
        {
            found.kept.extend(entry.listed());
        }
        while list.next_element::<IgnoredAny>()?.is_some() {
            found.left_out = found.left_out.saturating_add(1);
        }
        Ok(found)
    }
}

impl Named {
    pub(super) fn of(media_type: &str) -> Self {
        match (INDEXES.contains(&media_type), MANIFESTS.contains(&media_type)) {
            (true, _) => Self::Index,
            (_, true) => Self::Manifest,
            (false, false) => Self::Other,
        }
    }

    /// Whether a document that is an index, or else a manifest, may be named so.
    fn fits(self, is_index: bool) -> bool {
        match self {
            Self::Index => is_index,
            Self::Manifest => !is_index,
            Self::Other => true,
        }
    }
}

impl Descriptor {
    /// What is held of it; `None` where it names no image.
    fn listed(&self) -> Option<Listed> {
        (!self.is_attestation()).then(|| Listed {
            digest: self.digest.as_deref().and_then(|digest| digest.parse().ok()),
            named: Named::of(self.media_type.as_deref().unwrap_or_default()),
            is_this_machines: self.platform.as_ref().map(Platform::is_this),
        })
    }

    /// Whether it names no image, but what is said of one.
    fn is_attestation(&self) -> bool {
        let reference_type = self.annotations.as_ref().and_then(|annotations| annotations.reference_type.as_deref());
        let is_unknown = |part: &Option<String>| part.as_deref() == Some("unknown");
        let is_nowhere = self.platform.as_ref().is_some_and(|it| is_unknown(&it.os) && is_unknown(&it.architecture));
        reference_type == Some(ATTESTATION) || is_nowhere
    }
}

impl Platform {
    /// This machine's, as Go names it.
    pub(super) fn is_this(&self) -> bool {
        let this = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        self.os.as_deref() == Some("linux") && self.architecture.as_deref() == Some(this)
    }
}

/// The file of a blob.
pub(super) fn blob_of(hex: &str) -> TreePath {
    path(&format!("{BLOBS}/{hex}"))
}

impl Content {
    pub(super) fn new(root: Root) -> Self {
        Self { root: Arc::new(root), known: Mutex::default() }
    }

    /// A blob with its attributes, if it is the one; `None` where it is not here.
    ///
    /// # Errors
    /// [`Error::Damaged`] where its SHA-256 is not its name; [`Error::Io`].
    pub(super) fn read(&self, hex: &str) -> Result<Option<(Vec<u8>, Meta)>> {
        let file = blob_of(hex);
        let Some((bytes, meta)) = self.root.read(&file, JSON_MAX)? else { return Ok(None) };
        let found = ImageId::of_config(&bytes).hex();
        if found != hex {
            return Err(Error::damaged(self.root.shown(&file), format!("its SHA-256 is {found}, not its name")));
        }
        Ok(Some((bytes, meta)))
    }

    /// A manifest or an index; `None` where it is not here.
    ///
    /// # Errors
    /// [`Error::Damaged`] where it is neither; [`Error::Io`].
    pub(super) fn document(&self, digest: &ManifestDigest, named: Named) -> Result<Option<Arc<Document>>> {
        let file = blob_of(&digest.hex());
        let Some(found) = self.root.stat(&file)? else { return Ok(None) };
        let known = self.known.lock().get(digest).cloned();
        let document = match known.filter(|known| known.kept.stamp == Stamp::from(&found)) {
            Some(known) => known.document,
            None => {
                let Some((bytes, meta)) = self.read(&digest.hex())? else { return Ok(None) };
                let document = parse(&bytes).map_err(|why| Error::damaged(self.root.shown(&file), why))?;
                let document = Arc::new(document);
                self.known.lock().insert(*digest, Known { kept: Kept::from(&meta), document: Arc::clone(&document) });
                document
            }
        };
        let is_index = matches!(*document, Document::Index { .. });
        if !named.fits(is_index) {
            let (one, other) = if is_index { ("a manifest", "an index") } else { ("an index", "a manifest") };
            let why = format!("it is named as {one}, and is {other}");
            return Err(Error::damaged(self.root.shown(&file), why));
        }
        Ok(Some(document))
    }

    /// A document that was read.
    pub(super) fn kept(&self, digest: &ManifestDigest) -> Option<Kept> {
        self.known.lock().get(digest).map(|known| known.kept)
    }

    /// Forgets the documents that are not among these, or all where everything is to be read again.
    pub(super) fn keep(&self, wanted: impl Fn(&ManifestDigest) -> bool) {
        self.known.lock().retain(|digest, _| wanted(digest));
    }
}

fn parse(bytes: &[u8]) -> std::result::Result<Document, String> {
    let written: Written =
        serde_json::from_slice(bytes).map_err(|error| format!("neither a manifest nor an index: {error}"))?;
    let is_manifest = written.config.is_some() || written.layers.is_some();
    if is_manifest && written.manifests.is_some() {
        return Err("it has manifests as an index, and layers as a manifest".to_owned());
    }
    let is_index = written.manifests.is_some();
    let media_type = written.media_type.unwrap_or_default();
    if !Named::of(&media_type).fits(is_index) {
        return Err(format!("it calls itself {media_type:?}, which it is not"));
    }
    if let Some(Entries { kept, left_out }) = written.manifests {
        return Ok(Document::Index { entries: kept, left_out });
    }
    let Some(config) = written.config else {
        return Err(match written.fs_layers {
            Some(_) => "a manifest of the first schema, which is not supported".to_owned(),
            None => "neither a manifest nor an index".to_owned(),
        });
    };
    let media_type = config.media_type.unwrap_or_default();
    if !CONFIGS.contains(&media_type.as_str()) {
        return Ok(Document::Artifact);
    }
    match config.digest.unwrap_or_default().parse() {
        Ok(config) => Ok(Document::Manifest { config }),
        Err(_) => Err("its config has no SHA-256 digest".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> String {
        match parse(text.as_bytes()) {
            Ok(Document::Index { entries, left_out }) => format!("index of {} and {left_out}", entries.len()),
            Ok(Document::Manifest { config }) => format!("manifest of {}", config.hex().get(..4).unwrap()),
            Ok(Document::Artifact) => "artifact".to_owned(),
            Err(why) => why,
        }
    }

    #[test]
    fn what_a_document_is() {
        let config = format!(r#""config":{{"mediaType":"{}","digest":"sha256:{}"}}"#, CONFIGS[0], "ab".repeat(32));
        let (index, manifest) = (INDEXES[1], MANIFESTS[0]);
        for (text, expected) in [
            (r#"{"manifests":[]}"#.to_owned(), "index of 0 and 0"),
            (format!(r#"{{"mediaType":"{index}","manifests":[{{}},{{"digest":"x"}}]}}"#), "index of 2 and 0"),
            (format!(r#"{{"manifests":[{}{{}}]}}"#, "{},".repeat(1_004)), "index of 1000 and 5"),
            (format!(r#"{{{config},"layers":[{{}}]}}"#), "manifest of abab"),
            (format!(r#"{{"mediaType":"{manifest}",{config}}}"#), "manifest of abab"),
            (r#"{"config":{"mediaType":"x/y","digest":"sha256:1"}}"#.to_owned(), "artifact"),
            (format!(r#"{{{config},"manifests":[]}}"#), "it has manifests as an index, and layers as a manifest"),
            (r#"{"layers":[],"manifests":[]}"#.to_owned(), "it has manifests as an index, and layers as a manifest"),
            (
                format!(r#"{{"mediaType":"{manifest}","manifests":[]}}"#),
                "it calls itself \"application/vnd.oci.image.manifest.v1+json\", which it is not",
            ),
            (
                format!(r#"{{"mediaType":"{index}",{config}}}"#),
                "it calls itself \"application/vnd.docker.distribution.manifest.list.v2+json\", which it is not",
            ),
            (format!(r#"{{"config":{{"mediaType":"{}"}}}}"#, CONFIGS[1]), "its config has no SHA-256 digest"),
            (r#"{"fsLayers":[]}"#.to_owned(), "a manifest of the first schema, which is not supported"),
            ("{}".to_owned(), "neither a manifest nor an index"),
        ] {
            assert_eq!(told(&text), expected, "{text}");
        }
        for none in ["", "[]", "{", r#"{"manifests":7}"#, r#"{"manifests":[7]}"#, r#"{"manifests":[],"manifests":[]}"#]
        {
            assert!(told(none).starts_with("neither a manifest nor an index"), "{none}");
        }
    }

    #[test]
    fn what_names_no_image() {
        let is_attestation = |text: &str| serde_json::from_str::<Descriptor>(text).unwrap().is_attestation();
        assert!(is_attestation(r#"{"annotations":{"vnd.docker.reference.type":"attestation-manifest","x":"y"}}"#));
        assert!(is_attestation(r#"{"platform":{"os":"unknown","architecture":"unknown"}}"#));
        for image in [r#"{}"#, r#"{"platform":{"os":"linux","architecture":"unknown"}}"#, r#"{"annotations":null}"#] {
            assert!(!is_attestation(image), "{image}");
        }
    }
}
