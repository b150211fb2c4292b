"""Owns what a Predict's sequences are while they wait and run: as columns. No clock, no I/O.

They belong to no session. One slice of them waits or runs at a time (slicing.py), so that a call of
many sequences has one entry in the queue; a group's states are in scratch slots between its slices.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Input, Output
from lstmserve.engine.compute.pool import StateRows
from lstmserve.engine.errors import ServeError
from lstmserve.engine.schedule.slicing import Slice, Slicing

NO_SLOTS = np.zeros(0, np.int64)


class Sequences:
    """N sequences: their rows come one after another, so do those of `y`, [N, O] with last_only.

    `x` [cells, I] or [cells] has them in the order in which they run.
    `initial` and `finals` have a row per sequence for every tensor of the pool; None: they begin
    from zeros, nobody wants them.
    """

    __slots__ = (
        "_cells",
        "_outputs",
        "_slices",
        "_turn",
        "arrival_ns",
        "compute_ns",
        "finals",
        "held",
        "initial",
        "is_cancelled",
        "last_only",
        "left",
        "scratch",
        "sink",
        "slice",
        "start_ns",
        "x",
    )

    def __init__(
        self,
        x: Input,
        lengths: npt.NDArray[np.int32],
        slicing: Slicing,
        sink: SequencesSink,
        *,
        output_size: int,
        arrival_ns: int,
        last_only: bool = False,
        initial: StateRows | None = None,
        finals: StateRows | None = None,
    ) -> None:
        self._slices = slicing.slices
        self._cells = slicing.cells
        self._turn = 0
        self.slice: Slice = self._slices[0]  # that waits or runs
        # Cells in the order in which they run, so that a slice's are a view; zeros are padding.
        self.x: Input = np.zeros((self._slices[-1].stop, *x.shape[1:]), x.dtype)
        self.x[self._cells] = x
        height = lengths.size if last_only else len(self.x)
        self._outputs: Output = np.empty((height, output_size), np.float32)
        self.sink = sink
        self.last_only = last_only
        self.initial = initial
        self.finals = finals
        self.left = lengths.size  # whose last time step has not been computed
        self.arrival_ns = arrival_ns
        self.start_ns = 0  # when the first slice ran
        self.compute_ns = 0  # the sum over the batches they ran in
        self.is_cancelled = False
        self.scratch = NO_SLOTS  # [n], the states after the time steps done; empty: zeros
        self.held = 0  # scratch slots that the group may hold between batches

    def __repr__(self) -> str:
        return f"Sequences({self.left} left)"

    @property
    def size(self) -> int:
        """n of the slice."""
        return self.slice.size

    @property
    def is_kept(self) -> bool:
        """Whether the group's states are kept between batches: it goes on, or begins with some."""
        return self.initial is not None or self.slice.staying > 0

    @property
    def y(self) -> Output:
        """When they are over."""
        return self._outputs if self.last_only else self._outputs.take(self._cells, axis=0)

    def inputs(self) -> Input:
        """x [T, n, I] or tokens [T, n] of the slice; zeros past a sequence's end."""
        now = self.slice
        x = self.x[now.start : now.stop]
        return x.reshape(now.length, now.size, *x.shape[1:])

    def absorb(self, y: Output) -> None:
        """Takes y [T, n, O] of the slice, T at least its own."""
        now = self.slice
        if not self.last_only:
            own = y[: now.length]
            self._outputs[now.start : now.stop] = own.reshape(-1, own.shape[2])
        elif now.staying < now.size:
            over = slice(now.staying, now.size)
            columns = np.arange(now.staying, now.size)
            self._outputs[now.members[over]] = y[now.counts[over] - 1, columns]

    def advance(self) -> bool:
        """To the next slice; False: that was the last."""
        self.left -= self.slice.size - self.slice.staying
        self._turn += 1
        if self._turn == len(self._slices):
            return False
        self.slice = self._slices[self._turn]
        return True

    def settle(self, error: ServeError | None = None) -> None:
        """They are over, by the error if there is one; tells the sink, once."""
        sink, self.sink = self.sink, TOLD
        sink.settled(self, error)


class SequencesSink(Protocol):
    """Who gets the end of a Predict's sequences; called exactly once, on the loop's thread."""

    def settled(self, sequences: Sequences, error: ServeError | None) -> None:
        """`y` and `finals` are whole, or nothing of them counts."""


class _Told:
    """The sink of sequences whose end was told."""

    def settled(self, sequences: Sequences, error: ServeError | None) -> None:
        raise AssertionError(f"{sequences} were told twice")


TOLD = _Told()
