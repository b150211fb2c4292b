"""Measures 1 to 4: calls over the wire, beside the floors of transport and arithmetic."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from bench import echo, requests
from bench.byhand import SERVICE as BY_HAND
from bench.floors import Floor, floor, spec_argument
from bench.http2 import Connection
from bench.load import Load, Sample
from bench.rounds import MODEL, Effort, Side, ratios, served, take_turns
from bench.rows import Goal, Row
from lstmserve.spec import LstmSpec
from serving import Serving

STEP = requests.PATH + "Step"
STREAM = requests.PATH + "StepStream"
UNARY_GOALS = {1: 0.70, 8: 0.85, 32: 0.85}
STREAM_GOALS = {8: 0.70, 64: 0.80}
MANY = 256
BOTH = "echo and onnxruntime"
PREDICT_GROUPS = (8, 16, 32, 64)


class Wire:
    """One model's server, with its floors beside it on the same core."""

    def __init__(self, stack: ExitStack, name: str, spec: LstmSpec, *, by_hand: bool) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.name = name
        self.spec = spec
        self.serving: Serving = stack.enter_context(served(folder, spec))
        reply_bytes = 24 + 4 * spec.output_size  # about the size of a StepResponse
        self.echo: Floor = stack.enter_context(floor("bench.echo", str(reply_bytes)))
        argument = spec_argument(spec)
        self.both = stack.enter_context(floor("bench.echo", str(reply_bytes), argument))
        self.arithmetic = stack.enter_context(floor("bench.arithmetic", argument))
        self.by_hand = stack.enter_context(floor("bench.byhand", argument)) if by_hand else None

    def unary(self, count: int, effort: Effort, goal: Goal | None) -> Row:
        """Measure 1: Step, one session per connection."""
        sides = [
            self._side("ours", self._steps(count, STEP, streamed=False)),
            *self._echo_sides(count, streamed=False),
        ]
        if self.by_hand is not None:
            port, path = int(self.by_hand.line), f"/{BY_HAND}/Step"
            load = _load(port, path, self._messages(count), streamed=False)
            sides.append(Side("by hand", self.by_hand.pid, load))
        return self._row(1, f"Step, {count} connection{'s' * (count > 1)}", sides, effort, goal)

    def stream(self, count: int, effort: Effort, goal: Goal | None) -> Row:
        """Measure 2: StepStream, one session per stream, a stream per connection."""
        sides = [
            self._side("ours", self._steps(count, STREAM, streamed=True)),
            *self._echo_sides(count, streamed=True),
        ]
        return self._row(2, f"StepStream, {count} streams", sides, effort, goal)

    def many(self, effort: Effort, goal: Goal | None) -> Row:
        """Measure 3: StepMany on two streams, so that the server never waits for a client."""
        cohorts = [requests.open_sessions(self.serving.target, MODEL, MANY) for _ in range(2)]
        messages = [requests.blocks(each, self.spec) for each in cohorts]
        load = _load(_port(self.serving), requests.PATH + "StepMany", messages, streamed=True)
        taken = take_turns([self._side("ours", load)], effort)["ours"]
        floors = [self._raw(f"steps {MANY} {effort.seconds}") for _ in taken]
        values = [MANY * ours.per_cpu_s / raw for ours, raw in zip(taken, floors, strict=True)]
        context = f"{MANY * _per_s(taken):.0f} steps/s; onnxruntime {np.median(floors):.0f}"
        name = f"StepMany, {MANY} sessions, / onnxruntime"
        return Row(3, f"{name}, {self.name}", values, goal, "", context)

    def predict(self, effort: Effort, goal: Goal | None) -> Row:
        """Measure 4: 64 ragged sequences; onnxruntime groups them in its fastest way."""
        lengths = np.random.default_rng(0).integers(1, 65, 64).tolist()
        messages = [requests.predictions(MODEL, self.spec, lengths)]
        load = _load(_port(self.serving), requests.PATH + "Predict", messages, streamed=False)
        taken = take_turns([self._side("ours", load)], effort)["ours"]
        text = ",".join(map(str, lengths))
        best = max(PREDICT_GROUPS, key=lambda group: self._raw(f"ragged {group} 0.3 {text}"))
        floors = [self._raw(f"ragged {best} {effort.seconds} {text}") for _ in taken]
        values = [64 * ours.per_cpu_s / raw for ours, raw in zip(taken, floors, strict=True)]
        context = f"{64 * _per_s(taken):.0f} sequences/s; onnxruntime by {best}"
        return Row(4, f"Predict, 64 ragged, / onnxruntime, {self.name}", values, goal, "", context)

    def _row(
        self, measure: int, name: str, sides: list[Side], effort: Effort, goal: Goal | None
    ) -> Row:
        taken = take_turns(sides, effort)
        parts = {side.name: _per_s(taken[side.name]) for side in sides}
        context = ", ".join(f"{side} {rate:.0f}/s" for side, rate in parts.items())
        cpu = [1e6 / sample.per_cpu_s for sample in taken["ours"]]
        context += f"; {np.median(cpu):.0f} us of CPU each"
        limit = statistics.median(ratios(taken[BOTH], taken["echo"]))
        context += f"; the echo with a run each has {limit:.2f}"
        values = ratios(taken["ours"], taken["echo"])
        return Row(measure, f"{name}, {self.name}", values, goal, "", context, parts)

    def _side(self, name: str, load: Load) -> Side:
        return Side(name, self.serving.process.pid, load)

    def _echo_sides(self, count: int, *, streamed: bool) -> list[Side]:
        message = next(self._messages(1)[0])
        path = f"/{echo.SERVICE}/{echo.STREAM if streamed else echo.UNARY}"
        messages = [itertools.repeat(message) for _ in range(count)]
        return [
            Side(name, each.pid, _load(int(each.line), path, messages, streamed=streamed))
            for name, each in (("echo", self.echo), (BOTH, self.both))
        ]

    def _steps(self, count: int, path: str, *, streamed: bool) -> Load:
        return _load(_port(self.serving), path, self._messages(count), streamed=streamed)

    def _messages(self, count: int) -> list[Iterator[bytes]]:
        sessions = requests.open_sessions(self.serving.target, MODEL, count)
        return [requests.steps(session, self.spec) for session in sessions]

    def _raw(self, question: str) -> float:
        """Steps, or sequences, per CPU second of plain onnxruntime."""
        count, cpu_s = map(float, self.arithmetic.ask(question).split())
        return count / cpu_s


def _load(port: int, path: str, messages: list[Iterator[bytes]], *, streamed: bool) -> Load:
    address = ("127.0.0.1", port)
    return Load([Connection(address, path, each, streamed=streamed) for each in messages])


def _port(serving: Serving) -> int:
    return int(serving.target.rpartition(":")[2])


def _per_s(samples: list[Sample]) -> float:
    return float(np.median([sample.per_s for sample in samples]))
