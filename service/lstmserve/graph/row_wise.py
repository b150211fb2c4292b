"""Proves that nodes of a step graph compute each row of the batch by itself, and along which axis.

A step graph as a whole computes its outputs row by row, and the self-test measures that. Values
between are another matter: a graph may turn the batch around and back again. So the fold over time
(fold.py) asks here for every node that it lets see other rows than the step graph would. The shapes
at two batch sizes show the batch axis of a value, and a table of operators says what must hold for
it. An operator that is not in the table counts as one that mixes rows. This module runs nothing,
and must not know what a row is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from lstmserve.graph.builder import DTYPES
from lstmserve.graph.step_graph import StepGraph
from lstmserve.spec import ModelSpec

SIZES: Final = (7, 11)  # no axis of a fixed length is 7 at the one and 11 at the other
VALUES_MAX: Final = 1 << 10  # of a constant that shape inference may need the values of

Shape = tuple[int | None, ...]
"""The batch axis is None."""


class Unfoldable(Exception):
    """Why time steps of this graph cannot run as rows of one batch."""


class BatchAxes:
    """The batch axis of every value, and whether a node is row-wise along it.

    `fixed` are the values that depend on no input. `sizes` are those that depend on the length of
    the batch alone.
    """

    def __init__(self, spec: ModelSpec, graph: StepGraph) -> None:
        self._constants = {tensor.name: tensor for tensor in graph.constants}
        self._constants |= graph.initializers
        self._shapes = [_infer(spec, graph, self._constants, size) for size in SIZES]
        self.fixed, self.sizes = set(self._constants), set[str]()
        for node in graph.running:
            inputs = {name for name in node.input if name}
            if _has_subgraph(node):
                continue
            if inputs <= self.fixed:
                self.fixed.update(node.output)
            elif node.op_type == "Shape" or (
                inputs <= self.fixed | self.sizes and not any(map(self._varies, node.output))
            ):
                self.sizes.update(node.output)
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.HasField("t"):
                    self._constants[node.output[0]] = attribute.t

    def shape(self, name: str) -> Shape:
        """Raises Unfoldable where it cannot be told, or has not one batch axis."""
        found = [shapes.get(name) for shapes in self._shapes]
        small, large = found
        if small is None or large is None or len(small) != len(large):
            raise Unfoldable(f"the shape of {name} cannot be told")
        shape = tuple(a if a == b else None for a, b in zip(small, large, strict=True))
        sizes = [pair for pair in zip(small, large, strict=True) if pair[0] != pair[1]]
        if sizes != [SIZES]:
            raise Unfoldable(f"{name} has no batch axis")
        return shape

    def check(self, node: NodeProto) -> None:
        """Raises Unfoldable unless each row of its outputs is computed from that row of its inputs,
        which depend on the batch, and from constants."""
        op = node.op_type
        rule = None if node.domain or _has_subgraph(node) else RULES.get(op)
        if rule is None:
            raise Unfoldable(f"{op} may mix rows")
        parts = enumerate(node.input)
        rows = {i: self.shape(name) for i, name in parts if name and not self._is_shared(name)}
        for i, name in enumerate(node.input):
            if name in self.sizes and (op, i) not in SIZE_ARGUMENTS:
                raise Unfoldable(f"{op} computes with the number of rows")
        outputs = [self.shape(name) for name in node.output if name]
        if not all(rule(Case(self, node, rows, shape)) for shape in outputs):
            raise Unfoldable(f"{op} mixes rows in {node.output[0]}")

    def array(self, name: str) -> np.ndarray[Any, Any] | None:
        """The values of an initializer or Constant; None of any other value."""
        tensor = self._constants.get(name)
        return None if tensor is None else np.asarray(numpy_helper.to_array(tensor))

    def _is_shared(self, name: str) -> bool:
        return name in self.fixed or name in self.sizes

    def _varies(self, name: str) -> bool:
        small, large = (shapes.get(name) for shapes in self._shapes)
        return small is None or small != large


def _has_subgraph(node: NodeProto) -> bool:
    return any(each.HasField("g") or each.graphs for each in node.attribute)


def _infer(
    spec: ModelSpec, graph: StepGraph, constants: Mapping[str, onnx.TensorProto], size: int
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each value whose shape can be told, in a batch of `size` rows."""
    inputs = [
        helper.make_tensor_value_info(each.name, DTYPES[each.dtype], [size, *each.shape])
        for each in (*spec.inputs, *spec.states)
    ]
    small = [each for each in constants.values() if math.prod(each.dims) <= VALUES_MAX]
    for name, tensor in constants.items():
        if math.prod(tensor.dims) > VALUES_MAX:
            inputs.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    ends = [helper.make_empty_tensor_value_info(each.name) for each in spec.outputs]
    body = helper.make_graph(graph.running, "step", inputs, ends, small)
    opsets = [helper.make_opsetid(*each) for each in graph.opsets.items()]
    model = helper.make_model(body, opset_imports=opsets, ir_version=graph.ir_version)
    try:
        found = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception as error:  # its classes have no base of their own
        raise Unfoldable("the shapes of its values cannot be told") from error
    shapes = {}
    for value in (*found.input, *found.value_info, *found.output):
        inferred = value.type.tensor_type
        dims = inferred.shape.dim
        if inferred.HasField("shape") and all(each.HasField("dim_value") for each in dims):
            shapes[value.name] = tuple(each.dim_value for each in dims)
    return shapes


# The rules ----------------------------------------------------------------------------------------


class Case:
    """A node with one of its outputs; `rows` are the shapes of the inputs that have a batch axis,
    by position, and `output` is that of the output."""

    def __init__(
        self, axes: BatchAxes, node: NodeProto, rows: Mapping[int, Shape], output: Shape
    ) -> None:
        self.node = node
        self.rows = rows
        self.output = output
        self._axes = axes
        self._attributes = {each.name: each for each in node.attribute}

    def attribute(self, name: str, default: Any) -> Any:
        found = self._attributes.get(name)
        return default if found is None else helper.get_attribute_value(found)

    def array(self, position: int) -> np.ndarray[Any, Any] | None:
        """The values of a constant input; None where it is not given or not constant."""
        given = position < len(self.node.input)
        return self._axes.array(self.node.input[position]) if given else None

    def only(self, *positions: int) -> bool:
        """Whether no other inputs than these have a batch axis."""
        return set(self.rows) <= set(positions)


Rule = Callable[[Case], bool]
"""Whether the output is row-wise; every output has one batch axis already."""


def _batch_axis(shape: Shape) -> int:
    return shape.index(None)


def _ahead(shape: Shape) -> int:
    """The product of the axes ahead of the batch axis."""
    return math.prod(filter(None, shape[: _batch_axis(shape)]))


def _from_right(shape: Shape) -> int:
    return len(shape) - _batch_axis(shape)


def _elementwise(case: Case) -> bool:
    return all(_from_right(each) == _from_right(case.output) for each in case.rows.values())


def _dropout(case: Case) -> bool:
    return len(case.node.input) < 3 and _elementwise(case)


def _along(default: int | None) -> Rule:
    """The rule of an operator that works along one axis."""

    def rule(case: Case) -> bool:
        axis = case.attribute("axis", default)
        shapes = case.rows.values()
        return axis is not None and all(axis % len(each) != _batch_axis(each) for each in shapes)

    return rule


def _from_axis(case: Case) -> bool:
    """Of an operator that works on this axis and all behind it."""
    shape = case.rows.get(0)
    if shape is None or not case.only(0):
        return False
    return int(case.attribute("axis", -1)) % len(shape) > _batch_axis(shape)


def _reduced(case: Case) -> bool:
    """The batch axis is still there, so it is none of those that went or became 1."""
    return case.only(0)


def _images(case: Case) -> bool:
    """[B, channels, ...], with weights that are constants. A second output would be statistics of
    the batch, or places in it."""
    is_first = all(_batch_axis(each) == 0 for each in (case.output, *case.rows.values()))
    is_alone = len(case.node.output) == 1 and not case.attribute("training_mode", 0)
    return is_first and is_alone and case.only(0)


def _reshaped(case: Case) -> bool:
    """Row-major order keeps the rows if as many values lie ahead of the batch axis as before."""
    ahead = {_ahead(each) for each in case.rows.values()}
    return case.only(0) and ahead == {_ahead(case.output)}


def _expanded(case: Case) -> bool:
    """A constant, or one value for all, gets a batch axis in which all rows are the same."""
    return case.only(0) and _elementwise(case)


def _transposed(case: Case) -> bool:
    shape = case.rows[0]
    perm: Sequence[int] = case.attribute("perm", range(len(shape))[::-1])
    return perm[_batch_axis(case.output)] == _batch_axis(shape)


def _matmul(case: Case) -> bool:
    """The batch axis is not the one that is summed over; of two stacks of matrices it is the same
    one ahead of the matrices."""
    left, right = (case.rows.get(i) for i in (0, 1))
    if left and right:
        return _from_right(left) == _from_right(right) == _from_right(case.output) > 2
    if left:
        return _batch_axis(left) != len(left) - 1
    return right is not None and _from_right(right) != min(2, len(right))


def _gemm(case: Case) -> bool:
    has_rows = all(_batch_axis(each) == 0 for each in case.rows.values())
    return has_rows and 0 in case.rows and case.only(0, 2) and not case.attribute("transA", 0)


def _gather(case: Case) -> bool:
    if case.only(1):
        return True
    shape = case.rows[0]
    return case.only(0) and case.attribute("axis", 0) % len(shape) != _batch_axis(shape)


def _sliced(case: Case) -> bool:
    if not case.only(0):
        return False
    shape, starts, axes = case.rows[0], case.array(1), case.array(3)
    if starts is None or (axes is None and len(case.node.input) > 3 and case.node.input[3]):
        return False
    cut = range(starts.size) if axes is None else (int(axis) for axis in axes)
    return all(axis % len(shape) != _batch_axis(shape) for axis in cut)


def _table(rows: Iterable[tuple[str, Rule]]) -> dict[str, Rule]:
    return {op: rule for ops, rule in rows for op in ops.split()}


MOVING: Final = "Identity Reshape Flatten Squeeze Unsqueeze Transpose Split Concat Slice Gather"
RULES: Final = _table(
    (
        (
            "Abs Acos Add And Asin Atan Cast Ceil Celu Clip Cos Div Elu Equal Erf Exp Floor Gelu "
            "Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less "
            "LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round "
            "Selu Shrink Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum Swish Tan Tanh "
            "ThresholdedRelu Where Xor",
            _elementwise,
        ),
        ("Dropout", _dropout),
        ("Softmax LogSoftmax Hardmax LpNormalization", _along(-1)),
        ("Split", _along(0)),
        ("Concat", _along(None)),
        ("LayerNormalization RMSNormalization", _from_axis),
        (
            "ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean "
            "ReduceMin ReduceProd ReduceSum ReduceSumSquare TopK",
            _reduced,
        ),
        (
            "AveragePool BatchNormalization Conv GlobalAveragePool GlobalMaxPool "
            "GroupNormalization InstanceNormalization MaxPool",
            _images,
        ),
        ("Reshape Flatten Squeeze Unsqueeze", _reshaped),
        ("Expand ConstantOfShape", _expanded),
        ("Transpose", _transposed),
        ("MatMul", _matmul),
        ("Gemm", _gemm),
        ("Gather", _gather),
        ("Slice", _sliced),
    )
)
"""By operator of the domain "". They hold for every opset from OPSET_MIN on."""
SIZE_ARGUMENTS: Final = {("Reshape", 1), ("Expand", 1), ("ConstantOfShape", 0)}
