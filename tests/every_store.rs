//! One image in every store: made once, loaded by real engines, and shown by docker-fs as a container of that store sees
//! it, with no difference; and from store to store the same, but for what the engines unpack in ways of their own.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::duplicate_mod,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

#[path = "support/containerd.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod containerd;
#[path = "support/dockerd.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod dockerd;
#[path = "support/hand.rs"]
mod hand;
#[path = "support/machine.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod machine;
#[path = "support/podman.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod podman;
mod support;
#[path = "support/trixie.rs"]
mod trixie;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Instant;

use containerd::{Containerd, Place, architecture};
use dockerd::Dockerd;
use machine::Machine;
use podman::{Namespace, Owner, Podman};
use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;
use serde_json::{Value, json};
use support::fuse_overlayfs;
use support::mount::{Mounted, require_privileges};
use support::tree::{Options, Tree, diff, group_links, snapshot};

/// What engines put into containers beside the image, which has none of these.
const INIT: [&str; 6] = [".dockerenv", "dev", "etc", "proc", "sys", "run"];

const OVERLAY2: &str = "Docker, overlay2";
const OVERLAY: &str = "Docker, overlay";
const VFS: &str = "Docker, vfs";
const FUSE: &str = "Docker, fuse-overlayfs";
const BTRFS: &str = "Docker, btrfs";
const CTR: &str = "containerd, overlayfs";
const NATIVE: &str = "containerd, native";
const PODMAN: &str = "podman, overlay, root";
const PODMAN_USER: &str = "podman, overlay, user";
const PODMAN_VFS: &str = "podman, vfs, root";
const PODMAN_VFS_USER: &str = "podman, vfs, user";
const PODMAN_5: &str = "podman 5, overlay, root";
const PODMAN_5_USER: &str = "podman 5, overlay, user";
const PODMAN_5_VFS: &str = "podman 5, vfs, root";
const PODMAN_5_VFS_USER: &str = "podman 5, vfs, user";
const DOCKER_26: &str = "Docker 26, containerd's store";
const CTR_17: &str = "containerd 1.7, overlayfs";

/// Whose stores those of users are.
const USER: u32 = 1_700_000_001;

/// What is said of an image that a store refuses.
const REFUSED: &str = "refused";

/// What is known to differ.
struct Deviation {
    image: &'static str,
    stores: &'static [&'static str],
    lines: &'static [&'static str],
}

/// What docker-fs shows of an image, found, and a container sees, expected. A container on whole trees is a copy of the
/// image's, or a layer upon it, and `merged` is the image's tree itself.
const OF_CONTAINERS: &[Deviation] = &[
    // The driver makes the root of a container's layer for user 0, with the mode of the image's.
    Deviation { image: hand::ODD, stores: &[OVERLAY], lines: &["/: owner: expected 0:0, found 9:9"] },
    // What copies trees copies of attributes that of capabilities, and podman's copies those of users too. They are lost
    // in the next layer, as in containers.
    Deviation { image: hand::HAND, stores: &[VFS], lines: &["/xattrs/top: xattrs: expected [], found [user.top=t]"] },
    Deviation {
        image: hand::REDIRECT,
        stores: &[VFS, PODMAN_VFS, PODMAN_5_VFS],
        lines: &["/to: xattrs: expected [], found [trusted.overlay.redirect=/from]"],
    },
];

/// All stores of podman.
const ALL_PODMAN: &[&str] =
    &[PODMAN, PODMAN_USER, PODMAN_VFS, PODMAN_VFS_USER, PODMAN_5, PODMAN_5_USER, PODMAN_5_VFS, PODMAN_5_VFS_USER];
/// Those of podman's that are a user's.
const USERS: &[&str] = &[PODMAN_USER, PODMAN_VFS_USER, PODMAN_5_USER, PODMAN_5_VFS_USER];
/// Where a layer is unpacked over a copy of the one below, and each `.wh.` entry deletes at once.
const TREES: &[&str] = &[OVERLAY, VFS, BTRFS, NATIVE, PODMAN_VFS, PODMAN_VFS_USER, PODMAN_5_VFS, PODMAN_5_VFS_USER];

/// Values of attributes, and what they are called here: access control lists and capabilities, those with IDs of the host
/// as the stores of users have them.
const VALUES: [(&str, &str); 6] = [
    (
        concat!(
            r"\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x07\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff",
            r"\x08\x00\x06\x00\x08\x00\x00\x00\x10\x00\x06\x00\xff\xff\xff\xff \x00\x04\x00\xff\xff\xff\xff"
        ),
        "<u:7:r,g:8:rw>",
    ),
    (
        concat!(
            r"\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x06\xd2Ik\x04\x00\x04\x00\xff\xff\xff\xff",
            r"\x08\x00\x06\x00\x07\xd2Ik\x10\x00\x06\x00\xff\xff\xff\xff \x00\x04\x00\xff\xff\xff\xff"
        ),
        "<u:1800000006:r,g:1800000007:rw>",
    ),
    (
        concat!(
            r"\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x04\x00\x05\x00\xff\xff\xff\xff\x08\x00\x07\x00\x08\x00\x00\x00",
            r"\x10\x00\x07\x00\xff\xff\xff\xff \x00\x05\x00\xff\xff\xff\xff"
        ),
        "<g:8:rwx>",
    ),
    (
        concat!(
            r"\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x04\x00\x05\x00\xff\xff\xff\xff\x08\x00\x07\x00\x07\xd2Ik",
            r"\x10\x00\x07\x00\xff\xff\xff\xff \x00\x05\x00\xff\xff\xff\xff"
        ),
        "<g:1800000007:rwx>",
    ),
    (r"\x01\x00\x00\x02\x00 \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "<cap_net_raw+ep>"),
    (
        r"\x01\x00\x00\x03\x00 \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\xf1Se",
        "<cap_net_raw+ep of 1700000001>",
    ),
];

/// What a store shows, found, and the first store, expected.
const OF_STORES: &[Deviation] = &[
    // podman makes the root of the lowest layer 0555, Docker and containerd make it 0755. Of a tar's entry for the root,
    // overlays take nothing, whole trees all.
    Deviation { image: hand::HAND, stores: ALL_PODMAN, lines: &["/: mode: expected 0755, found 0555"] },
    Deviation { image: hand::OPAQUE, stores: ALL_PODMAN, lines: &["/: mode: expected 0755, found 0555"] },
    Deviation { image: hand::REDIRECT, stores: ALL_PODMAN, lines: &["/: mode: expected 0755, found 0555"] },
    Deviation {
        image: hand::HIGH,
        stores: &[PODMAN, PODMAN_VFS, PODMAN_5, PODMAN_5_VFS],
        lines: &["/: mode: expected 0755, found 0555"],
    },
    Deviation {
        image: hand::ODD,
        stores: &[PODMAN, PODMAN_USER, PODMAN_5, PODMAN_5_USER],
        lines: &["/: mode: expected 0755, found 0555"],
    },
    Deviation {
        image: hand::ODD,
        stores: &[OVERLAY, VFS, BTRFS, PODMAN_VFS, PODMAN_VFS_USER, PODMAN_5_VFS, PODMAN_5_VFS_USER],
        lines: &["/: mode: expected 0755, found 0711", "/: owner: expected 0:0, found 9:9"],
    },
    // A user may make no devices, and podman leaves them out; capabilities of a user's files say whose they are.
    Deviation {
        image: hand::HAND,
        stores: USERS,
        lines: &[
            "/devices/block: missing; expected BlockDevice",
            "/devices/large: missing; expected CharacterDevice",
            "/devices/null: missing; expected CharacterDevice",
            "/devices/zero: missing; expected CharacterDevice",
            "/xattrs/capable: xattrs: expected [security.capability=<cap_net_raw+ep>], found [security.capability=<cap_net_raw+ep of 1700000001>]",
        ],
    },
    // The lists name IDs of the host, as the files' owners are.
    Deviation {
        image: hand::HAND,
        stores: &[PODMAN_USER, PODMAN_5_USER],
        lines: &[
            "/xattrs/access: xattrs: expected [system.posix_acl_access=<u:7:r,g:8:rw>], found [system.posix_acl_access=<u:1800000006:r,g:1800000007:rw>]",
            "/xattrs/inherits: xattrs: expected [system.posix_acl_default=<g:8:rwx>], found [system.posix_acl_default=<g:1800000007:rwx>]",
        ],
    },
    // A user's containers have no such owners.
    Deviation { image: hand::HIGH, stores: USERS, lines: &["refused"] },
    // What copies trees makes two links of one with two names, as the old overlay driver does, and copies no access
    // control lists; where it links files instead, those of files stay.
    Deviation {
        image: hand::HAND,
        stores: &[OVERLAY, VFS, NATIVE, PODMAN_VFS, PODMAN_VFS_USER, PODMAN_5_VFS, PODMAN_5_VFS_USER],
        lines: &[
            r#"/links/symbolic2: hard link of: expected "links/symbolic", found none"#,
            "/links/symbolic2: nlink: expected 2, found 1",
            r#"/links/symbolic: hard link of: expected "links/symbolic", found none"#,
            "/links/symbolic: nlink: expected 2, found 1",
        ],
    },
    Deviation {
        image: hand::HAND,
        stores: &[VFS, PODMAN_VFS, PODMAN_VFS_USER, PODMAN_5_VFS, PODMAN_5_VFS_USER],
        lines: &["/xattrs/access: xattrs: expected [system.posix_acl_access=<u:7:r,g:8:rw>], found []"],
    },
    Deviation {
        image: hand::HAND,
        stores: &[OVERLAY, VFS, PODMAN_VFS, PODMAN_VFS_USER, PODMAN_5_VFS, PODMAN_5_VFS_USER],
        lines: &["/xattrs/inherits: xattrs: expected [system.posix_acl_default=<g:8:rwx>], found []"],
    },
    // Docker's vfs copies no attributes of users; Docker 20.10 and podman 4.3 take no empty ones from tars.
    Deviation {
        image: hand::HAND,
        stores: &[VFS],
        lines: &["/xattrs/user: xattrs: expected [user.note=\\x00\\xff\\n], found []"],
    },
    Deviation {
        image: hand::HAND,
        stores: &[CTR, NATIVE, PODMAN_5, PODMAN_5_USER, PODMAN_5_VFS, PODMAN_5_VFS_USER, DOCKER_26, CTR_17],
        lines: &[
            "/xattrs/user: xattrs: expected [user.note=\\x00\\xff\\n], found [user.empty=, user.note=\\x00\\xff\\n]",
        ],
    },
    // The top layer has the directory again, without the attribute. A tree that has it keeps it.
    Deviation {
        image: hand::HAND,
        stores: &[BTRFS, NATIVE, PODMAN_VFS, PODMAN_VFS_USER, PODMAN_5_VFS, PODMAN_5_VFS_USER],
        lines: &["/xattrs: xattrs: expected [], found [user.dir=d]"],
    },
    // A directory that is deleted and made anew in one layer: with overlayfs what was in it shines through, where there are
    // trees it is gone, and fuse-overlayfs hides the new one too.
    Deviation {
        image: hand::ODD,
        stores: TREES,
        lines: &[
            "/c/old: missing; expected RegularFile",
            "/c/sub: missing; expected Directory",
            "/c/sub/s: missing; expected RegularFile",
        ],
    },
    Deviation {
        image: hand::ODD,
        stores: &[FUSE],
        lines: &[
            "/c: missing; expected Directory",
            "/c/new: missing; expected RegularFile",
            "/c/old: missing; expected RegularFile",
            "/c/sub: missing; expected Directory",
            "/c/sub/s: missing; expected RegularFile",
        ],
    },
    // A file without entries for the directories above it: Docker and podman make these anew in an overlay, containerd
    // copies them from below, and a tree has them. Where there are none below, Docker makes them 0600 in trees.
    Deviation {
        image: hand::ODD,
        stores: &[
            OVERLAY,
            VFS,
            BTRFS,
            CTR,
            NATIVE,
            PODMAN_VFS,
            PODMAN_VFS_USER,
            PODMAN_5_VFS,
            PODMAN_5_VFS_USER,
            DOCKER_26,
            CTR_17,
        ],
        lines: &[
            "/p: mode: expected 0755, found 0700",
            "/p: owner: expected 0:0, found 5:5",
            "/p/q: mode: expected 0755, found 0700",
            "/p/q: owner: expected 0:0, found 5:5",
        ],
    },
    Deviation {
        image: hand::ODD,
        stores: &[OVERLAY, VFS, BTRFS],
        lines: &["/implied: mode: expected 0755, found 0600", "/implied/dir: mode: expected 0755, found 0600"],
    },
    // A device 0/0 is a deletion for overlays, the old driver's containers among them, and a device in a tree. A user's
    // podman leaves it out, and with it the deletion.
    Deviation {
        image: hand::ODD,
        stores: &[VFS, BTRFS, NATIVE, PODMAN_VFS, PODMAN_5_VFS],
        lines: &["/x: not expected; found CharacterDevice", "/y: not expected; found CharacterDevice"],
    },
    Deviation {
        image: hand::ODD,
        stores: &[PODMAN_USER, PODMAN_5_USER],
        lines: &["/x: not expected; found RegularFile"],
    },
    // The kernel heeds no mark on a layer's root. Where there are trees, and by fuse-overlayfs, it is heeded.
    Deviation {
        image: hand::OPAQUE,
        stores: TREES,
        lines: &["/dir/old: missing; expected RegularFile", "/old: missing; expected RegularFile"],
    },
    Deviation {
        image: hand::OPAQUE,
        stores: &[FUSE],
        lines: &["/dir/old: missing; expected RegularFile", "/old: missing; expected RegularFile"],
    },
    // A redirect of the image's own is followed by the kernel where the engine stores it. containerd leaves it out, as do
    // users; in trees it is stored and leads nowhere, as long as no copy loses it.
    Deviation {
        image: hand::REDIRECT,
        stores: &[
            OVERLAY,
            VFS,
            FUSE,
            BTRFS,
            CTR,
            NATIVE,
            PODMAN_USER,
            PODMAN_VFS,
            PODMAN_VFS_USER,
            PODMAN_5_USER,
            PODMAN_5_VFS,
            PODMAN_5_VFS_USER,
            DOCKER_26,
            CTR_17,
        ],
        lines: &[
            r#"/from/f: hard link of: expected "from/f", found none"#,
            "/from/f: nlink: expected 2, found 1",
            "/to/f: missing; expected RegularFile",
        ],
    },
    Deviation {
        image: hand::REDIRECT,
        stores: &[VFS, BTRFS, PODMAN_VFS, PODMAN_5_VFS],
        lines: &["/to: xattrs: expected [], found [trusted.overlay.redirect=/from]"],
    },
];

/// A store that a real engine keeps.
trait Engine {
    /// What docker-fs mounts.
    fn root(&self) -> PathBuf;

    /// Loads an archive of an image, which may be refused.
    fn load(&self, tar: &Path, name: &str) -> Result<(), String>;

    /// Where the root of a container of an image is mounted, which is so as long as the engine is there.
    fn container(&self, name: &str) -> PathBuf;

    /// How far a container's files are the image's.
    fn kinship(&self) -> Kinship;

    /// Whether these containers are what the engine calls so, with names.
    fn names_containers(&self) -> bool {
        true
    }

    /// The ID in a container of a user that has this one in the store.
    fn container_id(&self, id: u32) -> u32 {
        id
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kinship {
    /// They are, with all that the kernel tells of them.
    Same,
    /// As [`Kinship::Same`], but links are counted by fuse-overlayfs, as far as it has come across them.
    Counted,
    /// They are copies.
    Copies,
    /// They are copies, whose directories are as new as the copy; so are the images' own.
    NewCopies,
}

/// A name for a container or namespace of an image.
fn word_of(name: &str) -> String {
    name.replace(['/', ':'], "-")
}

/// dockerd 20.10, or what this machine has, with a graph driver.
struct Docker(Dockerd, &'static str);

impl Docker {
    fn new(driver: &'static str) -> Self {
        let on_btrfs = |dir: &Path| {
            let disk = dir.join("disk");
            fs::File::create(&disk).unwrap().set_len(1 << 30).unwrap();
            dockerd::run(Command::new("mkfs.btrfs").arg("-q").arg(&disk));
            dockerd::run(Command::new("mount").args(["-o", "loop"]).arg(&disk).arg(dir.join("root")));
        };
        let daemon =
            if driver == "btrfs" { Dockerd::start_with(driver, on_btrfs) } else { Dockerd::with_driver(driver) };
        assert_eq!(daemon.docker(&["info", "--format", "{{.Driver}}"]), driver);
        Self(daemon, driver)
    }
}

impl Engine for Docker {
    fn root(&self) -> PathBuf {
        self.0.root()
    }

    fn load(&self, tar: &Path, _name: &str) -> Result<(), String> {
        self.0.try_docker(&["load", "-q", "-i", tar.to_str().unwrap()]).map(drop)
    }

    fn container(&self, name: &str) -> PathBuf {
        let container = word_of(name);
        self.0.docker(&["run", "-d", "--network", "none", "--name", &container, name]);
        PathBuf::from(format!("/proc/{}/root", self.0.inspect("container", &container)["State"]["Pid"]))
    }

    fn kinship(&self) -> Kinship {
        match self.1 {
            "vfs" => Kinship::Copies,
            "fuse-overlayfs" => Kinship::Counted,
            _ => Kinship::Same,
        }
    }
}

/// containerd 1.6, or what this machine has, with a snapshotter.
struct Ctr {
    /// Its mounts go before the engine.
    places: Place,
    containerd: Containerd,
    snapshotter: &'static str,
}

impl Ctr {
    fn new(snapshotter: &'static str) -> Self {
        Self { places: Place::new(), containerd: Containerd::start(), snapshotter }
    }
}

impl Engine for Ctr {
    fn root(&self) -> PathBuf {
        self.containerd.root()
    }

    fn load(&self, tar: &Path, name: &str) -> Result<(), String> {
        let args = ["-n", &word_of(name), "images", "import", "--snapshotter", self.snapshotter, tar.to_str().unwrap()];
        self.containerd.try_ctr(&args).map(drop)
    }

    fn container(&self, name: &str) -> PathBuf {
        let at = self.places.path().join(word_of(name));
        let snapshots = ["-n", &word_of(name), "snapshots", "--snapshotter", self.snapshotter];
        let top = top_of(&self.containerd.ctr(&[&snapshots[..], &["ls"]].concat()));
        self.containerd.make_snapshot(&snapshots, "prepare", "container", &top);
        self.containerd.mount_snapshot(&word_of(name), self.snapshotter, "container", &at);
        at
    }

    fn kinship(&self) -> Kinship {
        if self.snapshotter == "native" { Kinship::NewCopies } else { Kinship::Same }
    }

    fn names_containers(&self) -> bool {
        false
    }
}

/// The key of the one snapshot that is below no other, of what `ctr snapshots ls` says.
fn top_of(listed: &str) -> String {
    let words: Vec<Vec<&str>> = listed.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    let is_below = |key: &str| words.iter().any(|line| line.len() == 3 && line[1] == key);
    let tops: Vec<&str> = words.iter().map(|line| line[0]).filter(|key| !is_below(key)).collect();
    assert_eq!(tops.len(), 1, "{listed}");
    tops[0].to_owned()
}

/// podman with a store of somebody's.
struct OfPodman(Podman, Namespace, &'static str);

impl OfPodman {
    fn new(machine: &Rc<Machine>, owner: Owner, driver: &'static str) -> Self {
        let podman = Podman::on(machine, owner, driver);
        let namespace = podman.namespace();
        Self(podman, namespace, driver)
    }
}

impl Engine for OfPodman {
    fn root(&self) -> PathBuf {
        self.0.root()
    }

    fn load(&self, tar: &Path, _name: &str) -> Result<(), String> {
        let place = self.0.at("scratch").join("image.tar");
        fs::copy(tar, &place).unwrap();
        self.0.try_podman(&["load", "-q", "-i", place.to_str().unwrap()]).map(drop)
    }

    fn container(&self, name: &str) -> PathBuf {
        let container = word_of(name);
        self.0.podman(&["create", "--network", "none", "--name", &container, name]);
        self.0.mounted(&self.1, &["mount", &container])
    }

    fn kinship(&self) -> Kinship {
        if self.2 == "vfs" { Kinship::Copies } else { Kinship::Same }
    }

    fn container_id(&self, id: u32) -> u32 {
        self.0.container_id(id)
    }
}

/// Docker 26 with containerd's image store.
struct Docker26(trixie::Daemon);

impl Engine for Docker26 {
    fn root(&self) -> PathBuf {
        self.0.root()
    }

    fn load(&self, tar: &Path, _name: &str) -> Result<(), String> {
        let place = self.0.at("image.tar");
        fs::copy(tar, &place).unwrap();
        self.0.attempt(&["load", "-q", "-i", place.to_str().unwrap()]).map(drop)
    }

    fn container(&self, name: &str) -> PathBuf {
        let container = word_of(name);
        self.0.client(&["run", "-d", "--network", "none", "--name", &container, name]);
        self.0.root_of(&container)
    }

    fn kinship(&self) -> Kinship {
        Kinship::Same
    }
}

/// containerd 1.7.
struct Ctr17(trixie::Daemon);

impl Engine for Ctr17 {
    fn root(&self) -> PathBuf {
        self.0.root()
    }

    fn load(&self, tar: &Path, name: &str) -> Result<(), String> {
        let place = self.0.at("image.tar");
        fs::copy(tar, &place).unwrap();
        self.0.attempt(&["-n", &word_of(name), "images", "import", place.to_str().unwrap()]).map(drop)
    }

    fn container(&self, name: &str) -> PathBuf {
        let snapshots = ["-n", &word_of(name), "snapshots"];
        let top = top_of(&self.0.client(&[&snapshots[..], &["ls"]].concat()));
        // As containerd takes what is nobody's for garbage.
        for attempt in 1.. {
            self.0.client(&[&snapshots[..], &["prepare", "container", &top]].concat());
            match self.0.attempt(&[&snapshots[..], &["label", "container", "containerd.io/gc.root=1"]].concat()) {
                Ok(_) => break,
                Err(what) => assert!(attempt < 20, "{what}"),
            }
        }
        self.0.mount_snapshot(&word_of(name), "container", &self.0.at(&word_of(name)))
    }

    fn kinship(&self) -> Kinship {
        Kinship::Same
    }

    fn names_containers(&self) -> bool {
        false
    }
}

/// What was found out about a store.
#[derive(Default)]
struct Findings {
    /// What it shows of each image, in a form that can be compared with another store's; nothing of what it refuses.
    trees: BTreeMap<&'static str, Option<Tree>>,
    /// The image and what of it differs from a container, a line for each.
    differences: Vec<(&'static str, String)>,
}

/// Compares each image with a container of it.
fn examine(store: &str, engine: &dyn Engine, images: &[(&'static str, PathBuf)]) -> Findings {
    let mut findings = Findings::default();
    for (name, tar) in images {
        if let Err(what) = engine.load(tar, name) {
            eprintln!("{store} refuses {name}: {what}");
            findings.trees.insert(name, None);
        }
    }
    let place = Place::new();
    let mount = Mounted::new(&engine.root(), &place.path().join("m"));
    for (name, _) in images {
        if findings.trees.contains_key(name) {
            continue;
        }
        let container = engine.container(name);
        let (expected, found) = trees(engine, &container, &mount.path().join("merged").join(name));
        assert!(found.len() > 3, "{store}: {name} has {} entries", found.len());
        let lines: Vec<String> = diff(&expected, &found);
        eprintln!("{store}: {name}: {} entries, {} differences", found.len(), lines.len());
        findings.differences.extend(lines.into_iter().map(|line| (*name, line)));
        findings.trees.insert(name, Some(normal(found, engine)));
        if engine.names_containers() {
            let shown = mount.path().join("by-container").join(word_of(name)).join("merged");
            change(store, engine, &container, &shown);
        }
    }
    let status: Value = serde_json::from_slice(&fs::read(mount.path().join("status")).unwrap()).unwrap();
    assert_eq!(status["damage"], json!([]), "{store}");
    findings
}

/// Makes in a container what images cannot have, and compares it with what docker-fs shows of that container.
fn change(store: &str, engine: &dyn Engine, container: &Path, shown: &Path) {
    let socket = container.join("socket");
    let made = rustix::fs::mknodat(CWD, &socket, FileType::Socket, Mode::from_raw_mode(0o640), 0);
    // Who runs this has no number in what another user has mounted.
    assert!(made.is_ok() || (made == Err(Errno::OVERFLOW) && engine.container_id(0) != 0), "{store}: {made:?}");
    let mut lines = Vec::new();
    let is_same = support::eventually(|| {
        let (expected, found) = trees(engine, container, shown);
        assert!(made.is_err() || expected.contains_key(&b"socket"[..]));
        lines = diff(&expected, &found);
        lines.is_empty()
    });
    assert!(is_same, "{store}: {}:\n  {}", shown.display(), lines.join("\n  "));
}

/// What a container sees, and what docker-fs shows of it or of its image.
fn trees(engine: &dyn Engine, container: &Path, merged: &Path) -> (Tree, Tree) {
    let kinship = engine.kinship();
    let options = Options { skip: INIT.to_vec(), no_ctime: kinship != Kinship::Same, ..Options::default() };
    let of_kernel = Options { skip: INIT.to_vec(), no_ctime: options.no_ctime, ..Options::of_kernel_overlay() };
    let (mut expected, mut found) = (snapshot(container, &of_kernel), snapshot(merged, &options));
    if kinship == Kinship::Counted {
        (expected, found) = fuse_overlayfs::comparable(expected, found);
    }
    for tree in [&mut expected, &mut found] {
        // The container's own, made for it.
        let root = tree.get_mut(&b""[..]).unwrap();
        (root.mtime, root.ctime) = ((0, 0), None);
        if kinship == Kinship::NewCopies {
            let dirs = tree.values_mut().filter(|entry| entry.kind == FileType::Directory);
            dirs.for_each(|dir| dir.mtime = (0, 0));
        }
    }
    (expected, found)
}

/// A tree without what is each store's own: times of inodes, the IDs of a user's containers on the host, and how many
/// names a file has in other layers.
fn normal(mut tree: Tree, engine: &dyn Engine) -> Tree {
    let mut names: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    for entry in tree.values() {
        *names.entry(entry.ino).or_default() += 1;
    }
    for entry in tree.values_mut() {
        entry.ctime = None;
        (entry.uid, entry.gid) = (engine.container_id(entry.uid), engine.container_id(entry.gid));
        if entry.kind != FileType::Directory {
            entry.nlink = names[&entry.ino];
        }
    }
    group_links(&mut tree);
    tree
}

/// What of an image differs between one store and the first of all, a line for each.
fn between(name: &str, store: &str, expected: Option<&Tree>, found: Option<&Tree>) -> Vec<String> {
    let (Some(expected), Some(found)) = (expected, found) else { return vec![REFUSED.to_owned()] };
    let level = |tree: &Tree| {
        let mut tree = tree.clone();
        for (path, entry) in &mut tree {
            // They have no entry of their own, and the time when they were made.
            let is_implied = name == hand::ODD && [&b"p"[..], b"p/q", b"implied", b"implied/dir"].contains(&&path[..]);
            if is_implied || (store == NATIVE && entry.kind == FileType::Directory) {
                entry.mtime = (0, 0);
            }
        }
        tree
    };
    let times = |tree: &Tree| {
        let dirs = tree.iter().filter(|(_, entry)| entry.kind == FileType::Directory);
        dirs.map(|(path, dir)| (path.clone(), dir.mtime)).collect::<Vec<_>>()
    };
    assert!(store != NATIVE || times(expected) != times(found), "{name}: directories are as old as in other stores");
    diff(&level(expected), &level(found)).into_iter().map(|line| called(&line)).collect()
}

/// A line with what values are called here.
fn called(line: &str) -> String {
    VALUES.iter().fold(line.to_owned(), |line, (value, name)| line.replace(&format!("={value}]"), &format!("={name}]")))
}

type Start = Box<dyn Fn() -> Box<dyn Engine>>;

/// All stores, the first of which the others are compared with. What takes Debian 13 comes last.
fn stores(ours: &Rc<Machine>, debian: impl Fn() -> Rc<Machine> + Clone + 'static) -> Vec<(&'static str, Start)> {
    let of_podman = |driver, owner| -> Start {
        let ours = Rc::clone(ours);
        Box::new(move || Box::new(OfPodman::new(&ours, owner, driver)))
    };
    let of_podman_5 = |driver, owner| -> Start {
        let debian = debian.clone();
        Box::new(move || Box::new(OfPodman::new(&debian(), owner, driver)))
    };
    let docker = |driver| -> Start { Box::new(move || Box::new(Docker::new(driver))) };
    let ctr = |snapshotter| -> Start { Box::new(move || Box::new(Ctr::new(snapshotter))) };
    let (machine, user) = (debian.clone(), Owner::User(USER));
    vec![
        (OVERLAY2, docker("overlay2")),
        (OVERLAY, docker("overlay")),
        (VFS, docker("vfs")),
        (FUSE, docker("fuse-overlayfs")),
        (BTRFS, docker("btrfs")),
        (CTR, ctr("overlayfs")),
        (NATIVE, ctr("native")),
        (PODMAN, of_podman("overlay", Owner::Root)),
        (PODMAN_USER, of_podman("overlay", user)),
        (PODMAN_VFS, of_podman("vfs", Owner::Root)),
        (PODMAN_VFS_USER, of_podman("vfs", user)),
        (PODMAN_5, of_podman_5("overlay", Owner::Root)),
        (PODMAN_5_USER, of_podman_5("overlay", user)),
        (PODMAN_5_VFS, of_podman_5("vfs", Owner::Root)),
        (PODMAN_5_VFS_USER, of_podman_5("vfs", user)),
        (DOCKER_26, Box::new(move || Box::new(Docker26(trixie::Daemon::docker(&machine()))))),
        (CTR_17, Box::new(move || Box::new(Ctr17(trixie::Daemon::containerd(&debian()))))),
    ]
}

type Found<'a> = BTreeSet<(&'a str, &'a str, String)>;

/// What deviates beside what is known to, and what is known to and does not: a line for each, none where all is well.
fn unknown(known: &[Deviation], found: &Found<'_>) -> String {
    let mut expected = Found::new();
    for deviation in known {
        for store in deviation.stores {
            expected.extend(deviation.lines.iter().map(|line| (*store, deviation.image, (*line).to_owned())));
        }
    }
    let mut text = String::new();
    for (what, set) in [("deviates", found.difference(&expected)), ("does not deviate", expected.difference(found))] {
        for (store, image, line) in set {
            let _ = writeln!(text, "{what}: {store}: {image}: {line}");
        }
    }
    text
}

#[test]
fn one_image_in_every_store_is_one_tree() {
    let programs = [&["dockerd", "docker", "mkfs.btrfs", "fuse-overlayfs"], trixie::PROGRAMS, hand::PROGRAMS].concat();
    if !require_privileges("the engines")
        || !machine::has_programs(&[&programs[..], containerd::PROGRAMS].concat())
        || !podman::has_programs()
    {
        return;
    }
    // It takes its time, the first time.
    let made = std::thread::spawn(trixie::prepare);
    let place = Place::new();
    let images = hand::archives(place.path(), architecture());
    let ours = Rc::new(Machine::ours());
    let debian = Rc::new(OnceCell::new());
    let machine = move || Rc::clone(debian.get_or_init(|| Rc::new(trixie::machine())));

    let (mut failed, mut of_containers, mut of_stores) = (Vec::new(), Found::new(), Found::new());
    let mut first = None;
    for (store, start) in stores(&ours, machine) {
        let begun = Instant::now();
        let Ok(findings) = catch_unwind(AssertUnwindSafe(|| examine(store, &*start(), &images))) else {
            failed.push(store);
            continue;
        };
        eprintln!("{store}: {:.1} s", begun.elapsed().as_secs_f32());
        of_containers.extend(findings.differences.iter().map(|(image, line)| (store, *image, line.clone())));
        let first = first.get_or_insert_with(|| findings.trees.clone());
        for (name, tree) in &findings.trees {
            let lines = between(name, store, first[name].as_ref(), tree.as_ref());
            of_stores.extend(lines.into_iter().map(|line| (store, *name, line)));
        }
    }
    drop(made.join());
    assert_eq!(failed, [""; 0], "what they found is above");
    let texts = [unknown(OF_CONTAINERS, &of_containers), unknown(OF_STORES, &of_stores)];
    assert!(texts.iter().all(String::is_empty), "of containers:\n{}of stores:\n{}", texts[0], texts[1]);
}
