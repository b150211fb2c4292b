"""The loads that versions of the server are compared under, by raw connections and by clients.

Must not know how turns are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bench import requests
from bench.checkout import STORES
from bench.clients import Messages, Predictions, Tasks, Threads, Triton
from bench.http2 import Connection
from bench.load import Load
from bench.rounds import MODEL
from lstmserve.spec import Linear, ModelSpec

SPEC = ModelSpec(16, 128, head=(Linear(8),))
MANY = 256
CLIENT_MS = 10_000  # of a step by our clients, which always set one
RAGGED = np.random.default_rng(0).integers(1, 65, 64).tolist()
INFER = "/inference.GRPCInferenceService/ModelInfer"


class Target(Protocol):
    """A server that serves MODEL, whoever made it."""

    @property
    def target(self) -> str:
        """Its address, HOST:PORT."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One load: how it is made for a server, and how many steps an answer holds."""

    name: str
    load: Callable[[Target], Any]
    steps: int = 1
    stores: tuple[str, ...] = ("memory",)


def raw(
    method: str, count: int, *, streamed: bool, timeout_ms: int = 0
) -> Callable[[Target], Load]:
    """Connections of one session each, numbered steps, nothing else set but the time limit."""

    def load(serving: Target) -> Load:
        sessions = requests.open_sessions(serving.target, MODEL, count)
        return _load(
            serving,
            requests.PATH + method,
            [requests.steps(each, SPEC, timeout_ms=timeout_ms) for each in sessions],
            streamed=streamed,
        )

    return load


def many(serving: Target) -> Load:
    """Two streams of StepMany, so that the server never waits for the load."""
    cohorts = [requests.open_sessions(serving.target, MODEL, MANY) for _ in range(2)]
    messages = [requests.blocks(each, SPEC) for each in cohorts]
    return _load(serving, requests.PATH + "StepMany", messages, streamed=True)


def predict(serving: Target) -> Load:
    """Ragged sequences, all in one call."""
    messages = [requests.predictions(MODEL, SPEC, RAGGED)]
    return _load(serving, requests.PATH + "Predict", messages, streamed=False)


def infer(count: int) -> Callable[[Target], Load]:
    """ModelInfer: a connection per sequence, as stock clients number nothing."""

    def load(serving: Target) -> Load:
        messages = [requests.inferences(MODEL, SPEC, i + 1) for i in range(count)]
        return _load(serving, INFER, messages, streamed=False)

    return load


def _load(
    serving: Target, path: str, messages: Sequence[Iterator[bytes]], *, streamed: bool
) -> Load:
    address = ("127.0.0.1", int(serving.target.rpartition(":")[2]))
    return Load([Connection(address, path, each, streamed=streamed) for each in messages])


def client(kind: Callable[..., Any], count: int, **options: Any) -> Callable[[Target], Any]:
    """A load by one of the clients."""
    return lambda serving: kind(serving.target, MODEL, SPEC, count, **options)


def whole(serving: Target) -> Predictions:
    """The same by Client."""
    return Predictions(serving.target, MODEL, SPEC, RAGGED)


def _raw(method: str, counts: Sequence[int], *, streamed: bool = False) -> list[Measure]:
    return [
        Measure(f"{method}, raw, {n}", raw(method, n, streamed=streamed), stores=STORES)
        for n in counts
    ]


MEASURES = (
    *_raw("Step", (1, 8, 32, 64)),
    Measure(
        "Step with a time limit, raw, 32", raw("Step", 32, streamed=False, timeout_ms=CLIENT_MS)
    ),
    *_raw("StepStream", (8, 64), streamed=True),
    Measure(f"StepMany, raw, {MANY}", many, MANY, STORES),
    Measure(f"Predict, raw, {len(RAGGED)} ragged", predict, len(RAGGED)),
    *(Measure(f"ModelInfer, raw, {n}", infer(n), stores=STORES) for n in (1, 8, 32)),
    *(Measure(f"Client.step, {n}", client(Threads, n)) for n in (1, 32)),
    *(Measure(f"AsyncClient.step, {n}", client(Tasks, n)) for n in (1, 8)),
    Measure("AsyncClient.step, 32", client(Tasks, 32), stores=STORES),
    Measure("AsyncClient.step, 64", client(Tasks, 64)),
    *(Measure(f"AsyncClient.stream, {n}", client(Tasks, n, streamed=True)) for n in (8, 64)),
    Measure(f"Client.step_many, {MANY}", client(Messages, MANY), stores=STORES),
    Measure(f"Client.predict, {len(RAGGED)} ragged", whole),
    *(Measure(f"tritonclient.infer, {n}", client(Triton, n, mode="unary")) for n in (1, 8)),
    Measure("tritonclient.infer, 32", client(Triton, 32, mode="unary"), stores=STORES),
    Measure("tritonclient stream, 8", client(Triton, 8, mode="stream")),
)
