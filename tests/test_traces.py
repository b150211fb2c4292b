"""The scheduler, held to what the one before it made of the same random traces (tests/traces.py).

fixtures/traces.json has a sha256 per seed, which fixtures/record_traces.py wrote with the engine of
commit fb31b30. On a difference, record_traces.py SEED prints the old trace and

    PYTHONPATH=service:tests python tests/test_traces.py SEED

the new one: the first line that differs names the event.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lstmserve.engine.errors import Draining, Overloaded, ServeError
from lstmserve.engine.scheduling.plan import groups_of
from lstmserve.engine.scheduling.scheduler import Scheduler
from lstmserve.engine.scheduling.work import Applied, Plan, Request
from traces import OUTPUT_SIZE, Call, Trace, bits, canonical, failure, result


class Answers:
    """The responder of a request, whose rows are those in `places` of the call."""

    def __init__(self, call: Call, places: list[int]) -> None:
        self.call = call
        self.places = places
        self.found: dict[int, list[Any]] = {}  # by place, of a message of many

    def applied(self, request: Request, rows: Applied) -> None:
        """Of a step, a list or a message at once, of a Predict whole."""
        if request.plan is not None:
            self._predicted(request, rows)
            return
        for i, number, durable in zip(rows.places, rows.numbers, rows.durable_steps, strict=True):
            y = bits(request.output(i))
            answer = ["applied", number, durable, rows.is_replayed, y]
            if self.call.kind == "step":
                answer += [rows.start_ns, rows.compute_ns]
            self._answer(request, i, answer)

    def failed(self, request: Request, place: int, error: ServeError) -> None:
        """One row."""
        assert request.y is None or request.plan or np.isnan(request.output(place)).all()
        self._answer(request, place, failure(error))

    def _answer(self, request: Request, i: int, answer: list[Any]) -> None:
        if self.call.kind != "many":
            self.call.answer(self.places[i], *answer)
            return
        self.found[i] = answer
        if len(self.found) == len(request):
            assert not request.left
            for place in range(len(request)):
                self.call.answer(place, *self.found[place])

    def _predicted(self, request: Request, rows: Applied) -> None:
        call, finals = self.call, None
        if call.finals is not None:
            finals = [each.tobytes().hex() for each in call.finals.values()]
        assert request.y is not None
        call.answer(0, "applied", bits(request.y), finals, rows.start_ns, rows.compute_ns)
        for place in rows.places[1:]:
            call.answer(place, "applied")


class NewSide:
    """Requests and chunks."""

    def __init__(self, config: Any, table: Any, pool: Any, on_idle: Any, on_moved: Any) -> None:
        self.config = config
        self.scheduler = Scheduler(config, table, pool, OUTPUT_SIZE, on_idle, on_moved)

    @property
    def pending_sequences(self) -> int:
        """Of Predicts."""
        return self.scheduler._settlement.pending_sequences

    def submit(self, call: Call) -> None:
        """As server/steps.py, many_reading.py and predict.py do."""
        if call.kind == "many":
            self._accept_whole(call, self._many(call), self.scheduler.accept)
        elif call.kind == "predict":
            self._accept_whole(call, self._sequences(call), self.scheduler.accept_sequences)
        else:
            call.work = {}
            self._submit_list(call)

    def _submit_list(self, call: Call) -> None:
        """Those with and without last_only apart, each session's in order."""
        groups: dict[bool, list[int]] = {}
        group_of: dict[int, bool] = {}
        for place, (row, key) in enumerate(zip(call.rows, call.each_last_only, strict=True)):
            if group_of.get(row, key) != key:
                self._submit_groups(call, groups)
                group_of.clear()
            groups.setdefault(key, []).append(place)
            group_of[row] = key
        self._submit_groups(call, groups)

    def _submit_groups(self, call: Call, groups: dict[bool, list[int]]) -> None:
        for last_only, places in groups.items():
            x = np.concatenate([call.inputs[place] for place in places])
            lengths = [len(call.inputs[place]) for place in places]
            height, firsts, outs = len(x), None, None
            is_single = len(x) == len(places)
            if not is_single:
                firsts = outs = np.cumsum(lengths) - np.array(lengths)
                if last_only:
                    height, outs = len(places), None
            numbers = [call.numbers[place] for place in places]
            deadlines_ns = [call.deadlines_ns[place] for place in places]
            request = Request(
                x,
                [call.rows[place] for place in places],
                Answers(call, places),
                arrival_ns=call.arrival_ns,
                height=height,
                numbers=numbers if any(numbers) else None,
                lengths=None if is_single else lengths,
                firsts=firsts,
                outs=outs,
                last_only=last_only,
                deadlines_ns=deadlines_ns if any(deadlines_ns) else None,
            )
            call.work.update({place: (request, i) for i, place in enumerate(places)})
            self.scheduler.accept(request)
        groups.clear()

    def _accept_whole(self, call: Call, request: Request, accept: Any) -> None:
        call.work = request
        try:
            accept(request)
        except Overloaded as error:
            for place in range(len(call.rows)):
                call.answer(place, "whole", *failure(error))

    def _many(self, call: Call) -> Request:
        x, starts, height = call.flat()
        count, is_single = len(call.rows), all(length == 1 for length in call.lengths)
        members = np.arange(count) * (1 + call.gap) + call.gap
        firsts = None if is_single and not call.gap else starts
        outs = firsts
        if call.last_only:
            outs, height = None if firsts is None else members, count * (1 + call.gap)
        deadline_ns = call.deadlines_ns[0]
        return Request(
            x,
            np.array(call.rows),
            Answers(call, list(range(count))),
            arrival_ns=call.arrival_ns,
            height=height,
            numbers=np.array(call.numbers) if any(call.numbers) else None,
            lengths=None if is_single else np.array(call.lengths),
            firsts=firsts,
            outs=outs,
            last_only=call.last_only,
            deadlines_ns=np.full(count, deadline_ns) if deadline_ns else None,
            is_distinct=True,
            is_whole=True,
        )

    def _sequences(self, call: Call) -> Request:
        lengths = np.array(call.lengths, np.int64)
        starts = np.cumsum(lengths) - lengths
        x, count = np.concatenate(call.inputs), len(call.rows)
        request = Request(
            x,
            np.full(count, -1),
            Answers(call, list(range(count))),
            arrival_ns=call.arrival_ns,
            height=count if call.last_only else len(x),
            lengths=lengths,
            firsts=starts,
            outs=None if call.last_only else starts,
            last_only=call.last_only,
        )
        groups = groups_of(lengths.astype(np.int32), self.config, call.cost)
        request.plan = Plan(groups, count, call.initial, call.finals)
        return request

    def cancel(self, call: Call, place: int) -> None:
        """As the dialects do."""
        if call.kind in ("step", "list"):
            request, i = call.work[place]
            request.cancel_row(i)
        else:
            call.work.cancel()

    def stop(self, now_ns: int) -> None:
        """As the engine's end does."""
        self.scheduler.fail_all(Draining("this server shut down", retry_s=1.0), now_ns)

    def columns(self, batch: Any) -> list[tuple[int, int, int]]:
        """As Side.columns."""
        found: list[tuple[int, int, int]] = []
        for chunk in batch.chunks:
            if chunk.request.plan is None:
                found += [(row, 0, 0) for row in chunk.rows.tolist()]
            else:
                uid = chunk.request.responder.call.uid
                found += [(-1, uid, place) for place in chunk.places.tolist()]
        return found


if __name__ == "__main__":
    print(canonical(Trace(int(sys.argv[1]), NewSide).run()))
