"""Owns what a step is while it waits and runs: its input, its progress, and who gets the reply."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from lstmserve.engine.arrays import Input, Output
from lstmserve.engine.compute.pool import ZERO
from lstmserve.engine.errors import ServeError
from lstmserve.engine.schedule.digest import digest


class Sink(Protocol):
    """Who gets a step's end; called exactly once per step, on the loop's thread; must not raise."""

    def applied(self, step: Step) -> None:
        """`step.y` and its times are final."""

    def failed(self, step: Step, error: ServeError) -> None:
        """Nothing was applied (but for StoreTimeout, where it is unknown)."""


class _Told:
    """The sink of a step whose end was told: it must not hold its sink, which holds the step."""

    def applied(self, step: Step) -> None:
        raise AssertionError(f"{step} was told twice")

    def failed(self, step: Step, error: ServeError) -> None:
        raise AssertionError(f"{step} was told twice")


TOLD = _Told()


class Step:
    """One session's x [T, I], from arrival to reply."""

    __slots__ = (
        "_digest",
        "arrival_ns",
        "compute_ns",
        "deadline_ns",
        "done",
        "durable_step",
        "end_ns",
        "is_cancelled",
        "is_long",
        "is_numbered",
        "is_replayed",
        "last_only",
        "length",
        "number",
        "row",
        "scratch",
        "sink",
        "start_ns",
        "x",
        "y",
    )

    def __init__(
        self,
        row: int,
        x: Input,
        sink: Sink,
        *,
        arrival_ns: int,
        last_only: bool = False,
        deadline_ns: int = 0,
        number: int = 0,
        is_numbered: bool = False,
        digest: int = 0,
    ) -> None:
        self.row = row
        self.x = x
        self.sink = sink
        self.length = len(x)
        self.last_only = last_only
        self.deadline_ns = deadline_ns  # of the start of compute; 0: none
        self.arrival_ns = arrival_ns
        self.start_ns = 0  # when its first slice ran
        self.end_ns = 0  # when it was applied
        self.compute_ns = 0  # of the batches it ran in
        self.done = 0  # time steps computed
        self.scratch = ZERO  # holds the state after `done` time steps, between slices
        self.number = number  # 0 until it is accepted, where the client gave none
        self.is_numbered = is_numbered  # by its client
        self._digest = digest
        self.durable_step = 0  # the session's last step that a store has, when this one settled
        self.is_replayed = False  # answered from the record, nothing computed
        self.y: list[Output] = []  # per slice [t, O]; the last one's last row only with last_only
        self.is_cancelled = False
        self.is_long = False  # may hold a scratch slot between batches

    def __repr__(self) -> str:
        return f"Step(row={self.row}, done={self.done}/{self.length})"

    @property
    def digest(self) -> int:
        """Of a numbered step's input; 0 for one without a number. Computed when it is asked for."""
        if self.is_numbered and not self._digest:
            self._digest = digest(self.x, self.last_only)
        return self._digest

    @property
    def is_over(self) -> bool:
        """Whether its sink was told."""
        return self.sink is TOLD

    @property
    def queue_ns(self) -> int:
        """From arrival to the start of the first slice."""
        return self.start_ns - self.arrival_ns

    def join(self) -> None:
        """It waits for another step of its number: its input's digest is all that it needs."""
        assert self.digest, "a step without a number joins none"
        self.x = self.x[:0].copy()

    def add_output(self, y: Output) -> None:
        """The next time steps' y [t, O], kept as far as the reply needs it."""
        self.done += len(y)
        if not self.last_only:
            # A slice's y is a view of its batch's, which must not live until the last slice.
            self.y.append(y if self.done == self.length else y.copy())
        elif self.done == self.length:
            self.y.append(y[-1:])

    def replay(self, y: Output) -> None:
        """It was applied before, with this y [length, O]."""
        self.y = [y]
        self.is_replayed = True
        self.start_ns = self.end_ns = self.arrival_ns

    def tell_applied(self) -> None:
        """Its sink, once."""
        sink, self.sink = self.sink, TOLD
        sink.applied(self)

    def tell_failed(self, error: ServeError) -> None:
        """Its sink, once."""
        sink, self.sink = self.sink, TOLD
        sink.failed(self, error)

    def output(self) -> Output:
        """y [T, O], or [1, O] with last_only."""
        if len(self.y) > 1:
            self.y = [np.concatenate(self.y)]
        return self.y[0]
