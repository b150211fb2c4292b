"""Finds by experiment along which axis of each tensor the sessions of a batch lie.

A hypothesis names an axis of every input and state before the step. It holds only if batches of
several different rows, with different states, answer each row what it gets alone, in all outputs
and states. Where the rows lie in what comes out is seen from its shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Final

import numpy as np

from lstmserve_export.arrays import Array, Arrays
from lstmserve_export.onnx_file.layout.row_shapes import Axes
from lstmserve_export.onnx_file.layout.runner import Runner, RunRefused
from lstmserve_export.onnx_file.layout.trial import Row, Trial
from lstmserve_export.onnx_file.load.source import Value
from lstmserve_export.onnx_file.roles.roles import Roles
from lstmserve_export.refusal import shorten

NO_BATCH: Final = "no batch: "  # begins a note
SIZES: Final = (2, 3, 5, 17)  # or the next above that no axis of the graph has
COLLIDING_MAX: Final = 24  # one batch more is as large as an axis of the graph
HYPOTHESES_MAX: Final = 128
# The largest difference of a row in a batch, to its largest value. Products of matrices may take
# another order of additions for another number of rows.
TOLERANCE: Final = 5e-5
HALF_TOLERANCE: Final = 4e-3  # for graphs that compute or answer in float16
NAMED: Final = 3  # tensors in the reason why there is no batch
FIXED_COST: Final = 8  # of an axis that is declared as 1: free ones are likelier


class NotBatch(Exception):
    """A hypothesis does not hold; the message says what was seen."""


@dataclass(frozen=True, slots=True)
class BatchAxes:
    """`before` has the axis of each input and state before the step, `after` of each output and
    state after it. `error` is the largest difference that was seen, 0 if all bits were equal.
    `same` names what had the same values for all rows that were tried."""

    before: Axes
    after: Axes
    constants: Axes
    error: float
    same: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What an operator should know."""
        found = []
        if self.error:
            found.append(
                f"not exact for all values: a row in a batch differs from the row alone by up to "
                f"{self.error:.2g} of its largest value; --batch-axis none gives equal bits, one "
                "session a run"
            )
        if self.same:
            found.append(
                f"{shorten([*self.same])} had the same values for every row that was tried, so "
                "only its shape says where its batch is"
            )
        return tuple(found)


@dataclass(frozen=True, slots=True)
class NoBatch:
    """Why the likeliest hypothesis does not hold."""

    reason: str

    @property
    def notes(self) -> tuple[str, ...]:
        """What an operator should know."""
        return (f"{NO_BATCH}{self.reason}",)


def as_flag(axes: Axes, count_max: int = 1 << 30) -> str:
    """The axes as --batch-axis takes them, the first ones."""
    more = ",..." if len(axes) > count_max else ""
    return ",".join(f"{name}={axis}" for name, axis in islice(axes.items(), count_max)) + more


def find_batch(trial: Trial, given: Axes) -> BatchAxes | NoBatch:
    """The first hypothesis that holds; `given` names axes that all of them have."""
    constants = trial.roles.constants
    first: NoBatch | None = None
    for hypothesis in hypotheses(trial.roles, trial.row_axes, given):
        repeated = {name: axis for name, axis in hypothesis.items() if name in constants}
        before = {name: axis for name, axis in hypothesis.items() if name in trial.values}
        try:
            found = BatchExperiment(trial, before, repeated).run()
        except NotBatch as error:
            first = first or NoBatch(f"along {as_flag(before, NAMED)}, {error}")
            continue
        if all(found.after.get(name, axis) == axis for name, axis in given.items()):
            return found
        first = first or NoBatch("the rows of what comes out lie along other axes")
    return first or NoBatch(_no_axis(trial))


def _no_axis(trial: Trial) -> str:
    """Why there is no hypothesis."""
    fixed = [n for n, each in trial.values.items() if not _choices([each], trial.row_axes, {})]
    return f"{shorten(fixed)} has no axis that is 1 or of any size"


# Hypotheses ---------------------------------------------------------------------------------------


def hypotheses(roles: Roles, row_axes: Axes, given: Axes) -> Iterator[dict[str, int]]:
    """Axes of every input and state before the step, and of constants that a batch repeats, the
    likeliest first."""
    values = [*roles.inputs, *(each.before for each in roles.states)]
    seen: set[tuple[tuple[str, int], ...]] = set()
    for found in islice(_all_hypotheses(roles, values, row_axes, given), HYPOTHESES_MAX):
        key = tuple(sorted(found.items()))
        if key not in seen:
            seen.add(key)
            yield found


def _all_hypotheses(
    roles: Roles, values: Sequence[Value], row_axes: Axes, given: Axes
) -> Iterator[dict[str, int]]:
    symbols = [set(each.symbols) - {""} for each in values]
    for symbol in sorted(set.intersection(*symbols)) if symbols else ():
        found = {each.name: each.symbols.index(symbol) for each in values} | dict(given)
        if all(row_axes.get(name) != axis for name, axis in found.items()):
            yield found
            yield found | {name: 0 for name, each in roles.constants.items() if each.ndim}
    states = {each.before.name for each in roles.states}
    groups: dict[object, list[Value]] = {}
    for each in values:
        declared = tuple(size if size is None or size == 1 else 0 for size in each.shape)
        alone = each.name if each.name in given or each.name in row_axes else ""
        groups.setdefault((each.name in states, declared, alone), []).append(each)
    choices = [_choices(group, row_axes, given) for group in groups.values()]
    ordered = sorted(islice(product(*choices), 1 << 14), key=lambda each: sum(c for c, _ in each))
    plain = [{n: a for _, part in each for n, a in part.items()} for each in ordered]
    yield from islice(plain, HYPOTHESES_MAX // 2)
    constants = {name: 0 for name, each in roles.constants.items() if each.ndim}
    if constants:
        yield from (each | constants for each in islice(plain, HYPOTHESES_MAX // 2))


def _choices(
    group: Sequence[Value], row_axes: Axes, given: Axes
) -> list[tuple[int, dict[str, int]]]:
    """The axes that all values of a group may have, with what each costs, the cheapest first."""
    first = group[0]
    found = []
    for at, size in enumerate(first.shape):
        is_possible = size in (None, 1) and row_axes.get(first.name) != at
        if given.get(first.name, at) == at and (is_possible or first.name in given):
            cost = at + (FIXED_COST if size == 1 else 0)
            found.append((cost, {each.name: at for each in group}))
    return sorted(found, key=lambda choice: choice[0])


def likely_axis(value: Value) -> int | None:
    """Where the batch of a tensor would be, were there one."""
    choices = _choices([value], {}, {})
    return choices[0][1][value.name] if choices else None


# The experiment -----------------------------------------------------------------------------------


class BatchExperiment:
    """Holds one hypothesis to batches of several sizes."""

    def __init__(
        self, trial: Trial, before: Axes, repeated: Axes, runner: Runner | None = None
    ) -> None:
        """`runner` runs the batches, if it is not that of the rows."""
        self._trial = trial
        self._runner = runner or trial.runner
        self._before, self._repeated = before, repeated
        self._after: dict[str, int] = {}
        self._error = 0.0
        self._tolerance = tolerance(trial)

    def run(self) -> BatchAxes:
        """Raises NotBatch."""
        if set(self._before) != set(self._trial.values):
            raise NotBatch("an input or state has no axis for it")
        start = 0
        for size in self._sizes():
            rows = self._trial.rows(start, size)
            self._compare(rows, self._together(rows))
            self._compare(rows[::-1], self._together(rows[::-1]))
            start = (start + size) % 7
        self._poison()
        rows = self._trial.rows(0, SIZES[-1])
        same = tuple(
            name
            for name, first in rows[0].results.items()
            if all(np.array_equal(first, row.results[name]) for row in rows)
        )
        return BatchAxes(self._before, self._after, self._repeated, self._error, same)

    def _sizes(self) -> list[int]:
        lengths = {n for shape in self._trial.shapes.values() for n in shape}
        row = self._trial.row(0)
        lengths |= {n for each in row.results.values() for n in each.shape}
        found = []
        for size in SIZES:
            while size in lengths or size in found:
                size += 1
            found.append(size)
        return found + [n for n in sorted(lengths) if 1 < n <= COLLIDING_MAX][:1]

    def _together(self, rows: Sequence[Row]) -> Arrays:
        """What one run of all these rows gives. Raises NotBatch."""
        feeds = {
            name: np.concatenate([row.feeds[name] for row in rows], axis)
            for name, axis in self._before.items()
        }
        repeat = {
            name: np.repeat(self._trial.roles.constants[name], len(rows), axis)
            for name, axis in self._repeated.items()
        }
        try:
            return self._runner.run(feeds, self._trial.names, repeat)
        except RunRefused as error:
            raise NotBatch(error.briefly("a batch")) from error

    def _compare(self, rows: Sequence[Row], found: Arrays) -> None:
        for name, array in found.items():
            alone = [row.results[name] for row in rows]
            axis = self._axis(name, array.shape, alone[0].shape, len(rows))
            for at, expected in enumerate(alone):
                error = difference(expected, array.take([at], axis))
                self._error = max(self._error, error)
                if not error <= self._tolerance:
                    raise NotBatch(
                        f"{name} of a row depends on the rows beside it, by {error:.2g} of its "
                        "largest value"
                    )

    def _axis(self, name: str, found: tuple[int, ...], alone: tuple[int, ...], size: int) -> int:
        """The axis of an output along which the rows lie."""
        for axis, length in enumerate(alone):
            if length == 1 and found == (*alone[:axis], size, *alone[axis + 1 :]):
                if self._after.setdefault(name, axis) == axis:
                    return axis
                break
        raise NotBatch(f"{name} is {list(found)} for {size} rows and {list(alone)} for one")

    def _poison(self) -> None:
        """A row of NaN or infinities leaves its neighbours as they are; what mixes rows ever so
        little fails."""
        rows = self._trial.rows(0, 3)
        groups = (
            {each.name for each in self._trial.roles.inputs},
            {each.before.name for each in self._trial.roles.states},
        )
        for names, poison in product(groups, (np.nan, np.inf)):
            bad = {
                name: np.full_like(each, poison)
                for name, each in rows[1].feeds.items()
                if name in names and np.issubdtype(each.dtype, np.floating)
            }
            poisoned = Row(dict(rows[1].feeds) | bad, rows[1].results)
            if not bad or not self._runs_alone(poisoned):
                continue
            found = self._together([rows[0], poisoned, rows[2]])
            ends = {name: np.delete(array, 1, self._after[name]) for name, array in found.items()}
            self._compare([rows[0], rows[2]], ends)

    def _runs_alone(self, row: Row) -> bool:
        try:
            self._trial.runner.run(row.feeds, self._trial.names)
        except RunRefused:
            return False
        return True


def tolerance(trial: Trial) -> float:
    """The largest difference() that rounding explains."""
    values = (*trial.values.values(), *trial.roles.outputs)
    is_half = any(each.dtype == "float16" for each in values)
    return HALF_TOLERANCE if is_half else TOLERANCE


def difference(expected: Array, found: Array) -> float:
    """0 if all bits are equal, otherwise the largest difference to the largest value."""
    if np.array_equal(expected, found):
        return 0.0
    if not np.issubdtype(expected.dtype, np.floating):
        return float("inf")
    wide = expected.astype(np.float64)
    largest = max(float(np.abs(wide).max()), 1e-3)
    return float(np.abs(found.astype(np.float64) - wide).max()) / largest
