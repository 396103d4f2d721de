//! The unit under a real systemd, booted in a container of `systemd-nspawn` from a Debian root that `debootstrap` makes once.
//!
//! A script that is itself a unit of that system starts, reloads, kills and stops the service, and writes what it sees, a
//! line for each question; then the system powers off. The test compares the lines. What a unit's exit code and the
//! messages to the service manager are on their own is in `cli.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::string_slice)]

mod support;
#[path = "support/system.rs"]
mod system;

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::mount::require_privileges;
use support::store::StoreBuilder;
use tempfile::TempDir;

const PROGRAMS: &[&str] = &["systemd-nspawn", "debootstrap", "tar"];
const PACKAGES: &str = "systemd,systemd-sysv,dbus,procps,fuse3";
/// The program was built for this machine's libraries, so the system is of the same release where there is one.
const DEFAULT_SUITE: &str = "bookworm";
/// How long a boot with all that is asked may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// What asks. A question that waits for something waits for a minute at most, and then tells what there is.
const SCRIPT: &str = r#"#!/bin/bash
say() { printf '%s: %s\n' "$1" "${*:2}"; }
property() { systemctl show --property "$1" --value docker-fs; }
state() { echo "$(property ActiveState)/$(property SubState)/$(property Result)"; }
mounts() { grep -c ' /mnt/images ' /proc/self/mountinfo; }
hello() { cat /mnt/images/merged/app:1/etc/hello 2>&1; }
user() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@" 2>&1; }
# systemd-run finds programs by their whole paths, which they say.
unit() { systemd-run --quiet --wait --pipe "$@" cat /mnt/images/merged/app:1/etc/hello 2>&1 | sed 's|^/usr/bin/||'; }
soon() { for _ in {1..300}; do "$@" && return; sleep 0.2; done; return 1; }

say 'at boot' "$(state)"
say 'at boot, ready' "$(property StatusText)"
say 'at boot, read' "$(hello)"
say 'mounts' "$(mounts)"
seen() { systemctl --quiet is-active mnt-images.mount; }
soon seen
say 'mount unit' "$(systemctl is-active mnt-images.mount)"
say 'type' "$(findmnt -n -o FSTYPE /mnt/images)"
say 'options' "$(findmnt -n -o VFS-OPTIONS /mnt/images)"
say 'another unit' "$(unit)"
say 'a unit with its own mounts' "$(unit -p ProtectSystem=strict -p PrivateTmp=yes)"
say 'a unit of another user' "$(unit -p User=65534)"
say 'another user' "$(user cat /mnt/images/merged/app:1/etc/hello)"

mkdir /etc/systemd/system/docker-fs.service.d
printf '[Service]\nEnvironment="OPTIONS=-o allow_other"\n' >/etc/systemd/system/docker-fs.service.d/users.conf
systemctl daemon-reload
systemctl restart docker-fs
say 'restarted' "$(state)"
say 'let in, another unit of another user' "$(unit -p User=65534)"
say 'let in, another user' "$(user cat /mnt/images/merged/app:1/etc/hello)"
say 'let in, another user writes' "$(user touch /mnt/images/x)"

systemctl kill --signal=USR1 --kill-who=main docker-fs
counted() { journalctl --unit docker-fs --output cat | grep -q 'counters:'; }
soon counted
say 'USR1' $? "$(state)"

if grep -q ^ExecReload= /etc/systemd/system/docker-fs.service; then
    sed -i 's/app:1/app:2/g' /var/lib/docker/image/overlay2/repositories.json
    systemctl reload docker-fs
    say 'reload' $? "$(state)" "$(ls /mnt/images/by-tag)"
    sed -i 's/app:2/app:1/g' /var/lib/docker/image/overlay2/repositories.json
fi

main=$(property MainPID)
exec 3</mnt/images/merged/app:1/etc/hello
kill -KILL "$main"
replaced() { [[ $(property MainPID) != "$main" && $(property ActiveState) == active ]]; }
soon replaced
say 'killed' "$(state)"
say 'killed, restarts' "$(property NRestarts)"
say 'killed, read' "$(hello)"
say 'killed, mounts' "$(mounts)"
exec 3<&-

systemctl stop docker-fs
say 'stop' $? "$(state)"
say 'stop, mounts' "$(mounts)"
say 'stop, processes' "$(pgrep -c docker-fs)"
say 'stop, left' "$(ls -A /mnt/images)"

printf '[Service]\nEnvironment="OPTIONS=--metrics 127.0.0.1:9469"\n' >/etc/systemd/system/docker-fs.service.d/users.conf
printf 'RestrictAddressFamilies=AF_INET\nIPAddressAllow=localhost\n' >>/etc/systemd/system/docker-fs.service.d/users.conf
systemctl daemon-reload
systemctl start docker-fs
exec 3<>/dev/tcp/127.0.0.1/9469
printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3
say 'metrics' "$(head -n 1 <&3 | tr -d '\r')"
exec 3<&-
systemctl stop docker-fs
rm /etc/systemd/system/docker-fs.service.d/users.conf

printf '[Service]\nRestart=no\n' >/etc/systemd/system/docker-fs.service.d/once.conf
systemctl daemon-reload
systemctl start docker-fs
systemctl kill --signal=KILL --kill-who=main docker-fs
ended() { [[ $(property ActiveState) == failed ]]; }
soon ended
say 'killed for good' "$(state)"
say 'killed for good, mounts' "$(mounts)"

docker-fs /mnt/images
systemctl start docker-fs 2>/dev/null
say 'beside another mount' $? "$(state)"
say 'beside another mount, read' "$(hello)" "$(mounts)"

mkdir /srv/store
mount --bind /var/lib/docker /srv/store
printf '[Unit]\nRequiresMountsFor=/srv/store\n[Service]\nEnvironment=SOURCE=/srv/store MOUNTPOINT=/srv/images\n' \
    >/etc/systemd/system/docker-fs.service.d/elsewhere.conf
systemctl daemon-reload
systemctl start docker-fs
say 'elsewhere' $? "$(state)" "$(property StatusText)"
say 'elsewhere, read' "$(cat /srv/images/merged/app:1/etc/hello)"
systemctl stop docker-fs
say 'elsewhere, mounts' "$(grep -c ' /srv/images ' /proc/self/mountinfo) $(mounts)"
docker-fs unmount /mnt/images
umount /srv/store

# Told by its unit and by mount(8): exit codes of a mount that is made all the same, and of one that is not.
by_fstab() {
    mkdir -p "$2"
    echo "$1 $2 fuse.docker-fs noauto 0 0" >>/etc/fstab
    systemctl daemon-reload
    systemctl start "$(systemd-escape --path --suffix=mount "$2")" 2>/dev/null
    echo $? "$(grep -c " $2 " /proc/self/mountinfo)"
    journalctl --unit "$(systemd-escape --path --suffix=mount "$2")" --output cat | grep -o 'status=.*'
}
say 'fstab' $(by_fstab /var/lib/docker /srv/sound)
cp -a /var/lib/docker /srv/damaged
find /srv/damaged/image/overlay2/layerdb/sha256 -name cache-id -delete
say 'fstab, damaged' $(by_fstab /srv/damaged /srv/torn)
mkdir /srv/nothing
say 'fstab, no store' $(by_fstab /srv/nothing /srv/none)
umount /srv/sound /srv/torn

rm -r /etc/systemd/system/docker-fs.service.d
systemctl daemon-reload
systemctl reset-failed docker-fs
mv /var/lib/docker /var/lib/elsewhere
mkdir /var/lib/docker
systemctl start docker-fs 2>/dev/null
say 'no store' $? "$(state)"
say 'no store, exit code' "$(property ExecMainStatus)"
say 'no store, restarts' "$(property NRestarts)"
say 'no store, mounts' "$(mounts)"
say 'journal' "$(journalctl --unit docker-fs --output cat --priority warning | grep -v counters | tail -5 | tr '\n' ' ')"
say 'the end' reached
"#;

/// The unit that asks, and ends the system with it.
const ASKING: &str = "\
[Unit]
After=docker-fs.service
Wants=docker-fs.service
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
ExecStart=/usr/local/bin/ask
StandardOutput=file:/answers
StandardError=file:/trouble
TimeoutStartSec=4min
";

/// A system that boots, and is gone with the value.
struct System {
    root: PathBuf,
    nspawn: Child,
    dir: TempDir,
}

impl System {
    fn boot() -> Self {
        let dir = support::scratch("systemd");
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let tar = system::base_tar(None, &suite(), PACKAGES);
        system::run(Command::new("tar").args(["--numeric-owner", "-xf"]).arg(tar).arg("-C").arg(&root));
        furnish(&root);
        let console = File::create(dir.path().join("console")).unwrap();
        let nspawn = Command::new(system::found("systemd-nspawn").first().unwrap())
            .args(["--quiet", "--boot", "--register=no", "--keep-unit", "--settings=no", "--link-journal=no"])
            .args(["--private-network", "--resolv-conf=off", "--timezone=off", "--console=pipe"])
            .args(["--bind=/dev/fuse", "--machine=docker-fs-test", "--directory"])
            .arg(&root)
            .stdin(Stdio::null())
            .stdout(console.try_clone().unwrap())
            .stderr(console)
            .spawn()
            .unwrap();
        Self { root, nspawn, dir }
    }

    /// What was asked and answered, once the system is off.
    fn answers(&mut self) -> BTreeMap<String, String> {
        let end = Instant::now() + PATIENCE;
        while self.nspawn.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "the system goes on: {}", self.said());
            std::thread::sleep(Duration::from_millis(100));
        }
        let answers = fs::read_to_string(self.root.join("answers")).unwrap_or_default();
        assert!(answers.contains("\nthe end: reached\n"), "not all was asked: {answers}\n{}", self.said());
        let mut lines: BTreeMap<String, String> = BTreeMap::new();
        let mut last = String::new();
        for line in answers.lines() {
            match line.split_once(": ") {
                Some((question, answer)) if !question.starts_with(' ') && !lines.contains_key(question) => {
                    last = question.to_owned();
                    lines.insert(last.clone(), answer.to_owned());
                }
                // An answer of several lines.
                _ => lines.entry(last.clone()).or_default().push_str(&format!("\n{line}")),
            }
        }
        lines
    }

    fn said(&self) -> String {
        let read = |path: PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        format!("console: {}\ntrouble: {}", read(self.dir.path().join("console")), read(self.root.join("trouble")))
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if let Ok(None) = self.nspawn.try_wait() {
            // Its end is that of the container.
            let _ = kill_process(Pid::from_child(&self.nspawn), Signal::KILL);
            let _ = self.nspawn.wait();
        }
        system::unmount_below(self.dir.path());
    }
}

/// The release of this machine, if it is a Debian.
fn suite() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim_matches('"').to_owned())
    };
    let is_debian = field("ID=").as_deref() == Some("debian");
    field("VERSION_CODENAME=").filter(|_| is_debian).unwrap_or_else(|| DEFAULT_SUITE.to_owned())
}

/// Puts the program, the unit, a store and the questions into a root.
fn furnish(root: &Path) {
    let put = |path: &str, content: &[u8], mode: u32| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    };
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let unit = fs::read(top.join("systemd/docker-fs.service")).unwrap();
    put("usr/local/bin/docker-fs", &fs::read(env!("CARGO_BIN_EXE_docker-fs")).unwrap(), 0o755);
    put("etc/systemd/system/docker-fs.service", &unit, 0o644);
    put("etc/systemd/system/ask.service", ASKING.as_bytes(), 0o644);
    put("usr/local/bin/ask", SCRIPT.as_bytes(), 0o755);
    let wanted = root.join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wanted).unwrap();
    for name in ["docker-fs.service", "ask.service"] {
        symlink(format!("../{name}"), wanted.join(name)).unwrap();
    }
    // A first boot would ask for a host's name, a language and a password.
    put("etc/machine-id", b"0123456789abcdef0123456789abcdef\n", 0o444);
    put("etc/hostname", b"docker-fs-test\n", 0o644);
    for name in ["systemd-firstboot.service", "getty.target", "console-getty.service", "systemd-timesyncd.service"] {
        symlink("/dev/null", root.join("etc/systemd/system").join(name)).unwrap();
    }
    let mut store = StoreBuilder::new(root.join("var/lib/docker"));
    let layers = store.chain(2);
    fs::create_dir(layers[1].diff_dir().join("etc")).unwrap();
    fs::write(layers[1].diff_dir().join("etc/hello"), "good\n").unwrap();
    let image = store.image(&layers);
    store.tag("app:1", &image);
    store.finish();
}

#[test]
fn the_unit_is_started_seen_reloaded_killed_and_stopped() {
    if !require_privileges("booting a system") || !system::has_programs(PROGRAMS) {
        return;
    }
    let begun = Instant::now();
    let mut system = System::boot();
    let answers = system.answers();
    eprintln!("{:.1} s: {answers:#?}", begun.elapsed().as_secs_f64());
    let reloads = system.root.join("etc/systemd/system/docker-fs.service");
    let reloads = fs::read_to_string(reloads).unwrap().lines().any(|line| line.starts_with("ExecReload="));
    let serving = "serving /var/lib/docker on /mnt/images";
    let denied = "cat: '/mnt/images/merged/app:1/etc/hello': Permission denied";
    let expected = [
        ("at boot", "active/running/success"),
        ("at boot, ready", serving),
        ("at boot, read", "good"),
        ("mounts", "1"),
        ("mount unit", "active"),
        ("type", "fuse.docker-fs"),
        ("options", "ro,nosuid,nodev,noatime"),
        ("another unit", "good"),
        ("a unit with its own mounts", "good"),
        ("a unit of another user", denied),
        ("another user", denied),
        ("restarted", "active/running/success"),
        ("let in, another unit of another user", "good"),
        ("let in, another user", "good"),
        ("let in, another user writes", "touch: cannot touch '/mnt/images/x': Read-only file system"),
        ("USR1", "0 active/running/success"),
        ("killed", "active/running/success"),
        ("killed, restarts", "1"),
        ("killed, read", "good"),
        ("killed, mounts", "1"),
        ("stop", "0 inactive/dead/success"),
        ("stop, mounts", "0"),
        ("stop, processes", "0"),
        ("stop, left", ""),
        ("metrics", "HTTP/1.1 200 OK"),
        ("killed for good", "failed/failed/signal"),
        ("killed for good, mounts", "0"),
        ("beside another mount", "1 failed/failed/exit-code"),
        ("beside another mount, read", "good 1"),
        ("elsewhere", "0 active/running/success serving /srv/store on /srv/images"),
        ("elsewhere, read", "good"),
        ("elsewhere, mounts", "0 1"),
        ("fstab", "0 1"),
        ("fstab, damaged", "0 1 status=4/NOPERMISSION"),
        ("fstab, no store", "1 0 status=3/NOTIMPLEMENTED"),
        ("no store", "1 failed/failed/exit-code"),
        ("no store, exit code", "3"),
        ("no store, restarts", "0"),
        ("no store, mounts", "0"),
    ];
    let reload = [("reload", "0 active/running/success app:2")];
    let expected: Vec<_> = expected.into_iter().chain(reload.into_iter().filter(|_| reloads)).collect();
    for (question, wanted) in &expected {
        let found = answers.get(*question).unwrap_or_else(|| panic!("{question} was not asked: {answers:#?}"));
        assert_eq!(found, wanted, "{question}: {answers:#?}\n{}", system.said());
    }
    // The journal and the end are the others.
    assert_eq!(answers.len(), expected.len() + 2, "{answers:#?}");
}
