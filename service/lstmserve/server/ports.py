"""Owns the gRPC ports: the public one and the operator's. Knows no session and no message."""

from __future__ import annotations

import asyncio

import grpc.aio
from grpc_health.v1 import health

from lstmserve.address import host_port
from lstmserve.config import Config
from lstmserve.engine import Engine
from lstmserve.server import transport
from lstmserve.server.access import tls
from lstmserve.server.access.auth import (
    AdminAuthenticator,
    AnonymousAuthenticator,
    Authenticator,
    TokenAuthenticator,
)
from lstmserve.server.access.flood_guard import FloodGuard
from lstmserve.server.kserve import servicer as kserve
from lstmserve.server.machine import bind_grpc
from lstmserve.server.native import servicer
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.tokens import Limits


class Ports:
    """Both, bound when constructed: raises AddressUnavailable, BadFile.

    `listen` and `admin` are the addresses with their real ports; `admin` is None without --admin.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        metrics: Metrics,
        health_servicer: health.aio.HealthServicer,
        pending: PendingBytes,
    ) -> None:
        def make(door: Authenticator, has_reflection: bool) -> grpc.aio.Server:
            dialects = (servicer, kserve)
            handlers = [each.handlers(engine, metrics, config, door, pending) for each in dialects]
            return transport.make_server(
                config, handlers, health_servicer, has_reflection=has_reflection
            )

        self._guard = FloodGuard(_public_door(config, engine))
        public = make(self._guard.authenticator, transport.has_reflection(config))
        self.listen = bind_grpc(public, "listen", config.listen, tls.credentials(config))
        self.admin: str | None = None
        self._servers = [public]
        if config.admin is not None:
            operator = make(AdminAuthenticator(), True)
            self.admin = bind_grpc(operator, "admin", config.admin)
            self._servers.append(operator)

    async def start(self) -> None:
        """Calls are answered from now on."""
        for server in self._servers:
            await server.start()
        self._guard.start(host_port("listen", self.listen)[1])

    async def stop(self, grace_s: float) -> None:
        """No call is taken any more; those under way have the grace to end."""
        await asyncio.gather(*(server.stop(grace_s) for server in self._servers))
        self._guard.stop()


def share_bytes_max(config: Config) -> int | None:
    """Of a tenant for which the tokens file has none; None: no limit."""
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
