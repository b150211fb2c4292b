"""Owns how a number reads in a terminal: short, with its unit. Knows no layout."""

from __future__ import annotations

import math
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉█"
NOTHING = "-"


def short(value: float) -> str:
    """3 or 4 digits, and k, M or G."""
    if not math.isfinite(value):
        return NOTHING
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / unit:.3g}{letter}"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def seconds(value: float) -> str:
    """With the unit that keeps the number small."""
    if not math.isfinite(value):
        return NOTHING
    if not value:
        return "0 s"
    for least, unit, name in ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (0.0, 1e6, "µs")):
        if value >= least:
            return f"{value * unit:.3g} {name}"
    return NOTHING


def size(count: float) -> str:
    """Of bytes."""
    return f"{count / 2**30:.1f} GiB" if count >= 1 << 30 else f"{count / 2**20:.0f} MiB"


def percent(part: float) -> str:
    """Of 1."""
    if not math.isfinite(part):
        return NOTHING
    return f"{100 * part:.1f} %" if part >= 0.01 else f"{100 * part:.2g} %"


def age(value_s: float) -> str:
    """In the two largest units."""
    minutes, rest_s = divmod(int(value_s), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{rest_s} s"


def line(values: Sequence[float], width: int) -> str:
    """The last values as blocks, the largest of them full; a value that is none is a blank."""
    shown = list(values)[-width:]
    most = max((value for value in shown if math.isfinite(value)), default=0.0)
    top = len(BLOCKS) - 1
    marks = (
        " " if not math.isfinite(value) else BLOCKS[round(top * value / most) if most else 0]
        for value in shown
    )
    return "".join(marks).rjust(width)


def bar(part: float, width: int) -> str:
    """A part of 1 as a bar, to an eighth of a character."""
    eighths = round(max(0.0, min(1.0, part)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (EIGHTHS[rest] if rest else "")).ljust(width)
