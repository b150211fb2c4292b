"""Owns what is not computed though its turn has come: nobody waits for it, or its time is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Index
from lstmserve.engine.errors import Cancelled, DeadlineExpired, ServeError
from lstmserve.engine.schedule.failures import Failures
from lstmserve.engine.schedule.numbering import Numbering
from lstmserve.engine.schedule.part import Part
from lstmserve.engine.schedule.queues import Entry
from lstmserve.engine.schedule.step import Step


class Lapses:
    """A step that somebody joined is computed for him, whoever went away or gave it less time."""

    def __init__(self, numbering: Numbering, failures: Failures) -> None:
        self._numbering = numbering
        self._failures = failures

    def kept(self, entry: Entry, now_ns: int) -> Entry | None:
        """What is left of it; the rest has been told."""
        if isinstance(entry, Part):
            return self._kept_part(entry, now_ns)
        if isinstance(entry, Step):
            return self._kept_step(entry, now_ns)
        if not entry.is_cancelled:
            return entry
        self._failures.fail_sequences(entry, _gone())
        return None

    def _kept_step(self, step: Step, now_ns: int) -> Step | None:
        is_late = not step.done and _is_late(step.deadline_ns, now_ns)
        if not (step.is_cancelled or is_late) or self._numbering.is_followed(step.row):
            return step
        self._failures.fail(step, _gone() if step.is_cancelled else _late(), now_ns)
        return None

    def _kept_part(self, part: Part, now_ns: int) -> Part | None:
        block = part.block
        left: Part | None = part
        if block.is_cancelled or block.cancelled:
            gone = [block.is_cancelled or i in block.cancelled for i in part.indices.tolist()]
            left = self._without(part, gone, _gone(), now_ns)
        if left is not None and np.any(_is_late(block.deadline_ns, now_ns)):
            late = [_is_late(block.deadline_of(i), now_ns) for i in left.indices.tolist()]
            left = self._without(left, late, _late(), now_ns)
        return left

    def _without(
        self, part: Part, is_over: Sequence[Any], error: ServeError, now_ns: int
    ) -> Part | None:
        """The rows that are not over, or joined; the others have their error."""
        pairs = zip(is_over, part.rows.tolist(), strict=True)
        is_out = np.array([over and not self._numbering.is_followed(row) for over, row in pairs])
        if is_out.any():
            self._failures.fail(Part(part.block, part.indices[is_out]), error, now_ns)
        return None if is_out.all() else Part(part.block, part.indices[~is_out])


def _is_late(deadline_ns: int | Index, now_ns: int) -> bool | npt.NDArray[np.bool_]:
    if isinstance(deadline_ns, int):
        return 0 < deadline_ns < now_ns
    return (deadline_ns > 0) & (deadline_ns < now_ns)


def _late() -> DeadlineExpired:
    return DeadlineExpired("the deadline passed before the step was computed")


def _gone() -> Cancelled:
    return Cancelled("the caller went away before the step was computed")
