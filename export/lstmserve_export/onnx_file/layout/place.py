"""What each tensor of a file is of one time step of one session.

A place is what experiments found (probe.py); it runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lstmserve.spec import ModelSpec, TensorSpec, window_states
from lstmserve_export.onnx_file.load.source import Value
from lstmserve_export.onnx_file.request import Request


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor of the file, and what it is of one time step of one session.

    `spec` has the axes of `value` without `batch`, the axis of the sessions (None: there is none),
    and without `ones`, axes of length 1 that a row does not have. `time` is the axis of time, which
    is one of `ones` or, where a step takes several rows, an axis of the spec.
    """

    value: Value
    spec: TensorSpec
    batch: int | None = None
    ones: tuple[int, ...] = ()
    time: int | None = None

    @property
    def kept(self) -> tuple[int, ...]:
        """The file's axes that `spec` has, in order."""
        lacks = {*self.ones, self.batch}
        return tuple(at for at in range(len(self.value.shape)) if at not in lacks)

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The shape of one time step of one session in the file, with all axes."""
        sizes = iter(self.spec.shape)
        lacks = {*self.ones, self.batch}
        return tuple(1 if at in lacks else next(sizes) for at in range(len(self.value.shape)))


@dataclass(frozen=True, slots=True)
class StatePlace:
    """A state: `before` and `after` have one spec, and each its own axes."""

    before: Place
    after: Place


@dataclass(frozen=True, slots=True)
class Layout:
    """How the file's tensors lie.

    `is_batched`: every input, state and output has a batch; otherwise the graph takes one session a
    run. `constant_batches` has the axis of the sessions of a constant that has one. `rounding` is
    the most that a batch changed an answer in an experiment, in parts of its largest value.
    """

    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]
    states: tuple[StatePlace, ...]
    is_batched: bool
    constant_batches: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=())
    rounding: float = 0.0

    def spec(self, request: Request) -> ModelSpec:
        """The model's spec."""
        inputs = tuple(each.spec for each in self.inputs)
        states = tuple(each.before.spec for each in self.states)
        if request.window:
            states = window_states(inputs, request.window, request.window_fill)
        return ModelSpec(
            inputs,
            tuple(each.spec for each in self.outputs),
            states,
            window=request.window,
            window_fill=request.window_fill,
        )
