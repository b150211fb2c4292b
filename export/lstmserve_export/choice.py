"""The choice that pairs leave open: a state that runs on, or a window of the last rows.

A forward() that gives one answer for T rows may be served either way, and the answers differ. This
file says how far on the user's own rows, in words for the user. It runs no model and refuses
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lstmserve_export.arrays import Array


@dataclass(frozen=True, slots=True)
class Series:
    """Sequences as one: `rows` [R, *shape] of each input in time, and in `ends` [N] the place of
    each sequence's last row. `is_consecutive` says whether the sequences overlap so."""

    rows: Mapping[str, Array]
    ends: npt.NDArray[np.int64]
    is_consecutive: bool

    @classmethod
    def of(cls, inputs: Mapping[str, Array]) -> Series:
        """The series of sequences [N, T, *shape]: each begins a few rows after the one before it,
        if all overlap by the same number of rows, or else where the one before it ends."""
        count, steps = next(iter(inputs.values())).shape[:2]
        stride = next((n for n in range(1, steps) if _overlap(inputs, n)), steps)
        rows = {
            name: np.concatenate([each[0], each[1:, steps - stride :].reshape(-1, *each.shape[2:])])
            for name, each in inputs.items()
        }
        return cls(rows, steps - 1 + stride * np.arange(count), count > 1 and stride < steps)


def _overlap(inputs: Mapping[str, Array], stride: int) -> bool:
    """Whether each sequence begins `stride` rows after the one before it."""
    return all(np.array_equal(x[1:, :-stride], x[:-1, stride:]) for x in inputs.values())


def distance(running: Array, windows: Array) -> float:
    """The RMS of the differences of [N, *shape] from the second sequence on, relative to the
    standard deviation of `windows`. The first sequence begins alike in both ways."""
    wanted = windows[1:].astype(np.float64)
    spread = float(np.sqrt(np.square(wanted - wanted.mean(axis=0)).mean()))
    rms = float(np.sqrt(np.square(running[1:] - wanted).mean()))
    return rms / spread if spread else (float("inf") if rms else 0.0)


def describe_choice(window: int | None, far: float | None, *, is_consecutive: bool = False) -> str:
    """Asks for the choice in one line. `window` is None where the example is no user's, and `far`
    is distance(), or None where it is not known."""
    rows = f"the last of {window} rows" if window else "the last row alone"
    begin = (
        f"choose: your forward() answers for {rows}. As exported, a session's state runs on over "
        "all its rows"
    )
    if far is not None:
        how = "which follow each other" if is_consecutive else "one sequence behind the other"
        begin += f"; on yours, {how}, the answers then differ from yours by {_percent(far)}"
    number = window or "W"
    return (
        f"{begin}. To answer each step as your forward() answers for the last {number} rows, "
        f"export again with --window {number} (window={number} in Python); docs/EXPORT.md says "
        "when which is right"
    )


def _percent(far: float) -> str:
    """The distance in words; it is infinite where all windows have one answer."""
    if not np.isfinite(far):
        return "more than they vary"
    number = f"{100 * far:.0f}" if far >= 0.1 else f"{100 * far:.2g}"
    return f"{number} % of their spread (RMS)"
