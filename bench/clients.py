"""Loads made by the clients that people use: Client, AsyncClient and the stock tritonclient.

Each is a process of its own on the load's core: ours runs the client of the version that it loads,
because the wire may differ between versions; tritonclient has its own environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench.load import Sample, measured
from bench.machine import LOAD_CPU, ROOT, on_core

TRITON_PYTHON = ROOT / ".venv" / "triton" / "bin" / "python"


class Place(NamedTuple):
    """A server's address, HOST:PORT, and the PYTHONPATH of the client that goes with it."""

    target: str
    python_path: str


class ClientLoad:
    """A process that steps for as many seconds as it reads, and answers how many steps it did."""

    def __init__(self, command: Sequence[str], **variables: str) -> None:
        self._process = subprocess.Popen(
            on_core(list(command), LOAD_CPU),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, **variables},
        )
        self._read()

    def measure(self, seconds: float, cpu_s: Callable[[], float]) -> Sample:
        """drive(), with what it cost by the server's clock of CPU time."""
        return measured(self.drive, seconds, cpu_s)

    def drive(self, seconds: float) -> int:
        """Steps for so long; how many were answered."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        return int(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load ended with {self._process.wait()}")
        return line

    def close(self) -> None:
        """Ends the sessions and the connection."""
        self._process.communicate()


def ours(kind: str, place: Place, model: str, width: int, *counts: int) -> ClientLoad:
    """A load of one of the kinds of bench/clientload.py."""
    script = ROOT / "bench" / "clientload.py"
    arguments = [kind, place.target, model, str(width), *map(str, counts)]
    return ClientLoad([sys.executable, str(script), *arguments], PYTHONPATH=place.python_path)


def triton(mode: str, place: Place, model: str, width: int, sessions: int) -> ClientLoad:
    """tritonclient: `mode` is unary (asyncio) or stream (threads)."""
    script = ROOT / "bench" / "tritonload.py"
    arguments = [place.target, model, str(width), str(sessions), mode]
    return ClientLoad([str(TRITON_PYTHON), str(script), *arguments])
