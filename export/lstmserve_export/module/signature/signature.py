"""What a module's forward() takes and gives: inputs, states and outputs, with their axes.

The rest of the export works with a Signature; probe.py finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lstmserve.spec import ModelSpec, TensorSpec, WindowFill, window_states
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
    """All of forward's tensors. `has_time`: it takes several time steps at once.

    With a `window` of W rows an answer is forward()'s to the last W rows, from its initial state.
    The states of a session are then those rows, and there are no `memories`.
    """

    inputs: tuple[Input, ...]
    passed: tuple[PassedState, ...]
    memories: tuple[Memory, ...]
    outputs: tuple[Output, ...]
    has_time: bool
    notes: tuple[str, ...] = ()
    window: int = 0
    window_fill: WindowFill | None = None

    @property
    def spec(self) -> ModelSpec:
        """The spec of the model. Raises InvalidSpec where two names collide."""
        inputs = tuple(each.spec for each in self.inputs)
        states = (
            *(each.spec for each in self.passed),
            *(spec for each in self.memories for spec in each.specs),
        )
        if self.window:
            states = window_states(inputs, self.window, self.window_fill)
        outputs = tuple(each.spec for each in self.outputs)
        return ModelSpec(inputs, outputs, states, window=self.window, window_fill=self.window_fill)

    @property
    def initial(self) -> dict[str, Array]:
        """The states of a new session by name, [*shape]; nothing where they are rows."""
        if self.window:
            return {}
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

    def starts(self, count: int) -> dict[str, torch.Tensor]:
        """The passed states [count, *shape] of new sessions."""
        return {
            each.spec.name: torch.zeros(
                count, *each.spec.shape, dtype=getattr(torch, each.spec.dtype)
            )
            for each in self.passed
        }

    def answer_window(
        self, run: Callable[[Tensors], list[Result]], rows: Tensors
    ) -> dict[str, torch.Tensor]:
        """The outputs [B, *shape] for windows [B, W, *shape] of the inputs, by name. `run` is
        forward(), and this raises what it raises.

        An input without an axis of time has the value of the last row. Where forward() takes one
        time step at a time, its states go from call to call.
        """
        states = self.starts(next(iter(rows.values())).shape[0])
        if self.has_time:
            is_once = {each.spec.name: each.axes.time is None for each in self.inputs}
            given = {name: each[:, -1:] if is_once[name] else each for name, each in rows.items()}
            return self.last(run(self.arguments(given, states)))
        answers: dict[str, torch.Tensor] = {}
        for t in range(next(iter(rows.values())).shape[1]):
            row = {name: each[:, t : t + 1] for name, each in rows.items()}
            results = run(self.arguments(row, states))
            answers, states = self.last(results), self.after(results)
        return answers

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
