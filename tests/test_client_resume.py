"""A session that outlives its server: the client sends again what a restarted server has lost."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmserve import AsyncClient, Client
from lstmserve.client import (
    DeadlineExceeded,
    Session,
    SessionLost,
    State,
    StepConflict,
    StepManyFailed,
    StepsLost,
)
from modelmaking import TINY, random_input
from serving import WAIT_S_MAX, Serve, Serving
from traffic import Oracle

TRY_S = 2.0
KILLS = (8, 23)
STEPS = 32
BEHIND = ("--store-mode", "behind", "--behind-s-max", "3600")


@pytest.fixture(scope="module")
def oracle(models: Path) -> Oracle:
    """What whole sequences of tiny:1 give."""
    return Oracle(models / "tiny" / "1", TINY)


def x(seed: int, *shape: int) -> Any:
    """One input of tiny:1."""
    return random_input(TINY, shape, seed)


class Mortal:
    """A server that is killed and started again, on the same port, each time its turn has come."""

    def __init__(self, serve: Serve, *flags: str) -> None:
        self._serve = serve
        self._flags = flags
        self._due = threading.Semaphore(0)
        self.servings: list[Serving] = [serve(*flags)]
        self.target = self.servings[0].target
        self._thread = threading.Thread(target=self._live)
        self._thread.start()

    def answered(self, count: int) -> None:
        """Is called after `count` steps; some counts kill the server."""
        if count in KILLS:
            self._due.release()

    def end(self) -> Serving:
        """Stops. Returns the last server; all others are dead."""
        self._thread.join(WAIT_S_MAX)
        assert len(self.servings) == len(KILLS) + 1
        return self.servings[-1]

    def _live(self) -> None:
        for _ in KILLS:
            assert self._due.acquire(timeout=WAIT_S_MAX)
            self.servings[-1].kill()
            self.servings.append(self._serve("--listen", self.target, *self._flags))


def assert_whole(oracle: Oracle, xs: list[Any], ys: list[Any], state: State) -> None:
    """Asserts that outputs and state are the oracle's bits: every step counted once."""
    y, hn, cn = oracle.run(np.concatenate([np.atleast_2d(x) for x in xs]))
    assert np.array_equal(np.concatenate([np.atleast_2d(y) for y in ys]), y)
    h, c = state
    assert np.array_equal(h, hn)
    assert np.array_equal(c, cn)


def step_through(client: Client, session: Session, xs: list[Any], mortal: Mortal) -> list[Any]:
    """All xs, by each of the three ways in turn, while servers die."""
    ys: list[Any] = []
    while len(ys) < len(xs):
        some = xs[len(ys) : len(ys) + 5]
        match len(ys) // 5 % 3:
            case 0:
                replies: Any = map(session.step, some)
            case 1:
                replies = session.stream(some, window=2)
            case _:
                replies = (client.step_many({session: x})[session] for x in some)
        for y in replies:
            ys.append(y)
            mortal.answered(len(ys))
    return ys


def test_a_session_survives_its_servers_by_its_log(serve: Serve, oracle: Oracle) -> None:
    """With state in memory and two kills the log is sent again, and the caller notices nothing."""
    mortal = Mortal(serve)
    with Client(mortal.target, timeout_s=TRY_S) as client:
        xs = [x(n, *(() if n % 3 else (3,))) for n in range(STEPS)]
        with client.session("tiny", replay_steps_max=STEPS) as session:
            first = session.incarnation
            ys = step_through(client, session, xs, mortal)
            last = mortal.end()
            assert_whole(oracle, xs, ys, session.state())
            assert session.incarnation > first
            assert session.durable_step == 0
            assert session.info().step == session.step_count
            assert last.metric("lstm_sessions") == 1


@pytest.mark.parametrize(
    "flags",
    [("through",), ("behind", "--behind-s-max", "0.05"), ("behind", "--behind-s-max", "3600")],
)
def test_a_session_survives_its_servers_in_the_store(
    flags: tuple[str, ...], serve: Serve, oracle: Oracle, tmp_path: Path
) -> None:
    """With a store and two kills, write-through needs no log, and write-behind a log of recent
    steps."""
    mortal = Mortal(serve, "--store", f"file:{tmp_path / 's'}", "--store-mode", *flags)
    log = 0 if flags == ("through",) else STEPS
    with Client(mortal.target, timeout_s=TRY_S) as client:
        xs = [x(n) for n in range(STEPS)]
        with client.session("tiny", replay_steps_max=log) as session:
            first = session.incarnation
            ys = step_through(client, session, xs, mortal)
            last = mortal.end()
            assert_whole(oracle, xs, ys, session.state())
            assert session.incarnation == first
            assert last.metric("lstm_sessions_opened_total", source="load") == 1
            assert last.metric("lstm_sessions_opened_total", source="new") == 0


async def test_sessions_survive_their_servers_on_the_loop(serve: Serve, oracle: Oracle) -> None:
    """Six sessions of one step_many, and one that streams, by asyncio."""
    mortal = Mortal(serve)
    async with AsyncClient(mortal.target, timeout_s=TRY_S) as client:
        inputs = [[x(100 * n + k) for k in range(STEPS)] for n in range(7)]
        sessions = [await client.session("tiny", replay_steps_max=STEPS) for _ in inputs]
        outputs: list[list[Any]] = [[] for _ in inputs]

        async def stream() -> None:
            async for y in sessions[6].stream(inputs[6], window=3):
                outputs[6].append(y)

        async def many() -> None:
            for xs in zip(*inputs[:6], strict=True):
                ys = await client.step_many(dict(zip(sessions, xs, strict=False)))
                for n in range(6):
                    outputs[n].append(ys[sessions[n]])
                mortal.answered(len(outputs[0]))

        await asyncio.gather(stream(), many())
        await asyncio.to_thread(mortal.end)
        for session, xs, ys in zip(sessions, inputs, outputs, strict=True):
            if session is sessions[6]:
                await session.step(x(0))
                xs, ys = [*xs, x(0)], [*ys, oracle.run(np.stack([*xs, x(0)]))[0][-1]]
            assert_whole(oracle, xs, ys, await session.state())


def restarted(serve: Serve, serving: Serving, *flags: str) -> Serving:
    """Kills the server, and starts it again on the same port."""
    serving.kill()
    return serve("--listen", serving.target, *flags)


def test_a_log_that_does_not_reach_back_tells(serve: Serve) -> None:
    """With one step more than the log holds, every way to step raises SessionLost, nothing
    applied."""
    serving = serve()
    with Client(serving.target) as client:
        short, empty, long = (client.session("tiny", replay_steps_max=n) for n in (2, 0, 3))
        for n in range(3):
            client.step_many({session: x(n) for session in (short, empty, long)})
        restarted(serve, serving)
        for session in (short, empty):
            with pytest.raises(SessionLost) as lost:
                session.step(x(3))
            assert lost.value.applied is False
        with pytest.raises(StepManyFailed) as failed:
            client.step_many({short: x(3), long: x(3)})
        assert list(failed.value.errors) == [short]
        assert list(failed.value.results) == [long]
        assert long.step_count == long.info().step == 4


def test_a_log_goes_back_to_where_the_session_began(serve: Serve, oracle: Oracle) -> None:
    """The log is sent on top of an imported state, or of one that was set."""
    serving = serve()
    with Client(serving.target) as client:
        source = client.session("tiny")
        source.step(x(1, 4))
        state = source.state()
        imported = client.session("tiny", state=state, replay_steps_max=2)
        reset = client.session("tiny", replay_steps_max=2)
        for n in range(3):
            reset.step(x(n))
        reset.set_state(state.tensors)
        for session in (imported, reset):
            session.step(x(2))
        restarted(serve, serving)
        y = oracle.run(np.concatenate([x(1, 4), x(2)[None], x(3)[None]]))[0]
        for session in (imported, reset):
            assert np.array_equal(session.step(x(3)), y[-1])
        assert (imported.step_count, reset.step_count) == (3, 5)


def test_write_behind_without_a_log_tells_what_was_lost(serve: Serve, tmp_path: Path) -> None:
    """Steps that were answered and not stored raise StepsLost with the expected step."""
    flags = ("--store", f"file:{tmp_path / 's'}", *BEHIND)
    serving = serve(*flags)
    with Client(serving.target) as client:
        session = client.session("tiny", id="a", keep=True)
        session.step(x(0))
        restarted(serve, serving, *flags)
        with pytest.raises(StepsLost) as lost:
            session.step(x(1))
        assert lost.value.applied is False
        assert lost.value.metadata["expected_step"] == "1"
        resumed = client.session("tiny", id="a", if_exists="resume")
        assert resumed.step_count == 0


@pytest.mark.parametrize("is_stored", [False, True])
def test_a_state_is_never_an_older_one(
    is_stored: bool, serve: Serve, oracle: Oracle, tmp_path: Path
) -> None:
    """After a crash the log is sent before a state is returned; without a log the loss is an
    error."""
    flags = ("--store", f"file:{tmp_path / 's'}", *BEHIND) if is_stored else ()
    serving = serve(*flags)
    with Client(serving.target) as client:
        kept, bare = (client.session("tiny", replay_steps_max=n) for n in (5, 0))
        ys = [kept.step(x(n)) for n in range(3)]
        bare.step(x(0))
        restarted(serve, serving, *flags)
        with pytest.raises(StepsLost if is_stored else SessionLost):
            bare.state()
        assert_whole(oracle, [x(n) for n in range(3)], ys, kept.state())
        assert kept.step_count == kept.info().step == 3


@contextmanager
def frozen(serving: Serving) -> Iterator[None]:
    """Stops the server in the middle of its work while the block runs."""
    serving.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        serving.signal(signal.SIGCONT)


@pytest.mark.parametrize("is_repeated", [True, False])
def test_a_step_of_unknown_end_is_finished_by_the_next(
    is_repeated: bool, serve: Serve, oracle: Oracle
) -> None:
    """The same x again is that step, another x comes after it, and neither is lost or doubled."""
    serving = serve()
    with Client(serving.target) as client:
        session = client.session("tiny")
        ways: list[Callable[[Any, float | None], Any]] = [
            lambda x, timeout_s: session.step(x, timeout_s=timeout_s),
            lambda x, timeout_s: next(iter(session.stream([x], timeout_s=timeout_s))),
            lambda x, timeout_s: client.step_many({session: x}, timeout_s=timeout_s)[session],
        ]
        xs: list[Any] = []
        for n, first in enumerate(ways):
            for m, second in enumerate(ways):
                xs.append(x(10 * n + m))
                with frozen(serving), pytest.raises((DeadlineExceeded, StepManyFailed)) as late:
                    first(xs[-1], 0.05)
                assert late.value.applied is None
                if not is_repeated:
                    xs.append(x(100 + 10 * n + m))
                y = second(xs[-1], None)
                assert np.array_equal(y, oracle.run(np.stack(xs))[0][-1])
        assert session.step_count == session.info().step == len(xs)


@pytest.mark.parametrize("last_only", [False, True])
def test_the_same_x_twice_is_two_steps(last_only: bool, serve: Serve, oracle: Oracle) -> None:
    """Only a step that was left without its y is repeated by the same x."""
    with Client(serve().target) as client, client.session("tiny") as session:
        given = {"return_sequences": not last_only}
        xs = [x(1, 2)] * 9
        for n in range(3):
            y = [session.step(xs[0], **given), *session.stream(xs[:1])]
            y.append(client.step_many({session: xs[0]}, **given)[session])
            wanted = oracle.run(np.concatenate(xs[: 3 * n + 3]))[0][-2:]
            assert np.array_equal(y[-1], wanted[-1] if last_only else wanted)
        assert session.step_count == session.info().step == 9


def test_a_broken_stream_is_taken_up(serve: Serve, oracle: Oracle) -> None:
    """xs are streamed again from the first without a y, and those sent ahead before count once."""
    xs = [x(n, *(() if n % 3 else (2,))) for n in range(40)]
    rng = np.random.default_rng(5)
    mortal = serve()
    with Client(mortal.target, retry_s_max=0) as client:
        session = client.session("tiny")
        ys: list[Any] = []
        for _ in range(8):
            here = int(rng.integers(1, 4))
            ys += itertools.islice(session.stream(xs[len(ys) :], window=8), here)
            with frozen(mortal), pytest.raises(DeadlineExceeded) as late:
                ys.extend(session.stream(xs[len(ys) :], window=8, timeout_s=0.05))
            assert late.value.applied is None
            with frozen(mortal), pytest.raises((DeadlineExceeded, StepManyFailed)):
                client.step_many({session: xs[len(ys)]}, timeout_s=0.05)
            ys.append(session.step(xs[len(ys)]))
        ys += session.stream(xs[len(ys) :])
        assert_whole(oracle, xs, ys, session.state())


def test_two_clients_of_one_session_are_told(serve: Serve, oracle: Oracle) -> None:
    """A number that another client took raises StepConflict, and after it the session goes on."""
    serving = serve()
    with Client(serving.target) as one, Client(serving.target) as two:
        mine = one.session("tiny", id="a")
        theirs = two.session("tiny", id="a", if_exists="resume", keep=True)
        mine.step(x(0))
        with pytest.raises(StepConflict, match="STEP_PAYLOAD_MISMATCH") as conflict:
            theirs.step(x(9))
        assert (conflict.value.applied, theirs.step_count) == (False, 1)
        xs = [0, 1, 2]
        for n in xs[1:]:
            mine.step(x(n))
        with pytest.raises(StepConflict, match="STEP_SUPERSEDED") as conflict:
            theirs.step(x(9))
        assert (conflict.value.applied, theirs.step_count) == (False, 3)
        y = theirs.step(x(9))
        assert np.array_equal(y, oracle.run(np.stack([x(n) for n in [*xs, 9]]))[0][-1])
