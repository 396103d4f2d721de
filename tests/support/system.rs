//! The programs of the system that tests run, and Debian roots made by `debootstrap`: once, as a tar that later runs and
//! other tests find.

#![allow(dead_code)]

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

/// Set where missing programs are a failure, not a reason to skip.
const STRICT_VARIABLE: &str = "DOCKER_FS_TEST_PRIVILEGED";
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";

/// Whether all `programs` are there; says which is not, and fails where the environment promises them.
pub(crate) fn has_programs(programs: &[&str]) -> bool {
    let missing: Vec<&str> = programs.iter().filter(|name| found(name).is_empty()).copied().collect();
    if missing.is_empty() {
        return true;
    }
    assert!(std::env::var_os(STRICT_VARIABLE).is_none(), "{STRICT_VARIABLE} is set, but there is no {missing:?}");
    eprintln!("skipped: no {}", missing.join(", "));
    false
}

/// Every program called `name` on `PATH`, in order.
pub(crate) fn found(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).chain(system).map(|dir| dir.join(name)).collect();
    places.retain(|place| place.is_file());
    places.dedup();
    places
}

/// Runs a command to its end; a failure panics with all it said.
pub(crate) fn run(command: &mut Command) -> Vec<u8> {
    match attempt(command) {
        Ok(stdout) => stdout,
        Err(what) => panic!("{what}"),
    }
}

/// Runs a command to its end, its output apart; a failure is a text that names the command and what it said.
pub(crate) fn attempt(command: &mut Command) -> Result<Vec<u8>, String> {
    let shown = format!("{command:?}");
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().map_err(|error| format!("{shown}: {error}"))?;
    if status.success() {
        return Ok(stdout);
    }
    let mut text = format!("{shown}: {status}");
    for said in [&stdout, &stderr] {
        let said = String::from_utf8_lossy(said);
        let tail: Vec<&str> = said.lines().rev().take(30).collect();
        for line in tail.iter().rev() {
            let _ = write!(text, "\n  {line}");
        }
    }
    Err(text)
}

/// Unmounts every mount below `dir`, the last one first.
pub(crate) fn unmount_below(dir: &Path) {
    for place in mounts_below(dir).iter().rev() {
        if let Err(error) = unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            eprintln!("cannot unmount {}: {error}", place.display());
        }
    }
}

/// The mount points below `dir` in the order of their making. (The directories here have no byte that the list escapes.)
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    places.filter(|place| place.starts_with(dir)).collect()
}

/// A directory that goes away with its value, and never what is mounted in it.
#[derive(Debug)]
pub(crate) struct Place(TempDir);

impl Place {
    /// A directory that every user can reach.
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("dfs-").tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl From<TempDir> for Place {
    fn from(dir: TempDir) -> Self {
        Self(dir)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        unmount_below(self.0.path());
        let left = mounts_below(self.0.path());
        if !left.is_empty() {
            // To remove it would remove what is mounted.
            self.0.disable_cleanup(true);
            eprintln!("{} stays, as these are mounted there: {left:?}", self.0.path().display());
        }
    }
}

/// The tar of a Debian root with these packages, made if no earlier run did; it is kept where it is told, or beside the
/// build. Two tests that want it at once make it once.
pub(crate) fn base_tar(place: Option<PathBuf>, suite: &str, packages: &str) -> PathBuf {
    let name = packages.replace(',', "-");
    let tar = place.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("base-{suite}-{name}.tar")));
    let lock = File::create(tar.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    if !tar.exists() {
        make_base(&tar, suite, packages);
    }
    tar
}

fn make_base(tar: &Path, suite: &str, packages: &str) {
    // In which a failed debootstrap leaves what it mounted.
    let dir: Place = tempfile::Builder::new().prefix("debootstrap-").tempdir_in(tar.parent().unwrap()).unwrap().into();
    let root = dir.path().join("root");
    let made = attempt(
        Command::new(found("debootstrap").first().unwrap())
            .args(["--variant=minbase", &format!("--include={packages}"), suite])
            .arg(&root)
            .arg(mirror(suite)),
    );
    unmount_below(dir.path());
    made.unwrap_or_else(|what| panic!("{what}"));
    // What makes the tests slower and shows nothing more.
    for bulk in
        ["var/cache", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man", "usr/share/zoneinfo"]
    {
        let bulk = root.join(bulk);
        if bulk.exists() {
            fs::remove_dir_all(&bulk).unwrap();
            fs::create_dir(&bulk).unwrap();
        }
    }
    let unfinished = dir.path().join("base.tar");
    run(Command::new("tar").arg("--numeric-owner").arg("-C").arg(&root).arg("-cf").arg(&unfinished).arg("."));
    fs::rename(&unfinished, tar).unwrap();
}

/// The mirror that this machine's apt has for the suite, or Debian's own.
fn mirror(suite: &str) -> String {
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let lists = parts.chain([PathBuf::from("/etc/apt/sources.list")]);
    let texts = lists.filter_map(|list| fs::read_to_string(list).ok());
    texts.into_iter().find_map(|text| mirror_in(&text, suite)).unwrap_or_else(|| DEFAULT_MIRROR.to_owned())
}

/// The first mirror of the suite in a list of either form: `deb [options] URI suite …`, or a paragraph with `URIs:`.
fn mirror_in(text: &str, suite: &str) -> Option<String> {
    let line = text.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| word.starts_with('[') || word.ends_with(']'));
        (words.next()? == "deb").then_some(())?;
        let words: Vec<&str> = words.collect();
        let at = words.iter().position(|word| *word == suite)?;
        words.get(at.checked_sub(1)?).map(|uri| (*uri).to_owned())
    });
    let field = |paragraph: &str, name: &str| {
        let value = paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(value.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    };
    line.or_else(|| {
        text.split("\n\n").find_map(|paragraph| {
            let suites = field(paragraph, "Suites")?;
            suites.iter().any(|known| known == suite).then_some(())?;
            field(paragraph, "URIs")?.into_iter().next()
        })
    })
}
