"""The floor of the transport: a bare grpc.aio server that answers with prepared bytes.

`python -m bench.echo REPLY_BYTES [INPUT,HIDDEN,LAYERS,OUTPUT]`: generic handler, no serialiser, no
protobuf; grpcio, event loop, channel arguments and collector settings are `lstmserve serve`'s own.
With a model every message costs one plain run of onnxruntime too, its arguments bound beforehand:
what is left to a server that computes each step when it comes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import grpc
import grpc.aio
import uvloop

from bench.arithmetic import Arithmetic, parse_spec
from lstmserve.config import Config
from lstmserve.server.server import quiet_collector
from lstmserve.server.transport import options

SERVICE, UNARY, STREAM = "bench.Echo", "Unary", "Stream"


async def serve(reply: bytes, compute: Callable[[], object]) -> None:
    """Prints its port, then goes on until it is killed."""

    async def unary(content: bytes, context: object) -> bytes:
        compute()
        return reply

    async def stream(_: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        while await context.read() is not grpc.aio.EOF:
            compute()
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


def main() -> None:
    """By its arguments."""
    reply, *spec = sys.argv[1:]
    compute = Arithmetic(parse_spec(spec[0])).bound_step() if spec else lambda: None
    uvloop.run(serve(bytes(int(reply)), compute))


if __name__ == "__main__":
    main()
