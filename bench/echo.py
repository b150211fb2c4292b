"""The floor of the transport: a bare grpc.aio server that answers with prepared bytes.

`python -m bench.echo REPLY_BYTES`: generic handler, no serialiser, no protobuf, no model; the same
grpcio, event loop, channel arguments and collector settings as `lstmserve serve`.
"""

from __future__ import annotations

import sys

import grpc
import grpc.aio
import uvloop

from lstmserve.config import Config
from lstmserve.server.server import quiet_collector
from lstmserve.server.transport import options

SERVICE, UNARY, STREAM = "bench.Echo", "Unary", "Stream"


async def serve(reply: bytes) -> None:
    """Prints its port, then goes on until it is killed."""

    async def unary(content: bytes, context: object) -> bytes:
        return reply

    async def stream(_: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        while await context.read() is not grpc.aio.EOF:
            await context.write(reply)

    server = grpc.aio.server(options=options(Config().resolved([])))
    methods = {
        UNARY: grpc.unary_unary_rpc_method_handler(unary),
        STREAM: grpc.stream_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    quiet_collector()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(bytes(int(sys.argv[1]))))
