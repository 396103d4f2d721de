"""What a run found: plain data for JSON, and the tables that people read, as Markdown."""

import datetime
import os
import platform
import re
import statistics
import subprocess
from pathlib import Path

from .rows import STATES

STATE_TITLES = {
    "warm": "Warm: the second time",
    "fresh": "Fresh: a new mount, the files in the page cache",
    "cold": "Cold: a new mount, no caches",
}
START_GOAL_S = 0.150
PEAK_GOAL_MB = 500
RETURN_GOAL = 0.2
BYTES_GOAL = 300


def machine(top, fixture_directory):
    """Where, when and of what a run is."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = int(re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)[1])
    fuse_overlayfs = re.search(r"fuse-overlayfs: version (\S+)", _output("fuse-overlayfs", "--version"))
    changed = _output("git", "-C", top, "status", "--porcelain", "--untracked-files=no")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": _output("git", "-C", top, "rev-parse", "--short=12", "HEAD").strip() + ("+" if changed else ""),
        "kernel": platform.release(),
        "cpu": cpu[1] if cpu else platform.machine(),
        "cpus": os.cpu_count(),
        "memory_gib": round(memory / (1 << 20)),
        "file_system": _output("findmnt", "-n", "-o", "FSTYPE", "-T", fixture_directory).strip(),
        "fuse_overlayfs": fuse_overlayfs[1] if fuse_overlayfs else "?",
        "load": os.getloadavg()[0],
    }


def _output(*command):
    """What a command prints, or nothing where it fails: a bench outside of a clone is still one."""
    result = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return result.stdout.decode(errors="replace") if result.returncode == 0 else ""


def summary(samples):
    """Samples of one number: the median, the quartiles around it, and half their distance over the median."""
    median = statistics.median(samples)
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [median] * 3
    return {"median_s": median, "quartiles_s": [low, high], "spread": (high - low) / 2 / median, "samples_s": samples}


def row_figures(row, samples):
    """A row for JSON, from `{state: {system: [sample, …]}}`."""
    states = {}
    for state in STATES:
        states[state] = {name: _figures(taken) for name, taken in samples[state].items() if taken}
        base = next(iter(states[state].values()))["median_s"]
        for figures in states[state].values():
            figures["ratio"] = figures["median_s"] / base
    return {"id": row.id, "title": row.title, "goals": dict(zip(STATES, row.goals)), "states": states}


def _figures(taken):
    return {
        **summary([sample["wall_s"] for sample in taken]),
        "client_cpu_s": statistics.median(sample["cpu_s"] for sample in taken),
        "daemon_cpu_s": statistics.median(sample["daemon_cpu_s"] for sample in taken),
        "daemon_peak_kib": max(sample["peak_kib"] for sample in taken),
    }


# ---- Markdown


def markdown(results):
    """All tables of a run."""
    parts = [_about(results)]
    if results["rows"]:
        parts += [_state_table(results, state) for state in STATES]
        parts.append(_daemon_table(results))
    if results["start"] or results["memory"]:
        parts.append(_beside(results))
    if results["differences"]:
        parts.append("\n".join(["**Not the same everywhere:**", "", *(f"* {text}" for text in results["differences"])]))
    return "\n\n".join(parts) + "\n"


def _about(results):
    where, image = results["machine"], results["fixture"]
    return (
        f"{where['date']}, docker-fs {where['commit']}, "
        f"Linux {where['kernel']}, {where['cpus']} CPUs ({where['cpu']}), "
        f"{where['memory_gib']} GiB, {where['file_system']}, fuse-overlayfs {where['fuse_overlayfs']}. "
        f"{results['runs']} run{'s'[:results['runs'] - 1]}{_fewer_runs(results)}. "
        f"The image has {image['layers']} layers, {image['files']:,} files and "
        f"{image['directories']:,} directories, {image['bytes'] / 1e9:.1f} GB."
    )


def _fewer_runs(results):
    """Which systems were spared runs, and how many they had at least."""
    least = {}
    for row in results["rows"]:
        for states in row["states"].values():
            for name, figures in states.items():
                least[name] = min(len(figures["samples_s"]), least.get(name, results["runs"]))
    spared = [f"of {name} at least {count}" for name, count in least.items() if count < results["runs"]]
    return f" ({', '.join(spared)})" if spared else ""


def _table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _state_table(results, state):
    base, *others = results["systems"]
    rows = []
    for row in results["rows"]:
        figures, goal = row["states"][state], row["goals"][state]
        cells = [row["title"], seconds(figures[base]["median_s"]) + _spread(figures[base])]
        for name in others:
            cells.append(_ratio(figures[name], goal if name.startswith("docker-fs") else None))
        rows.append([*cells, f"≤ {goal}"])
    header = [STATE_TITLES[state], base, *others, "goal"]
    return _table(header, rows)


def _ratio(figures, goal):
    text = ratio(figures["ratio"])
    # What is shown is compared, so that no 0.90 misses 0.9.
    missed = goal is not None and float(text) > goal
    return _marked(text, missed) + _spread(figures)


def _marked(text, missed):
    return f"**{text}**" if missed else text


def _daemon_table(results):
    daemons = results["systems"][1:]
    rows = []
    for row in results["rows"]:
        figures = row["states"]["fresh"]
        cpu = [seconds(figures[name]["daemon_cpu_s"]) for name in daemons]
        peaks = [max(row["states"][state][name]["daemon_peak_kib"] for state in STATES) for name in daemons]
        rows.append([row["title"], *cpu, *map(megabytes, peaks)])
    titles = [f"{what}, {name}" for what in ("CPU", "peak memory") for name in daemons]
    return _table(["The daemon", *titles], rows)


def _beside(results):
    rows = []
    for name, states in results["start"].items():
        for state, figures in states.items():
            goal = f"< {seconds(START_GOAL_S)}" if state == "warm" else ""
            missed = state == "warm" and figures["median_s"] >= START_GOAL_S
            text = _marked(seconds(figures["median_s"]), missed) + _spread(figures)
            rows.append([f"mount 2,000 images and list them, {state}, {name}", text, goal])
    for name, figures in results["memory"].items():
        entries = f"{figures['entries']:,} entries"
        back = round(figures["forgotten_kib"] / figures["start_kib"] - 1, 2)
        peak_mb, each_bytes = figures["peak_kib"] * 1024 / 1e6, round(figures["bytes_per_entry"])
        rows += [
            [f"memory at the start, {name}", megabytes(figures["start_kib"]), ""],
            [f"… at most in a walk of {entries}", _marked(megabytes(figures["peak_kib"]), peak_mb >= PEAK_GOAL_MB),
             f"< {PEAK_GOAL_MB} MB"],
            ["… after it, for each entry", _marked(f"{each_bytes} bytes", each_bytes > BYTES_GOAL),
             f"≤ {BYTES_GOAL} bytes"],
            ["… when the kernel has forgotten them",
             f"{_marked(megabytes(figures['forgotten_kib']), abs(back) > RETURN_GOAL)} ({back:+.0%})",
             f"± {RETURN_GOAL:.0%}"],
        ]
    return _table(["Beside the table", "figure", "goal"], rows)


def seconds(value):
    """A time in the unit that fits, with three digits."""
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if value * factor >= 1 or unit == "µs":
            return f"{digits(value * factor)} {unit}" if value else "0"


def megabytes(kib):
    return f"{digits(kib * 1024 / 1e6)} MB"


def ratio(value):
    return digits(value, 2)


def digits(value, count=3):
    """A number with so many digits, and at most two decimals."""
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    if count == 2 and value >= 10:
        decimals = 0
    return f"{value:.{decimals}f}"


def _spread(figures):
    """Nothing for a single sample, which has none."""
    return f" ±{figures['spread'] * 100:.0f} %" if len(figures["samples_s"]) > 1 else ""
