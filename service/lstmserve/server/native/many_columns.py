"""Checks the columns of a StepMany message against one another. Knows no session."""

from __future__ import annotations

from collections.abc import Sequence

from lstmserve.errors import BadTensor, DuplicateSession, EmptyInput, Malformed, TooLong
from lstmserve.wire.v1 import lstm_pb2 as pb


def check_columns(request: pb.StepManyRequest, ids: Sequence[str], count_max: int) -> None:
    """Raises what refuses the whole message of these sessions; `count_max` is theirs."""
    if not ids:
        raise EmptyInput("there are no sessions", field="session_ids")
    if len(ids) > count_max:
        raise TooLong(
            f"{len(ids)} sessions, at most {count_max}: send them as several messages",
            field="session_ids",
            metadata={"sessions_max": str(count_max)},
        )
    for name in ("steps", "incarnations", "lengths"):
        column = getattr(request, name)
        if column and len(column) != len(ids):
            raise BadTensor(f"{name} has {len(column)} values for {len(ids)} sessions", field=name)
    if len(set(ids)) != len(ids):
        raise DuplicateSession("a session is twice in the message", field="session_ids")
    if request.timeout_ms < 0:
        raise Malformed("timeout_ms is negative", field="timeout_ms")
    if any(length < 0 for length in request.lengths):
        raise Malformed("a length is negative", field="lengths")
