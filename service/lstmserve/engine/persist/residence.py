"""Owns which stored sessions live here: loads one on first touch, claims it, gives it up.

Everything about one key happens in order, under its lock; keys do not wait for each other. A load
claims the session with a higher epoch, so that whoever had it before cannot write any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from lstmserve.engine.clock import Now
from lstmserve.engine.persist.records import Records, found_version, is_same_life, store_ttl_s
from lstmserve.engine.session.room import Room
from lstmserve.engine.session.sessions import Sessions
from lstmserve.engine.table import SessionTable
from lstmserve.errors import (
    Fenced,
    ModelMismatch,
    ModelRetired,
    SessionExists,
    StateCorrupt,
    StoreFull,
)
from lstmserve.store.record import CorruptRecord, Record, Version, decode, encode
from lstmserve.store.store import Store, Write, Written

TRIES_MAX = 5
FULL = "the store is full, until its operator makes room"


class Residence:
    """Raises StoreUnavailable and StoreTimeout from every call that asks the store."""

    def __init__(
        self,
        table: SessionTable,
        sessions: Sessions,
        room: Room,
        records: Records,
        store: Store,
        clock: Callable[[], Now],
    ) -> None:
        self._table = table
        self._sessions = sessions
        self._room = room
        self._records = records
        self._store = store
        self._clock = clock
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def alone(self, key: str) -> AsyncIterator[None]:
        """One at a time per key."""
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = lock, users - 1

    async def fetch(self, key: str) -> None:
        """Brings a session here that the store has and this server has not.

        Raises StateCorrupt, ModelRetired, ModelMismatch, SessionLimit, StoreFull, Fenced.
        """
        if self._table.find(key) is None:
            async with self.alone(key):
                await self._load(key)

    async def _load(self, key: str, is_replaced: bool = False) -> Version | None:
        """The same; the key's lock is held. Returns what the store has, if it is known.

        A session that is to be replaced may be of a model that is not served any more.
        """
        for _ in range(TRIES_MAX):
            if self._table.find(key) is not None:
                return self.version(key)
            (content,) = await self._store.load([key])
            if content is None:
                return None
            record = await self._decode(key, content)
            if self._sessions.has_expired(key, record.incarnation, record.epoch, self._clock()):
                return record.version  # the store keeps it a little longer, see STORE_TTL_MARGIN_NS
            try:
                model = self._records.model_of(record)
            except (ModelRetired, ModelMismatch):
                if is_replaced:
                    return record.version
                raise
            self._room.make(model, self._clock())
            start = self._records.start(record, model)
            claimed = replace(record, epoch=record.epoch + 1)
            written = await self._put(key, record.version, claimed)
            if written is Written.FULL:
                raise StoreFull(f"{FULL}: no session comes to this server")
            if written is Written.OK:
                now = self._clock()
                self._room.make(model, now)
                start = replace(start, epoch=claimed.epoch)
                self._sessions.open(key, model, start, record.ttl_ns, now)
                return claimed.version
        raise Fenced("other servers are taking this session: repeat the call", retry_s=0.1)

    async def confirm(self, key: str) -> None:
        """Makes what is known of the key here what the store has. Raises as fetch().

        What must be certain when it is said (a gap, another incarnation) asks this first.
        """
        async with self.alone(key):
            await self.refresh(key)

    async def refresh(self, key: str, is_replaced: bool = False) -> Version | None:
        """The same; the key's lock is held. Returns what the store has, if it is known."""
        row = self._table.find(key)
        if row is not None:
            (content,) = await self._store.load([key])
            if row == self._table.find(key):
                if is_same_life(found_version(content), self._version(row)):
                    return self._version(row)
                self._sessions.detach(row, "moved")
        return await self._load(key, is_replaced)

    async def create(self, key: str, row: int, before: Version | None) -> None:
        """Stores a session just opened, in place of one it replaces. The key's lock is held.

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
            return
        self._drop(key, row)
        if written is Written.FULL:
            raise StoreFull(f"{FULL}: no session was opened")
        if before is not None:
            raise Fenced("another server has just taken this session: repeat the call", retry_s=0.0)
        raise SessionExists("another server has just opened this id", field="session_id")

    async def forget(self, key: str, version: Version) -> None:
        """Takes a closed session out of the store. The key's lock is held.

        Raises Fenced, and StoreFull where a disk has no room even for a deletion.
        """
        written = await self._store.put([Write(key, version, None, 1.0)])
        if written[0] is Written.FULL:
            raise StoreFull(f"{FULL}: the session is still stored, close it again then")
        if written[0] is not Written.OK:
            raise Fenced("another server has this session now: close it again", retry_s=0.0)

    def version(self, key: str) -> Version | None:
        """What the store has of a session that is here."""
        row = self._table.find(key)
        return None if row is None else self._version(row)

    async def _replace(self, key: str, before: Version | None, record: Record) -> Written:
        """A step of the replaced session may still have been stored: then it is looked up again."""
        for _ in range(TRIES_MAX):
            written = await self._put(key, before, record)
            if written is not Written.CONFLICT or before is None:
                return written
            (content,) = await self._store.load([key])
            found = found_version(content)
            if found is not None and found.incarnation != before.incarnation:
                return written
            before = found
        return Written.CONFLICT

    async def _put(self, key: str, expected: Version | None, record: Record) -> Written:
        content = encode(record)
        write = Write(key, expected, content, store_ttl_s(record.ttl_ns))
        return (await self._store.put([write]))[0]

    async def _decode(self, key: str, content: bytes) -> Record:
        try:
            return decode(content)
        except CorruptRecord as error:
            await self._store.quarantine(key, content)
            raise StateCorrupt("the stored session is damaged and was put aside") from error

    def _version(self, row: int) -> Version:
        return self._records.version(row)

    def _drop(self, key: str, row: int) -> None:
        if self._table.find(key) == row:
            self._sessions.detach(row, "moved")
