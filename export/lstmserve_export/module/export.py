"""Builds, proves and writes a model of kind "network" from a module as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from lstmserve_export.module.forward import Axes
from lstmserve_export.target import Exported, Target


def export_module(
    module: nn.Module,
    example: Any,
    target: Target,
    *,
    states: Sequence[str] = (),
    output_names: Sequence[str] = (),
    axes: Axes | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Exported:
    """Traces, proves and writes; calls `progress` as each stage begins. Raises Refused."""
    raise NotImplementedError
