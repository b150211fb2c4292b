"""Owns which of a client's connections carries a call. Opens connections, makes no call.

A server serves only so many calls of one connection at once (its --streams-max), and gRPC lets the
others wait without a word: streams that stay open would stop every other call of the client. gRPC
does not tell a client that number, so each connection gets a number of streams that any server
allows: RFC 9113 asks for at least 100.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from grpc import RpcError, StatusCode

from lstmserve.client.status import closed, from_rpc
from lstmserve.errors import LstmServeError

Channel = TypeVar("Channel")

STREAMS_MAX: Final = 64  # of one connection; there is room for unary calls beside them


class Lane(Generic[Channel]):
    """One connection, and how many streams of this client are open on it."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.streams = 0


class Lanes(Generic[Channel]):
    """The connections of one client; any thread may call. `open` makes one more."""

    def __init__(self, open: Callable[[], Channel]) -> None:  # noqa: A002  # what it does
        self._open = open
        self._guard = threading.RLock()  # the collector may close in a thread that holds it
        self._is_closed = False
        self.first = Lane(open())  # unary calls go by this one
        self._lanes = [self.first]

    def take(self) -> Lane[Channel]:
        """The first connection with room for a stream; give() it back. Raises Cancelled."""
        with self._guard:
            if self._is_closed:
                raise closed()
            lane = next((each for each in self._lanes if each.streams < STREAMS_MAX), None)
            if lane is None:
                lane = Lane(self._open())
                self._lanes.append(lane)
            lane.streams += 1
            return lane

    def give(self, lane: Lane[Channel]) -> None:
        """The stream has ended. Its connection stays: there may be as many streams again."""
        with self._guard:
            lane.streams -= 1

    def close(self) -> list[Channel]:
        """The connections, which the caller closes; there is none from now on."""
        with self._guard:
            self._is_closed = True
            return [lane.channel for lane in self._lanes]


def crowded(error: LstmServeError, streams: int) -> LstmServeError:
    """The error of a call that got no reply in time beside `streams` open ones."""
    if streams:
        error.message += (
            f"; {streams} streams of this client are open on the connection, and a server lets "
            "calls wait that are more than its --streams-max"
        )
    return error


def refused(error: RpcError, lane: Lane[Channel]) -> LstmServeError:
    """The error of a unary call on that connection."""
    found = from_rpc(error)
    if found.code is StatusCode.DEADLINE_EXCEEDED and not found.reason:
        return crowded(found, lane.streams)
    return found
