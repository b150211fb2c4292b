"""Reading an ONNX file of others: what is refused before anything runs, and what is read."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hostile_onnx import stream
from lstmserve.graph.step_graph import IR_VERSION_MIN
from lstmserve.runtime import ort
from lstmserve_export.onnx_file.load.opsets import IR_VERSION_MAX
from lstmserve_export.onnx_file.load.source import NODES_MAX, Source, read_source
from lstmserve_export.refusal import Refused
from lstmserve_export.target import ONNX_BYTES_MAX

Edit = Callable[[onnx.ModelProto], Any]
value_info = helper.make_tensor_value_info


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A path for the file."""
    return tmp_path / "theirs.onnx"


def read(file: Path, model: onnx.ModelProto) -> Source:
    file.write_bytes(model.SerializeToString())
    return read_source(file)


def refusal(file: Path, **limits: int) -> str:
    """The one line."""
    with pytest.raises(Refused) as refused:
        read_source(file, **limits)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# What is no model ---------------------------------------------------------------------------------


def zipped(*names: str) -> bytes:
    """An archive of one file each."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, b"\0" * 100)
    return content.getvalue()


GOOD = stream().SerializeToString()
HUGE_TEXT = "naïve café " * 1000
FORMATS: dict[str, tuple[bytes, str]] = {
    "a pointer of git-LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 2313101\n",
        "is a pointer of git-LFS, not the model: run `git lfs pull`",
    ),
    "a web page": (b"\n<!DOCTYPE html>\n<html>Sign in</html>", "is a web page or XML"),
    "XML": (b'<?xml version="1.0"?><net name="openvino"/>', "is a web page or XML"),
    ".ort": (b"\x20\0\0\0ORTM" + b"\0" * 40, "is in onnxruntime's own format (.ort)"),
    "TFLite": (b"\x1c\0\0\0TFL3" + b"\0" * 40, "convert it with tf2onnx --tflite"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 40, "as Keras writes them"),
    "TorchScript": (zipped("net/data.pkl", "net/code/__torch__.py"), "`lstmserve export`"),
    "a checkpoint": (pickle.dumps({"w": 1}), "is a Python pickle, as torch.save wrote them"),
    "safetensors": ((60).to_bytes(8, "little") + b'{"w":{}}', "is a safetensors file"),
    ".npz": (zipped("w.npy"), "is an .npz of numpy"),
    "Keras": (zipped("metadata.json", "model.weights.h5"), "is a zip as Keras writes them"),
    "a zip": (zipped("model.onnx"), "is a zip archive: unpack it"),
    "gzip": (gzip.compress(GOOD), "is compressed by gzip: unpack it"),
    "a program": (b"\x7fELF\2\1\1", "is a program or a library"),
    "text": (b"404: Not Found", "is text ('404: Not Found' ...), not an ONNX model: download"),
    "long text": (HUGE_TEXT.encode(), "is text ('naïve café"),
    "a .pb of TensorFlow": (b"\x0a\x03abc", "if it is a .pb of TensorFlow"),
    "nothing": (b"", "is empty: download or export it again"),
    "a file that is cut": (GOOD[:-50], "bytes more: download or export it again"),
    "a file that is cut in a number": (b"\x08\x08\x3a\xff", "is cut, a part of it that begins"),
    "other bytes": (bytes(range(200, 256)) * 9, "is not an ONNX file, or is damaged"),
    "bytes in a field": (b"\x08\x08\x3a\x02\xff\xff", "is not an ONNX file, or is damaged"),
    "a model without a graph": (b"\x08\x08\x12\x01x", "is not an ONNX model"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_no_model_is_named(file: Path, name: str) -> None:
    """What the file is, and what to do with it."""
    content, says = FORMATS[name]
    file.write_bytes(content)
    assert says in refusal(file)


def test_what_is_no_file_is_not_opened(file: Path, tmp_path: Path) -> None:
    """A folder names the files in it; a pipe would never end."""
    file.write_bytes(GOOD)
    assert refusal(tmp_path).endswith("is a folder: name the .onnx file (theirs.onnx) in it")
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe").endswith("pipe is not a file")
    assert refusal(tmp_path / "none").endswith("cannot be read: No such file or directory")


def test_a_file_that_is_too_large_is_not_read(file: Path) -> None:
    """protobuf reads no message above 2 GiB."""
    with file.open("wb") as sparse:
        sparse.truncate(ONNX_BYTES_MAX + 1)
    assert f"has {ONNX_BYTES_MAX + 1} bytes, at most {ONNX_BYTES_MAX} are read" in refusal(file)


# What the graph must not have ---------------------------------------------------------------------


def weight(model: onnx.ModelProto, values: Any = 1.0) -> TensorProto:
    """Another constant, which a node reads."""
    tensor = numpy_helper.from_array(np.asarray(values, np.float32), "w")
    model.graph.initializer.append(tensor)
    model.graph.node.add(op_type="Identity", input=["w"], output=["w2"])
    return model.graph.initializer[-1]


def external(model: onnx.ModelProto) -> None:
    tensor = weight(model)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="theirs.onnx.data")


def node(model: onnx.ModelProto, op: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    """Another node."""
    model.graph.node.append(helper.make_node(op, ["x"], [op], domain=domain, **attributes))
    return model.graph.node[-1]


def customs(model: onnx.ModelProto) -> None:
    for at in range(12):
        node(model, f"Op{at}", "ai.vendor")
    node(model, "Other", "org.others")


def function(model: onnx.ModelProto, *nodes: onnx.NodeProto, opset: int = 17) -> None:
    """A function a -> b, and a node that calls it."""
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("far", 1)]
    model.functions.append(helper.make_function("my", "F", ["a"], ["b"], nodes, opsets))
    model.opset_import.add(domain="my", version=1)
    node(model, "F", "my")


def hidden_nan(model: onnx.ModelProto) -> None:
    """In a constant of a function."""
    tensor = numpy_helper.from_array(np.array([np.nan], np.float32), "t")
    constant = helper.make_node("Constant", [], ["k"], value=tensor)
    function(model, constant, helper.make_node("Add", ["a", "k"], ["b"]))


def sequence_output(model: onnx.ModelProto) -> None:
    node(model, "SequenceConstruct")
    model.graph.output.append(
        helper.make_tensor_sequence_value_info("SequenceConstruct", TensorProto.FLOAT, None)
    )


def typed_input(kind: onnx.TypeProto) -> Edit:
    return lambda model: model.graph.input.append(helper.make_value_info("odd", kind))


TENSOR = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
FAULTS: dict[str, tuple[str, Edit]] = {
    "external data": (
        "theirs.onnx must hold its weights: export it with external_data=False, or run python -c",
        external,
    ),
    "sparse weights": ("sparse initializers", lambda m: m.graph.sparse_initializer.add()),
    "a sparse constant": (
        "a sparse tensor in Constant",
        lambda m: node(m, "Constant").attribute.add(name="value").sparse_tensor.dims.append(1),
    ),
    "operators of others": (
        "has the operators Op0, Op1, Op2, Op3, Op4, Op5, Op6, Op7 and 4 more of the domain "
        "'ai.vendor' and Other of the domain 'org.others'; the server runs those of "
        "ONNX and com.microsoft alone",
        customs,
    ),
    "an operator of ai.onnx.ml": (
        "an operator Scaler of the domain 'ai.onnx.ml'",
        lambda m: node(m, "Scaler", "ai.onnx.ml"),
    ),
    "an operator of others in a function": (
        "an operator Op of the domain 'far'",
        lambda m: function(m, helper.make_node("Op", ["a"], ["b"], domain="far")),
    ),
    "an engine's file": (
        "an operator EPContext, which the server does not run",
        lambda m: node(m, "EPContext", "com.microsoft"),
    ),
    "random numbers": ("an operator RandomNormalLike", lambda m: node(m, "RandomNormalLike")),
    "NaN in a weight": ("w has NaN values", lambda m: weight(m, np.nan)),
    "NaN in a function": ("t has NaN values", hidden_nan),
    "a weight of negative size": (
        "'w' has a negative size",
        lambda m: weight(m, [1.0]).dims.__setitem__(0, -1),
    ),
    "a weight of no dtype": ("'w'", lambda m: setattr(weight(m), "data_type", 99)),
    "an input of strings": (
        "the input odd of theirs.onnx is of the type tensor of strings",
        typed_input(helper.make_tensor_type_proto(TensorProto.STRING, [1])),
    ),
    "an optional input": (
        "the input odd of theirs.onnx is of the type optional",
        typed_input(helper.make_optional_type_proto(TENSOR)),
    ),
    "an input that is a map": (
        "the input odd of theirs.onnx is of the type map",
        typed_input(helper.make_map_type_proto(TensorProto.INT64, TENSOR)),
    ),
    "an output that is a sequence": (
        "the output SequenceConstruct of theirs.onnx is of the type sequence",
        sequence_output,
    ),
    "no outputs": ("has no output: there is nothing", lambda m: m.graph.ClearField("output")),
    "no inputs": ("has no input: there is nothing", lambda m: m.graph.ClearField("input")),
    "a name of other bytes": (
        "has a name that is not UTF-8",
        lambda m: setattr(m.graph.node[0], "name", "NODENAME"),
    ),
    "a function of another opset": (
        "functions of another opset than its graph: inline them",
        lambda m: function(m, helper.make_node("Relu", ["a"], ["b"]), opset=11),
    ),
    "too many nodes": (
        f"nodes, at most {NODES_MAX:,} are served",
        lambda m: [m.graph.node.add(op_type="Relu") for _ in range(NODES_MAX)],
    ),
    "a value that no node gives": ("its graph cannot be read", lambda m: m.graph.node.pop(0)),
    "no opset": ("is of opset 0", lambda m: m.ClearField("opset_import")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_graph_that_no_server_must_run_is_refused(file: Path, name: str) -> None:
    """Before onnxruntime sees it, in one line that names the file or the tensor."""
    says, edit = FAULTS[name]
    model = stream()
    edit(model)
    file.write_bytes(model.SerializeToString().replace(b"NODENAME", b"NODE\xff\xfe\xff\xff"))
    assert says in refusal(file)


def test_weights_have_a_limit(file: Path) -> None:
    """At the limit they are read, one byte above they are not: packed ones are as declared."""
    model = stream(constants={"half": np.ones(100, np.float16), "w": np.ones((5, 10), np.float32)})
    file.write_bytes(model.SerializeToString())
    read_source(file, weights_bytes_max=400)
    assert "has constants of 400 bytes, at most 399 are served" in refusal(
        file, weights_bytes_max=399
    )


# What is read -------------------------------------------------------------------------------------


def answers(model: onnx.ModelProto, **inputs: np.ndarray) -> list[Any]:
    """Of plain onnxruntime."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


X = {"x": np.full((1, 4), 2, np.float32), "s": np.full((1, 4), 3, np.float32)}


def test_a_stream_is_read(file: Path) -> None:
    """Sides, sha256 and the graph, which stays as it is."""
    source = read(file, stream())
    assert [*map(str, source.inputs.values())] == ["x float32[1, 4]", "s float32[1, 4]"]
    assert [*map(str, source.outputs.values())] == ["y float32[1, 4]", "s_out float32[1, 4]"]
    assert list(source.model.graph.node) == list(source.original.graph.node)
    assert source.notes == ()


def test_what_no_node_uses_is_no_fault(file: Path) -> None:
    """Imports of other domains, metadata, nodes without names, a domain under its long name."""
    model = stream()
    model.opset_import.add(domain="ai.onnx.ml", version=2)
    model.metadata_props.add(key="epoch", value="9")
    model.graph.node[0].domain = "ai.onnx"
    source = read(file, model)
    assert [(each.domain, each.version) for each in source.model.opset_import] == [("", 17)]
    assert answers(source.model, **X)[0].tolist() == [[5, 5, 5, 5]]


def test_constants_among_the_inputs_are_no_inputs(file: Path) -> None:
    """Files before IR version 4 list them, and later ones may."""
    for ir_version in (3, 8):
        model = stream([helper.make_node("Mul", ["x", "w"], ["more"])], {"w": 2.0}, added="more")
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32(2), "w"))
        model.graph.input.append(value_info("w", TensorProto.FLOAT, []))
        model.ir_version = ir_version
        source = read(file, model)
        assert list(source.inputs) == ["x", "s"]
        assert [each.name for each in source.model.graph.input] == ["x", "s"]
        assert source.model.ir_version == IR_VERSION_MIN
        assert answers(source.model, **X)[0].tolist() == [[7, 7, 7, 7]]


def test_outputs_may_be_inputs_or_constants(file: Path) -> None:
    """And one output may stand twice; also where an old opset is converted."""
    for opset in (9, 17):
        model = stream(constants={"w": np.ones(2, np.float32)}, opset=opset)
        for name, shape in (("x", [1, 4]), ("w", [2]), ("y", [1, 4])):
            model.graph.output.append(value_info(name, TensorProto.FLOAT, shape))
        source = read(file, model)
        assert list(source.outputs) == ["y", "s_out", "x", "w"]
        found, expected = answers(source.model, **X), answers(source.original, **X)
        assert [each.tolist() for each in found] == [each.tolist() for each in expected]


def test_functions_are_inlined(file: Path) -> None:
    """The graph has none of its own afterwards, and the same answers."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    model = stream([helper.make_node("Twice", ["x"], ["more"], domain="my")], added="more")
    for name, inner in (("Once", ("Relu", "")), ("Twice", ("Once", "my"))):
        nodes = [
            helper.make_node(inner[0], ["a"], ["t"], domain=inner[1]),
            helper.make_node("Add", ["t", "t"], ["b"]),
        ]
        model.functions.append(helper.make_function("my", name, ["a"], ["b"], nodes, opsets))
    model.opset_import.add(domain="my", version=1)
    source = read(file, model)
    assert not source.model.functions
    assert [(each.domain, each.version) for each in source.model.opset_import] == [("", 17)]
    assert answers(source.model, **X)[0].tolist() == answers(model, **X)[0].tolist()
    assert answers(source.model, **X)[0].tolist() == [[11, 11, 11, 11]]


def test_a_newer_ir_version_is_read_as_an_older_one(file: Path) -> None:
    """onnxruntime would refuse it for that number alone."""
    model = stream()
    model.ir_version = 999
    source = read(file, model)
    assert source.notes == (f"read as IR version {IR_VERSION_MAX}, the file says 999",)
    assert answers(source.original, **X)[0].tolist() == [[5, 5, 5, 5]]


def test_sizes_inside_are_left_out(file: Path) -> None:
    """With another batch they would be wrong, and onnxruntime computes with them; dtypes stay."""
    row = [value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("inner", "end")]
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in (("x", "inner"), ("inner", "end"))]
    body = helper.make_graph(nodes, "branch", [], row[1:], value_info=row[:1])
    branches = {"then_branch": body, "else_branch": body}
    model = stream(constants={"yes": np.array(True)})
    model.graph.node.append(helper.make_node("If", ["yes"], ["p"], **branches))
    model.graph.value_info.append(value_info("p", TensorProto.FLOAT, [1, 4]))
    kind = helper.make_sequence_type_proto(TENSOR)
    model.graph.value_info.append(helper.make_value_info("none", kind))
    source = read(file, model)
    infos = [*source.model.graph.value_info, *source.model.graph.node[-1].attribute[0].g.value_info]
    kinds = [each.type.WhichOneof("value") for each in infos]
    assert kinds == ["tensor_type", "sequence_type", "tensor_type"]
    assert not any(each.type.tensor_type.HasField("shape") for each in infos)
    assert infos[0].type.tensor_type.elem_type == TensorProto.FLOAT
