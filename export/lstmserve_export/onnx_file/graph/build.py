"""Writes the graph that the server runs around the nodes of a file that others made.

The file's own nodes stay as they are, but for what sizes and constants decide (simplify.py). Ours
bring each tensor from the layout of the server, where sessions come first, into the file's, and
back. Every value of the file gets the prefix net/ there, so that its names and ours cannot meet. A
graph that takes one session a run becomes the body of a Scan over the sessions. It must not know
how the layout was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx
from onnx import TensorProto

from lstmserve.graph.builder import GraphBuilder
from lstmserve.graph.fold import renamed
from lstmserve.graph.safety import DOMAINS, one_line
from lstmserve.graph.step_graph import IR_VERSION_MIN
from lstmserve.graph.step_layout import NET, renamed_node
from lstmserve.spec import INITIAL, NEXT
from lstmserve_export.arrays import Arrays
from lstmserve_export.onnx_file.graph.simplify import simplify
from lstmserve_export.onnx_file.graph.weights import place_weights
from lstmserve_export.onnx_file.layout.place import Layout, Place
from lstmserve_export.onnx_file.layout.runner import relaxed
from lstmserve_export.onnx_file.load.source import Source
from lstmserve_export.onnx_file.roles.roles import Roles
from lstmserve_export.refusal import Refused

ROW: Final = "row/"  # the prefix of a tensor of one session in the body of a Scan
PLACED: Final = "placed/"
NARROW: Final = ("int32", "int16", "int8", "uint8")
COUNT: Final = "batch/count"  # int64 [1]: the number of sessions
TYPES: Final = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "int16": TensorProto.INT16,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "bool": TensorProto.BOOL,
}


def build_step(source: Source, roles: Roles, layout: Layout, initial: Arrays) -> onnx.ModelProto:
    """NAME [B, *shape] of each input and state -> NAME of each output, NAME.next of each state;
    `initial` has NAME.initial [*shape] of the states that do not begin from zeros."""
    build = _Build(source, roles, layout)
    for name, array in initial.items():
        build.g.constant(name + INITIAL, array)
    return build.over_sessions()


def build_window(source: Source, roles: Roles, layout: Layout, window: int) -> onnx.ModelProto:
    """NAME [B, W, *shape] of each input -> NAME [B, *shape] of each output, of the last row."""
    return _Build(source, roles, layout, window).over_sessions()


def build_sequence(source: Source, roles: Roles, layout: Layout) -> onnx.ModelProto:
    """NAME [T, *shape] of each input -> NAME [R, *shape] of each output."""
    return _Build(source, roles, layout).of_sequence()


@dataclass(frozen=True, slots=True)
class _Port:
    """A tensor on both sides. `lead` are the file's axes that come first on ours, in order."""

    name: str
    place: Place
    lead: tuple[int, ...]

    @property
    def missing(self) -> list[int]:
        """Axes of the file, of length 1, that ours lacks."""
        place = self.place
        dropped = {*place.ones} | ({place.batch} if place.batch is not None else set())
        return sorted(dropped - {*self.lead})

    @property
    def present(self) -> list[int]:
        """Axes of the file that ours has, in the file's order."""
        return [at for at in range(len(self.place.value.shape)) if at not in self.missing]

    @property
    def ours(self) -> list[int]:
        """The same axes in our order."""
        return [*self.lead, *(at for at in self.present if at not in self.lead)]


class _Build:
    def __init__(self, source: Source, roles: Roles, layout: Layout, window: int = 0) -> None:
        self.g = GraphBuilder("imported")
        self._graph = onnx.GraphProto()
        self._graph.CopyFrom(relaxed(source.model).graph)
        place_weights(self._graph)
        self._source = source
        self._layout = layout
        self._window = window
        self._constants = roles.constants
        self._inputs = [(each.spec.name, each) for each in layout.inputs]
        self._inputs += [(each.before.spec.name, each.before) for each in layout.states]
        self._outputs = [(each.spec.name, each) for each in layout.outputs]
        self._outputs += [(each.before.spec.name + NEXT, each.after) for each in layout.states]

    def over_sessions(self) -> onnx.ModelProto:
        """The graph with B sessions on the first axis of each tensor."""
        shapes = {name: self._shape(place) for name, place in self._inputs}
        for name, place in self._inputs:
            self.g.input(name, place.spec.dtype, ["B", *shapes[name]])
        if self._layout.is_batched:
            self.g.include((), map(renamed, self._weights()))
            self._add_constants()
            self._add_file(self.g, "", has_batch=True)
        else:
            for name, array in self._constants.items():
                self.g.constant(NET + name, array)
            self._add_scan(shapes)
        for name, place in self._outputs:
            self.g.output(name, place.spec.dtype, ["B", *place.spec.shape])
        return self._model()

    def of_sequence(self) -> onnx.ModelProto:
        """The graph of one sequence."""
        for name, place in self._inputs:
            self.g.input(name, place.spec.dtype, ["T", *place.spec.shape])
        self.g.include((), map(renamed, self._weights()))
        for name, array in self._constants.items():
            self.g.constant(NET + name, array)
        for name, place in self._inputs:
            self._enter(self.g, _Port(name, place, _given(place.time)))
        self.g.include(map(renamed_node, self._graph.node))
        for name, place in self._outputs:
            if place.time is None:
                value = self._leave(self.g, _Port(name, place, ()), f"{PLACED}{name}")
                self.g.add("Unsqueeze", [value, self.g.integers(0)], name)
            else:
                self._leave(self.g, _Port(name, place, (place.time,)), name)
            rows = 1 if place.time is None else "R"
            self.g.output(name, place.spec.dtype, [rows, *place.spec.shape])
        return self._model()

    def _shape(self, place: Place) -> tuple[int, ...]:
        """Of one session's part of our input."""
        return (self._window, *place.spec.shape) if self._window else place.spec.shape

    def _weights(self) -> list[onnx.TensorProto]:
        return [each for each in self._graph.initializer if each.name not in self._constants]

    def _add_constants(self) -> None:
        """Adds the constant inputs, which a batch needs once for each session."""
        for name, array in self._constants.items():
            axis = self._layout.constant_batches.get(name)
            if axis is None:
                self.g.constant(NET + name, array)
                continue
            if not self.g.has(COUNT):
                shape = self.g.add("Shape", [self._inputs[0][0]], "batch/shape", end=1)
                self.g.add("Identity", [shape], COUNT)
            parts = [self.g.integers(each) for each in array.shape]
            parts[axis] = COUNT
            shape = self.g.add("Concat", parts, f"batch/{name}", axis=0)
            one = self.g.constant(f"one/{name}", array)
            self.g.add("Expand", [one, shape], NET + name)

    def _add_file(self, g: GraphBuilder, prefix: str, *, has_batch: bool) -> None:
        """Adds the file's nodes to `g`, between our tensors, whose names have the prefix."""
        for name, place in self._inputs:
            lead = _given(place.batch) if has_batch else ()
            lead += _given(place.time) if self._window else ()
            self._enter(g, _Port(prefix + name, place, lead))
        g.include(map(renamed_node, self._graph.node))
        for name, place in self._outputs:
            lead = _given(place.batch) if has_batch else ()
            self._leave(g, _Port(prefix + name, place, lead), prefix + name)

    def _add_scan(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Adds the file's nodes as the body of a Scan over the sessions."""
        body = GraphBuilder("session")
        for name, place in self._inputs:
            body.input(ROW + name, place.spec.dtype, shapes[name])
        self._add_file(body, ROW, has_batch=False)
        for name, place in self._outputs:
            body.output(ROW + name, place.spec.dtype, place.spec.shape)
        body.include((), map(renamed, self._weights()))
        names = [name for name, _ in self._inputs]
        self.g.add_many(
            "Scan",
            names,
            [name for name, _ in self._outputs],
            body=body.graph(),
            num_scan_inputs=len(names),
        )

    def _enter(self, g: GraphBuilder, port: _Port) -> None:
        """Adds the file's input from ours."""
        place, value = port.place, port.name
        order = [port.ours.index(at) for at in port.present]
        steps: list[tuple[str, list[str], dict[str, object]]] = []
        if place.value.dtype != place.spec.dtype:
            value = self._fitting(g, value, place)
            steps.append(("Cast", [], {"to": TYPES[place.value.dtype]}))
            steps += self._rounding(place)
        if order != sorted(order):
            steps.append(("Transpose", [], {"perm": order}))
        if port.missing:
            steps.append(("Unsqueeze", [self.g.integers(*port.missing)], {}))
        self._chain(g, value, steps, NET + place.value.name)

    def _leave(self, g: GraphBuilder, port: _Port, name: str) -> str:
        """Adds our output from the file's, and returns its name."""
        place = port.place
        value = NET + place.value.name
        if self._window and place.time is not None:
            last = self.g.integers(-1)  # a vector, so that the axis stays
            value = g.add("Gather", [value, last], f"{PLACED}{name}/last", axis=place.time)
        order = [port.present.index(at) for at in port.ours]
        steps: list[tuple[str, list[str], dict[str, object]]] = []
        if port.missing:
            steps.append(("Squeeze", [self.g.integers(*port.missing)], {}))
        if order != sorted(order):
            steps.append(("Transpose", [], {"perm": order}))
        if place.value.dtype != place.spec.dtype:
            steps += self._rounding(place)
            steps.append(("Cast", [], {"to": TYPES[place.spec.dtype]}))
        return self._chain(g, value, steps, name)

    def _fitting(self, g: GraphBuilder, value: str, place: Place) -> str:
        """Adds nodes that fail on an integer which the file's dtype cannot hold: its session's step
        fails then, and does not go on with another number."""
        if place.value.dtype not in NARROW:
            return value
        path = f"{PLACED}{value}"
        narrow = g.add("Cast", [value], f"{path}/narrow", to=TYPES[place.value.dtype])
        wide = g.add("Cast", [narrow], f"{path}/wide", to=TYPES["int64"])
        fits = g.add("Equal", [value, wide], f"{path}/fits")
        index = g.add(
            "Cast", [g.add("Not", [fits], f"{path}/not")], f"{path}/at", to=TYPES["int64"]
        )
        # One value alone: any index but 0 is an error, which names the node.
        name = f"{value}: must fit {place.value.dtype}"
        zero = g.add("Gather", [self.g.integers(0), index], name, axis=0)
        return g.add("Add", [value, zero], f"{path}/fitting")

    def _rounding(self, place: Place) -> list[tuple[str, list[str], dict[str, object]]]:
        """Nodes that change no value of a float16. Without them onnxruntime on a CPU, which
        computes in float32, leaves a Cast to float16 and back out, and the value keeps bits that
        the file rounds off."""
        if place.value.dtype != "float16":
            return []
        axis = self.g.integers(0)
        return [("Unsqueeze", [axis], {}), ("Squeeze", [axis], {})]

    def _chain(
        self,
        g: GraphBuilder,
        value: str,
        steps: Sequence[tuple[str, list[str], dict[str, object]]],
        result: str,
    ) -> str:
        """Adds nodes one after the other, of which the last gives `result`."""
        for at, (op, more, attributes) in enumerate(steps, 1):
            name = result if at == len(steps) else f"{PLACED}{result}/{at}_{op}"
            value = g.add(op, [value, *more], name, **attributes)
        return value if steps else g.add("Identity", [value], result)

    def _model(self) -> onnx.ModelProto:
        opsets = {
            each.domain: each.version
            for each in self._source.model.opset_import
            if each.domain in DOMAINS
        }
        try:
            model = self.g.model(opsets, max(self._source.model.ir_version, IR_VERSION_MIN))
        except Exception as error:  # the checker's classes have no base of their own
            raise Refused(f"the graph cannot be put between sessions: {one_line(error)}") from error
        return simplify(model)


def _given(axis: int | None) -> tuple[int, ...]:
    return () if axis is None else (axis,)
