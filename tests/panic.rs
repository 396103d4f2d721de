//! A request whose handler panics answers `EIO`, and the mount goes on.
//!
//! The store here is the test's own: its one layer panics when it is asked for a name that says so.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use docker_fs::digest::{CacheId, ChainId, ContainerId, DiffId, ImageId};
use docker_fs::error::{Error, Result};
use docker_fs::layer::mem::MemTree;
use docker_fs::layer::whiteout::Prefix;
use docker_fs::layer::{Layer, LayerId, LayerTree, ReadAt, Seek, Whiteouts};
use docker_fs::meta::{Kind, Meta, Timestamp};
use docker_fs::mount::{self, Opens};
use docker_fs::name::{Name, TreePath};
use docker_fs::reference::Reference;
use docker_fs::root::Space;
use docker_fs::store::{Catalogue, Generation, Image, ImageLayer, LayerRecord, Stamp, Standing, Store};
use docker_fs::view::{Options, View};

/// A tree in memory; whatever is asked about a path that contains the operation's name panics.
#[derive(Debug)]
struct Touchy(MemTree);

fn touch(path: &TreePath, operation: &str) {
    assert!(!String::from_utf8_lossy(path.as_bytes()).contains(operation), "a panic on purpose: {operation}");
}

#[derive(Debug)]
struct TouchyFile;

impl ReadAt for TouchyFile {
    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
        panic!("a panic on purpose: read");
    }

    fn seek(&self, _: Seek, _: u64) -> io::Result<u64> {
        panic!("a panic on purpose: seek");
    }
}

impl LayerTree for Touchy {
    fn stat(&self, path: &TreePath) -> Result<Option<Meta>> {
        touch(path, "stat");
        self.0.stat(path)
    }

    fn list(&self, dir: &TreePath, wanted: &dyn Fn(&Name) -> bool) -> Result<Vec<(Name, Meta)>> {
        touch(dir, "list");
        self.0.list(dir, wanted)
    }

    fn open(&self, file: &TreePath) -> Result<Box<dyn ReadAt>> {
        touch(file, "open");
        if file.as_bytes() == b"read" { Ok(Box::new(TouchyFile)) } else { self.0.open(file) }
    }

    fn read_link(&self, link: &TreePath) -> Result<Vec<u8>> {
        touch(link, "link");
        self.0.read_link(link)
    }

    fn xattr(&self, path: &TreePath, name: &[u8]) -> Result<Option<Vec<u8>>> {
        if name == b"user.attribute" {
            touch(path, "xattr");
        }
        self.0.xattr(path, name)
    }

    fn xattr_names(&self, path: &TreePath) -> Result<Vec<Vec<u8>>> {
        touch(path, "xattr");
        self.0.xattr_names(path)
    }

    fn space(&self) -> Result<Space> {
        self.0.space()
    }
}

const FILES: [&str; 6] = ["fine", "open", "read", "stat", "xattr", "another"];

#[derive(Debug)]
struct OneImage;

impl Store for OneImage {
    fn used(&self) -> Result<Timestamp> {
        Ok(Timestamp::default())
    }

    fn kind(&self) -> &'static str {
        "test"
    }

    fn driver(&self) -> &'static str {
        "memory"
    }

    fn generation(&self) -> Result<Generation> {
        Ok(Generation::of(Vec::new()))
    }

    fn catalogue(&self, _: Option<&Catalogue>) -> Result<Catalogue> {
        let id = ImageId::of_config(b"{}");
        let diff = DiffId::from_hex(&"d".repeat(64)).unwrap();
        let chain = ChainId::of(None, &diff);
        let image = Image {
            id,
            standing: Standing::Referenced,
            layers: vec![ImageLayer { diff: Some(diff), chain }],
            history: Vec::new(),
            config_bytes: 2,
            manifest: None,
            index: None,
            stored: Timestamp::default(),
            has_config: true,
            is_config_kept: true,
            damage: Vec::new(),
            remarks: Vec::new(),
            stamp: Stamp::default(),
        };
        let record = LayerRecord {
            chain,
            diff: Some(diff),
            parent: None,
            cache_id: "only".parse().ok(),
            directory: None,
            root: None,
            size_bytes: OnceLock::new(),
            damage: None,
            stamp: Stamp::default(),
        };
        Ok(Catalogue {
            images: BTreeMap::from([(id, Arc::new(image))]),
            references: BTreeMap::from([(Reference::parse("app:1").unwrap(), id)]),
            layers: BTreeMap::from([(chain, Arc::new(record))]),
            ..Catalogue::default()
        })
    }

    fn size_bytes(&self, _: &LayerRecord) -> Result<Option<u64>> {
        Ok(None)
    }

    fn config(&self, _: &ImageId) -> Result<Vec<u8>> {
        Ok(b"{}".to_vec())
    }

    fn container_config(&self, id: &ContainerId) -> Result<Vec<u8>> {
        Err(Error::NotFound { what: id.to_string() })
    }

    fn layer(&self, id: &CacheId) -> Result<Layer> {
        let mut tree = MemTree::default();
        for name in FILES {
            tree.put(TreePath::new(name.as_bytes()).unwrap(), Kind::Regular, name.as_bytes());
        }
        tree.put(TreePath::new(b"list").unwrap(), Kind::Directory, b"");
        tree.put(TreePath::new(b"link").unwrap(), Kind::Symlink, b"fine");
        let tree = Box::new(Touchy(tree));
        Ok(Layer::new(LayerId::of(id.as_str()), tree, Whiteouts::Overlay(Prefix::Trusted)))
    }

    fn is_labelled(&self) -> bool {
        false
    }

    fn layers_generation(&self) -> Result<Generation> {
        self.generation()
    }

    fn stands(&self, _: &LayerRecord) -> Result<bool> {
        Ok(true)
    }

    fn space(&self) -> Result<Space> {
        MemTree::default().space()
    }
}

fn errno<T: std::fmt::Debug>(answer: io::Result<T>) -> Option<i32> {
    answer.unwrap_err().raw_os_error()
}

#[test]
fn a_panic_answers_eio_and_the_mount_goes_on() {
    if support::mount::require_privileges("mounting") {
        for opens in [Opens::Once, Opens::Passthrough, Opens::Each] {
            survives_panics(opens);
        }
    }
}

fn survives_panics(opens: Opens) {
    const EIO: Option<i32> = Some(5);
    let dir = tempfile::tempdir().unwrap();
    let view = View::new([Box::new(OneImage) as Box<dyn Store>], &Options::default()).unwrap();
    let options = mount::Options {
        mount_point: dir.path().to_owned(),
        fs_name: "test".to_owned(),
        allow_other: false,
        noexec: false,
        opens,
        threads: 2,
    };
    let mut mounted = mount::mount(view, &options).unwrap();
    let mut unmounter = mounted.unmounter();
    let server = std::thread::spawn(move || mounted.serve());
    let checked = std::panic::catch_unwind(|| {
        let image: PathBuf = dir.path().join("merged/app:1");
        // More panics than there are threads: each thread must survive several.
        for _ in 0..10 {
            assert_eq!(errno(fs::metadata(image.join("stat"))), EIO);
            assert_eq!(errno(fs::read(image.join("open"))), EIO);
            assert_eq!(errno(fs::read(image.join("read"))), EIO);
            assert_eq!(errno(fs::read_link(image.join("link"))), EIO);
            assert_eq!(errno(fs::read_dir(image.join("list")).unwrap().next().unwrap()), EIO);
            let value = rustix::fs::getxattr(image.join("xattr"), "user.attribute", &mut [0_u8; 16][..]);
            assert_eq!(value.unwrap_err(), rustix::io::Errno::IO);
            assert_eq!(fs::read(image.join("fine")).unwrap(), b"fine");
            assert_eq!(fs::read(image.join("another")).unwrap(), b"another");
        }
    });
    unmounter.unmount().unwrap();
    server.join().unwrap().unwrap();
    checked.unwrap();
}
