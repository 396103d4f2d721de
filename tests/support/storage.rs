//! Writes a store of containers/storage as podman leaves it on disk, for what no engine here makes.
//!
//! ```text
//! <root>/
//!   overlay-images/images.json, images.lock, <image ID>/{manifest,=<base64>}
//!   overlay-layers/layers.json, volatile-layers.json
//!   overlay-containers/containers.json, volatile-containers.json
//!   overlay/<layer ID>/{diff/,link,work/}, overlay/.has-mount-program
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::store::sha256_hex;

/// A store that is being written.
#[derive(Debug)]
pub struct StorageBuilder {
    root: PathBuf,
    driver: &'static str,
    pub images: Vec<Value>,
    pub layers: Vec<Value>,
    pub volatile_layers: Vec<Value>,
    pub containers: Vec<Value>,
    pub volatile_containers: Vec<Value>,
}

/// A layer that was written.
#[derive(Debug, Clone)]
pub struct StorageLayer {
    pub id: String,
    /// Without `sha256:`.
    pub diff: String,
    pub dir: PathBuf,
}

/// The ID that this text stands for.
pub fn id_of(text: &str) -> String {
    sha256_hex(text)
}

/// Base64 as RFC 4648 has it, with padding.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let word = three.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = usize::try_from(word >> (18 - 6 * place) & 63).unwrap();
            text.push(if place <= three.len() { char::from(DIGITS[digit]) } else { '=' });
        }
    }
    text
}

impl StorageBuilder {
    /// A store with nothing in it.
    pub fn new(root: &Path, driver: &'static str) -> Self {
        for folder in ["images", "layers", "containers"] {
            fs::create_dir_all(root.join(format!("{driver}-{folder}"))).unwrap();
        }
        fs::create_dir_all(root.join(driver).join(if driver == "vfs" { "dir" } else { "l" })).unwrap();
        let root = root.to_owned();
        let lists = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (images, layers, volatile_layers, containers, volatile_containers) = lists;
        Self { root, driver, images, layers, volatile_layers, containers, volatile_containers }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn layer_dir(&self, id: &str) -> PathBuf {
        match self.driver {
            "vfs" => self.root.join("vfs/dir").join(id),
            driver => self.root.join(driver).join(id).join("diff"),
        }
    }

    /// A layer upon another, with this in its directory's file `name`.
    pub fn layer(&mut self, name: &str, parent: Option<&StorageLayer>) -> StorageLayer {
        let (id, diff) = (id_of(&format!("layer {name}")), id_of(&format!("diff {name}")));
        let dir = self.layer_dir(&id);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(name), format!("{name}\n")).unwrap();
        let split = self.root.join(format!("{}-layers/{id}.tar-split.gz", self.driver));
        fs::write(split, "").unwrap();
        let mut entry = json!({
            "id": id, "created": "2026-01-02T03:04:05Z", "diff-digest": format!("sha256:{diff}"), "diff-size": 2048,
            "compressed-diff-digest": format!("sha256:{diff}"), "uidset": [0], "gidset": [0],
        });
        if let Some(parent) = parent {
            entry["parent"] = json!(parent.id);
        }
        self.layers.push(entry);
        StorageLayer { id, diff, dir }
    }

    /// The entry of a layer, to be changed.
    pub fn entry(&mut self, layer: &StorageLayer) -> &mut Map<String, Value> {
        let entry = self.layers.iter_mut().find(|entry| entry["id"] == json!(layer.id)).unwrap();
        entry.as_object_mut().unwrap()
    }

    /// Writes a document of an image, and lists its key.
    pub fn document(&self, image: &str, key: &str, content: &[u8]) -> PathBuf {
        let plain = key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.');
        let name = if plain { key.to_owned() } else { format!("={}", base64(key.as_bytes())) };
        let dir = self.root.join(format!("{}-images", self.driver)).join(image);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(&name), content).unwrap();
        dir.join(name)
    }

    /// An image of these layers, bottom first; its config names these diff IDs.
    pub fn image_of(&mut self, names: &[&str], diffs: &[String], top: Option<&StorageLayer>) -> String {
        let diffs: Vec<String> = diffs.iter().map(|diff| format!("sha256:{diff}")).collect();
        let history: Vec<Value> = diffs.iter().map(|diff| json!({"created_by": diff})).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": names, "rootfs": {"type": "layers", "diff_ids": diffs},
            "history": history,
        });
        let config = serde_json::to_vec(&config).unwrap();
        let id = sha256_hex(&config);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"digest": format!("sha256:{id}"), "size": config.len()}, "layers": [],
        });
        self.image_entry(&id, &id, names, &config, &serde_json::to_vec(&manifest).unwrap(), top);
        id
    }

    /// An image of a stack, bottom first.
    pub fn image(&mut self, names: &[&str], stack: &[&StorageLayer]) -> String {
        let diffs: Vec<String> = stack.iter().map(|layer| layer.diff.clone()).collect();
        self.image_of(names, &diffs, stack.last().copied())
    }

    /// An image with this ID, whose config has another one perhaps.
    pub fn image_entry(
        &mut self,
        id: &str,
        config_id: &str,
        names: &[&str],
        config: &[u8],
        manifest: &[u8],
        top: Option<&StorageLayer>,
    ) {
        let digest = format!("sha256:{}", sha256_hex(manifest));
        let keys = [format!("sha256:{config_id}"), "manifest".to_owned(), format!("manifest-{digest}")];
        for (key, content) in keys.iter().zip([config, manifest, manifest]) {
            self.document(id, key, content);
        }
        let mut entry = json!({
            "id": id, "digest": digest, "names": names, "big-data-names": keys, "metadata": "{\"x\":[1]}",
            "created": "0001-01-01T00:00:00Z",
        });
        if let Some(top) = top {
            entry["layer"] = json!(top.id);
        }
        self.images.push(entry);
    }

    /// A list of images, by their manifests' digests and architectures.
    pub fn list(&mut self, names: &[&str], instances: &[(&str, &str)]) -> String {
        let instance = |(digest, architecture): &(&str, &str)| json!({"digest": digest, "size": 7, "platform": {"os": "linux", "architecture": architecture}});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": instances.iter().map(instance).collect::<Vec<_>>(),
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let digest = sha256_hex(&manifest);
        let id = id_of(&format!("list {digest}"));
        self.document(&id, "manifest", &manifest);
        self.document(&id, "instances.json", b"{}");
        self.images.push(json!({
            "id": id, "digest": format!("sha256:{digest}"), "names": names,
            "big-data-names": ["manifest", "instances.json"],
        }));
        id
    }

    /// The digest of the manifest of an image.
    pub fn digest_of(&self, image: &str) -> String {
        let entry = self.images.iter().find(|entry| entry["id"] == json!(image)).unwrap();
        entry["digest"].as_str().unwrap().to_owned()
    }

    /// An entry of a container with a layer of its own, which the caller lists.
    pub fn container(&mut self, name: &str, image: &str, parent: &StorageLayer) -> (Value, Value, StorageLayer) {
        let layer = self.layer(&format!("of-{name}"), Some(parent));
        let listed = self.layers.pop().unwrap();
        let listed = json!({"id": listed["id"], "parent": listed["parent"], "names": [format!("{name}-layer")]});
        let container = json!({
            "id": id_of(&format!("container {name}")), "names": [name], "image": image, "layer": layer.id,
            "metadata": "{}", "created": "2026-01-02T03:04:05Z",
        });
        (container, listed, layer)
    }

    /// Writes the lists.
    pub fn write(&self) {
        let lists = [
            ("images/images.json", &self.images),
            ("layers/layers.json", &self.layers),
            ("layers/volatile-layers.json", &self.volatile_layers),
            ("containers/containers.json", &self.containers),
            ("containers/volatile-containers.json", &self.volatile_containers),
        ];
        for (file, entries) in lists {
            if !file.contains("volatile") || !entries.is_empty() {
                self.write_list(file, &serde_json::to_vec(entries).unwrap());
            }
        }
    }

    /// Replaces a list, as the engine does.
    pub fn write_list(&self, file: &str, content: &[u8]) {
        let file = self.root.join(format!("{}-{file}", self.driver));
        let fresh = file.with_extension("json.fresh");
        fs::write(&fresh, content).unwrap();
        fs::rename(fresh, file).unwrap();
    }
}
