"""ONNX files that must not be imported: they take all memory or time, crash, or say nonsense.

Each is made from one stream that is well: y = x + s, s_out = s + x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STATE: Final = "s:s_out"
HUGE: Final = 10**12
FOREVER: Final = 1 << 60
Node = onnx.NodeProto


def stream(
    nodes: Sequence[Node] = (),
    constants: dict[str, Any] | None = None,
    opset: int = 17,
    added: str = "x",
) -> onnx.ModelProto:
    """`nodes` come first; `added` is what they give to be added to the state, float32[1, 4]."""
    row = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "s")]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("y", "s_out")]
    all_nodes = [
        *nodes,
        helper.make_node("Add", ["s", added], ["s_out"]),
        helper.make_node("Identity", ["s_out"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()]
    graph = helper.make_graph(all_nodes, "stream", row, ends, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    return model


def plus(*nodes: Node, **constants: Any) -> onnx.ModelProto:
    """The stream with x + the sum of the value "much"."""
    end = [
        helper.make_node("ReduceMax", ["much"], ["most"], keepdims=0),
        helper.make_node("Add", ["x", "most"], ["more"]),
    ]
    return stream([*nodes, *end], constants, added="more")


def huge_constant() -> onnx.ModelProto:
    """4 TB, where onnxruntime folds constants."""
    return plus(helper.make_node("ConstantOfShape", ["size"], ["much"]), size=np.array([HUGE]))


def huge_expand() -> onnx.ModelProto:
    return plus(
        helper.make_node("Expand", ["one", "size"], ["much"]),
        one=np.ones(1, np.float32),
        size=np.array([HUGE]),
    )


def huge_tile() -> onnx.ModelProto:
    """4 TB from x, in a run."""
    return plus(helper.make_node("Tile", ["x", "times"], ["much"]), times=np.array([1, HUGE // 4]))


def huge_range() -> onnx.ModelProto:
    """Eight TB of integers."""
    return plus(
        helper.make_node("Range", ["zero", "end", "one"], ["numbers"]),
        helper.make_node("Cast", ["numbers"], ["much"], to=TensorProto.FLOAT),
        zero=np.int64(0),
        end=np.int64(HUGE),
        one=np.int64(1),
    )


def _loop(body_nodes: list[Node], carried: list[str], scanned: list[str]) -> Node:
    value = helper.make_tensor_value_info
    sides = [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, [])]
    before = [value(f"{n}_in", TensorProto.FLOAT, [1, 4]) for n in carried]
    after = [value(f"{n}_out", TensorProto.FLOAT, [1, 4]) for n in carried]
    rows = [value(n, TensorProto.FLOAT, [1, 4]) for n in scanned]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), *body_nodes],
        "body",
        [*sides, *before],
        [value("go_on", TensorProto.BOOL, []), *after, *rows],
    )
    results = ["much", *(f"all_{n}" for n in scanned)]
    return helper.make_node("Loop", ["times", "", "x"], results, body=body)


def endless_loop() -> onnx.ModelProto:
    return plus(
        _loop([helper.make_node("Tanh", ["v_in"], ["v_out"])], ["v"], []), times=np.int64(FOREVER)
    )


def growing_loop() -> onnx.ModelProto:
    """It keeps what each round gives."""
    nodes = [
        helper.make_node("Tanh", ["v_in"], ["v_out"]),
        helper.make_node("Identity", ["v_out"], ["row"]),
    ]
    return plus(_loop(nodes, ["v"], ["row"]), times=np.int64(FOREVER))


def division() -> onnx.ModelProto:
    """The smallest int64 by -1, which ends the process; x keeps it from being folded."""
    return plus(
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Mul", ["whole", "zero"], ["none"]),
        helper.make_node("Add", ["none", "least"], ["low"]),
        helper.make_node("Sub", ["none", "one"], ["minus"]),
        helper.make_node("Div", ["low", "minus"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["much"], to=TensorProto.FLOAT),
        zero=np.int64(0),
        one=np.int64(1),
        least=np.int64(np.iinfo(np.int64).min),
    )


def _lstm(w: np.ndarray, r: np.ndarray, *before: Node, x: str) -> onnx.ModelProto:
    return plus(
        *before,
        helper.make_node("LSTM", [x, "w", "r"], ["much"], hidden_size=3),
        w=w.astype(np.float32),
        r=r.astype(np.float32),
        axis=np.array([0]),
        nothing=np.array([0]),
    )


def empty_batch() -> onnx.ModelProto:
    """An LSTM with 0 rows, which ends the process."""
    rows = helper.make_node("Unsqueeze", ["x", "axis"], ["one"])
    none = helper.make_node("Slice", ["one", "axis", "nothing", "second"], ["rows"])
    model = _lstm(np.ones((1, 12, 4)), np.ones((1, 12, 3)), rows, none, x="rows")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "second"))
    return model


def wrong_lstm() -> onnx.ModelProto:
    """Weights of other sizes than its hidden size."""
    rows = helper.make_node("Unsqueeze", ["x", "axis"], ["rows"])
    return _lstm(np.ones((1, 5, 4)), np.ones((1, 2, 1)), rows, x="rows")


def claims() -> onnx.ModelProto:
    """A constant of 40 GB that has 4 bytes."""
    model = plus(helper.make_node("Identity", ["big"], ["much"]), big=np.ones(1, np.float32))
    model.graph.initializer[0].dims[:] = [10**5, 10**5]
    return model


def claims_less() -> onnx.ModelProto:
    """A constant of 4 MB that has 4 bytes."""
    model = claims()
    model.graph.initializer[0].dims[:] = [10**6]
    return model


def nested() -> bytes:
    """If in If, 40 deep: protobuf's own writer does not nest so deeply, so bytes do."""
    graph = _field(1, helper.make_node("Identity", ["x"], ["o"]).SerializeToString())
    for _ in range(40):
        attribute = _field(1, b"then_branch") + _field(6, graph) + b"\xa0\x01\x05"
        node = _field(1, b"c") + _field(2, b"o") + _field(4, b"If") + _field(5, attribute)
        graph = _field(1, node) + _field(2, b"g")
    return b"\x08\x08" + _field(7, graph) + _field(8, b"\x10\x11")


def _field(number: int, content: bytes) -> bytes:
    """A field of protobuf with a length."""
    size, head = len(content), bytes([number << 3 | 2])
    while size > 127:
        head += bytes([size & 127 | 128])
        size >>= 7
    return head + bytes([size]) + content


def doubling() -> onnx.ModelProto:
    """A function that calls another twice, which does so too: 2 to the power of 40 nodes."""
    model = stream([helper.make_node("F39", ["x"], ["more"], domain="my")], added="more")
    for at in range(40):
        called, domain = (f"F{at - 1}", "my") if at else ("Tanh", "")
        nodes = [helper.make_node(called, [a], [b], domain=domain) for a, b in ("at", "tb")]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
        model.functions.append(helper.make_function("my", f"F{at}", ["a"], ["b"], nodes, opsets))
    model.opset_import.append(helper.make_opsetid("my", 1))
    return model


def calls_itself() -> onnx.ModelProto:
    model = stream([helper.make_node("F", ["x"], ["more"], domain="my")], added="more")
    node = helper.make_node("F", ["a"], ["b"], domain="my")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    model.functions.append(helper.make_function("my", "F", ["a"], ["b"], [node], opsets))
    model.opset_import.append(helper.make_opsetid("my", 1))
    return model


BOMBS: Final[dict[str, Callable[[], onnx.ModelProto | bytes]]] = {
    "a constant of 4 TB": huge_constant,
    "an Expand to 4 TB": huge_expand,
    "a Tile to 4 TB in a run": huge_tile,
    "a Range of 8 TB": huge_range,
    "a Loop without end": endless_loop,
    "a Loop that keeps all": growing_loop,
    "a division that ends the process": division,
    "an LSTM with a batch of 0": empty_batch,
    "an LSTM with wrong weights": wrong_lstm,
    "a constant that claims 40 GB": claims,
    "a constant that claims 4 MB": claims_less,
    "If in If": nested,
    "functions that double": doubling,
    "a function that calls itself": calls_itself,
}


def content(made: onnx.ModelProto | bytes) -> bytes:
    """The bytes of the file."""
    return made if isinstance(made, bytes) else made.SerializeToString()
