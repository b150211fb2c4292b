"""Runs single time steps of single sessions: the rows to which batches and chunks are compared.

It finds shapes that the graph accepts for one row, random values of which it gives finite answers,
and states as they are after some steps. It must not know of batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Final

import numpy as np

from lstmserve_export.arrays import Array, Arrays
from lstmserve_export.onnx_file.place import Place
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.onnx_file.roles import Roles, StatePair
from lstmserve_export.onnx_file.runner import Runner, RunRefused, are_finite
from lstmserve_export.onnx_file.sampler import BOUNDS, KINDS, Sampler, Shape
from lstmserve_export.onnx_file.source import Source, Value
from lstmserve_export.refusal import Refused

STEPS: Final = 8  # from the zero states, which give the states that rows begin from
ATTEMPTS_MAX: Final = 32
GUESSES: Final = 4  # of the sizes of states' free axes
# Numbers of rows a step may need: frames of audio features, then samples of audio.
ROWS: Final = (2, 4, 8, 10, 16, 20, 32, 64, 80, 128, 160, 256, 320, 400, 480, 512, 576, 640, 1024)
NAMED: Final = 4


@dataclass(frozen=True, slots=True)
class Row:
    """`feeds` of inputs and states before, one session each, and `results` of a run of them alone:
    outputs and states after."""

    feeds: Arrays
    results: Arrays


class StateChanges(Exception):
    """A state has another shape after the step than before it."""


class Trial:
    """Rows by number; each is drawn and run once.

    `shapes` are those of one row of every input and state before; `rows_axes` is the axis of
    inputs along which one step has several rows.
    """

    def __init__(self, source: Source, roles: Roles, request: Request, given: Arrays) -> None:
        """Raises Refused where the graph runs on no row."""
        self.roles = roles
        self.rows_axes: Mapping[str, int] = {}
        self.names = {e.name for e in roles.outputs} | {e.after.name for e in roles.states}
        self.values = {e.name: e for e in (*roles.inputs, *(p.before for p in roles.states))}
        self._free = {
            name: axis
            for name, axis in request.batch_axes.items()
            if axis is not None and name in self.values
        }
        self._sampler = Sampler(source.model, given)
        try:
            self.runner = Runner(source.model, roles.constants, self._free)
        except RunRefused as error:
            raise Refused(f"onnxruntime does not load the graph: {error}") from error
        self.shapes = self._find_shapes(request.rows)
        self._kinds = [kind for kind in range(len(KINDS)) if self._is_finite(kind)]
        if not self._kinds:
            raise Refused(
                "the graph gives NaN or infinite values for every random input: give --golden "
                "with real ones"
            )
        self._states = self._evolve()
        self._rows: dict[int, Row] = {}

    def row(self, number: int) -> Row:
        """Row `number` from 0. Raises Refused where the graph runs on none."""
        if number not in self._rows:
            self._rows[number] = self._make_row(number)
        return self._rows[number]

    def rows(self, start: int, count: int) -> list[Row]:
        """The rows from `start` on."""
        return [self.row(at) for at in range(start, start + count)]

    def inputs(self, number: int, kind: int) -> dict[str, Array]:
        """Random inputs of a row."""
        return {
            each.name: self._sampler.draw(each, self.shapes[each.name], number, kind)
            for each in self.roles.inputs
        }

    def sequences(self, places: Sequence[Place], count: int, steps: int) -> dict[str, Array]:
        """Random rows [count, steps, *shape] of each of these, which are all inputs, by our names.
        A sequence has rows of one kind."""
        found = {}
        for place in places:
            name = place.value.name
            rows = [
                self.inputs(at, self._kinds[at // steps % len(self._kinds)])[name]
                for at in range(count * steps)
            ]
            array = np.stack(rows).reshape(count, steps, *place.spec.shape)
            found[place.spec.name] = array.astype(place.spec.dtype)
        return found

    def after(self, results: Arrays) -> dict[str, Array]:
        """The states for the next step of a row that ran alone."""
        return {
            each.before.name: results[each.after.name].reshape(self.shapes[each.before.name])
            for each in self.roles.states
        }

    # The shapes of one row ------------------------------------------------------------------------

    def _find_shapes(self, rows: int) -> dict[str, Shape]:
        bounds = BOUNDS if any("int" in each.dtype for each in self.values.values()) else BOUNDS[:1]
        first: Exception | None = None
        for bound, axes in product(bounds, self._attempts(rows)):
            self._sampler.bound = bound
            try:
                shapes = self._try(dict.fromkeys(axes, rows or 1), axes)
            except (RunRefused, StateChanges) as error:
                first = first or error
                continue
            self.rows_axes = axes if rows else {}
            return shapes
        assert first is not None
        self._sampler.bound = bounds[-1]
        raise self._no_shapes(first, rows)

    def _try(self, rows: Mapping[str, int], axes: Mapping[str, int]) -> dict[str, Shape]:
        """The shapes with so many rows along these axes. Raises RunRefused and StateChanges."""
        shapes = {
            name: tuple(
                rows[name] if axes.get(name) == at else self._size(value, at)
                for at in range(len(value.shape))
            )
            for name, value in self.values.items()
        }
        for _ in range(GUESSES):
            feeds = {
                each.name: self._sampler.draw(each, shapes[each.name], 0, 0)
                for each in self.roles.inputs
            }
            feeds |= {e.before.name: self._zeros(e.before, shapes) for e in self.roles.states}
            results = self.runner.run(feeds, self.names)
            if not self._guess(shapes, results):
                return shapes
        raise StateChanges(
            "a state has another size after each step, such as a cache that grows; a session's "
            "state has one size"
        )

    def _size(self, value: Value, axis: int) -> int:
        return 1 if self._free.get(value.name) == axis else value.shape[axis] or 1

    def _guess(self, shapes: dict[str, Shape], results: Arrays) -> bool:
        """Whether free axes of states got another size, which the state has after the step."""
        is_changed = False
        for each in self.roles.states:
            before, after = shapes[each.before.name], results[each.after.name].shape
            if without_ones(before) == without_ones(after):
                continue
            free = [at for at, size in enumerate(each.before.shape) if size is None]
            if len(after) != len(before) or any(
                after[at] != before[at] for at in range(len(before)) if at not in free
            ):
                raise StateChanges(_changes(each, before, after))
            shapes[each.before.name] = after
            is_changed = True
        return is_changed

    def _zeros(self, value: Value, shapes: Mapping[str, Shape]) -> Array:
        return np.zeros(shapes[value.name], value.dtype)

    def _attempts(self, rows: int) -> list[dict[str, int]]:
        """The axes of inputs along which a step may have several rows, the likeliest first."""
        if not rows:
            return [{}]
        of_states = {s for e in self.roles.states for s in e.before.symbols if s}
        choices: list[list[tuple[str, int] | None]] = []
        for value in self.roles.inputs:
            axes = [at for at in free_axes(value) if self._free.get(value.name) != at]
            axes.sort(key=lambda at: (value.symbols[at] in of_states, -at))
            choices.append([*((value.name, at) for at in axes)] or [None])
        if not any(any(each) for each in choices):
            choices = [
                [*((v.name, at) for at in range(len(v.shape) - 1, 0, -1) if v.shape[at] == 1)]
                or [None]
                for v in self.roles.inputs
            ]
        found = (dict(filter(None, each)) for each in product(*choices))
        return list(islice(filter(None, found), ATTEMPTS_MAX)) or [{}]

    def _no_shapes(self, error: Exception, rows: int) -> Refused:
        shapes = ", ".join(str(each) for each in self.values.values())
        if rows:
            return Refused(f"--rows {rows}: the graph does not run on {shapes}: {error}")
        free = [each for each in self.roles.inputs if free_axes(each)]
        if isinstance(error, StateChanges) or not free:
            return Refused(f"the graph does not run on one row of {shapes}: {error}")
        working = list(islice(self._working_rows(), NAMED))
        tried = f"; {', '.join(map(str, working))} work" if working else ""
        where = ", ".join(f"axis {free_axes(each)[-1]} of {each}" for each in free)
        return Refused(
            f"the graph does not run on one row along {where} ({error}): give --rows N, the number "
            f"of rows of one step{tried}"
        )

    def _working_rows(self) -> Iterator[int]:
        for rows in ROWS:
            for axes in self._attempts(rows):
                try:
                    self._try(dict.fromkeys(axes, rows), axes)
                except (RunRefused, StateChanges):
                    continue
                yield rows
                break

    # The values of rows ---------------------------------------------------------------------------

    def _is_finite(self, kind: int) -> bool:
        zeros = {e.before.name: self._zeros(e.before, self.shapes) for e in self.roles.states}
        return self._run(self.inputs(0, kind) | zeros) is not None

    def _run(self, feeds: Arrays) -> Row | None:
        """The row, or None if it is no proof of anything."""
        try:
            results = self.runner.run(feeds, self.names)
            self.after(results)
        except (RunRefused, ValueError):
            return None
        return Row(feeds, results) if are_finite(results.values()) else None

    def _evolve(self) -> list[dict[str, Array]]:
        """States after 0, 1, 2, ... steps from zeros."""
        states = {e.before.name: self._zeros(e.before, self.shapes) for e in self.roles.states}
        found = [states]
        for step in range(STEPS if states else 0):
            row = self._run(self.inputs(1000 + step, self._kinds[0]) | found[-1])
            if row is None:
                break
            found.append(self.after(row.results))
        return found

    def _make_row(self, number: int) -> Row:
        kind = self._kinds[number % len(self._kinds)]
        evolved = self._states[(3 * number + 1) % len(self._states)]
        attempts = [evolved, self._states[-1], self._states[0]]
        if number % 2:
            attempts.insert(0, self._random_states(number, evolved))
        for states, each in product(attempts, (kind, self._kinds[0])):
            row = self._run(self.inputs(number, each) | states)
            if row is not None:
                return row
        raise Refused(
            "the graph gives NaN or infinite values for most random inputs: give --golden with "
            "real ones"
        )

    def _random_states(self, number: int, evolved: Arrays) -> dict[str, Array]:
        """Floats of the magnitude that the states have, and the others as they are."""
        rng = np.random.default_rng((number, len(evolved)))
        return {
            name: np.asarray(rng.standard_normal(each.shape) * (each.std() or 0.5), each.dtype)
            if np.issubdtype(each.dtype, np.floating)
            else each
            for name, each in evolved.items()
        }


def free_axes(value: Value) -> list[int]:
    """The axes that have no fixed size."""
    return [at for at, size in enumerate(value.shape) if size is None]


def without_ones(shape: Sequence[int]) -> Shape:
    """The sizes above 1."""
    return tuple(each for each in shape if each != 1)


def _changes(pair: StatePair, before: Shape, after: Shape) -> str:
    return (
        f"the state {pair.before.name} is {list(before)} before a step and {pair.after.name} is "
        f"{list(after)} after it; a session's state has one size"
    )
