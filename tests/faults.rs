//! What is served while the system fails: for each entry the right answer or an error, never wrong bytes, never a name
//! that is missing without an error; and when the failure is over, all is right again, since nothing wrong was kept.
//!
//! Faults come in two ways. Through the library each request is made once with each system call failing, on a thread of
//! its own with a filter of system calls. In a mount strace(1) lets the n-th call of each kind fail in each thread, for
//! each n up to a whole walk; there the kernel's caches are under test too.
//!
//! Everything here needs root. `DOCKER_FS_FAULTS` says how many of the n are tried; without a number all are.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use docker_fs::store;
use docker_fs::view::{self, View};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use support::eventually;
use support::filter::{GETXATTRAT, LISTXATTRAT, OPENAT2, without};
use support::mount::{Mounted, require_privileges};
use support::store::StoreBuilder;
use support::tree::{self, Content, Options, Tree, Walk};
use support::view::{Answer, Answers, plainly, read};

const ERRORS: [(&str, Errno); 3] = [("EIO", Errno::IO), ("ENOMEM", Errno::NOMEM), ("EMFILE", Errno::MFILE)];

/// Three layers with something of each kind in them, deletions, a redirect, and a container.
fn sample(root: PathBuf) -> PathBuf {
    let mut store = StoreBuilder::new(root);
    let layers = store.chain(3);
    for (n, layer) in layers.iter().enumerate() {
        let diff = layer.diff_dir();
        for dir in ["etc", "opt/deep/er", "usr/lib"] {
            fs::create_dir_all(diff.join(dir)).unwrap();
        }
        fs::write(diff.join(format!("etc/only-{n}")), format!("only {n}")).unwrap();
        fs::write(diff.join("etc/each"), format!("each {n}")).unwrap();
        fs::write(diff.join(format!("opt/deep/er/{n}")), vec![b'a' + n as u8; 5_000]).unwrap();
        symlink(format!("../target-{n}"), diff.join(format!("usr/lib/link-{n}"))).unwrap();
        layer.set_size(u64::try_from(n).unwrap() + 1);
    }
    let [base, middle, top] = [0, 1, 2].map(|n: usize| layers[n].diff_dir());
    fs::write(base.join("usr/lib/deleted"), "deleted").unwrap();
    rustix::fs::mknodat(CWD, middle.join("usr/lib/deleted"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    rustix::fs::setxattr(top.join("opt"), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    fs::create_dir(top.join("moved")).unwrap();
    rustix::fs::setxattr(top.join("moved"), "trusted.overlay.redirect", b"/usr", XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(base.join("etc/each"), "user.some", b"value", XattrFlags::empty()).unwrap();
    fs::hard_link(base.join("etc/only-0"), base.join("etc/again")).unwrap();
    let image = store.image(&layers);
    store.tag("app:1", &image);
    let below = store.image(&layers[..2]);
    store.tag("app:0", &below);
    let container = store.container("web", &image, layers.last());
    fs::write(container.upper_dir().join("log"), "log").unwrap();
    store.finish()
}

fn open(root: &Path) -> docker_fs::error::Result<View> {
    View::new(store::open(root, &store::Options::default())?, &view::Options::default())
}

/// The calls by which a store is read.
fn calls() -> [(&'static str, i64); 7] {
    [
        ("openat2", OPENAT2),
        ("statx", libc::SYS_statx),
        ("getdents64", libc::SYS_getdents64),
        ("pread64", libc::SYS_pread64),
        ("readlinkat", libc::SYS_readlinkat),
        ("getxattrat", GETXATTRAT),
        ("listxattrat", LISTXATTRAT),
    ]
}

/// What of the answers is wrong, though it is no error.
fn wrong(expected: &Answers, found: &Answers) -> Vec<String> {
    let is_wrong = |(question, answer): &(&(Vec<u8>, &str), &Answer)| {
        matches!(answer, Answer::Is(_)) && expected.get(*question) != Some(*answer)
    };
    let line = |(question, answer): (&(Vec<u8>, &str), &Answer)| {
        let (path, what) = question;
        format!("/{} {what}: expected {:?}, found {answer:?}", path.escape_ascii(), expected.get(question))
    };
    found.iter().filter(is_wrong).map(line).take(4).collect()
}

#[test]
fn each_request_is_answered_right_or_not_at_all() {
    if !require_privileges("reading trusted attributes") {
        return;
    }
    let dir = support::scratch("faults");
    let root = sample(dir.path().join("docker"));
    let view = open(&root).unwrap();
    // From here on the sizes of layers are known, which are for people: where one cannot be read, the facts leave it out.
    let expected = read(&view, &plainly);
    let failed = |answers: &Answers| answers.values().filter(|answer| matches!(answer, Answer::Failed(_))).count();
    assert!(failed(&expected) == 0 && expected.len() > 500, "{} answers, {} errors", expected.len(), failed(&expected));
    for (name, call) in calls() {
        for (error, errno) in ERRORS {
            let fail = |call_once: &mut (dyn FnMut() + Send)| without(&[call], errno.raw_os_error(), call_once);
            let found = read(&view, &fail);
            let troubles = wrong(&expected, &found);
            assert!(troubles.is_empty(), "{name} {error}:\n  {}", troubles.join("\n  "));
            eprintln!("{name} {error}: {} of {} answers are errors", failed(&found), found.len());
            assert!(failed(&found) > 0, "{name} {error} was not met");
            let troubles = wrong(&expected, &read(&view, &plainly));
            assert!(troubles.is_empty(), "after {name} {error}:\n  {}", troubles.join("\n  "));
            // A store that opens all the same is the right one, or says what of it could not be read.
            if let Ok(opened) = without(&[call], errno.raw_os_error(), || open(&root))
                && opened.damage().is_empty()
            {
                let troubles = wrong(&expected, &read(&opened, &plainly));
                assert!(troubles.is_empty(), "opened with {name} {error}:\n  {}", troubles.join("\n  "));
            }
        }
    }
}

/// A tracer of a running process; ends with the value, and then the process goes on without it.
struct Tracer {
    child: Child,
    log: PathBuf,
}

impl Tracer {
    /// Lets the n-th of each of these calls fail, in each thread.
    fn new(pid: u32, error: &str, n: usize, dir: &Path) -> Self {
        const CALLS: &str = "openat2,statx,getdents64,pread64,readlinkat,lgetxattr,llistxattr";
        let (log, said) = (dir.join("trace"), dir.join("said"));
        let child = Command::new("strace")
            .args([
                "-f",
                "-e",
                &format!("trace={CALLS}"),
                "-e",
                &format!("inject={CALLS}:error={error}:when={n}"),
                "-o",
            ])
            .arg(&log)
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stderr(fs::File::create(&said).unwrap())
            .spawn()
            .expect("there is no strace");
        let tracer = Self { child, log };
        assert!(eventually(|| fs::read_to_string(&said).unwrap().contains("attached")), "{said:?}");
        tracer
    }

    /// Ends it; tells how many calls failed by it.
    fn end(mut self) -> usize {
        self.stop();
        fs::read_to_string(&self.log).unwrap().matches("(INJECTED)").count()
    }

    fn stop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::INT);
        let _ = self.child.wait();
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What of a walk is wrong, though it is no error.
fn wrong_in_walk(expected: &Tree, found: &Walk) -> Vec<String> {
    // `<path>: <what failed>`; a name that is said not to be there is no error, but a wrong answer.
    let excuses: Vec<&String> = found.troubles.iter().filter(|trouble| !is_wrong_trouble(trouble)).collect();
    let excused = |path: &[u8]| {
        let path = path.escape_ascii().to_string();
        let reaches = |trouble: &&String| {
            let place = trouble.split(": ").next().unwrap();
            path == place || place.is_empty() || path.strip_prefix(place).is_some_and(|rest| rest.starts_with('/'))
        };
        excuses.iter().any(reaches)
    };
    let mut troubles: Vec<String> =
        found.troubles.iter().filter(|trouble| is_wrong_trouble(trouble)).cloned().collect();
    for (path, lines) in tree::diff_by_path(&without_groups(expected), &without_groups(&found.tree)) {
        let content = found.tree.get(&path).and_then(|entry| entry.content.as_ref());
        let is_error = matches!(content, Some(Content::Failed(errno)) if *errno != Errno::NOENT);
        let only_content = lines.iter().all(|line| line.contains(": content: "));
        if !(excused(&path) || (is_error && only_content)) {
            troubles.extend(lines);
        }
    }
    troubles
}

fn is_wrong_trouble(trouble: &str) -> bool {
    trouble.contains(": listed as ") || trouble.contains(": listed twice") || trouble.contains("os error 2)")
}

/// Which name of a file is the first depends on which can be read.
fn without_groups(tree: &Tree) -> Tree {
    tree.iter().map(|(path, entry)| (path.clone(), tree::Entry { group: None, ..entry.clone() })).collect()
}

#[test]
fn whichever_call_fails_a_mount_answers_right_or_not_at_all() {
    if !require_privileges("mounting") {
        return;
    }
    let most = std::env::var("DOCKER_FS_FAULTS").ok().and_then(|text| text.parse().ok());
    let dir = support::scratch("faults");
    let root = sample(dir.path().join("docker"));
    let point = dir.path().join("mnt");
    // strace knows no getxattrat(2) and listxattrat(2) yet; without them attributes are read by other calls.
    let mount = without(&[GETXATTRAT, LISTXATTRAT], Errno::NOSYS.raw_os_error(), || Mounted::new(&root, &point));
    let pid = mount.server().unwrap();
    let expected = lasting(tree::snapshot(&point, &Options::default()));
    let (mut runs, mut faults, mut errors) = (0, 0, 0);
    for n in numbers(most) {
        let mut injected = 0;
        for (error, _) in ERRORS {
            forget();
            let tracer = Tracer::new(pid, error, n, dir.path());
            let mut found = tree::walk(&point, &Options::default());
            found.tree = lasting(found.tree);
            injected += tracer.end();
            let troubles = wrong_in_walk(&expected, &found);
            assert!(troubles.is_empty(), "call {n}, {error}:\n  {}", troubles.join("\n  "));
            errors += found.troubles.len();
            assert_eq!(mount.server(), Some(pid), "call {n}, {error}: the server is gone");
            let after = tree::walk(&point, &Options::default());
            let differing = tree::diff(&expected, &lasting(after.tree));
            assert!(
                after.troubles.is_empty() && differing.is_empty(),
                "after call {n}, {error}:\n  {}\n  {}",
                after.troubles.join("\n  "),
                differing.join("\n  ")
            );
            runs += 1;
        }
        faults += injected;
        if injected == 0 {
            break;
        }
    }
    eprintln!("{runs} walks of {} entries, {faults} calls failed, {errors} errors were seen", expected.len());
    assert!(faults > 0 && errors > 0, "no call failed");
}

/// A mount's tree without `status`, which tells what the mount does and is another file each second.
fn lasting(mut tree: Tree) -> Tree {
    tree.remove(b"status".as_slice());
    tree
}

/// All, or this many, the first ones closer together.
fn numbers(most: Option<usize>) -> Box<dyn Iterator<Item = usize>> {
    match most {
        None => Box::new(1..),
        Some(most) => Box::new((0..most).map(|n| 1 + n * (n + 1) / 2)),
    }
}

/// Has the kernel forget names and pages, so that all is asked for again.
fn forget() {
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}
