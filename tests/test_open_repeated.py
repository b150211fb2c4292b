"""An OpenSession whose reply was lost and that is sent again opens one session, on any server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from redis import Redis

from gated import gated
from lossy import LossyRouter
from lstmserve import AsyncClient, Client
from lstmserve.client import Session
from lstmserve.client.status import from_rpc
from lstmserve.errors import LstmServeError
from lstmserve.v1 import lstm_pb2 as pb
from modelmaking import TINY, make_model, random_input
from router import Router
from serving import Serve, Serving
from storing import Valkey
from traffic import Oracle
from wire import Good, serving, tensors

RESUME, RESTART = pb.IF_EXISTS_RESUME, pb.IF_EXISTS_RESTART
OPEN = "/lstmserve.v1.LstmService/OpenSession"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the models tiny:1, tiny:2 and other:1."""
    models = tmp_path / "models"
    make_model(models)
    make_model(models, seed=1, version=2)
    make_model(models, seed=2, name="other")
    return models


@pytest.fixture(params=["file", "valkey"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a store."""
    if request.param == "file":
        yield f"file:{tmp_path / 'store'}"
        return
    with Valkey(tmp_path) as server:
        yield server.url


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey of this test's own."""
    with Valkey(tmp_path) as server:
        yield server


def call(serving: Serving, method: str, request: Any) -> Any:
    """The response. Raises LstmServeError."""
    response = getattr(pb, type(request).__name__.replace("Request", "Response"))
    with grpc.insecure_channel(serving.target) as channel:
        rpc = channel.unary_unary(
            f"/lstmserve.v1.LstmService/{method}",
            type(request).SerializeToString,
            response.FromString,
        )
        try:
            return rpc(request, timeout=30)
        except grpc.RpcError as error:
            raise from_rpc(error) from None


def step(serving: Serving, session: pb.Session, number: int) -> Any:
    """y [2] of a numbered step, whose x depends on its number alone."""
    x = random_input(TINY, (), number)
    request = pb.StepRequest(
        session_id=session.id, incarnation=session.incarnation, step=number, x=x
    )
    return np.array(call(serving, "Step", request).y, np.float32)


def opening(request_id: str, **fields: Any) -> pb.OpenSessionRequest:
    """A request that opens a session of tiny:1."""
    return pb.OpenSessionRequest(model="tiny", version=1, request_id=request_id, **fields)


STATE = pb.State(tensors=tensors(h=[[0.5] * 5] * 2, c=[[0.25] * 5] * 2), step=9)
TAKEN = opening("q1", session_id="a")
OPENINGS = (
    TAKEN,
    opening("q2"),
    opening("q3", session_id="b", fork_of="source"),
    opening("q4", fork_of="source"),
    opening("q5", session_id="c", if_exists=RESUME),
    opening("q6", session_id="d", if_exists=RESTART),
    opening("q7", session_id="other-source", if_exists=RESTART),
    opening("q8", session_id="e", state=STATE),
)


def identity(session: pb.Session) -> tuple[Any, ...]:
    """The fields of a session that never change."""
    return session.id, session.incarnation, session.model, session.version


def test_after_kill_9_the_repeat_finds_its_session(store: str, serve: Serve, folder: Path) -> None:
    """After kill -9 the next server answers the repeated request with the dead one's session,
    however it was opened; the session steps on, and a later repeat takes nothing back."""
    one = serve("--store", store, models=folder)
    sources = [
        call(one, "OpenSession", opening("", session_id=name)).session
        for name in ("source", "other-source")
    ]
    for number in (1, 2):
        for source in sources:
            step(one, source, number)
    first = [call(one, "OpenSession", request) for request in OPENINGS]
    assert all(each.created for each in first)
    one.kill()
    two = serve("--store", store, models=folder)
    again = [call(two, "OpenSession", request) for request in OPENINGS]
    assert all(each.created for each in again)
    assert [identity(e.session) for e in again] == [identity(e.session) for e in first]
    assert [each.session.step for each in again] == [0, 0, 2, 2, 0, 0, 0, 9]
    ys = [step(two, each.session, each.session.step + 1) for each in again]
    two.kill()
    three = serve("--store", store, models=folder)
    late = [call(three, "OpenSession", request).session for request in OPENINGS]
    assert [identity(each) for each in late] == [identity(each.session) for each in first]
    assert [each.step for each in late] == [1, 1, 3, 3, 1, 1, 1, 10]
    for session, y in zip(late, ys, strict=True):
        assert np.array_equal(step(three, session, session.step), y)
    listed = call(three, "ListSessions", pb.ListSessionsRequest()).sessions
    assert {each.id for each in listed} == {each.id for each in late}, "no other was opened"


def test_another_request_still_meets_a_taken_id(store: str, serve: Serve, folder: Path) -> None:
    """An id that another request opened is SESSION_EXISTS, before and after a kill."""
    others = [opening(request_id, session_id="a") for request_id in ("q9", "")]
    one = serve("--store", store, models=folder)
    call(one, "OpenSession", TAKEN)
    refuse(one, *others)
    one.kill()
    refuse(serve("--store", store, models=folder), *others)


def refuse(serving: Serving, *requests: pb.OpenSessionRequest) -> None:
    """Asserts that the id is taken."""
    for request in requests:
        with pytest.raises(LstmServeError) as refused:
            call(serving, "OpenSession", request)
        assert refused.value.reason == "SESSION_EXISTS"


CHANGES: tuple[dict[str, Any], ...] = (
    {"model": "other"},
    {"version": 2},
    {"session_id": "b"},
    {"fork_of": "a"},
    {"if_exists": RESUME},
    {"state": STATE},
)


@pytest.mark.parametrize("has_store", [False, True])
def test_a_request_id_of_another_request_is_refused(
    has_store: bool, serve: Serve, folder: Path, tmp_path: Path
) -> None:
    """A request_id of another request opens nothing, and does not return the other's session."""
    flags = ("--store", f"file:{tmp_path / 'store'}") if has_store else ()
    one = serve(*flags, models=folder)
    first = call(one, "OpenSession", TAKEN)
    others = []
    for change in CHANGES:
        others.append(pb.OpenSessionRequest.FromString(TAKEN.SerializeToString()))
        others[-1].MergeFrom(pb.OpenSessionRequest(**change))
        refuse_reuse(one, others[-1])
    again = call(one, "OpenSession", TAKEN)
    assert again.session.incarnation == first.session.incarnation
    assert len(call(one, "ListSessions", pb.ListSessionsRequest()).sessions) == 1
    if has_store:  # the next server learns from the record
        one.kill()
        two = serve(*flags, models=folder)
        for other in others[:2]:
            refuse_reuse(two, other)


def refuse_reuse(serving: Serving, request: pb.OpenSessionRequest) -> None:
    """Asserts that its request_id is refused as another request's."""
    with pytest.raises(LstmServeError) as refused:
        call(serving, "OpenSession", request)
    assert refused.value.reason == "MALFORMED"
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "this request_id was that of another OpenSession" in str(refused.value)


async def test_two_servers_at_once_open_one_session(tmp_path: Path) -> None:
    """The same request on two servers at once returns the session that the store has, and it steps
    on the server that opened it last."""
    request = pb.OpenSessionRequest(model="m", version=1, session_id="a", request_id="q1")
    async with (
        gated(tmp_path) as (one, gate),
        serving(tmp_path / "models", store=gate) as two,
    ):
        with gate.held():
            calls = [asyncio.ensure_future(w.call("OpenSession", request)) for w in (one, two)]
            await one.until(lambda: len(gate.puts) == 2)
        opened = [await each for each in calls]
        assert all(each.created for each in opened)
        assert len({each.session.incarnation for each in opened}) == 1
        last = Good(two, "m", (await two.call("OpenSession", request)).session)
        await last.step()
        assert len({write.key for writes in gate.puts for write in writes}) == 1


class Crashing(Router):
    """Kills its server before each reply to an OpenSession, and goes on with the next server."""

    def __init__(self, start: Callable[[], Serving]) -> None:
        self._start, self._serving = start, start()
        self._lock = threading.Lock()
        self.crashes = 0
        super().__init__(self._serving.target)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Lets every second OpenSession be answered."""
        if details.method != OPEN:
            return super().service(details)

        def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
            with self._lock:
                reply: bytes = self._channel.unary_unary(OPEN)(request)
                self._is_even = not getattr(self, "_is_even", False)
                if self._is_even:
                    self.crashes += 1
                    self._channel.close()
                    self._serving.kill()
                    self._serving = self._start()
                    self._channel = grpc.insecure_channel(self._serving.target)
                    context.abort(grpc.StatusCode.UNAVAILABLE, "the reply was lost")
                return reply

        return grpc.unary_unary_rpc_method_handler(handle)


@pytest.fixture
def crashing(store: str, serve: Serve, folder: Path) -> Iterator[Crashing]:
    """A router before servers of one store."""
    router = Crashing(lambda: serve("--store", store, models=folder))
    yield router
    router.stop()


def test_the_client_s_opens_survive_a_crash(crashing: Crashing, folder: Path) -> None:
    """When the server dies with the reply, session(), session(id=), fork(), fork(id) and
    set_state() return the session that was asked for, and leave no other."""
    rows = [random_input(TINY, (2,), n) for n in range(3)]
    oracle = Oracle(folder / "tiny" / "1", TINY)
    with Client(crashing.target, timeout_s=60) as client:
        made: list[Session] = [client.session("tiny", version=1)]
        made.append(client.session("tiny", version=1, id="mine"))
        for session in made:
            session.step(rows[0])
        made += [made[1].fork(), made[1].fork("fork")]
        y, _, _ = oracle.run(np.concatenate(rows[:2]))
        for session in made:
            assert np.array_equal(session.step(rows[1]), y[2:])
        made[0].set_state(made[0].state())
        y, _, _ = oracle.run(np.concatenate(rows))
        for session in made:
            assert np.array_equal(session.step(rows[2]), y[4:])
        assert {each.id for each in client.sessions()} >= {made[0].id}
        for session in made:
            session.close()
    assert crashing.crashes == 5


async def test_the_async_client_s_fork_survives_a_crash(crashing: Crashing) -> None:
    """A fork by AsyncClient survives a crash in the same way."""
    async with AsyncClient(crashing.target, timeout_s=60) as client:
        session = await client.session("tiny", id="mine")
        await session.step(random_input(TINY, (), 1))
        fork = await session.fork("fork")
        assert fork.step_count == 1
        await fork.step(random_input(TINY, (), 2))
    assert crashing.crashes == 2


class Wandering(LossyRouter):
    """Loses messages, and sends each call to one of two servers at random."""

    def __init__(self, targets: tuple[str, str], seed: int) -> None:
        super().__init__(targets[0], seed)
        self._channels = [self._channel, grpc.insecure_channel(targets[1])]

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Forwards the call, most times."""
        with self._lock:
            self._channel = self._channels[int(self._rng.integers(2))]
            return super().service(details)

    def stop(self) -> None:
        """Ends it."""
        super().stop()
        for channel in self._channels:
            channel.close()


def test_a_lossy_way_to_two_servers(valkey: Valkey, serve: Serve, folder: Path) -> None:
    """Sessions and forks of a client whose calls are lost and wander between two servers are never
    refused as existing, step on exactly, and none is left over."""
    servers = [serve("--store", valkey.url, models=folder) for _ in range(2)]
    router = Wandering((servers[0].target, servers[1].target), seed=7)
    rows = [random_input(TINY, (2,), n) for n in range(2)]
    y, _, _ = Oracle(folder / "tiny" / "1", TINY).run(np.concatenate(rows))
    try:
        with Client(router.target, timeout_s=1, retry_s_max=60) as client:
            for n in range(12):
                session = client.session("tiny", version=1, id=f"s{n}", keep=True)
                assert np.array_equal(session.step(rows[0]), y[:2])
                fork = session.fork(f"f{n}")
                for each in (session, fork):
                    assert np.array_equal(each.step(rows[1]), y[2:])
    finally:
        router.stop()
    print(router.fates)
    assert router.fates.total() > 80
    with Redis.from_url(valkey.url) as redis:
        assert len(redis.keys("s:*")) == 24
