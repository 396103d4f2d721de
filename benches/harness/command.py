"""The command: arguments, what must be there, and the order of things."""

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from . import fixture, linux, plot, report, same
from .linux import die, run, say
from .measure import Bench
from .rows import Probe, Row, rows
from .systems import DockerFs, FuseOverlayfs, KernelOverlay

TOP = Path(__file__).resolve().parents[2]
DOCUMENT = TOP / "docs/performance.md"
PICTURE = TOP / "docs/performance.svg"
# The figures of both, from which they can be made anew.
FIGURES = TOP / "docs/performance.json"
_MARKS = ("<!-- figures -->\n", "<!-- end of figures -->\n")
# Programs, and the packages that have them.
_PROGRAMS = {"debootstrap": "debootstrap", "fuse-overlayfs": "fuse-overlayfs", "cc": "gcc", "setcap": "libcap2-bin"}


def main(description):
    options = _options(description)
    if options.source:
        results = json.loads(options.source.read_text())
    else:
        if os.geteuid() != 0:
            die("mounting, dropping caches and chroots need root")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: sys.exit("bench: stopped"))
        results = _measure(options)
    print(report.markdown(results))
    if options.svg:
        options.svg.write_text(plot.svg(results))
    if options.docs:
        _write_docs(results)
    sys.exit(1 if results["differences"] else 0)


def _options(description):
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser(prog="scripts/bench", description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true",
                        help="one run of each row, no fuse-overlayfs, and no check of every byte")
    parser.add_argument("--rows", metavar="REGEX", type=re.compile, default=re.compile(""),
                        help="measure rows whose name matches; --list has the names")
    parser.add_argument("--list", action="store_true", help="print the rows' names and end")
    parser.add_argument("--runs", metavar="N", type=int, help="interleaved runs [default: 7]")
    parser.add_argument("--modes", metavar="MODE,…", default="default",
                        help="a column for each mode of docker-fs: 'default', or NAME for -o opens=NAME, or "
                             "OPTION=VALUE; several joined by + [default: default]")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures, after each row")
    parser.add_argument("--svg", metavar="FILE", type=Path, help="write the plot")
    parser.add_argument("--docs", action="store_true", help="put tables, plot and figures into docs/")
    parser.add_argument("--from", metavar="FILE", type=Path, dest="source",
                        help="measure nothing, take the figures of an earlier run's --json, such as "
                             "docs/performance.json")
    parser.add_argument("--fixture", metavar="DIR", type=Path, default=cache / "docker-fs/bench",
                        help="where the images are, or are made [default: %(default)s]")
    parser.add_argument("--program", metavar="FILE", type=Path, help="measure this docker-fs instead of building it")
    options = parser.parse_args()
    options.fixture = options.fixture.absolute()
    options.runs = options.runs or (1 if options.quick else 7)
    if options.list:
        for row in [*rows(Path()), *_beside("", "")]:
            print(f"{row.id:10} {row.title}")
        sys.exit(0)
    return options


def _measure(options):
    _install_programs()
    linux.private_mounts()
    made = fixture.ensure(options.fixture)
    with tempfile.TemporaryDirectory(prefix="docker-fs-bench-", ignore_cleanup_errors=True) as scratch:
        scratch = Path(scratch)
        point, empty, program = scratch / "mnt", scratch / "empty", scratch / "docker-fs"
        point.mkdir()
        empty.mkdir()
        # A copy, since a build in the midst of a run would change what is measured.
        shutil.copy(options.program or _build(), program)
        run("cc", "-O2", "-o", scratch / "probe", TOP / "benches/probe.c", "-lpthread")
        modes = [DockerFs(program, mode) for mode in options.modes.split(",")]
        others = [] if options.quick else [FuseOverlayfs()]
        bench = Bench([KernelOverlay(), *others, *modes], Probe(scratch / "probe", empty), made, point)
        try:
            return _all(options, bench, modes)
        finally:
            # A daemon that went into the background as it was told, and was then not waited for.
            linux.end_processes(program)


def _all(options, bench, modes):
    results = {
        "machine": report.machine(TOP, options.fixture),
        "runs": options.runs,
        "fixture": bench.fixture.facts["realistic"],
        "systems": [system.name for system in bench.systems],
        "rows": [],
        "start": {},
        "memory": {},
        "differences": bench.differences,
    }
    if results["machine"]["load"] > 0.5:
        say(f"This machine is busy (load {results['machine']['load']:.1f}); the figures will show it.")
    if not options.quick and not options.rows.pattern:
        _check_bytes(bench)
    for row in rows(bench.fixture.lists):
        if options.rows.search(row.id):
            say(f"{row.id}: {row.title}")
            results["rows"].append(report.row_figures(row, bench.row(row, options.runs)))
            _save(options, results)
    for mode in modes:
        start, memory = _beside(mode, bench)
        if options.rows.search(start.id):
            say(f"{start.id}: {start.title}, {mode.name}")
            samples = bench.start(start, mode, options.runs)
            results["start"][mode.name] = {state: report.summary(taken) for state, taken in samples.items()}
        if options.rows.search(memory.id):
            say(f"{memory.id}: {memory.title}, {mode.name}")
            results["memory"][mode.name] = bench.memory(memory, mode)
        _save(options, results)
    return results


def _beside(mode, bench):
    """The two measurements of docker-fs that have no ratio, as rows."""
    shell = ()
    if bench:
        names = bench.point / "by-tag"
        mount = " ".join(mode.command(bench.fixture.many_images, bench.point))
        shell = ("sh", "-c", f"{mount} && ls {names}")
    find = ("find", ".", "-printf", r"%i %s %p\n")
    return (
        Row("start", "mount a root of 2,000 images and list them", (), ("run", "1", *shell)),
        Row("memory", "a walk of a million entries", (), ("run", "1", *find), image="million:1"),
    )


def _check_bytes(bench):
    """Compares whole trees; what differs is reported with the results."""
    for image in ("realistic:1", "deep:1"):
        expected = None
        for system in bench.systems:
            say(f"Reading every byte of {image} by {system.name}")
            with system.mounted(bench.fixture, image, bench.point) as mount:
                found = same.manifest(mount.root)
            expected = expected or found
            for text in same.differences(expected, found):
                bench.differences.append(f"{image}, {system.name}: {text}")
                say(f"  DIFFERENT {bench.differences[-1]}")


def _save(options, results):
    if options.json:
        _write_figures(options.json, results)


def _write_figures(path, results):
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    partial.rename(path)


def _write_docs(results):
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(_MARKS[0])
    _, _, after = rest.partition(_MARKS[1])
    figures = f"![Time over kernel overlayfs, by operation]({PICTURE.name})\n\n{report.markdown(results)}"
    DOCUMENT.write_text(f"{before}{_MARKS[0]}\n{figures}\n{_MARKS[1]}{after}")
    PICTURE.write_text(plot.svg(results))
    _write_figures(FIGURES, results)


def _install_programs():
    missing = [package for program, package in _PROGRAMS.items() if not shutil.which(program)]
    if not missing:
        return
    if not shutil.which("apt-get"):
        die(f"please install {' '.join(missing)}")
    say(f"Installing {' '.join(missing)} …")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "update", "-qq", env=environment)
    run("apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing, env=environment)


def _build():
    cargo = shutil.which("cargo") or Path.home() / ".cargo/bin/cargo"
    say("Building docker-fs …")
    run(cargo, "build", "--release", "--locked", cwd=TOP)
    return Path(os.environ.get("CARGO_TARGET_DIR") or TOP / "target") / "release/docker-fs"
