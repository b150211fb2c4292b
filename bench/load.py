"""Drives connections for a while, and measures what that costs the server. Knows no message."""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.http2 import Connection

WAIT_S_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What one time of load gave."""

    answers: int
    seconds: float
    cpu_s: float  # of the server's process, all its threads
    own_cpu_s: float  # of the generator: if it is near `seconds`, it is the limit

    @property
    def per_cpu_s(self) -> float:
        """Answers per second of the server's CPU time."""
        return self.answers / self.cpu_s

    @property
    def per_s(self) -> float:
        """Answers per second."""
        return self.answers / self.seconds


def measured(drive: Callable[[float], int], seconds: float, cpu_s: Callable[[], float]) -> Sample:
    """Calls `drive`, and measures its cost by the server's CPU time, which `cpu_s` reads."""
    start_s, start_cpu_s, start_own_s = time.perf_counter(), cpu_s(), time.process_time()
    answers = drive(seconds)
    return Sample(
        answers,
        time.perf_counter() - start_s,
        cpu_s() - start_cpu_s,
        time.process_time() - start_own_s,
    )


class Load:
    """Connections that send their next message as soon as one is answered."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._selector = selectors.DefaultSelector()
        for connection in connections:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        self.connections = connections

    def drive(self, seconds: float) -> int:
        """Drives the connections for `seconds`. Returns the number of answers.

        Raises TimeoutError when no answer comes.
        """
        answers = 0
        end_s = time.perf_counter() + seconds
        while time.perf_counter() < end_s:
            events = self._selector.select(WAIT_S_MAX)
            if not events:
                raise TimeoutError(f"no answer in {WAIT_S_MAX:g} s")
            for key, _ in events:
                answers += key.data.receive()
        return answers

    def measure(self, seconds: float, cpu_s: Callable[[], float]) -> Sample:
        """Calls drive(), and measures its cost by the server's CPU time, which `cpu_s` reads."""
        return measured(self.drive, seconds, cpu_s)

    def close(self) -> None:
        """Ends the connections."""
        self._selector.close()
        for connection in self.connections:
            connection.close()
