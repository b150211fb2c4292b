"""Names what became of a batch's row. No code."""

from __future__ import annotations

from enum import IntEnum


class Outcome(IntEnum):
    """What became of a batch's row."""

    APPLIED = 0
    FAILED = 1  # the kernel could not compute it
    NOT_STORED = 2  # surely not
    STORE_FULL = 3
    FENCED = 4  # another server has the session now: what is cached here is stale
    UNKNOWN = 5  # the store's answer was lost: what is cached here may be stale
