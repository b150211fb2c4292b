"""Bad messages of many sessions: what is sent, and the reason of the error.

A bad session among good ones is a row of badsteps.py; this file has what refuses a whole message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from badsteps import INT32_MAX, INT64_MAX, INT64_MIN, NAN, ROWS, Row, X, row
from lstmserve.v1 import lstm_pb2 as pb
from wire import Good

TOO_MANY = 301  # sessions, one more than the servers of these tests take
OTHER_NAMES = {"length": "lengths"}  # names of fields that are columns in a message
SPARSE = {
    "SESSION_NOT_FOUND",
    "SESSION_LOST",
    "SESSION_REPLACED",
    "BAD_SESSION_ID",
    "NON_FINITE",
    "BAD_STEP",
    "STEP_GAP",
    "STEP_SUPERSEDED",
    "TOO_LONG",
}


LATER = row("NaN in a later row", "NON_FINITE", "x", length=3, x=[*X, *X[:2], NAN, *X])


def _is_sparse(bad: Row) -> bool:
    """Whether a message may have it among its sessions without moving the others' rows."""
    if bad.reason not in SPARSE:
        return False
    sent = pb.StepRequest.FromString(bad.step(pb.Session(id="a")))
    return len(sent.x) == len(X) * (sent.length or 1)


BAD_SESSIONS = [
    replace(bad, blamed=[OTHER_NAMES.get(name, name) for name in bad.blamed])
    for bad in [*ROWS, LATER]
    if _is_sparse(bad)
]


@dataclass
class Among:
    """The next steps of good sessions, with a bad session at `place` among them."""

    request: pb.StepManyRequest
    goods: list[Good]
    place: int
    lengths: list[int]

    @property
    def good_lengths(self) -> list[int]:
        """The lengths without the bad session's."""
        return self.lengths[: self.place] + self.lengths[self.place + 1 :]

    def check(self, response: pb.StepManyResponse) -> Any:
        """Checks that the good sessions have the oracle's outputs and the bad one has NaN.

        Returns the status of the bad one.
        """
        assert not response.HasField("error"), response.error
        (error,) = response.errors
        assert error.index == self.place
        assert response.tag == self.request.tag
        assert list(response.lengths or [1] * len(self.lengths)) == self.lengths
        wanted = [good.number() for good in self.goods]
        assert list(response.steps) == [*wanted[: self.place], 0, *wanted[self.place :]]
        y = np.array(response.y, np.float32).reshape(sum(self.lengths), -1)
        parts = np.split(y, np.cumsum(self.lengths)[:-1])
        assert np.isnan(parts.pop(self.place)).all()
        for good, part in zip(self.goods, parts, strict=True):
            good.check(part)
        return error.status


def among(
    bad: Row, own: pb.Session, goods: Sequence[Good], place: int, lengths: Sequence[int] = ()
) -> Among:
    """`own` is the session of the bad step, or would be; `lengths` are those of the good ones."""
    sent = pb.StepRequest.FromString(bad.step(own))
    all_lengths = [*(lengths or [1] * len(goods))]
    xs = [good.rows(n).reshape(-1) for good, n in zip(goods, all_lengths, strict=True)]
    ids = [good.id for good in goods]
    incarnations = [good.session.incarnation for good in goods]
    steps = [good.number() for good in goods]
    ids.insert(place, sent.session_id)
    incarnations.insert(place, sent.incarnation)
    steps.insert(place, sent.step)
    xs.insert(place, np.array(sent.x, np.float32))
    all_lengths.insert(place, sent.length or 1)
    request = pb.StepManyRequest(
        session_ids=ids,
        incarnations=incarnations,
        steps=steps if sent.HasField("step") else [],
        lengths=all_lengths if set(all_lengths) != {1} else [],
        x=np.concatenate(xs),
        tag=7,
    )
    return Among(request, list(goods), place, all_lengths)


class Whole(NamedTuple):
    """Fields that refuse a whole message, in place of a good message's of the sessions a and b."""

    name: str
    reason: str
    blamed: list[str]
    fields: dict[str, Any]

    def request(self, tag: int = 0) -> pb.StepManyRequest:
        """The message."""
        good = {"session_ids": ["a", "b"], "x": X * 2, "tag": tag}
        return pb.StepManyRequest(**{**good, **self.fields})


def whole(name: str, reason: str, *blamed: str, **fields: Any) -> Whole:
    """A case by its name, its reason and its fields."""
    return Whole(name, reason, list(blamed), fields)


MANY_NAMES = [f"s{i}" for i in range(TOO_MANY)]
WHOLE = [
    whole("no sessions", "EMPTY_INPUT", "session_ids", session_ids=[]),
    whole("a session twice", "DUPLICATE_SESSION", "session_ids", session_ids=["a", "a"]),
    whole("a stranger twice", "DUPLICATE_SESSION", "session_ids", session_ids=["p", "p"]),
    whole("two models", "MIXED_MODELS", session_ids=["a", "letters"]),
    whole("too many", "TOO_LONG", "session_ids", session_ids=MANY_NAMES),
    whole("empty ids without end", "TOO_LONG", "session_ids", session_ids=[""] * 100_000),
    whole("lengths too few", "BAD_TENSOR", "lengths", lengths=[1]),
    whole("lengths without number", "BAD_TENSOR", "lengths", lengths=[1] * 100_000),
    whole("incarnations too many", "BAD_TENSOR", "incarnations", incarnations=[0, 0, 0]),
    whole("incarnations too few", "BAD_TENSOR", "incarnations", incarnations=[INT64_MIN]),
    whole("steps too few", "BAD_TENSOR", "steps", steps=[1]),
    whole("steps too many", "BAD_TENSOR", "steps", steps=[1, INT64_MAX, -1]),
    whole("x too short", "BAD_TENSOR", "x", x=X),
    whole("x too long", "BAD_TENSOR", "x", x=X * 3),
    whole("rows of another width", "BAD_TENSOR", "x", x=[*X, 1.0] * 2),
    whole("no x", "EMPTY_INPUT", "x", x=[]),
    whole("lengths of 0", "BAD_TENSOR", "x", lengths=[0, 0]),
    whole("lengths of 0 and no x", "EMPTY_INPUT", "x", lengths=[0, 0], x=[]),
    whole("lengths without end", "BAD_TENSOR", "x", lengths=[INT32_MAX, INT32_MAX]),
    whole("a length without end", "EMPTY_INPUT", "x", lengths=[INT32_MAX, 1], x=[]),
    whole("a negative length", "MALFORMED", "lengths", lengths=[3, -1]),
    whole("the lowest length", "MALFORMED", "lengths", lengths=[3, -INT32_MAX - 1]),
    whole("a negative timeout", "MALFORMED", "timeout_ms", timeout_ms=-1),
    whole("tokens for a model of x", "BAD_TENSOR", "tokens", tokens=[1, 2]),
    whole("tokens alone", "BAD_TENSOR", "tokens", x=[], tokens=[1, 2]),
    whole("x for tokens", "BAD_TENSOR", "x", session_ids=["letters"], x=X),
    whole("a token too large", "BAD_TENSOR", "tokens", session_ids=["letters"], x=[], tokens=[27]),
]
GARBAGE = [
    b"\xff" * 8,
    b"\x0a\x02\xff\xfe",  # an id that is not UTF-8
    b"\x2a\x7fabc",  # cut off in x
    b"\x0a\x01a\x0a\x01b\x22\x05\xff",  # cut off in lengths
    b"\x0b" * 200,  # groups that never end
]
