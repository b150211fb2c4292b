"""Probes how the tensors of a file lie in the steps of sessions: which axis is batch, which time.

Only experiments decide, because names and declared sizes mislead: a fixed 1 may be a batch that
works, and a symbolic axis called batch may be time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

import onnx

from lstmserve_export.arrays import Arrays
from lstmserve_export.onnx_file.layout.batch_axis import BatchAxes, likely_axis
from lstmserve_export.onnx_file.layout.batch_search import (
    FoundBatch,
    WrongAxis,
    checked_axes,
    search_batch,
)
from lstmserve_export.onnx_file.layout.place import Layout
from lstmserve_export.onnx_file.layout.placing import Placing, check_dtypes
from lstmserve_export.onnx_file.layout.row_shapes import (
    ShapeSearch,
    StateChanges,
    free_axes,
    is_batch_name,
    row_axes,
    state_symbols,
    working,
)
from lstmserve_export.onnx_file.layout.runner import Runner, RunRefused
from lstmserve_export.onnx_file.layout.sampler import Sampler
from lstmserve_export.onnx_file.layout.stateless import StatelessProbe
from lstmserve_export.onnx_file.layout.time_axis import NoTime, TimeAxes, find_time
from lstmserve_export.onnx_file.layout.trial import Trial
from lstmserve_export.onnx_file.load.source import Source, Value
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.onnx_file.roles.roles import Roles
from lstmserve_export.refusal import Refused

NOTHING: Final[Arrays] = {}
# Numbers of rows a step may need: frames of features, then samples of audio.
ROWS: Final = (2, 4, 8, 10, 16, 20, 32, 64, 80, 128, 160, 256, 320, 400, 480, 512, 576, 640, 1024)
NAMED: Final = 6


@dataclass(frozen=True, slots=True)
class Probed:
    """The layout, and the trial that draws rows which the graph accepts. `source` has the graph
    that takes the batch of the layout."""

    layout: Layout
    trial: Trial
    source: Source


def probe(source: Source, roles: Roles, request: Request, given: Arrays = NOTHING) -> Probed:
    """Runs the file. `given` has real rows [N, *] of inputs, by their names in the file.

    Raises Refused where no batch, time or number of rows explains it.
    """
    check_dtypes(roles)
    axes = checked_axes(roles, request)
    try:
        return _Probe(source, roles, request, given, axes).run()
    except WrongAxis as error:
        flags = " ".join(f"--batch-axis {name}={axis}" for name, axis in axes.items())
        found = _Probe(source, roles, request, given, {}).run().layout
        raise Refused(f"{flags}: {error}; {_batch_axes(found)}") from error


def _batch_axes(layout: Layout) -> str:
    """What --batch-axis may say."""
    if not layout.is_batched:
        return "no other axis works; leave the flag out to run one session at a time"
    places = (*layout.inputs, *layout.outputs, *(each.before for each in layout.states))
    return f"these work: {', '.join(f'{each.value.name}={each.batch}' for each in places)}"


class _Probe:
    """The experiments on one file."""

    def __init__(
        self,
        source: Source,
        roles: Roles,
        request: Request,
        given: Arrays,
        axes: Mapping[str, int | None],
    ) -> None:
        """`axes` is what --batch-axis says. Raises Refused."""
        self._source, self._roles, self._request, self._axes = source, roles, request, axes
        self._single = {name: axis for name, axis in axes.items() if axis is not None}
        try:
            self._runner = Runner(source.model, roles.constants, self._single)
        except RunRefused as error:
            raise Refused(f"onnxruntime does not load the graph: {error}") from error
        self._sampler = Sampler(source.model, given)
        self._search = ShapeSearch(self._runner, self._sampler, roles, self._single)

    def run(self) -> Probed:
        """Raises Refused and WrongAxis."""
        if not self._roles.states:
            return self._probed(*self._stateless().run())
        rows = self._request.rows
        trial = self._open_trial()
        found = search_batch(self._source.model, trial, self._axes)
        batch = found.axes.before if isinstance(found.axes, BatchAxes) else {}
        time: TimeAxes | NoTime = NoTime("--rows is given")
        if not rows:
            time = find_time(trial, {} if found.model else batch)
        return self._probed(_layout(trial, found, time, rows), trial, found.model)

    def _probed(self, layout: Layout, trial: Trial, model: onnx.ModelProto | None) -> Probed:
        source = replace(self._source, model=model) if model else self._source
        return Probed(layout, trial, source)

    def _stateless(self) -> StatelessProbe:
        return StatelessProbe(
            self._source, self._roles, self._request, self._runner, self._sampler, self._axes
        )

    def _open_trial(self) -> Trial:
        """Raises Refused where the graph runs on no row, and WrongAxis."""
        attempts, rows = row_axes(self._roles, self._single), self._request.rows
        try:
            found = self._search.find(attempts if rows else [{}], rows)
        except (RunRefused, StateChanges) as error:
            if self._is_narrowed():
                raise WrongAxis(f"the graph does not run with one row there: {error}") from error
            raise self._no_row(error, attempts, rows) from error
        return Trial(self._runner, self._sampler, self._roles, found)

    def _is_narrowed(self) -> bool:
        """Whether --batch-axis names an axis of several values."""
        values = (*self._roles.inputs, *(each.before for each in self._roles.states))
        sizes = {each.name: each.shape for each in values}
        return any((sizes[n][at] or 1) > 1 for n, at in self._single.items() if n in sizes)

    def _no_row(self, error: Exception, attempts: list[dict[str, int]], rows: int) -> Refused:
        roles = self._roles
        shapes = ", ".join(map(str, (*roles.inputs, *(e.before for e in roles.states))))
        if rows:
            return Refused(f"--rows {rows}: the graph does not run on {shapes}: {error}")
        free = [each for each in roles.inputs if free_axes(each)]
        if isinstance(error, StateChanges):
            return Refused(str(error))
        if not free:
            return Refused(f"the graph does not run on one row of {shapes}: {error}")
        works = list(islice(working(self._search, attempts, ROWS), NAMED))
        tried = f"; {', '.join(map(str, works))} run" if works else ""
        axes = attempts[0]
        where = ", ".join(f"axis {axes[e.name]} of {e}" for e in free if e.name in axes)
        reason = error.briefly("it") if works and isinstance(error, RunRefused) else error
        return Refused(
            f"the graph does not run on one row along {where} ({reason}): give --rows N, the "
            f"number of rows of one step{tried}"
        )


def _layout(trial: Trial, found: FoundBatch, time: TimeAxes | NoTime, rows: int) -> Layout:
    """Raises Refused."""
    roles, batch = trial.roles, found.axes
    _check_sizes(trial)
    before, after = (time.before, time.after) if isinstance(time, TimeAxes) else ({}, {})
    if found.model is not None:  # which takes one row of time, and maybe sessions in its place
        before = after = {}
    batch_before = batch.before if isinstance(batch, BatchAxes) else {}
    if not rows:
        of_states = state_symbols(roles)
        for value in roles.inputs:
            explained = {batch_before.get(value.name), before.get(value.name)}
            if not batch_before:  # the rows of a batch mix, and a step has one
                axes = enumerate(value.symbols)
                explained |= {at for at, name in axes if name and is_batch_name(name, of_states)}
            _check_free(trial, value, explained, time)
    for pair in roles.states:
        batched = batch_before.get(pair.before.name, likely_axis(pair.before))
        _check_free_state(trial, pair.before, batched)
    placing = Placing(
        roles,
        before=trial.shapes,
        after={name: each.shape for name, each in trial.row(0).results.items()},
        batch=batch,
        time_before=before or trial.row_axes,
        time_after=after,
    )
    return placing.layout((*batch.notes, *found.notes))


def _check_sizes(trial: Trial) -> None:
    """Raises Refused for outputs of several sizes or none."""
    first = trial.row(0).results
    for row in trial.rows(0, NAMED):
        for name, array in row.results.items():
            if array.shape != first[name].shape:
                raise Refused(
                    f"the size of {name} depends on the data: it was {list(array.shape)} and "
                    f"{list(first[name].shape)}"
                )
            if not array.size:
                raise Refused(f"{name} is {list(array.shape)}, it has no values: leave it out")


def _check_free(
    trial: Trial, value: Value, explained: set[int | None], time: TimeAxes | NoTime
) -> None:
    """Raises Refused for a free axis that is neither batch nor time, and takes several rows."""
    for axis in free_axes(value):
        if axis in explained or not trial.takes_two(value, axis):
            continue
        reason = f" ({time.reason})" if isinstance(time, NoTime) else ""
        raise Refused(
            f"axis {axis} of {value} is neither the batch nor time{reason}: give --rows N, the "
            "number of rows of one step (1: one at a time)"
        )


def _check_free_state(trial: Trial, value: Value, batch: int | None) -> None:
    """Raises Refused for an axis of a state that may have any size."""
    for axis in free_axes(value):
        if axis != batch and trial.takes_two(value, axis):
            raise Refused(
                f"axis {axis} of the state {value} may have any size: fix it in the file (python "
                "-m onnxruntime.tools.make_dynamic_shape_fixed --input_name NAME --input_shape N,N "
                "IN OUT)"
            )
