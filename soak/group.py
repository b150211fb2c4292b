"""Sessions of one imported file that step together: one StepMany message for all of them.

Each reply is held at once to what the file itself answers, so a group keeps states and no history.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import numpy as np
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from lstmserve.wire.v1 import lstm_pb2 as wire
from serving import Serving
from soak.calls import Calls, Ledger, Refused, details
from soak.conversation import ATTEMPTS_MAX, LEAVING, REPEATED
from soak.findings import Experience, Violations
from soak.fleet import MODEL, Fleet
from soak.imported_file import Array, ImportedFile, sent, values
from soak.timing import pause
from tritonserving import FORGOTTEN

TOGETHER = 16  # calls of one session each at once
AT_ONCE = 32  # sessions whose answers are computed before the event loop goes on
CODES = {each.value[0]: each for each in StatusCode}


class Group:
    """The sessions NAME:0, NAME:1, ... of one client. The share `stray` of its messages goes to any
    server."""

    def __init__(
        self, fleet: Fleet, calls: Calls, file: ImportedFile, name: str, size: int, stray: float
    ) -> None:
        self.name = name
        self.violations = Violations()
        self.experience = Experience()
        self.number = 0  # of the last step that was acknowledged, of all sessions
        self._ids = [f"{name}:{i}" for i in range(size)]
        self._fleet = fleet
        self._calls = calls
        self._file = file
        self._stray = stray
        self._rng = np.random.default_rng(list(name.encode()))
        self._incarnations = [0] * size
        self._states: list[Mapping[str, Array]] = [file.start()] * size

    async def open(self) -> None:
        """Opens the sessions."""
        await self._for_each(self._open)

    async def step(self) -> None:
        """Makes one more step of every session, and sends it until each is acknowledged."""
        x, wanted = await self._next()
        began_s = time.monotonic()
        left = np.arange(len(x))
        for attempt in itertools.count():
            left = await self._send(left, x, wanted)
            if not left.size:
                break
            assert attempt < ATTEMPTS_MAX, f"{self.name}: step {self.number + 1} was refused"
        self.number += 1
        self.experience.steps += len(x)
        if attempt:
            self.experience.repeats += attempt
            self.experience.recoveries_s.append(time.monotonic() - began_s)

    async def verify(self) -> None:
        """Compares the number of steps and every state of each session with the file's own.

        It must run when no step is under way.
        """
        self._stray = 0
        await self._for_each(self._verify)

    async def _next(self) -> tuple[Array, Array]:
        """x [N, I] of the next step, and the y [N, O] that the file gives."""
        x = self._rng.standard_normal((len(self._ids), self._file.input_size), np.float32)
        wanted = np.empty((len(x), self._file.output_size), np.float32)
        for i, row in enumerate(x):
            wanted[i], self._states[i] = self._file.step(row, self._states[i])
            if not i % AT_ONCE:
                await asyncio.sleep(0)
        return x, wanted

    async def _send(self, left: Array, x: Array, wanted: Array) -> Array:
        """Sends the step of the sessions `left` once. Returns those that must be sent again."""
        serving = await self._choose()
        request = wire.StepManyRequest(
            session_ids=[self._ids[i] for i in left],
            incarnations=[self._incarnations[i] for i in left],
            steps=[self.number + 1] * left.size,
            x=x[left].tobytes(),
        )
        ledger = self._calls.ledgers.setdefault(serving, Ledger())
        try:
            (reply,) = await self._calls.stream(
                serving, "StepMany", [request], wire.StepManyResponse
            )
        except Refused as error:
            ledger.cut += left.size
            code = StatusCode.UNAVAILABLE if error.text == FORGOTTEN else error.code
            await self._wait(serving, code, error.reason, error.retry_s, str(error))
            return left
        if reply.HasField("error"):
            ledger.errors[details(reply.error)[0]] += left.size
            await self._take(serving, [reply.error])
            return left
        return left[await self._read(serving, ledger, reply, wanted[left])]

    async def _read(
        self, serving: Serving, ledger: Ledger, reply: wire.StepManyResponse, wanted: Array
    ) -> Array:
        """Compares the rows of a reply with those that are wanted, and enters them in the ledger.
        Returns the places of the sessions that failed."""
        failed = np.array([each.index for each in reply.errors], np.int64)
        for each in reply.errors:
            ledger.errors[details(each.status)[0]] += 1
        ledger.applied += len(wanted) - failed.size
        ledger.replayed += len(reply.replayed)
        await self._take(serving, (each.status for each in reply.errors))
        if failed.size == len(wanted):
            return failed  # without any y
        y = np.frombuffer(reply.y, np.float32).reshape(wanted.shape)
        is_other = (y.view(np.int32) != wanted.view(np.int32)).any(axis=1)
        is_twice = np.array(reply.steps[:]) != self.number + 1
        is_other[failed] = is_twice[failed] = False
        self.violations.changed += int(is_other.sum())
        self.violations.doubled += int(is_twice.sum())
        return failed

    async def _take(self, serving: Serving, errors: Iterable[Status]) -> None:
        """Prepares the next attempt after errors, of which one like another is heard once."""
        for content in {each.SerializeToString() for each in errors}:
            error = Status.FromString(content)
            reason, _, retry_s = details(error)
            await self._wait(serving, CODES[error.code], reason, retry_s, error.message)

    async def _wait(
        self, serving: Serving, code: StatusCode, reason: str, retry_s: float | None, text: str
    ) -> None:
        if code not in REPEATED:
            self.violations.unexpected.append(f"{self.name}: {reason} {text}")
            raise AssertionError(self.violations.unexpected[-1])
        if reason in LEAVING:
            self._fleet.suspect(serving)
        else:
            await pause(retry_s or 0)

    async def _choose(self) -> Serving:
        if self._rng.random() < self._stray:
            return self._fleet.pods[self._rng.integers(len(self._fleet.pods))].serving
        while (serving := self._fleet.home(self.name)) is None:
            await pause(0.02)
        return serving

    async def _open(self, place: int) -> None:
        request = wire.OpenSessionRequest(
            model=MODEL, session_id=self._ids[place], if_exists=wire.IF_EXISTS_RESUME
        )
        reply = await self._ask("OpenSession", request, wire.OpenSessionResponse)
        self._incarnations[place] = reply.session.incarnation

    async def _verify(self, place: int) -> None:
        request = wire.GetStateRequest(session_id=self._ids[place])
        reply = await self._ask("GetState", request, wire.GetStateResponse)
        found = self.violations
        found.lost += reply.state.step < self.number
        found.doubled += reply.state.step > self.number
        states = self._file.served(self._states[place])
        found.wrong += [values(each) for each in reply.state.tensors] != list(map(sent, states))

    async def _for_each(self, act: Callable[[int], Awaitable[None]]) -> None:
        """Does it for the place of each session, for a few at once."""
        places = iter(range(len(self._ids)))

        async def work() -> None:
            for place in places:
                await act(place)

        await asyncio.gather(*(work() for _ in range(TOGETHER)))

    async def _ask(self, method: str, request: Any, kind: type[Any]) -> Any:
        """Makes a call that may be repeated unchanged."""
        for _ in range(ATTEMPTS_MAX):
            serving = await self._choose()
            try:
                return await self._calls.call(serving, method, request, kind)
            except Refused as error:
                await self._wait(serving, error.code, error.reason, error.retry_s, str(error))
        raise AssertionError(f"{self.name}: {method} was refused {ATTEMPTS_MAX} times")
