"""Measure 10: two servers of half a core each, behind the router, beside one of half a core."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np

from bench.http2 import Connection
from bench.load import Load
from bench.quota import NoQuota, quota
from bench.requests import PATH, steps
from bench.rounds import MODEL, Effort, Side, served, take_turns
from bench.rows import Goal, Row
from lstmserve.spec import LstmSpec
from lstmserve.v1 import lstm_pb2 as public
from lstmserve.v1 import lstm_pb2_grpc
from routing import envoy_of
from serving import Serving

SHARE, CONNECTIONS = 0.5, 64
GOAL = Goal(1.7)


def pairs(spec: LstmSpec, name: str, effort: Effort) -> list[Row]:
    """Answers per second: the servers share one core, the router and the load have the other."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        one, *two = (stack.enter_context(served(folder, spec)) for _ in range(3))
        try:
            for serving in (one, *two):
                stack.enter_context(quota(serving.process.pid, SHARE))
        except NoQuota:
            return []  # said in RESULTS.md: it needs root
        sides = [
            Side(side, servers[0].process.pid, stack.enter_context(_behind_router(servers, spec)))
            for side, servers in {"one": [one], "two": two}.items()
        ]
        taken = take_turns(sides, effort)
    rates = {side: [sample.per_s for sample in samples] for side, samples in taken.items()}
    values = [two / one for one, two in zip(rates["one"], rates["two"], strict=True)]
    context = ", ".join(f"{side} {np.median(each):.0f}/s" for side, each in rates.items())
    return [Row(10, f"two servers of half a core / one, {name}", values, GOAL, "", context)]


@contextmanager
def _behind_router(servers: list[Serving], spec: LstmSpec) -> Iterator[Load]:
    """Runs the router on this process' core, which it inherits."""
    with envoy_of([serving.target for serving in servers]) as envoy:
        yield Load([_connection(envoy.target, spec, i) for i in range(CONNECTIONS)])


def _connection(target: str, spec: LstmSpec, number: int) -> Connection:
    """A connection with one session, opened where the router sends it."""
    session_id = f"{number:032x}"
    request = public.OpenSessionRequest(model=MODEL, session_id=session_id)
    with grpc.insecure_channel(target) as channel:
        service = lstm_pb2_grpc.LstmServiceStub(channel)
        session = service.OpenSession(request, metadata=[("x-session-id", session_id)]).session
    host, _, port = target.rpartition(":")
    messages = steps(session, spec)
    address = (host, int(port))
    return Connection(address, PATH + "Step", messages, streamed=False, session_id=session_id)
