"""Finds the axes of batch and time by running the module on inputs of changed sizes.

The axis of the batch is the one along which rows do not influence each other, and the axis of time
is the one that makes the recurrent layers go on.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from lstmserve.spec import Dtype, TensorSpec
from lstmserve_export.module.forward import (
    LAYOUTS,
    Axes,
    Forward,
    Result,
    Tensors,
)
from lstmserve_export.module.places import place
from lstmserve_export.module.recurrent import Call, find_layers, kind_of, watched
from lstmserve_export.module.signature.sampler import SIZE, Sampler
from lstmserve_export.module.signature.signature import Output
from lstmserve_export.refusal import Refused, described, shorten

LENGTH: Final = 4  # time steps
MIXED: Final = "rows of the batch influence each other"
RELATIVE, ABSOLUTE = 2e-5, 1e-5


class Unfit(Exception):
    """A layout does not fit the module; the message says what happened."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The axes of each input, and the axis of the batch in each passed state, by argument."""

    axes: Mapping[str, Axes]
    batches: Mapping[str, int]
    primary: str

    @property
    def main(self) -> Axes:
        """The axes of the first input."""
        return self.axes[self.primary]

    def arguments(self, rows: Tensors, states: Tensors) -> dict[str, torch.Tensor]:
        """Forward's tensors from rows [B, T, *shape] and states [B, *shape]."""
        found = {name: axes.from_rows(rows[name]) for name, axes in self.axes.items()}
        return found | {n: states[n].movedim(0, batch) for n, batch in self.batches.items()}


class LayoutSearch:
    """Tries the layouts that the example's sizes allow. `passed` are the states by argument."""

    def __init__(self, forward: Forward, passed: Sequence[str], axes: Axes | None) -> None:
        """Raises Refused where no argument is an input."""
        self.forward = forward
        self.layers = find_layers(forward.module)
        self.passed = tuple(passed)
        self.names = [name for name in forward.example if name not in passed]
        if not self.names:
            raise Refused("every argument of forward() is a state: name the states with states=")
        self.primary = max(self.names, key=lambda name: forward.example[name].dim())
        self.given = axes

    def choose(self) -> tuple[Layout, list[Output]]:
        """The first layout that fits, with every result as an output. Raises Refused."""
        faults: dict[str, str] = {}
        for layout in self._layouts():
            name = next(n for n, e in LAYOUTS.items() if e == layout.main)
            try:
                return layout, self._try(layout)
            except Unfit as error:
                faults.setdefault(name, str(error))
        self._check_fixed_sizes()
        self._check_one_step()
        if any(MIXED in fault for fault in faults.values()):
            raise self._mixed()
        tried = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
        raise Refused(
            f"the axes of {self.primary} {list(self.forward.example[self.primary].shape)} are not "
            f"clear ({tried}); give an example with a batch and several time steps, or axes="
        )

    def _layouts(self) -> Iterator[Layout]:
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
                    yield Layout(
                        ordered, dict(zip(self.passed, batches, strict=True)), self.primary
                    )

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

    def _try(self, layout: Layout) -> list[Output]:
        """Every result as an output with its axes. Raises Unfit."""
        sampler = Sampler(self.forward.example, layout.axes)
        main = layout.main
        rows = sampler.rows(SIZE, LENGTH if main.time is not None else 1)
        states = sampler.states(SIZE, self.state_specs(layout))
        if main.time is None and self.layers and not self.passed:
            raise Unfit(
                "without an axis of time a second step needs a state, as in forward(x, state) -> "
                "(y, state)"
            )
        self.forward.squeezed.clear()  # the next run enters them, and has no other axis of length 1
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
                raise Unfit("the recurrent layers do not go on along this axis of time")
        outputs = [
            self._output(number, whole, by_batch, by_time, is_unbatched=main.batch is None)
            for number in range(len(whole))
        ]
        if by_batch is not None:
            self._check_batch(outputs, whole, by_batch)
        return outputs

    def _check_batch(self, outputs: list[Output], whole: list[Result], fewer: list[Result]) -> None:
        """Raises Unfit unless the results without the first row of the batch are the others'."""
        for output, result in zip(outputs, whole, strict=True):
            left = output.axes.to_rows(result.tensor)[1:].float()
            right = output.axes.to_rows(fewer[output.result].tensor).float()
            if not torch.allclose(left, right, RELATIVE, ABSOLUTE, equal_nan=True):
                raise Unfit(MIXED)

    def _run(self, layout: Layout, rows: Tensors, states: Tensors) -> tuple[list[Result], int]:
        """The results, and the time steps that the recurrent layers made in all their calls."""
        try:
            with watched(self.layers) as calls:
                results = self.forward(layout.arguments(rows, states))
        except Exception as error:  # the user's code may raise anything
            raise Unfit(described(error)) from error
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
            raise Unfit(
                f"{label} {list(tensor.shape)} has no axis of the batch, such as a loss: leave it "
                "out of what forward() returns"
            )
        if is_unbatched and time is None:
            raise Unfit(f"{label} {list(tensor.shape)} has no axis of time")
        axes = Axes(batch, time)
        shape = tuple(axes.to_rows(tensor).shape[2:])
        return Output(TensorSpec(f"result{number}", shape, dtype_name(tensor)), number, axes)

    def _likely_axes(self) -> Axes | None:
        """The axes of the first input by its recurrent layers; None where it may have no time."""
        tensor = self.forward.example[self.primary]
        if self.given is None and tensor.dim() == 2 and tensor.is_floating_point():
            return None  # its second axis may be that of features
        is_batch_first = all(getattr(each, "batch_first", True) for each in self.layers.values())
        main = self.given or LAYOUTS["BT" if is_batch_first else "TB"]
        return None if main.time is None or tensor.dim() <= main.time else main

    def _check_fixed_sizes(self) -> None:
        """Raises Refused if forward() takes the example's number of time steps, or of rows in a
        batch, and no other."""
        tensor, main = self.forward.example[self.primary], self._likely_axes()
        if main is None or main.time is None:
            return
        length = tensor.shape[main.time]
        if length > 1 and (fault := self._fault_of_fewer(main.time)):
            raise Refused(
                f"forward() takes {length} time steps and no other number{fault}: a layer reads "
                "all of them at once, so it cannot answer row by row; train a head that reads one "
                f"time step, or export it with a window (--window {length})"
            )
        count = 1 if main.batch is None else tensor.shape[main.batch]
        if main.batch is not None and count > 1 and (fault := self._fault_of_fewer(main.batch)):
            raise Refused(
                f"forward() takes a batch of {count} rows and no other{fault}: take the size from "
                "the input, as x.shape[0], and use -1 or x.new_zeros"
            )

    def _check_one_step(self) -> None:
        """Raises Refused if forward() takes a sequence, but not its first time step alone."""
        tensor, main = self.forward.example[self.primary], self._likely_axes()
        if main is None or main.time is None:
            return
        length = tensor.shape[main.time]
        first = {
            name: each.narrow(main.time, 0, 1)
            for name, each in self.forward.example.items()
            if each.dim() > main.time and each.shape[main.time] == length
        }
        try:
            self.forward({**self.forward.example, **first})
        except Exception as error:  # the user's code may raise anything
            raise fails_on(1, error, self.forward.module) from error

    def _fault_of_fewer(self, axis: int) -> str:
        """Where and how forward() fails if every tensor has one entry less along this axis."""
        size = self.forward.example[self.primary].shape[axis]
        fewer = {
            name: tensor.narrow(axis, 1, size - 1)
            for name, tensor in self.forward.example.items()
            if tensor.dim() > axis and tensor.shape[axis] == size
        }
        try:
            self.forward({**self.forward.example, **fewer})
        except Exception as error:  # the user's code may raise anything
            return f"{place(error, self.forward.module)} ({described(error)})"
        return ""

    def _mixed(self) -> Refused:
        """Says which layer makes rows of a batch influence each other."""
        layers = [
            f"{path} ({type(each).__name__})"
            for path, each in self.forward.module.named_modules()
            if isinstance(each, nn.modules.batchnorm._BatchNorm)
            and (each.training or not each.track_running_stats)
        ]
        if layers:
            return Refused(
                f"{shorten(layers)} normalises by the statistics of a batch, whose rows are of "
                "different sessions on a server: train it with track_running_stats=True"
            )
        return Refused(
            "rows of a batch influence each other, and on a server they belong to different "
            "sessions: compute each row from itself, without mean, max or sort over the batch"
        )

    def watch(
        self, layout: Layout, sampler: Sampler, length: int
    ) -> tuple[list[Result], list[Call]]:
        """The results of random rows, and the recurrent calls. Raises what forward() raises."""
        rows = sampler.rows(SIZE, length)
        states = sampler.states(SIZE, self.state_specs(layout))
        with watched(self.layers) as calls:
            return self.forward(layout.arguments(rows, states)), calls

    def state_specs(self, layout: Layout) -> dict[str, TensorSpec]:
        """The passed states by argument, with the argument's name."""
        return {n: self._state_spec(n, batch) for n, batch in layout.batches.items()}

    def _state_spec(self, name: str, batch: int) -> TensorSpec:
        tensor = self.forward.example[name]
        shape = tuple(size for axis, size in enumerate(tensor.shape) if axis != batch)
        return TensorSpec(self._state_name(name), shape, dtype_name(tensor))

    def _state_name(self, name: str) -> str:
        """The argument's name; the two tensors of a pair that an LSTM takes are its h and c."""
        argument, _, key = name.partition(".")
        pair = [f"{argument}.0", f"{argument}.1"]
        has_lstm = any(kind_of(each) == "lstm" for each in self.layers.values())
        if self.forward.arguments()[argument] == pair and has_lstm:
            return tensor_name(f"{argument}.{'hc'[int(key)]}")
        return tensor_name(name)


def fails_on(length: int, error: Exception, module: nn.Module) -> Refused:
    """Says that forward() fails on so few time steps."""
    steps = "one time step" if length == 1 else f"{length} time steps"
    return Refused(
        f"forward() fails on {steps}{place(error, module)} ({described(error)}), and a stream "
        "brings one row at a time: something reads several rows at once; take the rows before as "
        "an argument of forward() and return them, or export the module with a window (--window W)"
    )


def _changed_axis(whole: list[Result], other: list[Result] | None, number: int) -> int | None:
    """The axis of a result that is shorter by one in the other run. Raises Unfit."""
    if other is None:
        return None
    left, right = whole[number].tensor.shape, other[number].tensor.shape
    changed = [a for a, (m, n) in enumerate(zip(left, right, strict=False)) if m != n]
    if len(left) != len(right) or len(changed) > 1 or any(left[a] != right[a] + 1 for a in changed):
        raise Unfit(
            f"a result is {list(left)}, and {list(right)} for one less, must be [B, T, ...] or "
            "[B, ...]"
        )
    return changed[0] if changed else None


def dtype_name(tensor: torch.Tensor) -> Dtype:
    """The dtype that a spec gives a tensor of forward's."""
    return "float32" if tensor.is_floating_point() else "int64"


def tensor_name(path: str) -> str:
    """A name that a spec takes."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", path) or "y"
    return name if name[0].isalpha() or name[0] == "_" else f"layer{name}"
