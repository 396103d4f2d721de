//! What a mount tells of itself: the counters in the log at USR1, the figures in `status`, and the text for Prometheus.
//!
//! Each figure is made to change by something that only it counts. The text for Prometheus is judged by a reader of its
//! own, which knows the OpenMetrics rules that matter to a scraper, and not by the library that writes it.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::eventually;
use support::mount::{Mounted, require_privileges};
use support::store::{LayerRef, StoreBuilder};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// A mounted store with one image `t:1`: a file `big` of a mebibyte, and `d/<n>/file` for some directories.
struct Bench {
    mount: Mounted,
    layer: LayerRef,
    dir: TempDir,
}

impl Bench {
    fn new(arguments: &[&str]) -> Self {
        let dir = support::scratch("observe");
        let mut store = StoreBuilder::new(dir.path().join("docker"));
        let layer = store.layer(None);
        let image = store.image(std::slice::from_ref(&layer));
        store.tag("t:1", &image);
        fs::write(layer.diff_dir().join("big"), vec![7; MIB]).unwrap();
        for n in 0..40 {
            let path = layer.diff_dir().join(format!("d/{n:02}"));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("file"), "x").unwrap();
        }
        let log = dir.path().join("log");
        let arguments = [&["--log-file", log.to_str().unwrap()], arguments].concat();
        let mount = Mounted::with(&store.finish(), &dir.path().join("mnt"), &arguments, 0);
        Self { mount, layer, dir }
    }

    fn merged(&self) -> PathBuf {
        self.mount.path().join("merged/t:1")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    fn status(&self) -> Value {
        serde_json::from_slice(&fs::read(self.mount.path().join("status")).unwrap()).unwrap()
    }

    /// A figure of `status`, by its path.
    fn figure(&self, pointer: &str) -> u64 {
        self.status()["figures"].pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
    }

    fn assert_soon(&self, pointer: &str, holds: impl Fn(u64) -> bool) {
        assert!(eventually(|| holds(self.figure(pointer))), "{pointer}: {:#}", self.status()["figures"]);
    }
}

fn read_whole(path: &Path) {
    assert_eq!(fs::read(path).unwrap(), vec![7; MIB]);
}

// The log.

/// The lines of the last block of counters in a log, by what stands before the colon; `None` where there is none yet.
fn counters(log: &str) -> Option<BTreeMap<String, String>> {
    let (_, block) = log.rsplit_once("docker-fs: info: counters:\n")?;
    let lines = block.lines().take_while(|line| line.starts_with("  "));
    let lines: BTreeMap<String, String> =
        lines.filter_map(|line| line.trim().split_once(": ")).map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
    lines.contains_key("store").then_some(lines)
}

#[test]
fn usr1_logs_the_counters_whatever_else_is_logged() {
    if !require_privileges("a mount") {
        return;
    }
    for arguments in [&["-o", "opens=once"][..], &["-q", "-o", "opens=once"]] {
        let bench = Bench::new(arguments);
        read_whole(&bench.merged().join("big"));
        assert_eq!(rustix::fs::ioctl_getflags(File::open(bench.merged().join("big")).unwrap()), Err(Errno::NOTTY));
        assert_eq!(bench.log(), "", "nothing else is logged at this level");
        let pid = Pid::from_raw(bench.mount.daemon().unwrap().cast_signed()).unwrap();
        let mut told = None;
        for round in 1..=2 {
            kill_process(pid, Signal::USR1).unwrap();
            let blocks = || bench.log().matches("counters:\n").count();
            assert!(eventually(|| blocks() == round), "{}", bench.log());
            assert!(eventually(|| {
                told = counters(&bench.log());
                told.is_some()
            }));
        }
        let told = told.unwrap();
        let keys: Vec<&str> = told.keys().map(String::as_str).collect();
        let all = ["errors", "inodes", "listings", "open files", "read", "read ahead", "requests", "store", "waiting"];
        assert_eq!(keys, all);
        let requests: BTreeSet<&str> =
            told["requests"].split(", ").map(|item| item.split(' ').next().unwrap()).collect();
        assert!(requests.is_superset(&["ioctl", "lookup", "read"].into()), "{requests:?}");
        assert_eq!(told["errors"], "ENOTTY 1");
        assert_eq!(told["read"], format!("{MIB} bytes"));
    }
}

/// A FIFO is no file to wait for: neither for its reader to come, nor for one who reads no more.
#[test]
fn a_log_that_nobody_reads_is_waited_for_by_nobody() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("observe");
    let root = StoreBuilder::new(dir.path().join("docker")).finish();
    let (fifo, point) = (dir.path().join("fifo"), dir.path().join("mnt"));
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let arguments = ["-v", "--log-file", fifo.to_str().unwrap()];
    let refused = Mounted::with(&root, &point, &arguments, 1);
    let why = "it is a FIFO that nobody reads";
    assert_eq!(refused.stderr, format!("docker-fs: cannot open the log file {}: {why}\n", fifo.display()));
    drop(refused);
    let mut reader =
        File::options().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(&fifo).unwrap();
    let mount = Mounted::with(&root, &point, &arguments, 0);
    let pid = Pid::from_raw(mount.daemon().unwrap().cast_signed()).unwrap();
    // More than the pipe takes.
    for _ in 0..2_000 {
        kill_process(pid, Signal::USR1).unwrap();
        assert!(fs::read(mount.path().join("status")).unwrap().len() > 100);
    }
    let mut start = vec![0; 4 << 10];
    let filled = reader.read(&mut start).unwrap();
    assert!(String::from_utf8_lossy(&start[..filled]).contains("docker-fs: info: mounted"));
}

#[test]
fn a_socket_is_no_log() {
    if !require_privileges("a mount") {
        return;
    }
    let dir = support::scratch("observe");
    let root = StoreBuilder::new(dir.path().join("docker")).finish();
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let arguments = ["--log-file", socket.to_str().unwrap()];
    let refused = Mounted::with(&root, &dir.path().join("mnt"), &arguments, 1);
    let said = format!("docker-fs: cannot open the log file {}: it is a socket\n", socket.display());
    assert_eq!(refused.stderr, said);
}

// `status`.

#[test]
fn status_tells_what_the_process_may_do_and_when_it_counted() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new(&[]);
    let status = bench.status();
    let capabilities: Vec<&str> = status["capabilities"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for needed in ["CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH"] {
        assert!(capabilities.contains(&needed), "{capabilities:?}");
    }
    let taken = status["figures"]["taken_unix_seconds"].as_u64().unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!((taken..taken + 120).contains(&now), "taken at {taken}, now is {now}");
    bench.assert_soon("/taken_unix_seconds", |later| later > taken);
}

/// A reader gets one state of the file, though the name stands for another by then.
#[test]
fn a_reader_of_status_gets_one_state() {
    if !require_privileges("a mount") {
        return;
    }
    for opens in ["opens=once", "opens=each"] {
        let bench = Bench::new(&["-o", opens]);
        let file = File::open(bench.mount.path().join("status")).unwrap();
        let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
        let mut text = vec![0; length];
        file.read_exact_at(&mut text[..length / 2], 0).unwrap();
        let first = bench.status();
        assert!(eventually(|| bench.status() != first), "the figures stand still");
        file.read_exact_at(&mut text[length / 2..], (length / 2) as u64).unwrap();
        let read: Value = serde_json::from_slice(&text).expect("two states in one");
        assert!(read["figures"]["taken_unix_seconds"].as_u64() <= first["figures"]["taken_unix_seconds"].as_u64());
    }
}

#[test]
fn figures_follow_what_is_done() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new(&["-o", "opens=each"]);
    let big = bench.merged().join("big");
    read_whole(&big);
    // What status itself takes comes on top.
    bench.assert_soon("/read_bytes", |bytes| bytes >= MIB as u64);
    bench.assert_soon("/requests/lookup", |count| count >= 3);
    assert_eq!(rustix::fs::ioctl_getflags(File::open(&big).unwrap()), Err(Errno::NOTTY));
    bench.assert_soon("/errors/ENOTTY", |count| count == 1);

    let before = bench.figure("/inodes/held");
    let output = Command::new("find").arg(bench.merged()).output().unwrap();
    assert!(output.status.success());
    bench.assert_soon("/inodes/held", |held| held >= before + 80);
    bench.assert_soon("/inodes/bytes", |bytes| bytes > 80 * 100);
    bench.assert_soon("/listings/made", |made| made >= 42);
    bench.assert_soon("/listings/kept", |kept| kept >= 42);
    bench.assert_soon("/listings/kept_entries", |entries| entries >= 82);
    bench.assert_soon("/read_ahead/directories", |count| count > 0);
    bench.assert_soon("/read_ahead/directories_used", |count| count > 0);

    let open: Vec<File> = (0..3).map(|_| File::open(&big).unwrap()).collect();
    bench.assert_soon("/open/handles", |handles| handles >= 3);
    drop(open);
    // The status file itself is open while it is read, unless it was read a second ago.
    bench.assert_soon("/open/handles", |handles| handles <= 1);
}

#[test]
fn files_that_are_read_without_being_opened_are_counted() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new(&["-o", "opens=once"]);
    let mut part = [0; 100];
    File::open(bench.merged().join("big")).unwrap().read_exact(&mut part).unwrap();
    bench.assert_soon("/open/unopened", |count| count == 1);
    assert_eq!(bench.figure("/open/handles"), 0);
}

#[test]
fn files_that_the_kernel_reads_by_itself_are_counted() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new(&["-o", "opens=passthrough"]);
    let open: Vec<File> = (0..3).map(|_| File::open(bench.merged().join("big")).unwrap()).collect();
    bench.assert_soon("/open/passthrough", |count| count == 1);
    drop(open);
    bench.assert_soon("/open/passthrough", |count| count == 0);
}

/// Each release is answered by another thread than the opening, which may not have ended yet.
#[test]
fn no_count_of_files_that_the_kernel_reads_by_itself_is_left_behind() {
    if !require_privileges("a mount") {
        return;
    }
    const THREADS: usize = 6;
    let bench = Bench::new(&["-o", "opens=passthrough"]);
    let many = bench.layer.diff_dir().join("many");
    fs::create_dir(&many).unwrap();
    let names: Vec<String> = (0..600 * THREADS).map(|n| n.to_string()).collect();
    for name in &names {
        File::create(many.join(name)).unwrap().set_len(132 << 10).unwrap();
    }
    let many = bench.merged().join("many");
    std::thread::scope(|scope| {
        for names in names.chunks(names.len() / THREADS) {
            scope.spawn(|| names.iter().for_each(|name| drop(File::open(many.join(name)).unwrap())));
        }
    });
    bench.assert_soon("/open/passthrough", |count| count == 0);
    bench.assert_soon("/open/handles", |handles| handles <= 1);
    let held = File::open(bench.merged().join("big")).unwrap();
    bench.assert_soon("/open/passthrough", |count| count == 1);
    drop(held);
}

/// The end of a listing is asked for by who has had the rest.
#[test]
fn listings_of_folders_that_change_are_counted_when_they_are_found() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new(&[]);
    let before = bench.figure("/listings/found");
    assert_eq!(fs::read_dir(bench.mount.path().join("by-tag")).unwrap().count(), 1);
    bench.assert_soon("/listings/found", |found| found > before);
}

#[test]
fn a_store_that_was_read_again_is_counted() {
    if !require_privileges("a mount") {
        return;
    }
    let bench = Bench::new(&[]);
    bench.assert_soon("/store_rescans", |_| true);
    let before = bench.figure("/store_rescans");
    let repositories = bench.dir.path().join("docker/image/overlay2/repositories.json");
    let renamed = fs::read_to_string(&repositories).unwrap().replace("t:1", "t:2");
    let next = repositories.with_extension("next");
    fs::write(&next, renamed).unwrap();
    fs::rename(&next, &repositories).unwrap();
    assert!(eventually(|| bench.mount.path().join("merged/t:2/big").exists()));
    bench.assert_soon("/store_rescans", |count| count > before);
    assert!(bench.layer.diff_dir().join("big").exists());
}

// Prometheus.

/// The address that a log names.
fn address(bench: &Bench) -> SocketAddr {
    let log = bench.log();
    let (_, rest) = log.split_once("metrics on http://").unwrap_or_else(|| panic!("{log}"));
    rest.split('/').next().unwrap().parse().unwrap()
}

fn metrics_bench() -> (Bench, SocketAddr) {
    let bench = Bench::new(&["-v", "--metrics", "127.0.0.1:0", "-o", "opens=once"]);
    let address = address(&bench);
    assert!(address.ip().is_loopback());
    (bench, address)
}

/// What the server answers to these bytes.
fn ask(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // It may have answered before all was written.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn scrape(address: SocketAddr) -> BTreeMap<String, f64> {
    let answer = ask(address, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let kind = "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(head.lines().any(|line| line == kind), "{head}");
    assert!(head.lines().any(|line| line == format!("Content-Length: {}", body.len())), "{head}");
    samples(body)
}

/// The samples of a text in the OpenMetrics format, which is checked: families declared once and in one piece, names
/// and labels well formed, the suffix of counters, no sample twice, the end marked.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let is_name = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && !name.starts_with(|c: char| c.is_ascii_digit())
    };
    let body = text.strip_suffix("# EOF\n").unwrap_or_else(|| panic!("the end is missing: {text}"));
    let mut family: Option<(String, String)> = None;
    let mut families = BTreeSet::new();
    let mut samples = BTreeMap::new();
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(is_name(name) && ["counter", "gauge"].contains(&kind), "{line}");
            assert!(families.insert(name.to_owned()), "{name} is declared twice");
            family = Some((name.to_owned(), kind.to_owned()));
            continue;
        }
        if let Some(rest) = line.strip_prefix("# HELP ") {
            assert!(rest.split_once(' ').is_some_and(|(name, help)| is_name(name) && !help.is_empty()), "{line}");
            continue;
        }
        assert!(!line.starts_with('#') && !line.is_empty(), "{line:?}");
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
        let (known, kind) = family.as_ref().expect("a sample of no family");
        let expected = if kind == "counter" { format!("{known}_total") } else { known.clone() };
        assert_eq!(name, expected, "{line}");
        let labels = labels.strip_suffix('}').unwrap();
        for label in labels.split(',').filter(|label| !label.is_empty()) {
            let (key, value) = label.split_once('=').unwrap();
            assert!(is_name(key) && value.len() > 2 && value.starts_with('"') && value.ends_with('"'), "{line}");
        }
        assert!(samples.insert(sample.to_owned(), value.parse().unwrap()).is_none(), "{sample} is told twice");
    }
    samples
}

#[test]
fn prometheus_is_told_the_figures() {
    if !require_privileges("a mount") {
        return;
    }
    let (bench, address) = metrics_bench();
    let before = scrape(address);
    assert!(before.len() > 30, "{before:?}");
    assert_eq!(before["docker_fs_read_bytes_total"], 0.0);
    read_whole(&bench.merged().join("big"));
    assert_eq!(rustix::fs::ioctl_getflags(File::open(bench.merged().join("big")).unwrap()), Err(Errno::NOTTY));
    let after = scrape(address);
    assert_eq!(after["docker_fs_read_bytes_total"], MIB as f64);
    assert_eq!(after["docker_fs_request_errors_total{errno=\"ENOTTY\"}"], 1.0);
    let lookups = "docker_fs_requests_total{operation=\"lookup\"}";
    assert!(after[lookups] >= before[lookups] + 3.0, "{before:?} {after:?}");
    assert!(after["docker_fs_inodes"] >= 4.0 && after["docker_fs_inode_bytes"] >= 400.0, "{after:?}");
    assert!(before.keys().all(|key| after.contains_key(key)), "a counter is gone");
    // What a scrape tells is no secret of an image.
    let answer = ask(address, b"GET /metrics HTTP/1.0\r\n\r\n");
    for secret in ["t:1", &bench.layer.chain_id, bench.dir.path().to_str().unwrap()] {
        assert!(!answer.contains(secret), "{secret}");
    }
}

#[test]
fn what_is_no_scrape_is_refused() {
    if !require_privileges("a mount") {
        return;
    }
    let (bench, address) = metrics_bench();
    let long = format!("GET /metrics HTTP/1.1\r\nCookie: {}\r\n\r\n", "x".repeat(9 << 10));
    for (request, status) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "404 Not Found"),
        (b"GET /metrics/../status HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        (b"\x16\x03\x01\x02\x00\x01", "400 Bad Request"),
        (long.as_bytes(), "431 Request Header Fields Too Large"),
    ] {
        let answer = ask(address, request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{}: {answer}", request.escape_ascii());
    }
    let head = ask(address, b"HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(!scrape(address).is_empty());
    assert!(bench.merged().join("big").exists());
}

/// Who connects and says nothing, or too slowly, is given up; meanwhile the mount answers, and after it the next one.
#[test]
fn silent_connections_keep_nobody() {
    if !require_privileges("a mount") {
        return;
    }
    let (bench, address) = metrics_bench();
    let silent: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut slow = TcpStream::connect(address).unwrap();
    slow.write_all(b"GET /metr").unwrap();
    read_whole(&bench.merged().join("big"));
    assert!(!scrape(address).is_empty(), "the silent ones are not given up");
    for mut stream in silent.into_iter().chain([slow]) {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut answer = Vec::new();
        // Closed without a word.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{}", answer.escape_ascii());
    }
}

/// More connections than can wait to be taken, none of which ever asks, and as many again as soon as they are closed.
#[test]
fn however_many_connections_are_silent_another_one_is_answered() {
    if !require_privileges("a mount") {
        return;
    }
    let (_bench, address) = metrics_bench();
    let half = || {
        let mut stream = TcpStream::connect(address).unwrap();
        // It may have been given up for another.
        let _ = stream.write_all(b"GET /metr");
        stream
    };
    for _ in 0..3 {
        let silent: Vec<TcpStream> = (0..200).map(|_| half()).collect();
        assert!(!scrape(address).is_empty());
        drop(silent);
    }
}

#[test]
fn an_address_that_is_taken_is_said_before_anything_is_mounted() {
    if !require_privileges("a mount") {
        return;
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let dir = support::scratch("observe");
    let root = StoreBuilder::new(dir.path().join("docker")).finish();
    let mount = Mounted::with(&root, &dir.path().join("mnt"), &["--metrics", &address.to_string()], 1);
    assert_eq!(mount.stderr, format!("docker-fs: cannot serve metrics on {address}: Address already in use\n"));
    assert!(fs::read_dir(mount.path()).unwrap().next().is_none());
}
