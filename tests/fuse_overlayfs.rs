//! Stores of Docker's `fuse-overlayfs` driver against the `fuse-overlayfs` program: the same layer directories, united by
//! both, must look the same.
//!
//! Random stacks of `support::stack` have their marks in all the forms that the program reads. Compared are names, types,
//! modes, owners, device numbers, sizes, times, link targets, extended attributes, link counts, hard links and content.
//!
//! Where the two differ, the comparison says so in one place each: `comparable`, and what
//! `in_fuse_form` leaves out. Stacks
//! that the program fails to show are counted: where a directory lies upon a symbolic link that leads nowhere, 1.10 cannot
//! list the directory that holds it. `DOCKER_FS_STACKS` sets the number of
//! random stacks, `DOCKER_FS_SEED` the first seed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};

use support::fuse_overlayfs::{FuseOverlayfs, PROGRAM_FAILED, comparable, may_run};
use support::marks::{Driver, convert_store, in_fuse_form};
use support::mount::Mounted;
use support::stack::{Marks, Stack, random, shrink};
use support::store::StoreBuilder;
use support::tree::{Options, diff, walk};

const STACKS: u64 = 1_000;
const STACKS_PER_ROOT: u64 = 50;

/// What a stack is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// All layers are an image's.
    Image,
    /// The topmost is a container's writable layer, the second its init layer, the others are its image's.
    Container,
}

/// Stacks in one data root, and the differences of each.
fn differences(stacks: &[Stack], shape: Shape) -> Vec<Vec<String>> {
    let scratch = support::scratch("fuse-overlayfs");
    let source = scratch.path().join("docker");
    let mut store = StoreBuilder::new(&source);
    let of_container = if shape == Shape::Container { 2 } else { 0 };
    let mut stored = Vec::new();
    for (n, stack) in stacks.iter().enumerate() {
        let mut stack = stack.clone();
        while stack.layers.len() < of_container + 1 {
            stack.layers.push(Vec::new());
        }
        let layers = store.chain(stack.layers.len() - of_container);
        let image = store.image(&layers);
        store.tag(&format!("stack:{n}"), &image);
        let mut directories: Vec<PathBuf> = layers.iter().rev().map(|layer| layer.diff_dir()).collect();
        let mut shown = format!("merged/stack:{n}");
        if shape == Shape::Container {
            let container = store.container(&format!("stack-{n}"), &image, layers.last());
            directories.splice(0..0, [container.upper_dir(), container.init_dir()]);
            shown = format!("by-container/stack-{n}/merged");
        }
        let undone = stack.apply(&directories);
        assert!(undone.is_empty() || IS_SHRINKING.get(), "the stack {stack:?} could not be written: {undone:#?}");
        let of_driver = |path: &PathBuf| {
            let below = path.strip_prefix(source.join("overlay2")).unwrap();
            source.join(Driver::FuseOverlayfs.name()).join(below)
        };
        stored.push((stack, directories.iter().map(of_driver).collect::<Vec<_>>(), shown));
    }
    store.finish();
    convert_store(&source, Driver::FuseOverlayfs);
    let mounted = Mounted::new(&source, &scratch.path().join("mnt"));
    let one = |(stack, directories, shown): &(Stack, Vec<PathBuf>, String)| {
        let theirs = match FuseOverlayfs::new(directories, &scratch.path().join("theirs")) {
            Ok(theirs) => theirs,
            Err(error) => return vec![error],
        };
        compare(stack, theirs.path(), &mounted.path().join(shown))
    };
    stored.iter().map(one).collect()
}

thread_local! {
    /// A stack that is being shrunk may hold what cannot be done, such as a link to a name that was dropped.
    static IS_SHRINKING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn compare(stack: &Stack, theirs: &Path, ours: &Path) -> Vec<String> {
    let expected = walk(theirs, &Options { loose_listing: true, ..Options::default() });
    let mut probe = stack.names();
    let deletions: Vec<Vec<u8>> = probe.iter().map(|name| [b".wh.", name.as_slice()].concat()).collect();
    probe.extend(deletions.into_iter().filter(|name| name.len() <= 255));
    let found = walk(ours, &Options { probe, ..Options::default() });
    let mut lines = found.troubles.clone();
    lines.extend(expected.troubles.iter().map(|trouble| format!("{PROGRAM_FAILED}{trouble}")));
    lines.extend(found.refused.iter().map(|(path, error)| format!("{}: {error}", path.escape_ascii())));
    let (expected, found) = comparable(expected.tree, found.tree);
    lines.extend(diff(&expected, &found));
    lines
}

fn report(what: &str, stack: &Stack, shape: Shape, lines: &[String]) -> String {
    IS_SHRINKING.set(true);
    let again = |stack: &Stack| differences(std::slice::from_ref(stack), shape).concat();
    let small = shrink(stack, |candidate| {
        let found = again(candidate);
        !found.is_empty() && of_program(&found) == of_program(lines)
    });
    let small_lines = again(&small);
    IS_SHRINKING.set(false);
    format!(
        "{what} ({shape:?}) is not as fuse-overlayfs shows it (expected is fuse-overlayfs's):\n  {}\nsmallest:\n\
         {small:?}\n  {}\n",
        lines.join("\n  "),
        small_lines.join("\n  ")
    )
}

fn of_program(lines: &[String]) -> bool {
    lines.iter().any(|line| line.starts_with(PROGRAM_FAILED))
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

fn compare_random(shape: Shape, count: u64) {
    let first = number("DOCKER_FS_SEED", 0);
    let (mut reports, mut failed) = (Vec::new(), 0);
    for start in (first..first + count).step_by(usize::try_from(STACKS_PER_ROOT).unwrap()) {
        let seeds = start..(start + STACKS_PER_ROOT).min(first + count);
        let stacks: Vec<Stack> = seeds.clone().map(|seed| in_fuse_form(&random(seed, Marks::Trusted), seed)).collect();
        for ((seed, stack), lines) in seeds.zip(&stacks).zip(differences(&stacks, shape)) {
            if of_program(&lines) {
                failed += 1;
            } else if !lines.is_empty() && reports.len() < 3 {
                reports.push(report(&format!("seed {seed}"), stack, shape, &lines));
            }
        }
    }
    assert!(reports.is_empty(), "{}", reports.join("\n"));
    let line = format!("fuse-overlayfs: {} stacks ({shape:?}) agree, {failed} it cannot show\n", count - failed);
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    assert!(failed <= count / 20, "fuse-overlayfs cannot show {failed} of {count} stacks");
}

#[test]
fn random_images_are_as_the_program_shows_them() {
    if may_run() {
        compare_random(Shape::Image, number("DOCKER_FS_STACKS", STACKS));
    }
}

#[test]
fn random_containers_are_as_the_program_shows_them() {
    if may_run() {
        compare_random(Shape::Container, number("DOCKER_FS_STACKS", STACKS).div_ceil(5));
    }
}
