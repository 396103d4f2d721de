//! Writes a root of containerd's by hand: databases, blobs and snapshots, sound or not.
//!
//! The form of the databases follows containerd's `metadata/buckets.go` and `snapshots/storage/bolt.go`; that bbolt
//! reads such files is shown by `tests/bolt.rs`.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::bolt::{self, BUCKET, Pages};
use super::support::store::sha256_hex;

pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The bytes of a page.
const PAGE: usize = 4_096;

/// What a bucket holds, by its keys.
pub(crate) type Tree = BTreeMap<Vec<u8>, Item>;

#[derive(Clone, Debug)]
pub(crate) enum Item {
    Value(Vec<u8>),
    Bucket(Tree),
}

/// The bucket at the end of a path, made where it is missing.
pub(crate) fn at<'t>(tree: &'t mut Tree, path: &[&str]) -> &'t mut Tree {
    path.iter().fold(tree, |tree, name| {
        let item = tree.entry(name.as_bytes().to_vec()).or_insert_with(|| Item::Bucket(Tree::new()));
        match item {
            Item::Bucket(below) => below,
            Item::Value(_) => panic!("{name} is a value"),
        }
    })
}

pub(crate) fn put(tree: &mut Tree, path: &[&str], value: impl Into<Vec<u8>>) {
    let (name, dir) = path.split_last().unwrap();
    at(tree, dir).insert(name.as_bytes().to_vec(), Item::Value(value.into()));
}

/// A number as Go's `PutUvarint` writes it.
pub(crate) fn unsigned(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// A time as Go's `Time.MarshalBinary` writes it.
pub(crate) fn time(seconds: i64) -> Vec<u8> {
    [&[1][..], &(seconds + 62_135_596_800).to_be_bytes(), &[0; 4], &[0xff, 0xff]].concat()
}

fn items(tree: &Tree) -> Vec<bolt::Item<'_>> {
    tree.iter()
        .map(|(key, item)| match item {
            Item::Value(value) => (0, key.as_slice(), value.clone()),
            Item::Bucket(below) => {
                (BUCKET, key.as_slice(), [bolt::bucket(0, 0), bolt::leaf(0, &items(below))].concat())
            }
        })
        .collect()
}

/// The database with this root bucket, in one leaf of as many pages as it takes.
pub(crate) fn database(tree: &Tree, transaction: u64) -> Vec<u8> {
    let mut leaf = bolt::leaf(2, &items(tree));
    let overflow = (leaf.len().div_ceil(PAGE) - 1) as u32;
    leaf[12..16].copy_from_slice(&overflow.to_le_bytes());
    leaf.resize((overflow as usize + 1) * PAGE, 0);
    Pages { transaction, ..Pages::new(PAGE, &[leaf]) }.bytes()
}

/// A root of containerd's that is being written.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) root: PathBuf,
    pub(crate) meta: Tree,
    pub(crate) snapshots: BTreeMap<String, Tree>,
    next: u64,
    transaction: u64,
}

impl Store {
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        fs::create_dir_all(root.join(BLOBS)).unwrap();
        fs::create_dir_all(root.join("io.containerd.metadata.v1.bolt")).unwrap();
        for snapshotter in ["overlayfs", "native"] {
            fs::create_dir_all(folder(&root, snapshotter).join("snapshots")).unwrap();
        }
        let mut meta = Tree::new();
        put(&mut meta, &["v1", "version"], [6]);
        Self { root, meta, snapshots: BTreeMap::new(), next: 0, transaction: 6 }
    }

    pub(crate) fn blob_path(&self, digest: &str) -> PathBuf {
        self.root.join(BLOBS).join(digest.strip_prefix("sha256:").unwrap())
    }

    /// Stores a blob; the answer is its descriptor.
    pub(crate) fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = format!("sha256:{}", sha256_hex(bytes));
        fs::write(self.blob_path(&digest), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    pub(crate) fn document(&self, media_type: &str, document: &Value) -> Value {
        self.blob(media_type, document.to_string().as_bytes())
    }

    /// Gives a target a name in a namespace, at a time in seconds.
    pub(crate) fn name(&mut self, namespace: &str, name: &str, target: &Value, seconds: i64) {
        let image = ["v1", namespace, "images", name];
        let text = |field: &str| target[field].as_str().unwrap().as_bytes().to_vec();
        put(&mut self.meta, &[&image[..], &["target", "digest"]].concat(), text("digest"));
        put(&mut self.meta, &[&image[..], &["target", "mediatype"]].concat(), text("mediaType"));
        put(&mut self.meta, &[&image[..], &["updatedat"]].concat(), time(seconds));
    }

    /// A snapshot of a key upon another; the answer is the directory of its files.
    pub(crate) fn snapshot(
        &mut self,
        namespace: &str,
        snapshotter: &str,
        key: &str,
        parent: Option<&str>,
        kind: u8,
    ) -> PathBuf {
        self.next += 1;
        let (number, name) = (self.next, format!("{namespace}/{}/{key}", self.next));
        let place = ["v1", namespace, "snapshots", snapshotter];
        let below =
            parent.map(|parent| match &at(&mut self.meta, &[&place[..], &[parent]].concat())[b"name".as_slice()] {
                Item::Value(name) => name.clone(),
                Item::Bucket(_) => panic!("{parent} has no name"),
            });
        put(&mut self.meta, &[&place[..], &[key, "name"]].concat(), name.as_bytes());
        let own = self.snapshots.entry(snapshotter.to_owned()).or_default();
        put(own, &["v1", "snapshots", &name, "id"], unsigned(number));
        put(own, &["v1", "snapshots", &name, "kind"], [kind]);
        put(own, &["v1", "snapshots", &name, "size"], unsigned(number * 2_000));
        if let (Some(parent), Some(below)) = (parent, below) {
            put(&mut self.meta, &[&place[..], &[key, "parent"]].concat(), parent.as_bytes());
            put(own, &["v1", "snapshots", &name, "parent"], below);
        }
        let inner = if snapshotter == "native" { "" } else { "fs" };
        let files = folder(&self.root, snapshotter).join(format!("snapshots/{number}")).join(inner);
        fs::create_dir_all(&files).unwrap();
        files
    }

    /// An image of layers that each hold one file with their text, unpacked in a namespace under a name.
    pub(crate) fn image(&mut self, namespace: &str, name: &str, layers: &[&str]) -> Image {
        let image = self.packed(layers);
        let mut below: Option<String> = None;
        let mut directories = Vec::new();
        for (number, (text, chain)) in layers.iter().zip(&image.chains).enumerate() {
            let files = self.snapshot(namespace, "overlayfs", chain, below.as_deref(), 3);
            fs::write(files.join(format!("file-{number}")), text).unwrap();
            directories.push(files);
            below = Some(chain.clone());
        }
        self.name(namespace, name, &image.manifest, 1_700_000_000);
        Image { directories, ..image }
    }

    /// An image's documents alone.
    pub(crate) fn packed(&self, layers: &[&str]) -> Image {
        let diff = |text: &&str| format!("sha256:{}", sha256_hex(text));
        let diffs: Vec<String> = layers.iter().map(diff).collect();
        let history: Vec<Value> = layers.iter().map(|text| json!({ "created_by": format!("make {text}") })).collect();
        let rootfs = json!({ "type": "layers", "diff_ids": diffs });
        let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": rootfs, "history": history });
        let config = self.document(CONFIG, &config);
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [] });
        let manifest = self.document(MANIFEST, &manifest);
        let mut chains: Vec<String> = Vec::new();
        for diff in &diffs {
            chains.push(match chains.last() {
                None => diff.clone(),
                Some(below) => format!("sha256:{}", sha256_hex(format!("{below} {diff}"))),
            });
        }
        Image { config: config["digest"].as_str().unwrap().to_owned(), manifest, chains, directories: Vec::new() }
    }

    /// Writes the databases.
    pub(crate) fn write(&mut self) {
        self.transaction += 1;
        fs::write(self.meta_path(), database(&self.meta, self.transaction)).unwrap();
        for (snapshotter, tree) in &self.snapshots {
            let path = folder(&self.root, snapshotter).join("metadata.db");
            fs::write(path, database(tree, self.transaction)).unwrap();
        }
    }

    pub(crate) fn meta_path(&self) -> PathBuf {
        self.root.join("io.containerd.metadata.v1.bolt/meta.db")
    }
}

const BLOBS: &str = "io.containerd.content.v1.content/blobs/sha256";

pub(crate) fn folder(root: &Path, snapshotter: &str) -> PathBuf {
    root.join(format!("io.containerd.snapshotter.v1.{snapshotter}"))
}

/// An image of a store.
#[derive(Debug)]
pub(crate) struct Image {
    /// The config's digest.
    pub(crate) config: String,
    /// The manifest's descriptor.
    pub(crate) manifest: Value,
    pub(crate) chains: Vec<String>,
    pub(crate) directories: Vec<PathBuf>,
}

impl Image {
    pub(crate) fn id(&self) -> &str {
        self.config.strip_prefix("sha256:").unwrap()
    }
}
