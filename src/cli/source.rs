//! Which store to read: the one that was named, or the machine's own.
//!
//! Without a SOURCE the places are tried where engines keep their data. The first that holds a store with images is taken,
//! or else the first that holds a store; of others with images a warning tells. Whether there are images is told by names
//! alone, as no document of a store is read here.
//! With a SOURCE nothing of this machine's configuration is read, as an investigator's disk has nothing to do with it.
//!
//! ```text
//! other users than root:  data-root of ~/.config/docker/daemon.json, ~/.local/share/docker,
//!                         graphroot of ~/.config/containers/storage.conf, ~/.local/share/containers/storage
//! everyone:               data-root of /etc/docker/daemon.json, /var/lib/docker, the snap's, /var/lib/containerd,
//!                         graphroot of /etc/containers/storage.conf, /var/lib/containers/storage
//! ```

use std::ffi::OsString;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::Deserialize;

use super::{Failure, words};
use crate::error::Error;
use crate::name::TreePath;
use crate::root::Root;
use crate::store::{self, Store};

/// Where engines of the whole machine keep their data, from its root directory.
const DOCKER: &str = "var/lib/docker";
const CONTAINERD: &str = "var/lib/containerd";
const CONTAINERS_STORAGE: &str = "var/lib/containers/storage";
/// Where a store may be in a directory that was named for it, each with what is in it where it holds one.
const DEEPER: &[(&str, &str)] = &[
    (DOCKER, "image"),
    (DOCKER, "graph"),
    (DOCKER, "containerd/daemon/io.containerd.metadata.v1.bolt"),
    (CONTAINERD, "io.containerd.metadata.v1.bolt"),
    (CONTAINERS_STORAGE, "overlay-images"),
    (CONTAINERS_STORAGE, "vfs-images"),
    // Of `containers`, the directory above podman's graph root.
    ("storage", "overlay-images"),
    ("storage", "vfs-images"),
];
/// The folders of each kind of store in which there is a name of hexadecimal digits for each image, or each of its
/// documents; `*` is any name.
const IMAGES: &[(&str, &str)] = &[
    ("docker", "image/*/imagedb/content/sha256"),
    (store::graph::KIND, "graph"),
    ("containerd", "io.containerd.content.v1.content/blobs/*"),
    ("containerd", "containerd/daemon/io.containerd.content.v1.content/blobs/*"),
    ("containers-storage", "overlay-images"),
    ("containers-storage", "vfs-images"),
];
/// As many digits a digest has at least.
const DIGITS: usize = 64;
/// The largest configuration that is read, in bytes.
const CONFIG_MAX: u64 = 1 << 20;

/// What decides where engines keep their data.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    /// The directory that `/etc` and `/var` are taken from.
    root: PathBuf,
    /// For other users than root.
    user: Option<User>,
}

/// A user's own directories (XDG Base Directory Specification).
#[derive(Debug, Clone)]
struct User {
    config: Option<PathBuf>,
    data: Option<PathBuf>,
}

/// A configuration of an engine, which may say where its data are.
struct Config {
    /// Whose it is, for messages.
    engine: &'static str,
    /// What the place is called in it.
    key: &'static str,
    /// Finds the place; says what is wrong with the text otherwise.
    place: fn(&[u8]) -> Result<Option<PathBuf>, String>,
}

/// daemon.json.
const DAEMON: Config = Config { engine: "Docker", key: "data-root", place: data_root };
/// storage.conf.
const STORAGE: Config = Config { engine: "podman", key: "graphroot", place: graph_root };

fn data_root(text: &[u8]) -> Result<Option<PathBuf>, String> {
    #[derive(Default, Deserialize)]
    struct Daemon {
        #[serde(rename = "data-root")]
        data_root: Option<PathBuf>,
        /// The name before Docker 17.05.
        graph: Option<PathBuf>,
    }
    // The daemon takes an empty file for an empty object.
    if text.trim_ascii().is_empty() {
        return Ok(None);
    }
    let daemon: Daemon = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    Ok(daemon.data_root.or(daemon.graph))
}

fn graph_root(text: &[u8]) -> Result<Option<PathBuf>, String> {
    #[derive(Deserialize)]
    struct Conf {
        storage: Option<Storage>,
    }
    #[derive(Deserialize)]
    struct Storage {
        graphroot: Option<PathBuf>,
    }
    let conf: Conf = toml::from_slice(text).map_err(|error| error.message().to_owned())?;
    Ok(conf.storage.and_then(|storage| storage.graphroot))
}

impl Surroundings {
    /// This process'.
    pub(super) fn of_process() -> Self {
        let directory = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = |below: &str| directory("HOME").map(|home| home.join(below));
        let user = User {
            config: directory("XDG_CONFIG_HOME").or_else(|| home(".config")),
            data: directory("XDG_DATA_HOME").or_else(|| home(".local/share")),
        };
        let is_root = rustix::process::geteuid().is_root();
        Self { root: PathBuf::from("/"), user: (!is_root).then_some(user) }
    }

    /// The places to try, in order, each once.
    fn candidates(&self) -> Vec<PathBuf> {
        let mut places = Vec::new();
        if let Some(user) = &self.user {
            let configured = |file, config| configured(&user.config.as_ref()?.join(file), config);
            places.extend(configured("docker/daemon.json", &DAEMON));
            places.extend(user.data.as_ref().map(|data| data.join("docker")));
            places.extend(configured("containers/storage.conf", &STORAGE));
            places.extend(user.data.as_ref().map(|data| data.join("containers/storage")));
        }
        places.extend(configured(&self.root.join("etc/docker/daemon.json"), &DAEMON));
        let system = [DOCKER, "var/snap/docker/common/var-lib-docker", CONTAINERD];
        places.extend(system.map(|place| self.root.join(place)));
        places.extend(configured(&self.root.join("etc/containers/storage.conf"), &STORAGE));
        places.push(self.root.join(CONTAINERS_STORAGE));
        let mut unique: Vec<PathBuf> = Vec::new();
        for place in places {
            if !unique.contains(&place) {
                unique.push(place);
            }
        }
        unique
    }
}

/// Whether there is an image in a place, as far as names tell; not where that cannot be seen.
fn holds_images(place: &Path, options: &store::Options) -> bool {
    let is_digest = |name: &OsString| {
        let name = name.as_encoded_bytes();
        name.len() >= DIGITS && name.iter().all(u8::is_ascii_hexdigit)
    };
    let is_wanted = |kind: &str| options.kind.as_ref().is_none_or(|wanted| wanted == kind);
    let folders = IMAGES.iter().filter(|(kind, _)| is_wanted(kind)).flat_map(|(_, folder)| folders(place, folder));
    folders.into_iter().any(|folder| names(&folder).any(|name| is_digest(&name)))
}

/// The folders below a place that a pattern stands for.
fn folders(place: &Path, pattern: &str) -> Vec<PathBuf> {
    pattern.split('/').fold(vec![place.to_owned()], |folders, part| {
        let below = |folder: PathBuf| match part {
            "*" => names(&folder).map(|name| folder.join(name)).collect(),
            name => vec![folder.join(name)],
        };
        folders.into_iter().flat_map(below).collect()
    })
}

/// The names in a directory; none where it cannot be listed.
fn names(dir: &Path) -> impl Iterator<Item = OsString> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name())
}

/// The place that a configuration names. A file that cannot be used is warned of, as the store may be elsewhere.
fn configured(file: &Path, config: &Config) -> Option<PathBuf> {
    let warn = |why: &str| log::warn!("{} is not used: {why}", file.display());
    let mut text = Vec::new();
    match std::fs::File::open(file).and_then(|open| open.take(CONFIG_MAX).read_to_end(&mut text)) {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return None,
        Err(error) => {
            warn(&words(&error));
            return None;
        }
    }
    let place = match (config.place)(&text) {
        Ok(place) => place.filter(|path| !path.as_os_str().is_empty())?,
        Err(why) => {
            warn(&format!("it is not {}'s: {why}", config.engine));
            return None;
        }
    };
    if !place.is_absolute() {
        warn(&format!("its {} {place:?} is not an absolute path", config.key));
        return None;
    }
    Some(place)
}

/// The stores of a place, and where it is.
type Opened = (PathBuf, Vec<Box<dyn Store>>);

/// What was found on a machine.
struct Found {
    opened: Opened,
    /// What was tried before, of which could not be told whether it is a store, and why.
    passed_over: Vec<String>,
    /// The other places that hold images.
    others: Vec<PathBuf>,
}

/// Opens the store that was named, or the machine's own, and says where it is.
///
/// # Errors
/// [`super::Exit::NoStore`] where there is none; others where there is one that cannot be read.
pub(super) fn open(
    source: Option<&Path>,
    surroundings: impl FnOnce() -> Surroundings,
    options: &store::Options,
) -> Result<Opened, Failure> {
    match source {
        Some(source) => named(source, options).map(|stores| (source.to_owned(), stores)),
        None => {
            let surroundings = surroundings();
            let Found { opened, passed_over, others } = found(&surroundings, options)?;
            let (place, _) = &opened;
            for other in passed_over {
                log::warn!("{} is taken, though there may be a store that {other}", place.display());
            }
            for other in others {
                let other = other.display();
                log::warn!("{} is taken; {other} holds images too, for: docker-fs {other} MOUNTPOINT", place.display());
            }
            Ok(opened)
        }
    }
}

fn named(source: &Path, options: &store::Options) -> Result<Vec<Box<dyn Store>>, Failure> {
    store::open(source, options).map_err(|error| {
        let shown = source.display();
        match error {
            Error::NotFound { .. } => Failure::no_store(match (&options.kind, within(source)) {
                (Some(kind), _) => {
                    format!("no store of the kind {kind} in {shown}; which kind there is, is found out without --kind")
                }
                (None, Some(other)) => format!("no container store in {shown}; there is one in {}", other.display()),
                (None, None) => format!(
                    "no container store in {shown}; a Docker data root is wanted, such as /var/lib/docker, which holds \
                     image/overlay2, containerd's root, such as /var/lib/containerd, where Docker 29 has its images, or \
                     podman's, such as /var/lib/containers/storage"
                ),
            }),
            Error::Io { source: ref why, .. } if is_denied(&error) && !rustix::process::geteuid().is_root() => {
                Failure::failed(format!("cannot read {shown}: {}; run docker-fs as root", words(why)))
            }
            error => match absent(source, &error) {
                Some(why) => Failure::no_store(format!("no container store: {shown} {why}")),
                None => Failure::from(error),
            },
        }
    })
}

/// The store of a machine whose root directory was named, as a disk of another machine is mounted; or podman's, where
/// the directory above it was named.
fn within(source: &Path) -> Option<PathBuf> {
    // By way of the root, so that no link in it leads to this machine's own.
    let root = Root::open(source).ok()?;
    let holds = |(place, mark): &&(&str, &str)| {
        let path = TreePath::new(format!("{place}/{mark}").as_bytes());
        path.and_then(|path| root.stat(&path).ok().flatten()).is_some_and(|found| found.is_dir())
    };
    DEEPER.iter().find(holds).map(|(place, _)| source.join(place))
}

fn is_denied(error: &Error) -> bool {
    matches!(error.errno(), Errno::ACCESS | Errno::PERM)
}

/// The first place that holds a store with images, or else the first that holds a store.
fn found(surroundings: &Surroundings, options: &store::Options) -> Result<Found, Failure> {
    let mut passed_over = Vec::new();
    let mut tried = String::new();
    let mut denied = false;
    // The first store without images, or that cannot be read: it is the machine's own where no other has images.
    let mut otherwise = None;
    let mut places = surroundings.candidates().into_iter();
    for place in places.by_ref() {
        let why = match store::open(&place, options) {
            Ok(stores) if holds_images(&place, options) => {
                let others = others(&place, places, options);
                return Ok(Found { opened: (place, stores), passed_over, others });
            }
            Ok(stores) => {
                log::info!("{} holds a store, and no images", place.display());
                otherwise.get_or_insert(Ok((place, stores)));
                continue;
            }
            Err(Error::NotFound { .. }) => "holds no store".to_owned(),
            Err(error @ (Error::Unsupported { .. } | Error::Damaged { .. })) => {
                passed_over.push(format!("cannot be read: {error}"));
                otherwise.get_or_insert(Err(error.into()));
                continue;
            }
            Err(error) => match absent(&place, &error) {
                Some(why) => why.to_owned(),
                None if is_denied(&error) => {
                    denied = true;
                    passed_over.push(format!("may not be read by this user: {}", place.display()));
                    "may not be read by this user".to_owned()
                }
                None => {
                    passed_over.push(format!("cannot be read: {error}"));
                    error.to_string()
                }
            },
        };
        tried.push_str(&format!("\n  {} {why}", place.display()));
    }
    if let Some(otherwise) = otherwise {
        return otherwise.map(|opened| Found { opened, passed_over, others: Vec::new() });
    }
    let root = if denied { ", as root" } else { "" };
    Err(Failure::no_store(format!(
        "no container store found on this machine; tried:{tried}\nthe only argument was taken for the mount point; name a \
         store too{root}: docker-fs SOURCE MOUNTPOINT"
    )))
}

/// The places that hold images beside one that is taken, each directory once.
fn others(taken: &Path, places: impl Iterator<Item = PathBuf>, options: &store::Options) -> Vec<PathBuf> {
    let mut known: Vec<_> = std::fs::canonicalize(taken).into_iter().collect();
    let is_other = |place: &PathBuf| {
        let Ok(real) = std::fs::canonicalize(place) else { return false };
        let is_known = known.contains(&real);
        known.push(real);
        !is_known && holds_images(place, options)
    };
    places.filter(is_other).collect()
}

/// Why there cannot be a store at a path at all.
fn absent(path: &Path, error: &Error) -> Option<&'static str> {
    match (error.errno(), std::fs::metadata(path)) {
        (Errno::NOENT, Err(_)) => Some("does not exist"),
        (Errno::NOTDIR, Ok(meta)) if !meta.is_dir() => Some("is not a directory"),
        (Errno::NOTDIR, Err(_)) => Some("does not exist"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A machine in a directory, with a user's home in `home`.
    fn machine(dir: &Path) -> Surroundings {
        let user = User { config: Some(dir.join("home/.config")), data: Some(dir.join("home/.local/share")) };
        Surroundings { root: dir.to_owned(), user: Some(user) }
    }

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_users_own_come_first_and_for_root_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path());
        write(&dir.path().join("etc/docker/daemon.json"), r#"{"data-root": "/srv/docker", "debug": true}"#);
        write(&dir.path().join("home/.config/docker/daemon.json"), r#"{"graph": "/home/old"}"#);
        write(&dir.path().join("etc/containers/storage.conf"), "[storage]\ngraphroot = '/srv/podman'");
        write(&dir.path().join("home/.config/containers/storage.conf"), "[storage]\ngraphroot = '/home/own'");
        let system = [
            PathBuf::from("/srv/docker"),
            dir.path().join("var/lib/docker"),
            dir.path().join("var/snap/docker/common/var-lib-docker"),
            dir.path().join("var/lib/containerd"),
            PathBuf::from("/srv/podman"),
            dir.path().join("var/lib/containers/storage"),
        ];
        let data = dir.path().join("home/.local/share");
        let own = [
            PathBuf::from("/home/old"),
            data.join("docker"),
            PathBuf::from("/home/own"),
            data.join("containers/storage"),
        ];
        assert_eq!(machine.candidates(), [&own[..], &system[..]].concat());
        assert_eq!(Surroundings { user: None, ..machine }.candidates(), system);
    }

    #[test]
    fn a_daemon_json_that_is_wrong_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("daemon.json");
        for (text, expected) in [
            ("{", None),
            ("[]", None),
            ("", None),
            ("{}", None),
            (r#"{"data-root": ""}"#, None),
            (r#"{"data-root": 3}"#, None),
            (r#"{"data-root": "relative"}"#, None),
            (r#"{"data-root": "/new", "graph": "/old"}"#, Some("/new")),
            (r#"{"graph": "/old"}"#, Some("/old")),
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(configured(&file, &DAEMON), expected.map(PathBuf::from), "{text}");
        }
        assert_eq!(configured(&dir.path().join("missing"), &DAEMON), None);
        assert_eq!(configured(&file.join("below-a-file"), &DAEMON), None);
    }

    #[test]
    fn all_that_was_tried_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let machine = Surroundings { user: None, ..machine(dir.path()) };
        fs::create_dir_all(dir.path().join("var/lib/docker")).unwrap();
        write(
            &dir.path().join("etc/docker/daemon.json"),
            &format!(r#"{{"data-root": "{}/file"}}"#, dir.path().display()),
        );
        write(&dir.path().join("file"), "");
        let failure = open(None, || machine, &store::Options::default()).unwrap_err();
        let at = dir.path().display();
        let message = format!(
            "no container store found on this machine; tried:\n  {at}/file is not a directory\n  {at}/var/lib/docker \
             holds no store\n  {at}/var/snap/docker/common/var-lib-docker does not exist\n  \
             {at}/var/lib/containerd does not exist\n  {at}/var/lib/containers/storage does not exist\nthe only \
             argument was taken for the mount point; name a store too: docker-fs SOURCE MOUNTPOINT"
        );
        assert_eq!(failure, Failure::no_store(message));
    }

    /// An empty store of Docker's, and one of podman's.
    fn empty_stores(dir: &Path) -> (PathBuf, PathBuf) {
        let (docker, podman) = (dir.join(DOCKER), dir.join(CONTAINERS_STORAGE));
        for folder in ["image/overlay2/imagedb/content/sha256", "image/overlay2/layerdb/sha256", "overlay2/l"] {
            fs::create_dir_all(docker.join(folder)).unwrap();
        }
        for folder in ["overlay/l", "overlay-images", "overlay-layers"] {
            fs::create_dir_all(podman.join(folder)).unwrap();
        }
        (docker, podman)
    }

    fn taken(machine: &Surroundings, options: &store::Options) -> (PathBuf, Vec<String>, Vec<PathBuf>) {
        let Found { opened: (place, _), passed_over, others } = found(machine, options).unwrap();
        (place, passed_over, others)
    }

    #[test]
    fn a_store_with_images_is_taken_and_others_with_images_are_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let machine = Surroundings { user: None, ..machine(dir.path()) };
        let (docker, podman) = empty_stores(dir.path());
        let containerd = dir.path().join(CONTAINERD);
        // The same place by another name is no other.
        std::os::unix::fs::symlink(&podman, dir.path().join("link")).unwrap();
        let conf = format!("[storage]\ngraphroot = \"{}/link\"\n", dir.path().display());
        write(&dir.path().join("etc/containers/storage.conf"), &conf);
        let options = store::Options::default();
        let hex = "ab".repeat(32);
        assert_eq!(taken(&machine, &options), (docker.clone(), vec![], vec![]), "the first where none has images");

        let linked = dir.path().join("link");
        fs::create_dir_all(podman.join("overlay-images").join(&hex)).unwrap();
        assert_eq!(taken(&machine, &options), (linked.clone(), vec![], vec![]), "podman's alone");

        write(&docker.join("image/overlay2/imagedb/content/sha256").join(&hex), "{}");
        fs::create_dir_all(containerd.join("io.containerd.content.v1.content/blobs/sha256")).unwrap();
        assert_eq!(taken(&machine, &options), (docker.clone(), vec![], vec![linked.clone()]), "containerd has none");
        // No store at all, and damaged: it is not opened.
        write(&containerd.join("io.containerd.content.v1.content/blobs/sha256").join(&hex), "");
        assert_eq!(taken(&machine, &options), (docker.clone(), vec![], vec![containerd, linked.clone()]));
        let of_podman = store::Options { kind: Some("containers-storage".to_owned()), ..options };
        assert_eq!(taken(&machine, &of_podman), (linked, vec![], vec![]));
    }

    #[test]
    fn a_store_that_cannot_be_read_keeps_none_with_images_from_being_taken() {
        let dir = tempfile::tempdir().unwrap();
        let machine = Surroundings { user: None, ..machine(dir.path()) };
        let (docker, podman) = empty_stores(dir.path());
        fs::remove_dir_all(docker.join("overlay2")).unwrap();
        let options = store::Options::default();
        let why = store::open(&docker, &options).unwrap_err();
        assert!(matches!(why, Error::Unsupported { .. } | Error::Damaged { .. }), "{why:?}");
        assert_eq!(open(None, || machine.clone(), &options).unwrap_err(), Failure::from(why), "podman's is empty");
        fs::create_dir_all(podman.join("overlay-images").join("ab".repeat(32))).unwrap();
        let (place, passed_over, others) = taken(&machine, &options);
        assert_eq!((place, passed_over.len(), others), (podman, 1, vec![]), "{passed_over:?}");
    }

    #[test]
    fn a_storage_conf_says_where_podmans_store_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("storage.conf");
        for (text, expected) in [
            ("", None),
            ("[storage", None),
            (
                "[storage]\ndriver = \"overlay\"\n# graphroot = \"/no\"\n[storage.options.overlay]\nmountopt = \"nodev\"",
                None,
            ),
            ("[storage]\ngraphroot = 3", None),
            ("[storage]\ngraphroot = \"\"", None),
            ("[storage]\ngraphroot = \"$HOME/storage\"", None),
            ("graphroot = \"/elsewhere\"", None),
            ("[storage]\ndriver = \"overlay\"\ngraphroot = '/srv/podman' # ours\n", Some("/srv/podman")),
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(configured(&file, &STORAGE), expected.map(PathBuf::from), "{text}");
        }
    }

    #[test]
    fn images_of_containerd_without_its_database_are_not_taken_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let machine = Surroundings { user: None, ..machine(dir.path()) };
        let containerd = dir.path().join(CONTAINERD);
        fs::create_dir_all(dir.path().join("var/lib/docker/buildkit")).unwrap();
        let ends = || open(None, || machine.clone(), &store::Options::default()).unwrap_err();
        fs::create_dir_all(containerd.join("io.containerd.content.v1.content/ingest")).unwrap();
        assert_eq!(ends().exit, crate::cli::Exit::NoStore, "a containerd without images");
        fs::create_dir_all(containerd.join("io.containerd.content.v1.content/blobs/sha256")).unwrap();
        let message = format!(
            "{}: io.containerd.content.v1.content is there, but io.containerd.metadata.v1.bolt/meta.db, which has the \
             names of images, is missing",
            containerd.display()
        );
        assert!(ends().message.contains(&message), "{:?}", ends());
    }

    #[test]
    fn the_directory_above_a_graph_root_is_told_from_it() {
        let dir = tempfile::tempdir().unwrap();
        let untouched = || -> Surroundings { panic!("this machine's configuration is none of its business") };
        let said = || open(Some(dir.path()), untouched, &store::Options::default()).unwrap_err().message;
        let graph_root = dir.path().join("storage");
        fs::create_dir_all(graph_root.join("overlay-images")).unwrap();
        let there = format!("no container store in {0}; there is one in {0}/storage", dir.path().display());
        assert_eq!(said(), there);
        fs::remove_dir_all(&graph_root).unwrap();
        std::os::unix::fs::symlink("/", &graph_root).unwrap();
        assert!(said().contains("a Docker data root is wanted"), "{}", said());
    }

    #[test]
    fn the_root_of_a_machine_is_told_from_a_store() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        fs::create_dir_all(disk.join("var/lib")).unwrap();
        fs::create_dir_all(dir.path().join("docker/image")).unwrap();
        let untouched = || -> Surroundings { panic!("this machine's configuration is none of its business") };
        let said = || open(Some(&disk), untouched, &store::Options::default()).unwrap_err().message;
        let wanted = format!(
            "no container store in {}; a Docker data root is wanted, such as /var/lib/docker, which holds \
             image/overlay2, containerd's root, such as /var/lib/containerd, where Docker 29 has its images, or podman's, \
             such as /var/lib/containers/storage",
            disk.display()
        );
        // A link there is another machine's, and here leads elsewhere.
        std::os::unix::fs::symlink(dir.path().join("docker"), disk.join("var/lib/docker")).unwrap();
        assert_eq!(said(), wanted);
        fs::remove_file(disk.join("var/lib/docker")).unwrap();
        fs::create_dir_all(disk.join("var/lib/docker/image")).unwrap();
        let there = format!("no container store in {0}; there is one in {0}/var/lib/docker", disk.display());
        assert_eq!(said(), there);
        for (place, mark) in DEEPER {
            fs::remove_dir_all(&disk).unwrap();
            fs::create_dir_all(disk.join(place).join(mark)).unwrap();
            assert_eq!(said(), format!("no container store in {0}; there is one in {0}/{place}", disk.display()));
        }
    }

    #[test]
    fn a_place_that_cannot_be_read_is_not_passed_over_silently() {
        let dir = tempfile::tempdir().unwrap();
        let machine = Surroundings { user: None, ..machine(dir.path()) };
        let link = dir.path().join("loop");
        std::os::unix::fs::symlink(&link, &link).unwrap();
        write(&dir.path().join("etc/docker/daemon.json"), &format!(r#"{{"data-root": "{}"}}"#, link.display()));
        let store = dir.path().join("var/lib/docker");
        for folder in ["image/overlay2/imagedb/content/sha256", "image/overlay2/layerdb/sha256", "overlay2/l"] {
            fs::create_dir_all(store.join(folder)).unwrap();
        }
        let (place, passed_over, _) = taken(&machine, &store::Options::default());
        let why = format!("cannot be read: cannot open {}: Too many levels of symbolic links", link.display());
        assert_eq!((place, passed_over), (store, vec![why]));
    }

    #[test]
    fn a_kind_that_was_named_is_told_where_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let untouched = || -> Surroundings { panic!("this machine's configuration is none of its business") };
        fs::create_dir_all(dir.path().join("overlay-images")).unwrap();
        let options = store::Options { kind: Some("docker".to_owned()), ..store::Options::default() };
        let message = open(Some(dir.path()), untouched, &options).unwrap_err().message;
        assert!(message.starts_with("no store of the kind docker in "), "{message}");
    }

    #[test]
    fn a_source_that_was_named_is_the_only_place() {
        let dir = tempfile::tempdir().unwrap();
        let untouched = || -> Surroundings { panic!("this machine's configuration is none of its business") };
        let missing = dir.path().join("missing");
        let failure = open(Some(&missing), untouched, &store::Options::default()).unwrap_err();
        let message = format!("no container store: {} does not exist", missing.display());
        assert_eq!(failure, Failure::no_store(message));
    }
}
