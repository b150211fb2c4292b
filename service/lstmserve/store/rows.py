"""Owns the file store's SQLite database. Blocking: lives on one thread, never on the loop's.

The write-ahead log makes a transaction all or nothing whatever kills the process; with `sync` each
one is on disk before `put` returns, without it a power cut may take back the last ones, never a
part of one. Around each transaction the files are held to what is open (identity.py).
"""

from __future__ import annotations

import ctypes
import sqlite3
import struct
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from lstmserve.refusal import ServeError
from lstmserve.store.clock import Mark, Read, StoreClock
from lstmserve.store.database import error_code, error_words, open_database
from lstmserve.store.errors import StoreFull, StoreTimeout, StoreUnavailable
from lstmserve.store.identity import FileLost, FileUnseen
from lstmserve.store.record import VERSION_SLICE, Version, pack_version, unpack_version
from lstmserve.store.store import Write, Written, refusal

SWEPT_PER_CREATION: Final = 4  # so that at most a third of the rows are expired ones
MARK_MS: Final = 60_000  # the store's time is written down this often
ALWAYS_MS: Final = -(2**62)  # before every expiry

# Damage can turn a column into any type: what is read is bytes whatever it is.
_LOAD: Final = (
    "SELECT coalesce(CAST(content AS BLOB), x'') FROM record WHERE key = ? AND expiry_ms > ?"
)
_VERSION: Final = "SELECT CAST(version AS BLOB) FROM record WHERE key = ?"
_INSERT: Final = """
INSERT INTO record (key, version, expiry_ms, content) VALUES (?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE
SET version = excluded.version, expiry_ms = excluded.expiry_ms, content = excluded.content
WHERE expiry_ms <= ?
"""
# Who knows the version owns the session, and whoever owns it knows better whether it has expired.
_UPDATE: Final = (
    "UPDATE record SET version = ?, expiry_ms = ?, content = ? WHERE key = ? AND version = ?"
)
_DELETE: Final = "DELETE FROM record WHERE key = ? AND version = ?"
_SWEEP: Final = (
    "SELECT rowid, CAST(key AS BLOB), expiry_ms <= ? FROM record"
    " WHERE rowid > ? ORDER BY rowid LIMIT ?"
)
_DROP: Final = "DELETE FROM record WHERE key = ? AND expiry_ms <= ?"
_QUARANTINE: Final = (
    "INSERT INTO quarantine SELECT key, :now_ms, :content FROM record"
    " WHERE key = :key AND coalesce(CAST(content AS BLOB), x'') = :content",
    "DELETE FROM record WHERE key = :key AND coalesce(CAST(content AS BLOB), x'') = :content",
)
# A release that does not know the table takes the wall clock for the store's time.
_CLOCK: Final = "CREATE TABLE IF NOT EXISTS clock (id INTEGER PRIMARY KEY, mark BLOB NOT NULL)"
_MARK: Final = "INSERT OR REPLACE INTO clock (id, mark) VALUES (1, ?)"
T = TypeVar("T")


class Rows:
    """The rows of one database file, expired by the store's own clock, which `read` drives."""

    def __init__(self, path: Path, *, sync: bool, bytes_max: int | None, read: Read) -> None:
        """Opens or creates the file and takes its lock. Raises StoreRefused."""
        self._swept_rowid = 0
        self._lost = ""  # what became of the file, once it is not ours any more
        self._database, self._identity = open_database(path, sync=sync, bytes_max=bytes_max)
        self._clock = StoreClock(read, self._read_mark())
        self._mark = self._clock.mark()
        with suppress(ServeError):
            self._commit(lambda: self._database.execute(_CLOCK))
        self._write_mark()

    def load(self, keys: Sequence[str], held: Set[str] = frozenset()) -> list[bytes | None]:
        """As Store.load; those that are `held` do not expire."""
        self._check()
        now_ms = self._clock.now_ms()
        asked = [(key, ALWAYS_MS if key in held else now_ms) for key in keys]
        try:
            rows = [self._database.execute(_LOAD, each).fetchone() for each in asked]
        except sqlite3.Error as error:
            raise StoreUnavailable("the store cannot be read", cause=error_words(error)) from error
        return [row and row[0] for row in rows]

    def put(
        self, writes: Sequence[Write], doomed: Sequence[str] = ()
    ) -> tuple[list[Written], list[str]]:
        """As Store.put; one transaction, or one each when all together do not fit.

        Drops those of the `doomed` keys that have expired. Returns also keys that have, for the
        caller to say whether they are doomed.
        """
        try:
            result = self._commit(lambda: self._write_all(writes, doomed))
        except StoreFull:
            try:
                result = [self._write_alone(write) for write in writes], []
            except StoreUnavailable as error:
                raise StoreTimeout(
                    "the store was lost half-way", cause=error.cause, is_final=error.is_final
                ) from error
        if self._clock.mark().store_ms - self._mark.store_ms >= MARK_MS:
            self._write_mark()
        return result

    def quarantine(self, key: str, content: bytes) -> None:
        """As Store.quarantine. Raises StoreFull also."""
        row = {"key": key, "content": content, "now_ms": self._clock.mark().reading.wall_ms}
        self._commit(lambda: [self._database.execute(text, row) for text in _QUARANTINE])

    def check(self) -> None:
        """Raises StoreUnavailable when the file is not what is open; notes where a clock jumped."""
        self._check()
        if self._clock.has_jumped(self._mark):
            self._write_mark()

    def close(self) -> None:
        """Writes the log back into the file and gives the lock back."""
        with suppress(ServeError):
            self._check()
            self._write_mark()
        if self._lost and not self._identity.may_close():
            # SQLite would remove a log that is now another database's, or write to what it is not.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._database))  # not even at the exit
            return
        self._database.close()
        self._identity.close()

    def _check(self) -> None:
        """Raises StoreUnavailable, for good once the file was lost."""
        if not self._lost:
            try:
                self._identity.check()
            except FileLost as lost:
                self._lost = str(lost)
            except FileUnseen as error:
                raise StoreUnavailable("the store cannot be reached", cause=str(error)) from None
        if self._lost:
            raise StoreUnavailable("the store's file is gone", cause=self._lost, is_final=True)

    def _note(self) -> None:
        """After a commit: it counts only if it lies in the file that a later process finds."""
        try:
            self._identity.note()
        except FileLost as lost:
            self._lost = str(lost)
            raise StoreTimeout(
                "the store's file is gone", cause=self._lost, is_final=True
            ) from None
        except FileUnseen as error:
            raise StoreTimeout("the store cannot be reached", cause=str(error)) from None

    def _commit(self, work: Callable[[], T]) -> T:
        """The work in a transaction. Raises StoreFull, StoreUnavailable or StoreTimeout."""
        self._check()
        try:
            result = self._transact(work)
        except BaseException:
            with suppress(ServeError):  # SQLite may have written, though not to the end
                self._note()
            raise
        self._note()
        return result

    def _transact(self, work: Callable[[], T]) -> T:
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
            cause = error_words(error)
            if may_be_written:
                raise StoreTimeout("the store's answer was lost", cause=cause) from error
            raise StoreUnavailable("the store cannot be written", cause=cause) from error
        return result

    def _write_all(
        self, writes: Sequence[Write], doomed: Sequence[str]
    ) -> tuple[list[Written], list[str]]:
        now_ms = self._clock.now_ms()
        self._database.executemany(_DROP, [(key, now_ms) for key in doomed])
        outcomes = [self._write(write) for write in writes]
        creations = sum(write.expected is None for write in writes)
        return outcomes, self._expired(SWEPT_PER_CREATION * creations)

    def _write_alone(self, write: Write) -> Written:
        try:
            return self._commit(lambda: self._write(write))
        except StoreFull:
            return Written.FULL

    def _write(self, write: Write) -> Written:
        now_ms = self._clock.now_ms()
        expiry_ms = now_ms + max(1, round(write.ttl_s * 1000))
        if write.expected is None:
            assert write.content is not None
            row = (write.key, write.content[VERSION_SLICE], expiry_ms, write.content, now_ms)
            cursor = self._database.execute(_INSERT, row)
        else:
            old = (write.key, pack_version(write.expected))
            if write.content is None:
                cursor = self._database.execute(_DELETE, old)
            else:
                new = (write.content[VERSION_SLICE], expiry_ms, write.content)
                cursor = self._database.execute(_UPDATE, (*new, *old))
        if cursor.rowcount:
            return Written.OK
        found = self._database.execute(_VERSION, (write.key,)).fetchone()
        return refusal(write.expected, _version(found[0]) if found else None)

    def _expired(self, count: int) -> list[str]:
        """Looks at the next `count` rows, round and round: the keys of those that have expired."""
        if not count:
            return []
        now_ms = self._clock.now_ms()
        rows = self._database.execute(_SWEEP, (now_ms, self._swept_rowid, count)).fetchall()
        self._swept_rowid = rows[-1][0] if len(rows) == count else 0
        return [(key or b"").decode(errors="replace") for _, key, is_expired in rows if is_expired]

    def _read_mark(self) -> Mark | None:
        try:
            row = self._database.execute("SELECT CAST(mark AS BLOB) FROM clock").fetchone()
        except sqlite3.Error:  # no such table, or damage
            return None
        return Mark.unpack(row[0] or b"") if row else None

    def _write_mark(self) -> None:
        """Where it cannot be written, the last one serves a little less well."""
        mark = self._clock.mark()
        with suppress(ServeError):
            self._commit(lambda: self._database.execute(_MARK, (mark.pack(),)))
            self._mark = mark


def _version(raw: bytes | None) -> Version:
    """Raises StoreUnavailable for what damage left of one."""
    try:
        return unpack_version(raw or b"")
    except struct.error as error:
        raise StoreUnavailable("the store's record is damaged") from error
