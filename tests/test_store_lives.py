"""Sessions of a store begin and end once: repeated opens, half closes, full pools, old copies."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from gated import Gate, gated
from lstmserve.engine.errors import StoreTimeout, StoreUnavailable
from lstmserve.store import Write, decode
from lstmserve.v1 import lstm_pb2 as pb
from modelmaking import make_model
from wire import SPECS, Good, Wire, serving

HOURS = {"store_mode": "behind", "behind_s_max": 3600}
SMALL = {
    "pool_bytes": 3 * 8192,
    "batch_sessions_max": 8,
    "long_steps_max": 8,
    "batch_cells_max": 64,
}
OPEN = pb.OpenSessionRequest(model="m", version=1, request_id="r1")
RESTART = pb.IF_EXISTS_RESTART


def away() -> StoreUnavailable:
    """The error of a store that is away."""
    return StoreUnavailable("away")


def lost() -> StoreTimeout:
    """The error of a store that does not answer."""
    return StoreTimeout("lost")


async def reason(wire: Wire, method: str, request: Any) -> str:
    """Why the call is refused."""
    return (await wire.refused(method, request.SerializeToString())).reason


async def stepped(wire: Wire, count: int = 3) -> Good:
    """A session after `count` steps."""
    session = Good(wire, "m", await wire.open(version=1))
    for _ in range(count):
        await session.step()
    return session


def closing(session: Good) -> pb.CloseSessionRequest:
    """The request to close that life."""
    return pb.CloseSessionRequest(session_id=session.id, incarnation=session.session.incarnation)


def is_same_life(write: Write) -> bool:
    """Whether the write replaces no other life."""
    assert write.expected
    return decode(write.content or b"").incarnation == write.expected.incarnation


def keys(gate: Gate) -> set[str]:
    """The keys that were ever written."""
    return {write.key for writes in gate.puts for write in writes}


@pytest.mark.parametrize("are_loads", [True, False])
async def test_a_repeated_open_without_an_id_is_one_session(
    tmp_path: Path, are_loads: bool
) -> None:
    """Repeats one after the other, together, or after it moved out give one id and one record."""
    async with gated(tmp_path) as (wire, gate):
        with gate.held(are_loads=are_loads):
            calls = [asyncio.ensure_future(wire.call("OpenSession", OPEN)) for _ in range(3)]
            await wire.until(lambda: wire.metrics.rpcs_started == 3)
            await wire.until(lambda: (gate.loads if are_loads else len(gate.puts)) > 0)
        sessions = [(await call).session for call in calls]
        row = wire.engine.table.find(f"/{sessions[0].id}")
        assert row is not None
        wire.engine.sessions.leave(row, "evicted", wire.engine.clock())
        sessions.append((await wire.call("OpenSession", OPEN)).session)
        assert len({(each.id, each.incarnation) for each in sessions}) == 1
        assert keys(gate) == {f"/{sessions[0].id}"}
        await Good(wire, "m", sessions[-1]).step()


@pytest.mark.parametrize("trouble", [away, lost])
async def test_a_repeated_open_heals(tmp_path: Path, trouble: Any) -> None:
    """Whether or not the first one was stored, the repeat opens that id and no other."""
    async with gated(tmp_path) as (wire, gate):
        with (gate.refusing if trouble is away else gate.losing)(trouble):
            assert (await reason(wire, "OpenSession", OPEN)).startswith("STORE_")
        opened = await wire.call("OpenSession", OPEN)
        assert opened.created
        assert keys(gate) == {f"/{opened.session.id}"}
        await Good(wire, "m", opened.session).step()


@pytest.mark.parametrize("passes", [0, 1, 3, 10, 30])
async def test_a_close_goes_on_without_its_caller(tmp_path: Path, passes: int) -> None:
    """A close goes on to its end, everywhere, at whatever moment its client goes away."""
    async with gated(tmp_path) as (wire, gate):
        session = await stepped(wire)
        with gate.held():
            content = closing(session).SerializeToString()
            call = wire.channel.unary_unary("/lstmserve.v1.LstmService/CloseSession")(content)
            before = wire.metrics.rpcs_started
            await wire.until(lambda: wire.metrics.rpcs_started > before)
            for _ in range(passes):
                await asyncio.sleep(0)
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await call
            await wire.until(lambda: wire.metrics.rpcs_started == wire.metrics.rpcs_handled)
        await wire.engine.lifecycle.finish(20)
        assert await gate.version(session.id) is None
        assert await reason(wire, "Step", session.request()) == "SESSION_CLOSED"
        assert (await wire.call("CloseSession", closing(session))).step == 3


async def test_a_shutdown_waits_for_a_close(tmp_path: Path) -> None:
    """A close that has begun is in the store before the server ends."""
    async with gated(tmp_path) as (wire, gate):
        session = await stepped(wire)
        with gate.held():
            call = asyncio.ensure_future(wire.call("CloseSession", closing(session)))
            await wire.until(lambda: len(gate.puts) == 5)
            ending = asyncio.ensure_future(wire.engine.close(20))
            await wire.until(wire.running.done)
            for _ in range(50):
                await asyncio.sleep(0)
            assert not ending.done()
        await ending
        assert await gate.version(session.id) is None
        await call


@pytest.mark.parametrize("trouble", [away, lost])
async def test_a_failed_close_takes_no_step_back(tmp_path: Path, trouble: Any) -> None:
    """With write-behind, whatever part of the close failed, the session goes on or is closed,
    whole."""
    async with gated(tmp_path, **HOURS) as (wire, gate):
        session = await stepped(wire)
        with (gate.refusing if trouble is away else gate.losing)(trouble):
            assert (await reason(wire, "CloseSession", closing(session))).startswith("STORE_")
        await session.step()
        await session.check_state()
        assert (await wire.call("CloseSession", closing(session))).step == 4
        assert await gate.version(session.id) is None


async def test_a_close_that_deletes_nothing_takes_no_step_back(tmp_path: Path) -> None:
    """If the store takes the last steps and then goes away, the session comes back with all of
    them."""
    async with gated(tmp_path, **HOURS) as (wire, gate):
        session = await stepped(wire)
        with gate.held():
            call = asyncio.ensure_future(reason(wire, "CloseSession", closing(session)))
            await wire.until(lambda: len(gate.puts) == 2)
            gate.only(lambda write: write.content is not None)
        assert await call == "STORE_UNAVAILABLE"
        gate.only(None)
        await session.step()
        await session.check_state()


async def test_a_full_store_lets_sessions_be_closed(tmp_path: Path) -> None:
    """With write-behind the store has no room for the last steps, and closing makes some."""
    async with gated(tmp_path, **HOURS) as (wire, gate):
        session = await stepped(wire)
        gate.is_full = True
        again = pb.OpenSessionRequest(model="m", session_id=session.id, if_exists=RESTART)
        assert await reason(wire, "OpenSession", again) == "STORE_FULL"
        await session.step()
        assert (await wire.call("CloseSession", closing(session))).step == 4
        assert await gate.version(session.id) is None


async def test_a_failed_restart_takes_no_step_back(tmp_path: Path) -> None:
    """With write-behind the life that should have been replaced goes on with every acknowledged
    step."""
    async with gated(tmp_path, **HOURS) as (wire, gate):
        session = await stepped(wire)
        again = pb.OpenSessionRequest(model="m", session_id=session.id, if_exists=RESTART)
        incarnation = session.session.incarnation
        gate.only(lambda write: decode(write.content or b"").incarnation == incarnation)
        assert await reason(wire, "OpenSession", again) == "STORE_UNAVAILABLE"
        gate.only(None)
        await session.step()
        await session.check_state()


async def test_a_step_sent_while_a_restart_makes_room_is_not_lost(tmp_path: Path) -> None:
    """With write-behind the step waits for the outcome of the old life, which then goes on."""
    async with gated(tmp_path, **HOURS, **SMALL) as (wire, gate):
        session = await stepped(wire)
        await wire.engine._stage.flush()
        for _ in range(wire.engine.model("letters", 1).sessions_max):
            await (await wire.good("letters")).step()
        again = pb.OpenSessionRequest(model="letters", session_id=session.id, if_exists=RESTART)
        with gate.held():
            count = len(gate.puts)
            call = asyncio.ensure_future(reason(wire, "OpenSession", again))
            await wire.until(lambda: len(gate.puts) > count)
            step = asyncio.ensure_future(session.step())
            await wire.until(lambda: wire.engine.batch_loop.pending_steps == 1)
            gate.only(is_same_life)
        assert await call == "STORE_UNAVAILABLE"
        gate.only(None)
        with pytest.raises(grpc.aio.AioRpcError):
            await step
        session.xs.pop()
        await session.step()
        await session.check_state()


@pytest.mark.parametrize("mode", [{}, HOURS])
async def test_a_fork_replaces_a_session_in_a_pool_of_one(
    tmp_path: Path, mode: dict[str, Any]
) -> None:
    """The source and the session to be replaced are never here together."""
    both = 51 * 128 + 51 * 80  # m and letters, with one session each
    async with gated(tmp_path, **mode, **{**SMALL, "pool_bytes": both}) as (wire, _):
        assert wire.engine.model("m", 1).sessions_max == 1
        source, taken = await stepped(wire, 3), await stepped(wire, 2)
        fork = pb.OpenSessionRequest(
            model="m", session_id=taken.id, fork_of=source.id, if_exists=RESTART
        )
        taken.session = (await wire.call("OpenSession", fork)).session
        assert taken.session.step == 3
        taken.xs = list(source.xs)
        for each in (taken, source, taken):
            await each.step()
            await each.check_state()


async def test_a_store_that_went_back_is_written_anew(tmp_path: Path) -> None:
    """An older copy of the same owner's record neither blocks the session nor takes it back."""
    async with gated(tmp_path, **HOURS) as (wire, gate):
        session = await stepped(wire)
        (old,) = await gate.behind.load([f"/{session.id}"])
        await wire.engine._stage.flush()
        newer = await gate.version(session.id)
        assert newer == (session.session.incarnation, 0, 3)
        await gate.behind.put([Write(f"/{session.id}", newer, old, 60.0)])
        await session.step()
        await wire.engine._stage.flush()
        assert await gate.version(session.id) == (session.session.incarnation, 0, 4)
        assert (await wire.call("GetSession", session_id=session.id)).session.durable_step == 4
        await session.step()
        await session.check_state()


async def test_a_full_pool_makes_room_at_once(tmp_path: Path) -> None:
    """With write-behind and an hour to flush, sessions move out, and come back with all steps."""
    async with gated(tmp_path, **HOURS, **SMALL) as (wire, _):
        fits = wire.engine.model("m", 1).sessions_max
        sessions = [await stepped(wire, 1) for _ in range(2 * fits)]
        for session in sessions:
            await session.step()
            await session.check_state()


async def test_a_retired_models_session_can_be_closed(tmp_path: Path) -> None:
    """If its model's folder is gone, closing takes the session out of the store, and returns its
    last step."""
    for version in (1, 2):
        make_model(tmp_path / "models", SPECS["m"], seed=version, name="m", version=version)
    async with gated(tmp_path) as (wire, _):
        session = await stepped(wire)
    (tmp_path / "models" / "m" / "1").rename(tmp_path / "retired")
    async with gated(tmp_path) as (wire, gate):
        assert await reason(wire, "Step", session.request()) == "MODEL_RETIRED"
        other = pb.CloseSessionRequest(session_id=session.id, incarnation=1)
        assert await reason(wire, "CloseSession", other) == "SESSION_REPLACED"
        with gate.refusing(away):
            assert await reason(wire, "CloseSession", closing(session)) == "STORE_UNAVAILABLE"
        for _ in range(2):
            assert (await wire.call("CloseSession", closing(session))).step == 3
        assert await gate.version(session.id) is None
        assert await reason(wire, "Step", session.request()) == "SESSION_CLOSED"


async def test_a_load_for_another_call_is_no_proof_of_a_gap(tmp_path: Path) -> None:
    """A step that waits while another call loads the session is not refused by that call's
    answer."""
    async with gated(tmp_path) as (one, gate):
        session = await stepped(one, 1)
        own = {"incarnation": session.session.incarnation}
        other_gate = Gate(gate.behind)
        async with serving(tmp_path / "models", store=other_gate) as other:
            other_gate.answering.clear()
            early = pb.StepRequest(session_id=session.id, step=9, x=[0.0] * 3, **own)
            first = asyncio.ensure_future(reason(other, "Step", early))
            await other.until(lambda: len(other_gate.puts) == 1)
            while await gate.version(session.id) == (session.session.incarnation, 0, 1):
                pass
            second = session.request(step=2, **own)
            assert await reason(one, "Step", second) == "FENCED"
            assert (await one.call("Step", second)).step == 2
            third = asyncio.ensure_future(other.call("Step", session.request(step=3, **own)))
            await other.until(lambda: other.metrics.rpcs_started == 2)
            other_gate.answering.set()
            assert (await third).step == 3
            session.check((await third).y)
            assert await first == "STEP_GAP"
