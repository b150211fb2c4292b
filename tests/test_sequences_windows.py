"""A window on graphs as others make them: a Scan over the batch around a graph of one sequence.

Such a graph has no axis for a batch and no recurrence; inside the Scan it reads one window at a
time. Every answer has the bits of a plain onnxruntime session on the rows of one window.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lstmserve import Client
from lstmserve.config import Config
from lstmserve.engine import load_models
from lstmserve.golden import Golden
from lstmserve.rows import RowFormat, Rows
from lstmserve.spec import MISSING, ModelSpec, WindowFill, window_states
from sequencegraphs import ANSWER, CONVOLUTION, GATED, SequenceOracle, write_sequences
from serving import Serve
from stepgraph import ONNX_TYPES, Step, write

W = 6
FILLS: tuple[WindowFill, ...] = ("wait", "zeros")
NETS = {"answer": ANSWER, "convolution": CONVOLUTION, "gated": GATED}


def spec_of(net: Step, fill: WindowFill) -> ModelSpec:
    """The spec of the net with a window, whose answer is the last row of its own."""
    given = net.spec
    states = window_states(given.inputs, W, fill)
    return ModelSpec(given.inputs, given.outputs, states, window=W, window_fill=fill)


def scanned(net: Step, fill: WindowFill) -> onnx.ModelProto:
    """NAME [B, W, *shape] of each input -> NAME [B, *shape], by a Scan over B."""
    spec, inner = spec_of(net, fill), net.model().graph

    def values(specs: Any, suffix: str, lead: tuple[int | str, ...]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(e.name + suffix, ONNX_TYPES[e.dtype], [*lead, *e.shape])
            for e in specs
        ]

    # As others write it: the body has weights of its own, and takes the last row of what it made.
    nodes = [
        *inner.node,
        *(
            helper.make_node("Gather", [e.name, "last"], [e.name + "_row"], axis=0)
            for e in spec.outputs
        ),
    ]
    last = numpy_helper.from_array(np.array(-1), "last")
    body = helper.make_graph(
        nodes,
        "one_window",
        values(spec.inputs, "", (W,)),
        values(spec.outputs, "_row", ()),
        [*inner.initializer, last],
    )
    rename = [helper.make_node("Identity", [e.name], [e.name + "_all"]) for e in spec.inputs]
    scan = helper.make_node(
        "Scan",
        [e.name + "_all" for e in spec.inputs],
        [e.name for e in spec.outputs],
        body=body,
        num_scan_inputs=len(spec.inputs),
    )
    for node in body.node:  # the body's names are not those of the graph around it
        node.input[:] = [name and f"b.{name}" for name in node.input]
        node.output[:] = [name and f"b.{name}" for name in node.output]
    for value in (*body.input, *body.output, *body.initializer):
        value.name = f"b.{value.name}"
    graph = helper.make_graph(
        [*rename, scan],
        "windows",
        values(spec.inputs, "", ("B", W)),
        values(spec.outputs, "", ("B",)),
    )
    opsets = [helper.make_opsetid("", net.opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def random_rows(net: Step, length: int, seed: int) -> Rows:
    """Rows [length, ...] of the net's inputs."""
    rng, found = np.random.default_rng(seed), {}
    for each in net.spec.inputs:
        drawn = rng.standard_normal((length, *each.shape)) * 3
        found[each.name] = drawn.astype(each.dtype)
    return RowFormat(net.spec.inputs).pack(found)


class Expected:
    """What the plain session says of the windows of a session's rows."""

    def __init__(self, folder: Path, name: str) -> None:
        self._oracle, self._net = SequenceOracle(folder, name, NETS[name].spec), NETS[name]

    def run(self, rows: Rows) -> dict[str, Any]:
        """Name -> [T, *shape] for windows that begin with zeros."""
        spec, before = self._net.spec, RowFormat(self._net.spec.inputs).unknown(W - 1)
        before = np.zeros_like(before)
        every = np.concatenate([before, rows])
        answers = [self._oracle.run(every[t : t + W]) for t in range(len(rows))]
        return {e.name: np.stack([each[e.name][-1] for each in answers]) for e in spec.outputs}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the files without a window, for the oracle."""
    folder = tmp_path_factory.mktemp("plain")
    for name, net in NETS.items():
        write_sequences(folder, name, net)
    return folder


def write_window(folder: Path, plain: Path, name: str, fill: WindowFill) -> None:
    """Writes folder/NAME/1, whose golden vectors are the oracle's."""
    spec, net = spec_of(NETS[name], fill), NETS[name]
    rows = random_rows(net, 2 * W, seed=5)
    wanted = Expected(plain, name).run(rows)
    if spec.waits:
        wanted = {key: np.concatenate([0 * e[: W - 1], e[W - 1 :]]) for key, e in wanted.items()}
        wanted[MISSING] = np.maximum(W - 1 - np.arange(len(rows)), 0)
    inputs = RowFormat(spec.inputs).split(rows)
    case = Golden(
        {key: each[np.newaxis] for key, each in inputs.items()},
        np.array([len(rows)], np.int32),
        None,
        {key: each[np.newaxis] for key, each in wanted.items()},
        {},
        torch_error=0.0,
    )
    write(folder, spec, scanned(net, fill), {"plain": case}, name)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("name", NETS)
def test_the_self_test_passes(tmp_path: Path, plain: Path, name: str, fill: WindowFill) -> None:
    """The model is read and proved: alone, in a batch and step by step, with equal bits."""
    write_window(tmp_path, plain, name, fill)
    (model,) = load_models(Config(models=tmp_path, pool_bytes=1 << 20))
    assert model.is_exact
    assert model.spec.is_streaming


@pytest.mark.parametrize("fill", FILLS)
def test_sessions_have_the_answers_of_their_windows(
    tmp_path: Path, plain: Path, serve: Serve, fill: WindowFill
) -> None:
    """Sessions in chunks, many at once, and whole sequences: integers, floats and several outputs
    are those of each window alone."""
    for name in NETS:
        write_window(tmp_path, plain, name, fill)
    with Client(serve(models=tmp_path).target) as client:
        for name, net in NETS.items():
            oracle = Expected(plain, name)
            pasts = [random_rows(net, 14, seed) for seed in range(3)]
            sessions = [client.session(name) for _ in pasts]
            found: list[list[Any]] = [[] for _ in pasts]
            for start, stop in ((0, 1), (1, 9), (9, 14)):
                xs = [given(net, rows[start:stop]) for rows in pasts]
                ys = client.step_many(dict(zip(sessions, xs, strict=True)))
                for kept, session in zip(found, sessions, strict=True):
                    kept.append(ys[session])
            whole = client.predict(name, [given(net, rows) for rows in pasts])
            first = W - 1 if fill == "wait" else 0
            for i, rows in enumerate(pasts):
                wanted = {key: each[first:] for key, each in oracle.run(rows).items()}
                check(joined(found[i]), wanted)
                check(whole[i], wanted)


def given(net: Step, rows: Rows) -> Any:
    """Rows as a caller gives them."""
    found = RowFormat(net.spec.inputs).split(rows)
    return found if len(found) > 1 else next(iter(found.values()))


def joined(ys: list[Any]) -> Any:
    """The outputs of chunks, one after another."""
    if isinstance(ys[0], dict):
        return {key: np.concatenate([y[key] for y in ys]) for key in ys[0]}
    return np.concatenate(ys)


def check(y: Any, wanted: dict[str, Any]) -> None:
    """y has these outputs, bit for bit."""
    found = y if isinstance(y, dict) else {next(iter(wanted)): y}
    assert list(found) == list(wanted)
    for key, each in wanted.items():
        assert (found[key].dtype, found[key].shape) == (each.dtype, each.shape)
        assert found[key].tobytes() == each.tobytes()


def test_a_body_that_divides_by_minus_one(tmp_path: Path, serve: Serve) -> None:
    """Also inside a Scan no division of a client's integers ends the process."""
    spec = ModelSpec(
        (ANSWER.spec.inputs[1],),
        (ANSWER.spec.outputs[1],),
        window_states(ANSWER.spec.inputs[1:], 2, "zeros"),
        window=2,
        window_fill="zeros",
    )
    integer, lead = TensorProto.INT64, ["B"]
    zero, one = (numpy_helper.from_array(np.array(i), f"at{i}") for i in (0, 1))
    body = helper.make_graph(
        [
            helper.make_node("Gather", ["row", "at0"], ["dividend"], axis=0),
            helper.make_node("Gather", ["row", "at1"], ["divisor"], axis=0),
            helper.make_node("Div", ["dividend", "divisor"], ["ratio"]),
        ],
        "one_window",
        [helper.make_tensor_value_info("row", integer, [2])],
        [helper.make_tensor_value_info("ratio", integer, [])],
        [zero, one],
    )
    graph = helper.make_graph(
        [helper.make_node("Scan", ["kind"], ["best"], body=body, num_scan_inputs=1)],
        "windows",
        [helper.make_tensor_value_info("kind", integer, [*lead, 2])],
        [helper.make_tensor_value_info("best", integer, lead)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    inputs, outputs = np.array([[8, 2, 3]]), np.array([[0, 4, 0]])
    case = Golden(
        {"kind": inputs}, np.array([3], np.int32), None, {"best": outputs}, {}, torch_error=0.0
    )
    write(tmp_path, spec, model, {"by hand": case}, "ratio")
    with Client(serve(models=tmp_path).target) as client, client.session("ratio") as session:
        assert session.step(-(1 << 63)) == 0
        assert session.step(-1) == -(1 << 63)
        assert session.step(1) == -1
