"""Owns a value that is read from files, and read anew when they change. Decides no contents."""

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


class Reloading(Generic[Value]):
    """`load` raises BadFile: at first that is the caller's, later the old value is kept.

    Any thread may call; two at once load twice, and one of the two equal values stays.
    """

    def __init__(self, paths: Sequence[Path], load: Callable[[], Value]) -> None:
        self._paths = paths
        self._load = load
        self._seen = self._stamp()
        self.value = load()

    def refresh(self) -> bool:
        """Whether the files changed to another value, which `value` is then."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp  # taken before loading: what changes meanwhile is seen next time
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
    """Differs when the file behind the path, or its link, was replaced or written.

    Whoever writes a file can set its mtime back, as rsync does; the ctime is the kernel's.
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
