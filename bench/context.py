"""Figures beside the goals: the Python client, and what a store costs. One row each, no floors."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from bench import requests
from bench.http2 import Connection
from bench.load import Load
from bench.rounds import MODEL, Effort, Side, served, take_turns
from bench.rows import Row
from lstmserve import Client
from lstmserve.spec import LstmSpec
from serving import Serving
from storing import Valkey

STORES = ("memory", "file, through", "valkey, through", "valkey, behind")
CONNECTIONS, MANY = 8, 256


def stores(spec: LstmSpec, name: str, effort: Effort) -> list[Row]:
    """Unary Steps and StepMany per CPU second of the server, each store / memory."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        valkey = stack.enter_context(Valkey(folder))
        flags: dict[str, tuple[str, ...]] = {
            "memory": (),
            "file, through": ("--store", f"file:{folder / 'store'}"),
            "valkey, through": ("--store", valkey.url),
            "valkey, behind": ("--store", valkey.url, "--store-mode", "behind"),
        }
        servers = {
            store: stack.enter_context(served(folder / "models", spec, *flags[store]))
            for store in STORES
        }
        return [
            *_compared("Step, 8 connections", servers, _steps(spec), effort, 1, name),
            *_compared(f"StepMany, {MANY} sessions", servers, _many(spec), effort, MANY, name),
        ]


def _compared(
    what: str,
    servers: dict[str, Serving],
    load: Callable[[Serving], Load],
    effort: Effort,
    each: int,
    name: str,
) -> list[Row]:
    sides = [Side(store, serving.process.pid, load(serving)) for store, serving in servers.items()]
    taken = take_turns(sides, effort)
    rows = []
    for store in STORES[1:]:
        pairs = zip(taken[store], taken["memory"], strict=True)
        per_s = each * float(np.median([sample.per_s for sample in taken[store]]))
        values = [ours.per_cpu_s / memory.per_cpu_s for ours, memory in pairs]
        title = f"{what}, store {store} / memory, {name}"
        rows.append(Row(0, title, values, None, "", f"{per_s:.0f} steps/s"))
    return rows


def _steps(spec: LstmSpec) -> Callable[[Serving], Load]:
    def load(serving: Serving) -> Load:
        sessions = requests.open_sessions(serving.target, MODEL, CONNECTIONS)
        messages = [requests.steps(session, spec) for session in sessions]
        return Load([_connection(serving, "Step", each, streamed=False) for each in messages])

    return load


def _many(spec: LstmSpec) -> Callable[[Serving], Load]:
    def load(serving: Serving) -> Load:
        sessions = requests.open_sessions(serving.target, MODEL, MANY)
        messages = requests.blocks(sessions, spec)
        return Load([_connection(serving, "StepMany", messages, streamed=True)])

    return load


def _connection(serving: Serving, method: str, messages: object, *, streamed: bool) -> Connection:
    address = ("127.0.0.1", int(serving.target.rpartition(":")[2]))
    path = requests.PATH + method
    return Connection(address, path, messages, streamed=streamed)  # type: ignore[arg-type]


def client(spec: LstmSpec, name: str, effort: Effort) -> list[Row]:
    """What one Python process of a user can send, with the library on the load's core."""
    x = np.random.default_rng(0).standard_normal(spec.input_size).astype(np.float32)
    with (
        tempfile.TemporaryDirectory() as folder,
        served(Path(folder), spec) as serving,
        Client(serving.target) as connected,
    ):
        session = connected.session(MODEL)
        streamed = connected.session(MODEL)
        many = {connected.session(MODEL): x for _ in range(MANY)}

        def stream() -> int:
            return len(list(streamed.stream([x] * 200)))

        ways: dict[str, Callable[[], int]] = {
            "session.step": lambda: len([session.step(x)]),
            "session.stream": stream,
            f"step_many of {MANY}": lambda: len(connected.step_many(many)),
        }
        rows = []
        for way, call in ways.items():
            rates = [_rate(call, effort.seconds) for _ in range(effort.rounds)]
            rows.append(Row(0, f"Python client, {way}, {name}", rates, None, " steps/s"))
        return rows


def _rate(call: Callable[[], int], seconds: float) -> float:
    count, start_s = 0, time.perf_counter()
    while time.perf_counter() < start_s + seconds:
        count += call()
    return count / (time.perf_counter() - start_s)
