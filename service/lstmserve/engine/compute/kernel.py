"""Computes one batch: gather slots, LSTM, head, scatter to slots, in one onnxruntime call.

Owns the onnxruntime session and its binding; one thread at a time. Decides nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from lstmserve.engine.compute.device import Device, open_session
from lstmserve.engine.compute.pool import ZERO, Pool, Slots
from lstmserve.graph import Weights, build_pool
from lstmserve.spec import ModelSpec


class KernelError(RuntimeError):
    """onnxruntime failed on a batch. What was read is as before, what was written is unknown."""


class Kernel:
    """The pool graph of one model, bound to its pool."""

    def __init__(
        self, spec: ModelSpec, weights: Weights, pool: Pool, device: Device, threads: int
    ) -> None:
        self._spec = spec
        self._pool = pool
        self._cost_ns = (0, 0)
        # Bits that do not depend on the batch are promised for the CPU only.
        self.is_exact = device == "cpu"
        self._session = open_session(build_pool(spec, weights), device, threads)
        self._binding = self._session.io_binding()
        # get_outputs() has the order of binding, not the graph's: y first, or row 0 of a reply
        # would be everybody's h.
        self._binding.bind_output("y", "cpu")
        for name, tensor in pool.tensors.items():
            # One OrtValue on both sides makes the update in place (docs/ARCHITECTURE.md).
            self._binding.bind_ortvalue_input(name, tensor)
            self._binding.bind_ortvalue_output(f"{name}.next", tensor)

    def run(
        self,
        x: npt.NDArray[Any],
        lengths: npt.NDArray[np.int32],
        read: Slots,
        write: Slots,
    ) -> npt.NDArray[np.float32]:
        """x [T, B, I] or tokens [T, B], lengths [B] in [1, T], slots [B] each -> y [T, B, O].

        `write` has no slot twice and none that is in `read`. y past a row's length means nothing.
        Raises KernelError.
        """
        length_max, size = x.shape[:2]
        # B = 0 aborts the process inside onnxruntime; a length of 0 wipes the row's state.
        assert length_max >= 1
        assert size >= 1
        assert lengths.shape == read.shape == write.shape == (size,)
        assert 1 <= int(lengths.min()) <= int(lengths.max()) <= length_max
        assert ZERO <= int(read.min()) <= int(read.max()) < self._pool.slots
        assert ZERO < int(write.min()) <= int(write.max()) < self._pool.slots
        bind = self._binding.bind_ortvalue_input
        bind("x_time_major", ort.OrtValue.ortvalue_from_numpy(x))
        bind("lengths", ort.OrtValue.ortvalue_from_numpy(lengths))
        bind("read", ort.OrtValue.ortvalue_from_numpy(read.reshape(1, -1)))
        bind("write", ort.OrtValue.ortvalue_from_numpy(write.reshape(1, -1, 1)))
        self._binding.bind_output("y", "cpu")
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise KernelError(str(error).partition("\n")[0]) from error
        y: npt.NDArray[np.float32] = self._binding.get_outputs()[0].numpy()
        assert y.shape == (length_max, size, self._spec.output_size)
        return y

    def pool_pointers(self) -> list[int]:
        """Addresses of the pool's tensors as the last run left them, for the self-test."""
        return [value.data_ptr() for value in self._binding.get_outputs()[1:]]

    def learn_cost(self, first_ns: int, each_ns: int) -> None:
        """What a run of one cell (a time step of a row) was measured to take, and each further."""
        self._cost_ns = (first_ns, each_ns)

    def expected_ns(self, cells: int) -> int:
        """How long a run of so many cells takes, about."""
        first_ns, each_ns = self._cost_ns
        return first_ns + each_ns * (cells - 1)
