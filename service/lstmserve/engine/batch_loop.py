"""The batch loop: it takes steps in, computes them batch by batch, commits and settles them.

Every wait between a step's acceptance and its settling is here; the scheduler decides which steps
run together. A round is one batch of every model that has one, so that no model waits for another's
queue. All of it runs on the event loop's thread, except batches that take longer than a hand-over
to the one kernel thread: the event loop takes in the next batch meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from lstmserve.config import Config
from lstmserve.engine.arrays import Output
from lstmserve.engine.clock import Clock, monotonic_of
from lstmserve.engine.compute.kernel import KernelError
from lstmserve.engine.errors import Draining, ServeError
from lstmserve.engine.model import Model
from lstmserve.engine.persist import CommitStage
from lstmserve.engine.registry import ModelRegistry
from lstmserve.engine.scheduling.batch import Batch
from lstmserve.engine.scheduling.work import Outcome

Result = TypeVar("Result")

INLINE_NS_MAX = 300_000  # a hand-over to a thread and back costs about 100 us
INLINE_NS_MAX_ON_ONE_CORE = 5_000_000  # as long as Python's threads let one another wait


class Executor:
    """Computes batches in the calling thread, or in the one kernel thread of all models."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kernel")
        self._is_stopped = False
        is_alone = len(os.sched_getaffinity(0)) == 1
        self._inline_ns_max = INLINE_NS_MAX_ON_ONE_CORE if is_alone else INLINE_NS_MAX

    async def run(self, model: Model, batch: Batch) -> Output:
        """y [T, B, ...]; rows that could not be computed are marked in the batch."""
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
        """Runs `work` in the kernel thread. Raises Draining after stop()."""
        if self._is_stopped:
            raise Draining("this server shut down", retry_s=1.0)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def stop(self) -> None:
        """Runs nothing after what is running now."""
        self._is_stopped = True
        self._thread.shutdown(wait=False)


def _run_alone(model: Model, batch: Batch) -> Output:
    """Row by row, so that only the bad one fails; the slots that are read are untouched.

    Each without its padding: a network may fail on time steps that its client never sent.
    """
    kernel = model.kernel
    assert kernel is not None
    y = model.results.unknown(batch.length_max, batch.size)
    for i in range(batch.size):
        one, n = slice(i, i + 1), batch.lengths.item(i)
        arguments = (batch.lengths[one], batch.read[one], batch.write[one])
        try:
            y[:n, one] = kernel.run(np.ascontiguousarray(batch.inputs[:n, one]), *arguments)
        except KernelError as error:
            batch.outcomes[i] = Outcome.FAILED
            batch.cause = error
    return y


class BatchLoop:
    """Runs until stop(); when it dies, it has failed everything that was pending."""

    def __init__(
        self, config: Config, registry: ModelRegistry, stage: CommitStage, clock: Clock
    ) -> None:
        self.executor = Executor()
        self._in_flight_max = config.batches_in_flight_max
        self._registry = registry
        self._stage = stage
        self._now_ns = monotonic_of(clock)
        self._sources: list[Callable[[], None]] = []
        self._wake = asyncio.Event()
        self._is_running = False
        self._in_round = False
        self._begun: list[tuple[Model, Batch]] = []  # scheduled, and left to the next round
        self._commits: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None  # what the engine dies of
        self._overdue: ServeError | None = None  # what is left of a stop ends with this
        self._is_stopping = False
        self._stopped = asyncio.Event()

    @property
    def pending_steps(self) -> int:
        """Accepted and not settled, over all models."""
        return sum(model.scheduler.pending_steps for model in self._registry if model.scheduler)

    # What others call ---------------------------------------------------------------------------

    def add_source(self, take_in: Callable[[], None]) -> None:
        """Adds a function that submits what waits outside; it is called before every batch."""
        self._sources.append(take_in)

    def watch(self, task: asyncio.Task[None]) -> None:
        """Ends the engine with the error that ends the task, if one does."""
        task.add_done_callback(self._ended)

    def notice(self) -> None:
        """Wakes run(): something was accepted, or waits in a source."""
        if not self._is_running:
            self.take_in()
        elif not self._in_round:
            self._wake.set()

    def take_in(self) -> None:
        """Calls the sources, which submit what waits outside."""
        for take_in in self._sources:
            take_in()

    def take_in_now(self) -> None:
        """Does what take_in() does, outside a round. A bug there ends run(), which answers every
        step."""
        try:
            self.take_in()
        except BaseException as error:
            self._failure = error
            self._wake.set()

    def run_now(self) -> bool:
        """Runs what waits, as far as its batches are short; returns whether it ran anything.

        That saves the passes of the event loop that it takes to wake run(), which runs the rest. A
        bug that shows here ends run() too, because the caller's step is only one of many.
        """
        if not self._is_running or self._in_round:
            return False
        self._in_round = True  # run() need not be woken for what is run here
        try:
            self.take_in()
            self._run_short_round()
        except BaseException as error:
            self._failure = error
        finally:
            self._in_round = False
        if self._failure is not None or self.pending_steps:
            self._wake.set()
        return True

    async def run(self) -> None:
        """Runs batches until stop(). Raises the error that ended it."""
        self._is_running = True
        try:
            while True:
                self._wake.clear()  # before it looks at anything, so that it misses no change
                if self._failure is not None:
                    raise self._failure
                if self._overdue is not None:
                    self.fail_pending(self._overdue)
                self.take_in()
                if self._is_stopping and self.pending_steps == 0:
                    return
                if await self._run_round():
                    await asyncio.sleep(0)  # lets the transport deliver what came meanwhile
                else:
                    await self._wake.wait()
        finally:
            self._is_running = False
            for model, batch in self._begun:
                self._abandon(model, batch)
            self._begun.clear()
            self.fail_pending(_died())
            self.executor.stop()
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
        for model in self._registry:
            if model.scheduler:
                model.scheduler.fail_all(error, self._now_ns())

    def _expire(self, error: ServeError) -> None:
        self._overdue = error
        self._wake.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._commits.discard(task)
        if not task.cancelled():
            self._failure = self._failure or task.exception()
        self._wake.set()

    # A round ------------------------------------------------------------------------------------

    async def _run_round(self) -> bool:
        """Runs one round; returns whether there was anything to run. Raises what ends the
        engine."""
        ran = False
        self._in_round = True
        try:
            for model, batch in self._batches():
                ran = True
                start_ns = time.monotonic_ns()
                try:
                    y = await self.executor.run(model, batch)
                    commit, compute_ns = self._computed(model, batch, y, start_ns)
                except BaseException:
                    self._abandon(model, batch)
                    raise
                self._conclude(model, batch, commit, compute_ns)
        finally:
            self._in_round = False
        return ran

    def _run_short_round(self) -> None:
        """Runs a round of short batches and leaves longer ones to the next round. Raises as
        above."""
        for model, batch in self._batches():
            if not self.executor.is_short(model, batch):
                self._begun.append((model, batch))
                return
            start_ns = time.monotonic_ns()
            try:
                y = self.executor.run_here(model, batch)
                commit, compute_ns = self._computed(model, batch, y, start_ns)
            except BaseException:
                self._abandon(model, batch)
                raise
            self._conclude(model, batch, commit, compute_ns)

    def _batches(self) -> Iterator[tuple[Model, Batch]]:
        while self._begun:
            yield self._begun.pop()
        for model in self._registry:
            if model.scheduler is None or len(self._commits) >= self._in_flight_max:
                continue
            batch = model.scheduler.schedule(self._now_ns())
            if batch is not None:
                yield model, batch

    def _computed(
        self, model: Model, batch: Batch, y: Output, start_ns: int
    ) -> tuple[Awaitable[None] | None, int]:
        """What the batch waits for before it is settled, and the nanoseconds that it took."""
        batch.absorb(y)
        compute_ns = time.monotonic_ns() - start_ns
        rows, cells = batch.rows_count, batch.size * batch.length_max
        model.metrics.batch(batch.size, rows, cells - rows, compute_ns)
        return self._stage.commit(model, batch), compute_ns

    def _conclude(
        self, model: Model, batch: Batch, commit: Awaitable[None] | None, compute_ns: int
    ) -> None:
        if commit is None:
            self._settle(model, batch, compute_ns)
            return
        task = asyncio.create_task(self._commit(commit, model, batch, compute_ns))
        self._commits.add(task)
        self.watch(task)

    async def _commit(
        self, commit: Awaitable[None], model: Model, batch: Batch, compute_ns: int
    ) -> None:
        try:
            await commit
        except (Exception, asyncio.CancelledError):  # only a bug cancels it
            batch.outcomes[batch.outcomes == Outcome.APPLIED] = Outcome.UNKNOWN
        self._settle(model, batch, compute_ns)
        if self._stopped.is_set():  # it died: what waited behind the batch never runs
            self.fail_pending(_died())

    def _settle(self, model: Model, batch: Batch, compute_ns: int) -> None:
        assert model.scheduler is not None
        model.scheduler.settle(batch, self._now_ns(), compute_ns)

    def _abandon(self, model: Model, batch: Batch) -> None:
        """Answers every caller of a batch, because the engine has failed."""
        batch.outcomes[:] = Outcome.FAILED
        self._settle(model, batch, 0)


def _died() -> ServeError:
    return ServeError("the server failed; whether the step was applied is unknown")
