"""Finds a module's Signature by running it on inputs of changed sizes.

Every finding is an experiment: the axis of the batch is the one along which rows do not influence
each other, and the axis of time is the one that makes the recurrent layers go on. What it finds is
only a proposal, since proof.py compares the exported step with forward() afterwards.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from lstmserve.spec import InvalidSpec, TensorSpec
from lstmserve_export.module.checks import check_function, check_weights
from lstmserve_export.module.forward import (
    LAYOUTS,
    Axes,
    Forward,
    Result,
    Tensors,
    one_line,
)
from lstmserve_export.module.recurrent import (
    Call,
    Layer,
    find_layers,
    state_names,
    state_shapes,
    watched,
)
from lstmserve_export.module.signature import Input, Memory, Output, PassedState, Signature
from lstmserve_export.refusal import Refused, shorten

SEED: Final = 20130101
SIZE: Final = 3  # of a batch
LENGTH: Final = 4  # time steps
CLOSE: Final = {"rtol": 2e-5, "atol": 1e-5}
STATE_NAME: Final = re.compile(
    r"(.*_)?(h|c|h[0tx]|c[0tx]|hc|hidden|cell|cells|state|states|memory|carry|cache)s?(_.*)?|h_?n|c_?n"
)
LENGTHS_NAME: Final = re.compile(r"(.*_)?(len|lens|length|lengths|sizes)(_.*)?")
NOISE: Final = 0.3  # of the example's deviation, on top of the example's own rows


class _Unfit(Exception):
    """A layout does not fit the module; the message says what happened."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """A proposal: the axes of each input, and the axis of the batch in each passed state."""

    axes: Mapping[str, Axes]
    batches: Mapping[str, int]

    def arguments(self, rows: Tensors, states: Tensors) -> dict[str, torch.Tensor]:
        found = {name: axes.from_rows(rows[name]) for name, axes in self.axes.items()}
        return found | {n: states[n].movedim(0, batch) for n, batch in self.batches.items()}


class Sampler:
    """Draws random inputs like those of an example, and random states."""

    def __init__(self, example: Tensors, axes: Mapping[str, Axes], seed: int = SEED) -> None:
        self._rng = torch.Generator().manual_seed(seed)
        self._rows = {
            name: each.to_rows(example[name]).flatten(0, 1) for name, each in axes.items()
        }
        self._is_constant = {name: each.time is None for name, each in axes.items()}

    def rows(self, size: int, length: int) -> dict[str, torch.Tensor]:
        """[size, length, *shape] of each input: the example's rows, and floats with noise.

        An input without an axis of time is the same at every time step, unless none has one.
        """
        found = {}
        has_time = not all(self._is_constant.values())
        for name, rows in self._rows.items():
            is_constant = self._is_constant[name] and has_time
            count = 1 if is_constant else length
            chosen = torch.randint(len(rows), (size, count), generator=self._rng)
            drawn = rows[chosen]
            if drawn.is_floating_point():
                deviation = rows.std() if rows.numel() > 1 else torch.tensor(0.0)
                scale = NOISE * float(deviation) or 1.0
                drawn = drawn + scale * torch.randn(drawn.shape, generator=self._rng)
            found[name] = drawn.expand(size, length, *drawn.shape[2:])
        return found

    def states(self, size: int, specs: Mapping[str, TensorSpec]) -> dict[str, torch.Tensor]:
        """[size, *shape] of each state: floats in (-0.9, 0.9), others zero."""
        found = {}
        for name, spec in specs.items():
            shape = (size, *spec.shape)
            if spec.dtype == "float32":
                found[name] = 1.8 * torch.rand(shape, generator=self._rng) - 0.9
            else:
                found[name] = torch.zeros(shape, dtype=getattr(torch, spec.dtype))
        return found


def probe(
    forward: Forward,
    states: Sequence[str] = (),
    output_names: Sequence[str] = (),
    axes: Axes | None = None,
) -> Signature:
    """The signature of the module, whose example gives sizes and values. Raises Refused."""
    return _Probe(forward, states, output_names, axes).signature()


class _Probe:
    """One search. `passed` maps each state among the arguments to the number of its result."""

    def __init__(
        self,
        forward: Forward,
        states: Sequence[str],
        output_names: Sequence[str],
        axes: Axes | None,
    ) -> None:
        self.forward = forward
        self.layers = find_layers(forward.module)
        self.output_names = tuple(output_names)
        baseline = self._baseline()
        self.passed = _match_states(forward, baseline, states)
        self.names = [name for name in forward.example if name not in self.passed]
        if not self.names:
            raise Refused("every argument of forward() is a state: name the states with states=")
        self.primary = max(self.names, key=lambda name: forward.example[name].dim())
        self.given = axes

    def _baseline(self) -> list[Result]:
        """The results of the example. Raises Refused if forward() is not a function of it."""
        forward = self.forward
        check_weights(forward.module)
        try:
            results = check_function(forward)
        except Refused:
            raise
        except Exception as error:  # the user's code may raise anything
            if names := [n for n in forward.example if LENGTHS_NAME.fullmatch(n)]:
                raise _lengths_refused(names) from error
            raise Refused(f"forward() fails on the example: {_described(error)}") from error
        if not results:
            raise Refused("forward() returns no tensor")
        return results

    def signature(self) -> Signature:
        layout, outputs = self._choose_layout()
        has_time = layout.axes[self.primary].time is not None
        notes = [
            f"{name} of the example is the same for every step, and became a constant"
            for name in self.names
            if name not in layout.axes
        ]
        inputs = tuple(
            Input(name, self._spec(_tensor_name(name), name, each), each)
            for name, each in layout.axes.items()
        )
        sampler = Sampler(self.forward.example, layout.axes)
        passed = self._passed_states(layout, outputs)
        memories = self._memories(layout, sampler, has_time)
        if not memories and not passed:
            raise self._memoryless(has_time)
        kept = self._state_results(layout, sampler)
        found = Signature(
            inputs=inputs,
            passed=passed,
            memories=memories,
            outputs=self._outputs([o for o in outputs if o.result not in kept]),
            has_time=has_time,
            notes=tuple(notes),
        )
        try:
            _ = found.spec
        except InvalidSpec as error:
            raise Refused(f"{error}; name the outputs with output_names") from error
        return found

    # --- axes

    def _choose_layout(self) -> tuple[_Layout, list[Output]]:
        """The first layout that fits, with every result as an output. Raises Refused."""
        faults: dict[str, str] = {}
        for layout in self._layouts():
            name = next(n for n, e in LAYOUTS.items() if e == layout.axes[self.primary])
            try:
                return layout, self._try(layout)
            except _Unfit as error:
                faults.setdefault(name, str(error))
        self._check_fixed_length()
        tried = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
        raise Refused(
            f"the axes of {self.primary} {list(self.forward.example[self.primary].shape)} are not "
            f"clear ({tried}); give an example with a batch and several time steps, or axes="
        )

    def _layouts(self) -> Iterator[_Layout]:
        """The layouts that sizes and dimensions allow, the likeliest first."""
        tensor = self.forward.example[self.primary]
        for main in [self.given] if self.given else LAYOUTS.values():
            needed = 1 + max(each for each in (main.batch, main.time) if each is not None)
            if tensor.dim() < needed:
                continue
            others = [name for name in self.names if name != self.primary]
            for axes in itertools.product(*(self._axes_of(name, main) for name in others)):
                found = {self.primary: main} | dict(zip(others, axes, strict=True))
                ordered = {n: found[n] for n in self.names if found[n] != Axes(None, None)}
                for batches in itertools.product(*(self._batches(n, main) for n in self.passed)):
                    yield _Layout(ordered, dict(zip(self.passed, batches, strict=True)))

    def _axes_of(self, name: str, main: Axes) -> list[Axes]:
        """What the axes of another input may be: as those of the first, no time, or a constant."""
        tensor, first = self.forward.example[name], self.forward.example[self.primary]
        found = []
        if all(
            axis is None or (axis < tensor.dim() and tensor.shape[axis] == first.shape[axis])
            for axis in (main.batch, main.time)
        ):
            found.append(main)
        if main.batch is not None and tensor.dim() and main.time is not None:
            places = [a for a in (0, main.batch) if a < tensor.dim()]
            size = first.shape[main.batch]
            found += [Axes(a, None) for a in dict.fromkeys(places) if tensor.shape[a] == size]
        return [*found, Axes(None, None)]

    def _batches(self, name: str, main: Axes) -> list[int]:
        tensor, first = self.forward.example[name], self.forward.example[self.primary]
        if main.batch is None:
            return []
        size = first.shape[main.batch]
        places = [a for a in range(tensor.dim()) if tensor.shape[a] == size]
        return sorted(places, key=lambda a: a != (1 if tensor.dim() == 3 else 0))

    def _try(self, layout: _Layout) -> list[Output]:
        """Every result as an output with its axes. Raises _Unfit."""
        sampler = Sampler(self.forward.example, layout.axes)
        main = layout.axes[self.primary]
        rows = sampler.rows(SIZE, LENGTH if main.time is not None else 1)
        states = sampler.states(SIZE, self._state_specs(layout))
        whole, steps = self._run(layout, rows, states)
        shorter = {name: each[:, 1:] for name, each in rows.items()}
        fewer = {name: each[1:] for name, each in rows.items()}
        fewer_states = {name: each[1:] for name, each in states.items()}
        by_batch = by_time = None
        if main.batch is not None:
            by_batch, _ = self._run(layout, fewer, fewer_states)
        if main.time is not None:
            by_time, short_steps = self._run(layout, shorter, states)
            if self.layers and not self.passed and steps <= short_steps:
                raise _Unfit("the recurrent layers do not go on along this axis of time")
        outputs = [
            self._output(number, whole, by_batch, by_time, is_unbatched=main.batch is None)
            for number in range(len(whole))
        ]
        if by_batch is not None:
            for output, result in zip(outputs, whole, strict=True):
                left = output.axes.to_rows(result.tensor)[1:].float()
                right = output.axes.to_rows(by_batch[output.result].tensor).float()
                if not torch.allclose(left, right, equal_nan=True, **CLOSE):
                    raise _Unfit("rows of the batch influence each other")
        return outputs

    def _run(self, layout: _Layout, rows: Tensors, states: Tensors) -> tuple[list[Result], int]:
        """The results, and the time steps that the recurrent layers made in all their calls."""
        try:
            with watched(self.layers) as calls:
                results = self.forward(layout.arguments(rows, states))
        except Exception as error:  # the user's code may raise anything
            raise _Unfit(_described(error)) from error
        return results, sum(call.length for call in calls)

    def _output(
        self,
        number: int,
        whole: list[Result],
        by_batch: list[Result] | None,
        by_time: list[Result] | None,
        *,
        is_unbatched: bool,
    ) -> Output:
        path, tensor = whole[number]
        batch = _changed_axis(whole, by_batch, number)
        time = _changed_axis(whole, by_time, number)
        label = f"result {path or number}"
        if batch is None and not is_unbatched:
            raise _Unfit(f"{label} {list(tensor.shape)} has no axis of the batch")
        if is_unbatched and time is None:
            raise _Unfit(f"{label} {list(tensor.shape)} has no axis of time")
        axes = Axes(batch, time)
        dtype = "float32" if tensor.is_floating_point() else "int64"
        shape = tuple(axes.to_rows(tensor).shape[2:])
        return Output(TensorSpec(f"result{number}", shape, dtype), number, axes)

    def _check_fixed_length(self) -> None:
        """Raises Refused if forward() takes the example's number of time steps and no other."""
        tensor = self.forward.example[self.primary]
        for letters, axes in LAYOUTS.items():
            if self.given not in (None, axes) or axes.time is None or axes.batch is None:
                continue
            if tensor.dim() < 2 or tensor.shape[axes.time] < 2:
                continue
            shorter = dict(self.forward.example)
            shorter[self.primary] = tensor.narrow(axes.time, 1, tensor.shape[axes.time] - 1)
            try:
                self.forward(shorter)
            except Exception as error:  # the user's code may raise anything
                fault = _described(error)
            else:
                return
            if letters == "BT":
                length = tensor.shape[axes.time]
                raise Refused(
                    f"forward() takes {length} time steps and no other number ({fault}): a layer "
                    "reads all of them at once, so it cannot answer row by row; train a head "
                    "that reads one time step, or keep the last rows in the client and call it there"
                )

    # --- states

    def _state_specs(self, layout: _Layout) -> dict[str, TensorSpec]:
        return {n: self._state_spec(n, batch) for n, batch in layout.batches.items()}

    def _state_spec(self, name: str, batch: int) -> TensorSpec:
        tensor = self.forward.example[name]
        shape = tuple(size for axis, size in enumerate(tensor.shape) if axis != batch)
        return TensorSpec(_tensor_name(name), shape, _dtype_name(tensor))

    def _passed_states(self, layout: _Layout, outputs: list[Output]) -> tuple[PassedState, ...]:
        found = []
        for name, result in self.passed.items():
            batch, after = layout.batches[name], outputs[result].axes
            assert after.batch is not None
            spec = self._state_spec(name, batch)
            if outputs[result].spec.shape != spec.shape or after.time is not None:
                raise Refused(
                    f"{name} is a state [B, {spec.shape}] and its result is "
                    f"[B, {outputs[result].spec.shape}]: return it as it is taken, or name the "
                    "states with states="
                )
            found.append(PassedState(name, spec, batch, result, after.batch))
        return tuple(found)

    def _memories(self, layout: _Layout, sampler: Sampler, has_time: bool) -> tuple[Memory, ...]:
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
                    f"{one.id.layer or 'the module'} is bidirectional: it reads the rows to come, "
                    "so no step can be answered before the last; train it with one direction"
                )
            found.append(self._memory(one, layer, layout))
        return tuple(found)

    def _watch(self, layout: _Layout, sampler: Sampler, length: int) -> list[Call]:
        rows = sampler.rows(SIZE, length)
        states = sampler.states(SIZE, self._state_specs(layout))
        try:
            with watched(self.layers) as calls:
                self.forward(layout.arguments(rows, states))
        except Exception as error:  # the user's code may raise anything
            raise Refused(
                f"forward() fails on {length} time step(s), which the server runs: "
                f"{_described(error)}"
            ) from error
        return calls

    def _memory(self, call: Call, layer: Layer, layout: _Layout) -> Memory:
        size = SIZE if layout.axes[self.primary].batch is not None else 1
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
            TensorSpec(_tensor_name(f"{prefix}.{name}" if prefix else name), value.shape)
            for name, value in zip(names, initial, strict=True)
        )
        return Memory(call.id, repeats, specs, tuple(np.array(v, np.float32) for v in initial))

    def _state_results(self, layout: _Layout, sampler: Sampler) -> set[int]:
        """The results that are states: passed ones, and those that a layer's call returned."""
        with watched(self.layers) as calls:
            results = self.forward(
                layout.arguments(
                    sampler.rows(SIZE, 1), sampler.states(SIZE, self._state_specs(layout))
                )
            )
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
                f"no recurrent layer ({shorten(list(self.layers))}) carries a state from one time "
                "step to the next: each begins from a state that is computed from its input; take "
                "that state as an argument and return it"
            )
        return Refused(
            "the module has no recurrent layer (nn.LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell) and "
            "no state among forward's arguments: a network of your own cells must take its state "
            "as an argument and return it; name it with states="
        )

    # --- outputs

    def _outputs(self, outputs: list[Output]) -> tuple[Output, ...]:
        if not outputs:
            raise Refused("forward() returns nothing but states")
        names = self.output_names or self._own_names(outputs)
        if len(names) != len(outputs):
            raise Refused(
                f"forward() returns {len(outputs)} outputs besides the states, and output_names "
                f"has {len(names)}: {', '.join(names)}"
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
        paths = [self._paths[each.result] for each in outputs]
        if any(re.fullmatch(r"[0-9.]*", path) for path in paths):
            return ("y",) if len(outputs) == 1 else tuple(f"y{i}" for i in range(len(outputs)))
        return tuple(map(_tensor_name, paths))

    @property
    def _paths(self) -> list[str]:
        return [result.path for result in self.forward(self.forward.example)]

    def _spec(self, name: str, argument: str, axes: Axes) -> TensorSpec:
        tensor = self.forward.example[argument]
        return TensorSpec(name, tuple(axes.to_rows(tensor).shape[2:]), _dtype_name(tensor))


def _match_states(forward: Forward, results: list[Result], given: Sequence[str]) -> dict[str, int]:
    """The arguments that are states, each with the number of its result. Raises Refused."""
    arguments = forward.arguments()
    if unknown := [name for name in given if name not in arguments]:
        raise Refused(
            f"states: forward() has no argument {shorten(unknown)} in the example; it has "
            f"{shorten(list(arguments))}"
        )
    first = next(iter(arguments))
    names = given or [n for n in arguments if n != first and STATE_NAME.fullmatch(n)]
    leaves = [leaf for name in names for leaf in arguments[name]]
    shapes = [forward.example[leaf].shape for leaf in leaves]
    for start in (len(results) - len(leaves), 0):  # results usually end with the states
        window = range(max(start, 0), max(start, 0) + len(leaves))
        if [results[n].tensor.shape for n in window if n < len(results)] == shapes:
            return dict(zip(leaves, window, strict=True))
    found = {}
    for leaf, shape in zip(leaves, shapes, strict=True):
        same = [n for n, r in enumerate(results) if r.tensor.shape == shape]
        left = [n for n in same if n not in found.values()]
        if not left:
            raise Refused(
                f"{leaf} looks like a state, and forward() returns nothing of its shape "
                f"{list(shape)}: return the state after the step, or name the states with states="
            )
        found[leaf] = left[-1]
    return found


def _lengths_refused(names: list[str]) -> Refused:
    return Refused(
        f"forward() takes lengths ({shorten(names)}): a stream has no padding, so export a module "
        "that calls it with full lengths, such as forward(self, x): return self.net(x, "
        "torch.full((x.shape[0],), x.shape[1])), and does not pack its sequences"
    )


def _changed_axis(whole: list[Result], other: list[Result] | None, number: int) -> int | None:
    """The axis of a result that is shorter by one in the other run. Raises _Unfit."""
    if other is None:
        return None
    left, right = whole[number].tensor.shape, other[number].tensor.shape
    changed = [a for a, (m, n) in enumerate(zip(left, right, strict=False)) if m != n]
    if len(left) != len(right) or len(changed) > 1 or any(left[a] != right[a] + 1 for a in changed):
        raise _Unfit(f"a result is {list(left)}, and {list(right)} for one less")
    return changed[0] if changed else None


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


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _dtype_name(tensor: torch.Tensor) -> Any:
    return "float32" if tensor.is_floating_point() else "int64"


def _tensor_name(path: str) -> str:
    """A name that a spec takes."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", path) or "y"
    return name if name[0].isalpha() or name[0] == "_" else f"layer{name}"
