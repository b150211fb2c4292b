"""Drives the models' batches: lets one gather, runs it, commits it, settles it. Owns every wait.

One event loop. A batch runs on the loop when it is expected to take less than a hand-over to the
kernel thread costs, else in that one thread while the loop takes in what the next batch will be.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from lstmserve.config import Config
from lstmserve.engine.arrays import Output
from lstmserve.engine.clock import Clock
from lstmserve.engine.commit import CommitStage
from lstmserve.engine.compute.kernel import KernelError
from lstmserve.engine.model import Model
from lstmserve.engine.schedule.batch import Batch, Outcome
from lstmserve.errors import Draining, ServeError

Result = TypeVar("Result")

# Passes of the event loop before a run: each lets gRPC's poller hand over what has arrived.
# Without them batches of one run while others wait (docs/ARCHITECTURE.md).
GATHER_PASSES_MAX = 8
INLINE_NS_MAX = 300_000  # a hand-over to a thread and back costs about 100 us


class Driver:
    """Runs until stop(); when it dies, everything pending has been failed."""

    def __init__(
        self, config: Config, models: Sequence[Model], stage: CommitStage, clock: Clock
    ) -> None:
        self._config = config
        self._clock = clock
        self._models = models
        self._stage = stage
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kernel")
        self._wake = asyncio.Event()
        self._accepted = 0  # ever; tells whether a loop pass brought anything
        self._commits: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._overdue: ServeError | None = None  # what is left of a stop ends with this
        self._is_stopping = False
        self._stopped = asyncio.Event()

    @property
    def pending_steps(self) -> int:
        """Accepted and not settled, over all models."""
        return sum(model.scheduler.pending_steps for model in self._models if model.scheduler)

    def notice(self) -> None:
        """Something was submitted."""
        self._accepted += 1
        self._wake.set()

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """Runs `work` in the kernel thread. Raises Draining when there is none any more."""
        if self._stopped.is_set():
            raise Draining("this server shut down", retry_s=1.0)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def run(self) -> None:
        """Until stop(). Raises what it died of."""
        error = ServeError("the server failed; whether the step was applied is unknown")
        try:
            while True:
                self._wake.clear()  # before anything is looked at, so that no change is missed
                if self._failure is not None:
                    raise self._failure
                if self._overdue is not None:
                    self.fail_pending(self._overdue)
                if self._is_stopping and self.pending_steps == 0:
                    return
                await self._gather()
                if not await self._run_round():
                    await self._wake.wait()
        finally:
            self.fail_pending(error)
            self._thread.shutdown(wait=False)
            self._stopped.set()

    async def stop(self, timeout_s: float, error: ServeError) -> None:
        """Finishes what is pending within `timeout_s`, fails the rest with `error`."""
        self._is_stopping = True
        self._wake.set()
        expiry = asyncio.get_running_loop().call_later(timeout_s, self._expire, error)
        try:
            await self._stopped.wait()
        finally:
            expiry.cancel()

    def fail_pending(self, error: ServeError) -> None:
        """Ends every step that is not in flight."""
        for model in self._models:
            if model.scheduler:
                model.scheduler.fail_all(error, self._clock().monotonic_ns)

    def _expire(self, error: ServeError) -> None:
        self._overdue = error
        self._wake.set()

    async def _gather(self) -> None:
        """Gives the batch the chance to form; stops as soon as a pass brings nothing new."""
        for _ in range(GATHER_PASSES_MAX):
            before = self._accepted
            await asyncio.sleep(0)
            if self._accepted == before:
                return

    async def _run_round(self) -> bool:
        """One batch of every model that has one, so that no model waits for another's queue."""
        ran = False
        for model in self._models:
            if model.scheduler is None or len(self._commits) >= self._config.batches_in_flight_max:
                continue
            batch = model.scheduler.schedule(self._clock().monotonic_ns)
            if batch is not None:
                ran = True
                await self._run(model, batch)
        return ran

    async def _run(self, model: Model, batch: Batch) -> None:
        start_ns = time.monotonic_ns()
        try:
            y = await self._compute(model, batch)
        except BaseException:
            batch.outcomes[:] = Outcome.FAILED  # the engine dies, but nobody is left waiting
            self._settle(model, batch, 0)
            raise
        batch.absorb(y)
        compute_ns = time.monotonic_ns() - start_ns
        rows, cells = batch.rows_count, batch.size * batch.length_max
        model.metrics.batch(batch.size, rows, cells - rows, compute_ns)
        commit = self._stage.commit(model, batch)
        if commit is None:
            self._settle(model, batch, compute_ns)
            return
        task = asyncio.create_task(self._commit(commit, model, batch, compute_ns))
        self._commits.add(task)
        self.watch(task)

    async def _compute(self, model: Model, batch: Batch) -> Output:
        """y [T, B, O]; rows that could not be computed are marked in the batch."""
        kernel = model.kernel
        assert kernel is not None
        x = batch.inputs

        def work() -> Output:
            try:
                return kernel.run(x, batch.lengths, batch.read, batch.write)
            except KernelError:
                return self._compute_alone(model, batch)

        if kernel.expected_ns(batch.size * len(x)) <= INLINE_NS_MAX:
            return work()
        return await self.in_thread(work)

    def _compute_alone(self, model: Model, batch: Batch) -> Output:
        """Row by row, so that only the bad one fails; the slots that are read are untouched."""
        kernel, x = model.kernel, batch.inputs
        assert kernel is not None
        y = batch.no_output(model.output_size)
        for i in range(batch.size):
            one = slice(i, i + 1)
            arguments = (batch.lengths[one], batch.read[one], batch.write[one])
            try:
                y[:, one] = kernel.run(np.ascontiguousarray(x[:, one]), *arguments)
            except KernelError:
                batch.outcomes[i] = Outcome.FAILED
        return y

    async def _commit(
        self, commit: Awaitable[None], model: Model, batch: Batch, compute_ns: int
    ) -> None:
        try:
            await commit
        except Exception:
            batch.outcomes[batch.outcomes == Outcome.APPLIED] = Outcome.NOT_STORED
        self._settle(model, batch, compute_ns)

    def watch(self, task: asyncio.Task[None]) -> None:
        """The engine dies of what the task dies of."""
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._commits.discard(task)
        if not task.cancelled():
            self._failure = self._failure or task.exception()
        self._wake.set()

    def _settle(self, model: Model, batch: Batch, compute_ns: int) -> None:
        assert model.scheduler is not None
        model.scheduler.settle(batch, self._clock().monotonic_ns, compute_ns)
