"""Predict: computes whole sequences without a session, within a queue limit of their own.

A model with a pool runs them in batches beside the sessions' steps (scheduling/settle.py). Any
other reads each sequence whole, one after another, in the kernel thread.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lstmserve.config import Config
from lstmserve.engine.arrays import Input, Output, run_sums
from lstmserve.engine.batch_loop import BatchLoop
from lstmserve.engine.compute.kernel import KernelError, SequenceKernel
from lstmserve.engine.compute.pool import States
from lstmserve.engine.errors import ModelError, Overloaded, ServeError, TooLong
from lstmserve.engine.model import Model
from lstmserve.engine.registry import ModelRegistry
from lstmserve.engine.scheduling.plan import groups_of
from lstmserve.engine.scheduling.work import Applied, Plan, Request

RETRY_S = 0.2


@dataclass(slots=True)
class Prediction:
    """The result for N sequences: y of all, one after another, `lengths` [N] rows each, and the
    final states [N, *shape] by name.

    Unless the model's spec is_row_by_row, these may be fewer rows than the sequence has, or none.
    """

    y: Output
    lengths: npt.NDArray[np.int32]
    finals: States | None = None
    queue_ns: int = 0
    compute_ns: int = 0


@dataclass(slots=True)
class PredictJob:
    """Checked input of N sequences: x of all, one after another, `lengths` [N] rows each;
    the initial states [N, *shape] by name, None for the model's own.
    """

    x: Input
    lengths: npt.NDArray[np.int32]
    initial: States | None
    last_only: bool
    with_state: bool
    arrival_ns: int


class _Completion:
    """The responder of a job. It calls `on_over()` once the engine holds no array of it."""

    def __init__(self, on_over: Callable[[], None]) -> None:
        self._on_over = on_over
        self.done: asyncio.Future[Applied] = asyncio.get_running_loop().create_future()

    def applied(self, request: Request, rows: Applied) -> None:
        self._on_over()
        if not self.done.done():
            self.done.set_result(rows)

    def failed(self, request: Request, place: int, error: ServeError) -> None:
        if place == 0:  # all sequences fail as one
            self._on_over()
            if not self.done.done():
                self.done.set_exception(error)


class Predictor:
    """Counts the rows that wait, and refuses jobs beyond --predict-rows-max."""

    def __init__(self, config: Config, registry: ModelRegistry, batch_loop: BatchLoop) -> None:
        self._config = config
        self._registry = registry
        self._batch_loop = batch_loop
        self.waiting_rows = 0

    def check_count(self, count: int) -> None:
        """Checks a job's number of sequences before they are parsed. Raises TooLong."""
        _check_alone(count, self._config.pending_steps_max, "sequences")

    async def predict(
        self, model: Model, job: PredictJob, on_over: Callable[[], None] = lambda: None
    ) -> Prediction:
        """Raises Overloaded, TooLong for a job that can never fit, ModelError, Draining, and
        ModelRetired for a model that is gone.

        It calls `on_over()` once, when the engine holds nothing of the job any more: for a
        cancelled job that is after this call, when the scheduler reaches it.
        """
        try:
            self._registry.check_served(model)
            rows = self._admit(job)
        except BaseException:
            on_over()
            raise
        try:
            if model.sequences is None:
                return await self._sliced(model, job, on_over)
            try:
                return await self._whole(model, job)
            finally:
                on_over()
        finally:
            self.waiting_rows -= rows

    def _admit(self, job: PredictJob) -> int:
        """Counts the job's rows as waiting, and returns how many they are."""
        self.check_count(job.lengths.size)
        rows = len(job.x)
        limit = self._config.predict_rows_max
        _check_alone(rows, limit, "rows")
        if self.waiting_rows + rows > limit:
            raise Overloaded(
                f"{self.waiting_rows} rows of Predict are waiting, the limit is {limit} "
                "(--predict-rows-max): send these again later",
                retry_s=RETRY_S,
            )
        self.waiting_rows += rows
        return rows

    async def _sliced(
        self, model: Model, job: PredictJob, on_over: Callable[[], None]
    ) -> Prediction:
        assert model.scheduler is not None
        completion = _Completion(on_over)
        try:
            request = self._request(model, job, completion)
            model.scheduler.accept_sequences(request)
        except BaseException:
            on_over()
            raise
        try:
            self._batch_loop.notice()
            rows = await completion.done
        finally:
            completion.done.cancel()  # a late failure is no news to a caller that has left
            request.cancel()
        assert request.y is not None
        assert request.plan is not None
        y, missing = model.take_apart(request.y)
        lengths = _reply_lengths(job)
        if missing is not None:
            is_given = missing == 0
            y, lengths = y[is_given], run_sums(is_given, lengths).astype(np.int32)
        prediction = Prediction(
            y,
            lengths,
            queue_ns=rows.start_ns - job.arrival_ns,
            compute_ns=rows.compute_ns,
        )
        prediction.finals = request.plan.finals
        return prediction

    def _request(self, model: Model, job: PredictJob, responder: _Completion) -> Request:
        kernel = model.kernel
        assert kernel is not None
        initial = finals = None
        if job.initial is not None:
            initial = model.imported(job.initial)
        if job.with_state:
            finals = {
                state.name: np.empty((job.lengths.size, *state.shape), state.dtype)
                for state in model.spec.states
            }
        lengths = job.lengths.astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        request = Request(
            job.x,
            np.full(lengths.size, -1),
            responder,
            height=lengths.size if job.last_only else len(job.x),
            arrival_ns=job.arrival_ns,
            lengths=lengths,
            firsts=starts,
            outs=None if job.last_only else starts,
            last_only=job.last_only,
        )
        groups = groups_of(job.lengths, model.limits, kernel.cost)
        request.plan = Plan(groups, lengths.size, initial, finals)
        return request

    async def _whole(self, model: Model, job: PredictJob) -> Prediction:
        """Runs one sequence after another, so that padding and memory stay bounded."""
        kernel = model.sequences
        assert kernel is not None
        ys, ends, queue_ns, compute_ns = [], [], 0, 0
        for i, x in enumerate(np.split(job.x, np.cumsum(job.lengths)[:-1])):
            states = kernel.layout.initial
            if job.initial is not None:
                states = {name: each[i : i + 1] for name, each in job.initial.items()}
            work = functools.partial(_run_sequence, kernel, x, states)
            try:
                run = await self._batch_loop.executor.in_thread(work)
            except KernelError as error:
                raise ModelError(_failed(model, i, len(x))) from error
            model.metrics.batch(1, len(x), 0, run.compute_ns)
            ys.append(run.y[-1:] if job.last_only else run.y)
            ends.append(run.states)
            queue_ns = queue_ns or max(0, run.start_ns - job.arrival_ns)
            compute_ns += run.compute_ns
        lengths = np.array([len(y) for y in ys], np.int32)
        finals = {
            each.name: np.concatenate([end[each.name] for end in ends])
            for each in model.spec.states
        }
        return Prediction(np.concatenate(ys), lengths, finals, queue_ns, compute_ns)


class _Run(NamedTuple):
    """What the run of one sequence gave, and when it began and how long it took."""

    y: Output
    states: States
    start_ns: int
    compute_ns: int


def _run_sequence(kernel: SequenceKernel, x: Input, states: States) -> _Run:
    """Runs one sequence. Raises KernelError."""
    start_ns = time.monotonic_ns()
    y, after = kernel.run(x, states)
    return _Run(y, after, start_ns, time.monotonic_ns() - start_ns)


def _reply_lengths(job: PredictJob) -> npt.NDArray[np.int32]:
    return np.ones_like(job.lengths) if job.last_only else job.lengths


def _failed(model: Model, i: int, length: int) -> str:
    text = f"the model failed on sequence {i}, which has {length} rows"
    return text if model.spec.states else f"{text}: its network may need more rows, or other values"


def _check_alone(count: int, limit: int, what: str) -> None:
    """Refuses what would not fit even into an empty queue."""
    if count > limit:
        raise TooLong(
            f"{count} {what}, at most {limit}: send them as several calls",
            field="lengths",
            metadata={f"{what}_max": str(limit)},
        )
