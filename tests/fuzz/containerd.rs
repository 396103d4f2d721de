//! A root of containerd's whose databases are damaged in what they say and not in how they say it, so that what reads
//! them gets that far.

use crate::bolt::format as bolt;

#[path = "../support/containerd_store.rs"]
#[allow(unreachable_pub)]
mod fixture;
mod support {
    pub(crate) use crate::store;
}

use std::fs;
use std::path::Path;

use fixture::{INDEX, Item, MANIFEST, Store, Tree, database, put, time};
use serde_json::json;

use crate::mutate::{Dice, change};

/// The databases that [`make`] writes, as trees.
#[derive(Clone, Debug)]
pub(crate) struct Databases {
    meta: Tree,
    overlayfs: Tree,
    native: Tree,
}

const META: &str = "io.containerd.metadata.v1.bolt/meta.db";
const OVERLAYFS: &str = "io.containerd.snapshotter.v1.overlayfs/metadata.db";
const NATIVE: &str = "io.containerd.snapshotter.v1.native/metadata.db";

/// Writes a store: images with and without an index, in two namespaces, of both snapshotters, and containers.
pub(crate) fn make(root: &Path) -> Databases {
    let mut store = Store::new(root);
    let app = store.image("default", "docker.io/library/app:1", &["base", "middle", "top"]);
    let other = store.image("k8s.io", "reg.example:5000/team/app:2", &["base", "other"]);
    store.name("k8s.io", &app.config, &app.manifest, 7);
    store.name("k8s.io", "docker.io/library/app:1", &other.manifest, 8);
    let attestation = json!({ "platform": { "os": "unknown", "architecture": "unknown" }, "digest": "x" });
    let nested = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [app.manifest, attestation] });
    let nested = store.document(INDEX, &nested);
    let index =
        json!({ "schemaVersion": 2, "manifests": [nested, other.manifest, store.packed(&["absent"]).manifest] });
    let index = store.document(INDEX, &index);
    store.name("default", "docker.io/library/all:1", &index, 9);
    let packed = store.packed(&["packed"]);
    store.name("moby", &format!("moby-dangling@{}", packed.manifest["digest"].as_str().unwrap()), &packed.manifest, 1);
    let whole = store.packed(&["whole", "upon"]);
    let mut below = None;
    for chain in &whole.chains {
        let files = store.snapshot("default", "native", chain, below, 3);
        fs::write(files.join("whole"), chain).unwrap();
        below = Some(chain);
    }
    store.name("default", "docker.io/library/whole:1", &whole.manifest, 2);
    for (id, snapshotter, top) in
        [("web", "overlayfs", &app.chains[2]), ("native", "native", &whole.chains[1]), ("rootless", "", &app.chains[0])]
    {
        let place = ["v1", "default", "containers", id];
        if !snapshotter.is_empty() {
            fs::write(store.snapshot("default", snapshotter, id, Some(top), 2).join("log"), "log").unwrap();
        }
        for (field, value) in [("snapshotter", snapshotter), ("snapshotKey", id), ("image", "docker.io/library/app:1")]
        {
            put(&mut store.meta, &[&place[..], &[field]].concat(), value);
        }
        put(&mut store.meta, &[&place[..], &["labels", "nerdctl/name"]].concat(), format!("{id}-1"));
        put(&mut store.meta, &[&place[..], &["spec"]].concat(), b"\x0a\x01t\x12\x02{}".to_vec());
        put(&mut store.meta, &[&place[..], &["updatedat"]].concat(), time(7));
    }
    store.write();
    let of = |name: &str| store.snapshots[name].clone();
    Databases { overlayfs: of("overlayfs"), native: of("native"), meta: store.meta }
}

impl Databases {
    /// Writes one of the databases of a store with something changed in it.
    pub(crate) fn damage(&self, root: &Path, dice: &mut Dice) {
        let all = [(META, &self.meta), (OVERLAYFS, &self.overlayfs), (NATIVE, &self.native)];
        let (path, tree) = all[dice.below(all.len())];
        let mut tree = tree.clone();
        let mut values = Vec::new();
        collect(&self.meta, &mut values);
        collect(&self.overlayfs, &mut values);
        for _ in 0..1 + dice.below(4) {
            alter(&mut tree, &values, dice);
        }
        write(root, path, &database(&tree, 100 + dice.next() % 1_000));
    }
}

/// All keys and values.
fn collect(tree: &Tree, values: &mut Vec<Vec<u8>>) {
    for (key, item) in tree {
        values.push(key.clone());
        match item {
            Item::Value(value) => values.push(value.clone()),
            Item::Bucket(below) => collect(below, values),
        }
    }
}

/// Changes something somewhere below.
fn alter(tree: &mut Tree, values: &[Vec<u8>], dice: &mut Dice) {
    let keys: Vec<Vec<u8>> = tree.keys().cloned().collect();
    if keys.is_empty() {
        return;
    }
    let key = dice.of(&keys);
    if let Some(Item::Bucket(below)) = tree.get_mut(&key)
        && !dice.one_in(8)
    {
        return alter(below, values, dice);
    }
    let item = tree.remove(&key).unwrap();
    match dice.below(6) {
        0 => {}
        // Keys that bbolt would not take are none.
        1 => drop(tree.insert(dice.of(values).into_iter().take(30_000).collect(), item)),
        2 => drop(tree.insert(key, Item::Value(dice.of(values)))),
        3 => drop(tree.insert(key, Item::Bucket(Tree::new()))),
        4 => {
            tree.insert(dice.of(values), item.clone());
            tree.insert(key, item);
        }
        _ => {
            let mut value = match item {
                Item::Value(value) => value,
                Item::Bucket(_) => dice.of(values),
            };
            change(&mut value, values, dice);
            tree.insert(key, Item::Value(value));
        }
    }
}

/// A blob that says what it is, of changed text: its name is its hash, so that it is read.
pub(crate) fn add_blob(root: &Path, databases: &mut Databases, text: &[u8], dice: &mut Dice) {
    let digest = format!("sha256:{}", crate::store::sha256_hex(text));
    write(root, &format!("io.containerd.content.v1.content/blobs/sha256/{}", &digest[7..]), text);
    let media_type = dice.of(&[INDEX, MANIFEST, ""]);
    let image = ["v1", "default", "images", "docker.io/library/changed:1", "target"];
    put(&mut databases.meta, &[&image[..], &["digest"]].concat(), digest);
    put(&mut databases.meta, &[&image[..], &["mediatype"]].concat(), media_type);
    write(root, META, &database(&databases.meta, 50 + dice.next() % 50));
}

/// Writes a file of a store, unless something else is in its place by now, or a link leads out of the store there.
fn write(root: &Path, path: &str, content: &[u8]) {
    let place = root.join(path);
    let is =
        |path: &Path, wanted: fn(&fs::Metadata) -> bool| fs::symlink_metadata(path).is_ok_and(|meta| wanted(&meta));
    let is_inside = place.ancestors().skip(1).take_while(|dir| *dir != root).all(|dir| is(dir, fs::Metadata::is_dir));
    let is_free = fs::symlink_metadata(&place).is_err() || is(&place, fs::Metadata::is_file);
    if is_inside && is_free {
        fs::write(place, content).unwrap_or_default();
    }
}
