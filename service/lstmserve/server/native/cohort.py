"""Owns the sessions that the messages of a stream are of: looked up once for many messages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lstmserve.engine.arrays import Index
from lstmserve.engine.clock import Now
from lstmserve.engine.errors import DuplicateSession
from lstmserve.engine.table import OPEN, SessionTable
from lstmserve.server.access.tenants import Tenant


class Cohort:
    """Sessions of one tenant by id, in the order of the message that named them.

    What was found out about them is kept as long as the table has the same lives in their rows: a
    life has one incarnation, and its time to live only moves on.
    """

    def __init__(self, tenant: Tenant, ids: Sequence[str] = ()) -> None:
        self.ids = ids
        self.everyone = np.arange(len(ids))  # their places, [N]
        self.ones = np.ones(len(ids), np.int32)
        self._tenant = tenant
        self._is_checked = False
        self._as_set: frozenset[str] | None = None  # of the ids, once it is asked for
        self._rows = np.zeros(0, np.int64)
        self._lives = np.full(1, -1)  # which sessions were found in those rows; at first none
        self._told: list[int] = []  # the incarnations that the newest message told
        self._incarnations = np.zeros(0, np.int64)  # the same
        self._true: Index | None = None  # incarnations that they have
        self._alive_until_ns = 0

    def __len__(self) -> int:
        return len(self.ids)

    def check(self) -> None:
        """Raises DuplicateSession."""
        if not self._is_checked and len(set(self.ids)) != len(self.ids):
            raise DuplicateSession("a session is twice in the message", field="session_ids")
        self._is_checked = True

    def overlaps(self, other: Cohort) -> bool:
        """Whether a session may be of both; one without sessions may be of any."""
        if self is other or not (self.ids and other.ids):
            return True
        if self._as_set is None:
            self._as_set = frozenset(self.ids)
        return not self._as_set.isdisjoint(other.ids)

    def incarnations(self, told: list[int]) -> Index:
        """As an array [N], the same one as long as the same is told."""
        if told != self._told:
            self._told = told
            self._incarnations = np.array(told, np.int64)
        return self._incarnations

    def find(
        self, table: SessionTable, incarnations: Index | None, numbers: Index | None, now: Now
    ) -> Index | None:
        """Where they all are [N], if all may surely be stepped as they are told to; None where
        they must be asked singly."""
        if not self._are_here(table) or not self._are_alive(table, now):
            return None
        if numbers is not None and (incarnations is None or numbers.min() < 1):
            return None
        return self._rows if self._are_meant(table, incarnations, numbers) else None

    def _are_here(self, table: SessionTable) -> bool:
        """Finds them, where the table has not the same lives in their rows as before."""
        if np.array_equal(table.life[self._rows], self._lives):
            return True
        found = [table.find(self._tenant.prefix + each) for each in self.ids]
        if None in found:
            return False
        self._rows = np.array(found, np.int64)
        self._lives = table.life[self._rows]
        self._true, self._alive_until_ns = None, 0
        return True

    def _are_alive(self, table: SessionTable, now: Now) -> bool:
        if table.leaving and (table.phase[self._rows] != OPEN).any():
            return False
        if now.monotonic_ns >= self._alive_until_ns:
            self._alive_until_ns = int(table.expiry_ns[self._rows].min())
        return now.monotonic_ns < self._alive_until_ns

    def _are_meant(
        self, table: SessionTable, incarnations: Index | None, numbers: Index | None
    ) -> bool:
        """0 means any, but not with a number."""
        if incarnations is None or incarnations is self._true:
            return True
        is_true = incarnations == table.incarnation[self._rows]
        if is_true.all():
            self._true = incarnations
        elif numbers is None:
            is_true |= incarnations == 0
        return bool(is_true.all())
