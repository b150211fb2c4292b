"""Names a model's tensors as this dialect's clients see them, with their datatypes and batch axes.

A model's inputs and outputs keep their names. NAME_last is the last time step of the output NAME.
The states of an nn.LSTM have torch's names and torch's shapes [layers, B, width]. Any other state
is given as NAME and comes back as NAME.next. This module must not know a request.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

from lstmserve.engine import Model
from lstmserve.engine.errors import Malformed
from lstmserve.spec import LAST, NEXT, ModelSpec, TensorSpec

DATATYPES: Final[Mapping[str, str]] = {"float32": "FP32", "int64": "INT64", "bool": "BOOL"}
TORCH_STATES: Final[Mapping[str, tuple[str, str]]] = {"h": ("h0", "hn"), "c": ("c0", "cn")}
SHOWN_MAX: Final = 64  # characters of a client's name
NAMES_MAX: Final = 24  # that an error lists


class Part(enum.Enum):
    """Which values of a tensor an output has."""

    ROWS = enum.auto()  # of every time step
    LAST = enum.auto()  # of the last time step
    STATE = enum.auto()  # after the last time step


class InputTensor(NamedTuple):
    """An input that every request of the model has. `shape` and `size` are of one time step."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int


class StateTensor(NamedTuple):
    """A state, which a request may give as the input `given` and get as the output `wanted`."""

    given: str
    wanted: str
    tensor: TensorSpec
    datatype: str
    batch_axis: int

    def batched(self, size: int) -> tuple[int, ...]:
        """Its shape with the axis of a batch of this size."""
        shape, axis = self.tensor.shape, self.batch_axis
        return (*shape[:axis], size, *shape[axis:])


class OutputTensor(NamedTuple):
    """An output that a request may ask for; `tensor` is the model's output or state."""

    name: str
    part: Part
    tensor: TensorSpec
    datatype: str
    batch_axis: int = 0


class WantedOutputs(NamedTuple):
    """The outputs that one request asks for, in the order of its response.

    `last_only`: no output has more than the last time step. `with_state`: some output is a state.
    `last_bytes` are those of the last time steps, of one sequence, that come beside all others.
    """

    outputs: tuple[OutputTensor, ...]
    last_only: bool
    with_state: bool
    last_bytes: int


class Signature:
    """What a request of the model may have and ask for, by name, in the spec's order.

    `first` is the first of the inputs. `states` are by the names that a request gives them.
    """

    def __init__(self, spec: ModelSpec) -> None:
        is_torch = spec.lstm is not None and not spec.window
        inputs = [
            InputTensor(each.name, DATATYPES[each.dtype], each.shape, each.size)
            for each in spec.inputs
        ]
        states = [_state(each, is_torch=is_torch) for each in spec.states]
        self.first = inputs[0]
        self.inputs: Mapping[str, InputTensor] = {each.name: each for each in inputs}
        self.states: Mapping[str, StateTensor] = {each.given: each for each in states}
        outputs = [
            *(_output(tensor, Part.ROWS) for tensor in spec.outputs),
            *(_output(tensor, Part.LAST) for tensor in spec.outputs),
            *map(_state_output, states),
        ]
        self.outputs: Mapping[str, OutputTensor] = {each.name: each for each in outputs}
        self._every = _wanted([each for each in outputs if each.part is Part.ROWS])

    def wanted(self, names: Iterable[str], model: Model) -> WantedOutputs:
        """The outputs of these names; every output of the model where there is none.

        Raises Malformed.
        """
        if not names:
            return self._every
        outputs = []
        for name in names:
            if (output := self.outputs.get(name)) is None:
                raise Malformed(
                    f"unexpected inference output '{name[:SHOWN_MAX]}' for model '{model.name}'; "
                    f"there are {listed(self.outputs)}"
                )
            outputs.append(output)
        return _wanted(outputs)


_signatures: WeakKeyDictionary[Model, Signature] = WeakKeyDictionary()


def signature_of(model: Model) -> Signature:
    """The model's signature, which is made once."""
    if (found := _signatures.get(model)) is None:
        found = _signatures[model] = Signature(model.spec)
    return found


def listed(names: Iterable[str]) -> str:
    """The names as an error shows them."""
    every = list(names)
    more = f" and {len(every) - NAMES_MAX} more" if len(every) > NAMES_MAX else ""
    return ", ".join(every[:NAMES_MAX]) + more


def _wanted(outputs: list[OutputTensor]) -> WantedOutputs:
    parts = {each.part for each in outputs}
    last_only = Part.ROWS not in parts
    last_bytes = 0
    if not last_only and Part.LAST in parts:
        last_bytes = sum(each.tensor.bytes for each in outputs if each.part is Part.LAST)
    return WantedOutputs(tuple(outputs), last_only, Part.STATE in parts, last_bytes)


def _state(tensor: TensorSpec, *, is_torch: bool) -> StateTensor:
    if is_torch:
        given, wanted = TORCH_STATES[tensor.name]
        return StateTensor(given, wanted, tensor, DATATYPES[tensor.dtype], 1)
    return StateTensor(tensor.name, tensor.name + NEXT, tensor, DATATYPES[tensor.dtype], 0)


def _output(tensor: TensorSpec, part: Part) -> OutputTensor:
    name = tensor.name + LAST if part is Part.LAST else tensor.name
    return OutputTensor(name, part, tensor, DATATYPES[tensor.dtype])


def _state_output(state: StateTensor) -> OutputTensor:
    return OutputTensor(state.wanted, Part.STATE, state.tensor, state.datatype, state.batch_axis)
