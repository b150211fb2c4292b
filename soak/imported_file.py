"""An ONNX file of others as a soak serves it: imported by the command, and its own oracle.

The oracle is plain onnxruntime on the file as it was given, never on what the import wrote of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imported import run_import
from lstmserve.spec import TensorSpec
from onnxfiles import FileOracle

Array = npt.NDArray[Any]


class ImportedFile:
    """A file with one input and one output, both of floats. `pairs` are its states, IN -> OUT, and
    `flags` further ones of the import."""

    def __init__(self, path: Path, pairs: Mapping[str, str], flags: Sequence[str] = ()) -> None:
        self._oracle = FileOracle(path.read_bytes(), pairs)
        self._path = path
        self._pairs = pairs
        self._flags = flags
        ((self._input,), (self._output,)) = self._oracle.inputs, self._oracle.outputs
        self._states: tuple[TensorSpec, ...] = ()
        self.input_size = self.output_size = 0

    def make(self, folder: Path, name: str) -> ImportedFile:
        """Writes folder/NAME/1 by `lstmserve import`. Returns itself, with its sizes."""
        spec = run_import(self._path, self._pairs, folder, name, *self._flags).spec
        ((given,), (wanted,)) = spec.inputs, spec.outputs
        self.input_size, self.output_size = given.size, wanted.size
        self._states = spec.states
        return self

    def start(self) -> Mapping[str, Array]:
        """The states of a new session, as the file has them."""
        return self._oracle.start()

    def step(self, row: Array, states: Mapping[str, Array]) -> tuple[Array, Mapping[str, Array]]:
        """y [O] of one time step x [I], and the states after it, as the file has them."""
        outputs, after = self._oracle.step(states, **{self._input: row})
        return outputs[self._output].reshape(-1), after

    def served(self, states: Mapping[str, Array]) -> list[Array]:
        """The states as the server has them, in its order."""
        return [states[e.name].reshape(e.shape).astype(e.dtype) for e in self._states]

    def run(self, x: Array) -> tuple[Array, ...]:
        """The rows of y that a new session gives for x [T, I], and its states after them."""
        states, ys = self.start(), []
        for row in x:
            y, states = self.step(row, states)
            ys.append(y)
        return np.array(ys), *self.served(states)


def values(tensor: Any) -> bytes:
    """The bytes of a message's tensor of a state."""
    return bytes(tensor.floats) or np.array(tensor.ints[:], np.int64).tobytes()


def sent(state: Array) -> bytes:
    """The bytes that values() must give of a state: a message has a bool as an integer."""
    return (state.astype(np.int64) if state.dtype == np.bool_ else state).tobytes()
