"""One address for a store's primary, like a service's IP, and a record of what was written to it.

It reads what it forwards. It notes a compare-and-set before the server gets its answer, so an ack
without a write shows at once.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import hiredis

from lstmserve.engine.keys import session_key
from lstmserve.store.record import version_of
from lstmserve.store.redis import redis_key
from soak.timing import pause

CHUNK = 1 << 16
ADDRESS = "127.0.0.1", 0
ACCEPTED_S = 0.05  # until a connection that was just accepted is among those to cut


class StoreFront:
    """`written` has (key, incarnation, step) of every record that the store took.

    `_last` has the newest step by (key, incarnation).
    """

    def __init__(self, port: int) -> None:
        with socket.create_server(ADDRESS) as free:
            self._address = free.getsockname()
        self.url = f"redis://127.0.0.1:{self._address[1]}/0"
        self.written: set[tuple[str, int, int]] = set()
        self._last: dict[tuple[str, int], int] = {}
        self.up_s = math.inf  # since when it leads to a store again
        self._port = port
        self._listener: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._passing: set[asyncio.Task[Any] | None] = set()

    def has(self, name: str, incarnation: int, step: int) -> bool:
        """Whether the store took that step of a session."""
        return (redis_key(session_key("", name)), incarnation, step) in self.written

    def last(self, name: str, incarnation: int) -> int:
        """The last step that the store took of a session, 0 if it took none."""
        return self._last.get((redis_key(session_key("", name)), incarnation), 0)

    async def lead_to(self, port: int) -> None:
        """Leads new connections to that store."""
        self._port, self.up_s = port, time.monotonic()
        self._listener = await asyncio.start_server(self._pass_on, *self._address)

    async def refuse(self) -> None:
        """Refuses new connections, and cuts the others."""
        self.up_s = math.inf
        if self._listener is not None:
            self._listener.close()
            await pause(ACCEPTED_S)
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*self._passing)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Leads servers to the store while the block runs."""
        await self.lead_to(self._port)
        try:
            yield
        finally:
            await self.refuse()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = {writer}
        self._writers.add(writer)
        self._passing.add(task := asyncio.current_task())
        try:
            store_reader, store_writer = await asyncio.open_connection("127.0.0.1", self._port)
            self._writers.add(store_writer)
            writers.add(store_writer)
            asked: deque[Any] = deque()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_ask(reader, store_writer, asked))
                tasks.create_task(self._answer(store_reader, writer, asked))
        except* OSError:
            pass  # one side is gone, and the other one will be
        finally:
            for each in writers:
                each.close()
            for each in writers:
                with suppress(OSError):
                    await each.wait_closed()
            self._writers -= writers
            self._passing.discard(task)

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: deque[Any]
    ) -> None:
        """Forwards the store's answers and notes its writes. Raises ConnectionError when they end.

        It notes a write even if the server has hung up, because the store has done it.
        """
        parser = hiredis.Reader()
        while content := await reader.read(CHUNK):
            parser.feed(content)
            while (reply := parser.gets()) is not False:
                self._note(asked.popleft(), reply)
            with suppress(ConnectionError):
                writer.write(content)
                await writer.drain()
        raise ConnectionResetError

    def _note(self, request: Any, reply: Any) -> None:
        if request[0] == b"EVALSHA" and reply == b"OK" and request[5]:
            version = version_of(request[5])
            key = request[3].decode()
            self.written.add((key, version.incarnation, version.step))
            self._last[key, version.incarnation] = version.step


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: deque[Any]
) -> None:
    parser = hiredis.Reader()
    while content := await reader.read(CHUNK):
        parser.feed(content)
        while (request := parser.gets()) is not False:
            asked.append(request)
        writer.write(content)
        await writer.drain()
    writer.write_eof()
