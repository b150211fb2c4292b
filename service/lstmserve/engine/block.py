"""Owns what a StepMany message is while it waits and runs: its sessions as columns."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from lstmserve.engine.step import Input, Output, Step
from lstmserve.engine.table import Index
from lstmserve.errors import ServeError


class Block:
    """The rows of one StepMany message that can run at once, as columns; leaves as one block.

    `rows` [N] are idle sessions of one model, none twice. Sequence i is
    x[offsets[i] : offsets[i] + lengths[i]]; its outputs go to the same rows of `y`, or to row i of
    it with last_only. The scheduler fills `y`, `is_applied`, `numbers`, `errors` and the times.
    """

    __slots__ = (
        "arrival_ns",
        "compute_ns",
        "deadline_ns",
        "errors",
        "is_cancelled",
        "last_only",
        "lengths",
        "numbers",
        "offsets",
        "pending",
        "queue_ns",
        "rows",
        "sink",
        "x",
        "y",
    )

    def __init__(
        self,
        rows: Index,
        x: Input,
        offsets: Index,
        lengths: npt.NDArray[np.int32],
        output_size: int,
        sink: BlockSink,
        *,
        arrival_ns: int,
        last_only: bool,
        deadline_ns: int,
    ) -> None:
        self.rows = rows
        self.x = x
        self.offsets = offsets
        self.lengths = lengths
        self.sink = sink
        self.last_only = last_only
        self.deadline_ns = deadline_ns
        self.arrival_ns = arrival_ns
        self.queue_ns = 0  # the longest
        self.compute_ns = 0  # the sum over the batches it ran in
        self.pending = rows.size
        self.numbers = np.zeros(rows.size, np.int64)  # 0: not applied
        self.errors: dict[int, ServeError] = {}
        height = rows.size if last_only else len(x)
        self.y: Output = np.full((height, output_size), np.nan, np.float32)
        self.is_cancelled = False

    def fail(self, i: int, error: ServeError) -> None:
        """Row i is not applied: its outputs are NaN."""
        self.errors[i] = error
        start, length = (i, 1) if self.last_only else (int(self.offsets[i]), int(self.lengths[i]))
        self.y[start : start + length] = np.nan

    def settle(self, count: int) -> None:
        """`count` more rows are over; tells the sink after the last one."""
        self.pending -= count
        if not self.pending:
            self.sink.settled(self)


class BlockRow:
    """Row i of a block as a step of its own: the session is busy, or the input long."""

    __slots__ = ("_block", "_i", "step")

    def __init__(self, block: Block, i: int) -> None:
        self._block = block
        self._i = i
        start = int(block.offsets[i])
        self.step = Step(
            int(block.rows[i]),
            block.x[start : start + int(block.lengths[i])],
            self,
            arrival_ns=block.arrival_ns,
            last_only=block.last_only,
            deadline_ns=block.deadline_ns,
        )

    def applied(self, step: Step) -> None:
        """Into the block's arrays."""
        block, i = self._block, self._i
        y = step.output()
        start = i if block.last_only else int(block.offsets[i])
        block.y[start : start + len(y)] = y
        block.numbers[i] = step.number
        block.queue_ns = max(block.queue_ns, step.queue_ns)
        block.compute_ns = max(block.compute_ns, step.compute_ns)
        block.settle(1)

    def failed(self, step: Step, error: ServeError) -> None:
        """Into the block's errors."""
        self._block.fail(self._i, error)
        self._block.settle(1)


class BlockSink(Protocol):
    """Who gets a block's end; called exactly once, when its last row has settled."""

    def settled(self, block: Block) -> None:
        """Every row is applied (its number is set) or has an error."""
