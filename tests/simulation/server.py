"""A simulated server: real engines and servicers, one life after the other."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import numpy as np
from google.rpc.error_details_pb2 import ErrorInfo

from calling import Caller, CallerFrame, Sender, answered
from lstmserve.config import Config
from lstmserve.engine import Engine, errors
from lstmserve.engine.errors import ServeError
from lstmserve.engine.table import DETACHED, FREE
from lstmserve.server.access.auth import AnonymousAuthenticator
from lstmserve.server.native.sessions import SessionCalls
from lstmserve.server.native.step_many import StepManyCalls
from lstmserve.server.native.steps import StepCalls
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.steps import Steps
from lstmserve.tokens import Limits
from lstmserve.wire.v1 import lstm_pb2 as pb
from simulation.faults import Faults
from simulation.kernel import make_model
from simulation.loop import clock
from simulation.network import Answer, Call, Network
from simulation.store import Shelf, StoreLine

MODELS = ("alpha", "beta")
ERRORS = {
    kind.reason: kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, ServeError)
}


class Sums:
    """The engine's metrics: sessions opened and closed."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.opened_count = self.closed_count = 0

    def model(self, name: str, version: int) -> Sums:
        """Returns itself, for every model."""
        return self

    def opened(self, source: str) -> None:
        """Counts a session that began."""
        self.opened_count += 1
        self._faults.count["loads"] += source == "load"

    def closed(self, reason: str, count: int = 1) -> None:
        """Counts sessions that ended."""
        self.closed_count += count
        self._faults.count["evictions"] += reason == "evicted"

    def ignore(self, *_: object, **__: object) -> None:
        """Ignores what the simulation does not check."""

    batch = steps = steps_of = failed = replayed = rpc = ignore


class Life:
    """One process of a server, from start to crash or drain."""

    def __init__(self, config: Config, sessions_max: int, shelf: Shelf, network: Network) -> None:
        self.faults = faults = shelf.faults
        self._network = network
        random = faults.random
        failing = faults.odds.failing
        together = sessions_max * len(MODELS)
        models = [make_model(name, together, config, random, failing) for name in MODELS]
        self.sums = Sums(faults)
        self.engine = Engine(
            config,
            models,
            self.sums,
            store=StoreLine(shelf, self),
            clock=clock(int(random.uniform(-2e9, 2e9))),
        )
        # They share the room: one model's sessions make way for the other's, and move.
        budget = self.engine.registry.budget
        more = together - len(MODELS)
        budget.bytes_max = budget.charged_bytes + more * models[0].slot_bytes
        steps = Steps(self.engine, self.sums)  # type: ignore[arg-type]  # counts less
        self._door = AnonymousAuthenticator(Limits())
        self._pending = PendingBytes(1 << 30)
        self.engine.add_check(self._pending.check_integrity)
        self._frame = CallerFrame(
            self._door,
            self.sums,  # type: ignore[arg-type]  # as above
            self._pending,
            call_s_max=60.0,
            write_s_max=60.0,
        )
        self._steps = StepCalls(self.engine, steps, self._pending)
        self._sessions = SessionCalls(self.engine)
        self._many = StepManyCalls(
            self.engine,
            self.sums,  # type: ignore[arg-type]  # as above
            self._pending,
        )
        self._tenant = self._door.tenant(None)  # type: ignore[arg-type]  # anyone
        self.is_dead = False
        self._is_awake = asyncio.Event()
        self._is_awake.set()
        self.tasks: dict[asyncio.Task[None], Call] = {}
        self._driving = asyncio.create_task(self.engine.run(), name="engine")
        self._driving.add_done_callback(self._ended)

    async def awake(self) -> None:
        """Waits until the process runs; for ever if it is dead."""
        while self.is_dead or not self._is_awake.is_set():
            await (asyncio.Event() if self.is_dead else self._is_awake).wait()

    def pause(self, seconds: float) -> None:
        """Stops the process for `seconds`."""
        self._is_awake.clear()
        asyncio.get_running_loop().call_later(seconds, self._is_awake.set)

    def crash(self) -> None:
        """Crashes the process."""
        if not self.is_dead:
            self.faults.count["crashes"] += 1
            self.exit()

    def exit(self) -> None:
        """Ends the process: nothing that happens in it has an effect outside any more."""
        self.is_dead = True
        self._driving.cancel()
        for call in self.tasks.values():
            if call.careful or self.faults.random.random() < 0.5:
                call.answer(None)

    def _ended(self, driving: asyncio.Task[None]) -> None:
        if not driving.cancelled() and driving.exception():
            self.faults.violations.append(f"the engine died of {driving.exception()!r:.200}")

    async def drain(self, timeout_s: float) -> None:
        """Ends in order, and checks what is left."""
        await self.engine.close(timeout_s)
        await self._driving
        if not self.is_dead:
            self.check()

    def check(self) -> None:
        """Checks after the drain that everything has one owner, and that the counts agree."""
        engine = self.engine
        engine.check_integrity()
        is_free = not self._pending.held or bool(self.tasks)  # a client may not have its answer yet
        self.faults.require(is_free, "bytes are held for ever")
        phase = engine.table.phase
        self.faults.require(not self._tenant.pending_steps, "a step is counted for ever")
        live = int(((phase != FREE) & (phase < DETACHED)).sum())
        opened, closed = self.sums.opened_count, self.sums.closed_count
        self.faults.require(
            opened - closed == live, f"opened {opened} - closed {closed} != live {live}"
        )

    def receive(self, call: Call) -> None:
        """Serves it in a task of its own."""
        task = asyncio.create_task(self._serve(call))
        self.tasks[task] = call
        task.add_done_callback(self.tasks.pop)

    def forget(self, call: Call) -> None:
        """Cancels the call's task."""
        for task, each in list(self.tasks.items()):
            if each is call:
                self.faults.count["handlers cancelled"] += 1
                task.cancel()

    async def _serve(self, call: Call) -> None:
        await self.awake()
        answer: Answer
        try:
            method: Callable[..., Awaitable[Any]] = getattr(self, f"_{call.method}")
            answer = await method(call.request)
        except ServeError as error:
            self.faults.count[f"answered {error.reason}"] += not self.is_dead
            answer = error
        except Exception as error:
            self.faults.violations.append(f"{call.method} raised {error!r}")
            raise
        await self.awake()
        self._network.respond(call, answer)

    async def _step(self, request: Any) -> Any:
        caller = Caller(request.SerializeToString(), self._tenant, self._pending)
        content = await answered(functools.partial(self._steps.receive, self._frame), caller)
        response = pb.StepResponse.FromString(content)
        self.faults.count["steps replayed"] += response.replayed
        return response

    async def _stream(self, pipeline: Any) -> Any:
        """The replies, sorted by tag: native replies of one session may overtake each other."""
        for tag, each in enumerate(pipeline.steps, start=1):
            each.tag = tag
        sender = Sender()
        contents = [each.SerializeToString() for each in pipeline.steps]
        await sender.run(self._steps.begin, self._tenant, contents)
        replies = [pb.StepResponse.FromString(content) for content in sender.replies]
        return sorted(replies, key=lambda reply: reply.tag)

    async def _many_steps(self, request: Any) -> list[Any]:
        """A StepResponse or an error for each session, as if it had been stepped by itself."""
        sender = Sender()
        await sender.run(self._many.begin, self._tenant, [request.SerializeToString()])
        response = pb.StepManyResponse.FromString(sender.replies[0])
        if response.HasField("error"):
            raise _error(response.error)
        y, edges = rows(response.y), np.cumsum([0, *request.lengths])
        answers: list[Any] = [
            pb.StepResponse(step=number, y=y[start:stop].tobytes(), durable_step=durable_step)
            for number, (start, stop), durable_step in zip(
                response.steps, pairwise(edges), response.durable_steps, strict=True
            )
        ]
        for each in response.errors:
            answers[each.index] = error = _error(each.status)
            self.faults.count[f"answered {error.reason}"] += 1
        return answers

    async def _open(self, request: Any) -> Any:
        return await self._sessions.open_session(request, self._tenant)

    async def _close(self, request: Any) -> Any:
        return await self._sessions.close_session(request, self._tenant)

    async def _state(self, request: Any) -> Any:
        return await self._sessions.get_state(request, self._tenant)


def rows(values: bytes) -> Any:
    """y [T, O] from the wire."""
    return np.frombuffer(values, "<f4").reshape(-1, 2)


def _error(status: Any) -> ServeError:
    """The error that the engine raised, from the status that the server made of it."""
    info = ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details), "an error without a reason"
    return ERRORS[info.reason](status.message, metadata=dict(info.metadata))
