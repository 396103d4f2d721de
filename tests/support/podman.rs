//! podman with stores of the test's own, of root or of another user, which go away with it.
//!
//! No container is run, which would take cgroups and limits that not every machine gives: images are loaded from archives,
//! built without steps that run something, and containers are changed where podman mounts them. A user without
//! privileges is made up: in a mount namespace that has its own `/etc/passwd`, `/etc/subuid` and `/etc/subgid`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{Gid, Uid, chown};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use self::system::attempt;
pub(crate) use self::system::{has_programs, run, unmount_below};

#[path = "system.rs"]
mod system;

/// Programs without which there is no podman.
pub(crate) const PROGRAMS: &[&str] = &["podman", "setpriv", "unshare", "newuidmap", "tar", "setfattr"];

/// Whose store it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Root,
    /// A user with this ID, whose containers' further users have the IDs from [`SUBORDINATE`] on.
    User(u32),
}

/// The first ID that the containers of a user have for their users beside 0.
pub(crate) const SUBORDINATE: u32 = 1_800_000_000;

/// A store. Dropping it unmounts what podman mounted, ends what it left running, and removes it.
#[derive(Debug)]
pub(crate) struct Podman {
    dir: TempDir,
    driver: &'static str,
    owner: Owner,
}

/// A process in whose mount namespace podman's mounts are.
#[derive(Debug)]
pub(crate) struct Namespace {
    child: Child,
    /// The process itself, which may be a descendant of the child.
    pid: i32,
}

impl Podman {
    /// A store that is empty but for its lists.
    pub(crate) fn new(owner: Owner, driver: &'static str) -> Self {
        let dir = tempfile::Builder::new().prefix("dfs-podman-").tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let podman = Self { dir, driver, owner };
        for name in ["root", "run", "tmp", "home", "scratch"] {
            fs::create_dir(podman.at(name)).unwrap();
            if let Owner::User(id) = owner {
                chown(podman.at(name), Some(Uid::from_raw(id)), Some(Gid::from_raw(id))).unwrap();
            }
        }
        let storage = format!(
            "[storage]\ndriver = \"{driver}\"\ngraphroot = \"{0}\"\nrunroot = \"{1}\"\nrootless_storage_path = \"{0}\"\n",
            podman.root().display(),
            podman.at("run").display()
        );
        fs::write(podman.at("storage.conf"), storage).unwrap();
        if let Owner::User(id) = owner {
            for file in ["passwd", "group"] {
                let known = fs::read_to_string(Path::new("/etc").join(file)).unwrap();
                let home = podman.at("home");
                let line = match file {
                    "passwd" => format!("dfs-test:x:{id}:{id}::{}:/bin/sh\n", home.display()),
                    _ => format!("dfs-test:x:{id}:\n"),
                };
                fs::write(podman.at(file), known + &line).unwrap();
            }
            for file in ["subuid", "subgid"] {
                fs::write(podman.at(file), format!("dfs-test:{SUBORDINATE}:65536\n")).unwrap();
            }
        }
        podman.podman(&["info"]);
        podman
    }

    /// A place in the directory of the store, its run root and all else.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The graph root: what docker-fs mounts.
    pub(crate) fn root(&self) -> PathBuf {
        self.at("root")
    }

    /// The ID on the host of a user that has this one in containers.
    pub(crate) fn host_id(&self, id: u32) -> u32 {
        match (self.owner, id) {
            (Owner::Root, _) => id,
            (Owner::User(own), 0) => own,
            (Owner::User(_), id) => SUBORDINATE + id - 1,
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = match self.owner {
            Owner::Root => Command::new(program),
            Owner::User(id) => {
                let script = "for f in passwd group subuid subgid; do mount --bind \"$0/$f\" /etc/$f || exit 1; done; \
                              u=$1; shift; cd /; exec setpriv --reuid \"$u\" --regid \"$u\" --clear-groups -- \"$@\"";
                let mut command = Command::new("unshare");
                command.args(["-m", "sh", "-c", script]).arg(self.dir.path()).arg(id.to_string()).arg(program);
                command
            }
        };
        // The machine's own configuration must not count.
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LC_ALL", "C");
        command.env("HOME", self.at("home")).env("XDG_RUNTIME_DIR", self.at("tmp"));
        command.env("CONTAINERS_STORAGE_CONF", self.at("storage.conf")).env("TMPDIR", self.at("scratch"));
        command
    }

    fn podman_command(&self, args: &[&str]) -> Command {
        let mut command = self.command("podman");
        command.args(self.globals()).args(args);
        command
    }

    fn globals(&self) -> Vec<String> {
        let place = |name: &str| self.at(name).display().to_string();
        let (root, run, tmp) = (place("root"), place("run"), place("tmp"));
        let places = ["--root", &root, "--runroot", &run, "--tmpdir", &tmp, "--storage-driver", self.driver];
        let rest = ["--cgroup-manager", "cgroupfs", "--events-backend", "none"];
        places.iter().chain(&rest).map(|word| (*word).to_owned()).collect()
    }

    /// As [`Podman::podman`], in the namespaces in which a user's podman may mount.
    pub(crate) fn inside(&self, args: &[&str]) -> String {
        match self.owner {
            Owner::Root => self.podman(args),
            Owner::User(_) => {
                let globals = self.globals();
                let globals = globals.iter().map(String::as_str);
                let words: Vec<&str> =
                    ["unshare", "podman"].into_iter().chain(globals).chain(args.iter().copied()).collect();
                self.podman(&words)
            }
        }
    }

    /// Runs podman; its standard output is the answer.
    pub(crate) fn try_podman(&self, args: &[&str]) -> Result<Vec<u8>, String> {
        attempt(&mut self.podman_command(args))
    }

    /// Runs podman and returns what it printed, less white space at the end; a failure panics.
    pub(crate) fn podman(&self, args: &[&str]) -> String {
        let stdout = self.try_podman(args).unwrap_or_else(|what| panic!("{what}"));
        String::from_utf8(stdout).unwrap().trim_end().to_owned()
    }

    /// An image's ID.
    pub(crate) fn image_id(&self, name: &str) -> String {
        self.podman(&["image", "inspect", "--format", "{{.Id}}", name])
    }

    /// A process in whose namespace podman's mounts are to be seen.
    pub(crate) fn namespace(&self) -> Namespace {
        let script = "echo $$; exec sleep infinity";
        let mut command = match self.owner {
            Owner::Root => self.command("sh"),
            Owner::User(_) => self.podman_command(&["unshare", "sh"]),
        };
        let mut child = command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Namespace { child, pid: line.trim().parse().unwrap() }
    }

    /// Where podman has mounted something, as this process can see it.
    pub(crate) fn mounted(&self, namespace: &Namespace, args: &[&str]) -> PathBuf {
        let place = self.inside(args);
        PathBuf::from(format!("/proc/{}/root{place}", namespace.pid))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Pid::from_raw(self.pid).map(|pid| kill_process(pid, Signal::KILL));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        for args in [&["umount", "--all"][..], &["image", "umount", "--all"]] {
            let unmounted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.inside(args)));
            if unmounted.is_err() {
                eprintln!("podman {args:?} failed");
            }
        }
        if let Owner::User(id) = self.owner {
            // What keeps the user's namespaces.
            for pid in processes_of(id) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        unmount_below(self.dir.path());
    }
}

fn processes_of(id: u32) -> Vec<Pid> {
    let is_of = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("Uid:\t").is_some_and(|ids| ids.starts_with(&format!("{id}\t"))))
    };
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_of(*pid)).filter_map(Pid::from_raw).collect()
}
