"""A store that lacks acknowledged steps: no step without a number goes on from its state."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from gated import Gate
from lstmserve import AsyncClient, errors
from lstmserve.client.status import from_status
from lstmserve.engine.errors import StateRolledBack, StoreTimeout
from lstmserve.server.status import to_status
from lstmserve.store import Store, Write, decode, open_store, version_of
from lstmserve.v1 import lstm_pb2 as pb
from refusals import in_band
from wire import Good, Wire, serving

RESUME, RESTART = pb.IF_EXISTS_RESUME, pb.IF_EXISTS_RESTART
BEHIND = {"store_mode": "behind", "behind_s_max": 3600}
THROUGH = {"store_mode": "through"}
FORMAT_1 = {"store_format": 1}
SMALL = {
    "pool_bytes": 51 * 128 * 3,
    "batch_sessions_max": 4,
    "batches_in_flight_max": 1,
    "long_steps_max": 1,
    "slice_rows_max": 8,
}
ROLLED_BACK = "STATE_ROLLED_BACK"
ACKED = 7
PIPELINED = 10


@contextlib.asynccontextmanager
async def fleet(folder: Path, *each: dict[str, Any]) -> AsyncIterator[tuple[list[Wire], Store]]:
    """Servers in this process with these settings, and the store that they share."""
    store = open_store(f"file:{folder / 'store'}", timeout_s=20)
    assert store is not None
    models = folder / "models"
    models.mkdir()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        wires = [
            await stack.enter_async_context(serving(models, store=store, **settings))
            for settings in each
        ]
        yield wires, store


async def left_behind(wire: Wire, name: str = "a") -> Good:
    """A session whose server has ACKED steps, of which the store has only 1 and 2."""
    good = Good(wire, "m", await wire.open(session_id=name))
    for number in range(ACKED):
        await good.step()
        if number == 1:
            await wire.engine._stage.flush()
    return good


async def reason_of(wire: Wire, request: pb.StepRequest) -> tuple[str, dict[str, str]]:
    """Why a Step is refused."""
    said = await wire.refused("Step", request.SerializeToString())
    return said.reason, said.metadata


def unnumbered(name: str = "a", **fields: Any) -> pb.StepRequest:
    """A step without a number."""
    return pb.StepRequest(session_id=name, x=[0.5, 0.25, 0.125], **fields)


async def streamed(wire: Wire, requests: Sequence[pb.StepRequest]) -> list[pb.StepResponse]:
    """The replies to steps that are all sent before the first reply is read."""
    call = wire.stream("StepStream")
    for request in requests:
        await call.write(request.SerializeToString())
    await call.done_writing()
    return [pb.StepResponse.FromString(content) async for content in call]


async def many(wire: Wire, **fields: Any) -> pb.StepManyResponse:
    """The reply to one message of StepMany."""
    call = wire.stream("StepMany")
    await call.write(pb.StepManyRequest(**fields).SerializeToString())
    await call.done_writing()
    (content,) = [content async for content in call]
    return pb.StepManyResponse.FromString(content)


async def step_of(wire: Wire, name: str = "a") -> int:
    """The session's last step."""
    found: pb.Session = (await wire.call("GetSession", session_id=name)).session
    return int(found.step)


async def test_every_unnumbered_step_is_refused(tmp_path: Path) -> None:
    """Every call refuses them, alone and pipelined, with and without incarnation, and applies
    none."""
    async with fleet(tmp_path, BEHIND, BEHIND) as ((first, second), _):
        good = await left_behind(first)
        incarnation = good.session.incarnation
        for request in (unnumbered(), unnumbered(incarnation=incarnation), unnumbered()):
            assert await reason_of(second, request) == (ROLLED_BACK, {"step": "2"})
        replies = await streamed(second, [unnumbered()] * PIPELINED)
        refusals = [in_band(reply.error) for reply in replies]
        assert [each.reason for each in refusals] == [ROLLED_BACK] * PIPELINED
        assert {each.code for each in refusals} == {grpc.StatusCode.FAILED_PRECONDITION}
        other = await second.open(session_id="b")
        told = await many(second, session_ids=["a", other.id], lengths=[1, 1], x=[0.5] * 6)
        assert [each.index for each in told.errors] == [0]
        assert in_band(told.errors[0].status).reason == ROLLED_BACK
        assert list(told.steps) == [0, 1]
        alone = await many(second, session_ids=["a"], lengths=[1], x=[0.5] * 3)
        assert in_band(alone.errors[0].status).metadata == {"step": "2"}
        assert await step_of(second) == 2


async def test_numbered_steps_go_on_as_they_are(tmp_path: Path) -> None:
    """With the same incarnation a gap, the last step again and the next step are answered, and then
    others run."""
    async with fleet(tmp_path, BEHIND, BEHIND) as ((first, second), _):
        good = await left_behind(first)
        named = {"incarnation": good.session.incarnation}
        gap = await reason_of(second, unnumbered(step=ACKED + 1, **named))
        assert gap == ("STEP_GAP", {"expected_step": "3"})
        assert (await reason_of(second, unnumbered()))[0] == ROLLED_BACK
        good.wire = second
        del good.xs[2:]
        await second.call("Step", good.request(step=3, **named))
        await good.step()
        await good.check_state()


async def test_numbered_columns_are_heard(tmp_path: Path) -> None:
    """StepMany with numbers goes on, and after it unnumbered steps of its sessions do, too."""
    async with fleet(tmp_path, BEHIND, BEHIND) as ((first, second), _):
        goods = [await left_behind(first, name) for name in "ab"]
        fields = {"session_ids": ["a", "b"], "lengths": [1, 1], "x": [0.5] * 6}
        incarnations = [each.session.incarnation for each in goods]
        told = await many(second, steps=[8, 3], incarnations=incarnations, **fields)
        assert list(told.steps) == [8, 3]
        assert list((await many(second, **fields)).steps) == [9, 4]


@pytest.mark.parametrize("if_exists", [RESUME, RESTART])
async def test_who_opens_it_again_goes_on(tmp_path: Path, if_exists: int) -> None:
    """The session goes on from what is left, or from zeros, and a repeated RESUME changes
    nothing."""
    async with fleet(tmp_path, BEHIND, BEHIND) as ((first, second), _):
        good = await left_behind(first)
        assert (await reason_of(second, unnumbered()))[0] == ROLLED_BACK
        opening = pb.OpenSessionRequest(model="m", session_id="a", if_exists=if_exists)
        opened = await second.call("OpenSession", opening)
        assert opened.created == (if_exists == RESTART)
        kept = 2 if if_exists == RESUME else 0
        assert opened.session.step == kept
        if if_exists == RESUME:
            again = await second.call("OpenSession", opening)
            assert again.session.incarnation == opened.session.incarnation
        good.wire, good.session = second, opened.session
        del good.xs[kept:]
        await good.step()
        await good.check_state()


async def test_who_was_told_elsewhere_is_not_answered_from_what_was_taken_back(
    tmp_path: Path,
) -> None:
    """If a session moved without a drain, and its client resumed it and took other steps under the
    same numbers, the first server goes on from those, and not from its own."""
    async with fleet(tmp_path, BEHIND, BEHIND) as ((first, second), _):
        good = await left_behind(first)
        old = good.session.incarnation
        gap = await reason_of(second, unnumbered(step=ACKED + 1, incarnation=old))
        assert gap[0] == "STEP_GAP"
        opening = pb.OpenSessionRequest(model="m", session_id="a", if_exists=RESUME)
        new = (await second.call("OpenSession", opening)).session.incarnation
        good.wire = second
        del good.xs[2:]
        rng = np.random.default_rng(99)
        for number in range(3, ACKED + 1):  # as many steps as the first server has
            request = good.request(step=number, incarnation=new)
            x = rng.standard_normal(3, np.float32)
            good.xs[-1] = x.reshape(1, 3)
            del request.x[:]
            request.x.extend(x.tolist())
            await second.call("Step", request)
        await second.engine._stage.flush()
        good.wire = first
        reply = await first.call("Step", good.request(step=ACKED + 1, incarnation=new))
        good.check(reply.y)
        assert (await reason_of(first, unnumbered(incarnation=old)))[0] == "SESSION_REPLACED"


async def test_whom_it_left_unnoticed_is_told_when_it_knows(tmp_path: Path) -> None:
    """A suspect copy whose session has moved on refuses nothing before it has asked the store."""
    async with fleet(tmp_path, BEHIND, BEHIND, BEHIND) as ((first, second, third), _):
        await left_behind(first)
        assert (await reason_of(second, unnumbered()))[0] == ROLLED_BACK
        opening = pb.OpenSessionRequest(model="m", session_id="a", if_exists=RESTART)
        await third.call("OpenSession", opening)
        await third.call("Step", unnumbered())
        await third.engine._stage.drain(5)
        assert (await second.call("Step", unnumbered())).step == 2


async def test_what_a_drain_hands_over_goes_on(tmp_path: Path) -> None:
    """Sessions with stored and with unstored steps are released, and a suspect one is not, because
    its client has not got the error."""
    async with fleet(tmp_path, BEHIND, BEHIND, BEHIND) as ((first, second, third), store):
        await left_behind(first, "suspect")
        assert (await reason_of(second, unnumbered("suspect")))[0] == ROLLED_BACK
        clean, dirty = [Good(second, "m", await second.open(session_id=n)) for n in ("b", "c")]
        await clean.step()
        await second.engine._stage.flush()
        await dirty.step()
        await second.engine._stage.drain(5)
        contents = await store.load(["/b", "/c", "/suspect"])
        assert [decode(content or b"").released for content in contents] == [True, True, False]
        for good in (clean, dirty):
            good.wire = third
            await good.step()
        assert (await reason_of(third, unnumbered("suspect")))[0] == ROLLED_BACK
        (content,) = await store.load(["/b"])
        assert decode(content or b"").released is False


@pytest.mark.parametrize("more", [{}, FORMAT_1])
async def test_what_moved_out_comes_back(tmp_path: Path, more: dict[str, Any]) -> None:
    """Sessions that made room for others go on on the same server, whatever its records say."""
    async with fleet(tmp_path, BEHIND | SMALL | more) as ((wire,), _):
        fits = wire.engine.model("m", 1).sessions_max
        goods = [Good(wire, "m", await wire.open()) for _ in range(fits)]
        for each in goods:
            await each.step()
        await wire.engine._stage.flush()
        late = [Good(wire, "m", await wire.open()) for _ in range(fits)]
        for each in [*late, *goods]:
            await each.step()


async def test_what_moved_out_goes_on_elsewhere(tmp_path: Path) -> None:
    """A session's record is released when it moves out."""
    async with fleet(tmp_path, BEHIND | SMALL, BEHIND) as ((first, second), _):
        fits = first.engine.model("m", 1).sessions_max
        goods = [Good(first, "m", await first.open()) for _ in range(fits)]
        for each in goods:
            await each.step()
        await first.engine._stage.flush()
        for _ in range(fits):
            await first.open()
        await first.engine._stage.flush()
        for each in goods:
            each.wire = second
            await each.step()


@pytest.mark.parametrize(
    ("writer", "reader", "is_suspect"),
    [
        (BEHIND, THROUGH, True),
        (BEHIND | FORMAT_1, BEHIND, True),
        (BEHIND | FORMAT_1, THROUGH, False),  # no record says how it was written
        (THROUGH, THROUGH, False),
        (THROUGH, BEHIND, True),  # nor here
    ],
)
async def test_modes_and_formats(
    tmp_path: Path, writer: dict[str, Any], reader: dict[str, Any], is_suspect: bool
) -> None:
    """A record that does not say it is treated as its reader writes its own."""
    async with fleet(tmp_path, writer, reader) as ((first, second), store):
        await left_behind(first)
        if not is_suspect:
            assert (await second.call("Step", unnumbered())).step == await step_of(second)
            return
        assert (await reason_of(second, unnumbered()))[0] == ROLLED_BACK
        (content,) = await store.load(["/a"])
        assert decode(content or b"").released is False


async def test_a_store_that_went_back(tmp_path: Path) -> None:
    """A write-through server whose store has fewer steps than it wrote refuses unnumbered steps,
    though the record says nothing, and also if the session had moved out before."""
    async with fleet(tmp_path, THROUGH) as ((wire,), store):
        good = Good(wire, "m", await wire.open(session_id="a"))
        await good.step()
        (older,) = await store.load(["/a"])
        await good.step()
        await good.step()
        await put_back(store, "/a", older)
        assert (await reason_of(wire, unnumbered()))[0] == "FENCED"
        assert await reason_of(wire, unnumbered()) == (ROLLED_BACK, {"step": "1"})
        assert await reason_of(wire, unnumbered()) == (ROLLED_BACK, {"step": "1"})
        opening = pb.OpenSessionRequest(model="m", session_id="a", if_exists=RESUME)
        await wire.call("OpenSession", opening)
        del good.xs[1:]
        await good.step()
        (older,) = await store.load(["/a"])
        await good.step()
        row = wire.engine.table.find("/a")
        assert row is not None
        wire.engine.sessions.leave(row, "evicted", wire.engine.clock())
        await put_back(store, "/a", older)
        assert await reason_of(wire, unnumbered()) == (ROLLED_BACK, {"step": "2"})


async def put_back(store: Store, key: str, content: bytes | None) -> None:
    """Puts this record into the store, whatever is there now."""
    (found,) = await store.load([key])
    assert found is not None
    await store.put([Write(key, version_of(found), None, 1.0)])
    await store.put([Write(key, None, content, 60.0)])


async def test_a_claim_without_an_answer_raises_no_suspicion(tmp_path: Path) -> None:
    """A released session whose claim was stored without an answer goes on at the repeat."""
    async with fleet(tmp_path, BEHIND) as ((first,), store):
        good = Good(first, "m", await first.open(session_id="a"))
        await good.step()
        await first.engine._stage.drain(5)
        gate = Gate(store)
        async with serving(tmp_path / "models", store=gate, **BEHIND) as second:
            good.wire = second
            with gate.losing(lambda: StoreTimeout("lost")):
                assert (await reason_of(second, unnumbered()))[0] == "STORE_TIMEOUT"
            await good.step()


async def test_the_client_library_goes_on_by_itself(tmp_path: Path) -> None:
    """The client library numbers its steps, so after RESUME it goes on from what is left."""
    async with fleet(tmp_path, BEHIND, BEHIND) as ((first, second), _):
        good = await left_behind(first)
        async with AsyncClient(second.target) as client:
            session = await client.session("m", id="a", if_exists="resume", keep=True)
            assert session.step_count == 2
            del good.xs[2:]
            y = await session.step(good.rows())
            good.check(y)


def test_its_exception_has_a_name() -> None:
    """STATE_ROLLED_BACK reaches Python as StateRolledBack, with the step that is left."""
    error = from_status(to_status(StateRolledBack("gone", metadata={"step": "2"})))
    assert isinstance(error, errors.StateRolledBack)
    assert error.metadata == {"step": "2"}
    assert error.applied is False
