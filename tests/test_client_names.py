"""The names that a user of the library sees, one class per error, errors that say what helps."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest

import lstmserve
from lstmserve import AsyncClient, Client, client, errors
from lstmserve.client import AsyncSession, Session
from serving import Serve
from zoo import Zoo

CLIENT = [
    "attach",
    "close",
    "close_session",
    "export",
    "info",
    "model",
    "models",
    "predict",
    "session",
    "sessions",
    "step_many",
]
SESSION = [
    "close",
    "durable_step",
    "fork",
    "id",
    "incarnation",
    "info",
    "missing_rows",
    "model",
    "model_info",
    "set_state",
    "state",
    "step",
    "step_count",
    "stream",
    "version",
]


def public(thing: object) -> list[str]:
    """The names that completion offers after a dot."""
    return sorted(name for name in dir(thing) if not name.startswith("_"))


def test_the_package_shows_four_names() -> None:
    """`dir(lstmserve)` has what a user imports, whatever was imported before."""
    importlib.import_module("lstmserve.engine.errors")
    assert dir(lstmserve) == ["AsyncClient", "Client", "__version__", "errors"]
    assert lstmserve.__version__[0].isdigit()


@pytest.mark.parametrize("module", [client, errors])
def test_modules_show_what_they_offer(module: ModuleType) -> None:
    """Completion shows `__all__` and no module or import beside it."""
    assert dir(module) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in dir(module))


def test_an_error_is_one_class() -> None:
    """`except` catches an error however it was imported, and both modules have every error."""
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert kind is getattr(client, name) is getattr(lstmserve.errors, name)
        assert issubclass(kind, errors.LstmServeError)
        assert kind.__module__ == "lstmserve.errors"
    raised = {name for name, _ in inspect.getmembers(errors, inspect.isclass) if name != "Mapping"}
    assert raised - {"Any", "StatusCode"} == set(errors.__all__)


def test_completion_shows_no_internals(zoo: Zoo) -> None:
    """A client and a session offer what the library documents, on threads."""
    with Client(zoo.target) as made, made.session("tiny") as session:
        assert public(made) == public(Client) == CLIENT
        assert public(session) == SESSION
        assert public(Session) == [name for name in SESSION if name != "model_info"]


async def test_completion_shows_no_internals_on_the_loop(zoo: Zoo) -> None:
    """AsyncClient and its session show the same names as the client for threads."""
    async with AsyncClient(zoo.target) as made, made.session("tiny") as session:
        assert public(made) == public(AsyncClient) == CLIENT
        assert public(session) == SESSION
    documented = [name for name in SESSION if name != "model_info"]
    assert all(inspect.getdoc(getattr(AsyncSession, name)) for name in documented)
    assert all(inspect.getdoc(getattr(AsyncClient, name)) for name in CLIENT)


@pytest.fixture
def made(zoo: Zoo) -> Iterator[Client]:
    """A client of the zoo's server that repeats no call."""
    with Client(zoo.target, retry_s_max=0) as client:
        yield client


def test_a_taken_id_says_how_to_go_on(made: Client) -> None:
    """The server's message fits any language, and the library adds its own advice."""
    with made.session("tiny", id="taken"), pytest.raises(errors.SessionExists) as raised:
        made.session("tiny", id="taken")
    assert "if_exists RESUME" in raised.value.message
    assert 'if_exists="resume"' in str(raised.value)


def test_an_unknown_model_says_what_is_served(made: Client) -> None:
    """The error lists other models for an unknown name, and the newest version for a later one."""
    with pytest.raises(errors.ModelNotFound) as raised:
        made.session("tinny")
    assert "no model 'tinny' is served here, but both, learned, letters, projected, tiny" in str(
        raised.value
    )
    with pytest.raises(
        errors.Unavailable, match=r"'tiny:9' is not served here yet, .* version 2 at"
    ):
        made.predict("tiny", [np.zeros(3)], version=9)
    with pytest.raises(errors.ModelNotFound) as raised:
        made.model("n" * 5000)
    assert len(str(raised.value)) < 300


def test_a_lost_session_names_the_store(serve: Serve) -> None:
    """The error after a restart names the flag that would have kept the session."""
    first = serve()
    with Client(first.target, retry_s_max=0) as client:
        session = client.session("tiny")
        lost = session.id, session.incarnation
    first.stop()
    second = serve("--listen", first.target)
    with Client(second.target, retry_s_max=0) as client:
        assert lost == (session.id, session.incarnation)
        session._connection = client._connection
        session._delivery._connection = client._connection
        with pytest.raises(errors.SessionLost) as raised:
            session.step([1, 2, 3])
    assert "--store" in raised.value.message
    assert "replay_steps_max" in str(raised.value)


def test_a_bidirectional_model_says_what_it_does(made: Client) -> None:
    """The error names the call that answers whole sequences."""
    with pytest.raises(errors.ModelNotSteppable, match=r"use Predict; call predict\(\)"):
        made.session("both")
