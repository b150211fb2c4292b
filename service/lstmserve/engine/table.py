"""Owns the session table: one row per session, in columns, under one index. No clock, no I/O.

Columns are numpy arrays [rows], so that a message of many sessions costs no Python per session.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Index
from lstmserve.engine.free_list import FreeList
from lstmserve.engine.keys import tenant_of
from lstmserve.engine.replies import Replies

FREE: Final = 0
OPEN: Final = 1
CLOSING: Final = 2  # its client closed it; pending steps run first
DETACHED: Final = 3  # replaced: its id is another session's, the running step is discarded
MOVED: Final = 4  # another server has it, or may: as DETACHED, but its steps may be repeated

# What a session's owner knows of acked steps, which a store may have taken back.
TRUSTED: Final = 0
CONTESTED: Final = 1  # as SUSPECT, but its client has sent a step by number: those are safe
SUSPECT: Final = 2  # they may be gone, and its client may not know: no step without a number runs

NOT_STORED: Final = -1  # durable_step of a session that no store has yet


class SessionTable:
    """Columns, written by the scheduler and by Sessions, each its own (the comments say whose).

    `model` is the index of the session's model in the engine; times are nanoseconds of the
    engine's monotonic clock, `open_time_ns` of the wall clock.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        # Sessions writes these.
        self.keys: list[str | None] = []  # grows to the most rows ever used
        self.phase = np.zeros(rows, np.int8)
        self.model = np.zeros(rows, np.int16)
        self.tenant = np.zeros(rows, np.int32)  # tenant_index() of the key's
        self.incarnation = np.zeros(rows, np.int64)
        self.life = np.zeros(rows, np.int64)  # which of all the table's sessions; 0: found no more
        self.epoch = np.zeros(rows, np.int64)  # which server took it from a store; 0: it began here
        self.ttl_ns = np.zeros(rows, np.int64)
        self.open_time_ns = np.zeros(rows, np.int64)
        self.trust = np.zeros(rows, np.int8)  # set_trust() writes it
        self.request_ids: dict[int, str] = {}  # of the OpenSession that began it, if it had one
        # The scheduler writes these.
        self.slot = np.zeros(rows, np.int64)
        self.step = np.zeros(rows, np.int64)
        self.durable_step = np.zeros(rows, np.int64)  # the last step that a store has
        self.pending = np.zeros(rows, np.int32)  # accepted and not settled; 0: idle
        self.expiry_ns = np.zeros(rows, np.int64)  # meaningful while idle
        # What exactly-once stepping answers a repeat with: the reply of `step` and its input.
        self.digest = np.zeros(rows, np.uint64)  # 0: the last step had no number
        self.replies = Replies(rows)
        self.pending_digest = np.zeros(rows, np.uint64)  # of the first pending step, of a block
        self._index: dict[str, int] = {}
        self._tenants: dict[str, int] = {}
        self._counts: list[int] = []  # by tenant: sessions that can be found
        self._free = FreeList(0, rows)
        self._lives = 0  # sessions there ever were
        self.suspects = 0  # rows that are SUSPECT: most often there is none
        self.leaving = 0  # rows that are neither free nor open: most often nobody need look

    def __len__(self) -> int:
        """Sessions that can be found by key."""
        return len(self._index)

    def find(self, key: str) -> int | None:
        """The row of this key, or None."""
        return self._index.get(key)

    def tenant_index(self, tenant: str) -> int:
        """What the column `tenant` has for it."""
        if tenant not in self._tenants:
            self._tenants[tenant] = len(self._counts)
            self._counts.append(0)
        return self._tenants[tenant]

    def count_of(self, tenant: str) -> int:
        """The tenant's sessions that can be found by key."""
        return self._counts[self.tenant_index(tenant)]

    def set_phase(self, row: int, phase: int) -> None:
        """The only way to write it: `leaving` is counted."""
        self.leaving += (phase > OPEN) - (self.phase.item(row) > OPEN)
        self.phase[row] = phase

    def set_trust(self, row: int, trust: int) -> None:
        """The only way to write it: `suspects` is counted."""
        self.suspects += (trust == SUSPECT) - (self.trust.item(row) == SUSPECT)
        self.trust[row] = trust

    def is_suspect(self, rows: Index) -> npt.NDArray[np.bool_]:
        """[N]"""
        found: npt.NDArray[np.bool_] = self.trust[rows] == SUSPECT
        return found

    def hear(self, rows: Index) -> None:
        """The clients of these sessions step by number: each knows what its step goes on from."""
        for row in rows[self.is_suspect(rows)].tolist():
            self.set_trust(row, CONTESTED)

    def are_next(self, rows: Index, numbers: Index | None) -> bool:
        """Whether these sessions are idle, and the numbers those of their next steps."""
        if self.pending[rows].any():
            return False
        return numbers is None or bool((self.step[rows] + 1 == numbers).all())

    def accepted(self, rows: int | Index) -> Any:
        """The numbers of the last steps that sessions were given, applied or pending."""
        return self.step[rows] + self.pending[rows]

    def add(self, key: str) -> int:
        """A cleared row under this key. There must be a free row, and none with the key."""
        assert key not in self._index
        row = self._free.take_one()
        if row == len(self.keys):
            self.keys.append(None)
        self.keys[row] = key
        self._index[key] = row
        self.tenant[row] = self.tenant_index(tenant_of(key))
        self._counts[self.tenant[row]] += 1
        self.set_phase(row, OPEN)
        self._lives += 1
        self.life[row] = self._lives
        return row

    def detach(self, row: int, phase: int = DETACHED) -> str:
        """Takes the row out of the index, so that its key is free, and returns the key."""
        assert phase in (DETACHED, MOVED)
        key = self.keys[row]
        assert key is not None
        del self._index[key]
        self.keys[row] = None
        self._counts[self.tenant[row]] -= 1
        self.set_phase(row, phase)
        self.life[row] = 0
        return key

    def release(self, row: int) -> None:
        """Gives a detached row back. Its slot must have been taken out before."""
        assert self.phase[row] >= DETACHED
        assert self.pending[row] == 0
        assert self.slot[row] == 0
        self.set_phase(row, FREE)
        self.set_trust(row, TRUSTED)
        self.step[row] = self.digest[row] = self.pending_digest[row] = 0
        self.replies.forget(row)
        self.request_ids.pop(row, None)
        self._free.give_one(row)

    def idle_before(self, now_ns: int, start: int, stop: int) -> Index:
        """Rows in [start, stop) that are idle, and whose time ran out before `now_ns`."""
        part = slice(start, stop)
        found = (
            (self.phase[part] == OPEN)
            & (self.pending[part] == 0)
            & (self.expiry_ns[part] <= now_ns)
        )
        return np.flatnonzero(found) + start

    def listed(self, start: int, tenant: int, models: Sequence[int], now_ns: int) -> Index:
        """A tenant's rows from `start` on, of these models, that a key finds and are not over."""
        part = slice(start, None)
        is_over = (self.pending[part] == 0) & (self.expiry_ns[part] <= now_ns)
        phase = self.phase[part]
        is_found = ((phase == OPEN) & ~is_over) | (phase == CLOSING)
        is_found &= (self.tenant[part] == tenant) & np.isin(self.model[part], models)
        return np.flatnonzero(is_found) + start

    def evictable(self, model: int) -> Index:
        """Rows of a model's sessions that are idle, and whose last step a store has."""
        return np.flatnonzero(
            (self.phase == OPEN)
            & (self.model == model)
            & (self.pending == 0)
            & (self.durable_step == self.step)
        )

    def check_integrity(self) -> None:
        """Every row is free or used, once, and the index has exactly the rows with a key."""
        self._free.check_integrity(np.flatnonzero(self.phase != FREE))
        assert all(self.keys[row] == key for key, row in self._index.items())
        assert self.leaving == int((self.phase > OPEN).sum()), "leaving is miscounted"
        assert self.suspects == int((self.trust == SUSPECT).sum()), "suspects are miscounted"
        indexed = (self.phase == OPEN) | (self.phase == CLOSING)
        assert int(indexed.sum()) == len(self._index), "a row is in no index"
        counts = np.bincount(self.tenant[indexed], minlength=len(self._counts))
        assert counts.tolist() == self._counts, "a tenant's sessions are miscounted"
