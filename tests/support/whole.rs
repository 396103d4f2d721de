//! Writes a classic Docker data root of a driver whose layers are whole trees: a [`StoreBuilder`]'s, with the directories
//! where that driver has them.
//!
//! ```text
//! vfs/dir/<id>/   btrfs/subvolumes/<id>/   overlay/<id>/root/   overlay/<container's>/{upper,lower-id,work,merged}
//! zfs/graph/<id>/ and devicemapper/mnt/<id>/: empty; what would be mounted there is beside the data root, in trees/<id>/
//! devicemapper/metadata/<id>
//! ```
//!
//! The lists of the names that the layers' tars had (tar-split) have all that the trees hold by then. Where they are empty, whoever makes the store fills them, each with all that the layer and those below it have.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::store::{ContainerRef, LayerRef, StoreBuilder};
use super::tar_split;

const TAR_SPLIT: &str = "tar-split.json.gz";

/// The names below a directory, as a tar has them.
fn add_names(dir: &Path, path: &[u8], names: &mut Vec<Vec<u8>>) {
    for entry in fs::read_dir(dir).expect("list a directory") {
        let entry = entry.expect("an entry");
        let name = [path, entry.file_name().as_bytes()].concat();
        if entry.file_type().expect("a type").is_dir() {
            let name = [&name[..], b"/"].concat();
            names.push(name.clone());
            add_names(&entry.path(), &name, names);
        } else {
            names.push(name);
        }
    }
}

/// A data root of such a driver.
#[derive(Debug)]
pub struct WholeStore {
    pub root: PathBuf,
    driver: &'static str,
}

impl WholeStore {
    /// Makes the store of a driver of what was built.
    pub fn of(store: StoreBuilder, driver: &'static str) -> Self {
        let root = store.finish();
        fs::rename(root.join("image/overlay2"), root.join("image").join(driver)).expect("rename image/overlay2");
        let made = Self { root, driver };
        fs::create_dir_all(made.place("x").parent().expect("a folder")).expect("make the driver's folder");
        if driver == "devicemapper" {
            fs::create_dir_all(made.root.join("devicemapper/metadata")).expect("make metadata");
        }
        for entry in fs::read_dir(made.root.join("overlay2")).expect("list overlay2") {
            let entry = entry.expect("an entry");
            let id = entry.file_name().into_string().expect("an ID");
            if id != "l" {
                made.move_tree(&id, &entry.path().join("diff"));
            }
        }
        fs::remove_dir_all(made.root.join("overlay2")).expect("remove overlay2");
        made.make_containers();
        made.make_lists();
        made
    }

    fn move_tree(&self, id: &str, diff: &Path) {
        let to = match self.driver {
            "zfs" | "devicemapper" => {
                fs::create_dir_all(self.place(id)).expect("make a mount point");
                self.tree(id)
            }
            _ => self.tree(id),
        };
        fs::create_dir_all(to.parent().expect("a parent")).expect("make a layer's folder");
        fs::rename(diff, to).expect("move a layer's directory");
        if self.driver == "devicemapper" {
            let number = id.bytes().fold(1_u32, |sum, byte| sum + u32::from(byte));
            let device =
                format!(r#"{{"device_id":{number},"size":10737418240,"transaction_id":9,"initialized":false}}"#);
            fs::write(self.root.join("devicemapper/metadata").join(id), device).expect("write metadata");
        }
    }

    fn make_lists(&self) {
        for entry in fs::read_dir(self.layerdb()).expect("list the layers") {
            let entry = entry.expect("an entry").path();
            let tree = self.tree(&fs::read_to_string(entry.join("cache-id")).expect("read a cache ID"));
            let mut names = Vec::new();
            if tree.is_dir() {
                add_names(&tree, b"", &mut names);
            }
            fs::write(entry.join(TAR_SPLIT), tar_split::of(&names)).expect("write a list");
        }
    }

    fn layerdb(&self) -> PathBuf {
        self.root.join("image").join(self.driver).join("layerdb/sha256")
    }

    /// The file with the names that a layer's tar had.
    pub fn list_of(&self, layer: &LayerRef) -> PathBuf {
        self.layerdb().join(&layer.chain_id).join(TAR_SPLIT)
    }

    /// Has a layer's tar have had these names.
    pub fn list(&self, layer: &LayerRef, names: &[&str]) {
        fs::write(self.list_of(layer), tar_split::of(names)).expect("write a list");
    }

    fn make_containers(&self) {
        let image = self.root.join("image").join(self.driver);
        for entry in fs::read_dir(image.join("layerdb/mounts")).expect("list mounts") {
            let entry = entry.expect("an entry").path();
            let read = |file: &str| fs::read_to_string(entry.join(file));
            let config = self.root.join("containers").join(entry.file_name().expect("an ID")).join("config.v2.json");
            let text = fs::read_to_string(&config).expect("read a config");
            let named = text.replace("\"Driver\":\"overlay2\"", &format!("\"Driver\":\"{}\"", self.driver));
            assert_ne!(named, text, "the config names its driver");
            fs::write(&config, named).expect("write a config");
            if self.driver == "overlay"
                && let Ok(parent) = read("parent")
            {
                let top = image.join("layerdb").join(parent.replace(':', "/")).join("cache-id");
                let top = fs::read_to_string(top).expect("read a cache ID");
                for id in ["mount-id", "init-id"].map(|file| read(file).expect("read an ID")) {
                    let place = self.root.join("overlay").join(id);
                    fs::rename(place.join("root"), place.join("upper")).expect("rename a container's own layer");
                    fs::write(place.join("lower-id"), &top).expect("write lower-id");
                }
            }
        }
    }

    /// A layer's directory in the driver's folder.
    pub fn place(&self, id: &str) -> PathBuf {
        let folder = match self.driver {
            "vfs" => "dir",
            "btrfs" => "subvolumes",
            "zfs" => "graph",
            "devicemapper" => "mnt",
            _ => return self.root.join("overlay").join(id),
        };
        self.root.join(self.driver).join(folder).join(id)
    }

    /// Where a layer's tree is, or what would be mounted for it has it.
    pub fn tree(&self, id: &str) -> PathBuf {
        let beside = self.root.parent().expect("a parent").join("trees").join(id);
        match self.driver {
            "zfs" => beside,
            "devicemapper" => beside.join("rootfs"),
            "overlay" => self.place(id).join("root"),
            _ => self.place(id),
        }
    }

    pub fn tree_of(&self, layer: &LayerRef) -> PathBuf {
        self.tree(&layer.cache_id)
    }

    /// The tree of a container; of overlay, its own layer.
    pub fn tree_of_container(&self, container: &ContainerRef) -> PathBuf {
        match self.driver {
            "overlay" => self.place(&container.mount_id).join("upper"),
            _ => self.tree(&container.mount_id),
        }
    }

    /// Mounts what is beside the data root for a layer, where its driver would.
    pub fn activate(&self, id: &str) -> Active {
        let beside = self.root.parent().expect("a parent").join("trees").join(id);
        let place = self.place(id);
        rustix::mount::mount_bind(&beside, &place).expect("mount a layer");
        Active(place)
    }
}

/// A mount that goes away with the value.
#[derive(Debug)]
pub struct Active(PathBuf);

impl Drop for Active {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
