"""One run: servers, clients and what happens to them, from a seed alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from lstmserve.config import Config
from lstmserve.engine.keys import session_key
from lstmserve.store import decode, version_of
from simulation import loop
from simulation.conversation import Conversation
from simulation.faults import Faults, Violation
from simulation.lifecycle import Client
from simulation.loop import pass_time
from simulation.network import Call, Network
from simulation.server import Life
from simulation.store import Shelf
from simulation.unnumbered import Unnumbered

SERVERS, CLIENTS, ACTIONS = 3, 2, 12
TICK_S = 0.25
LIMIT_S = 1000.0
CALM_S = 15.0  # until the last late packet is there


class Server:
    """An address, and the life that answers there, if any."""

    def __init__(self, number: int, start: Callable[[], Life], faults: Faults) -> None:
        self._number = number
        self._start = start
        self._faults = faults
        self.life: Life | None = start()
        self.lifecycle = [self.life]

    def receive(self, call: Call) -> None:
        """Delivers a call. A dead server's port refuses it, or its packets vanish."""
        self._faults.note("server", self._number, "gets", call)
        if self.life is not None and not self.life.is_dead:
            self.life.receive(call)
        elif call.careful or self._faults.random.random() < 0.5:
            call.answer(None)

    def forget(self, call: Call) -> None:
        """Cancels the call at the present life."""
        if self.life is not None:
            self.life.forget(call)

    async def run(self) -> None:
        """Pauses, crashes, drains and starts again, until the run is calm."""
        while not self._faults.is_calm:
            await pass_time(TICK_S)
            life = self.life
            assert life is not None
            if self._happens("pauses"):
                life.pause(self._faults.random.uniform(0.5, 10))
            if self._happens("crashes"):
                life.crash()
            if self._happens("drains"):
                with contextlib.suppress(asyncio.CancelledError):
                    await life.drain(2.0)
                self._faults.count["drains"] += 1
                life.exit()
            if life.is_dead:
                self.life = None
                self._faults.note("server", self._number, "is down")
                await pass_time(self._faults.random.uniform(0.05, 2))
                self.life = self._start()
                self.lifecycle.append(self.life)

    def _happens(self, name: str) -> bool:
        """Whether a fault happens whose odds are per second."""
        odds: float = getattr(self._faults.odds, name)
        return not self._faults.is_calm and self._faults.random.random() < odds * TICK_S


class World:
    """One seed's run."""

    def __init__(self, seed: int, mode: str, *, is_orderly: bool) -> None:
        self.faults = Faults(seed, is_orderly=is_orderly)
        self._mode = mode
        choice = self.faults.random.choice
        self._sessions_max = choice((2, 3, 4, 20))
        self._config = Config(
            models=Path("none"),
            batch_sessions_max=choice((1, 4)),
            slice_rows_max=2,
            long_steps_max=2,
            batches_in_flight_max=choice((1, 2)),
            session_pending_max=8,
            store="redis://fake",
            store_mode=mode,
            behind_s_max=choice((0.2, 1.0)),
            behind_steps_max=choice((4, 40)),
        )

    async def run(self) -> None:
        """Raises Violation."""
        try:
            async with asyncio.timeout(LIMIT_S):
                await self._run()
        except TimeoutError:
            raise Violation("a client hangs") from None
        finally:
            await _cancel_all()

    async def _run(self) -> None:
        faults = self.faults
        shelf, network = Shelf(faults), Network(faults)
        servers = [Server(i, lambda: self._life(shelf, network), faults) for i in range(SERVERS)]
        behind = self._mode == "behind"
        clients = [Client(f"c{i}", faults, network, servers, behind) for i in range(CLIENTS)]
        trusting = Unnumbered("u", faults, network, servers, behind)
        everybody: list[Client | Unnumbered] = [*clients, trusting]
        chaos = [asyncio.create_task(each.run()) for each in [*servers, Weather(shelf)]]
        await asyncio.gather(*(client.run(ACTIONS) for client in everybody))
        faults.is_calm = True
        await asyncio.gather(*chaos)
        await pass_time(CALM_S)
        await asyncio.gather(*(client.finish() for client in everybody))
        await pass_time(1.0)
        for server in servers:
            await self._end(server)
        for client in clients:
            for talk in client.open:
                _check_stored(talk, shelf)
            for talk in client.closed:
                content = shelf.load(session_key("", talk.name))
                is_gone = content is None or version_of(content).incarnation != talk.incarnation
                talk.require(is_gone or faults.is_store_older, "closed, but the store has it")

    def _life(self, shelf: Shelf, network: Network) -> Life:
        return Life(self._config, self._sessions_max, shelf, network)

    async def _end(self, server: Server) -> None:
        """Drains and checks the last life; no client waits for an answer of a living server."""
        assert server.life is not None
        hanging = [call.method for call in server.life.tasks.values()]
        self.faults.require(not hanging, f"calls without an answer: {hanging}")
        await server.life.drain(10.0)


class Weather:
    """Takes the store away and brings it back, or replaces it by an older copy of itself."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    async def run(self) -> None:
        """Changes the weather until the run is calm."""
        faults = self._shelf.faults
        while not faults.is_calm:
            await pass_time(TICK_S)
            if faults.random.random() < faults.odds.outages * TICK_S:
                self._shelf.is_down = True
                await pass_time(faults.random.uniform(0.1, 3))
                self._shelf.is_down = False
            if faults.random.random() < faults.odds.store_older * TICK_S:
                older = dict(self._shelf.records)
                await pass_time(faults.random.uniform(0.1, 2))
                self._shelf.go_back(older)


def _check_stored(talk: Conversation, shelf: Shelf) -> None:
    """Checks that the store has every acknowledged step after the last drain."""
    content = shelf.load(session_key("", talk.name))
    if content is None:
        talk.require(talk.ttl_s < LIMIT_S, "is not in the store")
        return
    record = decode(content)
    is_last = record.step == talk.acked or talk.faults.is_store_older  # no step came since
    talk.require(is_last, f"step {record.step} is stored")
    h, c = (each.data for each in record.states)
    talk.check_state(h, c, record.step)


async def _cancel_all() -> None:
    for _ in range(20):
        await asyncio.sleep(0)  # lets new tasks begin, so that none is never awaited
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # of dead servers
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def simulate(
    seed: int, mode: str, *, is_noted: bool = False, is_orderly: bool = False
) -> Counter[str]:
    """Runs one seed in one store mode. Returns the counts of what happened. Raises Violation.

    With `is_orderly` servers only come and go by drains, and nothing else happens.
    """
    world: list[World] = []
    errors: list[str] = []

    async def main() -> None:
        world.append(World(seed, mode, is_orderly=is_orderly))
        world[0].faults.is_noted = is_noted
        await world[0].run()

    try:
        loop.run(main(), errors.append)
    finally:
        if world:
            errors += world[0].faults.violations
    if errors:
        raise Violation("; ".join(errors))
    return world[0].faults.count
