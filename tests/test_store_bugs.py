"""What a bug or an extreme number does when a step is stored: an honest error, and the server goes
on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from grpc import StatusCode

from gated import gated
from lstmserve.server.native.sessions import STEP_MAX
from lstmserve.v1 import lstm_pb2 as pb
from wire import tensors

X = [0.5, -1.0, 2.0]
STATE = pb.State(tensors=tensors(h=np.zeros((2, 8)), c=np.zeros((2, 8))))


@pytest.mark.parametrize("mode", ["through", "behind"])
async def test_the_largest_step_number_can_be_stepped_from(tmp_path: Path, mode: str) -> None:
    """The largest number that an import may have is stored and goes on, and the next one is
    refused."""
    async with gated(tmp_path, store_mode=mode) as (wire, _):
        for step in (STEP_MAX, 2**53 - 1, 2**53, 2**63 - 1, -1, -(2**63)):
            state = pb.State(tensors=STATE.tensors, step=step)
            request = pb.OpenSessionRequest(model="m", state=state)
            said = await wire.refused("OpenSession", request.SerializeToString())
            assert (said.code, said.reason) == (StatusCode.INVALID_ARGUMENT, "MALFORMED")
            assert said.fields == ["state.step"]
            assert str(STEP_MAX) in said.message
        state = pb.State(tensors=STATE.tensors, step=STEP_MAX - 1)
        session = await wire.open(state=state)
        for number in (STEP_MAX, STEP_MAX + 1):
            reply = await wire.call(
                "Step",
                session_id=session.id,
                incarnation=session.incarnation,
                step=number,
                x=X,
            )
            assert reply.step == number
        assert not wire.running.done()


async def test_a_write_that_raised_is_unknown(tmp_path: Path) -> None:
    """After a bug the step may be stored, so the copy here is dropped."""
    async with gated(tmp_path) as (wire, gate):
        session = await wire.open()
        step = pb.StepRequest(
            session_id=session.id, incarnation=session.incarnation, step=1, x=X
        ).SerializeToString()
        with gate.losing(lambda: RuntimeError("a bug")):
            said = await wire.refused("Step", step)
        assert (said.code, said.reason) == (StatusCode.UNAVAILABLE, "STORE_TIMEOUT")
        reply = pb.StepResponse.FromString(await wire.send("Step", step))
        assert (reply.step, reply.replayed, reply.durable_step) == (1, True, 1)
        version = await gate.version(session.id)
        assert (version.incarnation, version.step) == (session.incarnation, 1)
        assert version.epoch > 0  # it was loaded again
