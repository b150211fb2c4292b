"""A load by our own client: `KIND TARGET MODEL INPUT COUNT`, COUNT sessions or lengths.

It reads a number of seconds a line, and prints how many steps were answered in them. It runs
with the client of the version that it loads, so it imports nothing else of this repository.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lstmserve import AsyncClient, Client


class Threads:
    """Steps through Client with one thread for each session."""

    def __init__(self, target: str, model: str, width: int, sessions: int) -> None:
        self._client = Client(target)
        self._sessions = [self._client.session(model) for _ in range(sessions)]
        self._x = row(width)
        self._threads = ThreadPoolExecutor(sessions)

    def drive(self, seconds: float) -> int:
        """Steps for `seconds`; returns how many steps were answered."""
        end_s = time.perf_counter() + seconds
        return sum(self._threads.map(lambda each: self._steps(each, end_s), self._sessions))

    def _steps(self, session: Any, end_s: float) -> int:
        count = 0
        while time.perf_counter() < end_s:
            session.step(self._x)
            count += 1
        return count

    def close(self) -> None:
        """Ends the sessions and the connection."""
        self._threads.shutdown()
        self._client.close()


class Tasks:
    """Steps through AsyncClient with one task for each session, step by step."""

    def __init__(self, target: str, model: str, width: int, sessions: int) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(_connected(target))
        self._sessions = self._runner.run(self._open(model, sessions))
        self._x = row(width)

    async def _open(self, model: str, count: int) -> list[Any]:
        return [await self._client.session(model) for _ in range(count)]

    def drive(self, seconds: float) -> int:
        """Steps for `seconds`; returns how many steps were answered."""
        return self._runner.run(self._drive(seconds))

    async def _drive(self, seconds: float) -> int:
        end_s = time.perf_counter() + seconds
        return sum(await asyncio.gather(*(self.work(each, end_s) for each in self._sessions)))

    async def work(self, session: Any, end_s: float) -> int:
        """Steps one session until `end_s`; returns how many steps were answered."""
        count = 0
        while time.perf_counter() < end_s:
            await session.step(self._x)
            count += 1
        return count

    def close(self) -> None:
        """Ends the sessions and the connection."""
        self._runner.run(self._client.close())
        self._runner.close()


class Streams(Tasks):
    """Streams rows through AsyncClient with one stream for each session."""

    async def work(self, session: Any, end_s: float) -> int:
        """Streams rows through one session until `end_s`; returns how many were answered."""

        def rows() -> Any:
            while time.perf_counter() < end_s:
                yield self._x

        count = 0
        async for _ in session.stream(rows()):
            count += 1
        return count


class Messages:
    """Steps all sessions by Client.step_many: each message has all sessions of one group."""

    def __init__(self, target: str, model: str, width: int, sessions: int) -> None:
        self._client = Client(target)
        x = row(width)
        self._steps = {self._client.session(model): x for _ in range(sessions)}

    def drive(self, seconds: float) -> int:
        """Steps for `seconds`; returns how many steps were answered."""
        count, end_s = 0, time.perf_counter() + seconds
        while time.perf_counter() < end_s:
            count += len(self._client.step_many(self._steps))
        return count

    def close(self) -> None:
        """Ends the sessions and the connection."""
        self._client.close()


class Predictions:
    """Runs whole sequences of these lengths by Client.predict, all of them in each call."""

    def __init__(self, target: str, model: str, width: int, lengths: Sequence[int]) -> None:
        self._client, self._model = Client(target), model
        rng = np.random.default_rng(0)
        shapes = [(length, width) for length in lengths]
        self._sequences = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]

    def drive(self, seconds: float) -> int:
        """Predicts for `seconds`; returns how many sequences were answered."""
        count, end_s = 0, time.perf_counter() + seconds
        while time.perf_counter() < end_s:
            count += len(self._client.predict(self._model, self._sequences))
        return count

    def close(self) -> None:
        """Ends the sessions and the connection."""
        self._client.close()


async def _connected(target: str) -> AsyncClient:
    return AsyncClient(target)


def row(width: int) -> Any:
    """float32 [width]."""
    return np.random.default_rng(0).standard_normal(width).astype(np.float32)


KINDS: dict[str, Any] = {
    "threads": Threads,
    "tasks": Tasks,
    "streams": Streams,
    "messages": Messages,
    "predictions": Predictions,
}


def main() -> None:
    """Drives the load until standard input ends."""
    kind, target, model, width, *counts = sys.argv[1:]
    count: Any = int(counts[0]) if kind != "predictions" else list(map(int, counts))
    load = KINDS[kind](target, model, int(width), count)
    print("ready", flush=True)
    for line in sys.stdin:
        print(load.drive(float(line)), flush=True)
    load.close()


if __name__ == "__main__":
    main()
