"""Looks for nodes that mix the rows of a batch where no answer that was tried shows it.

An answer may hide them: a Where takes a sum over the batch above a threshold alone, or for integers
beyond those that were drawn, or in a batch of 64 rows. The values within the graph show it,
whatever becomes of them. So each value that depends on an input must have, in a batch, the rows
that it has alone, and the number of rows may only make shapes. It must not know whether the answers
were right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from lstmserve.graph.safety import all_nodes, subgraphs
from lstmserve_export.arrays import Array, Arrays
from lstmserve_export.onnx_file.graph.simplify import simplify
from lstmserve_export.onnx_file.graph.splice import names_read
from lstmserve_export.onnx_file.graph.weights import place_weights
from lstmserve_export.onnx_file.layout.inner_values import ShownNames, show
from lstmserve_export.onnx_file.layout.row_shapes import Axes
from lstmserve_export.onnx_file.layout.runner import Runner, RunRefused
from lstmserve_export.onnx_file.layout.trial import Row, Trial

ROWS: Final = 3
AT_ONCE: Final = 64  # values of a run, which memory must hold
NODES_MAX: Final = 20_000
TOLERANCE: Final = 1e-3  # of a value to the largest: rows that mix differ by far more
# Operators that choose or join numbers: what they choose may be a size that no batch changes.
CHOOSING: Final = frozenset(
    ("Cast", "Concat", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze")
)
FILLING: Final = ("ConstantOfShape", "Expand", "Tile")  # the same for each row
# The inputs that an operator reads as sizes, and does not compute with.
SIZE_INPUTS: Final[Mapping[str, Sequence[int]]] = {
    **dict.fromkeys(("Expand", "Pad", "Reshape", "Split", "Tile"), (1,)),
    "ConstantOfShape": (0,),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
}
# The inputs of these that say what runs; their bodies read the others.
CONTROL: Final[Mapping[str, Sequence[int]]] = {"If": (0,), "Loop": (0, 1), "Scan": ()}
COUNTING: Final = ("Compress", "NonMaxSuppression", "NonZero", "Unique")
AXES_INPUT: Final = {"CumSum": 1, "Slice": 3}  # where these have their axes
# Operators that work along an axis and may keep its length, and the axis if they do not say it.
ALONG: Final = {
    **dict.fromkeys(("Hardmax", "LogSoftmax", "LpNormalization", "Softmax", "TopK"), -1),
    **dict.fromkeys(AXES_INPUT, 0),
    "GatherElements": 0,
    "ScatterElements": 0,
}


class _Kind(IntEnum):
    """What a value depends on: on no input and no size; it has sizes, of which the rows may be one;
    it is computed from the number of rows; on an input or state."""

    FIXED = 0
    SIZE = 1
    NUMBER = 2
    DATA = 3


class _Mixes(Exception):
    """A node mixes rows, or may; the message names it."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What runs showed of a value: where its rows lie, or what is wrong with them. `is_same`: a
    batch does not change it."""

    rank: int
    axis: int | None = None
    wrong: str = ""
    is_same: bool = False


Kinds = dict[str, _Kind]


def find_mixing(model: onnx.ModelProto, trial: Trial, before: Axes, repeated: Axes) -> str:
    """Which node mixes the rows along the axes `before`, "" if none does. `repeated` are the axes
    along which constants are repeated for a batch."""
    if len(model.graph.node) > NODES_MAX:
        return ""
    try:
        _Inner(model, trial, before, repeated).run()
    except _Mixes as error:
        return str(error)
    return ""


class _Inner:
    """The values of one graph."""

    def __init__(self, model: onnx.ModelProto, trial: Trial, before: Axes, repeated: Axes) -> None:
        """Raises _Mixes where onnxruntime does not give them."""
        self._before, self._repeated, self._trial = before, repeated, trial
        self._rows = trial.rows(0, ROWS)
        self._shown = show(self._plain(model))
        graphs = [self._shown.model.graph]
        for node in all_nodes(self._shown.model.graph.node):
            graphs += subgraphs(node)
        self._constants = {each.name: each for graph in graphs for each in graph.initializer}
        fed = {name: trial.roles.constants[name] for name in repeated}
        try:
            self._runner = Runner(self._shown.model, fed)
        except RunRefused as error:
            raise _Mixes(f"the values within the graph cannot be seen: {error}") from error
        self._seen: dict[str, _Seen] = {}

    def run(self) -> None:
        """Raises _Mixes."""
        names = self._shown.names
        for start in range(0, len(names), AT_ONCE):
            self._look(names[start : start + AT_ONCE])
        kinds = dict.fromkeys((*self._before, *self._repeated), _Kind.DATA)
        for name, axis in self._before.items():
            self._seen[name] = _Seen(len(self._trial.shapes[name]), axis)
        self._walk(self._shown.model.graph.node, kinds, {name: name for name in self._seen})

    def _plain(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The graph with its constants in it, and without the branches that sizes decide."""
        found = onnx.ModelProto()
        found.CopyFrom(model)
        graph = found.graph
        fed = {*self._before, *self._repeated}
        kept = [each for each in graph.input if each.name in fed]
        del graph.input[:]
        graph.input.extend(kept)
        for name, array in self._trial.roles.constants.items():
            if name not in fed:
                graph.initializer.append(numpy_helper.from_array(array, name))
        for value in graph.input:
            shape = self._trial.shapes.get(value.name, ())
            for at, dim in enumerate(value.type.tensor_type.shape.dim):
                dim.Clear()
                if at < len(shape) and at != self._before.get(value.name):
                    dim.dim_value = shape[at]
                else:
                    dim.dim_param = "rows"
        place_weights(graph)
        return simplify(found)

    # What runs show ------------------------------------------------------------------------------

    def _look(self, names: Sequence[str]) -> None:
        alone = [self._run([row], names) for row in self._rows]
        together = self._run(self._rows, names)
        for name in names:
            self._seen[name] = _compared([each[name] for each in alone], together[name])

    def _run(self, rows: Sequence[Row], names: Sequence[str]) -> Arrays:
        """Raises _Mixes."""
        feeds = {
            name: np.concatenate([row.feeds[name] for row in rows], axis)
            for name, axis in self._before.items()
        }
        repeat = {
            name: np.repeat(self._trial.roles.constants[name], len(rows), axis)
            for name, axis in self._repeated.items()
        }
        try:
            return self._runner.run(feeds, {*names}, repeat)
        except RunRefused as error:
            raise _Mixes(f"the values within the graph cannot be seen: {error}") from error

    # What the nodes do with them -----------------------------------------------------------------

    def _walk(
        self,
        nodes: Sequence[onnx.NodeProto],
        kinds: Kinds,
        shown: ShownNames,
        *,
        checks: bool = True,
    ) -> None:
        """Adds what the nodes give to `kinds`. `shown` has the name by which a value was seen.
        Raises _Mixes."""
        for node in nodes:
            kind = self._kind(node, kinds, shown)
            kinds |= {name: kind for name in node.output if name}
            if kind != _Kind.FIXED and node.op_type in CONTROL:
                kinds |= self._control(node, kinds, checks=checks)
            if checks:
                self._check(node, kinds, shown)

    def _control(self, node: onnx.NodeProto, kinds: Kinds, *, checks: bool) -> Kinds:
        """What a node with bodies gives. Raises _Mixes."""
        first = int(node.op_type == "Loop")  # its bodies say whether to go on
        control = [kinds.get(node.input[at], _Kind.FIXED) for at in CONTROL[node.op_type]]
        found = dict.fromkeys(filter(None, node.output), max(control, default=_Kind.FIXED))
        for body in subgraphs(node):
            inner = self._body(node, body, kinds, checks=checks)
            for name, value in zip(node.output, body.output[first:], strict=False):
                if name:
                    found[name] = max(found[name], inner.get(value.name, _Kind.FIXED))
        return found

    def _body(
        self, node: onnx.NodeProto, body: onnx.GraphProto, kinds: Kinds, *, checks: bool
    ) -> Kinds:
        """Raises _Mixes."""
        names = self._shown.bodies.get(next(filter(None, node.output), ""), {})
        begin = [kinds.get(name, _Kind.FIXED) for name in node.input]
        if node.op_type == "Loop":
            begin[0] = _Kind.FIXED  # the number of the turn
        inner = dict(zip((each.name for each in body.input), begin, strict=False))
        # What a turn leaves to the next, until it depends on nothing more.
        first = int(node.op_type == "Loop")
        read = next((each.i for each in node.attribute if each.name == "num_scan_inputs"), 0)
        carried = [*zip(body.input[first : len(body.input) - read], body.output, strict=False)]
        for _ in carried:
            found = {**kinds, **inner}
            self._walk(body.node, found, names, checks=False)
            for before, after in carried:
                kind = found.get(after.name, _Kind.FIXED)
                inner[before.name] = max(inner.get(before.name, _Kind.FIXED), kind)
        found = {**kinds, **inner}
        self._walk(body.node, found, names, checks=checks)
        return found

    def _kind(self, node: onnx.NodeProto, kinds: Kinds, shown: ShownNames) -> _Kind:
        kind = max((kinds.get(name, _Kind.FIXED) for name in names_read([node])), default=0)
        if kind == _Kind.FIXED:
            return _Kind.FIXED
        is_size = kind == _Kind.SIZE and node.op_type in CHOOSING
        if is_size or node.op_type in ("Shape", "Size"):
            seen = [self._seen.get(shown.get(name, "")) for name in node.output if name]
            is_same = all(each is not None and each.is_same for each in seen)
            return _Kind.FIXED if is_same else _Kind.SIZE
        if node.op_type in FILLING:
            return _Kind.DATA
        return _Kind(max(kind, _Kind.NUMBER))

    def _check(self, node: onnx.NodeProto, kinds: Kinds, shown: ShownNames) -> None:
        """Raises _Mixes."""
        op = node.op_type
        results = [name for name in node.output if name and kinds[name] == _Kind.DATA]
        if not results:
            return
        what = f"{op} {node.name or results[0]}"
        for at, name in enumerate(node.input):
            counts = at in CONTROL[op] if op in CONTROL else at not in SIZE_INPUTS.get(op, ())
            if name and counts and kinds.get(name) in (_Kind.SIZE, _Kind.NUMBER):
                raise _Mixes(f"{what} computes with the number of rows")
        if op in COUNTING:
            raise _Mixes(f"{what} gives as many values as the data of all rows say")
        if op in ALONG and self._works_along(node, shown):
            raise _Mixes(f"{what} works along the rows")
        for name in results:
            seen = self._seen.get(shown.get(name, ""))
            if seen is not None and seen.wrong:
                raise _Mixes(f"{what} {seen.wrong}")

    def _works_along(self, node: onnx.NodeProto, shown: ShownNames) -> bool:
        """Whether the rows of its result lie along its axis."""
        name = next(filter(None, node.output))
        seen = self._seen.get(shown.get(name, ""))
        if seen is None or seen.axis is None:
            return False
        axes = self._axes(node)
        if axes is None:
            return True
        # In a body the turns are the first axis of what was seen.
        turns = int(shown[name] != name)
        return any(seen.axis - turns == axis % (seen.rank - turns) for axis in axes)

    def _axes(self, node: onnx.NodeProto) -> list[int] | None:
        """The axes along which it works; None: they are computed."""
        if node.op_type == "Slice" and len(node.input) < 4:
            starts = self._constants.get(node.input[1])
            return None if starts is None else list(range(*starts.dims))
        if (at := AXES_INPUT.get(node.op_type)) is not None:
            given = self._constants.get(node.input[at])
            return None if given is None else numpy_helper.to_array(given).reshape(-1).tolist()
        own = (each.i for each in node.attribute if each.name == "axis")
        return [next(own, ALONG[node.op_type])]


def _compared(alone: Sequence[Array], together: Array) -> _Seen:
    if not all(isinstance(each, np.ndarray) for each in (together, *alone)):
        return _Seen(0, wrong="gives no tensor")
    first = alone[0]
    if any(each.shape != first.shape for each in alone):
        return _Seen(first.ndim, wrong="has a size that depends on the data")
    if together.shape == first.shape:
        is_same = all(np.array_equal(each, together) for each in alone)
        return _Seen(first.ndim, wrong="has no values for each row", is_same=is_same)
    axis = _axis(alone, together)
    if axis is None:
        return _Seen(first.ndim, wrong="has other values for rows in a batch than alone")
    return _Seen(first.ndim, axis)


def _axis(alone: Sequence[Array], together: Array) -> int | None:
    """The axis on which the rows lie, which other values may share with them."""
    shape, count = alone[0].shape, len(alone)
    for axis, size in enumerate(shape):
        if together.shape != (*shape[:axis], size * count, *shape[axis + 1 :]):
            continue
        for outer in range(1, size + 1):
            if size % outer:
                continue
            parts = together.reshape(*shape[:axis], outer, count, size // outer, *shape[axis + 1 :])
            rows = (parts.take(row, axis + 1).reshape(shape) for row in range(count))
            if all(map(_are_equal, alone, rows)):
                return axis
    return None


def _are_equal(one: Array, other: Array) -> bool:
    is_same = one == other
    if not np.issubdtype(one.dtype, np.floating):
        return bool(is_same.all())
    is_same |= np.isnan(one) & np.isnan(other)
    with np.errstate(all="ignore"):
        error = np.abs(one - other, where=~is_same, out=np.zeros_like(one))
        finite = np.abs(one[np.isfinite(one)])
        return bool((error <= TOLERANCE * max(float(finite.max(initial=0)), 1e-3)).all())
