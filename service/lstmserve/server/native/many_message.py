"""Owns one StepMany message on its way: which of its sessions step, and what became of each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lstmserve.engine import Model
from lstmserve.engine.arrays import Index
from lstmserve.engine.errors import ServeError
from lstmserve.engine.scheduling.work import Applied, Request
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.native.cohort import Cohort
from lstmserve.server.pending_bytes import Lease
from lstmserve.wire.v1 import lstm_pb2 as pb

NOTHING = pb.StepManyRequest()  # in place of a request that is not needed any more


class ManyMessage:
    """The responder of its steps. `members` [n] are those of its sessions that step.

    Columns are arrays [N] over all its sessions, or None where the message has none.
    """

    def __init__(
        self, tenant: Tenant, cohort: Cohort, on_over: Callable[[ManyMessage], None]
    ) -> None:
        self.tenant = tenant
        self.cohort = cohort
        self._on_over = on_over
        self.lease: Lease  # once it was admitted
        self.request = NOTHING  # from when it was opened to when it is submitted
        self.size_bytes = 0  # to admit it with
        self.tag = 0
        self.last_only = False
        self.numbers: Index | None = None
        self.incarnations: Index | None = None
        self.lengths: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        self.are_single = False  # each of one row
        self.model: Model | None = None
        self.members: Index = np.zeros(0, np.int64)
        self.work: Request | None = None  # that the engine has accepted; it has y
        self.steps: list[int] = []  # numbers of the steps that were applied, by member; 0: none
        self.durable_steps: list[int] = []
        self.replayed: list[int] = []
        self.applied_count = 0
        self.queue_ns = 0  # the longest
        self.compute_ns = 0
        self.errors: dict[int, ServeError] = {}
        self.refusal: ServeError | None = None  # of the whole message

    def size(self) -> int:
        """As Message.size."""
        return self.size_bytes

    def read(self, request: pb.StepManyRequest) -> None:
        """Takes over the columns, which were checked."""
        self.last_only = request.last_only
        # A slice, which is a list, is read five times as fast as the field itself.
        if request.steps:
            self.numbers = np.array(request.steps[:], np.int64)
        if request.incarnations:
            self.incarnations = self.cohort.incarnations(request.incarnations[:])
        if request.lengths:
            self.lengths = np.array(request.lengths[:], np.int32)
            self.are_single = bool((self.lengths == 1).all())
        else:
            self.lengths = self.cohort.ones
            self.are_single = True

    def starts(self) -> Index:
        """Where each session's rows begin in x, [N]."""
        if self.are_single:
            return self.cohort.everyone
        starts: Index = np.cumsum(self.lengths, dtype=np.int64) - self.lengths
        return starts

    def number(self, i: int) -> int:
        """Of session i's step; 0 for one that has none."""
        return 0 if self.numbers is None else int(self.numbers[i])

    def incarnation(self, i: int) -> int:
        """That session i must have; 0 for any."""
        return 0 if self.incarnations is None else int(self.incarnations[i])

    def spread(self, values: list[int]) -> list[int]:
        """Of the members [n], over all sessions; 0 for the others."""
        if len(values) == len(self.cohort):
            return values
        spread = [0] * len(self.cohort)
        for i, value in zip(self.members.tolist(), values, strict=bool(values)):
            spread[i] = value
        return spread

    def keep(self, rows: Index, check: Callable[[int], None]) -> Index:
        """The rows of those members that pass the check; the others get their error."""
        is_good = np.ones(rows.size, np.bool_)
        for k, i in enumerate(self.members.tolist()):
            try:
                check(i)
            except ServeError as error:
                self.errors[i] = error.with_traceback(None)  # its frames hold the message
                is_good[k] = False
        self.members = self.members[is_good]
        return rows[is_good]

    def begin(self, work: Request) -> None:
        """Its steps go to the engine now."""
        self.work = work
        self.tenant.pending_steps += len(work)

    def give_up(self) -> None:
        """The engine refused all of them."""
        assert self.work is not None
        self.tenant.pending_steps -= len(self.work)
        self.work = None

    def applied(self, request: Request, rows: Applied) -> None:
        """As Responder.applied."""
        count = len(rows.places)
        if count == len(request):
            self.steps, self.durable_steps = rows.numbers, rows.durable_steps
        else:
            self._fill(len(request))
            for place, number, durable in zip(
                rows.places, rows.numbers, rows.durable_steps, strict=True
            ):
                self.steps[place], self.durable_steps[place] = number, durable
        if rows.is_replayed:
            self.replayed += self.members[rows.places].tolist()
        self.applied_count += count
        self.queue_ns = max(self.queue_ns, rows.start_ns - request.arrival_ns)
        self.compute_ns = max(self.compute_ns, rows.compute_ns)
        self._over(request)

    def failed(self, request: Request, place: int, error: ServeError) -> None:
        """As Responder.failed."""
        self._fill(len(request))
        self.errors[self.members.item(place)] = error
        self._over(request)

    def _fill(self, count: int) -> None:
        if not self.steps:
            self.steps, self.durable_steps = [0] * count, [0] * count

    def _over(self, request: Request) -> None:
        if request.left:
            return
        self.tenant.pending_steps -= len(request)
        self.lease.release()
        self.answer()

    def answer(self) -> None:
        """It is over, whatever became of its sessions."""
        self._on_over(self)

    def cancel(self) -> None:
        """The stream is gone."""
        self.lease.release()
        if self.work is not None:
            self.work.cancel()
