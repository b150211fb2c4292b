"""What a router can read of a call: the session or its group, and the token."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from lstmserve import AsyncClient, Client
from lstmserve.client import DeadlineExceeded, StepManyFailed, protocol
from router import Router
from zoo import Zoo

X = [1.0, 2.0, 3.0]


def test_every_call_names_its_session(router: Router) -> None:
    """Calls about one session carry its id, and streams, which many sessions share, their group."""
    with Client(router.target) as client:
        client.models()
        client.predict("tiny", [X], version=2)
        session = client.session("tiny")
        assert router.keys() == [
            ("ListModels", None),
            ("GetModel", None),
            ("Predict", None),
            ("OpenSession", session.id),
        ]
        session.step(X)
        session.info()
        session.state()
        fork = session.fork()
        assert router.keys() == [
            ("Step", session.id),
            ("GetSession", session.id),
            ("GetState", session.id),
            ("OpenSession", fork.id),
        ]
        group = protocol.group(session.id)
        for _ in range(2):
            client.step_many({session: X, fork: X})
        assert list(session.stream([X]))
        assert router.keys() == [("StepMany", group), ("StepStream", group)]
        for each in (session, fork):
            each.close()
        assert router.keys() == [("CloseSession", session.id), ("CloseSession", fork.id)]


class Hanging(Router):
    """Holds back the messages of one group until `is_over`."""

    def __init__(self, target: str, group: str) -> None:
        super().__init__(target)
        self._group = group
        self.is_over = threading.Event()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Holds back messages of the group, and forwards the others."""
        key = dict(details.invocation_metadata).get("x-session-id")
        if key != self._group or self.is_over.is_set():
            return super().service(details)
        return grpc.stream_stream_rpc_method_handler(lambda *_: self._hang())

    def _hang(self) -> Iterator[bytes]:
        self.is_over.wait()
        yield from ()


def test_a_deadline_bounds_a_hanging_group(zoo: Zoo) -> None:
    """step_many returns what the other groups answered, and the held step counts once in the
    end."""
    router = Hanging(zoo.target, "h")
    try:
        with Client(router.target) as client:
            bad, good = (client.session("tiny", id=name) for name in ("h:1", "i:1"))
            with pytest.raises(StepManyFailed) as failed:
                client.step_many({bad: X, good: X}, timeout_s=0.5)
            assert set(failed.value.results) == {good}
            assert isinstance(failed.value.errors[bad], DeadlineExceeded)
            assert (bad.step_count, good.step_count) == (0, 1)
            router.is_over.set()
            assert set(client.step_many({bad: X, good: X})) == {bad, good}
            assert (bad.step_count, good.step_count) == (1, 2)
            for each in (bad, good):
                each.close()
    finally:
        router.is_over.set()
        router.stop()


def test_groups_are_spread(router: Router) -> None:
    """New ids take each group in turn, and step_many opens one stream for each group."""
    with Client(router.target, groups=3) as client:
        sessions = [client.session("tiny") for _ in range(9)]
        groups = [protocol.group(session.id) for session in sessions]
        assert len(set(groups)) == 3
        assert groups == groups[:3] * 3
        router.keys()
        client.step_many(dict.fromkeys(sessions, X))
        assert sorted(router.keys()) == sorted(("StepMany", group) for group in groups[:3])
        for session in sessions:
            session.close()


def test_an_id_without_a_group_travels_alone(router: Router) -> None:
    """In step_many an id without a group is a Step of its own, as its server may have no other."""
    with Client(router.target) as client:
        one, two = client.session("tiny", id="one"), client.session("tiny", id="two")
        router.keys()
        client.step_many({one: X, two: X})
        assert sorted(router.keys()) == [("Step", "one"), ("Step", "two")]
        one.close()
        two.close()


def test_what_the_group_of_an_id_is() -> None:
    """The group is the part before the first colon, unless that is empty: Envoy's rule in the
    contract."""
    assert [protocol.group(each) for each in ("a", "a:b", "a:b:c", ":b", "a:")] == [
        "a",
        "a",
        "a",
        ":b",
        "a",
    ]
    assert (
        protocol.group(protocol.sibling_id("a"))
        == protocol.group(protocol.sibling_id("a:b"))
        == "a"
    )


async def test_the_token_goes_with_every_call(router: Router) -> None:
    """Both clients send it as a bearer token, on streams too, and nothing without a token."""
    with Client(router.target, token="secret") as client, client.session("tiny") as session:
        assert list(session.stream([X]))
    async with (
        AsyncClient(router.target, token="secret") as aio_client,
        aio_client.session("tiny") as aio_session,
    ):
        await aio_client.step_many({aio_session: X})
    assert {metadata["authorization"] for _, metadata in router.calls} == {"Bearer secret"}
    router.calls.clear()
    with Client(router.target) as client:
        client.models()
    assert "authorization" not in router.calls[0][1]
