"""The rows of the table: what a client does, and how many times kernel overlayfs' time it may take.

Every row gives an answer (bytes, lines, sums) that must be the same on every system, so that none is quick by
doing less.
"""

import fcntl
import json
import os
from dataclasses import dataclass
from typing import Callable

from . import debian, linux
from .linux import die

STATES = ("warm", "fresh", "cold")
_ATTRIBUTES = r"%y %m %n %U %G %s %b %i %A@ %T@ %C@ %l %p\n"


def _lines(output):
    return output.count(b"\n")


def _lines_and_acls(output):
    """`ls -l` has a + behind the mode of a file with an ACL, which tells whether it was given real answers."""
    return [_lines(output), sum(line[10:11] == b"+" for line in output.split(b"\n"))]


def _sorted_text(output):
    return sorted(output.decode(errors="replace").splitlines())


@dataclass(frozen=True)
class Row:
    """`probe` are the arguments for probe.c, with the directory left out; `goals` are for warm, fresh and cold."""

    id: str
    title: str
    goals: tuple
    probe: tuple
    image: str = "realistic:1"
    answer: Callable = _lines

    def copies(self):
        return int(self.probe[1]) if self.probe[0] == "run" else None


def _tool(id, title, goals, *command, copies=1, **more):
    return Row(id, title, goals, ("run", str(copies), *command), **more)


def rows(lists):
    """All rows; `lists` is the fixture's folder of lists."""
    find = ("find", ".", "-printf", _ATTRIBUTES)
    grep = ("grep", "-r", debian.RARE_WORD, ".")
    large = debian.LARGE_FILE
    python = ("chroot", ".", "python3", "-c", "import json")
    return [
        _tool("find", "`find -printf`, all attributes", (0.9, 1.5, 0.7), *find),
        _tool("ls", "`ls -lR`", (0.6, 1.2, 0.8), "ls", "-lR", ".", answer=_lines_and_acls),
        _tool("du", "`du -s`", (0.6, 1.2, 0.7), "du", "-s", ".", answer=_sorted_text),
        Row("stat", "stat of 20,000 paths", (0.9, 2.5, 1.5), ("stat", str(lists / "stat"))),
        Row("miss", "stat of 20,000 misses", (0.9, 2.5, 1.5), ("stat", str(lists / "miss"))),
        Row("open", "open, read, close 12,000 files", (0.9, 6, 1.1), ("open", str(lists / "open"))),
        _tool("grep", "`grep -r` of a rare word", (1.0, 3, 0.9), *grep, answer=_sorted_text),
        _tool("tar", "`tar cf - . \\| wc -c`", (1.0, 3, 1.0), "sh", "-c", "tar cf - . | wc -c", answer=_sorted_text),
        Row("read", "a 2 GB file, sequential", (1.05, 1.2, 1.0), ("read", large)),
        Row("map", "a 2 GB file, through mmap", (1.05, 1.2, 1.0), ("map", large)),
        Row("random-1", "4 KiB random reads, 1 job", (1.05, 1.3, 1.1), ("random", large, "1", "20000")),
        Row("random-4", "4 KiB random reads, 4 jobs", (1.05, 1.3, 1.1), ("random", large, "4", "10000")),
        _tool("find-4", "four `find` at once", (0.9, 1.5, 1.0), *find, copies=4),
        _tool("python", "starting Python in a chroot", (1.1, 2, 1.1), *python),
        _tool("deep-find", "`find`, 64 layers", (0.9, 1.5, 1.0), *find, image="deep:1"),
        _tool("deep-ls", "`ls -f`, 100,000 names in 64 layers", (0.9, 1.5, 1.0), "ls", "-f", "many", image="deep:1"),
    ]


class Probe:
    """Runs rows by the compiled probe."""

    def __init__(self, program, empty):
        self._program = program
        self._empty = empty
        self._environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}

    def run(self, row, directory):
        """What one run took and answered: `wall_s`, `cpu_s` of the client, `answer`."""
        code, report, output, errors = self._start(row, directory)
        if code != 0 or not report:
            die(f"row {row.id} failed on {directory}: {errors.strip()}")
        report = json.loads(report)
        answer = report["answer"]
        if row.copies():
            if answer[0] != row.copies():
                die(f"row {row.id} failed on {directory}: {errors.strip()}")
            answer = row.answer(output)
        return {"wall_s": report["wall_ns"] / 1e9, "cpu_s": report["cpu_ns"] / 1e9, "answer": answer}

    def rehearse(self, row):
        """Brings tools, libraries and lists into the page cache, and no image; rows that name files fail here."""
        self._start(row, self._empty)

    def _start(self, row, directory):
        """Exit code, report, output and errors of a run."""
        files = [os.memfd_create(name) for name in ("report", "output", "errors")]
        for file in files:
            # Copies that write at once must not write over each other.
            fcntl.fcntl(file, fcntl.F_SETFL, os.O_APPEND)
        report, output, errors = files
        what, *arguments = row.probe
        command = [self._program, report, what, directory, *arguments]
        with linux.session(command, stdout=output, stderr=errors, pass_fds=(report,), env=self._environment) as process:
            code = process.wait()
        texts = []
        for file in files:
            with open(file, "rb") as opened:
                opened.seek(0)
                texts.append(opened.read())
        return code, texts[0], texts[1], texts[2].decode(errors="replace")
