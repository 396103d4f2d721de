//! The jail: takes from the process that reads a store whatever it does not need for that.
//!
//! A store was written by strangers. Should one of them find a way to have this process do what he likes, then the process
//! is to be of no use to him: it sees no files but the store's, none of which it may write, reaches no network and no other
//! process, and can start none. What works and in which order was found by trying; each step is one of
//!
//! ```text
//! *_namespace    mounts, network, IPC and host name (uts) of its own, each by itself (namespaces(7))
//! root           an empty read-only directory, with the FUSE device in it; the host's is detached
//! store          each directory of it is a private read-only clone of its mount (made when it was opened)
//! no_new_privs   no program gives it privileges (prctl(2))
//! landlock       of all files, those below the store may be read, and the device be used (landlock(7))
//! capabilities   CAP_DAC_READ_SEARCH to read, CAP_SYS_ADMIN for trusted.* attributes and passthrough
//! seccomp        the system calls that reading and serving take (seccomp(2))
//! ```
//!
//! A step that the kernel or a lack of privileges denies is left out and reported; the others are taken all the same. All of
//! them hold for the calling thread and those that it starts, so it must be the only one.

mod calls;
mod capabilities;
mod files;
mod root;

use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::error::system_words;
use crate::sys::jail::{Namespace, unshare};
use crate::view::{Force, Measure};

const MOUNT_NAMESPACE: &str = "mount_namespace";
const NETWORK_NAMESPACE: &str = "network_namespace";
const IPC_NAMESPACE: &str = "ipc_namespace";
const UTS_NAMESPACE: &str = "uts_namespace";
const ROOT: &str = "root";
const STORE: &str = "store";
const NO_NEW_PRIVS: &str = "no_new_privs";
const LANDLOCK: &str = "landlock";
const CAPABILITIES: &str = "capabilities";
const SECCOMP: &str = "seccomp";

/// Every step in its order, and what it means where one is not in force.
const MEANING: [(&str, &str); 10] = [
    (MOUNT_NAMESPACE, "it shares the host's mounts"),
    (NETWORK_NAMESPACE, "it shares the host's network"),
    (IPC_NAMESPACE, "it shares the host's IPC"),
    (UTS_NAMESPACE, "it shares the host's name"),
    (ROOT, "it sees the host's files"),
    (STORE, "it reads the store through the host's mounts"),
    (NO_NEW_PRIVS, "it may gain privileges by starting programs"),
    (LANDLOCK, "it may open all files that it sees and its user may open"),
    (CAPABILITIES, "it keeps the privileges that it was started with"),
    (SECCOMP, "it may make every system call that it could when it was started"),
];

/// The device by which the kernel asks.
const DEVICE: &str = "/dev/fuse";

/// What the process is to keep.
#[derive(Debug)]
pub(crate) struct Needs<'a> {
    /// The directories below which it reads.
    pub(crate) store: &'a [BorrowedFd<'a>],
    /// Whether each of them is a private clone.
    pub(crate) is_private: bool,
    /// Any directory that is there; the new root is made on it, in this process' sight alone.
    pub(crate) site: &'a Path,
}

/// What became of a step: what is to be remarked of it, or why it is not in force.
type Outcome = Result<Option<String>, String>;

/// Jails this process, and says what of it is in force.
pub(crate) fn enter(needs: &Needs<'_>) -> Vec<Measure> {
    // Each by itself, as a kernel may lack one of them.
    let [mounts, network, ipc, uts] = [Namespace::Mount, Namespace::Network, Namespace::Ipc, Namespace::Uts]
        .map(|namespace| unshare(namespace).map(|()| None).map_err(why));
    let root = match mounts {
        Ok(_) => root::change(needs.site, needs.is_private),
        Err(_) => Err("that takes a mount namespace of its own".to_owned()),
    };
    let store = clones(needs.is_private);
    let privileges = rustix::thread::set_no_new_privs(true).map(|()| None).map_err(why);
    let landlock = files::restrict(needs.store);
    let capabilities = capabilities::reduce(privileges.is_ok());
    // The last one, since it denies what the others take.
    let seccomp = calls::restrict();
    let outcomes = [mounts, network, ipc, uts, root, store, privileges, landlock, capabilities, seccomp];
    MEANING.into_iter().zip(outcomes).map(|((step, meaning), outcome)| measure(step, meaning, outcome)).collect()
}

/// The steps, none of which is taken but that which was when the store was opened; what whoever started this process took is
/// in force all the same.
pub(crate) fn left_out(why: &str, is_private: bool) -> Vec<Measure> {
    let outcome = |step| match step {
        STORE => clones(is_private),
        NO_NEW_PRIVS if rustix::thread::no_new_privs().unwrap_or(false) => {
            Ok(Some("by whoever started docker-fs".to_owned()))
        }
        _ => Err(why.to_owned()),
    };
    MEANING.into_iter().map(|(step, meaning)| measure(step, meaning, outcome(step))).collect()
}

fn clones(is_private: bool) -> Outcome {
    if is_private { Ok(None) } else { Err("it takes CAP_SYS_ADMIN and Linux 5.14".to_owned()) }
}

/// Whether a step takes privileges that other users than root do not have.
pub(crate) fn is_for_root(measure: &Measure) -> bool {
    [MOUNT_NAMESPACE, NETWORK_NAMESPACE, IPC_NAMESPACE, UTS_NAMESPACE, ROOT, STORE].contains(&measure.step)
}

fn measure(step: &'static str, meaning: &str, outcome: Outcome) -> Measure {
    match outcome {
        Ok(remark) => Measure { step, state: Force::Full, why: remark },
        Err(why) => Measure { step, state: Force::None, why: Some(format!("{why}; {meaning}")) },
    }
}

/// The system's words for an error of whichever kind.
fn why(error: impl Into<std::io::Error>) -> String {
    system_words(&error.into())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Command, ExitStatus};

    use rustix::fs::{CWD, Mode, OFlags, openat};
    use rustix::io::Errno;

    use super::*;

    const SIGSYS: i32 = 31;

    /// Runs one of the tests below in a process of its own, which does not leave the jail again.
    fn inside(test: &str) -> ExitStatus {
        let name = format!("jail::tests::{test}");
        // What it leaves behind there is gone with this.
        let scratch = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &name, "--ignored", "--test-threads=1", "--nocapture"]).env("TMPDIR", scratch.path());
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("running 1 test"), "{text}");
        eprintln!("{text}{}", String::from_utf8_lossy(&output.stderr));
        output.status
    }

    /// Jails the calling thread, with the right to read a directory.
    fn jailed(store: &Path) -> Vec<Measure> {
        let store = File::open(store).unwrap();
        enter(&Needs { store: &[store.as_fd()], is_private: false, site: Path::new("/tmp") })
    }

    #[test]
    fn the_jail_denies() {
        assert!(inside("inside_it_is_denied").success());
    }

    #[test]
    #[ignore = "it does not leave the jail again: run by the test above"]
    fn inside_it_is_denied() {
        let (store, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [&store, &other] {
            fs::write(dir.path().join("file"), "text").unwrap();
        }
        let folder = |path: &Path| openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let (own, foreign) = (folder(store.path()), folder(other.path()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap();

        let measures = jailed(store.path());
        let state = |step: &str| measures.iter().find(|measure| measure.step == step).unwrap().state;
        assert_eq!([LANDLOCK, NO_NEW_PRIVS, SECCOMP].map(state), [Force::Full; 3], "{measures:?}");

        let open =
            |dir: &std::os::fd::OwnedFd, flags| openat(dir, "file", flags | OFlags::CLOEXEC, Mode::empty()).map(drop);
        assert_eq!(open(&own, OFlags::RDONLY), Ok(()));
        for flags in [OFlags::WRONLY, OFlags::RDWR, OFlags::RDONLY | OFlags::TRUNC] {
            assert_eq!(open(&own, flags), Err(Errno::ACCESS), "{flags:?}");
        }
        assert_eq!(open(&foreign, OFlags::RDONLY), Err(Errno::ACCESS), "a directory that was open before");
        let errno = |error: std::io::Error| Errno::from_io_error(&error);
        let by_path = File::open("/etc/passwd").map(drop).map_err(errno);
        let expected = if state(ROOT) == Force::Full { Errno::NOENT } else { Errno::ACCESS };
        assert_eq!(by_path, Err(Some(expected)));

        let none = Err(Some(Errno::NOSYS));
        assert_eq!(TcpListener::bind("127.0.0.1:0").map(drop).map_err(errno), none);
        assert_eq!(TcpStream::connect(port).map(drop).map_err(errno), none);
        assert_eq!(UnixStream::pair().map(drop).map_err(errno), none);
        assert_eq!(fs::create_dir("/tmp/new").map_err(errno), none);
        assert_eq!(fs::remove_file("/tmp/old").map_err(errno), none);
        assert_eq!(Command::new("/bin/true").status().map(drop).map_err(errno), none, "no process is started");
        assert_eq!(unshare(Namespace::Mount).map_err(errno), none);
        assert_eq!(rustix::process::chroot("/"), Err(Errno::NOSYS));
        assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7, "threads are");
    }

    #[test]
    fn who_starts_a_program_inside_is_killed() {
        assert_eq!(inside("inside_a_program_is_started").signal(), Some(SIGSYS));
    }

    #[test]
    #[ignore = "it does not leave the jail again: run by the test above"]
    fn inside_a_program_is_started() {
        jailed(Path::new("/tmp"));
        let error = Command::new("/bin/true").exec();
        panic!("it was not killed: {error}");
    }

    #[test]
    fn a_step_says_what_its_lack_means() {
        let by_us = |measure: &Measure| ![STORE, NO_NEW_PRIVS].contains(&measure.step);
        for measure in left_out("asked for", true).into_iter().filter(by_us) {
            let why = measure.why.unwrap();
            assert!(measure.state == Force::None && why.starts_with("asked for; it "), "{why}");
        }
    }
}
