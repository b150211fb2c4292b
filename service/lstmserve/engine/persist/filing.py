"""Owns the first and the last record of a session: created, brought up to date, taken out.

Steps in between are the commit stage's. The key's lock is held by whoever calls.
"""

from __future__ import annotations

from collections.abc import Callable

from lstmserve.engine.clock import Now
from lstmserve.engine.errors import Fenced, SessionExists, StoreFull
from lstmserve.engine.persist.records import Records, found_version, is_same_life, store_ttl_s
from lstmserve.engine.session.live_sessions import LiveSessions
from lstmserve.engine.table import SessionTable
from lstmserve.store.record import Record, Version
from lstmserve.store.store import Store, Write, Written

TRIES_MAX = 5
FULL = "the store is full, until its operator makes room"


class Filing:
    """Every call raises StoreUnavailable and StoreTimeout."""

    def __init__(
        self,
        table: SessionTable,
        sessions: LiveSessions,
        records: Records,
        store: Store,
        clock: Callable[[], Now],
    ) -> None:
        self._table = table
        self._sessions = sessions
        self._records = records
        self._store = store
        self._clock = clock

    async def create(self, key: str, row: int, before: Version | None) -> None:
        """Stores a session just opened, in place of one it replaces.

        On failure the session is gone here. Raises SessionExists, Fenced, StoreFull.
        """
        record = self._records.now(row)
        try:
            written = await self._replace(key, before, record)
        except BaseException:
            self._drop(key, row)
            raise
        if written is Written.OK:
            if self._table.find(key) == row:
                self._table.durable_step[row] = record.step
                self._sessions.past.drop_departure(key)
            return
        self._drop(key, row)
        if written is Written.FULL:
            raise StoreFull(f"{FULL}: no session was opened")
        if before is not None:
            raise Fenced("another server has just taken this session: repeat the call", retry_s=0.0)
        raise SessionExists("another server has just opened this id", field="session_id")

    async def save(self, key: str) -> None:
        """Stores what a session that is here is ahead of the store. Raises Fenced, StoreFull.

        Before it ends or is replaced: should that fail half-way, no acked step is gone with it.
        """
        for _ in range(TRIES_MAX):
            row = self._table.find(key)
            if row is None or self._table.step[row] <= self._table.durable_step[row]:
                return
            expected, record = self._records.version(row), self._records.now(row)
            written = await self.put(key, expected, record)
            stored = record.version
            if written is Written.FULL:
                raise StoreFull(f"{FULL}: it has not the session's last steps")
            if written is not Written.OK:  # perhaps the commit stage was faster
                (content,) = await self._store.load([key])
                found = found_version(content)
                if found is None or not is_same_life(found, expected):
                    break
                stored = found
            if self._table.find(key) == row and is_same_life(stored, self._records.version(row)):
                durable = max(int(self._table.durable_step[row]), stored.step)
                self._table.durable_step[row] = durable
        raise Fenced("the session was stepped meanwhile, or moved: repeat the call", retry_s=0.0)

    async def forget(self, key: str, version: Version) -> None:
        """Takes a closed session out of the store.

        Raises Fenced, and StoreFull where a disk has no room even for a deletion.
        """
        written = await self._store.put([Write(key, version, None, 1.0)])
        if written[0] is Written.FULL:
            raise StoreFull(f"{FULL}: the session is still stored, close it again then")
        if written[0] is not Written.OK:
            raise Fenced("another server has this session now: close it again", retry_s=0.0)

    async def put(self, key: str, expected: Version | None, record: Record) -> Written:
        """One compare-and-set."""
        content = self._records.encode(record)
        write = Write(key, expected, content, store_ttl_s(record.ttl_ns))
        return (await self._store.put([write]))[0]

    async def _replace(self, key: str, before: Version | None, record: Record) -> Written:
        """A step of the replaced session may still have been stored: then it is looked up again."""
        for _ in range(TRIES_MAX):
            written = await self.put(key, before, record)
            if written is not Written.CONFLICT or before is None:
                return written
            (content,) = await self._store.load([key])
            found = found_version(content)
            if found is not None and found.incarnation != before.incarnation:
                return written
            before = found
        return Written.CONFLICT

    def _drop(self, key: str, row: int) -> None:
        if self._table.find(key) == row:
            self._sessions.leave(row, "moved", self._clock())
