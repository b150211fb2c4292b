"""A router that loses, repeats and delays what it forwards, at random."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from enum import Enum
from typing import Any

import grpc
import numpy as np

from router import STREAMS, Router

LOST_REQUESTS, LOST_REPLIES, REPEATED = 0.2, 0.2, 0.1
CUT_OF_LOST = 0.3  # the share of a stream's losses that lose the whole connection


class Fate(Enum):
    """What happens to one message."""

    FINE = 0
    LOST = 1
    CUT = 2  # lost together with its stream
    REPEATED = 3
    LATE = 4  # a request: sent again behind a later one; a reply: too late for a call


class LossyRouter(Router):
    """Counts the fates of messages in `fates`; `seed` sets them. A stream takes a thread."""

    def __init__(self, target: str, seed: int, threads: int = 8) -> None:
        self._rng = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._late: list[bytes] = []
        self.fates: Counter[tuple[str, Fate]] = Counter()
        self._never = threading.Event()
        super().__init__(target, threads)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Forwards the call, most times."""
        name = details.method.rpartition("/")[2]
        if name in STREAMS:
            forward = self._channel.stream_stream(details.method)
            return grpc.stream_stream_rpc_method_handler(
                lambda requests, context: self._stream(name, forward, requests, context)
            )
        unary = self._channel.unary_unary(details.method)
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._unary(name, unary, request, context)
        )

    def heard(self, name: str, request: bytes | None, reply: bytes) -> None:
        """Sees each reply of the server, before its fate; `request` is None on a stream."""

    def _draw(self, kind: str) -> Fate:
        with self._lock:
            lost = LOST_REQUESTS if kind == "request" else LOST_REPLIES
            dice, second = self._rng.random(2)
            fate = Fate.FINE
            if dice < lost:
                fate = Fate.CUT if second < CUT_OF_LOST else Fate.LOST
            elif dice < lost + REPEATED:
                fate = Fate.REPEATED if second < 0.5 else Fate.LATE
            self.fates[kind, fate] += 1
            return fate

    def _unary(self, name: str, forward: Any, request: bytes, context: Any) -> Any:
        fate = self._draw("request")
        if fate in (Fate.LOST, Fate.CUT):
            context.abort(grpc.StatusCode.UNAVAILABLE, "the request was lost")
        try:
            reply = forward(request)
        except grpc.RpcError as error:
            context.set_trailing_metadata(error.trailing_metadata())
            context.abort(error.code(), error.details())
        self.heard(name, request, reply)
        for each in self._repeats(fate, request) if name == "Step" else ():
            with suppress(grpc.RpcError):
                self.heard(name, each, forward(each))
        fate = self._draw("reply")
        if fate in (Fate.LOST, Fate.CUT):
            context.abort(grpc.StatusCode.UNAVAILABLE, "the reply was lost")
        if fate is Fate.LATE and name == "Step":
            self._never.wait(context.time_remaining())
        return reply

    def _repeats(self, fate: Fate, request: bytes) -> list[bytes]:
        """What follows a request: perhaps a copy of it, and the copies that were held back."""
        if fate is Fate.REPEATED:
            return [request]
        with self._lock:
            late, self._late = self._late, []
            if fate is Fate.LATE:
                self._late.append(request)
        return late

    def _stream(
        self, name: str, forward: Any, requests: Iterator[bytes], context: Any
    ) -> Iterator[bytes]:
        late: list[bytes] = []
        call = forward(self._requests(requests, context))
        context.add_callback(call.cancel)
        try:
            for reply in call:
                self.heard(name, None, reply)
                fate = self._draw("reply")
                if fate is Fate.CUT:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "the connection was lost")
                if fate in (Fate.FINE, Fate.REPEATED):
                    yield from [reply] * (2 if fate is Fate.REPEATED else 1)
                    yield from late
                    late.clear()
                if fate is Fate.LATE:
                    late.append(reply)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
        finally:
            call.cancel()

    def _requests(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        late: list[bytes] = []
        for request in requests:
            fate = self._draw("request")
            if fate is Fate.CUT:
                context.cancel()
                return
            if fate is Fate.LOST:
                continue
            yield from [request] * (2 if fate is Fate.REPEATED else 1)
            yield from late
            late = [request] if fate is Fate.LATE else []
