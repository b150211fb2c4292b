"""Owns the saved replies: what a repeated step is answered with. No clock, no I/O.

Most replies are one row, and most messages are of many sessions: those are columns, so that a
batch's replies are saved at once and an idle session's costs its values. Longer ones are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lstmserve.engine.arrays import Index, Output


@dataclass(frozen=True, slots=True)
class SavedReply:
    """The y of a session's last applied step: float32 [length, O] as bytes."""

    length: int
    y: bytes


class Replies:
    """One per row of the session table, or none. Models of one output size share a column."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._lengths = np.zeros(rows, np.int32)  # 0: none
        self._columns: dict[int, Output] = {}  # by output size, [rows, O]
        self._long: dict[int, bytes] = {}

    def save_rows(self, rows: Index, y: Output) -> None:
        """Of one row each, y [N, O]."""
        self._drop_long(rows)
        self._column(y.shape[1])[rows] = y
        self._lengths[rows] = 1

    def save(self, row: int, y: Output) -> None:
        """Of any length, y [t, O]."""
        self.forget(row)
        if len(y) == 1:
            self._column(y.shape[1])[row] = y[0]
        else:
            self._long[row] = y.tobytes()
        self._lengths[row] = len(y)

    def restore(self, row: int, reply: SavedReply) -> None:
        """What get() gave, perhaps of another server."""
        self.save(row, np.frombuffer(reply.y, np.float32).reshape(reply.length, -1))

    def forget(self, row: int) -> None:
        """It has none."""
        self._long.pop(row, None)
        self._lengths[row] = 0

    def forget_rows(self, rows: Index) -> None:
        """They have none."""
        self._drop_long(rows)
        self._lengths[rows] = 0

    def get(self, row: int, output_size: int) -> SavedReply | None:
        """What was saved last."""
        length = self._lengths.item(row)
        if length == 0:
            return None
        if length == 1:
            return SavedReply(1, self._column(output_size)[row].tobytes())
        return SavedReply(length, self._long[row])

    def _column(self, output_size: int) -> Output:
        """Zero pages are memory only once they are written to."""
        if output_size not in self._columns:
            self._columns[output_size] = np.zeros((self._rows, output_size), np.float32)
        return self._columns[output_size]

    def _drop_long(self, rows: Index) -> None:
        if self._long:
            for row in rows.tolist():
                self._long.pop(row, None)
