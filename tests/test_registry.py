"""The registry: a model's life from loaded to gone, beside the sessions of others."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmserve.config import Config
from lstmserve.engine import Engine, Model, load_models
from lstmserve.engine.budget import PoolTooSmall
from lstmserve.engine.errors import ModelNotFound, ModelNotHereYet, ModelRetired
from lstmserve.engine.loading import load_version
from lstmserve.engine.model import Life, slots_for
from lstmserve.engine.predict import PredictJob
from lstmserve.engine.session.live_sessions import SessionStart
from lstmserve.engine.session.opening import IfExists, OpenRequest
from lstmserve.head_layers import Linear
from lstmserve.manifest import read_model
from lstmserve.server.message_sizes import MessageSizes
from lstmserve.spec import LstmSpec
from modelmaking import make_model, random_input
from traffic import NoMetrics, open_session, submit

SPEC = LstmSpec(3, 8, head=(Linear(2),))
WIDE = LstmSpec(3, 64, 2, head=(Linear(9),))
SMALL: dict[str, Any] = {"batch_sessions_max": 8, "long_steps_max": 8, "pool_bytes": 4 << 20}
MODELS = {"m": [1, 2], "other": [1]}


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """Of m in versions 1 and 2, and of another model; version 3 of m is in the folder too."""
    for name, versions in MODELS.items():
        for version in versions:
            make_model(tmp_path, SPEC, version, name=name, version=version)
    config = Config(models=tmp_path, **SMALL)
    engine = Engine(config, load_models(config), NoMetrics())
    make_model(tmp_path, SPEC, 3, name="m", version=3)
    make_model(tmp_path, WIDE, 1, name="wide")
    return engine


def load(engine: Engine, name: str, version: int) -> Model:
    """A version from the folder, loaded and proved; not served yet."""
    config = engine.config
    files = read_model(config.models, name, version)
    return load_version(config, files, "cpu", config.pool_bytes, config.pool_bytes)


def names(engine: Engine) -> list[str]:
    """Of the models that are served, in order."""
    return [f"{model.name}:{model.version}" for model in engine.models]


def request(engine: Engine, model: Model, key: str) -> OpenRequest:
    """A session of the model is to open."""
    return OpenRequest(f"/{key}", model, 0, 10**12, IfExists.FAIL, None, "")


def test_models_are_found_by_name_and_version(engine: Engine) -> None:
    """0 is the newest; what is not served says whether a repeat helps."""
    assert names(engine) == ["m:1", "m:2", "other:1"]
    assert engine.model("m", 0).version == 2
    assert engine.model("m", 1).version == 1
    for version, error in ((3, ModelNotHereYet), (-1, ModelNotFound)):
        with pytest.raises(error):
            engine.model("m", version)
    with pytest.raises(ModelNotFound, match="is served here, but m, other"):
        engine.model("n", 0)
    engine.registry.add(load(engine, "m", 3))
    assert engine.model("m", 0).version == 3
    assert names(engine) == ["m:1", "m:2", "m:3", "other:1"]
    engine.registry.remove(engine.model("m", 2))
    with pytest.raises(ModelRetired, match="the newest version here is 3"):
        engine.model("m", 2)


async def test_a_model_s_life(engine: Engine) -> None:
    """A retiring model opens no session and serves those that it has; after the last it is gone."""
    old = engine.model("m", 1)
    running = asyncio.create_task(engine.run())
    row, _ = await engine.lifecycle.open(request(engine, old, "a"))
    assert old.life is Life.READY
    engine.registry.retire(old)
    assert old.life is Life.RETIRING
    assert engine.model("m", 0).version == 2
    assert engine.model("m", 1) is old
    with pytest.raises(ModelRetired, match="opens no session; the newest version here is 2"):
        await engine.lifecycle.open(request(engine, old, "b"))
    await submit(engine, row, random_input(SPEC, (2,), 0))[1]
    engine.registry.sweep()
    assert engine.models[0] is old
    assert await engine.lifecycle.close("/a", 0) == 1
    engine.registry.sweep()
    assert old.life is Life.GONE
    assert names(engine) == ["m:2", "other:1"]
    engine.check_integrity()
    with pytest.raises(ModelRetired, match="is not served any more"):
        await engine.lifecycle.open(request(engine, old, "b"))
    x, one = random_input(SPEC, (2,), 0), np.array([2], np.int32)
    over: list[None] = []
    with pytest.raises(ModelRetired):
        await engine.predictor.predict(
            old,
            PredictJob(x, one, None, last_only=False, with_state=False, arrival_ns=0),
            lambda: over.append(None),
        )
    assert over == [None]
    await engine.close(5)
    await running


def test_the_last_version_retires(engine: Engine) -> None:
    """Version 0 of a model that only retires is retired, and not unknown."""
    other = engine.model("other", 0)
    engine.registry.retire(other)
    with pytest.raises(ModelRetired):
        engine.model("other", 0)
    assert engine.model("other", 1) is other
    engine.registry.remove(other)
    with pytest.raises(ModelNotFound):
        engine.model("other", 0)


def test_a_model_with_sessions_is_not_removed(engine: Engine) -> None:
    """To take it from under them is a bug."""
    open_session(engine, "a")
    with pytest.raises(AssertionError, match="m:1 has sessions"):
        engine.registry.remove(engine.models[0])


def test_a_handle_is_not_another_s_while_rows_have_it(engine: Engine) -> None:
    """Sessions stay with their model whatever comes and goes beside them; then handles are used
    again, so that they stay few."""
    rows = [open_session(engine, f"{i}", model) for i, model in enumerate(engine.models)]
    m1, m2, other = engine.models
    engine.sessions.close("/1", 0, engine.clock(), lambda step: None)
    engine.registry.remove(m2)
    m3 = load(engine, "m", 3)
    engine.registry.add(m3)
    assert m3.handle not in (m1.handle, other.handle)
    assert [engine.model_of(row) for row in (rows[0], rows[2])] == [m1, other]
    for _ in range(5):
        engine.registry.remove(m3)
        m3 = load(engine, "m", 3)
        engine.registry.add(m3)
        assert m3.handle < 3
        engine.check_integrity()


def test_models_may_change_while_somebody_looks_at_all(engine: Engine) -> None:
    """An iteration sees the models as they were when it began."""
    seen = []
    for model in engine.registry:
        seen.append(model.version)
        if model.version == 1 and model.name == "m":
            engine.registry.remove(model)
            engine.registry.add(load(engine, "m", 3))
    assert seen == [1, 2, 1]
    assert names(engine) == ["m:2", "m:3", "other:1"]


def test_a_model_that_has_no_room_is_refused_and_changes_nothing(engine: Engine) -> None:
    """Its batches and one session must fit beside what the others are charged."""
    opened = [open_session(engine, f"{i}") for i in range(engine.models[0].sessions_max)]
    before = engine.registry.budget.charged_bytes
    wide = load(engine, "wide", 1)
    need = slots_for(1, engine.config) * 1024
    with pytest.raises(PoolTooSmall, match=rf"wide:1 needs {need} bytes of it"):
        engine.registry.add(wide)
    assert names(engine) == ["m:1", "m:2", "other:1"]
    assert engine.registry.budget.charged_bytes == before
    engine.check_integrity()
    for row in opened[: 2 * need // 64]:
        engine.sessions.close(str(engine.table.keys[row]), 0, engine.clock(), lambda step: None)
    engine.registry.add(wide)
    assert engine.models[0].sessions_max == len(opened) - (need // 64)
    engine.check_integrity()


def test_the_table_has_rows_for_models_that_come_later(tmp_path: Path) -> None:
    """What its rows hold stays when it is extended."""
    make_model(tmp_path, WIDE, 1, name="wide")
    config = Config(models=tmp_path, **SMALL)
    engine = Engine(config, load_models(config), NoMetrics())
    make_model(tmp_path, SPEC, 3, name="m", version=3)
    (wide,) = engine.models
    rows = engine.table.rows
    assert rows == wide.sessions_max == (4 << 20) // 1024 - 50
    keys = [open_session(engine, f"w{i}") for i in range(100)]
    engine.registry.add(load(engine, "m", 3))
    assert engine.table.rows > 10 * rows
    count = engine.model("m", 3).sessions_max - 99 * 1024 // 64
    for i in range(count):
        open_session(engine, f"m{i}", engine.model("m", 3))
    assert wide.sessions == 100
    assert [engine.table.find(f"/w{i}") for i in range(100)] == keys
    engine.check_integrity()


def test_the_table_has_rows_for_what_a_model_leaves_to_others(tmp_path: Path) -> None:
    """A model whose sessions are small gets the whole room once a large one is gone."""
    make_model(tmp_path, WIDE, 1, name="wide")
    config = Config(models=tmp_path, **{**SMALL, "pool_bytes": 200_000})
    engine = Engine(config, load_models(config), NoMetrics())
    make_model(tmp_path, SPEC, 1, name="m")
    small = load(engine, "m", 1)
    engine.registry.add(small)
    engine.registry.remove(engine.model("wide", 1))
    assert small.sessions_max == 200_000 // 64 - 50
    for i in range(small.sessions_max):
        open_session(engine, f"m{i}", small)
    engine.check_integrity()


def test_message_sizes_follow_the_models(engine: Engine) -> None:
    """A bound is that of the models that are served now."""
    sizes = MessageSizes(engine.registry, engine.config, has_states=True)
    assert sizes.reply_row_bytes == 8
    wide = load(engine, "wide", 1)
    narrow = sizes.bound(10_000)
    engine.registry.add(wide)
    assert sizes.reply_row_bytes == 36
    assert sizes.bound(10_000) > 5 * narrow
    engine.registry.remove(wide)
    assert sizes.bound(10_000) == narrow


def resident() -> int:
    """Bytes of this process's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def test_models_that_come_and_go_leave_nothing(engine: Engine) -> None:
    """100 times, each with sessions that step: memory, handles and descriptors stay as they are."""
    running = asyncio.create_task(engine.run())
    seen: list[weakref.ref[Any]] = []
    counts: list[tuple[int, int]] = []
    for turn in range(110):
        model = load(engine, "wide", 1)
        engine.registry.add(model)
        assert model.handle == 3
        assert model.pool is not None
        seen.append(weakref.ref(model.pool))
        rows = [open_session(engine, f"{turn}.{i}", model) for i in range(200)]
        replies = [submit(engine, row, random_input(WIDE, (1,), row))[1] for row in rows]
        await asyncio.gather(*(reply.future for reply in replies))
        engine.registry.retire(model)
        for i in range(200):
            await engine.lifecycle.close(f"/{turn}.{i}", 0)
        engine.registry.sweep()
        assert model.life is Life.GONE
        del model, replies
        if turn >= 10:
            counts.append((resident(), len(os.listdir("/proc/self/fd"))))
    gc.collect()
    assert sum(each() is not None for each in seen) == 0
    first, last = counts[0], counts[-1]
    print(f"resident {first[0] >> 10} -> {last[0] >> 10} KiB, descriptors {first[1]} -> {last[1]}")
    assert last[0] - first[0] < 8 << 20
    assert last[1] <= first[1]
    assert engine.table.used <= 200
    assert engine.registry.budget.charged_bytes == 3 * slots_for(1, engine.config) * 64
    await engine.close(5)
    await running


def test_a_session_start_needs_a_served_model(engine: Engine) -> None:
    """Handles and models are one to one; check_integrity sees where they are not."""
    engine.sessions.open("/a", engine.models[1], SessionStart(), 10**12, engine.clock())
    engine.check_integrity()
    engine.models[1].handle = 7
    with pytest.raises(AssertionError):
        engine.check_integrity()
