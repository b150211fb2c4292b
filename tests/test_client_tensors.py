"""The client's arrays: inputs and outputs by name, and states as bytes. No server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lstmserve.cli import csvrows
from lstmserve.client import ModelInfo, State
from lstmserve.client.arrays import StepInput, output, output_rows, step_input
from lstmserve.client.packing import join, split
from lstmserve.client.records import LstmInfo
from lstmserve.client.state import state_tensors
from lstmserve.errors import InvalidInput, Unimplemented
from lstmserve.spec import TensorSpec
from lstmserve.wire.v1 import lstm_pb2 as wire

INPUTS = (TensorSpec("a", (2, 2)), TensorSpec("n", (3,), "int64"), TensorSpec("b"))
OUTPUTS = (TensorSpec("k", (2,), "int64"), TensorSpec("y", (2, 1)), TensorSpec("z"))
STATES = (TensorSpec("h", (2,)), TensorSpec("n", (), "int64"), TensorSpec("on", (2,), "bool"))


def model(
    inputs: tuple[TensorSpec, ...] = INPUTS,
    outputs: tuple[TensorSpec, ...] = OUTPUTS,
    states: tuple[TensorSpec, ...] = STATES,
    lstm: LstmInfo | None = None,
) -> ModelInfo:
    """A model of these tensors."""
    kind = "network" if lstm is None else "lstm"
    return ModelInfo(
        "m", 1, "f", "cpu", 10, 1 << 20, kind, inputs, outputs, states, True, True, 0, lstm
    )


def inputs(*lead: int) -> dict[str, Any]:
    """Of the model, [*lead, *shape] each."""
    rng = np.random.default_rng(1)
    return {
        "b": rng.random(lead),
        "n": rng.integers(-9, 9, (*lead, 3)),
        "a": rng.random((*lead, 2, 2)).astype(np.float32),
    }


def test_several_inputs_are_one_row() -> None:
    """The floats of all inputs are x, their integers tokens, in the spec's order."""
    for lead in ((), (4,)):
        given = inputs(*lead)
        step = step_input(model(), given)
        length = lead[0] if lead else 1
        floats = np.concatenate(
            [given["a"].reshape(length, 4), given["b"].reshape(length, 1)], axis=1
        )
        assert step.x == floats.astype("<f4").tobytes()
        assert step.tokens == given["n"].reshape(-1).tolist()
        assert (step.length, step.single) == (length, not lead)


def test_parts_join_to_the_whole() -> None:
    """A step that is cut into parts, and joined again, is the same step."""
    whole = step_input(model(), inputs(9))
    parts = [whole.part(0, 2), whole.part(2, 3), whole.part(3, 9)]
    assert join(parts) == whole
    assert join(split(model(), whole, last_only=False)) == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": None}, "m takes a dict of a, n, b"),
        ({"extra": 1}, "m takes a dict of a, n, b"),
        ({"a": np.zeros((3, 2, 2))}, r"the same T, not a \[3, 2, 2\], n \[4, 3\], b \[4\]"),
        ({"b": 1.0}, r"the same T, not .* b \[\]"),
        ({"a": np.zeros((4, 2))}, r"m takes a of shape \[2, 2\] or \[T, 2, 2\], T >= 1, not"),
        ({"b": np.zeros((4, 1))}, r"m takes b of shape \[\] or \[T\], T >= 1, not \[4, 1\]"),
        ({"n": np.zeros((4, 3))}, r"m takes n: integers \[3\] or \[T, 3\], T >= 1, not float64"),
        ({"n": np.full((4, 3), 2**63, np.uint64)}, "n has a number beyond int64"),
        ({"a": np.full((4, 2, 2), np.nan)}, "a has NaN or infinite values"),
    ],
)
def test_a_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    """The error names the input, and what it must be."""
    given = {name: each for name, each in {**inputs(4), **change}.items() if each is not None}
    with pytest.raises(ValueError, match=message):
        step_input(model(), given)


def test_one_input_is_an_array() -> None:
    """A model with one input takes no dict, and one with several no array."""
    single = model(inputs=(TensorSpec("x", (2, 2)),))
    assert step_input(single, np.ones((3, 2, 2))).length == 3
    assert step_input(single, np.ones((2, 2))).single
    with pytest.raises(ValueError, match="not object"):
        step_input(single, {"x": np.ones((2, 2))})
    with pytest.raises(ValueError, match="m takes a dict"):
        step_input(model(), np.ones(8))
    plain = model(inputs=(TensorSpec("x"),))
    assert step_input(plain, 2.5).single
    assert step_input(plain, [2.5, 1]).length == 2
    ids = model(inputs=(TensorSpec("id", (), "int64"),))
    assert step_input(ids, -5).tokens == [-5]  # nothing says that it is below some number


def test_only_an_embedding_limits_integers() -> None:
    """An nn.LSTM's tokens are below num_embeddings, whatever their dtype."""
    lstm = LstmInfo(4, 4, 1, 0, False, 2, 10)
    letters = model(inputs=(TensorSpec("tokens", (), "int64"),), lstm=lstm)
    assert step_input(letters, np.array([9, 0], np.uint8)).tokens == [9, 0]
    for bad in (10, -1):
        with pytest.raises(InvalidInput, match=r"not in \[0, 10\)"):
            step_input(letters, bad)


def test_several_outputs_are_a_dict() -> None:
    """Each output has its shape and dtype, with T or without."""
    y, ints = np.arange(9, dtype="<f4").reshape(3, 3), [1, 2, 3, 4, 5, 6]
    rows = output_rows(model(), y.tobytes(), ints)
    whole = output(model(), rows, single=False, last_only=False)
    assert list(whole) == ["k", "y", "z"]
    assert whole["k"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert whole["y"].tolist() == [[[0], [1]], [[3], [4]], [[6], [7]]]
    assert whole["z"].tolist() == [2, 5, 8]
    assert (whole["k"].dtype, whole["y"].dtype) == (np.int64, np.float32)
    one = output(model(), rows[:1], single=True, last_only=False)
    assert one["k"].tolist() == [1, 2]
    assert one["y"].tolist() == [[0], [1]]
    assert one["z"] == 2


def test_outputs_are_their_own_arrays() -> None:
    """Each output is an aligned array, also behind three floats, where torch would refuse it."""
    made = model(outputs=(TensorSpec("y", (3,)), TensorSpec("k", (), "int64")))
    rows = output_rows(made, bytes(4 * 3 * 2), [1, 2])
    whole = output(made, rows, single=False, last_only=False)
    one = output(made, rows[:1], single=True, last_only=False)
    for each in (*whole.values(), *one.values()):
        assert isinstance(each, np.ndarray)
        assert each.flags.aligned
        assert each.flags.c_contiguous
        assert each.flags.writeable
        assert not np.shares_memory(each, rows)


@pytest.mark.parametrize(
    ("shape", "expected"), [((), 6.0), ((2,), [6.0, 7.0]), ((2, 1), [[6.0], [7.0]])]
)
def test_one_output_has_its_shape(shape: tuple[int, ...], expected: object) -> None:
    """y of a model with one output is an array of T rows, or of one."""
    made = model(outputs=(TensorSpec("y", shape),))
    values = np.arange(6, 6 + made.outputs[0].size, dtype="<f4")
    rows = output_rows(made, values.tobytes(), [])
    assert output(made, rows, single=True, last_only=False).tolist() == expected
    assert output(made, rows, single=False, last_only=False).tolist() == [expected]


def test_integers_alone_are_an_output() -> None:
    """A model may have no output of floats."""
    made = model(outputs=(TensorSpec("k", (), "int64"),))
    rows = output_rows(made, b"", [2**40, -1])
    assert output(made, rows, single=False, last_only=False).tolist() == [2**40, -1]


STATE = State(
    {"h": np.float32([0.5, -1]), "n": np.array(-7), "on": np.array([True, False])},
    step=3,
    fingerprint="f",
    crc32c=5,
)


def test_a_state_survives_bytes() -> None:
    """Every dtype, and every number of axes, comes back as it was."""
    back = State.from_bytes(STATE.to_bytes(), model())
    assert back == STATE
    assert {n: (each.dtype.name, each.shape) for n, each in back.tensors.items()} == {
        "h": ("float32", (2,)),
        "n": ("int64", ()),
        "on": ("bool", (2,)),
    }
    assert (back.step, back.fingerprint, back.crc32c) == (3, "f", 5)
    h, n, on = back
    assert (h.tolist(), n.tolist(), on.tolist()) == ([0.5, -1], -7, [True, False])


@pytest.mark.parametrize(
    "value", [2**63, 1j, "1", None, np.timedelta64(1, "s")], ids=lambda value: type(value).__name__
)
def test_a_value_that_no_state_has_is_not_sent(value: object) -> None:
    """Neither a State nor a mapping turns it into another number, and an input does not either."""
    with pytest.raises(ValueError, match="n must be of float32, int64 or bool, not "):
        State({**STATE.tensors, "n": np.array(value)}).write()
    given: dict[str, Any] = {**STATE.tensors, "n": value}
    with pytest.raises(ValueError, match="n is int64 of the shape"):
        state_tensors(model(), given)
    with pytest.raises((ValueError, InvalidInput)):
        step_input(model(), {**inputs(), "n": np.full(3, value)})


def test_a_state_of_lists_is_sent() -> None:
    """Its tensors may be anything that numpy reads, as those of a mapping."""
    lists = State({name: each.tolist() for name, each in STATE.tensors.items()}, step=3)
    assert State.from_bytes(lists.to_bytes(), model()) == STATE


def test_other_states_are_refused() -> None:
    """A state of another name or shape, and one of a later release, is no state of the model."""
    message = STATE.write()
    message.tensors[0].name = "g"
    with pytest.raises(ValueError, match="not a state of m: its states are h, n, on"):
        State.from_bytes(message.SerializeToString(), model())
    message = STATE.write()
    message.tensors[2].ints.append(1)
    with pytest.raises(ValueError, match=r"on is \[2\] of 3 values, must be \[2\]"):
        State.from_bytes(message.SerializeToString(), model())
    later = STATE.to_bytes() + bytes([15 << 3, 1])
    with pytest.raises(ValueError, match="a state of a later release"):
        State.from_bytes(later, model())


def test_a_server_of_the_first_edition_is_named() -> None:
    """Its ModelSpec had sizes in the same fields, and would be read as a model without tensors."""
    old = wire.Model.FromString(wire.Model(name="m").SerializeToString() + b"\x3a\x02\x08\x07")
    with pytest.raises(Unimplemented, match=r"first edition of lstmserve.*upgrade it"):
        ModelInfo.read(old)


def test_an_export_of_the_first_edition_is_read() -> None:
    """It had h and c as floats, packed or not, in the fields 1 and 2, without names and shapes."""
    lstm = LstmInfo(3, 3, 2, 2, False, 1, 0)
    states = (TensorSpec("h", (2, 2)), TensorSpec("c", (2, 3)))
    made = model(states=states, lstm=lstm)
    h, c = np.arange(4, dtype="<f4"), np.arange(6, dtype="<f4")
    first = wire.State(step=4, fingerprint="f", crc32c=9).SerializeToString()
    old = b"".join(
        bytes([number << 3 | 2, values.nbytes]) + values.tobytes()
        for number, values in ((1, h), (2, c))
    )
    unpacked = b"".join(
        bytes([number << 3 | 5]) + value.tobytes()
        for number, values in ((1, h), (2, c))
        for value in values
    )
    for content in (old, unpacked):
        state = State.from_bytes(content + first, made)
        assert (state.step, state.fingerprint, state.crc32c) == (4, "f", 9)
        assert state.tensors["h"].tolist() == [[0, 1], [2, 3]]
        assert state.tensors["c"].tolist() == [[0, 1, 2], [3, 4, 5]]
    narrow = (TensorSpec("h", (1, 2)), TensorSpec("c", (2, 3)))
    for other in (model(), model(states=narrow, lstm=lstm)):
        with pytest.raises(ValueError, match="it has h and c of other sizes"):
            State.from_bytes(old + first, other)


def test_csv_rows_have_all_inputs_and_outputs() -> None:
    """A line has the values of every input in the spec's order, and is written likewise."""
    lines = "1,2,3,4,-5,6,7,0.5\n"
    (row,) = csvrows._rows(lines, model())
    x = csvrows._steps([row, row], model())
    assert csvrows.count(x) == 2
    assert x["a"].tolist() == [[[1, 2], [3, 4]]] * 2
    assert x["n"].tolist() == [[-5, 6, 7]] * 2
    assert x["b"].tolist() == [0.5] * 2
    assert csvrows.text(x) == "1.0,2.0,3.0,4.0,-5,6,7,0.5\n" * 2
    one = {name: each[0] for name, each in x.items()}
    assert csvrows.text(csvrows.first_axis(one)) == "1.0,2.0,3.0,4.0,-5,6,7,0.5\n"
    for bad, message in (
        ("1,2", "2 columns, m takes 8"),
        ("1,2,3,4,5.5,6,7,0", "column 5: '5.5' is not a whole number of 64 bits"),
        (f"1,2,3,4,{2**63},6,7,0", "column 5: .* is not a whole number of 64 bits"),
        ("1,2,3,nan,5,6,7,0", "column 4"),
    ):
        with pytest.raises(ValueError, match=message):
            csvrows._rows(bad, model())


def test_a_step_input_knows_its_size() -> None:
    """An integer may take ten bytes on the wire."""
    assert StepInput(b"1234", [1, 2], 1, single=True).size == 24
