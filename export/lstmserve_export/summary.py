"""Prints the summary of an export. Decides nothing."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Final, Literal

from rich.console import Console

from lstmserve.extras import hint, missing_modules
from lstmserve.head_layers import (
    BatchNorm,
    Elu,
    HeadLayer,
    LayerNorm,
    LeakyRelu,
    Linear,
    layer_name,
)
from lstmserve.manifest import Manifest
from lstmserve.spec import LstmSpec, ModelSpec, TensorSpec, WindowFill
from lstmserve_export.refusal import printable
from lstmserve_export.target import Exported

Rows = list[tuple[str, str]]
Way = Literal["tensors", "module", "import"]  # what was exported
IMPORTED: Final = (
    "Every check compared the model with the file itself in onnxruntime, step by step.",
    "The server runs the graph of this file as it is: serve it only if you trust the file.",
)
FILLS: Final[Mapping[WindowFill, str]] = {
    "wait": "a session that has given fewer gets no answer (wait)",
    "zeros": "zeros stand for those that a session has not given (zeros)",
    "grow": "of a session that has given fewer, all that it has given (grow)",
}


def show(
    console: Console, exported: Exported, *, is_dry_run: bool, way: Way, has_golden: bool
) -> None:
    """Prints what was exported, the results of the checks and the next command to type."""
    manifest = exported.manifest
    rows = [
        ("model", f"{manifest.name}:{manifest.version}  ({exported.bytes:,} bytes)"),
        ("folder", str(exported.folder)),
        *(_network_rows(manifest, way) if manifest.spec.lstm is None else _lstm_rows(manifest)),
    ]
    if way == "module":
        rows += [("", "Every check compared the model with your own forward().")]
    elif way == "import":
        rows += [("", each) for each in IMPORTED]
    elif not has_golden:
        rows += [
            ("", "This is not yet checked against your forward(): save x and y of your model, and"),
            ("", "export again with --golden PAIRS.npz (docs/EXPORT.md shows how)."),
        ]
    rows += [("dry run", "nothing was written")] if is_dry_run else _next(exported)
    for label, text in rows:
        # Names from the file are not markup, and a command to copy must stay on one line.
        console.print(
            printable(f"{label:<10}{text}"), markup=False, highlight=False, soft_wrap=True
        )


def _next(exported: Exported) -> Rows:
    """The command that serves the model, and what it needs that is not installed."""
    command = f"lstmserve serve --models {shlex.quote(str(exported.folder.parent.parent))}"
    if not (missing := missing_modules()):
        return [("next", command)]
    return [
        ("next", f"to serve it here, {hint('cpu', 'gpu')} ({missing[0]} is missing); then"),
        ("", command),
    ]


def _lstm_rows(manifest: Manifest) -> Rows:
    return [
        ("LSTM", describe_lstm(manifest.lstm, manifest.spec.window)),
        ("head", describe_head(manifest.lstm)),
        *_window_rows(manifest.spec),
        *_parity_rows(manifest),
        *(("note", note) for note in manifest.notes),
        ("computes", formula(manifest.lstm, manifest.spec.window)),
    ]


def _network_rows(manifest: Manifest, way: Way) -> Rows:
    spec = manifest.spec
    groups = (("inputs", spec.inputs), ("outputs", spec.outputs), ("states", spec.states))
    return [
        *([("layers", describe_layers(manifest))] if manifest.taps else []),
        *((label, ", ".join(map(describe_tensor, tensors)) or "none") for label, tensors in groups),
        *_window_rows(spec),
        *_parity_rows(manifest, way),
        ("", describe_bits(manifest)),
        *(("note", note) for note in manifest.notes),
    ]


def _window_rows(spec: ModelSpec) -> Rows:
    """What a step is answered from, of a model with a window."""
    if spec.window_fill is None:
        return []
    return [("window", f"{spec.window} rows; {FILLS[spec.window_fill]}")]


def _parity_rows(manifest: Manifest, way: Way = "tensors") -> Rows:
    parity = manifest.parity
    torch = "" if way == "import" else f" (torch itself: {parity['torch_error']:.1e})"
    worst = max(parity["excess"].values())
    # "random in single steps", "random in chunks", ... are one name.
    names = dict.fromkeys(name.partition(" in ")[0] for name in parity["excess"])
    return [
        (
            "parity",
            f"{', '.join(names)}: passed; error at most {worst:.2g} of the limit",
        ),
        ("", f"largest error {parity['onnx_error']:.1e}{torch}"),
    ]


def describe_tensor(tensor: TensorSpec) -> str:
    """Name and shape of one time step, and the dtype unless it is float32."""
    dtype = "" if tensor.dtype == "float32" else f" {tensor.dtype}"
    return f"{tensor.name} {list(tensor.shape)}{dtype}"


def describe_layers(manifest: Manifest) -> str:
    """The recurrent layers: for each its path in torch, its kind and its number of layers."""
    depths = Counter((tap.layer, tap.kind.upper(), tap.states) for tap in manifest.taps)
    return ", ".join(
        f"{layer} ({kind}{f', {depth} layers' if depth > 1 else ''})"
        for (layer, kind, _), depth in depths.items()
    )


def describe_bits(manifest: Manifest) -> str:
    """Whether bits depend on batch and chunk, as the export measured."""
    if manifest.parity["is_exact"]:
        return "exact: no bit depends on the batch or the chunk"
    far = manifest.parity["difference"]
    return f"not exact: batch and chunk change a result, in these checks by at most {far:.1e}"


def describe_lstm(spec: LstmSpec, window: int = 0) -> str:
    """The sizes of the LSTM in words."""
    source = f"{spec.num_embeddings} tokens -> " if spec.num_embeddings else ""
    parts = [f"{source}{spec.input_size} -> {spec.hidden_size}", f"{spec.num_layers} layer(s)"]
    parts += [f"projected to {spec.proj_size}"] if spec.proj_size else []
    parts += [] if spec.bias else ["no bias"]
    if spec.bidirectional:
        whole = ": whole sequences only (Predict), unless it gets a window (--window W)"
        parts.append(f"bidirectional{'' if window else whole}")
    return ", ".join(parts)


def describe_head(spec: LstmSpec) -> str:
    """The layers of the head in order, and what is added to it."""
    width, parts = spec.lstm_output_size, []
    for layer in spec.head:
        parts.append(_describe_layer(layer, width))
        width = layer.out_features if isinstance(layer, Linear) else width
    head = ", ".join(parts) or f"none: y is the LSTM's output [{width}]"
    return f"{head}; plus {_residual(spec, 'x')}" if spec.residual else head


def _describe_layer(layer: HeadLayer, width: int) -> str:
    match layer:
        case Linear():
            return f"Linear({width}, {layer.out_features})"
        case LayerNorm():
            return f"LayerNorm({width}, eps={layer.eps:g})"
        case BatchNorm():
            return f"BatchNorm({width})"
        case Elu():
            return f"elu(alpha={layer.alpha:g})"
        case LeakyRelu():
            return f"leaky_relu(slope={layer.negative_slope:g})"
    return layer


def _residual(spec: LstmSpec, x: str) -> str:
    """What is added to the head: x or columns of it."""
    columns = spec.residual
    return x if columns == tuple(range(spec.input_size)) else f"{x}{list(columns)}"


def formula(spec: LstmSpec, window: int = 0) -> str:
    """The formula of y by the spec."""
    x = "embedding(tokens)" if spec.num_embeddings else "x"
    x = "(x - mean) / scale" if spec.input_norm else x
    read = "u" if spec.residual and x != "x" else x  # the residual names it once more
    y = f"lstm({read})"
    for layer in spec.head:
        y = f"{layer_name(layer)}({y})"
    if spec.residual:
        y = f"{y} + {_residual(spec, read)}"
        y = f"({y})" if spec.output_norm else y
    y = f"{y} * scale + mean" if spec.output_norm else y
    ends = [f"u = {x}"] if read == "u" else []
    ends += ["from a learned state"] if spec.initial_state else []
    ends += [f"of the last {window} rows alone"] if window else []
    return ", ".join([f"y = {y}", *ends, "at every time step"])
