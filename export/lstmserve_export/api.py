"""Exports a network as a model folder, and verifies it before it writes it. Prints nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
from torch import nn

from lstmserve_export.lstm.export import export_network, make_pairs
from lstmserve_export.lstm.network import Network, take_embedding, take_head, take_lstm
from lstmserve_export.module.export import export_module
from lstmserve_export.module.forward import Axes
from lstmserve_export.refusal import Refused
from lstmserve_export.scalers.sides import Scalers, Side, with_scalers
from lstmserve_export.target import Exported, Target

LSTMS = (nn.LSTM, nn.LSTMCell)
ALONE = (
    "a module with an example is exported as it is: make head and embedding a part of it, and "
    "leave out golden, since forward() itself is checked"
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
    embedding: nn.Embedding | None = None,
    input_mean: npt.ArrayLike | None = None,
    input_scale: npt.ArrayLike | None = None,
    output_mean: npt.ArrayLike | None = None,
    output_scale: npt.ArrayLike | None = None,
    input_scaler: Any = None,
    output_scaler: Any = None,
    golden: Mapping[str, npt.ArrayLike] | str | Path | None = None,
) -> Exported:
    """Exports live modules as models/NAME/VERSION. `version` None takes the next one.

    With `example`, `module` is any nn.Module around recurrent layers, and is exported as it is:

    - `example`: what forward() takes, with a batch and time steps: a tensor, a tuple of the
      arguments, or a dict of them by name. Its values should be like those in production, since
      the export also checks the model on them.
    - `states`, `output_names`, `axes`: as the flags of these names (docs/EXPORT.md).

    Without `example`, `module` is an nn.LSTM or nn.LSTMCell, and y = head(lstm(x)); `head`,
    `embedding` and `golden` (which may be the path of an .npz) are of this way alone.

    With `input_scaler` the model takes raw x, and with `output_scaler` it gives raw y. Each is a
    fitted scaler of scikit-learn, a file, or a dict (docs/EXPORT.md).

    Raises Refused, and has then written nothing.
    """
    if not isinstance(module, nn.Module):
        raise Refused(f"module is a {type(module).__name__}, must be an nn.Module")
    target = Target(name, Path(models), version, force, dry_run)
    x, y = Side("input", "input_{}".format), Side("output", "output_{}".format)
    scalers = Scalers(
        x.norms(input_scaler, input_mean, input_scale),
        y.norms(output_scaler, output_mean, output_scale),
    )
    if example is not None:
        if head is not None or embedding is not None or golden is not None:
            raise Refused(ALONE)
        return export_module(
            module,
            example,
            target,
            states=_names(states),
            output_names=_names(output_names),
            axes=Axes.of(axes),
            scalers=scalers,
        )
    if states or output_names or axes:
        raise Refused("states, output_names and axes need an example of what forward() takes")
    return _export_lstm(module, head, embedding, scalers, target, golden)


def _names(names: Sequence[str]) -> Sequence[str]:
    """The names; a lone string is one name."""
    return (names,) if isinstance(names, str) else names


def _export_lstm(
    module: nn.Module,
    head: nn.Module | None,
    embedding: nn.Embedding | None,
    scalers: Scalers,
    target: Target,
    golden: Mapping[str, npt.ArrayLike] | str | Path | None,
) -> Exported:
    if not isinstance(module, LSTMS):
        raise Refused(
            f"{type(module).__name__} needs an example of what its forward() takes: "
            "export(module, example=x, ...)"
        )
    network = Network(take_lstm(module), take_head(head), take_embedding(embedding))
    return export_network(with_scalers(network, scalers), target, make_pairs(golden))
