"""The loads that versions of the server are compared under, by raw connections and by clients.

Must not know how turns are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import requests
from bench.checkout import STORES
from bench.clients import ClientLoad, Place, ours, triton
from bench.http2 import Connection
from bench.load import Load
from bench.rounds import MODEL
from lstmserve.head_layers import Linear
from lstmserve.spec import LstmSpec

SPEC = LstmSpec(16, 128, head=(Linear(8),))
MANY = 256
CLIENT_MS = 10_000  # of a step by our clients, which always set one
RAGGED = np.random.default_rng(0).integers(1, 65, 64).tolist()
INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True)
class Measure:
    """One load: how it is made for a server, and how many steps an answer holds."""

    name: str
    load: Callable[[Place], Any]
    steps: int = 1
    stores: tuple[str, ...] = ("memory",)


def raw(method: str, count: int, *, streamed: bool, timeout_ms: int = 0) -> Callable[[Place], Load]:
    """Connections of one session each, numbered steps, nothing else set but the time limit."""

    def load(place: Place) -> Load:
        sessions = requests.open_sessions(place.target, MODEL, count)
        return _load(
            place,
            requests.PATH + method,
            [requests.steps(each, SPEC, timeout_ms=timeout_ms) for each in sessions],
            streamed=streamed,
        )

    return load


def many(place: Place) -> Load:
    """Two streams of StepMany, so that the server never waits for the load."""
    cohorts = [requests.open_sessions(place.target, MODEL, MANY) for _ in range(2)]
    messages = [requests.blocks(each, SPEC) for each in cohorts]
    return _load(place, requests.PATH + "StepMany", messages, streamed=True)


def predict(place: Place) -> Load:
    """Ragged sequences, all in one call."""
    messages = [requests.predictions(MODEL, SPEC, RAGGED)]
    return _load(place, requests.PATH + "Predict", messages, streamed=False)


def infer(count: int) -> Callable[[Place], Load]:
    """ModelInfer: a connection per sequence, as stock clients number nothing."""

    def load(place: Place) -> Load:
        messages = [requests.inferences(MODEL, SPEC, i + 1) for i in range(count)]
        return _load(place, INFER, messages, streamed=False)

    return load


def _load(place: Place, path: str, messages: Sequence[Iterator[bytes]], *, streamed: bool) -> Load:
    address = ("127.0.0.1", int(place.target.rpartition(":")[2]))
    return Load([Connection(address, path, each, streamed=streamed) for each in messages])


def client(kind: str, *counts: int) -> Callable[[Place], ClientLoad]:
    """A load by our own client."""
    return lambda place: ours(kind, place, MODEL, SPEC.input_size, *counts)


def stock(mode: str, count: int) -> Callable[[Place], ClientLoad]:
    """A load by tritonclient."""
    return lambda place: triton(mode, place, MODEL, SPEC.input_size, count)


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
    *(Measure(f"Client.step, {n}", client("threads", n)) for n in (1, 32)),
    *(Measure(f"AsyncClient.step, {n}", client("tasks", n)) for n in (1, 8)),
    Measure("AsyncClient.step, 32", client("tasks", 32), stores=STORES),
    Measure("AsyncClient.step, 64", client("tasks", 64)),
    *(Measure(f"AsyncClient.stream, {n}", client("streams", n)) for n in (8, 64)),
    Measure(f"Client.step_many, {MANY}", client("messages", MANY), stores=STORES),
    Measure(f"Client.predict, {len(RAGGED)} ragged", client("predictions", *RAGGED)),
    *(Measure(f"tritonclient.infer, {n}", stock("unary", n)) for n in (1, 8)),
    Measure("tritonclient.infer, 32", stock("unary", 32), stores=STORES),
    Measure("tritonclient stream, 8", stock("stream", 8)),
)
