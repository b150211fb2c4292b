"""Loads made by the clients that people use: Client, AsyncClient and the stock tritonclient.

Each keeps to the load's core. `drive(seconds)` returns the steps that were answered.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from bench.load import Sample, measured
from bench.machine import LOAD_CPU, ROOT, on_core
from lstmserve import AsyncClient, Client
from lstmserve.spec import ModelSpec

TRITON_PYTHON = ROOT / ".venv" / "triton" / "bin" / "python"


class ClientLoad:
    """What take_turns() drives: a measured call of `drive`, and `close`."""

    def drive(self, seconds: float) -> int:
        """Steps for so long; how many were answered."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the sessions and the connection."""
        raise NotImplementedError

    def measure(self, seconds: float, cpu_s: Callable[[], float]) -> Sample:
        """drive(), with what it cost by the server's clock of CPU time."""
        return measured(self.drive, seconds, cpu_s)


class Threads(ClientLoad):
    """Client, a thread a session; one thread where there is one session."""

    def __init__(self, target: str, model: str, spec: ModelSpec, sessions: int) -> None:
        self._client = Client(target)
        self._sessions = [self._client.session(model) for _ in range(sessions)]
        self._x = _row(spec)
        self._threads = ThreadPoolExecutor(sessions)

    def drive(self, seconds: float) -> int:
        """As ClientLoad.drive."""
        end_s = time.perf_counter() + seconds
        return sum(self._threads.map(lambda each: self._steps(each, end_s), self._sessions))

    def _steps(self, session: Any, end_s: float) -> int:
        count = 0
        while time.perf_counter() < end_s:
            session.step(self._x)
            count += 1
        return count

    def close(self) -> None:
        """As ClientLoad.close."""
        self._threads.shutdown()
        self._client.close()


class Tasks(ClientLoad):
    """AsyncClient, a task a session: `step` one by one, or a `stream` of rows."""

    def __init__(
        self, target: str, model: str, spec: ModelSpec, sessions: int, *, streamed: bool = False
    ) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(_connected(target))
        self._sessions = self._runner.run(self._open(model, sessions))
        self._x = _row(spec)
        self._work = self._stream if streamed else self._steps

    async def _open(self, model: str, count: int) -> list[Any]:
        return [await self._client.session(model) for _ in range(count)]

    def drive(self, seconds: float) -> int:
        """As ClientLoad.drive."""
        return self._runner.run(self._drive(seconds))

    async def _drive(self, seconds: float) -> int:
        end_s = time.perf_counter() + seconds
        return sum(await asyncio.gather(*(self._work(each, end_s) for each in self._sessions)))

    async def _steps(self, session: Any, end_s: float) -> int:
        count = 0
        while time.perf_counter() < end_s:
            await session.step(self._x)
            count += 1
        return count

    async def _stream(self, session: Any, end_s: float) -> int:
        def rows() -> Any:
            while time.perf_counter() < end_s:
                yield self._x

        count = 0
        async for _ in session.stream(rows()):
            count += 1
        return count

    def close(self) -> None:
        """As ClientLoad.close."""
        self._runner.run(self._client.close())
        self._runner.close()


class Messages(ClientLoad):
    """Client.step_many: all sessions of one group in each message."""

    def __init__(self, target: str, model: str, spec: ModelSpec, sessions: int) -> None:
        self._client = Client(target)
        x = _row(spec)
        self._steps = {self._client.session(model): x for _ in range(sessions)}

    def drive(self, seconds: float) -> int:
        """As ClientLoad.drive."""
        count, end_s = 0, time.perf_counter() + seconds
        while time.perf_counter() < end_s:
            count += len(self._client.step_many(self._steps))
        return count

    def close(self) -> None:
        """As ClientLoad.close."""
        self._client.close()


class Predictions(ClientLoad):
    """Client.predict: whole sequences of these lengths in each call."""

    def __init__(self, target: str, model: str, spec: ModelSpec, lengths: Sequence[int]) -> None:
        self._client, self._model = Client(target), model
        rng = np.random.default_rng(0)
        shapes = [(length, spec.input_size) for length in lengths]
        self._sequences = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]

    def drive(self, seconds: float) -> int:
        """Whole sequences for so long; how many were answered."""
        count, end_s = 0, time.perf_counter() + seconds
        while time.perf_counter() < end_s:
            count += len(self._client.predict(self._model, self._sequences))
        return count

    def close(self) -> None:
        """As ClientLoad.close."""
        self._client.close()


class Triton(ClientLoad):
    """tritonclient in its own environment: `mode` is unary (asyncio) or stream (threads)."""

    def __init__(self, target: str, model: str, spec: ModelSpec, sessions: int, mode: str) -> None:
        script = ROOT / "bench" / "tritonload.py"
        arguments = [target, model, str(spec.input_size), str(sessions), mode]
        self._process = subprocess.Popen(
            on_core([str(TRITON_PYTHON), str(script), *arguments], LOAD_CPU),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._read()

    def drive(self, seconds: float) -> int:
        """As ClientLoad.drive."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        return int(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"tritonclient ended with {self._process.wait()}")
        return line

    def close(self) -> None:
        """As ClientLoad.close."""
        self._process.communicate()


async def _connected(target: str) -> AsyncClient:
    return AsyncClient(target)


def _row(spec: ModelSpec) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal(spec.input_size).astype(np.float32)
