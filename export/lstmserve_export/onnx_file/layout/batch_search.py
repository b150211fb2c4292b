"""Finds the batch of a file: as the graph is, and where it has none, after a small rewriting.

A rewritten graph is only taken if a row in a batch gets the bits that it gets alone in the file, or
if --batch-axis asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

import onnx

from lstmserve_export.onnx_file.layout.batch_axis import (
    BatchAxes,
    BatchExperiment,
    NoBatch,
    NotBatch,
    as_flag,
    find_batch,
    hypotheses,
)
from lstmserve_export.onnx_file.layout.mixing import find_mixing
from lstmserve_export.onnx_file.layout.rewrite import CannotRewrite, Rewriting
from lstmserve_export.onnx_file.layout.runner import Runner, RunRefused
from lstmserve_export.onnx_file.layout.trial import Trial
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.onnx_file.roles.roles import Roles
from lstmserve_export.refusal import Refused, shorten

REWRITES_MAX: Final = 8  # hypotheses for which the graph is rewritten,
NODES_MAX: Final = 8000  # and how many nodes they have together; the first has any number
ROWS: Final = 3  # with which it is
UNSEEN: Final = "although no answer that was tried shows it"
GivenAxes = Mapping[str, int | None]


class WrongAxis(Exception):
    """What --batch-axis says is no batch; the message says why."""


@dataclass(frozen=True, slots=True)
class FoundBatch:
    """`model` is the graph that takes the batch, where it is not the file's own."""

    axes: BatchAxes | NoBatch
    model: onnx.ModelProto | None = None
    notes: tuple[str, ...] = ()


def checked_axes(roles: Roles, request: Request) -> dict[str, int | None]:
    """What --batch-axis says, with axes from 0; "" has None where it says none for all. Raises
    Refused."""
    values = {each.name: each for each in (*roles.inputs, *roles.outputs)}
    for pair in roles.states:
        values |= {pair.before.name: pair.before, pair.after.name: pair.after}
    found: dict[str, int | None] = {}
    for name, axis in request.batch_axes.items():
        flag = f"--batch-axis {name}={'none' if axis is None else axis}"
        if not name:
            found[name] = None
            continue
        if name not in values:
            raise Refused(f"{flag}: there is no such tensor; there are {shorten(list(values))}")
        rank = len(values[name].shape)
        if axis is not None and not -rank <= axis < rank:
            raise Refused(f"{flag}: {values[name]} has {rank} axes, from 0")
        found[name] = axis if axis is None else axis % rank
    return found


def search_batch(model: onnx.ModelProto | None, trial: Trial, given: GivenAxes) -> FoundBatch:
    """`given` is what --batch-axis says; one None is enough for no batch. Without `model` nothing
    is rewritten. Raises WrongAxis."""
    if None in given.values():
        return FoundBatch(NoBatch("--batch-axis says none"))
    axes = {name: axis for name, axis in given.items() if axis is not None}
    batch = find_batch(trial, axes)
    if isinstance(batch, BatchAxes):
        mixing = find_mixing(model, trial, batch.before, batch.constants) if model else ""
        if not mixing:
            return FoundBatch(batch)
        if axes:
            return FoundBatch(batch, notes=(f"{mixing}, {UNSEEN}",))
        batch = NoBatch(f"{mixing}, {UNSEEN} (--batch-axis {as_flag(batch.before)} takes it)")
    found = _rewritten(model, trial, batch, axes) if model else FoundBatch(batch)
    if axes and isinstance(found.axes, NoBatch):
        raise WrongAxis(batch.reason)
    return found


def _rewritten(
    model: onnx.ModelProto, trial: Trial, batch: NoBatch, axes: Mapping[str, int]
) -> FoundBatch:
    """The first rewriting that holds to the file."""
    constants = trial.roles.constants
    count = max(1, min(REWRITES_MAX, NODES_MAX // max(1, len(model.graph.node))))
    for hypothesis in islice(hypotheses(trial.roles, trial.row_axes, axes), count):
        before = {name: axis for name, axis in hypothesis.items() if name in trial.values}
        if len(before) < len(trial.values) or any(name in constants for name in hypothesis):
            continue
        feeds = [row.feeds for row in trial.rows(0, ROWS)]
        try:
            made = Rewriting(model, constants, feeds, before).run()
            runner = Runner(made.model, constants, before)
            found = BatchExperiment(trial, before, {}, runner).run()
        except (CannotRewrite, RunRefused, NotBatch):
            continue
        if any(found.after.get(name, axis) != axis for name, axis in axes.items()):
            continue
        if found.error and not axes:
            note = (
                f"--batch-axis {as_flag(before)} rewrites the graph for a batch, with answers "
                f"up to {found.error:.2g} apart"
            )
            return FoundBatch(batch, notes=(note,))
        mixing = find_mixing(made.model, trial, before, {})
        if mixing and not axes:
            continue
        changed = ", ".join(f"{op} {count}" for op, count in made.changed.items())
        note = f"operators were changed so that the graph takes a batch: {changed}"
        notes = (note, f"{mixing}, {UNSEEN}") if mixing else (note,)
        return FoundBatch(found, made.model, notes)
    return FoundBatch(batch)
