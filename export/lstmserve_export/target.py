"""Where an export goes: the name, the version and the folder, and how its files are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path

from lstmserve.manifest import NAME, Manifest, list_versions, write_model
from lstmserve_export.refusal import Refused

ONNX_BYTES_MAX = (1 << 31) - (1 << 20)
TOO_LARGE = "the weights are larger than the 2 GB an ONNX file can hold"
PACKAGES = ("lstmserve", "torch", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote, or with `dry_run` would have written, to `folder`."""

    folder: Path
    manifest: Manifest
    bytes: int


@dataclass(frozen=True, slots=True)
class Target:
    """Where a model goes. `version` None: one above the newest that exists."""

    name: str
    models: Path = Path("models")
    version: int | None = None
    force: bool = False
    dry_run: bool = False

    def choose_version(self) -> int:
        """The version to write. Raises Refused for an impossible name and a version that exists."""
        if not NAME.fullmatch(self.name):
            raise Refused(f"{self.name!r} cannot be a model's name ({NAME.pattern}): give --name")
        version = self.version or next_version(self.models, self.name)
        folder = self.models / self.name / str(version)
        if folder.exists() and not self.force:
            raise _exists(folder)
        return version

    def write(self, manifest: Manifest, files: Mapping[str, bytes]) -> Exported:
        """Writes the version whole or not at all; with `dry_run` nothing. Raises Refused."""
        folder = self.models / self.name / str(manifest.version)
        if not self.dry_run:
            try:
                write_model(self.models, manifest, files, self.force)
            except FileExistsError as error:
                raise _exists(Path(str(error))) from error
            except OSError as error:
                raise Refused(f"cannot write to {self.models}: {error}") from error
        return Exported(folder, manifest, sum(map(len, files.values())))


def next_version(models: Path, name: str) -> int:
    """One above the newest version of `name` in the folder."""
    return 1 + max((v for n, v in list_versions(models) if n == name), default=0)


def package_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """The versions of the libraries that took part, for the manifest."""
    return {package: package_version(package) for package in packages}


def _exists(folder: Path) -> Refused:
    return Refused(f"{folder} exists: give --force to replace it, or another --model-version")
