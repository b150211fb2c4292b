"""The engine's side of a store: rows to records and back, write-through, write-behind, loading."""

from __future__ import annotations

from collections.abc import Callable

from lstmserve.config import Config
from lstmserve.engine.commit import CommitStage
from lstmserve.engine.persist.behind import WriteBehind
from lstmserve.engine.persist.records import Records
from lstmserve.engine.persist.residence import Residence
from lstmserve.engine.persist.through import WriteThrough
from lstmserve.engine.table import SessionTable
from lstmserve.store import Store

__all__ = ["Records", "Residence", "make_stage"]


def make_stage(
    config: Config,
    table: SessionTable,
    records: Records,
    store: Store,
    on_moved: Callable[[int], None],
) -> CommitStage:
    """The commit stage that `--store-mode` names."""
    if config.store_mode == "behind":
        return WriteBehind(
            table, records, store, on_moved, config.behind_s_max, config.behind_steps_max
        )
    return WriteThrough(table, records, store, config.reply_bytes_max)
