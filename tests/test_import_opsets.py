"""Files of old opsets: what is served in a newer one answers with the bits of the file itself."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lstmserve.graph.step_graph import OPSET_MIN
from lstmserve.runtime import ort
from lstmserve_export.onnx_file.load.source import read_source
from lstmserve_export.refusal import Refused

N = helper.make_node
F = TensorProto.FLOAT
Case = tuple[int, list[onnx.NodeProto], dict[str, Any]]
RNG = np.random.default_rng(16)
X = RNG.standard_normal((2, 3, 4)).astype(np.float32)
IMAGE = RNG.standard_normal((1, 2, 3, 4)).astype(np.float32)
HIDDEN: Final = 5
GATES: Final = {"LSTM": 4, "GRU": 3, "RNN": 1}
SCALES: Final = {"s": np.array([1, 1, 2, 2], np.float32)}
ODD_SCALES: Final = {"s": np.array([1, 1, 1.5, 2.5], np.float32)}
NORM: Final = {n: RNG.uniform(0.5, 1, 3).astype(np.float32) for n in "abmv"}


def graph_of(
    nodes: Sequence[onnx.NodeProto], inputs: Sequence[str], outputs: Sequence[str]
) -> onnx.GraphProto:
    """A subgraph, whose values have no shapes."""
    ins = [helper.make_tensor_value_info(n, F, None) for n in inputs]
    outs = [helper.make_tensor_value_info(n, F, None) for n in outputs]
    return helper.make_graph(nodes, "sub", ins, outs)


def recurrent(op: str, opset: int) -> Case:
    gates = GATES[op]
    after = ["y", "h_out"] + (["c_out"] if op == "LSTM" else [])
    before = ["x", "w", "r", "b", "", "h"] + (["c"] if op == "LSTM" else [])
    more = {"linear_before_reset": 1} if op == "GRU" else {}
    weights = {
        "w": RNG.standard_normal((1, gates * HIDDEN, 4)).astype(np.float32),
        "r": RNG.standard_normal((1, gates * HIDDEN, HIDDEN)).astype(np.float32),
        "b": RNG.standard_normal((1, 2 * gates * HIDDEN)).astype(np.float32),
        "h": RNG.standard_normal((1, 3, HIDDEN)).astype(np.float32),
    }
    if op == "LSTM":
        weights["c"] = RNG.standard_normal((1, 3, HIDDEN)).astype(np.float32)
    return opset, [N(op, before, after, hidden_size=HIDDEN, **more)], weights


def branches() -> Case:
    then = graph_of([N("Squeeze", ["u"], ["a"], axes=[0])], [], ["a"])
    other = graph_of([N("ReduceSum", ["x"], ["e"], axes=[0], keepdims=0)], [], ["e"])
    nodes = [
        N("Unsqueeze", ["x"], ["u"], axes=[0]),
        N("If", ["yes"], ["y"], then_branch=then, else_branch=other),
    ]
    return 11, nodes, {"yes": np.array(True)}


def scan(axes: list[int]) -> Case:
    body = graph_of(
        [
            N("Unsqueeze", ["row"], ["u"], axes=axes),
            N("Squeeze", ["u"], ["again"], axes=axes),
            N("Add", ["sum", "again"], ["sum_out"]),
            N("Identity", ["sum_out"], ["seen"]),
        ],
        ["sum", "row"],
        ["sum_out", "seen"],
    )
    node = N("Scan", ["start", "x"], ["end", "y"], body=body, num_scan_inputs=1)
    return 9, [node], {"start": X[0]}


SAME: Final[dict[str, Case]] = {
    "Squeeze": (7, [N("Unsqueeze", ["x"], ["u"], axes=[0]), N("Squeeze", ["u"], ["y"])], {}),
    "Squeeze of axes": (
        9,
        [N("Unsqueeze", ["x"], ["u"], axes=[0, 4]), N("Squeeze", ["u"], ["y"], axes=[4])],
        {},
    ),
    "Split": (
        7,
        [N("Split", ["x"], ["a", "b"], axis=2, split=[1, 3]), N("Mul", ["a", "b"], ["y"])],
        {},
    ),
    "Split in halves": (
        11,
        [N("Split", ["x"], ["a", "b"], axis=-1), N("Sub", ["a", "b"], ["y"])],
        {},
    ),
    "ReduceSum": (7, [N("ReduceSum", ["x"], ["y"], axes=[1], keepdims=0)], {}),
    "ReduceSum of all": (11, [N("ReduceSum", ["x"], ["y"])], {}),
    "ReduceMean": (7, [N("ReduceMean", ["x"], ["y"], axes=[-1])], {}),
    "Softmax over two axes": (7, [N("Softmax", ["x"], ["y"])], {}),
    "Softmax": (11, [N("Softmax", ["x"], ["y"], axis=-1)], {}),
    "Softmax of unknown shape": (
        11,
        [N("Reshape", ["x", "to"], ["r"]), N("Softmax", ["r"], ["y"], axis=1)],
        {"to": np.array([0, -1, 2])},
    ),
    "LogSoftmax": (9, [N("LogSoftmax", ["x"], ["y"], axis=1)], {}),
    "Hardmax": (9, [N("Hardmax", ["x"], ["y"], axis=-1)], {}),
    "Clip": (7, [N("Clip", ["x"], ["y"], min=-0.5, max=0.5)], {}),
    "Clip on one side": (9, [N("Clip", ["x"], ["y"], max=0.1)], {}),
    "Pad": (7, [N("Pad", ["x"], ["y"], pads=[0, 1, 0, 0, 0, 2], value=1.5)], {}),
    "Pad, reflected": (10, [N("Pad", ["x"], ["y"], pads=[0, 1, 0, 0, 0, 2], mode="reflect")], {}),
    "Slice": (7, [N("Slice", ["x"], ["y"], axes=[1, 2], starts=[1, 0], ends=[3, -1])], {}),
    "Slice without axes": (9, [N("Slice", ["x"], ["y"], starts=[0, 1], ends=[2, 99])], {}),
    "Upsample": (7, [N("Upsample", ["i"], ["y"], scales=[1.0, 1.0, 2.0, 3.0])], {"i": IMAGE}),
    "Upsample, linear": (
        8,
        [N("Upsample", ["i"], ["y"], scales=[1.0, 1.0, 2.0, 1.0], mode="linear")],
        {"i": IMAGE},
    ),
    "Upsample by odd scales": (9, [N("Upsample", ["i", "s"], ["y"])], {"i": IMAGE} | ODD_SCALES),
    "Upsample by a constant, linear": (
        9,
        [N("Upsample", ["i", "s"], ["y"], mode="linear")],
        {"i": IMAGE} | ODD_SCALES,
    ),
    "Resize": (10, [N("Resize", ["i", "s"], ["y"])], {"i": IMAGE} | ODD_SCALES),
    "Resize, linear": (
        10,
        [N("Resize", ["i", "s"], ["y"], mode="linear")],
        {"i": IMAGE} | SCALES,
    ),
    "Resize of opset 11": (
        11,
        [N("Resize", ["i", "roi", "s"], ["y"], mode="linear")],
        {"i": IMAGE, "roi": np.zeros(0, np.float32)} | SCALES,
    ),
    "Dropout": (7, [N("Dropout", ["x"], ["y"], ratio=0.5)], {}),
    "Dropout with a mask": (10, [N("Dropout", ["x"], ["y", "mask"], ratio=0.5)], {}),
    "BatchNormalization": (7, [N("BatchNormalization", ["x", *"abmv"], ["y"])], NORM),
    "BatchNormalization of opset 9": (9, [N("BatchNormalization", ["x", *"abmv"], ["y"])], NORM),
    "TopK": (7, [N("TopK", ["x"], ["y", "at"], k=2, axis=2)], {}),
    "TopK of opset 10": (10, [N("TopK", ["x", "k"], ["y", "at"])], {"k": np.array([2])}),
    "Cast": (
        7,
        [N("Cast", ["x"], ["i"], to=TensorProto.INT32), N("Cast", ["i"], ["y"], to=F)],
        {},
    ),
    "an If": branches(),
    "a Scan": scan([0]),
    "an operator of com.microsoft": (
        11,
        [
            N("Gelu", ["x"], ["g"], domain="com.microsoft"),
            N("Unsqueeze", ["g"], ["y"], axes=[0]),
        ],
        {},
    ),
    **{f"{op} of opset {n}": recurrent(op, n) for op in GATES for n in (7, 12)},
}


def model_of(case: Case, ir_version: int) -> onnx.ModelProto:
    """With the constants among its inputs where the IR version asks for it."""
    opset, nodes, constants = case
    x = helper.make_tensor_value_info("x", F, ["T", "B", 4])
    listed = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in constants.items()
    ]
    y = helper.make_tensor_value_info("y", F, None)
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    inputs = [x, *(listed if ir_version < 4 else [])]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph(nodes, "old", inputs, [y], tensors), opset_imports=opsets
    )
    model.ir_version = ir_version
    return model


def declare_axes(model: onnx.ModelProto) -> None:
    """Says how many axes the output has, as files do."""
    axes = [None] * answers(model)[0].ndim
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", F, axes))


def answers(model: onnx.ModelProto) -> list[Any]:
    """What onnxruntime gives for X."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return list(session.run(None, {"x": X}))


@pytest.mark.parametrize("ir_version", [3, 7])
@pytest.mark.parametrize("name", SAME)
def test_the_bits_stay(tmp_path: Path, name: str, ir_version: int) -> None:
    """Operators whose form or meaning changed until opset 13, in files of old and newer layout."""
    model = model_of(SAME[name], ir_version)
    declare_axes(model)
    (tmp_path / "old.onnx").write_bytes(model.SerializeToString())
    source = read_source(tmp_path / "old.onnx")
    assert list(source.inputs) == ["x"]
    assert len(source.outputs["y"].shape) == answers(model)[0].ndim
    assert source.notes == (f"converted from opset {SAME[name][0]} to {OPSET_MIN} by onnx",)
    onnx.checker.check_model(source.model)
    for expected, found in zip(answers(model), answers(source.model), strict=True):
        assert (expected.dtype, expected.shape) == (found.dtype, found.shape)
        assert expected.tobytes() == found.tobytes()


REFUSED: Final[dict[str, tuple[str, Case]]] = {
    "Hardmax over two axes": ("a Hardmax of opset 9", (9, [N("Hardmax", ["x"], ["y"])], {})),
    "a Resize to less": (
        "to a smaller size",
        (10, [N("Resize", ["x", "s"], ["y"])], {"s": np.array([1, 1, 0.5], np.float32)}),
    ),
    "a Resize by what it computes": (
        "one that it computes",
        (
            10,
            [
                N("ConstantOfShape", ["n"], ["s"], value=numpy_helper.from_array(X[0, 0, :1])),
                N("Resize", ["x", "s"], ["y"]),
            ],
            {"n": np.array([3])},
        ),
    ),
    "BatchNormalization of each place": (
        "which onnx cannot convert to 13",
        (7, [N("BatchNormalization", ["x", *"abmv"], ["y"], spatial=0)], NORM),
    ),
    "opset 6": ("onnxruntime runs opsets from 7", (6, [N("Relu", ["x"], ["y"])], {})),
    "an opset to come": ("newer than onnxruntime", (99, [N("Relu", ["x"], ["y"])], {})),
}


def test_axes_that_a_file_does_not_declare_are_inferred(tmp_path: Path) -> None:
    """As far as onnx can, and without sizes, because they may be those of one batch."""
    file = tmp_path / "old.onnx"
    file.write_bytes(model_of(SAME["Clip"], 7).SerializeToString())
    assert str(read_source(file).outputs["y"]) == "y float32[T, B, ?]"
    file.write_bytes(model_of(SAME["an operator of com.microsoft"], 7).SerializeToString())
    with pytest.raises(Refused, match="does not say how many axes its output y has"):
        read_source(file)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_refused(tmp_path: Path, name: str) -> None:
    """In one line, which says to export it again."""
    says, case = REFUSED[name]
    (tmp_path / "old.onnx").write_bytes(model_of(case, 7).SerializeToString())
    with pytest.raises(Refused, match=says) as refused:
        read_source(tmp_path / "old.onnx")
    assert "export the model again" in str(refused.value)


@pytest.mark.parametrize("seed", [0, secrets.randbits(32)], ids=["0", "random"])
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, seed: int) -> None:
    """Whatever bytes change: a file is read, or refused by Refused."""
    print(f"seed {seed}")
    rng, file = np.random.default_rng(seed), tmp_path / "old.onnx"
    good = [model_of(case, 7).SerializeToString() for case in SAME.values()]
    refused = []
    for _ in range(150):
        content = bytearray(good[rng.integers(len(good))])
        for at in rng.integers(len(content), size=rng.integers(1, 4)).tolist():
            content[at] = (content[at] + int(rng.integers(-2, 3))) % 256
        file.write_bytes(content)
        try:
            read_source(file)
        except Refused as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert not any("\n" in each for each in refused)
