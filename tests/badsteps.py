"""The bad steps of the catalogue: what is sent, and the code and reason of the error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from grpc import StatusCode

from lstmserve.v1 import lstm_pb2 as pb

INVALID = StatusCode.INVALID_ARGUMENT
NAN, INF = float("nan"), float("inf")
X = [0.5, -1.0, 2.0]
OWN = object()  # stands for the incarnation of the session
INT32_MAX, INT64_MAX, INT64_MIN = 2**31 - 1, 2**63 - 1, -(2**63)


@dataclass
class Row:
    """One bad step: the fields of its StepRequest, in place of a good one's, or its bytes."""

    name: str
    reason: str
    blamed: list[str] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    content: bytes | None = None
    code: StatusCode = INVALID
    metadata: dict[str, str] = field(default_factory=dict)
    model: str = "m"

    def step(self, own: pb.Session) -> bytes:
        """The request."""
        if self.content is not None:
            return self.content.replace(b"GOOD", bytes([10, len(own.id)]) + own.id.encode())
        values = {"session_id": own.id, **self.fields}
        if values.get("incarnation") is OWN:
            values["incarnation"] = own.incarnation
        if self.model == "m" and "x" not in values and "tokens" not in values:
            values["x"] = X
        return pb.StepRequest(**values).SerializeToString()


def row(name: str, reason: str, *blamed: str, **rest: Any) -> Row:
    """A row; the further arguments are Row's, or else fields of the request."""
    known = {key: rest.pop(key) for key in ("content", "code", "metadata", "model") if key in rest}
    return Row(name, reason, list(blamed), rest, **known)


UNPACKED_X = b"GOOD" + b"\x2d\x00\x00\x00\x00" * 3
SPLIT_X = b"GOOD" + (b"\x2a\x08" + b"\x00" * 8) + (b"\x2a\x04" + b"\x00" * 4)
LONG_VARINT = b"GOOD" + b"\x32\x0b" + b"\xff" * 11
SHORT = {"code": StatusCode.NOT_FOUND}
ID, WORST = "session_id", "BAD_SESSION_ID"

ROWS = [
    row("too few values", "BAD_TENSOR", "x", x=X[:2]),
    row("too many values", "BAD_TENSOR", "x", x=[*X, 1.0]),
    row("fewer rows than its length", "BAD_TENSOR", "x", x=X, length=2),
    row("bytes that are no floats", "BAD_TENSOR", "x", content=b"GOOD\x2a\x05abcde"),
    row("unpacked floats", "EMPTY_INPUT", "x", content=UNPACKED_X),
    row("floats in two pieces", "BAD_TENSOR", "x", content=SPLIT_X),
    row("tokens for a model of x", "BAD_TENSOR", "tokens", x=[], tokens=[1]),
    row("x and tokens", "BAD_TENSOR", "tokens", tokens=[1]),
    row("x for a model of tokens", "BAD_TENSOR", "x", model="letters", x=X),
    row("tokens and x", "BAD_TENSOR", "x", model="letters", tokens=[1], x=[1.0]),
    row("token below 0", "BAD_TENSOR", "tokens", model="letters", tokens=[-1]),
    row("token too large", "BAD_TENSOR", "tokens", model="letters", tokens=[27]),
    row("token of 64 bits", "BAD_TENSOR", "tokens", model="letters", tokens=[INT64_MAX]),
    row("token of -64 bits", "BAD_TENSOR", "tokens", model="letters", tokens=[INT64_MIN]),
    row("token of 77 bits", "MALFORMED", model="letters", content=LONG_VARINT),
    row("two tokens, length 1", "BAD_TENSOR", "tokens", model="letters", tokens=[1, 2]),
    row("no x", "EMPTY_INPUT", "x", x=[]),
    row("no tokens", "EMPTY_INPUT", "tokens", model="letters"),
    row("NaN", "NON_FINITE", "x", x=[0.0, NAN, 0.0]),
    row("infinity", "NON_FINITE", "x", x=[0.0, 0.0, INF]),
    row("minus infinity", "NON_FINITE", "x", x=[-INF, 0.0, 0.0]),
    row("a signalling NaN", "NON_FINITE", "x", content=b"GOOD\x2a\x0c" + b"\1\0\xa0\x7f" * 3),
    row("too long", "TOO_LONG", "length", length=65, x=X * 65, metadata={"length_max": "64"}),
    row("longest length", "TOO_LONG", "length", length=INT32_MAX, metadata={"length_max": "64"}),
    row("negative length", "MALFORMED", "length", length=-1),
    row("lowest length", "MALFORMED", "length", length=-INT32_MAX - 1),
    row("negative timeout", "MALFORMED", "timeout_ms", timeout_ms=-1),
    row("garbage", "MALFORMED", content=b"\xff\xff\xff\xff"),
    row("truncated", "MALFORMED", content=b"GOOD\x2a\x7fabc"),
    row("a group that never ends", "MALFORMED", content=b"\x0b" * 200),
    row("id not UTF-8", "MALFORMED", content=b"\x0a\x02\xff\xfe"),
    row("id too long", WORST, ID, session_id="a" * 129),
    row("id of a megabyte", WORST, ID, session_id="a" * 2**20),
    row("id with a slash", WORST, ID, session_id="../etc/passwd"),
    row("id with a control character", WORST, ID, session_id="a\nb"),
    row("id with a newline behind it", WORST, ID, session_id="a\n"),
    row("id with a zero", WORST, ID, session_id="a\x00"),
    row("id not ASCII", WORST, ID, session_id="séance"),
    row("id of a pattern", WORST, ID, session_id="{*}"),
    row("unknown session", "SESSION_NOT_FOUND", ID, session_id="never-was", **SHORT),
    row(
        "unknown session with an incarnation",
        "SESSION_LOST",
        session_id="never-was",
        incarnation=7,
        metadata={"boot_id": "?"},
        **SHORT,
    ),
    row(
        "negative incarnation, unknown",
        "SESSION_LOST",
        session_id="never-was",
        incarnation=-7,
        metadata={"boot_id": "?"},
        **SHORT,
    ),
    row(
        "other incarnation",
        "SESSION_REPLACED",
        incarnation=7,
        metadata={"incarnation": "?"},
        code=StatusCode.FAILED_PRECONDITION,
    ),
    row(
        "negative incarnation",
        "SESSION_REPLACED",
        incarnation=INT64_MIN,
        metadata={"incarnation": "?"},
        code=StatusCode.FAILED_PRECONDITION,
    ),
    row("step 0", "BAD_STEP", "step", step=0),
    row("negative step", "BAD_STEP", "step", step=INT64_MIN),
    row("step 0 of its session", "BAD_STEP", "step", step=0, incarnation=OWN),
    row("negative step of its session", "BAD_STEP", "step", step=-1, incarnation=OWN),
    row("a number without incarnation", "BAD_STEP", "incarnation", step=1),
    row(
        "step of a lost session",
        "SESSION_LOST",
        session_id="never-was",
        step=1,
        incarnation=7,
        metadata={"boot_id": "?"},
        **SHORT,
    ),
    row(
        "a gap",
        "STEP_GAP",
        step=9,
        incarnation=OWN,
        metadata={"expected_step": "2"},
        code=StatusCode.OUT_OF_RANGE,
    ),
    row(
        "the largest step",
        "STEP_GAP",
        step=INT64_MAX,
        incarnation=OWN,
        metadata={"expected_step": "2"},
        code=StatusCode.OUT_OF_RANGE,
    ),
    row(
        "a step that had no number",
        "STEP_SUPERSEDED",
        step=1,
        incarnation=OWN,
        metadata={"last_step": "1"},
        code=StatusCode.ALREADY_EXISTS,
    ),
]
