"""Owns what a session has sent and what of it counts: numbers, unfinished steps, the replay log.

Pure: no I/O, no clock. Who holds the session's turn sends next() until it is None, and tells here
what came of it.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final

from lstmserve.client.job import Claim, Job
from lstmserve.client.packing import Piece
from lstmserve.client.records import Floats, ModelInfo, Rows
from lstmserve.client.retries import is_transient
from lstmserve.errors import LstmServeError
from lstmserve.wire.v1 import lstm_pb2 as wire

_NOTHING: Final = Claim()
_NUMBER_TAKEN: Final = ("STEP_SUPERSEDED", "STEP_PAYLOAD_MISMATCH")


class Remedy(Enum):
    """What helps after an error."""

    NONE = 0
    WAIT = 1  # and send next() again
    GO_ON = 2  # next() is another one now
    REOPEN = 3  # the session is lost, and the log has all of it


class Ledger:
    """Of one session handle. `replay_steps_max` is the log's length, 0: nothing is kept.

    A step that is durable stays in the log: a store may fail over to a copy that is behind it.
    """

    def __init__(self, model: ModelInfo, replay_steps_max: int) -> None:
        self.model = model
        self.step_count = 0  # the last step that was ever answered
        self.durable_step = 0
        self.session = wire.Session()
        self._cursor = 0  # the last step that the server has, as far as is known
        self._log: deque[Piece] = deque(maxlen=replay_steps_max)
        self._jobs: deque[Job] = deque()  # not all applied
        self._repeatable: list[Job] = []  # begun by earlier calls, and nobody has all their y
        self._claim = _NOTHING  # of the call
        self._origin: wire.State | None = None

    @property
    def replay_steps_max(self) -> int:
        """The log's length."""
        return self._log.maxlen or 0

    def begin_life(self, session: wire.Session, origin: wire.State | None) -> None:
        """It was opened; `origin` is the state it started from, without h: zeros; None: unknown."""
        self.session = session
        self.step_count = self._cursor = session.step
        self.durable_step = session.durable_step
        self._origin = origin
        self._log.clear()
        self._jobs.clear()
        self._repeatable = []

    def reopened(self, session: wire.Session) -> None:
        """It was lost, and opened again where it had begun: the log is to be sent."""
        self.session = session
        self.durable_step = session.durable_step
        self._cursor = session.step
        for job in self._jobs:
            job.doubts = 0  # whatever was applied is gone with the life before

    @property
    def origin(self) -> wire.State:
        """What to open a lost session with."""
        assert self._origin is not None
        return self._origin

    def begin(self, rows: Rows, last_only: bool) -> Claim:
        """A call wants this. What an earlier call left without its y comes first in line,

        and where it is the same it is what this call wants: repeated, it counts once.
        """
        claim = self._claim = Claim()
        for job in self._repeatable:
            if not job.is_repeatable:
                continue
            count = job.overlap(rows, last_only)
            if not count:
                break
            claim.parts.append((job, count))
            if count == rows.length:
                return claim
            rows = rows.part(count, rows.length)
        job = Job(self.model, rows, last_only)
        self._jobs.append(job)
        claim.parts.append((job, rows.length))
        self._repeatable = claim.jobs
        return claim

    def next(self) -> Piece | None:
        """The step to send, which from now on may have been applied; None: all is answered.

        First what the server has lost, then what an earlier call left unfinished.
        """
        if self._cursor < self.step_count:
            return self._log[self._cursor + 1 - self._log[0].number]
        if not self._jobs:
            return None
        job = self._jobs[0]
        job.doubts += 1
        return Piece(self._cursor + 1, job.pieces[len(job.ys)], job.last_only)

    def applied(self, piece: Piece, y: Floats, durable_step: int) -> None:
        """Its reply came: y [length, O], or [1, O] with last_only."""
        self._cursor = piece.number
        if piece.number > self.step_count:
            self.step_count = piece.number
            self._log.append(piece)
            job = self._jobs[0]
            job.doubts = 0
            job.ys.append(y)
            if len(job.ys) == len(job.pieces):
                self._jobs.popleft()
        self.durable_step = max(self.durable_step, durable_step)

    def failed(self, piece: Piece, error: LstmServeError) -> Remedy:
        """Its error came. May raise the numbers to what the server has."""
        is_replay = piece.number <= self.step_count
        if error.applied is False and not is_replay:
            self._jobs[0].doubts -= 1
        if error.reason == "SESSION_LOST":
            return self.lost(None)
        if error.reason == "STEP_GAP":
            return self.lost(int(error.metadata["expected_step"]) - 1)
        if error.reason in _NUMBER_TAKEN:
            last_step = int(error.metadata.get("last_step", piece.number))
            if is_replay and error.reason == "STEP_SUPERSEDED" and last_step <= self.step_count:
                self._cursor = last_step  # the gap was said of an older copy
                return Remedy.GO_ON
            self._overtaken(piece, error, last_step)
        elif is_transient(error):
            return Remedy.WAIT
        if is_replay or error.applied is None or self._jobs[0] in self._claim.jobs:
            return Remedy.NONE
        self._jobs.popleft().cut_short()  # an earlier call's, which was told of a doubt
        return Remedy.GO_ON

    def lost(self, last_step: int | None) -> Remedy:
        """The server has no step after `last_step`; None: it does not know the session."""
        if last_step is None:
            return Remedy.REOPEN if self._reaches_origin() else Remedy.NONE
        return Remedy.GO_ON if self._rewind(last_step + 1) else Remedy.NONE

    def explain(self, error: LstmServeError) -> LstmServeError:
        """The error that the call ends with, with what it means for what the call wants."""
        if error.reason not in _NUMBER_TAKEN:  # of those it is known
            error.applied = None if any(job.has_begun for job in self._claim.jobs) else False
        return error

    def end(self) -> None:
        """The call ends. What may have been applied and has not been taken is left to the next."""
        while self._jobs and not self._jobs[-1].has_begun:
            self._jobs.pop()
        if self._jobs:
            self._repeatable = list(dict.fromkeys([*self._repeatable, *self._jobs]))
        self._claim = _NOTHING

    def _reaches_origin(self) -> bool:
        if self._origin is None or not self._log.maxlen:
            return False
        first = self._log[0].number if self._log else self.step_count + 1
        return first == self._origin.step + 1

    def _rewind(self, expected_step: int) -> bool:
        """Whether what the server expects is at hand."""
        first = self._log[0].number if self._log else self.step_count + 1
        if not first <= expected_step <= self.step_count + 1:
            return False
        self._cursor = expected_step - 1
        return True

    def _overtaken(self, piece: Piece, error: LstmServeError, last_step: int) -> None:
        """The server has steps that are not this handle's, or whose reply it did not keep."""
        is_others = piece.number <= self.step_count or error.reason == "STEP_PAYLOAD_MISMATCH"
        if is_others or (self._jobs[0].doubts == 1 and last_step > piece.number):
            error.applied = None if any(job.ys for job in self._jobs) else False
        self.step_count = self._cursor = max(self.step_count, last_step)
        self._log.clear()
        self._origin = None
        for job in self._jobs:
            job.forget()
