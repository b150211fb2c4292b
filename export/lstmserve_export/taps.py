"""Checks the taps of a step graph: from the value, the weights and the states that a tap names,
the formulas of its layer give the states after the step.

A later look inside a session relies on that. The formulas are those of torch.nn.LSTM, GRU and RNN,
and of ONNX's GRU; the gates lie in ONNX's order: i o f c, and z r h. It must not know how the graph
was made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from lstmserve.graph.safety import subgraphs
from lstmserve.runtime import plain_session
from lstmserve.spec import NEXT, ModelSpec, Tap
from lstmserve_export.refusal import Refused, one_line
from lstmserve_export.sequences import SEED

Floats = npt.NDArray[np.float64]
Values = Mapping[str, Any]
SIZE: Final = 4  # of the batch
TOLERANCE: Final = 2e-5


def check_taps(model: onnx.ModelProto, spec: ModelSpec, taps: Iterable[Tap]) -> None:
    """Runs one step from random states. Raises Refused where a tap is not what it says."""
    for tap in wrong_taps(model, spec, taps):
        raise Refused(
            f"{tap}: its formulas do not give its states; this is a bug of the export: please "
            "report it"
        )


def wrong_taps(
    model: onnx.ModelProto, spec: ModelSpec, taps: Iterable[Tap], rows: Values | None = None
) -> list[Tap]:
    """The taps whose formulas do not give their states after one step from random states.

    `rows` has the inputs [N, *shape] of N sessions; without them floats are random and integers 0.
    Raises Refused where the step does not run.
    """
    taps = tuple(taps)
    if not taps:
        return []
    rng = np.random.default_rng(SEED)
    feed = dict(rows) if rows is not None else _random_rows(spec, rng)
    size = len(next(iter(feed.values())))
    for each in spec.states:
        feed[each.name] = rng.uniform(-0.9, 0.9, (size, *each.shape)).astype(each.dtype)
    found = _run(model, feed, taps)
    weights = {each.name: numpy_helper.to_array(each) for each in _weights(model)}
    return [tap for tap in taps if not _is_right(tap, found, weights)]


def _random_rows(spec: ModelSpec, rng: np.random.Generator) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in spec.inputs:
        shape = (SIZE, *each.shape)
        if each.dtype == "float32":
            found[each.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            found[each.name] = np.zeros(shape, np.int64)
    return found


def _is_right(tap: Tap, found: Values, weights: Values) -> bool:
    if tap.before:
        before = [_sessions(found[name], tap, 1) for name in tap.before]
        after = [_sessions(found[name], tap, 1) for name in tap.after]
        x = _sessions(found[tap.input], tap, 2)
    else:
        before = [_layer(found[name], tap.index) for name in tap.states]
        after = [_layer(found[name + NEXT], tap.index) for name in tap.states]
        x = np.asarray(found[tap.input], np.float64).reshape(1, len(before[0]), -1)
    own = {letter: weights[name] for letter, name in tap.weights.items()}
    computed = before
    for row in x:
        computed = step(tap, own, row, computed)
    return all(
        np.allclose(actual, expected, TOLERANCE, TOLERANCE)
        for expected, actual in zip(computed, after, strict=True)
    )


def _sessions(value: Any, tap: Tap, rank: int) -> Floats:
    """A node's value [1, B, H] -> [B, H], or [T, B, I] as it is for rank 2; in the body of a Scan
    the sessions [N, ...] come first, and are put on the axis of B."""
    array = np.asarray(value, np.float64)
    if tap.inside:
        array = np.concatenate(list(array), axis=1)
    return array if rank == 2 else array[0]


def step(tap: Tap, weights: Values, x: Floats, states: Sequence[Floats]) -> list[Floats]:
    """The states [B, width] of the layer after one step: x [B, I], states [B, width] before."""
    w, r = (_matrix(weights[letter]) for letter in ("W", "R"))
    bias = np.asarray(weights.get("B", 0.0), np.float64).reshape(-1)
    if bias.size == 2 * len(w):  # of W x and R h apart
        b_w, b_r = np.split(bias, 2)
    else:
        b_w, b_r = np.broadcast_to(bias, len(w)), np.zeros(len(w))
    inputs, h = x @ w.T + b_w, states[0]
    if tap.kind == "gru" and not tap.linear_before_reset:
        return [_gru_of_reset(inputs, r, b_r, h)]
    past = h @ r.T + b_r
    if tap.kind == "gru":
        return [_gru(inputs, past, h)]
    if tap.kind == "rnn":
        return [np.tanh(inputs + past)]
    return _lstm(inputs + past, states[1], weights)


def _lstm(sums: Floats, before: Floats, weights: Values) -> list[Floats]:
    i, o, f, g = np.split(sums, 4, axis=1)
    c = _sigmoid(f) * before + _sigmoid(i) * np.tanh(g)
    h = _sigmoid(o) * np.tanh(c)
    return [h @ np.asarray(weights["P"], np.float64) if "P" in weights else h, c]


def _gru(inputs: Floats, past: Floats, h: Floats) -> Floats:
    (z, r, n), (z_past, r_past, n_past) = np.split(inputs, 3, axis=1), np.split(past, 3, axis=1)
    update = _sigmoid(z + z_past)
    new = np.tanh(n + _sigmoid(r + r_past) * n_past)
    return np.asarray((1 - update) * new + update * h)


def _gru_of_reset(inputs: Floats, matrix: Floats, bias: Floats, h: Floats) -> Floats:
    """h is reset before it is multiplied, as ONNX's GRU does unless linear_before_reset is set."""
    (z, r, n), (w_z, w_r, w_n) = np.split(inputs, 3, axis=1), np.split(matrix, 3)
    b_z, b_r, b_n = np.split(bias, 3)
    update, reset = _sigmoid(z + h @ w_z.T + b_z), _sigmoid(r + h @ w_r.T + b_r)
    new = np.tanh(n + (reset * h) @ w_n.T + b_n)
    return np.asarray((1 - update) * new + update * h)


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


def _weights(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        for graph in subgraphs(node):
            yield from graph.initializer


def _run(model: onnx.ModelProto, feed: Mapping[str, Any], taps: Sequence[Tap]) -> dict[str, Any]:
    """The values that taps name, of which some are no outputs of the graph. Raises Refused."""
    found: dict[str, Any] = dict(feed)
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    wanted = _expose(copied, taps, set(found))
    try:
        values = plain_session(copied.SerializeToString()).run(list(wanted), feed)
    except Exception as error:  # onnxruntime's own have no base but this one
        raise Refused(f"the exported step does not run: {one_line(error)}") from error
    return found | dict(zip(wanted.values(), values, strict=True))


def _expose(model: onnx.ModelProto, taps: Iterable[Tap], given: set[str]) -> dict[str, str]:
    """Makes the values that taps name outputs of the graph: the name of each output, and of the
    value."""
    graph = model.graph
    outputs = {each.name for each in graph.output}
    wanted: dict[str, str] = {}
    for tap in taps:
        values = (tap.input, *tap.before, *tap.after, *(name + NEXT for name in tap.states))
        for name in dict.fromkeys(values):
            if tap.inside:
                wanted[_add_scan_output(graph, tap.inside, name, outputs)] = name
            elif name not in given:
                wanted[name] = name
    typed = onnx.shape_inference.infer_shapes(model)
    types = {value.name: value for value in typed.graph.value_info}
    for name in wanted:
        if name not in outputs:
            value = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            graph.output.append(types.get(name) or value)
    return wanted


def _add_scan_output(graph: onnx.GraphProto, scan: str, name: str, outputs: set[str]) -> str:
    """The name of the Scan's output with the value of each session, a new one if need be."""
    node = next(each for each in graph.node if scan in each.output)
    (body,) = subgraphs(node)
    found = f"{scan}/{name}"
    if found not in node.output:
        value = helper.make_tensor_value_info(f"{name}/shown", onnx.TensorProto.FLOAT, None)
        body.node.append(helper.make_node("Identity", [name], [value.name]))
        body.output.append(value)
        node.output.append(found)
    return found
