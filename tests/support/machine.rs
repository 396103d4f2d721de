//! A machine beside this one: the same kernel, with a root, an `/etc`, mounts and processes of its own.
//!
//! Engines of another release run in it, and users are made up in it. What it mounts is seen by nobody else, this
//! machine's `/etc` is out of its reach, and all that runs in it ends with it, also when the test is killed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use self::system::Place;
pub(crate) use self::system::{attempt, base_tar, has_programs, run};

#[path = "system.rs"]
mod system;

/// Programs without which there is none.
pub(crate) const PROGRAMS: &[&str] = &["unshare", "nsenter", "setpriv", "pivot_root", "tar"];

/// Words of a shell that make the root: `$0` is where, `$1` the directory that is seen inside and out, `$2` whose it is.
///
/// Of this machine it has the programs, read-only, and a copy of `/etc`, in memory; nothing else of it can be reached once
/// its root is left.
const SETUP: &str = r#"
if [ "$2" = ours ]; then
    mount -t tmpfs -o mode=755 none "$0"
    for place in usr bin sbin lib lib32 lib64 libx32; do
        if [ -L "/$place" ]; then
            cp -P "/$place" "$0/$place"
        elif [ -d "/$place" ]; then
            mkdir "$0/$place"
            mount --bind "/$place" "$0/$place"
            mount -o remount,bind,ro "$0/$place"
        fi
    done
    for place in etc dev sys proc run tmp var var/lib var/tmp root; do mkdir "$0/$place"; done
    cp -a /etc/. "$0/etc"
else
    mount --bind "$0" "$0"
fi
mount --rbind /dev "$0/dev"
mount --rbind /sys "$0/sys"
mount -t proc proc "$0/proc"
mount -t tmpfs -o mode=755 none "$0/run"
for place in tmp var/tmp; do mount -t tmpfs -o mode=1777 none "$0/$place"; done
mkdir -p "$0$1" "$0/run/old"
mount --bind "$1" "$0$1"
: >"$0/run/docker-fs-machine"
cd "$0"
pivot_root . run/old
umount -l run/old
echo ready
exec sleep infinity
"#;

/// Adds the user `u$0`, unless it is there, with a home directory `$1` and IDs for containers from `$2` on; never to this
/// machine's own files.
const USER: &str = r#"
test -e /run/docker-fs-machine
! grep -q "^u$0:" /etc/passwd || exit 0
printf 'u%s:x:%s:%s::%s:/bin/sh\n' "$0" "$0" "$0" "$1" >>/etc/passwd
printf 'u%s:x:%s:\n' "$0" "$0" >>/etc/group
for file in subuid subgid; do printf 'u%s:%s:65536\n' "$0" "$2" >>"/etc/$file"; done
"#;

/// A running machine.
#[derive(Debug)]
pub(crate) struct Machine {
    child: Child,
    /// Its first process, without which the others end.
    init: Pid,
    /// The root's mount point, and what is seen inside and out by one path.
    place: Place,
}

impl Machine {
    /// With this machine's programs.
    pub(crate) fn ours() -> Self {
        let place = Place::new();
        fs::create_dir(place.path().join("tree")).unwrap();
        Self::start(place, "ours")
    }

    /// With the programs of a release of Debian.
    pub(crate) fn debian(suite: &str, packages: &str) -> Self {
        let tar = base_tar(None, suite, packages);
        let place = Place::new();
        let tree = place.path().join("tree");
        fs::create_dir(&tree).unwrap();
        run(Command::new("tar").args(["--numeric-owner", "-xpf"]).arg(tar).arg("-C").arg(&tree));
        Self::start(place, "debian")
    }

    fn start(place: Place, whose: &str) -> Self {
        let shared = place.path().join("in");
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o755)).unwrap();
        let log = File::create(place.path().join("log")).unwrap();
        // Should the test be killed, all ends.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "--pid", "--fork"])
            .args(["--kill-child", "sh", "-ec", SETUP])
            .args([&place.path().join("tree"), &shared])
            .arg(whose)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line != "ready\n" {
            let _ = child.kill();
            let _ = child.wait();
            panic!("no machine: {}", fs::read_to_string(place.path().join("log")).unwrap());
        }
        let parent = format!("PPid:\t{}", child.id());
        let is_child = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| text.lines().any(|line| line == parent))
        };
        let pids =
            fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let init: i32 = pids.into_iter().find(is_child).unwrap();
        Self { child, init: Pid::from_raw(init).unwrap(), place }
    }

    /// A new directory that has one path inside and out.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let dir = self.place.path().join("in").join(name);
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        dir
    }

    /// Adds a user to the machine's own `/etc`.
    pub(crate) fn add_user(&self, id: u32, home: &Path, subordinate: u32) {
        let mut command = self.command("sh");
        run(command.args(["-ec", USER, &id.to_string()]).arg(home).arg(subordinate.to_string()));
    }

    /// A command that runs a program of the machine's in it, without this machine's environment.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let init = self.init.as_raw_nonzero().to_string();
        command.args(["-t", &init, "-m", "-p", "-r", "-w", "--", program]);
        command.env_clear().env("LC_ALL", "C").env("HOME", "/root");
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// A path of the machine's as it can be looked at from here.
    pub(crate) fn seen(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.init.as_raw_nonzero()));
        root.join(path.strip_prefix("/").unwrap())
    }

    /// The root as a process sees it, by the number that it has in the machine.
    pub(crate) fn root_of(&self, pid: u64) -> PathBuf {
        self.seen(Path::new(&format!("/proc/{pid}/root")))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The kernel ends the others before this one is gone, and `unshare` waits for it.
        let _ = kill_process(self.init, Signal::KILL);
        let _ = self.child.wait();
    }
}
