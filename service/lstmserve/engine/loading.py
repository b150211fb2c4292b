"""Loads every version in the models folder and runs its self-test before the server is ready.

On the CPU each model reserves all of --pool-bytes, which they share (budget.py); on a device it is
divided among them. It blocks, and raises InvalidModelFolder, DeviceUnavailable, PoolTooSmall and
PoolTooLarge.
"""

from __future__ import annotations

from collections.abc import Callable

from lstmserve.config import Config
from lstmserve.engine.budget import PoolTooSmall, too_small
from lstmserve.engine.compute.device import Device, GraphRefused, choose_device
from lstmserve.engine.compute.kernel import Kernel, KernelError, SequenceKernel
from lstmserve.engine.compute.pool import Pool
from lstmserve.engine.compute.selftest import SelfTestFailed, check_kernel, check_sequences
from lstmserve.engine.model import Model, slots_for
from lstmserve.graph import InvalidModel, SequenceNetwork
from lstmserve.manifest import (
    InvalidModelFolder,
    Manifest,
    ModelFiles,
    RefusedFolder,
    find_versions,
    read_model,
)
from lstmserve.spec import ModelSpec


class PoolTooLarge(ValueError):
    """--pool-bytes is more memory than this machine has."""


def load_models(
    config: Config, on_refused: Callable[[RefusedFolder], None] | None = None
) -> list[Model]:
    """Loads and tests every (name, version) of the folder.

    `on_refused` receives each version that cannot be served, and the others are served. Where it is
    None, or where no version is left, the first error is raised instead.
    """
    refusals = _Refusals(on_refused is None)
    versions = _find(config, refusals)
    device = choose_device(config.device)
    files, models = [], []
    for name, version in versions:
        try:
            files.append(_read(config, name, version))
        except InvalidModelFolder as error:
            refusals.add(f"{name}/{version}", error)
    streaming = sum(each.manifest.spec.is_streaming for each in files)
    share = config.pool_bytes if device == "cpu" else config.pool_bytes // max(1, streaming)
    left = config.pool_bytes  # of what is not needed for batches and one session of each model
    for each in files:
        try:
            models.append(load_version(config, each, device, share, left))
            left -= floor_bytes(config, each.manifest.spec)
        except (InvalidModelFolder, PoolTooSmall) as error:
            refusals.add(f"{each.manifest.name}/{each.manifest.version}", error)
    if not models:
        raise refusals.error()
    for folder, reason in refusals.errors.items():
        assert on_refused is not None
        on_refused(RefusedFolder(folder, str(reason)))
    return models


class _Refusals:
    """Errors of versions that cannot be served, by folder. If strict, add() raises the first."""

    def __init__(self, is_strict: bool) -> None:
        self._is_strict = is_strict
        self.errors: dict[str, Exception] = {}

    def add(self, folder: str, error: Exception) -> None:
        if self._is_strict:
            raise error
        self.errors[folder] = error

    def error(self) -> Exception:
        """The error for no version at all, of the class of the first error."""
        first = next(iter(self.errors.values()))
        rest = len(self.errors) - 1
        return type(first)(f"{first}" + (f"; and {rest} more are refused" if rest else ""))


def _find(config: Config, refusals: _Refusals) -> list[tuple[str, int]]:
    """Every (name, version), sorted. Raises InvalidModelFolder where the folder has none."""
    if not config.models.is_dir():
        raise InvalidModelFolder(
            f"{config.models}: no such folder; name yours with --models, "
            "or make one with `lstmserve export`"
        )
    versions, refused = find_versions(config.models)
    if not versions and not refused:
        raise InvalidModelFolder(
            f"{config.models}: no NAME/VERSION/manifest.json in it, VERSION a whole number from 1; "
            "`lstmserve export` writes one"
        )
    for each in refused:
        refusals.add(each.folder, InvalidModelFolder(each.reason))
    return versions


def _read(config: Config, name: str, version: int) -> ModelFiles:
    """Raises InvalidModelFolder, also where --store-format has no room for the model's states."""
    files = read_model(config.models, name, version)
    spec = files.manifest.spec
    if config.store_format == 1 and spec.states and (spec.kind != "lstm" or spec.window):
        raise InvalidModelFolder(
            f"{name}:{version}: --store-format 1 stores the states of an nn.LSTM alone: "
            "leave it out, or serve this model elsewhere"
        )
    return files


def floor_bytes(config: Config, spec: ModelSpec) -> int:
    """Bytes of --pool-bytes that a model must have: for its batches, and for one session."""
    return slots_for(1, config, spec.cells) * spec.state_bytes if spec.is_streaming else 0


def _exported_difference(manifest: Manifest) -> float:
    """How far a batch or a chunk of kind "network" changed a result when it was exported, perhaps
    on rows of which the golden vectors have none."""
    found = manifest.parity.get("difference", 0.0) if manifest.spec.kind == "network" else 0.0
    return float(found) if isinstance(found, int | float) and found >= 0 else 0.0


def load_version(
    config: Config, files: ModelFiles, device: Device, pool_bytes: int, left: int
) -> Model:
    """Loads and tests one version, whose pool may have `pool_bytes`, if it needs at most `left`.

    Raises InvalidModelFolder, PoolTooSmall, PoolTooLarge and DeviceUnavailable.
    """
    manifest, network = files.manifest, files.network
    pool = kernel = sequences = None
    try:
        if isinstance(network, SequenceNetwork):
            sequences = SequenceKernel(network, device, config.threads)
            check_sequences(sequences, files.golden)
        else:
            need, left = floor_bytes(config, manifest.spec), min(left, pool_bytes)
            if need > left:
                raise PoolTooSmall(too_small(manifest.name, manifest.version, need, left))
            slots = pool_bytes // manifest.spec.state_bytes
            try:
                pool = Pool(network.layout, slots, device)
            except MemoryError:
                raise PoolTooLarge(
                    f"--pool-bytes: this machine has no room for the {pool_bytes} bytes of "
                    f"{manifest.name}:{manifest.version}"
                ) from None
            kernel = Kernel(network, pool, device, config.threads)
            check_kernel(kernel, pool, files.golden)
            kernel.difference = max(kernel.difference, _exported_difference(manifest))
    except (SelfTestFailed, KernelError, GraphRefused, InvalidModel) as error:
        raise InvalidModelFolder(f"{manifest.name}:{manifest.version}: {error}") from error
    except MemoryError as error:
        raise InvalidModelFolder(
            f"{manifest.name}:{manifest.version}: needs more memory than this machine gives"
        ) from error
    return Model(
        name=manifest.name,
        version=manifest.version,
        spec=manifest.spec,
        fingerprint=manifest.fingerprint,
        device=device,
        pool=pool,
        kernel=kernel,
        sequences=sequences,
    )
