"""Computes one batch: gather slots, LSTM, head, scatter to slots, in one onnxruntime call.

Owns the onnxruntime session and its binding; one thread at a time. Decides nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lstmserve.engine.compute.calls import Call, Calls
from lstmserve.engine.compute.cost import Cost
from lstmserve.engine.compute.device import Device, open_session
from lstmserve.engine.compute.pool import Pool, Slots
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
        self.cost = Cost()  # until the self-test has measured it
        # Bits that do not depend on the batch are promised for the CPU only.
        self.is_exact = device == "cpu"
        self._session = open_session(build_pool(spec, weights), device, threads)
        self._calls = Calls(self._session, spec, pool)
        self._last: Call | None = None

    def run(
        self,
        x: npt.NDArray[Any],
        lengths: npt.NDArray[np.integer[Any]],
        read: Slots,
        write: Slots,
    ) -> npt.NDArray[np.float32]:
        """x [T, B, I] or tokens [T, B], lengths [B] in [1, T], slots [B] each -> y [T, B, O].

        `write` has no slot twice and none that is in `read`. y past a row's length means nothing.
        Raises KernelError.
        """
        length_max, size = x.shape[:2]
        # B = 0 aborts the process inside onnxruntime; a length of 0 wipes the row's state.
        assert size >= 1
        if not self.is_exact:
            self._check_slots(read, write)
        call = self._last = self._calls.of(length_max, size)
        call.x[:] = x
        call.lengths[:] = lengths
        call.read[:] = read
        call.write[:] = write
        if not self.is_exact:
            call.bind_inputs()
        try:
            self._session.run_with_iobinding(call.binding)
        except Exception as error:
            raise KernelError(str(error).partition("\n")[0]) from error
        return call.y.copy()

    def _check_slots(self, read: Slots, write: Slots) -> None:
        """A device clamps an index to another session's slot; the CPU refuses it, and writes none.

        As unsigned numbers, those below the first slot are too large.
        """
        assert read.view(np.uint64).max() < self._pool.slots
        assert write.view(np.uint64).max() < self._pool.slots
        assert write.all(), "the zero slot is never written"

    def pool_pointers(self) -> list[int]:
        """Addresses of the pool's tensors as the last run left them, for the self-test."""
        assert self._last is not None
        return [value.data_ptr() for value in self._last.binding.get_outputs()[1:]]
