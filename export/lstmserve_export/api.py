"""Exports a network as a model folder, proved before it is written. Prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from lstmserve.graph import build_portable
from lstmserve.graph.weights import fingerprint
from lstmserve.lstm_golden import dump_lstm_golden
from lstmserve.manifest import (
    GOLDEN,
    MODEL,
    NAME,
    Manifest,
    list_versions,
    sha256,
    write_model,
)
from lstmserve.spec import ModelSpec
from lstmserve_export.convert import convert
from lstmserve_export.network import (
    Network,
    Norm,
    describe,
    take_embedding,
    take_head,
    take_lstm,
)
from lstmserve_export.pairs import Arrays, read_pairs, take_pairs
from lstmserve_export.pairs_proof import prove_pairs
from lstmserve_export.parity import LENGTHS, probing, prove
from lstmserve_export.refusal import Refused

PACKAGES = ("lstmserve", "torch", "onnx", "onnxruntime", "numpy")
CHAOTIC_ERROR = 0.01
ONNX_BYTES_MAX = (1 << 31) - (1 << 20)


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote, or with `dry_run` would have written, to `folder`."""

    folder: Path
    manifest: Manifest
    bytes: int


@dataclass(frozen=True, slots=True)
class Target:
    """Where a model goes. `version` None: one more than the newest there is."""

    name: str
    models: Path = Path("models")
    version: int | None = None
    force: bool = False
    dry_run: bool = False


def export(
    lstm: nn.LSTM | nn.LSTMCell,
    head: nn.Module | None = None,
    *,
    name: str,
    models: str | Path = "models",
    version: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    embedding: nn.Embedding | None = None,
    input_mean: npt.ArrayLike | None = None,
    input_scale: npt.ArrayLike | None = None,
    output_mean: npt.ArrayLike | None = None,
    output_scale: npt.ArrayLike | None = None,
    golden: Mapping[str, npt.ArrayLike] | str | Path | None = None,
) -> Exported:
    """Exports live modules, y = head(lstm(x)), as models/NAME/VERSION.

    `head`: nn.Linear, or nn.Sequential of Linear, ReLU, Tanh, Sigmoid, Softmax, Dropout; None: y is
    the LSTM's output. `embedding`: the model takes tokens. Means and scales: [width] each, applied
    as (x - mean) / scale and y * scale + mean. `version` None takes the next one.
    `golden`: pairs of your own model to prove, as docs/EXPORT.md has them, or an .npz with them.
    Raises Refused; nothing is written then.
    """
    network = Network(
        lstm=take_lstm(lstm),
        head=take_head(head),
        embedding=take_embedding(embedding),
        input_norm=make_norm(input_mean, input_scale),
        output_norm=make_norm(output_mean, output_scale),
    )
    target = Target(name, Path(models), version, force, dry_run)
    return export_network(network, target, make_pairs(golden))


def make_pairs(golden: Mapping[str, npt.ArrayLike] | str | Path | None) -> Arrays | None:
    """The arrays, read if they are in a file. Raises Refused."""
    if golden is None:
        return None
    if isinstance(golden, (str, Path)):
        return read_pairs(Path(golden))
    return {name: np.asarray(array) for name, array in golden.items()}


def make_norm(mean: npt.ArrayLike | None, scale: npt.ArrayLike | None) -> Norm | None:
    """One of the two may be missing: no shift, or no stretch."""
    if mean is None and scale is None:
        return None
    given = [None if part is None else np.array(part, np.float64) for part in (mean, scale)]
    shape = next(part.shape for part in given if part is not None)
    means, scales = given
    return Norm(
        np.zeros(shape) if means is None else means, np.ones(shape) if scales is None else scales
    )


def export_network(
    network: Network,
    target: Target,
    pairs: Arrays | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Exported:
    """Builds, proves and writes; `progress` is told each stage as it begins. Raises Refused."""
    if not NAME.fullmatch(target.name):
        raise Refused(f"{target.name!r} cannot be a model's name ({NAME.pattern}): give --name")
    version = target.version or next_version(target.models, target.name)
    folder = target.models / target.name / str(version)
    if folder.exists() and not target.force:
        raise _exists(folder)
    progress("build the graph")
    spec = describe(network)
    weights = convert(network, spec)
    if sum(tensor.nbytes for tensor in weights.values()) > ONNX_BYTES_MAX:
        raise Refused("the weights are larger than the 2 GB an ONNX file can hold")
    content = build_portable(spec, weights).SerializeToString(deterministic=True)
    progress("parity: torch's own answers")
    case, whole_error = probing(network, spec)
    cases = {"parity": case}
    parity = prove(content, spec, cases["parity"], progress)
    if pairs is not None:
        progress("parity: your own pairs")
        cases["user"] = take_pairs(pairs, network, spec)
        parity["excess"]["user"] = prove_pairs(content, cases["user"], network)
    files = {MODEL: content, GOLDEN: dump_lstm_golden(cases)}
    manifest = Manifest(
        name=target.name,
        version=version,
        spec=ModelSpec.of_lstm(spec),
        fingerprint=fingerprint(spec, weights),
        sha256={file: sha256(data) for file, data in files.items()},
        versions={package: package_version(package) for package in PACKAGES},
        parity=parity,
        notes=(*network.notes, *_chaos_note(whole_error)),
    )
    if not target.dry_run:
        progress("write the folder")
        _write(target, manifest, files)
    return Exported(folder, manifest, sum(map(len, files.values())))


def _chaos_note(torch_error: float) -> tuple[str, ...]:
    """Whoever serves a network that amplifies rounding ought to know."""
    if torch_error <= CHAOTIC_ERROR:
        return ()
    return (
        f"torch's own float32 is off by {torch_error:.2g} within {max(LENGTHS)} rows: this network "
        "amplifies rounding, so parity is proved on shorter rows where that is needed, and long "
        "streams differ between machines",
    )


def next_version(models: Path, name: str) -> int:
    """One more than the newest version of `name` in the folder."""
    return 1 + max((v for n, v in list_versions(models) if n == name), default=0)


def _write(target: Target, manifest: Manifest, files: dict[str, bytes]) -> None:
    try:
        write_model(target.models, manifest, files, target.force)
    except FileExistsError as error:
        raise _exists(Path(str(error))) from error
    except OSError as error:
        raise Refused(f"cannot write to {target.models}: {error}") from error


def _exists(folder: Path) -> Refused:
    return Refused(f"{folder} exists: give --force to replace it, or another --model-version")
