"""The engine under cancellation, failure, replacement and limits: other sessions never notice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmserve.config import Config
from lstmserve.engine import Engine, Model, load_models
from lstmserve.engine.clock import Now, read_clocks
from lstmserve.engine.compute.kernel import Kernel, KernelError
from lstmserve.engine.errors import (
    Cancelled,
    DeadlineExpired,
    Draining,
    ModelError,
    Overloaded,
    PredecessorFailed,
    ServeError,
    SessionClosed,
    SessionExpired,
    SessionLimit,
    SessionLost,
    SessionNotFound,
    SessionReplaced,
    StoreTimeout,
    StoreUnavailable,
)
from lstmserve.engine.keys import session_key
from lstmserve.engine.scheduling.batch import Batch
from lstmserve.engine.scheduling.work import Outcome
from lstmserve.engine.session.capacity import EXPIRED_MAX
from lstmserve.engine.session.opening import IfExists, OpenRequest
from lstmserve.head_layers import Linear
from lstmserve.spec import LstmSpec
from modelmaking import random_input
from traffic import NoMetrics, Oracle, Reply, open_session, start_engine, submit, submit_block

SPEC = LstmSpec(3, 8, 2, head=(Linear(2),))
SLICE = 4


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """An engine that does not run until a test runs it."""
    return start_engine(tmp_path, SPEC, seed=3, slice_rows_max=SLICE, batch_cells_max=64)


@pytest.fixture
async def running(engine: Engine) -> AsyncIterator[Engine]:
    """The running engine; its integrity is checked at the end."""
    task = asyncio.create_task(engine.run())
    yield engine
    await engine.close(5)
    await task
    engine.check_integrity()


def x(length: int = 1, seed: int = 0) -> Any:
    """Rows for SPEC."""
    return random_input(SPEC, (length,), seed)


def state(engine: Engine, row: int) -> Any:
    """h and c of a session, as one array [2, L, width]."""
    found = engine.sessions.state(row)
    return np.stack([found["h"][0], found["c"][0]])


def wanted(engine: Engine, *xs: Any) -> Any:
    """y of the last of the xs, and the state after it, by the oracle."""
    folder = engine.config.models / "m" / "1"
    y, hn, cn = Oracle(folder, SPEC).run(np.concatenate(xs))
    return y[-len(xs[-1]) :], np.stack([hn, cn])


async def passes(count: int) -> None:
    """Passes the loop `count` times."""
    for _ in range(count):
        await asyncio.sleep(0)


def open_request(engine: Engine, name: str, **fields: Any) -> OpenRequest:
    """An OpenRequest with defaults."""
    defaults: dict[str, Any] = {
        "key": session_key("", name),
        "model": engine.models[0],
        "version": 0,
        "ttl_ns": 10**9,
        "if_exists": IfExists.FAIL,
        "state": None,
        "fork_of": "",
    }
    return OpenRequest(**{**defaults, **fields})


@pytest.mark.parametrize("moment", range(14))
async def test_a_step_cancelled_at_any_moment_happens_wholly_or_not_at_all(
    running: Engine, moment: int
) -> None:
    """After any number of loop passes a cancelled step is applied whole or not at all, and others
    are exact."""
    a, b = open_session(running, "a"), open_session(running, "b")
    step, reply = submit(running, a, x(5 * SLICE))
    _, neighbour = submit(running, b, x(3 * SLICE, seed=1))
    await passes(moment)
    step.cancel()
    try:
        await reply
        before = [x(5 * SLICE)]
    except Cancelled:
        before = []
    assert np.array_equal((await neighbour).output(), wanted(running, x(3 * SLICE, seed=1))[0])
    _, after = submit(running, a, x(1, seed=2))
    y, end = wanted(running, *before, x(1, seed=2))
    assert np.array_equal((await after).output(), y)
    assert np.array_equal(state(running, a), end)


async def test_cancelling_reaches_both_ends(running: Engine) -> None:
    """The moments of the test above include one before and one after the step ran."""
    row = open_session(running, "a")
    step, reply = submit(running, row, x())
    step.cancel()
    with pytest.raises(Cancelled):
        await reply
    step, reply = submit(running, row, x())
    await reply
    step.cancel()
    assert running.table.step[row] == 1


async def test_steps_behind_one_that_fails_fail_in_order(running: Engine) -> None:
    """A cancelled step fails those that wait after it, in order, and later ones go on."""
    row = open_session(running, "a")
    order: list[int] = []
    replies = [submit(running, row, x(2 * SLICE, seed=i)) for i in range(4)]
    for i, (_, reply) in enumerate(replies):
        reply.future.add_done_callback(lambda _, i=i: order.append(i))
    replies[0][0].is_cancelled = True
    ends = await asyncio.gather(*(r.future for _, r in replies), return_exceptions=True)
    assert [type(end) for end in ends] == [Cancelled] + 3 * [PredecessorFailed]
    assert order == [0, 1, 2, 3]
    _, reply = submit(running, row, x(1, seed=9))
    assert np.array_equal((await reply).output(), wanted(running, x(1, seed=9))[0])


@pytest.mark.parametrize("bad", [0, 13, 31])
async def test_only_the_row_that_the_model_fails_on_fails(
    running: Engine, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    """When a run fails the rows run one by one, so 31 of 32 are applied with their own bits."""
    rows = [open_session(running, f"s{i}") for i in range(32)]
    marker = x(1, seed=99)
    run = Kernel.run
    took_ms: list[float] = []

    def fail_on_marker(self: Kernel, batch: Any, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = run(self, batch, *arguments)
        took_ms.append(1e3 * (time.perf_counter() - start))
        if (batch == marker[0]).all(axis=-1).any():
            raise KernelError("injected, after the slots were written")
        return result

    monkeypatch.setattr(Kernel, "run", fail_on_marker)
    xs = [marker if i == bad else x(1, seed=i) for i in range(32)]
    replies = [submit(running, row, each)[1] for row, each in zip(rows, xs, strict=True)]
    ends = await asyncio.gather(*(r.future for r in replies), return_exceptions=True)
    assert len(took_ms) == 1 + 32
    print(f"batch of 32: {took_ms[0]:.3f} ms; its rows one by one: {sum(took_ms[1:]):.3f} ms")
    for i, end in enumerate(ends):
        if i == bad:
            assert isinstance(end, ModelError)
            assert isinstance(end.__cause__, KernelError)  # which the log has
            assert running.table.step[rows[i]] == 0
        else:
            assert np.array_equal(end.output(), wanted(running, xs[i])[0])
    block = await submit_block(running, rows, xs)
    assert list(block.errors) == [bad]
    assert np.isnan(block.y[bad]).all()
    monkeypatch.setattr(Kernel, "run", run)
    last = x(1, seed=7)
    block = await submit_block(running, rows, [last] * 32)
    for i, y in enumerate(block.y):
        before = [] if i == bad else [xs[i]] * 2
        assert np.array_equal(y, wanted(running, np.concatenate([*before, last]))[0][-1])


async def test_a_deadline_that_passed_in_the_queue_is_told(running: Engine) -> None:
    """A step and a block whose deadline has passed when their turn comes are not computed."""
    row = open_session(running, "a")
    past = running.clock().monotonic_ns - 1
    _, reply = submit(running, row, x(), deadline_ns=past)
    with pytest.raises(DeadlineExpired):
        await reply
    _, reply = submit(running, row, x(), deadline_ns=past + 10**12)
    await reply
    assert running.table.step[row] == 1


async def test_limits_hold_at_the_limit_and_one_above(tmp_path: Path) -> None:
    """pending_steps_max and session_pending_max admit their number, and refuse one more."""
    engine = start_engine(tmp_path, SPEC, pending_steps_max=5, session_pending_max=3)
    a, b = open_session(engine, "a"), open_session(engine, "b")
    replies = [submit(engine, a, x())[1] for _ in range(3)]
    with pytest.raises(Overloaded, match="of the session"):
        submit(engine, a, x())
    replies += [submit(engine, b, x())[1] for _ in range(2)]
    with pytest.raises(Overloaded, match="limit is 5") as refused:
        submit(engine, b, x())
    assert refused.value.retry_s is not None
    with pytest.raises(Overloaded):
        submit_block(engine, [b], [x()])
    task = asyncio.create_task(engine.run())
    for reply in replies:
        await reply
    assert engine.batch_loop.pending_steps == 0
    await engine.close(1)
    await task


async def test_the_pool_has_room_for_as_many_sessions_as_it_says(tmp_path: Path) -> None:
    """With sessions_max sessions all can step, long and short at once, and one more is refused."""
    settings = {"pool_bytes": 400 * 128 * 2, "batch_sessions_max": 16, "long_steps_max": 16}
    engine = start_engine(tmp_path, SPEC, slice_rows_max=SLICE, batch_cells_max=64, **settings)
    count = engine.models[0].sessions_max
    rows = [open_session(engine, f"s{i}") for i in range(count)]
    with pytest.raises(SessionLimit) as refused:
        open_session(engine, "one-more")
    assert refused.value.retry_s is not None
    task = asyncio.create_task(engine.run())
    for length in (1, 3 * SLICE, 1):
        replies = [submit(engine, row, x(length, seed=row))[1] for row in rows]
        for reply in replies:
            await reply
    _, end = wanted(engine, x(1, rows[7]), x(3 * SLICE, rows[7]), x(1, rows[7]))
    assert np.array_equal(state(engine, rows[7]), end)
    await engine.close(1)
    await task
    engine.check_integrity()


async def test_a_replaced_session_ends_its_pending_steps(running: Engine) -> None:
    """After RESTART the running steps end as SessionReplaced, and the new session starts at
    zero."""
    row = open_session(running, "a")
    replies = [submit(running, row, x(3 * SLICE))[1] for _ in range(3)]
    await passes(2)
    request = open_request(running, "a", if_exists=IfExists.RESTART)
    new, created = await running.lifecycle.open(request)
    assert created
    assert new != row
    for reply in replies:
        with pytest.raises(SessionReplaced):
            await reply
    _, reply = submit(running, new, x(2))
    assert np.array_equal((await reply).output(), wanted(running, x(2))[0])
    assert running.models[0].sessions == 1


async def test_closing_runs_what_is_pending_first(running: Engine) -> None:
    """close() returns the number of the last pending step and refuses later ones, also the second
    time."""
    row = open_session(running, "a")
    key, ended = session_key("", "a"), asyncio.get_running_loop().create_future()
    replies = [submit(running, row, x(2 * SLICE))[1] for _ in range(3)]
    running.sessions.close(key, 0, running.clock(), ended.set_result)
    with pytest.raises(SessionClosed):
        running.sessions.find(key, 0, running.clock())
    assert not ended.done()
    for reply in replies:
        await reply
    assert await ended == 3
    again: list[int] = []
    running.sessions.close(key, 0, running.clock(), again.append)
    assert again == [3]


def test_what_is_told_of_an_absent_session(engine: Engine) -> None:
    """Sessions that were never opened, lost, expired, closed and replaced get different errors."""
    now = engine.clock()
    key = session_key("", "a")
    find = engine.sessions.find
    with pytest.raises(SessionNotFound):
        find(key, 0, now)
    with pytest.raises(SessionLost):
        find(key, 77, now)
    row, _ = engine.lifecycle._opener.open(open_request(engine, "a", ttl_ns=5), now)
    incarnation = int(engine.table.incarnation[row])
    with pytest.raises(SessionReplaced):
        find(key, incarnation + 1, now)
    later = type(now)(now.monotonic_ns + 6, now.wall_ns)
    for asked in (0, incarnation):
        with pytest.raises(SessionExpired):
            find(key, asked, later)
    with pytest.raises(SessionLost):
        find(key, incarnation + 1, later)
    engine.check_integrity()


def test_the_sweep_ends_idle_sessions(engine: Engine) -> None:
    """Expired sessions give their rows back even if no call names them."""
    now = engine.clock()
    for i in range(10):
        engine.lifecycle._opener.open(
            open_request(engine, f"s{i}", ttl_ns=5 if i % 2 else 10**9), now
        )
    later = type(now)(now.monotonic_ns + 6, now.wall_ns)
    assert engine.capacity.sweep(later)
    assert len(engine.table) == engine.models[0].sessions == 5
    engine.check_integrity()


def expire_some(engine: Engine, count: int) -> Now:
    """Opens `count` sessions. Returns a time at which they have all expired."""
    now = engine.clock()
    for i in range(count):
        engine.lifecycle._opener.open(open_request(engine, f"s{i}", ttl_ns=5), now)
    return Now(now.monotonic_ns + 6, now.wall_ns)


def test_the_sweep_walks_no_row_that_was_never_used(tmp_path: Path) -> None:
    """In a pool of a million slots, too, one sweep finds what has expired since the last one."""
    engine = start_engine(tmp_path, SPEC, pool_bytes=128 << 20)
    assert engine.table.rows > 1_000_000
    assert engine.capacity.sweep(engine.clock())
    engine.capacity.sweep(expire_some(engine, 10))
    assert len(engine.table) == 0
    engine.check_integrity()


def test_a_sweep_is_bounded(tmp_path: Path) -> None:
    """If more sessions have expired than one sweep ends, it says so, and the next one goes on."""
    engine = start_engine(tmp_path, SPEC, pool_bytes=4 << 20)
    later = expire_some(engine, 2 * EXPIRED_MAX + 1)
    for left in (EXPIRED_MAX + 1, 1):
        assert not engine.capacity.sweep(later)
        assert len(engine.table) == left
        engine.check_integrity()
    assert engine.capacity.sweep(later)
    assert len(engine.table) == 0


class SlowStore:
    """A store whose commits wait until a test lets them end; it fails those that the test names."""

    def __init__(self) -> None:
        self.commits: list[tuple[Batch, asyncio.Future[None]]] = []

    def admit(self, rows: Any) -> None:
        """Admits every session."""

    async def run(self) -> None:
        """Does nothing."""

    def lag_s(self) -> float:
        """No lag."""
        return 0.0

    async def drain(self, timeout_s: float) -> None:
        """Does nothing."""

    def commit(self, model: Model, batch: Batch) -> Awaitable[None]:
        """Waits for the test."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.commits.append((batch, future))
        return future


async def until(condition: Callable[[], bool]) -> None:
    """Passes the loop until the condition holds."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came")


async def test_a_step_is_in_flight_until_the_store_has_it(tmp_path: Path) -> None:
    """Other sessions' batches run while a commit waits, and replies come in the order of
    commits."""
    engine = start_engine(tmp_path, SPEC, slice_rows_max=SLICE, batch_cells_max=64)
    store = SlowStore()
    engine = Engine(engine.config, load_models(engine.config), NoMetrics(), stage=store)
    task = asyncio.create_task(engine.run())
    a, b = open_session(engine, "a"), open_session(engine, "b")
    _, first = submit(engine, a, x(seed=1))
    await until(lambda: len(store.commits) == 1)
    _, second = submit(engine, a, x(seed=2))
    _, other = submit(engine, b, x(seed=3))
    await until(lambda: len(store.commits) == 2)
    assert not first.future.done()
    assert engine.table.step[a] == 0
    store.commits[1][1].set_result(None)
    assert np.array_equal((await other).output(), wanted(engine, x(seed=3))[0])
    assert not first.future.done()
    store.commits[0][1].set_result(None)
    await first
    await until(lambda: len(store.commits) == 3)
    batch, future = store.commits[2]
    batch.outcomes[0] = Outcome.NOT_STORED
    future.set_result(None)
    with pytest.raises(StoreUnavailable):
        await second
    assert engine.table.step[a] == 1
    assert np.array_equal(state(engine, a), wanted(engine, x(seed=1))[1])
    _, third = submit(engine, a, x(seed=4))
    await until(lambda: len(store.commits) == 4)
    store.commits[3][1].set_exception(ConnectionError("a bug"))
    with pytest.raises(StoreTimeout):
        await third
    assert engine.table.find(session_key("", "a")) is None, "the store may have it or not"
    await engine.close(1)
    await task
    engine.check_integrity()


LINE = 5000
ENDS: dict[str, type[ServeError]] = {
    "cancelled": PredecessorFailed,
    "late": PredecessorFailed,
    "broken": PredecessorFailed,
    "replaced": SessionReplaced,
    "drained": Draining,
}


@pytest.mark.parametrize("end", ENDS)
async def test_a_long_line_fails_at_once(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the first of thousands of steps fails, those after it fail in order."""
    engine = start_engine(tmp_path, SPEC, session_pending_max=LINE, pending_steps_max=LINE)
    row = open_session(engine, "a")
    first = {"deadline_ns": 1} if end == "late" else {}
    step, reply = submit(engine, row, x(), **first)
    replies = [reply, *(submit(engine, row, x())[1] for _ in range(LINE - 1))]
    told: list[int] = []
    for i, each in enumerate(replies):
        each.future.add_done_callback(lambda _, i=i: told.append(i))
    step.is_cancelled = end == "cancelled"
    if end == "replaced":
        engine.sessions.detach(row, "replaced")
    if end == "broken":
        monkeypatch.setattr(Kernel, "run", break_run)
    task = asyncio.create_task(engine.run())
    if end == "drained":
        await engine.close(0)
    errors = await asyncio.gather(*(each.future for each in replies), return_exceptions=True)
    assert told == [*range(LINE)]
    assert {type(error) for error in errors[1:]} <= {ENDS[end], PredecessorFailed}
    assert all(isinstance(error, ServeError) for error in errors[1:])
    await engine.close(5)
    await task
    engine.check_integrity()


def break_run(*_: Any) -> Any:
    """Replaces a kernel's run, and fails."""
    raise KernelError("as wanted")


async def test_the_engines_death_fails_every_step(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in the kernel ends run(), and every caller gets an answer."""

    def break_down(*arguments: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Kernel, "run", break_down)
    rows = [open_session(engine, f"s{i}") for i in range(3)]
    replies = [submit(engine, row, x(n * SLICE + 1))[1] for n, row in enumerate(rows)]
    replies += [submit(engine, rows[0], x())[1]]
    with pytest.raises(RuntimeError, match="a bug"):
        await engine.run()
    for reply in replies:
        with pytest.raises(ServeError):
            await reply
    with pytest.raises(Draining):
        submit(engine, rows[0], x())


async def test_close_fails_what_it_has_no_time_for(engine: Engine) -> None:
    """Without time left the queued steps end as Draining, and run() returns."""
    rows = [open_session(engine, f"s{i}") for i in range(3)]
    replies = [submit(engine, row, x(50 * SLICE))[1] for row in rows]
    task = asyncio.create_task(engine.run())
    await passes(4)
    await engine.close(0)
    await task
    for reply in replies:
        with pytest.raises(Draining):
            await reply
    engine.check_integrity()


def test_clocks_are_read_together() -> None:
    """A reading has both clocks, in nanoseconds."""
    first, second = read_clocks(), read_clocks()
    assert second.monotonic_ns >= first.monotonic_ns
    assert Config().session_ttl_s == 86_400
    assert isinstance(Reply, type)
