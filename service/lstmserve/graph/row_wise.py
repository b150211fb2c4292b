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
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from lstmserve.graph.builder import DTYPES
from lstmserve.graph.step_graph import StepGraph
from lstmserve.spec import ModelSpec

SIZES: Final = (7, 11)  # no axis of a fixed length is 7 at the one and 11 at the other
VALUES_MAX: Final = 1 << 10  # of a constant that shape inference may need the values of

MOVING: Final = "Concat Flatten Gather Identity Reshape Slice Split Squeeze Transpose Unsqueeze"
"""Operators that only move values."""
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
            elif not node.domain and (node.op_type == "Shape" or self._counts(node, inputs)):
                self.sizes.update(node.output)
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.HasField("t"):
                    self._constants[node.output[0]] = attribute.t

    def shape(self, name: str) -> Shape:
        """Raises Unfoldable where it cannot be told, or has not one batch axis."""
        small, large = (shapes.get(name) for shapes in self._shapes)
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

    def array(self, name: str) -> npt.NDArray[Any] | None:
        """The values of an initializer or Constant; None of any other value."""
        tensor = self._constants.get(name)
        return None if tensor is None else np.asarray(numpy_helper.to_array(tensor))

    def _is_shared(self, name: str) -> bool:
        return name in self.fixed or name in self.sizes

    def _counts(self, node: NodeProto, inputs: set[str]) -> bool:
        """Whether it gives numbers a * rows + b with constants a and b, as many for any batch.

        Two sizes of the batch show such a number for all sizes. They would not show a product of
        two, an entry of a table, or what a narrow type cuts off.
        """
        small, large = ([each.get(name) for name in node.output] for each in self._shapes)
        if None in small or small != large or not inputs <= self.fixed | self.sizes:
            return False
        numbers = [i for i, name in enumerate(node.input) if name in self.sizes]
        if node.op_type in ("Add", "Concat", "Sub"):
            return True
        if node.op_type == "Mul":
            return len(numbers) == 1
        is_moved = node.op_type in MOVING.split() or _is_cast_to_integers(node)
        return is_moved and numbers == [0]


def _is_cast_to_integers(node: NodeProto) -> bool:
    wide = TensorProto.INT32, TensorProto.INT64
    return node.op_type == "Cast" and any(a.name == "to" and a.i in wide for a in node.attribute)


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

    def is_given(self, position: int) -> bool:
        return position < len(self.node.input) and self.node.input[position] != ""

    def array(self, position: int) -> npt.NDArray[Any] | None:
        """The values of an input, if it is an initializer or Constant."""
        return self._axes.array(self.node.input[position]) if self.is_given(position) else None

    def works_along(self, axis: int) -> bool:
        """Whether this is the batch axis of an input."""
        return any(axis % len(shape) == shape.index(None) for shape in self.rows.values())


Rule = Callable[[Case], bool]
"""Whether the output is row-wise; each value that depends on the batch has one batch axis."""


def _kept(case: Case) -> bool:
    """Of an operator that gives each axis of an input its place in the output, or sums, reduces,
    cuts or joins along it. Then an output with a batch axis has it from there, as it was."""
    return True


def _along(case: Case) -> bool:
    """Of an operator that works along one axis, and keeps its length."""
    return not case.works_along(case.attribute("axis", -1))


def _from_axis(case: Case) -> bool:
    """Of an operator that works along this axis and all behind it."""
    axis = case.attribute("axis", -1)
    return all(axis % len(shape) > shape.index(None) for shape in case.rows.values())


def _images(case: Case) -> bool:
    """[B, channels, ...]. A second output would be statistics of the batch, or places in it. With
    ceil_mode onnxruntime and shape inference do not always count the same places."""
    is_first = all(shape[0] is None for shape in (case.output, *case.rows.values()))
    given = any(case.attribute(name, 0) for name in ("training_mode", "ceil_mode"))
    return is_first and len(case.node.output) == 1 and not given


def _reshaped(case: Case) -> bool:
    """Row-major order keeps the rows if as many values lie ahead of the batch axis as before."""
    return {_ahead(shape) for shape in case.rows.values()} == {_ahead(case.output)}


def _squeezed(case: Case) -> bool:
    """onnxruntime takes an empty list of axes as none, where shape inference squeezes nothing."""
    axes = case.array(1)
    is_plain = not case.is_given(1) or (axes is not None and axes.size > 0)
    return is_plain and _reshaped(case)


def _ahead(shape: Shape) -> int:
    return math.prod(filter(None, shape[: shape.index(None)]))


def _gather(case: Case) -> bool:
    return 0 not in case.rows or case.attribute("axis", 0) % len(case.rows[0]) != (
        case.rows[0].index(None)
    )


def _sloped(case: Case) -> bool:
    """onnxruntime broadcasts x to a larger slope as well, where shape inference keeps x's shape."""
    x, slope = case.rows.get(0), case.array(1)
    if x is None or slope is None or slope.ndim > len(x):
        return False
    pairs = zip(reversed(slope.shape), reversed(x), strict=False)
    return all(size in (1, own) for size, own in pairs)


def _sliced(case: Case) -> bool:
    """A batch that is shorter than the cut would keep its length."""
    starts, axes = case.array(1), case.array(3)
    if starts is None or (axes is None and case.is_given(3)):
        return False
    cut = range(starts.size) if axes is None else map(int, axes)
    return not any(map(case.works_along, cut))


def _padded(case: Case) -> bool:
    """No row is added to the batch, and none is left out."""
    pads, axes = case.array(1), case.array(3)
    if pads is None or (axes is None and case.is_given(3)):
        return False
    both = pads.reshape(2, -1).any(axis=0)  # pads before and after each axis
    padded = np.flatnonzero(both) if axes is None else axes[both]
    return not any(case.works_along(int(axis)) for axis in padded)


def _table(*rows: tuple[str, Rule]) -> dict[str, Rule]:
    return {op: rule for ops, rule in rows for op in ops.split()}


ELEMENTWISE: Final = (
    "Abs Acos Add And Asin Atan Cast Ceil Celu Clip Cos Div Dropout Elu Equal Erf Exp Floor Gelu "
    "Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual "
    "Log Max Mean Min Mish Mod Mul Neg Not Or Pow Reciprocal Relu Round Selu Shrink Sigmoid "
    "Sign Sin Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor"
)
REDUCING: Final = (
    "ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
    "ReduceProd ReduceSum ReduceSumSquare TopK"
)
RULES: Final = _table(
    (ELEMENTWISE, _kept),
    (REDUCING, _kept),
    ("Concat ConstantOfShape Expand Gemm MatMul Split Transpose", _kept),
    ("Hardmax LogSoftmax LpNormalization Softmax", _along),
    ("LayerNormalization RMSNormalization", _from_axis),
    ("AveragePool BatchNormalization Conv GlobalAveragePool GlobalMaxPool MaxPool", _images),
    ("GroupNormalization InstanceNormalization", _images),
    ("Flatten Reshape Unsqueeze", _reshaped),
    ("Squeeze", _squeezed),
    ("Gather", _gather),
    ("PRelu", _sloped),
    ("Slice", _sliced),
    ("Pad", _padded),
)
"""By operator of the domain "". They hold for every opset from OPSET_MIN on."""
SIZE_ARGUMENTS: Final = {("Reshape", 1), ("Expand", 1), ("ConstantOfShape", 0)}
