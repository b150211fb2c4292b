"""Joins the steps of every dialect: those that arrive together become one request of the engine.

A dialect finds each step's session and reads its input. This module checks the steps, counts them
against their tenants' limits and the budget of bytes, submits them, and answers them from the
request's outcome. It must not know how a dialect's messages look.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lstmserve.engine import Engine, Model
from lstmserve.engine.arrays import Input, Output
from lstmserve.engine.errors import ServeError
from lstmserve.engine.scheduling.work import Applied, Request
from lstmserve.engine.table import NEVER_NS, SessionTable
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.codec import check_finite, is_finite
from lstmserve.server.observe.counters import ModelMetrics
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import Lease
from lstmserve.server.status import code, reason

JOINED_BYTES_MAX = 16 << 10  # a longer input is no part of others' memory
NO_INPUT: Input = np.zeros(0, np.float32)


class AppliedStep(NamedTuple):
    """A step's outcome: its number, y, the session's last step in a store.

    y are T rows of the model's outputs, or one. Where sessions wait for a whole window, y has none
    of the time steps that lack rows, and `missing_rows` says how many the window lacks after the
    step. `start_ns`, when its batch started, is on the engine's clock.
    """

    number: int
    y: Output
    missing_rows: int
    durable_step: int
    start_ns: int
    compute_ns: int
    is_replayed: bool
    model: Model


class PendingStep(ABC):
    """One step of a session, from its arrival to its answer.

    Its `lease` covers the bytes of its message and its reply.
    """

    __slots__ = (
        "arrival_ns",
        "deadline_ns",
        "is_counted",
        "last_only",
        "lease",
        "method",
        "number",
        "place",
        "reply_bytes",
        "request",
        "row",
        "tenant",
        "x",
    )

    def __init__(self, tenant: Tenant, arrival_ns: int, method: str) -> None:
        self.method = method  # the label of its counts
        self.tenant = tenant
        self.arrival_ns = arrival_ns
        self.lease: Lease  # once it was admitted
        # These once its message was read.
        self.row: int  # of the session table
        # T rows of the model's inputs, not checked for NaN; empty once the engine has it.
        self.x: Input = NO_INPUT
        self.number = 0  # 0: the client gave none
        self.last_only = False
        self.is_counted = False  # the tenant's rate has paid for its rows already
        self.reply_bytes = 0  # of its whole answer
        self.deadline_ns = 0  # of the start of compute; 0: none
        # Which row of which request it is, while the engine has it.
        self.request: Request | None = None
        self.place = 0

    @property
    @abstractmethod
    def is_over(self) -> bool:
        """Whether its call has ended, so that the caller would not read an answer."""

    @abstractmethod
    def applied(self, step: AppliedStep) -> None:
        """Answers it. Must not raise."""

    @abstractmethod
    def failed(self, error: Exception, model: Model | None) -> None:
        """Answers that the step was not applied, and counts that as the model's failure.

        `model` is None where the engine did not accept the step. It must not raise.
        """

    def drop_input(self) -> None:
        """Drops the input of a refused step, whose answer may have to wait in a stream."""
        self.x = NO_INPUT

    def cancel(self) -> None:
        """Notes that its call has ended: the step never runs unless its last slice has been
        scheduled."""
        request, self.request = self.request, None
        if request is not None:
            request.cancel_row(self.place)


class Steps:
    """Submits and answers the steps of all dialects of a port."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics
        self._counters: dict[Model, ModelMetrics] = {}
        self._changes = -1  # of the models that those are of

    def accept(self, steps: Sequence[PendingStep]) -> None:
        """Submits steps that arrived together; those of one session run in this order.

        Every step is answered: at once where it cannot be accepted.
        """
        if len(steps) == 1:
            self._accept(steps)
            return
        for group in _groups(steps, self._engine.table):
            self._accept(group)

    def _accept(self, steps: Sequence[PendingStep]) -> None:
        """Submits the steps of one group."""
        model = self._engine.model_of(steps[0].row)
        x = steps[0].x if len(steps) == 1 else np.concatenate([step.x for step in steps])
        is_good, ahead = is_finite(x), dict[int, int]()
        cells = model.spec.cells
        good = [each for each in steps if self._is_admitted(each, cells, ahead, is_checked=is_good)]
        if not good:
            return
        if len(good) < len(steps):
            x = np.concatenate([step.x for step in good])
        self._submit(model, good, x)

    def _is_admitted(
        self, step: PendingStep, cells: int, ahead: dict[int, int], *, is_checked: bool
    ) -> bool:
        """Whether it may be submitted: then it counts as pending. Else it has been answered, or
        is over.

        `cells` are the rows that the network reads for one time step; `ahead` has the last number
        of each limited session's steps before it in the list; `is_checked`: its input is known to
        be finite.
        """
        tenant, table = step.tenant, self._engine.table
        if step.is_over:  # the error of a step before it has ended their stream
            return False
        try:
            if not is_checked:
                check_finite(step.x, "x")
            if tenant.is_limited and not step.is_counted:
                applied = table.step.item(step.row)
                accepted = ahead.get(step.row, table.accepted(step.row))
                number = step.number or accepted + 1
                now_ns = self._engine.monotonic_ns()  # the step may have waited for a store
                tenant.check_step(number, applied, accepted, len(step.x), now_ns)
                if number == accepted + 1:
                    ahead[step.row] = number
            step.lease.grow(step.x.nbytes * cells + step.reply_bytes)
        except ServeError as error:
            refuse(step, error)
            return False
        tenant.pending_steps += 1
        step.lease.hold()
        return True

    def _submit(self, model: Model, steps: Sequence[PendingStep], x: Input) -> None:
        request = _request(steps, x, _Answers(self, model, steps))
        for place, step in enumerate(steps):
            step.request, step.place = request, place
        try:
            self._engine.accept(model, request)
        except ServeError as error:
            for step in steps:  # the cause may be a single one
                if len(steps) == 1 or step.is_over:
                    self._refuse_held(step, error)
                else:
                    self._submit(model, [step], step.x)
            return
        for step in steps:
            step.x = NO_INPUT
            if not request.inputs_left and step.request is not None:
                step.lease.resize(step.reply_bytes)  # it joined a pending step of its number

    def _refuse_held(self, step: PendingStep, error: ServeError) -> None:
        step.request = None
        step.tenant.pending_steps -= 1
        step.lease.release()
        refuse(step, error)

    def count_failed(self, method: str, error: Exception, model: Model | None = None) -> None:
        """Counts a failed step as the model's; None where the engine did not accept it."""
        counters = self._metrics.model("", 0) if model is None else self._counters_of(model)
        counters.failed(method, code(error), reason(error))

    def count_applied(
        self, model: Model, steps: Sequence[PendingStep], start_ns: int, *, is_replayed: bool
    ) -> None:
        """Counts steps that started together at `start_ns` and have just been applied."""
        counters, now_ns = self._counters_of(model), self._engine.monotonic_ns()
        if is_replayed:
            counters.replayed(len(steps))
        for method, group in itertools.groupby(steps, key=lambda each: each.method):
            arrivals_ns = [step.arrival_ns for step in group]
            counters.steps_of(method, arrivals_ns, start_ns, now_ns)

    def _counters_of(self, model: Model) -> ModelMetrics:
        registry, metrics = self._engine.registry, self._metrics
        if self._changes != registry.changes:
            self._changes = registry.changes
            self._counters = {each: metrics.model(each.name, each.version) for each in registry}
        found = self._counters.get(model)
        return metrics.model(model.name, model.version) if found is None else found


class _Answers:
    """The responder of a request of pending steps."""

    def __init__(self, owner: Steps, model: Model, steps: Sequence[PendingStep]) -> None:
        self._owner = owner
        self._model = model
        self._steps: list[PendingStep | None] = list(steps)  # None: answered

    def applied(self, request: Request, rows: Applied) -> None:
        steps = [self._take(place) for place in rows.places]
        waiting = [step for step in steps if not step.is_over]
        start_ns, compute_ns, is_replayed = rows.start_ns, rows.compute_ns, rows.is_replayed
        if is_replayed:
            (step,) = steps
            start_ns = step.arrival_ns  # the request's is that of another step
        model = self._model
        waits = model.spec.waits
        if waiting:
            self._owner.count_applied(model, waiting, start_ns, is_replayed=is_replayed)
        for step, number, durable in zip(steps, rows.numbers, rows.durable_steps, strict=True):
            if not step.is_over:
                y, missing_rows = request.output(step.place), 0
                if waits:
                    y, missing_rows = _given(model, y)
                outcome = number, y, missing_rows, durable, start_ns, compute_ns, is_replayed, model
                step.applied(AppliedStep(*outcome))

    def failed(self, request: Request, place: int, error: ServeError) -> None:
        step = self._take(place)
        if not step.is_over:
            step.failed(error, self._model)

    def _take(self, place: int) -> PendingStep:
        """Takes the step back from the engine, which is done with it."""
        step, self._steps[place] = self._steps[place], None
        assert step is not None
        step.request = None
        step.tenant.pending_steps -= 1
        step.lease.release()
        return step


def _given(model: Model, results: Output) -> tuple[Output, int]:
    """The outputs that a step gives, from the results [T, ...] of its time steps, and how many rows
    the window lacks after it; the model waits for whole windows."""
    y, missing = model.take_apart(results)
    assert missing is not None
    return y[missing == 0], missing.item(-1)


def refuse(step: PendingStep, error: Exception) -> None:
    """Answers a step that the engine did not accept."""
    step.drop_input()
    if not step.is_over:
        step.failed(error, None)


def _groups(steps: Sequence[PendingStep], table: SessionTable) -> Iterator[list[PendingStep]]:
    """Steps that may be one request: of one model, all with last_only or none.

    A long input is alone, so that it is not copied. A step that will wait behind another one of its
    session is alone too: a request keeps the inputs of all its rows until the last one has run.
    """
    groups: dict[tuple[int, bool], list[PendingStep]] = {}
    grouped: set[int] = set()  # sessions
    for step in steps:
        if step.row in grouped:  # what comes before it in its session is accepted first
            yield from groups.values()
            groups.clear()
            grouped.clear()
        if step.x.nbytes > JOINED_BYTES_MAX or table.pending.item(step.row):
            yield [step]
        else:
            groups.setdefault((table.model.item(step.row), step.last_only), []).append(step)
            grouped.add(step.row)
    yield from groups.values()


def _request(steps: Sequence[PendingStep], x: Input, responder: _Answers) -> Request:
    lengths = [len(step.x) for step in steps]
    is_single = len(x) == len(steps)
    last_only, height = steps[0].last_only, len(x)
    firsts = outs = None
    if not is_single:
        firsts = np.cumsum(lengths, dtype=np.int64) - np.array(lengths, np.int64)
        if last_only:
            height = len(steps)
        else:
            outs = firsts
    numbers = [step.number for step in steps]
    deadlines_ns = [min(step.deadline_ns, NEVER_NS) for step in steps]  # a client may send any
    return Request(
        x,
        [step.row for step in steps],
        responder,
        arrival_ns=steps[-1].arrival_ns,
        height=height,
        numbers=numbers if any(numbers) else None,
        lengths=None if is_single else lengths,
        firsts=firsts,
        outs=outs,
        last_only=last_only,
        deadlines_ns=deadlines_ns if any(deadlines_ns) else None,
        is_distinct=True,
    )
