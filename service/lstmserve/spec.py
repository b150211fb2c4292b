"""The spec of a model: its sizes and the layers after the LSTM. No arrays, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

Activation = Literal["relu", "tanh", "sigmoid", "softmax"]
ACTIVATIONS: tuple[Activation, ...] = ("relu", "tanh", "sigmoid", "softmax")
SIZE_MAX = 1 << 16
LAYERS_MAX = 64


class InvalidSpec(ValueError):
    """No model can have this spec. The message names the field and what is allowed."""


@dataclass(frozen=True, slots=True)
class Linear:
    """torch.nn.Linear, y = x W^T + b, from the width before it to `out_features`."""

    out_features: int
    bias: bool = True


HeadLayer = Linear | Activation


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """y = head(lstm(x)), in torch.nn.LSTM's names.

    `head` is applied to every time step, in order; empty: y is the LSTM's own output.
    `num_embeddings` > 0: the input is tokens [T] and `input_size` is the embedding's width.
    `input_norm`: x becomes (x - mean) / scale; `output_norm`: y becomes y * scale + mean.
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
        for name in ("bidirectional", "bias", "input_norm", "output_norm"):
            if type(value := getattr(self, name)) is not bool:
                raise InvalidSpec(f"{name} is {value!r}, must be true or false")
        for layer in self.head:
            if isinstance(layer, Linear):
                out, bias = layer.out_features, layer.bias
                if type(out) is not int or not 1 <= out <= SIZE_MAX or type(bias) is not bool:
                    raise InvalidSpec(f"head: {layer} must have out_features in [1, {SIZE_MAX}]")
            elif layer not in ACTIVATIONS:
                raise InvalidSpec(f"head: {layer!r} is not one of {', '.join(ACTIVATIONS)}")
        if self.num_embeddings and self.input_norm:
            raise InvalidSpec("input_norm: a model that takes tokens has no x to normalise")

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

    def layer_input_size(self, layer: int) -> int:
        """Width of what LSTM layer `layer` (from 0) reads."""
        return self.input_size if layer == 0 else self.lstm_output_size

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values; from_json(to_json()) is equal to self."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["head"] = [
            {"linear": layer.out_features, "bias": layer.bias}
            if isinstance(layer, Linear)
            else layer
            for layer in self.head
        ]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Reads what to_json wrote. Raises InvalidSpec, also for unknown fields."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InvalidSpec(f"unknown fields: {', '.join(unknown)}")
        try:
            head = tuple(_head_layer(value) for value in values.get("head", ()))
            return cls(**{**values, "head": head})
        except (TypeError, KeyError) as error:
            raise InvalidSpec(f"malformed: {error}") from error


def _head_layer(value: Any) -> HeadLayer:
    if isinstance(value, str):
        return value  # type: ignore[return-value]  # __post_init__ holds it to ACTIVATIONS
    return Linear(value["linear"], value["bias"])
