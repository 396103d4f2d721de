//! Looks at all that a view shows, and asserts that it does not contradict itself.

use docker_fs::error::Error;
use docker_fs::meta::Kind;
use docker_fs::name::{Name, TreePath};
use docker_fs::view::{Entry, Node, View};
use rustix::io::Errno;

/// More than a small store shows, unless its layers lead to each other again and again.
const NODES_MAX: usize = 20_000;
const DEPTH_MAX: usize = 40;
/// A status of more bytes is not one of a small store.
const STATUS_MAX: usize = 4 << 20;

struct Walk<'a> {
    view: &'a View,
    /// Whether everything must fit; otherwise nothing is asserted but that there is an end.
    is_strict: bool,
    nodes: usize,
}

/// Walks the whole view of a store that does not change.
pub(crate) fn all(view: &View) {
    Walk { view, is_strict: true, nodes: 0 }.directory(&view.root(), &mut Vec::new());
    let status = view.resolve(&TreePath::new(b"status").unwrap()).unwrap().expect("a status");
    let text = read(&status).expect("the status can be read");
    assert!(text.len() < STATUS_MAX, "a status of {} bytes", text.len());
    let parsed: serde_json::Value = serde_json::from_slice(&text).expect("the status is JSON");
    for damage in parsed["damage"].as_array().expect("a list of damage") {
        assert!(damage["reason"].as_str().is_some_and(|reason| reason.len() < 2_000), "{damage}");
    }
}

/// Walks the view of a store that changed a moment ago: what is gone may be an error.
pub(crate) fn after_a_change(view: &View) {
    Walk { view, is_strict: false, nodes: 0 }.directory(&view.root(), &mut Vec::new());
}

/// The content of a file of the view's own, or the store's.
fn read(node: &Node) -> Result<Vec<u8>, String> {
    let file = node.open().map_err(|error| error.to_string())?;
    let mut content = Vec::new();
    let mut buffer = [0; 8_192];
    loop {
        let offset = u64::try_from(content.len()).unwrap();
        match file.read_at(&mut buffer, offset).map_err(|error| error.to_string())? {
            0 => return Ok(content),
            count => content.extend_from_slice(&buffer[..count]),
        }
    }
}

fn is_document(name: &Name) -> bool {
    [&b"manifest.json"[..], b"index.json"].contains(&name.as_bytes())
}

fn shown(path: &[Name]) -> String {
    path.iter().map(|name| String::from_utf8_lossy(name.as_bytes())).collect::<Vec<_>>().join("/")
}

impl Walk<'_> {
    fn check(&self, holds: bool, path: &[Name], what: impl FnOnce() -> String) {
        assert!(holds || !self.is_strict, "{}: {}", shown(path), what());
    }

    /// The answer, which must be one.
    fn answer<T>(&self, answer: Result<T, Error>, path: &[Name], doing: &str) -> Option<T> {
        let is_answered = |error: &Error| path.len() == 1 && self.is_told(error);
        answer.map_err(|error| self.check(is_answered(&error), path, || format!("cannot be {doing}: {error}"))).ok()
    }

    /// Whether an error of a folder is one that `status` tells, so that the folder cannot know all its names.
    fn is_told(&self, error: &Error) -> bool {
        let Error::Damaged { why, .. } = error else { return false };
        self.view.damage().iter().any(|damage| damage.to_string() == *why)
    }

    fn directory(&mut self, dir: &Node, path: &mut Vec<Name>) {
        let Some(entries) = self.answer(dir.list(), path, "listed") else { return };
        let mut names: Vec<&Name> = entries.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        self.check(names.len() == entries.len(), path, || "lists a name twice".to_owned());
        let absent = Name::new(b"\x01 no such name").unwrap();
        let found = self.answer(dir.lookup(&absent), path, "asked for what is absent").flatten();
        self.check(found.is_none(), path, || "has any name".to_owned());
        for (name, entry) in &entries {
            self.nodes += 1;
            path.push(name.clone());
            if let Some(found) = self.answer(dir.lookup(name), path, "looked up") {
                match &found {
                    Some(found) => self.entry(found, entry, path),
                    None => self.check(false, path, || "is listed and cannot be found".to_owned()),
                }
            }
            path.pop();
        }
    }

    fn entry(&mut self, found: &Entry, listed: &Entry, path: &mut Vec<Name>) {
        let Entry { node, meta } = found;
        self.check(meta.kind == listed.meta.kind, path, || "is of two kinds".to_owned());
        let is_same = node.is_momentary() || node.identity() == listed.node.identity();
        self.check(is_same, path, || "is two files".to_owned());
        if let Some(fresh) = self.answer(node.fresh_meta(), path, "asked for attributes") {
            self.check(fresh.kind == meta.kind, path, || "is of two kinds".to_owned());
        }
        for name in self.answer(node.xattr_names(), path, "asked for attributes' names").unwrap_or_default() {
            let value = self.answer(node.xattr(&name), path, "asked for an attribute").flatten();
            self.check(value.is_some(), path, || "has no value of a listed attribute".to_owned());
        }
        match meta.kind {
            Kind::Directory if self.nodes < NODES_MAX && path.len() < DEPTH_MAX => self.directory(node, path),
            Kind::Symlink => {
                let target = self.answer(node.read_link(), path, "read as a link");
                if let (Node::Link(_), Some(target)) = (node, target) {
                    self.link(path, &target);
                }
            }
            Kind::Regular if matches!(node, Node::Text(_)) => match read(node) {
                Ok(text) => self.check(text.len() as u64 == meta.size_bytes, path, || "has another size".to_owned()),
                // A manifest is checked only when it is read.
                Err(error) => self.check(path.last().is_some_and(is_document), path, || error),
            },
            Kind::Regular => {
                // A metacopy's data may be nowhere.
                let opened = node.open().map_or_else(|error| error.errno() == Errno::IO, |_| true);
                self.check(opened, path, || "cannot be opened".to_owned());
            }
            Kind::Directory | Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => {}
        }
    }

    /// A link of the view's own leads to something.
    fn link(&self, path: &[Name], target: &[u8]) {
        let mut place: Vec<&[u8]> = path.iter().map(Name::as_bytes).collect();
        place.pop();
        for part in target.split(|byte| *byte == b'/') {
            match part {
                b".." => assert!(place.pop().is_some(), "{} leads out of the view", shown(path)),
                part => place.push(part),
            }
        }
        let place = TreePath::new(&place.join(&b'/')).unwrap();
        let found = self.answer(self.view.resolve(&place), path, "followed").flatten();
        self.check(found.is_some(), path, || "leads to nothing".to_owned());
    }
}
