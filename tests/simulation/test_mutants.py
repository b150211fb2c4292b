"""The simulation sees what it is for: each planted fault of the product breaks some seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lstmserve.engine.errors import StoreUnavailable
from lstmserve.engine.lives import Lives
from lstmserve.engine.persist import records, residence, through
from lstmserve.engine.persist.behind import WriteBehind
from lstmserve.engine.schedule.numbering import Numbering
from lstmserve.engine.schedule.outcome import Outcome
from lstmserve.engine.session.sessions import Sessions
from lstmserve.store import lstm_states, version_of
from simulation.test_simulation import SEEDS
from simulation.world import simulate

Patch = pytest.MonkeyPatch


def no_compare_and_set(patch: Patch) -> None:
    """A step is written over whatever is there."""
    put = through.WriteThrough._put

    async def blind(self: Any, batch: Any, columns: Any, rows: Any, writes: Any) -> None:
        try:
            found = await self._store.load([write.key for write in writes])
        except StoreUnavailable:
            found = [None] * len(writes)
        there = [None if content is None else version_of(content) for content in found]
        writes = [
            dataclasses.replace(write, expected=version)
            for write, version in zip(writes, there, strict=True)
        ]
        await put(self, batch, columns, rows, writes)

    patch.setattr(through.WriteThrough, "_put", blind)


def no_epoch(patch: Patch) -> None:
    """A load claims nothing."""
    patch.setattr(residence, "replace", lambda record, **_: record)


def gap_from_a_cached_copy(patch: Patch) -> None:
    """The store is not asked before a refusal."""
    patch.setattr(Lives, "_may_mislead", lambda *_: False)


def no_dedupe(patch: Patch) -> None:
    """A repeated number is the next step."""
    patch.setattr(Numbering, "accept", lambda _self, _step: True)


def slot_released_twice(patch: Patch) -> None:
    """A session that leaves gives its slot back, and again."""
    release = Sessions._release

    def twice(self: Sessions, row: int) -> None:
        pool = self.model_of(row).pool
        assert pool is not None
        pool.give(np.array([self._table.slot[row]]))
        release(self, row)

    patch.setattr(Sessions, "_release", twice)


def h_and_c_swapped(patch: Patch) -> None:
    """A loaded session has h for c."""
    start = records.Records.start

    def swapped(self: Any, record: Any, model: Any) -> Any:
        h, c = (each.data for each in record.states)
        return start(self, dataclasses.replace(record, states=lstm_states(c, h)), model)

    patch.setattr(records.Records, "start", swapped)


def reply_not_stored(patch: Patch) -> None:
    """A record has the step, but not its reply."""
    last = through.WriteThrough._last

    def bare(*arguments: Any) -> Any:
        return last(*arguments)._replace(reply=None)

    patch.setattr(through.WriteThrough, "_last", bare)


def lost_reply_taken_for_stored(patch: Patch) -> None:
    """A step whose store reply was lost is acked."""
    put = through.WriteThrough._put

    async def trusting(self: Any, batch: Any, columns: Any, rows: Any, writes: Any) -> None:
        await put(self, batch, columns, rows, writes)
        batch.outcomes[batch.outcomes == Outcome.UNKNOWN] = Outcome.APPLIED

    patch.setattr(through.WriteThrough, "_put", trusting)


def durable_before_it_is_stored(patch: Patch) -> None:
    """Write-behind promises a step when it is on its way."""
    write = WriteBehind._write

    def early(self: Any, row: int, record: Any) -> Any:
        made = write(self, row, record)
        self._table.durable_step[row] = record.step
        return made

    patch.setattr(WriteBehind, "_write", early)


MUTANTS = [
    (no_compare_and_set, "through"),
    (no_epoch, "through"),
    (no_epoch, "behind"),
    (gap_from_a_cached_copy, "through"),
    (no_dedupe, "through"),
    (slot_released_twice, "through"),
    (h_and_c_swapped, "through"),
    (reply_not_stored, "through"),
    (lost_reply_taken_for_stored, "through"),
    (durable_before_it_is_stored, "behind"),
]


@pytest.mark.parametrize(("mutant", "mode"), MUTANTS)
def test_every_mutant_is_found(
    mutant: Callable[[Patch], None], mode: str, monkeypatch: Patch
) -> None:
    """Within the seeds of the short form, by the simulation alone."""
    mutant(monkeypatch)
    for seed in SEEDS:
        try:
            simulate(seed, mode)
        except Exception as error:
            print(f"{mutant.__name__}: seed {seed}, {str(error)[:200]}")
            return
    pytest.fail(f"{mutant.__name__} breaks none of {len(SEEDS)} seeds")
