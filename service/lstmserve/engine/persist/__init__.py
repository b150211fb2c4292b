"""The engine's side of a store: records, ownership, write-through and write-behind."""

from __future__ import annotations

from collections.abc import Callable

from lstmserve.config import Config
from lstmserve.engine.persist.ownership import Ownership
from lstmserve.engine.persist.records import Records
from lstmserve.engine.persist.write_behind import WriteBehind
from lstmserve.engine.persist.write_through import CommitStage, WriteThrough
from lstmserve.engine.table import SessionTable
from lstmserve.store import Store

__all__ = ["CommitStage", "Ownership", "Records", "make_stage"]


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
