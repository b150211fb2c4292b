"""The transport alone, over the wire: what it reads and when, how calls and servers end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog

from lstmserve.config import Config
from lstmserve.server.status import Abort
from lstmserve.server.transport import QueueServer, StreamCall, UnaryCall
from lstmserve.server.transport.arguments import options
from lstmserve.server.transport.arrivals import Arrivals
from lstmserve.server.transport.call import deadline_ns
from lstmserve.server.transport.health import WATCH, Health
from lstmserve.server.transport.stream import READ_AHEAD_BYTES

UNARY, STREAM = "/test.Test/Unary", "/test.Test/Stream"
MESSAGE_BYTES_MAX = 1 << 20
STREAMS_MAX = 8
DEADLINE_S = 30
NOTHING = Abort(grpc.StatusCode.INVALID_ARGUMENT, "no message", ())


class Unary:
    """A UnaryMethod that keeps its calls, or answers each with its message."""

    def __init__(self) -> None:
        self.is_vacant = True
        self.answers = True
        self.calls: list[UnaryCall] = []
        self.ends: list[grpc.StatusCode] = []

    def may_read(self, call: UnaryCall) -> bool:
        """Returns what the test has set."""
        return self.is_vacant

    def receive(self, calls: list[UnaryCall]) -> None:
        """Keeps the calls, or answers them."""
        self.calls += calls
        for call in calls:
            if call.content == b"a bug":
                raise RuntimeError("a bug")
            if call.content is None and not call.is_unread:
                call.abort(NOTHING)
            elif self.answers:
                call.reply(call.take())

    def ended(self, call: UnaryCall, code: grpc.StatusCode) -> None:
        """Notes the end."""
        self.ends.append(code)


class Stream:
    """A StreamMethod that keeps its messages, and does with each stream what the test has set."""

    window = 8

    def __init__(self) -> None:
        self.is_vacant = True
        self.admits = True
        self.streams: list[StreamCall] = []
        self.messages: list[bytes] = []
        self.heard: list[str] = []

    def may_read(self, stream: StreamCall) -> bool:
        """Returns what the test has set."""
        return self.is_vacant

    def opened(self, stream: StreamCall) -> None:
        """Makes itself the stream's conversation."""
        stream.conversation = self
        self.streams.append(stream)

    def receive(self, messages: list[tuple[StreamCall, bytes]]) -> None:
        """Keeps the messages."""
        for stream, content in messages:
            self.messages.append(content)
            if self.admits:
                stream.admitted(len(content))

    def ended(self, stream: StreamCall, code: grpc.StatusCode) -> None:
        """Notes the end."""
        self.heard.append(f"ended {code.name}")

    def closed(self, stream: StreamCall) -> None:
        """Notes it."""
        self.heard.append("closed")

    def ends(self) -> int:
        """How many streams are over on the wire."""
        return self.heard.count("closed")

    def half_closed(self) -> None:
        """Notes it, and ends the stream."""
        self.heard.append("half-closed")
        self.streams[-1].finish()

    def gone(self) -> None:
        """Notes it."""
        self.heard.append("gone")

    def sent(self) -> None:
        """Notes it."""
        self.heard.append("sent")

    def stalled(self) -> None:
        """Notes it."""
        self.heard.append("stalled")


class Running:
    """A server of these methods, and a channel to it."""

    def __init__(self) -> None:
        self.unary, self.stream, self.health = Unary(), Stream(), Health(("", "a"))
        self.server = QueueServer(
            options(Config(message_bytes_max=MESSAGE_BYTES_MAX, streams_max=STREAMS_MAX)),
            {UNARY: self.unary},
            {STREAM: self.stream, WATCH: self.health.watch},
        )
        self.port = self.server.bind("127.0.0.1:0")
        self.server.start()
        self.channel: grpc.aio.Channel

    async def call(self, content: bytes) -> bytes:
        """Makes a unary call."""
        reply: bytes = await self.channel.unary_unary(UNARY)(content, timeout=DEADLINE_S)
        return reply


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    """A server with these methods, and a channel to it."""
    running = Running()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        running.channel = channel
        yield running
    await running.server.stop(0)


async def until(is_so: Callable[[], object]) -> None:
    """Passes the loop until `is_so()`; a test that waits in vain ends by its timeout."""
    while not is_so():  # noqa: ASYNC110 -- what is waited for is another thread's
        await asyncio.sleep(0)


async def code_of(call: Any) -> grpc.StatusCode:
    """How the call ended, without another message."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        if isinstance(call, grpc.aio.StreamStreamCall):
            assert await call.read() is grpc.aio.EOF
        else:
            await call
    code: grpc.StatusCode = await call.code()
    return code


@pytest.mark.parametrize("path", ["/test.Test/Other", "/other.Service/Unary", "/x"])
async def test_a_method_that_is_not_served_is_unimplemented(running: Running, path: str) -> None:
    """Unary or streamed, with or without a message, it is UNIMPLEMENTED, and the next call is
    answered."""
    channel, stream = running.channel, running.channel.stream_stream(path)
    calls = [channel.unary_unary(path)(b"x", timeout=DEADLINE_S), stream(timeout=DEADLINE_S)]
    for call in calls:
        assert await code_of(call) is grpc.StatusCode.UNIMPLEMENTED
    assert await running.call(b"x") == b"x"


async def test_a_call_that_ends_without_a_message(running: Running) -> None:
    """The method gets the call without content, and the client gets the method's answer."""
    call = running.channel.stream_unary(UNARY)(iter(()), timeout=DEADLINE_S)
    assert await code_of(call) is grpc.StatusCode.INVALID_ARGUMENT
    assert [call.content for call in running.unary.calls] == [b""]  # it was taken at the end
    assert await running.call(b"x") == b"x"


async def test_a_message_that_is_too_long(running: Running) -> None:
    """gRPC refuses it, no method sees it, and the next message on the connection is answered."""
    assert await running.call(bytes(MESSAGE_BYTES_MAX)) == bytes(MESSAGE_BYTES_MAX)
    call = running.channel.unary_unary(UNARY)(bytes(MESSAGE_BYTES_MAX + 1), timeout=DEADLINE_S)
    assert await code_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
    await until(lambda: len(running.unary.ends) == 2)
    assert running.unary.ends[1] is grpc.StatusCode.CANCELLED
    assert len(running.unary.calls) == 1
    assert await running.call(b"x") == b"x"


async def test_a_message_is_not_read_before_it_may_be(running: Running) -> None:
    """The method gets the call without its message, and after read() once more, with it."""
    running.unary.is_vacant = running.unary.answers = False
    call = running.channel.stream_unary(UNARY)(timeout=DEADLINE_S)
    await until(lambda: running.unary.calls)  # and nothing has been sent yet
    first = running.unary.calls[0]
    assert first.is_unread
    assert first.content is None
    await call.write(b"x")
    await call.done_writing()
    running.unary.answers = True
    first.read()
    assert await call == b"x"
    assert running.unary.calls == [first, first]


async def test_a_call_can_be_refused_unread(running: Running) -> None:
    """The client gets the error although it has sent no message."""
    running.unary.is_vacant = running.unary.answers = False
    call = running.channel.stream_unary(UNARY)(timeout=DEADLINE_S)
    await until(lambda: running.unary.calls)
    running.unary.calls[0].abort(NOTHING)
    assert await code_of(call) is grpc.StatusCode.INVALID_ARGUMENT


async def test_who_leaves_is_told_once(running: Running) -> None:
    """on_gone() is called for a call that its client cancelled, and its answer is dropped."""
    running.unary.answers = False
    call = running.channel.unary_unary(UNARY)(b"x", timeout=DEADLINE_S)
    await until(lambda: running.unary.calls)
    (arrived,) = running.unary.calls
    gone: list[str] = []
    arrived.on_gone = lambda: gone.append("gone")
    call.cancel()
    await until(lambda: arrived.is_over)
    arrived.reply(b"late")
    arrived.abort(NOTHING)
    assert gone == ["gone"]
    assert running.unary.ends == [grpc.StatusCode.CANCELLED]


async def test_an_overdue_call_is_ended(running: Running) -> None:
    """The client gets DEADLINE_EXCEEDED, and for the method the client has gone."""
    running.unary.answers = False
    call = running.channel.unary_unary(UNARY)(b"x", timeout=0.1)
    await until(lambda: running.unary.calls)
    left_ns = (running.unary.calls[0].deadline_ns or 0) - time.monotonic_ns()
    assert left_ns < 100_000_000
    assert await code_of(call) is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: running.unary.ends == [grpc.StatusCode.CANCELLED])


def test_a_deadline_is_on_the_monotonic_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC's deadline is in wall-clock time and far away for none, and a later jump of that clock
    does not move ours."""
    details = SimpleNamespace(deadline=time.time() + 5)
    found = deadline_ns(details)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert found is not None
    assert 4e9 < found - time.monotonic_ns() <= 5e9
    assert deadline_ns(SimpleNamespace(deadline=9.2e18)) is None


async def test_a_bug_in_one_method_ends_no_other_call(running: Running) -> None:
    """The error is logged, and everything else goes on."""
    with structlog.testing.capture_logs() as logged:
        broken = running.channel.unary_unary(UNARY)(b"a bug", timeout=DEADLINE_S)
        await until(lambda: running.unary.calls)
        assert await running.call(b"x") == b"x"
        await until(lambda: logged)
    broken.cancel()
    assert [line["log_level"] for line in logged] == ["error"]


async def test_a_stream_is_read_as_far_as_its_replies_are_taken(running: Running) -> None:
    """At most `window` messages are read without a reply, and each reply that is taken lets one
    more in."""
    stream = running.channel.stream_stream(STREAM)(timeout=DEADLINE_S)
    for _ in range(3 * Stream.window):
        await stream.write(b"x")
    await until(lambda: len(running.stream.messages) == Stream.window)
    await settled(running)
    assert len(running.stream.messages) == Stream.window
    running.stream.streams[0].write(b"y")
    assert await stream.read() == b"y"
    await until(lambda: len(running.stream.messages) == Stream.window + 1)
    stream.cancel()


async def settled(running: Running) -> None:
    """Waits until the server has read what it would still read: it answers calls that came
    later."""
    for _ in range(5):
        await running.call(b"x")


async def test_a_stream_is_not_read_ahead_of_the_bytes_that_were_admitted(
    running: Running,
) -> None:
    """After READ_AHEAD_BYTES it waits, however many messages those are, and admitted() lets one
    more in."""
    running.stream.admits = False
    half = bytes(READ_AHEAD_BYTES // 2)
    stream = running.channel.stream_stream(STREAM)(timeout=DEADLINE_S)
    for _ in range(4):
        await stream.write(half)
    await until(lambda: len(running.stream.messages) == 2)
    await settled(running)
    assert len(running.stream.messages) == 2
    running.stream.streams[0].admitted(len(half))
    await until(lambda: len(running.stream.messages) == 3)
    stream.cancel()


async def test_a_stream_that_may_not_be_read_stalls(running: Running) -> None:
    """It stalls once, reads one message when it is asked to, and stalls again."""
    running.stream.is_vacant = False
    stream = running.channel.stream_stream(STREAM)(timeout=DEADLINE_S)
    await stream.write(b"1")
    await stream.write(b"2")
    for count in (1, 2):
        await until(lambda count=count: running.stream.heard == count * ["stalled"])  # type: ignore[misc]  # mypy does not infer it
        await settled(running)
        assert len(running.stream.messages) == count - 1
        running.stream.streams[0].read_on()
        await until(lambda count=count: len(running.stream.messages) == count)  # type: ignore[misc]  # as above
    stream.cancel()


async def test_every_reply_is_told_as_sent(running: Running) -> None:
    """Each reply is reported as sent, even on a stream without other events, and then comes its
    end."""
    stream = running.channel.stream_stream(STREAM)(timeout=DEADLINE_S)
    await until(lambda: running.stream.streams)
    for _ in range(3):
        running.stream.streams[0].write(b"y")
        assert await stream.read() == b"y"
    await until(lambda: running.stream.heard == 3 * ["sent"])
    await stream.done_writing()
    assert await code_of(stream) is grpc.StatusCode.OK
    await until(lambda: running.stream.heard[3:] == ["half-closed", "ended OK", "closed"])


async def test_replies_that_are_not_read_wait_in_one_write(running: Running) -> None:
    """The age of the current write shows it, and a cut ends the stream and drops the others."""
    narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 5)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}", narrow) as channel:
        stream = channel.stream_stream(STREAM)(timeout=DEADLINE_S)
        await until(lambda: running.stream.streams)
        (arrived,) = running.stream.streams
        for _ in range(3):
            arrived.write(bytes(MESSAGE_BYTES_MAX))
        begin_ns = time.monotonic_ns()
        await settled(running)
        assert arrived.unread_ns(time.monotonic_ns()) >= time.monotonic_ns() - begin_ns > 0
        arrived.cut()
        await until(running.stream.ends)
        assert running.stream.heard[-1] == "closed"
        assert "gone" in running.stream.heard
        stream.cancel()


async def test_a_watcher_who_leaves_silences_no_other(running: Running) -> None:
    """Of three watchers of a service one leaves, and the others still get NOT_SERVING."""
    name = b"\x0a\x01a"
    watchers = [running.channel.unary_stream(WATCH)(name, timeout=DEADLINE_S) for _ in range(3)]
    serving, not_serving = b"\x08\x01", b"\x08\x02"
    for watcher in watchers:
        assert await watcher.read() == not_serving
    running.health.set_all(is_serving=True)
    for watcher in watchers:
        assert await watcher.read() == serving
    watchers.pop(0).cancel()
    await settled(running)
    running.health.set_all(is_serving=False)
    for watcher in watchers:
        assert await watcher.read() == not_serving
        watcher.cancel()


def test_who_has_gone_is_asked_before_who_sends_no_more() -> None:
    """Cancellations run before half-closes, openings first, then messages in one list per method,
    then sent replies."""
    arrivals, heard = Arrivals(), list[str]()

    class Method:
        def receive(self, messages: list[int]) -> None:
            heard.append(f"messages {messages}")

    def says(word: str) -> Callable[[], None]:
        return lambda: heard.append(word)

    arrivals.half_closes.append(says("half-closed"))
    arrivals.endings.append(says("gone"))
    arrivals.notices.append(says("sent"))
    method = Method()
    arrivals.messages += [(method, 1), (method, 2)]
    arrivals.openings.append(says("opened"))
    arrivals.deliver()
    assert heard == ["opened", "messages [1, 2]", "sent", "gone", "half-closed"]
    assert not arrivals.is_due


async def test_an_ok_that_reached_no_client_is_a_cancellation(running: Running) -> None:
    """A stream that is finished after its client has left, before the loop knows, is not OK."""
    stream = running.channel.stream_stream(STREAM)(timeout=DEADLINE_S)
    await until(lambda: running.stream.streams)
    stream.cancel()
    while not running.server._arrivals.endings:  # without a turn of the loop, which would run it
        pass
    running.stream.streams[0].finish()
    await until(running.stream.ends)
    assert running.stream.heard == ["ended CANCELLED", "closed"]


async def test_calls_that_are_over_count_no_more(running: Running) -> None:
    """A connection has room for as many calls as it may, even if ended ones are still
    referenced."""
    for _ in range(3):
        streams = [running.channel.stream_stream(STREAM)(timeout=DEADLINE_S) for _ in range(4)]
        for stream in streams:
            await stream.write(b"x")
        calls = [running.call(b"x") for _ in range(4)]
        assert await asyncio.gather(*calls) == 4 * [b"x"]
        for stream in streams:
            stream.cancel()
        await until(lambda: running.stream.ends() == len(running.stream.streams))
    assert len(running.stream.streams) == 12
    assert len(running.unary.calls) == 12


async def test_a_server_stops_once_and_what_is_under_way_has_the_grace() -> None:
    """New calls are refused, old ones are answered, and a second stop waits for the first."""
    running = Running()
    running.unary.answers = False
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        call = channel.unary_unary(UNARY)(b"x", timeout=DEADLINE_S)
        await until(lambda: running.unary.calls)
        stops = [asyncio.create_task(running.server.stop(DEADLINE_S)) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(stop.done() for stop in stops)
        running.unary.calls[0].reply(b"y")
        assert await call == b"y"
        await asyncio.gather(*stops)
    await running.server.stop(0)


async def test_after_the_grace_calls_are_cut() -> None:
    """Clients and methods of unary calls and streams learn that they were cut."""
    running = Running()
    running.unary.answers = False
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        call = channel.unary_unary(UNARY)(b"x", timeout=DEADLINE_S)
        stream = channel.stream_stream(STREAM)(timeout=DEADLINE_S)
        await until(lambda: running.unary.calls and running.stream.streams)
        await running.server.stop(0)
        for each in (call, stream):
            assert await each.code() is not grpc.StatusCode.OK
    assert running.unary.ends == [grpc.StatusCode.CANCELLED]
    assert running.stream.heard == ["ended CANCELLED", "gone", "closed"]


async def test_a_server_that_never_started_can_be_stopped() -> None:
    """Bound or not, its port is free afterwards."""
    server = QueueServer(options(Config(message_bytes_max=4096)), {}, {})
    port = server.bind("127.0.0.1:0")
    await server.stop(0)
    other = QueueServer(options(Config(message_bytes_max=4096)), {}, {})
    assert other.bind(f"127.0.0.1:{port}") == port
    await other.stop(0)


async def test_a_port_that_is_taken_is_none(running: Running) -> None:
    """The second server on the port gets 0."""
    other = QueueServer(options(Config(message_bytes_max=4096)), {}, {})
    assert other.bind(f"127.0.0.1:{running.port}") == 0
    await other.stop(0)
