"""Owns what belongs to one served version of a model: pool, kernel, scheduler. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lstmserve.config import Config
from lstmserve.engine.compute.device import Device
from lstmserve.engine.compute.kernel import Kernel
from lstmserve.engine.compute.pool import RESERVED, Pool, Rows
from lstmserve.engine.compute.whole import WholeKernel
from lstmserve.engine.scheduling.scheduler import Scheduler
from lstmserve.engine.table import SessionTable
from lstmserve.spec import ModelSpec

State = npt.NDArray[np.float32]

SELF_TEST_SLOTS = 48  # what selftest.py takes at once


class ModelMetrics(Protocol):
    """What the engine counts per model; server/metrics.py has the real one."""

    def batch(self, sessions: int, rows: int, padding_rows: int, compute_ns: int) -> None:
        """One run."""

    def opened(self, source: str) -> None:
        """One session more."""

    def closed(self, reason: str, count: int = 1) -> None:
        """`count` sessions fewer."""


def spare_slots(config: Config) -> int:
    """Slots beyond those of sessions: what batches in flight write, and what long steps hold."""
    spare = config.long_steps_max + config.batches_in_flight_max * config.batch_sessions_max
    return max(spare, SELF_TEST_SLOTS)


@dataclass(slots=True, eq=False)
class Model:
    """`pool` and `kernel` are None for a bidirectional model, which has `whole` instead.

    `index` is its place in the engine; `scheduler` and `metrics` are set there.
    """

    name: str
    version: int
    spec: ModelSpec
    fingerprint: str
    device: Device
    pool: Pool | None
    kernel: Kernel | None
    whole: WholeKernel | None
    sessions_max: int
    index: int = -1
    sessions: int = 0  # rows of the table it has, detached ones too; Sessions counts
    scheduler: Scheduler | None = None
    metrics: ModelMetrics = field(init=False, repr=False)
    output_size: int = field(init=False)  # of the spec, which computes it

    def __post_init__(self) -> None:
        self.output_size = self.spec.output_size

    @property
    def slots(self) -> int:
        """All slots of its pool."""
        return self.pool.slots if self.pool else 0

    def attach(
        self,
        index: int,
        config: Config,
        table: SessionTable,
        metrics: ModelMetrics,
        on_idle: Callable[[int], None],
        on_moved: Callable[[int], None],
    ) -> None:
        """Makes it one of an engine's models."""
        self.index = index
        self.metrics = metrics
        if self.pool is not None:
            self.scheduler = Scheduler(
                config, table, self.pool, self.output_size, on_idle, on_moved
            )

    def rows_from(self, h: State, c: State) -> Rows:
        """A client's h [L, N, state], c [L, N, H] as rows of the pool, each [N, width].

        Denormals become zero: one costs up to 25 times the arithmetic of its whole step.
        """
        tiny = np.finfo(np.float32).tiny
        h, c = (np.where(np.abs(state) < tiny, np.float32(0), state) for state in (h, c))
        return self.rows_as_they_are(h, c)

    def rows_as_they_are(self, h: State, c: State) -> Rows:
        """The same for states of our own: bit for bit."""
        layers = range(self.spec.num_layers)
        return {f"h.{i}": h[i] for i in layers} | {f"c.{i}": c[i] for i in layers}

    def state_from(self, rows: Rows) -> tuple[State, State]:
        """The inverse of rows_from: h [L, N, state], c [L, N, H]."""
        layers = range(self.spec.num_layers)
        h, c = (np.stack([rows[f"{kind}.{layer}"] for layer in layers]) for kind in ("h", "c"))
        return h, c


def slots_for(sessions: int, config: Config) -> int:
    """Slots of a pool for so many sessions."""
    return sessions + spare_slots(config) + RESERVED
