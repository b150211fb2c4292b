"""Owns what a StepMany message is while it waits and runs: its sessions as columns."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Digests, Index, Input, Output
from lstmserve.engine.errors import ServeError
from lstmserve.engine.schedule.digest import digests, digests_of_rows
from lstmserve.engine.schedule.step import Step


class Block:
    """The rows of one StepMany message that can run at once, as columns; leaves as one block.

    `rows` [N] are sessions of one model, none twice. Sequence i is
    x[offsets[i] : offsets[i] + lengths[i]]; its outputs go to y[places[i] : ...], as many rows as
    it has time steps, or one with last_only. `y` [height, O] is NaN where nothing is applied.
    The scheduler fills `y`, `numbers` (0: not applied), `errors` and `replayed` (by i), the times.
    """

    __slots__ = (
        "arrival_ns",
        "cancelled",
        "compute_ns",
        "deadline_ns",
        "digests",
        "durable_steps",
        "errors",
        "is_cancelled",
        "is_numbered",
        "is_single",
        "last_only",
        "lengths",
        "numbers",
        "offsets",
        "pending",
        "places",
        "queue_ns",
        "replayed",
        "rows",
        "sink",
        "steps",
        "x",
        "y",
    )

    def __init__(
        self,
        rows: Index,
        x: Input,
        offsets: Index,
        lengths: npt.NDArray[np.int32],
        sink: BlockSink,
        *,
        places: Index,
        shape: tuple[int, int],
        arrival_ns: int,
        last_only: bool,
        deadline_ns: int | Index,
        numbers: Index | None = None,
        is_single: bool = False,
    ) -> None:
        self.rows = rows
        self.x = x
        self.offsets = offsets
        self.lengths = lengths
        self.places = places
        self.sink = sink
        self.last_only = last_only
        self.deadline_ns = deadline_ns  # of the start of compute, of all or [N]; 0: none
        self.arrival_ns = arrival_ns
        self.queue_ns = 0  # the longest
        self.compute_ns = 0  # the sum over the batches it ran in
        self.pending = rows.size
        self.is_single = is_single  # every sequence is one row, in x and in y where it is in rows
        self.is_numbered = numbers is not None
        self.numbers = np.zeros(rows.size, np.int64) if numbers is None else numbers
        self.digests: Digests | None = self._digests() if self.is_numbered else None
        self.durable_steps = np.zeros(rows.size, np.int64)
        self.replayed: list[int] = []
        self.errors: dict[int, ServeError] = {}
        self.y: Output = np.full(shape, np.nan, np.float32)
        self.is_cancelled = False
        self.cancelled: set[int] = set()  # single rows whose caller went away
        self.steps: list[Step] = []  # of the rows that run as steps of their own

    def _digests(self) -> Digests:
        if self.is_single:
            return digests_of_rows(self.x, self.last_only)
        return digests(self.x, self.offsets, self.lengths, self.last_only)

    def output(self, i: int) -> Output:
        """Row i's part of y."""
        start = int(self.places[i])
        return self.y[start : start + (1 if self.last_only else int(self.lengths[i]))]

    def deadline_of(self, i: int) -> int:
        """Of row i; 0: none."""
        deadline_ns = self.deadline_ns
        return deadline_ns if isinstance(deadline_ns, int) else deadline_ns.item(i)

    def cancel(self) -> None:
        """The caller went away: rows whose last slice has not been scheduled will not apply."""
        self.is_cancelled = True
        for step in self.steps:
            step.is_cancelled = True

    def fail(self, i: int, error: ServeError) -> None:
        """Row i is not applied: its outputs are NaN."""
        self.errors[i] = error
        self.numbers[i] = 0
        self.output(i)[:] = np.nan

    def forget_input_if_joined(self) -> None:
        """Called once it was submitted: where every row that waits has joined another step of its
        number, no input is needed any more."""
        if len(self.steps) == self.rows.size and not any(map(_needs_input, self.steps)):
            self.x = self.x[:0].copy()

    def settle(self, count: int) -> None:
        """`count` more rows are over; tells the sink after the last one."""
        self.pending -= count
        if not self.pending:
            sink, self.sink = self.sink, TOLD  # which may hold the block
            sink.settled(self)


def _needs_input(step: Step) -> bool:
    return len(step.x) > 0 and not step.is_over


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
            deadline_ns=block.deadline_of(i),
            number=int(block.numbers[i]),
            is_numbered=block.is_numbered,
            digest=0 if block.digests is None else int(block.digests[i]),
        )
        block.steps.append(self.step)

    def applied(self, step: Step) -> None:
        """Into the block's arrays."""
        block, i = self._block, self._i
        y = step.output()
        start = int(block.places[i])
        block.y[start : start + len(y)] = y
        block.numbers[i] = step.number
        block.durable_steps[i] = step.durable_step
        if step.is_replayed:
            block.replayed.append(i)
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


class _Told:
    """The sink of a block whose end was told."""

    def settled(self, block: Block) -> None:
        raise AssertionError("a block was told twice")


TOLD = _Told()
