"""System calls and files of /proc that Python has no functions for. Linux only; most of it needs root."""

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

# <sys/mount.h>, <sched.h>, <sys/prctl.h>
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOATIME = 1, 2, 4, 1024
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
CLONE_NEWNS = 0x00020000
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def say(text):
    """What is being done goes to stderr; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def die(text):
    say(f"bench: {text}")
    sys.exit(1)


def _check(result, doing):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{doing}: {os.strerror(number)}")


def mount(source, target, kind, flags=0, options=""):
    """mount(2). Options are bound by the size of a page, so relative paths help; see `relative_to`."""
    words = [os.fsencode(word) for word in (source, target, kind)]
    _check(_libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(options)), f"mount {kind or source} on {target}")


@contextmanager
def relative_to(directory):
    """Short paths for mount options; the program has one thread, so its working directory is its own."""
    before = os.getcwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


def unmount(target):
    """umount2(2). A daemon's last replies may hold a mount for a moment, so a busy one is asked again for a while."""
    for attempt in range(100):
        if _libc.umount2(os.fsencode(target), 0) == 0:
            return
        if ctypes.get_errno() != errno.EBUSY:
            break
        time.sleep(0.02)
    _check(-1, f"unmount {target}")


def detach(target):
    """Takes a mount out of the tree whoever uses it, if there is one."""
    _libc.umount2(os.fsencode(target), MNT_DETACH)


def private_mounts():
    """Enters a mount namespace of our own: whatever ends this process ends its mounts, and nobody else sees them."""
    _check(_libc.unshare(CLONE_NEWNS), "unshare mounts")
    mount("none", "/", "", MS_REC | MS_PRIVATE)


@contextmanager
def session(command, **options):
    """A process with a session of its own, so that a terminal's interrupt does not reach it before us, and so that all
    of it can be ended: whatever runs when the block is left is killed. It does not outlive us either."""
    words = [str(word) for word in command]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True,
                               preexec_fn=lambda: _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL), **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(*command, **options):
    """Runs a command; ends the benchmark with its last words where it fails."""
    with session(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options) as process:
        output = process.communicate()[0].decode(errors="replace")
    if process.returncode != 0:
        words = output.strip().splitlines()[-15:]
        die("\n".join([f"{' '.join(map(str, command))} failed ({process.returncode}):", *words]))
    return output


def end_processes(program):
    """Kills what runs from a file, which must be nobody else's."""
    for link in Path("/proc").glob("[0-9]*/exe"):
        try:
            if os.readlink(link) == str(program):
                os.kill(int(link.parent.name), signal.SIGKILL)
        except OSError:
            # It has ended, or is a kernel thread.
            continue


def drop_caches(which=3):
    """Drops the page cache (1), entries and inodes (2), or both (3)."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text(f"{which}\n")


def server(pid):
    """The process that serves a mount: the only child of that which was started, or itself where it has none."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else pid


def cpu_seconds(pid):
    """What a process has used, threads that ended included: its CPU-time clock, as clock_getcpuclockid(3) makes it."""
    return time.clock_gettime((~pid << 3) | 2)


def memory_kib(pid):
    """Resident memory of a process: at the moment and at most."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return tuple(int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))
