"""Translates the calls about sessions: open, get, list, close, state. It decides nothing."""

from __future__ import annotations

import hashlib
import secrets

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from lstmserve.engine import Engine, Model
from lstmserve.engine.clock import SECOND_NS, Now
from lstmserve.engine.errors import (
    Draining,
    Malformed,
    ModelMismatch,
    ModelNotFound,
    StateCorrupt,
)
from lstmserve.engine.keys import ID, session_id
from lstmserve.engine.session.opening import IfExists, ImportedState, OpenRequest
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.native.tensors import (
    Arrays,
    check_known,
    check_states,
    checksum,
    read_tensors,
    tensor,
)
from lstmserve.store import Record
from lstmserve.wire.v1 import lstm_pb2 as pb

TTL_S_MAX = 30 * 86_400
PAGE_SIZE, PAGE_SIZE_MAX = 100, 1000
STEP_MAX = 1 << 52  # an imported one is below; a store's numbers end at 2^53, as many steps later


class SessionCalls:
    """The handlers of these calls; one object serves all calls."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def open_session(
        self, request: pb.OpenSessionRequest, tenant: Tenant
    ) -> pb.OpenSessionResponse:
        """Opens a new session, or resumes one."""
        engine = self._engine
        if engine.is_draining:
            raise Draining("this server is shutting down; open it at another one", retry_s=1.0)
        if request.if_exists not in (0, 1, 2):
            raise Malformed("if_exists is unknown", field="if_exists")
        if request.request_id and not ID.fullmatch(request.request_id):
            allowed = "must be 1 to 128 of A-Z a-z 0-9 . _ ~ : -"
            raise Malformed(f"request_id {allowed}", field="request_id")
        try:
            model = engine.model(request.model, request.version)
        except ModelNotFound:
            if request.session_id and IfExists(request.if_exists) is IfExists.RESUME:
                await engine.lifecycle.confirm(tenant.key(request.session_id))  # it may be stored
            raise
        opened = OpenRequest(
            key=tenant.key(request.session_id or _new_id(tenant, request.request_id)),
            model=model,
            version=request.version,
            ttl_ns=self._ttl_ns(request),
            if_exists=IfExists(request.if_exists),
            state=_state(request.state, model) if request.HasField("state") else None,
            fork_of=tenant.named_key(request.fork_of, "fork_of") if request.fork_of else "",
            request_id=request.request_id,
            asked=_asked(request) if request.request_id else b"",
            sessions_max=tenant.limits.sessions_max,
        )
        row, is_created = await engine.lifecycle.open(opened)
        return pb.OpenSessionResponse(session=self._session(row), created=is_created)

    async def get_session(
        self, request: pb.GetSessionRequest, tenant: Tenant
    ) -> pb.GetSessionResponse:
        """What is known of one session; the call does not renew its time to live."""
        engine = self._engine
        key = tenant.named_key(request.session_id)
        record = await engine.lifecycle.look(key)
        if record is not None:
            return pb.GetSessionResponse(session=_stored(key, record, engine.clock()))
        row = engine.sessions.find(key, 0, engine.clock())
        return pb.GetSessionResponse(session=self._session(row))

    async def list_sessions(
        self, request: pb.ListSessionsRequest, tenant: Tenant
    ) -> pb.ListSessionsResponse:
        """Lists the tenant's sessions in the order of the table's rows; the token is the next row
        to read."""
        if not 0 <= request.page_size <= PAGE_SIZE_MAX:
            raise Malformed(f"page_size must be in [0, {PAGE_SIZE_MAX}]", field="page_size")
        token = request.page_token or "0"
        if not (token.isascii() and token.isdigit() and len(token) < 12):
            raise Malformed("page_token is not one of ours", field="page_token")
        if request.model:
            self._engine.model(request.model, 0)
        models = [m.handle for m in self._engine.models if request.model in ("", m.name)]
        tenant_index = self._engine.table.tenant_index(tenant.name)
        now_ns = self._engine.clock().monotonic_ns
        found = self._engine.table.listed(int(token), tenant_index, models, now_ns)
        size = request.page_size or PAGE_SIZE
        return pb.ListSessionsResponse(
            sessions=[self._session(row) for row in found[:size].tolist()],
            next_page_token=str(found[size]) if found.size > size else "",
        )

    async def close_session(
        self, request: pb.CloseSessionRequest, tenant: Tenant
    ) -> pb.CloseSessionResponse:
        """Closes a session and answers when its pending steps have run; a second close is no
        error."""
        key = tenant.named_key(request.session_id)
        return pb.CloseSessionResponse(
            step=await self._engine.lifecycle.close(key, request.incarnation)
        )

    async def get_state(self, request: pb.GetStateRequest, tenant: Tenant) -> pb.GetStateResponse:
        """The state after the last applied step; the call never waits for pending steps."""
        engine = self._engine
        key = tenant.named_key(request.session_id)
        if request.incarnation:  # the caller also steps it, and needs it where it can be stepped
            await engine.lifecycle.confirm(key)
        elif (record := await engine.lifecycle.look(key)) is not None:
            return pb.GetStateResponse(state=_stored_state(record))
        row = engine.sessions.find(key, request.incarnation, engine.clock())
        model = engine.model_of(row)
        states = engine.sessions.state(row)
        own = {spec.name: states[spec.name][0] for spec in model.spec.states}
        step = int(engine.table.step[row])
        return pb.GetStateResponse(state=_exported(own, step, model.fingerprint))

    def _ttl_ns(self, request: pb.OpenSessionRequest) -> int:
        if not request.HasField("ttl"):
            return int(self._engine.config.session_ttl_s * SECOND_NS)
        ttl_ns = request.ttl.ToNanoseconds()
        if not 0 < ttl_ns <= TTL_S_MAX * SECOND_NS:
            raise Malformed(f"ttl must be above 0 and at most {TTL_S_MAX} s", field="ttl")
        return ttl_ns

    def _session(self, row: int) -> pb.Session:
        engine, table = self._engine, self._engine.table
        model = engine.model_of(row)
        now = engine.clock()
        key, ttl_ns = table.keys[row], int(table.ttl_ns[row])
        assert key is not None
        left_ns = ttl_ns if table.pending[row] else int(table.expiry_ns[row]) - now.monotonic_ns
        session = pb.Session(
            id=session_id(key),
            model=model.name,
            version=model.version,
            incarnation=int(table.incarnation[row]),
            step=int(table.step[row]),
            durable_step=engine.durable_step(row),
            pending_steps=int(table.pending[row]),
            ttl=Duration(seconds=ttl_ns // SECOND_NS, nanos=ttl_ns % SECOND_NS),
        )
        session.open_time.CopyFrom(_timestamp(int(table.open_time_ns[row])))
        session.expire_time.CopyFrom(_timestamp(now.wall_ns + left_ns))
        return session


def _exported(states: Arrays, step: int, fingerprint: str) -> pb.State:
    """The message of states by name, in the spec's order."""
    return pb.State(
        step=step,
        fingerprint=fingerprint,
        crc32c=checksum(states.values(), step),
        tensors=[tensor(name, values) for name, values in states.items()],
    )


def _stored_state(record: Record) -> pb.State:
    """Its model need not be here: the record has the states' names and dtypes. A record of format 1
    has no shapes, so there each is [size]."""
    states = {
        each.name: np.frombuffer(each.data, np.dtype(each.dtype).newbyteorder("<")).reshape(
            each.shape
        )
        for each in record.states
    }
    return _exported(states, record.step, record.fingerprint.hex())


def _stored(key: str, record: Record, now: Now) -> pb.Session:
    """A session that only the store has, which ends at expire_time or before."""
    session = pb.Session(
        id=session_id(key),
        model=record.model,
        version=record.model_version,
        incarnation=record.incarnation,
        step=record.step,
        durable_step=record.step,
        ttl=Duration(seconds=record.ttl_ns // SECOND_NS, nanos=record.ttl_ns % SECOND_NS),
    )
    session.open_time.CopyFrom(_timestamp(record.open_time_ns))
    session.expire_time.CopyFrom(_timestamp(now.wall_ns + record.ttl_ns))
    return session


def _state(state: pb.State, model: Model) -> ImportedState:
    """Checks a client's state.

    Raises Malformed, ModelMismatch, BadTensor, StateCorrupt, NonFinite.
    """
    if state.was_1 or state.was_2:
        raise Malformed(
            "state has h and c as the first edition of lstmserve exported them: read its file "
            "with the Python client of this release, which sends it as tensors",
            field="state",
        )
    check_known(state, "state")
    if state.fingerprint and state.fingerprint != model.fingerprint:
        raise ModelMismatch("the state is of another model: its fingerprint differs")
    if not 0 <= state.step < STEP_MAX:  # before the checksum, which takes no negative number
        raise Malformed(f"state.step must be in [0, {STEP_MAX})", field="state.step")
    values = read_tensors(model.spec.states, state.tensors, "state.tensors")
    if state.crc32c and state.crc32c != checksum(values.values(), state.step):
        raise StateCorrupt("the state's crc32c does not match: it was damaged on the way")
    check_states(model, values, "state.tensors")
    return ImportedState(values, state.step)


def _new_id(tenant: Tenant, request_id: str) -> str:
    """Makes an id for a session whose client names none.

    The same request_id gives the same id, on whichever server a repeat arrives.
    """
    if not request_id:
        return secrets.token_hex(16)
    return hashlib.sha256(f"{tenant.name}/{request_id}".encode()).hexdigest()[:32]


def _asked(request: pb.OpenSessionRequest) -> bytes:
    """A digest of all that a request asks."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


def _timestamp(wall_ns: int) -> Timestamp:
    return Timestamp(seconds=wall_ns // SECOND_NS, nanos=wall_ns % SECOND_NS)
