"""Runs `lstmserve export`: from flags to network to folder, with progress on stderr."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from lstmserve_export.lstm.assemble import assemble
from lstmserve_export.lstm.checkpoint import read_checkpoint
from lstmserve_export.lstm.choose import Choices
from lstmserve_export.lstm.export import export_network, make_norm, make_pairs
from lstmserve_export.lstm.flags import read_values
from lstmserve_export.lstm.network import Network, Norm
from lstmserve_export.summary import show
from lstmserve_export.target import Exported, Target


def run(checkpoint: Path, **flags: Any) -> None:
    """Runs the command with the flags of cli.py. Raises Refused."""
    errors = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(f"read {checkpoint.name}")

        def progress(stage: str) -> None:
            bar.update(task, description=stage)

        exported = _export(checkpoint, flags, progress)
    has_golden = flags["golden"] is not None
    show(Console(), exported, is_dry_run=flags["dry_run"], has_golden=has_golden)


def _export(checkpoint: Path, flags: dict[str, Any], progress: Callable[[str], None]) -> Exported:
    choices = Choices(
        lstm=flags["lstm"],
        head=flags["head"],
        embedding=flags["embedding"],
        pre_head=flags["pre_head"],
        output_activation=flags["output_activation"],
    )
    target = Target(
        name=flags["name"] or checkpoint.stem,
        models=flags["models"],
        version=flags["model_version"],
        force=flags["force"],
        dry_run=flags["dry_run"],
    )
    network = assemble(read_checkpoint(checkpoint), choices)
    network = _with_norms(network, flags)
    return export_network(network, target, make_pairs(flags["golden"]), progress)


def _with_norms(network: Network, flags: dict[str, Any]) -> Network:
    def norm(side: str) -> Norm | None:
        mean, scale = (
            read_values(flags[f"{side}_{part}"], f"--{side}-{part}") for part in ("mean", "scale")
        )
        return make_norm(mean, scale)

    return replace(network, input_norm=norm("input"), output_norm=norm("output"))
