"""Keeps a value that is loaded from files, and reloads it when they change.

It does not know what is in the files: its `load` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

Value = TypeVar("Value")
Stamp = tuple[tuple[int, ...] | None, ...]
log = structlog.get_logger()


class BadFile(Exception):
    """A file that cannot be used; the message is one line for the operator."""


class FileReloader(Generic[Value]):
    """The constructor raises BadFile if `load` does; refresh() logs it and keeps the old value.

    Any thread may call refresh(); two at once load twice, and keep one of two equal values.
    """

    def __init__(self, paths: Sequence[Path], load: Callable[[], Value]) -> None:
        self._paths = paths
        self._load = load
        self._seen = self._stamp()
        self.value = load()

    def refresh(self) -> bool:
        """Loads the files if they changed. Returns whether `value` is a new one."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp  # from before the load: the next call sees a change that comes meanwhile
        try:
            self.value = self._load()
        except BadFile as error:
            log.error("file refused, the old one stays in force", reason=str(error))
            return False
        log.info("files reloaded", files=[path.name for path in self._paths])
        return True

    def _stamp(self) -> Stamp:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """A value that changes whenever the file, or the link to it, is replaced or written.

    A writer can set the mtime back, as rsync does, but not the ctime.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size


def read_bytes(flag: str, path: Path) -> bytes:
    """The file's content. Raises BadFile naming the flag."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadFile(f"{flag} {path}: {error.strerror}") from error
