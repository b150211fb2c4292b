"""Checks the columns of a StepMany message against one another. Knows no session."""

from __future__ import annotations

from lstmserve.engine.errors import BadTensor, EmptyInput, Malformed, TooLong
from lstmserve.server.native.cohort import Cohort
from lstmserve.wire.v1 import lstm_pb2 as pb


def check_count(count: int, count_max: int) -> None:
    """Of the sessions that a message names, before their ids are looked at. Raises TooLong."""
    if count > count_max:
        raise TooLong(
            f"{count} sessions, at most {count_max}: send them as several messages",
            field="session_ids",
            metadata={"sessions_max": str(count_max)},
        )


def check_columns(request: pb.StepManyRequest, cohort: Cohort) -> None:
    """Raises what refuses the whole message of these sessions."""
    count = len(cohort)
    if not count:
        raise EmptyInput("there are no sessions", field="session_ids")
    for name in ("steps", "incarnations", "lengths"):
        column = getattr(request, name)
        if column and len(column) != count:
            raise BadTensor(f"{name} has {len(column)} values for {count} sessions", field=name)
    cohort.check()
    if request.timeout_ms < 0:
        raise Malformed("timeout_ms is negative", field="timeout_ms")
    if any(length < 0 for length in request.lengths):
        raise Malformed("a length is negative", field="lengths")
