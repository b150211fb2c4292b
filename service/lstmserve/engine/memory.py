"""Owns what is remembered for a while: bounded in number and age, the oldest goes first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

Value = TypeVar("Value")

SECOND_NS = 1_000_000_000
SWEPT_MAX = 10_000  # at once: others wait meanwhile


class Memory(Generic[Value]):
    """key -> value, for `keep_ns` after it was put, at most `count_max` of them."""

    def __init__(self, count_max: int, keep_ns: int) -> None:
        self._count_max = count_max
        self._keep_ns = keep_ns
        self._entries: OrderedDict[str, tuple[int, Value]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: str, value: Value, now_ns: int) -> None:
        """Remembers, and forgets the oldest beyond the limit."""
        self._entries.pop(key, None)
        self._entries[key] = (now_ns, value)
        if len(self._entries) > self._count_max:
            self._entries.popitem(last=False)

    def get(self, key: str, now_ns: int) -> Value | None:
        """What was put under the key, if that is not too long ago."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if now_ns - entry[0] > self._keep_ns:
            del self._entries[key]
            return None
        return entry[1]

    def forget(self, key: str) -> None:
        """The key has a new life."""
        self._entries.pop(key, None)

    def sweep(self, now_ns: int) -> None:
        """Drops what is too old, some of it now."""
        for _ in range(min(SWEPT_MAX, len(self._entries))):
            key, (put_ns, _) = next(iter(self._entries.items()))
            if now_ns - put_ns <= self._keep_ns:
                return
            del self._entries[key]
