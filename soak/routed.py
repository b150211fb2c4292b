"""A fleet behind Envoy, with the committed configuration, and customers at work on it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence, Set
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from lstmserve import AsyncClient, Client
from routing import Envoy
from soak.customer import Customer
from soak.findings import Violations, add
from soak.fleet import Fleet, Pod
from soak.timing import pause

CONNECTIONS = 4
Talk = TypeVar("Talk", bound=Customer)
POLL_S = 0.01
WATCH_S = 0.2  # Envoy gives a server up for a second at least


def homes(fleet: Fleet) -> dict[str, str]:
    """Which pod each session is on, by asking the pods themselves.

    Where a session has left without a word, its former server has an older step of it.
    """
    found: dict[str, tuple[int, str]] = {}
    for pod in fleet.pods:
        if pod.serving.process.poll() is None:
            with Client(pod.serving.target) as client:
                for session in client.sessions():
                    here = (session.step, pod.name)
                    found[session.id] = max(here, found.get(session.id, here))
    return {name: home for name, (_, home) in found.items()}


class Load(Generic[Talk]):
    """Customers at work through Envoy, each with a session of its own."""

    def __init__(self, customers: Sequence[Talk]) -> None:
        self.customers = customers
        self.violations = Violations()  # counted at the end

    async def until(self, is_so: Callable[[], bool]) -> None:
        """More steps go by until it is so, whatever it is."""
        while not await asyncio.to_thread(is_so):
            await self.steps(1)

    async def steps(self, count: int) -> None:
        """Until every customer has made so many more."""
        wanted = [each.experience.steps + count for each in self.customers]
        for customer, many in zip(self.customers, wanted, strict=True):
            while customer.experience.steps < many:
                await pause(POLL_S)


@asynccontextmanager
async def load_on(
    fleet: Fleet,
    envoy: Envoy,
    *,
    sessions: int,
    replay_steps_max: int = 0,
    customer: type[Talk] = Customer,  # type: ignore[assignment]  # mypy: a default of a TypeVar
    **options: float,
) -> AsyncIterator[Load[Talk]]:
    """They step while the block runs; then every history is held to a single server's.

    Raises what a customer could not get over.
    """
    over = asyncio.Event()

    async def work(one: Customer, seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not over.is_set():
            await one.step(rng)

    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(AsyncClient(envoy.target, **options))
            for _ in range(CONNECTIONS)
        ]
        load = Load(
            [
                customer(fleet, clients[i % CONNECTIONS], f"s{i}", replay_steps_max)
                for i in range(sessions)
            ]
        )
        for each in load.customers:
            await each.open()
        async with asyncio.TaskGroup() as tasks:
            for i, each in enumerate(load.customers):
                tasks.create_task(work(each, i))
            yield load
            over.set()
        for each in load.customers:
            await each.verify()
            add(load.violations, each.violations)
        load.violations.check()


@dataclass(frozen=True)
class Move:
    """Where sessions, or groups, were before and after a change of servers: name -> server.

    The router gave up `restless` for a while, who did not answer in time: what it makes of their
    sessions is not the change's.
    """

    before: dict[str, str]
    after: dict[str, str]
    restless: Set[str] = frozenset()

    @property
    def moved(self) -> float:
        """The share that came to a new server, or left one that is gone."""
        changed = set(self.before.values()) ^ set(self.after.values())
        return self._share(lambda ends: not ends.isdisjoint(changed))

    @property
    def needless(self) -> float:
        """The share that moved between two servers that stayed."""
        stayed = (set(self.before.values()) & set(self.after.values())) - self.restless
        return self._share(lambda ends: ends <= stayed)

    def _share(self, is_counted: Callable[[set[str]], bool]) -> float:
        pairs = [{home, self.after[name]} for name, home in self.before.items()]
        return sum(len(ends) == 2 and is_counted(ends) for ends in pairs) / len(pairs)

    def sizes(self) -> list[int]:
        """How many each server has after it."""
        return sorted(Counter(self.after.values()).values())


def is_asked(envoy: Envoy, pod: Pod) -> bool:
    """Whether Envoy sends calls to that one."""
    return envoy.servers()[pod.serving.target]


@asynccontextmanager
async def watched(fleet: Fleet, envoy: Envoy) -> AsyncIterator[set[str]]:
    """Pods that Envoy did not ask at some time during the block; filled while it runs."""
    restless: set[str] = set()

    async def watch() -> None:
        while True:
            asked = await asyncio.to_thread(envoy.servers)
            restless.update(pod.name for pod in fleet.pods if not asked[pod.serving.target])
            await pause(WATCH_S)

    task = asyncio.create_task(watch())
    try:
        yield restless
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
