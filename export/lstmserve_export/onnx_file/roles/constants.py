"""Reads the value of --constant: text or a file of numpy -> an array as the graph's input takes it.

It knows the declared dtype and shape of one input, and nothing else of the graph.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lstmserve_export.arrays import Array, read_npy
from lstmserve_export.onnx_file.load.source import Value
from lstmserve_export.refusal import Refused, one_line, printable

SIZE_MAX = 1 << 24  # values of one constant


def read_constant(value: Value, text: str) -> Array:
    """The array that `text` says, in the dtype and with as many axes as `value`.

    `text` is JSON (16000, 1.5, true, [1, 2]) or the path of an .npy file. Raises Refused.
    """
    flag = f"--constant {value.name}={printable(text)}"
    given = _read(value.name, text, flag)
    if given.size > SIZE_MAX:
        raise Refused(f"{flag}: it has {given.size} values, at most {SIZE_MAX} are taken")
    return _shaped(value, _cast(value, given, flag), flag)


def _read(name: str, text: str, flag: str) -> Array:
    try:
        if text.endswith(".npy"):
            return read_npy(Path(text), f"--constant {name}")
        spelled = text.lower() if text.lower() in ("true", "false") else text
        found = np.asarray(json.loads(spelled))
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(
            f"{flag}: give a number, true, false, a list such as [1, 2], or the path of an .npy "
            f"file{f': {one_line(error)}' if text.endswith('.npy') else ''}"
        ) from error
    if found.dtype.kind not in "biuf":
        raise Refused(f"{flag}: it must have numbers, or true and false")
    return found


def _cast(value: Value, given: Array, flag: str) -> Array:
    """Refuses what the dtype cannot hold; a float takes the nearest value that it has."""
    dtype = np.dtype(value.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.asarray(given).astype(dtype)
        is_held = np.isfinite(found) if dtype.kind == "f" else found == given
    is_other = given.dtype.kind == "b" and dtype.kind != "b"  # true is no number
    if is_other or not np.all(is_held):
        raise Refused(f"{flag}: {value} cannot hold it")
    return found


def _shaped(value: Value, given: Array, flag: str) -> Array:
    """With the axes of `value`; an axis that the file does not fix has the length given, or 1."""
    rank = len(value.shape)
    found = given.reshape((1,) * max(rank - given.ndim, 0) + given.shape)
    if found.ndim == rank:
        wanted = tuple(
            has if size is None else size
            for size, has in zip(value.shape, found.shape, strict=True)
        )
        if all(has in (1, size) for size, has in zip(wanted, found.shape, strict=True)):
            return np.ascontiguousarray(np.broadcast_to(found, wanted)).reshape(wanted)
    raise Refused(f"{flag}: its shape {list(given.shape)} does not fit {value}")
