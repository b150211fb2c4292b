"""The servers of a soak: pods that are killed, stopped, frozen and started again."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lstmserve.head_layers import Linear
from lstmserve.spec import LstmSpec
from modelmaking import make_model
from serving import COMMAND, Serving
from soak.imported_file import ImportedFile
from traffic import Oracle

SPEC = LstmSpec(input_size=4, hidden_size=32, num_layers=2, head=(Linear(3),))
MODEL = "soak"


class History(Protocol):
    """What a session must answer."""

    def run(self, x: npt.NDArray[Any], /) -> tuple[npt.NDArray[Any], ...]:
        """The rows of y that a new session gives for x [T, I], and its states after them."""


class WindowOracle:
    """The oracle of a model that waits for a window of `window` rows: a plain session on each."""

    def __init__(self, plain: Oracle, window: int, output_size: int) -> None:
        self._plain = plain
        self._window = window
        self._output_size = output_size

    def run(self, x: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
        """The rows of y that a new session gives for x [T, I], and its states after them."""
        window, count = self._window, len(x)
        ends = range(window, count + 1)
        y = [self._plain.run(x[end - window : end])[0][-1] for end in ends]
        kept = np.concatenate([np.zeros((window - 1, x.shape[1]), np.float32), x])[1 - window :]
        given = np.array(min(count, window - 1))
        return np.array(y, np.float32).reshape(-1, self._output_size), kept, given


class Pod:
    """A place in the fleet. Each start is a new process, at a new address unless the pod stays."""

    def __init__(
        self, name: str, arguments: tuple[str | Path, ...], command: list[str], *, stays: bool
    ) -> None:
        self.name = name
        self._arguments = arguments
        self._command = command
        self.serving = self._start()
        if stays:
            self._arguments += ("--listen", self.serving.target)
        self.ended_s: dict[Serving, float] = {}  # when a process was asked to end

    def _start(self) -> Serving:
        return Serving(self._arguments, self._command)

    async def start(self) -> None:
        """Starts a server, and waits until it is ready."""
        self.serving = await asyncio.to_thread(self._start)

    async def end(self, number: signal.Signals) -> int:
        """Ends the server with SIGKILL or SIGTERM. Returns its exit code."""
        serving = self.serving
        self.ended_s[serving] = time.monotonic()
        serving.signal(number)
        return await asyncio.to_thread(serving.wait)


class Fleet:
    """Pods behind a consistent hash that learns of a dead one only by calling it."""

    def __init__(
        self,
        folder: Path,
        count: int,
        *arguments: str | Path,
        spec: LstmSpec = SPEC,
        window: int = 0,
        file: ImportedFile | None = None,
        stays: bool = False,
        command: list[str] = COMMAND,
    ) -> None:
        """Serves a `file` of others instead of an nn.LSTM of that spec, where one is given."""
        self.spec = file or spec
        self.oracle = file.make(folder, MODEL) if file else _make_lstm(folder, spec, window)
        given = ("--models", folder, *arguments)
        with ThreadPoolExecutor(count) as threads:
            names = [f"pod-{i}" for i in range(count)]
            self.pods = list(
                threads.map(lambda name: Pod(name, given, command, stays=stays), names)
            )
        self._suspects: set[Serving] = set()
        self._last: dict[str, Serving] = {}
        self.is_sticky = False

    def home(self, key: str) -> Serving | None:
        """The server for a session's calls: the highest hash among the pods believed to be alive.

        A sticky fleet leaves a session where it is until that server leaves.
        """
        last = self._last.get(key)
        if not self.is_sticky or last is None or last in self._suspects:
            last = self._hashed(key)
        if last is not None:
            self._last[key] = last
        return last

    def _hashed(self, key: str) -> Serving | None:
        alive = [pod for pod in self.pods if pod.serving not in self._suspects]
        if not alive:
            self._suspects.clear()  # all are suspects: none is better than another
            return None
        return max(alive, key=lambda pod: _weight(pod.name, key)).serving

    def suspect(self, serving: Serving) -> None:
        """Avoids a server that did not answer, or leaves."""
        self._suspects.add(serving)

    def trust(self, serving: Serving) -> None:
        """Uses a server again that answers."""
        self._suspects.discard(serving)

    def ended_s(self, serving: Serving) -> float:
        """When that process was asked to end; now, if it was not."""
        return next(
            (pod.ended_s[serving] for pod in self.pods if serving in pod.ended_s),
            time.monotonic(),
        )

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over the pods, now."""
        return sum(pod.serving.metric(name, **labels) for pod in self.pods)

    def close(self) -> None:
        """Ends every process that still runs."""
        for pod in self.pods:
            pod.serving.kill()


@contextmanager
def fleet_of(folder: Path, count: int, *arguments: str | Path, **options: Any) -> Iterator[Fleet]:
    """A fleet with the options of Fleet, which ends with the block."""
    fleet = Fleet(folder, count, *arguments, **options)
    try:
        yield fleet
    finally:
        fleet.close()


def _make_lstm(folder: Path, spec: LstmSpec, window: int) -> History:
    make_model(folder, spec, seed=1, name=MODEL, window=(window, "wait") if window else (0, None))
    plain = Oracle(folder / MODEL / "1", spec)
    return WindowOracle(plain, window, spec.output_size) if window else plain


def _weight(name: str, key: str) -> bytes:
    return blake2b(f"{name} {key}".encode(), digest_size=8).digest()
