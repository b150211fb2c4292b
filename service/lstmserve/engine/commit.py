"""Owns what a batch waits for before it settles: nothing, when the pool is all there is."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from lstmserve.engine.arrays import Index
from lstmserve.engine.model import Model
from lstmserve.engine.scheduling.batch import Batch


class CommitStage(Protocol):
    """What is between a batch's run and its settling."""

    def admit(self, rows: int | Index) -> None:
        """Whether these sessions, or this one, may step. Raises StoreUnavailable."""

    async def run(self) -> None:
        """What there is to do between batches, until cancelled."""

    def lag_s(self) -> float:
        """Age of the oldest step that is not stored yet."""

    async def flush(self) -> None:
        """Writes what is ahead of the store, as far as it takes it."""

    def let_go(self, model: Model, rows: Index) -> None:
        """These idle sessions move out to the store, which has their last steps."""

    async def drain(self, timeout_s: float) -> None:
        """Writes what is not yet written, after the last batch."""

    def commit(self, model: Model, batch: Batch) -> Awaitable[None] | None:
        """Stores the steps that end with the batch; marks in `outcomes` what could not be stored.

        None: nothing to wait for. Otherwise the engine runs batches of other sessions meanwhile
        and settles this one when the awaitable ends; one that raises leaves it unknown.
        """


class InMemory:
    """`--store memory`: a crash loses the sessions, loudly (SESSION_LOST)."""

    def admit(self, rows: int | Index) -> None:
        """Every session."""

    async def run(self) -> None:
        """Nothing."""

    def lag_s(self) -> float:
        """None has."""
        return 0.0

    async def flush(self) -> None:
        """Nothing."""

    def let_go(self, model: Model, rows: Index) -> None:
        """None does."""

    async def drain(self, timeout_s: float) -> None:
        """Nothing."""

    def commit(self, model: Model, batch: Batch) -> None:
        """Nothing to do: the batch's slots are the state."""
