"""Defines the names, shapes and order of a model's tensors. Builds no graph.

Layer l has, per direction (the second one with the suffix `_reverse`), gates in ONNX's order
i, o, f, c. H is hidden_size, P is proj_size, I is the width that the layer reads, D is the number
of directions. Without a projection the two directions are stacked, as ONNX's LSTM wants them:
    lstm.l.W [D, 4H, I]   lstm.l.R [D, 4H, H]   lstm.l.B [D, 8H] (input biases, then recurrent)
With a projection the layer is a Scan of MatMuls, which want 2-D constants:
    lstm.l.W [I, 4H]   lstm.l.R [P, 4H]   lstm.l.B [4H] (the sum of both)   lstm.l.P [H, P]
Head layer k (counted over all head layers) has head.k.weight [in, out] and head.k.bias [out] if
it is a Linear, head.k.weight [in] and head.k.bias [in] if it is a LayerNorm, head.k.factor [in] and
head.k.offset [in] if it is a BatchNorm.
A learned initial state is initial.h [L*D, state], initial.c [L*D, H].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from lstmserve.head_layers import BatchNorm, HeadLayer, LayerNorm, Linear
from lstmserve.spec import LstmSpec, WindowFill

INITIAL_STATE: Final = "initial."  # the tensor initial.NAME is the state NAME of a new session

Weights = Mapping[str, npt.NDArray[np.float32]]
"""Name -> float32 tensor, with exactly the names and shapes of weight_shapes()."""
Window = tuple[int, WindowFill | None]


def suffixes(spec: LstmSpec) -> tuple[str, ...]:
    """The endings of the tensor names, one per direction."""
    return ("", "_reverse") if spec.bidirectional else ("",)


def weight_shapes(spec: LstmSpec) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a model with this spec, in canonical order."""
    shapes: dict[str, tuple[int, ...]] = {}
    if spec.num_embeddings:
        shapes["embedding"] = (spec.num_embeddings, spec.input_size)
    if spec.input_norm:
        shapes |= {"input.mean": (spec.input_size,), "input.scale": (spec.input_size,)}
    for layer in range(spec.num_layers):
        shapes |= _projected(spec, layer) if spec.proj_size else _plain(spec, layer)
    width = spec.lstm_output_size
    for index, part in enumerate(spec.head):
        shapes |= {f"head.{index}.{kind}": shape for kind, shape in _of_layer(part, width)}
        width = part.out_features if isinstance(part, Linear) else width
    if spec.output_norm:
        shapes |= {"output.mean": (spec.output_size,), "output.scale": (spec.output_size,)}
    if spec.initial_state:
        shapes |= {f"{INITIAL_STATE}{state.name}": state.shape for state in spec.states}
    return shapes


def _of_layer(layer: HeadLayer, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of a layer of the head, without its name, and their shapes."""
    match layer:
        case Linear():
            yield "weight", (width, layer.out_features)
            if layer.bias:
                yield "bias", (layer.out_features,)
        case LayerNorm():
            if layer.weight:
                yield "weight", (width,)
            if layer.bias:
                yield "bias", (width,)
        case BatchNorm():
            yield "factor", (width,)
            yield "offset", (width,)


def _plain(spec: LstmSpec, layer: int) -> dict[str, tuple[int, ...]]:
    directions, gates = spec.num_directions, 4 * spec.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        f"lstm.{layer}.W": (directions, gates, spec.layer_input_size(layer)),
        f"lstm.{layer}.R": (directions, gates, spec.hidden_size),
    }
    if spec.bias:
        shapes[f"lstm.{layer}.B"] = (directions, 2 * gates)
    return shapes


def _projected(spec: LstmSpec, layer: int) -> dict[str, tuple[int, ...]]:
    gates = 4 * spec.hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    for suffix in suffixes(spec):
        shapes[f"lstm.{layer}.W{suffix}"] = (spec.layer_input_size(layer), gates)
        shapes[f"lstm.{layer}.R{suffix}"] = (spec.proj_size, gates)
        if spec.bias:
            shapes[f"lstm.{layer}.B{suffix}"] = (gates,)
        shapes[f"lstm.{layer}.P{suffix}"] = (spec.hidden_size, spec.proj_size)
    return shapes


def check_weights(spec: LstmSpec, weights: Weights) -> None:
    """Raises ValueError unless names, shapes and dtypes are the spec's and all values finite."""
    shapes = weight_shapes(spec)
    if missing := sorted(set(shapes) - set(weights)):
        raise ValueError(f"missing tensors: {', '.join(missing)}")
    if unknown := sorted(set(weights) - set(shapes)):
        raise ValueError(f"unknown tensors: {', '.join(unknown)}")
    for name, shape in shapes.items():
        tensor = weights[name]
        if tensor.dtype != np.float32 or tensor.shape != shape:
            raise ValueError(
                f"{name} is {tensor.dtype}{list(tensor.shape)}, must be float32{list(shape)}"
            )
        if not np.isfinite(tensor).all():
            raise ValueError(f"{name} has NaN or infinite values")
        if name.endswith(".scale") and not tensor.all():
            raise ValueError(f"{name} has a zero")


def fingerprint(spec: LstmSpec, weights: Weights, window: Window = (0, None)) -> str:
    """sha256 in hex over the spec and the tensors in canonical order, not over the graph.

    `window` is ModelSpec's window and window_fill.

    Two models with the same fingerprint compute the same function and may exchange session states.
    """
    digest = hashlib.sha256(json.dumps(spec.to_json(), sort_keys=True).encode())
    for name, shape in weight_shapes(spec).items():
        digest.update(f"{name}{list(shape)}".encode())
        digest.update(np.ascontiguousarray(weights[name], dtype="<f4").tobytes())
    if window[0]:
        digest.update(json.dumps({"window": window}).encode())
    return digest.hexdigest()
