"""The floor of the transport: the server's own transport, with prepared replies.

`python -m bench.echo REPLY_BYTES [INPUT,HIDDEN,LAYERS,OUTPUT]` has no protobuf and no engine;
grpcio, event loop, channel arguments and garbage collector are those of `lstmserve serve`. With a
model, every message also costs one plain run of onnxruntime with arguments that are bound before:
the least that a server needs if it computes each step on arrival.
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
        return True

    def receive(self, calls: list[UnaryCall]) -> None:
        """Answers one call after the other."""
        for call in calls:
            self._compute()
            call.reply(self._reply)

    def ended(self, call: UnaryCall, code: grpc.StatusCode) -> None:
        """Does nothing: these calls are not counted."""


class Stream:
    """Answers each message of a stream at once."""

    window = 64

    def __init__(self, reply: bytes, compute: Callable[[], object]) -> None:
        self._reply = reply
        self._compute = compute

    def may_read(self, stream: StreamCall) -> bool:
        return True

    def opened(self, stream: StreamCall) -> None:
        """Starts a conversation that ends when its client sends no more."""
        stream.conversation = Conversation(stream)

    def receive(self, messages: list[tuple[StreamCall, bytes]]) -> None:
        """Answers one message after the other."""
        for stream, content in messages:
            stream.admitted(len(content))
            self._compute()
            stream.write(self._reply)

    def ended(self, stream: StreamCall, code: grpc.StatusCode) -> None:
        """Does nothing: these calls are not counted."""

    def closed(self, stream: StreamCall) -> None:
        """Does nothing: a stream leaves nothing behind."""


class Conversation:
    """The conversation of one stream."""

    def __init__(self, stream: StreamCall) -> None:
        self._stream = stream

    def half_closed(self) -> None:
        """Ends the stream."""
        self._stream.finish()

    def gone(self) -> None:
        """Does nothing: a stream leaves nothing behind."""

    def sent(self) -> None:
        """Does nothing: no bytes are held for a reply."""

    def stalled(self) -> None:
        """Is never called: may_read() always says yes."""


async def serve(reply: bytes, compute: Callable[[], object]) -> None:
    """Prints its port, and serves until it is killed."""
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
    """Serves what the command line names."""
    reply, *spec = sys.argv[1:]
    compute = Arithmetic(parse_spec(spec[0])).bound_step() if spec else lambda: None
    uvloop.run(serve(bytes(int(reply)), compute))


if __name__ == "__main__":
    main()
