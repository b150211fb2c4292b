"""What a step graph costs beside the own graph of the same nn.LSTM, over one time step and many.

Run by `make bench`. The forms of a network take turns in one process: `own` is the graph of kind
"lstm", `step` or `scan` is the step graph as it is for T = 1 or in a Scan for T > 1, and `fold` is
the step graph with time folded into the batch. A line gives the median of each in us. Timings are
never pass or fail.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import pytest

from lstmserve.engine.compute.kernel import Kernel
from lstmserve.engine.compute.pool import Pool
from lstmserve.graph import LstmNetwork, PoolNetwork, StepNetwork, step_network
from lstmserve.graph.fold import Fold
from lstmserve.graph.row_wise import Unfoldable
from lstmserve.head_layers import Linear
from lstmserve.spec import LstmSpec, ModelSpec, TensorSpec
from modelmaking import random_weights
from stepgraph import Step

SIZE, OUTPUTS = 64, 8
NETWORKS = {"LSTM": ("LSTM", 64, 1), "LSTM of 2 layers": ("LSTM", 256, 2), "GRU": ("GRU", 64, 1)}
SHAPES = [(1, 1), (1, 32), (16, 1), (16, 32), (256, 8)]
SLOTS = 1000
CELLS = 4000  # rounds are so many, divided by the time steps


def step(kind: str, hidden: int, layers: int) -> Step:
    """Recurrent layers and a Linear, as the exporter writes them."""
    rng = np.random.default_rng(0)
    states = ("h", "c") if kind == "LSTM" else ("h",)
    rows, top = {"LSTM": 4, "GRU": 3}[kind] * hidden, "x1"
    shapes: dict[str, tuple[int, ...]] = {"head": (hidden, OUTPUTS), "bias": (OUTPUTS,)}
    lines = ["x a0 -> Unsqueeze x1"]
    for name in states:
        parts = " ".join(f"{name}{i}" for i in range(layers))
        lines.append(f"{name} -> Transpose+perm=1,0,2 {name}t")
        lines.append(f"{name}t -> Split+axis=0+num_outputs={layers} {parts}")
    for i in range(layers):
        width = hidden if i else SIZE
        shapes |= {f"W{i}": (1, rows, width), f"R{i}": (1, rows, hidden), f"B{i}": (1, 2 * rows)}
        now, after = (" ".join(f"{name}{i}{end}" for name in states) for end in ("", "n"))
        given = "+linear_before_reset=1" * (kind == "GRU")
        node = f"{kind}+hidden_size={hidden}{given}"
        lines.append(f"{top} W{i} R{i} B{i} . {now} -> {node} Y{i} {after}")
        top = f"y{i}"
        lines.append(f"Y{i} a1 -> Squeeze {top}")
    for name in states:
        parts = " ".join(f"{name}{i}n" for i in range(layers))
        lines.append(f"{parts} -> Concat+axis=0 {name}n")
        lines.append(f"{name}n -> Transpose+perm=1,0,2 {name}.next")
    lines += [f"{top} a0 -> Squeeze flat", "flat head -> MatMul logits", "logits bias -> Add y"]
    found = {n: rng.uniform(-0.1, 0.1, each).astype(np.float32) for n, each in shapes.items()}
    spec = ModelSpec(
        (TensorSpec("x", (SIZE,)),),
        (TensorSpec("y", (OUTPUTS,)),),
        tuple(TensorSpec(name, (layers, hidden)) for name in states),
    )
    constants = {**found, "a0": np.array([0]), "a1": np.array([1])}
    return Step(spec, "\n".join(lines), constants)


def forms(name: str, patch: pytest.MonkeyPatch) -> dict[str, PoolNetwork]:
    """The same network in each form."""
    kind, hidden, layers = NETWORKS[name]
    found: dict[str, PoolNetwork] = {}
    if kind == "LSTM":
        lstm = LstmSpec(SIZE, hidden, num_layers=layers, head=(Linear(OUTPUTS),))
        found["own"] = LstmNetwork(lstm, random_weights(lstm, 0))
    graph = step(kind, hidden, layers)
    patch.setattr(step_network, "ONE_GRAPH_BYTES", 0)
    found["fold"] = graph.network()

    def refuse(*_: Any) -> None:
        raise Unfoldable("measured")

    patch.setattr(Fold, "__init__", refuse)
    found["scan"] = graph.network()
    assert isinstance(found["scan"], StepNetwork)
    assert found["scan"].scans_because
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "T={} B={}".format(*shape))
@pytest.mark.parametrize("name", NETWORKS)
def test_forms(
    benchmark: Any, name: str, shape: tuple[int, int], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run of each kernel; the benchmark's own figure is that of all."""
    length, size = shape
    kernels = {}
    for form, network in forms(name, monkeypatch).items():
        kernels[form] = Kernel(network, Pool(network.layout, SLOTS), "cpu", 1)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((length, size, SIZE)).astype(np.float32)
    lengths, read = np.full(size, length, np.int32), np.arange(1, size + 1)
    run = x, lengths, read, read + SLOTS // 2
    times: dict[str, list[float]] = {form: [] for form in kernels}

    def turns() -> None:
        """In any order, because the one before leaves the caches to the next."""
        for form in rng.permutation(list(kernels)):
            start = time.perf_counter()
            kernels[form].run(*run)
            times[form].append(1e6 * (time.perf_counter() - start))

    rounds = max(20, CELLS // length)
    benchmark.pedantic(turns, rounds=rounds, warmup_rounds=3)
    medians = {form: statistics.median(each[3:]) for form, each in times.items()}
    benchmark.extra_info.update(medians)
    with capsys.disabled():
        line = "  ".join(f"{form} {each:,.1f}" for form, each in medians.items())
        print(f"\n{name} T={length} B={size}: {line}")
