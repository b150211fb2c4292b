"""Which stored sessions this server owns: it claims, loads, saves, creates and releases them.

Calls about one key run in order, under the key's lock; different keys do not wait for each other. A
load claims the session under a higher epoch, so that the server which had it before can write no
more. Epochs are times, not a count: a store that fails over may forget a claim, and the next claim
must not repeat its epoch.

The commit stage stores the steps in between (write_through.py, write_behind.py). This module must
not know how a step is scheduled or answered.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from lstmserve.engine.clock import Now
from lstmserve.engine.errors import (
    NOT_SERVED,
    Fenced,
    SessionExists,
    SessionLimit,
    SessionReplaced,
    StateCorrupt,
    StoreFull,
    StoreTimeout,
    StoreUnavailable,
)
from lstmserve.engine.model import Model
from lstmserve.engine.persist.records import Records, found_version, is_same_life, store_ttl_s
from lstmserve.engine.session.capacity import SessionCapacity
from lstmserve.engine.session.live_sessions import LiveSessions
from lstmserve.engine.session.past_sessions import Tombstone
from lstmserve.engine.table import SessionTable
from lstmserve.store.record import CorruptRecord, Record, UnknownRecord, Version, decode
from lstmserve.store.store import Store, Write, Written

TRIES_MAX = 5
EPOCHS_APART = 1 << 20  # about a second in microseconds
FULL = "the store is full, until its operator makes room"


class KeyLocks:
    """One lock per key, which exists only while a task holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    def __len__(self) -> int:
        """Keys that are locked now."""
        return len(self._locks)

    @asynccontextmanager
    async def lock(self, key: str) -> AsyncIterator[None]:
        """Holds the key's lock; tasks get it in the order in which they asked."""
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = lock, users - 1


class Ownership:
    """Every call that asks the store may raise StoreUnavailable or StoreTimeout.

    Methods whose docstring says "locked" expect the caller to hold the key's lock. `flush()` writes
    what is ahead of the store: only a session that the store has may move out.
    """

    def __init__(
        self,
        table: SessionTable,
        sessions: LiveSessions,
        capacity: SessionCapacity,
        records: Records,
        store: Store,
        clock: Callable[[], Now],
        flush: Callable[[], Awaitable[None]],
    ) -> None:
        self._table = table
        self._sessions = sessions
        self._capacity = capacity
        self._records = records
        self._store = store
        self._clock = clock
        self.flush = flush
        self.lock = KeyLocks().lock

    async def fetch(self, key: str) -> bool:
        """Brings a session here that only the store has; returns whether it asked the store.

        If False, another task brought the session, and its copy may predate this call.

        Raises StateCorrupt, one of NOT_SERVED, SessionLimit, StoreFull, Fenced.
        """
        async with self.lock(key):
            if self._table.find(key) is not None:
                return False
            await self._claim(key)
            return True

    async def confirm(self, key: str) -> None:
        """Makes what this server knows of the key what the store has. Raises what fetch() raises.

        An answer that must be certain (a gap, another incarnation) needs this first.
        """
        async with self.lock(key):
            await self.refresh(key)

    async def refresh(self, key: str, is_ending: bool = False) -> Version | None:
        """Does what confirm() does, locked. Returns what the store has, where that is known.

        `is_ending`: the session is about to end, so its model need not be served any more.
        """
        row = self._table.find(key)
        if row is not None:
            content = await self._load(key)
            if row == self._table.find(key):
                if is_same_life(found_version(content), self._records.version(row)):
                    return self._records.version(row)
                self._sessions.leave(row, "moved", self._clock())
        return await self._claim(key, is_ending)

    async def look(self, key: str) -> Record | None:
        """What the store has of a session that cannot come here; it stays where it is."""
        content = await self._load(key)
        if content is None:
            return None
        record = await self._decode(key, content)
        return None if self.is_expired(key, record.version) else record

    def version(self, key: str) -> Version | None:
        """The store's version of a session that is here."""
        row = self._table.find(key)
        return None if row is None else self._records.version(row)

    def is_expired(self, key: str, stored: Version) -> bool:
        """Whether this life of the id ended here by its TTL, and no server has claimed it since."""
        now_ns = self._clock().monotonic_ns
        return self._sessions.past.has_expired(key, stored.incarnation, stored.epoch, now_ns)

    async def create(self, key: str, row: int, before: Version | None) -> None:
        """Stores a session that was just opened, in place of `before`; locked.

        On failure the session leaves this server. Raises SessionExists, Fenced, StoreFull.
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
        """Stores the steps that a session here is ahead of the store; locked.

        A session is saved before it ends or is replaced: should that then fail half-way, no
        acknowledged step goes with it. Raises Fenced, StoreFull.
        """
        for _ in range(TRIES_MAX):
            row = self._table.find(key)
            if row is None or self._table.step[row] <= self._table.durable_step[row]:
                return
            expected, record = self._records.version(row), self._records.now(row)
            written = await self._put(key, expected, record)
            stored = record.version
            if written is Written.FULL:
                raise StoreFull(f"{FULL}: it has not the session's last steps")
            if written is not Written.OK:  # perhaps the commit stage was faster
                found = found_version(await self._load(key))
                if found is None or not is_same_life(found, expected):
                    break
                stored = found
            if self._table.find(key) == row and is_same_life(stored, self._records.version(row)):
                durable = max(int(self._table.durable_step[row]), stored.step)
                self._table.durable_step[row] = durable
        raise Fenced("the session was stepped meanwhile, or moved: repeat the call", retry_s=0.0)

    async def delete(self, key: str, version: Version) -> None:
        """Takes a closed session out of the store; locked.

        Raises Fenced, and StoreFull where a disk has no room even for a deletion.
        """
        written = await self._write(Write(key, version, None, 1.0))
        if written is Written.FULL:
            raise StoreFull(f"{FULL}: the session is still stored, close it again then")
        if written is not Written.OK:
            raise Fenced("another server has this session now: close it again", retry_s=0.0)

    def bury(self, key: str, incarnation: int, stored: Version) -> None:
        """Remembers a stored session as closed, though it never came here.

        Raises SessionReplaced when `incarnation` names another life of the id.
        """
        if incarnation not in (0, stored.incarnation):
            raise SessionReplaced(
                "this id was opened again; the session you had has ended",
                metadata={"incarnation": str(stored.incarnation)},
            )
        tombstone = Tombstone(stored.incarnation, "closed", stored.step, stored.epoch)
        self._sessions.past.add_tombstone(key, tombstone, self._clock().monotonic_ns)

    async def _claim(self, key: str, is_ending: bool = False) -> Version | None:
        """Loads the session and writes it back under this server's epoch; locked.

        Returns what the store has, where that is known.
        """
        for _ in range(TRIES_MAX):
            if self._table.find(key) is not None:
                return self.version(key)
            content = await self._load(key)
            if content is None:
                return None
            record = await self._decode(key, content)
            if self.is_expired(key, record.version):
                return record.version  # the store keeps it a little longer: STORE_TTL_MARGIN_NS
            try:
                model = self._records.model_of(record)
            except NOT_SERVED:
                if is_ending:
                    return record.version
                raise
            await self._make_room(model)
            start = self._records.start(record, model)
            trust = self._trust(key, record)
            claimed = self._claimed(record, trust)
            self._sessions.past.add_claim(key, claimed.version, trust, self._clock().monotonic_ns)
            written = await self._put(key, record.version, claimed)
            if written is Written.FULL:
                raise StoreFull(f"{FULL}: no session comes to this server")
            if written is Written.OK:
                now = self._clock()
                self._capacity.make_room(model, now)
                start = replace(start, epoch=claimed.epoch)
                row = self._sessions.open(key, model, start, record.ttl_ns, now)
                self._table.set_trust(row, trust)
                return claimed.version
        raise Fenced("other servers are taking this session: repeat the call", retry_s=0.1)

    def _trust(self, key: str, record: Record) -> int:
        """Whether acknowledged steps may be missing in the record.

        A session that was here, and whose record has not changed since, is trusted as it was then;
        a record that is older than the copy that was here shows a store that went back.
        """
        now_ns = self._clock().monotonic_ns
        known = self._sessions.past.trust_of(key, record.version, now_ns)
        return self._records.trust(record) if known is None else known

    def _claimed(self, record: Record, trust: int) -> Record:
        """The record under this server's epoch, no longer marked as released by its last owner."""
        released = self._records.released(trust)
        return replace(record, epoch=self._epoch(record), released=released)

    def _epoch(self, record: Record) -> int:
        """The epoch of a claim: higher than the record's, and different from any other claim's.

        Where a wall clock went back, chance keeps two servers apart: a store that fails over may
        show the same record to both.
        """
        stamp = self._sessions.next_incarnation(self._clock())
        if stamp > record.epoch:
            return stamp
        return record.epoch + 1 + secrets.randbelow(EPOCHS_APART)

    async def _make_room(self, model: Model) -> None:
        try:
            self._capacity.make_room(model, self._clock())
        except SessionLimit:
            await self.flush()
            self._capacity.make_room(model, self._clock())

    async def _replace(self, key: str, before: Version | None, record: Record) -> Written:
        """Writes a new session over `before`, of which the store may have got one more step."""
        for _ in range(TRIES_MAX):
            written = await self._put(key, before, record)
            if written is not Written.CONFLICT or before is None:
                return written
            found = found_version(await self._load(key))
            if found is not None and found.incarnation != before.incarnation:
                return written
            before = found
        return Written.CONFLICT

    def _drop(self, key: str, row: int) -> None:
        if self._table.find(key) == row:
            self._sessions.leave(row, "moved", self._clock())

    async def _load(self, key: str) -> bytes | None:
        (content,) = await self._store.load([key])
        try:
            if isinstance(content, StoreUnavailable):
                raise content
            return content
        finally:
            del content  # an error would keep this frame, and the frame the error

    async def _put(self, key: str, expected: Version | None, record: Record) -> Written:
        content = self._records.encode(record)
        return await self._write(Write(key, expected, content, store_ttl_s(record.ttl_ns)))

    async def _write(self, write: Write) -> Written:
        (written,) = await self._store.put([write])
        try:
            if isinstance(written, StoreUnavailable | StoreTimeout):
                raise written
            return written
        finally:
            del written  # an error would keep this frame, and the frame the error

    async def _decode(self, key: str, content: bytes) -> Record:
        try:
            return decode(content)
        except UnknownRecord as error:
            raise StoreUnavailable(
                f"a later release stored this session ({error}), which is left as it is: "
                "go on at a server of that release",
                retry_s=1.0,
            ) from error
        except CorruptRecord as error:
            await self._store.quarantine(key, content)
            raise StateCorrupt("the stored session is damaged and was put aside") from error
