"""How models share --pool-bytes: limits, what one gives back for another, and who moves out."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmserve.config import Config
from lstmserve.engine import Engine, Model, load_models
from lstmserve.engine.budget import KEPT_BYTES
from lstmserve.engine.errors import SessionLimit
from lstmserve.engine.model import slots_for
from lstmserve.engine.session.capacity import SessionCapacity
from lstmserve.engine.session.opening import IfExists, OpenRequest, SessionOpener
from lstmserve.engine.table import NOT_STORED
from lstmserve.head_layers import Linear
from lstmserve.spec import LstmSpec
from modelmaking import make_model, random_input
from traffic import NoMetrics, Oracle, open_session, submit

SPECS = {
    "a": LstmSpec(3, 8, head=(Linear(2),)),
    "b": LstmSpec(3, 24, head=(Linear(2),)),
    "c": LstmSpec(3, 16, 2, head=(Linear(2),)),
}
STATE_BYTES = {"a": 64, "b": 192, "c": 256}
SMALL: dict[str, Any] = {"batch_sessions_max": 8, "long_steps_max": 8}  # 48 spare slots


def make_engine(folder: Path, pool_bytes: int, names: str = "abc", **settings: Any) -> Engine:
    """An engine of these models; not running."""
    for seed, name in enumerate(names):
        make_model(folder, SPECS[name], seed, name=name)
    config = Config(models=folder, pool_bytes=pool_bytes, **{**SMALL, **settings})
    return Engine(config, load_models(config), NoMetrics())


def floors(names: str) -> int:
    """What these models must have."""
    return sum(slots_for(1, Config(**SMALL)) * STATE_BYTES[name] for name in names)


def fill(engine: Engine, model: Model, most: int = 10**9) -> list[int]:
    """Opens sessions until one is refused, or there are so many: their rows."""
    rows: list[int] = []
    try:
        while len(rows) < most:
            rows.append(open_session(engine, f"{model.name}{engine.table._lives}", model))
    except SessionLimit:
        pass
    return rows


def close(engine: Engine, rows: Sequence[int]) -> None:
    """Ends these sessions."""
    for row in rows:
        key = engine.table.keys[row]
        assert key is not None
        engine.sessions.close(key, 0, engine.clock(), lambda step: None)


def step(engine: Engine, rows: Sequence[int], seed: int) -> dict[int, Any]:
    """One step of each session, of one model, through the kernel; x by row."""
    model = engine.model_of(rows[0])
    assert model.scheduler is not None
    assert model.kernel is not None
    xs = {row: random_input(SPECS[model.name], (1,), seed + row) for row in rows}
    for row, x in xs.items():
        submit(engine, row, x)
    now_ns = engine.clock().monotonic_ns
    while (batch := model.scheduler.schedule(now_ns)) is not None:
        batch.absorb(model.kernel.run(batch.inputs, batch.lengths, batch.read, batch.write))
        model.scheduler.settle(batch, now_ns, 1)
    return xs


def check_states(engine: Engine, xs: dict[int, list[Any]]) -> None:
    """The state of each session is what its inputs make of the initial one, to the last bit."""
    for row, inputs in xs.items():
        model = engine.model_of(row)
        oracle = Oracle(engine.config.models / model.name / "1", SPECS[model.name])
        _, h, c = oracle.run(np.concatenate(inputs))
        state = engine.sessions.state(row)
        assert np.array_equal(state["h"][0], h)
        assert np.array_equal(state["c"][0], c)


async def test_the_first_takes_what_it_wants_and_every_model_keeps_one(tmp_path: Path) -> None:
    """At the limit of all bytes one more is refused, and the refusal says who has the rest."""
    sessions = 100
    pool_bytes = floors("abc") + (sessions - 1) * 64 + 63
    engine = make_engine(tmp_path, pool_bytes)
    a, b, c = engine.models
    assert a.sessions_max == sessions
    assert (b.sessions_max, c.sessions_max) == (1 + 99 * 64 // 192, 1 + (99 * 64 + 63) // 256)
    rows = fill(engine, a)
    assert len(rows) == sessions
    with pytest.raises(SessionLimit, match="all 100 sessions of a:1 are in use: close some"):
        open_session(engine, "more", a)
    for model in (b, c):
        assert len(fill(engine, model)) == 1
        says = f"no room for one more session of {model.name}:1, which has 1, beside 10"
        with pytest.raises(SessionLimit, match=says) as refused:
            open_session(engine, "more", model)
        assert refused.value.retry_s is not None
    close(engine, rows[:3])
    assert len(fill(engine, b)) == 1
    close(engine, rows[3:5])
    assert not fill(engine, b)
    close(engine, rows[5:6])
    assert len(fill(engine, b)) == 1


async def test_what_one_gave_up_another_gets(tmp_path: Path) -> None:
    """Also where its last sessions lie at the far end of its pool: they move, bit for bit."""
    engine = make_engine(tmp_path, floors("abc") + (2 << 20))
    a, b, _ = engine.models
    rng = np.random.default_rng(0)
    rows = fill(engine, a)
    xs: dict[int, list[Any]] = {row: [] for row in rows}
    for _ in range(2):
        for start in range(0, len(rows), 256):
            for row, x in step(engine, rows[start : start + 256], start).items():
                xs[row].append(x)
    assert a.pool is not None
    top = a.pool.top
    assert top > 32_000
    stays = sorted(rng.choice(rows, 50, replace=False).tolist())
    close(engine, sorted(set(rows) - set(stays)))
    highest = int(engine.table.slot[stays].max())
    assert highest > 10_000
    assert a.charged_bytes == top * 64
    others = fill(engine, b)
    assert len(others) == 1 + ((2 << 20) - 49 * 64) // 192
    assert int(engine.table.slot[stays].max()) < 200
    assert a.pool.top <= slots_for(50, engine.config) + 200
    check_states(engine, {row: xs[row] for row in stays})
    for row, x in step(engine, stays, 7).items():
        xs[row].append(x)
    check_states(engine, {row: xs[row] for row in stays})
    engine.check_integrity()


async def test_what_is_under_way_stays_where_it_is(tmp_path: Path) -> None:
    """A batch that is in flight reads and writes its slots; the room is there once it has ended."""
    engine = make_engine(tmp_path, floors("ab") + 100 * 64, "ab")
    a, b = engine.models
    rows = fill(engine, a)
    xs = {row: [x] for row, x in step(engine, rows, 1).items()}
    last = sorted(rows, key=lambda row: int(engine.table.slot[row]))[-4:]
    close(engine, sorted(set(rows) - set(last)))
    assert a.scheduler is not None
    assert a.kernel is not None
    for row in last:
        x = random_input(SPECS["a"], (1,), row)
        xs[row].append(x)
        submit(engine, row, x)
    now_ns = engine.clock().monotonic_ns
    batch = a.scheduler.schedule(now_ns)
    assert batch is not None
    before = engine.table.slot[last].tolist()
    first = fill(engine, b)
    assert len(first) < 20
    assert engine.table.slot[last].tolist() == before
    batch.absorb(a.kernel.run(batch.inputs, batch.lengths, batch.read, batch.write))
    a.scheduler.settle(batch, now_ns, 1)
    check_states(engine, {row: xs[row] for row in last})
    assert len(fill(engine, b)) == 1 + (100 - 3) * 64 // 192 - len(first)
    check_states(engine, {row: xs[row] for row in last})


async def test_sessions_move_while_they_step(tmp_path: Path) -> None:
    """Two models grow and shrink at random while their sessions step: no state is lost."""
    engine = make_engine(tmp_path, floors("ab") + 30_000, "ab", slice_rows_max=2)
    rng = np.random.default_rng(1)
    running = asyncio.create_task(engine.run())
    xs: dict[int, list[Any]] = {}

    async def send(row: int, seed: int) -> None:
        x = random_input(SPECS[engine.model_of(row).name], (int(rng.integers(1, 8)),), seed)
        xs[row].append(x)
        await submit(engine, row, x)[1]

    for turn in range(24):
        model = engine.models[turn % 2]
        for row in fill(engine, model, int(rng.integers(1, 300))) if turn % 3 else ():
            xs[row] = []
        steps = [asyncio.create_task(send(row, turn)) for row in xs if rng.random() < 0.3]
        await asyncio.sleep(0)
        going = [row for row in xs if rng.random() < 0.35 and not engine.table.pending[row]]
        close(engine, going)
        for row in going:
            del xs[row]
        engine.registry.sweep()
        await asyncio.gather(*steps)
        check_states(engine, {row: inputs for row, inputs in xs.items() if inputs})
        engine.check_integrity()
    await engine.close(5)
    await running


def smaps_bytes(array: Any) -> int:
    """Resident bytes of the mappings that the array lies in."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            start, stop = (int(each, 16) for each in bounds.groups())
            inside = start <= array.ctypes.data < stop
        elif inside and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


async def test_memory_goes_back_when_a_peak_is_over(tmp_path: Path) -> None:
    """A little at every sweep, down to what is needed and a margin; small changes give none."""
    engine = make_engine(tmp_path, 12 << 20, "c", batch_sessions_max=256)
    (model,) = engine.models
    pool = model.pool
    assert pool is not None
    rows = fill(engine, model)
    for start in range(0, len(rows), 256):
        step(engine, rows[start : start + 256], start)
    peak = pool.touched_bytes
    assert peak > 11 << 20
    close(engine, rows[: len(rows) // 20])
    assert engine.registry.sweep(), "a twentieth is within the margin"
    assert pool.touched_bytes == peak
    close(engine, rows[len(rows) // 20 : -10])
    sweeps = 1
    while not engine.registry.sweep():
        sweeps += 1
    assert sweeps == 3
    assert pool.touched_bytes < 2 * KEPT_BYTES
    memory = pool._memory
    assert memory is not None
    assert smaps_bytes(memory.arrays["h.0"]) < 2 * KEPT_BYTES
    engine.check_integrity()


def evicting(engine: Engine) -> tuple[SessionCapacity, list[tuple[str, list[int]]]]:
    """What makes room by moving sessions to a store that has them all, and who was moved."""
    moved: list[tuple[str, list[int]]] = []
    capacity = SessionCapacity(
        engine.table,
        engine.registry,
        engine.sessions,
        lambda model, rows: moved.append((model.name, sorted(rows.tolist()))),
    )
    return capacity, moved


def rest(engine: Engine, rows: Sequence[int], since_ns: int) -> None:
    """The sessions are stored, and have been idle since then."""
    engine.table.durable_step[rows] = engine.table.step[rows]
    for row in rows:
        engine.table.begin_time(row, since_ns, int(engine.table.ttl_ns[row]))


async def test_whoever_was_idle_longest_moves_out(tmp_path: Path) -> None:
    """Of any model, as many as make the room; but no model's last one, which would make none."""
    engine = make_engine(tmp_path, floors("abc") + 40 * 64)
    a, b, c = engine.models
    of_a, of_b, of_c = fill(engine, a, 20), fill(engine, b, 3), fill(engine, c, 1)
    assert engine.registry.budget.room(a) > 0
    of_a += fill(engine, a)
    start_ns = engine.clock().monotonic_ns - 10**9
    for i, row in enumerate(of_a):
        rest(engine, [row], start_ns + 1000 + i)
    rest(engine, of_b, start_ns + 10)
    rest(engine, of_c, start_ns + 1)
    capacity, moved = evicting(engine)
    capacity.make_room(a, engine.clock())
    assert moved == [("b", of_b[:1])], "b's first was idle for longer than any of a's"
    assert engine.registry.budget.room(a) == 3
    moved.clear()
    engine.table.durable_step[of_c] = NOT_STORED
    fill(engine, a)
    capacity.make_room(c, engine.clock())
    assert moved == [("a", of_a[:1]), ("b", of_b[1:2])]
    engine.check_integrity()


async def test_no_session_moves_out_in_vain(tmp_path: Path) -> None:
    """Where all that could move would not be enough, none does, and the refusal says why."""
    engine = make_engine(tmp_path, floors("ac") + 40 * 64, "ac")
    a, c = engine.models
    rows = fill(engine, a)
    fill(engine, c, 1)
    capacity, moved = evicting(engine)
    start_ns = engine.clock().monotonic_ns - 10**9
    rest(engine, rows[:3], start_ns + 5)
    with pytest.raises(SessionLimit, match="no room for one more session of c:1"):
        capacity.make_room(c, engine.clock())
    assert moved == []
    rest(engine, rows[3:4], start_ns + 4)
    capacity.make_room(c, engine.clock())
    assert moved == [("a", rows[:4])]


async def test_a_session_that_another_model_s_replaces_does_not_move_out(tmp_path: Path) -> None:
    """It has been idle longest of all, and RESTART opens its id with the other model."""
    engine = make_engine(tmp_path, floors("ab") + 40 * 64, "ab")
    a, b = engine.models
    rows = fill(engine, a)
    fill(engine, b, 1)
    start_ns = engine.clock().monotonic_ns - 10**9
    for i, row in enumerate(rows):
        rest(engine, [row], start_ns + i)
    capacity, moved = evicting(engine)
    opener = SessionOpener(engine.config, engine.table, engine.sessions, capacity)
    key = engine.table.keys[rows[0]]
    assert key is not None
    request = OpenRequest(key, b, 0, 10**12, IfExists.RESTART, None, "")
    row, is_created = opener.open(request, engine.clock())
    assert is_created
    assert engine.model_of(row) is b
    assert moved == [("a", rows[1:4])], "3 x 64 bytes are the 192 of one of b's"
    engine.check_integrity()


def test_a_mischarged_model_is_seen(tmp_path: Path) -> None:
    """check_integrity holds the charges to the pools and the sessions."""
    engine = make_engine(tmp_path, 1 << 20)
    fill(engine, engine.models[0], 5)
    engine.models[0].charged_bytes += 64
    with pytest.raises(AssertionError, match="a is mischarged"):
        engine.check_integrity()
    engine.models[0].charged_bytes -= 64
    engine.registry.budget.charged_bytes += 1
    with pytest.raises(AssertionError, match="bytes are charged"):
        engine.check_integrity()
