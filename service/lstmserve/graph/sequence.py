"""The networks that read whole sequences, one in a run: those of models without a pool.

A bidirectional nn.LSTM has initial and final states, and is built from its weights. A graph without
states is the file's own, on one sequence: it has no axis for a batch, and gives any number of rows
up to those of the sequence. A layout holds no weights, so it may stay when onnxruntime has loaded
the graph. Nothing here runs one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

from lstmserve.graph.builder import GraphBuilder
from lstmserve.graph.fold import renamed
from lstmserve.graph.forms import build_portable
from lstmserve.graph.network import LstmLayout, States
from lstmserve.graph.step_graph import StepGraph
from lstmserve.graph.step_layout import NET, checked_model, renamed_node
from lstmserve.graph.weights import Weights
from lstmserve.rows import RowFormat, Rows
from lstmserve.spec import LstmSpec, ModelSpec

Arrays = Mapping[str, npt.NDArray[Any]]
LSTM_STATES: Final = {"h": ("h0", "hn"), "c": ("c0", "cn")}  # before and after a run


class InvalidRows(ValueError):
    """What a graph gave is not what the model's spec says. The message is one line."""


class SequenceLayout(ABC):
    """What the graph of one sequence takes and gives. `initial` is the model's initial state, one
    row of each state: [1, *shape]."""

    def __init__(self, spec: ModelSpec, initial: States) -> None:
        self.spec = spec
        self.initial = initial

    @abstractmethod
    def arguments(self, x: Rows, states: States) -> Arrays:
        """The graph's inputs for the rows [T, ...] of a sequence, and the states [1, *shape] before
        it."""

    @abstractmethod
    def results(self, found: Arrays, length: int) -> tuple[Rows, States]:
        """The rows [R, ...] of the outputs of a sequence of `length` rows, R <= T, and the states
        [1, *shape] after it. Raises InvalidRows."""


class SequenceNetwork(NamedTuple):
    """`build` makes the graph; it raises InvalidModel."""

    layout: SequenceLayout
    build: Callable[[], onnx.ModelProto]


def lstm_sequences(lstm: LstmSpec, weights: Weights) -> SequenceNetwork:
    """Kind "lstm" in its portable form."""
    return SequenceNetwork(LstmSequences(lstm, weights), lambda: build_portable(lstm, weights))


def graph_sequences(spec: ModelSpec, graph: StepGraph) -> SequenceNetwork:
    """Kind "network" without states."""
    return SequenceNetwork(GraphSequences(spec), lambda: _build(spec, graph))


class LstmSequences(SequenceLayout):
    """The portable form with a batch of one."""

    def __init__(self, lstm: LstmSpec, weights: Weights) -> None:
        super().__init__(ModelSpec.of_lstm(lstm), LstmLayout(lstm, weights).initial())

    def arguments(self, x: Rows, states: States) -> Arrays:
        """x or tokens, `lengths`, h0 and c0."""
        (tensor,) = self.spec.inputs
        found = {
            tensor.name: x.reshape(1, len(x), *tensor.shape),
            "lengths": np.array([len(x)], np.int32),
        }
        for name, (before, _) in LSTM_STATES.items():
            found[before] = np.ascontiguousarray(np.swapaxes(states[name], 0, 1))
        return found

    def results(self, found: Arrays, length: int) -> tuple[Rows, States]:
        """y, and the states h and c."""
        states = {n: np.swapaxes(found[after], 0, 1) for n, (_, after) in LSTM_STATES.items()}
        return found["y"][0], states


class GraphSequences(SequenceLayout):
    """The file's inputs and outputs, by the names that renamed_node() gives them."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec, {})
        self._x, self._y = RowFormat(spec.inputs), RowFormat(spec.outputs)

    def arguments(self, x: Rows, states: States) -> Arrays:
        """Each input; there are no states."""
        return {NET + n: np.ascontiguousarray(each) for n, each in self._x.split(x).items()}

    def results(self, found: Arrays, length: int) -> tuple[Rows, States]:
        """An output's shape is whatever the nodes give: onnxruntime only warns of another one."""
        counts = set()
        for each in self.spec.outputs:
            shape = found[NET + each.name].shape
            if shape[1:] != each.shape or not shape:
                wanted = ["R", *each.shape]
                raise InvalidRows(f"{each.name} has the shape {list(shape)}, must be {wanted}")
            counts.add(shape[0])
        if len(counts) > 1:
            raise InvalidRows(f"the outputs have {sorted(counts)} rows, must have as many each")
        if (count := counts.pop()) > length:
            raise InvalidRows(f"the outputs have {count} rows, more than the {length} of the input")
        return self._y.pack({each.name: found[NET + each.name] for each in self.spec.outputs}), {}


def _build(spec: ModelSpec, graph: StepGraph) -> onnx.ModelProto:
    """NET + NAME [T, *shape] of each input -> NET + NAME [R, *shape] of each output.

    No two outputs share the name of their first axis: onnxruntime takes lengths of one name for
    equal, and may give both tensors the same memory.
    """
    g = GraphBuilder("sequence")
    for each in spec.inputs:
        g.input(NET + each.name, each.dtype, ["T", *each.shape])
    tensors = (*graph.initializers.values(), *graph.constants)
    g.include(map(renamed_node, graph.running), map(renamed, tensors))
    for each in spec.outputs:
        g.output(NET + each.name, each.dtype, [f"R/{each.name}", *each.shape])
    return checked_model(g, graph)
