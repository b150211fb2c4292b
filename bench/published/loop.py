"""Runs a stateful ONNX file as its users do: in plain onnxruntime, a session's states from call to
call. It must not know lstmserve.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

Array = npt.NDArray[Any]
DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}


@dataclass(frozen=True, slots=True)
class Call:
    """What one call gives: the outputs, and the states by the names of their inputs."""

    outputs: Mapping[str, Array]
    states: Mapping[str, Array]


def calls(file: Path, pairs: Mapping[str, str], x: Array) -> Iterator[Call]:
    """One for each row of x [T, *shape]; `pairs` has the output of each state's input."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    inputs = {each.name: each for each in session.get_inputs()}
    shapes = {
        name: [n if isinstance(n, int) else 1 for n in each.shape] for name, each in inputs.items()
    }
    (given,) = shapes.keys() - pairs.keys()
    states: dict[str, Array] = {
        name: np.zeros(shapes[name], DTYPES[inputs[name].type]) for name in pairs
    }
    names = [each.name for each in session.get_outputs()]
    for row in x:
        feed = {given: row.reshape(shapes[given]).astype(np.float32), **states}
        found = dict(zip(names, session.run(names, feed), strict=True))
        states = {before: found.pop(after) for before, after in pairs.items()}
        yield Call(found, states)
