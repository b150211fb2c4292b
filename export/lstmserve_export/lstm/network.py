"""The network to export, as torch modules: y = head(lstm(x)). Never reads or writes a file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lstmserve.head_layers import (
    Activation,
    BatchNorm,
    Elu,
    HeadLayer,
    LayerNorm,
    LeakyRelu,
    Linear,
)
from lstmserve.spec import InvalidSpec, LstmSpec
from lstmserve_export.refusal import Refused, shorten

Floats = npt.NDArray[np.float64]
ACTIVATIONS: Final[Mapping[str, Callable[[], nn.Module]]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softmax": partial(nn.Softmax, dim=-1),
    "log_softmax": partial(nn.LogSoftmax, dim=-1),
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "softplus": nn.Softplus,
    "hardtanh": nn.Hardtanh,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
}
"""How a flag names an activation -> the module with torch's defaults, over the features."""

# The modules whose layer in the spec has no parameters.
PLAIN: Final[Mapping[type[nn.Module], Activation]] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.Softmax: "softmax",
    nn.LogSoftmax: "log_softmax",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Softplus: "softplus",
    nn.Hardtanh: "hardtanh",
}
SERVED: Final = (nn.Linear, nn.ELU, nn.LeakyReLU, nn.LayerNorm, nn.BatchNorm1d, *PLAIN)
AS_IT_IS: Final = "export the module around LSTM and head as it is, export(module, example=x, ...)"


CHOOSE: Final = "choose some with --{side}-columns, or 'columns' in Python"


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

    `head` holds only modules that layer_of() takes; it reads rows [*, width]. `residual` has the
    column of x that is added to each output of the head, x as the LSTM reads it. `initial_state`
    are h0 [L, state] and c0 [L, H] of a new session, None for zeros. `notes` are remarks for the
    summary and the manifest.
    """

    lstm: nn.LSTM
    head: nn.Sequential = field(default_factory=nn.Sequential)
    embedding: nn.Embedding | None = None
    input_norm: Norm | None = None
    output_norm: Norm | None = None
    residual: tuple[int, ...] = ()
    initial_state: tuple[Floats, Floats] | None = None
    notes: tuple[str, ...] = ()


def make_activation(name: str) -> nn.Module:
    """The module of an activation that a flag names."""
    return ACTIVATIONS[name]()


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
    """A copy of a head: a module that layer_of() takes, nn.Sequential of those, or None.

    Dropout and Identity do nothing when a model is served, and are left out. Raises Refused.
    """
    layers = [] if module is None else [copy.deepcopy(layer).cpu() for layer in _flat(module)]
    for layer in layers:
        if isinstance(layer, (nn.Softmax, nn.LogSoftmax)):
            layer.dim = -1  # the head reads rows, without the axis of time
    return nn.Sequential(*layers).eval().requires_grad_(False)


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    if type(module) is nn.Sequential:
        for child in module:
            yield from _flat(child)
    elif not isinstance(module, (nn.Dropout, nn.Identity)):
        layer_of(module)
        yield module


def layer_of(module: nn.Module) -> HeadLayer:
    """The layer of the spec that the module is. Raises Refused."""
    if type(module) not in SERVED:
        raise Refused(
            f"head: {type(module).__name__} is not served: {AS_IT_IS}, or use nn.Linear, or "
            "nn.Sequential of Linear, activations, LayerNorm, BatchNorm1d and Dropout "
            "(docs/EXPORT.md lists them)"
        )
    if fault := _fault(module):
        raise Refused(f"head: {module} {fault}, or {AS_IT_IS}")
    try:
        return _layer_of(module)
    except InvalidSpec as error:
        raise Refused(f"lstmserve cannot serve this network: {error}") from error


def _layer_of(module: nn.Module) -> HeadLayer:
    match module:
        case nn.Linear():
            return Linear(module.out_features, module.bias is not None)
        case nn.ELU():
            return Elu(float(module.alpha))
        case nn.LeakyReLU():
            return LeakyRelu(float(module.negative_slope))
        case nn.LayerNorm():
            # torch's stubs do not say that weight and bias may be None.
            weight, bias = (getattr(module, name) is not None for name in ("weight", "bias"))
            return LayerNorm(float(module.eps), weight, bias)
        case nn.BatchNorm1d():
            return BatchNorm()
        case nn.GELU(approximate="tanh"):
            return "gelu_tanh"
    return PLAIN[type(module)]


def _fault(module: nn.Module) -> str:
    """What no layer of the spec has of a module of SERVED, and the way out; "" if nothing."""
    match module:
        case nn.Softmax() | nn.LogSoftmax() if module.dim not in (-1, 2):
            return "is not over the features: use dim=-1"
        case nn.LayerNorm() if len(module.normalized_shape) != 1:
            return "is not over the features alone: use nn.LayerNorm(width)"
        case nn.BatchNorm1d() if module.running_mean is None:
            return "has no running statistics: train it with track_running_stats=True"
        case nn.Softplus() if (module.beta, module.threshold) != (1, 20):
            return "is not torch's default: use nn.Softplus()"
        case nn.Hardtanh() if (module.min_val, module.max_val) != (-1, 1):
            return "is not from -1 to 1: use nn.Hardtanh()"
    return ""


def take_residual(columns: Sequence[int] | str, lstm: nn.LSTM) -> tuple[int, ...]:
    """Columns of x, or all of them for "all". Raises Refused."""
    if isinstance(columns, str):
        if columns != "all":
            raise Refused(f'residual is {columns!r}, must be "all" or a list of columns of x')
        return tuple(range(lstm.input_size))
    return tuple(map(int, columns))


def take_state(
    state: tuple[npt.ArrayLike, npt.ArrayLike] | None, lstm: nn.LSTM
) -> tuple[Floats, Floats] | None:
    """h0 [L, state] and c0 [L, H] of h0 and c0, which may have an axis of a batch of one.

    None for zeros, from which every session begins anyway. Raises Refused.
    """
    if state is None:
        return None
    layers = lstm.num_layers * (1 + lstm.bidirectional)
    found = []
    for name, part, width in zip(
        ("h0", "c0"), state, (lstm.proj_size or lstm.hidden_size, lstm.hidden_size), strict=True
    ):
        array = torch.as_tensor(part).detach().cpu().to(torch.float64).numpy()
        if array.shape not in ((layers, width), (layers, 1, width)):
            raise Refused(
                f"initial_state: {name} has shape {list(array.shape)}, must be "
                f"{[layers, width]} or {[layers, 1, width]}"
            )
        found.append(array.reshape(layers, width))
    h0, c0 = found
    return (h0, c0) if h0.any() or c0.any() else None


def first_states(network: Network, spec: LstmSpec, count: int) -> tuple[Floats, Floats]:
    """h0 [L, count, state] and c0 [L, count, H], from which new sessions begin."""
    own = network.initial_state or tuple(np.zeros(each.shape) for each in spec.states)
    h0, c0 = (np.repeat(each[:, np.newaxis], count, axis=1) for each in own)
    return h0, c0


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
            residual=network.residual,
            initial_state=network.initial_state is not None,
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
    for module in network.head:
        reads = _width_of(module)
        if reads not in (None, width):
            raise Refused(
                f"head: a {type(module).__name__} reads {reads} values, but {width} come to it: "
                "name the head that follows this LSTM"
            )
        layers.append(layer_of(module))
        width = module.out_features if isinstance(module, nn.Linear) else width
    return tuple(layers)


def _width_of(module: nn.Module) -> int | None:
    """How many values the module reads; None for any number."""
    match module:
        case nn.Linear():
            return module.in_features
        case nn.LayerNorm():
            return module.normalized_shape[0]
        case nn.BatchNorm1d():
            return module.num_features
    return None


def _check_norm(side: str, norm: Norm | None, width: int) -> None:
    if norm is None or len(norm.mean) == width:
        return
    hint = f"; {CHOOSE.format(side=side)}" if len(norm.mean) > width else ""
    raise Refused(
        f"the {side} scaler (or mean and scale) has {len(norm.mean)} columns, must have {width}"
        f"{hint}"
    )


def to_dtype(network: Network, dtype: torch.dtype) -> Network:
    """A copy that computes in `dtype`."""
    return replace(
        network,
        lstm=copy.deepcopy(network.lstm).to(dtype),
        head=copy.deepcopy(network.head).to(dtype),
        embedding=copy.deepcopy(network.embedding).to(dtype) if network.embedding else None,
    )
