"""Connections that flood without an authenticated call are cut, and no others."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from flooding import Flood
from lstmserve import Client
from lstmserve.server.access.auth import AnonymousAuthenticator
from lstmserve.server.access.flood_guard import SENT_BYTES_MAX, FloodGuard
from lstmserve.tokens import Limits
from serving import Serve
from tenancy import write_tokens

X = [0.5, -1.0, 2.0]


class Caller:
    """A call as an authenticator sees it."""

    def __init__(self, connection: socket.socket) -> None:
        self._port = connection.getsockname()[1]

    def invocation_metadata(self) -> tuple[()]:
        """None."""
        return ()

    def peer(self) -> str:
        """The address as gRPC gives it."""
        return f"ipv4:127.0.0.1:{self._port}"


class Pair:
    """Both ends of a connection to a port of this process."""

    def __init__(self, listener: socket.socket) -> None:
        self.client = socket.create_connection(listener.getsockname(), timeout=30)
        self.server, _ = listener.accept()

    def send(self, count: int) -> None:
        """Sends from the server's end, and returns when all is acknowledged."""
        while count:
            chunk = bytes(min(count, 4096))
            self.server.sendall(chunk)
            assert self.client.recv(len(chunk), socket.MSG_WAITALL) == chunk
            count -= len(chunk)

    @property
    def is_cut(self) -> bool:
        """Whether the client's end sees that it is cut."""
        self.client.setblocking(False)
        try:
            return self.client.recv(1) == b""
        except BlockingIOError:
            return False
        finally:
            self.client.settimeout(30)

    def close(self) -> None:
        """Closes both ends."""
        self.client.close()
        self.server.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A port of this process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.mark.parametrize(("count", "is_cut"), [(SENT_BYTES_MAX, False), (SENT_BYTES_MAX + 1, True)])
def test_much_to_one_without_a_call(listener: socket.socket, count: int, is_cut: bool) -> None:
    """At the limit twice it stays, a byte more cuts it, and an authenticated one is never cut."""
    guard, port = FloodGuard(AnonymousAuthenticator(Limits())), listener.getsockname()[1]
    stranger, guest, quiet = (Pair(listener) for _ in range(3))
    guard.authenticator.tenant(Caller(guest.client))
    assert guard.look(port) == 0
    for cut in (0, int(is_cut)):
        stranger.send(count)
        guest.send(2 * SENT_BYTES_MAX)
        assert guard.look(port) == cut
    assert (stranger.is_cut, guest.is_cut, quiet.is_cut) == (is_cut, False, False)
    for pair in (stranger, guest, quiet):
        pair.close()
    guard.look(port)
    assert guard.authenticator.peers == set()


@pytest.mark.parametrize("kind", ["ping", "settings"])
def test_a_flood_that_is_answered_is_cut(serve: Serve, tmp_path: Path, kind: str) -> None:
    """The flood ends with its connection, and a client with a token steps on beside it."""
    tokens = write_tokens(tmp_path / "tokens", acme="")
    serving = serve("--tokens", tmp_path / "tokens")
    with (
        Client(serving.target, token=tokens["acme"], retry_s_max=0) as client,
        client.session("tiny") as session,
    ):
        session.step(X)
        with Flood(kind, serving.target, 60, rate=10**9, count=10**9) as flood:
            while not flood.is_over:
                session.step(X)
            sent = flood.ended()
        print(sent)
        assert sent.cut
        session.step(X)
    assert serving.stop() == 0
