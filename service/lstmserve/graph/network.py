"""What the state pool needs of a model: the graphs around its slots, and how states lie in them.

PoolNetwork and PoolLayout have one class each for a kind of model. Kernel, Pool and self-test work
with these interfaces alone, and must not know what the states mean. A layout holds no weights, so
it may stay when onnxruntime has loaded the graphs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

from lstmserve.graph.builder import GraphBuilder
from lstmserve.graph.forms import NEXT_SLOTS, build_pool, state_widths
from lstmserve.graph.weights import INITIAL_STATE, Weights
from lstmserve.spec import LstmSpec, ModelSpec

States = Mapping[str, npt.NDArray[Any]]
"""Name of a state -> [N, *shape], of the spec's dtype."""
Arguments = dict[str, tuple[type[np.generic], tuple[int, ...]]]
"""Name of a graph's input or output on the host -> its dtype and shape."""


class PoolTensor(NamedTuple):
    """A tensor of the pool as one slot has it: the pool's own is [slots, *shape]."""

    name: str
    shape: tuple[int, ...]
    dtype: str


ROWS_OF = "/rows"  # the input or output NAME/rows are rows of the pool's tensor NAME


class PoolLayout(ABC):
    """How a model's states lie in slots, and what its graphs are called with.

    `spec` is the model's, `tensors` are those of the pool. The graphs take x and give y as
    `float_input`, `int_input`, `float_output` and `int_output` ("" where the spec has no such
    values), and each tensor as NAME -> NAME/next.
    """

    def __init__(self, spec: ModelSpec, tensors: Iterable[PoolTensor]) -> None:
        self.spec = spec
        self.tensors = tuple(tensors)
        self.float_input = self.int_input = self.float_output = self.int_output = ""

    @abstractmethod
    def arguments(self, length: int, size: int) -> Arguments:
        """Inputs on the host for T = `length` and B = `size`: x, `read` and `write`, which have B
        slots each, and `lengths` int32 [B] where the graph for that T takes it."""

    @abstractmethod
    def results(self, length: int, size: int) -> Arguments:
        """The outputs on the host, in the order of `float_output`, `int_output`."""

    @abstractmethod
    def initial(self) -> States:
        """The model's initial state, one row of each state: [1, *shape]."""

    @abstractmethod
    def to_rows(self, states: States) -> States:
        """Rows [N, *shape] of the pool's tensors, by their names, from states [N, *shape]."""

    @abstractmethod
    def to_states(self, rows: States) -> States:
        """The states whose rows these are."""

    def build_read(self) -> onnx.ModelProto:
        """slots int64 [N] and the pool's tensors -> NAME/rows [N, *shape] for each of them."""
        g = GraphBuilder("read")
        g.input("slots", "int64", ["N"])
        for each in self.tensors:
            g.input(each.name, each.dtype, ["S", *each.shape])
            g.add("Gather", [each.name, "slots"], each.name + ROWS_OF, axis=0)
            g.output(each.name + ROWS_OF, each.dtype, ["N", *each.shape])
        return g.model()

    def build_write(self) -> onnx.ModelProto:
        """slots int64 [N, 1], the pool's tensors and NAME/rows [N, *shape] -> NAME/next."""
        g = GraphBuilder("write")
        g.input("slots", "int64", ["N", 1])
        for each in self.tensors:
            rows, after = each.name + ROWS_OF, each.name + NEXT_SLOTS
            g.input(each.name, each.dtype, ["S", *each.shape])
            g.input(rows, each.dtype, ["N", *each.shape])
            g.add("ScatterND", [each.name, "slots", rows], after)
            g.output(after, each.dtype, ["S", *each.shape])
        return g.model()


class PoolNetwork(ABC):
    """A network between slots of its states."""

    layout: PoolLayout

    @abstractmethod
    def build_chunk(self) -> onnx.ModelProto:
        """The graph for any number of time steps."""

    @abstractmethod
    def build_step(self) -> onnx.ModelProto | None:
        """The graph for one time step; None where that of chunks is as fast."""


class LstmLayout(PoolLayout):
    """The pool has h and c of each layer apart: an LSTM node reads and leaves them as they lie."""

    def __init__(self, lstm: LstmSpec, weights: Weights = MappingProxyType({})) -> None:
        """`weights` have the tensors of a learned initial state; the layout keeps no others."""
        tensors = (
            PoolTensor(name, (width,), "float32") for name, width in state_widths(lstm).items()
        )
        super().__init__(ModelSpec.of_lstm(lstm), tensors)
        self._lstm = lstm
        if lstm.num_embeddings:
            self.int_input = "x_time_major"
        else:
            self.float_input = "x_time_major"
        self.float_output = "y"
        self._initial = {
            each.name: weights[INITIAL_STATE + each.name][np.newaxis]
            if lstm.initial_state
            else np.zeros((1, *each.shape), np.float32)
            for each in self.spec.states
        }

    def arguments(self, length: int, size: int) -> Arguments:
        x: Arguments = {"x_time_major": (np.float32, (length, size, self._lstm.input_size))}
        if self._lstm.num_embeddings:
            x = {"x_time_major": (np.int64, (length, size))}
        return x | {
            "lengths": (np.int32, (size,)),
            "read": (np.int64, (1, size)),
            "write": (np.int64, (1, size, 1)),
        }

    def results(self, length: int, size: int) -> Arguments:
        return {"y": (np.float32, (length, size, self._lstm.output_size))}

    def initial(self) -> States:
        """Zeros unless the spec has a learned state, one row of each state."""
        return dict(self._initial)

    def to_rows(self, states: States) -> States:
        """h [N, layers, P] and c [N, layers, H] -> `h.0` [N, P], `c.0` [N, H], `h.1`, ..."""
        found = {}
        for each in self.tensors:
            kind, _, layer = each.name.partition(".")
            found[each.name] = states[kind][:, int(layer)]
        return found

    def to_states(self, rows: States) -> States:
        """The states h and c from the rows, the inverse of to_rows()."""
        if self._lstm.num_layers == 1:
            return {kind: rows[f"{kind}.0"][:, np.newaxis] for kind in "hc"}
        layers = range(self._lstm.num_layers)
        return {kind: np.stack([rows[f"{kind}.{i}"] for i in layers], axis=1) for kind in "hc"}


class LstmNetwork(PoolNetwork):
    """Kind "lstm", one direction: the graph is built from the weights."""

    def __init__(self, lstm: LstmSpec, weights: Weights) -> None:
        self.lstm = lstm
        self.weights = weights
        self.layout = LstmLayout(lstm, weights)

    def build_chunk(self) -> onnx.ModelProto:
        return build_pool(self.lstm, self.weights)

    def build_step(self) -> None:
        return None
