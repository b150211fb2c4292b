"""A stateful LSTM for Triton's Python backend: the portable graph, one row a request.

Triton's sequence batcher gives it batches with at most one request of a sequence each. It runs in
Triton's process, in the environment that Triton was installed into, and must not import lstmserve.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb

State = tuple[np.ndarray, np.ndarray]  # h and c, float32 [layers, hidden] each


class TritonPythonModel:
    """Keeps the state of every sequence that has not ended."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads model.onnx from beside this file."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        file = Path(args["model_repository"], args["model_version"], "model.onnx")
        self._session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        h0 = next(each for each in self._session.get_inputs() if each.name == "h0")
        zeros = np.zeros((h0.shape[0], h0.shape[2]), np.float32)
        self._zeros: State = (zeros, zeros)
        self._states: dict[int, State] = {}

    def execute(self, requests: list[Any]) -> list[Any]:
        """Makes one step of each request's sequence, in one run."""
        rows, numbers, ends = [], [], []
        for request in requests:
            rows.append(pb.get_input_tensor_by_name(request, "x").as_numpy())
            number = int(_control(request, "CORRID"))
            numbers.append(number)
            if _control(request, "START"):
                self._states.pop(number, None)
            ends.append(bool(_control(request, "END")))
        states = [self._states.get(number, self._zeros) for number in numbers]
        feed = {
            "x": np.concatenate(rows)[:, np.newaxis],  # [B, 1, I]
            "lengths": np.ones(len(rows), np.int32),
            "h0": np.stack([h for h, _ in states], axis=1),
            "c0": np.stack([c for _, c in states], axis=1),
        }
        y, hn, cn = self._session.run(["y", "hn", "cn"], feed)
        for i, (number, is_end) in enumerate(zip(numbers, ends, strict=True)):
            if is_end:
                self._states.pop(number, None)
            else:
                self._states[number] = (hn[:, i], cn[:, i])
        return [pb.InferenceResponse([pb.Tensor("y", row)]) for row in y]


def _control(request: Any, name: str) -> Any:
    return pb.get_input_tensor_by_name(request, name).as_numpy().flat[0]
