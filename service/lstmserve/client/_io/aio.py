"""gRPC and waiting on one event loop, by grpc.aio. The twin of threads.py, name by name.

Each call is tried once: connection.py repeats calls and reopens streams. No arrays, no shapes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
)
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar

import grpc
from grpc import aio

from lstmserve.client.channels import (
    ChannelPool,
    Endpoint,
    PooledChannel,
    unary_error,
    with_stream_limit,
)
from lstmserve.client.protocol import Method, Request, Response
from lstmserve.client.status import closed, ended, from_rpc, in_band, late
from lstmserve.errors import LstmServeError

T = TypeVar("T")
U = TypeVar("U")
P = ParamSpec("P")
Context = TypeVar("Context", bound=AbstractAsyncContextManager[Any])
Source: TypeAlias = AsyncIterable[T] | Iterable[T]
Start = Callable[[AsyncIterator[Any]], aio.StreamStreamCall[Any, Any]]

mutex = contextlib.nullcontext  # one loop, and no await inside: nothing to lock


class Transport:
    """Connections, made at the first call. After close every call raises Cancelled."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Raises RuntimeError outside of a coroutine."""
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError("AsyncClient belongs to a loop: make it in a coroutine") from None
        self._endpoint = endpoint
        self._pool: ChannelPool[aio.Channel] = ChannelPool(lambda: endpoint.open_channel(aio))
        self._closed = asyncio.Event()
        # A client that is dropped unclosed would leave its streams' tasks behind.
        self._drop = weakref.finalize(self, _drop, self._loop, self._pool)
        self._drop.atexit = False

    def start_call(
        self,
        method: Method[Request, Response],
        request: Request,
        key: str,
        timeout_s: float,
    ) -> PendingCall[Response]:
        """Sends a unary request; `key` is what a router hashes. Raises Cancelled after close."""
        self._check()
        pooled = self._pool.first
        stub = pooled.channel.unary_unary(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        metadata = self._endpoint.metadata(key)
        return PendingCall(stub(request, timeout=timeout_s, metadata=metadata), pooled)

    async def call_once(
        self,
        method: Method[Request, Response],
        request: Request,
        key: str,
        timeout_s: float,
    ) -> Response:
        """A unary call. Raises LstmServeError."""
        return await self.start_call(method, request, key, timeout_s).result()

    def open_stream(
        self, method: Method[Request, Response], key: str
    ) -> TaggedStream[Request, Response]:
        """Opens a stream. Raises Cancelled after close."""
        self._check()
        metadata = self._endpoint.metadata(key)

        def start(channel: aio.Channel) -> Start:
            stub = channel.stream_stream(
                method.path, method.request.SerializeToString, method.response.FromString
            )
            return lambda requests: stub(requests, metadata=metadata)

        return TaggedStream(self._pool, start)

    def _check(self) -> None:
        if self._closed.is_set():
            raise closed()
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("this AsyncClient is of another event loop: make one for each")

    async def pause(self, wait_s: float) -> None:
        """Waits `wait_s`. Raises Cancelled as soon as the client is closed."""
        if not wait_s:
            return
        try:
            async with asyncio.timeout(wait_s):
                await self._closed.wait()
        except TimeoutError:
            return
        raise closed()

    async def close(self) -> None:
        """Ends every call that is under way."""
        self._closed.set()
        self._drop.detach()
        await asyncio.gather(*(channel.close() for channel in self._pool.close()))


def _drop(loop: asyncio.AbstractEventLoop, pool: ChannelPool[aio.Channel]) -> None:
    """Closes the channels on their loop; the garbage collector may call from any thread."""

    def close() -> None:
        for channel in pool.close():
            task = loop.create_task(channel.close(None))
            _closing.add(task)
            task.add_done_callback(_closing.discard)

    if not loop.is_closed():
        loop.call_soon_threadsafe(close)


_closing: set[asyncio.Task[None]] = set()  # a loop holds no reference to its tasks


class PendingCall(Generic[Response]):
    """A unary call under way. The caller always ends it, by result() or cancel()."""

    def __init__(
        self, call: aio.UnaryUnaryCall[Any, Response], pooled: PooledChannel[aio.Channel]
    ) -> None:
        self._call = call
        self._pooled = pooled

    async def result(self) -> Response:
        """The reply. Raises LstmServeError."""
        try:
            return await self._call
        except grpc.RpcError as error:
            raise unary_error(error, self._pooled) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise closed() from None

    def cancel(self) -> None:
        """Gives up; does nothing after the end."""
        self._call.cancel()


class TaggedStream(Generic[Request, Response]):
    """One open stream: each request has a tag, and its reply carries the same, in any order.

    The caller always closes it. It occupies a place on a connection until it has ended, and is
    never reopened.
    """

    def __init__(
        self, pool: ChannelPool[aio.Channel], start: Callable[[aio.Channel], Start]
    ) -> None:
        self._tags = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Response | LstmServeError]] = {}
        self._outbox: asyncio.Queue[Request | None] = asyncio.Queue()
        self._end: LstmServeError | None = None
        self._has_reply = False
        self._pool = pool
        self._pooled = pool.acquire()
        try:
            self._call = start(self._pooled.channel)(self._requests())
        except BaseException:
            pool.release(self._pooled)
            raise
        self._reader = asyncio.create_task(self._read())

    @property
    def has_ended(self) -> bool:
        """Whether the stream is over, so that a request posted now gets no reply."""
        return self._end is not None

    def post(self, request: Request, timeout_s: float) -> PendingReply[Response]:
        """Sends `request` after setting its tag."""
        tag: int = next(self._tags)
        request.tag = tag  # type: ignore[attr-defined]  # every streamed request has one
        answer = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda _: self._answers.pop(tag, None))
        if self._end is None:
            self._answers[tag] = answer
            self._outbox.put_nowait(request)
        else:
            answer.set_result(self._end)
        return PendingReply(answer, timeout_s, self._late)

    def _late(self) -> LstmServeError:
        return late() if self._has_reply else with_stream_limit(late(), self._pooled.streams)

    async def close(self) -> None:
        """Ends the stream; unanswered requests end as Cancelled."""
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
            self._pool.release(self._pooled)
            self._outbox.put_nowait(None)
            for answer in list(self._answers.values()):
                _settle(answer, self._end or closed())


def _settle(
    answer: asyncio.Future[Response | LstmServeError], value: Response | LstmServeError
) -> None:
    """Answers, unless the caller has given up."""
    if not answer.done():
        answer.set_result(value)


class PendingReply(Generic[Response]):
    """The answer to one posted request. The caller always ends it, by result() or cancel()."""

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
        """The reply. Raises LstmServeError, also for an error in the reply itself."""
        try:
            async with asyncio.timeout_at(None if self._answer.done() else self._deadline):
                return in_band(await self._answer)
        except TimeoutError:
            raise self._late() from None

    def cancel(self) -> None:
        """Gives up; does nothing after the end."""
        self._answer.cancel()


class SessionLock:
    """Lets one task at a time step a session, in the order in which they asked."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def acquire(self, timeout_s: float | None) -> None:
        """Waits for the lock; release() it. Raises DeadlineExceeded, with nothing applied."""
        if timeout_s is None or not self._lock.locked():
            await self._lock.acquire()
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._lock.acquire()
        except TimeoutError:
            raise late(applied=False) from None

    def release(self) -> None:
        self._lock.release()


class AwaitableContext(Generic[Context]):
    """A context manager that is opened by `await` or by `async with`, once."""

    def __init__(self, coroutine: Coroutine[Any, Any, Context]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Context]:
        return self._coroutine.__await__()

    async def __aenter__(self) -> Context:
        self._opened = await self._coroutine
        entered: Context = await self._opened.__aenter__()
        return entered

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._opened.__aexit__(kind, error, traceback)


def awaitable_context(
    function: Callable[P, Coroutine[Any, Any, Context]],
) -> Callable[P, AwaitableContext[Context]]:
    """Lets the caller either await or enter what a coroutine opens."""

    @functools.wraps(function)
    def opened(*args: P.args, **kwargs: P.kwargs) -> AwaitableContext[Context]:
        return AwaitableContext(function(*args, **kwargs))

    return opened


async def read_ahead(
    source: Source[T], take: Callable[[T], U], window: int
) -> AsyncGenerator[list[U]]:
    """Yields take(item) of each item, in order: all that are ready, at most `window` at once.

    The source is read while the caller works on earlier items. What the source or `take` raises is
    raised here, after the results before it.
    """
    results: asyncio.Queue[U | _End] = asyncio.Queue(window)
    feeder = asyncio.create_task(_feed(source, take, results))
    try:
        result: U | _End | None = None
        while not isinstance(result, _End):
            ready: list[U] = []
            result = await results.get()
            while not isinstance(result, _End):
                ready.append(result)
                if results.empty() or len(ready) == window:
                    break
                result = results.get_nowait()  # this is the queue's only reader
            if ready:
                yield ready
        if result.error is not None:
            raise result.error
    finally:
        feeder.cancel()
        await asyncio.wait([feeder])


class _End:
    """Follows the last result, with the error that ended the source, if any."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error


async def _feed(
    source: Source[T], take: Callable[[T], U], results: asyncio.Queue[U | _End]
) -> None:
    try:
        async for item in _items(source):
            await results.put(take(item))
    except Exception as error:  # whatever it is, the reader gets it
        await results.put(_End(error))
    else:
        await results.put(_End())


async def _items(source: Source[T]) -> AsyncIterator[T]:
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    else:
        for item in source:
            yield item
