//! A Docker daemon of the test's own, with a data root, an exec root and a socket that go away with it.
//!
//! The stores that docker-fs reads are best made by the program that defines them. Nothing here reads a store: the daemon
//! is asked, so its answers are an independent witness. No registry is needed: the base image is a Debian root that
//! `debootstrap` makes once, and that later runs and other test binaries find as a tar.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use self::system::{Place, found};
#[allow(unused_imports, reason = "each test binary uses a part")]
pub(crate) use self::system::{attempt, has_programs, run};

#[path = "system.rs"]
mod system;

/// A path of a tar of a Debian root to import as the base image; it is made if it is not there.
const BASE_VARIABLE: &str = "DOCKER_FS_TEST_BASE";
const SUITE: &str = "bookworm";

/// Programs without which there is no daemon.
pub(crate) const PROGRAMS: &[&str] = &["dockerd", "docker", "debootstrap", "setpriv", "tar"];

/// Which of Docker's two builders makes an image: the classic one unpacks a tar of each step, so that the store holds
/// what tars can say; BuildKit keeps the very directory that the kernel wrote, with its `trusted.overlay.*` attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Builder {
    Classic,
    BuildKit,
}

/// A running daemon. Dropping it ends what it started, unmounts what is left below its directories, and removes them.
#[derive(Debug)]
pub(crate) struct Dockerd {
    child: Child,
    driver: &'static str,
    /// Data root and log.
    dir: Place,
    /// Exec root, socket and pidfile: apart and short, as a Unix socket's path ends at 107 bytes.
    run: Place,
}

impl Dockerd {
    /// Starts a daemon with the overlay2 driver and waits until it answers.
    pub(crate) fn start() -> Self {
        Self::with_driver("overlay2")
    }

    /// Starts a daemon with a graph driver and waits until it answers.
    ///
    /// It has no bridge and touches no packet filter: every container runs with `--network none`.
    pub(crate) fn with_driver(driver: &'static str) -> Self {
        Self::start_with(driver, |_| {})
    }

    /// As [`Dockerd::with_driver`]; what its data root lies on is `prepare`d first.
    pub(crate) fn start_with(driver: &'static str, prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::Builder::new().prefix("dockerd-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let run = tempfile::Builder::new().prefix("dfs-").tempdir_in("/tmp").unwrap();
        let (dir, run) = (Place::from(dir), Place::from(run));
        // The machine's own daemon.json must not count; 29 and later would use containerd's store for a new root.
        let config = run.path().join("daemon.json");
        fs::write(&config, r#"{"features":{"containerd-snapshotter":false}}"#).unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        prepare(dir.path());
        let mut daemon = Self { child: spawn(driver, dir.path(), run.path()), driver, dir, run };
        daemon.wait_for_answer();
        daemon
    }

    /// Ends the daemon in the middle of what it does.
    pub(crate) fn kill_now(&self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::KILL);
    }

    /// Ends the daemon, if it has not ended, and all that it started.
    pub(crate) fn kill(&mut self) {
        self.kill_now();
        self.child.wait().unwrap();
        for pid in self.orphans() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Starts the daemon again that was killed, with what it left.
    pub(crate) fn start_again(&mut self) {
        // It would take any process that has the number by now for itself, or for its containerd.
        for stale in ["pid", "exec/containerd/containerd.pid"] {
            let _ = fs::remove_file(self.run.path().join(stale));
        }
        self.child = spawn(self.driver, self.dir.path(), self.run.path());
        self.wait_for_answer();
    }

    fn wait_for_answer(&mut self) {
        let patience = Instant::now() + Duration::from_secs(60);
        while let Err(what) = self.try_docker(&["version"]) {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < patience,
                "dockerd does not answer ({ended:?}): {what}\n{}",
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The data root: what docker-fs mounts.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// A new empty directory that goes away with the daemon, on the data root's file system.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        let place = self.dir.path().join("scratch").join(name);
        fs::create_dir_all(&place).unwrap();
        place
    }

    fn client(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.arg("-H").arg(format!("unix://{}/sock", self.run.path().display()));
        // The user's contexts, proxies and credentials must not count.
        command.env("DOCKER_CONFIG", self.run.path()).env("LC_ALL", "C").env_remove("DOCKER_HOST");
        command
    }

    /// Runs the client; its standard output is the answer.
    pub(crate) fn try_docker(&self, args: &[&str]) -> Result<Vec<u8>, String> {
        attempt(self.client(Path::new("docker")).args(args))
    }

    /// Runs the client and returns what it printed, less white space at the end; a failure panics.
    pub(crate) fn docker(&self, args: &[&str]) -> String {
        let stdout = self.try_docker(args).unwrap_or_else(|what| panic!("{what}"));
        String::from_utf8(stdout).unwrap().trim_end().to_owned()
    }

    /// What the client printed, a line each.
    pub(crate) fn lines(&self, args: &[&str]) -> Vec<String> {
        self.docker(args).lines().map(str::to_owned).collect()
    }

    /// `docker image inspect` or `docker container inspect` of one object.
    pub(crate) fn inspect(&self, kind: &str, name: &str) -> Value {
        let mut found: Vec<Value> = serde_json::from_str(&self.docker(&[kind, "inspect", name])).unwrap();
        assert_eq!(found.len(), 1, "{kind} {name}");
        found.remove(0)
    }

    /// An image's ID, without `sha256:`.
    pub(crate) fn image_id(&self, name: &str) -> String {
        let id = self.inspect("image", name);
        let id = id["Id"].as_str().unwrap();
        id.strip_prefix("sha256:").unwrap().to_owned()
    }

    /// The directories of an image's layers as the daemon names them, top first; none for an image without layers.
    pub(crate) fn image_layers(&self, name: &str) -> Vec<PathBuf> {
        layers_of(&self.inspect("image", name))
    }

    /// The directories that a container's file system is made of, top first: changes, init layer, the image's layers.
    pub(crate) fn container_layers(&self, name: &str) -> Vec<PathBuf> {
        layers_of(&self.inspect("container", name))
    }

    /// Where a running container's file system is mounted, without the binds that only the container sees.
    pub(crate) fn merged_dir(&self, container: &str) -> PathBuf {
        let container = self.inspect("container", container);
        PathBuf::from(container["GraphDriver"]["Data"]["MergedDir"].as_str().unwrap())
    }

    /// Imports the Debian root as the image `name`, making it first if no earlier run did.
    pub(crate) fn import_base(&self, name: &str) {
        self.docker(&["import", base_tar().to_str().unwrap(), name]);
    }

    /// Builds an image from the text of a Dockerfile with an empty context; an empty `tag` builds one without a tag.
    pub(crate) fn build(&self, builder: Builder, tag: &str, dockerfile: &str) -> Result<(), String> {
        let context = tempfile::tempdir_in(self.run.path()).unwrap();
        fs::write(context.path().join("Dockerfile"), dockerfile).unwrap();
        self.build_in(builder, tag, context.path())
    }

    /// Builds an image of a directory with a Dockerfile in it.
    pub(crate) fn build_in(&self, builder: Builder, tag: &str, context: &Path) -> Result<(), String> {
        let mut trouble = String::new();
        // A client without the buildx plugin cannot ask for BuildKit, an older one beside it often can.
        for program in found("docker") {
            let mut command = self.client(&program);
            command.env("DOCKER_BUILDKIT", if builder == Builder::BuildKit { "1" } else { "0" });
            command.args(["build", "--network", "none"]);
            if !tag.is_empty() {
                command.args(["-t", tag]);
            }
            match attempt(command.arg(context)) {
                Ok(_) => return Ok(()),
                Err(what) if builder == Builder::Classic => return Err(what),
                Err(what) => trouble.push_str(&what),
            }
        }
        Err(trouble)
    }

    fn log_tail(&self) -> String {
        let log = fs::read(self.dir.path().join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let tail: Vec<&str> = log.lines().rev().take(20).collect();
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Asks the daemon to end, and makes it; its containers first, as an orphan of a container would hold its mounts.
    fn stop(&mut self) {
        if let Ok(stdout) = self.try_docker(&["ps", "-aq"]) {
            let ids = String::from_utf8_lossy(&stdout).into_owned();
            let ids: Vec<&str> = ids.split_whitespace().collect();
            if !ids.is_empty()
                && let Err(what) = self.try_docker(&[&["rm", "-f"], ids.as_slice()].concat())
            {
                eprintln!("{what}");
            }
        }
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let patience = Instant::now() + Duration::from_secs(20);
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() > patience {
                eprintln!("dockerd does not end; it is killed");
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        for pid in self.orphans() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// What a daemon that was killed leaves: containerd and its shims, whose arguments name the exec root.
    fn orphans(&self) -> Vec<Pid> {
        let run = self.run.path().as_os_str().as_bytes();
        let named = |arguments: &[u8]| arguments.windows(run.len()).any(|window| window == run);
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| *pid != std::process::id().cast_signed())
            .filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|arguments| named(&arguments)))
            .filter_map(Pid::from_raw)
            .collect()
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the end of dockerd's log:\n{}", self.log_tail());
        }
        self.stop();
    }
}

/// Starts a daemon whose data root and log are in `dir`, and what it needs while it runs in `run`.
fn spawn(driver: &str, dir: &Path, run: &Path) -> Child {
    let log = File::options().create(true).append(true).open(dir.join("log")).unwrap();
    // Should the test be killed, the daemon ends too. (`setpriv` executes it, so that the pid is the daemon's.)
    Command::new("setpriv")
        .args(["--pdeathsig", "TERM"])
        .arg(found("dockerd").first().expect("there is no dockerd"))
        .arg("--config-file")
        .arg(run.join("daemon.json"))
        .arg("--data-root")
        .arg(dir.join("root"))
        .arg("--exec-root")
        .arg(run.join("exec"))
        .arg("--pidfile")
        .arg(run.join("pid"))
        .arg("-H")
        .arg(format!("unix://{}/sock", run.display()))
        // A containerd that the machine already runs would be shared.
        .arg("--containerd-namespace")
        .arg(format!("docker-fs-{}", std::process::id()))
        .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver", driver])
        .args(["--shutdown-timeout", "2"])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn layers_of(inspected: &Value) -> Vec<PathBuf> {
    let stored = &inspected["GraphDriver"]["Data"];
    let upper = stored["UpperDir"].as_str();
    let lower = stored["LowerDir"].as_str();
    upper.into_iter().chain(lower.into_iter().flat_map(|lower| lower.split(':'))).map(PathBuf::from).collect()
}

fn base_tar() -> PathBuf {
    system::base_tar(std::env::var_os(BASE_VARIABLE).map(PathBuf::from), SUITE, "libcap2-bin,acl,attr")
}
