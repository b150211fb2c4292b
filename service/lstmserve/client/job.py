"""Owns what a caller wants stepped, until it has its y. No I/O; the numbers are the ledger's."""

from __future__ import annotations

from typing import Self

import numpy as np

from lstmserve.client.packing import cut
from lstmserve.client.records import Floats, ModelInfo, Rows


class Job:
    """Rows to be stepped, as pieces whose replies a server keeps for a repeat."""

    __slots__ = ("doubts", "holds", "last_only", "pieces", "rows", "taken", "ys")

    def __init__(self, model: ModelInfo, rows: Rows, last_only: bool) -> None:
        self.rows = rows
        self.last_only = last_only
        self.pieces = cut(model, rows, last_only)
        self.ys: list[Floats] = []  # of the pieces that were applied, each [length, O]
        self.doubts = 0  # how many tries of the next piece may have been applied
        self.taken = 0  # rows whose y a caller has
        self.holds = 0  # claims whose callers are still to take y: nobody else gets it

    @property
    def has_begun(self) -> bool:
        """Whether anything of it may have been applied."""
        return bool(self.doubts or self.ys)

    @property
    def is_repeatable(self) -> bool:
        """Whether some of it may have been applied, and nobody has its y."""
        return self.has_begun and not self.holds and self.taken < self.rows.length

    def forget(self) -> None:
        """Nothing of it will be sent again."""
        self.doubts = 0
        self.ys = []

    def cut_short(self) -> None:
        """No more of it will be sent; what was applied can still be taken."""
        self.doubts = 0
        self.pieces = self.pieces[: len(self.ys)]
        self.rows = self.rows.part(0, sum(piece.length for piece in self.pieces))

    def overlap(self, rows: Rows, last_only: bool) -> int:
        """How many of its rows that nobody has a y of are the first ones of `rows`; 0: others."""
        if self.last_only or last_only:
            is_same = self.last_only == last_only and self.rows[:3] == rows[:3]
            return rows.length if is_same else 0
        count = min(rows.length, self.rows.length - self.taken)
        mine, theirs = self.rows.part(self.taken, self.taken + count), rows.part(0, count)
        return count if mine == theirs else 0

    def take(self, count: int) -> Floats:
        """y [count, O] of the next rows, or [1, O] with last_only, once all was applied."""
        start, self.taken = self.taken, self.taken + count
        if self.last_only:
            return self.ys[-1]
        y = self.ys[0] if len(self.ys) == 1 else np.concatenate(self.ys)
        return y if len(y) == count else y[start : self.taken]


class Claim:
    """What one call wants: so many rows of each job, in order. All was applied when it is taken.

    Once it is held, and until `with` ends, what it has not taken is no other call's.
    """

    __slots__ = ("_held", "parts")

    def __init__(self) -> None:
        self.parts: list[tuple[Job, int]] = []
        self._held: list[Job] = []

    def hold(self) -> Self:
        """While it is the caller's turn: who is next must not take it for its own."""
        self._held = self.jobs
        for job in self._held:
            job.holds += 1
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for job in self._held:
            job.holds -= 1

    @property
    def jobs(self) -> list[Job]:
        """Those whose y it has not taken."""
        return [job for job, _ in self.parts]

    def take(self, count: int) -> Floats:
        """y [count, O] of its next rows, or [1, O] with last_only; then they are the caller's."""
        ys = []
        while count:
            job, here = self.parts.pop(0)
            if here > count:
                self.parts.insert(0, (job, here - count))
            ys.append(job.take(min(here, count)))
            count -= min(here, count)
        return ys[0] if len(ys) == 1 else np.concatenate(ys)
