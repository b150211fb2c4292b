"""Runs the processes that lstmserve is compared with, each on the server's core."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bench.machine import ROOT, on_core
from lstmserve.spec import LstmSpec
from serving import environment

WAIT_S_MAX = 10


class Floor:
    """A process `python -m MODULE ARGUMENTS` that prints a line when it is ready."""

    def __init__(self, module: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            on_core([sys.executable, "-m", module, *arguments]),
            env={**environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'service'}:{ROOT / 'tests'}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.line = self.read()

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def ask(self, line: str) -> str:
        """Sends a line, and returns the line that answers it."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        return self.read()

    def read(self) -> str:
        """Returns its next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")
        return line.strip()

    def stop(self) -> None:
        """Kills the process."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def floor(module: str, *arguments: str) -> Iterator[Floor]:
    """Runs such a process while the block runs."""
    started = Floor(module, *arguments)
    try:
        yield started
    finally:
        started.stop()


def spec_argument(spec: LstmSpec) -> str:
    """The spec as the modules' argument: INPUT,HIDDEN,LAYERS,OUTPUT."""
    return f"{spec.input_size},{spec.hidden_size},{spec.num_layers},{spec.output_size}"
