"""Folds time into the batch: a step graph whose memory is in recurrent nodes runs T time steps at
once, without a Scan.

What stands around a recurrent node (LSTM, GRU, RNN) is computed as for a batch of T * B rows, of
which row t * B + b is time step t of row b. The recurrent node itself runs over [T, B, I] and ends
each row at its own length. So a value of the step graph has up to three versions:
    ROWS    of all time steps, [T * B, ...]: what the inputs lead to
    BEFORE  of the states before the first time step, [B, ...]: what a recurrent node starts from
    AFTER   of the states after each row's last time step, [B, ...]
Values that depend on no input have one version. Time steps may be folded only if every node that
computes ROWS is row-wise (row_wise.py), and if each recurrent node starts a time step from what it
has left itself, unchanged: `_check_memory` follows every value from one time step to the next. It
must not know where states lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from lstmserve.graph.builder import GraphBuilder
from lstmserve.graph.row_wise import MOVING, BatchAxes, Unfoldable
from lstmserve.graph.step_graph import StepGraph
from lstmserve.spec import NEXT, ModelSpec

Version = Literal["net/", "before/", "after/"]
ROWS: Final = "net/"  # the prefix of the names of a version; what is fixed has this one, too
BEFORE: Final = "before/"
AFTER: Final = "after/"
OVER_TIME: Final = "over/"  # the prefixes of other values: ROWS as [T, B, ...],
ALL: Final = "all/"  # what a recurrent node gives for all time steps, [T, 1, B, H],
LAST: Final = "last/"  # and what it leaves after the last, where the step graph does not name it
SHAPE: Final = "time/shape"  # int64 [3]: T, B and the number of values
STEPS: Final = "time/steps"  # int64 [1]: T; and the numbers of rows of the versions
COUNTS: Final = {ROWS: "time/rows", BEFORE: "time/batch", AFTER: "time/batch"}

RECURRENT: Final = {"LSTM": 2, "GRU": 1, "RNN": 1}  # and how many states each has
LENGTHS, STARTS = 4, 5  # positions of sequence_lens and initial_h; W and R are 1 and 2, B is 3
PEEPHOLES: Final = 7
MOVED_ROWS: Final = 3  # in _check_memory()


class Fold:
    """A step graph of which each value is in the versions that its outputs and states need.

    Making one raises Unfoldable, which says what keeps it from running over time at once.
    """

    def __init__(self, spec: ModelSpec, graph: StepGraph) -> None:
        self._spec = spec
        self._graph = graph
        self._axes = BatchAxes(spec, graph)
        self._inputs = {each.name for each in spec.inputs}
        self._states = {each.name for each in spec.states}
        self._wanted: dict[str, set[Version]] = {}
        self._plan()
        self._check_memory()

    def _plan(self) -> None:
        """Finds the versions that are wanted of each value, from the outputs to the inputs."""
        for each in self._spec.outputs:
            self._want(each.name, ROWS, "the output")
        for each in self._spec.states:
            self._want(each.name + NEXT, AFTER, f"the state {each.name}")
        for node in reversed(self._graph.running):
            versions = self._versions(node)
            if self._is_over_time(node):
                self._plan_recurrent(node, versions)
                continue
            for version in sorted(versions):
                self._plan_plain(node, version)

    def _plan_plain(self, node: NodeProto, version: Version) -> None:
        is_shared = self._is_fixed(node) or node.output[0] in self._axes.sizes
        if not is_shared:
            if version != ROWS and node.op_type not in MOVING.split():
                raise Unfoldable(
                    f"{node.output[0]}, which a state needs, is computed by {node.op_type}"
                )
            self._axes.check(node)
        if node.op_type == "Shape" and not self._is_fixed(node):
            self._axes.shape(node.input[0])
            return
        for name in node.input:
            self._want(name, version, node.op_type)

    def _plan_recurrent(self, node: NodeProto, versions: set[Version]) -> None:
        op, count = node.op_type, RECURRENT[node.op_type]
        inputs = [*node.input, *[""] * (PEEPHOLES + 1 - len(node.input))]
        given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if given.get("direction", b"forward") != b"forward" or given.get("layout", 0):
            raise Unfoldable(f"{op} does not read time forwards")
        if inputs[LENGTHS]:
            raise Unfoldable(f"{op} has lengths of its own")
        if BEFORE in versions:
            raise Unfoldable(f"{op} starts from what another recurrent node gives")
        if count == 2 and ROWS in self._versions_of(_output(node, 2)):
            raise Unfoldable(f"the outputs need the cell of {op}, which it gives at the end alone")
        self._width(inputs[0])
        self._want(inputs[0], ROWS, op)
        for name in (*inputs[1:LENGTHS], inputs[PEEPHOLES]):
            if name and name not in self._axes.fixed:
                raise Unfoldable(f"the weights of {op} are not constant")
            self._want(name, ROWS, op)
        for name in inputs[STARTS : STARTS + count]:
            if not name or name in self._axes.fixed:
                raise Unfoldable(f"{op} does not start from a state")
            self._width(name)
            self._want(name, BEFORE, op)

    def _width(self, name: str) -> int:
        """W of a value [1, B, W] that a recurrent node reads."""
        shape = self._axes.shape(name)
        if len(shape) != 3 or shape[:2] != (1, None) or shape[2] is None:
            raise Unfoldable(f"{name} is not one time step of the batch")
        return shape[2]

    def _want(self, name: str, version: Version, reader: str) -> None:
        if name in self._inputs and version != ROWS:
            raise Unfoldable(f"{reader} depends on the input {name}, beside its recurrent nodes")
        if name in self._states and version != BEFORE:
            raise Unfoldable(f"{reader} reads the state {name}, which no recurrent node keeps")
        if name:
            self._wanted.setdefault(name, set()).add(version)

    def _versions(self, node: NodeProto) -> set[Version]:
        return set[Version]().union(*map(self._versions_of, node.output))

    def _versions_of(self, value: str) -> set[Version]:
        return self._wanted.get(value, set())

    def _is_fixed(self, node: NodeProto) -> bool:
        return set(node.output) <= self._axes.fixed

    # The memory -----------------------------------------------------------------------------------

    def _check_memory(self) -> None:
        """Raises Unfoldable unless each recurrent node finds in the next time step what it leaves
        in this one: every value of it, in its place, in its row.

        Each value that a node leaves gets a number of its own here. The nodes that only move values
        take the numbers from AFTER through the states to BEFORE.
        """
        left: dict[str, npt.NDArray[np.int64]] = {}
        starts: list[tuple[str, npt.NDArray[np.int64]]] = []
        count = 0
        for node in self._graph.running:
            if not self._is_over_time(node):
                continue
            for i in range(RECURRENT[node.op_type]):
                start, width = node.input[STARTS + i], self._width(node.input[STARTS + i])
                numbers = count + np.arange(MOVED_ROWS * width).reshape(1, MOVED_ROWS, width)
                count += numbers.size
                starts.append((BEFORE + start, numbers))
                left[AFTER + _output(node, 1 + i)] = numbers
                if i == 0:
                    left[AFTER + _output(node, 0)] = numbers[:, np.newaxis]
        names = [each.name for each in self._spec.states]
        after = self._moved(AFTER, left, [AFTER + name + NEXT for name in names])
        states = {BEFORE + name: each for name, each in zip(names, after, strict=True)}
        before = self._moved(BEFORE, states, [name for name, _ in starts])
        for found, (_, numbers) in zip(before, starts, strict=True):
            if not np.array_equal(found, numbers):
                raise Unfoldable("a recurrent node does not start from what it has left itself")

    def _moved(
        self, version: Version, feeds: Mapping[str, npt.NDArray[Any]], names: list[str]
    ) -> list[npt.NDArray[Any]]:
        """The values `names` of a version for MOVED_ROWS rows."""
        g = GraphBuilder("moved")
        tensors = (*self._graph.initializers.values(), *self._graph.constants)
        g.include((), (renamed(t) for t in tensors if version in self._versions_of(t.name)))
        for node in self._graph.running:
            if not self._is_over_time(node) and version in self._versions(node):
                self._add_plain(g, node, version)
        opsets = [helper.make_opsetid(*each) for each in self._graph.opsets.items()]
        model = helper.make_model(g.graph(), opset_imports=opsets)
        counts = {COUNTS[version]: np.array([MOVED_ROWS])}
        try:
            found = ReferenceEvaluator(model).run(names, {**feeds, **counts})
        except Exception as error:  # whatever a wrong attribute leads to
            raise Unfoldable("what moves the states cannot be followed") from error
        return [np.asarray(each) for each in found]

    # The graph ------------------------------------------------------------------------------------

    def add(self, g: GraphBuilder, x: str) -> None:
        """Adds the nodes that compute net/NAME [T * B, *shape] of each output and after/NAME.next
        of each state, from net/NAME of each input, before/NAME of each state, and `lengths`
        int32 [B].

        `x` [T, B, values] is one of the graph's inputs. The constants must be there.
        """
        shape = g.add("Shape", [x], SHAPE)
        g.add("Gather", [shape, g.integers(0)], STEPS, axis=0)
        for node in self._graph.running:
            versions = self._versions(node)
            if self._is_over_time(node):
                self._add_recurrent(g, node)
                continue
            for version in sorted(versions)[: 1 if self._is_fixed(node) else None]:
                self._add_plain(g, node, version)

    def over_time(self, g: GraphBuilder, value: str, *shape: int) -> str:
        """Adds `value` [T * B, ...] as [T, B, *shape], once; returns its name."""
        axes, name = g.integers(-1, *shape), OVER_TIME + value
        target = f"time/{axes}"
        if not g.has(target):
            g.add("Concat", [STEPS, axes], target, axis=0)
        return name if g.has(name) else g.add("Reshape", [value, target], name)

    def _add_plain(self, g: GraphBuilder, node: NodeProto, version: Version) -> None:
        if node.op_type == "Shape" and not self._is_fixed(node):
            self._add_shape(g, node, version)
            return
        copy = _copied(node, version)
        copy.input[:] = [self._name(name, version) for name in node.input]
        copy.output[:] = [self._name(name, version) for name in node.output]
        g.include([copy])

    def _add_shape(self, g: GraphBuilder, node: NodeProto, version: Version) -> None:
        """The shape of a value, whose rows of that version need not be there."""
        given = {each.name: each.i for each in node.attribute}
        shape = self._axes.shape(node.input[0])[given.get("start", 0) : given.get("end")]
        parts = [self._count(g, version) if n is None else g.integers(n) for n in shape]
        g.add("Concat", parts or [g.integers()], self._name(node.output[0], version), axis=0)

    def _count(self, g: GraphBuilder, version: Version) -> str:
        """int64 [1]: the number of rows of a version."""
        name = COUNTS[version]
        if not g.has(SHAPE) or g.has(name):  # _moved() gives it
            return name
        if version != ROWS:
            return g.add("Gather", [SHAPE, g.integers(1)], name, axis=0)
        return g.add("Mul", [STEPS, self._count(g, BEFORE)], name)

    def _add_recurrent(self, g: GraphBuilder, node: NodeProto) -> None:
        count = RECURRENT[node.op_type]
        given = [_output(node, i) for i in range(1 + count)]
        last = [name and AFTER + name for name in given[1:]]
        last[0] = last[0] or LAST + given[0]
        ys = ALL + next(filter(None, given))
        copy = _copied(node, OVER_TIME)
        copy.input[0] = self.over_time(g, ROWS + node.input[0], self._width(node.input[0]))
        for i, name in enumerate(node.input[1:], 1):
            is_start = STARTS <= i < STARTS + count
            copy.input[i] = self._name(name, BEFORE if is_start else ROWS)
        copy.input[LENGTHS] = "lengths"
        copy.output[:] = [ys, *last]
        g.include([copy])
        width = self._width(node.input[STARTS])
        for name, lead in zip(given, ((1, 1), (1,)), strict=False):
            # Y [T, 1, B, H] is Y_h [1, B, H] of every time step.
            versions, shape = self._versions_of(name), g.integers(*lead, -1, width)
            if ROWS in versions:
                g.add("Reshape", [ys, shape], ROWS + name)
            if AFTER in versions and name == given[0]:
                g.add("Reshape", [last[0], shape], AFTER + name)

    def _name(self, value: str, version: Version) -> str:
        return value and (ROWS if value in self._axes.fixed else version) + value

    def _is_over_time(self, node: NodeProto) -> bool:
        """Whether it is a recurrent node that is wanted."""
        is_recurrent = node.op_type in RECURRENT and not node.domain
        return is_recurrent and not self._is_fixed(node) and bool(self._versions(node))


def _output(node: NodeProto, position: int) -> str:
    """The name of an output; "" where it is not given."""
    return node.output[position] if position < len(node.output) else ""


def _copied(node: NodeProto, version: str) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.doc_string = ""
    copy.name = node.name and version + node.name
    return copy


def renamed(tensor: TensorProto) -> TensorProto:
    """A constant of the step graph by the name that it has in the pool's graphs."""
    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.name = ROWS + tensor.name
    return copy
