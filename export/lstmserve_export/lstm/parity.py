"""Checks that model.onnx computes what torch computes. Never writes; raises Refused if not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lstmserve.golden import Floats, excess, torch_error_max
from lstmserve.lstm_golden import LstmGolden
from lstmserve.runtime import ort, plain_session
from lstmserve.spec import LstmSpec
from lstmserve_export.lstm.network import Network, first_states
from lstmserve_export.lstm.reference import Inputs, forward, refer
from lstmserve_export.refusal import Refused
from lstmserve_export.sequences import (
    SEED,
    Lengths,
    chaos_notes,
    clear_case,
    lengths_for,
    random_chunks,
)

Array = npt.NDArray[np.floating[Any]]
Outputs = tuple[Array, Array, Array]


def random_inputs(network: Network, spec: LstmSpec, steps: Sequence[int]) -> Inputs:
    """Random sequences of these lengths: half start as new sessions do, half from a state."""
    rng = np.random.default_rng(SEED)
    lengths = np.array(steps, np.int32)
    count, rows = len(lengths), int(lengths.max())
    x: npt.NDArray[np.generic]
    if spec.num_embeddings:
        x = rng.integers(0, spec.num_embeddings, (count, rows))
        x[0, 0], x[-1, 0] = spec.num_embeddings - 1, 0
    else:
        noise = rng.standard_normal((count, rows, spec.input_size))
        norm = network.input_norm
        x = (noise * norm.scale + norm.mean if norm else noise).astype(np.float32)
    h0, c0 = first_states(network, spec, count)
    h0[:, 1::2] = rng.uniform(-0.9, 0.9, h0.shape)[:, 1::2]
    c0[:, 1::2] = rng.uniform(-1.5, 1.5, c0.shape)[:, 1::2]
    return Inputs(x, lengths, h0.astype(np.float32), c0.astype(np.float32))


def random_case(
    network: Network, spec: LstmSpec, user: LstmGolden | None = None
) -> tuple[LstmGolden, tuple[str, ...]]:
    """The case of random rows with torch's answers, and remarks for the operator.

    Where rounding decides torch's answers to random rows, it takes rows of the user's pairs, if
    there are any. Raises Refused.
    """
    lengths = lengths_for(spec.input_size + spec.output_size)

    def is_clear(case: LstmGolden) -> bool:
        return case.torch_error <= torch_error_max(case.y, case.hn, case.cn)

    def random(lengths: Lengths) -> LstmGolden:
        return refer(network, random_inputs(network, spec, lengths))

    if user is None or is_clear(first := random(lengths)):
        try:
            case, error = clear_case(random, is_clear, lengths)
        except Refused as refusal:
            raise Refused(f"{refusal}, or give rows of your own with --golden") from refusal
        return case, chaos_notes(error)
    case, error = clear_case(
        lambda lengths: refer(network, pair_inputs(network, user, lengths)), is_clear, lengths
    )
    note = (
        f"torch's own float32 is off by {first.torch_error:.2g} on random rows, and by {error:.2g} "
        "on your own: the export checked single steps, chunks and batches on yours"
    )
    return case, (note, *chaos_notes(error))


def pair_inputs(network: Network, user: LstmGolden, steps: Sequence[int]) -> Inputs:
    """Sequences of at most these lengths out of the user's pairs: half begin as these do, half
    later, from the state that the network then has."""
    rng = np.random.default_rng(SEED)
    parts = []
    for i, length in enumerate(steps):
        one = user.part(slice(i % len(user.lengths), i % len(user.lengths) + 1))
        most = int(one.lengths[0])
        length = min(length, most)
        start = int(rng.integers(most - length + 1)) if i % 2 else 0
        h0, c0 = one.h0, one.c0
        if start:
            before = Inputs(one.x[:, :start], np.array([start], np.int32), h0, c0)
            h0, c0 = (
                each.astype(np.float32) for each in forward(network, before, torch.float64)[1:]
            )
        x = one.x[:, start : start + length]
        x = np.pad(x, [(0, 0), (0, max(steps) - length), *[(0, 0)] * (x.ndim - 2)])
        parts.append(Inputs(x, np.array([length], np.int32), h0, c0))
    lengths = np.concatenate([each.lengths for each in parts])
    x = np.concatenate([each.x for each in parts])[:, : lengths.max()]
    h0, c0 = (np.concatenate([getattr(p, n) for p in parts], axis=1) for n in ("h0", "c0"))
    return Inputs(x, lengths, h0, c0)


def run(session: ort.InferenceSession, case: LstmGolden, cuts: Sequence[int]) -> Outputs:
    """y [N, T, O], hn, cn of the case, the time axis cut at `cuts` (0 first, T last)."""
    x_name = session.get_inputs()[0].name
    parts, h, c = [], case.h0, case.c0
    for start, stop in pairwise(cuts):
        lengths = np.clip(case.lengths - start, 0, stop - start).astype(np.int32)
        feed = {x_name: case.x[:, start:stop], "lengths": lengths, "h0": h, "c0": c}
        y, h, c = session.run(["y", "hn", "cn"], feed)
        parts.append(y)
    return np.concatenate(parts, axis=1), h, c


def run_alone(session: ort.InferenceSession, case: LstmGolden) -> Outputs:
    """As run() of whole sequences, but each in a call of its own and without padding."""
    rows = int(case.lengths.max())
    ys, hs, cs = [], [], []
    for n, length in enumerate(case.lengths):
        part = (slice(None), slice(n, n + 1))
        one = replace(
            case,
            x=case.x[n : n + 1, :length],
            lengths=case.lengths[n : n + 1],
            h0=case.h0[part],
            c0=case.c0[part],
        )
        y, h, c = run(session, one, [0, int(length)])
        ys.append(np.pad(y, ((0, 0), (0, rows - int(length)), (0, 0))))
        hs.append(h)
        cs.append(c)
    return np.concatenate(ys), np.concatenate(hs, axis=1), np.concatenate(cs, axis=1)


def judge(outputs: Outputs, case: LstmGolden) -> float:
    """The largest error in y, hn and cn, in units of the allowed one; <= 1 passes.

    Of y it takes the valid rows, or the last row of each sequence if the case has only those.
    """
    y, hn, cn = outputs
    if case.y.ndim == 2:
        pairs = [(y[np.arange(len(y)), case.lengths - 1], case.y)]
    else:
        valid = case.lengths[:, None] > np.arange(y.shape[1])
        pairs = [(y[valid], case.y[:, : y.shape[1]][valid])]
    pairs += [(a, e) for a, e in ((hn, case.hn), (cn, case.cn)) if e is not None]
    return max(excess(actual, expected, case.torch_error) for actual, expected in pairs)


def check_start(content: bytes, network: Network, spec: LstmSpec) -> None:
    """Raises Refused unless model.onnx gives the network's learned initial state, if it has one.

    prove() cannot tell, because it gives model.onnx the states from which sequences begin.
    """
    if not spec.initial_state:
        return
    session, first = plain_session(content), first_states(network, spec, 1)
    h0, c0 = (each.astype(np.float32) for each in first)
    x = np.zeros((1, 1, spec.input_size), np.float32)
    if spec.num_embeddings:
        x = np.zeros((1, 1), np.int64)
    feed = {spec.inputs[0].name: x, "lengths": np.ones(1, np.int32), "h0": h0, "c0": c0}
    found = session.run(["initial.h", "initial.c"], feed)
    if not all(np.array_equal(a, b[:, 0]) for a, b in zip(found, (h0, c0), strict=True)):
        raise Refused(
            "parity failed on the initial state; nothing was written. This is a bug: please report "
            "it"
        )


def prove(
    content: bytes, spec: LstmSpec, case: LstmGolden, progress: Callable[[str], None]
) -> dict[str, Any]:
    """The parity report of model.onnx on a case. Raises Refused if an error is too large.

    Runs whole sequences alone, one ragged batch, random chunks and single steps; a bidirectional
    model has no chunks or steps.
    """
    session = plain_session(content)
    rows = int(case.lengths.max())
    results: dict[str, Outputs] = {}
    progress("parity: whole sequences")
    results["whole"] = run_alone(session, case)
    progress("parity: a ragged batch")
    results["ragged"] = run(session, case, [0, rows])
    if not spec.bidirectional:
        progress("parity: random chunks")
        results["chunks"] = run(session, case, random_chunks(rows))
        progress("parity: single steps")
        results["steps"] = run(session, case, range(rows + 1))
    report = {name: judge(outputs, case) for name, outputs in results.items()}
    for name, value in report.items():
        if not value <= 1:
            raise Refused(
                f"parity failed on {name}: {value:.3g} times the allowed difference from torch; "
                "nothing was written. This is a bug, or a fault of this machine: please report it"
            )
    return {
        "rows": int(case.lengths.sum()),
        "seed": SEED,
        "torch_error": case.torch_error,
        "onnx_error": max(_error(outputs, case) for outputs in results.values()),
        "excess": report,
    }


def _error(outputs: Outputs, case: LstmGolden) -> float:
    y, hn, cn = outputs
    valid = case.lengths[:, None] > np.arange(y.shape[1])
    pairs: list[tuple[Array, Floats | None]] = [
        (y[valid], case.y[valid]),
        (hn, case.hn),
        (cn, case.cn),
    ]
    return max(float(np.abs(a - e).max()) for a, e in pairs if e is not None)
