//! The command as a user, mount(8) and systemd meet it: exit codes, messages, the background, signals.
//!
//! What can go wrong is in tables, a row each: what it is, the arguments, the exit code, the whole message. `{d}` stands
//! for the test's own directory. What the tree holds is for other tests; here it only has to be readable.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::string_slice)]

mod support;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use support::marks::{Driver, convert_store};
use support::mount::{FOR_OTHER_USERS, Mounted, for_other_users, require_privileges};
use support::store::{ImageId, LayerRef, StoreBuilder};
use tempfile::TempDir;

const DOCKER_FS: &str = env!("CARGO_BIN_EXE_docker-fs");
/// How long anything here may take that is not a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory with a store of two images, `good:1` and `bad:1`, which share nothing, and an empty directory `m`.
struct Bench {
    _mount: Detach,
    dir: TempDir,
    good: ImageId,
    bad: ImageId,
    bad_layers: Vec<LayerRef>,
}

impl Bench {
    fn new() -> Self {
        let dir = support::scratch("cli");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("m")).unwrap();
        let mut store = StoreBuilder::new(dir.path().join("store"));
        let good_layers = store.chain(2);
        fs::create_dir(good_layers[1].diff_dir().join("etc")).unwrap();
        fs::write(good_layers[1].diff_dir().join("etc/hello"), "good\n").unwrap();
        let good = store.image(&good_layers);
        store.tag("good:1", &good);
        let bad_layers = store.chain(2);
        let bad = store.image(&bad_layers);
        store.tag("bad:1", &bad);
        store.finish();
        Self { _mount: Detach(dir.path().join("m")), dir, good, bad, bad_layers }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    fn store(&self) -> PathBuf {
        self.path("store")
    }

    fn mount_point(&self) -> PathBuf {
        self.path("m")
    }

    fn image_dir(&self, below: &str) -> PathBuf {
        self.store().join("image/overlay2").join(below)
    }

    fn layerdb(&self, layer: &LayerRef) -> PathBuf {
        self.image_dir("layerdb/sha256").join(&layer.chain_id)
    }

    /// A text with this bench's directory for `{d}`.
    fn fill(&self, text: &str) -> String {
        text.replace("{d}", self.dir.path().to_str().unwrap())
    }

    /// The arguments in a text, separated by single spaces.
    fn words(&self, text: &str) -> Vec<OsString> {
        text.split(' ').filter(|word| !word.is_empty()).map(|word| self.fill(word).into()).collect()
    }
}

/// Leaves nothing mounted at a path, also where a test fails.
struct Detach(PathBuf);

impl Drop for Detach {
    fn drop(&mut self) {
        while rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).is_ok() {}
    }
}

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs a command to its end, with files for its output: a mount in the background must not be waited for.
fn run(command: &mut Command) -> Said {
    let (mut stdout, mut stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    command.stdin(Stdio::null()).stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
    let status = command.status().unwrap();
    Said { code: status.code(), stdout: text_of(&mut stdout), stderr: text_of(&mut stderr) }
}

fn text_of(file: &mut File) -> String {
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

fn docker_fs<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Said {
    run(Command::new(DOCKER_FS).args(args))
}

fn failed(code: i32, message: &str) -> Said {
    Said { code: Some(code), stdout: String::new(), stderr: format!("docker-fs: {message}\n") }
}

fn done() -> Said {
    Said { code: Some(0), stdout: String::new(), stderr: String::new() }
}

/// How many mounts there are at a path or below it. (The paths have no byte that mountinfo escapes.)
fn mounts_at(path: &Path) -> usize {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point).starts_with(path))).count()
}

/// Whether nobody answers for a mount any more. That it is a directory the kernel may still know.
fn has_died(path: &Path) -> bool {
    rustix::fs::statfs(path).err() == Some(rustix::io::Errno::NOTCONN)
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what} takes too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Processes whose arguments name a path.
fn processes_with(path: &Path) -> usize {
    let named = |line: Vec<u8>| line.split(|byte| *byte == 0).any(|word| word == path.as_os_str().as_bytes());
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter(|entry| fs::read(entry.path().join("cmdline")).is_ok_and(named)).count()
}

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

/// A mount in the foreground; ready when the value is there.
struct Foreground {
    child: Child,
    stderr: File,
    socket: UnixDatagram,
    _mount: Detach,
}

impl Foreground {
    fn new(bench: &Bench, args: &[&str]) -> Self {
        let (socket, path) = notify_socket(bench);
        let stderr = tempfile::tempfile().unwrap();
        let child = Command::new(DOCKER_FS)
            .arg("-f")
            .args([bench.store(), bench.mount_point()])
            .args(args)
            .env("NOTIFY_SOCKET", path)
            .stdin(Stdio::null())
            .stderr(stderr.try_clone().unwrap())
            .spawn()
            .unwrap();
        let ready = Self { child, stderr, socket, _mount: Detach(bench.mount_point()) };
        assert!(message(&ready.socket).starts_with("READY=1\n"));
        ready
    }

    fn signal(&self, signal: Signal) {
        kill(self.child.id(), signal);
    }

    fn end(&mut self) -> (ExitStatus, String) {
        (self.child.wait().unwrap(), text_of(&mut self.stderr))
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A socket as systemd has one, under a path short enough for one.
fn notify_socket(bench: &Bench) -> (UnixDatagram, PathBuf) {
    let path = bench.path("notify");
    let _ = fs::remove_file(&path);
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    (socket, path)
}

fn message(socket: &UnixDatagram) -> String {
    let mut space = [0; 4096];
    let length = socket.recv(&mut space).expect("no message to the service manager");
    String::from_utf8(space[..length].to_vec()).unwrap()
}

#[test]
fn bad_input_is_refused_in_a_line() {
    let bench = Bench::new();
    for dir in [
        "empty",
        "windows/image/windowsfilter/imagedb",
        "store/tmp",
        "disk/var/lib/docker/image",
        "torn/image/overlay2/imagedb",
        "full/by-tag",
    ] {
        fs::create_dir_all(bench.path(dir)).unwrap();
    }
    fs::write(bench.path("file"), "").unwrap();
    symlink(bench.store(), bench.path("link")).unwrap();
    let store = "a Docker data root is wanted, such as /var/lib/docker, which holds image/overlay2, containerd's root, such as \
                 /var/lib/containerd, where Docker 29 has its images, or podman's, such as /var/lib/containers/storage";
    let itself = "reading it would wait for itself; mount elsewhere";
    let usage = "; try 'docker-fs --help'";
    let occupied = "{d}/full is not empty; '-o nonempty' mounts over it";
    let alone =
        "is a Docker data root; as the only argument it is taken for the mount point: docker-fs SOURCE MOUNTPOINT";
    let remount = "docker-fs cannot be remounted; unmount and mount";
    for (what, args, code, expected) in [
        ("no arguments", "", 2, format!("the mount point is missing{usage}")),
        ("three paths", "/a /b /c", 2, format!("more than a SOURCE and a MOUNTPOINT{usage}")),
        ("an unknown flag", "--wrong {d}/m", 2, format!("unexpected argument '--wrong' found{usage}")),
        ("an unknown -o", "{d}/store {d}/m -o ro,wrong", 2, format!("unknown option -o wrong{usage}")),
        (
            "a bad choice",
            "{d}/m -o whiteouts=no",
            2,
            format!("the option -o whiteouts is one of oci, stored, not \"no\"{usage}"),
        ),
        (
            "a bad number",
            "{d}/m -o threads=65",
            2,
            format!("the option -o threads is a number from 1 to 64, not \"65\"{usage}"),
        ),
        (
            "an unknown kind",
            "{d}/store {d}/m --kind podman",
            2,
            format!(
                "unknown kind of store \"podman\"; known: docker, docker-graph, containerd, containers-storage{usage}"
            ),
        ),
        ("no store", "{d}/empty {d}/m", 3, format!("no container store in {{d}}/empty; {store}")),
        ("a missing source", "{d}/gone {d}/m", 3, "no container store: {d}/gone does not exist".to_owned()),
        ("a file as the source", "{d}/file {d}/m", 3, "no container store: {d}/file is not a directory".to_owned()),
        (
            "an unsupported driver",
            "{d}/windows {d}/m",
            1,
            "{d}/windows: its graph driver windowsfilter is not supported; supported: btrfs, zfs, overlay2, \
             fuse-overlayfs, aufs, overlay, devicemapper, vfs"
                .to_owned(),
        ),
        (
            "a disk whose store lies deeper",
            "{d}/disk {d}/m",
            3,
            "no container store in {d}/disk; there is one in {d}/disk/var/lib/docker".to_owned(),
        ),
        (
            "a store without its layers",
            "{d}/torn {d}/m",
            1,
            "{d}/torn: image/overlay2 is there, but overlay2, which holds the layers, is missing".to_owned(),
        ),
        ("a directory that holds something", "{d}/store {d}/full", 1, occupied.to_owned()),
        ("a mount point that is a store, and nothing else", "{d}/store", 1, format!("{{d}}/store {alone}")),
        ("a store that is not read, and nothing else", "{d}/windows", 1, format!("{{d}}/windows {alone}")),
        ("the same, though asked for", "{d}/store -o nonempty", 1, format!("{{d}}/store {alone}")),
        (
            "arguments that are reversed",
            "{d}/store {d}/windows -o nonempty",
            1,
            "{d}/windows is a Docker data root; the mount point comes last: docker-fs SOURCE MOUNTPOINT".to_owned(),
        ),
        ("a second mount upon itself", "{d}/store {d}/m -o remount", 2, format!("{remount}{usage}")),
        ("a file to mount on", "{d}/store {d}/file", 1, "the mount point {d}/file is not a directory".to_owned()),
        (
            "a missing mount point",
            "{d}/store {d}/gone",
            1,
            "the mount point {d}/gone does not exist; 'mkdir -p {d}/gone' makes it".to_owned(),
        ),
        (
            "on itself",
            "{d}/store {d}/store",
            1,
            format!("the mount point {{d}}/store is the source {{d}}/store: {itself}"),
        ),
        (
            "in the source",
            "{d}/store {d}/store/tmp",
            1,
            format!("the mount point {{d}}/store/tmp lies in the source {{d}}/store: {itself}"),
        ),
        (
            "in the source through a link",
            "{d}/store {d}/link/tmp",
            1,
            format!("the mount point {{d}}/store/tmp lies in the source {{d}}/store: {itself}"),
        ),
        (
            "the source through a link",
            "{d}/link {d}/store",
            1,
            format!("the mount point {{d}}/store is the source {{d}}/store: {itself}"),
        ),
        (
            "around the source",
            "{d}/store {d}",
            1,
            format!("the mount point {{d}} contains the source {{d}}/store: {itself}"),
        ),
        (
            "a log file in no directory",
            "{d}/store {d}/m --log-file {d}/gone/log",
            1,
            "cannot open the log file {d}/gone/log: No such file or directory".to_owned(),
        ),
        ("to unmount nothing", "unmount {d}/m", 1, "{d}/m is not a mount of docker-fs".to_owned()),
        ("to unmount nowhere", "unmount {d}/gone", 1, "cannot find {d}/gone: No such file or directory".to_owned()),
    ] {
        for foreground in [&[][..], &["-f"]] {
            let args = bench.words(args).into_iter().chain(foreground.iter().map(OsString::from));
            // `unmount` has no such flag.
            let args: Vec<OsString> = args.collect();
            if args.first().is_some_and(|first| first == "unmount") && !foreground.is_empty() {
                continue;
            }
            assert_eq!(docker_fs(&args), failed(code, &bench.fill(&expected)), "{what}");
        }
        assert_eq!(mounts_at(bench.dir.path()), 0, "{what}");
    }
}

#[test]
fn a_bind_mount_of_the_source_is_the_source() {
    if !require_privileges("binding") {
        return;
    }
    let bench = Bench::new();
    fs::create_dir_all(bench.path("store/overlay2/deep")).unwrap();
    for dir in ["bound", "beside"] {
        fs::create_dir(bench.path(dir)).unwrap();
    }
    let way = "the source {d}/store by way of another mount: reading it would wait for itself; mount elsewhere";
    for (from, point, words) in [
        ("store/overlay2", "bound", "lies in"),
        ("store/overlay2", "bound/deep", "lies in"),
        ("store", "bound", "is"),
        ("", "bound", "contains"),
    ] {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", "mount --bind \"$1\" \"$2\" && exec \"$0\" \"$3\" \"$4\""]).arg(DOCKER_FS);
        command.args([bench.path(from), bench.path("bound"), bench.store(), bench.path(point)]);
        let message = bench.fill(&format!("the mount point {{d}}/{point} {words} {way}"));
        assert_eq!(run(&mut command), failed(1, &message), "{from} at {point}");
    }
    // What is mounted in the source belongs to it.
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", "mount --bind \"$1\" \"$2\" && exec \"$0\" \"$3\" \"$1\""]).arg(DOCKER_FS);
    command.args([bench.path("beside"), bench.path("store/overlay2/deep"), bench.store()]);
    let message = bench.fill(&format!("the mount point {{d}}/beside is {way}"));
    assert_eq!(run(&mut command), failed(1, &message));
}

#[test]
fn without_the_device_it_is_said_what_to_do() {
    if !require_privileges("hiding /dev") {
        return;
    }
    let bench = Bench::new();
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", "mount -t tmpfs none /dev && exec \"$0\" \"$@\""]).arg(DOCKER_FS);
    command.args([bench.store(), bench.mount_point()]);
    let message = "/dev/fuse does not exist; 'modprobe fuse' loads the kernel's module, and a container needs the \
                   device given to it";
    assert_eq!(run(&mut command), failed(1, message));
}

#[test]
fn who_may_not_read_is_told_so() {
    if !require_privileges("becoming another user") {
        return;
    }
    // The build's directory may be closed to others.
    let open = tempfile::Builder::new().prefix("docker-fs-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(open.path(), Permissions::from_mode(0o755)).unwrap();
    let program = open.path().join("docker-fs");
    fs::copy(DOCKER_FS, &program).unwrap();
    let store = StoreBuilder::new(open.path().join("store")).finish();
    fs::create_dir(open.path().join("m")).unwrap();
    let as_nobody = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        command.args([&store, &open.path().join("m")]);
        run(&mut command)
    };
    let shown = store.display();
    assert_eq!(as_nobody(), failed(1, &format!("cannot read {shown}: Permission denied; run docker-fs as root")));
    for dir in ["", "image", "image/overlay2", "image/overlay2/layerdb"] {
        fs::set_permissions(store.join(dir), Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(store.join("image/overlay2/repositories.json"), Permissions::from_mode(0o644)).unwrap();
    let message = format!(
        "{shown}/overlay2: its layers mark deletions in trusted.overlay.* attributes, which this process may not read \
         (CAP_SYS_ADMIN), so deleted files would come back; run docker-fs as root"
    );
    assert_eq!(as_nobody(), failed(1, &message));
}

#[test]
fn who_may_not_read_marks_of_fuse_overlayfs_is_told_so() {
    if !require_privileges("becoming another user") {
        return;
    }
    let open = for_other_users();
    let store = open.path().join("store");
    convert_store(&store, Driver::FuseOverlayfs);
    for dir in ["", "image", "image/fuse-overlayfs", "image/fuse-overlayfs/layerdb"] {
        fs::set_permissions(store.join(dir), Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(open.path().join("docker-fs"));
    command.args([&store, &open.path().join("m")]);
    let message = format!(
        "{}/fuse-overlayfs: its containers may mark deletions in trusted.overlay.* attributes, which this process may not \
         read (CAP_SYS_ADMIN), so deleted files would come back; run docker-fs as root",
        store.display()
    );
    assert_eq!(run(&mut command), failed(1, &message));
}

#[test]
fn who_may_not_unmount_is_told_who_may() {
    if !require_privileges("becoming another user") {
        return;
    }
    let open = for_other_users();
    let script = "&& ./docker-fs store m && { setpriv --reuid=65534 --regid=65534 --clear-groups ./docker-fs unmount m; \
                  echo $?; ./docker-fs unmount m; }";
    let script = format!("{FOR_OTHER_USERS} {script}");
    let said = run(Command::new("unshare").args(["-m", "sh", "-c", &script]).current_dir(open.path()));
    let line =
        format!("docker-fs: {}/m was mounted by root; only root or that user may unmount it\n", open.path().display());
    assert_eq!(said, Said { code: Some(0), stdout: "1\n".to_owned(), stderr: line });
}

#[test]
fn a_directory_that_waits_for_a_mount_is_not_waited_for() {
    if !require_privileges("mounting") {
        return;
    }
    let bench = Bench::new();
    // As systemd has it for x-systemd.automount, whose own requests are told by the group of processes.
    let (_requests, pipe) = std::io::pipe().unwrap();
    let group = rustix::process::getpgrp().as_raw_nonzero();
    let options = format!("fd={},pgrp={group},minproto=5,maxproto=5,direct", pipe.as_raw_fd());
    let options = std::ffi::CString::new(options).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("test", bench.mount_point(), "autofs", flags, options.as_c_str()).unwrap();
    let mut command = Command::new("timeout");
    command.args(["20", "setsid", "--wait", DOCKER_FS]).args([bench.store(), bench.mount_point()]);
    assert_eq!(run(&mut command), done());
    assert!(bench.mount_point().join("status").exists());
    assert_eq!(docker_fs(bench.words("unmount {d}/m")), done());
}

#[test]
fn a_filter_of_messages_that_means_nothing_is_named() {
    let bench = Bench::new();
    fs::create_dir(bench.path("empty")).unwrap();
    let mut command = Command::new(DOCKER_FS);
    command.args(bench.words("{d}/empty {d}/m")).env("DOCKER_FS_LOG", "debug,nonsense");
    let said = run(&mut command);
    let line = "docker-fs: warning: DOCKER_FS_LOG is not used: \"nonsense\" is no level and no module; wanted is \
                something like 'debug' or 'docker_fs::mount=trace'\n";
    assert!(said.stderr.starts_with(line), "{}", said.stderr);
}

/// A way to damage `bad:1`, and what `status` says of it: the object's path and the reason, with `{…}` for IDs.
type Damage = (&'static str, fn(&Bench), fn(&Bench) -> PathBuf, &'static str);

const DAMAGE: &[Damage] = &[
    (
        "truncated repositories.json",
        |bench| fs::write(bench.image_dir("repositories.json"), "{\"Repositories\":{\"go").unwrap(),
        |bench| bench.image_dir("repositories.json"),
        "not the list of references: ",
    ),
    (
        "no cache-id",
        |bench| fs::remove_file(bench.layerdb(&bench.bad_layers[1]).join("cache-id")).unwrap(),
        |bench| bench.layerdb(&bench.bad_layers[1]).join("cache-id"),
        "missing",
    ),
    (
        "a parent that is another layer",
        |bench| {
            let other = format!("sha256:{}", "0".repeat(64));
            fs::write(bench.layerdb(&bench.bad_layers[1]).join("parent"), other).unwrap();
        },
        |bench| bench.layerdb(&bench.bad_layers[1]).join("parent"),
        "with the diff ID beside it, it belongs to the chain ID sha256:",
    ),
    (
        "a config that is another's",
        |bench| fs::write(bench.image_dir("imagedb/content/sha256").join(&bench.bad.0), "{}").unwrap(),
        |bench| bench.image_dir("imagedb/content/sha256").join(&bench.bad.0),
        "its SHA-256 is 44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a, not its name",
    ),
    (
        "a layer's directory that is gone",
        |bench| fs::remove_dir_all(bench.bad_layers[0].diff_dir()).unwrap(),
        |bench| bench.bad_layers[0].diff_dir(),
        "the layer's directory is gone",
    ),
];

#[test]
fn what_is_in_the_mount_point_is_hidden_where_that_is_asked_for() {
    if !require_privileges("mounting") {
        return;
    }
    let bench = Bench::new();
    fs::write(bench.mount_point().join("mine"), "").unwrap();
    let hidden = Mounted::with(&bench.store(), &bench.mount_point(), &["-o", "nonempty"], 0);
    assert!(hidden.path().join("status").exists() && !hidden.path().join("mine").exists());
    // What a killed mount hid was no secret before it died.
    kill(hidden.daemon().unwrap(), Signal::KILL);
    wait_until("dying", || has_died(hidden.path()));
    let said = docker_fs(bench.words("{d}/store {d}/m"));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert_eq!(docker_fs(bench.words("unmount {d}/m")), done());
    assert!(bench.mount_point().join("mine").exists());
}

#[test]
fn one_damaged_image_does_not_hide_its_neighbour() {
    if !require_privileges("mounting") {
        return;
    }
    for (what, damage, object, reason) in DAMAGE {
        let bench = Bench::new();
        damage(&bench);
        let mounted = Mounted::with(&bench.store(), &bench.mount_point(), &[], 4);
        let status: Value = serde_json::from_slice(&fs::read(mounted.path().join("status")).unwrap()).unwrap();
        let told = status["damage"].as_array().unwrap();
        assert_eq!(told.len(), 1, "{what}: {told:?}");
        assert_eq!(told[0]["object"].as_str(), object(&bench).to_str(), "{what}");
        let why = told[0]["reason"].as_str().unwrap();
        assert!(why.starts_with(reason), "{what}: {why}");
        let line = format!(
            "docker-fs: mounted, but 1 object of the store is damaged: {}: {why}; see {}/status\n",
            object(&bench).display(),
            mounted.path().display()
        );
        assert_eq!(mounted.stderr, line, "{what}");
        let image = mounted.path().join("by-id").join(&bench.good.0);
        for file in ["layers/1/etc/hello", "merged/etc/hello"] {
            assert_eq!(fs::read_to_string(image.join(file)).unwrap(), "good\n", "{what}: {file}");
        }
        assert!(mounted.path().join("by-id").join(&bench.bad.0).is_dir(), "{what}: the damaged image is not listed");
    }
}

#[test]
fn a_second_mount_is_refused() {
    if !require_privileges("mounting") {
        return;
    }
    let bench = Bench::new();
    let _first = Mounted::new(&bench.store(), &bench.mount_point());
    let message = "{d}/m is a mount of docker-fs already; 'docker-fs unmount {d}/m' ends it";
    assert_eq!(docker_fs(bench.words("{d}/store {d}/m")), failed(1, &bench.fill(message)));
    assert_eq!(mounts_at(&bench.mount_point()), 1);
}

#[test]
fn a_killed_mount_is_replaced() {
    if !require_privileges("mounting") {
        return;
    }
    let bench = Bench::new();
    for (what, args, message) in [
        (
            "mounting again",
            "{d}/store {d}/m",
            "docker-fs: warning: detached from {d}/m the mount of a docker-fs that was killed\n",
        ),
        ("unmounting", "unmount {d}/m", ""),
    ] {
        let first = Mounted::new(&bench.store(), &bench.mount_point());
        // From then on the kernel tells of the directory without asking.
        assert!(first.path().join("status").exists() && first.path().exists());
        kill(first.daemon().unwrap(), Signal::KILL);
        wait_until("dying", || has_died(first.path()));
        let said = docker_fs(bench.words(args));
        assert_eq!(said, Said { stderr: bench.fill(message), ..done() }, "{what}");
        let left = usize::from(args.starts_with("{d}"));
        assert_eq!(mounts_at(first.path()), left, "{what}");
        assert_eq!(first.path().join("status").exists(), left == 1, "{what}");
        drop(first);
        wait_until("ending", || processes_with(&bench.mount_point()) == 0);
    }
}

#[test]
fn term_and_int_unmount_and_are_success() {
    if !require_privileges("mounting") {
        return;
    }
    let bench = Bench::new();
    for signal in [Signal::TERM, Signal::INT] {
        let mut serving = Foreground::new(&bench, &[]);
        assert_eq!(mounts_at(&bench.mount_point()), 1);
        serving.signal(signal);
        let (status, said) = serving.end();
        assert_eq!((status.code(), said.as_str()), (Some(0), ""), "{signal:?}");
        assert_eq!(mounts_at(&bench.mount_point()), 0, "{signal:?}");
        assert_eq!(message(&serving.socket), "STOPPING=1\n", "{signal:?}");
    }
    // In the background HUP is no closed terminal.
    let mounted = Mounted::new(&bench.store(), &bench.mount_point());
    let pid = mounted.daemon().unwrap();
    kill(pid, Signal::HUP);
    assert!(mounted.path().join("status").exists());
    kill(pid, Signal::TERM);
    wait_until("ending", || processes_with(mounted.path()) == 0);
    assert_eq!(mounts_at(mounted.path()), 0);
}

#[test]
fn signals_that_were_blocked_or_ignored_before_are_heeded() {
    if !require_privileges("mounting") {
        return;
    }
    let bench = Bench::new();
    // As a service manager or a shell that is careless may leave them.
    let careless = ["--block-signal=TERM", "--block-signal=CHLD", "--ignore-signal=CHLD"];
    let (socket, path) = notify_socket(&bench);
    let mut command = Command::new("env");
    command.args(careless).arg(DOCKER_FS).arg("-f").args([bench.store(), bench.mount_point()]);
    let mut child = command.env("NOTIFY_SOCKET", path).stdin(Stdio::null()).spawn().unwrap();
    assert!(message(&socket).starts_with("READY=1\n"));
    kill(child.id(), Signal::TERM);
    let ended = support::eventually(|| child.try_wait().unwrap().is_some());
    let _ = child.kill();
    assert_eq!((ended, child.wait().unwrap().code()), (true, Some(0)));
    assert_eq!(mounts_at(&bench.mount_point()), 0);

    let said = run(Command::new("env").args(careless).arg(DOCKER_FS).args([bench.store(), bench.mount_point()]));
    assert_eq!(said, done());
    kill(support::mount::keeper(&bench.mount_point()).unwrap(), Signal::TERM);
    wait_until("ending", || processes_with(&bench.mount_point()) == 0);
    assert_eq!(mounts_at(&bench.mount_point()), 0);
}

#[test]
fn other_users_can_wait_for_the_helper_whatever_was_ignored() {
    if !require_privileges("becoming another user") {
        return;
    }
    let open = for_other_users();
    let script = "&& exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -ec '\
                  env --ignore-signal=CHLD ./docker-fs store m; cat m/merged/good:1/hello; \
                  env --ignore-signal=CHLD ./docker-fs unmount m; ls m'";
    let script = format!("{FOR_OTHER_USERS} {script}");
    let said = run(Command::new("unshare").args(["-m", "sh", "-c", &script]).current_dir(open.path()));
    assert_eq!(said, Said { stdout: "good\n".to_owned(), ..done() });
}

/// Starts a mount in the foreground of a terminal, by a shell that does this first.
fn in_a_terminal(bench: &Bench, first: &str) -> Child {
    let line =
        format!("{first} exec '{DOCKER_FS}' -f '{}' '{}'", bench.store().display(), bench.mount_point().display());
    // Whoever runs the tests may ignore HUP, as nohup does.
    let mut terminal = Command::new("env");
    terminal
        .args(["--default-signal=HUP", "script", "-q", "-c", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let child = terminal.spawn().unwrap();
    wait_until("mounting", || bench.mount_point().join("status").exists());
    child
}

#[test]
fn a_closed_terminal_ends_a_mount_in_its_foreground() {
    if !require_privileges("mounting") {
        return;
    }
    let bench = Bench::new();
    for (first, stays) in [("", false), ("trap '' HUP;", true)] {
        let mut terminal = in_a_terminal(&bench, first);
        let keeper = support::mount::keeper(&bench.mount_point()).unwrap();
        terminal.kill().unwrap();
        terminal.wait().unwrap();
        if stays {
            wait_until("reading the tree", || bench.mount_point().join("status").exists());
            assert_eq!(mounts_at(&bench.mount_point()), 1);
            kill(keeper, Signal::TERM);
        }
        wait_until("ending", || processes_with(&bench.mount_point()) == 0);
        assert_eq!(mounts_at(&bench.mount_point()), 0);
    }
}

#[test]
fn without_a_terminal_hup_reads_the_store_again() {
    if !require_privileges("mounting") {
        return;
    }
    let bench = Bench::new();
    let log = bench.path("log");
    let mut command = Command::new("setsid");
    command.arg(DOCKER_FS).args(["-f", "-v", "--log-file"]).arg(&log).args([bench.store(), bench.mount_point()]);
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    wait_until("mounting", || bench.mount_point().join("status").exists());
    let said = |what: &str| fs::read_to_string(&log).unwrap().contains(what);
    kill(child.id(), Signal::HUP);
    wait_until("reading the store again", || said("info: the whole store was read again"));
    kill(child.id(), Signal::USR1);
    wait_until("counting", || said("info: counters:"));
    assert!(bench.mount_point().join("status").exists());
    kill(child.id(), Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(mounts_at(&bench.mount_point()), 0);
}

#[test]
fn a_mount_in_use_is_detached_and_its_users_go_on() {
    if !require_privileges("mounting") {
        return;
    }
    let bench = Bench::new();
    let in_use = || File::open(bench.mount_point().join("merged/good:1/etc/hello")).unwrap();
    let line = "docker-fs: info: {d}/m is in use: detaching it and waiting up to 10 s for its users\n";

    let mut serving = Foreground::new(&bench, &["-v"]);
    let mut file = in_use();
    serving.signal(Signal::TERM);
    wait_until("detaching", || mounts_at(&bench.mount_point()) == 0);
    assert_eq!(text_of(&mut file), "good\n");
    drop(file);
    let (status, said) = serving.end();
    assert_eq!(status.code(), Some(0));
    assert!(said.contains(&bench.fill(line)), "{said}");

    let mut serving = Foreground::new(&bench, &[]);
    let file = in_use();
    serving.signal(Signal::INT);
    wait_until("detaching", || mounts_at(&bench.mount_point()) == 0);
    serving.signal(Signal::INT);
    assert_eq!(serving.end().0.code(), Some(0), "the second signal ends it");
    drop(file);
}

/// The line of a mount that was not detached, with `{d}` for the test's directory.
fn not_detached(why: &str) -> String {
    format!(
        "the mount on {{d}}/m could not be detached: {why}; 'docker-fs unmount --lazy {{d}}/m' ends what is left of it"
    )
}

#[test]
fn a_mount_below_another_is_not_told_to_be_gone() {
    if !require_privileges("mounting") {
        return;
    }
    let bench = Bench::new();
    let covered = not_detached("another mount lies on top of it and has to be unmounted first");
    for (what, signal, first) in
        [("ended", Signal::TERM, ""), ("its server killed", Signal::KILL, "the server ended (signal 9); ")]
    {
        let mut serving = Foreground::new(&bench, &[]);
        let server = support::mount::server(&bench.mount_point()).unwrap();
        let other = support::mount::Tmpfs::new(&bench.mount_point());
        match signal {
            Signal::KILL => kill(server, signal),
            _ => serving.signal(signal),
        }
        let (status, said) = serving.end();
        assert_eq!(status.code(), Some(1), "{what}");
        assert_eq!(said, bench.fill(&format!("docker-fs: {first}{covered}\n")), "{what}");
        assert_eq!(mounts_at(&bench.mount_point()), 2, "{what}");
        drop(other);
        assert_eq!(mounts_at(&bench.mount_point()), 1, "{what}: the other one is left alone");
        assert_eq!(docker_fs(bench.words("unmount --lazy {d}/m")), done(), "{what}");
        assert_eq!(mounts_at(&bench.mount_point()), 0, "{what}");
    }
}

#[test]
fn a_mount_is_ended_where_it_was_moved() {
    if !require_privileges("mounting") {
        return;
    }
    let bench = Bench::new();
    fs::create_dir_all(bench.path("a/m")).unwrap();
    let (from, to) = (bench.path("a/m"), bench.path("b/m"));
    let _mounts = [Detach(from.clone()), Detach(to.clone())];
    assert_eq!(docker_fs([bench.store(), from.clone()]), done());
    let keeper = support::mount::keeper(&from).unwrap();
    fs::rename(bench.path("a"), bench.path("b")).unwrap();
    assert_eq!(mounts_at(&to), 1);
    // What takes the old name is left alone.
    let other = support::mount::Tmpfs::new(&from);
    kill(keeper, Signal::TERM);
    wait_until("ending", || processes_with(&from) == 0);
    assert_eq!((mounts_at(&from), mounts_at(&to)), (1, 0));
    drop(other);
}

#[test]
fn a_mount_that_cannot_be_reached_is_not_told_to_be_gone() {
    if !require_privileges("becoming another user") {
        return;
    }
    let open = for_other_users();
    let script = "&& { setpriv --reuid=65534 --regid=65534 --clear-groups ./docker-fs -f store m & }; \
                  until setpriv --reuid=65534 --regid=65534 --clear-groups cat m/merged/good:1/hello 2>/dev/null; do \
                  sleep 0.01; done; \
                  chmod 700 . && kill $! && wait $!; echo $?";
    let script = format!("{FOR_OTHER_USERS} {script}");
    let said = run(Command::new("timeout").args(["60", "unshare", "-m", "sh", "-c", &script]).current_dir(open.path()));
    let m = open.path().join("m").display().to_string();
    let line = not_detached(&format!("cannot look at {m}: Permission denied")).replace("{d}/m", &m);
    let told = Said { code: Some(0), stdout: "good\n1\n".to_owned(), stderr: format!("docker-fs: {line}\n") };
    assert_eq!(said, told);
}

#[test]
fn unmount_says_who_is_in_the_way() {
    if !require_privileges("mounting") {
        return;
    }
    let bench = Bench::new();
    let mounted = Mounted::new(&bench.store(), &bench.mount_point());
    let mut file = File::open(mounted.path().join("by-tag/good:1/layers/1/etc/hello")).unwrap();
    let message = "{d}/m is in use ('fuser -vm {d}/m' says by whom); 'docker-fs unmount --lazy {d}/m' detaches it all \
                   the same";
    assert_eq!(docker_fs(bench.words("unmount {d}/m")), failed(1, &bench.fill(message)));
    assert_eq!(mounts_at(mounted.path()), 1);
    assert_eq!(docker_fs(bench.words("unmount --lazy {d}/m")), done());
    assert_eq!(mounts_at(mounted.path()), 0);
    assert_eq!(text_of(&mut file), "good\n");
    drop(file);
    wait_until("ending", || processes_with(mounted.path()) == 0);
}

#[test]
fn unmount_leaves_alone_what_is_not_ours() {
    if !require_privileges("mounting") {
        return;
    }
    let bench = Bench::new();
    let _other = support::mount::Tmpfs::new(&bench.mount_point());
    let message = bench.fill("{d}/m is not a mount of docker-fs");
    assert_eq!(docker_fs(bench.words("unmount {d}/m")), failed(1, &message));
    assert_eq!(mounts_at(&bench.mount_point()), 1);
}

#[test]
fn fifty_rounds_leave_nothing_behind() {
    if !require_privileges("mounting") {
        return;
    }
    let bench = Bench::new();
    let point = bench.path("a mount\\point, with\tall");
    fs::create_dir(&point).unwrap();
    let _mount = Detach(point.clone());
    for round in 0..50 {
        assert_eq!(docker_fs([&bench.store(), &point]), done(), "round {round}");
        // Not by this process: what it has open is for a moment open in every process that another test starts.
        let listed = run(Command::new("ls").arg(point.join("by-tag")));
        assert_eq!(listed, Said { stdout: "bad:1\ngood:1\n".to_owned(), ..done() }, "round {round}");
        assert_eq!(docker_fs([OsStr::new("unmount"), point.as_os_str()]), done(), "round {round}");
        assert_eq!(fs::read_dir(&point).unwrap().count(), 0, "round {round}");
    }
    wait_until("ending", || processes_with(&point) == 0);
}

#[test]
fn relative_paths_are_those_of_where_it_was_started() {
    if !require_privileges("mounting") {
        return;
    }
    let bench = Bench::new();
    let mut command = Command::new(DOCKER_FS);
    command.current_dir(bench.dir.path()).args(["store", "m", "-v", "--log-file", "log", "-o", r"fsname=a b"]);
    assert_eq!(run(&mut command), done());
    assert!(bench.mount_point().join("status").exists());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts.lines().find(|line| line.contains(bench.mount_point().to_str().unwrap())).unwrap();
    assert!(line.contains(r" - fuse.docker-fs a\040b ro,"), "{line}");
    let options = line.split(' ').nth(5).unwrap();
    for wanted in ["ro", "nosuid", "nodev"] {
        assert!(options.split(',').any(|option| option == wanted), "{options}");
    }
    let mut unmount = Command::new(DOCKER_FS);
    assert_eq!(run(unmount.current_dir(bench.dir.path()).args(["unmount", "m"])), done());
    let log = || fs::read_to_string(bench.path("log")).unwrap();
    wait_until("ending", || log().contains("info: unmounted"));
    let log = log();
    let lines: Vec<&str> = log.lines().filter_map(|line| line.split_once(' ').map(|(_, text)| text)).collect();
    let told = bench.fill("{d}/store on {d}/m");
    let (confined, mounts) = lines.split_first().unwrap();
    assert!(
        confined.starts_with("docker-fs: info: the server is confined by mount_namespace, network_namespace, "),
        "{confined}"
    );
    assert_eq!(mounts, [format!("docker-fs: info: mounted {told}"), format!("docker-fs: info: unmounted {told}")]);
}

#[test]
fn the_background_lets_go_of_its_callers_pipes() {
    if !require_privileges("mounting") {
        return;
    }
    let bench = Bench::new();
    let mounted = Mounted::new(&bench.store(), &bench.mount_point());
    let pid = mounted.server().unwrap();
    for pid in [mounted.daemon().unwrap(), pid] {
        for stream in 0..3 {
            let target = fs::read_link(format!("/proc/{pid}/fd/{stream}")).unwrap();
            assert_eq!(target.file_name(), Some(OsStr::new("null")), "descriptor {stream} of {pid}");
        }
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let files: Vec<&str> =
        limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert_eq!(files[3], files[4], "soft and hard limit of open files");
}

#[test]
fn systemd_is_told_which_process_serves() {
    if !require_privileges("mounting") {
        return;
    }
    let bench = Bench::new();
    let (socket, path) = notify_socket(&bench);
    let said = run(Command::new(DOCKER_FS).args([bench.store(), bench.mount_point()]).env("NOTIFY_SOCKET", path));
    assert_eq!(said, done());
    let ready = message(&socket);
    let pid: u32 = ready.lines().find_map(|line| line.strip_prefix("MAINPID=")).unwrap().parse().unwrap();
    let expected = format!("READY=1\nSTATUS=serving {{d}}/store on {{d}}/m\nMAINPID={pid}\n");
    assert_eq!(ready, bench.fill(&expected));
    kill(pid, Signal::TERM);
    assert_eq!(message(&socket), "STOPPING=1\n");
    let process = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    wait_until("ending", || test_kill_process(process).is_err());
    assert_eq!(mounts_at(&bench.mount_point()), 0);
}

#[test]
fn mount_and_fstab_find_the_command() {
    if !require_privileges("mounting") {
        return;
    }
    let bench = Bench::new();
    let fstab = "{d}/store {d}/m fuse.docker-fs noauto,nofail,user,x-systemd.automount,noexec,whiteouts=stored 0 0\n";
    fs::write(bench.path("fstab"), bench.fill(fstab)).unwrap();
    // mount.fuse3 looks into the system's own directories only: one of them is covered for these commands alone.
    let script = "mount -t tmpfs none /usr/local/bin && ln -s \"$0\" /usr/local/bin/docker-fs && mount \"$@\" \
                  && cat m/merged/good:1/etc/hello && umount m";
    for (what, args, outcome) in [
        (
            "mount(8)",
            "-t fuse.docker-fs {d}/store {d}/m -o rw,relatime,allow_other,threads=2",
            Said { stdout: "good\n".to_owned(), ..done() },
        ),
        ("fstab", "-T {d}/fstab {d}/m", Said { stdout: "good\n".to_owned(), ..done() }),
        (
            "a wrong option",
            "-t fuse.docker-fs {d}/store {d}/m -o wrong",
            failed(2, "unknown option -o wrong; try 'docker-fs --help'"),
        ),
    ] {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script, DOCKER_FS]).args(bench.words(args)).current_dir(bench.dir.path());
        assert_eq!(run(&mut command), outcome, "{what}");
    }
    wait_until("ending", || processes_with(&bench.mount_point()) == 0);
}

#[test]
fn other_users_mount_with_the_helper() {
    if !require_privileges("becoming another user") {
        return;
    }
    let open = for_other_users();
    let script = "&& exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -ec '\
                  PATH=/none ./docker-fs store m || ./docker-fs store m; exec 3< m/merged/good:1/hello; cat <&3; \
                  grep \" $PWD/m \" /proc/self/mountinfo; ./docker-fs unmount m || ./docker-fs unmount -l m; ls m'";
    let script = format!("{FOR_OTHER_USERS} {script}");
    let said = run(Command::new("unshare").args(["-m", "sh", "-c", &script]).current_dir(open.path()));
    let m = open.path().join("m").display().to_string();
    let told = format!(
        "docker-fs: fusermount3 is missing, with which other users than root mount; install the package fuse3\n\
         docker-fs: {m} is in use ('fuser -vm {m}' says by whom); 'docker-fs unmount --lazy {m}' detaches it all the \
         same\n"
    );
    assert_eq!((said.code, said.stderr), (Some(0), told), "{}", said.stdout);
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert_eq!((lines.len(), lines[0]), (2, "good"), "{}", said.stdout);
    assert!(lines[1].contains(" - fuse.docker-fs ") && lines[1].contains("user_id=65534"), "{}", lines[1]);
    wait_until("ending", || processes_with(Path::new("./docker-fs")) == 0);
}

#[test]
fn help_and_version_are_data() {
    let version = format!("docker-fs {}\n", env!("CARGO_PKG_VERSION"));
    for flag in ["-V", "--version"] {
        assert_eq!(docker_fs([flag]), Said { stdout: version.clone(), ..done() });
    }
    let (short, long) = (docker_fs(["-h"]), docker_fs(["--help"]));
    for said in [&short, &long] {
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
        assert!(said.stdout.contains("Usage: docker-fs [SOURCE] MOUNTPOINT"), "{}", said.stdout);
        assert!(said.stdout.lines().all(|line| line.chars().count() <= 100), "{}", said.stdout);
    }
    assert!(short.stdout.lines().count() < 30 && long.stdout.contains("whiteouts=stored"));
}

#[test]
fn a_reader_who_has_enough_is_no_failure() {
    let mut child =
        Command::new(DOCKER_FS).arg("--help").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}
