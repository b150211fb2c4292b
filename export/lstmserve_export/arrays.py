"""Reads .npy and .npz files that users give. Never unpickles, and unpacks no bombs."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmserve_export.refusal import Refused, one_line

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
FILE_BYTES_MAX = 1 << 28
# What bad bytes make zipfile and numpy raise: RuntimeError for an encrypted entry, MemoryError for
# a header that claims too much, SyntaxError and TokenError for a header that is no Python.
FAULTS = (
    *(OSError, ValueError, TypeError, EOFError, LookupError, ArithmeticError, RuntimeError),
    *(MemoryError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


def read_npz(path: Path, flag: str) -> Arrays:
    """The arrays of an .npz by name. Raises Refused."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > FILE_BYTES_MAX:
                raise Refused(f"{flag} {path} unpacks to more than {FILE_BYTES_MAX} bytes")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Refused:
        raise
    except FAULTS as error:
        raise Refused(f"{flag} {path} is no .npz of plain arrays: {one_line(error)}") from error


def read_npy(path: Path, flag: str) -> Array:
    """The array of an .npy. Raises Refused."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise Refused(f"{flag} {path} is larger than {FILE_BYTES_MAX} bytes")
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except Refused:
        raise
    except FAULTS as error:
        raise Refused(f"{flag} {path} is no .npy of a plain array: {one_line(error)}") from error
