"""Pairs inputs with the outputs that have their values after a step: the states.

A pair is one where the names say so, or the nodes of the graph; equal shapes alone say nothing, and
neither does the order in the file. What stays unclear is refused with the flags that settle it.
Swapped pairs of equal shapes are the worst error, for no run of the graph finds them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from lstmserve_export.onnx_file.load.source import Source, Value
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.onnx_file.roles.state_flow import Flow, find_flow, find_restarts
from lstmserve_export.onnx_file.roles.state_names import Likeness, are_memory, likeness, stem
from lstmserve_export.refusal import Refused, shorten

LIKENESSES: Final[tuple[Likeness, ...]] = ("same", "numbered", "part")  # the surest first
NAMED_MAX: Final = 6  # candidates for one output
FIXED: Final = "a session's state has one size, so export the model with a cache of fixed length"
NO_STATE: Final = (
    "no state was found: if an output is the next value of an input, give --state IN:OUT"
)


@dataclass(frozen=True, slots=True)
class StatePair:
    """An input of the graph and the output that has its value after the run."""

    before: Value
    after: Value

    def __str__(self) -> str:
        return f"{self.before.name}:{self.after.name}"


class Pairing:
    """The pairs that were found, and the inputs and outputs that are still free."""

    def __init__(self, source: Source, request: Request) -> None:
        self._source, self._request = source, request
        fixed = {*request.constants, *request.inputs}
        self._inputs = {n: v for n, v in source.inputs.items() if n not in fixed}
        self._outputs = dict(source.outputs)
        self._flow: Flow = find_flow(source.model.graph)
        self._found: dict[str, list[StatePair]] = {}
        self._notes: list[str] = []
        self._conflicts: set[str] = set()  # names that the graph contradicts
        self._shifted: set[str] = set()  # names whose numbers tell nothing
        self.pairs: list[StatePair] = []

    # Given by the operator -----------------------------------------------------------------------

    def take_given(self) -> None:
        """Takes the pairs of --state. Raises Refused for one that cannot be."""
        for text in self._request.states:
            pair = self._parse(text)
            if not _fit_names(pair):
                raise Refused(
                    f"--state {text}: {pair.before} and {pair.after} differ in shape or dtype"
                )
            for name, free in ((pair.before.name, self._inputs), (pair.after.name, self._outputs)):
                if name not in free:
                    raise Refused(f"--state {text}: another flag names {name}, too")
            if self._contradicts(pair):
                self._notes.append(
                    f"--state {text} pairs different states, as the graph's layers say: if the "
                    "answers are wrong, look here first"
                )
            self._take(pair)

    def _parse(self, text: str) -> StatePair:
        """A name may have colons of its own."""
        inputs, outputs = self._source.inputs, self._source.outputs
        halves = [(text[:at], text[at + 1 :]) for at, letter in enumerate(text) if letter == ":"]
        known = [(i, o) for i, o in halves if i in inputs and o in outputs]
        if len(known) != 1:
            raise Refused(
                f"--state {text}: give IN:OUT, one of the graph's inputs {shorten(list(inputs))} "
                f"and one of its outputs {shorten(list(outputs))}"
            )
        before, after = known[0]
        return StatePair(inputs[before], outputs[after])

    def _take(self, pair: StatePair, how: str = "") -> None:
        _check_growth(pair)
        self.pairs.append(pair)
        del self._inputs[pair.before.name], self._outputs[pair.after.name]
        if how:
            self._found.setdefault(how, []).append(pair)

    # Found ---------------------------------------------------------------------------------------

    def take_found(self) -> None:
        """Takes the pairs that names or nodes show, names first."""
        self._find_shifted()
        for kind in LIKENESSES:
            named = filter(self._agrees, _unique(self._named(kind)))
            self._take_all(named, "by their names")
        shared = filter(self._share_layer, self._possible())
        self._take_all(shared, "by the layers that read and write them")
        caches = filter(self._is_cache, self._possible())
        self._take_all(caches, "as caches, which the graph joins with new values")
        if self._request.inputs:  # the others are states, then
            others = filter(self._is_open, self._possible())
            self._take_all(others, "as the only ones of their shape beside --input")

    def _named(self, kind: Likeness) -> list[StatePair]:
        """The free pairs whose names agree so far."""
        wrong = self._shifted | self._conflicts
        free = (each for each in self._free() if wrong.isdisjoint(_names(each)))
        return [each for each in free if _is_named(each, kind) and _fit_names(each)]

    def _find_shifted(self) -> None:
        """Where some names of a group have equal numbers and others have not, as cache_0 and
        cache_1 beside cache_1_out and cache_2_out, the numbers tell nothing."""
        same = _unique(self._named("same"))
        taken = {name for each in same for name in _names(each)}
        left = [e for e in self._named("numbered") if taken.isdisjoint(_names(e))]
        for pair in left:
            words = stem(pair.before.name).words
            group = [each for each in same if stem(each.before.name).words == words]
            if group:
                self._shifted |= {name for each in (pair, *group) for name in _names(each)}

    def _take_all(self, pairs: Iterable[StatePair], how: str) -> None:
        """Takes those that are unique. A model whose every input were a state would have nothing to
        step with: then none is sure."""
        unique = _unique(pairs)
        if len(unique) < len(self._inputs) or self._request.inputs:
            for pair in unique:
                self._take(pair, how)

    def _agrees(self, pair: StatePair) -> bool:
        """Whether the graph does not contradict names, which stay free otherwise."""
        if is_wrong := self._contradicts(pair):
            self._conflicts |= {*_names(pair)}
        return not is_wrong

    def _contradicts(self, pair: StatePair) -> bool:
        before, after = _names(pair)
        if self._flow.contradicts(before, after):
            return True
        joined = self._flow.joined(after)
        inputs = self._source.inputs
        others = (n for n in joined if n in inputs and _fit(StatePair(inputs[n], pair.after)))
        return before not in joined and any(others)  # it is a cache of another one

    def _share_layer(self, pair: StatePair) -> bool:
        reads, writes = self._flow.reads(pair.before.name), self._flow.writes(pair.after.name)
        return bool(reads & writes) and self._conflicts.isdisjoint(_names(pair))

    def _is_cache(self, pair: StatePair) -> bool:
        is_joined = pair.before.name in self._flow.joined(pair.after.name)
        return is_joined and self._conflicts.isdisjoint(_names(pair))

    def _is_open(self, pair: StatePair) -> bool:
        return pair.after.name not in self._request.outputs and not self._contradicts(pair)

    def _has_others(self) -> bool:
        return len(self._inputs) > 1 or bool(self._request.inputs)

    def _possible(self) -> list[StatePair]:
        """The free pairs of one shape and dtype."""
        return [pair for pair in self._free() if _fit(pair)]

    def _free(self) -> list[StatePair]:
        """The pairs of free inputs and outputs. An output that is an input is no next state."""
        free = (StatePair(i, o) for i in self._inputs.values() for o in self._outputs.values())
        return [pair for pair in free if pair.before.name != pair.after.name]

    # Left ----------------------------------------------------------------------------------------

    def ask(self) -> None:
        """Raises Refused where a free input and a free output may be a state."""
        self._check_shapes()
        doubtful = [pair for pair in self._possible() if self._is_doubtful(pair)]
        if not doubtful:
            return
        could: dict[str, list[str]] = {}
        for pair in doubtful:
            could.setdefault(str(pair.after), []).append(pair.before.name)
        lines = [f"{after} may be the next {_any_of(names)}" for after, names in could.items()]
        guess = self._guess(doubtful)
        taken = {pair.before.name for pair in guess}
        steps = [each for each in self._inputs if each not in taken] or [doubtful[0].before.name]
        flags = [f"--state {pair}" for pair in guess]
        flags += [f"--input {name}" for name in (*self._request.inputs, *steps)]
        raise Refused(
            f"which outputs are states is not clear: {shorten(lines)}. If this is right, give "
            f"{' '.join(flags)}; otherwise change it, for nothing else finds a wrong pair"
        )

    def _check_shapes(self) -> None:
        for before in self._inputs.values():
            for after in self._outputs.values():
                pair = StatePair(before, after)
                if not _fit_names(pair) and _is_named(pair, "same"):
                    raise Refused(
                        f"{before} and {after} have the names of a state, which keeps its shape "
                        f"and dtype: give --input {before.name} if each step gives it"
                    )

    def _is_doubtful(self, pair: StatePair) -> bool:
        """The last input, and the last output that has no word of memory, are no state."""
        before, after = pair.before.name, pair.after.name
        if not self._has_others() or after in self._request.outputs:
            return False
        if stem(before).has_memory or stem(after).has_memory:
            return True
        is_alike = likeness(before, after) is not None or _shares_size(pair)
        return is_alike and len(self._outputs) > 1

    def _guess(self, doubtful: list[StatePair]) -> list[StatePair]:
        """The likeliest pairs, in the graph's order. If neither names nor nodes tell, they are the
        last ones, because most graphs have x and y ahead of their states."""

        def rank(pair: StatePair) -> tuple[bool, ...]:
            before, after = pair.before.name, pair.after.name
            return (
                bool(self._flow.reads(before) & self._flow.writes(after)),
                are_memory(before, after),
                likeness(before, after) is not None,
                after.startswith(before) or after.endswith(before),
                bool(stem(before).numbers) and stem(before).numbers == stem(after).numbers,
            )

        left = len(self._inputs) - (0 if self._request.inputs else 1)
        guess: dict[str, StatePair] = {}
        outputs: set[str] = set()
        backwards = [each for each in self._possible()[::-1] if any(rank(each))] or doubtful[::-1]
        for pair in sorted(backwards, key=rank, reverse=True):
            before, after = pair.before.name, pair.after.name
            if len(guess) < left and before not in guess and after not in outputs:
                guess[before] = pair
                outputs.add(after)
        return [guess[name] for name in self._inputs if name in guess]

    def notes(self) -> tuple[str, ...]:
        """How the states were found, a line for each way."""
        if not self.pairs:
            return tuple(self._notes) if self._request.window else (*self._notes, *self._none())
        found = (f"states found {how}: {_listed(pairs)}" for how, pairs in self._found.items())
        return (*self._notes, *found)

    def _none(self) -> tuple[str, ...]:
        """What an operator should know where no state was found."""
        if not (layers := find_restarts(self._source.model.graph)):
            return (NO_STATE,)
        return (
            NO_STATE,
            f"each run begins from the same state in {shorten(layers)}: for streams, export the "
            "network with the states of these layers as inputs and outputs",
        )


def _names(pair: StatePair) -> tuple[str, str]:
    return pair.before.name, pair.after.name


def _unique(pairs: Iterable[StatePair]) -> list[StatePair]:
    """Those that are the only one of their input and of their output."""
    found = list(pairs)
    inputs = Counter(each.before.name for each in found)
    outputs = Counter(each.after.name for each in found)
    return [e for e in found if inputs[e.before.name] == 1 and outputs[e.after.name] == 1]


def _any_of(names: list[str]) -> str:
    rest = len(names) - NAMED_MAX
    return " or ".join([*names[:NAMED_MAX], *([f"{rest} more"] if rest > 0 else [])])


def _listed(pairs: Iterable[StatePair]) -> str:
    return ", ".join(map(str, pairs))


def _is_named(pair: StatePair, kind: Likeness) -> bool:
    before, after = pair.before.name, pair.after.name
    return likeness(before, after) == kind and are_memory(before, after)


def _fit(pair: StatePair) -> bool:
    """Whether dtypes and shapes may be the same; an axis that is not fixed may have any length."""
    before, after = pair.before, pair.after
    if before.dtype != after.dtype or len(before.shape) != len(after.shape):
        return False
    sizes = zip(before.shape, after.shape, strict=True)
    return all(one is None or other is None or one == other for one, other in sizes)


def _fit_names(pair: StatePair) -> bool:
    """Whether a pair that is named may be one: one side may have axes of 1 that the other lacks."""
    before, after = pair.before, pair.after
    if len(before.shape) == len(after.shape):
        return _fit(pair)
    sizes = [[size for size in each.shape if size != 1] for each in (before, after)]
    return before.dtype == after.dtype and None not in sizes[0] and sizes[0] == sizes[1]


def _shares_size(pair: StatePair) -> bool:
    """Whether an axis has one size above 1 in both; any axis may be 1 or not be fixed."""
    sizes = zip(pair.before.shape, pair.after.shape, strict=True)
    return any(one == other and one not in (None, 1) for one, other in sizes)


def _check_growth(pair: StatePair) -> None:
    """Refuses an axis that is longer after each step, if the names of its lengths say so."""
    for axis, (past, now) in enumerate(zip(pair.before.symbols, pair.after.symbols, strict=False)):
        is_sum = bool(past) and past in now and "+" in now
        if is_sum or ("past" in past.lower() and "total" in now.lower()):
            raise Refused(
                f"{pair.before} grows with each step: axis {axis} is {now} in {pair.after.name}; "
                f"{FIXED}"
            )
