"""Steps that arrive together run as columns if they can, and no answer shows the difference."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from calling import Caller, CallerFrame, Sender
from lstmserve.engine import Engine, Model
from lstmserve.engine.clock import Now
from lstmserve.engine.errors import ServeError
from lstmserve.engine.scheduling import ordering, settle
from lstmserve.engine.scheduling.work import Request
from lstmserve.head_layers import Linear
from lstmserve.server.access.auth import AnonymousAuthenticator
from lstmserve.server.native.step_many import StepManyCalls
from lstmserve.server.native.steps import StepCalls, UnaryStep
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.steps import Steps
from lstmserve.spec import LstmSpec
from lstmserve.tokens import Limits
from lstmserve.wire.v1 import lstm_pb2 as pb
from modelmaking import random_input
from traffic import Oracle, open_session, start_engine, submit

SPEC = LstmSpec(3, 8, 2, head=(Linear(2),))


class Port:
    """One port's calls, without gRPC; its engine runs when the test starts it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.engine: Engine = start_engine(folder, SPEC, 3, self.metrics, **settings)
        self.oracle = Oracle(folder / "m" / "1", SPEC)
        steps = Steps(self.engine, self.metrics)
        self.pending = PendingBytes(1 << 30)
        self.engine.add_check(self.pending.check_integrity)
        door = AnonymousAuthenticator(Limits())
        self.tenant = door.tenant(None)  # type: ignore[arg-type]  # anyone
        limits = {"call_s_max": 30.0, "write_s_max": 30.0}
        self.frame = CallerFrame(door, self.metrics, self.pending, **limits)
        self.calls = StepCalls(self.engine, steps, self.pending)
        self.running: asyncio.Task[None] | None = None

    def open(self, name: str) -> tuple[str, int]:
        """Opens a session. Returns its id and incarnation."""
        row = open_session(self.engine, name)
        return name, self.engine.table.incarnation.item(row)

    def arrive(self, *requests: pb.StepRequest) -> list[Caller]:
        """Lets all these calls arrive at once."""
        contents = [each.SerializeToString() for each in requests]
        callers = [Caller(content, self.tenant, self.pending) for content in contents]
        self.calls.read([UnaryStep(self.calls, self.frame, each) for each in callers])
        return callers

    def run(self) -> None:
        """Starts the engine."""
        self.running = asyncio.create_task(self.engine.run())

    async def ends(self, calls: list[Caller]) -> list[pb.StepResponse | str]:
        """The response of each call, or the reason of its error."""
        if self.running is None:
            self.run()
        assert self.running is not None
        found: list[pb.StepResponse | str] = []
        for call in calls:
            await asyncio.wait({call.done, self.running}, return_when=asyncio.FIRST_COMPLETED)
            if self.running.done():
                self.running.result()  # raises the error that ended the engine
            try:
                found.append(pb.StepResponse.FromString(await call.done))
            except ServeError as error:
                found.append(error.reason)
        return found


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[Port]:
    """A port whose engine's integrity is checked at the end."""
    port = Port(tmp_path)
    yield port
    if port.running is None:
        port.run()
    await port.engine.close(5)
    assert port.running is not None
    await port.running
    port.engine.check_integrity()


def request(session: tuple[str, int], number: int, x: Any, **fields: Any) -> pb.StepRequest:
    """A numbered step."""
    values = {"session_id": session[0], "incarnation": session[1], "step": number} | fields
    return pb.StepRequest(**values, length=len(x), x=x.astype("<f4").tobytes())


async def passes(count: int = 50) -> None:
    """Passes the loop `count` times."""
    for _ in range(count):
        await asyncio.sleep(0)


def rows(count: int, seed: int = 0) -> Any:
    """[count, 1, I]"""
    return random_input(SPEC, (count, 1), seed)


async def test_steps_together_are_one_batch_with_the_oracles_bits(port: Port) -> None:
    """Twenty sessions at once are one batch, numbered and not, and each has its own reply."""
    sessions = [port.open(f"s{i}") for i in range(20)]
    xs = rows(20)
    asked = [request(s, 1, x, tag=i) for i, (s, x) in enumerate(zip(sessions, xs, strict=True))]
    for each in asked[10:]:
        each.ClearField("step")
    ends = await port.ends(port.arrive(*asked))
    assert port.metrics.model("m", 1).batch_size.read()[1] == 20
    for i, (end, x) in enumerate(zip(ends, xs, strict=True)):
        assert isinstance(end, pb.StepResponse)
        assert (end.step, end.length, end.tag, end.replayed) == (1, 1, i, False)
        assert end.y == port.oracle.run(x)[0].tobytes()
        assert end.queue_ns >= 0


async def test_each_has_the_end_it_would_have_alone(port: Port) -> None:
    """Bad steps among good ones get the same code each as when they come alone."""
    names = "abcdefghijklmnop"
    sessions = {name: port.open(name) for name in names}
    long, x = rows(1)[0].repeat(40, axis=0), rows(1)[0]
    nan = np.full_like(x, np.nan)
    asked = {
        "a": request(sessions["a"], 1, x),
        "b": request(sessions["b"], 1, nan),
        "c": request(sessions["c"], 2, x),
        "d": request(sessions["d"], 0, x),
        "e": request(("e", 77), 1, x),
        "f": request(sessions["f"], 1, long),
        "g": request(sessions["g"], 1, x[:, :2]),
        "h": request(("nobody", 0), 1, x),
        "i": request(("bad id", 5), 1, x),
        "j": request(sessions["j"], 1, x, last_only=True),
        "k": request(sessions["k"], 1, x, tokens=[1]),
        "l": request(sessions["l"], 1, x, timeout_ms=-1),
        "m": request(sessions["m"], 1, x, timeout_ms=60_000),
        "n": request((sessions["n"][0], 0), 1, x),
        "o": request(sessions["o"], 1, x),
        "p": request(sessions["p"], 1, x),
    }
    asked["p"].length = -1
    ends = dict(zip(asked, await port.ends(port.arrive(*asked.values())), strict=True))
    reasons = {name: end for name, end in ends.items() if isinstance(end, str)}
    assert reasons == {
        "b": "NON_FINITE",
        "c": "STEP_GAP",
        "d": "BAD_STEP",
        "e": "SESSION_REPLACED",
        "g": "BAD_TENSOR",
        "h": "BAD_STEP",
        "i": "BAD_SESSION_ID",
        "k": "BAD_TENSOR",
        "l": "MALFORMED",
        "n": "BAD_STEP",
        "p": "MALFORMED",
    }
    one, many = port.oracle.run(x)[0], port.oracle.run(long)[0]
    for name in "ajmo":
        assert ends[name].y == one.tobytes()
    assert ends["f"].y == many.tobytes()


async def test_steps_of_one_session_keep_their_order(port: Port) -> None:
    """The first step of a session is a column, later ones wait for it, and a repeat has its
    reply."""
    sessions = [port.open(f"s{i}") for i in range(6)]
    xs = rows(3)
    asked = [request(s, n + 1, x) for n, x in enumerate(xs) for s in sessions]
    again = [request(s, 3, xs[2]) for s in sessions]
    ends = await port.ends(port.arrive(*asked, *again))
    wanted = port.oracle.run(xs.reshape(3, -1))[0]
    for i, end in enumerate(ends):
        assert isinstance(end, pb.StepResponse)
        number = min(i // len(sessions), 2)
        assert (end.step, end.y) == (number + 1, wanted[number].tobytes())
        assert end.replayed == (i >= 3 * len(sessions))


async def test_who_goes_away_is_not_computed(port: Port) -> None:
    """Of steps that wait, those whose callers left are not applied, except one that a repeat has
    joined."""
    sessions = [port.open(f"s{i}") for i in range(8)]
    xs = rows(8)
    asked = [request(s, 1, x) for s, x in zip(sessions, xs, strict=True)]
    calls = port.arrive(*asked)
    joined = port.arrive(asked[2])
    for i in (0, 2, 5):
        calls[i].leave()
    (reply,) = await port.ends(joined)
    assert isinstance(reply, pb.StepResponse)
    assert (reply.replayed, reply.y) == (True, port.oracle.run(xs[2])[0].tobytes())
    await asyncio.gather(*(calls[i].done for i in (1, 3, 4, 6, 7)))
    steps = [port.engine.table.step.item(port.engine.table.find(f"/s{i}")) for i in range(8)]
    assert steps == [0, 1, 1, 1, 1, 0, 1, 1]


async def test_no_room_for_all_is_room_for_some(tmp_path: Path) -> None:
    """If the queue has no room for all, it accepts as many as it has."""
    port = Port(tmp_path, pending_steps_max=9)
    sessions = [port.open(f"s{i}") for i in range(12)]
    ends = await port.ends(port.arrive(*(request(s, 1, rows(1)[0]) for s in sessions)))
    assert [isinstance(end, pb.StepResponse) for end in ends] == [True] * 9 + [False] * 3
    assert ends[9:] == ["OVERLOADED"] * 3
    await port.engine.close(5)
    assert port.running is not None
    await port.running


async def test_a_busy_session_is_no_column(port: Port) -> None:
    """A step of a session with a pending step waits for that one."""
    sessions = [port.open(f"s{i}") for i in range(6)]
    first, second = rows(2)
    row = port.engine.table.find("/s3")
    assert row is not None
    submit(port.engine, row, first)
    numbers = [2 if i == 3 else 1 for i in range(6)]
    asked = [request(s, n, second) for s, n in zip(sessions, numbers, strict=True)]
    ends = await port.ends(port.arrive(*asked))
    wanted = port.oracle.run(np.concatenate([first, second]))[0][1]
    assert isinstance(ends[3], pb.StepResponse)
    assert ends[3].y == wanted.tobytes()


async def test_those_that_waited_together_keep_their_inputs(port: Port) -> None:
    """Steps that wait for others keep their inputs, in whatever order their sessions come free."""
    sessions, xs = [port.open(f"s{i}") for i in range(6)], rows(12)
    port.arrive(*(request(s, 1, x) for s, x in zip(sessions, xs[:6], strict=True)))
    later = [request(s, 2, x) for s, x in zip(sessions, xs[6:], strict=True)]
    ends = await port.ends(port.arrive(*reversed(later)))
    for end, first, second in zip(reversed(ends), xs[:6], xs[6:], strict=True):
        assert isinstance(end, pb.StepResponse)
        assert end.y == port.oracle.run(np.concatenate([first, second]))[0][1:].tobytes()


@pytest.mark.parametrize("few", [1, 1000])
async def test_columns_or_singly_is_the_same(
    port: Port, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random traffic that arrives in random groups has the oracle's bits, in columns or row by
    row."""
    monkeypatch.setattr(ordering, "COLUMNS_FROM", few)
    monkeypatch.setattr(settle, "COLUMNS_FROM", few)
    rng = np.random.default_rng(few)
    sessions = [port.open(f"s{i}") for i in range(12)]
    histories: list[list[Any]] = [[] for _ in sessions]
    port.run()
    for _ in range(30):
        chosen = rng.integers(0, len(sessions), int(rng.integers(1, 30))).tolist()
        asked = []
        for i in chosen:
            x = rng.standard_normal((int(rng.choice([1, 1, 1, 3])), 3)).astype(np.float32)
            histories[i].append(x)
            asked.append(request(sessions[i], len(histories[i]), x))
        ends = await port.ends(port.arrive(*asked))
        for i, end, each in zip(chosen, ends, asked, strict=True):
            assert isinstance(end, pb.StepResponse), end
            y = port.oracle.run(np.concatenate(histories[i][: each.step]))[0]
            assert end.y == y[-each.length :].tobytes()


async def test_a_deadline_of_centuries_is_none(port: Port) -> None:
    """Steps whose deadline is farther away than a clock counts run together with others."""
    sessions, x = [port.open(f"s{i}") for i in range(6)], rows(1)[0]
    contents = [request(s, 1, x).SerializeToString() for s in sessions]
    callers = [Caller(content, port.tenant, port.pending) for content in contents]
    for each in callers:
        each.deadline_ns = 10**21
    port.calls.read([UnaryStep(port.calls, port.frame, each) for each in callers])
    ends = await port.ends(callers)
    assert all(isinstance(end, pb.StepResponse) for end in ends), ends


async def test_a_session_does_not_end_between_two_of_its_steps(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that arrive together are found at one time: a session that lives for the first of its
    steps lives for the second, too."""
    session, xs = port.open("s"), rows(2)
    ends_ns = int(port.engine.table.expiry_ns[0])
    times = itertools.count(ends_ns - 1)  # it expires between two looks at the clock
    monkeypatch.setattr(port.engine, "clock", lambda: Now(next(times), 0))
    calls = port.arrive(*(request(session, n + 1, x) for n, x in enumerate(xs)))
    monkeypatch.undo()
    ends = await port.ends(calls)
    assert [end.step for end in ends if isinstance(end, pb.StepResponse)] == [1, 2]


async def test_a_repeat_never_waits_less_than_nothing(port: Port) -> None:
    """A repeat spends no time in the queue, whatever arrived with it, and when."""
    x, sessions = rows(1)[0], [port.open("s"), port.open("t")]
    await port.ends(port.arrive(request(sessions[0], 1, x)))
    contents = [request(s, 1, x).SerializeToString() for s in sessions]
    callers = [Caller(content, port.tenant, port.pending) for content in contents]
    steps = [UnaryStep(port.calls, port.frame, each) for each in callers]
    steps[1].arrival_ns -= 1_000_000  # a message of a stream may have waited before it is read
    port.calls.read(steps)
    again, _ = await port.ends(callers)
    assert isinstance(again, pb.StepResponse)
    assert (again.replayed, again.queue_ns) == (True, 0)


async def test_a_step_that_waited_is_charged_when_it_is_accepted(port: Port) -> None:
    """A step that waited for room in its stream, or for a store, is charged at the rate of its
    acceptance."""
    sessions, x = [port.open(f"s{i}") for i in range(4)], rows(1)[0]
    port.tenant.limits = Limits(rows_per_s=4)
    contents = [request(s, 1, x).SerializeToString() for s in sessions]
    callers = [Caller(content, port.tenant, port.pending) for content in contents]
    steps = [UnaryStep(port.calls, port.frame, each) for each in callers]
    steps[2].arrival_ns -= 60_000_000_000
    port.calls.read(steps)
    ends = await port.ends(callers)
    assert [end.step for end in ends if isinstance(end, pb.StepResponse)] == [1] * 4, ends


async def test_a_repeat_that_comes_with_its_step_is_charged_once(port: Port) -> None:
    """The rows of a numbered step are taken from the rate once, however often it is in a list."""
    session, x = port.open("s"), rows(2)
    port.tenant.limits = Limits(rows_per_s=2)
    asked = [request(session, n + 1, x[n]) for n in (0, 0, 1, 1, 0)]
    ends = await port.ends(port.arrive(*asked))
    assert [end.step for end in ends if isinstance(end, pb.StepResponse)] == [1, 1, 2, 2, 1], ends


@pytest.mark.parametrize("kind", ["malformed", "not finite", "gap", "no session"])
async def test_a_refused_message_holds_its_answer_alone(port: Port, kind: str) -> None:
    """An error that waits for the replies before it in a stream keeps nothing of its message."""
    session, x = port.open("s"), np.ones((2000, 3), np.float32)
    bad = {
        "malformed": b"\xff" * x.nbytes,
        "not finite": request(session, 2, np.full_like(x, np.nan)).SerializeToString(),
        "gap": request(session, 9, x).SerializeToString(),
        "no session": request((session[0], 7), 2, x).SerializeToString(),
    }[kind]
    sender = Sender()
    sender.conversation = stream = port.calls.begin(sender, port.tenant)  # type: ignore[arg-type]  # a Sender
    stream.receive(request(session, 1, rows(1)[0]).SerializeToString())
    stream.receive(bad)
    port.calls.inbox.take_in()
    first, second = stream.unanswered
    held = [first.x, second.x, second.message.x, second._content]
    assert [len(each) for each in held] == [0] * 4
    stream.gone()


async def test_a_message_of_many_that_waits_for_its_turn_holds_its_reply_alone(
    port: Port,
) -> None:
    """A StepMany message that is done before an earlier one with the same session holds no
    input."""
    a, b = port.open("a"), port.open("b")
    calls = StepManyCalls(port.engine, port.metrics, port.pending)
    sender = Sender()
    stream = calls.begin(sender, port.tenant)  # type: ignore[arg-type]  # a Sender
    sender.conversation = stream
    row = port.engine.table.find("/b")
    assert row is not None
    scheduler = port.engine.models[0].scheduler
    assert scheduler is not None
    pause = scheduler.hold(row, lambda: None)
    long = np.ones((500, 3), np.float32)
    for ids, lengths in (((a, b), [1, 1]), ((a,), [500])):
        x = long[: sum(lengths)].tobytes()
        names = [each[0] for each in ids]
        message = pb.StepManyRequest(session_ids=names, lengths=lengths, x=x, last_only=True)
        stream.receive(message.SerializeToString())
    port.run()
    _, second = stream.unanswered
    await passes()
    assert list(stream._held) == [second]
    assert second._request is not None
    assert (len(second._request.x), second._request.y) == (0, None)
    scheduler.release(pause)
    port.engine.batch_loop.notice()
    await passes()
    assert len(sender.replies) == 2
    stream.closed()


async def test_a_message_of_repeats_alone_is_answered_once(port: Port) -> None:
    """A StepMany message of repeats alone has one reply, with its y, as soon as it is accepted."""
    sessions = [port.open(f"s{i}") for i in range(5)]
    calls = StepManyCalls(port.engine, port.metrics, port.pending)
    sender, x = Sender(), np.ones((5, 3), np.float32)
    stream = calls.begin(sender, port.tenant)  # type: ignore[arg-type]  # a Sender
    sender.conversation = stream
    message = pb.StepManyRequest(
        session_ids=[each[0] for each in sessions],
        incarnations=[each[1] for each in sessions],
        steps=[1] * 5,
        x=x.tobytes(),
    )
    port.run()
    for _ in range(2):
        stream.receive(message.SerializeToString())
        await passes()
    first, second = map(pb.StepManyResponse.FromString, sender.replies)
    assert (list(first.replayed), list(second.replayed)) == ([], [0, 1, 2, 3, 4])
    assert first.y == second.y == port.oracle.run(x[:1])[0].tobytes() * 5
    stream.closed()


async def test_bad_ones_do_not_part_the_others(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of another size, without x, with NaN or unknown leaves the others one request."""
    sessions, sizes = [port.open(f"s{i}") for i in range(9)], []
    accept = port.engine.accept

    def counting(model: Model, work: Request) -> None:
        sizes.append(len(work))
        accept(model, work)

    monkeypatch.setattr(port.engine, "accept", counting)
    x = rows(1)[0]
    bad = [x[:, :2], x[:, :0], np.full_like(x, np.nan)]
    asked = [request(s, 1, x) for s in sessions]
    for each, content in zip(asked[2:5], bad, strict=True):
        each.x = content.tobytes()
    asked[5].session_id = "nobody"
    ends = await port.ends(port.arrive(*asked))
    assert sizes == [5]
    reasons = [end for end in ends if isinstance(end, str)]
    assert reasons == ["BAD_TENSOR", "EMPTY_INPUT", "NON_FINITE", "SESSION_LOST"]
    wanted = port.oracle.run(x)[0].tobytes()
    assert [end.y == wanted for end in ends if isinstance(end, pb.StepResponse)] == [True] * 5
    for end in await port.ends(port.arrive(*(request(s, 1, x) for s in sessions[2:5]))):
        assert isinstance(end, pb.StepResponse)
        assert end.y == wanted


async def test_a_step_that_waits_holds_no_others_input(port: Port) -> None:
    """Steps that wait for others of their sessions are requests of their own."""
    sessions, sizes = [port.open(f"s{i}") for i in range(8)], []
    accept = port.engine.accept

    def counting(model: Model, work: Request) -> None:
        sizes.append((len(work), len(work.x)))
        accept(model, work)

    port.engine.accept = counting  # type: ignore[method-assign]  # of this engine alone
    first, second = rows(2)
    busy = port.arrive(request(sessions[0], 1, first))
    asked = [request(s, 2 if i == 0 else 1, second) for i, s in enumerate(sessions)]
    asked.append(request(sessions[3], 2, first))
    calls = port.arrive(*asked)
    assert sizes == [(1, 1), (1, 1), (7, 7), (1, 1)]
    ends = await port.ends([*busy, *calls])
    assert all(isinstance(end, pb.StepResponse) for end in ends)
