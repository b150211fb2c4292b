"""Tenants: each one's limits, and what it uses of them. Knows no token and no wire format.

It runs on the event loop's thread and gets the time as an argument.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from lstmserve.engine.arrays import Index
from lstmserve.engine.clock import SECOND_NS
from lstmserve.engine.errors import Quota
from lstmserve.engine.keys import named_key, sequence_key, session_key
from lstmserve.engine.scheduling.work import Request
from lstmserve.server.pending_bytes import Account
from lstmserve.tokens import Limits

RETRY_S = 0.05


class Tenant:
    """One tenant's name, limits and use. `limits` may be replaced at any time."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.prefix = session_key(name, "-")[:-1]  # of its keys
        self.account = Account()  # the bytes of its messages
        self.limits = limits
        self.is_limited: bool  # whether check() can refuse anything
        self.pending_steps = 0  # who submits a step counts it in, and its responder counts it out
        self._rows = RateLimiter()

    def key(self, session_id: str, field: str = "session_id") -> str:
        """The key of this tenant's session. Raises BadSessionId, which names the field."""
        return session_key(self.name, session_id, field)

    def named_key(self, name: str, field: str = "session_id") -> str:
        """The key of an id from ListSessions, which may be that of a KServe sequence."""
        return named_key(self.name, name, field)

    def sequence_key(self, model: str, sequence: int | str) -> str:
        """The key of this tenant's KServe sequence."""
        return sequence_key(self.name, model, sequence)

    @property
    def limits(self) -> Limits:
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        self.is_limited = limits.pending_steps_max is not None or limits.rows_per_s is not None
        self.account.limit(limits.pending_bytes_max)

    def check(self, steps: int, rows: int, now_ns: int) -> None:
        """Takes the rows of new steps from the rate. Raises Quota if they may not be accepted.

        A repeat of a numbered step is not new: its rows were taken before.
        """
        self.check_waiting(steps)
        if self.limits.rows_per_s is not None:
            self._rows.take(rows, self.limits.rows_per_s, now_ns)

    def check_step(self, number: int, applied: int, accepted: int, rows: int, now_ns: int) -> None:
        """check() for one numbered step; `applied` and `accepted` are its session's last ones.

        A repeat of a pending step waits like a new one. A repeat of an applied step is answered at
        once, so no limit applies.
        """
        if number > accepted:
            self.check(1, rows, now_ns)
        elif number > applied:
            self.check_waiting(1)

    def check_waiting(self, steps: int) -> None:
        """Raises Quota if the tenant may not have `steps` more waiting, repeats included."""
        limit = self._limits.pending_steps_max
        if limit is not None and self.pending_steps + steps > limit:
            raise Quota(
                f"{self.pending_steps} of your steps are waiting, your limit is {limit}: "
                "send this one again later",
                retry_s=RETRY_S,
            )

    def check_many(self, work: Request, applied: Index, accepted: Index) -> None:
        """check() of many steps; `applied` and `accepted` [N] are the last of their sessions."""
        count = len(work)
        lengths = np.ones(count, np.int64) if work.lengths is None else np.asarray(work.lengths)
        if work.numbers is not None:
            numbers = np.asarray(work.numbers)
            self.check_waiting(int(np.count_nonzero(numbers > applied)))
            lengths = lengths[numbers > accepted]
        if lengths.size:
            self.check(lengths.size, int(lengths.sum()), work.arrival_ns)

    @contextmanager
    def using(self, steps: int) -> Iterator[None]:
        """Counts steps as pending inside the block."""
        self.pending_steps += steps
        try:
            yield
        finally:
            self.pending_steps -= steps


class RateLimiter:
    """A token bucket that holds the rows of one second, refills evenly, and starts full.

    A step of more rows than it holds passes when it is full, and leaves it in debt.
    """

    def __init__(self) -> None:
        self._rows = float("inf")
        self._at_ns = 0

    def take(self, rows: int, rows_per_s: int, now_ns: int) -> None:
        """Takes rows out. Raises Quota with the time until there are enough.

        A message that waited may come with an older time than one before it.
        """
        now_ns = max(now_ns, self._at_ns)
        refill = (now_ns - self._at_ns) * rows_per_s / SECOND_NS
        self._rows = min(self._rows + refill, rows_per_s)
        self._at_ns = now_ns
        missing = min(rows, rows_per_s) - self._rows
        if missing > 0:
            raise Quota(
                f"your limit is {rows_per_s} rows a second: send these again later",
                retry_s=missing / rows_per_s,
            )
        self._rows -= rows
