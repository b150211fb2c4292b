"""Owns the question what a model holds right now, as a scrape asks it. Changes nothing."""

from __future__ import annotations

import numpy as np

from lstmserve.engine import Engine, Model
from lstmserve.engine.compute.pool import RESERVED
from lstmserve.engine.table import CLOSING, OPEN
from lstmserve.server.observe.metrics import Gauges


def read_gauges(engine: Engine, model: Model) -> Gauges:
    """Used and free slots are places for sessions, spare ones are for steps under way.

    Sessions are counted in the table, not taken from the counters they are compared with.
    """
    if model.scheduler is None:
        return Gauges()
    table = engine.table
    used = slice(table.used)
    phase = table.phase[used]
    is_live = ((phase == OPEN) | (phase == CLOSING)) & (table.model[used] == model.index)
    sessions = int(np.count_nonzero(is_live))
    is_dirty = is_live & (table.step[used] > table.durable_step[used])
    dirty = int(np.count_nonzero(is_dirty)) if engine.lifecycle.has_store else 0
    return Gauges(
        pending_steps=model.scheduler.pending_steps,
        slots_used=model.sessions,
        slots_spare=model.slots - RESERVED - model.sessions_max,
        slots_free=model.sessions_max - model.sessions,
        sessions_clean=sessions - dirty,
        sessions_dirty=dirty,
    )
