"""Imported files behind stores: kill -9, rollbacks, and sessions that make room for others.

Integers, bools and floats of every rank come back from a record with the bits of plain onnxruntime
on the file itself, also where a run takes one session.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from imported import FILES, Arrays, Imports, Talk, imports
from lstmserve import Client
from lstmserve.config import Config
from lstmserve.engine.model import slots_for
from lstmserve.errors import Overloaded
from serving import Serve, Serving
from test_networks_wire import store

__all__ = ["imports", "store"]  # fixtures

ROOM = 4  # sessions in a small pool
SMALL = ("--batch-sessions-max", "8", "--batches-in-flight-max", "1")


def kill(serving: Serving) -> None:
    """Kills the server by kill -9."""
    serving.signal(signal.SIGKILL)
    serving.wait()


def test_killed_servers_lose_no_state(
    store: tuple[str, ...], serve: Serve, imports: Imports
) -> None:
    """Each server finds the sessions of every file as the one before it left them, and steps them;
    forks go on beside them."""
    models, files = imports
    pasts: dict[str, Arrays | None] = dict.fromkeys(FILES)
    for life, length in enumerate((1, 6)):
        serving = serve(*store, "--slice-rows-max", "4", models=models)
        with Client(serving.target) as client:
            talks = []
            for name in FILES:
                session = client.session(name, id=name, if_exists="resume", keep=True)
                talks.append(Talk(files[name], session, life, pasts[name]))
                assert session.step_count == life
            for talk in talks:
                talk.check_state()
                talk.step(length)
                pasts[talk.served.name] = talk.states
                while talk.session.info().durable_step < life + 1:
                    pass
        kill(serving)
    with Client(serve(*store, models=models).target) as client:
        for name in FILES:
            session = client.session(name, id=name, if_exists="resume")
            for each in (session, session.fork()):
                talk = Talk(files[name], each, 9, pasts[name])
                talk.check_state()
                talk.step(3)


def test_what_was_taken_back_is_resumed(serve: Serve, imports: Imports, tmp_path: Path) -> None:
    """A crash takes back what a server that writes behind had not stored: RESUME goes on from a
    step that the session had, with the bits of that step."""
    models, files = imports
    flags = ("--store", f"file:{tmp_path / 'store'}", "--store-mode", "behind")
    serving = serve(*flags, "--behind-s-max", "0.05", models=models)
    pasts: dict[str, list[Arrays | None]] = {name: [None] for name in FILES}
    with Client(serving.target) as client:
        talks = [Talk(files[n], client.session(n, id=n, keep=True)) for n in FILES]
        while any(talk.session.durable_step == 0 for talk in talks):
            for talk in talks:
                talk.step(0)
                pasts[talk.served.name].append(talk.states)
        kill(serving)
    with Client(serve(*flags, models=models).target) as client:
        for name in FILES:
            session = client.session(name, id=name, if_exists="resume")
            assert 0 < session.step_count < len(pasts[name])
            talk = Talk(files[name], session, 5, pasts[name][session.step_count])
            talk.check_state()
            talk.step(4)
            talk.check_state()


@pytest.mark.parametrize("name", FILES)
def test_the_pool_counts_every_byte_of_a_session(
    serve: Serve, imports: Imports, tmp_path: Path, name: str
) -> None:
    """--pool-bytes has room for as many sessions as the bytes of all states allow, and for no more
    without a store; with one, those that were idle longest move out and come back."""
    served = imports[1][name]
    config = Config(batch_sessions_max=8, batches_in_flight_max=1)
    pool = slots_for(ROOM, config, 1) * sum(each.bytes for each in served.spec.states)
    models = tmp_path / "models"
    models.mkdir()
    (models / name).symlink_to(imports[0] / name)
    flags = (*SMALL, "--pool-bytes", str(pool))
    with Client(serve(*flags, models=models).target, retry_s_max=0) as client:
        for _ in range(ROOM):
            Talk(served, client.session(name)).step(0)
        with pytest.raises(Overloaded) as refused:
            client.session(name)
        assert refused.value.reason == "SESSION_LIMIT"
    stored = serve(*flags, "--store", f"file:{tmp_path / 'store'}", models=models)
    with Client(stored.target) as client:
        talks = [Talk(served, client.session(name, keep=True), i) for i in range(10)]
        for _ in range(3):
            for talk in talks:
                talk.step(0)
        for talk in talks:
            talk.check_state()
    assert stored.metric("lstm_sessions_opened_total", source="load") >= 10
