"""A cache that is bounded in number and age: the oldest entry goes first.

It reads no clock: callers pass the time.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

Value = TypeVar("Value")

SWEPT_MAX = 10_000  # entries that one sweep drops: the event loop waits for it


class TtlCache(Generic[Value]):
    """Keeps at most `count_max` values, each for `keep_ns` after it was put."""

    def __init__(self, count_max: int, keep_ns: int) -> None:
        self._count_max = count_max
        self._keep_ns = keep_ns
        self._entries: OrderedDict[str, tuple[int, Value]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: str, value: Value, now_ns: int) -> None:
        """Replaces what the key had, and drops the oldest entry beyond the limit."""
        self._entries.pop(key, None)
        self._entries[key] = (now_ns, value)
        if len(self._entries) > self._count_max:
            self._entries.popitem(last=False)

    def get(self, key: str, now_ns: int) -> Value | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if now_ns - entry[0] > self._keep_ns:
            del self._entries[key]
            return None
        return entry[1]

    def drop(self, key: str) -> None:
        self._entries.pop(key, None)

    def sweep(self, now_ns: int) -> None:
        """Drops entries that are too old, at most SWEPT_MAX in one call."""
        for _ in range(min(SWEPT_MAX, len(self._entries))):
            key, (put_ns, _) = next(iter(self._entries.items()))
            if now_ns - put_ns <= self._keep_ns:
                return
            del self._entries[key]
