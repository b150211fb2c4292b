"""A server with tenants in this process; the test moves its clock and makes its calls."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry, generate_latest

from lstmserve import AsyncClient
from lstmserve.client import LstmServeError
from lstmserve.client.status import from_rpc
from lstmserve.config import Config
from lstmserve.engine import Engine, load_models
from lstmserve.engine.clock import Now, read_clocks
from lstmserve.server.native import service
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.ports import Ports
from lstmserve.tokens import make_token
from lstmserve.v1 import lstm_pb2 as pb
from wire import driven

X = [0.5, -1.0, 2.0]
DEADLINE_S = 30.0


class Clock:
    """The machine's clocks, or clocks that only a test moves."""

    def __init__(self) -> None:
        self.stopped: Now | None = None

    def __call__(self) -> Now:
        return self.stopped or read_clocks()

    def add(self, seconds: float) -> None:
        """Lets time pass for the server; from now on only this moves its clocks."""
        now, step_ns = self(), round(seconds * 1e9)
        self.stopped = Now(now.monotonic_ns + step_ns, now.wall_ns + step_ns)


class Tenancy:
    """The server, and tokens of its tenants by name; "admin" is the operator's port."""

    def __init__(self, engine: Engine, ports: Ports, clock: Clock, registry: CollectorRegistry):
        self.engine = engine
        self.ports = ports
        self.clock = clock
        self._registry = registry
        self.tokens: dict[str, str] = {}
        self.pending: PendingBytes
        self._clients: list[AsyncClient] = []

    def client(self, tenant: str) -> AsyncClient:
        """A client with the tenant's token; the test need not close it."""
        client = AsyncClient(self.ports.listen, token=self.tokens.get(tenant), retry_s_max=0)
        self._clients.append(client)
        return client

    @contextlib.asynccontextmanager
    async def channel(
        self, address: str | None = None, **options: int
    ) -> AsyncIterator[grpc.aio.Channel]:
        """A bare channel, by default to the public port; options have the form grpc_x_y."""
        named = [(name.replace("_", ".", 2), value) for name, value in options.items()]
        async with grpc.aio.insecure_channel(address or self.ports.listen, named) as channel:
            yield channel

    def metadata(self, tenant: str) -> tuple[tuple[str, str], ...]:
        """The call metadata with the tenant's token."""
        return (("authorization", f"Bearer {self.tokens[tenant]}"),)

    def scrape(self) -> str:
        """What /metrics shows."""
        return generate_latest(self._registry).decode()

    async def close(self) -> None:
        """Closes every client."""
        for client in self._clients:
            await client.close()


@contextlib.asynccontextmanager
async def tenancy(folder: Path, file: Path | None, **settings: Any) -> AsyncIterator[Tenancy]:
    """A server on the models in `folder` and the tokens in `file`; checks its integrity last."""
    free = {"listen": "127.0.0.1:0", "pool_bytes": 4 << 20}
    config = Config(models=folder, tokens=file, **{**free, **settings})
    models = load_models(config)
    config = config.resolved(model.spec for model in models)
    registry, clock = CollectorRegistry(), Clock()
    metrics = Metrics(registry, lambda read: read())
    engine = Engine(config, models, metrics, clock=clock)
    pending = PendingBytes(config.pending_bytes_max)
    engine.add_check(pending.check_integrity)
    ports = Ports(config, engine, metrics, pending)
    running = Tenancy(engine, ports, clock, registry)
    running.pending = pending
    ports.start()
    driving = asyncio.create_task(driven(engine, ports.stop))
    try:
        yield running
    finally:
        await running.close()
        await engine.close(DEADLINE_S)
        await driving
        await ports.stop(0)
    engine.check_integrity()
    assert pending.held == 0, "a call that ended holds bytes"


def write_tokens(file: Path, **tenants: str) -> dict[str, str]:
    """Writes a line for each tenant with its limits, and returns their tokens."""
    made = {tenant: make_token(tenant) for tenant in tenants}
    lines = [f"{line}  {tenants[tenant]}" for tenant, (_, line) in made.items()]
    file.write_text("\n".join(lines))
    return {tenant: token for tenant, (token, _) in made.items()}


@contextlib.asynccontextmanager
async def limited(
    models: Path, folder: Path, limits: str, **settings: Any
) -> AsyncIterator[Tenancy]:
    """A server with the tenant acme, which has the limits, and other, which has none of its own."""
    tokens = write_tokens(folder / "tokens", acme=limits, other="")
    async with tenancy(models, folder / "tokens", **settings) as running:
        running.tokens = tokens
        yield running


async def refusal(call: grpc.aio.Call) -> tuple[LstmServeError, str | None]:
    """How a bare call fails, and the pushback that it gives gRPC's own retry."""
    try:
        if isinstance(call, grpc.aio.StreamStreamCall):
            await call.read()
        reply = await call
    except grpc.aio.AioRpcError as error:
        pushback = dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms")
        return from_rpc(error), None if pushback is None else str(pushback)
    raise AssertionError(f"accepted: {reply!r}")


def path(method: str) -> str:
    """The path of a call on the wire."""
    return f"/{service.SERVICE}/{method}"


def step_bytes(session_id: str, **fields: Any) -> bytes:
    """A StepRequest of one row."""
    return pb.StepRequest(session_id=session_id, x=X, **fields).SerializeToString()
