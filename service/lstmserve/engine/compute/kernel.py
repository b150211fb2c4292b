"""Runs one batch in one onnxruntime call: gather slots, network, scatter to slots.

Kernel runs the pool's graphs, whose states stay on the device. SequenceKernel runs one whole
sequence at a time, for models without a pool. Neither knows sessions, steps or what a state means,
and each is used by one thread at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Input, Output
from lstmserve.engine.compute.device import Device, open_session
from lstmserve.engine.compute.pool import Pool, Slots, States
from lstmserve.graph import InvalidRows, PoolNetwork, SequenceNetwork
from lstmserve.graph.forms import NEXT_SLOTS
from lstmserve.rows import FLOATS, INTS, RowFormat
from lstmserve.runtime import ort

BINDINGS_MAX = 1024  # shapes that stay bound, some KB each

Buffers = dict[str, npt.NDArray[Any]]


class KernelError(RuntimeError):
    """onnxruntime failed on a batch. What was read is as before, what was written is unknown."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Estimates a run of T time steps of B rows: run_ns + T * (step_ns + B * row_ns).

    A time step reads the weights, however few rows it has: for a large model that is most of it.
    """

    run_ns: int = 0
    step_ns: int = 0
    row_ns: int = 0

    def of(self, length: int, size: int) -> int:
        """Estimated nanoseconds for T = `length` and B = `size`."""
        return self.run_ns + length * (self.step_ns + size * self.row_ns)

    @classmethod
    def measured(cls, alone_ns: int, wide_ns: int, long_ns: int, count: int) -> Cost:
        """Fits three measured runs: T = B = 1, B = `count`, and T = `count`."""
        row_ns = max(1, (wide_ns - alone_ns) // (count - 1))
        step_ns = max(0, (long_ns - alone_ns) // (count - 1) - row_ns)
        return cls(max(0, alone_ns - step_ns - row_ns), step_ns, row_ns)


class ShapeBinding:
    """One shape's inputs and y on the host, bound once: views of buffers that all shapes share.

    The caller fills x [T, B, ...], lengths [B], read and write [B] before a run, and reads y [T, B,
    ...] after it, before the next run of any shape. Where x or y have both floats and integers they
    are None: the two parts are.
    """

    def __init__(
        self, session: ort.InferenceSession, pool: Pool, shape: tuple[int, int], buffers: Buffers
    ) -> None:
        layout = pool.layout
        inputs, outputs = layout.arguments(*shape), layout.results(*shape)
        arrays = {n: _view(buffers[n], axes) for n, (_, axes) in (inputs | outputs).items()}

        def part(name: str) -> npt.NDArray[Any] | None:
            return arrays[name].reshape(*shape, -1) if name else None

        self.floats, self.ints = part(layout.float_input), part(layout.int_input)
        self.x = _one_of(self.floats, self.ints)
        self.y_floats, self.y_ints = part(layout.float_output), part(layout.int_output)
        self.y = _one_of(self.y_floats, self.y_ints)
        self.lengths = arrays.get("lengths")
        self.read, self.write = arrays["read"].reshape(-1), arrays["write"].reshape(-1)
        self.session = session
        self.io = session.io_binding()
        values = {n: ort.OrtValue.ortvalue_from_numpy(each) for n, each in arrays.items()}
        for name in outputs:
            self.io.bind_ortvalue_output(name, values.pop(name))
        self._values = values
        for name, tensor in pool.tensors.items():
            # One OrtValue on both sides makes the update in place (docs/ARCHITECTURE.md).
            self.io.bind_ortvalue_input(name, tensor)
            self.io.bind_ortvalue_output(name + NEXT_SLOTS, tensor)
        self.bind_inputs()

    def bind_inputs(self) -> None:
        """Binds the host's arrays; a device gets its copy of their content now."""
        for name, value in self._values.items():
            self.io.bind_ortvalue_input(name, value)

    def fill(self, x: Input) -> None:
        """Takes x [T, B, ...] with both floats and integers."""
        self.floats[:], self.ints[:] = x[FLOATS], x[INTS]  # type: ignore[index]  # it has both


def _one_of(
    floats: npt.NDArray[Any] | None, ints: npt.NDArray[Any] | None
) -> npt.NDArray[Any] | None:
    """The one that is there; None for both."""
    return floats if ints is None else None if floats is not None else ints


class Kernel:
    """The graphs of one model around its pool.

    Inputs are bound once per shape (T, B): binding them for every run takes three times as long as
    the run of a small model. The buffers behind them grow to the largest shape seen. `results` is
    the format of y.
    """

    def __init__(self, network: PoolNetwork, pool: Pool, device: Device, threads: int) -> None:
        self._pool = pool
        self.results = RowFormat(network.layout.spec.results)
        self.cost = Cost()  # the self-test measures it
        # By how much a row's results depend on its batch and its chunk: the self-test measures it.
        self.difference = math.inf
        self.is_host = device == "cpu"
        self._chunk = open_session(network.build_chunk(), device, threads)
        step = network.build_step()
        self._step = self._chunk if step is None else open_session(step, device, threads)
        self._bindings: dict[tuple[int, int], ShapeBinding] = {}
        self._buffers: Buffers = {}
        self._last: ShapeBinding | None = None

    def run(
        self, x: Input, lengths: npt.NDArray[np.integer[Any]], read: Slots, write: Slots
    ) -> Output:
        """x [T, B, ...] in the format of the inputs, lengths [B] in [1, T], slots [B] each ->
        y [T, B, ...] in the format of the results.

        `write` has no slot twice and none that is in `read`. y past a row's length means nothing.
        Raises KernelError.
        """
        length_max, size = x.shape[:2]
        # B = 0 aborts the process inside onnxruntime; a length of 0 wipes an LSTM's state.
        assert size >= 1
        if not self.is_host:
            self._check_slots(read, write)
        bound = self._last = self._bindings.get((length_max, size)) or self._bind(length_max, size)
        if bound.x is not None:
            bound.x[:] = x
        else:
            bound.fill(x)
        if bound.lengths is not None:
            bound.lengths[:] = lengths
        bound.read[:] = read
        bound.write[:] = write
        if not self.is_host:
            bound.bind_inputs()
        try:
            bound.session.run_with_iobinding(bound.io)
        except Exception as error:
            raise KernelError(str(error).partition("\n")[0]) from error
        y = bound.y
        return self.results.join(bound.y_floats, bound.y_ints) if y is None else y.copy()

    def _bind(self, length: int, size: int) -> ShapeBinding:
        if len(self._bindings) >= BINDINGS_MAX:
            del self._bindings[next(iter(self._bindings))]  # the oldest
        layout = self._pool.layout
        wanted = layout.arguments(length, size) | layout.results(length, size)
        for name, (dtype, shape) in wanted.items():
            count = math.prod(shape)
            if name not in self._buffers or self._buffers[name].size < count:
                self._buffers[name] = np.zeros(2 * count, dtype)
                self._bindings.clear()  # they would keep the old buffers alive
        session = self._step if length == 1 else self._chunk
        bound = ShapeBinding(session, self._pool, (length, size), self._buffers)
        self._bindings[length, size] = bound
        return bound

    def _check_slots(self, read: Slots, write: Slots) -> None:
        """A device clamps a bad index to another session's slot; the CPU refuses it.

        Read as unsigned numbers, negative indices are too large as well.
        """
        assert read.view(np.uint64).max() < self._pool.slots
        assert write.view(np.uint64).max() < self._pool.slots
        assert write.all(), "the slot of the initial state is never written"

    def pool_pointers(self) -> list[int]:
        """Addresses of the pool's tensors as the last run left them, for the self-test."""
        assert self._last is not None
        outputs = self._last.io.get_outputs()  # in the order they were bound
        return [value.data_ptr() for value in outputs[-len(self._pool.tensors) :]]


def _view(buffer: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return buffer[: math.prod(shape)].reshape(shape)


class SequenceKernel:
    """The graph of a model without a pool: whole sequences, one in a run."""

    def __init__(self, network: SequenceNetwork, device: Device, threads: int) -> None:
        self.layout = network.layout
        self._session = open_session(network.build(), device, threads)
        self._names = [each.name for each in self._session.get_outputs()]

    def run(self, x: Input, states: States) -> tuple[Output, States]:
        """x [T, ...] of one sequence and the states [1, *shape] before it, by name -> y [R, ...],
        R <= T, and the states after it. Raises KernelError."""
        assert len(x) >= 1
        feed = self.layout.arguments(x, states)
        try:
            found = self._session.run(self._names, feed)
        except Exception as error:
            raise KernelError(str(error).partition("\n")[0]) from error
        try:
            return self.layout.results(dict(zip(self._names, found, strict=True)), len(x))
        except InvalidRows as error:
            raise KernelError(str(error)) from error
