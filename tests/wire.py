"""A server in this process for tests that send it raw bytes, and a good session to check it.

It has three models: "m" takes x, "letters" takes tokens, "both" is bidirectional.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry

from lstmserve.config import Config
from lstmserve.engine import Engine, load_models
from lstmserve.engine.clock import Now, read_clocks
from lstmserve.head_layers import Linear
from lstmserve.server.access.auth import AnonymousAuthenticator
from lstmserve.server.kserve import service as kserve
from lstmserve.server.native import service
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.ports import SERVICES, make_server
from lstmserve.server.transport import QueueServer
from lstmserve.server.transport.health import Health
from lstmserve.spec import LstmSpec
from lstmserve.store import Store
from lstmserve.tokens import Limits
from lstmserve.v1 import lstm_pb2 as pb
from modelmaking import make_model
from refusals import Refusal, refusal
from traffic import Oracle

SPECS = {
    "m": LstmSpec(3, 8, 2, head=(Linear(2),)),
    "letters": LstmSpec(6, 10, num_embeddings=27, head=(Linear(5),)),
    "both": LstmSpec(3, 4, bidirectional=True, head=(Linear(2),)),
}
DEADLINE_S = 30.0
NO_LIMITS = Limits()  # for every caller
NO_LIMIT = ("grpc.max_receive_message_length", -1)
Stream = grpc.aio.StreamStreamCall  # of bytes in both directions


class Clock:
    """The machine's clocks, moved ahead by what a test adds."""

    def __init__(self) -> None:
        self.ahead_ns = 0

    def __call__(self) -> Now:
        now = read_clocks()
        return Now(now.monotonic_ns + self.ahead_ns, now.wall_ns + self.ahead_ns)


class Wire:
    """A client of raw bytes, with access to the engine behind it."""

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        clock: Clock,
        channel: grpc.aio.Channel,
        server: QueueServer,
    ) -> None:
        self.engine = engine
        self._server = server
        self.metrics = metrics
        self.clock = clock
        self.channel = channel
        self.target = ""  # for other clients
        self.pending: PendingBytes
        self.door: AnonymousAuthenticator
        self.failure: BaseException | None = None  # the error that ended the engine
        self.running: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.folder = engine.config.models
        self.oracles = {
            name: Oracle(self.folder / name / "1", spec)
            for name, spec in SPECS.items()
            if (self.folder / name / "1").exists()
        }

    async def send(self, method: str, content: bytes, **options: Any) -> bytes:
        """Makes a unary call. Raises AioRpcError."""
        call = self.channel.unary_unary(f"/{service.SERVICE}/{method}")
        return await call(content, **{"timeout": DEADLINE_S, **options})

    def stream(self, method: str, **options: Any) -> Stream:
        """Begins a call in both directions."""
        call = self.channel.stream_stream(f"/{service.SERVICE}/{method}")
        return call(**{"timeout": DEADLINE_S, **options})

    async def call(self, method: str, request: Any = None, /, **fields: Any) -> Any:
        """The response to a call of the method; `fields` replace those of `request`."""
        message = request or getattr(pb, f"{method}Request")()
        message.MergeFrom(type(message)(**fields))
        content = await self.send(method, message.SerializeToString())
        return getattr(pb, f"{method}Response").FromString(content)

    async def refused(self, method: str, content: bytes, **options: Any) -> Refusal:
        """The refusal of a unary call that fails."""
        try:
            reply = await self.send(method, content, **options)
        except grpc.aio.AioRpcError as error:
            return refusal(error)
        raise AssertionError(f"accepted: {reply!r}")

    async def open(self, model: str = "m", **fields: Any) -> pb.Session:
        """Opens a session."""
        return (await self.call("OpenSession", model=model, **fields)).session

    async def good(self, model: str = "m") -> Good:
        """Opens a session that compares its replies with the oracle."""
        return Good(self, model, await self.open(model))

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Passes the loop until `is_so()`; a test that waits in vain ends by its timeout."""
        while not is_so():
            self.check_alive()
            await asyncio.sleep(0)

    def check_alive(self) -> None:
        """Raises the error that ended the engine, if any."""
        if self.running.done():
            self.running.result()
        if self.failure is not None:
            raise self.failure

    async def settled(self, session_id: str) -> int:
        """The last step of a session, once none is pending and no call is under way."""
        await self.until(lambda: self.metrics.rpcs_started == self.metrics.rpcs_handled)
        await self.until(lambda: self.engine.batch_loop.pending_steps == 0)
        return int((await self.call("GetSession", session_id=session_id)).session.step)

    def run(self) -> None:
        """Lets the engine run after serving() did not: until then all steps wait."""
        self.running = asyncio.create_task(driven(self.engine, self._stop))

    async def _stop(self, grace_s: float) -> None:
        self.failure = sys.exc_info()[1]
        await self._server.stop(grace_s)


class Good:
    """A session that steps random rows and compares the replies with the oracle, bit for bit."""

    def __init__(self, wire: Wire, model: str, session: pb.Session) -> None:
        self.wire = wire
        self.spec = SPECS[model]
        self.model = model
        self.session = session
        self.id = session.id
        self.xs: list[npt.NDArray[Any]] = []

    def rows(self, length: int = 1) -> npt.NDArray[Any]:
        """The next input, [length, I] or tokens [length]. The caller must have it applied."""
        rng = np.random.default_rng(len(self.xs))
        if self.spec.num_embeddings:
            self.xs.append(rng.integers(0, self.spec.num_embeddings, length))
        else:
            self.xs.append(rng.standard_normal((length, self.spec.input_size), np.float32))
        return self.xs[-1]

    def request(self, length: int = 1, **fields: Any) -> pb.StepRequest:
        """The request of the next step."""
        x = self.rows(length)
        values = {"tokens": x} if self.spec.num_embeddings else {"x": x.reshape(-1)}
        return pb.StepRequest(session_id=self.id, length=length, **values, **fields)

    def wanted(self, step: int = -1) -> npt.NDArray[np.float32]:
        """y [T, O] of a step by its place in `xs`."""
        y, _, _ = self.wire.oracles[self.model].run(np.concatenate(self.xs))
        ends = np.cumsum([len(x) for x in self.xs])
        return y[ends[step] - len(self.xs[step]) : ends[step]]

    def number(self, step: int = -1) -> int:
        """The number of a step by its place in `xs`."""
        return range(1, len(self.xs) + 1)[step]

    def check(self, y: Any, step: int = -1) -> None:
        """Asserts that a reply's y is that of the step."""
        wanted = self.wanted(step)
        assert np.array_equal(np.array(y, np.float32).reshape(wanted.shape), wanted)

    async def step(self, length: int = 1) -> None:
        """Makes one step, and checks it."""
        response = await self.wire.call("Step", self.request(length))
        assert response.step == len(self.xs)
        self.check(response.y)

    async def check_state(self) -> None:
        """Asserts that the state after all steps is the oracle's, and so is the number of steps."""
        state = (await self.wire.call("GetState", session_id=self.id)).state
        _, hn, cn = self.wire.oracles[self.model].run(np.concatenate(self.xs))
        assert state.step == len(self.xs)
        found = arrays(state.tensors)
        assert list(found) == ["h", "c"]
        assert np.array_equal(found["h"], hn)
        assert np.array_equal(found["c"], cn)


def tensor(name: str, values: npt.ArrayLike) -> pb.Tensor:
    """The message of values of any shape; Python's floats are float32."""
    array = np.asarray(values)
    message = pb.Tensor(name=name, shape=array.shape)
    if array.dtype.kind == "f":
        message.floats.extend(array.ravel().tolist())
    else:
        message.ints.extend(array.astype(np.int64).ravel().tolist())
    return message


def tensors(**values: npt.ArrayLike) -> list[pb.Tensor]:
    """The messages of values by name."""
    return [tensor(name, each) for name, each in values.items()]


def arrays(messages: Iterable[pb.Tensor]) -> dict[str, npt.NDArray[Any]]:
    """float32 or int64 by name, in the order of the messages."""
    found = {}
    for each in messages:
        values, dtype = (each.floats, np.float32) if each.floats else (each.ints, np.int64)
        found[each.name] = np.array(values, dtype).reshape(tuple(each.shape))
    return found


async def driven(engine: Engine, stop: Callable[[float], Awaitable[None]]) -> None:
    """Runs the engine until it is closed. If it dies the server stops like a real one."""
    try:
        await engine.run()
    except Exception:
        await stop(0)
        raise


@contextlib.asynccontextmanager
async def serving(
    folder: Path,
    *,
    is_running: bool = True,
    store: Store | None = None,
    limits: Limits = NO_LIMITS,
    **settings: Any,
) -> AsyncIterator[Wire]:
    """A server with the three models on a free port, whose integrity is checked at the end."""
    for name in SPECS.keys() - set(os.listdir(folder)):
        make_model(folder, SPECS[name], name=name)
    config = Config(models=folder, listen="127.0.0.1:0", **{"pool_bytes": 4 << 20, **settings})
    models = load_models(config)
    config = config.resolved(model.spec for model in models)
    clock, metrics = Clock(), Metrics(CollectorRegistry(), lambda read: read())
    engine = Engine(config, models, metrics, store=store, clock=clock)
    dialects = (service, kserve)
    door, pending = AnonymousAuthenticator(limits), PendingBytes(config.pending_bytes_max)
    engine.add_check(pending.check_integrity)
    methods = [each.methods(engine, metrics, config, door, pending) for each in dialects]
    server = make_server(config, methods, Health(SERVICES), has_reflection=False)
    port = server.bind("127.0.0.1:0")
    server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", [NO_LIMIT]) as channel:
        wire = Wire(engine, metrics, clock, channel, server)
        wire.pending, wire.door = pending, door
        wire.target = f"127.0.0.1:{port}"
        if is_running:
            wire.run()
        try:
            yield wire
        finally:
            wire.check_alive()
    await server.stop(0)
    await engine.close(5)
    await wire.running
    engine.check_integrity()
    assert pending.held == 0, "a call that ended holds bytes"
