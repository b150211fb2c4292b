"""What the first edition wrote is read for ever: its models, stores and states go on, number by
number."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from lstmserve import Client
from lstmserve.client import State
from lstmserve.client.status import from_rpc
from lstmserve.errors import LstmServeError
from lstmserve.kserve.v2 import inference_pb2 as kserve
from lstmserve.tokens import make_token
from lstmserve.v1 import lstm_pb2 as pb
from serving import Serve, Serving
from storing import Valkey

FIXTURES = Path(__file__).parent / "fixtures" / "edition1"
SESSIONS: dict[str, list[dict[str, Any]]] = json.loads((FIXTURES / "sessions.json").read_text())
TOLERANCE = 1e-6
OPEN = "/lstmserve.v1.LstmService/OpenSession"
REPLY_BYTES_MAX = ("--reply-bytes-max", "64")  # as when the fixtures were made


@pytest.fixture(params=["file", "valkey"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A copy of a store: its kind, and its URL."""
    if request.param == "file":
        shutil.copytree(FIXTURES / "file", tmp_path / "store")
        yield "file", f"file:{tmp_path / 'store'}"
        return
    shutil.copy(FIXTURES / "valkey.rdb", tmp_path / "dump.rdb")
    with Valkey(tmp_path) as server:
        yield "valkey", server.url


class Caller:
    """Speaks the contract's messages to a server."""

    def __init__(self, serving: Serving, token: str | None) -> None:
        self._channel = grpc.insecure_channel(serving.target)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, path: str, request: Any, response: Any) -> Any:
        """The response. Raises LstmServeError."""
        rpc = self._channel.unary_unary(path, type(request).SerializeToString, response.FromString)
        try:
            return rpc(request, timeout=30, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc(error) from None

    def step(self, session: dict[str, Any], number: int, x: list[list[float]]) -> Any:
        """y [T, 2] of a numbered step."""
        request = pb.StepRequest(
            session_id=session["id"],
            incarnation=session["incarnation"],
            step=number,
            length=len(x),
            x=np.ravel(x),
        )
        reply = self.call("/lstmserve.v1.LstmService/Step", request, pb.StepResponse)
        assert reply.step == number
        return np.reshape(reply.y, (-1, 2)), reply.replayed

    def infer(self, session: dict[str, Any], x: list[list[float]]) -> Any:
        """y [T, 2] of one more request of a Triton sequence."""
        request = kserve.ModelInferRequest(model_name="net")
        request.parameters["sequence_id"].int64_param = session["sequence"]
        request.inputs.add(name="x", datatype="FP32", shape=[len(x), 3])
        request.raw_input_contents.append(np.array(x, "<f4").tobytes())
        path = "/inference.GRPCInferenceService/ModelInfer"
        reply = self.call(path, request, kserve.ModelInferResponse)
        return np.frombuffer(reply.raw_output_contents[0], "<f4").reshape(-1, 2)


def check_last(caller: Caller, session: dict[str, Any]) -> None:
    """Asserts that a repeat of the last step gets the answer of the first edition."""
    last = session["last"]
    if last["reply"] == "saved":
        y, is_replayed = caller.step(session, session["step"], last["x"])
        assert is_replayed
        assert np.array_equal(y, np.array(last["y"], np.float32))
        other = [[value + 1 for value in row] for row in last["x"]]
        with pytest.raises(LstmServeError) as caught:
            caller.step(session, session["step"], other)
        assert caught.value.reason == "STEP_PAYLOAD_MISMATCH"
    else:
        with pytest.raises(LstmServeError) as caught:
            caller.step(session, session["step"], last["x"])
        assert caught.value.reason == "STEP_SUPERSEDED"


def go_on(caller: Caller, session: dict[str, Any]) -> None:
    """Asserts that the next steps give what they gave then."""
    for number, step in enumerate(session["next"], session["step"] + 1):
        if "sequence" in session:
            y = caller.infer(session, step["x"])
        else:
            y, _ = caller.step(session, number, step["x"])
        np.testing.assert_allclose(y, step["y"], rtol=0, atol=TOLERANCE)


def test_every_session_goes_on(store: tuple[str, str], serve: Serve, tmp_path: Path) -> None:
    """Each stored session answers its last step again, and its next steps give what they gave
    then."""
    kind, url = store
    token, line = make_token("acme")
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{line}\n")
    flags = ("--store", url, *REPLY_BYTES_MAX)
    reached = []
    for is_tenants, more, secret in (
        (False, (), None),
        (True, ("--tokens", str(tokens)), token),
    ):
        serving = serve(*flags, *more, models=FIXTURES / "models")
        with Caller(serving, secret) as caller:
            for session in SESSIONS[kind]:
                if ("tenant" in session) is is_tenants:
                    if "last" in session:
                        check_last(caller, session)
                    go_on(caller, session)
                    reached.append(session["kind"])
        assert serving.metric("lstm_sessions_opened_total", source="new") == 0
        assert serving.stop() == 0
    assert sorted(reached) == sorted(each["kind"] for each in SESSIONS[kind])
    assert len(reached) == 10


def test_a_client_finds_its_session(store: tuple[str, str], serve: Serve) -> None:
    """The client library attaches to a stored session, forks it, and both step on."""
    kind, url = store
    saved = next(each for each in SESSIONS[kind] if each["kind"] == "rows")
    serving = serve("--store", url, models=FIXTURES / "models")
    with Client(serving.target) as client:
        session = client.attach("rows")
        assert (session.incarnation, session.step_count) == (saved["incarnation"], saved["step"])
        fork = session.fork()
        for step in saved["next"]:
            for each in (session, fork):
                y = each.step(np.array(step["x"], np.float32))
                np.testing.assert_allclose(y, step["y"], rtol=0, atol=TOLERANCE)


def test_an_exported_state_is_imported(serve: Serve) -> None:
    """A state that the first edition's command wrote opens a session, which steps on."""
    rows = next(each for each in SESSIONS["file"] if each["kind"] == "rows")
    serving = serve(models=FIXTURES / "models")
    with Client(serving.target) as client:
        content = (FIXTURES / "rows.state").read_bytes()
        state = State.from_bytes(content, client.model("net"))
        assert state.step == rows["step"]
        with client.session("net", state=state) as session:
            for step in rows["next"]:
                y = session.step(np.array(step["x"], np.float32))
                np.testing.assert_allclose(y, step["y"], rtol=0, atol=TOLERANCE)
        before = pb.State.FromString(content)
    with Caller(serving, None) as caller:
        request = pb.OpenSessionRequest(model="net", state=before)
        with pytest.raises(LstmServeError, match="with the Python client of this") as caught:
            caller.call(OPEN, request, pb.OpenSessionResponse)
        assert caught.value.reason == "MALFORMED"
    assert (
        before.fingerprint
        == json.loads((FIXTURES / "models" / "net" / "1" / "manifest.json").read_text())[
            "fingerprint"
        ]
    )


@pytest.mark.parametrize("has_model", [True, False])
def test_a_stored_state_moves(store: tuple[str, str], serve: Serve, has_model: bool) -> None:
    """A server with the model knows the shapes that the first edition did not store, one without it
    does not; what either exports is imported where the model is, and steps on."""
    kind, url = store
    saved = next(each for each in SESSIONS[kind] if each["kind"] == "rows")
    flags = {"models": FIXTURES / "models"}
    serving = serve("--store", url, **(flags if has_model else {}))
    with Caller(serving, None) as caller:
        request = pb.GetStateRequest(session_id=saved["id"])
        path = "/lstmserve.v1.LstmService/GetState"
        state = caller.call(path, request, pb.GetStateResponse).state
    found = {each.name: list(each.shape) for each in state.tensors}
    shape = [2, 8] if has_model else [16]
    assert found == {"h": shape, "c": shape}
    with Caller(serve(**flags), None) as caller:
        opening = pb.OpenSessionRequest(model="net", state=state)
        opened = caller.call(OPEN, opening, pb.OpenSessionResponse).session
        go_on(caller, {**saved, "id": opened.id, "incarnation": opened.incarnation})


def test_the_fixtures_are_what_they_were() -> None:
    """No fixture file has changed since the first edition wrote it."""
    lines = (FIXTURES / "SHA256SUMS").read_text().splitlines()
    wanted = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    ours = ("README.md", "make.py", "SHA256SUMS")
    found = {
        str(path.relative_to(FIXTURES)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in FIXTURES.rglob("*.*")
        if path.is_file() and path.name not in ours and "__pycache__" not in path.parts
    }
    assert found == wanted
