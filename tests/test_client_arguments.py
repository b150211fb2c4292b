"""A wrong argument of a caller is a ValueError that names it, before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from lstmserve import AsyncClient, Client
from lstmserve.client import Session
from zoo import Zoo

NOWHERE = "127.0.0.1:1"
X = np.zeros(3)
NO_SECONDS = [0, -1, math.nan, "5", None, True, [1]]
NO_COUNT = [-1, 1.0, "5", math.nan, True, 2**31]
NO_ID = ["", "é", "a b", "a\nb", b"a", 5, "\ud800"]


@pytest.fixture
def client(zoo: Zoo) -> Iterator[Client]:
    """A client of the zoo's server."""
    with Client(zoo.target) as client:
        yield client


@pytest.fixture
def session(client: Client) -> Iterator[Session]:
    """A session of it."""
    with client.session("tiny") as session:
        yield session


def cases(name: str, values: list[Any], *but: object) -> list[Any]:
    """An argument with each of its wrong values."""
    return [
        pytest.param(name, value, id=f"{name}={value!r}") for value in values if value not in but
    ]


@pytest.mark.parametrize("flavour", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *cases("timeout_s", NO_SECONDS),
        *cases("retry_s_max", NO_SECONDS, 0),
        *cases("groups", [0, None, *NO_COUNT]),
        *cases("target", ["", "localhost", "host:99999", ":1", "::1:5", None, 5, b"a:1"]),
        *cases("token", ["a\nb", "é", b"a", 5]),
        *cases("tls", [None, "yes", 0]),
    ],
)
def test_of_a_client(flavour: type[Client] | type[AsyncClient], name: str, value: object) -> None:
    """The constructor refuses it, and does not show a token."""
    with pytest.raises(ValueError, match=f"^{name} ") as refused:
        flavour(**{"target": NOWHERE, name: value})
    assert name != "token" or repr(value) not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *cases("id", NO_ID),
        *cases("model", ["", None, 5, b"tiny"]),
        *cases("version", NO_COUNT),
        *cases("ttl_s", [math.inf, *NO_SECONDS], None),
        *cases("if_exists", ["x", None, 5]),
        *cases("replay_steps_max", [None, *NO_COUNT]),
        *cases("state", [5, "state", np.zeros(3)]),
    ],
)
def test_of_a_session(name: str, value: object) -> None:
    """A wrong argument of session() is refused before the server is asked, and opens nothing."""
    with (
        Client(NOWHERE, retry_s_max=0) as client,
        pytest.raises(ValueError, match=f"^{name} is .*, must be"),
    ):
        client.session(**{"model": "tiny", "id": "a", name: value})


def test_of_other_calls() -> None:
    """Other calls refuse the same wrong arguments in the same words."""
    with Client(NOWHERE, retry_s_max=0) as client:
        for call in (
            lambda: client.attach("a b"),
            lambda: client.model("tiny", version=-1),
            lambda: client.model(""),
            lambda: client.predict("tiny", [X], version=1.5),  # type: ignore[call-overload]  # the point
            lambda: client.sessions(5),  # type: ignore[arg-type]  # the point
        ):
            with pytest.raises(ValueError, match=r"^(id|version|model) is .*, must be"):
                call()


@pytest.mark.parametrize(
    ("name", "value"), [*cases("timeout_s", NO_SECONDS, None), *cases("window", [0, *NO_COUNT])]
)
def test_of_steps(session: Session, client: Client, name: str, value: Any) -> None:
    """A wrong argument makes no step, and no stream waits for ever."""
    calls: list[Callable[[], object]] = [lambda: list(session.stream([X], **{name: value}))]
    if name == "timeout_s":
        calls.append(lambda: session.step(X, timeout_s=value))
        calls.append(lambda: client.step_many({session: X}, timeout_s=value))
    for call in calls:
        with pytest.raises(ValueError, match=f"^{name} is .*, must be"):
            call()
    assert session.info().step == 0


@pytest.mark.parametrize("bad", NO_ID)
def test_of_a_fork(session: Session, bad: Any) -> None:
    """An empty id is refused, and not taken for a request to make one."""
    with pytest.raises(ValueError, match=r"^id is "):
        session.fork(bad)


@pytest.mark.parametrize("kind", [float, np.float32, np.float64, int, np.int64])
@pytest.mark.parametrize("value", [5, 1e7, 1e300, math.inf])
def test_any_number_of_seconds(zoo: Zoo, kind: Callable[[float], Any], value: float) -> None:
    """numpy's numbers are accepted, and infinity is a long time, not an expired one."""
    try:
        with np.errstate(over="ignore"):
            seconds = kind(value)
    except (OverflowError, ValueError):
        pytest.skip("no such number of that kind")
    with Client(zoo.target, timeout_s=seconds, retry_s_max=seconds) as client:
        session = client.session("tiny")
        session.step(X, timeout_s=seconds)
        client.step_many({session: X}, timeout_s=seconds)
        assert len(list(session.stream([X], timeout_s=seconds))) == 1
        session.close()


def test_of_many(session: Session, client: Client, zoo: Zoo) -> None:
    """step_many refuses two handles of one session, another client's session, and wrong types."""
    twin = client.attach(session.id)
    with pytest.raises(ValueError, match=f"^session {session.id} is there twice"):
        client.step_many({session: X, twin: X})
    with (
        Client(zoo.target) as other,
        pytest.raises(ValueError, match=f"^session {session.id} is of another client"),
    ):
        other.step_many({session: X})
    bad: Any
    for bad in (None, [(session, X)], {"id": X}, 5):
        with pytest.raises(ValueError, match=r"^step_many takes a mapping of sessions"):
            client.step_many(bad)
    assert session.info().step == 0
