"""Owns what a sequence's client is told: in its own words, each ending in its own sentence."""

from __future__ import annotations

import copy
from typing import Final

from lstmserve.engine.errors import (
    ServeError,
    SessionClosed,
    SessionExists,
    SessionExpired,
    SessionLost,
    SessionNotFound,
    SessionReplaced,
    StateRolledBack,
)
from lstmserve.kserve.v2 import inference_pb2 as pb

SHOWN_MAX: Final = 128

# Of each reason what is said after "sequence S of model 'M' ". A session that was never started is
# told in Triton's sentence, because clients look for it.
SENTENCES: Final[dict[type[ServeError], str]] = {
    SessionExpired: "has expired: it was idle for longer than its time to live; START begins anew",
    SessionClosed: "has ended, by END, a close, or a START that failed; START begins anew",
    SessionReplaced: "was started anew: the incarnation that you mean has ended",
    SessionExists: "is live, and restart=false forbids to end it by another START",
}
NEVER_STARTED: Final = (
    "inference request for sequence {sequence} to model '{model}' must specify the START flag on "
    "the first request of the sequence: it was never started here"
)


def told(error: ServeError, sequence: int | str, model: str) -> ServeError:
    """The error in the words of sequences; it is not changed itself: others may be told it too."""
    kind = type(error)
    if kind is SessionNotFound:
        text = NEVER_STARTED.format(sequence=_shown(sequence), model=model)
    elif kind is SessionLost:
        text = f"sequence {_shown(sequence)} of model '{model}' is lost: {error.message}"
    elif kind is StateRolledBack:
        text = f"sequence {_shown(sequence)} of model '{model}' {_rolled_back(error)}"
    elif kind in SENTENCES:
        text = f"sequence {_shown(sequence)} of model '{model}' {SENTENCES[kind]}"
    else:
        return error
    return with_text(error, text)


def _rolled_back(error: ServeError) -> str:
    step = int(error.metadata["step"])
    return (
        f"may have lost steps that were answered: the last one left is step {step}. Begin it again "
        f"with START, or go on from there with a request whose parameter step is {step + 1}"
    )


def with_text(error: ServeError, text: str) -> ServeError:
    """The same error with another text."""
    changed = copy.copy(error)
    changed.args = (text,)
    changed.message = text
    if changed.field == "session_id":
        changed.field = "sequence_id"
    return changed


def facts(request: pb.ModelInferRequest | None) -> str:
    """What an error of a stream begins with: its client's library gives it nothing but the text."""
    if request is None:
        return ""
    parameter = request.parameters.get("sequence_id")
    kind = parameter.WhichOneof("parameter_choice") if parameter is not None else None
    named = (
        ("request id", request.id),
        ("sequence id", str(getattr(parameter, kind)) if kind else ""),
    )
    listed = ", ".join(f"{name}: {value[:SHOWN_MAX]}" for name, value in named if value)
    return f"[{listed}] " if listed else ""


def _shown(sequence: int | str) -> str:
    return str(sequence) if isinstance(sequence, int) else repr(sequence)
