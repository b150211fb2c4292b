"""Owns the fake model, whose state is a hash chain: any y tells all the inputs that led to it.

Pool and kernel have the real interfaces, and the real free list; only the arithmetic is a hash.
"""

from __future__ import annotations

import hashlib
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmserve.config import Config
from lstmserve.engine import Model
from lstmserve.engine.compute.kernel import Cost, Kernel, KernelError
from lstmserve.engine.compute.pool import ZERO, Pool, Slots, StateRows
from lstmserve.engine.compute.slots import SlotAllocator
from lstmserve.engine.model import slots_for
from lstmserve.graph.forms import state_widths
from lstmserve.spec import Linear, LstmSpec

SPEC = LstmSpec(1, 2, 2, head=(Linear(2),))
WIDTHS = state_widths(SPEC)
STATE_SIZE = sum(WIDTHS.values())
OUTPUT_SIZE = SPEC.output_size
ZERO_STATE = bytes(4 * STATE_SIZE)


def advance(salt: bytes, state: bytes, x: bytes) -> tuple[bytes, bytes]:
    """One time step: the next state and y, as float32 that are whole numbers below 2^24."""
    size = 4 * (STATE_SIZE + OUTPUT_SIZE)
    words = np.frombuffer(hashlib.blake2b(salt + state + x, digest_size=size).digest(), "<u4")
    floats = (words >> 8).astype("<f4").tobytes()
    return floats[: 4 * STATE_SIZE], floats[4 * STATE_SIZE :]


def state_of(h: bytes, c: bytes) -> bytes:
    """The chain's state in h [L, width] and c [L, width]."""
    width = 4 * SPEC.hidden_size
    parts = [each[i : i + width] for i in range(0, len(h), width) for each in (h, c)]
    return b"".join(parts)


class HashPool(Pool):
    """As Pool, in numpy; takes and gives slots as the real one does."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.trash = slots - 1
        self.widths = WIDTHS
        self.states = np.zeros((slots, STATE_SIZE), np.float32)
        self._free = SlotAllocator(ZERO + 1, self.trash)

    def read(self, slots: Slots) -> StateRows:
        """Copies of the rows of these slots."""
        ends = np.cumsum(list(WIDTHS.values()))[:-1]
        return dict(zip(WIDTHS, np.split(self.states[slots], ends, axis=1), strict=True))

    def write(self, slots: Slots, rows: StateRows) -> None:
        """Overwrites the rows of these slots."""
        assert ZERO not in slots
        self.states[slots] = np.concatenate([rows[name] for name in WIDTHS], axis=1)


class HashKernel(Kernel):
    """As Kernel, inline. A batch fails with odds `failing`, and so may its rows one by one."""

    def __init__(self, pool: HashPool, salt: bytes, random: Random, failing: float) -> None:
        self._pool_states = pool.states
        self._salt = salt
        self._random = random
        self._failing = failing
        self.cost = Cost()  # little enough to run on the loop

    def run(
        self, x: npt.NDArray[Any], lengths: npt.NDArray[np.int32], read: Slots, write: Slots
    ) -> npt.NDArray[np.float32]:
        """As Kernel.run: all reads, then all writes; of a failed run the writes are garbage."""
        states = self._pool_states
        assert len(set(write.tolist())) == write.size
        assert ZERO < int(write.min()) <= int(write.max()) < len(states)
        y = np.full((*x.shape[:2], OUTPUT_SIZE), -1, np.float32)
        after = []
        for column, (length, slot) in enumerate(zip(lengths.tolist(), read.tolist(), strict=True)):
            state = states[slot].tobytes()
            for t in range(length):
                state, out = advance(self._salt, state, x[t, column].tobytes())
                y[t, column] = np.frombuffer(out, "<f4")
            after.append(state)
        if self._failing and self._random.random() < self._failing:
            states[write] = 7
            raise KernelError("as wanted")
        states[write] = np.frombuffer(b"".join(after), "<f4").reshape(-1, STATE_SIZE)
        return y


def make_model(
    name: str, sessions_max: int, config: Config, random: Random, failing: float
) -> Model:
    """A model with room for so many sessions; its name salts its chains."""
    pool = HashPool(slots_for(sessions_max, config))
    return Model(
        name=name,
        version=1,
        spec=SPEC,
        fingerprint=hashlib.sha256(name.encode()).hexdigest(),
        device="cpu",
        pool=pool,
        kernel=HashKernel(pool, name.encode(), random, failing),
        portable=None,
        sessions_max=sessions_max,
    )
