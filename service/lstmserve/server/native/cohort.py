"""Owns the sessions that the messages of a stream are of: looked up once for many messages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lstmserve.engine.arrays import Index
from lstmserve.engine.clock import Now
from lstmserve.engine.table import OPEN, SessionTable
from lstmserve.errors import DuplicateSession
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

    def incarnations(self, told: list[int]) -> Index:
        """As an array [N], the same one as long as the same is told."""
        if told != self._told:
            self._told = told
            self._incarnations = np.array(told, np.int64)
        return self._incarnations

    def rows(self, table: SessionTable) -> Index | None:
        """Where they all are [N]; None when one of them is nowhere."""
        if not np.array_equal(table.life[self._rows], self._lives):
            found = [table.find(self._tenant.prefix + each) for each in self.ids]
            if None in found:
                return None
            self._rows = np.array(found, np.int64)
            self._lives = table.life[self._rows]
            self._true, self._alive_until_ns = None, 0
        return self._rows

    def are_good(
        self, table: SessionTable, incarnations: Index | None, numbers: Index | None, now: Now
    ) -> bool:
        """Whether all may surely be stepped as they are told to, else they are asked singly.

        rows() has found them in this very stretch.
        """
        rows = self._rows
        if table.leaving and (table.phase[rows] != OPEN).any():
            return False
        if now.monotonic_ns >= self._alive_until_ns:
            self._alive_until_ns = int(table.expiry_ns[rows].min())
            if now.monotonic_ns >= self._alive_until_ns:
                return False
        if numbers is not None and (incarnations is None or numbers.min() < 1):
            return False
        if incarnations is None or incarnations is self._true:
            return True
        is_true = incarnations == table.incarnation[rows]
        if is_true.all():
            self._true = incarnations
            return True
        return numbers is None and bool((is_true | (incarnations == 0)).all())
