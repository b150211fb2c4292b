"""Sessions over the wire: ids, lives, time, states in and out, forks, repeated requests, lists."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import StatusCode

from lstmserve.client import State
from lstmserve.engine.clock import SECOND_NS
from lstmserve.v1 import lstm_pb2 as pb
from modelmaking import make_model
from wire import SPECS, Good, Wire, arrays, serving, tensors

RESUME, RESTART = pb.IF_EXISTS_RESUME, pb.IF_EXISTS_RESTART
TTL_S = 10


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    """A server with two versions of "m"."""
    make_model(tmp_path, SPECS["m"], name="m")
    make_model(tmp_path, SPECS["m"], seed=1, name="m", version=2)
    async with serving(tmp_path) as wire:
        yield wire


async def reason(wire: Wire, method: str, **fields: object) -> str:
    """Why the call is refused."""
    request = getattr(pb, f"{method}Request")(**fields)
    return (await wire.refused(method, request.SerializeToString())).reason


async def test_ids(wire: Wire) -> None:
    """An id is the client's, with every allowed character, or the server's own, which never
    repeats."""
    own = "AZaz09._~:-" + "x" * 117
    session = await wire.open(session_id=own, version=1)
    assert session.id == own
    assert session.incarnation > 0
    assert (session.model, session.version, session.step) == ("m", 1, 0)
    made = [await wire.open() for _ in range(20)]
    assert len({each.id for each in made}) == len({each.incarnation for each in made}) == 20
    assert {each.version for each in made} == {2}, "the newest"
    assert all(len(each.id) == 32 for each in made)
    assert await reason(wire, "OpenSession", model="m", session_id=own) == "SESSION_EXISTS"


async def test_a_session_ends_when_its_time_runs_out(wire: Wire) -> None:
    """Steps renew the time and looks do not; later the id is reported as expired, and is free."""
    a = Good(wire, "m", await wire.open(version=1, ttl=Duration(seconds=TTL_S)))
    ahead_ns = TTL_S * SECOND_NS - SECOND_NS // 2
    for _ in range(3):
        wire.clock.ahead_ns += ahead_ns
        await a.step()
    session = (await wire.call("GetSession", session_id=a.id)).session
    left = session.expire_time.ToNanoseconds() - wire.clock().wall_ns
    assert (TTL_S - 5) * SECOND_NS < left <= TTL_S * SECOND_NS
    wire.clock.ahead_ns += ahead_ns
    await a.check_state()
    wire.clock.ahead_ns += SECOND_NS
    assert not (await wire.call("ListSessions")).sessions
    for method in ("Step", "GetSession", "GetState", "CloseSession"):
        assert await reason(wire, method, session_id=a.id) == "SESSION_EXPIRED"
    assert (await wire.open(version=1, session_id=a.id)).step == 0


async def test_the_default_time_is_the_servers(wire: Wire) -> None:
    """Without a ttl it is session_ttl_s, and the longest ttl is 30 days."""
    session = await wire.open()
    assert session.ttl.seconds == wire.engine.config.session_ttl_s
    longest = await wire.open(ttl=Duration(seconds=30 * 86_400))
    assert longest.ttl.seconds == 30 * 86_400
    assert longest.expire_time.seconds - longest.open_time.seconds == 30 * 86_400


async def test_what_a_taken_id_may_mean(wire: Wire) -> None:
    """Fail, resume (with its state, and no other) and restart (from zeros, with a new
    incarnation)."""
    a = Good(wire, "m", await wire.open(version=1))
    await a.step()
    taken = {"model": "m", "session_id": a.id}
    assert await reason(wire, "OpenSession", **taken) == "SESSION_EXISTS"
    resumed = await wire.call("OpenSession", if_exists=RESUME, **taken)
    assert not resumed.created
    assert resumed.session.incarnation == a.session.incarnation
    assert (resumed.session.step, resumed.session.version) == (1, 1)
    await a.step()
    other = {**taken, "if_exists": RESUME, "version": 2}
    assert await reason(wire, "OpenSession", **other) == "MODEL_MISMATCH"
    restarted = await wire.call("OpenSession", if_exists=RESTART, version=1, **taken)
    assert restarted.created
    assert restarted.session.incarnation > a.session.incarnation
    old = {"session_id": a.id, "incarnation": a.session.incarnation}
    assert await reason(wire, "Step", **old) == "SESSION_REPLACED"
    again = Good(wire, "m", restarted.session)
    await again.step()
    await again.check_state()
    for if_exists in (RESUME, RESTART):
        assert (await wire.call("OpenSession", model="m", if_exists=if_exists)).created


async def test_a_state_goes_out_and_in_bit_for_bit(wire: Wire) -> None:
    """An imported state counts on from its step, steps on exactly, and is exported unchanged."""
    a = Good(wire, "m", await wire.open(version=1))
    await a.step(7)
    state = (await wire.call("GetState", session_id=a.id)).state
    assert state.crc32c
    session = await wire.open(version=1, state=state)
    assert session.step == 1
    assert (await wire.call("GetState", session_id=session.id)).state == state
    b = Good(wire, "m", session)
    b.xs = list(a.xs)
    await b.step()
    await b.check_state()
    await a.step()
    bare = pb.State(tensors=reversed(state.tensors))  # their order means nothing
    plain = await wire.open(version=1, session_id=a.id, if_exists=RESTART, state=bare)
    assert plain.step == 0
    back = (await wire.call("GetState", session_id=a.id)).state
    assert back.tensors == state.tensors
    mismatch = {"model": "m", "version": 2, "state": state}
    assert await reason(wire, "OpenSession", **mismatch) == "MODEL_MISMATCH"


async def test_a_later_release_s_state_is_not_called_damaged(wire: Wire) -> None:
    """A state with fields that this release does not know is refused as a later release's."""
    a = Good(wire, "m", await wire.open(version=1))
    state = (await wire.call("GetState", session_id=a.id)).state
    later = pb.State(step=state.step, crc32c=7, fingerprint=state.fingerprint)
    later.MergeFromString(bytes([15 << 3 | 2, 2, 1, 1]))  # field 15, of two bytes
    within = pb.State(tensors=state.tensors)
    within.tensors[1].MergeFromString(bytes([15 << 3, 1]))
    for each in (later, within):
        request = pb.OpenSessionRequest(model="m", version=1, state=each)
        said = await wire.refused("OpenSession", request.SerializeToString())
        assert (said.reason, said.fields) == ("MALFORMED", ["state"])
        assert "a later one exported it" in said.message
    with pytest.raises(ValueError, match="a later release"):
        State.from_bytes(later.SerializeToString(), model=None)  # type: ignore[arg-type]  # refused before it is looked at


async def test_extreme_states(wire: Wire) -> None:
    """The largest floats are kept, and denormals become zero, because they cost 25 times the
    time."""
    h = np.full((2, 8), np.finfo(np.float32).max, np.float32)
    c = np.full((2, 8), np.finfo(np.float32).tiny, np.float32)
    c[0, :2] /= (2, -4)
    h[0, 0] *= -1
    session = await wire.open(version=1, state=pb.State(tensors=tensors(h=h, c=c), step=2**52 - 1))
    state = (await wire.call("GetState", session_id=session.id)).state
    found = arrays(state.tensors)
    assert np.array_equal(found["h"], h)
    c[0, :2] = 0
    assert np.array_equal(found["c"], c)
    assert state.step == 2**52 - 1
    response = await wire.call("Step", session_id=session.id, x=[3.4e38, -3.4e38, 1e-45])
    assert response.step == 2**52
    assert np.isfinite(response.y).all()


async def test_a_fork_goes_its_own_way(wire: Wire) -> None:
    """A fork has its source's state and number, and then the two are independent."""
    a = Good(wire, "m", await wire.open(version=1))
    await a.step(3)
    b = Good(wire, "m", await wire.open(version=1, fork_of=a.id))
    assert b.session.step == 1
    b.xs = list(a.xs)
    for each in (b, b, a):
        await each.step(2)
    await a.check_state()
    await b.check_state()
    rewound = await wire.open(version=1, session_id=b.id, fork_of=a.id, if_exists=RESTART)
    assert rewound.step == 2
    unstepped = await wire.open(version=1, fork_of=(await wire.open(version=1)).id)
    assert unstepped.step == 0


async def test_a_repeated_request_opens_once(wire: Wire) -> None:
    """The same request_id gives the same session until it is closed, and another one opens another
    session."""
    first, second = [await wire.call("OpenSession", model="m", request_id="r1") for _ in range(2)]
    assert first.session.id == second.session.id
    assert first.session.incarnation == second.session.incarnation
    assert second.created
    other = await wire.call("OpenSession", model="m", request_id="r2")
    assert other.session.id != first.session.id
    await wire.call("CloseSession", session_id=first.session.id)
    assert await reason(wire, "OpenSession", model="m", request_id="r1") == "SESSION_CLOSED"
    wire.clock.ahead_ns += 601 * SECOND_NS
    assert (await wire.call("OpenSession", model="m", request_id="r1")).created


async def test_closing_twice_is_fine(wire: Wire) -> None:
    """Close returns the last step, also the second time, and later calls get SESSION_CLOSED."""
    a = Good(wire, "m", await wire.open(version=1))
    await a.step()
    for incarnation in (0, a.session.incarnation, 0):
        closed = await wire.call("CloseSession", session_id=a.id, incarnation=incarnation)
        assert closed.step == 1
    said = await wire.refused("Step", a.request().SerializeToString())
    assert (said.code, said.reason) == (StatusCode.FAILED_PRECONDITION, "SESSION_CLOSED")
    assert await reason(wire, "CloseSession", session_id=a.id, incarnation=7) == "SESSION_LOST"
