"""Owns what OpenSession may mean: new, resume, restart, import, fork, the same request again.

Synchronous; the clock is handed in. Sessions does what is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from lstmserve.config import Config
from lstmserve.engine.clock import Now
from lstmserve.engine.errors import Fenced, Malformed, ModelMismatch, ServeError, SessionExists
from lstmserve.engine.keys import tenant_of
from lstmserve.engine.memory import SECOND_NS, Memory
from lstmserve.engine.model import Model, State
from lstmserve.engine.session.room import Room
from lstmserve.engine.session.sessions import Sessions
from lstmserve.engine.session.start import Start
from lstmserve.engine.table import SessionTable

REUSED = "this request_id was that of another OpenSession: give each request an id of its own"


class IfExists(Enum):
    """What to do when the id is taken."""

    FAIL = 0
    RESUME = 1
    RESTART = 2


@dataclass(frozen=True, slots=True)
class Import:
    """A state to start from: h [L, state], c [L, H] and the steps it has behind it."""

    h: State
    c: State
    step: int


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """An OpenSession whose fields were checked. Keys are the table's; "" is none.

    `version` 0 is the newest for a new session, and any for one that goes on; `sessions_max` is
    the tenant's limit, None for none; `forked` is what `fork_of` was when it was last seen here.
    `asked` stands for the whole of a request with a `request_id`: a repeat has both. `is_renewal`
    resumes a session by a new life of it.
    """

    key: str
    model: Model
    version: int
    ttl_ns: int
    if_exists: IfExists
    state: Import | None
    fork_of: str
    request_id: str = ""
    asked: bytes = b""
    sessions_max: int | None = None
    forked: Start | None = None
    is_renewal: bool = False

    @property
    def request_key(self) -> str:
        """Of its tenant's request ids."""
        return f"{tenant_of(self.key)}/{self.request_id}" if self.request_id else ""


class Opened(NamedTuple):
    """What is remembered of a request id: what was asked, and the session that was opened."""

    asked: bytes
    key: str
    incarnation: int
    is_certain: bool  # whether a store has, or had, the session; without one always


class Opening:
    """Remembers request ids for a while; the sessions that they opened know them, too."""

    def __init__(self, config: Config, table: SessionTable, sessions: Sessions, room: Room) -> None:
        self._table = table
        self._room = room
        self._sessions = sessions
        self._opened: Memory[Opened] = Memory(
            config.open_requests_max, int(config.request_id_s * SECOND_NS)
        )

    def open(self, request: OpenRequest, now: Now) -> tuple[int, bool]:
        """The session's row, and whether it was created.

        Raises SessionExists, ModelMismatch, SessionLimit, Quota, ModelNotSteppable, for `fork_of`
        what Sessions.find() raises, and what own() raises.
        """
        if (row := self.own(request, now)) is not None:
            return row, True
        row, is_created = self._open(request, now)
        if request.request_id and is_created:
            opened = Opened(request.asked, request.key, int(self._table.incarnation[row]), True)
            self._opened.put(request.request_key, opened, now.monotonic_ns)
        return row, is_created

    def own(self, request: OpenRequest, now: Now) -> int | None:
        """The row of the session that an earlier try of this request opened, here or elsewhere;
        None where there was none.

        Raises Malformed where the request id was another request's, and what Sessions.find() raises
        where the session has ended.
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

    def doubt(self, request: OpenRequest, now: Now) -> None:
        """Whether the session that was opened exists is unknown: a store's answer was lost."""
        opened = self._opened.get(request.request_key, now.monotonic_ns)
        if opened is not None:
            doubted = opened._replace(is_certain=False)
            self._opened.put(request.request_key, doubted, now.monotonic_ns)

    def _is_certain(self, opened: Opened) -> bool:
        """Whether the session exists, or did once."""
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
            self._room.check_tenant(tenant_of(request.key), request.sessions_max, now)
        start = self._start(request, now)
        if row is not None:
            self._room.make(request.model, now, row)
            self._sessions.leave(row, "replaced", now)
        self._room.make(request.model, now)
        start = replace(start, request_id=request.request_id)
        return self._sessions.open(request.key, request.model, start, request.ttl_ns, now), True

    def _renew(self, row: int, key: str, now: Now) -> int:
        """A new life of the session, under another incarnation: it goes on where it was."""
        model, start = self._sessions.model_of(row), self._sessions.renewal(row)
        ttl_ns = int(self._table.ttl_ns[row])
        self._room.make(model, now, row)
        self._sessions.leave(row, "replaced", now)
        self._room.make(model, now)
        return self._sessions.open(key, model, start, ttl_ns, now)

    def _check_same(self, row: int, request: OpenRequest) -> None:
        """Raises ModelMismatch unless the session is of the model, and version, asked for."""
        model = self._sessions.model_of(row)
        if model.name != request.model.name or request.version not in (0, model.version):
            raise ModelMismatch(
                f"the session is one of {model.name}:{model.version}: resume it with that model, "
                "or open it with if_exists RESTART",
                metadata={"model": f"{model.name}:{model.version}"},
            )

    def _start(self, request: OpenRequest, now: Now) -> Start:
        if request.state is not None:
            rows = request.model.rows_from(request.state.h[:, None], request.state.c[:, None])
            return Start("import", rows, request.state.step)
        if not request.fork_of:
            return Start()
        if request.forked is not None and self._table.find(request.fork_of) is None:
            return request.forked
        return self.fork(request, now)

    def fork(self, request: OpenRequest, now: Now) -> Start:
        """From `fork_of` as it is now. Raises ModelMismatch, and what Sessions.find() raises."""
        try:
            source = self._sessions.find(request.fork_of, 0, now)
        except ServeError as error:
            error.field = "fork_of"
            raise
        if self._sessions.model_of(source) is not request.model:
            raise ModelMismatch("it is a session of another model or version", field="fork_of")
        return Start("fork", self._sessions.state(source), int(self._table.step[source]))
