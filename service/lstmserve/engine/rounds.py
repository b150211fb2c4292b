"""Owns a batch's way from the schedule to its settling: computed, committed, settled. One loop.

A round is one batch of every model that has one, so that no model waits for another's queue.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

from lstmserve.config import Config
from lstmserve.engine.arrays import Output
from lstmserve.engine.clock import Clock, monotonic_of
from lstmserve.engine.computing import Computing
from lstmserve.engine.model import Model
from lstmserve.engine.persist import CommitStage
from lstmserve.engine.schedule.batch import Batch
from lstmserve.engine.schedule.outcome import Outcome


class Rounds:
    """`on_change()` is called when a batch was settled outside a round, or `failure` was set."""

    def __init__(
        self,
        config: Config,
        models: Sequence[Model],
        stage: CommitStage,
        clock: Clock,
        on_change: Callable[[], None],
    ) -> None:
        self._in_flight_max = config.batches_in_flight_max
        self._models = models
        self._stage = stage
        self._now_ns = monotonic_of(clock)
        self._on_change = on_change
        self._begun: list[tuple[Model, Batch]] = []  # scheduled, and left to the next round
        self._commits: set[asyncio.Task[None]] = set()
        self.computing = Computing()
        self.failure: BaseException | None = None  # what the engine dies of
        self.is_on = False

    async def run(self) -> bool:
        """One round; whether there was anything to run. Raises what the engine dies of."""
        ran = False
        self.is_on = True
        try:
            for model, batch in self._batches():
                ran = True
                start_ns = time.monotonic_ns()
                try:
                    y = await self.computing.run(model, batch)
                    commit, compute_ns = self._computed(model, batch, y, start_ns)
                except BaseException:
                    self._abandon(model, batch)
                    raise
                self._conclude(model, batch, commit, compute_ns)
        finally:
            self.is_on = False
        return ran

    def run_here(self) -> None:
        """A round of short batches; others are left to the next one. Raises as run()."""
        for model, batch in self._batches():
            if not self.computing.is_short(model, batch):
                self._begun.append((model, batch))
                return
            start_ns = time.monotonic_ns()
            try:
                y = self.computing.run_here(model, batch)
                commit, compute_ns = self._computed(model, batch, y, start_ns)
            except BaseException:
                self._abandon(model, batch)
                raise
            self._conclude(model, batch, commit, compute_ns)

    def watch(self, task: asyncio.Task[None]) -> None:
        """The engine dies of what the task dies of."""
        task.add_done_callback(self._ended)

    def _batches(self) -> Iterator[tuple[Model, Batch]]:
        while self._begun:
            yield self._begun.pop()
        for model in self._models:
            if model.scheduler is None or len(self._commits) >= self._in_flight_max:
                continue
            batch = model.scheduler.schedule(self._now_ns())
            if batch is not None:
                yield model, batch

    def _abandon(self, model: Model, batch: Batch) -> None:
        """The engine dies, but nobody is left waiting."""
        batch.outcomes[:] = Outcome.FAILED
        self._settle(model, batch, 0)

    def _computed(
        self, model: Model, batch: Batch, y: Output, start_ns: int
    ) -> tuple[Awaitable[None] | None, int]:
        """What it waits for before it is settled, and the nanoseconds it took."""
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
        except (Exception, asyncio.CancelledError):  # nobody cancels it but a bug
            batch.outcomes[batch.outcomes == Outcome.APPLIED] = Outcome.UNKNOWN
        self._settle(model, batch, compute_ns)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._commits.discard(task)
        if not task.cancelled():
            self.failure = self.failure or task.exception()
        self._on_change()

    def _settle(self, model: Model, batch: Batch, compute_ns: int) -> None:
        assert model.scheduler is not None
        model.scheduler.settle(batch, self._now_ns(), compute_ns)
