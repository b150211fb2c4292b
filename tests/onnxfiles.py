"""Small ONNX files as others make them: odd layouts, odd dtypes, subgraphs. One function each.

FileOracle says what onnxruntime makes of such a file: a plain session of the file as it is, one
time step after another. It knows nothing of lstmserve.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import numpy_helper, parser

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

LOOPED = """<ir_version: 8, opset_import: ["": 17]>
looped (float[B, 1, 4] frame, float[2, B, 8] memory, int64[B] ticks, bool[B, 1] loud)
    => (float[B, 1, 3] score, float[2, B, 8] memory_out, int64[B] ticks_out, bool[B, 1] loud_out)
{
    first, second = Split <axis = 0> (memory)
    fast = Squeeze (first, axis0)
    slow = Squeeze (second, axis0)
    row = Squeeze (frame, axis1)
    seen = MatMul (row, w)
    mixed = Loop <body = turn (int64 number, bool going, float[B, 8] now)
        => (bool still, float[B, 8] next)
    {
        still = Identity (going)
        turned = MatMul (now, r)
        sum = Add (turned, seen)
        next = Tanh (sum)
    }> (turns, yes, fast)
    ticks_out = Add (ticks, one)
    count = Cast <to = 1> (ticks_out)
    counts = Unsqueeze (count, axis1)
    off = Sub (mixed, slow)
    part = Div (off, counts)
    mean = Add (slow, part)
    most = ReduceMax <axes = [1], keepdims = 1> (row)
    is_high = Greater (most, limit)
    loud_out = Xor (loud, is_high)
    heard = Where (loud_out, mixed, mean)
    answer = MatMul (heard, out)
    score = Unsqueeze (answer, axis1)
    mixed1 = Unsqueeze (mixed, axis0)
    mean1 = Unsqueeze (mean, axis0)
    memory_out = Concat <axis = 0> (mixed1, mean1)
}
"""

BRANCHED = """<ir_version: 8, opset_import: ["": 17]>
branched (float[1, 4] frame, float[2, 8] memory, int64 ticks, bool loud)
    => (float[1, 3] score, float[2, 8] memory_out, int64 ticks_out, bool loud_out)
{
    fast, slow = Split <axis = 0> (memory)
    seen = MatMul (frame, w)
    begun = If (loud) <
        then_branch = loudly () => (float[1, 8] kept)
        {
            kept = Identity (fast)
        },
        else_branch = quietly () => (float[1, 8] bent)
        {
            turned = MatMul (slow, r)
            bent = Tanh (turned)
        }>
    mixed = Loop <body = turn (int64 number, bool going, float[1, 8] now)
        => (bool still, float[1, 8] next)
    {
        still = Identity (going)
        turned = MatMul (now, r)
        sum = Add (turned, seen)
        next = Tanh (sum)
    }> (turns, yes, begun)
    ticks_out = Add (ticks, one)
    count = Cast <to = 1> (ticks_out)
    off = Sub (mixed, slow)
    part = Div (off, count)
    mean = Add (slow, part)
    most = ReduceMax <keepdims = 0> (frame)
    is_high = Greater (most, limit)
    loud_out = Xor (loud, is_high)
    heard = Where (loud_out, mixed, mean)
    score = MatMul (heard, out)
    memory_out = Concat <axis = 0> (mixed, mean)
}
"""
# The pairs of both.
PAIRS = {"memory": "memory_out", "ticks": "ticks_out", "loud": "loud_out"}

MANY_DTYPES = """<ir_version: 8, opset_import: ["": 17]>
many (float[B, 1, 3] frame, bool[B, 2] keys, int32[1, B] gear, float[B, 2, 1, 3] cell,
      int32[4, B] ring, bool[2, B] held)
    => (float[B, 1, 2] score, int32[B] turns, bool[B, 2] lit, float[B, 2, 1, 3] cell_out,
        int32[4, B] ring_out, bool[2, B] held_out)
{
    keys_t = Transpose <perm = [1, 0]> (keys)
    held_out = Xor (held, keys_t)
    lit = Transpose <perm = [1, 0]> (held_out)
    newer = Slice (ring, axis1, stop, axis0)
    ring_out = Concat <axis = 0> (newer, gear)
    turns = ReduceSum <keepdims = 0> (ring_out, axis0)
    row = Squeeze (frame, axis1)
    rows = Unsqueeze (row, axes)
    faded = Mul (cell, fade)
    cell_out = Add (faded, rows)
    flat = Reshape (cell_out, six)
    turned = Cast <to = 1> (turns)
    turned1 = Unsqueeze (turned, axis1)
    lit1 = Cast <to = 1> (lit)
    all = Concat <axis = 1> (flat, turned1, lit1)
    answer = MatMul (all, out)
    score = Unsqueeze (answer, axis1)
}
"""
MANY_NAMES = {  # as tf2onnx and others write them; an input and the output that is its next value
    "frame": "serving_default_frame:0",
    "score": "StatefulPartitionedCall:0",
    "cell": "lstm/cell",
    "cell_out": "lstm/cell_1",
    "ring": "ring buffer",
    "ring_out": "ring buffer.next",
    "keys": "1st-keys",
    "lit": "keys",
}
MANY_PAIRS = {
    "lstm/cell": "lstm/cell_1",
    "ring buffer": "ring buffer.next",
    "held": "held_out",
}


def looped(seed: int = 0) -> bytes:
    """All floats of the state in one tensor with the batch on axis 1, an int64 and a bool state,
    and a Loop inside."""
    return model_of(LOOPED, _weights(seed))


def branched(seed: int = 0) -> bytes:
    """The same states without a batch axis, a Loop, and an If that depends on the session: one run
    can take only one."""
    return model_of(BRANCHED, _weights(seed))


def rounded(seed: int = 0) -> bytes:
    """looped() with its last weight [1, ...]: onnxruntime does not prepack such a weight, and
    rounds a row that is alone in another way."""
    plain = "    answer = MatMul (heard, out)\n    score = Unsqueeze (answer, axis1)\n"
    other = """    heard1 = Unsqueeze (heard, axis0)
    answer = MatMul (heard1, out)
    score = Transpose <perm = [1, 0, 2]> (answer)
"""
    assert plain in LOOPED
    weights = _weights(seed)
    return model_of(LOOPED.replace(plain, other), {**weights, "out": weights["out"][np.newaxis]})


def many_dtypes(seed: int = 0) -> bytes:
    """Inputs, outputs and states of float32, int32 and bool, whose batch is on different
    axes, and names that no server takes as they are."""
    model = onnx.load_model_from_string(model_of(MANY_DTYPES, _many_weights(seed)))
    for each in (*model.graph.input, *model.graph.output):
        each.name = MANY_NAMES.get(each.name, each.name)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [MANY_NAMES.get(name, name) for name in names]
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def model_of(text: str, weights: Arrays) -> bytes:
    """The file of a graph in ONNX's own text syntax, with these initializers."""
    model = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _weights(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {"w": (4, 8), "r": (8, 8), "out": (8, 3)}
    floats = {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    constants = {"axis0": [0], "axis1": [1], "one": 1, "turns": 3, "yes": True}
    found = {name: np.array(value) for name, value in constants.items()}
    return floats | found | {"limit": np.array(1, np.float32)}


def _many_weights(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    vectors = {"axis0": [0], "axis1": [1], "axes": [1, 2], "stop": [4], "six": [-1, 6]}
    return {
        "out": rng.uniform(-1, 1, (9, 2)).astype(np.float32),
        "fade": rng.uniform(0.2, 0.9, (2, 1, 3)).astype(np.float32),
        **{name: np.array(values) for name, values in vectors.items()},
    }


class FileOracle:
    """A file's own answers. `pairs` are its states: the input of each -> the output."""

    def __init__(self, content: bytes, pairs: Mapping[str, str]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(content, options)
        self._pairs = dict(pairs)
        self._empty = {each.name: _empty(each) for each in self._session.get_inputs()}
        names = [each.name for each in self._session.get_outputs()]
        self.inputs = [name for name in self._empty if name not in self._pairs]
        self.outputs = [name for name in names if name not in self._pairs.values()]
        self._asked = [*self.outputs, *self._pairs.values()]

    def start(self) -> dict[str, Array]:
        """The states of a new session by the names of their inputs, zeros, as the file has them."""
        return {name: self._empty[name] for name in self._pairs}

    def step(self, states: Arrays, /, **inputs: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """Outputs and states after one time step, as the file has them; `inputs` may have any
        shapes with as many elements."""
        feed = {
            name: np.asarray(each, self._empty[name].dtype).reshape(self._empty[name].shape)
            for name, each in {**inputs, **states}.items()
        }
        found = dict(zip(self._asked, self._session.run(self._asked, feed), strict=True))
        after = {before: found[name] for before, name in self._pairs.items()}
        return {name: found[name] for name in self.outputs}, after


def _empty(value: Any) -> Array:
    """Zeros of an input of the file; an axis without a size has 1."""
    dtypes = {"float": "float32", "double": "float64"}
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    shape = [size if isinstance(size, int) else 1 for size in value.shape]
    return np.zeros(shape, dtypes.get(kind, kind))
