"""Owns when a call is tried again: after which errors, how long after, and when no more. No I/O.

Only calls that may be repeated come here: numbered steps, and those that change nothing twice. Few
lines instead of a library: the base install stays small, clock and dice are arguments, and what
the server asks for goes before what we would do.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Final

from grpc import StatusCode

from lstmserve.client import checks
from lstmserve.errors import LstmServeError

BACKOFF_S: Final = 0.05
BACKOFF_S_MAX: Final = 2.0
STRANGER_S_MAX: Final = 2.0
_TRANSIENT: Final = (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED)


def is_transient(error: LstmServeError) -> bool:
    """Whether the same call may go better later; with RESOURCE_EXHAUSTED the server must say so.

    CANCELLED is somebody on the way; where it was this client, there is no waiting for later.
    INTERNAL without a reason is gRPC's word for a stream that broke while it was written to.
    """
    if error.code is StatusCode.INTERNAL:
        return not error.reason
    if error.code is StatusCode.RESOURCE_EXHAUSTED:
        return error.retry_delay_s is not None
    return error.code in _TRANSIENT


class Patience:
    """How a client tries: `timeout_s` is for one try, `retry_s_max` from the first failure on.

    A server that never answered may have another address or certificate: that is told soon.
    `clock` is monotonic, in seconds; `uniform` is in [0, 1). Raises ValueError.
    """

    def __init__(
        self,
        timeout_s: float,
        retry_s_max: float,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self.timeout_s = checks.seconds("timeout_s", timeout_s)
        self._retry_s_max = checks.seconds("retry_s_max", retry_s_max, may_be_zero=True)
        self.is_met = False  # whether a server ever answered
        self.clock = clock
        self.uniform = uniform

    @property
    def retry_s_max(self) -> float:
        """From the first failure on."""
        return self._retry_s_max if self.is_met else min(self._retry_s_max, STRANGER_S_MAX)

    def tries(self, timeout_s: float | None = None) -> Tries:
        """Of one call; `timeout_s` is the caller's deadline for all of it, None for none."""
        return Tries(self, timeout_s)


class Tries:
    """The tries of one call so far. progress() makes it patient again."""

    __slots__ = ("_deadline_s", "_failures", "_patience", "_stop_s", "_try_s")

    def __init__(self, patience: Patience, timeout_s: float | None) -> None:
        self._patience = patience
        self._failures = 0
        self._stop_s = 0.0
        # A deadline far away leaves room for a second try, without cutting a long step short.
        self._try_s = max(patience.timeout_s, (timeout_s or 0.0) / 3)
        self._deadline_s = math.inf if timeout_s is None else patience.clock() + timeout_s

    @property
    def left_s(self) -> float | None:
        """Until the caller's deadline; None: there is none."""
        if self._deadline_s == math.inf:
            return None
        return max(0.0, self._deadline_s - self._patience.clock())

    @property
    def timeout_s(self) -> float:
        """Of the next try."""
        left_s = self.left_s
        return self._try_s if left_s is None else min(self._try_s, left_s)

    def progress(self) -> None:
        """Something got through."""
        self._failures = 0
        self._patience.is_met = True

    def wait_s(self, error: LstmServeError, *, is_mended: bool = False) -> float:
        """How long to wait before the next try. Raises `error` when another one will not help,

        unless its cause `is_mended`, and when it is time to give up.
        """
        if not is_mended and not is_transient(error):
            raise error
        patience = self._patience
        patience.is_met |= bool(error.reason)
        now_s = patience.clock()
        if not self._failures:
            self._stop_s = min(self._deadline_s, now_s + patience.retry_s_max)
        wait_s = self._backoff_s(error.retry_delay_s)
        if now_s + wait_s >= self._stop_s:
            raise error
        self._failures += 1
        return wait_s

    def _backoff_s(self, hint_s: float | None) -> float:
        """Full jitter (Brooker 2015), after what the server asks for; "at once" is so once."""
        if hint_s == 0 and not self._failures:
            return 0.0
        ceiling_s = min(BACKOFF_S_MAX, BACKOFF_S * 2.0 ** min(self._failures, 16))
        return (hint_s or 0.0) + self._patience.uniform() * ceiling_s
