"""TLS: which clients are served and which are refused, and certificates that change."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog

from certificates import EXPIRED, NOT_YET, Authority
from lstmserve import AsyncClient
from lstmserve.client import Unavailable
from lstmserve.v1 import lstm_pb2, lstm_pb2_grpc
from serving import Serve
from tenancy import Tenancy, X, tenancy, write_tokens
from test_cli import Shell


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    """The authority that signed the server."""
    return Authority(tmp_path)


@contextlib.asynccontextmanager
async def secure(
    models: Path, pair: tuple[Path, Path], client_ca: Path | None = None
) -> AsyncIterator[Tenancy]:
    """A server with that certificate and key."""
    files = {"tls_cert": pair[0], "tls_key": pair[1], "tls_client_ca": client_ca}
    async with tenancy(models, None, **files) as running:
        yield running


async def reach(running: Tenancy, credentials: grpc.ChannelCredentials | bool) -> None:
    """Makes one call on a connection of its own. Raises Unavailable when the handshake fails."""
    async with AsyncClient(running.ports.listen, tls=credentials, retry_s_max=0) as client:
        await client.models()


async def test_a_step_over_tls(models: Path, ours: Authority) -> None:
    """A client that trusts the authority is served."""
    async with (
        secure(models, ours.sign("server")) as running,
        AsyncClient(running.ports.listen, tls=ours.credentials(), retry_s_max=0) as client,
        client.session("tiny") as session,
    ):
        assert (await session.step(X)).shape == (2,)


@pytest.mark.parametrize("host", ["127.0.0.1", "other.example"])
async def test_clients_refuse_a_server_they_do_not_know(
    models: Path, ours: Authority, tmp_path: Path, host: str
) -> None:
    """Plain text, another authority and a certificate of another name end as Unavailable."""
    strangers = Authority(tmp_path, "strangers")
    wrong: list[Any] = [False, True, strangers.credentials()]
    if host != "127.0.0.1":
        wrong.append(ours.credentials())
    async with secure(models, ours.sign("server", host)) as running:
        for credentials in wrong:
            with pytest.raises(Unavailable):
                await reach(running, credentials)


async def test_clients_need_a_certificate_when_asked(
    models: Path, ours: Authority, tmp_path: Path
) -> None:
    """With --tls-client-ca, clients without a certificate, with a stranger's or an expired one are
    refused."""
    strangers = Authority(tmp_path, "strangers")
    async with secure(models, ours.sign("server"), ours.path) as running:
        await reach(running, ours.credentials(ours.sign("client")))
        refused = (
            None,
            strangers.sign("stranger"),
            ours.sign("late", **EXPIRED),
            ours.sign("early", **NOT_YET),
        )
        for client in refused:
            with pytest.raises(Unavailable):
                await reach(running, ours.credentials(client))


def shake_hands(address: str, version: ssl.TLSVersion) -> str:
    """The version that a client agrees on that speaks only `version`. Raises SSLError."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.set_alpn_protocols(["h2"])
    client.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the test is about old versions
        client.minimum_version = client.maximum_version = version
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as plain, client.wrap_socket(plain) as wrapped:
        return wrapped.version() or ""


async def test_old_versions_are_refused(models: Path, ours: Authority) -> None:
    """TLS 1.2 and 1.3 are spoken, and an older version ends with a closed connection or an
    alert."""
    async with secure(models, ours.sign("server")) as running:
        for version, name in (
            (ssl.TLSVersion.TLSv1_2, "TLSv1.2"),
            (ssl.TLSVersion.TLSv1_3, "TLSv1.3"),
        ):
            agreed = await asyncio.to_thread(shake_hands, running.ports.listen, version)
            assert agreed == name
        with pytest.raises(ssl.SSLError, match=r"UNEXPECTED_EOF|ALERT_PROTOCOL_VERSION"):
            await asyncio.to_thread(shake_hands, running.ports.listen, ssl.TLSVersion.TLSv1_1)


async def test_certificates_are_read_anew(models: Path, ours: Authority, tmp_path: Path) -> None:
    """New connections get the new certificate, open streams go on, and a bad file changes
    nothing."""
    cert, key = ours.sign("server")
    theirs = Authority(tmp_path, "theirs")
    changed, replies = asyncio.Event(), []

    async def items() -> AsyncIterator[list[float]]:
        yield X
        await changed.wait()
        yield X

    async with (
        secure(models, (cert, key)) as running,
        AsyncClient(running.ports.listen, tls=ours.credentials(), retry_s_max=0) as client,
        client.session("tiny") as session,
    ):
        async for y in session.stream(items()):
            replies.append(y)
            if len(replies) == 1:
                theirs.sign("server")
                await reach(running, theirs.credentials())
                with pytest.raises(Unavailable):
                    await reach(running, ours.credentials())
                cert.write_text("spoilt")
                with structlog.testing.capture_logs() as lines:
                    await reach(running, theirs.credentials())
                    await reach(running, theirs.credentials())
                assert [line["log_level"] for line in lines] == ["error"]
                changed.set()
        assert len(replies) == 2


def test_the_command_line_speaks_tls_and_tokens(
    serve: Serve, ours: Authority, tmp_path: Path
) -> None:
    """`lstmserve sessions` reaches a server that needs a certificate and tokens."""
    cert, key = ours.sign("server")
    token = write_tokens(tmp_path / "tokens", acme="")["acme"]
    flags = ("--tls-cert", cert, "--tls-key", key, "--tls-client-ca", ours.path)
    flags += ("--tokens", tmp_path / "tokens", "--admin", "127.0.0.1:0")
    serving = serve("--listen", "0.0.0.0:0", *flags)
    shell = Shell(serving.target.replace("0.0.0.0", "127.0.0.1"), tmp_path)
    mine = ours.sign("client")
    known = ("--tls-root", ours.path, "--tls-client-cert", mine[0], "--tls-client-key", mine[1])
    assert shell.out("health", *known) == "SERVING\n"
    assert "BAD_TOKEN" in shell.refusal("sessions", "list", *known)
    assert shell.out("sessions", "list", *known, "--token", token).startswith("SESSION")
    shell.refusal("sessions", "list", "--token", token)
    assert "go together" in shell.refusal("health", *known[:4], code=2)
    with grpc.insecure_channel(serving.ready["admin"]) as admin:
        list_sessions = lstm_pb2_grpc.LstmServiceStub(admin).ListSessions
        list_sessions(lstm_pb2.ListSessionsRequest(), metadata=(("x-lstmserve-tenant", "acme"),))
    assert serving.stop() == 0
