"""Owns where state outlives the process: for now nowhere, the state lives in the pool alone."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from lstmserve.engine.batch import Batch


class Store(Protocol):
    """The commit stage between a batch's run and its settling."""

    def commit(self, batch: Batch) -> Awaitable[None] | None:
        """Stores what the batch wrote, and marks in `batch.outcomes` what could not be stored.

        None: nothing to wait for. Otherwise the engine runs batches of other sessions meanwhile
        and settles this one when the awaitable ends; one that raises stored nothing.
        """


class MemoryStore:
    """`--store memory`: a crash loses the sessions, loudly (SESSION_LOST)."""

    def commit(self, batch: Batch) -> None:
        """Nothing to do: the batch's slots are the state."""
