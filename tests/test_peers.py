"""Peers that freeze or ping too much, with real processes on both ends."""

from __future__ import annotations

import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import flooding
from lstmserve import Client
from lstmserve.server.transport import arguments as transport
from lstmserve.v1 import lstm_pb2 as pb
from serving import COMMAND, Serve, environment

SHORT = """
from lstmserve.server.transport import arguments as transport
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
SHORT_PINGS = """
from lstmserve.server.transport import arguments as transport
transport.PING_INTERVAL_MS_MIN = {}
from lstmserve.cli.serve import serve
serve()
"""
KEEPALIVE_S = 2.0
CUTS = 42


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


@pytest.mark.timeout(40)  # a hang guard; grpc's own default of 63 s does not pass it
def test_a_frozen_peer_is_cut(serve: Serve, frozen: list[subprocess.Popen[str]]) -> None:
    """Keepalive alone cuts a client that froze in its stream, and its session steps on."""
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
    codes = serving.metrics_by("grpc_server_handled_total", "grpc_code", grpc_method="StepStream")
    assert codes == {"Canceled": 1}
    with Client(serving.target) as client, client.attach("held") as session:
        while (before := session.info()).pending_steps:
            pass  # a batch that ran when the stream was cut is settled after it
        done = before.step
        session.step([0.5, -1.0, 2.0])
        assert session.info().step == done + 1
        assert session.info().pending_steps == 0
    assert serving.stop() == 0


def test_a_peer_that_pings_too_much_is_told_off(serve: Serve) -> None:
    """Pings every second end the connection, and its error says why."""
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


def test_a_keepalive_above_the_limit_is_left_alone(serve: Serve) -> None:
    """Seven pings at twice the shortest interval that the server allows do not end the
    connection."""
    # Both are 50 times shorter than in production, set by the same code: it takes two seconds.
    shorter_s = transport.PING_INTERVAL_MS_MIN / 50e3
    serving = serve(command=[sys.executable, "-c", SHORT_PINGS.format(round(1000 * shorter_s))])
    host, port = serving.target.split(":")
    with socket.create_connection((host, int(port))) as peer:
        peer.sendall(flooding.PREFACE + flooding.frame(flooding.SETTINGS))
        heard = b""
        for number in range(7):
            peer.sendall(flooding.frame(flooding.PING, struct.pack(">Q", number)))
            due_s = time.monotonic() + 2 * shorter_s
            while (left_s := due_s - time.monotonic()) > 0:
                peer.settimeout(left_s)
                with suppress(TimeoutError):
                    heard += (got := peer.recv(4096))
                    assert got, "the server ended the connection"
        peer.settimeout(30)
        while flooding.frame(flooding.PING, struct.pack(">Q", 6), flags=flooding.ACK) not in heard:
            heard += (got := peer.recv(4096))
            assert got, "the server ended the connection"
    assert serving.stop() == 0


def test_more_connections_than_the_soft_limit_of_files(serve: Serve) -> None:
    """Up to the hard limit of files, the probe is answered and a new client is served."""
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


def test_a_cut_connection_with_unsent_replies_is_no_event(serve: Serve) -> None:
    """Connections that end by a close or a reset, with unsent replies, leave no line in the log."""
    serving = serve()
    host, port = serving.target.split(":")
    message = pb.StepRequest(session_id="cut", length=50, x=[0.5, -1.0, 2.0] * 50)
    content = message.SerializeToString()
    data = flooding.frame(flooding.DATA, struct.pack(">BI", 0, len(content)) + content, stream=1)
    no_window = struct.pack(">HI", flooding.INITIAL_WINDOW_SIZE, 0)
    with Client(serving.target) as client:
        client.session("tiny", id="cut", keep=True)
        for turn in range(CUTS):
            with socket.create_connection((host, int(port))) as cut:
                cut.sendall(
                    flooding.PREFACE
                    + flooding.frame(flooding.SETTINGS, no_window)
                    + flooding.frame(
                        flooding.HEADERS,
                        flooding.request(),
                        flags=flooding.END_HEADERS,
                        stream=1,
                    )
                    + 20 * data
                )
                while serving.metric("lstm_steps_total") < 20 * (turn + 1):
                    pass
                for _ in range(20):  # passes of the server's loop: the first reply is on its way
                    serving.metric("lstm_steps_total")
                if turn % 3 == 1:
                    cut.shutdown(socket.SHUT_WR)
                    serving.metric("lstm_steps_total")
                elif turn % 3 == 2:
                    cut.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        while serving.metric("grpc_server_handled_total", grpc_method="StepStream") < CUTS:
            pass
    assert serving.stop() == 0
    assert [line["event"] for line in serving.log if line["level"] != "info"] == []
    assert serving.noise == []


def test_connections_beyond_the_limit_are_closed_at_once(serve: Serve) -> None:
    """As many as --connections-max are served, one more is closed at once, and its place comes
    back."""
    serving = serve("--connections-max", "3")
    host, port = serving.target.split(":")
    with ExitStack() as stack:
        peers = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            for _ in range(4)
        ]
        greetings = [peer.recv(9) for peer in peers]
        assert [len(greeting) for greeting in greetings] == [9, 9, 9, 0]
    with Client(serving.target, retry_s_max=30) as client:
        assert client.models()
    assert serving.stop() == 0


def test_a_handshake_that_stays_half_open_is_ended(serve: Serve) -> None:
    """The server closes a connection that sends nothing, long before gRPC's 120 s."""
    program = SHORT.replace("KEEPALIVE_MS = transport.PING_TIMEOUT_MS", "HANDSHAKE_MS_MAX")
    serving = serve(command=[sys.executable, "-c", program])
    host, port = serving.target.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as peer:
        while peer.recv(4096):
            pass
    assert serving.stop() == 0
