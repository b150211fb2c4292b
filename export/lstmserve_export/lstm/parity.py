"""Checks that model.onnx computes what torch computes. Never writes; raises Refused if not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmserve.golden import Floats, excess, torch_error_max
from lstmserve.lstm_golden import LstmGolden
from lstmserve.runtime import ort
from lstmserve.spec import LstmSpec
from lstmserve_export.lstm.network import Network, first_states
from lstmserve_export.lstm.reference import Inputs, refer
from lstmserve_export.refusal import Refused
from lstmserve_export.sequences import SEED, clear_case, lengths_for, random_chunks

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


def random_case(network: Network, spec: LstmSpec) -> tuple[LstmGolden, float]:
    """The case of random rows, and torch's error on all of them. Raises Refused."""
    return clear_case(
        lambda lengths: refer(network, random_inputs(network, spec, lengths)),
        lambda case: case.torch_error <= torch_error_max(case.y, case.hn, case.cn),
        lengths_for(spec.input_size + spec.output_size),
    )


def open_session(content: bytes) -> ort.InferenceSession:
    """Opens model.onnx in onnxruntime, on the CPU, with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


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


def prove(
    content: bytes, spec: LstmSpec, case: LstmGolden, progress: Callable[[str], None]
) -> dict[str, Any]:
    """The parity report of model.onnx on a case. Raises Refused if an error is too large.

    Runs whole sequences alone, one ragged batch, random chunks and single steps; a bidirectional
    model has no chunks or steps.
    """
    session = open_session(content)
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
