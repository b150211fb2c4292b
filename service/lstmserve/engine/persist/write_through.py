"""What a batch waits for between its run and its settling: the commit stage, and write-through.

Write-through stores every step before it is answered: acknowledged means stored. It makes one flush
per batch and retries nothing: a step that was not stored was not applied, and where the store's
answer was lost, the client's repeat of the step finds out in the store. This module must not know
what becomes of a step that was not stored: it only marks the batch's outcomes.
"""

from __future__ import annotations

from collections.abc import Awaitable

import numpy as np

from lstmserve.engine.arrays import Index, Output
from lstmserve.engine.errors import StoreTimeout, StoreUnavailable
from lstmserve.engine.model import Model
from lstmserve.engine.persist.records import LastStep, Records, store_ttl_s
from lstmserve.engine.scheduling.batch import Batch
from lstmserve.engine.scheduling.work import Outcome
from lstmserve.engine.table import DETACHED, SessionTable
from lstmserve.store.store import Store, Write, WriteOutcome, Written

OUTCOMES = {
    Written.OK: Outcome.APPLIED,
    Written.CONFLICT: Outcome.FENCED,
    Written.FENCED: Outcome.FENCED,
    Written.FULL: Outcome.STORE_FULL,
}


def _outcome(written: WriteOutcome) -> Outcome:
    if isinstance(written, StoreUnavailable):
        return Outcome.NOT_STORED
    if isinstance(written, StoreTimeout):
        return Outcome.UNKNOWN
    return OUTCOMES[written]


class CommitStage:
    """The commit stage of `--store memory`, where a batch's slots are the state: it never waits.

    The stages of the other modes override what they do differently.
    """

    def commit(self, model: Model, batch: Batch) -> Awaitable[None] | None:
        """Stores the steps that end with the batch; marks in `outcomes` what could not be stored.

        None: nothing to wait for. Otherwise the engine runs batches of other sessions meanwhile
        and settles this one when the awaitable ends; one that raises leaves it unknown.
        """
        return None

    def admit(self, rows: int | Index) -> None:
        """Raises StoreUnavailable when these sessions, or this one, may not step now."""

    async def run(self) -> None:
        """The stage's work between batches, until cancelled."""

    async def flush(self) -> None:
        """Writes what is ahead of the store, as far as the store takes it."""

    def let_go(self, model: Model, rows: Index) -> None:
        """Says that these idle sessions move out to the store, which has their last steps."""

    async def drain(self, timeout_s: float) -> None:
        """Writes what is not yet written, after the last batch."""

    def lag_s(self) -> float:
        """The age of the oldest step that was answered and is not stored yet."""
        return 0.0


class WriteThrough(CommitStage):
    """The commit stage of `--store-mode through`; writes the table's `durable_step`.

    No session is ever ahead of the store, so there is nothing to admit, flush, drain or release.
    """

    def __init__(
        self, table: SessionTable, records: Records, store: Store, reply_bytes_max: int
    ) -> None:
        self._table = table
        self._records = records
        self._store = store
        self._reply_bytes_max = reply_bytes_max

    def commit(self, model: Model, batch: Batch) -> Awaitable[None] | None:
        """Returns None when no step of a session ends with the batch."""
        ended = batch.endings()
        is_here = self._table.phase[ended.rows] < DETACHED
        columns, rows = ended.columns[is_here], ended.rows[is_here]
        if not rows.size:
            return None
        lasts = [self._last(digest, y) for digest, y in batch.numbered(columns)]
        records = self._records.stepped(model, rows, ended.slots[is_here], lasts)
        writes = [
            self._write(row, self._records.encode(record))
            for row, record in zip(rows.tolist(), records, strict=True)
        ]
        return self._put(batch, columns, rows, writes)

    def _last(self, digest: int, y: Output | None) -> LastStep:
        """The step's digest and reply as the scheduler will save them when it settles the step."""
        if y is None or y.nbytes > self._reply_bytes_max:
            return LastStep(digest, None)
        return LastStep(digest, y)

    def _write(self, row: int, content: bytes) -> Write:
        """Replaces what the store had when it last answered."""
        table = self._table
        key = table.keys[row]
        assert key is not None
        ttl_s = store_ttl_s(int(table.ttl_ns[row]))
        return Write(key, self._records.version(row), content, ttl_s)

    async def _put(self, batch: Batch, columns: Index, rows: Index, writes: list[Write]) -> None:
        steps = self._table.step[rows] + 1
        try:
            written = await self._store.put(writes)
        except Exception:  # a bug: the repeat of each step looks up what was written
            batch.outcomes[columns] = Outcome.UNKNOWN
            return
        outcomes = np.array([_outcome(each) for each in written], np.uint8)
        batch.outcomes[columns] = outcomes
        is_stored = (outcomes == Outcome.APPLIED) & (self._table.phase[rows] < DETACHED)
        self._table.durable_step[rows[is_stored]] = steps[is_stored]
