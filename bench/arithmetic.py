"""The floor of the arithmetic: plain onnxruntime on batches of gathered state, without a server.

`python -m bench.arithmetic INPUT,HIDDEN,LAYERS,OUTPUT` answers each line of stdin by one line:
`steps BATCH SECONDS`     -> steps and CPU seconds of the portable graph at T = 1
`ragged GROUP SECONDS L,L,...`  -> sequences and CPU seconds of these lengths, in batches of GROUP;
they are sorted by length, so that there is little padding.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import onnxruntime as ort

from lstmserve.graph import build_portable
from lstmserve.head_layers import Linear
from lstmserve.spec import LstmSpec
from modelmaking import random_weights


def parse_spec(text: str) -> LstmSpec:
    """The spec that INPUT,HIDDEN,LAYERS,OUTPUT names."""
    inputs, hidden, layers, outputs = map(int, text.split(","))
    return LstmSpec(inputs, hidden, num_layers=layers, head=(Linear(outputs),))


class Arithmetic:
    """One session of the portable graph on one thread."""

    def __init__(self, spec: LstmSpec) -> None:
        self._spec = spec
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        content = build_portable(spec, random_weights(spec, 0)).SerializeToString()
        self._session = ort.InferenceSession(content, options)
        self._rng = np.random.default_rng(0)

    def feed(self, lengths: list[int]) -> dict[str, np.ndarray]:
        """Random x for a batch of these lengths, and zero states."""
        spec, shape = self._spec, (len(lengths), max(lengths), self._spec.input_size)
        states = (spec.num_layers, len(lengths), spec.hidden_size)
        return {
            "x": self._rng.standard_normal(shape).astype(np.float32),
            "lengths": np.array(lengths, np.int32),
            "h0": np.zeros(states, np.float32),
            "c0": np.zeros(states, np.float32),
        }

    def bound_step(self) -> Callable[[], object]:
        """Prepares a run of one row, T = 1. Calling it only runs onnxruntime."""
        binding = self._session.io_binding()
        for name, value in self.feed([1]).items():
            binding.bind_cpu_input(name, value)
        for output in self._session.get_outputs():
            binding.bind_output(output.name, "cpu")
        return lambda: self._session.run_with_iobinding(binding)

    def run(self, feeds: list[dict[str, np.ndarray]], seconds: float) -> tuple[int, float]:
        """Runs all feeds again and again for `seconds`. Returns how often, and the CPU seconds."""
        count, start_s = 0, time.process_time()
        end_s = time.perf_counter() + seconds
        while time.perf_counter() < end_s:
            for feed in feeds:
                self._session.run(None, feed)
            count += 1
        return count, time.process_time() - start_s


def answer(arithmetic: Arithmetic, line: str) -> str:
    """The answer to one line."""
    what, size, seconds, *rest = line.split()
    if what == "steps":
        feeds, each = [arithmetic.feed([1] * int(size))], int(size)
    else:
        lengths = sorted(map(int, rest[0].split(",")))
        starts = range(0, len(lengths), int(size))
        feeds = [arithmetic.feed(lengths[start : start + int(size)]) for start in starts]
        each = len(lengths)
    arithmetic.run(feeds, 0)
    count, cpu_s = arithmetic.run(feeds, float(seconds))
    return f"{count * each} {cpu_s}"


def main() -> None:
    """Answers until stdin ends."""
    arithmetic = Arithmetic(parse_spec(sys.argv[1]))
    print("ready", flush=True)
    for line in sys.stdin:
        print(answer(arithmetic, line), flush=True)


if __name__ == "__main__":
    main()
