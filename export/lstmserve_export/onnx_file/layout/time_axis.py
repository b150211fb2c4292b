"""Finds by experiment along which axes of a step's tensors several time steps may lie.

Several rows along such an axis give in one run what so many single steps give, with the state
carried from each to the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from typing import Final

import numpy as np

from lstmserve_export.arrays import Array, Arrays
from lstmserve_export.onnx_file.layout.batch_axis import difference, tolerance
from lstmserve_export.onnx_file.layout.row_shapes import Axes
from lstmserve_export.onnx_file.layout.runner import RunRefused
from lstmserve_export.onnx_file.layout.trial import Trial

LENGTHS: Final = (3, 2, 7)
HYPOTHESES_MAX: Final = 24
FIXED_COST: Final = 8


class NotTime(Exception):
    """A hypothesis does not hold; the message says what was seen."""


@dataclass(frozen=True, slots=True)
class TimeAxes:
    """`after` lacks the outputs that are of the last row alone."""

    before: Axes
    after: Axes
    error: float


@dataclass(frozen=True, slots=True)
class NoTime:
    """Why the likeliest hypothesis does not hold."""

    reason: str


def find_time(trial: Trial, batch: Axes) -> TimeAxes | NoTime:
    """The first hypothesis that holds; `batch` has the axis of the sessions by input."""
    first = ""
    for hypothesis in islice(_hypotheses(trial, batch), HYPOTHESES_MAX):
        try:
            return TimeExperiment(trial, hypothesis).run()
        except NotTime as error:
            first = first or str(error)
    return NoTime(first)


def _hypotheses(trial: Trial, batch: Axes) -> Iterator[dict[str, int]]:
    choices = []
    for value in trial.roles.inputs:
        axes = [
            (at + (FIXED_COST if value.shape[at] else 0), value.name, at)
            for at in range(len(value.shape))
            if value.shape[at] in (None, 1) and batch.get(value.name) != at
        ]
        choices.append(axes)
    every = islice(product(*choices), 1 << 12)
    for each in sorted(every, key=lambda axes: sum(cost for cost, _, _ in axes)):
        yield {name: axis for _, name, axis in each}


class TimeExperiment:
    """Holds one hypothesis to chunks of several lengths, of one session."""

    def __init__(self, trial: Trial, axes: Axes) -> None:
        self._trial = trial
        self._before = axes
        self._tolerance = tolerance(trial)
        self._after: dict[str, int | None] = {}
        self._error = 0.0

    def run(self) -> TimeAxes:
        """Raises NotTime."""
        for start, length in enumerate(LENGTHS):
            states = {
                each.before.name: self._trial.row(start).feeds[each.before.name]
                for each in self._trial.roles.states
            }
            inputs = [self._inputs(start + at) for at in range(length)]
            chunk = {
                name: np.concatenate([each[name] for each in inputs], axis)
                for name, axis in self._before.items()
            }
            found = self._run(chunk | states)
            steps = []
            for each in inputs:
                steps.append(self._run(each | states))
                states = self._trial.after(steps[-1])
            self._compare(steps, found)
        after = {name: axis for name, axis in self._after.items() if axis is not None}
        return TimeAxes(self._before, after, self._error)

    def _inputs(self, number: int) -> dict[str, Array]:
        feeds = self._trial.row(number).feeds
        return {each.name: feeds[each.name] for each in self._trial.roles.inputs}

    def _run(self, feeds: Arrays) -> Arrays:
        try:
            return self._trial.runner.run(feeds, self._trial.names)
        except RunRefused as error:
            raise NotTime(error.briefly("several rows")) from error

    def _compare(self, steps: list[Arrays], found: Arrays) -> None:
        length = len(steps)
        for pair in self._trial.roles.states:
            name = pair.after.name
            self._check(name, steps[-1][name], found[name])
        for each in self._trial.roles.outputs:
            name = each.name
            one, many = steps[-1][name], found[name]
            axis = _time_of(one.shape, many.shape, length)
            if self._after.setdefault(name, axis) != axis:
                raise NotTime(f"{name} is {list(many.shape)} for {length} rows")
            expected = one if axis is None else np.concatenate([s[name] for s in steps], axis)
            self._check(name, expected, many)

    def _check(self, name: str, expected: Array, found: Array) -> None:
        if expected.shape != found.shape:
            raise NotTime(f"{name} is {list(found.shape)}, not {list(expected.shape)}")
        error = difference(expected, found)
        self._error = max(self._error, error)
        if not error <= self._tolerance:
            raise NotTime(
                f"{name} is not that of single steps: it differs by {error:.2g} of its largest "
                "value"
            )


def _time_of(one: tuple[int, ...], many: tuple[int, ...], length: int) -> int | None:
    """The axis along which the rows of an output lie; None if it has one row only."""
    for axis, size in enumerate(one):
        if size == 1 and many == (*one[:axis], length, *one[axis + 1 :]):
            return axis
    return None
