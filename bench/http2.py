"""One HTTP/2 connection of a load: it sends prepared gRPC messages and counts whole answers.

It speaks just enough of RFC 9113 to cost next to nothing: it makes the header block of a call once,
and does not read the answers' headers. h2load has one body for all its requests; a numbered step
needs another one each time.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK = END_STREAM = 1
END_HEADERS = 4
INITIAL_WINDOW_SIZE = 4
FRAME_BYTES_MAX = 16_384
WINDOW_DEFAULT, WINDOW_MAX = 65_535, 2**31 - 1
RECEIVE_BYTES = 1 << 18
METHOD_POST, SCHEME_HTTP, PATH, AUTHORITY, CONTENT_TYPE = 3, 6, 4, 1, 31  # RFC 7541, appendix A
DYNAMIC = 62  # the newest entry of the dynamic table


class Failed(Exception):
    """A call got no answer, or the connection was ended."""


class Connection:
    """One connection with calls of one method, whose messages come from `messages`.

    `window` messages are unanswered at any time, until `messages` ends; with 0, send() sends each.
    A unary call is one message; a stream carries them all. `session_id` is for a router.
    """

    def __init__(
        self,
        address: tuple[str, int],
        path: str,
        messages: Iterator[bytes],
        *,
        streamed: bool,
        window: int = 1,
        session_id: str = "",
    ) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answered = 0
        self.last = b""  # the newest answer, for those who look at one
        self._messages = messages
        self._streamed = streamed
        self._is_paced = window == 0
        self._headers = _header_blocks(path, session_id)
        self._stream = -1  # id of the newest call
        self._stream_window_start = WINDOW_DEFAULT
        self._windows = {0: WINDOW_DEFAULT}
        self._waiting: deque[tuple[int, bytes, bool]] = deque()  # data that waits for a window
        self._received = bytearray()
        self._bodies: dict[int, bytearray] = {}
        self._unanswered: set[int] = set()  # unary calls
        self._out = [
            PREFACE,
            _frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, WINDOW_MAX)),
            _frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW_MAX - WINDOW_DEFAULT)),
        ]
        for _ in range(window):
            self._send_next()
        self._flush()

    def send(self) -> None:
        """Sends the next message now."""
        self._send_next()
        self._flush()

    def receive(self) -> int:
        """Reads what has arrived, and sends the next messages. Returns the number of answers."""
        before = self.answered
        data = self.socket.recv(RECEIVE_BYTES)
        if not data:
            raise Failed("the server closed the connection")
        self._received += data
        position = 0
        while len(self._received) - position >= 9:
            head = int.from_bytes(self._received[position : position + 3])
            end = position + 9 + head
            if len(self._received) < end:
                break
            kind, flags = self._received[position + 3 : position + 5]
            stream = int.from_bytes(self._received[position + 5 : position + 9])
            self._take(kind, flags, stream, self._received[position + 9 : end])
            position = end
        del self._received[:position]
        self._flush()
        return self.answered - before

    def close(self) -> None:
        """Closes the connection, without GOAWAY."""
        self.socket.close()

    def _take(self, kind: int, flags: int, stream: int, payload: bytearray) -> None:
        if kind == DATA:
            self._take_data(stream, payload)
        elif kind == HEADERS and flags & END_STREAM:
            self._take_end(stream)
        elif kind == SETTINGS and not flags & ACK:
            self._take_settings(payload)
        elif kind == PING and not flags & ACK:
            self._out.append(_frame(PING, ACK, 0, bytes(payload)))
        elif kind == WINDOW_UPDATE:
            self._windows[stream] = self._windows.get(stream, 0) + int.from_bytes(payload)
            self._send_waiting()
        elif kind in (RST_STREAM, GOAWAY):
            raise Failed(f"the server ended stream {stream}: {bytes(payload)!r}")

    def _take_data(self, stream: int, payload: bytearray) -> None:
        body = self._bodies[stream]
        body += payload
        while len(body) >= 5:
            end = 5 + int.from_bytes(body[1:5])
            if len(body) < end:
                return
            self.last = bytes(body[5:end])
            del body[:end]
            self.answered += 1
            self._unanswered.discard(stream)
            if self._streamed and not self._is_paced:
                self._send_next()

    def _take_end(self, stream: int) -> None:
        is_whole = self._bodies.pop(stream, None) == b"" and stream not in self._unanswered
        if self._streamed or not is_whole:
            raise Failed("a call ended without its answer")
        self._windows.pop(stream, None)
        if not self._is_paced:
            self._send_next()

    def _take_settings(self, payload: bytearray) -> None:
        for number, value in struct.iter_unpack(">HI", payload):
            if number == INITIAL_WINDOW_SIZE:
                for stream in self._bodies:
                    self._windows[stream] += value - self._stream_window_start
                self._stream_window_start = value
        self._out.append(_frame(SETTINGS, ACK, 0, b""))
        self._send_waiting()

    def _send_next(self) -> None:
        message = next(self._messages, None)
        if message is None:
            return
        if self._stream < 0 or not self._streamed:
            self._stream += 2
            block, self._headers = self._headers[0], self._headers[-1:]
            self._bodies[self._stream] = bytearray()
            if not self._streamed:
                self._unanswered.add(self._stream)
            self._windows[self._stream] = self._stream_window_start
            self._out.append(_frame(HEADERS, END_HEADERS, self._stream, block))
        content = struct.pack(">BI", 0, len(message)) + message
        self._waiting.append((self._stream, content, not self._streamed))
        self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting:
            stream, content, is_end = self._waiting[0]
            room = min(self._windows[0], self._windows.get(stream, 0), FRAME_BYTES_MAX)
            if room <= 0:
                return
            part, rest = content[:room], content[room:]
            self._windows[0] -= len(part)
            self._windows[stream] -= len(part)
            self._out.append(_frame(DATA, END_STREAM if is_end and not rest else 0, stream, part))
            if rest:
                self._waiting[0] = (stream, rest, is_end)
            else:
                self._waiting.popleft()

    def _flush(self) -> None:
        if self._out:
            self.socket.sendall(b"".join(self._out))
            self._out.clear()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def _header_blocks(path: str, session_id: str) -> list[bytes]:
    """The header block of the first call, which fills the dynamic table, and that of all others.

    RFC 7541, section 6, has their form.
    """
    known = [(PATH, path), (AUTHORITY, "bench"), (CONTENT_TYPE, "application/grpc")]
    named = [("te", "trailers"), *([("x-session-id", session_id)] if session_id else [])]
    first = again = bytes([0x80 | METHOD_POST, 0x80 | SCHEME_HTTP])
    first += b"".join(bytes([0x40 | index]) + _string(value) for index, value in known)
    first += b"".join(b"\x40" + _string(name) + _string(value) for name, value in named)
    again += bytes(0x80 | DYNAMIC + i for i in reversed(range(len(known) + len(named))))
    return [first, again]


def _string(value: str) -> bytes:
    assert len(value) < 127
    return bytes([len(value)]) + value.encode()
