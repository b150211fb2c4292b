"""Prints the summary of an export. Decides nothing."""

from __future__ import annotations

import shlex

from rich.console import Console

from lstmserve.spec import Linear, LstmSpec
from lstmserve_export.target import Exported


def show(console: Console, exported: Exported, *, is_dry_run: bool, has_golden: bool) -> None:
    """Prints sizes, notes, the results of the checks, the formula and the next command to type."""
    rows = _rows(exported)
    if not has_golden:
        rows += [
            ("", "This is not yet checked against your forward(): save x and y of your model, and"),
            ("", "export again with --golden PAIRS.npz (docs/EXPORT.md shows how)."),
        ]
    models = exported.folder.parent.parent
    rows += [
        ("dry run", "nothing was written")
        if is_dry_run
        else ("next", f"lstmserve serve --models {shlex.quote(str(models))}")
    ]
    for label, text in rows:
        # Names from the file are not markup, and a command to copy must stay on one line.
        console.print(f"{label:<10}{text}", markup=False, highlight=False, soft_wrap=True)


def _rows(exported: Exported) -> list[tuple[str, str]]:
    manifest, spec, parity = exported.manifest, exported.manifest.lstm, exported.manifest.parity
    worst = max(parity["excess"].values())
    return [
        ("model", f"{manifest.name}:{manifest.version}  ({exported.bytes:,} bytes)"),
        ("folder", str(exported.folder)),
        ("LSTM", describe_lstm(spec)),
        ("head", describe_head(spec)),
        (
            "parity",
            f"{', '.join(parity['excess'])}: passed; error at most {worst:.2g} of the limit",
        ),
        (
            "",
            f"largest error {parity['onnx_error']:.1e} (torch itself: {parity['torch_error']:.1e})",
        ),
        *(("note", note) for note in manifest.notes),
        ("computes", formula(spec)),
    ]


def describe_lstm(spec: LstmSpec) -> str:
    """The sizes of the LSTM in words."""
    source = f"{spec.num_embeddings} tokens -> " if spec.num_embeddings else ""
    parts = [f"{source}{spec.input_size} -> {spec.hidden_size}", f"{spec.num_layers} layer(s)"]
    parts += [f"projected to {spec.proj_size}"] if spec.proj_size else []
    parts += [] if spec.bias else ["no bias"]
    parts += ["bidirectional: whole sequences only (Predict)"] if spec.bidirectional else []
    return ", ".join(parts)


def describe_head(spec: LstmSpec) -> str:
    """The layers of the head in order."""
    width, parts = spec.lstm_output_size, []
    for layer in spec.head:
        if isinstance(layer, Linear):
            parts.append(f"Linear({width}, {layer.out_features})")
            width = layer.out_features
        else:
            parts.append(str(layer))
    return ", ".join(parts) or f"none: y is the LSTM's output [{width}]"


def formula(spec: LstmSpec) -> str:
    """The formula of y by the spec."""
    x = "embedding(tokens)" if spec.num_embeddings else "x"
    x = "(x - mean) / scale" if spec.input_norm else x
    y = f"lstm({x})"
    layer_names = ["linear" if isinstance(layer, Linear) else str(layer) for layer in spec.head]
    for name in layer_names:
        y = f"{name}({y})"
    y = f"{y} * scale + mean" if spec.output_norm else y
    return f"y = {y}, at every time step"
