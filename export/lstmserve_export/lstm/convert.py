"""Turns torch's tensors into those of lstmserve.graph. Computes nothing else, and does no I/O."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lstmserve.graph import Weights, check_weights
from lstmserve.graph.weights import INITIAL_STATE, suffixes
from lstmserve.spec import LstmSpec
from lstmserve_export.lstm.network import Network
from lstmserve_export.refusal import Refused

Array = npt.NDArray[np.float32]
# torch keeps the gates as i, f, g, o; ONNX as i, o, f, c (its c is torch's g).
GATE_ORDER = (0, 3, 1, 2)


def convert(network: Network, spec: LstmSpec) -> Weights:
    """The float32 tensors of weight_shapes(spec). Raises Refused if float32 cannot hold one."""
    weights: dict[str, Array] = {}
    if network.embedding is not None:
        weights["embedding"] = _array(network.embedding.weight)
    for side, norm in (("input", network.input_norm), ("output", network.output_norm)):
        if norm is not None:
            weights[f"{side}.mean"] = _narrow(norm.mean)
            weights[f"{side}.scale"] = _narrow(norm.scale)
    layer_weights = _projected if spec.proj_size else _plain
    for layer in range(spec.num_layers):
        weights |= layer_weights(network.lstm, spec, layer)
    for index, module in enumerate(network.head):
        weights |= {f"head.{index}.{part}": each for part, each in _of_layer(module)}
    if network.initial_state is not None:
        for state, values in zip(spec.states, network.initial_state, strict=True):
            weights[INITIAL_STATE + state.name] = _narrow(values)
    try:
        check_weights(spec, weights)
    except ValueError as error:
        raise Refused(f"as float32, {error}: correct the weights or the scales") from error
    return weights


def _of_layer(module: nn.Module) -> Iterator[tuple[str, Array]]:
    """The tensors of a layer of the head, without its name."""
    match module:
        case nn.Linear():
            yield "weight", _array(module.weight).T.copy()
            if module.bias is not None:
                yield "bias", _array(module.bias)
        case nn.LayerNorm():
            for part in ("weight", "bias"):
                if (tensor := getattr(module, part)) is not None:
                    yield part, _array(tensor)
        case nn.BatchNorm1d():
            assert module.running_mean is not None
            assert module.running_var is not None
            mean, variance = _floats(module.running_mean), _floats(module.running_var)
            factor = 1 / np.sqrt(variance + module.eps)
            offset = -mean * factor
            if module.affine:
                weight = _floats(module.weight)
                factor, offset = factor * weight, offset * weight + _floats(module.bias)
            yield "factor", _narrow(factor)
            yield "offset", _narrow(offset)


def _plain(lstm: nn.LSTM, spec: LstmSpec, layer: int) -> dict[str, Array]:
    ends = suffixes(spec)
    weights = {
        f"lstm.{layer}.{kind}": np.stack([_gates(lstm, f"{part}_l{layer}{end}") for end in ends])
        for kind, part in (("W", "weight_ih"), ("R", "weight_hh"))
    }
    if spec.bias:
        halves = [
            [_gates(lstm, f"{part}_l{layer}{end}") for part in ("bias_ih", "bias_hh")]
            for end in ends
        ]
        weights[f"lstm.{layer}.B"] = np.stack([np.concatenate(pair) for pair in halves])
    return weights


def _projected(lstm: nn.LSTM, spec: LstmSpec, layer: int) -> dict[str, Array]:
    weights: dict[str, Array] = {}
    for end in suffixes(spec):
        prefix, suffix = f"lstm.{layer}.", f"_l{layer}{end}"
        weights[f"{prefix}W{end}"] = _gates(lstm, f"weight_ih{suffix}").T.copy()
        weights[f"{prefix}R{end}"] = _gates(lstm, f"weight_hh{suffix}").T.copy()
        if spec.bias:
            both = _gates(lstm, f"bias_ih{suffix}") + _gates(lstm, f"bias_hh{suffix}")
            weights[f"{prefix}B{end}"] = both
        weights[f"{prefix}P{end}"] = _array(getattr(lstm, f"weight_hr{suffix}")).T.copy()
    return weights


def _gates(lstm: nn.LSTM, name: str) -> Array:
    """The named tensor [4H, ...] with its gates in ONNX's order."""
    gates = np.split(_array(getattr(lstm, name)), 4)
    return np.concatenate([gates[index] for index in GATE_ORDER])


def _array(tensor: torch.Tensor) -> Array:
    return _narrow(_floats(tensor))


def _floats(tensor: torch.Tensor) -> npt.NDArray[np.float64]:
    return tensor.detach().cpu().to(torch.float64).numpy()


def _narrow(array: npt.NDArray[np.float64]) -> Array:
    with np.errstate(over="ignore"):  # becomes inf, which check_weights refuses by name
        return array.astype(np.float32)
