"""Owns the file store's SQLite database. Blocking: lives on one thread, never on the loop's.

The write-ahead log makes a transaction all or nothing whatever kills the process; with `sync` each
one is on disk before `put` returns, without it a power cut may take back the last ones, never a
part of one.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from lstmserve.store.database import error_code, open_database
from lstmserve.store.errors import StoreFull, StoreTimeout, StoreUnavailable
from lstmserve.store.record import VERSION_SLICE, Version, pack_version, unpack_version
from lstmserve.store.store import Write, Written, refusal

SWEPT_PER_CREATION: Final = 4  # so that at most a third of the rows are expired ones

# Damage can turn a column into any type: what is read is bytes whatever it is.
_LOAD: Final = (
    "SELECT coalesce(CAST(content AS BLOB), x'') FROM record WHERE key = ? AND expiry_ms > ?"
)
_VERSION: Final = "SELECT CAST(version AS BLOB) FROM record WHERE key = ? AND expiry_ms > ?"
_INSERT: Final = """
INSERT INTO record (key, version, expiry_ms, content) VALUES (?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE
SET version = excluded.version, expiry_ms = excluded.expiry_ms, content = excluded.content
WHERE expiry_ms <= ?
"""
_UPDATE: Final = """
UPDATE record SET version = ?, expiry_ms = ?, content = ?
WHERE key = ? AND version = ? AND expiry_ms > ?
"""
_DELETE: Final = "DELETE FROM record WHERE key = ? AND version = ? AND expiry_ms > ?"
_SWEEP: Final = "SELECT rowid, expiry_ms <= ? FROM record WHERE rowid > ? ORDER BY rowid LIMIT ?"
_QUARANTINE: Final = (
    "INSERT INTO quarantine SELECT key, :now_ms, :content FROM record"
    " WHERE key = :key AND coalesce(CAST(content AS BLOB), x'') = :content",
    "DELETE FROM record WHERE key = :key AND coalesce(CAST(content AS BLOB), x'') = :content",
)
T = TypeVar("T")


class Rows:
    """The rows of one database file. `now_s` is seconds since 1970, the clock that expires them."""

    def __init__(
        self, path: Path, *, sync: bool, bytes_max: int | None, now_s: Callable[[], float]
    ) -> None:
        """Opens or creates the file and takes its lock. Raises StoreRefused."""
        self._now_s = now_s
        self._swept_rowid = 0
        self._database = open_database(path, sync=sync, bytes_max=bytes_max)

    def load(self, keys: Sequence[str]) -> list[bytes | None]:
        """As Store.load."""
        now_ms = self._now_ms()
        try:
            rows = [self._database.execute(_LOAD, (key, now_ms)).fetchone() for key in keys]
        except sqlite3.Error as error:
            raise StoreUnavailable("the store cannot be read") from error
        return [row and row[0] for row in rows]

    def put(self, writes: Sequence[Write]) -> list[Written]:
        """As Store.put; one transaction, or one each when all together do not fit."""
        try:
            return self._commit(lambda: self._write_all(writes))
        except StoreFull:
            pass
        try:
            return [self._write_alone(write) for write in writes]
        except StoreUnavailable as error:
            raise StoreTimeout("the store was lost half-way") from error

    def quarantine(self, key: str, content: bytes) -> None:
        """As Store.quarantine. Raises StoreFull also."""
        row = {"key": key, "content": content, "now_ms": self._now_ms()}
        self._commit(lambda: [self._database.execute(text, row) for text in _QUARANTINE])

    def close(self) -> None:
        """Writes the log back into the file and gives the lock back."""
        self._database.close()

    def _commit(self, work: Callable[[], T]) -> T:
        """The work in a transaction. Raises StoreFull, StoreUnavailable or StoreTimeout."""
        may_be_written = False
        try:
            self._database.execute("BEGIN IMMEDIATE")
            result = work()
            may_be_written = True
            self._database.execute("COMMIT")
        except BaseException as error:
            with suppress(sqlite3.Error):
                self._database.rollback()
            if not isinstance(error, sqlite3.Error):
                raise
            if error_code(error) == sqlite3.SQLITE_FULL:
                raise StoreFull("the store is full") from error
            if may_be_written:
                raise StoreTimeout("the store's answer was lost") from error
            raise StoreUnavailable("the store cannot be written") from error
        return result

    def _write_all(self, writes: Sequence[Write]) -> list[Written]:
        outcomes = [self._write(write) for write in writes]
        self._sweep(SWEPT_PER_CREATION * sum(write.expected is None for write in writes))
        return outcomes

    def _write_alone(self, write: Write) -> Written:
        try:
            return self._commit(lambda: self._write(write))
        except StoreFull:
            return Written.FULL

    def _write(self, write: Write) -> Written:
        now_ms = self._now_ms()
        expiry_ms = now_ms + max(1, round(write.ttl_s * 1000))
        if write.expected is None:
            assert write.content is not None
            row = (write.key, write.content[VERSION_SLICE], expiry_ms, write.content, now_ms)
            cursor = self._database.execute(_INSERT, row)
        else:
            old = (write.key, pack_version(write.expected), now_ms)
            if write.content is None:
                cursor = self._database.execute(_DELETE, old)
            else:
                new = (write.content[VERSION_SLICE], expiry_ms, write.content)
                cursor = self._database.execute(_UPDATE, (*new, *old))
        if cursor.rowcount:
            return Written.OK
        found = self._database.execute(_VERSION, (write.key, now_ms)).fetchone()
        return refusal(write.expected, _version(found[0]) if found else None)

    def _sweep(self, count: int) -> None:
        """Looks at the next `count` rows, round and round, and deletes those that expired."""
        now_ms = self._now_ms()
        rows = self._database.execute(_SWEEP, (now_ms, self._swept_rowid, count)).fetchall()
        dead = [(rowid,) for rowid, is_expired in rows if is_expired]
        self._database.executemany("DELETE FROM record WHERE rowid = ?", dead)
        self._swept_rowid = rows[-1][0] if len(rows) == count and rows else 0

    def _now_ms(self) -> int:
        return int(self._now_s() * 1000)


def _version(raw: bytes | None) -> Version:
    """Raises StoreUnavailable for what damage left of one."""
    try:
        return unpack_version(raw or b"")
    except struct.error as error:
        raise StoreUnavailable("the store's record is damaged") from error
