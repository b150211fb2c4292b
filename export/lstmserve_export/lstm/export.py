"""Builds, verifies and writes a model of kind "lstm", whose graph comes from its weights alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lstmserve.golden import dump_golden
from lstmserve.graph import LstmWindowNetwork, build_portable
from lstmserve.graph.weights import Weights, fingerprint
from lstmserve.lstm_golden import dump_lstm_golden
from lstmserve.manifest import GOLDEN, MODEL, Manifest, sha256
from lstmserve.spec import InvalidSpec, LstmSpec, ModelSpec, WindowFill
from lstmserve_export.arrays import Arrays, read_npz
from lstmserve_export.lstm.convert import convert
from lstmserve_export.lstm.mends import JOINED
from lstmserve_export.lstm.network import Network, describe
from lstmserve_export.lstm.pairs import take_pairs, take_windows
from lstmserve_export.lstm.pairs_proof import choice_notes, prove_pairs, start_notes
from lstmserve_export.lstm.parity import check_start, prove, random_case
from lstmserve_export.lstm.windows_proof import prove_window_pairs, prove_windows
from lstmserve_export.refusal import Refused
from lstmserve_export.target import ONNX_BYTES_MAX, TOO_LARGE, Exported, Target, package_versions

Progress = Callable[[str], None]
Proof = tuple[bytes, dict[str, Any], tuple[str, ...]]
NO_WINDOW: Final = "a window fill has a meaning only with a window: give --window W too"


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
    progress: Progress = lambda stage: None,
    *,
    window: int = 0,
    window_fill: WindowFill | None = None,
) -> Exported:
    """Builds, verifies and writes; calls `progress` as each stage begins. Raises Refused.

    With a `window` of W rows, an answer is the network's to the last W rows; `window_fill` is
    "wait" by default.
    """
    version = target.choose_version()
    progress("build the graph")
    lstm = describe(network)
    spec = _spec(lstm, window, window_fill)
    weights = convert(network, lstm)
    if sum(tensor.nbytes for tensor in weights.values()) > ONNX_BYTES_MAX:
        raise Refused(TOO_LARGE)
    content = build_portable(lstm, weights).SerializeToString(deterministic=True)
    check_start(content, network, lstm)
    prove_it = _prove_windows if window else _prove_running
    golden, parity, notes = prove_it(network, spec, weights, content, pairs, progress)
    files = {MODEL: content, GOLDEN: golden}
    manifest = Manifest(
        name=target.name,
        version=version,
        spec=spec,
        fingerprint=fingerprint(lstm, weights, (spec.window, spec.window_fill)),
        sha256={file: sha256(data) for file, data in files.items()},
        versions=package_versions(),
        parity=parity,
        notes=(*network.notes, *notes),
    )
    progress("write the folder")
    return target.write(manifest, files)


def _spec(lstm: LstmSpec, window: int, window_fill: WindowFill | None) -> ModelSpec:
    """Raises Refused."""
    if not window and window_fill is not None:
        raise Refused(NO_WINDOW)
    try:
        return ModelSpec.of_lstm(lstm, window, (window_fill or "wait") if window else None)
    except InvalidSpec as error:
        raise Refused(str(error)) from error


def _prove_running(
    network: Network,
    spec: ModelSpec,
    weights: Weights,
    content: bytes,
    pairs: Arrays | None,
    progress: Progress,
) -> Proof:
    """golden.npz, the parity report and notes of a model whose state runs on."""
    lstm = describe(network)
    progress("parity: torch's own answers")
    user = None if pairs is None else take_pairs(pairs, network, lstm)
    case, notes = random_case(network, lstm, user)
    cases = {"parity": case}
    parity = prove(content, lstm, case, progress)
    if user is not None:
        progress("parity: your own pairs")
        cases["user"] = user
        parity["excess"]["user"] = prove_pairs(content, user, network)
        notes += (*start_notes(user, network), *choice_notes(user, network))
    return dump_lstm_golden(cases), parity, notes


def _prove_windows(
    network: Network,
    spec: ModelSpec,
    weights: Weights,
    content: bytes,
    pairs: Arrays | None,
    progress: Progress,
) -> Proof:
    """golden.npz, the parity report and notes of a model with a window. Its model.onnx, which has
    no window, is checked as well."""
    lstm, served = describe(network), LstmWindowNetwork(spec, weights)
    user, excess = None, {}
    if pairs is not None:
        progress("parity: your own pairs")
        sequences, user = take_windows(pairs, network, spec)
        excess["user"] = prove_window_pairs(network, served, user, sequences)
    progress("parity: torch's own answers")
    case, _ = random_case(network, lstm, user)
    portable = prove(content, lstm, case, progress)
    cases, parity, notes = prove_windows(network, served, user, progress)
    if lstm.bidirectional and user is None:
        notes += (f"if forward() {JOINED}, export the module itself with --module",)
    for name in ("torch_error", "onnx_error"):
        parity[name] = max(parity[name], portable[name])
    parity["excess"] |= portable["excess"] | excess
    return dump_golden(cases), parity, notes
