"""Owns one open stream whose replies find their requests by tag, by grpc. Never reopens it.

Any thread may post; a thread of its own reads. The twin of _aio.exchange.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Generic

import grpc

from lstmserve.client.calls import Request, Response
from lstmserve.client.lanes import Lanes, crowded
from lstmserve.client.status import ended, from_rpc, in_band, late
from lstmserve.errors import LstmServeError

Start = Callable[[Iterator[Any]], Any]  # grpc's stubs do not say that a stream can be cancelled


class Reply(Generic[Response]):
    """The answer to one posted request. result() or cancel() ends it, always."""

    def __init__(
        self,
        answer: Future[Response | LstmServeError],
        timeout_s: float,
        late: Callable[[], LstmServeError],
    ) -> None:
        self._answer = answer
        self._late = late
        self._deadline = time.monotonic() + timeout_s

    def result(self) -> Response:
        """The reply. Raises LstmServeError, also for an error in band."""
        try:
            return in_band(self._answer.result(max(0.0, self._deadline - time.monotonic())))
        except TimeoutError:
            self.cancel()
            raise self._late() from None

    def cancel(self) -> None:
        """Gives up; nothing happens when it is done."""
        self._answer.cancel()


class Exchange(Generic[Request, Response]):
    """Requests out, each with a tag; replies in, in any order. close() it, always.

    It takes a place on a connection, which it gives back when it has ended.
    """

    def __init__(self, lanes: Lanes[grpc.Channel], start: Callable[[grpc.Channel], Start]) -> None:
        self._tags = itertools.count(1)
        self._lock = threading.Lock()
        self._answers: dict[int, Future[Response | LstmServeError]] = {}
        self._outbox: SimpleQueue[Request | None] = SimpleQueue()
        self._end: LstmServeError | None = None
        self._has_reply = False
        self._lanes = lanes
        self._lane = lanes.take()
        try:
            self._call = start(self._lane.channel)(iter(self._outbox.get, None))
        except BaseException:
            lanes.give(self._lane)
            raise
        threading.Thread(target=self._read, name="lstmserve-replies", daemon=True).start()

    @property
    def has_ended(self) -> bool:
        """Whether the stream is over, so that nothing posted now can be answered."""
        return self._end is not None

    def post(self, request: Request, timeout_s: float) -> Reply[Response]:
        """Sends `request`, whose tag this sets."""
        answer: Future[Response | LstmServeError] = Future()
        tag: int = next(self._tags)
        request.tag = tag  # type: ignore[attr-defined]  # every streamed request has one
        answer.add_done_callback(lambda _: self._answers.pop(tag, None))
        with self._lock:  # so that the reader settles either all of it or nothing
            if self._end is None:
                self._answers[tag] = answer
                self._outbox.put(request)
            else:
                answer.set_result(self._end)
        return Reply(answer, timeout_s, self._late)

    def _late(self) -> LstmServeError:
        return late() if self._has_reply else crowded(late(), self._lane.streams)

    def close(self) -> None:
        """Ends the stream; what is unanswered ends as Cancelled, and so does the reader's thread.

        It does not wait for that thread: the garbage collector may end an abandoned stream at any
        moment, also in one at which this thread holds a lock of gRPC's that the reader needs.
        """
        self._call.cancel()

    def _read(self) -> None:
        end = ended()
        try:
            for reply in self._call:
                self._has_reply = True
                if answer := self._answers.get(reply.tag):
                    _settle(answer, reply)
        except grpc.RpcError as error:
            end = from_rpc(error)
        self._lanes.give(self._lane)
        with self._lock:
            self._end = end
            self._outbox.put(None)
        for answer in list(self._answers.values()):
            _settle(answer, end)


def _settle(answer: Future[Response | LstmServeError], value: Response | LstmServeError) -> None:
    """Answers, unless the waiter has given up."""
    if answer.set_running_or_notify_cancel():
        answer.set_result(value)
