"""Saved replies: columns and bytes behave as one dict."""

from __future__ import annotations

import secrets

import numpy as np
import pytest

from lstmserve.engine.table import Replies, SavedReply

ROWS, OPERATIONS = 12, 2_000
SIZES = (1, 3)  # of the outputs: models of both are in one table


@pytest.mark.parametrize("seed", [0, secrets.randbits(32)])
def test_replies_are_what_was_saved_last(seed: int) -> None:
    """Any mixture of saving, one or many, short or long, and forgetting, against a dict."""
    print("seed", seed)
    rng = np.random.default_rng(seed)
    replies, wanted = Replies(ROWS), dict[int, SavedReply]()
    size_of = [SIZES[row % 2] for row in range(ROWS)]

    def some(size: int) -> np.ndarray:
        rows = [row for row in range(ROWS) if size_of[row] == size]
        return rng.choice(rows, rng.integers(1, len(rows) + 1), replace=False)

    for _ in range(OPERATIONS):
        size = int(rng.choice(SIZES))
        rows = some(size)
        one = int(rows[0])
        match rng.integers(5):
            case 0:
                y = rng.standard_normal((rows.size, size)).astype(np.float32)
                replies.save_rows(rows, y)
                wanted |= {
                    row: SavedReply(1, y[i].tobytes()) for i, row in enumerate(rows.tolist())
                }
            case 1:
                y = rng.standard_normal((int(rng.integers(1, 4)), size)).astype(np.float32)
                replies.save(one, y)
                wanted[one] = SavedReply(len(y), y.tobytes())
            case 2 if one in wanted:
                other = int(rows[-1])
                replies.restore(other, wanted[one])
                wanted[other] = wanted[one]
            case 3:
                replies.forget(one)
                wanted.pop(one, None)
            case _:
                replies.forget_rows(rows)
                for row in rows.tolist():
                    wanted.pop(row, None)
        assert all(replies.get(row, size_of[row]) == wanted.get(row) for row in range(ROWS))
