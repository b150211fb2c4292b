"""What a scaler computes: the mean and the scale of each column, from scikit-learn's attributes or
from arrays by name.

It never imports scikit-learn, reads no files, and must not know what the columns belong to.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from lstmserve_export.lstm.network import Floats, Norm
from lstmserve_export.refusal import Refused, described, shorten
from lstmserve_export.scalers.min_max import as_min_max

# Of each scaler: its offset and its scale, each with the parameter that switches it off.
Part = tuple[str, str]
KINDS: Final[Mapping[str, tuple[Part, Part]]] = {
    "StandardScaler": (("mean_", "with_mean"), ("scale_", "with_std")),
    "MinMaxScaler": (("min_", ""), ("scale_", "")),
    "RobustScaler": (("center_", "with_centering"), ("scale_", "with_scaling")),
    "MaxAbsScaler": (("", ""), ("scale_", "")),
}
# What only one scaler has, by which arrays without a class are known.
MARKS: Final[Mapping[str, frozenset[str]]] = {
    "StandardScaler": frozenset({"mean_", "var_", "with_mean", "with_std"}),
    "MinMaxScaler": frozenset({"min_", "data_min_", "data_max_", "data_range_", "feature_range"}),
    "RobustScaler": frozenset({"center_", "with_centering", "with_scaling", "quantile_range"}),
    "MaxAbsScaler": frozenset({"max_abs_"}),
}
SHARED: Final = frozenset(
    {"scale_", "clip", "copy", "feature_names_in_", "n_features_in_", "n_samples_seen_"}
    | {"unit_variance"}
)
ATTRIBUTES: Final = frozenset().union(*MARKS.values()) | SHARED
MEANS, SCALES = ("mean", "center"), ("scale", "std")
PLAIN: Final = frozenset({*MEANS, *SCALES, "min", "max", "range", "columns"})
FORMS: Final = (
    f"one of {', '.join(KINDS)}, or a dict or file with mean and scale, with min and range, or "
    "with scikit-learn's attributes by their names"
)
AS_ARRAYS: Final = "{'mean': [...], 'scale': [...]}"
PROBES: Final = (-1.0, 0.0, 0.5, 2.0)


def of_object(scaler: Any, label: str, *, is_output: bool) -> Norm | None:
    """The norm of a live scaler of scikit-learn. Raises Refused."""
    kinds = [base.__name__ for base in type(scaler).__mro__ if base.__name__ in KINDS]
    if not kinds:
        raise Refused(f"{label} is a {type(scaler).__name__}{_way_out(scaler)}")
    attributes = {name: getattr(scaler, name, None) for name in ATTRIBUTES}
    if not any(attributes[name] is not None for name in ("scale_", "n_features_in_", "min_")):
        raise Refused(f"{label} is a {kinds[0]} that is not fitted: call its fit() first")
    norm = _of_attributes(kinds[0], attributes, label, is_output=is_output)
    if norm is not None:
        _check_transform(scaler, norm, label, is_output=is_output)
    return norm


def _way_out(scaler: Any) -> str:
    """Why an object is no scaler, and what to give in its place."""
    if hasattr(scaler, "named_steps"):
        steps = shorten([repr(name) for name in scaler.named_steps])
        return (
            f" of the steps {steps}: give the scaler in it, as in pipeline.named_steps[...], if it "
            "is the only step that changes values"
        )
    if hasattr(scaler, "transformers"):
        return (
            f": give the mean and the scale of all columns, in the order of its output, as "
            f"{AS_ARRAYS}, with 0 and 1 for a column that passes through it"
        )
    if hasattr(scaler, "transform"):
        return f", no mean and scale of each column: apply it in the client, or give {FORMS}"
    return f": it must be {FORMS}"


def _check_transform(scaler: Any, norm: Norm, label: str, *, is_output: bool) -> None:
    """Compares the norm with what the scaler computes. Raises Refused, as for a class of the
    user's own that computes more."""
    if not hasattr(scaler, "transform"):
        return
    scaled = np.outer(PROBES, np.ones_like(norm.mean))
    raw = scaled * norm.scale + norm.mean
    call = "inverse_transform" if is_output else "transform"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that these rows do not have
            found = np.asarray(getattr(scaler, call)((scaled if is_output else raw).copy()))
        error = np.abs(found - (raw if is_output else scaled))
    except Exception as failure:  # a class of the user's own may raise anything
        raise Refused(
            f"{label}: its {call}() fails on rows of {len(norm.mean)} columns "
            f"({described(failure)}): give {AS_ARRAYS}"
        ) from failure
    error = error / np.abs(norm.scale) if is_output else error
    if not np.all(error <= 1e-6 + 1e-12 * np.abs(norm.mean / norm.scale)):
        raise Refused(
            f"{label}: its {call}() computes something else than its attributes say: apply it in "
            f"the client, or give {AS_ARRAYS}"
        )


def _of_attributes(
    kind: str, attributes: Mapping[str, Any], label: str, *, is_output: bool
) -> Norm | None:
    """The norm of scikit-learn's attributes; None for one that changes nothing. Raises Refused."""
    if _flag(attributes, "clip", False) and not is_output:
        raise Refused(
            f"{label} is a {kind} with clip=True, and a model has no clip in front: set clip to "
            "False if rows in production stay within the range of training, or clip them in the "
            "client"
        )
    parts = [
        vector(attributes[name], f"{name} of {label}")
        if name and _flag(attributes, switch, True) and attributes.get(name) is not None
        else None
        for name, switch in KINDS[kind]
    ]
    for (name, switch), part in zip(KINDS[kind], parts, strict=True):
        if name and part is None and _flag(attributes, switch, True):
            raise Refused(f"{label} is a {kind} without {name}: fit it, and give all attributes")
    norm = joined(label, *parts)
    if norm is None:
        return None
    if kind == "MinMaxScaler":
        norm = as_min_max(norm)
    return _named(norm, attributes.get("feature_names_in_"), label)


def _flag(attributes: Mapping[str, Any], name: str, default: bool) -> bool:
    value = attributes.get(name) if name else None
    return default if value is None else bool(value)


def of_arrays(given: Mapping[str, Any], label: str, *, is_output: bool) -> Norm | None:
    """The norm of arrays by name. Raises Refused."""
    kinds = [kind for kind, marks in MARKS.items() if marks & set(given)]
    if len(kinds) == 1 and not set(given) & (PLAIN - {"columns"}):
        return _of_attributes(kinds[0], given, label, is_output=is_output)
    if kinds or set(given) - PLAIN:
        names = shorten(sorted(map(str, given)), 20)
        alone = "; scale_ alone does not say whose it is" if set(given) == {"scale_"} else ""
        raise Refused(f"{label} has {names}{alone}: it must be {FORMS}")
    if missing := next(_lacking(set(given)), ""):
        raise Refused(f"{label} has {shorten(sorted(given))}, and {missing}")
    columns, vectors = _vectors(given, label)
    mean = next((vectors[name] for name in (*MEANS, "min") if name in vectors), None)
    scale = next((vectors[name] for name in (*SCALES, "range", "max") if name in vectors), None)
    norm = joined(label, mean, scale)
    assert norm is not None
    if "max" in vectors:
        norm = replace(norm, scale=norm.scale - norm.mean)
    return _named(norm, columns, label)


def _lacking(names: set[str]) -> Iterator[str]:
    """What plain names lack, or have too much."""
    if not names - {"columns"}:
        yield "no mean or scale"
    if names & {"min", "max", "range"}:
        if names & {*MEANS, *SCALES}:
            yield "min and range are a mean and a scale: give one pair"
        if "min" not in names or len(names & {"max", "range"}) != 1:
            yield "needs min with range, or min with max"
    if len(names & set(MEANS)) > 1 or len(names & set(SCALES)) > 1:
        yield "needs one of mean and center, and one of scale and std"


def _vectors(given: Mapping[str, Any], label: str) -> tuple[Any, dict[str, Floats]]:
    """The names of the columns, or None, and the vectors by name; a vector may be a mapping of
    numbers by column. Raises Refused."""
    parts = {name: value for name, value in given.items() if name != "columns"}
    columns: Any = given.get("columns")
    mappings = [value for value in parts.values() if isinstance(value, Mapping)]
    if mappings and columns is None:
        columns = list(mappings[0])
    is_list = isinstance(columns, (list, tuple, np.ndarray))
    if mappings and not (is_list and all(isinstance(each, (str, int)) for each in columns)):
        raise Refused(f"{label}: columns must be the names of the columns")
    vectors = {}
    for name, value in parts.items():
        if isinstance(value, Mapping):
            if set(value) != set(columns):
                raise Refused(f"{label}: {name} has other columns than the rest")
            value = [value[column] for column in columns]
        vectors[name] = vector(value, f"{name} of {label}")
    return columns, vectors


def vector(value: Any, label: str) -> Floats:
    """A vector float64 [width]; a number is one of width 1. Raises Refused."""
    # A list of lists may be a few lines of YAML, and millions of numbers for numpy.
    parts = value if isinstance(value, (list, tuple)) else ()
    is_nested = any(isinstance(each, (list, tuple, Mapping)) for each in parts)
    try:
        if is_nested or getattr(getattr(value, "dtype", None), "kind", "f") not in "biufUO":
            raise TypeError
        vector = np.atleast_1d(np.array(value, np.float64))
    except (TypeError, ValueError, OverflowError) as error:
        raise Refused(f"{label} must be numbers, one for each column") from error
    if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
        raise Refused(
            f"{label} must be a vector of finite numbers, one for each column: its shape is "
            f"{list(vector.shape)}"
        )
    return vector


def joined(label: str, mean: Floats | None, scale: Floats | None) -> Norm | None:
    """The norm of a mean and a scale, of which one may be None; None without both. Raises Refused
    where they differ in size."""
    given = mean if mean is not None else scale
    if given is None:
        return None
    norm = Norm(
        np.zeros_like(given) if mean is None else mean,
        np.ones_like(given) if scale is None else scale,
    )
    if len(norm.mean) != len(norm.scale):
        raise Refused(
            f"{label}: the mean has {len(norm.mean)} columns and the scale {len(norm.scale)}, must "
            "have as many"
        )
    return norm


def _named(norm: Norm, names: Any, label: str) -> Norm:
    if names is None:
        return norm
    columns = tuple(map(str, np.asarray(names, object).reshape(-1)))
    if len(columns) != len(norm.mean) or len(set(columns)) != len(columns):
        raise Refused(
            f"{label} names {len(columns)} columns ({shorten(list(columns))}), must name each of "
            f"its {len(norm.mean)} once"
        )
    return replace(norm, columns=columns)
