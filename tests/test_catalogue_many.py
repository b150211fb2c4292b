"""Bad messages of many sessions: what refuses one session, and what refuses the whole message."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from grpc import StatusCode

from badsteps import INT32_MAX, INT64_MIN, NAN, ROWS, Row, X
from lstmserve.v1 import lstm_pb2 as pb
from refusals import in_band, leaks
from test_catalogue import check
from wire import Good, Wire, serving

LENGTH_MAX = 64
SPARSE = ("SESSION_NOT_FOUND", "SESSION_LOST", "SESSION_REPLACED", "BAD_SESSION_ID", "NON_FINITE")


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    """A server with limits that are soon reached."""
    async with serving(tmp_path, length_max=LENGTH_MAX, pending_steps_max=300) as wire:
        yield wire


async def exchange(wire: Wire, content: bytes) -> pb.StepManyResponse:
    """The answer to one message on a stream of its own, which then ends well."""
    stream = wire.stream("StepMany")
    await stream.write(content)
    response = pb.StepManyResponse.FromString(await stream.read())
    await stream.done_writing()
    assert await stream.code() is StatusCode.OK
    return response


async def goes_on(wire: Wire, *sessions: Good) -> None:
    """The sessions are as if nothing had been sent, and step."""
    for session in sessions:
        await session.step()
        await session.check_state()


@pytest.mark.parametrize(
    "row", [r for r in ROWS if r.reason in SPARSE and r.content is None], ids=lambda row: row.name
)
async def test_one_bad_session_among_good_ones(wire: Wire, row: Row) -> None:
    """Its error is sparse, its rows are NaN, and its neighbours step on exactly."""
    a, bad, b = [await wire.good() for _ in range(3)]
    sent = pb.StepRequest.FromString(row.step(bad.session))
    message = pb.StepManyRequest(
        session_ids=[a.id, sent.session_id, b.id],
        incarnations=[0, sent.incarnation, 0],
        steps=[],
        x=[*a.rows().reshape(-1), *sent.x, *b.rows().reshape(-1)],
        tag=7,
    )
    response = await exchange(wire, message.SerializeToString())
    assert response.tag == 7
    (error,) = response.errors
    assert error.index == 1
    check(in_band(error.status), row, wire)
    y = np.array(response.y, np.float32).reshape(3, -1)
    a.check(y[0])
    b.check(y[2])
    assert np.isnan(y[1]).all()
    assert list(response.steps) == [1, 0, 1]
    await goes_on(wire, a, bad, b)


async def test_one_session_without_rows_or_with_too_many(wire: Wire) -> None:
    """A length of 0 or above length_max fails that session only; y keeps its layout."""
    a, none, long, b = [await wire.good() for _ in range(4)]
    lengths = [2, 0, LENGTH_MAX + 1, 1]
    x = [*a.rows(2).reshape(-1), *X * (LENGTH_MAX + 1), *b.rows().reshape(-1)]
    ids = [each.id for each in (a, none, long, b)]
    response = await exchange(
        wire, pb.StepManyRequest(session_ids=ids, lengths=lengths, x=x).SerializeToString()
    )
    assert [(e.index, in_band(e.status).reason) for e in response.errors] == [
        (1, "EMPTY_INPUT"),
        (2, "TOO_LONG"),
    ]
    y = np.array(response.y, np.float32).reshape(sum(lengths), -1)
    a.check(y[:2])
    b.check(y[-1:])
    assert np.isnan(y[2:-1]).all()
    assert list(response.lengths) == lengths
    await goes_on(wire, a, none, long, b)


class Whole(NamedTuple):
    """What refuses a message: fields over those of a good one, of the sessions a and b."""

    name: str
    reason: str
    blamed: list[str]
    fields: dict[str, Any]


def whole(name: str, reason: str, *blamed: str, **fields: Any) -> Whole:
    """A case."""
    return Whole(name, reason, list(blamed), fields)


WHOLE = [
    whole("no sessions", "EMPTY_INPUT", "session_ids", session_ids=[]),
    whole("a session twice", "DUPLICATE_SESSION", "session_ids", session_ids=["a", "a"]),
    whole("two models", "MIXED_MODELS", session_ids=["a", "letters"]),
    whole("too many", "TOO_LONG", "session_ids", session_ids=[f"s{i}" for i in range(301)]),
    whole("lengths too few", "BAD_TENSOR", "lengths", lengths=[1]),
    whole("incarnations too many", "BAD_TENSOR", "incarnations", incarnations=[0, 0, 0]),
    whole("steps too few", "BAD_TENSOR", "steps", steps=[1]),
    whole("x too short", "BAD_TENSOR", "x", x=X),
    whole("x too long", "BAD_TENSOR", "x", x=X * 3),
    whole("no x", "EMPTY_INPUT", "x", x=[]),
    whole("lengths of 0", "BAD_TENSOR", "x", lengths=[0, 0]),
    whole("lengths of 0 and no x", "EMPTY_INPUT", "x", lengths=[0, 0], x=[]),
    whole("lengths without end", "BAD_TENSOR", "x", lengths=[INT32_MAX, INT32_MAX]),
    whole("a length without end", "EMPTY_INPUT", "x", lengths=[INT32_MAX, 1], x=[]),
    whole("a negative length", "MALFORMED", "lengths", lengths=[3, -1]),
    whole("the lowest length", "MALFORMED", "lengths", lengths=[3, -INT32_MAX - 1]),
    whole("a negative timeout", "MALFORMED", "timeout_ms", timeout_ms=-1),
    whole("tokens for a model of x", "BAD_TENSOR", "tokens", tokens=[1, 2]),
]


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)
async def test_what_refuses_the_whole_message(wire: Wire, case: Whole) -> None:
    """The refusal is in band with the tag, nothing is applied, and the stream goes on."""
    a, b = [Good(wire, "m", await wire.open(session_id=name)) for name in "ab"]
    letters = Good(wire, "letters", await wire.open("letters", session_id="letters"))
    request = pb.StepManyRequest(**{"session_ids": ["a", "b"], "x": X * 2, "tag": 9, **case.fields})
    stream = wire.stream("StepMany")
    for _ in range(2):
        await stream.write(request.SerializeToString())
        response = pb.StepManyResponse.FromString(await stream.read())
        said = in_band(response.error)
        assert (said.code, said.reason) == (StatusCode.INVALID_ARGUMENT, case.reason), said
        assert said.fields == case.blamed
        assert (response.tag, len(response.y), len(response.steps)) == (9, 0, 0)
        leaks(said, wire.folder)
    x = np.concatenate([a.rows(), b.rows()]).reshape(-1)
    await stream.write(pb.StepManyRequest(session_ids=["a", "b"], x=x).SerializeToString())
    response = pb.StepManyResponse.FromString(await stream.read())
    assert list(response.steps) == [1, 1]
    y = np.array(response.y, np.float32).reshape(2, -1)
    a.check(y[0])
    b.check(y[1])
    await goes_on(wire, a, b, letters)


@pytest.mark.parametrize("content", [b"\xff" * 8, b"\x0a\x02\xff\xfe", b"\x2a\x7fabc"])
async def test_garbage_is_told_in_band(wire: Wire, content: bytes) -> None:
    """Bytes that are no message are MALFORMED, and the stream goes on."""
    a = await wire.good()
    said = in_band((await exchange(wire, content)).error)
    assert (said.code, said.reason) == (StatusCode.INVALID_ARGUMENT, "MALFORMED")
    await goes_on(wire, a)


async def test_numbers_are_checked_for_each_session(wire: Wire) -> None:
    """A bad number or a missing incarnation fails its session alone."""
    sessions = [await wire.good() for _ in range(4)]
    steps = [1, 0, INT64_MIN, 1]
    incarnations = [s.session.incarnation for s in sessions[:3]] + [0]
    x = np.concatenate([sessions[0].rows(), np.zeros((3, 3), np.float32)]).reshape(-1)
    ids = [s.id for s in sessions]
    request = pb.StepManyRequest(session_ids=ids, steps=steps, incarnations=incarnations, x=x)
    response = await exchange(wire, request.SerializeToString())
    assert [e.index for e in response.errors] == [1, 2, 3]
    assert {in_band(e.status).reason for e in response.errors} == {"BAD_STEP"}
    sessions[0].check(response.y[:2])
    assert np.isnan(response.y[2:]).all()
    await goes_on(wire, *sessions)


async def test_a_message_of_strangers_alone(wire: Wire) -> None:
    """With no good session every one has its error, and no reply is made up."""
    response = await exchange(
        wire, pb.StepManyRequest(session_ids=["p", "q"], x=[NAN] * 6).SerializeToString()
    )
    assert [in_band(e.status).reason for e in response.errors] == ["SESSION_NOT_FOUND"] * 2
    assert list(response.steps) == [0, 0]
    assert not response.y
