"""The module's own answers to windows: forward() on each window, in float32 and float64.

A sequence here is the W - 1 rows before, and the rows of its time steps. A session knows all rows
before, or only the last of them, as one that began later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Final

import numpy as np
import torch

from lstmserve.golden import Golden
from lstmserve.spec import KNOWN, MISSING, WINDOW
from lstmserve_export.arrays import Array
from lstmserve_export.module.proof.reference import (
    EXAMPLE_ROWS_MAX,
    Reference,
    Run,
    golden_of,
    width_of,
)
from lstmserve_export.refusal import Refused, described
from lstmserve_export.sequences import VALUE_COUNT_MAX, Lengths

CELLS_MAX: Final = 1 << 14  # rows of all windows of one run of forward()
LENGTHS: Final = (16, 12, 8, 6, 5, 3, 2, 1)  # time steps of random sequences
PROOF_CELLS_MAX: Final = 1 << 15  # rows of all their windows, which each server runs at its start
NEW_WINDOW_MAX: Final = 256  # rows of the longest window that new sessions fill row by row
WITH_ZEROS: Final = ", some with zeros in front, which --window-fill wait does without"
Place = tuple[int, int, int]  # rows of the window, sequence, time step


class WindowReference(Reference):
    """As Reference, for a signature with a window. Rows are [N, W - 1 + T, *shape], and lengths
    those of the time steps."""

    unusual_lengths: Sequence[int] = (4, 4, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1)

    @property
    def lengths(self) -> Lengths:
        window = self._signature.window
        count = max(2, VALUE_COUNT_MAX // (window * width_of(self._signature)))
        lengths = LENGTHS[:count]
        while len(lengths) * max(lengths) * window > PROOF_CELLS_MAX and max(lengths) > 1:
            lengths = tuple(max(1, length // 2) for length in lengths)
        return lengths

    @property
    def _before(self) -> int:
        return self._signature.window - 1

    def random(self, lengths: Sequence[int]) -> dict[str, Array]:
        """Random rows like the example's, with those before. An input that forward() takes once has
        another value in each of them."""
        found = super().random([self._before + length for length in lengths])
        for each in self._signature.inputs:
            if each.axes.time is None:
                rows = found[each.spec.name]
                n, t = np.indices(rows.shape[:2])
                found[each.spec.name] = rows[(n + t) % len(rows), t]
        return found

    def example(self) -> dict[str, Array]:
        """The example's rows, at most EXAMPLE_ROWS_MAX time steps of them. Where the example is
        shorter than a window, nothing came before."""
        found = {
            each.spec.name: each.axes.to_rows(self._single.example[each.name])
            for each in self._signature.inputs
        }
        length = self._example_length
        steps = min(length - self._before if length > self._before else length, EXAMPLE_ROWS_MAX)
        size = max(1, EXAMPLE_ROWS_MAX // steps)
        wanted = self._before + steps
        rows = {}
        for name, tensor in found.items():
            whole = tensor[:size].expand(-1, length, *tensor.shape[2:])[:, :wanted].numpy()
            lead = np.zeros((len(whole), wanted - whole.shape[1], *whole.shape[2:]), whole.dtype)
            rows[name] = np.concatenate([lead, whole], axis=1)
        return rows

    def example_case(self) -> Golden:
        """The golden case of the example's windows."""
        rows = self.example()
        count, length = next(iter(rows.values())).shape[:2]
        is_whole = self._example_length > self._before
        known = np.full(count, self._before if is_whole else 0)
        return self._case(rows, np.full(count, length - self._before), known)

    def new_sessions(self) -> Golden | None:
        """Two sequences of which nothing came before, until their windows are whole and one row
        more. None where that takes long."""
        if self._before >= NEW_WINDOW_MAX:
            return None
        lengths = np.array([self._before + 2, self._before + 1])
        found = self._case(self.random([int(n) for n in lengths]), lengths, np.zeros(2, np.int64))
        return replace(found, initial=None)

    def case(self, inputs: dict[str, Array], lengths: Array) -> Golden:
        """As Reference.case(): sequences in turn know all rows before, none, or some."""
        return self._case(inputs, lengths, self._turns(len(lengths)))

    @property
    def _example_length(self) -> int:
        example, inputs = self._single.example, self._signature.inputs
        return max(each.axes.to_rows(example[each.name]).shape[1] for each in inputs)

    def _turns(self, count: int) -> Array:
        """How many of the rows before each of `count` sequences knows."""
        most = self._before
        turns = (most, 0, most, most - 1, most, most // 2, most, min(1, most))
        return np.resize(np.array(turns, np.int64), count)

    def _case(self, rows: dict[str, Array], lengths: Array, known: Array) -> Golden:
        """Raises Refused where forward() fails on the windows."""
        try:
            single = self._windows(self._single, rows, lengths, known)
            exact = single
            if self._double is not None:
                exact = self._windows(self._double, rows, lengths, known)
        except Exception as error:  # the user's code may raise anything
            raise Refused(
                f"forward() fails on windows of {self._signature.window} rows: {described(error)}"
            ) from error
        if not all(np.isfinite(value).all() for value in (*single.values(), *exact.values())):
            raise Refused(
                f"forward() gives NaN or infinite values for windows of {self._signature.window} "
                f"rows{WITH_ZEROS if self._signature.window_fill == 'zeros' else ''}"
            )
        return self._window_golden(golden_of(rows, lengths, single, exact), known)

    def _golden(
        self,
        inputs: dict[str, Array],
        lengths: Array,
        single: dict[str, Array],
        exact: dict[str, Array],
    ) -> Golden:
        known = self._turns(len(lengths))
        return self._window_golden(golden_of(inputs, lengths, single, exact), known)

    def _window_golden(self, found: Golden, known: Array) -> Golden:
        """The case with the rows before in its initial states."""
        before, fill = self._before, self._signature.window_fill
        rows = self._remembered(found.inputs, known)
        initial = {name + WINDOW: each[:, :before].copy() for name, each in rows.items()}
        outputs = dict(found.outputs)
        if fill != "zeros":
            initial[KNOWN] = known
        if fill == "wait":
            steps = np.arange(next(iter(rows.values())).shape[1] - before)
            outputs[MISSING] = np.maximum(before - known[:, None] - steps, 0)
        inputs = {name: each[:, before:].copy() for name, each in rows.items()}
        return replace(found, inputs=inputs, initial=initial, outputs=outputs)

    def _remembered(self, rows: Any, known: Array) -> dict[str, Array]:
        """The rows with zeros for those before that are not known."""
        is_gone = np.arange(self._before) < (self._before - known)[:, None]
        found = {}
        for name, each in rows.items():
            found[name] = each.copy()
            found[name][:, : self._before][is_gone] = 0
        return found

    def _steps(
        self, run: Run, inputs: dict[str, Array], lengths: Array, is_alone: bool = False
    ) -> dict[str, Array]:
        return self._windows(run, inputs, lengths, self._turns(len(lengths)), is_alone)

    def _windows(
        self,
        run: Run,
        rows: dict[str, Array],
        lengths: Array,
        known: Array,
        is_alone: bool = False,
    ) -> dict[str, Array]:
        """Outputs [N, T, *shape] of each window; zeros past a length and where a step waits."""
        count, steps = len(lengths), int(max(lengths))
        found: dict[str, Array] = {}
        for output in self._signature.outputs:
            dtype: Any = np.float64 if output.spec.dtype == "float32" else np.int64
            found[output.spec.name] = np.zeros((count, steps, *output.spec.shape), dtype)
        whole = self._remembered(rows, known)
        for some in self._runs(lengths, known, is_alone):
            windows = {
                name: torch.from_numpy(
                    np.stack([each[n, t + self._before + 1 - size :][:size] for size, n, t in some])
                )
                for name, each in whole.items()
            }
            _, sequences, times = zip(*some, strict=True)
            for name, answer in self._signature.answer_window(run, windows).items():
                found[name][list(sequences), list(times)] = answer.numpy()
        return found

    def _runs(self, lengths: Array, known: Array, is_alone: bool) -> Iterator[list[Place]]:
        """The windows that have an answer, as many at a time as forward() runs at once."""
        window, fill = self._signature.window, self._signature.window_fill
        places = []
        for n, length in enumerate(lengths):
            for t in range(int(length)):
                given = min(int(known[n]) + t + 1, window)
                if given == window or fill != "wait":
                    places.append((given if fill == "grow" else window, n, t))
        size = 1 if is_alone else max(1, CELLS_MAX // window)
        for _, group in groupby(sorted(places), key=lambda place: place[0]):
            alike = list(group)
            yield from (alike[i : i + size] for i in range(0, len(alike), size))
