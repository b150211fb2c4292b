"""What a leaving server says, and the steps it could not store: answered, counted, and in the exit
code."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from gated import gated
from lstmserve import Client
from lstmserve.v1 import lstm_pb2 as pb
from modelmaking import TINY, random_input
from refusals import in_band
from serving import Serve
from storing import Valkey
from wire import Wire, serving

X = [0.5, -1.0, 2.0]


async def says_draining(wire: Wire, sessions: list[pb.Session]) -> None:
    """Asserts that every call that steps or opens is UNAVAILABLE, with its reason and a hint."""
    steps: list[Any] = [pb.StepRequest(session_id=sessions[0].id, x=X)]
    numbered = {"step": 1, "incarnation": sessions[0].incarnation}
    steps.append(pb.StepRequest(session_id=sessions[0].id, x=X, **numbered))
    for request in steps:
        said = await wire.refused("Step", request.SerializeToString())
        assert (said.code, said.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert said.retry_s is not None
    opening = pb.OpenSessionRequest(model="m").SerializeToString()
    assert (await wire.refused("OpenSession", opening)).reason == "DRAINING"
    many = pb.StepManyRequest(session_ids=[each.id for each in sessions], x=X * len(sessions))
    for method, request in (("StepStream", steps[0]), ("StepMany", many)):
        stream = wire.stream(method)
        await stream.write(request.SerializeToString())
        reply = getattr(pb, f"{method.removesuffix('Stream')}Response").FromString(
            await stream.read()
        )
        errors = [reply.error] if reply.HasField("error") else [e.status for e in reply.errors]
        assert {in_band(error).reason for error in errors} == {"DRAINING"}
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF


@pytest.mark.parametrize("mode", ["memory", "through", "behind"])
async def test_a_leaving_server_says_so(tmp_path: Path, mode: str) -> None:
    """In every mode each call is refused by its reason, and the sessions are counted after the
    drain."""
    settings = {} if mode == "memory" else {"store_mode": mode}
    (tmp_path / "models").mkdir()
    open_server = serving(tmp_path / "models") if mode == "memory" else gated(tmp_path, **settings)
    async with open_server as opened:
        wire = opened if isinstance(opened, Wire) else opened[0]
        sessions = [await wire.open() for _ in range(3)]
        await wire.call("Step", session_id=sessions[0].id, x=X)
        await wire.engine.close(20)
        await says_draining(wire, sessions)
        assert wire.engine.end_sessions() == (3 if mode == "memory" else 0)
        counts = wire.metrics.model("m", 1)
        assert counts.closings["drained"] == 3
        assert counts.sources.total() == counts.closings.total()


@pytest.mark.parametrize("stored", [1, 3])
def test_steps_that_cannot_be_stored_fail_the_exit(
    serve: Serve, tmp_path: Path, stored: int
) -> None:
    """If the store went away, the exit code is 1, and the log counts the sessions that lost
    steps."""
    flags = ("--store-mode", "behind", "--behind-s-max", "3600", "--drain-s-max", "1")
    with Valkey(tmp_path) as valkey:
        serving = serve("--store", valkey.url, "--store-timeout-s", "0.2", *flags)
        with Client(serving.target) as client:
            sessions = [client.session("tiny", keep=True) for _ in range(3)]
            for session in sessions[: 4 - stored]:
                session.step(random_input(TINY, (2,), 0))
        valkey.signal(signal.SIGSTOP)
        assert serving.stop() == 1
        (lost,) = serving.events("steps lost: the store did not take them in time")
        assert (lost["level"], lost["sessions"]) == ("error", 4 - stored)
        (stopped,) = serving.events("stopped")
        assert stopped["sessions_lost"] == 4 - stored


def test_without_a_store_the_log_counts_what_is_gone(serve: Serve) -> None:
    """The exit code is 0, because the operator chose no store, and the log has the count."""
    serving = serve()
    with Client(serving.target) as client:
        for _ in range(2):
            client.session("tiny", keep=True)
    assert serving.stop() == 0
    (stopped,) = serving.events("stopped")
    assert stopped["sessions_lost"] == 2
