//! Stores whose layers are whole trees, made by a real engine (vfs, overlay, btrfs): images and containers against the
//! trees of the engine's own and `docker export`, and what layers change against the layers of `docker save`.
//!
//! The image has every kind of entry. It is loaded, built upon and run. One layer has a file anew with other content of the
//! same size and time, and one as it was: what no comparison of the two trees could tell.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

#[path = "support/dockerd.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod dockerd;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dockerd::{Builder, Dockerd};
use rustix::fs::FileType;
use serde_json::{Value, json};
use support::mount::{Mounted, require_privileges};
use support::store::sha256_hex;
use support::tree::{Entry, Options, Tree, assert_same, snapshot};

/// The layers of the image, each in a directory of its number. Deletions are as tars have them.
const LAYERS: &str = r#"set -e; mkdir 0 1 2; cd 0
mkdir -p bin t/del/sub t/kind-dir/in t/opaque/inner t/c/sub x etc tmp
cp "$(command -v busybox)" bin/busybox
for applet in sh rm mkdir rmdir ln mv cp chmod chown mknod mkfifo touch sleep truncate cat true echo; do ln -s busybox bin/$applet; done
cd t; echo gone >del/file; echo x >del/sub/x; echo f >kind-file; echo in >kind-dir/in/f; echo old >opaque/old
echo o >opaque/inner/o; echo c >c/old; echo s >c/sub/s; echo hard >h1; ln h1 h2; ln h1 h3; echo same >same
echo one >quiet; touch -d 2001-01-01 quiet
ln -s kind-file link; ln -s /etc/passwd absolute; mkfifo fifo; mknod null c 1 3; mknod block b 7 9; mknod none c 0 0
truncate -s 3M sparse; echo tail >>sparse; cp ../bin/busybox capped; setcap cap_net_raw+ep capped; chmod 4711 h1
touch "$(printf 'new\nline')" "$(printf 'high\377byte')" "$(printf '\001control')" ' spaces ' 'back\slash' \
   "$(printf '%255s' '' | tr ' ' n)"; : >empty; chmod 0 empty; mkdir -m 1777 sticky; chown 1234:70000 sticky
touch -h -d '2001-02-03 04:05:06.789' link; touch -d '2002-02-03 04:05:06.123456789' same fifo null
cd ../x; echo x >f; setfattr -n user.mark -v yes f
cd ../../1; mkdir -p t/kind-file t/opaque/inner t/c/sub; cd t; : >.wh.del; echo n >kind-file/n; echo file >kind-dir
: >opaque/.wh..wh..opq; echo new >opaque/new; echo n >opaque/inner/n; : >.wh.c; echo c >c/new
cp -a ../../0/t/same same; echo two >quiet; touch -d 2001-01-01 quiet; mkdir -m 750 sticky; echo added >added; ln added added2; : >.wh.never; ln -s added link
cd ../../2; mkdir -p p/q t/del; echo f >p/q/f; echo back >t/del/again; : >t/.wh.h2; : >t/.wh.fifo; touch -d 2003-03-03 t/same
"#;

/// Each RUN is a layer.
const STEPS: &str = r"FROM hand:1
RUN cd /t && rm -rf opaque && mkdir opaque && echo o >opaque/again && rm null && mkfifo null && echo more >>capped
RUN cd /t && ln h1 h4 && chmod 700 h1 && mv kind-file moved && chown 7:8 sticky && ln -s nowhere dangling && mknod b2 b 1 2
RUN true
";

/// What is done in a running container.
const CHANGES: &str = r#"set -e; cd /t; rm h4; rm -r moved; echo more >>same; rm -r del; mkdir del; echo mine >del/mine
mknod zero c 1 5; mkfifo pipe; : >.wh.fake; touch "$(echo -e 'odd\nname\377')"; truncate -s 32M huge; chmod 750 /t
rm kind-dir; mkdir kind-dir; rm -r opaque; mkdir opaque; echo here >opaque/here; chown 5:6 added; echo over >added2"#;

/// What the engine puts into a container beside the image.
const INIT: [&str; 9] =
    [".dockerenv", "dev", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab", "proc", "sys", "etc"];

#[test]
fn vfs_shows_what_docker_shows() {
    check("vfs", |_| {});
}

#[test]
fn overlay_shows_what_docker_shows() {
    check("overlay", |_| {});
}

#[test]
fn btrfs_shows_what_docker_shows() {
    check("btrfs", |dir| {
        let disk = dir.join("disk");
        fs::File::create(&disk).unwrap().set_len(4 << 30).unwrap();
        dockerd::run(Command::new("mkfs.btrfs").arg("-q").arg(&disk));
        dockerd::run(Command::new("mount").args(["-o", "loop"]).arg(&disk).arg(dir.join("root")));
    });
}

fn check(driver: &'static str, prepare: impl FnOnce(&Path)) {
    let programs = [dockerd::PROGRAMS, &["setcap", "setfattr", "busybox", "mkfs.btrfs"]].concat();
    if !require_privileges("a Docker daemon") || !dockerd::has_programs(&programs) {
        return;
    }
    let daemon = Dockerd::start_with(driver, prepare);
    load(&daemon);
    daemon.build(Builder::Classic, "built:1", STEPS).unwrap_or_else(|what| panic!("{what}"));
    daemon.build(Builder::Classic, "nothing:1", "FROM scratch\nLABEL layers=none\n").unwrap();
    let run = ["run", "-d", "--network", "none", "--name", "changed", "built:1", "sleep", "100000"];
    daemon.docker(&run);
    daemon.docker(&["exec", "changed", "sh", "-c", CHANGES]);
    daemon.docker(&["create", "--network", "none", "--name", "created", "built:1", "true"]);
    daemon.docker(&["create", "--network", "none", "--name", "of-hand", "hand:1", "true"]);
    daemon.docker(&["create", "--network", "none", "--name", "without-layers", "nothing:1", "/none"]);
    let mount = Mounted::new(&daemon.root(), &daemon.scratch("mnt"));
    let bench = Bench { mount, daemon, driver };

    bench.names_and_damage();
    for (tag, container) in [("hand:1", "of-hand"), ("built:1", "created")] {
        bench.image(tag, container);
        bench.layers(tag);
    }
    for container in ["changed", "created", "of-hand", "without-layers"] {
        bench.container(container);
    }
    bench.changes();
    bench.nothing_written();
    bench.live();
    if driver == "btrfs" {
        bench.nested_volume();
    }
}

/// The mount goes away before the daemon whose root it shows.
struct Bench {
    mount: Mounted,
    daemon: Dockerd,
    driver: &'static str,
}

/// Makes the image of hand-made layers and loads it.
fn load(daemon: &Dockerd) {
    let dir = daemon.scratch("image");
    dockerd::run(Command::new("bash").arg("-c").arg(LAYERS).current_dir(&dir));
    let mut layers = Vec::new();
    let mut diffs = Vec::new();
    for number in 0..3 {
        // The directories of the last layer have no entries of their own.
        let what =
            if number == 2 { "find . -not -type d -print0 | sort -z" } else { "find . -mindepth 1 -print0 | sort -z" };
        let script = format!(
            "set -o pipefail; cd {number}; {what} | tar --no-recursion --null --xattrs --xattrs-include='*' \
             --format=pax --numeric-owner -cf ../{number}.tar -T -"
        );
        dockerd::run(Command::new("bash").arg("-c").arg(script).current_dir(&dir));
        let tar = format!("{number}.tar");
        diffs.push(format!("sha256:{}", sha256_hex(fs::read(dir.join(&tar)).unwrap())));
        layers.push(tar);
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": diffs},
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let manifest = json!([{"Config": "config.json", "RepoTags": ["hand:1"], "Layers": layers}]);
    fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    dockerd::run(
        Command::new("tar").current_dir(&dir).args(["-cf", "image", "manifest.json", "config.json"]).args(layers),
    );
    daemon.docker(&["load", "-i", dir.join("image").to_str().unwrap()]);
}

/// A tree without what differs between a file and its copy in a tar: times of the inode, and counts of links that other
/// layers have. Names of one file are told only where there are several.
fn comparable(mut tree: Tree) -> Tree {
    tree.remove(&Vec::new());
    let mut names: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    for group in tree.values().filter_map(|entry| entry.group.clone()) {
        *names.entry(group).or_default() += 1;
    }
    for entry in tree.values_mut() {
        entry.nlink = 0;
        entry.group = entry.group.take().filter(|group| names[group] > 1);
    }
    tree
}

fn taken(root: &Path) -> Tree {
    comparable(snapshot(root, &Options { no_ctime: true, ..Options::default() }))
}

/// The files of a tar, unpacked.
fn unpacked(tar: &Path, place: &Path) -> Tree {
    fs::create_dir_all(place).unwrap();
    let include = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-owner", "-p"];
    dockerd::run(Command::new("tar").args(include).arg("-C").arg(place).arg("-xf").arg(tar));
    let tree = taken(place);
    fs::remove_dir_all(place).unwrap();
    tree
}

fn last_of(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap()
}

fn dir_of(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |slash| &path[..slash])
}

fn joined(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/"))
}

/// Drops a name and all below it.
fn drop_tree(tree: &mut Tree, name: &[u8]) {
    tree.retain(|path, _| path != name && !is_below(path, name));
}

impl Bench {
    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.mount.path().join(path)
    }

    /// Where the engine keeps the tree of a layer, or of what has this mount ID.
    fn place(&self, id: &str) -> PathBuf {
        let root = self.daemon.root().join(self.driver);
        match self.driver {
            "vfs" => root.join("dir").join(id),
            "btrfs" => root.join("subvolumes").join(id),
            _ => root.join(id).join("root"),
        }
    }

    fn image_dir(&self) -> PathBuf {
        self.daemon.root().join("image").join(self.driver)
    }

    /// The names of the directories of an image's layers, base first.
    fn cache_ids(&self, tag: &str) -> Vec<String> {
        let image = self.daemon.inspect("image", tag);
        let mut chain = String::new();
        let mut ids = Vec::new();
        for diff in image["RootFS"]["Layers"].as_array().unwrap() {
            let diff = diff.as_str().unwrap();
            chain = if chain.is_empty() {
                diff.to_owned()
            } else {
                format!("sha256:{}", sha256_hex(format!("{chain} {diff}")))
            };
            let entry = self.image_dir().join("layerdb").join(chain.replace(':', "/"));
            ids.push(fs::read_to_string(entry.join("cache-id")).unwrap());
        }
        ids
    }

    fn mount_id(&self, container: &str) -> String {
        let id = self.daemon.inspect("container", container)["Id"].as_str().unwrap().to_owned();
        fs::read_to_string(self.image_dir().join("layerdb/mounts").join(id).join("mount-id")).unwrap()
    }

    /// The attributes of all that the driver has, access times too.
    fn state(&self) -> Tree {
        let options = Options { atime: true, no_content: true, ..Options::default() };
        let images = self.cache_ids("built:1");
        let place = self.place(images.last().unwrap());
        // Taking it touches the times of directories and links, once.
        snapshot(&place, &options);
        snapshot(&place, &options)
    }

    fn nothing_written(&self) {
        let before = self.state();
        for shown in ["merged/built:1", "by-tag/built:1/layers", "by-container/created"] {
            snapshot(&self.at(shown), &Options::default());
        }
        assert_same("the store", &before, &self.state());
    }

    fn names_and_damage(&self) {
        let status: Value = serde_json::from_slice(&fs::read(self.at("status")).unwrap()).unwrap();
        assert_eq!(status["driver"], self.driver);
        assert_eq!(status["damage"], json!([]));
        let tags: BTreeSet<String> = names(&self.at("by-tag"));
        assert_eq!(tags, ["built:1", "hand:1", "nothing:1"].map(str::to_owned).into());
        assert_eq!(names(&self.at("merged")).len(), self.daemon.lines(&["images", "-aq", "--no-trunc"]).len());
    }

    /// The tree of an image: that of its top layer, and that which a container of it exports, but for what the engine puts
    /// into containers.
    fn image(&self, tag: &str, container: &str) {
        let shown = self.at("merged").join(tag);
        let options = Options { blocks: true, ..Options::default() };
        let top = self.place(self.cache_ids(tag).last().unwrap());
        let mut expected = snapshot(&top, &options);
        if self.driver == "overlay" {
            // A container's kernel takes it for a whiteout.
            assert!(expected.remove(b"t/none".as_slice()).is_some());
        }
        assert!(expected.len() > 50, "{tag}: {} entries", expected.len());
        assert_same(tag, &expected, &snapshot(&shown, &options));
        let (mut exported, mut found) = (self.exported(container), taken(&shown));
        for name in INIT {
            drop_tree(&mut exported, name.as_bytes());
            drop_tree(&mut found, name.as_bytes());
        }
        as_exported(&mut found);
        assert_same(&format!("{tag} and the export of {container}"), &exported, &found);
    }

    fn exported(&self, container: &str) -> Tree {
        let scratch = self.daemon.scratch("export");
        let tar = scratch.join("tar");
        self.daemon.docker(&["export", "-o", tar.to_str().unwrap(), container]);
        unpacked(&tar, &scratch.join("root"))
    }

    fn container(&self, name: &str) {
        let shown = self.at("by-container").join(name).join("merged");
        let mut found = taken(&shown);
        if self.driver != "overlay" {
            let options = Options { blocks: true, ..Options::default() };
            let expected = snapshot(&self.place(&self.mount_id(name)), &options);
            assert_same(name, &expected, &snapshot(&shown, &options));
        } else if name == "changed" {
            let options = Options { blocks: true, ..Options::default() };
            let mounted = snapshot(&self.daemon.merged_dir(name), &options);
            assert_same(name, &mounted, &snapshot(&shown, &options));
        }
        as_exported(&mut found);
        assert_same(&format!("the export of {name}"), &self.exported(name), &found);
    }

    /// The layers of an image, which have the names that their tars had and all else from their trees.
    fn layers(&self, tag: &str) {
        let scratch = self.daemon.scratch("save");
        let tar = scratch.join("image.tar");
        self.daemon.docker(&["save", "-o", tar.to_str().unwrap(), tag]);
        dockerd::run(Command::new("tar").arg("-C").arg(&scratch).arg("-xf").arg(&tar));
        let manifest: Value = serde_json::from_slice(&fs::read(scratch.join("manifest.json")).unwrap()).unwrap();
        let saved = manifest[0]["Layers"].as_array().unwrap();
        for (number, layer) in saved.iter().enumerate() {
            let mut expected = unpacked(&scratch.join(layer.as_str().unwrap()), &scratch.join("layer"));
            let mut found = taken(&self.at("by-tag").join(tag).join("layers").join(number.to_string()));
            assert_eq!(shown(expected.keys()), shown(found.keys()), "the names of layer {number} of {tag}");
            for tree in [&mut expected, &mut found] {
                tree.iter_mut()
                    .filter(|(path, _)| last_of(path).starts_with(b".wh."))
                    .for_each(|(_, mark)| level(mark));
                // The unpacker made them without an entry, with attributes of its own.
                for implied in ["p", "p/q", "t/del", "t"] {
                    if number == 2 {
                        tree.remove(implied.as_bytes());
                    }
                }
            }
            assert!(number == 5 || !found.is_empty(), "layer {number} of {tag}");
            assert_same(&format!("layer {number} of {tag}"), &comparable(expected), &comparable(found));
        }
    }

    /// What `docker diff` tells of a running container, whose changes are told beside what was there.
    fn changes(&self) {
        let mut expected = BTreeSet::new();
        for line in self.daemon.docker(&["diff", "changed"]).lines() {
            // The one with a line feed in it is looked for below.
            if let Some((kind @ ("A" | "C" | "D"), path)) = line.split_once(" /")
                && !path.contains("odd")
            {
                let (dir, name) = (dir_of(path.as_bytes()), last_of(path.as_bytes()));
                let mark = if kind == "D" { [b".wh.", name].concat() } else { name.to_vec() };
                expected.insert(joined(dir, &mark));
            }
        }
        assert!(expected.len() > 15, "{expected:?}");
        let changes = self.at("by-container/changed/changes");
        let mut found = snapshot(&changes, &Options { no_content: true, ..Options::default() });
        found.remove(&Vec::new());
        assert!(found.remove(b"t/odd\nname\xff".as_slice()).is_some());
        if self.driver == "overlay" {
            // The kernel's own layer: with what the engine put into it, and with opaque directories.
            for name in INIT {
                drop_tree(&mut found, name.as_bytes());
            }
            for opaque in ["t/del", "t/opaque"] {
                assert!(found.remove(format!("{opaque}/.wh..wh..opq").as_bytes()).is_some(), "{opaque}");
                let prefix = format!("{opaque}/.wh.");
                expected.retain(|path| !path.starts_with(prefix.as_bytes()));
            }
            drop(found.remove(b"t/kind-dir/.wh..wh..opq".as_slice()));
        }
        let found: BTreeSet<Vec<u8>> = found.into_keys().collect();
        let shown =
            |set: &BTreeSet<Vec<u8>>| set.iter().map(|path| path.escape_ascii().to_string()).collect::<Vec<_>>();
        assert_eq!(shown(&found), shown(&expected), "docker diff");
        let init = names(&self.at("by-container/created/init"));
        assert!(init.contains(".dockerenv") && !init.contains("t"), "{init:?}");
    }

    /// A subvolume that a build step made numbers its files as the one that it lies in does. (Files of containers are told
    /// apart by the time of their birth as well.)
    fn nested_volume(&self) {
        let place = self.place(self.cache_ids("hand:1").last().unwrap());
        let nested = place.join("t/nested");
        dockerd::run(Command::new("btrfs").args(["subvolume", "create"]).arg(&nested));
        for number in 0..60 {
            fs::write(nested.join(number.to_string()), number.to_string()).unwrap();
        }
        fs::hard_link(nested.join("7"), nested.join("seven")).unwrap();
        // The kernel keeps for the first mount what it has been told of an image.
        let mount = Mounted::new(&self.daemon.root(), &self.daemon.scratch("second"));
        let shown = mount.path().join("merged/hand:1");
        // btrfs lists a subvolume by its number in the directory, which is not its own.
        let loose = Options { loose_listing: true, ..Options::default() };
        let (expected, found) = (snapshot(&place, &loose), snapshot(&shown, &Options::default()));
        assert_same("a subvolume in an image's", &expected, &found);
        let numbers = |tree: &Tree| {
            let files = tree.values().filter(|entry| entry.kind != FileType::Directory);
            files.map(|entry| entry.ino).collect::<BTreeSet<_>>()
        };
        let inodes = |tree| numbers(tree).into_iter().map(|(_, inode)| inode).collect::<BTreeSet<_>>().len();
        assert!(inodes(&expected) < numbers(&expected).len(), "numbers repeat in the store");
        assert_eq!(inodes(&found), numbers(&expected).len(), "and not in the mount");
        // No layer's tar had it.
        assert_eq!(
            names(&mount.path().join("by-tag/hand:1/layers/2/t")),
            [".wh.fifo", ".wh.h2", "del", "same"].map(str::to_owned).into()
        );
    }

    fn live(&self) {
        let container = self.at("by-container/changed");
        self.daemon.docker(&["exec", "changed", "sh", "-c", "echo live >/t/sticky/live; rm /t/sparse"]);
        for place in ["merged", "changes"] {
            let seen = || {
                let text = fs::read_to_string(container.join(place).join("t/sticky/live")).unwrap_or_default();
                (text, container.join(place).join("t/sparse").exists())
            };
            assert!(support::eventually(|| seen() == ("live\n".to_owned(), false)), "{place}: {:?}", seen());
        }
        assert!(support::eventually(|| container.join("changes/t/.wh.sparse").exists()));

        let late = "FROM hand:1\nRUN echo late >/t/late && rm /t/same\n";
        self.daemon.build(Builder::Classic, "late:1", late).unwrap_or_else(|what| panic!("{what}"));
        let (image, layer) = (self.at("merged/late:1"), self.at("by-tag/late:1/layers/3"));
        assert!(support::eventually(|| image.join("t/late").exists() && layer.join("t").exists()));
        assert_eq!(names(&layer.join("t")), ["late", ".wh.same"].map(str::to_owned).into());
        self.daemon.docker(&["rmi", "late:1"]);
        assert!(support::eventually(|| !image.exists() && !layer.exists()));
    }
}

/// What tells in tars that Docker writes: whole seconds, and of extended attributes one.
fn as_exported(tree: &mut Tree) {
    for entry in tree.values_mut() {
        entry.mtime.1 = 0;
        entry.xattrs.retain(|name, _| name == b"security.capability");
    }
}

/// A mark of a deletion says no more than its name.
fn level(mark: &mut Entry) {
    (mark.mode, mark.uid, mark.gid, mark.mtime, mark.group) = (0, 0, 0, (0, 0), None);
}

fn shown<'a>(names: impl Iterator<Item = &'a Vec<u8>>) -> Vec<String> {
    names.map(|name| name.escape_ascii().to_string()).collect()
}

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
