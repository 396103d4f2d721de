//! A store of the size that a build machine has: 2,000 images of 10,000 layers, and the deepest stack that Docker makes.
//!
//! No times are asserted; what a mount takes is printed. What is asserted is why it takes no longer: mounting opens nothing inside a layer.
//!
//! Everything here needs root.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod support;

use rustix::fs::{CWD, FileType, Mode};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::mount::{KernelOverlay, Mounted, OverlayOptions, Tmpfs, require_privileges};
use support::store::{ImageId, StoreBuilder};
use support::tree::{Options, assert_same, group_links, snapshot};

const IMAGES: usize = 2_000;
const LAYERS_EACH: usize = 5;
/// The most layers that Docker allows an image with overlay2 (128 less those of a container).
const DEEPEST: usize = 125;
/// Part of every name inside a layer, and of no other.
const INSIDE: &str = "inside-a-layer";

fn profile() -> &'static str {
    if cfg!(debug_assertions) { "debug" } else { "release" }
}

/// How much memory a process has, in KiB: now and at most.
fn memory_kib(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        value.trim().trim_end_matches(" kB").parse().unwrap()
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// The data root, and every image with its tag.
fn many_images(root: PathBuf) -> (PathBuf, Vec<(String, ImageId)>) {
    let mut store = StoreBuilder::new(root);
    let mut images = Vec::with_capacity(IMAGES);
    for n in 0..IMAGES {
        let layers = store.chain(LAYERS_EACH);
        for layer in &layers {
            fs::create_dir(layer.diff_dir().join(format!("{INSIDE}-directory"))).unwrap();
        }
        fs::write(layers[LAYERS_EACH - 1].diff_dir().join(format!("{INSIDE}-file")), n.to_string()).unwrap();
        let image = store.image(&layers);
        let tag = format!("image-{n:04}:1");
        store.tag(&tag, &image);
        images.push((tag, image));
    }
    (store.finish(), images)
}

fn names_in(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn two_thousand_images_are_mounted_without_a_look_into_layers() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("scale");
    let tmpfs = Tmpfs::new(&dir.path().join("data"));
    let start = Instant::now();
    let (root, images) = many_images(dir.path().join("data/docker"));
    let point = dir.path().join("mnt");
    eprintln!("{IMAGES} images of {LAYERS_EACH} layers made in {:.1} s", start.elapsed().as_secs_f32());

    let start = Instant::now();
    let mount = Mounted::new(&root, &point);
    let mounted = start.elapsed();
    let tags = names_in(&point.join("by-tag"));
    let listed = start.elapsed();
    let pid = mount.server().unwrap();
    let (now, most) = memory_kib(pid);
    eprintln!(
        "{}: mounted in {} ms, by-tag listed after {} ms; memory {now} KiB, at most {most} KiB; {} descriptors",
        profile(),
        mounted.as_millis(),
        listed.as_millis(),
        fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
    );
    assert_eq!(tags, images.iter().map(|(tag, _)| tag.clone()).collect());
    for (folder, expected) in [
        ("by-id", IMAGES),
        ("merged", IMAGES),
        ("by-chain", 2 * IMAGES * LAYERS_EACH),
        ("by-diff", 2 * IMAGES * LAYERS_EACH),
    ] {
        let start = Instant::now();
        assert_eq!(names_in(&point.join(folder)).len(), expected, "{folder}");
        eprintln!("{}: {folder} listed in {} ms", profile(), start.elapsed().as_millis());
    }
    for n in [0, 1, IMAGES / 2, IMAGES - 1] {
        let (tag, id) = &images[n];
        let file = format!("{INSIDE}-file");
        for place in
            [format!("merged/{tag}"), format!("by-tag/{tag}/layers/{}", LAYERS_EACH - 1), format!("merged/{}", id.0)]
        {
            assert_eq!(fs::read_to_string(point.join(place).join(&file)).unwrap(), n.to_string(), "{tag}");
        }
    }
    eprintln!("memory after all listings {:?} KiB", memory_kib(pid).0);
    drop(mount);

    mounting_opens_nothing_inside(&root, &point, dir.path());
    drop(tmpfs);
}

/// Mounts under strace(1) and looks at every name that was opened or asked for.
fn mounting_opens_nothing_inside(root: &Path, point: &Path, scratch: &Path) {
    let log = scratch.join("trace");
    let tracer = Command::new("strace")
        .args(["-f", "--seccomp-bpf", "-s", "4096", "-e", "trace=%file,getdents64,fstat,pread64"])
        .arg("-o")
        .arg(&log)
        .arg(env!("CARGO_BIN_EXE_docker-fs"))
        .arg(root)
        .arg(point)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut tracer) = tracer else {
        assert!(std::env::var_os("DOCKER_FS_TEST_PRIVILEGED").is_none(), "there is no strace");
        eprintln!("skipped: there is no strace");
        return;
    };
    // It ends with the mount. Until then only the list of mounts is asked, as a look at the mount would be traced too.
    let end = Instant::now() + Duration::from_secs(120);
    let is_mounted = || fs::read_to_string("/proc/self/mountinfo").unwrap().contains(point.to_str().unwrap());
    while !is_mounted() && tracer.try_wait().unwrap().is_none() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    let answers = point.join("status").exists();
    let ended = Command::new(env!("CARGO_BIN_EXE_docker-fs")).arg("unmount").arg(point).status().unwrap();
    let status = tracer.wait().unwrap();
    assert!(answers && ended.success() && status.success(), "it was not mounted: {status}");

    let trace = fs::read_to_string(&log).unwrap();
    let calls: Vec<&str> = trace.lines().filter(|line| line.contains('(')).collect();
    let opened = calls.iter().filter(|call| call.contains(" openat") || call.contains(" open(")).count();
    let layers = calls.iter().filter(|call| call.contains(" openat2(") && call.contains("\"cache-id\"")).count();
    eprintln!("mounting: {} calls, {opened} of them open something, {layers} a layer's cache ID", calls.len());
    let inside: Vec<&&str> = calls.iter().filter(|call| call.contains(INSIDE)).take(5).collect();
    assert!(inside.is_empty(), "mounting looks into layers:\n  {inside:#?}");
    // The trace is whole: it shows what is read of every layer.
    assert!(layers >= IMAGES * LAYERS_EACH, "only {layers} layers in the trace");
}

#[test]
fn the_deepest_stack_is_united_as_the_kernel_does() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("scale");
    let mut store = StoreBuilder::new(dir.path().join("docker"));
    let layers = store.chain(DEEPEST);
    for (n, layer) in layers.iter().enumerate() {
        let diff = layer.diff_dir();
        fs::create_dir_all(diff.join("shared/below")).unwrap();
        fs::write(diff.join("common"), format!("layer {n}")).unwrap();
        fs::write(diff.join(format!("shared/from-{n}")), n.to_string()).unwrap();
        fs::write(diff.join(format!("shared/below/of-{}", n % 7)), n.to_string()).unwrap();
        fs::create_dir(diff.join(format!("own-{n}"))).unwrap();
        if n >= 3 {
            let device = rustix::fs::makedev(0, 0);
            let deleted = diff.join(format!("shared/from-{}", n - 3));
            rustix::fs::mknodat(CWD, deleted, FileType::CharacterDevice, Mode::empty(), device).unwrap();
        }
    }
    let image = store.image(&layers);
    store.tag("deep:1", &image);
    let root = store.finish();
    let top_first: Vec<PathBuf> = layers.iter().rev().map(|layer| layer.diff_dir()).collect();
    let kernel = KernelOverlay::new(&top_first, &OverlayOptions::default()).unwrap();
    let mut expected = snapshot(&kernel.path(), &Options::of_kernel_overlay());
    group_links(&mut expected);

    let mount = Mounted::new(&root, &dir.path().join("mnt"));
    let start = Instant::now();
    let mut found = snapshot(&mount.path().join("merged/deep:1"), &Options::default());
    eprintln!("{}: {} objects of {DEEPEST} layers read in {} ms", profile(), found.len(), start.elapsed().as_millis());
    group_links(&mut found);
    assert_same("the deepest stack", &expected, &found);
    assert_eq!(names_in(&mount.path().join("by-tag/deep:1/layers")).len(), 2 * DEEPEST);
    for n in [0, 1, DEEPEST / 2, DEEPEST - 1] {
        let own = mount.path().join(format!("by-tag/deep:1/layers/{n}/common"));
        assert_eq!(fs::read_to_string(own).unwrap(), format!("layer {n}"));
        let up_to = mount.path().join("merged").join(&layers[n].chain_id).join("common");
        assert_eq!(fs::read_to_string(up_to).unwrap(), format!("layer {n}"));
    }
}
