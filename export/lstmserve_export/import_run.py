"""Runs `lstmserve import`: from flags to the child process to the summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from lstmserve_export.onnx_file.child import Limits, run_child
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.progress import stages
from lstmserve_export.summary import show


def run(file: Path, **flags: Any) -> None:
    """Runs the command with the flags of import_cli.py. Raises Refused."""
    window = flags["window"] or 0
    request = Request(
        file=file,
        name=flags["name"] or file.stem,
        states=flags["state"],
        inputs=flags["input"],
        outputs=flags["output"],
        constants=flags["constant"],
        batch_axes=flags["batch_axis"],
        rows=flags["rows"] or 0,
        window=window,
        window_fill=flags["window_fill"] or ("wait" if window else None),
        golden=flags["golden"],
        initial_state=flags["initial_state"],
        models=flags["models"],
        version=flags["model_version"],
        force=flags["force"],
        dry_run=flags["dry_run"],
    )
    limits = Limits.of(file, flags["memory_limit"], flags["time_limit"])
    with stages(f"read {file.name}") as stage:
        imported = run_child(request, limits, stage.progress)
    show(
        Console(),
        imported,
        is_dry_run=request.dry_run,
        way="import",
        has_golden=request.golden is not None,
    )
