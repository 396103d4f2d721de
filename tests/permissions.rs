//! Who may see what: the mount against kernel overlayfs on the same layers, asked by different callers.
//!
//! The callers are threads with credentials of their own (credentials are a thread's on Linux), so that one test asks
//! both mounts the same questions as owner, group, other, by an ACL, as root, and as root without capabilities. What
//! kernel overlayfs answers is expected, with these differences, each of which is asserted to be there:
//!
//! * `trusted.*` *names* are shown to user 0 and to nobody else; the kernel's own file systems look for
//!   `CAP_SYS_ADMIN` instead. A FUSE server is told the caller's user, not the capabilities, and could only look into
//!   `/proc`, where by then another thread may have the number. The *values* are kept by the kernel (`xattr_permission()`),
//!   which asks for the capability on every file system.
//!
//! Without `allow_other` the same holds for the user who mounted, and others are not let in.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::string_slice)]

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Access, AtFlags, CWD, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_keep_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use support::mount::{FOR_OTHER_USERS, KernelOverlay, Mounted, for_other_users, require_privileges};
use support::stack::{Op, Stack, block_device, char_device, dir, fifo, file, link, socket, stack, symlink, whiteout};
use tempfile::TempDir;

const OWNER: u32 = 1000;
const GROUP: u32 = 1001;
const NAMED_USER: u32 = 3000;
const NAMED_GROUP: u32 = 4001;
const OTHER: u32 = 5000;

/// Who asks.
#[derive(Debug, Clone, Copy)]
struct Caller {
    name: &'static str,
    uid: u32,
    gid: u32,
    groups: &'static [u32],
    capabilities: Capabilities,
}

#[derive(Debug, Clone, Copy)]
enum Capabilities {
    None,
    All,
    AllBut(CapabilitySet),
    Only(CapabilitySet),
}

const CALLERS: &[Caller] = &[
    Caller { name: "owner", uid: OWNER, gid: 9000, groups: &[], capabilities: Capabilities::None },
    Caller { name: "group", uid: 2000, gid: GROUP, groups: &[], capabilities: Capabilities::None },
    Caller { name: "other group", uid: 2001, gid: 9000, groups: &[7, GROUP], capabilities: Capabilities::None },
    Caller { name: "user of an ACL", uid: NAMED_USER, gid: 9000, groups: &[], capabilities: Capabilities::None },
    Caller { name: "group of an ACL", uid: 4000, gid: 9000, groups: &[NAMED_GROUP], capabilities: Capabilities::None },
    Caller { name: "other", uid: OTHER, gid: OTHER, groups: &[], capabilities: Capabilities::None },
    Caller { name: "root", uid: 0, gid: 0, groups: &[], capabilities: Capabilities::All },
    ROOT_WITHOUT_ADMIN,
    ROOT_WITHOUT_ANY,
    USER_WITH_ADMIN,
];
const ROOT_WITHOUT_ADMIN: Caller = Caller {
    name: "root without CAP_SYS_ADMIN",
    uid: 0,
    gid: 0,
    groups: &[],
    capabilities: Capabilities::AllBut(CapabilitySet::SYS_ADMIN),
};
const ROOT_WITHOUT_ANY: Caller =
    Caller { name: "root without capabilities", uid: 0, gid: 0, groups: &[], capabilities: Capabilities::None };
const USER_WITH_ADMIN: Caller = Caller {
    name: "user with CAP_SYS_ADMIN",
    uid: OTHER,
    gid: OTHER,
    groups: &[],
    capabilities: Capabilities::Only(CapabilitySet::SYS_ADMIN),
};

impl Caller {
    /// Does the work in a thread that is this caller.
    fn does<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.become_caller();
                work()
            });
            thread.join().unwrap()
        })
    }

    /// These calls change the calling thread alone.
    fn become_caller(self) {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        let all = rustix::thread::capabilities(None).unwrap().permitted;
        let kept = match self.capabilities {
            Capabilities::None => CapabilitySet::empty(),
            Capabilities::All => all,
            Capabilities::AllBut(without) => all.difference(without),
            Capabilities::Only(only) => only,
        };
        set_thread_groups(&groups).unwrap();
        set_thread_res_gid(gid, gid, gid).unwrap();
        set_keep_capabilities(true).unwrap();
        set_thread_res_uid(uid, uid, uid).unwrap();
        let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
        set_capabilities(None, sets).unwrap();
    }
}

// What is asked about.

/// The attribute of an ACL (`posix_acl_xattr.h`): the owner's permissions, a user's, the group's, a group's, the mask, the others'.
fn acl(owner: u16, user: (u32, u16), group: u16, named_group: (u32, u16), mask: u16, other: u16) -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    let none = u32::MAX;
    for (tag, permissions, id) in [
        (1_u16, owner, none),
        (2, user.1, user.0),
        (4, group, none),
        (8, named_group.1, named_group.0),
        (16, mask, none),
        (32, other, none),
    ] {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

const ACCESS_ACL: &str = "system.posix_acl_access";
/// `cap_dac_read_search+ep`, in the second form of `struct vfs_cap_data`.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn owned(op: Op, mode: u32) -> Op {
    op.owner(OWNER, GROUP).mode(mode)
}

/// Files and directories whose modes, ACLs and attributes say who may do what; two layers, top first.
fn tree() -> Stack {
    let mut lower = vec![dir(b"").mode(0o755)];
    for mode in [
        0o000, 0o004, 0o040, 0o400, 0o044, 0o440, 0o444, 0o600, 0o640, 0o644, 0o666, 0o111, 0o751, 0o755, 0o4755,
        0o2755, 0o6711,
    ] {
        lower.push(owned(file(format!("file-{mode:04o}"), "content"), mode));
    }
    for mode in [0o000, 0o111, 0o333, 0o444, 0o700, 0o711, 0o744, 0o750, 0o755, 0o1777, 0o2775] {
        lower.push(owned(dir(format!("dir-{mode:04o}")), mode));
        lower.push(owned(file(format!("dir-{mode:04o}/open"), "inside"), 0o644));
        lower.push(owned(file(format!("dir-{mode:04o}/closed"), "inside"), 0o600));
        lower.push(owned(symlink(format!("dir-{mode:04o}/link"), "open"), 0));
    }
    // Someone else's file in a sticky directory.
    lower.push(file("dir-1777/roots", "inside").mode(0o644));
    for (name, value) in [
        ("lets-in", acl(6, (NAMED_USER, 4), 0, (NAMED_GROUP, 4), 7, 0)),
        ("masked", acl(6, (NAMED_USER, 7), 7, (NAMED_GROUP, 7), 0, 0)),
        ("half-masked", acl(6, (NAMED_USER, 6), 6, (NAMED_GROUP, 3), 4, 0)),
        ("keeps-out", acl(6, (NAMED_USER, 0), 0, (NAMED_GROUP, 0), 7, 4)),
        ("keeps-owner-out", acl(0, (NAMED_USER, 4), 4, (NAMED_GROUP, 4), 7, 4)),
    ] {
        // As setfacl leaves it: where there is an ACL, the mode shows the mask as the group's permissions.
        lower.push(file(format!("acl-{name}"), "content").owner(OWNER, GROUP).xattr(ACCESS_ACL, &value));
        lower.push(dir(format!("acl-dir-{name}")).owner(OWNER, GROUP).xattr(ACCESS_ACL, &value));
        lower.push(owned(file(format!("acl-dir-{name}/open"), "inside"), 0o644));
    }
    let default = acl(7, (NAMED_USER, 5), 5, (NAMED_GROUP, 5), 7, 0);
    lower.push(owned(dir("default-acl").xattr("system.posix_acl_default", default), 0o750));
    lower.push(
        owned(file("attributes", "content"), 0o640)
            .xattr("user.note", "1")
            .xattr("trusted.secret", "2")
            .xattr("security.capability", CAPABILITY),
    );
    lower.push(owned(char_device("null", 1, 3), 0o666));
    lower.push(owned(block_device("loop", 7, 0), 0o660));
    lower.push(owned(fifo("fifo"), 0o640));
    lower.push(owned(socket("socket"), 0o640));
    lower.push(symlink("link", "file-0640"));
    lower.push(symlink("link-inside", "dir-0750/open"));
    lower.push(link("hard", "file-0640"));
    lower.push(owned(dir("hidden"), 0o755));
    lower.push(file("hidden/below", "1"));
    lower.push(file("gone", "1"));
    let upper = vec![
        dir(b"").mode(0o755),
        owned(dir("hidden"), 0o750).opaque().mark("origin", "o").xattr("trusted.mine", "m"),
        owned(file("hidden/above", "1"), 0o640).mark("origin", "o").mark("overlay.opaque", "escaped"),
        owned(dir("dir-0700"), 0o755).mark("impure", "y"),
        whiteout("gone"),
    ];
    stack(vec![upper, lower])
}

struct Bench {
    kernel: KernelOverlay,
    mount: Mounted,
    paths: Vec<PathBuf>,
    directories: Vec<PathBuf>,
    dir: TempDir,
}

impl Bench {
    fn new(tree: &Stack, arguments: &[&str]) -> Self {
        let dir = support::scratch("permissions");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let (store, directories) = tree.store(dir.path().join("docker"));
        let kernel = KernelOverlay::restricted(&directories).expect("mount kernel overlayfs");
        let mount = Mounted::with(&store, &dir.path().join("mnt"), arguments, 0);
        let mut paths: BTreeSet<PathBuf> =
            tree.layers.iter().flatten().map(|op| PathBuf::from(String::from_utf8(op.path.clone()).unwrap())).collect();
        paths.insert("absent".into());
        paths.insert("dir-0700/absent".into());
        Self { kernel, mount, paths: paths.into_iter().collect(), directories, dir }
    }

    fn merged(&self) -> PathBuf {
        self.mount.path().join("merged/t:1")
    }
}

// What is asked.

/// What a caller is answered, a line for each question.
fn answers(root: &Path, paths: &[PathBuf]) -> Vec<String> {
    paths.iter().flat_map(|path| questions(root, path)).collect()
}

fn questions(root: &Path, path: &Path) -> Vec<String> {
    // The kernel's root is reached by a link.
    let whole = if path.as_os_str().is_empty() { root.join(".") } else { root.join(path) };
    let mut lines = Vec::new();
    let mut line = |what: &str, answer: String| lines.push(format!("/{} {what}: {answer}", path.display()));
    line("stat", told(rustix::fs::lstat(&whole), |stat| format!("{:o} {}:{}", stat.st_mode, stat.st_uid, stat.st_gid)));
    for (what, mode) in [("access r", Access::READ_OK), ("access w", Access::WRITE_OK), ("access x", Access::EXEC_OK)] {
        line(what, told(rustix::fs::accessat(CWD, &whole, mode, AtFlags::EACCESS), |()| "yes".to_owned()));
    }
    line("read", told(open(&whole, OFlags::empty()).and_then(|file| read(&file)), |text| text));
    line("list", told(open(&whole, OFlags::DIRECTORY).and_then(|dir| list(&dir)), |names| names.join(" ")));
    for (what, flags) in [
        ("open without atime", OFlags::NOATIME | OFlags::NONBLOCK),
        ("open as a path", OFlags::PATH),
        ("open to write", OFlags::WRONLY | OFlags::NONBLOCK),
    ] {
        let opened = rustix::fs::open(&whole, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty());
        line(what, told(opened, |_| "yes".to_owned()));
    }
    line("readlink", told(rustix::fs::readlink(&whole, Vec::new()), |target| target.to_string_lossy().into_owned()));
    line("names", told(xattr_names(&whole), |names| names.join(" ")));
    for name in
        ["user.note", "trusted.secret", "trusted.mine", "security.capability", ACCESS_ACL, "system.posix_acl_default"]
            .into_iter()
            .chain(["trusted.overlay.opaque", "trusted.overlay.origin", "trusted.overlay.impure"])
    {
        let mut value = [0; 256];
        let length = rustix::fs::lgetxattr(&whole, name, &mut value);
        line(name, told(length, |length| value[..length].escape_ascii().to_string()));
    }
    line("unlink", told(rustix::fs::unlink(&whole), |()| "done".to_owned()));
    lines
}

fn told<T>(answer: Result<T, Errno>, words: impl FnOnce(T) -> String) -> String {
    match answer {
        Ok(answer) => words(answer),
        Err(error) => format!("{error:?}"),
    }
}

fn open(path: &Path, flags: OFlags) -> Result<File, Errno> {
    let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::empty()).map(File::from)
}

fn read(file: &File) -> Result<String, Errno> {
    let mut text = [0; 64];
    let length = rustix::io::read(file, &mut text)?;
    Ok(text[..length].escape_ascii().to_string())
}

fn list(dir: &File) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn xattr_names(path: &Path) -> Result<Vec<String>, Errno> {
    let mut space = [0_u8; 1024];
    let length = rustix::fs::llistxattr(path, &mut space)?;
    let names = space[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut names: Vec<String> = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    names.sort();
    Ok(names)
}

/// The lines without the names of `trusted.*`, and how many there were.
fn without_trusted_names(lines: Vec<String>) -> (Vec<String>, usize) {
    let mut taken = 0;
    let lines = lines.into_iter().map(|line| match line.split_once(" names: ") {
        Some((path, names)) => {
            let (trusted, kept): (Vec<&str>, Vec<&str>) =
                names.split(' ').partition(|name| name.starts_with("trusted."));
            taken += trusted.len();
            format!("{path} names: {}", kept.join(" "))
        }
        None => line,
    });
    (lines.collect(), taken)
}

fn assert_same(caller: &str, expected: &[String], found: &[String]) {
    let pairs = expected.iter().zip(found).filter(|(a, b)| a != b);
    let lines: Vec<String> = pairs.map(|(a, b)| format!("kernel: {a}\n    ours:   {b}")).collect();
    assert!(
        lines.is_empty() && expected.len() == found.len(),
        "{caller} is answered otherwise:\n    {}",
        lines.join("\n    ")
    );
}

#[test]
fn everyone_is_answered_as_by_the_kernel() {
    if !require_privileges("a mount and other users") {
        return;
    }
    let bench = Bench::new(&tree(), &["-o", "allow_other"]);
    for caller in CALLERS {
        // What one caller was told must not be what another is told from a cache: each is asked twice, in turn.
        for _ in 0..2 {
            assert_as_kernel(caller, &bench);
        }
    }
}

/// A caller is answered as by the kernel, but for the names of `trusted.*`.
fn assert_as_kernel(caller: &Caller, bench: &Bench) {
    let expected = caller.does(|| answers(&bench.kernel.path(), &bench.paths));
    let found = caller.does(|| answers(&bench.merged(), &bench.paths));
    let is_admin = !matches!(caller.capabilities, Capabilities::None | Capabilities::AllBut(_));
    let is_root = caller.uid == 0;
    let (plain, kernels) = without_trusted_names(expected.clone());
    let (plain_found, ours) = without_trusted_names(found.clone());
    // The differences are there, and nowhere else.
    assert_eq!((kernels > 0, ours > 0), (is_admin, is_root), "{}: {kernels} and {ours} names", caller.name);
    if is_admin == is_root {
        assert_same(caller.name, &expected, &found);
    } else {
        assert_same(caller.name, &plain, &plain_found);
    }
}

/// The oracle is one: what these callers may do differs, and so do the answers.
#[test]
fn the_callers_are_told_apart() {
    if !require_privileges("a mount and other users") {
        return;
    }
    let bench = Bench::new(&tree(), &["-o", "allow_other"]);
    let mut seen: Vec<(&str, Vec<String>)> = Vec::new();
    for caller in CALLERS {
        let told = caller.does(|| answers(&bench.kernel.path(), &bench.paths));
        let same = seen.iter().find(|(_, other)| *other == told).map(|(name, _)| *name);
        let alike = if caller.name == "other group" { Some("group") } else { None };
        assert_eq!(same, alike, "{} is as", caller.name);
        seen.push((caller.name, told));
    }
}

#[test]
fn without_allow_other_only_the_user_who_mounted_is_let_in() {
    if !require_privileges("a mount and other users") {
        return;
    }
    let bench = Bench::new(&tree(), &[]);
    for caller in CALLERS.iter().filter(|caller| caller.uid != 0) {
        for root in [bench.mount.path().to_owned(), bench.mount.path().join("status"), bench.merged()] {
            let told = caller.does(|| answers(&root, &bench.paths));
            // Of the mount point itself, more than its attributes and names is no look into the mount.
            let is_look = |line: &String| {
                root != bench.mount.path()
                    || !line.starts_with("/ ")
                    || ["/ stat", "/ list", "/ read:"].iter().any(|start| line.starts_with(start))
            };
            let is_denied = |line: &String| line.ends_with(&format!("{:?}", Errno::ACCESS));
            let let_in: Vec<&String> = told.iter().filter(|line| is_look(line) && !is_denied(line)).collect();
            assert!(let_in.is_empty(), "{} at {}: {let_in:#?}", caller.name, root.display());
        }
    }
    for caller in CALLERS.iter().filter(|caller| caller.uid == 0) {
        assert_as_kernel(caller, &bench);
    }
}

/// What comes from configs may hold secrets, and stays with who mounted whatever the others may see.
#[test]
fn configs_are_for_who_mounted() {
    if !require_privileges("a mount and other users") {
        return;
    }
    let bench = Bench::new(&tree(), &["-o", "allow_other"]);
    let image = bench.mount.path().join("by-tag/t:1");
    let other = CALLERS.iter().find(|caller| caller.name == "other").unwrap();
    for name in ["config.json", "history", "layers/0.json"] {
        assert!(!fs::read(image.join(name)).unwrap().is_empty());
        let denied = other.does(|| fs::read(image.join(name)).map_err(|error| error.kind()));
        assert_eq!(denied, Err(std::io::ErrorKind::PermissionDenied), "{name}");
    }
    let names = other.does(|| list(&open(&image, OFlags::DIRECTORY).unwrap()).unwrap());
    assert_eq!(names, [".", "..", "config.json", "history", "layers", "merged"]);
}

/// How a program ends that someone without rights starts, with what it says.
fn starts(program: &Path, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(arguments).uid(OTHER).gid(OTHER).env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().map_err(|error| format!("{:?}", error.kind()))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn path_of(program: &str) -> PathBuf {
    let found = ["/usr/bin", "/bin"].iter().map(|dir| Path::new(dir).join(program)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("there is no {program}"))
}

/// A program with setuid, or with capabilities in its attributes, gives none of its rights; on a mount that allows it, it would.
#[test]
fn programs_and_devices_give_no_rights() {
    if !require_privileges("a mount and other users") {
        return;
    }
    let program = |name: &str| fs::read(path_of(name)).unwrap();
    let tree = stack(vec![
        vec![file("upper", "")],
        vec![
            dir(b"").mode(0o755),
            file("id", program("id")).mode(0o4755),
            file("group-id", program("id")).owner(0, 7).mode(0o2755),
            file("cat", program("cat")).mode(0o755).xattr("security.capability", CAPABILITY),
            char_device("zero", 1, 5).mode(0o666),
        ],
    ]);
    let bench = Bench::new(&tree, &["-o", "allow_other"]);
    let secret = bench.dir.path().join("secret");
    fs::write(&secret, "for root").unwrap();
    fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    lchown(&secret, Some(0), Some(0)).unwrap();

    let does = |root: &Path| {
        [
            starts(&root.join("id"), &["-u"]),
            starts(&root.join("group-id"), &["-g"]),
            starts(&root.join("cat"), &[secret.to_str().unwrap()]).map_err(|_| "denied".to_owned()),
            File::open(root.join("zero")).map(|_| "opened".to_owned()).map_err(|error| format!("{:?}", error.kind())),
        ]
    };
    // The same files where nothing forbids it. (A mount that is attached nowhere gives no rights either.)
    let plain = ["plain-upper", "plain"].map(|name| bench.dir.path().join(name));
    plain.iter().for_each(|path| fs::create_dir(path).unwrap());
    assert_eq!(tree.apply(&plain), [""; 0]);
    let ok = |text: &str| Ok(text.to_owned());
    assert_eq!(does(&plain[1]), [ok("0"), ok("7"), ok("for root"), ok("opened")], "the files are harmless");
    let harmless =
        [ok(&OTHER.to_string()), ok(&OTHER.to_string()), Err("denied".to_owned()), Err("PermissionDenied".to_owned())];
    assert_eq!(does(&bench.kernel.path()), harmless);
    assert_eq!(does(&bench.merged()), harmless);
}

/// Root of a user namespace is another user to the kernel, and to us.
#[test]
fn root_of_a_user_namespace_sees_no_trusted_names() {
    if !require_privileges("a mount and other users") {
        return;
    }
    let bench = Bench::new(&tree(), &["-o", "allow_other"]);
    let path = bench.merged().join("attributes");
    assert!(xattr_names(&path).unwrap().contains(&"trusted.secret".to_owned()));
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "--user", "--map-root-user"]);
    command.args(["sh", "-c", "id -u; getfattr --absolute-names -m - -- \"$0\""]).arg(&path);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(said.lines().next(), Some("0"), "{said}");
    assert!(said.contains("user.note") && !said.contains("trusted"), "{said}");
}

/// Who mounts without being root keeps even root out: FUSE asks for the same user, whatever the capabilities.
#[test]
fn a_users_mount_keeps_root_out() {
    if !require_privileges("becoming another user") {
        return;
    }
    let open = for_other_users();
    let script = "&& as_user() { setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"; } \
                  && as_user ./docker-fs store m && as_user cat m/merged/good:1/hello \
                  && for path in m m/status m/merged/good:1/hello; do stat -c %s $path 2>&1; done; \
                  as_user ./docker-fs unmount m";
    let script = format!("{FOR_OTHER_USERS} {script}");
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script]).current_dir(open.path()).env("LC_ALL", "C").stdin(Stdio::null());
    let (mut stdout, mut stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    // Files: the mount in the background would keep pipes open.
    let status = command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap()).status().unwrap();
    let text = |file: &mut File| {
        use std::io::{Read, Seek};
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    };
    let (said, trouble) = (text(&mut stdout), text(&mut stderr));
    assert!(status.success(), "{said}{trouble}");
    let denied = |path: &str| format!("stat: cannot statx '{path}': Permission denied\n");
    let expected = format!("good\n{}{}{}", denied("m"), denied("m/status"), denied("m/merged/good:1/hello"));
    assert_eq!(said, expected, "{trouble}");
}

#[test]
fn set_attributes_reach_the_layer() {
    if !require_privileges("a mount and other users") {
        return;
    }
    // A tree whose ACLs did not arrive would compare equal and show nothing.
    let bench = Bench::new(&tree(), &["-o", "allow_other"]);
    let lower = &bench.directories[1];
    let mut value = [0; 256];
    assert!(rustix::fs::lgetxattr(lower.join("acl-lets-in"), ACCESS_ACL, &mut value).unwrap() > 40);
    assert_eq!(rustix::fs::lgetxattr(lower.join("attributes"), "trusted.secret", &mut value), Ok(1));
    let refused = rustix::fs::lsetxattr(bench.merged().join("attributes"), "user.note", b"2", XattrFlags::empty());
    assert_eq!(refused, Err(Errno::ROFS));
}
