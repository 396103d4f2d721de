//! The merge rule for layers whose marks are files, aufs' and fuse-overlayfs', against a model that restates it in other
//! words.
//!
//! The model unpacks layers from the bottom up. A directory of it has for each name what stands there by now and, as aufs
//! passes over files below directories, the directory that a file stands before. A mark takes both away, in the layers
//! below and in its own.
//!
//! Every stack is walked by listing, and each directory is asked for every name there is: what is listed must be found and
//! equal, what is not listed must be absent or refused. `DOCKER_FS_STACKS` sets how many random stacks.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;

use docker_fs::error::Error;
use docker_fs::layer::mem::MemTree;
use docker_fs::layer::{Layer, LayerId, Whiteouts};
use docker_fs::meta::{DeviceNumber, Kind, Meta};
use docker_fs::name::{Name, TreePath};
use docker_fs::union::{Found, Member, Union, UnionDir};
use rustix::io::Errno;

const STACKS: u64 = 10_000;
const OPAQUE: &str = ".wh..wh..opq";
const FUSE_OPAQUE: [&str; 3] = ["trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque"];

// Stacks as data.

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    kind: Kind,
    content: String,
    rdev: (u32, u32),
    xattrs: BTreeMap<String, String>,
}

impl Entry {
    fn new(kind: Kind) -> Self {
        Self { kind, content: String::new(), rdev: (0, 0), xattrs: BTreeMap::new() }
    }

    fn is_dir(&self) -> bool {
        self.kind == Kind::Directory
    }

    fn is_device_zero(&self) -> bool {
        self.kind == Kind::CharDevice && self.rdev == (0, 0)
    }

    /// What the first of fuse-overlayfs' attributes says, if there is one.
    fn opaque_attribute(&self) -> Option<bool> {
        FUSE_OPAQUE.iter().find_map(|name| self.xattrs.get(*name)).map(|value| value.starts_with('y'))
    }
}

/// Entries by path; the root is the empty one.
type Entries = BTreeMap<String, Entry>;

#[derive(Debug, Clone)]
struct Stack {
    whiteouts: Whiteouts,
    /// Top first.
    layers: Vec<Entries>,
}

impl Stack {
    fn names(&self) -> BTreeSet<String> {
        let paths = self.layers.iter().flat_map(|entries| entries.keys());
        let mut names: BTreeSet<String> = paths.flat_map(|path| path.split('/')).map(str::to_owned).collect();
        let marked: Vec<_> = names.iter().filter_map(|name| name.strip_prefix(".wh.")).map(str::to_owned).collect();
        names.extend(marked);
        let marks: Vec<_> = names.iter().map(|name| format!(".wh.{name}")).collect();
        names.extend(marks);
        names.extend(["zz", OPAQUE, ".wh.zz"].map(str::to_owned));
        names
    }

    fn union(&self) -> Union {
        let layer = |(index, entries): (usize, &Entries)| {
            let mut tree = MemTree::default();
            for (path, entry) in entries {
                let stored = tree.put(TreePath::new(path.as_bytes()).unwrap(), entry.kind, entry.content.as_bytes());
                stored.meta.rdev = DeviceNumber { major: entry.rdev.0, minor: entry.rdev.1 };
                stored.meta.uid = u32::try_from(index).unwrap();
                stored.meta.bare = entry.xattrs.is_empty() && path.len().is_multiple_of(2);
                for (name, value) in &entry.xattrs {
                    stored.xattrs.insert(name.clone().into_bytes(), value.clone().into_bytes());
                }
            }
            Arc::new(Layer::new(LayerId::of(&index.to_string()), Box::new(tree), self.whiteouts))
        };
        Union::new(self.layers.iter().enumerate().map(layer).collect::<Vec<_>>())
    }

    fn text(&self) -> String {
        let mut text = format!("{:?}\n", self.whiteouts);
        for entries in &self.layers {
            let words: Vec<_> = entries.iter().map(|(path, entry)| word(path, entry)).collect();
            writeln!(text, "    {:?},", words.join(" ")).unwrap();
        }
        text
    }
}

fn word(path: &str, entry: &Entry) -> String {
    let mut word = match entry.kind {
        Kind::Directory => format!("{path}/"),
        Kind::Regular => format!("{path}={}", entry.content),
        Kind::CharDevice => format!("{path}:{}:{}", entry.rdev.0, entry.rdev.1),
        Kind::Fifo => format!("{path}|"),
        Kind::Symlink | Kind::Socket | Kind::BlockDevice => panic!("not in stacks"),
    };
    for (name, value) in &entry.xattrs {
        write!(word, "{{{name}={value}}}").unwrap();
    }
    word
}

/// Reads a layer: words `dir/`, `file=content`, `device:0:0` or `fifo|`, each with `{name=value}` for its attributes.
/// Directories above need no word.
fn parse(layer: &str) -> Entries {
    let mut entries = Entries::from([(String::new(), Entry::new(Kind::Directory))]);
    for word in layer.split_whitespace() {
        let (word, attributes) = word.split_once('{').unwrap_or((word, ""));
        let (path, mut entry) = if let Some((path, content)) = word.split_once('=') {
            (path, Entry { content: content.to_owned(), ..Entry::new(Kind::Regular) })
        } else if let Some((path, device)) = word.split_once(':') {
            let (major, minor) = device.split_once(':').unwrap();
            (path, Entry { rdev: (major.parse().unwrap(), minor.parse().unwrap()), ..Entry::new(Kind::CharDevice) })
        } else if let Some(path) = word.strip_suffix('|') {
            (path, Entry::new(Kind::Fifo))
        } else {
            (word.strip_suffix('/').unwrap(), Entry::new(Kind::Directory))
        };
        for attribute in attributes.split('{').filter_map(|text| text.strip_suffix('}')) {
            let (name, value) = attribute.split_once('=').unwrap();
            entry.xattrs.insert(name.to_owned(), value.to_owned());
        }
        for (end, _) in path.match_indices('/') {
            entries.entry(path[..end].to_owned()).or_insert_with(|| Entry::new(Kind::Directory));
        }
        entries.insert(path.to_owned(), entry);
    }
    entries
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

// What a union shows, whoever says so.

#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    /// The layer that the attributes are from, and how many contribute.
    Dir(usize, usize),
    /// The layer, and the entry.
    File(usize, Kind, (u32, u32), String),
    Refused(Errno),
}

type Tree = BTreeMap<String, Seen>;

fn words(tree: &Tree) -> String {
    let word = |(path, seen): (&String, &Seen)| match seen {
        Seen::Dir(layer, 1) => format!("{path}/@{layer}"),
        Seen::Dir(layer, count) => format!("{path}/@{layer}x{count}"),
        Seen::File(layer, Kind::CharDevice, (major, minor), _) => format!("{path}:{major}:{minor}@{layer}"),
        Seen::File(layer, Kind::Fifo, ..) => format!("{path}|@{layer}"),
        Seen::File(layer, _, _, content) => format!("{path}={content}@{layer}"),
        Seen::Refused(errno) => match *errno {
            Errno::IO => format!("{path}!EIO"),
            Errno::NAMETOOLONG => format!("{}…!ENAMETOOLONG", &path[..1]),
            errno => format!("{path}!{errno:?}"),
        },
    };
    tree.iter().map(word).collect::<Vec<_>>().join(" ")
}

// The union's answer.

struct Walk<'a> {
    union: &'a Union,
    names: BTreeSet<Name>,
    tree: Tree,
}

fn walked(stack: &Stack) -> Result<Tree, String> {
    let union = stack.union();
    let names = stack.names().iter().filter_map(|name| Name::new(name.as_bytes())).collect();
    let mut walk = Walk { union: &union, names, tree: Tree::new() };
    let root = union.root().map_err(|error| error.to_string())?.ok_or("no root")?;
    walk.add("", &root)?;
    Ok(walk.tree)
}

impl Walk<'_> {
    fn add(&mut self, path: &str, found: &Found) -> Result<(), String> {
        let told = self.union.stat(&found.member).map_err(|error| error.to_string())?;
        if told != Some(found.meta) {
            return Err(format!("{path:?} has {told:?} when asked again, not {:?}", found.meta));
        }
        let layer = usize::try_from(found.meta.uid).unwrap();
        match &found.member {
            Member::Dir(dir) => {
                self.tree.insert(path.to_owned(), Seen::Dir(layer, dir.contributors()));
                self.dir(path, dir)
            }
            Member::File(file) => {
                let Meta { kind, rdev, .. } = found.meta;
                let mut content = vec![0; 64];
                let open = self.union.open(file).map_err(|error| error.to_string())?;
                let count = open.read_at(&mut content, 0).map_err(|error| error.to_string())?;
                content.truncate(count);
                let seen = Seen::File(layer, kind, (rdev.major, rdev.minor), String::from_utf8(content).unwrap());
                self.tree.insert(path.to_owned(), seen);
                Ok(())
            }
        }
    }

    /// Asks for all names, listed or not, then goes into what is listed.
    fn dir(&mut self, path: &str, dir: &UnionDir) -> Result<(), String> {
        let listing = self.union.list(dir).map_err(|error| error.to_string())?;
        let listed: BTreeMap<&Name, &Found> = listing.members.iter().map(|(name, found)| (name, found)).collect();
        if listed.len() != listing.members.len() || !listing.members.is_sorted_by(|(a, _), (b, _)| a < b) {
            return Err(format!("{path:?} is listed twice or out of order"));
        }
        let mut denied = 0;
        for name in &self.names {
            match (listed.get(name), self.union.lookup(dir, name)) {
                (None, Ok(None)) => {}
                (Some(member), Ok(Some(found))) if **member == found => {}
                (None, Err(Error::Refused { errno, .. })) => {
                    denied += 1;
                    let name = std::str::from_utf8(name.as_bytes()).unwrap();
                    self.tree.insert(join(path, name), Seen::Refused(errno));
                }
                (listed, found) => return Err(format!("{path:?} lists {name:?} as {listed:?} and finds {found:?}")),
            }
        }
        if listing.refused.len() != denied {
            return Err(format!("{path:?}: the listing refuses {:?}, lookups {denied}", listing.refused));
        }
        for (name, found) in &listing.members {
            self.add(&join(path, std::str::from_utf8(name.as_bytes()).unwrap()), found)?;
        }
        Ok(())
    }
}

// The model.

#[derive(Default)]
struct Node<'a> {
    file: Option<(usize, &'a Entry)>,
    /// The directory at this name, also where a file stands before it.
    dir: Option<Dir<'a>>,
    /// Whether the search gets to a mark that is none.
    refused: bool,
}

#[derive(Default)]
struct Dir<'a> {
    /// The contributing layers, top first.
    layers: Vec<usize>,
    children: BTreeMap<&'a str, Node<'a>>,
}

struct Step<'a> {
    whiteouts: Whiteouts,
    layer: usize,
    entries: &'a Entries,
}

impl<'a> Step<'a> {
    fn fuse(&self) -> bool {
        self.whiteouts == Whiteouts::FuseOverlay
    }

    fn is_opaque(&self, path: &str, entry: &Entry) -> bool {
        let attribute = entry.opaque_attribute().filter(|_| self.fuse());
        attribute.unwrap_or_else(|| self.entries.contains_key(&join(path, OPAQUE)))
    }

    /// Lays the layer's directory at `path` upon what is below.
    fn unpack(&self, path: &'a str, below: &mut Dir<'a>) {
        let inside = if path.is_empty() { String::new() } else { format!("{path}/") };
        let children = self.entries.iter().filter_map(|(other, entry)| Some((other.strip_prefix(&inside)?, entry)));
        let children: Vec<_> = children.filter(|(name, _)| !name.is_empty() && !name.contains('/')).collect();
        below.layers.insert(0, self.layer);
        for (name, entry) in children.iter().filter(|(name, _)| !name.starts_with(".wh.")) {
            let node = below.children.entry(name).or_default();
            if self.fuse() && entry.is_device_zero() {
                *node = Node::default();
            } else if entry.is_dir() {
                let full = self.entries.keys().find(|key| **key == join(path, name)).unwrap();
                self.merge(full, entry, node);
            } else {
                node.file = Some((self.layer, entry));
                if self.fuse() {
                    node.dir = None;
                }
            }
        }
        for (mark, entry) in children {
            let Some(name) = mark.strip_prefix(".wh.").filter(|name| !name.starts_with(".wh.")) else { continue };
            if matches!(name, "" | "." | "..") {
                continue;
            }
            let refused = !self.fuse() && entry.kind != Kind::Regular;
            below.children.insert(name, Node { refused, ..Node::default() });
        }
    }

    fn merge(&self, path: &'a str, entry: &Entry, node: &mut Node<'a>) {
        if self.is_opaque(path, entry) {
            *node = Node::default();
        }
        if node.file.is_some() && self.fuse() {
            *node = Node::default();
        }
        node.file = None;
        self.unpack(path, node.dir.get_or_insert_default());
    }
}

fn unpacked(stack: &Stack) -> Tree {
    let mut root = Dir::default();
    for (layer, entries) in stack.layers.iter().enumerate().rev() {
        let step = Step { whiteouts: stack.whiteouts, layer, entries };
        if step.fuse() && step.is_opaque("", &entries[""]) {
            root = Dir::default();
        }
        step.unpack("", &mut root);
    }
    let mut tree = Tree::new();
    show("", &root, &mut tree);
    tree
}

fn show(path: &str, dir: &Dir<'_>, tree: &mut Tree) {
    tree.insert(path.to_owned(), Seen::Dir(dir.layers[0], dir.layers.len()));
    for (name, node) in &dir.children {
        let path = join(path, name);
        match node {
            Node { file: Some((layer, entry)), .. } => {
                tree.insert(path, Seen::File(*layer, entry.kind, entry.rdev, entry.content.clone()));
            }
            Node { refused: true, .. } => drop(tree.insert(path, Seen::Refused(Errno::IO))),
            Node { dir: Some(dir), .. } => show(&path, dir, tree),
            Node { .. } => {}
        }
    }
}

// Comparing.

fn compare(stack: &Stack) -> Result<Tree, String> {
    let (tree, expected) = (walked(stack)?, unpacked(stack));
    if tree == expected {
        return Ok(tree);
    }
    let paths: BTreeSet<_> = tree.keys().chain(expected.keys()).collect();
    let differing = paths.into_iter().filter(|path| tree.get(*path) != expected.get(*path));
    let lines = differing.map(|path| format!("{path:?}: {:?}\n    model: {:?}", tree.get(path), expected.get(path)));
    Err(lines.collect::<Vec<_>>().join("\n"))
}

fn shrunk(mut stack: Stack) -> Stack {
    'again: loop {
        for layer in 0..stack.layers.len() {
            let mut without = stack.clone();
            without.layers.remove(layer);
            if !without.layers.is_empty() && compare(&without).is_err() {
                stack = without;
                continue 'again;
            }
            for path in stack.layers[layer].keys().filter(|path| !path.is_empty()).cloned().collect::<Vec<_>>() {
                let mut without = stack.clone();
                let inside = format!("{path}/");
                without.layers[layer].retain(|other, _| *other != path && !other.starts_with(&inside));
                if compare(&without).is_err() {
                    stack = without;
                    continue 'again;
                }
            }
        }
        return stack;
    }
}

fn compare_all(whiteouts: Whiteouts) {
    let wanted = std::env::var("DOCKER_FS_STACKS").map_or(STACKS, |text| text.parse().expect("a number of stacks"));
    let (mut seen, mut refused) = (0, 0);
    for seed in 0..wanted {
        let stack = random(seed, whiteouts);
        match compare(&stack) {
            Ok(tree) => {
                seen += tree.len();
                refused += tree.values().filter(|seen| matches!(seen, Seen::Refused(_))).count();
            }
            Err(_) => {
                let stack = shrunk(stack);
                panic!("seed {seed}, top layer first: {}\n{}", stack.text(), compare(&stack).unwrap_err());
            }
        }
    }
    let line = format!("mark model: {wanted} stacks of {whiteouts:?}: {seen} entries ({refused} refused) agree\n");
    // Past the test harness, which keeps what tests print that pass.
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

// Random stacks.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }

    fn entry(&mut self, whiteouts: Whiteouts) -> Entry {
        let mut entry = match self.below(20) {
            0..9 => Entry::new(Kind::Directory),
            9..14 => Entry { content: self.next().to_string(), ..Entry::new(Kind::Regular) },
            14 => Entry::new(Kind::Regular),
            15..18 => Entry::new(Kind::CharDevice),
            18 => Entry { rdev: (1, 3), ..Entry::new(Kind::CharDevice) },
            _ => Entry::new(Kind::Fifo),
        };
        while whiteouts == Whiteouts::FuseOverlay && self.below(4) == 0 {
            let value = self.pick(&["y", "y", "yes", "n", "x", ""]);
            entry.xattrs.insert(self.pick(&FUSE_OPAQUE).to_owned(), value.to_owned());
        }
        entry
    }

    fn mark(&mut self, whiteouts: Whiteouts) -> Entry {
        match self.below(12) {
            0 if whiteouts == Whiteouts::FuseOverlay => Entry::new(Kind::Directory),
            0 => Entry::new(Kind::Fifo),
            1 => Entry { content: "content".to_owned(), ..Entry::new(Kind::Regular) },
            _ => Entry::new(Kind::Regular),
        }
    }

    fn layer(&mut self, whiteouts: Whiteouts) -> Entries {
        let mut entries = Entries::from([(String::new(), Entry::new(Kind::Directory))]);
        if self.below(8) == 0 {
            entries.insert(OPAQUE.to_owned(), Entry::new(Kind::Regular));
        }
        for _ in 0..self.below(9) {
            let depth = 1 + self.below(3);
            let mut dir = String::new();
            for _ in 1..depth {
                dir = join(&dir, self.pick(&["a", "b", "c"]));
                entries.entry(dir.clone()).or_insert_with(|| Entry::new(Kind::Directory));
                if !entries[&dir].is_dir() {
                    entries.insert(dir.clone(), Entry::new(Kind::Directory));
                }
            }
            let (name, entry) = match self.below(10) {
                0..6 => (self.pick(&["a", "b", "c"]), self.entry(whiteouts)),
                6..8 => (self.pick(&[".wh.a", ".wh.b", ".wh.c"]), self.mark(whiteouts)),
                8 => (OPAQUE, Entry::new(Kind::Regular)),
                _ => {
                    let odd = [".wh.", ".wh..", ".wh...", ".wh..wh.a", ".wh..wh.plnk", ".wh..wh.aufs", ".what"];
                    (self.pick(&odd), self.mark(whiteouts))
                }
            };
            entries.entry(join(&dir, name)).or_insert(entry);
        }
        entries
    }
}

fn random(seed: u64, whiteouts: Whiteouts) -> Stack {
    let mut random = Random(seed);
    let layers = (0..=random.below(6)).map(|_| random.layer(whiteouts)).collect();
    Stack { whiteouts, layers }
}

#[test]
fn stacks_of_aufs_agree_with_the_model() {
    compare_all(Whiteouts::Aufs);
}

#[test]
fn stacks_of_fuse_overlayfs_agree_with_the_model() {
    compare_all(Whiteouts::FuseOverlay);
}

// Stacks by name, top first, and what the union shows of them.

type Named = (&'static str, &'static [&'static str], &'static str);

const BOTH: &[Named] = &[
    ("a_whiteout_hides_all_below", &[".wh.a=", "a/ a/x=1", "a=2 b=2"], "b=2@2"),
    ("a_whiteout_hides_what_is_beside_it", &["a=0 .wh.a= b=0", "a=1"], "b=0@0"),
    ("also_in_the_bottom_layer", &["", "a=1 .wh.a="], ""),
    ("also_a_directory", &["a/x=0 .wh.a=", "a/y=1"], ""),
    ("above_a_whiteout_a_name_comes_back", &["a/x=0", ".wh.a=", "a/y=2"], "a/@0 a/x=0@0"),
    ("a_whiteout_may_have_content", &[".wh.a=content", "a=1"], ""),
    ("an_opaque_directory_hides_all_below", &["a/.wh..wh..opq= a/x=0", "a/y=1"], "a/@0 a/x=0@0"),
    ("an_opaque_directory_merges_with_those_above", &["a/x=0", "a/.wh..wh..opq=", "a/z=2"], "a/@0x2 a/x=0@0"),
    (
        "an_opaque_mark_hides_nothing_of_its_own_layer",
        &["a/.wh..wh..opq= a/x=0 a/b/y=0"],
        "a/@0 a/b/@0 a/b/y=0@0 a/x=0@0",
    ),
    ("it_is_no_whiteout_of_another_name", &["a/.wh..wh..opq=", "a/.opq=1"], "a/@0"),
    ("no_name_that_begins_so_is_seen", &["a/.wh.= a/.wh..= .wh...= .wh..wh.x= a/.wh.b="], "a/@0"),
    ("also_of_a_bottom_layer", &["", "a/.wh.x= .wh.="], "a/@1"),
    ("but_names_that_hold_it_are", &["a.wh.b=0 .wha=0 .WH.a=0 a=0"], ".WH.a=0@0 .wha=0@0 a=0@0 a.wh.b=0@0"),
    ("a_whiteout_of_a_name_that_begins_so_is_none", &[".wh..wh.x=", ".wh.x= x=1", "x=2"], ""),
    ("xattrs_of_the_kernel_mean_no_whiteout", &["a={trusted.overlay.whiteout=}", "a=1"], "a=@0"),
    ("redirects_are_not_followed", &["a/{trusted.overlay.redirect=b}", "b/x=1"], "a/@0 b/@1 b/x=1@1"),
    ("metacopies_are_files", &["a={trusted.overlay.metacopy=}", "a=1"], "a=@0"),
];

const AUFS: &[Named] = &[
    ("the_roots_of_all_layers_merge", &[".wh..wh..opq= a=0", "b=1"], "a=0@0 b=1@1"),
    ("own_files_are_hidden", &[".wh..wh.aufs= .wh..wh.plnk/11.12=x .wh..wh.orph/a=x a=0", "aufs=1"], "a=0@0 aufs=1@1"),
    ("at_depth_too_as_all_such_names", &["d/.wh..wh.plnk/a=x", "d/a=1"], "d/@0x2 d/a=1@1"),
    ("a_device_0_0_is_a_device", &["a:0:0", "a=1"], "a:0:0@0"),
    ("no_attribute_makes_opaque", &["a/{trusted.overlay.opaque=y}", "a/x=1"], "a/@0x2 a/x=1@1"),
    ("a_file_between_directories_is_passed_over", &["a/x=0", "a=1", "a/z=2"], "a/@0x2 a/x=0@0 a/z=2@2"),
    ("also_where_it_is_a_fifo", &["a/x=0", "a|", "a/z=2"], "a/@0x2 a/x=0@0 a/z=2@2"),
    ("but_not_a_whiteout_beside_it", &["a/x=0", "a=1 .wh.a=", "a/z=2"], "a/@0 a/x=0@0"),
    ("a_file_on_top_hides_all_below", &["a=0", "a/y=1", "a=2"], "a=0@0"),
    ("a_whiteout_of_another_type_is_refused", &[".wh.a/ b=0", "a=1"], "a!EIO b=0@0"),
    ("also_beside_the_name_and_below_a_directory", &["a/x=0", "a=1 .wh.a|", ""], "a!EIO"),
    ("but_not_below_a_file", &["a=0", ".wh.a/"], "a=0@0"),
    ("nor_where_there_is_nothing_to_delete", &["b=0", ".wh.a|"], "a!EIO b=0@0"),
    ("an_opaque_mark_of_another_type_is_refused", &["a/.wh..wh..opq/ b=0", "a/x=1"], "a!EIO b=0@0"),
];

const FUSE: &[Named] = &[
    ("an_opaque_root_hides_all_layers_below", &["a=0", ".wh..wh..opq= b=1", "c=2"], "a=0@0 b=1@1"),
    ("also_by_an_attribute", &["a=0", "/{user.fuseoverlayfs.opaque=y} b=1", "c=2"], "a=0@0 b=1@1"),
    ("a_device_0_0_is_a_whiteout", &["a:0:0 b:0:1", "a=1 b=1"], "b:0:1@0"),
    ("both_forms_in_one_directory", &["d/a:0:0 d/.wh.b=", "d/a=1 d/b=1 d/c=1"], "d/@0x2 d/c=1@1"),
    ("a_whiteout_may_be_of_any_type", &[".wh.a/ .wh.b| .wh.c:1:3", "a=1 b=1 c=1 d=1"], "d=1@1"),
    ("an_opaque_mark_too", &["a/.wh..wh..opq/", "a/x=1"], "a/@0"),
    (
        "attributes_of_three_names_make_opaque",
        &[
            "a/{trusted.overlay.opaque=y} b/{user.overlay.opaque=y} c/{user.fuseoverlayfs.opaque=y} d/{user.opaque=y}",
            "a/x=1 b/x=1 c/x=1 d/x=1",
        ],
        "a/@0 b/@0 c/@0 d/@0x2 d/x=1@1",
    ),
    (
        "by_the_first_byte",
        &["a/{user.overlay.opaque=yes} b/{user.overlay.opaque=n} c/{user.overlay.opaque=}", "a/x=1 b/x=1 c/x=1"],
        "a/@0 b/@0x2 b/x=1@1 c/@0x2 c/x=1@1",
    ),
    (
        "the_first_attribute_decides_and_a_file_only_without_one",
        &[
            "a/{trusted.overlay.opaque=n}{user.overlay.opaque=y} b/{user.fuseoverlayfs.opaque=n} b/.wh..wh..opq=",
            "a/x=1 b/x=1",
        ],
        "a/@0x2 a/x=1@1 b/@0x2 b/x=1@1",
    ),
    ("an_opaque_file_is_a_file", &["a=0{user.overlay.opaque=y}", "a/x=1"], "a=0@0"),
    ("a_file_between_directories_hides_the_lower_one", &["a/x=0", "a=1", "a/z=2"], "a/@0 a/x=0@0"),
    ("a_deleted_directory_that_came_back_is_hidden_by_its_whiteout", &[".wh.c= c/new=0", "c/old=1"], ""),
];

#[test]
fn named_stacks_show_what_is_written_here() {
    let tables = [
        (Whiteouts::Aufs, BOTH),
        (Whiteouts::FuseOverlay, BOTH),
        (Whiteouts::Aufs, AUFS),
        (Whiteouts::FuseOverlay, FUSE),
    ];
    let mut wrong = Vec::new();
    for (whiteouts, table) in tables {
        for (name, layers, expected) in table {
            let layers = layers.iter().map(|layer| parse(layer)).collect();
            let mut tree = match walked(&Stack { whiteouts, layers }) {
                Ok(tree) => tree,
                Err(why) => {
                    wrong.push(format!("{name}: {why}"));
                    continue;
                }
            };
            tree.remove("");
            if words(&tree) != *expected {
                wrong.push(format!("{whiteouts:?} {name}: {}\n    not: {expected}", words(&tree)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn long_names_are_those_of_aufs() {
    let (fits, too_long) = ("a".repeat(242), "b".repeat(243));
    for (whiteouts, expected) in [
        (Whiteouts::Aufs, format!("{fits}=0@0 b…!ENAMETOOLONG")),
        (Whiteouts::FuseOverlay, format!("{fits}=0@0 {too_long}=0@0")),
    ] {
        let layers = vec![parse(&format!("{fits}=0 {too_long}=0"))];
        let mut tree = walked(&Stack { whiteouts, layers }).unwrap();
        tree.remove("");
        assert_eq!(words(&tree), expected);
    }
    // A mark of 256 bytes cannot be; the name is not deleted, and asking for it is no error.
    let longest = "c".repeat(252);
    let layers = vec![parse("d=0"), parse(&format!("{longest}=1"))];
    let tree = walked(&Stack { whiteouts: Whiteouts::FuseOverlay, layers }).unwrap();
    assert!(tree.contains_key(&longest));
}
