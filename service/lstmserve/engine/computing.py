"""Owns where a batch is computed: on the loop, or in the one kernel thread. Settles nothing.

It runs on the loop when it is expected to take less than a hand-over to the thread costs, else in
the thread, while the loop takes in what the next batch will be. On one core there is no "while".
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from lstmserve.engine.arrays import Output
from lstmserve.engine.compute.kernel import KernelError
from lstmserve.engine.errors import Draining
from lstmserve.engine.model import Model
from lstmserve.engine.scheduling.batch import Batch
from lstmserve.engine.scheduling.work import Outcome

Result = TypeVar("Result")

INLINE_NS_MAX = 300_000  # a hand-over to a thread and back costs about 100 us
INLINE_NS_MAX_ON_ONE_CORE = 5_000_000  # as long as Python's threads let one another wait


class Computing:
    """One thread at most, for the kernels of all models."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kernel")
        self._is_stopped = False
        is_alone = len(os.sched_getaffinity(0)) == 1
        self._inline_ns_max = INLINE_NS_MAX_ON_ONE_CORE if is_alone else INLINE_NS_MAX

    async def run(self, model: Model, batch: Batch) -> Output:
        """y [T, B, O]; rows that could not be computed are marked in the batch."""
        if self.is_short(model, batch):
            return self.run_here(model, batch)
        return await self.in_thread(lambda: self.run_here(model, batch))

    def is_short(self, model: Model, batch: Batch) -> bool:
        """Whether a batch takes less than a hand-over to the thread."""
        assert model.kernel is not None
        return model.kernel.cost.of(batch.length_max, batch.size) <= self._inline_ns_max

    def run_here(self, model: Model, batch: Batch) -> Output:
        """run(), in the calling thread."""
        assert model.kernel is not None
        try:
            return model.kernel.run(batch.inputs, batch.lengths, batch.read, batch.write)
        except KernelError:
            return _run_alone(model, batch)

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """Runs `work` in the kernel thread. Raises Draining when there is none any more."""
        if self._is_stopped:
            raise Draining("this server shut down", retry_s=1.0)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def stop(self) -> None:
        """Nothing runs any more after what is running."""
        self._is_stopped = True
        self._thread.shutdown(wait=False)


def _run_alone(model: Model, batch: Batch) -> Output:
    """Row by row, so that only the bad one fails; the slots that are read are untouched."""
    kernel = model.kernel
    assert kernel is not None
    y = batch.no_output(model.output_size)
    for i in range(batch.size):
        one = slice(i, i + 1)
        arguments = (batch.lengths[one], batch.read[one], batch.write[one])
        try:
            y[:, one] = kernel.run(np.ascontiguousarray(batch.inputs[:, one]), *arguments)
        except KernelError:
            batch.outcomes[i] = Outcome.FAILED
    return y
