"""Finds shapes of one row that the graph accepts: of inputs, and of states before a step.

An axis without a declared size is 1, or has the rows of a step that it is asked to have; the free
axes of states are as long as the graph leaves them. It must not know of batches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Final

import numpy as np

from lstmserve_export.arrays import Arrays
from lstmserve_export.onnx_file.layout.runner import Runner, RunRefused
from lstmserve_export.onnx_file.layout.sampler import BOUNDS, Sampler, Shape
from lstmserve_export.onnx_file.load.source import Value
from lstmserve_export.onnx_file.roles.roles import Roles
from lstmserve_export.onnx_file.roles.state_pairs import FIXED, StatePair
from lstmserve_export.refusal import shorten

ATTEMPTS_MAX: Final = 32
GUESSES: Final = 4  # of the sizes of states' free axes
# What people call such axes, in lower case. A name only says what is tried first.
BATCH_NAMES: Final = ("batch", "n", "b", "bs", "batch_size")
TIME_NAMES: Final = ("time", "t", "seq", "sequence", "length", "frames", "steps", "samples")

Axes = Mapping[str, int]


class StateChanges(Exception):
    """A state has another shape after the step than before it."""


@dataclass(frozen=True, slots=True)
class RowShapes:
    """`shapes` of every input and state before, and a run's `results`. `axes` has the axis of each
    input along which it has several rows."""

    shapes: Mapping[str, Shape]
    results: Arrays
    axes: Axes


class ShapeSearch:
    """Tries shapes."""

    def __init__(self, runner: Runner, sampler: Sampler, roles: Roles, single: Axes) -> None:
        """`single` has axes that are 1, whatever the file declares."""
        self._runner, self._sampler, self._roles = runner, sampler, roles
        self._single = single
        self._names = {e.name for e in roles.outputs} | {e.after.name for e in roles.states}
        self._values = {e.name: e for e in (*roles.inputs, *(p.before for p in roles.states))}

    def find(self, attempts: Iterable[Axes], rows: int) -> RowShapes:
        """The first that runs, with `rows` along the axes of an attempt. It leaves the sampler with
        integers that the graph accepts. Raises RunRefused and StateChanges for the first that does
        not run."""
        has_integers = any("int" in each.dtype for each in self._values.values())
        bounds = BOUNDS if has_integers else BOUNDS[:1]
        first: Exception | None = None
        for bound, axes in product(bounds, attempts):
            self._sampler.bound = bound
            try:
                return self.try_rows(axes, rows)
            except (RunRefused, StateChanges) as error:
                first = first or error
        assert first is not None
        raise first

    def try_rows(self, axes: Axes, rows: int) -> RowShapes:
        """One attempt. Raises RunRefused and StateChanges."""
        shapes = {
            name: tuple(
                rows if axes.get(name) == at else self._size(value, at)
                for at in range(len(value.shape))
            )
            for name, value in self._values.items()
        }
        for _ in range(GUESSES):
            feeds = {
                each.name: self._sampler.draw(each, shapes[each.name], 0, 0)
                for each in self._roles.inputs
            }
            for pair in self._roles.states:
                name = pair.before.name
                feeds[name] = np.zeros(shapes[name], pair.before.dtype)
            results = self._runner.run(feeds, self._names)
            changed = self._guess(shapes, results)
            if not changed:
                return RowShapes(shapes, results, axes)
        raise StateChanges(
            f"a step changes the size of {shorten(changed)}, like a cache that grows: {FIXED}"
        )

    def _size(self, value: Value, axis: int) -> int:
        return 1 if self._single.get(value.name) == axis else value.shape[axis] or 1

    def _guess(self, shapes: dict[str, Shape], results: Arrays) -> list[str]:
        """The states whose free axes got another size: the one that they have after the step."""
        changed = []
        for pair in self._roles.states:
            before, after = shapes[pair.before.name], results[pair.after.name].shape
            if without_ones(before) == without_ones(after):
                continue
            is_free = [size is None for size in pair.before.shape]
            if len(after) != len(before) or any(
                one != other and not free
                for one, other, free in zip(before, after, is_free, strict=True)
            ):
                raise StateChanges(_changes(pair, before, after))
            shapes[pair.before.name] = after
            changed.append(pair.before.name)
        return changed


def row_axes(roles: Roles, single: Axes) -> list[dict[str, int]]:
    """The axes of inputs along which a step may have several rows, the likeliest first: free ones,
    and where there is none, those declared as 1. An input whose free axes have names of a batch has
    none at first: it is one of all rows of a step, such as who speaks."""
    if free := free_row_axes(roles, single):
        values, names = {each.name: each for each in roles.inputs}, state_symbols(roles)
        for axes in free:
            some = {
                name: at
                for name, at in axes.items()
                if not is_batch_name(values[name].symbols[at], names)
            }
            if some and some not in free:
                return [some, *free]
        return free
    return combined(
        [
            [(v.name, at) for at in range(len(v.shape) - 1, -1, -1) if v.shape[at] == 1]
            for v in roles.inputs
        ]
    )


def free_row_axes(roles: Roles, single: Axes) -> list[dict[str, int]]:
    """The free axes of inputs, the likeliest first."""
    of_states = state_symbols(roles)
    choices = []
    for value in roles.inputs:
        axes = [at for at in free_axes(value) if single.get(value.name) != at]
        symbols = value.symbols
        axes.sort(key=lambda at: (*_rank(symbols[at], of_states), -at))
        choices.append([(value.name, at) for at in axes])
    return combined(choices)


def fixed_axes(roles: Roles, rows: int) -> list[dict[str, int]]:
    """The axes of inputs that are declared with so many rows, the likeliest first."""
    choices = [
        [(v.name, at) for at in range(len(v.shape)) if v.shape[at] == rows] for v in roles.inputs
    ]
    return combined(choices) if all(choices) else []


def combined(choices: Sequence[Collection[tuple[str, int]]]) -> list[dict[str, int]]:
    """One axis of each input that has any; those of the same place in the lists come first."""
    wide = [list(each) for each in choices if each]
    if not wide:
        return []
    straight = [[each[min(at, len(each) - 1)] for each in wide] for at in range(len(wide[0]))]
    found = [dict(each) for each in (*straight, *islice(product(*wide), ATTEMPTS_MAX))]
    return [each for at, each in enumerate(found) if each not in found[:at]]


def free_axes(value: Value) -> list[int]:
    """The axes that have no fixed size."""
    return [at for at, size in enumerate(value.shape) if size is None]


def without_ones(shape: Iterable[int]) -> Shape:
    """The sizes above 1."""
    return tuple(each for each in shape if each != 1)


def working(search: ShapeSearch, attempts: Sequence[Axes], counts: Iterable[int]) -> Iterator[int]:
    """Those numbers of rows with which an attempt runs."""
    for rows in counts:
        for axes in attempts:
            try:
                search.try_rows(axes, rows)
            except (RunRefused, StateChanges):
                continue
            yield rows
            break


def state_symbols(roles: Roles) -> set[str]:
    """The names of free axes of states."""
    return {symbol for each in roles.states for symbol in each.before.symbols if symbol}


def _rank(symbol: str, of_states: Collection[str]) -> tuple[bool, bool]:
    """Of a free axis, the lower the likelier it has rows of a step."""
    words = symbol.lower().replace("-", "_")
    is_time = words in TIME_NAMES or any(len(each) > 2 and each in words for each in TIME_NAMES)
    return is_batch_name(symbol, of_states), not is_time


def is_batch_name(symbol: str, of_states: Collection[str]) -> bool:
    """Whether the name is that of a batch, or of an axis that states have, too."""
    words = symbol.lower().replace("-", "_")
    return words in BATCH_NAMES or "batch" in words or symbol in of_states


def _changes(pair: StatePair, before: Shape, after: Shape) -> str:
    return (
        f"the state {pair.before.name} is {list(before)} before a step and {pair.after.name} is "
        f"{list(after)} after it; a session's state has one size"
    )
