"""Decides what an OpenSession request does: new, resume, restart, import, fork, or a repeat.

It is synchronous and gets the time as an argument. It never asks the store; LiveSessions carries
out what it decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lstmserve.config import Config
from lstmserve.engine.clock import SECOND_NS, Now
from lstmserve.engine.errors import Fenced, Malformed, ModelMismatch, ServeError, SessionExists
from lstmserve.engine.keys import tenant_of
from lstmserve.engine.model import Model
from lstmserve.engine.session.capacity import SessionCapacity
from lstmserve.engine.session.live_sessions import LiveSessions, SessionStart
from lstmserve.engine.table import SessionTable
from lstmserve.engine.ttl_cache import TtlCache

REUSED = "this request_id was that of another OpenSession: give each request an id of its own"


class IfExists(Enum):
    """What to do when the id is taken."""

    FAIL = 0
    RESUME = 1
    RESTART = 2


@dataclass(frozen=True, slots=True)
class ImportedState:
    """A state to start from: name -> [*shape] of all the model's states, of the spec's dtypes, and
    the number of its last step."""

    tensors: Mapping[str, npt.NDArray[Any]]
    step: int


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """An OpenSession whose fields were checked. Keys are the table's; "" means none.

    `version` 0 is the newest for a new session, and any for one that is resumed. `sessions_max` is
    the tenant's limit, None without one. `forked` is the state of `fork_of` when this server last
    had it. `asked` is a digest of the whole request: a repeat has the same `request_id` and
    `asked`. `is_renewal` resumes the session under a new incarnation.
    """

    key: str
    model: Model
    version: int
    ttl_ns: int
    if_exists: IfExists
    state: ImportedState | None
    fork_of: str
    request_id: str = ""
    asked: bytes = b""
    sessions_max: int | None = None
    forked: SessionStart | None = None
    is_renewal: bool = False

    @property
    def request_key(self) -> str:
        """The key of the tenant's request id, "" without one."""
        return f"{tenant_of(self.key)}/{self.request_id}" if self.request_id else ""


class Opened(NamedTuple):
    """What is kept of a request id: the request's digest, and the session that it opened."""

    asked: bytes
    key: str
    incarnation: int
    is_certain: bool  # False while it is unknown whether the store has the session


class SessionOpener:
    """Keeps request ids for a while. The sessions that they opened keep their own as well."""

    def __init__(
        self, config: Config, table: SessionTable, sessions: LiveSessions, capacity: SessionCapacity
    ) -> None:
        self._table = table
        self._capacity = capacity
        self._sessions = sessions
        self._opened: TtlCache[Opened] = TtlCache(
            config.open_requests_max, int(config.request_id_s * SECOND_NS)
        )

    def open(self, request: OpenRequest, now: Now) -> tuple[int, bool]:
        """The session's row, and whether it was created.

        Raises SessionExists, ModelMismatch, SessionLimit, Quota, ModelNotSteppable, ModelRetired,
        for `fork_of` what LiveSessions.find() raises, and what find_repeat() raises.
        """
        if (row := self.find_repeat(request, now)) is not None:
            return row, True
        row, is_created = self._open(request, now)
        if request.request_id and is_created:
            opened = Opened(request.asked, request.key, int(self._table.incarnation[row]), True)
            self._opened.put(request.request_key, opened, now.monotonic_ns)
        return row, is_created

    def find_repeat(self, request: OpenRequest, now: Now) -> int | None:
        """The row of the session that an earlier try of this request opened, here or elsewhere.

        None if there was no such try. Raises Malformed if another request had this request id, and
        what LiveSessions.find() raises if the session has ended.
        """
        if not request.request_id:
            return None
        opened = self._opened.get(request.request_key, now.monotonic_ns)
        if opened is not None and opened.asked != request.asked:
            raise Malformed(REUSED, field="request_id")
        if opened is not None and self._is_certain(opened):
            return self._sessions.find(opened.key, opened.incarnation, now)
        row = self._sessions.find_any(request.key, now)
        if row is None or self._table.request_ids.get(row) != request.request_id:
            return None
        model = self._sessions.model_of(row)
        if model.name != request.model.name or request.version not in (0, model.version):
            raise Malformed(REUSED, field="request_id")
        return self._sessions.find(request.key, 0, now)

    def mark_uncertain(self, request: OpenRequest, now: Now) -> None:
        """Notes that the store's answer was lost: the opened session may not exist."""
        opened = self._opened.get(request.request_key, now.monotonic_ns)
        if opened is not None:
            uncertain = opened._replace(is_certain=False)
            self._opened.put(request.request_key, uncertain, now.monotonic_ns)

    def _is_certain(self, opened: Opened) -> bool:
        """Whether it is known that the session was created."""
        row = self._table.find(opened.key)
        is_here = row is not None and self._table.incarnation[row] == opened.incarnation
        return opened.is_certain or is_here

    def _open(self, request: OpenRequest, now: Now) -> tuple[int, bool]:
        row = self._sessions.find_any(request.key, now)
        if row is None and request.is_renewal:
            raise Fenced("the session has just gone elsewhere: repeat the call", retry_s=0.0)
        if row is not None:
            if request.if_exists is IfExists.RESUME:
                self._check_same(row, request)
                row = self._sessions.find(request.key, 0, now)
                return self._renew(row, request.key, now) if request.is_renewal else row, False
            if request.if_exists is not IfExists.RESTART:
                raise SessionExists(
                    "a session with this id is open: if_exists RESUME goes on with it, RESTART "
                    "begins again",
                    field="session_id",
                )
        else:
            self._capacity.check_tenant(tenant_of(request.key), request.sessions_max, now)
        self._capacity.check_opens(request.model)
        start = self._start(request, now)
        if row is not None:
            self._capacity.make_room(request.model, now, row)
            self._sessions.leave(row, "replaced", now)
        self._capacity.make_room(request.model, now)
        start = replace(start, request_id=request.request_id)
        return self._sessions.open(request.key, request.model, start, request.ttl_ns, now), True

    def _renew(self, row: int, key: str, now: Now) -> int:
        """Continues the session under a new incarnation."""
        model, start = self._sessions.model_of(row), self._sessions.renewal(row)
        ttl_ns = int(self._table.ttl_ns[row])
        self._capacity.make_room(model, now, row)
        self._sessions.leave(row, "replaced", now)
        self._capacity.make_room(model, now)
        return self._sessions.open(key, model, start, ttl_ns, now)

    def _check_same(self, row: int, request: OpenRequest) -> None:
        """Raises ModelMismatch unless the session has the requested model and version."""
        model = self._sessions.model_of(row)
        if model.name != request.model.name or request.version not in (0, model.version):
            raise ModelMismatch(
                f"the session is one of {model.name}:{model.version}: resume it with that model, "
                "or open it with if_exists RESTART",
                metadata={"model": f"{model.name}:{model.version}"},
            )

    def _start(self, request: OpenRequest, now: Now) -> SessionStart:
        if request.state is not None:
            states = {name: each[np.newaxis] for name, each in request.state.tensors.items()}
            return SessionStart("import", request.model.imported(states), request.state.step)
        if not request.fork_of:
            return SessionStart()
        if request.forked is not None and self._table.find(request.fork_of) is None:
            return request.forked
        return self.fork(request, now)

    def fork(self, request: OpenRequest, now: Now) -> SessionStart:
        """The state of `fork_of` now. Raises ModelMismatch, and what LiveSessions.find() raises."""
        try:
            source = self._sessions.find(request.fork_of, 0, now)
        except ServeError as error:
            error.field = "fork_of"
            raise
        if self._sessions.model_of(source) is not request.model:
            raise ModelMismatch("it is a session of another model or version", field="fork_of")
        return SessionStart("fork", self._sessions.state(source), int(self._table.step[source]))
