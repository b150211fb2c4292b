"""Layers that find no row: onnxruntime alone would end the process, and here the run fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from lstmserve import Client
from lstmserve.engine.compute.kernel import KernelError
from lstmserve.errors import StepManyFailed
from lstmserve.golden import Golden
from lstmserve.graph.emptiness import ENDS, guard_empty, has_shapes_of_values
from lstmserve.graph.step_graph import read_step_graph
from lstmserve.spec import ModelSpec, TensorSpec, window_states
from sequencegraphs import SequenceOracle, kernel_of, write_sequences
from serving import Serve
from stepgraph import Step, five_states, make_node, write

X = TensorSpec("x", (3,))

SOME = "x two last axis0 -> Slice some\n"
OVER_TIME = SOME + "some axis1 -> Unsqueeze major\n"  # [T, 1, 3]
OVER_BATCH = SOME + "some axis0 -> Unsqueeze major\n"  # [1, T, 3]
CHANNELS = f"{SOME}some -> Transpose+perm=1,0 columns\ncolumns axis0 -> Unsqueeze major\n"
VOLUME = f"{CHANNELS}major axes -> Unsqueeze volume\n"
QUANTISED = (
    "major wq rq . . . . . scale1 point scale1 point -> "
    "DynamicQuantizeLSTM+domain=com.microsoft+hidden_size=4"
)
INNER: dict[str, str] = {
    "GRU": OVER_TIME + "major w r -> GRU+hidden_size=4 all end\nend axis1 -> Squeeze y",
    "LSTM": OVER_BATCH + "major w r -> LSTM+hidden_size=4 all end\nend axis0 -> Squeeze y",
    "DynamicQuantizeLSTM": f"""{OVER_BATCH}{QUANTISED} all end
end axis0 -> Squeeze y
""",
    "Attention": f"""{OVER_BATCH}major axis2 -> Unsqueeze heads
heads heads heads -> Attention mixed
mixed outer -> Squeeze y
""",
    "InstanceNormalization": f"""{CHANNELS}major scale bias -> InstanceNormalization normal
normal axis2 -> ReduceMean+keepdims=0 y
""",
    "ConvTranspose": f"""{VOLUME}volume kernel -> ConvTranspose wide
wide spatial -> ReduceMean+keepdims=0 y
""",
}
GATES = {"GRU": 3, "LSTM": 4}
WIDTHS = {"InstanceNormalization": 3, "ConvTranspose": 2, "Attention": 3}


def inner(op: str) -> Step:
    """A net whose layer `op` reads the rows 2, 3, ... of the sequence."""
    rng, gates = np.random.default_rng(0), GATES.get(op, 1)
    constants = {
        "two": np.array([2]),
        "last": np.array([1 << 40]),
        "axis0": np.array([0]),
        "axis1": np.array([1]),
        "axis2": np.array([2]),
        "axes": np.array([3, 4]),
        "outer": np.array([0, 2]),
        "spatial": np.array([2, 3, 4]),
        "w": rng.uniform(-1, 1, (1, 4 * gates, 3)).astype(np.float32),
        "r": rng.uniform(-1, 1, (1, 4 * gates, 4)).astype(np.float32),
        "wq": rng.integers(0, 255, (1, 3, 16), np.uint8),
        "rq": rng.integers(0, 255, (1, 4, 16), np.uint8),
        "scale1": np.array([0.01], np.float32),
        "point": np.array([128], np.uint8),
        "scale": np.ones(3, np.float32),
        "bias": np.zeros(3, np.float32),
        "kernel": rng.uniform(-1, 1, (3, 2, 2, 2, 2)).astype(np.float32),
    }
    used = {word for line in INNER[op].splitlines() for word in line.partition("->")[0].split()}
    kept = {name: each for name, each in constants.items() if name in used}
    spec = ModelSpec((X,), (TensorSpec("y", (WIDTHS.get(op, 4),)),), ())
    return Step(spec, INNER[op], kept, opset=23 if op == "Attention" else 20)


@pytest.mark.parametrize("op", ENDS)
def test_a_layer_without_a_row_fails_and_does_not_end_the_process(tmp_path: Path, op: str) -> None:
    """Too short a sequence is a KernelError, where onnxruntime alone would abort, divide by zero or
    read no address; a longer one has the bits of the file."""
    net, rng = inner(op), np.random.default_rng(1)
    kernel = kernel_of(net)
    write_sequences(tmp_path, "net", net)
    oracle = SequenceOracle(tmp_path, "net", net.spec)
    for length in (1, 2, 3, 9):
        x = rng.standard_normal((length, 3)).astype(np.float32)
        if length > 2:
            assert np.array_equal(kernel.run(x, {})[0], oracle.rows(x))
        else:
            with pytest.raises(KernelError, match="division by zero"):
                kernel.run(x, {})


def test_subgraphs_are_guarded_too() -> None:
    """A layer within a branch reads a guarded input; nodes that are given stay as they are."""
    branch = helper.make_graph(
        [helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=2)], "then", [], []
    )
    node = helper.make_node("If", ["is"], ["z"], then_branch=branch, else_branch=branch)
    before = node.SerializeToString()
    (found,) = guard_empty([node])
    assert node.SerializeToString() == before
    for attribute in found.attribute:
        ops = [each.op_type for each in attribute.g.node]
        assert ops == ["Shape", "Div", "Mul", "Reshape", "GRU"]
        assert attribute.g.node[-1].input[0] == attribute.g.node[-2].output[0]


# Shapes of values, also in steps and windows ------------------------------------------------------

W = 2
WINDOWED = window_states((X,), W, "zeros")
Y = TensorSpec("y", (3,))
SPECS = {
    "step": ModelSpec((X,), (Y,), (TensorSpec("h", (3,)),)),
    "window": ModelSpec((X,), (Y,), WINDOWED, window=W, window_fill="zeros"),
}
BODY = """
newest at0 -> Gather first
first flat -> Reshape first1
first1 -> Cast+to=7 count
table zero count -> Slice rows
rows one -> Unsqueeze major
major w r -> GRU+hidden_size=3 . end
end three -> Reshape row
"""


def scanned(kind: str) -> onnx.ModelProto:
    """A Scan over the batch, as an import writes it where a file has no axis for one: a GRU over as
    many rows of a table as the newest x says. A step adds its state."""
    rng = np.random.default_rng(2)
    start = f"x at{W - 1} -> Gather newest" if kind == "window" else "x -> Identity newest"
    end = "row h -> Add y\ny -> Identity h.next" if kind == "step" else "row -> Identity y"
    lines = f"{start}\n{BODY.strip()}\n{end}".splitlines()
    constants = {
        "at0": np.array(0),
        "at1": np.array(1),
        "flat": np.array([1]),
        "zero": np.array([0]),
        "one": np.array([1]),
        "three": np.array([3]),
        "table": rng.uniform(-1, 1, (9, 3)).astype(np.float32),
        "w": rng.uniform(-1, 1, (1, 9, 3)).astype(np.float32),
        "r": rng.uniform(-1, 1, (1, 9, 3)).astype(np.float32),
    }
    shapes = {"x": [3], "h": [3]} if kind == "step" else {"x": [W, 3]}
    outputs = ["y", "h.next"] if kind == "step" else ["y"]
    body = helper.make_graph(
        [make_node(line) for line in lines],
        "one_session",
        [floats(name, *shape) for name, shape in shapes.items()],
        [floats(name, 3) for name in outputs],
        [numpy_helper.from_array(each, name) for name, each in constants.items()],
    )
    for node in body.node:  # the body's names are not those of the graph around it
        node.input[:] = [name and f"b.{name}" for name in node.input]
        node.output[:] = [name and f"b.{name}" for name in node.output]
    for each in (*body.input, *body.output, *body.initializer):
        each.name = f"b.{each.name}"
    graph = helper.make_graph(
        [helper.make_node("Scan", list(shapes), outputs, body=body, num_scan_inputs=len(shapes))],
        kind,
        [floats(name, "B", *shape) for name, shape in shapes.items()],
        [floats(name, "B", 3) for name in outputs],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def floats(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    """A float32 tensor of this shape."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def answers(kind: str, counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """x [T, 3] that begin with these counts, and y [T, 3] of a new session by a plain session of
    onnxruntime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(scanned(kind).SerializeToString(), options)
    x, ys = np.zeros((len(counts), 3), np.float32), []
    x[:, 0], h = counts, np.zeros((1, 3), np.float32)
    for row in x:
        if kind == "step":
            y, h = session.run(["y", "h.next"], {"x": row[np.newaxis], "h": h})
        else:
            (y,) = session.run(["y"], {"x": np.stack([row, row])[np.newaxis]})
        ys.append(y[0])
    return x, np.stack(ys)


@pytest.mark.parametrize("kind", SPECS)
def test_a_value_that_leaves_no_row_fails_its_step_alone(
    tmp_path: Path, serve: Serve, kind: str
) -> None:
    """A client's 0 takes all rows from the GRU inside: its step is MODEL_ERROR, its session is as
    it was before, and the sessions beside it in the same message are answered."""
    x, y = answers(kind, [3, 1, 7, 2])
    case = Golden(
        {"x": x[np.newaxis]}, np.array([4], np.int32), None, {"y": y[np.newaxis]}, {}, 0.0
    )
    write(tmp_path, SPECS[kind], scanned(kind), {"plain": case}, "net")
    with Client(serve(models=tmp_path).target) as client:
        bad, good = client.session("net"), client.session("net")
        for each in (bad, good):
            assert np.array_equal(each.step(x[:2]), y[:2])
        with pytest.raises(StepManyFailed) as caught:
            client.step_many({bad: np.zeros(3), good: x[2]})
        assert {session: error.reason for session, error in caught.value.errors.items()} == {
            bad: "MODEL_ERROR"
        }
        assert np.array_equal(caught.value.results[good], y[2])
        assert np.array_equal(bad.step(x[2:]), y[2:])


def test_which_graphs_make_shapes_of_values() -> None:
    """Neither a graph of five states, nor shapes that are computed of shapes, also in a Scan."""
    assert has_shapes_of_values(scanned("step").graph)
    assert has_shapes_of_values(scanned("window").graph)
    assert not has_shapes_of_values(five_states().model().graph)
    nodes = "x -> Shape shape\nx shape -> Reshape same\nsame x -> Add y"
    shaped = Step(ModelSpec((X,), (Y,), ()), nodes, {})
    assert not has_shapes_of_values(shaped.model().graph)
    for nodes in (
        "x -> NonZero places\nplaces -> Cast+to=1 y",
        "x flat -> Reshape all\nall -> Cast+to=7 size\nx size -> Expand y",
    ):
        made = [make_node(line) for line in nodes.splitlines()]
        flat = numpy_helper.from_array(np.array([-1]), "flat")
        graph = helper.make_graph(made, "g", [floats("x", "T", 3)], [], [flat])
        assert has_shapes_of_values(graph)


def test_a_graph_without_such_shapes_stays_as_it_is() -> None:
    """A step graph with a GRU over its batch has no node more, so that time is folded as before."""
    nodes = """
x axis0 -> Unsqueeze major
h axis0 -> Unsqueeze before
major w r . . before -> GRU+hidden_size=3 all end
end axis0 -> Squeeze h.next
h.next -> Identity y
"""
    constants = {
        "axis0": np.array([0]),
        "w": np.ones((1, 9, 3), np.float32),
        "r": np.ones((1, 9, 3), np.float32),
    }
    step = Step(SPECS["step"], nodes, constants)
    graph = read_step_graph(step.model().SerializeToString(), step.spec)
    assert [each.op_type for each in graph.running] == [each.op_type for each in graph.nodes]
    assert step.network().scans_because == ""
