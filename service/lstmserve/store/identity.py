"""Checks that the database at its path is still the one that is open.

An open file outlives its removal: SQLite would go on writing to a file that no later process can
find. Only the store's own thread writes these files, so any other change is another program's. This
module must not write to them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# What SQLite changes with every checkpoint: the database's header, the log's salts.
_HEAD_BYTES: Final = {"": 100, "-wal": 32}


class FileLost(Exception):
    """The path leads to another file, or another program wrote it: the message says which."""


class FileUnseen(Exception):
    """The file cannot be looked at now: the message says why."""


@dataclass(slots=True)
class _OpenFile:
    path: str
    fd: int
    head_bytes: int
    identity: tuple[int, int]  # device and inode
    size: int = 0
    head: bytes = b""

    def is_there(self) -> bool:
        """Whether the path leads to this file."""
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self.identity


class FileIdentity:
    """The database of `path` and its log, on the store's thread.

    Its descriptors stay open as long as SQLite's: to close one would drop SQLite's locks.
    """

    def __init__(self, path: Path) -> None:
        """The database must be open and locked already. Raises OSError."""
        self._path = path
        self._files: dict[str, _OpenFile] = {}
        self.note()

    def check(self) -> None:
        """Raises FileLost where another program touched the files since note(), and FileUnseen."""
        for file in self._files.values():
            _check_place(file)
            if os.fstat(file.fd).st_size < file.size:
                raise FileLost(f"{file.path} was truncated")
            if os.pread(file.fd, file.head_bytes, 0) != file.head:
                raise FileLost(f"{file.path} was written by another program")

    def note(self) -> None:
        """Notes what SQLite has just written. Raises FileLost, FileUnseen."""
        for suffix, head_bytes in _HEAD_BYTES.items():
            file = self._files.get(suffix) or self._open(suffix, head_bytes)
            if file is None:
                continue
            _check_place(file)
            size = os.fstat(file.fd).st_size
            if size < file.size:  # neither SQLite's log nor its database shrinks while it is open
                raise FileLost(f"{file.path} was truncated")
            file.size, file.head = size, os.pread(file.fd, head_bytes, 0)

    def close(self) -> None:
        """Closes the descriptors; SQLite must have closed its own."""
        for file in self._files.values():
            os.close(file.fd)
        self._files.clear()

    def may_close(self) -> bool:
        """Whether SQLite may close, which writes the log back and removes the log by its name."""
        database, log = self._files[""], self._files.get("-wal")
        return not database.is_there() and (log is None or log.is_there())

    def _open(self, suffix: str, head_bytes: int) -> _OpenFile | None:
        path = f"{self._path}{suffix}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None  # SQLite has not made it yet
        found = os.fstat(fd)
        self._files[suffix] = _OpenFile(path, fd, head_bytes, (found.st_dev, found.st_ino))
        return self._files[suffix]


def _check_place(file: _OpenFile) -> None:
    try:
        found = os.stat(file.path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileLost(f"{file.path} was removed or moved away") from None
    except OSError as error:
        raise FileUnseen(f"{file.path} cannot be looked at: {error.strerror}") from error
    if (found.st_dev, found.st_ino) != file.identity:
        raise FileLost(f"{file.path} was replaced by another file")
