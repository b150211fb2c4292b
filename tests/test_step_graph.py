"""A step graph between slots: what is refused, what its fingerprint covers, what the pool's
self-test finds."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import stepgraph
from lstmserve.config import Config
from lstmserve.engine import load_models
from lstmserve.engine.compute.kernel import Kernel
from lstmserve.engine.compute.pool import Pool
from lstmserve.engine.compute.selftest import BatchCheck, Draw, SelfTestFailed, check_kernel
from lstmserve.golden import Golden, dump_golden
from lstmserve.graph import InvalidModel, PoolNetwork, StepNetwork
from lstmserve.graph.step_graph import fingerprint, read_step_graph
from lstmserve.manifest import (
    GOLDEN,
    MANIFEST,
    MODEL,
    InvalidModelFolder,
    Manifest,
    read_model,
    sha256,
)
from lstmserve.spec import NEXT, InvalidSpec, ModelSpec, TensorSpec
from stepgraph import SPEC, Loop, Step, build, make_golden, random_rows

STATES = [each.name for each in SPEC.states]
Edit = Callable[[onnx.ModelProto], Any]


def network(edit: Edit = lambda model: None) -> StepNetwork:
    """Of the step graph after an edit."""
    model = build()
    edit(model)
    return StepNetwork(SPEC, read_step_graph(model.SerializeToString(), SPEC))


# What is refused ----------------------------------------------------------------------------------


def named(values: Any, name: str) -> Any:
    """The element of that name."""
    return next(each for each in values if each.name == name)


def node_of(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    """The first node of an operator."""
    return next(each for each in model.graph.node if each.op_type == op)


def put(tensor: TensorProto, array: np.ndarray) -> None:
    """Other values."""
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def external(model: onnx.ModelProto) -> None:
    tensor = named(model.graph.initializer, "w")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")


def hidden_external(model: onnx.ModelProto) -> None:
    """In a constant of a branch."""
    tensor = TensorProto(name="t", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    constant = helper.make_node("Constant", [], ["k"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("k", 1, [1])])
    model.graph.node.add(op_type="If", input=["five"], output=["z"]).attribute.add(
        name="then_branch", type=onnx.AttributeProto.GRAPH
    ).g.CopyFrom(branch)


def nan_in_a_constant(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.array([np.nan], np.float16), "t")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value=tensor))


def fixed_batch(model: onnx.ModelProto) -> None:
    named(model.graph.input, "h").type.tensor_type.shape.dim[0].dim_value = 1


def other_shape(model: onnx.ModelProto) -> None:
    named(model.graph.output, "score").type.tensor_type.shape.dim[1].dim_value = 3


def other_dtype(model: onnx.ModelProto) -> None:
    named(model.graph.input, "kind").type.tensor_type.elem_type = TensorProto.FLOAT


FAULTS: dict[str, tuple[str, Edit]] = {
    "external data": ("w lies in another file", external),
    "external data of a constant in a branch": ("t lies in another file", hidden_external),
    "NaN in a weight": (
        "w has NaN values",
        lambda m: put(named(m.graph.initializer, "w"), np.full((3, 4), np.nan, np.float32)),
    ),
    "NaN in a constant": ("t has NaN values", nan_in_a_constant),
    "infinite initial state": (
        "h.initial has infinite values",
        lambda m: put(named(m.graph.initializer, "h.initial"), np.full((2, 4), np.inf, np.float32)),
    ),
    "initial state of another shape": (
        "h.initial is not float32[2, 4]",
        lambda m: put(named(m.graph.initializer, "h.initial"), np.zeros((4, 2), np.float32)),
    ),
    "initial state of another dtype": (
        "count.initial is not int64[]",
        lambda m: put(named(m.graph.initializer, "count.initial"), np.array(1.0, np.float32)),
    ),
    "cut weights": (
        "'w'",
        lambda m: setattr(named(m.graph.initializer, "w"), "raw_data", b"1234"),
    ),
    "sparse weights": ("sparse", lambda m: m.graph.sparse_initializer.add()),
    "foreign domain": (
        "an operator Tanh of the domain 'com.example'",
        lambda m: setattr(node_of(m, "Tanh"), "domain", "com.example"),
    ),
    "an engine's file": (
        "an operator EPContext, which the server does not run",
        lambda m: m.graph.node.add(op_type="EPContext", domain="com.microsoft"),
    ),
    "random numbers": (
        "an operator RandomNormalLike",
        lambda m: m.graph.node.add(op_type="RandomNormalLike", input=["x"], output=["z"]),
    ),
    "functions": ("functions of its own", lambda m: m.functions.add(name="f", domain="d")),
    "an old opset": ("opset 12", lambda m: setattr(m.opset_import[0], "version", 12)),
    "an opset to come": ("opset 999", lambda m: setattr(m.opset_import[0], "version", 999)),
    "no opset": ("opset 0", lambda m: m.opset_import.pop()),
    "an input of another name": (
        "no input gain",
        lambda m: setattr(named(m.graph.input, "gain"), "name", "loss"),
    ),
    "one input more": (
        "an input more",
        lambda m: m.graph.input.append(helper.make_tensor_value_info("more", 1, ["B"])),
    ),
    "one output more": (
        "an output y",
        lambda m: m.graph.output.append(helper.make_tensor_value_info("y", 1, ["B", 4])),
    ),
    "no next state": (
        "no output h.next",
        lambda m: m.graph.output.remove(named(m.graph.output, "h.next")),
    ),
    "a fixed batch": ("input h of model.onnx has no dynamic batch axis", fixed_batch),
    "another shape": ("output score of model.onnx is not float32 [B, 2]", other_shape),
    "another dtype": ("input kind of model.onnx is not int64 [B]", other_dtype),
    "a value that nobody computes": (
        "model.onnx: ",
        lambda m: m.graph.node.remove(node_of(m, "Tanh")),
    ),
    "a name of other bytes": (
        "has a name that is not UTF-8",
        lambda m: setattr(node_of(m, "Tanh"), "name", "TANHNAME"),
    ),
    "an operator of no opset": (
        "model.onnx: ",
        lambda m: setattr(node_of(m, "Tanh"), "op_type", "Tahn"),
    ),
    "a branch missing": ("model.onnx: ", lambda m: m.graph.node.add(op_type="If", output=["z"])),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """models/n/1"""
    return stepgraph.make_model(tmp_path)


def rewrite(folder: Path, file: str, content: bytes) -> None:
    """Another content, with the sha256 that it has."""
    (folder / file).write_bytes(content)
    values = json.loads((folder / MANIFEST).read_text())
    values["sha256"][file] = sha256(content)
    (folder / MANIFEST).write_text(json.dumps(values))


def refusal(folder: Path) -> str:
    """The one line that says why the folder is not served."""
    with pytest.raises(InvalidModelFolder) as refused:
        load_models(Config(models=folder.parent.parent, pool_bytes=1 << 20))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("name", FAULTS)
def test_a_graph_that_the_server_must_not_run_is_refused(folder: Path, name: str) -> None:
    """Before onnxruntime sees it, in one line that names the fault."""
    says, edit = FAULTS[name]
    model = build()
    edit(model)
    rewrite(folder, MODEL, model.SerializeToString().replace(b"TANHNAME", b"TANH\xff\xfe\xff\xff"))
    assert says in refusal(folder)


def hidden_shape(model: onnx.ModelProto) -> None:
    """A state of another shape, which the checker cannot see behind onnxruntime's operator."""
    node = next(n for n in model.graph.node if n.output[0] == "mean.next")
    node.output[0] = "true_mean"
    wide = helper.make_node("Concat", ["true_mean", "axis1f"], ["wide"], axis=1)
    gelu = helper.make_node("QuickGelu", ["wide"], ["mean.next"], domain="com.microsoft")
    index = list(model.graph.node).index(node) + 1
    ones = helper.make_node("Expand", ["half", "shape"], ["axis1f"])
    shape = helper.make_node("Concat", ["batch", "axis1"], ["shape"], axis=0)
    batch = helper.make_node("Shape", ["x"], ["batch"], start=0, end=1)
    for each in (gelu, wide, ones, shape, batch):
        model.graph.node.insert(index, each)
    model.opset_import.add(domain="com.microsoft", version=1)


def test_a_shape_that_only_onnxruntime_sees_is_refused(folder: Path) -> None:
    """At start, in one line: the first step would fail."""
    model = build()
    hidden_shape(model)
    content = model.SerializeToString()
    rewrite(folder, MODEL, content)
    values = json.loads((folder / MANIFEST).read_text())
    values["fingerprint"] = fingerprint(SPEC, read_step_graph(content, SPEC))
    (folder / MANIFEST).write_text(json.dumps(values))
    assert refusal(folder).startswith("n:1: ")


def damage(content: bytes) -> str:
    """Why it is refused; "" if it is not."""
    try:
        graph = read_step_graph(content, SPEC)
        assert len(fingerprint(SPEC, graph)) == 64
        StepNetwork(SPEC, graph).build_step()
        StepNetwork(SPEC, graph).build_chunk()
    except InvalidModel as error:
        return str(error)
    return ""


@pytest.mark.parametrize("seed", [0, secrets.randbits(32)], ids=["0", "random"])
def test_damaged_graphs_are_refused_in_one_line(seed: int) -> None:
    """Whatever bytes change: a graph is read, or refused by InvalidModel."""
    print(f"seed {seed}")
    rng, good = np.random.default_rng(seed), build().SerializeToString()
    refused = 0
    for _ in range(300):
        content = bytearray(good)
        for at in rng.integers(len(good), size=rng.integers(1, 4)).tolist():
            count = int(rng.integers(0, 9))
            new = rng.integers(0, 256, int(rng.integers(0, 9)), dtype=np.uint8).tobytes()
            content[at : at + count] = new
        error = damage(bytes(content))
        assert "\n" not in error
        refused += error != ""
    assert refused > 200


def test_another_file_than_the_manifest_names_is_refused(folder: Path) -> None:
    """Whatever is in it: the server runs a graph by its sha256 alone."""
    model = build()
    model.doc_string = "harmless"
    (folder / MODEL).write_bytes(model.SerializeToString())
    assert "model.onnx is not the file that was exported" in refusal(folder)


def test_other_weights_than_the_fingerprint_says_are_refused(folder: Path) -> None:
    """Sessions of the one model would go on in the other."""
    rewrite(folder, MODEL, build(seed=1).SerializeToString())
    assert "the fingerprint does not match" in refusal(folder)


def wrong(case: str, **fields: Any) -> bytes:
    """The golden vectors with other fields in one case."""
    golden = make_golden(0)
    return dump_golden(golden | {case: replace(golden[case], **fields)})


GOLD = make_golden(0)["old"]
GOLDEN_FAULTS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "no cases": ("has no rows", lambda: dump_golden({})),
    "an output that differs": (
        "as far from the exported",
        lambda: wrong("new", outputs=GOLD.outputs),
    ),
    "an integer that differs": (
        "inf times as far",
        lambda: wrong("old", outputs={**GOLD.outputs, "label": GOLD.outputs["label"] + 1}),
    ),
    "a state that differs": (
        "inf times as far",
        lambda: wrong("old", finals={**GOLD.finals, "odd": ~GOLD.finals["odd"]}),
    ),
    "no input": (
        "inputs are of kind, x",
        lambda: wrong("old", inputs={n: each for n, each in GOLD.inputs.items() if n != "gain"}),
    ),
    "an input of another shape": (
        "x is [3, 6, 2], must be [3, 6, 3]",
        lambda: wrong("old", inputs={**GOLD.inputs, "x": GOLD.inputs["x"][..., :2]}),
    ),
    "infinite": (
        "h has NaN or infinite values",
        lambda: wrong("old", finals={**GOLD.finals, "h": GOLD.finals["h"] + np.inf}),
    ),
    "lengths too long": ("lengths says 12", lambda: wrong("old", lengths=GOLD.lengths * 2)),
    "lengths of 0": ("each 1 or more", lambda: wrong("old", lengths=GOLD.lengths * 0)),
    "torch_error": ("torch_error is 9", lambda: wrong("old", torch_error=9.0)),
}


@pytest.mark.parametrize("name", GOLDEN_FAULTS)
def test_golden_vectors_that_do_not_hold_are_refused(folder: Path, name: str) -> None:
    """They are replayed through the pool graph before the model is served."""
    says, make = GOLDEN_FAULTS[name]
    rewrite(folder, GOLDEN, make())
    assert says in refusal(folder)


def test_store_format_1_is_refused_at_start(folder: Path) -> None:
    """It has no room for these states: the first step would fail."""
    with pytest.raises(InvalidModelFolder, match=r"n:1: --store-format 1 stores the states of an"):
        load_models(Config(models=folder.parent.parent, store_format=1))


def test_the_manifest_is_read_as_it_was_written(folder: Path) -> None:
    """Format 2 says the kind, and every name, shape and dtype."""
    manifest = read_model(folder.parent.parent, "n", 1).manifest
    values = json.loads((folder / MANIFEST).read_text())
    assert (values["format"], values["kind"]) == (2, "network")
    assert manifest.spec == SPEC
    assert Manifest.from_json(manifest.to_json()) == manifest
    with pytest.raises(InvalidModelFolder, match="of kind 'tree'"):
        Manifest.from_json(json.dumps({**values, "kind": "tree"}))


@pytest.mark.parametrize(
    ("inputs", "outputs", "states", "says"),
    [
        ("x x", "y", "h", "x is the name of another input or state"),
        ("x", "x", "h", "x is the name of another input or state"),
        ("x", "y", "y", "y is the name of another input or state"),
        ("x", "y", "x", "x is the name of another input or state"),
        ("x", "h.next", "h", "h.next is the state h after the step"),
        ("h.next", "y", "h", "h.next is the state h after the step"),
        ("x", "y", "h h.next", "h.next is the state h after the step"),
        ("h.initial", "y", "h", "h.initial is the initial value of the state h"),
        ("", "y", "h", "inputs: a model has at least one"),
        ("x", "", "h", "outputs: a model has at least one"),
    ],
)
def test_names_that_collide_are_refused(inputs: str, outputs: str, states: str, says: str) -> None:
    """Of inputs, outputs and states, and what the step graph calls them."""
    groups = (tuple(TensorSpec(n) for n in each.split()) for each in (inputs, outputs, states))
    with pytest.raises(InvalidSpec, match=says):
        ModelSpec(*groups)


def test_a_row_that_numpy_cannot_hold_is_refused() -> None:
    """Before anything makes an array of it."""
    wide = TensorSpec("x", (1 << 29,)), TensorSpec("k", (), "int64")
    with pytest.raises(InvalidSpec, match="inputs of one step have 2147483656 bytes, at most 107"):
        ModelSpec(wide, (TensorSpec("y"),), (TensorSpec("s"),))


# The fingerprint ----------------------------------------------------------------------------------


def shuffled(model: onnx.ModelProto) -> None:
    """Initializers and attributes in another order."""
    tensors = list(model.graph.initializer)[::-1]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    for node in model.graph.node:
        attributes = list(node.attribute)[::-1]
        del node.attribute[:]
        node.attribute.extend(attributes)


def retold(model: onnx.ModelProto) -> None:
    """Other texts, names of nodes, producer, and a batch axis of another name."""
    model.doc_string, model.producer_name, model.graph.name = "a", "b", "c"
    for i, node in enumerate(model.graph.node):
        node.name, node.doc_string = f"node{i}", "text"
        for attribute in node.attribute:
            attribute.doc_string = "text"
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def unpacked(model: onnx.ModelProto) -> None:
    """Values as lists of numbers, not as bytes."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        found = helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, array.reshape(-1))
        tensor.CopyFrom(found)


def print_of(edit: Edit) -> str:
    """The fingerprint after an edit."""
    model = build()
    edit(model)
    return fingerprint(SPEC, read_step_graph(model.SerializeToString(), SPEC))


@pytest.mark.parametrize("edit", [shuffled, retold, unpacked])
def test_a_fingerprint_survives_another_way_to_write_the_file(edit: Edit) -> None:
    """Stored sessions go on when a tool has written the same model again."""
    assert print_of(edit) == print_of(lambda model: None)


def test_the_fingerprint_is_the_one_that_stored_sessions_hold() -> None:
    """Its formula does not change from release to release."""
    expected = "d49017267b44925785faf1f059582d5604da9f7800741f6f8223b52973b64c5f"
    assert print_of(lambda model: None) == expected


LAST = helper.make_attribute("select_last_index", 1)


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: put(named(m.graph.initializer, "half"), np.array(0.25, np.float32)),
        lambda m: put(named(m.graph.initializer, "count.initial"), np.array(8)),
        lambda m: setattr(node_of(m, "Tanh"), "op_type", "Sigmoid"),
        lambda m: node_of(m, "ArgMax").attribute.append(LAST),
        lambda m: setattr(m.opset_import[0], "version", 21),
        lambda m: node_of(m, "Concat").input.reverse(),
    ],
    ids=["a weight", "an initial state", "an operator", "an attribute", "the opset", "two inputs"],
)
def test_a_fingerprint_tells_models_apart(edit: Edit) -> None:
    """Whatever changes an answer changes it."""
    assert print_of(edit) != print_of(lambda model: None)


def test_a_fingerprint_covers_the_names_of_the_spec() -> None:
    """A state of another name is another model's, although the graph computes the same."""
    model = build()
    graph = read_step_graph(model.SerializeToString(), SPEC)
    other = replace(SPEC, states=(TensorSpec("g", (2, 4)), *SPEC.states[1:]))
    assert fingerprint(other, graph) != fingerprint(SPEC, graph)


# The self-test ------------------------------------------------------------------------------------


def roll(graph: onnx.GraphProto, name: str) -> str:
    """`name` [B, *] with its rows one further; of one row the same."""
    constants = {"r/zero": [0], "r/one": [1], "r/end": [1 << 40]}
    for key, value in constants.items():
        if key not in {each.name for each in graph.initializer}:
            graph.initializer.append(numpy_helper.from_array(np.array(value), key))
    head, tail, rolled = (f"r/{name}/{part}" for part in ("head", "tail", "rolled"))
    graph.node.extend(
        [
            helper.make_node("Slice", [name, "r/one", "r/end", "r/zero"], [head]),
            helper.make_node("Slice", [name, "r/zero", "r/one", "r/zero"], [tail]),
            helper.make_node("Concat", [head, tail], [rolled], axis=0),
        ]
    )
    return rolled


def place_of(graph: onnx.GraphProto, op: str, state: str) -> onnx.NodeProto:
    """The Gather or ScatterND of a state's tensor."""
    return next(n for n in graph.node if n.op_type == op and n.input[0] == f"pool/{state}")


def mixed_rows(graph: onnx.GraphProto, state: str) -> None:
    """Each row's state is written for its neighbour."""
    node = place_of(graph, "ScatterND", state)
    node.input[2] = roll(graph, node.input[2])


def shifted_write(graph: onnx.GraphProto, state: str) -> None:
    """Each row's state is written to its neighbour's slot."""
    node = place_of(graph, "ScatterND", state)
    node.input[1] = roll(graph, node.input[1])


def shifted_read(graph: onnx.GraphProto, state: str) -> None:
    """Each row reads its neighbour's state."""
    node = place_of(graph, "Gather", state)
    node.input[1] = roll(graph, node.input[1])


def next_slot(graph: onnx.GraphProto, state: str) -> None:
    """The state is written to the slot behind, of a batch of one too."""
    graph.initializer.append(numpy_helper.from_array(np.array(1), "r/next"))
    graph.node.add(op_type="Add", input=["write", "r/next"], output=["r/behind"])
    place_of(graph, "ScatterND", state).input[1] = "r/behind"


def never_written(graph: onnx.GraphProto, state: str) -> None:
    """The state is written back to the slot it was read from."""
    graph.initializer.append(numpy_helper.from_array(np.array([-1, 1]), "r/column"))
    graph.node.add(op_type="Reshape", input=["read", "r/column"], output=["r/read"])
    place_of(graph, "ScatterND", state).input[1] = "r/read"


class Mutant(PoolNetwork):
    """A network whose graphs, or one of them, an edit has changed."""

    def __init__(self, edit: Callable[[onnx.GraphProto], None], which: str) -> None:
        self._network = network()
        self.layout = self._network.layout
        self._edit, self._which = edit, which

    def build_step(self) -> onnx.ModelProto:
        """For one time step."""
        return self._edited(self._network.build_step(), "step")

    def build_chunk(self) -> onnx.ModelProto:
        """For many."""
        return self._edited(self._network.build_chunk(), "chunk")

    def _edited(self, model: onnx.ModelProto, which: str) -> onnx.ModelProto:
        if self._which in (which, "both"):
            self._edit(model.graph)
            _sort(model.graph)
        return model


def _sort(graph: onnx.GraphProto) -> None:
    """Nodes in an order in which each finds its inputs."""
    known = {each.name for each in (*graph.input, *graph.initializer)} | {""}
    left, nodes = list(graph.node), []
    while left:
        ready = next(node for node in left if set(node.input) <= known)
        left.remove(ready)
        nodes.append(ready)
        known |= set(ready.output)
    del graph.node[:]
    graph.node.extend(nodes)


def check(network: PoolNetwork, golden: Mapping[str, Golden] | None = None) -> float:
    """The largest difference. Raises SelfTestFailed. The golden vectors only give the inputs."""
    pool = Pool(network.layout, 80)
    kernel = Kernel(network, pool, "cpu", 1)
    found = BatchCheck(kernel, pool, Draw(network.layout.spec, golden or make_golden(0))).check()
    pool.check_integrity(np.zeros(0, np.int64))
    return found


@pytest.mark.parametrize("which", ["step", "chunk", "both"])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    "mutant", [mixed_rows, shifted_write, shifted_read, next_slot, never_written]
)
def test_a_state_in_a_wrong_place_is_found(mutant: Any, state: str, which: str) -> None:
    """Of every state and dtype, by comparing rows with themselves alone and step by step."""
    with pytest.raises(SelfTestFailed):
        check(Mutant(lambda graph: mutant(graph, state), which))


@pytest.mark.parametrize("state", STATES)
def test_a_state_that_goes_on_past_its_row_is_found(state: str) -> None:
    """A Scan without the mask computes padding, too."""

    def unmasked(graph: onnx.GraphProto) -> None:
        (scan,) = (node for node in graph.node if node.op_type == "Scan")
        body = next(a for a in scan.attribute if a.name == "body").g
        node = next(n for n in body.node if n.output[0] == f"kept/{state}")
        body.node.remove(node)
        body.node.add(op_type="Identity", input=["net/" + state + NEXT], output=[f"kept/{state}"])

    with pytest.raises(SelfTestFailed):
        check(Mutant(unmasked, "chunk"))


def test_a_network_that_mixes_rows_is_refused() -> None:
    """Here the mean over the batch, as a normalisation in training mode has it."""

    def mixing(model: onnx.ModelProto) -> None:
        node = node_of(model, "Tanh")
        model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axis0"))
        mean = helper.make_node("ReduceMean", [node.input[0], "axis0"], ["m"], keepdims=1)
        off = helper.make_node("Sub", [node.input[0], "m"], ["centred"])
        index = list(model.graph.node).index(node)
        node.input[0] = "centred"
        model.graph.node.insert(index, off)
        model.graph.node.insert(index, mean)

    with pytest.raises(SelfTestFailed, match="mixes rows"):
        check(network(mixing))


def test_a_network_whose_rounding_depends_on_the_batch_is_served() -> None:
    """It is not exact, and the model says so; an nn.LSTM would be refused."""

    def rounding(model: onnx.ModelProto) -> None:
        """score + 1e-7 x the mean of the batch's scores"""
        model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axis0"))
        model.graph.initializer.append(numpy_helper.from_array(np.array(1e-7, np.float32), "tiny"))
        node = node_of(model, "ArgMax")
        last = next(n for n in model.graph.node if n.output[0] == "score")
        last.output[0] = node.input[0] = "exact"
        model.graph.node.add(op_type="ReduceMean", input=["exact", "axis0"], output=["m"])
        model.graph.node.add(op_type="Mul", input=["m", "tiny"], output=["noise"])
        model.graph.node.add(op_type="Add", input=["exact", "noise"], output=["score"])

    found = network(rounding)
    assert 0 < check(found) < 1e-6
    pool = Pool(found.layout, 80)
    kernel = Kernel(found, pool, "cpu", 1)
    assert math.isinf(kernel.difference)
    check_kernel(kernel, pool, make_golden(0))
    assert kernel.difference == check(found)
    assert check(network()) == 0


def test_an_integer_that_differs_is_more_than_rounding() -> None:
    """However small the float is that it comes from; so the largest difference is one of floats."""

    def signed(model: onnx.ModelProto) -> None:
        """label + sign(mean of the batch's scores - score) as an integer"""
        model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axis0"))
        last = next(n for n in model.graph.node if n.output[0] == "label")
        last.output[0] = "plain"
        for op, inputs, output in (
            ("ReduceMean", ["score", "axis0"], "m"),
            ("Sub", ["m", "score"], "apart"),
            ("Sign", ["apart"], "signs"),
            ("ReduceSum", ["signs", "axis1"], "sign"),
        ):
            model.graph.node.add(op_type=op, input=inputs, output=[output])
            if op == "ReduceSum":
                model.graph.node[-1].attribute.append(helper.make_attribute("keepdims", 0))
        cast = helper.make_node("Cast", ["sign"], ["whole"], to=TensorProto.INT64)
        model.graph.node.extend([cast, helper.make_node("Add", ["plain", "whole"], ["label"])])

    with pytest.raises(SelfTestFailed, match="mixes rows"):
        check(network(signed))


def test_a_nan_in_both_is_no_difference() -> None:
    """A network that rounds differently in a batch may have NaN for some of the random inputs."""

    def undefined(model: onnx.ModelProto) -> None:
        """score + 0 x sqrt(score) + 1e-7 x the mean of the batch's scores"""
        last = next(n for n in model.graph.node if n.output[0] == "score")
        last.output[0] = node_of(model, "ArgMax").input[0] = "exact"
        for name, value in (("axis0", np.array([0])), ("tiny", 1e-7), ("zero", 0.0)):
            array = np.float32(value) if isinstance(value, float) else value
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        for op, inputs, output in (
            ("ReduceMean", ["exact", "axis0"], "m"),
            ("Mul", ["m", "tiny"], "noise"),
            ("Add", ["exact", "noise"], "noisy"),
            ("Sqrt", ["exact"], "root"),
            ("Mul", ["root", "zero"], "nothing"),
            ("Add", ["noisy", "nothing"], "score"),
        ):
            model.graph.node.add(op_type=op, input=inputs, output=[output])

    assert 0 < check(network(undefined)) < 1e-6


def opset(version: int) -> Edit:
    """The same nodes by the rules of another opset."""
    return lambda model: setattr(model.opset_import[0], "version", version)


@pytest.mark.parametrize("version", [13, 17, 18, 21, 22])
def test_graphs_of_older_and_newer_opsets_run(version: int) -> None:
    """What the server adds is valid in each of them."""
    assert check(network(opset(version))) == 0


def test_the_domain_of_onnx_has_two_names() -> None:
    """Some tools write it in full."""

    def written_out(model: onnx.ModelProto) -> None:
        model.opset_import[0].domain = "ai.onnx"
        node_of(model, "Tanh").domain = "ai.onnx"

    assert check(network(written_out)) == 0


def test_operators_of_onnxruntime_run() -> None:
    """Of the domain com.microsoft, which its tools write."""

    def fused(model: onnx.ModelProto) -> None:
        node = node_of(model, "Tanh")
        node.op_type, node.domain = "QuickGelu", "com.microsoft"
        model.opset_import.add(domain="com.microsoft", version=1)

    assert check(network(fused)) == 0


def test_a_network_of_floats_alone() -> None:
    """s.next = s / 2 + x, exact in float32: time step by time step, in a chunk, in a batch."""

    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 2])

    nodes = [
        helper.make_node("Mul", ["s", "half"], ["old"]),
        helper.make_node("Add", ["old", "x"], ["s.next"]),
        helper.make_node("Neg", ["s.next"], ["y"]),
    ]
    half = numpy_helper.from_array(np.array(0.5, np.float32), "half")
    sides = [value("x"), value("s")], [value("y"), value("s.next")]
    graph = helper.make_graph(nodes, "leak", *sides, [half])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x, y, s = (TensorSpec(name, (2,)) for name in "xys")
    spec = ModelSpec((x,), (y,), (s,))
    found = StepNetwork(spec, read_step_graph(model.SerializeToString(), spec))
    pool = Pool(found.layout, 80)
    kernel = Kernel(found, pool, "cpu", 1)
    rows = np.random.default_rng(0).integers(-8, 8, (6, 3, 2)).astype(np.float32)
    lengths, wanted = np.array([6, 2, 4]), np.zeros((3, 2), np.float32)
    read, write, other = (np.arange(start, start + 3) for start in (0, 10, 20))
    y_chunk = kernel.run(rows, lengths, read * 0, write)
    for t in range(6):
        wanted = wanted / 2 + rows[t]
        source = read * 0 if t == 0 else (other, write + 20)[(t + 1) % 2]
        y_now = kernel.run(rows[t : t + 1], read * 0 + 1, source, (other, write + 20)[t % 2])
        np.testing.assert_array_equal(y_now[0], -wanted)
        is_on = lengths > t
        np.testing.assert_array_equal(y_chunk[t, is_on], -wanted[is_on])
        is_end = lengths == t + 1
        np.testing.assert_array_equal(pool.read(write[is_end])["s"], wanted[is_end])


LAYERS = """
x scale shift -> LayerNormalization+axis=-1 normed
normed front -> MatMul fronted
fronted zero -> Unsqueeze x1
h -> Transpose+perm=1,0,2 h0
c -> Transpose+perm=1,0,2 c0
x1 W R B . h0 c0 -> LSTM+hidden_size=16 l_all hn cn
hn -> Transpose+perm=1,0,2 h.next
cn -> Transpose+perm=1,0,2 c.next
l_all one -> Squeeze l
g -> Transpose+perm=1,0,2 g0
l GW GR GB . g0 -> GRU+hidden_size=12+linear_before_reset=1 g_all gn
gn -> Transpose+perm=1,0,2 g.next
g_all both -> Squeeze gru
gru out -> MatMul logits
logits -> Softmax+axis=-1 y
"""


def layered() -> Step:
    """Recurrent layers of two kinds between others, as torch's exporter writes them."""
    rng = np.random.default_rng(0)
    shapes = {"scale": (8,), "shift": (8,), "front": (8, 16), "W": (1, 64, 16), "R": (1, 64, 16)}
    shapes |= {"B": (1, 128), "GW": (1, 36, 16), "GR": (1, 36, 12), "GB": (1, 72), "out": (12, 3)}
    arrays = {n: rng.uniform(-0.3, 0.3, shape).astype(np.float32) for n, shape in shapes.items()}
    arrays |= {"zero": np.array([0]), "one": np.array([1]), "both": np.array([0, 1])}
    states = TensorSpec("h", (1, 16)), TensorSpec("c", (1, 16)), TensorSpec("g", (1, 12))
    spec = ModelSpec((TensorSpec("x", (8,)),), (TensorSpec("y", (3,)),), states)
    return Step(spec, LAYERS, arrays)


def test_recurrent_layers_in_a_step_graph_are_exact() -> None:
    """LSTM and GRU nodes keep their bits in any batch, and in the Scan: weights are prepacked."""
    rng = np.random.default_rng(1)
    inputs = {"x": rng.standard_normal((4, 9, 8)).astype(np.float32)}
    lengths = np.array([9, 1, 5, 7], np.int32)
    golden = Golden(inputs, lengths, None, {}, {}, torch_error=0.0)
    assert check(layered().network(), {"case": golden}) == 0


CONVOLVED = """
x K1 -> Conv+kernel_shape=3,3+pads=1,1,1,1 seen
seen -> Relu first
first K2 -> Conv+kernel_shape=1,1 second
second flat -> Reshape row
mean half -> Mul old
row half -> Mul new
old new -> Add mean.next
mean.next out -> MatMul y
"""


def test_convolutions_have_the_bits_of_a_step_in_a_chunk() -> None:
    """A graph that needs the Scan keeps them: onnxruntime takes other code for a convolution whose
    weights lie around the Scan's body."""
    rng = np.random.default_rng(0)
    shapes = {"K1": (16, 3, 3, 3), "K2": (8, 16, 1, 1), "out": (80, 2)}
    arrays = {n: rng.uniform(-0.5, 0.5, shape).astype(np.float32) for n, shape in shapes.items()}
    arrays |= {"flat": np.array([-1, 80]), "half": np.array(0.5, np.float32)}
    spec = ModelSpec(
        (TensorSpec("x", (3, 2, 5)),), (TensorSpec("y", (2,)),), (TensorSpec("mean", (80,)),)
    )
    network = Step(spec, CONVOLVED, arrays).network()
    assert network.scans_because
    inputs = {"x": rng.standard_normal((4, 9, 3, 2, 5)).astype(np.float32)}
    golden = Golden(inputs, np.array([9, 1, 5, 7], np.int32), None, {}, {}, torch_error=0.0)
    assert check(network, {"case": golden}) == 0


# Graphs in graphs ---------------------------------------------------------------------------------


def looped(model: onnx.ModelProto) -> None:
    """score is doubled three times by a Loop, whose body has names of ours and outer values."""
    body = helper.make_graph(
        [
            helper.make_node("Add", ["read", "read"], ["y"]),
            helper.make_node("Mul", ["y", "unit"], ["write"]),
            helper.make_node("Identity", ["go"], ["stay"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("t", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("read", TensorProto.FLOAT, ["B", 2]),
        ],
        [
            helper.make_tensor_value_info("stay", TensorProto.BOOL, []),
            helper.make_tensor_value_info("write", TensorProto.FLOAT, ["B", 2]),
        ],
        [numpy_helper.from_array(np.array(1, np.float32), "unit")],
    )
    last = next(n for n in model.graph.node if n.output[0] == "score")
    last.output[0] = node_of(model, "ArgMax").input[0] = "once"
    for node in model.graph.node:  # a body may not have an outer value's name
        for names in (node.input, node.output):
            names[:] = [f"o.{n}" if n in ("read", "write", "y") else n for n in names]
    model.graph.initializer.append(numpy_helper.from_array(np.array(3), "three"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    model.graph.node.append(
        helper.make_node("Loop", ["three", "true", "once"], ["score"], body=body)
    )


def test_a_graph_with_a_loop_runs_in_the_pool() -> None:
    """Its subgraph's names are told from ours as well."""
    found = network(looped)
    pool = Pool(found.layout, 80)
    kernel = Kernel(found, pool, "cpu", 1)
    rng, loop = np.random.default_rng(0), Loop()
    x = random_rows(rng, 5)
    wanted, _ = loop.run(x)
    for lengths in ([5], [1, 1, 3]):
        slots, at, read = pool.take(2), 0, 0
        for turn, length in enumerate(lengths):
            part, write = x[at : at + length, np.newaxis], slots[turn % 2]
            y = kernel.run(part, np.array([length]), np.array([read]), np.array([write]))
            np.testing.assert_array_equal(y["floats"][:, 0], 8 * wanted["floats"][at : at + length])
            at, read = at + length, write
        pool.give(slots)


def initial_of(pool: Pool) -> Iterator[tuple[str, np.ndarray]]:
    """Name and value of each state in slot 0."""
    for name, each in pool.read(np.array([0])).items():
        yield name, each[0]


def test_slot_0_has_the_initial_state(folder: Path) -> None:
    """Of every state; what has none begins from zeros; and nothing may write it."""
    (model,) = load_models(Config(models=folder.parent.parent, pool_bytes=1 << 20))
    assert model.pool is not None
    for name, value in initial_of(model.pool):
        np.testing.assert_array_equal(value, stepgraph.initial()[name])
    for tensor in model.pool.tensors.values():
        before = tensor.numpy()[0].copy()
        tensor.numpy()[0] = 1 - before if before.dtype != np.bool_ else ~before
        with pytest.raises(AssertionError, match="initial state was written"):
            model.pool.check_integrity(np.zeros(0, np.int64))
        tensor.numpy()[0] = before
    model.pool.check_integrity(np.zeros(0, np.int64))
