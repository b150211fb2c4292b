"""Finds the axes of files without states, which take whole sequences, or windows of them.

The axis of time has any number of rows, or those of the window. What lies along the batch is found
as everywhere (batch_axis.py). Where rows along the only free axis do not mix, it is a batch by its
nature, and each of its rows a time step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import onnx

from lstmserve_export.onnx_file.layout.batch_axis import (
    BatchAxes,
    BatchExperiment,
    NoBatch,
    NotBatch,
)
from lstmserve_export.onnx_file.layout.batch_search import FoundBatch, WrongAxis, search_batch
from lstmserve_export.onnx_file.layout.place import Layout
from lstmserve_export.onnx_file.layout.placing import Placing
from lstmserve_export.onnx_file.layout.row_shapes import (
    Axes,
    RowShapes,
    ShapeSearch,
    StateChanges,
    fixed_axes,
    free_axes,
    free_row_axes,
    is_batch_name,
    row_axes,
)
from lstmserve_export.onnx_file.layout.runner import Runner, RunRefused
from lstmserve_export.onnx_file.layout.sampler import Sampler, Shape
from lstmserve_export.onnx_file.layout.trial import Trial
from lstmserve_export.onnx_file.load.source import Source
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.onnx_file.roles.roles import Roles
from lstmserve_export.refusal import Refused, shorten

# Of sequences that a graph may take. An output may have one row for hundreds, as of samples.
LENGTHS: Final = (8, 13, 32, 100, 400, 1600, 6400, 25_600)
VALUES_MAX: Final = 1 << 17  # of the longest of them
SHORTEST_MAX: Final = 64
NO_WINDOW: Final = NoBatch("a sequence runs alone")  # whatever the graph can


@dataclass(frozen=True, slots=True)
class _Candidate:
    """`found` has the sequences that run, and `other` sequences of another length, if they run."""

    found: RowShapes
    other: RowShapes | None


class StatelessProbe:
    """The experiments on one file."""

    def __init__(
        self,
        source: Source,
        roles: Roles,
        request: Request,
        runner: Runner,
        sampler: Sampler,
        given: Mapping[str, int | None],
    ) -> None:
        """`given` is what --batch-axis says."""
        self._source, self._roles, self._window = source, roles, request.window
        self._rows = request.rows
        self._runner, self._sampler, self._given = runner, sampler, given
        self._single = {name: axis for name, axis in given.items() if axis is not None}
        self._search = ShapeSearch(runner, sampler, roles, self._single)

    def run(self) -> tuple[Layout, Trial, onnx.ModelProto | None]:
        """Raises Refused and WrongAxis."""
        if self._rows:
            return self._frames()
        wrong: WrongAxis | None = None
        best: tuple[_Candidate, Trial, FoundBatch] | None = None
        for candidate in self._candidates():
            trial = Trial(self._runner, self._sampler, self._roles, candidate.found)
            try:
                batch = self._search_batch(trial)
            except WrongAxis as error:
                wrong = wrong or error
                continue
            if self._is_pointless(candidate, batch.axes):
                continue
            if best is None or isinstance(batch.axes, BatchAxes):
                best = candidate, trial, batch
            if isinstance(batch.axes, BatchAxes):
                break
        if best is None:
            raise wrong or self._no_time()
        candidate, trial, batch = best
        return self._layout(candidate, trial, batch), trial, batch.model

    def _search_batch(self, trial: Trial) -> FoundBatch:
        """A sequence runs alone, so that a batch only tells which axis is time, and only windows
        are worth a rewriting. Raises WrongAxis."""
        if self._window:
            return search_batch(self._source.model, trial, self._given)
        try:
            return search_batch(None, trial, self._given)
        except WrongAxis as error:
            return FoundBatch(NoBatch(str(error)))

    # What runs ------------------------------------------------------------------------------------

    def _candidates(self) -> Iterator[_Candidate]:
        """Axes along which sequences may lie, the likeliest first."""
        if self._window:
            for axes in fixed_axes(self._roles, self._window):
                found = self._try(self._search, axes, self._window)
                if found is not None:
                    yield _Candidate(found, self._relaxed(axes))
        for axes in free_row_axes(self._roles, self._single):
            runs = [
                each
                for length in ((self._window,) if self._window else self._lengths(axes))
                if (each := self._try(self._search, axes, length)) is not None
            ]
            if not runs:
                continue
            other = self._another(self._search, axes, self._window) if self._window else None
            if len(runs) > 1:
                other = runs[-1]
            if self._window or other is not None:
                yield _Candidate(runs[0], other)

    def _lengths(self, axes: Axes) -> list[int]:
        width = 1
        for value in self._roles.inputs:
            rest = (n or 1 for at, n in enumerate(value.shape) if at != axes.get(value.name))
            width = max(width, math.prod(rest))
        return [each for each in LENGTHS if each * width <= VALUES_MAX or each <= LENGTHS[2]]

    def _try(self, search: ShapeSearch, axes: Axes, length: int) -> RowShapes | None:
        if set(axes) != {each.name for each in self._roles.inputs}:
            return None
        try:
            return search.find([axes], length)
        except (RunRefused, StateChanges):
            return None

    def _another(self, search: ShapeSearch, axes: Axes, length: int) -> RowShapes | None:
        """Sequences of another length."""
        for other in (length + 3, 2 * length, 3 * length):
            if other != length and (found := self._try(search, axes, other)) is not None:
                return found
        return None

    def _relaxed(self, axes: Axes) -> RowShapes | None:
        """Longer windows than the file declares, if its graph takes them."""
        try:
            runner = Runner(self._source.model, self._roles.constants, axes)
        except RunRefused:
            return None
        search = ShapeSearch(runner, self._sampler, self._roles, self._single)
        return self._another(search, axes, self._window)

    def _shortest(self, axes: Axes) -> int:
        lengths = range(1, SHORTEST_MAX)
        return next((n for n in lengths if self._try(self._search, axes, n)), SHORTEST_MAX)

    def _is_independent(self, axes: Axes) -> bool:
        """Whether rows along these axes do not mix."""
        single = self._try(self._search, axes, 1)
        if single is None:
            return False
        trial = Trial(
            self._runner, self._sampler, self._roles, RowShapes(single.shapes, single.results, {})
        )
        try:
            BatchExperiment(trial, axes, {}).run()
        except NotBatch:
            return False
        return True

    def _is_pointless(self, candidate: _Candidate, batch: BatchAxes | NoBatch) -> bool:
        """Whether these are windows of rows that do not mix and have rows themselves."""
        batches = batch.before if isinstance(batch, BatchAxes) else {}
        axes = candidate.found.axes
        first = self._roles.inputs[0]
        rest = {*range(len(first.shape))} - {axes[first.name], batches.get(first.name)}
        return bool(self._window) and len(rest) > 1 and self._is_independent(axes)

    # What was found -------------------------------------------------------------------------------

    def _layout(self, candidate: _Candidate, trial: Trial, found: FoundBatch) -> Layout:
        batch = found.axes
        axes = candidate.found.axes
        explained = batch.before if isinstance(batch, BatchAxes) else {}
        for value in self._roles.inputs:
            for axis in free_axes(value):
                if axis in (axes[value.name], explained.get(value.name)):
                    continue
                if self._single.get(value.name) == axis:
                    continue
                if None in self._given.values() or is_batch_name(value.symbols[axis], ()):
                    continue  # the batch, of one row, since its rows mix
                if trial.takes_two(value, axis):
                    raise Refused(
                        f"axes {axes[value.name]} and {axis} of {value} may both have any size, "
                        "and neither is a batch; --batch-axis none takes the first for time"
                    )
        times = self._times(candidate)
        placing = Placing(
            self._roles,
            before=_of_one_row(candidate.found.shapes, axes),
            after=_of_one_row(
                {name: each.shape for name, each in candidate.found.results.items()}, times
            ),
            batch=batch,
            time_before=axes,
            time_after=times,
        )
        notes = self._window_notes(axes, batch) if self._window else self._sequence_notes(axes)
        return placing.layout((*notes, *found.notes))

    def _window_notes(self, axes: Axes, batch: BatchAxes | NoBatch) -> tuple[str, ...]:
        if self._is_independent(axes):
            return (
                *batch.notes,
                "the rows of a window do not mix: each could be a step of its own",
            )
        return batch.notes

    def _sequence_notes(self, axes: Axes) -> tuple[str, ...]:
        if not self._is_independent(axes):
            shortest = self._shortest(axes)
            return (f"a sequence has at least {shortest} rows",) if shortest > 1 else ()
        where = ", ".join(f"axis {axis} of {name}" for name, axis in axes.items())
        notes = [f"each row along {where} has its own answer, whatever its neighbours are"]
        for value in self._roles.inputs:
            rest = [at for at in range(len(value.shape)) if at != axes[value.name]]
            rows = value.shape[rest[0]] if len(rest) == 2 else None
            if rows is not None and rows > 1:
                sizes = [value.shape[at] for at in rest]
                either = " or ".join(f"--window {n}" for n in dict.fromkeys(sizes) if n)
                notes.append(
                    f"a row of {value.name} is {sizes}: if one of these axes is time, and moves on "
                    f"step by step, give {either}"
                )
        return tuple(notes)

    def _times(self, candidate: _Candidate) -> dict[str, int]:
        """The axis of time of each output that has one. Raises Refused."""
        found = {}
        for value in self._roles.outputs:
            one = candidate.found.results[value.name].shape
            axis = self._declared_time(one, candidate.found.axes)
            if candidate.other is not None:
                axis = _grown(value.name, one, candidate.other.results[value.name].shape)
            if axis is not None:
                found[value.name] = axis
        return found

    def _declared_time(self, shape: Shape, axes: Axes) -> int | None:
        """Of an output of a file that takes one length only: it lies as the first input does."""
        first = self._roles.inputs[0]
        axis = axes[first.name]
        is_alike = len(shape) == len(first.shape) >= 3 and shape[axis] == self._window
        return axis if is_alike else None

    def _frames(self) -> tuple[Layout, Trial, None]:
        """With --rows: steps of several rows, which do not depend on each other."""
        try:
            found = self._search.find(row_axes(self._roles, self._single), self._rows)
        except (RunRefused, StateChanges) as error:
            raise Refused(f"--rows {self._rows}: the graph does not run: {error}") from error
        trial = Trial(self._runner, self._sampler, self._roles, found)
        batch = search_batch(None, trial, self._given).axes
        if isinstance(batch, NoBatch):
            raise Refused(
                f"--rows {self._rows}: the file has no states, so its steps must lie along a "
                f"batch: {batch.reason}"
            )
        placing = Placing(
            self._roles,
            before=found.shapes,
            after={name: each.shape for name, each in found.results.items()},
            batch=NO_WINDOW,
            time_before=batch.before,
            time_after=batch.after,
        )
        note = "the file has no states: its steps do not depend on each other"
        return placing.layout((note,)), trial, None

    def _no_time(self) -> Refused:
        values = ", ".join(map(str, self._roles.inputs))
        if self._window:
            return Refused(f"--window {self._window}: no axis of {values} takes so many rows")
        inputs = self._roles.inputs
        rowless = [each for each in inputs if not free_axes(each) and 1 not in each.shape]
        if rowless and len(rowless) < len(inputs):
            flags = " ".join(f"--constant {each.name}=VALUE" for each in rowless)
            return Refused(
                f"no axis for the rows of a sequence in {shorten([*map(str, rowless)])}: give "
                f"{flags} for what never changes"
            )
        first = inputs[0]
        fixed = [at for at, size in enumerate(first.shape) if size and size > 1]
        hint = "fix what refuses them in the file"
        if fixed and len(first.shape) > 1:
            rows = first.shape[fixed[0]]
            hint = f"if axis {fixed[0]} has the rows of a window, give --window {rows}"
        return Refused(f"no axis of {values} takes sequences of any length: {hint}")


def _of_one_row(shapes: Mapping[str, Shape], times: Axes) -> dict[str, Shape]:
    """The shapes with one row along the axis of time."""
    return {
        name: tuple(1 if times.get(name) == at else size for at, size in enumerate(shape))
        for name, shape in shapes.items()
    }


def _grown(name: str, one: Shape, other: Shape) -> int | None:
    """The axis of which an output has other sizes for other lengths. Raises Refused."""
    axes = [at for at, (n, m) in enumerate(zip(one, other, strict=False)) if n != m]
    if len(one) != len(other) or len(axes) > 1:
        raise Refused(
            f"{name} is {list(one)} and {list(other)} for sequences of two lengths: it has no axis "
            "of time, and no fixed size"
        )
    return axes[0] if axes else None
