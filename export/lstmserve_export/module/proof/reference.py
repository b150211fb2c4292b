"""The module's own answers: forward() on every prefix or window, in float32 and float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch

from lstmserve.golden import Golden, torch_error_max
from lstmserve_export.arrays import Array
from lstmserve_export.module.forward import Forward, Result, Tensors
from lstmserve_export.module.signature.sampler import Sampler
from lstmserve_export.module.signature.signature import Signature
from lstmserve_export.refusal import Refused, described
from lstmserve_export.sequences import SEED, Lengths, lengths_for

EXAMPLE_ROWS_MAX: Final = 256
UNUSUAL_LENGTHS: Final = (12, 12, 11, 10, 9, 8, 7, 6, 6, 5, 5, 4, 3, 3, 2, 1)
Run = Callable[[Tensors], list[Result]]


class Reference:
    """Answers by running forward() on each prefix of a sequence, so that nothing is carried over.

    Where forward() takes one time step at a time, its states go from call to call.
    """

    unusual_lengths: Sequence[int] = UNUSUAL_LENGTHS  # of sequences that it sees one at a time

    def __init__(self, forward: Forward, signature: Signature) -> None:
        self._signature = signature
        self._single = forward
        self._double: Run | None = None
        try:
            self._double = forward.as_double()
            self._steps(self._double, self.random((2, 1)), np.array([2, 1]))
        except Exception:  # the user's code may insist on float32
            self._double = None

    @property
    def lengths(self) -> Lengths:
        """Time steps of the random sequences."""
        return lengths_for(width_of(self._signature))

    @property
    def has_double(self) -> bool:
        """Whether the module also runs in float64, so that torch's own error is known."""
        return self._double is not None

    def random(self, lengths: Sequence[int]) -> dict[str, Array]:
        """Random rows like the example's: name of an input -> [N, T, *shape]."""
        signature = self._signature
        axes = {each.name: each.axes for each in signature.inputs}
        sampler = Sampler(self._single.example, axes, SEED + sum(lengths))
        rows = sampler.rows(len(lengths), max(lengths))
        return {e.spec.name: rows[e.name].contiguous().numpy() for e in signature.inputs}

    def example(self) -> dict[str, Array]:
        """The example's rows [N, T, *shape], at most EXAMPLE_ROWS_MAX of them."""
        found, length = {}, 1
        for each in self._signature.inputs:
            rows = each.axes.to_rows(self._single.example[each.name])
            length = max(length, rows.shape[1])
            found[each.spec.name] = rows
        size = max(1, min(next(iter(found.values())).shape[0], EXAMPLE_ROWS_MAX // length))
        length = min(length, EXAMPLE_ROWS_MAX)
        return {
            name: rows[:size]
            .expand(size, max(rows.shape[1], length), *rows.shape[2:])[:, :length]
            .contiguous()
            .numpy()
            for name, rows in found.items()
        }

    def case(self, inputs: dict[str, Array], lengths: Array) -> Golden:
        """The golden case of these rows. Raises Refused where forward() fails on them."""
        single = self._answers(self._single, inputs, lengths)
        exact = single if self._double is None else self._answers(self._double, inputs, lengths)
        return self._golden(inputs, lengths, single, exact)

    def example_case(self) -> Golden:
        """The golden case of the example. Raises Refused where forward() fails on its rows."""
        rows = self.example()
        count, length = next(iter(rows.values())).shape[:2]
        return self.case(rows, np.full(count, length))

    def new_sessions(self) -> Golden | None:
        """A case of sessions that begin; None where every case has them."""
        return None

    def alone(self, inputs: dict[str, Array], lengths: Array) -> Golden | None:
        """As case(), but forward() sees one sequence at a time. None where its answers are not
        finite, or rounding decides about them. Integers are left out where there are floats: rows
        unlike those of training make ties. Raises what forward() raises."""
        single = self._steps(self._single, inputs, lengths, is_alone=True)
        exact = self._steps(self._double or self._single, inputs, lengths, is_alone=True)
        is_known = all(
            np.isfinite(v).all() if v.dtype.kind == "f" else np.array_equal(v, exact[n])
            for n, v in single.items()
        )
        found = self._golden(inputs, lengths, single, exact)
        kept = {n: v for n, v in found.outputs.items() if v.dtype.kind == "f"}
        if not (is_known and is_clear(found)):
            return None
        return replace(found, outputs=kept or found.outputs)

    def last(self, inputs: dict[str, Array]) -> Golden:
        """The case of the last time step of one sequence. Raises what forward() raises."""
        steps = next(iter(inputs.values())).shape[1]
        rows = {name: torch.from_numpy(value) for name, value in inputs.items()}
        found = []
        for run in (self._single, self._double or self._single):
            results = run(self._signature.arguments(rows, self._signature.starts(1)))
            answers = self._signature.last(results)
            found.append({n: v.numpy().astype(_wide(v.numpy())) for n, v in answers.items()})
        return golden_of(inputs, np.array([steps]), *found, last_only=True)

    def _golden(
        self,
        inputs: dict[str, Array],
        lengths: Array,
        single: dict[str, Array],
        exact: dict[str, Array],
    ) -> Golden:
        return golden_of(inputs, lengths, single, exact)

    def _answers(self, run: Run, inputs: dict[str, Array], lengths: Array) -> dict[str, Array]:
        try:
            return self._steps(run, inputs, lengths)
        except Exception as error:  # the user's code may raise anything
            raise Refused(
                f"forward() fails on {max(lengths)} time steps: {described(error)}"
            ) from error

    def _steps(
        self, run: Run, inputs: dict[str, Array], lengths: Array, is_alone: bool = False
    ) -> dict[str, Array]:
        """Outputs [N, T, *shape] of the last time step of each prefix; zeros past a length."""
        signature = self._signature
        found: dict[str, Array] = {}
        rows = {name: torch.from_numpy(value) for name, value in inputs.items()}
        count, steps = len(lengths), int(max(lengths))
        for output in signature.outputs:
            dtype: Any = np.float64 if output.spec.dtype == "float32" else np.int64
            found[output.spec.name] = np.zeros((count, steps, *output.spec.shape), dtype)
        states = signature.starts(count)
        is_alone = is_alone or signature.inputs[0].axes.batch is None
        sizes = [1] * count if is_alone else [count]
        for t in range(steps):
            first = 0 if signature.has_time else t
            part = {name: each[:, first : t + 1] for name, each in rows.items()}
            start, after = 0, []
            for size in sizes:
                some = slice(start, start + size)
                start += size
                taken = {name: each[some] for name, each in part.items()}
                given = {name: each[some] for name, each in states.items()}
                results = run(signature.arguments(taken, given))
                for name, answer in signature.last(results).items():
                    found[name][some, t] = answer.numpy()
                after.append(signature.after(results))
            if not signature.has_time:
                states = {name: torch.cat([each[name] for each in after]) for name in states}
        past = np.arange(steps) >= np.asarray(lengths)[:, None]
        for value in found.values():
            value[past] = 0
        return found


def golden_of(
    inputs: dict[str, Array],
    lengths: Array,
    single: dict[str, Array],
    exact: dict[str, Array],
    *,
    last_only: bool = False,
) -> Golden:
    """The case of answers in float32 and in float64; integers are those of float32."""
    error = 0.0
    for name, value in single.items():
        if value.dtype.kind == "f":
            error = max(error, float(np.abs(value - exact[name]).max(initial=0)))
    outputs = {n: v if v.dtype.kind == "f" else single[n] for n, v in exact.items()}
    return Golden(inputs, np.asarray(lengths, np.int32), None, outputs, {}, error, last_only)


def _wide(answer: Array) -> Any:
    return np.float64 if answer.dtype.kind == "f" else np.int64


def is_clear(case: Golden) -> bool:
    """Whether torch's float32 is close enough to its float64 for the answers to mean something."""
    floats = [each for each in case.outputs.values() if each.dtype.kind == "f"]
    return case.torch_error <= torch_error_max(*floats)


def width_of(signature: Signature) -> int:
    """The values of a row and of its answer."""
    inputs = sum(each.spec.size for each in signature.inputs)
    return inputs + sum(each.spec.size for each in signature.outputs)
