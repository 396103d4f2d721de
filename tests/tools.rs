//! The programs that people point at a mount give there what they give on a kernel overlay of the same layers.
//!
//! Each tool's own output is compared, so that what it depends on (inode numbers, link counts, the order of times, holes,
//! seeks, listings) is tested without being listed here. A difference that is no fault is taken out by name, with its reason.

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
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use dockerd::{Builder, Dockerd, run};
use serde_json::Value;
use support::mount::{KernelOverlay, Mounted, OverlayOptions, require_privileges};
use support::tree::{Options, assert_same, group_links, snapshot};

const IMAGE: &str = "team/tools:1";

/// Layers that share directories, with hard links within a layer, deletions, a sparse file and a loop of symbolic links.
const STEPS: &str = r"FROM base:1
RUN mkdir -p /t/a/b /t/gone && cd /t && echo needle >a/one && ln a/one a/b/two && ln a/one three && echo x >gone/x \
 && ln -s .. a/up && ln -s /t/a/b a/b/here && truncate -s 5M sparse && echo needle >>sparse && mkfifo fifo \
 && mknod null c 1 3 && cp /bin/true capped && setcap cap_net_raw+ep capped && touch -d '1999-12-31 23:59:59.123456789' old \
 && mkdir many && cd many && seq 2000 | xargs touch
RUN rm -r /t/gone && echo needle >/t/a/b/new && rm /t/many/1?? && chown 1000:1000 /t/a && chmod 2755 /t/many \
 && setfattr -n user.mark -v yes /t/a/one && setfacl -m u:7:r /t/old && rm -r /usr/share/perl5 && ln /etc/passwd /t/passwd
";

type Section = fn(&Bench);

#[test]
fn tools_work_as_on_a_kernel_overlay() {
    if !require_privileges("a Docker daemon") || !dockerd::has_programs(dockerd::PROGRAMS) {
        return;
    }
    let setup = Instant::now();
    let bench = Bench::new();
    eprintln!("setup: {:.1} s", setup.elapsed().as_secs_f32());
    let sections: &[(&[&str], Section)] = &[
        (&["tar"], tar_streams),
        (&["rsync"], rsync_copies),
        (&["restic"], restic_backs_up),
        (&["grep"], grep_finds),
        (&["find"], find_lists),
        (&["du"], du_counts),
        (&["ls"], ls_lists),
        (&["diff"], diff_finds_nothing),
        (&["cp"], cp_copies),
    ];
    let mut failed = Vec::new();
    for (programs, section) in sections {
        let start = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(|| {
            if dockerd::has_programs(programs) {
                section(&bench);
            }
        }));
        let seconds = start.elapsed().as_secs_f32();
        eprintln!("{}: {} ({seconds:.1} s)", programs[0], if ended.is_ok() { "ok" } else { "FAILED" });
        if ended.is_err() {
            failed.push(programs[0]);
        }
    }
    drop(bench);
    assert!(failed.is_empty(), "failed with: {failed:?}; what they found is above");
}

/// The mounts go away before the daemon whose root they show.
struct Bench {
    overlay: KernelOverlay,
    mount: Mounted,
    daemon: Dockerd,
}

impl Bench {
    fn new() -> Self {
        let daemon = Dockerd::start();
        daemon.import_base("base:1");
        // BuildKit keeps every extended attribute; the classic builder loses the user's, and will do for the rest.
        if let Err(what) = daemon.build(Builder::BuildKit, IMAGE, STEPS) {
            eprintln!("skipped: BuildKit; {what}");
            daemon.build(Builder::Classic, IMAGE, STEPS).unwrap_or_else(|what| panic!("{what}"));
        }
        let overlay = KernelOverlay::new(&daemon.image_layers(IMAGE), &OverlayOptions::default()).unwrap();
        let mount = Mounted::new(&daemon.root(), &daemon.scratch("mnt"));
        Self { overlay, mount, daemon }
    }

    /// The image through docker-fs.
    fn ours(&self) -> PathBuf {
        self.mount.path().join("merged").join(IMAGE)
    }

    /// The image through the kernel, by a path that other programs may use: the overlay is attached nowhere.
    fn kernel(&self) -> PathBuf {
        let path = self.overlay.path();
        Path::new("/proc").join(std::process::id().to_string()).join(path.strip_prefix("/proc/self").unwrap())
    }

    /// What a faithful copy of the image has. It cannot keep the time of an inode's last change. A name whose file a later
    /// layer copied up is no longer a link to the others, but the kernel's link count still tells it: a copy cannot.
    /// (Blocks depend on where the copy lies.)
    fn assert_faithful(&self, what: &str, copy: &Path, with_root: bool) {
        let options = Options { no_ctime: true, ..Options::default() };
        let (mut expected, mut found) = (snapshot(&self.overlay.path(), &options), snapshot(copy, &options));
        let mut links: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        for entry in expected.values() {
            *links.entry(entry.ino).or_default() += 1;
        }
        for entry in expected.values_mut() {
            entry.nlink = links[&entry.ino];
        }
        group_links(&mut expected);
        if !with_root {
            expected.remove(&Vec::new());
            found.remove(&Vec::new());
        }
        assert_same(what, &expected, &found);
    }

    /// What a shell script prints in the image, by docker-fs and by the kernel.
    fn both(&self, script: &str) -> (String, String) {
        let of = |dir: PathBuf| {
            let mut shell = Command::new("bash");
            shell.args(["-o", "pipefail", "-ec", script]).current_dir(dir).env("LC_ALL", "C").env("TZ", "UTC");
            String::from_utf8(run(&mut shell)).unwrap()
        };
        (of(self.kernel()), of(self.ours()))
    }

    fn assert_both_print_the_same(&self, script: &str) {
        let (expected, found) = self.both(script);
        assert!(!expected.is_empty(), "{script}: prints nothing");
        assert_same_lines(script, &expected, &found);
    }
}

fn assert_same_lines(what: &str, expected: &str, found: &str) {
    if expected == found {
        return;
    }
    let only = |these: &str, those: &str| {
        let those: BTreeSet<&str> = those.lines().collect();
        these.lines().filter(|line| !those.contains(line)).take(15).collect::<Vec<_>>().join("\n    ")
    };
    panic!("{what}:\n  expected\n    {}\n  found\n    {}", only(expected, found), only(found, expected));
}

fn tar_streams(bench: &Bench) {
    // Byte for byte, as neither form holds an access time, an inode number or a directory's size. A PAX header's own name
    // would hold the process ID, and so would a sparse file's in that form.
    let pax =
        "pax --xattrs --xattrs-include=* --acls --pax-option=delete=atime,delete=ctime,exthdr.name=%d/PaxHeaders/%f";
    for format in ["gnu --sparse", pax] {
        let script = format!("set -f; tar --format={format} --sort=name --numeric-owner -cf - . | sha256sum");
        bench.assert_both_print_the_same(&script);
    }
}

fn rsync_copies(bench: &Bench) {
    let copy = bench.daemon.scratch("rsync");
    let from = format!("{}/", bench.ours().display());
    run(Command::new("rsync").args(["-aHAX", "--numeric-ids", "--sparse", &from]).arg(&copy));
    bench.assert_faithful("rsync's copy", &copy, true);
    // A second run finds nothing to do.
    let again = run(Command::new("rsync").args(["-aHAX", "--numeric-ids", "--itemize-changes", &from]).arg(&copy));
    assert_eq!(String::from_utf8(again).unwrap(), "");
    fs::remove_dir_all(copy).unwrap();
}

fn restic_backs_up(bench: &Bench) {
    let dir = bench.daemon.scratch("restic");
    let restic = |args: &[&str], at: &Path| {
        let mut command = Command::new("restic");
        command.env("RESTIC_PASSWORD", "test").env("RESTIC_REPOSITORY", dir.join("repository"));
        command.env("XDG_CACHE_HOME", dir.join("cache")).current_dir(at);
        String::from_utf8(run(command.args(args))).unwrap()
    };
    restic(&["init"], &dir);
    // The same mount point both times: restic compares with the last snapshot of the same path.
    let point = dir.join("mnt");
    let backup = || {
        let mount = Mounted::new(&bench.daemon.root(), &point);
        let image = mount.path().join("merged").join(IMAGE);
        let said = restic(&["backup", "--json", "."], &image);
        let summary: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!(summary["message_type"], "summary");
        summary
    };
    let (first, second) = (backup(), backup());
    let files = first["files_new"].as_u64().unwrap();
    assert!(files > 1000, "{first}");
    let seen = |summary: &Value| {
        ["files_new", "files_changed", "files_unmodified"].map(|count| summary[count].as_u64().unwrap())
    };
    assert_eq!(seen(&second), [0, 0, files], "{second}");

    let restored = dir.join("restored");
    restic(&["restore", "latest", "--target", restored.to_str().unwrap()], &dir);
    // The backup was of `.`, and the target itself is none of its entries.
    bench.assert_faithful("what restic restored", &restored, false);
    fs::remove_dir_all(dir).unwrap();
}

fn grep_finds(bench: &Bench) {
    bench.assert_both_print_the_same("grep -rlZ needle t | tr '\\0' '\\n' | sort");
    // Every file of the image, most without a match.
    bench.assert_both_print_the_same("grep -rc root . | sort | sha256sum");
    let (_, found) = bench.both("grep -rl needle t | sort");
    assert_eq!(found, "t/a/b/new\nt/a/b/two\nt/a/one\nt/sparse\nt/three\n");
}

fn find_lists(bench: &Bench) {
    bench.assert_both_print_the_same("find . ! -type d -links +1 -printf '%n %p\\n' | sort");
    bench.assert_both_print_the_same("find . -type d -printf '%m %U:%G %T@ %p\\n' | sort");
    bench.assert_both_print_the_same("find . ! -type d -printf '%m %U:%G %s %b %T@ %C@ %y %l %p\\n' | sort");
    bench.assert_both_print_the_same("find t -samefile t/three | sort");
    // find takes a directory whose link count is 2 to have no subdirectories, and one of count 1 as untold.
    bench.assert_both_print_the_same("find . -type d | sort");
    // A file system loop goes to stderr and gives a failure, as two directories with one number among ancestors would.
    let whole = bench.mount.path();
    run(Command::new("find").arg(whole).args(["-xdev", "-type", "d", "-name", "no such name"]));
    // Directories never share a number; a file of a layer has one wherever it is seen.
    let numbers = run(Command::new("find").arg(whole).args(["-xdev", "-type", "d", "-printf", "%i\n"]));
    let mut numbers: Vec<&[u8]> = numbers.split(|byte| *byte == b'\n').collect();
    let count = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), count, "{} directories share an inode number", count - numbers.len());
}

fn du_counts(bench: &Bench) {
    // A directory's own size is its file system's affair: a union has none. All else is counted once per inode.
    for how in ["--apparent-size -B1", "-B512"] {
        let script = format!("find . ! -type d -print0 | du {how} -c --files0-from=- | tail -n 1");
        bench.assert_both_print_the_same(&script);
    }
    // With directories the sums may differ by them alone, which is far from a file counted twice.
    let total = |script: &str| {
        let (expected, found) = bench.both(script);
        let number = |text: &str| text.split_whitespace().next().unwrap().parse::<u64>().unwrap();
        (number(&expected), number(&found))
    };
    for script in ["du -s --apparent-size -B1 .", "du -s -B1 ."] {
        let (expected, found) = total(script);
        eprintln!("{script}: {expected} by the kernel, {found} by docker-fs");
        let directories = total("find . -type d | wc -l").0;
        assert!(expected.abs_diff(found) <= directories * 128 * 1024, "{script}: expected {expected}, found {found}");
    }
}

fn ls_lists(bench: &Bench) {
    // Out go the sums of blocks, which include directories', and of a directory its link count and its size.
    let script = "ls -lAnR --time-style=full-iso . | \
        sed -E -e '/^total [0-9]+$/d' -e 's/^(d[^ ]+) +[0-9]+ +([0-9]+) +([0-9]+) +[0-9]+ /\\1 \\2 \\3 /' -e 's/ +/ /g'";
    bench.assert_both_print_the_same(script);
}

fn diff_finds_nothing(bench: &Bench) {
    // It fails at the first difference. It cannot compare a FIFO or a device, which are in /t and /dev.
    let mut diff = Command::new("diff");
    diff.args(["-r", "--no-dereference", "--exclude=t", "--exclude=dev"])
        .arg(bench.kernel().join("."))
        .arg(bench.ours());
    run(&mut diff);
}

fn cp_copies(bench: &Bench) {
    let copy = bench.daemon.scratch("cp").join("copy");
    run(Command::new("cp").arg("-a").arg(bench.ours()).arg(&copy));
    bench.assert_faithful("cp's copy", &copy, true);
    fs::remove_dir_all(copy).unwrap();
}
