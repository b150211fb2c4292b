"""Owns what is told of steps that were not applied. Pure; knows neither table nor queue."""

from __future__ import annotations

from collections.abc import Callable

from lstmserve.engine.errors import (
    Fenced,
    ModelError,
    PredecessorFailed,
    ServeError,
    SessionReplaced,
    StateRolledBack,
    StepGap,
    StoreFull,
    StoreUnavailable,
)
from lstmserve.engine.schedule.outcome import Outcome
from lstmserve.engine.schedule.step import Step


def fenced() -> Fenced:
    """Nothing was applied here; a repeat finds the session where it is now."""
    return Fenced("another server has this session now: repeat the step", retry_s=0.0)


def rolled_back(step: int) -> StateRolledBack:
    """Nothing goes on from a step that the client may never have meant."""
    return StateRolledBack(
        f"steps after step {step} may have been answered and then lost, and this step has no "
        "number: open the session again (RESUME or RESTART), or send a step by its number",
        metadata={"step": str(step)},
    )


def failure(outcome: int) -> ServeError | None:
    """Why a row with this outcome is not applied; None: it is."""
    if outcome == Outcome.APPLIED:
        return None
    if outcome == Outcome.NOT_STORED:
        return StoreUnavailable("the store did not take this step: repeat it", retry_s=1.0)
    if outcome == Outcome.STORE_FULL:
        return StoreFull(
            "the store is full, until its operator makes room: send the step again then; "
            "the session is as it was before"
        )
    return ModelError("the model failed on this step; the session is as it was before")


def model_failed() -> ModelError:
    """Nothing is told of a Predict of which a sequence failed."""
    return ModelError("the model failed on a sequence")


def behind(
    error: ServeError, is_moved: bool, is_alone: bool, expected: int
) -> Callable[[Step], ServeError]:
    """What those are told who waited behind a step that ended with `error`.

    Who has the session alone is certain that it waits for step `expected`. With a store it may
    have gone on elsewhere: a repeat is told at the door, where the store is asked.
    """

    def reason(step: Step) -> ServeError:
        if isinstance(error, SessionReplaced):
            return error
        if is_moved:
            return fenced()
        if not step.is_numbered:
            return PredecessorFailed("an earlier step of the session was not applied")
        if not is_alone:
            return Fenced("an earlier step was not applied: repeat this one", retry_s=0.0)
        return StepGap(
            f"an earlier step was not applied: send step {expected} again",
            metadata={"expected_step": str(expected)},
        )

    return reason
