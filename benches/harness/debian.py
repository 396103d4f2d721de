"""A realistic image: Debian, compilers, sources, documentation, an application, in a dozen layers.

Each layer is what one `RUN` of a Dockerfile leaves: the step runs in a chroot of a kernel overlay whose upper directory
is the layer, as BuildKit does it. So deletions, replaced directories and overlayfs' own attributes are the kernel's.
Packages come by debootstrap and apt from Debian's mirrors. The last layers delete, replace, upgrade and copy up, and
add an application with one large file that does not compress.
"""

import os
import random
import struct
from contextlib import contextmanager

from . import linux
from .linux import run, say

SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
LARGE_FILE = "srv/app/data.bin"
LARGE_FILE_BYTES = 2 << 30
# In three files of the tree, by the application's layer, and nowhere else.
RARE_WORD = "quixotrypanosyzygy"
RARE_WORD_FILES = 3

PACKAGES = [
    ("python3", "perl", "ca-certificates", "curl"),
    ("gcc", "g++", "make", "libc6-dev"),
    ("linux-headers-{architecture}",),
    ("golang-1.19-src",),
    ("libboost1.74-dev",),
    ("python3-doc", "manpages", "manpages-dev", "libglib2.0-doc"),
    ("nodejs", "npm"),
    ("python3-numpy", "python3-scipy", "python3-django", "python3-sphinx", "python3-twisted"),
]
CLEANING = r"""
set -e
apt-get install -y -q --reinstall coreutils bash perl-base libc-bin
apt-get purge -y -q manpages-dev libglib2.0-doc
find /usr/share/locale -mindepth 1 -maxdepth 1 ! -name 'en*' -exec rm -r {} +
for directory in /usr/share/doc/libboost1.74-dev /usr/share/doc/perl /usr/share/perl/5.36/unicore /var/log; do
    [ ! -d "$directory" ] || { rm -r "$directory" && mkdir "$directory" && echo replaced >"$directory/README"; }
done
mv /usr/share/zoneinfo /usr/share/zoneinfo.moved
rm -rf /var/cache/ldconfig /usr/share/info
"""
OWNING = "chown -R www-data: /usr/lib/python3/dist-packages/django && find /srv/app -name '*.conf' -exec chmod 640 {} +"


def add_image(store, name, scratch, packages):
    """Adds the image; `packages` is a directory that keeps downloads for the next attempt."""
    architecture = run("dpkg", "--print-architecture").strip()
    base = store.layer()
    say("  layer 0: debootstrap")
    _debootstrap(base.diff, packages)
    top, commands = base, [f"debootstrap --variant=minbase {SUITE}"]
    for words in PACKAGES:
        install = " ".join(words).format(architecture=architecture)
        commands.append(f"apt-get install -y -q --no-install-recommends {install}")
        top = _run_step(store, top, scratch, packages, len(commands), commands[-1])
    commands.append("clean up")
    top = _run_step(store, top, scratch, packages, len(commands), CLEANING, shown=commands[-1])
    commands.append("COPY app /srv/app")
    top = _step(store, top, scratch, packages, len(commands), commands[-1], _add_application)
    commands.append(OWNING)
    top = _run_step(store, top, scratch, packages, len(commands), OWNING)
    for layer in top.stack():
        store.measure(layer)
    store.image(name, top, commands)
    return top


def _debootstrap(root, packages):
    archives = packages / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    run("debootstrap", "--variant=minbase", f"--cache-dir={archives}", SUITE, root, MIRROR)
    for left in (*root.glob("var/cache/apt/archives/*.deb"), *root.glob("var/cache/apt/*.bin")):
        left.unlink()
    (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
    (root / "usr/sbin/policy-rc.d").chmod(0o755)


def _run_step(store, below, scratch, packages, number, command, shown=None):
    def in_chroot(root):
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
        run("chroot", root, "sh", "-c", command, env=environment)

    return _step(store, below, scratch, packages, number, shown or command, in_chroot)


def _step(store, below, scratch, packages, number, shown, change):
    """Makes the layer upon `below` in which `change(root)` leaves its changes."""
    say(f"  layer {number - 1}: {shown}")
    layer = store.layer(below)
    with _overlay(store, layer, scratch), _downloads(scratch, packages):
        change(scratch)
    for left in layer.work.iterdir():
        run("rm", "-r", left)
    return layer


@contextmanager
def _overlay(store, layer, root):
    # The options that Docker and BuildKit use; no syncs, as the whole fixture is thrown away if it does not get ready.
    options = f"lowerdir={layer.below.links()},upperdir={layer.diff},workdir={layer.work}"
    options += ",index=off,redirect_dir=off,metacopy=off,volatile"
    with linux.relative_to(store.overlay2):
        linux.mount("overlay", root, "overlay", 0, options)
    try:
        yield
    finally:
        linux.unmount(root)


@contextmanager
def _downloads(root, packages):
    """Lends apt its lists and packages from outside, so that they get into no layer."""
    pairs = [(packages / "archives", root / "var/cache/apt/archives"), (packages / "lists", root / "var/lib/apt/lists")]
    for outside, inside in pairs:
        outside.mkdir(parents=True, exist_ok=True)
        linux.mount(outside, inside, "", linux.MS_BIND)
    try:
        linux.mount("proc", root / "proc", "proc")
        try:
            if not any((packages / "lists").glob("*_Packages*")):
                run("chroot", root, "apt-get", "update", "-q")
            yield
        finally:
            linux.unmount(root / "proc")
    finally:
        for _, inside in pairs:
            linux.unmount(inside)


def _add_application(root):
    """What a `COPY` brings, and some things that a copy of a file system must not lose."""
    application = root / "srv/app"
    application.mkdir(parents=True)
    _write_large_file(root / LARGE_FILE)
    for number in range(RARE_WORD_FILES):
        (application / f"notes-{number}.conf").write_text(f"# {RARE_WORD} {number}\n" + "setting = value\n" * 200)
    for number in range(200):
        directory = application / f"module-{number:03}"
        directory.mkdir()
        (directory / "index.html").write_text(f"<!doctype html><title>{number}</title>\n" * (1 + number % 40))
        os.link(directory / "index.html", directory / "default.html")
        (directory / "latest").symlink_to("index.html")
        if number % 4 == 0:
            os.setxattr(directory / "index.html", "system.posix_acl_access", _acl_for_user(33))
        if number % 10 == 0:
            os.setxattr(directory / "index.html", "user.origin", b"bench")
    with open(application / "sparse.img", "wb") as file:
        file.truncate(64 << 20)
        os.pwrite(file.fileno(), b"end", (32 << 20) + 5)
    (root / "usr/local/bin/listen").write_bytes((root / "usr/bin/true").read_bytes())
    (root / "usr/local/bin/listen").chmod(0o755)
    run("setcap", "cap_net_bind_service=ep", root / "usr/local/bin/listen")


def _write_large_file(path):
    numbers = random.Random(1)
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, LARGE_FILE_BYTES)
        for _ in range(LARGE_FILE_BYTES >> 20):
            file.write(numbers.randbytes(1 << 20))


def _acl_for_user(uid):
    """`user::rw-,user:<uid>:r--,group::r--,mask::r--,other::r--` as the kernel takes it (linux/posix_acl_xattr.h)."""
    everyone = 0xFFFFFFFF
    entries = [(1, 6, everyone), (2, 4, uid), (4, 4, everyone), (16, 4, everyone), (32, 4, everyone)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
