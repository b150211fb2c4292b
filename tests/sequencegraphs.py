"""Models without states, made by hand, and their oracle: a plain onnxruntime session of the file.

Each graph reads one whole sequence, [T, *shape] of each input. The oracle runs one sequence at a
time, and knows nothing of batches, of a pool or of rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from lstmserve.engine.compute.kernel import SequenceKernel
from lstmserve.golden import Golden
from lstmserve.graph import graph_sequences
from lstmserve.graph.step_graph import read_step_graph
from lstmserve.rows import RowFormat, Rows
from lstmserve.spec import ModelSpec, TensorSpec
from stepgraph import Step, write

Array = npt.NDArray[Any]

KIND: Final = TensorSpec("kind", (), "int64")
X: Final = TensorSpec("x", (3,))
KINDS: Final = 5
_rng = np.random.default_rng(16)


def _floats(*shape: int) -> Array:
    return _rng.uniform(-1, 1, shape).astype(np.float32)


# Each row is a mean of all rows, by how alike they are.
ATTENTION: Final = Step(
    ModelSpec((X,), (TensorSpec("y", (2,)),), ()),
    """
x -> Transpose+perm=1,0 columns
x columns -> MatMul alike
alike -> Softmax+axis=-1 weights
weights x -> MatMul mixed
mixed out -> MatMul y
""",
    {"out": _floats(3, 2)},
)
# Convolution without padding: of every second place of 4 rows, (T - 4) // 2 + 1 rows.
CONVOLUTION: Final = Step(
    ModelSpec((X,), (TensorSpec("y", (6,)),), ()),
    """
x -> Transpose+perm=1,0 columns
columns zero -> Unsqueeze one
one kernel -> Conv+strides=2, found
found zero -> Squeeze rows
rows -> Transpose+perm=1,0 y
""",
    {"kernel": _floats(6, 3, 4), "zero": np.array([0])},
)
# One answer for a sequence: floats of two shapes and integers, from floats and integers.
ANSWER: Final = Step(
    ModelSpec(
        (X, KIND),
        (TensorSpec("score", (2, 2)), TensorSpec("best", (), "int64"), TensorSpec("top")),
        (),
    ),
    """
kind five -> Mod kinds
table kinds -> Gather embedded
x embedded -> Add sum
sum -> ReduceMean+axes=0,+keepdims=1 mean
mean out -> MatMul flat
flat shape -> Reshape score
flat -> ArgMax+axis=1+keepdims=0 best
mean first -> Gather+axis=1 top
""",
    {
        "five": np.array(KINDS),
        "table": _floats(KINDS, 3),
        "out": _floats(3, 4),
        "shape": np.array([-1, 2, 2]),
        "first": np.array(0),
    },
    opset=17,
)
# A bidirectional GRU over every third row, and integers alone as outputs.
LABELS: Final = Step(
    ModelSpec((X,), (TensorSpec("label", (), "int64"),), ()),
    """
x two end axis0 three -> Slice some
some one -> Unsqueeze major
major w r -> GRU+hidden_size=4+direction=bidirectional wide
wide shape -> Reshape rows
rows -> ArgMax+axis=1+keepdims=0 label
""",
    {
        "two": np.array([2]),
        "three": np.array([3]),
        "end": np.array([1 << 40]),
        "axis0": np.array([0]),
        "one": np.array([1]),
        "w": _floats(2, 12, 3),
        "r": _floats(2, 12, 4),
        "shape": np.array([-1, 8]),
    },
)
NETS: Final[dict[str, Step]] = {
    "attention": ATTENTION,
    "convolution": CONVOLUTION,
    "answer": ANSWER,
    "labels": LABELS,
}
EMPTY: Final = Step(  # rows 4, 5, ... of the sequence, which may be none
    ATTENTION.spec,
    "x four end axis0 -> Slice some\nsome out -> MatMul y",
    {
        "four": np.array([4]),
        "end": np.array([1 << 40]),
        "axis0": np.array([0]),
        "out": np.ones((3, 2), np.float32),
    },
)
# A GRU of one direction: one answer, after the last row.
GATED: Final = Step(
    ModelSpec((X,), (TensorSpec("y", (4,)),), ()),
    """
x one -> Unsqueeze major
major w r -> GRU+hidden_size=4 . end
end one -> Squeeze y
""",
    {"one": np.array([1]), "w": _floats(1, 12, 3), "r": _floats(1, 12, 4)},
)
MORE_ROWS: Final = Step(  # than the sequence has: never served
    ModelSpec((X,), (TensorSpec("y", (3,)),), ()), "x x -> Concat+axis=0 y", {}
)
LEAST: Final = {"attention": 1, "convolution": 4, "answer": 1, "labels": 3}  # rows that it takes


def rows_of(name: str, length: int) -> int:
    """R: how many rows of outputs a sequence of `length` rows has."""
    return {
        "attention": length,
        "convolution": (length - 4) // 2 + 1,
        "answer": 1,
        "labels": length // 3,
    }[name]


class SequenceOracle:
    """Runs one sequence in a plain session on the file."""

    def __init__(self, folder: Path, name: str, spec: ModelSpec | None = None) -> None:
        self.spec = spec or NETS[name].spec
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._session = ort.InferenceSession(str(folder / name / "1" / "model.onnx"), options)

    def run(self, x: Rows) -> dict[str, Array]:
        """Name -> [R, *shape] of each output, for the rows x [T, ...]."""
        names = [each.name for each in self.spec.outputs]
        feed = {n: np.ascontiguousarray(v) for n, v in RowFormat(self.spec.inputs).split(x).items()}
        return dict(zip(names, self._session.run(names, feed), strict=True))

    def rows(self, x: Rows) -> Rows:
        """The same as rows [R, ...]."""
        return RowFormat(self.spec.outputs).pack(self.run(x))


def random_rows(name: str, rng: np.random.Generator, length: int) -> Rows:
    """Rows [length, ...] of the model's inputs; kinds are any int64."""
    found: dict[str, Array] = {"x": rng.standard_normal((length, 3)).astype(np.float32)}
    if KIND in NETS[name].spec.inputs:
        found["kind"] = rng.integers(-(1 << 62), 1 << 62, length)
    return RowFormat(NETS[name].spec.inputs).pack(found)


def make_models(folder: Path, *names: str) -> None:
    """Writes folder/NAME/1 of these models; of all where none is named."""
    for name in names or NETS:
        write_sequences(folder, name, NETS[name])


def write_sequences(folder: Path, name: str, net: Step, shift: float = 0) -> Path:
    """Writes a model without states, with golden vectors of a few lengths."""
    return write(folder, net.spec, net.model(), golden(net, shift), name)


def golden(net: Step, shift: float = 0) -> dict[str, Golden]:
    """One case of ragged sequences of random values around `shift`, padded with zeros."""
    lengths = (9, 4, 7)
    rng, spec = np.random.default_rng(3), net.spec
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(net.model().SerializeToString(), options)
    inputs = {
        each.name: np.zeros((len(lengths), max(lengths), *each.shape), each.dtype)
        for each in spec.inputs
    }
    found = []
    for i, length in enumerate(lengths):
        for each in spec.inputs:
            drawn = rng.standard_normal((length, *each.shape)) * 3 + shift
            inputs[each.name][i, :length] = drawn.astype(each.dtype)
        feed = {n: each[i, :length] for n, each in inputs.items()}
        names = [each.name for each in spec.outputs]
        found.append(dict(zip(names, session.run(names, feed), strict=True)))
    counts = [len(next(iter(each.values()))) for each in found]
    outputs = {
        each.name: np.zeros((len(lengths), max(counts), *each.shape), each.dtype)
        for each in spec.outputs
    }
    for i, each in enumerate(found):
        for key, values in each.items():
            outputs[key][i, : len(values)] = values
    return {
        "sequences": Golden(
            inputs,
            np.array(lengths, np.int32),
            None,
            outputs,
            {},
            torch_error=0.0,
            output_lengths=np.array(counts, np.int32),
        )
    }


def kernel_of(net: Step) -> SequenceKernel:
    """The net as the server runs it."""
    graph = read_step_graph(net.model().SerializeToString(), net.spec)
    return SequenceKernel(graph_sequences(net.spec, graph), "cpu", 1)
