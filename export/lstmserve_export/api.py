"""Exports a network as a model folder, and verifies it before it writes it. Prints nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy.typing as npt
from torch import nn

from lstmserve.spec import WindowFill
from lstmserve_export.lstm.export import export_network, make_pairs
from lstmserve_export.lstm.network import (
    Network,
    take_embedding,
    take_head,
    take_lstm,
    take_residual,
    take_state,
)
from lstmserve_export.module.export import export_module
from lstmserve_export.module.forward import Axes
from lstmserve_export.refusal import Refused
from lstmserve_export.scalers.sides import Scalers, scalers_of, with_scalers
from lstmserve_export.target import Exported, Target

LSTMS = (nn.LSTM, nn.LSTMCell)
ALONE = (
    "a module with an example is exported as it is: make head, embedding, residual and "
    "initial_state a part of it, and leave out golden, since forward() itself is checked"
)


def export(
    module: nn.Module,
    head: nn.Module | None = None,
    *,
    name: str,
    example: Any = None,
    models: str | Path = "models",
    version: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    states: Sequence[str] = (),
    output_names: Sequence[str] = (),
    axes: str = "",
    window: int = 0,
    window_fill: WindowFill | None = None,
    embedding: nn.Embedding | None = None,
    input_mean: npt.ArrayLike | None = None,
    input_scale: npt.ArrayLike | None = None,
    output_mean: npt.ArrayLike | None = None,
    output_scale: npt.ArrayLike | None = None,
    input_scaler: Any = None,
    output_scaler: Any = None,
    residual: Sequence[int] | str = (),
    initial_state: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    golden: Mapping[str, npt.ArrayLike] | str | Path | None = None,
) -> Exported:
    """Exports live modules as models/NAME/VERSION; docs/EXPORT.md explains each argument.

    With `example`, any nn.Module is exported as it is. `example` is what forward() takes, with a
    batch, time steps, and values like those in production: a tensor, a tuple, or a dict by name.
    Without it, `module` is an nn.LSTM or nn.LSTMCell, and y = head(lstm(x)); `residual` has columns
    of x or is "all", `initial_state` is h0 and c0, [num_layers, width] each, and `golden` has
    arrays by name or is an .npz. `version` None takes the next one. With a `window` of W rows, each
    answer is that of the last W rows; `window_fill` is "wait" (the default), "zeros" or "grow". A
    scaler is a fitted one of scikit-learn, a file or a dict. Raises Refused, and writes nothing.
    """
    target = Target(name, Path(models), version, force, dry_run)
    scalers = scalers_of(
        (input_scaler, input_mean, input_scale), (output_scaler, output_mean, output_scale)
    )
    parts = _Parts(head, embedding, residual, initial_state, golden)
    windows: dict[str, Any] = {"window": window, "window_fill": window_fill}
    if example is None:
        if states or output_names or axes:
            raise Refused("states, output_names and axes need an example of what forward() takes")
        return _export_lstm(module, parts, target, scalers, windows)
    parts.check_none()
    named: dict[str, Any] = {"states": _names(states), "output_names": _names(output_names)}
    named |= {"axes": Axes.of(axes), "scalers": scalers}
    return export_module(_module(module), example, target, **named, **windows)


@dataclass(frozen=True, slots=True)
class _Parts:
    """The arguments that say what stands around an nn.LSTM."""

    head: nn.Module | None
    embedding: nn.Embedding | None
    residual: Sequence[int] | str
    initial_state: tuple[npt.ArrayLike, npt.ArrayLike] | None
    golden: Mapping[str, npt.ArrayLike] | str | Path | None

    def check_none(self) -> None:
        """Raises Refused if one is given, since a module with an example has its own."""
        values = (getattr(self, each.name) for each in fields(self) if each.name != "residual")
        if len(self.residual) or any(value is not None for value in values):
            raise Refused(ALONE)


def _names(names: Sequence[str]) -> Sequence[str]:
    """The names; a lone string is one name."""
    return (names,) if isinstance(names, str) else names


def _module(module: nn.Module) -> nn.Module:
    """The module itself. Raises Refused if it is none."""
    if not isinstance(module, nn.Module):
        raise Refused(f"module is a {type(module).__name__}, must be an nn.Module")
    return module


def _export_lstm(
    module: nn.Module, parts: _Parts, target: Target, scalers: Scalers, windows: Mapping[str, Any]
) -> Exported:
    _module(module)
    if not isinstance(module, LSTMS):
        raise Refused(
            f"{type(module).__name__} needs an example of what its forward() takes: "
            "export(module, example=x, ...)"
        )
    lstm = take_lstm(module)
    network = Network(
        lstm=lstm,
        head=take_head(parts.head),
        embedding=take_embedding(parts.embedding),
        residual=take_residual(parts.residual, lstm),
        initial_state=take_state(parts.initial_state, lstm),
    )
    pairs, network = make_pairs(parts.golden), with_scalers(network, scalers)
    return export_network(network, target, pairs, **windows)
