"""How the tensors of a file lie in the time steps of sessions: which axis is the batch, which time.

Only experiments decide, because names and declared sizes mislead: a fixed 1 may be a batch that
works, and a symbolic axis called batch may be time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np

from lstmserve.spec import TensorSpec
from lstmserve_export.arrays import Arrays
from lstmserve_export.onnx_file.batch_axis import Axes, BatchAxes, NoBatch, find_batch
from lstmserve_export.onnx_file.place import Layout as Layout  # others have them from here
from lstmserve_export.onnx_file.place import Place as Place
from lstmserve_export.onnx_file.place import StatePlace as StatePlace
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.onnx_file.roles import Roles, StatePair
from lstmserve_export.onnx_file.runner import RunRefused
from lstmserve_export.onnx_file.sampler import Shape
from lstmserve_export.onnx_file.served_names import ServedNames, served_dtype
from lstmserve_export.onnx_file.source import Source, Value
from lstmserve_export.onnx_file.time_axis import NoTime, TimeAxes, find_time
from lstmserve_export.onnx_file.trial import Trial, free_axes, without_ones
from lstmserve_export.refusal import Refused

NOTHING: Final[Arrays] = {}


def find_layout(source: Source, roles: Roles, request: Request, given: Arrays = NOTHING) -> Layout:
    """Runs the file. `given` has real rows [N, *] of inputs, by their names in the file.

    Raises Refused where no batch, time or number of rows explains it.
    """
    check_dtypes(roles)
    return layout_of(Trial(source, roles, request, given), request)


def layout_of(trial: Trial, request: Request) -> Layout:
    """find_layout() with the rows of a trial that the caller keeps."""
    roles = trial.roles
    given_axes = _checked_axes(roles, request)
    batch = _find_batch(trial, roles, given_axes)
    time: TimeAxes | NoTime = NoTime("")
    if not request.rows:
        time = find_time(trial, batch.before if isinstance(batch, BatchAxes) else {})
    return _Layouts(trial, roles, request, batch, time).build()


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


def _checked_axes(roles: Roles, request: Request) -> dict[str, int | None]:
    """What --batch-axis says, with axes from 0. Raises Refused."""
    values = {each.name: each for each in (*roles.inputs, *roles.outputs)}
    for pair in roles.states:
        values |= {pair.before.name: pair.before, pair.after.name: pair.after}
    found: dict[str, int | None] = {}
    for name, axis in request.batch_axes.items():
        flag = f"--batch-axis {name}={'none' if axis is None else axis}"
        if name not in values:
            raise Refused(f"{flag}: there is no such tensor: there are {', '.join(values)}")
        rank = len(values[name].shape)
        if axis is not None and not -rank <= axis < rank:
            raise Refused(f"{flag}: {values[name]} has {rank} axes, from 0")
        found[name] = axis if axis is None else axis % rank
    return found


def _find_batch(trial: Trial, roles: Roles, given: Mapping[str, int | None]) -> BatchAxes | NoBatch:
    """Raises Refused where a given axis is none."""
    if None in given.values():
        return NoBatch("--batch-axis says none")
    axes = {name: axis for name, axis in given.items() if axis is not None}
    batch = find_batch(trial, roles.constants, axes)
    if isinstance(batch, NoBatch) and axes:
        flags = " ".join(f"--batch-axis {name}={axis}" for name, axis in axes.items())
        other = find_batch(trial, roles.constants, {})
        if isinstance(other, NoBatch):
            found = "no other axis works; leave the flag out to run one session at a time"
        else:
            every = {**other.before, **other.after}.items()
            found = "these work: " + ", ".join(f"{name}={axis}" for name, axis in every)
        raise Refused(f"{flags}: {batch.reason}; {found}")
    return batch


class _Layouts:
    """Writes down what was found."""

    def __init__(
        self,
        trial: Trial,
        roles: Roles,
        request: Request,
        batch: BatchAxes | NoBatch,
        time: TimeAxes | NoTime,
    ) -> None:
        self._trial, self._roles, self._request = trial, roles, request
        self._batch, self._time = batch, time
        self._names = ServedNames(roles)
        self._results = trial.row(0).results
        self._notes: list[str] = []
        is_batched = isinstance(batch, BatchAxes)
        self._batch_before: Axes = batch.before if isinstance(batch, BatchAxes) else {}
        self._batch_after: Axes = batch.after if isinstance(batch, BatchAxes) else {}
        self._is_batched = is_batched
        self._time_before: Axes = dict(trial.rows_axes)
        self._time_after: Axes = {}
        if isinstance(time, TimeAxes):
            self._time_before, self._time_after = time.before, time.after

    def build(self) -> Layout:
        """Raises Refused."""
        self._check_sizes()
        for value in self._roles.inputs:
            self._check_free(value)
        states = tuple(map(self._state, self._roles.states))
        inputs = tuple(self._input(each) for each in self._roles.inputs)
        outputs = tuple(self._output(each) for each in self._roles.outputs)
        is_over_time = isinstance(self._time, TimeAxes) and all(
            each.name in self._time_after for each in self._roles.outputs
        )
        self._say()
        batch = self._batch
        return Layout(
            inputs,
            outputs,
            states,
            is_batched=self._is_batched,
            is_over_time=is_over_time,
            notes=(*self._notes, *self._names.notes),
            constant_batches=batch.constants if isinstance(batch, BatchAxes) else {},
            is_exact=not isinstance(batch, BatchAxes) or batch.error == 0,
        )

    def _say(self) -> None:
        if isinstance(self._batch, NoBatch):
            self._notes.append(f"no batch: {self._batch.reason}")
        elif self._batch.error:
            self._notes.append(
                f"a row in a batch differs from the row alone by up to {self._batch.error:.2g} of "
                "its largest value"
            )

    def _input(self, value: Value) -> Place:
        return self._place(
            value,
            self._names.before[value.name],
            self._trial.shapes[value.name],
            self._batch_before.get(value.name),
            self._time_before.get(value.name),
        )

    def _output(self, value: Value) -> Place:
        return self._place(
            value,
            self._names.after[value.name],
            self._results[value.name].shape,
            self._batch_after.get(value.name),
            self._time_after.get(value.name),
        )

    def _place(
        self, value: Value, name: str, shape: Shape, batch: int | None, time: int | None
    ) -> Place:
        ones = tuple(
            at
            for at, size in enumerate(shape)
            if size == 1 and at != batch and (at == time or at < len(shape) - 1)
        )
        lacks = {*ones, batch}
        rest = tuple(size for at, size in enumerate(shape) if at not in lacks)
        return Place(
            _ranked(value, shape), TensorSpec(name, rest, served_dtype(value)), batch, ones, time
        )

    def _state(self, pair: StatePair) -> StatePlace:
        before = self._trial.shapes[pair.before.name]
        after = self._results[pair.after.name].shape
        name = self._names.before[pair.before.name]
        dtype = served_dtype(pair.before, is_state=True)
        batches = self._batch_before.get(pair.before.name), self._batch_after.get(pair.after.name)
        ones: list[tuple[int, ...]] = [(), ()]
        if not self._is_batched:
            ones = [tuple(_ones(before)[:1]), tuple(_ones(after)[:1])]
        rests = _rests(before, after, batches, ones)
        if rests[0] != rests[1]:
            ones = [
                tuple(at for at in _ones(shape) if at != batch)
                for shape, batch in zip((before, after), batches, strict=True)
            ]
            rests = _rests(before, after, batches, ones)
        if rests[0] != rests[1]:
            raise Refused(
                f"the state {pair.before.name} is {list(before)} before the step and "
                f"{pair.after.name} is {list(after)} after it: the axes of a session differ"
            )
        spec = TensorSpec(name, rests[0], dtype)
        return StatePlace(
            Place(_ranked(pair.before, before), spec, batches[0], ones[0]),
            Place(_ranked(pair.after, after), spec, batches[1], ones[1]),
        )

    # What is refused ------------------------------------------------------------------------------

    def _check_sizes(self) -> None:
        for row in self._trial.rows(0, 4):
            for name, array in row.results.items():
                if array.shape != self._results[name].shape:
                    raise Refused(
                        f"the size of {name} depends on the data: {list(array.shape)} and "
                        f"{list(self._results[name].shape)}"
                    )
                if not array.size:
                    raise Refused(f"{name} is {list(array.shape)}, it has no values: leave it out")

    def _check_free(self, value: Value) -> None:
        """Raises Refused for a free axis that is neither batch nor time, and takes several rows."""
        if self._request.rows:
            return
        explained = {self._batch_before.get(value.name), self._time_before.get(value.name)}
        for axis in free_axes(value):
            if axis in explained:
                continue
            row = self._trial.row(0)
            twice = self._trial.row(1).feeds[value.name]
            feeds = dict(row.feeds)
            feeds[value.name] = np.concatenate([row.feeds[value.name], twice], axis)
            try:
                results = self._trial.runner.run(feeds, self._trial.names)
            except RunRefused:
                continue
            if not all(
                without_ones(results[e.after.name].shape)
                == without_ones(self._results[e.after.name].shape)
                for e in self._roles.states
            ):
                continue
            reason = self._time.reason if isinstance(self._time, NoTime) else ""
            raise Refused(
                f"axis {axis} of {value} is neither the batch nor time ({reason}): give --rows N, "
                "the number of rows of one step (1: one at a time)"
            )


def _ones(shape: Shape) -> list[int]:
    return [at for at, size in enumerate(shape) if size == 1]


def _rests(
    before: Shape, after: Shape, batches: Iterable[int | None], ones: Iterable[tuple[int, ...]]
) -> list[Shape]:
    """The shapes without the batch and without ones."""
    return [
        tuple(size for at, size in enumerate(shape) if at != batch and at not in lacks)
        for shape, batch, lacks in zip((before, after), batches, ones, strict=True)
    ]


def _ranked(value: Value, shape: Shape) -> Value:
    """The value with as many axes as it was seen to have."""
    if len(value.shape) == len(shape):
        return value
    return Value(value.name, value.dtype, shape, ("",) * len(shape))
