"""Owns exactly-once: what a numbered step means to its session. Pure.

A session answers one number from its record, the last applied one. A number that is still pending
is joined; an old one, a gap and another input under the same number are told apart, because each
asks something else of the client.
"""

from __future__ import annotations

import numpy as np

from lstmserve.config import Config
from lstmserve.engine.arrays import Digests, Index, Output
from lstmserve.engine.errors import (
    Overloaded,
    ServeError,
    StepGap,
    StepPayloadMismatch,
    StepSuperseded,
)
from lstmserve.engine.schedule.step import Step
from lstmserve.engine.schedule.turns import SessionTurns
from lstmserve.engine.table import SessionTable

RETRY_S = 0.05


class Numbering:
    """Writes the table's `digest` and `replies`; knows who waits for somebody else's step."""

    def __init__(
        self, table: SessionTable, turns: SessionTurns, config: Config, output_size: int
    ) -> None:
        self._table = table
        self._output_size = output_size
        self._turns = turns
        self._config = config
        self._reply_bytes_max = config.reply_bytes_max
        self._followers: dict[tuple[int, int], list[Step]] = {}
        self._waiting: dict[int, int] = {}  # followers by row, where there are any
        self.waiting_steps = 0  # of all rows

    def accept(self, step: Step) -> bool:
        """Whether a numbered step is the next one and must run.

        If not, it was answered from the record (its sink was told), or has joined the pending step
        of its number: then it waits as a new one does, but without its input. Raises StepGap,
        StepSuperseded, StepPayloadMismatch, Overloaded.
        """
        table, row, number = self._table, step.row, step.number
        last = table.step.item(row)
        pending = table.pending.item(row)
        if number == last + pending + 1:
            return True
        if number > last + pending:
            due = last + pending + 1
            raise StepGap(
                f"step {number} came before step {due}: send step {due} first",
                metadata={"expected_step": str(due)},
            )
        if number > last:
            self._check_same(step, self._turns.pending_digest(row, number - last - 1))
            self.check_room(1)
            self.check_session(row, pending)
            step.join()
            self._followers.setdefault((row, number), []).append(step)
            self._waiting[row] = self._waiting.get(row, 0) + 1
            self.waiting_steps += 1
            return False
        if number < last or not table.digest[row]:
            raise _superseded(number, last)
        self._check_same(step, int(table.digest[row]))
        self._answer(step)
        return False

    def check_room(self, count: int) -> None:
        """Whether so many more steps may wait, repeats included. Raises Overloaded."""
        limit, pending = self._config.pending_steps_max, self._turns.pending_steps
        if pending + self.waiting_steps + count > limit:
            raise Overloaded(
                f"{pending + self.waiting_steps} steps are waiting, the limit is {limit} "
                "(--pending-steps-max): send this one again later",
                retry_s=RETRY_S,
            )

    def check_session(self, row: int, pending: int) -> None:
        """Whether one more may wait in the session, of which so many are pending, besides those
        that repeat them. Raises Overloaded."""
        limit, waiting = self._config.session_pending_max, pending + self._waiting.get(row, 0)
        if waiting >= limit:
            raise Overloaded(
                f"{waiting} steps of the session are waiting, the limit is {limit}: "
                "read its replies before you send more",
                retry_s=RETRY_S,
            )

    def save(self, row: int, digest: int, y: Output) -> None:
        """The step that was just applied, y [t, O]; 0 for one without a number, which has none."""
        self._table.digest[row] = digest
        if digest and 4 * y.size <= self._reply_bytes_max:
            self._table.replies.save(row, y)
        else:
            self._table.replies.forget(row)

    def save_rows(self, rows: Index, digests: Digests, y: Output) -> None:
        """save() of steps with one row of output each, y [N, O]."""
        self._table.digest[rows] = digests
        if 4 * self._output_size <= self._reply_bytes_max:
            self._table.replies.save_rows(rows, y)
        else:
            self._table.replies.forget_rows(rows)

    @property
    def has_followers(self) -> bool:
        """Whether anybody has joined a pending step."""
        return bool(self._followers)

    def is_followed(self, row: int) -> bool:
        """Whether somebody joined the session's first pending step: it must not be cancelled."""
        return (row, int(self._table.step[row]) + 1) in self._followers

    def applied(self, row: int) -> None:
        """The first pending step was applied and saved: those who joined it are answered."""
        if not self._followers:
            return
        number = self._table.step.item(row)
        for follower in self._take(row, number):
            try:
                self._answer(follower)
            except StepSuperseded as error:
                follower.tell_failed(error)

    def failed(self, row: int, number: int, error: ServeError) -> None:
        """A pending step was not applied; nor, then, are those who joined it."""
        for follower in self._take(row, number):
            follower.tell_failed(error)

    def check_integrity(self) -> None:
        """Who joined a pending step is counted, and holds no input."""
        waiting: dict[int, int] = {}
        for (row, number), followers in self._followers.items():
            assert followers, "an empty list of repeats is kept"
            last, pending = self._table.step.item(row), self._table.pending.item(row)
            assert last < number <= last + pending, "a repeat waits for no pending step"
            assert not any(len(each.x) for each in followers), "a repeat holds its input"
            waiting[row] = waiting.get(row, 0) + len(followers)
        assert waiting == self._waiting, "repeats are miscounted"
        assert self.waiting_steps == sum(waiting.values())

    def _take(self, row: int, number: int) -> list[Step]:
        """Those who joined that step; they do not wait any more."""
        followers = self._followers.pop((row, number), [])
        if followers:
            self.waiting_steps -= len(followers)
            self._waiting[row] -= len(followers)
            if not self._waiting[row]:
                del self._waiting[row]
        return followers

    def _check_same(self, step: Step, digest: int) -> None:
        if digest != step.digest:
            raise StepPayloadMismatch(
                f"step {step.number} was sent before with another input", field="step"
            )

    def _answer(self, step: Step) -> None:
        saved = self._table.replies.get(step.row, self._output_size)
        if saved is None:
            raise _superseded(step.number, int(self._table.step[step.row]))
        y = np.frombuffer(saved.y, np.float32).reshape(saved.length, -1)
        step.replay(y)
        step.durable_step = int(self._table.durable_step[step.row])
        step.tell_applied()


def _superseded(number: int, last: int) -> StepSuperseded:
    return StepSuperseded(
        f"step {number} was applied and its reply is no longer held; the last is {last}",
        metadata={"last_step": str(last)},
    )
