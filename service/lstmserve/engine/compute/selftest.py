"""Proves a loaded model on this machine and device before it serves a request.

It replays the golden vectors, checks that the pool is updated in place and that every row of a
batch equals the same row alone, and measures what runs cost. Afterwards the pool is as it was,
apart from the content of free slots.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from lstmserve.engine.compute.kernel import Cost, Kernel, PortableKernel
from lstmserve.engine.compute.pool import ZERO, Pool, States
from lstmserve.golden import Golden, excess
from lstmserve.spec import LstmSpec

BATCH = 16
LENGTH_MAX = 5
SEED = 20_260_101
REPEATS = 5


class SelfTestFailed(RuntimeError):
    """The model does not compute here what it must; the message says what differs."""


def check_kernel(kernel: Kernel, pool: Pool, spec: LstmSpec, golden: Mapping[str, Golden]) -> None:
    """Golden vectors through the pool graph, then the pool's promises. Raises SelfTestFailed."""
    for name, case in golden.items():
        for start in range(0, len(case.lengths), BATCH):
            _replay(kernel, pool, spec, name, case.part(slice(start, start + BATCH)))
    _check_pool(kernel, pool, spec)
    kernel.cost = _measure(kernel, pool, spec)


def check_portable(kernel: PortableKernel, spec: LstmSpec, golden: Mapping[str, Golden]) -> None:
    """Golden vectors through the portable graph. Raises SelfTestFailed."""
    for name, case in golden.items():
        y, hn, cn = kernel.run(case.x, case.lengths, case.h0, case.c0)
        _compare(name, case, y, hn, cn)


def _replay(kernel: Kernel, pool: Pool, spec: LstmSpec, name: str, case: Golden) -> None:
    count = len(case.lengths)
    slots = pool.take(2 * count)
    read, write = slots[:count].copy(), slots[count:].copy()
    try:
        pool.write(read, {"h": np.swapaxes(case.h0, 0, 1), "c": np.swapaxes(case.c0, 0, 1)})
        x = np.swapaxes(case.x, 0, 1).reshape(case.x.shape[1], count, -1)
        y = np.swapaxes(kernel.run(x, case.lengths, read, write), 0, 1)
        end = pool.read(write)
        _compare(name, case, y, np.swapaxes(end["h"], 0, 1), np.swapaxes(end["c"], 0, 1))
    finally:
        pool.give(slots)


def _compare(
    name: str,
    case: Golden,
    y: npt.NDArray[np.float32],
    hn: npt.NDArray[np.float32],
    cn: npt.NDArray[np.float32],
) -> None:
    """Compares y [N, T, O], hn and cn with the exported ones, up to each row's length."""
    is_last = case.y.ndim == 2
    worst = 0.0
    for i, length in enumerate(case.lengths):
        actual = y[i, length - 1] if is_last else y[i, :length]
        expected = case.y[i] if is_last else case.y[i, :length]
        worst = max(worst, excess(actual, expected, case.torch_error))
    for state, wanted in ((hn, case.hn), (cn, case.cn)):
        if wanted is not None:
            worst = max(worst, excess(state, wanted, case.torch_error))
    if not worst <= 1:
        raise SelfTestFailed(
            f"golden vectors {name!r}: the outputs are {worst:.3g} times as far from the exported "
            "ones as allowed; export the model again, and on this machine if that persists"
        )


def _check_pool(kernel: Kernel, pool: Pool, spec: LstmSpec) -> None:
    """A run writes in place, leaves other slots alone, and computes each row as it would alone."""
    rng = np.random.default_rng(SEED)
    slots = pool.take(3 * BATCH)
    read, write, alone = (slots[i * BATCH : (i + 1) * BATCH].copy() for i in range(3))
    try:
        lengths = rng.integers(1, LENGTH_MAX + 1, BATCH).astype(np.int32)
        lengths[0] = LENGTH_MAX
        x = _random_x(rng, spec, LENGTH_MAX, BATCH)
        before = {s.name: rng.uniform(-1, 1, (BATCH, *s.shape)) for s in spec.states}
        pool.write(read, {n: v.astype(np.float32) for n, v in before.items()})
        read[1] = ZERO  # a new session
        untouched = pool.read(slots[:BATCH])
        pointers = [tensor.data_ptr() for tensor in pool.tensors.values()]
        y = kernel.run(x, lengths, read, write)
        if kernel.pool_pointers() != pointers:
            raise SelfTestFailed("this onnxruntime does not update the pool in place")
        if not _equal(pool.read(slots[:BATCH]), untouched):
            raise SelfTestFailed("a run changed slots that it was not asked to write")
        for i in range(BATCH):
            one, n = slice(i, i + 1), int(lengths[i])
            y_alone = kernel.run(
                np.ascontiguousarray(x[:n, one]), lengths[one], read[one], alone[one]
            )
            if kernel.is_exact and not np.array_equal(y_alone[:, 0], y[:n, i]):
                raise SelfTestFailed("a row in a batch differs from the same row alone")
        if kernel.is_exact and not _equal(pool.read(write), pool.read(alone)):
            raise SelfTestFailed("a state from a batch differs from the same row's alone")
    finally:
        pool.give(slots)


def _equal(a: States, b: States) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)


def _random_x(
    rng: np.random.Generator, spec: LstmSpec, length: int, size: int
) -> npt.NDArray[np.float32] | npt.NDArray[np.int64]:
    if spec.num_embeddings:
        return rng.integers(0, spec.num_embeddings, (length, size, 1))
    return rng.standard_normal((length, size, spec.input_size)).astype(np.float32)


def _measure(kernel: Kernel, pool: Pool, spec: LstmSpec) -> Cost:
    """Measures what runs cost. It is also the warm-up."""
    rng = np.random.default_rng(SEED)
    write = pool.take(BATCH)
    fastest = []
    for length, size in ((1, 1), (1, BATCH), (BATCH, 1)):
        x, lengths = _random_x(rng, spec, length, size), np.full(size, length, np.int32)
        read = np.zeros(size, np.int64)
        times = []
        for _ in range(REPEATS):
            start_ns = time.perf_counter_ns()
            kernel.run(x, lengths, read, write[:size])
            times.append(time.perf_counter_ns() - start_ns)
        fastest.append(min(times))
    pool.give(write)
    alone, wide, long = fastest
    return Cost.measured(alone, wide, long, BATCH)
