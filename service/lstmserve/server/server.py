"""Owns the server's life: what starts and stops, in which order. Computes nothing."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import signal
from collections.abc import Callable, Sequence
from typing import TypeVar

import structlog
import uvloop
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckResponse
from prometheus_client import CollectorRegistry

from lstmserve.address import host_port, join
from lstmserve.config import Config
from lstmserve.engine import Engine, Model, load_models
from lstmserve.engine.compute.device import DeviceUnavailable
from lstmserve.engine.loading import PoolTooLarge, PoolTooSmall
from lstmserve.manifest import InvalidModelFolder
from lstmserve.server import machine, transport
from lstmserve.server.access.reloading import BadFile
from lstmserve.server.observe.gauges import read_gauges
from lstmserve.server.observe.heartbeat import Heartbeat
from lstmserve.server.observe.measured_store import MeasuredStore
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.ports import Ports
from lstmserve.store import StoreOfServer, StoreRefused, open_store
from lstmserve.store.errors import StoreTimeout, StoreUnavailable

EXIT_OK, EXIT_LOST, EXIT_KILLED, EXIT_ENGINE_DIED = 0, 1, 1, 3
GRACE_S = 1.0
SCRAPE_S_MAX = 5.0
QUIET_S = 0.05
QUIET_ROUNDS_MAX = 20
TRIAL_S_MAX = 5.0  # of the store, before the server starts without its answer
LOOK_S = 1.0  # between two looks at the store
GC_THRESHOLDS = (50_000, 20, 20)
SIGNALS = (signal.SIGTERM, signal.SIGINT)

T = TypeVar("T")
log = structlog.get_logger()
REFUSALS = (
    machine.AddressUnavailable,
    BadFile,
    DeviceUnavailable,
    InvalidModelFolder,
    PoolTooLarge,
    PoolTooSmall,
    StoreRefused,
)


def run(config: Config) -> int:
    """Serves until told to stop. Returns 0; 1 when steps could not be stored; 3: the engine died.

    Raises BadSetting, or one of REFUSALS, whose message is one line for the operator.
    """
    machine.check_plain_text(config)
    machine.allow_open_files()
    if config.cpu is not None:
        machine.pin(config.cpu)
    models = load_models(config)
    store = open_store(config.store, timeout_s=config.store_timeout_s, sync=config.store_sync)
    return uvloop.run(_serve(config.resolved(model.spec for model in models), models, store))


async def _serve(config: Config, models: Sequence[Model], store: StoreOfServer | None) -> int:
    try:
        server = Server(config, models, store)
        try:
            await server.start()
            return await server.run()
        finally:
            server.stop_http()
    finally:
        if store is not None:
            await store.close()


class Server:
    """One engine behind its gRPC ports and one HTTP port, on the running event loop.

    Constructing binds the ports and reads the certificate: it raises what REFUSALS has.
    """

    def __init__(
        self, config: Config, models: Sequence[Model], store: StoreOfServer | None = None
    ) -> None:
        loop = asyncio.get_running_loop()
        registry = CollectorRegistry()
        self._config = config
        self._models = models
        self._is_ready = False
        self._metrics = Metrics(registry, lambda read: _read_on(loop, read))
        self._store = None if store is None else MeasuredStore(store, self._metrics)
        self._engine = Engine(config, models, self._metrics, store=self._store)
        self._metrics.durable_lag_s = self._engine.durable_lag_s
        self._heartbeat = Heartbeat(loop, self._metrics.loop_lag.observe)
        self._health = health.aio.HealthServicer()
        self._ports = Ports(config, self._engine, self._metrics, self._health)
        self._remarks: list[str] = []
        self._http = machine.bind_http(
            config.metrics,
            registry,
            self._heartbeat.is_alive,
            self._may_serve,
            self._remarks,
        )
        host, _ = host_port("metrics", config.metrics)
        self.metrics = join(host, self._http.port)
        self._signalled = asyncio.Event()
        self._forever: asyncio.Future[None] = loop.create_future()

    async def start(self) -> None:
        """Answers when it returns; ready, unless it waits for its store.

        Raises StoreRefused for a store that only an operator can mend.
        """
        for model in self._models:
            self._metrics.model_info(model.name, model.version, model.fingerprint)
            gauges = functools.partial(read_gauges, self._engine, model)
            self._metrics.watch(model.name, model.version, gauges)
        self._http.start()
        is_there = await self._try_store()
        for name in transport.HEALTH_NAMES:
            await self._health.set(name, HealthCheckResponse.NOT_SERVING)
        await self._ports.start()
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        quiet_collector()
        if is_there:
            await self._become_ready()
        else:
            log.warning("waiting for the store", listen=self._ports.listen, metrics=self.metrics)

    async def _become_ready(self) -> None:
        for name in transport.HEALTH_NAMES:
            await self._health.set(name, HealthCheckResponse.SERVING)
        self._is_ready = True
        sessions = {f"{model.name}:{model.version}": model.sessions_max for model in self._models}
        log.info(
            "ready",
            listen=self._ports.listen,
            protected_by=machine.protections(self._config),
            metrics=self.metrics,
            device=self._models[0].device,
            sessions_max=sessions,
            **({"admin": self._ports.admin} if self._ports.admin else {}),
        )

    def _may_serve(self) -> bool:
        return self._is_ready and not (self._store and self._store.is_over)

    async def _try_store(self) -> bool:
        """Whether it answers. Raises StoreRefused."""
        if self._store is None:
            return True
        try:
            async with asyncio.timeout(TRIAL_S_MAX):
                await self._store.check()
        except (StoreUnavailable, StoreTimeout, TimeoutError):
            self._remark_store()
            return False
        return True

    async def _watch_store(self, store: MeasuredStore) -> None:
        """Looks at it again and again; the server is ready once it has answered."""
        while True:
            if await store.look() and not self._is_ready:
                await self._become_ready()
            self._remark_store()
            await asyncio.wait({self._forever}, timeout=LOOK_S)

    def _remark_store(self) -> None:
        """Below the answer of /readyz, which another thread gives: never without the rest."""
        others = [line for line in self._remarks if not line.startswith("store: ")]
        cause = self._store.cause if self._store else ""
        self._remarks[:] = [*others, f"store: {cause}"] if cause else others

    async def run(self) -> int:
        """Until a signal or the engine's death; returns the exit code, with everything stopped."""
        engine = asyncio.create_task(self._engine.run(), name="engine")
        signalled = asyncio.create_task(self._signalled.wait(), name="signal")
        store = self._store
        watch = asyncio.create_task(self._watch_store(store), name="store") if store else None
        await asyncio.wait({engine, signalled}, return_when=asyncio.FIRST_COMPLETED)
        signalled.cancel()
        if watch is not None:
            watch.cancel()
            await asyncio.wait({watch})
        self._is_ready = False
        await self._health.enter_graceful_shutdown()
        if not engine.done():
            await self._drain(engine)
        await self._until_quiet()
        await self._ports.stop(GRACE_S)
        self._heartbeat.stop()
        if error := engine.exception():
            log.critical("engine died", exc_info=error)
            return EXIT_ENGINE_DIED
        lost = self._engine.end_sessions()
        if is_failure := bool(lost and self._engine.lives.has_store):
            log.error("steps lost: the store did not take them in time", sessions=lost)
        log.info("stopped", sessions_lost=lost)
        return EXIT_LOST if is_failure else EXIT_OK

    def stop_http(self) -> None:
        """Last, so that the probes answer through the drain."""
        self._http.stop()

    async def _drain(self, engine: asyncio.Task[None]) -> None:
        """Steps go on for drain_delay_s: routers are late to hear that we leave."""
        log.info("draining", delay_s=self._config.drain_delay_s, s_max=self._config.drain_s_max)
        self._engine.drain()
        await asyncio.wait({engine}, timeout=self._config.drain_delay_s)
        await self._engine.close(self._config.drain_s_max)
        await asyncio.wait({engine})

    async def _until_quiet(self) -> None:
        """Refuses what still comes, until nothing does.

        A call that stop() finds in gRPC's own queue ends as CANCELLED: its caller cannot tell that
        from its own doing, and does not go to another server.
        """
        for _ in range(QUIET_ROUNDS_MAX):
            before = self._metrics.rpcs_started
            await asyncio.wait({self._forever}, timeout=QUIET_S)
            if self._metrics.rpcs_started == before:
                return

    def _on_signal(self) -> None:
        """The first one drains, the second one ends the process here and now."""
        self._signalled.set()
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, os._exit, EXIT_KILLED)


def _read_on(loop: asyncio.AbstractEventLoop, read: Callable[[], T]) -> T:
    """The result of read() on the loop. Raises TimeoutError when the loop hangs."""

    async def call() -> T:
        return read()

    return asyncio.run_coroutine_threadsafe(call(), loop).result(SCRAPE_S_MAX)


def quiet_collector() -> None:
    """What lives now lives for good; what comes is freed by reference counts for the most part."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
