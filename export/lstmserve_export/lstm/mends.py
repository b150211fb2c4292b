"""Looks for one change of a network that would make the user's pairs match.

It tries an activation, another reading of the scalers, other axes, a residual and another initial
state, all in torch's float64, and says in words for the user what it found. It changes nothing and
must not know ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lstmserve.golden import Floats, excess
from lstmserve.lstm_golden import LstmGolden
from lstmserve.spec import WINDOW_MAX, ModelSpec
from lstmserve_export.lstm.network import (
    ACTIVATIONS,
    Network,
    describe,
    make_activation,
)
from lstmserve_export.lstm.parity import judge
from lstmserve_export.lstm.reference import Inputs, begins_as_sessions, forward
from lstmserve_export.lstm.windows import cut_windows
from lstmserve_export.scalers.min_max import other_readings

# A state shows in the first rows, and more of them only take time.
FIT_SEQUENCES: Final = 8
FIT_ROWS: Final = 32
FIT_RUN_MAX: Final = 20_000  # rows of a run, which has the sequences once for each value of a state
FIT_ROUNDS: Final = 20
FIT_ENOUGH: Final = 1e-6
DIFFERENCE: Final = 1e-6
DAMPING: Final = 1e-2
LATER_ROWS: Final = 8  # the last quarter of shorter sequences says nothing


def mends(network: Network, case: LstmGolden) -> Iterator[str]:
    """What would make the pairs match, in words."""
    some = _first_rows(case)  # tells most networks apart at little cost
    for place, name in product(range(len(network.head) + 1), ACTIVATIONS):
        layers = list(network.head)
        layers.insert(place, make_activation(name))
        other = replace(network, head=nn.Sequential(*layers))
        if matches(other, some) and matches(other, case):
            yield f"with {name} {_where(place, len(network.head))} it would match"
    for words, changed in _other_norms(network):
        if matches(changed, case):
            yield f"with {words} it would match"
    if _is_time_major(network, case):
        yield "x and y are time-major: store them as [N, T, ...]"
    bare = replace(network, residual=())
    if (columns := _find_residual(bare, case)) is not None:
        flag = f"--residual {','.join(map(str, columns))}"
        rest = _without_residual(bare, case, columns)
        if matches(bare, rest):
            yield f"with {flag} it would match: forward() adds x to what the head gives"
        else:
            yield from _starts(bare, rest, f"with {flag}")
    yield from _starts(network, case, "")
    if (window := _find_window(network, case)) is not None:
        yield (
            f"with --window {window} --window-fill grow it would match: each y is of the last "
            f"{window} rows alone"
        )


def matches(network: Network, case: LstmGolden) -> bool:
    """Whether torch's float64 result is as near to the pairs as the parity gate asks."""
    inputs = Inputs(case.x, case.lengths, case.h0, case.c0)
    return judge(forward(network, inputs, torch.float64), case) <= 1


def _where(place: int, count: int) -> str:
    if place == count:
        return "after the head (--output-activation or --head ...)"
    return "before the head (--pre-head)" if place == 0 else f"before layer {place + 1} of the head"


def _other_norms(network: Network) -> Iterator[tuple[str, Network]]:
    """The network with other readings of its scalers, each in words."""
    readings = (
        other_readings(side, {} if norm is None else {"": norm})
        for side, norm in (("input", network.input_norm), ("output", network.output_norm))
    )
    for (x_words, x), (y_words, y) in list(product(*readings))[1:]:
        words = " and with ".join(filter(None, (x_words, y_words)))
        yield words, replace(network, input_norm=x.get(""), output_norm=y.get(""))


def _is_time_major(network: Network, case: LstmGolden) -> bool:
    if case.y.ndim != 3 or len(set(case.lengths)) != 1:
        return False
    axes = (1, 0, *range(2, case.x.ndim))
    count, rows = case.x.shape[:2]
    h0, c0 = (
        np.zeros((len(state), rows, state.shape[2]), np.float32) for state in (case.h0, case.c0)
    )
    swapped = replace(
        case,
        x=case.x.transpose(axes),
        y=case.y.transpose(1, 0, 2),
        lengths=np.full(rows, count, np.int32),
        h0=h0,
        c0=c0,
        hn=None,
        cn=None,
    )
    return matches(network, swapped)


def _find_window(network: Network, case: LstmGolden) -> int | None:
    """The number of rows that y depends on, where the first so many rows match."""
    if case.y.ndim == 2 or not begins_as_sessions(network, case):
        return None
    y = forward(network, Inputs(case.x, case.lengths, case.h0, case.c0), torch.float64)[0]
    rows = range(int(case.lengths.max()))
    valid = case.lengths[:, None] > np.array(rows)
    same = (
        excess(y[v, t], case.y[v, t], case.torch_error) <= 1
        for t, v in zip(rows, valid.T, strict=True)
    )
    window = next((t for t, is_same in enumerate(same) if not is_same), 0)
    if not 2 <= window <= WINDOW_MAX:
        return None
    spec = ModelSpec.of_lstm(describe(network), window, "grow")
    return window if matches(network, cut_windows(network, spec, case)) else None


# A residual ---------------------------------------------------------------------------------------


def _find_residual(network: Network, case: LstmGolden) -> tuple[int, ...] | None:
    """The column of x that comes nearest to what each output lacks, if the network reads x."""
    if network.embedding is not None:
        return None
    inputs = Inputs(case.x, case.lengths, case.h0, case.c0)
    y = forward(network, inputs, torch.float64)[0]
    x, lacks = _rows(_as_read(network, case), case), _rows(case.y, case)
    lacks = lacks - _rows(y, case)
    if norm := network.output_norm:
        lacks = lacks / norm.scale
    # By the median, since the first rows may also lack an initial state.
    far = [np.median(np.abs(x - column[:, None]), axis=0) for column in lacks.T]
    return tuple(int(each.argmin()) for each in far)


def _without_residual(network: Network, case: LstmGolden, columns: tuple[int, ...]) -> LstmGolden:
    """The pairs of a network whose head lacks these columns of x."""
    added = _as_read(network, case)[..., list(columns)]
    if norm := network.output_norm:
        added = added * norm.scale
    if case.y.ndim == 2:
        added = _rows(added, case)
    return replace(case, y=case.y - added)


def _as_read(network: Network, case: LstmGolden) -> Floats:
    """x [N, T, I] as the LSTM reads it."""
    x = case.x.astype(np.float64)
    return x if (norm := network.input_norm) is None else (x - norm.mean) / norm.scale


def _rows(values: Floats, case: LstmGolden) -> Floats:
    """Rows [R, width] for which the case has y, of values [N, T, width]; y itself may be [N, O]."""
    return values if values.ndim == 2 else values.reshape(-1, values.shape[2])[_places(case)]


def _places(case: LstmGolden) -> npt.NDArray[np.int64]:
    """Which of all N * T rows have y."""
    rows = np.arange(case.x.shape[1])
    if case.y.ndim == 2:
        return np.flatnonzero(case.lengths[:, None] == rows + 1)
    return np.flatnonzero(case.lengths[:, None] > rows)


# Another initial state ----------------------------------------------------------------------------


def _starts(network: Network, case: LstmGolden, mend: str) -> Iterator[str]:
    """Says so where the pairs begin from another state than the one that they name. `mend` is a
    change that they need as well, or ""."""
    if not begins_as_sessions(network, case):
        return
    begin = f"{mend} and" if mend else "with"
    if _later_rows_match(network, case):
        yield (
            f"{mend} the first rows differ and the last ones match, so forward() begins from "
            "another state: give it with --initial-state, or store it as h0 and c0"
        ).lstrip()
    elif (
        len(case.lengths) > 1
        and (state := _fit(network, case)) is not None
        and matches(network, _from(case, *state))
    ):
        yield (
            f"{begin} another initial state, the same for every sequence, it would match: forward()"
            " begins from a learned one; give it with --initial-state"
        )
    elif _fit(network, case.part(slice(1))) is not None:
        yield (
            f"{begin} another initial state it would match: if the rows continue a sequence, store "
            "its state as h0 and c0; if forward() has a learned one, give --initial-state"
        )


def _fit(network: Network, case: LstmGolden) -> tuple[Floats, Floats] | None:
    """h0 and c0 [L, 1, width] from which torch gives y of the first rows; None if there are none,
    and where the pairs have too few values to tell such a state from a coincidence.

    Levenberg 1944: each step solves (J^T J + damping) step = J^T (y - y(state)), where J is
    dy / dstate, by differences.
    """
    some = _first_rows(case)
    unknown = sum(each.shape[0] * each.shape[2] for each in (case.h0, case.c0))
    wanted = _rows(some.y, some).ravel()
    if wanted.size < 2 * unknown or unknown * math.prod(some.x.shape[:2]) > FIT_RUN_MAX:
        return None
    eye = np.eye(unknown)
    changes = np.concatenate([np.zeros((1, unknown)), DIFFERENCE * eye])
    state, best, least, damping = np.zeros(unknown), np.zeros(unknown), np.inf, DAMPING
    for _ in range(FIT_ROUNDS):
        y = _answers(network, some, state + changes)
        error = float(np.linalg.norm(wanted - y[0]))
        if is_better := error < least:
            best, least = state, error
            lacks, slopes = wanted - y[0], (y[1:] - y[0]).T / DIFFERENCE
        if error < FIT_ENOUGH:
            break
        damping *= 0.1 if is_better else 5.0
        system = np.concatenate([slopes, np.sqrt(damping) * eye])
        state = best + np.linalg.lstsq(system, np.append(lacks, np.zeros(unknown)), rcond=None)[0]
    h0, c0 = _shaped(best[None], case)
    return (h0, c0) if matches(network, _from(some, h0, c0)) else None


def _first_rows(case: LstmGolden) -> LstmGolden:
    """A few sequences, and of these a few rows; the ends are then unknown."""
    some = replace(case.part(slice(FIT_SEQUENCES)), hn=None, cn=None)
    if some.y.ndim == 2:
        return some
    lengths = np.minimum(some.lengths, FIT_ROWS)
    return replace(some, x=some.x[:, :FIT_ROWS], y=some.y[:, :FIT_ROWS], lengths=lengths)


def _answers(network: Network, case: LstmGolden, states: Floats) -> Floats:
    """y of all rows, [K, R * O], from each of K states that all sequences begin from."""
    count, times = len(case.lengths), len(states)
    x = np.tile(case.x, (times, *[1] * (case.x.ndim - 1)))
    h0, c0 = (np.repeat(each, count, axis=1) for each in _shaped(states, case))
    lengths = np.tile(case.lengths, times)
    y = forward(network, Inputs(x, lengths, h0, c0), torch.float64)[0]
    rows = y.reshape(times, -1, y.shape[2])[:, _places(case)]
    return rows.reshape(times, -1)


def _shaped(states: Floats, case: LstmGolden) -> tuple[Floats, Floats]:
    """h0 and c0 [L, K, width] of states [K, *]."""
    layers, _, width = case.h0.shape
    halves = np.split(states, [layers * width], axis=1)
    h0, c0 = (each.reshape(len(states), layers, -1).swapaxes(0, 1) for each in halves)
    return h0, c0


def _from(case: LstmGolden, h0: Floats, c0: Floats) -> LstmGolden:
    """The pairs with every sequence from h0 and c0 [L, 1, width]."""
    shapes = case.h0.shape, case.c0.shape
    starts = (
        np.broadcast_to(each, shape).astype(np.float32)
        for each, shape in zip((h0, c0), shapes, strict=True)
    )
    h, c = starts
    return replace(case, h0=h, c0=c)


def _later_rows_match(network: Network, case: LstmGolden) -> bool:
    """Whether torch gives the last quarter of every sequence's y."""
    if case.y.ndim == 2 or case.lengths.min() < LATER_ROWS:
        return False
    y = forward(network, Inputs(case.x, case.lengths, case.h0, case.c0), torch.float64)[0]
    rows, lengths = np.arange(case.x.shape[1]), case.lengths[:, None]
    late = (rows < lengths) & (rows >= lengths - lengths // 4)
    return excess(y[late], case.y[late], case.torch_error) <= 1
