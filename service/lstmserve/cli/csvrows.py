"""Converts lines of CSV to arrays as they arrive, and arrays to lines. Knows no network."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmserve.client import ModelInfo
from lstmserve.spec import TensorSpec

Row: TypeAlias = list[float | int]  # the values of a row's inputs, in the spec's order
Steps: TypeAlias = Any  # the inputs of T rows, as Session.step takes them

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_CHUNK_BYTES = 1 << 16
_LINE_BYTES_MAX = 1 << 20
_CELL_BYTES_MAX = 64
_BOM = b"\xef\xbb\xbf"
_ROWS_MAX = 256  # of one step: enough to make the cost of the network small


class BadRow(ValueError):
    """A line is not a row of the model's input. The message names the line and the column."""


def arriving(fd: int, model: ModelInfo) -> Iterator[Steps]:
    """The inputs of the rows as they arrive; rows that arrive together stay together.

    A row never waits for the next one. Raises BadRow after the rows before it.
    """
    row_bytes = max(_input_bytes(model), model.output_bytes, 12)
    fitting = (model.message_bytes_max // 2) // row_bytes
    rows_max = max(1, min(_ROWS_MAX, model.length_max, fitting))
    rows: list[Row] = []
    number = 0
    line_bytes_max = max(_LINE_BYTES_MAX, _CELL_BYTES_MAX * _width(model.inputs))
    for lines in _lines(fd, line_bytes_max):
        for line in lines:
            number += 1
            try:
                if len(line) > line_bytes_max:
                    raise ValueError(f"longer than {line_bytes_max} bytes")  # as _rows
                rows.extend(_rows(line.decode("utf-8", "replace"), model))
            except ValueError as error:
                if rows:
                    yield _steps(rows, model)
                raise BadRow(f"line {number}: {error}") from None
            if len(rows) == rows_max:
                yield _steps(rows, model)
                rows = []
        if rows:
            yield _steps(rows, model)
            rows = []


def whole(fd: int, model: ModelInfo) -> Steps:
    """The inputs of all rows to the end. Raises BadRow, also if there is no row."""
    parts = list(arriving(fd, model))
    if not parts:
        raise BadRow("no rows")
    if len(model.inputs) == 1:
        return np.concatenate(parts)
    return {each.name: np.concatenate([part[each.name] for part in parts]) for each in model.inputs}


def count(x: Steps) -> int:
    """The number of rows, T."""
    return len(next(iter(x.values())) if isinstance(x, Mapping) else x)


def text(y: Any) -> str:
    """The outputs of T rows, [T, *shape] each, as T lines: one after the other, in their order.

    Every number reads back as the same float32 or int64.
    """
    parts = y.values() if isinstance(y, Mapping) else (y,)
    rows = [each.reshape(len(each), math.prod(each.shape[1:])) for each in parts]
    columns = [[",".join(map(str, row)) for row in each] for each in rows]
    return "".join(",".join(cells) + "\n" for cells in zip(*columns, strict=True))


def lines(model: ModelInfo, y: Any, length: int) -> str:
    """The outputs of `length` rows, a line for each.

    y has those of the last ones, [*, *shape] each, or is None. Empty fields stand for the others,
    so that a program that writes a row may always read a line. A single field is written as "",
    because an empty line has another meaning.
    """
    given = "" if y is None else text(y)
    empty = "," * (_width(model.outputs) - 1) or '""'
    return f"{empty}\n" * (length - given.count("\n")) + given


def first_axis(y: Any) -> Any:
    """The outputs of one row, [*shape] each or None, as those of T = 1 or None."""
    if isinstance(y, Mapping):
        return {name: each[None] for name, each in y.items()}
    return None if y is None else y[None]


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


def _width(tensors: Sequence[TensorSpec]) -> int:
    return sum(each.size for each in tensors)


def _input_bytes(model: ModelInfo) -> int:
    return 4 * model.input_rows.floats + 10 * model.input_rows.ints


def _rows(line: str, model: ModelInfo) -> list[Row]:
    """One row, or none for a blank line. Raises ValueError."""
    cells = line.strip().split(",")
    if cells == [""]:
        return []
    if model.lstm is not None and model.lstm.num_embeddings:
        return [[_token(cells, model.lstm.num_embeddings)]]
    width = _width(model.inputs)
    if len(cells) != width:
        raise ValueError(f"{len(cells)} columns, {model.name} takes {width}")
    row: Row = []
    for each in model.inputs:
        read = _number if each.dtype == "float32" else _integer
        for _ in range(each.size):
            row.append(read(cells[len(row)], len(row) + 1))
    return [row]


def _token(cells: list[str], limit: int) -> int:
    text = ",".join(cells)[:40]  # longer than any token
    if text.isascii() and text.isdecimal() and int(text) < limit:
        return int(text)
    raise ValueError(f"{text!r} is not a token, a whole number below {limit}")


def _integer(cell: str, column: int) -> int:
    """Raises ValueError."""
    digits = cell.strip().removeprefix("-")
    if digits.isascii() and digits.isdecimal() and len(digits) < 40:
        value = int(cell)
        if -(1 << 63) <= value < 1 << 63:
            return value
    raise ValueError(f"column {column}: {cell[:40]!r} is not a whole number of 64 bits")


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


def _steps(rows: list[Row], model: ModelInfo) -> Steps:
    found: dict[str, npt.NDArray[Any]] = {}
    start = 0
    for each in model.inputs:
        cells = [row[start : start + each.size] for row in rows]
        found[each.name] = np.array(cells, each.dtype).reshape(len(rows), *each.shape)
        start += each.size
    return found if len(found) > 1 else found[model.inputs[0].name]
