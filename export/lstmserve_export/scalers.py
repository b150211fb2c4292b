"""What a scaler computes: the mean and the scale of each column, from scikit-learn's attributes or
from arrays by name.

It never imports scikit-learn, and it must not know which network the columns belong to.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lstmserve_export.lstm.network import Floats, Network, Norm
from lstmserve_export.refusal import Refused, described, shorten
from lstmserve_export.scaler_files import read_scaler_file

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
EPSILON: Final = 2.0**-24  # what float32 rounds a number by, at most
LOSS_MAX: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Scalers:
    """The norms of the inputs and of the outputs by name; "" is the only one there is."""

    inputs: Mapping[str, Norm] = field(default_factory=dict)
    outputs: Mapping[str, Norm] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.inputs or self.outputs)

    def of_lstm(self) -> tuple[Norm | None, Norm | None]:
        """The norms of x and of y. Raises Refused for those of other names."""
        found = []
        for side, own, norms in (("input", "x", self.inputs), ("output", "y", self.outputs)):
            if unknown := sorted(set(norms) - {"", own}):
                raise Refused(
                    f"{side}_scaler names {shorten(unknown)}, and the model has only {own}: give "
                    "the scaler itself"
                )
            found.append(next(iter(norms.values()), None))
        return found[0], found[1]

    def notes(self) -> list[str]:
        """The order of the columns, and what float32 loses of them."""
        found = []
        for own, norms in (("x", self.inputs), ("y", self.outputs)):
            for name, norm in norms.items():
                label = name or own
                if norm.columns:
                    columns = shorten(list(norm.columns), 40)
                    found.append(f"the columns of {label}, in their order: {columns}")
                loss = np.abs(norm.mean / norm.scale) * EPSILON
                place = int(loss.argmax())
                if loss[place] > LOSS_MAX:
                    found.append(
                        f"float32 keeps column {place} (from 0) of {label} only to "
                        f"{loss[place]:.1g} of its scale, because it is so far from 0: subtract an "
                        "offset before it is sent, and fit the scaler on that"
                    )
        return found


@dataclass(frozen=True, slots=True)
class Side:
    """What a user says of the scaling of "input" or "output". `flag` is how the user names an
    argument of this side: the flag of the command, or the argument in Python."""

    name: str
    flag: Callable[[str], str]

    @property
    def is_output(self) -> bool:
        return self.name == "output"

    def norms(
        self,
        scaler: Any = None,
        mean: npt.ArrayLike | None = None,
        scale: npt.ArrayLike | None = None,
    ) -> dict[str, Norm]:
        """The norm of a scaler, or those of scalers by name, or of a mean and a scale.

        A scaler may be {"scaler": one, "columns": [...]}, to choose among its columns by their
        names or numbers. Raises Refused.
        """
        if scaler is None:
            norm = self._of_vectors(mean, scale)
            return {} if norm is None else {"": norm}
        if mean is not None or scale is not None:
            raise Refused(
                f"{self.flag('scaler')} has a mean and a scale of its own: leave out "
                f"{self.flag('mean')} and {self.flag('scale')}, or it"
            )
        is_one = not isinstance(scaler, Mapping) or set(scaler) & (ATTRIBUTES | PLAIN | {"scaler"})
        found = {
            str(name): self._of_scaler(each)
            for name, each in ({"": scaler} if is_one else scaler).items()
        }
        return {name: norm for name, norm in found.items() if norm is not None}

    def _of_vectors(self, mean: npt.ArrayLike | None, scale: npt.ArrayLike | None) -> Norm | None:
        given = [
            None if part is None else _vector(part, self.flag(name))
            for part, name in ((mean, "mean"), (scale, "scale"))
        ]
        norm = _joined(*given)
        if norm is None:
            return None
        _check_sizes(norm, given, self.flag("scaler"))
        if all(part is not None for part in given) and (data := min_max_data(norm)):
            raise Refused(
                f"{self.flag('mean')} and {self.flag('scale')} are min_ and scale_ of a "
                f"MinMaxScaler, whose data run {data}, and it multiplies by scale_: give the "
                f"scaler itself with {self.flag('scaler')}, or data_min_ and data_range_ in their "
                "place"
            )
        return _checked(norm, self.flag("scale"))

    def _of_scaler(self, scaler: Any) -> Norm | None:
        """None for a scaler that changes nothing. Raises Refused."""
        label, columns = self.flag("scaler"), ()
        if isinstance(scaler, Mapping) and "scaler" in scaler:
            if unknown := sorted(set(scaler) - {"scaler", "columns"}):
                raise Refused(f"{label} has {shorten(unknown)} beside scaler and columns")
            given = scaler.get("columns", ())
            columns = (given,) if isinstance(given, (str, int)) else tuple(given)
            scaler = scaler["scaler"]
        if isinstance(scaler, (str, Path)):
            label = f"{label} {scaler}"
            scaler = read_scaler_file(Path(scaler), label, self.flag("columns"), columns)
        if isinstance(scaler, Mapping):
            norm = _of_arrays(scaler, label, is_output=self.is_output)
        else:
            norm = _of_object(scaler, label, is_output=self.is_output)
        return None if norm is None else self._chosen(_checked(norm, label), columns)

    def _chosen(self, norm: Norm, columns: Sequence[str | int]) -> Norm:
        """The columns by name or by number, in this order. Raises Refused."""
        if not columns:
            return norm
        width = len(norm.mean)
        names = tuple(map(str, columns))
        if norm.columns:
            places = [norm.columns.index(n) if n in norm.columns else -1 for n in names]
            known = shorten(list(norm.columns), 30)
        elif not any(name.isdecimal() for name in names) and len(names) == width:
            return replace(norm, columns=names)  # names for columns that had none
        else:
            places = [int(n) if n.isdecimal() and int(n) < width else -1 for n in names]
            known = f"0 to {width - 1}"
        if unknown := [name for name, place in zip(names, places, strict=True) if place < 0]:
            raise Refused(
                f"{self.flag('columns')}: the scaler has no column {shorten(unknown)}; it has "
                f"{known}"
            )
        return Norm(norm.mean[places], norm.scale[places], names if norm.columns else ())


def with_scalers(network: Network, scalers: Scalers) -> Network:
    """The network of raw x and y. Raises Refused."""
    x, y = scalers.of_lstm()
    notes = (*network.notes, *scalers.notes())
    return replace(network, input_norm=x, output_norm=y, notes=notes)


def as_min_max(norm: Norm) -> Norm:
    """What the norm would be if its mean and its scale were a MinMaxScaler's min_ and scale_."""
    with np.errstate(all="ignore"):
        return replace(norm, mean=-norm.mean / norm.scale, scale=1 / norm.scale)


def min_max_data(norm: Norm) -> str:
    """ "from LOW to HIGH" where mean and scale can only be a MinMaxScaler's: its scale_, and its
    min_ or data_min_; "" where nothing shows that.

    The evidence are short numbers. Data have few digits, or those of float32. What comes of them
    by division has not, and a mean and a scale do not become short ends when they are taken for
    min_ and scale_.
    """
    mean, scale = norm.mean, norm.scale
    if not np.all(scale > 0) or all(map(_is_short, zip(mean, scale, strict=True))):
        return ""
    for low, high in ((0.0, 1.0), (-1.0, 1.0)):
        ends = (low - mean) / scale, (high - mean) / scale
        if all(map(_is_short, zip(*ends, strict=True))):
            return f"from {shorten(_texts(ends[0]), 4)} to {shorten(_texts(ends[1]), 4)}"
        ends = mean, mean + (high - low) / scale
        is_odd = not all(_is_short((each,)) for each in scale)
        if is_odd and all(map(_is_short, zip(*ends, strict=True))):
            return f"from {shorten(_texts(ends[0]), 4)} to {shorten(_texts(ends[1]), 4)}"
    return ""


def _texts(values: Floats) -> list[str]:
    return [f"{value:.6g}" for value in values]


def _is_short(values: Sequence[float]) -> bool:
    """Whether each has at most seven digits, or is a number of float32, but for rounding."""
    error = 2e-14 * max(map(abs, values))
    return all(
        min(abs(value - float(f"{value:.6e}")), abs(value - float(np.float32(value)))) <= error
        for value in values
    )


def _of_object(scaler: Any, label: str, *, is_output: bool) -> Norm | None:
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
        _vector(attributes[name], f"{name} of {label}")
        if name and _flag(attributes, switch, True) and attributes.get(name) is not None
        else None
        for name, switch in KINDS[kind]
    ]
    for (name, switch), part in zip(KINDS[kind], parts, strict=True):
        if name and part is None and _flag(attributes, switch, True):
            raise Refused(f"{label} is a {kind} without {name}: fit it, and give all attributes")
    norm = _joined(*parts)
    if norm is None:
        return None
    _check_sizes(norm, parts, label)
    if kind == "MinMaxScaler":
        norm = as_min_max(norm)
    return _named(norm, attributes.get("feature_names_in_"), label)


def _flag(attributes: Mapping[str, Any], name: str, default: bool) -> bool:
    value = attributes.get(name) if name else None
    return default if value is None else bool(value)


def _of_arrays(given: Mapping[str, Any], label: str, *, is_output: bool) -> Norm | None:
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
    scale = next((vectors[name] for name in (*SCALES, "range") if name in vectors), None)
    if "max" in vectors:
        _check_sizes(Norm(vectors["min"], vectors["max"]), list(vectors.values()), label)
        scale = vectors["max"] - vectors["min"]
    norm = _joined(mean, scale)
    assert norm is not None
    _check_sizes(norm, list(vectors.values()), label)
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
    vectors = {}
    for name, value in parts.items():
        if isinstance(value, Mapping):
            if set(value) != set(columns):
                raise Refused(f"{label}: {name} has other columns than the rest")
            value = [value[column] for column in columns]
        vectors[name] = _vector(value, f"{name} of {label}")
    return columns, vectors


def _vector(value: Any, label: str) -> Floats:
    """A vector float64 [width]; a number is one of width 1. Raises Refused."""
    try:
        vector = np.atleast_1d(np.array(value, np.float64))
    except (TypeError, ValueError) as error:
        raise Refused(f"{label} must be numbers, one for each column") from error
    if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
        raise Refused(
            f"{label} must be a vector of finite numbers, one for each column: its shape is "
            f"{list(vector.shape)}"
        )
    return vector


def _joined(mean: Floats | None, scale: Floats | None) -> Norm | None:
    """The norm of a mean and a scale, of which one may be None; None without both."""
    given = mean if mean is not None else scale
    if given is None:
        return None
    return Norm(
        np.zeros_like(given) if mean is None else mean,
        np.ones_like(given) if scale is None else scale,
    )


def _check_sizes(norm: Norm, parts: Sequence[Floats | None], label: str) -> None:
    sizes = [len(part) for part in (norm.mean, norm.scale, *parts) if part is not None]
    if len(set(sizes)) > 1:
        raise Refused(
            f"{label}: mean and scale have {min(sizes)} and {max(sizes)} columns, must have as "
            "many each"
        )


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


def _checked(norm: Norm, label: str) -> Norm:
    """Raises Refused for what float32 cannot divide by, or hold."""
    with np.errstate(all="ignore"):
        mean, scale = norm.mean.astype(np.float32), norm.scale.astype(np.float32)
    if zeros := [str(place) for place in np.flatnonzero(scale == 0)]:
        raise Refused(
            f"{label} has a zero as the scale of column {shorten(zeros)} (from 0): a column that "
            "never changed in training is divided by 1 in scikit-learn, so write 1"
        )
    if not np.isfinite([mean, scale]).all():
        raise Refused(f"{label} has a mean or a scale that float32 does not hold")
    return norm
