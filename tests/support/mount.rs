//! Mounts that go away with their value, also when the test panics.
//!
//! [`Mounted`] is docker-fs itself, started as a user starts it. [`KernelOverlay`] is the kernel's own union, by which ours is judged;
//! it is attached nowhere, so that nothing is left behind whatever happens. [`Tmpfs`] is a second kind of backing file system.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, mount, unmount,
};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::store::StoreBuilder;

/// Whether the test may go on: true for root. Otherwise says what is skipped; where `DOCKER_FS_TEST_PRIVILEGED` is set, as in CI, skipping
/// is a failure.
pub fn require_privileges(what: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var_os("DOCKER_FS_TEST_PRIVILEGED").is_none(),
        "{what} needs root, and DOCKER_FS_TEST_PRIVILEGED promises it"
    );
    eprintln!("skipped: {what} needs root");
    false
}

/// A running mount of docker-fs.
#[derive(Debug)]
pub struct Mounted {
    mountpoint: PathBuf,
    /// What the command wrote to stderr until it returned.
    pub stderr: String,
}

impl Mounted {
    /// Mounts `source`, expecting exit code 0.
    pub fn new(source: &Path, mountpoint: &Path) -> Self {
        Self::with(source, mountpoint, &[], 0)
    }

    /// Mounts `source` with more arguments, expecting this exit code. The mount point is made if it is missing. Where
    /// `DOCKER_FS_TEST_OPENS` is set, it is the way in which files are opened, unless the arguments say one.
    pub fn with(source: &Path, mountpoint: &Path, arguments: &[&str], exit: i32) -> Self {
        Self::start(Command::new(env!("CARGO_BIN_EXE_docker-fs")), source, mountpoint, arguments, exit)
    }

    /// As [`Mounted::with`], as a process that may have so many descriptors and never more.
    pub fn with_descriptors(source: &Path, mountpoint: &Path, arguments: &[&str], descriptors: u32) -> Self {
        let mut shell = Command::new("sh");
        let script = format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"");
        shell.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_docker-fs"));
        Self::start(shell, source, mountpoint, arguments, 0)
    }

    fn start(mut command: Command, source: &Path, mountpoint: &Path, arguments: &[&str], exit: i32) -> Self {
        fs::create_dir_all(mountpoint).expect("make the mount point");
        // Files and not pipes: the mount stays in the background, and a pipe that it kept open would never end.
        let mut output = tempfile::tempfile().expect("make a file");
        let way = std::env::var("DOCKER_FS_TEST_OPENS").ok();
        let way = way.filter(|_| !arguments.iter().any(|argument| argument.starts_with("opens=")));
        let status = command
            .arg(source)
            .arg(mountpoint)
            .args(arguments)
            .args(way.map(|way| format!("-oopens={way}")))
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("clone a descriptor"))
            .stderr(output.try_clone().expect("clone a descriptor"))
            .status()
            .expect("run docker-fs");
        // From here on a panic unmounts.
        let mut mounted = Self { mountpoint: mountpoint.to_owned(), stderr: String::new() };
        mounted.stderr = read_all(&mut output);
        assert_eq!(status.code(), Some(exit), "docker-fs said: {}", mounted.stderr);
        mounted
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// The process that made the mount and ends it, if there is one.
    pub fn daemon(&self) -> Option<u32> {
        keeper(&self.mountpoint)
    }

    /// The process that reads the store and answers the kernel, if there is one.
    pub fn server(&self) -> Option<u32> {
        server(&self.mountpoint)
    }
}

/// The process of docker-fs that made the mount at a path and ends it; told by its command line.
pub fn keeper(mountpoint: &Path) -> Option<u32> {
    let all = processes(mountpoint);
    all.iter().copied().find(|pid| parent(*pid).is_none_or(|parent| !all.contains(&parent)))
}

/// The process of docker-fs that answers for the mount at a path: the keeper's child.
pub fn server(mountpoint: &Path) -> Option<u32> {
    let all = processes(mountpoint);
    all.iter().copied().find(|pid| parent(*pid).is_some_and(|parent| all.contains(&parent)))
}

fn processes(mountpoint: &Path) -> Vec<u32> {
    let all = fs::read_dir("/proc").expect("list processes").flatten();
    let ours = all.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let mut words = line.split(|byte| *byte == 0);
        let program = Path::new(OsStr::from_bytes(words.next()?));
        let ours = program.file_name() == Some(OsStr::new("docker-fs"));
        (ours && words.any(|word| word == mountpoint.as_os_str().as_bytes())).then_some(pid)
    });
    ours.collect()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if rustix::process::geteuid().is_root() {
            unmount_or_detach(&self.mountpoint);
        } else {
            // Without privileges it takes the setuid helper, which the command knows.
            let _ = Command::new(env!("CARGO_BIN_EXE_docker-fs")).arg("unmount").arg(&self.mountpoint).status();
        }
    }
}

fn read_all(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().expect("rewind");
    file.read_to_end(&mut bytes).expect("read what was said");
    String::from_utf8_lossy(&bytes).into_owned()
}

fn unmount_or_detach(path: &Path) {
    if unmount(path, UnmountFlags::NOFOLLOW).is_err() {
        let _ = unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
}

/// A tmpfs, mounted.
#[derive(Debug)]
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Mounts a tmpfs at a directory.
    pub fn new(path: &Path) -> Self {
        fs::create_dir_all(path).expect("make the mount point");
        mount("docker-fs-test", path, "tmpfs", MountFlags::empty(), c"mode=0755,nr_inodes=0").expect("mount a tmpfs");
        Self(path.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        unmount_or_detach(&self.0);
    }
}

/// How the kernel shall unite.
#[derive(Clone, Debug, Default)]
pub struct OverlayOptions {
    /// The writable directory and its work directory; the mount is read-only all the same.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Marks are `user.overlay.*`.
    pub userxattr: bool,
    /// Follows files that hold attributes only.
    pub metacopy: bool,
}

/// A kernel overlay that is attached nowhere and ends with the value.
#[derive(Debug)]
pub struct KernelOverlay {
    root: OwnedFd,
    /// Gives a single layer a second one.
    _empty: Option<tempfile::TempDir>,
}

impl KernelOverlay {
    /// Unites directories, top first. The kernel wants two; for a single one an empty directory is laid upon it, as a container's would
    /// be. (Laid under it, it would make the layer's own redirects and opaque marks count, which the bottom layer's do not.) The
    /// attributes of the root are then the empty directory's.
    pub fn new(layers: &[PathBuf], options: &OverlayOptions) -> Result<Self, Errno> {
        Self::with(layers, options, MountAttrFlags::MOUNT_ATTR_RDONLY)
    }

    /// The same, mounted as docker-fs mounts: without setuid and devices.
    pub fn restricted(layers: &[PathBuf]) -> Result<Self, Errno> {
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOATIME;
        Self::with(layers, &OverlayOptions::default(), attributes)
    }

    fn with(layers: &[PathBuf], options: &OverlayOptions, attributes: MountAttrFlags) -> Result<Self, Errno> {
        let empty = (layers.len() == 1 && options.upper.is_none()).then(|| super::scratch("empty"));
        let mut paths: Vec<&Path> = empty.iter().map(tempfile::TempDir::path).collect();
        paths.extend(layers.iter().map(PathBuf::as_path));

        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        // A value has at most 255 bytes, so that directories go by descriptor.
        let mut open = Vec::new();
        let mut by_descriptor = |path: &Path| -> Result<String, Errno> {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            open.push(rustix::fs::open(path, flags, Mode::empty())?);
            Ok(format!("/proc/self/fd/{}", open[open.len() - 1].as_raw_fd()))
        };
        for path in paths {
            fsconfig_set_string(&fs, "lowerdir+", by_descriptor(path)?)?;
        }
        if let Some((upper, work)) = &options.upper {
            fsconfig_set_string(&fs, "upperdir", by_descriptor(upper)?)?;
            fsconfig_set_string(&fs, "workdir", by_descriptor(work)?)?;
            fsconfig_set_string(&fs, "index", "off")?;
        }
        if options.userxattr {
            fsconfig_set_flag(&fs, "userxattr")?;
        }
        if options.metacopy {
            fsconfig_set_string(&fs, "metacopy", "on")?;
        }
        fsconfig_set_flag(&fs, "ro")?;
        fsconfig_create(&fs)?;
        let root = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        Ok(Self { root, _empty: empty })
    }

    /// A path to its root, good in this process.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.root.as_raw_fd()))
    }
}

/// A shell's words that take a device that others may open, in a mount namespace of its own, which ends all that is
/// mounted there, and give the store and the mount point of [`for_other_users`] to user 65534.
pub const FOR_OTHER_USERS: &str = "mkdir d && mount -t tmpfs -o dev none d && mknod -m 666 d/fuse c 10 229 \
                                   && mount --bind d/fuse /dev/fuse && chown -R 65534:65534 store m";

/// A directory that others can reach, with the program `docker-fs`, a `store` with the image `good:1`, in which `hello` says
/// good, and an empty directory `m`.
pub fn for_other_users() -> tempfile::TempDir {
    let open = tempfile::Builder::new().prefix("docker-fs-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(open.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_docker-fs"), open.path().join("docker-fs")).unwrap();
    let mut store = StoreBuilder::new(open.path().join("store"));
    let layers = store.chain(1);
    fs::write(layers[0].diff_dir().join("hello"), "good\n").unwrap();
    // A rootless engine's marks, by which its store is told from a copy of one of root's.
    rustix::fs::setxattr(layers[0].diff_dir(), "user.overlay.impure", b"y", rustix::fs::XattrFlags::empty()).unwrap();
    let image = store.image(&layers);
    store.tag("good:1", &image);
    store.finish();
    fs::create_dir(open.path().join("m")).unwrap();
    open
}
