"""Peers that freeze or ping too much, with real processes on both ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lstmserve import Client
from serving import COMMAND, Serve, environment

SHORT = """
from lstmserve.server import transport
transport.KEEPALIVE_MS = transport.PING_TIMEOUT_MS = 1000
from lstmserve.cli.serve import serve
serve()
"""
HOLDS = """
import sys
from lstmserve import Client
with Client(sys.argv[1]) as client:
    session = client.session("tiny", id="held", keep=True)
    for _ in session.stream(iter(lambda: [0.5, -1.0, 2.0], None)):
        print("stepped", flush=True)
"""
KEEPALIVE_S = 2.0


@pytest.fixture
def frozen() -> Iterator[list[subprocess.Popen[str]]]:
    """Clients that are killed at the end, frozen or not."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.timeout(40)  # a hang guard that grpc's own default, 63 s, does not pass
def test_a_frozen_peer_is_cut(serve: Serve, frozen: list[subprocess.Popen[str]]) -> None:
    """A client that froze in its stream is cut by keepalive alone, and its session steps on."""
    serving = serve("--write-s-max", "3600", command=[sys.executable, "-c", SHORT])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, serving.target],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    frozen.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "stepped\n"
    process.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    while not serving.metric("grpc_server_handled_total", grpc_method="StepStream"):
        pass
    print(f"cut after {time.monotonic() - start:.1f} s, keepalive and its timeout {KEEPALIVE_S} s")
    assert serving.metric("grpc_server_handled_total", grpc_code="Canceled") == 1
    with Client(serving.target) as client, client.attach("held") as session:
        done = session.info().step
        session.step([0.5, -1.0, 2.0])
        assert session.info().step == done + 1
        assert session.info().pending_steps == 0
    assert serving.stop() == 0


def test_a_peer_that_pings_too_much_is_told_off(serve: Serve) -> None:
    """Pings every second end the connection, and say why."""
    serving = serve()
    options = (
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    with grpc.insecure_channel(serving.target, options) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        with pytest.raises(grpc.RpcError) as ended:
            list(watch)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "too many pings" in str(ended.value.details()).lower()
    assert serving.stop() == 0


def test_more_connections_than_the_soft_limit_of_files(serve: Serve) -> None:
    """The probe is answered and a new client served, up to the hard limit."""
    narrow = ["sh", "-c", 'ulimit -Sn 100; exec "$@"', "sh", *COMMAND]
    serving = serve(command=narrow)
    host, port = serving.target.split(":")
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection((host, int(port))))
        assert serving.get("/livez")[0] == 200
        with Client(serving.target) as client:
            assert client.models()
    assert serving.stop() == 0
