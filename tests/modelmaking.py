"""Models for tests: random weights, and what they must give, from a float64 LSTM in numpy.

It is independent of lstmserve.graph and of onnxruntime, because it is there to check them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from lstmserve.golden import Golden, dump_golden
from lstmserve.graph import Weights, build_portable, weight_shapes
from lstmserve.graph.weights import Window, fingerprint
from lstmserve.head_layers import BatchNorm, Elu, LayerNorm, LeakyRelu, Linear
from lstmserve.lstm_golden import LstmGolden, dump_lstm_golden
from lstmserve.manifest import GOLDEN, MODEL, Manifest, sha256, write_model
from lstmserve.spec import MISSING, LstmSpec, ModelSpec

Floats = npt.NDArray[np.float64]

TINY = LstmSpec(input_size=3, hidden_size=5, num_layers=2, head=(Linear(2),))


def random_weights(spec: LstmSpec, seed: int) -> Weights:
    """Uniform in +-1/sqrt(hidden_size), as torch starts an LSTM; scales are near 1."""
    rng = np.random.default_rng(seed)
    bound = 1 / math.sqrt(spec.hidden_size)
    weights = {}
    for name, shape in weight_shapes(spec).items():
        low, high = (0.5, 2.0) if name.endswith(".scale") else (-bound, bound)
        weights[name] = rng.uniform(low, high, shape).astype(np.float32)
    return weights


def random_input(spec: LstmSpec, shape: tuple[int, ...], seed: int) -> npt.NDArray[np.generic]:
    """x float32 [*shape, input_size], or tokens int64 [*shape] for a model with an embedding."""
    rng = np.random.default_rng(seed)
    if spec.num_embeddings:
        return rng.integers(0, spec.num_embeddings, shape)
    return rng.standard_normal((*shape, spec.input_size)).astype(np.float32)


def random_state(
    spec: LstmSpec, batch: int, seed: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """h float32 [L*D, batch, state_size], c float32 [L*D, batch, hidden_size]."""
    rng = np.random.default_rng(seed)
    layers = spec.num_layers * spec.num_directions
    h = rng.uniform(-1, 1, (layers, batch, spec.state_size)).astype(np.float32)
    return h, rng.uniform(-1, 1, (layers, batch, spec.hidden_size)).astype(np.float32)


def reference(
    spec: LstmSpec,
    weights: Weights,
    x: npt.NDArray[np.generic],
    h0: npt.NDArray[np.generic] | None = None,
    c0: npt.NDArray[np.generic] | None = None,
) -> tuple[Floats, Floats, Floats]:
    """One sequence in float64: y, hn, cn = head(lstm(x, (h0, c0))).

    x [T, I] or tokens [T]; h0, hn [L*D, state]; c0, cn [L*D, H]; y [T, O]; None: a new session's.
    """
    w = {name: tensor.astype(np.float64) for name, tensor in weights.items()}
    hn, cn = (
        np.array(w.get(f"initial.{own.name}", np.zeros(own.shape)) if part is None else part, float)
        for own, part in zip(spec.states, (h0, c0), strict=True)
    )
    value = w["embedding"][x.astype(np.int64)] if spec.num_embeddings else x.astype(np.float64)
    if spec.input_norm:
        value = (value - w["input.mean"]) / w["input.scale"]
    first = value
    for layer in range(spec.num_layers):
        outputs = []
        for direction in range(spec.num_directions):
            row = layer * spec.num_directions + direction
            order = slice(None, None, -1 if direction else 1)
            gates = _direction(spec, w, layer, direction)
            out, hn[row], cn[row] = _lstm(*gates, value[order], hn[row], cn[row])
            outputs.append(out[order])
        value = np.concatenate(outputs, axis=1)
    y = _head(spec, w, value)
    y = y + first[:, list(spec.residual)] if spec.residual else y
    return y * w["output.scale"] + w["output.mean"] if spec.output_norm else y, hn, cn


def _direction(
    spec: LstmSpec, w: dict[str, Floats], layer: int, direction: int
) -> tuple[Floats, Floats, Floats, Floats | None]:
    """W [4H, I], R [4H, state], b [4H] and P [H, P] or None of one direction of a layer."""
    prefix, gates = f"lstm.{layer}.", 4 * spec.hidden_size
    if spec.proj_size:
        end = "_reverse" if direction else ""
        bias = w[f"{prefix}B{end}"] if spec.bias else np.zeros(gates)
        return w[f"{prefix}W{end}"].T, w[f"{prefix}R{end}"].T, bias, w[f"{prefix}P{end}"]
    bias = w[f"{prefix}B"][direction] if spec.bias else np.zeros(2 * gates)
    return w[f"{prefix}W"][direction], w[f"{prefix}R"][direction], bias[:gates] + bias[gates:], None


def _lstm(
    w: Floats, r: Floats, bias: Floats, p: Floats | None, x: Floats, h: Floats, c: Floats
) -> tuple[Floats, Floats, Floats]:
    """torch.nn.LSTM's formulas, one time step after the other; gates in the order i, o, f, g."""
    outputs = np.empty((len(x), len(h)))
    for t, row in enumerate(x):
        i, o, f, g = np.split(w @ row + r @ h + bias, 4)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        shown = _sigmoid(o) * np.tanh(c)
        h = shown if p is None else shown @ p
        outputs[t] = h
    return outputs, h, c


def _sigmoid(z: Floats) -> Floats:
    return 1 / (1 + np.exp(-z))


def _softmax(z: Floats) -> Floats:
    powers = np.exp(z - z.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _gelu(z: Floats) -> Floats:
    return z / 2 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))


def _gelu_tanh(z: Floats) -> Floats:
    return z / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


FUNCTIONS: Final[Mapping[str, Callable[[Floats], Floats]]] = {
    "relu": lambda z: np.maximum(z, 0),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "softmax": _softmax,
    "log_softmax": lambda z: np.log(_softmax(z)),
    "silu": lambda z: z * _sigmoid(z),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "softplus": lambda z: np.logaddexp(0, z),
    "hardtanh": lambda z: np.clip(z, -1, 1),
}


def _head(spec: LstmSpec, w: dict[str, Floats], value: Floats) -> Floats:
    for index, layer in enumerate(spec.head):
        name = f"head.{index}"
        match layer:
            case Linear():
                value = value @ w[f"{name}.weight"] + w.get(f"{name}.bias", 0)
            case Elu(alpha):
                value = np.where(value > 0, value, alpha * np.expm1(np.minimum(value, 0)))
            case LeakyRelu(slope):
                value = np.where(value > 0, value, slope * value)
            case LayerNorm(eps):
                centred = value - value.mean(axis=-1, keepdims=True)
                value = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
                value = value * w.get(f"{name}.weight", 1) + w.get(f"{name}.bias", 0)
            case BatchNorm():
                value = value * w[f"{name}.factor"] + w[f"{name}.offset"]
            case _:
                value = FUNCTIONS[layer](value)
    return value


def windows(
    spec: ModelSpec, weights: Weights, x: npt.NDArray[np.generic]
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """y [T, O] of a new session of a model with a window, and how many rows each window lacks.

    y is 0 where a step waits for more rows. x [T, I] or tokens [T].
    """
    assert spec.lstm is not None
    size = spec.window
    lacks = np.maximum(size - 1 - np.arange(len(x)), 0)
    y = np.zeros((len(x), spec.lstm.output_size))
    for t in range(len(x)):
        rows = x[max(0, t + 1 - size) : t + 1]
        if spec.window_fill == "zeros":
            rows = np.concatenate([np.zeros((lacks[t], *x.shape[1:]), x.dtype), rows])
        if not (spec.waits and lacks[t]):
            y[t] = reference(spec.lstm, weights, rows)[0][-1]
    return y, lacks


def window_golden(spec: ModelSpec, weights: Weights, seed: int) -> Golden:
    """Three ragged sequences of a new session each."""
    assert spec.lstm is not None
    lengths = np.array([spec.window + 6, spec.window, 1], np.int32)
    x = random_input(spec.lstm, (3, spec.window + 6), seed)
    y = np.zeros((3, spec.window + 6, spec.lstm.output_size))
    lacks = np.zeros(x.shape[:2], np.int64)
    for n, length in enumerate(lengths):
        y[n, :length], lacks[n, :length] = windows(spec, weights, x[n, :length])
    outputs = {"y": y, MISSING: lacks} if spec.waits else {"y": y}
    return Golden({spec.inputs[0].name: x}, lengths, None, outputs, {}, torch_error=0.0)


def make_golden(spec: LstmSpec, weights: Weights, seed: int) -> LstmGolden:
    """Three ragged sequences from random states; y past a sequence's end is zero."""
    lengths = np.array([7, 4, 1], np.int32)
    x = random_input(spec, (3, 7), seed)
    h0, c0 = random_state(spec, 3, seed)
    y = np.zeros((3, 7, spec.output_size))
    hn, cn = h0.astype(np.float64), c0.astype(np.float64)
    for n, length in enumerate(lengths):
        y[n, :length], hn[:, n], cn[:, n] = reference(
            spec, weights, x[n, :length], h0[:, n], c0[:, n]
        )
    return LstmGolden(x, lengths, h0, c0, y, hn, cn, torch_error=0.0)


def make_model(
    folder: Path,
    spec: LstmSpec = TINY,
    seed: int = 0,
    *,
    name: str = "tiny",
    version: int = 1,
    window: Window = (0, None),
) -> Weights:
    """Writes folder/NAME/VERSION as the export would and returns its weights; no torch needed."""
    weights = random_weights(spec, seed)
    whole = ModelSpec.of_lstm(spec, *window)
    if window[0]:
        golden = dump_golden({"random": window_golden(whole, weights, seed)})
    else:
        golden = dump_lstm_golden({"random": make_golden(spec, weights, seed)})
    files = {MODEL: build_portable(spec, weights).SerializeToString(), GOLDEN: golden}
    sums = {file: sha256(content) for file, content in files.items()}
    manifest = Manifest(name, version, whole, fingerprint(spec, weights, window), sums)
    write_model(folder, manifest, files, force=False)
    return weights
