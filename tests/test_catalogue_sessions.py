"""Bad calls about sessions and models, as raw bytes: each gets its documented code and reason."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import StatusCode

from badsteps import INF, INT64_MAX, INT64_MIN, INVALID, NAN
from lstmserve.v1 import lstm_pb2 as pb
from refusals import leaks
from wire import Wire, serving, tensors

H, C = [[0.5] * 8] * 2, [[0.25] * 8] * 2  # of "m": 2 layers of 8
GONE, CONFLICT = StatusCode.NOT_FOUND, StatusCode.FAILED_PRECONDITION
TAKEN = "taken"


class Case(NamedTuple):
    """A call, its fields or bytes, and the reason of its error."""

    method: str
    name: str
    reason: str
    blamed: list[str]
    fields: dict[str, Any]
    content: bytes | None = None
    code: StatusCode = INVALID


def case(method: str, name: str, reason: str, *blamed: str, **rest: Any) -> Case:
    """A case; the further arguments are Case's, or else fields of the request."""
    known = {key: rest.pop(key) for key in ("content", "code") if key in rest}
    return Case(method, name, reason, list(blamed), rest, **known)


def ttl(seconds: int, nanos: int = 0) -> dict[str, Any]:
    """OpenSession's field."""
    return {"ttl": Duration(seconds=seconds, nanos=nanos)}


def state(**fields: Any) -> dict[str, Any]:
    """OpenSession's field, a good state but for these fields."""
    return {"state": pb.State(**{"tensors": tensors(h=H, c=C), **fields})}


def tensors_but(name: str, /, **fields: Any) -> dict[str, Any]:
    """OpenSession's field, a good state but for these fields of the tensor of that name."""
    made = tensors(h=H, c=C)
    for each in made:
        if each.name == name:
            for field, value in fields.items():
                each.ClearField(field)
                each.MergeFrom(pb.Tensor(**{field: value}))
    return state(tensors=made)


def first_edition(*contents: bytes) -> bytes:
    """An OpenSession with a State of these fields."""
    inner = b"".join(contents)
    return b"\x0a\x01m\x32" + bytes([len(inner)]) + inner


OPEN, CLOSE, LIST = "OpenSession", "CloseSession", "ListSessions"
TENSORS, GOOD = "state.tensors", tensors(h=H, c=C)
FIND = ("GetSession", "GetState", CLOSE)
OLD = {"session_id": TAKEN, "incarnation": 7}

CASES = [
    case(OPEN, "no model", "MODEL_NOT_FOUND", "model", model="", code=GONE),
    case(OPEN, "unknown model", "MODEL_NOT_FOUND", "model", model="nobody", code=GONE),
    case(OPEN, "model of a megabyte", "MODEL_NOT_FOUND", "model", model="m" * 2**20, code=GONE),
    case(OPEN, "unknown version", "MODEL_NOT_FOUND", "model", version=-(2**31), code=GONE),
    case(OPEN, "bidirectional", "MODEL_NOT_STEPPABLE", model="both", code=CONFLICT),
    case(
        OPEN,
        "taken",
        "SESSION_EXISTS",
        "session_id",
        session_id=TAKEN,
        code=StatusCode.ALREADY_EXISTS,
    ),
    case(OPEN, "unknown if_exists", "MALFORMED", "if_exists", content=b"\x0a\x01m\x28\x07"),
    case(
        OPEN,
        "if_exists of 64 bits",
        "MALFORMED",
        "if_exists",
        content=b"\x0a\x01m\x28" + b"\xff" * 9 + b"\x01",
    ),
    case(OPEN, "ttl of 0", "MALFORMED", "ttl", **ttl(0)),
    case(OPEN, "negative ttl", "MALFORMED", "ttl", **ttl(-1)),
    case(OPEN, "negative nanoseconds", "MALFORMED", "ttl", **ttl(0, -1)),
    case(OPEN, "ttl above 30 days", "MALFORMED", "ttl", **ttl(30 * 86_400, 1)),
    case(OPEN, "endless ttl", "MALFORMED", "ttl", **ttl(INT64_MAX, 2**31 - 1)),
    case(OPEN, "endlessly negative ttl", "MALFORMED", "ttl", **ttl(INT64_MIN, -(2**31))),
    case(OPEN, "bad request_id", "MALFORMED", "request_id", request_id="a b"),
    case(OPEN, "long request_id", "MALFORMED", "request_id", request_id="a" * 129),
    case(OPEN, "h too short", "BAD_TENSOR", TENSORS, **tensors_but("h", floats=[0.5] * 15)),
    case(OPEN, "c too long", "BAD_TENSOR", TENSORS, **tensors_but("c", floats=[0.5] * 17)),
    case(OPEN, "h without values", "BAD_TENSOR", TENSORS, **tensors_but("h", floats=[])),
    case(OPEN, "h of three layers", "BAD_TENSOR", TENSORS, **tensors_but("h", shape=[3, 8])),
    case(OPEN, "c with a batch", "BAD_TENSOR", TENSORS, **tensors_but("c", shape=[1, 2, 8])),
    case(OPEN, "c turned over", "BAD_TENSOR", TENSORS, **tensors_but("c", shape=[8, 2])),
    case(OPEN, "c with a negative size", "BAD_TENSOR", TENSORS, **tensors_but("c", shape=[-2, 8])),
    case(OPEN, "h without a shape", "BAD_TENSOR", TENSORS, **tensors_but("h", shape=[])),
    case(OPEN, "h of a million axes", "BAD_TENSOR", TENSORS, **tensors_but("h", shape=[1] * 2**20)),
    case(
        OPEN, "h as integers", "BAD_TENSOR", TENSORS, **state(tensors=tensors(h=[[1] * 8] * 2, c=C))
    ),
    case(OPEN, "integers beside h", "BAD_TENSOR", TENSORS, **tensors_but("h", ints=[1])),
    case(OPEN, "no h", "BAD_TENSOR", TENSORS, **state(tensors=tensors(c=C))),
    case(OPEN, "no tensors", "BAD_TENSOR", TENSORS, **state(tensors=[])),
    case(OPEN, "h twice", "BAD_TENSOR", TENSORS, **state(tensors=[*tensors(h=H), *tensors(h=H)])),
    case(OPEN, "h and c, then h", "BAD_TENSOR", TENSORS, **state(tensors=GOOD + tensors(h=H))),
    case(OPEN, "another tensor", "BAD_TENSOR", TENSORS, **state(tensors=GOOD + tensors(x=H))),
    case(OPEN, "H for h", "BAD_TENSOR", TENSORS, **tensors_but("h", name="H")),
    case(OPEN, "a name of a megabyte", "BAD_TENSOR", TENSORS, **tensors_but("h", name="h" * 2**20)),
    case(OPEN, "many tensors", "BAD_TENSOR", TENSORS, **state(tensors=[pb.Tensor()] * 2**20)),
    case(OPEN, "h not finite", "NON_FINITE", TENSORS, **tensors_but("h", floats=[NAN] * 16)),
    case(
        OPEN, "c not finite", "NON_FINITE", TENSORS, **tensors_but("c", floats=[0.0] * 15 + [-INF])
    ),
    case(
        OPEN,
        "the first edition's h",
        "MALFORMED",
        "state",
        content=first_edition(b"\x0a\x04" + bytes(4)),
    ),
    case(
        OPEN,
        "the first edition's c",
        "MALFORMED",
        "state",
        content=first_edition(b"\x12\x04" + bytes(4)),
    ),
    case(OPEN, "h not packed", "MALFORMED", "state", content=first_edition(b"\x0d" + bytes(4))),
    case(OPEN, "state before its first step", "MALFORMED", "state.step", **state(step=-1)),
    case(
        OPEN, "lowest step, checked", "MALFORMED", "state.step", **state(step=INT64_MIN, crc32c=1)
    ),
    case(OPEN, "step of 2^53", "MALFORMED", "state.step", **state(step=2**53)),
    case(OPEN, "damaged state", "STATE_CORRUPT", **state(crc32c=1), code=StatusCode.DATA_LOSS),
    case(OPEN, "state of another model", "MODEL_MISMATCH", **state(fingerprint="f"), code=CONFLICT),
    case(OPEN, "fork of nobody", "SESSION_NOT_FOUND", "fork_of", fork_of="nobody", code=GONE),
    case(OPEN, "fork of a bad id", "BAD_SESSION_ID", "fork_of", fork_of="a/b"),
    case(
        OPEN,
        "fork of another model",
        "MODEL_MISMATCH",
        "fork_of",
        model="letters",
        fork_of=TAKEN,
        code=CONFLICT,
    ),
    case(
        OPEN,
        "resume of another model",
        "MODEL_MISMATCH",
        model="letters",
        session_id=TAKEN,
        if_exists=1,
        code=CONFLICT,
    ),
    *(
        case(each, "bad id", "BAD_SESSION_ID", "session_id", session_id="a b")
        for each in (OPEN, *FIND)
    ),
    *(case(each, "no id", "BAD_SESSION_ID", "session_id") for each in FIND),
    *(
        case(each, "unknown", "SESSION_NOT_FOUND", "session_id", session_id="nobody", code=GONE)
        for each in FIND
    ),
    *(
        case(each, "lost", "SESSION_LOST", session_id="nobody", incarnation=7, code=GONE)
        for each in FIND[1:]
    ),
    *(case(each, "replaced", "SESSION_REPLACED", **OLD, code=CONFLICT) for each in FIND[1:]),
    case(LIST, "negative page", "MALFORMED", "page_size", page_size=-1),
    case(LIST, "page too large", "MALFORMED", "page_size", page_size=1001),
    *(
        case(LIST, f"token {token[:20]!r}", "MALFORMED", "page_token", page_token=token)
        for token in ("-1", "x", "1e3", "٣", "9" * 400, "0x10", " 1", "1\n", "../1")
    ),
    case(LIST, "unknown model", "MODEL_NOT_FOUND", "model", model="nobody", code=GONE),
    case("GetModel", "unknown model", "MODEL_NOT_FOUND", "model", model="nobody", code=GONE),
    case(
        "GetModel", "unknown version", "MODEL_NOT_FOUND", "model", model="m", version=-1, code=GONE
    ),
    *(
        case(each, "garbage", "MALFORMED", content=b"\xff" * 9)
        for each in (OPEN, *FIND, LIST, "GetModel", "ListModels")
    ),
    *(
        case(each, "not UTF-8", "MALFORMED", content=b"\x0a\x02\xff\xfe")
        for each in (OPEN, *FIND, "GetModel")
    ),
]


def request_of(case: Case) -> bytes:
    """The bytes that are sent."""
    if case.content is not None:
        return case.content
    fields = {"model": "m", **case.fields} if case.method == OPEN else case.fields
    return bytes(getattr(pb, f"{case.method}Request")(**fields).SerializeToString())


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    """A server with one session."""
    async with serving(tmp_path) as wire:
        await wire.open(session_id=TAKEN)
        yield wire


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method} {case.name}")
async def test_calls(wire: Wire, case: Case) -> None:
    """A bad call is refused as documented, opens and closes nothing, and later calls are served."""
    good = await wire.good()
    await good.step()
    said = await wire.refused(case.method, request_of(case))
    assert (said.code, said.reason) == (case.code, case.reason), said
    assert said.fields == case.blamed
    assert said.retry_s is None
    leaks(said, wire.folder)
    assert len(wire.engine.table) == 2
    await good.step()
    await good.check_state()
