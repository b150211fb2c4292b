"""Step graphs whose chunks stay in a Scan, each for a reason that it names."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import stepgraph
from foldgraphs import GRU, LSTM, ONE, H, cell, edited, hold, is_scan, spec, weights, with_state
from lstmserve.graph import StepNetwork
from lstmserve.graph.fold import Fold
from lstmserve.graph.step_graph import read_step_graph
from lstmserve.spec import TensorSpec
from stepgraph import Step

HALF = np.array(0.5, np.float32)
GATES = """
x W -> MatMul xw
h a1 -> Squeeze h0
h0 R -> MatMul hr
xw hr -> Add sum
sum -> Tanh y
y a1 -> Unsqueeze h.next
"""
TWO = """
x a0 -> Unsqueeze x1
h -> Transpose+perm=1,0,2 h0
g -> Transpose+perm=1,0,2 g0
x1 W R B . h0 -> GRU+hidden_size=6 Y hn
x1 W2 R2 B2 . g0 -> GRU+hidden_size=6 Z gn
hn -> Transpose+perm=1,0,2 h.next
gn -> Transpose+perm=1,0,2 g.next
Y Z -> Add sum
sum a01 -> Squeeze y
"""
PAIR = Step(spec("h g"), TWO, weights(20, **cell("GRU"), **cell("GRU", "2")))
SCANNED: dict[str, tuple[str, Step]] = {
    "five states": (
        "odd.next, which a state needs, is computed by Xor",
        stepgraph.five_states(),
    ),
    "a mean that runs": (
        "s.next, which a state needs, is computed by Mul",
        with_state(
            ONE,
            "x a1 -> Unsqueeze xu\ns xu -> Add twice\ntwice half -> Mul s.next\n",
            half=HALF,
        ),
    ),
    "a state that is the last input": (
        "Unsqueeze depends on the input x, beside its recurrent nodes",
        with_state(ONE, "x a1 -> Unsqueeze s.next\n"),
    ),
    "gates by hand": (
        "y, which a state needs, is computed by Tanh",
        Step(spec("h"), GATES, weights(21, W=(H, H), R=(H, H))),
    ),
    "an output of the state before the step": (
        "Squeeze reads the state h, which no recurrent node keeps",
        edited(ONE, ("Y a01 -> Squeeze y", "h a1 -> Squeeze y")),
    ),
    "an output of the cell": (
        "the outputs need the cell of LSTM, which it gives at the end alone",
        edited(ONE, ("Y a01 -> Squeeze y", "cn a0 -> Squeeze y")),
    ),
    "a projection": (
        "hp, which a state needs, is computed by MatMul",
        edited(
            Step(
                spec("h c"),
                LSTM.replace("hn -> Transpose", "hn P -> MatMul hp\nhp -> Transpose"),
                ONE.constants | weights(22, P=(H, H)),
            )
        ),
    ),
    "a start that decays": (
        "hh, which a state needs, is computed by Mul",
        edited(
            ONE,
            ("h -> Transpose+perm=1,0,2 h0", "h half -> Mul hh\nhh -> Transpose+perm=1,0,2 h0"),
            half=HALF,
        ),
    ),
    "a state that is cut": (
        "cc, which a state needs, is computed by Clip",
        edited(
            ONE,
            ("cn -> Transpose+perm=1,0,2 c.next", "cn low high -> Clip cc\ncc -> "
             "Transpose+perm=1,0,2 c.next"),
            low=np.array(-0.1, np.float32),
            high=np.array(0.1, np.float32),
        ),
    ),
    "layers that exchange their states": (
        "a recurrent node does not start from what it has left itself",
        edited(PAIR, ("h.next", "t.next"), ("g.next", "h.next"), ("t.next", "g.next")),
    ),
    "h and c that change places": (
        "a recurrent node does not start from what it has left itself",
        edited(ONE, (". h0 c0", ". c0 h0")),
    ),
    "a start whose values are turned round": (
        "a recurrent node does not start from what it has left itself",
        edited(
            ONE,
            ("h -> Transpose+perm=1,0,2 h0", "h order -> Gather+axis=2 ht\nht -> "
             "Transpose+perm=1,0,2 h0"),
            order=np.arange(H)[::-1].copy(),
        ),
    ),
    "one state for two nodes": (
        "a recurrent node does not start from what it has left itself",
        edited(PAIR, (". g0 -> GRU", ". h0 -> GRU")),
    ),
    "one state for two nodes, by the other": (
        "a recurrent node does not start from what it has left itself",
        edited(PAIR, (". h0 -> GRU", ". g0 -> GRU")),
    ),
    "a node that starts from zeros": (
        "GRU does not start from a state",
        edited(PAIR, (". g0 -> GRU", ". . -> GRU")),
    ),
    "a node that starts from constants": (
        "zeros, which a state needs, is computed by Expand",
        edited(
            PAIR,
            (". g0 -> GRU", ". zeros -> GRU"),
            ("x1 W2", "g0 -> Shape shape\nzero shape -> Expand zeros\nx1 W2"),
            zero=np.array(0, np.float32),
        ),
    ),
    "a node that starts from another": (
        "GRU starts from what another recurrent node gives",
        edited(PAIR, (". g0 -> GRU", ". hn -> GRU")),
    ),
    "a node with lengths": (
        "GRU has lengths of its own",
        edited(PAIR, ("W2 R2 B2 . g0", "W2 R2 B2 ones g0"), ("h ->", "x1 a0 a1 a0 -> Slice cut\n"
         "cut a2 -> ReduceSum+keepdims=0 total\ntotal a0 -> Squeeze total1\ntotal1 -> "
         "Cast+to=6 ones0\nones0 ones0 -> Equal same\nsame -> Cast+to=6 ones\nh ->"),
         a2=np.array([2])),
    ),
    "a node that reads backwards": (
        "GRU does not read time forwards",
        edited(PAIR, ("hidden_size=6 Z", "hidden_size=6+direction=reverse Z")),
    ),
    "weights that are an input": (
        "the weights of GRU are not constant",
        edited(
            PAIR,
            ("x1 W2 R2", "x1 W3 R2"),
            ("h ->", "x1 nothing -> Mul none\nnone a012 -> ReduceSum+keepdims=0 none1\n"
             "W2 none1 -> Add W3\nh ->"),
            nothing=np.array(0, np.float32),
            a012=np.array([0, 1, 2]),
        ),
    ),
    "rows in two groups": (
        "Y has no batch axis",
        Step(
            spec("h:2", outputs=(TensorSpec("y", (2, H)),)),
            """
            x -> Identity x0
            x0 x0 -> Concat+axis=1 twice
            twice groups -> Reshape x1
            h groups -> Reshape h0
            x1 W R B . h0 -> GRU+hidden_size=6 Y hn
            hn pairs -> Reshape h.next
            Y pairs -> Reshape y
            """,
            weights(23, **cell("GRU"))
            | {"groups": np.array([1, -1, H]), "pairs": np.array([-1, 2, H])},
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCANNED)
def test_what_cannot_be_folded_stays_a_scan(name: str) -> None:
    """It says why, and its chunks give what its single time steps give."""
    says, step = SCANNED[name]
    network = step.network()
    assert network.scans_because == says
    assert is_scan(network)
    if name != "weights that are an input":  # they would be those of all rows
        hold(step, network, 5)


MIXED: dict[str, str] = {
    "a mean of the batch": "v a0 -> ReduceMean+keepdims=1 m\nv m -> Sub w",
    "a mean of all": "v -> ReduceMean+keepdims=0 m\nv m -> Sub w",
    "softmax over the batch": "v -> Softmax+axis=0 w",
    "softmax over the batch, counted from behind": "v -> Softmax+axis=-2 w",
    "normalisation from the batch on": "v six six -> LayerNormalization+axis=0 w",
    "a sum that runs over the batch": "v i0 -> CumSum w",
    "the first thousand rows": "v a0 thousand a0 -> Slice w",
    "the first thousand rows, of all axes": "v a00 thousand2 -> Slice w",
    "rows turned round": "v minus low a0 minus -> Slice w",
    "rows that a pad moves by one": "v moved -> Pad w",
    "rows that a pad of one axis moves by one": "v moved1 . a0 -> Pad w",
    "a pad that is computed": "v -> Shape s\ns s -> Sub none2\nnone2 none2 -> Concat+axis=0 p\n"
    "v p -> Pad w",
    "rows in an order that is computed": "v -> Neg n\nn a1 -> ReduceMax+keepdims=0 m\n"
    "m -> Cast+to=7 k\nv k -> Gather+axis=0 w",
    "a product of rows": "v -> Transpose vt\nv vt -> MatMul vv\nvv v -> MatMul w",
    "a sum over the rows": "v -> Transpose vt\nvt v -> MatMul cov\nv cov -> MatMul w",
    "the number of rows": "v -> Shape shape\nshape i0 -> Gather n\nn -> Cast+to=1 nf\n"
    "v nf -> Div w",
    "the number of rows, as an index": "v -> Shape shape\nshape i0 -> Gather n\n"
    "many n -> Gather nf\nv nf -> Div w",
    "the number of rows, up to a thousand": "v -> Shape shape\nshape thousand -> Min most\n"
    "one most -> Expand ones\nv ones -> Add w",
    "a table of numbers of rows": "v -> Shape+end=1 n\nmany_rows n -> Gather m\n"
    "m six1 -> Concat+axis=0 t\nv t -> Reshape w",
    "the number of rows, as a byte": "v -> Shape+end=1 n\nn -> Cast+to=2 byte\n"
    "byte -> Cast+to=7 m\nm minus -> Concat+axis=0 t\nv t -> Reshape u\n"
    "u -> Softmax+axis=-1 s\ns wide -> Reshape w",
    "the number of rows, squared": "v -> Shape+end=1 n\nn seven -> Sub a\nn eleven -> Sub b\n"
    "a b -> Mul ab\nn ab -> Add m\nm minus -> Concat+axis=0 t\nv t -> Reshape w",
    "the place of a row": "v -> Shape shape\nshape i0 -> Gather n\ni0 n i1 -> Range r\n"
    "r -> Cast+to=1 rf\nrf a1 -> Unsqueeze ru\nv ru -> Add w",
    "rows among the values": "v -> Transpose vt\nvt wide -> Reshape w",
    "the place of the largest of all": "v a0 -> Unsqueeze image\n"
    "image -> MaxPool+kernel_shape=1, same places\nplaces a0 -> Squeeze p\n"
    "p -> Cast+to=1 pf\nv pf -> Add w",
    "the place of the largest": "v a1 -> Unsqueeze image\n"
    "image -> MaxPool+kernel_shape=1, same places\nplaces a1 -> Squeeze p\n"
    "p -> Cast+to=1 pf\nv pf -> Add w",
    "a convolution over the rows": "v -> Transpose vt\nvt a0 -> Unsqueeze image\n"
    "image kernel -> Conv+pads=1,1 seen\nseen a0 -> Squeeze wt\nwt -> Transpose w",
    "the largest of neighbours": "v -> Transpose vt\nvt a0 -> Unsqueeze image\n"
    "image -> MaxPool+kernel_shape=3,+pads=1,1 seen\nseen a0 -> Squeeze wt\nwt -> Transpose w",
    "rows by the numbers of a row": "v -> ArgMax+axis=1+keepdims=0 k\nv k -> Gather w",
    "a slope that is wider than a row": "v a1 -> ReduceMax+keepdims=1 m\nm six -> PRelu w",
    "a slope with more axes than a value": "v a1 -> ReduceMax+keepdims=0 m\n"
    "m square -> PRelu p\np a1 -> Unsqueeze u\nu -> Softmax+axis=-1 s\nv s -> Add w",
    "an empty list of axes to squeeze": "v a1 -> Unsqueeze u\nu none -> Squeeze s\n"
    "s -> Softmax+axis=-2 t\nt a1 -> Squeeze w",
    "a pool that rounds up": "v a1 -> Unsqueeze image\n"
    "image -> MaxPool+kernel_shape=1,+strides=5,+ceil_mode=1 seen\nseen a1 -> Squeeze s\n"
    "s a1 -> ReduceMax m\nv m -> Add w",
    "training": "v six six six six -> BatchNormalization+training_mode=1 w m1 m2",
    "an operator that is not known": "v -> Einsum+equation=bi->bi w",
}


def fronted(lines: str) -> Step:
    """A GRU of w [B, H], which these lines compute from v [B, H]."""
    nodes = GRU.replace("x a0 -> Unsqueeze x1", f"x -> Identity v\n{lines}\nw a0 -> Unsqueeze x1")
    constants = weights(30, **cell("GRU"), six=(H,), kernel=(H, H, 3)) | {
        "a00": np.array([0, 0]),
        "i0": np.array(0),
        "i1": np.array(1),
        "low": np.array([-(1 << 40)]),
        "one": np.array(1, np.float32),
        "many": np.ones(1000, np.float32),
        "many_rows": np.arange(300),
        "seven": np.array([7]),
        "eleven": np.array([11]),
        "none": np.array([], np.int64),
        "square": np.ones((1, 1), np.float32),
        "six1": np.array([H]),
        "minus": np.array([-1]),
        "moved": np.array([1, 0, -1, 0]),
        "moved1": np.array([1, -1]),
        "thousand": np.array([1000]),
        "thousand2": np.array([1000, H]),
        "wide": np.array([-1, H]),
    }
    return Step(spec("h"), nodes, constants)


@pytest.mark.parametrize("name", MIXED)
def test_a_node_that_mixes_rows_is_not_folded(name: str) -> None:
    """Ahead of a recurrent node it would see other rows than in a Scan."""
    network = fronted(MIXED[name]).network()
    print(network.scans_because)
    assert network.scans_because != ""
    assert is_scan(network)


def test_the_first_thousand_rows_are_those_of_a_scan() -> None:
    """The self-test runs fewer, so it would not see that the others are missing."""
    step = fronted(MIXED["the first thousand rows"])
    assert step.network().scans_because == "Slice mixes rows in w"


def rewritten(step: Step, edit: Callable[[onnx.ModelProto], None]) -> StepNetwork:
    """The network after an edit of its step graph."""
    model = step.model()
    edit(model)
    return StepNetwork(step.spec, read_step_graph(model.SerializeToString(), step.spec))


def branching(model: onnx.ModelProto) -> None:
    """The top is negated, or not, in a branch that reads it from outside."""
    node = next(each for each in model.graph.node if each.output[0] == "y")
    node.output[0] = "top"
    ends = [helper.make_tensor_value_info(name, 1, None) for name in ("yes", "no")]
    branches = [
        helper.make_graph([helper.make_node(op, ["top"], [end.name])], end.name, [], [end])
        for op, end in zip(("Neg", "Identity"), ends, strict=True)
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "is_on"))
    model.graph.node.append(
        helper.make_node("If", ["is_on"], ["y"], then_branch=branches[0], else_branch=branches[1])
    )


def foreign(model: onnx.ModelProto) -> None:
    """An operator of onnxruntime's."""
    node = next(each for each in model.graph.node if each.output[0] == "y")
    node.output[0] = "top"
    model.graph.node.append(helper.make_node("QuickGelu", ["top"], ["y"], domain="com.microsoft"))
    model.opset_import.add(domain="com.microsoft", version=1)


@pytest.mark.parametrize(("edit", "op"), [(branching, "If"), (foreign, "QuickGelu")])
def test_nodes_that_are_not_in_the_table_stay_in_a_scan(
    edit: Callable[[onnx.ModelProto], None], op: str
) -> None:
    """Whatever they compute."""
    network = rewritten(ONE, edit)
    assert network.scans_because == f"{op} may mix rows"
    assert is_scan(network)


@pytest.mark.parametrize(
    "name", [name for name in SCANNED if "from what it has left" in SCANNED[name][0]]
)
def test_a_fold_that_trusts_the_states_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """These graphs give other numbers when they are folded, so `_check_memory` is needed."""
    monkeypatch.setattr(Fold, "_check_memory", lambda self: None)
    network = SCANNED[name][1].network()
    assert not is_scan(network)
    with pytest.raises(AssertionError):
        hold(SCANNED[name][1], network, 5)
