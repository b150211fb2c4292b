"""Imports an ONNX file as a model folder, in a process of its own, and prints nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lstmserve.spec import WINDOW_MAX, WindowFill
from lstmserve_export.onnx_file.child import Limits, run_child
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.refusal import Refused
from lstmserve_export.target import Exported


def import_onnx(
    file: str | Path,
    *,
    name: str | None = None,
    models: str | Path = "models",
    version: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    states: Mapping[str, str] | Sequence[str] | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    constants: Mapping[str, Any] | None = None,
    batch_axes: Mapping[str, int | None] | None = None,
    rows: int = 0,
    window: int = 0,
    window_fill: WindowFill | None = None,
    initial_state: str | Path | None = None,
    golden: str | Path | None = None,
    memory_limit: float | None = None,
    time_limit: float | None = None,
) -> Exported:
    """Finds what the ONNX file is, checks what is served, and writes models/NAME/VERSION.

    Each argument is a flag of `lstmserve import` (docs/IMPORT.md), and messages name the flags. All
    names are the file's. `states` has the output with each input's value after a step, {"h": "hn"}.
    `constants`: numbers, lists, arrays, or paths of .npy files. `batch_axes`: the axis along which
    sessions lie, from 0; None: one session a run. `rows`, `window`: 0 for none.
    `memory_limit` in GiB, `time_limit` in seconds. Raises Refused, and writes nothing then.
    """
    path = Path(file)
    _check(rows, window, window_fill, memory_limit, time_limit)
    request = Request(
        file=path,
        name=path.stem if name is None else name,
        states=_pairs(states or ()),
        inputs=_names(inputs),
        outputs=_names(outputs),
        constants={key: _text(value) for key, value in (constants or {}).items()},
        batch_axes=_axes(batch_axes or {}),
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
    return run_child(request, Limits.of(path, _bytes(memory_limit), time_limit))


def _check(
    rows: int,
    window: int,
    window_fill: str | None,
    memory_limit: float | None,
    time_limit: float | None,
) -> None:
    """What click checks of the command. Raises Refused."""
    _check_number("rows", rows, 0, kind=int)
    _check_number("window", window, 2 if window else 0, WINDOW_MAX, kind=int)
    if window_fill is not None and (not window or window_fill not in ("wait", "zeros")):
        raise Refused(f"window_fill is {window_fill!r}: give wait or zeros, beside window")
    _check_number("memory_limit", 1 if memory_limit is None else memory_limit, 0.5)
    _check_number("time_limit", 1 if time_limit is None else time_limit, 1)


def _check_number(
    name: str, value: Any, least: float, most: float = math.inf, kind: type = float
) -> None:
    """Raises Refused."""
    is_kind = isinstance(value, int if kind is int else (int, float))
    if not is_kind or isinstance(value, bool) or not least <= value <= most:
        noun = "an integer" if kind is int else "a number"
        end = "" if math.isinf(most) else f" and at most {most}"
        raise Refused(f"{name} is {value!r}: give {noun} of at least {least}{end}")


def _pairs(states: Mapping[str, str] | Sequence[str]) -> tuple[str, ...]:
    """IN:OUT of each."""
    if isinstance(states, Mapping):
        return tuple(f"{before}:{after}" for before, after in states.items())
    return _names(states)


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * (1 << 30))


def _axes(axes: Any) -> dict[str, int | None]:
    """Raises Refused for what is no mapping."""
    if not isinstance(axes, Mapping):
        raise Refused(f"batch_axes is {axes!r}: give axes by name, such as {{'x': 0}}")
    return dict(axes)


def _names(names: Sequence[str]) -> tuple[str, ...]:
    """A text is one name."""
    return (names,) if isinstance(names, str) else tuple(names)


def _text(value: Any) -> str:
    """A constant as --constant takes it: a file by its path, anything else as JSON."""
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(np.asarray(value).tolist())
