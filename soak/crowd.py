"""Runs many clients on a fleet while a proof does something to it, and then checks all of them.

The clients are bare calls (soak.conversation), or the client library behind a router
(soak.customer).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from lstmserve import AsyncClient
from soak.calls import Calls, Ledger
from soak.conversation import Conversation
from soak.customer import Customer
from soak.findings import Experience, Violations, add
from soak.fleet import Fleet
from soak.router import router_of
from soak.timing import pause

CONNECTIONS = 8
BEHIND_S = 1
REPLAY_STEPS_MAX = 100_000

Mode = Literal["through", "behind"]
Kind = Literal["bare", "library"]


class Make(Protocol):
    """Makes a client of the library; `log` is how many of its last steps it keeps."""

    def __call__(self, fleet: Fleet, client: AsyncClient, name: str, log: int, /) -> Talk:
        """Makes a client with one session."""


class Talk(Protocol):
    """One client with one session."""

    violations: Violations
    experience: Experience

    async def open(self) -> None:
        """Opens the session."""

    async def step(self, rng: np.random.Generator) -> None:
        """Makes one more step, and sends it until it is acknowledged."""

    async def verify(self) -> None:
        """Counts what differs from the oracle."""


@dataclass(kw_only=True)
class Outcome:
    """What one run found. `loads` and `differences` are of the servers that ran at the end."""

    mode: Mode
    kind: Kind
    clients: int
    seed: int = 0
    loads: float = 0
    servers_compared: int = 0  # servers that answered every call
    differences: dict[str, tuple[float, float]] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)  # attempts by gRPC code
    violations: Violations = field(default_factory=Violations)
    experience: Experience = field(default_factory=Experience)

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        self.violations.check()
        assert self.experience.steps > 0
        assert self.servers_compared > 0
        assert self.differences == {}

    def figures(self) -> str:
        """The figures in one line, for people."""
        found = self.violations
        return (
            f"{self.experience.steps} acked steps of {self.clients} sessions: lost {found.lost}, "
            f"wrong {found.wrong + found.changed}, doubled {found.doubled}; attempts refused "
            f"{dict(self.refusals)}; counters of {self.servers_compared} servers differ "
            f"{len(self.differences)}"
        )


@asynccontextmanager
async def at_work(
    fleet: Fleet, outcome: Outcome, *, stray: float = 0, customer: Make = Customer
) -> AsyncIterator[None]:
    """Lets the clients step while the block runs. Raises the errors that ended a client."""
    print(f"{outcome.kind} {outcome.mode}: seed {outcome.seed}")
    over = asyncio.Event()
    async with AsyncExitStack() as stack:
        calls = await stack.enter_async_context(Calls())
        talks = await _talks(stack, fleet, calls, outcome, stray, customer)
        rngs = [np.random.default_rng([outcome.seed, i]) for i in range(len(talks))]
        tasks = [
            asyncio.create_task(_converse(talk, rng, over))
            for talk, rng in zip(talks, rngs, strict=True)
        ]
        yield
        over.set()
        await asyncio.gather(*tasks)
        await pause(2 * BEHIND_S)
        await _check(fleet, calls, talks, outcome)


async def _talks(
    stack: AsyncExitStack,
    fleet: Fleet,
    calls: Calls,
    outcome: Outcome,
    stray: float,
    customer: Make,
) -> Sequence[Talk]:
    may_replay, names = outcome.mode == "behind", [f"s{i}" for i in range(outcome.clients)]
    if outcome.kind == "bare":
        return [
            Conversation(fleet, calls, name, may_replay=may_replay, stray=stray) for name in names
        ]
    target = await stack.enter_async_context(router_of(fleet, calls))
    clients = [await stack.enter_async_context(AsyncClient(target)) for _ in range(CONNECTIONS)]
    log = REPLAY_STEPS_MAX if may_replay else 0
    return [customer(fleet, clients[i % CONNECTIONS], name, log) for i, name in enumerate(names)]


async def _converse(talk: Talk, rng: np.random.Generator, over: asyncio.Event) -> None:
    await talk.open()
    while not over.is_set():
        await talk.step(rng)


async def _check(fleet: Fleet, calls: Calls, talks: Sequence[Talk], outcome: Outcome) -> None:
    outcome.refusals = calls.refusals.copy()
    for talk in talks:
        await talk.verify()
        add(outcome.violations, talk.violations)
        add(outcome.experience, talk.experience)
    outcome.loads = await asyncio.to_thread(
        fleet.metric, "lstm_sessions_opened_total", source="load"
    )
    for pod in fleet.pods:
        ledger = calls.ledgers.get(pod.serving, Ledger())
        if not ledger.cut:
            outcome.servers_compared += 1
            different = await asyncio.to_thread(ledger.differences, pod.serving)
            outcome.differences |= {f"{pod.name} {name}": each for name, each in different.items()}
