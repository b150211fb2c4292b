"""Owns what a computed slice of a Predict's group changes: nothing but slots and queue. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lstmserve.engine.compute.pool import Pool, Slots
from lstmserve.engine.schedule import verdicts
from lstmserve.engine.schedule.failures import Failures
from lstmserve.engine.schedule.outcome import Outcome
from lstmserve.engine.schedule.queues import ReadyQueues
from lstmserve.engine.schedule.sequences import Sequences
from lstmserve.engine.schedule.turns import SessionTurns


class Groups:
    """Makes the next slice ready, or the next group; or the call is over."""

    def __init__(
        self, pool: Pool, ready: ReadyQueues, turns: SessionTurns, failures: Failures
    ) -> None:
        self._pool = pool
        self._ready = ready
        self._turns = turns
        self._failures = failures

    def settle(self, sequences: Sequences, write: Slots, outcomes: npt.NDArray[np.uint8]) -> None:
        """`write` [n] has the states after the slice. No store has a part in it."""
        if (outcomes == Outcome.FAILED).any():
            self._pool.give(write)
            self._failures.fail_sequences(sequences, verdicts.model_failed())
            return
        staying = sequences.slice.staying
        self._keep_finals(sequences, write[staying:])
        self._pool.give(write[staying:])
        self._turns.pending_sequences -= sequences.size - staying
        if not staying:
            self._ready.end_group(sequences)
        if not sequences.advance():
            sequences.settle()
        elif sequences.slice.is_first:
            self._ready.push_group(sequences)
        else:
            self._ready.push_next_slice_of_group(sequences, write[:staying])

    def _keep_finals(self, sequences: Sequences, slots: Slots) -> None:
        """The states of those members that are over, as long as their slots are theirs."""
        if sequences.finals is None or not slots.size:
            return
        over = sequences.slice.members[sequences.slice.staying :]
        for name, rows in self._pool.read(slots).items():
            sequences.finals[name][over] = rows
