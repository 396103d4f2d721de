//! docker-fs against kernel overlayfs: the same layer directories, united by both, must look the same.
//!
//! Stacks of layers come from `support::stack`, by hand (each a test named after what it shows, with the tree that is expected) and at
//! random. They are written into Docker data roots, on the build's disk and on tmpfs in turn; docker-fs mounts each root once, the kernel
//! each stack. Compared are names, types, modes, owners, device numbers, sizes, times to the nanosecond, link targets, xattrs, link counts,
//! hard links and content.
//!
//! Where docker-fs differs on purpose, the comparison says so, in one place each:
//! * `Options::of_kernel_overlay`: names that the kernel lists and then denies are not listed on our side. These are whiteouts in directories
//!   that only one layer has, and directories with a malformed redirect. A lookup gives ENOENT or the kernel's error.
//! * `leave_out_without_data`: a file of attributes whose data is missing is shown, and answers EIO when it is opened or read, unless it has
//!   no bytes; the kernel answers EIO to the lookup.
//! * `settle_forged_sizes`: where a file of attributes tells another size than its data has, stat follows the attributes on both sides; what
//!   read gives beyond or below that size may differ.
//! * `leave_out_unlisted`: in a directory marked as holding xattr whiteouts, one name that cannot be looked up makes the kernel's whole listing
//!   fail; ours goes on.
//! * `look_up_anew`: by redirects one real directory can have two places in a union, but the kernel has one inode for it, and thus shows it as
//!   it was at the place that was looked at first, or says ESTALE or ELOOP at the second. Where the two sides differ in a stack with redirects,
//!   a fresh mount that looks at nothing else tells what the kernel shows there. What even that one denies so, since a directory and one
//!   above it are the same inode, is left out.
//! * Directories' sizes, blocks and link counts are not compared, as file systems choose them freely.
//!
//! `DOCKER_FS_STACKS` sets the number of random stacks, `DOCKER_FS_SEED` the first seed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use rustix::fs::FileType;
use rustix::io::Errno;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use support::mount::{KernelOverlay, Mounted, OverlayOptions, Tmpfs, require_privileges};
use support::stack::{
    Marks, Stack, block_device, char_device, dir, file, hole, link, random, shrink, stack, symlink, whiteout,
    xattr_whiteout,
};
use support::store::StoreBuilder;
use support::tree::{Content, Options, Tree, Walk, diff, diff_by_path, group_links, lookup, walk};
use tempfile::TempDir;

/// Stacks in one data root, thus in one mount.
const STACKS_PER_ROOT: u64 = 50;

/// What a stack is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// All layers are an image's.
    Image,
    /// The topmost is a container's writable layer, the second its init layer, the others are its image's.
    Container,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backing {
    Disk,
    Tmpfs,
}

/// A stack on disk.
struct Stored {
    stack: Stack,
    /// Top first.
    directories: Vec<PathBuf>,
    /// The work directory of a container.
    work: Option<PathBuf>,
    /// Where the mount shows it, from the mount's root.
    shown: String,
}

/// A data root with several stacks. What goes first stands first: the mounts before the directory.
struct Bench {
    _tmpfs: Option<Tmpfs>,
    dir: TempDir,
    stored: Vec<Stored>,
    /// Whether it is a rootless engine's, whose marks are in `user.overlay.*`.
    is_rootless: bool,
}

impl Bench {
    fn new(stacks: Vec<Stack>, shape: Shape, backing: Backing) -> Self {
        let dir = support::scratch("kernel-overlay");
        let data = dir.path().join("data");
        let tmpfs = (backing == Backing::Tmpfs).then(|| Tmpfs::new(&data));
        let mut store = StoreBuilder::new(data.join("docker"));
        let is_rootless = stacks.iter().any(|stack| stack.marks == Marks::User);
        let stored =
            stacks.into_iter().enumerate().map(|(n, stack)| store_stack(&mut store, n, stack, shape)).collect();
        if is_rootless {
            std::os::unix::fs::chown(store.overlay2(), Some(1000), Some(1000)).expect("chown overlay2");
        }
        store.finish();
        Self { _tmpfs: tmpfs, dir, stored, is_rootless }
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("data/docker")
    }

    /// Each stack's differences. The kernel goes first: it writes marks of its own into a container's writable layer.
    fn differences(&self) -> Vec<Vec<String>> {
        let expected: Vec<Result<Walk, String>> = self.stored.iter().map(kernel_tree).collect();
        // There are trusted attributes in it as well, which no rootless engine can have made: so it must be said.
        let options: &[&str] = if self.is_rootless { &["-o", "xattrs=user"] } else { &[] };
        let mounted = Mounted::with(&self.source(), &self.dir.path().join("mnt"), options, 0);
        let pairs = self.stored.iter().zip(expected);
        pairs
            .map(|(stored, expected)| match expected {
                Ok(expected) => differences(stored, expected, &mounted.path().join(&stored.shown)),
                Err(error) => vec![error],
            })
            .collect()
    }
}

fn store_stack(store: &mut StoreBuilder, n: usize, mut stack: Stack, shape: Shape) -> Stored {
    let mut directories = Vec::new();
    let (mut work, mut shown) = (None, format!("merged/stack:{n}"));
    if shape == Shape::Container {
        while stack.layers.len() < 3 {
            stack.layers.push(Vec::new());
        }
    }
    let of_container = if shape == Shape::Container { 2 } else { 0 };
    let layers = store.chain(stack.layers.len() - of_container);
    let image = store.image(&layers);
    store.tag(&format!("stack:{n}"), &image);
    if shape == Shape::Container {
        let container = store.container(&format!("stack-{n}"), &image, layers.last());
        directories.extend([container.upper_dir(), container.init_dir()]);
        work = Some(container.work_dir());
        shown = format!("by-container/stack-{n}/merged");
    }
    directories.extend(layers.iter().rev().map(|layer| layer.diff_dir()));
    let undone = stack.apply(&directories);
    assert!(undone.is_empty() || IS_SHRINKING.get(), "the stack {stack:?} could not be written: {undone:#?}");
    Stored { stack, directories, work, shown }
}

thread_local! {
    /// A stack that is being shrunk may hold what cannot be done, such as a link to a name that was dropped.
    static IS_SHRINKING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// The kernel's mount of a stack.
fn kernel_mount(stored: &Stored) -> Result<KernelOverlay, String> {
    let mut options = OverlayOptions {
        userxattr: stored.stack.marks == Marks::User,
        // Off by default, and then the kernel denies such files; docker-fs follows them as with metacopy=on. With userxattr both refuse.
        metacopy: stored.stack.marks == Marks::Trusted && stored.stack.has_metacopy(),
        upper: None,
    };
    let mut directories = stored.directories.as_slice();
    if let Some(work) = &stored.work {
        options.upper = Some((directories[0].clone(), work.clone()));
        directories = &directories[1..];
    }
    KernelOverlay::new(directories, &options).map_err(|error| format!("{KERNEL_FAILED}mount: {error}"))
}

fn kernel_options() -> Options {
    Options { blocks: true, ..Options::of_kernel_overlay() }
}

/// What the kernel shows.
fn kernel_tree(stored: &Stored) -> Result<Walk, String> {
    let overlay = kernel_mount(stored)?;
    if stored.work.is_some() {
        // The first listing takes stale marks from directories of the writable layer, which changes their ctime.
        walk(&overlay.path(), &kernel_options());
    }
    let walk = walk(&overlay.path(), &kernel_options());
    if walk.troubles.is_empty() { Ok(walk) } else { Err(format!("{KERNEL_FAILED}{}", walk.troubles.join(", "))) }
}

fn differences(stored: &Stored, kernel: Walk, shown: &Path) -> Vec<String> {
    let mut expected = kernel.tree;
    let mut probe = stored.stack.names();
    let deletions: Vec<Vec<u8>> = probe.iter().map(|name| [b".wh.", name.as_slice()].concat()).collect();
    probe.extend(deletions.into_iter().filter(|name| name.len() <= 255));
    probe.push(b".wh..wh..opq".to_vec());
    let walk = walk(shown, &Options { probe, blocks: true, ..Options::default() });
    let mut found = walk.tree;
    if stored.directories.len() == 1 {
        // The kernel's root is that of the empty directory laid upon a single layer.
        expected.remove(b"".as_slice());
        found.remove(b"".as_slice());
    }
    let mut lines = walk.troubles;
    leave_out_unlisted(&kernel.unlisted, &mut found);
    if stored.stack.has_redirect() {
        let ambiguous = kernel.denied.into_iter().filter(|(_, error)| AMBIGUOUS.contains(error));
        let denied = ambiguous.map(|(path, _)| path).collect();
        lines.extend(look_up_anew(stored, denied, &mut expected, &mut found).err());
    }
    for (path, error) in walk.refused {
        match kernel_mount(stored).and_then(|overlay| lookup(&overlay.path(), &path, &kernel_options())) {
            Ok(Err(kernels)) if kernels == error => {}
            other => lines.push(format!("/{}: refused with {error:?}, by the kernel {other:?}", path.escape_ascii())),
        }
    }
    leave_out_without_data(&stored.stack, &expected, &mut found);
    group_links(&mut found);
    settle_forged_sizes(&mut expected, &mut found);
    lines.extend(diff(&expected, &found));
    lines
}

/// What the kernel says where one real directory would stand at a second place.
const AMBIGUOUS: [Errno; 2] = [Errno::STALE, Errno::LOOP];

/// Puts right, in what is expected, the paths that differ and these, each by a kernel mount of its own.
fn look_up_anew(stored: &Stored, denied: Vec<Vec<u8>>, expected: &mut Tree, found: &mut Tree) -> Result<(), String> {
    let differing = diff_by_path(expected, found);
    for path in differing.into_keys().chain(denied).filter(|path| !path.is_empty()) {
        let overlay = kernel_mount(stored)?;
        match lookup(&overlay.path(), &path, &kernel_options())? {
            Err(error) => {
                expected.remove(&path);
                if AMBIGUOUS.contains(&error) {
                    found.remove(&path);
                }
            }
            Ok(mut entry) => {
                if let (Some(_), Some(ours)) = (&stored.work, found.get(&path)) {
                    // At a first lookup the kernel writes the origin into a directory of the writable layer, after we looked.
                    entry.ctime = ours.ctime;
                }
                // Each mount has a device number of its own.
                entry.ino.0 = expected.values().next().map_or(entry.ino.0, |first| first.ino.0);
                expected.insert(path, entry);
            }
        }
    }
    group_links(expected);
    Ok(())
}

/// Files of attributes without data, which the kernel does not even let be looked up. Of no bytes, they can be read.
fn leave_out_without_data(stack: &Stack, expected: &Tree, found: &mut Tree) {
    found.retain(|path, entry| {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let is_empty = entry.size == Some(0) && stack.has_metacopy_named(name);
        expected.contains_key(path)
            || entry.kind != FileType::RegularFile
            || !(is_empty || entry.content == Some(Content::Failed(Errno::IO)))
    });
}

/// What lies in directories that the kernel cannot list.
fn leave_out_unlisted(unlisted: &[Vec<u8>], found: &mut Tree) {
    for dir in unlisted {
        let inside = [dir.as_slice(), b"/"].concat();
        found.retain(|path, _| !path.starts_with(&inside));
    }
}

/// Makes the contents equal where the kernel reads more or less than st_size tells, and docker-fs reads either the same or just that size.
fn settle_forged_sizes(expected: &mut Tree, found: &mut Tree) {
    for (path, ours) in found {
        let Some(kernels) = expected.get_mut(path) else { continue };
        let Some(Content::Sum { len, sha256_at_size: want, .. }) = &kernels.content else { continue };
        let Some(Content::Sum { sha256_at_size: have, .. }) = &ours.content else { continue };
        if kernels.size != Some(*len) && want == have {
            kernels.content.clone_from(&ours.content);
        }
    }
}

/// Panics with the smallest stack that differs, if this one does.
fn assert_as_kernel(what: &str, stack: &Stack, shape: Shape, backing: Backing) {
    let lines = Bench::new(vec![stack.clone()], shape, backing).differences().concat();
    assert!(lines.is_empty(), "{}", report(what, stack, shape, backing, &lines));
}

fn report(what: &str, stack: &Stack, shape: Shape, backing: Backing, lines: &[String]) -> String {
    IS_SHRINKING.set(true);
    let again = |stack: &Stack| Bench::new(vec![stack.clone()], shape, backing).differences().concat();
    // Not into a stack that the kernel has trouble with, which is another matter.
    let same_kind = |found: &[String]| !found.is_empty() && of_kernel(found) == of_kernel(lines);
    let small = shrink(stack, |candidate| same_kind(&again(candidate)));
    let small_lines = again(&small);
    IS_SHRINKING.set(false);
    format!(
        "{what} ({shape:?}, {backing:?}) is not as the kernel shows it (expected is the kernel's):\n  {}\nsmallest:\n{small:?}\n  {}\n",
        lines.join("\n  "),
        small_lines.join("\n  ")
    )
}

/// Whether the kernel could not show a stack at all.
fn of_kernel(lines: &[String]) -> bool {
    lines.iter().any(|line| line.starts_with(KERNEL_FAILED))
}

const KERNEL_FAILED: &str = "the kernel cannot show it: ";

/// Compares the stacks of these seeds, on all processors, and reports at most three that differ.
fn compare_random(first: u64, count: u64, marks: Marks, shape: Shape) {
    let next = AtomicU64::new(0);
    let failed: Mutex<Vec<(u64, Backing, Vec<String>)>> = Mutex::new(Vec::new());
    let roots = count.div_ceil(STACKS_PER_ROOT);
    let work = || {
        loop {
            let root = next.fetch_add(1, Ordering::Relaxed);
            if root >= roots {
                return;
            }
            let backing = if root.is_multiple_of(2) { Backing::Disk } else { Backing::Tmpfs };
            let start = first + root * STACKS_PER_ROOT;
            let seeds = start..(start + STACKS_PER_ROOT).min(first + count);
            let stacks = seeds.clone().map(|seed| random(seed, marks)).collect();
            let differences = Bench::new(stacks, shape, backing).differences();
            let different = seeds.zip(differences).filter(|(_, lines)| !lines.is_empty());
            failed.lock().unwrap().extend(different.map(|(seed, lines)| (seed, backing, lines)));
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..processors()).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    let mut failed = failed.into_inner().unwrap();
    failed.sort_by_key(|(seed, ..)| *seed);
    if failed.is_empty() {
        return;
    }
    let reports: Vec<String> = failed
        .iter()
        .take(3)
        .map(|(seed, backing, lines)| report(&format!("seed {seed}"), &random(*seed, marks), shape, *backing, lines))
        .collect();
    let seeds: Vec<u64> = failed.iter().map(|(seed, ..)| *seed).collect();
    panic!("{} of {count} stacks differ, seeds {seeds:?}\n{}", seeds.len(), reports.join("\n"));
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

#[test]
fn random_stacks_are_as_the_kernel_shows_them() {
    if !require_privileges("comparing with kernel overlayfs") {
        return;
    }
    let count = from_environment("DOCKER_FS_STACKS", 1000);
    compare_random(from_environment("DOCKER_FS_SEED", 0), count, Marks::Trusted, Shape::Image);
}

#[test]
fn random_rootless_stacks_are_as_the_kernel_shows_them() {
    if !require_privileges("comparing with kernel overlayfs") {
        return;
    }
    let count = from_environment("DOCKER_FS_STACKS", 1000) / 5;
    compare_random(from_environment("DOCKER_FS_SEED", 0), count, Marks::User, Shape::Image);
}

#[test]
fn random_containers_are_as_the_kernel_shows_them() {
    if !require_privileges("comparing with kernel overlayfs") {
        return;
    }
    let count = from_environment("DOCKER_FS_STACKS", 1000) / 10;
    compare_random(from_environment("DOCKER_FS_SEED", 0), count, Marks::Trusted, Shape::Container);
}

/// A generator that made only harmless stacks would make the tests above worthless.
#[test]
fn random_stacks_hold_every_oddity() {
    for marks in [Marks::Trusted, Marks::User] {
        let census = support::stack::census(0..300, marks);
        for what in [
            "dir",
            "file",
            "symlink",
            "fifo",
            "socket",
            "whiteout",
            "char",
            "block",
            "link",
            "dir opaque",
            "dir redirect",
            "file redirect",
            "file metacopy",
            "file whiteout",
        ] {
            let count = census.get(what).copied().unwrap_or_default();
            assert!(count >= 20, "{what} occurs {count} times only with {marks:?}: {census:#?}");
        }
    }
}

/// Compares a stack with the kernel's view, and docker-fs's view with what is expected by the rules: a line for each object, sorted by
/// path; `d/` a directory, `f: text` a file, `l -> target` a link, `x (Fifo)` anything else.
#[track_caller]
fn check(layers_top_first: Vec<Vec<support::stack::Op>>, expected: &[&str]) {
    if !require_privileges("comparing with kernel overlayfs") {
        return;
    }
    let stack = stack(layers_top_first);
    assert_eq!(lines_of(&stack), expected, "not by the rules: {stack:?}");
    assert_as_kernel("the stack", &stack, Shape::Image, Backing::Disk);
}

/// What docker-fs shows of a stack.
fn lines_of(stack: &Stack) -> Vec<String> {
    let bench = Bench::new(vec![stack.clone()], Shape::Image, Backing::Disk);
    let mounted = Mounted::new(&bench.source(), &bench.dir.path().join("mnt"));
    let root = mounted.path().join(&bench.stored[0].shown);
    let walk = walk(&root, &Options::default());
    assert_eq!(walk.troubles, Vec::<String>::new());
    let tree = walk.tree.iter().filter(|(path, _)| !path.is_empty());
    tree.map(|(path, entry)| {
        let shown = path.escape_ascii();
        let real = root.join(std::ffi::OsStr::from_bytes(path));
        match entry.kind {
            FileType::Directory => format!("{shown}/"),
            FileType::RegularFile => match fs::read(real) {
                Ok(content) => format!("{shown}: {}", content.escape_ascii()),
                Err(error) => format!("{shown}: error {}", error.raw_os_error().unwrap_or_default()),
            },
            FileType::Symlink => format!("{shown} -> {}", entry.target.as_deref().unwrap_or_default().escape_ascii()),
            other => format!("{shown} ({other:?})"),
        }
    })
    .collect()
}

#[test]
fn directories_of_three_layers_merge() {
    check(
        vec![
            vec![file("d/top", "3").mode(0o600), dir("d").mode(0o700).owner(3, 3).mtime(-5, 7)],
            vec![file("d/mid", "2")],
            vec![file("d/low", "1"), dir("d").mode(0o755)],
        ],
        &["d/", "d/low: 1", "d/mid: 2", "d/top: 3"],
    );
}

#[test]
fn a_file_between_directories_cuts_off_the_lower_one() {
    check(vec![vec![file("d/top", "3")], vec![file("d", "2")], vec![file("d/low", "1")]], &["d/", "d/top: 3"]);
}

#[test]
fn a_whiteout_between_directories_cuts_off_the_lower_one() {
    check(vec![vec![file("d/top", "3")], vec![whiteout("d")], vec![file("d/low", "1")]], &["d/", "d/top: 3"]);
}

#[test]
fn what_is_not_a_directory_hides_everything_below() {
    check(
        vec![
            vec![file("f", "3"), symlink("l", "f"), support::stack::fifo("p"), char_device("c", 0, 1)],
            vec![dir("f"), whiteout("l"), file("p", "2"), file("c/x", "2")],
            vec![file("f/x", "1"), file("l/x", "1"), dir("p"), whiteout("c")],
        ],
        &["c (CharacterDevice)", "f: 3", "l -> f", "p (Fifo)"],
    );
}

#[test]
fn a_whiteout_hides_everything_below() {
    check(
        vec![
            vec![whiteout("a"), whiteout("b").mode(0o7777).owner(5, 5), link("c", "a"), file("kept", "3")],
            vec![file("a/x", "2"), file("c", "2")],
            vec![dir("a"), file("b", "1"), file("kept", "1")],
        ],
        &["kept: 3"],
    );
}

#[test]
fn a_whiteout_in_a_middle_layer_hides_the_lower_one() {
    check(vec![vec![file("x", "3")], vec![whiteout("d")], vec![file("d/low", "1")]], &["x: 3"]);
}

#[test]
fn only_character_device_0_0_is_a_whiteout() {
    check(
        vec![
            vec![char_device("a", 0, 1), char_device("b", 1, 0), block_device("c", 0, 0)],
            vec![file("a", "1"), file("b", "1"), file("c", "1")],
        ],
        &["a (CharacterDevice)", "b (CharacterDevice)", "c (BlockDevice)"],
    );
}

#[test]
fn a_whiteout_where_only_one_layer_has_the_directory_is_not_shown() {
    check(
        vec![vec![whiteout("only/gone"), file("only/kept", "2")], vec![file("x", "1"), whiteout("y")]],
        &["only/", "only/kept: 2", "x: 1"],
    );
}

#[test]
fn an_opaque_directory_hides_lower_ones() {
    check(
        vec![vec![file("x", "3")], vec![dir("d").opaque(), file("d/mid", "2")], vec![file("d/low", "1")]],
        &["d/", "d/mid: 2", "x: 3"],
    );
}

#[test]
fn opaque_is_y_exactly() {
    let layer = |name: &str, value: &[u8]| [dir(name).mark("opaque", value), file(format!("{name}/top"), "2")];
    let top = [layer("empty", b""), layer("n", b"n"), layer("x", b"x"), layer("y", b"y"), layer("yy", b"yy")].concat();
    let low = ["empty", "n", "x", "y", "yy"].map(|name| file(format!("{name}/low"), "1")).to_vec();
    check(
        vec![top, low],
        &[
            "empty/",
            "empty/low: 1",
            "empty/top: 2",
            "n/",
            "n/low: 1",
            "n/top: 2",
            "x/",
            "x/low: 1",
            "x/top: 2",
            "y/",
            "y/top: 2",
            "yy/",
            "yy/low: 1",
            "yy/top: 2",
        ],
    );
}

#[test]
fn an_opaque_mark_on_a_layers_root_is_ignored() {
    check(vec![vec![dir("").opaque(), file("top", "2")], vec![file("low", "1")]], &["low: 1", "top: 2"]);
}

#[test]
fn a_relative_redirect_continues_in_the_same_directory() {
    check(
        vec![
            vec![dir("p/new").redirect("old"), file("p/new/top", "2")],
            vec![file("p/old/low", "1"), file("p/new/not-this", "1"), file("old/not-this", "1")],
        ],
        &["old/", "old/not-this: 1", "p/", "p/new/", "p/new/low: 1", "p/new/top: 2", "p/old/", "p/old/low: 1"],
    );
}

#[test]
fn an_absolute_redirect_continues_from_the_unions_root() {
    check(
        vec![
            vec![dir("p/new").redirect("/q/old"), whiteout("q")],
            vec![file("q/old/low", "1"), file("p/new/not-this", "1")],
        ],
        &["p/", "p/new/", "p/new/low: 1"],
    );
}

#[test]
fn redirects_of_several_layers_chain() {
    check(
        vec![
            vec![dir("a").redirect("/b"), whiteout("b")],
            vec![dir("b").redirect("/c"), file("b/mid", "2"), whiteout("c")],
            vec![file("c/low", "1"), file("b/not-this", "1"), file("a/not-this", "1")],
        ],
        &["a/", "a/low: 1", "a/mid: 2"],
    );
}

#[test]
fn below_a_redirected_directory_the_redirected_path_is_searched() {
    check(
        vec![
            vec![file("a/sub/top", "2"), dir("a").redirect("/b")],
            vec![file("b/sub/low", "1"), file("a/sub/not-this", "1")],
        ],
        &["a/", "a/sub/", "a/sub/low: 1", "a/sub/top: 2", "b/", "b/sub/", "b/sub/low: 1"],
    );
}

#[test]
fn an_absolute_redirect_does_not_pass_an_opaque_ancestor() {
    check(
        vec![vec![dir("a").redirect("/p/b")], vec![dir("p").opaque(), file("p/x", "2")], vec![file("p/b/low", "1")]],
        &["a/", "p/", "p/x: 2"],
    );
}

#[test]
fn a_directory_can_continue_in_the_one_that_holds_it() {
    check(
        vec![vec![dir("d/d").redirect("/d")], vec![file("d/c/low", "1")]],
        &["d/", "d/c/", "d/c/low: 1", "d/d/", "d/d/c/", "d/d/c/low: 1"],
    );
}

#[test]
fn opaque_wins_over_redirect() {
    check(
        vec![vec![dir("a").opaque().redirect("b"), file("a/top", "2")], vec![file("b/low", "1")]],
        &["a/", "a/top: 2", "b/", "b/low: 1"],
    );
}

#[test]
fn a_redirect_to_what_is_no_directory_leads_nowhere() {
    check(
        vec![
            vec![dir("a").redirect("file"), dir("b").redirect("/link/x"), dir("c").redirect("gone")],
            vec![file("file", "1"), symlink("link", "real"), file("real/x/y", "1"), file("a/not-this", "1")],
        ],
        &["a/", "b/", "c/", "file: 1", "link -> real", "real/", "real/x/", "real/x/y: 1"],
    );
}

#[test]
fn a_malformed_redirect_denies_the_directory() {
    let malformed: [&[u8]; 9] = [b"", b"/", b"//", b"a/b", b"/a/", b"/a//b", b"..", b"/../x", b"."];
    let top = malformed.iter().enumerate().map(|(n, to)| dir(format!("d{n}")).redirect(to)).collect();
    let low = (0..malformed.len()).map(|n| file(format!("d{n}/low"), "1")).chain([file("x", "1")]).collect();
    check(vec![top, low], &["x: 1"]);
}

#[test]
fn a_redirect_in_the_bottom_layer_is_ignored() {
    check(
        vec![vec![file("x", "2")], vec![dir("a").redirect("/../b"), file("a/low", "1")]],
        &["a/", "a/low: 1", "x: 2"],
    );
}

#[test]
fn an_xattr_whiteout_needs_no_mark_on_its_directory() {
    check(
        vec![
            vec![xattr_whiteout("d/a"), xattr_whiteout("x/a"), dir("x").mark("opaque", "x"), file("x/top", "2")],
            vec![file("d/a", "1"), file("d/b", "1"), file("x/a", "1"), file("x/b", "1")],
        ],
        &["d/", "d/b: 1", "x/", "x/b: 1", "x/top: 2"],
    );
}

#[test]
fn a_file_with_content_is_no_whiteout() {
    check(vec![vec![file("a", "2").mark("whiteout", "y")], vec![file("a", "1")]], &["a: 2"]);
}

#[test]
fn names_that_begin_with_wh_are_just_names() {
    check(
        vec![vec![file(".wh.a", "2"), file("d/.wh..wh..opq", "2")], vec![file("a", "1"), file("d/low", "1")]],
        &[".wh.a: 2", "a: 1", "d/", "d/.wh..wh..opq: 2", "d/low: 1"],
    );
}

#[test]
fn marks_are_hidden_and_escaped_marks_are_shown_without_one_escape() {
    check(
        vec![
            vec![
                file("f", "2").mark("overlay.opaque", "y").mark("origin", "?").mark("unknown", "?"),
                dir("d").mark("overlay.opaque", "y").xattr("user.overlay.opaque", "y").mark("impure", "y"),
            ],
            vec![file("d/low", "1")],
        ],
        &["d/", "d/low: 1", "f: 2"],
    );
}

#[test]
fn a_file_of_attributes_has_the_data_of_the_next_one_below() {
    check(
        vec![
            vec![hole("a", 4).metacopy().mode(0o600).mtime(1, 2)],
            vec![hole("a", 4).metacopy()],
            vec![file("a", "data").mode(0o644)],
        ],
        &["a: data"],
    );
}

#[test]
fn a_file_of_attributes_finds_its_data_by_redirects() {
    check(
        vec![
            vec![hole("a", 4).metacopy().redirect("/d/b")],
            vec![hole("d/b", 4).metacopy().redirect("c"), file("a", "not this")],
            vec![file("d/c", "data")],
        ],
        &["a: data", "d/", "d/b: data", "d/c: data"],
    );
}

#[test]
fn a_file_of_attributes_without_data_is_shown_and_cannot_be_read() {
    check(
        vec![
            vec![hole("a", 4).metacopy(), hole("b", 4).metacopy()],
            vec![whiteout("a"), dir("b")],
            vec![file("a", "data")],
        ],
        &["a: error 5", "b: error 5"],
    );
}

/// A mount of the kernel's that is written to, and ends with the value.
struct Writable(PathBuf);

impl Writable {
    /// A container upon these layers, top first, as an engine mounts it that leaves content and renamed directories below.
    fn new(point: PathBuf, layers: &[PathBuf], upper: &Path, work: &Path) -> Self {
        fs::create_dir_all(&point).unwrap();
        fs::create_dir_all(work).unwrap();
        let lower: Vec<&str> = layers.iter().map(|layer| layer.to_str().unwrap()).collect();
        let (lower, upper, work) = (lower.join(":"), upper.display(), work.display());
        let data = format!("lowerdir={lower},upperdir={upper},workdir={work},index=off,metacopy=on,redirect_dir=on");
        let data = std::ffi::CString::new(data).unwrap();
        rustix::mount::mount("overlay", &point, "overlay", rustix::mount::MountFlags::empty(), Some(data.as_c_str()))
            .unwrap();
        Self(point)
    }
}

impl Drop for Writable {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).ok();
    }
}

/// Unpacks the tar of a layer's tree upon those below, as an engine does that pulls it.
fn unpack(layer: &Path, upon: &Path) {
    let script = r#"
        set -eu
        cd "$1"
        find . -name '.wh..wh..opq' -printf '%h\n' | while read -r dir; do
            [ ! -d "$2/$dir" ] || find "$2/$dir" -mindepth 1 -delete
        done
        find . -name '.wh.*' ! -name '.wh..wh..opq' -printf '%h\t%f\n' | while IFS="$(printf '\t')" read -r dir mark; do
            rm -rf "$2/$dir/${mark#.wh.}"
        done
        tar --format=posix --exclude='.wh.*' -cf - . | tar -C "$2" -xpf -
    "#;
    let done = std::process::Command::new("sh").args(["-c", script, "unpack"]).args([layer, upon]).output().unwrap();
    assert!(done.status.success() && done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// What an image's content is: no numbers that another copy of it has others of.
fn content_of(root: &Path) -> Vec<String> {
    let walked = walk(root, &Options::of_kernel_overlay());
    assert!(walked.troubles.is_empty(), "{:?}", walked.troubles);
    let line = |(path, entry): (Vec<u8>, support::tree::Entry)| {
        let (kind, mode, owner) = (entry.kind, entry.mode, (entry.uid, entry.gid));
        let rest = (entry.mtime, entry.content, entry.target);
        format!("{} {kind:?} {mode:o} {owner:?} {rest:?}", path.escape_ascii())
    };
    walked.tree.into_iter().filter(|(path, _)| !path.is_empty()).map(line).collect()
}

/// The layers that the kernel makes where it leaves files' content and renamed directories below are whole as OCI layers.
#[test]
fn layers_of_attributes_and_redirects_are_whole_by_themselves() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("moved-");
    let mut store = StoreBuilder::new(dir.path().join("docker"));
    let layers = store.chain(3);
    let image = store.image(&layers);
    store.tag("app:1", &image);
    let web = store.container("web", &image, layers.last());
    let mut below = vec![layers[0].diff_dir()];
    let base = &below[0];
    for (file, text) in
        [("bin/tool", "x".repeat(100_000)), ("a/b/f", "one".into()), ("a/g", "g".into()), ("n/k", "k".into())]
    {
        fs::create_dir_all(base.join(file).parent().unwrap()).unwrap();
        fs::write(base.join(file), text).unwrap();
    }
    let mode =
        |path: PathBuf, mode| fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    let change = |below: &mut Vec<PathBuf>, upper: PathBuf, steps: &dyn Fn(&Path)| {
        let (point, work) = (dir.path().join("point"), upper.with_file_name("work"));
        let mounted = Writable::new(point, below, &upper, &work);
        steps(&mounted.0);
        below.insert(0, upper);
    };
    change(&mut below, layers[1].diff_dir(), &|at| {
        mode(at.join("bin/tool"), 0o640);
        fs::rename(at.join("a"), at.join("a2")).unwrap();
        fs::write(at.join("a2/new"), "new").unwrap();
    });
    change(&mut below, layers[2].diff_dir(), &|at| {
        fs::rename(at.join("a2/b"), at.join("n/b")).unwrap();
        mode(at.join("n/b/f"), 0o600);
        fs::rename(at.join("bin/tool"), at.join("tool")).unwrap();
        fs::create_dir(at.join("a")).unwrap();
        fs::write(at.join("a/other"), "other").unwrap();
    });
    let of_image = below.clone();
    below.insert(0, web.init_dir());
    change(&mut below, web.upper_dir(), &|at| {
        mode(at.join("tool"), 0o711);
        mode(at.join("n/k"), 0o611);
        fs::remove_dir_all(at.join("a")).unwrap();
        fs::rename(at.join("n/b"), at.join("a")).unwrap();
        fs::remove_file(at.join("a2/g")).unwrap();
    });
    // One layer of two is gone.
    let gone = store.chain(2);
    let image = store.image(&gone);
    store.tag("gone:1", &image);
    let flags = rustix::fs::XattrFlags::empty();
    fs::create_dir(gone[1].diff_dir().join("to")).unwrap();
    rustix::fs::setxattr(gone[1].diff_dir().join("to"), "trusted.overlay.redirect", b"from", flags).unwrap();
    fs::write(gone[1].diff_dir().join("file"), [0; 9]).unwrap();
    rustix::fs::setxattr(gone[1].diff_dir().join("file"), "trusted.overlay.metacopy", b"", flags).unwrap();
    fs::remove_dir_all(gone[0].diff_dir()).unwrap();
    // Whose data are nowhere.
    let lost = store.layer(None);
    let image = store.image(std::slice::from_ref(&lost));
    store.tag("lost:1", &image);
    fs::write(lost.diff_dir().join("lost"), [0; 9]).unwrap();
    rustix::fs::setxattr(lost.diff_dir().join("lost"), "trusted.overlay.metacopy", b"", flags).unwrap();

    let mounted = Mounted::with(&store.finish(), &dir.path().join("mnt"), &[], 4);
    let shown = |path: &str| mounted.path().join(path);
    let options = OverlayOptions { metacopy: true, ..OverlayOptions::default() };
    let upon = dir.path().join("unpacked");
    fs::create_dir(&upon).unwrap();
    for (n, count) in [(0, 1), (1, 2), (2, 3)] {
        unpack(&shown(&format!("by-tag/app:1/layers/{n}")), &upon);
        let kernel = KernelOverlay::new(&of_image[3 - count..], &options).unwrap();
        assert_eq!(content_of(&upon), content_of(&kernel.path()), "layer {n}");
    }
    unpack(&shown("by-container/web/changes"), &upon);
    let kernel = KernelOverlay::new(&below, &options).unwrap();
    assert_eq!(content_of(&upon), content_of(&kernel.path()), "the container's");

    let probe = vec![b".wh..wh..opq".to_vec(), b".wh.b".to_vec(), b"b".to_vec()];
    for place in ["by-tag", "by-container", "by-chain"] {
        let walked =
            walk(&shown(place), &Options { probe: probe.clone(), tolerate: vec![Errno::IO], ..Options::default() });
        assert!(walked.troubles.is_empty(), "{place}: {:?}", walked.troubles);
    }

    // One file, wherever it is seen.
    let same = |one: &str, other: &str| {
        use std::os::unix::fs::MetadataExt;
        let [one, other] = [one, other].map(|path| fs::metadata(shown(path)).unwrap());
        assert_eq!((one.ino(), one.size(), one.blocks()), (other.ino(), other.size(), other.blocks()));
    };
    same("by-tag/app:1/layers/2/tool", "merged/app:1/tool");
    same("by-container/web/changes/tool", "by-container/web/merged/tool");
    assert!(shown("by-container/web/changes/a/.wh..wh..opq").exists());
    let listed = fs::read_dir(shown("by-tag/gone:1/layers/1")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(listed.collect::<std::collections::BTreeSet<_>>(), ["file".into(), "to".into()].into());
    let listing = fs::read_dir(shown("by-tag/gone:1/layers/1/to")).and_then(|mut entries| entries.next().transpose());
    assert_eq!(listing.unwrap_err().raw_os_error(), Some(libc::EIO));
    for place in ["by-tag/lost:1/layers/0/lost", "merged/lost:1/lost", "by-tag/gone:1/layers/1/file"] {
        assert_eq!(fs::read(shown(place)).unwrap_err().raw_os_error(), Some(libc::EIO), "{place}");
    }
}
