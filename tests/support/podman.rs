//! podman with stores of the test's own, of root or of another user, which go away with it.
//!
//! No container is run, which would take cgroups and limits that not every machine gives: images are loaded from archives,
//! built without steps that run something, and containers are changed where podman mounts them. It runs in a [`Machine`],
//! where a user without privileges is made up, and where what it mounts and leaves running ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;

use rustix::fs::{Gid, Uid, chown};

use super::machine::{self, Machine};

/// Programs without which there is no podman of this machine's.
pub(crate) const PROGRAMS: &[&str] = &["podman", "newuidmap", "setfattr", "strace"];

/// Whether there are these, and what it takes to run them.
pub(crate) fn has_programs() -> bool {
    machine::has_programs(&[PROGRAMS, machine::PROGRAMS].concat())
}

/// Whose store it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Root,
    /// A user with this ID, whose containers' further users have the IDs from [`SUBORDINATE`] on.
    User(u32),
}

/// The first ID that the containers of a user have for their users beside 0.
pub(crate) const SUBORDINATE: u32 = 1_800_000_000;

/// A store. Dropping it unmounts what podman mounted; the rest goes with the machine.
#[derive(Debug)]
pub(crate) struct Podman {
    machine: Rc<Machine>,
    dir: PathBuf,
    driver: &'static str,
    owner: Owner,
}

/// A process in whose mount namespace podman's mounts are.
#[derive(Debug)]
pub(crate) struct Namespace {
    child: Child,
    /// Its root, as it can be looked at from here.
    root: PathBuf,
}

impl Podman {
    /// A store of this machine's podman that is empty but for its lists.
    pub(crate) fn new(owner: Owner, driver: &'static str) -> Self {
        Self::on(&Rc::new(Machine::ours()), owner, driver)
    }

    /// The same of a machine's podman.
    pub(crate) fn on(machine: &Rc<Machine>, owner: Owner, driver: &'static str) -> Self {
        // Short, as a run root's path ends at 50 bytes.
        let dir = machine.directory(&match owner {
            Owner::Root => driver.to_owned(),
            Owner::User(id) => format!("{driver}-{id}"),
        });
        let podman = Self { machine: Rc::clone(machine), dir, driver, owner };
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
            machine.add_user(id, &podman.at("home"), SUBORDINATE);
        }
        podman.podman(&["info"]);
        podman
    }

    /// A place in the directory of the store, its run root and all else.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
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

    /// The ID in containers of a user that has this one on the host.
    pub(crate) fn container_id(&self, id: u32) -> u32 {
        match self.owner {
            Owner::Root => id,
            Owner::User(own) if own == id => 0,
            Owner::User(_) => id.wrapping_sub(SUBORDINATE).wrapping_add(1),
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = match self.owner {
            Owner::Root => self.machine.command(program),
            Owner::User(id) => {
                let id = id.to_string();
                let mut command = self.machine.command("setpriv");
                command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--", program]);
                command
            }
        };
        // Not the machine's own configuration.
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
        machine::attempt(&mut self.podman_command(args))
    }

    /// Runs podman and returns what it printed, less white space at the end; a failure panics.
    pub(crate) fn podman(&self, args: &[&str]) -> String {
        let stdout = self.try_podman(args).unwrap_or_else(|what| panic!("{what}"));
        String::from_utf8(stdout).unwrap().trim_end().to_owned()
    }

    /// Runs a shell where podman's mounts are, as the user 0 of its containers.
    pub(crate) fn shell(&self, args: &[&str]) {
        let mut command = match self.owner {
            Owner::Root => self.command("sh"),
            Owner::User(_) => self.podman_command(&["unshare", "sh"]),
        };
        machine::run(command.args(args));
    }

    /// An image's ID.
    pub(crate) fn image_id(&self, name: &str) -> String {
        self.podman(&["image", "inspect", "--format", "{{.Id}}", name])
    }

    /// A process in whose namespace podman's mounts are to be seen.
    pub(crate) fn namespace(&self) -> Namespace {
        // Until its input ends.
        let script = "echo $$; exec cat";
        let mut command = match self.owner {
            Owner::Root => self.command("sh"),
            Owner::User(_) => self.podman_command(&["unshare", "sh"]),
        };
        let mut child = command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Namespace { child, root: self.machine.root_of(line.trim().parse().unwrap()) }
    }

    /// Where podman has mounted something, as this process can see it.
    pub(crate) fn mounted(&self, namespace: &Namespace, args: &[&str]) -> PathBuf {
        namespace.root.join(self.inside(args).strip_prefix('/').unwrap())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
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
    }
}
