"""Messages of ModelStreamInfer that arrive together, without gRPC: each has its own outcome."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from calling import Sender
from lstmserve.engine import Engine, Model
from lstmserve.engine.clock import Now
from lstmserve.engine.errors import Quota, StepGap, StoreUnavailable
from lstmserve.engine.scheduling.work import Request
from lstmserve.head_layers import Linear
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.access.auth import AnonymousAuthenticator
from lstmserve.server.kserve.infer import InferCalls
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.spec import LstmSpec
from lstmserve.tokens import Limits
from modelmaking import random_input
from traffic import start_engine

SPEC = LstmSpec(3, 8, 2, head=(Linear(2),))
UINT64_MAX = (1 << 64) - 1


class Port:
    """The calls of one port, whose engine runs."""

    def __init__(self, folder: Path) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.engine: Engine = start_engine(folder, SPEC, 3, self.metrics)
        self.pending = PendingBytes(1 << 30)
        self.engine.add_check(self.pending.check_integrity)
        self.tenant = AnonymousAuthenticator(Limits()).tenant(None)  # type: ignore[arg-type]  # anyone
        self.calls = InferCalls(self.engine, self.metrics, self.pending)
        self.running = asyncio.create_task(self.engine.run())

    async def arrive(
        self, *messages: pb.ModelInferRequest, ends_at_error: bool = False
    ) -> list[pb.ModelStreamInferResponse]:
        """The replies to a stream of messages that arrive together. Raises the error that ends
        it."""
        sender = Sender([("triton_grpc_error", "true")] if ends_at_error else [])
        sent = [message.SerializeToString() for message in messages]
        stream = asyncio.ensure_future(sender.run(self.calls.begin, self.tenant, sent))
        await asyncio.wait({stream, self.running}, return_when=asyncio.FIRST_COMPLETED)
        if self.running.done():
            stream.cancel()
            self.running.result()  # raises the error that ended the engine
        await stream
        return [pb.ModelStreamInferResponse.FromString(reply) for reply in sender.replies]


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[Port]:
    """A port whose engine is consistent and holds nothing at the end."""
    port = Port(tmp_path)
    yield port
    await port.engine.close(5)
    await port.running
    port.engine.check_integrity()
    assert port.pending.held == port.tenant.pending_steps == 0


def infer(sequence: int, **parameters: Any) -> pb.ModelInferRequest:
    """A step of one row; the type of a parameter's value sets its kind."""
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype="FP32", shape=(1, 3))
    message.raw_input_contents.append(random_input(SPEC, (1, 1), sequence).tobytes())
    message.parameters["sequence_id"].int64_param = sequence
    for name, value in parameters.items():
        kind = "bool_param" if isinstance(value, bool) else "uint64_param"
        setattr(message.parameters[name], kind, value)
    return message


async def begun(port: Port, count: int) -> range:
    """Begins `count` sequences with one step each."""
    sequences = range(1, count + 1)
    for reply in await port.arrive(*(infer(each, sequence_start=True) for each in sequences)):
        assert not reply.error_message
    return sequences


@pytest.mark.parametrize(
    ("parameter", "text"),
    [("timeout", ""), ("step", f"step is {UINT64_MAX}"), ("incarnation", "incarnation")],
)
async def test_numbers_that_no_column_holds(port: Port, parameter: str, text: str) -> None:
    """Messages with the largest number that a parameter may have are each answered, however many
    come at once."""
    messages = [infer(each, **{parameter: UINT64_MAX}) for each in await begun(port, 6)]
    for reply in await port.arrive(*messages):
        assert bool(reply.error_message) == bool(text)
        assert text in reply.error_message


async def test_a_sequence_does_not_end_between_two_of_its_steps(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sequence that is alive for the first of the steps that arrive together is alive for all."""
    await begun(port, 1)
    times = itertools.count(int(port.engine.table.expiry_ns[0]) - 1)
    monkeypatch.setattr(port.engine, "clock", lambda: Now(next(times), 0))
    replies = await port.arrive(infer(1), infer(1), infer(1))
    numbers = [reply.infer_response.parameters["step"].int64_param for reply in replies]
    assert numbers == [2, 3, 4]


@pytest.mark.parametrize("count", [2, 6])
@pytest.mark.parametrize("where", ["limits", "store", "engine"])
async def test_a_stream_that_ends_by_an_error_takes_its_others_along(
    port: Port, monkeypatch: pytest.MonkeyPatch, count: int, where: str
) -> None:
    """If the first of several steps is refused and the stream ends, the others are not run."""
    messages = [*map(infer, await begun(port, count))]
    accept = port.engine.accept

    def check_step(*_: Any) -> None:
        port.tenant.is_limited = False  # for the others
        raise Quota("too many rows", retry_s=1.0)

    def accept_others(model: Model, request: Request) -> None:
        if request.rows[0] == 0:
            raise StoreUnavailable("its step before is in doubt", retry_s=1.0)
        accept(model, request)

    if where == "limits":
        port.tenant.is_limited = True
        monkeypatch.setattr(port.tenant, "check_step", check_step)
    elif where == "store":
        monkeypatch.setattr(port.engine, "accept", accept_others)
    else:
        messages[0] = infer(1, step=9)
    with pytest.raises((Quota, StoreUnavailable, StepGap)):
        await port.arrive(*messages, ends_at_error=True)
    await port.engine.close(5)  # the pending steps run before
    assert port.engine.table.step[:count].tolist() == [1] * count
