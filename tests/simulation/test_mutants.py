"""The simulation finds what it is for: each planted fault of the product breaks some seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lstmserve.engine.persist import ownership, records
from lstmserve.engine.persist.write_behind import WriteBehind
from lstmserve.engine.persist.write_through import WriteThrough
from lstmserve.engine.scheduling import ordering
from lstmserve.engine.scheduling.ordering import Ordering
from lstmserve.engine.scheduling.work import Outcome
from lstmserve.engine.session.lifecycle import StoredLifecycle
from lstmserve.engine.session.live_sessions import LiveSessions
from lstmserve.engine.session.opening import IfExists
from lstmserve.engine.session.past_sessions import PastSessions
from lstmserve.engine.table import NOT_STORED, OPEN, TRUSTED
from lstmserve.store import StoreTimeout, Written, lstm_states, version_of
from simulation.world import simulate

Patch = pytest.MonkeyPatch


def no_compare_and_set(patch: Patch) -> None:
    """A step is written over whatever is there."""
    put = WriteThrough._put

    async def blind(self: Any, batch: Any, columns: Any, rows: Any, writes: Any) -> None:
        found = await self._store.load([write.key for write in writes])
        there = [version_of(content) if isinstance(content, bytes) else None for content in found]
        writes = [
            dataclasses.replace(write, expected=version)
            for write, version in zip(writes, there, strict=True)
        ]
        await put(self, batch, columns, rows, writes)

    patch.setattr(WriteThrough, "_put", blind)


def no_epoch(patch: Patch) -> None:
    """A load claims no epoch."""
    patch.setattr(ownership, "replace", lambda record, **_: record)


def gap_from_a_cached_copy(patch: Patch) -> None:
    """A refusal does not ask the store first."""
    patch.setattr(StoredLifecycle, "_may_mislead", lambda *_: False)


def no_dedupe(patch: Patch) -> None:
    """A repeated number is applied as the next step."""
    accept = Ordering._accept_one

    def unnumbered(self: Any, request: Any, i: int) -> Any:
        if request.numbers is not None:
            row = int(request.rows[i])
            numbers = list(request.numbers)
            numbers[i] = int(self._table.accepted(row)) + 1
            request.numbers = numbers
        return accept(self, request, i)

    patch.setattr(ordering, "COLUMNS_FROM", 1 << 30)
    patch.setattr(Ordering, "_accept_one", unnumbered)


def slot_released_twice(patch: Patch) -> None:
    """A session that leaves gives its slot back twice."""
    release = LiveSessions._release

    def twice(self: LiveSessions, row: int) -> None:
        pool = self.model_of(row).pool
        assert pool is not None
        pool.give(np.array([self._table.slot[row]]))
        release(self, row)

    patch.setattr(LiveSessions, "_release", twice)


def h_and_c_swapped(patch: Patch) -> None:
    """A loaded session has h in place of c."""
    start = records.Records.start

    def swapped(self: Any, record: Any, model: Any) -> Any:
        h, c = (each.data for each in record.states)
        return start(self, dataclasses.replace(record, states=lstm_states(c, h)), model)

    patch.setattr(records.Records, "start", swapped)


def reply_not_stored(patch: Patch) -> None:
    """A record has the step, but not its reply."""
    last = WriteThrough._last

    def bare(*arguments: Any) -> Any:
        return last(*arguments)._replace(reply=None)

    patch.setattr(WriteThrough, "_last", bare)


def lost_reply_taken_for_stored(patch: Patch) -> None:
    """A step whose store reply was lost is acknowledged."""
    put = WriteThrough._put

    async def trusting(self: Any, batch: Any, columns: Any, rows: Any, writes: Any) -> None:
        await put(self, batch, columns, rows, writes)
        batch.outcomes[batch.outcomes == Outcome.UNKNOWN] = Outcome.APPLIED

    patch.setattr(WriteThrough, "_put", trusting)


def outcomes_of_neighbours(patch: Patch) -> None:
    """Each step of a flush is settled by the outcome of the next key."""
    put = WriteThrough._put

    async def turned(self: Any, batch: Any, columns: Any, rows: Any, writes: Any) -> None:
        await put(self, batch, columns, rows, writes)
        batch.outcomes[columns] = np.roll(batch.outcomes[columns], 1)

    patch.setattr(WriteThrough, "_put", turned)


def lost_keys_taken_for_stored(patch: Patch) -> None:
    """With write-behind a key whose answer was lost counts as stored."""
    flush = WriteBehind._flush_rows

    async def trusting(self: Any, model: Any, rows: Any, lives: Any) -> None:
        store = self._store

        class Trusting:
            async def put(self, writes: Any) -> Any:
                outcomes = await store.put(writes)
                return [Written.OK if isinstance(o, StoreTimeout) else o for o in outcomes]

            load = store.load

        self._store = Trusting()
        try:
            await flush(self, model, rows, lives)
        finally:
            self._store = store

    patch.setattr(WriteBehind, "_flush_rows", trusting)


def durable_before_it_is_stored(patch: Patch) -> None:
    """With write-behind a step counts as durable when it is on its way."""
    write = WriteBehind._write

    def early(self: Any, row: int, record: Any) -> Any:
        made = write(self, row, record)
        self._table.durable_step[row] = record.step
        return made

    patch.setattr(WriteBehind, "_write", early)


def told_once_only(patch: Patch) -> None:
    """The first unnumbered step of a suspect session is refused, and the next one runs."""
    check = Ordering._check_trust

    def once(self: Any, row: int) -> None:
        try:
            check(self, row)
        finally:
            self._table.set_trust(row, TRUSTED)

    patch.setattr(Ordering, "_check_trust", once)


def released_not_cleared(patch: Patch) -> None:
    """A claim leaves the record as its last owner left it."""
    claimed = ownership.Ownership._claimed

    def as_it_was(self: Any, record: Any, trust: int) -> Any:
        return dataclasses.replace(claimed(self, record, trust), released=record.released)

    patch.setattr(ownership.Ownership, "_claimed", as_it_was)


def suspects_released(patch: Patch) -> None:
    """A session whose client has not learned of a rollback is released like any other."""
    released = records.Records.released

    def without_doubt(self: Any, _: int, *, is_leaving: bool = False) -> Any:
        return released(self, TRUSTED, is_leaving=is_leaving)

    def whoever_is_here(self: Any) -> Any:
        is_stored = (self._table.phase == OPEN) & (self._table.durable_step != NOT_STORED)
        return np.flatnonzero(is_stored & (self._released != self._table.life))

    patch.setattr(records.Records, "released", without_doubt)
    patch.setattr(WriteBehind, "_unreleased", whoever_is_here)


def released_while_it_lives(patch: Patch) -> None:
    """Every flush says that the owner has let go of the session."""

    def always(self: Any, trust: int, **_: bool) -> bool:
        return bool(trust == TRUSTED)

    patch.setattr(records.Records, "released", always)


def older_store_not_noticed(patch: Patch) -> None:
    """The copy of a session here is not compared with what the store has."""
    patch.setattr(PastSessions, "trust_of", lambda *_: None)


def resumed_under_the_same_incarnation(patch: Patch) -> None:
    """A session that goes on from a rolled-back step keeps its incarnation."""

    def trusting(self: Any, request: Any) -> bool:
        row = self._table.find(request.key)
        if row is not None and request.if_exists is IfExists.RESUME:
            self._table.set_trust(row, TRUSTED)
        return False

    patch.setattr(StoredLifecycle, "_is_renewal", trusting)


MUTANT_SEEDS = range(600)  # some need a crash in the one moment between two writes

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
    (outcomes_of_neighbours, "through"),
    (lost_keys_taken_for_stored, "behind"),
    (durable_before_it_is_stored, "behind"),
    (told_once_only, "behind"),
    (released_not_cleared, "behind"),
    (suspects_released, "behind"),
    (released_while_it_lives, "behind"),
    (older_store_not_noticed, "through"),
    (resumed_under_the_same_incarnation, "behind"),
]


@pytest.mark.parametrize(("mutant", "mode"), MUTANTS)
def test_every_mutant_is_found(
    mutant: Callable[[Patch], None], mode: str, monkeypatch: Patch
) -> None:
    """The simulation alone finds it, with a fifth of the seeds that the long form has."""
    mutant(monkeypatch)
    for seed in MUTANT_SEEDS:
        try:
            simulate(seed, mode)
        except Exception as error:
            print(f"{mutant.__name__}: seed {seed}, {str(error)[:200]}")
            return
    pytest.fail(f"{mutant.__name__} breaks none of {len(MUTANT_SEEDS)} seeds")
