"""Tensors of the Triton dialect, for models with several inputs, outputs and states."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lstmserve.config import Config
from lstmserve.engine import Model
from lstmserve.engine.errors import BadTensor, EmptyInput, Malformed, NonFinite, ServeError, TooLong
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.kserve.models import model_config, shown_time
from lstmserve.server.kserve.request import reply_bytes
from lstmserve.server.kserve.signature import NAMES_MAX, signature_of
from lstmserve.server.kserve.tensors import (
    DATATYPES,
    input_tensors,
    output_names,
    start_state,
    step_input,
)
from lstmserve.spec import InvalidSpec, LstmSpec, ModelSpec, TensorSpec

Array = npt.NDArray[Any]

NETWORK = ModelSpec(
    inputs=(TensorSpec("x", (2, 3)), TensorSpec("n", (), "int64"), TensorSpec("dt", (1,))),
    outputs=(TensorSpec("y", (4,)), TensorSpec("label", (), "int64")),
    states=(
        TensorSpec("h", (2, 5)),
        TensorSpec("count", (), "int64"),
        TensorSpec("on", (3,), "bool"),
    ),
)
TYPES = {"float32": "FP32", "int64": "INT64", "int32": "INT32", "bool": "BOOL"}


class InitialPool:
    """A pool, and its layout, of a model in whose initial state `count` is 7 and all else zero."""

    @property
    def layout(self) -> InitialPool:
        """The object itself, as it is both."""
        return self

    def initial(self) -> dict[str, Array]:
        """Zeros, and 7 for `count`."""
        zeros = {each.name: np.zeros((1, *each.shape), each.dtype) for each in NETWORK.states}
        return {**zeros, "count": np.array([7])}


def model(spec: ModelSpec = NETWORK) -> Model:
    """Without anything that computes."""
    pool: Any = InitialPool()
    return Model("net", 1, spec, "f" * 64, "cpu", pool, None, None, sessions_max=7)


def config(**settings: Any) -> Config:
    """Of no server."""
    return Config(models=Path(), **settings)


def message(
    arrays: dict[str, Array], *, is_raw: bool = True, outputs: Iterable[str] = ()
) -> pb.ModelInferRequest:
    """A request with these inputs."""
    request = pb.ModelInferRequest(model_name="net")
    for name, values in arrays.items():
        datatype = TYPES[str(values.dtype)]
        header = request.inputs.add(name=name, datatype=datatype, shape=values.shape)
        if is_raw:
            request.raw_input_contents.append(values.tobytes())
        else:
            field = getattr(header.contents, DATATYPES[datatype].field)
            field.extend(values.ravel().tolist())
    for name in outputs:
        request.outputs.add(name=name)
    return request


def arrays(*axes: int, seed: int = 0) -> dict[str, Array]:
    """Values of the network's inputs, with these axes before their own."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((*axes, 2, 3), np.float32),
        "n": rng.integers(-9, 9, axes),
        "dt": rng.standard_normal((*axes, 1), np.float32),
    }


def read(given: dict[str, Array], *, is_raw: bool = True, **options: Any) -> tuple[Array, Any]:
    """What step_input() makes of the inputs."""
    tensors = input_tensors(message(given, is_raw=is_raw))
    settings = {"is_start": False, "last_only": False, **options}
    limits = settings.pop("limits", config())
    return step_input(model(), tensors, limits, **settings)


@pytest.mark.parametrize("is_raw", [True, False])
@pytest.mark.parametrize("axes", [(), (1,), (4,), (1, 4)])
def test_inputs_become_rows(axes: tuple[int, ...], is_raw: bool) -> None:
    """A row has every input's values of one time step, whatever the shape that it came in and the
    order of the inputs."""
    given = arrays(*axes)
    rows, outputs_axes = read(dict(reversed(given.items())), is_raw=is_raw)
    length = axes[-1] if axes else 1
    assert outputs_axes == axes
    assert rows.shape == (length,)
    found = model().inputs.split(rows)
    assert list(found) == ["x", "n", "dt"]
    for name, values in given.items():
        assert np.array_equal(found[name], values.reshape(found[name].shape))


def test_outputs_have_the_axes_of_the_input_that_has_most() -> None:
    """One time step may come as [*shape] in one input and as [1, 1, *shape] in another."""
    given = {**arrays(), "n": np.zeros((1, 1), np.int64), "dt": np.ones((1, 1), np.float32)}
    assert read(given)[1] == (1, 1)


X, N = arrays(3)["x"], arrays(3)["n"]
WRONG: list[tuple[dict[str, Array], type[ServeError], str, str]] = [
    ({"n": N[:2]}, BadTensor, "n", "input 'n' has T = 2, input 'x' has T = 3"),
    ({"x": X[:, 0]}, BadTensor, "x", "input 'x' has shape [3, 3], must have [2, 3], [T, 2, 3] or"),
    ({"n": N.reshape(1, 3, 1)}, BadTensor, "n", "must have [], [T] or [1, T] in a sequence"),
    ({"x": np.stack([X, X])}, BadTensor, "x", "input 'x' has batch size 2, must have 1"),
    ({"n": N.astype(np.int32)}, BadTensor, "n", "'n' has data-type 'INT32', must be INT64"),
    ({"dt": N}, BadTensor, "dt", "input 'dt' has data-type 'INT64', must be FP32"),
    ({"dt": np.full((3, 1), np.nan, np.float32)}, NonFinite, "dt", "dt has NaN or infinite"),
    ({"h": np.zeros((2, 5), np.float32)}, Malformed, "", "and states come with sequence_start"),
    ({"x": X[:0], "n": N[:0], "dt": np.ones((0, 1), np.float32)}, EmptyInput, "x", "no rows"),
]


@pytest.mark.parametrize(("changed", "error", "field", "text"), WRONG, ids=[w[3] for w in WRONG])
def test_wrong_inputs_are_named(
    changed: dict[str, Array], error: type[ServeError], field: str, text: str
) -> None:
    """The error names the input and says what it must be."""
    with pytest.raises(error) as raised:
        read({**arrays(3), **changed})
    assert text in raised.value.message
    assert (raised.value.field or "") == field


def test_a_missing_input_is_named() -> None:
    """Each input of the model must be there."""
    for name in arrays():
        given = arrays(3)
        del given[name]
        with pytest.raises(BadTensor, match=f"input '{name}' is missing: it is ") as raised:
            read(given)
        assert raised.value.field == name


def test_a_step_at_its_limits() -> None:
    """length_max time steps pass and one more does not; an answer that no message holds is refused
    before anything is computed, unless only its last time step is wanted."""
    limits = config(length_max=4)
    assert len(read(arrays(4), limits=limits)[0]) == 4
    with pytest.raises(TooLong, match="5 rows, at most 4"):
        read(arrays(5), limits=limits)
    row_bytes = model().outputs.wire_bytes
    assert len(read(arrays(4), limits=config(message_bytes_max=1 << 20))[0]) == 4
    small = config(message_bytes_max=4096)
    most = 4096 // row_bytes
    assert model().outputs.bytes <= row_bytes
    assert len(read(arrays(most), limits=small)[0]) == most
    with pytest.raises(TooLong, match="more than a message holds"):
        read(arrays(most + 1), limits=small)
    assert len(read(arrays(most + 1), limits=small, last_only=True)[0]) == most + 1


STATES: dict[str, Array] = {
    "h": np.arange(10, dtype=np.float32).reshape(2, 5),
    "count": np.array(1 << 40),
    "on": np.array([True, False, True]),
}


@pytest.mark.parametrize("is_raw", [True, False])
@pytest.mark.parametrize("has_batch_axis", [True, False])
def test_initial_states(has_batch_axis: bool, is_raw: bool) -> None:
    """States of every dtype arrive by name, with an axis of one for the batch or without."""
    given = {
        name: values[np.newaxis] if has_batch_axis else values for name, values in STATES.items()
    }
    start = start_state(model(), input_tensors(message(given, is_raw=is_raw)))
    assert start is not None
    assert start.step == 0
    for state in NETWORK.states:
        found = start.tensors[state.name]
        assert found.dtype == state.dtype
        assert found.shape == state.shape
        assert np.array_equal(found, STATES[state.name])


def test_any_byte_but_zero_is_true() -> None:
    """A BOOL byte of 2 is true, and equal to 1: numpy would keep the 2 in a view."""
    request = message(STATES)
    request.raw_input_contents[2] = b"\x02\x00\xff"
    start = start_state(model(), input_tensors(request))
    assert start is not None
    assert start.tensors["on"].tobytes() == b"\x01\x00\x01"


def test_a_start_gives_every_state_or_none() -> None:
    """A state that is missing is named; without states a sequence has the model's initial one."""
    assert start_state(model(), {}) is None
    for name in STATES:
        given = {other: values for other, values in STATES.items() if other != name}
        with pytest.raises(BadTensor, match=f"input '{name}' is missing: give every state or none"):
            start_state(model(), input_tensors(message(given)))
    given = {**STATES, "h": STATES["h"].T}
    with pytest.raises(BadTensor, match=r"'h' has shape \[5, 2\], must have \[2, 5\] or \[1, 2, 5"):
        start_state(model(), input_tensors(message(given)))


def test_names_of_outputs() -> None:
    """Every output, its last time step and every state after the step may be asked for; nothing
    asked for is every output."""
    own = model()
    signature = signature_of(own)
    assert list(signature.outputs) == [
        "y", "label", "y_last", "label_last", "h.next", "count.next", "on.next",
    ]  # fmt: skip
    every = signature.wanted((), own)
    assert [each.name for each in every.outputs] == ["y", "label"]
    assert (every.last_only, every.with_state) == (False, False)
    some = signature.wanted(("on.next", "label_last"), own)
    assert [(each.name, each.datatype) for each in some.outputs] == [
        ("on.next", "BOOL"),
        ("label_last", "INT64"),
    ]
    assert (some.last_only, some.with_state) == (True, True)
    with pytest.raises(Malformed, match="unexpected inference output 'h' for model 'net'"):
        signature.wanted(("h",), own)
    with pytest.raises(Malformed, match="output 'y' is asked for twice"):
        output_names(message({}, outputs=("y", "label", "y")))


def test_names_of_an_lstm() -> None:
    """Those of torch, as before."""
    signature = signature_of(model(ModelSpec.of_lstm(LstmSpec(3, 5))))
    assert list(signature.outputs) == ["y", "y_last", "hn", "cn"]
    assert [*signature.states] == ["h0", "c0"]


def test_many_names_do_not_fill_an_error() -> None:
    """An error lists some names of a model that has hundreds."""
    inputs = tuple(TensorSpec(f"i{n}") for n in range(300))
    spec = ModelSpec(inputs, (TensorSpec("y"),), (TensorSpec("s"),))
    with pytest.raises(Malformed) as raised:
        step_input(
            model(spec),
            input_tensors(message({"z": np.zeros((), np.float32)})),
            config(),
            is_start=False,
            last_only=False,
        )
    assert raised.value.message.endswith(f"i{NAMES_MAX - 1} and {300 - NAMES_MAX} more")


def test_bytes_of_a_reply() -> None:
    """A reply's most bytes follow from the shape of any input, and states count where asked for."""
    own = model()
    assert reply_bytes(own, message({})) == own.outputs.bytes
    assert reply_bytes(own, message(arrays(5))) == 5 * own.outputs.bytes
    one = message({"n": np.zeros((1, 6), np.int64)}, outputs=["y", "count.next"])
    assert reply_bytes(own, one) == 6 * own.outputs.bytes + 8
    whole = message(arrays(3, 5), outputs=["h.next", "y_last", "nothing"])
    assert reply_bytes(own, whole) == 15 * own.outputs.bytes + 3 * (40 + 16)
    wanted = signature_of(own).wanted
    assert wanted(("y", "y_last", "label_last"), own).last_bytes == 16 + 8
    assert wanted(("y_last", "h.next"), own).last_bytes == 0


def test_a_message_full_of_axes_is_measured_in_no_time() -> None:
    """Axes that no request may have are not multiplied: a message of them would take minutes."""
    own, sent = model(), message(arrays(5))
    sent.inputs[0].shape[:] = [1 << 62] * 50_000
    assert reply_bytes(own, sent) < 1 << 200


def test_the_configuration_has_every_tensor() -> None:
    """ModelConfig lists all inputs, outputs and states with their types and dims."""
    found = model_config(model(), config())
    assert [(each.name, each.data_type, list(each.dims)) for each in found.input] == [
        ("x", pb.TYPE_FP32, [-1, 2, 3]),
        ("n", pb.TYPE_INT64, [-1]),
        ("dt", pb.TYPE_FP32, [-1, 1]),
    ]
    assert [(each.name, each.data_type, list(each.dims)) for each in found.output] == [
        ("y", pb.TYPE_FP32, [-1, 4]),
        ("label", pb.TYPE_INT64, [-1]),
    ]
    states = found.sequence_batching.state
    assert [(s.input_name, s.output_name, s.data_type, list(s.dims)) for s in states] == [
        ("h", "h.next", pb.TYPE_FP32, [2, 5]),
        ("count", "count.next", pb.TYPE_INT64, []),
        ("on", "on.next", pb.TYPE_BOOL, [3]),
    ]
    first = [state.initial_state[0] for state in states]
    assert [each.WhichOneof("state_data") for each in first] == [
        "zero_data", "data_file", "zero_data",
    ]  # fmt: skip
    assert first[1].data_file == "count.initial"
    names = found.parameters["optional_inputs"].string_value
    assert names == "lengths h count on"
    assert shown_time(ModelSpec.of_lstm(LstmSpec(3, 5))) == ()


@pytest.mark.parametrize(
    ("inputs", "outputs", "text"),
    [
        (("x", "lengths"), ("y",), "lengths is the name of the lengths of whole sequences"),
        (("x", "s"), ("y",), "s is the name of another input or state"),
        (("x", "x"), ("y",), "x is the name of another input or state"),
        (("x",), ("y", "y"), "y is the name of another output"),
        (("x",), ("y", "y_last"), "y_last is the last time step of y"),
        (("x",), ("y", "s.next"), "s.next is the state s after the step"),
    ],
)
def test_names_that_collide_are_refused(
    inputs: tuple[str, ...], outputs: tuple[str, ...], text: str
) -> None:
    """No spec can have a name that a client would read in two ways."""
    with pytest.raises(InvalidSpec, match=text):
        ModelSpec(
            tuple(map(TensorSpec, inputs)), tuple(map(TensorSpec, outputs)), (TensorSpec("s"),)
        )
