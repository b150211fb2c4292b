"""The stock Triton client for tests: a process with an environment of its own.

This module is not named `triton`, because torch imports any module of that name.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / ".venv" / "triton"
MODES = ("one_by_one", "callbacks", "asyncio", "stream", "asyncio_stream")
STREAMS = ("stream", "asyncio_stream")
# grpc#36066: an asyncio client loses the server's status if one of its writes meets the end.
FORGOTTEN = "Internal error from Core"
TRIES_MAX = 20

Array = npt.NDArray[Any]


@dataclass
class Answer:
    """The answer to a request: arrays by name, or an error with its status (None: in band)."""

    error: str | None = None
    status: str | None = None
    id: str = ""
    model: tuple[str, str] = ("", "")
    parameters: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Array] = field(default_factory=dict)

    @property
    def y(self) -> Array:
        """The output y; the request must have been answered."""
        assert self.error is None, self.error
        return self.outputs["y"]


class Triton:
    """Sends one request at a time: a second caller waits."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lock = threading.Lock()

    async def run(
        self,
        mode: str,
        url: str,
        requests: list[dict[str, Any]],
        *,
        options: dict[str, Any] | None = None,
        **call: Any,
    ) -> list[Answer]:
        """The requests' answers, as in tritonside.run(); `call` has the arguments of each call."""
        given = {"url": url, "requests": requests, "options": options or {}, "call": call}
        return [_answer(each) for each in await self._ask("run", mode=mode, **given)]

    async def refused(
        self, mode: str, url: str, requests: list[dict[str, Any]], **call: Any
    ) -> list[Answer]:
        """run() of a call that the server ends; it asks again while the client loses the status."""
        for _ in range(TRIES_MAX):
            answers = await self.run(mode, url, requests, **call)
            if answers[-1].error != FORGOTTEN:
                return answers
        raise AssertionError(f"{FORGOTTEN}, {TRIES_MAX} times")

    async def tell(self, url: str, *calls: str | tuple[str, dict[str, Any]]) -> list[Any]:
        """What the client's other methods return: messages as JSON, Answers for errors."""
        pairs = [(each, {}) if isinstance(each, str) else each for each in calls]
        said = await self._ask("tell", url=url, calls=pairs)
        is_error = [isinstance(each, dict) and "status" in each for each in said]
        return [_answer(e) if bad else e for e, bad in zip(said, is_error, strict=True)]

    async def beside(self, url: str, rows: Array) -> dict[str, Any]:
        """See tritonside.beside()."""
        said: dict[str, Any] = await self._ask("beside", url=url, rows=rows.tolist())
        return said

    async def _ask(self, name: str, **given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, self._exchange, name, given)

    def _exchange(self, name: str, given: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps([name, given]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        said = json.loads(line)
        assert "bug" not in said, said["bug"]
        return said["answers"]


def _answer(said: dict[str, Any]) -> Answer:
    arrays = {
        name: np.array(values, dtype).reshape(shape)
        for name, (dtype, shape, values) in said.pop("outputs", {}).items()
    }
    said["model"] = tuple(said.get("model", ()))
    return Answer(outputs=arrays, **said)


def request(
    x: Array | None,
    sequence: int | str = 0,
    *,
    start: bool = False,
    end: bool = False,
    model: str = "m",
    inputs: dict[str, Array] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Arguments of infer(); integer `x` are tokens; None is no input."""
    arrays = dict(inputs or {})
    if x is not None:
        arrays["x" if x.dtype == np.float32 else "tokens"] = x
    given = {
        name: (str(array.dtype), array.shape, array.ravel().tolist())
        for name, array in arrays.items()
    }
    return {
        "model_name": model,
        "inputs": given,
        "sequence_id": sequence,
        "sequence_start": start,
        "sequence_end": end,
        **others,
    }


@pytest.fixture(scope="session")
def triton() -> Iterator[Triton]:
    """The client's process; makes its environment first if it is missing."""
    subprocess.run(["make", "-s", "-C", ROOT, ".venv/triton/.setup-stamp"], check=True, timeout=300)
    with subprocess.Popen(
        [ENVIRONMENT / "bin" / "python", ROOT / "tests" / "tritonside.py"],
        env={"PYTHONPATH": str(ROOT / "service")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Triton(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 0
