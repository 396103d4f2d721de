"""What is compared: kernel overlayfs, fuse-overlayfs, and docker-fs in each of its modes.

Each mounts the same layers' directories, read-only. A mount is a new one each time, served in the foreground, and is
gone when the `with` block ends.
"""

import math
import os
import subprocess
import time
from contextlib import contextmanager

from . import linux
from .linux import die

_SECONDS_TO_MOUNT = 60
_FLAGS = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOATIME


class Mount:
    """A mounted image: where its root is, and the process that serves it, or None."""

    def __init__(self, root, daemon=None):
        self.root = root
        self.daemon = daemon

    def cpu_seconds(self):
        return linux.cpu_seconds(linux.server(self.daemon.pid)) if self.daemon else 0.0

    def memory_kib(self):
        """Resident memory of the process that serves: at the moment and at most."""
        return linux.memory_kib(linux.server(self.daemon.pid)) if self.daemon else (0, 0)


class KernelOverlay:
    """What Docker itself mounts, without the container's own layer."""

    name = "kernel"
    enough_if_slow = math.inf

    @contextmanager
    def mounted(self, fixture, image, point):
        # Relative to `overlay2` and by the short names, as Docker does it: 64 absolute paths do not fit.
        with linux.relative_to(fixture.store / "overlay2"):
            linux.mount("overlay", point, "overlay", _FLAGS, f"lowerdir={':'.join(fixture.layers[image])}")
        try:
            yield Mount(point)
        finally:
            linux.unmount(point)


class FuseOverlayfs:
    """The program that rootless engines use where the kernel's overlay may not be mounted."""

    name = "fuse-overlayfs"
    # On 64 layers a run takes half a minute; three say enough.
    enough_if_slow = 3

    @contextmanager
    def mounted(self, fixture, image, point):
        options = f"ro,lowerdir={':'.join(fixture.layers[image])}"
        command = ["fuse-overlayfs", "-f", "-o", options, str(point)]
        with _daemon(command, point, fixture.store / "overlay2") as daemon:
            yield Mount(point, daemon)


class DockerFs:
    """docker-fs in one of its modes.

    A mode is a list of `-o` options joined by `+`; `default` is none, and a word without `=` stands for `opens=<word>`.
    """

    enough_if_slow = math.inf

    def __init__(self, program, mode):
        self.name = "docker-fs" if mode == "default" else f"docker-fs {mode}"
        self._program = program
        words = [] if mode == "default" else mode.split("+")
        self._options = [part for word in words for part in ("-o", word if "=" in word else f"opens={word}")]

    def command(self, source, point, *arguments):
        return [str(self._program), *arguments, *self._options, str(source), str(point)]

    @contextmanager
    def mounted(self, fixture, image, point):
        with self.serving(fixture.store, point) as mount:
            yield Mount(point / "merged" / image, mount.daemon)

    @contextmanager
    def serving(self, source, point):
        """The whole tree of a data root; the mount's root is the mount point."""
        with _daemon(self.command(source, point, "-f", "-q"), point, "/") as daemon:
            yield Mount(point, daemon)

    def unmount(self, point):
        linux.run(self._program, "unmount", point)


@contextmanager
def _daemon(command, point, directory):
    """A daemon from when its mount answers until it has ended."""
    outside = os.stat(point).st_dev
    silence = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    try:
        with linux.session(command, cwd=directory, **silence) as daemon:
            deadline = time.monotonic() + _SECONDS_TO_MOUNT
            while os.stat(point).st_dev == outside:
                if daemon.poll() is not None or time.monotonic() > deadline:
                    daemon.kill()
                    die(f"{' '.join(command)} did not mount: {daemon.stderr.read().decode(errors='replace').strip()}")
                time.sleep(0.002)
            yield daemon
            linux.unmount(point)
            daemon.wait(_SECONDS_TO_MOUNT)
    except BaseException:
        linux.detach(point)
        raise
