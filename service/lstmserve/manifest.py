"""Owns the model folder: models/NAME/VERSION/{model.onnx, manifest.json, golden.npz}.

Written once, atomically, by the export; read and verified by the server. No onnxruntime.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lstmserve.golden import Golden, InvalidGolden, load_golden
from lstmserve.graph import InvalidModel, Weights, read_weights
from lstmserve.graph.weights import fingerprint
from lstmserve.spec import InvalidSpec, ModelSpec

FORMAT = 1
MODEL, MANIFEST, GOLDEN = "model.onnx", "manifest.json", "golden.npz"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")


class InvalidModelFolder(ValueError):
    """A version folder that must not be served; the message names it, the fault and the mend."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json. `sha256` has one entry per other file; `versions` names what exported it;
    `parity` is the report of the export's proof; `notes` are its remarks to a reader."""

    name: str
    version: int
    spec: ModelSpec
    fingerprint: str
    sha256: Mapping[str, str]
    versions: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The text of manifest.json."""
        values = {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "spec": self.spec.to_json(),
            "fingerprint": self.fingerprint,
            "sha256": dict(self.sha256),
            "versions": dict(self.versions),
            "parity": dict(self.parity),
            "notes": list(self.notes),
        }
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Raises InvalidModelFolder, also for a format of another release."""
        try:
            values = json.loads(text)
            if (found := values.pop("format", None)) != FORMAT:
                raise InvalidModelFolder(
                    f"{MANIFEST} has format {found!r}, this release reads {FORMAT}: "
                    "export again, or serve it with the release that exported it"
                )
            spec = ModelSpec.from_json(values.pop("spec"))
            return cls(spec=spec, notes=tuple(values.pop("notes", ())), **values)
        except InvalidModelFolder:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidModelFolder(f"{MANIFEST} is malformed: {error}") from error


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A verified version folder, read: everything the server needs of it."""

    manifest: Manifest
    weights: Weights
    golden: Mapping[str, Golden]


def sha256(content: bytes) -> str:
    """In hex, as the manifest holds it."""
    return hashlib.sha256(content).hexdigest()


def list_versions(models: Path) -> list[tuple[str, int]]:
    """Every (name, version) below `models`, sorted; other files and folders are passed over.

    Raises InvalidModelFolder for a folder that may not be looked into: a model is not just missed.
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


def _folders(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    if not folder.is_dir():
        return []
    return [each.name for each in folder.iterdir() if pattern.fullmatch(each.name)]


def read_model(models: Path, name: str, version: int) -> ModelFiles:
    """Reads and verifies models/NAME/VERSION. Raises InvalidModelFolder."""
    folder = models / name / str(version)
    try:
        for file in (MANIFEST, MODEL, GOLDEN):
            if (folder / file).exists() and not (folder / file).is_file():
                raise InvalidModelFolder(f"{file} is not a file")  # a pipe would be waited for
        manifest = Manifest.from_json((folder / MANIFEST).read_text())
        contents = {file: (folder / file).read_bytes() for file in (MODEL, GOLDEN)}
        for file, content in contents.items():
            if manifest.sha256.get(file) != sha256(content):
                raise InvalidModelFolder(
                    f"{file} is not the file that was exported (its sha256 differs): "
                    "copy it again or export again"
                )
        weights = read_weights(contents[MODEL], manifest.spec)
        golden = load_golden(contents[GOLDEN])
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidModelFolder(f"{folder}: cannot be read: {error}") from error
    except (InvalidModelFolder, InvalidModel, InvalidGolden, InvalidSpec) as error:
        raise InvalidModelFolder(f"{folder}: {error}") from error
    if (manifest.name, manifest.version) != (name, version):
        raise InvalidModelFolder(
            f"{folder} holds {manifest.name}:{manifest.version}: put it in the folder of that name"
        )
    if manifest.fingerprint != fingerprint(manifest.spec, weights):
        raise InvalidModelFolder(f"{folder}: the fingerprint does not match the weights")
    return ModelFiles(manifest, weights, golden)


def write_model(models: Path, manifest: Manifest, files: Mapping[str, bytes], force: bool) -> Path:
    """Writes models/NAME/VERSION whole or not at all, and returns it.

    Raises FileExistsError when the version exists and `force` is not set.
    """
    target = models / manifest.name / str(manifest.version)
    if target.exists() and not force:
        raise FileExistsError(str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        scratch.chmod(0o755)
        for name, content in {**files, MANIFEST: manifest.to_json().encode()}.items():
            with (scratch / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if target.exists():
            old = scratch.with_name(scratch.name.replace(".new-", ".old-"))
            target.rename(old)
            scratch.rename(target)
            shutil.rmtree(old)
        else:
            scratch.rename(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(scratch)
    return target
