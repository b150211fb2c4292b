"""Step graphs by hand that are folded over time, and hold(), which checks any network's time steps.

It runs a network in a pool as the server does, beside the plain loop over single time steps
(stepgraph.StepLoop).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lstmserve.engine.compute.kernel import Kernel
from lstmserve.engine.compute.pool import INITIAL, Pool
from lstmserve.graph import PoolNetwork, StepNetwork
from lstmserve.rows import RowFormat, Rows, unknown_rows
from lstmserve.spec import ModelSpec, TensorSpec
from stepgraph import Array, Step, StepLoop

SLOTS = 80
LENGTHS = np.array([7, 1, 4, 7, 2, 5, 3, 1, 6], np.int32)
AXES = {"a0": [0], "a1": [1], "a01": [0, 1], "halves": [1, 1]}
H = 6


def weights(seed: int, **shapes: tuple[int, ...]) -> dict[str, Array]:
    """Random weights, and vectors of axes."""
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {name: np.array(axes) for name, axes in AXES.items()}
    for name, shape in shapes.items():
        found[name] = rng.uniform(-0.5, 0.5, shape).astype(np.float32)
    return found


def cell(kind: str, name: str = "", width: int = H, size: int = H) -> dict[str, tuple[int, ...]]:
    """Shapes of W, R and B of a recurrent node."""
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind] * size
    return {
        f"W{name}": (1, rows, width),
        f"R{name}": (1, rows, size),
        f"B{name}": (1, 2 * rows),
    }


def spec(
    states: str,
    inputs: tuple[TensorSpec, ...] = (TensorSpec("x", (H,)),),
    outputs: tuple[TensorSpec, ...] = (TensorSpec("y", (H,)),),
) -> ModelSpec:
    """States by name, as `h c:2` for h [1, H] and c [2, H]."""
    pairs = (each.partition(":") for each in states.split())
    found = tuple(TensorSpec(name, (int(layers or 1), H)) for name, _, layers in pairs)
    return ModelSpec(inputs, outputs, found)


LSTM = """
x a0 -> Unsqueeze x1
h -> Transpose+perm=1,0,2 h0
c -> Transpose+perm=1,0,2 c0
x1 W R B . h0 c0 -> LSTM+hidden_size=6 Y hn cn
hn -> Transpose+perm=1,0,2 h.next
cn -> Transpose+perm=1,0,2 c.next
Y a01 -> Squeeze y
"""
ONE = Step(spec("h c"), LSTM, weights(0, **cell("LSTM")))
GRU = """
x a0 -> Unsqueeze x1
h -> Transpose+perm=1,0,2 h0
x1 W R B . h0 -> GRU+hidden_size=6+linear_before_reset=1 Y hn
hn -> Transpose+perm=1,0,2 h.next
Y a01 -> Squeeze y
"""
RNN = GRU.replace("GRU+hidden_size=6+linear_before_reset=1", "RNN+hidden_size=6+activations=Relu,")
FRONT = """
x scale shift -> LayerNormalization+axis=-1 normed
normed front -> MatMul fronted
fronted frontb -> Add fronted1
fronted1 -> Gelu active
active a0 -> Unsqueeze x1
h -> Transpose+perm=1,0,2 h0
c -> Transpose+perm=1,0,2 c0
x1 W R B . h0 c0 -> LSTM+hidden_size=6 Y hn cn
hn -> Transpose+perm=1,0,2 h.next
cn -> Transpose+perm=1,0,2 c.next
Y a01 -> Squeeze l
l active -> Add res
res bns bnb bnm bnv -> BatchNormalization bn
bn head headb -> Gemm+transB=1 logits
logits -> Softmax+axis=-1 score
logits -> ArgMax+axis=1+keepdims=0 label
"""
STACKED = """
x a0 -> Unsqueeze x1
h halves -> Split+axis=1 hA hB
hA -> Transpose+perm=1,0,2 hA0
hB -> Transpose+perm=1,0,2 hB0
c halves -> Split+axis=1 cA cB
cA -> Transpose+perm=1,0,2 cA0
cB -> Transpose+perm=1,0,2 cB0
x1 W R B . hA0 cA0 -> LSTM+hidden_size=6 YA hAn cAn
YA a1 -> Squeeze yA
yA W2 R2 B2 . hB0 cB0 -> LSTM+hidden_size=6 YB hBn cBn
hAn hBn -> Concat+axis=0 hs
hs -> Transpose+perm=1,0,2 h.next
cAn cBn -> Concat+axis=0 cs
cs -> Transpose+perm=1,0,2 c.next
YB a1 -> Squeeze yB
yB x1 -> Add res
g first -> Gather+axis=1 gA
g second -> Gather+axis=1 gB
gA a0 -> Unsqueeze gA0
gB a0 -> Unsqueeze gB0
res GW GR GB . gA0 -> GRU+hidden_size=6+linear_before_reset=1 ZA gAn
ZA a1 -> Squeeze zA
zA GW2 GR2 GB2 . gB0 -> GRU+hidden_size=6 ZB gBn
gAn a0 -> Squeeze gAs
gBn a0 -> Squeeze gBs
gAs a1 -> Unsqueeze gAu
gBs a1 -> Unsqueeze gBu
gAu gBu -> Concat+axis=1 g.next
ZB a01 -> Squeeze y
"""
LAST = """
x a0 -> Unsqueeze x1
h -> Transpose+perm=1,0,2 h0
c -> Transpose+perm=1,0,2 c0
x1 W R B . h0 c0 -> LSTM+hidden_size=6 . hn cn
hn -> Transpose+perm=1,0,2 h.next
cn -> Transpose+perm=1,0,2 c.next
hn last -> Gather+axis=0 y
"""
BY_Y = """
x a0 -> Unsqueeze x1
h -> Transpose+perm=1,0,2 h0
x1 W R B . h0 -> GRU+hidden_size=6 Y
Y a1 -> Squeeze Ys
Ys -> Transpose+perm=1,0,2 h.next
Y a01 -> Squeeze y
"""
TOKENS = """
table word -> Gather embedded
table tag -> Gather tagged
embedded tagged gain -> Sum both
both a0 -> Unsqueeze x1
h -> Transpose+perm=1,0,2 h0
x1 W R B . h0 -> GRU+hidden_size=6 Y hn
hn -> Transpose+perm=1,0,2 h.next
Y a01 -> Squeeze l
l head -> MatMul y
word tag -> Max z
"""
SHAPES = """
x -> Shape shape
shape i0 -> Gather+axis=0 n
n a0 -> Unsqueeze n1
one1 n1 width -> Concat+axis=0 target
x target -> Reshape x1
h -> Shape hshape
hshape a0 a1 -> Slice hn1
one1 hn1 width -> Concat+axis=0 htarget
h htarget -> Reshape h0
c target -> Reshape c0
zero target -> Expand zeros
x1 zeros -> Add x2
x2 W R B . h0 c0 -> LSTM+hidden_size=6 Y hn cn
n1 one1 width -> Concat+axis=0 back
hn back -> Reshape h.next
cn back -> Reshape c.next
n1 width -> Concat+axis=0 flat
Y flat -> Reshape y
"""
SIDES = """
x a0 -> Unsqueeze x1
h -> Transpose+perm=1,0,2 h0
c -> Transpose+perm=1,0,2 c0
g -> Transpose+perm=1,0,2 g0
Wt -> Transpose+perm=0,2,1 W
x1 W R . . h0 c0 P -> LSTM+hidden_size=6+clip=0.4+input_forget=1 Y hn cn
x1 GW GR GB . g0 -> RNN+hidden_size=6 Z gn
hn -> Transpose+perm=1,0,2 h.next
cn -> Transpose+perm=1,0,2 c.next
gn -> Transpose+perm=1,0,2 g.next
Y Z -> Concat+axis=3 both
both a01 -> Squeeze flat
flat head -> MatMul y
"""
CONV = """
image kernel kernelb -> Conv+pads=1,1 seen
seen -> Relu seen1
seen1 -> MaxPool+kernel_shape=2,+strides=2, pooled
pooled -> Flatten+axis=1 flat
h -> Transpose+perm=1,0,2 h0
flat a0 -> Unsqueeze x1
x1 W R B . h0 -> RNN+hidden_size=6 Y hn
hn -> Transpose+perm=1,0,2 h.next
Y a01 -> Squeeze l
l minus big a1 -> Slice tail
l tail -> Concat+axis=1 wide
wide two -> Reshape pairs
pairs a1 -> ReduceMean+keepdims=0 y
"""


GAIN = TensorSpec("gain", (1,))
HEADED = weights(
    3, **cell("LSTM"), scale=(H,), shift=(H,), front=(H, H), frontb=(H,), head=(3, H), headb=(3,),
    bns=(H,), bnb=(H,), bnm=(H,),
) | {"bnv": np.full(H, 0.7, np.float32)}  # fmt: skip
FOLDED: dict[str, Step] = {
    "an LSTM": ONE,
    "a GRU": Step(spec("h"), GRU, weights(1, **cell("GRU"))),
    "an RNN": Step(spec("h"), RNN, weights(2, **cell("RNN"))),
    "front, LSTM, residual, two heads": Step(
        spec("h c", outputs=(TensorSpec("score", (3,)), TensorSpec("label", (), "int64"))),
        FRONT,
        HEADED,
    ),
    "two LSTM and two GRU layers, residual": Step(
        spec("h:2 c:2 g:2"),
        STACKED,
        weights(4, **cell("LSTM"), **cell("LSTM", "2"))
        | {f"G{n}": each for n, each in weights(5, **cell("GRU"), **cell("GRU", "2")).items()}
        | {"first": np.array(0), "second": np.array(1)},
    ),
    "the output is hn[-1]": Step(spec("h c"), LAST, ONE.constants | {"last": np.array(-1)}),
    "the state is the output": Step(spec("h"), BY_Y, weights(6, **cell("GRU"))),
    "tokens": Step(
        spec(
            "h",
            (TensorSpec("word", (), "int64"), TensorSpec("tag", (), "int64"), GAIN),
            (TensorSpec("y", (2,)), TensorSpec("z", (), "int64")),
        ),
        TOKENS,
        weights(7, **cell("GRU"), table=(5, H), head=(H, 2)),
    ),
    "a learned start": Step(spec("h c"), LSTM, ONE.constants | weights(8, **{
        "h.initial": (1, H), "c.initial": (1, H)})),
    "shapes that are computed": Step(
        spec("h c"),
        SHAPES,
        ONE.constants
        | {"i0": np.array(0), "one1": np.array([1]), "width": np.array([H])}
        | {"zero": np.array([0.25], np.float32)},
    ),
    "two nodes of one input": Step(
        spec("h c g", outputs=(TensorSpec("y", (2,)),)),
        SIDES,
        weights(9, Wt=(1, H, 4 * H), R=(1, 4 * H, H), P=(1, 3 * H), head=(2 * H, 2))
        | {f"G{n}": each for n, each in weights(10, **cell("RNN")).items()},
    ),
    "a convolution over features": Step(
        spec("h", (TensorSpec("image", (2, 4)),), (TensorSpec("y", (4,)),)),
        CONV,
        weights(11, **cell("RNN"), kernel=(3, 2, 3), kernelb=(3,))
        | {"minus": np.array([-2]), "big": np.array([1 << 40]), "two": np.array([0, 2, 4])},
    ),
    "opset 13": replace(ONE, opset=13),
    "opset 22": replace(ONE, opset=22),
}  # fmt: skip


def edited(step: Step, *changes: tuple[str, str], **constants: Array) -> Step:
    """With other lines, and further constants."""
    nodes = step.nodes
    for old, new in changes:
        assert old in nodes
        nodes = nodes.replace(old, new)
    return replace(step, nodes=nodes, constants={**step.constants, **constants})


def with_state(step: Step, nodes: str, name: str = "s", **constants: Array) -> Step:
    """With a state more, [1, H]."""
    old = step.spec
    spec = ModelSpec(old.inputs, old.outputs, (*old.states, TensorSpec(name, (1, H))))
    return replace(
        step, spec=spec, nodes=step.nodes + nodes, constants={**step.constants, **constants}
    )


# As served ----------------------------------------------------------------------------------------


def random_x(step: Step, rng: np.random.Generator, *shape: int) -> Rows:
    """Rows [*shape] of the inputs; an integer is one of five."""
    return RowFormat(step.spec.inputs).pack(
        {
            each.name: rng.integers(0, 5, (*shape, *each.shape))
            if each.dtype == "int64"
            else rng.standard_normal((*shape, *each.shape)).astype(np.float32)
            for each in step.spec.inputs
        }
    )


def random_states(step: Step, rng: np.random.Generator, count: int) -> dict[str, Array]:
    """Name -> [count, *shape]."""
    return {
        each.name: rng.uniform(-0.9, 0.9, (count, *each.shape)).astype(each.dtype)
        for each in step.spec.states
    }


def nearly_equal(actual: Array, wanted: Array) -> None:
    """But for rounding."""
    np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


EQUAL: dict[bool, Callable[[Array, Array], None]] = {
    True: np.testing.assert_array_equal,
    False: nearly_equal,
}


def is_rounded(step: Step) -> bool:
    """onnxruntime does not prepack the weights of an RNN, and may round a row alone in another way
    than one in a batch, with a Scan as well as without."""
    return "RNN" in step.nodes


def hold(
    step: Step,
    network: PoolNetwork,
    seed: int,
    lengths: Array = LENGTHS,
    equal: Callable[[Array, Array], None] | None = None,
) -> None:
    """Holds a ragged batch in a pool to the plain loop over single time steps: the outputs up to
    each length, and the states. Every other row begins from the initial state."""
    equal = equal or EQUAL[not is_rounded(step)]
    rng, loop, size = np.random.default_rng(seed), StepLoop.of(step), len(lengths)
    pool = Pool(network.layout, SLOTS)
    kernel = Kernel(network, pool, "cpu", 1)
    slots = rng.permutation(pool.take(3 * size))
    read, write, later = (slots[i * size : (i + 1) * size].copy() for i in range(3))
    states = random_states(step, rng, size)
    pool.write(read, states)
    read[::2] = INITIAL
    for turn, target in enumerate((write, later)):  # the second goes on where the first ended
        starts = pool.read(read if turn == 0 else write)
        x = random_x(step, rng, int(lengths.max()), size)
        for row, length in enumerate(lengths):
            x[length:, row] = unknown_rows((), x.dtype) if x.ndim == 2 else np.nan
        y = kernel.run(x, lengths, read if turn == 0 else write, target)
        ends = pool.read(target)
        for row, length in enumerate(lengths.tolist()):
            start = {name: each[row] for name, each in starts.items()}
            wanted, end = loop.run(x[:length, row], start)
            equal(y[:length, row], wanted)
            for name, each in end.items():
                equal(ends[name][row], each)


def is_scan(network: StepNetwork) -> bool:
    """Whether its chunks run in a Scan."""
    return any(node.op_type == "Scan" for node in network.build_chunk().graph.node)
