//! What the program asks of the system while all of a store is walked and read through a mount: nothing that writes,
//! removes, locks or changes, and nothing of the store is opened that is no regular file and no directory.
//!
//! Everything here needs root, and strace(1).

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

use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use support::eventually;
use support::filter::{OPEN_TREE, OPENAT2, without};
use support::mount::require_privileges;
use support::store::StoreBuilder;
use support::tree::{Options, walk};

/// Part of the name of all that must not be opened, and of nothing else.
const SPECIAL: &str = "special-file";
/// Calls that change something, whatever their arguments.
const FORBIDDEN: [&str; 40] = [
    "chmod",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "chown",
    "fchown",
    "fchownat",
    "lchown",
    "truncate",
    "ftruncate",
    "fallocate",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "unlink",
    "unlinkat",
    "rmdir",
    "rename",
    "renameat",
    "renameat2",
    "setxattr",
    "lsetxattr",
    "fsetxattr",
    "removexattr",
    "lremovexattr",
    "fremovexattr",
    "utime",
    "utimes",
    "futimesat",
    "utimensat",
    "flock",
    "creat",
    "pwrite64",
    "pwritev",
    "pwritev2",
];
/// What else is traced, to be looked at closer.
const CLOSER: [&str; 6] = ["open", "openat", "openat2", "fcntl", "write", "writev"];

/// A store of an image and a container, with something of each kind in each layer. Answers the chain ID of a damaged
/// layer, of which no file may be opened either.
fn sample(root: &Path) -> String {
    let mut store = StoreBuilder::new(root);
    let layers = store.chain(3);
    for (n, layer) in layers.iter().enumerate() {
        let diff = layer.diff_dir();
        fs::create_dir_all(diff.join(format!("dir-{n}/deep"))).unwrap();
        fs::write(diff.join(format!("dir-{n}/deep/file")), vec![b'x'; 5_000 * n]).unwrap();
        fs::write(diff.join("everywhere"), n.to_string()).unwrap();
        symlink("dir-0", diff.join(format!("link-{n}"))).unwrap();
        symlink("/etc/passwd", diff.join(format!("{SPECIAL}-link-{n}"))).unwrap();
        let node = |name: &str, kind, device| {
            let path = diff.join(format!("{SPECIAL}-{name}-{n}"));
            rustix::fs::mknodat(CWD, path, kind, Mode::RUSR, device).unwrap();
        };
        node("fifo", FileType::Fifo, 0);
        node("socket", FileType::Socket, 0);
        node("zero", FileType::CharacterDevice, rustix::fs::makedev(1, 5));
        node("whiteout", FileType::CharacterDevice, 0);
        node("block", FileType::BlockDevice, rustix::fs::makedev(7, 77));
        rustix::fs::setxattr(diff.join(format!("dir-{n}")), "user.some", b"value", XattrFlags::empty()).unwrap();
    }
    let image = store.image(&layers);
    store.tag("app:1", &image);
    let container = store.container("web", &image, layers.last());
    container.write_init_files();
    fs::write(container.upper_dir().join("log"), "log").unwrap();
    // Damage is looked at closely, which is where mistakes are made.
    let bad = store.chain(2);
    for file in ["cache-id", "diff", "parent", "size"] {
        let bad = &bad[1].layerdb.join(file);
        fs::remove_file(bad).unwrap();
        rustix::fs::mknodat(CWD, bad, FileType::Fifo, Mode::RUSR, 0).unwrap();
    }
    store.finish();
    bad[1].chain_id.clone()
}

/// A traced program; killed with the value.
struct Traced(Child);

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Detaches what is mounted, also where a test fails.
struct Detach(PathBuf);

impl Drop for Detach {
    fn drop(&mut self) {
        while rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).is_ok() {}
    }
}

fn strace(log: &Path, args: &[&Path]) -> Child {
    // Those that this strace or this architecture does not know are none of ours.
    let calls: Vec<String> = FORBIDDEN.iter().chain(&CLOSER).map(|call| format!("?{call}")).collect();
    let calls = calls.join(",");
    let mut command = Command::new("strace");
    command.args(["-f", "--seccomp-bpf", "-yy", "-s", "64", "-e"]).arg(format!("trace={calls}")).arg("-o").arg(log);
    command.arg(env!("CARGO_BIN_EXE_docker-fs")).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("there is no strace")
}

/// Mounts, walks and reads all twice, unmounts, and hands out the calls, a line each, without process numbers.
fn calls_of_a_walk(dir: &Path, name: &str) -> Vec<String> {
    let point = dir.join(format!("mnt-{name}"));
    fs::create_dir(&point).unwrap();
    let _mount = Detach(point.clone());
    let [mounting, unmounting] = ["mounting", "unmounting"].map(|what| dir.join(format!("{what}-{name}")));
    let mut traced = Traced(strace(&mounting, &[Path::new("-f"), &dir.join("store"), &point]));
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(eventually(|| mounts().contains(point.to_str().unwrap())), "{name}: it does not mount");
    for _ in 0..2 {
        let found = walk(&point, &Options::default());
        assert!(found.tree.keys().any(|path| path.ends_with(b"dir-2/deep/file")), "{name}: {:?}", found.troubles);
        assert!(found.tree.keys().any(|path| path.escape_ascii().to_string().contains(SPECIAL)));
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    }
    let ended = strace(&unmounting, &[Path::new("unmount"), &point]).wait().unwrap();
    assert!(ended.success(), "{name}: {ended}");
    assert!(traced.0.wait().unwrap().success(), "{name}: the server failed");
    let lines = [mounting, unmounting].map(|log| String::from_utf8_lossy(&fs::read(log).unwrap()).into_owned());
    let calls = lines.iter().flat_map(|log| log.lines()).filter(|line| line.contains('('));
    calls.map(|line| line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ').to_owned()).collect()
}

/// What is wrong with a call; `None` where nothing is. What is `special` may not be opened.
fn trouble(call: &str, special: &[&str]) -> Option<&'static str> {
    let (name, arguments) = call.split_once('(')?;
    // A call that another thread came between is told in two lines.
    let name = name.rsplit(' ').next()?;
    let opens = matches!(name, "open" | "openat" | "openat2");
    let has = |word: &str| arguments.contains(word);
    let target = |word: &str| arguments.split_once('>').is_some_and(|(target, _)| target.contains(word));
    // A file in memory, by which it is seen whether attributes can be read.
    let is_probe = name == "fsetxattr" && target("/memfd:docker-fs");
    if FORBIDDEN.contains(&name) && !is_probe {
        return Some("changes something");
    }
    if name == "fcntl" && ["F_SETLK", "F_OFD_SETLK", "F_SETLEASE", "F_NOTIFY", "F_SETLKW"].iter().any(|word| has(word))
    {
        return Some("locks");
    }
    // The device that the kernel asks by, nowhere, and how far the kernel reads ahead of this mount.
    let may_write = ["\"/dev/fuse\"", "\"/dev/null\"", "/read_ahead_kb\""].iter().any(|name| has(name));
    if opens && !may_write && ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_TMPFILE"].iter().any(|word| has(word)) {
        return Some("opens for writing");
    }
    if opens && special.iter().any(|name| has(name)) && !has("O_PATH") {
        return Some("opens what is no file");
    }
    let may_take = ["/dev/fuse", "/dev/null", "pipe:", "read_ahead_kb", "eventfd", "UNIX", "socket:"];
    if matches!(name, "write" | "writev") && !may_take.iter().any(|word| target(word)) {
        return Some("writes somewhere");
    }
    None
}

#[test]
fn a_walk_of_all_writes_nothing_and_opens_only_files() {
    if !require_privileges("mounting") {
        return;
    }
    let dir = support::scratch("strace");
    let damaged = sample(&dir.path().join("store"));
    for (name, calls) in [("usual", &[][..]), ("without", &[OPENAT2, OPEN_TREE][..])] {
        let calls = without(calls, rustix::io::Errno::NOSYS.raw_os_error(), || calls_of_a_walk(dir.path(), name));
        let opened = calls.iter().filter(|call| call.contains("everywhere") && call.starts_with("open")).count();
        eprintln!("{name}: {} calls, {opened} of them open the file that each layer has", calls.len());
        assert!(opened >= 3, "{name}: the trace is not whole");
        // The root of the jail is furnished there, in memory and out of everybody's sight.
        let jail = format!("\"{}/", dir.path().join(format!("mnt-{name}")).display());
        let troubles: Vec<String> = calls
            .iter()
            .filter(|call| !call.contains(&jail))
            .filter_map(|call| trouble(call, &[SPECIAL, &damaged]).map(|why| format!("{why}: {call}")))
            .collect();
        assert!(troubles.is_empty(), "{name}:\n  {}", troubles.join("\n  "));
    }
}

#[test]
fn what_is_wrong_with_a_call_is_seen() {
    for (call, expected) in [
        (
            "openat2(5</>, \"a/everywhere\", {flags=O_RDONLY|O_NOATIME, resolve=RESOLVE_BENEATH}, 24) = 7</a/everywhere>",
            None,
        ),
        ("openat2(5</>, \"special-file-fifo-1\", {flags=O_PATH|O_NOFOLLOW}, 24) = 7", None),
        (
            "openat2(5</>, \"a/special-file-fifo-1\", {flags=O_RDONLY|O_NONBLOCK}, 24) = 7",
            Some("opens what is no file"),
        ),
        ("openat(AT_FDCWD, \"/s/x\", O_RDWR|O_CLOEXEC) = 3", Some("opens for writing")),
        ("openat(AT_FDCWD, \"/dev/fuse\", O_RDWR|O_CLOEXEC) = 3</dev/fuse<char 10:229>>", None),
        ("fcntl(3</s/x>, F_SETLK, {l_type=F_RDLCK}) = 0", Some("locks")),
        ("fcntl(3</s/x>, F_DUPFD_CLOEXEC, 3) = 4", None),
        ("unlinkat(5</s>, \"x\", 0) = -1 EROFS", Some("changes something")),
        ("fsetxattr(4</memfd:docker-fs (deleted)>, \"trusted.x\", \"1\", 1, 0) = 0", None),
        ("write(4</s/x>, \"a\", 1) = 1", Some("writes somewhere")),
        ("writev(4</dev/fuse<char 10:229>>, [{iov_base=\"/s/x\"}], 1) = 1", None),
    ] {
        assert_eq!(trouble(call, &[SPECIAL]), expected, "{call}");
    }
}
