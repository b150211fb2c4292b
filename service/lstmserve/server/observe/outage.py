"""Logs when, why and for how long a store fails, in few lines.

It must not read a clock: `now_s` comes from any clock that never goes back.
"""

from __future__ import annotations

from collections import deque

import structlog

LOG_S = 60.0  # at least, between two lines that only count
LINES_MAX = 8  # within LOG_S, so that a store that comes and goes does not flood the log

log = structlog.get_logger()


class Outage:
    """An outage lasts from the first call that fails until each kind of call that failed passes."""

    def __init__(self) -> None:
        self.cause = ""  # in words, while it lasts
        self._ops: set[str] = set()
        self._since_s = self._last_s = self._logged_s = 0.0
        self._calls = 0
        self._causes: set[str] = set()  # those that the log has
        self._lines: deque[float] = deque()
        self._left_out = 0

    def failed(self, op: str, cause: str, now_s: float, *, calls: int = 1) -> None:
        """Notes that a call of the kind `op` failed; `calls` is 0 for the server's own probes."""
        is_new = not self._ops
        if is_new:
            self._since_s = self._logged_s = now_s
            self._calls = 0
            self._causes.clear()
        self._ops.add(op)
        self._calls += calls
        self._last_s = now_s
        self.cause = cause
        if is_new:
            self._log(now_s, "store lost")
        elif cause not in self._causes or now_s - self._logged_s >= LOG_S:
            self._log(now_s, "store still away", s=self._age_s(now_s), calls_failed=self._calls)

    def passed(self, now_s: float, start_s: float, *ops: str) -> None:
        """Notes a call, begun at `start_s`, which shows that calls of these kinds pass.

        Without `ops` it shows that calls of every kind pass.
        """
        if not self._ops or start_s < self._last_s:
            return
        self._ops = self._ops.difference(ops) if ops else set()
        if not self._ops:
            self._log(now_s, "store back", after_s=self._age_s(now_s), calls_failed=self._calls)
            self.cause = ""

    def _age_s(self, now_s: float) -> float:
        return round(now_s - self._since_s, 1)

    def _log(self, now_s: float, event: str, **facts: float) -> None:
        while self._lines and now_s - self._lines[0] >= LOG_S:
            self._lines.popleft()
        if len(self._lines) == LINES_MAX:
            self._left_out += 1
            return
        if self._left_out:
            facts["lines_left_out"] = self._left_out
        self._left_out = 0
        self._lines.append(now_s)
        self._logged_s = now_s
        self._causes.add(self.cause)
        write = log.info if event == "store back" else log.error
        write(event, cause=self.cause, **facts)
