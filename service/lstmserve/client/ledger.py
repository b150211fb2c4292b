"""What a session has sent and what of it counts: step numbers, unfinished steps, the replay log.

Pure: no I/O, no clock. Whoever holds the session's lock sends next() until it is None, and reports
each outcome by applied() or failed().
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final, Self

import numpy as np

from lstmserve.client.arrays import StepInput
from lstmserve.client.packing import NumberedStep, StepResult, split
from lstmserve.client.records import ModelInfo
from lstmserve.client.retries import is_transient
from lstmserve.errors import LstmServeError
from lstmserve.rows import Rows
from lstmserve.wire.v1 import lstm_pb2 as wire


class Recovery(Enum):
    """What helps after an error."""

    NONE = 0
    WAIT = 1  # and send next() again
    CONTINUE = 2  # next() is another step now
    REOPEN = 3  # the session is lost, and the log has all of it


class Job:
    """One call's rows, as pieces that become one numbered step each; a server keeps their replies.

    A job outlives its call: while the outcome of a piece is unknown, the next call sends it again.
    """

    __slots__ = ("claims", "last_only", "pieces", "rows", "taken", "unknown", "ys")

    def __init__(self, model: ModelInfo, rows: StepInput, last_only: bool) -> None:
        self.rows = rows
        self.last_only = last_only
        self.pieces = split(model, rows, last_only)
        self.ys: list[Rows] = []  # of the pieces that were applied, each [length] or less
        self.unknown = 0  # attempts at the next piece that may have been applied
        self.taken = 0  # rows whose y a caller has
        self.claims = 0  # callers that are still to take y, which no other caller gets

    @property
    def has_begun(self) -> bool:
        """Whether any of it may have been applied."""
        return bool(self.unknown or self.ys)

    @property
    def is_repeatable(self) -> bool:
        """Whether some of it may have been applied whose y no caller has or claims."""
        return self.has_begun and not self.claims and self.taken < self.rows.length

    def forget(self) -> None:
        """Drops what is known of it, as none of it will be sent again."""
        self.unknown = 0
        self.ys = []

    def cut_short(self) -> None:
        """Sends no more of it; y of what was applied can still be taken."""
        self.unknown = 0
        self.pieces = self.pieces[: len(self.ys)]
        self.rows = self.rows.part(0, sum(piece.length for piece in self.pieces))

    def overlap(self, rows: StepInput, last_only: bool) -> int:
        """How many of its rows without a taken y are the first ones of `rows`; 0: they differ."""
        if self.last_only or last_only:
            is_same = self.last_only == last_only and self.rows[:3] == rows[:3]
            return rows.length if is_same else 0
        count = min(rows.length, self.rows.length - self.taken)
        mine, theirs = self.rows.part(self.taken, self.taken + count), rows.part(0, count)
        return count if mine == theirs else 0

    def take(self, count: int) -> Rows:
        """The outputs of the next rows [count], or [1] with last_only, once all were applied.

        Only a session's first rows have none, so those that have are the last ones of the job.
        """
        start, self.taken = self.taken, self.taken + count
        if self.last_only:
            return self.ys[-1]
        y = self.ys[0] if len(self.ys) == 1 else np.concatenate(self.ys)
        lacking = self.rows.length - len(y)
        return y[max(0, start - lacking) : max(0, self.taken - lacking)]


class PendingOutput:
    """The y that one call is to get: some rows of each of its jobs, in order.

    take() is for after all were applied. From claim() to the end of `with` no other call gets what
    has not been taken.
    """

    __slots__ = ("_claimed", "parts")

    def __init__(self) -> None:
        self.parts: list[tuple[Job, int]] = []
        self._claimed: list[Job] = []

    def claim(self) -> Self:
        """Keeps the y from the next holder of the lock, so it must be called under the lock."""
        self._claimed = self.jobs
        for job in self._claimed:
            job.claims += 1
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for job in self._claimed:
            job.claims -= 1

    @property
    def jobs(self) -> list[Job]:
        """The jobs whose y has not been taken."""
        return [job for job, _ in self.parts]

    def take(self, count: int) -> Rows:
        """The outputs of its next rows [count], or [1] with last_only; the caller owns them.

        There are fewer where a window was not whole.
        """
        ys = []
        while count:
            job, here = self.parts.pop(0)
            if here > count:
                self.parts.insert(0, (job, here - count))
            ys.append(job.take(min(here, count)))
            count -= min(here, count)
        return ys[0] if len(ys) == 1 else np.concatenate(ys)


_NO_OUTPUT: Final = PendingOutput()
_NUMBER_TAKEN: Final = ("STEP_SUPERSEDED", "STEP_PAYLOAD_MISMATCH")


class Ledger:
    """The steps of one session handle. `replay_steps_max` is the log's length, 0: there is no log.

    A durable step stays in the log, because a store may fail over to an older copy.
    """

    def __init__(self, model: ModelInfo, replay_steps_max: int) -> None:
        self.model = model
        self.step_count = 0  # the last step that was ever answered
        self.durable_step = 0
        # That the window lacks after that step; None: not known before the first answer.
        self.missing_rows: int | None = None if model.waits else 0
        self.session = wire.Session()
        self._cursor = 0  # the last step that the server has, as far as is known
        self._log: deque[NumberedStep] = deque(maxlen=replay_steps_max)
        self._jobs: deque[Job] = deque()  # those that are not wholly applied
        self._repeatable: list[Job] = []  # begun by earlier calls, some y not taken
        self._output = _NO_OUTPUT  # of the current call
        self._origin: wire.State | None = None

    @property
    def replay_steps_max(self) -> int:
        """The log's length."""
        return self._log.maxlen or 0

    def begin_life(self, session: wire.Session, origin: wire.State | None) -> None:
        """The session was opened from `origin`; without tensors that is the model's initial state,
        None is unknown."""
        self.session = session
        self.step_count = self._cursor = session.step
        self.durable_step = session.durable_step
        if self.model.waits:
            is_new = origin is not None and not origin.tensors
            self.missing_rows = self.model.window if is_new else None
        self._origin = origin
        self._log.clear()
        self._jobs.clear()
        self._repeatable = []

    def reopened(self, session: wire.Session) -> None:
        """The lost session was opened again at its origin: the log is sent next."""
        self.session = session
        self.durable_step = session.durable_step
        self._cursor = session.step
        for job in self._jobs:
            job.unknown = 0  # what was applied is gone with the former incarnation

    @property
    def origin(self) -> wire.State:
        """What to open a lost session with."""
        assert self._origin is not None
        return self._origin

    def begin(self, rows: StepInput, last_only: bool) -> PendingOutput:
        """A call wants these rows stepped.

        What earlier calls left without taking its y comes first; where its rows are these rows,
        the call gets that y, so that a repeated step counts once.
        """
        output = self._output = PendingOutput()
        for job in self._repeatable:
            if not job.is_repeatable:
                continue
            count = job.overlap(rows, last_only)
            if not count:
                break
            output.parts.append((job, count))
            if count == rows.length:
                return output
            rows = rows.part(count, rows.length)
        job = Job(self.model, rows, last_only)
        self._jobs.append(job)
        output.parts.append((job, rows.length))
        self._repeatable = output.jobs
        return output

    def next(self) -> NumberedStep | None:
        """The step to send, which may be applied from now on; None: all are answered.

        First come the steps that the server has lost, then those an earlier call left unfinished.
        """
        if self._cursor < self.step_count:
            return self._log[self._cursor + 1 - self._log[0].number]
        if not self._jobs:
            return None
        job = self._jobs[0]
        job.unknown += 1
        return NumberedStep(self._cursor + 1, job.pieces[len(job.ys)], job.last_only)

    def applied(self, step: NumberedStep, result: StepResult) -> None:
        """The step was answered with that result."""
        self._cursor = step.number
        self.missing_rows = result.missing_rows
        if step.number > self.step_count:
            self.step_count = step.number
            self._log.append(step)
            job = self._jobs[0]
            job.unknown = 0
            job.ys.append(result.y)
            if len(job.ys) == len(job.pieces):
                self._jobs.popleft()
        self.durable_step = max(self.durable_step, result.durable_step)

    def failed(self, step: NumberedStep, error: LstmServeError) -> Recovery:
        """The step ended with `error`. May raise the numbers to those of the server."""
        is_replay = step.number <= self.step_count
        if error.applied is False and not is_replay:
            self._jobs[0].unknown -= 1
        if error.reason == "SESSION_LOST":
            return self.lost(None)
        if error.reason == "STEP_GAP":
            return self.lost(int(error.metadata["expected_step"]) - 1)
        if error.reason in _NUMBER_TAKEN:
            last_step = int(error.metadata.get("last_step", step.number))
            if is_replay and error.reason == "STEP_SUPERSEDED" and last_step <= self.step_count:
                self._cursor = last_step  # an older copy had reported the gap
                return Recovery.CONTINUE
            self._overtaken(step, error, last_step)
        elif is_transient(error):
            return Recovery.WAIT
        if is_replay or error.applied is None or self._jobs[0] in self._output.jobs:
            return Recovery.NONE
        self._jobs.popleft().cut_short()  # of an earlier call, which ended with applied=None
        return Recovery.CONTINUE

    def lost(self, last_step: int | None) -> Recovery:
        """The server has no step after `last_step`; None: it does not know the session."""
        if last_step is None:
            return Recovery.REOPEN if self._reaches_origin() else Recovery.NONE
        return Recovery.CONTINUE if self._rewind(last_step + 1) else Recovery.NONE

    def explain(self, error: LstmServeError) -> LstmServeError:
        """The error that the call ends with, `applied` set for all rows that the call wants."""
        if error.reason not in _NUMBER_TAKEN:  # _overtaken() has set it for those
            error.applied = None if any(job.has_begun for job in self._output.jobs) else False
        return error

    def end(self) -> None:
        """The call ends. The next call finishes what may have been applied and was not taken."""
        while self._jobs and not self._jobs[-1].has_begun:
            self._jobs.pop()
        if self._jobs:
            self._repeatable = list(dict.fromkeys([*self._repeatable, *self._jobs]))
        self._output = _NO_OUTPUT

    def _reaches_origin(self) -> bool:
        if self._origin is None or not self._log.maxlen:
            return False
        first = self._log[0].number if self._log else self.step_count + 1
        return first == self._origin.step + 1

    def _rewind(self, expected_step: int) -> bool:
        """Goes back to the step that the server expects; False: the log does not have it."""
        first = self._log[0].number if self._log else self.step_count + 1
        if not first <= expected_step <= self.step_count + 1:
            return False
        self._cursor = expected_step - 1
        return True

    def _overtaken(self, step: NumberedStep, error: LstmServeError, last_step: int) -> None:
        """The server has steps of another client, or of ours whose reply it did not keep."""
        is_others = step.number <= self.step_count or error.reason == "STEP_PAYLOAD_MISMATCH"
        if is_others or (self._jobs[0].unknown == 1 and last_step > step.number):
            error.applied = None if any(job.ys for job in self._jobs) else False
        self.step_count = self._cursor = max(self.step_count, last_step)
        self._log.clear()
        self._origin = None
        for job in self._jobs:
            job.forget()
