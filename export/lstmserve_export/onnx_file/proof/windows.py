"""The golden cases of a file with a window: what it answers to each window of W rows alone.

A sequence here is the W - 1 rows before, and the rows of its time steps. A session knows all rows
before, or only the last of them, as one that began later.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from lstmserve.golden import Golden
from lstmserve.spec import KNOWN, MISSING, WINDOW, ModelSpec
from lstmserve_export.arrays import Array, Arrays
from lstmserve_export.onnx_file.proof.reference import SequenceReference, doubles
from lstmserve_export.refusal import Refused

LENGTHS: Final = (16, 12, 8, 6, 5, 3, 2, 1)  # time steps of random sequences
VALUES_MAX: Final = 1 << 22  # of the rows of all windows
NEW_WINDOW_MAX: Final = 256  # rows of the longest window that new sessions fill row by row


def lengths_of(spec: ModelSpec) -> Array:
    """int32 [N]: time steps of the random sequences, fewer where a window has many values."""
    width = spec.window * sum(each.size for each in spec.inputs)
    share = min(1.0, VALUES_MAX / (sum(LENGTHS) * width))
    return np.array([max(1, int(length * share)) for length in LENGTHS], np.int32)


def window_case(
    reference: SequenceReference, spec: ModelSpec, rows: Arrays, lengths: Array
) -> Golden:
    """Of rows [N, W - 1 + T, *shape]; sequences in turn know all rows before, none, or some.

    Raises Refused.
    """
    most = spec.window - 1
    turns = (most, 0, most, most - 1, most, most // 2, most, min(1, most))
    known = np.resize(np.array(turns, np.int64), len(lengths))
    return _case(reference, spec, rows, lengths, known)


def new_sessions(reference: SequenceReference, spec: ModelSpec, rows: Arrays) -> Golden | None:
    """Of rows [2, W - 1 + T, *shape] with T = W + 1, of which nothing came before: until the
    windows are whole, and one row more. None where that takes long. Raises Refused."""
    if spec.window > NEW_WINDOW_MAX:
        return None
    lengths = np.array([spec.window + 1, spec.window], np.int32)
    case = _case(reference, spec, rows, lengths, np.zeros(2, np.int64))
    return Golden(case.inputs, case.lengths, None, case.outputs, case.finals, 0.0)


def windows_alone(reference: SequenceReference, spec: ModelSpec, windows: Arrays) -> Golden:
    """Of windows [N, W, *shape], each of which is one time step of a session that has the rows
    before it. Raises Refused."""
    count = len(next(iter(windows.values())))
    known = np.full(count, spec.window - 1)
    return _case(reference, spec, windows, np.ones(count, np.int32), known)


def _case(
    reference: SequenceReference, spec: ModelSpec, rows: Arrays, lengths: Array, known: Array
) -> Golden:
    before = spec.window - 1
    count, steps = len(lengths), int(lengths.max())
    is_gone = np.arange(before) < (before - known)[:, None]
    given = {name: each.copy() for name, each in rows.items()}
    for each in given.values():
        each[:, :before][is_gone] = 0
    outputs: dict[str, Any] = {
        each.name: np.zeros((count, steps, *each.shape), each.dtype) for each in spec.outputs
    }
    for row, length in enumerate(map(int, lengths)):
        for step in range(length):
            if spec.waits and known[row] + step < before:
                continue
            window = {name: each[row, step : step + spec.window] for name, each in given.items()}
            for name, answer in reference.answer(window).items():
                outputs[name][row, step] = answer[-1]
    if not all(np.isfinite(each).all() for each in outputs.values()):
        raise Refused(
            f"the file gives NaN or infinite values for random windows of {spec.window} rows: give "
            "rows that it takes with --golden"
        )
    found = doubles(outputs)
    if spec.waits:
        found[MISSING] = np.maximum(before - known[:, None] - np.arange(steps), 0)
    initial = {name + WINDOW: each[:, :before] for name, each in given.items()}
    if spec.window_fill != "zeros":
        initial[KNOWN] = known
    inputs = {name: each[:, before:] for name, each in given.items()}
    return Golden(inputs, lengths, initial, found, {}, 0.0)
