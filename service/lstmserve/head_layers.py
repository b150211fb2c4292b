"""The layers that the head of an nn.LSTM may have, as a spec names them. No arrays, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, cast, get_args

# torch's functions of these names, without parameters or with torch's defaults; softmax and
# log_softmax are over the features, gelu_tanh is gelu(approximate="tanh").
Activation = Literal[
    "relu",
    "tanh",
    "sigmoid",
    "softmax",
    "log_softmax",
    "silu",
    "gelu",
    "gelu_tanh",
    "softplus",
    "hardtanh",
]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
SIZE_MAX = 1 << 16


class InvalidSpec(ValueError):
    """No model can have this spec. The message names the field and what is allowed."""


@dataclass(frozen=True, slots=True)
class Linear:
    """torch.nn.Linear, y = x W^T + b, from the width before it to `out_features`."""

    out_features: int
    bias: bool = True

    def __post_init__(self) -> None:
        out, bias = self.out_features, self.bias
        if type(out) is not int or not 1 <= out <= SIZE_MAX or type(bias) is not bool:
            raise InvalidSpec(f"head: {self} must have out_features in [1, {SIZE_MAX}]")


@dataclass(frozen=True, slots=True)
class Elu:
    """torch.nn.ELU: x where x > 0, else alpha * (exp(x) - 1)."""

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not _is_finite(self.alpha):
            raise InvalidSpec(f"head: {self} must have a finite number as alpha")


@dataclass(frozen=True, slots=True)
class LeakyRelu:
    """torch.nn.LeakyReLU: x where x > 0, else negative_slope * x."""

    negative_slope: float = 0.01

    def __post_init__(self) -> None:
        if not _is_finite(self.negative_slope):
            raise InvalidSpec(f"head: {self} must have a finite number as negative_slope")


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """torch.nn.LayerNorm over the features: (x - mean) / sqrt(variance + eps) * weight + bias."""

    eps: float = 1e-5
    weight: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        if not _is_finite(self.eps) or self.eps <= 0:
            raise InvalidSpec(f"head: {self} must have a number above 0 as eps")
        if type(self.weight) is not bool or type(self.bias) is not bool:
            raise InvalidSpec(f"head: {self} must have true or false as weight and bias")


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """torch.nn.BatchNorm1d in eval mode: x * factor + offset, which its tensors give."""


HEAD_LAYERS: Final = (Linear, Elu, LeakyRelu, LayerNorm, BatchNorm)
HeadLayer = Linear | Elu | LeakyRelu | LayerNorm | BatchNorm | Activation
LAYER_KEYS: Final[Mapping[str, type[Elu | LeakyRelu | LayerNorm | BatchNorm]]] = {
    "elu": Elu,
    "leaky_relu": LeakyRelu,
    "layer_norm": LayerNorm,
    "batch_norm": BatchNorm,
}
FLOAT32_MAX: Final = (2 - 2**-23) * 2.0**127


def _is_finite(value: object) -> bool:
    """Whether float32 holds the number."""
    return type(value) is float and abs(value) <= FLOAT32_MAX


def check_layer(layer: HeadLayer) -> None:
    """Raises InvalidSpec for what is no layer; the classes check their own fields."""
    if not isinstance(layer, HEAD_LAYERS) and layer not in ACTIVATIONS:
        raise InvalidSpec(f"head: {layer!r} is not one of {', '.join(ACTIVATIONS)}")


def layer_name(layer: HeadLayer) -> str:
    """The layer as a function's name, such as leaky_relu."""
    if isinstance(layer, str):
        return layer
    if isinstance(layer, Linear):
        return "linear"
    return next(key for key, kind in LAYER_KEYS.items() if kind is type(layer))


def layer_json(layer: HeadLayer) -> Any:
    """JSON values of a layer; layer_of_json(layer_json(layer)) is equal to it."""
    if isinstance(layer, str):
        return layer
    if isinstance(layer, Linear):
        return {"linear": layer.out_features, "bias": layer.bias}
    return {layer_name(layer): {each.name: getattr(layer, each.name) for each in fields(layer)}}


def layer_of_json(value: Any) -> HeadLayer:
    """Reads what layer_json wrote. Raises InvalidSpec, TypeError, KeyError and ValueError."""
    if isinstance(value, str):
        return cast(Activation, value)  # check_layer() holds it to ACTIVATIONS
    if "linear" in value:
        return Linear(value["linear"], value["bias"])
    ((key, values),) = value.items()
    return LAYER_KEYS[key](**values)
