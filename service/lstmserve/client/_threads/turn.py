"""Owns whose turn it is with one session, among threads. The twin of _aio.turn."""

from __future__ import annotations

import threading

from lstmserve.client.status import late


class Turn:
    """Taken by one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def take(self, timeout_s: float | None) -> None:
        """Waits for it; give() it back, always. Raises DeadlineExceeded, nothing applied."""
        if not self._lock.acquire(timeout=-1 if timeout_s is None else timeout_s):
            raise late(applied=False)

    def give(self) -> None:
        """To the next."""
        self._lock.release()
