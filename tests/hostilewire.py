"""Hostile messages for the fuzz: raw bytes, hostile values, broken encodings."""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

import stepgraph
from lstmserve.v1 import lstm_pb2
from wire import tensors

SERVICE = lstm_pb2.DESCRIPTOR.services_by_name["LstmService"]
METHODS = {method.name: method.input_type for method in SERVICE.methods}
STREAMS = ("StepStream", "StepMany")

NAMES = st.sampled_from(
    ["", "a", "b", "c", "d", "h", "odd", "g:a", "m", "letters", "both", "net", "0", "1", "a/b", "*"]
)
TEXTS = NAMES | st.text(max_size=20) | st.sampled_from(["x" * 129, "\x00", "é", "%s%n", "9" * 30])
FLOATS = st.sampled_from([0.0, 0.5, -1.0, 1e-45, 3.4e38, float("inf"), float("nan")])
SIZES = st.sampled_from([0, 1, 2, 3, 3, 3, 6, 16, 16, 30, 33, 300])

X = [0.5, -1.0, 2.0]
TENSORS = tensors(h=[[0.5] * 8] * 2, c=[[0.25] * 8] * 2)
STATE = lstm_pb2.State(tensors=TENSORS, step=3)
INITIAL = tensors(h=[[[0.5] * 8] * 2], c=[[[0.5] * 8] * 2])
NET = {each.name: np.ones((1, *each.shape), each.dtype) for each in stepgraph.SPEC.states}
NET_STATE = lstm_pb2.State(tensors=tensors(**{name: each[0] for name, each in NET.items()}))
NEARLY_TENSORS = [
    *tensors(h=[0.5] * 16, c=[[float("nan")] * 8] * 2, odd=[0, 1, 2, 1], count=0.5),
    *tensors(h=[[1] * 8] * 2),
]
GOOD_TENSORS = [*TENSORS, *INITIAL, *NET_STATE.tensors]
# Ids of sessions that should be there, with their models.
OPENED = {"a": "m", "b": "m", "c": "letters", "d": "net"}
BASES: dict[str, list[Message]] = {
    "ListModels": [lstm_pb2.ListModelsRequest()],
    "GetModel": [lstm_pb2.GetModelRequest(model=name) for name in ("m", "both")],
    "OpenSession": [
        lstm_pb2.OpenSessionRequest(model=model, session_id=name, if_exists=if_exists, state=state)
        for name, model in OPENED.items()
        for if_exists in (0, 1, 2)
        for state in (None, NET_STATE if model == "net" else STATE)
    ],
    "GetSession": [lstm_pb2.GetSessionRequest(session_id=name) for name in OPENED],
    "ListSessions": [lstm_pb2.ListSessionsRequest(model=name) for name in ("", "m")],
    "CloseSession": [lstm_pb2.CloseSessionRequest(session_id=name) for name in OPENED],
    "GetState": [lstm_pb2.GetStateRequest(session_id=name) for name in OPENED],
    "Step": [
        lstm_pb2.StepRequest(session_id="a", x=X),
        lstm_pb2.StepRequest(session_id="b", length=100, x=X * 100),
        lstm_pb2.StepRequest(session_id="c", length=2, tokens=[1, 26]),
        lstm_pb2.StepRequest(session_id="d", length=2, x=[*X, 1] * 2, tokens=[1, -(1 << 63)]),
    ],
    "StepMany": [
        lstm_pb2.StepManyRequest(session_ids=["a", "b"], x=X * 2),
        lstm_pb2.StepManyRequest(session_ids=["a", "b"], lengths=[99, 1], x=X * 100),
        lstm_pb2.StepManyRequest(session_ids=["c"], tokens=[3], last_only=True),
        lstm_pb2.StepManyRequest(session_ids=["d"], lengths=[9], x=[*X, 1] * 9, tokens=range(9)),
    ],
    "Predict": [
        lstm_pb2.PredictRequest(model="m", x=X * 5, initial=INITIAL),
        lstm_pb2.PredictRequest(model="both", lengths=[1, 4], x=X * 5, with_state=True),
        lstm_pb2.PredictRequest(model="letters", tokens=[1, 2, 3], last_only=True),
        lstm_pb2.PredictRequest(
            model="net", x=[*X, 1], tokens=[7], initial=tensors(**NET), with_state=True
        ),
    ],
}
BASES["StepStream"] = BASES["Step"]


def integers(bits: int) -> st.SearchStrategy[int]:
    """Small ones, and the ends of the range."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    ends = [low, low + 1, -1, high - 1, high, 10_000, 10_001]
    return st.integers(0, 3) | st.sampled_from(ends) | st.integers(low, high)


SCALARS = {
    FieldDescriptor.TYPE_INT32: integers(32),
    FieldDescriptor.TYPE_ENUM: integers(32),
    FieldDescriptor.TYPE_INT64: integers(64),
    FieldDescriptor.TYPE_FIXED32: st.sampled_from([0, 1, (1 << 32) - 1]),
    FieldDescriptor.TYPE_FLOAT: FLOATS,
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_STRING: TEXTS,
}


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """What the field may be set to."""
    one = (
        messages(field.message_type)
        if field.type == FieldDescriptor.TYPE_MESSAGE
        else SCALARS[field.type]
    )
    if not field.is_repeated:
        return one
    if field.message_type is lstm_pb2.Tensor.DESCRIPTOR:
        good = st.sampled_from(GOOD_TENSORS)
        return st.lists(good | st.sampled_from(NEARLY_TENSORS) | one, max_size=6)
    if field.type == FieldDescriptor.TYPE_STRING:
        return st.lists(NAMES, max_size=4)
    if field.type == FieldDescriptor.TYPE_FLOAT:
        # One value throughout: only the number of values matters, and whether one is bad.
        return st.builds(lambda n, value, last: [value] * n + last, SIZES, FLOATS, few(FLOATS))
    return few(one)


def few(one: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Lists of up to three of them, mostly empty."""
    return st.just([]) | st.lists(one, max_size=3)


def messages(descriptor: Descriptor) -> st.SearchStrategy[Message]:
    """Messages of a type with any of its fields set."""
    kind = message_factory.GetMessageClass(descriptor)
    fields = st.fixed_dictionaries({}, optional={f.name: values(f) for f in descriptor.fields})
    return fields.filter(lambda given: not {"state", "fork_of"} <= given.keys()).map(
        lambda given: kind(**given)
    )


def serialized(method: str) -> st.SearchStrategy[bytes]:
    """Hostile values in a correct encoding."""
    return messages(METHODS[method]).map(lambda message: message.SerializeToString())


@st.composite
def nearly_good(draw: st.DrawFn, method: str) -> bytes:
    """A message that would be served if not for up to two of its fields."""
    message = type(BASES[method][0])()
    message.CopyFrom(draw(st.sampled_from(BASES[method])))
    fields = list(METHODS[method].fields)
    for field in draw(st.lists(st.sampled_from(fields), max_size=2)) if fields else ():
        message.ClearField(field.name)
        message.MergeFrom(type(message)(**{field.name: draw(values(field))}))
    return message.SerializeToString()


@st.composite
def mutated(draw: st.DrawFn, method: str) -> bytes:
    """Bytes changed, cut out, doubled, put in or cut off from a message, up to four times."""
    content = bytearray(draw(serialized(method) | nearly_good(method)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        end = min(len(content), at + draw(st.integers(0, 8)))
        change = draw(st.sampled_from(["replace", "remove", "double", "insert", "cut"]))
        if change == "cut":
            del content[at:]
        elif change == "double":
            content[end:end] = content[at:end]
        elif change == "remove":
            del content[at:end]
        else:
            new = draw(st.binary(min_size=1, max_size=4))
            content[at : at + len(new) * (change == "replace")] = new
    return bytes(content)


def contents(method: str) -> st.SearchStrategy[bytes]:
    """Anything that a hostile client may send to the method."""
    hostile = serialized(method) | mutated(method) | st.binary(max_size=64)
    return nearly_good(method) | hostile


CALLS = st.sampled_from(sorted(METHODS)).flatmap(
    lambda method: st.tuples(
        st.just(method),
        st.lists(contents(method), min_size=1, max_size=6 if method in STREAMS else 1),
    )
)
