"""What a module's forward() takes and gives: inputs, states and outputs, with their axes.

The rest of the export works with a Signature; probe.py finds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lstmserve.spec import ModelSpec, TensorSpec
from lstmserve_export.arrays import Array
from lstmserve_export.module.forward import Axes, Result, Tensors
from lstmserve_export.module.recurrent import CallId


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor of forward's arguments that each time step brings. `name` is forward's own."""

    name: str
    spec: TensorSpec
    axes: Axes


@dataclass(frozen=True, slots=True)
class PassedState:
    """A state that is an argument of forward(), `name`, and its result number `result`.

    `batch` and `result_batch` are the axes of the batch in the two. `call` is the recurrent call
    that begins from it, if one does: as its h, `part` 0, or its c, 1.
    """

    name: str
    spec: TensorSpec
    batch: int
    result: int
    result_batch: int
    call: CallId | None = None
    part: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """A call of a recurrent layer whose states are a session's: h, and for an LSTM c.

    `repeats`: sequences of the layer's batch for each sequence of the input, mostly 1. The states
    are [*shape] of the layer, or [repeats, *shape]. `initial` are their values in a new session.
    """

    call: CallId
    repeats: int
    specs: tuple[TensorSpec, ...]
    initial: tuple[Array, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """Result number `result` of forward(). `axes.time` None: it is of the last time step alone."""

    spec: TensorSpec
    result: int
    axes: Axes


@dataclass(frozen=True, slots=True)
class Signature:
    """All of forward's tensors. `has_time`: it takes several time steps at once."""

    inputs: tuple[Input, ...]
    passed: tuple[PassedState, ...]
    memories: tuple[Memory, ...]
    outputs: tuple[Output, ...]
    has_time: bool
    notes: tuple[str, ...] = ()

    @property
    def spec(self) -> ModelSpec:
        """The spec of the model. Raises InvalidSpec where two names collide."""
        return ModelSpec(
            inputs=tuple(each.spec for each in self.inputs),
            outputs=tuple(each.spec for each in self.outputs),
            states=(
                *(each.spec for each in self.passed),
                *(spec for each in self.memories for spec in each.specs),
            ),
        )

    @property
    def initial(self) -> dict[str, Array]:
        """The states of a new session by name, [*shape]."""
        found = {p.spec.name: np.zeros(p.spec.shape, p.spec.dtype) for p in self.passed}
        for memory in self.memories:
            found |= {s.name: v for s, v in zip(memory.specs, memory.initial, strict=True)}
        return found

    def states_by_call(self) -> dict[CallId, tuple[str, ...]]:
        """The states that a recurrent call of one sequence per row begins from, h first."""
        found: dict[CallId, tuple[str, ...]] = {}
        for each in self.memories:
            if each.repeats == 1:
                found[each.call] = tuple(spec.name for spec in each.specs)
        for passed in sorted(self.passed, key=lambda passed: passed.part):
            if passed.call is not None:
                found[passed.call] = (*found.get(passed.call, ()), passed.spec.name)
        return found

    def arguments(self, inputs: Tensors, states: Tensors) -> dict[str, torch.Tensor]:
        """Forward's tensors from rows [B, T, *shape] of the inputs and states [B, *shape] of the
        passed ones, both by the names of the spec."""
        found = {each.name: each.axes.from_rows(inputs[each.spec.name]) for each in self.inputs}
        for each in self.passed:
            found[each.name] = states[each.spec.name].movedim(0, each.batch)
        return found

    def last(self, results: list[Result]) -> dict[str, torch.Tensor]:
        """The outputs [B, *shape] of the last time step by name, in the dtypes of the spec."""
        found = {}
        for each in self.outputs:
            rows = each.axes.to_rows(results[each.result].tensor)
            found[each.spec.name] = rows[:, -1]
        return found

    def after(self, results: list[Result]) -> dict[str, torch.Tensor]:
        """The passed states [B, *shape] after the run."""
        return {
            each.spec.name: results[each.result].tensor.movedim(each.result_batch, 0)
            for each in self.passed
        }
