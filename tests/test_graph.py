"""The two graphs: equal bits whatever the batch and the chunks, and updates in place."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from lstmserve.graph import build_pool, build_portable, weight_shapes
from lstmserve.graph.forms import state_widths
from lstmserve.head_layers import (
    ACTIVATIONS,
    BatchNorm,
    Elu,
    HeadLayer,
    LayerNorm,
    LeakyRelu,
    Linear,
)
from lstmserve.spec import LstmSpec
from modelmaking import random_input, random_state, random_weights, reference

HEAD = (Linear(3),)
SPECS = {
    "one layer": LstmSpec(5, 8, head=HEAD),
    "three layers": LstmSpec(5, 8, 3, head=HEAD),
    "no bias": LstmSpec(5, 8, 2, bias=False, head=(Linear(3, bias=False),)),
    "no head": LstmSpec(5, 8, 2),
    "wide": LstmSpec(33, 127, 2, head=(Linear(65), "relu", Linear(7))),
    "projection": LstmSpec(5, 8, 2, proj_size=3, head=HEAD),
    "embedding": LstmSpec(4, 8, num_embeddings=11, head=(Linear(11), "softmax")),
    "norms": LstmSpec(5, 8, head=("tanh", Linear(3)), input_norm=True, output_norm=True),
    "residual": LstmSpec(3, 8, 2, head=HEAD, input_norm=True, output_norm=True, residual=(2, 0, 2)),
    "residual of all": LstmSpec(5, 8, 2, proj_size=5, residual=(0, 1, 2, 3, 4)),
    "residual of tokens": LstmSpec(4, 8, num_embeddings=11, head=(Linear(1),), residual=(3,)),
    "initial state": LstmSpec(5, 8, 2, proj_size=3, head=HEAD, initial_state=True),
    "layers of the head": LstmSpec(
        5, 9, head=(LayerNorm(), Linear(7), BatchNorm(), "gelu", Linear(6), Elu(0.5), LeakyRelu())
    ),
}
BIDIRECTIONAL = {
    "bidirectional": LstmSpec(5, 8, 2, bidirectional=True, head=HEAD),
    "bidirectional projection": LstmSpec(5, 8, 2, proj_size=3, bidirectional=True, head=HEAD),
    "bidirectional residual": LstmSpec(
        5, 8, 2, bidirectional=True, head=HEAD, residual=(1, 1, 4), initial_state=True
    ),
}
ALL = SPECS | BIDIRECTIONAL
Outputs = tuple[np.ndarray, np.ndarray, np.ndarray]


def open_model(model: onnx.ModelProto) -> ort.InferenceSession:
    """The model in a plain onnxruntime session with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # the tests expect refusals, and get them as exceptions
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


class Portable:
    """A spec's portable graph with random weights and inputs: 16 ragged sequences of 12 rows."""

    def __init__(self, spec: LstmSpec) -> None:
        self.spec, self.weights = spec, random_weights(spec, 1)
        self.session = open_model(build_portable(spec, self.weights))
        self.x = random_input(spec, (16, 12), 2)
        self.h0, self.c0 = random_state(spec, 16, 3)
        self.lengths = np.random.default_rng(4).integers(1, 13, 16).astype(np.int32)
        self.lengths[0] = 12

    def run(self, x: np.ndarray, lengths: np.ndarray, h0: np.ndarray, c0: np.ndarray) -> Outputs:
        """y, hn, cn."""
        name = "tokens" if self.spec.num_embeddings else "x"
        feed = {name: x, "lengths": lengths, "h0": h0, "c0": c0}
        y, hn, cn = self.session.run(["y", "hn", "cn"], feed)
        return y, hn, cn

    def whole(self) -> Outputs:
        """All sequences in one call; y past a length is zeroed, for comparisons."""
        return self.masked(self.run(self.x, self.lengths, self.h0, self.c0))

    def masked(self, outputs: Outputs) -> Outputs:
        """The outputs with y past a length zeroed."""
        y, hn, cn = outputs
        valid = self.lengths[:, None] > np.arange(y.shape[1])
        return np.where(valid[:, :, None], y, np.float32(0)), hn, cn

    def chunked(self, cuts: Sequence[int]) -> Outputs:
        """The sequences in chunks; one that has ended takes part with length 0."""
        ys, h, c = [], self.h0, self.c0
        for start, stop in pairwise(cuts):
            lengths = np.clip(self.lengths - start, 0, stop - start).astype(np.int32)
            y, h, c = self.run(self.x[:, start:stop], lengths, h, c)
            ys.append(y)
        return self.masked((np.concatenate(ys, 1), h, c))


def run_pool(portable: Portable, rows: Sequence[int]) -> Outputs:
    """The given sequences through the pool graph, from scattered slots to others."""
    spec, count, slots = portable.spec, len(rows), 100
    session = open_model(build_pool(spec, portable.weights))
    rng = np.random.default_rng(5)
    read, write = rng.permutation(slots)[: 2 * count].reshape(2, count)
    lengths = portable.lengths[list(rows)]
    feed = {
        "x_time_major": portable.x[list(rows), : lengths.max()].swapaxes(0, 1).copy(),
        "lengths": lengths,
        "read": read[None],
        "write": write[None, :, None],
    }
    for name, width in state_widths(spec).items():
        kind, layer = name.split(".")
        feed[name] = rng.standard_normal((slots, width)).astype(np.float32)
        feed[name][read] = (portable.h0 if kind == "h" else portable.c0)[int(layer), list(rows)]
    names = ["y", *(f"{name}/next" for name in state_widths(spec))]
    results = dict(zip(names, session.run(names, feed), strict=True))
    layers = range(spec.num_layers)
    hn, cn = (np.stack([results[f"{k}.{i}/next"][write] for i in layers]) for k in ("h", "c"))
    for name in state_widths(spec):
        before, after = (np.delete(t, write, 0) for t in (feed[name], results[f"{name}/next"]))
        np.testing.assert_array_equal(after, before)  # no other slot changed
    return results["y"].swapaxes(0, 1), hn, cn


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_portable_and_pool_give_equal_bits(spec: LstmSpec) -> None:
    """A model may be proved on one graph and served on the other."""
    portable = Portable(spec)
    y, hn, cn = portable.masked(run_pool(portable, range(16)))
    for pool, whole in zip((y, hn, cn), portable.whole(), strict=True):
        np.testing.assert_array_equal(pool, whole)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_row_in_the_pool_has_its_bits_in_any_company(spec: LstmSpec) -> None:
    """A row has the same bits alone, in pairs and in fives."""
    portable = Portable(spec)
    y, hn, cn = portable.whole()
    for rows in ([3], [7, 0], [15, 2, 9, 4, 11]):
        part_y, part_hn, part_cn = run_pool(portable, rows)
        np.testing.assert_array_equal(part_hn, hn[:, rows])
        np.testing.assert_array_equal(part_cn, cn[:, rows])
        for place, row in enumerate(rows):
            length = portable.lengths[row]
            np.testing.assert_array_equal(part_y[place, :length], y[row, :length])


@pytest.mark.parametrize("spec", ALL.values(), ids=ALL)
def test_every_sequence_alone_has_the_bits_it_has_in_the_batch(spec: LstmSpec) -> None:
    """Padding, neighbours and the size of the batch do not change a sequence's bits."""
    portable = Portable(spec)
    y, hn, cn = portable.whole()
    for n, length in enumerate(portable.lengths):
        one = slice(n, n + 1)
        alone = portable.run(
            portable.x[one, :length],
            portable.lengths[one],
            portable.h0[:, one],
            portable.c0[:, one],
        )
        np.testing.assert_array_equal(alone[0], y[one, :length])
        np.testing.assert_array_equal(alone[1], hn[:, one])
        np.testing.assert_array_equal(alone[2], cn[:, one])


LAYERS: dict[str, HeadLayer] = {name: name for name in ACTIVATIONS} | {
    str(layer): layer
    for layer in (Elu(), Elu(0.5), LeakyRelu(), LayerNorm(), LayerNorm(1e-3, False, False))
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_layer_of_the_head_is_exact_at_every_width(layer: HeadLayer) -> None:
    """A row of any width has the same bits alone and in batches, where vector code ends elsewhere,
    and they are the float64 formula's within rounding."""
    for width in (*range(1, 20), 31, 33, 65, 130):
        spec = LstmSpec(2, 3, head=(Linear(width), layer))
        weights = {n: 8 * each for n, each in random_weights(spec, width).items()}
        session = open_model(build_portable(spec, weights))
        x, (h0, c0) = random_input(spec, (23, 1), width), random_state(spec, 23, width)
        ones = np.ones(23, np.int32)
        (y,) = session.run(["y"], {"x": x, "lengths": ones, "h0": h0, "c0": c0})
        for rows in (slice(1), slice(5, 6), slice(3, 7), slice(2, 19)):
            feed = {"x": x[rows], "lengths": ones[rows], "h0": h0[:, rows], "c0": c0[:, rows]}
            (part,) = session.run(["y"], feed)
            np.testing.assert_array_equal(part, y[rows], err_msg=f"{width} wide")
        exact = [reference(spec, weights, x[n], h0[:, n], c0[:, n])[0] for n in range(23)]
        np.testing.assert_allclose(y, exact, rtol=1e-4, atol=1e-4, err_msg=f"{width} wide")


@pytest.mark.parametrize("cuts", [range(13), [0, 5, 6, 12], [0, 1, 12]], ids=str)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_chunks_have_the_bits_of_the_whole(spec: LstmSpec, cuts: Sequence[int]) -> None:
    """Ten thousand rows may come in one step or in ten thousand."""
    portable = Portable(spec)
    for chunk, whole in zip(portable.chunked(cuts), portable.whole(), strict=True):
        np.testing.assert_array_equal(chunk, whole)


@pytest.mark.parametrize("spec", ALL.values(), ids=ALL)
def test_a_sequence_without_rows_keeps_its_state(spec: LstmSpec) -> None:
    """A sequence without rows keeps its state, where onnxruntime's own LSTM would answer zeros."""
    portable = Portable(spec)
    lengths = np.where(np.arange(16) % 3, portable.lengths, 0).astype(np.int32)
    _, hn, cn = portable.run(portable.x, lengths, portable.h0, portable.c0)
    np.testing.assert_array_equal(hn[:, ::3], portable.h0[:, ::3])
    np.testing.assert_array_equal(cn[:, ::3], portable.c0[:, ::3])
    assert (hn[:, 1::3] != portable.h0[:, 1::3]).any()


def test_what_stands_in_the_padding_does_not_matter() -> None:
    """Padding does not matter, not even NaN, which onnxruntime's LSTM turns into finite numbers."""
    portable = Portable(SPECS["three layers"])
    expected = portable.whole()
    past = np.arange(12) >= portable.lengths[:, None]
    portable.x = np.where(past[:, :, None], np.float32(np.nan), portable.x)
    for actual, wanted in zip(portable.whole(), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_pool_input_has_exactly_two_readers(spec: LstmSpec) -> None:
    """They are its Gather and its ScatterND, whose output is a graph output; otherwise there is no
    update in place."""
    graph = build_pool(spec, random_weights(spec, 0)).graph
    outputs = {value.name for value in graph.output}
    for name in state_widths(spec):
        readers = [node for node in graph.node if name in node.input]
        assert sorted(node.op_type for node in readers) == ["Gather", "ScatterND"]
        (scatter,) = (node for node in readers if node.op_type == "ScatterND")
        assert list(scatter.output) == [f"{name}/next"]
        assert scatter.input[0] == name
        assert f"{name}/next" in outputs
        assert not any(f"{name}/next" in node.input for node in graph.node)


@pytest.mark.parametrize("spec", ALL.values(), ids=ALL)
def test_weights_are_constants_and_never_graph_inputs(spec: LstmSpec) -> None:
    """onnxruntime prepacks constants only, and without prepacking a batch of one has other bits."""
    graph = build_portable(spec, random_weights(spec, 0)).graph
    inputs = {value.name for value in graph.input}
    initializers = {tensor.name for tensor in graph.initializer}
    assert set(weight_shapes(spec)) <= initializers
    assert not inputs & initializers
    matrices = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
    assert all(len(t.dims) == 2 for t in graph.initializer if t.name in matrices)


@pytest.mark.parametrize("spec", BIDIRECTIONAL.values(), ids=BIDIRECTIONAL)
def test_a_bidirectional_model_has_no_pool(spec: LstmSpec) -> None:
    """A bidirectional model reads whole sequences, so it has no pool."""
    with pytest.raises(ValueError, match="no pool"):
        build_pool(spec, random_weights(spec, 0))
