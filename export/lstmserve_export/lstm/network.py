"""The network to export, as torch modules: y = head(lstm(x)). Never reads or writes a file."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lstmserve.spec import Activation, HeadLayer, InvalidSpec, Linear, LstmSpec
from lstmserve_export.refusal import Refused, shorten

Floats = npt.NDArray[np.float64]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softmax": nn.Softmax,
}


@dataclass(frozen=True, slots=True)
class Norm:
    """mean and scale, float64 [width] each. Input: (x - mean) / scale; output: y * scale + mean.

    `columns` are the names of the columns, if they are known.
    """

    mean: Floats
    scale: Floats
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Network:
    """A trained network on the CPU, in eval mode, batch first. No other code has its modules.

    `head` holds nn.Linear and the modules of ACTIVATIONS only. `notes` are remarks for the summary
    and the manifest.
    """

    lstm: nn.LSTM
    head: nn.Sequential = field(default_factory=nn.Sequential)
    embedding: nn.Embedding | None = None
    input_norm: Norm | None = None
    output_norm: Norm | None = None
    notes: tuple[str, ...] = ()


def make_activation(name: str) -> nn.Module:
    """The module of an activation of the spec; softmax is over the features."""
    return nn.Softmax(dim=-1) if name == "softmax" else ACTIVATIONS[cast(Activation, name)]()


def take_lstm(module: nn.Module) -> nn.LSTM:
    """A copy of an nn.LSTM, or of an nn.LSTMCell as a one-layer nn.LSTM. Raises Refused."""
    if isinstance(module, nn.LSTMCell):
        cell = module
        lstm = nn.LSTM(cell.input_size, cell.hidden_size, bias=cell.bias).to(cell.weight_ih.dtype)
        state = {f"{name}_l0": tensor for name, tensor in cell.state_dict().items()}
    elif isinstance(module, nn.LSTM):
        # Copies the tensors: a deep copy fails on parametrised modules, and would copy hooks.
        lstm = nn.LSTM(
            module.input_size,
            module.hidden_size,
            module.num_layers,
            bias=module.bias,
            bidirectional=module.bidirectional,
            proj_size=module.proj_size,
        ).to(next(module.parameters()).dtype)
        state = module.state_dict()
    else:
        raise Refused(
            f"{type(module).__name__} is not served: export takes an nn.LSTM or nn.LSTMCell"
        )
    if unknown := sorted(set(state) ^ set(lstm.state_dict())):
        raise Refused(
            f"the LSTM's tensors are not nn.LSTM's own ({shorten(unknown)}): remove weight norm, "
            "spectral norm and other parametrizations (torch.nn.utils.parametrize."
            "remove_parametrizations), or anything else added to it"
        )
    lstm.load_state_dict(state)
    lstm.batch_first = True
    return lstm.eval().requires_grad_(False)


def take_head(module: nn.Module | None) -> nn.Sequential:
    """A copy of a head: nn.Linear, nn.Sequential of what the spec knows, or None. Raises Refused.

    Dropout and Identity do nothing when a model is served, and are left out.
    """
    layers = [] if module is None else list(_flat(module))
    return (
        nn.Sequential(*(copy.deepcopy(layer).cpu() for layer in layers))
        .eval()
        .requires_grad_(False)
    )


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    if type(module) is nn.Sequential:
        for child in module:
            yield from _flat(child)
    elif isinstance(module, (nn.Dropout, nn.Identity)):
        return
    elif type(module) is nn.Softmax and module.dim not in (-1, 2):
        raise Refused(f"head: Softmax(dim={module.dim}) is not over the features: use dim=-1")
    elif type(module) in (nn.Linear, *ACTIVATIONS.values()):
        yield module
    else:
        raise Refused(
            f"head: {type(module).__name__} is not served: export the module around LSTM and head "
            "as it is, export(module, example=x, ...), or use nn.Linear, or nn.Sequential of "
            "Linear, ReLU, Tanh, Sigmoid, Softmax, Dropout"
        )


def take_embedding(module: nn.Embedding | None) -> nn.Embedding | None:
    """A copy of an embedding, or None. Raises Refused."""
    if module is None:
        return None
    if module.max_norm is not None:
        raise Refused(
            "embedding: max_norm rescales rows at run time: renormalise, and set it to None"
        )
    table = nn.Embedding(module.num_embeddings, module.embedding_dim).to(module.weight.dtype)
    table.load_state_dict({"weight": module.weight})
    return table.eval().requires_grad_(False)


def describe(network: Network) -> LstmSpec:
    """The network's spec. Raises Refused if its parts do not fit each other."""
    lstm, embedding = network.lstm, network.embedding
    if embedding is not None and embedding.embedding_dim != lstm.input_size:
        raise Refused(
            f"the embedding is {embedding.embedding_dim} wide, the LSTM reads {lstm.input_size}: "
            "name another embedding or LSTM"
        )
    try:
        spec = LstmSpec(
            input_size=lstm.input_size,
            hidden_size=lstm.hidden_size,
            num_layers=lstm.num_layers,
            proj_size=lstm.proj_size,
            bidirectional=lstm.bidirectional,
            bias=lstm.bias,
            head=_head_layers(network),
            num_embeddings=embedding.num_embeddings if embedding is not None else 0,
            input_norm=network.input_norm is not None,
            output_norm=network.output_norm is not None,
        )
    except InvalidSpec as error:
        raise Refused(f"lstmserve cannot serve this network: {error}") from error
    _check_norm("input", network.input_norm, spec.input_size)
    _check_norm("output", network.output_norm, spec.output_size)
    return spec


def _head_layers(network: Network) -> tuple[HeadLayer, ...]:
    lstm = network.lstm
    width = (lstm.proj_size or lstm.hidden_size) * (1 + lstm.bidirectional)
    layers: list[HeadLayer] = []
    names = {kind: name for name, kind in ACTIVATIONS.items()}
    for module in network.head:
        if not isinstance(module, nn.Linear):
            layers.append(names[type(module)])
            continue
        if module.in_features != width:
            raise Refused(
                f"head: a Linear reads {module.in_features} values, but {width} come to it: "
                "name the head that follows this LSTM"
            )
        width = module.out_features
        layers.append(Linear(width, module.bias is not None))
    return tuple(layers)


def _check_norm(side: str, norm: Norm | None, width: int) -> None:
    if norm is None or len(norm.mean) == width:
        return
    hint = f": choose with --{side}-columns" if len(norm.mean) > width else ""
    raise Refused(
        f"the {side} scaler (or mean and scale) has {len(norm.mean)} columns, must have {width}"
        f"{hint}"
    )


def to_dtype(network: Network, dtype: torch.dtype) -> Network:
    """A copy that computes in `dtype`."""
    return Network(
        lstm=copy.deepcopy(network.lstm).to(dtype),
        head=copy.deepcopy(network.head).to(dtype),
        embedding=copy.deepcopy(network.embedding).to(dtype) if network.embedding else None,
        input_norm=network.input_norm,
        output_norm=network.output_norm,
    )
