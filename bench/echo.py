"""The floor of the transport: the server's own, with prepared bytes for answers.

`python -m bench.echo REPLY_BYTES [INPUT,HIDDEN,LAYERS,OUTPUT]`: no protobuf, no engine; grpcio,
event loop, channel arguments and collector settings are `lstmserve serve`'s own. With a model every
message costs one plain run of onnxruntime too, its arguments bound beforehand: what is left to a
server that computes each step when it comes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import grpc
import uvloop

from bench.arithmetic import Arithmetic, parse_spec
from lstmserve.config import Config
from lstmserve.server.server import quiet_collector
from lstmserve.server.transport import QueueServer, StreamCall, UnaryCall
from lstmserve.server.transport.arguments import options

SERVICE, UNARY, STREAM = "bench.Echo", "Unary", "Stream"


class Unary:
    """Answers each call at once."""

    def __init__(self, reply: bytes, compute: Callable[[], object]) -> None:
        self._reply = reply
        self._compute = compute

    def may_read(self, call: UnaryCall) -> bool:
        """Always."""
        return True

    def receive(self, calls: list[UnaryCall]) -> None:
        """One after the other."""
        for call in calls:
            self._compute()
            call.reply(self._reply)

    def ended(self, call: UnaryCall, code: grpc.StatusCode) -> None:
        """Not counted."""


class Stream:
    """Answers each message of a stream at once."""

    window = 64

    def __init__(self, reply: bytes, compute: Callable[[], object]) -> None:
        self._reply = reply
        self._compute = compute

    def may_read(self, stream: StreamCall) -> bool:
        """Always."""
        return True

    def opened(self, stream: StreamCall) -> None:
        """It ends when its client has said all."""
        stream.conversation = Conversation(stream)

    def receive(self, messages: list[tuple[StreamCall, bytes]]) -> None:
        """One after the other."""
        for stream, content in messages:
            stream.admitted(len(content))
            self._compute()
            stream.write(self._reply)

    def ended(self, stream: StreamCall, code: grpc.StatusCode) -> None:
        """Not counted."""

    def closed(self, stream: StreamCall) -> None:
        """Nothing is kept."""


class Conversation:
    """Of one stream."""

    def __init__(self, stream: StreamCall) -> None:
        self._stream = stream

    def half_closed(self) -> None:
        """Ends it."""
        self._stream.finish()

    def gone(self) -> None:
        """Nothing is kept."""

    def sent(self) -> None:
        """Nothing is kept."""

    def stalled(self) -> None:
        """Never."""


async def serve(reply: bytes, compute: Callable[[], object]) -> None:
    """Prints its port, then goes on until it is killed."""
    server = QueueServer(
        options(Config().resolved([])),
        {f"/{SERVICE}/{UNARY}": Unary(reply, compute)},
        {f"/{SERVICE}/{STREAM}": Stream(reply, compute)},
    )
    port = server.bind("127.0.0.1:0")
    server.start()
    quiet_collector()
    print(port, flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """By its arguments."""
    reply, *spec = sys.argv[1:]
    compute = Arithmetic(parse_spec(spec[0])).bound_step() if spec else lambda: None
    uvloop.run(serve(bytes(int(reply)), compute))


if __name__ == "__main__":
    main()
