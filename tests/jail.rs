//! The process that reads the store, looked at from outside: what it may, what it sees, and that the keeper stands for it.
//!
//! What the jail denies is tried from within it in `src/jail/mod.rs`.

#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use serde_json::Value;
use support::eventually;
use support::filter::without;
use support::mount::{FOR_OTHER_USERS, Mounted, for_other_users, keeper, require_privileges, server};
use support::store::StoreBuilder;
use support::tree::{Options, Tree, assert_same, snapshot};
use tempfile::TempDir;

const DOCKER_FS: &str = env!("CARGO_BIN_EXE_docker-fs");
const NAMESPACES: [&str; 4] = ["mount_namespace", "network_namespace", "ipc_namespace", "uts_namespace"];
const STEPS: [&str; 10] = [
    "mount_namespace",
    "network_namespace",
    "ipc_namespace",
    "uts_namespace",
    "root",
    "store",
    "no_new_privs",
    "landlock",
    "capabilities",
    "seccomp",
];
/// CAP_DAC_READ_SEARCH and CAP_SYS_ADMIN.
const KEPT: &str = "0000000000200004";
const NONE: &str = "0000000000000000";
/// More than one READ takes, so that passthrough is used.
const LARGE: usize = 3 << 20;
/// Enough for several READDIRs.
const MANY: usize = 1_000;

/// A directory with a store and an empty directory to mount on, which are gone with the value.
struct Bench {
    dir: TempDir,
    store: PathBuf,
}

impl Bench {
    /// A store with all that takes different system calls: kinds of files, marks, attributes, a container.
    fn new() -> Self {
        let dir = support::scratch("jail");
        let mut store = StoreBuilder::new(dir.path().join("store"));
        let layers = store.chain(2);
        let (below, above) = (layers[0].diff_dir(), layers[1].diff_dir());
        for folder in ["etc", "opaque", "many"] {
            fs::create_dir(below.join(folder)).unwrap();
        }
        for file in ["etc/deleted", "etc/kept", "opaque/hidden"] {
            fs::write(below.join(file), file).unwrap();
        }
        for number in 0..MANY {
            fs::write(below.join(format!("many/{number}")), "").unwrap();
        }
        fs::create_dir(above.join("etc")).unwrap();
        fs::create_dir(above.join("opaque")).unwrap();
        fs::write(above.join("opaque/shown"), "shown").unwrap();
        fs::write(above.join("large"), (0..LARGE).map(|at| (at / 4_096) as u8).collect::<Vec<u8>>()).unwrap();
        fs::hard_link(above.join("large"), above.join("linked")).unwrap();
        symlink("etc/kept", above.join("link")).unwrap();
        let device = rustix::fs::FileType::CharacterDevice;
        let mode = rustix::fs::Mode::empty();
        rustix::fs::mknodat(rustix::fs::CWD, above.join("etc/deleted"), device, mode, 0).unwrap();
        let set = |path: PathBuf, name: &str, value: &[u8]| {
            rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
        };
        set(above.join("opaque"), "trusted.overlay.opaque", b"y");
        set(above.join("opaque/shown"), "user.note", b"read me");
        let image = store.image(&layers);
        store.tag("app:1", &image);
        store.container("web", &image, layers.last());
        let store = store.finish();
        fs::create_dir(dir.path().join("m")).unwrap();
        Self { dir, store }
    }

    fn point(&self) -> PathBuf {
        self.dir.path().join("m")
    }

    fn mount(&self, options: &[&str]) -> Mounted {
        Mounted::with(&self.store, &self.point(), options, 0)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        while rustix::mount::unmount(self.point(), UnmountFlags::DETACH).is_ok() {}
    }
}

/// All that the mount shows, but for the text that says how it is confined.
fn shown(mount: &Path) -> Tree {
    let mut tree = snapshot(mount, &Options { probe: vec![b"no-such-name".to_vec()], ..Options::default() });
    tree.retain(|path, _| path != b"status");
    assert!(tree.len() > 2 * MANY, "only {} objects", tree.len());
    tree
}

/// What `status` says of each step: its name, its state, and why.
fn confinement(mount: &Path) -> Vec<(String, String, Option<String>)> {
    let status: Value = serde_json::from_slice(&fs::read(mount.join("status")).unwrap()).unwrap();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let steps = status["confinement"].as_array().unwrap();
    steps.iter().map(|s| (text(&s["step"]).unwrap(), text(&s["state"]).unwrap(), text(&s["why"]))).collect()
}

/// The steps that are not in force.
fn missing(mount: &Path) -> Vec<String> {
    let steps = confinement(mount);
    assert_eq!(steps.iter().map(|(step, ..)| step.as_str()).collect::<Vec<_>>(), STEPS);
    steps.into_iter().filter(|(_, state, _)| state != "in force").map(|(step, ..)| step).collect()
}

fn proc(pid: u32, what: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{what}"))
}

fn field(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(proc(pid, "status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t")).unwrap().to_owned()
}

fn is_running(pid: u32) -> bool {
    // One that nobody has waited for yet is a zombie.
    fs::read_to_string(proc(pid, "status")).is_ok_and(|status| !status.contains("\nState:\tZ"))
}

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

fn mounts_at(point: &Path) -> usize {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.split(' ').nth(4).is_some_and(|at| Path::new(at) == point)).count()
}

#[test]
fn the_server_has_no_more_than_it_needs() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new();
    let mount = bench.mount(&[]);
    assert_eq!(mount.stderr, "");
    let (keeper, server) = (mount.daemon().unwrap(), mount.server().unwrap());
    for (name, value) in [
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("CapInh", NONE),
        ("CapPrm", KEPT),
        ("CapEff", KEPT),
        ("CapBnd", KEPT),
        ("CapAmb", NONE),
    ] {
        for thread in fs::read_dir(proc(server, "task")).unwrap() {
            let thread = thread.unwrap().file_name().to_str().unwrap().parse().unwrap();
            assert_eq!(field(thread, name), value, "{name} of thread {thread}");
        }
    }
    assert_eq!(field(keeper, "Threads"), "1");
    let namespace = |pid: u32, name: &str| fs::read_link(proc(pid, "ns").join(name)).unwrap();
    for name in ["mnt", "net", "ipc", "uts"] {
        assert_ne!(namespace(server, name), namespace(keeper, name), "{name}");
    }
    for name in ["mnt", "net", "user", "pid"] {
        assert_eq!(namespace(keeper, name), namespace(std::process::id(), name), "{name} of the keeper");
    }
    // In each namespace there is what a new one has: a loopback interface that is down.
    let interfaces = fs::read_to_string(proc(server, "net/dev")).unwrap();
    assert_eq!(interfaces.lines().skip(2).count(), 1, "{interfaces}");
    assert_eq!(missing(mount.path()), Vec::<String>::new());
}

#[test]
fn the_server_sees_no_files_but_the_stores() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new();
    let log = bench.dir.path().join("log");
    let mount = bench.mount(&["-v", "--log-file", log.to_str().unwrap()]);
    // Files that are read stay open for a while.
    snapshot(&mount.path().join("merged"), &Options { no_content: true, ..Options::default() });
    let server = mount.server().unwrap();

    let root = proc(server, "root");
    let names = |dir: &Path| -> Vec<String> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!((names(&root), names(&root.join("dev"))), (vec!["dev".to_owned()], vec!["fuse".to_owned()]));
    let error = File::create(root.join("new")).unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::ROFS));
    let mounts = fs::read_to_string(proc(server, "mountinfo")).unwrap();
    let points: Vec<&str> = mounts.lines().map(|line| line.split(' ').nth(4).unwrap()).collect();
    assert_eq!(points, ["/", "/dev/fuse"]);

    let ids = |text: &str| -> BTreeSet<String> {
        text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
    };
    let host = ids(&fs::read_to_string("/proc/self/mountinfo").unwrap());
    let same = |one: &Path, other: &Path| {
        let (one, other) = (fs::metadata(one).unwrap(), fs::metadata(other).unwrap());
        (one.dev(), one.ino()) == (other.dev(), other.ino())
    };
    let folders = ["", "image/overlay2", "overlay2", "containers"];
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(proc(server, "fd")).unwrap() {
        let at = entry.unwrap().path();
        let target = fs::read_link(&at).unwrap().to_string_lossy().into_owned();
        let is_known = ["/dev/null", "/dev/fuse", log.to_str().unwrap()].contains(&target.as_str());
        if is_known || target.starts_with("socket:") || target.starts_with("pipe:") || target.starts_with("anon_inode:")
        {
            continue;
        }
        let folder = folders.iter().find(|folder| same(&at, &bench.store.join(folder)));
        found.insert(*folder.unwrap_or_else(|| panic!("{target} is open")));
        assert!(same(&at, &at.join("..")), "there is a way out of {target}");
        let info = fs::read_to_string(proc(server, "fdinfo").join(at.file_name().unwrap())).unwrap();
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:\t")).unwrap();
        assert!(!host.contains(mount), "{target} lies on a mount of the host");
    }
    assert_eq!(found, BTreeSet::from(folders));
}

#[test]
fn what_is_told_of_the_confinement_is_true() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new();
    let free: Vec<&str> = STEPS.into_iter().filter(|step| *step != "store").collect();
    let not_gaining: Vec<&str> = free.iter().copied().filter(|step| *step != "no_new_privs").collect();
    for (what, first, options, lacking) in [
        ("the default", &[][..], &[][..], &[][..]),
        ("jail=full", &[], &["-o", "jail=full"], &[]),
        ("jail=none", &[], &["-o", "jail=none"], &free),
        ("jail=none under no_new_privs", &["setpriv", "--no-new-privs"], &["-o", "jail=none"], &not_gaining),
    ] {
        let mut stderr = tempfile::tempfile().unwrap();
        let mut command = Command::new("env");
        command.args(first).arg(DOCKER_FS).args([&bench.store, &bench.point()]).args(options);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr.try_clone().unwrap());
        assert!(command.status().unwrap().success(), "{what}");
        let mut said = String::new();
        stderr.rewind().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        let warning =
            format!("docker-fs: warning: the server is not confined by {}: -o jail=none\n", lacking.join(", "));
        assert_eq!(said, if lacking.is_empty() { String::new() } else { warning }, "{what}");

        let (keeper, server) = (keeper(&bench.point()).unwrap(), server(&bench.point()).unwrap());
        let seen = in_force(keeper, server);
        for (step, state, why) in confinement(&bench.point()) {
            // Nothing in /proc tells of Landlock; what it denies is tried from within.
            let is_so = seen.get(step.as_str()).copied().unwrap_or(!lacking.contains(&step.as_str()));
            assert_eq!(state == "in force", is_so, "{what}: {step} {why:?}");
            assert_eq!(is_so, !lacking.contains(&step.as_str()), "{what}: {step}");
        }
        let status: Value = serde_json::from_slice(&fs::read(bench.point().join("status")).unwrap()).unwrap();
        let capabilities = u64::from_str_radix(&field(server, "CapEff"), 16).unwrap().count_ones() as usize;
        assert_eq!(status["capabilities"].as_array().unwrap().len(), capabilities, "{what}");
        rustix::mount::unmount(bench.point(), UnmountFlags::empty()).unwrap();
        assert!(eventually(|| support::mount::keeper(&bench.point()).is_none()), "{what}");
    }
}

/// Which steps are in force, as far as `/proc` tells of them.
fn in_force(keeper: u32, server: u32) -> BTreeMap<&'static str, bool> {
    let namespace = |pid: u32, name: &str| fs::read_link(proc(pid, "ns").join(name)).unwrap();
    let names = ["mnt", "net", "ipc", "uts"].map(|name| namespace(server, name) != namespace(keeper, name));
    let numbers = |pid: u32| -> BTreeSet<String> {
        let mounts = fs::read_to_string(proc(pid, "mountinfo")).unwrap();
        mounts.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    };
    let host = numbers(keeper);
    let open = fs::read_dir(proc(server, "fd")).unwrap().map(|entry| entry.unwrap().path());
    let directories: Vec<PathBuf> = open.filter(|at| fs::metadata(at).is_ok_and(|meta| meta.is_dir())).collect();
    assert!(!directories.is_empty());
    let is_private = directories.iter().all(|at| {
        let info = fs::read_to_string(proc(server, "fdinfo").join(at.file_name().unwrap())).unwrap();
        !host.contains(info.lines().find_map(|line| line.strip_prefix("mnt_id:\t")).unwrap())
    });
    let mut seen: BTreeMap<&str, bool> = NAMESPACES.into_iter().zip(names).collect();
    seen.insert("root", numbers(server).is_disjoint(&host) && numbers(server).len() == 2);
    seen.insert("store", is_private);
    seen.insert("no_new_privs", field(server, "NoNewPrivs") == "1");
    seen.insert("capabilities", field(server, "CapEff") == KEPT && field(server, "CapBnd") == KEPT);
    seen.insert("seccomp", field(server, "Seccomp") == "2");
    seen
}

#[test]
fn all_is_shown_from_within_the_jail() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new();
    let log = bench.dir.path().join("log");
    let free = bench.mount(&["-o", "jail=none"]);
    let expected = shown(free.path());
    let none = STEPS.into_iter().filter(|step| *step != "store");
    assert_eq!(missing(free.path()), none.collect::<Vec<_>>());
    drop(free);
    for opens in ["opens=once", "opens=each", "opens=passthrough"] {
        let gone = eventually(|| keeper(&bench.point()).is_none());
        assert!(gone, "the mount before stays");
        let mount = bench.mount(&["-vv", "-o", opens, "--log-file", log.to_str().unwrap()]);
        let server = mount.server().unwrap();
        assert_same(opens, &expected, &shown(mount.path()));
        let mapped =
            Command::new("cmp").args(["merged/app:1/large", "merged/app:1/linked"]).current_dir(mount.path()).status();
        assert!(mapped.unwrap().success());
        assert!(is_running(server), "{opens}: something that ends the server was called");
    }
    let log = fs::read_to_string(&log).unwrap();
    let refused: Vec<&str> =
        log.lines().filter(|line| line.contains("by requests") || line.contains("implemented")).collect();
    assert_eq!(refused, Vec::<&str>::new());
}

/// A mount in the foreground, ended with the value.
struct Foreground {
    child: Child,
    stderr: File,
    point: PathBuf,
}

impl Foreground {
    fn new(bench: &Bench) -> Self {
        let stderr = tempfile::tempfile().unwrap();
        let mut command = Command::new(DOCKER_FS);
        command.arg("-f").args([&bench.store, &bench.point()]).stdin(Stdio::null()).stderr(stderr.try_clone().unwrap());
        let started = Self { child: command.spawn().unwrap(), stderr, point: bench.point() };
        assert!(eventually(|| bench.point().join("status").exists()), "it does not mount");
        started
    }

    fn end(&mut self) -> (Option<i32>, String) {
        let mut code = None;
        assert!(eventually(|| {
            code = self.child.try_wait().unwrap();
            code.is_some()
        }));
        let mut said = String::new();
        self.stderr.rewind().unwrap();
        self.stderr.read_to_string(&mut said).unwrap();
        (code.unwrap().code(), said)
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = rustix::mount::unmount(&self.point, UnmountFlags::DETACH);
    }
}

#[test]
fn a_server_that_dies_leaves_no_mount() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new();
    for (signal, number) in [(Signal::KILL, 9), (Signal::SEGV, 11), (Signal::SYS, 31)] {
        let mut mount = Foreground::new(&bench);
        // One that is in use is detached all the same.
        let file = File::open(bench.point().join("merged/app:1/large")).unwrap();
        let server = server(&bench.point()).unwrap();
        // Rust's handler takes the first SEGV that is no fault for none.
        let dies = eventually(|| {
            kill_process(Pid::from_raw(server.try_into().unwrap()).unwrap(), signal).is_err() || !is_running(server)
        });
        assert!(dies, "{signal:?}");
        let (code, said) = mount.end();
        let point = bench.point();
        let line =
            format!("docker-fs: the server ended (signal {number}), and the mount on {} with it\n", point.display());
        assert_eq!((code, said), (Some(1), line));
        assert_eq!(mounts_at(&bench.point()), 0, "{signal:?}");
        assert!(fs::read_dir(bench.point()).unwrap().next().is_none(), "{signal:?}: the directory is free");
        drop(file);
    }
}

#[test]
fn a_connection_that_the_kernel_ends_leaves_no_mount() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new();
    let mut mount = Foreground::new(&bench);
    let number = rustix::fs::minor(fs::metadata(bench.point()).unwrap().dev());
    // In a mount namespace of its own, so that nothing stays mounted.
    let script = "mount -t fusectl none /sys/fs/fuse/connections; echo 1 >\"/sys/fs/fuse/connections/$0/abort\"";
    let aborted = Command::new("unshare").args(["-m", "sh", "-c", script]).arg(number.to_string()).status();
    assert!(aborted.unwrap().success());
    let (code, said) = mount.end();
    assert_eq!(code, Some(1));
    let point = bench.point();
    let point = point.display();
    let line = format!("docker-fs: the kernel ended the connection to the server, and the mount on {point} with it\n");
    assert_eq!(said, line);
    assert_eq!(mounts_at(&bench.point()), 0);
}

#[test]
fn a_keeper_that_dies_takes_the_server_along() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new();
    let mount = bench.mount(&[]);
    let server = mount.server().unwrap();
    kill(mount.daemon().unwrap(), Signal::KILL);
    assert!(eventually(|| !is_running(server)), "the server goes on");
    let error = || fs::metadata(mount.path()).err().and_then(|error| Errno::from_io_error(&error));
    assert!(eventually(|| error() == Some(Errno::NOTCONN)), "{:?}", error());
}

#[test]
fn the_server_leaves_signals_to_the_keeper() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new();
    let mut mount = Foreground::new(&bench);
    let server = server(&bench.point()).unwrap();
    // As a terminal and systemd do, which signal all processes.
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::USR1] {
        kill(server, signal);
        assert!(bench.point().join("status").exists(), "{signal:?}");
    }
    assert!(is_running(server));
    kill(mount.child.id(), Signal::TERM);
    let (code, said) = mount.end();
    assert_eq!(code, Some(0), "{said}");
    // USR1 is obeyed, if there is time to.
    assert!(said.is_empty() || said.contains("counters:"), "{said}");
}

#[test]
fn nothing_is_kept_open_that_was_inherited() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new();
    // As on Linux before 5.9.
    without(&[libc::SYS_close_range], libc::ENOSYS, || {
        inherits_nothing(&bench, "9</", &[&bench.store, &bench.point()])
    });
}

#[test]
fn what_was_inherited_can_be_named_in_arguments() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new();
    let log = bench.dir.path().join("log");
    let opened = format!("7>>'{}' 8<'{}' 9</", log.display(), bench.store.display());
    inherits_nothing(
        &bench,
        &opened,
        &["-v", "--log-file", "/dev/fd/7", "/proc/self/fd/8", bench.point().to_str().unwrap()],
    );
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("info: mounted /proc/self/fd/8 on "), "{log}");
}

/// Mounts with descriptors that a shell opened, the host's root among them, and looks that it is kept by nobody.
fn inherits_nothing(bench: &Bench, opened: &str, args: &[impl AsRef<std::ffi::OsStr>]) {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec {opened}; exec \"$@\""), "sh", DOCKER_FS]).args(args);
    let done = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(done.success());
    for pid in [keeper(&bench.point()).unwrap(), server(&bench.point()).unwrap()] {
        let targets = fs::read_dir(proc(pid, "fd")).unwrap().map(|entry| entry.unwrap().path());
        let root = fs::metadata("/").unwrap();
        let is_root =
            |path: &PathBuf| fs::metadata(path).is_ok_and(|at| (at.dev(), at.ino()) == (root.dev(), root.ino()));
        assert_eq!(targets.filter(is_root).count(), 0, "the host's root is open in {pid}");
    }
}

/// A filter that answers an error to these system calls.
fn denying(calls: &[i64], errno: Errno) -> BpfProgram {
    denying_if(calls.iter().map(|call| (*call, Vec::new())), errno)
}

/// A filter that answers an error where one of a call's rules is met.
fn denying_if(rules: impl Iterator<Item = (i64, Vec<SeccompRule>)>, errno: Errno) -> BpfProgram {
    let rules = rules.collect();
    let machine = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let denied = SeccompAction::Errno(errno.raw_os_error().cast_unsigned());
    SeccompFilter::new(rules, SeccompAction::Allow, denied, machine).unwrap().try_into().unwrap()
}

/// A command that runs under a filter.
fn under(filter: BpfProgram) -> Command {
    let mut command = Command::new(DOCKER_FS);
    let install = move || seccompiler::apply_filter(&filter).map_err(std::io::Error::other);
    // SAFETY: between fork and exec this makes two system calls, and allocates only where they fail.
    unsafe { command.pre_exec(install) };
    command
}

/// Not in libc yet: listxattrat(2) and getxattrat(2).
const XATTRS_AT: [i64; 2] = [465, 464];

#[test]
fn what_the_kernel_lacks_is_left_out_with_a_warning() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new();
    let expected = shown(bench.mount(&["-o", "jail=none"]).path());
    for (what, calls, errno, steps) in [
        ("no Landlock", &[libc::SYS_landlock_create_ruleset][..], Errno::NOSYS, &["landlock"][..]),
        ("no Landlock at boot", &[libc::SYS_landlock_create_ruleset], Errno::OPNOTSUPP, &["landlock"]),
        (
            "no namespaces",
            &[libc::SYS_unshare],
            Errno::PERM,
            &["mount_namespace", "network_namespace", "ipc_namespace", "uts_namespace", "root"],
        ),
        ("no other root", &[libc::SYS_pivot_root], Errno::INVAL, &["root"]),
        ("no clones", &[libc::SYS_open_tree], Errno::NOSYS, &["store"]),
        ("no capabilities", &[libc::SYS_capset], Errno::PERM, &["capabilities"]),
        ("no filters", &[libc::SYS_seccomp], Errno::NOSYS, &["seccomp"]),
        ("no attributes by descriptor", &XATTRS_AT, Errno::NOSYS, &[]),
        (
            "none of it",
            &[
                libc::SYS_landlock_create_ruleset,
                libc::SYS_unshare,
                libc::SYS_open_tree,
                libc::SYS_capset,
                libc::SYS_seccomp,
            ],
            Errno::NOSYS,
            &[
                "mount_namespace",
                "network_namespace",
                "ipc_namespace",
                "uts_namespace",
                "root",
                "store",
                "landlock",
                "capabilities",
                "seccomp",
            ],
        ),
    ] {
        let mut stderr = tempfile::tempfile().unwrap();
        let mut command = under(denying(calls, errno));
        command.args([&bench.store, &bench.point()]).stdin(Stdio::null()).stdout(Stdio::null());
        assert!(command.stderr(stderr.try_clone().unwrap()).status().unwrap().success(), "{what}");
        let mut said = String::new();
        stderr.rewind().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        let warned = said.lines().map(|line| {
            let rest = line.strip_prefix("docker-fs: warning: the server is not confined by ").unwrap_or(line);
            rest.split(": ").next().unwrap()
        });
        assert_eq!(warned.collect::<Vec<_>>(), steps, "{what}: {said}");
        assert_eq!(missing(&bench.point()), steps, "{what}");
        assert_same(what, &expected, &shown(&bench.point()));
        rustix::mount::unmount(bench.point(), UnmountFlags::empty()).unwrap();
        assert!(eventually(|| keeper(&bench.point()).is_none()), "{what}");
    }
}

#[test]
fn a_namespace_that_is_missing_takes_no_other_away() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new();
    let kinds = [libc::CLONE_NEWNS, libc::CLONE_NEWNET, libc::CLONE_NEWIPC, libc::CLONE_NEWUTS];
    let lacks = ["mounts", "network", "IPC", "name"];
    for ((kind, step), (lack, link)) in
        kinds.into_iter().zip(NAMESPACES).zip(lacks.into_iter().zip(["mnt", "net", "ipc", "uts"]))
    {
        let flag = u64::from(kind.cast_unsigned());
        let is_it = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, flag).unwrap();
        let rules = [(libc::SYS_unshare, vec![SeccompRule::new(vec![is_it]).unwrap()])];
        let mut command = under(denying_if(rules.into_iter(), Errno::INVAL));
        command.args([&bench.store, &bench.point()]).stdin(Stdio::null()).stdout(Stdio::null());
        let mut stderr = tempfile::tempfile().unwrap();
        assert!(command.stderr(stderr.try_clone().unwrap()).status().unwrap().success(), "{step}");
        let mut said = String::new();
        stderr.rewind().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        let root = "docker-fs: warning: the server is not confined by root: that takes a mount namespace of its own; it \
                    sees the host's files\n";
        let also = if link == "mnt" { root } else { "" };
        let line = format!(
            "docker-fs: warning: the server is not confined by {step}: Invalid argument; it shares the host's {lack}\n{also}"
        );
        assert_eq!(said, line);
        let (keeper, server) = (keeper(&bench.point()).unwrap(), server(&bench.point()).unwrap());
        for name in ["mnt", "net", "ipc", "uts"] {
            let of = |pid: u32| fs::read_link(proc(pid, "ns").join(name)).unwrap();
            assert_eq!(of(keeper) == of(server), name == link, "{name} without {step}");
        }
        rustix::mount::unmount(bench.point(), UnmountFlags::empty()).unwrap();
        assert!(eventually(|| support::mount::keeper(&bench.point()).is_none()), "{step}");
    }
}

#[test]
fn other_users_are_confined_as_far_as_they_can_be() {
    if !require_privileges("becoming another user") {
        return;
    }
    let open = for_other_users();
    let script = "&& exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -ec '\
                  ./docker-fs store m; server=$(pgrep -x docker-fs:serve -u 65534); cat m/merged/good:1/hello; \
                  grep -E \"^(NoNewPrivs|Seccomp|CapPrm|CapEff):\" /proc/$server/status; cat m/status; \
                  ./docker-fs unmount m; ls m'";
    let script = format!("{FOR_OTHER_USERS} {script}");
    let said = Command::new("unshare").args(["-m", "sh", "-c", &script]).current_dir(open.path()).output().unwrap();
    let stderr = String::from_utf8_lossy(&said.stderr);
    // The store is this user's, as a rootless engine's would be.
    let others = stderr.lines().filter(|line| !line.contains("is taken for the store of a rootless engine"));
    assert_eq!((said.status.code(), others.collect::<Vec<_>>()), (Some(0), Vec::new()));
    let stdout = String::from_utf8(said.stdout).unwrap();
    let (text, json) = stdout.split_at(stdout.find('{').unwrap());
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        ["good", &format!("CapPrm:\t{NONE}"), &format!("CapEff:\t{NONE}"), "NoNewPrivs:\t1", "Seccomp:\t2",]
    );
    let status: Value = serde_json::from_str(json).unwrap();
    let in_force = status["confinement"].as_array().unwrap().iter().filter(|step| step["state"] == "in force");
    let steps: Vec<&str> = in_force.map(|step| step["step"].as_str().unwrap()).collect();
    assert_eq!(steps, ["no_new_privs", "landlock", "capabilities", "seccomp"]);
}
