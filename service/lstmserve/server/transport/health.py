"""Serves grpc.health.v1: reports the status that it was last given. It asks the server nothing.

grpcio-health-checking has an asyncio servicer, but its Watch forgets the other watchers of a
service when one of them leaves: they would never get NOT_SERVING.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from lstmserve.engine.errors import Malformed
from lstmserve.server.status import Abort, to_abort
from lstmserve.server.transport.call import UnaryCall
from lstmserve.server.transport.stream import StreamCall

CHECK: Final = "/grpc.health.v1.Health/Check"
WATCH: Final = "/grpc.health.v1.Health/Watch"
Status = Any  # an enum's value: grpc's stubs have no type that mypy takes
UNKNOWN_SERVICE: Final = Abort(grpc.StatusCode.NOT_FOUND, "", ())


class Health:
    """The status of each service by name; "" is the server's own."""

    def __init__(self, names: Iterable[str]) -> None:
        self._statuses: dict[str, Status] = dict.fromkeys(names, HealthCheckResponse.NOT_SERVING)
        self._watchers: dict[StreamCall, str] = {}
        self.check = _Check(self)
        self.watch = _Watch(self)

    def set_all(self, *, is_serving: bool) -> None:
        """Sets the status of every service, and sends it to every watcher."""
        status = HealthCheckResponse.SERVING if is_serving else HealthCheckResponse.NOT_SERVING
        self._statuses = dict.fromkeys(self._statuses, status)
        for stream, service in self._watchers.items():
            if service in self._statuses:
                stream.write(_content(status))

    def status(self, service: str) -> Status | None:
        """The service's status, None if it is not served."""
        return self._statuses.get(service)

    def begin(self, stream: StreamCall, service: str) -> None:
        """Sends the stream the status now, and after each change."""
        self._watchers[stream] = service
        stream.write(_content(self._statuses.get(service, HealthCheckResponse.SERVICE_UNKNOWN)))

    def end(self, stream: StreamCall) -> None:
        """Sends the stream no more changes."""
        self._watchers.pop(stream, None)


class _Check:
    def __init__(self, health: Health) -> None:
        self._health = health

    def may_read(self, call: UnaryCall) -> bool:
        return True

    def receive(self, calls: list[UnaryCall]) -> None:
        for call in calls:
            try:
                status = self._health.status(_service(call.content))
            except Malformed as error:
                call.abort(to_abort(error))
                continue
            if status is None:
                call.abort(UNKNOWN_SERVICE)
            else:
                call.reply(_content(status))

    def ended(self, call: UnaryCall, code: grpc.StatusCode) -> None:
        """Does nothing: health checks are not counted."""


class _Watch:
    window = 1

    def __init__(self, health: Health) -> None:
        self._health = health

    def may_read(self, stream: StreamCall) -> bool:
        return True

    def opened(self, stream: StreamCall) -> None:
        stream.conversation = _Watcher(self._health, stream)

    def receive(self, messages: list[tuple[StreamCall, bytes]]) -> None:
        for stream, content in messages:
            stream.admitted(len(content))
            try:
                self._health.begin(stream, _service(content))
            except Malformed as error:
                stream.finish(to_abort(error))

    def ended(self, stream: StreamCall, code: grpc.StatusCode) -> None:
        """Does nothing: health checks are not counted."""

    def closed(self, stream: StreamCall) -> None:
        self._health.end(stream)


class _Watcher:
    """A stream that lasts until its client leaves, as the protocol demands."""

    def __init__(self, health: Health, stream: StreamCall) -> None:
        self._health = health
        self._stream = stream

    def half_closed(self) -> None:
        """Does nothing: a client of one request half-closes at once."""

    def gone(self) -> None:
        self._health.end(self._stream)

    def sent(self) -> None:
        """Does nothing: no bytes are held for a reply."""

    def stalled(self) -> None:
        """Is never called: may_read() always says yes."""


def _content(status: Status) -> bytes:
    return HealthCheckResponse(status=status).SerializeToString()


def _service(content: bytes | None) -> str:
    """The service that the request names. Raises Malformed."""
    try:
        return HealthCheckRequest.FromString(content or b"").service
    except DecodeError as error:
        raise Malformed("not a HealthCheckRequest") from error
