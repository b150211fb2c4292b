"""Random ONNX files of one small network, whose tensors lie in any order of axes.

The network is the same in all: two layers of h [2, H], a counter and a flag. The files differ in
where batch and time stand, in axes of length 1, in dtypes, and in whether a batch works at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
INPUT, HIDDEN, OUTPUT = 3, 4, 2
ROWS = {"x": (INPUT,), "h": (2, HIDDEN), "ticks": (), "loud": (), "y": (OUTPUT,)}
DTYPES = {"x": "float32", "h": "float32", "ticks": "int64", "loud": "bool", "y": "float32"}


@dataclass
class PlacedFile:
    """`content` is the file, `axes` the order of axes of each of its tensors: "B", "one" or the
    number of an axis of the row. `pairs` are IN:OUT of the states."""

    content: bytes
    axes: dict[str, list[str]]
    pairs: tuple[str, ...] = ("h:h_out", "ticks:ticks_out", "loud:loud_out")
    is_batched: bool = True
    notes: list[str] = field(default_factory=list)


def placed_file(seed: int) -> PlacedFile:
    """A file whose layout is drawn from the seed."""
    rng = np.random.default_rng(seed)
    is_batched = bool(rng.random() < 0.7)
    axes: dict[str, list[str]] = {}
    for name in ("x", "h", "ticks", "loud", "y"):
        order = [str(at) for at in range(len(ROWS[name]))]
        order += ["B"] if is_batched else []
        order += ["one"] * int(rng.integers(0, 2) if name in "xyh" else 0)
        axes[name] = [order[at] for at in rng.permutation(len(order))]
    for name in ("h", "ticks", "loud"):
        axes[f"{name}_out"] = axes[name]
    return PlacedFile(_content(axes, rng), axes, is_batched=is_batched)


def _content(axes: dict[str, list[str]], rng: np.random.Generator) -> bytes:
    weights = {
        "w": rng.uniform(-1, 1, (INPUT, HIDDEN)),
        "r": rng.uniform(-1, 1, (HIDDEN, HIDDEN)),
        "o": rng.uniform(-1, 1, (HIDDEN, OUTPUT)),
    }
    constants: dict[str, Array] = {n: w.astype(np.float32) for n, w in weights.items()}
    constants |= {"one": np.array(1), "small": np.array(0.125, np.float32)}
    constants |= {"limit": np.array(0.5, np.float32), "last": np.array([1])}
    nodes: list[onnx.NodeProto] = []

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(*values: int) -> str:
        name = f"axes_{'_'.join(map(str, values))}"
        constants[name] = np.array(values)
        return name

    # Inputs to [B, *row].
    for name in ("x", "h", "ticks", "loud"):
        order, value = axes[name], name
        if "one" in order:
            value = add("Squeeze", [value, constant(order.index("one"))], f"{name}/squeezed")
            order = [each for each in order if each != "one"]
        if "B" not in order:
            value = add("Unsqueeze", [value, constant(0)], f"{name}/batched")
            order = ["B", *order]
        wanted = ["B", *(str(at) for at in range(len(ROWS[name])))]
        add("Transpose", [value], f"{name}/row", perm=[order.index(each) for each in wanted])
    zero, first = constant(0), add("Gather", ["h/row", "one"], "second", axis=1)
    constants["nought"] = np.array(0)
    top = add("Gather", ["h/row", "nought"], "first", axis=1)
    seen = add("Add", [add("MatMul", ["x/row", "w"], "xw"), add("MatMul", [top, "r"], "hr")], "sum")
    count = add("Cast", ["ticks/row"], "count", to=TensorProto.FLOAT)
    bias = add("Unsqueeze", [add("Mul", [count, "small"], "scaled"), constant(1)], "bias")
    low = add("Tanh", [add("Add", [seen, bias], "sums")], "low")
    high = add("Tanh", [add("Add", [low, first], "mixed")], "high")
    is_loud = add(
        "Greater", [add("ReduceMax", ["x/row"], "most", axes=[1], keepdims=0), "limit"], "is_loud"
    )
    add("Xor", ["loud/row", is_loud], "loud_out/row")
    add("Add", ["ticks/row", "one"], "ticks_out/row")
    parts = [add("Unsqueeze", [each, constant(1)], f"{each}/layer") for each in (low, high)]
    nodes.append(helper.make_node("Concat", parts, ["h_out/row"], axis=1))
    chosen = add(
        "Where", [add("Unsqueeze", ["loud/row", "last"], "loud/column"), high, low], "chosen"
    )
    add("MatMul", [chosen, "o"], "y/row")
    # [B, *row] to the outputs.
    for name in ("y", "h_out", "ticks_out", "loud_out"):
        order, value = axes[name], f"{name}/row"
        rows = ["B", *(str(at) for at in range(len(ROWS[name.removesuffix("_out")])))]
        if "B" not in order:
            value, rows = add("Squeeze", [value, zero], f"{name}/alone"), rows[1:]
        plain = [each for each in order if each != "one"]
        perm = [rows.index(each) for each in plain]
        if perm:  # helper cannot tell what an empty list is of
            value = add("Transpose", [value], f"{name}/placed", perm=perm)
        if "one" in order:
            value = add("Unsqueeze", [value, constant(order.index("one"))], f"{name}/one")
        add("Identity", [value], name)
    sides = [
        [_value(name, axes[name]) for name in names]
        for names in (("x", "h", "ticks", "loud"), ("y", "h_out", "ticks_out", "loud_out"))
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "placed", *sides, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _value(name: str, order: list[str]) -> onnx.ValueInfoProto:
    row = name.removesuffix("_out")
    sizes = {"B": "batch", "one": 1} | {str(at): size for at, size in enumerate(ROWS[row])}
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(DTYPES[row]))
    return helper.make_tensor_value_info(name, dtype, [sizes[each] for each in order])
