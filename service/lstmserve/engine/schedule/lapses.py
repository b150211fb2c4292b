"""Owns what is not computed though its turn has come: nobody waits for it, or its time is over."""

from __future__ import annotations

import numpy as np

from lstmserve.engine.schedule.failures import Failures
from lstmserve.engine.schedule.numbering import Numbering
from lstmserve.engine.schedule.part import Part
from lstmserve.engine.schedule.queues import Entry
from lstmserve.engine.schedule.sequences import Sequences
from lstmserve.engine.schedule.step import Step
from lstmserve.errors import Cancelled, DeadlineExpired


class Lapses:
    """A step that somebody joined is computed for him, whoever else went away."""

    def __init__(self, numbering: Numbering, failures: Failures) -> None:
        self._numbering = numbering
        self._failures = failures

    def kept(self, entry: Entry, now_ns: int) -> Entry | None:
        """What is left of it; the rest has been told."""
        if isinstance(entry, Sequences):
            if not entry.is_cancelled:
                return entry
            self._failures.fail_sequences(entry, _gone())
            return None
        left: Step | Part | None
        if isinstance(entry, Part):
            deadline_ns = entry.block.deadline_ns
            left = self._wanted(entry, now_ns)
        else:
            deadline_ns = 0 if entry.done else entry.deadline_ns
            left = self._wanted_step(entry, now_ns)
        if left is None or not deadline_ns or now_ns <= deadline_ns:
            return left
        late = DeadlineExpired("the deadline passed before the step was computed")
        self._failures.fail(left, late, now_ns)
        return None

    def _wanted_step(self, step: Step, now_ns: int) -> Step | None:
        if not step.is_cancelled or self._numbering.is_followed(step.row):
            return step
        self._failures.fail(step, _gone(), now_ns)
        return None

    def _wanted(self, part: Part, now_ns: int) -> Part | None:
        block = part.block
        if not (block.is_cancelled or block.cancelled):
            return part
        is_gone = np.array(
            [
                (block.is_cancelled or index in block.cancelled)
                and not self._numbering.is_followed(row)
                for index, row in zip(part.indices.tolist(), part.rows.tolist(), strict=True)
            ]
        )
        if is_gone.any():
            self._failures.fail(Part(block, part.indices[is_gone]), _gone(), now_ns)
        return None if is_gone.all() else Part(block, part.indices[~is_gone])


def _gone() -> Cancelled:
    return Cancelled("the caller went away before the step was computed")
