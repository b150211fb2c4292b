"""`python -m bench.transport.echo REPLY_BYTES`: bench.echo's service on the completion queue."""

from __future__ import annotations

import asyncio
import sys

import grpc
import uvloop

from bench.echo import SERVICE, STREAM, UNARY
from bench.transport import QueueServer, StreamCall, UnaryCall, health
from lstmserve.config import Config
from lstmserve.server.server import quiet_collector
from lstmserve.server.transport import options


class Unary:
    """Answers each call at once."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply

    def receive(self, calls: list[UnaryCall]) -> None:
        """As UnaryMethod.receive."""
        for call in calls:
            call.reply(self._reply)

    def ended(self, call: UnaryCall, code: grpc.StatusCode) -> None:
        """Not counted."""


class Stream:
    """Answers each message of a stream at once."""

    window = 64

    def __init__(self, reply: bytes) -> None:
        self._reply = reply

    def opened(self, stream: StreamCall) -> None:
        """As StreamMethod.opened."""
        stream.conversation = Conversation(stream)

    def receive(self, messages: list[tuple[StreamCall, bytes]]) -> None:
        """As StreamMethod.receive."""
        for stream, _ in messages:
            stream.write(self._reply)

    def ended(self, stream: StreamCall, code: grpc.StatusCode) -> None:
        """Not counted."""

    def closed(self, stream: StreamCall) -> None:
        """Nothing is kept."""


class Conversation:
    """Ends when its client has said all."""

    def __init__(self, stream: StreamCall) -> None:
        self._stream = stream

    def half_closed(self) -> None:
        """As Conversation.half_closed."""
        self._stream.finish()

    def gone(self) -> None:
        """Nothing is kept."""


async def serve(reply: bytes) -> None:
    """Prints its port, then goes on until it is killed."""
    well = health.Health(("", SERVICE))
    well.set_all(is_serving=True)
    server = QueueServer(
        options(Config().resolved([])),
        {f"/{SERVICE}/{UNARY}": Unary(reply), health.CHECK: well.check},
        {f"/{SERVICE}/{STREAM}": Stream(reply), health.WATCH: well.watch},
    )
    port = server.bind("127.0.0.1:0")
    server.start()
    quiet_collector()
    print(port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(serve(bytes(int(sys.argv[1]))))
