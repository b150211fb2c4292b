"""Saved replies: columns and long ones behave as one dict."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lstmserve.engine.table import Replies
from lstmserve.rows import RowFormat
from lstmserve.spec import TensorSpec

ROWS, OPERATIONS = 12, 2_000
FLOAT, FLOATS = TensorSpec("a", (1,)), TensorSpec("b", (3,))
INT = TensorSpec("c", (), "int64")
FORMATS = tuple(map(RowFormat, ([FLOAT], [FLOATS], [INT], [FLOATS, INT])))  # all in one table


def random_rows(rng: np.random.Generator, form: RowFormat, count: int) -> npt.NDArray[Any]:
    """[count, ...]"""
    floats = rng.standard_normal((count, form.floats)).astype(np.float32)
    return form.join(floats, rng.integers(-(1 << 62), 1 << 62, (count, form.ints)))


@pytest.mark.parametrize("seed", [0, secrets.randbits(32)], ids=["0", "random"])
def test_replies_are_what_was_saved_last(seed: int) -> None:
    """Any mixture of saving, one or many, short or long, and forgetting, against a dict."""
    print("seed", seed)
    rng = np.random.default_rng(seed)
    replies, wanted = Replies(ROWS), dict[int, bytes]()
    form_of = [FORMATS[row % len(FORMATS)] for row in range(ROWS)]

    def found(row: int) -> bytes | None:
        y = replies.get(row, form_of[row])
        return None if y is None else y.tobytes()

    for _ in range(OPERATIONS):
        form = FORMATS[rng.integers(len(FORMATS))]
        own = [row for row in range(ROWS) if form_of[row] is form]
        rows = rng.choice(own, rng.integers(1, len(own) + 1), replace=False)
        one = int(rows[0])
        match rng.integers(4):
            case 0:
                y = random_rows(rng, form, rows.size)
                replies.save_rows(rows, y, form)
                wanted |= {row: y[i : i + 1].tobytes() for i, row in enumerate(rows.tolist())}
            case 1:
                y = random_rows(rng, form, int(rng.integers(1, 4)))
                replies.save(one, y, form)
                wanted[one] = y.tobytes()
            case 2:
                replies.forget(one)
                wanted.pop(one, None)
            case _:
                replies.forget_rows(rows)
                for row in rows.tolist():
                    wanted.pop(row, None)
        assert all(found(row) == wanted.get(row) for row in range(ROWS))


def test_a_saved_reply_is_a_copy() -> None:
    """What its giver does with the array afterwards changes nothing."""
    replies = Replies(ROWS)
    for count in (1, 2):
        y = np.ones((count, 3), np.float32)
        replies.save(0, y, FORMATS[1])
        y[:] = 7
        found = replies.get(0, FORMATS[1])
        assert found is not None
        assert found.tolist() == [[1, 1, 1]] * count


def test_replies_of_more_sessions_than_would_fit_into_memory() -> None:
    """The states of a small network leave room for millions of sessions; a wide output of each
    would be terabytes, of which the machine gives what is written."""
    form = RowFormat((TensorSpec("y", (1 << 14,)), INT))
    replies, last = Replies(1), (1 << 26) - 1
    replies.extend(last + 1, 0)
    floats = np.full((1, 1 << 14), 0.5, np.float32)
    for row in (0, last):
        replies.save(row, form.join(floats, np.array([[row]])), form)
    replies.extend(1 << 27, 1)
    found = replies.get(0, form)
    assert found is not None
    assert form.split(found)["y"].tolist() == floats.tolist()
    assert form.split(found)["c"].tolist() == [0]
