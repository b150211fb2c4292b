"""Writes and reads the model folder: models/NAME/VERSION/{model.onnx, manifest.json, golden.npz}.

The export writes a version once, atomically; the server reads and verifies it. No onnxruntime.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import NodeProto

from lstmserve.golden import AGAIN, Golden, InvalidGolden, check_golden, load_golden
from lstmserve.graph import (
    GraphWindowNetwork,
    InvalidModel,
    LstmNetwork,
    LstmWindowNetwork,
    PoolNetwork,
    SequenceNetwork,
    StepNetwork,
    graph_sequences,
    lstm_sequences,
    read_weights,
    step_graph,
)
from lstmserve.graph.safety import subgraphs
from lstmserve.graph.weights import fingerprint
from lstmserve.lstm_golden import check_lstm_golden, load_lstm_golden
from lstmserve.spec import InvalidSpec, LstmSpec, ModelSpec, Tap, find_tensor, window_states

FORMATS = {"lstm": 1, "network": 2}  # of manifest.json, by the kind that it is written for
WINDOW_FORMAT = 3  # of either kind with a window
SEQUENCES_FORMAT = 4  # of kind network without states
MODEL, MANIFEST, GOLDEN = "model.onnx", "manifest.json", "golden.npz"
NEW, OLD = ".new-", ".old-"  # of a version that is being written, and of the one that it replaces
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")
# A larger file is not read: it is none of ours. protobuf takes no message above 2 GiB.
FILE_BYTES_MAX = {MANIFEST: 1 << 20, MODEL: 1 << 31, GOLDEN: 1 << 30}


class InvalidModelFolder(ValueError):
    """A version folder must not be served. The message names it, the fault and what to do."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of manifest.json.

    `sha256` has one entry for each other file; `versions` names the libraries of the export;
    `parity` is the report of its proof; `notes` are its remarks to a reader. `taps` are the
    recurrent layers of kind "network", as far as the export knows them; kind "lstm" has none.
    """

    name: str
    version: int
    spec: ModelSpec
    fingerprint: str
    sha256: Mapping[str, str]
    versions: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    taps: tuple[Tap, ...] = ()

    @property
    def lstm(self) -> LstmSpec:
        """The spec of kind "lstm"."""
        assert self.spec.lstm is not None
        return self.spec.lstm

    def to_json(self) -> str:
        """The text of manifest.json."""
        spec = self.spec.to_json() if self.spec.lstm is None else self.spec.lstm.to_json()
        values = {
            "format": _format(self.spec),
            "name": self.name,
            "version": self.version,
            "spec": spec,
            "fingerprint": self.fingerprint,
            "sha256": dict(self.sha256),
            "versions": dict(self.versions),
            "parity": dict(self.parity),
            "notes": list(self.notes),
        }
        if self.spec.window:
            values |= {"window": self.spec.window, "window_fill": self.spec.window_fill}
        if self.spec.lstm is None or self.spec.window:
            values["kind"] = self.spec.kind
        if self.spec.lstm is None:
            values["taps"] = [tap.to_json() for tap in self.taps]
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Reads what to_json wrote. Raises InvalidModelFolder, also for another format."""
        try:
            values = json.loads(text)
            spec = _spec(values)
            _check_kinds(values)
            notes, taps = tuple(values.pop("notes", ())), values.pop("taps", ())
            if taps and spec.kind == "lstm":
                raise InvalidModelFolder(f"{MANIFEST} has taps, which kind lstm does not have")
            return cls(spec=spec, notes=notes, taps=tuple(map(Tap.from_json, taps)), **values)
        except InvalidModelFolder:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidModelFolder(f"{MANIFEST} is malformed: {error}") from error


def _format(spec: ModelSpec) -> int:
    """The oldest format that has such a model, so that older releases refuse it by its number."""
    if spec.window:
        return WINDOW_FORMAT
    return FORMATS[spec.kind] if spec.states else SEQUENCES_FORMAT


def _spec(values: dict[str, Any]) -> ModelSpec:
    """Takes format, kind, spec and window out of the values. Raises InvalidModelFolder and
    InvalidSpec."""
    found = values.pop("format", None)
    if type(found) is not int or not 1 <= found <= SEQUENCES_FORMAT:
        raise InvalidModelFolder(
            f"{MANIFEST} has format {found!r}, this release reads 1 to {SEQUENCES_FORMAT}: "
            "export again, or serve it with the release that exported it"
        )
    window, fill = 0, None
    if found == WINDOW_FORMAT:
        window, fill = values.pop("window"), values.pop("window_fill")
        window_states((), window, fill)  # it raises InvalidSpec also for no window
    kind = "lstm" if found == FORMATS["lstm"] else values.pop("kind", None)
    if kind == "lstm" and found in (FORMATS["lstm"], WINDOW_FORMAT):
        return ModelSpec.of_lstm(LstmSpec.from_json(values.pop("spec")), window, fill)
    if kind != "network":
        raise InvalidModelFolder(
            f"{MANIFEST} is of kind {kind!r}, this release serves lstm and network: "
            "serve it with the release that exported it"
        )
    spec = ModelSpec.from_json(values.pop("spec"), window, fill)
    if _format(spec) != found:
        raise InvalidModelFolder(
            f"{MANIFEST} has format {found}, and its spec is of format {_format(spec)}: {AGAIN}"
        )
    return spec


KINDS = {
    "name": str,
    "version": int,
    "fingerprint": str,
    "sha256": dict,
    "versions": dict,
    "parity": dict,
    "notes": list,
    "taps": list,
}


def _check_kinds(values: Mapping[str, Any]) -> None:
    """Raises ValueError for a field that to_json() would not write."""
    for name, kind in KINDS.items():
        if name in values and type(values[name]) is not kind:
            raise ValueError(f"{name} is a {type(values[name]).__name__}, not a {kind.__name__}")


@dataclass(frozen=True, slots=True)
class RefusedFolder:
    """A folder that is not served: its name below the models folder, and why, in one line."""

    folder: str
    reason: str


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What the server needs of a version folder, after verification."""

    manifest: Manifest
    network: PoolNetwork | SequenceNetwork
    golden: Mapping[str, Golden]


def sha256(content: bytes) -> str:
    """The sha256 in hex, as in the manifest."""
    return hashlib.sha256(content).hexdigest()


def list_versions(models: Path) -> list[tuple[str, int]]:
    """Every (name, version) below `models`, sorted, ignoring other files and folders.

    Raises InvalidModelFolder for a folder that cannot be read, so that no model goes missing.
    """
    try:
        return sorted(
            (name, int(version))
            for name in _folders(models, NAME)
            for version in _folders(models / name, VERSION)
            if (models / name / version / MANIFEST).exists()
        )
    except OSError as error:
        raise InvalidModelFolder(f"cannot be read: {error}") from error


def find_versions(models: Path) -> tuple[list[tuple[str, int]], list[RefusedFolder]]:
    """Every (name, version) below `models`, sorted, and the folders that only look like one.

    Ignores other files and folders. Raises InvalidModelFolder if `models` itself cannot be read.
    """
    versions: list[tuple[str, int]] = []
    refused: list[RefusedFolder] = []
    try:
        names = sorted(each.name for each in models.iterdir() if NAME.fullmatch(each.name))
    except OSError as error:
        raise InvalidModelFolder(f"cannot be read: {error}") from error
    for name in names:
        folder = models / name
        try:
            found = sorted(int(version) for version in _folders(folder, VERSION))
            if not found and (folder / MANIFEST).exists():
                reason = f"{folder}: it has a {MANIFEST} and no version: move it to {folder}/1"
                refused.append(RefusedFolder(name, reason))
            elif folder.is_symlink() and not folder.exists():
                refused.append(RefusedFolder(name, f"{folder}: the link leads nowhere"))
        except OSError as error:
            refused.append(RefusedFolder(name, f"{folder}: cannot be read: {error}"))
        else:
            versions += [(name, version) for version in found]
    return versions, refused


def _folders(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    if not folder.is_dir():
        return []
    return [each.name for each in folder.iterdir() if pattern.fullmatch(each.name)]


def read_model(models: Path, name: str, version: int) -> ModelFiles:
    """Reads and verifies models/NAME/VERSION. Raises InvalidModelFolder."""
    folder = models / name / str(version)
    try:
        for file, bytes_max in FILE_BYTES_MAX.items():
            _check_file(folder / file, bytes_max)
        manifest = Manifest.from_json((folder / MANIFEST).read_text())
        contents = {file: (folder / file).read_bytes() for file in (MODEL, GOLDEN)}
        for file, content in contents.items():
            if manifest.sha256.get(file) != sha256(content):
                raise InvalidModelFolder(
                    f"{file} is not the file that was exported (its sha256 differs): "
                    "copy it again or export again"
                )
        files = _read_contents(manifest, contents[MODEL], contents[GOLDEN])
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidModelFolder(f"{folder}: cannot be read: {error}") from error
    except MemoryError as error:
        raise InvalidModelFolder(f"{folder}: needs more memory than this machine gives") from error
    except (InvalidModelFolder, InvalidModel, InvalidGolden, InvalidSpec) as error:
        raise InvalidModelFolder(f"{folder}: {error}") from error
    if (manifest.name, manifest.version) != (name, version):
        raise InvalidModelFolder(
            f"{folder} holds {manifest.name}:{manifest.version}: put it in the folder of that name"
        )
    return files


def _read_contents(manifest: Manifest, model: bytes, golden: bytes) -> ModelFiles:
    """Raises InvalidModel, InvalidGolden and InvalidModelFolder."""
    spec, lstm = manifest.spec, manifest.spec.lstm
    network: PoolNetwork | SequenceNetwork
    if lstm is None:
        graph = step_graph.read_step_graph(model, spec)
        _check_taps(manifest.taps, spec, graph)
        network = _network(spec, graph)
        found = step_graph.fingerprint(spec, graph)
    else:
        weights = read_weights(model, lstm)
        if spec.window:
            network = LstmWindowNetwork(spec, weights)
        elif spec.is_streaming:
            network = LstmNetwork(lstm, weights)
        else:
            network = lstm_sequences(lstm, weights)
        found = fingerprint(lstm, weights, (spec.window, spec.window_fill))
    if lstm is None or spec.window:
        cases = load_golden(golden, spec)
        check_golden(cases, spec)
    else:
        lstm_cases = load_lstm_golden(golden)
        check_lstm_golden(lstm_cases, lstm)
        cases = {name: case.named(lstm) for name, case in lstm_cases.items()}
    if manifest.fingerprint != found:
        raise InvalidModelFolder("the fingerprint does not match the weights")
    return ModelFiles(manifest, network, cases)


def _network(spec: ModelSpec, graph: step_graph.StepGraph) -> PoolNetwork | SequenceNetwork:
    """What serves a model of kind "network"."""
    if spec.window:
        return GraphWindowNetwork(spec, graph)
    return StepNetwork(spec, graph) if spec.states else graph_sequences(spec, graph)


def _check_taps(taps: tuple[Tap, ...], spec: ModelSpec, graph: step_graph.StepGraph) -> None:
    """Raises InvalidModelFolder for a tap that names what the spec or the step graph lacks."""
    places = {"": _Places(graph.nodes, graph.initializers, (*spec.inputs, *spec.states))}
    for node in graph.nodes:
        for body in subgraphs(node) if node.op_type == "Scan" else ():
            weights = {each.name for each in body.initializer} | places[""].weights
            places[node.output[0]] = _Places(body.node, weights, body.input)
    for tap in taps:
        if (place := places.get(tap.inside)) is None:
            raise InvalidModelFolder(f"{tap}: {MODEL} has no Scan {tap.inside!r}: {AGAIN}")
        for name in tap.states:
            _check_state(tap, name, spec)
        for name in (tap.input, *tap.before, *tap.after):
            if name not in place.values:
                raise InvalidModelFolder(f"{tap}: {MODEL} has no value {name!r}: {AGAIN}")
        for name in tap.weights.values():
            if name not in place.weights:
                raise InvalidModelFolder(f"{tap}: {MODEL} has no weight {name!r}: {AGAIN}")


class _Places:
    """The names of a graph's values and weights."""

    def __init__(
        self, nodes: Iterable[NodeProto], weights: Iterable[str], inputs: Iterable[Any]
    ) -> None:
        self.values = {each.name for each in inputs}
        self.values |= {name for node in nodes for name in node.output}
        self.weights = set(weights)


def _check_state(tap: Tap, name: str, spec: ModelSpec) -> None:
    state = find_tensor(spec.states, name)
    if state is None or state.dtype != "float32":
        raise InvalidModelFolder(f"{tap}: {name!r} is no float state of the spec: {AGAIN}")
    rows = state.shape[0] if len(state.shape) > 1 else 1
    if tap.index >= rows:
        raise InvalidModelFolder(f"{tap}: the state {name!r} has no layer {tap.index}: {AGAIN}")


def _check_file(path: Path, bytes_max: int) -> None:
    """Raises InvalidModelFolder for a file that must not be opened, and OSError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
        raise InvalidModelFolder(f"{path.name} is not a file")
    if status.st_size > bytes_max:
        raise InvalidModelFolder(
            f"{path.name} has {status.st_size} bytes, at most {bytes_max} are read: "
            "copy it again or export again"
        )


def write_model(models: Path, manifest: Manifest, files: Mapping[str, bytes], force: bool) -> Path:
    """Writes models/NAME/VERSION whole or not at all, and returns its path.

    Raises FileExistsError if the version exists and `force` is not set.
    """
    target = models / manifest.name / str(manifest.version)
    if target.exists() and not force:
        raise FileExistsError(str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{NEW}{os.getpid()}-", dir=target.parent))
    try:
        scratch.chmod(0o755)
        for name, content in {**files, MANIFEST: manifest.to_json().encode()}.items():
            with (scratch / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if target.exists():
            old = scratch.with_name(f"{OLD}{os.getpid()}-{manifest.version}")
            target.rename(old)
            scratch.rename(target)
            shutil.rmtree(old)
        else:
            scratch.rename(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(scratch)
    return target


def tidy_up(models: Path, name: str, process: int) -> None:
    """Removes what a process that was killed in write_model() has left of models/NAME, and puts a
    version back that it had moved away and not yet replaced."""
    folder = models / name
    for old in folder.glob(f"{OLD}{process}-*"):
        target = folder / old.name.rpartition("-")[2]
        if target.exists():
            shutil.rmtree(old)
        else:
            old.rename(target)
    for scratch in folder.glob(f"{NEW}{process}-*"):
        shutil.rmtree(scratch)
