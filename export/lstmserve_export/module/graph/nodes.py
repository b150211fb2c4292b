"""What the files that write nodes of ONNX share: a collector of nodes, and a layer's weights.

The weights are in the order of ONNX's gates. It must not know what the nodes compute.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lstmserve_export.arrays import Array
from lstmserve_export.module.recurrent import CELLS, CallId, Layer, kind_of

# The order of the gates in ONNX's rows, as positions in torch's (i f g o; r z n; one).
GATES: Final = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}


@dataclass(slots=True)
class Nodes:
    """Collects nodes and initializers, with names that no other value has."""

    taken: set[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def name(self, wanted: str) -> str:
        """The name, or it with a number where it is taken."""
        name, number = wanted, 2
        while name in self.taken:
            name, number = f"{wanted}.{number}", number + 1
        self.taken.add(name)
        return name

    def weight(self, name: str, array: Array) -> str:
        """An initializer, which two calls of one layer share."""
        if name not in self.initializers:
            tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
            self.initializers[name] = tensor
            self.taken.add(name)
        return name

    def shape(self, *values: int) -> str:
        """An int64 vector."""
        return self.weight(f"shape/{'_'.join(map(str, values))}", np.array(values, np.int64))

    def add(self, op: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        """A node with one output; returns its name."""
        (name,) = self.add_many(op, inputs, [output], **attributes)
        return name

    def add_many(
        self, op: str, inputs: Iterable[str], outputs: Iterable[str], **attributes: Any
    ) -> list[str]:
        """A node with several outputs; returns their names."""
        names = [self.name(output) for output in outputs]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names

    def rename(self, old: str, new: str) -> None:
        """Renames a value that the nodes so far compute."""
        for node in self.nodes:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]

    def body(self) -> Nodes:
        """Collects the nodes of a subgraph, which has this graph's initializers and none of its
        own."""
        return Nodes(self.taken, [], self.initializers)


@dataclass(frozen=True, slots=True)
class Place:
    """One of a layer's num_layers, from 0, in one of its directions."""

    index: int
    is_reverse: bool = False

    @property
    def suffix(self) -> str:
        """What torch ends the names of its parameters with."""
        return f"_l{self.index}{'_reverse' * self.is_reverse}"

    def __str__(self) -> str:
        return f"{self.index}{'.reverse' * self.is_reverse}"


class LayerWeights:
    """The weights of a recurrent layer as initializers, which all its calls share."""

    def __init__(self, found: Nodes, call: CallId, layer: Layer) -> None:
        self._found = found
        self._layer = layer
        self._is_cell = isinstance(layer, CELLS)
        self._order = GATES[kind_of(layer)]
        self.name = call.layer or "layer"

    def places(self, index: int) -> list[Place]:
        """The directions of one of the layer's num_layers."""
        is_both = getattr(self._layer, "bidirectional", False)
        return [Place(index), Place(index, True)] if is_both else [Place(index)]

    def parameter(self, kind: str, place: Place) -> Array:
        """A parameter by torch's name; parametrizations are applied."""
        suffix = "" if self._is_cell else place.suffix
        return np.asarray(getattr(self._layer, kind + suffix).detach().numpy())

    def gates(self, kind: str, place: Place) -> Array:
        """A parameter whose rows are in the order of ONNX's gates."""
        parts = np.split(self.parameter(kind, place), len(self._order))
        return np.concatenate([parts[gate] for gate in self._order])

    def matrices(self, index: int) -> dict[str, str]:
        """Names of W [D, G*H, I], R [D, G*H, H], and with a bias B [D, 2*G*H], for D directions."""
        places = self.places(index)
        values = {
            letter: np.stack([self.gates(kind, place) for place in places])
            for letter, kind in (("W", "weight_ih"), ("R", "weight_hh"))
        }
        if self._layer.bias:
            values["B"] = np.stack(
                [
                    np.concatenate([self.gates(kind, place) for kind in ("bias_ih", "bias_hh")])
                    for place in places
                ]
            )
        name = f"{self.name}.{index}"
        return {k: self._found.weight(f"{name}.{k}", value) for k, value in values.items()}

    def transposed(self, place: Place) -> dict[str, str]:
        """Names of W [I, G*H], R [P, G*H], with a bias B [G*H], and with a projection P [H, P]:
        matrices that onnxruntime prepacks."""
        values = {
            letter: self.gates(kind, place).T
            for letter, kind in (("W", "weight_ih"), ("R", "weight_hh"))
        }
        if self._layer.bias:
            values["B"] = self.gates("bias_ih", place) + self.gates("bias_hh", place)
        if getattr(self._layer, "proj_size", 0):
            values["P"] = self.parameter("weight_hr", place).T
        name = f"{self.name}.{place}"
        return {k: self._found.weight(f"{name}.{k}", value) for k, value in values.items()}
