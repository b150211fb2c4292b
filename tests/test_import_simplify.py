"""Import takes branches out of a graph that its constants and sizes decide, and keeps every bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from lstmserve.graph.safety import all_nodes
from lstmserve_export.onnx_file.graph.simplify import simplify

Array = npt.NDArray[np.generic]
HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'

SILERO_LIKE = """
silero_like (float[B, 4] x, float[2, B, 3] state) => (float[B, 3] y, float[2, B, 3] after)
{
    is_fast = Equal (rate, sixteen)
    y, after = If (is_fast) <
        then_branch = fast () => (float[N, 3] out, float[2, N, 3] next)
        {
            sizes = Shape (x)
            ranks = Shape (sizes)
            is_batch = Equal (rate_rank, ranks)
            rows = If (is_batch) <
                then_branch = whole () => (float[1, N, 4] value)
                {
                    value = Unsqueeze (x, axis0)
                },
                else_branch = lone () => (float[1, N, 4] value)
                {
                    both = Unsqueeze (x, axis0)
                    value = Neg (both)
                }>
            count = Gather (sizes, zero)
            is_there = Cast <to = 9> (count)
            h, c = If (is_there) <
                then_branch = some () => (float[1, N, 3] value, float[1, N, 3] other)
                {
                    value, other = Split <axis = 0> (state)
                },
                else_branch = none () => (float[1, N, 3] value, float[1, N, 3] other)
                {
                    other, value = Split <axis = 0> (state)
                }>
            w1 = Unsqueeze (w, axis0)
            r1 = Unsqueeze (r, axis0)
            ys, hn, cn = LSTM <hidden_size = 3> (rows, w1, r1, , , h, c)
            out = Squeeze (hn, axis0)
            next = Concat <axis = 0> (hn, cn)
        },
        else_branch = slow () => (float[N, 3] out, float[2, N, 3] next)
        {
            out = MatMul (x, v)
            next = Neg (state)
        }>
}
"""


def model_of(text: str, **weights: Any) -> onnx.ModelProto:
    """A graph in ONNX's own syntax, with these initializers."""
    model = parser.parse_model(HEAD + text)
    tensors = (numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items())
    model.graph.initializer.extend(tensors)
    onnx.checker.check_model(model)
    return model


def silero_like(rate: int) -> onnx.ModelProto:
    """A branch of the rate, and in it branches of the number of axes and of sessions."""
    rng = np.random.default_rng(5)
    floats = {"w": (12, 4), "r": (12, 3), "v": (4, 3)}
    weights = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in floats.items()}
    integers = {"rate": rate, "sixteen": 16000, "rate_rank": 2, "zero": 0, "axis0": [0]}
    return model_of(SILERO_LIKE, **weights, **integers)


def operators(model: onnx.ModelProto) -> list[str]:
    """Of the graph itself, but for Identity."""
    return [each.op_type for each in model.graph.node if each.op_type != "Identity"]


def answers(model: onnx.ModelProto, feed: Mapping[str, Array]) -> list[Array]:
    """Of plain onnxruntime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options)
    return list(session.run(None, feed))


def check_bits(model: onnx.ModelProto, found: onnx.ModelProto, **shapes: tuple[int, ...]) -> None:
    """Both give the same bits to random floats."""
    onnx.checker.check_model(found, full_check=True)
    rng = np.random.default_rng(7)
    feed = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    for one, other in zip(answers(model, feed), answers(found, feed), strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


@pytest.mark.parametrize("rate", [16000, 8000])
def test_constants_and_sizes_decide_branches(rate: int) -> None:
    """No If is left, the recurrent node stands in the graph itself, and what is not taken is gone
    with its weights."""
    model = silero_like(rate)
    found = simplify(model)
    weights = {each.name for each in found.graph.initializer}
    if rate == 16000:
        assert operators(found) == ["Unsqueeze", "Split", "LSTM", "Squeeze", "Concat"]
        (lstm,) = (each for each in found.graph.node if each.op_type == "LSTM")
        assert set(lstm.input[1:3]) <= weights
        assert "v" not in weights
    else:
        assert operators(found) == ["MatMul", "Neg"]
        assert weights == {"v"}
    for size in (1, 2, 3, 7, 17):
        check_bits(model, found, x=(size, 4), state=(2, size, 3))
    assert simplify(found) == found


def test_the_model_that_is_given_stays() -> None:
    """The result is a copy."""
    model = silero_like(16000)
    content = model.SerializeToString()
    simplify(model)
    assert model.SerializeToString() == content


def test_a_condition_of_the_batch_stays() -> None:
    """The number of sessions is at least 1, and may be any."""
    model = model_of(
        """
        sized (float[B, 4] x) => (float[B, 4] y)
        {
            sizes = Shape (x)
            count = Gather (sizes, zero)
            is_one = Equal (count, one)
            y = If (is_one) <
                then_branch = a () => (float[N, 4] v) { v = Neg (x) },
                else_branch = b () => (float[N, 4] v) { v = Abs (x) }>
        }
        """,
        zero=0,
        one=1,
    )
    found = simplify(model)
    assert "If" in operators(found)
    for size in (1, 2):
        check_bits(model, found, x=(size, 4))


def test_a_condition_of_an_input_stays() -> None:
    """Whatever it is compared with; what is constant in a branch goes."""
    model = model_of(
        """
        asked (float[B, 4] x) => (float[B, 4] y)
        {
            most = ReduceMax <keepdims = 0> (x)
            is_high = Greater (most, limit)
            y = If (is_high) <
                then_branch = a () => (float[N, 4] v)
                {
                    both = Add (limit, limit)
                    v = Mul (x, both)
                },
                else_branch = b () => (float[N, 4] v) { v = Abs (x) }>
        }
        """,
        limit=np.float32(1),
    )
    found = simplify(model)
    assert operators(found) == ["ReduceMax", "Greater", "If"]
    assert [each.op_type for each in all_nodes(found.graph.node)].count("Add") == 0
    for size in (1, 9):
        check_bits(model, found, x=(size, 4))


def test_a_size_that_may_be_0_decides_nothing() -> None:
    """It depends on the values of an input."""
    model = model_of(
        """
        found (float[B, 4] x) => (float[B, 4] y)
        {
            places = NonZero (x)
            sizes = Shape (places)
            count = Gather (sizes, one)
            is_any = Cast <to = 9> (count)
            y = If (is_any) <
                then_branch = a () => (float[N, 4] v) { v = Exp (x) },
                else_branch = b () => (float[N, 4] v) { v = Neg (x) }>
        }
        """,
        one=1,
    )
    found = simplify(model)
    for value in (0, 1):
        feed = {"x": np.full((2, 4), value, np.float32)}
        assert np.array_equal(answers(model, feed)[0], answers(found, feed)[0])


def test_branches_of_equal_names_keep_apart() -> None:
    """Names of two branches that are both taken, and of two that differ in size."""
    model = model_of(
        """
        alike (float[B, 4] x) => (float[B, 4] y, float[B, 4] z)
        {
            y = If (yes) <
                then_branch = a () => (float[N, 4] v) { t = Neg (x)  v = Exp (t) },
                else_branch = b () => (float[N, 4] v) { t = Neg (x)  v = Abs (t) }>
            z = If (yes) <
                then_branch = a () => (float[N, 4] v) { t = Abs (x)  v = Sqrt (t) },
                else_branch = b () => (float[N, 4] v) { t = Neg (x)  v = Abs (t) }>
        }
        """,
        yes=True,
    )
    found = simplify(model)
    assert operators(found) == ["Neg", "Exp", "Abs", "Sqrt"]
    check_bits(model, found, x=(3, 4))


def test_sizes_of_equal_names_are_not_mixed_up() -> None:
    """One branch is open, and has a value t of 2 axes where the other has one of 3."""
    branch = """{{
        t = {} (x, axis0)
        sizes = Shape (t)
        rank = Size (sizes)
        is_flat = Equal (rank, two)
        v = If (is_flat) <
            then_branch = c () => (float[N, 4] w) {{ w = Neg (x) }},
            else_branch = d () => (float[N, 4] w) {{ w = Abs (x) }}>
    }}"""
    model = model_of(
        f"""
        mixed (float[B, 4] x) => (float[B, 4] y)
        {{
            most = ReduceMax <keepdims = 0> (x)
            is_high = Greater (most, limit)
            y = If (is_high) <
                then_branch = a () => (float[N, 4] v) {branch.format("Unsqueeze")},
                else_branch = b () => (float[N, 4] v) {branch.format("Expand")}>
        }}
        """,
        limit=np.float32(1),
        two=2,
        axis0=[0],
    )
    model.graph.node[2].attribute[1].g.node[0].input[1] = "four"
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 4]), "four"))
    found = simplify(model)
    for scale in (0.1, 1, 9):
        feed: dict[str, Array] = {"x": np.full((3, 4), scale, np.float32)}
        assert np.array_equal(answers(model, feed)[0], answers(found, feed)[0])


def test_outputs_of_a_branch_may_be_any_values() -> None:
    """One that lies around the branch, one twice, and a weight."""
    model = model_of(
        """
        passed (float[B, 4] x) => (float[B, 4] a, float[B, 4] b, float[B, 4] c, float[4] d)
        {
            a, b, c, d = If (yes) <
                then_branch = t () => (float[N, 4] x1, float[N, 4] v, float[N, 4] v2, float[4] w1)
                {
                    x1 = Identity (x)
                    v = Neg (x)
                    v2 = Identity (v)
                    w1 = Identity (w)
                },
                else_branch = e () => (float[N, 4] p, float[N, 4] q, float[N, 4] r, float[4] s)
                {
                    p = Abs (x)
                    q = Abs (x)
                    r = Abs (x)
                    s = Abs (w)
                }>
        }
        """,
        yes=True,
        w=np.arange(4, dtype=np.float32),
    )
    found = simplify(model)
    assert operators(found) == ["Neg"]
    check_bits(model, found, x=(3, 4))


def test_the_body_of_a_scan_has_the_sizes_of_its_slices() -> None:
    """So a file that takes one session a run has no branch left either."""
    model = model_of(
        """
        scanned (float[B, 4] x) => (float[B, 4] y)
        {
            y = Scan <num_scan_inputs = 1, body = one (float[M] row) => (float[4] out)
            {
                sizes = Shape (row)
                size = Gather (sizes, zero)
                is_four = Equal (size, four)
                out = If (is_four) <
                    then_branch = a () => (float[4] v) { v = Neg (row) },
                    else_branch = b () => (float[4] v) { v = Abs (row) }>
            }> (x)
        }
        """,
        zero=0,
        four=4,
    )
    found = simplify(model)
    kinds = [each.op_type for each in all_nodes(found.graph.node)]
    assert sorted(set(kinds)) == ["Identity", "Neg", "Scan"]
    check_bits(model, found, x=(3, 4))


@pytest.mark.parametrize("kind", ["ConstantOfShape", "Expand", "Tile", "Add"])
def test_constants_that_would_fill_the_memory_are_not_computed(kind: str) -> None:
    """They stay for the machine that runs the graph."""
    nodes = {
        "ConstantOfShape": "big = ConstantOfShape (sizes)",
        "Expand": "big = Expand (row, sizes)",
        "Tile": "big = Tile (row, sizes)",
        "Add": "big = Add (row, column)",
    }
    many = 1 << 14
    model = model_of(
        f"""
        bomb (float[B, 1] x) => (float[B, 1] y)
        {{
            {nodes[kind]}
            most = ReduceMax <keepdims = 0> (big)
            y = Mul (x, most)
        }}
        """,
        sizes=[many, many],
        row=np.ones((1, many), np.float32),
        column=np.ones((many, 1), np.float32),
    )
    assert operators(simplify(model)) == [kind, "ReduceMax", "Mul"]


@pytest.mark.parametrize(
    ("node", "size"),
    [("wide = Cos (w)", 2000), ("wide = DequantizeLinear (q, scale)", 4)],
    ids=["cos", "quantized"],
)
def test_weights_that_are_computed_stay(node: str, size: int) -> None:
    """The file is no larger, and onnxruntime finds the patterns that it knows."""
    model = model_of(
        f"weighed (float[B, {size}] x) => (float[B, {size}] y) {{ {node} y = Add (x, wide) }}",
        w=np.ones(size, np.float32),
        q=np.ones(size, np.int8),
        scale=np.float32(1),
    )
    assert operators(simplify(model)) == operators(model)


def test_a_weight_that_nothing_reads_stays() -> None:
    """The initial value of a state is one."""
    model = silero_like(16000)
    tensor = numpy_helper.from_array(np.zeros((2, 3), np.float32), "state.initial")
    model.graph.initializer.append(tensor)
    assert "state.initial" in {each.name for each in simplify(model).graph.initializer}


def test_a_slice_of_everything_goes() -> None:
    """Exporters write x[:, 1:] as two, and that along the batch looks as if it mixed sessions."""
    model = model_of(
        """
        cut (float[B, 4] x) => (float[B, 3] y, float[B, 2] z)
        {
            all = Slice (x, zeros, largest, axis0, ones)
            y = Slice (all, ones, largest, axis1, ones)
            three = Slice (x, zeros, threes, axis0, ones)
            back = Slice (three, minus, lowest, axis0, minus)
            half = Slice (back, zeros, largest, axis1, twos)
            z = Slice (half, zeros, largest)
        }
        """,
        zeros=[0],
        ones=[1],
        twos=[2],
        threes=[3],
        minus=[-1],
        axis0=[0],
        axis1=[1],
        largest=[np.iinfo(np.int64).max],
        lowest=[np.iinfo(np.int64).min],
    )
    found = simplify(model)
    assert operators(found) == ["Slice"] * 4
    for size in (1, 2, 3, 5):
        check_bits(model, found, x=(size, 4))


def test_a_slice_is_left_with_the_axes_that_it_cuts() -> None:
    """Keras writes all axes of a tensor."""
    model = model_of(
        """
        cropped (float[B, 4] x) => (float[B, 2] y)
        {
            y = Slice (x, starts, ends, axes, steps)
        }
        """,
        starts=[0, 1],
        ends=[np.iinfo(np.int64).max, 3],
        axes=[0, 1],
        steps=[1, 1],
    )
    found = simplify(model)
    (node,) = found.graph.node
    weights = {e.name: numpy_helper.to_array(e).tolist() for e in found.graph.initializer}
    assert [weights[name] for name in node.input[1:]] == [[1], [3], [1], [1]]
    assert len(weights) == 4
    for size in (1, 2, 5):
        check_bits(model, found, x=(size, 4))
    assert simplify(found) == found


def test_random_values_stay_random() -> None:
    """They have no input, and are no constant."""
    model = model_of(
        "dice (float[B, 4] x) => (float[B, 4] y) { r = RandomUniformLike (w)  y = Add (x, r) }",
        w=np.zeros(4, np.float32),
    )
    assert operators(simplify(model)) == ["RandomUniformLike", "Add"]
