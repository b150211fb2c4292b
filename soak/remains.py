"""Reads what a server still holds: calls, sessions, memory, and Python objects."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any, NamedTuple

from serving import Serving

ANSWER_S_MAX, LOOK_S = 60, 0.05
COUNTING = """
import gc, json, signal, sys
freed = 0
def count(phase, info):
    global freed
    freed += info.get("collected", 0) if phase == "stop" else 0
def is_of_a_call(each):
    kind = type(each)
    of = ("lstmserve.server", "lstmserve.engine.scheduling", "grpc", "asyncio", "_asyncio")
    is_of = str(kind.__module__).startswith(of)
    return is_of or kind.__name__ in ("coroutine", "frame", "traceback")
def tell(*_):
    gc.collect()
    said = {"event": "objects", "live": sum(map(is_of_a_call, gc.get_objects())), "freed": freed}
    print(json.dumps(said), file=sys.stderr, flush=True)
gc.callbacks.append(count)
signal.signal(signal.SIGUSR1, tell)
from lstmserve.cli.serve import serve
serve()
"""
COMMAND = [sys.executable, "-c", COUNTING]  # the command of a server that objects_of() may ask


class Sample(NamedTuple):
    """What the server held at one time."""

    made: float  # calls that the clients had made
    started: float
    handled: float
    rss_bytes: float
    fds: float
    pending: float
    opened: float
    closed: float
    live: float
    slots: float

    @property
    def is_quiet(self) -> bool:
        """Whether no call and no step is under way."""
        return self.started == self.handled and not self.pending


def sample_of(serving: Serving, made: int) -> Sample:
    """Takes a sample now; `made` calls were made so far."""
    values = serving.metrics(
        "grpc_server_started_total",
        "grpc_server_handled_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "lstm_pending_steps",
        "lstm_sessions_opened_total",
        "lstm_sessions_closed_total",
        "lstm_sessions",
    )
    return Sample(made, *values, serving.metric("lstm_slots", state="used"))


def objects_of(serving: Serving) -> dict[str, Any]:
    """The report of the server's garbage collector."""
    said = len(serving.events("objects"))
    end_s = time.monotonic() + ANSWER_S_MAX
    serving.signal(signal.SIGUSR1)
    while len(serving.events("objects")) == said:
        assert time.monotonic() < end_s, "the server does not answer"
        time.sleep(LOOK_S)
    return serving.events("objects")[-1]
