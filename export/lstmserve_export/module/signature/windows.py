"""Finds the axes of batch and time of a module that reads windows of a known number of rows.

The axis of the batch is the one along which rows do not influence each other, as for a stream. The
axis of time need not make recurrent layers go on: it is one along which the module takes as many
rows as a window has, and along which the earlier rows have a part in the last answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch

from lstmserve_export.module.forward import LAYOUTS, Axes, Forward, Result, Tensors
from lstmserve_export.module.signature.layout import MIXED, Layout, LayoutSearch, Unfit
from lstmserve_export.module.signature.sampler import SIZE, Sampler
from lstmserve_export.module.signature.signature import Output
from lstmserve_export.refusal import Refused

TRIES: Final = 3  # the earlier rows may have no part in an answer by chance
UNBATCHED: Final = "forward() takes one sequence without a batch"
ALONE: Final = "the earlier rows of a window have no part in the answer"


class WindowSearch(LayoutSearch):
    """Tries the layouts that the example's sizes allow, on windows of `window` rows."""

    def __init__(
        self, forward: Forward, passed: Sequence[str], axes: Axes | None, window: int
    ) -> None:
        super().__init__(forward, passed, axes)
        self._window = window

    def choose(self) -> tuple[Layout, list[Output]]:
        """The layout that fits, with every result as an output. Raises Refused."""
        found, faults = self._fits()
        if len(found) == 1:
            (only,) = found.values()
            return only
        raise self._several(list(found)) if found else self._none(faults)

    def _fits(self) -> tuple[dict[str, tuple[Layout, list[Output]]], dict[str, str]]:
        """The layouts that fit, by the names in LAYOUTS, and the faults of the others. One along
        which recurrent layers go on is the only one."""
        faults: dict[str, str] = {}
        found: dict[str, tuple[Layout, list[Output]]] = {}
        for layout in self._layouts():
            name = next(n for n, e in LAYOUTS.items() if e == layout.main)
            if name in found:
                continue
            try:
                outputs, goes_on = self._try_window(layout)
            except Unfit as error:
                faults.setdefault(name, str(error))
                continue
            found[name] = layout, outputs
            if goes_on:
                return {name: found[name]}, faults
        return found, faults

    def _try_window(self, layout: Layout) -> tuple[list[Output], bool]:
        """Every result as an output with its axes, and whether recurrent layers run more steps
        along the axis of time. Raises Unfit."""
        main, window = layout.main, self._window
        if main.batch is None:
            self._run(layout, Sampler(self.forward.example, layout.axes).rows(1, window), {})
            raise Unfit(UNBATCHED)
        if main.time is None and not self.passed:
            raise Unfit("without an axis of time a second step needs a state")
        sampler = Sampler(self.forward.example, layout.axes)
        rows = sampler.rows(SIZE, window if main.time is not None else 1)
        states = sampler.states(SIZE, self.state_specs(layout))
        self.forward.squeezed.clear()  # the next run enters them, and has no other axis of length 1
        whole, steps = self._run(layout, rows, states)
        fewer, fewer_states = ({n: e[1:] for n, e in each.items()} for each in (rows, states))
        by_batch, _ = self._run(layout, fewer, fewer_states)
        by_time, short_steps = self._shorter(layout, rows, states)
        outputs = [
            _whole_answer(
                self._output(number, whole, by_batch, by_time, is_unbatched=False), result, main
            )
            for number, result in enumerate(whole)
        ]
        self._check_batch(outputs, whole, by_batch)
        if main.time is not None:
            if by_time is None:
                for output in outputs:
                    self._check_fixed(output, whole[output.result], main.time)
            self._check_influence(layout, outputs, rows, states)
        return outputs, by_time is not None and bool(self.layers) and steps > short_steps

    def _shorter(
        self, layout: Layout, rows: Tensors, states: Tensors
    ) -> tuple[list[Result] | None, int]:
        """The results for one row less; None where forward() takes whole windows alone."""
        if layout.main.time is None:
            return None, 0
        try:
            return self._run(layout, {name: each[:, 1:] for name, each in rows.items()}, states)
        except Unfit:
            return None, 0

    def _check_fixed(self, output: Output, result: Result, time: int) -> None:
        """Raises Refused where a result may be one row or a row for each of the window's, since
        forward() takes no other number of rows that would tell."""
        shape = list(result.tensor.shape)
        if len(shape) > time and shape[time] == self._window:
            raise Refused(
                f"forward() takes {self._window} rows and no other number, and its result "
                f"{result.path or 'y'} {shape} may be an answer for each of them or one answer of "
                "that size: return y[:, -1] for the last one, or y[:, None] for all as one"
            )

    def _check_influence(
        self, layout: Layout, outputs: list[Output], rows: Tensors, states: Tensors
    ) -> None:
        """Raises Unfit where no answer depends on the rows before the last."""
        if all(output.spec.dtype != "float32" for output in outputs):
            return  # a class may be the same for all these rows
        first, _ = self._run(layout, rows, states)
        for attempt in range(TRIES):
            other = Sampler(self.forward.example, layout.axes, attempt).rows(SIZE, self._window)
            changed = {
                name: each
                if layout.axes[name].time is None
                else torch.cat([other[name][:, :-1], each[:, -1:]], 1)
                for name, each in rows.items()
            }
            second, _ = self._run(layout, changed, states)
            for output in outputs:
                one, two = (
                    output.axes.to_rows(each[output.result].tensor)[:, -1]
                    for each in (first, second)
                )
                if not torch.equal(one, two):
                    return
        raise Unfit(ALONE)

    def _several(self, names: list[str]) -> Refused:
        shape = list(self.forward.example[self.primary].shape)
        return Refused(
            f"the axes of {self.primary} {shape} are not clear: {' and '.join(names)} fit windows "
            f"of {self._window} rows; say which with axes="
        )

    def _none(self, faults: dict[str, str]) -> Refused:
        """Why no layout fits."""
        tensor = self.forward.example[self.primary]
        if any(MIXED in fault for fault in faults.values()):
            return self._mixed()
        if ALONE in faults.values():
            return Refused(
                f"{ALONE}, so the module needs no window: export it without one if it has a state "
                "(states=), and use Triton or ONNX Runtime otherwise"
            )
        shape = list(tensor.shape)
        if (length := self._length_that_fits()) is not None:
            fault = next(iter(faults.values()), "its axes are not clear")
            return Refused(
                f"forward() fails on windows of {self._window} rows ({fault}), and takes the "
                f"{length} of the example: give the number that it was trained on, as --window "
                f"{length}"
            )
        if UNBATCHED in faults.values():
            return Refused(
                f"{UNBATCHED}, and the server runs the windows of many sessions at once: export a "
                "module whose forward() takes x [B, T, F]"
            )
        tried = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
        return Refused(
            f"the axes of {self.primary} {shape} are not clear for windows of {self._window} rows "
            f"({tried}); give an example with a batch of whole windows, or axes="
        )

    def _length_that_fits(self) -> int | None:
        """The example's number of rows, if forward() takes windows of that many."""
        shape = self.forward.example[self.primary].shape
        for axes in [self.given] if self.given else LAYOUTS.values():
            if axes.batch is None or axes.time is None or len(shape) <= axes.time:
                continue
            length = shape[axes.time]
            if length != self._window and length > 1:
                other = WindowSearch(self.forward, self.passed, axes, length)
                if other._fits()[0]:
                    return length
        return None


def _whole_answer(output: Output, result: Result, main: Axes) -> Output:
    """The output of a[:, None], [B, 1, W], is all of it, though it has as many values as rows."""
    shape = result.tensor.shape
    if output.axes != Axes(0, 2) or main.time == 2 or shape[1] != 1:
        return output
    spec = replace(output.spec, shape=tuple(shape[1:]))
    return replace(output, spec=spec, axes=Axes(0, None))


def check_alike(outputs: Sequence[Output], paths: Sequence[str], window: int) -> None:
    """Raises Refused where some results are of the last row alone, and others have a row for each:
    the weights of an attention, as many as the window has rows, would lose all but one."""
    if all(output.axes.time is None for output in outputs):
        return
    if all(output.axes.time is not None for output in outputs):
        return
    every = next(output for output in outputs if output.axes.time is not None)
    raise Refused(
        f"the result {paths[every.result] or every.result} of forward() has {window} rows for a "
        f"window of {window}, and others have an answer for the last row alone: return its last "
        "row, as a[:, -1], or a[:, None] for all of it as one"
    )
