"""Import names the LSTM, GRU and RNN nodes of a file whose formulas give their states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper, parser

from lstmserve.manifest import InvalidModelFolder, Manifest, read_model
from lstmserve.spec import NEXT, ModelSpec, Tap, TensorSpec
from lstmserve_export.onnx_file.graph.taps import NONE, TAPS_MAX, Taps, find_taps
from lstmserve_export.onnx_file.importer import import_onnx
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.taps import wrong_taps

HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
COUNT = 3  # of sessions
SPEC = ModelSpec(
    (TensorSpec("x", (4,)),),
    (TensorSpec("y", (5,)),),
    (TensorSpec("s", (2, 5)),),
)

# One tensor has both states of the layer, as in Silero VAD.
STEP = """
step (float[B, 4] x, float[B, 2, 5] s) => (float[B, 5] y, float[B, 2, 5] s_next)
{{
    x1 = Unsqueeze (x, axis0)
    turned = Transpose <perm = [1, 0, 2]> (s)
    h, c = Split <axis = 0> (turned)
    {node}
    y = Squeeze (hn, axis0)
    both = Concat <axis = 0> (hn, {second})
    s_next = Transpose <perm = [1, 0, 2]> (both)
}}
"""
# The same for one session a run, as the body of a Scan over the sessions.
SCANNED = """
scanned (float[B, 4] x, float[B, 2, 5] s) => (float[B, 5] y, float[B, 2, 5] s_next)
{{
    y, s_next = Scan <num_scan_inputs = 2,
        body = session (float[4] x2, float[2, 5] s2) => (float[5] y2, float[2, 5] n2)
    {{
        x1 = Unsqueeze (x2, axis01)
        s1 = Unsqueeze (s2, axis1)
        h, c = Split <axis = 0> (s1)
        {node}
        y2 = Squeeze (hn, axis01)
        both = Concat <axis = 0> (hn, {second})
        n2 = Squeeze (both, axis1)
    }}> (x, s)
}}
"""
LSTM = "ys, hn, cn = LSTM <hidden_size = 5> (x1, W, R, B, , h, c)"
GRU = "ys, hn = GRU <hidden_size = 5, linear_before_reset = 1> (x1, W, R, B, , h)"
RESET_FIRST = "ys, hn = GRU <hidden_size = 5> (x1, W, R, B, , h)"
RNN = "ys, hn = RNN <hidden_size = 5> (x1, W, R, , , h)"


def parse(text: str) -> onnx.ModelProto:
    """A step graph, whose names may have a dot that the syntax of ONNX has not."""
    model = parser.parse_model(HEAD + text)
    for node in model.graph.node:
        node.output[:] = [name.replace("_next", NEXT) for name in node.output]
    for value in model.graph.output:
        value.name = value.name.replace("_next", NEXT)
    return model


def model_of(node: str, text: str = STEP, seed: int = 3) -> onnx.ModelProto:
    """A step graph around a node, whose weights are random."""
    kind = next(each for each in GATES if f"{each} <" in node)
    second = "cn" if kind == "LSTM" else "c"
    model = parse(text.format(node=node, second=second))
    rng = np.random.default_rng(seed)
    rows = GATES[kind] * 5
    weights: dict[str, npt.NDArray[Any]] = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in {"W": (1, rows, 4), "R": (1, rows, 5), "B": (1, 2 * rows)}.items()
    }
    weights |= {"axis0": np.array([0]), "axis1": np.array([1]), "axis01": np.array([0, 1])}
    weights |= {"lengths": np.ones(1, np.int32), "peep": np.ones((1, 15), np.float32)}
    weights |= {"still": np.zeros((1, 1, 5), np.float32), "yes": np.array(True)}
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    onnx.checker.check_model(model)
    return model


def rows_of(spec: ModelSpec = SPEC) -> dict[str, npt.NDArray[Any]]:
    """Random inputs of some sessions."""
    rng = np.random.default_rng(9)
    found = {each.name: rng.standard_normal((COUNT, *each.shape)) for each in spec.inputs}
    return {name: each.astype(np.float32) for name, each in found.items()}


def find(model: onnx.ModelProto) -> Taps:
    """The taps of a model with the states of SPEC."""
    return find_taps(model, SPEC, rows_of())


@pytest.mark.parametrize("text", [STEP, SCANNED], ids=["batched", "scanned"])
@pytest.mark.parametrize("node", [LSTM, GRU, RESET_FIRST, RNN], ids=["lstm", "gru", "reset", "rnn"])
def test_a_node_has_a_tap_that_gives_its_states(node: str, text: str) -> None:
    """Whatever lies between the node and the state of the spec."""
    model = model_of(node, text)
    found = find(model)
    assert found.notes == ()
    (tap,) = found.taps
    kind = next(each for each in GATES if f"{each} <" in node)
    assert tap.kind == kind.lower()
    assert tap.input == "x1"
    assert tap.before == (("h", "c") if kind == "LSTM" else ("h",))
    assert tap.after == (("hn", "cn") if kind == "LSTM" else ("hn",))
    assert set(tap.weights) == ({"W", "R"} if kind == "RNN" else {"W", "R", "B"})
    assert tap.inside == ("y" if text is SCANNED else "")
    assert tap.linear_before_reset is (node is not RESET_FIRST)
    assert Tap.from_json(tap.to_json()) == tap


def other(tap: Tap) -> dict[str, Tap]:
    """Taps that are wrong in one place each."""
    return {
        "order of states": replace(tap, before=tap.before[::-1]),
        "after": replace(tap, after=tap.after[::-1]),
        "no bias": replace(tap, weights={n: w for n, w in tap.weights.items() if n != "B"}),
    }


@pytest.mark.parametrize("text", [STEP, SCANNED], ids=["batched", "scanned"])
@pytest.mark.parametrize("name", ["order of states", "after", "no bias"])
def test_a_wrong_tap_is_noticed(name: str, text: str) -> None:
    """By a run, since shapes do not tell."""
    model = model_of(LSTM, text)
    (tap,) = find(model).taps
    assert wrong_taps(model, SPEC, [tap], rows_of()) == []
    wrong = other(tap)[name]
    assert wrong_taps(model, SPEC, [tap, wrong], rows_of()) == [wrong]


def test_the_two_formulas_of_a_gru_differ() -> None:
    """A tap that says the wrong one does not pass."""
    for node in (GRU, RESET_FIRST):
        model = model_of(node)
        (tap,) = find(model).taps
        wrong = replace(tap, linear_before_reset=not tap.linear_before_reset)
        assert wrong_taps(model, SPEC, [wrong], rows_of()) == [wrong]


def test_several_rows_of_a_step_are_read_one_after_the_other() -> None:
    """The tap's input has them on its first axis, and the states are those around all of them."""
    node = "rows = Concat <axis = 0> (x1, x1, x1)\n    " + LSTM.replace("(x1", "(rows")
    model = model_of(node)
    (tap,) = find(model).taps
    assert tap.input == "rows"
    assert wrong_taps(model, SPEC, [replace(tap, input="x1")], rows_of()) != []


IN_IF = """hn, cn = If (yes) <
        then_branch = a () => (float[1, N, 5] p, float[1, N, 5] q)
        { ys, p, q = LSTM <hidden_size = 5> (x1, W, R, B, , h, c) },
        else_branch = b () => (float[1, N, 5] p, float[1, N, 5] q)
        { p, q = Split <axis = 0> (turned) }>"""
REASONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "both directions": (
        LSTM,
        {"direction": "bidirectional"},
        "each reads in both directions",
    ),
    "backwards": (LSTM, {"direction": "reverse"}, "each reads backwards"),
    "activations": (GRU, {"activations": ["Sigmoid", "Relu"]}, "each has other activations"),
    "clip": (LSTM, {"clip": 3.0}, "each has a clip"),
    "coupled gates": (LSTM, {"input_forget": 1}, "each has a clip, coupled gates"),
    "layout": (LSTM, {"layout": 1}, "or another layout"),
}


@pytest.mark.parametrize("name", REASONS)
def test_a_node_of_other_formulas_has_none_and_a_note(name: str) -> None:
    """With its name and the reason."""
    node, attributes, says = REASONS[name]
    model = model_of(node)
    (layer,) = (each for each in model.graph.node if each.op_type in GATES)
    layer.attribute.extend(onnx.helper.make_attribute(*each) for each in attributes.items())
    layer.name = "decoder/rnn"
    found = find(model)
    assert found.taps == ()
    assert found.notes[0].startswith("gates cannot be shown of decoder/rnn: each ")
    assert says in found.notes[0]


NODES = {
    "lengths": (LSTM.replace("B, ,", "B, lengths,"), "has lengths or peepholes"),
    "peepholes": (LSTM.replace("h, c)", "h, c, peep)"), "has lengths or peepholes"),
    "no memory": (LSTM.replace("h, c)", "still, still)"), "begins each step from the same state"),
    "zeros": (LSTM.replace(", , h, c)", ")"), "begins each step from the same state"),
    "computed weights": (
        "W2 = Mul (W, h1)\n    ".replace("h1", "some") + LSTM.replace("W,", "W2,"),
        "has weights that are computed in each step",
    ),
    "no last state": (
        LSTM.replace("hn, cn", ", cn") + "\n    hn = Squeeze (ys, axis0)",
        "does not give its last state",
    ),
    "a branch": (IN_IF, "lies in a node If"),
}


@pytest.mark.parametrize("name", NODES)
def test_a_node_that_cannot_be_shown_is_said(name: str) -> None:
    """It has no tap, and the model is served all the same."""
    node, says = NODES[name]
    if "some" in node:
        node = "some = ReduceMax <keepdims = 0> (x)\n    " + node
    found = find(model_of(node))
    assert found.taps == ()
    assert len(found.notes) == 1
    assert says in found.notes[0]


def test_a_file_without_such_nodes_says_so() -> None:
    """In one note."""
    text = "none (float[B, 4] x, float[B, 2, 5] s) => (float[B, 4] y, float[B, 2, 5] s_next) "
    model = parse(f"{text} {{ y = Tanh (x)  s_next = Neg (s) }}")
    assert find(model) == Taps((), (NONE,))


def test_more_taps_than_a_manifest_should_hold_are_counted() -> None:
    """A layer may be written out for many rows; a node without a name has that of its output."""
    many = TAPS_MAX + 2
    chain = [LSTM.replace("ys, hn, cn", "ys0, h0, c0")]
    for at in range(1, many):
        ends = f"h{at}, c{at}" if at < many - 1 else "hn, cn"
        states = f"h{at - 1}, c{at - 1}"
        chain.append(f"ys{at}, {ends} = LSTM <hidden_size = 5> (x1, W, R, B, , {states})")
    found = find(model_of("\n    ".join(chain)))
    assert [tap.layer for tap in found.taps] == [f"LSTM of ys{at}" for at in range(TAPS_MAX)]
    (note,) = found.notes
    assert f"LSTM of ys{many - 2}, LSTM of ys{many - 1}: each comes after the first" in note


FILE = """
file (float[1, 4] x, float[2, 1, 5] state) => (float[1, 5] y, float[2, 1, 5] state_out)
{
    x1 = Unsqueeze (x, axis0)
    h, c = Split <axis = 0> (state)
    ys, hn, cn = LSTM <hidden_size = 5> (x1, W, R, B, , h, c)
    y = Squeeze (hn, axis0)
    state_out = Concat <axis = 0> (hn, cn)
}
"""


@pytest.fixture(scope="module", params=[{}, {"": None}], ids=["batched", "one session a run"])
def imported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Manifest]:
    """The folder and manifest of an imported file with one layer."""
    folder = tmp_path_factory.mktemp("taps")
    model = model_of(LSTM)
    graph = parser.parse_model(HEAD + FILE)
    graph.graph.initializer.extend(model.graph.initializer)
    graph.graph.node[2].name = "decoder/rnn"
    path = folder / "file.onnx"
    path.write_bytes(graph.SerializeToString())
    models = folder / "models"
    asked = Request(path, "file", models=models, batch_axes=request.param)
    return models, import_onnx(asked).manifest


def test_the_manifest_of_an_import_has_the_taps(imported: tuple[Path, Manifest]) -> None:
    """The server reads them, and they are what the written graph computes."""
    models, manifest = imported
    (tap,) = read_model(models, "file", 1).manifest.taps
    assert (tap,) == manifest.taps
    assert (tap.layer, tap.kind) == ("decoder/rnn", "lstm")
    model = onnx.load(str(models / "file" / "1" / "model.onnx"))
    assert wrong_taps(model, manifest.spec, [tap], rows_of()) == []


def test_a_tap_of_another_graph_is_refused(imported: tuple[Path, Manifest]) -> None:
    """By the server, for each name."""
    models, manifest = imported
    (tap,) = manifest.taps
    path = models / "file" / "1" / "manifest.json"
    content = path.read_text()
    faults = {
        "no value 'z'": replace(tap, before=("z", tap.before[1])),
        "no value 'q'": replace(tap, after=(tap.after[0], "q")),
        "no weight 'v'": replace(tap, weights={**tap.weights, "R": "v"}),
        "no Scan 'z'": replace(tap, inside="z"),
    }
    try:
        for says, wrong in faults.items():
            path.write_text(replace(manifest, taps=(wrong,)).to_json())
            with pytest.raises(InvalidModelFolder, match=f"tap 'decoder/rnn' 0: .* has {says}"):
                read_model(models, "file", 1)
    finally:
        path.write_text(content)
