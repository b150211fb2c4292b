"""Holds what an import finds out about axes to small graphs of which the axes are known.

Each graph is a few lines of ONNX's text. Many are traps: what a name or a declared size suggests is
not what the graph does, or it does so only for some values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmserve_export.onnx_file.layout.batch_axis import NoBatch, find_batch
from lstmserve_export.onnx_file.layout.place import Layout, Place
from lstmserve_export.onnx_file.layout.probe import Probed, probe
from lstmserve_export.onnx_file.load.source import read_source
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.onnx_file.roles.roles import Roles
from lstmserve_export.onnx_file.roles.state_pairs import StatePair
from lstmserve_export.refusal import Refused
from tests.onnxfiles import Array, model_of

RNG = np.random.default_rng(16)


def weights(**shapes: tuple[int, ...]) -> dict[str, Array]:
    """Random float32 arrays, and the constants that graphs squeeze and gather with."""
    found = {name: RNG.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    return found | {"axis0": np.array([0]), "axis1": np.array([1]), "one": np.array(1)}


def lstm(inputs: int, hidden: int) -> dict[str, Array]:
    """The weights of an LSTM node."""
    return weights(W=(1, 4 * hidden, inputs), R=(1, 4 * hidden, hidden), B=(1, 8 * hidden))


class Probe:
    """Probes a graph that is given as ONNX's text."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "model.onnx"

    def __call__(
        self,
        signature: str,
        body: str,
        tensors: Mapping[str, Array],
        *pairs: str,
        constants: Mapping[str, Array] | None = None,
        given: Mapping[str, Array] | None = None,
        **flags: Any,
    ) -> Probed:
        text = f'<ir_version: 8, opset_import: ["": 17]> g {signature} {{ {body} }}'
        used = {name: each for name, each in tensors.items() if name in body}
        self._file.write_bytes(model_of(text, used))
        source = read_source(self._file)
        states = tuple(
            StatePair(source.inputs[before], source.outputs[after])
            for before, after in (each.split(":") for each in pairs)
        )
        taken = {each.before.name for each in states} | set(constants or {})
        given_back = {each.after.name for each in states}
        roles = Roles(
            tuple(each for name, each in source.inputs.items() if name not in taken),
            tuple(each for name, each in source.outputs.items() if name not in given_back),
            states,
            constants or {},
        )
        return probe(source, roles, Request(self._file, "m", **flags), given or {})


@pytest.fixture
def examine(tmp_path: Path) -> Probe:
    """Probes graphs in a folder of this test's own."""
    return Probe(tmp_path)


def axes(place: Place) -> tuple[tuple[int, ...], int | None, int | None]:
    """The shape of a row, the axis of the batch and that of time."""
    return place.spec.shape, place.batch, place.time


def state(layout: Layout, at: int = 0) -> tuple[tuple[int, ...], int | None, int | None]:
    """The shape of a state, and its axis of the batch before and after."""
    found = layout.states[at]
    assert found.before.spec == found.after.spec
    return found.before.spec.shape, found.before.batch, found.after.batch


# The batch ----------------------------------------------------------------------------------------

CELL = """
    seen = MatMul (x, w)
    kept = MatMul (h, r)
    sum = Add (seen, kept)
    h1 = Tanh (sum)
    y = MatMul (h1, o)
"""
CELL_WEIGHTS = weights(w=(3, 5), r=(5, 5), o=(5, 2))


@pytest.mark.parametrize("b", ["batch", "1", "time"])
def test_a_batch_is_found_whatever_the_file_declares(examine: Probe, b: str) -> None:
    """A batch of sessions works on an axis that is named batch, that is named time, or that is
    declared as 1."""
    layout = examine(
        f"(float[{b}, 3] x, float[{b}, 5] h) => (float[{b}, 2] y, float[{b}, 5] h1)",
        CELL,
        CELL_WEIGHTS,
        "h:h1",
    ).layout
    assert layout.is_batched
    assert axes(layout.inputs[0]) == ((3,), 0, None)
    assert axes(layout.outputs[0]) == ((2,), 0, None)
    assert state(layout) == ((5,), 0, 0)
    assert layout.notes == ()


LSTM = """
    y4, h1, c1 = LSTM <hidden_size = 6> (x, W, R, B, , h, c)
    y = Squeeze (y4, axis1)
"""


@pytest.mark.parametrize("signature", ["T, B", "?, ?"])
def test_batch_and_time_on_axes_of_their_own(examine: Probe, signature: str) -> None:
    """Of the two free axes of an LSTM's input, the second is the batch and the first is time."""
    t, b = signature.split(", ") if signature != "?, ?" else ("u1", "u2")
    layout = examine(
        f"(float[{t}, {b}, 3] x, float[1, {b}, 6] h, float[1, {b}, 6] c) => "
        f"(float[{t}, {b}, 6] y, float[1, {b}, 6] h1, float[1, {b}, 6] c1)",
        LSTM,
        lstm(3, 6),
        "h:h1",
        "c:c1",
    ).layout
    assert layout.is_batched
    assert axes(layout.inputs[0]) == ((3,), 1, 0)
    assert axes(layout.outputs[0]) == ((6,), 1, 0)
    assert state(layout, 0) == state(layout, 1) == ((1, 6), 1, 1)


TIME_FIRST = """
    rows = Unsqueeze (x, axis1)
    h3 = Unsqueeze (h, axis0)
    c3 = Unsqueeze (c, axis0)
    y4, h13, c13 = LSTM <hidden_size = 6> (rows, W, R, B, , h3, c3)
    y3 = Squeeze (y4, axis1)
    y = Transpose <perm = [1, 0, 2]> (y3)
    h1 = Squeeze (h13, axis0)
    c1 = Squeeze (c13, axis0)
"""
TIME_FIRST_SIDES = (
    "(float[batch, 3] x, float[batch, 6] h, float[batch, 6] c) => "
    "(float[batch, n, 6] y, float[batch, 6] h1, float[batch, 6] c1)"
)


def test_an_axis_called_batch_that_is_time(examine: Probe) -> None:
    """Rows along an axis called batch are time steps of one session, where the graph gives its
    LSTM one batch row whatever comes."""
    layout = examine(
        TIME_FIRST_SIDES, TIME_FIRST, lstm(3, 6), "h:h1", "c:c1", batch_axes={"x": None}
    ).layout
    assert not layout.is_batched
    assert axes(layout.inputs[0]) == ((3,), None, 0)
    assert axes(layout.outputs[0]) == ((6,), None, 1)
    assert state(layout) == ((6,), None, None)


def test_states_change_their_axes(examine: Probe) -> None:
    """A state has its batch on axis 1 before the step and on axis 0 after it."""
    layout = examine(
        "(float[B, 3] x, float[2, B, 5] s) => (float[B, 5] y, float[B, 2, 5] s1)",
        """
        first, second = Split <axis = 0> (s)
        h = Squeeze (first, axis0)
        seen = MatMul (x, w)
        kept = MatMul (h, r)
        sum = Add (seen, kept)
        y = Tanh (sum)
        y3 = Unsqueeze (y, axis1)
        old = Transpose <perm = [1, 0, 2]> (first)
        s1 = Concat <axis = 1> (y3, old)
        """,
        CELL_WEIGHTS,
        "s:s1",
    ).layout
    assert state(layout) == ((2, 5), 1, 0)


SQUEEZED = """
    flat = Squeeze (x, axes01)
    flat_h = Squeeze (h, axes01)
    sum = Add (flat, flat_h)
    mixed = MatMul (sum, w)
    top = Tanh (mixed)
    y = Unsqueeze (top, axes01)
    h1 = Identity (y)
"""


def test_a_graph_of_one_session(examine: Probe) -> None:
    """Where no axis is left for a batch, the graph takes one session a run, and the note names the
    operator; the first axes of one are not of the row."""
    layout = examine(
        "(float[1, 1, 3] x, float[1, 1, 3] h) => (float[1, 1, 3] y, float[1, 1, 3] h1)",
        SQUEEZED,
        weights(w=(3, 3)) | {"axes01": np.array([0, 1])},
        "h:h1",
    ).layout
    assert not layout.is_batched
    assert axes(layout.inputs[0]) == ((3,), None, None)
    assert axes(layout.outputs[0]) == ((3,), None, None)
    assert state(layout) == ((1, 3), None, None)
    (note,) = layout.notes
    assert note == "no batch: along x=0,h=0, Squeeze refuses a batch"


MIXERS = {
    "their mean": "m = ReduceMean <axes = [0]> (h0)  h1 = Sub (h0, m)",
    "the first row": "f = Gather <axis = 0> (h0, zeros)  n = Mul (h0, none)  h1 = Add (f, n)",
    # Zero for all that random rows hold; only an infinity shows it.
    "nothing, for numbers": (
        "m = ReduceMax <keepdims = 0> (x)  n = Mul (m, none)  h1 = Add (h0, n)"
    ),
    "loud rows": (
        "a = Abs (x)  m = ReduceMax <keepdims = 0> (a)  over = Greater (m, high) "
        "finite = Less (m, top)  loud = And (over, finite) "
        "h1 = Where (loud, five, h0)"
    ),
    "silent rows": (
        "a = Abs (x)  s = ReduceSum <keepdims = 1> (a, axis1)  m = ReduceMin <keepdims = 0> (s) "
        "silent = Less (m, tiny)  h1 = Where (silent, five, h0)"
    ),
    "large states": (
        "a = Abs (h)  m = ReduceMax <keepdims = 0> (a)  big = Greater (m, limit) "
        "h1 = Where (big, five, h0)"
    ),
}


@pytest.mark.parametrize("mixer", MIXERS)
def test_rows_that_mix_are_no_batch(examine: Probe, mixer: str) -> None:
    """An axis is no batch if a row's answer depends on its neighbours, for any kind of values."""
    constants = {
        "zeros": np.array([0]),
        "none": np.array(0, np.float32),
        "high": np.array(15, np.float32),
        "top": np.array(1e6, np.float32),
        "tiny": np.array(1e-9, np.float32),
        "limit": np.array(0.9, np.float32),
        "five": np.full((1, 5), 0.5, np.float32),
    }
    probed = examine(
        "(float[B, 3] x, float[B, 5] h) => (float[B, 2] y, float[B, 5] h1)",
        CELL.replace("h1 = Tanh", "h0 = Tanh").replace(
            "    y = ", f"    {MIXERS[mixer]}\n    y = "
        ),
        CELL_WEIGHTS | constants,
        "h:h1",
    )
    batch = find_batch(probed.trial, {})
    assert isinstance(batch, NoBatch)
    assert "of a row depends on the rows beside it" in batch.reason


def test_a_batch_of_one_size_alone_is_none(examine: Probe) -> None:
    """A graph that multiplies [B, 3] by [B] runs for three rows or one, and is no batch."""
    layout = examine(
        "(float[B, 3] x, float[B] gain, float[B, 3] h) => (float[B, 3] y, float[B, 3] h1)",
        "louder = Mul (x, gain)  h1 = Add (h, louder)  y = Tanh (h1)",
        {},
        "h:h1",
    ).layout
    assert not layout.is_batched
    assert [axes(each) for each in layout.inputs] == [((3,), None, None), ((1,), None, None)]


def test_an_output_without_a_batch(examine: Probe) -> None:
    """A graph of which one output has one row for all sessions has no batch."""
    probed = examine(
        "(float[B, 3] x, float[B, 5] h) => (float[B, 2] y, float[B, 5] h1, float[1, 3] all)",
        CELL + "all = ReduceMax <axes = [0]> (x)",
        CELL_WEIGHTS,
        "h:h1",
    )
    batch = find_batch(probed.trial, {})
    assert isinstance(batch, NoBatch)
    assert "all is [1, 3] for 4 rows and [1, 3] for one" in batch.reason


def test_an_input_that_the_graph_ignores(examine: Probe) -> None:
    """An input that no node reads has a batch like the others."""
    layout = examine(
        "(float[B, 3] x, float[B, 7] other, float[B, 5] h) => (float[B, 2] y, float[B, 5] h1)",
        CELL,
        CELL_WEIGHTS,
        "h:h1",
    ).layout
    assert layout.is_batched
    assert axes(layout.inputs[1]) == ((7,), 0, None)


def test_an_output_that_never_changes(examine: Probe) -> None:
    """Of an output that is the same for every row, a note says that its batch is its shape's."""
    layout = examine(
        "(float[B, 3] x, float[B, 5] h) => (float[B, 2] y, float[B, 5] h1, float[B, 3] off)",
        CELL + "off = Mul (x, none)",
        CELL_WEIGHTS | {"none": np.array(0, np.float32)},
        "h:h1",
    ).layout
    assert layout.is_batched
    assert layout.outputs[1].batch == 0
    assert "off had the same values for every row" in layout.notes[-1]


def test_a_scalar_input_leaves_no_batch(examine: Probe) -> None:
    """An input without axes is one value of one session, so a run takes one."""
    layout = examine(
        "(float[B, 3] x, float gain, float[B, 5] h) => (float[B, 2] y, float[B, 5] h1)",
        CELL.replace("h1 = Tanh (sum)", "up = Mul (sum, gain)  h1 = Tanh (up)"),
        CELL_WEIGHTS,
        "h:h1",
    ).layout
    assert not layout.is_batched
    assert layout.notes == ("no batch: gain has no axis that is 1 or of any size",)
    assert axes(layout.inputs[1]) == ((), None, None)


def test_a_constant_with_a_batch(examine: Probe) -> None:
    """A constant that the graph takes once for each session is found, with its axis."""
    probed = examine(
        "(float[N, 4, 3] x, int64[N] lens, float[N, 5] h) => (float[N, 2] y, float[N, 5] h1)",
        """
        last = Sub (lens, one)
        ends = Unsqueeze (last, axis1)
        row = GatherND <batch_dims = 1> (x, ends)
        """
        + CELL.replace("(x, w)", "(row, w)"),
        CELL_WEIGHTS,
        "h:h1",
        constants={"lens": np.array([4])},
    )
    assert probed.layout.is_batched
    assert probed.layout.constant_batches == {"lens": 0}
    assert axes(probed.layout.inputs[0]) == ((4, 3), 0, None)


@pytest.mark.parametrize(
    ("given", "found"),
    [({"x": 0}, True), ({"h": -2, "y": 0}, True), ({"x": None}, False), ({"": None}, False)],
)
def test_a_batch_axis_that_is_given(
    examine: Probe, given: dict[str, int | None], found: bool
) -> None:
    """--batch-axis says where the batch is, or that there is none."""
    layout = examine(
        "(float[1, 3] x, float[1, 5] h) => (float[1, 2] y, float[1, 5] h1)",
        CELL,
        CELL_WEIGHTS,
        "h:h1",
        batch_axes=given,
    ).layout
    assert layout.is_batched == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"x": 1},
            "--batch-axis x=1: the graph does not run with one row there: MatMul .*: x=0, y=0, h=0",
        ),
        ({"x": 2}, r"--batch-axis x=2: x float32\[B, 3\] has 2 axes, from 0"),
        ({"z": 0}, "--batch-axis z=0: there is no such tensor; there are x, y, h, h1"),
        ({"y": 1}, "--batch-axis y=1: the rows of what comes out lie along other axes"),
    ],
)
def test_a_wrong_batch_axis_is_refused(
    examine: Probe, given: dict[str, int | None], message: str
) -> None:
    """A wrong --batch-axis is refused with what was found."""
    with pytest.raises(Refused, match=message):
        examine(
            "(float[B, 3] x, float[B, 5] h) => (float[B, 2] y, float[B, 5] h1)",
            CELL,
            CELL_WEIGHTS,
            "h:h1",
            batch_axes=given,
        )


def test_a_wrong_batch_axis_of_a_graph_without_batch(examine: Probe) -> None:
    """Where no axis is a batch, the refusal of --batch-axis says so."""
    with pytest.raises(Refused, match="no other axis works; leave the flag out"):
        examine(
            "(float[1, 1, 3] x, float[1, 1, 3] h) => (float[1, 1, 3] y, float[1, 1, 3] h1)",
            SQUEEZED,
            weights(w=(3, 3)) | {"axes01": np.array([0, 1])},
            "h:h1",
            batch_axes={"x": 0},
        )


# Time and rows ------------------------------------------------------------------------------------


def test_outputs_of_the_last_row_alone(examine: Probe) -> None:
    """An output that only has the last row's answer leaves time on the input, and steps of one."""
    layout = examine(
        "(float[B, T, 3] x, float[1, B, 6] h, float[1, B, 6] c) => "
        "(float[1, B, 6] y, float[1, B, 6] h1, float[1, B, 6] c1)",
        """
        major = Transpose <perm = [1, 0, 2]> (x)
        y4, h1, c1 = LSTM <hidden_size = 6> (major, W, R, B, , h, c)
        y = Identity (h1)
        """,
        lstm(3, 6),
        "h:h1",
        "c:c1",
    ).layout
    assert layout.is_batched
    assert axes(layout.inputs[0]) == ((3,), 0, 1)
    assert axes(layout.outputs[0]) == ((6,), 1, None)


FRAMES = """
    seen = MatMul (x, w)
    sum = Add (seen, h)
    h1 = Tanh (sum)
    y = Identity (h1)
"""


def test_rows_of_a_step(examine: Probe) -> None:
    """A free axis that takes frames of one size alone asks for --rows and names what works."""
    signature = "(float[B, n] x, float[B, 5] h) => (float[B, 5] y, float[B, 5] h1)"
    tensors = weights(w=(160, 5))
    with pytest.raises(Refused, match="give --rows N, the number of rows of one step; 160 run"):
        examine(signature, FRAMES, tensors, "h:h1")
    layout = examine(signature, FRAMES, tensors, "h:h1", rows=160).layout
    assert layout.is_batched
    assert axes(layout.inputs[0]) == ((160,), 0, 1)
    with pytest.raises(Refused, match="--rows 161: the graph does not run on x"):
        examine(signature, FRAMES, tensors, "h:h1", rows=161)


SUMMED = """
    most = ReduceMax <axes = [1], keepdims = 0> (x)
    seen = MatMul (most, w)
    sum = Add (seen, h)
    h1 = Tanh (sum)
    y = Identity (h1)
"""


@pytest.mark.parametrize("rows", [1, 4])
def test_a_free_axis_that_is_no_time(examine: Probe, rows: int) -> None:
    """Several rows that are no time steps ask for --rows, which may be 1."""
    signature = "(float[B, K, 3] x, float[B, 5] h) => (float[B, 5] y, float[B, 5] h1)"
    with pytest.raises(Refused, match=r"axis 1 of x float32\[B, K, 3\] is neither the batch nor"):
        examine(signature, SUMMED, CELL_WEIGHTS, "h:h1")
    layout = examine(signature, SUMMED, CELL_WEIGHTS, "h:h1", rows=rows).layout
    assert layout.is_batched
    assert layout.inputs[0].spec.shape == ((3,) if rows == 1 else (rows, 3))


@pytest.mark.parametrize("rows", [1, 4])
def test_an_input_for_all_rows_of_a_step(examine: Probe, rows: int) -> None:
    """--rows leaves out an input whose only free axis is named as the batch is."""
    layout = examine(
        "(float[B, K, 3] x, float[B, 5] who, float[B, 5] h) => (float[B, 5] y, float[B, 5] h1)",
        "part = Add (who, h)" + SUMMED.replace("(seen, h)", "(seen, part)"),
        CELL_WEIGHTS,
        "h:h1",
        rows=rows,
    ).layout
    assert layout.is_batched
    assert axes(layout.inputs[0]) == (((3,) if rows == 1 else (rows, 3)), 0, 1)
    assert axes(layout.inputs[1]) == ((5,), 0, None)


NORMED = """
    mean = ReduceMean <axes = [1]> (x)
    rest = Sub (x, mean)
    square = Mul (rest, rest)
    mean2 = ReduceMean <axes = [1]> (square)
    spread = Add (mean2, tiny)
    root = Sqrt (spread)
    level = Div (rest, root)
    seen = MatMul (level, w)
    sum = Add (seen, h)
    h1 = Tanh (sum)
    y = Identity (h1)
"""


def test_rows_that_give_rounding_alone_prove_nothing(examine: Probe) -> None:
    """A constant row less its mean is rounding alone, which the graph makes large: no such row is
    compared."""
    probed = examine(
        "(float[B, 7] x, float[B, 5] h) => (float[B, 5] y, float[B, 5] h1)",
        NORMED,
        weights(w=(7, 5)) | {"tiny": np.array(1e-30, np.float32)},
        "h:h1",
    )
    rows = probed.trial.sequences(probed.layout.inputs, 16, 3)["x"].reshape(-1, 7)
    assert not rows[rows.std(axis=1) < 0.01].any()


# States -------------------------------------------------------------------------------------------


def test_a_cache_that_grows_is_refused(examine: Probe) -> None:
    """A state that is one row longer after each step is refused with its reason."""
    with pytest.raises(Refused, match="a step changes the size of past, like a cache that grows"):
        examine(
            "(float[B, 1, 3] x, float[B, P, 3] past) => (float[B, 3] y, float[B, Q, 3] present)",
            "present = Concat <axis = 1> (past, x)"
            "  y = ReduceMean <axes = [1], keepdims = 0> (present)",
            {},
            "past:present",
        )


def test_a_state_of_any_size_is_refused(examine: Probe) -> None:
    """A state that may have any number of rows has to be fixed in the file."""
    with pytest.raises(
        Refused, match=r"axis 1 of the state h float32\[B, K, 3\] may have any size"
    ):
        examine(
            "(float[B, 1, 3] x, float[B, K, 3] h) => (float[B, K, 3] y, float[B, K, 3] h1)",
            "h1 = Add (h, x)  y = Tanh (h1)",
            {},
            "h:h1",
        )


def test_the_size_that_a_graph_leaves_to_a_state(examine: Probe) -> None:
    """A cache of free size that the graph cuts to four rows has four rows."""
    layout = examine(
        "(float[B, 1, 3] x, float[B, K, 3] past) => (float[B, 1, 3] y, float[B, K1, 3] next)",
        """
        all = Concat <axis = 1> (one4, past, x)
        next = Slice (all, start, end, axis1)
        y = ReduceMean <axes = [1]> (next)
        """.replace("(one4, past, x)", "(past, x)")
        .replace("next = Slice", "wide = Pad (all, pads)  next = Slice")
        .replace("(all, start", "(wide, start"),
        weights()
        | {
            "pads": np.array([0, 3, 0, 0, 0, 0]),
            "start": np.array([-4]),
            "end": np.array([1 << 40]),
        },
        "past:next",
    ).layout
    assert layout.is_batched
    assert state(layout) == ((4, 3), 0, 0)


def test_a_size_that_depends_on_the_data_is_refused(examine: Probe) -> None:
    """An output with as many rows as x has positive values has no size."""
    with pytest.raises(Refused, match="the size of found depends on the data"):
        examine(
            "(float[B, 3] x, float[B, 5] h) => (float[B, 2] y, float[B, 5] h1, int64[2, n] found)",
            CELL + "flags = Greater (x, none)  found = NonZero (flags)",
            CELL_WEIGHTS | {"none": np.array(0, np.float32)},
            "h:h1",
        )


def test_dtypes_that_are_served(examine: Probe) -> None:
    """Inputs and outputs become float32 or int64; states stay what they are, or become wider."""
    layout = examine(
        "(double[B, 3] x, int32[B] t, uint8[B, 4] u, bool[B, 2] f, float16[B, 3] h) => "
        "(bool[B, 3] y, uint8[B, 4] u1, bool[B, 2] f1, float16[B, 3] h1)",
        """
        half = Cast <to = 10> (x)
        h1 = Add (h, half)
        wide = Cast <to = 1> (h1)
        y = Greater (wide, none)
        u1 = BitShift <direction = "RIGHT"> (u, bits)
        f1 = Not (f)
        """,
        {"none": np.array(0, np.float32), "bits": np.array([1], np.uint8)},
        "u:u1",
        "f:f1",
        "h:h1",
    ).layout
    assert layout.is_batched
    assert [each.spec.dtype for each in layout.inputs] == ["float32", "int64"]
    assert [each.spec.dtype for each in layout.outputs] == ["int64"]
    assert [each.before.spec.dtype for each in layout.states] == ["int64", "bool", "float32"]


def test_states_of_float64_are_refused(examine: Probe) -> None:
    """A state that would lose bits between two steps is refused."""
    with pytest.raises(
        Refused, match=r"the state h float64.* is float64, which a session would lo"
    ):
        examine(
            "(double[B, 3] x, double[B, 3] h) => (double[B, 3] y, double[B, 3] h1)",
            "h1 = Add (h, x)  y = Tanh (h1)",
            {},
            "h:h1",
        )


# Values -------------------------------------------------------------------------------------------

TOKENS = """
    seen = Gather (table, ids)
    sum = Add (seen, h)
    h1 = Tanh (sum)
    y = Identity (h1)
"""


def test_integers_stay_within_their_table(examine: Probe) -> None:
    """Random tokens are within the table that the graph looks them up in, and reach its end."""
    probed = examine(
        "(int32[B] tokens, float[B, 5] h) => (float[B, 5] y, float[B, 5] h1)",
        "ids = Cast <to = 7> (tokens)" + TOKENS,
        weights(table=(7, 5)),
        "h:h1",
    )
    assert probed.layout.is_batched
    drawn = probed.trial.sequences(probed.layout.inputs, 4, 50)["tokens"]
    assert drawn.shape == (4, 50)
    assert {*drawn.reshape(-1).tolist()} == set(range(7))


def test_integers_of_a_computed_table(examine: Probe) -> None:
    """Where the graph computes its table, integers are tried until it takes them."""
    probed = examine(
        "(int64[B] ids, float[B, 5] h) => (float[B, 5] y, float[B, 5] h1)",
        "table = MatMul (a, r)" + TOKENS,
        weights(a=(12, 5), r=(5, 5)),
        "h:h1",
    )
    assert probed.layout.is_batched
    assert probed.trial.sequences(probed.layout.inputs, 4, 50)["ids"].max() < 12


def test_values_that_give_nan_prove_nothing(examine: Probe) -> None:
    """A graph that takes logarithms is probed with positive values alone."""
    probed = examine(
        "(float[B, 3] x, float[B, 3] h) => (float[B, 3] y, float[B, 3] h1)",
        "seen = Log (x)  half = Mul (h, w)  h1 = Add (half, seen)  y = Tanh (h1)",
        {"w": np.array([0.5], np.float32)},
        "h:h1",
    )
    assert probed.layout.is_batched
    assert (probed.trial.sequences(probed.layout.inputs, 8, 20)["x"] > 0).all()


def test_given_values_are_the_only_ones(examine: Probe) -> None:
    """A graph for which all random values give NaN asks for real rows, and takes them."""
    signature = "(float[B, 3] x, float[B, 3] h) => (float[B, 3] y, float[B, 3] h1)"
    body = "deep = Sub (x, far)  seen = Log (deep)  h1 = Add (h, seen)  y = Tanh (h1)"
    tensors = {"far": np.array(1e4, np.float32)}
    with pytest.raises(Refused, match=r"NaN or infinite values .* give --golden with real ones"):
        examine(signature, body, tensors, "h:h1")
    rows = (1e4 + RNG.uniform(10, 90, (40, 3))).astype(np.float32)
    probed = examine(signature, body, tensors, "h:h1", given={"x": rows})
    assert probed.layout.is_batched
    drawn = probed.trial.sequences(probed.layout.inputs, 2, 5)["x"]
    assert np.isin(drawn, rows).all()


# Names --------------------------------------------------------------------------------------------


def test_names_fit_the_server(examine: Probe) -> None:
    """Names of the file become names that a spec may have, no two the same, and a note says so."""
    signature = (
        '(float[B, 3] "in/x:0", float[B, 3] lengths, float[B, 5] "2h") => '
        '(float[B, 2] "in_x", float[B, 5] "2h.out")'
    )
    body = (
        CELL.replace("(x, w)", "(both, w)")
        .replace("(h, r)", '("2h", r)')
        .replace("h1", '"2h.out"')
        .replace("y =", '"in_x" =')
    )
    layout = examine(
        signature, 'both = Add ("in/x:0", lengths)' + body, CELL_WEIGHTS, "2h:2h.out"
    ).layout
    assert [each.spec.name for each in layout.inputs] == ["in_x", "lengths_2"]
    assert [each.spec.name for each in layout.outputs] == ["in_x_2"]
    assert [each.before.spec.name for each in layout.states] == ["t2h"]
    (note,) = layout.notes
    assert note == (
        "served by another name: 2h as t2h, in/x:0 as in_x, lengths as lengths_2, in_x as in_x_2"
    )


# Whole sequences ----------------------------------------------------------------------------------

RNN = """
    y4, h1 = RNN <hidden_size = 6> (major, W, R)
    all = Squeeze (y4, axis1)
"""
RNN_WEIGHTS = weights(W=(1, 6, 3), R=(1, 6, 6))
MAJOR = "major = Transpose <perm = [1, 0, 2]> (x)"
BACK = "y = Transpose <perm = [1, 0, 2]> (all)"
LAST = "y = Squeeze (h1, axis0)"


def test_sequences_with_a_batch(examine: Probe) -> None:
    """Both axes of a sequence are found where rows along the batch do not mix."""
    layout = examine(
        "(float[u1, u2, 3] x) => (float[u1, u2, 6] y)", MAJOR + RNN + BACK, RNN_WEIGHTS
    ).layout
    assert layout.is_batched
    assert axes(layout.inputs[0]) == ((3,), 0, 1)
    assert axes(layout.outputs[0]) == ((6,), 0, 1)


def test_sequences_with_time_first(examine: Probe) -> None:
    """Rows that mix along the first axis are rows of time, whatever the axes are called."""
    layout = examine(
        "(float[batch, time, 3] x) => (float[batch, time, 6] y)",
        RNN.replace("major", "x") + "y = Identity (all)",
        RNN_WEIGHTS,
    ).layout
    assert layout.is_batched
    assert axes(layout.inputs[0]) == ((3,), 1, 0)
    assert axes(layout.outputs[0]) == ((6,), 1, 0)


def test_sequences_with_one_answer(examine: Probe) -> None:
    """An output of the whole sequence has no axis of time."""
    layout = examine(
        "(float[B, T, 3] x) => (float[B, 6] y)", MAJOR + RNN + LAST, RNN_WEIGHTS
    ).layout
    assert axes(layout.inputs[0]) == ((3,), 0, 1)
    assert axes(layout.outputs[0]) == ((6,), 0, None)


def test_sequences_that_a_convolution_shortens(examine: Probe) -> None:
    """An output may have fewer rows than the input, and the shortest sequence is said."""
    layout = examine(
        "(float[B, 3, T] x) => (float[B, 4, R] y)", "y = Conv (x, k)", weights(k=(4, 3, 5))
    ).layout
    assert axes(layout.inputs[0]) == ((3,), 0, 2)
    assert axes(layout.outputs[0]) == ((4,), 0, 2)
    assert layout.notes == ("a sequence has at least 5 rows",)


@pytest.mark.parametrize("b", ["B", "1"])
@pytest.mark.parametrize(("end", "y"), [(LAST, ((6,), 0, None)), (BACK, ((6,), 0, 1))])
def test_a_window_that_the_file_declares(
    examine: Probe, b: str, end: str, y: tuple[tuple[int, ...], int, int | None]
) -> None:
    """--window finds the axis that has so many rows, and whether an output has them too."""
    sizes = f"{b}, 10, 6" if end == BACK else f"{b}, 6"
    signature = f"(float[{b}, 10, 3] x) => (float[{sizes}] y)"
    layout = examine(
        signature, MAJOR + RNN + end, RNN_WEIGHTS, window=10, window_fill="wait"
    ).layout
    assert layout.is_batched
    assert axes(layout.inputs[0]) == ((3,), 0, 1)
    assert axes(layout.outputs[0]) == y


def test_a_window_of_a_size_that_an_output_has_by_chance(examine: Probe) -> None:
    """Six rows of a window and six values of one answer are not the same axis."""
    layout = examine(
        "(float[B, 6, 3] x) => (float[B, 6] y)",
        MAJOR + RNN + LAST,
        RNN_WEIGHTS,
        window=6,
        window_fill="wait",
    ).layout
    assert axes(layout.outputs[0]) == ((6,), 0, None)


def test_a_window_that_the_file_does_not_take(examine: Probe) -> None:
    """--window with another number of rows than the file declares is refused."""
    with pytest.raises(
        Refused, match=r"--window 9: no axis of x float32\[B, 10, 3\] takes so many"
    ):
        examine(
            "(float[B, 10, 3] x) => (float[B, 6] y)",
            MAJOR + RNN + LAST,
            RNN_WEIGHTS,
            window=9,
            window_fill="wait",
        )


def test_a_window_without_the_flag(examine: Probe) -> None:
    """A file of which all sizes are fixed names the --window that it may have."""
    with pytest.raises(Refused, match="if axis 1 has the rows of a window, give --window 10"):
        examine("(float[1, 10, 3] x) => (float[1, 6] y)", MAJOR + RNN + LAST, RNN_WEIGHTS)


def test_rows_that_do_not_mix_are_time_steps(examine: Probe) -> None:
    """Where only a batch is free, its rows are the time steps of a sequence, and a note says why;
    steps of several rows hint at a window."""
    layout = examine(
        "(float[B, 10, 3] x) => (float[B, 6] y)", MAJOR + RNN + LAST, RNN_WEIGHTS
    ).layout
    assert not layout.is_batched
    assert axes(layout.inputs[0]) == ((10, 3), None, 0)
    assert axes(layout.outputs[0]) == ((6,), None, 0)
    assert "each row along axis 0 of x has its own answer" in layout.notes[0]
    assert layout.notes[1].endswith("give --window 10 or --window 3")


def test_a_network_without_memory_is_both(examine: Probe) -> None:
    """Of two free axes along which no rows mix, the names decide, and a note says what they are."""
    layout = examine(
        "(float[seq_len, batch, 3] x) => (float[seq_len, batch, 6] y)",
        "y = MatMul (x, w)",
        weights(w=(3, 6)),
    ).layout
    assert axes(layout.inputs[0]) == ((3,), 1, 0)
    assert "each row along axis 0 of x has its own answer" in layout.notes[0]


def test_an_input_without_time_is_refused(examine: Probe) -> None:
    """An input that is the same for a whole sequence has to be a constant."""
    with pytest.raises(Refused, match=r"sequence in style float32\[4\]: give --constant style="):
        examine(
            "(float[B, T, 3] x, float[4] style) => (float[B, T, 4] y)",
            "m = MatMul (x, w)  y = Add (m, style)",
            weights(w=(3, 4)),
        )


def test_two_axes_of_any_size_are_refused(examine: Probe) -> None:
    """A picture of any size is no sequence."""
    with pytest.raises(Refused, match=r"axes 3 and 2 of x .* may both have any size, and neither"):
        examine(
            "(float[1, 3, h, w] x) => (float[1, 2, h, w] y)",
            "p = Conv <pads = [1, 1, 1, 1]> (x, k)  m = ReduceMean <axes = [0, 2, 3]> (p)"
            "  y = Sub (p, m)",
            weights(k=(2, 3, 3, 3)),
        )


def test_a_batch_that_mixes_its_rows_is_of_one(examine: Probe) -> None:
    """Where no axis is a batch that works, the names or --batch-axis say which one is time."""
    body = (
        "m = ReduceMax <keepdims = 0> (x)  z = Div (x, m)"
        + RNN.replace("major", "z")
        + "y = Identity (all)"
    )
    for sides, flags in (("seq_len, batch_size", {}), ("a, c", {"": None}), ("a, c", {"x": 1})):
        layout = examine(
            f"(float[{sides}, 3] x) => (float[{sides}, 6] y)",
            body,
            RNN_WEIGHTS,
            batch_axes=flags,
        ).layout
        assert not layout.is_batched
        assert layout.inputs[0].spec.shape == (3,)
        assert layout.inputs[0].time == (1 if "" in flags else 0)


def test_an_output_of_one_row_for_hundreds(examine: Probe) -> None:
    """The axis of time of an output shows only in sequences that are long enough."""
    layout = examine(
        "(float[1, samples] x) => (float[1, frames] y)",
        """
        wave = Unsqueeze (x, axis1)
        means = AveragePool <kernel_shape = [256], strides = [256], ceil_mode = 1> (wave)
        y = Squeeze (means, axis1)
        """,
        weights(),
    ).layout
    assert axes(layout.inputs[0]) == ((), 0, 1)
    assert axes(layout.outputs[0]) == ((), 0, 1)


def test_a_symbolic_batch_may_be_left(examine: Probe) -> None:
    """--batch-axis none gives one session a run to a file of which the batch works."""
    layout = examine(
        "(float[T, B, 3] x, float[1, B, 6] h, float[1, B, 6] c) => "
        "(float[T, B, 6] y, float[1, B, 6] h1, float[1, B, 6] c1)",
        LSTM,
        lstm(3, 6),
        "h:h1",
        "c:c1",
        batch_axes={"": None},
    ).layout
    assert not layout.is_batched
    assert layout.inputs[0].spec.shape == (3,)
    assert state(layout) == ((1, 6), None, None)
