//! Unions of layers in memory with random private attributes: what is listed can be looked up, and the rest not.

use std::collections::BTreeMap;
use std::sync::Arc;

use docker_fs::error::Error;
use docker_fs::layer::mem::MemTree;
use docker_fs::layer::whiteout::{Prefix, Redirect};
use docker_fs::layer::{Layer, LayerId, Whiteouts};
use docker_fs::meta::{DeviceNumber, Kind};
use docker_fs::name::{Name, TreePath};
use docker_fs::union::{Found, Member, Union, UnionDir};

use crate::mutate::{Dice, change};

const ATTRIBUTES: [&str; 7] = ["opaque", "redirect", "metacopy", "whiteout", "origin", "impure", "overlay.opaque"];
const NAMES: [&[u8]; 6] = [b"a", b"b", b"c", b".wh.a", b".wh..wh..opq", b"\xff"];
const VALUES: [&[u8]; 12] =
    [b"y", b"x", b"", b"a", b"/a", b"/a/b", b"/b/a/c", b"..", b"/..", b"/a/../b", b"a\0b", b"\0\0\0\0\0\0"];
/// More than a small stack shows, unless its directories lead to each other again and again.
const NODES_MAX: usize = 3_000;

/// One stack, told by a number.
pub(crate) fn try_one(seed: u64, kept: &[Vec<u8>]) {
    let mut dice = Dice::new(seed);
    let mut values: Vec<Vec<u8>> = VALUES.iter().map(|value| value.to_vec()).collect();
    values.extend(kept.iter().cloned());
    let prefix = if dice.one_in(4) { Prefix::User } else { Prefix::Trusted };
    let whiteouts = dice.of(&[
        Whiteouts::Overlay(prefix),
        Whiteouts::Overlay(prefix),
        Whiteouts::Overlay(prefix),
        Whiteouts::Overlay(prefix),
        Whiteouts::Aufs,
        Whiteouts::FuseOverlay,
    ]);
    let count = 1 + dice.below(5);
    let layers: Vec<Arc<Layer>> = (0..count)
        .map(|number| {
            let id = LayerId::of(&format!("layer {number}"));
            Arc::new(Layer::new(id, Box::new(tree(prefix, &values, &mut dice)), whiteouts))
        })
        .collect();
    let union = Union::new(layers);
    let Ok(Some(Found { member: Member::Dir(root), .. })) = union.root() else { panic!("a union without a root") };
    let mut nodes = 0;
    walk(&union, &root, 0, &mut nodes);
}

fn tree(prefix: Prefix, values: &[Vec<u8>], dice: &mut Dice) -> MemTree {
    let mut tree = MemTree::default();
    let mut dirs = vec![TreePath::root()];
    for _ in 0..dice.below(14) {
        let dir = dice.of(&dirs);
        let path = dir.join(&Name::new(dice.of(&NAMES)).unwrap());
        if dirs.contains(&path) {
            continue;
        }
        let kind = dice.of(&[
            Kind::Directory,
            Kind::Directory,
            Kind::Directory,
            Kind::Regular,
            Kind::Regular,
            Kind::CharDevice,
            Kind::Symlink,
            Kind::Fifo,
        ]);
        let content: &[u8] = if dice.one_in(2) { b"" } else { b"content" };
        let entry = tree.put(path.clone(), kind, content);
        if kind == Kind::CharDevice && dice.one_in(4) {
            entry.meta.rdev = DeviceNumber { major: 1, minor: 3 };
        }
        entry.xattrs = attributes(prefix, values, dice);
        if kind == Kind::Directory {
            dirs.push(path);
        }
    }
    tree
}

fn attributes(prefix: Prefix, values: &[Vec<u8>], dice: &mut Dice) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut attributes = BTreeMap::new();
    while !dice.one_in(2) {
        let mut value = dice.of(values);
        while !dice.one_in(2) {
            change(&mut value, values, dice);
        }
        value.truncate(64 << 10);
        let _read = Redirect::parse(&value);
        attributes.insert([prefix.as_bytes(), dice.of(&ATTRIBUTES).as_bytes()].concat(), value);
    }
    attributes
}

fn walk(union: &Union, dir: &UnionDir, depth: usize, nodes: &mut usize) {
    let listing = union.list(dir).unwrap_or_else(|error| panic!("a directory is not listed: {error}"));
    for (name, listed) in &listing.members {
        *nodes += 1;
        let found = union.lookup(dir, name).unwrap_or_else(|error| panic!("{name:?} is listed, but: {error}"));
        assert_eq!(found.as_ref(), Some(listed), "{name:?} is two things");
        assert!(union.stat(&listed.member).unwrap().is_some(), "{name:?} has no attributes");
        match &listed.member {
            Member::Dir(below) if depth < 12 && *nodes < NODES_MAX => walk(union, below, depth + 1, nodes),
            Member::Dir(_) => {}
            Member::File(file) if listed.meta.kind == Kind::Regular => match union.open(file) {
                Ok(_) => {}
                Err(error) => assert!(matches!(error, Error::Damaged { .. }), "{name:?}: {error}"),
            },
            Member::File(_) => {}
        }
    }
    for name in NAMES.iter().filter_map(|name| Name::new(name)) {
        if listing.members.iter().all(|(listed, _)| *listed != name) {
            match union.lookup(dir, &name) {
                Ok(None) | Err(Error::Refused { .. }) => {}
                other => panic!("{name:?} is not listed, but found: {other:?}"),
            }
        }
    }
}
