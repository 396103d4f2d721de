//! `-o uidmap=container`, against what the kernel shows to who is in a user namespace with the same numbers.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use docker_fs::error::{Error, Result};
use docker_fs::name::TreePath;
use docker_fs::store;
use docker_fs::view::{Node, Options, Owners, View};
use rustix::fs::{XattrFlags, setxattr};
use rustix::io::Errno;
use serde_json::json;
use support::mount::{Mounted, require_privileges};
use support::scratch;
use support::storage::StorageBuilder;
use support::store::StoreBuilder;
use tempfile::TempDir;

/// The numbers of the users' and the groups' root.
const USERS: u32 = 100_000;
const GROUPS: u32 = 200_000;
const ACL: &str = "system.posix_acl_access";
const CAPABILITY: &str = "security.capability";

/// An ACL with these entries of users and groups beside those that each has.
fn acl(users: &[u32], groups: &[u32]) -> Vec<u8> {
    let entry = |tag: u16, permissions: u16, id: u32| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let mut entries = vec![2_u32.to_le_bytes().to_vec(), entry(0x01, 6, u32::MAX)];
    entries.extend(users.iter().map(|user| entry(0x02, 4, *user)));
    entries.push(entry(0x04, 4, u32::MAX));
    entries.extend(groups.iter().map(|group| entry(0x08, 4, *group)));
    entries.extend([entry(0x10, 4, u32::MAX), entry(0x20, 0, u32::MAX)]);
    entries.concat()
}

/// The value of `security.capability` for `CAP_NET_RAW`, of revision 3 where there is a root.
fn capability(root: Option<u32>) -> Vec<u8> {
    let revision: u32 = if root.is_some() { 0x0300_0001 } else { 0x0200_0001 };
    let mut value = [revision.to_le_bytes(), (1_u32 << 13).to_le_bytes()].concat();
    value.extend([0; 12]);
    value.extend(root.into_iter().flat_map(u32::to_le_bytes));
    value
}

/// A data root of a daemon that remaps users, with `app:1` of one layer and the container `web`.
struct Fixture {
    dir: TempDir,
    root: PathBuf,
    layer: PathBuf,
    changes: PathBuf,
}

const FILES: [&str; 11] =
    ["root", "user", "last", "below", "huge", "link", "dir", "acl", "revision-2", "revision-3", "users-capability"];

fn fixture() -> Fixture {
    let dir = scratch("owners");
    let root = dir.path().join(format!("{USERS}.{GROUPS}"));
    let mut store = StoreBuilder::new(&root);
    let layers = store.chain(1);
    let layer = layers[0].diff_dir();
    let image = store.image(&layers);
    store.tag("app:1", &image);
    let web = store.container("web", &image, Some(&layers[0]));
    let changes = web.upper_dir();
    store.finish();
    for file in FILES {
        match file {
            "dir" => fs::create_dir(layer.join(file)).unwrap(),
            "link" => symlink("root", layer.join(file)).unwrap(),
            _ => fs::write(layer.join(file), file).unwrap(),
        }
        let (user, group) = match file {
            "user" | "dir" | "link" => (USERS + 1000, GROUPS + 100),
            "last" => (USERS + 65_535, GROUPS + 65_535),
            "below" => (USERS - 1, GROUPS - 1),
            "huge" => (u32::MAX - 1, u32::MAX - 1),
            _ => (USERS, GROUPS),
        };
        lchown(layer.join(file), Some(user), Some(group)).unwrap();
    }
    chown(&layer, Some(USERS), Some(GROUPS)).unwrap();
    fs::write(changes.join("written"), "").unwrap();
    chown(changes.join("written"), Some(USERS + 33), Some(GROUPS + 33)).unwrap();
    let set = |file: &str, name: &str, value: &[u8]| {
        setxattr(layer.join(file), name, value, XattrFlags::empty()).unwrap();
    };
    set("acl", ACL, &acl(&[USERS + 5, USERS + 7], &[GROUPS + 6]));
    set("revision-2", CAPABILITY, &capability(None));
    set("revision-3", CAPABILITY, &capability(Some(USERS)));
    set("users-capability", CAPABILITY, &capability(Some(USERS + 9)));
    Fixture { dir, root, layer, changes }
}

fn open(root: &Path, owners: Owners) -> Result<View> {
    View::new(store::open(root, &store::Options::default())?, &Options { owners, ..Options::default() })
}

fn found(view: &View, path: &str) -> Node {
    view.resolve(&TreePath::new(path.as_bytes()).unwrap()).unwrap().unwrap_or_else(|| panic!("{path} is missing"))
}

fn owner(view: &View, path: &str) -> (u32, u32) {
    let meta = found(view, path).fresh_meta().unwrap();
    (meta.uid, meta.gid)
}

/// A process in a user namespace with the fixture's numbers, which asks what it is told to.
struct Inside(Child);

impl Inside {
    /// One that sees what is in a directory. It has a root directory of its own, as that of the machine may be closed to
    /// whoever has no privileges for it.
    fn new(dir: &Path) -> Self {
        const ENTER: &str = "set -e; cd \"$0\"; mkdir inside; mount -t tmpfs none inside; \
                             for d in bin lib lib64 sbin usr; do \
                             if [ -L /$d ]; then cp -P /$d inside; \
                             elif [ -d /$d ]; then mkdir inside/$d; mount --rbind /$d inside/$d; fi; done; \
                             mkdir -p \"inside$0\" inside/old; mount --rbind . \"inside$0\"; cd inside; \
                             pivot_root . old; cd /; exec unshare --user bash -c \"$1\"";
        const ANSWER: &str = "read go; while read -r what file; do \
                              if [ $what = owner ]; then stat -c '%u %g' -- \"$file\"; \
                              else getfattr --absolute-names -h -e hex -n \"$what\" -- \"$file\" 2>&1 | \
                              grep -a -e '^[a-z._0-9]*=' -e ': Value too'; fi; echo; done";
        let child = Command::new("unshare")
            .args(["--mount", "bash", "-c", ENTER])
            .arg(dir)
            .arg(ANSWER)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let id = child.id();
        // The namespace is the process's once it is not this one's.
        let namespace = |id: &str| fs::read_link(format!("/proc/{id}/ns/user"));
        let own = namespace("self").unwrap();
        assert!(support::eventually(|| namespace(&id.to_string()).is_ok_and(|other| other != own)));
        for (map, first) in [("uid_map", USERS), ("gid_map", GROUPS)] {
            fs::write(format!("/proc/{id}/{map}"), format!("0 {first} {}\n", u32::MAX - first)).unwrap();
        }
        let mut inside = Self(child);
        inside.0.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        inside
    }

    fn ask(&mut self, what: &str, file: &Path) -> String {
        use std::io::BufRead;
        self.0.stdin.as_mut().unwrap().write_all(format!("{what} {}\n", file.display()).as_bytes()).unwrap();
        let mut answer = String::new();
        let mut lines = std::io::BufReader::with_capacity(1, self.0.stdout.as_mut().unwrap());
        loop {
            let mut line = String::new();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "the process inside has ended");
            if line == "\n" {
                return answer.trim_end().to_owned();
            }
            answer.push_str(&line);
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn outside(what: &str, file: &Path) -> String {
    if what == "owner" {
        let meta = fs::symlink_metadata(file).unwrap();
        return format!("{} {}", meta.uid(), meta.gid());
    }
    let mut value = [0; 256];
    match rustix::fs::lgetxattr(file, what, &mut value) {
        Ok(count) => format!("{what}=0x{}", support::store::hex(&value[..count])),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => String::new(),
        Err(Errno::OVERFLOW) => format!("{}: {what}: Value too large for defined data type", file.display()),
        Err(error) => panic!("{what} of {}: {error}", file.display()),
    }
}

#[test]
fn a_mount_shows_what_the_kernel_shows_inside() {
    if !require_privileges("files of many owners") {
        return;
    }
    let fixture = fixture();
    let arguments = ["-o", "uidmap=container,allow_other"];
    let mount = Mounted::with(&fixture.root, &fixture.dir.path().join("mnt"), &arguments, 0);
    let mut inside = Inside::new(fixture.dir.path());
    for file in FILES {
        for place in ["by-tag/app:1/layers/0", "merged/app:1", "by-container/web/merged"] {
            let shown = mount.path().join(place).join(file);
            for what in ["owner", ACL, CAPABILITY] {
                let expected = inside.ask(what, &fixture.layer.join(file));
                assert_eq!(outside(what, &shown), expected, "{what} of {}", shown.display());
            }
        }
    }
    for place in ["changes", "merged"] {
        let shown = mount.path().join("by-container/web").join(place).join("written");
        assert_eq!(outside("owner", &shown), inside.ask("owner", &fixture.changes.join("written")));
    }
    assert_eq!(outside("owner", &mount.path().join("merged/app:1/user")), "1000 100");
    assert_eq!(outside("owner", &mount.path().join("merged/app:1/below")), "65534 65534");
    assert!(fs::read_to_string(mount.path().join("status")).unwrap().contains("\"uidmap\": \"container\""));
    // An open file has the same owner.
    let open = fs::File::open(mount.path().join("merged/app:1/user")).unwrap();
    assert_eq!(open.metadata().unwrap().uid(), 1000);
    // Of users that are not there the kernel shows ACLs with entries of nobody, which it takes from no FUSE server.
    let (own, foreign) = (acl(&[5], &[]), acl(&[USERS + 5, 3], &[GROUPS - 1]));
    setxattr(fixture.layer.join("root"), ACL, &foreign, XattrFlags::empty()).unwrap();
    let again = Mounted::with(&fixture.root, &fixture.dir.path().join("again"), &arguments, 0);
    assert_eq!(outside(ACL, &again.path().join("merged/app:1/root")), format!("{ACL}=0x{}", support::store::hex(&own)));
    assert_eq!(fs::read(again.path().join("merged/app:1/root")).unwrap(), b"root");
}

#[test]
fn stored_numbers_are_shown_unless_others_are_asked_for() {
    if !require_privileges("files of many owners") {
        return;
    }
    let fixture = fixture();
    let stored = open(&fixture.root, Owners::Stored).unwrap();
    assert_eq!(owner(&stored, "merged/app:1/user"), (USERS + 1000, GROUPS + 100));
    // Also where such a root lies in another one, and then a plain one beside it has its own.
    let mut plain = StoreBuilder::new(fixture.dir.path().join("plain"));
    plain.pass_over(1_000);
    let layers = plain.chain(1);
    fs::write(layers[0].diff_dir().join("file"), "").unwrap();
    chown(layers[0].diff_dir().join("file"), Some(USERS), Some(7)).unwrap();
    let image = plain.image(&layers);
    plain.tag("plain:1", &image);
    let plain = plain.finish();
    fs::rename(&fixture.root, plain.join(fixture.root.file_name().unwrap())).unwrap();
    let view = open(&plain, Owners::Container).unwrap();
    assert_eq!(owner(&view, "merged/plain:1/file"), (USERS, 7));
    assert_eq!(owner(&view, "merged/app:1/user"), (1000, 100));
    assert_eq!(owner(&view, "by-container/web/merged/written"), (33, 33));
}

/// A capability of someone who is no user of the containers: the kernel tells nothing of it.
#[test]
fn a_capability_of_another_namespace_is_not_told() {
    if !require_privileges("files of many owners") {
        return;
    }
    let fixture = fixture();
    let file = fixture.layer.join("user");
    setxattr(&file, CAPABILITY, &capability(Some(USERS - 1)), XattrFlags::empty()).unwrap();
    let view = open(&fixture.root, Owners::Container).unwrap();
    let answer = found(&view, "merged/app:1/user").xattr(CAPABILITY.as_bytes());
    assert!(matches!(&answer, Err(error) if error.errno() == Errno::OVERFLOW), "{answer:?}");
    let inside = Inside::new(fixture.dir.path()).ask(CAPABILITY, &file);
    assert!(inside.ends_with("Value too large for defined data type"), "{inside}");
}

#[test]
fn a_store_that_does_not_tell_is_refused() {
    if !require_privileges("files of many owners") {
        return;
    }
    let fixture = fixture();
    let copy = fixture.dir.path().join("copy");
    fs::rename(&fixture.root, &copy).unwrap();
    chown(copy.join("overlay2"), Some(USERS), Some(GROUPS)).unwrap();
    let refused = open(&copy, Owners::Container).unwrap_err();
    assert!(matches!(refused, Error::Unsupported { .. }), "{refused}");
    let message =
        format!("{}/overlay2: it belongs to {USERS}:{GROUPS}, whose containers have numbers that", copy.display());
    assert!(refused.to_string().starts_with(&message), "{refused}");
    assert_eq!(owner(&open(&copy, Owners::Stored).unwrap(), "merged/app:1/root"), (USERS, GROUPS));
    let mount = Mounted::with(&copy, &fixture.dir.path().join("mnt"), &["-o", "uidmap=container,xattrs=trusted"], 1);
    assert!(mount.stderr.contains("nothing in the store tells"), "{}", mount.stderr);
}

/// What podman shifts for `--uidmap`, whose map is in the list of layers.
#[test]
fn layers_of_podman_have_maps_of_their_own() {
    if !require_privileges("files of many owners") {
        return;
    }
    let dir = scratch("owners");
    let mut storage = StorageBuilder::new(dir.path(), "overlay");
    let plain = storage.layer("plain", None);
    let mapped = storage.layer("mapped", None);
    let range =
        |inside: u32, outside: u32, size: u32| json!({"container_id": inside, "host_id": outside, "size": size});
    let entry = storage.entry(&mapped);
    entry.insert("uidmap".to_owned(), json!([range(0, 5000, 10), range(10, 9000, 5)]));
    entry.insert("gidmap".to_owned(), json!([range(0, 6000, 10)]));
    for (file, user, group) in [("mapped", 5003, 6009), ("second", 9004, 6000), ("none", 9005, 6010)] {
        fs::write(mapped.dir.join(file), "").unwrap();
        chown(mapped.dir.join(file), Some(user), Some(group)).unwrap();
    }
    chown(plain.dir.join("plain"), Some(5003), Some(6009)).unwrap();
    storage.write();
    for (owners, expected) in [
        (Owners::Stored, [(5003, 6009), (9004, 6000), (9005, 6010), (5003, 6009)]),
        (Owners::Container, [(3, 9), (14, 0), (65_534, 65_534), (5003, 6009)]),
    ] {
        let view = open(dir.path(), owners).unwrap();
        let chains = found(&view, "by-chain").list().unwrap();
        let owner_of = |file: &str| {
            let all = chains.iter().filter(|(_, entry)| entry.meta.is_dir());
            let mut found = all.filter_map(|(_, entry)| {
                entry.node.lookup(&docker_fs::name::Name::new(file.as_bytes()).unwrap()).unwrap()
            });
            let meta = found.next().unwrap().meta;
            (meta.uid, meta.gid)
        };
        assert_eq!(["mapped", "second", "none", "plain"].map(owner_of), expected, "{owners:?}");
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    chown(dir.path().join("overlay"), Some(1000), Some(1000)).unwrap();
    assert!(matches!(open(dir.path(), Owners::Container), Err(Error::Unsupported { .. })), "a user's");
}

/// What podman mounts with the owners of the image's layers shifted for `--uidmap`: their map is in the list of
/// containers, and the container's own layer has the numbers outside.
#[test]
fn containers_of_podman_whose_images_are_shifted_as_they_are_mounted() {
    if !require_privileges("files of many owners") {
        return;
    }
    let dir = scratch("owners");
    let mut storage = StorageBuilder::new(dir.path(), "overlay");
    let base = storage.layer("base", None);
    let image = storage.image(&["localhost/app:1"], &[&base]);
    let place = |file: PathBuf, user, group| {
        fs::write(&file, "").unwrap();
        chown(file, Some(user), Some(group)).unwrap();
    };
    place(base.dir.join("below"), 3, 9);
    place(base.dir.join("none"), 10, 10);
    for (name, is_copied) in [("shifted", false), ("copied", true)] {
        let (mut container, mut listed, own) = storage.container(name, &image, &base);
        place(own.dir.join("mine"), 5003, 6009);
        for (key, outside) in [("uidmap", 5000), ("gidmap", 6000)] {
            container[key] = json!([{"container_id": 0, "host_id": outside, "size": 10}]);
            if is_copied {
                listed[key] = container[key].clone();
            }
        }
        storage.containers.push(container);
        storage.layers.push(listed);
    }
    storage.write();
    for (owners, shifted, copied) in [
        (Owners::Stored, [(5003, 6009), (65_534, 65_534), (5003, 6009), (5003, 6009)], [(3, 9), (5003, 6009)]),
        (Owners::Container, [(3, 9), (10, 10), (3, 9), (3, 9)], [(3, 9), (3, 9)]),
    ] {
        let view = open(dir.path(), owners).unwrap();
        let of = |path: &str| owner(&view, &format!("by-container/{path}"));
        let merged = ["shifted/merged/below", "shifted/merged/none", "shifted/merged/mine", "shifted/changes/mine"];
        assert_eq!(merged.map(of), shifted, "{owners:?}");
        assert_eq!(["copied/merged/below", "copied/merged/mine"].map(of), copied, "{owners:?}");
        assert_eq!(owner(&view, "merged/localhost/app:1/below"), (3, 9), "{owners:?}");
        // With other owners it is another file.
        let number = |path: &str| found(&view, path).identity();
        let are_one = number("by-container/shifted/merged/below") == number("merged/localhost/app:1/below");
        assert_eq!(are_one, owners == Owners::Container);
    }
}
