//! What is stored beside the list for each image ("big data"): its config, manifests and signatures.
//!
//! ```text
//! <driver>-images/<image ID>/
//!   =c2hhMjU2OjAx…            the config; the name is base64 of `sha256:<image ID>`
//!   manifest                  the manifest that was written last
//!   =bWFuaWZlc3Qtc2hhMj…      a manifest by its digest, `manifest-sha256:<digest>`
//! ```

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};

use crate::digest::{ImageId, ManifestDigest};
use crate::name::Name;

/// The largest document that is read, in bytes; containers/image accepts manifests and configs of 4 MiB.
pub(super) const DOCUMENT_MAX: usize = 4 << 20;
/// The longest file name, in bytes.
const FILE_NAME_MAX: usize = 255;
/// The most instances of a list that are looked at.
const INSTANCES_MAX: usize = 1_000;

/// The key of the manifest that was written last.
pub(super) const MANIFEST: &str = "manifest";

/// The key of a manifest by its digest.
pub(super) fn manifest_key(digest: &ManifestDigest) -> String {
    format!("{MANIFEST}-{digest}")
}

/// The names that the file of a key may have, the likelier first; none for a key that no file can have
/// (`makeBigDataBaseName()` in containers/storage).
///
/// The engine's test whether a key is plain leaves out its last character.
pub(super) fn file_names(key: &str) -> Vec<Name> {
    let is_plain = |bytes: &[u8]| bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'.');
    let encoded = || format!("={}", STANDARD.encode(key)).into_bytes();
    let own = key.as_bytes().to_vec();
    let candidates = match own.split_last() {
        _ if own.len() > FILE_NAME_MAX => Vec::new(),
        None => Vec::new(),
        Some(_) if is_plain(&own) => vec![own],
        Some((_, rest)) if is_plain(rest) => vec![encoded(), own],
        Some(_) => vec![encoded()],
    };
    let fits = |name: &Vec<u8>| name.len() <= FILE_NAME_MAX && !name.contains(&b'/');
    candidates.into_iter().filter(fits).filter_map(|name| Name::new(&name)).collect()
}

/// What a manifest says, as far as stores ask.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    /// Of a list, one for each platform.
    #[serde(default, deserialize_with = "present")]
    manifests: Option<Instances>,
}

/// What a list of images may call itself.
const LIST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];

/// What stands under a key that is there: an empty list is `null`, as Go writes it.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Instances>, D::Error> {
    Option::<Instances>::deserialize(from).map(|found| Some(found.unwrap_or_default()))
}

#[derive(Debug, Deserialize)]
struct Descriptor {
    #[serde(default)]
    digest: Option<String>,
}

/// An image that a list names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instance {
    pub(super) digest: ManifestDigest,
    /// Whether it is for this machine's platform.
    is_own: bool,
}

#[derive(Debug, Default)]
struct Instances(Vec<Instance>);

#[derive(Deserialize)]
struct InstanceEntry {
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
}

impl<'de> Deserialize<'de> for Instances {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(InstancesVisitor)
    }
}

struct InstancesVisitor;

impl<'de> Visitor<'de> for InstancesVisitor {
    type Value = Instances;

    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("a list of manifests")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Instances, A::Error> {
        let mut instances = Vec::new();
        while instances.len() < INSTANCES_MAX
            && let Some(entry) = list.next_element::<InstanceEntry>()?
        {
            let Some(digest) = entry.digest.and_then(|digest| digest.parse().ok()) else { continue };
            let is_own = entry.platform.is_some_and(|platform| platform.is_own());
            instances.push(Instance { digest, is_own });
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Instances(instances))
    }
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// Why it is none.
    pub(super) fn parse(content: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(content).map_err(|error| format!("no manifest: {error}"))
    }

    /// Whether the digest is that of the bytes: of Docker's oldest form it is of the bytes without their signatures.
    pub(super) fn is_hashed(&self) -> bool {
        self.schema_version != Some(1)
    }

    /// Whether this is a list of manifests.
    pub(super) fn is_list(&self) -> bool {
        let is_called_one = || self.media_type.as_deref().is_some_and(|own| LIST_TYPES.contains(&own));
        self.config.is_none() && (self.manifests.is_some() || is_called_one())
    }

    /// The digest of the config.
    pub(super) fn config(&self) -> Option<ImageId> {
        self.config.as_ref()?.digest.as_ref()?.parse().ok()
    }

    /// The images of a list, those for this machine's platform first.
    pub(super) fn instances(&self) -> Vec<&Instance> {
        let all = || self.manifests.iter().flat_map(|Instances(all)| all);
        let is_own = |instance: &&Instance| instance.is_own;
        all().filter(is_own).chain(all().filter(|instance| !is_own(instance))).collect()
    }
}

impl Platform {
    fn is_own(&self) -> bool {
        self.os.as_deref() == Some("linux") && self.architecture.as_deref() == Some(architecture())
    }
}

/// This machine's architecture as Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_keys() {
        // Computed with base64(1).
        let names = |key: &str| {
            file_names(key).iter().map(|n| String::from_utf8_lossy(n.as_bytes()).into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names("manifest"), ["manifest"]);
        assert_eq!(names("instances.json"), ["instances.json"]);
        assert_eq!(names("sha256:ab"), ["=c2hhMjU2OmFi"]);
        assert_eq!(names("manifest-sha256:ab"), ["=bWFuaWZlc3Qtc2hhMjU2OmFi"]);
        assert_eq!(names("a-"), ["=YS0=", "a-"]);
        // Its encoding has a slash: `Pz8/`.
        assert_eq!(names("???"), [""; 0]);
        assert_eq!(names("a/"), ["=YS8="]);
        for none in ["", ".", "..", "../../etc/passwd?\u{3f}\u{ff}", &"k".repeat(256), &"K".repeat(200)] {
            assert_eq!(names(none).iter().filter(|name| name.contains('/') || name.len() > 255).count(), 0, "{none}");
        }
        assert_eq!(names("."), [""; 0]);
        assert_eq!(names(".."), [""; 0]);
        assert_eq!(names(&"K".repeat(200)), [""; 0]);
    }

    #[test]
    fn this_machines_instance_comes_first() {
        let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
        let entry = |digit, os, arch| {
            format!("{{\"digest\":\"{}\",\"platform\":{{\"os\":\"{os}\",\"architecture\":\"{arch}\"}}}}", digest(digit))
        };
        let list =
            [entry("a", "linux", "s390x"), entry("b", "windows", architecture()), entry("c", "linux", architecture())];
        let list =
            Manifest::parse(format!("{{\"manifests\":[{},{{}},{{\"digest\":\"x\"}}]}}", list.join(",")).as_bytes())
                .unwrap();
        assert!(list.is_list());
        let order: Vec<String> = list.instances().iter().map(|instance| instance.digest.to_string()).collect();
        assert_eq!(order, [digest("c"), digest("a"), digest("b")]);
        let is_list = |text: &str| Manifest::parse(text.as_bytes()).unwrap().is_list();
        assert!(!is_list("{\"config\":{},\"layers\":[]}"));
        assert!(!is_list("{\"schemaVersion\":2}"));
        // As podman writes one without images.
        assert!(is_list("{\"schemaVersion\":2,\"manifests\":null}"));
        assert!(is_list("{\"mediaType\":\"application/vnd.oci.image.index.v1+json\"}"));
    }
}
