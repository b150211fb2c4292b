"""Owns what differs from grpc.aio in grpc; _aio is its twin, name by name. No shapes here."""

from lstmserve.client._threads.exchange import Exchange, Reply
from lstmserve.client._threads.opening import opening
from lstmserve.client._threads.pump import Source, pump
from lstmserve.client._threads.transport import Pending, Transport, guard
from lstmserve.client._threads.turn import Turn

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
