"""Owns how the file store's SQLite database is opened: its lock, its format. Reads no record.

One connection holds the file's lock for as long as it lives. What is not ours is not touched.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from lstmserve.store.store import StoreRefused

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


def open_database(path: Path, *, sync: bool, bytes_max: int | None) -> sqlite3.Connection:
    """Opens or creates the file and takes its lock. Raises StoreRefused."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=0, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise StoreRefused(f"the store's folder cannot be used: {why}") from error
    try:
        _prepare(database, sync, bytes_max)
    except sqlite3.Error as error:
        database.close()
        if error_code(error) == sqlite3.SQLITE_BUSY:
            raise StoreRefused("another process has the store's folder open") from error
        raise StoreRefused(f"the store's file cannot be opened: {error}") from error
    except StoreRefused:
        database.close()
        raise
    return database


def error_code(error: sqlite3.Error) -> int | None:
    """SQLite's code, which errors of the module itself lack."""
    return getattr(error, "sqlite_errorcode", None)


def _prepare(database: sqlite3.Connection, sync: bool, bytes_max: int | None) -> None:
    database.text_factory = bytes  # damaged text need not be UTF-8
    run = database.execute
    run(f"PRAGMA page_size = {PAGE_BYTES}")
    run("PRAGMA locking_mode = EXCLUSIVE")
    is_new = _is_new(database)
    if run("PRAGMA journal_mode = WAL").fetchone() != (b"wal",):
        raise StoreRefused("the store's file system allows no write-ahead log")
    run(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")
    run(f"PRAGMA cache_size = -{CACHE_KIB}")
    if bytes_max is not None:
        run(f"PRAGMA max_page_count = {bytes_max // PAGE_BYTES}")
    run("BEGIN EXCLUSIVE")  # takes the lock, which the mode then keeps
    run("COMMIT")
    if is_new:
        database.executescript(_CREATE)


def _is_new(database: sqlite3.Connection) -> bool:
    """Whether it is empty; only reads. Raises StoreRefused for what is not of this format."""
    (found,) = database.execute("PRAGMA user_version").fetchone()
    (table_count,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not found and not table_count:
        return True
    if not found:
        raise StoreRefused("the store's file is another program's database: name another folder")
    if found != FORMAT:
        raise StoreRefused(
            f"the store has format {found}, this release reads {FORMAT}: "
            "start the release that wrote it, or name another folder"
        )
    for select in _CHECK:
        database.execute(select)
    return False
