"""gRPC and waiting for threads, by grpc. The twin of aio.py, name by name; any thread may call.

Each call is tried once: connection.py repeats calls and reopens streams. No arrays, no shapes.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar

import grpc

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
Function = TypeVar("Function", bound=Callable[..., object])
Source: TypeAlias = Iterable[T]
Start = Callable[[Iterator[Any]], Any]  # grpc's stubs do not say that a stream can be cancelled

mutex = threading.Lock


class Transport:
    """Connections, made at the first call. After close every call raises Cancelled."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._pool: ChannelPool[grpc.Channel] = ChannelPool(lambda: endpoint.open_channel(grpc))
        self._closed = threading.Event()
        # A client that is dropped unclosed would leave its streams' threads behind.
        weakref.finalize(self, _drop, self._pool).atexit = False

    @property
    def is_closed(self) -> bool:
        """Whether close() was called."""
        return self._closed.is_set()

    @property
    def pooled(self) -> PooledChannel[grpc.Channel]:
        """The connection of the unary calls."""
        return self._pool.first

    def start_call(
        self,
        method: Method[Request, Response],
        request: Request,
        key: str,
        timeout_s: float,
    ) -> PendingCall[Response]:
        """Sends a unary request; `key` is what a router hashes. Raises Cancelled after close."""
        stub = self._stub(method)
        metadata = self._endpoint.metadata(key)
        with _errors(self):
            return PendingCall(stub.future(request, timeout=timeout_s, metadata=metadata), self)

    def call_once(
        self,
        method: Method[Request, Response],
        request: Request,
        key: str,
        timeout_s: float,
    ) -> Response:
        """A unary call, cheaper than start_call and result. Raises LstmServeError."""
        stub = self._stub(method)
        with _errors(self):
            return stub(request, timeout=timeout_s, metadata=self._endpoint.metadata(key))

    def _stub(
        self, method: Method[Request, Response]
    ) -> grpc.UnaryUnaryMultiCallable[Request, Response]:
        if self.is_closed:
            raise closed()
        return self.pooled.channel.unary_unary(
            method.path, method.request.SerializeToString, method.response.FromString
        )

    def open_stream(
        self, method: Method[Request, Response], key: str
    ) -> TaggedStream[Request, Response]:
        """Opens a stream. Raises Cancelled after close."""
        if self.is_closed:
            raise closed()
        metadata = self._endpoint.metadata(key)

        def start(channel: grpc.Channel) -> Start:
            stub = channel.stream_stream(
                method.path, method.request.SerializeToString, method.response.FromString
            )
            return lambda requests: stub(requests, metadata=metadata)

        with _errors(self):
            return TaggedStream(self._pool, start)

    def pause(self, wait_s: float) -> None:
        """Waits `wait_s`. Raises Cancelled as soon as the client is closed."""
        if wait_s and self._closed.wait(wait_s):
            raise closed()

    def close(self) -> None:
        """Ends every call that is under way."""
        self._closed.set()
        _drop(self._pool)


def _drop(pool: ChannelPool[grpc.Channel]) -> None:
    for channel in pool.close():
        channel.close()


@contextmanager
def _errors(transport: Transport) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise unary_error(error, transport.pooled) from None
    except grpc.FutureCancelledError:
        raise closed() from None
    except ValueError:  # grpc raises it for a channel that another thread has just closed
        if not transport.is_closed:
            raise
        raise closed() from None


class PendingCall(Generic[Response]):
    """A unary call under way. The caller always ends it, by result() or cancel()."""

    def __init__(self, call: Any, transport: Transport) -> None:  # grpc's stubs do not name it
        self._call = call
        self._transport = transport

    def result(self) -> Response:
        """The reply. Raises LstmServeError."""
        with _errors(self._transport):
            response: Response = self._call.result()
            return response

    def cancel(self) -> None:
        """Gives up; does nothing after the end."""
        self._call.cancel()


class TaggedStream(Generic[Request, Response]):
    """One open stream: each request has a tag, and its reply carries the same, in any order.

    The caller always closes it. It occupies a place on a connection until it has ended, and is
    never reopened. Any thread may post; a thread of its own reads.
    """

    def __init__(
        self, pool: ChannelPool[grpc.Channel], start: Callable[[grpc.Channel], Start]
    ) -> None:
        self._tags = itertools.count(1)
        self._lock = threading.Lock()
        self._answers: dict[int, Future[Response | LstmServeError]] = {}
        self._outbox: SimpleQueue[Request | None] = SimpleQueue()
        self._end: LstmServeError | None = None
        self._has_reply = False
        self._pool = pool
        self._pooled = pool.acquire()
        try:
            self._call = start(self._pooled.channel)(iter(self._outbox.get, None))
        except BaseException:
            pool.release(self._pooled)
            raise
        threading.Thread(target=self._read, name="lstmserve-replies", daemon=True).start()

    @property
    def has_ended(self) -> bool:
        """Whether the stream is over, so that a request posted now gets no reply."""
        return self._end is not None

    def post(self, request: Request, timeout_s: float) -> PendingReply[Response]:
        """Sends `request` after setting its tag."""
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
        return PendingReply(answer, timeout_s, self._late)

    def _late(self) -> LstmServeError:
        return late() if self._has_reply else with_stream_limit(late(), self._pooled.streams)

    def close(self) -> None:
        """Ends the stream and its thread; unanswered requests end as Cancelled.

        It does not wait for the thread: the garbage collector may end an abandoned stream at any
        moment, also while this thread holds a lock of gRPC's that the reader needs.
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
        self._pool.release(self._pooled)
        with self._lock:
            self._end = end
            self._outbox.put(None)
        for answer in list(self._answers.values()):
            _settle(answer, end)


def _settle(answer: Future[Response | LstmServeError], value: Response | LstmServeError) -> None:
    """Answers, unless the caller has given up."""
    if answer.set_running_or_notify_cancel():
        answer.set_result(value)


class PendingReply(Generic[Response]):
    """The answer to one posted request. The caller always ends it, by result() or cancel()."""

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
        """The reply. Raises LstmServeError, also for an error in the reply itself."""
        try:
            return in_band(self._answer.result(max(0.0, self._deadline - time.monotonic())))
        except TimeoutError:
            self.cancel()
            raise self._late() from None

    def cancel(self) -> None:
        """Gives up; does nothing after the end."""
        self._answer.cancel()


class SessionLock:
    """Lets one thread at a time step a session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def acquire(self, timeout_s: float | None) -> None:
        """Waits for the lock; release() it. Raises DeadlineExceeded, with nothing applied."""
        if not self._lock.acquire(timeout=-1 if timeout_s is None else timeout_s):
            raise late(applied=False)

    def release(self) -> None:
        self._lock.release()


def awaitable_context(function: Function) -> Function:
    """Returns the function: for threads, what it opens is a context manager already."""
    return function


def read_ahead(source: Source[T], take: Callable[[T], U], window: int) -> Generator[list[U]]:
    """Yields take(item) of each item, in order: all that are ready, at most `window` at once.

    A thread reads the source while the caller works on earlier items. What the source or `take`
    raises is raised here, after the results before it. However the caller leaves, the thread ends;
    where the source blocks, as soon as the source goes on.
    """
    feed = _Feed(source, take, window)
    try:
        while ready := feed.read():
            yield ready
        if feed.error is not None:
            raise feed.error
    finally:
        feed.stop()


class _Feed(Generic[T, U]):
    """The thread that reads the source. It is a daemon, as a source may block for ever."""

    def __init__(self, source: Iterable[T], take: Callable[[T], U], window: int) -> None:
        self._source = source
        self._take = take
        self._window = window
        self._ready: list[U] = []
        self._is_over = False  # the source ended, or the reader left
        self._changed = threading.Condition()
        self.error: BaseException | None = None  # what ended the source, set once read() gives []
        threading.Thread(target=self._run, name="lstmserve-feed", daemon=True).start()

    def read(self) -> list[U]:
        """Waits for results and returns all that are ready, [] after the last one."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._is_over)
            ready, self._ready = self._ready, []
            self._changed.notify_all()
            return ready

    def stop(self) -> None:
        """The reader leaves: the thread reads no further item, and does not wait for room."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._source:
                if not self._put(item):
                    return
        except BaseException as raised:  # whatever it is, the reader gets it
            error = raised
        with self._changed:
            self.error = error
            self._is_over = True
            self._changed.notify_all()

    def _put(self, item: T) -> bool:
        """Whether the reader still wants more."""
        if self._is_over:
            return False
        result = self._take(item)
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready) < self._window or self._is_over)
            self._ready.append(result)
            self._changed.notify_all()
            return not self._is_over
