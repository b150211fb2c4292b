"""gRPC's bytes in and out, on its completion queue. Alone imports `grpc._cython`; decodes nothing.

One thread polls the queue and hands the event loop lists of what arrived; the loop answers.
"""

from bench.transport.call import UnaryCall
from bench.transport.queue import QueueServer, StreamMethod, UnaryMethod
from bench.transport.stream import Conversation, StreamCall

__all__ = [
    "Conversation",
    "QueueServer",
    "StreamCall",
    "StreamMethod",
    "UnaryCall",
    "UnaryMethod",
]
