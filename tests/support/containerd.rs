//! A containerd of the test's own, with a root, a state directory and a socket that go away with it.
//!
//! Nothing here reads a store: `ctr` is asked, so its answers are an independent witness. Images are hand-made OCI
//! layouts, so no registry is needed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use self::system::found;
#[allow(unused_imports, reason = "each test binary uses a part")]
pub(crate) use self::system::{Place, attempt, has_programs, run, unmount_below};

#[path = "system.rs"]
mod system;

/// Programs without which there is no containerd.
pub(crate) const PROGRAMS: &[&str] = &["containerd", "ctr", "setpriv", "tar"];

/// The plugins that look for what the machine may not have, or that would serve it: no test needs them.
const CONFIG: &str = r#"version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt"]
"#;

/// A running containerd. Dropping it ends it, unmounts what is left below its directories, and removes them.
#[derive(Debug)]
pub(crate) struct Containerd {
    child: Child,
    /// Root, configuration and log.
    dir: Place,
    /// State and socket: apart and short, as a Unix socket's path ends at 107 bytes.
    run: Place,
}

impl Containerd {
    /// Starts a containerd and waits until it answers.
    pub(crate) fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("containerd-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let run = tempfile::Builder::new().prefix("dfs-").tempdir_in("/tmp").unwrap();
        let (dir, run) = (Place::from(dir), Place::from(run));
        fs::write(dir.path().join("config.toml"), CONFIG).unwrap();
        let mut daemon = Self { child: spawn(dir.path(), run.path()), dir, run };
        let patience = Instant::now() + Duration::from_secs(60);
        while let Err(what) = daemon.try_ctr(&["version"]) {
            let ended = daemon.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < patience,
                "containerd does not answer ({ended:?}): {what}\n{}",
                daemon.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        daemon
    }

    /// What containerd calls its root: the store.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs the client; its standard output is the answer.
    pub(crate) fn try_ctr(&self, args: &[&str]) -> Result<Vec<u8>, String> {
        let socket = self.run.path().join("sock");
        attempt(Command::new(found("ctr").first().unwrap()).env("LC_ALL", "C").arg("-a").arg(socket).args(args))
    }

    /// Runs the client and returns what it printed; a failure panics.
    pub(crate) fn ctr(&self, args: &[&str]) -> String {
        let stdout = self.try_ctr(args).unwrap_or_else(|what| panic!("{what}"));
        String::from_utf8(stdout).unwrap()
    }

    /// Imports an image whose layers each hold one file with its text, and unpacks it with the snapshotter.
    pub(crate) fn import(&self, namespace: &str, snapshotter: &str, name: &str, layers: &[&str]) {
        let layout = Layout::new();
        let tars: Vec<Vec<u8>> =
            (0..).zip(layers).map(|(number, text)| layer(layout.dir.path(), number, text)).collect();
        let manifest = layout.image(architecture(), &tars);
        self.import_layout(namespace, name, &layout, manifest, &["--snapshotter", snapshotter]);
    }

    /// Imports what a descriptor of a layout leads to.
    pub(crate) fn import_layout(&self, namespace: &str, name: &str, layout: &Layout, top: Value, args: &[&str]) {
        let (base, tag) = name.rsplit_once(':').unwrap();
        let tar = layout.tar(tag, top);
        let args = [&["-n", namespace, "images", "import", "--base-name", base], args, &[tar.to_str().unwrap()]];
        self.ctr(&args.concat());
    }

    /// Mounts a view of the one image that a namespace has unpacked with a snapshotter, by containerd's own commands.
    pub(crate) fn mount(&self, namespace: &str, snapshotter: &str, at: &Path) -> Mount<'_> {
        let snapshots = ["-n", namespace, "snapshots", "--snapshotter", snapshotter];
        let listed = self.ctr(&[&snapshots[..], &["ls"]].concat());
        let words: Vec<Vec<&str>> = listed.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        let is_below = |key: &str| words.iter().any(|line| line.len() == 3 && line[1] == key);
        let tops: Vec<&str> = words.iter().map(|line| line[0]).filter(|key| !is_below(key)).collect();
        assert_eq!(tops.len(), 1, "{listed}");
        self.make_snapshot(&snapshots, "view", VIEW, tops[0]);
        self.mount_snapshot(namespace, snapshotter, VIEW, at);
        let (namespace, snapshotter) = (namespace.to_owned(), snapshotter.to_owned());
        Mount { containerd: self, namespace, snapshotter, at: at.to_owned() }
    }

    /// Makes a snapshot of nobody's, which containerd takes for garbage unless it has a label: before it has, it may be gone.
    pub(crate) fn make_snapshot(&self, snapshots: &[&str], how: &str, key: &str, below: &str) {
        for attempt in 1.. {
            self.ctr(&[snapshots, &[how, key, below]].concat());
            match self.try_ctr(&[snapshots, &["label", key, "containerd.io/gc.root=1"]].concat()) {
                Ok(_) => return,
                Err(what) => assert!(attempt < 20, "{what}"),
            }
        }
    }

    /// Mounts a snapshot by the commands that containerd tells for it.
    pub(crate) fn mount_snapshot(&self, namespace: &str, snapshotter: &str, key: &str, at: &Path) {
        fs::create_dir_all(at).unwrap();
        let at = at.to_str().unwrap();
        let commands = self.ctr(&["-n", namespace, "snapshots", "--snapshotter", snapshotter, "mounts", at, key]);
        // The kernel's newer way to mount takes no more than 255 bytes of directories.
        run(Command::new("sh").arg("-ec").arg(commands).env("LIBMOUNT_FORCE_MOUNT2", "always"));
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("containerd's log:\n{}", self.log());
        }
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let patience = Instant::now() + Duration::from_secs(20);
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() > patience {
                eprintln!("containerd does not end; it is killed");
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The key of the view that is mounted.
const VIEW: &str = "view";

/// What containerd has mounted; it is unmounted, and its snapshot removed, when this goes.
#[derive(Debug)]
pub(crate) struct Mount<'a> {
    containerd: &'a Containerd,
    namespace: String,
    snapshotter: String,
    pub(crate) at: PathBuf,
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        unmount_below(&self.at);
        let args = ["-n", &self.namespace, "snapshots", "--snapshotter", &self.snapshotter, "rm", VIEW];
        if let Err(what) = self.containerd.try_ctr(&args) {
            eprintln!("{what}");
        }
    }
}

fn spawn(dir: &Path, run: &Path) -> Child {
    let log = File::options().create(true).append(true).open(dir.join("log")).unwrap();
    // Should the test be killed, the daemon ends too. (`setpriv` executes it, so that the pid is the daemon's.)
    Command::new("setpriv")
        .args(["--pdeathsig", "TERM"])
        .arg(found("containerd").first().expect("there is no containerd"))
        .arg("--config")
        .arg(dir.join("config.toml"))
        .arg("--root")
        .arg(dir.join("root"))
        .arg("--state")
        .arg(run.join("state"))
        .arg("--address")
        .arg(run.join("sock"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// An OCI layout that is being made by hand.
#[derive(Debug)]
pub(crate) struct Layout {
    dir: TempDir,
}

pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

impl Layout {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("layout-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::create_dir_all(dir.path().join("layout/blobs/sha256")).unwrap();
        Self { dir }
    }

    /// Stores a blob; the answer is its descriptor.
    pub(crate) fn put(&self, media_type: &str, bytes: &[u8]) -> Value {
        let hash = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        fs::write(self.dir.path().join("layout/blobs/sha256").join(&hash), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": format!("sha256:{hash}"), "size": bytes.len() })
    }

    /// An image of these layers' tars, for a processor; the answer is its manifest's descriptor.
    pub(crate) fn image(&self, architecture: &str, tars: &[Vec<u8>]) -> Value {
        let layers: Vec<Value> = tars.iter().map(|tar| self.put(LAYER, tar)).collect();
        let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.put(CONFIG_TYPE, config.to_string().as_bytes());
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
        let mut manifest = self.put(MANIFEST, manifest.to_string().as_bytes());
        manifest["platform"] = json!({ "os": "linux", "architecture": architecture });
        manifest
    }

    /// An index of these descriptors; the answer is its own.
    pub(crate) fn index(&self, entries: &[Value]) -> Value {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
        self.put(INDEX, index.to_string().as_bytes())
    }

    /// The tar of the layout, in which a tag names a descriptor.
    pub(crate) fn tar(&self, tag: &str, mut top: Value) -> PathBuf {
        top["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        let root = self.dir.path().join("layout");
        fs::write(root.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        fs::write(root.join("index.json"), json!({ "schemaVersion": 2, "manifests": [top] }).to_string()).unwrap();
        let tar = self.dir.path().join("layout.tar");
        run(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg("."));
        tar
    }
}

/// What the OCI calls this machine's processor; of others' images nothing is unpacked.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A tar of one file, whose name is the layer's number.
fn layer(place: &Path, number: usize, text: &str) -> Vec<u8> {
    let name = format!("file-{number}");
    fs::write(place.join(&name), text).unwrap();
    run(Command::new("tar").arg("-C").arg(place).arg("-cf").arg("-").arg(&name))
}
