"""Runs single time steps of single sessions: the rows to which batches and chunks are compared.

It finds random values to which the graph gives finite answers, and states as they are after some
steps. It must not know of batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np

from lstmserve_export.arrays import Array, Arrays
from lstmserve_export.onnx_file.layout.place import Place
from lstmserve_export.onnx_file.layout.row_shapes import RowShapes, without_ones
from lstmserve_export.onnx_file.layout.runner import Runner, RunRefused, are_finite
from lstmserve_export.onnx_file.layout.sampler import KINDS, Sampler
from lstmserve_export.onnx_file.load.source import Value
from lstmserve_export.onnx_file.roles.roles import Roles
from lstmserve_export.refusal import Refused

STEPS: Final = 8  # from the zero states, which give the states that rows begin from
KIND_ROWS: Final = 5
STABLE_ROWS: Final = 2
MOVED_MAX: Final = 1e-2  # how far rounding of inputs may move a stable answer, to its largest value
EVOLVED: Final = 1000  # the number of the first row of those steps
NO_PROOF: Final = (
    "the graph gives NaN or infinite values for random inputs, which proves nothing: give --golden "
    "with real ones"
)


@dataclass(frozen=True, slots=True)
class Row:
    """`feeds` of inputs and states before, one session each, and `results` of a run of them alone:
    outputs and states after."""

    feeds: Arrays
    results: Arrays


class Trial:
    """Rows by number; each is drawn and run once. `shapes` are those of one row of every input and
    state before; `row_axes` is the axis of inputs along which one step has several rows."""

    def __init__(self, runner: Runner, sampler: Sampler, roles: Roles, found: RowShapes) -> None:
        """Raises Refused where no random row has a finite answer."""
        self.runner, self.roles = runner, roles
        self.shapes, self.row_axes = found.shapes, found.axes
        self.names = {e.name for e in roles.outputs} | {e.after.name for e in roles.states}
        self.values = {e.name: e for e in (*roles.inputs, *(p.before for p in roles.states))}
        self._sampler = sampler
        finite = [kind for kind in range(len(KINDS)) if self._are_finite(kind)]
        if not finite:
            raise Refused(NO_PROOF)
        # Where a spectrum of silence or of a constant is rounding alone, nothing is to be compared.
        self._kinds = [kind for kind in finite if self._is_stable(kind)] or finite
        self._states = self._evolve()
        self._rows: dict[int, Row] = {}

    def row(self, number: int) -> Row:
        """Row `number` from 0. Raises Refused where it has no finite answer."""
        if number not in self._rows:
            self._rows[number] = self._make_row(number)
        return self._rows[number]

    def rows(self, start: int, count: int) -> list[Row]:
        """The rows from `start` on."""
        return [self.row(at) for at in range(start, start + count)]

    def sequences(self, places: Sequence[Place], count: int, steps: int) -> dict[str, Array]:
        """Random rows [count, steps, *shape] of each of these, which are all inputs, by our names.
        A sequence has rows of one kind."""
        found = {}
        for place in places:
            shape = (steps, *place.file_shape)
            rows = [
                self._sampler.draw(place.value, shape, at, self._kinds[at % len(self._kinds)])
                for at in range(count)
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

    def takes_two(self, value: Value, axis: int) -> bool:
        """Whether the graph runs with twice the rows of an input or state along an axis, and
        the states keep their sizes."""
        first = self.row(0)
        twice = np.concatenate([first.feeds[value.name]] * 2, axis)
        try:
            found = self.runner.run({**first.feeds, value.name: twice}, self.names)
        except RunRefused:
            return False
        for pair in self.roles.states:
            name = pair.after.name
            wanted = twice if pair.before.name == value.name else first.results[name]
            if without_ones(found[name].shape) != without_ones(wanted.shape):
                return False
        return True

    def _inputs(self, number: int, kind: int) -> dict[str, Array]:
        return {
            each.name: self._sampler.draw(each, self.shapes[each.name], number, kind)
            for each in self.roles.inputs
        }

    def _zeros(self) -> dict[str, Array]:
        return {
            each.before.name: np.zeros(self.shapes[each.before.name], each.before.dtype)
            for each in self.roles.states
        }

    def _are_finite(self, kind: int) -> bool:
        """Whether the answers to rows of a kind are; one row could have them by chance."""
        return all(
            self._run(self._inputs(number, kind) | self._zeros()) is not None
            for number in range(KIND_ROWS)
        )

    def _is_stable(self, kind: int) -> bool:
        """Whether the answers to rows of a kind are much the same if each value of the inputs moves
        to the next float."""
        for number in range(STABLE_ROWS):
            given = self._inputs(number, kind)
            moved = {
                name: np.nextafter(each, np.asarray(np.inf, each.dtype))
                if np.issubdtype(each.dtype, np.floating)
                else each
                for name, each in given.items()
            }
            one, other = self._run(given | self._zeros()), self._run(moved | self._zeros())
            if one is None or other is None or not _are_close(one.results, other.results):
                return False
        return True

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
        found = [self._zeros()]
        for step in range(STEPS if self.roles.states else 0):
            row = self._run(self._inputs(EVOLVED + step, self._kinds[0]) | found[-1])
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
        for states, each in product(attempts, (kind, *self._kinds)):
            row = self._run(self._inputs(number, each) | states)
            if row is not None:
                return row
        raise Refused(NO_PROOF)

    def _random_states(self, number: int, evolved: Arrays) -> dict[str, Array]:
        """Floats of the magnitude that the states have, and the others as they are."""
        rng = np.random.default_rng((number, len(evolved)))
        return {
            name: np.asarray(rng.standard_normal(each.shape) * (each.std() or 0.5), each.dtype)
            if np.issubdtype(each.dtype, np.floating)
            else each
            for name, each in evolved.items()
        }


def _are_close(one: Arrays, other: Arrays) -> bool:
    return all(
        np.abs(np.subtract(each, other[name], dtype=np.float64)).max(initial=0)
        <= MOVED_MAX * np.abs(each).max(initial=0)
        for name, each in one.items()
        if np.issubdtype(each.dtype, np.floating)
    )
