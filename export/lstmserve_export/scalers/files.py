"""Reads the files of scalers, means and scales that a user names. Never unpickles.

It gives arrays by name; scalers.py knows what they mean.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

from lstmserve_export.arrays import FAULTS, read_npz
from lstmserve_export.lstm.network import Floats
from lstmserve_export.refusal import Refused, one_line, shorten

VALUE_FILE_BYTES_MAX: Final = 1 << 24
TEXT_BYTES_MAX: Final = 1 << 20
KINDS_OF_FILE: Final = ".npz, .json or .yml"
PICKLES: Final = (".pkl", ".pickle", ".p", ".joblib", ".save", ".sav", ".gz", ".bz2", ".xz")
# A pickle of protocol 2 or later, and what joblib compresses with: zlib, gzip, bz2, xz, lz4.
PICKLED: Final = (
    *(b"\x80", b"x\x01", b"x\x5e", b"x\x9c", b"x\xda", b"\x1f\x8b", b"BZh", b"\xfd7zXZ"),
    b"\x04\x22\x4d\x18",
)
HYDROLOGY: Final = {
    "mean": ("xarray_feature_center", "attribute_means", "camels_attr_means"),
    "scale": ("xarray_feature_scale", "attribute_stds", "camels_attr_stds"),
}


def read_values(path: Path | None, flag: str) -> Floats | None:
    """A vector float64 [width] from .npy, or from text with one number a line. Raises Refused."""
    if path is None:
        return None
    try:
        if path.stat().st_size > VALUE_FILE_BYTES_MAX:
            raise Refused(f"{flag} {path} is larger than {VALUE_FILE_BYTES_MAX} bytes")
        if path.suffix == ".npy":
            with path.open("rb") as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            if array.dtype.kind not in "biuf":
                raise ValueError(f"it holds {array.dtype}")
            values = array.astype(np.float64)
        else:
            values = np.array([float(line) for line in path.read_text().split()], np.float64)
    except FAULTS as error:
        raise Refused(
            f"{flag} {path}: give .npy or one number a line, or a whole scaler with "
            f"--{flag.split('-')[2]}-scaler ({one_line(error)})"
        ) from error
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise Refused(f"{flag} {path} is no vector of finite numbers: shape {list(values.shape)}")
    return values


def check_names(mean: Path | None, scale: Path | None, side: str) -> None:
    """Raises Refused where the names of the files say that they are of a MinMaxScaler, whose
    scale_ is no scale: it multiplies."""
    least, by = (path.stem.lower() if path is not None else "" for path in (mean, scale))
    is_min = re.search(r"(^|[^a-z])min_?$", least)
    if (is_min and by.endswith("scale_")) or re.search(r"(^|(?<!data)[^a-z])min_$", least):
        raise Refused(
            f"{mean} is of a MinMaxScaler by its name, which adds min_ and multiplies by scale_: "
            f"give the scaler with --{side}-scaler F.npz, or data_min_ with --{side}-min and "
            f"data_range_ with --{side}-range if it scales to (0, 1)"
        )


def read_scaler_file(
    path: Path, label: str, columns_flag: str, columns: Sequence[str]
) -> Mapping[str, Any]:
    """The arrays of .npz, .json or .yml by name. Of neuralhydrology's scaler it gives the mean and
    the scale of `columns`, which the network alone knows. Raises Refused."""
    try:
        with path.open("rb") as file:
            content = file.read(VALUE_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise Refused(f"{label} cannot be read: {error}") from error
    if len(content) > VALUE_FILE_BYTES_MAX:
        raise Refused(f"{label} is larger than {VALUE_FILE_BYTES_MAX} bytes")
    suffix = path.suffix.lower()
    if content.startswith(b"PK"):
        try:
            return read_npz(path, label.removesuffix(f" {path}"))
        except Refused as error:
            raise Refused(f"{error}; docs/EXPORT.md has the lines that write one") from error
    if suffix in PICKLES or content.startswith(PICKLED):
        raise Refused(_of_pickle(path, content, label))
    if suffix not in (".json", ".yml", ".yaml"):
        raise Refused(f"{label} is no file of a scaler: give {KINDS_OF_FILE} (docs/EXPORT.md)")
    document = _parse(content, label, is_json=suffix == ".json")
    if not isinstance(document, dict):
        raise Refused(f"{label} must hold names with numbers, as in {{mean: [...], scale: [...]}}")
    if document.keys() & {*HYDROLOGY["mean"], *HYDROLOGY["scale"]}:
        return _hydrology(document, label, columns_flag, columns)
    return document


def _parse(content: bytes, label: str, *, is_json: bool) -> Any:
    if len(content) > TEXT_BYTES_MAX:
        raise Refused(f"{label} is larger than {TEXT_BYTES_MAX} bytes: give .npz")
    try:
        return json.loads(content) if is_json else yaml.safe_load(content)
    except (ValueError, RecursionError, MemoryError, yaml.YAMLError) as error:
        kind = "JSON" if is_json else "YAML"
        raise Refused(f"{label} is no {kind}: {one_line(error)}") from error


def _hydrology(
    document: Mapping[str, Any], label: str, columns_flag: str, columns: Sequence[str]
) -> Mapping[str, Any]:
    """The mean and the scale by column of neuralhydrology's train_data_scaler.yml, which has the
    columns of x and of y together. Raises Refused."""
    found: dict[str, dict[str, float]] = {}
    for part, keys in HYDROLOGY.items():
        merged: dict[str, Any] = {}
        for key in keys:
            group = document.get(key)
            values = group.get("data_vars", group) if isinstance(group, dict) else {}
            merged |= values if isinstance(values, dict) else {}
        found[part] = {str(name): _number(value, name, label) for name, value in merged.items()}
    known = list(found["mean"])
    if not columns:
        raise Refused(
            f"{label} has the columns {shorten(known, 40)}: name those of this side with "
            f"{columns_flag}, in the network's order, which config.yml has: of x dynamic_inputs, "
            "then the static attributes from A to Z; of y target_variables"
        )
    if unknown := [name for name in columns if not all(name in part for part in found.values())]:
        raise Refused(
            f"{columns_flag}: the scaler has no column {shorten(unknown)}; it has "
            f"{shorten(known, 40)}"
        )
    return {part: {name: values[name] for name in columns} for part, values in found.items()}


def _number(value: Any, name: str, label: str) -> float:
    """A number, or that of {data: NUMBER}. YAML 1.1 takes 1e-05 for a string. Raises Refused."""
    data = value.get("data") if isinstance(value, dict) else value
    try:
        if isinstance(data, (int, float, str)) and not isinstance(data, bool):
            return float(data)
    except (ValueError, OverflowError):
        pass
    raise Refused(f"{label}: {name} is no number")


def pickle_lines(path: Path) -> tuple[str, str]:
    """The two lines of Python that turn a pickled scaler into an .npz beside it."""
    attributes = (
        "{k: np.array(np.asarray(v).tolist()) for k, v in vars(s).items() "
        'if v is not None and k[0] != "_"}'
    )
    source, target = (
        json.dumps(str(each), ensure_ascii=False) for each in (path, path.with_suffix(".npz"))
    )
    return (
        f"import joblib, numpy as np; s = joblib.load({source})",
        f"np.savez({target}, **{attributes})",
    )


def _of_pickle(path: Path, content: bytes, label: str) -> str:
    """Why a pickle is refused, and how it becomes an .npz."""
    command = f"python -c {shlex.quote('; '.join(pickle_lines(path)))}"
    inner = ""
    if b"ColumnTransformer" in content:
        inner = (
            "; it holds a ColumnTransformer, which is no scaler: give mean and scale of all columns"
        )
    elif b"sklearn.pipeline" in content:
        inner = "; it holds a Pipeline: take the scaler out first, s = s.named_steps['NAME']"
    elif re.match(rb"\x80.(\x95.{8})?[}\](]", content, re.DOTALL):
        inner = "; it holds several objects: take the scaler out first, s = s['NAME']"
    return (
        f"{label} is a pickle, which can run a program when it is read: if you trust it, run "
        f"{command} and give {path.with_suffix('.npz')}{inner}"
    )
