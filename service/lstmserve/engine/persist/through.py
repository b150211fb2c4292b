"""Writes every step to the store before it is answered: acked means stored.

One flush per batch. Nothing is retried: a step that was not stored was not applied, and one whose
answer was lost is looked up anew when its client repeats it.
"""

from __future__ import annotations

from collections.abc import Awaitable

import numpy as np

from lstmserve.engine.arrays import Index, Output
from lstmserve.engine.errors import StoreUnavailable
from lstmserve.engine.model import Model
from lstmserve.engine.persist.records import LastStep, Records, store_ttl_s
from lstmserve.engine.scheduling.batch import Batch
from lstmserve.engine.scheduling.work import Outcome
from lstmserve.engine.table import DETACHED, SavedReply, SessionTable
from lstmserve.store.store import Store, Write, Written

OUTCOMES = {
    Written.OK: Outcome.APPLIED,
    Written.CONFLICT: Outcome.FENCED,
    Written.FENCED: Outcome.FENCED,
    Written.FULL: Outcome.STORE_FULL,
}


class WriteThrough:
    """The commit stage of `--store-mode through`; writes the table's `durable_step`."""

    def __init__(
        self, table: SessionTable, records: Records, store: Store, reply_bytes_max: int
    ) -> None:
        self._table = table
        self._records = records
        self._store = store
        self._reply_bytes_max = reply_bytes_max

    def commit(self, model: Model, batch: Batch) -> Awaitable[None] | None:
        """None when no step of a session ends with the batch."""
        ended = batch.endings()
        is_here = self._table.phase[ended.rows] < DETACHED
        columns, rows = ended.columns[is_here], ended.rows[is_here]
        if not rows.size:
            return None
        lasts = [self._last(digest, y) for digest, y in batch.numbered(columns)]
        records = self._records.stepped(model, rows, ended.slots[is_here], lasts)
        writes = [
            self.write(row, self._records.encode(record))
            for row, record in zip(rows.tolist(), records, strict=True)
        ]
        return self._put(batch, columns, rows, writes)

    def _last(self, digest: int, y: Output | None) -> LastStep:
        """As the scheduler will save it when the step is settled."""
        if y is None or y.nbytes > self._reply_bytes_max:
            return LastStep(digest, None)
        return LastStep(digest, SavedReply(len(y), y.tobytes()))

    def admit(self, rows: int | Index) -> None:
        """Every session: none is ever ahead of the store."""

    async def run(self) -> None:
        """Nothing to do between batches."""

    def lag_s(self) -> float:
        """None is answered before it is stored."""
        return 0.0

    async def flush(self) -> None:
        """Nothing is ever ahead."""

    def let_go(self, model: Model, rows: Index) -> None:
        """Their records are never older than what was acked, and need not say so."""

    async def drain(self, timeout_s: float) -> None:
        """Nothing is ever dirty."""

    def write(self, row: int, content: bytes) -> Write:
        """In place of what the store had when it last answered."""
        table = self._table
        key = table.keys[row]
        assert key is not None
        ttl_s = store_ttl_s(int(table.ttl_ns[row]))
        return Write(key, self._records.version(row), content, ttl_s)

    async def _put(self, batch: Batch, columns: Index, rows: Index, writes: list[Write]) -> None:
        steps = self._table.step[rows] + 1
        try:
            written = await self._store.put(writes)
        except StoreUnavailable:
            batch.outcomes[columns] = Outcome.NOT_STORED
            return
        except Exception:  # a lost answer, or a bug: what was written is looked up at the repeat
            batch.outcomes[columns] = Outcome.UNKNOWN
            return
        outcomes = np.array([OUTCOMES[each] for each in written], np.uint8)
        batch.outcomes[columns] = outcomes
        is_stored = (outcomes == Outcome.APPLIED) & (self._table.phase[rows] < DETACHED)
        self._table.durable_step[rows[is_stored]] = steps[is_stored]
