"""A network of kind "network" through the engine: whatever batches, chunks and lives it has, every
session has the bits of a plain loop over its step graph."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import stepgraph
from lstmserve.engine import Engine
from lstmserve.engine.errors import Cancelled, ModelError, StepPayloadMismatch
from lstmserve.engine.keys import session_key
from lstmserve.engine.predict import PredictJob
from lstmserve.engine.scheduling import work
from lstmserve.engine.session.opening import IfExists, ImportedState, OpenRequest
from lstmserve.golden import Golden
from lstmserve.rows import FLOATS, INTS, RowFormat
from lstmserve.spec import ModelSpec, TensorSpec
from lstmserve.store import Record, decode, open_store
from stepgraph import SPEC, Arrays, Loop, Rows, random_rows
from traffic import TTL_NS, load_engine, open_session, submit, submit_block

CLIENTS, OPERATIONS = 24, 30
LIMITS = {"slice_rows_max": 4, "session_pending_max": 64}


@asynccontextmanager
async def running(folder: Path, **settings: Any) -> AsyncIterator[Engine]:
    """An engine with the model "n", driven; whole when it ends."""
    engine = load_engine(folder, **{**LIMITS, **settings})
    task = asyncio.create_task(engine.run())
    yield engine
    await engine.close(5)
    await task
    engine.check_integrity()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """running(), in memory."""
    stepgraph.make_model(tmp_path)
    async with running(tmp_path) as engine:
        yield engine


def same(found: Arrays, wanted: Arrays) -> bool:
    """Whether all states, [*shape] or [1, *shape], have the same bits and dtypes."""
    pairs = [(np.asarray(found[each.name]), np.asarray(wanted[each.name])) for each in SPEC.states]
    return set(found) == set(wanted) and all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs
    )


def state(engine: Engine, row: int) -> dict[str, Any]:
    """Name -> [*shape] of a session now."""
    return {name: each[0] for name, each in engine.sessions.state(row).items()}


def request(engine: Engine, name: str, **fields: Any) -> OpenRequest:
    """An OpenSession of the model."""
    given = {"state": None, "fork_of": "", "if_exists": IfExists.FAIL} | fields
    model = engine.model("n", 0)
    return OpenRequest(session_key("", name), model, 0, TTL_NS, **given)


class Client:
    """One session's client, who knows its whole past by the plain loop."""

    def __init__(self, engine: Engine, loop: Loop, rng: np.random.Generator, name: str) -> None:
        self.engine, self.loop, self.rng, self.name = engine, loop, rng, name
        self.row = open_session(engine, name)
        self.states: Arrays | None = None
        self.lives = self.steps = self.checked = 0

    async def run(self) -> None:
        """Random operations, one after the other."""
        operations = (self._step, self._step, self._numbered, self._two, self._cancel)
        operations += (self._fork, self._import, self._predict, self._look)
        for _ in range(OPERATIONS):
            await operations[self.rng.integers(len(operations))]()
        await self._look()

    def _x(self) -> Rows:
        length = 1 if self.rng.random() < 0.5 else int(self.rng.integers(2, 14))
        return random_rows(self.rng, length)

    def _expect(self, x: Rows, y: Rows, *, last_only: bool = False) -> None:
        """The reply to x, which was applied, is the loop's."""
        wanted, self.states = self.loop.run(x, self.states)
        wanted = wanted[-1:] if last_only else wanted
        assert y.tobytes() == wanted.tobytes()
        self.steps += 1
        self.checked += len(x)

    async def _step(self) -> None:
        x, last_only = self._x(), bool(self.rng.integers(2))
        _, reply = submit(self.engine, self.row, x, last_only=last_only)
        self._expect(x, (await reply).y, last_only=last_only)

    async def _two(self) -> None:
        """The second is sent before the first is answered."""
        xs = self._x(), self._x()
        replies = [submit(self.engine, self.row, x)[1] for x in xs]
        for x, reply in zip(xs, replies, strict=True):
            self._expect(x, (await reply).y)

    async def _numbered(self) -> None:
        """And repeated, before or after it is answered."""
        x, number, is_early = self._x(), self.steps + 1, bool(self.rng.integers(2))
        _, first = submit(self.engine, self.row, x, number=number)
        if not is_early:
            await first
        _, again = submit(self.engine, self.row, x, number=number)
        one, other = await first, await again
        self._expect(x, one.y)
        assert other.is_replayed
        assert other.y.tobytes() == one.y.tobytes()

    async def _cancel(self) -> None:
        """At any moment: the step happens whole or not at all."""
        x = self._x()
        asked, reply = submit(self.engine, self.row, x)
        for _ in range(self.rng.integers(0, 6)):
            await asyncio.sleep(0)
        asked.cancel()
        try:
            y = (await reply).y
        except Cancelled:
            return
        self._expect(x, y)

    async def _fork(self) -> None:
        self.lives += 1
        name = f"{self.name}-{self.lives}"
        fork_of = session_key("", self.name)
        self.row, is_created = await self.engine.lifecycle.open(
            request(self.engine, name, fork_of=fork_of)
        )
        assert is_created
        await self.engine.lifecycle.close(fork_of, 0)
        self.name = name

    async def _import(self) -> None:
        """Its own state, exported, replaces it."""
        given = ImportedState(state(self.engine, self.row), self.steps)
        self.row, _ = await self.engine.lifecycle.open(
            request(self.engine, self.name, state=given, if_exists=IfExists.RESTART)
        )

    async def _predict(self) -> None:
        """Sequences from this session's state and from the initial one."""
        lengths = self.rng.integers(1, 14, int(self.rng.integers(1, 6)))
        x, initial = random_rows(self.rng, int(lengths.sum())), None
        if self.states is not None and self.rng.random() < 0.7:
            initial = {n: np.stack([each] * lengths.size) for n, each in self.states.items()}
        last_only = bool(self.rng.integers(2))
        engine = self.engine
        job = PredictJob(x, lengths.astype(np.int32), initial, last_only, True, engine.clock()[0])
        got = await engine.predictor.predict(engine.model("n", 0), job)
        assert got.finals is not None
        ys = np.split(got.y, np.cumsum(got.lengths)[:-1])
        for i, own in enumerate(np.split(x, np.cumsum(lengths)[:-1])):
            wanted, finals = self.loop.run(own, None if initial is None else self.states)
            assert ys[i].tobytes() == wanted[-1 if last_only else 0 :].tobytes()
            assert same({n: each[i] for n, each in got.finals.items()}, finals)
            self.checked += len(own)

    async def _look(self) -> None:
        wanted = stepgraph.initial() if self.states is None else self.states
        assert same(state(self.engine, self.row), wanted)
        assert self.engine.table.step[self.row] == self.steps


@pytest.mark.parametrize("seed", [0, secrets.randbits(32)], ids=["0", "random"])
async def test_every_bit_is_the_loops(engine: Engine, seed: int) -> None:
    """Chunks, numbers, repeats, cancellations, forks, imports and Predicts of many at once."""
    print(f"seed {seed}")
    assert engine.model("n", 0).is_exact
    rng = np.random.default_rng(seed)
    loop = Loop()
    clients = [Client(engine, loop, each, f"s{i}") for i, each in enumerate(rng.spawn(CLIENTS))]
    await asyncio.gather(*(client.run() for client in clients))
    assert sum(client.checked for client in clients) > CLIENTS * OPERATIONS


@pytest.mark.parametrize("seed", range(4))
async def test_messages_of_many_sessions(engine: Engine, seed: int) -> None:
    """Of one row each and ragged, numbered, repeated, and with the last row alone."""
    rng, loop = np.random.default_rng(seed), Loop()
    rows = [open_session(engine, f"s{i}") for i in range(20)]
    states: list[Arrays | None] = [None] * len(rows)
    for number in range(1, 9):
        is_short, last_only = bool(rng.integers(2)), bool(rng.integers(2))
        xs = [random_rows(rng, 1 if is_short else int(rng.integers(1, 12))) for _ in rows]
        options = {"last_only": last_only, "numbers": [number] * len(rows)}
        first = await submit_block(engine, rows, xs, **options)
        again = await submit_block(engine, rows, xs, **options)
        assert sorted(again.replayed) == list(range(len(rows)))
        for i, x in enumerate(xs):
            wanted, states[i] = loop.run(x, states[i])
            wanted = wanted[-1 if last_only else 0 :]
            assert first.output(i).tobytes() == wanted.tobytes()
            assert again.output(i).tobytes() == wanted.tobytes()
            assert same(state(engine, rows[i]), states[i])


def changed(x: Rows, what: str) -> Rows:
    """The same rows with another value of one input."""
    tensors = {name: each.copy() for name, each in stepgraph.INPUTS.split(x).items()}
    tensors[what].reshape(-1)[-1] += 1
    return stepgraph.INPUTS.pack(tensors)


async def repeats_apart(engine: Engine) -> list[str]:
    """The inputs of which another value under the same number is noticed, in steps and blocks."""
    rng, found = np.random.default_rng(0), []
    rows = [open_session(engine, f"d{i}") for i in range(5)]
    xs = [random_rows(rng, 1) for _ in rows]
    await submit_block(engine, rows, xs, numbers=[1] * 5)
    for each in SPEC.inputs:
        others = [changed(x, each.name) for x in xs]
        reply = await submit_block(engine, rows, others, numbers=[1] * 5)
        is_noticed = [isinstance(reply.errors.get(i), StepPayloadMismatch) for i in range(5)]
        assert all(is_noticed) or not any(is_noticed)
        if is_noticed[0]:
            with pytest.raises(StepPayloadMismatch):
                submit(engine, rows[0], others[0], number=1)
            found.append(each.name)
    return found


async def test_a_repeat_with_another_value_of_any_input_is_refused(engine: Engine) -> None:
    """The digest covers all inputs."""
    assert await repeats_apart(engine) == ["x", "gain", "kind"]


@pytest.mark.parametrize(("dropped", "left"), [("gain", ["x", "kind"]), ("kind", ["x", "gain"])])
async def test_a_digest_that_drops_an_input_is_caught(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, dropped: str, left: list[str]
) -> None:
    """The test above sees it: gain is the second of two float inputs, kind the only integer."""

    def without(x: Rows) -> Rows:
        part = x.copy()
        if dropped == "kind":
            part[INTS] = 0
        else:
            part[FLOATS][..., 3] = 0
        return part

    digest, digests = work.digest, work.digests_of_rows
    monkeypatch.setattr(work, "digest", lambda x, *rest: digest(without(x), *rest))
    monkeypatch.setattr(work, "digests_of_rows", lambda x, *rest: digests(without(x), *rest))
    assert await repeats_apart(engine) == left


@pytest.mark.parametrize("mode", ["through", "behind"])
async def test_a_stored_session_goes_on_elsewhere(tmp_path: Path, mode: str) -> None:
    """Its record has every state by name, and the reply's integers, which answer a repeat."""
    stepgraph.make_model(tmp_path / "models")
    rng, loop, key = np.random.default_rng(1), Loop(), session_key("", "s")
    xs = [random_rows(rng, length) for length in (1, 6, 1, 1)]
    url, options = f"file:{tmp_path / 'store'}", {"store_mode": mode}
    states: Arrays | None = None
    wanted = stepgraph.OUTPUTS.unknown(0)
    for number, x in enumerate(xs, 1):
        store = open_store(url)
        assert store is not None
        async with running(tmp_path / "models", store=store, **options) as engine:
            if number == 1:
                await engine.lifecycle.open(request(engine, "s"))
            else:
                assert await engine.lifecycle.bring(key, 0, number - 1)
                row = engine.table.find(key)
                _, reply = submit(engine, row, xs[number - 2], number=number - 1)
                done = await reply
                assert done.is_replayed
                assert done.y.tobytes() == wanted.tobytes()
                assert same(state(engine, row), states)
            row = engine.table.find(key)
            wanted, states = loop.run(x, states)
            _, reply = submit(engine, row, x, number=number)
            assert (await reply).y.tobytes() == wanted.tobytes()
        (content,) = await store.load([key])
        check_record(decode(content), number, states, wanted)
        await store.close()


def check_record(record: Record, step: int, states: Arrays, reply: Rows) -> None:
    """It is of this step, with these states and this reply."""
    assert record.step == step
    assert [each.name for each in record.states] == [each.name for each in SPEC.states]
    for stored, spec in zip(record.states, SPEC.states, strict=True):
        assert (stored.dtype, stored.shape) == (spec.dtype, spec.shape)
        assert stored.data == np.asarray(states[spec.name]).tobytes()
    assert record.reply == np.ascontiguousarray(reply[FLOATS]).tobytes()
    assert record.reply_ints == np.ascontiguousarray(reply[INTS]).tobytes()


async def test_a_session_that_never_stepped_is_stored_with_the_initial_state(
    tmp_path: Path,
) -> None:
    """And begins from slot 0 again when it is loaded."""
    stepgraph.make_model(tmp_path / "models")
    store = open_store(f"file:{tmp_path / 'store'}")
    assert store is not None
    async with running(tmp_path / "models", store=store, store_mode="through") as engine:
        await engine.lifecycle.open(request(engine, "s"))
    (content,) = await store.load([session_key("", "s")])
    for stored in decode(content).states:
        assert stored.data == stepgraph.initial()[stored.name].tobytes()
    async with running(tmp_path / "models", store=store, store_mode="through") as engine:
        assert await engine.lifecycle.bring(session_key("", "s"), 0, 0)
        row = engine.table.find(session_key("", "s"))
        assert engine.table.slot[row] == 0
        assert same(state(engine, row), stepgraph.initial())
    await store.close()


async def test_a_row_that_the_network_cannot_compute_fails_alone(tmp_path: Path) -> None:
    """An index beyond a table is a client's mistake: neither its neighbours nor its past change."""
    model = stepgraph.build()
    mod = next(node for node in model.graph.node if node.op_type == "Mod")
    mod.op_type, mod.input[:] = "Identity", ["kind"]
    golden = stepgraph.make_golden(0)["new"]
    inputs = {**golden.inputs, "kind": golden.inputs["kind"] % stepgraph.KINDS}
    stepgraph.write(tmp_path, SPEC, model, {"new": replace(golden, inputs=inputs)})
    rng, loop = np.random.default_rng(0), Loop()
    async with running(tmp_path) as engine:
        rows = [open_session(engine, f"s{i}") for i in range(6)]
        states: list[Arrays | None] = [None] * len(rows)
        for bad, length in ((None, 1), (2, 1), (4, 6), (None, 1)):
            xs = [random_rows(rng, length) for _ in rows]
            for i, x in enumerate(xs):
                x[INTS] %= stepgraph.KINDS
                if i == bad:
                    x[INTS][-1] = 99
            reply = await submit_block(engine, rows, xs)
            assert list(reply.errors) == ([] if bad is None else [bad])
            for i, x in enumerate(xs):
                if i == bad:
                    assert isinstance(reply.errors[i], ModelError)
                    assert np.isnan(reply.output(i)[FLOATS]).all()
                    assert not reply.output(i)[INTS].any()
                    continue
                wanted, states[i] = loop.run(x, states[i])
                assert reply.output(i).tobytes() == wanted.tobytes()
        for row, wanted_states in zip(rows, states, strict=True):
            assert wanted_states is not None
            assert same(state(engine, row), wanted_states)


@pytest.mark.parametrize("value", [-0.0, 1e-40])
async def test_an_imported_state_keeps_every_bit(tmp_path: Path, value: float) -> None:
    """Also a zero of another sign than the initial state's, and a denormal; through a store too."""
    stepgraph.make_model(tmp_path / "models")
    given = stepgraph.initial() | {"window": np.full((3, 2), value, np.float32)}
    store, key = open_store(f"file:{tmp_path / 'store'}"), session_key("", "s")
    assert store is not None
    options = {"store": store, "store_mode": "through"}
    async with running(tmp_path / "models", **options) as engine:
        await engine.lifecycle.open(request(engine, "s", state=ImportedState(given, 0)))
        assert same(state(engine, engine.table.find(key)), given)
    async with running(tmp_path / "models", **options) as engine:
        assert await engine.lifecycle.bring(key, 0, 0)
        assert same(state(engine, engine.table.find(key)), given)
    await store.close()


# Integers alone -----------------------------------------------------------------------------------

TALLY = ModelSpec(
    inputs=(TensorSpec("n", (), "int64"), TensorSpec("m", (2,), "int64")),
    outputs=(TensorSpec("both", (2,), "int64"), TensorSpec("total", (), "int64")),
    states=(TensorSpec("sum", (), "int64"),),
)


def make_tally(folder: Path) -> None:
    """sum + n + the sum of m, from 100 on; the outputs are m + sum and the new sum."""

    def value(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.INT64, ["B", *shape])

    nodes = [
        helper.make_node("ReduceSum", ["m", "axis"], ["pair"], keepdims=0),
        helper.make_node("Add", ["n", "pair"], ["all"]),
        helper.make_node("Add", ["sum", "all"], ["sum.next"]),
        helper.make_node("Identity", ["sum.next"], ["total"]),
        helper.make_node("Unsqueeze", ["total", "axis"], ["column"]),
        helper.make_node("Add", ["m", "column"], ["both"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tally",
        [value("n"), value("m", 2), value("sum")],
        [value("both", 2), value("total"), value("sum.next")],
        [
            numpy_helper.from_array(np.array([1]), "axis"),
            numpy_helper.from_array(np.array(100), "sum.initial"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    n, m = np.array([[1, 2]]), np.array([[[3, 4], [5, 6]]])
    golden = Golden(
        inputs={"n": n, "m": m},
        lengths=np.array([2], np.int32),
        initial=None,
        outputs={"both": np.array([[[111, 112], [126, 127]]]), "total": np.array([[108, 121]])},
        finals={"sum": np.array([121])},
        torch_error=0.0,
    )
    stepgraph.write(folder, TALLY, model, {"new": golden})


async def test_a_network_of_integers_alone(tmp_path: Path) -> None:
    """Its rows have no floats anywhere: in batches, chunks, replies, records and repeats."""
    make_tally(tmp_path / "models")
    inputs, outputs = RowFormat(TALLY.inputs), RowFormat(TALLY.outputs)
    store = open_store(f"file:{tmp_path / 'store'}")
    assert store is not None
    values, total = np.random.default_rng(0).integers(-(1 << 40), 1 << 40, (9, 3)), 100
    key = session_key("", "s")
    for number, part in enumerate((values[:1], values[1:8], values[8:]), 1):
        x = inputs.pack({"n": part[:, 0], "m": part[:, 1:]})
        totals = total + np.cumsum(part.sum(axis=1))
        wanted = {"both": part[:, 1:] + totals[:, np.newaxis], "total": totals}
        total = int(totals[-1])
        async with running(tmp_path / "models", store=store, store_mode="through") as engine:
            if number == 1:
                await engine.lifecycle.open(request(engine, "s"))
            await engine.lifecycle.bring(key, 0, number)
            row = engine.table.find(key)
            done = await submit(engine, row, x, number=number)[1]
            assert done.y.tobytes() == outputs.pack(wanted).tobytes()
        async with running(tmp_path / "models", store=store, store_mode="through") as engine:
            await engine.lifecycle.bring(key, 0, number)
            row = engine.table.find(key)
            again = await submit(engine, row, x, number=number)[1]
            assert again.is_replayed
            assert again.y.tobytes() == done.y.tobytes()
            assert engine.sessions.state(row)["sum"].tolist() == [total]
    await store.close()


LIST = ModelSpec(
    inputs=(TensorSpec("goes_on", (), "int64"),),
    outputs=(TensorSpec("y"),),
    states=(TensorSpec("at", (), "int64"),),
)


def make_list(folder: Path) -> None:
    """y = item `at` of six; at.next = (at + 1) x goes_on. It fails on a seventh item."""

    def value(name: str, dtype: int = TensorProto.INT64) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, ["B"])

    nodes = [
        helper.make_node("Gather", ["items", "at"], ["y"]),
        helper.make_node("Add", ["at", "one"], ["after"]),
        helper.make_node("Mul", ["after", "goes_on"], ["at.next"]),
    ]
    graph = helper.make_graph(
        nodes,
        "list",
        [value("goes_on"), value("at")],
        [value("y", TensorProto.FLOAT), value("at.next")],
        [
            numpy_helper.from_array(np.arange(6, dtype=np.float32), "items"),
            numpy_helper.from_array(np.array(1), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    zeros = np.zeros((1, 2))
    inputs = {"goes_on": zeros.astype(np.int64)}
    golden = Golden(inputs, np.array([2], np.int32), None, {"y": zeros}, {}, torch_error=0.0)
    stepgraph.write(folder, LIST, model, {"new": golden})


async def test_a_step_does_not_fail_for_time_steps_that_it_does_not_have(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a batch with a longer one its padding reads past the list's end, and its own steps do not;
    a step that does fail leaves no line on stderr, where a client could fill a disk."""
    make_list(tmp_path)
    async with running(tmp_path) as engine:
        short, long, bad = (open_session(engine, name) for name in ("short", "long", "bad"))
        ones = np.ones((3, 1), np.int64)
        await asyncio.gather(*(submit(engine, row, ones)[1] for row in (short, bad)))
        last = submit(engine, short, ones)[1]
        others = submit(engine, long, np.zeros((4, 1), np.int64))[1]
        failing = submit(engine, bad, np.ones((4, 1), np.int64))[1]
        assert (await last).y.ravel().tolist() == [3, 4, 5]
        assert (await others).y.ravel().tolist() == [0] * 4
        with pytest.raises(ModelError):
            await failing
        assert engine.sessions.state(bad)["at"].tolist() == [3]
    assert capfd.readouterr().err == ""


# Divisions ----------------------------------------------------------------------------------------

QUOTIENT = ModelSpec(
    inputs=(TensorSpec("a", (), "int64"), TensorSpec("b", (), "int64")),
    outputs=tuple(TensorSpec(name, (), "int64") for name in ("div", "mod", "small", "branch")),
    states=(TensorSpec("last", (), "int64"),),
)
LOWEST = -(1 << 63)


def make_quotient(folder: Path) -> None:
    """a / b and a mod b as int64, a / b as int32, and last / b within an If."""

    def value(name: str, *shape: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.INT64, shape)

    def branch(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph([node], name, [], [value(node.output[0], "B")])

    nodes = [
        helper.make_node("Div", ["a", "b"], ["div"]),
        helper.make_node("Mod", ["a", "b"], ["mod"]),
        helper.make_node("Cast", ["a"], ["a32"], to=TensorProto.INT32),
        helper.make_node("Cast", ["b"], ["b32"], to=TensorProto.INT32),
        helper.make_node("Div", ["a32", "b32"], ["small32"]),
        helper.make_node("Cast", ["small32"], ["small"], to=TensorProto.INT64),
        helper.make_node(
            "If",
            ["yes"],
            ["branch"],
            then_branch=branch("then", helper.make_node("Div", ["last", "b"], ["quotient"])),
            else_branch=branch("else", helper.make_node("Identity", ["a"], ["same"])),
        ),
        helper.make_node("Identity", ["a"], ["last.next"]),
    ]
    graph = helper.make_graph(
        nodes,
        "quotient",
        [value(name, "B") for name in ("a", "b", "last")],
        [value(name, "B") for name in ("div", "mod", "small", "branch", "last.next")],
        [
            numpy_helper.from_array(np.array(True), "yes"),
            numpy_helper.from_array(np.array(LOWEST), "last.initial"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    golden = Golden(
        inputs={"a": np.array([[6]]), "b": np.array([[4]])},
        lengths=np.array([1], np.int32),
        initial=None,
        outputs={
            "div": np.array([[1]]),
            "mod": np.array([[2]]),
            "small": np.array([[1]]),
            "branch": np.array([[LOWEST // 4]]),
        },
        finals={"last": np.array([6])},
        torch_error=0.0,
    )
    stepgraph.write(folder, QUOTIENT, model, {"new": golden})


async def test_a_division_ends_no_process(tmp_path: Path) -> None:
    """onnxruntime has no check for the lowest integer by -1, which a client may send."""
    make_quotient(tmp_path)
    inputs, outputs = RowFormat(QUOTIENT.inputs), RowFormat(QUOTIENT.outputs)
    a = np.array([LOWEST, LOWEST, -(1 << 31), 7, -7, LOWEST])
    b = np.array([-1, 1, -1, -2, 2, -1])
    x = inputs.pack({"a": a, "b": b})
    async with running(tmp_path) as engine:
        together, apart = open_session(engine, "t"), open_session(engine, "a")
        reply = await submit(engine, together, x)[1]
        found = outputs.split(reply.y)
        single = [(await submit(engine, apart, row[np.newaxis])[1]).y for row in x]
        assert np.concatenate(single).tobytes() == reply.y.tobytes()
    assert found["div"].tolist() == [LOWEST, LOWEST, 1 << 31, -3, -3, LOWEST]
    assert found["mod"].tolist() == [0, 0, 0, -1, 1, 0]
    assert found["small"].tolist() == [0, 0, -(1 << 31), -3, -3, 0]
    assert found["branch"][0] == LOWEST
