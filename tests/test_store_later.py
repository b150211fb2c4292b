"""Records of a later release, and what this one writes for an earlier one: rolling updates."""

from __future__ import annotations

import dataclasses
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from gated import Gate, gated
from lstmserve.store import Write, Written, decode, encode
from lstmserve.v1 import lstm_pb2 as pb
from storing import later, signed
from wire import Good, Wire

RESUME, RESTART = pb.IF_EXISTS_RESUME, pb.IF_EXISTS_RESTART
BEHIND = {"store_mode": "behind", "behind_s_max": 3600}


def unknown_field(content: bytes) -> bytes:
    """A record of format 2 with a field that a later release depends on."""
    second = encode(dataclasses.replace(decode(content), released=False))
    return signed(second + struct.pack("<HI", 7, 3) + b"new")


async def take_over(gate: Gate, session_id: str, change: Callable[[bytes], bytes]) -> bytes:
    """Lets a server of a later release take over a session. Returns the record that it stores."""
    key = f"/{session_id}"
    (content,) = await gate.behind.load([key])
    assert content is not None
    record = decode(content)
    taken = change(encode(dataclasses.replace(record, epoch=record.epoch + 10**15)))
    assert await gate.behind.put([Write(key, record.version, taken, 3600.0)]) == [Written.OK]
    return taken


async def forget(wire: Wire, session: Good, is_behind: bool) -> None:
    """Writes a session that was taken over to the store, and drops it here."""
    if is_behind:
        await session.step()
        await wire.engine._stage.flush()
    else:
        said = await wire.refused("Step", session.request().SerializeToString())
        assert said.reason == "FENCED"
    assert wire.engine.table.find(f"/{session.id}") is None


def calls(session: Good) -> list[tuple[str, Any]]:
    """Every call that needs the session's record."""
    sid, life = session.id, session.session.incarnation
    opening = {"model": "m", "version": 1, "session_id": sid}
    numbered = {"session_id": sid, "x": [0.0] * 3, "incarnation": life}
    return [
        ("Step", pb.StepRequest(session_id=sid, x=[0.0] * 3)),
        ("Step", pb.StepRequest(step=2, **numbered)),
        ("Step", pb.StepRequest(step=9, **numbered)),
        ("GetSession", pb.GetSessionRequest(session_id=sid)),
        ("GetState", pb.GetStateRequest(session_id=sid)),
        ("OpenSession", pb.OpenSessionRequest(**opening)),
        ("OpenSession", pb.OpenSessionRequest(if_exists=RESUME, **opening)),
        ("OpenSession", pb.OpenSessionRequest(if_exists=RESTART, **opening)),
        ("OpenSession", pb.OpenSessionRequest(model="m", version=1, fork_of=sid)),
        ("CloseSession", pb.CloseSessionRequest(session_id=sid, incarnation=life)),
    ]


@pytest.mark.parametrize("change", [later, unknown_field])
@pytest.mark.parametrize("settings", [{}, BEHIND])
@pytest.mark.parametrize("way", ["evicted", "written", "held"])
async def test_no_call_destroys_a_later_record(
    tmp_path: Path, change: Callable[[bytes], bytes], settings: dict[str, Any], way: str
) -> None:
    """Whichever call meets a later release's record, even of a session that is believed to be ours,
    is UNAVAILABLE, and the record stays what it was."""
    async with gated(tmp_path, **settings) as (wire, gate):
        for at in range(10):
            session = Good(wire, "m", await wire.open(version=1))
            await session.step()
            await wire.engine._stage.flush()
            if way == "evicted":
                row = wire.engine.table.find(f"/{session.id}")
                assert row is not None
                wire.engine.sessions.leave(row, "evicted", wire.engine.clock())
            stored = await take_over(gate, session.id, change)
            if way == "written":
                await forget(wire, session, bool(settings))
            method, request = calls(session)[at]
            if way == "held" and method == "Step" and at < 2:
                await forget(wire, session, bool(settings))  # such a step asks no store
            said = await wire.refused(method, request.SerializeToString())
            assert (said.code, said.reason) == (StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
            assert "a later release stored this session" in said.message
            assert await gate.behind.load([f"/{session.id}"]) == [stored]
    with closing(sqlite3.connect(tmp_path / "store" / "sessions.sqlite3")) as database:
        assert database.execute("SELECT count(*) FROM quarantine").fetchone() == (0,)


async def test_store_format_1_is_what_the_first_edition_reads(tmp_path: Path) -> None:
    """With --store-format 1 no record needs format 2, whether it is opened with a request id,
    stepped, forked, restarted, or loaded from format 2, and without the flag a request id does."""
    opening = pb.OpenSessionRequest(model="m", version=1, session_id="a", request_id="r1")
    async with gated(tmp_path) as (wire, gate):
        opened = await wire.call("OpenSession", opening)
        assert await formats(gate) == {"a": 2}
        numbered = pb.StepRequest(
            session_id="a", step=1, incarnation=opened.session.incarnation, x=[0.5] * 3
        )
        first = await wire.call("Step", numbered)
        assert await formats(gate) == {"a": 2}
    async with gated(tmp_path, store_format=1) as (wire, gate):
        again = await wire.call("Step", numbered)
        assert again.replayed
        assert again.y == first.y
        assert await formats(gate) == {"a": 1}
        fork = pb.OpenSessionRequest(
            model="m", version=1, session_id="b", request_id="r2", fork_of="a"
        )
        await wire.call("OpenSession", fork)
        await wire.call("Step", session_id="b", x=[0.5] * 3)
        opening.if_exists, opening.request_id = RESTART, "r3"
        await wire.call("OpenSession", opening)
        assert await formats(gate) == {"a": 1, "b": 1}


async def formats(gate: Gate) -> dict[str, int]:
    """The formats of the records of "a" and "b", if there are any."""
    found = zip("ab", await gate.behind.load(["/a", "/b"]), strict=True)
    return {key: content[4] for key, content in found if content is not None}
