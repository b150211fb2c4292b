"""The packets between clients and servers: lost, late, repeated, out of order, both ways."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from google.protobuf import text_format
from google.protobuf.message import Message

from lstmserve.engine.errors import ServeError
from simulation.faults import Faults

Answer = Message | ServeError | list[Any] | None
"""A list: of a Pipeline, in the order of its steps. None: no server is there."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Steps that are sent on one stream, none of which waits for the reply to another."""

    steps: list[Any]

    def __repr__(self) -> str:
        return " ".join(text_format.MessageToString(each, as_one_line=True) for each in self.steps)


@dataclass(slots=True, eq=False)
class Call:
    """One attempt of a client.

    A `careful` one is neither lost nor repeated, and waits for its answer: the calls that the
    protocol does not number are careful.
    """

    method: str
    request: Any
    careful: bool = False
    is_old: Callable[[], bool] = lambda: False  # whether a later step is known to be applied
    reply: asyncio.Future[Answer] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def __repr__(self) -> str:
        if isinstance(self.request, Pipeline):
            return f"{self.method}({self.request!r})"
        return f"{self.method}({text_format.MessageToString(self.request, as_one_line=True)})"

    def answer(self, answer: Answer) -> None:
        """Takes the first answer, and ignores the others."""
        if not self.reply.done():
            self.reply.set_result(answer)


class Destination(Protocol):
    """A server's address."""

    def receive(self, call: Call) -> None:
        """Takes a request, perhaps not for the first time."""

    def forget(self, call: Call) -> None:
        """Learns that the client does not wait any more."""


class Network:
    """Carries messages between clients and servers."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def request(self, call: Call, server: Destination) -> None:
        """Sends a request to a server."""
        self._send(call.careful, lambda: server.receive(call))
        if not call.careful and self._faults.happens("repeated"):
            delay_s = self._faults.random.uniform(0.0, 3.0)
            self._after(delay_s, lambda: self._repeat(call, server))

    def respond(self, call: Call, answer: Answer) -> None:
        """Sends an answer to a client."""
        self._send(call.careful, lambda: call.answer(answer))

    def give_up(self, call: Call, server: Destination) -> None:
        """Cancels a client's call; the server may learn of it."""
        if self._faults.happens("cancelled"):
            self._send(False, lambda: server.forget(call))

    def _repeat(self, call: Call, server: Destination) -> None:
        self._faults.count["requests repeated"] += 1
        self._faults.count["requests repeated after a later step"] += call.is_old()
        server.receive(call)

    def _send(self, careful: bool, deliver: Callable[[], None]) -> None:
        if not careful and self._faults.happens("lost"):
            self._faults.count["packets lost"] += 1
            return
        self._after(self._faults.packet_delay_s(), deliver)

    def _after(self, delay_s: float, deliver: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(delay_s, deliver)
