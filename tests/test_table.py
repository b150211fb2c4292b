"""The session table: which rows have expired, compared with a look at every row."""

from __future__ import annotations

import numpy as np
import pytest

from lstmserve.engine.table import BLOCK_ROWS, CLOSING, OPEN, SessionTable

ROWS = 5 * BLOCK_ROWS + 7
TTL_NS = 1000


def slow(table: SessionTable, now_ns: int) -> set[int]:
    """The rows that are open, idle and expired."""
    is_over = (table.phase == OPEN) & (table.pending == 0) & (table.expiry_ns <= now_ns)
    return set(np.flatnonzero(is_over).tolist())


def end(table: SessionTable, rows: list[int]) -> None:
    """Ends the rows as the engine does."""
    for row in rows:
        table.detach(row)
        table.release(row)


def all_expired(table: SessionTable, now_ns: int, rows_max: int, blocks_max: int) -> set[int]:
    """What one bounded call after the other finds, until one says that it is all."""
    found: set[int] = set()
    while True:
        rows, is_all = table.expired(now_ns, rows_max, blocks_max)
        assert rows.size <= rows_max
        assert not found & set(rows.tolist())
        found |= set(rows.tolist())
        end(table, rows.tolist())
        if is_all:
            return found


@pytest.mark.parametrize(("rows_max", "blocks_max"), [(10**6, 10**6), (100, 10**6), (10**6, 1)])
def test_what_expired_is_found(rows_max: int, blocks_max: int) -> None:
    """Sessions open, step, close and reopen at random, and no end is missed or early."""
    rng = np.random.default_rng(blocks_max)
    table, names, now_ns = SessionTable(ROWS), iter(range(10**9)), 0
    for _ in range(40):
        now_ns += int(rng.integers(1, TTL_NS // 4))
        for _ in range(int(rng.integers(0, min(1500, ROWS - len(table))))):
            row = table.add(f"/{next(names)}")
            table.begin_time(row, now_ns, int(rng.integers(1, TTL_NS)))
        live = np.flatnonzero(table.phase == OPEN)
        stepped = live[(rng.random(live.size) < 0.3) | (table.pending[live] > 0)]
        table.pending[live] = 0
        table.expiry_ns[stepped] = now_ns + table.ttl_ns[stepped]
        table.pending[live] = rng.random(live.size) < 0.1
        for row in live[rng.random(live.size) < 0.01].tolist():
            table.set_phase(row, CLOSING)
        expected = slow(table, now_ns)
        assert all_expired(table, now_ns, rows_max, blocks_max) == expected
        for row in np.flatnonzero(table.phase == CLOSING).tolist():
            table.set_phase(row, OPEN)
        table.check_integrity()
    assert len(table) < ROWS


def test_what_waits_for_a_step_is_no_end_of_the_search() -> None:
    """Blocks that are due but have no row that may end are passed, so later blocks have their
    turn."""
    table = SessionTable(ROWS)
    for i in range(ROWS):
        table.begin_time(table.add(f"/{i}"), 0, 10)
    table.pending[:] = 1
    table.pending[ROWS - 1] = 0
    looks = [table.expired(11, 10, blocks_max=2).rows.tolist() for _ in range(3)]
    assert looks == [[], [], [ROWS - 1]]
