"""Serves grpc.reflection.v1alpha on the transport, with the answers of grpcio-reflection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection, reflection_pb2

from lstmserve.engine.errors import Malformed
from lstmserve.server.status import to_abort
from lstmserve.server.transport.stream import StreamCall

INFO: Final = f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"


class Reflection:
    """Serves the only method; it describes the given services and itself."""

    window = 16

    def __init__(self, services: Sequence[str]) -> None:
        self._servicer: Any = reflection.ReflectionServicer((*services, reflection.SERVICE_NAME))

    def may_read(self, stream: StreamCall) -> bool:
        return True

    def opened(self, stream: StreamCall) -> None:
        stream.conversation = _Conversation(stream)

    def receive(self, messages: list[tuple[StreamCall, bytes]]) -> None:
        for stream, content in messages:
            stream.admitted(len(content))
            try:
                for response in self._answers(content):
                    stream.write(response)
            except Malformed as error:
                stream.finish(to_abort(error))

    def _answers(self, content: bytes) -> Iterator[bytes]:
        try:
            request = reflection_pb2.ServerReflectionRequest.FromString(content)
        except DecodeError as error:
            raise Malformed("not a ServerReflectionRequest") from error
        for response in self._servicer.ServerReflectionInfo(iter([request]), None):
            yield response.SerializeToString()

    def ended(self, stream: StreamCall, code: grpc.StatusCode) -> None:
        """Does nothing: these calls are not counted."""

    def closed(self, stream: StreamCall) -> None:
        """Does nothing: a stream leaves nothing behind."""


class _Conversation:
    def __init__(self, stream: StreamCall) -> None:
        self._stream = stream

    def half_closed(self) -> None:
        self._stream.finish()

    def gone(self) -> None:
        """Does nothing: a stream leaves nothing behind."""

    def sent(self) -> None:
        """Does nothing: no bytes are held for a reply."""

    def stalled(self) -> None:
        """Is never called: may_read() always says yes."""
