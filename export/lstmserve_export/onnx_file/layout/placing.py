"""Writes down what experiments found as places: names, dtypes, and which axes a row lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lstmserve.spec import TensorSpec
from lstmserve_export.onnx_file.layout.batch_axis import BatchAxes, NoBatch
from lstmserve_export.onnx_file.layout.place import Layout, Place, StatePlace
from lstmserve_export.onnx_file.layout.row_shapes import Axes
from lstmserve_export.onnx_file.layout.sampler import Shape
from lstmserve_export.onnx_file.layout.served_names import ServedNames, served_dtype
from lstmserve_export.onnx_file.load.source import Value
from lstmserve_export.onnx_file.roles.roles import Roles, StatePair
from lstmserve_export.refusal import Refused

NONE: Axes = {}


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

    def layout(self, notes: tuple[str, ...], *, is_over_time: bool = False) -> Layout:
        """Raises Refused where a state has other axes after the step."""
        names = ServedNames(self.roles)
        batch = self.batch if isinstance(self.batch, BatchAxes) else None
        before, after = (batch.before, batch.after) if batch else (NONE, NONE)
        return Layout(
            inputs=tuple(
                _place(
                    each,
                    names.before[each.name],
                    self.before[each.name],
                    before.get(each.name),
                    self.time_before.get(each.name),
                )
                for each in self.roles.inputs
            ),
            outputs=tuple(
                _place(
                    each,
                    names.after[each.name],
                    self.after[each.name],
                    after.get(each.name),
                    self.time_after.get(each.name),
                )
                for each in self.roles.outputs
            ),
            states=tuple(
                self._state(each, names.before[each.before.name]) for each in self.roles.states
            ),
            is_batched=batch is not None,
            constant_batches=batch.constants if batch else {},
            is_over_time=is_over_time,
            notes=(*notes, *names.notes),
            is_exact=batch is None or batch.error == 0,
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
