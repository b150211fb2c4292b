"""The rows on which a model of kind "lstm" with a window is checked, and torch's answers to them.

A window is a sequence of its own for torch, whose answer is the last row's. A server keeps the rows
ahead of the newest one as the session's state. This file makes both out of the same rows. It must
not know ONNX, so that it is an independent check of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from lstmserve.golden import Floats, Golden, torch_error_max
from lstmserve.lstm_golden import LstmGolden
from lstmserve.spec import KNOWN, MISSING, WINDOW, ModelSpec
from lstmserve_export.arrays import Array
from lstmserve_export.lstm.network import Network, first_states
from lstmserve_export.lstm.parity import random_inputs
from lstmserve_export.lstm.reference import Inputs, forward
from lstmserve_export.refusal import Refused
from lstmserve_export.sequences import VALUE_COUNT_MAX

CELLS_MAX: Final = 1 << 16  # rows that torch reads at once
# How many rows the sessions of the random cases give, those at any point and new ones.
LENGTHS: Final = (12, 12, 9, 7, 5, 3, 2, 1)
NEW_LENGTHS: Final = (40, 17, 2, 1)
PAIR_VALUES_MAX: Final = 1 << 26  # of all windows
STORED_MAX: Final = 64  # windows of pairs that golden.npz keeps


@dataclass(frozen=True, slots=True)
class Sessions:
    """Sessions that have given rows before: rows [given + length, *shape] of each, oldest first."""

    rows: tuple[Array, ...]
    given: tuple[int, ...]

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """How many rows each gives now."""
        pairs = zip(self.rows, self.given, strict=True)
        return np.array([len(rows) - given for rows, given in pairs], np.int32)


def refer_windows(network: Network, spec: ModelSpec, windows: Sequence[Array]) -> LstmGolden:
    """Windows of 1 to W rows, oldest first, as sequences with torch's answers y [N, O] to their
    last rows, and torch's error in these."""
    assert spec.lstm is not None
    lengths = np.array([len(each) for each in windows], np.int32)
    first = first_states(network, spec.lstm, len(windows))
    h0, c0 = (each.astype(np.float32) for each in first)
    x = np.zeros((len(windows), spec.window, *windows[0].shape[1:]), windows[0].dtype)
    for row, each in zip(x, windows, strict=True):
        row[: len(each)] = each
    inputs = Inputs(x, lengths, h0, c0)
    exact, single = (_last(network, inputs, dtype) for dtype in (torch.float64, torch.float32))
    error = float(np.abs(exact - single).max())
    return LstmGolden(x, lengths, h0, c0, exact, None, None, error)


def _last(network: Network, inputs: Inputs, dtype: torch.dtype) -> Floats:
    """y [N, O] of the last rows, computed for some of the sequences at a time."""
    count, size = inputs.x.shape[:2]
    some, found = max(1, CELLS_MAX // size), []
    for start in range(0, count, some):
        part = slice(start, start + some)
        one = Inputs(inputs.x[part], inputs.lengths[part], inputs.h0[:, part], inputs.c0[:, part])
        y = forward(network, one, dtype)[0]
        found.append(y[np.arange(len(y)), one.lengths - 1])
    return np.concatenate(found)


def random_cases(
    network: Network, spec: ModelSpec, user: LstmGolden | None = None
) -> tuple[dict[str, Golden], tuple[str, ...]]:
    """The cases of random rows, of sessions at any point and of new ones, with torch's answers; and
    remarks for the operator.

    Where rounding decides torch's answers to random rows, it takes the user's windows, if there are
    any. Raises Refused.
    """
    sessions = random_sessions(network, spec)
    cases = {name: refer_sessions(network, spec, each) for name, each in sessions.items()}
    error = max(case.torch_error for case in cases.values())
    if all(map(_is_clear, cases.values())):
        return cases, ()
    fault = f"torch's own float32 is off by {error:.2g} on random windows of {spec.window} rows"
    if user is None:
        raise Refused(
            f"{fault}: the network amplifies rounding, so no float32 result means anything there; "
            "give rows of your own with --golden, or a shorter window"
        )
    sessions = {name: _out_of(each, user) for name, each in sessions.items()}
    cases = {name: refer_sessions(network, spec, each) for name, each in sessions.items()}
    return cases, (f"{fault}: the export checked the model on rows of your pairs instead",)


def _is_clear(case: Golden) -> bool:
    return case.torch_error <= torch_error_max(case.outputs["y"])


def random_sessions(network: Network, spec: ModelSpec) -> dict[str, Sessions]:
    """Sessions at any point, and new ones, that give random rows."""
    assert spec.lstm is not None
    most = spec.window - 1
    given = np.clip([most, 0, most - 1, most - 4, most, 1, 0, most], 0, most)
    width = spec.window * (sum(each.size for each in spec.inputs) + spec.lstm.hidden_size)
    share = min(1.0, VALUE_COUNT_MAX / sum(LENGTHS) / width)
    found = {}
    for name, lengths, before in (
        ("parity", LENGTHS, given.tolist()),
        ("new", [min(each, most + 4) for each in NEW_LENGTHS], [0] * len(NEW_LENGTHS)),
    ):
        ends = [n + max(1, int(each * share)) for n, each in zip(before, lengths, strict=True)]
        x = random_inputs(network, spec.lstm, ends).x
        rows = tuple(each[:end] for each, end in zip(x, ends, strict=True))
        found[name] = Sessions(rows, tuple(before))
    return found


def _out_of(sessions: Sessions, user: LstmGolden) -> Sessions:
    """The sessions with rows of the user's windows in place of their own."""
    pool = user.x[user.lengths[:, None] > np.arange(user.x.shape[1])]
    rows = tuple(
        pool[(len(pool) * n // len(sessions.rows) + np.arange(len(each))) % len(pool)]
        for n, each in enumerate(sessions.rows)
    )
    return replace(sessions, rows=rows)


def refer_sessions(network: Network, spec: ModelSpec, sessions: Sessions) -> Golden:
    """The case of the sessions, with torch's answers and the states that they leave."""
    lengths = sessions.lengths
    lead = len(lengths), int(lengths.max())
    (tensor,), (output,) = spec.inputs, spec.outputs
    x = np.zeros((*lead, *tensor.shape), tensor.dtype)
    lacks = np.zeros(lead, np.int64)
    windows, places = [], []
    for n, (rows, given) in enumerate(zip(sessions.rows, sessions.given, strict=True)):
        x[n, : lengths[n]] = rows[given:]
        for t in range(lengths[n]):
            window = rows[max(0, given + t + 1 - spec.window) : given + t + 1]
            lacks[n, t] = spec.window - len(window)
            if spec.window_fill == "zeros":
                window = _at_the_end(window, spec.window)
            if not (spec.waits and lacks[n, t]):
                windows.append(window)
                places.append((n, t))
    y, error = np.zeros((*lead, *output.shape)), 0.0
    if windows:
        answers = refer_windows(network, spec, windows)
        y[tuple(np.transpose(places))], error = answers.y, answers.torch_error
    before = [rows[:given] for rows, given in zip(sessions.rows, sessions.given, strict=True)]
    finals = _states(spec, sessions.rows)
    return Golden(
        inputs={tensor.name: x},
        lengths=lengths,
        initial=_states(spec, before) if any(sessions.given) else None,
        outputs={output.name: y} | ({MISSING: lacks} if spec.waits else {}),
        finals={n: e.astype(np.float64) if e.dtype == np.float32 else e for n, e in finals.items()},
        torch_error=error,
    )


def _states(spec: ModelSpec, rows: Sequence[Array]) -> dict[str, Array]:
    """The states [N, *shape] of sessions that have given these rows."""
    (tensor,), most = spec.inputs, spec.window - 1
    kept = np.stack([_at_the_end(each[-most:], most) for each in rows])
    known = np.array([min(len(each), most) for each in rows])
    states: Mapping[str, Array] = {tensor.name + WINDOW: kept, KNOWN: known}
    return {each.name: states[each.name] for each in spec.states}


def _at_the_end(rows: Array, count: int) -> Array:
    """The rows, with zeros ahead of them up to `count`."""
    return np.pad(rows, [(count - len(rows), 0), *[(0, 0)] * (rows.ndim - 1)])


def cut_windows(network: Network, spec: ModelSpec, user: LstmGolden) -> LstmGolden:
    """The windows for which the user's pairs have y, as sequences with one y [N, O] each.

    Without `grow`, those are whole ones. Raises Refused where a sequence has none.
    """
    windows, wanted = [], []
    for x, y, length in zip(user.x, user.y, user.lengths.tolist(), strict=True):
        ends = [length] if user.y.ndim == 2 else range(1, length + 1)
        for end in ends:
            if end >= spec.window or spec.window_fill == "grow":
                windows.append(x[max(0, end - spec.window) : end])
                wanted.append(y if user.y.ndim == 2 else y[end - 1])
    shortest = int(user.lengths.min())
    if not windows or (user.y.ndim == 2 and len(windows) < len(user.x)):
        raise Refused(
            f"--golden: a sequence has {shortest} rows, a window has {spec.window}: give sequences "
            f"of {spec.window} rows or more, each with the y of its last row"
        )
    values = len(windows) * spec.window * user.x[0, 0].size
    if values > PAIR_VALUES_MAX:
        raise Refused(
            f"--golden: {len(windows)} windows of {spec.window} rows have {values} values, at most "
            f"{PAIR_VALUES_MAX}: give fewer rows"
        )
    return replace(refer_windows(network, spec, windows), y=np.stack(wanted))


def as_steps(spec: ModelSpec, case: LstmGolden) -> Golden:
    """Windows as sessions that have given all rows but the last, and give that now."""
    lengths = case.lengths.tolist()
    before = [x[: length - 1] for x, length in zip(case.x, lengths, strict=True)]
    last = case.x[np.arange(len(case.x)), case.lengths - 1]
    lacks = np.zeros((len(lengths), 1), np.int64)
    return Golden(
        inputs={spec.inputs[0].name: last[:, np.newaxis]},
        lengths=np.ones(len(lengths), np.int32),
        initial=_states(spec, before),
        outputs={"y": case.y[:, np.newaxis]} | ({MISSING: lacks} if spec.waits else {}),
        finals={},
        torch_error=case.torch_error,
    )


def stored(spec: ModelSpec, case: LstmGolden) -> LstmGolden:
    """As many of the windows, evenly apart, as golden.npz keeps for every start of a server."""
    size = spec.window * spec.inputs[0].size
    count = min(len(case.x), STORED_MAX, max(1, VALUE_COUNT_MAX // size))
    chosen = np.linspace(0, len(case.x) - 1, count).astype(np.int64)
    return replace(
        case,
        x=case.x[chosen],
        lengths=case.lengths[chosen],
        h0=case.h0[:, chosen],
        c0=case.c0[:, chosen],
        y=case.y[chosen],
    )
