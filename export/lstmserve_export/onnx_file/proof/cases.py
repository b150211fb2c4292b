"""The golden cases of a file with states: random rows and the user's, and what the file answers.

It must not know how the file is rebuilt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from lstmserve.golden import Golden, torch_error_max
from lstmserve_export.arrays import Array, Arrays
from lstmserve_export.onnx_file.layout.place import Layout
from lstmserve_export.onnx_file.proof.pairs import check_pairs, read_pairs
from lstmserve_export.onnx_file.proof.reference import Reference
from lstmserve_export.refusal import Refused
from lstmserve_export.sequences import lengths_for

CARRIED: Final = 8  # time steps of the sequences that begin from states that the file has left
PREFIXES: Final = 24  # of the sequence whose states are compared after each step
Draw = Callable[[int, int], Arrays]
"""(N, T) -> random rows [N, T, *shape] of each input that the file takes."""


@dataclass(frozen=True, slots=True)
class Cases:
    """`golden` also test a server that loads the model; `more` do not."""

    golden: dict[str, Golden]
    more: dict[str, Golden]
    notes: tuple[str, ...]


def make_cases(reference: Reference, layout: Layout, draw: Draw, pairs: Path | None) -> Cases:
    """Raises Refused."""
    spec = reference.spec
    random, noise, notes = _random(reference, draw)
    golden = {"random": random}
    if pairs is not None:
        golden["golden"] = _from_pairs(reference, layout, pairs, noise)
    # From the states that the file leaves, as a session that comes from elsewhere.
    ends = np.minimum(random.lengths, CARRIED)
    starts = {e.name: np.asarray(random.finals[e.name], e.dtype) for e in spec.states}
    carried = reference.case(draw(len(ends), int(ends.max())), ends, starts)
    golden["carried"] = _checked(replace(carried, torch_error=noise))
    first = {name: each[0, :PREFIXES] for name, each in random.inputs.items()}
    prefixes = replace(reference.prefixes(first), torch_error=noise)
    return Cases(golden, {"prefixes": prefixes}, notes)


def _random(reference: Reference, draw: Draw) -> tuple[Golden, float, tuple[str, ...]]:
    """The case of random rows, its noise, and notes. It halves the sequences until the noise, which
    is what rounding of x alone does to the answers, is small enough for them to mean something."""
    width = sum(each.size for each in reference.spec.inputs)
    lengths = np.array(lengths_for(width), np.int32)
    notes: tuple[str, ...] = ()
    while True:
        rows = draw(len(lengths), int(lengths.max()))
        case = _checked(reference.case(rows, lengths))
        noise = _noise(reference, case)
        if noise <= torch_error_max(*_floats(case)):
            return replace(case, torch_error=noise), noise, notes
        if lengths.max() == 1:
            raise Refused(
                f"the file's own answers to one random row move by {noise:.2g} when x moves by a "
                "rounding error, so no result of it means anything: give --golden with real rows"
            )
        notes = (
            f"the file's own answers move by {noise:.2g} when x moves by a rounding error: it "
            "amplifies rounding, so it was checked on shorter sequences, and long streams differ "
            "between machines",
        )
        lengths = np.maximum(1, lengths // 2)


def _noise(reference: Reference, case: Golden) -> float:
    """How far the answers move if each x moves to the next float."""
    moved = {
        name: np.nextafter(each, np.float32(np.inf)) if each.dtype == np.float32 else each
        for name, each in case.inputs.items()
    }
    other = reference.case(moved, case.lengths)
    differences = [
        float(np.abs(one - two).max(initial=0))
        for one, two in zip(_floats(case), _floats(other), strict=True)
    ]
    return max(differences, default=0.0)


def _from_pairs(reference: Reference, layout: Layout, path: Path, noise: float) -> Golden:
    """The user's rows, to which the file itself gives the user's outputs. Raises Refused."""
    pairs = read_pairs(path, layout)
    initial = None
    if pairs.initial:
        initial = {**reference.initial(len(pairs.lengths)), **pairs.initial}
    case = reference.case(dict(pairs.inputs), pairs.lengths, initial)
    check_pairs(pairs, case.outputs, reference.spec)
    return _checked(replace(case, torch_error=noise))


def _checked(case: Golden) -> Golden:
    """Raises Refused for answers that are no numbers."""
    for name, each in (*case.outputs.items(), *case.finals.items()):
        if not np.isfinite(each).all():
            raise Refused(
                f"the file gives NaN or infinite values of {name} for these rows: give --golden "
                "with rows that it takes"
            )
    return case


def _floats(case: Golden) -> list[Array]:
    found = (*case.outputs.values(), *case.finals.values())
    return [each for each in found if each.dtype.kind == "f"]
