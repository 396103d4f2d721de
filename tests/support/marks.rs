//! Stores and stacks of the graph drivers whose marks of deletions are files, made of those of overlay2.
//!
//! [`convert_store`] turns a data root that [`StoreBuilder`](super::store::StoreBuilder) wrote into one of another driver.
//! [`in_fuse_form`] and [`into_files`] do the same with what a stack or a directory holds.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use super::random::Dice;
use super::stack::{Kind, Op, Stack, file};

/// A graph driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Aufs,
    FuseOverlayfs,
}

impl Driver {
    /// Docker's name of it, which is that of its folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aufs => "aufs",
            Self::FuseOverlayfs => "fuse-overlayfs",
        }
    }
}

/// Makes a finished overlay2 store one of another driver. The layers' files stay as they are.
pub fn convert_store(root: &Path, driver: Driver) {
    let name = driver.name();
    fs::rename(root.join("image/overlay2"), root.join("image").join(name)).expect("rename the image folder");
    match driver {
        Driver::FuseOverlayfs => fs::rename(root.join("overlay2"), root.join(name)).expect("rename the layers' folder"),
        Driver::Aufs => convert_layers(&root.join("overlay2"), &root.join(name)),
    }
    for container in entries(&root.join("containers")) {
        let file = container.join("config.v2.json");
        let config = fs::read_to_string(&file).expect("read a config");
        fs::write(&file, config.replace("\"Driver\":\"overlay2\"", &format!("\"Driver\":\"{name}\"")))
            .expect("write it");
    }
}

/// Puts overlay2's layers where aufs has them.
fn convert_layers(overlay2: &Path, aufs: &Path) {
    for dir in ["diff", "layers", "mnt"] {
        fs::create_dir_all(aufs.join(dir)).expect("make a folder");
    }
    let id_of = |link: &str| {
        let target = fs::read_link(overlay2.join(link)).expect("read a short name");
        target.components().nth(1).expect("an ID").as_os_str().to_str().expect("text").to_owned()
    };
    let ids = entries(overlay2).into_iter().filter(|dir| dir.file_name() != Some(OsStr::new("l")));
    for dir in ids.collect::<Vec<_>>() {
        let id = dir.file_name().expect("a name");
        let lower = fs::read_to_string(dir.join("lower")).unwrap_or_default();
        let ancestors = lower.split(':').filter(|link| !link.is_empty()).map(|link| format!("{}\n", id_of(link)));
        fs::write(aufs.join("layers").join(id), ancestors.collect::<String>()).expect("write the ancestors");
        fs::create_dir(aufs.join("mnt").join(id)).expect("make a mount point");
        fs::rename(dir.join("diff"), aufs.join("diff").join(id)).expect("move a layer");
    }
    fs::remove_dir_all(overlay2).expect("remove what is left");
}

fn entries(dir: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(dir).expect("list").map(|entry| entry.expect("list").path()).collect()
}

/// Puts into the root of a layer what aufs has in those that it may write to.
pub fn write_aufs_files(layer: &Path) {
    fs::write(layer.join(".wh..wh.aufs"), "").expect("write");
    for dir in [".wh..wh.plnk", ".wh..wh.orph"] {
        fs::create_dir(layer.join(dir)).expect("make a folder");
        fs::set_permissions(layer.join(dir), fs::Permissions::from_mode(0o700)).expect("chmod");
    }
    fs::write(layer.join(".wh..wh.plnk/1042.1043"), "a pseudo-link").expect("write");
}

/// Makes files of the whiteouts below a directory that are devices, as an engine leaves them that unpacks tars.
pub fn into_files(dir: &Path) {
    for path in entries(dir) {
        let meta = fs::symlink_metadata(&path).expect("stat");
        if meta.is_dir() {
            into_files(&path);
        } else if meta.file_type().is_char_device() && meta.rdev() == 0 {
            let name = [b".wh.", path.file_name().expect("a name").as_bytes()].concat();
            fs::remove_file(&path).expect("remove a device");
            fs::write(dir.join(OsStr::from_bytes(&name)), "").expect("write a mark");
        }
    }
}

/// A stack of overlay2 with its marks in all the forms that fuse-overlayfs reads. No file has the name `.wh.`: no engine
/// or program makes one, and fuse-overlayfs 1.10 shows nothing of a directory that holds it. No mark is empty: of such a
/// one the program looks at a byte that it has from elsewhere.
pub fn in_fuse_form(stack: &Stack, seed: u64) -> Stack {
    let mut dice = Dice(seed);
    let layers = stack.layers.iter().map(|ops| layer_in_fuse_form(ops, &mut dice)).collect();
    Stack { layers, ..stack.clone() }
}

fn layer_in_fuse_form(ops: &[Op], dice: &mut Dice) -> Vec<Op> {
    let mut made: Vec<Op> = Vec::new();
    let is_taken = |path: &[u8], made: &[Op]| ops.iter().chain(made).any(|op| op.path == path);
    // Hard links to a whiteout stay what they are: whiteouts.
    let linked: Vec<&[u8]> =
        ops.iter().filter_map(|op| if let Kind::Link(to) = &op.kind { Some(to.as_slice()) } else { None }).collect();
    for op in ops {
        let mark = beside(&op.path, b".wh.");
        let fits = mark.rsplit(|byte| *byte == b'/').next().is_some_and(|name| name.len() <= 255);
        let may_change = fits && !is_taken(&mark, &made) && !linked.contains(&op.path.as_slice());
        if op.kind == Kind::Char(0, 0) && may_change && dice.one_in(2) {
            made.push(file(renamed(&mark), if dice.one_in(4) { "content" } else { "" }));
            continue;
        }
        let mut op = op.clone();
        op.path = renamed(&op.path);
        if let Kind::Link(to) = &mut op.kind {
            *to = renamed(to);
        }
        for (name, value) in &mut op.marks {
            if name == "opaque" && value.is_empty() {
                value.push(b'x');
            }
        }
        let opaque = op.marks.iter().position(|(name, _)| name == "opaque");
        if let Some(at) = opaque {
            let inside =
                if op.path.is_empty() { b".wh..wh..opq".to_vec() } else { [&op.path, &b"/.wh..wh..opq"[..]].concat() };
            match dice.below(4) {
                0 if !is_taken(&inside, &made) => {
                    op.marks.remove(at);
                    made.push(op);
                    made.push(file(inside, ""));
                    continue;
                }
                1 => {
                    let (_, value) = op.marks.remove(at);
                    op = op.xattr("user.overlay.opaque", value);
                }
                2 => {
                    let (_, value) = op.marks.remove(at);
                    op = op.xattr("user.fuseoverlayfs.opaque", value);
                }
                _ => {}
            }
        }
        made.push(op);
    }
    made
}

fn renamed(path: &[u8]) -> Vec<u8> {
    let names = path.split(|byte| *byte == b'/').map(|name| if name == b".wh." { b"wh" } else { name });
    names.collect::<Vec<_>>().join(&b'/')
}

/// The path whose last name has this before it.
fn beside(path: &[u8], prefix: &[u8]) -> Vec<u8> {
    let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    [&path[..at], prefix, &path[at..]].concat()
}
