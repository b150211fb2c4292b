"""How far a state that runs on is from windows, on the example's rows one sequence after the other.

It runs forward() on each sequence, and the exported step on all of them as one stream. choice.py
says it in words.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from lstmserve.golden import Golden
from lstmserve.graph import PoolNetwork
from lstmserve_export.choice import Series, describe_choice, distance
from lstmserve_export.module.forward import Forward
from lstmserve_export.module.signature.signature import Signature
from lstmserve_export.streaming import Stream

ROWS_MAX: Final = 8192  # of all sequences
PIECE: Final = 512  # rows of one run


def choice_notes(
    network: PoolNetwork, forward: Forward, signature: Signature, *, is_guess: bool
) -> tuple[str, ...]:
    """Asks for a window or a running state where forward() answers for the last of several rows.

    `is_guess` says that the example and its number of rows are no user's. A forward() that takes
    and returns a state was trained to go on.
    """
    if not signature.has_time or signature.passed:
        return ()
    if any(output.axes.time is not None for output in signature.outputs):
        return ()
    if is_guess:
        return (describe_choice(None, None),)
    inputs = {
        each.spec.name: each.axes.to_rows(forward.example[each.name]) for each in signature.inputs
    }
    steps = max(rows.shape[1] for rows in inputs.values())
    if steps < 2:
        return ()
    size = max(1, ROWS_MAX // steps)
    arrays = {
        name: rows[:size].expand(-1, steps, *rows.shape[2:]).contiguous().numpy()
        for name, rows in inputs.items()
    }
    series = Series.of(arrays)
    floats = [output for output in signature.outputs if output.spec.dtype == "float32"]
    far = None
    if len(series.ends) > 1 and floats:
        name = floats[0].spec.name
        windows = signature.last(forward(forward.example))[name].numpy()[:size]
        count = int(series.ends[-1]) + 1
        rows = {name: each[None, :count] for name, each in series.rows.items()}
        case = Golden(rows, np.array([count], np.int32), None, {}, {}, 0.0)
        found = Stream(network).run(case, [*range(0, count, PIECE), count])
        far = distance(found[name][0, series.ends], windows)
    return (describe_choice(steps, far, is_consecutive=series.is_consecutive),)
