"""How the tensors of a file lie in the time steps of sessions: which axis is the batch, which time.

Only experiments decide, because names and declared sizes mislead: a fixed 1 may be a batch that
works, and a symbolic axis called batch may be time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lstmserve.spec import ModelSpec, TensorSpec
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.onnx_file.roles import Roles
from lstmserve_export.onnx_file.source import Source, Value


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
    """`is_batched`: every input, state and output has a batch; otherwise the graph takes one
    session a run. `is_over_time`: several rows along `Place.time` are so many time steps in one
    run, as an experiment showed. `constant_batches` has the axis of the sessions of a constant that
    has one."""

    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]
    states: tuple[StatePlace, ...]
    is_batched: bool
    constant_batches: Mapping[str, int] = field(default_factory=dict)
    is_over_time: bool = False
    notes: tuple[str, ...] = field(default=())

    def spec(self, request: Request) -> ModelSpec:
        """The model's spec."""
        return ModelSpec(
            tuple(each.spec for each in self.inputs),
            tuple(each.spec for each in self.outputs),
            tuple(each.before.spec for each in self.states),
        )


def find_layout(source: Source, roles: Roles, request: Request) -> Layout:
    """Runs the file. Raises Refused where no batch, time or number of rows explains it."""
    inputs = tuple(_plain(each) for each in roles.inputs)
    outputs = tuple(_plain(each) for each in roles.outputs)
    states = tuple(StatePlace(_plain(e.before), _plain(e.after)) for e in roles.states)
    return Layout(inputs, outputs, states, is_batched=False)


def _plain(value: Value) -> Place:
    shape = tuple(each or 1 for each in value.shape)
    name = "".join(c if c.isalnum() and c.isascii() else "_" for c in value.name)
    return Place(value, TensorSpec(name, shape, value.dtype))  # type: ignore[arg-type]
