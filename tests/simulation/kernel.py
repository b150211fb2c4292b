"""The fake model, whose state is a hash chain: any y shows all the inputs that led to it.

Pool and kernel have the real interfaces and the real free list; only the arithmetic is a hash.
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
from lstmserve.engine.compute.pool import INITIAL, Pool, Slots, States
from lstmserve.engine.compute.slots import SlotAllocator
from lstmserve.engine.model import slots_for
from lstmserve.graph.network import LstmLayout
from lstmserve.head_layers import Linear
from lstmserve.spec import LstmSpec, ModelSpec

LSTM = LstmSpec(1, 2, 2, head=(Linear(2),))
SPEC = ModelSpec.of_lstm(LSTM)
STATE_SIZE = SPEC.state_bytes // 4
OUTPUT_SIZE = LSTM.output_size
ZERO_STATE = bytes(4 * STATE_SIZE)


def advance(salt: bytes, state: bytes, x: bytes) -> tuple[bytes, bytes]:
    """One time step: the next state and y, as float32 that are whole numbers below 2^24."""
    size = 4 * (STATE_SIZE + OUTPUT_SIZE)
    words = np.frombuffer(hashlib.blake2b(salt + state + x, digest_size=size).digest(), "<u4")
    floats = (words >> 8).astype("<f4").tobytes()
    return floats[: 4 * STATE_SIZE], floats[4 * STATE_SIZE :]


def state_of(h: bytes, c: bytes) -> bytes:
    """The chain's state in h [L, width] and c [L, width]."""
    return h + c


class HashPool(Pool):
    """A Pool in numpy; it takes and gives slots like the real one."""

    def __init__(self, slots: int) -> None:
        self.layout = LstmLayout(LSTM)
        self.slots = slots
        self.trash = slots - 1
        self.states = np.zeros((slots, STATE_SIZE), np.float32)
        self._free = SlotAllocator(INITIAL + 1, self.trash)

    def read(self, slots: Slots) -> States:
        """Copies the states in these slots."""
        h, c = np.split(self.states[slots], 2, axis=1)
        shape = (len(slots), *SPEC.states[0].shape)
        return {"h": h.reshape(shape), "c": c.reshape(shape)}

    def write(self, slots: Slots, states: States) -> None:
        """Overwrites the states in these slots."""
        assert INITIAL not in slots
        values = [states[name].reshape(len(slots), -1) for name in ("h", "c")]
        self.states[slots] = np.concatenate(values, axis=1)


class HashKernel(Kernel):
    """A Kernel that runs inline. A batch fails with probability `failing`, so do single rows."""

    def __init__(self, pool: HashPool, salt: bytes, random: Random, failing: float) -> None:
        self._pool_states = pool.states
        self._salt = salt
        self._random = random
        self._failing = failing
        self.cost = Cost()  # small enough to run on the loop
        self.difference = 0.0

    def run(
        self, x: npt.NDArray[Any], lengths: npt.NDArray[np.int32], read: Slots, write: Slots
    ) -> npt.NDArray[np.float32]:
        """Reads all rows, then writes all; a failed run writes garbage."""
        states = self._pool_states
        assert len(set(write.tolist())) == write.size
        assert INITIAL < int(write.min()) <= int(write.max()) < len(states)
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
    """A model with room for `sessions_max` sessions; its name salts its chains."""
    pool = HashPool(slots_for(sessions_max, config))
    return Model(
        name=name,
        version=1,
        spec=SPEC,
        fingerprint=hashlib.sha256(name.encode()).hexdigest(),
        device="cpu",
        pool=pool,
        kernel=HashKernel(pool, name.encode(), random, failing),
        sequences=None,
        sessions_max=sessions_max,
    )
