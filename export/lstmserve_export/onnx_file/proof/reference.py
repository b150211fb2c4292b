"""The answers of the file itself: it runs as it is in plain onnxruntime, one session after another,
step by step. These are the golden cases. It must not know how the file is rebuilt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from lstmserve.golden import Golden
from lstmserve.runtime import plain_session
from lstmserve.spec import ModelSpec
from lstmserve_export.arrays import Array, Arrays
from lstmserve_export.onnx_file.layout.place import Layout, Place
from lstmserve_export.onnx_file.layout.runner import relaxed
from lstmserve_export.onnx_file.load.source import Source
from lstmserve_export.onnx_file.roles.roles import Roles
from lstmserve_export.refusal import Refused, one_line


class _Original:
    """The file in plain onnxruntime."""

    def __init__(self, model: onnx.ModelProto, roles: Roles) -> None:
        """Raises Refused."""
        self._constants = roles.constants
        try:
            self._session = plain_session(model.SerializeToString())
        except Exception as error:  # onnxruntime's own have no base but this one
            raise Refused(f"onnxruntime does not load the file: {one_line(error)}") from error

    def run(self, feed: Arrays, places: Iterable[Place]) -> dict[str, Array]:
        """The values of these places by the file's names. Raises Refused."""
        names = [each.value.name for each in places]
        try:
            found = self._session.run(names, {**self._constants, **feed})
        except Exception as error:  # onnxruntime's own have no base but this one
            raise Refused(f"onnxruntime does not run the file: {one_line(error)}") from error
        return dict(zip(names, found, strict=True))


class Reference:
    """The file's answers to sequences of sessions, one session and one time step at a time."""

    def __init__(
        self, source: Source, roles: Roles, layout: Layout, spec: ModelSpec, initial: Arrays
    ) -> None:
        """`initial` has the states [*shape] that do not begin from zeros. Raises Refused."""
        self.spec = spec
        self._layout = layout
        self._initial = {
            each.name: initial.get(each.name, np.zeros(each.shape, each.dtype))
            for each in spec.states
        }
        self._file = _Original(source.original, roles)

    def initial(self, count: int) -> dict[str, Array]:
        """The states [count, *shape] of new sessions."""
        return {name: np.stack([each] * count) for name, each in self._initial.items()}

    def case(
        self, inputs: Arrays, lengths: Array, initial: Mapping[str, Array] | None = None
    ) -> Golden:
        """The golden case of sequences [N, T, *shape], with the states after each. Raises
        Refused."""
        count, steps = len(lengths), int(lengths.max())
        outputs = {e.name: np.zeros((count, steps, *e.shape), e.dtype) for e in self.spec.outputs}
        finals = {e.name: np.zeros((count, *e.shape), e.dtype) for e in self.spec.states}
        for row, length in enumerate(lengths):
            start = None if initial is None else {n: each[row] for n, each in initial.items()}
            sequence = {name: each[row, :length] for name, each in inputs.items()}
            for step, (found, states) in enumerate(self.steps(sequence, start)):
                for name, each in found.items():
                    outputs[name][row, step] = each
                for name, each in states.items():
                    finals[name][row] = each
        return Golden(inputs, lengths, initial, doubles(outputs), doubles(finals), 0.0)

    def prefixes(self, sequence: Arrays) -> Golden:
        """The golden case of all beginnings of one sequence [T, *shape]: it has the states after
        each of its steps. Raises Refused."""
        count = len(next(iter(sequence.values())))
        found, states = zip(*self.steps(sequence, None), strict=True)

        def all_of(rows: Sequence[Arrays]) -> dict[str, Array]:
            return {name: np.stack([each[name] for each in rows]) for name in rows[0]}

        def repeated(rows: Arrays) -> dict[str, Array]:
            return {name: np.stack([each] * count) for name, each in rows.items()}

        return Golden(
            inputs=repeated(sequence),
            lengths=np.arange(1, count + 1, dtype=np.int32),
            initial=None,
            outputs=doubles(repeated(all_of(found))),
            finals=doubles(all_of(states)),
            torch_error=0.0,
        )

    def steps(self, sequence: Arrays, start: Arrays | None) -> Iterator[tuple[Arrays, Arrays]]:
        """Outputs and states [*shape] after each step of one sequence [T, *shape]; `start` None:
        the model's own. Raises Refused."""
        states = self._initial if start is None else start
        for step in range(len(next(iter(sequence.values())))):
            given = {name: each[step] for name, each in sequence.items()}
            found, states = self.step(given, states)
            yield found, states

    def step(self, inputs: Arrays, states: Arrays) -> tuple[Arrays, Arrays]:
        """Outputs and states [*shape] of one time step of one session. Raises Refused."""
        layout = self._layout
        feed = {}
        for place in layout.inputs:
            feed[place.value.name] = _to_file(place, inputs[place.spec.name])
        for state in layout.states:
            feed[state.before.value.name] = _to_file(state.before, states[state.before.spec.name])
        afters = [each.after for each in layout.states]
        found = self._file.run(feed, (*layout.outputs, *afters))
        return (
            {each.spec.name: _to_ours(each, found[each.value.name]) for each in layout.outputs},
            {
                each.before.spec.name: _to_ours(each.after, found[each.after.value.name])
                for each in layout.states
            },
        )


class SequenceReference:
    """The file's answers to whole sequences, of a file without states."""

    def __init__(self, source: Source, roles: Roles, layout: Layout) -> None:
        """Raises Refused."""
        self._layout = layout
        # A declared number of rows is no part of what the nodes compute.
        self._file = _Original(relaxed(source.original), roles)

    def answer(self, sequence: Arrays) -> dict[str, Array]:
        """Outputs [R, *shape] of one sequence [T, *shape]; R is 1 where an output has no axis of
        time. Raises Refused."""
        feed = {
            each.value.name: _rows_to_file(each, sequence[each.spec.name])
            for each in self._layout.inputs
        }
        found = self._file.run(feed, self._layout.outputs)
        return {
            each.spec.name: _rows_to_ours(each, found[each.value.name])
            for each in self._layout.outputs
        }


def _rows_to_file(place: Place, rows: Array) -> Array:
    """[T, *shape] with the rows along the file's axis of time."""
    if place.time is None:
        return _to_file(place, rows[-1])
    shape = list(place.file_shape)
    shape[place.time] = len(rows)
    ours = [place.time, *(at for at in place.kept if at != place.time)]
    order = [ours.index(at) for at in sorted(ours)]
    return rows.transpose(order).reshape(shape).astype(place.value.dtype)


def _rows_to_ours(place: Place, array: Array) -> Array:
    """[R, *shape] of what the file gives."""
    if place.time is None:
        return _to_ours(place, array)[np.newaxis]
    rows = np.moveaxis(array, place.time, 0)
    return rows.reshape(len(rows), *place.spec.shape).astype(place.spec.dtype)


def _to_file(place: Place, row: Array) -> Array:
    return np.asarray(row.reshape(place.file_shape), place.value.dtype)


def _to_ours(place: Place, array: Array) -> Array:
    """Raises Refused for a tensor of another shape."""
    if array.size != place.spec.size:
        raise Refused(
            f"the file gives {place.value.name} {list(array.shape)} for one time step of one "
            f"session, which should be {list(place.file_shape)}"
        )
    return np.asarray(array.reshape(place.spec.shape), place.spec.dtype)


def doubles(arrays: dict[str, Array]) -> dict[str, Any]:
    """Floats of a golden case are float64."""
    return {
        name: each.astype(np.float64) if each.dtype == np.float32 else each
        for name, each in arrays.items()
    }
