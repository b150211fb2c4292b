"""Writes sessions to the store a little later: bounded by time and by steps, acked before stored.

A crash takes back at most that much of each session; its client sees `durable_step` and sends the
steps behind it again. `durable_step` never goes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

import numpy as np

from lstmserve.engine.batch import Batch
from lstmserve.engine.model import Model
from lstmserve.engine.persist.records import Records, store_ttl_s
from lstmserve.engine.table import DETACHED, NOT_STORED, Index, SessionTable
from lstmserve.errors import ServeError, StoreTimeout, StoreUnavailable
from lstmserve.store.record import Version, encode, version_of
from lstmserve.store.store import Store, Write, Written

FLUSH_ROWS_MAX = 256
PAUSE_S = 0.05  # between flushes of a drain whose store is not there


class WriteBehind:
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
        self._is_dirty = np.zeros(table.rows, np.bool_)
        self._dirty: list[tuple[Model, Index, int]] = []  # since when, monotonic ns
        self._flushing = asyncio.Lock()

    def commit(self, model: Model, batch: Batch) -> None:
        """Nothing to wait for; the rows are flushed soon."""
        rows = batch.endings().rows
        lag = self._table.step[rows] - self._table.durable_step[rows]
        if int(lag.max(initial=0)) >= self._lag_steps_max // 2:
            self._is_due.set()
        fresh = rows[~self._is_dirty[rows]]
        if fresh.size:
            self._is_dirty[fresh] = True
            self._dirty.append((model, fresh, time.monotonic_ns()))

    def lag_s(self) -> float:
        """Age of the oldest step that the store does not have."""
        if not self._dirty:
            return 0.0
        return (time.monotonic_ns() - min(since for _, _, since in self._dirty)) / 1e9

    def admit(self, rows: Index) -> None:
        """Refuses steps of sessions too far ahead of the store. Raises StoreUnavailable."""
        lag = self._table.step[rows] - self._table.durable_step[rows]
        if int(np.max(lag)) >= self._lag_steps_max:
            self._is_due.set()
            raise StoreUnavailable(
                "the store is behind, and the session may not run further ahead", retry_s=1.0
            )

    async def drain(self, timeout_s: float) -> None:
        """Flushes until nothing is dirty, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._dirty:
                    await self.flush()
                    if self._dirty:
                        await self._pause()

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), PAUSE_S)

    @property
    def dirty_count(self) -> int:
        """Sessions that wait for their flush."""
        return int(self._is_dirty.sum())

    async def run(self) -> None:
        """Flushes when it is time, or a session is far ahead; until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_due.wait(), self._lag_s_max)
            self._is_due.clear()
            await self.flush()

    async def flush(self) -> None:
        """Everything that is dirty now; what the store does not take stays dirty."""
        async with self._flushing:
            dirty, self._dirty = self._dirty, []
            for model, rows, since in dirty:
                for start in range(0, rows.size, FLUSH_ROWS_MAX):
                    await self._flush_rows(model, rows[start : start + FLUSH_ROWS_MAX], since)

    async def _flush_rows(self, model: Model, rows: Index, since: int) -> None:
        table = self._table
        self._is_dirty[rows] = False
        is_here = (table.phase[rows] < DETACHED) & (table.model[rows] == model.index)
        is_new = is_here & (table.durable_step[rows] == NOT_STORED)
        self._again(model, rows[is_new], since)  # its OpenSession is on its way to the store
        is_here &= ~is_new
        rows = rows[is_here & (table.step[rows] > table.durable_step[rows])]
        if not rows.size:
            return
        records = self._records.make(model, rows, table.slot[rows])
        lives = [self._records.version(row) for row in rows.tolist()]
        writes = []
        for row, life, record in zip(rows.tolist(), lives, records, strict=True):
            key = table.keys[row]
            assert key is not None
            writes.append(Write(key, life, encode(record), store_ttl_s(record.ttl_ns)))
        written: Sequence[Written | None]
        try:
            written = await self._store.put(writes)
        except StoreTimeout:
            written = await self._look_up(writes)
        except ServeError:
            self._again(model, rows, since)
            return
        for row, life, record, each in zip(rows.tolist(), lives, records, written, strict=True):
            if not self._note(row, life, record.step, each):
                self._again(model, np.array([row]), since)

    async def _look_up(self, writes: list[Write]) -> list[Written | None]:
        """What became of writes whose answer was lost; None: still unknown."""
        try:
            found = await self._store.load([write.key for write in writes])
        except ServeError:
            return [None] * len(writes)
        return [
            Written.OK
            if content is not None
            and write.content is not None
            and version_of(content) == version_of(write.content)
            else None
            for write, content in zip(writes, found, strict=True)
        ]

    def _note(self, row: int, life: Version, step: int, written: Written | None) -> bool:
        """One session's outcome, if the row is still that session's; False: it is still dirty."""
        table = self._table
        is_same = (table.incarnation[row], table.epoch[row]) == (life.incarnation, life.epoch)
        if table.phase[row] >= DETACHED or table.keys[row] is None or not is_same:
            return True
        if written is Written.OK:
            table.durable_step[row] = max(int(table.durable_step[row]), step)
        elif written in (Written.CONFLICT, Written.FENCED):
            self._on_moved(row)
        return written in (Written.OK, Written.CONFLICT, Written.FENCED)

    def _again(self, model: Model, rows: Index, since: int) -> None:
        fresh = rows[~self._is_dirty[rows]]
        self._is_dirty[fresh] = True
        if fresh.size:
            self._dirty.append((model, fresh, since))
