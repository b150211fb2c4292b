"""Models with a window behind a store: kill -9 before and after the window is full, repeats from
the record, forks, other servers, RESUME, and sessions that make room for others.

Every reply and every state has the bits of a plain onnxruntime session on the rows of one window
(tests/windowed.py).
"""

from __future__ import annotations

import signal
from pathlib import Path

import grpc
import numpy as np
import pytest

from lstmserve import Client
from lstmserve.config import Config
from lstmserve.engine.model import slots_for
from lstmserve.v1 import lstm_pb2 as pb
from refusals import refusal
from serving import Serve, Serving
from test_networks_wire import Caller, store
from windowed import SPECS, Talk, W, WindowOracle, make_models, random_rows

__all__ = ["store"]  # a fixture

LENGTHS = [[1, 2], [1], [3]]  # of the steps between kills; the window is full within the last


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with two windowed models."""
    folder = tmp_path_factory.mktemp("windows")
    make_models(folder, "wait", "net")
    return folder


def open_talk(caller: Caller, folder: Path, name: str, seed: int = 0, **fields: object) -> Talk:
    """A new session."""
    session = caller.call("OpenSession", model=name, **fields).session
    return Talk(WindowOracle(folder, name), name, session, seed)


def until_stored(caller: Caller, talks: list[Talk]) -> None:
    """Returns once the store has the last step of each session."""
    for talk in talks:
        while caller.call("GetSession", session_id=talk.id).session.durable_step < talk.step:
            pass


def kill(serving: Serving) -> None:
    """Kills the server by kill -9."""
    serving.signal(signal.SIGKILL)
    serving.wait()


def test_a_killed_server_loses_no_row_of_a_window(
    store: tuple[str, ...], serve: Serve, folder: Path
) -> None:
    """After each kill -9 the last step is answered again from its record, with as many rows and as
    many missing, and the next step goes on with the window as it was."""
    talks: list[Talk] = []
    for lengths in LENGTHS:
        server = serve(*store, "--slice-rows-max", str(2 * W), models=folder)
        with Caller(server) as caller:
            if not talks:
                talks = [open_talk(caller, folder, each) for each in ("wait", "net")]
            else:
                for talk in talks:
                    again = caller.call("Step", talk.again())
                    assert again.replayed
                    talk.check(again)
            for talk in talks:
                for length in lengths:
                    talk.check(caller.call("Step", talk.request(length)))
                talk.check_state(caller.call("GetState", session_id=talk.id).state)
            until_stored(caller, talks)
        kill(server)
    with Caller(serve(*store, models=folder)) as caller:
        for i, talk in enumerate(talks):
            fields = {"session_id": talk.id, "incarnation": talk.incarnation}
            talk.check_state(caller.call("GetState", **fields).state)
            fork = open_talk(caller, folder, talk.name, 10 + i, fork_of=talk.id)
            fork.past, fork.ends = talk.past, [len(talk.past)]
            for each in (talk, fork):
                each.check(caller.call("Step", each.request(2)))


def test_a_stored_window_is_shown_where_its_model_is_not(
    serve: Serve, folder: Path, models: Path, tmp_path: Path
) -> None:
    """GetState of a stored session needs no model, and its rows open a session at a server without
    the store."""
    flags = ("--store", f"file:{tmp_path / 'store'}")
    server = serve(*flags, models=folder)
    with Caller(server) as caller:
        talk = open_talk(caller, folder, "net")
        talk.check(caller.call("Step", talk.request(W - 1)))
    kill(server)
    with Caller(serve(*flags)) as caller:
        state = caller.call("GetState", session_id=talk.id).state
        talk.check_state(state)
        with pytest.raises(grpc.RpcError) as caught:
            caller.call("Step", session_id=talk.id, x=[0.5] * 7, tokens=[1])
        assert refusal(caught.value).reason == "MODEL_NOT_HERE_YET"
    with Caller(serve(models=folder)) as caller:
        other = open_talk(caller, folder, "net", 1, state=state)
        other.past, other.ends = talk.past, [len(talk.past)]
        other.check(caller.call("Step", other.request(1)))


def test_a_session_is_resumed_after_a_restart(serve: Serve, folder: Path, tmp_path: Path) -> None:
    """RESUME finds a window that is not full, over the wire and by the client; RESTART empties
    it."""
    flags = ("--store", f"file:{tmp_path / 'store'}", "--store-mode", "behind")
    server = serve(*flags, models=folder)
    with Caller(server) as caller:
        talk = open_talk(caller, folder, "wait", session_id="a")
        talk.check(caller.call("Step", talk.request(W - 2)))
    assert server.stop() == 0
    server = serve(*flags, models=folder)
    with Caller(server) as caller:
        fields = {"model": "wait", "session_id": "a", "if_exists": pb.IF_EXISTS_RESUME}
        opened = caller.call("OpenSession", **fields)
        assert (opened.created, opened.session.step) == (False, 1)
        talk.incarnation = opened.session.incarnation
        talk.check(caller.call("Step", talk.request(1)))
    with Client(server.target) as client:
        session = client.session("wait", id="a", if_exists="resume", keep=True)
        assert session.missing_rows is None
        row = random_rows("wait", np.random.default_rng(9), 1)
        talk.past = np.concatenate([talk.past, row])
        wanted = talk.oracle.run(talk.past, len(talk.past) - 1)
        assert session.step(row[0]).tobytes() == wanted.y[0].tobytes()
        assert session.missing_rows == 0
        empty = client.session("wait", id="a", if_exists="restart")
        assert empty.missing_rows == W
        assert empty.step(row[0]) is None
        assert empty.missing_rows == W - 1


@pytest.mark.parametrize("mode", ["through", "behind"])
def test_windows_that_move_out_come_back(serve: Serve, tmp_path: Path, mode: str) -> None:
    """In a pool of four sessions, those that were idle longest move to the store with a part of a
    window, and come back with it."""
    make_models(tmp_path / "models", "wait")
    config = Config(batch_sessions_max=8, batches_in_flight_max=1)
    pool_bytes = slots_for(4, config, W) * SPECS["wait"].state_bytes
    server = serve(
        *("--store", f"file:{tmp_path / 'store'}", "--store-mode", mode),
        *("--pool-bytes", str(pool_bytes), "--batch-sessions-max", "8"),
        *("--batches-in-flight-max", "1"),
        models=tmp_path / "models",
    )
    with Caller(server) as caller:
        talks = [open_talk(caller, tmp_path / "models", "wait", i) for i in range(10)]
        for _ in range(W + 1):
            for talk in talks:
                talk.check(caller.call("Step", talk.request(1)))
        for talk in talks:
            talk.check_state(caller.call("GetState", session_id=talk.id).state)
    assert server.metric("lstm_sessions_opened_total", source="load") >= 10
