"""Says why a module's stream is not its forward(), and what to do. It never decides that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import torch

from lstmserve.golden import Golden
from lstmserve_export.module.forward import Forward
from lstmserve_export.module.proof.mixing import (
    Operation,
    find_mixing,
    is_loop,
    memoryless,
    unusual_size,
)
from lstmserve_export.module.recurrent import find_layers, watched
from lstmserve_export.module.signature.sampler import SIZE
from lstmserve_export.module.signature.signature import Signature
from lstmserve_export.refusal import shorten
from lstmserve_export.sequences import CHAOTIC_ERROR, SEED
from lstmserve_export.streaming import Mismatch

RELATIVE, ABSOLUTE = 2e-5, 1e-5
ROUNDING_RATIO: Final = 10  # a difference beyond it is none of rounding
TRIES: Final = 3  # two draws may agree by chance
WINDOW: Final = "export it with a window (--window W), as it was trained"
CARRY: Final = f"take what it needs of them as an argument of forward() and return it, or {WINDOW}"
NORM: Final = (
    f"normalise over the features of a row or by constants of the training data, or {WINDOW}"
)
SUM: Final = (
    "answer from the last row, as out[:, -1], take the sum so far as an argument and return it, or "
    f"{WINDOW}"
)
# By a part of the torch function's name; the first that fits.
WAYS_OUT: Final = {
    "conv": f"take the rows that its kernel needs as an argument and return them, or {WINDOW}",
    "norm": NORM,
    "std": NORM,
    "var": NORM,
    "flip": f"train the network in the order in which rows come, or {WINDOW}",
    "roll": "take the row before as an argument and return the new one",
    "cumsum": "take the sum so far as an argument of forward() and return it",
    "softmax": CARRY,
    "mean": SUM,
    "sum": SUM,
    "max": SUM.replace("sum", "largest"),
    "pool": SUM.replace("sum", "sum or the largest"),
    "sub": "take the row before as an argument and return the new one, or send differences",
}


def explain(error: Mismatch, case: Golden, forward: Forward, signature: Signature) -> str:
    """One line: the likely cause, what to do, and what differs. `case` has the rows that differ."""
    if error.ratio < ROUNDING_RATIO and case.torch_error > CHAOTIC_ERROR / 10:
        cause = (
            f"this network amplifies rounding: torch's own float32 is off by {case.torch_error:.2g}"
            " on these rows, and onnxruntime's by more; train with smaller weights"
        )
    elif signature.window:
        cause = _cause_in_windows(_Runs(case, forward, signature))
    else:
        cause = _cause(error, case, forward, signature)
    return f"{cause} ({error})"


def _cause(error: Mismatch, case: Golden, forward: Forward, signature: Signature) -> str:
    runs = _Runs(case, forward, signature)
    if started := list(runs.started()):
        return (
            f"{shorten(started)} begins from a state that forward() computes from its input, and a "
            "session has one start for every input: take the state as an argument of forward() and "
            "return it, and send the computed one when the client opens the session, or "
            f"{WINDOW}"
        )
    if not signature.has_time:
        ahead = back = None
    elif runs.looks_ahead():
        ahead, back = runs.over_time(0) or "forward()", None
    else:
        ahead, back = None, runs.over_time(-1)
    if ahead:
        return (
            f"{ahead} reads rows that come later, which a stream does not have yet: "
            f"{NORM if _function(ahead) == 'mean' else _way_out(ahead)}"
        )
    if back:
        return (
            f"{back} reads earlier rows by itself, and a step has only the states of the recurrent "
            f"layers: {_way_out(back)}"
        )
    if mixed := runs.over_batch():
        return _mixes(mixed)
    if signature.has_time and not runs.is_loop() and runs.depends_on_position():
        return (
            "an answer depends on how many rows came before it (a position, an index or the number "
            "of rows), which a step does not know: take that number as an input of each row, count "
            f"in a state that forward() takes and returns, or {WINDOW}"
        )
    if names := _returned(signature):
        return (
            f"forward() takes {shorten(names)} once for a sequence and returns a tensor of that "
            "shape, so it may be a state: name it with states="
        )
    if error.step == 0:
        return (
            "already the first step differs, which the export cannot explain: if forward() treats "
            "the rows of a batch alike, please report this with the module"
        )
    return (
        "forward() hands something from one time step to the next that is no state of a recurrent "
        "layer, such as its own output, a cell written by hand, or a state that it begins again: "
        f"take it as an argument of forward() and return it, or {WINDOW}"
    )


def _cause_in_windows(runs: _Runs) -> str:
    if mixed := runs.over_batch():
        return _mixes(mixed)
    return (
        "the answers to windows differ, which the export cannot explain: if forward() treats the "
        "rows of a batch alike, please report this with the module"
    )


def _mixes(operation: Operation) -> str:
    return (
        f"{operation} mixes the rows of a batch, which on a server belong to different sessions: "
        "compute each row from itself"
    )


def _returned(signature: Signature) -> list[str]:
    """The inputs without an axis of time whose shape a result without one has, too."""
    shapes = [each.spec.shape for each in signature.outputs if each.axes.time is None]
    once = [each for each in signature.inputs if each.axes.time is None and signature.has_time]
    return [each.spec.name for each in once if each.spec.shape in shapes]


def _way_out(operation: Operation | str) -> str:
    name = _function(operation)
    return next((way for part, way in WAYS_OUT.items() if part in name), CARRY)


def _function(operation: Operation | str) -> str:
    return operation.function if isinstance(operation, Operation) else ""


class _Runs:
    """Runs forward() on pairs of inputs that agree in some rows, and differ in others."""

    def __init__(self, case: Golden, forward: Forward, signature: Signature) -> None:
        self._rng = np.random.default_rng(SEED)
        self._case = case
        self._forward = forward
        self._signature = signature

    def started(self) -> Iterator[str]:
        """The recurrent layers whose first state of a run depends on the input."""
        layers = find_layers(self._forward.module)
        runs = []
        for _ in range(2):
            rows = self._rows(SIZE, 1)
            with watched(layers) as calls:
                self._forward(self._signature.arguments(rows, self._signature.starts(SIZE)))
            runs.append({c.id.layer: c.handed for c in reversed(calls) if c.handed is not None})
        for path, handed in runs[0].items():
            other = runs[1].get(path, handed)
            if not all(map(torch.equal, handed, other)):
                yield f"{path or 'the module'} ({type(layers[path]).__name__})"

    def over_time(self, index: int) -> Operation | None:
        """What makes the time step `index` (0 or -1) depend on others."""
        size = unusual_size(self._forward)

        def agree(one: torch.Tensor, other: torch.Tensor) -> None:
            other[:, index] = one[:, index]

        return self._find(SIZE, size, agree, size, index)

    def over_batch(self) -> Operation | None:
        """What makes the first row of a batch depend on others."""
        if self._signature.inputs[0].axes.batch is None:
            return None
        size = unusual_size(self._forward)

        def agree(one: torch.Tensor, other: torch.Tensor) -> None:
            other[0] = one[0]

        return self._find(size, self._signature.window or 1, agree, size, 0)

    def is_loop(self) -> bool:
        """Whether forward() takes the time steps one by one, in a loop of Python."""
        size = unusual_size(self._forward)
        arguments = self._signature.arguments(self._rows(1, size), self._signature.starts(1))
        return is_loop(self._forward, arguments, size)

    def depends_on_position(self) -> bool:
        """Whether the last answer depends on the number of rows, where no layer carries a state."""
        rows = self._rows(SIZE, unusual_size(self._forward))
        last = {name: each[:, -1:] for name, each in rows.items()}
        with memoryless(self._forward.module):
            return not self._is_close(self._last(rows), self._last(last))

    def looks_ahead(self) -> bool:
        """Whether the first answer of a sequence is another than the answer to its first row."""
        signature = self._signature
        if any(output.axes.time is None for output in signature.outputs):
            return False
        rows = self._rows(SIZE, unusual_size(self._forward))
        results = self._forward(signature.arguments(rows, self._signature.starts(SIZE)))
        first = {
            each.spec.name: each.axes.to_rows(results[each.result].tensor)[:, 0]
            for each in signature.outputs
        }
        return not self._is_close(first, self._last({n: each[:, :1] for n, each in rows.items()}))

    def _find(
        self,
        count: int,
        steps: int,
        agree: Callable[[torch.Tensor, torch.Tensor], None],
        size: int,
        index: int,
    ) -> Operation | None:
        states = self._signature.starts(count)
        for _ in range(TRIES):
            one, other = self._rows(count, steps), self._rows(count, steps)
            for each in self._signature.inputs:
                name = each.spec.name
                if each.axes.time is None and steps > 1:
                    other[name] = one[name]
                agree(one[name], other[name])
            left, right = (self._signature.arguments(each, states) for each in (one, other))
            try:
                found = find_mixing(self._forward, left, right, size, index)
            except Exception:  # forward() may raise anything on a number of rows that it never met
                return None
            if found:
                return found
        return None

    def _last(self, rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        states = self._signature.starts(SIZE)
        return self._signature.last(self._forward(self._signature.arguments(rows, states)))

    def _rows(self, count: int, steps: int) -> dict[str, torch.Tensor]:
        """[count, steps, *shape] of each input, drawn from the rows of the case."""
        found = {}
        for each in self._signature.inputs:
            given = self._case.inputs[each.spec.name]
            sequences = self._rng.integers(given.shape[0], size=(count, steps))
            places = self._rng.integers(self._case.lengths[sequences])
            if each.axes.time is None:
                sequences, places = sequences[:, :1], places[:, :1]
            drawn = torch.from_numpy(given[sequences, places])
            found[each.spec.name] = drawn.expand(count, steps, *drawn.shape[2:]).clone()
        return found

    def _is_close(self, one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
        return all(
            torch.allclose(value.float(), other[name].float(), RELATIVE, ABSOLUTE, equal_nan=True)
            for name, value in one.items()
        )
