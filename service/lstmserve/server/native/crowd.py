"""Owns the single steps that have arrived together: those that can run at once become columns.

A step of one row, of a session that is here and idle, is checked and submitted with the others,
and all are answered together: a fifth of the work of one after the other. What is not so simple,
or not good, goes to the engine singly, where it has its own error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lstmserve.engine import Engine, Model
from lstmserve.engine.arrays import Index, Input
from lstmserve.engine.errors import ServeError
from lstmserve.engine.schedule.block import Block
from lstmserve.engine.table import OPEN
from lstmserve.server.codec import FLOAT, is_finite
from lstmserve.server.native.single import Single
from lstmserve.server.native.steps import Steps


class Message(Single, Protocol):
    """A Single that is still bytes."""

    def read(self) -> bool:
        """Reads it; whether it is to be submitted. What is wrong with it is its answer."""


FEW = 4  # of so many columns cost no less than one after the other


class Crowd:
    """What arrives at one port."""

    def __init__(self, engine: Engine, steps: Steps) -> None:
        self._engine = engine
        self._steps = steps

    def read(self, messages: Sequence[Message]) -> None:
        """What has arrived together."""
        self.submit([message for message in messages if message.read()])

    def submit(self, singles: Sequence[Single]) -> None:
        """All of them; of each session in the order of arrival."""
        others: Sequence[Single] = singles
        if len(singles) > FEW and not self._engine.lifecycle.has_store:
            plain, others = self._sort_out(singles)
            for group in plain.values():
                others = [*self._submit_group(group), *others]
        for single in others:
            single.submit()

    def _sort_out(
        self, singles: Sequence[Single]
    ) -> tuple[dict[tuple[int, bool], _Group], list[Single]]:
        """The first plain step of each session, by model and whether numbered; and the others."""
        table, now_ns = self._engine.table, self._engine.monotonic_ns()
        plain: dict[tuple[int, bool], _Group] = {}
        others = []
        seen: set[int] = set()
        for single in singles:
            row = table.find(single.tenant.prefix + single.session_id)
            if row is None or row in seen or not self._is_plain(single, row, now_ns):
                others.append(single)
            else:
                key = table.model.item(row), single.request.HasField("step")
                if key not in plain:
                    plain[key] = _Group(self._engine.models[key[0]], is_numbered=key[1])
                plain[key].add(row, single)
            if row is not None:
                seen.add(row)
        return plain, others

    def _is_plain(self, single: Single, row: int, now_ns: int) -> bool:
        """Whether it is the next step of an open, idle session, the one that its client means,
        and one row of the model's size: another's would part the crowd.

        One by one: below about a hundred steps that costs less than the two dozen calls of numpy
        that it takes as columns.
        """
        request, table = single.request, self._engine.table
        if request.last_only or request.timeout_ms or request.tokens or single.tenant.is_limited:
            return False
        told, is_numbered = request.incarnation, request.HasField("step")
        spec = self._engine.models[table.model.item(row)].spec
        return (
            0 <= request.length <= 1
            and len(request.x) == 4 * spec.input_size
            and not spec.num_embeddings
            and table.phase.item(row) == OPEN
            and not table.pending.item(row)
            and table.expiry_ns.item(row) > now_ns
            and (told == table.incarnation.item(row) or not (told or is_numbered))
            and (not is_numbered or request.step == table.step.item(row) + 1)
        )

    def _submit_group(self, group: _Group) -> list[Single]:
        """The good ones as a block; the others come back."""
        x = group.input()
        bad: list[Single] = []
        if not is_finite(x):
            is_good = np.array([is_finite(row) for row in x])
            bad = group.keep(is_good)
            x = x[is_good]
        if group.singles:
            self._submit_block(group, x)
        return bad

    def _submit_block(self, group: _Group, x: Input) -> None:
        singles, count = group.singles, len(group.singles)
        places = np.arange(count)
        block = Block(
            np.array(group.rows, np.int64),
            x,
            places,
            np.ones(count, np.int32),
            _Together(self._engine, self._steps, group),
            places=places,
            shape=(count, group.model.output_size),
            arrival_ns=min(single.arrival_ns for single in singles),
            last_only=False,
            deadline_ns=0,
            numbers=group.numbers() if group.is_numbered else None,
            is_single=True,
        )
        try:
            self._engine.submit_block(group.model, block)
        except ServeError:  # no room for all: singly, as many are accepted as there is room for
            for single in singles:
                single.submit()
            return
        for index, single in enumerate(singles):
            single.tenant.pending_steps += 1
            single.lease.hold()
            single.placed(block, index)


class _Group:
    """Plain steps of different sessions of one model."""

    def __init__(self, model: Model, *, is_numbered: bool) -> None:
        self.model = model
        self.is_numbered = is_numbered
        self.rows: list[int] = []
        self.singles: list[Single] = []

    def add(self, row: int, single: Single) -> None:
        """One more."""
        self.rows.append(row)
        self.singles.append(single)

    def keep(self, is_kept: npt.NDArray[np.bool_]) -> list[Single]:
        """Only these stay; the others are returned."""
        gone = [single for single, kept in zip(self.singles, is_kept, strict=True) if not kept]
        self.rows = np.array(self.rows)[is_kept].tolist()
        self.singles = [single for single, kept in zip(self.singles, is_kept, strict=True) if kept]
        return gone

    def numbers(self) -> Index:
        """[N]"""
        return np.array([single.request.step for single in self.singles], np.int64)

    def input(self) -> Input:
        """x [N, I], not yet checked for finite."""
        content = b"".join([single.request.x for single in self.singles])
        return np.frombuffer(content, FLOAT).reshape(len(self.singles), -1)


class _Together:
    """The sink of a block of single steps."""

    def __init__(self, engine: Engine, steps: Steps, group: _Group) -> None:
        self._engine = engine
        self._steps = steps
        self._model = group.model
        self._singles = group.singles

    def settled(self, block: Block) -> None:
        """As BlockSink.settled."""
        start_ns, compute_ns = block.arrival_ns + block.queue_ns, block.compute_ns
        content, width = block.y.tobytes(), 4 * self._model.output_size
        self._steps.count_together(self._model, self._applied(block), start_ns)
        for i, single in enumerate(self._singles):
            single.tenant.pending_steps -= 1
            single.lease.release()
            if i in block.errors:
                single.fail(block.errors[i], self._model)
            else:
                y = content[i * width : (i + 1) * width]
                single.answer(block.numbers.item(i), y, start_ns, compute_ns)

    def _applied(self, block: Block) -> list[Single]:
        if not block.errors:
            return self._singles
        return [single for i, single in enumerate(self._singles) if i not in block.errors]
