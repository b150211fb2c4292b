"""A fleet behind Envoy, with the committed configuration, and customers that step through it."""

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
WATCH_S = 0.2  # Envoy avoids a server for at least a second


def homes(fleet: Fleet) -> dict[str, str]:
    """Which pod each session is on, as the pods themselves say.

    The former server of a session that moved may still have an older step of it.
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
    """Customers that step through Envoy, each with a session of its own."""

    def __init__(self, customers: Sequence[Talk]) -> None:
        self.customers = customers
        self.violations = Violations()  # counted at the end

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Lets steps go by until `is_so()` returns true."""
        while not await asyncio.to_thread(is_so):
            await self.steps(1)

    async def steps(self, count: int) -> None:
        """Waits until every customer has made `count` more steps."""
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
    """Lets customers step while the block runs, and then compares every history with the oracle.

    Raises the errors that ended a customer.
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
    """The servers of sessions, or groups, before and after a change of servers: name -> server.

    `restless` servers did not answer in time, and the router avoided them for a while: moves of
    their sessions are not due to the change.
    """

    before: dict[str, str]
    after: dict[str, str]
    restless: Set[str] = frozenset()

    @property
    def moved(self) -> float:
        """The share that moved to a new server, or from one that is gone."""
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
        """How many each server has after the change."""
        return sorted(Counter(self.after.values()).values())


def is_asked(envoy: Envoy, pod: Pod) -> bool:
    """Whether Envoy sends calls to the pod."""
    return envoy.servers()[pod.serving.target]


@asynccontextmanager
async def watched(fleet: Fleet, envoy: Envoy) -> AsyncIterator[set[str]]:
    """Pods that Envoy did not call at some time during the block; the set grows while it runs."""
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
