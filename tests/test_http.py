"""The HTTP port: what /, /metrics, /livez and /readyz answer, also when the event loop hangs."""

from __future__ import annotations

import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry

from lstmserve.server.observe.http import REQUESTS_MAX, HttpServer, _Request
from lstmserve.server.observe.metrics import Metrics


class Switches:
    """What the probes say and what a scrape raises; a test flips them."""

    def __init__(self) -> None:
        self.live = True
        self.ready = False
        self.hangs = False

    def read(self, function):
        """Fails as the server's own read does when the loop hangs."""
        if self.hangs:
            raise TimeoutError
        return function()


@pytest.fixture
def switches() -> Switches:
    """Live, not ready, counts readable."""
    return Switches()


@pytest.fixture
def http(switches: Switches) -> Iterator[HttpServer]:
    """A running server on a free port."""
    registry = CollectorRegistry()
    Metrics(registry, switches.read)
    server = HttpServer("127.0.0.1", 0, registry, lambda: switches.live, lambda: switches.ready)
    server.start()
    yield server
    server.stop()


def get(http: HttpServer, path: str, method: str = "GET") -> tuple[int, str]:
    """Status and body."""
    request = urllib.request.Request(f"http://127.0.0.1:{http.port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_are_served(http: HttpServer) -> None:
    """/metrics shows the registry's metrics, process metrics among them."""
    status, body = get(http, "/metrics")
    assert status == 200
    assert "lstm_build_info{" in body
    assert "process_resident_memory_bytes" in body


def test_probes_follow_what_they_are_told(http: HttpServer, switches: Switches) -> None:
    """/livez and /readyz answer 200 or 503, each by its own callable."""
    assert get(http, "/livez") == (200, "OK\n")
    assert get(http, "/readyz") == (503, "Service Unavailable\n")
    switches.live, switches.ready = False, True
    assert get(http, "/livez") == (503, "Service Unavailable\n")
    assert get(http, "/readyz") == (200, "OK\n")


def test_the_page_is_served_though_the_loop_hangs(http: HttpServer, switches: Switches) -> None:
    """/ is the whole status page, whatever the loop does."""
    switches.hangs = True
    status, body = get(http, "/")
    assert status == 200
    assert body.startswith("<!doctype html>")
    assert body.count("/* page.") == 0


def test_scrape_of_a_hung_loop_is_503(http: HttpServer, switches: Switches) -> None:
    """A scrape that the loop does not answer is 503, and the next one is served again."""
    switches.hangs = True
    assert get(http, "/metrics")[0] == 503
    assert get(http, "/livez")[0] == 200
    switches.hangs = False
    assert get(http, "/metrics")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/page.js", 404), ("POST", "/livez", 405)]
)
def test_other_requests_are_refused(http: HttpServer, method: str, path: str, status: int) -> None:
    """Other paths and methods get their HTTP status."""
    assert get(http, path, method)[0] == status


def test_second_bind_is_refused(http: HttpServer) -> None:
    """A taken port is an error at once."""
    with pytest.raises(OSError, match="in use"):
        HttpServer("127.0.0.1", http.port, CollectorRegistry(), bool, bool)


def test_stop_frees_the_port(http: HttpServer) -> None:
    """After stop() the port is free, and stop() may be called twice."""
    http.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", http.port))


def test_a_peer_that_is_slow_or_gone_is_no_event(
    http: HttpServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A slow peer and a lost one print nothing, and others are answered."""
    monkeypatch.setattr(_Request, "timeout", 0.01)
    slow = socket.create_connection(("127.0.0.1", http.port))
    slow.sendall(b"GET /livez")
    assert slow.recv(1) == b""  # the server gave up on it
    slow.close()
    gone = socket.create_connection(("127.0.0.1", http.port))
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone.sendall(b"GET /metrics HTTP/1.0\r\n")
    gone.close()  # a reset
    assert get(http, "/livez")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_a_crowd_of_connections_waits_to_be_accepted(http: HttpServer) -> None:
    """A hundred connections that come before the first is accepted are all served."""
    http.stop()
    waiting = HttpServer("127.0.0.1", 0, CollectorRegistry(), lambda: True, bool)
    with ExitStack() as stack:
        crowd = [
            stack.enter_context(socket.create_connection(("127.0.0.1", waiting.port), timeout=5))
            for _ in range(100)
        ]
        for each in crowd:
            each.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        waiting.start()
        assert all(each.recv(15) == b"HTTP/1.0 200 OK" for each in crowd)
    waiting.stop()


@pytest.mark.parametrize(("count", "is_cut"), [(REQUESTS_MAX - 1, False), (REQUESTS_MAX, True)])
def test_silent_connections_leave_room_for_a_probe(
    http: HttpServer, count: int, is_cut: bool
) -> None:
    """One connection above the limit ends the oldest one, and is answered itself."""
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", http.port), timeout=30))
            for _ in range(count)
        ]
        assert get(http, "/livez")[0] == 200
        if is_cut:
            assert silent[0].recv(1) == b""
        for each in silent[is_cut:]:
            each.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            assert each.recv(15) == b"HTTP/1.0 200 OK"
