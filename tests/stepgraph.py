"""Makes models of kind "network" by hand, from a few lines that name the nodes of a step graph.

StepLoop is their oracle: one plain onnxruntime session of the graph as it is, one time step of one
session after the other. It has no pool, no Scan and no batch. Most tests use one model, whose five
states have different shapes: build(), make_model() and Loop are of this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from lstmserve.golden import Golden, dump_golden
from lstmserve.graph import GraphWindowNetwork, StepNetwork
from lstmserve.graph.step_graph import StepGraph, fingerprint, read_step_graph
from lstmserve.manifest import GOLDEN, MODEL, Manifest, sha256, write_model
from lstmserve.rows import RowFormat, Rows
from lstmserve.spec import INITIAL, NEXT, ModelSpec, TensorSpec

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

SPEC = ModelSpec(
    inputs=(TensorSpec("x", (3,)), TensorSpec("gain"), TensorSpec("kind", (), "int64")),
    outputs=(TensorSpec("score", (2,)), TensorSpec("label", (), "int64")),
    states=(
        TensorSpec("h", (2, 4)),
        TensorSpec("mean", (3,)),
        TensorSpec("count", (), "int64"),
        TensorSpec("window", (3, 2)),
        TensorSpec("odd", (4,), "bool"),
    ),
)
INPUTS, OUTPUTS = RowFormat(SPEC.inputs), RowFormat(SPEC.outputs)
KINDS = 5  # kind is taken modulo KINDS
ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}
# The names of the values between are such as the server's own graph may have.
NODES = """
kind five -> Mod mod
table mod -> Gather embedded
x w -> MatMul read
read embedded -> Add write
gain axis1 -> Unsqueeze gain1
write gain1 -> Mul floats
h zero_one -> Split+axis=1 h0 h1
h0 axis1 -> Squeeze h0s
h0s r -> MatMul lengths
lengths floats -> Add valid
valid -> Tanh y
y axis1 -> Unsqueeze y1
h1 y1 -> Add y_ints
y_ints half -> Mul h1n
y1 h1n -> Concat+axis=1 h.next
count mod -> Add count1
count1 one -> Add count.next
count.next -> Cast+to=1 countf
countf axis1 -> Unsqueeze countf1
x mean -> Sub off
off countf1 -> Div drift
mean drift -> Add mean.next
y start stop axis1 -> Slice newest
newest axis1 -> Unsqueeze newest1
window start1 stop3 axis1 -> Slice older
older newest1 -> Concat+axis=1 window.next
y limit -> Greater is_high
odd is_high -> Xor odd.next
odd.next -> Cast+to=1 oddf
h1n axis1 -> Squeeze h1s
window.next flat -> Reshape windowf
h1s windowf mean.next oddf -> Concat+axis=1 all
all out -> MatMul score
score -> ArgMax+axis=1+keepdims=0 best
count.next ten -> Mul count10
count10 best -> Add label
"""


@dataclass(frozen=True)
class Step:
    """A step graph: `nodes` has a line for each, INPUTS -> OP+ATTRIBUTE=VALUE OUTPUTS.

    An input or output that is not given is written as a dot, a list with a comma.
    """

    spec: ModelSpec
    nodes: str
    constants: Arrays
    opset: int = 20

    def model(self) -> onnx.ModelProto:
        """Inputs and NAME of each state [B, *shape] -> outputs and NAME.next of each state; with a
        window, inputs [B, W, *shape] -> outputs; without states, inputs [T, *shape] -> outputs
        [R, *shape], whose first axes have different names."""
        spec = self.spec
        states = () if spec.window else spec.states
        lead = ("B", spec.window) if spec.window else ("B",) if spec.states else ("T",)
        inputs = [_value(each.name, each, lead) for each in spec.inputs]
        inputs += [_value(each.name, each) for each in states]
        outputs = [
            _value(each.name, each, ("B",) if spec.states else (f"R{i}",))
            for i, each in enumerate(spec.outputs)
        ]
        outputs += [_value(each.name + NEXT, each) for each in states]
        tensors = [numpy_helper.from_array(each, name) for name, each in self.constants.items()]
        nodes = [make_node(line) for line in self.nodes.strip().splitlines()]
        graph = helper.make_graph(nodes, "step", inputs, outputs, tensors)
        opsets = [helper.make_opsetid("", self.opset)]
        if any(node.domain for node in nodes):
            opsets.append(helper.make_opsetid("com.microsoft", 1))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model

    def network(self) -> StepNetwork:
        """As the server has it."""
        return StepNetwork(self.spec, self._read())

    def window_network(self) -> GraphWindowNetwork:
        """As the server has it, if its spec has a window."""
        return GraphWindowNetwork(self.spec, self._read())

    def _read(self) -> StepGraph:
        return read_step_graph(self.model().SerializeToString(), self.spec)

    def initial(self) -> dict[str, Array]:
        """Name -> [*shape]: the state of a new session."""
        return {
            each.name: self.constants.get(each.name + INITIAL, np.zeros(each.shape, each.dtype))
            for each in self.spec.states
        }


def build(seed: int = 0) -> onnx.ModelProto:
    """The step graph of five states."""
    return five_states(seed).model()


def five_states(seed: int = 0) -> Step:
    """The model that most tests use."""
    return Step(SPEC, NODES, constants(seed))


def build_inexact(seed: int = 0) -> onnx.ModelProto:
    """The same network, whose last weight is [1, ...]: onnxruntime does not prepack such a weight,
    and rounds a row that is alone in another way."""
    model = build(seed)
    last = next(node for node in model.graph.node if node.output[0] == "score")
    last.output[0] = "score3"
    squeeze = helper.make_node("Squeeze", ["score3", "axis0"], ["score"])
    model.graph.node.insert(list(model.graph.node).index(last) + 1, squeeze)
    weight = next(each for each in model.graph.initializer if each.name == "out")
    weight.dims.insert(0, 1)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axis0"))
    onnx.checker.check_model(model, full_check=True)
    return model


def _value(
    name: str, spec: TensorSpec, lead: tuple[int | str, ...] = ("B",)
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, ONNX_TYPES[spec.dtype], [*lead, *spec.shape])


def make_node(line: str) -> onnx.NodeProto:
    """The node of a line, as in Step."""
    inputs, _, rest = line.partition("->")
    op, *outputs = rest.split()
    op, *given = op.split("+")
    pairs = (each.partition("=") for each in given)
    attributes = {name: _attribute(value) for name, _, value in pairs}
    sides = [["" if name == "." else name for name in side] for side in (inputs.split(), outputs)]
    return helper.make_node(op, *sides, **attributes)


def _attribute(value: str) -> Any:
    """A number or a text; with a comma in it, a list of them."""
    values = [_number(each) for each in value.split(",") if each]
    return values if "," in value else values[0]


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def constants(seed: int) -> dict[str, Array]:
    """Weights, small constants, and the initial state of four of the five states."""
    rng = np.random.default_rng(seed)

    def floats(*shape: int) -> Array:
        return rng.uniform(-1, 1, shape).astype(np.float32)

    vectors = {
        "axis1": [1],
        "zero_one": [1, 1],
        "start": [0],
        "stop": [2],
        "start1": [1],
        "stop3": [3],
    }
    return {
        "table": floats(KINDS, 4),
        "w": floats(3, 4),
        "r": floats(4, 4),
        "out": floats(4 + 6 + 3 + 4, 2),
        "half": np.array(0.5, np.float32),
        "limit": np.array(0.3, np.float32),
        "five": np.array(KINDS),
        "one": np.array(1),
        "ten": np.array(10),
        "flat": np.array([-1, 6]),
        **{name: np.array(values) for name, values in vectors.items()},
        "h.initial": floats(2, 4),
        "mean.initial": floats(3),
        "count.initial": np.array(7),
        "odd.initial": np.array([True, False, False, True]),
    }


def initial(seed: int = 0) -> dict[str, Array]:
    """Name -> [*shape]: the initial state of a model of this seed."""
    return five_states(seed).initial()


def random_inputs(rng: np.random.Generator, *shape: int) -> dict[str, Array]:
    """Name -> [*shape, ...] of each input; kinds are any int64."""
    return {
        "x": rng.standard_normal((*shape, 3)).astype(np.float32),
        "gain": rng.uniform(0.2, 2, shape).astype(np.float32),
        "kind": rng.integers(-(1 << 62), 1 << 62, shape),
    }


def random_rows(rng: np.random.Generator, length: int) -> Rows:
    """random_inputs() as rows of the engine's."""
    return INPUTS.pack(random_inputs(rng, length))


def make_golden(seed: int) -> dict[str, Golden]:
    """Three ragged sequences from the initial state, and three from others, by the plain loop."""
    rng, loop = np.random.default_rng(seed), Loop(seed)
    starts = [loop.run(random_rows(rng, 1 + i))[1] for i in range(3)]
    return {
        "new": _case(loop, random_inputs(rng, 3, 6), None),
        "old": _case(loop, random_inputs(rng, 3, 6), starts),
    }


def _case(loop: Loop, inputs: dict[str, Array], starts: list[dict[str, Array]] | None) -> Golden:
    x, lengths = INPUTS.pack(inputs), np.array([6, 1, 4], np.int32)
    y, ends = OUTPUTS.unknown(3, 6), []
    for i, length in enumerate(lengths.tolist()):
        y[i, :length], end = loop.run(x[i, :length], None if starts is None else starts[i])
        ends.append(end)
    outputs = {name: np.nan_to_num(each) for name, each in OUTPUTS.split(y).items()}
    return Golden(inputs, lengths, _stacked(starts), outputs, _stacked(ends) or {}, torch_error=0.0)


def _stacked(states: list[dict[str, Array]] | None) -> dict[str, Array] | None:
    if states is None:
        return None
    return {each.name: np.stack([state[each.name] for state in states]) for each in SPEC.states}


def make_model(
    folder: Path, seed: int = 0, *, name: str = "n", version: int = 1, is_exact: bool = True
) -> Path:
    """Writes folder/NAME/VERSION as an export would, and returns its path."""
    model = build(seed) if is_exact else build_inexact(seed)
    return write(folder, SPEC, model, make_golden(seed), name, version)


def write(
    folder: Path,
    spec: ModelSpec,
    model: onnx.ModelProto,
    golden: Mapping[str, Golden],
    name: str = "n",
    version: int = 1,
    **others: Any,
) -> Path:
    """Writes a version of kind "network" with any step graph; `others` are of its manifest."""
    content = model.SerializeToString()
    files = {MODEL: content, GOLDEN: dump_golden(golden)}
    sums = {file: sha256(each) for file, each in files.items()}
    found = fingerprint(spec, read_step_graph(content, spec))
    manifest = Manifest(name, version, spec, found, sums, **others)
    return write_model(folder, manifest, files, force=False)


class StepLoop:
    """The oracle of any step graph; `initial` is a new session's state [*shape] by name."""

    def __init__(self, content: bytes, spec: ModelSpec, initial: Arrays) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3  # no step reads the initial state
        self._spec = spec
        # In the pool's graph onnxruntime does not know the axes that this fusion needs, and an Add
        # and a LayerNormalization in one node have other bits.
        unlike_the_pool = ["SkipLayerNormFusion"]
        self.session = ort.InferenceSession(content, options, disabled_optimizers=unlike_the_pool)
        self._names = [each.name for each in self.session.get_outputs()]
        self._initial = initial

    @classmethod
    def of(cls, step: Step) -> StepLoop:
        """The oracle of a step that is written by hand."""
        return cls(step.model().SerializeToString(), step.spec, step.initial())

    def step(self, inputs: Arrays, states: Arrays) -> tuple[dict[str, Array], dict[str, Array]]:
        """One time step of one session: inputs and states [*shape] -> outputs, states."""
        feed = {name: each[np.newaxis] for name, each in {**inputs, **states}.items()}
        outputs = zip(self._names, self.session.run(None, feed), strict=True)
        found = {name: each[0] for name, each in outputs}
        after = {each.name: found[each.name + NEXT] for each in self._spec.states}
        return {each.name: found[each.name] for each in self._spec.outputs}, after

    def run(self, rows: Rows, states: Arrays | None = None) -> tuple[Rows, dict[str, Array]]:
        """Rows [T, ...] of the inputs, from the initial state where none is given -> rows [T, ...]
        of the outputs, and the states after them."""
        inputs = RowFormat(self._spec.inputs).split(rows)
        after, outputs = dict(states or self._initial), []
        for t in range(len(rows)):
            found, after = self.step({name: each[t] for name, each in inputs.items()}, after)
            outputs.append(found)
        packed = {name: np.stack([each[name] for each in outputs]) for name in outputs[0]}
        return RowFormat(self._spec.outputs).pack(packed), after


class Loop(StepLoop):
    """The oracle of the model with five states."""

    def __init__(self, seed: int = 0) -> None:
        step = five_states(seed)
        super().__init__(step.model().SerializeToString(), step.spec, step.initial())
