"""Write-behind: steps are answered first and stored soon after, within limits of time and steps.

A crash takes back at most that much of each session; its client sees `durable_step` and sends the
later steps again. `durable_step` never goes back. The table says which sessions are dirty: those
whose step is ahead of their durable_step.

While a session is here, its record says that it is not released: a server that finds such a record
after a crash knows that steps may be missing. A session that moves out, or that a drain leaves, is
released: it is written once more, unchanged, under the same version. This module must not know how
a session is claimed or opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lstmserve.engine.arrays import Index
from lstmserve.engine.errors import StoreTimeout, StoreUnavailable
from lstmserve.engine.model import Model
from lstmserve.engine.persist.records import Records, found_version, is_same_life, store_ttl_s
from lstmserve.engine.persist.write_through import CommitStage
from lstmserve.engine.scheduling.batch import Batch
from lstmserve.engine.table import DETACHED, FREE, NOT_STORED, OPEN, TRUSTED, SessionTable
from lstmserve.store.record import Record, Version
from lstmserve.store.store import Store, Write, Written

FLUSH_ROWS_MAX = 256
LET_GO_MAX = 4 * FLUSH_ROWS_MAX
PAUSE_S = 0.05  # between flushes of a drain whose store is not there


class WriteBehind(CommitStage):
    """The commit stage of `--store-mode behind`; writes the table's `durable_step`."""

    def __init__(
        self,
        table: SessionTable,
        records: Records,
        store: Store,
        on_moved: Callable[[int], None],
        lag_s_max: float,
        lag_steps_max: int,
    ) -> None:
        self._table = table
        self._records = records
        self._store = store
        self._on_moved = on_moved
        self._lag_s_max = lag_s_max
        self._lag_steps_max = lag_steps_max
        self._is_due = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._is_leaving = False  # each session is written for the last time from now on
        self._let_go: deque[Write] = deque(maxlen=LET_GO_MAX)  # beyond it: suspect elsewhere
        self._is_lost = False  # whether only a restart of this process can help

    def commit(self, model: Model, batch: Batch) -> None:
        """Returns None, as there is nothing to wait for; the rows are flushed soon."""
        rows = batch.endings().rows
        lag = self._table.step[rows] - np.maximum(self._table.durable_step[rows], 0)
        self._table.since_ns[rows[lag <= 0]] = time.monotonic_ns()
        if int(lag.max(initial=0)) >= self._lag_steps_max // 2:
            self._is_due.set()

    def lag_s(self) -> float:
        """The age in seconds of the oldest step that the store does not have."""
        dirty = self._dirty()
        if not dirty.size:
            return 0.0
        return float(time.monotonic_ns() - self._table.since_ns[dirty].min()) / 1e9

    def admit(self, rows: int | Index) -> None:
        """Refuses steps of sessions too far ahead of the store. Raises StoreUnavailable."""
        if self._is_lost:
            raise StoreUnavailable("the store is lost: this server must be restarted", retry_s=1.0)
        lag = self._table.accepted(rows) - self._table.durable_step[rows]
        if int(np.max(lag)) >= self._lag_steps_max:
            self._is_due.set()
            raise StoreUnavailable(
                "the store is behind, and the session may not run further ahead", retry_s=1.0
            )

    def let_go(self, model: Model, rows: Index) -> None:
        """Queues the release of these sessions. If its write fails, another server takes them for
        suspect; this server trusts them as long as it remembers them."""
        rows = rows[self._table.trust[rows] == TRUSTED]
        records = self._records.make(model, rows, self._table.slot[rows], is_leaving=True)
        pairs = zip(rows.tolist(), records, strict=True)
        self._let_go.extend(self._write(row, record) for row, record in pairs)
        self._is_due.set()

    async def drain(self, timeout_s: float) -> None:
        """Flushes until nothing is dirty and every session is released, or the time is over."""
        self._is_leaving = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while True:  # a session that the store does not take holds up no other's release
                    await self._flush_all(self._dirty)
                    await self._flush_all(self._unreleased)
                    if self._is_lost or not (self._dirty().size or self._unreleased().size):
                        return
                    await self._pause()

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), PAUSE_S)

    async def run(self) -> None:
        """Flushes when it is time, or when a session is far ahead, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_due.wait(), self._lag_s_max)
            self._is_due.clear()
            await self.flush()

    def _dirty(self) -> Index:
        """Rows [N] whose last step the store does not have, though it has their OpenSession."""
        used = slice(self._table.used)
        step, durable = self._table.step[used], self._table.durable_step[used]
        phase = self._table.phase[used]
        is_ahead = (step > durable) & (durable != NOT_STORED)
        return np.flatnonzero(is_ahead & (phase != FREE) & (phase < DETACHED))

    def _unreleased(self) -> Index:
        """Rows [N] whose session the store has, and not as released."""
        table, used = self._table, slice(self._table.used)
        is_here = (table.phase[used] == OPEN) & (table.trust[used] == TRUSTED)
        is_here &= table.durable_step[used] != NOT_STORED
        return np.flatnonzero(is_here & (table.released[used] != table.life[used]))

    async def flush(self) -> None:
        """Writes every session that is dirty now; one that the store does not take stays dirty."""
        await self._flush_all(self._dirty)

    async def _flush_all(self, rows_of: Callable[[], Index]) -> None:
        async with self._flushing:
            await self._write_let_go()
            rows = rows_of()
            for model in self._records.registry:
                wanted = rows[self._table.model[rows] == model.handle]
                lives = [self._records.version(row) for row in wanted.tolist()]
                for start in range(0, wanted.size, FLUSH_ROWS_MAX):
                    part = slice(start, start + FLUSH_ROWS_MAX)
                    await self._flush_rows(model, wanted[part], lives[part])

    async def _write_let_go(self) -> None:
        """Tries each once. A server that has claimed the session by then is not disturbed."""
        while self._let_go:
            count = min(len(self._let_go), FLUSH_ROWS_MAX)
            writes = [self._let_go.popleft() for _ in range(count)]
            await self._store.put(writes)

    async def _flush_rows(self, model: Model, rows: Index, lives: list[Version]) -> None:
        """Writes the rows that still have the session they had when the flush began."""
        is_same = [self._is_same(row, life) for row, life in zip(rows.tolist(), lives, strict=True)]
        rows = rows[is_same]
        if not rows.size:
            return
        made_ns = time.monotonic_ns()
        is_leaving = self._is_leaving
        slots = self._table.slot[rows]
        records = self._records.make(model, rows, slots, is_leaving=is_leaving)
        writes = [self._write(row, each) for row, each in zip(rows.tolist(), records, strict=True)]
        written = await self._store.put(writes)
        doubtful = []
        for row, record, each in zip(rows.tolist(), records, written, strict=True):
            if isinstance(each, StoreUnavailable | StoreTimeout):
                self._is_lost = self._is_lost or each.is_final
            if each is Written.OK:
                self._note(row, record.version, made_ns)
                if record.released and self._is_same(row, record.version):
                    self._table.released[row] = self._table.life[row]
            elif each is not Written.FULL and not isinstance(each, StoreUnavailable):
                doubtful.append((row, record.version))
        await self._look_up(doubtful)

    def _write(self, row: int, record: Record) -> Write:
        key = self._table.keys[row]
        assert key is not None
        expected = self._records.version(row)
        return Write(key, expected, self._records.encode(record), store_ttl_s(record.ttl_ns))

    async def _look_up(self, doubtful: list[tuple[int, Version]]) -> None:
        """Asks what the store has of sessions whose write had no answer, or met another version.

        That version may be an earlier write of our own that came late: then the session is ours.
        """
        asked = [(row, life, self._table.keys[row]) for row, life in doubtful]
        keys = [key for row, life, key in asked if key is not None and self._is_same(row, life)]
        if not keys:
            return
        found = dict(zip(keys, await self._store.load(keys), strict=True))
        older = []
        for row, life, key in asked:
            if key not in found or not self._is_same(row, life):
                continue
            content = found[key]
            if isinstance(content, StoreUnavailable):
                continue  # still dirty: the next flush asks again
            version = found_version(content)
            if version is None or not is_same_life(version, life):
                self._on_moved(row)
            elif version.step < self._table.durable_step[row]:
                older.append((row, version))
            else:
                self._note(row, version)
        if older:
            await self._renew(older)

    async def _renew(self, older: list[tuple[int, Version]]) -> None:
        """Writes these sessions again to a store that went back to an older copy of itself."""
        made_ns = time.monotonic_ns()
        records = [self._records.now(row) for row, _ in older]
        writes = [
            replace(self._write(row, record), expected=version)
            for (row, version), record in zip(older, records, strict=True)
        ]
        written = await self._store.put(writes)  # what fails, the next flush meets again
        for (row, _), record, each in zip(older, records, written, strict=True):
            if each is Written.OK:
                self._note(row, record.version, made_ns)

    def _note(self, row: int, stored: Version, made_ns: int = 0) -> None:
        """Notes that the store has this version, if its session is still here."""
        if self._is_same(row, stored):
            self._table.since_ns[row] = max(int(self._table.since_ns[row]), made_ns)
            self._table.durable_step[row] = max(int(self._table.durable_step[row]), stored.step)

    def _is_same(self, row: int, life: Version) -> bool:
        """Whether the row still has that life of the session."""
        table = self._table
        is_here = table.keys[row] is not None and table.phase[row] < DETACHED
        return bool(is_here) and is_same_life(self._records.version(row), life)
