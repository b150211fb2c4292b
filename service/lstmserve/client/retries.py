"""Decides whether a call is tried again: after which errors, how soon, and how long. No I/O.

Only calls that are safe to repeat come here: numbered steps, and calls that change nothing twice.
These few lines replace a library, because they keep the base install small, take the clock and the
random numbers as arguments, and put the server's retry delay before their own.
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
UNREACHED_S_MAX: Final = 2.0
_TRANSIENT: Final = (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED)


def is_transient(error: LstmServeError) -> bool:
    """Whether the same call may succeed later; with RESOURCE_EXHAUSTED the server must say so.

    CANCELLED comes from a proxy on the way; a client that was closed does not wait for a retry.
    INTERNAL without a reason is gRPC's code for a stream that broke during a write.
    """
    if error.code is StatusCode.INTERNAL:
        return not error.reason
    if error.code is StatusCode.RESOURCE_EXHAUSTED:
        return error.retry_delay_s is not None
    return error.code in _TRANSIENT


class RetryPolicy:
    """How a client tries: `timeout_s` limits one attempt, `retry_s_max` the time since a failure.

    A server that never answered may have another address or certificate, so the first calls fail
    after UNREACHED_S_MAX. `clock` is monotonic, in seconds; `uniform` is in [0, 1). Raises
    ValueError.
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
        self.was_reached = False  # whether a server ever answered
        self.clock = clock
        self.uniform = uniform

    @property
    def retry_s_max(self) -> float:
        """The longest time from a call's first failure to its last attempt."""
        return self._retry_s_max if self.was_reached else min(self._retry_s_max, UNREACHED_S_MAX)

    def attempts(self, timeout_s: float | None = None) -> Attempts:
        """The attempts of one call; `timeout_s` is its caller's deadline, None for none."""
        return Attempts(self, timeout_s)


class Attempts:
    """The attempts of one call so far. succeeded() sets the time for retries back to the whole."""

    __slots__ = ("_attempt_s", "_deadline_s", "_failures", "_policy", "_stop_s")

    def __init__(self, policy: RetryPolicy, timeout_s: float | None) -> None:
        self._policy = policy
        self._failures = 0
        self._stop_s = 0.0
        # A deadline far away leaves room for a second attempt, without cutting a long step short.
        self._attempt_s = max(policy.timeout_s, (timeout_s or 0.0) / 3)
        self._deadline_s = math.inf if timeout_s is None else policy.clock() + timeout_s

    @property
    def left_s(self) -> float | None:
        """The time until the caller's deadline; None: there is no deadline."""
        if self._deadline_s == math.inf:
            return None
        return max(0.0, self._deadline_s - self._policy.clock())

    @property
    def timeout_s(self) -> float:
        """The timeout of the next attempt."""
        left_s = self.left_s
        return self._attempt_s if left_s is None else min(self._attempt_s, left_s)

    def succeeded(self) -> None:
        """An attempt was answered."""
        self._failures = 0
        self._policy.was_reached = True

    def wait_s(self, error: LstmServeError, *, is_recovered: bool = False) -> float:
        """The time to wait before the next attempt.

        Raises `error` when its retry time is over, and when another attempt will not help; where
        the caller has removed the cause (`is_recovered`) it may help after any error.
        """
        if not is_recovered and not is_transient(error):
            raise error
        policy = self._policy
        policy.was_reached |= bool(error.reason)
        now_s = policy.clock()
        if not self._failures:
            self._stop_s = min(self._deadline_s, now_s + policy.retry_s_max)
        wait_s = self._backoff_s(error.retry_delay_s)
        if now_s + wait_s >= self._stop_s:
            raise error
        self._failures += 1
        return wait_s

    def _backoff_s(self, hint_s: float | None) -> float:
        """Full jitter (Brooker 2015) on top of the server's `hint_s`; a hint of 0 counts once."""
        if hint_s == 0 and not self._failures:
            return 0.0
        ceiling_s = min(BACKOFF_S_MAX, BACKOFF_S * 2.0 ** min(self._failures, 16))
        return (hint_s or 0.0) + self._policy.uniform() * ceiling_s
