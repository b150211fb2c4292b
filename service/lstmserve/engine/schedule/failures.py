"""Owns what a step that is not applied changes: nothing but the queue. Pure.

Its session is as it was; whoever waited behind it in the session ends not applied too.
"""

from __future__ import annotations

from collections.abc import Callable

from lstmserve.engine.errors import ServeError, SessionReplaced, StoreTimeout
from lstmserve.engine.schedule import verdicts
from lstmserve.engine.schedule.numbering import Numbering
from lstmserve.engine.schedule.outcome import Outcome
from lstmserve.engine.schedule.part import Part
from lstmserve.engine.schedule.queues import Entry, ReadyQueues
from lstmserve.engine.schedule.sequences import Sequences
from lstmserve.engine.schedule.step import Step
from lstmserve.engine.schedule.turns import SessionTurns
from lstmserve.engine.table import DETACHED, MOVED, NOT_STORED, SessionTable


class Failures:
    """`on_moved(row)` is called for a session that the store says another server has, or may."""

    def __init__(
        self,
        table: SessionTable,
        ready: ReadyQueues,
        turns: SessionTurns,
        numbering: Numbering,
        on_moved: Callable[[int], None],
    ) -> None:
        self._table = table
        self._ready = ready
        self._turns = turns
        self._numbering = numbering
        self._on_moved = on_moved

    def fail(self, entry: Entry, error: ServeError, now_ns: int) -> None:
        """Nothing of the entry happened; nor will anything of the steps that wait behind it."""
        if isinstance(entry, Part):
            self.fail_part(entry, error, now_ns)
        elif isinstance(entry, Sequences):
            self.fail_sequences(entry, error)
        else:
            self.fail_step(entry, error, now_ns)

    def verdict(self, row: int, outcome: int) -> ServeError | None:
        """Why a row's step is not applied, or None; drops what is stale here."""
        phase = int(self._table.phase[row])
        if phase == DETACHED:
            return SessionReplaced("the session was replaced while this step was waiting")
        if outcome in (Outcome.FENCED, Outcome.UNKNOWN) and phase != MOVED:
            self._on_moved(row)
        if outcome == Outcome.UNKNOWN:
            return StoreTimeout("the store's answer was lost: repeat the same step", retry_s=0.1)
        if phase == MOVED or outcome == Outcome.FENCED:
            return verdicts.fenced()
        return verdicts.failure(outcome)

    def fail_step(self, step: Step, error: ServeError, now_ns: int) -> None:
        """Nothing of the step happened; nor will anything of those that wait behind it."""
        reason = self._reason_behind(step.row, error)
        behind = self._turns.abandon(step.row, now_ns)
        self._ready.end(step)
        step.tell_failed(error)
        self._numbering.failed(step.row, step.number, error)
        self._fail_behind(behind, reason)

    def _reason_behind(self, row: int, error: ServeError) -> Callable[[Step], ServeError]:
        """What those are told who wait behind a step that failed; asked before its row is free."""
        table = self._table
        is_moved = bool(table.phase[row] == MOVED)
        is_alone = table.durable_step[row] == NOT_STORED
        return verdicts.behind(error, is_moved, is_alone, int(table.step[row]) + 1)

    def _fail_behind(self, behind: list[Step], reason_of: Callable[[Step], ServeError]) -> None:
        """In order."""
        for step in behind:
            reason = reason_of(step)
            step.tell_failed(reason)
            self._numbering.failed(step.row, step.number, reason)

    def fail_sequences(self, sequences: Sequences, error: ServeError) -> None:
        """All of them, those that were computed too: a Predict is whole or not at all."""
        self._turns.pending_sequences -= sequences.left
        self._ready.end_group(sequences)
        sequences.settle(error)

    def fail_part(self, part: Part, error: ServeError, now_ns: int) -> None:
        """The same for a block's rows."""
        for index, row in zip(part.indices, part.rows, strict=True):
            number = int(self._table.step[row]) + 1
            reason = self._reason_behind(int(row), error)
            behind = self._turns.abandon(int(row), now_ns)
            part.block.fail(int(index), error)
            self._numbering.failed(int(row), number, error)
            self._fail_behind(behind, reason)
        part.block.settle(part.rows.size)
