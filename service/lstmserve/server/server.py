"""Starts and stops the server's parts, each in its order. Computes nothing."""

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
from prometheus_client import CollectorRegistry

from lstmserve.address import host_port, join
from lstmserve.config import Config
from lstmserve.engine import Engine, Model, load_models
from lstmserve.engine.budget import PoolTooSmall
from lstmserve.engine.compute.device import DeviceUnavailable
from lstmserve.engine.loading import PoolTooLarge
from lstmserve.manifest import InvalidModelFolder, RefusedFolder
from lstmserve.server import machine
from lstmserve.server.access.reloading import BadFile
from lstmserve.server.observe.heartbeat import Heartbeat
from lstmserve.server.observe.measured_store import MeasuredStore
from lstmserve.server.observe.metrics import Metrics, read_gauges
from lstmserve.server.observe.watch import Watch
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.ports import Ports
from lstmserve.store import StoreOfServer, StoreRefused, open_store
from lstmserve.store.store import StoreTimeout, StoreUnavailable

EXIT_OK, EXIT_LOST, EXIT_KILLED, EXIT_ENGINE_DIED = 0, 1, 1, 3
GRACE_S = 1.0
SCRAPE_S_MAX = 5.0
QUIET_S = 0.05
QUIET_ROUNDS_MAX = 20
TRIAL_S_MAX = 5.0  # how long the store may take to answer before the server starts without it
GC_THRESHOLDS = (50_000, 20, 20)
# The first of these signals drains the server, and the next one ends it at once. SIGHUP drains, but
# never ends it at once: a closing terminal sends it more than once, systemd sends it after SIGTERM.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
IGNORED = (signal.SIGUSR1, signal.SIGUSR2)  # they reopen logs elsewhere, and kill by default

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
    """Serves until a signal ends it. Returns the exit code.

    The code is 0, or 1 if steps could not be stored, or 3 if the engine died. Raises BadSetting, or
    one of REFUSALS, whose message is one line for the operator.
    """
    machine.share_one_heap()
    machine.check_plain_text(config)
    machine.allow_open_files()
    if config.cpu is not None:
        machine.pin(config.cpu)
    refused: list[RefusedFolder] = []
    models = load_models(config, None if config.strict_models else refused.append)
    for each in refused:
        log.error("model refused, the others are served", folder=each.folder, reason=each.reason)
    try:
        resolved = config.resolved(model.spec for model in models)
    except ValueError as error:
        raise machine.BadSetting(str(error)) from error
    store = open_store(config.store, timeout_s=config.store_timeout_s, sync=config.store_sync)
    return uvloop.run(_serve(resolved, models, store, refused))


async def _serve(
    config: Config,
    models: Sequence[Model],
    store: StoreOfServer | None,
    refused: Sequence[RefusedFolder],
) -> int:
    try:
        server = Server(config, models, store, refused)
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

    The constructor binds the ports and reads the certificate. It raises the errors of REFUSALS.
    """

    def __init__(
        self,
        config: Config,
        models: Sequence[Model],
        store: StoreOfServer | None = None,
        refused: Sequence[RefusedFolder] = (),
    ) -> None:
        loop = asyncio.get_running_loop()
        registry = CollectorRegistry()
        self._config = config
        self._is_ready = False
        self._metrics = Metrics(registry, lambda read: _read_on(loop, read))
        self._metrics.folders_refused = len(refused)
        self._store = None if store is None else MeasuredStore(store, self._metrics)
        self._engine = Engine(config, models, self._metrics, store=self._store)
        if self._store is not None:
            self._store.spare(self._engine.holds)
        remarks = [f"model refused: {each.folder}: {each.reason}" for each in refused]
        self._watch = Watch(self._store, remarks, self._on_store, self._tell_over)
        self._metrics.durable_lag_s = self._engine.durable_lag_s
        self._heartbeat = Heartbeat(loop, self._metrics.loop_lag.observe)
        pending = PendingBytes(config.pending_bytes_max)
        self._metrics.pending_bytes = lambda: (pending.held, pending.bytes_max)
        self._engine.add_check(pending.check_integrity)
        self._ports = Ports(config, self._engine, self._metrics, pending)
        self._http = machine.bind_http(
            config.metrics,
            registry,
            self._heartbeat.is_alive,
            lambda: self._is_ready and not self._watch.is_over,
            remarks,
        )
        host, _ = host_port("metrics", config.metrics)
        self.metrics = join(host, self._http.port)
        self._signalled = asyncio.Event()
        self._signal = ""  # the first that came to end the server
        self._forever: asyncio.Future[None] = loop.create_future()

    async def start(self) -> None:
        """Begins to answer. The server is ready then, unless its store does not answer yet.

        Raises StoreRefused for a store that only an operator can mend.
        """
        self._metrics.gauges = functools.partial(read_gauges, self._engine)
        self._metrics.pool_bytes_max = self._config.pool_bytes
        self._http.start()
        is_there = await self._try_store()
        self._ports.start()
        self._heed_signals()
        quiet_collector()
        if is_there:
            self._become_ready()
        else:
            log.warning("waiting for the store", listen=self._ports.listen, metrics=self.metrics)

    def _become_ready(self) -> None:
        self._ports.health.set_all(is_serving=True)
        self._is_ready = True
        models = self._engine.models
        sessions = {f"{model.name}:{model.version}": model.sessions_max for model in models}
        log.info(
            "ready",
            listen=self._ports.listen,
            protected_by=machine.protections(self._config),
            metrics=self.metrics,
            device=models[0].device,
            sessions_max=sessions,
            **({"admin": self._ports.admin} if self._ports.admin else {}),
        )

    async def _try_store(self) -> bool:
        """Whether the store answers in time. Raises StoreRefused."""
        if self._store is None:
            return True
        try:
            async with asyncio.timeout(TRIAL_S_MAX):
                await self._store.check()
        except (StoreUnavailable, StoreTimeout, TimeoutError):
            return False
        return True

    async def run(self) -> int:
        """Serves until a signal comes or the engine dies, and stops everything.

        Returns the exit code.
        """
        engine = asyncio.create_task(self._engine.run(), name="engine")
        signalled = asyncio.create_task(self._signalled.wait(), name="signal")
        watching = asyncio.create_task(self._watch.run(), name="watch")
        await asyncio.wait({engine, signalled}, return_when=asyncio.FIRST_COMPLETED)
        signalled.cancel()
        watching.cancel()  # a server that leaves is not made ready again
        self._is_ready = False
        self._ports.health.set_all(is_serving=False)
        if not engine.done():
            await self._drain(engine)
        await self._until_quiet()
        await self._ports.stop(GRACE_S)
        self._heartbeat.stop()
        if error := engine.exception():
            log.critical("engine died", exc_info=error)
            return EXIT_ENGINE_DIED
        lost = self._engine.end_sessions()
        if is_failure := bool(lost and self._engine.lifecycle.has_store):
            log.error("steps lost: the store did not take them in time", sessions=lost)
        log.info("stopped", sessions_lost=lost)
        return EXIT_LOST if is_failure else EXIT_OK

    async def _on_store(self) -> None:
        """Makes the server ready, if it waited for its store to answer."""
        if not self._is_ready:
            self._become_ready()

    async def _tell_over(self) -> None:
        """Reports NOT_SERVING, so that routers choose another server if there is one."""
        self._ports.health.set_all(is_serving=False)

    def stop_http(self) -> None:
        """Stops the HTTP port. It is the last to stop, so that the probes answer while draining."""
        self._http.stop()

    async def _drain(self, engine: asyncio.Task[None]) -> None:
        """Serves steps for drain_delay_s more, because routers learn late that the server leaves.

        Then it refuses new steps, and stores what is not stored yet.
        """
        config = self._config
        log.info(
            "draining", signal=self._signal, delay_s=config.drain_delay_s, s_max=config.drain_s_max
        )
        self._engine.drain()
        await asyncio.wait({engine}, timeout=self._config.drain_delay_s)
        await self._engine.close(self._config.drain_s_max)
        await asyncio.wait({engine})

    async def _until_quiet(self) -> None:
        """Waits until no more calls arrive; the engine refuses those that do.

        A call that stop() finds in gRPC's own queue ends as CANCELLED. Its caller would take that
        for its own cancellation, and would not go to another server.
        """
        for _ in range(QUIET_ROUNDS_MAX):
            before = self._metrics.rpcs_started
            await asyncio.wait({self._forever}, timeout=QUIET_S)
            if self._metrics.rpcs_started == before:
                return

    def _heed_signals(self) -> None:
        """Installs the signal handlers. A SIGHUP that is ignored, as under nohup, stays ignored."""
        loop = asyncio.get_running_loop()
        hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
        for number in (*ENDING, *hangup):
            loop.add_signal_handler(number, self._on_signal, number)
        for number in IGNORED:
            if signal.getsignal(number) is signal.SIG_DFL:
                loop.add_signal_handler(number, _on_ignored, number)

    def _on_signal(self, number: signal.Signals) -> None:
        """Begins to drain. After it, a signal of ENDING ends the process at once."""
        self._signal = self._signal or number.name
        self._signalled.set()
        for each in ENDING:
            asyncio.get_running_loop().add_signal_handler(each, os._exit, EXIT_KILLED)


def _on_ignored(number: signal.Signals) -> None:
    log.warning("signal ignored: this server ends by SIGTERM", signal=number.name)


def _read_on(loop: asyncio.AbstractEventLoop, read: Callable[[], T]) -> T:
    """The result of read() on the loop. Raises TimeoutError when the loop hangs."""

    async def call() -> T:
        return read()

    return asyncio.run_coroutine_threadsafe(call(), loop).result(SCRAPE_S_MAX)


def quiet_collector() -> None:
    """Makes the garbage collector run rarely, and skip the objects that exist now.

    Those live as long as the server, and reference counts free most of the later ones.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
