"""Imports an ONNX file as a model folder, in a process of its own, and prints nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lstmserve.spec import WindowFill
from lstmserve_export.onnx_file.child import Limits, run_child
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.target import Exported


def import_onnx(
    file: str | Path,
    *,
    name: str | None = None,
    models: str | Path = "models",
    version: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    states: Mapping[str, str] | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    constants: Mapping[str, Any] | None = None,
    batch_axes: Mapping[str, int | None] | None = None,
    rows: int = 0,
    window: int = 0,
    window_fill: WindowFill | None = None,
    initial_state: str | Path | None = None,
    golden: str | Path | None = None,
    memory_limit: int | None = None,
    time_limit: float | None = None,
) -> Exported:
    """Writes models/NAME/VERSION; docs/IMPORT.md explains each argument.

    All names are the file's. `states` has the output that each input takes its next value from;
    `constants` numbers, lists or texts; `batch_axes` the axis of the sessions, None: there is none.
    `memory_limit` is in bytes and `time_limit` in seconds. Raises Refused, and writes nothing then.
    """
    path = Path(file)
    request = Request(
        file=path,
        name=path.stem if name is None else name,
        states=tuple(f"{before}:{after}" for before, after in (states or {}).items()),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        constants={key: _text(value) for key, value in (constants or {}).items()},
        batch_axes=dict(batch_axes or {}),
        rows=rows,
        window=window,
        window_fill=window_fill or ("wait" if window else None),
        golden=None if golden is None else Path(golden),
        initial_state=None if initial_state is None else Path(initial_state),
        models=Path(models),
        version=version,
        force=force,
        dry_run=dry_run,
    )
    return run_child(request, Limits.of(path, memory_limit, time_limit))


def _text(value: Any) -> str:
    """A constant as --constant takes it: a file by its path, anything else as JSON."""
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(np.asarray(value).tolist())
