//! Engines of Debian 13 in a [`Machine`] of that release: Docker 26 with containerd's image store, and containerd 1.7.
//! (Its podman 5 is run by `podman.rs`.)

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::machine::{Machine, attempt, base_tar, run};

/// Programs without which Debian 13 cannot be made.
pub(crate) const PROGRAMS: &[&str] = &["debootstrap"];

const SUITE: &str = "trixie";
const PACKAGES: &str = "docker.io,docker-cli,containerd,podman,uidmap";

/// Makes what [`machine`] is made of, if no earlier run did.
pub(crate) fn prepare() {
    base_tar(None, SUITE, PACKAGES);
}

/// A machine of that release with the engines, none of which runs yet.
pub(crate) fn machine() -> Machine {
    Machine::debian(SUITE, PACKAGES)
}

/// Docker's images in containerd's store; nothing that touches packet filters.
const DOCKER_CONFIG: &str =
    r#"{"features":{"containerd-snapshotter":true},"iptables":false,"ip6tables":false,"bridge":"none"}"#;

/// The plugins that look for what the machine may not have.
const CONTAINERD_CONFIG: &str = r#"version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt"]
"#;

/// A daemon that runs in the machine, and ends with it.
#[derive(Debug)]
pub(crate) struct Daemon {
    machine: Rc<Machine>,
    dir: PathBuf,
    child: Child,
    client: &'static [&'static str],
}

impl Daemon {
    pub(crate) fn docker(machine: &Rc<Machine>) -> Self {
        let dir = machine.directory("docker");
        fs::write(dir.join("config"), DOCKER_CONFIG).unwrap();
        let places =
            ["--data-root", "{}/root", "--exec-root", "/run/d", "--pidfile", "/run/d.pid", "-H", "unix:///run/d.sock"];
        let args = [&["dockerd", "--config-file", "{}/config"], &places[..]].concat();
        Self::start(machine, dir, &args, &["docker", "-H", "unix:///run/d.sock"])
    }

    pub(crate) fn containerd(machine: &Rc<Machine>) -> Self {
        let dir = machine.directory("containerd");
        fs::write(dir.join("config"), CONTAINERD_CONFIG).unwrap();
        let places = ["--root", "{}/root", "--state", "/run/c", "--address", "/run/c.sock"];
        let args = [&["containerd", "--config", "{}/config"], &places[..]].concat();
        Self::start(machine, dir, &args, &["ctr", "-a", "/run/c.sock"])
    }

    /// Starts a daemon, in whose arguments `{}` is its directory, and waits until it answers its client.
    fn start(machine: &Rc<Machine>, dir: PathBuf, args: &[&str], client: &'static [&'static str]) -> Self {
        let log = File::create(dir.join("log")).unwrap();
        let mut command = machine.command(args[0]);
        command.args(args[1..].iter().map(|word| word.replace("{}", dir.to_str().unwrap())));
        let output = log.try_clone().unwrap();
        let child = command.stdin(Stdio::null()).stdout(output).stderr(log).spawn().unwrap();
        let mut daemon = Self { machine: Rc::clone(machine), dir, child, client };
        let patience = Instant::now() + Duration::from_secs(60);
        while let Err(what) = daemon.attempt(&["version"]) {
            let ended = daemon.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < patience, "{args:?} does not answer ({ended:?}): {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
        daemon
    }

    /// What docker-fs mounts.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// A place that the client can read.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Runs the client; its standard output is the answer.
    pub(crate) fn attempt(&self, args: &[&str]) -> Result<Vec<u8>, String> {
        attempt(self.machine.command(self.client[0]).args(&self.client[1..]).args(args))
    }

    /// Runs the client and returns what it printed, less white space at the end; a failure panics.
    pub(crate) fn client(&self, args: &[&str]) -> String {
        let stdout = self.attempt(args).unwrap_or_else(|what| panic!("{what}"));
        String::from_utf8(stdout).unwrap().trim_end().to_owned()
    }

    /// The root of a container that runs, as it sees it itself.
    pub(crate) fn root_of(&self, container: &str) -> PathBuf {
        let found: Value = serde_json::from_str(&self.client(&["container", "inspect", container])).unwrap();
        self.machine.root_of(found[0]["State"]["Pid"].as_u64().unwrap())
    }

    /// Mounts a snapshot as containerd tells it to.
    pub(crate) fn mount_snapshot(&self, namespace: &str, key: &str, at: &Path) -> PathBuf {
        fs::create_dir_all(at).unwrap();
        let commands = self.client(&["-n", namespace, "snapshots", "mounts", at.to_str().unwrap(), key]);
        // The kernel's newer way to mount takes no more than 255 bytes of directories.
        run(self.machine.command("sh").args(["-ec", &commands]).env("LIBMOUNT_FORCE_MOUNT2", "always"));
        self.machine.seen(at)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read(self.at("log")).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("the end of the log, last line first:\n{}", tail.join("\n"));
        }
        // Who waits for it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
