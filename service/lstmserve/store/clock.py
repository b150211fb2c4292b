"""The file store's time: milliseconds that setting the machine's clock does not move.

While the machine is up, the time follows the monotonic clock, from one process to the next too.
From one boot to the next it follows the wall clock, forward only. So it differs from the wall clock
by as much as that clock was set. Only `Read` may read a clock.
"""

from __future__ import annotations

import functools
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import google_crc32c

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")  # Linux; elsewhere each process is a boot
JUMP_MS: Final = 1000  # more than that: the wall clock was set, not slewed

_MARK: Final = struct.Struct("<3q36s")
_CRC: Final = struct.Struct("<I")


class Reading(NamedTuple):
    """The machine's clocks: since 1970, and since the boot `boot_id` ("" where it is unknown)."""

    wall_ms: int
    monotonic_ms: int
    boot_id: str


class Mark(NamedTuple):
    """The store's time at one reading of the clocks; the next process continues from it."""

    store_ms: int
    reading: Reading

    def pack(self) -> bytes:
        """The bytes that `unpack` reads."""
        wall_ms, monotonic_ms, boot_id = self.reading
        raw = _MARK.pack(self.store_ms, wall_ms, monotonic_ms, boot_id.encode())
        return raw + _CRC.pack(google_crc32c.value(raw))

    @classmethod
    def unpack(cls, content: bytes) -> Mark | None:
        """The packed mark, None for damaged bytes: a wrong time would expire every session."""
        raw, crc = content[: _MARK.size], content[_MARK.size :]
        if len(raw) != _MARK.size or crc != _CRC.pack(google_crc32c.value(raw)):
            return None
        store_ms, wall_ms, monotonic_ms, boot_id = _MARK.unpack(raw)
        return cls(store_ms, Reading(wall_ms, monotonic_ms, boot_id.rstrip(b"\0").decode()))


Read = Callable[[], Reading]


def read_clocks() -> Reading:
    """The machine's clocks now."""
    return Reading(time.time_ns() // 1_000_000, time.monotonic_ns() // 1_000_000, _boot_id())


@functools.cache
def _boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()[:36]
    except OSError:
        return ""


class StoreClock:
    """The store's time, continued from `mark`, or from the wall clock if there is no mark."""

    def __init__(self, read: Read, mark: Mark | None) -> None:
        self._read = read
        now = read()
        start_ms = now.wall_ms if mark is None else mark.store_ms + _elapsed_ms(mark.reading, now)
        self._offset_ms = start_ms - now.monotonic_ms

    def now_ms(self) -> int:
        return self._read().monotonic_ms + self._offset_ms

    def mark(self) -> Mark:
        """The store's time and the clocks it belongs to, for the next process."""
        now = self._read()
        return Mark(now.monotonic_ms + self._offset_ms, now)

    def has_jumped(self, since: Mark) -> bool:
        """Whether the wall clock was set since that mark of this process."""
        now, then = self._read(), since.reading
        wall_ms, monotonic_ms = now.wall_ms - then.wall_ms, now.monotonic_ms - then.monotonic_ms
        return abs(wall_ms - monotonic_ms) > JUMP_MS


def _elapsed_ms(then: Reading, now: Reading) -> int:
    """The time that passed between two readings, perhaps of two processes."""
    if now.boot_id and now.boot_id == then.boot_id and now.monotonic_ms >= then.monotonic_ms:
        return now.monotonic_ms - then.monotonic_ms
    return max(0, now.wall_ms - then.wall_ms)
