"""Opens the gRPC ports: the public one and the operator's. Knows no session and no message."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lstmserve.address import host_port, is_loopback
from lstmserve.config import Config
from lstmserve.engine import Engine
from lstmserve.kserve.v2 import inference_pb2
from lstmserve.server.access import tls
from lstmserve.server.access.auth import (
    AdminAuthenticator,
    AnonymousAuthenticator,
    Authenticator,
    TokenAuthenticator,
)
from lstmserve.server.access.flood_guard import FloodGuard
from lstmserve.server.kserve import service as kserve
from lstmserve.server.machine import bind_grpc
from lstmserve.server.native import service as native
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.rpc import Methods
from lstmserve.server.transport import QueueServer, StreamMethod, UnaryMethod, health, reflection
from lstmserve.server.transport.arguments import options
from lstmserve.tokens import Limits
from lstmserve.v1 import lstm_pb2

SERVICES = tuple(
    service.full_name
    for file in (lstm_pb2, inference_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)
HEALTH_SERVICE = "grpc.health.v1.Health"


class Ports:
    """Both ports. The constructor binds them, and raises AddressUnavailable, BadFile.

    `listen` and `admin` are the addresses with their real ports; `admin` is None without --admin.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        metrics: Metrics,
        pending: PendingBytes,
    ) -> None:
        self.health = health.Health(("", *SERVICES))

        def make(door: Authenticator, *, has_reflection: bool) -> QueueServer:
            methods = [
                dialect.methods(engine, metrics, config, door, pending)
                for dialect in (native, kserve)
            ]
            return make_server(config, methods, self.health, has_reflection=has_reflection)

        self._guard = FloodGuard(_public_door(config, engine))
        public = make(self._guard.authenticator, has_reflection=_has_reflection(config))
        self.listen = bind_grpc(public, "listen", config.listen, tls.credentials(config))
        self.admin: str | None = None
        self._servers = [public]
        if config.admin is not None:
            operator = make(AdminAuthenticator(), has_reflection=True)
            self.admin = bind_grpc(operator, "admin", config.admin)
            self._servers.append(operator)

    def start(self) -> None:
        """Begins to answer calls."""
        for server in self._servers:
            server.start()
        self._guard.start(host_port("listen", self.listen)[1])

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, and cuts those that are still under way after the grace."""
        await asyncio.gather(*(server.stop(grace_s) for server in self._servers))
        self._guard.stop()


def make_server(
    config: Config,
    methods: Sequence[Methods],
    well: health.Health,
    *,
    has_reflection: bool,
) -> QueueServer:
    """A server for these methods and for gRPC's own services, not yet bound or started."""
    unary: dict[str, UnaryMethod] = {health.CHECK: well.check}
    streams: dict[str, StreamMethod] = {health.WATCH: well.watch}
    for service in methods:
        unary |= {f"/{service.service}/{name}": each for name, each in service.unary.items()}
        streams |= {f"/{service.service}/{name}": each for name, each in service.streams.items()}
    if has_reflection:
        streams[reflection.INFO] = reflection.Reflection((*SERVICES, HEALTH_SERVICE))
    return QueueServer(options(config), unary, streams)


def _has_reflection(config: Config) -> bool:
    """Whether --listen has reflection: by default only where other machines cannot reach it."""
    host, _ = host_port("listen", config.listen)
    return is_loopback(host) if config.reflection is None else config.reflection


def share_bytes_max(config: Config) -> int | None:
    """The pending bytes of a tenant for which the tokens file sets none; None is no limit."""
    if config.tenant_pending_bytes_max is not None or config.tokens is None:
        return config.tenant_pending_bytes_max
    return config.pending_bytes_max // 4


def _public_door(config: Config, engine: Engine) -> Authenticator:
    limits = Limits(
        config.tenant_sessions_max,
        config.tenant_pending_steps_max,
        config.tenant_rows_per_s,
        share_bytes_max(config),
    )
    if config.tokens is None:
        return AnonymousAuthenticator(limits)
    return TokenAuthenticator(config.tokens, limits, engine.clock)
