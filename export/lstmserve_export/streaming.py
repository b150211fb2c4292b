"""Proves that a model, run as the server runs it, gives what its golden cases say: of both ways.

It streams them through the server's own pool and kernel in single steps, in random chunks and in
one ragged batch, and measures what batches and chunks do to the bits. It never writes, and must not
know where the cases come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from lstmserve.engine.compute.device import GraphRefused
from lstmserve.engine.compute.kernel import Kernel, KernelError
from lstmserve.engine.compute.pool import INITIAL, RESERVED, Pool
from lstmserve.engine.compute.selftest import (
    CELLS_MAX,
    SelfTestFailed,
    check_kernel,
    pieces,
    run_cut,
)
from lstmserve.engine.model import SELF_TEST_SLOTS
from lstmserve.golden import Golden, excess
from lstmserve.graph import InvalidModel, PoolNetwork
from lstmserve.rows import RowFormat
from lstmserve_export.arrays import Array
from lstmserve_export.refusal import Refused, one_line
from lstmserve_export.sequences import SEED, padded, random_chunks

BATCH: Final = 256  # rows of a batch, as many as a server runs at once by default
BATCH_STEPS: Final = 4
SLOTS: Final = 2 * BATCH + SELF_TEST_SLOTS


class Mismatch(Exception):
    """The stream is not the reference. `case` has the rows, `step` is the time step (from 0), and
    `ratio` the difference in units of the allowed one."""

    def __init__(
        self, case: str, way: str, name: str, step: int, ratio: float, what: str = "output"
    ) -> None:
        super().__init__(
            f"{what} {name} differs at time step {step + 1} of the {case} rows, "
            f"{way}: {ratio:.3g} times the allowed difference"
        )
        self.case = case
        self.step = step
        self.ratio = ratio


class Stream:
    """The exported step as it is served: its graphs around a pool on the CPU."""

    def __init__(self, network: PoolNetwork) -> None:
        """Raises Refused where onnxruntime does not run the graphs."""
        self.pool = Pool(network.layout, SLOTS + RESERVED)
        self.spec = network.layout.spec
        try:
            self.kernel = Kernel(network, self.pool, "cpu", threads=1)
        except (InvalidModel, GraphRefused) as error:
            raise Refused(f"the exported step does not run: {error}") from error

    def initial(self, count: int) -> dict[str, Array]:
        """The states [count, *shape] of new sessions."""
        return dict(self.pool.read(np.full(count, INITIAL)))

    def run(self, case: Golden, cuts: Sequence[int]) -> dict[str, Array]:
        """Results [N, T, *shape] of the case, cut in time at `cuts` (0 first, T last).

        Raises Refused where onnxruntime fails.
        """
        return self.answers(case, cuts)[0]

    def answers(
        self, case: Golden, cuts: Sequence[int]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """The results as of run(), and the states [N, *shape] after each row's length."""
        x = RowFormat(self.spec.inputs).pack(case.inputs).swapaxes(0, 1)
        count = len(case.lengths)
        slots = self.pool.take(2 * count)
        read = np.full(count, INITIAL)
        try:
            if case.initial is not None:
                read = slots[count:]
                self.pool.write(read, case.initial)
            y, ends = run_cut(self.kernel, x, case.lengths, slots, read, cuts)
            states = dict(self.pool.read(ends))
        except KernelError as error:
            zeros = (
                " (rows of zeros stand for those that a window lacks)" if self.spec.waits else ""
            )
            raise Refused(
                f"the exported step fails on a batch of {count}{zeros}: {one_line(error)}"
            ) from error
        finally:
            self.pool.give(slots)
        return self.kernel.results.split(y.swapaxes(0, 1)), states


def prove(
    stream: Stream,
    cases: Mapping[str, Golden],
    more: Mapping[str, Golden],
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """The parity report. `cases` also test a server that loads the model; `more` do not.

    Raises Mismatch where an output is too far from the reference, and Refused where onnxruntime
    fails or mixes rows.
    """
    report: dict[str, float] = {}
    onnx_error = 0.0
    every = {**cases, **more}
    for name, case in every.items():
        steps = int(case.lengths.max())
        ways = {
            "in single steps": range(steps + 1),
            "in chunks": random_chunks(steps),
            "in a ragged batch": pieces(stream.spec, steps, len(case.lengths)),
        }
        for way, cuts in ways.items():
            progress(f"parity: {name}, {way}")
            outputs, states = stream.answers(case, cuts)
            ratio, error = _judge(name, way, outputs, case)
            ratio = max(ratio, _judge_states(name, way, states, case))
            report[f"{name} {way}"] = ratio
            onnx_error = max(onnx_error, error)
    progress("parity: a large batch")
    whole = {name: case for name, case in every.items() if not case.last_only}
    report["large batch"] = _large_batch(stream, whole)
    progress("parity: batches and chunks")
    try:
        check_kernel(stream.kernel, stream.pool, cases)
    except SelfTestFailed as error:
        raise Refused(f"the exported step fails the server's self-test: {error}") from error
    return {
        "rows": int(sum(case.lengths.sum() for case in every.values())),
        "seed": SEED,
        "torch_error": max(case.torch_error for case in every.values()),
        "onnx_error": onnx_error,
        "excess": report,
        "is_exact": stream.kernel.difference == 0,
        "difference": stream.kernel.difference,
    }


def _judge_states(name: str, way: str, states: Mapping[str, Array], case: Golden) -> float:
    """The largest error of a state that the case has, in units of the allowed one. Raises
    Mismatch."""
    worst = 0.0
    for state, expected in case.finals.items():
        for row, length in enumerate(map(int, case.lengths)):
            ratio = excess(states[state][row], expected[row], case.torch_error)
            if not ratio <= 1:
                raise Mismatch(name, way, state, length - 1, ratio, "state")
            worst = max(worst, ratio)
    return worst


def _large_batch(stream: Stream, cases: Mapping[str, Golden]) -> float:
    """Runs the first time steps of the cases in one batch of BATCH rows, each row several times,
    and of fewer where each row is a window.

    Returns the largest error in units of the allowed one. Raises Mismatch.
    """
    window = stream.spec.window
    steps = 1 if window else BATCH_STEPS
    rows_max = min(BATCH, max(len(cases), CELLS_MAX // window)) if window else BATCH
    count = rows_max // len(cases)
    parts = []
    for case in cases.values():
        rows = np.resize(np.arange(len(case.lengths)), count)
        inputs, outputs = (
            {name: padded(each[rows, :steps], steps) for name, each in group.items()}
            for group in (case.inputs, case.outputs)
        )
        lengths = np.minimum(case.lengths[rows], steps)
        starts = case.initial or stream.initial(len(case.lengths))
        initial = {name: each[rows] for name, each in starts.items()}
        parts.append(Golden(inputs, lengths, initial, outputs, {}, case.torch_error))
    inputs = {n: np.concatenate([each.inputs[n] for each in parts]) for n in parts[0].inputs}
    initial = {n: np.concatenate([e.initial[n] for e in parts if e.initial]) for n in initial}
    lengths = np.concatenate([each.lengths for each in parts])
    found = stream.run(Golden(inputs, lengths, initial, {}, {}, 0.0), [0, int(lengths.max())])
    worst = 0.0
    for number, (name, part) in enumerate(zip(cases, parts, strict=True)):
        some = slice(number * count, (number + 1) * count)
        outputs = {output: each[some] for output, each in found.items()}
        worst = max(worst, _judge(name, f"in a batch of {len(lengths)}", outputs, part)[0])
    return worst


def _judge(name: str, way: str, outputs: Mapping[str, Array], case: Golden) -> tuple[float, float]:
    """The largest error in units of the allowed one, and as it is. Raises Mismatch."""
    worst = largest = 0.0
    for output, expected in case.outputs.items():
        lasts = np.unique(case.lengths - 1)
        for step in map(int, lasts) if case.last_only else range(int(lasts.max()) + 1):
            rows = np.flatnonzero(
                case.lengths == step + 1 if case.last_only else case.lengths > step
            )
            actual = outputs[output][rows, step]
            wanted = expected[rows] if case.last_only else expected[rows, step]
            ratio = excess(actual, wanted, case.torch_error)
            if not ratio <= 1:
                raise Mismatch(name, way, output, step, ratio)
            worst = max(worst, ratio)
            largest = max(largest, float(np.abs(actual - wanted).max(initial=0)))
    return worst, largest
