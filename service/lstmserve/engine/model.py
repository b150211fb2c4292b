"""One served version of a model, with its pool, kernel, scheduler and counters.

It decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from lstmserve.config import Config
from lstmserve.engine.arrays import Index, Output
from lstmserve.engine.compute.device import Device
from lstmserve.engine.compute.kernel import Kernel, SequenceKernel
from lstmserve.engine.compute.pool import RESERVED, Pool, States, without_denormals
from lstmserve.engine.scheduling.scheduler import Scheduler
from lstmserve.engine.table import SessionTable
from lstmserve.rows import RowFormat
from lstmserve.spec import ModelSpec

SELF_TEST_SLOTS = 48  # the most that selftest.py takes at once


class Life(Enum):
    """Where a model is in its life; the registry says it."""

    LOADING = "loading"
    READY = "ready"
    RETIRING = "retiring"  # it opens no session any more
    GONE = "gone"


class ModelCounters(Protocol):
    """What the engine counts per model; server/observe/metrics.py implements it."""

    def batch(self, sessions: int, rows: int, padding_rows: int, compute_ns: int) -> None:
        """Counts one run of the kernel."""

    def opened(self, source: str) -> None:
        """Counts a session that began."""

    def closed(self, reason: str, count: int = 1) -> None:
        """Counts sessions that ended."""


def spare_slots(config: Config, cells: int = 1) -> int:
    """Slots that no session owns, of a model whose network reads `cells` rows for one time step:
    batches in flight write them, and long steps hold them."""
    limits = config.for_cells(cells)
    spare = limits.long_steps_max + limits.batches_in_flight_max * limits.batch_sessions_max
    return max(spare, SELF_TEST_SLOTS)


@dataclass(slots=True, eq=False, weakref_slot=True)
class Model:
    """A model that takes whole sequences alone has `sequences`, and neither `pool` nor `kernel`;
    any other has both.

    attach() sets `handle`, by which the session table names the model, `scheduler`, `limits` and
    `metrics`.
    PoolBudget writes `sessions`, `sessions_max`, `charged_bytes` and `slots_beside`.
    """

    name: str
    version: int
    spec: ModelSpec
    fingerprint: str
    device: Device
    pool: Pool | None
    kernel: Kernel | None
    sequences: SequenceKernel | None
    sessions_max: int = 0  # the most it can have while other models have at most one
    handle: int = -1
    life: Life = Life.LOADING
    sessions: int = 0  # its rows of the table, detached ones too
    charged_bytes: int = 0  # of --pool-bytes
    slots_beside: int = 0  # of its pool, that no session has
    scheduler: Scheduler | None = None
    metrics: ModelCounters = field(init=False, repr=False)
    limits: Config = field(init=False, repr=False)  # of its batches
    inputs: RowFormat = field(init=False)
    outputs: RowFormat = field(init=False)
    results: RowFormat = field(init=False)  # of what the kernel gives: ModelSpec.results
    slot_bytes: int = field(init=False)  # of one session's states

    def __post_init__(self) -> None:
        self.slot_bytes = self.spec.state_bytes
        self.inputs = RowFormat(self.spec.inputs)
        self.outputs = RowFormat(self.spec.outputs)
        self.results = RowFormat(self.spec.results)

    @property
    def difference(self) -> float:
        """The largest difference between a row in a batch, alone and in chunks here, as measured; a
        model without a pool runs each sequence alone and whole."""
        return 0.0 if self.kernel is None else self.kernel.difference

    @property
    def is_exact(self) -> bool:
        """Whether a row's bits depend neither on its batch nor on its chunk here, as measured."""
        return self.difference == 0

    def imported(self, states: States) -> States:
        """A client's states [N, *shape] as the pool takes them.

        Denormals of an nn.LSTM become zero. Any other network keeps every bit, because it may have
        computed them itself: a mean that decays is denormal after some time. So do the rows of a
        window, which are the client's input.
        """
        keeps_bits = self.spec.lstm is None or self.spec.window
        return states if keeps_bits else without_denormals(states)

    def take_apart(self, results: Output) -> tuple[Output, Index | None]:
        """The outputs [N, ...] in rows [N, ...] of `results`, and how many rows the window of each
        lacks, [N]; None where a time step always has outputs."""
        if not self.spec.waits:
            return results, None
        floats, ints = self.results.floats_of(results), self.results.ints_of(results)
        assert ints is not None
        return self.outputs.join(floats, ints[..., :-1]), ints[..., -1]

    @property
    def is_idle(self) -> bool:
        """Whether it has neither sessions nor steps or sequences that wait."""
        return not self.sessions and not (self.scheduler and self.scheduler.pending_steps)

    def attach(
        self,
        handle: int,
        config: Config,
        table: SessionTable,
        metrics: ModelCounters,
        on_idle: Callable[[int], None],
        on_moved: Callable[[int], None],
    ) -> None:
        """Adds the model to an engine."""
        self.handle = handle
        self.metrics = metrics
        if self.pool is not None:
            self.limits = config.for_cells(self.spec.cells)
            self.scheduler = Scheduler(
                self.limits, table, self.pool, self.results, on_idle, on_moved
            )


def slots_for(sessions: int, config: Config, cells: int = 1) -> int:
    """Slots of a pool that holds this many sessions; `cells` as for spare_slots()."""
    return sessions + spare_slots(config, cells) + RESERVED
