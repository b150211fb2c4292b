"""One served version of a model, with its pool, kernel, scheduler and counters.

It also converts between a client's h and c and the pool's rows. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from lstmserve.config import Config
from lstmserve.engine.arrays import Floats
from lstmserve.engine.compute.device import Device
from lstmserve.engine.compute.kernel import Kernel, PortableKernel
from lstmserve.engine.compute.pool import RESERVED, Pool, StateRows
from lstmserve.engine.scheduling.scheduler import Scheduler
from lstmserve.engine.table import SessionTable
from lstmserve.spec import ModelSpec

SELF_TEST_SLOTS = 48  # the most that selftest.py takes at once


class ModelCounters(Protocol):
    """What the engine counts per model; server/observe/metrics.py implements it."""

    def batch(self, sessions: int, rows: int, padding_rows: int, compute_ns: int) -> None:
        """Counts one run of the kernel."""

    def opened(self, source: str) -> None:
        """Counts a session that began."""

    def closed(self, reason: str, count: int = 1) -> None:
        """Counts sessions that ended."""


def spare_slots(config: Config) -> int:
    """Slots that no session owns: batches in flight write them, and long steps hold them."""
    spare = config.long_steps_max + config.batches_in_flight_max * config.batch_sessions_max
    return max(spare, SELF_TEST_SLOTS)


@dataclass(slots=True, eq=False)
class Model:
    """A bidirectional model has `portable`, and neither `pool` nor `kernel`; any other has both.

    attach() sets `index`, the position among the engine's models, `scheduler` and `metrics`.
    """

    name: str
    version: int
    spec: ModelSpec
    fingerprint: str
    device: Device
    pool: Pool | None
    kernel: Kernel | None
    portable: PortableKernel | None
    sessions_max: int
    index: int = -1
    sessions: int = 0  # its rows of the table, detached ones too; LiveSessions counts them
    scheduler: Scheduler | None = None
    metrics: ModelCounters = field(init=False, repr=False)
    output_size: int = field(init=False)  # the spec computes it at every access

    def __post_init__(self) -> None:
        self.output_size = self.spec.output_size

    @property
    def slots(self) -> int:
        """All slots of its pool, 0 without one."""
        return self.pool.slots if self.pool else 0

    def attach(
        self,
        index: int,
        config: Config,
        table: SessionTable,
        metrics: ModelCounters,
        on_idle: Callable[[int], None],
        on_moved: Callable[[int], None],
    ) -> None:
        """Adds the model to an engine, at position `index` of its models."""
        self.index = index
        self.metrics = metrics
        if self.pool is not None:
            self.scheduler = Scheduler(
                config, table, self.pool, self.output_size, on_idle, on_moved
            )

    def rows_from(self, h: Floats, c: Floats) -> StateRows:
        """A client's h [L, N, state], c [L, N, H] as rows of the pool, each [N, width].

        Denormals become zero: one denormal makes its step up to 25 times as slow.
        """
        tiny = np.finfo(np.float32).tiny
        h, c = (np.where(np.abs(state) < tiny, np.float32(0), state) for state in (h, c))
        return self.rows_as_they_are(h, c)

    def rows_as_they_are(self, h: Floats, c: Floats) -> StateRows:
        """Converts like rows_from(), but keeps every bit: for states that this server computed."""
        layers = range(self.spec.num_layers)
        return {f"h.{i}": h[i] for i in layers} | {f"c.{i}": c[i] for i in layers}

    def state_from(self, rows: StateRows) -> tuple[Floats, Floats]:
        """Rows of the pool, each [N, width], as h [L, N, state] and c [L, N, H]."""
        layers = range(self.spec.num_layers)
        h, c = (np.stack([rows[f"{kind}.{layer}"] for layer in layers]) for kind in ("h", "c"))
        return h, c


def slots_for(sessions: int, config: Config) -> int:
    """Slots of a pool that holds this many sessions."""
    return sessions + spare_slots(config) + RESERVED
