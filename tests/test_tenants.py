"""Who may call: bearers of a token, probes without one, and the operator on a port of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lstmserve.client import LstmServeError
from lstmserve.v1 import lstm_pb2 as pb
from tenancy import Tenancy, X, path, refusal, tenancy, write_tokens

UNARY = (
    *("ListModels", "GetModel", "OpenSession", "GetSession", "ListSessions"),
    *("CloseSession", "GetState", "Step", "Predict"),
)
STREAMS = ("StepStream", "StepMany")


@pytest.fixture
async def running(models: Path, tmp_path: Path) -> AsyncIterator[Tenancy]:
    """A server with the tenants acme and other, and an operator's port."""
    tokens = write_tokens(tmp_path / "tokens", acme="", other="")
    async with tenancy(models, tmp_path / "tokens", admin="127.0.0.1:0") as running:
        running.tokens = tokens
        yield running


async def failure(call: Awaitable[Any]) -> LstmServeError:
    """The error of a call that fails."""
    with pytest.raises(LstmServeError) as failed:
        await call
    return failed.value


@pytest.mark.parametrize("method", [*UNARY, *STREAMS])
async def test_no_call_without_a_token(running: Tenancy, method: str) -> None:
    """A missing and a wrong token get the same answer on every call, before the request is
    parsed."""
    said = set()
    wrong = (("authorization", "Bearer wrong"),)
    async with running.channel() as channel:
        kind = channel.unary_unary if method in UNARY else channel.stream_stream
        for metadata in ((), wrong, (("authorization", ""),), (("x-lstmserve-tenant", "acme"),)):
            garbage = (b"\xff",) if method in UNARY else ()
            error, pushback = await refusal(kind(path(method))(*garbage, metadata=metadata))
            said.add((error.code, error.reason, error.message, str(error.metadata), pushback))
    ((code, reason, message, metadata, pushback),) = said
    assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "BAD_TOKEN")
    assert (metadata, pushback) == ("{}", None)
    assert "Bearer TOKEN" in message
    assert running.engine.table.count_of("") == 0


@pytest.mark.parametrize("method", [*UNARY, *STREAMS])
async def test_without_a_token_no_message_is_read(running: Tenancy, method: str) -> None:
    """A client without a token is refused even if it sends no message."""
    async with running.channel() as channel:
        kind = channel.stream_unary if method in UNARY else channel.stream_stream
        error, _ = await refusal(kind(path(method))(timeout=30))
        assert error.reason == "BAD_TOKEN"


async def test_with_a_token_a_bad_request_is_told_so(running: Tenancy) -> None:
    """With a token, the requests that were refused above are refused for their content."""
    async with running.channel() as channel:
        call = channel.unary_unary(path("Step"))(b"\xff", metadata=running.metadata("acme"))
        assert (await refusal(call))[0].reason == "MALFORMED"


async def test_health_is_open(running: Tenancy) -> None:
    """Probes need no token."""
    async with running.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as unset:
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert unset.value.code() is grpc.StatusCode.NOT_FOUND


async def test_the_operator_acts_as_any_tenant(running: Tenancy) -> None:
    """On the operator's port the metadata names the tenant, and on the public port that is
    refused."""
    await running.client("acme").session("tiny", id="s")
    name = (("x-lstmserve-tenant", "acme"),)
    close = pb.CloseSessionRequest(session_id="s").SerializeToString()
    async with running.channel() as public, running.channel(running.ports.admin) as admin:
        both = running.metadata("acme") + name
        error, _ = await refusal(public.unary_unary(path("CloseSession"))(close, metadata=both))
        assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ADMIN_ONLY")
        assert running.engine.table.count_of("acme") == 1
        await admin.unary_unary(path("CloseSession"))(close, metadata=name)
    assert running.engine.table.count_of("acme") == 0


async def test_no_metric_names_a_tenant(running: Tenancy) -> None:
    """After calls, refusals and errors of both tenants no label names a tenant or an id."""
    for tenant in ("acme", "other"):
        session = await running.client(tenant).session("tiny", id="an-id")
        await session.step(X)
        await failure(running.client(tenant).attach("gone"))
    await failure(running.client("nobody").models())
    text = running.scrape()
    assert 'grpc_code="Unauthenticated"' in text
    assert not [word for word in ("acme", "other", "an-id", "gone") if word in text]
