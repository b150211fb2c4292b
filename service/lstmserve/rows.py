"""How the rows of a model's inputs, or of its outputs, lie in one array.

A row is one time step of one session. Several tensors travel together through queues, batches,
digests and replies, so they are one array there: the values of the float32 tensors, one after the
other in the spec's order, and those of the int64 tensors. It must not know what a model does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmserve.spec import TensorSpec

Rows = npt.NDArray[Any]
"""float32 [*, floats], or int64 [*, ints], or both: structured [*] with the fields FLOATS, INTS."""

FLOATS, INTS = "floats", "ints"


def make_unknown(rows: Rows) -> None:
    """Overwrites rows of any format: every float is NaN and every integer 0."""
    if rows.dtype.names:
        rows[FLOATS], rows[INTS] = np.nan, 0
    else:
        rows[...] = np.nan if rows.dtype == np.float32 else 0


def unknown_rows(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Rows:
    """An array of rows in which every float is NaN and every integer 0."""
    rows = np.empty(shape, dtype)
    make_unknown(rows)
    return rows


class RowFormat:
    """The format of rows of these tensors, each float32 or int64.

    `sizes` are the numbers of float32 and int64 values in a row, also as `floats` and `ints`;
    `bytes` its bytes, `wire_bytes` the most that they are in a message. `axes` are the axes of a
    row, behind those of batch and time.
    """

    def __init__(self, tensors: Sequence[TensorSpec]) -> None:
        self.tensors = tuple(tensors)
        self.floats = sum(each.size for each in tensors if each.dtype == "float32")
        self.ints = sum(each.size for each in tensors if each.dtype == "int64")
        self.sizes = self.floats, self.ints
        self.bytes = sum(each.bytes for each in tensors)
        self.wire_bytes = sum(each.wire_bytes for each in tensors)
        self.dtype: np.dtype[Any]
        self.axes: tuple[int, ...]
        if not self.ints:
            self.dtype, self.axes = np.dtype(np.float32), (self.floats,)
        elif not self.floats:
            self.dtype, self.axes = np.dtype(np.int64), (self.ints,)
        else:
            fields = [(FLOATS, np.float32, (self.floats,)), (INTS, np.int64, (self.ints,))]
            self.dtype, self.axes = np.dtype(fields), ()

    def __repr__(self) -> str:
        return f"RowFormat({self.floats} floats, {self.ints} ints)"

    def unknown(self, *shape: int) -> Rows:
        """Rows [*shape] in which every float is NaN and every integer 0."""
        return unknown_rows((*shape, *self.axes), self.dtype)

    def floats_of(self, rows: Rows) -> npt.NDArray[np.float32] | None:
        """The view [*, floats]; None if the model has no float32 tensor."""
        if not self.floats:
            return None
        return rows[FLOATS] if self.ints else rows

    def ints_of(self, rows: Rows) -> npt.NDArray[np.int64] | None:
        """The view [*, ints]; None if the model has no int64 tensor."""
        if not self.ints:
            return None
        return rows[INTS] if self.floats else rows

    def join(
        self, floats: npt.NDArray[np.float32] | None, ints: npt.NDArray[np.int64] | None
    ) -> Rows:
        """The rows of floats [*, floats] and ints [*, ints]; a copy only where there are both."""
        if not self.ints:
            assert floats is not None
            return floats
        assert ints is not None
        if not self.floats:
            return ints
        assert floats is not None
        rows = np.empty(floats.shape[:-1], self.dtype)
        rows[FLOATS], rows[INTS] = floats, ints
        return rows

    def split(self, rows: Rows) -> dict[str, npt.NDArray[Any]]:
        """Name -> [*, *shape] of each tensor, in the spec's order; views where numpy allows it."""
        lead = rows.shape[: rows.ndim - len(self.axes)]
        columns = self._columns(rows)
        return {t.name: columns[t.name].reshape((*lead, *t.shape)) for t in self.tensors}

    def pack(self, tensors: Mapping[str, npt.NDArray[Any]]) -> Rows:
        """The rows of tensors [*, *shape], each of its dtype."""
        first = self.tensors[0]
        array = tensors[first.name]
        lead = array.shape[: array.ndim - len(first.shape)]
        rows = np.empty((*lead, *self.axes), self.dtype)
        for name, view in self._columns(rows).items():
            view[...] = tensors[name].reshape(view.shape)
        return rows

    def _columns(self, rows: Rows) -> dict[str, npt.NDArray[Any]]:
        """Name -> the view [*, size] of each tensor's values."""
        columns, starts = {}, {"float32": 0, "int64": 0}
        sources = {"float32": self.floats_of(rows), "int64": self.ints_of(rows)}
        for each in self.tensors:
            source, start = sources[each.dtype], starts[each.dtype]
            assert source is not None
            starts[each.dtype] = stop = start + each.size
            columns[each.name] = source[..., start:stop]
        return columns
