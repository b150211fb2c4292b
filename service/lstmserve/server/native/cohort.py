"""Owns the sessions that the messages of a stream are of: looked up once for many messages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Index
from lstmserve.engine.clock import Now
from lstmserve.engine.table import OPEN, SessionTable
from lstmserve.errors import DuplicateSession
from lstmserve.server.access.tenants import Tenant


class Cohort:
    """Sessions of one tenant by id, in the order of the message that named them."""

    def __init__(self, tenant: Tenant, ids: Sequence[str] = ()) -> None:
        self.ids = ids
        self.everyone = np.arange(len(ids))  # their places, [N]
        self._tenant = tenant
        self._is_checked = False
        self._rows = np.zeros(0, np.int64)
        self._lives = np.full(1, -1)  # which sessions were found in those rows; at first none

    def __len__(self) -> int:
        return len(self.ids)

    def check(self) -> None:
        """Raises DuplicateSession."""
        if not self._is_checked and len(set(self.ids)) != len(self.ids):
            raise DuplicateSession("a session is twice in the message", field="session_ids")
        self._is_checked = True

    def rows(self, table: SessionTable) -> Index | None:
        """Where they all are [N]; None when one of them is nowhere."""
        if not np.array_equal(table.life[self._rows], self._lives):
            found = [table.find(self._tenant.prefix + each) for each in self.ids]
            if None in found:
                return None
            self._rows = np.array(found, np.int64)
            self._lives = table.life[self._rows]
        return self._rows


def good_ones(
    table: SessionTable, rows: Index, incarnations: Index | None, numbers: Index | None, now: Now
) -> npt.NDArray[np.bool_]:
    """Which sessions [N] may surely be stepped as they are told to; others are asked singly."""
    is_good: npt.NDArray[np.bool_] = table.expiry_ns[rows] > now.monotonic_ns
    is_good &= table.phase[rows] == OPEN
    if incarnations is not None:
        is_told = incarnations == table.incarnation[rows]
        is_good &= is_told if numbers is not None else is_told | (incarnations == 0)
    if numbers is not None:
        is_good &= numbers >= 1
        is_good &= incarnations is not None
    return is_good
