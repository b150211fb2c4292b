"""The answers of the file itself: it runs as it is in plain onnxruntime, one session after another,
step by step. These are the golden cases. It must not know how the file is rebuilt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx

from lstmserve.golden import Golden
from lstmserve.runtime import ort
from lstmserve.spec import ModelSpec
from lstmserve_export.arrays import Array, Arrays
from lstmserve_export.onnx_file.layout import Layout, Place
from lstmserve_export.onnx_file.roles import Roles
from lstmserve_export.onnx_file.source import Source
from lstmserve_export.refusal import Refused, one_line

QUIET: Final = 4  # onnxruntime's level "fatal": its other lines are no errors of ours


def open_file(model: onnx.ModelProto) -> ort.InferenceSession:
    """Plain onnxruntime with one thread. Raises Refused."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = QUIET
    try:
        return ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own have no base but this one
        raise Refused(f"onnxruntime does not load the file: {one_line(error)}") from error


class Reference:
    """The file's answers for sequences of one session each."""

    def __init__(
        self, source: Source, roles: Roles, layout: Layout, spec: ModelSpec, initial: Arrays
    ) -> None:
        """`initial` has the states [*shape] that do not begin from zeros. Raises Refused."""
        self.spec = spec
        self._layout = layout
        self._constants = roles.constants
        self._initial = {
            each.name: initial.get(each.name, np.zeros(each.shape, each.dtype))
            for each in (() if spec.window else spec.states)
        }
        self._session = open_file(source.original)

    def case(
        self, inputs: Arrays, lengths: Array, initial: Mapping[str, Array] | None = None
    ) -> Golden:
        """The golden case of sequences [N, T, *shape], with the states after each. Raises
        Refused."""
        count, steps = len(lengths), int(lengths.max())
        outputs = {e.name: np.zeros((count, steps, *e.shape), e.dtype) for e in self.spec.outputs}
        finals = {e.name: np.zeros((count, *e.shape), e.dtype) for e in self.spec.states}
        for row, length in enumerate(lengths):
            states = {
                name: each if initial is None else initial[name][row]
                for name, each in self._initial.items()
            }
            for step in range(length):
                given = {name: each[row, step] for name, each in inputs.items()}
                found, states = self.step(given, states)
                for name, each in found.items():
                    outputs[name][row, step] = each
            for name, each in states.items():
                finals[name][row] = each
        return Golden(inputs, lengths, initial, _doubles(outputs), _doubles(finals), 0.0)

    def step(self, inputs: Arrays, states: Arrays) -> tuple[dict[str, Array], dict[str, Array]]:
        """Outputs and states [*shape] of one time step of one session. Raises Refused."""
        layout = self._layout
        feed = dict(self._constants)
        for place in layout.inputs:
            feed[place.value.name] = _to_file(place, inputs[place.spec.name])
        for state in layout.states:
            feed[state.before.value.name] = _to_file(state.before, states[state.before.spec.name])
        afters = [each.after for each in layout.states]
        names = [each.value.name for each in (*layout.outputs, *afters)]
        try:
            found = dict(zip(names, self._session.run(names, feed), strict=True))
        except Exception as error:  # onnxruntime's own have no base but this one
            raise Refused(f"onnxruntime does not run the file: {one_line(error)}") from error
        return (
            {each.spec.name: _to_ours(each, found[each.value.name]) for each in layout.outputs},
            {
                each.before.spec.name: _to_ours(each.after, found[each.after.value.name])
                for each in layout.states
            },
        )


def _to_file(place: Place, array: Array) -> Array:
    return array.reshape(place.file_shape).astype(place.value.dtype)


def _to_ours(place: Place, array: Array) -> Array:
    """Raises Refused for a tensor of another shape."""
    if array.size != place.spec.size:
        raise Refused(
            f"the file gives {place.value.name} {list(array.shape)} for one time step of one "
            f"session, which should be {list(place.file_shape)}"
        )
    return array.reshape(place.spec.shape).astype(place.spec.dtype)


def _doubles(arrays: dict[str, Array]) -> dict[str, Any]:
    """Floats of a golden case are float64."""
    return {
        name: each.astype(np.float64) if each.dtype == np.float32 else each
        for name, each in arrays.items()
    }
