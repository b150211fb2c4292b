"""Owns what OpenSession may mean: new, resume, restart, import, fork, the same request again.

Synchronous; the clock is handed in. Sessions does what is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from lstmserve.config import Config
from lstmserve.engine.clock import Now
from lstmserve.engine.errors import Fenced, ModelMismatch, ServeError, SessionExists
from lstmserve.engine.keys import tenant_of
from lstmserve.engine.memory import SECOND_NS, Memory
from lstmserve.engine.model import Model, State
from lstmserve.engine.session.room import Room
from lstmserve.engine.session.sessions import Sessions
from lstmserve.engine.session.start import Start
from lstmserve.engine.table import SessionTable


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
    the tenant's limit, None for none; `forked` is what `fork_of` was when it was last seen here;
    `is_renewal` resumes a session by a new life of it.
    """

    key: str
    model: Model
    version: int
    ttl_ns: int
    if_exists: IfExists
    state: Import | None
    fork_of: str
    request_key: str
    sessions_max: int | None = None
    forked: Start | None = None
    is_renewal: bool = False


class Opening:
    """Remembers request ids, and nothing else."""

    def __init__(self, config: Config, table: SessionTable, sessions: Sessions, room: Room) -> None:
        self._table = table
        self._room = room
        self._sessions = sessions
        self._answered: Memory[tuple[str, int, bool]] = Memory(
            config.open_requests_max, int(config.request_id_s * SECOND_NS)
        )

    def open(self, request: OpenRequest, now: Now) -> tuple[int, bool]:
        """The session's row, and whether it was created.

        Raises SessionExists, ModelMismatch, SessionLimit, Quota, ModelNotSteppable, and for
        `fork_of` or a repeated request whose session is gone what Sessions.find() raises.
        """
        if request.request_key:
            answered = self._answered.get(request.request_key, now.monotonic_ns)
            if answered is not None and self._is_certain(*answered):
                return self._sessions.find(answered[0], answered[1], now), True
        row, is_created = self._open(request, now)
        if request.request_key and is_created:
            key, incarnation = self._table.keys[row], int(self._table.incarnation[row])
            assert key is not None
            self._answered.put(request.request_key, (key, incarnation, True), now.monotonic_ns)
        return row, is_created

    def key_of(self, request: OpenRequest, now: Now) -> str:
        """Its key: the same one for the same request again, also where the server makes the id."""
        answered = self._answered.get(request.request_key, now.monotonic_ns)
        return request.key if answered is None else answered[0]

    def doubt(self, request: OpenRequest, now: Now) -> None:
        """Whether the session that was opened exists is unknown: a store's answer was lost."""
        answered = self._answered.get(request.request_key, now.monotonic_ns)
        if answered is not None:
            key, incarnation, _ = answered
            self._answered.put(request.request_key, (key, incarnation, False), now.monotonic_ns)

    def _is_certain(self, key: str, incarnation: int, was_stored: bool) -> bool:
        """Whether the session exists, or did once."""
        row = self._table.find(key)
        return was_stored or (row is not None and self._table.incarnation[row] == incarnation)

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
                raise SessionExists("a session with this id is open", field="session_id")
        else:
            self._room.check_tenant(tenant_of(request.key), request.sessions_max, now)
        start = self._start(request, now)
        if row is not None:
            self._room.make(request.model, now, row)
            self._sessions.leave(row, "replaced", now)
        self._room.make(request.model, now)
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
