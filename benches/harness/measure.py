"""Measures rows on systems in turn, and what stands beside the table: start and memory.

    cold    all caches dropped, then a new mount
    fresh   a new mount, with everything in the page cache
    warm    the second time in that mount

Systems take turns within each run (A B C A B C …), since a machine is not equally fast all the time. Before the clock
starts, the client has entered the image's root and the tools are in the page cache.
"""

import time

from . import linux
from .fixture import MANY_IMAGES
from .linux import say

# After this many runs, a system with `slow_runs` that took longer than this is spared the rest.
_SLOW_SECONDS = 5


class Bench:
    """What all measurements need: the systems (kernel overlayfs first), the probe, the fixture and a mount point."""

    def __init__(self, systems, probe, fixture, point):
        self.systems = systems
        self.probe = probe
        self.fixture = fixture
        self.point = point
        # What was answered differently, in words.
        self.differences = []

    def row(self, row, runs):
        """Samples of a row: `{state: {system: [sample, …]}}`."""
        samples = {state: {system.name: [] for system in self.systems} for state in ("warm", "fresh", "cold")}
        expected = None
        for number in range(runs):
            for system in self._still(samples["cold"]):
                linux.drop_caches()
                self.probe.rehearse(row)
                with system.mounted(self.fixture, row.image, self.point) as mount:
                    sample = self._sample(row, mount)
                samples["cold"][system.name].append(sample)
                expected = expected or sample["answer"]
                self._compare(row, system, expected, sample)
            # The layers' files and entries are in the caches for everyone alike, also for whoever comes first.
            with self.systems[0].mounted(self.fixture, row.image, self.point) as mount:
                self.probe.run(row, mount.root)
            for system in self._still(samples["fresh"]):
                with system.mounted(self.fixture, row.image, self.point) as mount:
                    for state in ("fresh", "warm"):
                        sample = self._sample(row, mount)
                        samples[state][system.name].append(sample)
                        self._compare(row, system, expected, sample)
        return samples

    def _still(self, samples):
        """The systems that go on: all but those that are slow and were measured often enough."""
        def goes_on(system):
            taken = samples[system.name]
            return len(taken) < system.enough_if_slow or min(sample["wall_s"] for sample in taken) < _SLOW_SECONDS

        return [system for system in self.systems if goes_on(system)]

    def _sample(self, row, mount):
        before = mount.cpu_seconds()
        sample = self.probe.run(row, mount.root)
        sample["daemon_cpu_s"] = mount.cpu_seconds() - before
        sample["peak_kib"] = mount.memory_kib()[1]
        return sample

    def _compare(self, row, system, expected, sample):
        answer = sample.pop("answer")
        if answer != expected:
            self.differences.append(f"{row.id}: {system.name} answered {_short(answer)}, not {_short(expected)}")
            say(f"  DIFFERENT {self.differences[-1]}")

    def start(self, row, system, runs):
        """Mounting the data root of many images and listing their names, as one types it; unmounted after each time."""
        samples = {"warm": [], "cold": []}
        for number in range(runs + 1):
            for state, taken in samples.items():
                if state == "cold":
                    linux.drop_caches()
                try:
                    sample = self.probe.run(row, "/")
                    system.unmount(self.point)
                except BaseException:
                    linux.detach(self.point)
                    raise
                self._compare(row, system, MANY_IMAGES, sample)
                # The first is not warm.
                if number > 0:
                    taken.append(sample["wall_s"])
        return samples

    def memory(self, row, system):
        """What the daemon holds at the start, after a walk that the kernel remembers, and when the kernel forgot it."""
        with system.mounted(self.fixture, row.image, self.point) as mount:
            linux.drop_caches(2)
            mount.root.stat()
            start, _ = mount.memory_kib()
            sample = self.probe.run(row, mount.root)
            walked, peak = mount.memory_kib()
            linux.drop_caches(2)
            forgotten = _settled(lambda: mount.memory_kib()[0])
        entries = sample["answer"]
        return {
            "entries": entries,
            "start_kib": start,
            "walked_kib": walked,
            "peak_kib": peak,
            "forgotten_kib": forgotten,
            "bytes_per_entry": (walked - start) * 1024 / entries,
        }


def _settled(value):
    """A value that was the same twice, half a second apart; after 10 s, whatever it is."""
    before = value()
    for _ in range(20):
        time.sleep(0.5)
        after = value()
        if after == before:
            break
        before = after
    return before


def _short(answer):
    text = repr(answer)
    return text if len(text) < 200 else f"{text[:200]}…"
