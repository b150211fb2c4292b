"""Divides --pool-bytes among the models: what each is charged, and what one gives back for another.

On the CPU a model is charged for the slots that its sessions and batches may need, or for those
that its pool still has memory for, whichever is more. The first model that opens a session gets the
room, but every model keeps what it needs for its batches and one session. On a device the pools are
divided at start: such a model is charged for its whole pool. It must not know why a session opens
or ends.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lstmserve.config import Config
from lstmserve.engine.compute.pool import RESERVED, Pool
from lstmserve.engine.model import Model, spare_slots
from lstmserve.engine.table import SessionTable

# Limits of what is given back at once, because steps wait for it.
RECLAIMED_BYTES = 1 << 20
TRIMMED_BYTES = 4 << 20
# A pool keeps more memory than it needs, so that sessions that come and go do not cost page faults.
KEPT_BYTES = 1 << 20
KEPT_PART = 8


class PoolTooSmall(ValueError):
    """--pool-bytes has no room for even one session of a model."""


class PoolBudget:
    """Counts the sessions of each model in `models`, which are those that have joined."""

    def __init__(self, config: Config, table: SessionTable, models: Iterable[Model]) -> None:
        self.bytes_max = config.pool_bytes
        self._config = config
        self._table = table
        self._models = models
        self.charged_bytes = 0

    def join(self, model: Model) -> None:
        """Charges the model from now on. Raises PoolTooSmall."""
        if model.pool is None:
            return
        model.slots_beside = spare_slots(self._config, model.spec.cells) + RESERVED
        need = self._needed(model) * model.slot_bytes
        left = self.bytes_max - self.charged_bytes
        if left < need and not self._reclaim(need - left):
            raise PoolTooSmall(too_small(model.name, model.version, need, left))
        self._charge(model)
        self._bound_sessions()

    def leave(self, model: Model) -> None:
        """Stops charging a model that has no sessions and no steps; its pool has ended."""
        self.charged_bytes -= model.charged_bytes
        model.charged_bytes = 0
        self._bound_sessions()

    def opened(self, model: Model) -> None:
        """Counts a session; there was room for it."""
        model.sessions += 1
        self._charge(model)

    def ended(self, model: Model) -> None:
        """Counts a session off."""
        model.sessions -= 1
        self._charge(model)

    def room(self, model: Model) -> int:
        """How many more sessions of the model fit now."""
        if model.pool is None:
            return 0
        slots = model.pool.slots
        if is_shared(model):
            left = self.bytes_max - self.charged_bytes + model.charged_bytes
            slots = min(slots, left // model.slot_bytes)
        return slots - model.slots_beside - model.sessions

    def shortage(self, model: Model) -> int:
        """The bytes that must become free for one more session of the model.

        It is 0 if the session fits, or if only the model's own sessions could make room.
        """
        assert model.pool is not None
        slots = model.slots_beside + model.sessions + 1
        if not is_shared(model) or slots > model.pool.slots:
            return 0
        others = self.charged_bytes - model.charged_bytes
        return max(0, others + slots * model.slot_bytes - self.bytes_max)

    def reclaim(self, model: Model) -> bool:
        """Gets memory back from other models; returns whether one more session of the model fits
        then."""
        if self.room(model) > 0:
            return True
        if shortage := self.shortage(model):
            self._reclaim(shortage)
        return self.room(model) > 0

    def trim(self) -> bool:
        """Gives memory back that models have kept for long enough; returns whether none is left."""
        is_all = True
        for model in self._models:
            if not self._unneeded(model):
                continue
            kept = max(self._needed(model) // KEPT_PART, KEPT_BYTES // model.slot_bytes)
            if (excess := self._unneeded(model) - kept) > 0:
                # Half of what may be kept goes, too: the next trim is some time away.
                slots = min(excess + kept // 2, -(-TRIMMED_BYTES // model.slot_bytes))
                is_all &= self._give_back(model, slots) and slots >= excess
        return is_all

    def check_integrity(self) -> None:
        """Asserts that every model is charged for what it has, and that all of it fits."""
        charged = 0
        for model in self._models:
            if model.pool is None:
                continue
            charge = max(self._needed(model), model.pool.top) * model.slot_bytes
            assert model.charged_bytes == charge, f"{model.name} is mischarged"
            charged += model.charged_bytes
            if is_shared(model):
                assert model.pool.taken <= self._needed(model) - RESERVED, "more than is allowed"
        assert charged == self.charged_bytes <= self.bytes_max, f"{charged} bytes are charged"

    def _needed(self, model: Model) -> int:
        """Slots that the model must have: on a device all of its pool."""
        if is_shared(model):
            return model.slots_beside + (model.sessions or 1)
        assert model.pool is not None
        return model.pool.slots

    def _charge(self, model: Model) -> None:
        pool, needed = model.pool, self._needed(model)
        assert pool is not None
        pool.allow(needed)
        charge = max(needed, pool.top) * model.slot_bytes
        self.charged_bytes += charge - model.charged_bytes
        model.charged_bytes = charge

    def _unneeded(self, model: Model) -> int:
        """Slots beyond those that the model must have, which have memory."""
        if model.pool is None or not is_shared(model):
            return 0
        return max(0, model.pool.top - self._needed(model))

    def _reclaim(self, wanted_bytes: int) -> bool:
        """Gets `wanted_bytes` back, first from the model that keeps the most unneeded ones."""
        keeping = [model for model in self._models if self._unneeded(model)]
        keeping.sort(key=lambda model: -self._unneeded(model) * model.slot_bytes)
        target = self.charged_bytes - wanted_bytes
        for model in keeping:
            if self.charged_bytes <= target:
                break
            wanted = max(self.charged_bytes - target, RECLAIMED_BYTES)
            self._give_back(model, min(self._unneeded(model), -(-wanted // model.slot_bytes)))
        return self.charged_bytes <= target

    def _give_back(self, model: Model, slots: int) -> bool:
        """Gives the memory of the pool's last `slots` back; whether that was possible."""
        pool = model.pool
        assert pool is not None
        wanted = pool.top - slots
        pool.cut(_clear(model, pool, self._table, wanted))
        self._charge(model)
        return pool.top <= wanted

    def _bound_sessions(self) -> None:
        """Sets the most sessions that each model can have while the others have at most one."""
        floors = {
            model: (model.pool.slots if not is_shared(model) else model.slots_beside + 1)
            * model.slot_bytes
            for model in self._models
            if model.pool
        }
        whole = sum(floors.values())
        for model, floor in floors.items():
            assert model.pool is not None
            slots = model.pool.slots
            if is_shared(model):
                slots = min(slots, (self.bytes_max - whole + floor) // model.slot_bytes)
            model.sessions_max = slots - model.slots_beside


def is_shared(model: Model) -> bool:
    """Whether the model's memory comes from what all models share: on the CPU."""
    return model.device == "cpu"


def too_small(name: str, version: int, need: int, left: int) -> str:
    """The message of PoolTooSmall."""
    return (
        f"--pool-bytes: {name}:{version} needs {need} bytes of it for its batches and one session, "
        f"{left} are left: give it more, or lower --batch-sessions-max and --long-steps-max"
    )


def _clear(model: Model, pool: Pool, table: SessionTable, top: int) -> int:
    """Moves the sessions in slots from `top` on to the lowest free slots.

    Returns from which slot on the pool is free: `top`, or higher where a batch under way, or a long
    step between two batches, has a slot that must stay. There are enough free slots below.
    """
    taken = pool.taken_from(top)
    if not taken.size:
        return top
    assert model.scheduler is not None
    slot, used = table.slot, slice(table.used)
    rows = np.flatnonzero((slot[used] >= top) & (table.model[used] == model.handle))
    rows = np.setdiff1d(rows, model.scheduler.rows_in_flight(), assume_unique=True)
    stays = np.setdiff1d(taken, slot[rows], assume_unique=True)
    if stays.size:
        top = int(stays[-1]) + 1
        rows = rows[slot[rows] >= top]
    if rows.size:
        old, new = slot[rows], pool.take(rows.size)
        assert new.max() < top
        pool.write(new, pool.read(old))
        slot[rows] = new
        pool.give(old)
    return top
