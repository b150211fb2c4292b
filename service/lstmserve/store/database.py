"""The file store's SQLite database: opens and locks it, compares and sets records in it.

It blocks, so it lives on one thread, never on the event loop's. The write-ahead log makes a
transaction all or nothing whatever kills the process. With `sync` each transaction is on disk
before `put` returns; without it a power cut may take back the last ones, never a part of one. One
connection holds the file's lock for as long as it lives. Around each transaction it checks that
the files are still those that are open (identity.py). It must not touch a file that is not its
own, and reads nothing of a record but its version.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import sqlite3
import stat
import struct
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from lstmserve.refusal import ServeError
from lstmserve.store.clock import Mark, Read, StoreClock
from lstmserve.store.identity import FileIdentity, FileLost, FileUnseen
from lstmserve.store.record import VERSION_SLICE, pack_version, unpack_version
from lstmserve.store.store import (
    LoadOutcome,
    StoreFull,
    StoreRefused,
    StoreTimeout,
    StoreUnavailable,
    Write,
    WriteOutcome,
    Written,
    refusal,
)

FORMAT: Final = 1
PAGE_BYTES: Final = 4096
CACHE_KIB: Final = 32 << 10

_CREATE: Final = f"""
BEGIN;
CREATE TABLE record (
    key TEXT PRIMARY KEY, version BLOB NOT NULL, expiry_ms INTEGER NOT NULL, content BLOB NOT NULL
);
CREATE TABLE quarantine (key TEXT NOT NULL, moved_ms INTEGER NOT NULL, content BLOB NOT NULL);
PRAGMA user_version = {FORMAT};
COMMIT;
"""
_CHECK: Final = (
    "SELECT key, version, expiry_ms, content FROM record LIMIT 0",
    "SELECT key, moved_ms, content FROM quarantine LIMIT 0",
)

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
# A server that knows the version owns the session, and knows better whether it has expired.
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


class RecordDatabase:
    """The records of one database file, expired by the store's own clock, which `read` drives."""

    def __init__(self, path: Path, *, sync: bool, bytes_max: int | None, read: Read) -> None:
        """Opens or creates the file and takes its lock. Raises StoreRefused."""
        self._swept_rowid = 0
        self._lost = ""  # what became of the file, once the path leads elsewhere
        self._database, self._identity = _open(path, sync=sync, bytes_max=bytes_max)
        self._clock = StoreClock(read, self._read_mark())
        self._mark = self._clock.mark()
        with suppress(ServeError):
            self._commit(lambda: self._database.execute(_CLOCK))
        self._write_mark()

    def load(self, keys: Sequence[str], held: Set[str] = frozenset()) -> list[LoadOutcome]:
        """Does what Store.load() does; keys that are `held` do not expire."""
        try:
            self._check()
        except StoreUnavailable as error:
            return [error] * len(keys)
        now_ms = self._clock.now_ms()
        return [self._read(key, ALWAYS_MS if key in held else now_ms) for key in keys]

    def put(
        self, writes: Sequence[Write], doomed: Sequence[str] = ()
    ) -> tuple[list[WriteOutcome], list[str]]:
        """Does what Store.put() does, in one transaction; if that fails as a whole, in one each.

        Drops those of the `doomed` keys that have expired. Also returns keys that have expired: the
        caller decides which of them are doomed.
        """
        outcomes: list[WriteOutcome]
        try:
            outcomes, expired = self._commit(lambda: self._write_all(writes, doomed))
        except StoreTimeout as error:
            return [error] * len(writes), []
        except (StoreFull, StoreUnavailable):  # rolled back: perhaps one write is at fault
            outcomes, expired = self._write_each(writes), []
        if self._clock.mark().store_ms - self._mark.store_ms >= MARK_MS:
            self._write_mark()
        return outcomes, expired

    def quarantine(self, key: str, content: bytes) -> None:
        """Does what Store.quarantine() does."""
        row = {"key": key, "content": content, "now_ms": self._clock.mark().reading.wall_ms}
        self._commit(lambda: [self._database.execute(text, row) for text in _QUARANTINE])

    def check(self) -> None:
        """Notes a clock that jumped. Raises StoreUnavailable when the file was lost."""
        self._check()
        if self._clock.has_jumped(self._mark):
            self._write_mark()

    def close(self) -> None:
        """Writes the log back into the file and releases the lock."""
        with suppress(ServeError):
            self._check()
            self._write_mark()
        if self._lost and not self._identity.may_close():
            # SQLite would remove a log that is now another database's, or write to another's file.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._database))  # not even at exit
            return
        self._database.close()
        self._identity.close()

    def _check(self) -> None:
        """Raises StoreUnavailable if the path leads elsewhere now, or ever did."""
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
        """Checks after a commit that it lies in the file which a later process will find."""
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
        """Does the work in a transaction. Raises StoreFull, StoreUnavailable or StoreTimeout."""
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
            if _error_code(error) == sqlite3.SQLITE_FULL:
                raise StoreFull("the store is full") from error
            cause = _error_words(error)
            if may_be_written:
                raise StoreTimeout("the store's answer was lost", cause=cause) from error
            raise StoreUnavailable("the store cannot be written", cause=cause) from error
        return result

    def _write_all(
        self, writes: Sequence[Write], doomed: Sequence[str]
    ) -> tuple[list[WriteOutcome], list[str]]:
        now_ms = self._clock.now_ms()
        self._database.executemany(_DROP, [(key, now_ms) for key in doomed])
        outcomes = [self._write(write) for write in writes]
        creations = sum(write.expected is None for write in writes)
        return outcomes, self._expired(SWEPT_PER_CREATION * creations)

    def _write_each(self, writes: Sequence[Write]) -> list[WriteOutcome]:
        """Makes each write in a transaction of its own.

        When the file is lost half-way, no earlier write of the put counts as stored.
        """
        outcomes = [self._write_alone(write) for write in writes]
        if not self._lost:
            return outcomes
        gone = StoreTimeout("the store's file is gone", cause=self._lost, is_final=True)
        return [gone if each is Written.OK else each for each in outcomes]

    def _write_alone(self, write: Write) -> WriteOutcome:
        try:
            return self._commit(lambda: self._write(write))
        except StoreFull:
            return Written.FULL
        except (StoreUnavailable, StoreTimeout) as error:
            return error.with_traceback(None)

    def _write(self, write: Write) -> WriteOutcome:
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
        try:
            version = unpack_version(found[0] or b"") if found else None
        except struct.error:
            cause = "the version in a record is damaged"
            return StoreUnavailable("the store's record is damaged", cause=cause, is_of_key=True)
        return refusal(write.expected, version)

    def _read(self, key: str, now_ms: int) -> LoadOutcome:
        try:
            row = self._database.execute(_LOAD, (key, now_ms)).fetchone()
        except sqlite3.Error as error:
            return StoreUnavailable("the store cannot be read", cause=_error_words(error))
        content: bytes | None = row and row[0]
        return content

    def _expired(self, count: int) -> list[str]:
        """The keys that have expired among the next `count` rows.

        After the last row the next call starts over at the first.
        """
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
        """Writes the store's time down; if that fails, the file keeps the last mark."""
        mark = self._clock.mark()
        with suppress(ServeError):
            self._commit(lambda: self._database.execute(_MARK, (mark.pack(),)))
            self._mark = mark


def _open(
    path: Path, *, sync: bool, bytes_max: int | None
) -> tuple[sqlite3.Connection, FileIdentity]:
    """Opens or creates the file, takes its lock and notes its identity. Raises StoreRefused."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=0, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise StoreRefused(_why_not(path, error)) from error
    try:
        _prepare(database, path, sync, bytes_max)
        return database, FileIdentity(path)
    except (OSError, sqlite3.Error, FileLost, FileUnseen) as error:
        database.close()
        if _error_code(error) == sqlite3.SQLITE_BUSY:
            raise StoreRefused(
                f"another process has the store's folder {path.parent} open: stop it, "
                "or name another folder"
            ) from error
        raise StoreRefused(_why_not(path, error)) from error
    except StoreRefused:
        database.close()
        raise


def _error_code(error: Exception) -> int | None:
    """SQLite's error code; errors of Python's module itself have none."""
    return getattr(error, "sqlite_errorcode", None)


def _error_words(error: Exception) -> str:
    """SQLite's message with the name of its code."""
    name = getattr(error, "sqlite_errorname", None)
    return f"{error} ({name})" if name else str(error)


def _why_not(path: Path, error: Exception) -> str:
    """Why the file cannot be used: the obstacle, its owner and what to do."""
    try:
        found = _obstacle(path)
    except OSError:  # it changes while we look
        found = ""
    if found:
        return f"the store {path} cannot be used: {found}"
    why = error.strerror if isinstance(error, OSError) else _error_words(error)
    return f"the store {path} cannot be opened: {why}"


def _obstacle(path: Path) -> str:
    """What keeps this process from the file, "" when it sees nothing. Raises OSError."""
    place = path.parent
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return f"{place} is no folder: name another one"
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        return f"{place} lies on a file system that is mounted read-only: mount it for writing"
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        return _belongs(place, "rwx")
    for file in (path, Path(f"{path}-wal")):
        if file.is_dir():
            return f"{file} is a folder: move it away"
        if os.path.lexists(file) and not os.access(file, os.R_OK | os.W_OK, effective_ids=True):
            return _belongs(file, "rw")
    return ""


def _belongs(place: Path, rights: str) -> str:
    """Who owns the place, and who needs which rights on it."""
    found, uid = place.stat(), os.geteuid()
    return (
        f"this process, {_user(uid)}, needs {rights} on {place}, which belongs to "
        f"{_user(found.st_uid)} with mode {stat.S_IMODE(found.st_mode):04o}: "
        f"chown it to {uid}, or run the server as its owner"
    )


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _prepare(database: sqlite3.Connection, path: Path, sync: bool, bytes_max: int | None) -> None:
    database.text_factory = bytes  # damaged text need not be UTF-8
    run = database.execute
    run(f"PRAGMA page_size = {PAGE_BYTES}")
    run("PRAGMA locking_mode = EXCLUSIVE")
    is_new = _is_new(database, path)
    if run("PRAGMA journal_mode = WAL").fetchone() != (b"wal",):
        raise StoreRefused(
            f"the file system of the store {path} allows no write-ahead log: use a local disk"
        )
    run(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")
    run(f"PRAGMA cache_size = -{CACHE_KIB}")
    if bytes_max is not None:
        run(f"PRAGMA max_page_count = {bytes_max // PAGE_BYTES}")
    run("BEGIN EXCLUSIVE")  # takes the lock, which the mode then keeps
    run("COMMIT")
    if is_new:
        database.executescript(_CREATE)


def _is_new(database: sqlite3.Connection, path: Path) -> bool:
    """Whether the database is empty; only reads. Raises StoreRefused for another format."""
    (found,) = database.execute("PRAGMA user_version").fetchone()
    (table_count,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not found and not table_count:
        return True
    if not found:
        raise StoreRefused(f"the store {path} is another program's database: name another folder")
    if found != FORMAT:
        raise StoreRefused(
            f"the store {path} has format {found}, this release reads {FORMAT}: "
            "start the release that wrote it, or name another folder"
        )
    for select in _CHECK:
        database.execute(select)
    return False
