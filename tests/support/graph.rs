//! Writes a data root of Docker 1.9, as its sources say that the daemon leaves it on disk.
//!
//! ```text
//! <root>/repositories-<driver>
//! <root>/graph/<id>/{json,layersize,parent}
//! <root>/aufs/{diff,layers,mnt}/<id>
//! <root>/overlay/<id>/root, of containers upper, lower-id
//! <root>/vfs/dir/<id>, btrfs/subvolumes/<id>, devicemapper/mnt/<id>
//! <root>/containers/<id>/config.json
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::store::sha256_hex;

/// A data root that grows.
#[derive(Debug)]
pub struct GraphBuilder {
    root: PathBuf,
    driver: &'static str,
    repositories: BTreeMap<String, Map<String, Value>>,
    drawn: u32,
}

impl GraphBuilder {
    /// One with the aufs driver.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self::of(root, "aufs")
    }

    /// One with this driver, also beside that of another.
    pub fn of(root: impl Into<PathBuf>, driver: &'static str) -> Self {
        let builder = Self { root: root.into(), driver, repositories: BTreeMap::new(), drawn: 0 };
        for dir in ["graph/_tmp", "containers", "init", "tmp", "volumes"] {
            fs::create_dir_all(builder.root.join(dir)).expect("make a folder");
        }
        let folders: &[&str] = match driver {
            "aufs" => &["diff", "layers", "mnt"],
            "overlay" => &[""],
            "vfs" => &["dir"],
            "btrfs" => &["subvolumes"],
            "devicemapper" => &["mnt", "metadata"],
            _ => panic!("no driver {driver}"),
        };
        for folder in folders {
            fs::create_dir_all(builder.root.join(driver).join(folder)).expect("make a folder");
        }
        builder.write_repositories();
        builder
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// 64 digits that were not drawn before.
    pub fn draw(&mut self) -> String {
        self.drawn += 1;
        sha256_hex(format!("image {}", self.drawn))
    }

    /// `graph/<id>`.
    pub fn entry(&self, id: &str) -> PathBuf {
        self.root.join("graph").join(id)
    }

    /// The directory of a layer's files.
    pub fn diff(&self, id: &str) -> PathBuf {
        let driver = self.root.join(self.driver);
        match self.driver {
            "aufs" => driver.join("diff").join(id),
            "overlay" if driver.join(id).join("upper").exists() => driver.join(id).join("upper"),
            "overlay" => driver.join(id).join("root"),
            "vfs" => driver.join("dir").join(id),
            "btrfs" => driver.join("subvolumes").join(id),
            _ => driver.join("mnt").join(id),
        }
    }

    /// Has what is drawn from now on differ from what another draws.
    pub fn pass_over(&mut self, draws: u32) {
        self.drawn += draws;
    }

    /// Adds an image with an empty layer upon another.
    pub fn image(&mut self, parent: Option<&str>) -> String {
        let id = self.draw();
        let mut config = json!({
            "id": id, "created": "2015-06-07T08:09:10.111Z", "docker_version": "1.9.1", "Size": 12,
            "container_config": {"Cmd": ["/bin/sh", "-c", format!("#(nop) STEP {}", self.drawn)]},
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]}, "architecture": "amd64", "os": "linux",
        });
        if let Some(parent) = parent {
            config["parent"] = json!(parent);
        }
        self.image_of(&id, &config.to_string());
        self.layer(&id, parent);
        id
    }

    /// Adds an image's entry with this config, as the engine does: made aside, and renamed.
    pub fn image_of(&self, id: &str, config: &str) {
        let aside = self.root.join("graph/_tmp/1");
        fs::create_dir_all(&aside).expect("make an entry");
        fs::write(aside.join("json"), config).expect("write");
        fs::write(aside.join("layersize"), "12").expect("write");
        fs::rename(&aside, self.entry(id)).expect("rename the entry");
    }

    /// Adds a layer's directories; of whole trees with all that the parent's holds by now.
    pub fn layer(&self, id: &str, parent: Option<&str>) {
        if self.driver != "aufs" {
            fs::create_dir_all(self.diff(id)).expect("make a layer");
            if let Some(parent) = parent {
                copy(&self.diff(parent), &self.diff(id));
            }
            return;
        }
        for dir in ["diff", "mnt"] {
            fs::create_dir_all(self.root.join("aufs").join(dir).join(id)).expect("make a layer");
        }
        let ancestors = parent.map(|parent| {
            let above = fs::read_to_string(self.root.join("aufs/layers").join(parent)).unwrap_or_default();
            format!("{parent}\n{above}")
        });
        fs::write(self.root.join("aufs/layers").join(id), ancestors.unwrap_or_default()).expect("write");
    }

    /// Names an image, and writes all names.
    pub fn tag(&mut self, repository: &str, tag: &str, id: &str) {
        self.repositories.entry(repository.to_owned()).or_default().insert(tag.to_owned(), json!(id));
        self.write_repositories();
    }

    fn write_repositories(&self) {
        let text = json!({"Repositories": self.repositories}).to_string();
        fs::write(self.root.join(format!("repositories-{}", self.driver)), text).expect("write the names");
    }

    /// Adds a stopped container; answers its ID.
    pub fn container(&mut self, name: &str, image: &str) -> String {
        let id = self.draw();
        if self.driver == "overlay" {
            for id in [format!("{id}-init"), id.clone()] {
                let layer = self.root.join("overlay").join(id);
                fs::create_dir_all(layer.join("upper")).expect("make a layer");
                fs::write(layer.join("lower-id"), image).expect("write");
            }
        } else {
            self.layer(&format!("{id}-init"), Some(image));
            self.layer(&id, Some(&format!("{id}-init")));
        }
        let dir = self.root.join("containers").join(&id);
        fs::create_dir_all(&dir).expect("make a container");
        let config = json!({"ID": id, "Name": format!("/{name}"), "Image": image, "Driver": self.driver,
            "State": {"Running": false}, "Config": {"Image": "app:1"}});
        fs::write(dir.join("config.json"), config.to_string()).expect("write");
        id
    }
}

/// Copies directories and regular files, with hard links as the overlay driver makes them of the files.
fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("list") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            fs::create_dir_all(&to).expect("make a directory");
            copy(&entry.path(), &to);
        } else {
            fs::hard_link(entry.path(), to).expect("link a file");
        }
    }
}
