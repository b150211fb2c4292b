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
from wire import Wire, serving

H, C = [0.5] * 16, [0.25] * 16  # of "m": 2 layers of 8
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
    return {"state": pb.State(**{"h": H, "c": C, **fields})}


OPEN, CLOSE, LIST = "OpenSession", "CloseSession", "ListSessions"
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
    case(OPEN, "h too short", "BAD_TENSOR", "state.h", **state(h=H[1:])),
    case(OPEN, "no h", "BAD_TENSOR", "state.h", **state(h=[])),
    case(OPEN, "c too long", "BAD_TENSOR", "state.c", **state(c=[*C, 0.0])),
    case(OPEN, "h not finite", "NON_FINITE", "state.h", **state(h=[NAN, *H[1:]])),
    case(OPEN, "c not finite", "NON_FINITE", "state.c", **state(c=[*C[1:], -INF])),
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
