"""Builds, verifies and writes a model of kind "lstm", whose graph comes from its weights alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lstmserve.graph import build_portable
from lstmserve.graph.weights import fingerprint
from lstmserve.lstm_golden import dump_lstm_golden
from lstmserve.manifest import GOLDEN, MODEL, Manifest, sha256
from lstmserve.spec import ModelSpec
from lstmserve_export.arrays import Arrays, read_npz
from lstmserve_export.lstm.convert import convert
from lstmserve_export.lstm.network import Network, describe
from lstmserve_export.lstm.pairs import take_pairs
from lstmserve_export.lstm.pairs_proof import prove_pairs
from lstmserve_export.lstm.parity import prove, random_case
from lstmserve_export.refusal import Refused
from lstmserve_export.sequences import chaos_notes
from lstmserve_export.target import ONNX_BYTES_MAX, TOO_LARGE, Exported, Target, package_versions


def make_pairs(golden: Mapping[str, npt.ArrayLike] | str | Path | None) -> Arrays | None:
    """The arrays, which it reads if they are in a file. Raises Refused."""
    if golden is None:
        return None
    if isinstance(golden, (str, Path)):
        return read_npz(Path(golden), "--golden")
    return {name: np.asarray(array) for name, array in golden.items()}


def export_network(
    network: Network,
    target: Target,
    pairs: Arrays | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Exported:
    """Builds, verifies and writes; calls `progress` as each stage begins. Raises Refused."""
    version = target.choose_version()
    progress("build the graph")
    spec = describe(network)
    weights = convert(network, spec)
    if sum(tensor.nbytes for tensor in weights.values()) > ONNX_BYTES_MAX:
        raise Refused(TOO_LARGE)
    content = build_portable(spec, weights).SerializeToString(deterministic=True)
    progress("parity: torch's own answers")
    case, whole_error = random_case(network, spec)
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
        versions=package_versions(),
        parity=parity,
        notes=(*network.notes, *chaos_notes(whole_error)),
    )
    progress("write the folder")
    return target.write(manifest, files)
