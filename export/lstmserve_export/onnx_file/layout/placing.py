"""Writes down what experiments found as places: the names and dtypes that the server has, and which
axes a row lacks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from lstmserve.spec import INITIAL, LAST, LENGTHS, MISSING, NEXT, TENSOR_NAME, Dtype, TensorSpec
from lstmserve_export.onnx_file.layout.batch_axis import BatchAxes, NoBatch
from lstmserve_export.onnx_file.layout.place import Layout, Place, StatePlace
from lstmserve_export.onnx_file.layout.row_shapes import Axes
from lstmserve_export.onnx_file.layout.sampler import Shape
from lstmserve_export.onnx_file.load.source import Value
from lstmserve_export.onnx_file.roles.roles import Roles
from lstmserve_export.onnx_file.roles.state_pairs import StatePair
from lstmserve_export.refusal import Refused, shorten

NONE: Axes = {}
NAME_LEN_MAX: Final = 56  # leaves room for a number and for what the server appends
SERVED: Final[Mapping[str, Dtype]] = {
    "float32": "float32",
    "float64": "float32",
    "float16": "float32",
    "int64": "int64",
    "int32": "int64",
    "int16": "int64",
    "int8": "int64",
    "uint8": "int64",
    "bool": "int64",
}
KEPT: Final[Mapping[str, Dtype]] = {**SERVED, "bool": "bool"}  # of states


@dataclass(frozen=True, slots=True)
class Placing:
    """`before` and `after` have the shapes of one row; `time_before` and `time_after` the axis of
    time of inputs and outputs that have one."""

    roles: Roles
    before: Mapping[str, Shape]
    after: Mapping[str, Shape]
    batch: BatchAxes | NoBatch
    time_before: Axes
    time_after: Axes

    def layout(self, notes: tuple[str, ...]) -> Layout:
        """Raises Refused where a state has other axes after the step."""
        names = ServedNames(self.roles)
        batch = self.batch if isinstance(self.batch, BatchAxes) else None
        before, after = (batch.before, batch.after) if batch else (NONE, NONE)
        return Layout(
            inputs=_places(self.roles.inputs, names.before, self.before, before, self.time_before),
            outputs=_places(self.roles.outputs, names.after, self.after, after, self.time_after),
            states=tuple(
                self._state(each, names.before[each.before.name]) for each in self.roles.states
            ),
            is_batched=batch is not None,
            constant_batches=batch.constants if batch else {},
            notes=(*notes, *names.notes),
            rounding=batch.error if batch else 0.0,
        )

    def _state(self, pair: StatePair, name: str) -> StatePlace:
        shapes = self.before[pair.before.name], self.after[pair.after.name]
        dtype = served_dtype(pair.before, is_state=True)
        batch = self.batch
        if isinstance(batch, BatchAxes):
            axes = batch.before[pair.before.name], batch.after[pair.after.name]
            sides = [_Side(shape, at, ()) for shape, at in zip(shapes, axes, strict=True)]
        else:
            sides = [_Side(shape, None, tuple(_ones(shape)[:1])) for shape in shapes]
        if sides[0].rest != sides[1].rest:
            sides = [
                _Side(each.shape, each.batch, tuple(at for at in each.ones if at != each.batch))
                for each in (_Side(e.shape, e.batch, tuple(_ones(e.shape))) for e in sides)
            ]
        if sides[0].rest != sides[1].rest:
            raise Refused(
                f"the state {pair.before.name} is {list(shapes[0])} before the step and "
                f"{pair.after.name} is {list(shapes[1])} after it: the axes of a session differ"
            )
        spec = TensorSpec(name, sides[0].rest, dtype)
        places = [
            Place(_ranked(value, each.shape), spec, each.batch, each.ones)
            for value, each in zip((pair.before, pair.after), sides, strict=True)
        ]
        return StatePlace(*places)


@dataclass(frozen=True, slots=True)
class _Side:
    """A state before or after a step."""

    shape: Shape
    batch: int | None
    ones: tuple[int, ...]

    @property
    def rest(self) -> Shape:
        """The shape without the batch and the ones."""
        lacks = {*self.ones, self.batch}
        return tuple(size for at, size in enumerate(self.shape) if at not in lacks)


def _places(
    values: Iterable[Value],
    names: Mapping[str, str],
    shapes: Mapping[str, Shape],
    batch: Axes,
    time: Axes,
) -> tuple[Place, ...]:
    return tuple(
        _place(each, names[each.name], shapes[each.name], batch.get(each.name), time.get(each.name))
        for each in values
    )


def _place(value: Value, name: str, shape: Shape, batch: int | None, time: int | None) -> Place:
    """An input or output: its row lacks all axes of length 1 but the last, which has the values."""
    last = len(shape) - 1
    ones = tuple(at for at in _ones(shape) if at != batch and (at == time or at < last))
    spec = TensorSpec(name, _Side(shape, batch, ones).rest, served_dtype(value))
    return Place(_ranked(value, shape), spec, batch, ones, time)


def _ones(shape: Shape) -> list[int]:
    return [at for at, size in enumerate(shape) if size == 1]


def _ranked(value: Value, shape: Shape) -> Value:
    """The value with as many axes as it was seen to have."""
    if len(value.shape) == len(shape):
        return value
    return Value(value.name, value.dtype, shape, ("",) * len(shape))


# Names and dtypes ---------------------------------------------------------------------------------


def served_dtype(value: Value, is_state: bool = False) -> Dtype:
    """Raises Refused."""
    found = (KEPT if is_state else SERVED).get(value.dtype)
    if found is None:
        raise Refused(f"{value} is {value.dtype}, of which no tensor is served")
    if is_state and value.dtype == "float64":
        raise Refused(
            f"the state {value} is float64, which a session would lose to float32 between steps: "
            "export the network in float32"
        )
    return found


def check_dtypes(roles: Roles) -> None:
    """Raises Refused for a tensor of a dtype that is not served."""
    for value in (*roles.inputs, *roles.outputs):
        served_dtype(value)
    for pair in roles.states:
        served_dtype(pair.before, is_state=True)
        if pair.before.dtype != pair.after.dtype:
            raise Refused(
                f"the state {pair.before} is {pair.after.dtype} after the step ({pair.after.name})"
            )


class ServedNames:
    """Names that fit the server, as near to the file's as they can be: states first, since what
    they are called after a step is reserved."""

    def __init__(self, roles: Roles) -> None:
        self._taken = {LENGTHS, MISSING}
        self._outputs: dict[str, str] = {}
        self._renamed: list[str] = []
        self.before: dict[str, str] = {}
        for pair in roles.states:
            name = self.before[pair.before.name] = self._choose(pair.before.name)
            self._taken |= {name + NEXT, name + INITIAL}
        for value in roles.inputs:
            self.before[value.name] = self._choose(value.name)
        self.after = self._choose_all(each.name for each in roles.outputs)

    @property
    def notes(self) -> list[str]:
        """What is served under another name."""
        return [f"served by another name: {shorten(self._renamed)}"] if self._renamed else []

    def _choose_all(self, names: Iterable[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in names:
            found[name] = self._choose(name, is_output=True)
            self._taken.add(found[name] + LAST)
        return found

    def _choose(self, name: str, is_output: bool = False) -> str:
        plain = found = _plain(name)
        number = 2
        while found in self._taken or (is_output and found + LAST in self._taken):
            found, number = f"{plain}_{number}", number + 1
        self._taken.add(found)
        if found != name:
            self._renamed.append(f"{name} as {found}")
        return found


def _plain(name: str) -> str:
    name = re.sub(r":0$", "", name)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_") or "tensor"
    if not re.match(r"[A-Za-z_]", name):
        name = f"t{name}"
    name = name[:NAME_LEN_MAX]
    assert TENSOR_NAME.fullmatch(name)
    return name
