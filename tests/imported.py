"""Files of tests/onnxfiles.py as a server has them: imported by the command, and their oracle.

A Served speaks of a file in the names, shapes and dtypes of the server, and answers by plain
onnxruntime on the file itself.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import onnxfiles
from lstmserve.client import Session, State
from lstmserve.manifest import Manifest, read_model
from lstmserve.rows import RowFormat, Rows
from lstmserve.spec import ModelSpec, TensorSpec
from onnxfiles import FileOracle
from serving import environment

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

IMPORT = [sys.executable, "-c", "from lstmserve.cli import main; main()", "import"]
# What a server calls the tensors of the file whose names it cannot take.
MANY_NAMES = {
    "serving_default_frame": "serving_default_frame:0",
    "t1st-keys": "1st-keys",
    "StatefulPartitionedCall": "StatefulPartitionedCall:0",
    "lstm_cell": "lstm/cell",
    "ring_buffer": "ring buffer",
}
PAIRS = {"many_dtypes": onnxfiles.MANY_PAIRS}
NAMES = {"many_dtypes": MANY_NAMES}
FLAGS = {  # which inputs each step gives: one might be a state
    "many_dtypes": [
        flag
        for name in ("serving_default_frame:0", "1st-keys", "gear")
        for flag in ("--input", name)
    ]
}
Imports = tuple[Path, dict[str, "Served"]]
FILES = ("looped", "branched", "many_dtypes")


@dataclass(frozen=True)
class Served:
    """A model that was imported from the file of that name; `names` has the file's own names where
    they differ."""

    name: str
    manifest: Manifest
    oracle: FileOracle
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def spec(self) -> ModelSpec:
        return self.manifest.spec

    def random(self, rng: np.random.Generator, *shape: int) -> dict[str, Array]:
        """Name -> [*shape, ...] of each input; integers are 0 or 1, as a bool may be."""
        found = {}
        for each in self.spec.inputs:
            size = (*shape, *each.shape)
            is_float = each.dtype == "float32"
            values = rng.standard_normal(size) if is_float else rng.integers(2, size=size)
            found[each.name] = values.astype(each.dtype)
        return found

    def initial(self) -> dict[str, Array]:
        """The states of a new session [*shape]."""
        return {each.name: np.zeros(each.shape, each.dtype) for each in self.spec.states}

    def run(
        self, inputs: Arrays, states: Arrays | None = None
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Inputs [T, *shape] -> outputs [T, *shape], and the states after them, by name."""
        after = {self._theirs(name): each for name, each in (states or self.initial()).items()}
        rows = []
        for t in range(len(next(iter(inputs.values())))):
            given = {self._theirs(name): each[t] for name, each in inputs.items()}
            found, after = self.oracle.step(after, **given)
            rows.append(found)
        outputs = {
            each.name: np.stack([_ours(each, row[self._theirs(each.name)]) for row in rows])
            for each in self.spec.outputs
        }
        return outputs, {e.name: _ours(e, after[self._theirs(e.name)]) for e in self.spec.states}

    def pack(self, inputs: Arrays) -> Rows:
        """Inputs as rows of the engine's."""
        return RowFormat(self.spec.inputs).pack(inputs)

    def _theirs(self, name: str) -> str:
        return self.names.get(name, name)


def _ours(spec: TensorSpec, array: Array) -> Array:
    return array.reshape(spec.shape).astype(spec.dtype)


class Talk:
    """A session whose whole past is known."""

    def __init__(
        self, served: Served, session: Session, seed: int = 0, states: Arrays | None = None
    ) -> None:
        self.served = served
        self.session = session
        self.states = states
        self.rng = np.random.default_rng(seed)

    def next(self, length: int) -> tuple[Any, Any]:
        """The input of the next step as a client gives it, and the output that it gets, of `length`
        time steps, or of one without the axis of time if that is 0."""
        inputs = self.served.random(self.rng, max(1, length))
        outputs, self.states = self.served.run(inputs, self.states)
        return tuple(
            plain(each if length else {name: array[0] for name, array in each.items()})
            for each in (inputs, outputs)
        )

    def step(self, length: int) -> None:
        """One step, checked."""
        x, wanted = self.next(length)
        same(self.session.step(x), wanted)

    def check_state(self) -> State:
        """The state is that of the file."""
        state = self.session.state()
        wanted = self.served.initial() if self.states is None else self.states
        assert list(state.tensors) == [each.name for each in self.served.spec.states]
        same(state.tensors, wanted)
        return state


def plain(tensors: dict[str, Any]) -> Any:
    """As the client has it: an array where there is one tensor alone."""
    return tensors if len(tensors) > 1 else next(iter(tensors.values()))


def same(found: Any, wanted: Any) -> None:
    """The same arrays: names, dtypes, shapes and bits."""
    if not isinstance(wanted, dict):
        found, wanted = {"": found}, {"": wanted}
    assert found.keys() == wanted.keys()
    for one, other in ((found[name], wanted[name]) for name in wanted):
        got, each = np.asarray(one), np.asarray(other)
        assert (got.dtype, got.shape, got.tobytes()) == (each.dtype, each.shape, each.tobytes())


def import_file(models: Path, name: str, *, version: int = 1, seed: int = 0) -> Served:
    """Imports the file of that name to MODELS/NAME/VERSION. It lies beside MODELS."""
    content = getattr(onnxfiles, name)(seed)
    path = models.with_name(f"{name}-{seed}.onnx")
    path.write_bytes(content)
    pairs = PAIRS.get(name, onnxfiles.PAIRS)
    manifest = run_import(path, pairs, models, name, *FLAGS.get(name, ()), version=version)
    return Served(name, manifest, FileOracle(content, pairs), NAMES.get(name, {}))


def run_import(
    path: Path, pairs: Mapping[str, str], models: Path, name: str, *flags: str, version: int = 1
) -> Manifest:
    """Imports a file by the command. Returns what it wrote."""
    states = [each for pair in pairs.items() for each in ("--state", ":".join(pair))]
    target = ("--models", models, "--name", name, "--model-version", str(version))
    done = subprocess.run(
        [*IMPORT, path, *target, *states, *flags],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return read_model(models, name, version).manifest


@pytest.fixture(scope="session")
def imports(tmp_path_factory: pytest.TempPathFactory) -> Imports:
    """A models folder with every file of FILES, not to be written to, and what they are."""
    models = tmp_path_factory.mktemp("imported") / "models"
    with ThreadPoolExecutor(len(FILES)) as threads:
        return models, dict(
            zip(FILES, threads.map(partial(import_file, models), FILES), strict=True)
        )
