//! Writes a classic Docker data root (overlay2) as the daemon leaves it on disk.
//!
//! ```text
//! <root>/
//!   image/overlay2/repositories.json
//!   image/overlay2/imagedb/{content,metadata}/sha256/<image>
//!   image/overlay2/layerdb/sha256/<chain>/{diff,size,cache-id,parent,tar-split.json.gz}
//!   image/overlay2/layerdb/mounts/<container>/{mount-id,init-id,parent}
//!   overlay2/<cache-id>/{diff/,link,lower,committed,work/}
//!   overlay2/l/<26 characters> -> ../<cache-id>/diff
//!   containers/<container>/{config.v2.json,hostconfig.json}
//! ```
//!
//! Image IDs, diff IDs and chain IDs are true ones as far as a store can tell: an image's ID is the hash of its config, a chain ID
//! follows from the diff IDs. A diff ID is a number drawn once and not the hash of a tar, since no tar is made. The names are the same at each run.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::ops::Deref;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A gzip stream of no bytes, as the tar-split of a layer whose tar had no entries.
const EMPTY_GZIP: [u8; 20] = [0x1f, 0x8b, 0x08, 0, 0, 0, 0, 0, 0, 0xff, 0x03, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const CREATED: &str = "2024-05-06T07:08:09.123456789Z";

/// The lower-case hexadecimal SHA-256 of some bytes.
pub fn sha256_hex(bytes: impl AsRef<[u8]>) -> String {
    hex(&Sha256::digest(bytes.as_ref()))
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// One layer that was written; cheap to clone.
#[derive(Clone, Debug)]
pub struct LayerRef(Arc<LayerRecord>);

/// What was written of a layer. IDs of 64 digits, without `sha256:`.
#[derive(Debug)]
pub struct LayerRecord {
    pub diff_id: String,
    pub chain_id: String,
    pub cache_id: String,
    /// The name in `overlay2/l`.
    pub link: String,
    pub parent: Option<LayerRef>,
    /// The text of `lower`: `l/AAA:l/BBB`, nearest first; empty for a base layer.
    pub lower: String,
    /// `layerdb/sha256/<chain>`.
    pub layerdb: PathBuf,
    /// `overlay2/<cache-id>`.
    pub dir: PathBuf,
}

impl Deref for LayerRef {
    type Target = LayerRecord;
    fn deref(&self) -> &LayerRecord {
        &self.0
    }
}

impl LayerRecord {
    /// The directory that holds the layer's own files.
    pub fn diff_dir(&self) -> PathBuf {
        self.dir.join("diff")
    }

    /// Writes the number that `docker image ls` would sum up; a new layer has 0.
    pub fn set_size(&self, bytes: u64) {
        write(&self.layerdb.join("size"), bytes.to_string());
    }
}

/// An image's ID: 64 digits, without `sha256:`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageId(pub String);

/// One container that was written.
#[derive(Clone, Debug)]
pub struct ContainerRef {
    pub id: String,
    pub name: String,
    pub mount_id: String,
    overlay2: PathBuf,
    root: PathBuf,
}

impl ContainerRef {
    /// The writable layer's files.
    pub fn upper_dir(&self) -> PathBuf {
        self.overlay2.join(&self.mount_id).join("diff")
    }

    /// The directory that the daemon gives the kernel as workdir.
    pub fn work_dir(&self) -> PathBuf {
        self.overlay2.join(&self.mount_id).join("work")
    }

    /// The files of the layer between the image and the writable one.
    pub fn init_dir(&self) -> PathBuf {
        self.overlay2.join(format!("{}-init", self.mount_id)).join("diff")
    }

    /// `containers/<id>/config.v2.json`.
    pub fn config_path(&self) -> PathBuf {
        self.root.join("containers").join(&self.id).join("config.v2.json")
    }

    /// Puts into the init layer what the daemon puts there.
    pub fn write_init_files(&self) {
        let init = self.init_dir();
        for dir in ["dev/pts", "dev/shm", "etc", "proc", "sys"] {
            make_dirs(&init.join(dir));
        }
        for file in [".dockerenv", "dev/console", "etc/hosts", "etc/hostname", "etc/resolv.conf"] {
            write(&init.join(file), "");
        }
        symlink("/proc/mounts", init.join("etc/mtab")).expect("make etc/mtab");
    }
}

/// Writes a data root. Everything but `repositories.json` is on disk as soon as the method returns; that file comes with `finish`.
#[derive(Debug)]
pub struct StoreBuilder {
    root: PathBuf,
    drawn: u64,
    repositories: BTreeMap<String, Map<String, Value>>,
}

impl StoreBuilder {
    /// Makes the empty data root `root`, which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let builder = Self { root: root.into(), drawn: 0, repositories: BTreeMap::new() };
        for dir in [
            "image/overlay2/imagedb/content/sha256",
            "image/overlay2/imagedb/metadata/sha256",
            "image/overlay2/layerdb/sha256",
            "image/overlay2/layerdb/mounts",
            "image/overlay2/layerdb/tmp",
            "image/overlay2/distribution",
            "overlay2/l",
            "containers",
        ] {
            make_dirs(&builder.root.join(dir));
        }
        for private in ["image", "image/overlay2", "image/overlay2/layerdb"] {
            set_mode(&builder.root.join(private), 0o700);
        }
        set_mode(&builder.root, 0o710);
        builder
    }

    /// Has all that is drawn from now on differ from what another store draws that did not pass over as many.
    pub fn pass_over(&mut self, draws: u64) {
        self.drawn += draws;
    }

    /// The data root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `image/overlay2`.
    pub fn image_dir(&self) -> PathBuf {
        self.root.join("image/overlay2")
    }

    /// `overlay2`.
    pub fn overlay2(&self) -> PathBuf {
        self.root.join("overlay2")
    }

    /// Adds an empty layer upon `parent`.
    pub fn layer(&mut self, parent: Option<&LayerRef>) -> LayerRef {
        let diff_id = self.draw("diff");
        self.layer_of_diff(parent, &diff_id)
    }

    /// Adds an empty layer with a given diff ID (64 digits), as when two images share a diff on different parents.
    pub fn layer_of_diff(&mut self, parent: Option<&LayerRef>, diff_id: &str) -> LayerRef {
        let chain_id = match parent {
            None => diff_id.to_owned(),
            Some(below) => sha256_hex(format!("sha256:{} sha256:{diff_id}", below.chain_id)),
        };
        let cache_id = self.draw_cache_id();
        let lower = parent.map(|below| below.lower_of_child()).unwrap_or_default();
        let (dir, link) = self.layer_dir(&cache_id, &lower);
        if let Some(below) = parent {
            write(&below.dir.join("committed"), "");
        }

        let layerdb = self.image_dir().join("layerdb/sha256").join(&chain_id);
        make_dirs(&layerdb);
        set_mode(&layerdb, 0o700);
        write(&layerdb.join("diff"), format!("sha256:{diff_id}"));
        write(&layerdb.join("size"), "0");
        write(&layerdb.join("cache-id"), &cache_id);
        write(&layerdb.join("tar-split.json.gz"), EMPTY_GZIP);
        if let Some(below) = parent {
            write(&layerdb.join("parent"), format!("sha256:{}", below.chain_id));
        }
        LayerRef(Arc::new(LayerRecord {
            diff_id: diff_id.to_owned(),
            chain_id,
            cache_id,
            link,
            parent: parent.cloned(),
            lower,
            layerdb,
            dir,
        }))
    }

    /// Adds `count` empty layers, each upon the one before; base first.
    pub fn chain(&mut self, count: usize) -> Vec<LayerRef> {
        let mut layers: Vec<LayerRef> = Vec::with_capacity(count);
        for _ in 0..count {
            let layer = self.layer(layers.last());
            layers.push(layer);
        }
        layers
    }

    /// Adds an image of these layers, base first; each must lie upon the one before it.
    pub fn image(&mut self, layers: &[LayerRef]) -> ImageId {
        for pair in layers.windows(2) {
            let parent = pair[1].parent.as_ref().map(|below| &below.chain_id);
            assert_eq!(parent, Some(&pair[0].chain_id), "a layer upon the wrong one");
        }
        let history: Vec<Value> = (0..layers.len())
            .map(|n| json!({"created": CREATED, "created_by": format!("/bin/sh -c #(nop) COPY layer-{n} /")}))
            .chain([json!({"created": CREATED, "created_by": "CMD [\"/bin/sh\"]", "empty_layer": true})])
            .collect();
        let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", layer.diff_id)).collect();
        let mut rootfs = json!({"type": "layers"});
        if !diff_ids.is_empty() {
            rootfs["diff_ids"] = json!(diff_ids);
        }
        // The label makes two images of the same layers two images.
        let label = self.draw("label");
        self.image_of_config(&json!({
            "architecture": "amd64",
            "config": {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["/bin/sh"], "Labels": {"made": label}},
            "created": CREATED,
            "history": history,
            "os": "linux",
            "rootfs": rootfs,
        }))
    }

    /// Adds an image with exactly this config.
    pub fn image_of_config(&mut self, config: &Value) -> ImageId {
        let text = config.to_string();
        let id = sha256_hex(&text);
        let path = self.image_dir().join("imagedb/content/sha256").join(&id);
        write(&path, text);
        set_mode(&path, 0o600);
        ImageId(id)
    }

    /// Writes which image an image was built from by the classic builder.
    pub fn image_parent(&mut self, image: &ImageId, parent: &ImageId) {
        let dir = self.image_dir().join("imagedb/metadata/sha256").join(&image.0);
        make_dirs(&dir);
        write(&dir.join("parent"), format!("sha256:{}", parent.0));
        write(&dir.join("lastUpdated"), CREATED);
    }

    /// Gives an image a familiar name with its tag, such as `reg.example:5000/team/app:2`.
    pub fn tag(&mut self, name: &str, image: &ImageId) {
        let (repository, _) = name.rsplit_once(':').expect("a name with a tag");
        self.refer(repository, name, image);
    }

    /// Gives an image the name `<repository>@sha256:<manifest>`; a manifest's digest is not an image's ID.
    pub fn digest(&mut self, repository: &str, manifest: &str, image: &ImageId) {
        self.refer(repository, &format!("{repository}@sha256:{manifest}"), image);
    }

    fn refer(&mut self, repository: &str, reference: &str, image: &ImageId) {
        self.repositories
            .entry(repository.to_owned())
            .or_default()
            .insert(reference.to_owned(), json!(format!("sha256:{}", image.0)));
    }

    /// Adds a stopped container of `image`, whose topmost layer is `top`, with an empty writable layer and an empty init layer.
    pub fn container(&mut self, name: &str, image: &ImageId, top: Option<&LayerRef>) -> ContainerRef {
        let id = self.draw("container");
        let mount_id = self.draw("mount");
        let init_lower = top.map(|below| below.lower_of_child()).unwrap_or_default();
        let (init, link) = self.layer_dir(&format!("{mount_id}-init"), &init_lower);
        make_dirs(&init.join("work"));
        write(&init.join("committed"), "");
        let lower = match init_lower.as_str() {
            "" => format!("l/{link}"),
            below => format!("l/{link}:{below}"),
        };
        self.layer_dir(&mount_id, &lower);
        if let Some(below) = top {
            write(&below.dir.join("committed"), "");
        }

        let mounts = self.image_dir().join("layerdb/mounts").join(&id);
        make_dirs(&mounts);
        write(&mounts.join("mount-id"), &mount_id);
        write(&mounts.join("init-id"), format!("{mount_id}-init"));
        if let Some(below) = top {
            write(&mounts.join("parent"), format!("sha256:{}", below.chain_id));
        }
        let container =
            ContainerRef { id, name: name.to_owned(), mount_id, overlay2: self.overlay2(), root: self.root.clone() };
        self.write_container_config(&container, image);
        container
    }

    fn write_container_config(&self, container: &ContainerRef, image: &ImageId) {
        let config = json!({
            "StreamConfig": {},
            "State": {"Running": false, "Paused": false, "Restarting": false, "OOMKilled": false, "RemovalInProgress": false,
                "Dead": false, "Pid": 0, "ExitCode": 0, "Error": "", "StartedAt": CREATED, "FinishedAt": CREATED},
            "ID": container.id,
            "Created": CREATED,
            "Managed": false,
            "Path": "/bin/sh",
            "Args": [],
            "Config": {"Hostname": container.id[..12], "Image": format!("sha256:{}", image.0), "Cmd": ["/bin/sh"], "Labels": {}},
            "Image": format!("sha256:{}", image.0),
            "NetworkSettings": {},
            "LogPath": "",
            "Name": format!("/{}", container.name),
            "Driver": "overlay2",
            "OS": "linux",
            "MountLabel": "",
            "ProcessLabel": "",
            "RestartCount": 0,
            "MountPoints": {},
        });
        let path = container.config_path();
        let dir = self.root.join("containers").join(&container.id);
        make_dirs(&dir);
        set_mode(&dir, 0o710);
        write(&path, format!("{config}\n"));
        set_mode(&path, 0o600);
        write(&dir.join("hostconfig.json"), "{}");
    }

    /// Writes `repositories.json` with the names given so far.
    pub fn write_repositories(&self) {
        let path = self.image_dir().join("repositories.json");
        write(&path, json!({"Repositories": self.repositories}).to_string());
        set_mode(&path, 0o600);
    }

    /// Writes the names and hands out the data root.
    pub fn finish(self) -> PathBuf {
        self.write_repositories();
        self.root
    }

    /// `overlay2/<id>` with its short name, and that name.
    fn layer_dir(&mut self, id: &str, lower: &str) -> (PathBuf, String) {
        let dir = self.overlay2().join(id);
        make_dirs(&dir.join("diff"));
        set_mode(&dir, 0o710);
        set_mode(&dir.join("diff"), 0o755);
        let link = self.draw_link();
        symlink(format!("../{id}/diff"), self.overlay2().join("l").join(&link)).expect("make a short name");
        write(&dir.join("link"), &link);
        if !lower.is_empty() {
            write(&dir.join("lower"), lower);
            make_dirs(&dir.join("work"));
        }
        (dir, link)
    }

    /// 64 digits that were not drawn before.
    fn draw(&mut self, what: &str) -> String {
        self.drawn += 1;
        sha256_hex(format!("{what} {}", self.drawn))
    }

    /// A cache ID in the pulling daemon's form or, for every other layer, in BuildKit's.
    fn draw_cache_id(&mut self) -> String {
        let digits = self.draw("cache");
        if digits.as_bytes()[0].is_multiple_of(2) {
            digits
        } else {
            letters(&digits, b"0123456789abcdefghijklmnopqrstuvwxyz", 25)
        }
    }

    fn draw_link(&mut self) -> String {
        let digits = self.draw("link");
        letters(&digits, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 26)
    }
}

impl LayerRecord {
    /// The text of `lower` for a layer upon this one.
    fn lower_of_child(&self) -> String {
        match self.lower.as_str() {
            "" => format!("l/{}", self.link),
            below => format!("l/{}:{below}", self.link),
        }
    }
}

/// `count` letters of an alphabet, told by pairs of hexadecimal digits.
fn letters(digits: &str, alphabet: &[u8], count: usize) -> String {
    digits
        .as_bytes()
        .chunks(2)
        .take(count)
        .map(|pair| {
            let pair = str::from_utf8(pair).expect("digits");
            let number = usize::from_str_radix(pair, 16).expect("digits");
            char::from(alphabet[number % alphabet.len()])
        })
        .collect()
}

fn make_dirs(path: &Path) {
    fs::create_dir_all(path).unwrap_or_else(|error| panic!("make {path:?}: {error}"));
}

fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::write(path, content).unwrap_or_else(|error| panic!("write {path:?}: {error}"));
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .unwrap_or_else(|error| panic!("chmod {path:?}: {error}"));
}
