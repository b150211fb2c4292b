"""Measure 5: how long single steps take while others upload 10,000 rows at a time."""

from __future__ import annotations

import heapq
import selectors
import tempfile
import time
from pathlib import Path

import numpy as np

from bench import requests
from bench.http2 import Connection
from bench.rounds import MODEL, Effort, served
from bench.rows import Goal, Row
from lstmserve.spec import LstmSpec

STEPPERS, UPLOADERS, ROWS = 8, 2, 10_000
PERIOD_S = 0.04  # of each stepper: 200 steps a second in all
WARM_UP_S = 0.5


class Steppers:
    """Sessions that step at their own pace, with uploads beside them."""

    def __init__(self, target: str, spec: LstmSpec, uploaders: int) -> None:
        address = ("127.0.0.1", int(target.rpartition(":")[2]))
        path = requests.PATH + "Step"
        sessions = requests.open_sessions(target, MODEL, STEPPERS + uploaders)
        self._paced = [
            Connection(address, path, requests.steps(each, spec), streamed=False, window=0)
            for each in sessions[:STEPPERS]
        ]
        self._uploads = [
            Connection(address, path, requests.uploads(each, spec, ROWS), streamed=False)
            for each in sessions[STEPPERS:]
        ]
        self._selector = selectors.DefaultSelector()
        for connection in (*self._paced, *self._uploads):
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def latencies_s(self, seconds: float) -> list[float]:
        """The times from a step's due time to its answer, for `seconds`."""
        start_s = time.perf_counter()
        due = [(start_s + PERIOD_S * i / STEPPERS, i) for i in range(STEPPERS)]
        sent_s: dict[Connection, float] = {}
        taken = []
        while (now_s := time.perf_counter()) < start_s + seconds:
            while due[0][0] <= now_s:
                due_s, i = heapq.heappop(due)
                heapq.heappush(due, (due_s + PERIOD_S, i))
                if self._paced[i] not in sent_s:  # else it is late already
                    sent_s[self._paced[i]] = due_s
                    self._paced[i].send()
            for key, _ in self._selector.select(max(0.0, due[0][0] - time.perf_counter())):
                if key.data.receive() and key.data in sent_s:
                    taken.append(time.perf_counter() - sent_s.pop(key.data))
        return taken

    def close(self) -> None:
        """Ends the connections."""
        self._selector.close()
        for connection in (*self._paced, *self._uploads):
            connection.close()


def patience(spec: LstmSpec, name: str, effort: Effort) -> Row:
    """p99 of single steps with uploads / without, in turn."""
    quiet_s, busy_s = [], []
    with tempfile.TemporaryDirectory() as folder, served(Path(folder), spec) as serving:
        for _ in range(effort.rounds):
            for uploaders, p99_s in ((0, quiet_s), (UPLOADERS, busy_s)):
                steppers = Steppers(serving.target, spec, uploaders)
                steppers.latencies_s(WARM_UP_S)
                latencies_s = steppers.latencies_s(2 * effort.seconds)
                p99_s.append(float(np.percentile(latencies_s, 99)))
                steppers.close()
    values = [busy / quiet for quiet, busy in zip(quiet_s, busy_s, strict=True)]
    context = f"p99 {1e3 * np.median(quiet_s):.1f} ms without, {1e3 * np.median(busy_s):.1f} with"
    title = f"p99 of single steps with {UPLOADERS} uploads of {ROWS} rows / without, {name}"
    return Row(5, title, values, Goal(2, is_least=False), "", context)
