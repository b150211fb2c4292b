"""Moves gRPC's bytes in and out, on gRPC's completion queue. It decodes no message.

One thread polls the queue and hands the event loop lists of what arrived; the loop answers. This
folder alone imports `grpc._cython`.
"""

from lstmserve.server.transport.call import UnaryCall, UnaryMethod
from lstmserve.server.transport.queue import QueueServer
from lstmserve.server.transport.stream import Conversation, StreamCall, StreamMethod

__all__ = [
    "Conversation",
    "QueueServer",
    "StreamCall",
    "StreamMethod",
    "UnaryCall",
    "UnaryMethod",
]
