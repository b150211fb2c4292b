"""Checks the taps of a step graph: from the value, the weights and the states that a tap names,
the formulas of its layer give the states after the step.

A later look inside a session relies on that. The formulas are those of torch.nn.LSTM, GRU and RNN;
the gates lie in ONNX's order: i o f c, and z r h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from lstmserve.runtime import ort
from lstmserve.spec import NEXT, ModelSpec, Tap
from lstmserve_export.refusal import Refused, one_line
from lstmserve_export.sequences import SEED

Floats = npt.NDArray[np.float64]
SIZE: Final = 4  # of the batch
TOLERANCE: Final = 2e-5


def check_taps(model: onnx.ModelProto, spec: ModelSpec, taps: Iterable[Tap]) -> None:
    """Runs one step from random states. Raises Refused where a tap is not what it says."""
    taps = tuple(taps)
    if not taps:
        return
    rng = np.random.default_rng(SEED)
    feed: dict[str, Any] = {}
    for each in spec.inputs:
        shape = (SIZE, *each.shape)
        if each.dtype == "float32":
            feed[each.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            feed[each.name] = np.zeros(shape, np.int64)
    for each in spec.states:
        feed[each.name] = rng.uniform(-0.9, 0.9, (SIZE, *each.shape)).astype(each.dtype)
    states = {name for tap in taps for name in tap.states}
    found = _run(model, feed, {*(tap.input for tap in taps), *(name + NEXT for name in states)})
    weights = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    for tap in taps:
        before = [_layer(feed[name], tap.index) for name in tap.states]
        after = [_layer(found[name + NEXT], tap.index) for name in tap.states]
        x = found[tap.input].reshape(SIZE, -1).astype(np.float64)
        computed = step(tap, {k: weights[name] for k, name in tap.weights.items()}, x, before)
        for name, expected, actual in zip(tap.states, computed, after, strict=True):
            if not np.allclose(actual, expected, TOLERANCE, TOLERANCE):
                raise Refused(
                    f"{tap}: its formulas do not give the state {name}; this is a bug of the "
                    "export: please report it"
                )


def step(tap: Tap, weights: dict[str, Any], x: Floats, states: list[Floats]) -> list[Floats]:
    """The states [B, width] of the layer after one step: x [B, I], states [B, width] before."""
    w, r = (_matrix(weights[letter]) for letter in ("W", "R"))
    bias = np.asarray(weights.get("B", 0.0), np.float64).reshape(-1)
    if bias.size == 2 * len(w):  # of W x and R h apart
        b_w, b_r = np.split(bias, 2)
    else:
        b_w, b_r = bias, np.zeros(1)
    inputs, past = x @ w.T + b_w, states[0] @ r.T + b_r
    return FORMULAS[tap.kind](inputs, past, states, weights)


def _lstm(
    inputs: Floats, past: Floats, states: list[Floats], weights: dict[str, Any]
) -> list[Floats]:
    i, o, f, g = np.split(inputs + past, 4, axis=1)
    c = _sigmoid(f) * states[1] + _sigmoid(i) * np.tanh(g)
    h = _sigmoid(o) * np.tanh(c)
    return [h @ np.asarray(weights["P"], np.float64) if "P" in weights else h, c]


def _gru(
    inputs: Floats, past: Floats, states: list[Floats], weights: dict[str, Any]
) -> list[Floats]:
    (z, r, n), (z_past, r_past, n_past) = np.split(inputs, 3, axis=1), np.split(past, 3, axis=1)
    update = _sigmoid(z + z_past)
    new = np.tanh(n + _sigmoid(r + r_past) * n_past)
    return [(1 - update) * new + update * states[0]]


def _rnn(
    inputs: Floats, past: Floats, states: list[Floats], weights: dict[str, Any]
) -> list[Floats]:
    return [np.tanh(inputs + past)]


FORMULAS: Final[dict[str, Callable[..., list[Floats]]]] = {"lstm": _lstm, "gru": _gru, "rnn": _rnn}


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def _matrix(weight: Any) -> Floats:
    """[1, G*H, I] of an ONNX node, or [I, G*H] where the layer is written out -> [G*H, I]."""
    array = np.asarray(weight, np.float64)
    return array[0] if array.ndim == 3 else array.T


def _layer(state: Any, index: int) -> Floats:
    """[B, layers, width] or [B, width] -> [B, width] of one layer."""
    array = np.asarray(state, np.float64)
    return array[:, index] if array.ndim == 3 else array


def _run(model: onnx.ModelProto, feed: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """The values of these names, of which some are no outputs of the graph. Raises Refused."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    given = [name for name in names if name in feed]
    known = {value.name for value in copied.graph.output}
    typed = onnx.shape_inference.infer_shapes(copied)
    types = {value.name: value for value in typed.graph.value_info}
    for name in sorted(names - known - set(given)):
        value = types.get(name) or helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        copied.graph.output.append(value)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    wanted = sorted(names - set(given))
    try:
        session = ort.InferenceSession(
            copied.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        values = session.run(wanted, feed)
    except Exception as error:  # onnxruntime's own have no base but this one
        raise Refused(f"the exported step does not run: {one_line(error)}") from error
    found = dict(zip(wanted, values, strict=True))
    return found | {name: feed[name] for name in given}
