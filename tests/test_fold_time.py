"""Many time steps of a step graph at once, without a Scan, give the bits of single time steps; the
loop and the self-test find planted bugs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from foldgraphs import FOLDED, ONE, SLOTS, H, edited, hold, is_rounded, is_scan, random_x
from lstmserve.engine.compute.kernel import Kernel
from lstmserve.engine.compute.pool import Pool
from lstmserve.engine.compute.selftest import BatchCheck, Draw, SelfTestFailed
from lstmserve.golden import Golden
from lstmserve.graph import PoolNetwork, StepNetwork, step_network
from lstmserve.rows import RowFormat
from stepgraph import Step


@pytest.mark.parametrize("name", FOLDED)
def test_a_chunk_equals_its_time_steps(name: str) -> None:
    """Bit for bit (but for an RNN), in a ragged batch whose padding is NaN, without a Scan."""
    network = FOLDED[name].network()
    assert network.scans_because == ""
    assert not is_scan(network)
    hold(FOLDED[name], network, 1)


@pytest.mark.parametrize("name", FOLDED)
def test_one_graph_for_all_lengths_gives_the_same_bits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large network has no graph of its own for single time steps."""
    monkeypatch.setattr(step_network, "ONE_GRAPH_BYTES", 0)
    network = FOLDED[name].network()
    assert network.build_step() is None
    hold(FOLDED[name], network, 2)
    hold(FOLDED[name], network, 3, np.ones(5, np.int32))
    hold(FOLDED[name], network, 4, np.array([1]))


def test_a_large_network_has_one_graph() -> None:
    """From a MiB of weights on, unless it needs the Scan, which a single time step does not."""
    small, large = (np.zeros(count, np.float32) for count in (1 << 10, 1 << 18))
    scanned = edited(ONE, ("Y a01 -> Squeeze y", "cn a0 -> Squeeze y"))
    for step, weight, is_one in ((ONE, large, True), (ONE, small, False), (scanned, large, False)):
        network = replace(step, constants={**step.constants, "weight": weight}).network()
        assert (network.build_step() is None) == is_one


# Planted bugs -------------------------------------------------------------------------------------


def golden(step: Step) -> dict[str, Golden]:
    """Inputs alone, from which the self-test draws its own."""
    x = RowFormat(step.spec.inputs).split(random_x(step, np.random.default_rng(0), 4, 9))
    return {"case": Golden(x, np.array([9, 1, 5, 7], np.int32), None, {}, {}, torch_error=0.0)}


def is_exact(step: Step, network: PoolNetwork) -> bool:
    """What the self-test measures. Raises SelfTestFailed."""
    pool = Pool(network.layout, SLOTS)
    kernel = Kernel(network, pool, "cpu", 1)
    return BatchCheck(kernel, pool, Draw(step.spec, golden(step))).check() == 0


@pytest.mark.parametrize("name", FOLDED)
def test_the_self_test_finds_folded_networks_exact(name: str) -> None:
    """But for an RNN, whose rounding is up to onnxruntime."""
    step = FOLDED[name]
    assert is_exact(step, step.network()) or is_rounded(step)


def recurrent(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that run over time."""
    return [node for node in graph.node if node.op_type in ("LSTM", "GRU", "RNN")]


def without_lengths(graph: onnx.GraphProto) -> None:
    """Each row runs to the end of the longest."""
    recurrent(graph)[0].input[4] = ""


def without_start(graph: onnx.GraphProto) -> None:
    """A chunk begins from zeros."""
    recurrent(graph)[0].input[5] = ""


def exchanged_axes(graph: onnx.GraphProto) -> None:
    """Rows are taken as b * T + t."""
    node = recurrent(graph)[0]
    first = next(each for each in graph.node if each.output[0] == node.input[0])
    first.output[0] = "planted/turned"
    shape = next(each for each in graph.node if each.output[0] == first.input[1])
    assert shape.op_type == "Concat"
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "planted/one"))
    graph.initializer.append(numpy_helper.from_array(np.array([H]), "planted/width"))
    graph.initializer.append(numpy_helper.from_array(np.array([-1]), "planted/rest"))
    new = [
        helper.make_node(
            "Concat", ["planted/rest", "time/steps", "planted/width"], ["planted/shape"], axis=0
        ),
        helper.make_node("Reshape", [first.input[0], "planted/shape"], ["planted/by_row"]),
        helper.make_node("Transpose", ["planted/by_row"], [node.input[0]], perm=[1, 0, 2]),
    ]
    index = list(graph.node).index(node)
    for each in reversed(new):
        graph.node.insert(index, each)


def state_of_the_longest(graph: onnx.GraphProto) -> None:
    """Each row's state is that of the last time step of the batch, not of its own."""
    node = recurrent(graph)[0]
    after = node.output[1]
    node.output[1] = "planted/after"
    graph.initializer.append(numpy_helper.from_array(np.array(-1), "planted/last"))
    index = list(graph.node).index(node) + 1
    graph.node.insert(
        index, helper.make_node("Gather", [node.output[0], "planted/last"], [after], axis=0)
    )


def exchanged_states(graph: onnx.GraphProto) -> None:
    """h is written where c belongs."""
    node = recurrent(graph)[0]
    node.output[1], node.output[2] = node.output[2], node.output[1]


def old_states(graph: onnx.GraphProto) -> None:
    """The states are those before the chunk."""
    for node in graph.node:
        if node.op_type == "ScatterND":
            node.input[2] = node.input[2].replace("after/", "before/").replace(".next", "")


def first_outputs(graph: onnx.GraphProto) -> None:
    """Every time step answers what the first does."""
    node = recurrent(graph)[0]
    ys = node.output[0]
    node.output[0] = "planted/ys"
    graph.initializer.append(numpy_helper.from_array(np.array([0]), "planted/first"))
    index = list(graph.node).index(node) + 1
    for op, inputs, output in (
        ("Expand", ["planted/y", "planted/shape"], ys),
        ("Shape", ["planted/ys"], "planted/shape"),
        ("Gather", ["planted/ys", "planted/first"], "planted/y"),
    ):
        graph.node.insert(index, helper.make_node(op, inputs, [output]))


BUGS = [
    without_lengths,
    without_start,
    exchanged_axes,
    state_of_the_longest,
    exchanged_states,
    old_states,
    first_outputs,
]


class Bug(PoolNetwork):
    """A folded network whose graph of chunks has a planted bug."""

    def __init__(self, network: StepNetwork, plant: Callable[[onnx.GraphProto], None]) -> None:
        self._network = network
        self.layout = network.layout
        self._plant = plant

    def build_step(self) -> onnx.ModelProto | None:
        """As it is."""
        return self._network.build_step()

    def build_chunk(self) -> onnx.ModelProto:
        """With the bug."""
        model = self._network.build_chunk()
        self._plant(model.graph)
        return model


@pytest.mark.parametrize("is_one_graph", [False, True], ids=["two graphs", "one graph"])
@pytest.mark.parametrize("plant", BUGS)
def test_a_planted_bug_of_the_rewrite_is_found(
    plant: Callable[[onnx.GraphProto], None], is_one_graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the loop, and by the self-test of a start: it compares chunks with single time steps."""
    if is_one_graph:
        monkeypatch.setattr(step_network, "ONE_GRAPH_BYTES", 0)
    with pytest.raises(AssertionError):
        hold(ONE, Bug(ONE.network(), plant), 6)
    with pytest.raises(SelfTestFailed):
        is_exact(ONE, Bug(ONE.network(), plant))
