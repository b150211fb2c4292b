"""Runs one batch in one onnxruntime call: gather slots, LSTM, head, scatter to slots.

Kernel runs the pool graph, whose states stay on the device. PortableKernel runs the exported graph
on whole sequences, for bidirectional models. Neither knows sessions or steps, and each is used by
one thread at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Floats
from lstmserve.engine.compute.device import Device, open_session
from lstmserve.engine.compute.pool import Pool, Slots
from lstmserve.graph import Weights, build_pool, build_portable
from lstmserve.runtime import ort
from lstmserve.spec import LstmSpec

BINDINGS_MAX = 1024  # shapes that stay bound, some KB each

Shapes = dict[str, tuple[int, ...]]
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

    The caller fills x [T, B, I] or tokens [T, B, 1], lengths [B], read and write [B] before a run,
    and reads y [T, B, O] after it, before the next run of any shape.
    """

    def __init__(
        self, session: ort.InferenceSession, pool: Pool, buffers: Buffers, shapes: Shapes
    ) -> None:
        arrays = {name: _view(buffers[name], shape) for name, shape in shapes.items()}
        self.x = arrays["x_time_major"].reshape(*arrays["x_time_major"].shape[:2], -1)
        self.lengths = arrays["lengths"]
        self.read = arrays["read"].reshape(-1)
        self.write = arrays["write"].reshape(-1)
        self.y = arrays["y"]
        self.io = session.io_binding()
        self._values = {n: ort.OrtValue.ortvalue_from_numpy(each) for n, each in arrays.items()}
        self.io.bind_ortvalue_output("y", self._values.pop("y"))
        for name, tensor in pool.tensors.items():
            # One OrtValue on both sides makes the update in place (docs/ARCHITECTURE.md).
            self.io.bind_ortvalue_input(name, tensor)
            self.io.bind_ortvalue_output(f"{name}.next", tensor)
        self.bind_inputs()

    def bind_inputs(self) -> None:
        """Binds the host's arrays; a device gets its copy of their content now."""
        for name, value in self._values.items():
            self.io.bind_ortvalue_input(name, value)


class Kernel:
    """The pool graph of one model, bound to its pool.

    Inputs are bound once per shape (T, B): binding them for every run takes three times as long as
    the run of a small model. The buffers behind them grow to the largest shape seen.
    """

    def __init__(
        self, spec: LstmSpec, weights: Weights, pool: Pool, device: Device, threads: int
    ) -> None:
        self._spec = spec
        self._pool = pool
        self.cost = Cost()  # the self-test measures it
        # Bits that do not depend on the batch are promised for the CPU only.
        self.is_exact = device == "cpu"
        self._session = open_session(build_pool(spec, weights), device, threads)
        self._bindings: dict[tuple[int, int], ShapeBinding] = {}
        self._buffers: Buffers = {}
        self._last: ShapeBinding | None = None

    def run(
        self,
        x: npt.NDArray[Any],
        lengths: npt.NDArray[np.integer[Any]],
        read: Slots,
        write: Slots,
    ) -> Floats:
        """x [T, B, I] or tokens [T, B, 1], lengths [B] in [1, T], slots [B] each -> y [T, B, O].

        `write` has no slot twice and none that is in `read`. y past a row's length means nothing.
        Raises KernelError.
        """
        length_max, size = x.shape[:2]
        # B = 0 aborts the process inside onnxruntime; a length of 0 wipes the row's state.
        assert size >= 1
        if not self.is_exact:
            self._check_slots(read, write)
        bound = self._last = self._bindings.get((length_max, size)) or self._bind(length_max, size)
        bound.x[:] = x
        bound.lengths[:] = lengths
        bound.read[:] = read
        bound.write[:] = write
        if not self.is_exact:
            bound.bind_inputs()
        try:
            self._session.run_with_iobinding(bound.io)
        except Exception as error:
            raise KernelError(str(error).partition("\n")[0]) from error
        y: Floats = bound.y.copy()
        return y

    def _bind(self, length: int, size: int) -> ShapeBinding:
        if len(self._bindings) >= BINDINGS_MAX:
            del self._bindings[next(iter(self._bindings))]  # the oldest
        spec = self._spec
        x = (np.int64, ()) if spec.num_embeddings else (np.float32, (spec.input_size,))
        wanted: dict[str, tuple[Any, tuple[int, ...]]] = {
            "x_time_major": (x[0], (length, size, *x[1])),
            "lengths": (np.int32, (size,)),
            "read": (np.int64, (1, size)),
            "write": (np.int64, (1, size, 1)),
            "y": (np.float32, (length, size, spec.output_size)),
        }
        for name, (dtype, shape) in wanted.items():
            count = math.prod(shape)
            if name not in self._buffers or self._buffers[name].size < count:
                self._buffers[name] = np.zeros(2 * count, dtype)
                self._bindings.clear()  # they would keep the old buffers alive
        shapes = {name: shape for name, (_, shape) in wanted.items()}
        bound = ShapeBinding(self._session, self._pool, self._buffers, shapes)
        self._bindings[length, size] = bound
        return bound

    def _check_slots(self, read: Slots, write: Slots) -> None:
        """A device clamps a bad index to another session's slot; the CPU refuses it.

        Read as unsigned numbers, negative indices are too large as well.
        """
        assert read.view(np.uint64).max() < self._pool.slots
        assert write.view(np.uint64).max() < self._pool.slots
        assert write.all(), "the zero slot is never written"

    def pool_pointers(self) -> list[int]:
        """Addresses of the pool's tensors as the last run left them, for the self-test."""
        assert self._last is not None
        return [value.data_ptr() for value in self._last.io.get_outputs()[1:]]


def _view(buffer: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return buffer[: math.prod(shape)].reshape(shape)


class PortableKernel:
    """The exported graph of one model, without a pool: it computes whole sequences.

    The tests use it as their oracle: one plain onnxruntime session, no slots, no slices.
    """

    def __init__(self, spec: LstmSpec, weights: Weights, device: Device, threads: int) -> None:
        self._input = "tokens" if spec.num_embeddings else "x"
        self._session = open_session(build_portable(spec, weights), device, threads)

    def run(
        self, x: npt.NDArray[np.generic], lengths: npt.NDArray[np.int32], h0: Floats, c0: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """x [B, T, I] or tokens [B, T], lengths [B] in [1, T], h0 and c0 [L*D, B, width].

        -> y [B, T, O], hn, cn. Raises KernelError.
        """
        assert x.shape[0] >= 1
        assert lengths.min() >= 1
        feed = {self._input: x, "lengths": lengths, "h0": h0, "c0": c0}
        try:
            y, hn, cn = self._session.run(["y", "hn", "cn"], feed)
        except Exception as error:
            raise KernelError(str(error).partition("\n")[0]) from error
        return y, hn, cn
