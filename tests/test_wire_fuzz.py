"""Hostile bytes on every method of a real server process: documented answers, and no harm."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.status_pb2 import Status
from hypothesis import HealthCheck, Phase, given, settings

import stepgraph
from hostilewire import CALLS, OPENED, SERVICE, STREAMS
from lstmserve.reasons import REASONS
from lstmserve.v1 import lstm_pb2 as pb
from lstmserve.v1.lstm_pb2_grpc import LstmServiceStub
from modelmaking import make_model
from refusals import Refusal, in_band, leaks, refusal
from serving import COMMAND, Serving
from traffic import Oracle
from wire import SPECS

DEADLINE_S = 20
STEPS_MAX = 25
SHORT, LONG = 500, 100_000


class Target:
    """A server process under fire, and a good session beside it."""

    def __init__(self, folder: Path) -> None:
        for name, spec in SPECS.items():
            make_model(folder, spec, name=name)
        stepgraph.make_model(folder, name="net")
        self.folder = folder
        self.serving = Serving(("--models", folder), COMMAND)
        self.channel = grpc.insecure_channel(self.serving.target)
        self.stub = LstmServiceStub(self.channel)
        self.oracle = Oracle(folder / "m" / "1", SPECS["m"])
        self.id = ""
        self.xs: list[Any] = []

    def fire(self, method: str, contents: list[bytes]) -> None:
        """Sends the messages, and asserts that every answer is one of the contract's."""
        path = f"/{SERVICE.full_name}/{method}"
        if method in STREAMS:
            call = self.channel.stream_stream(path)(iter(contents), timeout=DEADLINE_S)
            replies = [getattr(pb, KINDS[method]).FromString(content) for content in call]
            assert len(replies) == len(contents)
            for status in (each for reply in replies for each in statuses(reply)):
                self.check(in_band(status))
            return
        try:
            self.channel.unary_unary(path)(contents[0], timeout=DEADLINE_S)
        except grpc.RpcError as error:
            self.check(refusal(error))

    def check(self, said: Refusal) -> None:
        """Asserts that the reason is documented, is no bug of ours, and has its code, and that
        nothing leaks."""
        assert said.reason != "INTERNAL"
        assert said.code is REASONS[said.reason].code
        leaks(said, self.folder)

    def open_targets(self) -> None:
        """Opens the sessions that hostile messages name, since fire may close or replace them."""
        for name, model in OPENED.items():
            close = pb.CloseSessionRequest(session_id=name)
            with contextlib.suppress(grpc.RpcError):
                self.stub.CloseSession(close, timeout=DEADLINE_S)
            request = pb.OpenSessionRequest(model=model, session_id=name)
            self.stub.OpenSession(request, timeout=DEADLINE_S)

    def step(self) -> None:
        """Makes the good session's next step, which must be exact."""
        if len(self.xs) % STEPS_MAX == 0:
            self.open_targets()
            if self.id:
                self.stub.CloseSession(pb.CloseSessionRequest(session_id=self.id))
            self.id = self.stub.OpenSession(pb.OpenSessionRequest(model="m")).session.id
            self.xs.clear()
        self.xs.append(np.random.default_rng(len(self.xs)).standard_normal((2, 3), np.float32))
        request = pb.StepRequest(session_id=self.id, length=2, x=self.xs[-1].reshape(-1))
        reply = self.stub.Step(request, timeout=DEADLINE_S)
        wanted = self.oracle.run(np.concatenate(self.xs))[0][-2:]
        assert np.array_equal(np.array(reply.y, np.float32).reshape(wanted.shape), wanted)


KINDS = {"StepStream": "StepResponse", "StepMany": "StepManyResponse"}


def statuses(reply: Any) -> Iterator[Status]:
    """All errors in a stream's reply."""
    if reply.HasField("error"):
        yield reply.error
    yield from (each.status for each in getattr(reply, "errors", ()))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """One process for all calls, which it must survive."""
    target = Target(tmp_path_factory.mktemp("fuzz"))
    yield target
    target.channel.close()
    assert target.serving.stop() == 0
    assert target.serving.noise == []
    assert [line for line in target.serving.log if line["level"] not in ("info", "debug")] == []


def shoot(target: Target, examples: int) -> None:
    """Makes `examples` calls, each followed by a good step."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        print_blob=True,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(CALLS)
    def call(shot: tuple[str, list[bytes]]) -> None:
        target.fire(*shot)
        target.step()

    call()


def test_hostile_calls(target: Target) -> None:
    """Whatever is sent, the answer is documented, and a good session steps on exactly."""
    shoot(target, SHORT)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_hostile_calls(target: Target) -> None:
    """Many more calls get documented answers."""
    shoot(target, LONG)
