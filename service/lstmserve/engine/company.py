"""Owns the guess whether a step that arrived will have company, so that its batch should wait.

gRPC hands over an event for a pass or two of the event loop, so a loop that runs what it has sees
one request at a time, however many wait in the sockets: batches form only if some passes are
spent on looking (docs/ARCHITECTURE.md). Where looking finds nobody, it is left off. Pure.
"""

from __future__ import annotations

ALONE_MIN = 4  # so many in a row who had no company
LOOK_EVERY = 64  # but one in so many is looked for again: company would not show by itself


class Company:
    """Of one driver."""

    def __init__(self) -> None:
        self._alone = 0  # looks in a row that found nobody
        self._unlooked = 0  # batches since the last look

    @property
    def is_expected(self) -> bool:
        """Whether to look before the next batch."""
        return self._alone < ALONE_MIN or self._unlooked >= LOOK_EVERY

    def not_looked(self) -> None:
        """A batch runs without."""
        self._unlooked += 1

    def looked(self, count: int) -> None:
        """A look ended with so many steps or messages."""
        self._unlooked = 0
        self._alone = 0 if count > 1 else self._alone + 1
