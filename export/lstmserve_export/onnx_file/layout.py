"""How the tensors of a file lie in the time steps of sessions: which axis is the batch, which time.

Only experiments decide, because names and declared sizes mislead: a fixed 1 may be a batch that
works, and a symbolic axis called batch may be time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Final

from lstmserve_export.arrays import Arrays
from lstmserve_export.onnx_file.batch_axis import (
    BatchAxes,
    NoBatch,
    checked_axes,
    find_given_batch,
)
from lstmserve_export.onnx_file.place import Layout as Layout  # others have them from here
from lstmserve_export.onnx_file.place import Place as Place
from lstmserve_export.onnx_file.place import StatePlace as StatePlace
from lstmserve_export.onnx_file.placing import Placing
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.onnx_file.roles import Roles
from lstmserve_export.onnx_file.row_shapes import (
    Axes,
    ShapeSearch,
    StateChanges,
    free_axes,
    row_axes,
    working,
)
from lstmserve_export.onnx_file.runner import Runner, RunRefused
from lstmserve_export.onnx_file.sampler import Sampler
from lstmserve_export.onnx_file.served_names import check_dtypes
from lstmserve_export.onnx_file.source import Source, Value
from lstmserve_export.onnx_file.time_axis import NoTime, TimeAxes, find_time
from lstmserve_export.onnx_file.trial import Trial
from lstmserve_export.onnx_file.whole import WholeProbe
from lstmserve_export.refusal import Refused

NOTHING: Final[Arrays] = {}
# Numbers of rows a step may need: frames of features, then samples of audio.
ROWS: Final = (2, 4, 8, 10, 16, 20, 32, 64, 80, 128, 160, 256, 320, 400, 480, 512, 576, 640, 1024)
NAMED: Final = 4


@dataclass(frozen=True, slots=True)
class Probed:
    """The layout, and the trial that draws rows which the graph accepts."""

    layout: Layout
    trial: Trial


def probe(source: Source, roles: Roles, request: Request, given: Arrays = NOTHING) -> Probed:
    """Runs the file. `given` has real rows [N, *] of inputs, by their names in the file.

    Raises Refused where no batch, time or number of rows explains it.
    """
    check_dtypes(roles)
    axes = checked_axes(roles, request)
    single = {name: axis for name, axis in axes.items() if axis is not None}
    try:
        runner = Runner(source.model, roles.constants, single)
    except RunRefused as error:
        raise Refused(f"onnxruntime does not load the graph: {error}") from error
    sampler = Sampler(source.model, given)
    search = ShapeSearch(runner, sampler, roles, single)
    if not roles.states:
        return Probed(*WholeProbe(source, roles, request, runner, sampler, axes).run())
    trial = _open_trial(runner, sampler, roles, search, row_axes(roles, single), request.rows)
    batch = find_given_batch(trial, axes)
    time: TimeAxes | NoTime = NoTime("--rows is given")
    if not request.rows:
        time = find_time(trial, batch.before if isinstance(batch, BatchAxes) else {})
    return Probed(_layout(trial, batch, time, request.rows), trial)


def find_layout(source: Source, roles: Roles, request: Request, given: Arrays = NOTHING) -> Layout:
    """The layout that probe() finds. Raises Refused."""
    return probe(source, roles, request, given).layout


def _open_trial(
    runner: Runner,
    sampler: Sampler,
    roles: Roles,
    search: ShapeSearch,
    attempts: list[dict[str, int]],
    rows: int,
) -> Trial:
    """Raises Refused where the graph runs on no row."""
    try:
        return Trial(runner, sampler, roles, search.find(attempts if rows else [{}], rows))
    except (RunRefused, StateChanges) as error:
        shapes = ", ".join(map(str, (*roles.inputs, *(e.before for e in roles.states))))
        if rows:
            raise Refused(f"--rows {rows}: the graph does not run on {shapes}: {error}") from error
        free = [each for each in roles.inputs if free_axes(each)]
        if isinstance(error, StateChanges) or not free:
            raise Refused(f"the graph does not run on one row of {shapes}: {error}") from error
        works = list(islice(working(search, attempts, ROWS), NAMED))
        tried = f"; {', '.join(map(str, works))} work" if works else ""
        where = ", ".join(f"axis {free_axes(each)[-1]} of {each}" for each in free)
        raise Refused(
            f"the graph does not run on one row along {where} ({error}): give --rows N, the number "
            f"of rows of one step{tried}"
        ) from error


def _layout(trial: Trial, batch: BatchAxes | NoBatch, time: TimeAxes | NoTime, rows: int) -> Layout:
    """Raises Refused."""
    roles = trial.roles
    _check_sizes(trial)
    before, after = (time.before, time.after) if isinstance(time, TimeAxes) else ({}, {})
    batch_before = batch.before if isinstance(batch, BatchAxes) else {}
    if not rows:
        for value in roles.inputs:
            explained = {batch_before.get(value.name), before.get(value.name)}
            _check_free(trial, value, explained, time)
    for pair in roles.states:
        _check_free_state(trial, pair.before, batch_before)
    placing = Placing(
        roles,
        before=trial.shapes,
        after={name: each.shape for name, each in trial.row(0).results.items()},
        batch=batch,
        time_before=before or trial.row_axes,
        time_after=after,
    )
    is_over_time = isinstance(time, TimeAxes) and {e.name for e in roles.outputs} == {*after}
    return placing.layout(batch.notes, is_over_time=is_over_time)


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


def _check_free_state(trial: Trial, value: Value, batch: Axes) -> None:
    """Raises Refused for an axis of a state that may have any size."""
    for axis in free_axes(value):
        if axis != batch.get(value.name) and trial.takes_two(value, axis):
            raise Refused(
                f"axis {axis} of the state {value} may have any size: fix it in the file (python "
                "-m onnxruntime.tools.make_dynamic_shape_fixed --input_name NAME --input_shape N,N "
                "IN OUT)"
            )
