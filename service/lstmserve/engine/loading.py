"""Loads every version in the models folder and proves it, before the server says Ready.

Owns the size of the pools. Blocking; raises InvalidModelFolder, DeviceUnavailable, PoolTooSmall and
PoolTooLarge.
"""

from __future__ import annotations

from lstmserve.config import Config
from lstmserve.engine.compute.device import Device, choose_device
from lstmserve.engine.compute.kernel import Kernel
from lstmserve.engine.compute.pool import RESERVED, Pool, slot_bytes
from lstmserve.engine.compute.selftest import SelfTestFailed, check_kernel, check_whole
from lstmserve.engine.compute.whole import WholeKernel
from lstmserve.engine.model import Model, slots_for, spare_slots
from lstmserve.manifest import InvalidModelFolder, ModelFiles, list_versions, read_model


class PoolTooSmall(ValueError):
    """--pool-bytes does not hold even one session of every model."""


class PoolTooLarge(ValueError):
    """--pool-bytes is more than the machine gives."""


def load_models(config: Config) -> list[Model]:
    """Every (name, version), with golden vectors replayed and the pool tested."""
    if not config.models.is_dir():
        raise InvalidModelFolder(
            f"{config.models}: no such folder; name yours with --models, "
            "or make one with `lstmserve export`"
        )
    versions = list_versions(config.models)
    if not versions:
        raise InvalidModelFolder(
            f"{config.models}: no NAME/VERSION/manifest.json in it, VERSION a whole number from 1; "
            "`lstmserve export` writes one"
        )
    device = choose_device(config.device)
    files = [read_model(config.models, name, version) for name, version in versions]
    steppable = [each for each in files if not each.manifest.spec.bidirectional]
    share = config.pool_bytes // max(1, len(steppable))
    return [_load(config, each, device, share) for each in files]


def _load(config: Config, files: ModelFiles, device: Device, pool_bytes: int) -> Model:
    manifest = files.manifest
    spec = manifest.spec
    pool = kernel = whole = None
    sessions = 0
    try:
        if spec.bidirectional:
            whole = WholeKernel(spec, files.weights, device, config.threads)
            check_whole(whole, spec, files.golden)
        else:
            sessions = sessions_that_fit(config, slot_bytes(spec), pool_bytes)
            if sessions < 1:
                need = slots_for(1, config) * slot_bytes(spec)
                raise PoolTooSmall(
                    f"--pool-bytes: {manifest.name}:{manifest.version} has {pool_bytes} bytes of "
                    f"it, needs {need}: {spare_slots(config)} spare slots of {slot_bytes(spec)} "
                    "bytes for batches, and one session"
                )
            try:
                pool = Pool(spec, slots_for(sessions, config), device)
            except MemoryError:
                raise PoolTooLarge(
                    f"--pool-bytes: this machine has no room for the {pool_bytes} bytes of "
                    f"{manifest.name}:{manifest.version}"
                ) from None
            kernel = Kernel(spec, files.weights, pool, device, config.threads)
            check_kernel(kernel, pool, spec, files.golden)
    except SelfTestFailed as error:
        raise InvalidModelFolder(f"{manifest.name}:{manifest.version}: {error}") from error
    return Model(
        name=manifest.name,
        version=manifest.version,
        spec=spec,
        fingerprint=manifest.fingerprint,
        device=device,
        pool=pool,
        kernel=kernel,
        whole=whole,
        sessions_max=sessions,
    )


def sessions_that_fit(config: Config, state_bytes: int, pool_bytes: int) -> int:
    """Sessions of a pool of so many bytes, after the spare and the reserved slots."""
    return pool_bytes // state_bytes - spare_slots(config) - RESERVED
