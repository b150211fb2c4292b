"""Remembers the incarnation of each session that a command of this user named, in a file.

The file is like ssh's known_hosts: without it a first use and a lost session look the same to a
server that keeps its sessions in memory. It holds no state, no token and no row.
"""

from __future__ import annotations

import functools
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import click

SESSIONS_MAX: Final = 10_000  # the most recently used ones
WAIT_S: Final = 5.0  # for another command that writes
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS sessions (target TEXT, id TEXT, incarnation INTEGER, "
    "PRIMARY KEY (target, id))"
)
_PRUNE: Final = (
    "DELETE FROM sessions WHERE rowid <= (SELECT max(rowid) FROM sessions) - ?"  # the oldest
)


class KnownSessions:
    """The sessions of one server, by the target that the user typed. Warns if the file fails."""

    def __init__(self, target: str) -> None:
        self._target = target

    def get(self, session_id: str) -> int | None:
        """The incarnation that the shell had last, or None."""
        query = "SELECT incarnation FROM sessions WHERE target = ? AND id = ?"
        found = _execute((query, (self._target, session_id)))
        return int(found[0][0]) if found else None

    def put(self, session_id: str, incarnation: int) -> None:
        insert = "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?)"
        row = self._target, session_id, incarnation
        _execute((insert, row), (_PRUNE, (SESSIONS_MAX,)))

    def forget(self, session_id: str) -> None:
        delete = "DELETE FROM sessions WHERE target = ? AND id = ?"
        _execute((delete, (self._target, session_id)))


def path() -> Path:
    """$XDG_STATE_HOME/lstmserve/sessions.db, or below ~/.local/state."""
    given = os.environ.get("XDG_STATE_HOME", "")
    base = Path(given) if given.startswith("/") else Path.home() / ".local" / "state"
    return base / "lstmserve" / "sessions.db"


def _execute(*statements: tuple[str, tuple[Any, ...]]) -> list[Any]:
    """The rows of a transaction's last statement. A failure gives a warning and no rows."""
    rows: list[Any] = []
    try:
        file = path()
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with closing(sqlite3.connect(file, timeout=WAIT_S)) as database, database:
            database.execute(_TABLE)
            for statement, values in statements:
                rows = database.execute(statement, values).fetchall()
    except (OSError, RuntimeError, sqlite3.Error) as error:
        _warn(str(getattr(error, "strerror", None) or error))
        return []
    return rows


@functools.cache
def _warn(why: str) -> None:
    """Warns once in a command for each cause."""
    click.echo(
        f"Warning: cannot remember sessions in $XDG_STATE_HOME/lstmserve ({why}): "
        "a lost session will go unnoticed",
        err=True,
    )
