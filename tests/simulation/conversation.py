"""What one client knows of one session, and the oracle that checks its replies."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lstmserve.engine.errors import (
    Cancelled,
    Draining,
    Fenced,
    ModelError,
    Overloaded,
    PredecessorFailed,
    ServeError,
    SessionClosed,
    SessionExpired,
    SessionLimit,
    SessionLost,
    SessionNotFound,
    SessionReplaced,
    StepGap,
    StepSuperseded,
    StoreTimeout,
    StoreUnavailable,
)
from simulation.faults import Faults
from simulation.kernel import ZERO_STATE, advance, state_of
from simulation.loop import now_s

REPEAT = (
    Cancelled,
    Draining,
    Fenced,
    ModelError,
    Overloaded,
    PredecessorFailed,
    SessionLimit,
    StoreTimeout,
    StoreUnavailable,
)
"""What a client answers with the same call again."""


class Seen(NamedTuple):
    """What a client knew when it sent a call; the answer is judged by it."""

    floor: int  # the last step that no crash may take back
    renewed_s: float  # the session's time cannot have begun earlier
    acked: int = 0


class SessionOver(Exception):
    """The session expired, and rightly so."""


class RolledBack(Exception):
    """Acknowledged steps were lost, and the client has kept none of their inputs."""


class Conversation:
    """Steps are numbered from `base` + 1; `states[k]` is the chain after step base + k.

    `acked` is the last step known to be applied, `durable_step` the last that a server promised to
    be stored, `sent` the highest number ever sent.
    """

    is_forgetful = False  # whether it keeps no inputs of acknowledged steps to send again

    def __init__(self, faults: Faults, name: str, model: str, ttl_s: float, behind: bool) -> None:
        self.faults = faults
        self.name = name
        self.model = model
        self.ttl_s = ttl_s
        self._is_behind = behind
        self.home = 0  # the server that a router sends it to
        self.asked_s = now_s()  # when its open was sent
        self.begin(0, ZERO_STATE)

    def begin(self, step: int, state: bytes) -> None:
        """Begins a new life from this state."""
        self.base = self.acked = self.sent = self.durable_step = step
        self._left = step  # the last step that may not have been lost
        self.incarnation = 0
        self.inputs: list[bytes] = []
        self.outputs: list[bytes] = []
        self.states = [state]
        self.first_sent_s = {step: self.asked_s}

    def opened(self, session: Any) -> None:
        """Notes the first answer of a new life: the session is open."""
        self.incarnation = session.incarnation

    def seen(self) -> Seen:
        """What the client knows now."""
        floor = self.durable_step if self._is_behind else self.acked
        # If a store that is written behind fails the key, its time runs from the last step stored.
        renewing = min(self._left, self.durable_step) if self._is_behind else self._left
        if self.faults.is_store_older:
            floor = self.base
        return Seen(floor, self.first_sent_s.get(renewing, 0.0), self.acked)

    def add_input(self, x: bytes) -> int:
        """Adds the rows of the next step. Returns its number."""
        state, out = self.states[-1], []
        for i in range(0, len(x), 4):
            state, y = advance(self.model.encode(), state, x[i : i + 4])
            out.append(y)
        self.inputs.append(x)
        self.outputs.append(b"".join(out))
        self.states.append(state)
        return self.base + len(self.inputs)

    def x(self, number: int) -> bytes:
        """The rows of a step, which is sent now."""
        self.sent = max(self.sent, number)
        self.first_sent_s.setdefault(number, now_s())
        return self.inputs[number - self.base - 1]

    def state(self, number: int) -> bytes:
        """The chain's state after this step."""
        return self.states[number - self.base]

    def applied(self, number: int, step: int, y: bytes, durable_step: int) -> int:
        """Checks a reply to step `number` bit for bit. Returns the next number."""
        wanted = self.outputs[number - self.base - 1]
        self.require(step == number, f"step {number} was answered as {step}")
        self.require(y == wanted, f"step {number} has a wrong y")
        self.require(durable_step <= self.sent, f"durable_step {durable_step} > {self.sent}")
        self.require(self._is_behind or durable_step >= number, f"acked {number} is not stored")
        self.acked = self._left = max(self.acked, number)
        self.durable_step = max(self.durable_step, durable_step)
        return number + 1

    def judge(self, number: int, error: ServeError, seen: Seen) -> int:
        """Checks whether a refusal of step `number` is allowed. Returns the number to send next."""
        if isinstance(error, REPEAT):
            return number
        if isinstance(error, StepGap):
            expected = int(error.metadata["expected_step"])
            self.faults.count["gaps answered"] += 1
            floor = self.base if self.faults.is_store_older else seen.floor
            self.require(floor < expected < number, f"gap at {number} expects {expected}")
            self._left = min(self._left, expected - 1)
            if self.is_forgetful and expected <= seen.acked:
                raise RolledBack
            return expected
        if isinstance(error, StepSuperseded):
            last = int(error.metadata["last_step"])
            self.require(number < last <= self.sent, f"{number} superseded by {last}")
            self.acked = self._left = max(self.acked, number)
            return number + 1
        self.check_ended(error, seen)
        raise SessionOver

    def may_be_over(self, seen: Seen) -> bool:
        """Whether the session may have expired, or its store has forgotten it."""
        return self.faults.is_store_older or now_s() >= seen.renewed_s + self.ttl_s

    def check_ended(self, error: ServeError, seen: Seen) -> None:
        """Checks an error that ends the session: only its time may have run out."""
        is_ending = isinstance(error, SessionLost | SessionExpired | SessionNotFound)
        if self.faults.is_store_older:  # an older life of the id may be there again
            is_ending |= isinstance(error, SessionReplaced | SessionClosed)
        self.require(self.may_be_over(seen) and is_ending, f"{type(error).__name__}: {error}")

    def forget(self, step: int) -> None:
        """Goes on from this step, which is the last, with other inputs."""
        self.require(self.seen().floor <= step <= self.sent, f"the last step is told as {step}")
        kept = step - self.base
        del self.inputs[kept:], self.outputs[kept:], self.states[kept + 1 :]
        self.acked = self.sent = self._left = step
        self.first_sent_s = {n: time_s for n, time_s in self.first_sent_s.items() if n <= step}

    def check_step(self, step: int) -> None:
        """Checks a server's last step, while no new step is on its way."""
        self.require(self.seen().floor <= step <= self.acked, f"the last step is told as {step}")

    def check_state(self, h: bytes, c: bytes, step: int) -> None:
        """Checks an exported or stored state."""
        self.check_step(step)
        self.require(state_of(h, c) == self.state(step), f"the state of step {step} is wrong")

    def require(self, is_true: bool, text: str) -> None:
        """Raises Violation."""
        self.faults.require(is_true, f"{self.name}: {text} {self}")

    def __repr__(self) -> str:
        return f"(acked {self.acked}, durable {self.durable_step}, sent {self.sent})"


def random_rows(faults: Faults) -> bytes:
    """x [T, 1] of one step."""
    length = faults.random.choice((1, 1, 1, 2, 5))
    return np.array([faults.random.random() for _ in range(length)], "<f4").tobytes()
