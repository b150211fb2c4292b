"""Owns one open stream whose replies find their requests by tag, by grpc.aio. Never reopens it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic

import grpc
from grpc import aio

from lstmserve.client.calls import Request, Response
from lstmserve.client.lanes import Lanes, crowded
from lstmserve.client.status import closed, ended, from_rpc, in_band, late
from lstmserve.errors import LstmServeError

Start = Callable[[AsyncIterator[Any]], aio.StreamStreamCall[Any, Any]]


class Reply(Generic[Response]):
    """The answer to one posted request. result() or cancel() ends it, always."""

    def __init__(
        self,
        answer: asyncio.Future[Response | LstmServeError],
        timeout_s: float,
        late: Callable[[], LstmServeError],
    ) -> None:
        self._answer = answer
        self._late = late
        self._deadline = answer.get_loop().time() + timeout_s

    async def result(self) -> Response:
        """The reply. Raises LstmServeError, also for an error in band."""
        try:
            async with asyncio.timeout_at(None if self._answer.done() else self._deadline):
                return in_band(await self._answer)
        except TimeoutError:
            raise self._late() from None

    def cancel(self) -> None:
        """Gives up; nothing happens when it is done."""
        self._answer.cancel()


class Exchange(Generic[Request, Response]):
    """Requests out, each with a tag; replies in, in any order. close() it, always.

    It takes a place on a connection, which it gives back when it has ended.
    """

    def __init__(self, lanes: Lanes[aio.Channel], start: Callable[[aio.Channel], Start]) -> None:
        self._tags = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Response | LstmServeError]] = {}
        self._outbox: asyncio.Queue[Request | None] = asyncio.Queue()
        self._end: LstmServeError | None = None
        self._has_reply = False
        self._lanes = lanes
        self._lane = lanes.take()
        try:
            self._call = start(self._lane.channel)(self._requests())
        except BaseException:
            lanes.give(self._lane)
            raise
        self._reader = asyncio.create_task(self._read())

    @property
    def has_ended(self) -> bool:
        """Whether the stream is over, so that nothing posted now can be answered."""
        return self._end is not None

    def post(self, request: Request, timeout_s: float) -> Reply[Response]:
        """Sends `request`, whose tag this sets."""
        tag: int = next(self._tags)
        request.tag = tag  # type: ignore[attr-defined]  # every streamed request has one
        answer = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda _: self._answers.pop(tag, None))
        if self._end is None:
            self._answers[tag] = answer
            self._outbox.put_nowait(request)
        else:
            answer.set_result(self._end)
        return Reply(answer, timeout_s, self._late)

    def _late(self) -> LstmServeError:
        return late() if self._has_reply else crowded(late(), self._lane.streams)

    async def close(self) -> None:
        """Ends the stream; what is unanswered ends as Cancelled."""
        self._call.cancel()
        await asyncio.wait([self._reader])

    async def _requests(self) -> AsyncIterator[Request]:
        while (request := await self._outbox.get()) is not None:
            yield request

    async def _read(self) -> None:
        try:
            async for reply in self._call:
                self._has_reply = True
                if answer := self._answers.pop(reply.tag, None):
                    _settle(answer, reply)
            self._end = ended()
        except grpc.RpcError as error:
            self._end = from_rpc(error)
        except asyncio.CancelledError:
            self._end = closed()
            self._call.cancel()
        finally:
            self._lanes.give(self._lane)
            self._outbox.put_nowait(None)
            for answer in list(self._answers.values()):
                _settle(answer, self._end or closed())


def _settle(
    answer: asyncio.Future[Response | LstmServeError], value: Response | LstmServeError
) -> None:
    """Answers, unless the waiter has given up."""
    if not answer.done():
        answer.set_result(value)
