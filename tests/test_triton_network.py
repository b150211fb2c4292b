"""A network of five states served to the stock Triton client: every tensor by name, bit for bit.

Each answer is held to a plain loop over the step graph (tests/stepgraph.py).
"""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.spec import NEXT
from modelmaking import make_model as make_lstm
from scenarios import shuffled
from serving import Serve
from stepgraph import INPUTS, OUTPUTS, SPEC, Arrays, Loop, initial, make_model, random_rows
from test_kserve_wire import infer, put, sent
from tritonserving import MODES, Answer, Triton, request
from wire import SPECS, serving

NET = "net"
STATES = [each.name for each in SPEC.states]
AFTER = [name + NEXT for name in STATES]
CUTS = [0, 1, 4, 6, 7, 12]  # of a sequence into chunks


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network beside the wire's models; not to be written to."""
    folder = tmp_path_factory.mktemp("networks")
    make_model(folder, name=NET)
    return folder


def rows_of(seed: int, length: int = CUTS[-1]) -> Any:
    """Rows of the inputs."""
    return random_rows(np.random.default_rng(seed), length)


def some_states(seed: int) -> dict[str, Any]:
    """Name -> [*shape] of every state, as a session might have them."""
    _, states = Loop().run(rows_of(seed, 3))
    return states


def chunk(
    rows: Any, sequence: int | str, *axes: int, states: Arrays | None = None, **others: Any
) -> dict[str, Any]:
    """A request of a chunk, whose inputs have these axes before their own; [T] where none is
    given."""
    shape = axes or (len(rows),)
    inputs = {
        name: values.reshape(*shape, *values.shape[1:])
        for name, values in INPUTS.split(rows).items()
    }
    return request(None, sequence, model=NET, inputs={**inputs, **(states or {})}, **others)


def raw(
    rows: Any,
    *,
    sequence: int | str = 1,
    states: Arrays | None = None,
    start: bool = False,
    is_raw: bool = True,
) -> pb.ModelInferRequest:
    """A message of a chunk [T, *shape]."""
    message = infer(model=NET, sequence_id=sequence, sequence_start=start)
    for name, values in {**INPUTS.split(rows), **(states or {})}.items():
        put(message, name, np.asarray(values), is_raw=is_raw)
    return message


def requests_of(
    rows: Any, sequence: int | str, *, states: Arrays | None = None, has_end: bool = True
) -> list[dict[str, Any]]:
    """A sequence in chunks, from START to END; every other one has a batch axis."""
    found = []
    for i, (start, end) in enumerate(itertools.pairwise(CUTS)):
        axes = (1, end - start) if i % 2 else (end - start,)
        flags = {"start": i == 0, "end": has_end and end == CUTS[-1]}
        given = states if i == 0 else None
        found.append(chunk(rows[start:end], sequence, *axes, states=given, **flags))
    return found


def check(answers: Sequence[Answer], rows: Any, states: Arrays | None = None) -> None:
    """The answers' outputs, one after the other, are those of the loop on the whole sequence."""
    for each in answers:
        assert each.error is None, each.error
        assert list(each.outputs) == [tensor.name for tensor in SPEC.outputs]
    y, _ = Loop().run(rows, states)
    for name, wanted in OUTPUTS.split(y).items():
        parts = [each.outputs[name].reshape(-1, *wanted.shape[1:]) for each in answers]
        assert same(np.concatenate(parts), wanted)


def same(found: Any, wanted: Any) -> bool:
    """Of one dtype and shape, bit for bit."""
    return found.dtype == wanted.dtype and np.array_equal(found, wanted)


@pytest.mark.parametrize("mode", MODES)
async def test_sequences_side_by_side(triton: Triton, networks: Path, mode: str) -> None:
    """Interleaved sequences in chunks of many lengths, some with initial states, are each the loop
    of its own: both outputs, one of them INT64."""
    rows = [rows_of(seed) for seed in range(4)]
    states = [some_states(seed) if seed % 2 else None for seed in range(4)]
    sequences = [
        requests_of(each, n, states=given)
        for n, (each, given) in enumerate(zip(rows, states, strict=True), 1)
    ]
    order = shuffled(sequences, seed=5)
    async with serving(networks) as wire:
        answers = await triton.run(mode, wire.target, order)
        assert len(wire.engine.table) == 0
    for n, (each, given) in enumerate(zip(rows, states, strict=True), 1):
        own = [a for a, r in zip(answers, order, strict=True) if r["sequence_id"] == n]
        check(own, each, given)
        shapes = [answer.outputs["label"].shape for answer in own]
        assert shapes == [(1,), (1, 3), (2,), (1, 1), (5,)]


async def test_steps_that_wait_together_are_one_batch(triton: Triton, networks: Path) -> None:
    """Sixteen sequences whose requests wait run in one batch, each with the bits that it has
    alone."""
    rows = [rows_of(seed, 3) for seed in range(16)]
    starts = [chunk(each, n, start=True) for n, each in enumerate(rows, 1)]
    async with serving(networks, is_running=False) as wire:
        running = asyncio.create_task(triton.run("stream", wire.target, starts))
        await wire.until(lambda: wire.engine.batch_loop.pending_steps == len(rows))
        wire.run()
        answers = await running
        assert wire.metrics.model(NET, 1).batch_size.read()[1] == len(rows)
    for answer, each in zip(answers, rows, strict=True):
        check([answer], each)


@pytest.mark.parametrize("has_batch_axis", [True, False])
async def test_states_by_name(triton: Triton, networks: Path, has_batch_axis: bool) -> None:
    """Any request may ask for states; given to another sequence's START they go on from there, and
    the order in which they are named does not matter."""
    rows = rows_of(1, 8)
    axes = (1, 4) if has_batch_axis else (4,)
    y, middle = Loop().run(rows[:4])
    async with serving(networks) as wire:
        asked = ["label_last", *reversed(AFTER), "score"]
        (first,) = await triton.run(
            "stream", wire.target, [chunk(rows[:4], 1, *axes, start=True, outputs=asked)]
        )
        assert list(first.outputs) == asked
        outputs = OUTPUTS.split(y)
        assert same(first.outputs["score"].reshape(4, 2), outputs["score"])
        last = outputs["label"][-1].reshape(axes[:-1])
        assert same(first.outputs["label_last"], last)
        given = {name: first.outputs[name + NEXT] for name in reversed(STATES)}
        for name in STATES:
            assert same(given[name], middle[name][np.newaxis] if has_batch_axis else middle[name])
        goes_on = chunk(rows[4:], "other", start=True, end=True, states=given)
        check(await triton.run("one_by_one", wire.target, [goes_on]), rows[4:], middle)
        check(
            await triton.run("one_by_one", wire.target, [chunk(rows[4:], 1, end=True)]),
            rows[4:],
            middle,
        )
        (after,) = await triton.run(
            "one_by_one",
            wire.target,
            [chunk(rows[:1], 2, start=True, outputs=["odd.next", "count.next"])],
        )
        _, wanted = Loop().run(rows[:1])
        assert same(after.outputs["odd.next"], wanted["odd"])
        assert same(after.outputs["count.next"], wanted["count"])


async def test_whole_sequences(triton: Triton, networks: Path) -> None:
    """Without an id: a batch of sequences of many lengths, with states and without, gives outputs
    [B, T, *shape] and states [B, *shape]."""
    lengths, longest = [5, 1, 3], 5
    rows = [rows_of(seed, longest) for seed in range(3)]
    every = INPUTS.split(np.stack(rows))
    every["lengths"] = np.array(lengths, np.int32)
    states = [some_states(seed) for seed in range(3)]
    given = {name: np.stack([each[name] for each in states]) for name in STATES}
    asked = ["score", "label", "score_last", "label_last", *AFTER]
    async with serving(networks) as wire:
        from_states, plain = await triton.run(
            "one_by_one",
            wire.target,
            [
                request(None, model=NET, inputs={**every, **given}, outputs=asked),
                request(None, model=NET, inputs=every, outputs=asked),
            ],
        )
        assert len(wire.engine.table) == 0
    for answer, starts in ((from_states, states), (plain, [None] * 3)):
        assert answer.error is None, answer.error
        for i, length in enumerate(lengths):
            y, after = Loop().run(rows[i][:length], starts[i])
            for name, wanted in OUTPUTS.split(y).items():
                assert same(answer.outputs[name][i, :length], wanted)
                assert not answer.outputs[name][i, length:].any()
                assert same(answer.outputs[f"{name}_last"][i], wanted[-1])
            for name, value in after.items():
                assert same(answer.outputs[name + NEXT][i], value)


async def test_wrong_whole_sequences_are_named(triton: Triton, networks: Path) -> None:
    """All inputs have the same B and T, and states the same B."""
    inputs = INPUTS.split(np.stack([rows_of(seed, 3) for seed in range(2)]))
    states = {name: np.stack([each, each]) for name, each in some_states(1).items()}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"kind": inputs["kind"][:, :2]}, "input 'kind' has B, T = [2, 2], input 'x' has [2, 3]"),
        ({"gain": inputs["gain"][:1]}, "input 'gain' has B, T = [1, 3], input 'x' has [2, 3]"),
        ({"x": inputs["x"][0]}, "input 'x' has shape [3, 3], must have [B, T, 3] where"),
        ({"kind": inputs["kind"][..., None]}, "'kind' has shape [2, 3, 1], must have [B, T] where"),
        ({"lengths": np.ones(3, np.int32)}, "input 'lengths' has shape [3], must have [2]"),
        ({"gain": np.full((2, 3), np.nan, np.float32)}, "gain has NaN or infinite values"),
        ({"h": states["h"]}, "input 'mean' is missing: give every state or none"),
        ({**states, "h": states["h"][:1]}, "input 'h' has shape [1, 2, 4], must have [2, 2, 4]"),
    ]
    async with serving(networks) as wire:
        requests = [request(None, model=NET, inputs={**inputs, **changed}) for changed, _ in cases]
        for answer, (_, text) in zip(
            await triton.run("one_by_one", wire.target, requests), cases, strict=True
        ):
            assert text in str(answer.error)
            assert answer.status == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("mode", ["one_by_one", "stream"])
async def test_a_network_s_sequence_outlives_kill_9(
    triton: Triton, serve: Serve, networks: Path, tmp_path: Path, mode: str
) -> None:
    """With a store all five states survive, and the saved reply with its INT64 output."""
    flags = ("--store", f"file:{tmp_path / 'store'}")
    rows, states = rows_of(3), some_states(9)
    requests = requests_of(rows, "kept", states=states, has_end=False)
    for number, each in enumerate(requests, 1):
        each["parameters"] = {"step": number}
    one = serve(*flags, models=networks)
    answers = await triton.run(mode, one.target, requests[:3])
    one.signal(signal.SIGKILL)
    two = serve(*flags, models=networks)
    (again,) = await triton.run(mode, two.target, requests[2:3])
    assert again.parameters["replayed"] is True
    for name, values in answers[2].outputs.items():
        assert same(again.outputs[name], values)
    answers += await triton.run(mode, two.target, requests[3:])
    check(answers, rows, states)


@pytest.mark.parametrize("name", [each.name for each in SPEC.inputs])
async def test_another_value_of_any_input_is_no_repeat(
    triton: Triton, networks: Path, name: str
) -> None:
    """A numbered step that is sent again with one other input is refused, whichever it is."""
    rows = rows_of(2, 2)
    first = chunk(rows, 1, start=True, parameters={"step": 1})
    changed = INPUTS.split(rows)
    changed[name] = changed[name].copy()
    changed[name].ravel()[-1] += 1
    other = chunk(INPUTS.pack(changed), 1, parameters={"step": 1})
    async with serving(networks) as wire:
        _, again, refused = await triton.run(
            "stream", wire.target, [first, chunk(rows, 1, parameters={"step": 1}), other]
        )
        assert again.parameters["replayed"] is True
        check([again], rows)
        assert "step 1 was sent before with another input" in str(refused.error)


async def test_wrong_tensors_are_named(triton: Triton, networks: Path) -> None:
    """An error names the tensor and what it must be; the sequence stays as it was."""
    rows = rows_of(4, 6)
    states = some_states(1)
    inputs = INPUTS.split(rows[:2])

    def wrong(**changed: Any) -> dict[str, Any]:
        given = {name: each for name, each in {**inputs, **changed}.items() if each is not None}
        return request(None, 1, model=NET, inputs=given)

    cases = [
        (wrong(gain=None), "input 'gain' is missing: it is FP32, [] in each time step"),
        (wrong(kind=inputs["kind"][:1]), "input 'kind' has T = 1, input 'x' has T = 2"),
        (wrong(kind=inputs["gain"]), "input 'kind' has data-type 'FP32', must be INT64"),
        (wrong(x=inputs["x"][:, :2]), "input 'x' has shape [2, 2], must have [3], [T, 3] or [1, T"),
        (wrong(gain=np.full(2, np.inf, np.float32)), "gain has NaN or infinite values"),
        (wrong(h=states["h"]), "unexpected inference input 'h' for model 'net'"),
        (chunk(rows[:1], 1, outputs=["h"]), "unexpected inference output 'h' for model 'net'"),
        (chunk(rows[:1], 1, outputs=["label", "label"]), "output 'label' is asked for twice"),
        (
            chunk(rows[:1], 1, start=True, states={"h": states["h"]}),
            "input 'mean' is missing: give every state or none, that is h, mean, count, window, "
            "odd",
        ),
        (
            chunk(
                rows[:1], 1, start=True, states={**states, "odd": states["odd"].astype(np.int64)}
            ),
            "input 'odd' has data-type 'INT64', must be BOOL",
        ),
    ]
    async with serving(networks) as wire:
        requests = [chunk(rows[:3], 1, start=True), *(each for each, _ in cases)]
        requests.append(chunk(rows[3:], 1, end=True))
        first, *said, last = await triton.run("stream", wire.target, requests)
        for answer, (_, text) in zip(said, cases, strict=True):
            assert text in str(answer.error)
        check([first, last], rows)


async def test_a_sequence_keeps_the_tensors_of_its_version(triton: Triton, tmp_path: Path) -> None:
    """A newer version of other inputs and outputs changes nothing for the sequences of the older
    one: they are stepped and asked by the names that they began with."""
    make_model(tmp_path, name=NET)
    make_lstm(tmp_path, SPECS["m"], name=NET, version=2)
    rows, x = rows_of(5, 4), np.ones((1, 3), np.float32)
    async with serving(tmp_path) as wire:
        first, second, newest, *refused = await triton.run(
            "stream",
            wire.target,
            [
                chunk(rows[:1], 1, start=True, model_version="1"),
                chunk(rows[1:], 1, outputs=["score", "label"]),
                request(x, 2, start=True, model=NET, outputs=["y", "hn"]),
                request(x, 1, model=NET),
                chunk(rows[:1], 1, outputs=["y"]),
                chunk(rows[:1], 2),
            ],
        )
    check([first, second], rows)
    assert newest.model == (NET, "2")
    assert newest.outputs["hn"].shape == (2, 8)
    assert "input 'gain' is missing" in str(refused[0].error)
    assert "unexpected inference output 'y' for model 'net'" in str(refused[1].error)
    assert "unexpected inference input 'gain' for model 'net'" in str(refused[2].error)


async def test_discovery_of_a_network(triton: Triton, networks: Path) -> None:
    """Metadata and configuration list every tensor; an initial state that is not zero says so."""
    async with serving(networks) as wire:
        metadata, config = await triton.tell(
            wire.target,
            ("get_model_metadata", {"model_name": NET}),
            ("get_model_config", {"model_name": NET}),
        )
    assert metadata["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": ["-1", "-1", "3"]},
        {"name": "gain", "datatype": "FP32", "shape": ["-1", "-1"]},
        {"name": "kind", "datatype": "INT64", "shape": ["-1", "-1"]},
    ]
    assert metadata["outputs"] == [
        {"name": "score", "datatype": "FP32", "shape": ["-1", "-1", "2"]},
        {"name": "label", "datatype": "INT64", "shape": ["-1", "-1"]},
    ]
    states = config["config"]["sequence_batching"]["state"]
    types = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "bool": "TYPE_BOOL"}
    for found, state in zip(states, SPEC.states, strict=True):
        assert (found["input_name"], found["output_name"]) == (state.name, state.name + NEXT)
        assert found["data_type"] == types[state.dtype]
        assert found.get("dims", []) == [str(size) for size in state.shape]
        (begins,) = found["initial_state"]
        assert ("zero_data" in begins) == (not initial()[state.name].any())


@pytest.mark.parametrize("is_raw", [True, False])
async def test_raw_and_typed_messages(networks: Path, is_raw: bool) -> None:
    """Typed contents of every datatype give the bits of raw ones."""
    rows, states = rows_of(6, 3), some_states(2)
    message = raw(rows, states=states, start=True, is_raw=is_raw)
    message.outputs.extend(
        pb.ModelInferRequest.InferRequestedOutputTensor(name=name)
        for name in ("label", "score", *AFTER)
    )
    async with serving(networks) as wire:
        response = await sent(wire, message)
    y, after = Loop().run(rows, states)
    wanted = OUTPUTS.split(y) | {name + NEXT: value for name, value in after.items()}
    assert len(response.raw_output_contents) == len(response.outputs) == 2 + len(STATES)
    for header, content in zip(response.outputs, response.raw_output_contents, strict=True):
        assert tuple(header.shape) == wanted[header.name].shape
        assert content == wanted[header.name].tobytes()


async def test_random_bytes_never_reach_the_inside_of_a_network(networks: Path) -> None:
    """Whatever a request becomes when bytes of it change, it has an answer of the contract, and
    the sequence beside it keeps its bits."""
    seed = 11
    print(f"seed {seed}")
    rng, rows = random.Random(seed), rows_of(8, 6)
    y, _ = Loop().run(rows)
    whole, codes = OUTPUTS.split(y), set()
    messages = [raw(rows[:2], start=True), raw(rows[:2], states=some_states(3), start=True)]
    messages.append(raw(rows[:2]))
    messages[0].outputs.add(name="window.next")
    async with serving(networks) as wire:
        for i in range(len(rows)):
            for _ in range(60):
                broken = bytearray(rng.choice(messages).SerializeToString())
                for _ in range(rng.randint(1, 4)):
                    broken[rng.randrange(len(broken))] = rng.randrange(256)
                try:
                    await sent(wire, bytes(broken))
                except grpc.aio.AioRpcError as error:
                    codes.add(error.code())
            step = raw(rows[i : i + 1], sequence="kept", start=not i)
            response = await sent(wire, step)
            for header, content in zip(response.outputs, response.raw_output_contents, strict=True):
                assert content == whole[header.name][i : i + 1].tobytes()
    assert grpc.StatusCode.INVALID_ARGUMENT in codes
    assert not codes & {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
