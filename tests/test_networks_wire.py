"""A network of five states over the contract's own wire.

Every reply and every state has the bits of a plain loop over its step graph (tests/stepgraph.py).
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
import numpy as np
import pytest

import stepgraph
from lstmserve.rows import FLOATS, INTS, Rows
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.message_sizes import MessageSizes
from lstmserve.server.native.service import SERVICE
from lstmserve.server.native.steps import StepCalls
from lstmserve.server.steps import Steps
from lstmserve.spec import tensor_messages_bytes
from lstmserve.v1 import lstm_pb2 as pb
from refusals import in_band, refusal
from serving import Serve, Serving
from stepgraph import SPEC, Arrays, Loop, random_rows
from storing import Valkey
from wire import NO_LIMITS, Wire, arrays, serving, tensor

LIMITS = {"slice_rows_max": 4, "session_pending_max": 64}  # a long step runs in many slices
LENGTHS = [1, 9, 1, 30, 2, 5]
NAMES = [each.name for each in SPEC.states]
GOOD = stepgraph.initial()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the network "n"; serving() adds its own."""
    folder = tmp_path_factory.mktemp("networks")
    stepgraph.make_model(folder)
    return folder


@pytest.fixture
async def wire(folder: Path) -> AsyncIterator[Wire]:
    """A server."""
    async with serving(folder, **LIMITS) as wire:
        yield wire


@pytest.fixture
async def elsewhere(folder: Path) -> AsyncIterator[Wire]:
    """Another server of the same models."""
    async with serving(folder, **LIMITS) as wire:
        yield wire


class Net:
    """A session of the network, whose whole past is known by the plain loop."""

    loop = Loop()

    def __init__(self, session: pb.Session, seed: int = 0, past: Net | None = None) -> None:
        self.id = session.id
        self.incarnation = session.incarnation
        self.step = session.step
        self.states: Arrays | None = past and past.states
        self._rng = np.random.default_rng(seed)
        self._wanted: dict[int, Rows] = {}
        self._requests: dict[int, pb.StepRequest] = {}

    def rows(self, length: int) -> Rows:
        """The next input, which must be applied."""
        rows = random_rows(self._rng, length)
        self.step += 1
        self._wanted[self.step], self.states = self.loop.run(rows, self.states)
        return rows

    def request(self, length: int, *, is_numbered: bool = True, **fields: Any) -> pb.StepRequest:
        """The next step."""
        request = pb.StepRequest(session_id=self.id, length=length, **inputs(self.rows(length)))
        if is_numbered:
            request.step, request.incarnation = self.step, self.incarnation
        request.MergeFrom(pb.StepRequest(**fields))
        self._requests[self.step] = request
        return request

    def again(self) -> pb.StepRequest:
        """The last step, as it was sent."""
        return self._requests[self.step]

    def check(self, reply: Any, step: int = 0, *, last_only: bool = False) -> None:
        """A reply to the step, the last unless it is given, has the outputs of the loop."""
        wanted = self._wanted[step or self.step][-1 if last_only else 0 :]
        assert outputs(reply).tobytes() == wanted.tobytes()
        assert reply.length == len(wanted)

    def wanted(self, *, last_only: bool = False) -> Rows:
        """The outputs of the last step."""
        return self._wanted[self.step][-1 if last_only else 0 :]

    def check_state(self, state: pb.State) -> None:
        """It has every state of the loop by name, in the spec's order, with the checksum of all."""
        states = stepgraph.initial() if self.states is None else self.states
        check_tensors(state.tensors, states)
        content = b"".join(np.asarray(states[name]).tobytes() for name in NAMES)
        content += np.int64(self.step).tobytes()
        assert (state.step, state.crc32c) == (self.step, google_crc32c.value(content))


def inputs(rows: Rows) -> dict[str, Any]:
    """The fields of a message that carry these rows."""
    return {"x": rows[FLOATS].ravel(), "tokens": rows[INTS].ravel()}


def outputs(reply: Any) -> Rows:
    """The rows of a reply's outputs."""
    y, y_ints = np.array(reply.y, np.float32), np.array(reply.y_ints, np.int64)
    form = stepgraph.OUTPUTS
    return form.join(y.reshape(-1, form.floats), y_ints.reshape(-1, form.ints))


def check_tensors(messages: Sequence[pb.Tensor], wanted: Arrays) -> None:
    """They are the network's states of those bits, in the spec's order."""
    assert [each.name for each in messages] == NAMES
    for message, spec in zip(messages, SPEC.states, strict=True):
        values = np.asarray(wanted[spec.name])
        assert values.dtype == spec.dtype
        assert tuple(message.shape) == values.shape
        assert not (message.ints if spec.dtype == "float32" else message.floats)
        found = arrays([message])[spec.name].astype(spec.dtype)
        assert found.tobytes() == values.tobytes()


def states_of(values: Mapping[str, Any]) -> list[pb.Tensor]:
    """The messages of states by name."""
    return [tensor(name, each) for name, each in values.items()]


async def open_net(wire: Wire, seed: int = 0, past: Net | None = None, **fields: Any) -> Net:
    """A new session."""
    return Net(await wire.open("n", **fields), seed, past)


async def exported(wire: Wire, net: Net) -> pb.State:
    """The session's state, which is the loop's."""
    state = (await wire.call("GetState", session_id=net.id)).state
    net.check_state(state)
    return state


async def test_the_model_says_what_it_takes(wire: Wire) -> None:
    """GetModel and ListModels have the names, shapes and dtypes of all tensors."""
    model = (await wire.call("GetModel", model="n")).model
    spec = model.spec
    assert (spec.kind, spec.is_streaming, spec.is_exact) == ("network", True, True)
    assert not spec.HasField("lstm")
    for found, wanted in (
        (spec.inputs, SPEC.inputs),
        (spec.outputs, SPEC.outputs),
        (spec.states, SPEC.states),
    ):
        assert [(each.name, tuple(each.shape), each.dtype) for each in found] == [
            (each.name, each.shape, each.dtype) for each in wanted
        ]
    models = {each.name: each for each in (await wire.call("ListModels")).models}
    assert models["n"] == model
    m, both = models["m"].spec, models["both"].spec
    assert (m.kind, m.is_streaming, m.is_exact, m.lstm.hidden_size) == ("lstm", True, True, 8)
    assert [(each.name, list(each.shape)) for each in m.states] == [("h", [2, 8]), ("c", [2, 8])]
    assert (both.is_streaming, both.lstm.bidirectional) == (False, True)
    assert (both.is_exact, spec.difference, m.difference, both.difference) == (True, 0, 0, 0)
    assert [list(each.shape) for each in both.states] == [[2, 4], [2, 4]]


@pytest.mark.parametrize("is_numbered", [True, False])
@pytest.mark.parametrize("last_only", [True, False])
async def test_steps(wire: Wire, is_numbered: bool, last_only: bool) -> None:
    """Of one row and of many slices; a numbered repeat is answered with the saved integers too."""
    net = await open_net(wire)
    for length in LENGTHS:
        request = net.request(length, is_numbered=is_numbered, last_only=last_only)
        reply = await wire.call("Step", request)
        assert (reply.step, reply.replayed) == (net.step, False)
        net.check(reply, last_only=last_only)
        if is_numbered:
            again = await wire.call("Step", request)
            assert again.replayed
            net.check(again, last_only=last_only)
    await exported(wire, net)


async def test_a_repeat_of_another_input_is_refused(wire: Wire) -> None:
    """Whichever of the inputs differs: a float, the second float input, the integer."""
    net = await open_net(wire)
    request = net.request(1)
    net.check(await wire.call("Step", request))
    for field, place in (("x", 0), ("x", 3), ("tokens", 0)):
        other = net.again().__deepcopy__()
        getattr(other, field)[place] += 1
        said = await wire.refused("Step", other.SerializeToString())
        assert said.reason == "STEP_PAYLOAD_MISMATCH"
    net.check(await wire.call("Step", request))


async def test_streams(wire: Wire) -> None:
    """Steps of many sessions on one StepStream, sent before any reply: each has its own outputs."""
    nets = {net.id: net for net in [await open_net(wire, i) for i in range(12)]}
    stream = wire.stream("StepStream")
    sent = 0
    for i in range(6):
        for place, net in enumerate(nets.values()):
            length = LENGTHS[(i + place) % len(LENGTHS)]
            await stream.write(net.request(length, tag=i).SerializeToString())
            sent += 1
            if place % 3 == 0:
                await stream.write(net.again().SerializeToString())
                sent += 1
    seen = dict.fromkeys(nets, 0)
    for _ in range(sent):
        reply = pb.StepResponse.FromString(await stream.read())
        assert not reply.HasField("error"), reply.error
        assert reply.step == seen[reply.session_id] + (not reply.replayed)
        seen[reply.session_id] = reply.step
        nets[reply.session_id].check(reply, reply.step)
    await stream.done_writing()
    assert set(seen.values()) == {6}
    for net in nets.values():
        await exported(wire, net)


@pytest.mark.parametrize("last_only", [True, False])
@pytest.mark.parametrize("lengths", [[1] * 6, LENGTHS], ids=["one row each", "ragged"])
async def test_messages_of_many_sessions(wire: Wire, lengths: list[int], last_only: bool) -> None:
    """The rows of all, one session after the other; those of a failed one are NaN and 0."""
    nets = [await open_net(wire, i) for i in range(6)]
    stream = wire.stream("StepMany")
    for is_named in (True, False, True):
        rows = [net.rows(length) for net, length in zip(nets, lengths, strict=True)]
        message = pb.StepManyRequest(
            session_ids=[net.id for net in nets] if is_named else [],
            steps=[net.step for net in nets],
            incarnations=[net.incarnation for net in nets],
            lengths=lengths,
            last_only=last_only,
            **inputs(np.concatenate(rows)),
        )
        wanted = np.concatenate([net.wanted(last_only=last_only) for net in nets])
        for is_replayed in (False, True):
            reply = await many(stream, message)
            assert not reply.errors
            assert list(reply.replayed) == (list(range(6)) if is_replayed else [])
            assert outputs(reply).tobytes() == wanted.tobytes()
        await check_failures(wire, stream, nets, lengths, last_only=last_only)
        await stream.write(message.SerializeToString())  # which names the sessions again
        await stream.read()
    for net in nets:
        await exported(wire, net)


async def many(stream: Any, message: pb.StepManyRequest) -> pb.StepManyResponse:
    """The answer to a message."""
    await stream.write(message.SerializeToString())
    return pb.StepManyResponse.FromString(await stream.read())


async def check_failures(
    wire: Wire, stream: Any, nets: list[Net], lengths: list[int], *, last_only: bool
) -> None:
    """Of three sessions the second is unknown and the third is sent NaN: only the first steps."""
    net, other = nets[0], await open_net(wire, 99)
    rows = [net.rows(lengths[0]), *(random_rows(np.random.default_rng(5), n) for n in lengths[1:3])]
    rows[2][FLOATS][-1, 0] = np.nan
    message = pb.StepManyRequest(
        session_ids=[net.id, "nobody", other.id],
        lengths=lengths[:3],
        last_only=last_only,
        **inputs(np.concatenate(rows)),
    )
    reply = await many(stream, message)
    reasons = [in_band(each.status).reason for each in reply.errors]
    assert [each.index for each in reply.errors] == [1, 2]
    assert reasons == ["SESSION_NOT_FOUND", "NON_FINITE"]
    found, good = outputs(reply), net.wanted(last_only=last_only)
    assert found[: len(good)].tobytes() == good.tobytes()
    bad = stepgraph.OUTPUTS.unknown(2 if last_only else sum(lengths[1:3]))
    assert found[len(good) :].tobytes() == bad.tobytes()
    assert not bad[INTS].any()
    message.session_ids[:] = ["nobody", other.id, "nobody-else"]
    message.x[-1], message.x[0] = message.x[0], np.nan
    message.x[4 * lengths[0]] = np.nan
    reply = await many(stream, message)
    assert len(reply.errors) == 3, "no session steps, though the model is known"
    nothing = stepgraph.OUTPUTS.unknown(3 if last_only else sum(lengths[:3]))
    assert outputs(reply).tobytes() == nothing.tobytes()
    unknown = await many(stream, pb.StepManyRequest(session_ids=["nobody"], **inputs(rows[0][:1])))
    assert not unknown.y
    assert not unknown.y_ints


@pytest.mark.parametrize("last_only", [True, False])
@pytest.mark.parametrize("has_initial", [True, False])
async def test_predict(wire: Wire, has_initial: bool, last_only: bool) -> None:
    """Ragged sequences from the model's initial state or from others, and their final states."""
    rng, loop = np.random.default_rng(3), Loop()
    rows = [random_rows(rng, length) for length in LENGTHS]
    starts = [loop.run(random_rows(rng, 2))[1] if has_initial else GOOD for _ in rows]
    given = {n: np.stack([start[n] for start in starts]) for n in NAMES} if has_initial else {}
    reply = await wire.call(
        "Predict",
        model="n",
        lengths=LENGTHS,
        last_only=last_only,
        with_state=True,
        initial=reversed(states_of(given)),  # their order means nothing
        **inputs(np.concatenate(rows)),
    )
    results = [loop.run(each, start) for each, start in zip(rows, starts, strict=True)]
    wanted = np.concatenate([y[-1 if last_only else 0 :] for y, _ in results])
    assert outputs(reply).tobytes() == wanted.tobytes()
    assert list(reply.lengths) == ([1] * len(rows) if last_only else LENGTHS)
    check_tensors(reply.final, {n: np.stack([end[n] for _, end in results]) for n in NAMES})
    single = await wire.call("Predict", model="n", **inputs(rows[1]))
    assert outputs(single).tobytes() == loop.run(rows[1])[0].tobytes()
    assert not single.final


async def test_a_state_moves(wire: Wire, elsewhere: Wire) -> None:
    """Exported at any time, imported here and at another server, forked: each goes its own way."""
    net = await open_net(wire)
    await exported(wire, net)
    for i, length in enumerate(LENGTHS):
        net.check(await wire.call("Step", net.request(length)))
        state = await exported(wire, net)
        assert state.fingerprint
        others = [
            (wire, await open_net(wire, i, net, state=state)),
            (wire, await open_net(wire, 10 + i, net, fork_of=net.id)),
            (elsewhere, await open_net(elsewhere, 20 + i, net, state=state)),
        ]
        for where, other in others:
            assert other.step == net.step
            assert await exported(where, other) == state
            other.check(await where.call("Step", other.request(7)))
            await exported(where, other)


async def test_the_order_of_a_state_means_nothing(wire: Wire) -> None:
    """Tensors are found by name, and the checksum is of the spec's order."""
    net = await open_net(wire)
    await wire.call("Step", net.request(5))
    state = await exported(wire, net)
    turned = pb.State(**{f.name: v for f, v in state.ListFields() if f.name != "tensors"})
    turned.tensors.extend(reversed(state.tensors))
    other = await open_net(wire, 1, net, state=turned)
    assert await exported(wire, other) == state


H, ODD = GOOD["h"], GOOD["odd"]
BAD_STATES: dict[str, tuple[str, str, list[pb.Tensor]]] = {
    "count is missing": (
        "BAD_TENSOR",
        "count",
        states_of({n: GOOD[n] for n in NAMES if n != "count"}),
    ),
    "h twice": ("BAD_TENSOR", "'h', twice", [*states_of({"h": H}), *states_of(GOOD)]),
    "one too many": ("BAD_TENSOR", "'c'", [*states_of(GOOD), tensor("c", H)]),
    "h turned over": ("BAD_TENSOR", "h has the shape [4, 2]", states_of({**GOOD, "h": H.T})),
    "a count with an axis too many": (
        "BAD_TENSOR",
        "count has the shape [1, 1]",
        states_of({**GOOD, "count": [[7]]}),
    ),
    "count in floats": (
        "BAD_TENSOR",
        "count is int64: send its values in ints",
        states_of({**GOOD, "count": np.float32(7)}),
    ),
    "h in integers": (
        "BAD_TENSOR",
        "h is float32: send its values in floats",
        states_of({**GOOD, "h": H.astype(int)}),
    ),
    "odd in floats": (
        "BAD_TENSOR",
        "odd is bool: send its values in ints",
        states_of({**GOOD, "odd": ODD.astype(np.float32)}),
    ),
    "a bool of 2": (
        "BAD_TENSOR",
        "odd is bool: its values must be 0 or 1",
        states_of({**GOOD, "odd": [0, 1, 2, 0]}),
    ),
    "a bool of -1": (
        "BAD_TENSOR",
        "odd is bool: its values must be 0 or 1",
        states_of({**GOOD, "odd": [0, 1, -1, 0]}),
    ),
    "window not finite": (
        "NON_FINITE",
        "NaN or infinite values in window",
        states_of({**GOOD, "window": np.full((3, 2), np.inf)}),
    ),
    "a value too few": (
        "BAD_TENSOR",
        "odd has 3 values, must have 4",
        [
            *states_of({n: GOOD[n] for n in NAMES[:-1]}),
            pb.Tensor(name="odd", shape=[4], ints=[1, 0, 1]),
        ],
    ),
}


@pytest.mark.parametrize("name", BAD_STATES)
async def test_bad_states(wire: Wire, name: str) -> None:
    """A state that is not the model's is refused, by OpenSession and by Predict."""
    reason, text, given = BAD_STATES[name]
    request = pb.OpenSessionRequest(model="n", state=pb.State(tensors=given))
    said = await wire.refused("OpenSession", request.SerializeToString())
    assert (said.reason, said.fields) == (reason, ["state.tensors"])
    assert text in said.message
    batch = [pb.Tensor(name=each.name, shape=[1, *each.shape]) for each in given]
    for one, each in zip(batch, given, strict=True):
        one.floats.extend(each.floats)
        one.ints.extend(each.ints)
    rows = random_rows(np.random.default_rng(0), 1)
    predict = pb.PredictRequest(model="n", initial=batch, **inputs(rows))
    said = await wire.refused("Predict", predict.SerializeToString())
    assert (said.reason, said.fields) == (reason, ["initial"])
    assert len(wire.engine.table) == 0


async def test_one_bit_of_any_state_is_missed_by_its_checksum(wire: Wire) -> None:
    """Another value of each state, in turn, does not match crc32c; without one it is taken."""
    net = await open_net(wire)
    await wire.call("Step", net.request(3))
    state = await exported(wire, net)
    for place, spec in enumerate(SPEC.states):
        other = state.__deepcopy__()
        values = other.tensors[place].floats or other.tensors[place].ints
        values[-1] = 1 - values[-1]
        request = pb.OpenSessionRequest(model="n", state=other)
        said = await wire.refused("OpenSession", request.SerializeToString())
        assert said.reason == "STATE_CORRUPT", spec.name
        other.crc32c = 0
        assert (await wire.open("n", state=other)).step == net.step
    state.step += 1
    request = pb.OpenSessionRequest(model="n", state=state)
    said = await wire.refused("OpenSession", request.SerializeToString())
    assert said.reason == "STATE_CORRUPT"


@pytest.mark.parametrize(
    ("reason", "field", "change"),
    [
        ("EMPTY_INPUT", "x", {"x": [], "tokens": []}),
        ("BAD_TENSOR", "x", {"x": []}),
        ("BAD_TENSOR", "tokens", {"tokens": []}),
        ("BAD_TENSOR", "x", {"x": [0.5] * 7}),
        ("BAD_TENSOR", "tokens", {"tokens": [1, 2, 3]}),
        ("NON_FINITE", "x", {"x": [0.5] * 7 + [float("nan")]}),
    ],
)
async def test_bad_inputs(wire: Wire, reason: str, field: str, change: dict[str, Any]) -> None:
    """Of two rows: each kind of input must be there, whole, and finite; nothing is applied."""
    net = await open_net(wire)
    given = {"x": [0.5] * 8, "tokens": [1, 2], **change}
    step = pb.StepRequest(session_id=net.id, length=2, **given)
    predict = pb.PredictRequest(model="n", lengths=[2], **given)
    for method, request in (("Step", step), ("Predict", predict)):
        said = await wire.refused(method, request.SerializeToString())
        assert (said.reason, said.fields) == (reason, [field]), method
    stream = wire.stream("StepMany")
    reply = await many(stream, pb.StepManyRequest(session_ids=[net.id], lengths=[2], **given))
    whole = reply.error if reply.HasField("error") else reply.errors[0].status
    assert in_band(whole).reason == reason
    net.check(await wire.call("Step", net.request(2)))
    await exported(wire, net)


async def test_a_cancelled_caller_leaves_nothing(wire: Wire) -> None:
    """A Predict of many rows and states that goes away gives its rows and bytes back."""
    rows = random_rows(np.random.default_rng(0), 20_000)
    given = states_of({name: np.stack([each] * 20) for name, each in GOOD.items()})
    request = pb.PredictRequest(model="n", lengths=[1000] * 20, initial=given, **inputs(rows))
    call = asyncio.create_task(wire.call("Predict", request))
    await wire.until(lambda: wire.engine.predictor.waiting_rows > 0)
    call.cancel()
    await wire.until(lambda: wire.engine.predictor.waiting_rows == 0)
    net = await open_net(wire)
    net.check(await wire.call("Step", net.request(3)))


async def test_bytes_are_counted_for_integers_and_states(wire: Wire) -> None:
    """A reply's integer may take ten bytes, and so may one of a state; a bool takes one."""
    model = wire.engine.model("n", 0)
    assert model.outputs.wire_bytes == 2 * 4 + 10
    longest = pb.StepResponse(y=[1.0] * 2, y_ints=[-1])
    assert longest.ByteSize() - 4 == model.outputs.wire_bytes, "heads of two bytes do not count"
    for spec in SPEC.states:
        values = np.full(spec.shape, -1).astype(spec.dtype)
        found = pb.State(tensors=[tensor("x" * 64, values)]).ByteSize()
        assert spec.wire_bytes < found <= tensor_messages_bytes([spec])
    sizes = MessageSizes(wire.engine.registry, wire.engine.config, has_states=False)
    assert sizes.of(100, 7, model) == 100 + 7 * model.outputs.wire_bytes


async def test_bytes_are_counted_for_every_integer_that_is_sent(wire: Wire) -> None:
    """An integer of one byte takes eight once it is read, whatever length its step claims."""
    steps = StepCalls(wire.engine, Steps(wire.engine, wire.metrics), wire.pending)
    tenant = Tenant("", NO_LIMITS)
    asked = pb.StepRequest(length=1, tokens=[1] * 1000)
    few = pb.StepRequest(length=1, tokens=[1])
    more = steps.size(tenant, asked, "s", 2000) - steps.size(tenant, few, "s", 2000)
    assert more == 999 * 8


class Caller:
    """Speaks the contract's messages to a server process."""

    def __init__(self, serving: Serving) -> None:
        self._channel = grpc.insecure_channel(serving.target)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, method: str, request: Any = None, /, **fields: Any) -> Any:
        """The response. Raises RpcError."""
        message = request or getattr(pb, f"{method}Request")(**fields)
        path = f"/{SERVICE}/{method}"
        rpc = self._channel.unary_unary(path, type(message).SerializeToString)
        return getattr(pb, f"{method}Response").FromString(rpc(message, timeout=30))

    def state(self, net: Net, **fields: Any) -> pb.State:
        """The session's state, which is the loop's."""
        state = self.call("GetState", session_id=net.id, **fields).state
        net.check_state(state)
        return state


@pytest.fixture(params=["file", "file behind", "valkey"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """The flags of a store."""
    if request.param == "valkey":
        with Valkey(tmp_path) as server:
            yield "--store", server.url
    else:
        mode = "behind" if "behind" in request.param else "through"
        flags = "--store", f"file:{tmp_path / 'store'}", "--store-mode", mode
        yield *flags, "--behind-s-max", "0.05"  # what waits for a write waits for this


def test_a_killed_server_loses_no_state(store: tuple[str, ...], serve: Serve, folder: Path) -> None:
    """After kill -9 between steps the next server answers the last one again, from its record, and
    goes on from there, bit for bit; a fork and the server that does not have the model see it."""
    is_behind = "behind" in store
    net: Net | None = None
    for length in LENGTHS[:4]:
        serving = serve(*store, "--slice-rows-max", "4", models=folder)
        with Caller(serving) as caller:
            if net is None:
                net = Net(caller.call("OpenSession", model="n").session)
            else:
                again = caller.call("Step", net.again())
                assert again.replayed
                net.check(again)
            net.check(caller.call("Step", net.request(length)))
            caller.state(net)
            if is_behind:
                reached = 0
                while reached < net.step:
                    reached = caller.call("GetSession", session_id=net.id).session.durable_step
        serving.signal(signal.SIGKILL)
        serving.wait()
    assert net is not None
    check_elsewhere(serve(*store), net)
    with Caller(serve(*store, models=folder)) as caller:
        caller.state(net, incarnation=net.incarnation)
        fork = Net(caller.call("OpenSession", model="n", fork_of=net.id).session, 1, net)
        for each in (net, fork):
            each.check(caller.call("Step", each.request(6)))
            caller.state(each)


def test_a_zero_keeps_its_sign(serve: Serve, folder: Path, tmp_path: Path) -> None:
    """A given state that differs from the initial one by signs of zeros alone is not replaced by
    that: not at its import, nor when a store brings it back before its first step."""
    given = {**GOOD, "window": np.full((3, 2), -0.0, np.float32)}
    store = "--store", f"file:{tmp_path / 'store'}"
    serving = serve(*store, models=folder)
    with Caller(serving) as caller:
        opened = caller.call("OpenSession", model="n", state=pb.State(tensors=states_of(given)))
        check_tensors(caller.call("GetState", session_id=opened.session.id).state.tensors, given)
    serving.signal(signal.SIGKILL)
    serving.wait()
    with Caller(serve(*store, models=folder)) as caller:
        fields = {"session_id": opened.session.id, "incarnation": opened.session.incarnation}
        check_tensors(caller.call("GetState", **fields).state.tensors, given)


def check_elsewhere(serving: Serving, net: Net) -> None:
    """A server without the model shows the stored state, by name, and says why it cannot step."""
    with Caller(serving) as caller:
        caller.state(net)
        with pytest.raises(grpc.RpcError) as caught:
            caller.call("Step", session_id=net.id, x=[0.5] * 4, tokens=[1])
        assert refusal(caught.value).reason == "MODEL_NOT_HERE_YET"
    assert serving.stop() == 0
