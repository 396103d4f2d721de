//! What a whole tree changes upon another, on random pairs of trees in memory, against an applier that knows nothing of how
//! the difference is found: applied to the tree below, it gives the tree. And it is no larger than that takes.
//!
//! `DOCKER_FS_STACKS` sets how many pairs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

#[allow(dead_code, unreachable_pub, missing_debug_implementations)]
#[path = "support/random.rs"]
mod random;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use docker_fs::layer::difference::{Difference, Life, Verdicts};
use docker_fs::layer::mem::MemTree;
use docker_fs::layer::{Layer, LayerId, LayerTree, Whiteouts};
use docker_fs::meta::{DeviceNumber, Kind, Meta, Timestamp};
use docker_fs::name::{Name, TreePath};
use random::Dice;

const PAIRS: u64 = 4_000;
const NAMES: [&str; 5] = ["a", "b", "c", ".wh.a", "d"];

/// A file of a tree as data; nothing else of it is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
struct File {
    kind: Kind,
    permissions: u16,
    owner: u32,
    device: u32,
    /// Of what is no directory.
    time: i64,
    content: Vec<u8>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// By path, `/` between names; the root is the empty path.
type Files = BTreeMap<String, File>;

const KINDS: [Kind; 8] = [
    Kind::Directory,
    Kind::Directory,
    Kind::Regular,
    Kind::Regular,
    Kind::Symlink,
    Kind::CharDevice,
    Kind::Fifo,
    Kind::Socket,
];

fn random_file(dice: &mut Dice) -> File {
    let kind = dice.of(&KINDS);
    // No two contents of one length: those that have one time too are not told apart, as Docker does not.
    let has_content = matches!(kind, Kind::Regular | Kind::Symlink);
    let names: [&[u8]; 3] = [b"user.a", b"security.capability", b"trusted.overlay.opaque"];
    let attributes = names.iter().filter(|_| dice.one_in(6)).map(|name| (name.to_vec(), vec![b'y'])).collect();
    File {
        kind,
        permissions: dice.of(&[0o644, 0o755, 0o4711]),
        owner: dice.of(&[0, 7]),
        // A device 0/0 is one like all others.
        device: if kind == Kind::CharDevice { dice.of(&[0, 0x0103]) } else { 0 },
        time: if kind == Kind::Directory { 0 } else { dice.of(&[1, 2]) },
        content: if has_content { dice.of(&["x", "yy", "longer"]).as_bytes().to_vec() } else { Vec::new() },
        attributes,
    }
}

/// Fills a directory of the tree, to a depth.
fn fill(files: &mut Files, dir: &str, depth: usize, dice: &mut Dice) {
    for name in NAMES {
        if dice.one_in(2) {
            put(files, &joined(dir, name), depth, dice);
        }
    }
}

fn put(files: &mut Files, path: &str, depth: usize, dice: &mut Dice) {
    let file = random_file(dice);
    let is_dir = file.kind == Kind::Directory;
    files.insert(path.to_owned(), file);
    if is_dir && depth > 0 {
        fill(files, path, depth - 1, dice);
    }
}

fn joined(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

fn remove(files: &mut Files, path: &str) {
    let below = format!("{path}/");
    files.retain(|known, _| known != path && !known.starts_with(&below));
}

fn random_tree(dice: &mut Dice) -> Files {
    let root = File {
        kind: Kind::Directory,
        attributes: BTreeMap::new(),
        time: 0,
        device: 0,
        content: Vec::new(),
        ..random_file(dice)
    };
    let mut files = Files::from([(String::new(), root)]);
    fill(&mut files, "", 3, dice);
    files
}

/// The tree after a few changes, as a build step makes them.
fn changed(below: &Files, dice: &mut Dice) -> Files {
    let mut files = below.clone();
    for _ in 0..dice.below(5) {
        let paths: Vec<String> = files.keys().filter(|path| !path.is_empty()).cloned().collect();
        if paths.is_empty() {
            break;
        }
        let path = dice.of(&paths);
        match dice.below(5) {
            0 => remove(&mut files, &path),
            1 => {
                remove(&mut files, &path);
                put(&mut files, &path, 2, dice);
            }
            2 => {
                let file = files.get_mut(&path).unwrap();
                match dice.below(3) {
                    0 => file.permissions ^= 0o111,
                    1 => file.owner += 1,
                    _ => drop(file.attributes.insert(b"user.new".to_vec(), Vec::new())),
                }
            }
            3 => {
                let file = files.get_mut(&path).unwrap();
                if file.kind == Kind::Regular {
                    file.content.extend(b"+++++++");
                }
                if file.kind == Kind::Symlink {
                    // As long as before, and of the same time.
                    file.content = vec![b'z'; file.content.len()];
                }
            }
            _ => {
                let dirs: Vec<String> = files
                    .iter()
                    .filter(|(_, file)| file.kind == Kind::Directory)
                    .map(|(path, _)| path.clone())
                    .collect();
                let path = joined(&dice.of(&dirs), dice.of(&NAMES));
                if !files.contains_key(&path) {
                    put(&mut files, &path, 1, dice);
                }
            }
        }
    }
    files
}

fn stored(files: &Files, volume: u64) -> MemTree {
    let mut tree = MemTree::default();
    for (path, file) in files {
        let entry = tree.put(TreePath::new(path.as_bytes()).unwrap_or_default(), file.kind, &file.content);
        entry.meta = Meta {
            permissions: file.permissions,
            uid: file.owner,
            rdev: DeviceNumber { major: file.device >> 8, minor: file.device & 0xff },
            modified: Timestamp { seconds: file.time, nanoseconds: 5 },
            // Each tree is a volume of its own, with numbers that repeat.
            volume,
            bare: file.attributes.is_empty(),
            ..entry.meta
        };
        entry.xattrs.clone_from(&file.attributes);
    }
    tree
}

fn read(tree: &dyn LayerTree, path: &TreePath, meta: &Meta) -> File {
    let content = match meta.kind {
        Kind::Symlink => tree.read_link(path).unwrap(),
        Kind::Regular => {
            let mut content = vec![0; 64];
            let count = tree.open(path).unwrap().read_at(&mut content, 0).unwrap();
            content.truncate(count);
            content
        }
        _ => Vec::new(),
    };
    let names = tree.xattr_names(path).unwrap();
    let value = |name: Vec<u8>| (name.clone(), tree.xattr(path, &name).unwrap().unwrap());
    File {
        kind: meta.kind,
        permissions: meta.permissions,
        owner: meta.uid,
        device: meta.rdev.major << 8 | meta.rdev.minor,
        time: meta.modified.seconds,
        content,
        attributes: names.into_iter().map(value).collect(),
    }
}

/// What a layer's listings hold: files, and names that are deleted.
#[derive(Debug, Default)]
struct Shown {
    files: Files,
    deleted: BTreeSet<String>,
}

fn walk(layer: &Layer, dir: &str, shown: &mut Shown) {
    let dir_path = TreePath::new(dir.as_bytes()).unwrap_or_default();
    for (name, meta) in layer.tree().list(&dir_path, &|_| true).unwrap() {
        let path = joined(dir, std::str::from_utf8(name.as_bytes()).unwrap());
        let tree_path = dir_path.join(&name);
        assert_eq!(layer.tree().stat(&tree_path).unwrap(), Some(meta), "{path}: listed and looked up");
        if layer.is_whiteout(&dir_path, &name, &meta).unwrap() {
            assert!(layer.tree().xattr_names(&tree_path).unwrap().is_empty(), "{path}");
            assert!(shown.deleted.insert(path));
            continue;
        }
        shown.files.insert(path.clone(), read(layer.tree(), &tree_path, &meta));
        if meta.is_dir() {
            walk(layer, &path, shown);
        }
    }
}

/// Deletions first, then files in the order of their paths, directories before what is in them.
fn apply(below: &Files, shown: &Shown) -> Files {
    let mut files = below.clone();
    for path in &shown.deleted {
        assert!(files.contains_key(path), "{path} is deleted and was not there");
        remove(&mut files, path);
    }
    for (path, file) in &shown.files {
        let is_replaced = files.get(path).is_some_and(|known| known.kind != file.kind);
        if is_replaced {
            remove(&mut files, path);
        }
        files.insert(path.clone(), file.clone());
    }
    files
}

fn check_pair(below: &Files, above: &Files) {
    let difference = Difference::new(
        LayerId::of("pair"),
        Life::Lasting,
        Box::new(stored(above, 2)),
        Box::new(stored(below, 1)),
        Arc::new(Verdicts::default()),
    );
    let layer = Layer::new(LayerId::of("layer"), Box::new(difference), Whiteouts::Whole);
    let mut shown = Shown::default();
    walk(&layer, "", &mut shown);
    let mut applied = apply(below, &shown);
    // The root is always shown as it is.
    applied.insert(String::new(), above[""].clone());
    assert_eq!(&applied, above, "{shown:#?}");

    let differing: BTreeSet<&String> =
        above.iter().filter(|(path, file)| below.get(*path) != Some(file)).map(|(p, _)| p).collect();
    for (path, file) in &shown.files {
        let prefix = format!("{path}/");
        let below_it = |other: &String| other.starts_with(&prefix);
        let holds = file.kind == Kind::Directory
            && (differing.iter().any(|other| below_it(other)) || shown.deleted.iter().any(below_it));
        assert!(differing.contains(path) || holds, "{path} is shown and nothing of it differs");
    }
    for path in &shown.deleted {
        assert!(!above.contains_key(path), "{path} is deleted and there");
        let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
        assert_eq!(above.get(dir).map(|dir| dir.kind), Some(Kind::Directory), "{path} went with its directory");
    }
    // What is not listed is not found.
    for path in below.keys().chain(above.keys()).filter(|path| !path.is_empty()) {
        let is_listed = shown.files.contains_key(path) || shown.deleted.contains(path);
        let found = layer.tree().stat(&TreePath::new(path.as_bytes()).unwrap()).unwrap();
        assert_eq!(found.is_some(), is_listed, "{path}");
    }
}

#[test]
fn the_difference_applied_to_the_tree_below_gives_the_tree() {
    let pairs = std::env::var("DOCKER_FS_STACKS").map_or(PAIRS, |count| count.parse().unwrap());
    for seed in 0..pairs {
        let mut dice = Dice(seed);
        let below = random_tree(&mut dice);
        let above = if dice.one_in(4) { random_tree(&mut dice) } else { changed(&below, &mut dice) };
        let checked = std::panic::catch_unwind(|| check_pair(&below, &above));
        assert!(checked.is_ok(), "seed {seed}: upon {below:#?} lies {above:#?}");
    }
}

fn file(kind: Kind, content: &[u8]) -> File {
    File {
        kind,
        permissions: 0o644,
        owner: 0,
        device: 0,
        time: 1,
        content: content.to_vec(),
        attributes: BTreeMap::new(),
    }
}

fn listed(below: &Files, above: &Files, make: impl Fn(Box<MemTree>, Box<MemTree>) -> Difference) -> BTreeSet<String> {
    let difference = make(Box::new(stored(above, 2)), Box::new(stored(below, 1)));
    let list = difference.list(&TreePath::root(), &|_| true).unwrap();
    list.into_iter().map(|(name, _)| String::from_utf8(name.as_bytes().to_vec()).unwrap()).collect()
}

#[test]
fn labels_and_times_of_directories_are_no_difference() {
    let below = Files::from([
        (String::new(), file(Kind::Directory, b"")),
        ("dir".to_owned(), file(Kind::Directory, b"")),
        ("f".to_owned(), file(Kind::Regular, b"x")),
    ]);
    let mut above = below.clone();
    above.get_mut("dir").unwrap().time = 9;
    above.get_mut("f").unwrap().attributes.insert(b"security.selinux".to_vec(), b"a".to_vec());
    let plain = |tree: Box<MemTree>, below: Box<MemTree>| {
        Difference::new(LayerId::of("pair"), Life::Lasting, tree, below, Arc::default())
    };
    assert_eq!(listed(&below, &above, plain), BTreeSet::new());
    above.get_mut("f").unwrap().attributes.insert(b"user.x".to_vec(), b"a".to_vec());
    assert_eq!(listed(&below, &above, plain), BTreeSet::from(["f".to_owned()]));
}

#[test]
fn verdicts_of_lasting_trees_stay_and_those_of_changing_ones_do_not() {
    let mut below = Files::from([
        (String::new(), file(Kind::Directory, b"")),
        ("dir".to_owned(), file(Kind::Directory, b"")),
        ("dir/deep".to_owned(), file(Kind::Directory, b"")),
    ]);
    below.insert("dir/deep/f".to_owned(), file(Kind::Regular, b"x"));
    let mut above = below.clone();
    above.insert("dir/deep/new".to_owned(), file(Kind::Fifo, b""));
    for (life, expected) in [(Life::Lasting, false), (Life::Changing, true)] {
        let verdicts = Arc::new(Verdicts::default());
        let make = |tree: Box<MemTree>, below: Box<MemTree>| {
            Difference::new(LayerId::of("pair"), life, tree, below, Arc::clone(&verdicts))
        };
        assert_eq!(listed(&below, &below, make), BTreeSet::new());
        // Longer than what changes is trusted.
        std::thread::sleep(std::time::Duration::from_millis(600));
        assert_eq!(listed(&below, &above, make).contains("dir"), expected, "{life:?}");
    }
}

#[test]
fn a_tree_as_deep_as_no_tar_is_answered() {
    let mut below = Files::from([(String::new(), file(Kind::Directory, b""))]);
    let mut path = String::new();
    for _ in 0..2_500 {
        path = joined(&path, "d");
        below.insert(path.clone(), file(Kind::Directory, b""));
    }
    let plain = |tree: Box<MemTree>, below: Box<MemTree>| {
        Difference::new(LayerId::of("pair"), Life::Lasting, tree, below, Arc::default())
    };
    // Deeper than it is compared: rather shown than hidden.
    assert_eq!(listed(&below, &below, plain), BTreeSet::from(["d".to_owned()]));
    assert!(Name::new(b"d").is_some());
}
