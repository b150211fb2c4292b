"""Drives the models' batches: lets one gather, runs it, commits it, settles it. Owns every wait.

One event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from lstmserve.config import Config
from lstmserve.engine.clock import Clock
from lstmserve.engine.commit import CommitStage
from lstmserve.engine.computing import Computing
from lstmserve.engine.model import Model
from lstmserve.engine.schedule.batch import Batch, Outcome
from lstmserve.errors import ServeError

# Passes of the event loop before a run: each lets gRPC's poller hand over what has arrived.
# Without them batches of one run while others wait (docs/ARCHITECTURE.md).
GATHER_PASSES_MAX = 8


class Driver:
    """Runs until stop(); when it dies, everything pending has been failed."""

    def __init__(
        self, config: Config, models: Sequence[Model], stage: CommitStage, clock: Clock
    ) -> None:
        self._config = config
        self._clock = clock
        self._models = models
        self._stage = stage
        self.computing = Computing()
        self._wake = asyncio.Event()
        self._sources: list[Callable[[], None]] = []
        self._is_running = False
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

    def add_source(self, take_in: Callable[[], None]) -> None:
        """`take_in` is called before every batch: it submits what waits outside."""
        self._sources.append(take_in)

    def notice(self) -> None:
        """Something was submitted, or waits in a source."""
        self._accepted += 1
        self._wake.set()
        if not self._is_running:
            self.take_in()

    def take_in(self) -> None:
        """Whatever waits outside is submitted now."""
        for take_in in self._sources:
            take_in()

    async def run(self) -> None:
        """Until stop(). Raises what it died of."""
        error = ServeError("the server failed; whether the step was applied is unknown")
        self._is_running = True
        try:
            while True:
                self._wake.clear()  # before anything is looked at, so that no change is missed
                if self._failure is not None:
                    raise self._failure
                if self._overdue is not None:
                    self.fail_pending(self._overdue)
                if self._is_stopping:
                    self.take_in()
                    if self.pending_steps == 0:
                        return
                await self._gather()
                self.take_in()
                if not await self._run_round():
                    await self._wake.wait()
        finally:
            self._is_running = False
            self.fail_pending(error)
            self.computing.stop()
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
            y = await self.computing.run(model, batch)
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
