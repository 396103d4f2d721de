"""What is measured on, made once and kept.

    <fixture>/store/        a data root with the images realistic:1, deep:1 and million:1
    <fixture>/many-images/  a data root with 2,000 images of 5 layers each
    <fixture>/lists/        paths in realistic:1, one a line: to be found, to be missed, to be read
    <fixture>/fixture.json  what it holds; there only if all of it is

It is made beside its place and then renamed.
"""

import json
import os
import random
import stat
import tempfile
from pathlib import Path

from . import debian, linux
from .linux import die, run, say
from .store import Store

# Counts up when the recipe changes, and then the fixture is made again.
RECIPE = 1

DEEP_LAYERS = 64
MANY_NAMES = 100_000
MILLION = 1_000_000
MANY_IMAGES, LAYERS_EACH = 2_000, 5

STAT_PATHS = 20_000
SMALL_FILES, SMALL_FILE_BYTES = 12_000, 16_384
_FREE_BYTES_WANTED = 8 << 30


class Fixture:
    """A fixture that is on disk. `layers[image]` are its layers' short names in `overlay2`, top first."""

    def __init__(self, directory):
        self.store = directory / "store"
        self.many_images = directory / "many-images"
        self.lists = directory / "lists"
        self.facts = json.loads((directory / "fixture.json").read_text())
        self.layers = self.facts["layers"]


def ensure(directory):
    """The fixture in a directory; made if it is missing or was made by another recipe."""
    marker = directory / "fixture.json"
    if not marker.exists() or json.loads(marker.read_text())["recipe"] != RECIPE:
        _make(directory)
    return Fixture(directory)


def _make(directory):
    partial = directory.with_name(directory.name + ".partial")
    packages = partial / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    space = os.statvfs(partial)
    if space.f_bavail * space.f_frsize < _FREE_BYTES_WANTED:
        die(f"{partial} needs {_FREE_BYTES_WANTED >> 30} GiB of free space")
    say(f"Making the fixture in {directory}; this takes some minutes, once.")
    os.umask(0o022)
    for left in partial.iterdir():
        if left != packages:
            run("rm", "-r", left)

    store = Store(partial / "store")
    with tempfile.TemporaryDirectory(prefix="docker-fs-bench-", ignore_cleanup_errors=True) as scratch:
        top = debian.add_image(store, "realistic:1", Path(scratch), packages)
        say("  lists of paths")
        with linux.relative_to(store.overlay2):
            linux.mount("overlay", scratch, "overlay", linux.MS_RDONLY, f"lowerdir={top.links()}")
        try:
            counts = _write_lists(Path(scratch), partial / "lists")
        finally:
            linux.unmount(scratch)
    say("  deep:1, million:1 and 2,000 images")
    tops = {"realistic:1": top, "deep:1": _add_deep_image(store), "million:1": _add_million(store)}
    store.finish()
    _write_many_images(partial / "many-images")

    layers = {name: [f"l/{layer.link}" for layer in top.stack()] for name, top in tops.items()}
    facts = {"recipe": RECIPE, "realistic": {"layers": len(top.stack()), **counts}, "layers": layers}
    run("rm", "-r", packages)
    os.sync()
    (partial / "fixture.json").write_text(json.dumps(facts, indent=1))
    if directory.exists():
        run("rm", "-r", directory)
    partial.rename(directory)


def _write_lists(root, lists):
    """Draws the paths that rows ask for, and counts what the image has."""
    paths, small = [], []
    counts = {"files": 0, "directories": 0, "others": 0, "bytes": 0}
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            paths.append(os.path.relpath(path, root))
            if stat.S_ISREG(status.st_mode):
                counts["files"] += 1
                counts["bytes"] += status.st_size
                if 0 < status.st_size <= SMALL_FILE_BYTES:
                    small.append(paths[-1])
            else:
                counts["directories" if stat.S_ISDIR(status.st_mode) else "others"] += 1
    draw = random.Random(2)
    paths.sort()
    lists.mkdir()
    for name, drawn in {
        "stat": draw.sample(paths, STAT_PATHS),
        # Names that no directory has, in directories that are there.
        "miss": [f"{path}.missing" for path in draw.sample(paths, STAT_PATHS)],
        # In the order of a walk, as a backup or an indexer reads.
        "open": sorted(draw.sample(sorted(small), SMALL_FILES)),
    }.items():
        (lists / name).write_text("".join(f"{path}\n" for path in drawn))
    return counts


def _add_deep_image(store):
    """64 layers: `tree` has 200 directories to which every layer adds a file, `many` has 100,000 names, to which every
    layer brings its share, and 10 more that the next one deletes."""
    layer = None
    for number in range(DEEP_LAYERS):
        layer = store.layer(layer)
        for directory in range(100):
            below = layer.diff / f"tree/{directory:02}/sub"
            below.mkdir(parents=True)
            (below.parent / f"file-{number:02}").write_text(f"{number}\n")
            (below / f"file-{number:02}").write_text(f"{number}\n")
        many = layer.diff / "many"
        many.mkdir()
        for name in range(number, MANY_NAMES, DEEP_LAYERS):
            (many / f"name-{name:06}").touch()
        for extra in range(10):
            if number < DEEP_LAYERS - 1:
                (many / f"extra-{number:02}-{extra}").touch()
            if number > 0:
                os.mknod(many / f"extra-{number - 1:02}-{extra}", stat.S_IFCHR, os.makedev(0, 0))
    store.image("deep:1", layer)
    return layer


def _add_million(store):
    """A million empty files: 1,000 directories, to each of which 4 layers bring 250."""
    layer = None
    for number in range(4):
        layer = store.layer(layer)
        for directory in range(1000):
            path = layer.diff / f"{directory:03}"
            path.mkdir()
            for name in range(MILLION // 4000):
                os.close(os.open(path / f"{number}-{name:03}", os.O_CREAT | os.O_WRONLY, 0o644))
    store.image("million:1", layer)
    return layer


def _write_many_images(root):
    store = Store(root)
    for number in range(MANY_IMAGES):
        layer = None
        for step in range(LAYERS_EACH):
            layer = store.layer(layer)
            (layer.diff / f"file-{step}").write_text(f"{number}\n")
        store.image(f"image-{number:04}:1", layer)
    store.finish()
