"""Owns the question what a model holds right now, as a scrape asks it. Changes nothing."""

from __future__ import annotations

import numpy as np

from lstmserve.engine import Engine, Model
from lstmserve.engine.pool import RESERVED
from lstmserve.engine.table import CLOSING, OPEN
from lstmserve.server.metrics import Gauges


def read_gauges(engine: Engine, model: Model) -> Gauges:
    """Used and free slots are places for sessions, spare ones are for steps under way.

    Sessions are counted in the table, not taken from the counters they are compared with.
    """
    if model.scheduler is None:
        return Gauges()
    table = engine.table
    is_live = (table.phase == OPEN) | (table.phase == CLOSING)
    return Gauges(
        pending_steps=model.scheduler.pending_steps,
        slots_used=model.sessions,
        slots_spare=model.slots - RESERVED - model.sessions_max,
        slots_free=model.sessions_max - model.sessions,
        sessions_clean=int(np.count_nonzero(is_live & (table.model == model.index))),
    )
