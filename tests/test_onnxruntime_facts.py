"""What this project relies on in onnxruntime, and what it guards against."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from lstmserve.graph import build_portable
from lstmserve.spec import LstmSpec
from modelmaking import random_weights

SPEC = LstmSpec(5, 8)
RUN = """
import numpy as np, onnxruntime as ort, sys
session = ort.InferenceSession(sys.stdin.buffer.read(), providers=["CPUExecutionProvider"])
def zeros(*shape):
    return np.zeros(shape, np.float32)
batch = int(sys.argv[1])
lengths = np.ones(batch, np.int32)
feed = {"x": zeros(batch, 1, 5), "lengths": lengths, "h0": zeros(1, batch, 8)}
session.run(None, {**feed, "c0": zeros(1, batch, 8)})
print("survived")
"""


def run_in_process(batch: int) -> subprocess.CompletedProcess[bytes]:
    """The portable graph on a batch of this size, in a process of its own."""
    content = build_portable(SPEC, random_weights(SPEC, 0)).SerializeToString()
    command = [sys.executable, "-c", RUN, str(batch)]
    return subprocess.run(command, input=content, capture_output=True)


def test_an_empty_batch_aborts_the_process() -> None:
    """An empty batch aborts the process without an exception, so ours must never pass one on."""
    done = run_in_process(0)
    assert done.returncode == -signal.SIGABRT
    assert b"survived" not in done.stdout
    assert run_in_process(1).stdout.split() == [b"survived"]


W, R, B = (1, 32, 5), (1, 32, 8), (1, 64)
MALFORMED = {
    "W short of gates": {"W": (1, 31, 5)},
    "W of another width": {"W": (1, 32, 4)},
    "W of two directions": {"W": (2, 32, 5)},
    "R of another width": {"R": (1, 32, 7)},
    "R short of gates": {"R": (1, 24, 8)},
    "B cut in half": {"B": (1, 32)},
    "B empty": {"B": (1, 0)},
}


def lstm(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """An LSTM node alone, hidden_size 8, with weights of these shapes that no checker has seen."""
    tensors = [
        onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name)
        for name, shape in shapes.items()
    ]
    node = onnx.helper.make_node("LSTM", ["x", "W", "R", "B"], ["y"], hidden_size=8)
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["T", "N", 5])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([node], "lstm", [x], [y], tensors)
    opsets = [onnx.helper.make_opsetid("", 20)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def run_lstm(content: bytes) -> list[np.ndarray]:
    """The node on two rows of three sequences."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # refusals are expected here, and reach us as exceptions
    session = ort.InferenceSession(content, options, ["CPUExecutionProvider"])
    return session.run(None, {"x": np.ones((2, 3, 5), np.float32)})


def test_well_formed_weights_run() -> None:
    """The node of the next test is refused for its shapes, and for nothing else."""
    assert run_lstm(lstm({"W": W, "R": R, "B": B}))[0].shape == (2, 1, 3, 8)


@pytest.mark.parametrize("shapes", MALFORMED.values(), ids=MALFORMED)
def test_malformed_weights_are_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    """onnxruntime refuses them; older versions read past their end, so the server checks shapes,
    too."""
    content = lstm({"W": W, "R": R, "B": B} | shapes)
    with pytest.raises((errors.Fail, errors.InvalidArgument, errors.RuntimeException)):
        run_lstm(content)
