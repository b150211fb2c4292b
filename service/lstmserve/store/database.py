"""Owns how the file store's SQLite database is opened: its lock, its format. Reads no record.

One connection holds the file's lock for as long as it lives. What is not ours is not touched.
"""

from __future__ import annotations

import os
import pwd
import sqlite3
import stat
from pathlib import Path
from typing import Final

from lstmserve.store.identity import FileIdentity, FileLost, FileUnseen
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


def open_database(
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
        if error_code(error) == sqlite3.SQLITE_BUSY:
            raise StoreRefused(
                f"another process has the store's folder {path.parent} open: stop it, "
                "or name another folder"
            ) from error
        raise StoreRefused(_why_not(path, error)) from error
    except StoreRefused:
        database.close()
        raise


def error_code(error: Exception) -> int | None:
    """SQLite's code, which errors of the module itself lack."""
    return getattr(error, "sqlite_errorcode", None)


def error_words(error: Exception) -> str:
    """What SQLite says of it, with the name of its code."""
    name = getattr(error, "sqlite_errorname", None)
    return f"{error} ({name})" if name else str(error)


def _why_not(path: Path, error: Exception) -> str:
    """Why the file cannot be used: what stands in the way, whose it is and what to do."""
    try:
        found = _obstacle(path)
    except OSError:  # it changes while we look
        found = ""
    if found:
        return f"the store {path} cannot be used: {found}"
    why = error.strerror if isinstance(error, OSError) else error_words(error)
    return f"the store {path} cannot be opened: {why}"


def _obstacle(path: Path) -> str:
    """What keeps this process from the file, "" when nothing is seen to. Raises OSError."""
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
    """Whose it is, and who wants to use it."""
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
    """Whether it is empty; only reads. Raises StoreRefused for what is not of this format."""
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
