"""Owns what a caller wants stepped, until it has its y. No I/O; the numbers are the ledger's."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lstmserve.client.arrays import Floats, Rows
from lstmserve.client.packing import cut
from lstmserve.client.records import ModelInfo


class Piece(NamedTuple):
    """One numbered step."""

    number: int
    rows: Rows
    last_only: bool


class Job:
    """What a caller wants stepped, as pieces whose replies a server keeps for a repeat."""

    __slots__ = ("doubts", "last_only", "pieces", "rows", "ys")

    def __init__(self, model: ModelInfo, rows: Rows, last_only: bool) -> None:
        self.rows = rows
        self.last_only = last_only
        self.pieces = [rows] if last_only else cut(model, rows)
        self.ys: list[Floats] = []  # of the pieces that were applied, each [length, O]
        self.doubts = 0  # how many tries of the next piece may have been applied

    @property
    def has_begun(self) -> bool:
        """Whether anything of it may have been applied."""
        return bool(self.doubts or self.ys)

    def is_of(self, rows: Rows, last_only: bool) -> bool:
        """Whether it has this input."""
        return self.last_only == last_only and self.rows[:3] == rows[:3]

    def output(self) -> Floats:
        """y [T, O], or [1, O] with last_only, once all of it was applied."""
        return self.ys[0] if len(self.ys) == 1 else np.concatenate(self.ys)
