//! Reads all of a view through the library, without a mount: each answer apart, so that what one of them says can be
//! compared and what fails can be told from what is missing.

use std::collections::BTreeMap;
use std::fmt::Write;

use docker_fs::error::Result;
use docker_fs::layer::ReadAt;
use docker_fs::meta::Kind;
use docker_fs::view::{Entry, Node, View};

/// A question: a path, and what was asked of it.
pub type Question = (Vec<u8>, &'static str);

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Is(String),
    Failed(String),
}

pub type Answers = BTreeMap<Question, Answer>;

/// How a question is put: the call is to be made once, on whichever thread.
pub type Ask<'a> = &'a dyn Fn(&mut (dyn FnMut() + Send));

/// Puts questions on this thread.
pub fn plainly(call: &mut (dyn FnMut() + Send)) {
    call();
}

/// Asks for everything in a view.
pub fn read(view: &View, ask: Ask<'_>) -> Answers {
    let mut reader = Reader { ask, answers: Answers::new() };
    reader.directory(&view.root(), b"");
    reader.answers
}

/// The answers as text, a line each.
pub fn text(answers: &Answers) -> String {
    let mut text = String::new();
    for ((path, what), answer) in answers {
        writeln!(text, "/{} {what}: {answer:?}", path.escape_ascii()).expect("write to memory");
    }
    text
}

struct Reader<'a> {
    ask: Ask<'a>,
    answers: Answers,
}

impl Reader<'_> {
    fn ask<T: Send>(&self, question: impl Fn() -> Result<T> + Sync) -> Result<T> {
        let mut answer = None;
        (self.ask)(&mut || answer = Some(question()));
        answer.expect("the question was put")
    }

    /// Notes an answer, and hands it on.
    fn note<T>(
        &mut self,
        path: &[u8],
        what: &'static str,
        answer: Result<T>,
        shown: impl Fn(&T) -> String,
    ) -> Option<T> {
        let noted = match &answer {
            Ok(answer) => Answer::Is(shown(answer)),
            Err(error) => Answer::Failed(format!("{error} ({:?})", error.errno())),
        };
        self.answers.insert((path.to_vec(), what), noted);
        answer.ok()
    }

    fn directory(&mut self, dir: &Node, path: &[u8]) {
        let listed = self.ask(|| dir.list());
        let names = |entries: &Vec<(docker_fs::name::Name, Entry)>| {
            let mut names: Vec<_> =
                entries.iter().map(|(name, _)| name.as_bytes().escape_ascii().to_string()).collect();
            names.sort();
            names.join(" ")
        };
        let Some(entries) = self.note(path, "names", listed, names) else { return };
        for (name, entry) in entries {
            let child = if path.is_empty() { name.as_bytes().to_vec() } else { [path, b"/", name.as_bytes()].concat() };
            self.note(&child, "listed", Ok(()), |()| describe(&entry));
            let found = self.ask(|| dir.lookup(&name));
            self.note(&child, "looked up", found, |found| found.as_ref().map_or("nothing".to_owned(), describe));
            self.entry(&entry, &child);
        }
    }

    fn entry(&mut self, entry: &Entry, path: &[u8]) {
        let node = &entry.node;
        let attributes = self.ask(|| attributes(node));
        self.note(path, "attributes", attributes, String::clone);
        match entry.meta.kind {
            Kind::Directory => self.directory(node, path),
            Kind::Symlink => {
                let target = self.ask(|| node.read_link());
                self.note(path, "target", target, |target| target.escape_ascii().to_string());
            }
            Kind::Regular => {
                let content = self.ask(|| content(node));
                self.note(path, "content", content, |content| content.escape_ascii().to_string());
            }
            Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => {}
        }
    }
}

/// All but times: the view's own are those of the store's state.
fn describe(entry: &Entry) -> String {
    let meta = &entry.meta;
    let size = if meta.is_dir() { 0 } else { meta.size_bytes };
    format!("{:?} {:o} {}:{} {:?} {size}", meta.kind, meta.permissions, meta.uid, meta.gid, meta.rdev)
}

fn content(node: &Node) -> Result<Vec<u8>> {
    const MOST: usize = 1 << 20;
    let file = node.open()?;
    let mut content = Vec::new();
    let mut piece = [0; 8192];
    while content.len() < MOST {
        let offset = u64::try_from(content.len()).expect("a small file");
        let count = read_at(file.as_ref(), &mut piece, offset)?;
        if count == 0 {
            break;
        }
        content.extend_from_slice(&piece[..count]);
    }
    Ok(content)
}

fn read_at(file: &dyn ReadAt, piece: &mut [u8], offset: u64) -> Result<usize> {
    file.read_at(piece, offset).map_err(docker_fs::error::Error::io(|| "read".to_owned()))
}

fn attributes(node: &Node) -> Result<String> {
    let mut text = String::new();
    let mut names = node.xattr_names()?;
    names.sort();
    for name in names {
        let value = node.xattr(&name)?;
        let value = value.map_or("none".to_owned(), |value| value.escape_ascii().to_string());
        write!(text, "{}={value} ", name.escape_ascii()).expect("write to memory");
    }
    Ok(text)
}
