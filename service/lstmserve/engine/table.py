"""The session table: one row per session, in columns, with an index by key, and saved replies.

Columns are numpy arrays [rows], so that a message of many sessions needs no Python per session. The
table reads no clock, does no I/O and raises no domain error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Index, Output, sparse_zeros
from lstmserve.engine.free_list import FreeList
from lstmserve.engine.keys import tenant_of
from lstmserve.rows import RowFormat

FREE: Final = 0
OPEN: Final = 1
CLOSING: Final = 2  # its client closed it; pending steps run first
DETACHED: Final = 3  # replaced: another session has its id; the running step is discarded
MOVED: Final = 4  # another server has it, or may have: the client may repeat its steps

# Whether acknowledged steps of a session may be missing from the state that a store returned.
TRUSTED: Final = 0
CONTESTED: Final = 1  # they may, but its client numbers its steps, which detects that
SUSPECT: Final = 2  # they may, and its client may not know: only numbered steps run

NOT_STORED: Final = -1  # durable_step of a session that no store has yet
BLOCK_ROWS: Final = 4096  # rows that share one lower bound of their expiry
NEVER_NS: Final = np.iinfo(np.int64).max


class Replies:
    """At most one saved reply per row of the session table, to answer a repeated step with.

    A reply is the rows y of the session's last applied step, in the format of its model's outputs.
    Replies of one row, which most are, lie in columns: a batch saves all of its own at once. Models
    whose rows have the same sizes share a column. Longer replies are kept as they are.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._lengths = np.zeros(rows, np.int32)  # 0: none
        self._columns: dict[tuple[int, int], Output] = {}  # by the sizes of a row, [rows, ...]
        self._long: dict[int, Output] = {}

    def save_rows(self, rows: Index, y: Output, form: RowFormat) -> None:
        """Saves replies of one row each, y [N, ...]."""
        self._drop_long(rows)
        self._column(form)[rows] = y
        self._lengths[rows] = 1

    def save(self, row: int, y: Output, form: RowFormat) -> None:
        """Saves a reply of any length, y [t, ...]."""
        self.forget(row)
        if len(y) == 1:
            self._column(form)[row] = y[0]
        else:
            self._long[row] = y.copy()
        self._lengths[row] = len(y)

    def forget(self, row: int) -> None:
        self._long.pop(row, None)
        self._lengths[row] = 0

    def forget_rows(self, rows: Index) -> None:
        """Forgets the replies of these rows [N]."""
        self._drop_long(rows)
        self._lengths[rows] = 0

    def get(self, row: int, form: RowFormat) -> Output | None:
        """The saved y [t, ...], which the caller must not change; None if there is none."""
        length = self._lengths.item(row)
        if length == 0:
            return None
        return self._column(form)[row : row + 1].copy() if length == 1 else self._long[row]

    def _column(self, form: RowFormat) -> Output:
        """Made on first use; its pages take memory only once they are written."""
        if form.sizes not in self._columns:
            self._columns[form.sizes] = sparse_zeros((self._rows, *form.axes), form.dtype)
        return self._columns[form.sizes]

    def extend(self, rows: int, used: int) -> None:
        """Makes room for `rows` rows, the first `used` of which may have replies."""
        self._rows = rows
        self._lengths = _extended(self._lengths, rows, used)
        for key, column in self._columns.items():
            self._columns[key] = _extended(column, rows, used)

    def _drop_long(self, rows: Index) -> None:
        if self._long:
            for row in rows.tolist():
                self._long.pop(row, None)


def _extended(column: npt.NDArray[Any], rows: int, used: int) -> npt.NDArray[Any]:
    """The column [rows, ...]: only what was used takes memory."""
    extended = sparse_zeros((rows, *column.shape[1:]), column.dtype)
    extended[:used] = column[:used]
    return extended


class Expired(NamedTuple):
    """Rows [N] whose TTL has passed; `is_all`: no other row is due."""

    rows: Index
    is_all: bool


def _earliest(rows: int) -> npt.NDArray[np.int64]:
    """The bounds of the blocks of `rows` rows, before any row is used."""
    return np.full(-(-rows // BLOCK_ROWS), NEVER_NS, np.int64)


class SessionTable:
    """Columns; LiveSessions writes some, the scheduler the others, as the comments say.

    `model` is the handle of the session's model (ModelRegistry). Times are nanoseconds of the
    engine's monotonic clock, except `open_time_ns`, which is of the wall clock.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        # LiveSessions writes these.
        self.keys: list[str | None] = []  # grows to the most rows ever used
        self.phase = np.zeros(rows, np.int8)
        self.model = np.zeros(rows, np.int16)
        self.tenant = np.zeros(rows, np.int32)  # tenant_index() of the key's
        self.incarnation = np.zeros(rows, np.int64)
        self.life = np.zeros(rows, np.int64)  # counts all sessions there ever were; 0: detached
        self.epoch = np.zeros(rows, np.int64)  # which server took it from a store; 0: it began here
        self.ttl_ns = np.zeros(rows, np.int64)
        self.open_time_ns = np.zeros(rows, np.int64)
        self.trust = np.zeros(rows, np.int8)  # set_trust() writes it
        self.request_ids: dict[int, str] = {}  # of the OpenSession that created it, if it had one
        # The scheduler writes these.
        self.slot = np.zeros(rows, np.int64)
        self.step = np.zeros(rows, np.int64)
        self.durable_step = np.zeros(rows, np.int64)  # the last step that a store has
        self.pending = np.zeros(rows, np.int32)  # accepted and not settled; 0: idle
        self.expiry_ns = np.zeros(rows, np.int64)  # meaningful while idle; it only ever grows
        # Write-behind writes these.
        self.since_ns = np.zeros(rows, np.int64)  # monotonic; nothing unstored is older
        self.released = np.zeros(rows, np.int64)  # the life whose release the store has
        # What answers a repeat of `step`: the digest of its input, and its reply.
        self.digest = np.zeros(rows, np.uint64)  # 0: the last step had no number
        self.replies = Replies(rows)
        self.pending_digest = np.zeros(rows, np.uint64)  # of the first pending step, of a block
        self._index: dict[str, int] = {}
        self._tenants: dict[str, int] = {}
        self._counts: list[int] = []  # by tenant: sessions that can be found
        self._free = FreeList(0, rows)
        # No row of a block expires before this. A step only puts its row's expiry off.
        self._earliest_ns = _earliest(rows)
        self._looked_block = 0  # where expired() goes on
        self._lives = 0  # sessions there ever were
        self.suspects = 0  # rows that are SUSPECT: most often there is none
        self.leaving = 0  # rows that are neither free nor open: most often there is none

    def __len__(self) -> int:
        """Sessions that can be found by key."""
        return len(self._index)

    @property
    def used(self) -> int:
        """Rows from here on were never used, and take no memory."""
        return len(self.keys)

    def extend(self, rows: int) -> None:
        """Makes room for `rows` rows, at the price of a copy of the rows that were ever used."""
        if rows <= self.rows:
            return
        for name, column in list(vars(self).items()):
            if isinstance(column, np.ndarray) and name != "_earliest_ns":
                setattr(self, name, _extended(column, rows, self.used))
        earliest_ns, self._earliest_ns = self._earliest_ns, _earliest(rows)
        self._earliest_ns[: earliest_ns.size] = earliest_ns
        self.replies.extend(rows, self.used)
        self._free.extend(rows)
        self.rows = rows

    def find(self, key: str) -> int | None:
        """The row of this key, or None."""
        return self._index.get(key)

    def tenant_index(self, tenant: str) -> int:
        """The tenant's number in the column `tenant`."""
        if tenant not in self._tenants:
            self._tenants[tenant] = len(self._counts)
            self._counts.append(0)
        return self._tenants[tenant]

    def count_of(self, tenant: str) -> int:
        """The tenant's sessions that can be found by key."""
        return self._counts[self.tenant_index(tenant)]

    def set_phase(self, row: int, phase: int) -> None:
        """The only writer of `phase`: it counts `leaving`, and bounds the expiry of an open row."""
        self.leaving += (phase > OPEN) - (self.phase.item(row) > OPEN)
        self.phase[row] = phase
        if phase == OPEN:
            self._bound(row)

    def set_trust(self, row: int, trust: int) -> None:
        """The only writer of `trust`: it counts `suspects`."""
        self.suspects += (trust == SUSPECT) - (self.trust.item(row) == SUSPECT)
        self.trust[row] = trust

    def is_suspect(self, rows: Index) -> npt.NDArray[np.bool_]:
        """The mask [N] of the rows that are SUSPECT."""
        found: npt.NDArray[np.bool_] = self.trust[rows] == SUSPECT
        return found

    def hear(self, rows: Index) -> None:
        """Notes that the clients of these sessions number their steps."""
        for row in rows[self.is_suspect(rows)].tolist():
            self.set_trust(row, CONTESTED)

    def accepted(self, rows: int | Index) -> Any:
        """The number of the last step that each session accepted, applied or pending."""
        return self.step[rows] + self.pending[rows]

    def add(self, key: str) -> int:
        """Takes a cleared row for this key. There must be a free row, and none with the key."""
        assert key not in self._index
        row = self._free.take_one()
        if row == len(self.keys):
            self.keys.append(None)
        self.keys[row] = key
        self._index[key] = row
        self.tenant[row] = self.tenant_index(tenant_of(key))
        self._counts[self.tenant[row]] += 1
        self.expiry_ns[row] = NEVER_NS  # until begin_time()
        self.set_phase(row, OPEN)
        self._lives += 1
        self.life[row] = self._lives
        return row

    def detach(self, row: int, phase: int = DETACHED) -> str:
        """Takes the row out of the index, so that its key is free again, and returns the key."""
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
        """Frees a detached row. The caller has freed its slot before."""
        assert self.phase[row] >= DETACHED
        assert self.pending[row] == 0
        assert self.slot[row] == 0
        self.set_phase(row, FREE)
        self.set_trust(row, TRUSTED)
        self.step[row] = self.digest[row] = self.pending_digest[row] = 0
        self.replies.forget(row)
        self.request_ids.pop(row, None)
        self._free.give_one(row)

    def begin_time(self, row: int, now_ns: int, ttl_ns: int) -> None:
        """Starts the TTL: the session expires once it has been idle for `ttl_ns`."""
        self.ttl_ns[row] = ttl_ns
        self.expiry_ns[row] = now_ns + ttl_ns
        self._bound(row)

    def _bound(self, row: int) -> None:
        block = row // BLOCK_ROWS
        earliest_ns = min(self._earliest_ns.item(block), self.expiry_ns.item(row))
        self._earliest_ns[block] = earliest_ns

    def expired(self, now_ns: int, rows_max: int, blocks_max: int) -> Expired:
        """At most `rows_max` idle rows whose TTL has passed; the caller must end them all.

        It looks into at most `blocks_max` blocks, and the next call goes on after those.
        """
        last = -(-self.used // BLOCK_ROWS)
        due = np.flatnonzero(self._earliest_ns[:last] <= now_ns)
        due = np.roll(due, -int(np.searchsorted(due, self._looked_block)))
        found: list[Index] = []
        left = rows_max
        for block in due[:blocks_max].tolist():
            self._looked_block = block
            earliest_ns = self._earliest_ns.item(block)
            rows = self._look(block, now_ns)
            found.append(rows[:left])
            if rows.size > left:
                self._earliest_ns[block] = earliest_ns  # some stay
                return Expired(np.concatenate(found), False)
            left -= rows.size
            self._looked_block = block + 1
        rows = np.concatenate(found) if found else np.empty(0, np.int64)
        return Expired(rows, due.size <= blocks_max)

    def _look(self, block: int, now_ns: int) -> Index:
        """Expired rows of the block; sets its bound to the earliest expiry of its other rows."""
        part = slice(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, self.used))
        phase, is_idle = self.phase[part], self.pending[part] == 0
        # The TTL of a session with pending steps starts when the last one has ended.
        ends_ns = np.where(is_idle, self.expiry_ns[part], now_ns + self.ttl_ns[part])
        is_expired = (phase == OPEN) & (ends_ns <= now_ns)
        stays = (phase == OPEN) & ~is_expired
        self._earliest_ns[block] = ends_ns[stays].min(initial=NEVER_NS)
        return np.flatnonzero(is_expired) + part.start

    def listed(self, start: int, tenant: int, models: Sequence[int], now_ns: int) -> Index:
        """A tenant's live rows from `start` on, of these models."""
        part = slice(start, self.used)
        is_over = (self.pending[part] == 0) & (self.expiry_ns[part] <= now_ns)
        phase = self.phase[part]
        is_found = ((phase == OPEN) & ~is_over) | (phase == CLOSING)
        is_found &= (self.tenant[part] == tenant) & np.isin(self.model[part], models)
        return np.flatnonzero(is_found) + start

    def evictable(self, models: Sequence[int]) -> Index:
        """Rows of these models' idle sessions whose last step the store has."""
        part = slice(self.used)
        return np.flatnonzero(
            (self.phase[part] == OPEN)
            & np.isin(self.model[part], models)
            & (self.pending[part] == 0)
            & (self.durable_step[part] == self.step[part])
        )

    def check_integrity(self) -> None:
        """Asserts that every row is free or used, once, and the index has exactly the rows with a
        key."""
        phase = self.phase[: self.used]
        assert not self.phase[self.used :].any(), "a row is used that was never taken"
        self._free.check_integrity(np.flatnonzero(phase != FREE))
        assert all(self.keys[row] == key for key, row in self._index.items())
        for block in range(-(-self.used // BLOCK_ROWS)):
            part = slice(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, self.used))
            is_idle = (self.pending[part] == 0) & (phase[part] == OPEN)
            ends_ns = self.expiry_ns[part][is_idle]
            is_bound = self._earliest_ns[block] <= ends_ns.min(initial=NEVER_NS)
            assert is_bound, "a session expires before its block's bound"
        assert self.leaving == int((self.phase > OPEN).sum()), "leaving is miscounted"
        assert self.suspects == int((self.trust == SUSPECT).sum()), "suspects are miscounted"
        indexed = (phase == OPEN) | (phase == CLOSING)
        assert int(indexed.sum()) == len(self._index), "a row is in no index"
        counts = np.bincount(self.tenant[: self.used][indexed], minlength=len(self._counts))
        assert counts.tolist() == self._counts, "a tenant's sessions are miscounted"
