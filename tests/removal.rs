//! What is served while the store loses layers, runs short of descriptors, or is written to: the right answer or an
//! error, never a wrong answer. Each test is named after what once went wrong.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use support::eventually;
use support::mount::{Mounted, require_privileges};
use support::store::{ContainerRef, LayerRef, StoreBuilder};

/// A store of `mid:1`, with a secret, and `app:1`, which deletes it, upon it.
struct Fixture {
    dir: tempfile::TempDir,
    root: PathBuf,
    mid: LayerRef,
    top: LayerRef,
}

fn whiteout(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

fn fixture() -> Fixture {
    let dir = support::scratch("removal");
    let mut store = StoreBuilder::new(dir.path().join("docker"));
    let base = store.layer(None);
    fs::create_dir_all(base.diff_dir().join("etc")).unwrap();
    fs::write(base.diff_dir().join("etc/version"), "old").unwrap();
    let mid = store.layer(Some(&base));
    fs::create_dir_all(mid.diff_dir().join("opt/old")).unwrap();
    fs::write(mid.diff_dir().join("opt/secret"), "secret").unwrap();
    fs::write(mid.diff_dir().join("opt/old/x"), "x").unwrap();
    let top = store.layer(Some(&mid));
    fs::create_dir_all(top.diff_dir().join("opt/old")).unwrap();
    rustix::fs::setxattr(top.diff_dir().join("opt/old"), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    whiteout(&top.diff_dir().join("opt/secret"));
    fs::create_dir_all(top.diff_dir().join("etc")).unwrap();
    fs::write(top.diff_dir().join("etc/version"), "new").unwrap();
    let below = store.image(&[base.clone(), mid.clone()]);
    store.tag("mid:1", &below);
    let app = store.image(&[base, mid.clone(), top.clone()]);
    store.tag("app:1", &app);
    Fixture { root: store.finish(), dir, mid, top }
}

fn open_dir(path: &Path) -> OwnedFd {
    File::options().read(true).custom_flags(OFlags::DIRECTORY.bits().cast_signed()).open(path).unwrap().into()
}

fn errno_of<T: std::fmt::Debug>(answer: rustix::io::Result<T>) -> Errno {
    answer.unwrap_err()
}

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn deleted_files_do_not_come_back_while_the_layer_that_deletes_them_is_removed() {
    if !require_privileges("a mount") {
        return;
    }
    let fixture = fixture();
    let mount = Mounted::new(&fixture.root, &fixture.dir.path().join("mnt"));
    let held = open_dir(&mount.path().join("merged/app:1/opt"));
    // As the engine does it: off the list first, then file by file.
    let listed = &fixture.top.layerdb;
    fs::rename(listed, listed.with_file_name(format!("{}-removing", listed.file_name().unwrap().to_string_lossy())))
        .unwrap();
    fs::remove_file(fixture.top.diff_dir().join("opt/secret")).unwrap();
    fs::remove_dir(fixture.top.diff_dir().join("opt/old")).unwrap();
    let open = |name: &str| rustix::fs::openat(&held, name, OFlags::RDONLY, Mode::empty());
    assert_eq!(errno_of(open("secret")), Errno::STALE);
    assert_eq!(errno_of(open("old/x")), Errno::STALE);
    assert!(fs::read(mount.path().join("merged/app:1/opt/secret")).is_err());
    // The image below is whole.
    assert_eq!(fs::read(mount.path().join("merged/mid:1/opt/secret")).unwrap(), b"secret");
}

#[test]
fn a_layer_that_is_gone_is_an_error_and_not_an_empty_directory() {
    if !require_privileges("a mount") {
        return;
    }
    let fixture = fixture();
    let mount = Mounted::new(&fixture.root, &fixture.dir.path().join("mnt"));
    let app = mount.path().join("merged/app:1");
    let held = open_dir(&app);
    fs::remove_dir_all(fixture.mid.diff_dir().parent().unwrap()).unwrap();
    assert!(fs::read(app.join("opt/secret")).is_err());
    assert!(fs::read_dir(&app).and_then(Iterator::collect::<Result<Vec<_>, _>>).is_err());
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let listed = rustix::fs::RawDir::new(&held, &mut buffer).next().unwrap().map(|entry| entry.ino());
    assert_eq!(errno_of(listed), Errno::STALE);
}

#[test]
fn tags_are_never_missing_while_references_are_rewritten() {
    if !require_privileges("a mount") {
        return;
    }
    let fixture = fixture();
    let mount = Mounted::new(&fixture.root, &fixture.dir.path().join("mnt"));
    let file = fixture.root.join("image/overlay2/repositories.json");
    let content = fs::read(&file).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..2_000 {
                let new = file.with_file_name(format!(".tmp-repositories.json{round}"));
                fs::write(&new, &content).unwrap();
                fs::rename(&new, &file).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        let expected: BTreeSet<_> = ["app:1", "mid:1"].map(str::to_owned).into();
        while !done.load(Ordering::Acquire) {
            assert_eq!(names(&mount.path().join("by-tag")), expected);
            assert_eq!(names(&mount.path().join("merged")), expected);
        }
    });
}

#[test]
fn containers_made_after_the_mount_are_shown() {
    if !require_privileges("a mount") {
        return;
    }
    let fixture = fixture();
    let (folder, hidden) = (fixture.root.join("containers"), fixture.dir.path().join("later"));
    let id = "c".repeat(64);
    fs::create_dir_all(hidden.join(&id)).unwrap();
    fs::write(hidden.join(&id).join("config.v2.json"), r#"{"Name":"/late","Driver":"overlay2"}"#).unwrap();
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    let mount = Mounted::new(&fixture.root, &fixture.dir.path().join("mnt"));
    assert_eq!(names(&mount.path().join("by-container")), BTreeSet::new());
    fs::rename(&hidden, &folder).unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(2);
    while names(&mount.path().join("by-container")).is_empty() && std::time::Instant::now() < end {
        std::thread::yield_now();
    }
    assert_eq!(names(&mount.path().join("by-container")), ["late".to_owned()].into());
}

#[test]
fn one_bad_entry_of_the_references_spoils_no_other() {
    if !require_privileges("a mount") {
        return;
    }
    let fixture = fixture();
    let file = fixture.root.join("image/overlay2/repositories.json");
    let mut content = fs::read(&file).unwrap();
    assert_eq!(content.split_off(content.len() - 2), b"}}");
    content.extend_from_slice(b",\"none\":null,\"b\xffd\":{\"b\xffd:1\":\"sha256:1\"}}}");
    fs::write(&file, content).unwrap();
    let mount = Mounted::with(&fixture.root, &fixture.dir.path().join("mnt"), &[], 4);
    assert_eq!(names(&mount.path().join("by-tag")), ["app:1", "mid:1"].map(str::to_owned).into());
}

/// A store with the container `web`, whose own layer this is.
fn with_container() -> (tempfile::TempDir, PathBuf, ContainerRef) {
    let dir = support::scratch("removal");
    let mut store = StoreBuilder::new(dir.path().join("docker"));
    let image = store.image(&[]);
    store.tag("t:1", &image);
    let container = store.container("web", &image, None);
    (dir, store.finish(), container)
}

/// Replaces a file by another, so that no reader of the store gets half of it.
fn replace(path: &Path, content: &str) {
    let new = path.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::rename(&new, path).unwrap();
}

/// A file in pieces, with time to change in between.
fn read_slowly(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut content = Vec::new();
    let mut piece = [0; 64];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(content),
            count => content.extend_from_slice(&piece[..count]),
        }
    }
}

#[test]
fn texts_are_read_whole_while_what_they_tell_changes() {
    if !require_privileges("a mount") {
        return;
    }
    let (dir, root, container) = with_container();
    let references = root.join("image/overlay2/repositories.json");
    let config = root.join("containers").join(&container.id).join("config.v2.json");
    let (few, short) = (fs::read_to_string(&references).unwrap(), fs::read_to_string(&config).unwrap());
    // Longer, but of the same meaning.
    let many = few.replace('{', &format!("{{{}", " ".repeat(500)));
    let long = short.replace('{', &format!("{{{}", "\n".repeat(700)));
    // Its damage is told in the status.
    let stray = root.join("image/overlay2/layerdb/sha256").join("d".repeat(64));
    let mount = Mounted::new(&root, &dir.path().join("mnt"));
    let (is_over, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for text in ["status", "by-container/web/config.json"] {
            let path = mount.path().join(text);
            let (is_over, reads) = (&is_over, &reads);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let content = read_slowly(&path).unwrap_or_else(|error| panic!("{text}: {error}"));
                    let parsed = serde_json::from_slice::<serde_json::Value>(&content);
                    assert!(parsed.is_ok(), "{text} is torn: {}", String::from_utf8_lossy(&content));
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            for (references_now, config_now) in [(&many, &long), (&few, &short)] {
                replace(&references, references_now);
                replace(&config, config_now);
                fs::create_dir(&stray).unwrap();
                std::thread::sleep(Duration::from_millis(2));
                fs::remove_dir(&stray).unwrap();
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(reads.into_inner() > 20, "nothing was read");
}

#[test]
fn a_descriptor_never_reads_a_file_that_got_the_same_inode() {
    if !require_privileges("a mount") {
        return;
    }
    let (dir, root, container) = with_container();
    let stored = container.upper_dir().join("file");
    fs::write(&stored, "old").unwrap();
    let inode = fs::metadata(&stored).unwrap().ino();
    let mount = Mounted::new(&root, &dir.path().join("mnt"));
    let place = mount.path().join("by-container/web");
    let opened = ["changes", "merged"].map(|tree| File::open(place.join(tree).join("file")).unwrap());
    let is_reused = (0..1_000).any(|_| {
        fs::remove_file(&stored).unwrap();
        fs::write(&stored, "of somebody else").unwrap();
        fs::metadata(&stored).unwrap().ino() == inode
    });
    // With a handle the file itself is held, and its number with it; so do some file systems anyway.
    for file in &opened {
        let mut content = [0; 100];
        match file.read_at(&mut content, 0) {
            Ok(count) => assert_eq!(&content[..count], b"old", "the inode was reused: {is_reused}"),
            Err(error) => assert_eq!(Errno::from_io_error(&error), Some(Errno::STALE)),
        }
        match file.metadata() {
            Ok(meta) => assert_eq!(meta.len(), 3, "the inode was reused: {is_reused}"),
            Err(error) => assert_eq!(Errno::from_io_error(&error), Some(Errno::STALE)),
        }
    }
    assert_eq!(fs::read_to_string(place.join("merged/file")).unwrap(), "of somebody else");
}

#[test]
fn a_file_that_nobody_reads_is_closed() {
    if !require_privileges("a mount") {
        return;
    }
    let (dir, root, container) = with_container();
    let stored = container.upper_dir().join("file");
    fs::write(&stored, "content").unwrap();
    let mount = Mounted::new(&root, &dir.path().join("mnt"));
    fs::read(mount.path().join("by-container/web/changes/file")).unwrap();
    fs::remove_file(&stored).unwrap();
    let descriptors = format!("/proc/{}/fd", mount.server().unwrap());
    let is_open = || {
        let targets =
            fs::read_dir(&descriptors).unwrap().flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.map(|target| target.to_string_lossy().into_owned()).any(|target| target.ends_with("file (deleted)"))
    };
    assert!(eventually(|| !is_open()), "the space of a deleted file is not freed");
}

/// Programs such as tar set a directory's time back after they changed it, so that nothing tells the change.
#[test]
fn a_listing_that_takes_long_does_not_outlive_a_change_that_leaves_no_time() {
    if !require_privileges("a mount") {
        return;
    }
    let (dir, root, container) = with_container();
    let stored = container.upper_dir().join("many");
    fs::create_dir(&stored).unwrap();
    for number in 0..30_000 {
        File::create(stored.join(format!("name-{number}"))).unwrap();
    }
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let set_back = || File::open(&stored).unwrap().set_modified(long_ago).unwrap();
    set_back();
    let mount = Mounted::new(&root, &dir.path().join("mnt"));
    let shown = mount.path().join("by-container/web/merged/many");
    assert_eq!(names(&shown).len(), 30_000);
    File::create(stored.join("added")).unwrap();
    fs::remove_file(stored.join("name-7")).unwrap();
    set_back();
    let is_seen = || {
        let names = names(&shown);
        names.contains("added") && !names.contains("name-7")
    };
    let is_seen_soon = (0..8).any(|_| {
        std::thread::sleep(Duration::from_millis(200));
        is_seen()
    });
    assert!(is_seen_soon, "the listing is that from before the change");
}
