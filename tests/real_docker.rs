//! What docker-fs shows of a store that a real daemon made, against what the daemon, the kernel and Docker's own tars say.
//!
//! One daemon, one set of images and one mount serve all sections, as starting them takes longer than looking. A section that
//! fails does not keep the next from running; all failures are reported at the end, when the mount and the daemon are gone.

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
use std::fmt::Debug;
use std::fs::{self, File};
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dockerd::{Builder, Dockerd};
use serde_json::Value;
use support::mount::{KernelOverlay, Mounted, OverlayOptions, require_privileges};
use support::store::sha256_hex;
use support::tree::{Options, Tree, assert_same, snapshot};

/// How long a change of the store may take to be seen.
const PATIENCE: Duration = Duration::from_secs(2);

const APP: &str = "reg.example:5000/team/app:2";
const BUILDKIT: &str = "host:5000/x/y:1";

/// Every way in which a step changes what an earlier step made. Each RUN is a layer; ENV and LABEL are none, but the
/// classic builder makes an image of every line.
const APP_STEPS: &str = r#"FROM base:1
LABEL step=first
RUN mkdir -p /t/del/sub /t/becomes-file /t/opaque/inner /t/move/a/b /t/owner && cd /t \
 && echo gone >del/file && echo x >del/sub/x && echo f >becomes-dir && echo in >becomes-file/in \
 && echo old >opaque/old && echo o >opaque/inner/o && echo m >move/a/b/m && echo own >owner/own \
 && echo hard >hard1 && echo f >fake && ln hard1 hard2 && ln -s becomes-dir link && ln -s /etc/passwd absolute \
 && ln -s nowhere dangling && mkfifo fifo fifo2 && mknod null c 1 3 && mknod block b 7 9 \
 && truncate -s 3M sparse && echo tail >>sparse && cp /bin/true capped && setcap cap_net_raw+ep capped \
 && touch "$(printf 'new\nline')" "$(printf 'high\377byte')" "$(printf '\001control')" ' spaces ' 'back\slash' \
    'quo"te' ./-dash ... 'ünïcode' "$(printf '%255s' '' | tr ' ' n)" \
 && touch -d '1969-07-20 20:17:40.5 UTC' early && touch -d '2200-01-01 UTC' late
ENV step=second
RUN cd /t && rm -rf del && rm becomes-dir && mkdir becomes-dir && echo n >becomes-dir/n \
 && rm -r becomes-file && echo file >becomes-file && rm -rf opaque && mkdir opaque && echo new >opaque/new \
 && mv move/a moved && chown 1234:5678 owner && chmod 1777 owner && chmod 4711 hard1 && ln hard2 hard3 \
 && mv link renamed && rm fifo && echo more >>capped
RUN cd /t && mkdir del && echo back >del/again && rm opaque/new && rm -r becomes-dir \
 && ln -s becomes-file becomes-dir && chown -h 7:70000 dangling && rm -rf /usr/share/perl5 && rm -rf /usr/share/perl \
 && mkdir /usr/share/perl
RUN true
CMD ["sleep", "infinity"]
"#;

/// What only BuildKit keeps: extended attributes and access lists, and the kernel's own marks beside them.
const BUILDKIT_STEPS: &str = r"FROM base:1
RUN mkdir -p /t/opaque /t/dir && echo old >/t/opaque/old && echo x >/t/dir/x && setfattr -n user.first -v 1 /t/dir \
 && setfacl -m u:7:r /t/dir/x && setfacl -d -m g:8:rwx /t/dir && cp /bin/true /t/capped && setcap cap_net_raw+ep /t/capped
RUN rm -rf /t/opaque && mkdir /t/opaque && echo new >/t/opaque/new && setfattr -n user.second -v 2 /t/dir/x \
 && setfattr -x user.first /t/dir && rm /etc/issue && mkdir /t/deep && mv /t/deep /t/dir/deep && ln /etc/passwd /t/hard
";

/// What is done in a running container: the upper directory is the kernel's, and no tar has been between.
const CONTAINER_CHANGES: &str = r#"set -e; cd /t
rm hard2; rm -r moved; echo more >>sparse; rm -r owner; mkdir owner; echo mine >owner/mine; ln hard1 hard9
setfattr -n user.mark -v yes renamed-file 2>/dev/null || setfattr -n user.mark -v yes becomes-file
setfacl -m u:7:r becomes-file; setfacl -d -m g:8:rwx owner; mknod zero c 1 5; mkfifo pipe
: >.wh.fake; touch "$(printf 'odd\nname\377')"; chmod 0 late; chown 5:6 early; touch -d '2001-02-03 04:05:06.789' early
mv becomes-file becomes-other; mkdir becomes-file; rm -rf /usr/share/bash-completion; truncate -s 32M huge; chmod 2750 /t
"#;

type Section = fn(&Bench);

#[test]
fn shows_what_docker_shows() {
    let programs = [dockerd::PROGRAMS, &["setcap"]].concat();
    if !require_privileges("a Docker daemon") || !dockerd::has_programs(&programs) {
        return;
    }
    let setup = Instant::now();
    let daemon = Dockerd::start();
    let with_buildkit = make_images(&daemon);
    make_containers(&daemon);
    let mount = Mounted::new(&daemon.root(), &daemon.scratch("mnt"));
    let bench = Bench { mount, daemon, with_buildkit };
    eprintln!("setup: {:.1} s", setup.elapsed().as_secs_f32());

    let sections: &[(&str, Section)] = &[
        ("tags", tags),
        ("image IDs and configs", image_ids),
        ("containers by name", container_names),
        ("facts of layers", facts_of_layers),
        ("images against the kernel's union", merged_images),
        ("containers against the kernel's union", merged_containers),
        ("container against docker export", exported_container),
        ("container against tar inside it", tar_inside),
        ("layers against docker save", saved_layers),
        ("changes in a running container", live_container),
        ("tags and images that come and go", live_tags),
        ("containers that come and go", live_containers),
    ];
    let mut failed = Vec::new();
    for (name, section) in sections {
        let start = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(|| section(&bench)));
        let seconds = start.elapsed().as_secs_f32();
        eprintln!("{name}: {} ({seconds:.1} s)", if ended.is_ok() { "ok" } else { "FAILED" });
        if ended.is_err() {
            failed.push(*name);
        }
    }
    drop(bench);
    assert!(failed.is_empty(), "failed sections: {failed:?}; what they found is above");
}

/// The mount goes away before the daemon whose root it shows.
struct Bench {
    mount: Mounted,
    daemon: Dockerd,
    with_buildkit: bool,
}

impl Bench {
    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.mount.path().join(path)
    }

    /// `docker images -a`, each ID once, without `sha256:`.
    fn image_ids(&self) -> BTreeSet<String> {
        let lines = self.daemon.lines(&["images", "-aq", "--no-trunc"]);
        lines.iter().map(|id| id.strip_prefix("sha256:").unwrap().to_owned()).collect()
    }

    /// Every `repository:tag` of `docker images`.
    fn tags(&self) -> BTreeSet<String> {
        let lines = self.daemon.lines(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
        lines.into_iter().filter(|line| !line.contains("<none>")).collect()
    }
}

/// Makes the images; false if no client here can ask for BuildKit.
fn make_images(daemon: &Dockerd) -> bool {
    daemon.import_base("base:1");
    let classic =
        |tag: &str, text: &str| daemon.build(Builder::Classic, tag, text).unwrap_or_else(|what| panic!("{what}"));
    classic(APP, APP_STEPS);
    // A tag that moves on leaves an image without a name.
    classic("rebuilt:1", "FROM base:1\nRUN echo first >/version\n");
    classic("rebuilt:1", "FROM base:1\nRUN echo second >/version\n");
    classic("empty", "FROM scratch\nLABEL layers=none\n");
    let odd = odd_tar(&daemon.scratch("odd"));
    daemon.docker(&["import", odd.to_str().unwrap(), "grafana/grafana:9.0"]);
    // An image called as the registry of another one, and tags that differ in case only.
    daemon.docker(&["tag", "grafana/grafana:9.0", "host:5000"]);
    daemon.docker(&["tag", "base:1", "base:UPPER"]);
    daemon.docker(&["tag", "rebuilt:1", "base:upper"]);
    daemon.docker(&["tag", "rebuilt:1", "localhost/a.b/c__d/e-f:v1.2.3-rc.1_x"]);
    match daemon.build(Builder::BuildKit, BUILDKIT, BUILDKIT_STEPS) {
        Ok(()) => true,
        Err(what) => {
            eprintln!("skipped: BuildKit's layers; {what}");
            daemon.docker(&["tag", "rebuilt:1", BUILDKIT]);
            false
        }
    }
}

/// A tar of what a build step can hardly make: IDs beyond 16 and 31 bits, long names and targets, odd modes and types.
fn odd_tar(dir: &Path) -> PathBuf {
    let script = r#"set -e; mkdir root; cd root; mkdir -p d/e f; echo a >d/a; chown 4000000000:3000000000 d/a; chmod 7777 f
        long=$(printf '%200s' '' | tr ' ' l); mkdir -p "$long/$long"; echo deep >"$long/$long/$long"
        ln -s "$long/$long/$long/$long" symlink; ln d/a d/b; ln "$long/$long/$long" linked; chmod 000 d/e
        mknod c c 200 70000; mknod b b 8 300; mkfifo p; touch -d @0 epoch; touch -d '1901-12-14 UTC' old; : >empty
        head -c 100000 /dev/urandom >random; touch "$(printf 'not\351utf8')"; chown -h 9:9 symlink
        tar --format=pax --numeric-owner -cf ../odd.tar ."#;
    dockerd::run(Command::new("sh").arg("-c").arg(script).current_dir(dir));
    dir.join("odd.tar")
}

fn make_containers(daemon: &Dockerd) {
    let run = ["run", "-d", "--network", "none", "-v", "/data", "--name"];
    daemon.docker(&[&run, ["changed", APP].as_slice()].concat());
    daemon.docker(&["exec", "changed", "sh", "-c", CONTAINER_CHANGES]);
    // In the image, `.wh.fake` is a whiteout. (Empty, as the daemon cannot save a layer whose whiteout had content.)
    daemon.docker(&["commit", "changed", "committed:1"]);
    daemon.docker(&[
        "run",
        "--network",
        "none",
        "--name",
        "Stopped_1.x",
        APP,
        "sh",
        "-c",
        "rm -r /t/del; echo s >/t/s",
    ]);
    daemon.docker(&["create", "--network", "none", "--name", "only-created", "base:UPPER", "true"]);
    daemon.docker(&["create", "--network", "none", "--name", "without-layers", "empty", "/none"]);
}

// Names

/// Where `by-tag` lists a tag: at its familiar name, and `host:5000`, whose place is the directory of the registry of that
/// name, at its full one.
fn place_of(tag: &str) -> &str {
    if tag == "host:5000" { "docker.io/library/host:5000" } else { tag }
}

fn tags(bench: &Bench) {
    let tags = bench.tags();
    let mut listed = BTreeSet::new();
    find_images(&bench.at("by-tag"), "", &mut listed);
    let expected: BTreeSet<String> = tags.iter().map(|tag| place_of(tag).to_owned()).collect();
    assert_eq!(listed, expected, "by-tag lists the tags of `docker images`");
    let leads_to = |place: &str, tag: &str| {
        let config = fs::read(bench.at("by-tag").join(place).join("config.json"));
        let config = config.unwrap_or_else(|error| panic!("by-tag/{place}: {error}"));
        assert_eq!(sha256_hex(&config), bench.daemon.image_id(tag), "{place}");
    };
    for tag in &tags {
        leads_to(place_of(tag), tag);
    }
    // What a user may type instead is not listed, but leads there.
    leads_to("empty", "empty:latest");
    leads_to("docker.io/library/base:1", "base:1");
    leads_to("library/base:1", "base:1");
    leads_to("docker.io/grafana/grafana:9.0", "grafana/grafana:9.0");
    for none in ["base", "base:Upper", "grafana:9.0", "reg.example:5000/team/app", "team/app:2"] {
        assert!(!bench.at("by-tag").join(none).join("config.json").exists(), "{none}");
    }
    assert_eq!(names(&bench.at("by-digest")), BTreeSet::new(), "what was built here has no manifest digest");
}

/// Collects the image directories that are listed below a directory of `by-tag`.
fn find_images(dir: &Path, prefix: &str, found: &mut BTreeSet<String>) {
    for name in names(dir) {
        let place = dir.join(&name);
        assert!(fs::symlink_metadata(&place).unwrap().is_dir(), "{}", place.display());
        if place.join("config.json").exists() {
            found.insert(format!("{prefix}{name}"));
        } else {
            find_images(&place, &format!("{prefix}{name}/"), found);
        }
    }
}

fn image_ids(bench: &Bench) {
    let expected = bench.image_ids();
    assert_eq!(names(&bench.at("by-id")), expected, "by-id lists the images of `docker images -a`");
    for id in &expected {
        let dir = bench.at("by-id").join(id);
        let config = fs::read(dir.join("config.json")).unwrap();
        assert_eq!(sha256_hex(&config), *id);
        check_history(&config, &fs::read_to_string(dir.join("history")).unwrap());
        let short = bench.at("by-id").join(&id[..12]);
        assert_eq!(fs::canonicalize(short).unwrap(), dir, "the short ID leads to the image");
    }
}

/// A row per build step below the heading: the number of the layer that it made or `-`, and what the step was.
fn check_history(config: &[u8], history: &str) {
    let config: Value = serde_json::from_slice(config).unwrap();
    let mut expected = Vec::new();
    let mut layers = 0..config["rootfs"]["diff_ids"].as_array().map_or(0, Vec::len);
    for step in config["history"].as_array().into_iter().flatten() {
        let number = if step["empty_layer"] == true { None } else { Some(layers.next().unwrap()) };
        expected.push(number.map_or_else(|| "-".to_owned(), |number| number.to_string()));
    }
    expected.extend(layers.map(|number| number.to_string()));
    let found: Vec<&str> = history.lines().skip(1).map(|row| row.split_whitespace().next().unwrap()).collect();
    assert_eq!(found, expected, "{history}");
}

fn container_names(bench: &Bench) {
    let expected: BTreeSet<String> = bench.daemon.lines(&["ps", "-a", "--format", "{{.Names}}"]).into_iter().collect();
    assert_eq!(names(&bench.at("by-container")), expected, "by-container lists the containers of `docker ps -a`");
    for name in &expected {
        let config = fs::read(bench.at("by-container").join(name).join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["ID"], bench.daemon.inspect("container", name)["Id"], "{name}");
    }
}

// Layers

fn facts_of_layers(bench: &Bench) {
    let mut layers = 0;
    for id in bench.image_ids() {
        let image = bench.daemon.inspect("image", &id);
        let diff_ids: Vec<&str> = image["RootFS"]["Layers"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|diff_id| diff_id.as_str().unwrap())
            .collect();
        let mut dirs = bench.daemon.image_layers(&id);
        dirs.reverse();
        assert_eq!(dirs.len(), diff_ids.len(), "{id}");
        let listed = names(&bench.at("by-id").join(&id).join("layers"));
        let numbers: BTreeSet<String> = listed.iter().filter(|name| !name.contains('.')).cloned().collect();
        assert_eq!(numbers, (0..dirs.len()).map(|number| number.to_string()).collect(), "{id}: {listed:?}");
        let mut chain_id = String::new();
        for (number, (dir, diff_id)) in dirs.iter().zip(&diff_ids).enumerate() {
            chain_id = match chain_id.as_str() {
                "" => (*diff_id).to_owned(),
                below => format!("sha256:{}", sha256_hex(format!("{below} {diff_id}"))),
            };
            let chain = chain_id.strip_prefix("sha256:").unwrap();
            let diff = diff_id.strip_prefix("sha256:").unwrap();
            let read = |path: PathBuf| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
            let facts = read(bench.at("by-id").join(&id).join(format!("layers/{number}.json")));
            let what = format!("layer {number} of {id}");
            assert_eq!(facts["diff_id"], *diff_id, "{what}");
            assert_eq!(facts["chain_id"], *chain_id, "{what}");
            assert_eq!(facts["cache_id"], *dir.parent().unwrap().file_name().unwrap().to_str().unwrap(), "{what}");
            assert_eq!(facts["directory"], *dir.to_str().unwrap(), "{what}");
            assert_eq!(facts["layer"], number, "{what}");
            let by_chain = read(bench.at("by-chain").join(format!("{chain}.json")));
            let by_diff = read(bench.at("by-diff").join(format!("{diff}.json")));
            for same in ["diff_id", "chain_id", "cache_id", "directory", "size_bytes", "driver"] {
                assert_eq!(by_chain[same], facts[same], "{what}: {same}");
            }
            // Another chain may have the same change.
            assert_eq!(by_diff["diff_id"], facts["diff_id"], "{what}");
            layers += 1;
        }
    }
    assert!(layers > 10, "{layers} layers");
}

// Unions

/// The kernel's union of exactly these directories.
fn kernel_tree(layers: &[PathBuf], options: &Options) -> Tree {
    let overlay = KernelOverlay::new(layers, &OverlayOptions::default()).unwrap();
    snapshot(&overlay.path(), options)
}

fn merged_images(bench: &Bench) {
    // Contents are compared where steps differ; the many images between differ in names and attributes if at all.
    let read = [APP, "grafana/grafana:9.0", BUILDKIT].map(|tag| bench.daemon.image_id(tag));
    for id in bench.image_ids() {
        let options = Options { no_content: !read.contains(&id), blocks: true, ..Options::default() };
        let layers = bench.daemon.image_layers(&id);
        let mut found = snapshot(&bench.at("merged").join(&id), &options);
        let mut expected = if layers.is_empty() { Tree::new() } else { kernel_tree(&layers, &options) };
        if layers.len() < 2 {
            // The kernel unites no single directory; the root of what stands in for it is not the image's.
            expected.remove(&Vec::new());
            found.remove(&Vec::new());
        }
        assert_same(&id, &expected, &found);
    }
    for tag in bench.tags() {
        let through_tag = fs::canonicalize(bench.at("by-tag").join(place_of(&tag)).join("merged")).unwrap();
        let through_id = fs::canonicalize(bench.at("merged").join(bench.daemon.image_id(&tag))).unwrap();
        assert_eq!(through_tag, through_id, "{tag}");
    }
    let deleted = bench.at("merged").join(bench.daemon.image_id(APP)).join("usr/share/perl5");
    assert!(!deleted.exists(), "the step that removes it counts");
    if bench.with_buildkit {
        let id = bench.daemon.image_id(BUILDKIT);
        let attributes =
            &snapshot(&bench.at("merged").join(id).join("t/dir"), &Options::default())[b"x".as_slice()].xattrs;
        assert!(attributes.contains_key(b"user.second".as_slice()), "{attributes:?}");
        assert!(attributes.contains_key(b"system.posix_acl_access".as_slice()), "{attributes:?}");
    }
}

fn merged_containers(bench: &Bench) {
    let options = |no_content| Options { no_content, blocks: true, ..Options::default() };
    let merged =
        |name: &str, no_content| snapshot(&bench.at("by-container").join(name).join("merged"), &options(no_content));
    // What the container runs on, as the daemon mounted it.
    let mounted = snapshot(&bench.daemon.merged_dir("changed"), &options(false));
    assert!(mounted.contains_key(b"t/.wh.fake".as_slice()), "a file may be called like a whiteout in a container");
    assert_same("changed", &mounted, &merged("changed", false));
    for name in ["Stopped_1.x", "only-created", "without-layers"] {
        let expected = kernel_tree(&bench.daemon.container_layers(name), &options(true));
        assert_same(name, &expected, &merged(name, true));
    }
}

// Tars

/// A member of a tar, with what Docker's tars and GNU tar's both tell.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    kind: char,
    mode: u64,
    owner: (u64, u64),
    /// Whole seconds: the forms of tar differ in what is below.
    mtime: i64,
    device: Option<(u64, u64)>,
    target: Vec<u8>,
    size: u64,
    sha256: String,
    capability: Vec<u8>,
    /// Every name of the same file, as which of them is the first one depends on who wrote the tar.
    names: BTreeSet<Vec<u8>>,
}

type Members = BTreeMap<Vec<u8>, Member>;

/// Reads a tar: ustar with PAX headers and GNU's long names; no sparse members, which nobody here writes.
fn members(mut tar: impl Read) -> Members {
    let mut found = Members::new();
    let mut links: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut special: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut header = [0_u8; 512];
    loop {
        tar.read_exact(&mut header).unwrap();
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        let text = |range: std::ops::Range<usize>| {
            let field = &header[range];
            field.iter().position(|byte| *byte == 0).map_or(field, |end| &field[..end]).to_vec()
        };
        let number = |key: &str, range: std::ops::Range<usize>| match special.get(key.as_bytes()) {
            Some(value) => std::str::from_utf8(value).unwrap().parse().unwrap(),
            None => tar_number(&header[range]),
        };
        let size = number("size", 124..136);
        let kind = char::from(header[156]);
        let body_len = if matches!(kind, '0' | '\0' | 'x' | 'g' | 'L' | 'K') { size } else { 0 };
        let mut body = vec![0_u8; usize::try_from(body_len.next_multiple_of(512)).unwrap()];
        tar.read_exact(&mut body).unwrap();
        body.truncate(usize::try_from(body_len).unwrap());
        let until_nul = |body: &[u8]| body.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        match kind {
            'x' => {
                special.extend(pax_records(&body));
                continue;
            }
            'g' => continue,
            'L' => {
                special.insert(b"path".to_vec(), until_nul(&body));
                continue;
            }
            'K' => {
                special.insert(b"linkpath".to_vec(), until_nul(&body));
                continue;
            }
            _ => {}
        }
        let prefix = if header[257..263] == *b"ustar\0" { text(345..500) } else { Vec::new() };
        let short = if prefix.is_empty() { text(0..100) } else { [&prefix, b"/".as_slice(), &text(0..100)].concat() };
        let name = plain(special.get(b"path".as_slice()).unwrap_or(&short));
        let target = special.get(b"linkpath".as_slice()).cloned().unwrap_or_else(|| text(157..257));
        let mtime = special.get(b"mtime".as_slice()).map_or_else(
            || tar_number(&header[136..148]).cast_signed(),
            |value| whole_seconds(std::str::from_utf8(value).unwrap()),
        );
        if kind == '1' {
            links.push((name, plain(&target)));
        } else if !name.is_empty() {
            let member = Member {
                kind: if kind == '\0' { '0' } else { kind },
                // Some writers put the type of the file into its mode.
                mode: tar_number(&header[100..108]) & 0o7777,
                owner: (number("uid", 108..116), number("gid", 116..124)),
                mtime,
                device: matches!(kind, '3' | '4')
                    .then(|| (tar_number(&header[329..337]), tar_number(&header[337..345]))),
                target: if kind == '2' { target } else { Vec::new() },
                size: body_len,
                sha256: sha256_hex(&body),
                capability: special.get(b"SCHILY.xattr.security.capability".as_slice()).cloned().unwrap_or_default(),
                names: BTreeSet::from([name.clone()]),
            };
            found.insert(name, member);
        }
        special.clear();
    }
    for (name, first) in &links {
        found
            .get_mut(first)
            .unwrap_or_else(|| panic!("{first:?}, the first name of {name:?}"))
            .names
            .insert(name.clone());
    }
    for (name, first) in links {
        let names = found[&first].names.clone();
        for each in names.iter().chain([&name]) {
            let member = Member { names: names.clone(), ..found[&first].clone() };
            found.insert(each.clone(), member);
        }
    }
    found
}

/// A number of a tar header: octal text, or big-endian after a first byte of 0x80 (0xff for a negative one).
fn tar_number(field: &[u8]) -> u64 {
    if field[0] & 0x80 != 0 {
        let start = if field[0] == 0xff { u64::MAX } else { u64::from(field[0] & 0x7f) };
        return field[1..].iter().fold(start, |number, byte| number << 8 | u64::from(*byte));
    }
    let digits = field.iter().filter(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 8 + u64::from(digit - b'0'))
}

/// The records `length key=value\n` of a PAX header; a value may hold any byte.
fn pax_records(mut body: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut records = Vec::new();
    while let Some(space) = body.iter().position(|byte| *byte == b' ') {
        let len: usize = std::str::from_utf8(&body[..space]).unwrap().parse().unwrap();
        let record = &body[space + 1..len - 1];
        let equals = record.iter().position(|byte| *byte == b'=').unwrap();
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        body = &body[len..];
    }
    records
}

/// The seconds of `-14159020.5`, rounded down as the kernel counts.
fn whole_seconds(text: &str) -> i64 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = whole.parse().unwrap();
    whole - i64::from(text.starts_with('-') && fraction.bytes().any(|digit| digit != b'0'))
}

/// A member's name without `./` before and `/` after it; nothing for the root.
fn plain(name: &[u8]) -> Vec<u8> {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    let name = name.strip_suffix(b"/").unwrap_or(name);
    if name == b"." { Vec::new() } else { name.to_vec() }
}

/// What GNU tar makes of a directory. It tells nothing of sockets.
fn tar_of(dir: &Path) -> Members {
    let mut command = Command::new("tar");
    command.args(["--numeric-owner", "--format=pax", "--xattrs", "--xattrs-include=security.capability"]);
    members_of(command.arg("-C").arg(dir).args(["-cf", "-", "."]))
}

/// The members of the tar that a command writes.
fn members_of(command: &mut Command) -> Members {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let found = members(&mut stdout);
    std::io::copy(&mut stdout, &mut std::io::sink()).unwrap();
    let status = child.wait().unwrap();
    assert!(status.success(), "{command:?}: {status}");
    found
}

fn assert_same_members(what: &str, expected: &Members, found: &Members) {
    let names: BTreeSet<&Vec<u8>> = expected.keys().chain(found.keys()).collect();
    let mut lines = Vec::new();
    for name in names {
        let (a, b) = (expected.get(name), found.get(name));
        if a != b {
            lines.push(format!("{}:\n    expected {a:?}\n    found    {b:?}", name.escape_ascii()));
        }
    }
    let count = lines.len();
    lines.truncate(20);
    assert!(lines.is_empty(), "{what}: {count} members differ:\n  {}", lines.join("\n  "));
}

fn exported_container(bench: &Bench) {
    let tar = bench.daemon.scratch("export").join("export.tar");
    bench.daemon.docker(&["export", "-o", tar.to_str().unwrap(), "changed"]);
    let expected = members(File::open(&tar).unwrap());
    fs::remove_file(&tar).unwrap();
    assert!(expected.len() > 1000, "{} members", expected.len());
    let found = tar_of(&bench.at("by-container/changed/merged"));
    assert_same_members("changed", &expected, &found);
}

/// The container's own view of the part of its tree that nothing is mounted upon.
fn tar_inside(bench: &Bench) {
    let args = ["exec", "changed", "tar", "--numeric-owner", "--format=pax", "--xattrs"];
    let more = ["--xattrs-include=security.capability", "-C", "/t", "-cf", "-", "."];
    let expected = bench.daemon.try_docker(&[args.as_slice(), &more].concat()).unwrap_or_else(|what| panic!("{what}"));
    let found = tar_of(&bench.at("by-container/changed/merged/t"));
    assert_same_members("/t", &members(expected.as_slice()), &found);
}

fn saved_layers(bench: &Bench) {
    let scratch = bench.daemon.scratch("save");
    for tag in [APP, "grafana/grafana:9.0", "committed:1", BUILDKIT] {
        let dir = scratch.join(bench.daemon.image_id(tag));
        fs::create_dir_all(&dir).unwrap();
        let tar = dir.join("image.tar");
        bench.daemon.docker(&["save", "-o", tar.to_str().unwrap(), tag]);
        dockerd::run(Command::new("tar").arg("-C").arg(&dir).arg("-xf").arg(&tar));
        let manifest: Value = serde_json::from_slice(&fs::read(dir.join("manifest.json")).unwrap()).unwrap();
        let layers = manifest[0]["Layers"].as_array().unwrap();
        assert!(!layers.is_empty(), "{tag}");
        for (number, layer) in layers.iter().enumerate() {
            let saved = File::open(dir.join(layer.as_str().unwrap())).unwrap();
            let place = bench.at("by-tag").join(tag).join("layers").join(number.to_string());
            let what = format!("layer {number} of {tag}");
            let mut expected = comparable(members(saved));
            for member in expected.values_mut() {
                // The daemon keeps a time before 1970 for its tar, but unpacks the file with the time 0.
                member.mtime = member.mtime.max(0);
            }
            assert_same_members(&what, &expected, &comparable(tar_of(&place)));
        }
        fs::remove_dir_all(dir).unwrap();
    }
}

/// A layer's members with what a whiteout's name says, and nothing of its owner, mode and time: those are the daemon's in
/// its tar, and the ones of the store's own mark in ours.
fn comparable(mut members: Members) -> Members {
    for (name, member) in &mut members {
        let last = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        if last.starts_with(b".wh.") {
            assert_eq!((member.kind, member.size), ('0', 0), "{}", name.escape_ascii());
            (member.mode, member.owner, member.mtime) = (0, (0, 0), 0);
            // The kernel makes one device and links it everywhere; in a tar each whiteout stands for itself.
            member.names = BTreeSet::from([name.clone()]);
        }
    }
    members
}

// Changes while mounted

/// Waits until `seen` gives the expected value; not longer than a change may take to be seen.
fn wait_for<T: PartialEq + Debug>(what: &str, expected: &T, seen: impl Fn() -> T) {
    let start = Instant::now();
    loop {
        let found = seen();
        if found == *expected {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: expected {expected:?}, found {found:?} after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn config_hash(dir: &Path) -> Option<String> {
    fs::read(dir.join("config.json")).ok().map(sha256_hex)
}

fn live_container(bench: &Bench) {
    let merged = bench.at("by-container/changed/merged/t");
    assert!(!merged.join("fresh").exists());
    assert!(merged.join("renamed").symlink_metadata().is_ok());
    let exec = |script: &str| bench.daemon.docker(&["exec", "changed", "sh", "-c", script]);
    exec("cd /t && echo one >fresh && rm renamed && mkdir fresh-dir");
    let text = || fs::read_to_string(merged.join("fresh")).ok();
    wait_for("a new file", &Some("one\n".to_owned()), text);
    wait_for("a removed link", &false, || merged.join("renamed").symlink_metadata().is_ok());
    wait_for("a new directory", &true, || names(&merged).contains("fresh-dir"));
    exec("cd /t && echo longer >>fresh && rmdir fresh-dir");
    wait_for("a longer file", &Some("one\nlonger\n".to_owned()), text);
    wait_for("a removed directory", &false, || names(&merged).contains("fresh-dir"));
}

fn live_tags(bench: &Bench) {
    let daemon = &bench.daemon;
    let place = bench.at("by-tag/live/come-and-go:1");
    let hash = || config_hash(&place);
    let version = || fs::read_to_string(place.join("merged/version")).ok();
    wait_for("no tag yet", &None, hash);

    let first = "FROM base:1\nRUN echo live-first >/version\n";
    daemon.build(Builder::Classic, "live/come-and-go:1", first).unwrap_or_else(|what| panic!("{what}"));
    let first = daemon.image_id("live/come-and-go:1");
    wait_for("a new image", &Some(first.clone()), hash);
    wait_for("its content", &Some("live-first\n".to_owned()), version);
    wait_for("its ID", &true, || names(&bench.at("by-id")).contains(&first));

    daemon.docker(&["tag", "rebuilt:1", "live/come-and-go:1"]);
    wait_for("a moved tag", &Some(daemon.image_id("rebuilt:1")), hash);
    wait_for("the new content", &Some("second\n".to_owned()), version);
    let names_of_first = || (bench.at("by-id").join(&first).exists(), bench.at("merged").join(&first).exists());
    wait_for("the image that lost its tag", &(true, true), names_of_first);

    daemon.docker(&["rmi", &first]);
    wait_for("a removed image", &(false, false), names_of_first);
    daemon.docker(&["rmi", "live/come-and-go:1"]);
    wait_for("a removed tag", &None, hash);
    wait_for("its directory", &false, || bench.at("by-tag/live").exists());
    assert_eq!(names(&bench.at("by-id")), bench.image_ids());
    tags(bench);
}

fn live_containers(bench: &Bench) {
    let place = bench.at("by-container");
    bench.daemon.docker(&["create", "--network", "none", "--name", "brief", "base:1", "true"]);
    wait_for("a new container", &true, || names(&place).contains("brief"));
    assert!(place.join("brief/merged/etc/passwd").exists());
    bench.daemon.docker(&["rename", "brief", "renamed"]);
    wait_for("its new name", &(false, true), || (place.join("brief").exists(), place.join("renamed").exists()));
    bench.daemon.docker(&["rm", "renamed"]);
    wait_for("a removed container", &false, || place.join("renamed").exists() || names(&place).contains("renamed"));
}

/// The names in a directory; those that are no text are of no interest where this is asked.
fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}
