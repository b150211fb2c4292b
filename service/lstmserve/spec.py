"""What a model says of itself: the names, shapes and dtypes of its inputs, outputs and states.

ModelSpec is all that the engine, the dialects and the clients know of a model. LstmSpec has the
sizes of an nn.LSTM and its head, from which the graph is built. A Tap names the places of a
recurrent layer in a step graph. No arrays, no I/O.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Final, Literal

from lstmserve.head_layers import (
    SIZE_MAX,
    HeadLayer,
    Linear,
    check_layer,
    layer_json,
    layer_of_json,
)
from lstmserve.head_layers import InvalidSpec as InvalidSpec  # the spec's users have it from here

Dtype = Literal["float32", "int64", "bool"]
DTYPE_BYTES: Final[Mapping[str, int]] = {"float32": 4, "int64": 8, "bool": 1}
INT_WIRE_BYTES: Final = 10  # the most that an int64 takes in a message, where it is a varint
WIRE_BYTES: Final[Mapping[str, int]] = {"float32": 4, "int64": INT_WIRE_BYTES, "bool": 1}
TENSOR_FRAME_BYTES: Final = 200  # of a Tensor message beside its values: the name and the shape
TENSOR_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
# A step graph's output NAME.next is the state NAME after the step, its initializer NAME.initial
# the state of a new session.
NEXT: Final = ".next"
INITIAL: Final = ".initial"
LAST: Final = "_last"  # Triton's clients ask for NAME_last, the output NAME of the last time step
LENGTHS: Final = "lengths"  # and give this input beside those of the model
RANK_MAX: Final = 8
TENSORS_MAX: Final = 1024
ROW_BYTES_MAX: Final = 1 << 30  # of all inputs, or all outputs: numpy has no wider rows than 2 GiB
Kind = Literal["lstm", "network"]

# What stands for the rows that a session's window lacks: no output is given; raw zeros; nothing,
# since the window has only the rows there are.
WindowFill = Literal["wait", "zeros", "grow"]
WINDOW_FILLS: Final[tuple[WindowFill, ...]] = ("wait", "zeros", "grow")
WINDOW_MAX: Final = 1 << 16
WINDOW: Final = ".window"  # the state NAME.window has the last rows of the input NAME
KNOWN: Final = "window.length"  # and this state says how many of them the session has given
MISSING: Final = "missing_rows"  # how many rows the window of a time step lacks

LayerKind = Literal["lstm", "gru", "rnn"]
LAYER_STATES: Final[Mapping[str, int]] = {"lstm": 2, "gru": 1, "rnn": 1}  # h and c, or h
LAYER_WEIGHTS: Final = ("W", "R", "B", "P")  # of the input and of h, biases, projection

LAYERS_MAX = 64


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of one time step of one session: its shape has no axes for batch and time.

    Raises InvalidSpec.
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not TENSOR_NAME.fullmatch(self.name):
            raise InvalidSpec(f"tensor name {self.name!r} must match {TENSOR_NAME.pattern}")
        if self.dtype not in DTYPE_BYTES:
            raise InvalidSpec(f"{self.name} is of {self.dtype!r}, not {', '.join(DTYPE_BYTES)}")
        is_shape = isinstance(self.shape, tuple) and len(self.shape) <= RANK_MAX
        if not is_shape or not all(type(n) is int and 1 <= n <= 1 << 31 for n in self.shape):
            raise InvalidSpec(f"{self.name} has the impossible shape {self.shape!r}")

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of its values."""
        return self.size * DTYPE_BYTES[self.dtype]

    @property
    def wire_bytes(self) -> int:
        """The most bytes of its values in a message."""
        return self.size * WIRE_BYTES[self.dtype]

    def to_json(self) -> dict[str, Any]:
        """JSON values; from_json(to_json()) is equal to self."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TensorSpec:
        """Reads what to_json wrote. Raises InvalidSpec."""
        try:
            return cls(values["name"], tuple(values["shape"]), values["dtype"])
        except (TypeError, KeyError) as error:
            raise InvalidSpec(f"malformed tensor: {error}") from error


@dataclass(frozen=True, slots=True)
class LstmSpec:
    """The network y = head(lstm(x)), in torch.nn.LSTM's names.

    `head` is applied to every time step, in order; empty: y is the LSTM's own output.
    `num_embeddings` > 0: the input is tokens [T] and `input_size` is the embedding's width.
    `input_norm`: x becomes (x - mean) / scale; `output_norm`: y becomes y * scale + mean.
    `residual`: the column of x that is added to each output of the head, x as the LSTM reads it
    and before the output norm; empty: nothing is added.
    `initial_state`: a new session begins from h and c of the weights, otherwise from zeros.
    Raises InvalidSpec.
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    proj_size: int = 0
    bidirectional: bool = False
    bias: bool = True
    head: tuple[HeadLayer, ...] = ()
    num_embeddings: int = 0
    input_norm: bool = False
    output_norm: bool = False
    residual: tuple[int, ...] = ()
    initial_state: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (
            ("input_size", 1, SIZE_MAX),
            ("hidden_size", 1, SIZE_MAX),
            ("num_layers", 1, LAYERS_MAX),
            ("proj_size", 0, self.hidden_size - 1),
            ("num_embeddings", 0, 1 << 31),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise InvalidSpec(f"{name} is {value!r}, must be an integer in [{low}, {high}]")
        for name in ("bidirectional", "bias", "input_norm", "output_norm", "initial_state"):
            if type(value := getattr(self, name)) is not bool:
                raise InvalidSpec(f"{name} is {value!r}, must be true or false")
        for layer in self.head:
            check_layer(layer)
        if self.num_embeddings and self.input_norm:
            raise InvalidSpec("input_norm: a model that takes tokens has no x to normalise")
        if self.residual:
            self._check_residual()

    def _check_residual(self) -> None:
        if not all(type(each) is int and 0 <= each < self.input_size for each in self.residual):
            raise InvalidSpec(
                f"residual is {self.residual!r}, must be columns of x in [0, {self.input_size - 1}]"
            )
        if len(self.residual) != self.output_size:
            raise InvalidSpec(
                f"residual has {len(self.residual)} columns of x, must have one for each of the "
                f"{self.output_size} outputs"
            )

    @property
    def num_directions(self) -> int:
        """2 when bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def state_size(self) -> int:
        """Width of h: proj_size when there is a projection, else hidden_size. c is hidden_size."""
        return self.proj_size or self.hidden_size

    @property
    def lstm_output_size(self) -> int:
        """Width of the LSTM's output, what the head reads."""
        return self.num_directions * self.state_size

    @property
    def output_size(self) -> int:
        """Width of y."""
        widths = [layer.out_features for layer in self.head if isinstance(layer, Linear)]
        return widths[-1] if widths else self.lstm_output_size

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """`tokens`, an integer, or `x` [input_size]."""
        if self.num_embeddings:
            return (TensorSpec("tokens", (), "int64"),)
        return (TensorSpec("x", (self.input_size,)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """`y` [output_size]."""
        return (TensorSpec("y", (self.output_size,)),)

    @property
    def states(self) -> tuple[TensorSpec, ...]:
        """torch's h and c, without the axis of the batch."""
        layers = self.num_layers * self.num_directions
        h, c = (layers, self.state_size), (layers, self.hidden_size)
        return TensorSpec("h", h), TensorSpec("c", c)

    @property
    def state_bytes(self) -> int:
        """Bytes of one session's states."""
        return sum(state.bytes for state in self.states)

    def layer_input_size(self, layer: int) -> int:
        """Width of what LSTM layer `layer` (from 0) reads."""
        return self.input_size if layer == 0 else self.lstm_output_size

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values; from_json(to_json()) is equal to self."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["head"] = [layer_json(layer) for layer in self.head]
        values["residual"] = list(self.residual)
        # The fingerprint covers these values, and that of a model without the new fields must stay.
        return {name: value for name, value in values.items() if value or name not in LATER_FIELDS}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LstmSpec:
        """Reads what to_json wrote. Raises InvalidSpec, also for unknown fields."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InvalidSpec(f"unknown fields: {', '.join(unknown)}")
        try:
            head = tuple(layer_of_json(value) for value in values.get("head", ()))
            residual = tuple(values.get("residual", ()))
            return cls(**{**values, "head": head, "residual": residual})
        except InvalidSpec:
            raise
        except (TypeError, KeyError, ValueError) as error:
            raise InvalidSpec(f"malformed: {error}") from error


LATER_FIELDS: Final = ("residual", "initial_state")  # which the first manifests do not have


@dataclass(frozen=True)
class ModelSpec:
    """What everything but the graph knows of a model. Raises InvalidSpec.

    `inputs` and `outputs` are float32 or int64. `states` are a session's memory; kind "network" may
    have none. `lstm` has the layers of kind "lstm"; it is None for kind "network".

    With a `window` of W rows, the outputs of a time step are those of the network for the last W
    rows, from its initial state. The states are then window_states(). `window_fill` says what
    stands for the rows that a new session lacks.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[TensorSpec, ...]
    lstm: LstmSpec | None = None
    window: int = 0
    window_fill: WindowFill | None = None

    def __post_init__(self) -> None:
        for group in ("inputs", "outputs"):
            if not getattr(self, group):
                raise InvalidSpec(f"{group}: a model has at least one")
        for what, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            for tensor in tensors:
                if tensor.dtype == "bool":
                    raise InvalidSpec(f"{what}: {tensor.name} is bool, must be float32 or int64")
            if (size := sum(each.bytes for each in tensors)) > ROW_BYTES_MAX:
                raise InvalidSpec(f"{what} of one step have {size} bytes, at most {ROW_BYTES_MAX}")
        if len(self.inputs) + len(self.outputs) + len(self.states) > TENSORS_MAX:
            raise InvalidSpec(f"a model has at most {TENSORS_MAX} inputs, outputs and states")
        if self.window or self.window_fill is not None:
            _check_window(self)
        if self.lstm is None or self.window:
            _check_names(self)

    @classmethod
    def of_lstm(
        cls, lstm: LstmSpec, window: int = 0, window_fill: WindowFill | None = None
    ) -> ModelSpec:
        """The spec of a model of kind "lstm"."""
        states = window_states(lstm.inputs, window, window_fill) if window else lstm.states
        return cls(lstm.inputs, lstm.outputs, states, lstm, window, window_fill)

    @property
    def kind(self) -> Kind:
        """ "lstm": the graph is built from the weights; "network": a step graph."""
        return "network" if self.lstm is None else "lstm"

    @cached_property
    def is_streaming(self) -> bool:
        """Whether the model takes steps; otherwise it takes whole sequences alone (Predict)."""
        if self.window or self.lstm is None:
            return bool(self.states)
        return not self.lstm.bidirectional

    @property
    def is_row_by_row(self) -> bool:
        """Whether a whole sequence gets as many rows of outputs as it has of inputs. Otherwise it
        gets fewer: of the windows that are whole, or as many as a graph without states gives."""
        return bool(self.states) and not self.waits

    @cached_property
    def state_bytes(self) -> int:
        """Bytes of one session's states."""
        return sum(state.bytes for state in self.states)

    @cached_property
    def results(self) -> tuple[TensorSpec, ...]:
        """What the engine computes of a time step: the outputs, and where sessions wait for a whole
        window, how many rows it lacks."""
        return (*self.outputs, TensorSpec(MISSING, (), "int64")) if self.waits else self.outputs

    @property
    def waits(self) -> bool:
        """Whether a time step has no output until its session has given a whole window."""
        return self.window_fill == "wait"

    @property
    def cells(self) -> int:
        """Rows that the network reads for one time step."""
        return self.window or 1

    def to_json(self) -> dict[str, Any]:
        """JSON values of a spec of kind "network"; from_json(to_json()) is equal to self."""
        assert self.lstm is None
        return {group: [each.to_json() for each in getattr(self, group)] for group in GROUPS}

    @classmethod
    def from_json(
        cls, values: Mapping[str, Any], window: int = 0, window_fill: WindowFill | None = None
    ) -> ModelSpec:
        """Reads what to_json wrote. Raises InvalidSpec, also for unknown fields."""
        if set(values) != set(GROUPS):
            raise InvalidSpec(f"the fields are {sorted(values)}, must be {', '.join(GROUPS)}")
        inputs, outputs, states = (
            tuple(map(TensorSpec.from_json, values[group])) for group in GROUPS
        )
        return cls(inputs, outputs, states, window=window, window_fill=window_fill)


GROUPS: Final = ("inputs", "outputs", "states")


def window_states(
    inputs: Iterable[TensorSpec], window: int, window_fill: str | None
) -> tuple[TensorSpec, ...]:
    """The states of a model with a window: the last `window` - 1 rows of each input, the oldest
    first, and where it matters how many of them the session has given. Raises InvalidSpec."""
    if type(window) is not int or not 2 <= window <= WINDOW_MAX:
        raise InvalidSpec(f"window is {window!r}, must be an integer in [2, {WINDOW_MAX}]")
    if window_fill not in WINDOW_FILLS:
        fills = ", ".join(WINDOW_FILLS)
        raise InvalidSpec(f"window_fill is {window_fill!r}, must be one of {fills}")
    rows = [
        TensorSpec(each.name + WINDOW, (window - 1, *each.shape), each.dtype) for each in inputs
    ]
    known = () if window_fill == "zeros" else (TensorSpec(KNOWN, (), "int64"),)
    return (*rows, *known)


def _check_window(spec: ModelSpec) -> None:
    window, fill = spec.window, spec.window_fill
    if spec.states != window_states(spec.inputs, window, fill):
        raise InvalidSpec(f"states: they are not those of a window of {window} rows")
    if fill == "grow" and spec.lstm is None:
        raise InvalidSpec("window_fill: grow is for kind lstm alone: take wait or zeros")


def _check_names(spec: ModelSpec) -> None:
    """Raises InvalidSpec where a name would have two meanings in the step graph or a request."""
    taken = {LENGTHS: "the name of the lengths of whole sequences"}
    if spec.window:
        taken[MISSING] = "the name of the rows that a window lacks"
    for state in spec.states:
        taken[state.name + NEXT] = f"the state {state.name} after the step"
        taken[state.name + INITIAL] = f"the initial value of the state {state.name}"
    for output in spec.outputs:
        taken[output.name + LAST] = f"the last time step of {output.name}"
    for what, tensors in (("input or state", spec.inputs + spec.states), ("output", spec.outputs)):
        for tensor in tensors:
            if (owner := taken.get(tensor.name)) is not None:
                raise InvalidSpec(f"{tensor.name} is {owner}: rename one of them")
            taken[tensor.name] = f"the name of another {what}"


@dataclass(frozen=True, slots=True)
class Tap:
    """The places of one recurrent layer in a step graph, for one call of it in a step.

    `layer` is the module's path in torch, such as "encoder.lstm2", and `index` says which of its
    num_layers this is, from 0. `input` names the value [*, B, input_size] that the layer reads.
    `states` are the states that it reads and writes, h first. `weights` names initializers: W and
    R always, B and P if the layer has biases and a projection.

    In a graph that others made, where a state is not always that of one layer, `layer` is the name
    of an LSTM, GRU or RNN node, which reads forwards. Instead of `states` the tap has the values
    [1, B, H] `before` and `after` the node, h first. It may read several rows in a step: then the
    first axis of `input` has them. `inside` is the first output of the Scan over the sessions whose
    body has the node; "": the graph has it. The values in a body have B = 1. Instead of each
    session, B may count several rows of each. A GRU without `linear_before_reset` resets h before
    it multiplies by R, as ONNX's does by default and torch's never does. Raises InvalidSpec.
    """

    layer: str
    index: int
    kind: LayerKind
    input: str
    states: tuple[str, ...]
    weights: Mapping[str, str]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    inside: str = ""
    linear_before_reset: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.layer, str) or type(self.index) is not int or self.index < 0:
            raise InvalidSpec(f"tap {self.layer!r} {self.index!r} must be a name and a number >= 0")
        if self.kind not in LAYER_STATES:
            raise InvalidSpec(f"{self}: {self.kind!r} is not one of {', '.join(LAYER_STATES)}")
        names = (self.input, *self.states, *self.before, *self.after, *self.weights.values())
        if not all(isinstance(name, str) and name for name in names):
            raise InvalidSpec(f"{self}: input, states and weights must be names, not {names!r}")
        self._check_states()
        if unknown := sorted(set(self.weights) - set(LAYER_WEIGHTS)):
            raise InvalidSpec(f"{self}: unknown weights {', '.join(unknown)}")
        if missing := sorted({"W", "R"} - set(self.weights)):
            raise InvalidSpec(f"{self}: no weights {', '.join(missing)}")
        if type(self.linear_before_reset) is not bool or not isinstance(self.inside, str):
            raise InvalidSpec(f"{self}: linear_before_reset must be a flag, and inside a name")

    def _check_states(self) -> None:
        count = LAYER_STATES[self.kind]
        if self.before or self.after:
            if self.states:
                raise InvalidSpec(f"{self}: it has states, and values before and after as well")
            for values in (self.before, self.after):
                if len(values) != count:
                    raise InvalidSpec(f"{self}: {self.kind} has {count} values, not {len(values)}")
        elif len(self.states) != count:
            raise InvalidSpec(f"{self}: {self.kind} has {count} states, not {len(self.states)}")

    def __str__(self) -> str:
        return f"tap {self.layer!r} {self.index}"

    def to_json(self) -> dict[str, Any]:
        """JSON values; from_json(to_json()) is equal to self."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values |= {name: list(values[name]) for name in ("states", "before", "after")}
        values |= {"weights": dict(self.weights)}
        # Manifests of an earlier release, which refuses unknown fields, do not have these.
        return {n: value for n, value in values.items() if value != TAP_DEFAULTS.get(n)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Tap:
        """Reads what to_json wrote. Raises InvalidSpec, also for unknown fields."""
        try:
            lists = {n: tuple(values[n]) for n in ("before", "after") if n in values}
            states, weights = tuple(values["states"]), dict(values["weights"])
            return cls(**{**values, **lists, "states": states, "weights": weights})
        except InvalidSpec:
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidSpec(f"malformed tap: {error}") from error


TAP_DEFAULTS: Final = {"before": [], "after": [], "inside": "", "linear_before_reset": True}


def tensor_messages_bytes(tensors: Iterable[TensorSpec]) -> int:
    """The most bytes that Tensor messages of these take."""
    return sum(TENSOR_FRAME_BYTES + each.wire_bytes for each in tensors)


def find_tensor(tensors: Iterable[TensorSpec], name: str) -> TensorSpec | None:
    """The tensor of that name."""
    return next((each for each in tensors if each.name == name), None)
