"""Owns what a session can start from: nothing, a client's state, another session, a record."""

from __future__ import annotations

from dataclasses import dataclass

from lstmserve.engine.compute.pool import Rows
from lstmserve.engine.replies import SavedReply


@dataclass(frozen=True, slots=True)
class Start:
    """What a session starts from: pool rows [1, width] (None: zeros) and the step they are at.

    The other fields are those of a session that a store had; 0 and None for one that is new, but
    `request_id` is that of the OpenSession which began it.
    """

    source: str = "new"  # new, import, fork, load, resume: the label of lstm_sessions_opened_total
    rows: Rows | None = None
    step: int = 0
    incarnation: int = 0
    epoch: int = 0
    open_time_ns: int = 0
    digest: int = 0
    reply: SavedReply | None = None
    request_id: str = ""
