"""Owns the arguments of onnxruntime's runs: bound once per shape (T, B), filled anew every time.

To bind them for every run takes three times as long as the run of a small model. One thread.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmserve.engine.compute.pool import Pool
from lstmserve.runtime import ort
from lstmserve.spec import ModelSpec

CALLS_MAX = 1024  # shapes that stay bound, some KB each

Shapes = dict[str, tuple[int, ...]]
Buffers = dict[str, npt.NDArray[Any]]


class Call:
    """One shape's inputs and y on the host, views of the buffers that all shapes share.

    x [T, B, I] or tokens [T, B], lengths [B], read and write [B] are filled before a run, and y
    [T, B, O] is read after it, before the next run of any shape.
    """

    def __init__(
        self, session: ort.InferenceSession, pool: Pool, buffers: Buffers, shapes: Shapes
    ) -> None:
        arrays = {name: _view(buffers[name], shape) for name, shape in shapes.items()}
        self.x = arrays["x_time_major"]
        self.lengths = arrays["lengths"]
        self.read = arrays["read"].reshape(-1)
        self.write = arrays["write"].reshape(-1)
        self.y = arrays["y"]
        self.binding = session.io_binding()
        self._values = {n: ort.OrtValue.ortvalue_from_numpy(each) for n, each in arrays.items()}
        self.binding.bind_ortvalue_output("y", self._values.pop("y"))
        for name, tensor in pool.tensors.items():
            # One OrtValue on both sides makes the update in place (docs/ARCHITECTURE.md).
            self.binding.bind_ortvalue_input(name, tensor)
            self.binding.bind_ortvalue_output(f"{name}.next", tensor)
        self.bind_inputs()

    def bind_inputs(self) -> None:
        """Binds what is on the host; a device gets its copy of the content now."""
        for name, value in self._values.items():
            self.binding.bind_ortvalue_input(name, value)


class Calls:
    """Of one kernel. The buffers grow to the largest shape that was ever asked for."""

    def __init__(self, session: ort.InferenceSession, spec: ModelSpec, pool: Pool) -> None:
        self._session = session
        self._spec = spec
        self._pool = pool
        self._calls: dict[tuple[int, int], Call] = {}
        self._buffers: Buffers = {}

    def of(self, length: int, size: int) -> Call:
        """The call of T = `length`, B = `size`."""
        call = self._calls.get((length, size))
        if call is None:
            if len(self._calls) >= CALLS_MAX:
                del self._calls[next(iter(self._calls))]  # the oldest
            call = self._make(length, size)
            self._calls[length, size] = call
        return call

    def _make(self, length: int, size: int) -> Call:
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
                self._calls.clear()  # or the old buffers would stay with them
        shapes = {name: shape for name, (_, shape) in wanted.items()}
        return Call(self._session, self._pool, self._buffers, shapes)


def _view(buffer: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return buffer[: math.prod(shape)].reshape(shape)
