"""What one client of the stress test does: sequences under an id of its worker, which it checks."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from lstmserve.wire.v1 import lstm_pb2 as wire
from soak.calls import Calls
from soak.fleet import MODEL, Fleet

Floats = npt.NDArray[np.float32]

# As in Triton's stress test: two ids are used again and again, eight others now and then.
LENGTH_MEAN, LENGTH_DEVIATION = 16, 8
COMMON, RARE, RARE_PART = 2, 8, 0.1


class Tally(Protocol):
    """Where scenarios count."""

    wrong: int
    applied: int
    unknown: int


class Visitor:
    """One worker's connection for one scenario."""

    def __init__(
        self, fleet: Fleet, calls: Calls, rng: np.random.Generator, worker: int, tally: Tally
    ) -> None:
        self.fleet, self.calls, self.rng, self.tally = fleet, calls, rng, tally
        self.serving = fleet.pods[0].serving
        is_rare = rng.random() < RARE_PART
        number = rng.integers(RARE) + COMMON if is_rare else rng.integers(COMMON)
        self.name = f"w{worker}-{number}"

    def length(self) -> int:
        """A random length for a sequence."""
        return max(1, int(self.rng.normal(LENGTH_MEAN, LENGTH_DEVIATION)))

    def x(self, rows: int) -> Floats:
        """Random rows [rows, I]."""
        return self.rng.standard_normal((rows, self.fleet.spec.input_size)).astype(np.float32)

    def check(self, y: bytes, expected: Floats) -> None:
        """Counts wrong bits."""
        self.tally.wrong += y != expected.tobytes()

    async def open(self, name: str) -> int:
        """Opens a session under the id, whichever session had it. Returns its incarnation."""
        request = wire.OpenSessionRequest(
            model=MODEL, session_id=name, if_exists=wire.IF_EXISTS_RESTART
        )
        reply = await self.calls.call(
            self.serving, "OpenSession", request, wire.OpenSessionResponse
        )
        return int(reply.session.incarnation)

    async def close(self) -> None:
        """Closes the session."""
        request = wire.CloseSessionRequest(session_id=self.name)
        await self.calls.call(self.serving, "CloseSession", request, wire.CloseSessionResponse)

    async def sequence(self) -> None:
        """Opens a session and streams a whole sequence; the session stays open."""
        incarnation = await self.open(self.name)
        x = self.x(self.length())
        requests = [
            wire.StepRequest(
                session_id=self.name, step=i + 1, incarnation=incarnation, x=row.tobytes()
            )
            for i, row in enumerate(x)
        ]
        replies = await self.calls.stream(self.serving, "StepStream", requests, wire.StepResponse)
        assert not any(reply.HasField("error") for reply in replies), replies
        self.tally.applied += len(replies)
        self.check(b"".join(reply.y for reply in replies), self.fleet.oracle.run(x)[0])
