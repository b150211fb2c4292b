"""Takes out of a graph what its constants and its sizes decide: branches that are never taken.

A constant input, such as the sampling rate, and the sizes of a step make many conditions of If
constant. The branch then stands where the If stood, and its recurrent nodes are nodes of the graph
itself. It computes nothing that depends on an input; onnxruntime computes the constants, so that
they have the bits that it would give them. Weights must be initializers, not Constant nodes
(weights.py). It must not know what the graph is for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from lstmserve.graph.safety import DOMAINS, REFUSED_OPS, all_nodes, subgraphs
from lstmserve.runtime import plain_session
from lstmserve_export.arrays import Array
from lstmserve_export.onnx_file.graph.splice import Names, defined, drop_dead, names_read

PASSES_MAX: Final = 16  # a pass opens one level of branches, and sizes that depend on it
MOVED_MAX: Final = 1 << 27  # values that a folded node may move,
READ_MAX: Final = 1 << 20  # and the product of the sizes of what a node computes from
OPEN_END: Final = (1 << 31) - 1  # of a Slice: exporters write the largest int32 or int64
RESULT_MAX: Final = 1 << 10  # sizes and conditions are small; what is larger is a weight
# Nodes whose result is no larger than what they read.
MOVES: Final = frozenset(
    ("Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose", "Slice", "Split")
) | frozenset(("Concat", "Cast"))
# Nodes whose result may be large for small inputs; others are at most a product of their inputs.
GROWING: Final = frozenset(
    ("ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "Upsample", "OneHot", "EyeLike")
)
# onnxruntime joins the last two with the nodes around them, which changes bits.
KEPT: Final = REFUSED_OPS | {"Constant", "QuantizeLinear", "DequantizeLinear"}
Known = dict[str, Array]  # dtype object: sizes, of which some are a symbol
Shapes = Mapping[str, list[int | str]]


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function with fewer nodes; the answers have the same bits.

    Every symbol of a size in the model's inputs stands for at least 1.
    """
    found = onnx.ModelProto()
    found.CopyFrom(model)
    unread = {each.name for each in found.graph.initializer} - names_read(found.graph.node)
    for _ in range(PASSES_MAX):
        if not _Pass(found).run():
            break
        drop_dead(found.graph, unread)
    return found


# Sizes --------------------------------------------------------------------------------------------


def _infer(model: onnx.ModelProto) -> Shapes:
    """The sizes of the graph's values, "" where one is not known; none if onnx cannot tell."""
    try:
        typed = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # onnx raises several kinds without a base of their own
        return {}
    symbols = {
        dim.dim_param for each in model.graph.input for dim in each.type.tensor_type.shape.dim
    }
    found: dict[str, list[int | str]] = {}
    branches = (
        graph
        for node in all_nodes(typed.graph.node)
        if node.op_type == "If"
        for graph in subgraphs(node)
    )
    for graph in (typed.graph, *branches):
        for value in (*graph.input, *graph.value_info, *graph.output):
            if value.type.tensor_type.HasField("shape"):
                sizes = [_size(each, symbols) for each in value.type.tensor_type.shape.dim]
                found[value.name] = sizes
    counts = Counter(defined(model.graph))  # two branches may have a name
    return {name: sizes for name, sizes in found.items() if counts[name] < 2}


def _size(dim: Any, symbols: Collection[str]) -> int | str:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) if dim.dim_param in symbols else ""


def _body_inputs(node: NodeProto, body: GraphProto, shapes: Shapes) -> list[onnx.ValueInfoProto]:
    """The inputs of a Scan's body with the sizes that the values around it have. onnx does not
    infer them."""
    given = _attributes(node)
    count = given["num_scan_inputs"]
    axes = given.get("scan_input_axes", [0] * count)
    states = len(body.input) - count  # their sizes stay unknown
    inputs = [
        helper.make_tensor_value_info(each.name, each.type.tensor_type.elem_type, None)
        for each in body.input[:states]
    ]
    for name, value, axis in zip(node.input[states:], body.input[states:], axes, strict=True):
        kind = value.type.tensor_type.elem_type
        shape = list(shapes[name]) if name in shapes else None
        if shape:
            del shape[axis]
        inputs.append(helper.make_tensor_value_info(value.name, kind, shape))
    return inputs


class _Pass:
    """One walk over the graph and its subgraphs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._shapes: Shapes = _infer(model)
        self._opsets = [each for each in model.opset_import if each.domain in DOMAINS]
        self._ir_version = model.ir_version
        self._names = Names(model.graph)
        self._is_changed = False

    def run(self) -> bool:
        """Whether anything changed."""
        self._walk(self._graph, {})
        return self._is_changed

    def _walk(self, graph: GraphProto, outer: Known) -> None:
        known: Known = dict(outer)
        for value in graph.input:
            known.pop(value.name, None)
        own = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        known.update(own)
        nodes: list[NodeProto] = []
        for node in graph.node:
            values = self._values(node, known)
            if values is not None:
                known.update(zip(node.output, values, strict=True))
            if values is not None and all(each.dtype != object for each in values):
                self._is_changed = True
                tensors = zip(values, node.output, strict=True)
                graph.initializer.extend(numpy_helper.from_array(*pair) for pair in tensors)
            elif (cuts := _cut_axes(node, known)) is not None:
                self._is_changed = True
                nodes.append(self._sliced(graph, node, cuts))
            elif (branch := _taken(node, known)) is not None:
                self._is_changed = True
                nodes += self._names.spliced(graph, node, branch)
            else:
                for each in subgraphs(node):
                    self._walk_inside(node, each, known)
                nodes.append(node)
        del graph.node[:]
        graph.node.extend(nodes)

    def _sliced(self, graph: GraphProto, node: NodeProto, cuts: list[Array]) -> NodeProto:
        """The Slice with these starts, ends, axes and steps."""
        if not cuts[0].size:
            return helper.make_node("Identity", node.input[:1], node.output, node.name)
        ends = "starts", "ends", "axes", "steps"
        names = [self._names.fresh(f"{node.output[0]}/{end}") for end in ends]
        graph.initializer.extend(map(numpy_helper.from_array, cuts, names))
        return helper.make_node("Slice", [node.input[0], *names], node.output, node.name)

    def _walk_inside(self, node: NodeProto, graph: GraphProto, known: Known) -> None:
        around = self._shapes
        if node.op_type == "Scan" and not node.domain:
            read = names_read(graph.node)
            constants = [
                numpy_helper.from_array(each, name)
                for name, each in known.items()
                if name in read and each.dtype != object
            ]
            inner = helper.make_graph(
                list(graph.node),
                "body",
                _body_inputs(node, graph, around),
                list(graph.output),
                [*graph.initializer, *constants],
            )
            self._shapes = {**around, **_infer(self._model(inner))}
        self._walk(graph, known)
        self._shapes = around

    def _model(self, graph: GraphProto) -> onnx.ModelProto:
        return helper.make_model(graph, opset_imports=self._opsets, ir_version=self._ir_version)

    def _values(self, node: NodeProto, known: Known) -> list[Array] | None:
        """What the node gives, as far as constants and sizes say it; None: nothing."""
        if node.op_type in KEPT or node.domain or list(subgraphs(node)) or "" in node.output:
            return None
        if node.op_type in ("Shape", "Size"):
            value = known.get(node.input[0])
            return _sizes(node, self._shapes.get(node.input[0]) if value is None else value.shape)
        names = [name for name in node.input if name]
        if not names or not all(name in known for name in names):
            return None
        given = {name: known[name] for name in names}
        if any(each.dtype == object for each in given.values()):
            return _symbolic(node, known)
        return self._compute(node, given) if _is_small(node, given) else None

    def _compute(self, node: NodeProto, given: Mapping[str, Array]) -> list[Array] | None:
        """None where onnxruntime does not run it."""
        graph = helper.make_graph(
            [node],
            "constant",
            [],
            [onnx.ValueInfoProto(name=name) for name in node.output],
            [numpy_helper.from_array(each, name) for name, each in given.items()],
        )
        try:
            session = plain_session(self._model(graph).SerializeToString(), is_optimized=False)
            found = session.run(list(node.output), {})
        except Exception:  # onnxruntime's own have no base but this one
            return None
        if not all(isinstance(each, np.ndarray) and each.dtype.kind in "biuf" for each in found):
            return None
        is_small = node.op_type in MOVES or all(each.size <= RESULT_MAX for each in found)
        return found if is_small else None


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def _is_small(node: NodeProto, given: Mapping[str, Array]) -> bool:
    sizes = [max(each.size, 1) for each in given.values()]
    if node.op_type in MOVES:
        return sum(sizes) <= MOVED_MAX
    if node.op_type in GROWING:  # an estimate from above, of every way they grow
        wanted = [e for e in given.values() if e.dtype.kind in "iu" and e.size <= 64]
        sizes += [int(np.prod(np.abs(each).astype(np.float64) + 1)) for each in wanted]
    return math.prod(sizes) <= READ_MAX


def _entries(sizes: Iterable[int | str]) -> Array:
    """int64 if all are numbers, otherwise objects."""
    entries = list(sizes)
    if all(isinstance(each, int) for each in entries):
        return np.array(entries, np.int64)
    found = np.empty(len(entries), object)
    found[:] = entries
    return found


def _sizes(node: NodeProto, shape: Sequence[int | str] | None) -> list[Array] | None:
    """What Shape or Size gives for a value of this shape."""
    if shape is None:
        return None
    if node.op_type == "Size":
        numbers = [each for each in shape if isinstance(each, int)]
        return [np.asarray(math.prod(numbers), np.int64)] if len(numbers) == len(shape) else None
    given = _attributes(node)
    return [_entries(shape[given.get("start", 0) : given.get("end", len(shape))])]


def _symbolic(node: NodeProto, known: Known) -> list[Array] | None:
    """Of a node that reads sizes of which some are symbols."""
    source = known[node.input[0]]
    others = [known[name] for name in node.input[1:] if name]
    if any(each.dtype == object for each in others):
        return None
    given = _attributes(node)
    kind = node.op_type
    if kind == "Gather" and not given.get("axis", 0) and source.ndim == 1:
        return [_settled(np.asarray(source[others[0]], object))]
    if kind in ("Squeeze", "Unsqueeze", "Identity"):
        shape: tuple[int, ...] = source.shape if kind == "Identity" else ()
        if kind == "Unsqueeze":
            shape = (1,) * (source.ndim + others[0].size)
        return [source.reshape(shape)] if source.size == 1 or kind == "Identity" else None
    is_symbol = source.size == 1 and bool(source.item())  # "" may be any size, 0 too
    if is_symbol and kind == "Cast" and given["to"] == TensorProto.BOOL:
        return [np.ones(source.shape, bool)]
    if is_symbol and kind == "Cast" and given["to"] in (TensorProto.INT64, TensorProto.INT32):
        return [source]
    if is_symbol and kind in ("Equal", "Greater") and not np.any(others[0]):
        shape = np.broadcast_shapes(source.shape, others[0].shape)
        return [np.full(shape, kind == "Greater")]
    return None


def _settled(entries: Array) -> Array:
    """int64 if no symbol is left."""
    numbers = [each for each in entries.reshape(-1) if isinstance(each, int)]
    return entries.astype(np.int64) if len(numbers) == entries.size else entries


def _cut_axes(node: NodeProto, known: Known) -> list[Array] | None:
    """The starts, ends, axes and steps of a Slice without the axes that it leaves whole; None:
    there is no such axis. Exporters write x[:, 1:] with all axes, or one after the other, and along
    the batch that looks as if it mixed rows."""
    if node.op_type != "Slice" or node.domain:
        return None
    given = [known.get(name) for name in node.input[1:]]
    arrays = [each for each in given if each is not None and each.dtype != object]
    if len(arrays) != len(given):  # some are computed, or left out between others
        return None
    starts, ends, *more = arrays
    axes = more[0] if more else np.arange(starts.size, dtype=starts.dtype)
    steps = more[1] if len(more) > 1 else np.ones_like(starts)
    is_cut = (starts != 0) | (ends < OPEN_END) | (steps != 1)
    return None if is_cut.all() else [each[is_cut] for each in (starts, ends, axes, steps)]


def _taken(node: NodeProto, known: Known) -> GraphProto | None:
    """The branch of an If that is always taken."""
    if node.op_type != "If" or node.domain:
        return None
    condition = known.get(node.input[0])
    if condition is None or condition.dtype != bool or condition.size != 1:
        return None
    name = "then_branch" if condition.item() else "else_branch"
    return next(each.g for each in node.attribute if each.name == name)
