"""Proves a loaded model on this machine and device before it serves a request.

It replays the golden vectors, checks that the pool is updated in place and that every row of a
batch equals the same row alone and step by step, and measures what runs cost. Afterwards the pool
is as it was, apart from the content of free slots. It must not know what a state means.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Input, Output
from lstmserve.engine.compute.kernel import Cost, Kernel, SequenceKernel
from lstmserve.engine.compute.pool import INITIAL, Pool, Slots, States
from lstmserve.golden import Array, Golden, excess
from lstmserve.rows import RowFormat
from lstmserve.spec import KNOWN, WINDOW, ModelSpec

BATCH = 16
LENGTH_MAX = 5
BATCH_MIN = 3
CELLS_MAX = 1 << 15  # rows of all windows of a run, unless BATCH_MIN sessions have more
SEED = 20_260_101
Lengths = npt.NDArray[np.int32]
REPEATS = 5


class SelfTestFailed(RuntimeError):
    """The model does not compute here what it must; the message says what differs."""


def check_kernel(kernel: Kernel, pool: Pool, golden: Mapping[str, Golden]) -> None:
    """Golden vectors through the pool graph, then the pool's promises. Raises SelfTestFailed.

    It sets `kernel.difference`: the most that a row's results depend on its batch and its chunk.
    An nn.LSTM on the CPU promises 0; any other model may differ by rounding.
    """
    spec = pool.layout.spec
    for name, case in golden.items():
        for start in range(0, len(case.lengths), BATCH):
            _replay(kernel, pool, name, case.part(slice(start, start + BATCH)))
    draw = Draw(spec, golden)
    kernel.difference = BatchCheck(kernel, pool, draw).check()
    if spec.kind == "lstm" and kernel.is_host and kernel.difference:
        raise SelfTestFailed("a row in a batch differs from the same row alone")
    kernel.cost = _measure(kernel, pool, draw)


def check_sequences(kernel: SequenceKernel, golden: Mapping[str, Golden]) -> None:
    """Golden vectors through the graph of one sequence. Raises SelfTestFailed."""
    spec = kernel.layout.spec
    for name, case in golden.items():
        rows = RowFormat(spec.inputs).pack(case.inputs)
        for i, length in enumerate(case.lengths.tolist()):
            one = case.part(slice(i, i + 1))
            states = kernel.layout.initial if one.initial is None else _float32(one.initial)
            y, ends = kernel.run(rows[i, :length], states)
            if len(y) != one.rows[0]:
                raise SelfTestFailed(
                    f"golden vectors {name!r}: a sequence gives {len(y)} rows of outputs, the "
                    f"exported ones have {one.rows[0]}: export or import the model again"
                )
            _compare(name, one, RowFormat(spec.outputs).split(y[np.newaxis]), ends)


def _float32(states: Mapping[str, Array]) -> States:
    """Golden states as a run takes them: nn.LSTM's are floats."""
    return {name: np.asarray(each, np.float32) for name, each in states.items()}


def batch_size(spec: ModelSpec, length: int) -> int:
    """How many sessions run `length` time steps at once: fewer where windows are long, since the
    network reads them all at once, and a server needs no memory for that later."""
    if not spec.window:
        return BATCH
    return max(BATCH_MIN, min(BATCH, CELLS_MAX // (spec.window * length)))


def pieces(spec: ModelSpec, steps: int, size: int) -> list[int]:
    """The cuts of run_cut() for `size` sessions: none, but where windows are long."""
    piece = max(1, CELLS_MAX // (size * spec.window)) if spec.window else steps
    return [*range(0, steps, piece), steps]


def run_cut(
    kernel: Kernel, x: Input, lengths: Lengths, slots: Slots, read: Slots, cuts: Sequence[int]
) -> tuple[Output, Slots]:
    """y [T, B, ...] of x [T, B, ...], which runs in pieces between `cuts` (0 first, T last), and
    the slots [B] that have the states after each row's length.

    The first piece reads the slots `read` [B]. Pieces write the two halves of `slots` [2 * B] in
    turn, so `read` may be the second half, or have none of both. Raises KernelError.
    """
    size = lengths.size
    one, other, now = slots[:size], slots[size:], read.copy()
    y = kernel.results.unknown(len(x), size)
    for start, stop in pairwise(cuts):
        rows = np.flatnonzero(lengths > start)
        ends = np.minimum(lengths[rows] - start, stop - start).astype(np.int32)
        part = np.ascontiguousarray(x[start : start + int(ends.max()), rows])
        write = np.where(now == one, other, one)[rows]
        y[start : start + len(part), rows] = kernel.run(part, ends, now[rows], write)
        now[rows] = write
    return y, now


def _replay(kernel: Kernel, pool: Pool, name: str, case: Golden) -> None:
    count, spec = len(case.lengths), pool.layout.spec
    slots = pool.take(2 * count)
    read = np.full(count, INITIAL)
    try:
        if case.initial is not None:
            read = slots[count:]
            pool.write(read, case.initial)
        x = RowFormat(spec.inputs).pack(case.inputs).swapaxes(0, 1)
        cuts = pieces(spec, int(case.lengths.max()), count)
        y, ends = run_cut(kernel, x, case.lengths, slots, read, cuts)
        _compare(name, case, RowFormat(spec.results).split(y.swapaxes(0, 1)), pool.read(ends))
    finally:
        pool.give(slots)


def _compare(name: str, case: Golden, outputs: Mapping[str, Array], ends: States) -> None:
    """Compares outputs [N, T, *shape] and states with the exported ones, up to each length."""
    worst, error = 0.0, case.torch_error
    for key, expected in case.outputs.items():
        for i, count in enumerate(case.rows):
            rows = slice(count - 1, count) if case.last_only else slice(count)
            wanted = expected[i : i + 1] if case.last_only else expected[i, :count]
            worst = max(worst, excess(outputs[key][i, rows], wanted, error))
    for key, expected in case.finals.items():
        worst = max(worst, excess(ends[key], expected, error))
    if not worst <= 1:
        raise SelfTestFailed(
            f"golden vectors {name!r}: the outputs are {worst:.3g} times as far from the exported "
            "ones as allowed; export or import the model again, and on this machine if that "
            "persists"
        )


class Draw:
    """Random inputs and states like those of the golden vectors, which the network surely takes."""

    def __init__(self, spec: ModelSpec, golden: Mapping[str, Golden]) -> None:
        self.rng = np.random.default_rng(SEED)
        self.torch_error = max(case.torch_error for case in golden.values())
        self.spec = spec
        self._inputs = {
            each.name: np.concatenate(
                [row[:n] for case in golden.values() for row, n in _rows(case, each.name)]
            )
            for each in spec.inputs
        }
        starts = [case.initial for case in golden.values() if case.initial is not None]
        self._starts = {
            each.name: np.concatenate([start[each.name] for start in starts])
            for each in spec.states
            if starts
        }

    def x(self, length: int, size: int) -> Input:
        """x [T, B, ...]: floats between two rows of the golden vectors, integers of one."""
        rng, found = self.rng, {}
        count = len(next(iter(self._inputs.values())))
        one, other = rng.integers(count, size=(2, length, size))
        for name, rows in self._inputs.items():
            found[name] = rows[one]
            if rows.dtype == np.float32:
                share = rng.random((length, size, *[1] * (rows.ndim - 1)), np.float32)
                found[name] = share * rows[one] + (1 - share) * rows[other]
        return RowFormat(self.spec.inputs).pack(found)

    def lengths(self, size: int) -> Lengths:
        """[B], one of them LENGTH_MAX."""
        lengths = self.rng.integers(1, LENGTH_MAX + 1, size).astype(np.int32)
        lengths[0] = LENGTH_MAX
        return lengths

    def starts(self, size: int) -> States | None:
        """States [N, *shape] of the golden vectors, if they have any; whole windows of rows."""
        if self.spec.window:
            rows = RowFormat(self.spec.inputs).split(self.x(self.spec.window - 1, size))
            known = {KNOWN: np.full(size, self.spec.window - 1)}
            windows = {name + WINDOW: each.swapaxes(0, 1) for name, each in rows.items()}
            return {each.name: (windows | known)[each.name] for each in self.spec.states}
        if not self._starts:
            return None
        chosen = self.rng.integers(len(next(iter(self._starts.values()))), size=size)
        return {name: each[chosen] for name, each in self._starts.items()}

    def garbage(self, size: int) -> States:
        """States [N, *shape] that no network made."""
        return {
            each.name: self.rng.integers(0, 1 << 20, (size, *each.shape)).astype(each.dtype)
            for each in self.spec.states
        }


def _rows(case: Golden, name: str) -> zip[tuple[Array, int]]:
    return zip(case.inputs[name], case.lengths.tolist(), strict=True)


class BatchCheck:
    """The same random rows in a batch, alone, and time step by time step.

    `read`, `write` and `other` are slots [B] in no order; row 1 begins from the initial state.
    """

    def __init__(self, kernel: Kernel, pool: Pool, draw: Draw) -> None:
        self._kernel = kernel
        self._pool = pool
        self._draw = draw
        self._size = batch_size(draw.spec, LENGTH_MAX)
        self._difference = 0.0

    def check(self) -> float:
        """The largest |a - b| of outputs and states, 0 if all are equal.

        Raises SelfTestFailed if more than rounding differs; any other integer or bool is more.
        """
        slots = self._draw.rng.permutation(self._pool.take(3 * self._size))
        try:
            self._check(*(slots[i * self._size : (i + 1) * self._size].copy() for i in range(3)))
        finally:
            self._pool.give(slots)
        return self._difference

    def _check(self, read: Slots, write: Slots, other: Slots) -> None:
        draw, pool = self._draw, self._pool
        self._scatter_states(read, write)
        own, lengths, x = read.copy(), draw.lengths(self._size), draw.x(LENGTH_MAX, self._size)
        read[1] = INITIAL
        y = self._run_in_place(x, lengths, read, write, other)
        ends = pool.read(write)
        for i in range(self._size):
            one, n = slice(i, i + 1), int(lengths[i])
            x_alone = np.ascontiguousarray(x[:n, one])
            y_alone = self._kernel.run(x_alone, lengths[one], read[one], other[one])
            self._hold(y_alone[:, 0], y[:n, i])
        self._hold_states(pool.read(other), ends)
        self._step_by_step(x, lengths, read, (other, own), y)
        self._hold_states(pool.read(np.where(lengths % 2, other, own)), ends)

    def _scatter_states(self, read: Slots, write: Slots) -> None:
        """Puts states that the network itself made into `read`."""
        draw, pool = self._draw, self._pool
        starts, begin = draw.starts(self._size), np.full(self._size, INITIAL)
        if starts is not None:
            pool.write(read, starts)
            begin[::2] = read[::2]
        self._kernel.run(draw.x(LENGTH_MAX, self._size), draw.lengths(self._size), begin, write)
        pool.write(read, pool.read(write))

    def _run_in_place(
        self, x: Input, lengths: Lengths, read: Slots, write: Slots, other: Slots
    ) -> Output:
        """y of the batch; checks that the run changes the slots that it writes and no others."""
        pool = self._pool
        pool.write(write, self._draw.garbage(self._size))
        pool.write(other, self._draw.garbage(self._size))
        untouched = np.concatenate([read, other, [INITIAL]])
        before = pool.read(untouched)
        pointers = [tensor.data_ptr() for tensor in pool.tensors.values()]
        y = self._kernel.run(x, lengths, read, write)
        if self._kernel.pool_pointers() != pointers:
            raise SelfTestFailed("this onnxruntime does not update the pool in place")
        if not _equal(pool.read(untouched), before):
            raise SelfTestFailed("a run changed slots that it was not asked to write")
        return y

    def _step_by_step(
        self, x: Input, lengths: Lengths, read: Slots, turns: tuple[Slots, Slots], y: Output
    ) -> None:
        """Runs of one time step each; the slots of the two turns are written alternately."""
        for t in range(LENGTH_MAX):
            rows = np.flatnonzero(lengths > t)
            source = turns[(t + 1) % 2] if t else read
            x_now, ones = np.ascontiguousarray(x[t : t + 1, rows]), np.ones(rows.size, np.int32)
            y_now = self._kernel.run(x_now, ones, source[rows], turns[t % 2][rows])
            self._hold(y_now[0], y[t, rows])

    def _hold(self, actual: Output, expected: Output) -> None:
        """Holds rows of y [N, ...] to others."""
        form = RowFormat(self._draw.spec.results)
        self._hold_states(form.split(actual), form.split(expected))

    def _hold_states(self, actual: States, expected: States) -> None:
        if _equal(actual, expected):
            return
        for name in actual:
            a, b = _unequal(actual[name], expected[name])
            if not excess(a, b, self._draw.torch_error) <= 1:
                raise SelfTestFailed(
                    "a row in a batch differs from the same row alone by more than rounding: "
                    "the network, or this onnxruntime, mixes rows"
                )
            self._difference = max(self._difference, _distance(a, b))


def _unequal(actual: Array, expected: Array) -> tuple[Array, Array]:
    """Their values where they differ; two NaNs do not."""
    is_same = actual == expected
    if actual.dtype == np.float32:
        is_same |= np.isnan(actual) & np.isnan(expected)
    return actual[~is_same], expected[~is_same]


def _distance(a: Array, b: Array) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max(initial=0))


def _equal(a: States, b: States) -> bool:
    return all(
        np.array_equal(a[name], b[name], equal_nan=a[name].dtype == np.float32) for name in a
    )


def _measure(kernel: Kernel, pool: Pool, draw: Draw) -> Cost:
    """Measures what runs cost. It is also the warm-up."""
    count = batch_size(draw.spec, 1)
    write = pool.take(count)
    fastest = []
    for length, size in ((1, 1), (1, count), (count, 1)):
        x, lengths = draw.x(length, size), np.full(size, length, np.int32)
        read = np.full(size, INITIAL)
        times = []
        for _ in range(REPEATS):
            start_ns = time.perf_counter_ns()
            kernel.run(x, lengths, read, write[:size])
            times.append(time.perf_counter_ns() - start_ns)
        fastest.append(min(times))
    pool.give(write)
    alone, wide, long = fastest
    return Cost.measured(alone, wide, long, count)
