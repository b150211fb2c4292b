"""The folder, the graph and the golden vectors of models without states, before any is served."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lstmserve.config import Config
from lstmserve.engine import load_models
from lstmserve.engine.compute.kernel import KernelError, SequenceKernel
from lstmserve.engine.compute.selftest import SelfTestFailed, check_sequences
from lstmserve.golden import Golden, InvalidGolden, check_golden, dump_golden, load_golden
from lstmserve.graph import InvalidModel, graph_sequences
from lstmserve.graph.step_graph import fingerprint, read_step_graph
from lstmserve.manifest import MANIFEST, InvalidModelFolder, Manifest, read_model
from lstmserve.rows import RowFormat
from lstmserve.spec import ModelSpec, TensorSpec
from sequencegraphs import (
    ANSWER,
    ATTENTION,
    CONVOLUTION,
    GATED,
    MORE_ROWS,
    NETS,
    SequenceOracle,
    golden,
    kernel_of,
    make_models,
    random_rows,
    write_sequences,
)
from stepgraph import Step, five_states, write

X = TensorSpec("x", (3,))


# The spec, the manifest and the graph -------------------------------------------------------------


def test_what_streams_and_what_does_not() -> None:
    """A model streams if it has states; whole sequences have a row for each row only then."""
    assert not ATTENTION.spec.is_streaming
    assert not ATTENTION.spec.is_row_by_row
    assert five_states().spec.is_streaming
    assert five_states().spec.is_row_by_row


def test_the_manifest_has_a_format_of_its_own(tmp_path: Path) -> None:
    """A release that knows formats 1 to 3 refuses it by its number; this one reads what it
    writes."""
    make_models(tmp_path, "answer")
    text = (tmp_path / "answer" / "1" / MANIFEST).read_text()
    values = json.loads(text)
    assert (values["format"], values["kind"], values["spec"]["states"]) == (4, "network", [])
    assert Manifest.from_json(text).spec == ANSWER.spec
    assert Manifest.from_json(text).to_json() == text


@pytest.mark.parametrize(
    ("net", "found", "says"),
    [
        (ATTENTION, 2, "has format 2, and its spec is of format 4"),
        (five_states(), 4, "has format 4, and its spec is of format 2"),
        (ATTENTION, 5, "has format 5, this release reads 1 to 4"),
    ],
)
def test_another_format_is_refused(tmp_path: Path, net: Step, found: int, says: str) -> None:
    """A number that does not fit the spec, or that no release has written yet."""
    cases = golden(ATTENTION)
    file = write(tmp_path, net.spec, net.model(), cases, "net") / MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": found}))
    with pytest.raises(InvalidModelFolder, match=says):
        read_model(tmp_path, "net", 1)


def edited(net: Step, edit: Callable[[onnx.GraphProto], Any]) -> bytes:
    """The net's file after a change of its graph."""
    model = net.model()
    edit(model.graph)
    return bytes(model.SerializeToString())


def axis(value: onnx.ValueInfoProto, place: int, size: int) -> None:
    """Gives an axis of a value a fixed length."""
    value.type.tensor_type.shape.dim[place].dim_value = size


REFUSED: dict[str, tuple[Callable[[onnx.GraphProto], Any], str]] = {
    "a fixed number of rows": (
        lambda g: axis(g.input[0], 0, 9),
        r"input x of model.onnx has no dynamic axis of time, must be float32 \[T, 3\]",
    ),
    "another width": (lambda g: axis(g.input[0], 1, 4), r"input x .* is not float32 \[T, 3\]"),
    "another output": (lambda g: axis(g.output[0], 1, 3), r"output y .* is not float32 \[R, 2\]"),
    "no axis of rows": (
        lambda g: g.output[0].type.tensor_type.shape.Clear(),
        r"output y .* is not float32 \[R, 2\]",
    ),
    "an output that no node gives": (lambda g: g.node.pop(), "y"),
    "a state": (
        lambda g: g.input.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["B", 4])),
        "input h, not of the spec",
    ),
    "random numbers": (
        lambda g: g.node.append(helper.make_node("RandomNormal", [], ["z"], shape=[1])),
        "RandomNormal, which the server does not run",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_graphs_that_are_not_those_of_a_sequence(case: str) -> None:
    """The error names the value and what it must be."""
    edit, says = REFUSED[case]
    with pytest.raises(InvalidModel, match=says):
        read_step_graph(edited(ATTENTION, edit), ATTENTION.spec)


def test_an_output_may_have_a_fixed_number_of_rows() -> None:
    """One answer for a sequence is often declared as [1, *shape]."""
    content = edited(ANSWER, lambda g: [axis(each, 0, 1) for each in g.output])
    graph = read_step_graph(content, ANSWER.spec)
    kernel = SequenceKernel(graph_sequences(ANSWER.spec, graph), "cpu", 1)
    check_sequences(kernel, golden(ANSWER))
    assert len(kernel.run(random_rows("answer", np.random.default_rng(0), 7), {})[0]) == 1


def test_the_fingerprint_says_whether_there_are_states() -> None:
    """One graph with its state given by the client, as an input, is another model."""
    fingerprints = set()
    for net in (ATTENTION, replace(ATTENTION, constants={"out": np.ones((3, 2), np.float32)})):
        graph = read_step_graph(net.model().SerializeToString(), net.spec)
        fingerprints.add(fingerprint(net.spec, graph))
    nodes = "x h -> Add y\ny -> Identity h.next"
    step = Step(ModelSpec((X,), (replace(X, name="y"),), (replace(X, name="h"),)), nodes, {})
    whole = Step(ModelSpec((X,), (replace(X, name="y"),), ()), "x x -> Add y", {})
    for net in (step, whole):
        graph = read_step_graph(net.model().SerializeToString(), net.spec)
        fingerprints.add(fingerprint(net.spec, graph))
    assert len(fingerprints) == 4


# Golden vectors and the self-test -----------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_golden_vectors_come_back(name: str) -> None:
    """With the rows that each sequence gives, also a part of them."""
    cases = golden(NETS[name])
    (found,) = load_golden(dump_golden(cases), NETS[name].spec).values()
    (given,) = cases.values()
    check_golden({"found": found}, NETS[name].spec)
    assert np.array_equal(found.rows, given.rows)
    for key, each in given.outputs.items():
        assert np.array_equal(found.outputs[key], each)
    assert found.part(slice(1, 2)).rows.tolist() == given.rows[1:2].tolist()


@pytest.mark.parametrize(
    ("lengths", "says"),
    [
        ([3, 1], "output_lengths has 2 sequences, lengths has 3"),
        ([3, -1, 2], r"must be in \[0, the sequence's length\]"),
        ([3, 5, 2], r"must be in \[0, the sequence's length\]"),
        ([4, 1, 2], "the outputs have 3 rows, output_lengths says 4"),
    ],
)
def test_impossible_output_lengths_are_refused(lengths: list[int], says: str) -> None:
    """A count for each sequence, within the sequence and within the outputs."""
    (case,) = golden(CONVOLUTION).values()
    bad = replace(case, output_lengths=np.array(lengths, np.int32))
    with pytest.raises(InvalidGolden, match=says):
        check_golden({"bad": bad}, CONVOLUTION.spec)


def test_output_lengths_are_for_models_without_states() -> None:
    """A model that streams has a row for each row."""
    spec = ModelSpec((X,), (replace(X, name="y"),), (replace(X, name="h"),))
    x = np.zeros((1, 2, 3), np.float32)
    case = Golden({"x": x}, np.array([2], np.int32), None, {"y": x}, {}, torch_error=0.0)
    check_golden({"right": case}, spec)
    with pytest.raises(InvalidGolden, match="for models without states"):
        check_golden({"bad": replace(case, output_lengths=case.lengths)}, spec)


def test_without_output_lengths_there_is_a_row_for_each_row() -> None:
    """Golden vectors of a graph that gives T rows need not say so."""
    (case,) = golden(ATTENTION).values()
    cases = {"plain": replace(case, output_lengths=None)}
    check_golden(cases, ATTENTION.spec)
    check_sequences(kernel_of(ATTENTION), load_golden(dump_golden(cases), ATTENTION.spec))


@pytest.mark.parametrize("name", NETS)
def test_the_self_test_finds_a_wrong_value(name: str) -> None:
    """Of any output, in any sequence."""
    kernel, (case,) = kernel_of(NETS[name]), golden(NETS[name]).values()
    check_sequences(kernel, {"right": case})
    for key, each in case.outputs.items():
        for i in range(len(each)):
            wrong = each.copy()
            wrong[i, 0] += 1
            with pytest.raises(SelfTestFailed, match="times as far"):
                check_sequences(
                    kernel, {"bad": replace(case, outputs={**case.outputs, key: wrong})}
                )


def test_the_self_test_finds_another_number_of_rows() -> None:
    """The file gives a row less than the exported one did, or one more."""
    kernel, (case,) = kernel_of(CONVOLUTION), golden(CONVOLUTION).values()
    for count in (0, 2):
        wrong = replace(case, output_lengths=np.array([3, count, 2], np.int32))
        with pytest.raises(SelfTestFailed, match=f"gives 1 rows of outputs, .* have {count}"):
            check_sequences(kernel, {"bad": wrong})


# What a graph gives although its file says otherwise ----------------------------------------------

UNLIKE = Step(
    ModelSpec((X,), (replace(X, name="y"), replace(X, name="z")), ()),
    "x -> Identity y\nx zero end axis two -> Slice z",
    {
        "zero": np.array([0]),
        "end": np.array([1 << 40]),
        "axis": np.array([0]),
        "two": np.array([2]),
    },
)
# No file says which axes the nodes give where a shape comes from values.
RESHAPED = Step(
    ModelSpec((X,), (TensorSpec("y", (3,)),), ()),
    """
x -> Shape+start=0+end=1 rows
three rows -> Concat+axis=0 turned
x turned -> Reshape y
""",
    {"three": np.array([3])},
)


def test_outputs_of_different_lengths_fail_their_sequence() -> None:
    """One row is as many for both; three rows are not, and the error has both numbers."""
    kernel = kernel_of(UNLIKE)
    y, _ = kernel.run(np.ones((1, 3), np.float32), {})
    assert len(y) == 1
    with pytest.raises(KernelError, match=r"the outputs have \[2, 3\] rows"):
        kernel.run(np.ones((3, 3), np.float32), {})


def test_an_output_of_another_shape_fails_its_sequence() -> None:
    """Three rows of three values are as declared; two rows come as three of two values."""
    kernel = kernel_of(RESHAPED)
    assert len(kernel.run(np.ones((3, 3), np.float32), {})[0]) == 3
    with pytest.raises(KernelError, match=r"y has the shape \[3, 2\], must be \['R', 3\]"):
        kernel.run(np.ones((2, 3), np.float32), {})


def test_more_rows_than_the_sequence_has_fail() -> None:
    """The budget of bytes and the client count on T rows at most."""
    with pytest.raises(KernelError, match="have 4 rows, more than the 2 of the input"):
        kernel_of(MORE_ROWS).run(np.ones((2, 3), np.float32), {})


def test_a_model_that_gives_more_rows_is_not_served(tmp_path: Path) -> None:
    """Its golden vectors say so, or else the self-test does."""
    write_sequences(tmp_path, "more", MORE_ROWS)
    with pytest.raises(InvalidModelFolder, match="output_lengths must be in"):
        load_models(Config(models=tmp_path))
    (case,) = golden(MORE_ROWS).values()
    cut = {name: each[:, :9] for name, each in case.outputs.items()}
    fewer = replace(case, outputs=cut, output_lengths=case.lengths)
    write(tmp_path, MORE_ROWS.spec, MORE_ROWS.model(), {"cut": fewer}, "more", 2)
    with pytest.raises(InvalidModelFolder, match="rows, more than the"):
        load_models(Config(models=_only(tmp_path, 2)))


def _only(folder: Path, version: int) -> Path:
    """The folder without any other version."""
    for each in (folder / "more").iterdir():
        if each.name != str(version):
            each.rename(folder / f".{each.name}")
    return folder


# A server of such models --------------------------------------------------------------------------


def test_models_without_states_need_no_pool(tmp_path: Path) -> None:
    """They load with the smallest --pool-bytes and with any --store-format, which has no room for
    the states of a network."""
    make_models(tmp_path)
    models = load_models(Config(models=tmp_path, pool_bytes=4096, store_format=1))
    assert {each.name for each in models} == set(NETS)
    for each in models:
        assert (each.pool, each.kernel, each.is_exact) == (None, None, True)
        form = RowFormat(each.spec.outputs)
        assert each.outputs.sizes == form.sizes


def test_a_gru_of_one_direction(tmp_path: Path) -> None:
    """The file's own bits for sequences of every length up to 20."""
    write_sequences(tmp_path, "gated", GATED)
    oracle, kernel = SequenceOracle(tmp_path, "gated", GATED.spec), kernel_of(GATED)
    for length in range(1, 21):
        x = np.random.default_rng(length).standard_normal((length, 3)).astype(np.float32)
        assert np.array_equal(kernel.run(x, {})[0], oracle.rows(x))
