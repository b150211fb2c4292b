"""Converts lines of CSV to arrays as they arrive, and arrays to lines. Knows no network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmserve.client import ModelInfo

Steps: TypeAlias = npt.NDArray[Any]  # float32 [T, I], or int64 [T]

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_CHUNK_BYTES = 1 << 16
_LINE_BYTES_MAX = 1 << 20
_CELL_BYTES_MAX = 64
_BOM = b"\xef\xbb\xbf"
_ROWS_MAX = 256  # of one step: enough to make the cost of the network small


class BadRow(ValueError):
    """A line is not a row of the model's input. The message names the line and the column."""


def arriving(fd: int, model: ModelInfo) -> Iterator[Steps]:
    """x [T, I], or tokens [T], of the rows as they arrive; rows that arrive together stay together.

    A row never waits for the next one. Raises BadRow after the rows before it.
    """
    width = max(model.input_size, model.output_size, 3)
    fitting = (model.message_bytes_max // 2) // (4 * width)
    rows_max = max(1, min(_ROWS_MAX, model.length_max, fitting))
    rows: list[list[float] | int] = []
    number = 0
    line_bytes_max = max(_LINE_BYTES_MAX, _CELL_BYTES_MAX * model.input_size)
    for lines in _lines(fd, line_bytes_max):
        for line in lines:
            number += 1
            try:
                if len(line) > line_bytes_max:
                    raise ValueError(f"longer than {line_bytes_max} bytes")  # as _row
                rows.extend(_row(line.decode("utf-8", "replace"), model))
            except ValueError as error:
                if rows:
                    yield _array(rows, model)
                raise BadRow(f"line {number}: {error}") from None
            if len(rows) == rows_max:
                yield _array(rows, model)
                rows = []
        if rows:
            yield _array(rows, model)
            rows = []


def whole(fd: int, model: ModelInfo) -> Steps:
    """x [T, I], or tokens [T], of all rows to the end. Raises BadRow, also if there is no row."""
    parts = list(arriving(fd, model))
    if not parts:
        raise BadRow("no rows")
    return np.concatenate(parts)


def text(y: npt.NDArray[np.float32]) -> str:
    """y [T, O] as T lines; every number reads back as the same float32."""
    return "".join(",".join(map(str, row)) + "\n" for row in y)


def _lines(fd: int, bytes_max: int) -> Iterator[list[bytes]]:
    """The complete lines of each piece that arrives, and the rest at the end.

    It does not wait for the end of a line that is longer than allowed.
    """
    rest = b""
    is_start = True
    while piece := os.read(fd, _CHUNK_BYTES):
        *complete, rest = (rest + piece).split(b"\n")
        if is_start and complete:
            complete[0], is_start = complete[0].removeprefix(_BOM), False
        yield complete
        if len(rest) > bytes_max:
            break
    yield [rest.removeprefix(_BOM) if is_start else rest]


def _row(line: str, model: ModelInfo) -> list[list[float] | int]:
    """One row, or none for a blank line. Raises ValueError."""
    cells = line.strip().split(",")
    if cells == [""]:
        return []
    if model.num_embeddings:
        return [_token(cells, model)]
    if len(cells) != model.input_size:
        raise ValueError(f"{len(cells)} columns, {model.name} takes {model.input_size}")
    return [[_number(cell, column) for column, cell in enumerate(cells, 1)]]


def _token(cells: list[str], model: ModelInfo) -> int:
    text = ",".join(cells)[:40]  # longer than any token
    if text.isascii() and text.isdecimal() and int(text) < model.num_embeddings:
        return int(text)
    raise ValueError(f"{text!r} is not a token, a whole number below {model.num_embeddings}")


def _number(cell: str, column: int) -> float:
    """Raises ValueError, also for what only Python calls a number: 1_000, other digits."""
    try:
        value = float(cell if cell.isascii() and "_" not in cell else "")
    except ValueError:
        why = "is not a number (rows only, no header)"
        raise ValueError(f"column {column}: {cell[:40]!r} {why}") from None
    if not abs(value) <= _FLOAT32_MAX:
        raise ValueError(f"column {column}: {cell[:40]!r} is not finite in float32")
    return value


def _array(rows: list[list[float] | int], model: ModelInfo) -> Steps:
    return np.array(rows, np.int64 if model.num_embeddings else np.float32)
