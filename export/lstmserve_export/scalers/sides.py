"""What a user says of the scaling of inputs and of outputs: scalers, files, or a mean and a scale.

It must not know how a network applies them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lstmserve_export.lstm.network import Network, Norm
from lstmserve_export.refusal import Refused, shorten
from lstmserve_export.scalers.attributes import (
    ATTRIBUTES,
    PLAIN,
    joined,
    of_arrays,
    of_object,
    vector,
)
from lstmserve_export.scalers.files import read_scaler_file
from lstmserve_export.scalers.min_max import min_max_data

Given = tuple[Any, npt.ArrayLike | None, npt.ArrayLike | None]
EPSILON: Final = 2.0**-24  # what float32 rounds a number by, at most
LOSS_NOTED, LOSS_MAX = 1e-3, 1e-2


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

    def exact(self, network: Network | None) -> Network | None:
        """The network with these norms in float64, where its own are the same in float32, as those
        are that a trace has."""
        if network is None:
            return None
        found: dict[str, Any] = {}
        for name, norms in (("input_norm", self.inputs), ("output_norm", self.outputs)):
            own: Norm | None = getattr(network, name)
            for norm in norms.values():
                if own is not None and _narrow(own) == _narrow(norm):
                    found[name] = norm
        return replace(network, **found)

    def notes(self) -> list[str]:
        """The order of the columns, and what float32 loses of them."""
        found = []
        for own, norms in (("x", self.inputs), ("y", self.outputs)):
            for name, norm in norms.items():
                label = name or own
                if norm.columns:
                    columns = shorten(list(norm.columns), 40)
                    found.append(f"the columns of {label}, in their order: {columns}")
                if loss := _loss(norm, LOSS_NOTED):
                    found.append(f"of {label}, {loss}")
        return found


UNSCALED: Final = Scalers()


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
            None if part is None else vector(part, self.flag(name))
            for part, name in ((mean, "mean"), (scale, "scale"))
        ]
        norm = joined(f"{self.flag('mean')} and {self.flag('scale')}", *given)
        if norm is None:
            return None
        if all(part is not None for part in given) and (data := min_max_data(norm)):
            raise Refused(
                f"{self.flag('mean')} and {self.flag('scale')} are min_ and scale_ of a "
                f"MinMaxScaler, whose data run {data}, and it multiplies by scale_: give the "
                f"scaler itself with {self.flag('scaler')}"
            )
        hint = "; if these are a MinMaxScaler's min_ and scale_, give the scaler itself"
        return _checked(norm, self.flag("scale"), hint)

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
            norm = of_arrays(scaler, label, is_output=self.is_output)
        else:
            norm = of_object(scaler, label, is_output=self.is_output)
        return None if norm is None else _checked(self._chosen(norm, columns), label)

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


def scalers_of(inputs: Given, outputs: Given) -> Scalers:
    """The scalers of an argument for each side: a scaler, a mean and a scale. Raises Refused."""
    x, y = (Side(side, partial(_argument, side)) for side in ("input", "output"))
    return Scalers(x.norms(*inputs), y.norms(*outputs))


def _argument(side: str, name: str) -> str:
    """How Python names what the flags have under this name."""
    return "{'scaler': ..., 'columns': [...]}" if name == "columns" else f"{side}_{name}"


def with_scalers(network: Network, scalers: Scalers) -> Network:
    """The network of raw x and y. Raises Refused."""
    x, y = scalers.of_lstm()
    notes = (*network.notes, *scalers.notes())
    return replace(network, input_norm=x, output_norm=y, notes=notes)


def _checked(norm: Norm, label: str, hint: str = "") -> Norm:
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
    if loss := _loss(norm, LOSS_MAX):
        raise Refused(f"{label}: {loss}{hint}")
    return norm


def _narrow(norm: Norm) -> tuple[list[float], list[float]]:
    return norm.mean.astype(np.float32).tolist(), norm.scale.astype(np.float32).tolist()


def _loss(norm: Norm, limit: float) -> str:
    """The column of which float32 loses most, in words; "" where that is within the limit."""
    losses = np.abs(norm.mean / norm.scale) * EPSILON
    place = int(losses.argmax())
    if losses[place] <= limit:
        return ""
    return (
        f"float32 keeps column {place} (from 0) only to {losses[place]:.1g} of its scale, because "
        "it is so far from 0: subtract an offset outside of the model, and fit the scaler on that"
    )
