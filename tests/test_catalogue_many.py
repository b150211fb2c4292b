"""Bad messages of many sessions: what refuses one session, and what refuses the whole message."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from badmessages import BAD_SESSIONS, GARBAGE, TOO_MANY, WHOLE, Whole, among
from badsteps import INT64_MIN, NAN, Row, X
from lstmserve.engine.errors import ServeError
from lstmserve.server.native import step_many
from lstmserve.server.status import to_status
from lstmserve.v1 import lstm_pb2 as pb
from refusals import in_band, leaks
from test_catalogue import check
from wire import Good, Wire, serving

LENGTH_MAX = 64


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
    """Asserts that the sessions are unchanged, and step."""
    for session in sessions:
        await session.step()
        await session.check_state()


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("row", BAD_SESSIONS, ids=lambda row: row.name)
async def test_one_bad_session_among_good_ones(wire: Wire, row: Row, place: int) -> None:
    """A bad session's error is sparse, its rows are NaN, and its neighbours step on exactly."""
    a, bad, b = [await wire.good() for _ in range(3)]
    await bad.step()
    for lengths in ([1, 1], [2, 3]):
        sent = among(row, bad.session, [a, b], place, lengths)
        response = await exchange(wire, sent.request.SerializeToString())
        check(in_band(sent.check(response)), row, wire)
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


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)
async def test_what_refuses_the_whole_message(wire: Wire, case: Whole) -> None:
    """The refusal is in band with the tag, nothing is applied, and the stream goes on."""
    a, b = [Good(wire, "m", await wire.open(session_id=name)) for name in "ab"]
    letters = Good(wire, "letters", await wire.open("letters", session_id="letters"))
    stream = wire.stream("StepMany")
    for _ in range(2):
        await stream.write(case.request(tag=9).SerializeToString())
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


@pytest.mark.parametrize("content", GARBAGE)
async def test_garbage_is_told_in_band(wire: Wire, content: bytes) -> None:
    """Bytes that are not a message are MALFORMED in band, and the stream goes on."""
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
    """If every session is unknown, each has its error, and the reply invents no rows."""
    response = await exchange(
        wire, pb.StepManyRequest(session_ids=["p", "q"], x=[NAN] * 6).SerializeToString()
    )
    assert [in_band(e.status).reason for e in response.errors] == ["SESSION_NOT_FOUND"] * 2
    assert list(response.steps) == [0, 0]
    assert not response.y


async def test_too_many_sessions_are_not_kept(wire: Wire) -> None:
    """A stream remembers the sessions of a refused message, but never more than the limit."""
    a, stream = await wire.good(), wire.stream("StepMany")
    idless = pb.StepManyRequest(x=X).SerializeToString()
    many = pb.StepManyRequest(session_ids=[a.id] * TOO_MANY).SerializeToString()
    wanted = {many: "TOO_LONG", idless: "EMPTY_INPUT"}
    for content, reason in wanted.items():
        await stream.write(content)
        said = in_band(pb.StepManyResponse.FromString(await stream.read()).error)
        assert (said.reason, said.fields) == (reason, ["session_ids"])
    await goes_on(wire, a)


@pytest.mark.parametrize("content", GARBAGE)
async def test_garbage_leaves_the_stream_its_sessions(wire: Wire, content: bytes) -> None:
    """A message without ids after a garbled one belongs to the sessions of the message before
    it."""
    sessions, stream = [await wire.good() for _ in range(3)], wire.stream("StepMany")
    for ids in ([each.id for each in sessions], []):
        x = np.concatenate([each.rows().reshape(-1) for each in sessions])
        await stream.write(pb.StepManyRequest(session_ids=ids, x=x).SerializeToString())
        response = pb.StepManyResponse.FromString(await stream.read())
        for each, y in zip(sessions, np.split(np.array(response.y, np.float32), 3), strict=True):
            each.check(y)
        await stream.write(content)
        bad = pb.StepManyResponse.FromString(await stream.read())
        assert in_band(bad.error).reason == "MALFORMED"
    await goes_on(wire, *sessions)


async def test_errors_that_look_alike_are_made_once(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of hundreds of bad sessions each has its error, is counted, and few are made: the loop is
    everybody's."""
    made: list[str] = []

    def counting(error: ServeError) -> Status:
        made.append(error.reason)
        return to_status(error)

    monkeypatch.setattr(step_many, "to_status", counting)
    a = await wire.good()
    ids = [a.id, *(f"{'bad/' * (i % 3 == 0)}p{i}" for i in range(290))]
    x = [*a.rows().reshape(-1), *X * 290]
    response = await exchange(wire, pb.StepManyRequest(session_ids=ids, x=x).SerializeToString())
    a.check(response.y[:2])
    assert [error.index for error in response.errors] == [*range(1, 291)]
    reasons = Counter(in_band(error.status).reason for error in response.errors)
    assert reasons == {"BAD_SESSION_ID": 97, "SESSION_NOT_FOUND": 193}
    assert {name: wire.metrics.model("m", 1).errors[name] for name in reasons} == reasons
    assert sorted(made) == sorted(reasons)
    await goes_on(wire, a)
