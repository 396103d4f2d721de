"""The table as a picture: an SVG of horizontal bars, written by hand so that nothing needs to be installed.

A panel for each state. Bars begin at 1, kernel overlayfs' time, on a logarithmic scale: to the left is quicker, to the
right slower. A bar that ends beyond the scale is broken before its end. A line with feet across a row marks its goal.
Colours follow the reader's preference for light or dark, on a ground of their own, since a page may have another.
"""

import math
from xml.sax.saxutils import escape

from .report import ratio
from .rows import STATES

_TITLES = {"warm": "warm: the second time", "fresh": "fresh: a new mount", "cold": "cold: a new mount, no caches"}
_LOW, _HIGH = 0.125, 32
# The room of a ratio in digits, beside a panel too.
_VALUE = 30
_LABELS, _PANEL, _GAP = 230 + _VALUE, 250, 20 + 2 * _VALUE
_BAR, _PAD, _TOP, _BOTTOM = 12, 10, 64, 34
# Told apart also by those who do not see red from green, on white and on black.
_COLOURS = [("#9aa0a6", "#80868b"), ("#1a73e8", "#669df6"), ("#e8710a", "#fa903e"), ("#0b8043", "#5bb974"),
            ("#9334e6", "#c58af9")]


def svg(results):
    base, *systems = results["systems"]
    rows = results["rows"]
    row_height = len(systems) * _BAR + _PAD
    width = _LABELS + 3 * _PANEL + 2 * _GAP + _VALUE + 12
    height = _TOP + len(rows) * row_height + _BOTTOM
    parts = [_head(width, height, len(systems))]
    at = 12
    for number, name in enumerate(systems):
        parts.append(f'<rect class="c{number}" x="{at}" y="10" width="10" height="10" rx="2"/>')
        parts.append(_text(at + 15, 19, name))
        at += 36 + 7 * len(name)
    parts.append(_goal(at + 4, 9, 21))
    parts.append(_text(at + 12, 19, "goal"))
    parts.append(_text(width - 12, 19, f"time over {base} overlayfs; left is quicker", "quiet", "end"))
    for number, row in enumerate(rows):
        middle = _TOP + number * row_height + row_height / 2
        parts.append(_text(_LABELS - _VALUE - 10, middle + 4, row["title"].replace("`", "").replace("\\|", "|"), "label", "end"))
    for number, state in enumerate(STATES):
        left = _LABELS + number * (_PANEL + _GAP)
        parts += _panel(left, state, rows, systems, row_height, height)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _head(width, height, systems):
    light = "".join(f".c{n}{{fill:{_COLOURS[n % 5][0]}}}" for n in range(systems))
    dark = "".join(f".c{n}{{fill:{_COLOURS[n % 5][1]}}}" for n in range(systems))
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">
<title>Time over kernel overlayfs, by operation and state of the caches</title>
<style>
.ground{{fill:#fff}}
text{{font:11px system-ui,sans-serif;fill:#202124}}
.title{{font-size:13px;font-weight:600}}
.quiet{{fill:#5f6368}}
.value{{font-size:9.5px;fill:#5f6368}}
.break{{stroke:#fff;stroke-width:2}}
.grid{{stroke:#dadce0;stroke-width:1}}
.one{{stroke:#202124;stroke-width:1.5}}
.goal{{stroke:#d01884;stroke-width:2;fill:none}}
{light}
@media (prefers-color-scheme:dark){{
.ground{{fill:#202124}}
text{{fill:#e8eaed}}
.quiet,.value{{fill:#9aa0a6}}
.break{{stroke:#202124}}
.grid{{stroke:#3c4043}}
.one{{stroke:#e8eaed}}
.goal{{stroke:#ff8bcb}}
{dark}
}}
</style>
<rect class="ground" width="{width}" height="{height}"/>"""


def _panel(left, state, rows, systems, row_height, height):
    bottom = height - _BOTTOM
    parts = [_text(left, _TOP - 20, _TITLES[state], "title")]
    for power in range(round(math.log2(_LOW)), round(math.log2(_HIGH)) + 1):
        at = _place(left, 2.0**power)
        kind = "one" if power == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{at}" y1="{_TOP - 8}" x2="{at}" y2="{bottom}"/>')
        shown = f"{2**power}" if power >= 0 else f"1/{2**-power}"
        parts.append(_text(at, bottom + 16, shown, "quiet", "middle"))
    for number, row in enumerate(rows):
        top = _TOP + number * row_height
        goal = _place(left, row["goals"][state])
        for bar, name in enumerate(systems):
            value = row["states"][state][name]["ratio"]
            parts += _bar(left, top + _PAD / 2 + bar * _BAR, bar, value, goal)
        parts.append(_goal(goal, top + 3, top + row_height - 3))
    return parts


def _goal(x, top, bottom):
    """A line with feet, so that it is seen also on the line of 1."""
    feet = f"M{x - 3} {top}h6M{x - 3} {bottom}h6"
    return f'<path class="goal" d="M{x} {top}V{bottom}{feet}"/>'


def _bar(left, top, colour, value, goal):
    one, end = _place(left, 1), _place(left, value)
    x, width = min(one, end), max(abs(end - one), 1)
    parts = [f'<rect class="c{colour}" x="{x}" y="{top}" width="{width:.1f}" height="{_BAR - 2}"/>']
    right = end >= one
    if not _LOW <= value <= _HIGH:
        at = end - 12 if right else end + 6
        parts.append(f'<path class="break" d="M{at:.1f} {top + _BAR}l4 {-_BAR - 2}m3 0l-4 {_BAR + 2}"/>')
    if abs(goal - end) < _VALUE and (goal > end) == right:
        # Behind the goal's mark, which would cross it.
        end = goal
    at, anchor = (end + 5, "start") if right else (end - 5, "end")
    return [*parts, _text(at, top + 8.4, ratio(value), "value", anchor)]


def _place(left, value):
    """Where a ratio is in a panel; what is outside of the scale is at its end."""
    bound = min(max(value, _LOW), _HIGH)
    return round(left + _PANEL * math.log(bound / _LOW) / math.log(_HIGH / _LOW), 1)


def _text(x, y, text, kind="", anchor="start"):
    return f'<text class="{kind}" x="{x}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
