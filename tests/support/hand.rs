//! Images made by hand, as archives of `docker save`: one with every kind of entry and of change, and small ones for what
//! engines make different trees of.
//!
//! A tar has no sockets, so images have none. All times are fixed, as are owners and modes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::machine::run;
use super::support::store::sha256_hex;

/// Every kind of entry, and every change of it that layers can say.
pub(crate) const HAND: &str = "localhost/hand:1";
/// What engines unpack in ways of their own.
pub(crate) const ODD: &str = "localhost/odd:1";
/// A layer's root that is opaque.
pub(crate) const OPAQUE: &str = "localhost/opaque:1";
/// Owners beyond what a user's containers have.
pub(crate) const HIGH: &str = "localhost/high:1";
/// A directory that the kernel takes for another one's new name.
pub(crate) const REDIRECT: &str = "localhost/redirect:1";

/// Programs without which they cannot be made.
pub(crate) const PROGRAMS: &[&str] = &["busybox", "setfattr", "setcap", "setfacl", "tar"];

/// What each layer of an image begins with: its files have one time, unless told.
const FINISH: &str = "find . -exec touch -h -d '2020-01-02 03:04:05.678901234 UTC' {} +\n";

/// The program that containers run.
const SLEEP: &str = "mkdir -p bin; cp \"$(command -v busybox)\" bin/busybox\n";

/// A layer: what makes its files, what is done to them after their times are set, and the names in its tar, all unless told.
struct Layer {
    make: &'static str,
    then: &'static str,
    names: &'static str,
}

const ALL: &str = "find . -mindepth 1 -print0 | LC_ALL=C sort -z";

const HAND_LAYERS: [Layer; 4] = [
    Layer {
        make: r#"mkdir -p plain links devices modes/set-group-id modes/sticky modes/closed xattrs/inherits owners times names many
mkdir -p gone/deep dir-to-file/in dir-to-link/in opaque/inner refilled/sub kept below/a/b
printf 'regular\n' >plain/regular; : >plain/empty; head -c 300000 /dev/zero | tr '\0' L >plain/large
truncate -s 8M plain/sparse; echo tail >>plain/sparse; echo same >plain/same
echo hard >links/one; ln links/one links/two; ln links/one plain/three; ln -s one links/symbolic; ln links/symbolic links/symbolic2
ln -s /nowhere/at/all links/dangling; ln -s "$(printf '%4000s' '' | tr ' ' t)" links/long; ln -s loop links/loop; ln -s plain link-to-dir
mkfifo devices/fifo devices/gone; ln devices/fifo devices/fifo2
for mode in 4755 2755 1644 7777 0000 0200; do echo $mode >modes/$mode; chmod $mode modes/$mode; done
chmod 2775 modes/set-group-id; chmod 1777 modes/sticky; echo in >modes/closed/in; chmod 0 modes/closed
echo x >xattrs/user; setfattr -n user.note -v 0x00ff0a xattrs/user; setfattr -n user.empty -v '' xattrs/user
setfattr -n user.dir -v d xattrs; cp /bin/true xattrs/capable; setcap cap_net_raw+ep xattrs/capable
echo x >xattrs/access; setfacl -m u:7:r,g:8:rw xattrs/access; setfacl -d -m g:8:rwx xattrs/inherits
for owner in 1:2 1234:5678 65535:65535; do echo $owner >owners/$owner; chown $owner owners/$owner; done
ln -s x owners/symbolic; chown -h 7:8 owners/symbolic; mkdir owners/dir; chown 5:6 owners/dir
cd names; : >"$(printf 'new\nline')"; : >"$(printf 'high\377byte')"; : >"$(printf 'control\001\033')"; : >' spaces '; : >'back\slash'; : >'"quote'
: >unïcode; : >-dash; : >...; : >..x; : >.wh; : >.whx; : >wh.x; : >.w.h.x; : >x.wh.y; : >.WH.x; : >"$(printf '%255s' '' | tr ' ' n)"
long=$(printf '%200s' '' | tr ' ' d); mkdir -p "$long/$long"; echo deep >"$long/$long/$long"; cd ..
for n in $(seq 300); do echo $n >many/$n; done
echo gone >gone/deep/file; echo root >root-file; echo f >file-to-dir; echo in >dir-to-file/in/f; echo in >dir-to-link/in/f; echo l >file-to-link
echo old >opaque/old; echo old >opaque/inner/old; echo old >refilled/old; echo old >refilled/sub/old; echo kept >kept/kept
echo a >below/a/f; echo b >below/a/b/f"#,
        then: r#"touch -d '1970-01-01 UTC' times/epoch; touch -d '1969-07-20 20:17:40.5 UTC' times/before; touch -d '2200-01-01 UTC' times/far
touch -d '2001-02-03 04:05:06.000000001 UTC' times/nanosecond; touch -d '2001-02-03 04:05:06.999999999 UTC' times/late
ln -s x times/symbolic; touch -h -d '2001-02-03 04:05:06.789 UTC' times/symbolic; mkdir times/dir
touch -d '2002-03-04 05:06:07.891 UTC' times/dir; touch -d '2003-04-05 06:07:08.912 UTC' times devices/fifo"#,
        names: ALL,
    },
    Layer {
        make: r#"mkdir -p file-to-dir opaque/inner links devices refilled kept many below/a; mknod devices/null c 1 3; mknod devices/block b 7 9; mknod devices/large c 300 70000
: >.wh.gone; : >.wh.root-file; echo now >dir-to-file; ln -s kept dir-to-link; ln -s kept file-to-link; echo d >file-to-dir/d
: >opaque/.wh..wh..opq; echo new >opaque/new; echo new >opaque/inner/new; : >links/.wh.two; : >devices/.wh.gone; : >.wh.never
: >refilled/.wh.old; : >refilled/.wh.sub; echo new >refilled/new; chown 5:6 kept; chmod 0750 kept; for n in $(seq 1 2 299); do : >many/.wh.$n; done
: >below/a/.wh.b; mkdir link-to-dir; echo now >link-to-dir/f"#,
        then: "touch -d '2021-01-01 UTC' kept many",
        names: ALL,
    },
    Layer {
        make: r#"mkdir -p gone opaque refilled/sub plain links devices below/a/b; echo back >gone/again; : >opaque/.wh.new; echo newest >opaque/newest; echo back >refilled/sub/back
echo changed >plain/regular; chmod 4700 plain/regular; echo back >links/two; ln links/two links/four; : >devices/.wh.fifo; mkfifo -m 0620 devices/gone
echo again >below/a/b/again; mkdir root-file; : >plain/.wh.sparse"#,
        then: "",
        names: ALL,
    },
    Layer {
        make: r#"mkdir -p xattrs; echo top >xattrs/top; setfattr -n user.top -v t xattrs/top; : >.wh.below; mkdir devices; mknod devices/zero c 1 5"#,
        then: "",
        names: ALL,
    },
];

const ODD_LAYERS: [Layer; 2] = [
    Layer {
        make: "mkdir -p c/sub p/q plain; echo old >c/old; echo s >c/sub/s; echo old >p/q/old; echo x >x; chown 5:5 p p/q; chmod 0700 p p/q",
        then: "",
        names: ALL,
    },
    Layer {
        make: r#"mkdir -p c p/q implied/dir; : >.wh.c; echo new >c/new; echo f >p/q/f; echo f >implied/dir/f; mknod x c 0 0; mknod y c 0 0; chown 9:9 .; chmod 0711 ."#,
        then: "",
        names: r"printf '%s\0' . .wh.c c c/new p/q/f implied/dir/f x y bin bin/busybox",
    },
];

const OPAQUE_LAYERS: [Layer; 2] = [
    Layer { make: "mkdir dir; echo old >dir/old; echo old >old", then: "", names: ALL },
    Layer { make: ": >.wh..wh..opq; mkdir dir; echo new >dir/new", then: "", names: ALL },
];

const HIGH_LAYERS: [Layer; 1] =
    [Layer { make: "echo x >high; chown 4000000000:3000000000 high", then: "", names: ALL }];

const REDIRECT_LAYERS: [Layer; 2] = [
    Layer { make: "mkdir from; echo f >from/f", then: "", names: ALL },
    Layer { make: "mkdir to; setfattr -n trusted.overlay.redirect -v /from to", then: "", names: ALL },
];

/// Makes an archive of each image in a directory: names and files.
pub(crate) fn archives(dir: &Path, architecture: &str) -> Vec<(&'static str, PathBuf)> {
    let images: [(&str, &[Layer]); 5] = [
        (HAND, &HAND_LAYERS),
        (ODD, &ODD_LAYERS),
        (OPAQUE, &OPAQUE_LAYERS),
        (HIGH, &HIGH_LAYERS),
        (REDIRECT, &REDIRECT_LAYERS),
    ];
    images
        .iter()
        .enumerate()
        .map(|(number, (name, layers))| {
            let place = dir.join(number.to_string());
            fs::create_dir(&place).unwrap();
            (*name, archive(&place, name, layers, architecture))
        })
        .collect()
}

fn archive(place: &Path, name: &str, layers: &[Layer], architecture: &str) -> PathBuf {
    let (mut tars, mut diffs) = (Vec::new(), Vec::new());
    for (number, layer) in layers.iter().enumerate() {
        let dir = place.join(number.to_string());
        fs::create_dir(&dir).unwrap();
        let sleep = if number + 1 == layers.len() { SLEEP } else { "" };
        let make = format!("{sleep}{}\n", layer.make);
        let script = format!("set -e\n(set -e\n{make})\n{FINISH}{}", layer.then);
        run(Command::new("bash").args(["-c", &script]).current_dir(&dir));
        let tar = format!("{number}.tar");
        let pack = format!(
            "set -eo pipefail; {} | tar --no-recursion --null --xattrs --xattrs-include='*' --format=pax --numeric-owner -cf ../{tar} -T -",
            layer.names
        );
        run(Command::new("bash").args(["-c", &pack]).current_dir(&dir));
        diffs.push(format!("sha256:{}", sha256_hex(fs::read(place.join(&tar)).unwrap())));
        tars.push(tar);
    }
    let config = json!({
        "architecture": architecture, "os": "linux", "created": "2020-01-02T03:04:05Z",
        "config": {"Cmd": ["/bin/busybox", "sleep", "100000"]}, "rootfs": {"type": "layers", "diff_ids": diffs},
    })
    .to_string();
    let config_file = format!("{}.json", sha256_hex(&config));
    fs::write(place.join(&config_file), config).unwrap();
    let manifest = json!([{"Config": config_file, "RepoTags": [name], "Layers": tars}]);
    fs::write(place.join("manifest.json"), manifest.to_string()).unwrap();
    run(Command::new("tar").current_dir(place).args(["-cf", "image.tar", "manifest.json", &config_file]).args(&tars));
    place.join("image.tar")
}
