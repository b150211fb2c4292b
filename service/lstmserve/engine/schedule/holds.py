"""Owns sessions that stand still: their steps wait though their turn has come. Pure.

A step that is in flight when its session is held is settled as ever; none follows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lstmserve.engine.schedule.batch import Batch
from lstmserve.engine.schedule.part import Part
from lstmserve.engine.schedule.queues import Entry, ReadyQueues
from lstmserve.engine.schedule.sequences import Sequences
from lstmserve.engine.schedule.step import Step
from lstmserve.engine.table import SessionTable


@dataclass(slots=True, eq=False)
class Hold:
    """Of one session, also after it was detached; not of the next one in its row."""

    row: int
    life: int
    entry: Step | Part | None = None  # its first step, once its turn has come


class Holds:
    """Reads the table; writes nothing of it."""

    def __init__(self, table: SessionTable, ready: ReadyQueues) -> None:
        self._table = table
        self._ready = ready
        self._holds: dict[int, Hold] = {}
        self._in_flight: set[Batch] = set()
        self._on_rest: dict[Batch, list[Callable[[], None]]] = {}

    def hold(self, row: int, on_rest: Callable[[], None]) -> Hold:
        """From now on; on_rest() is called once no step of the session is in flight."""
        hold = self._holds[row] = Hold(row, self._table.life.item(row))
        for batch in self._in_flight:
            if _has(batch, row):
                self._on_rest.setdefault(batch, []).append(on_rest)
                return hold
        on_rest()
        return hold

    def release(self, hold: Hold) -> None:
        """Its steps have their turns again."""
        if self._holds.get(hold.row) is hold:  # else it ended, and another is held in its row
            del self._holds[hold.row]
            self._give_back(hold)

    def give_back(self) -> None:
        """Whatever waits here is in the queues again; the sessions are still held."""
        for hold in self._holds.values():
            self._give_back(hold)

    def _give_back(self, hold: Hold) -> None:
        entry, hold.entry = hold.entry, None
        if entry is not None:
            self._ready.push_again(entry)

    def let_through(self, entries: list[Entry]) -> list[Entry]:
        """Those whose turn it is, without the rows of held sessions."""
        if not self._holds:
            return entries
        return [left for entry in entries if (left := self._others(entry)) is not None]

    def _others(self, entry: Entry) -> Entry | None:
        if isinstance(entry, Sequences):
            return entry
        if isinstance(entry, Step):
            return None if self._keep(entry.row, entry) else entry
        block, indices = entry.block, entry.indices
        is_kept = [
            self._keep(row, Part(block, indices[i : i + 1]))
            for i, row in enumerate(entry.rows.tolist())
        ]
        if not any(is_kept):
            return entry
        others = indices[~np.array(is_kept)]
        return Part(block, others) if others.size else None

    def _keep(self, row: int, entry: Step | Part) -> bool:
        hold = self._holds.get(row)
        if hold is None or self._table.life.item(row) not in (hold.life, 0):
            return False
        assert hold.entry is None, "a session has two first steps"
        hold.entry = entry
        return True

    def begin(self, batch: Batch) -> None:
        """It is in flight."""
        self._in_flight.add(batch)

    def end(self, batch: Batch) -> None:
        """It is settled."""
        self._in_flight.discard(batch)
        for on_rest in self._on_rest.pop(batch, ()):
            on_rest()


def _has(batch: Batch, row: int) -> bool:
    if any(step.row == row for step in batch.steps):
        return True
    return any(bool((part.rows == row).any()) for part in batch.parts)
