"""Owns Predict: whole sequences without a session, under a queue limit of their own.

A sequence of a model with a pool runs as a step of no session: it reads the zero slot, or one with
its initial state, and is sliced like any long step. A bidirectional model reads it whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lstmserve.config import Config
from lstmserve.engine.arrays import Input, Output
from lstmserve.engine.compute.kernel import KernelError
from lstmserve.engine.driver import Driver
from lstmserve.engine.model import Model, State
from lstmserve.engine.schedule.step import NO_ROW, Step
from lstmserve.errors import ModelError, Overloaded, ServeError, TooLong

RETRY_S = 0.2


@dataclass(slots=True)
class Prediction:
    """What B sequences gave: y per sequence, hn [L*D, B, state], cn [L*D, B, H], and the times."""

    y: list[Output]
    hn: State | None = None
    cn: State | None = None
    queue_ns: int = 0
    compute_ns: int = 0


@dataclass(slots=True)
class PredictJob:
    """Checked input: x per sequence, h0 [L*D, B, state] and c0 or None for zeros."""

    xs: Sequence[Input]
    h0: State | None
    c0: State | None
    last_only: bool
    with_state: bool
    arrival_ns: int


@dataclass(slots=True)
class _Collector:
    """The sink of all sequences of a job; `done` ends with the first failure or the last reply."""

    model: Model
    with_state: bool
    waiting: int
    done: asyncio.Future[None]
    states: dict[Step, tuple[State, State]] = field(default_factory=dict)

    def applied(self, step: Step) -> None:
        self.waiting -= 1
        if self.with_state:
            pool = self.model.pool
            assert pool is not None
            self.states[step] = self.model.state_from(pool.read(np.array([step.state_slot])))
        if not self.waiting and not self.done.done():
            self.done.set_result(None)

    def failed(self, step: Step, error: ServeError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Predicting:
    """Counts the rows under way, and refuses beyond the limit."""

    def __init__(self, config: Config, driver: Driver) -> None:
        self._config = config
        self._driver = driver
        self.waiting_rows = 0

    async def predict(self, model: Model, job: PredictJob) -> Prediction:
        """Raises Overloaded, TooLong for what would never fit, ModelError, Draining."""
        rows = sum(map(len, job.xs))
        limit = self._config.predict_rows_max
        _check_alone(rows, limit, "rows")
        _check_alone(len(job.xs), self._config.pending_steps_max, "sequences")
        if self.waiting_rows + rows > limit:
            raise Overloaded(
                f"{self.waiting_rows} rows of Predict are waiting, the limit is {limit}",
                retry_s=RETRY_S,
            )
        self.waiting_rows += rows
        try:
            if model.whole is not None:
                return await self._whole(model, job)
            return await self._sliced(model, job)
        finally:
            self.waiting_rows -= rows

    async def _sliced(self, model: Model, job: PredictJob) -> Prediction:
        assert model.scheduler is not None
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sink = _Collector(model, job.with_state, len(job.xs), done)
        steps = [self._step(model, job, i, sink) for i in range(len(job.xs))]
        try:
            for step in steps:
                model.scheduler.submit(step)
            self._driver.notice()
            await done
        finally:
            done.cancel()  # nobody waits any more: a late failure is no news
            for step in steps:
                step.is_cancelled = True
        prediction = Prediction(
            [step.output() for step in steps],
            queue_ns=max(step.queue_ns for step in steps),
            compute_ns=max(step.compute_ns for step in steps),
        )
        if job.with_state:
            states = [sink.states[step] for step in steps]
            prediction.hn, prediction.cn = (
                np.concatenate(each, axis=1) for each in zip(*states, strict=True)
            )
        return prediction

    def _step(self, model: Model, job: PredictJob, i: int, sink: _Collector) -> Step:
        initial = None
        if job.h0 is not None and job.c0 is not None:
            initial = model.rows_from(job.h0[:, i : i + 1], job.c0[:, i : i + 1])
        return Step(
            NO_ROW,
            job.xs[i],
            sink,
            arrival_ns=job.arrival_ns,
            last_only=job.last_only,
            initial=initial,
        )

    async def _whole(self, model: Model, job: PredictJob) -> Prediction:
        """Sequence by sequence in the kernel thread, so that padding and memory stay bounded."""
        spec, count = model.spec, len(job.xs)
        layers = spec.num_layers * spec.num_directions
        h0 = np.zeros((layers, count, spec.state_size), np.float32) if job.h0 is None else job.h0
        c0 = np.zeros((layers, count, spec.hidden_size), np.float32) if job.c0 is None else job.c0
        prediction = Prediction([], np.empty_like(h0), np.empty_like(c0))
        assert prediction.hn is not None
        assert prediction.cn is not None
        for i, x in enumerate(job.xs):
            one = slice(i, i + 1)
            y, prediction.hn[:, one], prediction.cn[:, one] = await self._run_whole(
                model, x, np.ascontiguousarray(h0[:, one]), np.ascontiguousarray(c0[:, one])
            )
            prediction.y.append(y[-1:] if job.last_only else y)
        return prediction

    async def _run_whole(
        self, model: Model, x: Input, h0: State, c0: State
    ) -> tuple[Output, State, State]:
        whole = model.whole
        assert whole is not None
        lengths = np.array([len(x)], np.int32)
        try:
            y, hn, cn = await self._driver.rounds.computing.in_thread(
                lambda: whole.run(x[np.newaxis], lengths, h0, c0)
            )
        except KernelError as error:
            raise ModelError("the model failed on this sequence") from error
        return y[0], hn, cn


def _check_alone(count: int, limit: int, what: str) -> None:
    """Refuses for good what no waiting would make room for."""
    if count > limit:
        raise TooLong(
            f"{count} {what}, at most {limit}: send them as several calls",
            field="lengths",
            metadata={f"{what}_max": str(limit)},
        )
