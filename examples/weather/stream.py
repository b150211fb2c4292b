"""A client of a server that runs already: python -m examples.weather.stream --help.

It streams many sessions at once, each an airport's weather hour by hour. Then it compares every
reply, bit by bit, with the whole sequence computed at once without a session. It starts no server.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import numpy as np

from examples.weather.features import Floats, Year, load_year
from lstmserve import AsyncClient
from lstmserve.client import (
    AsyncSession,
    LstmServeError,
    SessionExpired,
    SessionLost,
    SessionNotFound,
)

MODEL = "weather"
APART_H = 24  # sessions of one airport begin a day apart
CONNECTIONS = 4
TTL_S = 3600.0  # the sessions of a run that was killed expire by themselves


@dataclass(slots=True)
class Found:
    """Counts the steps that were acknowledged and, among them, each kind of fault."""

    sessions: int = 0
    checked: int = 0  # sessions whose every reply was counted and compared
    steps: int = 0
    lost: int = 0  # steps that were acknowledged and that the server has not counted
    unknown: int = 0  # steps of sessions whose count or bits the server did not give at the end
    doubled: int = 0  # steps that the server has counted beyond those that were acknowledged
    wrong: int = 0  # replies with other bits than the whole sequence has
    failed: list[str] = field(default_factory=list)  # calls that ended with an error
    slowest_s: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.sessions} sessions, {self.steps:,} steps acked in {self.seconds:.0f} s; "
            f"{self.checked} sessions checked",
            f"lost {self.lost}, doubled {self.doubled}, wrong {self.wrong}, "
            f"unknown {self.unknown}, failed calls {len(self.failed)}; "
            f"the slowest step took {self.slowest_s:.2f} s",
        ]
        return "\n".join([*lines, *sorted(set(self.failed))])

    def is_right(self) -> bool:
        """Whether every session was checked, and there is no fault."""
        is_whole = self.steps >= self.sessions == self.checked > 0
        faults = self.lost or self.doubled or self.wrong or self.unknown or self.failed
        return is_whole and not faults

    def fail(self, error: LstmServeError) -> None:
        """Notes a call that ended with this error."""
        self.failed.append(f"{type(error).__name__}: {error}")


async def talk(client: AsyncClient, name: str, x: Floats, end_s: float, found: Found) -> None:
    """Streams x [T, 8] through one session, until `end_s` at most. Adds the counts to `found`."""
    replies: list[Floats] = []
    doubts = 0  # steps that may have been applied and were not acknowledged
    try:
        session = await client.session(MODEL, id=name, ttl_s=TTL_S)
    except LstmServeError as error:
        found.fail(error)
        return
    try:
        for hour in x:
            start_s = time.monotonic()
            replies.append(await session.step(hour))
            now_s = time.monotonic()
            found.slowest_s = max(found.slowest_s, now_s - start_s)
            if now_s > end_s:
                break
    except LstmServeError as error:
        doubts = int(error.applied is not False)
        found.fail(error)
    found.steps += len(replies)
    await check(client, session, x, replies, doubts, found)
    try:
        await session.close()
    except LstmServeError as error:
        found.fail(error)


async def check(
    client: AsyncClient,
    session: AsyncSession,
    x: Floats,
    replies: list[Floats],
    doubts: int,
    found: Found,
) -> None:
    """Checks the replies [n, 4] to x [T, 8]: how many the server has counted, and their bits."""
    if not replies:
        return
    try:
        counted = (await session.info()).step
        found.lost += max(0, len(replies) - counted)
        found.doubled += max(0, counted - len(replies) - doubts)
        (whole,) = await client.predict(MODEL, [x[: len(replies)]])
    except (SessionLost, SessionExpired, SessionNotFound) as error:
        found.lost += len(replies)
        found.fail(error)
    except LstmServeError as error:
        found.unknown += len(replies)
        found.fail(error)
    else:
        found.wrong += int((np.stack(replies) != whole).any(axis=1).sum())
        found.checked += 1


async def run(
    target: str, year: Year, *, sessions: int, seconds: float, retry_s_max: float = 60.0
) -> Found:
    """Streams `sessions` sessions for `seconds`, over a few connections."""
    found = Found(sessions)
    run_id = secrets.token_hex(3)  # the sessions of a run that was killed may still be open
    start_s = time.monotonic()
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(AsyncClient(target, retry_s_max=retry_s_max))
            for _ in range(CONNECTIONS)
        ]
        async with asyncio.TaskGroup() as tasks:
            for i in range(sessions):
                station = i % len(year.stations)
                begin = i // len(year.stations) * APART_H % len(year.hours)
                name = f"{year.stations[station].lower()}-{run_id}-{i}"
                x = year.x[station, begin:]
                talking = talk(clients[i % CONNECTIONS], name, x, start_s + seconds, found)
                tasks.create_task(talking)
    found.seconds = time.monotonic() - start_s
    return found


def main() -> None:
    """Exits with 0, or with 1 if a step was lost, doubled, wrong or failed, or none was checked."""
    parser = argparse.ArgumentParser(description="New York's weather, many sessions at once.")
    parser.add_argument("--target", default="127.0.0.1:50051")
    parser.add_argument("--sessions", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--retry-s-max", type=float, default=60.0, help="0: no call is repeated")
    asked = parser.parse_args()
    found = asyncio.run(
        run(
            asked.target,
            load_year(),
            sessions=asked.sessions,
            seconds=asked.seconds,
            retry_s_max=asked.retry_s_max,
        )
    )
    print(found)
    raise SystemExit(not found.is_right())


if __name__ == "__main__":
    main()
