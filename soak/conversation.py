"""One session as its client sees it: numbered steps, repeats, and the history to check.

The client sends a step until it is answered. It keeps every answer, and a second answer to a step
must have the same bits. When a server asks for older steps (a gap), it has lost them: the client
sends them again if it `may_replay`.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
from grpc import StatusCode

from lstmserve.wire.v1 import lstm_pb2 as wire
from serving import Serving
from soak.calls import Calls, Refused
from soak.findings import Experience, Violations
from soak.fleet import MODEL, Fleet
from soak.imported_file import sent, values
from soak.timing import pause

Floats = npt.NDArray[np.float32]

ATTEMPTS_MAX = 1000
ROWS_MAX = 4
REPEATED = {StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED, StatusCode.DEADLINE_EXCEEDED}
LEAVING = {"", "DRAINING"}  # reasons for which the client asks another server


class Conversation:
    """One session of a client; the share `stray` of its calls goes to any server."""

    if_exists = wire.IF_EXISTS_RESUME

    def __init__(
        self, fleet: Fleet, calls: Calls, name: str, *, may_replay: bool = False, stray: float = 0
    ) -> None:
        self.name = name
        self.violations, self.experience = Violations(), Experience()
        self.inputs: list[Floats] = []
        self.outputs: list[Floats] = []
        self.durable_step = 0
        self._acked: list[tuple[Serving, float]] = []
        self._fleet, self._calls = fleet, calls
        self._may_replay, self._stray = may_replay, stray
        self._random = np.random.default_rng(list(name.encode()))
        self._incarnation = 0

    async def open(self) -> None:
        """Opens the session by an id of the client's, so that a repeat finds the same session."""
        request = wire.OpenSessionRequest(
            model=MODEL, session_id=self.name, if_exists=self.if_exists
        )
        reply = await self._ask("OpenSession", request, wire.OpenSessionResponse)
        self._incarnation = reply.session.incarnation

    async def step(self, rng: np.random.Generator) -> None:
        """Makes one more step, and sends it until it is acknowledged."""
        self.prepare(rng)
        await self.resume()

    def prepare(self, rng: np.random.Generator, rows: int = 0) -> int:
        """Makes the input of the next step, of `rows` rows or a few. Returns the step's number."""
        shape = (rows or int(rng.integers(1, ROWS_MAX + 1)), self._fleet.spec.input_size)
        self.inputs.append(rng.standard_normal(shape).astype(np.float32))
        return len(self.inputs)

    async def resume(self) -> None:
        """Sends the prepared step until it is acknowledged."""
        await self._reach(len(self.inputs))
        self.experience.steps += 1

    async def try_once(self, serving: Serving, rng: np.random.Generator, rows: int) -> None:
        """Sends the next step, or the one that was refused before, once. Raises Refused."""
        if len(self.outputs) == len(self.inputs):
            self.prepare(rng, rows)
        number = len(self.inputs)
        self._keep(serving, number, await self._calls.step(serving, self.request(number)))

    def request(self, number: int) -> wire.StepRequest:
        """The request of the step with this number."""
        x = self.inputs[number - 1]
        return wire.StepRequest(
            session_id=self.name,
            step=number,
            incarnation=self._incarnation,
            length=len(x),
            x=x.tobytes(),
        )

    async def verify(self) -> None:
        """Compares the whole history, the last step and the state with the oracle.

        It must run when no step is under way, and every former owner of the session knows that it
        is not.
        """
        self._stray = 0
        if not self.inputs:
            return
        await self._reach(len(self.inputs))
        info = await self._ask(
            "GetSession", wire.GetSessionRequest(session_id=self.name), wire.GetSessionResponse
        )
        state = await self._ask(
            "GetState", wire.GetStateRequest(session_id=self.name), wire.GetStateResponse
        )
        self.violations.doubled += info.session.step > len(self.inputs)
        self.violations.lost += max(0, len(self.inputs) - info.session.step)
        y, *states = self._fleet.oracle.run(np.concatenate(self.inputs))
        is_right = np.array_equal(np.concatenate(self.outputs), y) and [
            values(each) for each in state.state.tensors
        ] == [sent(each) for each in states]
        self.violations.wrong += not is_right

    async def _reach(self, number: int) -> None:
        """Sends a step, and before it those that a server lost, until it is acknowledged."""
        began_s = time.monotonic()
        for attempt in range(ATTEMPTS_MAX):
            serving = await self._choose()
            try:
                reply = await self._calls.step(serving, self.request(number))
            except Refused as error:
                await self._handle(error, serving, number)
                continue
            if attempt:
                self.experience.repeats += attempt
                self.experience.recoveries_s.append(time.monotonic() - began_s)
            self._keep(serving, number, reply)
            return
        raise AssertionError(f"{self.name}: step {number} was refused {ATTEMPTS_MAX} times")

    async def _handle(self, error: Refused, serving: Serving, number: int) -> None:
        """Prepares the next attempt after an error."""
        if error.reason == "STEP_GAP":
            await self._send_again(int(error.metadata["expected_step"]), number)
        elif error.code not in REPEATED:
            self.violations.unexpected.append(f"{self.name}: {error.reason} {error}")
            raise error
        else:
            await self._wait(error, serving)

    async def _wait(self, error: Refused, serving: Serving) -> None:
        if error.reason in LEAVING:
            self._fleet.suspect(serving)
        else:
            await pause(error.retry_s or 0)

    async def _send_again(self, expected: int, number: int) -> None:
        if not self._may_replay:
            self.violations.lost += number - expected
            raise AssertionError(f"{self.name}: acked {number - 1}, the server wants {expected}")
        self.violations.regressions += expected <= self.durable_step
        acked_by, acked_s = self._acked[expected - 1]
        self.experience.rollbacks.append(number - expected)
        self.experience.rollbacks_s.append(self._fleet.ended_s(acked_by) - acked_s)
        for older in range(expected, number):
            await self._reach(older)

    def _keep(self, serving: Serving, number: int, reply: wire.StepResponse) -> None:
        y = np.frombuffer(reply.y, np.float32).reshape(-1, self._fleet.spec.output_size)
        assert len(y) == reply.length
        assert reply.step == number
        self.violations.regressions += reply.durable_step < self.durable_step
        self.durable_step = max(self.durable_step, reply.durable_step)
        ack = serving, time.monotonic()
        if number <= len(self.outputs):
            self.violations.changed += not np.array_equal(self.outputs[number - 1], y)
            self._acked[number - 1] = ack
        else:
            self.outputs.append(y)
            self._acked.append(ack)

    async def _choose(self) -> Serving:
        if self._random.random() < self._stray:
            return self._fleet.pods[self._random.integers(len(self._fleet.pods))].serving
        while (serving := self._fleet.home(self.name)) is None:
            await pause(0.02)
        return serving

    async def _ask(self, method: str, request: Any, kind: type[Any]) -> Any:
        """Makes a call that may be repeated unchanged."""
        for _ in range(ATTEMPTS_MAX):
            serving = await self._choose()
            try:
                return await self._calls.call(serving, method, request, kind)
            except Refused as error:
                if error.code not in REPEATED:
                    raise
                await self._wait(error, serving)
        raise AssertionError(f"{self.name}: {method} was refused {ATTEMPTS_MAX} times")
