"""Owns which session a request is for: the sequence that lives, or the one that START opens."""

from __future__ import annotations

import contextlib

import structlog

from lstmserve.engine import Engine
from lstmserve.engine.clock import SECOND_NS, Now
from lstmserve.engine.errors import (
    NOT_SERVED,
    DeadlineExpired,
    Draining,
    ModelMismatch,
    SessionClosed,
    SessionNotFound,
    StateCorrupt,
    StepSuperseded,
)
from lstmserve.engine.session.opening import IfExists, ImportedState, OpenRequest
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.kserve.asking import Ask
from lstmserve.server.observe.logs import session_hash

log = structlog.get_logger()


def find(engine: Engine, tenant: Tenant, ask: Ask, key: str) -> int:
    """The row of a sequence that lives here. Raises what LiveSessions.find() raises, ModelMismatch,
    and StepSuperseded for a numbered step of a sequence that ended after it."""
    now = engine.clock()
    try:
        row = engine.sessions.find(key, ask.parameters.incarnation, now)
    except SessionNotFound:
        _check_elsewhere(engine, tenant, ask)
        raise
    except SessionClosed:
        _check_superseded(engine, ask, key, now)
        raise
    model = engine.model_of(row)
    if ask.version not in (0, model.version):
        raise ModelMismatch(
            f"the sequence runs on version {model.version} of model '{model.name}', and stays "
            f"there until it is started anew; version {ask.version} was asked for"
        )
    return row


def _check_elsewhere(engine: Engine, tenant: Tenant, ask: Ask) -> None:
    """Raises ModelMismatch when the id is a sequence of another model of the tenant's."""
    sequence = ask.parameters.sequence
    assert sequence is not None
    for name in sorted({model.name for model in engine.models} - {ask.model.name}):
        if engine.table.find(tenant.sequence_key(name, sequence)) is not None:
            raise ModelMismatch(
                f"sequence {sequence!r} is one of model '{name}'; on model '{ask.model.name}' it "
                "was never started",
                metadata={"model": name},
            )


def _check_superseded(engine: Engine, ask: Ask, key: str, now: Now) -> None:
    """Whether the step is one of those that the ended sequence had. Raises StepSuperseded."""
    number = ask.parameters.step
    steps: list[int] = []  # stays empty while the END is still running
    engine.sessions.close(key, ask.parameters.incarnation, now, steps.append)
    if number is not None and steps and number <= steps[0]:
        raise StepSuperseded(
            f"step {number} was applied, the sequence has ended with step {steps[0]}, and the "
            "reply is no longer held",
            metadata={"last_step": str(steps[0])},
        )


async def start(
    engine: Engine,
    tenant: Tenant,
    ask: Ask,
    key: str,
    state: ImportedState | None,
    row_count: int,
    deadline_ns: int,
) -> int:
    """The row of a new session, in place of the one that lives under the key, if any does.

    What is wrong with the request is said before. Raises Draining, DeadlineExpired, Quota, and what
    SessionOpener.open() raises.
    """
    with contextlib.suppress(*NOT_SERVED, StateCorrupt):  # it may go all the same
        await engine.lifecycle.bring(key, 0, 0)
    now = engine.clock()
    if deadline_ns and now.monotonic_ns > deadline_ns:
        raise DeadlineExpired("the timeout passed before the sequence was started")
    if engine.is_draining:
        raise Draining("this server is shutting down; start it at another one", retry_s=1.0)
    if tenant.is_limited:
        tenant.check(1, row_count, now.monotonic_ns)
    is_live = engine.sessions.find_any(key, now) is not None
    request = OpenRequest(
        key=key,
        model=ask.model,
        version=ask.version,
        ttl_ns=int(engine.config.session_ttl_s * SECOND_NS),
        if_exists=IfExists.RESTART if ask.parameters.may_restart else IfExists.FAIL,
        state=state,
        fork_of="",
        sessions_max=tenant.limits.sessions_max,
    )
    row, _ = await engine.lifecycle.open(request)
    if is_live:
        log.warning(
            "sequence replaced: START came before END",
            model=ask.model.name,
            session=session_hash(key),
        )
    return row
