//! The merge rule against two models that restate it in other words.
//!
//! [`unpacked`] unpacks layers from the bottom up, as an engine would into one directory: a whiteout removes, a file
//! replaces, a directory merges. It knows neither redirects nor metacopies. [`stacked`] knows them: it builds the tree
//! as seen from each layer down, and lets a redirect take its directory out of the tree of the layers below. The
//! kernel does neither; it walks layers from the top and an absolute redirect's path anew in each of them
//! (`ovl_lookup()` in `fs/overlayfs/namei.c`). Both ways agree, also where ancestors of the target are redirected,
//! opaque or deleted, with two reservations:
//!
//! * A directory may be refused for a mark far below, which a redirect to a name in it need not reach. So directories
//!   of the model remember what lies [`beyond`](Dir::beyond) the layers that contribute.
//! * On an absolute walk the kernel forgets that it passed an opaque directory when it ends at a metacopy, and goes on
//!   below. Random stacks hold no metacopy under an opaque directory of its layer; a named stack shows the effect.
//!
//! Every stack is also walked by listing, and each directory asked for every name there is: what is listed must be
//! found and equal, what is not listed must be absent or refused. `DOCKER_FS_STACKS` sets how many random stacks.
//!
//! Left out, as the union has no such thing: data-only layers, and names that a listing shows and a lookup denies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::rc::Rc;
use std::sync::Arc;

use docker_fs::error::Error;
use docker_fs::layer::mem::MemTree;
use docker_fs::layer::whiteout::Prefix;
use docker_fs::layer::{Layer, LayerId, LayerTree, Whiteouts};
use docker_fs::meta::{DeviceNumber, Kind, Meta, Timestamp};
use docker_fs::name::{Name, TreePath};
use docker_fs::union::{Found, Listing, Member, Union, UnionDir};
use rustix::io::Errno;

const STACKS: u64 = 20_000;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const ABSENT: &str = "zz";
/// The difference between the numbers of two layers' roots.
const LAYER: u32 = 1000;

// Stacks as data.

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Dir,
    File(String),
    Link(String),
    Char(u32, u32),
    Fifo,
}

#[derive(Debug, Clone)]
struct Entry {
    what: What,
    /// Private attributes by their names behind the prefix.
    attributes: BTreeMap<String, String>,
    /// Whether the attributes bear the prefix that the store does not use, and so mean nothing.
    foreign: bool,
    /// Different for each entry of a stack: it goes into all attributes, so that their origin shows.
    number: u32,
}

/// Entries by path; the root is the empty one.
type Entries = BTreeMap<String, Entry>;

#[derive(Debug, Clone)]
struct Stack {
    prefix: Prefix,
    /// Top first.
    layers: Vec<Entries>,
}

impl Entry {
    fn new(what: What) -> Self {
        Self { what, attributes: BTreeMap::new(), foreign: false, number: 0 }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.attributes.insert(name.to_owned(), value.to_owned());
        self
    }

    fn is_dir(&self) -> bool {
        self.what == What::Dir
    }

    fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).filter(|_| !self.foreign).map(String::as_str)
    }

    fn deletes(&self) -> bool {
        match &self.what {
            What::Char(major, minor) => (*major, *minor) == (0, 0),
            What::File(content) => content.is_empty() && self.attribute("whiteout").is_some(),
            What::Dir | What::Link(_) | What::Fifo => false,
        }
    }

    fn is_opaque(&self) -> bool {
        self.is_dir() && self.attribute("opaque") == Some("y")
    }

    fn content(&self) -> &str {
        match &self.what {
            What::File(content) | What::Link(content) => content,
            What::Dir | What::Char(..) | What::Fifo => "",
        }
    }

    fn meta(&self) -> Meta {
        let (kind, rdev) = match self.what {
            What::Dir => (Kind::Directory, (0, 0)),
            What::File(_) => (Kind::Regular, (0, 0)),
            What::Link(_) => (Kind::Symlink, (0, 0)),
            What::Char(major, minor) => (Kind::CharDevice, (major, minor)),
            What::Fifo => (Kind::Fifo, (0, 0)),
        };
        let time = Timestamp { seconds: i64::from(self.number), nanoseconds: 0 };
        let permissions = u16::try_from(self.number % 0o7777).unwrap();
        let size = u64::try_from(self.content().len()).unwrap();
        Meta {
            uid: self.number,
            gid: self.number,
            links: 2 + self.number % 5,
            rdev: DeviceNumber { major: rdev.0, minor: rdev.1 },
            blocks: u64::from(self.number),
            inode: u64::from(self.number) + 2,
            bare: self.attributes.is_empty() && self.number.is_multiple_of(2),
            ..Meta::made_up(kind, permissions, time, size)
        }
    }
}

impl Stack {
    fn numbered(mut self) -> Self {
        for (layer, entries) in (0..).zip(&mut self.layers) {
            for (index, entry) in (0..).zip(entries.values_mut()) {
                entry.number = layer * LAYER + index;
            }
        }
        self
    }

    fn follows_redirects(&self) -> bool {
        self.prefix == Prefix::Trusted
    }

    fn is_plain(&self) -> bool {
        let plain = |entry: &Entry| entry.attribute("redirect").is_none() && entry.attribute("metacopy").is_none();
        self.layers.iter().all(|entries| entries.values().all(plain))
    }

    fn names(&self) -> BTreeSet<Name> {
        let paths = self.layers.iter().flat_map(|entries| entries.keys());
        let names = paths.flat_map(|path| path.split('/')).chain(NAMES).chain([ABSENT]);
        names.filter_map(|name| Name::new(name.as_bytes())).collect()
    }

    fn union(&self) -> Union {
        let layers: Vec<_> =
            self.layers.iter().enumerate().map(|(index, entries)| self.layer(index, entries)).collect();
        Union::new(layers)
    }

    fn layer(&self, index: usize, entries: &Entries) -> Arc<Layer> {
        let mut tree = MemTree::default();
        for (path, entry) in entries {
            let meta = entry.meta();
            let stored = tree.put(tree_path(path), meta.kind, entry.content().as_bytes());
            stored.meta = meta;
            let prefix = match (self.prefix, entry.foreign) {
                (Prefix::Trusted, false) | (Prefix::User, true) => "trusted.overlay.",
                (Prefix::User, false) | (Prefix::Trusted, true) => "user.overlay.",
            };
            for (name, value) in &entry.attributes {
                stored.xattrs.insert(format!("{prefix}{name}").into_bytes(), value.clone().into_bytes());
            }
        }
        let tree: Box<dyn LayerTree> = Box::new(tree);
        Arc::new(Layer::new(LayerId::of(&index.to_string()), tree, Whiteouts::Overlay(self.prefix)))
    }

    /// The stack in the words that [`parse`] reads.
    fn text(&self) -> String {
        let mut text = format!("{:?}\n", self.prefix);
        for entries in &self.layers {
            writeln!(text, "    {:?},", line(entries)).unwrap();
        }
        text
    }
}

fn line(entries: &Entries) -> String {
    entries.iter().map(|(path, entry)| word(path, entry)).collect::<Vec<_>>().join(" ")
}

fn word(path: &str, entry: &Entry) -> String {
    let mut word = path.to_owned();
    match &entry.what {
        What::Dir => word.push('/'),
        What::File(content) => write!(word, "={content}").unwrap(),
        What::Link(target) => write!(word, "->{target}").unwrap(),
        What::Char(major, minor) => write!(word, ":{major}:{minor}").unwrap(),
        What::Fifo => word.push('|'),
    }
    if !entry.attributes.is_empty() {
        let list: Vec<_> = entry.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
        write!(word, "{{{}}}{}", list.join(","), if entry.foreign { "foreign" } else { "" }).unwrap();
    }
    word
}

/// Reads a layer: words `dir/`, `file=content`, `link->target`, `device:0:0` or `fifo|`, each with `{name=value,…}`
/// behind it for its private attributes. The root is `/`; directories above need no word.
fn parse(layer: &str) -> Entries {
    let mut entries = Entries::from([(String::new(), Entry::new(What::Dir))]);
    for word in layer.split_whitespace() {
        let (word, attributes) = word.split_once('{').unwrap_or((word, "}"));
        let (attributes, foreign) = attributes.split_once('}').unwrap();
        let (path, what) = if let Some((path, content)) = word.split_once('=') {
            (path, What::File(content.to_owned()))
        } else if let Some((path, target)) = word.split_once("->") {
            (path, What::Link(target.to_owned()))
        } else if let Some((path, device)) = word.split_once(':') {
            let (major, minor) = device.split_once(':').unwrap();
            (path, What::Char(major.parse().unwrap(), minor.parse().unwrap()))
        } else if let Some(path) = word.strip_suffix('|') {
            (path, What::Fifo)
        } else {
            (word.strip_suffix('/').unwrap(), What::Dir)
        };
        let mut entry = Entry { foreign: foreign == "foreign", ..Entry::new(what) };
        for attribute in attributes.split(',').filter(|text| !text.is_empty()) {
            let (name, value) = attribute.split_once('=').unwrap();
            entry = entry.with(name, value);
        }
        for dir in above(path) {
            entries.entry(dir.to_owned()).or_insert_with(|| Entry::new(What::Dir));
        }
        entries.insert(path.to_owned(), entry);
    }
    entries
}

/// The directories that hold a path, from the root's child down.
fn above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').filter_map(|(end, _)| path.get(..end))
}

fn tree_path(path: &str) -> TreePath {
    TreePath::new(path.as_bytes()).unwrap()
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

// What a union shows, whoever says so.

#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Dir { meta: Meta, contributors: usize },
    File { meta: Meta, content: Option<String> },
    Refused(Errno),
}

impl Seen {
    fn dir(top: &Entry, contributors: usize) -> Self {
        let meta = top.meta();
        Self::Dir { meta: Meta { links: if contributors > 1 { 1 } else { meta.links }, ..meta }, contributors }
    }

    fn file(top: &Entry, data: Option<&Entry>) -> Self {
        let blocks = data.unwrap_or(top).meta().blocks;
        Self::File { meta: Meta { blocks, ..top.meta() }, content: data.map(|data| data.content().to_owned()) }
    }

    /// The words of [`parse`] with the layer that the attributes are from, and for directories how many contribute.
    /// A file without data is `file?`, a refused name `name!errno`.
    fn word(&self, path: &str) -> String {
        let at = |meta: &Meta| meta.uid / LAYER;
        match self {
            Self::Dir { meta, contributors: 1 } => format!("{path}/@{}", at(meta)),
            Self::Dir { meta, contributors } => format!("{path}/@{}x{contributors}", at(meta)),
            Self::File { meta, content: None } => format!("{path}?@{}", at(meta)),
            Self::File { meta, content: Some(content) } => match meta.kind {
                Kind::Symlink => format!("{path}->{content}@{}", at(meta)),
                Kind::CharDevice => format!("{path}:{}:{}@{}", meta.rdev.major, meta.rdev.minor, at(meta)),
                Kind::Fifo => format!("{path}|@{}", at(meta)),
                Kind::Regular | Kind::Directory | Kind::Socket | Kind::BlockDevice => {
                    format!("{path}={content}@{}", at(meta))
                }
            },
            Self::Refused(errno) => match *errno {
                Errno::INVAL => format!("{path}!EINVAL"),
                Errno::ACCESS => format!("{path}!EACCES"),
                Errno::PERM => format!("{path}!EPERM"),
                Errno::IO => format!("{path}!EIO"),
                errno => format!("{path}!{errno:?}"),
            },
        }
    }
}

type Tree = BTreeMap<String, Seen>;

// The union's answer.

struct Walk<'a> {
    union: &'a Union,
    names: BTreeSet<Name>,
    tree: Tree,
    lookups: u64,
}

/// The union's tree, and how many names were looked up for it.
fn walked(stack: &Stack) -> Result<(Tree, u64), String> {
    let union = stack.union();
    let mut walk = Walk { union: &union, names: stack.names(), tree: Tree::new(), lookups: 0 };
    walk.root()?;
    Ok((walk.tree, walk.lookups))
}

impl Walk<'_> {
    fn root(&mut self) -> Result<(), String> {
        let root = self.union.root().map_err(|error| error.to_string())?.ok_or("no root")?;
        self.add("", &root)
    }

    fn add(&mut self, path: &str, found: &Found) -> Result<(), String> {
        let meta = found.meta;
        let told = self.union.stat(&found.member).map_err(|error| error.to_string())?;
        if told != Some(meta) {
            return Err(format!("{path:?} has {told:?} when asked again, not {meta:?}"));
        }
        let seen = match &found.member {
            Member::Dir(dir) => Seen::Dir { meta, contributors: dir.contributors() },
            Member::File(_) => Seen::File { meta, content: self.content(found)? },
        };
        self.tree.insert(path.to_owned(), seen);
        match &found.member {
            Member::Dir(dir) => self.dir(path, dir),
            Member::File(_) => Ok(()),
        }
    }

    fn content(&self, found: &Found) -> Result<Option<String>, String> {
        let Found { member, meta } = found;
        let Member::File(file) = member else { return Ok(None) };
        let bytes = match meta.kind {
            Kind::Regular => match self.union.open(file) {
                Ok(open) => {
                    let mut buffer = vec![0; 64];
                    let count = open.read_at(&mut buffer, 0).map_err(|error| error.to_string())?;
                    buffer.truncate(count);
                    buffer
                }
                Err(Error::Damaged { .. }) => return Ok(None),
                Err(error) => return Err(error.to_string()),
            },
            Kind::Symlink => {
                let (layer, path) = self.union.source(member).map_err(|error| error.to_string())?;
                layer.tree().read_link(&path).map_err(|error| error.to_string())?
            }
            Kind::Directory | Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => Vec::new(),
        };
        String::from_utf8(bytes).map(Some).map_err(|error| error.to_string())
    }

    /// Asks for all names, listed or not, then goes into what is listed.
    fn dir(&mut self, path: &str, dir: &UnionDir) -> Result<(), String> {
        let Listing { members, refused } = self.union.list(dir).map_err(|error| error.to_string())?;
        let mut listed: BTreeMap<&Name, &Found> = BTreeMap::new();
        for (name, member) in &members {
            if listed.insert(name, member).is_some() {
                return Err(format!("{path:?} lists {name:?} twice"));
            }
        }
        if !members.is_sorted_by(|(one, _), (next, _)| one < next) {
            return Err(format!("{path:?} is listed out of order"));
        }
        let mut denied = Vec::new();
        for name in self.names.iter().chain(listed.keys().copied().filter(|name| !self.names.contains(name))) {
            self.lookups += 1;
            match (listed.get(name), self.union.lookup(dir, name)) {
                (None, Ok(None)) => {}
                (Some(member), Ok(Some(found))) if **member == found => {}
                (None, Err(Error::Refused { errno, .. })) => {
                    denied.push(errno);
                    let name = std::str::from_utf8(name.as_bytes()).unwrap();
                    self.tree.insert(join(path, name), Seen::Refused(errno));
                }
                (listed, found) => return Err(format!("{path:?} lists {name:?} as {listed:?} and finds {found:?}")),
            }
        }
        let refused: Vec<_> = refused.iter().map(Error::errno).collect();
        if refused != denied {
            return Err(format!("{path:?}: the listing refuses {refused:?}, lookups {denied:?}"));
        }
        for (name, member) in &members {
            self.add(&join(path, std::str::from_utf8(name.as_bytes()).unwrap()), member)?;
        }
        Ok(())
    }
}

// The first model: unpacking.

/// The tree that comes of unpacking the layers over one another, the bottom one first.
fn unpacked(stack: &Stack) -> Tree {
    let mut tree: BTreeMap<&str, (&Entry, usize)> = BTreeMap::new();
    for entries in stack.layers.iter().rev() {
        // Paths sort behind those of the directories that hold them.
        for (path, entry) in entries {
            let is_root = path.is_empty();
            let merges = entry.is_dir() && (is_root || !entry.is_opaque());
            let below = tree.get(path.as_str()).filter(|(below, _)| merges && below.is_dir()).map(|(_, count)| *count);
            if below.is_none() {
                let inside = format!("{path}/");
                tree.retain(|other, _| is_root || (other != path && !other.starts_with(&inside)));
            }
            if !entry.deletes() {
                tree.insert(path, (entry, below.unwrap_or(0) + 1));
            }
        }
    }
    let seen = |(entry, count): (&Entry, usize)| {
        if entry.is_dir() { Seen::dir(entry, count) } else { Seen::file(entry, Some(entry)) }
    };
    tree.into_iter().map(|(path, found)| (path.to_owned(), seen(found))).collect()
}

// The second model: the tree as seen from each layer down.

#[derive(Clone)]
enum Node<'a> {
    Gone,
    /// The kernel's answer is an error, found at an entry that is a directory or not, or at no entry.
    Refused(Errno, Option<&'a Entry>),
    /// The top entry, and the one that has the data.
    File(&'a Entry, Option<&'a Entry>),
    Dir(Rc<Dir<'a>>),
}

#[derive(Default)]
struct Dir<'a> {
    /// The contributing layers' directories, top first.
    parts: Vec<&'a Entry>,
    /// Names that a contributor settles, also as gone.
    names: BTreeMap<&'a str, Node<'a>>,
    /// The error behind the contributors: the answer for names that they do not settle.
    beyond: Option<Errno>,
}

impl<'a> Dir<'a> {
    fn get(&self, name: &str) -> Node<'a> {
        let beyond = self.beyond.map_or(Node::Gone, |errno| Node::Refused(errno, None));
        if matches!(name, "" | "." | "..") {
            return if self.parts.is_empty() { beyond } else { Node::Refused(Errno::ACCESS, None) };
        }
        self.names.get(name).cloned().unwrap_or(beyond)
    }

    fn walk(&self, path: &str) -> Node<'a> {
        let Some((first, rest)) = path.split_once('/') else { return self.get(path) };
        match self.get(first) {
            Node::Dir(dir) => dir.walk(rest),
            Node::Refused(errno, at) if at.is_none_or(Entry::is_dir) => Node::Refused(errno, None),
            Node::Refused(..) | Node::Gone | Node::File(..) => Node::Gone,
        }
    }
}

/// One layer on the tree of those below it.
struct Step<'a> {
    entries: &'a Entries,
    is_bottom: bool,
    follows_redirects: bool,
    below: Rc<Dir<'a>>,
}

impl<'a> Step<'a> {
    fn dir(&self, path: &'a str, entry: &'a Entry, below: &Dir<'a>) -> Dir<'a> {
        let mut names = below.names.clone();
        let inside = if path.is_empty() { String::new() } else { format!("{path}/") };
        for (other, child) in self.entries {
            if let Some(name) = other.strip_prefix(&inside)
                && !name.is_empty()
                && !name.contains('/')
            {
                names.insert(name, self.node(other, name, child, below));
            }
        }
        let parts = [entry].into_iter().chain(below.parts.iter().copied()).collect();
        Dir { parts, names, beyond: below.beyond }
    }

    fn node(&self, path: &'a str, name: &str, entry: &'a Entry, below: &Dir<'a>) -> Node<'a> {
        let is_metacopy = match (&entry.what, entry.attribute("metacopy")) {
            (What::File(_), Some(value)) => Some(value),
            _ => None,
        };
        if entry.deletes() {
            return Node::Gone;
        }
        match is_metacopy {
            Some(value) if (1..4).contains(&value.len()) => return Node::Refused(Errno::IO, Some(entry)),
            None if !entry.is_dir() => return Node::File(entry, Some(entry)),
            Some(_) | None => {}
        }
        let lower = match self.lower(name, entry, below) {
            Ok(lower) => lower,
            Err(errno) => return Node::Refused(errno, Some(entry)),
        };
        if is_metacopy.is_some() {
            return match lower {
                _ if !self.follows_redirects => Node::Refused(Errno::PERM, Some(entry)),
                Node::Refused(errno, at) if at.is_none_or(|at| !at.is_dir()) => Node::Refused(errno, Some(entry)),
                Node::File(below, data) if matches!(below.what, What::File(_)) => Node::File(entry, data),
                Node::Refused(..) | Node::File(..) | Node::Gone | Node::Dir(_) => Node::File(entry, None),
            };
        }
        let dir = match lower {
            Node::Dir(lower) => self.dir(path, entry, &lower),
            Node::Refused(errno, at) if at.is_none_or(Entry::is_dir) => {
                self.dir(path, entry, &Dir { beyond: Some(errno), ..Dir::default() })
            }
            Node::Refused(..) | Node::File(..) | Node::Gone => self.dir(path, entry, &Dir::default()),
        };
        Node::Dir(Rc::new(dir))
    }

    /// What the layers below have to add to an entry.
    fn lower(&self, name: &str, entry: &Entry, below: &Dir<'a>) -> Result<Node<'a>, Errno> {
        let is_last = if self.follows_redirects { self.is_bottom } else { below.parts.is_empty() };
        if is_last || entry.is_opaque() {
            return Ok(Node::Gone);
        }
        let Some(redirect) = entry.attribute("redirect") else { return Ok(below.get(name)) };
        let absolute = redirect.strip_prefix('/');
        let malformed = match absolute {
            Some(path) => path.split('/').any(str::is_empty),
            None => redirect.is_empty() || redirect.contains('/'),
        };
        match absolute {
            _ if malformed => Err(Errno::INVAL),
            _ if !self.follows_redirects => Err(Errno::PERM),
            Some(path) => Ok(self.below.walk(path)),
            None => Ok(below.get(redirect)),
        }
    }
}

fn stacked(stack: &Stack) -> Tree {
    let mut root = Rc::new(Dir::default());
    for (index, entries) in stack.layers.iter().enumerate().rev() {
        let is_bottom = index + 1 == stack.layers.len();
        let step = Step { entries, is_bottom, follows_redirects: stack.follows_redirects(), below: Rc::clone(&root) };
        root = Rc::new(step.dir("", &entries[""], &root));
    }
    let mut tree = Tree::new();
    show("", &Node::Dir(root), &mut tree);
    tree
}

fn show(path: &str, node: &Node<'_>, tree: &mut Tree) {
    let seen = match node {
        Node::Gone => return,
        Node::Refused(errno, _) => Seen::Refused(*errno),
        Node::File(entry, data) => Seen::file(entry, *data),
        Node::Dir(dir) => match dir.beyond {
            Some(errno) => Seen::Refused(errno),
            None => {
                for (name, node) in &dir.names {
                    show(&join(path, name), node, tree);
                }
                Seen::dir(dir.parts[0], dir.parts.len())
            }
        },
    };
    tree.insert(path.to_owned(), seen);
}

// Comparing.

/// What was compared, for the line that a test prints.
#[derive(Default)]
struct Count {
    stacks: Cell<u64>,
    seen: Cell<u64>,
    refused: Cell<u64>,
    lookups: Cell<u64>,
    largest: Cell<u64>,
}

/// Compares the union with all models that know what the stack holds; the union's tree if they agree.
fn compare(stack: &Stack, count: &Count) -> Result<Tree, String> {
    let (tree, lookups) = walked(stack)?;
    differences("the stacked tree", &tree, &stacked(stack))?;
    if stack.is_plain() {
        differences("the unpacked tree", &tree, &unpacked(stack))?;
    }
    let size = u64::try_from(tree.len()).unwrap();
    let refused = tree.values().filter(|seen| matches!(seen, Seen::Refused(_))).count();
    count.stacks.set(count.stacks.get() + 1);
    count.seen.set(count.seen.get() + size);
    count.refused.set(count.refused.get() + u64::try_from(refused).unwrap());
    count.lookups.set(count.lookups.get() + lookups);
    count.largest.set(count.largest.get().max(size));
    Ok(tree)
}

fn differences(model: &str, union: &Tree, expected: &Tree) -> Result<(), String> {
    if union == expected {
        return Ok(());
    }
    let paths: BTreeSet<_> = union.keys().chain(expected.keys()).collect();
    let differing = paths.into_iter().filter(|path| union.get(*path) != expected.get(*path));
    let lines = differing.map(|path| format!("{path:?}: {:?}\n    {model}: {:?}", union.get(path), expected.get(path)));
    Err(lines.collect::<Vec<_>>().join("\n"))
}

/// All stacks with one thing less.
fn smaller(stack: &Stack) -> Vec<Stack> {
    let mut all = Vec::new();
    let mut push = |change: &dyn Fn(&mut Stack)| {
        let mut changed = stack.clone();
        change(&mut changed);
        all.push(changed.numbered());
    };
    for (layer, entries) in stack.layers.iter().enumerate() {
        if stack.layers.len() > 1 {
            push(&|stack| drop(stack.layers.remove(layer)));
        }
        for (path, entry) in entries {
            let inside = format!("{path}/");
            if !path.is_empty() {
                push(&|stack| stack.layers[layer].retain(|other, _| other != path && !other.starts_with(&inside)));
            }
            for name in entry.attributes.keys() {
                push(&|stack| drop(stack.layers[layer].get_mut(path).unwrap().attributes.remove(name)));
            }
        }
    }
    all
}

fn shrunk(mut stack: Stack) -> Stack {
    while let Some(smaller) = smaller(&stack).into_iter().find(|stack| compare(stack, &Count::default()).is_err()) {
        stack = smaller;
    }
    stack
}

fn compare_all(what: &str, stacks: impl Fn(u64) -> Stack) {
    let wanted = std::env::var("DOCKER_FS_STACKS").map_or(STACKS, |text| text.parse().expect("a number of stacks"));
    let count = Count::default();
    for seed in 0..wanted {
        let stack = stacks(seed);
        if compare(&stack, &count).is_err() {
            let stack = shrunk(stack);
            let why = compare(&stack, &Count::default()).unwrap_err();
            panic!("seed {seed} of {what}, top layer first: {}\n{why}", stack.text());
        }
    }
    let line = format!(
        "union model: {} {what}: {} entries ({} of them refused, at most {} a stack) and {} lookups agree\n",
        count.stacks.get(),
        count.seen.get(),
        count.refused.get(),
        count.largest.get(),
        count.lookups.get(),
    );
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

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }

    fn path(&mut self, names: &[&str], depth: usize) -> String {
        let depth = 1 + self.below(depth);
        (0..depth).map(|_| self.pick(names)).collect::<Vec<_>>().join("/")
    }

    fn directory(&mut self) -> Entry {
        let mut entry = Entry::new(What::Dir);
        if self.percent(25) {
            entry = entry.with("opaque", self.pick(&["y", "y", "y", "x", "n", "yy", ""]));
        }
        if self.percent(3) {
            entry = entry.with("whiteout", "");
        }
        Entry { foreign: self.percent(8), ..entry }
    }

    fn entry(&mut self) -> Entry {
        let content = self.next().to_string();
        let entry = match self.below(100) {
            0..42 => return self.directory(),
            42..60 => Entry::new(What::File(content)),
            60..65 => Entry::new(What::File(String::new())),
            65..78 => Entry::new(What::Char(0, 0)),
            78..81 => Entry::new(What::Char(0, 1)),
            81..84 => Entry::new(What::Char(1, 0)),
            84..90 => Entry::new(What::File(String::new())).with("whiteout", self.pick(&["", "y"])),
            90..93 => Entry::new(What::File(content)).with("whiteout", "y"),
            93..95 => Entry::new(What::File(content)).with("opaque", "y"),
            95..98 => Entry::new(What::Link(self.path(&NAMES, 2))),
            _ => Entry::new(What::Fifo),
        };
        Entry { foreign: self.percent(8), ..entry }
    }

    fn entries(&mut self, names: &[&str]) -> Entries {
        let mut root = Entry::new(What::Dir);
        if self.percent(15) {
            root = root.with("opaque", self.pick(&["y", "y", "x"]));
        }
        let mut entries = Entries::from([(String::new(), root)]);
        for _ in 0..self.below(8) {
            let path = self.path(names, 4);
            for dir in above(&path) {
                let dir = entries.entry(dir.to_owned()).or_insert_with(|| self.directory());
                if !dir.is_dir() {
                    *dir = self.directory();
                }
            }
            let entry = self.entry();
            entries.entry(path).or_insert(entry);
        }
        entries
    }

    fn redirect(&mut self, names: &[&str]) -> String {
        match self.below(20) {
            0 => self.pick(&["", "/", "a/b", "//a", "/a/", "/a//b", "/a/../b", "/..", "..", ".", "/./a"]).to_owned(),
            1..6 => self.pick(names).to_owned(),
            _ => format!("/{}", self.path(names, 3)),
        }
    }
}

fn plain_stack(seed: u64) -> Stack {
    let mut random = Random(seed);
    let names = &NAMES[..2 + random.below(3)];
    let layers = (0..=random.below(8)).map(|_| random.entries(names)).collect();
    let prefix = if random.percent(50) { Prefix::Trusted } else { Prefix::User };
    Stack { prefix, layers }.numbered()
}

/// A plain stack with redirects and metacopies put on it.
fn redirecting_stack(seed: u64) -> Stack {
    let mut random = Random(!seed);
    let mut stack = plain_stack(seed);
    let names = &NAMES[..2 + random.below(3)];
    for entries in &mut stack.layers {
        let opaque: Vec<_> =
            entries.iter().filter(|(_, e)| e.is_opaque()).map(|(path, _)| format!("{path}/")).collect();
        for (path, entry) in entries.iter_mut().filter(|(path, _)| !path.is_empty()) {
            let is_file = matches!(entry.what, What::File(_));
            if is_file && random.percent(50) && !opaque.iter().any(|dir| path.starts_with(dir.as_str())) {
                let value = if random.percent(4) { "abc" } else { random.pick(&["", "\0\0\0\0"]) };
                entry.attributes.insert("metacopy".into(), value.into());
            }
            if (is_file && random.percent(50)) || random.percent(25) {
                entry.attributes.insert("redirect".into(), random.redirect(names));
            }
        }
    }
    // Few with the `user.` prefix, which refuses them all.
    stack.prefix = if seed.is_multiple_of(8) { Prefix::User } else { Prefix::Trusted };
    stack.numbered()
}

#[test]
fn plain_stacks_agree_with_both_models() {
    compare_all("plain stacks", plain_stack);
}

#[test]
fn redirecting_stacks_agree_with_the_model() {
    compare_all("stacks with redirects and metacopies", redirecting_stack);
}

// Stacks by name, top first, and what the union shows of them.

type Named = (&'static str, &'static [&'static str], &'static str);

const PLAIN: &[Named] = &[
    // One name in three layers.
    ("directories_of_all_layers_merge", &["a/ a/x=0", "a/ a/y=1", "a/ a/z=2"], "a/@0x3 a/x=0@0 a/y=1@1 a/z=2@2"),
    ("a_file_between_directories_hides_the_lower_one", &["a/ a/x=0", "a=1", "a/ a/z=2"], "a/@0 a/x=0@0"),
    ("a_whiteout_between_directories_hides_the_lower_one", &["a/ a/x=0", "a:0:0", "a/ a/z=2"], "a/@0 a/x=0@0"),
    ("a_file_hides_all_below", &["a=0", "a/ a/y=1", "a=2"], "a=0@0"),
    ("a_symlink_hides_all_below", &["a->b", "a/ a/y=1", "b/ b/z=2"], "a->b@0 b/@2 b/z=2@2"),
    ("a_fifo_hides_all_below", &["a|", "a/ a/y=1"], "a|@0"),
    ("a_device_hides_all_below", &["a:1:3", "a/ a/y=1"], "a:1:3@0"),
    ("a_whiteout_hides_all_below", &["a:0:0", "a/ a/y=1", "a=2"], ""),
    ("a_whiteout_in_the_middle_hides_all_below", &["", "a:0:0", "a/ a/z=2"], ""),
    ("an_opaque_directory_hides_all_below", &["", "a/{opaque=y} a/y=1", "a/ a/z=2"], "a/@1 a/y=1@1"),
    ("an_opaque_directory_merges_with_those_above", &["a/ a/x=0", "a/{opaque=y}", "a/ a/z=2"], "a/@0x2 a/x=0@0"),
    ("a_file_comes_back_above_a_whiteout", &["a=0", "a:0:0", "a=2"], "a=0@0"),
    ("a_directory_comes_back_empty_above_a_whiteout", &["a/", "a:0:0", "a/ a/z=2"], "a/@0"),
    ("names_sort_as_bytes", &["b= a-=", "a/ a/x="], "a/@1 a-=@0 a/x=@1 b=@0"),
    // Whiteouts.
    ("only_device_0_0_is_a_whiteout", &["a:0:1 b:1:0 c:0:0", "a=1 b=1 c=1"], "a:0:1@0 b:1:0@0"),
    ("a_whiteout_in_the_bottom_layer_is_not_shown", &["", "a:0:0"], ""),
    ("a_whiteout_in_the_only_layer_is_not_shown", &["a:0:0 b/ b/c:0:0"], "b/@0"),
    ("a_whiteout_in_a_directory_of_one_layer_is_not_shown", &["a/ a/b:0:0 a/c=0", "d/"], "a/@0 a/c=0@0 d/@1"),
    ("an_empty_file_with_the_attribute_is_a_whiteout", &["a={whiteout=} b={whiteout=y}", "a=1 b/ b/c=1"], ""),
    ("a_file_with_content_is_no_whiteout", &["a=0{whiteout=y}", "a=1"], "a=0@0"),
    ("the_attribute_needs_no_marked_directory", &["a/ a/b={whiteout=}", "a/ a/b=1 a/c=1"], "a/@0x2 a/c=1@1"),
    ("a_directory_with_the_attribute_is_no_whiteout", &["a/{whiteout=y}", "a/ a/x=1"], "a/@0x2 a/x=1@1"),
    ("a_whiteout_of_the_other_prefix_is_a_file", &["a={whiteout=y}foreign", "a=1"], "a=@0"),
    // Opaque directories.
    (
        "only_y_is_opaque",
        &["a/{opaque=x} b/{opaque=n} c/{opaque=yy} d/{opaque=}", "a/x=1 b/x=1 c/x=1 d/x=1"],
        "a/@0x2 a/x=1@1 b/@0x2 b/x=1@1 c/@0x2 c/x=1@1 d/@0x2 d/x=1@1",
    ),
    ("an_opaque_root_merges", &["/{opaque=y} a=0", "/{opaque=y} b=1", "c=2"], "a=0@0 b=1@1 c=2@2"),
    ("an_opaque_directory_hides_below_itself_too", &["a/{opaque=y} a/b/ a/b/x=0", "a/b/y=1"], "a/@0 a/b/@0 a/b/x=0@0"),
    ("an_opaque_mark_of_the_other_prefix_means_nothing", &["a/{opaque=y}foreign", "a/x=1"], "a/@0x2 a/x=1@1"),
    ("an_opaque_file_is_a_file", &["a=0{opaque=y}", "a/x=1"], "a=0@0"),
    ("an_opaque_directory_may_hold_whiteouts", &["a/{opaque=y} a/x:0:0 a/y=0", "a/x=1 a/z=1"], "a/@0 a/y=0@0"),
    ("an_opaque_directory_of_the_bottom_layer_merges", &["a/", "a/{opaque=y} a/x=1"], "a/@0x2 a/x=1@1"),
];

const REDIRECTED: &[Named] = &[
    // Redirects of directories.
    ("a_relative_redirect_names_a_sibling", &["a/{redirect=b} b:0:0", "b/ b/x=1"], "a/@0x2 a/x=1@1"),
    (
        "an_absolute_redirect_starts_at_the_root",
        &["c/a/{redirect=/b/d}", "b/d/x=1"],
        "b/@1 b/d/@1 b/d/x=1@1 c/@0 c/a/@0x2 c/a/x=1@1",
    ),
    ("the_old_name_is_not_asked_below", &["a/{redirect=b}", "a/x=1"], "a/@0"),
    (
        "a_redirect_affects_the_layers_below_it_only",
        &["a/ b/ b/x=0", "a/{redirect=b}", "b/y=2"],
        "a/@0x3 a/y=2@2 b/@0x2 b/x=0@0 b/y=2@2",
    ),
    ("redirects_chain", &["a/{redirect=/b} b:0:0", "b/{redirect=/c} c:0:0", "c/x=2"], "a/@0x3 a/x=2@2"),
    (
        "a_relative_redirect_follows_an_absolute_one",
        &["a/{redirect=/b/c} b:0:0", "b/c/{redirect=d}", "b/d/x=2"],
        "a/@0x3 a/x=2@2",
    ),
    (
        "two_directories_change_places",
        &["a/{redirect=b} b/{redirect=a}", "a/x=1 b/y=1"],
        "a/@0x2 a/y=1@1 b/@0x2 b/x=1@1",
    ),
    (
        "a_directory_redirects_to_one_above_itself",
        &["a/b/{redirect=/a}", "a/b/x=1"],
        "a/@0x2 a/b/@0x2 a/b/b/@1 a/b/b/x=1@1",
    ),
    ("opaque_wins_over_redirect", &["a/{opaque=y,redirect=/b}", "a/x=1 b/y=1"], "a/@0 b/@1 b/y=1@1"),
    ("a_redirect_in_the_bottom_layer_means_nothing", &["", "a/{redirect=//} b/x=1"], "a/@1 b/@1 b/x=1@1"),
    ("a_redirect_on_a_file_means_nothing", &["a=0{redirect=//}", "b=1"], "a=0@0 b=1@1"),
    (
        "a_redirect_of_the_other_prefix_means_nothing",
        &["a/{redirect=/b}foreign", "a/x=1 b/y=1"],
        "a/@0x2 a/x=1@1 b/@1 b/y=1@1",
    ),
    ("a_redirect_to_nothing_leaves_the_directory", &["a/{redirect=/zz} a/x=0", "a/y=1"], "a/@0 a/x=0@0"),
    ("a_redirect_to_a_file_leaves_the_directory", &["a/{redirect=/b} a/x=0", "b=1", "b/y=2"], "a/@0 a/x=0@0 b=1@1"),
    (
        "a_redirect_through_a_symlink_leaves_the_directory",
        &["a/{redirect=/l/c}", "l->b b/c/x=1"],
        "a/@0 b/@1 b/c/@1 b/c/x=1@1 l->b@1",
    ),
    ("a_whiteout_of_the_target_stops_the_walk", &["a/{redirect=/b/c}", "b/c:0:0", "b/c/x=2"], "a/@0 b/@1x2"),
    ("a_whiteout_above_the_target_stops_the_walk", &["a/{redirect=/b/c}", "b:0:0", "b/c/x=2"], "a/@0"),
    ("a_file_above_the_target_stops_the_walk", &["a/{redirect=/b/c}", "b=1", "b/c/x=2"], "a/@0 b=1@1"),
    (
        "an_opaque_directory_above_the_target_stops_the_walk",
        &["a/{redirect=/b/c}", "b/{opaque=y} b/c/x=1", "b/c/y=2"],
        "a/@0x2 a/x=1@1 b/@1 b/c/@1 b/c/x=1@1",
    ),
    (
        "an_opaque_directory_above_a_missing_target_stops_the_walk",
        &["a/{redirect=/b/c}", "b/{opaque=y}", "b/c/y=2"],
        "a/@0 b/@1",
    ),
    (
        "a_missing_directory_above_the_target_does_not_stop_the_walk",
        &["a/{redirect=/b/c}", "", "b/c/y=2"],
        "a/@0x2 a/y=2@2 b/@2 b/c/@2 b/c/y=2@2",
    ),
    (
        "a_redirected_directory_above_the_target_bends_the_walk",
        &["a/{redirect=/b/c} b:0:0", "b/{redirect=/d} d:0:0", "d/c/x=2"],
        "a/@0x2 a/x=2@2",
    ),
    (
        "an_opaque_directory_does_not_stop_a_redirect_inside",
        &["a/{redirect=/b/c} b:0:0", "b/{opaque=y} b/c/{redirect=/d}", "b/c/x=2 d/y=2"],
        "a/@0x3 a/y=2@2 d/@2 d/y=2@2",
    ),
    (
        "an_absolute_redirect_asks_layers_that_do_not_hold_the_parent",
        &["p/a/{redirect=/b}", "b/x=1", "p/a/y=2 b/z=2"],
        "b/@1x2 b/x=1@1 b/z=2@2 p/@0x2 p/a/@0x3 p/a/x=1@1 p/a/z=2@2",
    ),
    (
        "an_absolute_redirect_leaves_an_opaque_parent",
        &["p/{opaque=y} p/a/{redirect=/b} b:0:0", "b/x=1"],
        "p/@0 p/a/@0x2 p/a/x=1@1",
    ),
    ("a_relative_redirect_stays_in_an_opaque_parent", &["p/{opaque=y} p/a/{redirect=b}", "p/b/x=1"], "p/@0 p/a/@0"),
    (
        "malformed_redirects_are_refused",
        &["a/{redirect=} b/{redirect=/} c/{redirect=b/c} d/{redirect=//a} e/{redirect=/a/} f/{redirect=/a//b} ok/", ""],
        "a!EINVAL b!EINVAL c!EINVAL d!EINVAL e!EINVAL f!EINVAL ok/@0",
    ),
    ("a_malformed_redirect_below_refuses_the_whole", &["a/ a/x=0", "a/{redirect=/}", ""], "a!EINVAL"),
    (
        "a_malformed_redirect_below_an_opaque_directory_is_not_seen",
        &["a/{opaque=y} a/x=0", "a/{redirect=/}", ""],
        "a/@0 a/x=0@0",
    ),
    (
        "a_malformed_redirect_above_the_target_refuses",
        &["a/{redirect=/b/c}", "b/{redirect=/} b/c/", "b/"],
        "a!EINVAL b!EINVAL",
    ),
    (
        "a_refused_directory_has_children_that_are_not",
        &["a/{redirect=/b/c}", "b/c/{opaque=y} b/c/x=1", "b/{redirect=/}", ""],
        "a/@0x2 a/x=1@1 b!EINVAL",
    ),
    (
        "dots_in_a_redirect_are_refused_where_the_walk_gets_there",
        &["a/{redirect=/d/../b} b/{redirect=..} c/{redirect=/zz/..}", "b/x=1 d/"],
        "a!EACCES b!EACCES c/@0 d/@1",
    ),
    // Metacopies.
    ("a_metacopy_has_the_data_of_the_file_below", &["a=0{metacopy=}", "a=1"], "a=1@0"),
    ("metacopies_chain", &["a=0{metacopy=}", "a=1{metacopy=}", "", "a=3", "a=4"], "a=3@0"),
    (
        "a_metacopy_follows_its_redirect",
        &["a=0{metacopy=,redirect=/b/c} d=0{metacopy=,redirect=e}", "a=1 b/c=1 d=1 e=one"],
        "a=1@0 b/@1 b/c=1@1 d=one@0 e=one@1",
    ),
    (
        "a_file_above_the_target_stops_the_walk_for_data",
        &["a=0{metacopy=,redirect=/b/c}", "b=1", "b/c=2"],
        "a?@0 b=1@1",
    ),
    (
        "a_metacopy_follows_redirects_of_metacopies",
        &["a=0{metacopy=,redirect=/b/c}", "b/c=1{metacopy=,redirect=d} b/d=one", "b/d=two b/c=no"],
        "a=two@0 b/@1x2 b/c=two@1 b/d=one@1",
    ),
    (
        "a_metacopy_over_nothing_has_no_data",
        &["a=0{metacopy=} b=0{metacopy=} c/ c/d=0{metacopy=}", "b:0:0", "b=2"],
        "a?@0 b?@0 c/@0 c/d?@0",
    ),
    (
        "a_metacopy_over_no_regular_file_has_no_data",
        &["a=0{metacopy=} b=0{metacopy=} c=0{metacopy=}", "a/ b->x c|", "a=2 b=2 c=2"],
        "a?@0 b?@0 c?@0",
    ),
    ("a_metacopy_in_the_bottom_layer_has_no_data", &["", "a=1{metacopy=} b=1"], "a?@1 b=1@1"),
    (
        "a_metacopy_attribute_may_be_a_header",
        &["a=0{metacopy=abcd} b=0{metacopy=abc} c=0{metacopy=a}", "a=1 b=1"],
        "a=1@0 b!EIO c!EIO",
    ),
    (
        "a_metacopy_on_no_regular_file_means_nothing",
        &["a->b{metacopy=} b/{metacopy=} c:0:1{metacopy=a}", "a=1 b/x=1"],
        "a->b@0 b/@0x2 b/x=1@1 c:0:1@0",
    ),
    ("a_metacopy_below_a_directory_is_a_file", &["a/ a/x=0", "a=1{metacopy=a}", "a/y=2"], "a/@0 a/x=0@0"),
    ("a_metacopy_over_a_refused_directory_only_lacks_data", &["a=0{metacopy=}", "a/{redirect=/}", ""], "a?@0"),
    ("a_malformed_redirect_of_a_metacopy_is_refused", &["a=0{metacopy=,redirect=//}", "a=1"], "a!EINVAL"),
    ("an_empty_metacopy_marked_as_whiteout_is_a_whiteout", &["a={metacopy=,whiteout=}", "a=1"], ""),
];

/// With `userxattr`.
const UNPRIVILEGED: &[Named] = &[
    ("whiteouts_and_opaque_marks_are_the_users", &["a={whiteout=} b/{opaque=y}", "a=1 b/x=1"], "b/@0"),
    (
        "redirects_are_refused",
        &["a/{redirect=b} c/{redirect=/b} d/{redirect=/}", "b/x=1"],
        "a!EPERM b/@1 b/x=1@1 c!EPERM d!EINVAL",
    ),
    (
        "a_redirect_in_the_last_contributor_means_nothing",
        &["p/a/{redirect=b}", "q/", "p/a/{redirect=/}"],
        "p/@0x2 p/a!EPERM q/@1",
    ),
    ("a_redirect_in_a_directory_of_one_layer_means_nothing", &["p/a/{redirect=b}", "q/"], "p/@0 p/a/@0 q/@1"),
    ("an_opaque_directory_has_no_redirect", &["a/{opaque=y,redirect=b}", "b/x=1"], "a/@0 b/@1 b/x=1@1"),
    ("metacopies_are_refused", &["a=0{metacopy=}", "a=1 b=1{metacopy=}", "b=2"], "a!EPERM b!EPERM"),
];

fn words(tree: &Tree) -> String {
    let shown = tree.iter().filter(|(path, _)| !path.is_empty());
    shown.map(|(path, seen)| seen.word(path)).collect::<Vec<_>>().join(" ")
}

fn named(prefix: Prefix, layers: &[&str]) -> Stack {
    Stack { prefix, layers: layers.iter().map(|layer| parse(layer)).collect() }.numbered()
}

#[test]
fn named_stacks_show_what_is_written_here() {
    let tables =
        [(Prefix::Trusted, PLAIN), (Prefix::User, PLAIN), (Prefix::Trusted, REDIRECTED), (Prefix::User, UNPRIVILEGED)];
    let mut wrong = Vec::new();
    for (prefix, table) in tables {
        for (name, layers, expected) in table {
            let stack = named(prefix, layers);
            match compare(&stack, &Count::default()) {
                Ok(tree) if words(&tree) == *expected => {}
                Ok(tree) => wrong.push(format!("{name}: {}\n    not: {expected}", words(&tree))),
                Err(why) => wrong.push(format!("{name}: {why}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_absolute_walk_that_ends_at_a_metacopy_forgets_opaque_directories() {
    let layers = ["a=0{metacopy=,redirect=/b/c}", "b/{opaque=y} b/c=1{metacopy=}", "b/c=2"];
    let stack = named(Prefix::Trusted, &layers);
    assert_eq!(words(&walked(&stack).unwrap().0), "a=2@0 b/@1 b/c?@1");
    assert_eq!(words(&stacked(&stack)), "a?@0 b/@1 b/c?@1", "the model has no such exception");
}

#[test]
fn random_stacks_are_the_same_in_every_run_and_read_as_they_print() {
    for seed in 0..100 {
        let stack = redirecting_stack(seed);
        assert_eq!(stack.text(), redirecting_stack(seed).text());
        for entries in &stack.layers {
            assert_eq!(line(&parse(&line(entries))), line(entries));
        }
    }
}
