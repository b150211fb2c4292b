"""The scheduler compared with the one before it, on the same random traces (tests/traces.py).

fixtures/traces.json has a sha256 per seed, which fixtures/record_traces.py wrote with the engine of
commit fb31b30. If there is a difference, record_traces.py SEED prints the old trace, and the
command below the new one: the first line that differs names the event. The test stays until the
issues about networks of other shapes have ended.

    PYTHONPATH=service:tests python tests/test_traces.py SEED
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmserve.engine.errors import Draining, Overloaded, ServeError
from lstmserve.engine.scheduling import batch as batch_module
from lstmserve.engine.scheduling import ordering, settle
from lstmserve.engine.scheduling.batch import Batch
from lstmserve.engine.scheduling.ordering import Ordering
from lstmserve.engine.scheduling.plan import groups_of
from lstmserve.engine.scheduling.scheduler import Scheduler
from lstmserve.engine.scheduling.settle import Settlement
from lstmserve.engine.scheduling.work import Applied, Chunk, Outcome, Plan, Request, chunks_of
from lstmserve.rows import RowFormat
from lstmserve.spec import TensorSpec
from traces import MODES, OUTPUT_SIZE, Call, Trace, bits, canonical, failure, result

RECORDED = json.loads((Path(__file__).parent / "fixtures" / "traces.json").read_text())
HASHES: list[str] = RECORDED["sha256"]
EVENTS: dict[str, list[Any]] = RECORDED["events"]
PART = 160


class Answers:
    """The responder of a request, whose rows are those in `places` of the call."""

    def __init__(self, call: Call, places: list[int]) -> None:
        self.call = call
        self.places = places
        self.found: dict[int, list[Any]] = {}  # by place, of a message of many

    def applied(self, request: Request, rows: Applied) -> None:
        """Answers a step, a list or a message at once, and a Predict when it is whole."""
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
        """Answers one row."""
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


OUTPUTS = RowFormat([TensorSpec("y", (OUTPUT_SIZE,))])


class NewSide:
    """The present scheduler, with requests and chunks."""

    def __init__(self, config: Any, table: Any, pool: Any, on_idle: Any, on_moved: Any) -> None:
        self.config = config
        self.scheduler = Scheduler(config, table, pool, OUTPUTS, on_idle, on_moved)

    def saved_reply(self, table: Any, row: int) -> list[Any] | None:
        """Length and bits."""
        y = table.replies.get(row, OUTPUTS)
        return None if y is None else [len(y), bits(y)]

    @property
    def pending_sequences(self) -> int:
        """The number of pending sequences of Predicts."""
        return self.scheduler._settlement.pending_sequences

    def submit(self, call: Call) -> None:
        """Submits a call like server/steps.py, native/step_many.py and engine/predict.py."""
        if call.kind == "many":
            self._accept_whole(call, self._many(call), self.scheduler.accept)
        elif call.kind == "predict":
            self._accept_whole(call, self._sequences(call), self.scheduler.accept_sequences)
        else:
            call.work = {}
            self._submit_list(call)

    def _submit_list(self, call: Call) -> None:
        """Submits rows with and without last_only apart, each session's in order."""
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
        """Cancels as the dialects do."""
        if call.kind in ("step", "list"):
            request, i = call.work[place]
            request.cancel_row(i)
        else:
            call.work.cancel()

    def stop(self, now_ns: int) -> None:
        """Ends the work as the engine does at its end."""
        self.scheduler.fail_all(Draining("this server shut down", retry_s=1.0), now_ns)

    def check(self) -> None:
        """Asserts that what waits is counted."""
        self.scheduler._ordering.check_integrity()

    def columns(self, batch: Any) -> list[tuple[int, int, int]]:
        found: list[tuple[int, int, int]] = []
        for chunk in batch.chunks:
            if chunk.request.plan is None:
                found += [(row, 0, 0) for row in chunk.rows.tolist()]
            else:
                uid = chunk.request.responder.call.uid
                found += [(-1, uid, place) for place in chunk.places.tolist()]
        return found


def _differ(seeds: Iterable[int]) -> list[int]:
    return [seed for seed in seeds if result(seed, NewSide) != HASHES[seed]]


@pytest.mark.parametrize("start", range(0, len(HASHES), PART))
@pytest.mark.parametrize("columns_from", [None, 1, 1 << 30], ids=["as it is", "columns", "rows"])
def test_all_is_as_before(
    start: int, columns_from: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies, bits, counters and sessions equal the old scheduler's, in columns and row by row."""
    seeds = list(range(start, min(start + PART, len(HASHES))))
    if columns_from is not None:
        monkeypatch.setattr(ordering, "COLUMNS_FROM", columns_from)
        monkeypatch.setattr(settle, "COLUMNS_FROM", columns_from)
        if columns_from > 1:  # rows that wait one by one are never split
            seeds = [seed for seed in seeds if MODES[seed % len(MODES)] != "split"]
    assert _differ(seeds) == []


@pytest.mark.parametrize("seed", EVENTS)
def test_event_by_event(seed: str) -> None:
    """The traces that are recorded whole have the old scheduler's events, one by one."""
    log = canonical(Trace(int(seed), NewSide).run()).splitlines()
    assert [json.loads(line) for line in log] == EVENTS[seed]


# Planted bugs: each must make one of the first traces differ. -------------------------------------


def other_reply(patch: pytest.MonkeyPatch) -> None:
    """A repeat gets another reply than the step did."""
    save, save_rows = Ordering.save, Ordering.save_rows
    patch.setattr(Ordering, "save", lambda self, row, y: save(self, row, y + 1))
    patch.setattr(Ordering, "save_rows", lambda self, rows, y: save_rows(self, rows, y + 1))


def state_stays(patch: pytest.MonkeyPatch) -> None:
    """A step is counted, but its session keeps the state before it."""
    end_one = Settlement._end_one

    def end(self: Any, chunk: Chunk, i: int, slot: int, now_ns: int) -> None:
        before = self._table.slot[chunk.row(i)]
        for tensor in self._pool.tensors.values():
            tensor[slot] = tensor[before]
        end_one(self, chunk, i, slot, now_ns)

    patch.setattr(Settlement, "_end_one", end)


def cancelled_runs(patch: pytest.MonkeyPatch) -> None:
    """A cancelled step runs."""
    patch.setattr(Scheduler, "_is_gone", staticmethod(lambda request, place: False))


def followers_go_on(patch: pytest.MonkeyPatch) -> None:
    """The steps after one that failed are computed."""

    def fail_step(self: Any, chunk: Chunk, i: int, error: ServeError, now_ns: int) -> None:
        row = chunk.row(i)
        following = self._ordering.leave(row, now_ns)
        self._ready.end(chunk)
        chunk.request.fail(chunk.place(i), error)
        self._ordering.fail_joined(row, self._table.step.item(row) + 1, error)
        if following is not None:
            self._ready.push(following)

    patch.setattr(Settlement, "fail_step", fail_step)


def no_deadline(patch: pytest.MonkeyPatch) -> None:
    """A step runs after its deadline."""
    accept = Ordering.accept

    def late(self: Any, request: Request) -> list[Chunk]:
        request.deadlines_ns = None
        return accept(self, request)

    patch.setattr(Ordering, "accept", late)


def applied_twice(patch: pytest.MonkeyPatch) -> None:
    """A repeat of the last step is applied as the next one."""
    accept_one = Ordering._accept_one

    def accept(self: Any, request: Request, i: int) -> Chunk | None:
        row = int(request.rows[i])
        if request.number(i) == self._table.step[row] and not self._table.pending[row]:
            assert request.numbers is not None
            numbers: Any = request.numbers
            numbers[i] += bool(numbers[i])
        return accept_one(self, request, i)

    patch.setattr(Ordering, "_accept_one", accept)


def other_last_row(patch: pytest.MonkeyPatch) -> None:
    """last_only returns the last time step but one."""
    put = Batch._put_slices

    def put_slices(self: Any, chunk: Chunk, y: Any, lengths: Any) -> None:
        put(self, chunk, y, np.maximum(lengths - chunk.request.last_only, 1))

    patch.setattr(Batch, "_put_slices", put_slices)


def any_input(patch: pytest.MonkeyPatch) -> None:
    """A repeat may have another input."""
    patch.setattr(ordering, "_check_same", lambda number, digest, expected: None)


def no_limit(patch: pytest.MonkeyPatch) -> None:
    """Any number of steps of a session may wait."""
    patch.setattr(Ordering, "_check_session", lambda self, row, pending: None)


def no_hold(patch: pytest.MonkeyPatch) -> None:
    """The steps of a held session run."""
    patch.setattr(Scheduler, "_is_held", lambda self, row: False)


def no_doubt(patch: pytest.MonkeyPatch) -> None:
    """A suspect session accepts a step without a number."""
    patch.setattr(Ordering, "_check_trust", lambda self, row: None)


def surely_not_stored(patch: pytest.MonkeyPatch) -> None:
    """A step whose store's answer was lost counts as not stored, and its session stays."""
    failure_of = Settlement._failure

    def why(self: Any, row: int, outcome: int, cause: Exception | None) -> ServeError:
        changed = Outcome.NOT_STORED if outcome == Outcome.UNKNOWN else outcome
        return failure_of(self, row, changed, cause)

    patch.setattr(Settlement, "_failure", why)


def mixed_up(patch: pytest.MonkeyPatch) -> None:
    """Rows that waited run in the order in which their sessions came free (a former bug)."""

    def unsorted(places: Any, rows: Any) -> list[Chunk]:
        order = {(id(request), place): i for i, (request, place) in enumerate(places)}
        chunks = chunks_of(places, rows)
        for chunk in chunks:
            if chunk.size > 1:
                keys = [order[id(chunk.request), place] for place in chunk.places.tolist()]
                by_session = np.argsort(keys)
                chunk._places, chunk._rows = chunk.places[by_session], chunk.rows[by_session]
        return chunks

    patch.setattr(ordering, "chunks_of", unsorted)


def other_finals(patch: pytest.MonkeyPatch) -> None:
    """The final states of a Predict's sequences are exchanged."""
    keep = Settlement._keep_finals
    patch.setattr(
        Settlement,
        "_keep_finals",
        lambda self, plan, places, slots: keep(self, plan, places[::-1], slots),
    )


def begins_again(patch: pytest.MonkeyPatch) -> None:
    """Each slice of a long step begins from its session's state."""
    slot_of = batch_module._slot_of

    def slot(chunk: Chunk, slots: Any) -> int:
        return slot_of(chunk, slots) if chunk.request.plan else slots.item(chunk.row(0))

    patch.setattr(batch_module, "_slot_of", slot)


def badly_split(patch: pytest.MonkeyPatch) -> None:
    """The rows that a full batch leaves over belong to sessions in another order."""
    split = Chunk.split

    def others(self: Any, count: int) -> Chunk:
        found = split(self, count)
        found._rows = found.rows[::-1]
        return found

    patch.setattr(Chunk, "split", others)


BUGS: list[Callable[[pytest.MonkeyPatch], None]] = [
    other_reply,
    state_stays,
    cancelled_runs,
    followers_go_on,
    no_deadline,
    applied_twice,
    other_last_row,
    any_input,
    no_limit,
    no_hold,
    no_doubt,
    surely_not_stored,
    mixed_up,
    other_finals,
    begins_again,
    badly_split,
]


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(
    bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the bug, one of the first hundred traces changes, or an assertion fails."""
    bug(monkeypatch)
    assert any(map(_is_caught, range(100)))


def _is_caught(seed: int) -> bool:
    try:
        return result(seed, NewSide) != HASHES[seed]
    except AssertionError:
        return True


if __name__ == "__main__":
    print(canonical(Trace(int(sys.argv[1]), NewSide).run()))
