"""Owns what differs from grpc in grpc.aio; _threads is its twin, name by name. No shapes here."""

from lstmserve.client._aio.exchange import Exchange, Reply
from lstmserve.client._aio.opening import opening
from lstmserve.client._aio.pump import Source, pump
from lstmserve.client._aio.transport import Pending, Transport, guard
from lstmserve.client._aio.turn import Turn

__all__ = [
    "Exchange",
    "Pending",
    "Reply",
    "Source",
    "Transport",
    "Turn",
    "guard",
    "opening",
    "pump",
]
