"""Finds a module's Signature by running it on inputs of changed sizes.

Every finding is an experiment: the axis of the batch is the one along which rows do not influence
each other, and the axis of time is the one that makes the recurrent layers go on. What it finds is
only a proposal, since proof.py compares the exported step with forward() afterwards.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lstmserve.spec import InvalidSpec, TensorSpec, WindowFill
from lstmserve_export.module.forward import Axes, Forward
from lstmserve_export.module.recurrent import (
    Call,
    CallId,
    Layer,
    find_layers,
    state_names,
    state_shapes,
    watched,
)
from lstmserve_export.module.signature.checks import check_function
from lstmserve_export.module.signature.layout import (
    Layout,
    LayoutSearch,
    dtype_name,
    fails_on,
    tensor_name,
)
from lstmserve_export.module.signature.passing import check_lengths, find_passed, is_view
from lstmserve_export.module.signature.sampler import SIZE, Sampler
from lstmserve_export.module.signature.signature import (
    Input,
    Memory,
    Output,
    PassedState,
    Signature,
)
from lstmserve_export.module.signature.windows import WindowSearch, check_alike
from lstmserve_export.refusal import Refused, shorten


def probe(
    forward: Forward,
    states: Sequence[str] = (),
    output_names: Sequence[str] = (),
    axes: Axes | None = None,
    window: int = 0,
    window_fill: WindowFill | None = None,
) -> Signature:
    """The signature of the module, whose example gives sizes and values. Raises Refused."""
    found = _Probe(forward, states, output_names, axes, window).signature(window_fill)
    try:
        _ = found.spec
    except InvalidSpec as error:
        raise Refused(f"{error}; name the outputs with output_names") from error
    return found


class _Probe:
    """One search. `passed` maps each state among the arguments to the number of its result."""

    def __init__(
        self,
        forward: Forward,
        states: Sequence[str],
        output_names: Sequence[str],
        axes: Axes | None,
        window: int,
    ) -> None:
        self.forward = forward
        self.layers = find_layers(forward.module)
        self.output_names = tuple(output_names)
        check_lengths(forward)
        check_function(forward)
        with watched(self.layers) as calls:
            results = forward(forward.example)
        self._paths = [result.path for result in results]
        self._calls = calls
        self.passed = find_passed(forward, results, calls, states)
        self.window = window
        self.search = (
            WindowSearch(forward, tuple(self.passed), axes, window)
            if window
            else LayoutSearch(forward, tuple(self.passed), axes)
        )

    def signature(self, window_fill: WindowFill | None) -> Signature:
        layout, outputs = self.search.choose()
        has_time = layout.main.time is not None
        notes = [
            f"{name} of the example is the same for every step, and became a constant"
            for name in self.search.names
            if name not in layout.axes
        ]
        inputs = tuple(
            Input(name, self._spec(tensor_name(name), name, each), each)
            for name, each in layout.axes.items()
        )
        sampler = Sampler(self.forward.example, layout.axes)
        passed = self._passed_states(layout, outputs)
        memories = () if self.window else self._memories(layout, sampler, has_time)
        if not (memories or passed or self.window):
            raise self._memoryless(has_time)
        kept = self._state_results(layout, sampler)
        answers = [each for each in outputs if each.result not in kept] or outputs
        if self.window:
            check_alike(answers, self._paths, self.window)
        return Signature(
            inputs=inputs,
            passed=passed,
            memories=memories,
            outputs=self._outputs(answers),
            has_time=has_time,
            notes=tuple(notes),
            window=self.window,
            window_fill=window_fill,
        )

    # --- states

    def _passed_states(self, layout: Layout, outputs: list[Output]) -> tuple[PassedState, ...]:
        found = []
        for name, result in self.passed.items():
            batch, after = layout.batches[name], outputs[result].axes
            assert after.batch is not None
            spec = self.search.state_specs(layout)[name]
            if outputs[result].spec.shape != spec.shape or after.time is not None:
                raise Refused(
                    f"{name} is a state [B, {spec.shape}] and its result is "
                    f"[B, {outputs[result].spec.shape}]: return it as it is taken, or name the "
                    "states with states="
                )
            call, part = self._call_of(name, spec)
            found.append(PassedState(name, spec, batch, result, after.batch, call, part))
        return tuple(found)

    def _call_of(self, name: str, spec: TensorSpec) -> tuple[CallId | None, int]:
        """The recurrent call that begins from this argument as it is: as its h, 0, or its c, 1."""
        tensor = self.forward.example[name]
        for call in self._calls:
            shapes = state_shapes(self.layers[call.id.layer])
            for part, (given, shape) in enumerate(zip(call.given, shapes, strict=False)):
                if is_view(given, tensor) and spec.shape == shape:
                    return call.id, part
        return None, 0

    def _memories(self, layout: Layout, sampler: Sampler, has_time: bool) -> tuple[Memory, ...]:
        """The calls at one time step whose state is neither passed nor computed from the row."""
        first, second = (self._watch(layout, sampler, 1) for _ in range(2))
        longer = self._watch(layout, sampler, 2) if has_time else first
        steps, more = _steps(first), _steps(longer)
        found = []
        for one, other in zip(first, second, strict=True):
            layer = self.layers[one.id.layer]
            goes_on = has_time and more[one.id.layer] > steps[one.id.layer]
            if not goes_on or not _is_equal(one.handed, other.handed):
                continue
            if getattr(layer, "bidirectional", False):
                raise Refused(
                    f"{one.id.layer or 'the module'} ({type(layer).__name__}) is bidirectional: it "
                    "reads the rows to come, so no step can be answered before the last: if it was "
                    "trained on windows, export it with --window W; otherwise train it with one "
                    "direction"
                )
            found.append(self._memory(one, layer, layout))
        return tuple(found)

    def _watch(self, layout: Layout, sampler: Sampler, length: int) -> list[Call]:
        try:
            return self.search.watch(layout, sampler, length)[1]
        except Exception as error:  # the user's code may raise anything
            raise fails_on(length, error, self.forward.module) from error

    def _memory(self, call: Call, layer: Layer, layout: Layout) -> Memory:
        size = SIZE if layout.main.batch is not None else 1
        if call.rows % size:
            raise Refused(f"{call.id.layer} reads {call.rows} rows for {size} of the input")
        repeats = call.rows // size
        names, shapes = state_names(layer), state_shapes(layer)
        prefix = call.id.layer + (f".call{call.id.number + 1}" if call.id.number else "")
        initial = []
        for index, shape in enumerate(shapes):
            if call.handed is None:
                start = torch.zeros(size, repeats, *shape)
            else:
                start = call.handed[index].expand(call.rows, *shape).reshape(size, repeats, *shape)
            if not torch.equal(start, start[:1].expand_as(start)):
                raise Refused(f"{prefix} begins from another state for each row of the batch")
            initial.append(start[0].numpy() if repeats > 1 else start[0, 0].numpy())
        specs = tuple(
            TensorSpec(tensor_name(f"{prefix}.{name}" if prefix else name), value.shape)
            for name, value in zip(names, initial, strict=True)
        )
        return Memory(call.id, repeats, specs, tuple(np.array(v, np.float32) for v in initial))

    def _state_results(self, layout: Layout, sampler: Sampler) -> set[int]:
        """The results that are states: passed ones, and those that a layer's call returned."""
        length = self.window if layout.main.time is not None and self.window else 1
        results, calls = self.search.watch(layout, sampler, length)
        known = {id(part) for call in calls for part in call.after}
        rest = [n for n in range(len(results)) if n not in self.passed.values()]
        own = {n for n in rest[1:] if id(results[n].tensor) in known}
        return set(self.passed.values()) | own

    def _memoryless(self, has_time: bool) -> Refused:
        if not has_time and self.layers:
            return Refused(
                "forward() has neither an axis of time nor a state among its arguments, so it says "
                "nothing of a second step: give it x [B, T, F], or forward(x, state) -> (y, state)"
            )
        if self.layers:
            return Refused(
                f"{shorten(list(self.layers))} begins from a state that forward() computes from "
                "its input, and a session has one start for every input: take the state as an "
                "argument of forward() and return it, and send the computed one when the client "
                "opens the session"
            )
        return Refused(
            "the module has no recurrent layer (nn.LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell) and "
            "no state among forward's arguments: if it was trained on windows of W rows, export it "
            "with --window W; a network of your own cells must take its state as an argument and "
            "return it (states= names it)"
        )

    # --- outputs

    def _outputs(self, outputs: list[Output]) -> tuple[Output, ...]:
        names = self.output_names or self._own_names(outputs)
        if len(names) != len(outputs):
            raise Refused(
                f"output_names has {len(names)} names ({', '.join(names)}), and forward() returns "
                f"{len(outputs)} besides the states: {', '.join(self._own_names(outputs))}"
            )
        found = []
        for name, each in zip(names, outputs, strict=True):
            try:
                spec = TensorSpec(name, each.spec.shape, each.spec.dtype)
            except InvalidSpec as error:
                raise Refused(f"output_names: {error}") from error
            found.append(Output(spec, each.result, each.axes))
        return tuple(found)

    def _own_names(self, outputs: list[Output]) -> tuple[str, ...]:
        """Keys of a dict or fields of a tuple; y, or y0, y1, ... where forward() names nothing."""
        paths = _without_lead([self._paths[each.result] for each in outputs])
        if any(re.fullmatch(r"[0-9.]*", path) for path in paths):
            return ("y",) if len(outputs) == 1 else tuple(f"y{i}" for i in range(len(outputs)))
        return tuple(map(tensor_name, paths))

    def _spec(self, name: str, argument: str, axes: Axes) -> TensorSpec:
        tensor = self.forward.example[argument]
        return TensorSpec(name, tuple(axes.to_rows(tensor).shape[2:]), dtype_name(tensor))


def _without_lead(paths: list[str]) -> list[str]:
    """The paths without the place of a dict in a tuple, as in ({"a": ..., "b": ...}, state)."""
    leads = {path.partition(".")[0] for path in paths if "." in path}
    if len(leads) == 1 and leads.pop().isdecimal() and all("." in path for path in paths):
        return [path.partition(".")[2] for path in paths]
    return paths


def _steps(calls: list[Call]) -> Counter[str]:
    """Time steps by layer."""
    found: Counter[str] = Counter()
    for call in calls:
        found[call.id.layer] += call.length
    return found


def _is_equal(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return len(one) == len(other) and all(map(torch.equal, one, other))
