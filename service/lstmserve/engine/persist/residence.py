"""Owns which stored sessions live here: loads one on first touch, claims it, gives it up.

Everything about one key happens in order, under its lock; keys do not wait for each other. A load
claims the session with a higher epoch, so that whoever had it before cannot write any more. Epochs
are times, not a count: a store that fails over may forget a claim, and must not see it made again.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace

from lstmserve.engine.clock import Now
from lstmserve.engine.errors import (
    NOT_SERVED,
    Fenced,
    SessionLimit,
    SessionReplaced,
    StateCorrupt,
    StoreFull,
    StoreUnavailable,
)
from lstmserve.engine.model import Model
from lstmserve.engine.persist.filing import FULL, TRIES_MAX, Filing
from lstmserve.engine.persist.key_locks import KeyLocks
from lstmserve.engine.persist.records import Records, found_version, is_same_life
from lstmserve.engine.session.capacity import SessionCapacity
from lstmserve.engine.session.live_sessions import LiveSessions
from lstmserve.engine.session.past_sessions import Tombstone
from lstmserve.engine.table import SessionTable
from lstmserve.store.record import CorruptRecord, Record, UnknownRecord, Version, decode
from lstmserve.store.store import Store, Written

EPOCHS_APART = 1 << 20  # about a second in microseconds


class Residence:
    """Raises StoreUnavailable and StoreTimeout from every call that asks the store.

    `flush()` writes what is ahead of the store: a session may move out when the store has it.
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
        self._flush = flush
        self.alone = KeyLocks().alone
        self.filing = Filing(table, sessions, records, store, clock)

    async def fetch(self, key: str) -> bool:
        """Brings a session here that the store has and this server has not; whether it was asked.

        If not, somebody else brought it: what he was told may be older than this call.

        Raises StateCorrupt, one of NOT_SERVED, SessionLimit, StoreFull, Fenced.
        """
        async with self.alone(key):
            if self._table.find(key) is not None:
                return False
            await self._load(key)
            return True

    async def _load(self, key: str, is_ending: bool = False) -> Version | None:
        """The same; the key's lock is held. Returns what the store has, if it is known.

        A session that is to end may be of a model that is not served any more.
        """
        for _ in range(TRIES_MAX):
            if self._table.find(key) is not None:
                return self.version(key)
            (content,) = await self._store.load([key])
            if content is None:
                return None
            record = await self._decode(key, content)
            if self.is_expired(key, record.version):
                return record.version  # the store keeps it a little longer, see STORE_TTL_MARGIN_NS
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
            written = await self.filing.put(key, record.version, claimed)
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

    async def look(self, key: str) -> Record | None:
        """What the store has of a session that cannot come here; it stays where it is."""
        (content,) = await self._store.load([key])
        if content is None:
            return None
        record = await self._decode(key, content)
        return None if self.is_expired(key, record.version) else record

    def _trust(self, key: str, record: Record) -> int:
        """Whether acked steps may be missing in the record. What was here, and is what it was when
        it left, is as it was then; a record that is older than that shows a store that went back.
        """
        now_ns = self._clock().monotonic_ns
        known = self._sessions.past.trust_of(key, record.version, now_ns)
        return self._records.trust(record) if known is None else known

    def _claimed(self, record: Record, trust: int) -> Record:
        """It is this server's: the owner before cannot write any more, and its release is over."""
        released = self._records.released(trust)
        return replace(record, epoch=self._epoch(record), released=released)

    def _epoch(self, record: Record) -> int:
        """Of a claim: higher than the record's, and no other claim's.

        Where a wall clock went back, chance keeps two servers apart: a store that fails over may
        show both of them the same record.
        """
        stamp = self._sessions.next_incarnation(self._clock())
        if stamp > record.epoch:
            return stamp
        return record.epoch + 1 + secrets.randbelow(EPOCHS_APART)

    async def flush(self) -> None:
        """Writes what is ahead of the store, so that idle sessions can move out."""
        await self._flush()

    async def _make_room(self, model: Model) -> None:
        try:
            self._capacity.make_room(model, self._clock())
        except SessionLimit:
            await self._flush()
            self._capacity.make_room(model, self._clock())

    async def confirm(self, key: str) -> None:
        """Makes what is known of the key here what the store has. Raises as fetch().

        What must be certain when it is said (a gap, another incarnation) asks this first.
        """
        async with self.alone(key):
            await self.refresh(key)

    async def refresh(self, key: str, is_ending: bool = False) -> Version | None:
        """The same; the key's lock is held. Returns what the store has, if it is known."""
        row = self._table.find(key)
        if row is not None:
            (content,) = await self._store.load([key])
            if row == self._table.find(key):
                if is_same_life(found_version(content), self._version(row)):
                    return self._version(row)
                self._sessions.leave(row, "moved", self._clock())
        return await self._load(key, is_ending)

    def is_expired(self, key: str, stored: Version) -> bool:
        """Whether this life of the id ended here by its TTL, and nobody has taken it since."""
        now_ns = self._clock().monotonic_ns
        return self._sessions.past.has_expired(key, stored.incarnation, stored.epoch, now_ns)

    def bury(self, key: str, incarnation: int, stored: Version) -> None:
        """It is closed, though it is not here. Raises SessionReplaced."""
        if incarnation not in (0, stored.incarnation):
            raise SessionReplaced(
                "this id was opened again; the session you had has ended",
                metadata={"incarnation": str(stored.incarnation)},
            )
        tombstone = Tombstone(stored.incarnation, "closed", stored.step, stored.epoch)
        self._sessions.past.add_tombstone(key, tombstone, self._clock().monotonic_ns)

    def version(self, key: str) -> Version | None:
        """What the store has of a session that is here."""
        row = self._table.find(key)
        return None if row is None else self._version(row)

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

    def _version(self, row: int) -> Version:
        return self._records.version(row)
