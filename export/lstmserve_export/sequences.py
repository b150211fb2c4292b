"""The random sequences that an export checks: their lengths, and how a stream cuts them.

A network may amplify rounding so much that torch's own answers to long sequences mean nothing. This
file shortens its sequences, and says so. It must not know what a network computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

import numpy as np

from lstmserve_export.arrays import Array
from lstmserve_export.refusal import Refused

SEED: Final = 20130101
# 200 rows together. On longer streams float32 loses chaotic networks, in torch too.
LENGTHS: Final = (64, 48, 37, 25, 16, 7, 2, 1)
VALUE_COUNT_MAX = 4_000_000
CHAOTIC_ERROR: Final = 0.01
Lengths = tuple[int, ...]


class Answered(Protocol):
    """A case with torch's answers."""

    @property
    def torch_error(self) -> float:
        """The largest error of torch's float32."""


Case = TypeVar("Case", bound=Answered)


def lengths_for(width: int) -> Lengths:
    """LENGTHS, or less if rows of `width` values would make golden.npz large."""
    share = min(1.0, VALUE_COUNT_MAX / sum(LENGTHS) / width)
    return tuple(max(1, int(length * share)) for length in LENGTHS)


def clear_case(
    make: Callable[[Lengths], Case], is_clear: Callable[[Case], bool], lengths: Lengths
) -> tuple[Case, float]:
    """The case that `make` gives, and torch's error at the lengths given.

    Halves the sequences until torch's float32 is close enough to its float64 for the answers to
    mean something. Raises Refused if it is not even on single rows.
    """
    case = make(lengths)
    whole_error = case.torch_error
    while not is_clear(case):
        if max(lengths) == 1:
            raise Refused(
                f"torch's own float32 is off by {case.torch_error:.2g} on a single row: with these "
                "weights no float32 result means anything; train with smaller ones"
            )
        lengths = tuple(max(1, length // 2) for length in lengths)
        case = make(lengths)
    return case, whole_error


def chaos_notes(torch_error: float) -> tuple[str, ...]:
    """A note for the operator of a network that amplifies rounding errors."""
    if torch_error <= CHAOTIC_ERROR:
        return ()
    return (
        f"torch's own float32 is off by {torch_error:.2g} within {max(LENGTHS)} rows: this network "
        "amplifies rounding, so the export checks it on shorter sequences where needed, and long "
        "streams differ between machines",
    )


def random_chunks(steps: int) -> list[int]:
    """Where a stream of so many time steps is cut: 0 first, `steps` last."""
    inner = np.random.default_rng(SEED).permutation(np.arange(1, steps))[: steps // 8]
    return [0, *sorted(map(int, inner)), steps]


def padded(rows: Array, steps: int) -> Array:
    """[N, T, *shape] -> [N, steps, *shape], with zeros past T."""
    return np.pad(rows, [(0, 0), (0, steps - rows.shape[1]), *[(0, 0)] * (rows.ndim - 2)])
