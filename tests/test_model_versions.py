"""Versions that are not served: not yet, not any more, or never; in requests and stored sessions.

During a rolling update some servers have the new version and some do not, and a router leads to
both.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from click.testing import CliRunner

from lstmserve import Client
from lstmserve.cli import commands
from lstmserve.client.retries import is_transient
from lstmserve.errors import LstmServeError, Unavailable
from lstmserve.kserve.v2 import inference_pb2 as triton_pb
from lstmserve.store import open_store
from lstmserve.v1 import lstm_pb2 as pb
from modelmaking import TINY, make_model, random_input
from refusals import refusal
from serving import Serve
from wire import SPECS, Wire, serving

NOT_YET, RETIRED, UNKNOWN = "MODEL_NOT_HERE_YET", "MODEL_RETIRED", "MODEL_NOT_FOUND"
X = [0.5, -1.0, 2.0]
TRITON = "/inference.GRPCInferenceService/"


async def reason(wire: Wire, method: str, **fields: Any) -> str:
    """Why the call is refused; "" when it is not."""
    request = getattr(pb, f"{method}Request")(**fields)
    return (await wire.refused(method, request.SerializeToString())).reason


def versions(folder: Path, *numbers: int) -> Path:
    """A new folder with model n in these versions."""
    models = folder / f"of-{'-'.join(map(str, numbers))}"
    models.mkdir()
    for number in numbers:
        make_model(models, SPECS["m"], seed=number, name="n", version=number)
    return models


@contextlib.asynccontextmanager
async def stored(folder: Path, *numbers: int) -> AsyncIterator[Wire]:
    """A server with these versions, on the one store."""
    store = open_store(f"file:{folder / 'store'}", timeout_s=20)
    assert store is not None
    try:
        async with serving(versions(folder, *numbers), store=store) as wire:
            yield wire
    finally:
        await store.close()


async def test_requests_that_name_a_version(tmp_path: Path) -> None:
    """A version above the newest is not here yet, which a client repeats, and any other one is
    retired."""
    async with serving(versions(tmp_path, 2, 4)) as wire:
        for version, expected in ((5, NOT_YET), (1, RETIRED), (3, RETIRED), (-1, UNKNOWN)):
            asked: dict[str, Any] = {"model": "n", "version": version}
            assert await reason(wire, "OpenSession", **asked) == expected
            assert await reason(wire, "OpenSession", **asked, fork_of="a") == expected
            assert await reason(wire, "OpenSession", **asked, state=pb.State(step=1)) == expected
            assert await reason(wire, "Predict", **asked, x=X) == expected
            assert await reason(wire, "GetModel", **asked) == expected
        assert await reason(wire, "GetModel", model="o", version=5) == UNKNOWN
        said = await wire.refused(
            "GetModel", pb.GetModelRequest(model="n", version=5).SerializeToString()
        )
        assert said.retry_s == 1.0


async def test_triton_requests_that_name_a_version(tmp_path: Path) -> None:
    """ModelReady is false for all versions that are not here, and the others say why."""
    async with serving(versions(tmp_path, 2, 4)) as wire:
        for version, expected in (("5", NOT_YET), ("1", RETIRED)):
            ready = wire.channel.unary_unary(f"{TRITON}ModelReady")
            request = triton_pb.ModelReadyRequest(name="n", version=version)
            reply = triton_pb.ModelReadyResponse.FromString(
                await ready(request.SerializeToString())
            )
            assert not reply.ready
            infer = wire.channel.unary_unary(f"{TRITON}ModelInfer")
            asked = triton_pb.ModelInferRequest(model_name="n", model_version=version)
            with pytest.raises(grpc.aio.AioRpcError, match="is not served") as refused:
                await infer(asked.SerializeToString())
            assert refusal(refused.value).reason == expected


def flat(state: pb.State) -> pb.State:
    """The state with [size] for every shape: a record of format 1 does not say the model's."""
    found = pb.State()
    found.CopyFrom(state)
    for tensor in found.tensors:
        tensor.shape[:] = [math.prod(tensor.shape)]
    return found


@pytest.mark.parametrize(
    ("served", "expected"), [((2,), NOT_YET), ((), NOT_YET), ((4,), RETIRED), ((1, 4), RETIRED)]
)
async def test_a_stored_session_s_version(
    tmp_path: Path, served: tuple[int, ...], expected: str
) -> None:
    """If version 3 is not served, a step of its session is refused with the reason, a look shows
    what the store has, and the session goes on where version 3 is served again."""
    async with stored(tmp_path, 2, 3) as wire:
        session = await wire.open("n", version=3)
        asked = {"session_id": session.id}
        own = {**asked, "incarnation": session.incarnation}
        await wire.call("Step", **own, step=1, x=X)
        state = (await wire.call("GetState", **own)).state
    async with stored(tmp_path, *served) as wire:
        assert await reason(wire, "Step", **own, step=2, x=X) == expected
        assert await reason(wire, "GetState", **own) == expected
        resume = {**asked, "model": "n", "if_exists": pb.IF_EXISTS_RESUME}
        assert await reason(wire, "OpenSession", **resume) == expected
        assert await reason(wire, "OpenSession", model="m", fork_of=session.id) == expected
        seen = (await wire.call("GetSession", **asked)).session
        assert (seen.model, seen.version, seen.step, seen.durable_step) == ("n", 3, 1, 1)
        assert seen.open_time == session.open_time
        assert flat((await wire.call("GetState", **asked)).state) == flat(state)
        assert len(wire.engine.table) == 0
    async with stored(tmp_path, 3) as wire:
        assert (await wire.call("GetState", **own)).state == state
        assert (await wire.call("Step", **own, step=2, x=X)).step == 2


@pytest.mark.parametrize("served", [(2,), (), (4,)])
async def test_a_stored_session_is_closed_whatever_is_served(
    tmp_path: Path, served: tuple[int, ...]
) -> None:
    """A stored session can be closed, or replaced by a RESTART, if its model has another
    version."""
    async with stored(tmp_path, 3) as wire:
        first, second = [await wire.open("n", version=3) for _ in range(2)]
    async with stored(tmp_path, *served) as wire:
        for _ in range(2):
            await wire.call("CloseSession", session_id=first.id)
        assert await reason(wire, "GetSession", session_id=first.id) == "SESSION_CLOSED"
        if served:
            restart = {"session_id": second.id, "if_exists": pb.IF_EXISTS_RESTART}
            assert (await wire.open("n", **restart)).version == served[0]


def test_the_client_repeats_what_is_not_here_yet(serve: Serve) -> None:
    """It is UNAVAILABLE with a delay, so the client tries again, and a version that is gone is
    not."""
    with Client(serve().target, retry_s_max=0) as client:
        with pytest.raises(Unavailable, match="not served here yet") as refused:
            client.session("tiny", version=2)
        assert refused.value.reason == NOT_YET
        assert is_transient(refused.value)
        assert refused.value.retry_delay_s == 1.0
        assert refused.value.applied is False


def lstmserve(*arguments: str | Path) -> str:
    """The output of the command, which must succeed."""
    done = CliRunner().invoke(commands, [str(each) for each in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("name", ["other", "tiny"])
def test_the_command_line_ends_what_no_model_serves(
    serve: Serve, tmp_path: Path, name: str
) -> None:
    """`sessions get`, `export` and `close` work on a stored session whose model was removed, or
    replaced by another version or other weights."""
    store = f"file:{tmp_path / 'store'}"
    old = serve("--store", store)
    with Client(old.target) as client:
        session = client.session("tiny", id="a", keep=True)
        session.step(random_input(TINY, (2,), 0))
        kept = session.state().to_bytes()
    assert old.stop() == 0
    make_model(tmp_path / "models", TINY, seed=9, name=name)
    target = ("--target", serve("--store", store, models=tmp_path / "models").target)
    assert "model          tiny\n" in lstmserve("sessions", "get", "a", *target)
    lstmserve("sessions", "export", "a", tmp_path / "state", *target)
    assert (tmp_path / "state").read_bytes() == kept
    for _ in range(2):
        lstmserve("sessions", "close", "a", *target)
    with Client(target[1]) as client, pytest.raises(LstmServeError, match="closed"):
        client.info("a")
